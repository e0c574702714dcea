//! One suite for every implementation of the port: each case is a fact about the API server that controllers rely on.
//!
//! The twin runs it in this crate's unit tests, the port on `kube::Client` against a real API server in `tests/conformance.rs`. A
//! case works in its own namespace, with Pods that no scheduler looks at, on a node that does not exist.

mod metadata;
mod pods;
mod removal;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, Pod, PodSpec, PodStatus};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tradewind_api::Provider;

use crate::object::{Key, Object, Typed};
use crate::port::{Cluster, ClusterError, Guard, MetadataPatch, Removal, StatusPatch, Strategy};

/// What the suite cannot do through the port.
pub trait Setting: Send + Sync {
    /// Waits until Pods can be created in a new namespace: a real cluster first makes its ServiceAccount.
    fn prepare<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, ()>;
}

/// A setting where nothing needs to be waited for.
#[derive(Debug, Clone, Copy)]
pub struct Ready;

impl Setting for Ready {
    fn prepare<'a>(&'a self, _namespace: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why a case failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self(format!("unexpected: {error:?}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self(format!("unexpected: {error}"))
    }
}

type Verdict = Result<(), Failure>;

/// One fact.
#[derive(Clone, Copy)]
pub struct Case {
    /// Short name, also part of the namespace's name.
    pub name: &'static str,
    /// The fact, as a sentence.
    pub fact: &'static str,
    run: for<'a> fn(&'a Stage<'a>) -> BoxFuture<'a, Verdict>,
}

macro_rules! case {
    ($name:literal, $fact:literal, $run:path) => {
        $crate::conformance::Case { name: $name, fact: $fact, run: |stage| Box::pin($run(stage)) }
    };
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure(format!($($message)+)));
        }
    };
}

macro_rules! fails {
    ($result:expr, $pattern:pat, $what:expr) => {
        match $result {
            Err($pattern) => {}
            other => {
                let found = other.map(|_| "success");
                return Err($crate::conformance::Failure(format!("{}: found {found:?}", $what)));
            }
        }
    };
}

use {case, ensure, fails};

/// All facts.
pub fn cases() -> Vec<Case> {
    [metadata::CASES, pods::CASES, removal::CASES, status::CASES].concat()
}

/// Runs every case and returns those that failed. `run` makes names unique where runs share a cluster.
pub async fn run(cluster: &dyn Cluster, setting: &dyn Setting, run: &str) -> Vec<(Case, Failure)> {
    let mut failed = Vec::new();
    for case in cases() {
        if let Err(failure) = run_case(cluster, setting, run, &case).await {
            failed.push((case, failure));
        }
    }
    failed
}

async fn run_case(cluster: &dyn Cluster, setting: &dyn Setting, run: &str, case: &Case) -> Verdict {
    let name = format!("c{run}-{}", case.name);
    cluster.add(Namespace { metadata: named("", &name), ..Namespace::default() }).await?;
    setting.prepare(&name).await;
    let stage = Stage { cluster, namespace: name.clone() };
    let verdict = (case.run)(&stage).await;
    let key = Key::cluster(name);
    // Tidying up is no part of the fact: what a failed case left behind goes with its cluster.
    for kind in [Provider::KIND, k8s_openapi::api::core::v1::Node::KIND, Namespace::KIND] {
        let _ = cluster.delete(kind, &key, &Removal::default()).await;
    }
    verdict
}

/// Where a case plays. Cluster-scoped objects of a case are named like its namespace.
struct Stage<'a> {
    cluster: &'a dyn Cluster,
    namespace: String,
}

const NODE: &str = "conformance-node-that-does-not-exist";
const FINALIZER: &str = "tradewind.dev/conformance";

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Stage<'_> {
    fn key(&self, name: &str) -> Key {
        Key::namespaced(&*self.namespace, name)
    }

    /// A Pod that no scheduler looks at.
    fn pod(&self, name: &str) -> Pod {
        let container = Container {
            name: "main".to_owned(),
            image: Some("registry.invalid/image:1".to_owned()),
            ..Container::default()
        };
        let spec = PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".to_owned()),
            scheduler_name: Some("conformance".to_owned()),
            automount_service_account_token: Some(false),
            ..PodSpec::default()
        };
        Pod { metadata: named(&self.namespace, name), spec: Some(spec), status: None }
    }

    async fn add_pod(&self, name: &str) -> Result<Arc<Pod>, Failure> {
        Ok(self.cluster.add(self.pod(name)).await?)
    }

    async fn add_bound_pod(&self, name: &str) -> Result<Arc<Pod>, Failure> {
        let pod = self.add_pod(name).await?;
        self.cluster.bind(&Key::of(&*pod), uid(&*pod), NODE, &BTreeMap::new()).await?;
        Ok(self.cluster.read(&Key::of(&*pod)).await?)
    }

    fn config_map(&self, name: &str) -> ConfigMap {
        ConfigMap { metadata: named(&self.namespace, name), ..ConfigMap::default() }
    }

    /// A custom resource: cluster-scoped, with status and generation.
    fn provider(&self) -> Result<Provider, Failure> {
        Ok(serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": {"name": self.namespace},
            "spec": {"kind": "Vast", "credentialsSecretRef": {"name": "key"}, "limits": {"perHour": "1", "perDay": "10"}},
        }))?)
    }

    async fn add_provider(&self) -> Result<Arc<Provider>, Failure> {
        Ok(self.cluster.add(self.provider()?).await?)
    }

    async fn patch_pod(&self, name: &str, status: Value) -> Result<Arc<Pod>, Failure> {
        let patch = StatusPatch { strategy: Strategy::Merge, status };
        Ok(self.cluster.amend_status(&self.key(name), &patch, &Guard::none()).await?)
    }

    async fn set_finalizers<K: Typed>(&self, object: &K, finalizers: &[&str]) -> Result<Arc<K>, Failure> {
        let finalizers = Some(finalizers.iter().map(|name| (*name).to_owned()).collect());
        let patch = MetadataPatch { finalizers, ..MetadataPatch::default() };
        Ok(self.cluster.amend(&Key::of(object), &patch, &Guard::same(object)).await?)
    }

    async fn is_gone<K: Typed>(&self, key: &Key) -> Result<bool, Failure> {
        Ok(self.cluster.find::<K>(key).await?.is_none())
    }
}

fn uid(object: &dyn Object) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

fn version(object: &dyn Object) -> &str {
    object.meta().resource_version.as_deref().unwrap_or_default()
}

fn generation(object: &dyn Object) -> i64 {
    object.meta().generation.unwrap_or_default()
}

fn is_deleting(object: &dyn Object) -> bool {
    object.meta().deletion_timestamp.is_some()
}

fn status_of(pod: &Pod) -> PodStatus {
    pod.status.clone().unwrap_or_default()
}

/// Another object's uid.
fn stranger() -> String {
    "00000000-0000-4000-8000-000000000000".to_owned()
}
