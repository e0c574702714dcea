//! Reading everything that `decide` needs. Changes nothing but the mailbox and the catalogue, through `serve`.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tradewind_api::{Provider, RentedMachine, TrainingJob, names};
use tradewind_cluster::Key;
use tradewind_core::Offer;
use tradewind_providers::MachineState;

use super::decide::{AccountView, JobView, Limits, Observed, PodView, began};
use super::memory::MachineMemory;
use super::serve;
use crate::accounts::{Account, books};
use crate::context::Context;
use crate::controllers::pod;
use crate::runtime::Failure;
use crate::serving::Served;

/// From the order's write to the rent call at most: promise 1.
pub const CALL_WITHIN: Duration = Duration::from_secs(5);
/// How long after the end the last report is tried for before the job goes on without it. Long, because without mailbox and bucket the
/// next machine could not be started either.
const LAST_REPORT_LIMIT: Duration = Duration::from_mins(15);

/// Reads everything.
pub async fn observe(
    ctx: &Context,
    machine: &Arc<RentedMachine>,
    memory: &mut MachineMemory,
) -> Result<Observed, Failure> {
    let spec = machine.spec.clone();
    let mut status = machine.status.clone().unwrap_or_default();
    status.running_since = status.running_since.or_else(|| memory.running.0.clone());
    status.running_until = status.running_until.or_else(|| memory.running.1.clone());
    let now = ctx.clock.now();
    let first_seen = *memory.first_seen.get_or_insert(ctx.clock.monotonic());
    let account = ctx.accounts.get(&spec.provider);
    if let (Some(id), Some(list)) = (&status.machine_id, account.as_ref().and_then(|a| a.sightings())) {
        memory.seen |= list.machines.iter().any(|m| m.id == *id);
    }
    let offers: Vec<Option<Offer>> =
        spec.offers.iter().map(|o| serde_json::from_value::<Offer>(o.offer.clone()).ok()).collect();
    let closing = match closing(ctx, &spec.provider, account.as_deref()) {
        None => denied(ctx, machine, &offers).await,
        closing => closing,
    };
    let account = account.map(|a| account_view(ctx, &a, machine));
    if let Some(view) = &account {
        let own = view.machines.iter().find(|m| Some(&m.id) == status.machine_id.as_ref());
        if own.is_some_and(|m| m.state == MachineState::Running) {
            memory.ran_at = view.listed_at;
            // Remembered before anything is asked of an API server that may not answer for long.
            if let (None, Some(rented), Some(listed)) = (&status.running_since, &status.rented_at, view.listed_at) {
                status.running_since = Some(MicroTime(began(view, rented.0, listed)));
                memory.running.0.clone_from(&status.running_since);
            }
        }
    }
    let job = job_view(ctx, machine).await?;
    let ending = status.ended.is_some();
    if ending {
        memory.end_written.get_or_insert(ctx.clock.monotonic());
    }
    let rented = status.rented_order().and_then(|order| order.of(&offers)?.as_ref());
    let host_proven = rented.is_some_and(|offer| ctx.market.is_proven(offer, ctx.clock.monotonic()));
    let mut served = None;
    if !status.last_report_read {
        served = Some(serve::serve(ctx, machine, memory, ending).await);
        give_up_last_report(ctx, memory, served.as_mut());
    }
    Ok(Observed {
        now,
        uid: machine.metadata.uid.clone().unwrap_or_default(),
        // By our own clock: the API server's may differ.
        claimed_at: Some(wall_time(ctx, first_seen)),
        generation: machine.metadata.generation.unwrap_or(0),
        deleting: machine.metadata.deletion_timestamp.is_some(),
        has_finalizer: machine.metadata.finalizers.iter().flatten().any(|f| f == names::MACHINE_FINALIZER),
        offers,
        host_proven,
        pod: pod_view(ctx, machine),
        job,
        account,
        served,
        gone_looks: memory.gone_looks,
        leftovers_gone: memory.leftovers_gone.clone(),
        end_accepted: memory.end_accepted,
        ran_at: memory.ran_at,
        cordoned: ctx.cordoned(),
        closing,
        booked: booked(ctx, machine).await?,
        limits: Limits {
            poll: ctx.settings.account_poll,
            silent_after: ctx.settings.agent_silent_after,
            call_within: CALL_WITHIN,
        },
        spec,
        status,
    })
}

/// The work must go on even if the mailbox cannot be read: after a while the job resumes from what is committed.
fn give_up_last_report(ctx: &Context, memory: &mut MachineMemory, served: Option<&mut Served>) {
    let since = memory.end_written.map(|since| ctx.clock.monotonic().saturating_sub(since));
    if since.is_some_and(|s| s > LAST_REPORT_LIMIT) && !memory.agent.last_report_read {
        tracing::warn!(
            reason = "LastReportUnread",
            error = memory.agent.trouble.as_deref(),
            "Going on without the last report"
        );
        memory.agent.last_report_read = true;
        if let Some(served) = served {
            served.last_report_read = true;
        }
    }
}

/// The job by uid. That it is gone is believed only from the server itself, never from a cache.
async fn job_view(ctx: &Context, machine: &RentedMachine) -> Result<JobView, Failure> {
    let wanted = &machine.spec.job;
    let key = Key::namespaced(wanted.namespace.as_str(), wanted.name.as_str());
    let same = |job: &TrainingJob| job.metadata.uid.as_deref() == Some(wanted.uid.as_str());
    let job = match ctx.caches.jobs.get(&key).filter(|job| same(job)) {
        Some(job) => Some(job),
        None => ctx.cluster.find::<TrainingJob>(&key).await?.filter(|job| same(job)),
    };
    let Some(job) = job.filter(|job| job.metadata.deletion_timestamp.is_none()) else { return Ok(JobView::Gone) };
    let uid = machine.metadata.uid.as_deref().unwrap_or_default();
    let status = job.status.as_ref();
    let nothing_rented = machine.status.as_ref().is_none_or(|s| s.rented_at.is_none());
    let terminal = status.is_some_and(|s| s.phase.is_terminal());
    let in_account = status.is_some_and(|s| s.cost.settled_machines.iter().any(|u| u == uid));
    // An object that goes before the job has seen how it ended would leave its attempt number to a second machine.
    let superseded = status.is_some_and(|s| {
        s.attempt > Some(machine.spec.attempt) && (s.restarts_on.is_none() || s.restarts_on != machine.metadata.name)
    });
    let settled = nothing_rented || (in_account && (terminal || superseded));
    Ok(JobView::Alive { terminal, superseded, settled })
}

/// Whether the machine's cost is in its Provider's books, or never will be: nothing was rented, or there is no Provider any more. That
/// is believed only from the server itself.
async fn booked(ctx: &Context, machine: &RentedMachine) -> Result<bool, Failure> {
    let uid = machine.metadata.uid.as_deref().unwrap_or_default();
    if !books::is_final(machine) {
        return Ok(machine.status.as_ref().is_none_or(|s| s.rented_at.is_none()));
    }
    let key = Key::cluster(machine.spec.provider.as_str());
    match ctx.caches.providers.get(&key) {
        Some(provider) => Ok(provider.status.as_ref().is_some_and(|s| books::has(&s.spend, uid))),
        None => Ok(ctx.cluster.find::<Provider>(&key).await?.is_none()),
    }
}

/// Why nothing will be rented on this account any more, as far as can be seen.
fn closing(ctx: &Context, provider: &str, account: Option<&Account>) -> Option<String> {
    let Some(object) = ctx.caches.providers.get(&Key::cluster(provider)) else {
        return Some(format!("Provider {provider} does not exist"));
    };
    if object.metadata.deletion_timestamp.is_some() {
        return Some(format!("Provider {provider} is being deleted"));
    }
    let closing = account.is_some_and(Account::is_closing);
    closing.then(|| format!("the Secret with the key of Provider {provider} is being deleted"))
}

/// Why the job's namespace may not use its offers on this account any more, as far as can be seen: a claim is given up for it, and what is
/// rented goes on.
async fn denied(ctx: &Context, machine: &RentedMachine, offers: &[Option<Offer>]) -> Option<String> {
    if machine.status.as_ref().is_some_and(|s| s.machine_id.is_some() || s.ended.is_some()) {
        return None;
    }
    let provider = ctx.caches.providers.get(&Key::cluster(machine.spec.provider.as_str()))?;
    let least = offers.iter().flatten().min_by_key(|offer| offer.trust);
    // What cannot be read now is asked again before anything is ordered.
    ctx.denied(&machine.spec.job.namespace, &provider, least).await.ok().flatten()
}

fn pod_view(ctx: &Context, machine: &RentedMachine) -> PodView {
    let claim = &machine.spec.claim;
    let key = Key::namespaced(claim.pod_namespace.as_str(), claim.pod_name.as_str());
    let Some(pod) = ctx.caches.pods.get(&key) else { return PodView::Absent };
    if pod.metadata.uid.as_deref() != Some(claim.pod_uid.as_str()) {
        return PodView::Absent;
    }
    match pod::node(&pod) {
        node if !node.is_empty() && node != ctx.settings.node_name => PodView::Elsewhere,
        // A Pod that is going is as good as gone: nothing is rented for it, and its claim is given up.
        _ if pod.metadata.deletion_timestamp.is_some() => PodView::Absent,
        "" => PodView::Unbound,
        _ => PodView::Ours,
    }
}

fn account_view(ctx: &Context, account: &Account, machine: &RentedMachine) -> AccountView {
    let capabilities = account.provider.capabilities();
    let sightings = account.sightings();
    let wall = |at: Duration| wall_time(ctx, at);
    let install = &ctx.settings.install;
    let known: Vec<&str> = machine
        .status
        .iter()
        .flat_map(|s| s.machine_id.iter().chain(s.orders.iter().filter_map(|o| o.machine_id.as_ref())))
        .map(String::as_str)
        .collect();
    AccountView {
        trouble: account.trouble(),
        listed_at: sightings.as_ref().map(|s| wall(s.asked_at)),
        listed_before: sightings.as_ref().and_then(|s| s.before).map(wall),
        machines: sightings
            .map(|s| {
                s.machines
                    .iter()
                    .filter(|m| m.key.as_ref().is_some_and(|k| k.install == *install) || known.contains(&m.id.as_str()))
                    .cloned()
                    .collect()
            })
            .unwrap_or_default(),
        rent_limit: capabilities.rent_limit,
        visibility: capabilities.visibility_window,
        starting_costs: capabilities.starting_costs,
        bids: capabilities.bids,
    }
}

/// Wall time of a monotonic instant of this process.
fn wall_time(ctx: &Context, at: Duration) -> Timestamp {
    let ago = ctx.clock.monotonic().saturating_sub(at);
    let ago = SignedDuration::try_from(ago).unwrap_or(SignedDuration::MAX);
    ctx.clock.now().checked_sub(ago).unwrap_or(Timestamp::MIN)
}
