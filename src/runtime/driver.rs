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
    let span = tracing::info_span!(
        "reconcile",
        controller,
        object.namespace = key.namespace,
        object.name = key.name,
        reconcile.id = id
    );
    async {
        let result = reconciler.reconcile(&key).await;
        match &result {
            Ok(wake) => tracing::trace!(?wake, "Reconciled"),
            Err(failure) if failure.benign => {
                tracing::debug!(reason = failure.reason, error = failure.message, "Reconcile will be repeated");
            }
            Err(failure) => {
                tracing::warn!(reason = failure.reason, error = failure.message, "Reconcile failed, will be repeated");
            }
        }
        result
    }
    .instrument(span)
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use futures::future::BoxFuture;
    use tokio::sync::Semaphore;
    use tradewind_checkpoints::MemoryStore;
    use tradewind_cluster::{Key, Memory};
    use tradewind_core::SystemClock;

    use super::*;
    use crate::test_context::context;

    /// Notes who comes and goes, and holds everybody until a permit is there.
    struct Toy {
        doors: Semaphore,
        inside: Mutex<Vec<String>>,
        most_inside: AtomicUsize,
        seen: Mutex<Vec<String>>,
    }

    impl Toy {
        fn new(permits: usize) -> Arc<Self> {
            let doors = Semaphore::new(permits);
            Arc::new(Self { doors, inside: Mutex::default(), most_inside: AtomicUsize::new(0), seen: Mutex::default() })
        }

        fn seen(&self) -> usize {
            self.seen.lock().unwrap().len()
        }
    }

    impl Reconciler for Arc<Toy> {
        fn name(&self) -> &'static str {
            "toy"
        }

        fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
            Box::pin(async move {
                {
                    let mut inside = self.inside.lock().unwrap();
                    assert!(!inside.contains(&key.name), "{key} is worked on twice at once");
                    inside.push(key.name.clone());
                    self.most_inside.fetch_max(inside.len(), Ordering::Relaxed);
                }
                let door = self.doors.acquire().await.unwrap();
                tokio::task::yield_now().await;
                drop(door);
                self.inside.lock().unwrap().retain(|name| *name != key.name);
                self.seen.lock().unwrap().push(key.name.clone());
                match key.name.as_str() {
                    "panics" => panic!("as asked"),
                    "fails" => Err(Failure::new("Toy", "as asked")),
                    "again" => Ok(Wake::After(Duration::from_millis(1), "as asked")),
                    _ => Ok(Wake::OnChange),
                }
            })
        }
    }

    fn world(toy: &Arc<Toy>, at_once: usize) -> (Arc<Inbox>, Driver, Arc<Context>) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let store = MemoryStore::new(Arc::clone(&clock));
        let cluster = Arc::new(Memory::new(Arc::clone(&clock)));
        let ctx = Arc::new(context(Arc::clone(&clock), &store, cluster));
        let inbox = Arc::new(Inbox::new(clock));
        let driver = Driver::new(Arc::clone(&ctx), Arc::clone(&inbox), vec![Arc::new(Arc::clone(toy))], at_once);
        (inbox, driver, ctx)
    }

    fn key(name: &str) -> Work {
        ("toy", Key::cluster(name))
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..2_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("waited 10 s for {what}");
    }

    #[tokio::test]
    async fn keys_are_worked_on_side_by_side_within_the_bound_and_never_twice_at_once() {
        let toy = Toy::new(0);
        let (inbox, driver, ctx) = world(&toy, 3);
        let stop = CancellationToken::new();
        let checks = async {
            inbox.ask((0..5).map(|n| key(&n.to_string())));
            until("three to be inside", || toy.inside.lock().unwrap().len() == 3).await;
            // Asked for by a controller while it runs: once more afterwards, not beside.
            ctx.ask("toy", Key::cluster("0"));
            inbox.ask([key("0")]);
            toy.doors.add_permits(10);
            until("five and one again", || toy.seen() == 6).await;
            stop.cancel();
        };
        let (drained, ()) = tokio::join!(driver.run(&stop, Duration::from_secs(5)), checks);
        assert_eq!(drained, Drained::Quietly);
        assert_eq!(toy.most_inside.load(Ordering::Relaxed), 3);
        assert_eq!(toy.seen.lock().unwrap().iter().filter(|name| *name == "0").count(), 2);
    }

    #[tokio::test]
    async fn failures_panics_and_wishes_come_back_and_stop_nobody_else() {
        let toy = Toy::new(4);
        let (inbox, driver, _) = world(&toy, 4);
        let stop = CancellationToken::new();
        let checks = async {
            inbox.ask(["panics", "fails", "again", "fine"].map(key));
            let count = |name: &str| toy.seen.lock().unwrap().iter().filter(|seen| *seen == name).count();
            until("each of three to come back", || ["panics", "fails", "again"].iter().all(|n| count(n) >= 2)).await;
            assert_eq!(count("fine"), 1);
            stop.cancel();
        };
        tokio::join!(driver.run(&stop, Duration::from_secs(5)), checks);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_runs_but_not_for_ever() {
        for (permits, expected) in [(1, Drained::Quietly), (0, Drained::CutOff(1))] {
            let toy = Toy::new(0);
            let (inbox, driver, _) = world(&toy, 1);
            let stop = CancellationToken::new();
            let checks = async {
                inbox.ask([key("a"), key("b")]);
                until("one to be inside", || toy.inside.lock().unwrap().len() == 1).await;
                stop.cancel();
                toy.doors.add_permits(permits);
            };
            let limit = Duration::from_millis(if permits == 0 { 50 } else { 5_000 });
            let (drained, ()) = tokio::join!(driver.run(&stop, limit), checks);
            assert_eq!(drained, expected);
            assert_eq!(toy.seen(), permits, "nothing new is begun after the stop");
        }
    }
}
