//! Collection of what no checkpoint needs any more. One bounded pass; safe to cut anywhere and to repeat.
//!
//! Three steps:
//! 1. an entry [`LogEntry::Collected`] is appended that names the checkpoints that go, and marks up to which slot data of the running
//!    attempt can never be new again;
//! 2. entries that nobody needs any more are emptied;
//! 3. data that no checkpoint names is deleted: what an attempt before the newest fence uploaded, and what is in a slot below the mark.
//!    Age plays no part: an offer may wait for days until there is an operator again.
//!
//! Why this never takes a chunk from a checkpoint, whoever commits at the same time (an operator that lost its lease a moment ago): a commit that
//! was decided without the entry of step 1 loses its place to that entry and is decided again. One that was decided with it can name
//! only chunks of checkpoints that count, and new ones that step 3 does not touch: of the newest attempt, not below the mark. What an
//! upload that was given up left above the mark goes with a later checkpoint's end, or with the attempt's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use jiff::SignedDuration;
use tradewind_protocol::manifest::{DataKey, data_folder, parse_data_folder};
use tradewind_protocol::{LogEntry, VERSION};

use crate::catalogue::{Appended, Catalogue, MAX_FOLDERS, MAX_ROUNDS};
use crate::log::{Log, Marks, entry_key};
use crate::retention::retain;
use crate::store::StoreError;

/// How long a [`LogEntry::Collected`] stays after a newer one: longer than any list of the log takes.
const SETTLE: SignedDuration = SignedDuration::from_mins(15);
/// The most data objects of one machine.
const MAX_DATA: usize = 200_000;

/// What a pass must spare, and how far it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// How many checkpoints of a run stay (at least one).
    pub newest: usize,
    /// Sequences that stay besides: the candidates of a restore under way, the parent that a machine references.
    pub pinned: BTreeSet<u64>,
    /// True once the run has ended and no machine uploads any more: everything that no checkpoint names goes at once.
    pub ended: bool,
    /// The most objects that one pass empties or deletes.
    pub max_changes: usize,
}

/// What a pass has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Sequences of checkpoints that were dropped.
    pub dropped: Vec<u64>,
    /// Number of entries emptied.
    pub emptied: usize,
    /// Number of data objects deleted.
    pub deleted: usize,
    /// True if the bound was reached: there is more to do now.
    pub more: bool,
    /// True if no data was deleted because the log holds an entry that cannot be read: nobody knows what it names.
    pub blocked: bool,
}

impl Collected {
    /// Counts one more change unless the bound is reached.
    fn admit(&mut self, keep: &Keep) -> bool {
        self.more = self.emptied + self.deleted >= keep.max_changes;
        !self.more
    }
}

impl Catalogue {
    /// One pass over log and data. Does nothing in a place where no attempt has begun.
    pub async fn collect(&self, keep: &Keep) -> Result<Collected, StoreError> {
        let mut done = Collected::default();
        self.drop_checkpoints(keep, &mut done).await?;
        // Read again: what this list shows decides, and it shows the entry just written.
        let log = self.load().await?;
        self.empty_entries(&log, keep, &mut done).await?;
        self.delete_data(&log, keep, &mut done).await?;
        Ok(done)
    }

    /// Step 1.
    async fn drop_checkpoints(&self, keep: &Keep, done: &mut Collected) -> Result<(), StoreError> {
        for _ in 0..MAX_ROUNDS {
            let log = self.load().await?;
            let Some(fence) = log.newest_fence() else { return Ok(()) };
            let dropped = retain(&log, keep.newest, &keep.pinned).drop;
            let marks = log.marks();
            if dropped.is_empty() && (marks.closed || !keep.ended) {
                return Ok(());
            }
            let entry = LogEntry::Collected {
                version: VERSION,
                run_id: fence.run_id.to_owned(),
                attempt: fence.attempt,
                below: raised(&marks, &log, fence.attempt, &dropped),
                closed: marks.closed || keep.ended,
                dropped: dropped.clone(),
                at: self.clock.now(),
            };
            match self.append(&log, &entry).await? {
                Appended::At(_) => {
                    done.dropped = dropped;
                    return Ok(());
                }
                Appended::Taken => {}
                Appended::Full => return Ok(()),
            }
        }
        done.more = true;
        Ok(())
    }

    /// Step 2: dropped checkpoints, fences with a newer one above, and old entries of step 1. The newest entry stays whatever it is.
    async fn empty_entries(&self, log: &Log, keep: &Keep, done: &mut Collected) -> Result<(), StoreError> {
        let fence = log.newest_fence().map(|fence| fence.seq);
        let newest_collection = log
            .entries
            .iter()
            .rev()
            .find(|(_, entry)| matches!(***entry, LogEntry::Collected { .. }))
            .map(|(seq, _)| *seq);
        for (seq, entry) in &log.entries {
            let over = match &**entry {
                LogEntry::Checkpoint { .. } => log.dropped.contains(seq),
                LogEntry::AttemptStarted { .. } => fence.is_some_and(|newest| *seq < newest),
                // While a checkpoint it drops still stands there, it is what keeps that one dropped.
                LogEntry::Collected { at, dropped, .. } => {
                    newest_collection != Some(*seq)
                        && self.clock.now().duration_since(*at) > SETTLE
                        && dropped.iter().all(|seq| !log.entries.contains_key(seq))
                }
            };
            if !over || log.last_seq == Some(*seq) {
                continue;
            }
            if !done.admit(keep) {
                return Ok(());
            }
            self.store.put(&entry_key(*seq), Bytes::new()).await?;
            done.emptied += 1;
        }
        Ok(())
    }

    /// Step 3.
    async fn delete_data(&self, log: &Log, keep: &Keep, done: &mut Collected) -> Result<(), StoreError> {
        // Without a fence nobody has begun here, and whose data it is cannot be known.
        let Some(newest) = log.newest_attempt() else { return Ok(()) };
        if log.bad.iter().any(|bad| bad.seq.is_some()) {
            done.blocked = true;
            return Ok(());
        }
        let live = log.live_chunks();
        let marks = log.marks();
        for folder in self.store.list_folders("data/", MAX_FOLDERS).await? {
            let Some((attempt, _)) = parse_data_folder(&folder) else { continue };
            for object in self.store.list(&format!("data/{folder}/"), MAX_DATA).await? {
                let Some(place) = DataKey::parse(&object.key) else { continue };
                let may_become_new = attempt >= newest && marks.admit(&folder, place.slot);
                if live.contains_key(object.key.as_str()) || may_become_new {
                    continue;
                }
                if !done.admit(keep) {
                    return Ok(());
                }
                self.store.delete(&object.key).await?;
                done.deleted += 1;
            }
        }
        Ok(())
    }
}

/// The marks after `dropped` are gone: above every slot of the running attempt that one of them names or that its writers had sent by then.
/// Machines take slots in order, so data for checkpoints to come lies above.
fn raised(marks: &Marks, log: &Log, attempt: u32, dropped: &[u64]) -> BTreeMap<String, u64> {
    let mut below = marks.below.clone();
    let mut raise = |folder: String, to: u64| {
        let mark = below.entry(folder).or_default();
        *mark = (*mark).max(to);
    };
    for checkpoint in dropped.iter().filter_map(|seq| log.checkpoint(*seq)) {
        let manifest = checkpoint.manifest;
        let places = manifest.chunks().filter_map(|chunk| DataKey::parse(&chunk.key));
        for place in places.filter(|place| place.attempt == attempt) {
            raise(place.folder(), place.slot + 1);
        }
        if manifest.attempt == attempt {
            for writer in manifest.writers.iter().filter(|writer| writer.slots_below > 0) {
                raise(data_folder(attempt, &writer.machine), writer.slots_below);
            }
        }
    }
    below
}
