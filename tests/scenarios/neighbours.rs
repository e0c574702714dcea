//! Others beside us: another installation on the same account and bucket, strangers' Pods on our Node; and an administrator who pauses an
//! account or deletes a namespace.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_harness::StackOptions;
use tradewind_harness::stack::Beside;

use crate::checks::{finished_right, newest_bytes};
use crate::job::Job;
use crate::world::{SOON, VAST, World, market, scenario};

const MINUTE: Duration = Duration::from_mins(1);

/// The job of the second installation, once `look` is content with it.
async fn job_beside<T>(
    world: &World,
    beside: &Beside,
    job: &Job,
    what: &str,
    look: impl Fn(&Value) -> Result<T, String>,
) -> Result<T> {
    let read = || async {
        let found = beside.kubectl().get_json(["tj", &job.name, "-n", &job.namespace]).await;
        look(&found.map_err(|e| e.to_string())?["status"])
    };
    Ok(world.stack.eventually(what, MINUTE, read).await?)
}

fn is_complete(status: &Value) -> Result<String, String> {
    let cost = status["cost"]["total"].as_str().unwrap_or_default().to_owned();
    if status["phase"] == "Complete" { Ok(cost) } else { Err(format!("{}: {}", status["phase"], status["message"])) }
}

#[test]
fn two_installations_on_one_account_and_one_bucket_leave_each_other_alone() {
    scenario(async |world| {
        // What no claim of its own knows is ended after five seconds: the other one's machines run for longer.
        let options = StackOptions::new("beside", market()).operator_flag("orphan-age", "2s");
        let mut beside = world.stack.beside(options).await?;
        let theirs = beside.plane.namespace("beside").await?;
        world.stack.grant_beside(&beside, &theirs).await?;
        let ours = world.namespace("beside").await?;
        let (here, there) = (Job::new(&ours, "run", 120, 20, "0.1"), Job::new(&theirs, "run", 120, 20, "0.1"));
        here.apply(world).await?;
        beside.kubectl().apply(&there.manifest.to_string()).await?;
        world.rented(2).await?;

        // A third job, of the second installation, at the place of our run.
        let twin = Job::new(&theirs, "twin", 5, 5, "0.1").with(json!({ "checkpoint": { "to": here.location } }));
        here.saved(world, 20, SOON).await?;
        beside.kubectl().apply(&twin.manifest.to_string()).await?;
        let told = job_beside(world, &beside, &twin, "the refusal of a place in use", |status| {
            let accepted = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Accepted");
            match accepted {
                Some(c) if c["reason"] == "CheckpointLocationInUse" => Ok(c["message"].to_string()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        ensure!(told.contains(&format!("{ours}/run")), "it names who is there: {told}");

        let done = here.phase(world, JobPhase::Complete, MINUTE).await?;
        let cost = job_beside(world, &beside, &there, "the second installation's job", is_complete).await?;
        let status = done.status.context("a status")?;
        ensure!((status.attempt, status.preemptions) == (Some(0), 0), "somebody ended our machine: {status:?}");
        ensure!(newest_bytes(world, &here.location).await? == here.undisturbed()?);
        ensure!(newest_bytes(world, &there.location).await? == there.undisturbed()?);
        world.all_gone().await?;
        ensure!(world.machines().await?.len() == 2, "{:#?}", world.machines().await?);
        let theirs: tradewind_core::Money = cost.parse()?;
        world.bill_is_right((status.cost.total + theirs).micros(), Duration::ZERO).await?;
        beside.operator.stop().await?;
        Ok(())
    });
}

#[test]
fn a_strangers_pod_on_our_node_is_told_and_costs_nothing() {
    scenario(async |world| {
        let namespace = world.namespace("stranger").await?;
        let kubectl = world.stack.kubectl();
        let nodes = kubectl.get_json(["nodes", "-l", "type=virtual-kubelet"]).await?;
        let node = nodes["items"][0]["metadata"]["name"].as_str().context("our Node")?.to_owned();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": namespace, "name": "lost" },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "train:1" }] },
        });
        world.stack.apply(&pod.to_string()).await?;
        let told = || async {
            let events = kubectl.get_json(["events", "-n", &namespace]).await.map_err(|e| e.to_string())?;
            let items = events["items"].as_array().cloned().unwrap_or_default();
            items.iter().find(|e| e["reason"] == "NotARentalNode").map(drop).ok_or(format!("{items:?}"))
        };
        world.stack.eventually("the Event about a stranger's Pod", SOON, told).await?;
        ensure!(world.machines().await?.is_empty());
        // No kubelet completes its deletion; we do.
        kubectl.run(["delete", "pod", "lost", "-n", &namespace, "--timeout=20s"]).await?;
        Ok(())
    });
}

#[test]
fn a_paused_provider_rents_nothing_and_what_runs_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("paused").await?;
        let pause = async |paused: bool| {
            let patch = json!({ "spec": { "paused": paused } }).to_string();
            world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await
        };
        let running = Job::new(&namespace, "runs", 100, 20, "0.1");
        running.apply(world).await?;
        running.saved(world, 20, SOON).await?;
        pause(true).await?;
        let waiting = Job::new(&namespace, "waits", 10, 5, "0.1");
        waiting.apply(world).await?;
        let message = waiting.until(world, "a word about the pause", SOON, |job| {
            let status = job.status.as_ref().ok_or("no status")?;
            let says = status.message.contains("paused");
            if says && status.phase == JobPhase::Waiting {
                Ok(status.message.clone())
            } else {
                Err(status.message.clone())
            }
        });
        let message = message.await?;
        eprintln!("{message}");
        let done = running.phase(world, JobPhase::Complete, MINUTE).await?;
        ensure!(done.status.context("a status")?.attempt == Some(0), "what runs goes on");
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        pause(false).await?;
        waiting.phase(world, JobPhase::Complete, MINUTE).await?;
        Ok(())
    });
}

#[test]
fn a_deleted_namespace_takes_its_machine_along() {
    scenario(async |world| {
        let namespace = world.namespace("whole").await?;
        let (runs, other) =
            (Job::new(&namespace, "runs", 1000, 10, "0.1"), Job::new(&namespace, "other", 1000, 10, "0.1"));
        runs.apply(world).await?;
        other.apply(world).await?;
        runs.saved(world, 10, SOON).await?;
        world.rented(2).await?;
        world.stack.kubectl().run(["delete", "namespace", &namespace, "--timeout=60s"]).await?;
        world.all_gone().await?;
        ensure!(world.machines().await?.iter().all(|m| !m.paid), "{:#?}", world.machines().await?);
        Ok(())
    });
}

#[test]
fn a_drained_pod_of_a_finished_job_hangs_nowhere() {
    scenario(async |world| {
        let namespace = world.namespace("after").await?;
        let job = Job::new(&namespace, "done", 5, 5, "0.05");
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, SOON).await?;
        finished_right(world, &job).await?;
        world.stack.kubectl().run(["delete", "pod", "done-0", "-n", &namespace, "--timeout=20s"]).await?;
        let phase = job.now(world).await?.status.map(|s| s.phase);
        ensure!(phase == Some(JobPhase::Complete), "its Pod may go, its end stays: {phase:?}");
        job.delete(world).await
    });
}
