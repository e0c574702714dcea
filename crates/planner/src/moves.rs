//! Whether a running job should move to a better machine: only for a gain that pays for the restart, by a margin, and that has lasted.
//!
//! A price that jitters makes no job move: below the margin nothing happens, a gain must have held without a break, and a job that has
//! just moved stays for a while. Who never gains by more than the margin never moves, whatever the prices do.

use tradewind_core::{Money, Offer};

use crate::cost::estimate;
use crate::knowledge::Knowledge;
use crate::lookup::{Lookup, Paces};
use crate::needs::{Requirements, WorkLeft};
use crate::rank::{Candidate, candidate};

/// When a gain is worth a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveRules {
    /// Least gain as a share of what staying costs, in millionths.
    pub margin_ppm: u32,
    /// Least gain in dollars.
    pub least_gain: Money,
    /// Seconds for which the gain must have held.
    pub held_s: u64,
    /// Seconds for which a job stays on a machine before it thinks of leaving for a better price.
    pub settle_s: u64,
}

impl Default for MoveRules {
    /// A tenth and five cents, for ten minutes, after half an hour. Our own choice: estimates are not truer than that.
    fn default() -> Self {
        Self { margin_ppm: 100_000, least_gain: Money::from_micros(50_000), held_s: 600, settle_s: 1800 }
    }
}

/// How things stand with the machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Running {
    /// Seconds for which the program has run there.
    pub for_s: u64,
    /// Seconds for which moving has paid without a break, as told by [`Verdict::Watch`] and counted by the caller; `None` = it did not
    /// pay when it was last looked at.
    pub gain_held_s: Option<u64>,
    /// Work that is not saved and would be repeated, in seconds on this machine.
    pub unsaved_s: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Moving does not pay; whatever gain there was has ended.
    Stay,
    /// Moving would pay; it is done if that is still so in `for_s` seconds.
    Watch {
        /// What would be gained, the restart paid.
        gain: Money,
        /// Seconds to wait at least.
        for_s: u64,
    },
    /// Move.
    Move {
        /// What is gained, the restart paid.
        gain: Money,
    },
}

/// What it costs to stay on a machine that runs until the work is done: its first start is behind it. `offer` has the price that is paid.
pub fn staying(needs: &Requirements, work: &WorkLeft, known: &Knowledge, offer: &Offer) -> Candidate {
    let lookup = Lookup::new(known);
    let paces = Paces::new(needs, work, &lookup.job, std::iter::once(offer));
    let terms = crate::cost::Terms { running: true, ..lookup.terms(offer) };
    candidate(offer, &estimate(needs.disk_gib, paces.of(offer), &lookup.job, &terms))
}

/// Whether to leave `stay` (from [`staying`]) for `best` (from [`plan`](crate::plan), which counts the start of the new machine).
pub fn verdict(stay: &Candidate, best: &Candidate, running: &Running, rules: &MoveRules) -> Verdict {
    let same = stay.offer.provider == best.offer.provider && stay.offer.id == best.offer.id;
    let repeated_s = times(running.unsaved_s, best.time.run_s, stay.time.run_s);
    let moving = best.cost.total + best.hourly.for_seconds(repeated_s);
    let gain = stay.cost.total - moving;
    let share = stay.cost.total.ratio(rules.margin_ppm.into(), 1_000_000);
    if same || gain <= share || gain < rules.least_gain || gain <= Money::ZERO {
        return Verdict::Stay;
    }
    let settling_s = rules.settle_s.saturating_sub(running.for_s);
    let holding_s = rules.held_s.saturating_sub(running.gain_held_s.unwrap_or(0));
    let not_held = running.gain_held_s.is_none() && rules.held_s > 0;
    match settling_s.max(holding_s) {
        0 if !not_held => Verdict::Move { gain },
        for_s => Verdict::Watch { gain, for_s },
    }
}

/// `seconds` × `to` ÷ `from`, rounded up.
fn times(seconds: u64, to: u64, from: u64) -> u64 {
    let product = u128::from(seconds) * u128::from(to);
    u64::try_from(product.div_ceil(u128::from(from.max(1)))).unwrap_or(u64::MAX)
}
