//! The cluster's own nodes: a scheduler with so many slots, and kubelets that run plain programs and our agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tradewind_api::names;
use tradewind_cluster::memory::{at_once, controllers};
use tradewind_cluster::{Cluster, Guard, Key, Memory, Removal, StatusPatch, Strategy};
use tradewind_core::Clock;

use super::chance::Chance;
use super::machines::Fleet;
use super::wire::Common;
use super::workers::Life;

/// Name of the n-th node.
pub fn node_name(n: usize) -> String {
    format!("gpu-{}", n + 1)
}

/// Number of the node that a Pod is bound to, if it is one of the cluster's own.
fn node_of(pod: &Pod) -> Option<usize> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    name.strip_prefix("gpu-")?.parse::<usize>().ok()?.checked_sub(1)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// A Pod that has run to its end.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The cluster's own nodes.
pub struct Nodes {
    memory: Arc<Memory>,
    /// Pods that each node takes.
    slots: Vec<u32>,
    /// There is room from then on.
    room_at: Option<Duration>,
    /// All are cordoned.
    closed: bool,
    /// Those whose kubelets do not answer.
    down: BTreeSet<usize>,
}

impl Nodes {
    /// Nodes of which all are well.
    pub fn new(memory: Arc<Memory>, slots: &[u32], room_at: Option<Duration>) -> Self {
        Self { memory, slots: slots.to_vec(), room_at, closed: false, down: BTreeSet::new() }
    }

    /// Cordons or uncordons all.
    pub fn close(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// A kubelet answers again, or no longer. The control plane says so of its node.
    pub fn set_down(&mut self, node: usize, down: bool) {
        if down {
            self.down.insert(node);
            controllers::lose_node(&self.memory, &node_name(node));
        } else if self.down.remove(&node) {
            controllers::find_node(&self.memory, &node_name(node));
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// From now on nothing goes wrong, and jobs that must run here can.
    pub fn calm_down(&mut self, needed: bool) {
        self.closed = false;
        for node in self.down.clone() {
            self.set_down(node, false);
        }
        if needed {
            self.room_at = Some(Duration::ZERO);
        }
    }

    /// Pods on the cluster's own nodes that are not over, on all or on one of them.
    pub fn pods(&self, node: Option<usize>) -> Vec<Arc<Pod>> {
        let mut pods = self.memory.peek_all::<Pod>();
        pods.retain(|pod| node_of(pod).is_some_and(|of| node.is_none_or(|node| node == of)) && !is_over(pod));
        pods
    }

    /// Marks Pods of one node, or of all, as disrupted and deletes them.
    pub fn disrupt(&self, node: Option<usize>, reason: &str) {
        for pod in self.pods(node) {
            if pod.metadata.deletion_timestamp.is_none() {
                drop(controllers::disrupt(&self.memory, &Key::of(&*pod), reason, "disrupted"));
            }
        }
    }

    /// A node is deleted, PodGC takes its Pods away, and another of its name comes.
    pub fn replace(&self, node: usize) {
        let cluster: &dyn Cluster = &*self.memory;
        let key = Key::cluster(node_name(node));
        let _ = at_once(cluster.remove::<Node>(&key, &Removal::default().at_once()));
        controllers::collect_pods(&self.memory);
        add_node(&self.memory, node);
    }

    /// The scheduler. `skips`: how many of a hundred Pods it finds no room for although there is some.
    pub fn schedule(&self, now: Duration, chance: &mut Chance, skips: u64) {
        let open = self.room_at.is_some_and(|at| at <= now) && !self.closed;
        let mut free = self.slots.clone();
        for pod in self.pods(None) {
            if let Some(free) = node_of(&pod).and_then(|node| free.get_mut(node)) {
                *free = free.saturating_sub(1);
            }
        }
        controllers::schedule(&self.memory, &mut |_| {
            let node = (0..free.len()).find(|n| open && free[*n] > 0 && !self.down.contains(n))?;
            if skips > 0 && chance.between(0, 99) < skips {
                return None;
            }
            free[node] -= 1;
            Some(node_name(node))
        });
    }

    /// One look of every kubelet.
    pub fn run(&self, common: &Common, fleet: &mut Fleet) {
        for pod in self.memory.peek_all::<Pod>() {
            let Some(node) = node_of(&pod) else { continue };
            let agent = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(names::CONTROL));
            let going = pod.metadata.deletion_timestamp.as_ref().map(|at| at.0);
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if self.down.contains(&node) {
                if going.is_some() {
                    fleet.strand(common, &uid);
                }
            } else if agent {
                self.run_worker(common, fleet, &pod, &uid);
            } else if going.is_some() {
                self.let_go(&pod);
            } else {
                self.run_plain(common, &pod);
            }
        }
        fleet.lose_workers(common);
    }

    fn run_worker(&self, common: &Common, fleet: &mut Fleet, pod: &Pod, uid: &str) {
        let going = pod.metadata.deletion_timestamp.as_ref().map(|at| at.0);
        match (fleet.life(uid), going) {
            (None, None) if phase(pod) == "Pending" => {
                let address = fleet.start_worker(common, pod);
                let started = common.clock.now().to_string();
                self.show(common, pod, json!({"phase": "Running", "podIP": address, "startTime": started}));
            }
            (Some(Life::Ended(code)), _) if !is_over(pod) => {
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                self.show(common, pod, json!({"phase": phase, "containerStatuses": [terminated(code)]}));
            }
            (None | Some(Life::Ended(_)), Some(_)) => self.let_go(pod),
            // The API server was put back: the kubelet says again what is.
            (Some(Life::Runs), None) if phase(pod) == "Pending" => {
                let started = common.clock.now().to_string();
                self.show(common, pod, json!({"phase": "Running", "startTime": started}));
            }
            (Some(Life::Runs), Some(until)) => {
                fleet.terminate(common, uid, common.clock.now() >= until);
            }
            _ => {}
        }
    }

    /// A Pod without our agent runs and succeeds.
    fn run_plain(&self, common: &Common, pod: &Pod) {
        match phase(pod) {
            "Pending" => self.show(common, pod, json!({"phase": "Running"})),
            "Running" => self.show(common, pod, json!({"phase": "Succeeded", "containerStatuses": [terminated(0)]})),
            _ => {}
        }
    }

    fn show(&self, common: &Common, pod: &Pod, status: Value) {
        common.note(|| format!("kubelet: {} {}", Key::of(pod), status["phase"]));
        let cluster: &dyn Cluster = &*self.memory;
        let patch = StatusPatch { strategy: Strategy::Strategic, status };
        let _ = at_once(cluster.amend_status::<Pod>(&Key::of(pod), &patch, &Guard::same(pod)));
    }

    fn let_go(&self, pod: &Pod) {
        let cluster: &dyn Cluster = &*self.memory;
        let how = Removal::guarded(Guard::same(pod)).at_once();
        let _ = at_once(cluster.remove::<Pod>(&Key::of(pod), &how));
    }
}

fn terminated(code: i32) -> Value {
    json!({
        "name": "train", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": code}},
    })
}

/// The n-th node's object.
pub fn add_node(memory: &Memory, n: usize) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(n)}});
    let cluster: &dyn Cluster = memory;
    let node: Node = serde_json::from_value(node).expect("a node");
    at_once(cluster.add(node)).expect("the twin takes a node");
}
