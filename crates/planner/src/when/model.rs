//! The model that the dynamic programme is computed from, fitted to the records; kept while it holds.

use tradewind_core::{Capacity, Money};

use super::fit::Fit;
use super::record::{Outlook, Rates};
use super::table::Table;
use super::{Pool, Situation};

/// Lanes that a table may have: what bounds the time of one decision.
const MOST_LANES: f64 = 30_000.0;
/// A table is computed anew for what was learned, but not more often than this, in seconds.
const REFIT_S: u64 = 3600;
/// Shortest slot in seconds; looks that come more often share one.
const LEAST_SLOT_S: u64 = 300;
/// Slots that a changeover takes at most.
const MOST_CHANGEOVER_SLOTS: f64 = 8.0;
/// Longest work and changeover that are told apart, in seconds: 32 years.
pub(crate) const MOST_S: f64 = 1e9;
/// Slots of slack beyond the work left that are told apart at most.
const MOST_SLACK_SHARE: f64 = 3.0;

/// What is kept from one decision of a job to the next, so that most decisions are quick. Dropping it changes no decision by more
/// than what the records have learned since it was made.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    pub(crate) solved: Option<Solved>,
}

impl Memory {
    /// Nothing kept.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A table and what it was computed from.
#[derive(Debug, Clone)]
pub(crate) struct Solved {
    pub(crate) table: Table,
    /// Expectations of the spot pools, in the table's order.
    pub(crate) rates: Vec<Rates>,
    /// Indices of the spot pools.
    pub(crate) spot: Vec<usize>,
    versions: u64,
    made_s: i64,
    on_demand: Money,
    deadline: bool,
}

/// Terms of the on-demand pool that the rest is measured by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Terms {
    pub(crate) price: Money,
    pub(crate) speed_milli: u32,
    /// Seconds that can be lost, beyond what is kept for the longest changeover; without a deadline the patience left.
    pub(crate) slack_s: f64,
    /// Work left, in seconds on demand.
    pub(crate) work_s: f64,
}

/// Whether a pool is spot that can be reckoned with.
pub(crate) fn is_spot(pool: &Pool<'_>) -> bool {
    pool.capacity == Capacity::Spot && pool.speed_milli > 0 && pool.price_per_hour >= Money::ZERO
}

impl Memory {
    /// The table for this situation, computed anew if it does not reach or its model is old.
    pub(crate) fn solved(&mut self, situation: &Situation<'_>, terms: Terms) -> &Solved {
        let spot: Vec<usize> = (0..situation.pools.len()).filter(|i| is_spot(&situation.pools[*i])).collect();
        let versions = spot.iter().fold(0_u64, |sum, i| sum.wrapping_add(situation.pools[*i].record.version()));
        let keeps = self.solved.as_ref().is_some_and(|old| {
            let (slack, work) = old.table.reach_s();
            let fresh = old.versions == versions || situation.now_s.abs_diff(old.made_s) < REFIT_S;
            old.spot == spot
                && fresh
                && old.on_demand == terms.price
                && old.deadline == situation.deadline_in_s.is_some()
                && terms.work_s <= work
                && (terms.slack_s <= slack * 1.05 || slack >= MOST_SLACK_SHARE * work)
        });
        if !keeps {
            self.solved = None;
        }
        self.solved.get_or_insert_with(|| solve(situation, terms, spot, versions))
    }
}

fn solve(situation: &Situation<'_>, terms: Terms, spot: Vec<usize>, versions: u64) -> Solved {
    let look_s = situation.look_s.max(1);
    let outlooks: Vec<Outlook> = spot.iter().map(|i| situation.pools[*i].record.outlook(look_s)).collect();
    let rates: Vec<Rates> = outlooks.iter().map(|o| o.at(0.0)).collect();
    let changeover_s = (situation.changeover.mean_s as f64).min(MOST_S);
    let deadline = situation.deadline_in_s.is_some();
    let work_s = terms.work_s.clamp(1.0, MOST_S);
    let slack_s = terms.slack_s.clamp(0.0, work_s * MOST_SLACK_SHARE);
    let lanes = (3 * spot.len() + 2) as f64;
    let mut looks = LEAST_SLOT_S.div_ceil(look_s) as f64;
    looks = looks.max((changeover_s / MOST_CHANGEOVER_SLOTS / look_s as f64).ceil());
    if !deadline {
        looks = looks.max((changeover_s * 1.25 / look_s as f64).ceil());
    }
    let cells = |looks: f64| {
        let slot = looks * look_s as f64;
        (slack_s / slot + 2.0) * ((work_s + changeover_s) / slot + 3.0)
    };
    while cells(looks) * lanes > MOST_LANES {
        looks = (looks * 1.25).ceil();
    }
    let slot_s = looks * look_s as f64;
    let model = Fit { situation, spot: &spot, outlooks: &outlooks, slot_s }.model(terms);
    let slack_slots = (slack_s / slot_s).ceil() as usize + 1;
    let work_slots = ((work_s + changeover_s) / slot_s).ceil() as usize + 2;
    let table = Table::solve(model, slack_slots, work_slots);
    Solved { table, rates, spot, versions, made_s: situation.now_s, on_demand: terms.price, deadline }
}
