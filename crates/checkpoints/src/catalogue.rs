//! The catalogue of checkpoints in a user's bucket: a log of immutable entries and the data they name.
//!
//! `log/<sequence>.json` is appended with put-if-absent at the next free sequence, so every writer sees all entries before its own: an entry
//! written at `n` was decided by someone who knew everything below `n`. That makes the fence hold: a checkpoint of attempt A is appended
//! only by someone who saw no newer fence below it.
//! Retention is an entry too: a commit that was decided before it loses its place to it and is decided again (`gc` says more).
//! A place in the log is never given free again: what is not needed is emptied to zero bytes, but the object stays, so that a writer
//! who was frozen for a day can never slip into an old place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use tradewind_core::Clock;
use tradewind_protocol::{Document, Invalid, LogEntry, RestoreCandidate, VERSION, manifest::parse_data_folder};

use crate::log::{BadEntry, Log, PREFIX, entry_key, parse_entry_key};
use crate::store::{ObjectInfo, PutOutcome, Store, StoreError, put_if_absent_resolved};

/// The most objects in a log: years of checkpoints.
const MAX_ENTRIES: usize = 100_000;
/// The most folders below `data/`: one per machine that ever ran.
pub(crate) const MAX_FOLDERS: usize = 100_000;
/// How many reads are under way at once.
pub(crate) const PARALLEL: usize = 16;
/// How often an append that lost its place to another writer is decided anew.
pub(crate) const MAX_ROUNDS: usize = 16;

/// The catalogue at one place. One per location and operator; it remembers entries that it has read.
pub struct Catalogue {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Entries by sequence and etag. The list decides what is there; this only saves reading it again.
    read: Mutex<BTreeMap<u64, (String, Arc<LogEntry>)>>,
}

/// The outcome of [`Catalogue::begin_attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Sequence of the fence.
    pub seq: u64,
    /// The checkpoint to start from, as the fence says: on repetition what was written first.
    pub from: Option<u64>,
}

/// Why an attempt may not begin. It never may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceRefused {
    /// A higher attempt has begun.
    #[error("attempt {newest} has begun already")]
    HigherAttempt {
        /// The newest attempt.
        newest: u32,
    },
    /// The same number belongs to another run.
    #[error("the newest attempt in this checkpoint location belongs to another run, {run_id}")]
    OtherRun {
        /// That run.
        run_id: String,
    },
    /// Others kept appending.
    #[error("others kept writing to the log of this checkpoint location; it will be tried again")]
    Contention,
    /// The log has no place left.
    #[error("the log of this checkpoint location is full: there is an object at its very end")]
    Full,
    /// The number or the run's id cannot be written.
    #[error("{0}")]
    Invalid(Invalid),
}

/// The outcome of [`Catalogue::commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It counts from now on, or did so already.
    Committed {
        /// Its sequence in the log.
        seq: u64,
    },
    /// This offer will never count (but see [`Refusal::is_final`]).
    Refused(Refusal),
}

/// Why an offered checkpoint does not count. Sentences are fit for the agent and for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The manifest breaks a rule.
    #[error("{0}")]
    Invalid(Invalid),
    /// It is not of the machine, attempt or run it was offered for.
    #[error("the manifest is of another {what}")]
    Foreign {
        /// `machine`, `attempt` or `run`.
        what: &'static str,
    },
    /// Another attempt has begun, or this one never has.
    #[error("only checkpoints of attempt {newest:?} count now")]
    Fenced {
        /// The attempt that may append.
        newest: Option<u32>,
    },
    /// A chunk is not in the store.
    #[error("chunk {key} is not there")]
    MissingChunk {
        /// Its key.
        key: String,
    },
    /// A chunk has another size than the manifest says.
    #[error("chunk {key} has {have} bytes instead of {want}")]
    WrongSize {
        /// Its key.
        key: String,
        /// Bytes in the store.
        have: u64,
        /// Bytes in the manifest.
        want: u64,
    },
    /// A chunk that cannot be new is not part of any checkpoint that counts, or differs from it.
    #[error("chunk {key} belongs to no checkpoint that counts")]
    UnknownChunk {
        /// Its key.
        key: String,
    },
    /// The run has ended and its data was collected.
    #[error("the run has ended")]
    Ended,
    /// Others kept appending.
    #[error("others kept writing to the log; offer it again")]
    Contention,
    /// The log has no place left.
    #[error("the log of this checkpoint location is full: there is an object at its very end")]
    Full,
}

impl FenceRefused {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::HigherAttempt { .. } => "Fenced",
            Self::OtherRun { .. } => "CheckpointLocationInUse",
            Self::Contention => "Contention",
            Self::Full => "LogFull",
            Self::Invalid(_) => "AttemptInvalid",
        }
    }
}

impl Refusal {
    /// One word for events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "ManifestInvalid",
            Self::Foreign { .. } => "ManifestForeign",
            Self::Fenced { .. } => "Fenced",
            Self::MissingChunk { .. } => "ChunkMissing",
            Self::WrongSize { .. } => "ChunkSizeWrong",
            Self::UnknownChunk { .. } => "ChunkUnknown",
            Self::Ended => "RunEnded",
            Self::Contention => "Contention",
            Self::Full => "LogFull",
        }
    }

    /// False where the same offer may count when it is tried again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Contention)
    }
}

/// What came of one try to append.
pub(crate) enum Appended {
    /// It stands at this sequence.
    At(u64),
    /// Another entry took the place: read and decide again.
    Taken,
    /// There is no place left.
    Full,
}

impl Catalogue {
    /// The catalogue at the store's place. Makes no call.
    pub fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, read: Mutex::default() }
    }

    /// The store below, for a probe.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Reads the log. Entries that cannot be believed are reported in it and skipped; `Err` only if the store failed.
    pub async fn load(&self) -> Result<Log, StoreError> {
        let listed = self.store.list(PREFIX, MAX_ENTRIES).await?;
        let mut log = Log::default();
        let mut wanted: Vec<(u64, ObjectInfo)> = Vec::new();
        for object in listed {
            let Some(seq) = parse_entry_key(&object.key) else {
                log.bad.push(BadEntry {
                    key: object.key,
                    seq: None,
                    problem: "is not the name of an entry".to_owned(),
                });
                continue;
            };
            log.last_seq = log.last_seq.max(Some(seq));
            if object.size_bytes == 0 {
                continue;
            }
            match self.remembered(seq, object.etag.as_deref()) {
                Some(entry) => log.insert(seq, entry),
                None => wanted.push((seq, object)),
            }
        }
        self.memory().retain(|seq, _| log.entries.contains_key(seq));
        let read = stream::iter(wanted).map(|(seq, object)| self.read_entry(seq, object)).buffered(PARALLEL);
        let mut read = std::pin::pin!(read);
        while let Some(entry) = read.next().await {
            match entry? {
                Ok(Some((seq, entry))) => log.insert(seq, entry),
                Ok(None) => {}
                Err(bad) => log.bad.push(bad),
            }
        }
        Ok(log)
    }

    /// One entry: `None` if it was emptied since it was listed.
    async fn read_entry(
        &self,
        seq: u64,
        object: ObjectInfo,
    ) -> Result<Result<Option<(u64, Arc<LogEntry>)>, BadEntry>, StoreError> {
        let bad = |problem| Ok(Err(BadEntry { key: object.key.clone(), seq: Some(seq), problem }));
        let bytes = match self.store.get(&object.key, <LogEntry as Document>::MAX_BYTES as u64).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return bad("was listed but is not there".to_owned()),
            Err(StoreError::TooLarge { .. }) => return bad("is too large".to_owned()),
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(Ok(None));
        }
        match LogEntry::decode(&bytes) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                // Remembered under the etag of the list. Should it have changed in between, the next list has another etag.
                if let Some(etag) = object.etag {
                    self.memory().insert(seq, (etag, Arc::clone(&entry)));
                }
                Ok(Ok(Some((seq, entry))))
            }
            Err(invalid) => bad(invalid.to_string()),
        }
    }

    fn remembered(&self, seq: u64, etag: Option<&str>) -> Option<Arc<LogEntry>> {
        let memory = self.memory();
        let (known, entry) = memory.get(&seq)?;
        (Some(known.as_str()) == etag).then(|| Arc::clone(entry))
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, (String, Arc<LogEntry>)>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `entry` at the place after the last one of `log`.
    pub(crate) async fn append(&self, log: &Log, entry: &LogEntry) -> Result<Appended, StoreError> {
        let Some(seq) = log.next_seq() else { return Ok(Appended::Full) };
        let key = entry_key(seq);
        let bytes = entry.encode().map_err(|invalid| malformed(&key, &invalid))?;
        Ok(match put_if_absent_resolved(&*self.store, &key, Bytes::from(bytes)).await? {
            PutOutcome::Written => Appended::At(seq),
            PutOutcome::Exists => Appended::Taken,
        })
    }

    /// Puts up the fence of an attempt: from now on only it may append checkpoints. `at` is the operator's time.
    ///
    /// Safe to repeat: if the newest fence is already this attempt of this run, that one is given back.
    pub async fn begin_attempt(
        &self,
        run_id: &str,
        attempt: u32,
        from: Option<u64>,
        at: Timestamp,
    ) -> Result<Result<Begun, FenceRefused>, StoreError> {
        let fence = LogEntry::AttemptStarted { version: VERSION, run_id: run_id.to_owned(), attempt, from, at };
        if let Err(invalid) = fence.validate() {
            return Ok(Err(FenceRefused::Invalid(invalid)));
        }
        for _ in 0..MAX_ROUNDS {
            let log = self.load().await?;
            if let Some(newest) = log.newest_fence() {
                if newest.attempt > attempt {
                    return Ok(Err(FenceRefused::HigherAttempt { newest: newest.attempt }));
                }
                if newest.attempt == attempt {
                    if newest.run_id != run_id {
                        return Ok(Err(FenceRefused::OtherRun { run_id: newest.run_id.to_owned() }));
                    }
                    return Ok(Ok(Begun { seq: newest.seq, from: newest.from }));
                }
            }
            match self.append(&log, &fence).await? {
                Appended::At(seq) => return Ok(Ok(Begun { seq, from })),
                Appended::Taken => {}
                Appended::Full => return Ok(Err(FenceRefused::Full)),
            }
        }
        Ok(Err(FenceRefused::Contention))
    }

    /// The highest attempt that the log or any uploaded data names. A new attempt takes the next number.
    pub async fn max_attempt(&self) -> Result<Option<u32>, StoreError> {
        let folders = self.store.list_folders("data/", MAX_FOLDERS).await?;
        let data = folders.iter().filter_map(|folder| parse_data_folder(folder)).map(|(attempt, _)| attempt).max();
        Ok(data.max(self.load().await?.max_attempt()))
    }

    /// Up to `keep` checkpoints of a run, newest first, with tickets for all their chunks that live for `lifetime`.
    pub async fn candidates(
        &self,
        log: &Log,
        run_id: &str,
        keep: usize,
        lifetime: Duration,
    ) -> Result<Vec<RestoreCandidate>, StoreError> {
        let mut candidates = Vec::new();
        for checkpoint in log.checkpoints().filter(|checkpoint| checkpoint.manifest.run_id == run_id).take(keep) {
            let mut chunks = BTreeMap::new();
            for key in checkpoint.manifest.distinct_chunks().into_keys() {
                chunks.insert(key.to_owned(), self.store.sign_get(key, lifetime).await?);
            }
            candidates.push(RestoreCandidate { seq: checkpoint.seq, manifest: checkpoint.manifest.clone(), chunks });
        }
        Ok(candidates)
    }
}

/// What cannot be written although it was checked before: only its size is left.
pub(crate) fn malformed(key: &str, invalid: &Invalid) -> StoreError {
    StoreError::Malformed { key: key.to_owned(), problem: invalid.to_string() }
}
