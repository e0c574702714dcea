//! TrainingJob: decides from Pods and RentedMachines where a job's attempt runs, and when the next one follows.
//!
//! `validate` checks the spec, `observe` reads, `decide` is pure, `act` makes one external change. The Pod never authorises spending:
//! this controller claims (writes a RentedMachine) and binds; `rented_machine` rents.

mod act;
pub mod admitted;
pub mod crew;
#[cfg(test)]
mod crew_tests;
pub mod deadline;
pub mod decide;
mod ended;
pub mod ending;
mod fresh;
pub mod gang;
mod groups;
pub mod identity;
mod input;
mod observe;
pub mod order;
#[cfg(test)]
mod pass_tests;
mod place;
pub mod placement;
#[cfg(test)]
mod placement_tests;
#[cfg(test)]
mod play;
pub mod question;
mod quick;
pub mod rates;
mod restart;
mod room;
pub mod sieve;
pub mod status;
pub mod stop;
mod telling;
pub mod template;
pub mod times;
pub mod timing;
#[cfg(test)]
mod timing_tests;
pub mod turns;
pub mod valid;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Reason, TrainingJob, TrainingJobStatus, conditions};
use tradewind_cluster::{Key, Typed};

use crate::context::Context;
use crate::events::{Severity, reference};
use crate::runtime::{Failure, Reconciler, Wake};
use decide::{Decision, Step};
use telling::Telling;

/// Its name in queue, logs and metrics.
pub const NAME: &str = "training_job";

/// The controller.
pub struct TrainingJobs {
    ctx: Arc<Context>,
    memory: Mutex<BTreeMap<String, JobMemory>>,
    /// Uids of the jobs of these keys: a deleted job is only ever seen to be missing.
    uids: Mutex<BTreeMap<Key, String>>,
}

/// What is remembered of a job besides its object; all of it can be found out again.
#[derive(Debug, Clone, Default)]
struct JobMemory {
    /// Generation for which the API server accepted the Pod.
    pod_accepted: Option<i64>,
    /// The storage was probed and works.
    storage_fine: bool,
    /// When the status was last written (monotonic).
    status_written: Option<Duration>,
    /// Since when a status that only passes waits to be written (monotonic).
    held_since: Option<Duration>,
    /// Since when the end waits to be written down (monotonic).
    end_since: Option<Duration>,
    /// When it was last looked whether to leave the machine (monotonic).
    moves_looked: Option<Duration>,
    /// Since when leaving the machine for a cheaper one has paid at every look (monotonic).
    gains_since: Option<Duration>,
    /// The last Pod of this attempt could not be made: until when it is not tried again (monotonic), and why.
    pod_refused: Option<(Duration, Reason, String)>,
    /// What the storage said when it was asked for this attempt: kept, because the write that follows from it may fail.
    stored: Option<(Option<i64>, observe::Stored)>,
}

/// How long the end of a run may wait to be written down at its place before the status says it all the same.
const END_LIMIT: Duration = Duration::from_mins(15);

impl TrainingJobs {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, memory: Mutex::new(BTreeMap::new()), uids: Mutex::default() }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, JobMemory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        // Pods go with their owner; machines see for themselves that the job is gone.
        let job = self.ctx.caches.jobs.get(key).filter(|job| job.metadata.deletion_timestamp.is_none());
        let uid = job.as_ref().and_then(|job| job.metadata.uid.clone());
        if let Some(gone) = self.was(key, uid.as_deref()) {
            self.memory().remove(&gone);
            observe::leave(&self.ctx, &gone);
        }
        let (Some(job), Some(uid)) = (job, uid) else { return Ok(Wake::OnChange) };
        let mut memory = self.memory().get(&uid).cloned().unwrap_or_default();
        let outcome = self.pass(job, &mut memory).await;
        self.memory().insert(uid, memory);
        outcome
    }

    /// Takes note of the job of a key. Gives back the uid of the one before, if that is gone.
    fn was(&self, key: &Key, uid: Option<&str>) -> Option<String> {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match uid {
            Some(uid) => uids.insert(key.clone(), uid.to_owned()),
            None => uids.remove(key),
        };
        before.filter(|before| Some(before.as_str()) != uid)
    }

    async fn pass(&self, job: Arc<TrainingJob>, memory: &mut JobMemory) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let observed = observe::observe(ctx, &job, memory).await?;
        let decision = decide::decide(&observed);
        let (unwritten, was) = (TrainingJobStatus::default(), Arc::clone(&job));
        let before = was.status.as_ref().unwrap_or(&unwritten);
        let was_open = !before.phase.is_terminal();
        if was_open && decision.status.phase.is_terminal() && decision.status.attempt.is_some() {
            self.write_end(&observed, &decision.status, memory).await?;
        }
        let (job, held) = self.write_status(job, &decision, memory).await?;
        let Decision { step, wake, .. } = decision;
        if let Some((reason, why)) = job.status.as_ref().and_then(|status| deadline::trouble(before, status)) {
            self.ctx
                .tell(&reference(TrainingJob::KIND, &*job), Severity::Warning, reason, "Plan", why.to_owned())
                .await;
        }
        if let Some((severity, reason, note)) = job.status.as_ref().and_then(|status| ending::news(before, status)) {
            self.ctx.tell(&reference(TrainingJob::KIND, &*job), severity, reason, "End", note).await;
        }
        if was_open {
            self.tell_end(&job).await;
        }
        let acted = act::carry_out(ctx, &observed, &job, &step, memory).await?;
        Ok(match (acted, held) {
            (true, _) => Wake::After(Duration::ZERO, "the next step"),
            (false, Some(held)) => wake.sooner(Wake::After(held, "the status is written")),
            (false, None) => wake,
        })
    }

    /// How the run ended, at its place: first there, then in the status, so that whoever finds the job gone finds the end.
    async fn write_end(
        &self,
        observed: &decide::Observed,
        status: &TrainingJobStatus,
        memory: &mut JobMemory,
    ) -> Result<(), Failure> {
        let now = self.ctx.clock.monotonic();
        let since = *memory.end_since.get_or_insert(now);
        match identity::finish(&self.ctx, &observed.job, &observed.valid, status).await {
            Ok(()) => Ok(()),
            Err(unusable) if now.saturating_sub(since) > END_LIMIT => {
                tracing::warn!(
                    reason = "EndUnwritten",
                    error = unusable.message,
                    "The end of a run could not be written down"
                );
                Ok(())
            }
            Err(unusable) => Err(Failure::new("EndUnwritten", unusable.message)),
        }
    }

    /// An Event for the end of the job.
    async fn tell_end(&self, job: &TrainingJob) {
        let Some(status) = &job.status else { return };
        let (severity, type_) = match status.phase {
            JobPhase::Complete => (Severity::Normal, conditions::COMPLETE),
            JobPhase::Failed => (Severity::Warning, conditions::FAILED),
            _ => return,
        };
        let reason = conditions::condition(&status.conditions, type_).map(|c| c.reason.as_str());
        let reason = Reason::ALL.iter().copied().find(|r| Some(r.as_str()) == reason).unwrap_or(Reason::Finished);
        let note = format!("{}; cost so far {}", status.message, status.cost.summary);
        self.ctx.tell(&reference(TrainingJob::KIND, job), severity, reason, "Finish", note).await;
    }

    /// Whether many jobs begin or end at once.
    fn many_begin(&self) -> bool {
        self.memory().values().filter(|memory| memory.held_since.is_some()).nth(telling::MANY).is_some()
    }

    /// Writes the status if it says something new, as soon as it should be told. Gives back the time until it is, if it waits.
    async fn write_status(
        &self,
        job: Arc<TrainingJob>,
        decision: &Decision,
        memory: &mut JobMemory,
    ) -> Result<(Arc<TrainingJob>, Option<Duration>), Failure> {
        let now = self.ctx.clock.monotonic();
        let since_written = memory.status_written.map_or(Duration::MAX, |at| now.saturating_sub(at));
        let unwritten = TrainingJobStatus::default();
        let old = job.status.as_ref().unwrap_or(&unwritten);
        let telling = telling::telling(old, decision, self.ctx.settings.status_interval);
        if !matches!(telling, Telling::Lasting(_)) {
            memory.held_since = None;
        }
        let (waited, patience) = match telling {
            Telling::Nothing => return Ok((job, None)),
            Telling::Now => (since_written, Duration::ZERO),
            Telling::Lasting(patience) => {
                let waited = now.saturating_sub(*memory.held_since.get_or_insert(now));
                (
                    waited,
                    if waited >= patience && self.many_begin() { patience * telling::AMONG_MANY } else { patience },
                )
            }
            Telling::Apart(patience) | Telling::WithNews(patience) => (since_written, patience),
        };
        if waited < patience {
            let again = !matches!(telling, Telling::WithNews(_));
            return Ok((job, again.then(|| patience.saturating_sub(waited))));
        }
        let status = &decision.status;
        tracing::debug!(phase = ?status.phase, message = status.message, rests = decision.step == Step::Rest, "Writing the status");
        let mut next = (*job).clone();
        next.status = Some(status.clone());
        let written = self.ctx.cluster.write_status(next).await?;
        memory.status_written = Some(now);
        memory.held_since = None;
        self.ctx.caches.jobs.own(&written);
        // Machines wait for their settlement.
        for machine in self.ctx.caches.rented.of_job(job.metadata.uid.as_deref().unwrap_or_default()) {
            self.ctx.ask(super::rented_machine::NAME, Key::of_meta(&machine.metadata));
        }
        Ok((written, None))
    }
}

impl Reconciler for TrainingJobs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}
