//! Which checkpoints stay. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::log::Log;

/// What retention decides about the checkpoints of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Sequences of checkpoints that stay.
    pub keep: BTreeSet<u64>,
    /// Sequences of checkpoints that go, oldest first.
    pub drop: Vec<u64>,
}

/// Keeps the `keep` newest checkpoints of every run that has any (at least one each), those in `pinned`, the one that the newest attempt was
/// started from, and the newest entry of the log whatever it is.
pub fn retain(log: &Log, keep: usize, pinned: &BTreeSet<u64>) -> Retention {
    let from = log.newest_fence().and_then(|fence| fence.from);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut retention = Retention::default();
    for checkpoint in log.checkpoints() {
        let count = seen.entry(&checkpoint.manifest.run_id).or_default();
        *count += 1;
        let seq = checkpoint.seq;
        let stays = *count <= keep.max(1) || pinned.contains(&seq) || from == Some(seq) || log.last_seq == Some(seq);
        if stays {
            retention.keep.insert(seq);
        } else {
            retention.drop.push(seq);
        }
    }
    retention.drop.reverse();
    retention
}
