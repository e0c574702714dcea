//! Checkpoints damaged in the bucket.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

/// Runs a job until it has some checkpoints, takes its machine away and keeps the next one back; returns the steps that are saved,
/// newest first.
async fn interrupted(world: &World, job: &Job) -> Result<Vec<u64>> {
    job.apply(world).await?;
    job.saved(world, 15, SOON).await?;
    let machine = world.running_machine(None).await?;
    world.stack.sim.add_fault(&json!({ "op": "rent", "status": 400, "message": "not now", "times": 1000 })).await?;
    world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
    job.until(world, "the second attempt", SOON, |job| {
        let attempt = job.status.as_ref().and_then(|s| s.attempt);
        if attempt == Some(1) { Ok(()) } else { Err(format!("{attempt:?}")) }
    })
    .await?;
    let log = world.stack.catalogue(&job.location)?.load().await?;
    let steps: Vec<u64> = log.checkpoints().map(|c| c.manifest.step).collect();
    ensure!(steps.len() >= 2, "{steps:?}");
    Ok(steps)
}

/// Changes a byte of every chunk of the `count` newest checkpoints; sizes stay.
async fn damage(world: &World, job: &Job, count: usize) -> Result<()> {
    let log = world.stack.catalogue(&job.location)?.load().await?;
    let prefix = job.location.strip_prefix("s3://ckpt/").context("the bucket")?;
    for checkpoint in log.checkpoints().take(count) {
        for chunk in checkpoint.manifest.files.iter().flat_map(|f| &f.chunks) {
            let path = world.stack.s3.object_path("ckpt", &format!("{prefix}{}", chunk.key));
            let mut bytes = std::fs::read(&path)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes)?;
        }
    }
    Ok(())
}

#[test]
fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    scenario(async |world| {
        let namespace = world.namespace("restore").await?;
        let job = Job::new(&namespace, "newest", 60, 5, "0.1");
        let steps = interrupted(world, &job).await?;
        damage(world, &job, 1).await?;
        world.stack.sim.clear_faults().await?;
        job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let events = job.events(world).await?;
        let corrupt = format!("(step {})", steps[0]);
        ensure!(events.iter().any(|(r, n)| r == "CheckpointCorrupt" && n.contains(&corrupt)), "{events:#?}");
        let resumed = format!("(step {})", steps[1]);
        ensure!(events.iter().any(|(r, n)| r == "Resumed" && n.contains(&resumed)), "{events:#?}");
        finished_right(world, &job).await?;
        Ok(())
    });
}

#[test]
fn without_any_good_checkpoint_it_starts_from_zero_and_says_so() {
    scenario(async |world| {
        let namespace = world.namespace("restore").await?;
        let job = Job::new(&namespace, "all", 60, 5, "0.1");
        let steps = interrupted(world, &job).await?;
        damage(world, &job, steps.len()).await?;
        world.stack.sim.clear_faults().await?;
        job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let events = job.events(world).await?;
        ensure!(events.iter().filter(|(r, _)| r == "CheckpointCorrupt").count() == steps.len(), "{events:#?}");
        ensure!(events.iter().any(|(r, n)| r == "NoUsableCheckpoint" && n.contains("starts from zero")), "{events:#?}");
        finished_right(world, &job).await?;
        Ok(())
    });
}
