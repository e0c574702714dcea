//! One worker on the cluster's own nodes.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::job::Job;
use crate::nodes::{Cluster, PATIENCE, counts, homely, patch, record, saved_and_went_on, told, works};
use crate::world::{SOON, scenario};

#[test]
fn one_worker_runs_to_its_end() {
    scenario(async |world| {
        let namespace = world.namespace("home").await?;
        let cluster = Cluster::start(world, "one", 1, 1).await?;
        let job = homely(&namespace, "run", 40, 5, "0.1");
        job.apply(world).await?;
        job.saved(world, 5, PATIENCE).await?;
        let logs = world.stack.kubectl().run(["logs", "run-0", "-n", &namespace]).await?;
        ensure!(logs.contains("starting from step 0") && logs.contains("step 5/40"), "{logs}");
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!(counts(&done) == (0, 0, 0) && record(&done, 0)?.ended == "Finished", "{:?}", done.status);
        let status = done.status.unwrap_or_default();
        ensure!(status.placement.is_some_and(|p| p.summary == "cluster"), "in the cluster");
        ensure!(
            status.cost.total.micros() == 0 && status.checkpoint.is_some_and(|c| c.step == 40),
            "{:?}",
            status.cost
        );
        ensure!(world.machines().await?.is_empty(), "nothing is rented");
        ensure!(cluster.log(&job, "run-0").contains("step 40/40"), "{}", cluster.log(&job, "run-0"));
        finished_right(world, &job).await?;
        cluster.end(world).await
    });
}

#[test]
fn a_deleted_pod_saves_and_the_job_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("home").await?;
        let cluster = Cluster::start(world, "deleted", 1, 1).await?;
        // It saves nothing by itself before its end.
        let job = homely(&namespace, "run", 80, 80, "0.1");
        job.apply(world).await?;
        works(world, &job).await?;
        world.stack.kubectl().run(["delete", "pod", "run-0", "-n", &namespace, "--timeout=60s"]).await?;
        saved_and_went_on(world, &job, "PodDeleted", (0, 0, 0)).await?;
        cluster.end(world).await
    });
}

#[test]
fn suspended_it_holds_no_gpu_and_goes_on() {
    scenario(async |world| {
        let namespace = world.namespace("home").await?;
        let cluster = Cluster::start(world, "suspended", 1, 1).await?;
        let job = homely(&namespace, "run", 80, 80, "0.1");
        job.apply(world).await?;
        works(world, &job).await?;
        patch(world, &job, json!({ "suspend": true })).await?;
        job.phase(world, JobPhase::Suspended, PATIENCE).await?;
        let running = cluster.nodes[0].all_processes();
        ensure!(running.is_empty(), "{running:?}");
        patch(world, &job, json!({ "suspend": false })).await?;
        saved_and_went_on(world, &job, "Suspended", (0, 0, 0)).await?;
        cluster.end(world).await
    });
}

/// A program of these shell commands, instead of the usual one.
fn shell(job: Job, script: &str) -> Job {
    job.container(json!({ "command": ["sh", "-c", script], "args": null }))
}

#[test]
fn a_program_that_saves_elsewhere_is_told_so() {
    scenario(async |world| {
        let namespace = world.namespace("odd").await?;
        let cluster = Cluster::start(world, "elsewhere", 1, 1).await?;
        let script = "mkdir elsewhere; i=0; while sleep 0.2; do i=$((i+1)); echo step $i/9999; echo $i >elsewhere/step-$i.txt; done";
        let job = shell(homely(&namespace, "run", 1, 1, "0"), script);
        job.apply(world).await?;
        let note = told(world, &job, "NothingSaved", &["nothing in checkpoint.path (ckpt) matched"]).await?;
        ensure!(note.contains("checkpoint.pattern (step-{step}.txt)") && note.contains("would be lost"), "{note}");
        ensure!(job.now(world).await?.status.is_some_and(|s| s.phase == JobPhase::Running), "it goes on");
        job.delete(world).await?;
        cluster.end(world).await
    });
}

#[test]
fn a_program_that_begins_anew_is_told_so() {
    scenario(async |world| {
        let namespace = world.namespace("odd").await?;
        let cluster = Cluster::start(world, "anew", 1, 1).await?;
        // It never reads what it has saved.
        let script = "mkdir -p ckpt; i=0; while sleep 0.1; do i=$((i+1)); echo step $i/9999; [ $((i % 20)) != 0 ] || echo $i >ckpt/step-$i.txt; done";
        let job = shell(homely(&namespace, "run", 1, 1, "0"), script);
        job.apply(world).await?;
        job.saved(world, 20, PATIENCE).await?;
        world.stack.kubectl().run(["delete", "pod", "run-0", "-n", &namespace, "--timeout=60s"]).await?;
        let note = told(world, &job, "NotResumed", &["attempt 1 was given the checkpoint of step"]).await?;
        ensure!(note.contains("does it read TRADEWIND_RESUME_PATH"), "{note}");
        job.delete(world).await?;
        cluster.end(world).await
    });
}

#[test]
fn a_restricted_namespace_with_gpu_limits_takes_our_pods() {
    scenario(async |world| {
        let namespace = world.namespace("strict").await?;
        let cluster = Cluster::start(world, "strict", 1, 1).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        world.stack.kubectl().run(["label", "namespace", &namespace, label]).await?;
        // Without a GPU limit of its own the init container would ask for one too: `max` is a default.
        let limits = json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "gpus", "namespace": namespace },
            "spec": { "limits": [{ "type": "Container", "max": { "nvidia.com/gpu": "1" } }] },
        });
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "gpus", "namespace": namespace },
            "spec": { "hard": { "requests.nvidia.com/gpu": "1" } },
        });
        world.stack.apply(&limits.to_string()).await?;
        world.stack.apply(&quota.to_string()).await?;
        let restricted = json!({ "template": { "spec": { "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
        } } } });
        let own =
            json!({ "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } });
        let job = homely(&namespace, "run", 10, 5, "0.1").with(restricted).container(own);
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, PATIENCE).await?;
        finished_right(world, &job).await?;
        // What the namespace does not allow is said in its own words.
        let lax = homely(&namespace, "lax", 10, 5, "0.1");
        lax.apply(world).await?;
        let look = |job: &tradewind_api::TrainingJob| {
            let conditions = job.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            let refused = conditions.iter().find(|c| c.status == "False" && c.message.contains("violates PodSecurity"));
            refused.map(|c| (c.type_.clone(), c.reason.clone())).ok_or_else(|| format!("{conditions:#?}"))
        };
        let said = lax.until(world, "the refusal", SOON, look).await?;
        println!("{said:?}");
        lax.delete(world).await?;
        cluster.end(world).await
    });
}

#[test]
fn a_gated_pod_waits_for_whoever_gated_it() {
    scenario(async |world| {
        let namespace = world.namespace("gated").await?;
        let cluster = Cluster::start(world, "gated", 1, 1).await?;
        let gates = json!({ "schedulingGates": [{ "name": "example.com/quota" }] });
        let job = homely(&namespace, "run", 10, 5, "0.1").with(json!({
            "placement": { "inCluster": "Prefer", "burstAfter": "1s" }, "template": { "spec": gates },
        }));
        job.apply(world).await?;
        let message = job.condition(world, "Placed", "False", "Gated", SOON).await?;
        ensure!(message.contains("example.com/quota"), "{message}");
        // Longer than burstAfter: nothing is counted.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let status = job.now(world).await?.status.unwrap_or_default();
        ensure!(status.unschedulable_since.is_none() && world.machines().await?.is_empty(), "{status:?}");
        let open = json!([{ "op": "remove", "path": "/spec/schedulingGates" }]).to_string();
        world.stack.kubectl().run(["patch", "pod", "run-0", "-n", &namespace, "--type=json", "-p", &open]).await?;
        job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!(world.machines().await?.is_empty(), "there was room in the cluster");
        finished_right(world, &job).await?;
        cluster.end(world).await
    });
}
