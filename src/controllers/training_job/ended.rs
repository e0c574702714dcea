//! A machine of the present attempt has ended: what that means for the job. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::{AttemptRecord, FailureAction, JobPhase};
use tradewind_api::{Reason, RentedMachine, RentedMachineStatus, conditions};

use super::decide::{Decision, Observed, Step};
use super::quick;
use super::status::Report;
use super::valid::Valid;
use crate::runtime::Wake;

/// A machine of this attempt that has ended: what it means for the job. `None` if the attempt goes on.
pub fn ended_machine(
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
    remember(o, r, attempt, status, ended, &message);
    if let Some(decision) = too_many_never_started(r, &machine.spec.workload.image, &message) {
        return Some(decision);
    }
    match status.exit_code {
        Some(0) => {
            r.complete("the program ended with exit code 0");
            return Some(r.clone().rest(Wake::OnChange));
        }
        Some(code) if is_failure(ended) => {
            let log = status.exit_log.as_deref().unwrap_or("");
            let elsewhere = quick::elsewhere(r, valid, attempt, code, log, &message);
            return Some(elsewhere.unwrap_or_else(|| program_failed(r, valid, attempt, code, log, &message)));
        }
        _ => {}
    }
    // A machine that never ran anything is no preemption of work, but the attempt number is spent: its agent may still be alive.
    let asked = machine.spec.stop.is_some()
        || [Reason::Deleted, Reason::OperatorSilent].iter().any(|reason| reason.as_str() == ended);
    if ended == Reason::ProgramStalled.as_str()
        && let Some(decision) = program_stalled(r, valid, status.restored_step, &message)
    {
        return Some(decision);
    }
    let unfit = ended == Reason::HostUnfit.as_str();
    if !asked && !unfit && (status.boot.is_some() || ended == Reason::Preempted.as_str()) {
        r.status.preemptions += 1;
    }
    r.lost_work(status);
    let next = attempt + 1;
    r.moves_on(valid, next, &format!("{message}; attempt {next} goes on from the last checkpoint"));
    Some(next_pods(r, valid, next))
}

/// The Pods of the next attempt are made: of one worker at once, of several when it is their turn.
pub fn next_pods(r: &Report, valid: &Valid, attempt: i64) -> Decision {
    if valid.workers > 1 {
        return r.clone().rest(Wake::After(Duration::ZERO, "the next attempt"));
    }
    r.clone().decide(Step::CreatePods { attempt, ranks: vec![0] }, Wake::OnChange)
}

/// Image, not hosts, is to blame: too many attempts in a row never started it. The record of the last one is written already.
pub fn too_many_never_started(r: &mut Report, image: &str, last: &str) -> Option<Decision> {
    let in_a_row = r.status.history.iter().rev().take_while(|record| never_started(&record.ended)).count();
    if in_a_row < HOSTS_TRIED {
        return None;
    }
    let message = format!("{in_a_row} machines in a row never ran image {image}; the last one: {last}");
    r.failed(Reason::NotStartable, &message);
    Some(r.clone().rest(Wake::OnChange))
}

/// The program hung; too often at the same place, and the job fails. The record of this attempt is the last of them.
pub fn program_stalled(r: &mut Report, valid: &Valid, from: Option<i64>, message: &str) -> Option<Decision> {
    r.status.stalls += 1;
    let at_this_place =
        |record: &&AttemptRecord| record.ended == Reason::ProgramStalled.as_str() && record.from_step == from;
    let in_a_row = r.status.history.iter().rev().take_while(at_this_place).count();
    if i64::try_from(in_a_row).unwrap_or(i64::MAX) <= valid.max_restarts {
        return None;
    }
    let limit = valid.max_restarts;
    let message = format!("{message}, {in_a_row} times in a row from the same checkpoint; maxRestarts is {limit}");
    r.failed(Reason::ProgramStalled, &message);
    Some(r.clone().rest(Wake::OnChange))
}

/// Writes the end of an attempt into the job's history.
pub fn remember(o: &Observed, r: &mut Report, attempt: i64, status: &RentedMachineStatus, ended: &str, message: &str) {
    let place = r.status.placement.as_ref().map(|p| p.summary.clone()).unwrap_or_default();
    r.remember(AttemptRecord {
        attempt,
        place,
        ended: ended.to_owned(),
        message: message.to_owned(),
        from_step: status.restored_step,
        last_step: status.progress.as_ref().map(|p| p.step),
        quick_failure: status.quick_failure,
        at: Some(Time(o.now)),
    });
}

/// Machines in a row that may fail to start the program before its image, not the hosts, is to blame.
const HOSTS_TRIED: usize = 5;
/// Whether a machine that ended for this reason never ran anything.
pub fn never_started(ended: &str) -> bool {
    NEVER_STARTED.iter().any(|reason| reason.as_str() == ended)
}

/// Reasons of an end before anything ran.
const NEVER_STARTED: [Reason; 4] =
    [Reason::BootFailed, Reason::AgentNotStarted, Reason::HostUnfit, Reason::NotStartable];

/// Reasons of an end that count as the program's own failure.
const FAILURES: [Reason; 3] = [Reason::ProgramFailed, Reason::OutOfMemory, Reason::Killed];

/// Whether an attempt that ended for this reason failed by its own fault.
pub fn is_failure(ended: &str) -> bool {
    FAILURES.iter().any(|reason| reason.as_str() == ended)
}

/// The program failed: what its exit code, the rules and the count of restarts lead to.
pub fn program_failed(r: &mut Report, valid: &Valid, attempt: i64, code: i64, log: &str, how: &str) -> Decision {
    let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("").trim();
    let said =
        if last.is_empty() { String::new() } else { format!(" (\"{}\")", conditions::bounded(last.to_owned(), 200)) };
    let rule = valid.rules.iter().find(|rule| rule.exit_codes.iter().any(|named| i64::from(*named) == code));
    let action = rule.map(|rule| rule.action);
    if action == Some(FailureAction::Fail) {
        r.failed(Reason::ProgramFailed, &format!("{how}{said}; failurePolicy.rules says Fail for this exit code"));
        return r.clone().rest(Wake::OnChange);
    }
    let why = if action == Some(FailureAction::Restart) {
        format!("{how}{said}; failurePolicy.rules says Restart for this exit code")
    } else if r.status.restarts >= valid.max_restarts {
        let reason = if valid.max_restarts == 0 { Reason::ProgramFailed } else { Reason::TooManyRestarts };
        let message = format!("{how}{said}; failurePolicy.maxRestarts ({}) is used up", valid.max_restarts);
        r.failed(reason, &message);
        return r.clone().rest(Wake::OnChange);
    } else {
        r.status.restarts += 1;
        format!("{how}{said}; restart {} of {}", r.status.restarts, valid.max_restarts)
    };
    r.moves_on(valid, attempt + 1, &why);
    next_pods(r, valid, attempt + 1)
}
