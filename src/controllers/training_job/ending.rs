//! The end of an attempt in the cluster. Pure.
//!
//! What ended it is written down first (`status.ending`), since the Pods that showed it may be gone a moment later. Then all of its workers
//! are told to stop, their last reports are read and what these offer is committed; only then the next attempt gets its number, or the job
//! its end. So no checkpoint is lost, and two attempts of one job do not run at once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::Reason;
use tradewind_api::training_job::{AttemptRecord, EndingStatus};

use super::crew::{Crew, removal};
use super::decide::{Decision, Observed, Step};
use super::ended::{next_pods, program_failed, program_stalled, too_many_never_started};
use super::status::Report;
use crate::controllers::pod;
use crate::runtime::Wake;

/// So long after its grace a worker may still be shown: then its node does not answer. It cannot do harm: the next attempt's fence keeps its
/// checkpoints out.
const LINGERS: Duration = Duration::from_secs(15);

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
        if let Some(decision) = proceed(o, &mut r, attempt, false) {
            return decision;
        }
    }
    r.decide(removal(removable(o, attempt)), Wake::After(Duration::from_secs(1), "the attempt's Pods go"))
}

/// What is left to do for an attempt that ends, or what follows from its end. `None`: no attempt ends. `held`: the next one gets its number
/// and waits.
pub fn proceed(o: &Observed, r: &mut Report, attempt: i64, held: bool) -> Option<Decision> {
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
    if let Some(until) = lingering(o, attempt) {
        let left = Duration::try_from(until.duration_since(o.now)).unwrap_or_default();
        return Some(r.clone().rest(Wake::After(left + Duration::from_millis(50), "the attempt's Pods are given up")));
    }
    if !settled(o, &crew) {
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
    let mut decision = follows(o, r, &crew, &ending);
    if held && matches!(decision.step, Step::CreatePods { .. }) {
        (decision.step, decision.wake) = (Step::Rest, Wake::After(Duration::ZERO, "the next attempt waits"));
    }
    Some(decision)
}

/// Pods of the attempt that are not over and not going.
fn removable(o: &Observed, attempt: i64) -> Vec<String> {
    let lives = o
        .pods
        .iter()
        .filter(|pod| pod::is_of(pod, attempt) && !pod::is_over(pod) && pod.metadata.deletion_timestamp.is_none());
    lives.filter_map(|pod| pod.metadata.name.clone()).collect()
}

/// Until when Pods of the attempt that are going are waited for.
fn lingering(o: &Observed, attempt: i64) -> Option<Timestamp> {
    let going = o.pods.iter().filter(|pod| pod::is_of(pod, attempt) && !pod::is_over(pod));
    // The API server sets the time of a deletion to the end of the grace.
    let until = going.filter_map(|pod| pod.metadata.deletion_timestamp.as_ref()?.0.checked_add(LINGERS).ok()).max()?;
    (until > o.now).then_some(until)
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
        (Reason::AgentNotStarted, _) => {
            // Either image, or a Secret or volume, may be to blame; the last message tells.
            let image = o.job.spec.template.pointer("/spec/containers/0/image").and_then(|image| image.as_str());
            let agent = o.agent_image.as_deref().unwrap_or_default();
            let image = format!("{} with the agent of image {agent}", image.unwrap_or_default());
            if let Some(decision) = too_many_never_started(r, &image, &ending.message) {
                return decision;
            }
        }
        (Reason::GangTimeout | Reason::WaitingForTurn, _) => {
            r.moves_on(&o.valid, next, &ending.message);
            return r.clone().rest(Wake::After(Duration::ZERO, "the next attempt"));
        }
        (Reason::Disrupted | Reason::AgentFailed, _) => {
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
        place: "cluster".to_owned(),
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
