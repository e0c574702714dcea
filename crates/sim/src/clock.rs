//! The simulator's clock: real time, sped up, or moved by hand. The only module of this crate that reads a clock.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::market::SimTime;

/// Maps real time to the market's.
#[derive(Debug)]
pub struct SimClock {
    epoch: Timestamp,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Market time at `since`.
    base: Duration,
    since: Instant,
    scale: f64,
}

#[expect(clippy::disallowed_methods, reason = "this is the simulator's clock")]
fn instant() -> Instant {
    Instant::now()
}

impl SimClock {
    /// A clock that starts now and runs `scale` times as fast as real time; 0 stands still.
    #[expect(clippy::disallowed_methods, reason = "this is the simulator's clock")]
    pub fn start(scale: f64) -> Self {
        Self { epoch: Timestamp::now(), state: Mutex::new(State { base: Duration::ZERO, since: instant(), scale }) }
    }

    /// The real time at which the market started.
    pub const fn epoch(&self) -> Timestamp {
        self.epoch
    }

    /// Market time now.
    pub fn now(&self) -> SimTime {
        SimTime::from_duration(Self::at(&self.lock(), instant()))
    }

    /// How many times as fast as real time.
    pub fn scale(&self) -> f64 {
        self.lock().scale
    }

    /// Runs at another speed from now on.
    pub fn set_scale(&self, scale: f64) {
        let mut state = self.lock();
        let now = instant();
        *state = State { base: Self::at(&state, now), since: now, scale };
    }

    /// Jumps ahead.
    pub fn advance(&self, by: Duration) {
        let mut state = self.lock();
        state.base = state.base.saturating_add(by);
    }

    fn at(state: &State, now: Instant) -> Duration {
        let real = now.saturating_duration_since(state.since).as_secs_f64();
        let moved = Duration::try_from_secs_f64(real * state.scale).unwrap_or(Duration::ZERO);
        state.base.saturating_add(moved)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the clock panics")
    }
}
