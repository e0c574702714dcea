//! Whether the machine runs, and whether it reaches the control plane.

use tokio::sync::{RwLock, watch};

/// The state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// All is well.
    On,
    /// It runs, but nobody hears of it.
    CutOff,
    /// It does not run.
    Off,
}

/// Lets calls to the control plane through while there is a way to it.
pub(super) struct Link {
    // Calls hold it for reading, so that none is under way once the state has changed.
    state: RwLock<Power>,
    told: watch::Sender<Power>,
}

impl Default for Link {
    fn default() -> Self {
        Self { state: RwLock::new(Power::On), told: watch::channel(Power::On).0 }
    }
}

impl Link {
    /// Changes the state once calls that are under way have ended.
    pub(super) async fn set(&self, power: Power) {
        let mut state = self.state.write().await;
        *state = power;
        self.told.send_replace(power);
    }

    /// Waits for a state.
    pub(super) async fn until(&self, wanted: impl Fn(Power) -> bool) {
        // The sender lives as long as we do.
        let _ = self.told.subscribe().wait_for(|power| wanted(*power)).await;
    }

    /// Makes a call as soon as there is a way to the control plane.
    pub(super) async fn call<T>(&self, call: impl AsyncFnOnce() -> T) -> T {
        loop {
            self.until(|power| power == Power::On).await;
            let state = self.state.read().await;
            if *state == Power::On {
                return call().await;
            }
        }
    }
}
