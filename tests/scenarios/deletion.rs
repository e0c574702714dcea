//! The job deleted: machine gone, objects gone, in whatever phase.

use anyhow::{Result, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;

use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

async fn nothing_left(world: &World, job: &Job) -> Result<()> {
    job.delete(world).await?;
    world.all_gone().await?;
    let look = || async {
        let left = world.stack.kubectl().run(["get", "tj,pods", "-n", &job.namespace, "-o", "name"]).await;
        let left = left.map_err(|e| e.to_string())?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    };
    // The garbage collector looks for new kinds every 30 s: in a young cluster it may not know ours yet.
    world.stack.eventually("the end of job and Pods", SOON * 2, look).await?;
    Ok(())
}

#[test]
fn deleted_while_renting() {
    scenario(async |world| {
        let namespace = world.namespace("deleted").await?;
        // The provider takes its time with the answer: the machine is there, nobody knows.
        world.stack.sim.add_fault(&json!({ "op": "rent", "when": "hang", "seconds": 2 })).await?;
        let job = Job::new(&namespace, "renting", 1000, 5, "0.1");
        job.apply(world).await?;
        world.rented(1).await?;
        let phase = job.now(world).await?.status.map(|s| s.phase);
        ensure!(phase == Some(JobPhase::Renting), "{phase:?}");
        nothing_left(world, &job).await
    });
}

#[test]
fn deleted_while_running() {
    scenario(async |world| {
        let namespace = world.namespace("deleted").await?;
        let job = Job::new(&namespace, "running", 1000, 5, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        nothing_left(world, &job).await
    });
}

#[test]
fn deleted_while_resuming() {
    scenario(async |world| {
        let namespace = world.namespace("deleted").await?;
        let job = Job::new(&namespace, "resuming", 1000, 5, "0.1");
        job.apply(world).await?;
        job.saved(world, 5, SOON).await?;
        let machine = world.running_machine(None).await?;
        // No second machine: it stays in search of one.
        world.stack.sim.add_fault(&json!({ "op": "rent", "status": 503, "times": 1000 })).await?;
        world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
        job.until(world, "the second attempt", SOON, |job| {
            let attempt = job.status.as_ref().and_then(|s| s.attempt);
            if attempt == Some(1) { Ok(()) } else { Err(format!("{attempt:?}")) }
        })
        .await?;
        nothing_left(world, &job).await?;
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "{machines:#?}");
        Ok(())
    });
}

#[test]
fn pods_of_a_finished_job_go_after_their_time_and_the_job_stays() {
    scenario(async |world| {
        let namespace = world.namespace("ttl").await?;
        let job = Job::new(&namespace, "done", 5, 5, "0.05").with(json!({ "ttlAfterFinished": "3s" }));
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, SOON).await?;
        let pods = ["get", "pods", "-n", &namespace, "-o", "name"];
        ensure!(!world.stack.kubectl().run(pods).await?.trim().is_empty(), "gone before its time");
        let look = || async {
            let left = world.stack.kubectl().run(pods).await.map_err(|e| e.to_string())?;
            if left.trim().is_empty() { Ok(()) } else { Err(left) }
        };
        world.stack.eventually("the end of the Pods", SOON, look).await?;
        let phase = job.now(world).await?.status.map(|s| s.phase);
        ensure!(phase == Some(JobPhase::Complete), "{phase:?}");
        world.all_gone().await
    });
}
