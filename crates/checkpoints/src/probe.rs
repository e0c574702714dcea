//! The first look at a bucket: does it do what checkpoints and mailbox need?

use std::time::Duration;

use bytes::Bytes;

use crate::store::{PutOutcome, Store, StoreError};

/// What a bucket cannot do. The sentence is for the user's condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// There is no such bucket.
    #[error("The bucket {bucket} does not exist. Create it, or correct its name")]
    BucketNotFound {
        /// Its name.
        bucket: String,
    },
    /// The credentials are wrong or may not do something that is needed.
    #[error(
        "The store denied {verb} ({detail}). The credentials must allow get, put, list and delete below the prefix"
    )]
    Denied {
        /// What was denied.
        verb: &'static str,
        /// The store's own word.
        detail: String,
    },
    /// The store overwrites where it was asked not to.
    #[error(
        "The store ignores If-None-Match on writes, so two writers could overwrite each other's checkpoints. Use a store with conditional writes"
    )]
    NoConditionalWrites,
    /// What was written is not what is read or listed.
    #[error("The store did not give back what was just written ({verb}). Use a strongly consistent store")]
    NotReadBack {
        /// What showed it.
        verb: &'static str,
    },
    /// No answer now; nothing is known of the bucket.
    #[error("The store cannot be used now: {cause}")]
    NoAnswer {
        /// What happened.
        cause: StoreError,
    },
}

impl ProbeFailure {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BucketNotFound { .. } => "BucketNotFound",
            Self::Denied { .. } => "StoreDenied",
            Self::NoConditionalWrites => "NoConditionalWrites",
            Self::NotReadBack { .. } => "StoreInconsistent",
            Self::NoAnswer { .. } => "StoreUnavailable",
        }
    }
}

impl From<StoreError> for ProbeFailure {
    fn from(source: StoreError) -> Self {
        match source {
            StoreError::NotFoundBucket { bucket } => Self::BucketNotFound { bucket },
            StoreError::Denied { verb, detail, .. } => Self::Denied { verb, detail },
            cause => Self::NoAnswer { cause },
        }
    }
}

/// Left-overs of probes that were cut short are cleared away up to this many at a time.
const MAX_LEFTOVERS: usize = 1000;

/// Tries every verb in `probe/` below the store's place: write, read back, refuse a second create, list, sign, delete. `nonce` must be new for
/// each probe (a clock's entropy). Leaves nothing behind; what an interrupted probe left is cleared by the next.
pub async fn probe(store: &dyn Store, nonce: u64) -> Result<(), ProbeFailure> {
    let key = format!("probe/{nonce:016x}");
    let outcome = try_verbs(store, &key).await;
    // Also after a failure; whether it works shows in the verbs above.
    let _ = store.delete(&key).await;
    outcome
}

async fn try_verbs(store: &dyn Store, key: &str) -> Result<(), ProbeFailure> {
    // Create first: an absent bucket, wrong credentials and missing rights to write show here.
    let first = Bytes::from_static(b"first");
    let second = Bytes::from_static(b"second");
    let refused = match store.put_if_absent(key, first.clone()).await {
        Ok(PutOutcome::Written) => false,
        // A retry below us may have met its own first write; the reading decides.
        Ok(PutOutcome::Exists) => true,
        Err(StoreError::Unsupported { .. }) => return Err(ProbeFailure::NoConditionalWrites),
        Err(error) => return Err(error.into()),
    };
    if store.get(key, 64).await?.as_ref() != Some(&first) {
        return Err(ProbeFailure::NotReadBack { verb: if refused { "create" } else { "get" } });
    }
    if store.put_if_absent(key, second.clone()).await? != PutOutcome::Exists
        || store.get(key, 64).await?.as_ref() != Some(&first)
    {
        return Err(ProbeFailure::NoConditionalWrites);
    }
    store.put(key, second.clone()).await?;
    if store.get(key, 64).await?.as_ref() != Some(&second) {
        return Err(ProbeFailure::NotReadBack { verb: "put" });
    }
    let listed = store.list("probe/", MAX_LEFTOVERS).await?;
    let Some(ours) = listed.iter().find(|object| object.key == key) else {
        return Err(ProbeFailure::NotReadBack { verb: "list" });
    };
    store.sign_get(key, Duration::from_mins(1)).await?;
    store.sign_put(key, Duration::from_mins(1)).await?;
    // Younger ones may belong to a probe that runs now.
    let hour_ago = ours.last_modified.saturating_sub(Duration::from_hours(1));
    for old in listed.iter().filter(|object| hour_ago.as_ref().is_ok_and(|limit| object.last_modified < *limit)) {
        store.delete(&old.key).await?;
    }
    store.delete(key).await?;
    match store.get(key, 64).await? {
        None => Ok(()),
        Some(_) => Err(ProbeFailure::NotReadBack { verb: "delete" }),
    }
}
