//! Where the present attempt's Pod goes: it waits for the cluster, runs there, or a machine is claimed for it. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::rented_machine::Claim;
use tradewind_api::training_job::{InCluster, JobPhase, PlacementStatus, WorkersStatus};
use tradewind_api::{Reason, RentedMachine};

use super::decide::{Decision, Observed, Step};
use super::ended::program_failed;
use super::placement::Choice;
use super::status::Report;
use super::valid::Valid;
use crate::controllers::pod;
use crate::runtime::Wake;

/// Neither bound elsewhere nor claimed: wait for the cluster, or rent.
pub fn place(
    o: &Observed,
    mut r: Report,
    valid: &Valid,
    attempt: i64,
    pod: &Pod,
    claim: Claim,
    bound: &str,
) -> Decision {
    if bound.is_empty()
        && valid.in_cluster != InCluster::Never
        && let Some(decision) = wait_for_cluster(o, &mut r, valid, pod)
    {
        return decision;
    }
    if o.cordoned {
        r.waiting(
            Reason::NodeCordoned,
            &format!("Node {0} is cordoned: nothing is rented before `kubectl uncordon {0}`", o.node),
        );
        return r.rest(Wake::After(Duration::from_mins(1), "the Node may be uncordoned"));
    }
    match &o.choice {
        None | Some(Choice::Wait { .. }) => {
            let message = match &o.choice {
                Some(Choice::Wait { message }) => message.clone(),
                _ => "offers are read".to_owned(),
            };
            r.waiting(Reason::WaitingForOffers, &message);
            r.decide(Step::Rest, Wake::After(Duration::from_secs(2), "offers"))
        }
        Some(Choice::None { reason, message }) => {
            r.waiting(*reason, message);
            r.decide(Step::Rest, Wake::After(Duration::from_secs(15), "the market may have changed"))
        }
        Some(Choice::Rent(rent)) => {
            r.chosen(rent);
            r.decide(Step::Claim { rent: rent.clone(), attempt, claim }, Wake::OnChange)
        }
    }
}

/// When a Pod that the cluster has no room for may be rented for: `burstAfter`, counted once per job.
fn due_at(o: &Observed, pod: &Pod) -> Timestamp {
    let counted = o.job.status.as_ref().and_then(|s| s.unschedulable_since.as_ref()).map(|t| t.0);
    let since = counted.or_else(|| pod::unschedulable(pod)).unwrap_or(o.now);
    since.checked_add(o.valid.burst_after).unwrap_or(Timestamp::MAX)
}

/// Whether something may be rented for this Pod now.
pub fn is_due(o: &Observed, pod: &Pod) -> bool {
    !pod::node(pod).is_empty() || o.valid.in_cluster == InCluster::Never || due_at(o, pod) <= o.now
}

fn wait_for_cluster(o: &Observed, r: &mut Report, valid: &Valid, pod: &Pod) -> Option<Decision> {
    let refused = pod::unschedulable(pod);
    if let (Some(since), None) = (refused, r.status.unschedulable_since.as_ref()) {
        r.status.unschedulable_since = Some(Time(since));
    }
    if let Err(obstacle) = &valid.rental {
        r.waiting(Reason::WaitingForCluster, &format!("stays in the cluster: {}", obstacle.message));
        return Some(r.clone().rest(Wake::OnChange));
    }
    if valid.in_cluster == InCluster::Only {
        r.waiting(Reason::WaitingForCluster, "placement.inCluster is Only; waits for room in the cluster");
        return Some(r.clone().rest(Wake::OnChange));
    }
    if refused.is_none() {
        r.waiting(Reason::WaitingForCluster, "the scheduler looks for room in the cluster");
        return Some(r.clone().rest(Wake::OnChange));
    }
    let due = due_at(o, pod);
    if o.now < due {
        let left = Duration::try_from(due.duration_since(o.now)).unwrap_or_default();
        r.waiting(
            Reason::WaitingForCluster,
            &format!("the cluster is full; a machine is rented if it still is at {}", due.strftime("%H:%M:%S UTC")),
        );
        return Some(r.clone().rest(Wake::After(left + Duration::from_millis(50), "burstAfter is over")));
    }
    None
}

/// The Pod is bound to one of the cluster's own nodes.
pub fn in_cluster(
    mut r: Report,
    valid: &Valid,
    attempt: i64,
    pod: &Pod,
    machine: Option<&Arc<RentedMachine>>,
) -> Decision {
    let node = pod::node(pod).to_owned();
    r.status.placement = Some(PlacementStatus {
        summary: "cluster".to_owned(),
        why: Some(format!("runs on node {node}")),
        ..PlacementStatus::default()
    });
    if let Some(machine) = machine {
        // The scheduler was faster than our bind: nothing was spent, the claim goes.
        let name = machine.metadata.name.clone().unwrap_or_default();
        return r.decide(Step::DropMachine(name), Wake::OnChange);
    }
    let disrupted = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True"));
    match pod::phase(pod) {
        "Succeeded" if !disrupted => {
            r.complete(&format!("the program ended with exit code 0 on node {node}"));
            r.rest(Wake::OnChange)
        }
        "Failed" | "Succeeded" if disrupted => {
            r.status.preemptions += 1;
            r.status.attempt = Some(attempt + 1);
            r.resuming(&format!("the Pod was disrupted on node {node}; attempt {} follows", attempt + 1));
            r.decide(Step::CreatePod { attempt: attempt + 1, on_node: false }, Wake::OnChange)
        }
        "Failed" => {
            let code = pod::exit_code(pod).unwrap_or(1);
            let how = format!("the program ended with exit code {code} on node {node}");
            program_failed(&mut r, valid, attempt, code, "", &how)
        }
        "Running" => {
            r.runs(Reason::InCluster, &format!("runs on node {node} of the cluster, without our agent: checkpoints stay where the program puts them"));
            r.rest(Wake::OnChange)
        }
        _ => {
            r.placed(Reason::InCluster, &format!("placed on node {node} of the cluster"));
            r.phase(JobPhase::Starting, &format!("starts on node {node}"));
            r.status.workers = Some(WorkersStatus { ready: 0, total: 1, summary: "0/1".to_owned() });
            r.rest(Wake::OnChange)
        }
    }
}
