//! One operator process: the real controllers over the world's ports, with caches that are told late, and the real work queue.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Wake as TaskWake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use tradewind::accounts::Accounts;
use tradewind::context::{AgentBinary, Caches, Context};
use tradewind::controllers::{node, provider, rented_machine, sweeper, training_job, worker};
use tradewind::events::Told;
use tradewind::images::Images;
use tradewind::market::{Market, MarketKeeper, MarketReader};
use tradewind::runtime::{Failure, Queue, Reconciler, Wake, Work, watches};
use tradewind::settings::Settings;
use tradewind::storage::OpenCatalogues;
use tradewind_api::{Provider, RentedMachine, TrainingJob, names};
use tradewind_checkpoints::Mailbox;
use tradewind_cluster::cache::Event;
use tradewind_cluster::object::typed_ref;
use tradewind_cluster::{Key, Kind, Object, Typed, typed};
use tradewind_core::{Clock, InstallId, ManualClock};

use super::chance::Chance;
use super::cluster::OPERATOR_NAMESPACE;
use super::ports::{MAILBOX, WorldAccounts, WorldCluster, WorldImages, WorldStores};
use super::wire::{Common, Wire};

/// The install of every world.
pub fn install() -> InstallId {
    InstallId::derive("5b3f0a52-0000-4000-8000-000000000001", "tradewind")
}

/// The settings of every world's operators.
pub fn settings() -> Settings {
    // Bills are compared before a world ends.
    Settings {
        audit_after: Duration::from_secs(20),
        agent_image: Some("agent:1".to_owned()),
        ..Settings::new(install(), OPERATOR_NAMESPACE)
    }
}

/// A process's clocks: the world's time, monotonic since the process began.
struct ProcessClock {
    world: Arc<ManualClock>,
    born: Duration,
}

impl Clock for ProcessClock {
    fn now(&self) -> jiff::Timestamp {
        self.world.now()
    }

    fn monotonic(&self) -> Duration {
        self.world.monotonic().saturating_sub(self.born)
    }

    fn entropy(&self) -> u64 {
        self.world.entropy()
    }
}

/// Set when a task may go on.
#[derive(Default)]
struct Flag(AtomicBool);

impl TaskWake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    work: Work,
    future: BoxFuture<'static, Result<Wake, Failure>>,
    flag: Arc<Flag>,
}

/// What the watch of one kind has told.
struct Watched {
    kind: &'static Kind,
    since: u64,
    next_at: Option<Duration>,
    /// A list that was taken and arrives later.
    listing: Option<(Vec<Arc<dyn Object>>, u64)>,
}

/// One operator.
pub struct Process {
    /// Its line to the world.
    pub wire: Arc<Wire>,
    /// Until when it does nothing at all.
    pub frozen_until: Duration,
    /// When it notices that it no longer leads, and ends.
    pub ends_at: Option<Duration>,
    ctx: Arc<Context>,
    born: Duration,
    reconcilers: BTreeMap<&'static str, Arc<dyn Reconciler>>,
    queue: Queue,
    watched: Vec<Watched>,
    tasks: Vec<Task>,
    chance: Chance,
    watch_lag: Duration,
}

/// The kinds that are watched.
fn kinds() -> [&'static Kind; 5] {
    [TrainingJob::KIND, RentedMachine::KIND, Provider::KIND, Pod::KIND, Node::KIND]
}

impl Process {
    /// A process that has listed everything and begins to lead now.
    pub fn start(common: &Arc<Common>, number: usize, seed: u64, watch_lag: Duration) -> Self {
        let born = common.now();
        let wire = Arc::new(Wire::new(Arc::clone(common), number));
        let clock: Arc<dyn Clock> = Arc::new(ProcessClock { world: Arc::clone(&common.clock), born });
        let stores = WorldStores { wire: Arc::clone(&wire) };
        let mailbox = format!("s3://{MAILBOX}/tw/").parse().expect("a valid location");
        let ctx = Arc::new(Context {
            cluster: Arc::new(WorldCluster::new(&wire)),
            clock: Arc::clone(&clock),
            caches: Caches::default(),
            accounts: Accounts::default(),
            open_account: Arc::new(WorldAccounts { wire: Arc::clone(&wire), clock }),
            market: Market::default(),
            images: Images::new(Some(Arc::new(WorldImages { wire: Arc::clone(&wire) }))),
            mailbox: Some(Mailbox::new(stores.at(&mailbox))),
            stores: Arc::new(stores),
            catalogues: OpenCatalogues::default(),
            namespaces: tradewind::accounts::access::Namespaces::default(),
            agent: Some(AgentBinary { sha256: "ab".repeat(32) }),
            settings: settings(),
            told: Mutex::new(Told::default()),
            machines: rented_machine::Memory::default(),
            workers: worker::Workers::default(),
            turns: tradewind::controllers::training_job::turns::Turns::default(),
            asked: Mutex::new(Vec::new()),
        });
        let reconcilers: Vec<Arc<dyn Reconciler>> = vec![
            Arc::new(training_job::TrainingJobs::new(Arc::clone(&ctx))),
            Arc::new(worker::WorkerAgents::new(Arc::clone(&ctx))),
            Arc::new(rented_machine::RentedMachines::new(Arc::clone(&ctx))),
            Arc::new(provider::Providers::new(Arc::clone(&ctx))),
            Arc::new(node::Nodes::new(Arc::clone(&ctx))),
            Arc::new(sweeper::Sweeper::new(Arc::clone(&ctx))),
            Arc::new(MarketReader::new(Arc::clone(&ctx))),
            Arc::new(MarketKeeper::new(Arc::clone(&ctx))),
        ];
        let watched = kinds().map(|kind| Watched { kind, since: 0, next_at: None, listing: None }).into();
        let mut process = Self {
            wire,
            frozen_until: Duration::ZERO,
            ends_at: None,
            ctx,
            born,
            reconcilers: reconcilers.into_iter().map(|r| (r.name(), r)).collect(),
            queue: Queue::default(),
            watched,
            tasks: Vec::new(),
            chance: Chance::new(seed, &format!("process {number}")),
            watch_lag,
        };
        for at in 0..process.watched.len() {
            process.list(at);
            process.tell_list(at);
        }
        process.queue = Queue::default();
        process.ask(watches::everything(&process.ctx.caches));
        process.ask([(node::NAME, Key::cluster(node::SINGLE)), (MarketKeeper::NAME, MarketKeeper::key())]);
        common.note(|| format!("p{number} leads"));
        process
    }

    fn now(&self) -> Duration {
        self.ctx.clock.monotonic()
    }

    fn ask(&mut self, work: impl IntoIterator<Item = Work>) {
        let now = self.now();
        for one in work {
            self.queue.add(one, now);
        }
    }

    /// True if nothing is queued but what comes again by the clock.
    pub fn next_due(&self) -> Option<Duration> {
        let wake = self.queue.next_due().map(|due| due + self.born);
        let watched = self.watched.iter().filter_map(|w| w.next_at).min();
        let due = [wake, watched, self.wire.next_due(), self.ends_at].into_iter().flatten().min();
        let runnable = self.tasks.iter().any(|task| task.flag.0.load(Ordering::Relaxed));
        let due = if runnable { Some(Duration::ZERO) } else { due };
        due.map(|due| due.max(self.frozen_until))
    }

    /// Plans when news arrive that have not been told yet.
    pub fn plan_news(&mut self) {
        let now = self.wire.common.now();
        for at in 0..self.watched.len() {
            if self.watched[at].next_at.is_some() {
                continue;
            }
            let (kind, since) = (self.watched[at].kind, self.watched[at].since);
            let pending = match self.wire.common.memory.changes(kind, since) {
                Some(changes) if changes.changes.is_empty() => {
                    self.watched[at].since = changes.next;
                    false
                }
                _ => true,
            };
            if pending {
                self.watched[at].next_at = Some(now + self.lag());
            }
        }
    }

    fn lag(&mut self) -> Duration {
        let most = u64::try_from(self.watch_lag.as_millis()).unwrap_or(0);
        // Mostly prompt, now and then as late as it gets.
        let most = if self.chance.one_in(6) { most } else { most.min(200) };
        self.chance.millis(0, most)
    }

    /// Lets a watch break: what it lists now arrives later.
    pub fn relist(&mut self) {
        let at = self.chance.below(self.watched.len());
        self.list(at);
        self.watched[at].next_at = Some(self.wire.common.now() + self.lag() * 2);
    }

    fn list(&mut self, at: usize) {
        let (objects, index) = self.wire.common.memory.snapshot(self.watched[at].kind);
        self.watched[at].listing = Some((objects, index));
    }

    /// Does one thing that is due. False if nothing is.
    pub fn step(&mut self) -> bool {
        let now = self.wire.common.now();
        if now < self.frozen_until {
            return false;
        }
        self.wire.release(now);
        self.plan_news();
        let tasks: Vec<usize> =
            (0..self.tasks.len()).filter(|i| self.tasks[*i].flag.0.load(Ordering::Relaxed)).collect();
        let news: Vec<usize> =
            (0..self.watched.len()).filter(|i| self.watched[*i].next_at.is_some_and(|at| at <= now)).collect();
        let ready = self.queue.ready(self.now());
        let choices = tasks.len() + news.len() + ready.len();
        if choices == 0 {
            return false;
        }
        let choice = self.chance.below(choices);
        if let Some(task) = tasks.get(choice) {
            self.poll(*task);
        } else if let Some(at) = news.get(choice - tasks.len()) {
            self.tell(*at);
        } else {
            let work = ready[choice - tasks.len() - news.len()].clone();
            self.begin(&work);
        }
        true
    }

    fn begin(&mut self, work: &Work) {
        self.queue.take_this(work);
        let reconciler = Arc::clone(self.reconcilers.get(work.0).expect("every controller in the queue is here"));
        let key = work.1.clone();
        let future: BoxFuture<'static, _> = Box::pin(async move { reconciler.reconcile(&key).await });
        self.tasks.push(Task { work: work.clone(), future, flag: Arc::new(Flag(AtomicBool::new(true))) });
        self.poll(self.tasks.len() - 1);
    }

    fn poll(&mut self, at: usize) {
        let task = &mut self.tasks[at];
        let waker = Waker::from(Arc::clone(&task.flag));
        let mut context = TaskContext::from_waker(&waker);
        let mut outcome = Poll::Pending;
        // Combinators may ask to be polled again at once.
        for _ in 0..1_000 {
            if !task.flag.0.swap(false, Ordering::Relaxed) {
                break;
            }
            outcome = Pin::new(&mut task.future).poll(&mut context);
            if outcome.is_ready() {
                break;
            }
        }
        self.wire.common.look();
        if self.wire.is_dead() {
            return;
        }
        if let Poll::Ready(result) = outcome {
            let task = self.tasks.swap_remove(at);
            self.finish(&task.work, result);
        }
        let asked = self.ctx.take_asked();
        self.ask(asked);
    }

    fn finish(&mut self, work: &Work, result: Result<Wake, Failure>) {
        let now = self.now();
        let common = &self.wire.common;
        common.detail(|| format!("p{} {} {} = {result:?}", self.wire.process, work.0, work.1));
        match result {
            Ok(Wake::OnChange) => self.queue.done(work, now, None),
            Ok(Wake::After(wait, _)) => self.queue.done(work, now, Some(wait)),
            Err(failure) => {
                if !failure.benign {
                    self.wire.common.note(|| format!("p{} {} {}: {failure}", self.wire.process, work.0, work.1));
                }
                self.queue.failed(work, now, failure.benign);
            }
        }
    }

    fn tell(&mut self, at: usize) {
        self.watched[at].next_at = None;
        if self.watched[at].listing.is_some() {
            self.tell_list(at);
            return;
        }
        let (kind, since) = (self.watched[at].kind, self.watched[at].since);
        let Some(changes) = self.wire.common.memory.changes(kind, since) else {
            self.list(at);
            self.tell_list(at);
            return;
        };
        // Some of the news, in order; now and then the last one is told twice.
        let count =
            if self.chance.one_in(3) { 1 + self.chance.below(changes.changes.len()) } else { changes.changes.len() };
        let told = &changes.changes[..count.min(changes.changes.len())];
        let again = if self.chance.one_in(10) { told.last() } else { None };
        for change in told.iter().chain(again) {
            let work = self.feed(kind, &change.object, change.gone);
            self.ask(work);
        }
        self.watched[at].since =
            told.last().filter(|_| count < changes.changes.len()).map_or(changes.next, |c| c.index);
    }

    fn tell_list(&mut self, at: usize) {
        let Some((objects, index)) = self.watched[at].listing.take() else { return };
        self.watched[at].since = index;
        let kind = self.watched[at].kind;
        let caches = &self.ctx.caches;
        let objects: Vec<_> = objects.into_iter().filter(|o| self.selects(&**o)).collect();
        fn all<K: Typed>(objects: Vec<Arc<dyn Object>>) -> Event<K> {
            Event::Relist(objects.into_iter().map(typed::<K>).collect())
        }
        let work = match kind.plural {
            "trainingjobs" => watches::feed(&caches.jobs, all(objects)),
            "rentedmachines" => watches::feed(&caches.rented, all(objects)),
            "providers" => watches::feed(&caches.providers, all(objects)),
            "pods" => watches::feed(&caches.pods, all(objects)),
            _ => watches::feed(&caches.nodes, all(objects)),
        };
        self.ask(work);
    }

    fn feed(&self, kind: &'static Kind, object: &Arc<dyn Object>, gone: bool) -> BTreeSet<Work> {
        if !self.selects(&**object) {
            return BTreeSet::new();
        }
        let caches = &self.ctx.caches;
        fn one<K: Typed>(object: &Arc<dyn Object>, gone: bool) -> Event<K> {
            let object = typed::<K>(Arc::clone(object));
            if gone { Event::Gone(object) } else { Event::Set(object) }
        }
        match kind.plural {
            "trainingjobs" => watches::feed(&caches.jobs, one(object, gone)),
            "rentedmachines" => watches::feed(&caches.rented, one(object, gone)),
            "providers" => watches::feed(&caches.providers, one(object, gone)),
            "pods" => watches::feed(&caches.pods, one(object, gone)),
            _ => watches::feed(&caches.nodes, one(object, gone)),
        }
    }

    /// What the watches of production select.
    fn selects(&self, object: &dyn Object) -> bool {
        let node = &self.ctx.settings.node_name;
        if let Some(pod) = typed_ref::<Pod>(object) {
            let ours = pod.metadata.labels.as_ref().is_some_and(|l| l.contains_key(names::JOB_UID));
            return ours || pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(node);
        }
        typed_ref::<Node>(object).is_none() || object.meta().name.as_ref() == Some(node)
    }

    /// What waits, for the last words of a world that does not end.
    pub fn describe(&self) -> String {
        let now = self.now();
        let due: Vec<String> =
            self.queue.ready(now + Duration::from_hours(1)).iter().map(|(c, k)| format!("{c} {k}")).collect();
        let tasks: Vec<String> = self.tasks.iter().map(|t| format!("{} {}", t.work.0, t.work.1)).collect();
        format!("p{}: within the hour {due:?}, under way {tasks:?}", self.wire.process)
    }
}

/// Whether a process may go on at all.
pub fn is_over(process: &Process) -> bool {
    let now = process.wire.common.now();
    process.wire.is_dead() || process.ends_at.is_some_and(|at| at <= now && process.frozen_until <= now)
}
