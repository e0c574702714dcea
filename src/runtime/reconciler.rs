//! What a controller is: a plain future per key that waits on nothing but ports.

use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_cluster::Key;

/// When and why to look at a key again, besides changes of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Only when something changes.
    OnChange,
    /// After this time at the latest, for the stated reason.
    After(Duration, &'static str),
}

impl Wake {
    /// The earlier of two.
    pub fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(a, _), Self::After(b, _)) if b < a => other,
            (Self::OnChange, _) => other,
            _ => self,
        }
    }
}

/// A reconcile that could not finish. It is tried again with backoff; nothing is lost.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// One word for metrics and logs.
    pub reason: &'static str,
    /// Sentence without secrets.
    pub message: String,
    /// Not worth a warning: somebody else was faster, or a cache lags.
    pub benign: bool,
}

impl Failure {
    /// A failure that deserves a warning.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), benign: false }
    }

    /// One that will pass by itself at once.
    pub fn benign(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), benign: true }
    }
}

impl From<tradewind_cluster::ClusterError> for Failure {
    fn from(error: tradewind_cluster::ClusterError) -> Self {
        use tradewind_cluster::ClusterError as E;
        match &error {
            E::Conflict | E::AlreadyExists | E::NotFound => Self::benign("Conflict", error.to_string()),
            E::NamespaceTerminating => Self::benign("NamespaceTerminating", error.to_string()),
            E::Refused { .. } => Self::new("Refused", error.to_string()),
            E::Unknown(_) => Self::new("ApiUnknown", error.to_string()),
        }
    }
}

/// One controller.
pub trait Reconciler: Send + Sync {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;
    /// Brings one key closer to what it should be.
    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>>;
}
