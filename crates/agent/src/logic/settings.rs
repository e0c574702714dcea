//! How often and how long.

use std::time::Duration;

/// Intervals and limits of the agent. All on the monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Between two looks at the control document.
    pub poll: Duration,
    /// The same while something waits for the operator's answer (a start, a commit, slots, the end).
    pub poll_fast: Duration,
    /// How long one wait is polled fast; after that the operator is taken to be away.
    pub fast_for: Duration,
    /// Between two reports when nothing noteworthy happens.
    pub report: Duration,
    /// Between two writes of the current log segment.
    pub log: Duration,
    /// Size at which a log segment is closed, in bytes.
    pub log_segment_bytes: usize,
    /// Pieces on their way at once.
    pub parallel: usize,
    /// How long a restore may fail for passing reasons before the agent gives up.
    pub restore_limit: Duration,
    /// How long the end may wait, without any headway, for the last save to be uploaded and committed.
    pub finish_limit: Duration,
    /// In the cluster: how long the end waits for the store to take the last report. Somebody waits for the node, and the operator learns the
    /// end from the Pod itself: all that is lost is a checkpoint that was sent and not offered. A minute outlasts the restart of a store.
    pub leave_limit: Duration,
    /// Most pieces that a save may have; more do not fit into a report.
    pub most_pieces: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(5),
            poll_fast: Duration::from_millis(500),
            fast_for: Duration::from_mins(1),
            report: Duration::from_secs(10),
            log: Duration::from_secs(5),
            log_segment_bytes: 128 * 1024,
            parallel: 4,
            restore_limit: Duration::from_mins(30),
            finish_limit: Duration::from_mins(10),
            leave_limit: Duration::from_mins(1),
            most_pieces: 4_000,
        }
    }
}

/// Wait before try number `failures` + 1 (from 1): half a second, doubled each time, half a minute at most.
pub(super) fn backoff(failures: u32) -> Duration {
    Duration::from_millis(500).saturating_mul(1 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(30))
}
