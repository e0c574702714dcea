//! What the API server does for Pods alone: defaults, grace, binding, and the few rules about changes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::update::{invalid, refused};
use crate::port::ClusterError;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Defaults of a new Pod that controllers rely on, and the validation that a template can fail in tests.
pub(super) fn prepare(pod: &mut Pod) -> Result<(), ClusterError> {
    let Some(spec) = pod.spec.as_mut().filter(|spec| !spec.containers.is_empty()) else {
        return Err(invalid("spec.containers", "Required value"));
    };
    if let Some(at) = spec.containers.iter().position(|container| container.image.as_deref().unwrap_or("").is_empty()) {
        return Err(invalid(&format!("spec.containers[{at}].image"), "Required value"));
    }
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    if !gates.is_empty() && spec.node_name.is_some() {
        return Err(invalid("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
    }
    let is_gated = !gates.is_empty();
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    add_default_tolerations(spec);
    let gated = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("SchedulingGated".to_owned()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
        ..PodCondition::default()
    };
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        conditions: is_gated.then(|| vec![gated]),
        ..PodStatus::default()
    });
    Ok(())
}

/// As the admission plug-in DefaultTolerationSeconds does, with creates and updates.
pub(super) fn add_default_tolerations(spec: &mut PodSpec) {
    let tolerations = spec.tolerations.get_or_insert_default();
    for taint in [NOT_READY, UNREACHABLE] {
        let tolerates = |toleration: &Toleration| {
            let (key, effect) = (toleration.key.as_deref(), toleration.effect.as_deref());
            (key == Some(taint) || key.unwrap_or("").is_empty())
                && (effect == Some("NoExecute") || effect.unwrap_or("").is_empty())
        };
        if !tolerations.iter().any(tolerates) {
            tolerations.push(Toleration {
                key: Some(taint.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(300),
                ..Toleration::default()
            });
        }
    }
}

/// Seconds of grace for the first deletion of a Pod (`podStrategy.CheckGracefulDelete`).
pub(super) fn grace(pod: &Pod, asked: Option<i64>) -> i64 {
    let spec = pod.spec.as_ref();
    let is_bound = spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    let is_over = matches!(phase(pod), Some("Succeeded" | "Failed"));
    if !is_bound || is_over {
        return 0;
    }
    asked.or_else(|| spec.and_then(|spec| spec.termination_grace_period_seconds)).unwrap_or(0)
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref().and_then(|status| status.phase.as_deref())
}

/// Assigns the Pod (`BindingREST.setPodNodeAndMetadata`).
pub(super) fn bind(
    pod: &mut Pod,
    node: &str,
    annotations: &BTreeMap<String, String>,
    now: Time,
) -> Result<(), ClusterError> {
    let spec = pod.spec.get_or_insert_default();
    let is_bound = spec.node_name.as_deref().is_some_and(|node| !node.is_empty());
    let is_gated = !spec.scheduling_gates.as_deref().unwrap_or_default().is_empty();
    if pod.metadata.deletion_timestamp.is_some() || is_bound || is_gated {
        return Err(ClusterError::Conflict);
    }
    spec.node_name = Some(node.to_owned());
    if !annotations.is_empty() {
        let own = pod.metadata.annotations.get_or_insert_default();
        own.extend(annotations.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(now),
        ..PodCondition::default()
    };
    set_condition(pod, scheduled);
    Ok(())
}

/// Puts a condition in the place of the one of its type. The transition time stays where the status does.
pub(super) fn set_condition(pod: &mut Pod, mut condition: PodCondition) {
    let list = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    match list.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time.clone_from(&known.last_transition_time);
            }
            *known = condition;
        }
        None => list.push(condition),
    }
}

/// Only images, a deadline, tolerations that come on top and the removal of gates may change.
pub(super) fn check_spec(new: &Pod, old: &Pod) -> Result<(), ClusterError> {
    let (Some(new), Some(old)) = (new.spec.as_ref(), old.spec.as_ref()) else {
        return Err(invalid("spec", "Required value"));
    };
    let mut allowed = new.clone();
    for (container, before) in allowed.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&before.image);
    }
    let before = old.init_containers.iter().flatten();
    for (container, before) in allowed.init_containers.iter_mut().flatten().zip(before) {
        container.image.clone_from(&before.image);
    }
    allowed.active_deadline_seconds = old.active_deadline_seconds;
    let keeps = |old: &Toleration| {
        let same = |new: &Toleration| Toleration { toleration_seconds: old.toleration_seconds, ..new.clone() } == *old;
        new.tolerations.iter().flatten().any(same)
    };
    if old.tolerations.iter().flatten().all(keeps) {
        allowed.tolerations.clone_from(&old.tolerations);
    }
    let had = old.scheduling_gates.as_deref().unwrap_or_default();
    if new.scheduling_gates.iter().flatten().all(|gate| had.contains(gate)) {
        allowed.scheduling_gates.clone_from(&old.scheduling_gates);
    }
    if allowed == *old {
        return Ok(());
    }
    Err(invalid(
        "spec",
        "Forbidden: pod updates may not change fields other than images, activeDeadlineSeconds and tolerations",
    ))
}

/// The server's only latch: a container that ended for good does not run again.
pub(super) fn check_status(new: &mut Pod, old: &Pod) -> Result<(), ClusterError> {
    let policy = old.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let (Some(after), Some(before)) = (new.status.as_mut(), old.status.as_ref()) else { return Ok(()) };
    let ended = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.clone());
    for before in before.container_statuses.iter().flatten() {
        let Some(end) = ended(before) else { continue };
        let may_restart = policy == "Always" || (policy == "OnFailure" && end.exit_code != 0);
        let now = after.container_statuses.iter().flatten().find(|status| status.name == before.name);
        if !may_restart && now.is_some_and(|status| ended(status).is_none()) {
            return Err(refused(
                422,
                "Invalid",
                format!("status.containerStatuses: Forbidden: container {} ended and cannot run again", before.name),
            ));
        }
    }
    if after.observed_generation.is_none() {
        after.observed_generation = before.observed_generation;
    }
    Ok(())
}
