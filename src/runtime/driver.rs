//! Drives the reconcilers in production: many keys at once, never one key twice at once, and a quiet end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tradewind_core::Clock;

use super::inbox::Inbox;
use super::queue::Work;
use super::reconciler::{Failure, Reconciler, Wake};
use crate::context::Context;
use crate::telemetry::metrics;

/// How often wishes of controllers are collected while reconciles run. Nothing runs, nothing is polled.
const COLLECT_EVERY: Duration = Duration::from_millis(20);

/// How the end of a [`Driver`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every reconcile ended by itself.
    Quietly,
    /// The limit came first; this many were cut off.
    CutOff(usize),
}

/// The loop between work queue and reconcilers.
pub struct Driver {
    ctx: Arc<Context>,
    inbox: Arc<Inbox>,
    clock: Arc<dyn Clock>,
    reconcilers: BTreeMap<&'static str, Arc<dyn Reconciler>>,
    at_once: usize,
}

struct Running {
    tasks: JoinSet<Result<Wake, Failure>>,
    /// By task, so that one that panics is still known by its key.
    work: HashMap<Id, (Work, Duration)>,
    per_controller: BTreeMap<&'static str, usize>,
}

impl Driver {
    /// A driver that runs at most `at_once` reconciles of each controller at the same time: separate bounds, so that rentals
    /// waiting for a slow provider keep no seat from the others.
    pub fn new(ctx: Arc<Context>, inbox: Arc<Inbox>, reconcilers: Vec<Arc<dyn Reconciler>>, at_once: usize) -> Self {
        let clock = Arc::clone(&ctx.clock);
        let reconcilers = reconcilers.into_iter().map(|r| (r.name(), r)).collect();
        Self { ctx, inbox, clock, reconcilers, at_once }
    }

    /// Works until `stop`, then lets what runs finish for at most `limit`. Dropping the future cuts everything off at once.
    pub async fn run(&self, stop: &CancellationToken, limit: Duration) -> Drained {
        let mut running = Running { tasks: JoinSet::new(), work: HashMap::new(), per_controller: BTreeMap::new() };
        while !stop.is_cancelled() {
            self.inbox.ask(self.ctx.take_asked());
            self.start_due(&mut running);
            let due_in = self.inbox.next_in(|name| self.has_seat(&running, name));
            let busy = !running.tasks.is_empty();
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = running.tasks.join_next_with_id(), if busy => self.finish(&mut running, ended),
                () = self.inbox.rings() => {}
                () = tokio::time::sleep(due_in.unwrap_or(Duration::MAX)), if due_in.is_some() => {}
                () = tokio::time::sleep(COLLECT_EVERY), if busy => {}
            }
        }
        self.drain(running, limit).await
    }

    async fn drain(&self, mut running: Running, limit: Duration) -> Drained {
        tracing::info!(running = running.tasks.len(), limit_s = limit.as_secs(), "Finishing what runs");
        let finish = async {
            while let Some(ended) = running.tasks.join_next_with_id().await {
                self.finish(&mut running, ended);
            }
        };
        if tokio::time::timeout(limit, finish).await.is_ok() {
            return Drained::Quietly;
        }
        for (work, _) in running.work.values() {
            tracing::warn!(controller = work.0, object.name = %work.1, "Cutting off a reconcile that does not end");
        }
        let left = running.tasks.len();
        running.tasks.shutdown().await;
        Drained::CutOff(left)
    }

    fn has_seat(&self, running: &Running, controller: &str) -> bool {
        running.per_controller.get(controller).copied().unwrap_or(0) < self.at_once
    }

    fn start_due(&self, running: &mut Running) {
        loop {
            let Some(work) = self.inbox.take(|name| self.has_seat(running, name)) else { return };
            let Some(reconciler) = self.reconcilers.get(work.0) else {
                tracing::error!(controller = work.0, "Nobody reconciles this");
                self.inbox.done(&work, None);
                continue;
            };
            *running.per_controller.entry(work.0).or_default() += 1;
            let task = one(Arc::clone(reconciler), work.clone());
            let id = running.tasks.spawn(task).id();
            running.work.insert(id, (work, self.clock.monotonic()));
        }
    }

    fn finish(&self, running: &mut Running, ended: Result<(Id, Result<Wake, Failure>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(Failure::new("Panic", format!("the reconcile broke off: {error}")))),
        };
        let Some((work, since)) = running.work.remove(&id) else { return };
        if let Some(count) = running.per_controller.get_mut(work.0) {
            *count -= 1;
        }
        let elapsed = self.clock.monotonic().saturating_sub(since);
        let outcome = match &result {
            Ok(_) => "ok",
            Err(failure) if failure.benign => "retry",
            Err(_) => "error",
        };
        metrics().reconciled(work.0, outcome, elapsed);
        match result {
            Ok(Wake::OnChange) => self.inbox.done(&work, None),
            Ok(Wake::After(wait, _)) => self.inbox.done(&work, Some(wait)),
            Err(failure) => {
                metrics().reconcile_failed(work.0, failure.reason);
                self.inbox.failed(&work, failure.benign);
            }
        }
    }
}

/// One reconcile in its span.
async fn one(reconciler: Arc<dyn Reconciler>, work: Work) -> Result<Wake, Failure> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (controller, key) = work;
    let id = COUNT.fetch_add(1, Ordering::Relaxed);
    let span = tracing::info_span!("reconcile", controller, object.namespace = key.namespace, object.name = key.name, reconcile.id = id);
    async {
        let result = reconciler.reconcile(&key).await;
        match &result {
            Ok(wake) => tracing::trace!(?wake, "Reconciled"),
            Err(failure) if failure.benign => tracing::debug!(reason = failure.reason, error = failure.message, "Reconcile will be repeated"),
            Err(failure) => tracing::warn!(reason = failure.reason, error = failure.message, "Reconcile failed, will be repeated"),
        }
        result
    }
    .instrument(span)
    .await
}
