//! Workers of a job in the cluster: serves the agents in their Pods through the mailbox, as `rented_machine` does for machines.
//!
//! Nothing of it is written into objects: what agents say is found again in the mailbox after a restart. `training_job` decides from
//! [`Workers`] and from the Pods.

mod gang;
mod memory;
mod pass;
pub mod rendezvous;
#[cfg(test)]
mod tests;
mod whom;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tradewind_api::TrainingJob;
use tradewind_api::rented_machine::MachineCheckpoint;
use tradewind_api::training_job::{CheckpointStatus, JobPhase};
use tradewind_cluster::Key;
use tradewind_core::InstallId;

use crate::context::Context;
use crate::controllers::pod;
use crate::runtime::{Failure, Reconciler, Wake};
use crate::serving::AgentView;
use memory::{JobMemory, WorkerMemory};
use pass::Common;
use whom::{PodState, Seat};

/// Its name in queue, logs and metrics. Its keys are those of jobs.
pub const NAME: &str = "worker";

/// What ids of workers begin with. Uids of machines, the other ids in a mailbox, never do.
const MARK: &str = "w";

/// The worker's id in the mailbox: what the uid of its RentedMachine is to a machine. It says whose it is, so that a folder that was left
/// behind can be told from those of other installations in the same bucket and from those of jobs that are still there.
pub fn id(install: &InstallId, job_uid: &str, attempt: i64, rank: i64) -> String {
    format!("{MARK}.{install}.{job_uid}.{attempt}.{rank}")
}

/// Uid of the job whose worker has this id, if it is the id of a worker of this installation.
pub fn job_uid<'a>(install: &InstallId, id: &'a str) -> Option<&'a str> {
    let mut parts = id.split('.');
    let (mark, of, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let numbers = [parts.next()?, parts.next()?].map(str::parse::<u32>);
    let is = mark == MARK && of == install.as_str() && !uid.is_empty() && numbers.iter().all(Result::is_ok);
    (is && parts.next().is_none()).then_some(uid)
}

/// What the agents in the cluster say, by id.
#[derive(Debug, Default)]
pub struct Workers {
    // In boxes: a map keeps room for more than it has.
    views: Mutex<BTreeMap<String, Box<WorkerView>>>,
}

/// What one agent in the cluster says, and what became of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerView {
    /// The mailbox answered since this process started, if only that there is no report.
    pub looked: bool,
    /// What the agent says.
    pub agent: Option<AgentView>,
    /// When it last said something new; from this process's first look on.
    pub heard_at: Option<Timestamp>,
    /// The newest checkpoint that this attempt brought into the catalogue (worker 0 only).
    pub checkpoint: Option<CheckpointStatus>,
    /// The Pod is over or going, and its last report was read after that and what it offers is committed or refused.
    pub last_report_read: bool,
    /// Its Pod runs, and its report has stayed the same for longer than this, although we could read it all the time.
    pub silent_for: Option<Duration>,
    /// A later attempt has started.
    pub fenced: bool,
    /// What stands in the way of serving it.
    pub trouble: Option<String>,
}

impl Workers {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Box<WorkerView>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a worker.
    pub fn get(&self, id: &str) -> Option<WorkerView> {
        self.lock().get(id).map(|view| WorkerView::clone(view))
    }

    /// Takes news of a worker; true if something is new.
    pub fn put(&self, id: &str, view: WorkerView) -> bool {
        let old = self.lock().insert(id.to_owned(), Box::new(view.clone()));
        old.as_deref() != Some(&view)
    }

    /// Forgets a worker.
    pub fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}

/// A view without what changes all the time while the program runs.
fn news(view: &WorkerView) -> WorkerView {
    let quiet = |agent: &AgentView| AgentView { progress: None, quiet_s: 0, ..agent.clone() };
    WorkerView { agent: view.agent.as_ref().map(quiet), heard_at: None, checkpoint: None, ..view.clone() }
}

/// The controller. Keyed by TrainingJob.
pub struct WorkerAgents {
    ctx: Arc<Context>,
    memory: Mutex<BTreeMap<Key, JobMemory>>,
}

/// Folders that are removed at once.
const AT_ONCE: usize = 16;

impl WorkerAgents {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, memory: Mutex::default() }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, JobMemory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        // One reconcile at a time works on a key.
        let mut memory = self.memory().remove(key).unwrap_or_default();
        let wake = self.look(key, &mut memory).await;
        if !memory.workers.is_empty() || !memory.removed.is_empty() || memory.sought.is_some() {
            self.memory().insert(key.clone(), memory);
        }
        wake
    }

    async fn look(&self, key: &Key, memory: &mut JobMemory) -> Result<Wake, Failure> {
        let job = self.ctx.caches.jobs.get(key).filter(|job| job.metadata.deletion_timestamp.is_none());
        let uid = job.as_ref().and_then(|job| job.metadata.uid.clone());
        if !memory.uid.is_empty() && uid.as_deref() != Some(memory.uid.as_str()) {
            // The job is gone, its Pods follow; what they still write is removed with the last of them.
            self.see(key, memory, None);
            self.remove_decided(memory, |_| true).await;
            if uid.is_some() || memory.workers.is_empty() {
                *memory = JobMemory::default();
            }
        }
        let Some(job) = job else { return Ok(Wake::OnChange) };
        memory.uid = uid.unwrap_or_default();
        let Some(common) = Common::new(&self.ctx, key, &job) else { return Ok(Wake::OnChange) };
        self.see(key, memory, Some(&job));
        let terminal = job.status.as_ref().is_some_and(|s| s.phase.is_terminal());
        if terminal && !memory.workers.is_empty() {
            self.tidy_finished_run(key, &job).await;
        }
        let present = common.attempt();
        self.remove_decided(memory, |attempt| terminal || attempt < present).await;
        if terminal {
            return Ok(Wake::OnChange);
        }
        Ok(common.pass(memory).await)
    }

    /// A run that has finished uploads nothing any more: data that no checkpoint names goes now. Only tidiness hangs on it.
    async fn tidy_finished_run(&self, key: &Key, job: &TrainingJob) {
        let complete = job.status.as_ref().is_some_and(|s| s.phase == JobPhase::Complete);
        let Some(settings) = job.spec.checkpoint.as_ref().filter(|_| complete).map(MachineCheckpoint::from) else {
            return;
        };
        if let Ok(catalogue) = self.ctx.catalogue(&key.namespace, &settings.to, &settings.secret_ref.name).await {
            crate::serving::tidy(&catalogue, &settings, BTreeSet::new(), true).await;
        }
    }

    /// Takes in what the Pods show.
    fn see(&self, key: &Key, memory: &mut JobMemory, job: Option<&TrainingJob>) {
        let mut pods = self.ctx.caches.pods.of_job(&memory.uid);
        pods.retain(|pod| pod.metadata.namespace.as_deref() == Some(key.namespace.as_str()));
        let seats = whom::seats(&pods, &self.ctx.settings.node_name);
        let status = job.and_then(|job| job.status.as_ref());
        let present = status.and_then(|status| status.attempt);
        for Seat { attempt, rank, pod } in &seats {
            let at = (*attempt, *rank);
            // One of a later attempt is news of a job that the watch has not told yet.
            if memory.removed.contains(&at) || present.is_some_and(|present| *attempt > present) {
                continue;
            }
            let new = || WorkerMemory::new(id(&self.ctx.settings.install, &memory.uid, *attempt, *rank), *pod);
            let worker = memory.workers.entry(at).or_insert_with(new);
            if worker.pod == PodState::Over && *pod != PodState::Over {
                // The watch lagged: what was taken for its last report is not.
                self.ctx.workers.forget(&worker.id);
                *worker = new();
            } else if std::mem::discriminant(&worker.pod) != std::mem::discriminant(pod) {
                worker.due = Some(Duration::ZERO);
            }
            worker.pod = *pod;
        }
        let has_pod = |at: &(i64, i64)| seats.iter().any(|seat| (seat.attempt, seat.rank) == *at);
        memory.removed.retain(has_pod);
        for (at, worker) in &mut memory.workers {
            if !has_pod(at) && worker.pod != PodState::Over {
                worker.pod = PodState::Over;
                worker.due = Some(Duration::ZERO);
            }
        }
        if let (Some(job), Some(present)) = (job, present) {
            self.seek_lost(memory, job, present);
        }
    }

    /// Workers of the present attempt that have lost their Pods while no operator looked: their last reports may be in the mailbox.
    fn seek_lost(&self, memory: &mut JobMemory, job: &TrainingJob, present: i64) {
        let phase = job.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let ran =
            [JobPhase::Starting, JobPhase::Running, JobPhase::Checkpointing, JobPhase::Suspending].contains(&phase);
        let agent = job.spec.checkpoint.is_some() || job.spec.workers > 1;
        let rented = || self.ctx.caches.rented.of_job(&memory.uid).iter().any(|m| m.spec.attempt == present);
        // An attempt that ends waits for the last reports of all its workers, of those too that never had a node.
        let ends = job.status.as_ref().is_some_and(|s| s.ending.as_ref().is_some_and(|e| e.attempt == present));
        if !agent || (!ends && (!ran || memory.sought == Some(present) || rented())) {
            return;
        }
        memory.sought = Some(present);
        let pods = self.ctx.caches.pods.of_job(&memory.uid);
        for rank in 0..i64::from(job.spec.workers) {
            let has_pod = pods.iter().any(|pod| pod::is_of(pod, present) && pod::rank(pod) == Some(rank));
            if (ends || !has_pod) && !memory.removed.contains(&(present, rank)) {
                let id = id(&self.ctx.settings.install, &memory.uid, present, rank);
                memory.workers.entry((present, rank)).or_insert_with(|| WorkerMemory::new(id, PodState::Over));
            }
        }
    }

    /// Removes the folders of workers whose attempt is decided and whose Pods write nothing any more.
    async fn remove_decided(&self, memory: &mut JobMemory, decided: impl Fn(i64) -> bool) {
        let gone = |at: &(i64, i64), worker: &WorkerMemory| decided(at.0) && worker.pod == PodState::Over;
        let those: Vec<((i64, i64), String)> =
            memory.workers.iter().filter(|(at, w)| gone(at, w)).map(|(at, w)| (*at, w.id.clone())).collect();
        if those.is_empty() {
            return;
        }
        for (at, id) in &those {
            memory.workers.remove(at);
            memory.removed.insert(*at);
            self.ctx.workers.forget(id);
        }
        let Some(mailbox) = &self.ctx.mailbox else { return };
        let removals: Vec<BoxFuture<'_, _>> =
            those.iter().map(|(_, id)| Box::pin(mailbox.forget(id)) as BoxFuture<'_, _>).collect();
        let mut removals = std::pin::pin!(stream::iter(removals).buffer_unordered(AT_ONCE));
        while let Some(removed) = removals.next().await {
            // What stays behind costs next to nothing; nothing must hang on it.
            if let Err(error) = removed {
                tracing::warn!(%error, reason = "MailboxUnavailable", "Leaving a finished worker's mailbox behind");
            }
        }
    }
}

impl Reconciler for WorkerAgents {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}
