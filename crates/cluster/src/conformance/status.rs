//! The status subresource.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tradewind_api::{Provider, ProviderStatus};

use super::{Case, Stage, Verdict, case, ensure, fails, generation, labels, status_of, stranger, version};
use crate::object::Key;
use crate::port::{ClusterError, Guard, StatusPatch, Strategy};

pub(super) const CASES: &[Case] = &[
    case!(
        "status-custom",
        "Writing a custom resource's status touches nothing else, keeps the generation; a patch is guarded by version alone",
        custom
    ),
    case!("status-pod", "Replacing a Pod's status ignores its spec but writes its labels", pod),
    case!(
        "status-patch",
        "A status patch replaces lists, is guarded by uid (422) and version (409), keeps the generation",
        patch
    ),
    case!(
        "status-strategic",
        "A strategic patch merges a Pod's conditions by type; custom resources refuse it",
        strategic
    ),
    case!("status-phase", "Any phase of a Pod can follow any other", phase),
    case!("status-containers", "A container that ended under restartPolicy Never does not run again", containers),
];

fn merge(status: Value) -> StatusPatch {
    StatusPatch { strategy: Strategy::Merge, status }
}

async fn custom(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let first = stage.add_provider().await?;
    let mut changed = Provider::clone(&first);
    changed.spec.paused = true;
    changed.metadata.labels = Some(labels(&[("a", "b")]));
    changed.metadata.finalizers = Some(vec![super::FINALIZER.to_owned()]);
    changed.status = Some(ProviderStatus { observed_generation: 1, machines: 3, ..ProviderStatus::default() });
    let second = cluster.write_status(changed.clone()).await?;
    ensure!(second.status == changed.status, "status {:?}", second.status);
    ensure!(!second.spec.paused, "the spec was written");
    ensure!(second.metadata.labels.is_none() && second.metadata.finalizers.is_none(), "metadata was written");
    ensure!(generation(&*second) == 1, "generation {}", generation(&*second));
    ensure!(version(&*second) != version(&*first), "the version stayed");
    fails!(cluster.write_status(changed.clone()).await, ClusterError::Conflict, "stale version");
    changed.metadata.resource_version = None;
    fails!(cluster.write_status(changed).await, ClusterError::Refused { code: 422, .. }, "no version");
    let mut other = Provider::clone(&second);
    other.metadata.uid = Some(stranger());
    fails!(cluster.write_status(other).await, ClusterError::Conflict, "another uid");
    let key = Key::of(&*second);
    let third =
        cluster.amend_status::<Provider>(&key, &merge(json!({ "machines": 4 })), &Guard::exact(&*second)).await?;
    let status = third.status.clone().unwrap_or_default();
    ensure!((status.machines, status.observed_generation) == (4, 1), "status {status:?}");
    ensure!(generation(&*third) == 1, "generation {}", generation(&*third));
    let more = merge(json!({ "machines": 5 }));
    let stale = cluster.amend_status::<Provider>(&key, &more, &Guard::exact(&*second)).await;
    fails!(stale, ClusterError::Conflict, "a patch of a stale version");
    let fourth = cluster.amend_status::<Provider>(&key, &more, &Guard::uid(stranger())).await?;
    ensure!(fourth.status.as_ref().is_some_and(|status| status.machines == 5), "a uid was looked at after all");
    Ok(())
}

async fn pod(stage: &Stage<'_>) -> Verdict {
    let first = stage.add_pod("a").await?;
    let mut changed = Pod::clone(&first);
    changed.metadata.labels = Some(labels(&[("a", "b")]));
    changed.spec.get_or_insert_default().node_name = Some("elsewhere".to_owned());
    let mut status = status_of(&first);
    status.phase = Some("Running".to_owned());
    status.observed_generation = Some(1);
    changed.status = Some(status);
    let second = stage.cluster.write_status(changed.clone()).await?;
    ensure!(status_of(&second).phase.as_deref() == Some("Running"), "phase {:?}", status_of(&second).phase);
    ensure!(second.spec == first.spec, "the spec was written");
    ensure!(second.metadata.labels == changed.metadata.labels, "labels {:?}", second.metadata.labels);
    ensure!(generation(&*second) == generation(&*first), "generation {}", generation(&*second));
    fails!(stage.cluster.write_status(changed).await, ClusterError::Conflict, "stale version");
    Ok(())
}

async fn patch(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let first = stage.add_pod("a").await?;
    let key = Key::of(&*first);
    let two = json!({ "conditions": [{ "type": "tradewind.dev/A", "status": "True" }, { "type": "tradewind.dev/B", "status": "True" }] });
    let second = cluster.amend_status::<Pod>(&key, &merge(two), &Guard::exact(&*first)).await?;
    ensure!(status_of(&second).conditions.unwrap_or_default().len() == 2, "{:?}", second.status);
    let one = merge(json!({ "conditions": [{ "type": "tradewind.dev/A", "status": "False" }], "message": "m" }));
    let stale = cluster.amend_status::<Pod>(&key, &one, &Guard::exact(&*first)).await;
    fails!(stale, ClusterError::Conflict, "stale version");
    let wrong = cluster.amend_status::<Pod>(&key, &one, &Guard::uid(stranger())).await;
    fails!(wrong, ClusterError::Refused { code: 422, .. }, "wrong uid");
    let third = cluster.amend_status::<Pod>(&key, &one, &Guard::same(&*first)).await?;
    let status = status_of(&third);
    ensure!(status.conditions.unwrap_or_default().len() == 1, "a merge patch did not replace the list");
    ensure!(status.phase.as_deref() == Some("Pending"), "phase {:?}", status.phase);
    ensure!(generation(&*third) == generation(&*first), "generation {}", generation(&*third));
    let fourth = cluster.amend_status::<Pod>(&key, &merge(json!({ "message": null })), &Guard::none()).await?;
    ensure!(status_of(&fourth).message.is_none(), "null did not remove");
    Ok(())
}

async fn strategic(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let first = stage.add_pod("a").await?;
    let key = Key::of(&*first);
    stage
        .patch_pod("a", json!({ "conditions": [{ "type": "tradewind.dev/A", "status": "True", "reason": "Kept" }] }))
        .await?;
    let patch = StatusPatch {
        strategy: Strategy::Strategic,
        status: json!({ "conditions": [{ "type": "tradewind.dev/A", "status": "False" }, { "type": "tradewind.dev/B", "status": "True" }] }),
    };
    let second = cluster.amend_status::<Pod>(&key, &patch, &Guard::same(&*first)).await?;
    let mut conditions: Vec<_> = status_of(&second).conditions.unwrap_or_default();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    let found: Vec<_> =
        conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap_or(""))).collect();
    ensure!(found == [("tradewind.dev/A", "False", "Kept"), ("tradewind.dev/B", "True", "")], "conditions {found:?}");
    let again = cluster.amend_status::<Pod>(&key, &patch, &Guard::same(&*first)).await?;
    ensure!(version(&*again) == version(&*second), "the same patch again changed the version");
    let provider = stage.add_provider().await?;
    let refused = cluster.amend_status::<Provider>(&Key::of(&*provider), &patch, &Guard::none()).await;
    fails!(refused, ClusterError::Refused { code: 415, .. }, "a custom resource");
    Ok(())
}

async fn phase(stage: &Stage<'_>) -> Verdict {
    stage.add_bound_pod("a").await?;
    for phase in ["Running", "Failed", "Running", "Succeeded", "Pending"] {
        let pod = stage.patch_pod("a", json!({ "phase": phase })).await?;
        ensure!(status_of(&pod).phase.as_deref() == Some(phase), "phase {:?}, not {phase}", status_of(&pod).phase);
    }
    Ok(())
}

async fn containers(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_bound_pod("a").await?;
    let container = |state: Value| json!({ "containerStatuses": [{ "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state }] });
    let time = "2026-01-01T00:00:00Z";
    stage.patch_pod("a", container(json!({ "running": { "startedAt": time } }))).await?;
    let ended = json!({ "running": null, "terminated": { "exitCode": 1, "startedAt": time, "finishedAt": time } });
    stage.patch_pod("a", container(ended)).await?;
    let running = merge(container(json!({ "running": { "startedAt": time } })));
    let refused = stage.cluster.amend_status::<Pod>(&Key::of(&*pod), &running, &Guard::none()).await;
    fails!(refused, ClusterError::Refused { code: 422, .. }, "running again");
    Ok(())
}
