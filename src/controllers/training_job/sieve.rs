//! Which of the offers that fit a decision needs: a market has thousands, and only these are copied for it.

use std::collections::BTreeMap;

use tradewind_core::{Capacity, GpuModel};
use tradewind_planner::Fitting;

use super::groups::latest_done_s;
use super::times::Times;

/// Where only the cheapest count: many more than are ordered, since some will be refused.
const CHEAPEST: usize = 64;
/// Of each pool, where what keeps the deadline may cost the most: more than are ordered at once.
const OF_A_POOL: usize = 8;

/// As [`PoolId`](crate::market::pools::PoolId), borrowed.
type Pool<'a> = (&'a str, Option<&'a GpuModel>, u32, &'a str, Capacity);

/// Asked about offers in the order of their total cost.
#[derive(Debug)]
pub enum Sieve<'a> {
    /// The first so many.
    Cheapest(usize),
    /// The first of each pool, and each that is done before all that cost less, with a start twice as long: how many were taken, and in how
    /// many seconds the soonest is done.
    EachPool(BTreeMap<Pool<'a>, (usize, u64)>),
}

impl<'a> Sieve<'a> {
    /// For a job's decision.
    pub fn new(times: &Times) -> Self {
        if times.deadline.is_some() { Self::EachPool(BTreeMap::new()) } else { Self::cheapest() }
    }

    /// The cheapest of all.
    pub fn cheapest() -> Self {
        Self::Cheapest(CHEAPEST)
    }

    /// Whether this offer is needed, which costs at least as much as those before it.
    pub fn wants(&mut self, fitting: &Fitting<'a>) -> bool {
        match self {
            Self::Cheapest(left) => {
                let wanted = *left > 0;
                *left = left.saturating_sub(1);
                wanted
            }
            Self::EachPool(pools) => {
                let offer = fitting.offer;
                let pool = (
                    offer.provider.as_str(),
                    offer.gpu.as_ref(),
                    offer.gpu_count,
                    offer.region.as_str(),
                    offer.capacity,
                );
                let (taken, soonest) = pools.entry(pool).or_insert((0, u64::MAX));
                let done_s = latest_done_s(&fitting.time);
                let wanted = *taken < OF_A_POOL || done_s < *soonest;
                *taken += usize::from(wanted);
                *soonest = done_s.min(*soonest);
                wanted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tradewind_core::{Money, Offer};
    use tradewind_planner::TimeBreakdown;

    use super::*;
    use crate::test_machine;

    #[test]
    fn a_deadline_sees_each_pool_and_what_is_sooner_done_in_it() {
        let pool = |region: &str| Offer { region: region.to_owned(), ..test_machine::offer("o") };
        let (near, far) = (pool("NO"), pool("SE"));
        let fits = |offer, run_s| {
            let time = TimeBreakdown { run_s, ..TimeBreakdown::default() };
            Fitting { offer, time, hourly: Money::ZERO }
        };
        let mut sieve = Sieve::EachPool(BTreeMap::new());
        for _ in 0..OF_A_POOL {
            assert!(sieve.wants(&fits(&near, 100)));
        }
        assert!(!sieve.wants(&fits(&near, 100)));
        assert!(sieve.wants(&fits(&near, 99)), "dearer, and sooner done");
        assert!(!sieve.wants(&fits(&near, 99)));
        assert!(sieve.wants(&fits(&far, 500)), "another pool");
        let mut sieve = Sieve::cheapest();
        let wanted = (0..1000).filter(|_| sieve.wants(&fits(&near, 1))).count();
        assert_eq!(wanted, CHEAPEST);
    }
}
