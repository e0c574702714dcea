//! Spot pools as they were seen: for how long each had something to rent, and what it was.
//!
//! A pool is what comes and goes together as far as anybody can see: the spot offers of one account for so many GPUs of one model in one
//! region. What a job may wait for is the last offer of a pool that has none now.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tradewind_core::{Capacity, GpuModel, Offer};
use tradewind_planner::when::Record;

/// After so long without an offer a pool is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(14 * 24);
/// Pools that are remembered: a market that has a new name for a region in each list fills no memory.
const MOST: usize = 2000;
/// Looks further apart than this leave a gap of which nothing is learned: nobody wanted offers meanwhile.
const UNBROKEN: Duration = Duration::from_mins(10);

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolId {
    /// Name of the Provider.
    pub provider: String,
    /// Model of its GPUs.
    pub gpu: Option<GpuModel>,
    /// How many GPUs a machine has.
    pub gpu_count: u32,
    /// Region or country.
    pub region: String,
    /// Spot or on demand.
    pub capacity: Capacity,
}

impl PoolId {
    /// The pool of an offer.
    pub fn of(offer: &Offer) -> Self {
        Self {
            provider: offer.provider.clone(),
            gpu: offer.gpu.clone(),
            gpu_count: offer.gpu_count,
            region: offer.region.clone(),
            capacity: offer.capacity,
        }
    }
}

/// What is known of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    record: Record,
    /// Its cheapest offer when it was last up.
    last: Offer,
    /// When that was, in seconds of wall time: a later process goes on with it.
    at_s: i64,
}

/// All spot pools that were seen lately.
#[derive(Debug, Default)]
pub struct Pools {
    seen: BTreeMap<PoolId, Seen>,
    /// When the newest list of each account was read, in seconds of wall time.
    listed: BTreeMap<String, i64>,
}

impl Pools {
    /// Takes in a complete list of the offers of an account. Gives back whether a pool came or went.
    pub fn see(&mut self, provider: &str, now: Timestamp, offers: &[Offer]) -> bool {
        let before = self.listed.insert(provider.to_owned(), now.as_second());
        let is_up = |seen: &Seen| before == Some(seen.at_s);
        let mut news = false;
        let now_s = now.as_second();
        let mut up: BTreeMap<PoolId, &Offer> = BTreeMap::new();
        for offer in offers.iter().filter(|offer| offer.capacity == Capacity::Spot) {
            let cheapest = up.entry(PoolId::of(offer)).or_insert(offer);
            if offer.price_per_hour < cheapest.price_per_hour {
                *cheapest = offer;
            }
        }
        for (id, seen) in self.seen.iter_mut().filter(|(id, _)| id.provider == provider) {
            if !up.contains_key(id) {
                news |= is_up(seen);
                seen.record.see(false, now_s, UNBROKEN.as_secs());
            }
        }
        for (id, offer) in up {
            let new = || Seen { record: Record::new(), last: offer.clone(), at_s: now_s };
            news |= !self.seen.get(&id).is_some_and(is_up);
            let seen = self.seen.entry(id).or_insert_with(new);
            seen.record.see(true, now_s, UNBROKEN.as_secs());
            seen.record.price_seen(offer.price_per_hour, now_s);
            (seen.last, seen.at_s) = (offer.clone(), now_s);
        }
        self.seen.retain(|_, seen| is_lately(seen, now));
        while self.seen.len() > MOST {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.at_s).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.seen.remove(&id));
        }
        news
    }

    /// The records of these pools; empty ones of those that were never seen.
    pub fn records(&self, ids: &[PoolId]) -> Vec<Record> {
        ids.iter().map(|id| self.seen.get(id).map_or_else(Record::new, |seen| seen.record.clone())).collect()
    }

    /// Last offers of the pools of these accounts that have none now: what a job may wait for.
    pub fn absent(&self, allowed: impl Fn(&str) -> bool) -> Vec<Offer> {
        let gone = |(id, seen): &(&PoolId, &Seen)| {
            allowed(&id.provider) && self.listed.get(&id.provider).is_some_and(|newest| seen.at_s < *newest)
        };
        self.seen.iter().filter(gone).map(|(_, seen)| seen.last.clone()).collect()
    }

    /// What is to be remembered: at most so many pools, those that were up last.
    pub fn to_remember(&self, most: usize) -> Vec<Seen> {
        let mut seen: Vec<Seen> = self.seen.values().filter(|seen| seen.record.is_sound()).cloned().collect();
        seen.sort_by_key(|seen| Reverse(seen.at_s));
        seen.truncate(most);
        seen
    }

    /// Takes what an earlier process saw. What this one has seen itself counts more.
    pub fn recall(&mut self, remembered: Vec<Seen>, now: Timestamp) {
        for seen in remembered {
            if seen.record.is_sound() && seen.last.capacity == Capacity::Spot && is_lately(&seen, now) {
                self.seen.entry(PoolId::of(&seen.last)).or_insert(seen);
            }
        }
    }
}

/// Whether a pool was up so lately that it is worth while to remember it. A clock that was wrong makes no memory for ever.
fn is_lately(seen: &Seen, now: Timestamp) -> bool {
    now.as_second().abs_diff(seen.at_s) < FORGOTTEN_AFTER.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_machine;

    fn offer(id: &str, dollars: &str, capacity: Capacity) -> Offer {
        Offer { price_per_hour: dollars.parse().unwrap(), capacity, ..test_machine::offer(id) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_last_offer_of_a_pool_that_is_gone_is_what_may_be_waited_for() {
        let mut pools = Pools::default();
        let (dear, cheap) = (offer("1", "0.40", Capacity::Spot), offer("2", "0.30", Capacity::Spot));
        let provider = cheap.provider.clone();
        pools.see(&provider, at(100), &[dear.clone(), cheap.clone(), offer("3", "0.20", Capacity::OnDemand)]);
        assert!(pools.absent(|_| true).is_empty(), "it is up");
        pools.see(&provider, at(200), &[]);
        assert_eq!(pools.absent(|_| true), std::slice::from_ref(&cheap), "the cheapest of its pool");
        assert!(pools.absent(|_| false).is_empty(), "of accounts that may be used");
        pools.see("another", at(300), &[]);
        pools.see(&provider, at(300), &[dear]);
        assert!(pools.absent(|_| true).is_empty());
        let ids = [PoolId::of(&cheap), PoolId { region: "elsewhere".to_owned(), ..PoolId::of(&cheap) }];
        let records = pools.records(&ids);
        assert_eq!(records[1], Record::new());
        assert_ne!(records[0], Record::new());
        pools.see(&provider, at(300) + FORGOTTEN_AFTER, &[]);
        assert!(pools.seen.is_empty());
    }

    #[test]
    fn a_later_process_goes_on_with_what_was_seen() {
        let mut pools = Pools::default();
        let spot = offer("1", "0.40", Capacity::Spot);
        let provider = spot.provider.clone();
        for n in 0..20 {
            let there = if n % 4 < 2 { std::slice::from_ref(&spot) } else { &[] };
            pools.see(&provider, at(n * 60), there);
        }
        let text = serde_json::to_string(&pools.to_remember(10)).unwrap();
        let remembered: Vec<Seen> = serde_json::from_str(&text).unwrap();
        // JSON is read to within the last binary digit.
        let figures = |seen: &[Seen]| format!("{seen:.9?}");
        assert_eq!(figures(&remembered), figures(&pools.to_remember(10)), "every figure survives being written");
        let mut later = Pools::default();
        later.recall(remembered.clone(), at(1500));
        assert_eq!(later.records(&[PoolId::of(&spot)]), [remembered[0].record.clone()]);
        assert!(later.absent(|_| true).is_empty(), "nothing is said to be gone before the account was asked");
        later.see(&provider, at(1510), &[]);
        assert_eq!(later.absent(|_| true), [spot]);

        let mut unsound = remembered.clone();
        unsound[0].last.capacity = Capacity::OnDemand;
        let old = at(1500) + FORGOTTEN_AFTER;
        let mut none = Pools::default();
        none.recall(unsound, at(1500));
        none.recall(remembered, old);
        assert!(none.seen.is_empty());
        assert!(pools.to_remember(0).is_empty());
    }
}
