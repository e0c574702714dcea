//! What lies between an operator and the rest of the world: every call passes here, where it can be slow, fail, or be the last one.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tradewind_api::TrainingJob;
use tradewind_checkpoints::MemoryStore;
use tradewind_cluster::Memory;
use tradewind_core::gate::{Gate, Point, Verdict};
use tradewind_core::{Clock, ManualClock};
use tradewind_sim::faults::Fault;
use tradewind_sim::market::{Market, SimTime};

use super::chance::Chance;
use super::checker::Checker;
use super::cluster::{delete, job_key};
use super::plan::{Cut, Mutant, Odds, Way};

/// Lines of the trace that are kept.
const KEPT: usize = 600;

/// What all processes share.
pub struct Common {
    /// Time of the world.
    pub clock: Arc<ManualClock>,
    /// The API server.
    pub memory: Arc<Memory>,
    /// The market.
    pub market: Arc<Mutex<Market>>,
    /// All buckets.
    pub server: MemoryStore,
    /// What must hold.
    pub checker: Mutex<Checker>,
    /// What calls meet.
    pub calls: Mutex<Calls>,
    /// Faults for the next calls to the market.
    pub faults: Mutex<Vec<Fault>>,
    /// A bug to be found.
    pub mutant: Option<Mutant>,
    trace: Mutex<VecDeque<String>>,
    verbose: bool,
}

/// What calls meet, and how many there were.
pub struct Calls {
    /// Decides.
    pub dice: Chance,
    /// How often something goes wrong.
    pub odds: Odds,
    /// The one call that goes wrong.
    pub cut: Option<Cut>,
    /// Number of calls so far.
    pub count: u64,
    /// Every call, if they are recorded.
    pub record: Option<Vec<Point>>,
    /// Ports, or single verbs of them, that do not answer, until then.
    pub away: Vec<(&'static str, Duration)>,
    /// A process that freezes now, and whether for long.
    pub frozen: Option<(usize, bool)>,
    /// When a call last went wrong.
    pub last_trouble: Duration,
}

/// Locks, whoever panicked before.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Common {
    /// Everything that processes share.
    pub fn new(
        clock: Arc<ManualClock>,
        memory: Arc<Memory>,
        market: Arc<Mutex<Market>>,
        server: MemoryStore,
        calls: Calls,
        mutant: Option<Mutant>,
        verbose: bool,
    ) -> Self {
        Self {
            clock,
            memory,
            market,
            server,
            checker: Mutex::new(Checker::default()),
            calls: Mutex::new(calls),
            faults: Mutex::default(),
            mutant,
            trace: Mutex::default(),
            verbose,
        }
    }

    /// Time since the world began.
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Writes a line into the trace.
    pub fn note(&self, line: impl FnOnce() -> String) {
        let now = self.now();
        let line = format!("[{:>6}.{:03}] {}", now.as_secs(), now.subsec_millis(), line());
        if self.verbose {
            println!("{line}");
        }
        let mut trace = lock(&self.trace);
        if trace.len() == KEPT {
            trace.pop_front();
        }
        trace.push_back(line);
    }

    /// A line that only matters where everything is printed.
    pub fn detail(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            let now = self.now();
            println!("[{:>6}.{:03}]     {}", now.as_secs(), now.subsec_millis(), line());
        }
    }

    /// The newest lines of the trace.
    pub fn tail(&self) -> Vec<String> {
        lock(&self.trace).iter().cloned().collect()
    }

    /// The market as of now.
    pub fn with_market<R>(&self, what: impl FnOnce(&mut Market, SimTime) -> R) -> R {
        let mut market = lock(&self.market);
        let now = SimTime::from_duration(self.now());
        market.advance(now);
        what(&mut market, now)
    }

    /// Lets the checker look at everything that has changed.
    pub fn look(&self) {
        lock(&self.checker).look(self);
    }

    /// True if the deliberate bug is this one.
    pub fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

/// The line of one process to the world.
pub struct Wire {
    /// What all share.
    pub common: Arc<Common>,
    /// Number of the process.
    pub process: usize,
    dead: AtomicBool,
    parked: Mutex<Vec<Arc<Park>>>,
}

struct Park {
    until: Duration,
    clock: Arc<ManualClock>,
    waker: Mutex<Option<Waker>>,
}

struct Parked(Arc<Park>);

impl Future for Parked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0.clock.monotonic() >= self.0.until {
            return Poll::Ready(());
        }
        *lock(&self.0.waker) = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Wire {
    /// A line that nothing has passed yet.
    pub fn new(common: Arc<Common>, process: usize) -> Self {
        Self { common, process, dead: AtomicBool::new(false), parked: Mutex::default() }
    }

    /// True once the process must not go on.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Ends the process at its next call.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// When the next slow call goes on.
    pub fn next_due(&self) -> Option<Duration> {
        lock(&self.parked).iter().map(|park| park.until).min()
    }

    /// Lets calls go on whose time has come.
    pub fn release(&self, now: Duration) {
        let mut parked = lock(&self.parked);
        for park in parked.iter().filter(|park| park.until <= now) {
            if let Some(waker) = lock(&park.waker).take() {
                waker.wake();
            }
        }
        parked.retain(|park| park.until > now);
    }

    /// Waits for so long, in the world's time.
    pub async fn park(&self, time: Duration) {
        let until = self.common.now() + time;
        let park = Arc::new(Park { until, clock: Arc::clone(&self.common.clock), waker: Mutex::default() });
        lock(&self.parked).push(Arc::clone(&park));
        Parked(park).await;
    }

    async fn pause(&self) {
        let time = {
            let mut calls = lock(&self.common.calls);
            let slow = calls.odds.slow;
            if !calls.dice.ppm(slow) {
                return;
            }
            match calls.dice.below(8) {
                0 => calls.dice.millis(3_000, 9_000),
                1 => calls.dice.millis(500, 3_000),
                _ => calls.dice.millis(1, 500),
            }
        };
        self.park(time).await;
    }

    /// What was chosen to happen at the call that comes next, if `wanted` takes it.
    fn takes_cut(&self, wanted: impl Fn(Way) -> bool) -> Option<Way> {
        let mut calls = lock(&self.common.calls);
        let next = calls.count;
        let taken = calls.cut.take_if(|cut| cut.call == next && wanted(cut.way));
        if taken.is_some() {
            calls.last_trouble = self.common.now();
        }
        taken.map(|cut| cut.way)
    }

    /// The process freezes here, and goes on once another has taken over.
    async fn freeze(&self, for_long: bool) {
        lock(&self.common.calls).frozen = Some((self.process, for_long));
        self.park(Duration::from_millis(1)).await;
    }

    /// True if the process froze inside this rent call, after its last check.
    pub async fn freezes_inside(&self) -> bool {
        let way = self.takes_cut(|way| matches!(way, Way::FreezeInside | Way::FreezeInsideLong));
        if let Some(way) = way {
            self.freeze(way == Way::FreezeInsideLong).await;
        }
        way.is_some()
    }

    /// One call with all that may happen around it.
    pub async fn around<T>(&self, writes: bool, call: impl Future<Output = T>) -> T {
        let cut = self.takes_cut(|way| matches!(way, Way::Freeze | Way::FreezeAfter | Way::Delete));
        match cut {
            Some(Way::Freeze) => self.freeze(false).await,
            Some(Way::Delete) => drop(delete::<TrainingJob>(&self.common, &job_key(0))),
            _ => {}
        }
        self.pause().await;
        let answer = call.await;
        if writes {
            self.common.look();
            if lock(&self.common.checker).has_reached() {
                // The end of the table's cell comes before anybody goes on.
                self.park(Duration::from_millis(1)).await;
            }
        }
        if cut == Some(Way::FreezeAfter) {
            self.freeze(false).await;
        }
        self.pause().await;
        answer
    }
}

/// True for a verb that changes nothing.
pub fn reads(verb: &str) -> bool {
    let known = ["get", "list", "get_if_changed", "head", "describe", "offers", "account", "list_folders", "logs"];
    known.contains(&verb) || verb == "create_dry_run_strict" || verb == "access_review"
}

/// True if a call is one of those that a port away, or one verb of it, does not answer.
fn is_away(what: &str, point: &Point) -> bool {
    what.split_once(' ').map_or(what == point.port, |(port, verb)| port == point.port && verb == point.verb)
}

impl Gate for Wire {
    fn before(&self, point: &Point) -> Verdict {
        if self.is_dead() {
            return Verdict::CrashBefore;
        }
        let now = self.common.now();
        let verdict = {
            let mut calls = lock(&self.common.calls);
            let number = calls.count;
            calls.count += 1;
            if let Some(record) = &mut calls.record {
                record.push(point.clone());
            }
            let odds = calls.odds;
            let cut = calls.cut.filter(|cut| cut.call == number).map(|cut| cut.way);
            let verdict = if let Some(Way::Call(verdict)) = cut {
                verdict
            } else if calls.away.iter().any(|(what, until)| is_away(what, point) && *until > now) {
                Verdict::FailBefore
            } else if calls.dice.ppm(odds.crash) {
                calls.dice.pick(&[Verdict::CrashBefore, Verdict::CrashAfterEffect, Verdict::CrashAfterAnswer])
            } else if calls.dice.ppm(odds.lost) {
                Verdict::LostAnswer
            } else if calls.dice.ppm(odds.fails) {
                Verdict::FailBefore
            } else {
                Verdict::Pass
            };
            if verdict != Verdict::Pass {
                calls.last_trouble = now;
            }
            verdict
        };
        let is_lease = point.key.starts_with("leases/");
        if verdict == Verdict::Pass && (reads(point.verb) || is_lease) {
            self.common.detail(|| format!("p{} {point}", self.process));
        } else {
            self.common.note(|| {
                let how = if verdict == Verdict::Pass { String::new() } else { format!(" -> {verdict:?}") };
                format!("p{} {point}{how}", self.process)
            });
        }
        if matches!(verdict, Verdict::CrashBefore | Verdict::CrashAfterEffect | Verdict::CrashAfterAnswer) {
            self.kill();
        }
        verdict
    }
}
