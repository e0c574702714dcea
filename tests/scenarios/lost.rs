//! Pod or Node lost while the machine lives: both are made again, the machine goes on as if nothing had happened.

use anyhow::{Context as _, Result, ensure};
use tradewind_api::training_job::JobPhase;

use crate::job::Job;
use crate::world::{SOON, World, scenario};

/// Uid of the job's first Pod, once it runs and is not going.
async fn running_pod(world: &World, job: &Job, besides: Option<&str>) -> Result<String> {
    let name = format!("{}-0", job.name);
    let look = || async {
        let pod =
            world.stack.kubectl().get_json(["pod", &name, "-n", &job.namespace]).await.map_err(|e| e.to_string())?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if phase != "Running" || besides == Some(uid.as_str()) || !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("Pod {uid} is {phase}"));
        }
        Ok(uid)
    };
    Ok(world.stack.eventually("a running Pod of attempt 0", SOON * 3, look).await?)
}

/// Still attempt 0 on the one machine.
async fn undisturbed(world: &World, job: &Job) -> Result<()> {
    let status = job.now(world).await?.status.context("a status")?;
    ensure!(status.attempt == Some(0), "attempt {:?}", status.attempt);
    ensure!(status.preemptions == 0, "{} preemptions", status.preemptions);
    let machines = world.machines().await?;
    ensure!(machines.len() == 1 && machines[0].running, "{machines:#?}");
    Ok(())
}

#[test]
fn a_lost_pod_is_made_again_on_the_same_machine() {
    scenario(async |world| {
        let namespace = world.namespace("lost").await?;
        let job = Job::new(&namespace, "pod", 1000, 5, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        let first = running_pod(world, &job, None).await?;
        let pod = world.stack.kubectl().get_json(["pod", "pod-0", "-n", &namespace]).await?;
        let node = pod["spec"]["nodeName"].as_str().context("the Pod is bound")?.to_owned();
        // The taint manager deletes it, as it does when a node is called unreachable.
        world.stack.kubectl().run(["taint", "node", &node, "test=lost:NoExecute"]).await?;
        let look = || async {
            let pod = world.stack.kubectl().get_json(["pod", "pod-0", "-n", &namespace]).await;
            match pod {
                Ok(pod) if pod["metadata"]["uid"] == first.as_str() => Err("still the old Pod".to_owned()),
                _ => Ok(()),
            }
        };
        world.stack.eventually("the end of the old Pod", SOON, look).await?;
        world.stack.kubectl().run(["taint", "node", &node, "test:NoExecute-"]).await?;
        running_pod(world, &job, Some(&first)).await?;
        undisturbed(world, &job).await?;
        job.delete(world).await
    });
}

#[test]
fn a_lost_node_is_made_again_and_ends_nothing() {
    scenario(async |world| {
        let namespace = world.namespace("lost").await?;
        let job = Job::new(&namespace, "node", 1000, 5, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        running_pod(world, &job, None).await?;
        let pod = world.stack.kubectl().get_json(["pod", "node-0", "-n", &namespace]).await?;
        let node = pod["spec"]["nodeName"].as_str().context("the Pod is bound")?.to_owned();
        let uid = |node: serde_json::Value| node["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let first = uid(world.stack.kubectl().get_json(["node", &node]).await?);
        world.stack.kubectl().run(["delete", "node", &node, "--wait=false"]).await?;
        let look = || async {
            let found = world.stack.kubectl().get_json(["node", &node]).await.map_err(|e| e.to_string())?;
            if uid(found) == first { Err("still the old Node".to_owned()) } else { Ok(()) }
        };
        world.stack.eventually("the Node made again", SOON, look).await?;
        running_pod(world, &job, None).await?;
        undisturbed(world, &job).await?;
        job.delete(world).await
    });
}
