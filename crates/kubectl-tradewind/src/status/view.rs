//! What `status` shows, as plain data: this is what `-o json` prints, so names stay as they are. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use tradewind::controllers::training_job::valid;
use tradewind_api::conditions::{
    ACCEPTED, COMPLETE, FAILED, PLACED, READY, RECONCILING, STALLED, SUSPENDED, condition,
};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::{
    AttemptRecord, CheckpointSpec, InCluster, JobPhase, PlacementStatus, ProgressStatus, TrainingJobStatus,
};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_core::Money;

use crate::advice;

/// Events that are kept.
const EVENTS: usize = 50;

/// What was found in the cluster.
#[derive(Debug, Clone)]
pub struct Found {
    /// The job.
    pub job: TrainingJob,
    /// Its present machine, if there is one and it may be read.
    pub machine: Option<RentedMachine>,
    /// Pods of its present attempt.
    pub pods: Vec<Pod>,
    /// Events about it.
    pub events: Vec<Event>,
}

/// Everything that `status` shows.
#[derive(Serialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// Phase.
    pub phase: JobPhase,
    /// The one sentence.
    pub message: String,
    /// The operator has not looked at the newest spec yet.
    pub outdated: bool,
    /// The present attempt.
    pub attempt: Option<i64>,
    /// When the program first ran.
    pub started_at: Option<Timestamp>,
    /// When the job was complete or failed.
    pub finished_at: Option<Timestamp>,
    /// Where it runs, at what terms and why there.
    pub placement: Option<PlacementStatus>,
    /// Workers.
    pub workers: Workers,
    /// Progress.
    pub progress: Option<Progress>,
    /// Checkpoints.
    pub checkpoint: Option<Checkpoint>,
    /// Money.
    pub money: MoneyView,
    /// What happens at a known time.
    pub deadlines: Vec<Deadline>,
    /// How often a machine was lost.
    pub preemptions: i64,
    /// How often the program failed and was started again.
    pub restarts: i64,
    /// How often the program showed no sign of life.
    pub stalls: i64,
    /// Seconds of work lost with machines.
    pub lost_work_seconds: i64,
    /// Earlier attempts, oldest first.
    pub history: Vec<AttemptRecord>,
    /// Conditions that are not as they should be.
    pub conditions: Vec<Trouble>,
    /// Events, newest first.
    pub events: Vec<EventView>,
    /// What to do next.
    pub next: Option<String>,
}

/// Workers.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// Whose program runs.
    pub ready: i64,
    /// In all.
    pub total: i64,
    /// Pods of the present attempt, by rank.
    pub pods: Vec<PodView>,
}

/// A Pod.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Rank.
    pub rank: i64,
    /// Name.
    pub name: String,
    /// Phase, or the reason why a container waits.
    pub state: String,
    /// Node.
    pub node: Option<String>,
}

/// Progress.
#[derive(Serialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Step.
    pub step: i64,
    /// Steps in all.
    pub total: Option<i64>,
    /// Loss.
    pub loss: Option<String>,
    /// When it was told.
    pub at: Option<Timestamp>,
    /// Steps an hour in the present attempt.
    pub steps_per_hour: Option<i64>,
    /// Seconds to the last step at this rate.
    pub seconds_left: Option<i64>,
}

/// Checkpoints.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Step of the newest that counts; absent before the first.
    pub step: Option<i64>,
    /// When it was committed.
    pub at: Option<Timestamp>,
    /// Bytes.
    pub bytes: Option<i64>,
    /// Seconds that saving it took.
    pub took_seconds: Option<i64>,
    /// Attempt that saved it.
    pub attempt: Option<i64>,
    /// Seconds between saves that the spec asks for.
    pub interval_seconds: u64,
    /// How many are kept.
    pub keep: i32,
    /// Where.
    pub to: String,
}

/// Money.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MoneyView {
    /// Dollars in all.
    pub total: Money,
    /// Of these final.
    pub settled: Money,
    /// Of these for machines that are there.
    pub running: Money,
    /// Dollars an hour now.
    pub per_hour: Money,
    /// `budget.total`.
    pub budget_total: Option<Money>,
    /// `budget.perHour`.
    pub budget_per_hour: Option<Money>,
    /// What is left of `budget.total`.
    pub left: Option<Money>,
    /// Seconds that it lasts at the present price.
    pub lasts_seconds: Option<i64>,
    /// The sentence of what limits the job now.
    pub limited: Option<String>,
    /// Whether a machine may ever be rented for it, by the operator's own rules; else no limit of a Provider matters.
    #[serde(skip)]
    pub may_rent: bool,
}

/// Something that happens at a known time.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Deadline {
    /// What happens then.
    pub what: String,
    /// When.
    pub at: Timestamp,
}

/// Conditions with the same reason and sentence that are not as they should be.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// `Ready=False`.
    pub conditions: Vec<String>,
    /// Reason.
    pub reason: String,
    /// Sentence.
    pub message: String,
    /// Since when, the oldest of them.
    pub since: Timestamp,
}

/// An Event.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// When.
    pub at: Option<Timestamp>,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub type_: String,
    /// Reason.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

impl StatusView {
    /// The view of what was found.
    pub fn of(found: &Found, now: Timestamp) -> Self {
        let job = &found.job;
        let spec = &job.spec;
        let status = job.status.clone().unwrap_or_default();
        let machine = found.machine.as_ref();
        let name = job.metadata.name.clone().unwrap_or_default();
        let namespace = job.metadata.namespace.clone().unwrap_or_default();
        let conditions = troubles(&status);
        let next = main_reason(&status).and_then(|reason| advice::for_job(reason, &name, &namespace));
        let told = status.workers.clone().unwrap_or_default();
        Self {
            created_at: job.metadata.creation_timestamp.as_ref().map(|t| t.0),
            phase: status.phase,
            message: status.message.clone(),
            outdated: job.metadata.generation.is_some_and(|generation| status.observed_generation < generation),
            attempt: status.attempt,
            started_at: status.started_at.as_ref().map(|t| t.0),
            finished_at: status.finished_at.as_ref().map(|t| t.0),
            workers: Workers {
                ready: told.ready,
                total: told.total.max(i64::from(spec.workers)),
                pods: pods(&found.pods),
            },
            progress: status.progress.as_ref().map(|p| progress(p, began(&status, machine), status.phase)),
            checkpoint: spec.checkpoint.as_ref().map(|c| checkpoint(c, &status)),
            money: money(job, &status),
            deadlines: deadlines(found, &status, now),
            preemptions: status.preemptions,
            restarts: status.restarts,
            stalls: status.stalls,
            lost_work_seconds: status.lost_work_seconds,
            events: events(&found.events),
            placement: status.placement,
            history: status.history,
            conditions,
            next,
            name,
            namespace,
        }
    }
}

fn pods(pods: &[Pod]) -> Vec<PodView> {
    let view = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        let status = pod.status.as_ref();
        let containers = status.and_then(|s| s.container_statuses.as_ref());
        let waits = containers.into_iter().flatten().find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
        let phase = status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Unknown".to_owned());
        let going = pod.metadata.deletion_timestamp.as_ref().map(|_| "Terminating".to_owned());
        PodView {
            rank: labels.and_then(|l| l.get(names::RANK)?.parse().ok()).unwrap_or(0),
            name: pod.metadata.name.clone().unwrap_or_default(),
            state: going.or(waits.filter(|_| phase == "Pending")).unwrap_or(phase),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        }
    };
    let mut views: Vec<PodView> = pods.iter().map(view).collect();
    views.sort_by_key(|pod| pod.rank);
    views
}

/// Since when the program of the present attempt runs, and from which step: as far as that is known, and while there is one.
fn began(status: &TrainingJobStatus, machine: Option<&RentedMachine>) -> Option<(Timestamp, i64)> {
    if status.phase.is_terminal() {
        return None;
    }
    if let Some(machine) = machine.and_then(|m| m.status.as_ref()) {
        return Some((machine.program_since.as_ref()?.0, machine.restored_step.unwrap_or(0)));
    }
    if let Some(program) = &status.program {
        return Some((program.since.0, program.from_step.unwrap_or(0)));
    }
    // Of an operator that does not write it down: the first attempt began when the job did, and at zero.
    let first = status.history.is_empty() && status.attempt == Some(0);
    status.started_at.as_ref().filter(|_| first).map(|t| (t.0, 0))
}

fn progress(told: &ProgressStatus, began: Option<(Timestamp, i64)>, phase: JobPhase) -> Progress {
    let at = told.at.as_ref().map(|t| t.0);
    let rate = began.zip(at).and_then(|((since, from), at)| {
        let millis = i64::try_from(at.duration_since(since).as_millis()).ok().filter(|ms| *ms > 0)?;
        let steps = told.step - from;
        (steps > 0).then_some((steps, millis))
    });
    let left = told.total.map(|total| (total - told.step).max(0));
    let runs = phase == JobPhase::Running;
    Progress {
        step: told.step,
        total: told.total,
        loss: told.loss.clone(),
        at,
        steps_per_hour: rate.map(|(steps, millis)| steps.saturating_mul(3_600_000) / millis),
        seconds_left: rate
            .zip(left)
            .filter(|_| runs)
            .map(|((steps, millis), left)| left.saturating_mul(millis) / steps / 1000),
    }
}

fn checkpoint(spec: &CheckpointSpec, status: &TrainingJobStatus) -> Checkpoint {
    let newest = status.checkpoint.as_ref();
    Checkpoint {
        step: newest.map(|c| c.step),
        at: newest.and_then(|c| c.at.as_ref()).map(|t| t.0),
        bytes: newest.map(|c| c.bytes),
        took_seconds: newest.and_then(|c| c.took_seconds),
        attempt: newest.map(|c| c.attempt),
        interval_seconds: spec.interval.seconds(),
        keep: spec.keep,
        to: spec.to.clone(),
    }
}

fn money(job: &TrainingJob, status: &TrainingJobStatus) -> MoneyView {
    let cost = &status.cost;
    let values = valid::values(job);
    let budget = job.spec.budget.as_ref();
    let budget_total = budget.and_then(|b| b.total);
    let left = budget_total.map(|total| Money::from_micros((total.micros() - cost.total.micros()).max(0)));
    let hourly = cost.per_hour.micros();
    let lasts = left.filter(|_| hourly > 0).map(|left| left.micros().saturating_mul(3600) / hourly);
    let limits = [Reason::LimitReached, Reason::BudgetExhausted];
    let limited = status.conditions.iter().find(|c| {
        let in_force = if c.type_ == SUSPENDED { c.status == "True" } else { c.type_ == PLACED && c.status == "False" };
        in_force && limits.iter().any(|reason| reason.as_str() == c.reason)
    });
    MoneyView {
        total: cost.total,
        settled: cost.settled,
        running: Money::from_micros((cost.total.micros() - cost.settled.micros()).max(0)),
        per_hour: cost.per_hour,
        budget_total,
        budget_per_hour: budget.and_then(|b| b.per_hour),
        left,
        lasts_seconds: lasts,
        limited: limited.map(|c| c.message.clone()),
        may_rent: values.in_cluster != InCluster::Only && values.rental.is_ok(),
    }
}

fn after(then: Timestamp, seconds: i64) -> Option<Timestamp> {
    then.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn whole(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Until when workers may wait for nodes: not for ever, if others hold nodes meanwhile, or if the operator says so because other jobs wait.
fn gang_waits_until(found: &Found, status: &TrainingJobStatus) -> Option<Timestamp> {
    let (spec, pods) = (&found.job.spec, &found.pods);
    let has_node = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
    let is_told = || status.message.contains("gangTimeout");
    if spec.workers < 2 || status.phase != JobPhase::Waiting || !(pods.iter().any(has_node) || is_told()) {
        return None;
    }
    let refused = |pod: &Pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        let unschedulable = scheduled.reason.as_deref() == Some("Unschedulable");
        Some(scheduled.last_transition_time.as_ref().filter(|_| unschedulable)?.0)
    };
    let since = pods.iter().filter(|pod| !has_node(pod)).filter_map(refused).min();
    let made = || pods.iter().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|t| t.0).min();
    // Where Pods are missing, an API server refuses them: the time counts from the first.
    let since = since.or_else(|| if pods.len() < usize::try_from(spec.workers).ok()? { made() } else { None })?;
    after(since, whole(spec.gang_timeout.seconds()))
}

/// From when on a job that the cluster has no room for may be rented for. A job with a deadline waits less than its `burstAfter` says.
fn rented_from(job: &TrainingJob, status: &TrainingJobStatus) -> Option<Timestamp> {
    let waits = matches!(status.phase, JobPhase::Pending | JobPhase::Waiting);
    let since = status.unschedulable_since.as_ref().filter(|_| waits)?;
    // What the operator has refused is not rented for, whatever its reason: it knows more than the spec says.
    let refused = condition(&status.conditions, ACCEPTED).is_some_and(|c| c.status == "False");
    let values = valid::values(job);
    let follows = values.in_cluster == InCluster::Prefer && values.rental.is_ok() && !refused;
    after(since.0, whole(values.burst_after.as_secs())).filter(|_| follows)
}

fn deadlines(found: &Found, status: &TrainingJobStatus, now: Timestamp) -> Vec<Deadline> {
    let (job, machine) = (&found.job, found.machine.as_ref());
    let mut deadlines = Vec::new();
    let mut add = |what: &str, at: Option<Timestamp>| {
        deadlines.extend(at.map(|at| Deadline { what: what.to_owned(), at }));
    };
    if !status.phase.is_terminal() {
        add("the job is to be complete (completeWithin)", status.deadline.as_ref().map(|t| t.0));
    }
    if let Some(machine) = machine {
        let seen = machine.status.clone().unwrap_or_default();
        let limit = seen.rented_order().and_then(|order| order.of(&machine.spec.offers)?.start_deadline_s);
        if seen.phase == MachinePhase::Booting {
            let until =
                seen.rented_at.as_ref().and_then(|t| after(t.0, limit.unwrap_or(machine.spec.start_deadline_s)));
            add("the machine is given up if it has not reported", until);
        }
        if seen.phase == MachinePhase::Draining {
            let until = seen.draining_since.as_ref().and_then(|t| after(t.0, machine.spec.workload.stop_grace_s));
            add("the program's own time to save and stop ends", until);
        }
    }
    add("a machine may be rented (burstAfter)", rented_from(job, status).filter(|at| *at > now));
    let gang = gang_waits_until(found, status).filter(|at| *at > now);
    add("the nodes of all workers are given back if one has none by then (gangTimeout)", gang);
    if let (Some(ttl), Some(end)) = (&job.spec.ttl_after_finished, &status.finished_at) {
        add("its Pods are removed (ttlAfterFinished)", after(end.0, whole(ttl.seconds())).filter(|at| *at > now));
    }
    deadlines
}

/// Conditions that say something else than "all is well", each reason and sentence once.
fn troubles(status: &TrainingJobStatus) -> Vec<Trouble> {
    let over = status.phase.is_terminal();
    let wrong = |c: &&Condition| match c.type_.as_str() {
        PLACED | READY => c.status != "True" && !over,
        RECONCILING | STALLED | SUSPENDED | FAILED => c.status == "True",
        COMPLETE => false,
        // Accepted, and what later versions may add.
        _ => c.status != "True",
    };
    let mut troubles: Vec<Trouble> = Vec::new();
    let mut conditions: Vec<&Condition> = status.conditions.iter().filter(wrong).collect();
    conditions.sort_by_key(|c| &c.type_);
    for c in conditions {
        let said = format!("{}={}", c.type_, c.status);
        let since = c.last_transition_time.0;
        match troubles.iter_mut().find(|t| t.reason == c.reason && t.message == c.message) {
            Some(there) => {
                there.conditions.push(said);
                there.since = there.since.min(since);
            }
            None => troubles.push(Trouble {
                conditions: vec![said],
                reason: c.reason.clone(),
                message: c.message.clone(),
                since,
            }),
        }
    }
    troubles
}

/// The reason that stands in the way most.
pub fn main_reason(status: &TrainingJobStatus) -> Option<Reason> {
    let wrong = [(FAILED, "True"), (STALLED, "True"), (ACCEPTED, "False"), (SUSPENDED, "True"), (PLACED, "False")];
    wrong
        .iter()
        .filter(|(type_, _)| *type_ != PLACED || !status.phase.is_terminal())
        .filter(|_| status.phase != JobPhase::Complete)
        .filter_map(|(type_, bad)| condition(&status.conditions, type_).filter(|c| c.status == *bad))
        .find_map(|c| Reason::from_word(&c.reason))
}

fn events(events: &[Event]) -> Vec<EventView> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let view = |event: &Event| EventView {
        at: event
            .series
            .as_ref()
            .map(|s| s.last_observed_time.0)
            .or_else(|| event.event_time.as_ref().map(|t| t.0))
            .or_else(|| event.deprecated_last_timestamp.as_ref().map(|t| t.0))
            .or_else(|| event.metadata.creation_timestamp.as_ref().map(|t| t.0)),
        type_: text(&event.type_),
        reason: text(&event.reason),
        message: text(&event.note),
    };
    let mut views: Vec<EventView> = events.iter().map(view).collect();
    views.sort_by_key(|event| std::cmp::Reverse(event.at));
    views.truncate(EVENTS);
    views
}
