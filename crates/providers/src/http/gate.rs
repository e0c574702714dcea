//! Waiting before a call: one bucket per endpoint, one for all of them where the provider counts so, a pause after every 429, and a
//! bounded number of calls at once.
//!
//! Endings (terminate) have their own bucket, or go first in the common one, and need no seat, so that no number of other calls can keep
//! a machine alive.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit};
use tradewind_core::Clock;

/// How often one endpoint may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointLimit {
    /// The adapter's word for the operation.
    pub operation: &'static str,
    /// Time from one call to the next in the long run.
    pub interval: Duration,
    /// How many calls may come at once after a rest.
    pub burst: NonZeroU32,
    /// How long to stay away after a 429 that names no time.
    pub penalty: Duration,
}

/// How often all operations together may be called, where the provider counts requests of an account and not of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommonLimit {
    /// Time from one call to the next in the long run.
    pub interval: Duration,
    /// How many calls may come at once after a rest.
    pub burst: u32,
    /// How many of these are kept for endings. While more endings than that wait, nothing else is called.
    pub for_endings: u32,
    /// How long to stay away after a 429 that names no time.
    pub penalty: Duration,
}

/// Which queue a call stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Ends something that costs money; waits for nothing but its own endpoint.
    Ending,
    /// Everything else.
    Other,
}

/// The rate limits of one provider as seen from one address. Share one among all accounts of a provider that limits by address.
pub struct RateGate {
    clock: Arc<dyn Clock>,
    buckets: BTreeMap<&'static str, Bucket>,
    common: Option<Common>,
    seats: Semaphore,
}

struct Common {
    limit: CommonLimit,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    /// When the bucket is full again.
    rested_at: Duration,
    paused_until: Duration,
}

struct Bucket {
    limiter: DefaultDirectRateLimiter,
    penalty: Duration,
    paused_until: Mutex<Duration>,
}

/// Calls of [`Lane::Other`] that may run at once: bounds memory for answers and connections.
const SEATS: usize = 16;

impl std::fmt::Debug for RateGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateGate").field("operations", &self.buckets.keys()).finish_non_exhaustive()
    }
}

impl RateGate {
    /// A gate with these limits; operations that are not named are not limited.
    pub fn new(limits: &[EndpointLimit], clock: Arc<dyn Clock>) -> Self {
        let bucket = |limit: &EndpointLimit| {
            let interval = limit.interval.max(Duration::from_nanos(1));
            let quota =
                Quota::with_period(interval).expect("an interval above zero is a quota").allow_burst(limit.burst);
            let limiter = RateLimiter::direct(quota);
            Bucket { limiter, penalty: limit.penalty, paused_until: Mutex::new(Duration::ZERO) }
        };
        let buckets = limits.iter().map(|limit| (limit.operation, bucket(limit))).collect();
        Self { clock, buckets, common: None, seats: Semaphore::new(SEATS) }
    }

    /// The same with a limit over all operations together.
    pub fn with_common(mut self, limit: CommonLimit) -> Self {
        self.common = Some(Common { limit, turn: Mutex::default() });
        self
    }

    /// A gate without limits per endpoint: for benchmarks, and for simulators that have none.
    pub fn off(clock: Arc<dyn Clock>) -> Self {
        Self::new(&[], clock)
    }

    /// Waits until `operation` may be called. `Err(wait)` at once if that would be later than `not_after` (monotonic).
    ///
    /// The seat comes last: who waits for a bucket holds no place that others could use.
    pub(super) async fn admit(
        &self,
        operation: &str,
        lane: Lane,
        not_after: Duration,
    ) -> Result<Option<SemaphorePermit<'_>>, Duration> {
        if let Some(bucket) = self.buckets.get(operation) {
            while let Some(wait) = bucket.wait(self.clock.monotonic()) {
                if self.clock.monotonic() + wait > not_after {
                    return Err(wait);
                }
                tokio::time::sleep(wait).await;
            }
        }
        if let Some(common) = &self.common {
            while let Some(wait) = common.wait(lane, self.clock.monotonic()) {
                if self.clock.monotonic() + wait > not_after {
                    return Err(wait);
                }
                tokio::time::sleep(wait).await;
            }
        }
        if lane == Lane::Ending {
            return Ok(None);
        }
        let left = not_after.saturating_sub(self.clock.monotonic());
        let seat = tokio::time::timeout(left, self.seats.acquire()).await.map_err(|_| Duration::ZERO)?;
        Ok(Some(seat.expect("the seats are never closed")))
    }

    /// Keeps everybody away from `operation` for as long as the provider asks, or its penalty.
    pub(super) fn pause(&self, operation: &str, retry_after: Option<Duration>) {
        if let Some(bucket) = self.buckets.get(operation) {
            let until = self.clock.monotonic() + retry_after.unwrap_or_default().max(bucket.penalty);
            let mut paused = bucket.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            *paused = (*paused).max(until);
        }
        if let Some(common) = &self.common {
            self.pause_all(retry_after.unwrap_or_default().max(common.limit.penalty));
        }
    }

    /// Keeps everybody away from all operations, where they have a limit together.
    pub(super) fn pause_all(&self, time: Duration) {
        if let Some(common) = &self.common {
            let mut turn = common.turn.lock().unwrap_or_else(PoisonError::into_inner);
            turn.paused_until = turn.paused_until.max(self.clock.monotonic() + time);
        }
    }
}

impl Common {
    /// `None` = a call was taken out of the bucket and may start now. Endings may empty it, other calls leave some in it.
    fn wait(&self, lane: Lane, now: Duration) -> Option<Duration> {
        let kept = if lane == Lane::Ending { 0 } else { self.limit.for_endings };
        let at_once = self.limit.burst.saturating_sub(kept).max(1) - 1;
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = turn.rested_at.saturating_sub(self.limit.interval * at_once).max(turn.paused_until);
        if earliest > now {
            return Some(earliest.saturating_sub(now) + Duration::from_millis(1));
        }
        turn.rested_at = turn.rested_at.max(now) + self.limit.interval;
        None
    }
}

impl Bucket {
    /// `None` = a call was taken out of the bucket and may start now.
    fn wait(&self, now: Duration) -> Option<Duration> {
        let paused = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner).saturating_sub(now);
        if !paused.is_zero() {
            return Some(paused);
        }
        let refused = self.limiter.check().err()?;
        // A millisecond on top, so that a sleep cut short by the timer's grain does not turn into a busy loop.
        Some(refused.wait_time_from(DefaultClock::default().now()) + Duration::from_millis(1))
    }
}
