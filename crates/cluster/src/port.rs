//! The port: the few Kubernetes verbs that controllers may use, and what each of them guarantees.
//!
//! The facts behind the guarantees are tried on a real API server by [`conformance`](crate::conformance). No server-side apply, no
//! watches, no evictions; one of our controllers per object and subresource.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;

use crate::object::{Key, Kind, Object, Typed, typed};

/// What a verb gives back: ready at the first poll in memory, within the client's time limit on a real server.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ClusterError>>;

/// Why a verb gave no object. All but [`ClusterError::Unknown`] mean that nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// There is no such object (404); for a create: no such namespace.
    #[error("the object does not exist")]
    NotFound,
    /// The object is not the one that was read: its resourceVersion or uid is another (409). For a bind: the Pod is bound, gated or
    /// going away. Read again and decide again.
    #[error("the object has changed since it was read")]
    Conflict,
    /// An object of this name exists already (409).
    #[error("an object of this name exists already")]
    AlreadyExists,
    /// The server will not do this (other 4xx): repeating it as it is leads nowhere, unless the cause is transient ([`ClusterError::is_quota`],
    /// 429).
    #[error("the API server refused: {message}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// The server's machine-readable reason, such as `Invalid` or `Forbidden`.
        reason: String,
        /// The server's sentence, fit to be shown to the user.
        message: String,
        /// One entry per wrong field, where the server names them.
        causes: Vec<Cause>,
    },
    /// The namespace is being deleted: nothing can be created in it any more (403 with that cause).
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// No answer, a cut connection or a 5xx: the change may have happened or not.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl ClusterError {
    /// Whether the refusal only says that a ResourceQuota is full now: transient, must not be held against the object.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::Refused { code: 403, message, .. } if message.contains("exceeded quota"))
    }
}

/// One reason within a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// Machine-readable reason, such as `FieldValueInvalid`.
    pub reason: String,
    /// The field's path, such as `spec.containers[0].image`; may be empty.
    pub field: String,
    /// The server's sentence.
    pub message: String,
}

/// Label equalities that all must hold. Empty: every object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(BTreeMap<String, String>);

impl Selector {
    /// Every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Objects with this label.
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::default().and(key, value)
    }

    /// Those of them that have this label too.
    pub fn and(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }

    /// The equalities as the API writes them; `None` for every object.
    pub fn query(&self) -> Option<String> {
        let pairs: Vec<_> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    }
}

/// What must still be true of the object for a write to happen. Empty fields are not checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// The object's uid.
    pub uid: Option<String>,
    /// The object's resourceVersion.
    pub resource_version: Option<String>,
}

impl Guard {
    /// No check at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// The same object (uid) in whatever version.
    pub fn same(object: &dyn Object) -> Self {
        Self { uid: object.meta().uid.clone(), resource_version: None }
    }

    /// The same object (uid) in exactly this version.
    pub fn exact(object: &dyn Object) -> Self {
        Self { uid: object.meta().uid.clone(), resource_version: object.meta().resource_version.clone() }
    }

    /// An object with this uid.
    pub fn uid(uid: impl Into<String>) -> Self {
        Self { uid: Some(uid.into()), resource_version: None }
    }
}

/// A change of metadata. What is not named stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetadataPatch {
    /// The whole new list of finalisers: guard the patch by resourceVersion, since others may have put theirs on.
    pub finalizers: Option<Vec<String>>,
    /// Labels to set, or with `None` to remove.
    pub labels: BTreeMap<String, Option<String>>,
    /// Annotations to set, or with `None` to remove.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// How a patch of the status is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// RFC 7386: objects are merged, lists and everything else replaced, null removes.
    Merge,
    /// As `Merge`, but the lists of built-in types that have a key are merged by it: conditions by `type`. Custom resources
    /// refuse it (415).
    Strategic,
}

/// A change of the status.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusPatch {
    /// How it is merged.
    pub strategy: Strategy,
    /// What goes below `status`.
    pub status: Value,
}

/// What happens to the objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// They are deleted soon after it is gone.
    #[default]
    Background,
    /// It goes only after those with `blockOwnerDeletion` are gone.
    Foreground,
    /// They stay, without an owner.
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removal {
    /// What must be true of the object; else [`ClusterError::Conflict`].
    pub guard: Guard,
    /// Seconds between the request and the end, for Pods; `None`: the Pod's own setting. 0 removes a Pod at once.
    pub grace_seconds: Option<u32>,
    /// What happens to dependents.
    pub propagation: Propagation,
}

impl Removal {
    /// Deletes an object under this guard, with the defaults.
    pub fn guarded(guard: Guard) -> Self {
        Self { guard, ..Self::default() }
    }

    /// The same without any grace.
    pub fn at_once(mut self) -> Self {
        self.grace_seconds = Some(0);
        self
    }
}

/// Who is asked about in an access review.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// User name.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

/// A question to the authoriser: may the subject do this?
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Who; `None`: the operator itself (SelfSubjectAccessReview).
    pub subject: Option<Subject>,
    /// Verb, such as `get`.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource; empty for none.
    pub subresource: String,
    /// Namespace; empty for all or for cluster-scoped resources.
    pub namespace: String,
    /// Object name; empty for all.
    pub name: String,
}

/// The authoriser's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Review {
    /// Whether it is allowed now.
    pub allowed: bool,
    /// Why, in the authoriser's words; may be empty.
    pub reason: String,
}

/// The cluster as controllers see it.
///
/// Every write is one request without retries. An object that is handed out is shared: copy it to change it. Futures of the
/// twin in memory are ready at the first poll; nothing happens before that poll.
pub trait Cluster: Send + Sync {
    /// The newest version of one object: a consistent read, never from a cache. The only way to a Secret's data.
    fn get<'a>(&'a self, kind: &'static Kind, key: &'a Key) -> Answer<'a, Arc<dyn Object>>;

    /// All objects of a kind, in one namespace or everywhere, ordered by key; consistent and complete or an error.
    fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> Answer<'a, Vec<Arc<dyn Object>>>;

    /// Creates the object and gives it uid, resourceVersion, creationTimestamp and the server's defaults. Status is ignored, except that a
    /// Node's is kept. Guarantees that of several creators of one name exactly one wins; the others get `AlreadyExists`.
    fn create<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>>;

    /// Lets the server judge a create, unknown fields included, and changes nothing. Takes JSON, because a typed object has lost its
    /// unknown fields. Ok does not mean that a later create succeeds: Secrets and volumes are not looked up, and quota moves.
    fn create_dry_run_strict<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: &'a str,
        object: &'a Value,
    ) -> Answer<'a, ()>;

    /// Replaces metadata and spec by those of the object. Needs its resourceVersion (`Refused` 422 without): guarantees that nothing was
    /// written since. Status is ignored where it is a subresource. A replace that changes nothing keeps the resourceVersion.
    fn replace<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>>;

    /// Changes finalisers, labels and annotations in one write. Taking the last finaliser off an object that is being
    /// deleted ends it; the answer is then its last version. A wrong uid is `Refused` 422, a stale resourceVersion `Conflict`.
    fn patch_metadata<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a MetadataPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>>;

    /// Replaces the status. Needs the resourceVersion; spec is ignored, and for custom resources metadata too. Generation stays.
    fn replace_status<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>>;

    /// Merges into the status. A stale resourceVersion is `Conflict`, a wrong uid `Refused` 422, **but of custom resources the server
    /// ignores the uid here**: guard those by resourceVersion, which a recreated object never shares. A patch that changes
    /// nothing keeps the resourceVersion. Any Pod phase is accepted: the latch is ours.
    fn patch_status<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a StatusPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>>;

    /// Asks for deletion. Ok means accepted, not gone: an object with finalisers and a bound, unfinished Pod stay with a
    /// deletionTimestamp. Unbound or finished Pods and those with grace 0 vanish at once. A repeated delete may only shorten the grace.
    fn delete<'a>(&'a self, kind: &'static Kind, key: &'a Key, how: &'a Removal) -> Answer<'a, ()>;

    /// Assigns an unbound Pod to a node and puts annotations on it in the same write. Guarantees against the scheduler and other
    /// binders that exactly one wins; the others, a wrong uid, gates or a Pod going away get `Conflict`. The node need not exist.
    fn bind<'a>(
        &'a self,
        pod: &'a Key,
        uid: &'a str,
        node: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Answer<'a, ()>;

    /// Asks the authoriser; changes nothing.
    fn access_review<'a>(&'a self, access: &'a Access) -> Answer<'a, Review>;
}

impl dyn Cluster + '_ {
    /// [`Cluster::get`], typed.
    pub async fn read<K: Typed>(&self, key: &Key) -> Result<Arc<K>, ClusterError> {
        self.get(K::KIND, key).await.map(typed::<K>)
    }

    /// [`Cluster::get`], typed, with `None` for an object that does not exist.
    pub async fn find<K: Typed>(&self, key: &Key) -> Result<Option<Arc<K>>, ClusterError> {
        match self.read(key).await {
            Ok(object) => Ok(Some(object)),
            Err(ClusterError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// [`Cluster::list`], typed.
    pub async fn read_all<K: Typed>(
        &self,
        namespace: Option<&str>,
        labels: &Selector,
    ) -> Result<Vec<Arc<K>>, ClusterError> {
        let objects = self.list(K::KIND, namespace, labels).await?;
        Ok(objects.into_iter().map(typed::<K>).collect())
    }

    /// [`Cluster::create`], typed.
    pub async fn add<K: Typed>(&self, object: K) -> Result<Arc<K>, ClusterError> {
        self.create(K::KIND, Arc::new(object)).await.map(typed::<K>)
    }

    /// [`Cluster::replace`], typed.
    pub async fn write<K: Typed>(&self, object: K) -> Result<Arc<K>, ClusterError> {
        self.replace(K::KIND, Arc::new(object)).await.map(typed::<K>)
    }

    /// [`Cluster::replace_status`], typed.
    pub async fn write_status<K: Typed>(&self, object: K) -> Result<Arc<K>, ClusterError> {
        self.replace_status(K::KIND, Arc::new(object)).await.map(typed::<K>)
    }

    /// [`Cluster::patch_metadata`], typed.
    pub async fn amend<K: Typed>(
        &self,
        key: &Key,
        patch: &MetadataPatch,
        guard: &Guard,
    ) -> Result<Arc<K>, ClusterError> {
        self.patch_metadata(K::KIND, key, patch, guard).await.map(typed::<K>)
    }

    /// [`Cluster::patch_status`], typed.
    pub async fn amend_status<K: Typed>(
        &self,
        key: &Key,
        patch: &StatusPatch,
        guard: &Guard,
    ) -> Result<Arc<K>, ClusterError> {
        self.patch_status(K::KIND, key, patch, guard).await.map(typed::<K>)
    }

    /// [`Cluster::delete`], typed.
    pub async fn remove<K: Typed>(&self, key: &Key, how: &Removal) -> Result<(), ClusterError> {
        self.delete(K::KIND, key, how).await
    }
}
