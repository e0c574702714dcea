//! Stopping with a checkpoint: suspended by the user, out of budget, or its Pod deleted. Pure.

use jiff::Timestamp;
use tradewind_api::rented_machine::OrderOutcome;
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Reason, RentedMachine, TrainingJobStatus};
use tradewind_core::Money;

use super::crew::{self, Crew};
use super::decide::{Decision, Observed, Step, lives, machine_of};
use super::ending;
use super::status::Report;
use super::valid::Valid;
use crate::controllers::pod;
use crate::controllers::rented_machine::{cost, reserve};
use crate::runtime::Wake;

/// Why a job should not run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Reason of the condition `Suspended`.
    pub reason: Reason,
    /// Sentence: what stopped it and how it goes on.
    pub message: String,
}

/// Whether the job should not run now.
pub fn wanted(o: &Observed, status: &TrainingJobStatus, valid: &Valid) -> Option<Wanted> {
    if o.job.spec.suspend {
        let message = "spec.suspend is true; the job goes on from its last checkpoint when it is false".to_owned();
        return Some(Wanted { reason: Reason::Suspended, message });
    }
    let total = valid.budget_total?;
    let latched = status.cost.exhausted.is_some_and(|at| total <= at);
    let machine = status.attempt.and_then(|attempt| machine_of(o, attempt)).filter(|m| lives(m));
    let in_cluster = o.pods.iter().any(|pod| {
        let over = pod::is_over(pod) || pod.metadata.deletion_timestamp.is_some();
        !over && !pod::node(pod).is_empty() && pod::node(pod) != o.node
    });
    if machine.is_none() && in_cluster {
        // The cluster's own nodes cost the budget nothing.
        return None;
    }
    if latched || machine.is_some_and(|m| over_budget(total, status, m, o.now)) || status.cost.settled >= total {
        let message = format!(
            "budget.total (${total}) is used up, with what the last save and the machine's end still cost; the job goes on from its last checkpoint when it is raised"
        );
        return Some(Wanted { reason: Reason::BudgetExhausted, message });
    }
    None
}

/// Whether nothing new may begin: the job should not run now, or its spec cannot be carried out.
pub fn is_held(o: &Observed, status: &TrainingJobStatus) -> bool {
    o.refused.is_some() || wanted(o, status, &o.valid).is_some()
}

fn over_budget(total: Money, status: &TrainingJobStatus, machine: &RentedMachine, now: Timestamp) -> bool {
    let Some(m) = machine.status.as_ref().filter(|s| s.machine_id.is_some()) else { return false };
    let price = m.price_per_hour.unwrap_or(Money::ZERO);
    // The cost in the machine's status may be minutes old: it is counted from the clock.
    let since = m.rented_at.as_ref().map_or(now, |t| t.0);
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    let traffic =
        reserve::offer(machine).map_or(Money::ZERO, |offer| cost::traffic(&offer, m, machine.spec.image_bytes));
    // Machines of earlier attempts that are not settled yet count as their objects say.
    let others = status.cost.total - m.cost.unwrap_or(Money::ZERO);
    // Money is used up a little before it is: so much is kept for the last save and the end of the machine.
    let kept = reserve::of(machine, status.checkpoint.as_ref()).dollars(price);
    others + price.for_seconds(seconds) + traffic + kept >= total
}

/// When an hour at this price would use the budget up; for the time of the next look.
pub fn look_again(status: &TrainingJobStatus, valid: &Valid, machine: &RentedMachine) -> Option<std::time::Duration> {
    let total = valid.budget_total?;
    let price = machine.status.as_ref()?.price_per_hour.filter(|price| *price > Money::ZERO)?;
    let kept = reserve::of(machine, status.checkpoint.as_ref()).dollars(price);
    let left = (total - status.cost.total - kept).micros().max(0);
    let seconds =
        u64::try_from(left).unwrap_or(0).saturating_mul(3600) / u64::try_from(price.micros()).unwrap_or(1).max(1);
    Some(std::time::Duration::from_secs(seconds.clamp(1, 60)))
}

/// Stops what runs, with a checkpoint, and stays stopped.
pub fn stopping(o: &Observed, mut r: Report, valid: &Valid, attempt: i64, wanted: &Wanted) -> Decision {
    if wanted.reason == Reason::BudgetExhausted {
        let total = valid.budget_total.unwrap_or(Money::ZERO);
        r.status.cost.exhausted = Some(r.status.cost.exhausted.unwrap_or(total).max(total));
    }
    if let Some(machine) = machine_of(o, attempt) {
        if lives(machine) {
            r.follow(machine);
            r.suspending(wanted);
            return stop_machine(r, machine, wanted);
        }
        // What it was is remembered before its object goes; then this attempt is over, or was never rented.
        r.suspending(wanted);
        return r.rest(Wake::OnChange);
    }
    // Stopped means that nothing is paid any more, not that its end is asked for.
    let paid = |m: &RentedMachine| m.status.as_ref().is_some_and(|s| s.rented_at.is_some() && s.gone_at.is_none());
    if o.machines.iter().any(|m| paid(m)) {
        r.suspending(wanted);
        return r.rest(Wake::OnChange);
    }
    if o.pods.iter().any(|pod| pod::is_of(pod, attempt) && !pod::node(pod).is_empty() && pod::node(pod) != o.node) {
        let crew = Crew::of(o, attempt);
        if crew.is_over() {
            // What it came to comes first: a program that is finished is not run again.
            return crew::look(o, r, attempt);
        }
        // They may have begun to run: they are told to stop, and the attempt's number is spent.
        let cause = ending::Cause::new(wanted.reason, wanted.message.clone());
        let mut decision = ending::begin(o, r, &crew, attempt, cause);
        if decision.status.ending.is_some() {
            decision.status.phase = JobPhase::Suspending;
        }
        return decision;
    }
    if let Some(pod) = o.pods.iter().find(|pod| !pod::is_over(pod)) {
        r.suspending(wanted);
        if pod.metadata.deletion_timestamp.is_some() {
            return r.rest(Wake::OnChange);
        }
        return r.decide(Step::RemovePod(pod.metadata.name.clone().unwrap_or_default()), Wake::OnChange);
    }
    r.suspended(wanted);
    r.rest(Wake::OnChange)
}

fn stop_machine(r: Report, machine: &RentedMachine, wanted: &Wanted) -> Decision {
    let name = machine.metadata.name.clone().unwrap_or_default();
    let status = machine.status.as_ref();
    let ordered = status.is_some_and(|s| {
        s.machine_id.is_some() || s.orders.iter().any(|o| o.outcome == OrderOutcome::Open || o.leftover)
    });
    if !ordered {
        // A claim costs nothing and ran nothing.
        return r.decide(Step::DropMachine(name), Wake::OnChange);
    }
    if machine.spec.stop.is_some() {
        return r.rest(Wake::OnChange);
    }
    r.decide(Step::Stop { machine: name, reason: wanted.reason, message: wanted.message.clone() }, Wake::OnChange)
}
