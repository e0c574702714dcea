//! The twin: the port in memory, with the semantics that the conformance suite finds on a real API server.
//!
//! Objects stay typed and shared; no JSON but in status patches and dry runs. Every future is ready at its first poll. The
//! world simulation reads a [change log](Memory::changes) and delivers it to caches as late, often and jumbled as it
//! likes, and calls [`controllers`] when it wants the scheduler, the garbage collector and others to act. What the twin does
//! not know: schemas (pruning, defaults, CEL), quota and policy; [`Memory::set_admission`] stands in for them.

pub mod controllers;
mod merge;
mod pods;
mod store;
mod update;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use serde_json::Value;
use tradewind_core::Clock;

use crate::object::{Key, Kind, Object, Typed, typed};
use crate::port::{
    Access, Answer, Cluster, ClusterError, Guard, MetadataPatch, Removal, Review, Selector, StatusPatch,
};

use store::State;
pub use store::{Backup, Change, Changes};

/// Judges an object about to be created or tried, in place of schemas, quota and policy.
pub type Admission = Box<dyn Fn(&'static Kind, &dyn Object) -> Result<(), ClusterError> + Send + Sync>;

/// Answers access reviews.
pub type Authoriser = Box<dyn Fn(&Access) -> Review + Send + Sync>;

/// A Kubernetes API server in memory. Starts with the namespaces that every cluster has.
pub struct Memory {
    state: Mutex<State>,
}

impl Memory {
    /// An empty cluster whose times and uids come from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Mutex::new(State::new(clock)) }
    }

    /// Replaces the judgement on creates; the default admits everything.
    pub fn set_admission(&self, admission: Admission) {
        self.lock().admission = admission;
    }

    /// Replaces the authoriser; the default allows everything.
    pub fn set_authoriser(&self, authoriser: Authoriser) {
        self.lock().authoriser = authoriser;
    }

    /// From now on writes objects as JSON and reads them again before it stores them, about ten times slower: what does not survive the
    /// wire (fractions of a second, fields left out) is then lost here too.
    pub fn go_through_json(&self) {
        self.lock().goes_through_json = true;
    }

    /// What changed after `since` (an index from an earlier answer or from [`Memory::snapshot`]; 0: from the start), for one kind.
    /// `None` if the log no longer reaches back so far: take a snapshot, as a watcher must after a 410.
    pub fn changes(&self, kind: &'static Kind, since: u64) -> Option<Changes> {
        self.lock().changes(kind, since)
    }

    /// All objects of a kind, and the log index from which [`Memory::changes`] goes on.
    pub fn snapshot(&self, kind: &'static Kind) -> (Vec<Arc<dyn Object>>, u64) {
        let state = self.lock();
        (state.all(kind).cloned().collect(), state.index())
    }

    /// One object, if it exists: for checkers, not for controllers.
    pub fn peek<K: Typed>(&self, key: &Key) -> Option<Arc<K>> {
        self.lock().row(K::KIND, key).ok().map(typed::<K>)
    }

    /// All objects of a type: for checkers, not for controllers.
    pub fn peek_all<K: Typed>(&self) -> Vec<Arc<K>> {
        self.lock().all(K::KIND).cloned().map(typed::<K>).collect()
    }

    /// The state of the whole cluster as of now, as a snapshot of etcd holds it. Cheap: rows are shared.
    pub fn backup(&self) -> Backup {
        self.lock().backup()
    }

    /// Puts an earlier state back, as `etcdutl snapshot restore` does, without a word to anybody: whoever watches must list again. If
    /// `bumped`, versions go on from where they are (`--bump-revision`); else they go back too, and numbers are used again.
    pub fn restore(&self, backup: &Backup, bumped: bool) {
        self.lock().restore(backup, bumped);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of an in-memory future, which never waits.
///
/// # Panics
/// If the future is not ready at its first poll: it waits on something else than in-memory ports, or a gate crashed it.
pub fn at_once<F: Future>(future: F) -> F::Output {
    future.now_or_never().expect("in-memory ports answer at the first poll")
}

impl Cluster for Memory {
    fn get<'a>(&'a self, kind: &'static Kind, key: &'a Key) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().row(kind, key) })
    }

    fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> Answer<'a, Vec<Arc<dyn Object>>> {
        Box::pin(async move {
            let state = self.lock();
            let wanted = |object: &&Arc<dyn Object>| {
                namespace.is_none_or(|namespace| object.meta().namespace.as_deref() == Some(namespace))
                    && labels.matches(object.meta().labels.as_ref())
            };
            Ok(state.all(kind).filter(wanted).cloned().collect())
        })
    }

    fn create<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().create(kind, object) })
    }

    fn create_dry_run_strict<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: &'a str,
        object: &'a Value,
    ) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().try_create(kind, namespace, object) })
    }

    fn replace<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().replace(kind, object) })
    }

    fn patch_metadata<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a MetadataPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().patch_metadata(kind, key, patch, guard) })
    }

    fn replace_status<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().replace_status(kind, object) })
    }

    fn patch_status<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a StatusPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        Box::pin(async move { self.lock().patch_status(kind, key, patch, guard) })
    }

    fn delete<'a>(&'a self, kind: &'static Kind, key: &'a Key, how: &'a Removal) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().delete(kind, key, how) })
    }

    fn bind<'a>(
        &'a self,
        pod: &'a Key,
        uid: &'a str,
        node: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().bind(pod, uid, node, annotations) })
    }

    fn access_review<'a>(&'a self, access: &'a Access) -> Answer<'a, Review> {
        Box::pin(async move { Ok((self.lock().authoriser)(access)) })
    }
}
