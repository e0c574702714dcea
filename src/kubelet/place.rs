//! Whose output a request is about: the Pod, its machine, its attempt, and what to say where there is none. Pure but for the look-ups.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tradewind_api::names;
use tradewind_cluster::{ClusterError, Key};

use crate::context::Context;
use crate::controllers::pod;

/// Where the output of a Pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Uid of its RentedMachine, if it has one.
    pub machine: Option<String>,
    /// The RentedMachine still exists.
    pub machine_lives: bool,
    /// The Pod's attempt.
    pub attempt: u32,
}

/// The Pod as the watch knows it; asked for where the watch does not, since it may lag.
///
/// # Errors
/// A sentence for the caller.
pub async fn find_pod(ctx: &Context, key: &Key) -> Result<Arc<Pod>, String> {
    if let Some(pod) = ctx.caches.pods.get(key) {
        return Ok(pod);
    }
    match ctx.cluster.read::<Pod>(key).await {
        Ok(pod) => Ok(pod),
        Err(ClusterError::NotFound) => Err(format!("Pod {key} does not exist")),
        Err(error) => Err(format!("Pod {key} cannot be read: {error}")),
    }
}

/// Checks that a container of a Pod is one whose output there can be.
///
/// # Errors
/// A sentence for the caller.
pub fn check(pod: &Pod, key: &Key, container: &str, node: &str) -> Result<(), String> {
    let on = pod::node(pod);
    if on != node {
        let on = if on.is_empty() { "no node" } else { on };
        return Err(format!("Pod {key} is on {on}, not on {node}, whose logs are served here"));
    }
    if pod::label(pod, names::JOB_UID).is_none() {
        return Err(format!(
            "Pod {key} does not run: the node {node} stands for rented machines and runs only Pods of TrainingJobs"
        ));
    }
    let spec = pod.spec.as_ref();
    let names: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    match names.first() {
        Some(first) if *first == container => Ok(()),
        Some(first) if names.contains(&container) => Err(format!(
            "container {container} does not run: on a rented machine only the first container, {first}, does"
        )),
        Some(first) => {
            Err(format!("container {container} does not run on a rented machine; the program's container is {first}"))
        }
        None => Err(format!("Pod {key} has no container")),
    }
}

/// The machine of a Pod: the one that claims it now, else the one that it was last shown to run on.
pub fn place(ctx: &Context, pod: &Pod) -> Place {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let machines = ctx.caches.rented.all();
    let claims = machines.iter().filter(|m| m.spec.claim.pod_uid == uid);
    let claiming = claims.max_by_key(|m| m.metadata.creation_timestamp.clone()).and_then(|m| m.metadata.uid.clone());
    let machine = claiming.or_else(|| pod::machine_uid(pod).map(str::to_owned));
    let machine_lives = machines.iter().any(|m| m.metadata.uid.is_some() && m.metadata.uid == machine);
    let attempt = pod::label(pod, names::ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or(0);
    Place { machine, machine_lives, attempt }
}

/// Why a Pod has no output, in a sentence; `None` if having none is all there is to say.
pub fn why_none(pod: &Pod, place: &Place) -> Option<String> {
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref()).filter(|m| !m.is_empty());
    match pod::phase(pod) {
        "Pending" => {
            let message = message.unwrap_or("nothing is rented yet");
            Some(format!("the program has not started yet, its machine is being rented: {message}"))
        }
        "Running" => None,
        _ if place.machine.is_none() => {
            Some(format!("the program has never run: {}", message.unwrap_or("no machine was rented")))
        }
        _ if place.machine_lives => None,
        _ => Some(
            "there is no output: the program said nothing, or it ended so long ago that its output is removed"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(change: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "a", "name": "b", "labels": {"tradewind.dev/job-uid": "1", "tradewind.dev/attempt": "2"}},
            "spec": {"nodeName": "ours", "containers": [{"name": "train"}, {"name": "side"}], "initContainers": [{"name": "init"}]},
        });
        for (path, value) in change.as_object().unwrap() {
            let (parent, name) = path.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[name] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn what_cannot_be_shown_is_said_in_a_sentence() {
        let key = Key::namespaced("a", "b");
        let says = |pod: &Pod, container: &str| check(pod, &key, container, "ours").err().unwrap_or_default();
        assert_eq!(says(&pod(json!({})), "train"), "");
        assert!(says(&pod(json!({})), "side").contains("only the first container, train"));
        assert!(says(&pod(json!({})), "init").contains("program's container is train"));
        assert!(says(&pod(json!({"/spec/nodeName": "theirs"})), "train").contains("is on theirs"));
        assert!(says(&pod(json!({"/metadata/labels": {}})), "train").contains("only Pods of TrainingJobs"));
    }

    #[test]
    fn a_pod_without_output_says_why() {
        let place = |machine: Option<&str>, machine_lives| Place {
            machine: machine.map(str::to_owned),
            machine_lives,
            attempt: 0,
        };
        let why = |status, place| why_none(&pod(json!({"/status": status})), &place).unwrap_or_default();
        assert!(
            why(json!({"phase": "Pending", "message": "vast (no GPU): waits"}), place(None, false))
                .ends_with("rented: vast (no GPU): waits")
        );
        assert_eq!(why(json!({"phase": "Running"}), place(Some("m"), true)), "");
        assert!(why(json!({"phase": "Failed"}), place(None, false)).contains("never run"));
        assert_eq!(why(json!({"phase": "Failed"}), place(Some("m"), true)), "");
        assert!(why(json!({"phase": "Succeeded"}), place(Some("m"), false)).contains("removed"));
    }
}
