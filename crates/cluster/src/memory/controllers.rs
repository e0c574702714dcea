//! What the scheduler, the controller manager and kubelets do to our objects, as far as we rely on it. Plain functions: the
//! world simulation calls each of them when it wants that to happen, and none acts by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::pods::set_condition;
use super::store::State;
use super::update::{FOREGROUND, ORPHAN};
use super::{Memory, at_once};
use crate::object::{Key, Kind, Object, Typed, own};
use crate::port::{Cluster, ClusterError, Guard, MetadataPatch, Propagation, Removal};

/// The scheduler: looks at every Pod that is its own and not yet bound, gated or going away. `place` names the node with room for
/// it; without one the Pod is marked Unschedulable. Returns how many Pods it bound.
pub fn schedule(memory: &Memory, place: &mut dyn FnMut(&Pod) -> Option<String>) -> usize {
    let mut bound = 0;
    for pod in memory.peek_all::<Pod>() {
        let Some(spec) = &pod.spec else { continue };
        let is_ours = spec.scheduler_name.as_deref() == Some("default-scheduler") && node_of(&pod).is_none();
        let is_gated = !spec.scheduling_gates.as_deref().unwrap_or_default().is_empty();
        if !is_ours || is_gated || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let key = Key::of(&*pod);
        if let Some(node) = place(&pod) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let done = at_once(memory.bind(&key, &uid, &node, &BTreeMap::new()));
            bound += usize::from(done.is_ok());
        } else {
            let message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.";
            set_pod_condition(memory, &key, "PodScheduled", "False", "Unschedulable", message);
        }
    }
    bound
}

/// The garbage collector: deletes objects whose owners are all gone, and lets go those deleted with foreground or orphan
/// propagation. Returns how many objects it touched; call it until that is 0.
pub fn collect_garbage(memory: &Memory) -> usize {
    let (objects, living) = {
        let state = memory.lock();
        let objects: Vec<_> = state.everything().map(|(kind, object)| (kind, object.clone())).collect();
        let living: BTreeSet<String> = objects.iter().filter_map(|(_, object)| object.meta().uid.clone()).collect();
        (objects, living)
    };
    let mut touched = 0;
    for (kind, object) in &objects {
        let owners = object.meta().owner_references.as_deref().unwrap_or_default();
        let is_orphan = !owners.is_empty() && !owners.iter().any(|owner| living.contains(&owner.uid));
        if is_orphan && object.meta().deletion_timestamp.is_none() {
            let how = Removal::guarded(Guard::same(&**object));
            touched += usize::from(at_once(memory.delete(kind, &Key::of(&**object), &how)).is_ok());
        }
        if object.meta().deletion_timestamp.is_some() {
            touched += usize::from(finish_owner(memory, kind, &**object, &objects));
        }
    }
    touched
}

/// Foreground: deletes the dependents, then lets the owner go. Orphan: takes the owner off the dependents first.
fn finish_owner(
    memory: &Memory,
    kind: &'static Kind,
    owner: &dyn Object,
    objects: &[(&'static Kind, Arc<dyn Object>)],
) -> bool {
    let finalizers = owner.meta().finalizers.as_deref().unwrap_or_default();
    let is_foreground = finalizers.iter().any(|name| name == FOREGROUND);
    if !is_foreground && !finalizers.iter().any(|name| name == ORPHAN) {
        return false;
    }
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let owns = |reference: &OwnerReference| reference.uid == uid;
    let mut waits = false;
    let mut touched = false;
    for (kind, object) in objects {
        let references = object.meta().owner_references.as_deref().unwrap_or_default();
        let Some(reference) = references.iter().find(|reference| owns(reference)) else { continue };
        let key = Key::of(&**object);
        if is_foreground {
            waits |= reference.block_owner_deletion == Some(true);
            let how = Removal { propagation: Propagation::Foreground, ..Removal::guarded(Guard::same(&**object)) };
            let is_new = object.meta().deletion_timestamp.is_none();
            touched |= is_new && at_once(memory.delete(kind, &key, &how)).is_ok();
        } else if let Ok(mut copy) = at_once(memory.get(kind, &key)) {
            let mine = own(&mut copy);
            mine.meta_mut().owner_references.get_or_insert_default().retain(|reference| !owns(reference));
            touched |= at_once(memory.replace(kind, copy)).is_ok();
        }
    }
    if waits {
        return touched;
    }
    let rest = finalizers.iter().filter(|name| *name != FOREGROUND && *name != ORPHAN).cloned().collect();
    let patch = MetadataPatch { finalizers: Some(rest), ..MetadataPatch::default() };
    at_once(memory.patch_metadata(kind, &Key::of(owner), &patch, &Guard::same(owner))).is_ok() || touched
}

/// PodGC: Pods bound to a node that does not exist end as Failed with `DisruptionTarget/DeletionByPodGC` and vanish unless a
/// finaliser keeps them; so do unbound Pods that a finaliser keeps from their deletion (without that condition). On a real
/// cluster the first comes 40 to 60 s after the node went, the second within 20 s. Returns how many Pods it hit.
pub fn collect_pods(memory: &Memory) -> usize {
    let nodes: BTreeSet<String> = memory.peek_all::<Node>().iter().map(|node| Key::of(&**node).name).collect();
    let mut hit = 0;
    for pod in memory.peek_all::<Pod>() {
        let is_lost = node_of(&pod).is_some_and(|node| !nodes.contains(node));
        let is_stuck = node_of(&pod).is_none() && pod.metadata.deletion_timestamp.is_some();
        let is_over = matches!(phase(&pod), Some("Succeeded" | "Failed"));
        let is_done = pod.metadata.deletion_grace_period_seconds == Some(0) && is_over;
        if is_done || !(is_lost || is_stuck) {
            continue;
        }
        let key = Key::of(&*pod);
        if !is_over {
            if is_lost {
                let message = "PodGC: node no longer exists";
                set_pod_condition(memory, &key, "DisruptionTarget", "True", "DeletionByPodGC", message);
            }
            change_pod(memory, &key, |pod| pod.status.get_or_insert_default().phase = Some("Failed".to_owned()));
        }
        let how = Removal::guarded(Guard::same(&*pod)).at_once();
        hit += usize::from(at_once(memory.delete(Pod::KIND, &key, &how)).is_ok());
    }
    hit
}

/// The namespace controller, one step: in a namespace that is being deleted first the Pods go, then, when the last Pod is gone,
/// everything else, then the namespace. Returns how many objects it touched.
pub fn drain_namespaces(memory: &Memory) -> usize {
    let mut touched = 0;
    for namespace in memory.peek_all::<Namespace>() {
        if namespace.metadata.deletion_timestamp.is_none() {
            continue;
        }
        let name = Key::of(&*namespace).name;
        let left: Vec<_> = {
            let state = memory.lock();
            let inside = |object: &&Arc<dyn Object>| object.meta().namespace.as_deref() == Some(&name);
            state
                .everything()
                .filter(|(_, object)| inside(object))
                .map(|(kind, object)| (kind, object.clone()))
                .collect()
        };
        if left.is_empty() {
            end_namespace(&mut memory.lock(), &name);
            touched += 1;
            continue;
        }
        let has_pods = left.iter().any(|(kind, _)| *kind == Pod::KIND);
        for (kind, object) in left {
            if object.meta().deletion_timestamp.is_none() && (*kind == *Pod::KIND || !has_pods) {
                let how = Removal::guarded(Guard::same(&*object));
                touched += usize::from(at_once(memory.delete(kind, &Key::of(&*object), &how)).is_ok());
            }
        }
    }
    touched
}

fn end_namespace(state: &mut State, name: &str) {
    let key = Key::cluster(name);
    if let Ok(last) = state.row(Namespace::KIND, &key) {
        state.end(Namespace::KIND, &key, last);
    }
}

/// An eviction, a preemption or the taint manager: marks the Pod with `DisruptionTarget` and this reason
/// (`DeletionByTaintManager`, `EvictionByEvictionAPI`, `PreemptionByScheduler`) and deletes it with its own grace.
pub fn disrupt(memory: &Memory, key: &Key, reason: &str, message: &str) -> Result<(), ClusterError> {
    set_pod_condition(memory, key, "DisruptionTarget", "True", reason, message);
    at_once(memory.delete(Pod::KIND, key, &Removal::default()))
}

/// The node lifecycle controller, when a node's Lease was not renewed for about 50 s: the node becomes `Ready=Unknown`, its Pods
/// `Ready=False`. What the Pods say is never set back.
pub fn lose_node(memory: &Memory, name: &str) {
    say_ready(memory, name, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.");
    for pod in memory.peek_all::<Pod>() {
        if node_of(&pod) == Some(name) {
            set_pod_condition(memory, &Key::of(&*pod), "Ready", "False", "", "");
        }
    }
}

/// A kubelet whose node was lost writes its status again.
pub fn find_node(memory: &Memory, name: &str) {
    say_ready(memory, name, "True", "KubeletReady", "kubelet is posting ready status");
}

fn say_ready(memory: &Memory, name: &str, status: &str, reason: &str, message: &str) {
    let key = Key::cluster(name);
    let Some(node) = memory.peek::<Node>(&key) else { return };
    let mut node = Node::clone(&node);
    let now = memory.lock().now();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(NodeCondition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(now),
        ..NodeCondition::default()
    });
    let written = at_once((memory as &dyn Cluster).write_status(node));
    debug_assert!(written.is_ok(), "nobody writes between a read and a write of one thread");
}

/// Kubelets: Pods that are being deleted end on the nodes that `is_real` names; nobody but the operator does that on a virtual
/// node. Returns how many Pods ended or were let go.
pub fn finish_pods(memory: &Memory, is_real: &dyn Fn(&str) -> bool) -> usize {
    let mut ended = 0;
    for pod in memory.peek_all::<Pod>() {
        let is_ours = node_of(&pod).is_some_and(is_real);
        let is_waiting = pod.metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
        if is_ours && is_waiting {
            let how = Removal::guarded(Guard::same(&*pod)).at_once();
            ended += usize::from(at_once(memory.delete(Pod::KIND, &Key::of(&*pod), &how)).is_ok());
        }
    }
    ended
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn change_pod(memory: &Memory, key: &Key, change: impl FnOnce(&mut Pod)) {
    let Some(pod) = memory.peek::<Pod>(key) else { return };
    let mut pod = Pod::clone(&pod);
    change(&mut pod);
    let written = at_once((memory as &dyn Cluster).write_status(pod));
    debug_assert!(written.is_ok(), "nobody writes between a read and a write of one thread");
}

fn set_pod_condition(memory: &Memory, key: &Key, type_: &str, status: &str, reason: &str, message: &str) {
    let now = memory.lock().now();
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let condition = PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: text(reason),
        message: text(message),
        last_transition_time: Some(now),
        ..PodCondition::default()
    };
    change_pod(memory, key, |pod| set_condition(pod, condition));
}
