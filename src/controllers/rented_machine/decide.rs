//! What to do next with one RentedMachine. Pure: no I/O, no clock, no chance.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tradewind_api::rented_machine::{MachinePhase, OrderOutcome, OrderStatus, ProgramExit, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachineStatus};
use tradewind_core::{Capacity, Offer, OrderKey};
use tradewind_providers::{Machine, MachineState, Refusal};

use super::cost;
use super::verdict;
use crate::runtime::Wake;
use crate::serving::Served;

/// Everything that was read.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Wall time.
    pub now: Timestamp,
    /// Uid of the RentedMachine.
    pub uid: String,
    /// When it was made.
    pub claimed_at: Option<Timestamp>,
    /// Generation of its spec.
    pub generation: i64,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// Our finaliser is on it.
    pub has_finalizer: bool,
    /// Its spec.
    pub spec: RentedMachineSpec,
    /// Its status.
    pub status: RentedMachineStatus,
    /// The offers of the spec in domain words, in the same order; `None` for one that cannot be read.
    pub offers: Vec<Option<Offer>>,
    /// The Pod of the claim.
    pub pod: PodView,
    /// The job.
    pub job: JobView,
    /// The account; `None` while there is no handle for it.
    pub account: Option<AccountView>,
    /// What the agent says; `None` while no machine is rented.
    pub served: Option<Served>,
    /// `describe` says that the machine does not exist, this many looks in a row (each after the end was asked for).
    pub gone_looks: u32,
    /// `describe` says so for these leftovers.
    pub leftovers_gone: Vec<String>,
    /// When the end was first asked for and the provider said yes.
    pub end_accepted: Option<Timestamp>,
    /// When the newest list that shows the machine running was asked for.
    pub ran_at: Option<Timestamp>,
    /// A program of ours has worked on the host of the rented offer before.
    pub host_proven: bool,
    /// Our Node is cordoned: nothing new is rented.
    pub cordoned: bool,
    /// Why nothing will be rented on this account any more.
    pub closing: Option<String>,
    /// The machine's cost is in its Provider's books, or need not be.
    pub booked: bool,
    /// Timings.
    pub limits: Limits,
}

/// Timings that decide needs.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How often accounts are listed.
    pub poll: Duration,
    /// Silence after which an agent is given up.
    pub silent_after: Duration,
    /// From order write to rent call at most.
    pub call_within: Duration,
}

/// The Pod of the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodView {
    /// Does not exist, or another Pod has its name.
    Absent,
    /// Exists, unbound.
    Unbound,
    /// Bound to our Node.
    Ours,
    /// Bound to another node: the scheduler was faster.
    Elsewhere,
}

/// The job a machine works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobView {
    /// Does not exist (any more), or is being deleted.
    Gone,
    /// Exists.
    Alive {
        /// Complete or Failed.
        terminal: bool,
        /// It has gone on to a later attempt.
        superseded: bool,
        /// Our uid is in its settled list, and the job has gone on to another attempt or is over; or nothing was rented.
        settled: bool,
    },
}

/// What the account showed.
#[derive(Debug, Clone)]
pub struct AccountView {
    /// Why nothing should be rented now.
    pub trouble: Option<String>,
    /// When the newest complete list was asked for (wall time), and the one before.
    pub listed_at: Option<Timestamp>,
    /// The list before.
    pub listed_before: Option<Timestamp>,
    /// Machines in that list which carry a key of ours.
    pub machines: Vec<Machine>,
    /// A rent call takes at most so long.
    pub rent_limit: Duration,
    /// New machines may stay invisible for so long.
    pub visibility: Duration,
    /// Compute is billed from the rental on, not from the start of the container.
    pub starting_costs: bool,
    /// What a spot machine costs is our own bid; else it is the market's price.
    pub bids: bool,
}

/// One external change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Put our finaliser on.
    AddFinalizer,
    /// Write `control.json`, so that a machine finds it.
    PrepareMailbox,
    /// Let the ledger admit this offer, write the order, rent.
    Order {
        /// Index into `spec.offers`.
        offer: usize,
        /// Number of the order.
        number: u32,
    },
    /// Ask the provider to end these and look whether they are gone.
    End(Vec<String>),
    /// Delete this very object: nobody needs it.
    DeleteSelf,
    /// Forget the mailbox of the machine and let the object go.
    Release,
}

/// What comes out.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The status as it should be now.
    pub status: RentedMachineStatus,
    /// One external change, after the status is written.
    pub step: Step,
    /// When to look again.
    pub wake: Wake,
}

/// Decides. Total: every combination of inputs has an answer, and the answer to "not known" is to wait and look again.
pub fn decide(observed: &Observed) -> Decision {
    let mut status = observed.status.clone();
    status.observed_generation = observed.generation;
    let poll = Wake::After(observed.limits.poll, "the account is listed again");
    if !observed.has_finalizer {
        // Without its finaliser nothing was ever ordered: it is put on before the first order.
        let step = if observed.deleting { Step::Rest } else { Step::AddFinalizer };
        return Decision { status, step, wake: Wake::OnChange };
    }
    take_sightings(observed, &mut status);
    take_leftovers(observed, &mut status);
    settle_open_order(observed, &mut status);
    take_over(observed, &mut status);
    if status.machine_id.is_some() {
        take_report(observed, &mut status);
        if observed.spec.stop.is_some() {
            status.draining_since.get_or_insert(Time(observed.now));
        }
    }
    if status.ended.is_none()
        && let Some((reason, message)) = verdict::why_end(observed, &status)
    {
        status.ended = Some(reason.as_str().to_owned());
        status.ended_message = Some(message);
    }
    let step = if status.ended.is_some() { ending(observed, &mut status) } else { living(observed, &mut status) };
    if let Some(offer) = rented_offer(observed, &status) {
        status.cost = Some(cost::so_far(
            offer,
            (observed.spec.workload.disk_gib, observed.spec.image_bytes),
            &status,
            observed.now,
        ));
    }
    let quiet = status.phase == MachinePhase::Gone && step == Step::Rest && status.last_report_read;
    let wake = if quiet { Wake::OnChange } else { poll };
    Decision { status, step, wake }
}

/// The offer of the order that bought the machine.
pub fn rented_offer<'a>(observed: &'a Observed, status: &RentedMachineStatus) -> Option<&'a Offer> {
    status.rented_order()?.of(&observed.offers)?.as_ref()
}

/// Finds the machine of an open order by its key, and follows the state of the machine that is ours.
fn take_sightings(observed: &Observed, status: &mut RentedMachineStatus) {
    let Some(account) = &observed.account else { return };
    if let Some(order) = status.orders.last_mut().filter(|o| o.outcome == OrderOutcome::Open) {
        let found = account.machines.iter().find(|m| m.key.as_ref().is_some_and(|k| k.to_string() == order.key));
        if let Some(machine) = found {
            order.outcome = OrderOutcome::Rented;
            order.machine_id = Some(machine.id.clone());
            // The true moment lies between the order and the first list that shows it; billing starts at creation.
            let at = machine.created_at.unwrap_or(order.at.0);
            let order = order.clone();
            became_ours(observed, status, &order, &machine.id, at);
        }
    }
    let Some(id) = status.machine_id.clone() else { return };
    let seen = account.machines.iter().find(|m| m.id == id);
    if let Some(machine) = seen {
        status.missing_since = None;
        follow(observed, account, machine, status);
    } else {
        // Absence proves nothing by itself; `why_end` waits for two lists and the end is confirmed by `describe`.
        let rented_before_list = status.rented_at.as_ref().zip(account.listed_at).is_some_and(|(rented, listed)| {
            rented.0.checked_add(account.visibility).unwrap_or(Timestamp::MAX) < listed
        });
        if rented_before_list && status.missing_since.is_none() && status.gone_at.is_none() {
            status.missing_since = Some(Time(observed.now));
        }
    }
}

fn follow(observed: &Observed, account: &AccountView, machine: &Machine, status: &mut RentedMachineStatus) {
    let listed = account.listed_at.unwrap_or(observed.now);
    let before = account.listed_before.unwrap_or(listed);
    let rented = status.rented_at.as_ref().map_or(before, |t| t.0);
    let own_bid = account.bids && machine.capacity == Capacity::Spot;
    if let (Some(price), Some(offer), false) = (machine.price_per_hour, rented_offer(observed, status), own_bid) {
        // What it costs is what the provider says now, not what it said when it was an offer.
        status.price_per_hour = Some(cost::with_disk(price, offer, observed.spec.workload.disk_gib));
    }
    match machine.state {
        MachineState::Running if status.running_since.is_none() => {
            status.running_since = Some(MicroTime(began(account, rented, listed)));
        }
        // It won its GPU back by itself before anybody had ended it: it is paid for again.
        MachineState::Running if status.running_until.is_some() && status.gone_at.is_none() => {
            status.running_until = None;
        }
        MachineState::TakenAway if status.running_until.is_none() => {
            // A machine may have come and gone between two lists: then it is charged from the list before.
            if status.running_since.is_none() && status.boot.is_some() {
                status.running_since = Some(MicroTime(before.max(rented)));
            }
            // In between it may have shown states that say nothing.
            let ran = observed.ran_at.unwrap_or(before);
            if let Some(since) = status.running_since.as_ref().map(|t| t.0) {
                status.running_until = Some(MicroTime(cost::between(ran.max(since), listed.max(since))));
            }
        }
        _ => {}
    }
}

/// When a machine began to run that the newest list shows running for the first time.
pub fn began(account: &AccountView, rented: Timestamp, listed: Timestamp) -> Timestamp {
    // The first list of a process has none before it: then the machine may have begun to run at any time since its rental.
    let before = account.listed_before.unwrap_or(rented);
    cost::between(before.max(rented), listed.max(rented))
}

/// Writes down that an order bought a machine.
pub fn became_ours(
    observed: &Observed,
    status: &mut RentedMachineStatus,
    order: &OrderStatus,
    id: &str,
    at: Timestamp,
) {
    status.machine_id = Some(id.to_owned());
    status.rented_at = Some(MicroTime(at));
    if observed.account.as_ref().is_some_and(|account| account.starting_costs) {
        status.running_since = Some(MicroTime(at));
    }
    status.phase = MachinePhase::Booting;
    let offer = order.of(&observed.offers).and_then(Option::as_ref);
    if let Some(offer) = offer {
        status.gpu = offer.gpu.as_ref().map(|gpu| format!("{}x{gpu}", offer.gpu_count));
        status.region = Some(offer.region.clone());
        status.capacity = Some(offer.capacity.as_str().to_owned());
        status.price_per_hour = Some(cost::per_hour(offer, observed.spec.workload.disk_gib));
    }
}

fn take_leftovers(observed: &Observed, status: &mut RentedMachineStatus) {
    for order in &mut status.orders {
        if order.leftover && order.machine_id.as_ref().is_some_and(|id| observed.leftovers_gone.contains(id)) {
            order.leftover = false;
        }
    }
}

/// Closes an open order that has bought nothing, once it is certain: a complete list, asked for after the last moment at which the
/// machine could have become visible, does not show its key.
fn settle_open_order(observed: &Observed, status: &mut RentedMachineStatus) {
    let Some(order) = status.orders.last_mut().filter(|o| o.outcome == OrderOutcome::Open) else { return };
    let Some(account) = &observed.account else { return };
    let window = observed.limits.call_within + account.rent_limit + account.visibility;
    let certain = order.at.0.checked_add(window).unwrap_or(Timestamp::MAX);
    if account.listed_at.is_some_and(|listed| listed > certain) {
        order.outcome = OrderOutcome::Refused;
        order.reason = Some(Reason::OutcomeUnknown.as_str().to_owned());
        order.message = Some("the answer was lost and no machine appeared under the order's key".to_owned());
    }
}

/// The next attempt has taken the machine over: what the agent said of the one before is not about it.
fn take_over(observed: &Observed, status: &mut RentedMachineStatus) {
    let before = status.attempt.replace(observed.spec.attempt);
    if before.is_none_or(|before| before == observed.spec.attempt) {
        return;
    }
    status.taken_over_at = Some(Time(observed.now));
    status.agent = None;
    status.progress = None;
    status.restored_step = None;
    status.exit_code = None;
    status.exit_log = None;
    status.exited = None;
    status.program_since = None;
    status.quick_failure = false;
    status.stalled_since = None;
}

fn take_report(observed: &Observed, status: &mut RentedMachineStatus) {
    let Some(served) = &observed.served else { return };
    if let Some(agent) = &served.agent {
        if status.boot.is_none() {
            status.boot = Some(agent.boot.clone());
            status.boot_key = Some(agent.boot_key.clone());
            if status.running_since.is_none() {
                status.running_since = runs_since_list(observed, status);
            }
        }
        if agent.ours {
            status.agent = Some(agent.phase.clone());
        }
        let limit = u64::try_from(observed.spec.stall_timeout_s).unwrap_or(0);
        if limit == 0 || agent.quiet_s < limit || agent.phase != "Running" {
            status.stalled_since = None;
        } else if status.stalled_since.is_none() {
            let quiet = jiff::SignedDuration::from_secs(i64::try_from(agent.quiet_s).unwrap_or(0));
            status.stalled_since = observed.now.checked_sub(quiet).ok().map(Time);
        }
        status.progress.clone_from(&agent.progress);
        if agent.restored_step.is_some() {
            status.restored_step = agent.restored_step;
        }
        // Before the agent calls itself finished, the last save may still be on its way: then the end does not count yet.
        if let Some(exit) = agent.exit.as_ref().filter(|_| agent.finished) {
            status.exit_code = Some(i64::from(exit.code));
            status.exit_log = Some(exit.log_tail.clone());
        }
        if let Some((reason, message)) = verdict::failed_on_a_good_machine(agent) {
            let at = status.exited.as_ref().and_then(|exited| exited.at.clone());
            status.exited = Some(ProgramExit {
                reason: reason.as_str().to_owned(),
                message,
                at: at.or(Some(Time(observed.now))),
                saved: served.answered,
            });
        }
    }
    if let Some(checkpoint) = &served.checkpoint {
        status.checkpoint = Some(checkpoint.clone());
    }
    if let Some(agent) = &served.agent {
        if agent.ours && matches!(agent.phase.as_str(), "Running" | "Stopping" | "Exited") {
            status.program_since.get_or_insert(Time(observed.now));
        }
        let exit = agent.exit.as_ref().filter(|_| agent.finished);
        status.quick_failure = exit.is_some_and(|exit| verdict::failed_quickly(observed, status, exit));
    }
    status.traffic = served.traffic.or(status.traffic);
    if served.last_report_read {
        status.last_report_read = true;
    }
}

/// An agent that reports runs on a machine that runs. The list that says so comes later, or never if the machine ends before it.
fn runs_since_list(observed: &Observed, status: &RentedMachineStatus) -> Option<MicroTime> {
    let rented = status.rented_at.as_ref()?.0;
    let listed = observed.account.as_ref().and_then(|account| {
        let shown = account.machines.iter().any(|m| Some(&m.id) == status.machine_id.as_ref());
        account.listed_at.filter(|_| shown)
    });
    let earliest = listed.unwrap_or(rented).max(rented).min(observed.now);
    Some(MicroTime(cost::between(earliest, observed.now)))
}

/// A machine that should go.
fn ending(observed: &Observed, status: &mut RentedMachineStatus) -> Step {
    let message = status.ended_message.clone().unwrap_or_default();
    let open = status.orders.iter().any(|o| o.outcome == OrderOutcome::Open);
    let mut ids: Vec<String> = leftovers(status);
    let machine_there = status.machine_id.is_some() && status.phase != MachinePhase::Gone;
    if machine_there {
        if observed.gone_looks >= 2 {
            let at = observed.end_accepted.unwrap_or(observed.now);
            status.gone_at.get_or_insert(MicroTime(at));
            if status.running_since.is_some() {
                status.running_until.get_or_insert(MicroTime(at));
            }
        } else {
            ids.extend(status.machine_id.clone());
        }
    } else if status.machine_id.is_none() {
        status.last_report_read = true;
    }
    if open {
        status.phase = MachinePhase::Unknown;
        status.message = format!("{message}; the outcome of an order is not known yet, it is looked up until it is");
        return end_or_rest(ids);
    }
    if !ids.is_empty() {
        status.phase = MachinePhase::Terminating;
        status.message = format!("{message}; ended at the provider until it is seen to be gone");
        return Step::End(ids);
    }
    status.phase = MachinePhase::Gone;
    status.message = format!("{message}; nothing is left at the provider");
    if status.machine_id.is_some() && !status.last_report_read {
        return Step::Rest;
    }
    let settled = match observed.job {
        JobView::Gone => true,
        JobView::Alive { settled, .. } => settled,
    };
    match (settled && observed.booked, observed.deleting) {
        (true, true) => Step::Release,
        (true, false) => Step::DeleteSelf,
        (false, _) => Step::Rest,
    }
}

fn end_or_rest(ids: Vec<String>) -> Step {
    if ids.is_empty() { Step::Rest } else { Step::End(ids) }
}

fn leftovers(status: &RentedMachineStatus) -> Vec<String> {
    status.orders.iter().filter(|o| o.leftover).filter_map(|o| o.machine_id.clone()).collect()
}

/// What a machine's status says before its first order. One sentence for all steps until then: each takes a moment, and saying so would be
/// a write of the machine and one of its job.
pub const CLAIMED: &str = "claimed; costs nothing before it is ordered";
/// What a machine's status says until its agent reports.
pub const BOOTING: &str = "rented; waits for the agent's first report";

/// How long a claim's offers are tried before the job plans again.
const OFFERS_HOLD: Duration = Duration::from_mins(5);

/// A machine that should be there.
fn living(observed: &Observed, status: &mut RentedMachineStatus) -> Step {
    let leftovers = leftovers(status);
    if status.machine_id.is_some() {
        let booted = status.boot.is_some();
        status.phase = match (&observed.spec.stop, booted) {
            (Some(_), _) => MachinePhase::Draining,
            (None, true) => MachinePhase::Ready,
            (None, false) => MachinePhase::Booting,
        };
        let trouble = observed.served.as_ref().and_then(|s| s.trouble.clone());
        status.message = match (booted, trouble) {
            (true, Some(trouble)) => format!("the agent reports, but it cannot be served now: {trouble}"),
            (true, None) => match (&observed.spec.stop, &status.exited) {
                (Some(stop), _) => format!("{}; the program saves its state and stops", stop.message),
                (None, Some(exited)) => {
                    format!("{}; the machine waits for the job to start it again or to let it go", exited.message)
                }
                (None, None) => "the agent reports".to_owned(),
            },
            (false, _) => BOOTING.to_owned(),
        };
        return end_or_rest(leftovers);
    }
    if let Some(order) = status.orders.last().filter(|o| o.outcome == OrderOutcome::Open) {
        status.phase = MachinePhase::Unknown;
        status.message = format!("the outcome of order {} is not known; it is looked up under its key", order.key);
        return end_or_rest(leftovers);
    }
    if !leftovers.is_empty() {
        status.phase = MachinePhase::Ordering;
        "something is left behind by a refused order; it is ended first".clone_into(&mut status.message);
        return Step::End(leftovers);
    }
    status.phase = MachinePhase::Claimed;
    if let Some(stop) = &observed.spec.stop {
        status.ended = Some(stop.reason.clone());
        status.ended_message = Some(stop.message.clone());
        return ending(observed, status);
    }
    if let Some(closing) = &observed.closing {
        status.ended = Some(Reason::NoProvider.as_str().to_owned());
        status.ended_message = Some(format!("{closing}; nothing was rented, the job plans again"));
        return ending(observed, status);
    }
    match observed.pod {
        PodView::Absent | PodView::Elsewhere => {
            status.ended = Some(Reason::Released.as_str().to_owned());
            status.ended_message = Some("the Pod that it was claimed for is gone or runs elsewhere".to_owned());
            return ending(observed, status);
        }
        PodView::Unbound => {
            CLAIMED.clone_into(&mut status.message);
            return Step::Rest;
        }
        PodView::Ours => {}
    }
    let Some(account) = &observed.account else {
        format!("waits for Provider {} to be ready", observed.spec.provider).clone_into(&mut status.message);
        return Step::Rest;
    };
    if let Some(trouble) = &account.trouble {
        status.message = format!("nothing is rented now: {trouble}");
        return Step::Rest;
    }
    if observed.cordoned {
        "nothing is rented now: the rental Node is cordoned".clone_into(&mut status.message);
        return Step::Rest;
    }
    if account.listed_at.is_none() {
        "waits for the first complete list of the account".clone_into(&mut status.message);
        return Step::Rest;
    }
    let planned = observed.claimed_at.and_then(|at| at.checked_add(OFFERS_HOLD).ok());
    if planned.is_some_and(|until| until < observed.now) {
        // Prices and stock have moved on: what is waited for may never come, and something else may be there.
        status.ended = Some(Reason::OffersRefused.as_str().to_owned());
        status.ended_message = Some("its offers are too old by now; the job plans again".to_owned());
        return ending(observed, status);
    }
    next_order(observed, account, status)
}

/// Pause after an order that a rate limit held back, the market's or our own.
const HELD_BACK: Duration = Duration::from_secs(10);
/// Orders of one machine; after that, one that was held back uses its offer up as well.
const MOST_ORDERS: usize = 8;

fn next_order(observed: &Observed, account: &AccountView, status: &mut RentedMachineStatus) -> Step {
    // Something of ours that no order of this object knows (an older state was restored): never rent beside it, let the sweeper end it.
    let part = OrderKey::machine_part(&observed.uid);
    let stranger = account.machines.iter().find(|m| m.key.as_ref().is_some_and(|k| k.machine == part));
    if let Some(machine) = stranger {
        status.message =
            format!("machine {} carries this object's key but no order knows it; waits until it is ended", machine.id);
        return Step::Rest;
    }
    let held_back = |o: &OrderStatus| o.reason.as_deref() == Some(Refusal::RateLimited.as_str());
    let pause = status.orders.last().filter(|o| held_back(o)).and_then(|o| o.at.0.checked_add(HELD_BACK).ok());
    if pause.is_some_and(|until| observed.now < until) {
        // The words that `record` wrote say why.
        return Step::Rest;
    }
    // An order that was held back says nothing about its offer.
    let spent = status.orders.iter().filter(|o| !held_back(o) || status.orders.len() >= MOST_ORDERS);
    let tried: Vec<i64> = spent.map(|o| o.offer).collect();
    let next = (0..observed.spec.offers.len()).find(|i| {
        !tried.contains(&i64::try_from(*i).unwrap_or(i64::MAX)) && observed.offers.get(*i).is_some_and(Option::is_some)
    });
    let Some(offer) = next else {
        status.ended = Some(Reason::OffersRefused.as_str().to_owned());
        let why: Vec<String> = status
            .orders
            .iter()
            .filter_map(|o| Some(format!("{}: {}", o.of(&observed.spec.offers)?.id, o.reason.as_deref()?)))
            .collect();
        status.ended_message = Some(format!("every offer was refused ({})", why.join(", ")));
        return ending(observed, status);
    };
    if !observed.served.as_ref().is_some_and(|s| s.prepared) {
        status.message = match observed.served.as_ref().and_then(|s| s.trouble.as_ref()) {
            Some(trouble) => format!("nothing is rented now: the machine's mailbox cannot be prepared ({trouble})"),
            None => CLAIMED.to_owned(),
        };
        return Step::PrepareMailbox;
    }
    let number = u32::try_from(status.orders.len()).unwrap_or(u32::MAX);
    Step::Order { offer, number }
}
