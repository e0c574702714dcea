//! Why a machine must be ended: what job, agent and provider say, and how long nobody has said anything. Pure.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::rented_machine::{OrderStatus, StopRequest, Workload};
use tradewind_api::{Reason, RentedMachineStatus};
use tradewind_core::{Capacity, Money};
use tradewind_protocol::Exit;
use tradewind_providers::{Machine, MachineState};

use super::cost;
use super::decide::{JobView, Observed};
use super::fit;
use crate::images::ASSUMED_BYTES;
use crate::serving::AgentView;

/// Why the machine must be ended now, if it must.
pub fn why_end(observed: &Observed, status: &RentedMachineStatus) -> Option<(Reason, String)> {
    if observed.deleting {
        return Some(match observed.job {
            JobView::Alive { terminal: false, .. } => {
                (Reason::Deleted, "its RentedMachine was deleted by hand; the job goes on elsewhere".to_owned())
            }
            _ => (Reason::Released, "nobody needs the machine any more".to_owned()),
        });
    }
    match observed.job {
        JobView::Gone => return Some((Reason::Released, "the job is gone".to_owned())),
        JobView::Alive { terminal: true, .. } if status.exit_code.is_none() => {
            return Some((Reason::Released, "the job is finished".to_owned()));
        }
        JobView::Alive { superseded: true, .. } => {
            return Some((Reason::Released, "a later attempt has started".to_owned()));
        }
        JobView::Alive { .. } => {}
    }
    status.machine_id.as_ref()?;
    if let Some(stop) = &observed.spec.stop
        && status.boot.is_none()
    {
        return Some((stop_reason(stop), format!("{}; nothing had started yet", stop.message)));
    }
    if let Some(agent) = observed.served.as_ref().and_then(|s| s.agent.as_ref())
        && let Some(found) =
            agent_verdict(agent, status, observed.spec.stop.as_ref()).or_else(|| unfit(agent, &observed.spec.workload))
    {
        return (!waits_for_job(observed, status)).then_some(found);
    }
    if let Some(found) = provider_verdict(observed, status) {
        return Some(found);
    }
    drained_too_long(observed, status).or_else(|| silence(observed, status))
}

/// How long, beyond the program's own grace, its last save may take to come home.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_mins(30);

fn stop_reason(stop: &StopRequest) -> Reason {
    Reason::from_word(&stop.reason).unwrap_or(Reason::Released)
}

fn drained_too_long(observed: &Observed, status: &RentedMachineStatus) -> Option<(Reason, String)> {
    let stop = observed.spec.stop.as_ref()?;
    let since = status.draining_since.as_ref()?.0;
    let grace = Duration::from_secs(u64::try_from(observed.spec.workload.stop_grace_s).unwrap_or(0));
    let late = observed.now > since.checked_add(DRAIN_LIMIT + grace).unwrap_or(Timestamp::MAX);
    late.then(|| {
        let minutes = DRAIN_LIMIT.as_secs() / 60;
        (stop_reason(stop), format!("{}; the last save was not uploaded within {minutes} min", stop.message))
    })
}

fn agent_verdict(
    agent: &AgentView,
    status: &RentedMachineStatus,
    stop: Option<&StopRequest>,
) -> Option<(Reason, String)> {
    if agent.fenced {
        return Some((Reason::Released, "a later attempt has started".to_owned()));
    }
    // A host may restart the container after the end: a later boot carries the exit that its own last report shows.
    if let Some(exit) = agent.exit.as_ref().filter(|_| agent.finished) {
        if exit.told_to_stop {
            if let Some(stop) = stop {
                return Some((stop_reason(stop), stop.message.clone()));
            }
            if agent.silent {
                let message = "the operator was silent for longer than the machine may go on without it (operatorOutageTolerance or budget.total); it saved its state and ends";
                return Some((Reason::OperatorSilent, message.to_owned()));
            }
            // Nothing of ours asks for it: the host goes down, or the market takes it. Never the program's fault.
            return Some((Reason::Preempted, "the machine was shut down by its host or the market".to_owned()));
        }
        return Some(by_itself(exit));
    }
    if agent.restarted || status.boot.as_ref().is_some_and(|boot| *boot != agent.boot) {
        return Some((
            Reason::MachineRestarted,
            "the machine booted a second time; its program cannot be trusted to go on".to_owned(),
        ));
    }
    if agent.failed {
        let why = agent.warnings.last().cloned().unwrap_or_else(|| "no reason was given".to_owned());
        return Some((Reason::AgentFailed, format!("the agent cannot go on: {why}")));
    }
    None
}

/// What the end of a program that nobody told to stop means.
fn by_itself(exit: &Exit) -> (Reason, String) {
    match exit.code {
        137 if exit.oom_killed == Some(true) => (
            Reason::OutOfMemory,
            "the program was killed because the machine ran out of memory (exit code 137); ask for more in resources.requests.memory".to_owned(),
        ),
        137 => (Reason::Killed, "the program was killed (exit code 137)".to_owned()),
        0 => (Reason::Finished, "the program ended with exit code 0".to_owned()),
        code => (Reason::ProgramFailed, format!("the program ended with exit code {code}")),
    }
}

/// A failure that says nothing against the machine: the next attempt may begin on it. A kill that nobody can explain may be the host's.
pub fn failed_on_a_good_machine(agent: &AgentView) -> Option<(Reason, String)> {
    let exit = agent.exit.as_ref().filter(|exit| agent.finished && !exit.told_to_stop)?;
    // A later boot carries the end that its own last report shows: nothing is started on it.
    let (reason, message) = by_itself(exit);
    let good = matches!(reason, Reason::ProgramFailed | Reason::OutOfMemory);
    // One that has fallen silent begins nothing any more.
    let good = good && !agent.restarted && !agent.silent;
    good.then_some((reason, message))
}

/// How long a machine whose program has failed is kept for the job's next attempt. The job needs seconds for it; where a Pod cannot be
/// made or the last save does not come home, paying on would be for nothing.
const KEPT_FOR_JOB: Duration = Duration::from_mins(2);

/// The program has failed and the machine is well: the job decides whether the next attempt takes it over.
fn waits_for_job(observed: &Observed, status: &RentedMachineStatus) -> bool {
    let since = status.exited.as_ref().and_then(|exited| exited.at.as_ref());
    let in_time = since.is_some_and(|at| at.0.checked_add(KEPT_FOR_JOB).is_ok_and(|until| observed.now < until));
    let wanted = matches!(observed.job, JobView::Alive { terminal: false, .. }) && observed.spec.stop.is_none();
    // A failure that may be the host's is tried elsewhere.
    in_time && wanted && !status.quick_failure && provider_verdict(observed, status).is_none()
}

/// The agent sees less than what was rented, and nothing has been started yet.
fn unfit(agent: &AgentView, workload: &Workload) -> Option<(Reason, String)> {
    let lacks = fit::lacks(workload, agent.host.as_ref()?)?;
    Some((Reason::HostUnfit, format!("the machine is less than what was rented: {lacks}; nothing was started on it")))
}

fn provider_verdict(observed: &Observed, status: &RentedMachineStatus) -> Option<(Reason, String)> {
    let account = observed.account.as_ref()?;
    let id = status.machine_id.as_ref()?;
    if let Some(machine) = account.machines.iter().find(|m| m.id == *id) {
        match &machine.state {
            MachineState::TakenAway => {
                let how =
                    if machine.capacity == Capacity::Spot { "was outbid or taken back" } else { "was taken back" };
                Some((Reason::Preempted, format!("the machine {how} by the market")))
            }
            MachineState::BootFailed { message } => {
                Some((Reason::BootFailed, format!("the machine could not start the image: {message}")))
            }
            MachineState::Starting | MachineState::Running | MachineState::Unknown { .. } => {
                too_dear(observed, account.bids, status, machine)
            }
        }
    } else {
        let since = status.missing_since.as_ref()?.0;
        let twice = account.listed_before.is_some_and(|before| before > since);
        twice.then(|| (Reason::Preempted, "the machine is no longer on the account".to_owned()))
    }
}

/// The price of a machine may have risen between the list of offers and the rent call. A bid is our own.
fn too_dear(
    observed: &Observed,
    bids: bool,
    status: &RentedMachineStatus,
    machine: &Machine,
) -> Option<(Reason, String)> {
    let price = machine.price_per_hour.filter(|_| !bids || machine.capacity == Capacity::OnDemand)?;
    let order = status.rented_order()?;
    let cap = order.of(&observed.spec.offers)?.price_cap;
    // A market that tells one price for everything counts the disk in, in whole cents.
    let slack = if bids { Money::ZERO } else { Money::from_micros(10_000) + disk_rate(observed, order) };
    (price > cap + slack)
        .then(|| (Reason::LimitReached, format!("the machine costs ${price} an hour, its price cap is ${cap}")))
}

fn disk_rate(observed: &Observed, order: &OrderStatus) -> Money {
    let offer = order.of(&observed.offers).and_then(Option::as_ref);
    offer.map_or(Money::ZERO, |offer| cost::with_disk(Money::ZERO, offer, observed.spec.workload.disk_gib))
}

/// How long an agent may take to hear of the next attempt and to fetch its start document; it polls every few seconds.
const BEGINS_WITHIN: Duration = Duration::from_mins(5);

/// A program that fails sooner has most likely not begun its work: the host's driver, GPU or network may be to blame.
pub const QUICK: Duration = Duration::from_mins(5);

/// Whether the program failed so soon, on a host where none of ours has worked, that the host may be to blame.
pub fn failed_quickly(observed: &Observed, status: &RentedMachineStatus, exit: &Exit) -> bool {
    let failed = !exit.told_to_stop && exit.code != 0 && exit.code != 137;
    if !failed || observed.host_proven || status.checkpoint.is_some() {
        return false;
    }
    let within = |since: Option<Timestamp>, limit: Duration| {
        since.and_then(|since| since.checked_add(limit).ok()).is_some_and(|until| observed.now <= until)
    };
    // Its start was not seen where the operator was away: then it must have been short since the rental.
    let start = Duration::from_secs(u64::try_from(start_deadline_s(observed, status)).unwrap_or(0));
    let since = status.program_since.as_ref().map(|t| t.0);
    status.quick_failure || within(since, QUICK) && within(status.rented_at.as_ref().map(|t| t.0), start + QUICK)
}

/// What the offer that was rented has got, by the size of the image and the bandwidth of its host.
pub fn start_deadline_s(observed: &Observed, status: &RentedMachineStatus) -> i64 {
    let offer = status.rented_order().and_then(|order| order.of(&observed.spec.offers));
    offer.and_then(|offer| offer.start_deadline_s).unwrap_or(observed.spec.start_deadline_s)
}

fn gigabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000_000);
    format!("{}.{} GB", tenths / 10, tenths % 10)
}

fn silence(observed: &Observed, status: &RentedMachineStatus) -> Option<(Reason, String)> {
    let rented = status.rented_at.as_ref()?.0;
    let served = observed.served.as_ref()?;
    // A mailbox that cannot be read says nothing about the agent.
    if !served.looked {
        return None;
    }
    let seconds = start_deadline_s(observed, status);
    let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
    if status.boot.is_none() {
        let late = observed.now > rented.checked_add(limit).unwrap_or(Timestamp::MAX);
        return late.then(|| {
            let image = match observed.spec.image_bytes {
                Some(bytes) => gigabytes(u64::try_from(bytes).unwrap_or(0)),
                None => format!("{}, assumed", gigabytes(ASSUMED_BYTES)),
            };
            let message = format!("the machine did not start our agent within {seconds} s (image of {image})");
            (Reason::AgentNotStarted, message)
        });
    }
    if status.agent.as_deref() == Some("Booted")
        && let Some(trouble) = &served.trouble
        && observed.now > rented.checked_add(limit * 2).unwrap_or(Timestamp::MAX)
    {
        return Some((Reason::NotStartable, format!("the program could not be started in time: {trouble}")));
    }
    // The next attempt on a machine starts without boot and pull: an agent that does not begin with it never will.
    let begun = served.agent.as_ref().is_none_or(|agent| agent.ours);
    if let (Some(taken), false) = (&status.taken_over_at, begun)
        && observed.now > taken.0.checked_add(BEGINS_WITHIN).unwrap_or(Timestamp::MAX)
    {
        let attempt = observed.spec.attempt;
        return Some((Reason::AgentSilent, format!("the agent did not begin attempt {attempt} on this machine")));
    }
    let heard = served.heard_at?;
    let quiet = observed.now.duration_since(heard);
    let limit = jiff::SignedDuration::try_from(observed.limits.silent_after).unwrap_or(jiff::SignedDuration::MAX);
    (quiet > limit).then(|| (Reason::AgentSilent, format!("the agent has said nothing for {} s", quiet.as_secs())))
}
