//! A job's deadline: until when it must be complete, and what is told about whether it will be. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tradewind_api::conditions::{ON_TIME, condition, set_condition};
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Reason, TrainingJob, TrainingJobStatus};

use super::decide::{Decision, Observed};
use super::rates;
use super::status::is_in_cluster;
use super::timing::Prospect;
use super::valid::Valid;
use crate::runtime::Wake;

/// Until when a job must be complete.
pub fn of(job: &TrainingJob, valid: &Valid) -> Option<Timestamp> {
    let created = job.metadata.creation_timestamp.as_ref()?.0;
    Some(later(created, valid.complete_within?))
}

/// So long after a moment; the last moment of all where there is none.
pub fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// The moment in so many seconds, to the second.
pub fn in_s(now: Timestamp, seconds: u64) -> Option<Timestamp> {
    Timestamp::from_second(now.checked_add(Duration::from_secs(seconds)).ok()?.as_second()).ok()
}

/// A moment as people read it, to the minute.
pub fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// An expected moment is told to so many seconds, so that it is not another sentence at each look.
const TOLD_S: i64 = 600;

/// As [`minute`], of a moment that is expected.
pub fn about(at: Timestamp) -> String {
    let told = at.as_second().saturating_add(TOLD_S - 1) / TOLD_S * TOLD_S;
    minute(Timestamp::from_second(told).unwrap_or(Timestamp::MAX))
}

/// The same decision with the condition that tells of the deadline, which does not pass unnoticed.
pub fn keep(o: &Observed, mut decision: Decision) -> Decision {
    let status = &mut decision.status;
    let Some(deadline) = of(&o.job, &o.valid) else {
        status.conditions.retain(|c| c.type_ != ON_TIME);
        return decision;
    };
    let Some((on_time, reason, message)) = told(o, status, deadline) else { return decision };
    let generation = o.job.metadata.generation.unwrap_or(0);
    set_condition(&mut status.conditions, o.now, generation, ON_TIME, on_time, reason, message);
    if !status.phase.is_terminal() && o.now < deadline {
        let left = o.left(deadline) + Duration::from_millis(50);
        decision.wake = decision.wake.sooner(Wake::After(left, "the deadline is over"));
    }
    decision
}

/// What is to be said; nothing that was not looked at.
fn told(o: &Observed, status: &TrainingJobStatus, deadline: Timestamp) -> Option<(Option<bool>, Reason, String)> {
    let by = minute(deadline);
    if status.phase == JobPhase::Complete {
        let finished = status.finished_at.as_ref().map_or(o.now, |at| at.0);
        return Some(if finished <= deadline {
            (Some(true), Reason::DeadlineKept, format!("complete before the deadline {by}"))
        } else {
            (Some(false), Reason::DeadlineMissed, format!("complete at {}; the deadline was {by}", minute(finished)))
        });
    }
    if status.phase == JobPhase::Failed {
        return Some((Some(false), Reason::DeadlineMissed, format!("failed; the deadline was {by}")));
    }
    if o.now >= deadline {
        return Some((Some(false), Reason::DeadlineMissed, format!("the deadline {by} is over; the job goes on")));
    }
    if status.phase == JobPhase::Suspended {
        return Some((None, Reason::DeadlineAtRisk, format!("is suspended; the deadline is {by}")));
    }
    if is_in_cluster(status) {
        return Some(at_its_pace(o, status, deadline));
    }
    match &o.prospect {
        Prospect::AtRisk(why) => Some((None, Reason::DeadlineAtRisk, why.clone())),
        Prospect::OnTime => Some((Some(true), Reason::DeadlineInReach, format!("will be complete by {by}"))),
        Prospect::Late(why) => Some((Some(false), Reason::DeadlineOutOfReach, why.clone())),
        Prospect::Unknown if condition(&status.conditions, ON_TIME).is_some() => None,
        Prospect::Unknown => {
            Some((None, Reason::DeadlineAtRisk, format!("it is not known yet whether {by} can be kept")))
        }
    }
}

/// In the cluster nobody knows how fast the nodes are before the program has told it.
fn at_its_pace(o: &Observed, status: &TrainingJobStatus, deadline: Timestamp) -> (Option<bool>, Reason, String) {
    let by = minute(deadline);
    let Some(finish) = rates::finish(status, o.now) else {
        let message = format!("runs in the cluster, and has not told for long enough how fast; the deadline is {by}");
        return (None, Reason::DeadlineAtRisk, message);
    };
    let message = format!("at its pace in the cluster complete at about {}; the deadline is {by}", about(finish));
    // What was called late is not in time for a moment's hurry.
    let was_late = condition(&status.conditions, ON_TIME).is_some_and(|c| c.status == "False");
    let margin = if was_late { SignedDuration::from_secs(TOLD_S) } else { SignedDuration::ZERO };
    if finish.checked_add(margin).is_ok_and(|finish| finish <= deadline) {
        (None, Reason::DeadlineAtRisk, message)
    } else {
        (Some(false), Reason::DeadlineOutOfReach, message)
    }
}

/// The condition, if an Event should tell of it: it has just become false, or is so for another reason.
pub fn trouble<'a>(old: &TrainingJobStatus, new: &'a TrainingJobStatus) -> Option<(Reason, &'a str)> {
    let word = |c: &Condition| (c.status.clone(), c.reason.clone());
    let now = condition(&new.conditions, ON_TIME).filter(|c| c.status == "False")?;
    let news = condition(&old.conditions, ON_TIME).map(word) != Some(word(now));
    Some((Reason::from_word(&now.reason).filter(|_| news)?, &now.message))
}

#[cfg(test)]
mod tests {
    use super::super::decide::Step;
    use super::*;

    fn job(spec: &serde_json::Value) -> Observed {
        let mut full = serde_json::json!({"template": {}, "work": {"hours": "1"}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let metadata = serde_json::json!({"name": "j", "namespace": "n", "creationTimestamp": "2026-11-22T10:00:00Z"});
        let job = serde_json::json!({"metadata": metadata, "spec": full});
        let mut o = Observed::bare(serde_json::from_value(job).unwrap());
        o.now = "2026-11-22T10:30:00Z".parse().unwrap();
        o
    }

    fn kept(o: &Observed, status: TrainingJobStatus) -> (Decision, String) {
        let rests = Decision { status, step: Step::Rest, wake: Wake::OnChange, passing: false };
        let decision = keep(o, rests);
        let told = condition(&decision.status.conditions, ON_TIME);
        let told = told.map_or_else(String::new, |c| format!("{}/{}: {}", c.status, c.reason, c.message));
        (decision, told)
    }

    #[test]
    fn what_was_found_out_is_told_and_nothing_else() {
        let mut o = job(&serde_json::json!({"completeWithin": "2h"}));
        let open = TrainingJobStatus::default;
        assert!(kept(&o, open()).1.starts_with("Unknown/DeadlineAtRisk: it is not known yet"));
        o.prospect = Prospect::OnTime;
        let (on_time, told) = kept(&o, open());
        assert_eq!(told, "True/DeadlineInReach: will be complete by 2026-11-22 12:00 UTC");
        assert!(matches!(on_time.wake, Wake::After(in_time, _) if in_time >= Duration::from_mins(90)));
        o.prospect = Prospect::Unknown;
        assert_eq!(kept(&o, on_time.status.clone()).1, told, "what was said holds until somebody looks again");
        let suspended = TrainingJobStatus { phase: JobPhase::Suspended, ..on_time.status.clone() };
        assert!(kept(&o, suspended).1.starts_with("Unknown/DeadlineAtRisk: is suspended"));
        o.prospect = Prospect::Late("no".to_owned());
        let (late, told) = kept(&o, on_time.status.clone());
        assert_eq!(told, "False/DeadlineOutOfReach: no");
        assert_eq!(trouble(&on_time.status, &late.status), Some((Reason::DeadlineOutOfReach, "no")));
        assert_eq!(trouble(&late.status, &late.status), None, "told once");
        o.now = "2026-11-22T12:00:00Z".parse().unwrap();
        let (over, told) = kept(&o, late.status.clone());
        assert!(told.starts_with("False/DeadlineMissed: the deadline 2026-11-22 12:00 UTC is over"), "{told}");
        assert!(trouble(&late.status, &over.status).is_some(), "for another reason");
    }

    #[test]
    fn in_the_cluster_the_pace_of_the_program_tells_when_it_is_complete() {
        let o = job(&serde_json::json!({"completeWithin": "2h"}));
        let status = |step: i64| -> TrainingJobStatus {
            serde_json::from_value(serde_json::json!({
                "phase": "Running", "placement": {"summary": "cluster"},
                "conditions": [{"type": "Placed", "status": "True", "reason": "InCluster", "message": "",
                    "lastTransitionTime": "2026-11-22T10:00:00Z"}],
                "program": {"since": "2026-11-22T10:00:00Z"},
                "progress": {"step": step, "total": 1000, "summary": "", "at": "2026-11-22T10:30:00Z"},
            }))
            .unwrap()
        };
        assert!(kept(&o, status(5)).1.starts_with("Unknown/DeadlineAtRisk: runs in the cluster, and has not told"));
        let (_, told) = kept(&o, status(500));
        assert_eq!(
            told,
            "Unknown/DeadlineAtRisk: at its pace in the cluster complete at about 2026-11-22 11:00 UTC; the deadline is \
             2026-11-22 12:00 UTC"
        );
        let (late, told) = kept(&o, status(200));
        assert!(
            told.starts_with("False/DeadlineOutOfReach: at its pace in the cluster complete at about 2026-11-22 12:30")
        );
        assert!(trouble(&status(200), &late.status).is_some());
        let hurried = |step| TrainingJobStatus { conditions: late.status.conditions.clone(), ..status(step) };
        assert!(kept(&o, hurried(253)).1.starts_with("False"), "11:58 is a matter of luck");
        assert!(kept(&o, hurried(300)).1.starts_with("Unknown"));
        let mut later = job(&serde_json::json!({"completeWithin": "2h"}));
        later.now = "2026-11-22T11:30:00Z".parse().unwrap();
        assert!(kept(&later, status(500)).1.starts_with("False"), "no step for an hour");
    }

    #[test]
    fn the_end_tells_whether_it_was_kept_and_without_a_deadline_there_is_nothing_to_tell() {
        let o = job(&serde_json::json!({"completeWithin": "2h"}));
        let ended = |phase, at: &str| TrainingJobStatus {
            phase,
            finished_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at.parse().unwrap())),
            ..TrainingJobStatus::default()
        };
        let (kept_it, told) = kept(&o, ended(JobPhase::Complete, "2026-11-22T11:59:00Z"));
        assert!(told.starts_with("True/DeadlineKept"), "{told}");
        let late = ended(JobPhase::Complete, "2026-11-22T12:01:00Z");
        assert!(kept(&o, late).1.starts_with("False/DeadlineMissed: complete at 2026-11-22 12:01 UTC"));
        assert!(
            kept(&o, ended(JobPhase::Failed, "2026-11-22T11:00:00Z")).1.starts_with("False/DeadlineMissed: failed")
        );
        let none = job(&serde_json::json!({}));
        assert_eq!(kept(&none, kept_it.status).1, "", "it was taken out of the spec");
        let for_ever = job(&serde_json::json!({"completeWithin": "9999999999h"}));
        assert!(of(&for_ever.job, &for_ever.valid).is_some_and(|at| at > none.now));
    }
}
