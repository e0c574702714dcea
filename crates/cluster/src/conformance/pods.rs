//! Binding, defaults and the spec of Pods; Nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Pod, PodSchedulingGate, Toleration};
use serde_json::json;

use super::{
    Case, Failure, NODE, Stage, Verdict, case, ensure, fails, generation, labels, named, status_of, stranger, uid,
    version,
};
use crate::object::{Key, Typed};
use crate::port::{ClusterError, Guard, Removal, StatusPatch, Strategy};

pub(super) const CASES: &[Case] = &[
    case!(
        "bind",
        "Binding assigns an unbound Pod to a node that need not exist, with annotations in the same write",
        bind
    ),
    case!("bind-once", "A bound, gated, deleted or replaced Pod cannot be bound: Conflict", bind_conflicts),
    case!("tolerations", "A Pod gets two default tolerations of 300 s; they can be made unlimited later", tolerations),
    case!("pod-spec", "Nothing else of a Pod's spec can be changed", pod_spec),
    case!("node", "A Node keeps the status it was created with; its conditions merge by type", node),
];

async fn bind(stage: &Stage<'_>) -> Verdict {
    let mut pod = stage.pod("a");
    pod.metadata.annotations = Some(labels(&[("a", "old"), ("b", "kept")]));
    let pod = stage.cluster.add(pod).await?;
    let placement = labels(&[("a", "new"), ("tradewind.dev/placement", "x")]);
    stage.cluster.bind(&Key::of(&*pod), uid(&*pod), NODE, &placement).await?;
    let bound = stage.cluster.read::<Pod>(&Key::of(&*pod)).await?;
    let node = bound.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    ensure!(node == Some(NODE), "node {node:?}");
    let expected = labels(&[("a", "new"), ("b", "kept"), ("tradewind.dev/placement", "x")]);
    ensure!(bound.metadata.annotations == Some(expected), "annotations {:?}", bound.metadata.annotations);
    let conditions = status_of(&bound).conditions.unwrap_or_default();
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    ensure!(scheduled.is_some_and(|condition| condition.status == "True"), "conditions {conditions:?}");
    ensure!(uid(&*bound) == uid(&*pod), "another uid");
    ensure!(generation(&*bound) == 1, "generation {} after a bind", generation(&*bound));
    Ok(())
}

async fn bind_conflicts(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let none = BTreeMap::new();
    let pod = stage.add_bound_pod("bound").await?;
    fails!(
        cluster.bind(&Key::of(&*pod), uid(&*pod), NODE, &none).await,
        ClusterError::Conflict,
        "bound to the same node"
    );
    fails!(cluster.bind(&Key::of(&*pod), uid(&*pod), "other", &none).await, ClusterError::Conflict, "bound elsewhere");

    let pod = stage.add_pod("replaced").await?;
    fails!(cluster.bind(&Key::of(&*pod), &stranger(), NODE, &none).await, ClusterError::Conflict, "wrong uid");

    let mut gated = stage.pod("gated");
    let gate = PodSchedulingGate { name: "tradewind.dev/gate".to_owned() };
    gated.spec.get_or_insert_default().scheduling_gates = Some(vec![gate]);
    let gated = cluster.add(gated).await?;
    fails!(cluster.bind(&Key::of(&*gated), uid(&*gated), NODE, &none).await, ClusterError::Conflict, "gated");

    let mut kept = stage.pod("deleted");
    kept.metadata.finalizers = Some(vec![super::FINALIZER.to_owned()]);
    let kept = cluster.add(kept).await?;
    cluster.remove::<Pod>(&Key::of(&*kept), &Removal::default()).await?;
    fails!(cluster.bind(&Key::of(&*kept), uid(&*kept), NODE, &none).await, ClusterError::Conflict, "deleted");
    stage.set_finalizers(&*kept, &[]).await?;
    Ok(())
}

async fn tolerations(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_bound_pod("a").await?;
    let spec = pod.spec.clone().unwrap_or_default();
    let seconds: Vec<_> = spec.tolerations.iter().flatten().map(|toleration| toleration.toleration_seconds).collect();
    ensure!(seconds == [Some(300), Some(300)], "tolerations {:?}", spec.tolerations);
    let mut changed = Pod::clone(&pod);
    for toleration in changed.spec.iter_mut().flat_map(|spec| spec.tolerations.iter_mut().flatten()) {
        toleration.toleration_seconds = None;
    }
    let mut bare = Pod::clone(&pod);
    bare.spec.get_or_insert_default().tolerations = None;
    let bare = stage.cluster.write(bare).await?;
    ensure!(version(&*bare) == version(&*pod), "the defaults were not put back: {:?}", bare.spec);
    let changed = stage.cluster.write(changed).await?;
    let spec = changed.spec.clone().unwrap_or_default();
    let unlimited = spec.tolerations.iter().flatten().filter(|toleration| toleration.toleration_seconds.is_none());
    ensure!(unlimited.count() == 2, "tolerations {:?}", spec.tolerations);
    ensure!(generation(&*changed) == generation(&*pod) + 1, "generation {}", generation(&*changed));

    let mut own = stage.pod("own");
    let all = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
    own.spec.get_or_insert_default().tolerations = Some(vec![all]);
    let own = stage.cluster.add(own).await?;
    let spec = own.spec.clone().unwrap_or_default();
    ensure!(spec.tolerations.iter().flatten().count() == 1, "a tolerant Pod got more: {:?}", spec.tolerations);
    Ok(())
}

async fn pod_spec(stage: &Stage<'_>) -> Verdict {
    let mut pod = stage.pod("a");
    let tolerant = Toleration {
        key: Some("tradewind.dev/x".to_owned()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    };
    pod.spec.get_or_insert_default().tolerations = Some(vec![tolerant]);
    let pod = stage.cluster.add(pod).await?;
    let mut moved = Pod::clone(&pod);
    moved.spec.get_or_insert_default().node_name = Some(NODE.to_owned());
    fails!(stage.cluster.write(moved).await, ClusterError::Refused { code: 422, .. }, "nodeName");
    let mut renamed = Pod::clone(&pod);
    renamed.spec.get_or_insert_default().containers[0].command = Some(vec!["x".to_owned()]);
    fails!(stage.cluster.write(renamed).await, ClusterError::Refused { code: 422, .. }, "command");
    let mut fewer = Pod::clone(&pod);
    fewer.spec.get_or_insert_default().tolerations = None;
    fails!(stage.cluster.write(fewer).await, ClusterError::Refused { code: 422, .. }, "tolerations taken away");
    let mut image = Pod::clone(&pod);
    image.spec.get_or_insert_default().containers[0].image = Some("registry.invalid/image:2".to_owned());
    let image = stage.cluster.write(image).await?;
    ensure!(generation(&*image) == 2, "generation {}", generation(&*image));
    Ok(())
}

async fn node(stage: &Stage<'_>) -> Verdict {
    let condition = |type_: &str, status: &str| NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        ..NodeCondition::default()
    };
    let status = NodeStatus {
        conditions: Some(vec![condition("Ready", "True"), condition("tradewind.dev/Account", "True")]),
        ..NodeStatus::default()
    };
    let mut metadata = named("", &stage.namespace);
    metadata.labels = Some(labels(&[("failure-domain.beta.kubernetes.io/region", "tradewind")]));
    let made = stage.cluster.add(Node { metadata, status: Some(status), ..Node::default() }).await?;
    let of_type = |node: &Node, type_: &str| {
        let list = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        list.filter(|condition| condition.type_ == type_).map(|condition| condition.status.clone()).collect::<Vec<_>>()
    };
    ensure!(of_type(&made, "Ready") == ["True"], "the status of the create is lost: {:?}", made.status);
    let patch = StatusPatch {
        strategy: Strategy::Strategic,
        status: json!({ "conditions": [{ "type": "tradewind.dev/Account", "status": "False" }] }),
    };
    let node = stage.cluster.amend_status::<Node>(&Key::of(&*made), &patch, &Guard::same(&*made)).await?;
    ensure!(of_type(&node, "tradewind.dev/Account") == ["False"], "conditions {:?}", node.status);
    ensure!(of_type(&node, "Ready") == ["True"], "the other condition was lost: {:?}", node.status);
    ensure!(version(&*node) != version(&*made), "the version stayed");
    stage.cluster.delete(Node::KIND, &Key::of(&*made), &Removal::guarded(Guard::same(&*made))).await?;
    let again = stage.cluster.find::<Node>(&Key::of(&*made)).await?;
    again.map_or(Ok(()), |_| Err(Failure("a deleted Node is still there".to_owned())))
}
