//! Outbid, resumed elsewhere, finished as if nothing had happened.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::sim::SimMachine;

use crate::checks::finished_right;
use crate::golden::golden;
use crate::job::Job;
use crate::world::{SOON, VAST, scenario};

#[test]
fn outbid_at_a_random_step_and_finished_with_the_same_weights() {
    scenario(async |world| {
        let namespace = world.namespace("outbid").await?;
        let job = Job::new(&namespace, "run", 60, 5, "0.05");
        job.apply(world).await?;
        let step = rand::random_range(1..40);
        println!("outbid once step {step} is done");
        let reached = job.until(world, "the step", SOON, |job| {
            let done = job.status.as_ref().and_then(|s| s.progress.as_ref()).map_or(0, |p| p.step);
            if done >= step { Ok(done) } else { Err(format!("step {done}")) }
        });
        reached.await?;
        job.saved(world, 5, SOON).await?;
        let first = world.running_machine(None).await?;
        world.stack.sim.act(VAST, &first.id, "outbid", &json!({})).await?;
        let done = job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let status = done.status.context("a status")?;
        ensure!(status.preemptions == 1 && status.restarts == 0 && status.attempt == Some(1), "{status:?}");
        let machines = world.machines().await?;
        ensure!(machines.len() == 2 && machines[0].offer != machines[1].offer, "{machines:#?}");
        finished_right(world, &job).await?;
        golden(world, "machine-lost", &job).await
    });
}

#[test]
fn outbid_twenty_times_and_each_machine_is_billed_once() {
    scenario(async |world| {
        const OUTBIDS: usize = 20;
        let namespace = world.namespace("outbid").await?;
        let job = Job::new(&namespace, "often", 70, 1, "0.4");
        job.apply(world).await?;
        let mut last: Option<SimMachine> = None;
        for n in 0..OUTBIDS {
            let machine = world.running_machine(last.as_ref().map(|m| m.id.as_str())).await?;
            if let Some(last) = &last {
                // Its host can be had again; before it was given back, it would have resumed.
                let offer = last.offer.as_str().map_or_else(|| last.offer.to_string(), str::to_owned);
                world.stack.sim.patch_offer(VAST, &offer, &json!({ "bid": 0.2 })).await?;
            }
            // At least one step further each time: every second one is lost before it has saved anything.
            if n % 2 == 0 {
                let before = job.now(world).await?.status.and_then(|s| s.checkpoint).map_or(0, |c| c.step);
                job.saved(world, before + 1, SOON).await?;
            }
            world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
            last = Some(machine);
        }
        let done = job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(20) && status.restarts == 0, "{status:?}");
        ensure!(status.preemptions <= 20 && status.history.len() == 20, "{status:?}");
        ensure!(world.machines().await?.len() == OUTBIDS + 1, "{:#?}", world.machines().await?);
        finished_right(world, &job).await?;
        Ok(())
    });
}
