//! The catalogue's log as it was read: entries, fences, checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tradewind_protocol::{Chunk, LogEntry, Manifest};

/// Folder of the entries.
pub(crate) const PREFIX: &str = "log/";
/// Sequences are written with ten digits, so that they sort as text.
pub(crate) const MAX_SEQ: u64 = 9_999_999_999;

/// Key of an entry.
pub(crate) fn entry_key(seq: u64) -> String {
    format!("{PREFIX}{seq:010}.json")
}

/// The sequence of an entry's key; `None` for any other key.
pub(crate) fn parse_entry_key(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(PREFIX)?.strip_suffix(".json")?;
    let plain = digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// The log at one moment.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// All entries that could be read, by sequence.
    pub entries: BTreeMap<u64, Arc<LogEntry>>,
    /// Objects that stand in the log but cannot be believed. They keep their sequence and are otherwise left alone.
    pub bad: Vec<BadEntry>,
    /// Sequences of checkpoints that retention has dropped.
    pub dropped: BTreeSet<u64>,
    /// The highest sequence that is taken, by whatever.
    pub last_seq: Option<u64>,
}

/// An object in the log that is not an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEntry {
    /// Its key.
    pub key: String,
    /// The place in the log that it takes; `None` if its name is none of an entry.
    pub seq: Option<u64>,
    /// What is wrong, in a sentence.
    pub problem: String,
}

/// The newest fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence<'a> {
    /// Its sequence.
    pub seq: u64,
    /// The run that may append.
    pub run_id: &'a str,
    /// The attempt that may append.
    pub attempt: u32,
    /// The checkpoint that the attempt was meant to start from.
    pub from: Option<u64>,
}

/// A complete, verified checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCheckpoint<'a> {
    /// Its sequence in the log.
    pub seq: u64,
    /// When it was committed (the operator's clock).
    pub at: jiff::Timestamp,
    /// What it consists of.
    pub manifest: &'a Manifest,
}

/// What retention has settled about new data of the newest attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Marks {
    /// Chunks of these folders in slots below the mark are never new again.
    pub below: BTreeMap<String, u64>,
    /// The run has ended: nothing is new any more.
    pub closed: bool,
}

impl Marks {
    /// True if an object in this folder and slot may still become part of a checkpoint for the first time.
    pub fn admit(&self, folder: &str, slot: u64) -> bool {
        !self.closed && self.below.get(folder).is_none_or(|mark| slot >= *mark)
    }
}

impl Log {
    /// The newest fence: only its attempt may append.
    pub fn newest_fence(&self) -> Option<Fence<'_>> {
        self.entries.iter().rev().find_map(|(seq, entry)| match &**entry {
            LogEntry::AttemptStarted { run_id, attempt, from, .. } => {
                Some(Fence { seq: *seq, run_id, attempt: *attempt, from: *from })
            }
            LogEntry::Checkpoint { .. } | LogEntry::Collected { .. } => None,
        })
    }

    /// The attempt of the newest fence.
    pub fn newest_attempt(&self) -> Option<u32> {
        self.newest_fence().map(|fence| fence.attempt)
    }

    /// The highest attempt that any entry names.
    pub fn max_attempt(&self) -> Option<u32> {
        self.entries.values().map(|entry| entry.attempt()).max()
    }

    /// All checkpoints of all runs that count, newest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = StoredCheckpoint<'_>> {
        self.entries.keys().rev().filter_map(|seq| self.checkpoint(*seq))
    }

    /// The newest checkpoint of a run.
    pub fn newest_checkpoint<'a>(&'a self, run_id: &str) -> Option<StoredCheckpoint<'a>> {
        self.checkpoints().find(|checkpoint| checkpoint.manifest.run_id == run_id)
    }

    /// The checkpoint with this sequence, if it counts.
    pub fn checkpoint(&self, seq: u64) -> Option<StoredCheckpoint<'_>> {
        if self.dropped.contains(&seq) {
            return None;
        }
        match &**self.entries.get(&seq)? {
            LogEntry::Checkpoint { manifest, at } => Some(StoredCheckpoint { seq, at: *at, manifest }),
            LogEntry::AttemptStarted { .. } | LogEntry::Collected { .. } => None,
        }
    }

    /// Takes in an entry that was read.
    pub(crate) fn insert(&mut self, seq: u64, entry: Arc<LogEntry>) {
        if let LogEntry::Collected { dropped, .. } = &*entry {
            self.dropped.extend(dropped);
        }
        self.entries.insert(seq, entry);
    }

    /// The sequence under which exactly this manifest was committed, dropped or not.
    pub(crate) fn find_manifest(&self, wanted: &Manifest) -> Option<u64> {
        self.entries.iter().rev().find_map(|(seq, entry)| match &**entry {
            LogEntry::Checkpoint { manifest, .. } => (manifest == wanted).then_some(*seq),
            LogEntry::AttemptStarted { .. } | LogEntry::Collected { .. } => None,
        })
    }

    /// Every chunk of a checkpoint that counts, by key: what a new manifest may reference and what must not be deleted.
    pub(crate) fn live_chunks(&self) -> BTreeMap<&str, &Chunk> {
        self.checkpoints().flat_map(|checkpoint| checkpoint.manifest.distinct_chunks()).collect()
    }

    /// What retention has settled for the newest attempt.
    pub(crate) fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        let newest = self.newest_attempt();
        for entry in self.entries.values() {
            let LogEntry::Collected { attempt, below, closed, .. } = &**entry else { continue };
            if Some(*attempt) != newest {
                continue;
            }
            marks.closed |= closed;
            for (folder, mark) in below {
                let known = marks.below.entry(folder.clone()).or_default();
                *known = (*known).max(*mark);
            }
        }
        marks
    }

    /// The sequence that the next entry takes; `None` if there is none left (somebody has put an object at the very end).
    pub(crate) fn next_seq(&self) -> Option<u64> {
        let next = self.last_seq.map_or(0, |last| last + 1);
        (next <= MAX_SEQ).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_entries_have_one_spelling() {
        assert_eq!(entry_key(7), "log/0000000007.json");
        assert_eq!(parse_entry_key(&entry_key(MAX_SEQ)), Some(MAX_SEQ));
        for key in [
            "log/7.json",
            "log/00000000007.json",
            "log/+000000007.json",
            "log/0000000007",
            "0000000007.json",
            "log/a/0000000007.json",
        ] {
            assert_eq!(parse_entry_key(key), None, "{key}");
        }
    }
}
