//! The verbs of the twin. Order of checks and side effects follow the API server's generic registry (`rest.BeforeUpdate`,
//! `rest.BeforeDelete`, `Store.Update`, `Store.Delete` of Kubernetes 1.36).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::store::{State, prepare_namespace, tidy};
use super::{merge, pods};
use crate::object::{Key, Kind, Object, Typed, own, typed_ref};
use crate::port::{Cause, ClusterError, Guard, MetadataPatch, Propagation, Removal, StatusPatch, Strategy};

/// The garbage collector's own finalisers.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

type Outcome = Result<Arc<dyn Object>, ClusterError>;

/// A refusal for one field, as validation gives it.
pub(super) fn invalid(field: &str, message: &str) -> ClusterError {
    ClusterError::Refused {
        code: 422,
        reason: "Invalid".to_owned(),
        message: format!("{field}: {message}"),
        causes: vec![Cause {
            reason: "FieldValueInvalid".to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
        }],
    }
}

pub(super) fn refused(code: u16, reason: &str, message: String) -> ClusterError {
    ClusterError::Refused { code, reason: reason.to_owned(), message, causes: Vec::new() }
}

/// The guard of a patch: resourceVersion first, as the registry does.
fn check_patch(meta: &ObjectMeta, guard: &Guard) -> Result<(), ClusterError> {
    if guard.resource_version.is_some() && guard.resource_version != meta.resource_version {
        return Err(ClusterError::Conflict);
    }
    if guard.uid.is_some() && guard.uid != meta.uid {
        return Err(invalid("metadata.uid", "field is immutable"));
    }
    Ok(())
}

/// The port itself refuses a replace without a resourceVersion, before it asks any server.
fn require_version(new: &ObjectMeta) -> Result<(), ClusterError> {
    if new.resource_version.as_deref().unwrap_or_default().is_empty() {
        return Err(invalid("metadata.resourceVersion", "must be specified for an update"));
    }
    Ok(())
}

/// The checks of a replace: uid and resourceVersion are preconditions.
fn check_replace(old: &ObjectMeta, new: &ObjectMeta) -> Result<(), ClusterError> {
    if (new.uid.is_some() && new.uid != old.uid) || new.resource_version != old.resource_version {
        return Err(ClusterError::Conflict);
    }
    Ok(())
}

/// What no update can change.
fn keep_system_fields(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.uid.clone_from(&old.uid);
    new.creation_timestamp.clone_from(&old.creation_timestamp);
    new.deletion_timestamp.clone_from(&old.deletion_timestamp);
    new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    new.generation = old.generation;
    new.resource_version.clone_from(&old.resource_version);
    new.managed_fields.clone_from(&old.managed_fields);
    tidy(new);
}

impl State {
    /// A written object as a server would receive it.
    fn received(&self, kind: &'static Kind, object: Arc<dyn Object>) -> Outcome {
        if !self.goes_through_json {
            return Ok(object);
        }
        let read = (kind.encode)(&*object).and_then(|json| (kind.decode)(&json));
        read.map_err(|error| refused(400, "BadRequest", error.to_string()))
    }

    pub(super) fn create(&mut self, kind: &'static Kind, object: Arc<dyn Object>) -> Outcome {
        let mut object = self.received(kind, object)?;
        let key = self.prepare(kind, own(&mut object))?;
        if self.row(kind, &key).is_ok() {
            return Err(ClusterError::AlreadyExists);
        }
        let made = self.put(kind, key, object);
        if kind.custom {
            self.unsettled.insert((kind.plural, Key::of(&*made)));
        }
        Ok(made)
    }

    pub(super) fn try_create(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        value: &Value,
    ) -> Result<(), ClusterError> {
        let bad = |message: String| refused(400, "BadRequest", message);
        let mut object = (kind.from_value)(value.clone()).map_err(|error| bad(error.to_string()))?;
        let known = (kind.to_value)(&*object).map_err(|error| bad(error.to_string()))?;
        if let Some(field) = merge::unknown_field(value, &known) {
            return Err(bad(format!("strict decoding error: unknown field \"{field}\"")));
        }
        if kind.namespaced {
            own(&mut object).meta_mut().namespace = Some(namespace.to_owned());
        }
        let key = self.prepare(kind, own(&mut object))?;
        self.row(kind, &key).map_or(Ok(()), |_| Err(ClusterError::AlreadyExists))
    }

    /// Everything between the request and storage: admission, defaults, validation.
    fn prepare(&mut self, kind: &'static Kind, object: &mut dyn Object) -> Result<Key, ClusterError> {
        let key = Key::of(object);
        if key.name.is_empty() {
            return Err(invalid("metadata.name", "name or generateName is required"));
        }
        if kind.namespaced == key.namespace.is_empty() {
            return Err(refused(400, "BadRequest", format!("{key}: the namespace does not fit {}", kind.plural)));
        }
        if kind.namespaced {
            let namespace = self.row(Namespace::KIND, &Key::cluster(&key.namespace))?;
            if namespace.meta().deletion_timestamp.is_some() {
                return Err(ClusterError::NamespaceTerminating);
            }
        }
        if let Some(status) = &kind.status
            && kind != Node::KIND
        {
            (status.clear)(object);
            if kind.custom {
                // The schema's defaults of an empty status, where the type can be read from nothing.
                let _ = (status.set_value)(object, json!({}));
            }
        }
        if let Some(pod) = object.any_mut().downcast_mut::<Pod>() {
            pods::prepare(pod)?;
        } else if let Some(namespace) = object.any_mut().downcast_mut::<Namespace>() {
            prepare_namespace(namespace);
        }
        (self.admission)(kind, object)?;
        self.stamp_new(object, kind);
        Ok(key)
    }

    pub(super) fn replace(&mut self, kind: &'static Kind, object: Arc<dyn Object>) -> Outcome {
        require_version(object.meta())?;
        let mut object = self.received(kind, object)?;
        let key = Key::of(&*object);
        let old = match self.row(kind, &key) {
            // The server creates these by a replace, where no uid stands in the way.
            Err(ClusterError::NotFound) if kind == Lease::KIND || kind == Event::KIND => {
                let has_uid = object.meta().uid.is_some();
                return if has_uid { Err(ClusterError::Conflict) } else { self.create(kind, object) };
            }
            old => old?,
        };
        check_replace(old.meta(), object.meta())?;
        let new = own(&mut object);
        keep_system_fields(new.meta_mut(), old.meta());
        if let Some(status) = &kind.status {
            (status.copy)(new, &*old);
        }
        if let Some(spec) = new.any_mut().downcast_mut::<Pod>().and_then(|pod| pod.spec.as_mut()) {
            pods::add_default_tolerations(spec);
        }
        self.update(kind, &key, &old, object, true)
    }

    pub(super) fn patch_metadata(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        patch: &MetadataPatch,
        guard: &Guard,
    ) -> Outcome {
        let old = self.row(kind, key)?;
        check_patch(old.meta(), guard)?;
        let mut object = old.copy();
        let meta = own(&mut object).meta_mut();
        if let Some(finalizers) = &patch.finalizers {
            meta.finalizers = Some(finalizers.clone());
        }
        merge_map(&mut meta.labels, &patch.labels);
        merge_map(&mut meta.annotations, &patch.annotations);
        tidy(meta);
        self.update(kind, key, &old, object, false)
    }

    pub(super) fn replace_status(&mut self, kind: &'static Kind, object: Arc<dyn Object>) -> Outcome {
        require_version(object.meta())?;
        let mut object = self.received(kind, object)?;
        let status = kind.status.as_ref().ok_or(ClusterError::NotFound)?;
        let key = Key::of(&*object);
        let old = self.row(kind, &key)?;
        check_replace(old.meta(), object.meta())?;
        if !(kind.same_spec)(&*object, &*old) {
            // Comparing is cheaper than copying, and callers rarely touch the spec.
            let mut with_spec = old.copy();
            let copy = own(&mut with_spec);
            (status.swap)(copy, own(&mut object));
            *copy.meta_mut() = object.meta().clone();
            object = with_spec;
        }
        let new = own(&mut object);
        settle_status(kind, new, &old)?;
        self.update(kind, &key, &old, object, false)
    }

    pub(super) fn patch_status(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        patch: &StatusPatch,
        guard: &Guard,
    ) -> Outcome {
        let status = kind.status.as_ref().ok_or(ClusterError::NotFound)?;
        if kind.custom && patch.strategy == Strategy::Strategic {
            let message = "the body of the request was in an unknown format".to_owned();
            return Err(refused(415, "UnsupportedMediaType", message));
        }
        let old = self.row(kind, key)?;
        let mut value = (status.to_value)(&*old).map_err(|error| refused(500, "InternalError", error.to_string()))?;
        match patch.strategy {
            Strategy::Merge => merge::merge(&mut value, &patch.status),
            Strategy::Strategic => merge::strategic(&mut value, &patch.status),
        }
        let mut object = old.copy();
        let new = own(&mut object);
        (status.set_value)(new, value).map_err(|error| invalid("status", &error.to_string()))?;
        // Of a custom resource the server drops the patch's metadata before anybody looks at the uid.
        let uid = guard.uid.clone().filter(|_| !kind.custom);
        check_patch(old.meta(), &Guard { uid, resource_version: guard.resource_version.clone() })?;
        settle_status(kind, new, &old)?;
        self.update(kind, key, &old, object, false)
    }

    /// The common end of all updates: finaliser rules, generation, nothing to do, end of life.
    fn update(
        &mut self,
        kind: &'static Kind,
        key: &Key,
        old: &Arc<dyn Object>,
        mut object: Arc<dyn Object>,
        spec_may_differ: bool,
    ) -> Outcome {
        let (before, after) = (old.meta(), object.meta());
        if before.deletion_timestamp.is_some() {
            let had = before.finalizers.as_deref().unwrap_or_default();
            if after.finalizers.iter().flatten().any(|name| !had.contains(name)) {
                let message = "no new finalizers can be added if the object is being deleted";
                return Err(invalid("metadata.finalizers", message));
            }
        }
        let spec_differs = spec_may_differ && !(kind.same_spec)(&**old, &*object);
        if spec_differs {
            if let (Some(old), Some(new)) = (typed_ref::<Pod>(&**old), typed_ref::<Pod>(&*object)) {
                pods::check_spec(new, old)?;
            }
            if kind.generation {
                let meta = own(&mut object).meta_mut();
                meta.generation = meta.generation.map(|generation| generation + 1);
            }
        }
        let grace_is_over = before.deletion_grace_period_seconds.unwrap_or(0) == 0;
        let is_kept = !object.meta().finalizers.as_deref().unwrap_or_default().is_empty() || kind == Namespace::KIND;
        if before.deletion_timestamp.is_some() && grace_is_over && !is_kept {
            return Ok(self.end(kind, key, object));
        }
        let same_status = kind.status.as_ref().is_none_or(|status| (status.same)(&**old, &*object));
        // The defaults of a status are stored with the first write after the create, whatever it is.
        let is_settled = !kind.custom || !self.unsettled.contains(&(kind.plural, key.clone()));
        if is_settled && !spec_differs && same_status && before == object.meta() {
            return Ok(Arc::clone(old));
        }
        Ok(self.put(kind, key.clone(), object))
    }

    pub(super) fn delete(&mut self, kind: &'static Kind, key: &Key, how: &Removal) -> Result<(), ClusterError> {
        let old = self.row(kind, key)?;
        let meta = old.meta();
        let wrong = |wanted: &Option<String>, actual: &Option<String>| wanted.is_some() && wanted != actual;
        if wrong(&how.guard.uid, &meta.uid) || wrong(&how.guard.resource_version, &meta.resource_version) {
            return Err(ClusterError::Conflict);
        }
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        if meta.deletion_timestamp.is_none() {
            finalizers.retain(|name| name != FOREGROUND && name != ORPHAN);
            match how.propagation {
                Propagation::Background => {}
                Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
                Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
            }
        }
        let is_kept = !finalizers.is_empty() || kind == Namespace::KIND;
        let Some((grace, ends)) = self.grace(&*old, how.grace_seconds) else { return Ok(()) };
        if grace == 0 && !is_kept {
            self.end(kind, key, old);
            return Ok(());
        }
        let mut object = old.copy();
        let new = own(&mut object);
        mark(new.meta_mut(), grace, ends);
        new.meta_mut().finalizers = Some(finalizers);
        tidy(new.meta_mut());
        if let Some(namespace) = new.any_mut().downcast_mut::<Namespace>() {
            namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
        }
        if old.meta() != object.meta() {
            self.put(kind, key.clone(), object);
        }
        Ok(())
    }

    /// Seconds of grace and the time of the end; `None` if a deletion that is under way stays as it is.
    fn grace(&self, object: &dyn Object, asked: Option<u32>) -> Option<(i64, Time)> {
        let now = self.now();
        let asked = asked.map(i64::from);
        let meta = object.meta();
        let Some(pod) = typed_ref::<Pod>(object) else {
            // Objects without graceful deletion: only finalisers keep them.
            return Some((0, meta.deletion_timestamp.clone().unwrap_or(now)));
        };
        let (Some(ends), Some(running)) = (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) else {
            let grace = pods::grace(pod, asked);
            let ends = now.0.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now.0);
            return Some((grace, Time(ends)));
        };
        if running == 0 {
            return Some((0, ends.clone()));
        }
        let shorter = asked.filter(|asked| *asked < running)?;
        let moved = ends.0.saturating_sub(SignedDuration::from_secs(running - shorter)).unwrap_or(ends.0);
        if moved < now.0 {
            return Some((shorter.min(1), now));
        }
        Some((shorter, Time(moved)))
    }

    pub(super) fn bind(
        &mut self,
        key: &Key,
        uid: &str,
        node: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(), ClusterError> {
        let old = self.row(Pod::KIND, key)?;
        if old.meta().uid.as_deref() != Some(uid) {
            return Err(ClusterError::Conflict);
        }
        let mut pod = typed_ref::<Pod>(&*old).cloned().ok_or(ClusterError::NotFound)?;
        let now = self.now();
        pods::bind(&mut pod, node, annotations, now)?;
        self.put(Pod::KIND, key.clone(), Arc::new(pod));
        Ok(())
    }
}

/// What a write of the status cannot change, and what only it checks.
fn settle_status(kind: &'static Kind, new: &mut dyn Object, old: &Arc<dyn Object>) -> Result<(), ClusterError> {
    if kind.custom {
        new.meta_mut().clone_from(old.meta());
    } else {
        keep_system_fields(new.meta_mut(), old.meta());
    }
    let Some(pod) = new.any_mut().downcast_mut::<Pod>() else { return Ok(()) };
    pod.metadata.owner_references.clone_from(&old.meta().owner_references);
    typed_ref::<Pod>(&**old).map_or(Ok(()), |old| pods::check_status(pod, old))
}

/// Marks an object as being deleted. The first mark raises the generation.
fn mark(meta: &mut ObjectMeta, grace: i64, ends: Time) {
    if meta.deletion_timestamp.is_none() {
        meta.generation = meta.generation.map(|generation| generation + 1);
    }
    meta.deletion_timestamp = Some(ends);
    meta.deletion_grace_period_seconds = Some(grace);
}

fn merge_map(map: &mut Option<BTreeMap<String, String>>, patch: &BTreeMap<String, Option<String>>) {
    for (key, value) in patch {
        match value {
            Some(value) => {
                map.get_or_insert_default().insert(key.clone(), value.clone());
            }
            None => {
                map.as_mut().and_then(|map| map.remove(key));
            }
        }
    }
}
