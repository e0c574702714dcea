//! Opening users' checkpoint locations with the credentials of their Secrets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use tradewind_api::Reason;
use tradewind_checkpoints::{Catalogue, CredentialsError, Location, StoreCredentials, StoreError};
use tradewind_cluster::{ClusterError, Key};
use tradewind_core::SecretString;

use crate::context::Context;

/// Why a location or a Secret cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Reason for the condition.
    pub reason: Reason,
    /// Sentence: what is wrong and what would be right.
    pub message: String,
}

impl Unusable {
    /// What a store's refusal means for the user.
    pub fn from_store(location: &str, error: &StoreError) -> Self {
        let reason = match error {
            StoreError::NotFoundBucket { .. } => Reason::BucketNotFound,
            StoreError::Denied { .. } => Reason::BucketDenied,
            _ => Reason::StorageUnavailable,
        };
        Self { reason, message: format!("{location}: {error}; it is tried again") }
    }
}

/// Catalogues that are open: building one builds an HTTP client, and it remembers what it has read.
#[derive(Default)]
pub struct OpenCatalogues {
    /// By place and Secret, with the version of the Secret that opened it.
    open: Mutex<BTreeMap<String, (String, Arc<Catalogue>)>>,
}

impl OpenCatalogues {
    const MAX: usize = 512;

    /// The one at this place, opened with this version of the Secret, or with whatever version was known last.
    fn find(&self, place: &str, version: Option<&str>) -> Option<Arc<Catalogue>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, catalogue) = open.get(place)?;
        version.is_none_or(|version| version == known).then(|| Arc::clone(catalogue))
    }

    fn keep(&self, place: String, version: String, catalogue: &Arc<Catalogue>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= Self::MAX {
            open.clear();
        }
        open.insert(place, (version, Arc::clone(catalogue)));
    }
}

impl Context {
    /// A Secret, or why it cannot be had.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, Unusable> {
        let key = Key::namespaced(namespace, name);
        self.cluster.read::<Secret>(&key).await.map_err(|error| match error {
            ClusterError::NotFound => Unusable {
                reason: Reason::SecretNotFound,
                message: format!("Secret {namespace}/{name} does not exist; it goes on by itself once it is there"),
            },
            ClusterError::Refused { code: 403, .. } => Unusable {
                reason: Reason::SecretsNotReadable,
                message: format!(
                    "the operator may not read Secret {namespace}/{name}: bind ClusterRole tradewind-secret-reader to its ServiceAccount in namespace {namespace}"
                ),
            },
            error => Unusable {
                reason: Reason::StorageUnavailable,
                message: format!("Secret {namespace}/{name} cannot be read now ({error}); it is tried again"),
            },
        })
    }

    /// One value of a Secret, or why it cannot be had.
    pub async fn secret_value(&self, namespace: &str, name: &str, entry: &str) -> Result<SecretString, Unusable> {
        let secret = self.secret(namespace, name).await?;
        text(&secret, entry).ok_or_else(|| no_such_key(namespace, name, entry))
    }

    /// The catalogue at `to`, opened with the keys of a Secret in `namespace`.
    pub async fn catalogue(&self, namespace: &str, to: &str, secret: &str) -> Result<Arc<Catalogue>, Unusable> {
        let location: Location = to.parse().map_err(|error: tradewind_checkpoints::LocationError| Unusable {
            reason: Reason::InvalidLocation,
            message: error.to_string(),
        })?;
        let place = format!("{namespace} {secret} {to}");
        let object = match self.secret(namespace, secret).await {
            Ok(object) => object,
            // An API server that does not answer has not taken a right away: checkpoints go on being committed.
            Err(unusable) if unusable.reason == Reason::StorageUnavailable => {
                return self.catalogues.find(&place, None).ok_or(unusable);
            }
            Err(unusable) => return Err(unusable),
        };
        let version = object.metadata.resource_version.as_deref().unwrap_or_default();
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let version = format!("{uid} {version}");
        if let Some(open) = self.catalogues.find(&place, Some(&version)) {
            return Ok(open);
        }
        let entry = |name: &str| object.data.as_ref().and_then(|d| d.get(name)).map(|v| v.0.clone());
        let credentials = StoreCredentials::from_entries(entry).map_err(|error| Unusable {
            reason: if matches!(error, CredentialsError::Missing { .. }) {
                Reason::SecretKeyMissing
            } else {
                Reason::InvalidLocation
            },
            message: format!("Secret {namespace}/{secret}: {error}; it goes on by itself once that is mended"),
        })?;
        let store = self.stores.open(&location, &credentials).map_err(|error| Unusable::from_store(to, &error))?;
        let catalogue = Arc::new(Catalogue::open(store, Arc::clone(&self.clock)));
        self.catalogues.keep(place, version, &catalogue);
        Ok(catalogue)
    }
}

/// What is said of a Secret without a key.
pub fn no_such_key(namespace: &str, name: &str, entry: &str) -> Unusable {
    Unusable {
        reason: Reason::SecretKeyMissing,
        message: format!(
            "Secret {namespace}/{name} has no key {entry} with a text; it goes on by itself once it is there"
        ),
    }
}

/// A value of a Secret that is a text.
pub fn text(secret: &Secret, entry: &str) -> Option<SecretString> {
    let bytes = &secret.data.as_ref()?.get(entry)?.0;
    String::from_utf8(bytes.clone()).ok().map(SecretString::from)
}
