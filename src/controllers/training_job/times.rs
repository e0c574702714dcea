//! What a job says about time: its deadline, its patience, and what a loss or a move may cost it.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::{Reason, TrainingJob};
use tradewind_core::Money;
use tradewind_planner::DEFAULT_CHECKPOINT_UPLOAD_S;

use super::deadline::{self, later};
use super::valid::Valid;

/// What a job says about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Now.
    pub now: Timestamp,
    /// The deadline.
    pub deadline: Option<Timestamp>,
    /// Until when it may wait for a cheaper machine.
    pub patience_until: Option<Timestamp>,
    /// Dollars an hour to wait for.
    pub max_price_per_hour: Option<Money>,
    /// Time between two looks.
    pub look: Duration,
    /// Most seconds between two checkpoints: so much work a loss costs at most. `None` = it costs all of it.
    pub interval_s: Option<u64>,
    /// Seconds that the job's machine takes to end at most, if the job leaves it: the program's grace, and its last save.
    pub stop_s: u64,
}

impl Times {
    /// Those of a job.
    pub fn of(job: &TrainingJob, valid: &Valid, now: Timestamp, look: Duration) -> Self {
        // A job that has left its machine for a cheaper one takes what there is.
        let last = job.status.as_ref().and_then(|status| status.history.last());
        let moved = last.is_some_and(|record| record.ended == Reason::Moving.as_str());
        let waits_since = job.status.as_ref().and_then(|status| status.waits_since.as_ref()).map_or(now, |at| at.0);
        let measured = job.status.as_ref().and_then(|status| status.checkpoint.as_ref()?.took_seconds);
        let save_s = measured.and_then(|s| u64::try_from(s).ok()).unwrap_or(DEFAULT_CHECKPOINT_UPLOAD_S);
        let grace_s = valid.rental.as_ref().map_or(0, |workload| u64::try_from(workload.stop_grace_s).unwrap_or(0));
        Self {
            now,
            deadline: deadline::of(job, valid),
            patience_until: (!valid.patience.is_zero() && !moved).then(|| later(waits_since, valid.patience)),
            max_price_per_hour: valid.max_price_per_hour,
            look,
            interval_s: valid.checkpoint.as_ref().map(|c| u64::try_from(c.interval_s).unwrap_or(0)),
            stop_s: grace_s.saturating_add(if valid.checkpoint.is_some() { save_s } else { 0 }),
        }
    }

    /// Whether there is anything to decide: without a deadline and patience a job takes the best that is there.
    pub fn matter(&self) -> bool {
        self.deadline.is_some() || self.patience_s() > 0
    }

    /// Seconds for which it may still wait.
    pub(super) fn patience_s(&self) -> u64 {
        self.patience_until.map_or(0, |until| self.left(until))
    }

    /// Seconds that a loss costs at most besides the start of the next machine, which may be slower by this factor in thousandths: it is seen a
    /// look late, and the work since the last save is done again. What is not counted is a host that falls silent: that is no more likely on
    /// spot than on what stays, so nothing can be kept from it.
    pub(super) fn loss_s(&self, slower_milli: u64) -> u64 {
        let again = u128::from(self.interval_s.unwrap_or(0)) * u128::from(slower_milli.max(1000));
        u64::try_from(again.div_ceil(1000)).unwrap_or(u64::MAX).saturating_add(self.look_s())
    }

    /// Time between two looks in seconds, at least one.
    pub(super) fn look_s(&self) -> u64 {
        self.look.as_secs().max(1)
    }

    /// Seconds until then; none if it is over.
    pub(super) fn left(&self, until: Timestamp) -> u64 {
        u64::try_from(until.duration_since(self.now).as_secs()).unwrap_or(0)
    }
}
