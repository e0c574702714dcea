//! Several workers on the cluster's own nodes: they start together, and what happens to one happens to all.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::time::Instant;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::{FakeNodeOptions, StackOptions};

use crate::checks::finished_right;
use crate::golden::golden;
use crate::job::Job;
use crate::nodes::{Cluster, PATIENCE, counts, gang, images, patch, record, saved_and_went_on, told, went_on, works};
use crate::world::{World, options, scenario, scenario_in};

/// Two GPUs on each of three nodes: room for four workers, also without one of the nodes.
async fn cluster(world: &World, name: &str) -> Result<Cluster> {
    Cluster::start(world, name, 3, 2).await
}

fn four(namespace: &str, steps: u64, every: u64) -> Job {
    gang(namespace, "run", 4, steps, every, "0.1")
}

#[test]
fn four_workers_run_to_their_end() {
    scenario(async |world| {
        let namespace = world.namespace("gang").await?;
        let cluster = Cluster::start(world, "pair", 2, 2).await?;
        let job = four(&namespace, 60, 5);
        job.apply(world).await?;
        job.saved(world, 5, PATIENCE).await?;
        golden(world, "gang-running", &job).await?;
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!(counts(&done) == (0, 0, 0) && record(&done, 0)?.ended == "Finished", "{:?}", done.status);
        for rank in 0..4 {
            let log = cluster.log(&job, &format!("run-0-{rank}"));
            ensure!(log.contains(&format!("rank {rank} of 4: starting")) && log.contains("finished"), "{rank}: {log}");
        }
        finished_right(world, &job).await?;
        cluster.end(world).await
    });
}

/// Nodes that are noticed to be dead within seconds.
fn quick_to_notice() -> StackOptions {
    let mut options = options("dead-nodes");
    options.plane.node_grace = Some(Duration::from_secs(5));
    // Its nodes renew their Leases too rarely for that.
    options.plane.kwok = false;
    options
}

/// Seconds until the death is noticed (7), of silence (30), and for a new attempt on a machine that is busy with other tests.
const SOONER_THAN_THE_GRACE: Duration = Duration::from_secs(90);

#[test]
fn a_dead_node_costs_one_attempt_and_nothing_that_was_saved() {
    scenario_in(quick_to_notice(), async |world| {
        let namespace = world.namespace("dead").await?;
        let images = images(world)?;
        let node = |n: usize| FakeNodeOptions::new(&format!("dead-{n}"), &images).gpus(2).lease_seconds(4);
        let cluster = Cluster::of(world, (0..3).map(node)).await?;
        let soon =
            |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2 });
        let tolerations = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(soon);
        // The grace that is given where nothing else is said: what is dead does not use it.
        let spec = json!({ "tolerations": tolerations, "terminationGracePeriodSeconds": 120 });
        let job = four(&namespace, 60, 5).with(json!({ "template": { "spec": spec } }));
        job.apply(world).await?;
        job.saved(world, 10, PATIENCE).await?;
        let node = cluster.node_of(world, &job, "run-0-0").await?;
        let dead = node.name().to_owned();
        node.kill().await;
        let since = Instant::now();
        let again = |job: &tradewind_api::TrainingJob| {
            let status = job.status.clone().unwrap_or_default();
            let is = (status.attempt, status.phase);
            if is == (Some(1), JobPhase::Running) { Ok(()) } else { Err(format!("{is:?}")) }
        };
        job.until(world, "attempt 1", PATIENCE, again).await?;
        let took = since.elapsed();
        println!("attempt 1 ran {:.1} s after the node's death", took.as_secs_f64());
        ensure!(took < SOONER_THAN_THE_GRACE, "it took {took:?}");
        // What was left of attempt 0 goes once the node is back, and hurts nobody.
        node.revive().await?;
        let done = went_on(world, &job, "Disrupted", (1, 0, 0)).await?;
        let first = record(&done, 0)?;
        ensure!(first.message.contains(&dead) && first.message.contains("does not answer"), "{first:?}");
        let second = done.status.as_ref().and_then(|s| s.placement.as_ref()).and_then(|p| p.why.clone());
        ensure!(second.as_ref().is_some_and(|why| !why.contains(&dead)), "attempt 1 {second:?}");
        ensure!(record(&done, 1)?.from_step >= Some(10), "{:?}", record(&done, 1)?);
        cluster.end(world).await
    });
}

#[test]
fn one_that_fails_restarts_all_and_counts_once() {
    scenario(async |world| {
        let namespace = world.namespace("fails").await?;
        let cluster = cluster(world, "fails").await?;
        let fails = json!({ "env": [{ "name": "GANG_FAILS", "value": "2:17" }] });
        let job = four(&namespace, 40, 5).container(fails);
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        let first = record(&done, 0)?;
        ensure!(first.ended == "ProgramFailed" && first.message.contains("exit code 1"), "{first:?}");
        ensure!(first.message.contains("run-0-2"), "whose failure it was: {first:?}");
        ensure!(counts(&done) == (0, 1, 0), "{:?}", counts(&done));
        ensure!(record(&done, 1)?.from_step >= Some(5), "{:?}", record(&done, 1)?);
        for rank in 0..4 {
            let log = cluster.log(&job, &format!("run-1-{rank}"));
            ensure!(rank > 0 || log.contains("resumed from step"), "{rank}: {log}");
            ensure!(log.contains("finished"), "{rank}: {log}");
        }
        world.all_gone().await?;
        cluster.end(world).await
    });
}

#[test]
fn one_that_hangs_restarts_all() {
    scenario(async |world| {
        let namespace = world.namespace("hangs").await?;
        let cluster = cluster(world, "hangs").await?;
        let job = four(&namespace, 60, 5).with(json!({ "stallTimeout": "6s" }));
        job.apply(world).await?;
        job.saved(world, 10, PATIENCE).await?;
        let node = cluster.node_of(world, &job, "run-0-3").await?;
        // The program, not the agent; the others wait for it from now on.
        let mut hung = node.processes(&namespace, "run-0-3");
        hung.retain(|process| !process.command.contains("tradewind-agent"));
        ensure!(!hung.is_empty(), "{:?}", node.processes(&namespace, "run-0-3"));
        for process in &hung {
            process.freeze(true);
        }
        let done = went_on(world, &job, "ProgramStalled", (0, 0, 1)).await?;
        ensure!(record(&done, 0)?.message.contains("no sign of life"), "{:?}", record(&done, 0)?);
        cluster.end(world).await
    });
}

#[test]
fn a_worker_frozen_with_its_agent_is_replaced() {
    scenario(async |world| {
        let namespace = world.namespace("frozen").await?;
        let cluster = cluster(world, "frozen").await?;
        let job = four(&namespace, 60, 5);
        job.apply(world).await?;
        job.saved(world, 10, PATIENCE).await?;
        // Its node is well: nothing but the agent's silence tells.
        let node = cluster.node_of(world, &job, "run-0-3").await?;
        node.freeze(&namespace, "run-0-3", true);
        let done = went_on(world, &job, "AgentSilent", (1, 0, 0)).await?;
        let first = record(&done, 0)?;
        ensure!(first.message.contains("run-0-3") && first.message.contains("has said nothing for 20 s"), "{first:?}");
        ensure!(record(&done, 1)?.from_step >= Some(10), "{:?}", record(&done, 1)?);
        cluster.end(world).await
    });
}

#[test]
fn a_pod_of_higher_priority_takes_a_node_and_the_job_goes_on_after_it() {
    scenario(async |world| {
        let namespace = world.namespace("priority").await?;
        let cluster = Cluster::start(world, "priority", 2, 2).await?;
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": "urgent" }, "value": 1000,
        });
        world.stack.apply(&class.to_string()).await?;
        // It would save nothing by itself before its end.
        let job = four(&namespace, 80, 80);
        job.apply(world).await?;
        works(world, &job).await?;
        let urgent = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "urgent", "namespace": namespace },
            "spec": { "restartPolicy": "Never", "priorityClassName": "urgent", "containers": [{
                "name": "main", "image": "train:1", "command": ["sleep", "3"], "resources": { "limits": { "nvidia.com/gpu": "2" } },
            }] },
        });
        world.stack.apply(&urgent.to_string()).await?;
        let done = saved_and_went_on(world, &job, "Disrupted", (1, 0, 0)).await?;
        ensure!(record(&done, 0)?.message.contains("higher priority"), "{:?}", record(&done, 0)?);
        let ran = world.stack.kubectl().get_json(["pod", "urgent", "-n", &namespace]).await?;
        ensure!(ran["status"]["phase"] == "Succeeded", "{}", ran["status"]);
        world.stack.kubectl().run(["delete", "priorityclass", "urgent"]).await?;
        cluster.end(world).await
    });
}

#[test]
fn a_drained_node_costs_nothing_of_the_work() {
    scenario(async |world| {
        let namespace = world.namespace("drain").await?;
        let cluster = cluster(world, "drain").await?;
        let job = four(&namespace, 80, 80);
        job.apply(world).await?;
        works(world, &job).await?;
        let node = cluster.node_of(world, &job, "run-0-1").await?.name().to_owned();
        let drain = ["drain", &node, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
        world.stack.kubectl().run(drain).await?;
        let done = saved_and_went_on(world, &job, "Disrupted", (1, 0, 0)).await?;
        ensure!(record(&done, 0)?.message.contains("kubectl drain"), "{:?}", record(&done, 0)?);
        golden(world, "gang-drained", &job).await?;
        cluster.end(world).await
    });
}

#[test]
fn suspended_it_holds_no_node_and_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("suspend").await?;
        let cluster = cluster(world, "suspend").await?;
        let job = four(&namespace, 80, 80);
        job.apply(world).await?;
        works(world, &job).await?;
        patch(world, &job, json!({ "suspend": true })).await?;
        job.phase(world, JobPhase::Suspended, PATIENCE).await?;
        let running: Vec<_> = cluster.nodes.iter().flat_map(tradewind_harness::FakeNode::all_processes).collect();
        ensure!(running.is_empty(), "{running:?}");
        patch(world, &job, json!({ "suspend": false })).await?;
        saved_and_went_on(world, &job, "Suspended", (0, 0, 0)).await?;
        cluster.end(world).await
    });
}

#[test]
fn one_deleted_pod_is_a_new_attempt_of_all() {
    scenario(async |world| {
        let namespace = world.namespace("delete").await?;
        let cluster = cluster(world, "delete").await?;
        let job = four(&namespace, 80, 80);
        job.apply(world).await?;
        works(world, &job).await?;
        world.stack.kubectl().run(["delete", "pod", "run-0-2", "-n", &namespace, "--timeout=60s"]).await?;
        saved_and_went_on(world, &job, "PodDeleted", (0, 0, 0)).await?;
        cluster.end(world).await
    });
}

/// Every worker saves its own part.
fn all_save(job: Job, how: &str) -> Job {
    job.with(json!({ "checkpoint": { "writers": "AllRanks" } }))
        .container(json!({ "env": [{ "name": "GANG_SAVES", "value": how }] }))
}

#[test]
fn parts_of_the_same_step_are_one_checkpoint_and_come_back_to_their_workers() {
    scenario(async |world| {
        let namespace = world.namespace("parts").await?;
        let cluster = cluster(world, "parts").await?;
        let job = all_save(four(&namespace, 60, 5), "all");
        job.apply(world).await?;
        job.saved(world, 10, PATIENCE).await?;
        told(world, &job, "CheckpointCommitted", &["of all 4 workers counts"]).await?;
        world.stack.kubectl().run(["delete", "pod", "run-0-2", "-n", &namespace, "--timeout=60s"]).await?;
        went_on(world, &job, "PodDeleted", (0, 0, 0)).await?;
        for rank in 0..4 {
            let log = cluster.log(&job, &format!("run-1-{rank}"));
            ensure!(log.contains(&format!("rank {rank} of 4: resumed from step")), "{rank}: {log}");
        }
        cluster.end(world).await
    });
}

#[test]
fn parts_of_different_steps_are_refused_and_it_is_said_why() {
    scenario(async |world| {
        let namespace = world.namespace("parts").await?;
        let cluster = cluster(world, "uneven").await?;
        let job = all_save(four(&namespace, 9999, 7), "uneven");
        job.apply(world).await?;
        let words =
            ["writers AllRanks", "counts only once every worker has saved the same step", "has not, its newest"];
        let note = told(world, &job, "CheckpointRefused", &words).await?;
        println!("{note}");
        let status = job.now(world).await?.status.context("a status")?;
        ensure!(status.checkpoint.is_none() && status.phase == JobPhase::Running, "{status:?}");
        // Told to stop, all save the same step, and that counts.
        patch(world, &job, json!({ "suspend": true })).await?;
        job.phase(world, JobPhase::Suspended, PATIENCE).await?;
        told(world, &job, "CheckpointCommitted", &["of all 4 workers counts"]).await?;
        job.delete(world).await?;
        cluster.end(world).await
    });
}
