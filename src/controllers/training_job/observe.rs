//! Reading everything that `decide` needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::InCluster;
use tradewind_api::{Reason, RentedMachine, TrainingJob, TrainingJobStatus, names};
use tradewind_checkpoints::identity::EndRecord;
use tradewind_checkpoints::{ProbeFailure, probe};
use tradewind_cluster::{ClusterError, Key, Selector, Typed};
use tradewind_core::Money;
use tradewind_planner::{MoveRules, Running};

use super::decide::{Admission, Observed, lives, machine_of, wants_plan};
use super::ended::never_started;
use super::identity::{self, Verdict};
use super::placement::Choice;
use super::question::Progress;
use super::status::{is_in_cluster, settles};
use super::template;
use super::times::Times;
use super::timing::Prospect;
use super::turns::{Entry, Turn};
use super::valid::{self, Valid};
use super::{JobMemory, admitted, crew, ending, gang, place, placement, rates, stop};
use crate::context::Context;
use crate::controllers::rented_machine::reserve;
use crate::controllers::{pod, worker};
use crate::runtime::Failure;
use crate::storage::Unusable;

/// Reads everything.
pub(super) async fn observe(
    ctx: &Context,
    job: &Arc<TrainingJob>,
    memory: &mut JobMemory,
) -> Result<Observed, Failure> {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let mut valid = valid::values(job);
    let agents = ctx.mailbox.is_some() && ctx.settings.agent_image.is_some();
    let refused = valid::refusal(job, &valid).or_else(|| valid.without_agents(agents));
    let fresh = job.status.as_ref().is_none_or(|s| s.attempt.is_none());
    let admission = match &refused {
        None => admission(ctx, job, &valid, memory, fresh).await?,
        Some(refused) => {
            Admission::Refused { reason: refused.reason, message: refused.message.clone(), passing: false }
        }
    };
    let mut observed = Observed {
        now: ctx.clock.now(),
        job: Arc::clone(job),
        valid,
        refused,
        admission,
        pods: own_pods(ctx, job),
        machines: machines(ctx, job).await?,
        choice: None,
        node: ctx.settings.node_name.clone(),
        newest_attempt: None,
        over: None,
        cordoned: ctx.cordoned(),
        pod_refused: memory
            .pod_refused
            .as_ref()
            .filter(|(until, ..)| ctx.clock.monotonic() < *until)
            .map(|(_, reason, message)| (*reason, message.clone())),
        overrun: None,
        moves: None,
        prospect: Prospect::Unknown,
        fresh_run_id: format!("{:016x}", ctx.clock.entropy()),
        views: Vec::new(),
        dead_nodes: BTreeSet::new(),
        turn: Turn::Go,
        others_wait: false,
        start_deadline: ctx.settings.start_deadline,
        agent_image: ctx.settings.agent_image.clone(),
    };
    observed.valid.priced(ctx.settings.cluster_gpu_price);
    let attempt = job.status.as_ref().and_then(|s| s.attempt);
    if attempt.is_some_and(|attempt| may_lag(&observed, attempt)) {
        observed.pods = pods_now(ctx, job).await?;
    }
    let waits = |pod: &Arc<Pod>| attempt.is_some_and(|a| pod::is_of(pod, a)) && pod::is_for_renting(pod);
    if observed.valid.cluster_price.is_some() && observed.pods.iter().any(waits) {
        observed.valid.in_cluster = InCluster::Never;
    }
    if let Some(attempt) = attempt.filter(|_| observed.valid.needs_agent) {
        let view = |rank| ctx.workers.get(&worker::id(&ctx.settings.install, uid, attempt, rank));
        observed.views = (0..observed.valid.workers).map(view).collect();
        observed.dead_nodes = dead_nodes(ctx, ending::doubtful_nodes(&observed, attempt)).await;
    }
    if observed.valid.needs_agent {
        take_turn(ctx, &mut observed, attempt.unwrap_or(0));
    }
    if let Some(machine) = attempt.and_then(|attempt| machine_of(&observed, attempt)) {
        let account = ctx.accounts.get(&machine.spec.provider);
        let overrun = account.and_then(|account| account.overrun(machine.metadata.uid.as_deref()?));
        // Its number may be used from now on: should the machine's object ever be missing again, the storage is asked again.
        memory.stored = None;
        observed.overrun = overrun;
    }
    look_around(ctx, &mut observed, memory).await;
    let begins = attempt.is_some_and(|attempt| is_about_to_begin(&observed, attempt));
    if attempt.is_some_and(|attempt| crew::is_theirs(&observed, attempt)) && !begins {
        memory.stored = None;
    }
    let plans = wants_plan(&observed);
    if plans || begins {
        match as_stored(ctx, &observed, memory).await {
            Ok(stored) => (observed.newest_attempt, observed.over) = stored,
            // Its Pods wait for that, and the status says so.
            Err(failure) if !plans && !failure.benign => {
                let reason = Reason::from_word(failure.reason).unwrap_or(Reason::StorageUnavailable);
                observed.pod_refused = Some((reason, format!("{}; it is tried again", failure.message)));
                // Others need not wait for that.
                leave(ctx, uid);
            }
            Err(failure) => return Err(failure),
        }
    }
    if plans {
        ctx.want_offers();
        let choice = choice(ctx, &observed, None).await;
        observed.prospect = choice.prospect();
        observed.choice = Some(choice);
        if observed.valid.is_cheaper(observed.choice.as_ref()) {
            observed.valid.in_cluster = InCluster::Never;
        }
    }
    Ok(observed)
}

/// Pods of an attempt with our agent are about to be made for the cluster: its number must be a new one there too.
fn is_about_to_begin(o: &Observed, attempt: i64) -> bool {
    let open =
        o.job.status.as_ref().is_some_and(|s| !s.phase.is_terminal() && s.ending.is_none() && s.restarts_on.is_none());
    let machine = o.machines.iter().any(|m| m.spec.attempt == attempt);
    let in_cluster = o.valid.needs_agent && o.valid.in_cluster != InCluster::Never;
    // Then its number is its own, and its Pods are lost.
    let began = o.job.status.as_ref().is_some_and(is_in_cluster);
    let wanted = o.job.status.as_ref().is_some_and(|status| stop::wanted(o, status, &o.valid).is_none());
    open && wanted
        && in_cluster
        && !began
        && !machine
        && o.turn == Turn::Go
        && !o.pods.iter().any(|pod| pod::is_of(pod, attempt))
}

/// The job's Pods. Labels are anybody's: what lies in other namespaces is not the job's.
fn own_pods(ctx: &Context, job: &TrainingJob) -> Vec<Arc<Pod>> {
    let mut pods = ctx.caches.pods.of_job(job.metadata.uid.as_deref().unwrap_or_default());
    pods.retain(|pod| pod.metadata.namespace == job.metadata.namespace);
    pods
}

/// Those of these nodes that are gone, or from which the control plane does not hear. They are read when that is to be known: who watches all
/// nodes hears of each of them every few minutes. One that cannot be read may be well.
async fn dead_nodes(ctx: &Context, doubtful: BTreeSet<String>) -> BTreeSet<String> {
    let mut dead = BTreeSet::new();
    for name in doubtful {
        let is_dead = match ctx.cluster.read::<Node>(&Key::cluster(name.as_str())).await {
            Ok(node) => is_dead(&node),
            Err(error) => matches!(error, ClusterError::NotFound),
        };
        if is_dead {
            dead.insert(name);
        }
    }
    dead
}

fn is_dead(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    // A kubelet that says of itself that it is not ready still hears that a Pod is to stop.
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "Unknown")
}

/// Where a job with several workers stands among the others, and what it may do.
fn take_turn(ctx: &Context, o: &mut Observed, attempt: i64) {
    let uid = o.job.metadata.uid.as_deref().unwrap_or_default();
    let queued = template::is_queued(&o.job);
    let next = match gang::standing(o, attempt).filter(|_| !queued) {
        None => ctx.turns.leave(uid),
        Some(standing) => {
            let created = o.job.metadata.creation_timestamp.as_ref().map_or(o.now, |t| t.0);
            let entry = Entry { created, key: Key::of(&*o.job), kind: o.valid.kind.clone(), standing };
            let (turn, next) = ctx.turns.stand(uid, entry);
            o.turn = turn;
            next
        }
    };
    o.others_wait = ctx.turns.others(uid) > 0;
    for key in next {
        ctx.ask(super::NAME, key);
    }
}

/// A job is gone: whoever waited for it may go on.
pub(super) fn leave(ctx: &Context, uid: &str) {
    for key in ctx.turns.leave(uid) {
        ctx.ask(super::NAME, key);
    }
}

/// So many times more rarely a job that runs looks for a cheaper machine than one with a deadline looks at the time.
const FOR_MONEY: u32 = 5;

/// Looks whether the job leaves its machine: for its deadline, or for a cheaper one.
async fn look_around(ctx: &Context, o: &mut Observed, memory: &mut JobMemory) {
    let Some(held) = held(ctx, o, memory) else {
        memory.gains_since = None;
        return;
    };
    let now = ctx.clock.monotonic();
    let often = ctx.settings.replan_interval;
    // A deadline is kept from minute to minute; a price is not gone in five.
    let every = if o.valid.complete_within.is_some() { often } else { often * FOR_MONEY };
    let since = memory.moves_looked.map_or(Duration::MAX, |at| now.saturating_sub(at));
    if since < every {
        return;
    }
    if o.valid.complete_within.is_some() {
        ctx.want_offers();
    } else {
        ctx.want_offers_once();
    }
    let choice = choice(ctx, o, Some(held)).await;
    if matches!(choice, Choice::Wait { .. }) {
        return;
    }
    memory.moves_looked = Some(now);
    if matches!(choice, Choice::None { .. }) {
        // That says nothing of the machine that it has.
        return;
    }
    o.prospect = choice.prospect();
    match choice {
        Choice::Rent(rent) => o.moves = Some(rent.why.clone()),
        Choice::Keep { gains: true, .. } => {
            memory.gains_since.get_or_insert(now);
        }
        _ => memory.gains_since = None,
    }
}

/// The machine that the job's program runs on, as the planner sees it.
fn held(ctx: &Context, o: &Observed, memory: &JobMemory) -> Option<placement::Held> {
    let job = o.job.status.as_ref()?;
    let machine = machine_of(o, job.attempt?).filter(|m| lives(m) && m.spec.stop.is_none())?;
    let status = machine.status.as_ref().filter(|s| matches!(s.phase, MachinePhase::Booting | MachinePhase::Ready))?;
    let program_since = status.program_since.as_ref().map(|at| at.0);
    // What starts is let be, unless the deadline is in danger: its start is paid already. Without checkpoints all would be lost, so nothing
    // but the deadline is looked at.
    let looks = o.valid.complete_within.is_some() || (o.valid.checkpoint.is_some() && program_since.is_some());
    if !looks || o.valid.rental.is_err() || o.cordoned || o.refused.is_some() {
        return None;
    }
    let since = |at: Timestamp| u64::try_from(o.now.duration_since(at).as_secs()).unwrap_or(0);
    let for_s = program_since.map_or(0, since);
    let saved = job.checkpoint.as_ref().map_or(u64::MAX, |c| since(c.at.as_ref().map_or(o.now, |at| at.0)));
    let running = Running {
        for_s,
        gain_held_s: memory.gains_since.map(|at| ctx.clock.monotonic().saturating_sub(at).as_secs()),
        unsaved_s: saved.min(for_s),
    };
    let age_s = since(status.rented_at.as_ref()?.0);
    Some(placement::Held {
        offer: reserve::offer(machine)?,
        age_s,
        ready: program_since.is_some(),
        running,
        rules: rules(job),
    })
}

/// A job that has moved and moves again waits twice as long each time: what looked cheaper may not have been to be had.
fn rules(job: &TrainingJobStatus) -> MoveRules {
    let usual = MoveRules::default();
    let moved = job.history.iter().rev().take_while(|record| record.ended == Reason::Moving.as_str()).count();
    MoveRules { settle_s: usual.settle_s << moved.min(8), ..usual }
}

/// The plan for a job that wants one, or may leave what it has.
async fn choice(ctx: &Context, o: &Observed, held: Option<placement::Held>) -> Choice {
    let (job, valid) = (&*o.job, &o.valid);
    let none = |Unusable { reason, message }| Choice::None { reason, message };
    // What runs has its Secrets already.
    if let (None, Some(missing)) = (&held, missing_secret(ctx, job, valid).await) {
        return none(missing);
    }
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let status = job.status.as_ref();
    let saved = status.and_then(|s| s.checkpoint.as_ref()).map_or(0, |c| u64::try_from(c.bytes).unwrap_or(0));
    let image = valid.rental.as_ref().map_or("", |workload| workload.image.as_str());
    // Where work waits for the next machine; after one that never started its image, the size is worth the wait.
    let hurry = status.and_then(|s| s.history.last()).is_some_and(|record| !never_started(&record.ended));
    let pod = status.and_then(|s| s.attempt).and_then(|attempt| o.pods.iter().find(|pod| pod::is_of(pod, attempt)));
    let done = steps(job, held.is_some());
    let times = Times::of(job, valid, o.now, ctx.settings.replan_interval);
    // What it would repeat elsewhere, should it leave or lose its machine now.
    let unsaved_s = held.as_ref().map_or(0, |held| held.running.unsaved_s);
    let asks = placement::Asks {
        job: job.metadata.uid.as_deref().unwrap_or_default(),
        namespace,
        progress: Progress {
            done_share_ppm: share_ppm(done.unwrap_or_else(|| (worked_s(o, held.is_some()), valid.work.seconds.max(1)))),
            steps_left: done.map(|(done, total)| total.saturating_sub(done)),
            step_rates: status.map(rates::known).unwrap_or_default(),
            save_s: status.and_then(|s| s.checkpoint.as_ref()?.took_seconds).and_then(|s| u64::try_from(s).ok()),
            spent: status.map_or(Money::ZERO, |s| s.cost.total),
            restore_mb: saved / 1_000_000,
            image_bytes: ctx.images.bytes(image, ctx.clock.monotonic(), hurry).await,
        },
        due: pod.is_some_and(|pod| place::is_due(o, pod)),
        times: Times { interval_s: times.interval_s.map(|interval_s| interval_s.max(unsaved_s)), ..times },
        held,
    };
    match ctx.grants(namespace, &ctx.caches.providers.all()).await {
        Ok(grants) => placement::choose(ctx, valid, &asks, &grants),
        Err(unread) => none(unread),
    }
}

/// The highest attempt in the catalogue, and the run's end.
pub(super) type Stored = (Option<i64>, Option<EndRecord>);

/// The highest attempt in the catalogue and the run's end, asked once per attempt before something is rented for it: the API server may have been restored
/// from an older state than the bucket's.
async fn as_stored(ctx: &Context, o: &Observed, memory: &mut JobMemory) -> Result<Stored, Failure> {
    let attempt = o.job.status.as_ref().and_then(|s| s.attempt);
    let Some(checkpoint) = o.valid.checkpoint.as_ref() else {
        return Ok((None, None));
    };
    if let Some((_, known)) = memory.stored.as_ref().filter(|(asked, _)| *asked == attempt) {
        return Ok(known.clone());
    }
    let namespace = o.job.metadata.namespace.as_deref().unwrap_or_default();
    let catalogue = ctx.catalogue(namespace, &checkpoint.to, &checkpoint.secret_ref.name).await;
    let catalogue = catalogue.map_err(|unusable| Failure::new(unusable.reason.as_str(), unusable.message))?;
    let newest = catalogue.max_attempt().await.map_err(|e| Failure::new("StorageUnavailable", e.to_string()))?;
    if newest.is_some() && newest.map(i64::from) == attempt {
        // Its number was used. That its machine is missing may only be the watch's lag.
        let uid = o.job.metadata.uid.as_deref().unwrap_or_default();
        let machines = ctx.cluster.read_all::<RentedMachine>(None, &Selector::label(names::JOB_UID, uid)).await?;
        if machines.iter().any(|m| Some(m.spec.attempt) == attempt) {
            return Err(Failure::benign("WatchLags", "a machine of this attempt is there; the watch lags"));
        }
        // The same for its Pods: one that the watch shows too is no news.
        let pods = pods_now(ctx, &o.job).await?;
        let known = |pod: &Pod| o.pods.iter().any(|other| other.metadata.uid == pod.metadata.uid);
        if pods.iter().any(|pod| attempt.is_some_and(|attempt| pod::is_of(pod, attempt)) && !known(pod)) {
            return Err(Failure::benign("WatchLags", "a Pod of this attempt is there; the watch lags"));
        }
    }
    let run_id = o.job.status.as_ref().and_then(|s| s.run_id.as_deref()).unwrap_or_default();
    let end = identity::ended(catalogue.store(), run_id).await;
    let end = end.map_err(|e| Failure::new("StorageUnavailable", e.to_string()))?;
    let stored = (newest.map(i64::from), end);
    memory.stored = Some((attempt, stored.clone()));
    Ok(stored)
}

/// The job's machines, as the watch has told them; as they are, where the job's account is about to change: a machine that the watch
/// still shows may be settled and gone, and one that it does not show may still be there.
async fn machines(ctx: &Context, job: &TrainingJob) -> Result<Vec<Arc<RentedMachine>>, Failure> {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let known = ctx.caches.rented.of_job(uid);
    let settled = job.status.as_ref().map(|s| s.cost.settled_machines.as_slice()).unwrap_or_default();
    let is = |machine: &RentedMachine, uid: &String| machine.metadata.uid.as_ref() == Some(uid);
    let to_settle = known.iter().any(|m| settles(m) && !settled.iter().any(|uid| is(m, uid)));
    let to_forget = settled.iter().any(|uid| !known.iter().any(|m| is(m, uid)));
    if !to_settle && !to_forget {
        return Ok(known);
    }
    Ok(ctx.cluster.read_all::<RentedMachine>(None, &Selector::label(names::JOB_UID, uid)).await?)
}

/// The job's Pods as they are.
async fn pods_now(ctx: &Context, job: &TrainingJob) -> Result<Vec<Arc<Pod>>, Failure> {
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let namespace = job.metadata.namespace.as_deref();
    Ok(ctx.cluster.read_all::<Pod>(namespace, &Selector::label(names::JOB_UID, uid)).await?)
}

/// Whether the watch shows no Pod of a worker that had one as the job's status says: it may lag behind the status, which another operator
/// has written, and a worker that runs would be taken for a lost one.
fn may_lag(o: &Observed, attempt: i64) -> bool {
    let Some(status) = o.job.status.as_ref() else { return false };
    let ends = status.ending.as_ref().is_some_and(|ending| ending.attempt == attempt);
    let there = o.pods.iter().filter(|pod| pod::is_of(pod, attempt)).count();
    let all = usize::try_from(o.valid.workers).unwrap_or(1);
    !status.phase.is_terminal() && (ends || is_in_cluster(status)) && there < all
}

/// The first Secret or key that the program's environment names and that cannot be had: a machine would wait for it, and cost.
async fn missing_secret(ctx: &Context, job: &TrainingJob, valid: &Valid) -> Option<Unusable> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    for entry in valid.rental.iter().flat_map(|workload| &workload.env).filter(|entry| !entry.optional) {
        let Some(name) = &entry.secret else { continue };
        let found = match &entry.key {
            Some(key) => ctx.secret_value(namespace, name, key).await.map(drop),
            None => ctx.secret(namespace, name).await.map(drop),
        };
        if let Err(unusable) = found {
            return Some(unusable);
        }
    }
    None
}

fn share_ppm((done, all): (u64, u64)) -> u64 {
    u64::try_from(u128::from(done.min(all)) * 1_000_000 / u128::from(all.max(1))).unwrap_or(0)
}

/// Seconds of work that are done, where the program does not tell how many steps there are.
fn worked_s(o: &Observed, runs: bool) -> u64 {
    let Some(status) = &o.job.status else { return 0 };
    let now = rates::worked_s(status, o.valid.work.on.as_ref(), runs.then_some(o.now));
    u64::try_from(status.saved_seconds.saturating_add(now)).unwrap_or(0)
}

/// Steps that are done and steps in all, as far as the program tells them: those that are saved, or, where it runs, the last one.
fn steps(job: &TrainingJob, runs: bool) -> Option<(u64, u64)> {
    let status = job.status.as_ref()?;
    let progress = status.progress.as_ref()?;
    let total = progress.total.and_then(|total| u64::try_from(total).ok()).filter(|total| *total > 0)?;
    let saved = status.checkpoint.as_ref().map_or(0, |c| c.step);
    let done = if runs { saved.max(progress.step) } else { saved };
    Some((u64::try_from(done).unwrap_or(0).min(total), total))
}

/// Asks the API server about the Pod and the store about the bucket: before the first attempt, and again when the spec changes.
async fn admission(
    ctx: &Context,
    job: &TrainingJob,
    valid: &Valid,
    memory: &mut JobMemory,
    fresh: bool,
) -> Result<Admission, Failure> {
    let fine = Admission::Fine { newest_attempt: None, run_id: None };
    let generation = job.metadata.generation.unwrap_or(0);
    if job.status.as_ref().is_some_and(|s| s.phase.is_terminal()) {
        return Ok(fine);
    }
    if memory.pod_accepted != Some(generation) && fresh {
        if let Some(refused) = dry_run(ctx, job, valid).await? {
            return Ok(refused);
        }
        memory.pod_accepted = Some(generation);
    }
    if !fresh {
        return Ok(fine);
    }
    storage(ctx, job, valid, memory).await
}

async fn dry_run(ctx: &Context, job: &TrainingJob, valid: &Valid) -> Result<Option<Admission>, Failure> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let value = template::trial(job, valid.in_cluster, ctx.settings.agent_image.as_deref());
    let shape = admitted::shape(namespace, &value);
    let now = ctx.clock.monotonic();
    if ctx.admitted.has(&shape, now) {
        return Ok(None);
    }
    match ctx.cluster.create_dry_run_strict(Pod::KIND, namespace, &value).await {
        Ok(()) | Err(ClusterError::AlreadyExists) => {
            ctx.admitted.remember(shape, now);
            Ok(None)
        }
        Err(error) if error.is_quota() => Ok(None),
        Err(ClusterError::Refused { message, .. }) => Ok(Some(Admission::Refused {
            reason: Reason::PodRefused,
            message: format!("the API server would refuse the Pod: {message}"),
            passing: true,
        })),
        Err(error) => Err(error.into()),
    }
}

async fn storage(
    ctx: &Context,
    job: &TrainingJob,
    valid: &Valid,
    memory: &mut JobMemory,
) -> Result<Admission, Failure> {
    let Some(checkpoint) = &valid.checkpoint else {
        return Ok(identified(identity::settle(ctx, job, valid, None, None).await, None));
    };
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let refused = |reason, message| Ok(Admission::Refused { reason, message, passing: true });
    let catalogue = match ctx.catalogue(namespace, &checkpoint.to, &checkpoint.secret_ref.name).await {
        Ok(catalogue) => catalogue,
        Err(unusable) => return refused(unusable.reason, unusable.message),
    };
    if !memory.storage_fine {
        if let Err(failure) = probe(catalogue.store(), ctx.clock.entropy()).await {
            let reason = match &failure {
                ProbeFailure::BucketNotFound { .. } => Reason::BucketNotFound,
                ProbeFailure::Denied { .. } => Reason::BucketDenied,
                ProbeFailure::NoAnswer { .. } => Reason::StorageUnavailable,
                _ => Reason::StorageUnsuitable,
            };
            return refused(reason, format!("{}: {failure}; it is tried again", checkpoint.to));
        }
        memory.storage_fine = true;
    }
    let unusable = |error| crate::storage::Unusable::from_store(&checkpoint.to, &error);
    let found = match catalogue.max_attempt().await {
        Ok(newest) => catalogue.load().await.map(|log| (newest, log.newest_fence().map(|f| f.run_id.to_owned()))),
        Err(error) => Err(error),
    };
    match found {
        Ok((newest, run_id)) => {
            let verdict = identity::settle(ctx, job, valid, Some(catalogue.store()), run_id).await;
            Ok(identified(verdict, newest.map(i64::from)))
        }
        Err(error) => {
            let unusable = unusable(error);
            refused(unusable.reason, unusable.message)
        }
    }
}

/// What the run's identity means for the job's admission.
fn identified(verdict: Result<Verdict, Unusable>, newest_attempt: Option<i64>) -> Admission {
    match verdict {
        Ok(Verdict::Resume { run_id }) => Admission::Fine { newest_attempt, run_id: Some(run_id) },
        Ok(Verdict::Over(end)) => Admission::Over(end),
        // `settle` has begun it already, or could not.
        Ok(Verdict::Begin { .. }) => Admission::Fine { newest_attempt, run_id: None },
        // Nothing but another spec, or another place, can change that.
        Ok(Verdict::Refused { reason, message }) => Admission::Refused { reason, message, passing: false },
        Err(Unusable { reason, message }) => Admission::Refused { reason, message, passing: true },
    }
}
