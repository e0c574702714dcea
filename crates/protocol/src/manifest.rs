//! What a checkpoint consists of, and the catalogue's log of them.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::check::{Check, is_sha256};
use crate::{Document, Invalid, MAX_ATTEMPT};

/// The most files in one checkpoint.
pub const MAX_FILES: usize = 20_000;
/// The most chunks in one checkpoint.
pub const MAX_CHUNKS: usize = 100_000;
/// The smallest chunk that a file is cut into, in bytes (the last one of a file may be smaller).
pub const MIN_CHUNK_BYTES: u64 = 8 << 20;
/// The largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: u64 = 1 << 30;
/// Slots of a machine are numbered below this: eight digits.
pub const MAX_SLOTS: u64 = 100_000_000;
/// The most workers that write one checkpoint together: as many as a job may have.
pub const MAX_RANKS: usize = 512;

/// One checkpoint: its files and their chunks. It counts only once it stands in the log as [`LogEntry::Checkpoint`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Protocol version.
    pub version: u32,
    /// Id of the run.
    pub run_id: String,
    /// The attempt that saved it.
    pub attempt: u32,
    /// Uid of the RentedMachine that saved it, or id of the worker in the cluster; of several writers that of the first.
    pub machine: String,
    /// The program's step.
    pub step: u64,
    /// Name of the file or directory under the checkpoint path (one path segment).
    pub name: String,
    /// File or directory.
    pub kind: EntryKind,
    /// All files, sorted by path and rank. For a single file one entry with an empty path; where the writers' contents differ, one for each.
    pub files: Vec<ManifestFile>,
    /// When the save was complete on the machine's disk (the machine's clock).
    pub saved_at: Timestamp,
    /// When the program began this save, as far as was seen (the machine's clock).
    pub save_began_at: Timestamp,
    /// The log sequence of the checkpoint whose chunks may be referenced.
    pub parent: Option<u64>,
    /// The workers that wrote it together, by rank. Empty if one machine wrote all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<Writer>,
}

/// One of several workers that wrote a checkpoint together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writer {
    /// Its id.
    pub machine: String,
    /// Its data for this checkpoint and for earlier ones is in slots below this. It need not be named: what all have alike is kept once,
    /// however many have sent it.
    pub slots_below: u64,
    /// Its own name for the checkpoint, where that is not the manifest's: only files can have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a checkpoint looks like on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// One file.
    File,
    /// A directory tree of regular files.
    Directory,
}

/// One regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestFile {
    /// Path below the checkpoint's own directory, `/` between segments, no `.` or `..`; empty for a single file.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits (`0o777` at most).
    pub mode: u32,
    /// Its chunks in order; their sizes add up to `size_bytes`.
    pub chunks: Vec<Chunk>,
    /// The writer whose version of the file this is, where the versions differ; `None` = for every worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
}

/// One piece of a file, stored as one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chunk {
    /// Object key below the checkpoint location: `data/<attempt>-<machine6>/<slot>`.
    pub key: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

/// One entry of the catalogue's log at `log/<sequence>.json`. Written once, with put-if-absent at the next free sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "entry")]
pub enum LogEntry {
    /// The fence: from here on only this attempt may append checkpoints.
    #[serde(rename_all = "camelCase")]
    AttemptStarted {
        /// Protocol version.
        version: u32,
        /// Id of the run.
        run_id: String,
        /// The attempt that starts.
        attempt: u32,
        /// Sequence of the checkpoint that it starts from.
        from: Option<u64>,
        /// The operator's time.
        at: Timestamp,
    },
    /// A complete, verified checkpoint.
    #[serde(rename_all = "camelCase")]
    Checkpoint {
        /// What it consists of.
        manifest: Manifest,
        /// The operator's time of the commit.
        at: Timestamp,
    },
    /// Retention: from here on the checkpoints `dropped` do not count, nobody may reference their chunks, and data that no checkpoint names
    /// may be deleted if an earlier attempt uploaded it or its slot is below the folder's mark.
    #[serde(rename_all = "camelCase")]
    Collected {
        /// Protocol version.
        version: u32,
        /// Id of the run of the newest fence.
        run_id: String,
        /// The attempt of the newest fence.
        attempt: u32,
        /// Sequences of the checkpoints that go.
        dropped: Vec<u64>,
        /// For folders of this attempt (`<attempt>-<machine6>`): chunks in slots below this are never new again. Marks only rise.
        below: BTreeMap<String, u64>,
        /// True if the run has ended: no new data of this attempt counts any more.
        closed: bool,
        /// The operator's time.
        at: Timestamp,
    },
}

impl LogEntry {
    /// The protocol version it was written with.
    pub fn version(&self) -> u32 {
        match self {
            Self::AttemptStarted { version, .. } | Self::Collected { version, .. } => *version,
            Self::Checkpoint { manifest, .. } => manifest.version,
        }
    }

    /// The attempt it belongs to.
    pub fn attempt(&self) -> u32 {
        match self {
            Self::AttemptStarted { attempt, .. } | Self::Collected { attempt, .. } => *attempt,
            Self::Checkpoint { manifest, .. } => manifest.attempt,
        }
    }

    /// The run it belongs to.
    pub fn run_id(&self) -> &str {
        match self {
            Self::AttemptStarted { run_id, .. } | Self::Collected { run_id, .. } => run_id,
            Self::Checkpoint { manifest, .. } => &manifest.run_id,
        }
    }

    /// Reads an entry from bytes that anybody with access to the user's bucket may have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        Self::decode_any(bytes)
    }
}

impl Document for LogEntry {
    const NAME: &'static str = "log entry";
    const MAX_BYTES: usize = 4 * 1024 * 1024;

    fn validate(&self) -> Result<(), Invalid> {
        let check = Check(Self::NAME);
        match self {
            Self::AttemptStarted { version, run_id, attempt, .. } => {
                check.version(*version)?;
                check.id("runId", run_id)?;
                check.attempt(*attempt)
            }
            Self::Checkpoint { manifest, .. } => manifest.validate(),
            Self::Collected { version, run_id, attempt, dropped, below, .. } => {
                check.version(*version)?;
                check.id("runId", run_id)?;
                check.attempt(*attempt)?;
                check.count("dropped", dropped.len(), 100_000)?;
                check.count("below", below.len(), 10_000)?;
                let fits = |folder: &str, mark: u64| {
                    mark <= MAX_SLOTS && parse_data_folder(folder).is_some_and(|(of, _)| of == *attempt)
                };
                check.that(below.iter().all(|(folder, mark)| fits(folder, *mark)), "below", || {
                    "must map folders of this attempt to slots".to_owned()
                })
            }
        }
    }
}

impl Manifest {
    const CHECK: Check = Check("manifest");

    /// Sum of the sizes of all files, in bytes. At most [`MAX_CHUNKS`] × [`MAX_CHUNK_BYTES`] for a valid manifest.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    /// All chunks of all files in order; one object may appear several times.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.files.iter().flat_map(|file| &file.chunks)
    }

    /// Every object that is named, once, by key.
    pub fn distinct_chunks(&self) -> BTreeMap<&str, &Chunk> {
        self.chunks().map(|chunk| (chunk.key.as_str(), chunk)).collect()
    }

    /// Checks versions, counts, sizes, names and keys, so that the files can be written below a directory without leaving it.
    pub fn validate(&self) -> Result<(), Invalid> {
        let check = Self::CHECK;
        check.version(self.version)?;
        check.id("runId", &self.run_id)?;
        check.id("machine", &self.machine)?;
        check.attempt(self.attempt)?;
        check.that(is_segment(&self.name), "name", || {
            "must be one path segment of 1 to 255 bytes without control characters".to_owned()
        })?;
        self.validate_writers()?;
        check.count("files", self.files.len(), MAX_FILES)?;
        check.count("chunks", self.files.iter().map(|file| file.chunks.len()).sum(), MAX_CHUNKS)?;
        self.validate_paths()?;
        let mut seen: BTreeMap<&str, &Chunk> = BTreeMap::new();
        for file in &self.files {
            self.validate_file(file)?;
            for chunk in &file.chunks {
                let first = *seen.entry(&chunk.key).or_insert(chunk);
                check.that(first == chunk, "chunks", || "name one key with two contents".to_owned())?;
            }
        }
        Ok(())
    }

    fn validate_writers(&self) -> Result<(), Invalid> {
        let check = Self::CHECK;
        check.count("writers", self.writers.len(), MAX_RANKS)?;
        let first = self.writers.first().is_none_or(|writer| writer.machine == self.machine);
        check.that(first, "writers", || "must begin with the machine".to_owned())?;
        let mut seen = HashSet::with_capacity(self.writers.len());
        for writer in &self.writers {
            check.id("writers.machine", &writer.machine)?;
            check.that(seen.insert(writer.machine.as_str()), "writers", || "name a machine twice".to_owned())?;
            check.that(writer.slots_below <= MAX_SLOTS, "writers.slotsBelow", || {
                format!("must be at most {MAX_SLOTS}")
            })?;
            let name = writer.name.as_deref();
            let fits = name.is_none_or(|name| self.kind == EntryKind::File && is_segment(name));
            check.that(fits, "writers.name", || "must be one path segment, and only a file may have it".to_owned())?;
        }
        let known = |rank: u32| usize::try_from(rank).is_ok_and(|rank| rank < self.writers.len());
        let all = self.files.iter().filter_map(|file| file.rank).all(known);
        check.that(all, "files.rank", || "must be that of a writer".to_owned())
    }

    fn validate_paths(&self) -> Result<(), Invalid> {
        let check = Self::CHECK;
        if self.kind == EntryKind::File {
            let one = !self.files.is_empty() && self.files.iter().all(|file| file.path.is_empty());
            check.that(one, "files", || "must be one file with an empty path".to_owned())?;
        }
        let mut paths: HashSet<&str> = HashSet::with_capacity(self.files.len());
        for (index, file) in self.files.iter().enumerate() {
            let fits = self.kind == EntryKind::File || is_relative_path(&file.path);
            check.that(fits, "files.path", || {
                format!("of file {index} must be relative, of at most 1024 bytes and 64 segments, without '.', '..' or control characters")
            })?;
            let before = index.checked_sub(1).map(|before| &self.files[before]);
            // What is for every worker has no other version.
            let follows = |before: &ManifestFile| {
                before.path < file.path
                    || (before.path == file.path && before.rank.is_some() && before.rank < file.rank)
            };
            check.that(before.is_none_or(follows), "files", || {
                format!("are not sorted or name a path twice at file {index}")
            })?;
            paths.insert(&file.path);
        }
        for (index, file) in self.files.iter().enumerate() {
            let inside_a_file = file.path.match_indices('/').any(|(end, _)| paths.contains(&file.path[..end]));
            check.that(!inside_a_file, "files.path", || format!("of file {index} lies inside another file"))?;
        }
        Ok(())
    }

    fn validate_file(&self, file: &ManifestFile) -> Result<(), Invalid> {
        let check = Self::CHECK;
        check.that(file.mode <= 0o777, "files.mode", || "must be permission bits, at most 0o777".to_owned())?;
        let mut sum = 0_u64;
        for chunk in &file.chunks {
            let fits = (1..=MAX_CHUNK_BYTES).contains(&chunk.size_bytes);
            check.that(fits, "chunks.sizeBytes", || format!("must be 1 to {MAX_CHUNK_BYTES}"))?;
            check.that(is_sha256(&chunk.sha256), "chunks.sha256", || "must be 64 lower-case hex digits".to_owned())?;
            let place = DataKey::parse(&chunk.key);
            check.that(place.is_some_and(|place| place.attempt <= self.attempt), "chunks.key", || {
                "must be data/<attempt>-<6 letters or digits>/<8 digits> of this attempt or an earlier one".to_owned()
            })?;
            // At most 100,000 times 1 GiB: far from overflowing.
            sum += chunk.size_bytes;
        }
        check.that(sum == file.size_bytes, "files.sizeBytes", || "must be the sum of its chunks' sizes".to_owned())
    }
}

fn is_segment(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text != "." && text != ".." && !text.chars().any(|c| c == '/' || c.is_control())
}

fn is_relative_path(path: &str) -> bool {
    path.len() <= 1024 && path.split('/').all(is_segment) && path.split('/').count() <= 64
}

/// A parsed data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataKey<'a> {
    /// The attempt that uploaded it.
    pub attempt: u32,
    /// Six letters or digits that tell machines of one attempt apart.
    pub machine: &'a str,
    /// Number of the slot.
    pub slot: u64,
}

impl<'a> DataKey<'a> {
    /// Reads `data/<attempt>-<6 letters or digits>/<8 digits>`; `None` for anything else, also for other spellings of the same numbers.
    pub fn parse(key: &'a str) -> Option<Self> {
        let (folder, slot) = key.strip_prefix("data/")?.split_once('/')?;
        let (attempt, machine) = parse_data_folder(folder)?;
        let digits = slot.len() == 8 && slot.bytes().all(|b| b.is_ascii_digit());
        Some(Self { attempt, machine, slot: if digits { slot.parse().ok()? } else { return None } })
    }

    /// The folder below `data/` that it is in.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.attempt, self.machine)
    }
}

/// Reads `<attempt>-<6 letters or digits>`, the folder of one machine's data; `None` for anything else.
pub fn parse_data_folder(folder: &str) -> Option<(u32, &str)> {
    let (attempt, machine) = folder.split_once('-')?;
    let number: u32 = attempt.parse().ok()?;
    let plain = number <= MAX_ATTEMPT && number.to_string() == attempt;
    let word = machine.len() == 6 && machine.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (plain && word).then_some((number, machine))
}

/// Key of a data slot; `slot` is below [`MAX_SLOTS`].
pub fn slot_key(data_prefix: &str, slot: u64) -> String {
    format!("{data_prefix}{slot:08}")
}

/// Prefix of a machine's data keys: `data/<attempt>-<first six characters of the uid's hash>/`.
pub fn data_prefix(attempt: u32, machine_uid: &str) -> String {
    format!("data/{}/", data_folder(attempt, machine_uid))
}

/// The folder of a machine's data below `data/`; see [`data_prefix`].
pub fn data_folder(attempt: u32, machine_uid: &str) -> String {
    // The hash that order keys use: uids of one cluster may begin alike.
    let mut machine = tradewind_core::OrderKey::machine_part(machine_uid);
    machine.truncate(6);
    format!("{attempt}-{machine}")
}

/// The size of the chunks that a file of this size is cut into, in bytes: a power of two between [`MIN_CHUNK_BYTES`] and
/// [`MAX_CHUNK_BYTES`], so that no file up to 512 GiB has more than 512 chunks, and a file that grows a little keeps its cuts.
pub fn chunk_size(file_size_bytes: u64) -> u64 {
    let size = file_size_bytes.div_ceil(512).clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES);
    size.next_power_of_two().min(MAX_CHUNK_BYTES)
}
