//! What a Pod says, in the words of all controllers. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, Pod};
use tradewind_api::conditions::bounded;
use tradewind_api::names;
use tradewind_api::rented_machine::Claim;

/// What the id of a rented Pod's container begins with; the uid of its RentedMachine follows.
pub const CONTAINER_ID: &str = "tradewind://";

/// Uid of the RentedMachine that the Pod was last shown to run on.
pub fn machine_uid(pod: &Pod) -> Option<&str> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    container.container_id.as_deref()?.strip_prefix(CONTAINER_ID)
}

/// The claim to a Pod.
pub fn claim(pod: &Pod) -> Claim {
    Claim {
        pod_namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The node that a Pod is bound to; empty while it is not.
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

/// Whether a Pod has run to its end.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether our finaliser is on a Pod.
pub fn is_held(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == names::POD_FINALIZER)
}

/// Whether a Pod is of this attempt.
pub fn is_of(pod: &Pod, attempt: i64) -> bool {
    label(pod, names::ATTEMPT).is_some_and(|of| *of == attempt.to_string())
}

/// Phase of a Pod; Pending where it is not set.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Since when the scheduler calls the Pod unschedulable, if it does.
pub fn unschedulable(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled")?;
    let refused = scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable");
    refused.then(|| scheduled.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// Why a Pod is about to be disrupted or was, in a sentence: eviction, preemption, a lost node.
pub fn disruption(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True")?;
    let told = target
        .message
        .as_deref()
        .map(str::trim)
        .filter(|m| !m.is_empty())
        .map(|m| format!(" ({m})"))
        .unwrap_or_default();
    let what = match target.reason.as_deref() {
        Some("PreemptionByScheduler") => "it made room for a Pod of higher priority",
        Some("DeletionByTaintManager") => "its node does not answer, or must not be used any more",
        Some("EvictionByEvictionAPI") => "it was evicted, as by kubectl drain",
        Some("DeletionByPodGC") => "its node is gone",
        Some("TerminationByKubelet") => "its node shuts down or is short of something",
        _ => "it is disrupted",
    };
    Some(format!("{what}{told}"))
}

/// The scheduling gate that holds a Pod, if one does.
pub fn gate(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.scheduling_gates.as_ref()?.first().map(|gate| gate.name.as_str())
}

/// When the kubelet took a Pod up.
pub fn started(pod: &Pod) -> Option<Timestamp> {
    pod.status.as_ref()?.start_time.as_ref().map(|t| t.0)
}

/// What keeps the kubelet from starting a Pod's containers, if anything does: reason and a sentence that stays the same while it tries again.
pub fn hindrance(pod: &Pod) -> Option<String> {
    let (container, reason) = waiting(pod).find(|(_, w)| !is_usual(w.reason.as_deref().unwrap_or_default()))?;
    let word = reason.reason.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some(match word {
        // Two words and several messages take turns here: the Pod's Events have the registry's.
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => {
            let pod = format!("kubectl describe pod {name}");
            format!("ImagePullBackOff: image {} cannot be pulled; `{pod}` has the registry's words", container.image)
        }
        "InvalidImageName" => format!("{word}: \"{}\" is no name of an image", container.image),
        "ErrImageNeverPull" => {
            format!("{word}: image {} is not on the node, and imagePullPolicy is Never", container.image)
        }
        _ => {
            let message = reason.message.as_deref().map(str::trim).unwrap_or_default();
            let message = bounded(tradewind_protocol::clean_text(message, 1000), SAID);
            let to = if message.is_empty() { "" } else { ": " };
            format!("{word}{to}{message} (container {})", container.name)
        }
    })
}

/// Characters of a kubelet's own words in a sentence of ours.
const SAID: usize = 200;

/// Containers that wait, init containers first.
fn waiting(pod: &Pod) -> impl Iterator<Item = (&ContainerStatus, &ContainerStateWaiting)> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    let all = init.chain(status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten());
    all.filter_map(|c| Some((c, c.state.as_ref()?.waiting.as_ref()?)))
}

/// Whether a container waits for this reason before every start.
fn is_usual(reason: &str) -> bool {
    matches!(reason, "" | "ContainerCreating" | "PodInitializing")
}

/// Name and exit code of the init container that failed, if one did.
pub fn failed_init(pod: &Pod) -> Option<(&str, i64)> {
    let init = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let code = |c: &ContainerStatus| Some(i64::from(c.state.as_ref()?.terminated.as_ref()?.exit_code));
    init.iter().find_map(|c| code(c).filter(|code| *code != 0).map(|code| (c.name.as_str(), code)))
}

/// Whether the kernel ended the program for want of memory.
pub fn is_out_of_memory(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let state = statuses.and_then(|s| s.first()).and_then(|c| c.state.as_ref()).and_then(|s| s.terminated.as_ref());
    state.is_some_and(|t| t.reason.as_deref() == Some("OOMKilled"))
}

/// A label of a Pod.
pub fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a String> {
    pod.metadata.labels.as_ref()?.get(name)
}

/// Exit code of the program in a Pod, once it has ended.
pub fn exit_code(pod: &Pod) -> Option<i64> {
    let state = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?;
    Some(i64::from(state.terminated.as_ref()?.exit_code))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(init: &Value, main: &Value) -> Pod {
        let container = |name: &str, state: &Value| json!([{"name": name, "image": "reg/i:1", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        serde_json::from_value(json!({"metadata": {"name": "j-0-1"}, "status": {
            "initContainerStatuses": container("tradewind-agent", init), "containerStatuses": container("train", main),
        }}))
        .unwrap()
    }

    #[test]
    fn what_keeps_containers_from_starting_is_said_in_words_that_stay_the_same() {
        let waits = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let usual = waits("PodInitializing", "");
        let done = json!({"terminated": {"exitCode": 0}});
        assert_eq!(hindrance(&pod(&waits("ContainerCreating", ""), &usual)), None);
        assert_eq!(hindrance(&pod(&done, &json!({"running": {}}))), None);
        assert_eq!(hindrance(&Pod::default()), None);
        let pull = hindrance(&pod(&waits("ErrImagePull", "rpc error 1"), &usual)).unwrap();
        assert!(pull.starts_with("ImagePullBackOff: image reg/i:1 cannot be pulled"), "{pull}");
        assert_eq!(
            hindrance(&pod(&waits("ImagePullBackOff", "Back-off"), &usual)).unwrap(),
            pull,
            "no write for each try"
        );
        assert_eq!(
            hindrance(&pod(&done, &waits("CreateContainerConfigError", "secret \"hf\" not found\u{1b}"))).unwrap(),
            "CreateContainerConfigError: secret \"hf\" not found (container train)"
        );
        let long = hindrance(&pod(&done, &waits("CreateContainerError", &"x".repeat(5000)))).unwrap();
        assert!(long.chars().count() < 300, "{long}");
    }

    #[test]
    fn the_init_container_that_failed_is_found() {
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        assert_eq!(failed_init(&pod(&ended(3), &json!({}))), Some(("tradewind-agent", 3)));
        assert_eq!(failed_init(&pod(&ended(0), &ended(1))), None);
    }
}
