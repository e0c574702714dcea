//! Restart in place: a program that failed on a machine that is well begins again on it, without another rental, boot and pull. Pure.
//!
//! The job says so first (`status.restartsOn`, in the write that counts the failure and numbers the next attempt), then its Pod is made on
//! our Node, then the machine's claim and attempt are moved. From the first write on nothing else is rented for that attempt, and the
//! machine does not take the job's later attempt number for its own end.

use std::sync::Arc;
use std::time::Duration;

use tradewind_api::RentedMachine;
use tradewind_api::training_job::InCluster;

use super::decide::{Decision, Observed, Step, lives};
use super::ended::{program_failed, remember};
use super::status::Report;
use crate::controllers::pod;
use crate::runtime::Wake;

/// The program of this attempt has failed and its machine still lives: what the failure leads to. `None` if nothing of that is so, or the
/// last save is not home yet. `held`: the job does not go on now, so the machine is let go.
pub fn program_exited(
    o: &Observed,
    r: &mut Report,
    attempt: i64,
    machine: &RentedMachine,
    held: bool,
) -> Option<Decision> {
    let status = machine.status.as_ref()?;
    let exited = status.exited.as_ref().filter(|exited| exited.saved)?;
    if !lives(machine) || status.attempt != Some(attempt) {
        return None;
    }
    r.follow(machine);
    remember(o, r, attempt, status, &exited.reason, &exited.message);
    let same = r.status.spec_hash.as_ref() == Some(&o.valid.spec_hash);
    let log = status.exit_log.as_deref().unwrap_or("");
    let code = status.exit_code.unwrap_or(1);
    let decision = program_failed(r, &o.valid, attempt, code, log, &exited.message);
    let rents = o.valid.rental.is_ok() && o.valid.in_cluster != InCluster::Only;
    let stays = same && rents && !held && machine.spec.stop.is_none();
    if !stays || !matches!(decision.step, Step::CreatePods { .. }) {
        return Some(decision);
    }
    r.restarts_on(machine);
    Some(r.clone().decide(Step::RestartPod { attempt: attempt + 1 }, Wake::OnChange))
}

/// The machine that this attempt is to take over, while it has not been moved to it yet.
pub fn awaited<'a>(o: &'a Observed, restarts_on: Option<&String>, attempt: i64) -> Option<&'a Arc<RentedMachine>> {
    let name = restarts_on?;
    let machine = o.machines.iter().find(|machine| machine.metadata.name.as_ref() == Some(name))?;
    (machine.spec.attempt < attempt && machine.spec.stop.is_none() && lives(machine)).then_some(machine)
}

/// The next thing to do so that this attempt takes over its machine. `None` if it has, or there is nothing to take over (any more).
pub fn take_over(o: &Observed, r: &mut Report, attempt: i64) -> Option<Decision> {
    let Some(machine) = awaited(o, r.status.restarts_on.as_ref(), attempt) else {
        let_go(o, r, attempt);
        return None;
    };
    let Some(pod) = o.pods.iter().find(|pod| pod::is_of(pod, attempt)) else {
        return Some(r.clone().decide(Step::RestartPod { attempt }, Wake::OnChange));
    };
    if pod::node(pod) != o.node || pod.metadata.deletion_timestamp.is_some() || pod::is_over(pod) {
        // Somebody was faster with this Pod: the usual way finds out what to do with it.
        r.status.restarts_on = None;
        return None;
    }
    let before = o.pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&machine.spec.claim.pod_uid));
    if before.is_some_and(|pod| !pod::is_over(pod) || pod::is_held(pod)) {
        // Its machine's controller says how it ended and frees it; once the claim has moved on nobody would.
        return Some(r.clone().rest(Wake::After(Duration::from_secs(1), "the failed Pod shows its end")));
    }
    let machine = machine.metadata.name.clone().unwrap_or_default();
    Some(r.clone().decide(Step::TakeOver { machine, claim: pod::claim(pod), attempt }, Wake::OnChange))
}

/// Nothing is taken over, unless the machine serves this attempt already: it is let go, and what else may be rented for the attempt is open
/// again.
pub fn let_go(o: &Observed, r: &mut Report, attempt: i64) {
    let Some(name) = &r.status.restarts_on else { return };
    let is = |machine: &RentedMachine| machine.metadata.name.as_ref() == Some(name) && machine.spec.attempt >= attempt;
    if !o.machines.iter().any(|machine| is(machine)) {
        r.status.restarts_on = None;
    }
}
