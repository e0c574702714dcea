//! What must hold after every event, stated from the outside: from the API server's change log, the market's own books and the bucket's
//! content. Nothing here asks a controller.

mod checkpoints;
mod deadlines;
mod money;
mod providers;
mod renting;
mod restored;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Reason, RentedMachine, TrainingJob};
use tradewind_cluster::object::typed_ref;
use tradewind_cluster::{Key, Typed};
use tradewind_core::{Money, OrderKey};

pub use restored::Known;

use super::cluster::{job_key, job_name};
use super::program::Recipe;
use super::table::{At, Cell, Fate, JobEnd};
use super::wire::Common;

/// What is known of a RentedMachine from the change log.
#[derive(Debug, Clone)]
pub struct Rental {
    /// Its uid.
    pub uid: String,
    /// Number of its job.
    pub job: usize,
    /// Its attempt.
    pub attempt: i64,
    /// Its newest version.
    pub object: RentedMachine,
    /// When the world first saw each order, by key.
    pub orders: BTreeMap<String, Duration>,
    /// Since when it is to end.
    pub ended_at: Option<Duration>,
    /// It is gone.
    pub gone: bool,
    /// When its object was torn away: it was never let go.
    pub forgotten: Option<Duration>,
}

/// What is known of a job.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Its uid.
    pub uid: String,
    /// Its newest version.
    pub object: Option<TrainingJob>,
    /// It is gone, or being deleted.
    pub deleted: bool,
    /// Steps with which its programs started, newest last, with their attempts.
    pub starts: Vec<(u32, u64)>,
    /// Workers whose programs started: attempt and rank.
    pub began: BTreeSet<(u32, u32)>,
    /// The last few steps that each worker offered, by attempt and rank, where all save together.
    pub parts: BTreeMap<u32, BTreeMap<u32, BTreeSet<u64>>>,
    /// Highest step that a machine offered while it was there, by attempt.
    pub offered: BTreeMap<u32, u64>,
    /// It was said that it will be complete by its deadline.
    pub promised: bool,
}

/// The checker.
#[derive(Default)]
pub struct Checker {
    /// What does not hold.
    pub violations: Vec<String>,
    /// RentedMachines by uid.
    pub rentals: BTreeMap<String, Rental>,
    /// Jobs in order.
    pub jobs: Vec<Watched>,
    /// Salts and steps of the jobs' programs.
    pub recipes: Vec<(u64, u64)>,
    /// Jobs of which each worker saves its part.
    pub parts: BTreeSet<usize>,
    /// Workers of each job.
    pub workers: Vec<usize>,
    /// Deadlines can be kept in this world, once it is said that they will be.
    pub deadlines: bool,
    /// Dollars an hour that may be spent.
    pub per_hour: Money,
    /// Work may be lost to more than preemptions in this world: a checkpoint was damaged, or a store was away.
    pub losses_excused: bool,
    /// How long a machine's state was not to be seen, by its id.
    pub hidden: BTreeMap<u64, Duration>,
    /// Programs that ended with the right result, by their salt.
    pub results: BTreeSet<u64>,
    /// Checkpoints that machines have offered.
    pub offers: usize,
    /// The Provider was deleted, and its books with it.
    pub books_closed: bool,
    /// Objects in the bucket that were damaged on purpose.
    pub damaged: Vec<String>,
    /// The phase in which an end is to happen, until it is seen.
    pub awaited: Option<At>,
    reached: bool,
    /// How the job must be in the end.
    pub job_end: JobEnd,
    /// Machines that nobody wanted to end, whatever else happened.
    kept: BTreeSet<String>,
    /// When the API server last went back to an earlier state, and how far.
    pub went_back: Option<(Duration, Duration)>,
    /// Keys of rent calls that left long after their last check, out of a frozen process.
    pub late: BTreeSet<String>,
    jobs_seen: u64,
    rentals_seen: u64,
    /// Caps of machines that turned out dearer, in micro-dollars an hour.
    too_dear: BTreeMap<u64, u64>,
    /// Machines of the market that were looked at when they were new.
    bought: usize,
    /// Times of complete lists of the account.
    lists: Vec<Duration>,
    books: checkpoints::Books,
}

impl Checker {
    /// Says that something does not hold.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn ensure(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// Looks at everything that has changed since the last look.
    pub fn look(&mut self, common: &Common) {
        if !self.violations.is_empty() {
            return;
        }
        self.look_at_jobs(common);
        self.look_at_rentals(common);
        self.look_at_market(common);
        self.look_at_provider(common);
        self.look_at_bucket(common);
    }

    fn look_at_jobs(&mut self, common: &Common) {
        let Some(changes) = common.memory.changes(TrainingJob::KIND, self.jobs_seen) else {
            self.fail("the world lost track of TrainingJobs");
            return;
        };
        self.jobs_seen = changes.next;
        for change in changes.changes {
            let Some(job) = typed_ref::<TrainingJob>(&*change.object) else { continue };
            let name = Key::of(&*change.object).name;
            let Some(n) = (0..self.jobs.len()).find(|n| job_name(*n) == name) else { continue };
            self.job_changed(common, n, job);
            self.deadline_told(n, job);
            let known = &mut self.jobs[n];
            known.uid = job.metadata.uid.clone().unwrap_or_default();
            known.object = Some(job.clone());
            known.deleted |= change.gone || job.metadata.deletion_timestamp.is_some();
            let phase = job.status.as_ref().map_or(JobPhase::Pending, |s| s.phase);
            self.sees(At::Job(phase));
            self.sees(At::InCluster(phase));
        }
    }

    fn job_changed(&mut self, common: &Common, n: usize, job: &TrainingJob) {
        let (Some(new), Some(old)) = (&job.status, self.jobs[n].object.as_ref().and_then(|j| j.status.clone())) else {
            return;
        };
        let name = job_name(n);
        common.detail(|| format!("{name}: {:?}, cost {:?}", new.phase, new.cost));
        self.ensure(!old.phase.is_terminal() || new.phase == old.phase, || {
            format!("{name}: {:?} became {:?}", old.phase, new.phase)
        });
        self.ensure(new.attempt >= old.attempt, || {
            format!("{name}: attempt {:?} became {:?}", old.attempt, new.attempt)
        });
        self.ensure(new.run_id == old.run_id || old.run_id.is_none(), || format!("{name}: the run's id changed"));
        self.ensure(new.cost.settled >= old.cost.settled, || {
            format!("{name}: settled cost {} became {}", old.cost.settled, new.cost.settled)
        });
        self.settled(n, new);
        if new.phase == JobPhase::Suspended && old.phase != JobPhase::Suspended {
            self.nothing_is_paid_for(common, n);
        }
    }

    /// A job that is called suspended costs nothing.
    fn nothing_is_paid_for(&mut self, common: &Common, n: usize) {
        let paid = common.with_market(|market, _| {
            let machines = market.machines().iter().filter(|m| !m.has_ended() && m.is_paid());
            machines.filter_map(|m| m.label.as_ref()?.parse::<OrderKey>().ok()).collect::<Vec<_>>()
        });
        for key in paid {
            let of_job =
                self.rental_of(&key).is_some_and(|rental| rental.job == n && !rental.gone && rental.knows(&key));
            self.ensure(!of_job, || format!("{} is called suspended, but {key} is paid for", job_name(n)));
        }
    }

    fn look_at_rentals(&mut self, common: &Common) {
        let Some(changes) = common.memory.changes(RentedMachine::KIND, self.rentals_seen) else {
            self.fail("the world lost track of RentedMachines");
            return;
        };
        self.rentals_seen = changes.next;
        for change in changes.changes {
            let Some(machine) = typed_ref::<RentedMachine>(&*change.object) else { continue };
            self.rental_changed(common, machine, change.gone);
        }
    }

    /// The RentedMachine whose uid this part of an order key stands for.
    fn rental_of(&self, key: &OrderKey) -> Option<&Rental> {
        self.rentals.values().find(|rental| OrderKey::machine_part(&rental.uid) == key.machine)
    }

    /// The job of a RentedMachine.
    pub fn job_of_uid(&self, uid: &str) -> Option<usize> {
        self.rentals.get(uid).map(|rental| rental.job)
    }

    /// A job or a machine is in this phase.
    fn sees(&mut self, at: At) {
        if self.awaited == Some(at) {
            self.awaited = None;
            self.reached = true;
        }
    }

    /// True if the awaited phase was reached and nobody has acted on it.
    pub fn has_reached(&self) -> bool {
        self.reached
    }

    /// The same, once.
    pub fn takes_reached(&mut self) -> bool {
        std::mem::take(&mut self.reached)
    }

    /// The end of a cell happens now.
    pub fn end_happens(&mut self, cell: Cell) {
        self.job_end = cell.job_end();
        // In these phases the run-up itself has asked the machine to stop, or its program has failed for good.
        let stopping = matches!(cell.at, At::Job(JobPhase::Checkpointing | JobPhase::Suspending | JobPhase::Failed));
        if cell.fate() == Fate::GoesOn && !stopping {
            let bought = |r: &Rental| {
                let status = r.object.status.as_ref();
                r.ended_at.is_none()
                    && r.object.spec.stop.is_none()
                    && status.is_some_and(|s| s.machine_id.is_some() && s.ended.is_none())
            };
            self.kept = self.rentals.values().filter(|r| bought(r)).map(|r| r.uid.clone()).collect();
        }
    }

    /// True once every job is over: complete, failed or deleted, or suspended for good.
    pub fn jobs_over(&self) -> bool {
        self.jobs.iter().all(|job| {
            let phase = job.object.as_ref().and_then(|j| j.status.as_ref()).map(|s| s.phase);
            let rests = match self.job_end {
                JobEnd::Suspended => phase == Some(JobPhase::Suspended),
                JobEnd::Waiting => phase == Some(JobPhase::Waiting),
                _ => false,
            };
            job.deleted || rests || phase.is_some_and(JobPhase::is_terminal)
        })
    }

    /// Machines that nobody wanted to end have run to the program's end.
    fn machines_went_on(&mut self) {
        let ends: Vec<_> = self.rentals.values().filter(|r| self.kept.contains(&r.uid)).cloned().collect();
        for rental in ends {
            let status = rental.object.status.unwrap_or_default();
            let (ended, message) = (status.ended.unwrap_or_default(), status.ended_message.unwrap_or_default());
            // An exit code alone would not do: a program that was told to stop has one too.
            let by_itself = [Reason::Finished, Reason::ProgramFailed].iter().any(|reason| reason.as_str() == ended);
            self.ensure(by_itself, || {
                format!(
                    "{} should have gone on, but was ended: {ended}: {message}",
                    rental.object.metadata.name.unwrap_or_default()
                )
            });
        }
    }

    /// The world has come to rest: what must hold at the end.
    pub fn at_the_end(&mut self, common: &Common, recipes: &[Recipe], working: &[String], tidy: bool) {
        self.nothing_is_left(common);
        self.workers_are_gone(common, working, tidy);
        self.books_agree(common);
        self.provider_is_settled(common);
        self.machines_went_on();
        self.deadlines_are_kept();
        let expected = self.job_end;
        if expected == JobEnd::Gone {
            let there = common.memory.peek::<TrainingJob>(&job_key(0)).is_some();
            self.ensure(self.jobs[0].deleted && !there, || format!("{} is still there", job_name(0)));
        }
        for (n, recipe) in recipes.iter().enumerate() {
            let job = self.jobs[n].clone();
            let Some(status) = job.object.as_ref().and_then(|j| j.status.clone()).filter(|_| !job.deleted) else {
                continue;
            };
            let name = job_name(n);
            let wanted = match expected {
                JobEnd::Over if status.phase == JobPhase::Failed => JobPhase::Failed,
                JobEnd::Complete | JobEnd::Gone | JobEnd::Over => JobPhase::Complete,
                JobEnd::Failed => JobPhase::Failed,
                JobEnd::Suspended => JobPhase::Suspended,
                JobEnd::Waiting => JobPhase::Waiting,
            };
            self.ensure(status.phase == wanted, || {
                format!("{name} ended as {:?}, not as {wanted:?}: {}", status.phase, status.message)
            });
            let complete = wanted == JobPhase::Complete;
            let salt = self.recipes[n].0;
            self.ensure(!complete || self.results.contains(&salt), || {
                format!("{name} is complete, but nothing that ran has its result")
            });
            let stalls = i64::from(recipe.hangs.is_some());
            self.ensure(status.stalls <= stalls, || {
                format!("{name}: {} stalls were counted, its program hung {stalls} times", status.stalls)
            });
            let most = i64::from(recipe.fails.is_some());
            self.ensure(status.restarts <= most, || {
                format!("{name}: {} restarts were counted, its program failed {most} times", status.restarts)
            });
        }
    }
}

/// Seconds between two instants, whichever comes first.
fn apart(a: Timestamp, b: Timestamp) -> f64 {
    a.duration_since(b).as_secs_f64().abs()
}
