//! How long spot machines live: a mean over all that were watched, of which the newest count most.
//!
//! Machines that came to a good end say as much as those that were taken back: for so long they were *not* lost. So the mean is the time that
//! all of them lived together for each loss, which is the likeliest where losses come at a constant rate. Losses alone would make every pool
//! look as short-lived as its worst hours.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tradewind_core::GpuModel;
use tradewind_planner::DEFAULT_MEAN_LIFE_S;

/// A pool as lives are known of it: the Provider and the model.
pub type Pool = (String, Option<GpuModel>);

/// One or two early losses say little: the assumed life counts beside them as so many machines that were lost.
const ASSUMED: u64 = 3;
/// What is left of a figure after a day, in millionths: half of it after a fortnight, since markets change.
const LEFT_AFTER_A_DAY: u128 = 951_695;
const DAY: Duration = Duration::from_hours(24);
/// Days after which nothing is left.
const FORGOTTEN_AFTER_DAYS: u64 = 700;

/// What was seen of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watched {
    /// Losses in thousandths, since old ones count less.
    pub losses_milli: u64,
    /// Seconds that all machines lived, lost or not.
    pub seconds: u64,
}

impl Watched {
    fn add(&mut self, other: Self) {
        self.losses_milli = self.losses_milli.saturating_add(other.losses_milli);
        self.seconds = self.seconds.saturating_add(other.seconds);
    }

    /// The same after so many days.
    fn aged(mut self, days: u64) -> Self {
        if days > FORGOTTEN_AFTER_DAYS {
            return Self::default();
        }
        let left = |figure: u64| u64::try_from(u128::from(figure) * LEFT_AFTER_A_DAY / 1_000_000).unwrap_or(figure);
        for _ in 0..days {
            self = Self { losses_milli: left(self.losses_milli), seconds: left(self.seconds) };
        }
        self
    }

    fn mean_s(self) -> u64 {
        let seconds = (u128::from(self.seconds) + u128::from(ASSUMED * DEFAULT_MEAN_LIFE_S)) * 1000;
        u64::try_from(seconds / (u128::from(self.losses_milli) + u128::from(ASSUMED * 1000))).unwrap_or(u64::MAX)
    }
}

/// What was seen of all pools.
#[derive(Debug, Default)]
pub struct Lives {
    pools: BTreeMap<Pool, Watched>,
    /// Until when what is known has aged; whole days at a time.
    aged_to: Option<Timestamp>,
}

/// Whole days from one moment to a later one.
fn days_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0) / DAY.as_secs()
}

impl Lives {
    /// A machine of this pool has ended after so many seconds.
    pub fn add(&mut self, pool: Pool, seconds: u64, lost: bool) {
        self.pools.entry(pool).or_default().add(Watched { losses_milli: if lost { 1000 } else { 0 }, seconds });
    }

    /// Lets what is known fade as of now.
    pub fn age(&mut self, now: Timestamp) {
        // A clock that was ahead must not keep everything for ever.
        let since = self.aged_to.filter(|_| !self.pools.is_empty()).unwrap_or(now).min(now);
        let days = days_between(since, now);
        for watched in self.pools.values_mut().filter(|_| days > 0) {
            *watched = watched.aged(days);
        }
        self.pools.retain(|_, watched| *watched != Watched::default());
        let passed = SignedDuration::from_hours(24 * i64::try_from(days).unwrap_or(i64::MAX / 24));
        self.aged_to = Some(since.checked_add(passed).unwrap_or(now));
    }

    /// Takes in what an earlier process knew, which had aged until then.
    pub fn recall(&mut self, known: impl Iterator<Item = (Pool, Watched)>, aged_to: Option<Timestamp>, now: Timestamp) {
        self.age(now);
        let mut earlier = Self { pools: BTreeMap::new(), aged_to };
        for (pool, watched) in known {
            earlier.pools.entry(pool).or_default().add(watched);
        }
        earlier.age(now);
        for (pool, watched) in earlier.pools {
            self.pools.entry(pool).or_default().add(watched);
        }
        // The part of a day that has passed is not lost by a restart, however often there is one.
        self.aged_to = self.aged_to.min(earlier.aged_to);
    }

    /// What is known, and until when it has aged.
    pub fn to_remember(&self) -> (impl Iterator<Item = (&Pool, &Watched)>, Option<Timestamp>) {
        (self.pools.iter(), self.aged_to)
    }

    /// How long machines live, by pool.
    pub fn means(&self) -> BTreeMap<Pool, u64> {
        self.pools.iter().map(|(pool, watched)| (pool.clone(), watched.mean_s())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        ("p".to_owned(), Some(GpuModel::normalise("RTX 4090", 0)))
    }

    fn day(n: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + n * 86_400).unwrap()
    }

    fn mean(lives: &Lives) -> u64 {
        lives.means().get(&pool()).copied().unwrap_or(DEFAULT_MEAN_LIFE_S)
    }

    fn some() -> Lives {
        let mut lives = Lives::default();
        (0..100).for_each(|_| lives.add(pool(), 3600, false));
        (0..3).for_each(|_| lives.add(pool(), 1200, true));
        lives
    }

    #[test]
    fn machines_that_end_well_count_as_much_as_those_that_are_lost() {
        // 101 hours with three losses, and 6 hours with three that are assumed.
        assert_eq!(mean(&some()), (101 + 6) * 3600 / 6);
        let mut unlucky = Lives::default();
        (0..100).for_each(|_| unlucky.add(pool(), 1200, true));
        assert_eq!(mean(&unlucky), (100 * 1200 + 6 * 3600) / 103);
    }

    #[test]
    fn what_was_seen_long_ago_counts_less_and_less() {
        let mut lives = some();
        lives.age(day(0));
        lives.age(day(0) + SignedDuration::from_hours(23));
        assert_eq!(mean(&lives), 64_200, "nothing fades within a day");
        // In two ways the same: looked at each hour, and once.
        (0..14 * 24).for_each(|hour| lives.age(day(0) + SignedDuration::from_hours(hour)));
        lives.age(day(14));
        let mut once = some();
        once.age(day(0));
        once.age(day(14));
        assert_eq!(mean(&lives), mean(&once));
        let half = (101 * 3600 / 2 + 6 * 3600) * 10 / 45;
        assert!(mean(&once).abs_diff(half) < 100, "half of both is left after a fortnight: {}", mean(&once));
        once.age(day(2000));
        assert!(once.means().is_empty(), "nothing is left");
        once.add(pool(), 1200, true);
        once.age(day(2000));
        assert_eq!(mean(&once), (1200 + 6 * 3600) / 4, "what is learned after a long silence is new");
    }

    #[test]
    fn restarts_neither_stop_nor_hasten_the_fading() {
        let mut lives = some();
        lives.age(day(0));
        let mut now = day(0);
        for _ in 0..28 {
            now += SignedDuration::from_hours(12);
            let mut next = Lives::default();
            next.age(now);
            let (known, aged_to) = lives.to_remember();
            let known: Vec<_> = known.map(|(pool, watched)| (pool.clone(), *watched)).collect();
            next.recall(known.into_iter(), aged_to, now);
            lives = next;
        }
        let mut steady = some();
        steady.age(day(0));
        steady.age(now);
        assert_eq!(mean(&lives), mean(&steady));
    }

    #[test]
    fn absurd_figures_and_clocks_do_no_harm() {
        let mut lives = Lives::default();
        let absurd = Watched { losses_milli: u64::MAX, seconds: u64::MAX };
        lives.recall([(pool(), absurd), (pool(), absurd)].into_iter(), Some(Timestamp::MAX), day(0));
        assert!(mean(&lives) > 0);
        lives.age(day(14));
        assert!(mean(&lives) > 0);
        lives.recall([(pool(), absurd)].into_iter(), Some(Timestamp::MIN), day(14));
        lives.age(Timestamp::MAX);
        assert!(lives.means().is_empty());
    }
}
