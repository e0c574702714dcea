//! Serving the agent of a rented machine: whom, by its object, and what a machine gets that a Pod does not.

use std::collections::BTreeMap;

use tradewind_api::RentedMachine;

use super::memory::MachineMemory;
use super::{fit, lease};
use crate::context::Context;
use crate::serving::{Begin, Program, Saving, Served, Serving, Turn, Whom};

/// Segments in the ring of logs.
pub const LOG_RING: u32 = 8;

/// One machine as somebody who is served; `None` while there is no mailbox.
pub fn serving<'a>(ctx: &'a Context, machine: &'a RentedMachine) -> Option<Serving<'a>> {
    let (mailbox, id) = (ctx.mailbox.as_ref()?, machine.metadata.uid.as_deref()?);
    let (spec, status) = (&machine.spec, machine.status.as_ref());
    let workload = &spec.workload;
    let self_end = || {
        let id = status?.machine_id.as_deref()?;
        let how = ctx.accounts.get(&spec.provider)?.provider.self_end(id)?;
        Some(tradewind_protocol::control::SelfEnd { method: how.method, url: how.url, bearer_env: how.bearer_env })
    };
    let whom = Whom {
        id,
        job: &spec.job,
        called: String::new(),
        run_id: &spec.run_id,
        attempt: u32::try_from(spec.attempt).unwrap_or(0),
        program: Program {
            command: &workload.command,
            env: &workload.env,
            working_dir: workload.working_dir.as_deref(),
            stop_grace_s: workload.stop_grace_s,
        },
        checkpoint: spec.checkpoint.as_ref(),
        saving: Saving::Alone,
        stop: spec.stop.as_ref(),
        boot: status.and_then(|s| s.boot.as_deref()),
        lease_s: Some(lease::line(ctx, machine)),
        self_end: self_end(),
        log_ring: LOG_RING,
    };
    Some(Serving { ctx, mailbox, whom })
}

/// Serves one machine. `ending`: only read the last report and commit what it offers.
pub async fn serve(ctx: &Context, machine: &RentedMachine, memory: &mut MachineMemory, ending: bool) -> Served {
    let Some(serving) = serving(ctx, machine) else { return Served::default() };
    let memory = &mut memory.agent;
    memory.open(serving.whom.attempt);
    memory.traffic = memory.traffic.or_else(|| machine.status.as_ref()?.traffic);
    let rented = machine.status.as_ref().is_some_and(|s| s.machine_id.is_some());
    let passed = async {
        serving.recall(memory).await?;
        if !rented {
            return Ok(());
        }
        serving.hear(memory, ending).await?;
        let host = memory.report.as_ref().and_then(|report| report.host);
        let unfit = host.is_some_and(|host| fit::lacks(&machine.spec.workload, &host).is_some());
        // Neither fence nor secrets for a machine that will be given back.
        let none = BTreeMap::new();
        let begin = if unfit { Begin::Wait } else { Begin::Now { env: &none, restore: None } };
        serving.respond(memory, Turn { ending, begin, verdict: None }).await
    }
    .await;
    serving.close(memory, passed)
}
