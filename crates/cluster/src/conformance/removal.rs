//! Deletion: finalisers, grace, preconditions, namespaces.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use serde_json::json;
use tradewind_api::Provider;

use super::{
    Case, FINALIZER, Failure, Stage, Verdict, case, ensure, fails, generation, is_deleting, named, stranger, version,
};
use crate::object::Key;
use crate::port::{ClusterError, Guard, MetadataPatch, Removal};

pub(super) const CASES: &[Case] = &[
    case!("finaliser", "A finaliser keeps a deleted object, which gets no new ones; the last to go ends it", finaliser),
    case!("no-finaliser", "Without a finaliser a deleted object is gone at once", no_finaliser),
    case!("precondition", "A delete with another uid or version is Conflict", precondition),
    case!("delete-unbound", "A deleted Pod without a node is gone at once", unbound),
    case!("delete-bound", "A deleted Pod on a node stays, Pending or not, until a delete with grace 0", bound),
    case!("delete-over", "A deleted Pod that is over, or has no grace of its own, is gone at once", over),
    case!("delete-sooner", "A repeated delete can only shorten the grace", sooner),
    case!("delete-kept", "A finaliser keeps a Pod through grace 0; it goes with the finaliser", kept),
    case!("status-while-deleting", "The status of a Pod that is being deleted can be written", status),
    case!("namespace", "In a namespace that is being deleted creates are refused and patches work", namespace),
];

async fn finaliser(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let provider = stage.add_provider().await?;
    let key = Key::of(&*provider);
    let provider = stage.set_finalizers(&*provider, &[FINALIZER]).await?;
    cluster.remove::<Provider>(&key, &Removal::guarded(Guard::exact(&*provider))).await?;
    let deleted = cluster.read::<Provider>(&key).await?;
    ensure!(is_deleting(&*deleted), "no deletionTimestamp");
    ensure!(
        deleted.metadata.deletion_grace_period_seconds == Some(0),
        "grace {:?}",
        deleted.metadata.deletion_grace_period_seconds
    );
    ensure!(generation(&*deleted) == generation(&*provider) + 1, "generation {}", generation(&*deleted));
    cluster.remove::<Provider>(&key, &Removal::default()).await?;
    let again = cluster.read::<Provider>(&key).await?;
    ensure!(version(&*again) == version(&*deleted), "a second delete changed something");
    fails!(
        cluster.add(stage.provider()?).await,
        ClusterError::AlreadyExists,
        "create while the old one is still there"
    );
    let more = MetadataPatch {
        finalizers: Some(vec![FINALIZER.to_owned(), "tradewind.dev/more".to_owned()]),
        ..MetadataPatch::default()
    };
    let refused = cluster.amend::<Provider>(&key, &more, &Guard::none()).await;
    fails!(refused, ClusterError::Refused { code: 422, .. }, "a new finaliser on a deleted object");
    let last = stage.set_finalizers(&*deleted, &[]).await?;
    ensure!(last.metadata.finalizers.is_none(), "the answer still has {:?}", last.metadata.finalizers);
    ensure!(stage.is_gone::<Provider>(&key).await?, "the object outlived its last finaliser");
    Ok(())
}

async fn no_finaliser(stage: &Stage<'_>) -> Verdict {
    let provider = stage.add_provider().await?;
    stage.cluster.remove::<Provider>(&Key::of(&*provider), &Removal::default()).await?;
    ensure!(stage.is_gone::<Provider>(&Key::of(&*provider)).await?, "still there");
    let map = stage.cluster.add(stage.config_map("a")).await?;
    stage.cluster.remove::<ConfigMap>(&Key::of(&*map), &Removal::default()).await?;
    ensure!(stage.is_gone::<ConfigMap>(&Key::of(&*map)).await?, "still there");
    Ok(())
}

async fn precondition(stage: &Stage<'_>) -> Verdict {
    let provider = stage.add_provider().await?;
    let key = Key::of(&*provider);
    let stale = Guard::exact(&*provider);
    let provider = stage.set_finalizers(&*provider, &[]).await?;
    let patch = MetadataPatch { labels: [("a".to_owned(), Some("b".to_owned()))].into(), ..MetadataPatch::default() };
    let newest = stage.cluster.amend::<Provider>(&key, &patch, &Guard::same(&*provider)).await?;
    let attempt = async |guard: Guard| stage.cluster.remove::<Provider>(&key, &Removal::guarded(guard)).await;
    fails!(attempt(stale).await, ClusterError::Conflict, "stale version");
    fails!(attempt(Guard::uid(stranger())).await, ClusterError::Conflict, "another uid");
    ensure!(!is_deleting(&*stage.cluster.read::<Provider>(&key).await?), "deleted all the same");
    attempt(Guard::exact(&*newest)).await?;
    ensure!(stage.is_gone::<Provider>(&key).await?, "still there");
    Ok(())
}

async fn unbound(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_pod("a").await?;
    stage.cluster.remove::<Pod>(&Key::of(&*pod), &Removal::guarded(Guard::same(&*pod))).await?;
    ensure!(stage.is_gone::<Pod>(&Key::of(&*pod)).await?, "still there");
    Ok(())
}

async fn bound(stage: &Stage<'_>) -> Verdict {
    for phase in ["Pending", "Running"] {
        let pod = stage.add_bound_pod(&phase.to_lowercase()).await?;
        let key = Key::of(&*pod);
        let pod = stage.patch_pod(&key.name, json!({ "phase": phase })).await?;
        stage.cluster.remove::<Pod>(&key, &Removal::guarded(Guard::exact(&*pod))).await?;
        let deleted = stage.cluster.read::<Pod>(&key).await?;
        ensure!(is_deleting(&*deleted), "{phase}: no deletionTimestamp");
        let grace = deleted.metadata.deletion_grace_period_seconds;
        ensure!(grace == Some(30), "{phase}: grace {grace:?}");
        ensure!(generation(&*deleted) == generation(&*pod) + 1, "{phase}: generation {}", generation(&*deleted));
        let wrong = Removal::guarded(Guard::uid(stranger())).at_once();
        fails!(stage.cluster.remove::<Pod>(&key, &wrong).await, ClusterError::Conflict, "another Pod's uid");
        let right = Removal::guarded(Guard::same(&*pod)).at_once();
        stage.cluster.remove::<Pod>(&key, &right).await?;
        ensure!(stage.is_gone::<Pod>(&key).await?, "{phase}: still there after grace 0");
    }
    Ok(())
}

async fn over(stage: &Stage<'_>) -> Verdict {
    for phase in ["Succeeded", "Failed"] {
        let pod = stage.add_bound_pod(&phase.to_lowercase()).await?;
        stage.patch_pod(&Key::of(&*pod).name, json!({ "phase": phase })).await?;
        stage.cluster.remove::<Pod>(&Key::of(&*pod), &Removal::default()).await?;
        ensure!(stage.is_gone::<Pod>(&Key::of(&*pod)).await?, "{phase}: still there");
    }
    let mut hasty = stage.pod("hasty");
    let spec = hasty.spec.get_or_insert_default();
    spec.termination_grace_period_seconds = Some(0);
    spec.node_name = Some(super::NODE.to_owned());
    let hasty = stage.cluster.add(hasty).await?;
    stage.cluster.remove::<Pod>(&Key::of(&*hasty), &Removal::default()).await?;
    ensure!(stage.is_gone::<Pod>(&Key::of(&*hasty)).await?, "no grace: still there");
    Ok(())
}

async fn sooner(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_bound_pod("a").await?;
    let key = Key::of(&*pod);
    let delete = async |seconds| {
        let how = Removal { grace_seconds: seconds, ..Removal::default() };
        stage.cluster.remove::<Pod>(&key, &how).await?;
        let pod = stage.cluster.read::<Pod>(&key).await?;
        let ends = pod.metadata.deletion_timestamp.clone().ok_or_else(|| Failure("no deletionTimestamp".to_owned()))?;
        Ok::<_, Failure>((ends.0, pod.metadata.deletion_grace_period_seconds, version(&*pod).to_owned()))
    };
    let first = delete(Some(600)).await?;
    ensure!(first.1 == Some(600), "grace {:?}", first.1);
    ensure!(delete(Some(900)).await? == first, "a longer grace changed something");
    ensure!(delete(None).await? == first, "a delete without a grace changed something");
    let shorter = delete(Some(100)).await?;
    ensure!(shorter.1 == Some(100), "grace {:?}", shorter.1);
    let moved = first.0.duration_since(shorter.0).as_secs();
    ensure!(moved == 500, "the end moved by {moved} s");
    stage.cluster.remove::<Pod>(&key, &Removal::default().at_once()).await?;
    Ok(())
}

async fn kept(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_bound_pod("a").await?;
    let key = Key::of(&*pod);
    let pod = stage.set_finalizers(&*pod, &[FINALIZER]).await?;
    stage.cluster.remove::<Pod>(&key, &Removal::default().at_once()).await?;
    let deleted = stage.cluster.read::<Pod>(&key).await?;
    ensure!(is_deleting(&*deleted), "no deletionTimestamp");
    let grace = deleted.metadata.deletion_grace_period_seconds;
    ensure!(grace == Some(0), "grace {grace:?}");
    stage.set_finalizers(&*pod, &[]).await?;
    ensure!(stage.is_gone::<Pod>(&key).await?, "still there");

    let pod = stage.add_bound_pod("graceful").await?;
    let key = Key::of(&*pod);
    stage.set_finalizers(&*pod, &[FINALIZER]).await?;
    stage.cluster.remove::<Pod>(&key, &Removal::default()).await?;
    stage.set_finalizers(&*pod, &[]).await?;
    ensure!(!stage.is_gone::<Pod>(&key).await?, "the last finaliser ended a Pod within its grace");
    stage.cluster.remove::<Pod>(&key, &Removal::default().at_once()).await?;
    ensure!(stage.is_gone::<Pod>(&key).await?, "still there after grace 0");
    Ok(())
}

async fn status(stage: &Stage<'_>) -> Verdict {
    let pod = stage.add_bound_pod("a").await?;
    stage.cluster.remove::<Pod>(&Key::of(&*pod), &Removal::default()).await?;
    let patched = stage.patch_pod("a", json!({ "phase": "Failed", "reason": "Outbid" })).await?;
    ensure!(is_deleting(&*patched), "the deletionTimestamp was lost");
    let phase = patched.status.as_ref().and_then(|status| status.phase.as_deref());
    ensure!(phase == Some("Failed"), "phase {phase:?}");
    stage.cluster.remove::<Pod>(&Key::of(&*pod), &Removal::default().at_once()).await?;
    ensure!(stage.is_gone::<Pod>(&Key::of(&*pod)).await?, "still there after grace 0");
    Ok(())
}

async fn namespace(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let mut anchor = stage.config_map("anchor");
    anchor.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    let anchor = cluster.add(anchor).await?;
    let key = Key::cluster(&*stage.namespace);
    cluster.remove::<Namespace>(&key, &Removal::default()).await?;
    let ending = cluster.read::<Namespace>(&key).await?;
    ensure!(is_deleting(&*ending), "no deletionTimestamp");
    let phase = ending.status.as_ref().and_then(|status| status.phase.as_deref());
    ensure!(phase == Some("Terminating"), "phase {phase:?}");
    fails!(cluster.add(stage.pod("a")).await, ClusterError::NamespaceTerminating, "a Pod");
    fails!(cluster.add(stage.config_map("a")).await, ClusterError::NamespaceTerminating, "a ConfigMap");
    let secret = Secret { metadata: named(&stage.namespace, "a"), ..Secret::default() };
    fails!(cluster.add(secret).await, ClusterError::NamespaceTerminating, "a Secret");
    let trial = serde_json::to_value(stage.pod("a"))?;
    let trial = cluster.create_dry_run_strict(&crate::kinds::POD, &stage.namespace, &trial).await;
    fails!(trial, ClusterError::NamespaceTerminating, "a dry run");
    let patch = MetadataPatch { labels: [("a".to_owned(), Some("b".to_owned()))].into(), ..MetadataPatch::default() };
    cluster.amend::<ConfigMap>(&Key::of(&*anchor), &patch, &Guard::same(&*anchor)).await?;
    stage.set_finalizers(&*anchor, &[]).await?;
    Ok(())
}
