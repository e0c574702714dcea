//! Time of the market: microseconds since its start. Nothing here reads a clock.

use std::time::Duration;

/// An instant of the market, in microseconds since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SimTime(u64);

impl SimTime {
    /// The market's start.
    pub const ZERO: Self = Self(0);

    /// So many microseconds after the start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// So long after the start.
    pub fn from_duration(since_start: Duration) -> Self {
        Self(u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX))
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time since the start.
    pub const fn as_duration(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// This instant and `seconds` more; never before this instant.
    pub fn after_seconds(self, seconds: f64) -> Self {
        Self(self.0.saturating_add(micros_of(seconds)))
    }

    /// Microseconds from `earlier` to this instant, 0 if that is later.
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Seconds as whole microseconds, rounded; 0 for what is negative or not a number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating float to integer cast is wanted"
)]
fn micros_of(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}
