//! What to do next with one TrainingJob. Pure: no I/O, no clock, no chance.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::rented_machine::{Claim, MachinePhase, OrderOutcome};
use tradewind_api::training_job::{AttemptRecord, FailureAction, InCluster, JobPhase, PlacementStatus, WorkersStatus};
use tradewind_api::{Reason, RentedMachine, TrainingJob, TrainingJobStatus, conditions, names};
use tradewind_checkpoints::identity::EndRecord;

use super::placement::{Choice, Rent};
use super::status::Report;
use super::stop;
use super::valid::Valid;
use crate::controllers::deletion::{Deletion, deletion};
use crate::runtime::Wake;

/// Everything that was read.
pub struct Observed {
    /// Wall time.
    pub now: Timestamp,
    /// The job.
    pub job: Arc<TrainingJob>,
    /// The checked spec, or why it is refused.
    pub valid: Result<Valid, super::valid::Refused>,
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
    /// Our Node is cordoned: nothing new is rented.
    pub cordoned: bool,
    /// Id for a new run.
    pub fresh_run_id: String,
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
    /// Make the Pod of this attempt; on our Node if a machine lives for it.
    CreatePod {
        /// Attempt.
        attempt: i64,
        /// Past the scheduler.
        on_node: bool,
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
}

/// Most records of earlier attempts in a status.
const HISTORY: usize = 20;

/// Decides. Total: every combination of inputs has an answer.
pub fn decide(o: &Observed) -> Decision {
    let mut r = Report::new(o);
    r.settle(&o.machines);
    if r.status.phase.is_terminal() {
        return finished(o, r);
    }
    let valid = match &o.valid {
        Ok(valid) => valid,
        Err(refused) => {
            let alive = r.status.attempt.and_then(|attempt| machine_of(o, attempt)).filter(|m| lives(m));
            r.not_accepted(refused.reason, &refused.message, false);
            if let Some(machine) = alive {
                // What was started under an earlier spec goes on.
                r.follow(machine);
            }
            return r.rest(Wake::OnChange);
        }
    };
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
    if let Some(machine) = machine_of(o, attempt)
        && let Some(mut decision) = ended_machine(o, &mut r, valid, attempt, machine)
    {
        if wanted.is_some() && matches!(decision.step, Step::CreatePod { .. }) {
            // The next attempt has its number, and waits for its time.
            (decision.step, decision.wake) = (Step::Rest, Wake::After(Duration::ZERO, "the job is being stopped"));
        }
        return decision;
    }
    let attempt = r.status.attempt.unwrap_or(attempt);
    match wanted {
        Some(wanted) => stop::stopping(o, r, valid, attempt, &wanted),
        None => {
            r.resumed();
            running(o, r, valid, attempt)
        }
    }
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
        let left = Duration::try_from(due.duration_since(o.now)).unwrap_or_default();
        return r.rest(Wake::After(left + Duration::from_millis(50), "ttlAfterFinished is over"));
    }
    r.decide(Step::RemovePod(pod.metadata.name.clone().unwrap_or_default()), Wake::OnChange)
}

/// A Pod in which nothing will ever run: not of this attempt, unfinished, and no machine's claim. One that was made again on a machine
/// that ended before it could claim it, for example.
fn left_pod(o: &Observed, attempt: Option<i64>) -> Option<String> {
    let attempt = attempt.map(|a| a.to_string());
    let pod = o.pods.iter().find(|pod| {
        let other = label(pod, names::ATTEMPT) != attempt.as_ref();
        let claimed = o.machines.iter().any(|m| Some(&m.spec.claim.pod_uid) == pod.metadata.uid.as_ref());
        let over = matches!(pod_phase(pod), "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some();
        other && !claimed && !over
    })?;
    pod.metadata.name.clone()
}

fn first_attempt(o: &Observed, mut r: Report, valid: &Valid) -> Decision {
    let Admission::Fine { newest_attempt, run_id } = &o.admission else { return r.rest(Wake::OnChange) };
    let attempt = newest_attempt.map_or(0, |n| n + 1);
    r.status.attempt = Some(attempt);
    r.status.run_id = Some(run_id.clone().unwrap_or_else(|| o.fresh_run_id.clone()));
    r.status.template_hash = Some(valid.template_hash.clone());
    r.phase(JobPhase::Waiting, "its Pod is being made");
    r.workers(0);
    r.decide(Step::CreatePod { attempt, on_node: false }, Wake::OnChange)
}

/// A machine of this attempt that has ended: what it means for the job. `None` if the attempt goes on.
fn ended_machine(
    o: &Observed,
    r: &mut Report,
    valid: &Valid,
    attempt: i64,
    machine: &RentedMachine,
) -> Option<Decision> {
    let status = machine.status.as_ref()?;
    let ended = status.ended.as_deref()?;
    r.follow(machine);
    if status.rented_at.is_none() && status.machine_id.is_none() {
        // Nothing was rented: the same attempt is placed again, once nothing is left behind.
        if status.phase == MachinePhase::Gone {
            return None;
        }
        r.phase(JobPhase::Renting, &status.message);
        return Some(r.clone().rest(Wake::OnChange));
    }
    if !status.last_report_read {
        if status.exit_code.is_some() {
            r.phase(r.status.phase, "the program has ended; the last report is read");
        } else {
            r.phase(JobPhase::Resuming, "the machine is being ended; its last report is read first");
        }
        return Some(r.clone().rest(Wake::After(Duration::from_secs(5), "the last report")));
    }
    let message = status.ended_message.clone().unwrap_or_default();
    let place = r.status.placement.as_ref().map(|p| p.summary.clone()).unwrap_or_default();
    r.remember(AttemptRecord {
        attempt,
        place,
        ended: ended.to_owned(),
        message: message.clone(),
        from_step: status.restored_step,
        last_step: status.progress.as_ref().map(|p| p.step),
        at: Some(Time(o.now)),
    });
    match status.exit_code {
        Some(0) => {
            r.complete("the program ended with exit code 0");
            return Some(r.clone().rest(Wake::OnChange));
        }
        Some(code) if FAILURES.iter().any(|reason| reason.as_str() == ended) => {
            return Some(program_failed(r, valid, attempt, code, status.exit_log.as_deref().unwrap_or(""), &message));
        }
        _ => {}
    }
    // A machine that never ran anything is no preemption of work, but the attempt number is spent: its agent may still be alive.
    let asked = machine.spec.stop.is_some()
        || [Reason::Deleted, Reason::OperatorSilent].iter().any(|reason| reason.as_str() == ended);
    if ended == Reason::ProgramStalled.as_str() {
        r.status.stalls += 1;
        if r.status.stalls > valid.max_restarts {
            let message =
                format!("{message}, for the {}. time; maxRestarts is {}", r.status.stalls, valid.max_restarts);
            r.failed(Reason::ProgramStalled, &message);
            return Some(r.clone().rest(Wake::OnChange));
        }
    }
    if !asked && (status.boot.is_some() || ended == Reason::Preempted.as_str()) {
        r.status.preemptions += 1;
    }
    r.lost_work(status);
    r.status.attempt = Some(attempt + 1);
    r.status.template_hash = Some(valid.template_hash.clone());
    r.resuming(&format!("{message}; attempt {} goes on from the last checkpoint", attempt + 1));
    Some(r.clone().decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange))
}

/// Reasons of an end that count as the program's own failure.
const FAILURES: [Reason; 3] = [Reason::ProgramFailed, Reason::OutOfMemory, Reason::Killed];

fn program_failed(r: &mut Report, valid: &Valid, attempt: i64, code: i64, log: &str, how: &str) -> Decision {
    let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("").trim();
    let said =
        if last.is_empty() { String::new() } else { format!(" (\"{}\")", conditions::bounded(last.to_owned(), 200)) };
    let rule = valid.rules.iter().find(|rule| rule.exit_codes.iter().any(|named| i64::from(*named) == code));
    let action = rule.map(|rule| rule.action);
    if action == Some(FailureAction::Fail) {
        r.failed(Reason::ProgramFailed, &format!("{how}{said}; failurePolicy.rules says Fail for this exit code"));
        return r.clone().rest(Wake::OnChange);
    }
    if action == Some(FailureAction::Restart) {
        r.status.attempt = Some(attempt + 1);
        r.status.template_hash = Some(valid.template_hash.clone());
        r.resuming(&format!("{how}{said}; failurePolicy.rules says Restart for this exit code"));
        return r.clone().decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange);
    }
    if r.status.restarts >= valid.max_restarts {
        let reason = if valid.max_restarts == 0 { Reason::ProgramFailed } else { Reason::TooManyRestarts };
        let message = format!("{how}{said} after {} restarts", r.status.restarts);
        r.failed(reason, &message);
        return r.clone().rest(Wake::OnChange);
    }
    r.status.restarts += 1;
    r.status.attempt = Some(attempt + 1);
    r.status.template_hash = Some(valid.template_hash.clone());
    let n = r.status.restarts;
    r.resuming(&format!("{how}{said}; restart {n} of {}", valid.max_restarts));
    r.clone().decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange)
}

fn running(o: &Observed, mut r: Report, valid: &Valid, attempt: i64) -> Decision {
    if let Some(newest) = o.newest_attempt.filter(|newest| *newest > attempt) {
        // The API server was restored from an older state: numbers that were used are never used again.
        r.status.attempt = Some(newest + 1);
        r.status.template_hash = Some(valid.template_hash.clone());
        r.resuming(&format!("the storage knows attempt {newest} already; attempt {} goes on from there", newest + 1));
        return r.decide(Step::Rest, Wake::After(Duration::ZERO, "the next attempt"));
    }
    let machine = machine_of(o, attempt).filter(|m| lives(m));
    if in_the_way(o, attempt) {
        r.phase(r.status.phase, "the machine is being ended");
        return r.rest(Wake::OnChange);
    }
    if let Some(pod) = left_pod(o, Some(attempt)) {
        return r.decide(Step::RemovePod(pod), Wake::OnChange);
    }
    let pod = o.pods.iter().find(|p| label(p, names::ATTEMPT).is_some_and(|a| *a == attempt.to_string()));
    if let Some(machine) = machine {
        r.follow(machine);
        if machine.spec.stop.is_some() {
            // Once asked to stop it goes to its end, even if what had asked for it is taken back.
            return r.rest(Wake::OnChange);
        }
    }
    let Some(pod) = pod else {
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
        return r.decide(Step::CreatePod { attempt, on_node }, Wake::OnChange);
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    let claim = Claim {
        pod_namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: uid.clone(),
    };
    let on_ours = bound == o.node;
    if let (Some(machine), true, Some(how @ (Deletion::Asked | Deletion::Forced))) =
        (machine.filter(|m| rented(m)), on_ours, deletion(pod))
    {
        return pod_deleted(r, machine, how);
    }
    if !bound.is_empty() && !on_ours && pod.metadata.deletion_timestamp.is_some() {
        // It may have begun to run: its number is spent.
        r.status.attempt = Some(attempt + 1);
        r.status.template_hash = Some(valid.template_hash.clone());
        r.resuming(&format!("its Pod in the cluster was deleted; attempt {} follows once it is gone", attempt + 1));
        return r.decide(Step::Rest, Wake::After(Duration::ZERO, "the next attempt"));
    }
    let lost = pod_phase(pod) == "Failed" && on_ours && machine.is_some();
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
    if !bound.is_empty() && bound != o.node {
        return in_cluster(r, valid, attempt, pod, machine);
    }
    if let Some(machine) = machine {
        let name = machine.metadata.name.clone().unwrap_or_default();
        if machine.spec.claim.pod_uid != uid {
            return if rented(machine) {
                r.decide(Step::Reclaim { machine: name, claim }, Wake::OnChange)
            } else {
                r.decide(Step::Rest, Wake::After(Duration::from_secs(2), "an old claim is given up"))
            };
        }
        if bound.is_empty() {
            let prepared =
                pod.metadata.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == names::POD_FINALIZER));
            let pod_name = claim.pod_name.clone();
            let step =
                if prepared { Step::Bind { pod: pod_name, uid, machine: name } } else { Step::PreparePod(pod_name) };
            return r.decide(step, Wake::OnChange);
        }
        let soon = stop::look_again(&r.status, valid, machine).unwrap_or(Duration::from_mins(1));
        if machine.status.as_ref().is_some_and(|s| s.stalled_since.is_some()) {
            let minutes = valid.stall_timeout.as_secs().div_ceil(60);
            let message = format!("the program showed no sign of life for {minutes} min (stallTimeout)");
            r.checkpointing(
                Reason::ProgramStalled,
                &format!("{message}; it is asked for a checkpoint and started again"),
            );
            return r.decide(Step::Stop { machine: name, reason: Reason::ProgramStalled, message }, Wake::OnChange);
        }
        return r.decide(Step::Rest, Wake::After(soon, "cost is looked at"));
    }
    place(o, r, valid, attempt, pod, claim, bound)
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

/// Neither bound elsewhere nor claimed: wait for the cluster, or rent.
fn place(o: &Observed, mut r: Report, valid: &Valid, attempt: i64, pod: &Pod, claim: Claim, bound: &str) -> Decision {
    if bound.is_empty()
        && valid.in_cluster != InCluster::Never
        && let Some(decision) = wait_for_cluster(o, &mut r, valid, pod)
    {
        return decision;
    }
    if o.cordoned {
        r.waiting(
            Reason::NodeCordoned,
            &format!("Node {0} is cordoned: nothing is rented before `kubectl uncordon {0}`", o.node),
        );
        return r.rest(Wake::After(Duration::from_mins(1), "the Node may be uncordoned"));
    }
    match &o.choice {
        None | Some(Choice::Wait { .. }) => {
            let message = match &o.choice {
                Some(Choice::Wait { message }) => message.clone(),
                _ => "offers are read".to_owned(),
            };
            r.waiting(Reason::WaitingForOffers, &message);
            r.decide(Step::Rest, Wake::After(Duration::from_secs(2), "offers"))
        }
        Some(Choice::None { reason, message }) => {
            r.waiting(*reason, message);
            r.decide(Step::Rest, Wake::After(Duration::from_secs(15), "the market may have changed"))
        }
        Some(Choice::Rent(rent)) => {
            r.chosen(rent);
            r.decide(Step::Claim { rent: rent.clone(), attempt, claim }, Wake::OnChange)
        }
    }
}

fn wait_for_cluster(o: &Observed, r: &mut Report, valid: &Valid, pod: &Pod) -> Option<Decision> {
    let refused = unschedulable(pod);
    if let (Some(since), None) = (refused, r.status.unschedulable_since.as_ref()) {
        r.status.unschedulable_since = Some(Time(since));
    }
    if let Err(obstacle) = &valid.rental {
        r.waiting(Reason::WaitingForCluster, &format!("stays in the cluster: {}", obstacle.message));
        return Some(r.clone().rest(Wake::OnChange));
    }
    if valid.in_cluster == InCluster::Only {
        r.waiting(Reason::WaitingForCluster, "placement.inCluster is Only; waits for room in the cluster");
        return Some(r.clone().rest(Wake::OnChange));
    }
    if refused.is_none() {
        r.waiting(Reason::WaitingForCluster, "the scheduler looks for room in the cluster");
        return Some(r.clone().rest(Wake::OnChange));
    }
    let since = r.status.unschedulable_since.as_ref().map_or(o.now, |t| t.0);
    let due = since.checked_add(valid.burst_after).unwrap_or(Timestamp::MAX);
    if o.now < due {
        let left = Duration::try_from(due.duration_since(o.now)).unwrap_or_default();
        r.waiting(
            Reason::WaitingForCluster,
            &format!("the cluster is full; a machine is rented if it still is at {}", due.strftime("%H:%M:%S UTC")),
        );
        return Some(r.clone().rest(Wake::After(left + Duration::from_millis(50), "burstAfter is over")));
    }
    None
}

/// Whether a plan is wanted in this state: decided before the plan is made, so that nothing is planned in vain.
pub fn wants_plan(o: &Observed) -> bool {
    let Ok(valid) = &o.valid else { return false };
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
    let Some(pod) = o.pods.iter().find(|p| label(p, names::ATTEMPT).is_some_and(|a| *a == attempt.to_string())) else {
        return false;
    };
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    match (bound.is_empty(), bound == o.node) {
        (_, true) => true,
        (true, false) => valid.in_cluster == InCluster::Never || unschedulable(pod).is_some(),
        (false, false) => false,
    }
}

fn in_cluster(mut r: Report, valid: &Valid, attempt: i64, pod: &Pod, machine: Option<&Arc<RentedMachine>>) -> Decision {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    r.status.placement = Some(PlacementStatus {
        summary: "cluster".to_owned(),
        why: Some(format!("runs on node {node}")),
        ..PlacementStatus::default()
    });
    if let Some(machine) = machine {
        // The scheduler was faster than our bind: nothing was spent, the claim goes.
        let name = machine.metadata.name.clone().unwrap_or_default();
        return r.decide(Step::DropMachine(name), Wake::OnChange);
    }
    let disrupted = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True"));
    match pod_phase(pod) {
        "Succeeded" if !disrupted => {
            r.complete(&format!("the program ended with exit code 0 on node {node}"));
            r.rest(Wake::OnChange)
        }
        "Failed" | "Succeeded" if disrupted => {
            r.status.preemptions += 1;
            r.status.attempt = Some(attempt + 1);
            r.resuming(&format!("the Pod was disrupted on node {node}; attempt {} follows", attempt + 1));
            r.decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange)
        }
        "Failed" => {
            let code = exit_code(pod).unwrap_or(1);
            let how = format!("the program ended with exit code {code} on node {node}");
            program_failed(&mut r, valid, attempt, code, "", &how)
        }
        "Running" => {
            r.runs(Reason::InCluster, &format!("runs on node {node} of the cluster, without our agent: checkpoints stay where the program puts them"));
            r.rest(Wake::OnChange)
        }
        _ => {
            r.placed(Reason::InCluster, &format!("placed on node {node} of the cluster"));
            r.phase(JobPhase::Starting, &format!("starts on node {node}"));
            r.status.workers = Some(WorkersStatus { ready: 0, total: 1, summary: "0/1".to_owned() });
            r.rest(Wake::OnChange)
        }
    }
}

fn exit_code(pod: &Pod) -> Option<i64> {
    let state = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?;
    Some(i64::from(state.terminated.as_ref()?.exit_code))
}

/// Phase of a Pod; Pending where it is not set.
pub fn pod_phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Since when the scheduler calls the Pod unschedulable, if it does.
pub fn unschedulable(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled")?;
    let refused = scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
    refused.then(|| scheduled.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// A label of a Pod.
pub fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a String> {
    pod.metadata.labels.as_ref()?.get(name)
}

/// Keeps the history bounded.
pub fn bounded_history(history: &mut Vec<AttemptRecord>) {
    if history.len() > HISTORY {
        let cut = history.len() - HISTORY;
        history.drain(..cut);
    }
}
