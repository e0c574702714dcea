//! Which workers of a job are served, and how far their Pods are. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tradewind_api::names;

use crate::controllers::pod;

/// One worker that has, or had, a Pod with our agent on a node of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Attempt.
    pub attempt: i64,
    /// Rank.
    pub rank: i64,
    /// How far its Pod is.
    pub pod: PodState,
}

/// How far a Pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Bound to a node; no container of it runs, so its agent cannot have said anything.
    Bound,
    /// Its containers run.
    Running,
    /// It is to be gone at this time, by the clock of the API server: until then the agent saves what it can.
    Going(Timestamp),
    /// It has run to its end, or is not there any more.
    Over,
}

/// The workers of a job, by its Pods: those with our agent that are bound to another node than the one for rented machines.
pub fn seats(pods: &[Arc<Pod>], rental_node: &str) -> Vec<Seat> {
    let mut seats: Vec<Seat> = pods.iter().filter_map(|pod| seat(pod, rental_node)).collect();
    seats.sort_by_key(|seat| (seat.attempt, seat.rank));
    seats
}

fn seat(pod: &Pod, rental_node: &str) -> Option<Seat> {
    // The mark of a Pod with our agent: where the agent finds its control document.
    pod.metadata.annotations.as_ref()?.get(names::CONTROL)?;
    let node = pod::node(pod);
    if node.is_empty() || node == rental_node {
        return None;
    }
    let (attempt, rank) = (pod::attempt(pod)?, pod::rank(pod)?);
    let state = match (&pod.metadata.deletion_timestamp, pod::phase(pod)) {
        _ if pod::is_over(pod) => PodState::Over,
        (Some(at), _) => PodState::Going(at.0),
        (None, "Running") => PodState::Running,
        (None, _) => PodState::Bound,
    };
    (attempt >= 0 && rank >= 0).then_some(Seat { attempt, rank, pod: state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(change: impl FnOnce(&mut serde_json::Value)) -> Arc<Pod> {
        let mut pod = serde_json::json!({
            "metadata": {
                "name": "job-2-1", "namespace": "n",
                "labels": {"tradewind.dev/attempt": "2", "tradewind.dev/rank": "1"},
                "annotations": {"tradewind.dev/control": "https://s3/machines/x/control.json"},
            },
            "spec": {"containers": [], "nodeName": "gpu-7"},
            "status": {"phase": "Running"},
        });
        change(&mut pod);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn seat_of(change: impl FnOnce(&mut serde_json::Value)) -> Option<Seat> {
        seats(&[pod(change)], "tradewind-abc").pop()
    }

    #[test]
    fn served_is_who_runs_our_agent_on_a_node_of_the_cluster() {
        let going: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let with = |pod| Some(Seat { attempt: 2, rank: 1, pod });
        type Change = fn(&mut serde_json::Value);
        let cases: [(&str, Change, Option<Seat>); 11] = [
            ("a worker that runs", |_| {}, with(PodState::Running)),
            ("not bound yet", |p| p["spec"]["nodeName"] = "".into(), None),
            ("on the node of rented machines", |p| p["spec"]["nodeName"] = "tradewind-abc".into(), None),
            ("a plain Pod, without our agent", |p| p["metadata"]["annotations"] = serde_json::json!({}), None),
            ("its image is pulled", |p| p["status"]["phase"] = "Pending".into(), with(PodState::Bound)),
            (
                "evicted, in its grace period",
                |p| p["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into(),
                with(PodState::Going(going)),
            ),
            (
                "over before it was gone",
                |p| {
                    p["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
                    p["status"]["phase"] = "Failed".into();
                },
                with(PodState::Over),
            ),
            ("finished", |p| p["status"]["phase"] = "Succeeded".into(), with(PodState::Over)),
            ("no attempt", |p| p["metadata"]["labels"] = serde_json::json!({}), None),
            ("somebody's own label", |p| p["metadata"]["labels"]["tradewind.dev/rank"] = "two".into(), None),
            (
                "the only worker has no rank",
                |p| p["metadata"]["labels"] = serde_json::json!({"tradewind.dev/attempt": "2"}),
                Some(Seat { attempt: 2, rank: 0, pod: PodState::Running }),
            ),
        ];
        for (what, change, expected) in cases {
            assert_eq!(seat_of(change), expected, "{what}");
        }
    }
}
