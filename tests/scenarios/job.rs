//! Jobs of the scenarios.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tradewind_api::TrainingJob;
use tradewind_api::training_job::JobPhase;

use crate::world::World;

/// A job in its namespace.
pub struct Job {
    /// Where.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it saves.
    pub location: String,
    /// The TrainingJob.
    pub manifest: Value,
    steps: u64,
    every: u64,
}

impl Job {
    /// A job that trains so many steps with a pause after each, and saves every so many. It never waits for the cluster.
    pub fn new(namespace: &str, name: &str, steps: u64, every: u64, pause: &str) -> Self {
        let location = format!("s3://ckpt/{namespace}/{name}/");
        let manifest = json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": { "namespace": namespace, "name": name },
            "spec": {
                "gpu": { "count": 1, "models": ["RTX4090"] },
                "template": { "spec": { "containers": [{
                    "name": "train", "image": "train:1",
                    "command": ["train"], "args": [steps.to_string(), every.to_string(), pause],
                }] } },
                "checkpoint": {
                    "path": "ckpt", "pattern": "step-{step}.txt", "to": location, "secretRef": { "name": "s3" }, "interval": "1s",
                },
                "placement": { "inCluster": "Never" },
            },
        });
        Self { namespace: namespace.into(), name: name.into(), location, manifest, steps, every }
    }

    /// A job as it stands in a file. What its undisturbed run would save, the test must know by itself.
    pub fn of(manifest: Value) -> Result<Self> {
        let text = |path: &str| manifest.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        Ok(Self {
            namespace: namespace.context("a namespace")?,
            name: name.context("a name")?,
            location: text("/spec/checkpoint/to").unwrap_or_default(),
            manifest,
            steps: 0,
            every: 0,
        })
    }

    /// Changes the spec (a JSON merge patch).
    pub fn with(mut self, patch: Value) -> Self {
        merge(&mut self.manifest["spec"], patch);
        self
    }

    /// Changes the program's container.
    pub fn container(mut self, patch: Value) -> Self {
        merge(&mut self.manifest["spec"]["template"]["spec"]["containers"][0], patch);
        self
    }

    /// Applies it.
    pub async fn apply(&self, world: &World) -> Result<()> {
        world.stack.apply(&self.manifest.to_string()).await?;
        Ok(())
    }

    /// Deletes it and waits until the object is gone.
    pub async fn delete(&self, world: &World) -> Result<()> {
        world.stack.kubectl().run(["delete", "tj", &self.name, "-n", &self.namespace, "--timeout=30s"]).await?;
        Ok(())
    }

    /// As it is now.
    pub async fn now(&self, world: &World) -> Result<TrainingJob> {
        Ok(world.stack.job(&self.namespace, &self.name).await?)
    }

    /// Waits for a phase.
    pub async fn phase(&self, world: &World, phase: JobPhase, limit: Duration) -> Result<TrainingJob> {
        Ok(world.stack.wait_phase(&self.namespace, &self.name, phase, limit).await?)
    }

    /// Waits until `look` is content with it.
    pub async fn until<T>(
        &self,
        world: &World,
        what: &str,
        limit: Duration,
        look: impl Fn(&TrainingJob) -> Result<T, String>,
    ) -> Result<T> {
        Ok(world.stack.wait_job(&self.namespace, &self.name, what, limit, look).await?)
    }

    /// Waits until the condition has this status and reason; returns its message.
    pub async fn condition(
        &self,
        world: &World,
        type_: &str,
        status: &str,
        reason: &str,
        limit: Duration,
    ) -> Result<String> {
        let what = format!("condition {type_}={status}/{reason}");
        self.until(world, &what, limit, |job| {
            let conditions = job.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            match conditions.iter().find(|c| c.type_ == type_) {
                Some(c) if c.status == status && c.reason == reason => Ok(c.message.clone()),
                Some(c) => Err(format!("{type_}={}/{}: {}", c.status, c.reason, c.message)),
                None => Err(format!("no condition {type_}")),
            }
        })
        .await
    }

    /// Waits until a checkpoint of at least this step is in the catalogue, as the status tells it.
    pub async fn saved(&self, world: &World, step: i64, limit: Duration) -> Result<i64> {
        self.until(world, &format!("a checkpoint of step {step}"), limit, |job| {
            let saved = job.status.as_ref().and_then(|s| s.checkpoint.as_ref()).map_or(-1, |c| c.step);
            if saved >= step { Ok(saved) } else { Err(format!("newest is {saved}")) }
        })
        .await
    }

    /// Reasons and notes of all Events about it.
    pub async fn events(&self, world: &World) -> Result<Vec<(String, String)>> {
        Ok(world.stack.events_about(&self.namespace, &self.name).await?)
    }

    /// What an undisturbed run saves last: the same program in as many workers, run here without a pause.
    pub fn undisturbed(&self) -> Result<Vec<u8>> {
        let scratch = tempfile::tempdir()?;
        let container = &self.manifest["spec"]["template"]["spec"]["containers"][0];
        let name = if container["command"][0] == "gang" { "gang" } else { "train" };
        let program = tradewind_harness::project_root().join(format!("tests/scenarios/images/{name}/bin/{name}"));
        let arguments = [self.steps.to_string(), self.every.to_string(), "0".into()];
        let workers = self.manifest["spec"]["workers"].as_u64().unwrap_or(1);
        let port = free_port()?;
        let start = |rank: u64| {
            let directory = scratch.path().join(rank.to_string());
            std::fs::create_dir(&directory)?;
            let mut command = std::process::Command::new(&program);
            command.args(&arguments).current_dir(directory).stdout(std::process::Stdio::null());
            command.envs(gang_environment(rank, workers, port));
            // What makes a program fail or wait is no part of an undisturbed run.
            for variable in container["env"].as_array().into_iter().flatten().filter(|_| name == "gang") {
                let text = |field: &str| variable[field].as_str().unwrap_or_default().to_owned();
                command.env(text("name"), text("value"));
            }
            command.spawn()
        };
        let running = (0..workers).map(start).collect::<std::io::Result<Vec<_>>>()?;
        for mut worker in running {
            let status = worker.wait()?;
            anyhow::ensure!(status.success(), "{status}");
        }
        let last = |rank: u64| scratch.path().join(format!("{rank}/ckpt/step-{:06}.txt", self.steps));
        let parts = (0..workers).map(last).filter(|path| path.exists()).map(std::fs::read);
        let saved = parts.collect::<std::io::Result<Vec<_>>>()?.concat();
        anyhow::ensure!(!saved.is_empty(), "the undisturbed run has saved nothing");
        Ok(saved)
    }
}

/// What workers are told of each other, on this machine.
fn gang_environment(rank: u64, workers: u64, port: u16) -> Vec<(&'static str, String)> {
    let mut environment = vec![
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
        ("NODE_IPS", vec!["127.0.0.1"; usize::try_from(workers).unwrap_or(1)].join("\n")),
    ];
    environment.extend(["RANK", "NODE_RANK", "PET_NODE_RANK", "JAX_PROCESS_ID"].map(|name| (name, rank.to_string())));
    let sizes = ["WORLD_SIZE", "NUM_NODES", "PET_NNODES", "JAX_NUM_PROCESSES"];
    environment.extend(sizes.map(|name| (name, workers.to_string())));
    environment
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, value) in fields {
                if value.is_null() {
                    target.as_object_mut().expect("made one above").remove(&name);
                } else {
                    merge(&mut target[name], value);
                }
            }
        }
        other => *target = other,
    }
}
