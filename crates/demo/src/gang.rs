//! The other story: four workers on the cluster's own nodes, one of which loses its power.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{process::Command, task::JoinHandle, time::Instant};
use tradewind_api::{TrainingJob, training_job::JobPhase};
use tradewind_harness::{FakeNode, FakeNodeOptions, Images, Stack, free_port};

use crate::{
    image,
    outbid::step_of,
    screen::{Screen, Who},
    show::{GANG, NAMESPACE, argument, manifest},
};

/// Its manifest, below the project's root.
pub const MANIFEST: &str = "deploy/demo/gang.yaml";

/// Workers, as in the manifest.
const WORKERS: usize = 4;
/// Two of the nodes have just enough room for all workers, so that one may go.
const NODES: &[&str] = &["node-a", "node-b", "node-c"];
const CPUS: &str = "2";
/// A node renews its Lease four times as often.
const LEASE_SECONDS: u32 = 4;
/// A node that is silent for so long is dead: a Lease's length and a busy moment of this machine.
pub const NODE_GRACE: Duration = Duration::from_secs(5);
/// The node dies once a checkpoint of this step counts: two saves, so that it is not the first that is gone on from.
const LOST_AFTER: i64 = 80;
/// Time between two lines with step and loss.
const STEP_LINES: Duration = Duration::from_secs(2);

/// Adds the cluster's own nodes. They have no GPUs: the other job finds no room on them.
pub async fn nodes(stack: &Stack, images: &image::Images) -> Result<Vec<FakeNode>> {
    let images = Images::with_agent()?.directory("demo/gang:1", &images.gang);
    let mut nodes = Vec::new();
    for name in NODES {
        let options = FakeNodeOptions::new(name, &images).capacity("cpu", CPUS).lease_seconds(LEASE_SECONDS);
        nodes.push(stack.add_node(options).await?);
    }
    Ok(nodes)
}

/// The node that was lost.
#[derive(Debug, Clone)]
pub struct Lost {
    /// Its name.
    pub node: String,
    /// The workers on it.
    pub workers: Vec<usize>,
    /// Step of the newest checkpoint then.
    pub checkpoint: i64,
    /// How long it took until all workers ran again.
    pub back_after: Option<Duration>,
    at: Instant,
}

/// What was told of the job last.
#[derive(Default)]
struct Said {
    message: String,
    checkpoint: i64,
    attempts: usize,
    lines: usize,
    attempt: i64,
    steps_at: Option<Instant>,
}

/// Tells the gang's story and lets its misfortune happen.
pub struct Gang<'a> {
    screen: &'a Screen,
    nodes: &'a [FakeNode],
    said: Said,
    /// The misfortune, once it has happened.
    pub lost: Option<Lost>,
    undisturbed: Option<JoinHandle<Result<Vec<u8>>>>,
}

impl<'a> Gang<'a> {
    /// Nothing has happened yet.
    pub fn new(screen: &'a Screen, nodes: &'a [FakeNode], image: &Path) -> Self {
        // Beside the story: it takes a second or two.
        let undisturbed = Some(tokio::spawn(undisturbed(image.to_owned())));
        Self { screen, nodes, said: Said::default(), lost: None, undisturbed }
    }

    /// Looks at everything once, tells what is new, and pulls the plug when it is time.
    pub async fn look(&mut self, stack: &Stack) -> Result<TrainingJob> {
        let job = stack.job(NAMESPACE, GANG).await?;
        self.tell(&job);
        self.program();
        self.misfortune(&job).await;
        Ok(job)
    }

    fn tell(&mut self, job: &TrainingJob) {
        let (Some(status), said) = (&job.status, &mut self.said) else { return };
        if let Some(checkpoint) = status.checkpoint.as_ref().filter(|c| c.seq > said.checkpoint) {
            said.checkpoint = checkpoint.seq;
            let step = checkpoint.step;
            self.screen.say(Who::Gang, &format!("checkpoint of step {step} is uploaded, verified and counts"));
        }
        for record in status.history.iter().skip(said.attempts) {
            // Why was told when it began to end.
            let is_known = said.message.starts_with(&record.message);
            let why = if is_known { String::new() } else { format!(": {}", record.message) };
            let next = status.message.strip_prefix(&record.message).unwrap_or_default();
            let line = format!("attempt {} is over{why} ({}){next}", record.attempt, record.ended);
            self.screen.say(Who::Gang, &line);
            said.message.clone_from(&status.message);
        }
        said.attempts = status.history.len();
        if status.message != said.message && !status.phase.is_terminal() {
            self.screen.say(Who::Gang, &status.message);
            said.message.clone_from(&status.message);
        }
        let attempt = status.attempt.unwrap_or(0);
        if attempt != said.attempt {
            (said.attempt, said.lines) = (attempt, 0);
        }
    }

    /// What worker 0 prints.
    fn program(&mut self) {
        let log = self.log(self.said.attempt, 0);
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines().skip(self.said.lines) {
            self.said.lines += 1;
            if !is_programs(line) {
                continue;
            }
            if step_of(line).is_some() {
                if self.said.steps_at.is_some_and(|at| at.elapsed() < STEP_LINES) {
                    continue;
                }
                self.said.steps_at = Some(Instant::now());
            }
            self.screen.say(Who::Gang, &format!("worker 0 prints: {line}"));
        }
    }

    async fn misfortune(&mut self, job: &TrainingJob) {
        let Some(status) = &job.status else { return };
        if let Some(lost) = &mut self.lost {
            let is_back = status.attempt > Some(0) && status.phase == JobPhase::Running;
            if is_back && lost.back_after.is_none() {
                lost.back_after = Some(lost.at.elapsed());
                if let Some(node) = self.nodes.iter().find(|node| node.name() == lost.node) {
                    // Nobody waits for what is frozen there any more.
                    node.kill().await;
                }
            }
            return;
        }
        let checkpoint = status.checkpoint.as_ref().map_or(0, |c| c.step);
        let last = pod(0, WORKERS - 1);
        let on = |node: &&FakeNode| node.pod_directory(NAMESPACE, &last).is_some();
        let Some(node) = self.nodes.iter().find(on).filter(|_| checkpoint >= LOST_AFTER) else { return };
        let workers: Vec<usize> =
            (0..WORKERS).filter(|rank| node.pod_directory(NAMESPACE, &pod(0, *rank)).is_some()).collect();
        // Who is connected to a machine without power hears nothing at all, not even an end: its processes are frozen, not killed.
        node.partition().await;
        for process in node.all_processes() {
            process.freeze(true);
        }
        let list = workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let line = format!(
            "{} loses its power, and the gang its {} {list}; the others wait for an answer that does not come",
            node.name(),
            if workers.len() == 1 { "worker" } else { "workers" }
        );
        self.screen.say(Who::Demo, &line);
        self.lost =
            Some(Lost { node: node.name().to_owned(), workers, checkpoint, back_after: None, at: Instant::now() });
    }

    /// What a worker has printed.
    pub fn log(&self, attempt: i64, rank: usize) -> String {
        let logs = self.nodes.iter().map(|node| node.log(NAMESPACE, &pod(attempt, rank), "train"));
        logs.max_by_key(String::len).unwrap_or_default()
    }

    /// The lines with which the workers of an attempt began.
    pub fn beginnings(&self, attempt: i64) -> Vec<String> {
        let first = |rank| self.log(attempt, rank).lines().find(|l| is_programs(l)).unwrap_or("nothing").to_owned();
        (0..WORKERS).map(first).collect()
    }

    /// The last save of the same program when nobody disturbs it.
    pub async fn undisturbed(&mut self) -> Result<Vec<u8>> {
        self.undisturbed.take().context("it was asked for once")?.await?
    }
}

/// The agent writes there too.
fn is_programs(line: &str) -> bool {
    !line.starts_with("tradewind: ")
}

/// Name of a worker's Pod.
fn pod(attempt: i64, rank: usize) -> String {
    format!("{GANG}-{attempt}-{rank}")
}

/// Runs four processes here that meet at an address of this machine, without cluster and operator.
async fn undisturbed(image: std::path::PathBuf) -> Result<Vec<u8>> {
    let directory = image.with_extension("undisturbed");
    let port = free_port()?.to_string();
    let manifest = manifest(MANIFEST)?;
    let last = argument(&manifest, "--steps=")?;
    let arguments = manifest.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array);
    let words = arguments.into_iter().flatten().filter_map(Value::as_str);
    // As fast as it can, and each worker into a directory of its own.
    let words: Vec<&str> = words.filter(|word| !word.starts_with("--sleep=") && !word.starts_with("--out=")).collect();
    let mut workers = Vec::new();
    for rank in 0..WORKERS {
        let out = directory.join(rank.to_string());
        std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
        let worker = Command::new(image.join("bin/python3"))
            .arg("train.py")
            .args(&words)
            .arg("--out")
            .arg(&out)
            .current_dir(&image)
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port), ("OPENBLAS_NUM_THREADS", "1")])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", WORKERS.to_string())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the undisturbed gang")?;
        workers.push(worker);
    }
    for mut worker in workers {
        let status = worker.wait().await?;
        ensure!(status.success(), "a worker of the undisturbed gang ended with {status}");
    }
    let path = directory.join(format!("0/step-{last:06}.npz"));
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::location;

    #[test]
    fn the_manifest_is_the_one_that_the_story_is_about() {
        let manifest = manifest(MANIFEST).unwrap();
        assert_eq!(manifest["metadata"]["name"], GANG);
        assert_eq!(manifest["spec"]["workers"], WORKERS);
        assert_eq!(manifest["spec"]["checkpoint"]["to"], location(GANG));
        let container = &manifest["spec"]["template"]["spec"]["containers"][0];
        // All on one node less, and not on two less.
        let cpus: usize = container["resources"]["requests"]["cpu"].as_str().unwrap().parse().unwrap();
        assert_eq!(WORKERS * cpus, (NODES.len() - 1) * CPUS.parse::<usize>().unwrap());
        assert!(argument(&manifest, "--steps=").unwrap() > u64::try_from(LOST_AFTER).unwrap() * 2);
    }
}
