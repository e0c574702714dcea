//! Why a Pod on our Node goes. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::pod;

/// How a Pod on our Node came to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Our Node was lost or called unreachable: nobody wants the program to end.
    Lost,
    /// Somebody asked for its end: a user, an eviction, a drain.
    Asked,
    /// Somebody wants it gone at once (`--force`).
    Forced,
}

/// How a Pod came to be deleted; `None` if it is not.
pub fn deletion(pod: &Pod) -> Option<Deletion> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let disrupted = conditions.filter(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    let lost = |reason: &str| matches!(reason, "DeletionByPodGC" | "DeletionByTaintManager");
    if disrupted.filter_map(|c| c.reason.as_deref()).any(lost) || pod::phase(pod) == "Failed" {
        return Some(Deletion::Lost);
    }
    Some(if pod.metadata.deletion_grace_period_seconds == Some(0) { Deletion::Forced } else { Deletion::Asked })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_asks_is_told_apart_from_what_was_lost() {
        let disrupted = |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        for (what, phase, grace, conditions, expected) in [
            ("not deleted", "Running", None, json!([]), None),
            ("kubectl delete", "Running", Some(30), json!([]), Some(Deletion::Asked)),
            ("kubectl drain", "Running", Some(30), disrupted("EvictionByEvictionAPI"), Some(Deletion::Asked)),
            ("--force --grace-period=0", "Running", Some(0), json!([]), Some(Deletion::Forced)),
            ("PodGC", "Failed", Some(0), disrupted("DeletionByPodGC"), Some(Deletion::Lost)),
            ("taint manager", "Running", Some(30), disrupted("DeletionByTaintManager"), Some(Deletion::Lost)),
        ] {
            let mut pod = json!({"metadata": {}, "status": {"phase": phase, "conditions": conditions}});
            if let Some(grace) = grace {
                pod["metadata"] =
                    json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace});
            }
            assert_eq!(deletion(&serde_json::from_value(pod).unwrap()), expected, "{what}");
        }
    }
}
