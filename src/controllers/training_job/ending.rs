//! The end of an attempt in the cluster. Pure.
//!
//! What ended it is written down first (`status.ending`), since the Pods that showed it may be gone a moment later. Then all of its workers
//! are told to stop, their last reports are read and what these offer is committed; only then the next attempt gets its number, or the job
//! its end. So no checkpoint is lost, and two attempts of one job do not run at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::training_job::{AttemptRecord, EndingStatus};
use tradewind_api::{Reason, TrainingJobStatus};

use super::crew::{Crew, Worker, removal};
use super::decide::{Decision, Observed};
use super::ended::{next_pods, program_failed, program_stalled, too_many_never_started};
use super::status::{IN_CLUSTER, Report};
use super::stop;
use crate::controllers::pod;
use crate::events::Severity;
use crate::runtime::Wake;

/// So long after its grace a worker may still be shown: then its node does not answer. It cannot do harm: the next attempt's fence keeps its
/// checkpoints out.
const LINGERS: Duration = Duration::from_secs(15);

/// An agent that says nothing for so long, on a node that does not answer, is not waited for: its grace is there for the save that it would
/// tell of. An agent reports every 10 s, and tries again after half a minute at most where the store refuses it.
const MUTE: SignedDuration = SignedDuration::from_secs(30);

/// How often Pods that are waited for are looked at: whether their agents still talk is no event.
const LOOK: Duration = Duration::from_secs(5);

/// So long the last reports are waited for, as those of rented machines: where the mailbox or the bucket is gone, nothing would ever be read.
const LAST_REPORT_LIMIT: Duration = Duration::from_mins(15);

/// Why an attempt ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// A condition's reason.
    pub reason: Reason,
    /// Sentence.
    pub message: String,
    /// Exit code of the program that failed.
    pub exit_code: Option<i64>,
    /// The last lines that it wrote.
    pub log: String,
}

impl Cause {
    /// A cause that is no failure of the program.
    pub fn new(reason: Reason, message: String) -> Self {
        Self { reason, message: message.trim_end().to_owned(), exit_code: None, log: String::new() }
    }

    /// Whether the program failed.
    pub fn is_failure(&self) -> bool {
        self.exit_code.is_some()
    }
}

/// The attempt ends: that is written down, and its workers are told to stop.
pub fn begin(o: &Observed, mut r: Report, crew: &Crew<'_>, attempt: i64, cause: Cause) -> Decision {
    let message = if cause.reason == Reason::Finished {
        format!("{}; the last reports are read", cause.message)
    } else {
        format!(
            "{}; the workers of attempt {attempt} are stopped, with a checkpoint where they make one",
            cause.message
        )
    };
    r.checkpointing(cause.reason, &message);
    if cause.reason == Reason::Finished {
        r.passes();
    }
    r.status.ending = Some(EndingStatus {
        attempt,
        reason: cause.reason.as_str().to_owned(),
        message: cause.message,
        exit_code: cause.exit_code,
        log: tradewind_api::conditions::bounded(cause.log, 2000),
        at: Some(Time(o.now)),
    });
    if settled(o, crew) && removable(o, attempt).is_empty() {
        // Nothing to wait for: what follows is decided in the same look.
        if let Some(decision) = proceed(o, &mut r, attempt) {
            return decision;
        }
    }
    r.decide(removal(removable(o, attempt)), Wake::After(Duration::from_secs(1), "the attempt's Pods go"))
}

/// What is left to do for an attempt that ends, or what follows from its end. `None`: no attempt ends.
pub fn proceed(o: &Observed, r: &mut Report, attempt: i64) -> Option<Decision> {
    let held = stop::is_held(o, &r.status);
    let ending = r.status.ending.clone()?;
    if ending.attempt != attempt {
        r.status.ending = None;
        return None;
    }
    let crew = Crew::of(o, attempt);
    let remove = removable(o, attempt);
    if !remove.is_empty() {
        return Some(r.clone().decide(removal(remove), Wake::After(Duration::from_secs(1), "the attempt's Pods go")));
    }
    if let Some(until) = lingering(o, attempt, &crew) {
        let left = o.left(until) + Duration::from_millis(50);
        let soon = if o.valid.needs_agent { left.min(LOOK) } else { left };
        return Some(r.clone().rest(Wake::After(soon, "the attempt's Pods are given up")));
    }
    let late =
        ending.at.as_ref().is_some_and(|at| at.0.checked_add(LAST_REPORT_LIMIT).is_ok_and(|until| until < o.now));
    if !settled(o, &crew) && !late {
        let first = crew.workers.iter().find_map(|w| w.view.and_then(|v| v.trouble.clone()));
        let trouble = first.map(|t| format!(" ({t})")).unwrap_or_default();
        r.phase(
            r.status.phase,
            &format!("{}; the last reports of its workers are read first{trouble}", ending.message),
        );
        return Some(r.clone().rest(Wake::After(Duration::from_secs(5), "the last reports")));
    }
    take_last_words(r, &crew);
    r.status.ending = None;
    let decision = follows(o, r, &crew, &judged_again(&crew, ending));
    Some(if held { decision.without_beginning() } else { decision })
}

/// With the last reports, and with what the other Pods have shown since, more is known: where a node was lost or an agent broke, the programs
/// fail that talked to it, often before anybody says why.
fn judged_again(crew: &Crew<'_>, mut ending: EndingStatus) -> EndingStatus {
    if ending.exit_code.is_none() {
        return ending;
    }
    let lost = crew.pods().find_map(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let mute = || (!pod::is_over(pod)).then(|| "its node does not answer".to_owned());
        pod::disruption(pod)
            .or_else(|| pod::ended_by_node(pod))
            .or_else(mute)
            .map(|why| format!("Pod {name} on node {}: {why}", pod::node(pod)))
    });
    let broken = crew.workers.iter().find_map(|w| {
        let agent = w.view?.agent.as_ref().filter(|a| a.failed && a.exit.is_none())?;
        Some(
            agent.warnings.last().cloned().unwrap_or_else(|| format!("the agent of worker {} could not go on", w.rank)),
        )
    });
    if let Some((reason, why)) = lost.map(|l| (Reason::Disrupted, l)).or(broken.map(|b| (Reason::AgentFailed, b))) {
        (ending.reason, ending.exit_code) = (reason.as_str().to_owned(), None);
        ending.message = format!("{why}; {}", ending.message);
        return ending;
    }
    if ending.log.is_empty() {
        let exits = crew.workers.iter().filter_map(|w| w.view?.agent.as_ref()?.exit.as_ref());
        let log = exits
            .filter(|exit| i64::from(exit.code) == ending.exit_code.unwrap_or(0))
            .map(|exit| exit.log_tail.clone());
        ending.log = log.into_iter().next().unwrap_or_default();
    }
    ending
}

/// Pods of the attempt that are not over and not going.
fn removable(o: &Observed, attempt: i64) -> Vec<String> {
    let lives = o
        .pods
        .iter()
        .filter(|pod| pod::is_of(pod, attempt) && !pod::is_over(pod) && pod.metadata.deletion_timestamp.is_none());
    lives.filter_map(|pod| pod.metadata.name.clone()).collect()
}

/// Until when Pods of the attempt that are going are waited for: not for those whose nodes and agents both say nothing. Nobody on such a node
/// hears that they are to stop, however long we wait.
fn lingering(o: &Observed, attempt: i64, crew: &Crew<'_>) -> Option<Timestamp> {
    let lost =
        |pod: &Pod| o.dead_nodes.contains(pod::node(pod)) && mute(o, crew).any(|p| p.metadata.uid == pod.metadata.uid);
    let going = o.pods.iter().filter(|pod| pod::is_of(pod, attempt) && !pod::is_over(pod) && !lost(pod));
    let until = going.filter_map(|pod| gone_by(pod)).max()?;
    (until > o.now).then_some(until)
}

/// When a Pod that is going is given up.
fn gone_by(pod: &Pod) -> Option<Timestamp> {
    // The API server sets the time of a deletion to the end of the grace.
    pod.metadata.deletion_timestamp.as_ref()?.0.checked_add(LINGERS).ok()
}

/// Pods that are going and whose agents have said nothing for a while.
fn mute<'a>(o: &'a Observed, crew: &'a Crew<'_>) -> impl Iterator<Item = &'a Arc<Pod>> {
    let quiet = |heard: Timestamp| o.now.duration_since(heard) > MUTE;
    let is = move |w: &&Worker<'_>| w.view.is_some_and(|v| v.looked && v.heard_at.is_some_and(quiet));
    crew.workers.iter().filter(is).filter_map(|w| w.pod).filter(|pod| !pod::is_over(pod) && gone_by(pod).is_some())
}

/// Nodes of which it matters whether they answer: those of Pods that an attempt at its end waits for in silence.
pub fn doubtful_nodes(o: &Observed, attempt: i64) -> BTreeSet<String> {
    let ends = o.job.status.as_ref().is_some_and(|s| s.ending.as_ref().is_some_and(|e| e.attempt == attempt));
    if !ends || !o.valid.needs_agent {
        return BTreeSet::new();
    }
    let crew = Crew::of(o, attempt);
    let waited_for = mute(o, &crew).filter(|pod| gone_by(pod).is_some_and(|until| until > o.now));
    waited_for.map(|pod| pod::node(pod).to_owned()).collect()
}

/// Whether the last reports are read of all workers that may have something to say.
fn settled(o: &Observed, crew: &Crew<'_>) -> bool {
    let speaks = |rank: i64| rank == 0 || o.valid.all_ranks;
    !o.valid.needs_agent
        || crew.workers.iter().filter(|w| speaks(w.rank)).all(|w| w.view.is_some_and(|v| v.last_report_read))
}

fn take_last_words(r: &mut Report, crew: &Crew<'_>) {
    let Some(view) = crew.workers.first().and_then(|w| w.view) else { return };
    if let Some(progress) = view.agent.as_ref().and_then(|a| a.progress.clone()) {
        r.status.progress = Some(progress);
    }
    if let Some(checkpoint) = view.checkpoint.clone() {
        r.status.checkpoint = Some(checkpoint);
    }
}

/// What follows from the end of an attempt.
fn follows(o: &Observed, r: &mut Report, crew: &Crew<'_>, ending: &EndingStatus) -> Decision {
    let (attempt, next) = (ending.attempt, ending.attempt + 1);
    let reason = Reason::from_word(&ending.reason).unwrap_or(Reason::Disrupted);
    let goes_on = format!("{}; attempt {next} goes on from the last checkpoint", ending.message);
    if reason != Reason::WaitingForTurn {
        remember(o, r, crew, ending);
    }
    match (reason, ending.exit_code) {
        (Reason::Finished, _) => {
            r.complete(&ending.message);
            return r.clone().rest(Wake::OnChange);
        }
        (_, Some(code)) => return program_failed(r, &o.valid, attempt, code, &ending.log, &ending.message),
        (Reason::ProgramStalled, _) => {
            let from = r.status.history.last().and_then(|record| record.from_step);
            if let Some(decision) = program_stalled(r, &o.valid, from, &ending.message) {
                return decision;
            }
        }
        (Reason::AgentNotStarted | Reason::NotStartable, _) => {
            if let Some(decision) =
                too_many_never_started(r, "attempts in a row never began in the cluster", &ending.message)
            {
                return decision;
            }
            r.moves_on(&o.valid, next, &goes_on);
            return r.clone().rest(Wake::After(Duration::ZERO, "the next attempt, after a pause"));
        }
        (Reason::GangTimeout | Reason::WaitingForTurn, _) => {
            r.moves_on(&o.valid, next, &ending.message);
            return r.clone().rest(Wake::After(Duration::ZERO, "the next attempt"));
        }
        (Reason::Disrupted | Reason::AgentFailed | Reason::AgentSilent, _) => {
            r.status.preemptions += 1;
            lost_work(o, r, crew);
        }
        _ => {}
    }
    r.moves_on(&o.valid, next, &goes_on);
    next_pods(r, &o.valid, next)
}

fn remember(o: &Observed, r: &mut Report, crew: &Crew<'_>, ending: &EndingStatus) {
    let agent = crew.workers.first().and_then(|w| w.view).and_then(|v| v.agent.as_ref());
    let record = AttemptRecord {
        attempt: ending.attempt,
        place: IN_CLUSTER.to_owned(),
        ended: ending.reason.clone(),
        message: ending.message.clone(),
        from_step: agent.and_then(|a| a.restored_step),
        last_step: agent.and_then(|a| a.progress.as_ref()).map(|p| p.step),
        quick_failure: false,
        at: Some(Time(o.now)),
    };
    // A job that waits for days asks again and again: the last time tells enough.
    let again = |last: &&AttemptRecord| last.ended == record.ended && record.ended == Reason::GangTimeout.as_str();
    if r.status.history.last().as_ref().is_some_and(again) {
        r.status.history.pop();
    }
    r.remember(record);
}

/// What an Event tells of the end of an attempt in the cluster, if that is news and not the end of the job: the controller of a rented
/// machine tells of its attempts.
pub fn news(before: &TrainingJobStatus, after: &TrainingJobStatus) -> Option<(Severity, Reason, String)> {
    let last = after.history.last().filter(|last| last.place == IN_CLUSTER && !after.phase.is_terminal())?;
    // A job that has no room gives back again and again: the first time tells enough.
    let again = |known: &AttemptRecord| known.ended == last.ended && last.ended == Reason::GangTimeout.as_str();
    if before.history.last().is_some_and(|known| known.attempt == last.attempt || again(known)) {
        return None;
    }
    let reason = Reason::from_word(&last.ended)?;
    let asked = matches!(reason, Reason::Suspended | Reason::Finished);
    let severity = if asked { Severity::Normal } else { Severity::Warning };
    Some((severity, reason, format!("attempt {} ended: {}", last.attempt, last.message)))
}

/// Work that was done since the last checkpoint, or since the program began.
fn lost_work(o: &Observed, r: &mut Report, crew: &Crew<'_>) {
    let ran =
        crew.workers.first().and_then(|w| w.view).and_then(|v| v.agent.as_ref()).is_some_and(|a| a.phase != "Booted");
    let begun = crew.pods().filter_map(|pod| pod::started(pod)).max();
    let saved = r.status.checkpoint.as_ref().and_then(|c| c.at.as_ref()).map(|t| t.0);
    let Some(since) = begun.max(saved.filter(|at| begun.is_some_and(|begun| *at > begun))).filter(|_| ran) else {
        return;
    };
    r.status.lost_work_seconds += o.now.duration_since(since).as_secs().max(0);
}
