//! What a Pod says, in the words of all controllers. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodSpec};
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

/// Takes off a Pod on another node than that of rented machines what no controller reads: there may be thousands of them, and they can never
/// come to a machine, where the whole of a Pod is needed. What the functions below read stays.
pub fn slim(pod: &mut Pod, rental_node: &str) {
    let name = node(pod);
    if name.is_empty() || name == rental_node {
        return;
    }
    let program = program_name(pod).map(str::to_owned);
    pod.spec = Some(PodSpec { node_name: Some(name.to_owned()), ..PodSpec::default() });
    if let Some(labels) = &mut pod.metadata.labels {
        let ours = [names::JOB_NAME, names::JOB_UID, names::ATTEMPT, names::RANK];
        labels.retain(|name, _| ours.contains(&name.as_str()));
    }
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| [names::MACHINE, names::CONTROL, names::CONTROL_RENEWAL].contains(&name.as_str()));
        // That it is there marks a Pod with our agent; only the agent reads what it says.
        if let Some(url) = annotations.get_mut(names::CONTROL) {
            *url = String::new();
        }
    }
    let Some(status) = &mut pod.status else { return };
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| matches!(c.type_.as_str(), "DisruptionTarget" | "PodScheduled"));
        conditions.shrink_to_fit();
    }
    status.container_statuses =
        slim_containers(status.container_statuses.take().unwrap_or_default(), program.as_deref());
    let init = status.init_container_statuses.take().into_iter().flatten();
    let init: Vec<ContainerStatus> = init.filter(|s| !ended_well(s)).filter_map(state_alone).collect();
    status.init_container_statuses = Some(init).filter(|init| !init.is_empty());
    status.ephemeral_container_statuses = None;
    (status.pod_ip, status.pod_ips, status.host_ip, status.host_ips) = (None, None, None, None);
}

/// Whether a Pod was made [`slim`].
pub fn is_slim(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some() && spec.containers.is_empty())
}

/// What is looked at of a Pod's containers: how the program ended, and why any of them waits. The program is the first of what is left.
fn slim_containers(mut statuses: Vec<ContainerStatus>, program: Option<&str>) -> Option<Vec<ContainerStatus>> {
    let at = program.map_or(Some(0), |name| statuses.iter().position(|s| s.name == name));
    let program = at.filter(|at| *at < statuses.len()).map(|at| statuses.remove(at));
    let waits = |s: &ContainerStatus| s.state.as_ref().is_some_and(|state| state.waiting.is_some());
    let waiting: Vec<ContainerStatus> = statuses.into_iter().filter(waits).filter_map(state_alone).collect();
    let name = program.as_ref().map(|s| s.name.clone()).unwrap_or_default();
    let first = program.and_then(state_alone);
    if first.is_none() && waiting.is_empty() {
        return None;
    }
    // One that runs keeps its place before those that wait.
    let first = first.unwrap_or_else(|| ContainerStatus { name, ..ContainerStatus::default() });
    Some([first].into_iter().chain(waiting).collect())
}

/// Why a container waits or how it ended; `None` while it runs.
fn state_alone(status: ContainerStatus) -> Option<ContainerStatus> {
    let state = status.state.filter(|state| state.terminated.is_some() || state.waiting.is_some())?;
    Some(ContainerStatus { name: status.name, image: status.image, state: Some(state), ..ContainerStatus::default() })
}

fn ended_well(status: &ContainerStatus) -> bool {
    status.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|ended| ended.exit_code == 0)
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

/// The attempt that a Pod is for; `None` if the label is missing or no number.
pub fn attempt(pod: &Pod) -> Option<i64> {
    label(pod, names::ATTEMPT)?.parse().ok()
}

/// Number of the worker that a Pod is for: 0 where a job has only one; `None` if the label is no number.
pub fn rank(pod: &Pod) -> Option<i64> {
    label(pod, names::RANK).map_or(Some(0), |rank| rank.parse().ok())
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

/// Why a Pod that ran was ended for its node's sake, as its status says: not for a limit of its own.
pub fn ended_by_node(pod: &Pod) -> Option<String> {
    // What a kubelet or its runtime says of a container that was gone when they came back: nobody knows how it ended.
    let lost = |reason: &str| matches!(reason, "ContainerStatusUnknown" | "Unknown");
    if program_end(pod).and_then(|end| end.reason.as_deref()).is_some_and(lost) {
        return Some("its node has lost its container, as one that was restarted does".to_owned());
    }
    let reason = reason(pod)?;
    let theirs = match reason {
        // Its own limit of ephemeral storage or of a volume: that is the program's doing, and comes again.
        "Evicted" => !is_over_its_limit(pod),
        _ => reason.starts_with("OutOf") || OF_THE_NODE.contains(&reason),
    };
    theirs.then(|| format!("it was ended by its node ({})", told(pod, reason)))
}

/// What the kubelet ended a Pod for that is the Pod's own affair, if that is why it ended.
pub fn ended_by_kubelet(pod: &Pod) -> Option<String> {
    match reason(pod)? {
        "DeadlineExceeded" => Some("DeadlineExceeded".to_owned()),
        reason @ "Evicted" => Some(told(pod, reason)),
        _ => None,
    }
}

/// Reasons with which a kubelet or the control plane ends Pods for what their node is, or is no more.
const OF_THE_NODE: [&str; 9] = [
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "NodeLost",
    "NodeAffinity",
    "Preempting",
    "Preempted",
    "UnexpectedAdmissionError",
    "TopologyAffinityError",
];

/// A reason and the kubelet's own words for it.
fn told(pod: &Pod, reason: &str) -> String {
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref()).map(str::trim).unwrap_or_default();
    let message = bounded(tradewind_protocol::clean_text(message, 1000), SAID);
    let to = if message.is_empty() { "" } else { ": " };
    format!("{reason}{to}{message}")
}

/// The word with which a kubelet or the control plane says why it ended a Pod, if it says so.
pub fn reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref().filter(|reason| !reason.is_empty())
}

/// Whether a Pod was evicted for more than it may store. Kubernetes has only its message for that; one for the node's sake begins with the node.
fn is_over_its_limit(pod: &Pod) -> bool {
    let message = pod.status.as_ref().and_then(|s| s.message.as_deref()).unwrap_or_default();
    !message.starts_with("The node ") && message.contains("limit")
}

/// The scheduling gate that holds a Pod, if one does.
pub fn gate(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.scheduling_gates.as_ref()?.first().map(|gate| gate.name.as_str())
}

/// Whether no scheduler of the cluster looks at a Pod: it waits to be rented for.
pub fn is_for_renting(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()) == Some(names::NO_SCHEDULER)
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
    program_end(pod).is_some_and(|end| end.reason.as_deref() == Some("OOMKilled"))
}

/// A label of a Pod.
pub fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a String> {
    pod.metadata.labels.as_ref()?.get(name)
}

/// Exit code of the program in a Pod, once it has ended.
pub fn exit_code(pod: &Pod) -> Option<i64> {
    Some(i64::from(program_end(pod)?.exit_code))
}

/// When the program in a Pod ended, if it has.
pub fn ended_at(pod: &Pod) -> Option<Timestamp> {
    program_end(pod)?.finished_at.as_ref().map(|at| at.0)
}

/// How the program in a Pod ended: the template's first container.
fn program_end(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    // A kubelet sorts them by name.
    let status = match program_name(pod) {
        Some(name) => statuses.iter().find(|status| status.name == name),
        None => statuses.first(),
    };
    status?.state.as_ref()?.terminated.as_ref()
}

/// Name of the program's container where a Pod has others too; not of a Pod that was made slim.
fn program_name(pod: &Pod) -> Option<&str> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    containers.first().filter(|_| containers.len() > 1).map(|container| container.name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str, state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "a-1-0", "labels": { "tradewind.dev/rank": "0", "team": "a" }, "annotations": { "tradewind.dev/control": "u", "why": "w" },
                "finalizers": ["x"], "deletionTimestamp": "2026-01-02T03:04:05Z" },
            "spec": { "nodeName": node, "containers": [{ "name": "train", "image": "i", "command": ["a", "b"] }] },
            "status": {
                "phase": "Failed", "reason": "Evicted", "message": "m", "startTime": "2026-01-02T03:04:05Z", "podIP": "10.0.0.1",
                "conditions": [
                    { "type": "Ready", "status": "True" },
                    { "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI" },
                    { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": "2026-01-02T03:04:05Z" },
                ],
                "containerStatuses": [{ "name": "train", "image": "i", "imageID": "s", "ready": true, "restartCount": 0, "state": state }],
            },
        }))
        .unwrap()
    }

    fn waiting(init: &Value, main: &Value) -> Pod {
        let container = |name: &str, state: &Value| json!([{"name": name, "image": "reg/i:1", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        serde_json::from_value(json!({"metadata": {"name": "j-0-1"}, "status": {
            "initContainerStatuses": container("tradewind-agent", init), "containerStatuses": container("train", main),
        }}))
        .unwrap()
    }

    #[test]
    fn all_that_is_read_of_a_slim_pod_is_still_there() {
        let ended = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        let pulls = json!({ "waiting": { "reason": "ErrImagePull", "message": "401" } });
        for state in [ended, pulls, json!({ "running": { "startedAt": "2026-01-02T03:04:05Z" } })] {
            let whole = pod("gpu-7", state);
            let mut slim = whole.clone();
            super::slim(&mut slim, "tradewind-abc");
            let (meta, theirs) = (&slim.metadata, &whole.metadata);
            assert_eq!(meta.labels, Some([(names::RANK.to_owned(), "0".to_owned())].into()), "ours alone");
            assert_eq!(meta.annotations, Some([(names::CONTROL.to_owned(), String::new())].into()), "only the mark");
            assert_eq!(
                (&meta.name, &meta.finalizers, &meta.deletion_timestamp),
                (&theirs.name, &theirs.finalizers, &theirs.deletion_timestamp)
            );
            assert_eq!((node(&slim), phase(&slim), started(&slim)), (node(&whole), phase(&whole), started(&whole)));
            assert_eq!((unschedulable(&slim), disruption(&slim)), (unschedulable(&whole), disruption(&whole)));
            assert_eq!(
                (exit_code(&slim), is_out_of_memory(&slim)),
                (exit_code(&whole), is_out_of_memory(&whole)),
                "of the program"
            );
            assert_eq!((hindrance(&slim), failed_init(&slim)), (hindrance(&whole), failed_init(&whole)));
            let told = |pod: &Pod| pod.status.as_ref().map(|s| (s.reason.clone(), s.message.clone()));
            assert_eq!(told(&slim), told(&whole));
            let size = |pod: &Pod| serde_json::to_string(pod).unwrap().len();
            assert!(size(&slim) < size(&whole) && slim.spec.unwrap().containers.is_empty());
        }
    }

    /// A Pod of the program `train` and a sidecar `metrics`, as a kubelet shows it: by name.
    fn two(train: &Value, metrics: &Value) -> Pod {
        let mut pod = serde_json::to_value(pod("gpu-7", json!({}))).unwrap();
        let container = |name: &str, state: &Value| json!({"name": name, "image": "i", "imageID": "s", "ready": true, "restartCount": 0, "state": state});
        pod["spec"]["containers"] = json!([{"name": "train", "image": "i"}, {"name": "metrics", "image": "i"}]);
        pod["status"]["containerStatuses"] = json!([container("metrics", metrics), container("train", train)]);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_program_is_the_first_container_of_the_spec_not_of_the_statuses() {
        let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let done = json!({"terminated": {"exitCode": 0}});
        let runs = json!({"running": {}});
        let pulls = json!({"waiting": {"reason": "ErrImagePull"}});
        for (train, metrics, code, out_of_memory, hindered) in [
            (&oom, &done, Some(137), true, false),
            (&done, &oom, Some(0), false, false),
            (&done, &runs, Some(0), false, false),
            (&runs, &done, None, false, false),
            (&runs, &oom, None, false, false),
            (&runs, &pulls, None, false, true),
            (&pulls, &runs, None, false, true),
        ] {
            let whole = two(train, metrics);
            let mut slim = whole.clone();
            super::slim(&mut slim, "tradewind-abc");
            for pod in [&whole, &slim] {
                let said = (exit_code(pod), is_out_of_memory(pod), hindrance(pod).is_some());
                assert_eq!(said, (code, out_of_memory, hindered), "{train} {metrics} {:?}", pod.status);
            }
            assert_eq!(hindrance(&slim), hindrance(&whole));
        }
    }

    #[test]
    fn a_pod_that_may_come_to_a_machine_stays_whole() {
        for node in ["", "tradewind-abc"] {
            let whole = pod(node, json!({}));
            let mut same = whole.clone();
            slim(&mut same, "tradewind-abc");
            assert_eq!(same, whole, "on {node:?}");
        }
    }

    #[test]
    fn what_keeps_containers_from_starting_is_said_in_words_that_stay_the_same() {
        let waits = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let usual = waits("PodInitializing", "");
        let done = json!({"terminated": {"exitCode": 0}});
        assert_eq!(hindrance(&waiting(&waits("ContainerCreating", ""), &usual)), None);
        assert_eq!(hindrance(&waiting(&done, &json!({"running": {}}))), None);
        assert_eq!(hindrance(&Pod::default()), None);
        let pull = hindrance(&waiting(&waits("ErrImagePull", "rpc error 1"), &usual)).unwrap();
        assert!(pull.starts_with("ImagePullBackOff: image reg/i:1 cannot be pulled"), "{pull}");
        assert_eq!(
            hindrance(&waiting(&waits("ImagePullBackOff", "Back-off"), &usual)).unwrap(),
            pull,
            "no write for each try"
        );
        assert_eq!(
            hindrance(&waiting(&done, &waits("CreateContainerConfigError", "secret \"hf\" not found\u{1b}"))).unwrap(),
            "CreateContainerConfigError: secret \"hf\" not found (container train)"
        );
        let long = hindrance(&waiting(&done, &waits("CreateContainerError", &"x".repeat(5000)))).unwrap();
        assert!(long.chars().count() < 300, "{long}");
    }

    #[test]
    fn the_init_container_that_failed_is_found() {
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        assert_eq!(failed_init(&waiting(&ended(3), &json!({}))), Some(("tradewind-agent", 3)));
        assert_eq!(failed_init(&waiting(&ended(0), &ended(1))), None);
    }
}
