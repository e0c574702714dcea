//! What the servers share: the market behind its lock, the clock, the runner, the faults.
//!
//! Everything that changes the market goes through [`World::with`], which lets time pass first and hands the effects to the runner
//! while the lock is still held, so that they reach a machine in the order in which they happened.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::clock::SimClock;
use crate::faults::Faults;
use crate::market::{Effect, Market, SimTime};
use crate::runner::Runner;
use crate::runpod::{self, PodLogs};
use crate::vast::Limits;

/// Fetched results (logs, command output) kept.
const RESULTS: usize = 256;

/// The simulation as its servers see it.
pub struct World {
    market: Mutex<Market>,
    /// The clock.
    pub clock: SimClock,
    /// Runs machines' commands.
    pub runner: Arc<Runner>,
    faults: Mutex<Faults>,
    limits: Mutex<BTreeMap<String, Limits>>,
    pod_limits: Mutex<BTreeMap<String, runpod::Limits>>,
    pod_logs: Mutex<PodLogs>,
    results: Mutex<VecDeque<Stored>>,
}

struct Stored {
    token: String,
    text: String,
    asked: bool,
}

/// What a look at a stored result gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing of that name.
    Unknown,
    /// Not uploaded yet: the first look always finds this, as with the real one.
    NotYet,
    /// The text.
    Ready(String),
}

/// Effects under way: await it before saying that a machine is gone.
#[must_use]
pub struct Pending(Vec<oneshot::Receiver<()>>);

impl Pending {
    /// Waits until every kill, wipe and removal is done.
    pub async fn done(self) {
        for effect in self.0 {
            // A runner that is gone has nothing left to wait for.
            let _ = effect.await;
        }
    }
}

impl World {
    /// A world around a market.
    pub fn new(market: Market, clock: SimClock, faults: Faults, runner: Arc<Runner>) -> Self {
        Self {
            market: Mutex::new(market),
            clock,
            runner,
            faults: Mutex::new(faults),
            limits: Mutex::default(),
            pod_limits: Mutex::default(),
            pod_logs: Mutex::default(),
            results: Mutex::default(),
        }
    }

    /// Does something with the market as of now.
    pub fn with<R>(&self, what: impl FnOnce(&mut Market, SimTime) -> R) -> (R, Pending) {
        let mut market = self.market.lock().expect("no holder of the market panics");
        let now = self.clock.now();
        market.advance(now);
        // What has become due is under way before anybody looks at it: a machine that runs has its ports.
        let mut pending = self.perform(&mut market);
        let result = what(&mut market, now);
        pending.0.extend(self.perform(&mut market).0);
        drop(market);
        (result, pending)
    }

    fn perform(&self, market: &mut Market) -> Pending {
        let mut waits = Vec::new();
        for effect in market.take_effects() {
            if let Effect::Start { machine, boot } = effect {
                self.runner.start(market, machine, boot);
            } else {
                waits.extend(self.runner.perform(&effect));
            }
        }
        Pending(waits)
    }

    /// The faults that wait.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("no holder of the faults panics")
    }

    /// What has been seen of RunPod pods' logs.
    pub fn pod_logs(&self) -> MutexGuard<'_, PodLogs> {
        self.pod_logs.lock().expect("no holder of the logs panics")
    }

    /// The request limits of every RunPod account.
    pub fn pod_limits(&self) -> MutexGuard<'_, BTreeMap<String, runpod::Limits>> {
        self.pod_limits.lock().expect("no holder of the limits panics")
    }

    /// The request limits of every Vast.ai account.
    pub fn limits(&self) -> MutexGuard<'_, BTreeMap<String, Limits>> {
        self.limits.lock().expect("no holder of the limits panics")
    }

    /// Keeps a text to be fetched under `token`.
    pub fn store_result(&self, token: String, text: String) {
        let mut results = self.results.lock().expect("no holder of the results panics");
        if results.len() == RESULTS {
            results.pop_front();
        }
        results.push_back(Stored { token, text, asked: false });
    }

    /// Looks a stored text up.
    pub fn fetch_result(&self, token: &str) -> Fetched {
        let mut results = self.results.lock().expect("no holder of the results panics");
        match results.iter_mut().find(|stored| stored.token == token) {
            None => Fetched::Unknown,
            Some(stored) if stored.asked => Fetched::Ready(stored.text.clone()),
            Some(stored) => {
                stored.asked = true;
                Fetched::NotYet
            }
        }
    }
}
