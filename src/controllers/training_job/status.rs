//! Building a TrainingJob's status: phases, conditions, money, sentences. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::conditions::{
    ACCEPTED, COMPLETE, FAILED, PLACED, READY, RECONCILING, STALLED, SUSPENDED, bounded, condition, set_condition,
};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::{
    Alternative, AttemptRecord, ExpectedCost, JobPhase, PlacementStatus, ProgramStatus, WorkersStatus,
};
use tradewind_api::{Reason, RentedMachine, RentedMachineStatus, TrainingJobStatus};
use tradewind_core::{GpuModel, Money};
use tradewind_planner::{CostBreakdown, explain};

use tradewind_checkpoints::identity::{EndRecord, Outcome};

use super::deadline;
use super::decide::{Decision, Observed, Step, bounded_history};
use super::identity;
use super::placement::{Other, Rent};
use super::rates;
use super::stop::Wanted;
use super::valid::Valid;
use crate::controllers::rented_machine::decide::CLAIMED;
use crate::controllers::rented_machine::reserve;
use crate::runtime::Wake;

/// A status under construction.
#[derive(Debug, Clone)]
pub struct Report {
    /// The status so far.
    pub status: TrainingJobStatus,
    now: Timestamp,
    generation: i64,
    workers: i64,
    /// Model that `work` is told for.
    work_on: Option<GpuModel>,
    passing: bool,
}

/// The same in a status.
pub fn expected_cost(cost: &CostBreakdown) -> ExpectedCost {
    ExpectedCost {
        compute: cost.compute,
        setup: cost.setup,
        image_pull: cost.image_pull,
        input_download: cost.input_download,
        restore: cost.restore,
        expected_lost_work: cost.expected_lost_work,
        storage: cost.storage,
        traffic: cost.traffic,
        total: cost.total,
    }
}

/// All workers of the present attempt have, or had, a node of the cluster.
pub fn is_in_cluster(status: &TrainingJobStatus) -> bool {
    let placed = condition(&status.conditions, PLACED);
    placed.is_some_and(|c| c.status == "True" && c.reason == Reason::InCluster.as_str())
}

/// Where a job in the cluster is, and an attempt of the history was.
pub const IN_CLUSTER: &str = "cluster";

/// Characters of the sentence that says why a machine was chosen, and of each line that says why others were not: with all else that is told of
/// a choice they stay below 4 KB.
const WHY: usize = 700;
const REJECTED_LINE: usize = 200;

impl Report {
    /// Starts from the status that the job has.
    pub fn new(o: &Observed) -> Self {
        let mut status = o.job.status.clone().unwrap_or_default();
        let generation = o.job.metadata.generation.unwrap_or(0);
        status.observed_generation = generation;
        status.deadline = deadline::of(&o.job, &o.valid).map(Time);
        let work_on = o.valid.work.on.clone();
        Self { status, now: o.now, generation, workers: o.valid.workers, work_on, passing: false }
    }

    fn set(&mut self, type_: &str, status: Option<bool>, reason: Reason, message: &str) {
        set_condition(&mut self.status.conditions, self.now, self.generation, type_, status, reason, message);
    }

    /// Ends with a step.
    pub fn decide(self, step: Step, wake: Wake) -> Decision {
        Decision { status: self.status, step, wake, passing: self.passing }
    }

    /// What it says only passes: in a moment there is more to say, and nobody has missed it.
    pub fn passes(&mut self) {
        self.passing = true;
    }

    /// Ends without a step.
    pub fn rest(self, wake: Wake) -> Decision {
        self.decide(Step::Rest, wake)
    }

    /// Where the job is, in a word and a sentence. On its way to a program that runs it is not ready, whatever was said before.
    pub fn phase(&mut self, phase: JobPhase, message: &str) {
        let not_ready = match phase {
            JobPhase::Renting => Some(Reason::Renting),
            JobPhase::Resuming => Some(Reason::Resuming),
            JobPhase::Starting if self.workers > 1 => Some(Reason::WaitingForWorkers),
            JobPhase::Starting => Some(if self.is_in_cluster() { Reason::InCluster } else { Reason::Rented }),
            _ => None,
        };
        if let Some(reason) = not_ready {
            self.set(READY, Some(false), reason, message);
        }
        self.status.phase = phase;
        message.clone_into(&mut self.status.message);
    }

    /// Workers whose program runs.
    pub fn workers(&mut self, ready: i64) {
        let total = self.workers;
        self.status.workers = Some(WorkersStatus { ready, total, summary: format!("{ready}/{total}") });
    }

    /// All workers of the present attempt have, or had, a node of the cluster.
    pub fn is_in_cluster(&self) -> bool {
        is_in_cluster(&self.status)
    }

    /// The spec can be carried out.
    pub fn accepted(&mut self) {
        self.set(ACCEPTED, Some(true), Reason::Valid, "the spec passed every check");
        self.set(STALLED, Some(false), Reason::Valid, "nothing stands in the way");
    }

    /// The spec cannot be carried out (now).
    pub fn not_accepted(&mut self, reason: Reason, message: &str, passing: bool) {
        self.set(ACCEPTED, Some(false), reason, message);
        self.set(PLACED, Some(false), reason, "nothing is placed before the job is accepted");
        self.set(READY, Some(false), reason, message);
        self.set(RECONCILING, Some(passing), reason, message);
        self.set(STALLED, Some(!passing), reason, message);
        self.phase(JobPhase::Pending, message);
    }

    /// A place is found.
    pub fn placed(&mut self, reason: Reason, message: &str) {
        self.set(PLACED, Some(true), reason, message);
    }

    /// Waits for capacity, price or quota.
    pub fn waiting(&mut self, reason: Reason, message: &str) {
        self.set(PLACED, Some(false), reason, message);
        self.set(READY, Some(false), reason, message);
        self.set(RECONCILING, Some(true), reason, message);
        self.status.placement = None;
        self.workers(0);
        self.phase(JobPhase::Waiting, message);
    }

    /// Offers are chosen.
    pub fn chosen(&mut self, rent: &Rent) {
        let offer = &rent.first;
        let gpu = offer.gpu.as_ref().map(|g| format!("{}x{g}", offer.gpu_count));
        let capacity = offer.capacity.as_str();
        let place = if offer.region.is_empty() { String::new() } else { format!(", {}", offer.region) };
        self.status.placement = Some(PlacementStatus {
            summary: format!("{} ({}{place})", rent.provider, terms(capacity)),
            provider: Some(rent.provider.clone()),
            machine: None,
            region: Some(offer.region.clone()),
            gpu,
            price_per_hour: Some(offer.price_per_hour),
            capacity: Some(capacity.to_owned()),
            trust: Some(offer.trust.as_str().to_owned()),
            why: Some(bounded(rent.why.clone(), WHY)),
            cost: Some(expected_cost(&rent.cost)),
            expected_finish: self.in_s(rent.finish_in_s),
            alternatives: rent.others.iter().map(|other| self.alternative(other)).collect(),
            rejected: rent.rejected.iter().map(|line| bounded(line.clone(), REJECTED_LINE)).collect(),
        });
        self.set(PLACED, Some(true), Reason::Renting, &rent.why);
        self.set(RECONCILING, Some(true), Reason::Renting, "a machine is being rented");
        self.phase(JobPhase::Renting, &format!("rents {}", rent.why));
    }

    fn alternative(&self, other: &Other) -> Alternative {
        Alternative {
            summary: other.summary.clone(),
            price_per_hour: other.price_per_hour,
            extra_cost: other.extra_cost,
            expected_finish: self.in_s(other.finish_in_s),
        }
    }

    /// The moment in so many seconds, to the second.
    fn in_s(&self, seconds: u64) -> Option<Time> {
        deadline::in_s(self.now, seconds).map(Time)
    }

    /// Something fits, and the job waits for something cheaper.
    pub fn waits_for_price(&mut self, message: &str) {
        self.status.waits_since.get_or_insert(Time(self.now));
        self.waiting(Reason::WaitingForPrice, message);
    }

    /// What the machine says.
    pub fn follow(&mut self, machine: &RentedMachine) {
        let Some(m) = machine.status.as_ref() else { return };
        let mut placement = self.status.placement.clone().unwrap_or_default();
        placement.machine.clone_from(&machine.metadata.name);
        placement.provider = Some(machine.spec.provider.clone());
        if let (Some(region), Some(capacity)) = (&m.region, &m.capacity) {
            // What was rented in the end may be another offer than the first.
            placement.region = Some(region.clone());
            placement.capacity = Some(capacity.clone());
            placement.gpu.clone_from(&m.gpu);
            placement.price_per_hour = m.price_per_hour;
            let place = if region.is_empty() { String::new() } else { format!(", {region}") };
            placement.summary = format!("{} ({}{place})", machine.spec.provider, terms(capacity));
        }
        let is_second = m.rented_order().is_some_and(|order| order.offer > 0);
        if let Some(offer) = is_second.then(|| reserve::offer(machine)).flatten() {
            // What was reckoned for the first offer, which was refused, is not true of this one.
            placement.why = Some(format!("{}, since what was chosen before it was refused", explain::offer(&offer)));
            placement.trust = Some(offer.trust.as_str().to_owned());
            (placement.cost, placement.expected_finish) = (None, None);
            placement.alternatives.clear();
        }
        self.status.placement = Some(placement);
        if m.progress.is_some() {
            self.status.progress.clone_from(&m.progress);
        }
        if let Some(checkpoint) = &m.checkpoint {
            self.status.checkpoint = Some(checkpoint.clone());
        }
        if m.ended.is_some() {
            return;
        }
        let message = m.message.clone();
        match m.phase {
            // Why it is rented, which is said already, is of more use.
            MachinePhase::Claimed if message == CLAIMED => {}
            MachinePhase::Claimed | MachinePhase::Ordering | MachinePhase::Unknown => {
                self.set(RECONCILING, Some(true), Reason::Renting, &message);
                self.phase(JobPhase::Renting, &format!("machine {}: {message}", name(machine)));
            }
            MachinePhase::Booting => {
                self.placed(Reason::Rented, &format!("rented {}", name(machine)));
                self.phase(JobPhase::Starting, &message);
            }
            MachinePhase::Ready => self.agent_says(machine, m),
            MachinePhase::Draining => {
                let word = machine.spec.stop.as_ref().and_then(|stop| Reason::from_word(&stop.reason));
                self.checkpointing(word.unwrap_or(Reason::Released), &message);
            }
            MachinePhase::Terminating | MachinePhase::Gone => {}
        }
    }

    fn agent_says(&mut self, machine: &RentedMachine, m: &RentedMachineStatus) {
        self.placed(Reason::Rented, &format!("rented {}", name(machine)));
        match m.agent.as_deref() {
            Some("Running" | "Stopping" | "Exited") => {
                let from = m.restored_step.map_or(String::new(), |s| format!(", resumed from step {s}"));
                let place = self.status.placement.as_ref().map(|p| p.summary.clone()).unwrap_or_default();
                if m.attempt.is_none_or(|of| Some(of) == self.status.attempt) {
                    self.begun(m.restored_step, m.program_since.as_ref().map(|t| t.0));
                }
                self.runs(Reason::Rented, &format!("runs on {place}{from}"));
            }
            Some("Restoring") => {
                self.workers(0);
                self.phase(JobPhase::Starting, "the last checkpoint is downloaded and verified");
            }
            _ => {
                self.workers(0);
                self.phase(JobPhase::Starting, "the machine is up; the program is about to start");
            }
        }
    }

    /// The program of the present attempt went on from this step. Of one that ran before anybody wrote that down, the beginning is not known.
    pub fn begun(&mut self, from_step: Option<i64>, since: Option<Timestamp>) {
        let since = since.or((self.status.phase != JobPhase::Running).then_some(self.now));
        if let (None, Some(since)) = (&self.status.program, since) {
            self.status.program = Some(ProgramStatus { since: Time(since), from_step });
        }
    }

    /// The program runs.
    pub fn runs(&mut self, reason: Reason, message: &str) {
        self.status.waits_since = None;
        self.placed(reason, message);
        self.set(READY, Some(true), Reason::Running, message);
        self.set(RECONCILING, Some(false), Reason::Running, message);
        self.workers(self.workers);
        self.status.started_at.get_or_insert(Time(self.now));
        self.phase(JobPhase::Running, message);
    }

    /// The program was told to save its state and to stop, and goes on elsewhere.
    pub fn checkpointing(&mut self, reason: Reason, message: &str) {
        self.set(RECONCILING, Some(true), reason, message);
        self.phase(JobPhase::Checkpointing, message);
    }

    /// What runs is being stopped.
    pub fn suspending(&mut self, wanted: &Wanted) {
        let message = format!("is being stopped, with a checkpoint: {}", wanted.message);
        self.set(RECONCILING, Some(true), wanted.reason, &message);
        self.phase(JobPhase::Suspending, &message);
    }

    /// Nothing runs and nothing is rented.
    pub fn suspended(&mut self, wanted: &Wanted) {
        let message = &wanted.message;
        self.set(SUSPENDED, Some(true), wanted.reason, message);
        self.set(PLACED, Some(false), wanted.reason, message);
        self.set(READY, Some(false), wanted.reason, message);
        self.set(RECONCILING, Some(false), wanted.reason, message);
        self.status.placement = None;
        self.status.program = None;
        self.workers(0);
        self.phase(JobPhase::Suspended, message);
    }

    /// What had stopped the job is taken back.
    pub fn resumed(&mut self) {
        self.status.cost.exhausted = None;
        if condition(&self.status.conditions, SUSPENDED).is_some_and(|c| c.status == "True") {
            self.set(SUSPENDED, Some(false), Reason::Resumed, "what had stopped the job is taken back");
        }
    }

    /// Another attempt follows, with what the spec says now.
    pub fn moves_on(&mut self, valid: &Valid, attempt: i64, message: &str) {
        self.status.attempt = Some(attempt);
        self.status.restarts_on = None;
        self.status.ending = None;
        self.carries(valid);
        self.resuming(message);
    }

    /// The next attempt takes this machine over.
    pub fn restarts_on(&mut self, machine: &RentedMachine) {
        self.status.restarts_on.clone_from(&machine.metadata.name);
        let message = format!("{}, on the same machine", self.status.message);
        self.resuming(&message);
    }

    /// The present attempt runs what the spec says now.
    pub fn carries(&mut self, valid: &Valid) {
        if self.status.spec_hash.as_ref().is_some_and(|hash| *hash != valid.spec_hash) {
            // Another program, or another number of GPUs.
            self.status.step_rates.clear();
            self.status.saved_seconds = 0;
        }
        self.status.template_hash = Some(valid.template_hash.clone());
        self.status.spec_hash = Some(valid.spec_hash.clone());
    }

    /// A new attempt follows.
    pub fn resuming(&mut self, message: &str) {
        self.set(PLACED, Some(false), Reason::Resuming, message);
        self.set(RECONCILING, Some(true), Reason::Resuming, message);
        self.status.program = None;
        self.workers(0);
        self.phase(JobPhase::Resuming, message);
    }

    /// A run of this name was over before this object was made. Latched.
    pub fn over(&mut self, end: &EndRecord) {
        let message = identity::over(end);
        self.status.run_id = Some(end.run_id.clone());
        match end.outcome {
            Outcome::Complete => self.complete(&message),
            Outcome::Failed => {
                self.failed(Reason::from_word(&end.reason).unwrap_or(Reason::ProgramFailed), &message);
            }
        }
        self.status.finished_at = Some(Time(end.ended_at));
    }

    /// Finished with success. Latched.
    pub fn complete(&mut self, message: &str) {
        self.set(COMPLETE, Some(true), Reason::Finished, message);
        self.set(READY, Some(true), Reason::Finished, message);
        self.set(RECONCILING, Some(false), Reason::Finished, message);
        self.workers(0);
        self.status.finished_at = Some(Time(self.now));
        self.phase(JobPhase::Complete, message);
    }

    /// Failed for good. Latched.
    pub fn failed(&mut self, reason: Reason, message: &str) {
        self.set(FAILED, Some(true), reason, message);
        self.set(READY, Some(false), reason, message);
        self.set(RECONCILING, Some(false), reason, message);
        self.set(STALLED, Some(true), reason, message);
        self.workers(0);
        self.status.finished_at = Some(Time(self.now));
        self.phase(JobPhase::Failed, message);
    }

    /// Adds a record of an attempt, once.
    pub fn remember(&mut self, record: AttemptRecord) {
        if self.status.history.last().is_some_and(|h| h.attempt >= record.attempt) {
            return;
        }
        rates::keep(&mut self.status, self.work_on.as_ref());
        self.status.history.push(record);
        bounded_history(&mut self.status.history);
    }

    /// Work lost with a machine: what was done since its last checkpoint, as far as steps tell time.
    pub fn lost_work(&mut self, machine: &RentedMachineStatus) {
        let since = machine
            .checkpoint
            .as_ref()
            .and_then(|c| c.at.as_ref())
            .map(|t| t.0)
            .or_else(|| machine.running_since.as_ref().map(|t| t.0));
        let until = machine.running_until.as_ref().map_or(self.now, |t| t.0);
        if let Some(since) = since.filter(|_| machine.boot.is_some()) {
            self.status.lost_work_seconds += until.duration_since(since).as_secs().max(0);
        }
    }

    /// Takes the cost of machines that are gone into the job's account, each exactly once, and sums up.
    pub fn settle(&mut self, machines: &[std::sync::Arc<RentedMachine>]) {
        let mut running = Money::ZERO;
        let mut per_hour = Money::ZERO;
        let mut known = Vec::new();
        for machine in machines {
            let (Some(uid), Some(status)) = (machine.metadata.uid.as_ref(), machine.status.as_ref()) else { continue };
            known.push(uid.clone());
            let cost = status.cost.unwrap_or(Money::ZERO);
            if self.status.cost.settled_machines.contains(uid) {
                continue;
            }
            if settles(machine) {
                self.status.cost.settled += cost;
                self.status.cost.settled_machines.push(uid.clone());
            } else {
                running += cost;
                if status.rented_at.is_some() {
                    per_hour += status.price_per_hour.unwrap_or(Money::ZERO);
                }
            }
        }
        self.status.cost.settled_machines.retain(|uid| known.contains(uid));
        self.status.cost.total = self.status.cost.settled + running;
        self.status.cost.per_hour = per_hour;
        self.status.cost.summary = format!("${}", cents(self.status.cost.total));
    }
}

/// The machine's cost is final and belongs into the job's account.
pub fn settles(machine: &RentedMachine) -> bool {
    machine
        .status
        .as_ref()
        .is_some_and(|s| s.phase == MachinePhase::Gone && s.rented_at.is_some() && s.last_report_read)
}

/// `Spot` and `OnDemand` for people.
fn terms(capacity: &str) -> &str {
    match capacity {
        "Spot" => "spot",
        "OnDemand" => "on demand",
        other => other,
    }
}

fn name(machine: &RentedMachine) -> &str {
    machine.metadata.name.as_deref().unwrap_or_default()
}

/// Dollars with two decimals; with up to four below a cent, and never nothing where there is something.
pub fn cents(amount: Money) -> String {
    if amount.micros() >= 10_000 || amount == Money::ZERO {
        let rounded = (amount.micros() + 5_000) / 10_000;
        return format!("{}.{:02}", rounded / 100, rounded % 100);
    }
    Money::from_micros(((amount.micros() + 50) / 100).max(1) * 100).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_shown_as_people_read_it() {
        for (micros, text) in [
            (0, "0.00"),
            (1, "0.0001"),
            (556, "0.0006"),
            (9_949, "0.0099"),
            (9_999, "0.01"),
            (12_345, "0.01"),
            (1_999_999, "2.00"),
        ] {
            assert_eq!(cents(Money::from_micros(micros)), text, "{micros}");
        }
    }
}
