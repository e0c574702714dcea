//! What must be true of finished jobs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tradewind_api::TrainingJob;
use tradewind_checkpoints::Store as _;

use crate::job::Job;
use crate::world::World;

/// The bytes of the newest checkpoint that the catalogue has, put together from its chunks.
pub async fn newest_bytes(world: &World, location: &str) -> Result<Vec<u8>> {
    let log = world.stack.catalogue(location)?.load().await?;
    let checkpoint = log.checkpoints().next().context("no checkpoint")?;
    let store = world.stack.store(location)?;
    let mut bytes = Vec::new();
    for chunk in checkpoint.manifest.files.iter().flat_map(|f| &f.chunks) {
        bytes.extend_from_slice(
            &store.get(&chunk.key, 1 << 30).await?.with_context(|| format!("{} is missing", chunk.key))?,
        );
    }
    Ok(bytes)
}

/// The job's last checkpoint is, byte for byte, that of an undisturbed run; all of its machines are gone, each billed once.
pub async fn finished_right(world: &World, job: &Job) -> Result<TrainingJob> {
    finished_right_but_for(world, job, Duration::ZERO).await
}

/// As [`finished_right`], where nobody looked at the machines for so long in all.
pub async fn finished_right_but_for(world: &World, job: &Job, outages: Duration) -> Result<TrainingJob> {
    world.all_gone().await?;
    ensure!(
        newest_bytes(world, &job.location).await? == job.undisturbed()?,
        "other weights than those of an undisturbed run"
    );
    let done = job.now(world).await?;
    let cost = done.status.as_ref().context("a status")?.cost.clone();
    ensure!(cost.per_hour.micros() == 0 && cost.settled == cost.total, "{cost:?}");
    world.bill_is_right(cost.total.micros(), outages).await?;
    Ok(done)
}
