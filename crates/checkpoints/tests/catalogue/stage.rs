//! A small stage: one bucket in memory, machines that upload, and a checker of what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tradewind_checkpoints::{Catalogue, Keep, Location, Log, MemoryPlace, MemoryStore, Store};
use tradewind_core::{Clock, ManualClock};
use tradewind_protocol::manifest::{data_prefix, slot_key};
use tradewind_protocol::{Chunk, EntryKind, LogEntry, Manifest, ManifestFile, VERSION};

pub const BUCKET: &str = "user-bucket";
pub const RUN: &str = "run-1";
const PREFIX: &str = "team/job/";

/// Polls once. Nothing here ever waits, so a future that is not ready was cut by its gate.
pub fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Runs a future that never waits.
pub fn now<F: Future>(future: F) -> F::Output {
    poll_once(future).expect("nothing in memory ever waits")
}

pub fn keep(newest: usize) -> Keep {
    Keep { newest, pinned: BTreeSet::new(), ended: false, max_changes: 1000 }
}

pub struct Stage {
    pub clock: Arc<ManualClock>,
    pub server: MemoryStore,
}

impl Default for Stage {
    fn default() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_800_000_000).unwrap(), 1));
        let server = MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>);
        server.create_bucket(BUCKET);
        Self { clock, server }
    }
}

impl Stage {
    pub fn place(&self) -> MemoryPlace {
        let location: Location = format!("s3://{BUCKET}/{PREFIX}").parse().unwrap();
        self.server.at(&location)
    }

    pub fn catalogue(&self) -> Catalogue {
        self.catalogue_on(Arc::new(self.place()))
    }

    pub fn catalogue_on(&self, store: Arc<dyn Store>) -> Catalogue {
        Catalogue::open(store, Arc::clone(&self.clock) as Arc<dyn Clock>)
    }

    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    pub fn begin(&self, attempt: u32) {
        now(self.catalogue().begin_attempt(RUN, attempt, None, self.clock.now())).unwrap().unwrap();
    }

    pub fn log(&self) -> Log {
        now(self.catalogue().load()).unwrap()
    }

    /// Keys of all data objects, relative to the place.
    pub fn data(&self) -> BTreeSet<String> {
        let objects = self.server.objects(BUCKET).into_keys();
        objects
            .filter_map(|key| key.strip_prefix(PREFIX).map(str::to_owned))
            .filter(|key| key.starts_with("data/"))
            .collect()
    }

    pub fn tamper(&self, key: &str, bytes: Option<&[u8]>) {
        self.server.tamper(BUCKET, &format!("{PREFIX}{key}"), bytes.map(Bytes::copy_from_slice));
    }

    /// Every checkpoint that counts is whole: each of its chunks is there, with the bytes that the manifest says.
    pub fn check_whole(&self) {
        let objects = self.server.objects(BUCKET);
        for checkpoint in self.log().checkpoints() {
            for chunk in checkpoint.manifest.chunks() {
                let bytes = objects.get(&format!("{PREFIX}{}", chunk.key));
                let bytes = bytes.unwrap_or_else(|| panic!("checkpoint {} lacks chunk {}", checkpoint.seq, chunk.key));
                assert_eq!(
                    bytes.len() as u64,
                    chunk.size_bytes,
                    "size of {} in checkpoint {}",
                    chunk.key,
                    checkpoint.seq
                );
                assert_eq!(sha256(bytes), chunk.sha256, "content of {} in checkpoint {}", chunk.key, checkpoint.seq);
            }
        }
    }
}

/// Watches the log while it grows: entries never change once written, and each checkpoint stands above its own attempt's fence.
#[derive(Default)]
pub struct Historian {
    entries: BTreeMap<u64, LogEntry>,
}

impl Historian {
    pub fn look(&mut self, stage: &Stage) {
        stage.check_whole();
        for (seq, entry) in stage.log().entries {
            if let Some(known) = self.entries.get(&seq) {
                assert_eq!(*known, *entry, "entry {seq} has changed");
                continue;
            }
            assert!(
                self.entries.keys().next_back().is_none_or(|last| *last < seq),
                "entry {seq} came after a later one"
            );
            if let LogEntry::Checkpoint { manifest, .. } = &*entry {
                assert_eq!(self.fence(), Some(manifest.attempt), "checkpoint {seq} was committed past the fence");
                let twin = self.entries.iter().find(
                    |(_, known)| matches!(known, LogEntry::Checkpoint { manifest: known, .. } if known == manifest),
                );
                assert!(twin.is_none(), "checkpoint {seq} was committed twice");
            }
            self.entries.insert(seq, (*entry).clone());
        }
    }

    fn fence(&self) -> Option<u32> {
        self.entries.values().rev().find_map(|entry| match entry {
            LogEntry::AttemptStarted { attempt, .. } => Some(*attempt),
            _ => None,
        })
    }

    /// Steps of all checkpoints that were ever committed, in order.
    pub fn steps(&self) -> Vec<u64> {
        let checkpoint = |entry: &LogEntry| match entry {
            LogEntry::Checkpoint { manifest, .. } => Some(manifest.step),
            _ => None,
        };
        self.entries.values().filter_map(checkpoint).collect()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// A machine that uploads chunks into its slots, one after the other.
pub struct Machine {
    pub uid: String,
    pub attempt: u32,
    next_slot: u64,
}

impl Machine {
    pub fn new(uid: &str, attempt: u32) -> Self {
        Self { uid: uid.to_owned(), attempt, next_slot: 0 }
    }

    /// Uploads one chunk that nobody has named yet.
    pub fn upload(&mut self, stage: &Stage, text: &str) -> Chunk {
        let key = slot_key(&data_prefix(self.attempt, &self.uid), self.next_slot);
        self.next_slot += 1;
        now(stage.place().put(&key, Bytes::copy_from_slice(text.as_bytes()))).unwrap();
        Chunk { key, size_bytes: text.len() as u64, sha256: sha256(text.as_bytes()) }
    }

    /// A manifest of one file with these chunks.
    pub fn manifest(&self, stage: &Stage, step: u64, chunks: Vec<Chunk>, parent: Option<u64>) -> Manifest {
        let at = stage.clock.now();
        Manifest {
            version: VERSION,
            run_id: RUN.to_owned(),
            attempt: self.attempt,
            machine: self.uid.clone(),
            step,
            name: format!("step-{step}"),
            kind: EntryKind::File,
            files: vec![ManifestFile {
                path: String::new(),
                size_bytes: chunks.iter().map(|chunk| chunk.size_bytes).sum(),
                mode: 0o644,
                chunks,
                rank: None,
            }],
            saved_at: at,
            save_began_at: at,
            parent,
            writers: vec![],
        }
    }

    /// Saves a step: what stays the same from `parent` on is referenced, one chunk is new.
    pub fn save(&mut self, stage: &Stage, step: u64, parent: Option<(u64, &Chunk)>) -> Manifest {
        let new = self.upload(stage, &format!("weights of step {step} by {}", self.uid));
        let chunks = parent.map(|(_, chunk)| chunk.clone()).into_iter().chain([new]).collect();
        self.manifest(stage, step, chunks, parent.map(|(seq, _)| seq))
    }
}
