//! What is safe, exactly: in integers, rounded to the careful side.

use tradewind_core::{Capacity, Money};

use super::{Held, Pool, Situation};

/// Time that this work takes in a pool once it is ready; `None` = never.
pub(crate) fn run_s(work_milli: u128, speed_milli: u32) -> Option<u128> {
    (speed_milli > 0).then(|| work_milli.div_ceil(u128::from(speed_milli)))
}

/// Whether an on-demand pool can be launched now.
fn is_refuge(pool: &Pool<'_>) -> bool {
    pool.capacity == Capacity::OnDemand
        && pool.speed_milli > 0
        && pool.up != Some(false)
        && pool.price_per_hour >= Money::ZERO
}

/// The on-demand pool that finishes first if launched now; the cheaper of equals.
pub(crate) fn refuge(pools: &[Pool<'_>]) -> Option<usize> {
    let candidates = pools.iter().enumerate().filter(|(_, p)| is_refuge(p));
    candidates.min_by_key(|(i, p)| (u32::MAX - p.speed_milli, p.price_per_hour, *i)).map(|(i, _)| i)
}

/// The state that the deadline is kept from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    /// Time left.
    pub(crate) time_s: u128,
    /// Work left in thousandths of a second.
    pub(crate) work_milli: u128,
    /// Speed on demand.
    pub(crate) speed_milli: u32,
    /// Longest changeover, with what comes on top.
    pub(crate) max_s: u128,
}

impl Ground {
    /// Seconds that may still be lost before on demand has to be launched; `None` = it would be late already.
    pub(crate) fn spare_s(&self) -> Option<u128> {
        let need = run_s(self.work_milli, self.speed_milli)?.checked_add(self.max_s)?;
        self.time_s.checked_sub(need)
    }

    /// This after some time, of which all but `useless_s` did work at this speed.
    pub(crate) fn after(&self, passed_s: u128, useless_s: u128, speed_milli: u32) -> Self {
        let useful = passed_s.saturating_sub(useless_s);
        Self {
            time_s: self.time_s.saturating_sub(passed_s),
            work_milli: self.work_milli.saturating_sub(useful.saturating_mul(u128::from(speed_milli))),
            ..*self
        }
    }

    /// Whether on demand can be launched after this much time with so much of it useless, or the work is done within it.
    ///
    /// Both ends are looked at: on the way there time and work shrink evenly, once the useless part is over.
    pub(crate) fn allows(&self, passed_s: u128, useless_s: u128, speed_milli: u32, sure: bool) -> bool {
        if sure && useless_s < passed_s && self.done_within(passed_s, useless_s, speed_milli) {
            return true;
        }
        // What happens after the deadline can save nothing.
        let passed_s = passed_s.min(self.time_s);
        let useless = useless_s.min(passed_s);
        self.after(useless, useless, speed_milli).spare_s().is_some()
            && self.after(passed_s, useless, speed_milli).spare_s().is_some()
    }

    /// Whether the work is done in time and within this span, whatever happens after it.
    fn done_within(&self, passed_s: u128, useless_s: u128, speed_milli: u32) -> bool {
        run_s(self.work_milli, speed_milli)
            .and_then(|run| run.checked_add(useless_s))
            .is_some_and(|need| need <= passed_s && need <= self.time_s)
    }
}

/// Seconds of changeover that what is held may still need at most.
pub(crate) fn pending_s(held: &Held, max_s: u64) -> u64 {
    if held.ready { 0 } else { max_s.saturating_sub(held.age_s).max(1) }
}

/// Latest start of an on-demand machine, in seconds from now, with which this work is done in time even with the longest
/// changeover; `None` = it would be late already.
pub fn latest_start(deadline_in_s: u64, work_s: u64, speed_milli: u32, changeover_max_s: u64) -> Option<u64> {
    let ground = Ground {
        time_s: deadline_in_s.into(),
        work_milli: u128::from(work_s) * 1000,
        speed_milli,
        max_s: changeover_max_s.into(),
    };
    ground.spare_s().map(|spare| u64::try_from(spare).unwrap_or(u64::MAX))
}

/// The earliest finish that is to be had, where no placement keeps the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earliest {
    /// Index of the pool that finishes first.
    pub pool: usize,
    /// In how many seconds, with the longest changeover.
    pub finish_s: u64,
    /// What it costs until then at the price now.
    pub cost: Money,
}

/// The pool that finishes first, if it is not taken away: what is held goes on without a changeover. On demand before spot where
/// they are equal, then the cheaper. `None` = nothing can be had.
pub fn earliest_finish(situation: &Situation<'_>) -> Option<Earliest> {
    let work = u128::from(situation.work_s) * 1000;
    let changeover = situation.changeover;
    let finish = |index: usize, pool: &Pool<'_>| {
        let wait = match situation.held {
            Some(held) if held.pool == index => pending_s(&held, changeover.max_s),
            Some(_) => changeover.max_s.saturating_add(changeover.leave_s),
            None => changeover.max_s,
        };
        run_s(work, pool.speed_milli).map(|run| u64::try_from(run + u128::from(wait)).unwrap_or(u64::MAX))
    };
    let is_held = |index: usize| situation.held.is_some_and(|h| h.pool == index);
    let open = |index: usize, p: &Pool<'_>| {
        let up = p.up.unwrap_or(p.capacity == Capacity::OnDemand);
        p.price_per_hour >= Money::ZERO && (up || is_held(index))
    };
    let all = situation.pools.iter().enumerate().filter(|(i, p)| open(*i, p));
    let timed = all.filter_map(|(i, p)| finish(i, p).map(|at| (at, p.capacity == Capacity::Spot, p.price_per_hour, i)));
    timed.min().map(|(finish_s, _, price, pool)| Earliest { pool, finish_s, cost: price.for_seconds(finish_s) })
}

/// Seconds between two checkpoints: √(2 × stall × mean life), within what the user set. `least_s` wins over `most_s`.
///
/// Young's first-order optimum ("A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974).
pub fn checkpoint_interval_s(stall_s: u64, mean_life_s: u64, least_s: u64, most_s: u64) -> u64 {
    let product = (u128::from(stall_s) * u128::from(mean_life_s)).saturating_mul(2);
    u64::try_from(product.isqrt()).unwrap_or(u64::MAX).min(most_s).max(least_s)
}
