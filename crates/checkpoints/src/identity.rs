//! Whose run is kept at a place, and how it ended: `runs/<number>/run.json` and `runs/<number>/end.json`, both put-if-absent and never
//! changed. So a finished job that is made again under its name is finished, and two jobs never share a place.
//!
//! The newest number counts. A run that is started over, or goes on after a failure, has the next one.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::store::{PutOutcome, Store, StoreError, put_if_absent_resolved};

/// Version of the documents.
const VERSION: u32 = 1;
/// The largest document that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// Runs at one place at most.
const MAX_RUNS: usize = 9_999;

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunRecord {
    /// Version of this document.
    pub version: u32,
    /// Id of the run: checkpoints carry it.
    pub run_id: String,
    /// Install id of the operator.
    pub install: String,
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// Uid of the object that began it.
    pub job_uid: String,
    /// When.
    pub began_at: Timestamp,
}

/// `end.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndRecord {
    /// Version of this document.
    pub version: u32,
    /// Id of the run.
    pub run_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Hash of what the job asked for when it ended.
    pub spec_hash: String,
    /// Reason of the condition.
    pub reason: String,
    /// Its sentence.
    pub message: String,
    /// When.
    pub ended_at: Timestamp,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// With success.
    Complete,
    /// For good.
    Failed,
}

impl RunRecord {
    /// A record of this version.
    pub fn new(run_id: &str, install: &str, namespace: &str, name: &str, job_uid: &str, began_at: Timestamp) -> Self {
        let own = str::to_owned;
        Self {
            version: VERSION,
            run_id: own(run_id),
            install: own(install),
            namespace: own(namespace),
            name: own(name),
            job_uid: own(job_uid),
            began_at,
        }
    }
}

impl EndRecord {
    /// A record of this version.
    pub fn new(
        run_id: &str,
        outcome: Outcome,
        spec_hash: &str,
        reason: &str,
        message: &str,
        ended_at: Timestamp,
    ) -> Self {
        let own = str::to_owned;
        Self {
            version: VERSION,
            run_id: own(run_id),
            outcome,
            spec_hash: own(spec_hash),
            reason: own(reason),
            message: own(message),
            ended_at,
        }
    }
}

/// The newest run at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its number, from 1.
    pub number: u32,
    /// Whose it is.
    pub run: RunRecord,
    /// How it ended, if it did.
    pub end: Option<EndRecord>,
}

/// Why the newest run at a place is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is there that we have not written.
    #[error("{key} cannot be read ({problem}); if nobody needs what is kept here, delete it")]
    Unreadable {
        /// The object.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn key(place: &str, number: u32, document: &str) -> String {
    format!("{place}runs/{number:04}/{document}.json")
}

/// The newest run below `place` (a folder within the store with its final `/`, or nothing).
///
/// # Errors
/// A failed read never looks like an empty place.
pub async fn read(store: &dyn Store, place: &str) -> Result<Option<Identity>, IdentityError> {
    let folders = store.list_folders(&format!("{place}runs/"), MAX_RUNS).await?;
    let Some(number) = folders.iter().filter_map(|folder| folder.parse::<u32>().ok()).max() else { return Ok(None) };
    let at = key(place, number, "run");
    let Some(run) = read_one::<RunRecord>(store, &at).await? else {
        return Err(IdentityError::Unreadable { key: at, problem: "it is missing".to_owned() });
    };
    let end = read_one::<EndRecord>(store, &key(place, number, "end")).await?;
    Ok(Some(Identity { number, run, end }))
}

async fn read_one<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, IdentityError> {
    let Some(bytes) = store.get(key, MAX_BYTES).await? else { return Ok(None) };
    let unreadable = |problem: String| IdentityError::Unreadable { key: key.to_owned(), problem };
    // The kind of the error alone: the text of a stranger's document is not ours to show.
    let document = serde_json::from_slice(&bytes).map_err(|e| unreadable(format!("{:?} error", e.classify())))?;
    Ok(Some(document))
}

/// Writes `run.json` of this number, unless somebody has.
///
/// # Errors
/// See [`put_if_absent_resolved`].
pub async fn begin(store: &dyn Store, place: &str, number: u32, record: &RunRecord) -> Result<PutOutcome, StoreError> {
    put_if_absent_resolved(store, &key(place, number, "run"), encoded(record)).await
}

/// Writes `end.json` of this number, unless somebody has.
///
/// # Errors
/// See [`put_if_absent_resolved`].
pub async fn finish(store: &dyn Store, place: &str, number: u32, record: &EndRecord) -> Result<PutOutcome, StoreError> {
    put_if_absent_resolved(store, &key(place, number, "end"), encoded(record)).await
}

fn encoded(record: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(record).expect("a record is plain data"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tradewind_core::ManualClock;

    use super::*;
    use crate::MemoryStore;

    #[test]
    fn the_first_writer_wins_and_the_newest_run_counts() {
        futures::executor::block_on(async {
            let server = MemoryStore::new(Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH, 1)));
            server.create_bucket("bucket");
            let store = server.at(&"s3://bucket/job/".parse().unwrap());
            assert_eq!(read(&store, "").await, Ok(None));
            let record = |uid: &str| RunRecord::new("run-1", "install", "ns", "job", uid, Timestamp::UNIX_EPOCH);
            assert_eq!(begin(&store, "", 1, &record("a")).await, Ok(PutOutcome::Written));
            assert_eq!(begin(&store, "", 1, &record("b")).await, Ok(PutOutcome::Exists));
            let found = read(&store, "").await.unwrap().unwrap();
            assert_eq!((found.number, found.run.job_uid.as_str(), found.end), (1, "a", None));
            let end = EndRecord::new("run-1", Outcome::Complete, "hash", "Finished", "done", Timestamp::UNIX_EPOCH);
            finish(&store, "", 1, &end).await.unwrap();
            assert_eq!(read(&store, "").await.unwrap().unwrap().end, Some(end));
            begin(&store, "", 2, &record("c")).await.unwrap();
            let newest = read(&store, "").await.unwrap().unwrap();
            assert_eq!((newest.number, newest.end), (2, None));
            assert_eq!(read(&store, "identity/ns/other/").await, Ok(None), "places are apart");
            store.put("runs/0003/run.json", Bytes::from_static(b"{}")).await.unwrap();
            let strange = read(&store, "").await.unwrap_err();
            assert!(strange.to_string().starts_with("runs/0003/run.json cannot be read"), "{strange}");
        });
    }
}
