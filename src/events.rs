//! Kubernetes Events. Each is written once: its name follows from what it says.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tradewind_api::Reason;
use tradewind_api::conditions::bounded;
use tradewind_cluster::{Kind, Object};

use crate::context::Context;

/// How serious an Event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// The object that an Event is about.
pub fn reference(kind: &Kind, object: &dyn Object) -> ObjectReference {
    let meta = object.meta();
    let api_version =
        if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) };
    ObjectReference {
        api_version: Some(api_version),
        kind: Some(kind.kind.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}

impl Context {
    /// Tells users of something once. An Event that cannot be written is not worth failing for: the status says it too.
    pub async fn tell(&self, about: &ObjectReference, severity: Severity, reason: Reason, action: &str, note: String) {
        let note = bounded(note, 1000);
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = event_name(about, reason, &note);
        if !self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone()) {
            return;
        }
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            action: Some(action.to_owned()),
            reason: Some(reason.as_str().to_owned()),
            type_: Some(if severity == Severity::Normal { "Normal" } else { "Warning" }.to_owned()),
            reporting_controller: Some("tradewind.dev/operator".to_owned()),
            reporting_instance: Some(self.settings.install.to_string()),
            event_time: Some(MicroTime(self.clock.now())),
            regarding: Some(about.clone()),
            note: Some(note),
            ..Event::default()
        };
        if let Err(error) = self.cluster.add(event).await {
            tracing::debug!(%error, reason = reason.as_str(), "Event not written");
        }
    }
}

fn event_name(about: &ObjectReference, reason: Reason, note: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in [about.uid.as_deref().unwrap_or_default(), reason.as_str(), note] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = tradewind_core::hex(&hash.finalize()[..8]);
    let name: String = about.name.as_deref().unwrap_or("object").chars().take(180).collect();
    format!("{name}.{digest}")
}

/// Bounded memory of Events already told, so that a repeated reconcile does not ask the server again.
#[derive(Debug, Default)]
pub struct Told {
    names: BTreeMap<String, u64>,
    next: u64,
}

impl Told {
    const MAX: usize = 10_000;

    /// Remembers a name; false if it was there.
    pub fn insert(&mut self, name: String) -> bool {
        if self.names.contains_key(&name) {
            return false;
        }
        if self.names.len() >= Self::MAX {
            let cut = self.next.saturating_sub(u64::try_from(Self::MAX / 2).unwrap_or(0));
            self.names.retain(|_, n| *n >= cut);
        }
        self.names.insert(name, self.next);
        self.next += 1;
        true
    }
}
