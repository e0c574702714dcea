//! Carrying out one step: at most one external change, safe to repeat.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use tradewind_api::rented_machine::{Claim, StopRequest};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_cluster::{ClusterError, Guard, Key, MetadataPatch, Removal, Typed};

use super::JobMemory;
use super::decide::{Observed, POD_AGAIN, Step};
use super::fresh;
use super::order;
use super::placement::Rent;
use super::template::{self, AgentPod, ControlUrl, Goes, Seat};
use crate::context::Context;
use crate::controllers::{pod, worker};
use crate::events::{Severity, reference};
use crate::runtime::Failure;

/// Carries out a step; true if something was changed.
pub(super) async fn carry_out(
    ctx: &Context,
    observed: &Observed,
    job: &TrainingJob,
    step: &Step,
    memory: &mut JobMemory,
) -> Result<bool, Failure> {
    match step {
        Step::Rest => Ok(false),
        Step::CreatePods { attempt, ranks } => create_pods(ctx, observed, job, *attempt, ranks, memory).await,
        Step::RemakePod { attempt } => {
            let why = "was lost and is made again on the same machine";
            create_on_node(ctx, job, *attempt, Reason::PodLost, why, memory).await
        }
        Step::RestartPod { attempt } => {
            let why = job.status.as_ref().map(|s| s.message.as_str()).unwrap_or_default();
            let why = format!("takes over the machine on which the program failed: {why}");
            create_on_node(ctx, job, *attempt, Reason::Restarted, &why, memory).await
        }
        Step::Claim { rent, attempt, claim } => write_claim(ctx, observed, job, rent, *attempt, claim).await,
        Step::Reclaim { machine, claim } => reclaim(ctx, machine, claim).await,
        Step::TakeOver { machine, claim, attempt } => take_over(ctx, observed, machine, claim, *attempt).await,
        Step::PreparePod(name) => prepare_pod(ctx, job, name).await,
        Step::Bind { pod, uid, machine } => bind(ctx, job, pod, uid, machine).await,
        Step::RemovePod(name) => remove_pod(ctx, job, name).await,
        Step::RemovePods(names) => all(names.iter().map(|name| remove_pod(ctx, job, name).boxed())).await,
        Step::RenewUrls(names) => all(names.iter().map(|name| renew_url(ctx, job, name).boxed())).await,
        Step::Stop { machine, reason, message } => stop_machine(ctx, job, machine, *reason, message).await,
        Step::DropMachine(name) => drop_machine(ctx, name).await,
    }
}

/// Pods of one job that are made, changed or deleted at once.
const PODS_AT_ONCE: usize = 8;

/// Does all of it, a few at a time; true if something was changed. Where some fail, the first failure.
async fn all<'a>(acts: impl Iterator<Item = BoxFuture<'a, Result<bool, Failure>>>) -> Result<bool, Failure> {
    let acts: Vec<_> = acts.collect();
    let done: Vec<_> = stream::iter(acts).buffered(PODS_AT_ONCE).collect().await;
    done.into_iter().try_fold(false, |any, one| Ok(any | one?))
}

/// Makes Pods of an attempt. Each that is refused tells why; the others stand.
async fn create_pods(
    ctx: &Context,
    observed: &Observed,
    job: &TrainingJob,
    attempt: i64,
    ranks: &[i64],
    memory: &mut JobMemory,
) -> Result<bool, Failure> {
    let make = |rank: &i64| create_scheduled(ctx, observed, job, Seat { attempt, rank: *rank }).boxed();
    let all: Vec<BoxFuture<'_, _>> = ranks.iter().map(make).collect();
    let outcomes: Vec<_> = stream::iter(all).buffered(PODS_AT_ONCE).collect().await;
    memory.pod_refused = None;
    let mut failed = None;
    for (rank, outcome) in ranks.iter().zip(outcomes) {
        let seat = Seat { attempt, rank: *rank };
        if let Err(failure) = created(ctx, job, seat, outcome, memory).await {
            failed = Some(failure);
        }
    }
    failed.map_or(Ok(true), Err)
}

/// Makes one Pod for the scheduler, or one that the scheduler does not see.
async fn create_scheduled(
    ctx: &Context,
    observed: &Observed,
    job: &TrainingJob,
    seat: Seat,
) -> Result<Arc<Pod>, NotMade> {
    let goes = template::goes(observed.valid.in_cluster);
    let in_cluster = goes == Goes::Scheduled;
    let agent = if observed.valid.needs_agent && in_cluster { Some(agent_pod(ctx, job, seat).await?) } else { None };
    let value = template::build(job, seat, goes, agent.as_ref());
    let pod: Pod =
        serde_json::from_value(value).map_err(|e| NotMade::Other(Failure::new("PodUnreadable", e.to_string())))?;
    ctx.cluster.add(pod).await.map_err(NotMade::Refused)
}

/// Why a Pod was not made.
enum NotMade {
    /// The API server says why.
    Refused(ClusterError),
    /// Something else.
    Other(Failure),
}

/// What a worker's Pod needs so that its agent finds its control document.
async fn agent_pod(ctx: &Context, job: &TrainingJob, seat: Seat) -> Result<AgentPod, NotMade> {
    let image = ctx.settings.agent_image.clone().ok_or_else(|| NotMade::Other(no_mailbox()))?;
    let control = control_url(ctx, job, seat).await.map_err(NotMade::Other)?;
    Ok(AgentPod { image, control, poll: ctx.settings.agent_poll })
}

fn no_mailbox() -> Failure {
    Failure::new("NoMailbox", "there is no mailbox for the agents of workers in the cluster")
}

/// A new signed URL of a worker's control document.
async fn control_url(ctx: &Context, job: &TrainingJob, seat: Seat) -> Result<ControlUrl, Failure> {
    let mailbox = ctx.mailbox.as_ref().ok_or_else(no_mailbox)?;
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let id = worker::id(&ctx.settings.install, uid, seat.attempt, seat.rank);
    let ticket = mailbox.control_ticket(&id, ctx.settings.ticket_lifetime).await;
    let ticket = ticket.map_err(|e| Failure::new("MailboxUnavailable", e.to_string()))?;
    // The life that the store really gives may be far less than was asked for.
    Ok(ControlUrl { url: ticket.url, renewal: fresh::renewal(ctx.clock.now(), ticket.expires) })
}

/// Gives a Pod that waits another URL: one write of two annotations, so that nothing else of it changes.
async fn renew_url(ctx: &Context, job: &TrainingJob, name: &str) -> Result<bool, Failure> {
    let key = Key::namespaced(job.metadata.namespace.as_deref().unwrap_or_default(), name);
    let Some(pod) = ctx.caches.pods.get(&key) else { return Ok(false) };
    let Some(seat) = fresh::seat(&pod) else { return Ok(false) };
    let control = control_url(ctx, job, seat).await?;
    let annotations = control.annotations().map(|(name, value)| (name.to_owned(), Some(value))).into();
    let patch = MetadataPatch { annotations, ..MetadataPatch::default() };
    let written = ctx.cluster.amend::<Pod>(&key, &patch, &Guard::exact(&*pod)).await?;
    let mut known = (*written).clone();
    pod::slim(&mut known, &ctx.settings.node_name);
    ctx.caches.pods.own(&Arc::new(known));
    tracing::info!(pod.name = key.name, renewal = %control.renewal, "Renewed the signed URL of a Pod that waits");
    Ok(true)
}

/// Makes the Pod of an attempt past the scheduler, on our Node, because a machine lives for it.
async fn create_on_node(
    ctx: &Context,
    job: &TrainingJob,
    attempt: i64,
    reason: Reason,
    words: &str,
    memory: &mut JobMemory,
) -> Result<bool, Failure> {
    let seat = Seat { attempt, rank: 0 };
    let value = template::build(job, seat, Goes::On(&ctx.settings.node_name), None);
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| Failure::new("PodUnreadable", e.to_string()))?;
    pod.metadata.finalizers = Some(vec![names::POD_FINALIZER.to_owned()]);
    unlimited(&mut pod);
    let outcome = ctx.cluster.add(pod).await.map_err(NotMade::Refused);
    memory.pod_refused = None;
    let made = outcome.is_ok();
    created(ctx, job, seat, outcome, memory).await?;
    if made {
        let note = format!("Pod {} {words}", template::name(job, seat));
        ctx.tell(&reference(TrainingJob::KIND, job), Severity::Normal, reason, "CreatePod", note).await;
    }
    Ok(true)
}

/// What became of a Pod that was to be made.
async fn created(
    ctx: &Context,
    job: &TrainingJob,
    seat: Seat,
    outcome: Result<Arc<Pod>, NotMade>,
    memory: &mut JobMemory,
) -> Result<(), Failure> {
    match outcome {
        Ok(created) => {
            ctx.caches.pods.own(&created);
            Ok(())
        }
        // Either it is ours and the watch lags, or an older one of this name is still going.
        Err(NotMade::Refused(ClusterError::AlreadyExists)) => {
            let key = Key::namespaced(job.metadata.namespace.as_deref().unwrap_or_default(), template::name(job, seat));
            let there = ctx.cluster.find::<Pod>(&key).await?;
            let owner = there.as_ref().map(|pod| pod::label(pod, names::JOB_UID).cloned());
            if owner.is_some_and(|owner| owner != job.metadata.uid) {
                let note = format!(
                    "Pod {} is there already and is not this job's: rename the job or delete that Pod",
                    key.name
                );
                memory.pod_refused = Some((ctx.clock.monotonic() + POD_AGAIN, Reason::PodRefused, note));
                return Ok(());
            }
            Err(Failure::benign("PodExists", "a Pod of this name is still there; it is tried again"))
        }
        Err(NotMade::Refused(error @ ClusterError::Refused { .. })) => {
            let reason = if error.is_quota() { Reason::QuotaExceeded } else { Reason::PodRefused };
            let note = format!("Pod {} cannot be made now: {error}; it is tried again", template::name(job, seat));
            ctx.tell(&reference(TrainingJob::KIND, job), Severity::Warning, reason, "CreatePod", note.clone()).await;
            memory.pod_refused = Some((ctx.clock.monotonic() + POD_AGAIN, reason, note));
            Ok(())
        }
        Err(NotMade::Refused(error)) => Err(error.into()),
        Err(NotMade::Other(failure)) => Err(failure),
    }
}

async fn write_claim(
    ctx: &Context,
    observed: &Observed,
    job: &TrainingJob,
    rent: &Rent,
    attempt: i64,
    claim: &Claim,
) -> Result<bool, Failure> {
    let Some(machine) = order::machine(job, &observed.valid, rent, attempt, claim.clone()) else {
        return Ok(false);
    };
    match ctx.cluster.add(machine).await {
        Ok(created) => {
            ctx.caches.rented.own(&created);
            ctx.market.claimed(job.metadata.uid.as_deref().unwrap_or_default());
            let note = format!("attempt {attempt}: {}", rent.why);
            ctx.tell(&reference(TrainingJob::KIND, job), Severity::Normal, Reason::Renting, "Place", note).await;
            Ok(true)
        }
        Err(ClusterError::AlreadyExists) => Err(Failure::benign("ClaimExists", "the claim is written; the watch lags")),
        Err(error) => Err(error.into()),
    }
}

async fn reclaim(ctx: &Context, name: &str, claim: &Claim) -> Result<bool, Failure> {
    let Some(machine) = ctx.caches.rented.get(&Key::cluster(name)) else { return Ok(false) };
    let mut next = (*machine).clone();
    next.spec.claim = claim.clone();
    let written = ctx.cluster.write(next).await?;
    ctx.caches.rented.own(&written);
    Ok(true)
}

/// The next attempt takes over a machine whose program has failed. The version check keeps out an operator that does not know yet that the
/// machine ends.
async fn take_over(
    ctx: &Context,
    observed: &Observed,
    name: &str,
    claim: &Claim,
    attempt: i64,
) -> Result<bool, Failure> {
    let Some(machine) = ctx.caches.rented.get(&Key::cluster(name)) else { return Ok(false) };
    let valid = &observed.valid;
    let mut next = (*machine).clone();
    next.metadata.labels.get_or_insert_default().insert(names::ATTEMPT.to_owned(), attempt.to_string());
    next.spec.claim = claim.clone();
    next.spec.attempt = attempt;
    // How often a save pays on this machine is still true.
    next.spec.checkpoint = order::checkpoint(valid, next.spec.checkpoint.as_ref().map(|known| known.interval_s));
    next.spec.stall_timeout_s = order::seconds(valid.stall_timeout);
    next.spec.budget_per_hour = observed.job.spec.budget.as_ref().and_then(|b| b.per_hour);
    let written = ctx.cluster.write(next).await?;
    ctx.caches.rented.own(&written);
    ctx.ask(crate::controllers::rented_machine::NAME, Key::cluster(name));
    Ok(true)
}

/// Our finaliser and unlimited tolerations, in one write with a version check: the Pod must still be unbound when the bind follows.
async fn prepare_pod(ctx: &Context, job: &TrainingJob, name: &str) -> Result<bool, Failure> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let Some(pod) = ctx.caches.pods.get(&Key::namespaced(namespace, name)) else { return Ok(false) };
    let mut next = (*pod).clone();
    next.metadata.finalizers.get_or_insert_default().push(names::POD_FINALIZER.to_owned());
    unlimited(&mut next);
    let written = ctx.cluster.write(next).await?;
    ctx.caches.pods.own(&written);
    Ok(true)
}

/// Our Node may be called unreachable during an outage of ours; that must not evict what runs elsewhere. The first toleration that
/// matches counts, so the default ones are rewritten.
fn unlimited(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut() else { return };
    let tolerations = spec.tolerations.get_or_insert_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        match tolerations.iter_mut().find(|t| t.key.as_deref() == Some(key)) {
            Some(toleration) => toleration.toleration_seconds = None,
            None => tolerations.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                ..Toleration::default()
            }),
        }
    }
}

async fn bind(ctx: &Context, job: &TrainingJob, name: &str, uid: &str, machine: &str) -> Result<bool, Failure> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let key = Key::namespaced(namespace, name);
    let annotations = BTreeMap::from([(names::MACHINE.to_owned(), machine.to_owned())]);
    match ctx.cluster.bind(&key, uid, &ctx.settings.node_name, &annotations).await {
        Ok(()) => {
            // The machine's controller waits for exactly this; the watch tells everybody else.
            if let Some(pod) = ctx.cluster.find::<Pod>(&key).await? {
                ctx.caches.pods.own(&pod);
            }
            ctx.ask(crate::controllers::rented_machine::NAME, Key::cluster(machine));
            Ok(true)
        }
        // The scheduler was faster, or the Pod is going: what the Pod shows next decides; nothing was spent.
        Err(ClusterError::Conflict | ClusterError::NotFound) => {
            Err(Failure::benign("BindLost", "the Pod is bound or going; nothing was spent"))
        }
        Err(error) => Err(error.into()),
    }
}

async fn remove_pod(ctx: &Context, job: &TrainingJob, name: &str) -> Result<bool, Failure> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let key = Key::namespaced(namespace, name);
    let Some(pod) = ctx.caches.pods.get(&key) else { return Ok(false) };
    match ctx.cluster.remove::<Pod>(&key, &Removal::guarded(Guard::exact(&*pod))).await {
        // The watch tells when the deletion has begun; asking again before that would only repeat the request.
        Ok(()) | Err(ClusterError::NotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn stop_machine(
    ctx: &Context,
    job: &TrainingJob,
    name: &str,
    reason: Reason,
    message: &str,
) -> Result<bool, Failure> {
    let Some(machine) = ctx.caches.rented.get(&Key::cluster(name)) else { return Ok(false) };
    let mut next = (*machine).clone();
    next.spec.stop = Some(StopRequest { reason: reason.as_str().to_owned(), message: message.to_owned() });
    let written = ctx.cluster.write(next).await?;
    ctx.caches.rented.own(&written);
    ctx.ask(crate::controllers::rented_machine::NAME, Key::cluster(name));
    let note = format!("{message}; machine {name} is asked for a checkpoint and ended after it");
    ctx.tell(&reference(TrainingJob::KIND, job), Severity::Normal, reason, "Stop", note).await;
    Ok(true)
}

async fn drop_machine(ctx: &Context, name: &str) -> Result<bool, Failure> {
    let key = Key::cluster(name);
    let Some(machine) = ctx.caches.rented.get(&key) else { return Ok(false) };
    if machine.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    match ctx.cluster.remove::<RentedMachine>(&key, &Removal::guarded(Guard::same(&*machine))).await {
        // The watch tells when the deletion has begun; asking again before that would only repeat the request.
        Ok(()) | Err(ClusterError::NotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
