//! A machine that everybody takes for lost, and that trains on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;
use tradewind_checkpoints::{CommitOutcome, Refusal};
use tradewind_harness::proxy::{Action, Match, Rule};
use tradewind_protocol::LogEntry;

use crate::checks::finished_right_but_for;
use crate::job::Job;
use crate::world::{SOON, VAST, scenario};

#[test]
fn a_zombie_cannot_commit_over_its_successor() {
    scenario(async |world| {
        let namespace = world.namespace("zombie").await?;
        let job = Job::new(&namespace, "run", 120, 5, "0.1");
        job.apply(world).await?;
        job.saved(world, 5, SOON).await?;
        let zombie = world.running_machine(None).await?;
        let uid = world.stack.machines_of("run").await?[0].metadata.uid.clone().context("a uid")?;

        // Signed addresses are the machine's, signed headers the operator's: only the machine is cut off.
        let store = &world.stack.s3.proxy;
        let from_mailbox = Match::any().target(&format!("machines/{uid}/.*X-Amz-Signature="));
        let uploads = Match::method("PUT").target(&format!("{namespace}/run/data/0-"));
        let cut_off = [store.rule(from_mailbox, Action::Drop), store.rule(uploads, Action::Drop)];
        // The market says that it has been stopped, and cannot end it; it lives.
        let fault = json!({ "op": "terminate", "status": 503, "times": 100_000 });
        world.stack.sim.add_fault(&fault).await?;
        world.stack.sim.act(VAST, &zombie.id, "status", &json!({ "value": "stopped" })).await?;

        let successor = world.running_machine(Some(&zombie.id)).await?;
        job.until(world, "checkpoints of the successor", SOON, |job| {
            let attempt = job.status.as_ref().and_then(|s| s.checkpoint.as_ref()).map(|c| c.attempt);
            if attempt == Some(1) { Ok(()) } else { Err(format!("{attempt:?}")) }
        })
        .await?;
        ensure!(world.machines().await?.iter().filter(|m| m.paid && m.pid.is_some()).count() == 2, "the zombie lives");

        cut_off.iter().for_each(Rule::remove);
        // It uploads what it has saved, and offers it.
        let data = Match::method("PUT").target(&format!("{namespace}/run/data/0-"));
        let report = Match::method("PUT").target(&format!("machines/{uid}/report.json"));
        let before = (world.stack.s3.proxy.exchanges(&data).len(), world.stack.s3.proxy.exchanges(&report).len());
        world.stack.s3.proxy.wait_exchanges(&data, before.0 + 1, SOON).await?;
        world.stack.s3.proxy.wait_exchanges(&report, before.1 + 2, SOON).await?;

        let catalogue = world.stack.catalogue(&job.location)?;
        let log = catalogue.load().await?;
        let successors: Vec<u32> = log
            .entries
            .values()
            .skip_while(|e| !matches!(&***e, LogEntry::AttemptStarted { attempt: 1, .. }))
            .map(|e| e.attempt())
            .collect();
        ensure!(!successors.is_empty() && successors.iter().all(|a| *a == 1), "{successors:?}");

        // Nor can an operator that is a zombie itself and still believes in the old attempt.
        let last = log.entries.values().rev().find_map(|entry| match &**entry {
            LogEntry::Checkpoint { manifest, .. } if manifest.attempt == 0 => Some(manifest.clone()),
            _ => None,
        });
        let mut stale = last.context("a checkpoint of the first attempt")?;
        stale.step += 1;
        let outcome = catalogue.commit(&uid, 0, &stale).await?;
        ensure!(
            matches!(outcome, CommitOutcome::Refused(Refusal::Fenced { newest: Some(1) })),
            "the fence let {outcome:?} through"
        );

        world.stack.sim.clear_faults().await?;
        let done = job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(1) && status.preemptions == 1, "{status:?}");
        ensure!(world.machines().await?.len() == 2 && successor.id != zombie.id);
        // The market billed what it called stopped.
        finished_right_but_for(world, &job, Duration::from_mins(1)).await?;
        Ok(())
    });
}
