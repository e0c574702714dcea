//! What a failing, killed or hanging program leads to.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::golden::golden;
use crate::job::Job;
use crate::world::{SOON, scenario};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn an_exit_code_with_a_rule_fails_the_job_at_once() {
    scenario(async |world| {
        let namespace = world.namespace("rule").await?;
        let job = Job::new(&namespace, "fail", 5, 5, "0.05")
            .container(json!({ "env": [{ "name": "TRAIN_EXIT", "value": "2" }] }))
            .with(json!({ "failurePolicy": { "rules": [{ "exitCodes": [2, 3], "action": "Fail" }] } }));
        job.apply(world).await?;
        let failed = job.phase(world, JobPhase::Failed, SOON).await?;
        let message = job.condition(world, "Failed", "True", "ProgramFailed", SOON).await?;
        ensure!(message.contains("exit code 2") && message.contains("failurePolicy.rules says Fail"), "{message}");
        let status = failed.status.context("a status")?;
        ensure!((status.restarts, status.attempt) == (0, Some(0)), "{status:?}");
        world.all_gone().await
    });
}

#[test]
fn an_exit_code_with_a_rule_to_restart_is_not_counted() {
    scenario(async |world| {
        let namespace = world.namespace("rule").await?;
        let twice = "train 10 5 0.05; [ $TRADEWIND_ATTEMPT -ge 2 ] || exit 75";
        let job = Job::new(&namespace, "again", 10, 5, "0.05")
            .container(json!({ "command": ["sh", "-c", twice], "args": null }))
            .with(
                json!({ "failurePolicy": { "maxRestarts": 0, "rules": [{ "exitCodes": [75], "action": "Restart" }] } }),
            );
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        ensure!((status.restarts, status.preemptions, status.attempt) == (0, 0, Some(2)), "{status:?}");
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "three attempts on one machine: {machines:?}");
        Ok(())
    });
}

#[test]
fn a_failed_program_begins_again_on_the_same_machine() {
    scenario(async |world| {
        let namespace = world.namespace("inplace").await?;
        let fails = "[ $TRADEWIND_ATTEMPT != 0 ] || { train 20 10 0.05; exit 1; }; exec train 40 10 0.05";
        let job = Job::new(&namespace, "run", 40, 10, "0.05")
            .container(json!({ "command": ["sh", "-c", fails], "args": null }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        ensure!((status.restarts, status.preemptions, status.attempt) == (1, 0, Some(1)), "{status:?}");
        let first = status.history.first().context("a record")?;
        ensure!(first.ended == "ProgramFailed" && first.message.contains("exit code 1"), "{first:?}");
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "no second rental, no second pull: {machines:?}");
        let events = job.events(world).await?;
        let told = |reason: &str, words: &str| events.iter().any(|(r, note)| r == reason && note.contains(words));
        ensure!(told("Restarted", "takes over the machine on which the program failed"), "{events:?}");
        ensure!(told("Resumed", "attempt 1 goes on from checkpoint") && told("Resumed", "(step 20)"), "{events:?}");
        world.all_gone().await
    });
}

#[test]
fn a_killed_program_is_told_from_one_that_failed() {
    scenario(async |world| {
        let namespace = world.namespace("killed").await?;
        let job = Job::new(&namespace, "run", 10, 5, "0.05")
            .container(json!({ "command": ["sh", "-c", "[ $TRADEWIND_ATTEMPT != 0 ] || kill -9 $$$$; exec train 10 5 0.05"], "args": null }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        let first = status.history.first().context("a record")?;
        ensure!(first.ended == "Killed" && first.message.contains("exit code 137"), "{first:?}");
        ensure!((status.restarts, status.preemptions) == (1, 0), "{status:?}");
        Ok(())
    });
}

#[test]
fn a_program_that_hangs_is_started_again_from_its_checkpoint() {
    scenario(async |world| {
        let namespace = world.namespace("stalled").await?;
        let hangs = "[ $TRADEWIND_ATTEMPT != 0 ] || { train 20 10 0.05; sleep 1000; }; exec train 40 10 0.05";
        let job = Job::new(&namespace, "run", 40, 10, "0.05")
            .container(json!({ "command": ["sh", "-c", hangs], "args": null }))
            .with(json!({ "stallTimeout": "3s" }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        ensure!((status.stalls, status.restarts, status.preemptions) == (1, 0, 0), "{status:?}");
        let first = status.history.first().context("a record")?;
        ensure!(first.ended == "ProgramStalled" && first.message.contains("no sign of life"), "{first:?}");
        let second = status.history.get(1).context("a second record")?;
        ensure!(second.from_step == Some(20), "{second:?}");
        golden(world, "stalled", &job).await
    });
}

#[test]
fn an_image_that_no_machine_can_pull_ends_the_job_and_not_the_budget() {
    scenario(async |world| {
        let namespace = world.namespace("image").await?;
        let job = Job::new(&namespace, "typo", 5, 5, "0.05").container(json!({ "image": "typo:1" }));
        job.apply(world).await?;
        let failed = job.phase(world, JobPhase::Failed, MINUTE).await?;
        let message = job.condition(world, "Failed", "True", "NotStartable", SOON).await?;
        ensure!(
            message.contains("5 machines in a row never ran image typo:1") && message.contains("manifest unknown"),
            "{message}"
        );
        let status = failed.status.context("a status")?;
        ensure!((status.restarts, status.preemptions) == (0, 0), "{status:?}");
        world.all_gone().await?;
        ensure!(world.machines().await?.len() == 5, "{:#?}", world.machines().await?);
        Ok(())
    });
}
