//! The host starts the machine's container again: before and after the program's end, with its disk and without.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;

use crate::checks::{finished_right, finished_right_but_for};
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);

/// Restarted in the middle of its work: nothing counts against the program, and another machine goes on.
async fn restarted_while_running(world: &mut World, name: &str, how: Value) -> Result<()> {
    let namespace = world.namespace("restarts").await?;
    let job = Job::new(&namespace, name, 80, 10, "0.1");
    job.apply(world).await?;
    job.saved(world, 10, SOON).await?;
    let first = world.running_machine(None).await?;
    world.stack.sim.act(VAST, &first.id, "exit", &how).await?;
    let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
    finished_right(world, &job).await?;
    let status = done.status.context("a status")?;
    let record = status.history.first().context("a record")?;
    ensure!(record.ended == "MachineRestarted", "{record:?}");
    ensure!((status.restarts, status.attempt) == (0, Some(1)), "{status:?}");
    ensure!(status.history.get(1).and_then(|r| r.from_step) >= Some(10), "{:?}", status.history);
    Ok(())
}

#[test]
fn before_the_end_with_its_disk() {
    scenario(async |world| restarted_while_running(world, "disk", json!({ "code": 137 })).await);
}

#[test]
fn before_the_end_without_its_disk() {
    scenario(async |world| restarted_while_running(world, "wiped", json!({ "code": 137, "wipe": true })).await);
}

/// Restarted after the program has ended, while the operator was away: the exit is not lost and nothing runs again.
async fn restarted_after_the_end(world: &mut World, name: &str, how: Value) -> Result<()> {
    let namespace = world.namespace("restarts").await?;
    let job = Job::new(&namespace, name, 40, 10, "0.1");
    job.apply(world).await?;
    job.saved(world, 30, SOON).await?;
    world.stack.operator.kill()?;
    let machine = world.running_machine(None).await?;
    let log = machine.dir.as_ref().context("a directory")?.join("log");
    let ended = || async {
        let log = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
        if log.contains("step 40/40") { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
    };
    world.stack.eventually("the end of the program", SOON, ended).await?;
    // Its exit is in the report within a moment; the last save waits for the operator.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.stack.sim.act(VAST, &machine.id, "exit", &how).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.stack.operator.restart().await?;
    job.phase(world, JobPhase::Complete, MINUTE).await?;
    finished_right_but_for(world, &job, Duration::from_secs(10)).await?;
    Ok(())
}

#[test]
fn after_the_end_with_its_disk() {
    scenario(async |world| restarted_after_the_end(world, "late", json!({ "code": 0 })).await);
}

#[test]
fn after_the_end_without_its_disk() {
    scenario(async |world| restarted_after_the_end(world, "late-wiped", json!({ "code": 0, "wipe": true })).await);
}

#[test]
fn a_machine_that_wins_its_bid_back_by_itself_is_ended() {
    scenario(async |world| {
        let namespace = world.namespace("restarts").await?;
        let job = Job::new(&namespace, "back", 80, 10, "0.1");
        job.apply(world).await?;
        job.saved(world, 10, SOON).await?;
        let first = world.running_machine(None).await?;
        world.stack.operator.kill()?;
        world.stack.sim.act(VAST, &first.id, "outbid", &json!({ "price": 0.9 })).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The higher bidder goes: the market starts the machine again by itself.
        let offer = first.offer.to_string();
        world.stack.sim.patch_offer(VAST, offer.trim_matches('"'), &json!({ "bid": 0.1 })).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.stack.operator.restart().await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right_but_for(world, &job, Duration::from_secs(10)).await?;
        let status = done.status.context("a status")?;
        let record = status.history.first().context("a record")?;
        ensure!(["MachineRestarted", "Preempted"].contains(&record.ended.as_str()), "{record:?}");
        ensure!(status.restarts == 0, "{status:?}");
        Ok(())
    });
}
