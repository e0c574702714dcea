//! A run has an identity in its bucket: made again it goes on, stays finished, starts over, or is refused.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{SOON, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);

/// The job's message, once it is in this phase and nothing more was rented than before.
async fn without_renting(world: &World, job: &Job, phase: JobPhase, machines: usize) -> Result<String> {
    let now = job.phase(world, phase, SOON).await?;
    ensure!(world.machines().await?.len() == machines, "{:#?}", world.machines().await?);
    Ok(now.status.context("a status")?.message)
}

#[test]
fn a_finished_job_made_again_is_finished_at_once() {
    scenario(async |world| {
        let namespace = world.namespace("identity").await?;
        let job = Job::new(&namespace, "again", 10, 5, "0.05");
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        job.delete(world).await?;
        job.apply(world).await?;
        let message = without_renting(world, &job, JobPhase::Complete, 1).await?;
        ensure!(message.contains("finished already on") && message.contains("onExisting to Fresh"), "{message}");
        world
            .stack
            .kubectl()
            .run(["wait", "--for=condition=Complete", "tj/again", "-n", &namespace, "--timeout=5s"])
            .await?;
        job.delete(world).await?;

        // What it may cost makes no other run of it; what it runs does.
        let cheaper = Job::new(&namespace, "again", 10, 5, "0.05").with(json!({ "budget": { "total": "1" } }));
        cheaper.apply(world).await?;
        without_renting(world, &cheaper, JobPhase::Complete, 1).await?;
        cheaper.delete(world).await?;
        let longer = Job::new(&namespace, "again", 20, 5, "0.05");
        longer.apply(world).await?;
        let message = longer.condition(world, "Accepted", "False", "FinishedWithOtherSpec", SOON).await?;
        ensure!(message.contains("with another spec; choose another name"), "{message}");
        longer.delete(world).await?;

        let fresh = longer.with(json!({ "checkpoint": { "onExisting": "Fresh" } }));
        fresh.apply(world).await?;
        let done = fresh.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &fresh).await?;
        ensure!(done.status.context("a status")?.history[0].from_step.is_none(), "Fresh starts from zero");
        ensure!(world.machines().await?.len() == 2, "{:#?}", world.machines().await?);
        fresh.delete(world).await
    });
}

#[test]
fn a_failed_job_made_again_has_failed_and_another_spec_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("identity").await?;
        let failing = |code: &str| {
            Job::new(&namespace, "failed", 40, 10, "0.1")
                .container(json!({ "env": [{ "name": "TRAIN_EXIT", "value": code }] }))
                .with(json!({ "failurePolicy": { "maxRestarts": 0 } }))
        };
        let job = failing("9");
        job.apply(world).await?;
        job.phase(world, JobPhase::Failed, MINUTE).await?;
        world.all_gone().await?;
        job.delete(world).await?;
        job.apply(world).await?;
        let message = without_renting(world, &job, JobPhase::Failed, 1).await?;
        ensure!(message.contains("finished already on") && message.contains("exit code 9"), "{message}");
        job.delete(world).await?;
        let mended = failing("0");
        mended.apply(world).await?;
        let done = mended.phase(world, JobPhase::Complete, MINUTE).await?;
        world.all_gone().await?;
        ensure!(crate::checks::newest_bytes(world, &mended.location).await? == mended.undisturbed()?, "other weights");
        let record = done.status.context("a status")?.history.last().cloned().context("a record")?;
        ensure!(record.from_step >= Some(10) && record.attempt == 1, "{record:?}");
        mended.delete(world).await
    });
}

#[test]
fn an_unfinished_job_made_again_goes_on_or_is_refused() {
    scenario(async |world| {
        let namespace = world.namespace("identity").await?;
        let job = Job::new(&namespace, "run", 60, 10, "0.05");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        job.delete(world).await?;
        world.all_gone().await?;
        let strict =
            Job::new(&namespace, "run", 60, 10, "0.05").with(json!({ "checkpoint": { "onExisting": "Fail" } }));
        strict.apply(world).await?;
        let message = strict.condition(world, "Accepted", "False", "RunExists", SOON).await?;
        ensure!(message.contains("Resume goes on with it, Fresh starts over"), "{message}");
        strict.delete(world).await?;
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        let status = done.status.context("a status")?;
        let record = status.history.last().context("a record")?;
        ensure!(record.from_step >= Some(20) && record.attempt == 1, "{record:?}");
        ensure!(crate::checks::newest_bytes(world, &job.location).await? == job.undisturbed()?, "other weights");
        world.all_gone().await?;
        job.delete(world).await
    });
}

#[test]
fn another_name_at_the_same_place_is_refused_for_good() {
    scenario(async |world| {
        let namespace = world.namespace("identity").await?;
        let job = Job::new(&namespace, "owner", 5, 5, "0.05");
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        let twin = Job::new(&namespace, "twin", 5, 5, "0.05").with(json!({ "checkpoint": { "to": job.location } }));
        twin.apply(world).await?;
        let message = twin.condition(world, "Accepted", "False", "CheckpointLocationInUse", SOON).await?;
        ensure!(message.contains(&format!("holds the run of TrainingJob {namespace}/owner;")), "{message}");
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        twin.delete(world).await?;
        world.all_gone().await?;
        job.delete(world).await
    });
}

#[test]
fn an_api_server_restored_from_an_older_state_repeats_no_attempt() {
    scenario(async |world| {
        let namespace = world.namespace("restored").await?;
        let job = Job::new(&namespace, "run", 60, 10, "0.05");
        job.apply(world).await?;
        job.saved(world, 10, SOON).await?;
        let first = world.running_machine(None).await?;
        let older = job.now(world).await?.status.context("a status")?;
        world.stack.sim.act(crate::world::VAST, &first.id, "outbid", &json!({})).await?;
        world.running_machine(Some(&first.id)).await?;
        job.until(world, "a save of attempt 1", SOON, |job| {
            let attempt = job.status.as_ref().and_then(|s| s.checkpoint.as_ref()).map(|c| c.attempt);
            if attempt == Some(1) { Ok(()) } else { Err(format!("{attempt:?}")) }
        })
        .await?;
        // The object as it was, as after a restore of etcd: its machines and Pods are gone with it, the bucket is not.
        world.stack.kubectl().run(["delete", "tj", "run", "-n", &namespace, "--wait=true", "--timeout=30s"]).await?;
        world.all_gone().await?;
        world.stack.operator.kill()?;
        job.apply(world).await?;
        let mut status = serde_json::to_value(&older)?;
        status["cost"]["settledMachines"] = json!([]);
        status["observedGeneration"] = json!(1);
        let patch: Value = json!({ "status": status });
        world
            .stack
            .kubectl()
            .run([
                "patch",
                "tj",
                "run",
                "-n",
                &namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch.to_string(),
            ])
            .await?;
        world.stack.operator.restart().await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        world.all_gone().await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(2), "attempt {:?}", status.attempt);
        ensure!(world.machines().await?.len() == 3, "{:#?}", world.machines().await?);
        ensure!(crate::checks::newest_bytes(world, &job.location).await? == job.undisturbed()?, "other weights");
        job.delete(world).await
    });
}
