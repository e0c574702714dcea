//! A node of the cluster that is not there: it registers a Node, keeps its Lease alive and runs the Pods that are bound to it as local
//! processes, as a kubelet would, without root.
//!
//! What Pods see of a real node: phases, container states, exit codes, termination messages, conditions, init containers, deletion with
//! its grace, deadlines, environment, the volumes `emptyDir`, `configMap` and `secret`, an address of their own. What is different:
//! * There is no container: a program sees this machine's files. Its working directory holds a copy of the image's files, `bin/` of which
//!   comes first in `PATH`. A `mountPath` is a directory somewhere else: where it stands as a whole path in `command`, `args` or the value
//!   of a variable, it is replaced by the local one. Paths that a program learns otherwise are not.
//! * Only `restartPolicy: Never`; no probes, no hooks, no limits of CPU or memory ([`FakeNode::out_of_memory`] stands in for the latter).
//! * The volume with the ServiceAccount's token is an empty directory.
//!
//! Everything ends when the value goes or the program dies: each container is a child of an init process of its own (that of the
//! simulator's machines), which ends all its descendants.

mod environment;
mod images;
mod life;
mod link;
mod logs;
mod node;
mod paths;
mod run;
mod status;
mod volumes;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinHandle;

pub use self::{images::Images, run::LocalProcess};
use self::{link::Link, node::Node};
use crate::{Binaries, Error, Plane, Result, eventually};

/// How long a node may take to become Ready: the controller manager takes the taint of a new Node away in about two seconds.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What a node is.
#[derive(Clone, Debug)]
pub struct FakeNodeOptions {
    name: String,
    capacity: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    images: Images,
    lease_seconds: u32,
}

impl FakeNodeOptions {
    /// A node with 32 CPUs, 256 GiB of memory and room for 110 Pods, whose containers can have these images.
    pub fn new(name: &str, images: &Images) -> Self {
        let capacity = [("cpu", "32"), ("memory", "256Gi"), ("ephemeral-storage", "1Ti"), ("pods", "110")];
        let labels = [("kubernetes.io/hostname", name), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Self {
            name: name.into(),
            capacity: capacity.map(owned).into(),
            labels: labels.map(owned).into(),
            taints: Vec::new(),
            images: images.clone(),
            lease_seconds: 40,
        }
    }

    /// Sets a resource of its capacity, such as `("cpu", "2")`.
    pub fn capacity(mut self, resource: &str, quantity: &str) -> Self {
        self.capacity.insert(resource.into(), quantity.into());
        self
    }

    /// Gives it so many GPUs.
    pub fn gpus(self, count: u32) -> Self {
        self.capacity("nvidia.com/gpu", &count.to_string())
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds a taint: `{"key": …, "value": …, "effect": …}`.
    pub fn taint(mut self, taint: Value) -> Self {
        self.taints.push(taint);
        self
    }

    /// How long its Lease lasts (kubelet: 40 s). It is renewed four times in that time, so a control plane that notices dead nodes
    /// sooner ([`crate::PlaneOptions::node_grace`]) needs less.
    pub fn lease_seconds(mut self, seconds: u32) -> Self {
        self.lease_seconds = seconds;
        self
    }
}

/// A node that this program plays. All its processes end when the value goes.
pub struct FakeNode {
    node: Arc<Node>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeNode {
    /// Registers the node and waits until Pods can be placed on it. It writes below `directory`, into a directory of its own.
    pub async fn start(plane: &Plane, directory: &Path, options: FakeNodeOptions) -> Result<Self> {
        let node = Arc::new(Node {
            client: plane.client().await?,
            directory: directory.join("nodes").join(&options.name),
            init: Binaries::locate_sim()?,
            options,
            link: Link::default(),
            pods: std::sync::Mutex::default(),
            containers: Arc::default(),
        });
        let logs = logs::Server::start(node.clone()).await?;
        let port = logs.port;
        node.register(port).await?;
        let tasks = vec![
            tokio::spawn(logs.serve()),
            tokio::spawn(node.clone().renew_lease(port)),
            tokio::spawn(node.clone().watch_pods()),
        ];
        let this = Self { node, tasks };
        this.ready().await?;
        Ok(this)
    }

    /// Waits until the control plane takes the node for alive and has removed its taints for being dead.
    pub async fn ready(&self) -> Result<()> {
        eventually(&format!("node {} to be ready", self.name()), READY_WITHIN, || self.node.is_ready()).await
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.node.options.name
    }

    /// The machine dies: its processes are killed and its Lease is not renewed any more. What its Pods were is told after
    /// [`FakeNode::revive`] only, as by a machine that was switched on again.
    pub async fn kill(&self) {
        self.node.link.set(link::Power::Off).await;
        self.node.containers.kill_all();
    }

    /// The network to the control plane breaks: processes go on unseen, nothing is written, nothing new is heard.
    pub async fn partition(&self) {
        self.node.link.set(link::Power::CutOff).await;
    }

    /// Ends [`FakeNode::kill`] or [`FakeNode::partition`], and waits until the control plane believes it.
    pub async fn revive(&self) -> Result<()> {
        self.node.link.set(link::Power::On).await;
        self.ready().await
    }

    /// The processes of a Pod's containers and all their descendants, as they are now. Empty if there is no such Pod here.
    pub fn processes(&self, namespace: &str, pod: &str) -> Vec<LocalProcess> {
        self.node.uid(namespace, pod).map_or_else(Vec::new, |uid| self.node.containers.processes(&uid))
    }

    /// All processes on the node.
    pub fn all_processes(&self) -> Vec<LocalProcess> {
        self.node.containers.all_processes()
    }

    /// Stops every process of a Pod in its tracks (SIGSTOP) or lets them go on (SIGCONT).
    pub fn freeze(&self, namespace: &str, pod: &str, frozen: bool) {
        for process in self.processes(namespace, pod) {
            process.freeze(frozen);
        }
    }

    /// A container uses more memory than it may: it is killed, and its status says `OOMKilled`.
    pub fn out_of_memory(&self, namespace: &str, pod: &str, container: &str) {
        if let Some(uid) = self.node.uid(namespace, pod) {
            self.node.containers.out_of_memory(&uid, container);
        }
    }

    /// The directory of a running Pod with `volumes/<name>` and `containers/<name>` (the working directory). It is removed when the Pod
    /// has ended, as a kubelet does.
    pub fn pod_directory(&self, namespace: &str, pod: &str) -> Option<PathBuf> {
        self.node.uid(namespace, pod).map(|uid| self.node.pod_directory(&uid))
    }

    /// What a container has printed, of the newest Pod of that name that was here; empty if there is nothing. It outlives the Pod.
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> String {
        let path = self.node.newest_log(namespace, pod, container);
        path.and_then(|path| std::fs::read(path).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Ends all processes and deletes the Node.
    pub async fn delete(self) -> Result<()> {
        let (client, name) = (self.node.client.clone(), self.name().to_owned());
        drop(self);
        let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
        match api.delete(&name, &kube::api::DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Error::Call { call: format!("delete node/{name}"), why: error.to_string() }),
        }
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.node.close();
    }
}
