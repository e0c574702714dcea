//! Stopped with a checkpoint and going on later or elsewhere: suspended, out of budget, Pod deleted, Node drained, machine deleted by hand.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::TrainingJob;
use tradewind_api::training_job::JobPhase;

use crate::checks::{finished_right, finished_right_but_for};
use crate::golden::golden;
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);

async fn patch(world: &World, job: &Job, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    world.stack.kubectl().run(["patch", "tj", &job.name, "-n", &job.namespace, "--type=merge", "-p", &patch]).await?;
    Ok(())
}

/// Last step that a program printed on this machine.
fn last_step(log: &str) -> i64 {
    let step = |line: &str| line.strip_prefix("step ")?.split_once('/')?.0.parse().ok();
    log.lines().rev().find_map(step).unwrap_or(0)
}

/// What the program of a running machine has printed so far.
fn log_of(machine: &tradewind_harness::sim::SimMachine) -> Result<String> {
    Ok(std::fs::read_to_string(machine.dir.as_ref().context("a directory")?.join("log"))?)
}

/// How attempt 0 ended, as the history tells it.
fn first_end(job: &TrainingJob) -> Option<(&str, Option<i64>)> {
    let record = job.status.as_ref()?.history.iter().find(|record| record.attempt == 0)?;
    Some((record.ended.as_str(), record.last_step))
}

/// Complete with the right weights; attempt 0 ended for this reason and nothing of its work was lost; nothing counts as a loss or failure.
async fn went_on(world: &World, job: &Job, reason: &str, machines: usize) -> Result<()> {
    let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
    finished_right(world, job).await?;
    let (ended, last) = first_end(&done).context("a record of attempt 0")?;
    ensure!(ended == reason, "attempt 0 ended as {ended}");
    let status = done.status.as_ref().context("a status")?;
    ensure!((status.preemptions, status.restarts) == (0, 0), "{status:?}");
    let second = status.history.iter().find(|record| record.attempt == 1).context("a record of attempt 1")?;
    ensure!(second.from_step >= last, "attempt 1 went on from {:?}, attempt 0 had got to {last:?}", second.from_step);
    ensure!(world.machines().await?.len() == machines, "{:#?}", world.machines().await?);
    Ok(())
}

#[test]
fn suspended_it_saves_costs_nothing_and_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("suspended").await?;
        let job = Job::new(&namespace, "run", 80, 20, "0.1");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        let machine = world.running_machine(None).await?;
        let before = last_step(&log_of(&machine)?);
        patch(world, &job, json!({ "suspend": true })).await?;
        let suspended = job.phase(world, JobPhase::Suspended, SOON).await?;
        let message = job.condition(world, "Suspended", "True", "Suspended", SOON).await?;
        ensure!(message.contains("goes on from its last checkpoint when it is false"), "{message}");
        let status = suspended.status.as_ref().context("a status")?;
        let saved = status.checkpoint.as_ref().map_or(0, |c| c.step);
        ensure!(saved >= before && saved % 20 != 0, "step {before} was reached, the checkpoint is of step {saved}");
        ensure!(
            world.machines().await?.iter().all(|m| !m.paid),
            "suspended, and paid for: {:#?}",
            world.machines().await?
        );
        let pods = world.stack.kubectl().run(["get", "pods", "-n", &namespace, "-o", "name"]).await?;
        ensure!(!pods.contains("run-1"), "a Pod waits although the job is suspended: {pods}");
        golden(world, "suspended", &job).await?;
        patch(world, &job, json!({ "suspend": false })).await?;
        went_on(world, &job, "Suspended", 2).await
    });
}

#[test]
fn suspended_while_renting_it_spends_nothing_more() {
    scenario(async |world| {
        let namespace = world.namespace("suspended").await?;
        // The provider takes its time with the answer: the machine is there, nobody knows.
        world.stack.sim.add_fault(&json!({ "op": "rent", "when": "hang", "seconds": 2 })).await?;
        let job = Job::new(&namespace, "renting", 10, 5, "0.1");
        job.apply(world).await?;
        world.rented(1).await?;
        patch(world, &job, json!({ "suspend": true })).await?;
        job.phase(world, JobPhase::Suspended, SOON).await?;
        let machines = world.machines().await?;
        ensure!(machines.len() == 1 && !machines[0].paid, "{machines:#?}");
        patch(world, &job, json!({ "suspend": false })).await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        // While the market kept its answer back nobody knew that the machine was there.
        finished_right_but_for(world, &job, Duration::from_secs(3)).await?;
        ensure!(world.machines().await?.len() == 2, "{:#?}", world.machines().await?);
        Ok(())
    });
}

#[test]
fn suspended_from_the_start_it_makes_no_pod() {
    scenario(async |world| {
        let namespace = world.namespace("suspended").await?;
        let job = Job::new(&namespace, "start", 5, 5, "0.1").with(json!({ "suspend": true }));
        job.apply(world).await?;
        job.phase(world, JobPhase::Suspended, SOON).await?;
        let pods = world.stack.kubectl().run(["get", "pods", "-n", &namespace, "-o", "name"]).await?;
        ensure!(pods.trim().is_empty(), "{pods}");
        patch(world, &job, json!({ "suspend": false })).await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        Ok(())
    });
}

#[test]
fn a_budget_used_up_suspends_and_a_higher_one_resumes() {
    scenario(async |world| {
        let namespace = world.namespace("budget").await?;
        let job = Job::new(&namespace, "run", 60, 20, "0.1").with(json!({ "budget": { "total": "5" } }));
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        // Less than what is spent.
        patch(world, &job, json!({ "budget": { "total": "0.0001" } })).await?;
        job.phase(world, JobPhase::Suspended, SOON).await?;
        let message = job.condition(world, "Suspended", "True", "BudgetExhausted", SOON).await?;
        ensure!(message.contains("budget.total ($0.0001) is used up"), "{message}");
        ensure!(world.machines().await?.iter().all(|m| !m.paid), "{:#?}", world.machines().await?);
        golden(world, "budget-exhausted", &job).await?;
        patch(world, &job, json!({ "budget": { "total": "5" } })).await?;
        went_on(world, &job, "BudgetExhausted", 2).await
    });
}

#[test]
fn a_deleted_pod_saves_and_goes_on_elsewhere() {
    scenario(async |world| {
        let namespace = world.namespace("pod").await?;
        let job = Job::new(&namespace, "asked", 80, 20, "0.1");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        // kubectl waits until the Pod is gone: then its checkpoint is safe.
        world.stack.kubectl().run(["delete", "pod", "asked-0", "-n", &namespace, "--timeout=30s"]).await?;
        went_on(world, &job, "PodDeleted", 2).await?;
        golden(world, "pod-deleted", &job).await
    });
}

#[test]
fn a_pod_deleted_by_force_ends_its_machine_at_once() {
    scenario(async |world| {
        let namespace = world.namespace("pod").await?;
        let job = Job::new(&namespace, "forced", 80, 10, "0.1");
        job.apply(world).await?;
        job.saved(world, 10, SOON).await?;
        let first = world.running_machine(None).await?;
        let kubectl = world.stack.kubectl();
        kubectl.run(["delete", "pod", "forced-0", "-n", &namespace, "--force", "--grace-period=0"]).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        ensure!(first_end(&done).map(|(ended, _)| ended) == Some("Deleted"), "{:?}", first_end(&done));
        let machines = world.machines().await?;
        ensure!(machines.len() == 2 && machines.iter().any(|m| m.id == first.id), "{machines:#?}");
        Ok(())
    });
}

#[test]
fn a_drained_node_saves_and_waits_until_it_is_uncordoned() {
    scenario(async |world| {
        let namespace = world.namespace("drained").await?;
        let job = Job::new(&namespace, "run", 60, 20, "0.1");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        let pod = world.stack.kubectl().get_json(["pod", "run-0", "-n", &namespace]).await?;
        let node = pod["spec"]["nodeName"].as_str().context("the Pod is bound")?.to_owned();
        let selector = format!("--pod-selector=tradewind.dev/job-name={}", job.name);
        let drain = ["drain", &node, &selector, "--force", "--ignore-daemonsets", "--timeout=30s"];
        world.stack.kubectl().run(drain).await?;
        let message = job.condition(world, "Placed", "False", "NodeCordoned", SOON).await?;
        ensure!(message.contains(&format!("kubectl uncordon {node}")), "{message}");
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "{machines:#?}");
        world.stack.kubectl().run(["uncordon", &node]).await?;
        went_on(world, &job, "PodDeleted", 2).await
    });
}

#[test]
fn a_machine_deleted_by_hand_is_ended_and_the_job_goes_on_elsewhere() {
    scenario(async |world| {
        let namespace = world.namespace("machine").await?;
        let job = Job::new(&namespace, "run", 60, 10, "0.1");
        job.apply(world).await?;
        job.saved(world, 10, SOON).await?;
        let first = world.running_machine(None).await?;
        world.stack.kubectl().run(["delete", "twm", "--all", "--wait=false"]).await?;
        let second = world.running_machine(Some(&first.id)).await?;
        ensure!(second.id != first.id, "{second:#?}");
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        ensure!(first_end(&done).map(|(ended, _)| ended) == Some("Deleted"), "{:?}", first_end(&done));
        ensure!(done.status.is_some_and(|s| s.preemptions == 0), "a user's own deletion is no preemption");
        Ok(())
    });
}

#[test]
fn with_the_operator_gone_for_good_the_machine_saves_and_ends_its_own_rental() {
    scenario(async |world| {
        let namespace = world.namespace("silent").await?;
        let tolerate = |span: &str| json!({ "spec": { "operatorOutageTolerance": span } }).to_string();
        world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &tolerate("6s")]).await?;
        let job = Job::new(&namespace, "run", 400, 20, "0.1");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        let machine = world.running_machine(None).await?;
        world.stack.operator.kill()?;
        let look = || async {
            let machines = world.machines().await.map_err(|e| e.to_string())?;
            let paid = machines.iter().filter(|m| m.paid).count();
            if paid == 0 { Ok(()) } else { Err(format!("{paid} machines are still paid")) }
        };
        // Nobody but the machine itself is there to end it.
        let ended = world.stack.eventually("the end of the machine by itself", SOON, look).await;
        world.stack.operator.restart().await?;
        world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &tolerate("24h")]).await?;
        ended?;
        let next = world.running_machine(Some(&machine.id)).await?;
        ensure!(next.id != machine.id, "{next:#?}");
        let status = job.now(world).await?.status.context("a status")?;
        let record = status.history.first().context("a record")?;
        ensure!(record.ended == "OperatorSilent", "{record:?}");
        ensure!(status.preemptions == 0 && status.restarts == 0, "{status:?}");
        let saved = status.checkpoint.as_ref().map(|c| c.step);
        // It hardly ever stops at a step that it saves anyway.
        ensure!(saved.is_some() && saved >= record.last_step, "{saved:?} of {:?}", record.last_step);
        job.delete(world).await
    });
}

#[test]
fn an_edit_that_cannot_be_carried_out_stops_nothing_and_suspend_is_obeyed() {
    scenario(async |world| {
        let namespace = world.namespace("edited").await?;
        let job = Job::new(&namespace, "run", 80, 20, "0.1");
        job.apply(world).await?;
        job.saved(world, 20, SOON).await?;
        let pattern = |text: &str| json!({ "checkpoint": { "pattern": text } });
        let good = job.now(world).await?.spec.checkpoint.context("a checkpoint")?.pattern;
        patch(world, &job, pattern("step-[")).await?;
        let message = job.condition(world, "Accepted", "False", "InvalidCheckpoint", SOON).await?;
        ensure!(message.contains("checkpoint.pattern \"step-[\" is no glob"), "{message}");
        let phase = job.now(world).await?.status.map(|s| s.phase);
        ensure!(phase == Some(JobPhase::Running), "{phase:?}");
        patch(world, &job, json!({ "suspend": true })).await?;
        job.phase(world, JobPhase::Suspended, SOON).await?;
        ensure!(world.machines().await?.iter().all(|m| !m.paid), "{:#?}", world.machines().await?);
        patch(world, &job, pattern(&good)).await?;
        patch(world, &job, json!({ "suspend": false })).await?;
        went_on(world, &job, "Suspended", 2).await
    });
}

#[test]
fn where_a_run_is_kept_cannot_be_changed() {
    scenario(async |world| {
        let namespace = world.namespace("edited").await?;
        let job = Job::new(&namespace, "moved", 5, 5, "0.05");
        job.apply(world).await?;
        let elsewhere = patch(world, &job, json!({ "checkpoint": { "to": "s3://ckpt/elsewhere/" } })).await;
        let refused = elsewhere.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(refused.contains("spec.checkpoint") && refused.contains("make another job"), "{refused}");
        let none = patch(world, &job, json!({ "checkpoint": null })).await;
        ensure!(none.is_err(), "a run without its place");
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        Ok(())
    });
}
