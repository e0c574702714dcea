//! What to do next with one TrainingJob. Pure: no I/O, no clock, no chance.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tradewind_api::rented_machine::{Claim, OrderOutcome};
use tradewind_api::training_job::{AttemptRecord, InCluster, JobPhase};
use tradewind_api::{Reason, RentedMachine, TrainingJob, TrainingJobStatus, names};
use tradewind_checkpoints::identity::EndRecord;

use super::ended::{ended_machine, next_pods};
use super::place::place;
use super::placement::{Choice, Rent};
use super::restart;
use super::status::Report;
use super::stop;
use super::timing::Prospect;
use super::turns::Turn;
use super::valid::{Refused, Valid};
use super::{crew, deadline, ending, fresh, gang};
use crate::controllers::deletion::{Deletion, deletion};
use crate::controllers::pod;
use crate::controllers::worker::WorkerView;
use crate::runtime::Wake;

/// Everything that was read.
pub struct Observed {
    /// Wall time.
    pub now: Timestamp,
    /// The job.
    pub job: Arc<TrainingJob>,
    /// The spec as values.
    pub valid: Valid,
    /// Why it cannot be carried out, if it cannot.
    pub refused: Option<Refused>,
    /// What the API server and the storage say.
    pub admission: Admission,
    /// Pods of the job.
    pub pods: Vec<Arc<Pod>>,
    /// RentedMachines of the job.
    pub machines: Vec<Arc<RentedMachine>>,
    /// The plan, where the present state asks for one.
    pub choice: Option<Choice>,
    /// Name of our Node.
    pub node: String,
    /// Highest attempt that the storage knows, where that was asked: before something is rented.
    pub newest_attempt: Option<i64>,
    /// The run's end, if its place tells of one although the job's status does not.
    pub over: Option<EndRecord>,
    /// Our Node is cordoned: nothing new is rented.
    pub cordoned: bool,
    /// The API server refused the Pod a moment ago, and why.
    pub pod_refused: Option<(Reason, String)>,
    /// The limit of its Provider that the attempt's machine passes by running on.
    pub overrun: Option<String>,
    /// Why the job leaves its machine for a better one, and for which.
    pub moves: Option<String>,
    /// What was found out about the deadline.
    pub prospect: Prospect,
    /// Id for a new run.
    pub fresh_run_id: String,
    /// What the agents of the attempt's workers in the cluster say, by rank.
    pub views: Vec<Option<WorkerView>>,
    /// Nodes that do not answer, of those where that was asked: where an attempt at its end waits for Pods.
    pub dead_nodes: BTreeSet<String>,
    /// What a job with several workers may do that has not all its nodes.
    pub turn: Turn,
    /// Other jobs with several workers wait for the same nodes.
    pub others_wait: bool,
    /// Time that a worker's agent has from the start of its Pod to its first report.
    pub start_deadline: Duration,
    /// Image with the agent.
    pub agent_image: Option<String>,
}

impl Observed {
    /// Time until then; none if that is over.
    pub fn left(&self, until: Timestamp) -> Duration {
        Duration::try_from(until.duration_since(self.now)).unwrap_or_default()
    }
}

#[cfg(test)]
impl Observed {
    /// A job of which nothing is there.
    pub fn bare(job: TrainingJob) -> Self {
        let job = Arc::new(job);
        Self {
            now: Timestamp::UNIX_EPOCH,
            valid: super::valid::values(&job),
            job,
            refused: None,
            admission: Admission::Fine { newest_attempt: None, run_id: None },
            pods: Vec::new(),
            machines: Vec::new(),
            choice: None,
            node: "tradewind".to_owned(),
            newest_attempt: None,
            over: None,
            cordoned: false,
            pod_refused: None,
            overrun: None,
            moves: None,
            prospect: Prospect::Unknown,
            fresh_run_id: String::new(),
            views: Vec::new(),
            dead_nodes: BTreeSet::new(),
            turn: Turn::Go,
            others_wait: false,
            start_deadline: Duration::from_mins(15),
            agent_image: Some("agent:1".to_owned()),
        }
    }
}

/// What the API server and the storage say about the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// All well. The highest attempt that the storage knows, and the id of the run there.
    Fine {
        /// Highest attempt in the catalogue.
        newest_attempt: Option<i64>,
        /// Id of the run in the catalogue.
        run_id: Option<String>,
    },
    /// The run is over already.
    Over(Box<EndRecord>),
    /// Not good now.
    Refused {
        /// Reason for `Accepted`.
        reason: Reason,
        /// Sentence.
        message: String,
        /// It may pass by itself.
        passing: bool,
    },
}

/// One external change.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Make Pods of this attempt, for the scheduler or to be rented for.
    CreatePods {
        /// Attempt.
        attempt: i64,
        /// Numbers of the workers.
        ranks: Vec<i64>,
    },
    /// Make the Pod of this attempt on our Node: a machine lives for it.
    RemakePod {
        /// Attempt.
        attempt: i64,
    },
    /// Write a RentedMachine that claims the Pod.
    Claim {
        /// Offers.
        rent: Box<Rent>,
        /// Attempt.
        attempt: i64,
        /// The Pod.
        claim: Claim,
    },
    /// Make the Pod of this attempt on our Node: it takes over the machine of the attempt before.
    RestartPod {
        /// Attempt.
        attempt: i64,
    },
    /// Let this RentedMachine serve the next attempt, for its Pod.
    TakeOver {
        /// Name of the RentedMachine.
        machine: String,
        /// The Pod.
        claim: Claim,
        /// Attempt.
        attempt: i64,
    },
    /// Let this RentedMachine claim another Pod (the one made again).
    Reclaim {
        /// Name of the RentedMachine.
        machine: String,
        /// The Pod.
        claim: Claim,
    },
    /// Put our finaliser and unlimited tolerations on the Pod.
    PreparePod(String),
    /// Bind the Pod to our Node.
    Bind {
        /// Name of the Pod.
        pod: String,
        /// Its uid.
        uid: String,
        /// Name of the RentedMachine.
        machine: String,
    },
    /// Delete a Pod that others have failed while its machine lives, or that should not run now.
    RemovePod(String),
    /// Delete the Pods of an attempt that ends.
    RemovePods(Vec<String>),
    /// Give these Pods, which wait, another signed URL.
    RenewUrls(Vec<String>),
    /// Ask the machine for a checkpoint and its end.
    Stop {
        /// Name of the RentedMachine.
        machine: String,
        /// Reason of its end.
        reason: Reason,
        /// Sentence.
        message: String,
    },
    /// Delete this RentedMachine: the job no longer wants it.
    DropMachine(String),
}

/// What comes out.
#[derive(Debug)]
pub struct Decision {
    /// The status as it should be now.
    pub status: TrainingJobStatus,
    /// One external change, after the status is written.
    pub step: Step,
    /// When to look again.
    pub wake: Wake,
    /// The status only passes.
    pub passing: bool,
}

impl Decision {
    /// The same, but the next attempt only gets its number, and waits.
    pub fn without_beginning(mut self) -> Self {
        if matches!(self.step, Step::CreatePods { .. }) {
            (self.step, self.wake) = (Step::Rest, Wake::After(Duration::ZERO, "the next attempt waits"));
        }
        self
    }
}

/// How long after a refusal the Pod is tried again.
pub const POD_AGAIN: Duration = Duration::from_secs(10);

/// Most records of earlier attempts in a status.
const HISTORY: usize = 20;

/// Decides. Total: every combination of inputs has an answer.
pub fn decide(o: &Observed) -> Decision {
    deadline::keep(o, fresh::keep(o, next(o)))
}

fn next(o: &Observed) -> Decision {
    let mut r = Report::new(o);
    r.settle(&o.machines);
    if r.status.phase.is_terminal() {
        return finished(o, r);
    }
    let valid = &o.valid;
    if let Some(refused) = &o.refused {
        r.not_accepted(refused.reason, &refused.message, false);
        return held_up(o, r, valid);
    }
    if let Admission::Refused { reason, message, passing } = &o.admission {
        // What runs already goes on: a Secret that vanishes later is the machine's trouble, told there.
        if r.status.attempt.is_none() {
            r.not_accepted(*reason, message, *passing);
            let wake = if *passing {
                Wake::After(Duration::from_secs(10), "the obstacle may be gone")
            } else {
                Wake::OnChange
            };
            return r.rest(wake);
        }
    } else {
        r.accepted();
    }
    if let Some(end) = &o.over {
        r.over(end);
        return r.rest(Wake::OnChange);
    }
    if let (Admission::Over(end), None) = (&o.admission, r.status.attempt) {
        r.over(end);
        return r.rest(Wake::OnChange);
    }
    let wanted = stop::wanted(o, &r.status, valid);
    let Some(attempt) = r.status.attempt else {
        let Some(wanted) = wanted else { return first_attempt(o, r, valid) };
        r.suspended(&wanted);
        return r.rest(Wake::OnChange);
    };
    if let Some(decision) = ended(o, &mut r, attempt) {
        return decision;
    }
    if let Some(decision) = ending::proceed(o, &mut r, attempt) {
        return decision;
    }
    let attempt = r.status.attempt.unwrap_or(attempt);
    if let Some(wanted) = wanted {
        restart::let_go(o, &mut r, attempt);
        return stop::stopping(o, r, valid, attempt, &wanted);
    }
    r.resumed();
    running(o, r, valid, attempt)
}

/// A spec that cannot be carried out: what was started before goes on, is stopped and ends as it would; nothing new begins.
fn held_up(o: &Observed, mut r: Report, valid: &Valid) -> Decision {
    let Some(attempt) = r.status.attempt else { return r.rest(Wake::OnChange) };
    if let Some(decision) = ended(o, &mut r, attempt) {
        return decision;
    }
    if let Some(decision) = ending::proceed(o, &mut r, attempt) {
        return decision;
    }
    restart::let_go(o, &mut r, attempt);
    if let Some(wanted) = stop::wanted(o, &r.status, valid) {
        return stop::stopping(o, r, valid, attempt, &wanted);
    }
    let Some(machine) = machine_of(o, attempt).filter(|m| lives(m)) else {
        let there = o.pods.iter().any(|pod| pod::is_of(pod, attempt) && !pod::node(pod).is_empty());
        return if there && crew::is_theirs(o, attempt) { crew::look(o, r, attempt) } else { r.rest(Wake::OnChange) };
    };
    r.follow(machine);
    let soon = stop::look_again(&r.status, valid, machine).unwrap_or(Duration::from_mins(1));
    r.rest(Wake::After(soon, "cost is looked at"))
}

/// What follows from the end of the attempt's machine, if it has one.
fn ended(o: &Observed, r: &mut Report, attempt: i64) -> Option<Decision> {
    let machine = machine_of(o, attempt)?;
    let held = stop::is_held(o, &r.status);
    let exited = restart::program_exited(o, r, attempt, machine, held);
    let decision = exited.or_else(|| ended_machine(o, r, &o.valid, attempt, machine))?;
    Some(if held { decision.without_beginning() } else { decision })
}

/// The RentedMachine of an attempt: there is never more than one, because its name says which attempt it is for.
pub fn machine_of(o: &Observed, attempt: i64) -> Option<&Arc<RentedMachine>> {
    o.machines.iter().find(|m| m.spec.attempt == attempt)
}

/// A machine that neither ends nor is being deleted.
pub fn lives(machine: &RentedMachine) -> bool {
    machine.metadata.deletion_timestamp.is_none() && machine.status.as_ref().is_none_or(|s| s.ended.is_none())
}

/// A machine of this attempt that is going: never rent beside it. Once nothing is left of it, the attempt may have another.
fn in_the_way(o: &Observed, attempt: i64) -> bool {
    machine_of(o, attempt).is_some_and(|m| !lives(m))
}

fn finished(o: &Observed, r: Report) -> Decision {
    let machine = o.machines.iter().find(|m| lives(m)).and_then(|m| m.metadata.name.clone());
    if let Some(step) = machine.map(Step::DropMachine).or_else(|| left_pod(o, None).map(Step::RemovePod)) {
        return r.decide(step, Wake::OnChange);
    }
    let (Some(ttl), Some(finished)) = (&o.job.spec.ttl_after_finished, &r.status.finished_at) else {
        return r.rest(Wake::OnChange);
    };
    let due = finished.0.checked_add(Duration::from_secs(ttl.seconds())).unwrap_or(Timestamp::MAX);
    let Some(pod) = o.pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) else {
        return r.rest(Wake::OnChange);
    };
    if o.now < due {
        let left = o.left(due);
        return r.rest(Wake::After(left + Duration::from_millis(50), "ttlAfterFinished is over"));
    }
    r.decide(Step::RemovePod(pod.metadata.name.clone().unwrap_or_default()), Wake::OnChange)
}

/// A Pod in which nothing will ever run: not of this attempt, unfinished, and no machine's claim. One that was made again on a machine
/// that ended before it could claim it, for example.
fn left_pod(o: &Observed, attempt: Option<i64>) -> Option<String> {
    let attempt = attempt.map(|a| a.to_string());
    let pod = o.pods.iter().find(|pod| {
        let other = pod::label(pod, names::ATTEMPT) != attempt.as_ref();
        let claimed = o.machines.iter().any(|m| Some(&m.spec.claim.pod_uid) == pod.metadata.uid.as_ref());
        let over = pod::is_over(pod) || pod.metadata.deletion_timestamp.is_some();
        other && !claimed && !over
    })?;
    pod.metadata.name.clone()
}

fn first_attempt(o: &Observed, mut r: Report, valid: &Valid) -> Decision {
    let Admission::Fine { newest_attempt, run_id } = &o.admission else { return r.rest(Wake::OnChange) };
    let attempt = newest_attempt.map_or(0, |n| n + 1);
    r.status.attempt = Some(attempt);
    r.status.run_id = Some(run_id.clone().unwrap_or_else(|| o.fresh_run_id.clone()));
    r.carries(valid);
    if let Some(decision) = gang::await_turn(o, &mut r) {
        return decision;
    }
    r.phase(JobPhase::Waiting, if valid.workers == 1 { "its Pod is being made" } else { "its Pods are being made" });
    r.workers(0);
    next_pods(&r, valid, attempt)
}

fn running(o: &Observed, mut r: Report, valid: &Valid, attempt: i64) -> Decision {
    if let Some(newest) = o.newest_attempt.filter(|newest| *newest >= attempt) {
        // Asked only where no machine of this attempt is left. The API server was restored from an older state: numbers that were used,
        // this one perhaps, are never used again.
        r.moves_on(
            valid,
            newest + 1,
            &format!("the storage knows attempt {newest} already; attempt {} goes on from there", newest + 1),
        );
        return r.decide(Step::Rest, Wake::After(Duration::ZERO, "the next attempt"));
    }
    if let Some(decision) = restart::take_over(o, &mut r, attempt) {
        return decision;
    }
    let machine = machine_of(o, attempt).filter(|m| lives(m));
    if in_the_way(o, attempt) {
        r.phase(r.status.phase, "the machine is being ended");
        return r.rest(Wake::OnChange);
    }
    if let Some(pod) = left_pod(o, Some(attempt)) {
        return r.decide(Step::RemovePod(pod), Wake::OnChange);
    }
    if machine.is_none() && (crew::is_theirs(o, attempt) || r.is_in_cluster()) {
        return crew::look(o, r, attempt);
    }
    let pod = o.pods.iter().find(|p| pod::is_of(p, attempt));
    if let Some(machine) = machine {
        r.follow(machine);
        if machine.spec.stop.is_some() {
            // Once asked to stop it goes to its end, even if what had asked for it is taken back.
            return r.rest(Wake::OnChange);
        }
        if let Some((reason, message)) = unwell(o, valid, machine) {
            r.checkpointing(reason, &format!("{message}; it is asked for a checkpoint and stopped"));
            let machine = machine.metadata.name.clone().unwrap_or_default();
            return r.decide(Step::Stop { machine, reason, message }, Wake::OnChange);
        }
    }
    let Some(pod) = pod else {
        if let Some((reason, message)) = &o.pod_refused {
            match machine {
                Some(_) => r.phase(r.status.phase, &format!("{}; {message}", r.status.message)),
                None => r.waiting(*reason, message),
            }
            return r.rest(Wake::After(POD_AGAIN, "the Pod may be admitted now"));
        }
        if let Some(Choice::Wait { message }) = o.choice.as_ref().filter(|_| machine.is_none()) {
            r.waiting(Reason::WaitingForOffers, message);
            return r.rest(Wake::After(Duration::from_secs(2), "offers"));
        }
        if machine.is_some_and(|m| has_open_order(m)) {
            // Whether a machine was bought decides where the Pod is made again.
            r.phase(JobPhase::Renting, "its Pod is gone; it is made again once the order's outcome is known");
            return r.rest(Wake::After(Duration::from_secs(2), "an order's outcome"));
        }
        let on_node = machine.is_some_and(|m| rented(m));
        if machine.is_some() && !on_node {
            // A claim for a Pod that is gone: rented_machine gives it up by itself.
            r.phase(JobPhase::Waiting, "its Pod is gone; it is made again");
        }
        if let Some(pause) = gang::pause(o).filter(|_| machine.is_none()) {
            r.resuming(&pause.words());
            return r.rest(pause.wake(o));
        }
        let step = if on_node { Step::RemakePod { attempt } } else { Step::CreatePods { attempt, ranks: vec![0] } };
        return r.decide(step, Wake::OnChange);
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let bound = pod::node(pod);
    let claim = pod::claim(pod);
    let on_ours = bound == o.node;
    if let (Some(machine), true, Some(how @ (Deletion::Asked | Deletion::Forced))) =
        (machine.filter(|m| rented(m)), on_ours, deletion(pod))
    {
        return pod_deleted(r, machine, how);
    }
    let lost = pod::phase(pod) == "Failed" && on_ours && machine.is_some();
    if lost || pod.metadata.deletion_timestamp.is_some() {
        let why = if machine.is_some() {
            "its Pod was lost; it is made again on the same machine"
        } else {
            "its Pod is going; it is made again"
        };
        r.phase(r.status.phase, why);
        let step = if pod.metadata.deletion_timestamp.is_some() { Step::Rest } else { Step::RemovePod(claim.pod_name) };
        return r.decide(step, Wake::OnChange);
    }
    if let Some(machine) = machine {
        if !bound.is_empty() && !on_ours {
            // The scheduler was faster than our bind: nothing was spent, the claim goes.
            return r.decide(Step::DropMachine(machine.metadata.name.clone().unwrap_or_default()), Wake::OnChange);
        }
        let name = machine.metadata.name.clone().unwrap_or_default();
        if machine.spec.claim.pod_uid != uid {
            return if rented(machine) {
                r.decide(Step::Reclaim { machine: name, claim }, Wake::OnChange)
            } else {
                r.decide(Step::Rest, Wake::After(Duration::from_secs(2), "an old claim is given up"))
            };
        }
        if bound.is_empty() {
            let pod_name = claim.pod_name.clone();
            let step = if pod::is_held(pod) {
                Step::Bind { pod: pod_name, uid, machine: name }
            } else {
                Step::PreparePod(pod_name)
            };
            return r.decide(step, Wake::OnChange);
        }
        let soon = stop::look_again(&r.status, valid, machine).unwrap_or(Duration::from_mins(1));
        return r.decide(Step::Rest, Wake::After(soon, "cost is looked at"));
    }
    place(o, r, valid, attempt, pod, claim, bound)
}

/// Why a machine must stop, with a checkpoint, whatever became of its Pod.
fn unwell(o: &Observed, valid: &Valid, machine: &RentedMachine) -> Option<(Reason, String)> {
    if machine.status.as_ref().is_some_and(|s| s.stalled_since.is_some()) {
        let minutes = valid.stall_timeout.as_secs().div_ceil(60);
        let message = format!("the program showed no sign of life for {minutes} min (stallTimeout)");
        return Some((Reason::ProgramStalled, message));
    }
    if let Some(why) = o.moves.as_ref().filter(|_| rented(machine)) {
        let message = format!("moves to another machine, from its last checkpoint: {why}");
        return Some((Reason::Moving, message));
    }
    let limit = o.overrun.as_ref().filter(|_| rented(machine))?;
    let message = format!("{limit}; the job goes on from its last checkpoint when there is room, there or elsewhere");
    Some((Reason::LimitReached, message))
}

fn has_open_order(machine: &RentedMachine) -> bool {
    machine.status.as_ref().is_some_and(|s| s.orders.iter().any(|o| o.outcome == OrderOutcome::Open))
}

/// A machine was bought.
fn rented(machine: &RentedMachine) -> bool {
    machine.status.as_ref().is_some_and(|s| s.machine_id.is_some())
}

/// Somebody asked for the end of the Pod: the program saves its state and goes on elsewhere; by force, it ends at once.
fn pod_deleted(mut r: Report, machine: &RentedMachine, how: Deletion) -> Decision {
    let name = machine.metadata.name.clone().unwrap_or_default();
    if how == Deletion::Forced {
        r.resuming(
            "its Pod was deleted by force: the machine is ended at once, the job goes on from its last checkpoint",
        );
        return r.decide(Step::DropMachine(name), Wake::OnChange);
    }
    let message = "its Pod was deleted".to_owned();
    r.checkpointing(
        Reason::PodDeleted,
        "its Pod was deleted: the program saves its state, then the job goes on elsewhere",
    );
    r.decide(Step::Stop { machine: name, reason: Reason::PodDeleted, message }, Wake::OnChange)
}

/// Whether a plan is wanted in this state: decided before the plan is made, so that nothing is planned in vain.
pub fn wants_plan(o: &Observed) -> bool {
    if o.refused.is_some() {
        return false;
    }
    let valid = &o.valid;
    let Some(status) = &o.job.status else { return false };
    let Some(attempt) = status.attempt else { return false };
    if status.phase.is_terminal() || valid.rental.is_err() || valid.in_cluster == InCluster::Only || o.cordoned {
        return false;
    }
    if stop::wanted(o, status, valid).is_some() {
        return false;
    }
    if machine_of(o, attempt).is_some_and(|m| lives(m)) || in_the_way(o, attempt) {
        return false;
    }
    if restart::awaited(o, status.restarts_on.as_ref(), attempt).is_some() {
        return false;
    }
    let Some(pod) = o.pods.iter().find(|p| pod::is_of(p, attempt)) else {
        return valid.cluster_price.is_some() && status.ending.is_none();
    };
    if pod::gate(pod).is_some() {
        return false;
    }
    let bound = pod::node(pod);
    match (bound.is_empty(), bound == o.node) {
        (_, true) => true,
        (true, false) => valid.in_cluster == InCluster::Never || pod::unschedulable(pod).is_some(),
        (false, false) => false,
    }
}

/// Keeps the history bounded.
pub fn bounded_history(history: &mut Vec<AttemptRecord>) {
    if history.len() > HISTORY {
        let cut = history.len() - HISTORY;
        history.drain(..cut);
    }
}
