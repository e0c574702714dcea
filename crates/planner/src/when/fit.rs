//! What the records say, in the slots and lanes of the dynamic programme.

use super::Situation;
use super::model::{MOST_S, Terms};
use super::record::{Outlook, Rates};
use super::table::{Ageing, Era, Lane, Model, SpotModel, lane_begin, lane_of, lane_slots};

/// Spans of time from now, in hours, in which the same is expected.
const ERAS_H: [(f64, f64); 6] = [(0.0, 1.0), (1.0, 3.0), (3.0, 6.0), (6.0, 12.0), (12.0, 24.0), (24.0, f64::INFINITY)];
/// However seldom a pool is up, it may be the one that was lost last.
const LEAST_LAST: f32 = 0.02;

/// What a model is fitted from.
pub(crate) struct Fit<'a> {
    pub(crate) situation: &'a Situation<'a>,
    /// Indices of the spot pools.
    pub(crate) spot: &'a [usize],
    /// What is expected of each of them.
    pub(crate) outlooks: &'a [Outlook],
    pub(crate) slot_s: f64,
}

impl Fit<'_> {
    pub(crate) fn model(&self, terms: Terms) -> Model {
        let situation = self.situation;
        let rates = self.rates(f64::INFINITY);
        let spot = rates.iter().enumerate().map(|(k, r)| SpotModel {
            price: self.dollars(self.price(k)),
            speed: situation.pools[self.spot[k]].speed_milli as f32 / terms.speed_milli as f32,
            found_lane: lane_of(r.mean_life_s(true, 0.0) / self.slot_s),
        });
        let order = self.order(&rates);
        Model {
            slot_s: self.slot_s,
            changeover: ((situation.changeover.mean_s as f64).min(MOST_S) / self.slot_s) as f32,
            on_demand: self.dollars(terms.price.micros() as f64),
            spot: spot.collect(),
            eras: ERAS_H.into_iter().map(|era| self.era(era, &order)).collect(),
            time_left: ((terms.slack_s + terms.work_s) / self.slot_s) as f32,
            deadline: situation.deadline_in_s.is_some(),
        }
    }

    fn rates(&self, later_s: f64) -> Vec<Rates> {
        self.outlooks.iter().map(|o| o.at(later_s)).collect()
    }

    /// Dollars a slot.
    fn dollars(&self, micros_per_hour: f64) -> f32 {
        (micros_per_hour / 1e6 * self.slot_s / 3600.0) as f32
    }

    /// Mean price in micro-dollars an hour.
    fn price(&self, k: usize) -> f64 {
        let pool = &self.situation.pools[self.spot[k]];
        pool.record.mean_price().unwrap_or(pool.price_per_hour.micros() as f64).max(0.0)
    }

    /// The better of two that are up first: the price of an hour of work, launches included, over a life found at random.
    fn order(&self, rates: &[Rates]) -> Vec<usize> {
        let merit = |k: usize| {
            let life = rates[k].mean_life_s(true, 0.0).max(1.0);
            let speed = f64::from(self.situation.pools[self.spot[k]].speed_milli);
            self.price(k) / speed * (life + self.situation.changeover.mean_s as f64) / life
        };
        let mut order: Vec<usize> = (0..self.spot.len()).collect();
        order.sort_by(|a, b| merit(*a).total_cmp(&merit(*b)).then(a.cmp(b)));
        order
    }

    /// The last sight of a pool: up or down, its age by now, and how long ago that was.
    fn seen(&self, k: usize) -> Option<(bool, u64, u64)> {
        let pool = &self.situation.pools[self.spot[k]];
        let (up, age, ago) = pool.record.last_seen(self.situation.now_s)?;
        Some(match pool.up {
            Some(now) if now != up => (now, 0, 0),
            Some(_) => (up, age, 0),
            None => (up, age, ago),
        })
    }

    /// Probability that a pool is up so many seconds from now.
    fn share(&self, k: usize, rates: &Rates, later_s: f64) -> f32 {
        if !later_s.is_finite() {
            return rates.up_share as f32;
        }
        let later = later_s as u64;
        let seen = self.seen(k).map(|(up, age, ago)| (up, age.saturating_add(later), ago.saturating_add(later)));
        rates.belief(seen) as f32
    }

    /// How likely a life of this kind ends within a slot, by lane.
    fn ends(&self, up: bool, rates: &Rates) -> Lane {
        std::array::from_fn(|lane| {
            let begin = f64::from(lane_begin(lane)) * self.slot_s;
            let end = begin + f64::from(lane_slots(lane)) * self.slot_s;
            (1.0 - (-rates.rate(up, begin, end) * self.slot_s).exp()) as f32
        })
    }

    /// How likely a pool comes up within a slot if all are down, by the age of that state. The pool that was lost last (this one, with
    /// the probability `last`) has that age; the others are down for longer.
    fn rises(&self, k: usize, rates: &Rates, last: f32, later_s: f64) -> Lane {
        let long = match self.seen(k) {
            Some((false, age, _)) if later_s.is_finite() => rates.rate_at(false, age as f64 + later_s),
            _ => 1.0 / rates.mean_life_s(false, 0.0).max(1.0),
        };
        let long = (1.0 - (-long * self.slot_s).exp()) as f32;
        self.ends(false, rates).map(|own| own * last + long * (1.0 - last))
    }

    fn era(&self, (from_h, until_h): (f64, f64), order: &[usize]) -> Era {
        let middle_s = f64::midpoint(from_h, until_h) * 3600.0;
        let rates = self.rates(middle_s);
        let shares: Vec<f32> = rates.iter().enumerate().map(|(k, r)| self.share(k, r, middle_s)).collect();
        // Which is up and the best of all but one.
        let best = |without: Option<usize>| {
            let mut rest = 1.0;
            let others = order.iter().filter(|o| Some(**o) != without);
            let shares = others.map(|o| {
                let share = rest * shares[*o];
                rest -= share;
                (*o, share)
            });
            shares.collect::<Vec<_>>()
        };
        let mut last = vec![0.0; rates.len()];
        for (k, share) in best(None) {
            last[k] = share.max(LEAST_LAST);
        }
        let all: f32 = last.iter().sum();
        let rises: Vec<Lane> =
            rates.iter().enumerate().map(|(k, r)| self.rises(k, r, last[k] / all, middle_s)).collect();
        let stays: Lane = std::array::from_fn(|lane| rises.iter().map(|rise| 1.0 - rise[lane]).product());
        let sums: Lane = std::array::from_fn(|lane| rises.iter().map(|rise| rise[lane]).sum());
        let comes = rises.iter().map(|rise| std::array::from_fn(|l| rise[l] / sums[l].max(1e-9) * (1.0 - stays[l])));
        Era {
            until: (until_h * 3600.0 / self.slot_s) as f32,
            up: rates.iter().map(|r| Ageing::new(self.ends(true, r))).collect(),
            down: Ageing::new(std::array::from_fn(|lane| 1.0 - stays[lane])),
            comes: comes.collect(),
            after: (0..rates.len()).map(|k| best(Some(k))).collect(),
        }
    }
}
