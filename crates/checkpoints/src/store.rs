//! The store port: the few verbs on objects that Tradewind allows itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tradewind_protocol::Ticket;

use crate::{Location, StoreCredentials};

/// What a verb gives back: ready at the first poll in memory, within the client's time limits on a real store.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The longest life of a ticket, in seconds: what AWS allows a signature (V4) to live. A longer one is signed and fails only when used.
pub const MAX_TICKET_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// One place in one object store: a bucket and a prefix. Keys are relative to it and made of `[A-Za-z0-9._/-]`.
///
/// Reads see the newest write (S3 and all stores we support are strongly consistent), also in lists.
pub trait Store: Send + Sync {
    /// The object, or `None` if there is none. [`StoreError::TooLarge`] beyond `max_bytes`.
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>>;

    /// The object unless it is still the one with this etag.
    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched>;

    /// Writes or overwrites. Safe to repeat.
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()>;

    /// Writes only if there is no object. [`PutOutcome::Exists`] may also mean that this very call has written it and its first answer was
    /// lost: use [`put_if_absent_resolved`] wherever that matters.
    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome>;

    /// What is known of the object without reading it. On a real store `None` may also mean a wrong account or bucket, which [`Store::get`] and
    /// [`Store::list`] tell apart.
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>>;

    /// All objects below a prefix (empty, or ending in `/`), sorted by key. Complete or an error: more than `limit` objects are
    /// [`StoreError::TooMany`].
    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>>;

    /// Names of the folders directly below a prefix (empty, or ending in `/`), sorted, without slashes. Complete or an error.
    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>>;

    /// Deletes the object; no error if there is none.
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;

    /// A ticket to read the object. No call to the store; the lifetime is cut to what the credentials allow.
    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket>;

    /// A ticket to write the object, as often as one likes while it lives. No call to the store.
    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket>;
}

/// Opens places in object stores: real buckets in production, the in-memory server in the world simulation.
pub trait Stores: Send + Sync {
    /// The store at a place. No call is made; wrong credentials and missing buckets show at the first use ([`crate::probe()`]).
    /// Opening a real bucket builds an HTTP client: keep what was opened.
    fn open(&self, location: &Location, credentials: &StoreCredentials) -> Result<Arc<dyn Store>, StoreError>;
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key, relative to the store's place.
    pub key: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Changes whenever the content does.
    pub etag: Option<String>,
    /// The store's clock.
    pub last_modified: Timestamp,
}

/// Answer to a conditional read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// There is no such object.
    Absent,
    /// It is the one the caller has.
    Unchanged,
    /// It is another one.
    Changed {
        /// The content.
        bytes: Bytes,
        /// For the next conditional read; `None` where the store gives none.
        etag: Option<String>,
    },
}

/// Answer to a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Written by this call.
    Written,
    /// There was an object already; nothing changed.
    Exists,
}

/// Why a verb gave no answer. All but [`StoreError::Unavailable`] mean that nothing has changed. Texts hold neither URLs with a query nor
/// credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The bucket does not exist.
    #[error("the bucket {bucket} does not exist")]
    NotFoundBucket {
        /// Its name.
        bucket: String,
    },
    /// The credentials do not allow this verb, or are wrong.
    #[error("the store denied {verb} of {key} ({detail})")]
    Denied {
        /// What was tried: `get`, `put`, `list`, `delete`.
        verb: &'static str,
        /// The key or prefix.
        key: String,
        /// The store's own word, such as `AccessDenied` or `InvalidAccessKeyId`.
        detail: String,
    },
    /// No answer, or one that says nothing: a write may have happened.
    #[error("no usable answer from the store to {verb} of {key} ({detail})")]
    Unavailable {
        /// What was tried.
        verb: &'static str,
        /// The key or prefix.
        key: String,
        /// What is known.
        detail: String,
    },
    /// The store cannot do this.
    #[error("the store does not support {verb} ({detail})")]
    Unsupported {
        /// What was tried.
        verb: &'static str,
        /// The store's own word.
        detail: String,
    },
    /// The object is larger than the caller reads.
    #[error("{key} has {size_bytes} bytes, at most {limit_bytes} are read")]
    TooLarge {
        /// The key.
        key: String,
        /// Its size in bytes, as far as known.
        size_bytes: u64,
        /// The bound in bytes.
        limit_bytes: u64,
    },
    /// There are more objects than the caller can take; nothing is concluded from a part of a list.
    #[error("more than {limit} objects below {prefix:?}")]
    TooMany {
        /// The prefix.
        prefix: String,
        /// The bound.
        limit: usize,
    },
    /// The key or the answer is not what it should be.
    #[error("{key}: {problem}")]
    Malformed {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

impl StoreError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFoundBucket { .. } => "BucketNotFound",
            Self::Denied { .. } => "StoreDenied",
            Self::Unavailable { .. } => "StoreUnavailable",
            Self::Unsupported { .. } => "StoreUnsupported",
            Self::TooLarge { .. } => "ObjectTooLarge",
            Self::TooMany { .. } => "TooManyObjects",
            Self::Malformed { .. } => "ObjectMalformed",
        }
    }

    /// True if a write may have happened although the caller does not know.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Refuses keys that some store would spell differently.
pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    let segments = key.split('/').all(|segment| !segment.is_empty() && segment != "." && segment != "..");
    if plain && segments && key.len() <= 512 {
        return Ok(());
    }
    Err(StoreError::Malformed {
        key: key.escape_debug().take(100).collect(),
        problem: "is not a usable object key".to_owned(),
    })
}

/// Refuses prefixes that do not name a folder: empty is fine, everything else ends in `/`.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    match prefix.strip_suffix('/') {
        None if prefix.is_empty() => Ok(()),
        Some(folder) => check_key(folder),
        None => Err(StoreError::Malformed {
            key: prefix.escape_debug().take(100).collect(),
            problem: "is not a prefix that ends in '/'".to_owned(),
        }),
    }
}

/// [`Store::put_if_absent`] whose outcome is certain: a lost answer, and an `Exists` that a retry below may have caused itself, are resolved by
/// reading back. An object with exactly these bytes counts as written by us, so the bytes must not be something that another writer
/// could write too with another meaning.
///
/// An error means that the object was not there when it was read back; the write may still arrive later.
pub async fn put_if_absent_resolved(store: &dyn Store, key: &str, bytes: Bytes) -> Result<PutOutcome, StoreError> {
    let answer = store.put_if_absent(key, bytes.clone()).await;
    match answer {
        Ok(PutOutcome::Written) => return Ok(PutOutcome::Written),
        Ok(PutOutcome::Exists) => {}
        Err(ref error) if error.is_unknown() => {}
        Err(error) => return Err(error),
    }
    // One byte more than ours is enough to see that it is another object.
    match store.get(key, bytes.len() as u64 + 1).await {
        Ok(Some(there)) if there == bytes => Ok(PutOutcome::Written),
        Ok(Some(_)) | Err(StoreError::TooLarge { .. }) => Ok(PutOutcome::Exists),
        Ok(None) => answer,
        Err(error) => Err(error),
    }
}
