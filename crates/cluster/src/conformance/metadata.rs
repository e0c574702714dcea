//! Identity, versions, spec and metadata of objects of any kind.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::json;
use tradewind_api::Provider;

use super::{Case, Failure, Stage, Verdict, case, ensure, fails, generation, labels, named, stranger, uid, version};
use crate::object::{Key, Typed};
use crate::port::{Access, ClusterError, Guard, MetadataPatch, Selector};

pub(super) const CASES: &[Case] = &[
    case!("create", "Create gives uid, version and birth, and drops what the caller left of them", create),
    case!("create-twice", "A second create of a name is AlreadyExists and changes nothing", create_twice),
    case!("no-namespace", "Create in a namespace that does not exist is NotFound", create_without_namespace),
    case!("absent", "Every verb on an absent object is NotFound, whatever its uid", absent),
    case!("list", "List selects by namespace and by label equalities, ordered by key", list),
    case!("replace", "Replace needs the newest version, raises generation with spec only, ignores status", replace),
    case!(
        "replace-same",
        "A write without a change keeps the resourceVersion, but for the first after a custom resource's create",
        same
    ),
    case!(
        "patch-metadata",
        "A metadata patch sets and removes, and is guarded by uid (422) and version (409)",
        patch_metadata
    ),
    case!("dry-run", "A strict dry run names what is wrong and changes nothing", dry_run),
    case!("secret", "A Secret's data comes back through get", secret),
    case!(
        "lease",
        "A Lease has one winner per version, also when it is gone; release is an empty holder with one second",
        lease
    ),
    case!("event", "An Event can be created and counts repeats through replace", event),
    case!("access", "An access review answers without an error", access),
];

async fn create(stage: &Stage<'_>) -> Verdict {
    let mut wanted = stage.provider()?;
    wanted.metadata.uid = Some(stranger());
    wanted.metadata.resource_version = Some("1".to_owned());
    wanted.status = Some(serde_json::from_value(json!({ "observedGeneration": 7, "machines": 5 }))?);
    let made = stage.cluster.add(wanted).await?;
    ensure!(!uid(&*made).is_empty() && uid(&*made) != stranger(), "uid {:?}", made.metadata.uid);
    ensure!(version(&*made).parse::<u64>().is_ok_and(|version| version > 1), "version {:?}", version(&*made));
    ensure!(made.metadata.creation_timestamp.is_some(), "no creationTimestamp");
    ensure!(generation(&*made) == 1, "generation {}", generation(&*made));
    let status = made.status.clone().ok_or_else(|| Failure("the status has no default".to_owned()))?;
    ensure!(status.observed_generation == -1, "observedGeneration {}", status.observed_generation);
    ensure!(status.machines == 0, "a status sent with a create was kept");
    let read = stage.cluster.read::<Provider>(&Key::of(&*made)).await?;
    ensure!(version(&*read) == version(&*made), "get answers another version than create");
    let pod = stage.add_pod("a").await?;
    ensure!(generation(&*pod) == 1, "generation of a Pod: {}", generation(&*pod));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    ensure!(phase == Some("Pending"), "phase {phase:?}");
    Ok(())
}

async fn create_twice(stage: &Stage<'_>) -> Verdict {
    let first = stage.add_pod("a").await?;
    fails!(stage.cluster.add(stage.pod("a")).await, ClusterError::AlreadyExists, "second create");
    let read = stage.cluster.read::<Pod>(&stage.key("a")).await?;
    ensure!(version(&*read) == version(&*first), "the first was changed");
    Ok(())
}

async fn create_without_namespace(stage: &Stage<'_>) -> Verdict {
    let map = ConfigMap { metadata: named("conformance-never-made", "a"), ..ConfigMap::default() };
    fails!(stage.cluster.add(map).await, ClusterError::NotFound, "create");
    Ok(())
}

async fn absent(stage: &Stage<'_>) -> Verdict {
    let (cluster, key) = (stage.cluster, stage.key("absent"));
    fails!(cluster.read::<Pod>(&key).await, ClusterError::NotFound, "get");
    let label = MetadataPatch { labels: [("a".to_owned(), Some("b".to_owned()))].into(), ..MetadataPatch::default() };
    fails!(cluster.amend::<Pod>(&key, &label, &Guard::none()).await, ClusterError::NotFound, "patch_metadata");
    let status = super::StatusPatch { strategy: super::Strategy::Merge, status: json!({ "phase": "Running" }) };
    fails!(cluster.amend_status::<Pod>(&key, &status, &Guard::none()).await, ClusterError::NotFound, "patch_status");
    fails!(cluster.remove::<Pod>(&key, &super::Removal::default()).await, ClusterError::NotFound, "delete");
    fails!(cluster.bind(&key, "", "n", &BTreeMap::new()).await, ClusterError::NotFound, "bind without a uid");
    let mut provider = stage.provider()?;
    provider.metadata.resource_version = Some("1".to_owned());
    fails!(cluster.write(provider.clone()).await, ClusterError::NotFound, "replace");
    fails!(cluster.write_status(provider.clone()).await, ClusterError::NotFound, "replace_status");
    provider.metadata.uid = Some(stranger());
    fails!(cluster.write(provider.clone()).await, ClusterError::NotFound, "replace with a uid");
    fails!(cluster.write_status(provider).await, ClusterError::NotFound, "replace_status with a uid");
    Ok(())
}

async fn list(stage: &Stage<'_>) -> Verdict {
    for (name, color, size) in [("c", "red", "1"), ("a", "red", "2"), ("b", "blue", "1")] {
        let mut map = stage.config_map(name);
        map.metadata.labels = Some(labels(&[("tradewind.dev/color", color), ("size", size), ("ns", &stage.namespace)]));
        stage.cluster.add(map).await?;
    }
    let of_case = Selector::label("ns", &*stage.namespace);
    let table: [(Option<&str>, Selector, &[&str]); 5] = [
        (None, of_case.clone(), &["a", "b", "c"]),
        (Some(&stage.namespace), of_case.clone().and("tradewind.dev/color", "red"), &["a", "c"]),
        (Some(&stage.namespace), of_case.clone().and("tradewind.dev/color", "red").and("size", "1"), &["c"]),
        (Some(&stage.namespace), of_case.clone().and("size", "3"), &[]),
        (Some("default"), of_case, &[]),
    ];
    for (namespace, selector, names) in table {
        let found = stage.cluster.read_all::<ConfigMap>(namespace, &selector).await?;
        let found: Vec<_> = found.iter().filter_map(|map| map.metadata.name.as_deref()).collect();
        ensure!(found == names, "{namespace:?} {selector:?}: {found:?}");
    }
    Ok(())
}

async fn replace(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let first = stage.add_provider().await?;
    let mut changed = Provider::clone(&first);
    changed.spec.paused = true;
    changed.status = Some(serde_json::from_value(json!({ "machines": 5 }))?);
    let second = cluster.write(changed.clone()).await?;
    ensure!(generation(&*second) == 2, "generation {} after a change of spec", generation(&*second));
    ensure!(version(&*second) != version(&*first), "the version stayed");
    ensure!(second.spec.paused, "the spec was not written");
    ensure!(second.status.as_ref().is_some_and(|status| status.machines == 0), "replace wrote the status");
    fails!(cluster.write(changed).await, ClusterError::Conflict, "stale version");
    let mut unversioned = Provider::clone(&second);
    unversioned.metadata.resource_version = None;
    fails!(cluster.write(unversioned).await, ClusterError::Refused { code: 422, .. }, "no version");
    let mut other = Provider::clone(&second);
    other.metadata.uid = Some(stranger());
    fails!(cluster.write(other).await, ClusterError::Conflict, "another uid");
    let mut labelled = Provider::clone(&second);
    labelled.metadata.labels = Some(labels(&[("a", "b")]));
    let third = cluster.write(labelled).await?;
    ensure!(generation(&*third) == 2, "a label raised the generation");
    ensure!(third.metadata.labels.is_some(), "the label was not written");
    Ok(())
}

async fn same(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let fresh = stage.add_provider().await?;
    let provider = cluster.write(Provider::clone(&fresh)).await?;
    ensure!(version(&*provider) != version(&*fresh), "the defaults of the status were stored with the create");
    let again = cluster.write(Provider::clone(&provider)).await?;
    ensure!(version(&*again) == version(&*provider), "replace without a change");
    let again = cluster.write_status(Provider::clone(&provider)).await?;
    ensure!(version(&*again) == version(&*provider), "replace_status without a change");
    let patch = MetadataPatch { labels: [("a".to_owned(), None)].into(), ..MetadataPatch::default() };
    let again = cluster.amend::<Provider>(&Key::of(&*provider), &patch, &Guard::none()).await?;
    ensure!(version(&*again) == version(&*provider), "removing an absent label");
    let pod = stage.add_pod("a").await?;
    let again = stage.patch_pod("a", json!({ "phase": "Pending" })).await?;
    ensure!(version(&*again) == version(&*pod), "patch_status without a change");
    Ok(())
}

async fn patch_metadata(stage: &Stage<'_>) -> Verdict {
    let cluster = stage.cluster;
    let first = stage.add_provider().await?;
    let key = Key::of(&*first);
    let set = MetadataPatch {
        finalizers: Some(vec![super::FINALIZER.to_owned()]),
        labels: [("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), Some("2".to_owned()))].into(),
        annotations: [("c".to_owned(), Some("3".to_owned()))].into(),
    };
    let second = cluster.amend::<Provider>(&key, &set, &Guard::exact(&*first)).await?;
    ensure!(second.metadata.labels == Some(labels(&[("a", "1"), ("b", "2")])), "labels {:?}", second.metadata.labels);
    ensure!(second.metadata.annotations == Some(labels(&[("c", "3")])), "annotations");
    ensure!(second.metadata.finalizers.as_deref() == Some(&[super::FINALIZER.to_owned()]), "finalizers");
    ensure!(generation(&*second) == 1, "metadata raised the generation");
    fails!(
        cluster.amend::<Provider>(&key, &set, &Guard::exact(&*first)).await,
        ClusterError::Conflict,
        "stale version"
    );
    let other = Guard::uid(stranger());
    fails!(cluster.amend::<Provider>(&key, &set, &other).await, ClusterError::Refused { code: 422, .. }, "wrong uid");
    let both = Guard { resource_version: first.metadata.resource_version.clone(), ..other };
    fails!(cluster.amend::<Provider>(&key, &set, &both).await, ClusterError::Conflict, "wrong uid and stale version");
    let unset = MetadataPatch {
        finalizers: Some(vec![]),
        labels: [("a".to_owned(), None), ("x".to_owned(), None)].into(),
        annotations: [("c".to_owned(), None)].into(),
    };
    let third = cluster.amend::<Provider>(&key, &unset, &Guard::same(&*first)).await?;
    ensure!(third.metadata.labels == Some(labels(&[("b", "2")])), "labels {:?}", third.metadata.labels);
    ensure!(third.metadata.finalizers.is_none() && third.metadata.annotations.is_none(), "something stayed");
    Ok(())
}

async fn dry_run(stage: &Stage<'_>) -> Verdict {
    let (cluster, namespace) = (stage.cluster, &*stage.namespace);
    let attempt = async |object: &serde_json::Value| cluster.create_dry_run_strict(Pod::KIND, namespace, object).await;
    let mut good = serde_json::to_value(stage.pod("a"))?;
    good["metadata"].as_object_mut().map(|metadata| metadata.remove("namespace"));
    attempt(&good).await?;
    ensure!(stage.is_gone::<Pod>(&stage.key("a")).await?, "a dry run created a Pod");

    let mut misspelt = good.clone();
    misspelt["spec"]["containers"][0]["imagee"] = json!("x");
    match attempt(&misspelt).await {
        Err(ClusterError::Refused { code: 400, message, causes, .. }) => {
            ensure!(message.contains("spec.containers[0].imagee"), "{message}");
            ensure!(causes.is_empty(), "{causes:?}");
        }
        other => return Err(Failure(format!("unknown field: {other:?}"))),
    }
    let mut mistyped = good.clone();
    mistyped["spec"]["containers"][0]["command"] = json!("x");
    fails!(attempt(&mistyped).await, ClusterError::Refused { code: 400, .. }, "wrong type");
    let mut empty = good.clone();
    empty["spec"]["containers"] = json!([]);
    match attempt(&empty).await {
        Err(ClusterError::Refused { code: 422, reason, causes, .. }) => {
            ensure!(reason == "Invalid", "reason {reason}");
            ensure!(causes.iter().any(|cause| cause.field == "spec.containers"), "{causes:?}");
        }
        other => return Err(Failure(format!("no containers: {other:?}"))),
    }
    let mut unseen = good.clone();
    unseen["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": "never-made" } }]);
    attempt(&unseen).await?;
    let elsewhere = cluster.create_dry_run_strict(Pod::KIND, "conformance-never-made", &good).await;
    fails!(elsewhere, ClusterError::NotFound, "namespace");
    stage.add_pod("a").await?;
    fails!(attempt(&good).await, ClusterError::AlreadyExists, "name taken");
    Ok(())
}

async fn secret(stage: &Stage<'_>) -> Verdict {
    let data: BTreeMap<_, _> = [("key".to_owned(), ByteString(vec![0, 159, 146, 150]))].into();
    let metadata = named(&stage.namespace, "a");
    stage.cluster.add(Secret { metadata, data: Some(data.clone()), ..Secret::default() }).await?;
    let read = stage.cluster.read::<Secret>(&stage.key("a")).await?;
    ensure!(read.data == Some(data), "the data changed on the way");
    let printed = format!("{:?}", read as std::sync::Arc<dyn crate::Object>);
    ensure!(!printed.contains("159"), "a Secret was printed");
    Ok(())
}

async fn lease(stage: &Stage<'_>) -> Verdict {
    let spec = |holder: &str, seconds: i32| LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(seconds),
        renew_time: Some(MicroTime(jiff::Timestamp::UNIX_EPOCH)),
        ..LeaseSpec::default()
    };
    let metadata = named(&stage.namespace, "a");
    let free = stage.cluster.add(Lease { metadata, spec: Some(spec("", 1)) }).await?;
    ensure!(free.metadata.generation.is_none(), "a Lease has a generation");
    let mut gone = Lease::clone(&free);
    gone.metadata.name = Some("gone".to_owned());
    fails!(stage.cluster.write(gone).await, ClusterError::Conflict, "a Lease that is gone");
    let taken = Lease { spec: Some(spec("one", 15)), ..Lease::clone(&free) };
    let held = stage.cluster.write(taken).await?;
    let late = Lease { spec: Some(spec("two", 15)), ..Lease::clone(&free) };
    fails!(stage.cluster.write(late).await, ClusterError::Conflict, "the second to take it");
    let released = stage.cluster.write(Lease { spec: Some(spec("", 1)), ..Lease::clone(&held) }).await?;
    let holder = released.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    ensure!(holder.unwrap_or_default().is_empty(), "holder {holder:?}");
    Ok(())
}

async fn event(stage: &Stage<'_>) -> Verdict {
    let event = Event {
        metadata: named(&stage.namespace, "a"),
        action: Some("Renting".to_owned()),
        event_time: Some(MicroTime(jiff::Timestamp::UNIX_EPOCH)),
        reason: Some("Rented".to_owned()),
        note: Some("A machine was rented".to_owned()),
        type_: Some("Normal".to_owned()),
        reporting_controller: Some("tradewind.dev/conformance".to_owned()),
        reporting_instance: Some("one".to_owned()),
        regarding: Some(ObjectReference { namespace: Some(stage.namespace.clone()), ..ObjectReference::default() }),
        ..Event::default()
    };
    let made = stage.cluster.add(event.clone()).await?;
    fails!(stage.cluster.add(event).await, ClusterError::AlreadyExists, "the same name");
    let mut repeated = Event::clone(&made);
    repeated.series = Some(k8s_openapi::api::events::v1::EventSeries {
        count: 2,
        last_observed_time: MicroTime(jiff::Timestamp::UNIX_EPOCH),
    });
    let repeated = stage.cluster.write(repeated).await?;
    ensure!(repeated.series.as_ref().is_some_and(|series| series.count == 2), "series {:?}", repeated.series);
    Ok(())
}

async fn access(stage: &Stage<'_>) -> Verdict {
    let access = Access {
        verb: "get".to_owned(),
        resource: "secrets".to_owned(),
        namespace: stage.namespace.clone(),
        ..Access::default()
    };
    let own = stage.cluster.access_review(&access).await?;
    ensure!(own.allowed, "the suite's own user may not read Secrets: {}", own.reason);
    let subject = crate::port::Subject { user: "nobody".to_owned(), groups: vec![] };
    stage.cluster.access_review(&Access { subject: Some(subject), ..access }).await?;
    Ok(())
}
