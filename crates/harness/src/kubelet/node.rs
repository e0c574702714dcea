//! The Node object, its Lease, and the Pods that are bound to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Event, Node as NodeObject, Pod},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tradewind_core::{Clock, SystemClock};

use super::{
    FakeNodeOptions,
    life::{self, Seen},
    link::{Link, Power},
    run::Containers,
    status,
};
use crate::{Error, Result};

/// Every node has this address; its Pods have others.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Pause before a broken watch is begun again.
const WATCH_PAUSE: Duration = Duration::from_millis(300);

/// What all parts of a node share.
pub(super) struct Node {
    pub client: kube::Client,
    pub options: FakeNodeOptions,
    /// All that it writes.
    pub directory: PathBuf,
    /// The program that runs containers.
    pub init: PathBuf,
    pub link: Link,
    pub pods: Mutex<BTreeMap<String, Entry>>,
    pub containers: Arc<Containers>,
}

/// A Pod that the node knows.
pub(super) struct Entry {
    namespace: String,
    name: String,
    address: IpAddr,
    seen: watch::Sender<Seen>,
    task: tokio::task::AbortHandle,
}

impl Node {
    /// Creates the Node, or takes over the one of that name.
    pub(super) async fn register(&self, port: u16) -> Result<()> {
        let name = &self.options.name;
        let refused = |e: kube::Error| Error::Call { call: format!("create node/{name}"), why: e.to_string() };
        fs::create_dir_all(&self.directory).map_err(Error::io(format!("making {}", self.directory.display())))?;
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": self.options.labels },
            "spec": { "taints": self.options.taints }, "status": self.status(port),
        });
        match api.create(&PostParams::default(), &object(node)?).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => self.say_ready(port).await.map_err(refused)?,
            Err(error) => return Err(refused(error)),
        }
        self.renew().await.map_err(refused)
    }

    fn status(&self, port: u16) -> Value {
        let condition = |(name, status, reason): (&str, &str, &str)| {
            json!({
                "type": name, "status": status, "reason": reason, "message": "as told by a node of a test",
                "lastHeartbeatTime": status::now(), "lastTransitionTime": status::now(),
            })
        };
        let conditions = [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
            ("Ready", "True", "KubeletReady"),
        ];
        json!({
            "capacity": self.options.capacity, "allocatable": self.options.capacity,
            "conditions": conditions.map(condition),
            "addresses": [
                { "type": "InternalIP", "address": HOST.to_string() }, { "type": "Hostname", "address": self.options.name },
            ],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        })
    }

    async fn say_ready(&self, port: u16) -> kube::Result<()> {
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let patch = json!({ "status": self.status(port) });
        api.patch_status(&self.options.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    async fn renew(&self) -> kube::Result<()> {
        let name = &self.options.name;
        let api: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let now = SystemClock::default().now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let spec =
            json!({ "holderIdentity": name, "leaseDurationSeconds": self.options.lease_seconds, "renewTime": now });
        let patch = Patch::Merge(json!({ "spec": spec }));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
        let node = Api::<NodeObject>::all(self.client.clone()).get(name).await?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
            "metadata": { "name": name, "namespace": "kube-node-lease", "ownerReferences": [
                { "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid },
            ] },
        });
        let lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &lease).await.map(drop)
    }

    /// Keeps the Lease alive, and says that the node is ready whenever the control plane believes otherwise.
    pub(super) async fn renew_lease(self: Arc<Self>, port: u16) {
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let pause = Duration::from_secs(u64::from(self.options.lease_seconds)) / 4;
        loop {
            let renewed = self.link.call(async || {
                self.renew().await?;
                let node = api.get(&self.options.name).await?;
                if is_ready(&node) { Ok(()) } else { self.say_ready(port).await }
            });
            if let Err(error) = renewed.await {
                self.note(&format!("renewing the lease: {error}"));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.link.until(|power| power != Power::On) => {}
            }
        }
    }

    /// Whether Pods can be placed on it, or why not.
    pub(super) async fn is_ready(&self) -> std::result::Result<(), String> {
        let api: Api<NodeObject> = Api::all(self.client.clone());
        let node = api.get(&self.options.name).await.map_err(|e| e.to_string())?;
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let dead = taints.iter().find(|t| t.key.starts_with("node.kubernetes.io/") && t.key.ends_with("able"));
        let new = taints.iter().find(|t| t.key == "node.kubernetes.io/not-ready");
        match dead.or(new) {
            Some(taint) => Err(format!("taint {}:{}", taint.key, taint.effect)),
            None if is_ready(&node) => Ok(()),
            None => Err("it is not Ready".into()),
        }
    }

    /// Runs the Pods that are bound to the node, each in a task of its own.
    pub(super) async fn watch_pods(self: Arc<Self>) {
        loop {
            self.link.until(|power| power == Power::On).await;
            self.containers.switch_on();
            tokio::select! {
                () = self.link.until(|power| power != Power::On) => {}
                () = self.follow_pods() => tokio::time::sleep(WATCH_PAUSE).await,
            }
        }
    }

    /// Follows the watch until it breaks.
    async fn follow_pods(self: &Arc<Self>) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.options.name));
        let mut events = pin!(watcher(Api::<Pod>::all(self.client.clone()), config));
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.extend(pod.metadata.uid.clone());
                    self.saw(pod);
                }
                Ok(watcher::Event::InitDone) => {
                    for (_, entry) in self.pods().iter().filter(|(uid, _)| !listed.contains(*uid)) {
                        entry.seen.send_modify(|seen| seen.is_gone = true);
                    }
                }
                Ok(watcher::Event::Apply(pod)) => self.saw(pod),
                Ok(watcher::Event::Delete(pod)) => {
                    if let Some(entry) =
                        pod.metadata.uid.and_then(|uid| Some((uid.clone(), self.pods().get(&uid)?.seen.clone())))
                    {
                        entry.1.send_modify(|seen| seen.is_gone = true);
                    }
                }
                Err(error) => return self.note(&format!("watching Pods: {error}")),
            }
        }
    }

    fn saw(self: &Arc<Self>, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        let mut pods = self.pods();
        if let Some(entry) = pods.get(&uid) {
            entry.seen.send_modify(|seen| seen.pod = pod);
            return;
        }
        let (namespace, name) =
            (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        let (seen, receiver) = watch::channel(Seen { pod, is_gone: false });
        // It begins with a look into this table, and finds it locked until the entry is there.
        let task = tokio::spawn(life::live(self.clone(), uid.clone(), receiver)).abort_handle();
        pods.insert(uid, Entry { namespace, name, address: free_address(), seen, task });
    }

    /// Forgets a Pod that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.pods().remove(uid);
    }

    /// The address of a Pod.
    pub(super) fn address(&self, uid: &str) -> Option<IpAddr> {
        self.pods().get(uid).map(|entry| entry.address)
    }

    /// The Pod of that name that is here now.
    pub(super) fn uid(&self, namespace: &str, name: &str) -> Option<String> {
        let pods = self.pods();
        let found = pods.iter().find(|(_, entry)| entry.namespace == namespace && entry.name == name);
        found.map(|(uid, _)| uid.clone())
    }

    pub(super) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.directory.join("pods").join(uid)
    }

    /// Where a container's output goes.
    pub(super) fn log(&self, pod: &Pod, container: &str) -> PathBuf {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        let name = format!("{}_{}_{}", of(&metadata.namespace), of(&metadata.name), of(&metadata.uid));
        self.directory.join("logs").join(name).join(format!("{container}.log"))
    }

    /// The log of the newest Pod of that name.
    pub(super) fn newest_log(&self, namespace: &str, pod: &str, container: &str) -> Option<PathBuf> {
        let prefix = format!("{namespace}_{pod}_");
        let entries = fs::read_dir(self.directory.join("logs")).ok()?.flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        let logs = ours.map(|entry| entry.path().join(format!("{container}.log")));
        logs.filter_map(|log| Some((fs::metadata(&log).ok()?.modified().ok()?, log))).max().map(|(_, log)| log)
    }

    /// Tells what happened to a Pod as an Event. Nothing depends on it.
    pub(super) async fn tell(&self, pod: &Pod, reason: &str, message: &str) {
        let metadata = &pod.metadata;
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message, "count": 1,
            "metadata": { "generateName": format!("{}.", metadata.name.as_deref().unwrap_or_default()), "namespace": metadata.namespace },
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid },
            "source": { "component": "kubelet", "host": self.options.name },
            "firstTimestamp": status::now(), "lastTimestamp": status::now(),
        });
        let api: Api<Event> = Api::namespaced(self.client.clone(), metadata.namespace.as_deref().unwrap_or_default());
        let Ok(event) = serde_json::from_value(event) else { return };
        if let Err(error) = self.link.call(async || api.create(&PostParams::default(), &event).await).await {
            self.note(&format!("telling {reason}: {error}"));
        }
    }

    /// A line in the node's own log, for whoever looks for the reason of a failure.
    pub(super) fn note(&self, line: &str) {
        let log = OpenOptions::new().create(true).append(true).open(self.directory.join("kubelet.log"));
        // A log that cannot be written is no reason to fail.
        let _ = log.and_then(|mut log| writeln!(log, "{} {line}", status::now()));
    }

    /// Ends all that runs. Blocks for some milliseconds.
    pub(super) fn close(&self) {
        for entry in std::mem::take(&mut *self.pods()).into_values() {
            entry.task.abort();
        }
        self.containers.close();
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(Error::unexpected("an object of the node"))
}

/// A loopback address that no other Pod of this program has, and hardly one of another program: the whole of 127.0.0.0/8 is local.
fn free_address() -> IpAddr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [.., program] = (std::process::id() % 240).to_be_bytes();
    let [.., high, low] = (count % 64_000 + 257).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, program + 8, high, low))
}
