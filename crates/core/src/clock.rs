//! Where time and chance come from. Controllers ask a [`Clock`] and nothing else, so that the world simulation decides both.

use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;

/// Wall time, monotonic time and seeded entropy.
pub trait Clock: Send + Sync {
    /// Wall time. May jump; for what people and other machines read.
    fn now(&self) -> Timestamp;
    /// Time since some fixed instant of this process. Never goes back; for limits and leases.
    fn monotonic(&self) -> Duration;
    /// Sixty-four bits that nobody can foretell in production and a seed decides in the simulation.
    fn entropy(&self) -> u64;
}

/// The computer's own clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the monotonic clock")]
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn entropy(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher, RandomState};
        // RandomState is seeded by the operating system; good for jitter and names, not for keys.
        RandomState::new().build_hasher().finish()
    }
}

/// A clock that stands still until it is told to move. Entropy is a seeded sequence.
#[derive(Debug)]
pub struct ManualClock {
    inner: Mutex<Manual>,
}

#[derive(Debug)]
struct Manual {
    start: Timestamp,
    elapsed: Duration,
    state: u64,
}

impl ManualClock {
    /// A clock at `start` whose entropy follows from `seed`.
    pub fn new(start: Timestamp, seed: u64) -> Self {
        Self { inner: Mutex::new(Manual { start, elapsed: Duration::ZERO, state: seed }) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        self.lock().elapsed += by;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Manual> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let inner = self.lock();
        inner.start.checked_add(inner.elapsed).unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.lock().elapsed
    }

    fn entropy(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix, enough for simulations.
        let mut inner = self.lock();
        inner.state = inner.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = inner.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told_and_repeats_by_seed() {
        let a = ManualClock::new(Timestamp::UNIX_EPOCH, 7);
        let b = ManualClock::new(Timestamp::UNIX_EPOCH, 7);
        assert_eq!(a.now(), Timestamp::UNIX_EPOCH);
        a.advance(Duration::from_secs(90));
        assert_eq!(a.now().as_second(), 90);
        assert_eq!(a.monotonic(), Duration::from_secs(90));
        assert_eq!([a.entropy(), a.entropy()], [b.entropy(), b.entropy()]);
        assert_ne!(a.entropy(), a.entropy());
    }
}
