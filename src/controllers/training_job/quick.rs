//! A program that fails within minutes on a host where none of ours has worked before: host or program may be to blame, so it is tried once
//! elsewhere for free. Pure.

use tradewind_api::conditions::bounded;

use super::decide::{Decision, Step};
use super::ended::is_failure;
use super::status::Report;
use super::valid::Valid;
use crate::runtime::Wake;

/// What follows, if this failure is not counted: another attempt, on another machine. Never on the same one.
///
/// A rule for the exit code wins. Of several such failures in a row only the first is free: then it is the program.
pub fn elsewhere(r: &mut Report, valid: &Valid, attempt: i64, code: i64, log: &str, how: &str) -> Option<Decision> {
    let mut failures = r.status.history.iter().rev().filter(|record| is_failure(&record.ended));
    failures.next().filter(|record| record.attempt == attempt && record.quick_failure)?;
    let again = failures.next().is_some_and(|record| record.quick_failure);
    let ruled = valid.rules.iter().any(|rule| rule.exit_codes.iter().any(|named| i64::from(*named) == code));
    if again || ruled {
        return None;
    }
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    let said = if last.is_empty() { String::new() } else { format!(" (\"{}\")", bounded(last, 200)) };
    let why = format!(
        "{how}{said} within minutes, on a host where no program of ours has worked before: tried once on another host, not counted as a restart"
    );
    r.moves_on(valid, attempt + 1, &why);
    Some(r.clone().decide(Step::CreatePods { attempt: attempt + 1, ranks: vec![0] }, Wake::OnChange))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tradewind_api::training_job::{AttemptRecord, JobPhase};
    use tradewind_api::{TrainingJob, TrainingJobStatus};

    use super::super::decide::Observed;
    use super::*;

    /// What becomes of a job whose attempts ended so, and whose newest one failed with this code.
    fn after(history: &[(&str, bool)], rules: serde_json::Value, code: i64) -> Option<Decision> {
        let record = |(attempt, (ended, quick_failure)): (i64, &(&str, bool))| AttemptRecord {
            attempt,
            ended: (*ended).to_owned(),
            quick_failure: *quick_failure,
            ..AttemptRecord::default()
        };
        let attempt = i64::try_from(history.len()).unwrap() - 1;
        let history = (0..).zip(history).map(record).collect();
        let mut job: TrainingJob = serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j", "namespace": "n"},
            "spec": {
                "template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}},
                "failurePolicy": {"maxRestarts": 0, "rules": rules},
            },
        }))
        .unwrap();
        job.status = Some(TrainingJobStatus { attempt: Some(attempt), history, ..TrainingJobStatus::default() });
        let o = Observed::bare(job);
        let mut report = Report::new(&o);
        let decision =
            elsewhere(&mut report, &o.valid, attempt, code, "loading\nCUDA error\n\n", "it ended with exit code 1");
        if decision.is_none() {
            assert_eq!(Some(&report.status), o.job.status.as_ref(), "what is not decided here is left as it was");
        }
        decision
    }

    const QUICK: (&str, bool) = ("ProgramFailed", true);
    const SLOW: (&str, bool) = ("ProgramFailed", false);
    const LOST: (&str, bool) = ("Preempted", false);

    #[test]
    fn the_first_quick_failure_in_a_row_is_free() {
        let none = json!([]);
        for (history, free, why) in [
            (&[QUICK][..], true, "the first attempt"),
            (&[QUICK, QUICK], false, "a second one counts"),
            (&[QUICK, QUICK, QUICK], false, "and a third"),
            (&[QUICK, LOST, QUICK], false, "a loss between them tells nothing of the program"),
            (&[SLOW, QUICK], true, "the one before had worked for a while"),
            (&[QUICK, SLOW, QUICK], true, "a new row"),
            (&[SLOW], false, "not quick, or on a host that works"),
            (&[QUICK, SLOW], false, "the newest one decides"),
            (&[("Killed", false), QUICK], true, "a kill is another failure"),
        ] {
            let decision = after(history, none.clone(), 1);
            assert_eq!(decision.is_some(), free, "{why}");
            let Some(decision) = decision else { continue };
            let next = i64::try_from(history.len()).unwrap();
            assert_eq!(decision.step, Step::CreatePods { attempt: next, ranks: vec![0] }, "never on the same machine");
            assert_eq!((decision.status.restarts, decision.status.attempt), (0, Some(next)), "{why}");
            assert_eq!(decision.status.phase, JobPhase::Resuming);
            let said = "it ended with exit code 1 (\"CUDA error\") within minutes, on a host where no program of ours has worked before: tried once on another host, not counted as a restart";
            assert_eq!(decision.status.message, said);
        }
    }

    #[test]
    fn a_rule_for_the_exit_code_wins() {
        for action in ["Fail", "Restart"] {
            let rules = json!([{"exitCodes": [3], "action": action}]);
            assert!(after(&[QUICK], rules.clone(), 3).is_none(), "{action}");
            assert!(after(&[QUICK], rules, 4).is_some(), "{action}, but for another code");
        }
    }
}
