//! RentedMachine: rents, ends and projects one paid machine. The only controller that spends.
//!
//! `observe` reads, `decide` is pure, `act` makes one external change. An order is written with a resourceVersion check before the
//! provider is called; an unknown outcome is looked up under the order's key and never repeated; the finaliser goes only when every
//! asset is observed gone and the cost is in the job's account.

mod act;
pub use act::drop_finalizer;
pub mod cost;
pub mod decide;
#[cfg(test)]
mod decide_tests;
mod fit;
mod last_words;
mod learn;
mod lease;
mod memory;
mod observe;
pub mod project;
pub mod reserve;
pub mod serve;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::{Reason, RentedMachine, RentedMachineStatus};
use tradewind_cluster::{ClusterError, Key};

use crate::context::Context;
use crate::events::Severity;
use crate::runtime::{Failure, Reconciler, Wake};
use crate::serving;
use decide::{Decision, Step};
pub use memory::{MachineMemory, Memory};

/// Its name in queue, logs and metrics.
pub const NAME: &str = "rented_machine";

/// The controller.
pub struct RentedMachines {
    ctx: Arc<Context>,
}

/// The job that a machine works for, as the object of an Event.
pub fn job_reference(machine: &RentedMachine) -> ObjectReference {
    serving::job_reference(&machine.spec.job)
}

impl RentedMachines {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        let Some(machine) = self.ctx.caches.rented.get(key) else { return Ok(Wake::OnChange) };
        let uid = machine.metadata.uid.clone().unwrap_or_default();
        let mut memory = self.ctx.machines.take(&uid);
        let outcome = self.pass(machine, &mut memory).await;
        if !matches!(outcome, Ok((_, true))) {
            self.ctx.machines.put(&uid, memory);
        }
        outcome.map(|(wake, _)| wake)
    }

    /// One pass; true if the object is gone for good.
    async fn pass(&self, machine: Arc<RentedMachine>, memory: &mut MachineMemory) -> Result<(Wake, bool), Failure> {
        let ctx = &self.ctx;
        let observed = observe::observe(ctx, &machine, memory).await?;
        let Decision { mut status, step, wake } = decide::decide(&observed);
        last_words::hear(ctx, &observed, &mut status, memory).await;
        memory.running = (status.running_since.clone(), status.running_until.clone());
        learn::from_life(ctx, &observed, &status, memory);
        if status.ended.is_some() && memory.ending_since.is_none() {
            memory.ending_since = Some(ctx.clock.monotonic());
            // What an earlier process has seen end it has learned from.
            if observed.status.ended.is_none() {
                learn::from_end(ctx, &observed, &status);
                learn::tell_suspicion(ctx, &observed, &status, &machine).await;
            }
        }
        let machine = self.write_status(machine, status, &step, memory).await?;
        let told = last_words::tell(ctx, &observed.status, &machine).await;
        if observed.status.phase != MachinePhase::Gone
            && machine.status.as_ref().is_some_and(|s| s.phase == MachinePhase::Gone)
        {
            if observed.status.machine_id.is_some() {
                ctx.market.room_again(&machine.spec.provider);
            }
            ctx.wake_next_jobs();
        }
        if observed.status.ended.is_none() && !told {
            self.tell_end(&machine).await;
        }
        act::project_pod(ctx, &machine).await?;
        let after = machine.status.as_ref();
        let just_lost = observed.status.ended.is_none()
            && after.is_some_and(|s| s.ended.is_some() && s.machine_id.is_some() && !s.last_report_read);
        if just_lost {
            // The job goes on elsewhere as soon as the last report is read; a market that is slow to end machines must not delay that.
            return Ok((Wake::After(Duration::ZERO, "the last report, then the end"), false));
        }
        let acting = act::Acting { ctx, observed: &observed, machine: &machine };
        let done = acting.carry_out(&step, memory).await?;
        let wake = match &step {
            Step::Rest => self.pace(&machine, wake),
            _ if done.again => Wake::After(done.after.unwrap_or(Duration::ZERO), "the next step"),
            _ => wake,
        };
        Ok((wake, done.released))
    }

    /// An Event about the end of a rented machine that nobody had asked for: what happened, and from where the work goes on.
    async fn tell_end(&self, machine: &RentedMachine) {
        let Some(status) = machine.status.as_ref().filter(|s| s.machine_id.is_some()) else { return };
        let reason = status.ended.as_deref().and_then(Reason::from_word);
        // A failure that the job has decided upon it tells by itself.
        let decided = machine.spec.stop.is_some() || status.exited.is_some();
        let asked = |reason: Reason| matches!(reason, Reason::Finished | Reason::Released) || decided;
        let Some(reason) = reason.filter(|reason| !asked(*reason)) else { return };
        let why = status.ended_message.as_deref().unwrap_or_default();
        let saved = status.checkpoint.as_ref().map(|c| format!("; its newest checkpoint is of step {}", c.step));
        let note = format!("attempt {} ended: {why}{}", machine.spec.attempt, saved.unwrap_or_default());
        self.ctx.tell(&job_reference(machine), Severity::Warning, reason, "End", note).await;
    }

    /// While the agent works its report is read more often than the account is listed.
    fn pace(&self, machine: &RentedMachine, wake: Wake) -> Wake {
        let rented = machine.status.as_ref().is_some_and(|s| s.machine_id.is_some() && s.gone_at.is_none());
        if rented { wake.sooner(Wake::After(self.ctx.settings.report_poll, "the agent's report")) } else { wake }
    }

    /// Writes the status if it says something new; what only grows (cost, progress) waits for its turn.
    async fn write_status(
        &self,
        machine: Arc<RentedMachine>,
        status: RentedMachineStatus,
        step: &Step,
        memory: &mut MachineMemory,
    ) -> Result<Arc<RentedMachine>, Failure> {
        let old = machine.status.clone().unwrap_or_default();
        if old == status || *step == Step::AddFinalizer {
            return Ok(machine);
        }
        if matches!(step, Step::Order { .. }) {
            // An order writes its own status, in one write with the ledger's admission; what was decided beside it goes along.
            let mut next = (*machine).clone();
            next.status = Some(status);
            return Ok(Arc::new(next));
        }
        let now = self.ctx.clock.monotonic();
        let since = memory.status_written.map_or(Duration::MAX, |at| now.saturating_sub(at));
        let patience = if essential(&old) != essential(&status) {
            Duration::ZERO
        } else if without_cost(&old) != without_cost(&status) {
            self.ctx.settings.status_interval
        } else {
            self.ctx.settings.status_interval * COST_ALONE
        };
        if since < patience {
            return Ok(machine);
        }
        let mut next = (*machine).clone();
        next.status = Some(status);
        let written = self.ctx.cluster.write_status(next).await?;
        memory.status_written = Some(now);
        self.ctx.caches.rented.own(&written);
        Ok(written)
    }
}

/// Cost that grows while nothing else happens is written so many times more rarely than progress.
pub const COST_ALONE: u32 = 10;

/// A status without cost that still grows.
fn without_cost(status: &RentedMachineStatus) -> RentedMachineStatus {
    let gone = status.phase == MachinePhase::Gone;
    RentedMachineStatus { cost: status.cost.filter(|_| gone), ..status.clone() }
}

/// A status without what changes all the time while the program runs.
fn essential(status: &RentedMachineStatus) -> RentedMachineStatus {
    RentedMachineStatus { progress: None, checkpoint: None, traffic: None, missing_since: None, ..without_cost(status) }
}

impl Reconciler for RentedMachines {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}

/// A conflict means that the object has moved on: look again, nothing is wrong.
fn lagging(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Conflict | ClusterError::NotFound)
}
