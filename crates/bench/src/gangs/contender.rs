//! Who is measured: Tradewind or JobSet, each with a control plane of its own, so that neither finds what the other has left.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tradewind_api::names;
use tradewind_core::{Clock, SystemClock};
use tradewind_harness::{Plane, PlaneOptions, Process, RunDir, Stack, StackOptions, Tools, eventually, stack};

use super::Size;
use super::api::Api;
use super::crowd::Crowd;
use super::jobset::{self, JobSet};
use super::meter;
use super::pods::Pods;

/// The FlowSchema of whoever is measured.
pub const SCHEMA: &str = "bench-contender";
/// The FlowSchema of the job controller in kube-controller-manager, which makes JobSet's Pods.
pub const JOB_SCHEMA: &str = "bench-job-controller";
/// Its user.
pub const JOB_CONTROLLER: &str = "system:serviceaccount:kube-system:job-controller";
/// GPUs and room for Pods of a fake node.
const NODE_GPUS: u32 = 64;
/// A controller that is told to end has so long.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const LEAD_WITHIN: Duration = Duration::from_mins(1);

/// Which.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Tradewind,
    /// The yardstick.
    JobSet,
}

impl Kind {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tradewind => "Tradewind",
            Self::JobSet => "JobSet",
        }
    }
}

/// One of them with all that it runs in.
pub struct Contender {
    /// Which.
    pub kind: Kind,
    /// The namespace of its jobs.
    pub namespace: String,
    /// The administrator's requests.
    pub api: Api,
    /// The Pods of its jobs.
    pub pods: Pods,
    /// The agents of its Pods; nobody with JobSet.
    pub crowd: Option<Crowd>,
    world: World,
}

enum World {
    Tradewind(Box<Stack>),
    JobSet { jobset: Box<JobSet>, plane: Box<Plane>, run: RunDir },
}

/// How long a controller that was started again took.
#[derive(Debug, Clone, Copy)]
pub struct Restarted {
    /// Until it said that it is ready, in seconds.
    pub ready_s: f64,
    /// Until it led, in seconds.
    pub lead_s: f64,
}

impl Contender {
    /// Starts one with nodes for all jobs.
    pub async fn start(kind: Kind, size: &Size) -> Result<Self> {
        let options = PlaneOptions { audit: true, kwok: true, ..PlaneOptions::default() };
        let world = match kind {
            Kind::Tradewind => {
                // An account as on any installation; nothing is rented.
                let offer = json!({ "id": 1001, "gpu_name": "RTX 4090", "dph_base": 0.9, "min_bid": 0.1 });
                let account =
                    json!({ "kind": "vast", "apiKey": "key-of-the-measurements", "credit": 1000, "offers": [offer] });
                let market = json!({ "providers": { "vast": account } });
                let mut wanted = StackOptions::new("bench-gangs", market).production_intervals();
                wanted.plane = options;
                World::Tradewind(Box::new(Stack::start(wanted).await?))
            }
            Kind::JobSet => {
                let (tools, run) = (Tools::locate()?, RunDir::new("bench-jobset")?);
                let plane = Plane::start(&tools, run.path(), options).await?;
                let jobset = JobSet::start(&tools, &plane, run.path()).await?;
                World::JobSet { jobset: Box::new(jobset), plane: Box::new(plane), run }
            }
        };
        let plane = world.plane();
        let (system, account) = match kind {
            Kind::Tradewind => (stack::NAMESPACE, stack::SERVICE_ACCOUNT),
            Kind::JobSet => (jobset::NAMESPACE, jobset::ACCOUNT),
        };
        let schemas =
            [meter::schema(SCHEMA, system, account), meter::schema(JOB_SCHEMA, "kube-system", "job-controller")];
        let schemas = json!({ "apiVersion": "v1", "kind": "List", "items": schemas });
        plane.kubectl().apply(&schemas.to_string()).await?;
        nodes(plane, size).await?;
        let namespace = match &world {
            World::Tradewind(stack) => stack.namespace("bench").await?,
            World::JobSet { plane, .. } => plane.namespace("bench").await?,
        };
        let (tell, news) = mpsc::unbounded_channel();
        let label = if kind == Kind::Tradewind { names::JOB_NAME } else { jobset::LABEL };
        let pods = Pods::watch(plane.client().await?, &namespace, label, tell);
        let crowd = if kind == Kind::Tradewind { Some(Crowd::start(news)?) } else { None };
        let api = Api::new(plane.client().await?);
        Ok(Self { kind, namespace, api, pods, crowd, world })
    }

    /// Its control plane.
    pub fn plane(&self) -> &Plane {
        self.world.plane()
    }

    /// The object store's process; JobSet has none.
    pub fn store(&self) -> Option<u32> {
        match &self.world {
            World::Tradewind(stack) => Some(stack.s3.server.pid()),
            World::JobSet { .. } => None,
        }
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        match &self.world {
            World::Tradewind(stack) => &stack.operator.process,
            World::JobSet { jobset, .. } => &jobset.process,
        }
    }

    /// Who it is to the API server.
    pub fn user(&self) -> String {
        let (namespace, account) = match self.kind {
            Kind::Tradewind => (stack::NAMESPACE, stack::SERVICE_ACCOUNT),
            Kind::JobSet => (jobset::NAMESPACE, jobset::ACCOUNT),
        };
        format!("system:serviceaccount:{namespace}:{account}")
    }

    /// The plural of its jobs.
    pub fn plural(&self) -> &'static str {
        match self.kind {
            Kind::Tradewind => "trainingjobs",
            Kind::JobSet => "jobsets",
        }
    }

    /// The collection of its jobs.
    pub fn collection(&self) -> String {
        let group = match self.kind {
            Kind::Tradewind => "tradewind.dev/v1alpha1",
            Kind::JobSet => "jobset.x-k8s.io/v1alpha2",
        };
        format!("/apis/{group}/namespaces/{}/{}", self.namespace, self.plural())
    }

    /// A job of so many workers with a GPU each.
    pub fn manifest(&self, name: &str, workers: u32) -> Value {
        let pod = json!({ "spec": { "containers": [{
            "name": "train", "image": "bench:1", "command": ["/bin/sh", "-c", "sleep 100000"],
            "resources": { "limits": { "nvidia.com/gpu": "1" } },
        }] } });
        match self.kind {
            Kind::Tradewind => json!({
                "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
                "metadata": { "namespace": self.namespace, "name": name },
                "spec": {
                    "workers": workers, "gpu": { "count": 1 }, "template": pod, "placement": { "inCluster": "Only" },
                },
            }),
            Kind::JobSet => jobset::manifest(&self.namespace, name, workers, &pod),
        }
    }

    /// Waits until it says of so many of its jobs that they run.
    pub async fn says_running(&self, jobs: u32, limit: Duration) -> Result<()> {
        // From the API server's memory: this must not cost what is measured.
        let path = format!("{}?resourceVersion=0", self.collection());
        let look = || async {
            // A list of a thousand jobs is not asked for more often than that.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let list = self.api.get(&path).await.map_err(|e| e.to_string())?;
            let all = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            let running = all.iter().filter(|job| self.runs(job)).count();
            if running >= jobs as usize { Ok(()) } else { Err(format!("{running} of {}", all.len())) }
        };
        Ok(eventually(&format!("{jobs} running {}", self.plural()), limit, look).await?)
    }

    fn runs(&self, job: &Value) -> bool {
        match self.kind {
            Kind::Tradewind => job["status"]["phase"] == "Running",
            Kind::JobSet => job["status"]["replicatedJobsStatus"][0]["ready"] == 1,
        }
    }

    /// Ends it in order and starts it again.
    pub async fn restart(&mut self) -> Result<Restarted> {
        let clock = SystemClock::default();
        let (process, system) = match &mut self.world {
            World::Tradewind(stack) => (&mut stack.operator.process, stack::NAMESPACE),
            World::JobSet { jobset, .. } => (&mut jobset.process, jobset::NAMESPACE),
        };
        process.stop(STOP_WITHIN).await?;
        let (from, began) = (clock.monotonic(), clock.now());
        process.restart()?;
        match &mut self.world {
            World::Tradewind(stack) => stack.operator.ready().await?,
            World::JobSet { jobset, .. } => jobset.ready().await?,
        }
        let ready_s = clock.monotonic().saturating_sub(from).as_secs_f64();
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{system}/leases");
        let look = || async {
            let leases = self.api.get(&path).await.map_err(|e| e.to_string())?;
            let newest =
                leases["items"].as_array().into_iter().flatten().filter_map(|lease| {
                    lease["spec"]["acquireTime"].as_str().and_then(|at| at.parse::<Timestamp>().ok())
                });
            newest.max().filter(|at| *at >= began).ok_or_else(|| "an older leader".to_owned())
        };
        let led = eventually("the lead", LEAD_WITHIN, look).await?;
        Ok(Restarted { ready_s, lead_s: led.duration_since(began).as_secs_f64() })
    }

    /// Leaves its files in place and says where they are.
    pub fn keep(&mut self) -> &Path {
        match &mut self.world {
            World::Tradewind(stack) => {
                stack.keep_directory();
                stack.directory()
            }
            World::JobSet { run, .. } => {
                run.keep();
                run.path()
            }
        }
    }
}

impl World {
    fn plane(&self) -> &Plane {
        match self {
            Self::Tradewind(stack) => &stack.plane,
            Self::JobSet { plane, .. } => plane,
        }
    }
}

/// Nodes with room for every worker and a quarter more, for those that are replaced.
async fn nodes(plane: &Plane, size: &Size) -> Result<()> {
    let count = (size.jobs * size.workers * 5 / 4).div_ceil(NODE_GPUS) + 1;
    let capacity = json!({
        "cpu": "256", "memory": "2Ti", "pods": (NODE_GPUS * 2).to_string(), "nvidia.com/gpu": NODE_GPUS.to_string(),
    });
    let node = |n: u32| {
        let name = format!("node-{n}");
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "annotations": { "kwok.x-k8s.io/node": "fake" },
                "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "bench": "node" } },
            "status": { "capacity": capacity, "allocatable": capacity },
        })
    };
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": (0..count).map(node).collect::<Vec<_>>() });
    plane.kubectl().run_with_input(["create", "-f", "-"], &list.to_string()).await?;
    let wait = ["wait", "--for=condition=Ready", "--timeout=60s", "node", "-l", "bench=node"];
    plane.kubectl().run(wait).await.context("the fake nodes").map(drop)
}
