//! The API server goes back to an earlier state: what was true stays true, but some of it nobody knows any more.

use std::collections::BTreeMap;
use std::time::Duration;

use tradewind_api::{RentedMachine, TrainingJob};
use tradewind_cluster::Typed;
use tradewind_core::OrderKey;
use tradewind_protocol::LogEntry;
use tradewind_sim::market::SimTime;

use super::super::wire::Common;
use super::{Checker, Rental, Watched};

/// From an order's write to the moment in which the machine that it may have bought must be visible: until the call, the call itself, and
/// the market's visibility window.
const WINDOW: Duration = Duration::from_secs(5 + 30 + 150);
/// The same, and two looks.
const UNSEEN: Duration = Duration::from_secs(5 + 30 + 150 + 20);

/// What the checker knows of the API server's objects.
#[derive(Clone)]
pub struct Known {
    rentals: BTreeMap<String, Rental>,
    jobs: Vec<Watched>,
}

impl Rental {
    /// True if its object knows of this order, or once did and is gone.
    pub fn knows(&self, key: &OrderKey) -> bool {
        self.knows_label(Some(&key.to_string()))
    }

    /// The same, by a machine's label.
    pub fn knows_label(&self, label: Option<&str>) -> bool {
        let orders = self.object.status.iter().flat_map(|s| &s.orders);
        self.forgotten.is_none() && orders.into_iter().any(|order| Some(order.key.as_str()) == label)
    }
}

impl Rental {
    /// Its object is torn away now.
    fn is_forgotten(&mut self, now: Duration) {
        self.forgotten.get_or_insert(now);
        self.ended_at.get_or_insert(now);
    }
}

impl Checker {
    /// Somebody tears this object away.
    pub fn torn(&mut self, uid: &str, now: Duration) {
        if let Some(rental) = self.rentals.get_mut(uid) {
            rental.is_forgotten(now);
        }
    }

    /// How long machines that no object knew any more lived on: from the end of the visibility window of their order, or from when they
    /// were forgotten if that was later.
    pub fn leaks(&self, common: &Common) -> Vec<Duration> {
        let machines = common.with_market(|market, _| {
            let ended = market.machines().iter().filter(|m| m.has_ended());
            ended
                .map(|m| (m.label.clone().unwrap_or_default(), m.ended_at.map(SimTime::as_duration)))
                .collect::<Vec<_>>()
        });
        let mut leaks = Vec::new();
        for (label, ended) in machines {
            let Some(rental) = label.parse::<OrderKey>().ok().and_then(|key| self.rental_of(&key)) else { continue };
            let torn =
                rental.forgotten.or(self.went_back.map(|(at, _)| at).filter(|_| !rental.knows_label(Some(&label))));
            let (Some(torn), Some(ended), Some(ordered)) = (torn, ended, rental.orders.get(&label)) else { continue };
            if ended > torn {
                leaks.push(ended.saturating_sub(torn.max(*ordered + WINDOW)));
            }
        }
        leaks
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        Known { rentals: self.rentals.clone(), jobs: self.jobs.clone() }
    }

    /// The API server's objects are as they were at `at`.
    pub fn goes_back(&mut self, common: &Common, to: &Known, at: Duration) {
        let now = common.now();
        for (uid, rental) in &mut self.rentals {
            // What was ordered was ordered.
            let orders = std::mem::take(&mut rental.orders);
            if let Some(old) = to.rentals.get(uid) {
                *rental = old.clone();
            } else {
                rental.is_forgotten(now);
            }
            rental.orders.extend(orders);
        }
        for n in 0..self.jobs.len() {
            // What was only offered may be known to nobody now; what was committed never is lost.
            let committed = self.committed(n);
            let old = to.jobs[n].clone();
            let job = &mut self.jobs[n];
            (job.object, job.deleted, job.offered) = (old.object, old.deleted, committed);
            job.parts.clear();
        }
        self.jobs_seen = common.memory.snapshot(TrainingJob::KIND).1;
        self.rentals_seen = common.memory.snapshot(RentedMachine::KIND).1;
        self.went_back = Some((now, now.saturating_sub(at)));
    }

    /// The highest committed step of each attempt.
    pub(super) fn committed(&self, n: usize) -> BTreeMap<u32, u64> {
        let mut steps = BTreeMap::new();
        for entry in self.books.entries(n) {
            if let LogEntry::Checkpoint { manifest, .. } = entry {
                let best = steps.entry(manifest.attempt).or_insert(0);
                *best = manifest.step.max(*best);
            }
        }
        steps
    }

    /// How long a machine may have run without the older state knowing.
    pub(super) fn unknown_after_going_back(&self, created: Duration) -> Duration {
        let Some((at, by)) = self.went_back else { return Duration::ZERO };
        // One that is gone by then counts as missed only once it could not be a new one that is not visible yet.
        if created <= at { by + UNSEEN } else { Duration::ZERO }
    }
}
