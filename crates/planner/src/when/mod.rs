//! When to run: take spot, stay, wait, go on demand, or move, so that the work is done by the deadline at the least expected cost.
//!
//! [`decide`] is one function of a [`Situation`] and of the [`Record`]s of its pools. What is safe is exact integer arithmetic
//! (`safety`): an action is allowed only if after its worst outcome on demand would still be in time. Among the safe actions the
//! cheapest in expectation is taken, from a small dynamic programme (`table`) over time left, work left, what is held, and the
//! age of the best pool's life; it is kept in [`Memory`] and computed again when the records have changed.

// Expectations are estimates in f64; whatever must be exact (deadlines, prices that are told) is in integers.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod choose;
mod fit;
mod model;
mod record;
mod safety;
mod table;

use tradewind_core::{Capacity, Money};

pub use choose::decide;
pub use model::Memory;
pub use record::Record;
pub use safety::{Earliest, checkpoint_interval_s, earliest_finish, latest_start};

/// One place where a machine (or the whole gang) can be had.
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a> {
    /// Spot may be taken away at any time; on demand is ours until we end it.
    pub capacity: Capacity,
    /// Price now, for all machines of the job.
    pub price_per_hour: Money,
    /// Work done a second, in thousandths: 1000 = as the work is measured.
    pub speed_milli: u32,
    /// Whether it can be had now; `None` = not known. On demand is taken as up unless it is known not to be.
    pub up: Option<bool>,
    /// What was seen of it, up to now.
    pub record: &'a Record,
}

/// What a launch costs in time before useful work goes on, in seconds: provisioning, set-up, restore and work done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changeover {
    /// On average.
    pub mean_s: u64,
    /// At most: what the deadline is kept with.
    pub max_s: u64,
    /// What comes on top at most where a machine was taken away: until that is seen, and work done again on the pool to fall back on.
    pub loss_s: u64,
    /// What comes on top at most where a machine is left: until it has ended.
    pub leave_s: u64,
}

impl Changeover {
    /// What comes on top at most for whoever holds a machine that may be taken away.
    pub(crate) fn risk_s(&self) -> u64 {
        self.loss_s.max(self.leave_s)
    }
}

/// What is held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Index of its pool.
    pub pool: usize,
    /// Seconds since its launch.
    pub age_s: u64,
    /// Whether its changeover is over.
    pub ready: bool,
}

/// What can be known of pools that are not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Whether each pool is up is seen at every look.
    Free,
    /// It shows by trying to launch: a try that fails takes `attempt_s` and costs nothing, and what is held goes on meanwhile.
    Try {
        /// Seconds of a try that fails.
        attempt_s: u64,
    },
}

/// All that a decision is made from. Durations in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Now, on the clock of the pools' records.
    pub now_s: i64,
    /// Work left, at a speed of 1000 thousandths.
    pub work_s: u64,
    /// Time left until the deadline; `None` = there is none.
    pub deadline_in_s: Option<u64>,
    /// Without a deadline: how long it may still wait for a better offer.
    pub patience_s: u64,
    /// Cost of a launch in time.
    pub changeover: Changeover,
    /// Time between two looks as a rule.
    pub look_s: u64,
    /// Time until the next look; what is decided holds until then.
    pub next_look_s: u64,
    /// Whether a spot machine that is up now is sure to stay until the next look.
    pub sure_until_look: bool,
    /// What is known of pools.
    pub sight: Sight,
    /// A pool dearer than this is waited out while time allows.
    pub max_price_per_hour: Option<Money>,
    /// Where a machine can be had.
    pub pools: &'a [Pool<'a>],
    /// What is held.
    pub held: Option<Held>,
    /// Whether what is held may be let go for nothing, to wait; else it is kept, or left for another.
    pub lets_go: bool,
}

/// What to do until the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Keep what is held.
    Hold,
    /// Launch in this pool and let go of what is held. Where sight is by trying and the try fails, ask again.
    Launch(usize),
    /// Hold nothing: let go of what is held, or go on waiting.
    Wait,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No work is left.
    Done,
    /// There is no pool that could be used at all.
    NoPool,
    /// No placement keeps the deadline: this is the earliest finish, so late in seconds.
    TooLate {
        /// By how much it will be late at the latest.
        late_by_s: u64,
    },
    /// To stay as it is would not be sure to keep the deadline, or could come to nothing any more.
    LastSafeMoment,
    /// It costs the least in expectation.
    Cheapest {
        /// Expected extra cost of the next best action; `None` = there was no other.
        saves: Option<Money>,
    },
}

/// A decision and what to tell about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// When to look again at the latest.
    pub look_again_in_s: u64,
    /// For how long waiting is safe and may come to something; 0 = on demand is needed now, `None` = no deadline, or nothing to launch.
    pub wait_ends_in_s: Option<u64>,
    /// Expected cost until the work is done.
    pub expected_cost: Money,
    /// Expected time until the work is done.
    pub expected_finish_s: u64,
}
