//! How soon a job's status is written: what is decided at once, what only passes once it has lasted, what grows all the time every so often.
//! Pure.

use std::time::Duration;

use tradewind_api::training_job::JobPhase;
use tradewind_api::{Reason, TrainingJobStatus, conditions};
use tradewind_core::Money;

use super::decide::{Decision, Step};
use crate::controllers::rented_machine::COST_ALONE;

/// How long a job that gets its nodes may say less than is known: a moment later it runs, and nobody has missed what was between. What keeps
/// it from running is told at once. With a thousand jobs at once that moment is minutes: see
/// [`AMONG_MANY`].
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// The same for a job whose last reports are read after a good end.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// With more jobs than this that begin or end at once each takes longer than it would alone.
pub const MANY: usize = 100;
/// Then both of these times are so many times as long.
pub const AMONG_MANY: u32 = 4;
/// The same state in other words is told this often at most.
const OTHER_WORDS: Duration = Duration::from_secs(5);

/// When a status is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// It says nothing new.
    Nothing,
    /// Now.
    Now,
    /// Once it has been on its way for so long.
    Lasting(Duration),
    /// Once the last write is so long ago; looked at again by itself.
    Apart(Duration),
    /// The same, with the next news: it comes often.
    WithNews(Duration),
}

/// When to write what was decided over a status; `interval` is the one of progress.
pub fn telling(old: &TrainingJobStatus, decision: &Decision, interval: Duration) -> Telling {
    let new = &decision.status;
    if old == new {
        return Telling::Nothing;
    }
    if decision.step != Step::Rest {
        return Telling::Now;
    }
    let other_words = || without_words(old) == without_words(new);
    if placed(new) == Some(Reason::WaitingForTurn) && other_words() {
        // How many are before it in a queue of hundreds changes all the time.
        return Telling::Apart(interval * COST_ALONE);
    }
    if decision.passing && is_same_attempt(old, new) && may_be_held(old, new) {
        let within = if new.ending.is_some() { ENDS_WITHIN } else { BEGINS_WITHIN };
        return Telling::Lasting(within.min(interval));
    }
    if essential(old) == essential(new) {
        let only_cost = without_cost(old) == without_cost(new);
        return Telling::WithNews(if only_cost { interval * COST_ALONE } else { interval });
    }
    if other_words() { Telling::Apart(OTHER_WORDS.min(interval)) } else { Telling::Now }
}

fn placed(status: &TrainingJobStatus) -> Option<Reason> {
    Reason::from_word(&conditions::condition(&status.conditions, conditions::PLACED)?.reason)
}

fn is_same_attempt(old: &TrainingJobStatus, new: &TrainingJobStatus) -> bool {
    (old.attempt, &old.run_id, old.observed_generation) == (new.attempt, &new.run_id, new.observed_generation)
}

/// From waiting to starting, or to a good end. A job that was said to run is told at once that it does not, one that was held up that it no
/// longer is, and a machine's cost is settled at once.
fn may_be_held(old: &TrainingJobStatus, new: &TrainingJobStatus) -> bool {
    let begins = |phase| matches!(phase, JobPhase::Waiting | JobPhase::Starting | JobPhase::Resuming);
    let on_its_way = placed(old).is_none_or(|reason| {
        matches!(reason, Reason::WaitingForCluster | Reason::WaitingForTurn | Reason::InCluster | Reason::Resuming)
    });
    let finished = new.ending.as_ref().is_some_and(|e| e.reason == Reason::Finished.as_str());
    let settled = old.cost.settled_machines == new.cost.settled_machines;
    settled && ((begins(old.phase) && begins(new.phase) && on_its_way) || (old.ending.is_none() && finished))
}

/// A status without cost that still grows.
fn without_cost(status: &TrainingJobStatus) -> TrainingJobStatus {
    let mut rest = status.clone();
    rest.cost.total = Money::ZERO;
    rest.cost.summary = String::new();
    rest
}

/// A status without what changes all the time while the program runs.
fn essential(status: &TrainingJobStatus) -> TrainingJobStatus {
    TrainingJobStatus { progress: None, checkpoint: None, ..without_cost(status) }
}

/// The state without its sentences and without the number of workers that are ready.
fn without_words(status: &TrainingJobStatus) -> TrainingJobStatus {
    let mut rest = TrainingJobStatus { message: String::new(), workers: None, ..essential(status) };
    for condition in &mut rest.conditions {
        condition.message = String::new();
    }
    rest
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tradewind_api::conditions::set_condition;

    use super::*;
    use crate::runtime::Wake;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn status(phase: JobPhase, placed: Reason, message: &str) -> TrainingJobStatus {
        let mut status =
            TrainingJobStatus { phase, message: message.to_owned(), attempt: Some(0), ..TrainingJobStatus::default() };
        let at = Timestamp::UNIX_EPOCH;
        let is = (placed == Reason::InCluster).then_some(true).or(Some(false));
        set_condition(&mut status.conditions, at, 1, conditions::PLACED, is, placed, message);
        status
    }

    fn told(old: &TrainingJobStatus, new: TrainingJobStatus, passing: bool) -> Telling {
        telling(old, &Decision { status: new, step: Step::Rest, wake: Wake::OnChange, passing }, INTERVAL)
    }

    #[test]
    fn what_passes_is_told_once_it_lasts_and_what_has_come_at_once() {
        let waits = status(JobPhase::Waiting, Reason::WaitingForTurn, "2 before it");
        let starts = status(JobPhase::Starting, Reason::InCluster, "starts on node a");
        assert_eq!(told(&waits, waits.clone(), false), Telling::Nothing);
        assert_eq!(told(&waits, starts.clone(), true), Telling::Lasting(BEGINS_WITHIN));
        assert_eq!(told(&waits, starts.clone(), false), Telling::Now, "something keeps it from starting");
        let runs = status(JobPhase::Running, Reason::InCluster, "runs on node a");
        assert_eq!(told(&starts, runs.clone(), false), Telling::Now);
        assert_eq!(told(&runs, starts.clone(), true), Telling::Now, "it was said to run");
        let held_up = status(JobPhase::Waiting, Reason::QuotaExceeded, "no room in the quota");
        assert_eq!(told(&held_up, starts.clone(), true), Telling::Now, "what was in its way is gone");
        let mut settled = starts.clone();
        settled.cost.settled_machines = vec!["uid".to_owned()];
        assert_eq!(told(&waits, settled, true), Telling::Now, "a machine waits for it");
        let next = TrainingJobStatus { attempt: Some(1), ..starts };
        assert_eq!(told(&waits, next, true), Telling::Now, "another attempt");
    }

    #[test]
    fn a_step_is_never_taken_before_the_status_that_it_follows_from_is_written() {
        let waits = status(JobPhase::Waiting, Reason::WaitingForTurn, "2 before it");
        let step = Step::CreatePods { attempt: 0, ranks: vec![0] };
        let new = status(JobPhase::Waiting, Reason::WaitingForTurn, "1 before it");
        let decision = Decision { status: new, step, wake: Wake::OnChange, passing: true };
        assert_eq!(telling(&waits, &decision, INTERVAL), Telling::Now);
    }

    #[test]
    fn other_words_wait_and_those_of_a_queue_longest() {
        let waits = |reason, words| status(JobPhase::Waiting, reason, words);
        let two = waits(Reason::WaitingForTurn, "2 before it");
        assert_eq!(
            told(&two, waits(Reason::WaitingForTurn, "1 before it"), true),
            Telling::Apart(INTERVAL * COST_ALONE)
        );
        let room = waits(Reason::WaitingForCluster, "room for 2");
        assert_eq!(told(&room, waits(Reason::WaitingForCluster, "room for 3"), false), Telling::Apart(OTHER_WORDS));
        assert_eq!(told(&two, room, false), Telling::Now, "another reason is more than other words");
    }

    #[test]
    fn cost_alone_is_told_most_rarely() {
        let old = status(JobPhase::Running, Reason::Rented, "runs");
        let mut new = old.clone();
        new.cost.total = Money::from_micros(5);
        assert_eq!(told(&old, new.clone(), false), Telling::WithNews(INTERVAL * COST_ALONE));
        new.progress = Some(tradewind_api::training_job::ProgressStatus { step: 7, ..Default::default() });
        assert_eq!(told(&old, new, false), Telling::WithNews(INTERVAL));
    }
}
