//! The port on a real API server, through `kube::Client`. Each verb is one request, with a time limit and without retries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use crate::kinds::POD;
use crate::object::{Key, Kind, Object, own};
use crate::port::{
    Access, Answer, Cause, Cluster, ClusterError, Guard, MetadataPatch, Propagation, Removal, Review, Selector,
    StatusPatch, Strategy,
};

/// How long one call may take before its outcome counts as unknown.
const LIMIT: Duration = Duration::from_secs(10);

/// One request that was made, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    /// The port's verb, such as `patch_status`.
    pub verb: &'static str,
    /// Plural resource name.
    pub resource: &'static str,
    /// `ok`, `not_found`, `conflict`, `already_exists`, `refused`, `namespace_terminating` or `unknown`.
    pub outcome: &'static str,
    /// How long it took.
    pub elapsed: Duration,
}

/// Is told of every request.
pub type Observer = Arc<dyn Fn(Called) + Send + Sync>;

/// The port on a real API server.
#[derive(Clone)]
pub struct KubeCluster {
    client: kube::Client,
    limit: Duration,
    observer: Option<Observer>,
}

/// A client for this configuration without the retries that would repeat a create, and without a read timeout, so that
/// it serves watches too.
///
/// # Errors
/// If certificates or credentials of the configuration cannot be read.
pub fn client(mut config: kube::Config) -> Result<kube::Client, kube::Error> {
    config.default_retry = false;
    config.read_timeout = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    kube::Client::try_from(config)
}

impl KubeCluster {
    /// The port over a client made by [`client`].
    pub fn new(client: kube::Client) -> Self {
        Self { client, limit: LIMIT, observer: None }
    }

    /// The same with another time limit per call: a Lease needs one below its renew interval.
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The same with somebody who counts.
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    async fn send(&self, call: Call) -> Result<String, ClusterError> {
        let start = tokio::time::Instant::now();
        let request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(http::header::CONTENT_TYPE, call.content_type)
            .body(call.body)
            .map_err(|error| invalid(error.to_string()))?;
        let answer = match tokio::time::timeout(self.limit, self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(classify),
            Err(_) => Err(ClusterError::Unknown(format!("no answer within {} s", self.limit.as_secs()))),
        };
        if let Some(observer) = &self.observer {
            let outcome = outcome(answer.as_ref().err());
            observer(Called { verb: call.verb, resource: call.resource, outcome, elapsed: start.elapsed() });
        }
        answer
    }

    async fn send_for_object(&self, kind: &'static Kind, call: Call) -> Result<Arc<dyn Object>, ClusterError> {
        let is_write = call.method != Method::GET;
        let text = self.send(call).await?;
        let mut object = (kind.decode)(text.as_bytes()).map_err(unreadable)?;
        if is_write {
            // As from the watch: the answer to an own write is kept, and half of its memory would be for these.
            own(&mut object).meta_mut().managed_fields = None;
        }
        Ok(object)
    }
}

struct Call {
    verb: &'static str,
    resource: &'static str,
    method: Method,
    path: String,
    content_type: &'static str,
    body: Vec<u8>,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

impl Call {
    fn new(verb: &'static str, kind: &'static Kind, method: Method, path: String) -> Self {
        Self { verb, resource: kind.plural, method, path, content_type: JSON, body: Vec::new() }
    }

    fn with_object(mut self, kind: &'static Kind, object: &dyn Object) -> Result<Self, ClusterError> {
        self.body = (kind.encode)(object).map_err(|error| invalid(error.to_string()))?;
        Ok(self)
    }

    fn with_value(mut self, content_type: &'static str, value: &Value) -> Self {
        self.content_type = content_type;
        self.body = value.to_string().into_bytes();
        self
    }
}

fn invalid(message: String) -> ClusterError {
    ClusterError::Refused { code: 400, reason: "BadRequest".to_owned(), message, causes: Vec::new() }
}

/// The request was carried out, but the answer makes no sense.
fn unreadable(error: serde_json::Error) -> ClusterError {
    ClusterError::Unknown(format!("the answer cannot be read: {error}"))
}

fn outcome(error: Option<&ClusterError>) -> &'static str {
    match error {
        None => "ok",
        Some(ClusterError::NotFound) => "not_found",
        Some(ClusterError::Conflict) => "conflict",
        Some(ClusterError::AlreadyExists) => "already_exists",
        Some(ClusterError::Refused { .. }) => "refused",
        Some(ClusterError::NamespaceTerminating) => "namespace_terminating",
        Some(ClusterError::Unknown(_)) => "unknown",
    }
}

/// What an error means. Only a parsed 4xx says that nothing has happened.
fn classify(error: kube::Error) -> ClusterError {
    let kube::Error::Api(status) = error else {
        return ClusterError::Unknown(chain(&error));
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let is_terminating = causes.clone().any(|cause| cause.reason == "NamespaceTerminating");
    match status.code {
        403 if is_terminating => ClusterError::NamespaceTerminating,
        404 => ClusterError::NotFound,
        409 if status.reason == "AlreadyExists" => ClusterError::AlreadyExists,
        409 => ClusterError::Conflict,
        // 408 is the server's own time limit, for which the write may have been under way.
        400..=407 | 410..=499 => ClusterError::Refused {
            code: status.code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            causes: causes
                .map(|cause| Cause {
                    reason: cause.reason.clone(),
                    field: cause.field.clone(),
                    message: cause.message.clone(),
                })
                .collect(),
        },
        code => ClusterError::Unknown(format!("{code} {}: {}", status.reason, status.message)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

fn guard_into(metadata: &mut Value, guard: &Guard) {
    if let Some(uid) = &guard.uid {
        metadata["uid"] = json!(uid);
    }
    if let Some(version) = &guard.resource_version {
        metadata["resourceVersion"] = json!(version);
    }
}

/// Reads a resourceVersion where one is required, so that no unconditional update slips through.
fn require_version(object: &dyn Object) -> Result<(), ClusterError> {
    if object.meta().resource_version.as_deref().unwrap_or_default().is_empty() {
        let message = "metadata.resourceVersion: must be specified for an update".to_owned();
        return Err(ClusterError::Refused { code: 422, reason: "Invalid".to_owned(), message, causes: Vec::new() });
    }
    Ok(())
}

impl Cluster for KubeCluster {
    fn get<'a>(&'a self, kind: &'static Kind, key: &'a Key) -> Answer<'a, Arc<dyn Object>> {
        let call = Call::new("get", kind, Method::GET, kind.path_of(key));
        Box::pin(self.send_for_object(kind, call))
    }

    fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> Answer<'a, Vec<Arc<dyn Object>>> {
        Box::pin(async move {
            let mut path = kind.path(namespace);
            if let Some(labels) = labels.query() {
                let query = Serializer::new(String::new()).append_pair("labelSelector", &labels).finish();
                path = format!("{path}?{query}");
            }
            let text = self.send(Call::new("list", kind, Method::GET, path)).await?;
            (kind.decode_list)(text.as_bytes()).map_err(unreadable)
        })
    }

    fn create<'a>(&'a self, kind: &'static Kind, mut object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move {
            if object.meta().resource_version.is_some() || object.meta().uid.is_some() {
                let meta = own(&mut object).meta_mut();
                (meta.resource_version, meta.uid) = (None, None);
            }
            let path = kind.path(object.meta().namespace.as_deref());
            let call = Call::new("create", kind, Method::POST, path).with_object(kind, &*object)?;
            self.send_for_object(kind, call).await
        })
    }

    fn create_dry_run_strict<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: &'a str,
        object: &'a Value,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = format!("{}?dryRun=All&fieldValidation=Strict", kind.path(Some(namespace)));
            let call = Call::new("create_dry_run_strict", kind, Method::POST, path).with_value(JSON, object);
            self.send(call).await.map(drop)
        })
    }

    fn replace<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move {
            require_version(&*object)?;
            let path = kind.path_of(&Key::of(&*object));
            let call = Call::new("replace", kind, Method::PUT, path).with_object(kind, &*object)?;
            self.send_for_object(kind, call).await
        })
    }

    fn patch_metadata<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a MetadataPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        let mut metadata = json!({});
        if let Some(finalizers) = &patch.finalizers {
            metadata["finalizers"] = json!(finalizers);
        }
        if !patch.labels.is_empty() {
            metadata["labels"] = json!(patch.labels);
        }
        if !patch.annotations.is_empty() {
            metadata["annotations"] = json!(patch.annotations);
        }
        guard_into(&mut metadata, guard);
        let call = Call::new("patch_metadata", kind, Method::PATCH, kind.path_of(key))
            .with_value(MERGE, &json!({ "metadata": metadata }));
        Box::pin(self.send_for_object(kind, call))
    }

    fn replace_status<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move {
            require_version(&*object)?;
            let path = format!("{}/status", kind.path_of(&Key::of(&*object)));
            let call = Call::new("replace_status", kind, Method::PUT, path).with_object(kind, &*object)?;
            self.send_for_object(kind, call).await
        })
    }

    fn patch_status<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a StatusPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        let mut body = json!({ "metadata": {}, "status": patch.status });
        guard_into(&mut body["metadata"], guard);
        let content_type = match patch.strategy {
            Strategy::Merge => MERGE,
            Strategy::Strategic => STRATEGIC,
        };
        let path = format!("{}/status", kind.path_of(key));
        let call = Call::new("patch_status", kind, Method::PATCH, path).with_value(content_type, &body);
        Box::pin(self.send_for_object(kind, call))
    }

    fn delete<'a>(&'a self, kind: &'static Kind, key: &'a Key, how: &'a Removal) -> Answer<'a, ()> {
        let propagation = match how.propagation {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        let mut body = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation });
        if how.guard != Guard::none() {
            body["preconditions"] = json!({});
            guard_into(&mut body["preconditions"], &how.guard);
        }
        if let Some(seconds) = how.grace_seconds {
            body["gracePeriodSeconds"] = json!(seconds);
        }
        let call = Call::new("delete", kind, Method::DELETE, kind.path_of(key)).with_value(JSON, &body);
        // The answer is the object or a Status; neither is needed.
        Box::pin(async move { self.send(call).await.map(drop) })
    }

    fn bind<'a>(
        &'a self,
        pod: &'a Key,
        uid: &'a str,
        node: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        let metadata = json!({ "name": pod.name, "namespace": pod.namespace, "uid": uid, "annotations": annotations });
        let target = json!({ "apiVersion": "v1", "kind": "Node", "name": node });
        let body = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target });
        let path = format!("{}/binding", POD.path_of(pod));
        let call = Call::new("bind", &POD, Method::POST, path).with_value(JSON, &body);
        Box::pin(async move { self.send(call).await.map(drop) })
    }

    fn access_review<'a>(&'a self, access: &'a Access) -> Answer<'a, Review> {
        let attributes = json!({
            "verb": access.verb, "group": access.group, "resource": access.resource, "subresource": access.subresource,
            "namespace": access.namespace, "name": access.name,
        });
        let (kind, path, spec) = match &access.subject {
            None => {
                ("SelfSubjectAccessReview", "selfsubjectaccessreviews", json!({ "resourceAttributes": attributes }))
            }
            Some(subject) => (
                "SubjectAccessReview",
                "subjectaccessreviews",
                json!({ "resourceAttributes": attributes, "user": subject.user, "groups": subject.groups }),
            ),
        };
        let body = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec });
        let call = Call {
            verb: "access_review",
            resource: path,
            method: Method::POST,
            path: format!("/apis/authorization.k8s.io/v1/{path}"),
            content_type: JSON,
            body: body.to_string().into_bytes(),
        };
        Box::pin(async move {
            let answer: Value = serde_json::from_str(&self.send(call).await?).map_err(unreadable)?;
            let status = &answer["status"];
            Ok(Review {
                allowed: status["allowed"].as_bool().unwrap_or(false),
                reason: status["reason"].as_str().unwrap_or_default().to_owned(),
            })
        })
    }
}
