//! The loop: whatever is due happens, one thing at a time, in an order that the seed decides.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tradewind_api::conditions::{LOSSES_AT_ONCE, condition};
use tradewind_api::{Provider, RentedMachine};
use tradewind_checkpoints::MemoryStore;
use tradewind_cluster::{Key, Memory};
use tradewind_core::gate::Point;
use tradewind_core::{Clock, ManualClock};
use tradewind_sim::file::parse_market;
use tradewind_sim::market::{Market, SimTime};

use super::chance::Chance;
use super::cluster::{ControlPlane, apply};
use super::ends::Earlier;
use super::machines::Fleet;
use super::operator::{Process, is_over};
use super::plan::{Happening, Mood, Options, Plan, Story};
use super::ports::{ACCOUNT, BUCKET, MAILBOX};
use super::table::Reached;
use super::wire::{Calls, Common, lock};

/// How long after the calm everything must be over, at most.
const PATIENCE: Duration = Duration::from_hours(4);
/// Quiet time at the end in which nothing may be written.
const REST: Duration = Duration::from_mins(5);
/// The same in a cell of the table, of which there are many: some looks of every controller.
const SHORT_REST: Duration = Duration::from_secs(45);
/// Time for the last words of controllers before that.
const SETTLE: Duration = Duration::from_secs(90);
/// Things that may happen in one world.
const MOST_EVENTS: u64 = 200_000;

/// How a world went.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What did not hold; empty in a good world.
    pub violations: Vec<String>,
    /// The newest lines of the trace.
    pub trace: Vec<String>,
    /// Calls of operators.
    pub calls: u64,
    /// Every call, if they were recorded.
    pub points: Vec<Point>,
    /// Things that happened.
    pub events: u64,
    /// Time that passed in the world.
    pub time: Duration,
    /// How far the cell of the table came.
    pub reached: Reached,
    /// How long machines lived that no object knew any more.
    pub leaks: Vec<Duration>,
    /// Jobs of which it was said that they will be complete by their deadline.
    pub promised: usize,
}

/// A world.
pub struct World {
    pub(super) common: Arc<Common>,
    pub(super) plan: Plan,
    pub(super) chance: Chance,
    pub(super) processes: Vec<Process>,
    pub(super) fleet: Fleet,
    pub(super) control_plane: ControlPlane,
    /// When the next operator begins to lead, if none does.
    pub(super) successor_at: Option<Duration>,
    /// Troubles that pass, and when.
    pub(super) passing: Vec<(Duration, super::happenings::Passing)>,
    pub(super) rough: bool,
    /// Prices at the start: offer, on demand, lowest bid.
    pub(super) prices: Vec<(String, u64, Option<u64>)>,
    pub(super) mood: Mood,
    /// Earlier states of the API server, oldest first.
    pub(super) backups: VecDeque<Earlier>,
    /// How far the cell of the table came.
    pub(super) reached: Reached,
    seed: u64,
    /// No call of an operator is made to go wrong.
    untouched: bool,
    started: usize,
    next_happening: usize,
    events: u64,
}

impl World {
    /// The world of these options, before anything has happened.
    pub fn new(options: &Options) -> Self {
        let plan = Plan::new(options.seed, options.mood);
        let epoch = Timestamp::from_second(1_790_000_000).expect("a moment of our time");
        let clock = Arc::new(ManualClock::new(epoch, options.seed));
        let dyn_clock: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let mut chance = Chance::new(options.seed, "world");
        let memory = Arc::new(Memory::new(Arc::clone(&dyn_clock)));
        let market = Arc::new(Mutex::new(market(options, &mut chance, epoch)));
        let server = MemoryStore::new(dyn_clock);
        server.create_bucket(MAILBOX);
        server.create_bucket(BUCKET);
        apply(&memory, &plan);
        let calls = Calls {
            dice: Chance::new(options.seed, "calls"),
            odds: plan.odds,
            cut: options.cut,
            count: 0,
            record: options.record.then(Vec::new),
            away: Vec::new(),
            last_trouble: Duration::ZERO,
            frozen: None,
        };
        let common =
            Arc::new(Common::new(clock, Arc::clone(&memory), market, server, calls, options.mutant, options.verbose));
        {
            let mut checker = lock(&common.checker);
            checker.jobs = vec![super::checker::Watched::default(); plan.jobs.len()];
            checker.recipes = plan.jobs.iter().map(|r| (r.salt, r.steps)).collect();
            checker.parts = (0..plan.jobs.len()).filter(|n| plan.jobs[*n].all_ranks).collect();
            checker.workers = plan.jobs.iter().map(|r| usize::try_from(r.workers).unwrap_or(1)).collect();
            checker.awaited = if let Mood::Cell(cell) = options.mood { Some(cell.at) } else { None };
            checker.deadlines = options.mood == Mood::Deadline;
            checker.per_hour = plan.per_hour.parse().expect("an amount");
        }
        common.look();
        Self {
            control_plane: ControlPlane::new(memory, &plan),
            fleet: Fleet::new(options.seed, &plan),
            processes: Vec::new(),
            successor_at: Some(Duration::ZERO),
            passing: Vec::new(),
            rough: true,
            prices: common.with_market(|market, _| {
                let offers = market.account(ACCOUNT).into_iter().flat_map(|a| &a.offers);
                offers.map(|o| (o.id.clone(), o.on_demand_micros_per_hour, o.bid_micros_per_hour)).collect()
            }),
            mood: options.mood,
            backups: VecDeque::new(),
            reached: Reached::default(),
            seed: options.seed,
            untouched: options.cut.is_none() && options.mutant.is_none(),
            started: 0,
            next_happening: 0,
            events: 0,
            common,
            plan,
            chance,
        }
    }

    /// Runs until everything is over or something does not hold.
    pub fn run(mut self) -> Outcome {
        let (mut over_since, mut writes) = (None, 0);
        while self.is_good() && self.events < MOST_EVENTS {
            self.events += 1;
            if self.step() {
                continue;
            }
            if self.is_over() {
                let since = *over_since.get_or_insert_with(|| self.common.now());
                if self.common.now() < since + SETTLE || lock(&self.common.calls).last_trouble > since {
                    writes = self.writes();
                }
                let rest = if matches!(self.mood, Mood::Cell(_)) { SHORT_REST } else { REST };
                if self.common.now() >= since + SETTLE + rest {
                    self.end(writes);
                    break;
                }
            } else {
                over_since = None;
            }
            if self.reached == Reached::Nothing {
                // What follows is the same as without the end.
                break;
            }
            if self.common.now() > self.plan.calm_at + PATIENCE {
                self.fail_to_end("did not come to an end in time");
                break;
            }
            self.pass_time();
        }
        if self.events >= MOST_EVENTS {
            self.fail_to_end("does not come to rest");
        }
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        let calls = lock(&self.common.calls);
        let checker = lock(&self.common.checker);
        Outcome {
            violations: checker.violations.clone(),
            trace: self.common.tail(),
            calls: calls.count,
            points: calls.record.clone().unwrap_or_default(),
            events: self.events,
            time: self.common.now(),
            reached: self.reached,
            leaks: checker.leaks(&self.common),
            promised: checker.jobs.iter().filter(|job| job.promised).count(),
        }
    }

    /// True in a world where chance decides.
    pub(super) fn is_rough(&self) -> bool {
        self.mood.is_rough()
    }

    fn is_good(&self) -> bool {
        lock(&self.common.checker).violations.is_empty()
    }

    fn fail_to_end(&mut self, how: &str) {
        let mut lines = vec![format!("the world {how}; {}", self.fleet.describe())];
        lines.extend(self.processes.iter().map(Process::describe));
        let mut checker = lock(&self.common.checker);
        for job in &checker.jobs {
            let status = job.object.as_ref().and_then(|j| j.status.as_ref());
            lines.push(format!(
                "job: deleted {}, {:?}: {}",
                job.deleted,
                status.map(|s| s.phase),
                status.map_or("", |s| &s.message)
            ));
        }
        for rental in checker.rentals.values().filter(|r| !r.gone) {
            let status = rental.object.status.clone().unwrap_or_default();
            lines.push(format!("{:?}: {:?} {}", rental.object.metadata.name, status.phase, status.message));
        }
        checker.fail(lines.join("\n    "));
    }

    /// One thing that is due. False if nothing is.
    fn step(&mut self) -> bool {
        self.back_up();
        self.end_comes();
        self.processes_change();
        let now = self.common.now();
        let happens = self.plan.happenings.get(self.next_happening).is_some_and(|(at, _)| *at <= now);
        if happens {
            let (_, happening) = self.plan.happenings[self.next_happening];
            self.next_happening += 1;
            self.happen(happening);
            self.common.look();
            return true;
        }
        if self.mood == Mood::Story(Story::LastWord) && self.rough && lock(&self.common.checker).offers == 3 {
            self.happen(Happening::Outbid);
            lock(&self.common.checker).offers += 1;
        }
        if self.rough && now >= self.plan.calm_at {
            self.calm_down();
        }
        if self.trouble_passes() {
            return true;
        }
        self.effects();
        let odds = if self.rough { self.plan.odds.machine } else { 0 };
        // Whoever is asked first may do something; who that is follows from the seed.
        let first = self.chance.below(3);
        for turn in 0..3 {
            let done = match (first + turn) % 3 {
                0 => self.step_operators(),
                1 => self.fleet.step(&self.common, odds),
                _ => self.step_control_plane(),
            };
            if done {
                self.freeze_at_call();
                self.end_comes();
                self.effects();
                return true;
            }
        }
        false
    }

    fn step_operators(&mut self) -> bool {
        let count = self.processes.len();
        let first = self.chance.below(count);
        (0..count).any(|turn| self.processes[(first + turn) % count].step())
    }

    fn step_control_plane(&mut self) -> bool {
        if self.common.now() < self.control_plane.next_due() {
            return false;
        }
        let again = self.chance.millis(1_000, 6_000);
        let skips = if self.rough && self.is_rough() { 25 } else { 0 };
        self.control_plane.step(&self.common, &mut self.fleet, again, skips);
        self.common.look();
        true
    }

    /// Hands what the market did to the machines.
    pub(super) fn effects(&mut self) {
        let effects = self.common.with_market(|market, _| market.take_effects());
        for effect in &effects {
            self.fleet.perform(&self.common, effect, self.rough);
        }
    }

    /// Ends processes that are dead or no longer lead, and starts the next.
    fn processes_change(&mut self) {
        let now = self.common.now();
        let before = self.processes.len();
        self.processes.retain(|process| !is_over(process));
        if self.processes.len() < before && self.processes.is_empty() && self.successor_at.is_none() {
            let wait = if self.rough { self.chance.millis(100, 20_000) } else { Duration::from_secs(1) };
            self.successor_at = Some(now + wait);
            self.common.note(|| format!("no operator leads; the next one does in {} ms", wait.as_millis()));
        }
        if self.successor_at.is_some_and(|at| at <= now) {
            self.successor_at = None;
            self.started += 1;
            let process = Process::start(&self.common, self.started, self.seed, self.plan.watch_lag);
            self.processes.push(process);
        }
    }

    fn is_over(&self) -> bool {
        let jobs_over = lock(&self.common.checker).jobs_over();
        let leads = self.processes.len() == 1 && self.processes[0].ends_at.is_none() && self.successor_at.is_none();
        !self.rough
            && leads
            && self.passing.is_empty()
            && self.next_happening >= self.plan.happenings.len()
            && jobs_over
            && self.common.memory.peek_all::<RentedMachine>().is_empty()
            && !self.renting_pauses()
            && !self.bills_are_awaited()
    }

    /// Machines that are gone wait for the market's bill.
    fn bills_are_awaited(&self) -> bool {
        let provider = self.common.memory.peek::<Provider>(&Key::cluster(ACCOUNT));
        provider.is_some_and(|p| p.status.as_ref().is_some_and(|s| !s.audit.pending.is_empty()))
    }

    /// Renting pauses after many losses; its end is still to be written.
    fn renting_pauses(&self) -> bool {
        let provider = self.common.memory.peek::<Provider>(&Key::cluster(ACCOUNT));
        let status = provider.as_ref().and_then(|p| p.status.as_ref());
        status
            .and_then(|s| condition(&s.conditions, LOSSES_AT_ONCE))
            .is_some_and(|condition| condition.status == "True")
    }

    /// Writes to the API server so far, without Leases.
    fn writes(&self) -> u64 {
        use tradewind_api::TrainingJob;
        use tradewind_cluster::Typed;
        let kinds = [TrainingJob::KIND, RentedMachine::KIND, k8s_openapi::api::core::v1::Pod::KIND, Provider::KIND];
        kinds.iter().map(|kind| self.common.memory.changes(kind, 0).map_or(0, |c| c.changes.len() as u64)).sum()
    }

    fn end(&mut self, writes_before: u64) {
        let writes = self.writes();
        let working = self.fleet.working();
        let mut checker = lock(&self.common.checker);
        // The log of changes is bounded: where it has moved on, nothing can be said.
        if writes > writes_before {
            checker.fail(format!("{} writes although nothing changes any more", writes - writes_before));
        }
        checker.at_the_end(
            &self.common,
            &self.plan.jobs,
            &working,
            matches!(self.mood, Mood::Story(_)) && self.untouched,
        );
    }

    /// Moves the clock to the next thing that is due.
    fn pass_time(&mut self) {
        let now = self.common.now();
        for process in &mut self.processes {
            process.plan_news();
        }
        let epoch_due = self.common.with_market(|market, _| market.next_due()).map(SimTime::as_duration);
        let happening = self.plan.happenings.get(self.next_happening).map(|(at, _)| *at);
        let calm = self.rough.then_some(self.plan.calm_at);
        let passing = self.passing.iter().map(|(at, _)| *at).min();
        let processes = self.processes.iter().filter_map(Process::next_due).min();
        let dues = [
            epoch_due,
            happening,
            calm,
            passing,
            processes,
            self.fleet.next_due(),
            Some(self.control_plane.next_due()),
            self.successor_at,
        ];
        // At least a microsecond, so that a due time that nobody serves cannot stop the clock; at most an hour.
        let next = dues.into_iter().flatten().min().unwrap_or(now).max(now + Duration::from_micros(1));
        let next = next.min(now + Duration::from_hours(1));
        self.common.clock.advance(next.saturating_sub(now));
        self.common.with_market(|_, _| ());
    }
}

fn market(options: &Options, chance: &mut Chance, epoch: Timestamp) -> Market {
    let rough = options.mood.is_rough();
    let offers: Vec<_> = (0..if rough { 3 + chance.below(5) } else { 5 })
        .map(|n| {
            let gpu = if rough { chance.pick(&["RTX 4090", "RTX 3090", "L40S"]) } else { "RTX 4090" };
            #[expect(clippy::cast_precision_loss, reason = "a handful of offers")]
            let dearer = n as f64 * 0.04;
            let boot = if rough || options.mood == Mood::Deadline { chance.between(1, 40) } else { 6 };
            let lag = if rough && chance.one_in(3) { chance.between(0, 60) } else { 0 };
            let refuse = if rough && chance.one_in(4) { 0.3 } else { 0.0 };
            json!({
                "id": 1001 + n, "gpu_name": gpu, "dph_base": 0.40 + dearer, "min_bid": 0.20 + dearer, "verification": "verified",
                "hosting_type": 1, "sim": {"boot": boot, "stock": if rough { 1 + chance.below(2) } else { 1 }, "lag": lag, "refuse": refuse},
            })
        })
        .collect();
    let file = json!({"providers": {ACCOUNT: {"kind": "vast", "apiKey": "vast-key", "credit": 50, "offers": offers}}});
    let accounts = parse_market(&file, "market", Path::new(".")).expect("a valid market");
    Market::new(options.seed, epoch, accounts)
}
