//! From the cluster to a rented machine and back, in one run.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tradewind_api::TrainingJob;
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::job::Job;
use crate::nodes::{Cluster, GRACE_S, PATIENCE, bound, counts, record};
use crate::world::{SOON, VAST, World, scenario};

/// Would rather run in the cluster, and does not wait long for it.
fn homely(namespace: &str, name: &str, steps: u64) -> Job {
    Job::new(namespace, name, steps, 5, "0.1").with(json!({
        "placement": { "inCluster": "Prefer", "burstAfter": "1s" },
        "template": { "spec": { "terminationGracePeriodSeconds": GRACE_S } },
    }))
}

fn run_id(job: &TrainingJob) -> Option<String> {
    job.status.as_ref()?.run_id.clone()
}

/// Somebody else's Pod, which has a GPU.
async fn blocker(world: &World, namespace: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "blocker", "namespace": namespace },
        "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": "train:1", "command": ["sleep", "600"], "resources": { "limits": { "nvidia.com/gpu": "1" } },
        }] },
    });
    world.stack.apply(&pod.to_string()).await?;
    let arguments = ["wait", "--for=jsonpath={.status.phase}=Running", "pod/blocker", "-n", namespace, "--timeout=60s"];
    world.stack.kubectl().run(arguments).await?;
    Ok(())
}

#[test]
fn rented_while_the_cluster_is_full_and_back_once_there_is_room() {
    scenario(async |world| {
        let namespace = world.namespace("back").await?;
        let cluster = Cluster::start(world, "back", 1, 1).await?;
        blocker(world, &namespace).await?;
        let job = homely(&namespace, "run", 100);
        job.apply(world).await?;
        job.saved(world, 5, PATIENCE).await?;
        let machine = world.running_machine(None).await?;
        let run = run_id(&job.now(world).await?).context("a run id")?;
        world.stack.kubectl().run(["delete", "pod", "blocker", "-n", &namespace, "--timeout=60s"]).await?;
        world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!(run_id(&done).as_ref() == Some(&run), "another run");
        let (first, second) = (record(&done, 0)?, record(&done, 1)?);
        ensure!(first.ended == "Preempted" && first.place.starts_with(VAST), "{first:?}");
        ensure!(second.place == "cluster" && second.from_step >= Some(5), "{second:?}");
        ensure!(counts(&done) == (1, 0, 0) && world.machines().await?.len() == 1, "{:?}", done.status);
        finished_right(world, &job).await?;
        cluster.end(world).await
    });
}

#[test]
fn rented_once_its_node_is_drained_and_nothing_else_has_room() {
    scenario(async |world| {
        let namespace = world.namespace("away").await?;
        let cluster = Cluster::start(world, "away", 1, 1).await?;
        let job = homely(&namespace, "run", 100);
        job.apply(world).await?;
        job.saved(world, 5, PATIENCE).await?;
        ensure!(bound(world, &job, "run-0").await? == "away-0", "it prefers the cluster");
        let run = run_id(&job.now(world).await?).context("a run id")?;
        let drain = ["drain", "away-0", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
        world.stack.kubectl().run(drain).await?;
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!(run_id(&done).as_ref() == Some(&run), "another run");
        let (first, second) = (record(&done, 0)?, record(&done, 1)?);
        ensure!(first.ended == "Disrupted" && first.message.contains("kubectl drain"), "{first:?}");
        ensure!(second.place.starts_with(VAST), "{second:?}");
        ensure!(second.from_step >= first.last_step, "saved before it went: {first:?} {second:?}");
        ensure!(counts(&done) == (1, 0, 0) && world.machines().await?.len() == 1, "{:?}", done.status);
        finished_right(world, &job).await?;
        let events = job.events(world).await?;
        ensure!(events.iter().any(|(reason, _)| reason == "Rented"), "{events:#?}");
        cluster.end(world).await
    });
}

#[test]
fn several_workers_are_not_rented_and_it_is_said_why() {
    scenario(async |world| {
        let namespace = world.namespace("network").await?;
        let prefers = crate::nodes::gang(&namespace, "prefers", 4, 10, 5, "0.1")
            .with(json!({ "placement": { "inCluster": "Prefer", "burstAfter": "1s" } }));
        prefers.apply(world).await?;
        let message = prefers.condition(world, "Placed", "False", "NoPrivateNetwork", SOON).await?;
        ensure!(message.contains("room for 0 of 4 workers") && message.contains("waits for room"), "{message}");
        let never = crate::nodes::gang(&namespace, "never", 4, 10, 5, "0.1")
            .with(json!({ "placement": { "inCluster": "Never" } }));
        let refused = never.apply(world).await.err().map(|e| e.to_string()).unwrap_or_default();
        ensure!(refused.contains("private network") && refused.contains("must not be Never"), "{refused}");
        let status = prefers.now(world).await?.status.unwrap_or_default();
        ensure!(status.phase == JobPhase::Waiting && world.machines().await?.is_empty(), "{status:?}");
        prefers.delete(world).await
    });
}
