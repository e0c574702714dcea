//! Where the present attempt's Pod goes: it waits for the cluster, runs there, or a machine is claimed for it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::Reason;
use tradewind_api::rented_machine::Claim;
use tradewind_api::training_job::InCluster;

use super::decide::{Decision, Observed, Step};
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
    // Of a Pod that is to be rented for too: a quota holds it, and a machine would be paid for while it waits.
    if let Some(gate) = pod::gate(pod) {
        let message = format!("the scheduling gate {gate} holds its Pod; whoever set it decides when it may run");
        r.waiting(Reason::Gated, &message);
        return r.rest(Wake::OnChange);
    }
    if bound.is_empty()
        && valid.in_cluster != InCluster::Never
        && let Some(decision) = wait_for_cluster(o, &mut r, valid, pod)
    {
        return decision;
    }
    if pod::is_for_renting(pod)
        && valid.cluster_price.is_some()
        && bound.is_empty()
        && !matches!(o.choice, Some(Choice::Wait { .. }))
        && !valid.is_cheaper(o.choice.as_ref())
    {
        // The market has changed: the cluster is the better place now.
        r.waiting(
            Reason::WaitingForCluster,
            "renting is no longer cheaper than the cluster's own GPUs: its Pod is made again for the cluster",
        );
        let name = pod.metadata.name.clone().unwrap_or_default();
        return r.decide(Step::RemovePod(name), Wake::OnChange);
    }
    if o.cordoned {
        r.waiting(
            Reason::NodeCordoned,
            &format!("Node {0} is cordoned: nothing is rented before `kubectl uncordon {0}`", o.node),
        );
        return r.rest(Wake::After(Duration::from_mins(1), "the Node may be uncordoned"));
    }
    match &o.choice {
        None | Some(Choice::Wait { .. } | Choice::Keep { .. }) => {
            let message = match &o.choice {
                Some(Choice::Wait { message }) => message.clone(),
                _ => "offers are read".to_owned(),
            };
            r.waiting(Reason::WaitingForOffers, &message);
            r.decide(Step::Rest, Wake::After(Duration::from_secs(2), "offers"))
        }
        Some(Choice::Later { message, again_in, .. }) => {
            r.waits_for_price(message);
            r.decide(Step::Rest, Wake::After(*again_in, "a cheaper machine, or the last moment"))
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
        let left = o.left(due);
        r.waiting(
            Reason::WaitingForCluster,
            &format!("the cluster is full; a machine is rented if it still is at {}", due.strftime("%H:%M:%S UTC")),
        );
        return Some(r.clone().rest(Wake::After(left + Duration::from_millis(50), "burstAfter is over")));
    }
    None
}
