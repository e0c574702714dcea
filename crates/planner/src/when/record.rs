//! What was seen of one pool: how long it stays up and down, by age, older sights counting less.

use serde::{Deserialize, Serialize};
use tradewind_core::Money;

/// Buckets of age for which a rate of change is kept apart.
pub(crate) const AGES: usize = 9;
/// Where each bucket of age begins, in seconds: doubling, because most lives are short and a few are very long.
pub(crate) const EDGES: [u64; AGES] = [0, 600, 1200, 2400, 4800, 9600, 19_200, 38_400, 76_800];
/// Changes an hour, by age, of a pool of which nothing is known, down and up: pooled over the half of the public spot traces that
/// was set apart for it (docs/planner.md). Both fall with age.
const PRIOR_PER_HOUR: [[f64; AGES]; 2] =
    [[3.0, 1.6, 1.0, 0.9, 0.5, 0.4, 0.3, 0.2, 0.15], [2.0, 1.4, 1.0, 0.65, 0.45, 0.33, 0.25, 0.16, 0.12]];
/// Share of the time that a pool is up of which nothing is known, and the hours of sights that this guess is worth.
const PRIOR_UP: (f64, f64) = (0.6, 12.0);
/// Share of a look in which a pool may be expected to change at most: the rest keeps every state possible.
const MOST_PER_LOOK: f64 = 0.95;
/// Seconds after which an old price counts half.
const PRICE_HALF_LIFE_S: f64 = 6.0 * 3600.0;

/// Seconds after which a sight counts half.
const HALF_LIFE_S: f64 = 10.0 * 86_400.0;
/// The same for the pace of late: a pool that flaps goes on flapping for hours, not for days.
const LATE_HALF_LIFE_S: f64 = 0.4 * 86_400.0;
/// Changes at which the pool's own pace weighs as much as the prior's.
const PACE_WEIGHT: f64 = 2.0;
/// The same within one bucket of age, against the prior at the pool's pace.
const AGE_WEIGHT: f64 = 20.0;
/// The same for the pace of late, against the pool's usual one.
const LATE_WEIGHT: f64 = 2.0;

/// Which bucket an age lies in.
pub(crate) fn bucket(age_s: u64) -> usize {
    EDGES.iter().rposition(|edge| *edge <= age_s).unwrap_or(0)
}

/// The last sight of a pool, and since when it may have been so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Sight {
    up: bool,
    since_s: i64,
    seen_s: i64,
}

/// What was seen of one pool. The owner keeps it and tells it every sight; the planner only reads.
///
/// Times are seconds on any one clock that does not go back; what comes from an earlier time is taken as of now. It can be written down: one
/// that was read should be asked whether it [`is_sound`](Self::is_sound).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Weighted seconds spent down and up, by age.
    seconds: [[f64; AGES]; 2],
    /// Weighted changes from down and from up, by the age at which they came.
    changes: [[f64; AGES]; 2],
    /// The same two, of late only.
    late_seconds: [[f64; AGES]; 2],
    late_changes: [f64; 2],
    /// To when the weights are counted down.
    as_of_s: Option<i64>,
    last: Option<Sight>,
    price: Option<(f64, i64)>,
    version: u64,
}

impl Record {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether all of it can have been seen: weights and prices are numbers that are not negative.
    pub fn is_sound(&self) -> bool {
        let both = [&self.seconds, &self.changes, &self.late_seconds];
        let weights = both.into_iter().flatten().flatten().chain(&self.late_changes);
        weights.chain(self.price.as_ref().map(|(price, _)| price)).all(|x| x.is_finite() && *x >= 0.0)
    }

    /// Intervals `(up, seconds)` without gaps, oldest first, of which the last is still going on at `now_s`.
    pub fn from_history(intervals: &[(bool, u64)], now_s: i64) -> Self {
        let mut record = Self::default();
        let mut at = intervals.iter().fold(now_s, |at, i| at.saturating_sub_unsigned(i.1));
        for (up, seconds) in intervals {
            record.see(*up, at, u64::MAX);
            at = at.saturating_add_unsigned(*seconds);
        }
        if let Some((up, _)) = intervals.last() {
            record.see(*up, at, u64::MAX);
        }
        record
    }

    /// The pool is seen up or down. `look_s`: how much can pass between two looks of an unbroken watch; after a longer pause it is
    /// not known what was in between, and nothing is learned of it.
    pub fn see(&mut self, up: bool, now_s: i64, look_s: u64) {
        let Some(last) = self.last else {
            self.last = Some(Sight { up, since_s: now_s, seen_s: now_s });
            self.count_down(now_s);
            return;
        };
        let now_s = now_s.max(last.seen_s);
        let gap = now_s.abs_diff(last.seen_s);
        let unbroken = gap <= look_s;
        if unbroken && gap > 0 {
            let seen_age = last.seen_s.abs_diff(last.since_s);
            self.lived(last.up, seen_age, now_s.abs_diff(last.since_s), last.up != up, now_s);
        }
        let since_s = match (last.up == up, unbroken) {
            (true, _) => last.since_s,
            (false, true) => now_s,
            (false, false) => now_s.saturating_sub_unsigned(gap / 2),
        };
        self.last = Some(Sight { up, since_s, seen_s: now_s });
    }

    /// The pool was up (or down) from one age to another, in seconds, and `ended` then, or was no longer watched. This is how
    /// durations come in that were learned elsewhere, such as lives of machines that were let go while they ran.
    pub fn lived(&mut self, up: bool, from_age_s: u64, to_age_s: u64, ended: bool, now_s: i64) {
        self.count_down(now_s);
        let kind = usize::from(up);
        for (index, begin) in EDGES.iter().enumerate() {
            let end = EDGES.get(index + 1).copied().unwrap_or(u64::MAX);
            let part = to_age_s.min(end).saturating_sub(from_age_s.max(*begin));
            self.seconds[kind][index] += part as f64;
            self.late_seconds[kind][index] += part as f64;
        }
        if ended {
            self.changes[kind][bucket(to_age_s.saturating_sub(1))] += 1.0;
            self.late_changes[kind] += 1.0;
            self.version += 1;
        }
    }

    /// The price at this time.
    pub fn price_seen(&mut self, price_per_hour: Money, now_s: i64) {
        let new = price_per_hour.micros() as f64;
        self.price = Some(match self.price {
            None => (new, now_s),
            Some((mean, at)) => {
                let old = (-(now_s.max(at).abs_diff(at) as f64) / PRICE_HALF_LIFE_S).exp2();
                (mean * old + new * (1.0 - old), now_s.max(at))
            }
        });
    }

    /// Mean price lately in micro-dollars an hour, if any was seen.
    pub(crate) fn mean_price(&self) -> Option<f64> {
        self.price.map(|p| p.0)
    }

    /// Changes with every change of the pool that was learned.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn count_down(&mut self, now_s: i64) {
        let as_of = *self.as_of_s.get_or_insert(now_s);
        let passed = now_s.max(as_of).abs_diff(as_of);
        if passed < 600 {
            return;
        }
        let factor = (-(passed as f64) / HALF_LIFE_S).exp2();
        for row in self.seconds.iter_mut().chain(&mut self.changes) {
            for x in row {
                *x *= factor;
            }
        }
        let factor = (-(passed as f64) / LATE_HALF_LIFE_S).exp2();
        self.late_seconds.iter_mut().flatten().chain(&mut self.late_changes).for_each(|x| *x *= factor);
        self.as_of_s = Some(now_s);
    }

    /// Whether it was up when last seen, for how long it had been so by `now_s` if it still is, and how long ago it was seen.
    pub(crate) fn last_seen(&self, now_s: i64) -> Option<(bool, u64, u64)> {
        let last = self.last?;
        let now_s = now_s.max(last.seen_s);
        Some((last.up, now_s.abs_diff(last.since_s), now_s.abs_diff(last.seen_s)))
    }

    /// Estimated rates of change for a watch that looks every `look_s` seconds.
    pub(crate) fn outlook(&self, look_s: u64) -> Outlook {
        let mut per_s = [[0.0; AGES]; 2];
        let mut hastes = [1.0; 2];
        for (kind, row) in per_s.iter_mut().enumerate() {
            let expected: f64 =
                self.seconds[kind].iter().zip(PRIOR_PER_HOUR[kind]).map(|(s, prior)| s * prior / 3600.0).sum();
            let seen: f64 = self.changes[kind].iter().sum();
            let pace = (seen + PACE_WEIGHT) / (expected + PACE_WEIGHT);
            for (index, rate) in row.iter_mut().enumerate() {
                let prior = PRIOR_PER_HOUR[kind][index] / 3600.0 * pace;
                *rate = (self.changes[kind][index] + AGE_WEIGHT) / (self.seconds[kind][index] + AGE_WEIGHT / prior);
            }
            let expected: f64 = self.late_seconds[kind].iter().zip(&*row).map(|(s, rate)| s * rate).sum();
            let haste = (self.late_changes[kind] + LATE_WEIGHT) / (expected + LATE_WEIGHT);
            hastes[kind] = haste;
        }
        let [down_s, up_s] = self.seconds.map(|row| row.iter().sum::<f64>());
        let (share, hours) = PRIOR_UP;
        let up_share = (up_s + share * hours * 3600.0) / (up_s + down_s + hours * 3600.0);
        let steady = Rates { per_s, up_share };
        Outlook { steady, hastes, look_s: look_s.max(1) as f64 }
    }
}

/// What is expected of a pool, now and later: a pool that has changed often of late goes on so for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outlook {
    steady: Rates,
    /// How much faster than that it has changed of late, from down and from up.
    hastes: [f64; 2],
    look_s: f64,
}

impl Outlook {
    /// What is expected so many seconds from now.
    pub(crate) fn at(&self, later_s: f64) -> Rates {
        let mut rates = self.steady;
        for (row, haste) in rates.per_s.iter_mut().zip(self.hastes) {
            let haste = haste.powf((-later_s / LATE_HALF_LIFE_S).exp2());
            for rate in row {
                // Seen at looks only, a change within a look is a share of looks; as a rate that gives the same share.
                *rate = -(1.0 - (*rate * haste * self.look_s).min(MOST_PER_LOOK)).ln() / self.look_s;
            }
        }
        rates
    }
}

/// What is expected of a pool: how fast it changes at which age, and its share of time up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Changes a second from down and from up, by age.
    per_s: [[f64; AGES]; 2],
    /// Share of the time that it is up.
    pub(crate) up_share: f64,
}

impl Rates {
    /// Rate of change a second, on average from one age to another.
    pub(crate) fn rate(&self, up: bool, from_age_s: f64, to_age_s: f64) -> f64 {
        let row = &self.per_s[usize::from(up)];
        let length = to_age_s - from_age_s;
        if length <= 0.0 {
            return row[bucket(from_age_s as u64)];
        }
        let mut sum = 0.0;
        for (index, begin) in EDGES.iter().enumerate() {
            let end = EDGES.get(index + 1).map_or(f64::INFINITY, |e| *e as f64);
            let part = to_age_s.min(end) - from_age_s.max(*begin as f64);
            if part > 0.0 {
                sum += part * row[index];
            }
        }
        sum / length
    }

    /// Rate of change a second at this age.
    pub(crate) fn rate_at(&self, up: bool, age_s: f64) -> f64 {
        self.per_s[usize::from(up)][bucket(age_s as u64)]
    }

    /// Probability of a change within the next `seconds`, at this age.
    pub(crate) fn change(&self, up: bool, age_s: f64, seconds: f64) -> f64 {
        1.0 - (-self.rate(up, age_s, age_s + seconds) * seconds).exp()
    }

    /// Mean seconds from birth to the end of a life (of up or down time).
    pub(crate) fn mean_life_s(&self, up: bool, age_s: f64) -> f64 {
        let row = &self.per_s[usize::from(up)];
        let (mut alive, mut sum) = (1.0, 0.0);
        for (index, rate) in row.iter().enumerate().skip(bucket(age_s as u64)) {
            let begin = (EDGES[index] as f64).max(age_s);
            let rate = rate.max(1e-9);
            match EDGES.get(index + 1) {
                Some(end) => {
                    let stays = (-rate * (*end as f64 - begin)).exp();
                    sum += alive * (1.0 - stays) / rate;
                    alive *= stays;
                }
                None => sum += alive / rate,
            }
        }
        sum
    }

    /// Probability that the pool is up, `ago_s` seconds after it was seen up or down at that age.
    pub(crate) fn belief(&self, seen: Option<(bool, u64, u64)>) -> f64 {
        let Some((up, age, ago)) = seen else { return self.up_share };
        let seen_age = age.saturating_sub(ago) as f64;
        let leave = self.change(up, seen_age, ago as f64);
        let back = if up { 1.0 - self.up_share } else { self.up_share };
        // After it has left its state it is soon anywhere.
        if up { 1.0 - leave * back } else { leave * back }
    }
}
