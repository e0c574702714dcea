//! A [`Cluster`] behind a [`Gate`]: the world simulation cuts its calls there.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tradewind_core::gate::{Gate, Point, pass};

use crate::object::{Key, Kind, Object};
use crate::port::{
    Access, Answer, Cluster, ClusterError, Guard, MetadataPatch, Removal, Review, Selector, StatusPatch,
};

/// Passes every call on to another cluster, through a gate. Points have port `cluster`, the verb's name and a key such as
/// `pods/default/worker-0`.
pub struct Gated {
    inner: Arc<dyn Cluster>,
    gate: Arc<dyn Gate>,
}

impl Gated {
    /// Puts `gate` in front of `inner`.
    pub fn new(inner: Arc<dyn Cluster>, gate: Arc<dyn Gate>) -> Self {
        Self { inner, gate }
    }

    fn pass<'a, T: Send + 'a>(&'a self, verb: &'static str, key: String, call: Answer<'a, T>) -> Answer<'a, T> {
        let point = Point { port: "cluster", verb, key };
        Box::pin(pass(&*self.gate, point, call, ClusterError::Unknown))
    }
}

fn path(kind: &'static Kind, key: &Key) -> String {
    format!("{}/{key}", kind.plural)
}

fn path_of(kind: &'static Kind, object: &dyn Object) -> String {
    path(kind, &Key::of(object))
}

impl Cluster for Gated {
    fn get<'a>(&'a self, kind: &'static Kind, key: &'a Key) -> Answer<'a, Arc<dyn Object>> {
        self.pass("get", path(kind, key), self.inner.get(kind, key))
    }

    fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> Answer<'a, Vec<Arc<dyn Object>>> {
        self.pass("list", kind.plural.to_owned(), self.inner.list(kind, namespace, labels))
    }

    fn create<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        self.pass("create", path_of(kind, &*object), self.inner.create(kind, object))
    }

    fn create_dry_run_strict<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: &'a str,
        object: &'a Value,
    ) -> Answer<'a, ()> {
        let key = format!("{}/{namespace}", kind.plural);
        self.pass("create_dry_run_strict", key, self.inner.create_dry_run_strict(kind, namespace, object))
    }

    fn replace<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        self.pass("replace", path_of(kind, &*object), self.inner.replace(kind, object))
    }

    fn patch_metadata<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a MetadataPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        self.pass("patch_metadata", path(kind, key), self.inner.patch_metadata(kind, key, patch, guard))
    }

    fn replace_status<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        self.pass("replace_status", path_of(kind, &*object), self.inner.replace_status(kind, object))
    }

    fn patch_status<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a StatusPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        self.pass("patch_status", path(kind, key), self.inner.patch_status(kind, key, patch, guard))
    }

    fn delete<'a>(&'a self, kind: &'static Kind, key: &'a Key, how: &'a Removal) -> Answer<'a, ()> {
        self.pass("delete", path(kind, key), self.inner.delete(kind, key, how))
    }

    fn bind<'a>(
        &'a self,
        pod: &'a Key,
        uid: &'a str,
        node: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        self.pass("bind", format!("pods/{pod}"), self.inner.bind(pod, uid, node, annotations))
    }

    fn access_review<'a>(&'a self, access: &'a Access) -> Answer<'a, Review> {
        self.pass("access_review", access.resource.clone(), self.inner.access_review(access))
    }
}
