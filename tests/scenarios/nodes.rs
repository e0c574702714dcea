//! The cluster's own nodes, which this program plays, and jobs for them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::TrainingJob;
use tradewind_api::training_job::{AttemptRecord, JobPhase};
use tradewind_harness::{Binaries, FakeNode, FakeNodeOptions, Images, project_root, stack::AGENT_IMAGE};

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::World;

/// A node plays kubelet for real processes on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// Seconds that a worker has to stop: enough for a save and its upload, and so few that a dead node is not waited for long.
pub const GRACE_S: u64 = 12;
/// An agent larger than this carries what debuggers read.
const LEAN_AGENT: u64 = 16 << 20;

/// Nodes of the cluster.
pub struct Cluster {
    /// In the order of their names.
    pub nodes: Vec<FakeNode>,
}

impl Cluster {
    /// Adds so many nodes with so many GPUs each, called `<name>-<n>`.
    pub async fn start(world: &World, name: &str, count: usize, gpus: u32) -> Result<Self> {
        let images = images(world)?;
        let node = |n: usize| FakeNodeOptions::new(&format!("{name}-{n}"), &images).gpus(gpus);
        Self::of(world, (0..count).map(node)).await
    }

    /// Adds these nodes.
    pub async fn of(world: &World, nodes: impl Iterator<Item = FakeNodeOptions>) -> Result<Self> {
        let starts: Vec<_> = nodes.map(|node| world.stack.add_node(node)).collect();
        Ok(Self { nodes: futures::future::try_join_all(starts).await? })
    }

    /// The node that a Pod is on.
    pub async fn node_of(&self, world: &World, job: &Job, pod: &str) -> Result<&FakeNode> {
        let name = bound(world, job, pod).await?;
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name:?} here"))
    }

    /// What the program of a Pod has printed, on whatever node.
    pub fn log(&self, job: &Job, pod: &str) -> String {
        self.nodes.iter().map(|node| node.log(&job.namespace, pod, "train")).collect()
    }

    /// Removes all of them, once nothing runs on them any more: what is left of a Pod whose node is gone stays for a minute.
    pub async fn end(self, world: &World) -> Result<()> {
        let look = || async {
            let pods = world.stack.kubectl().get_json(["pods", "-A"]).await.map_err(|e| e.to_string())?;
            let ours = |name: &str| self.nodes.iter().any(|node| node.name() == name);
            let over = |pod: &Value| pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed";
            let all = pods["items"].as_array().into_iter().flatten();
            let left = all.filter(|pod| ours(pod["spec"]["nodeName"].as_str().unwrap_or_default()) && !over(pod));
            let names: Vec<_> = left.map(|pod| pod["metadata"]["name"].to_string()).collect();
            if names.is_empty() { Ok(()) } else { Err(names.join(", ")) }
        };
        world.stack.eventually("the end of all Pods on the nodes", PATIENCE, look).await?;
        for node in self.nodes {
            node.delete().await?;
        }
        Ok(())
    }
}

/// The images of the scenarios. The agent is copied into every Pod, so it is one without what debuggers read.
pub fn images(world: &World) -> Result<Images> {
    let root = project_root().join("tests/scenarios/images");
    let images = Images::new().agent(AGENT_IMAGE, lean_agent(world)?);
    Ok(images.directory("train:1", root.join("train")).directory("gang:1", root.join("gang")))
}

fn lean_agent(world: &World) -> Result<PathBuf> {
    let agent = Binaries::locate()?.agent;
    let lean = world.stack.directory().join("lean-agent");
    if std::fs::metadata(&agent)?.len() <= LEAN_AGENT || lean.exists() {
        return Ok(if lean.exists() { lean } else { agent });
    }
    let stripped = Command::new("strip").arg("-o").arg(&lean).arg(&agent).status();
    // Without the tool it is only slower.
    Ok(if stripped.is_ok_and(|status| status.success()) { lean } else { agent })
}

/// A job of one worker that runs in the cluster and nowhere else.
pub fn homely(namespace: &str, name: &str, steps: u64, every: u64, pause: &str) -> Job {
    Job::new(namespace, name, steps, every, pause).with(json!({
        "placement": { "inCluster": "Only" },
        "template": { "spec": { "terminationGracePeriodSeconds": GRACE_S } },
    }))
}

/// A job of so many workers that add up what they have learned.
pub fn gang(namespace: &str, name: &str, workers: u64, steps: u64, every: u64, pause: &str) -> Job {
    homely(namespace, name, steps, every, pause)
        .with(json!({ "workers": workers }))
        .container(json!({ "image": "gang:1", "command": ["gang"] }))
}

/// The node that a Pod is bound to; empty if it is not, or there is no such Pod.
pub async fn bound(world: &World, job: &Job, pod: &str) -> Result<String> {
    let arguments = ["get", "pod", pod, "-n", &job.namespace, "--ignore-not-found", "-o", "jsonpath={.spec.nodeName}"];
    Ok(world.stack.kubectl().run(arguments).await?)
}

/// Changes a job's spec.
pub async fn patch(world: &World, job: &Job, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    world.stack.kubectl().run(["patch", "tj", &job.name, "-n", &job.namespace, "--type=merge", "-p", &patch]).await?;
    Ok(())
}

/// Waits for an Event about the job with this reason and these words; gives back its note.
pub async fn told(world: &World, job: &Job, reason: &str, words: &[&str]) -> Result<String> {
    let look = || async {
        let events = job.events(world).await.map_err(|e| e.to_string())?;
        let fits = |(r, note): &&(String, String)| r == reason && words.iter().all(|word| note.contains(word));
        events.iter().find(fits).map(|(_, note)| note.clone()).ok_or_else(|| format!("{events:#?}"))
    };
    Ok(world.stack.eventually(&format!("an Event {reason} with {words:?}"), PATIENCE, look).await?)
}

/// Waits until the job is known to have done some steps: a program that has done nothing when it is told to stop has nothing to save.
pub async fn works(world: &World, job: &Job) -> Result<()> {
    let look = |job: &TrainingJob| {
        let step = job.status.as_ref().and_then(|status| Some(status.progress.as_ref()?.step));
        if step >= Some(2) { Ok(()) } else { Err(format!("step {step:?}")) }
    };
    job.until(world, "two steps", PATIENCE, look).await?;
    Ok(())
}

/// How often the job was disrupted, failed and hung.
pub fn counts(job: &TrainingJob) -> (i64, i64, i64) {
    job.status.as_ref().map_or((-1, -1, -1), |s| (s.preemptions, s.restarts, s.stalls))
}

/// How an attempt went.
pub fn record(job: &TrainingJob, attempt: i64) -> Result<&AttemptRecord> {
    let history = &job.status.as_ref().context("a status")?.history;
    history
        .iter()
        .find(|r| r.attempt == attempt)
        .with_context(|| format!("no record of attempt {attempt}: {history:#?}"))
}

/// Waits for the end: Complete with the weights of an undisturbed run, nothing rented, attempt 0 ended for this reason, attempt 1 went on from
/// a checkpoint and is the last.
pub async fn went_on(world: &World, job: &Job, ended: &str, counted: (i64, i64, i64)) -> Result<TrainingJob> {
    let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
    let (first, second) = (record(&done, 0)?, record(&done, 1)?);
    ensure!(first.ended == ended && first.place == "cluster", "{first:?}");
    ensure!(second.ended == "Finished" && second.from_step >= Some(1), "{second:?}");
    ensure!(counts(&done) == counted, "preemptions, restarts, stalls: {:?}, wanted {counted:?}", counts(&done));
    ensure!(world.machines().await?.is_empty(), "{:#?}", world.machines().await?);
    finished_right(world, job).await?;
    Ok(done)
}

/// As [`went_on`], and nothing of the work was lost: the last save was made, and went home, inside the grace period.
pub async fn saved_and_went_on(world: &World, job: &Job, ended: &str, counted: (i64, i64, i64)) -> Result<TrainingJob> {
    let done = went_on(world, job, ended, counted).await?;
    let (first, second) = (record(&done, 0)?, record(&done, 1)?);
    ensure!(second.from_step >= first.last_step, "went on from {:?}, was at {:?}", second.from_step, first.last_step);
    Ok(done)
}
