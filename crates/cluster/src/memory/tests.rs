use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::ObjectMeta;
use tradewind_core::ManualClock;
use tradewind_core::gate::{Gate, Point, Verdict};

use super::{Memory, at_once, controllers};
use crate::conformance;
use crate::object::{Key, Object, Typed};
use crate::port::{Cluster, ClusterError, Guard, MetadataPatch, Removal};

fn memory() -> Arc<Memory> {
    let start = Timestamp::from_second(1_800_000_000).unwrap();
    Arc::new(Memory::new(Arc::new(ManualClock::new(start, 7))))
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some("default".to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn pod(name: &str) -> Pod {
    let container = Container { name: "main".to_owned(), image: Some("i".to_owned()), ..Container::default() };
    let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    Pod { metadata: meta(name), spec: Some(spec), status: None }
}

fn map(name: &str) -> ConfigMap {
    ConfigMap { metadata: meta(name), ..ConfigMap::default() }
}

fn key(name: &str) -> Key {
    Key::namespaced("default", name)
}

fn port(memory: &Memory) -> &dyn Cluster {
    memory
}

fn add<K: Typed>(memory: &Memory, object: K) -> Arc<K> {
    at_once(port(memory).add(object)).expect("the create is fine")
}

#[test]
fn conforms() {
    let memory = memory();
    let failed = at_once(conformance::run(&*memory, &conformance::Ready, "1"));
    let report: Vec<_> =
        failed.iter().map(|(case, failure)| format!("{}: {}\n  {}", case.name, case.fact, failure.0)).collect();
    assert!(report.is_empty(), "{}", report.join("\n"));
    assert!(conformance::cases().len() > 30);
}

#[test]
fn nothing_happens_before_the_first_poll() {
    let memory = memory();
    drop(memory.create(Pod::KIND, Arc::new(pod("a"))));
    assert!(memory.peek::<Pod>(&key("a")).is_none());
}

#[test]
fn the_log_tells_each_change_once_and_in_order() {
    let memory = memory();
    let (before, start) = memory.snapshot(Pod::KIND);
    assert!(before.is_empty());
    add(&memory, pod("a"));
    add(&memory, map("noise"));
    add(&memory, pod("b"));
    at_once(port(&memory).remove::<Pod>(&key("a"), &Removal::default())).unwrap();
    let changes = memory.changes(Pod::KIND, start).unwrap();
    let told: Vec<_> = changes.changes.iter().map(|change| (Key::of(&*change.object).name, change.gone)).collect();
    assert_eq!(told, [("a".to_owned(), false), ("b".to_owned(), false), ("a".to_owned(), true)]);
    let versions: Vec<u64> =
        changes.changes.iter().map(|c| c.object.meta().resource_version.as_ref().unwrap().parse().unwrap()).collect();
    assert!(versions.is_sorted() && versions[0] < versions[2], "{versions:?}");
    assert!(memory.changes(Pod::KIND, changes.next).unwrap().changes.is_empty());
}

#[test]
fn a_log_that_is_too_old_says_so() {
    let memory = memory();
    let (_, start) = memory.snapshot(ConfigMap::KIND);
    let mut last = add(&memory, map("a"));
    for round in 0..9_000 {
        let mut next = ConfigMap::clone(&last);
        next.data = Some([("round".to_owned(), round.to_string())].into());
        last = at_once(port(&memory).write(next)).unwrap();
    }
    assert!(memory.changes(ConfigMap::KIND, start).is_none());
    let (objects, next) = memory.snapshot(ConfigMap::KIND);
    assert_eq!(objects.len(), 1);
    assert!(memory.changes(ConfigMap::KIND, next).unwrap().changes.is_empty());
}

#[test]
fn the_scheduler_binds_or_says_unschedulable_once() {
    let memory = memory();
    add(&memory, pod("a"));
    let mut strange = pod("strange");
    strange.spec.as_mut().unwrap().scheduler_name = Some("other".to_owned());
    add(&memory, strange);
    assert_eq!(controllers::schedule(&memory, &mut |_| None), 0);
    let waiting = memory.peek::<Pod>(&key("a")).unwrap();
    let condition = &waiting.status.as_ref().unwrap().conditions.as_ref().unwrap()[0];
    assert_eq!(condition.reason.as_deref(), Some("Unschedulable"));
    controllers::schedule(&memory, &mut |_| None);
    let again = memory.peek::<Pod>(&key("a")).unwrap();
    assert_eq!(again.metadata.resource_version, waiting.metadata.resource_version, "the same verdict is written once");
    assert_eq!(controllers::schedule(&memory, &mut |_| Some("n1".to_owned())), 1);
    let bound = memory.peek::<Pod>(&key("a")).unwrap();
    assert_eq!(bound.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"));
    assert_eq!(bound.status.as_ref().unwrap().conditions.as_ref().unwrap()[0].status, "True");
    assert!(memory.peek::<Pod>(&key("strange")).unwrap().spec.as_ref().unwrap().node_name.is_none());
}

fn owned(name: &str, owner: &dyn Object) -> ConfigMap {
    let reference = OwnerReference {
        name: owner.meta().name.clone().unwrap(),
        uid: owner.meta().uid.clone().unwrap(),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    };
    let mut map = map(name);
    map.metadata.owner_references = Some(vec![reference]);
    map
}

#[test]
fn garbage_goes_after_its_owner_or_before_it() {
    let memory = memory();
    let owner = add(&memory, map("owner"));
    add(&memory, owned("child", &*owner));
    assert_eq!(controllers::collect_garbage(&memory), 0);
    at_once(port(&memory).remove::<ConfigMap>(&key("owner"), &Removal::default())).unwrap();
    assert_eq!(controllers::collect_garbage(&memory), 1);
    assert!(memory.peek::<ConfigMap>(&key("child")).is_none());

    let owner = add(&memory, map("owner"));
    add(&memory, owned("child", &*owner));
    let how = Removal { propagation: crate::Propagation::Foreground, ..Removal::default() };
    at_once(port(&memory).remove::<ConfigMap>(&key("owner"), &how)).unwrap();
    assert!(memory.peek::<ConfigMap>(&key("owner")).unwrap().metadata.deletion_timestamp.is_some());
    while controllers::collect_garbage(&memory) > 0 {}
    assert!(memory.peek_all::<ConfigMap>().is_empty());

    let owner = add(&memory, map("owner"));
    add(&memory, owned("child", &*owner));
    let how = Removal { propagation: crate::Propagation::Orphan, ..Removal::default() };
    at_once(port(&memory).remove::<ConfigMap>(&key("owner"), &how)).unwrap();
    while controllers::collect_garbage(&memory) > 0 {}
    assert!(memory.peek::<ConfigMap>(&key("owner")).is_none());
    assert!(memory.peek::<ConfigMap>(&key("child")).unwrap().metadata.owner_references.is_none());
}

fn bound(memory: &Memory, name: &str) -> Arc<Pod> {
    let pod = add(memory, pod(name));
    at_once(memory.bind(&key(name), pod.metadata.uid.as_deref().unwrap(), "virtual", &BTreeMap::new())).unwrap();
    memory.peek::<Pod>(&key(name)).unwrap()
}

#[test]
fn pods_of_a_vanished_node_fail_and_go_unless_a_finaliser_keeps_them() {
    let memory = memory();
    add(&memory, Node { metadata: ObjectMeta { namespace: None, ..meta("virtual") }, ..Node::default() });
    bound(&memory, "a");
    let kept = bound(&memory, "kept");
    let patch = MetadataPatch { finalizers: Some(vec!["tradewind.dev/x".to_owned()]), ..MetadataPatch::default() };
    at_once(port(&memory).amend::<Pod>(&key("kept"), &patch, &Guard::same(&*kept))).unwrap();
    let mut stuck = pod("stuck");
    stuck.metadata.finalizers = patch.finalizers.clone();
    add(&memory, stuck);
    assert_eq!(controllers::collect_pods(&memory), 0);
    at_once(port(&memory).remove::<Pod>(&key("stuck"), &Removal::default())).unwrap();
    assert_eq!(controllers::collect_pods(&memory), 1);
    let stuck = memory.peek::<Pod>(&key("stuck")).unwrap().status.clone().unwrap();
    assert_eq!((stuck.phase.as_deref(), stuck.conditions), (Some("Failed"), None));
    controllers::lose_node(&memory, "virtual");
    let ready = &memory.peek::<Pod>(&key("a")).unwrap().status.as_ref().unwrap().conditions.clone().unwrap();
    assert!(ready.iter().any(|condition| condition.type_ == "Ready" && condition.status == "False"));
    at_once(port(&memory).remove::<Node>(&Key::cluster("virtual"), &Removal::default())).unwrap();
    assert_eq!(controllers::collect_pods(&memory), 2);
    assert_eq!(controllers::collect_pods(&memory), 0);
    assert!(memory.peek::<Pod>(&key("a")).is_none());
    let status = memory.peek::<Pod>(&key("kept")).unwrap().status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert!(status.conditions.unwrap().iter().any(|c| c.reason.as_deref() == Some("DeletionByPodGC")));
}

#[test]
fn a_disrupted_pod_waits_for_its_kubelet() {
    let memory = memory();
    bound(&memory, "a");
    controllers::disrupt(&memory, &key("a"), "PreemptionByScheduler", "preempted").unwrap();
    assert_eq!(controllers::finish_pods(&memory, &|node| node != "virtual"), 0);
    assert!(memory.peek::<Pod>(&key("a")).unwrap().metadata.deletion_timestamp.is_some());
    assert_eq!(controllers::finish_pods(&memory, &|node| node == "virtual"), 1);
    assert!(memory.peek::<Pod>(&key("a")).is_none());
}

#[test]
fn a_namespace_loses_its_pods_first() {
    let memory = memory();
    bound(&memory, "a");
    add(&memory, map("m"));
    at_once(port(&memory).remove::<Namespace>(&Key::cluster("default"), &Removal::default())).unwrap();
    controllers::drain_namespaces(&memory);
    assert!(memory.peek::<Pod>(&key("a")).unwrap().metadata.deletion_timestamp.is_some());
    assert!(memory.peek::<ConfigMap>(&key("m")).is_some(), "the rest waits for the last Pod");
    controllers::finish_pods(&memory, &|_| true);
    controllers::drain_namespaces(&memory);
    assert!(memory.peek::<ConfigMap>(&key("m")).is_none());
    controllers::drain_namespaces(&memory);
    assert!(memory.peek::<Namespace>(&Key::cluster("default")).is_none());
    assert_eq!(at_once(port(&memory).add(map("late"))).unwrap_err(), ClusterError::NotFound);
}

#[test]
fn expired_grace_cannot_be_shortened_into_the_past() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_800_000_000).unwrap(), 7));
    let memory = Memory::new(clock.clone());
    bound(&memory, "a");
    at_once(port(&memory).remove::<Pod>(&key("a"), &Removal { grace_seconds: Some(60), ..Removal::default() }))
        .unwrap();
    clock.advance(Duration::from_secs(100));
    at_once(port(&memory).remove::<Pod>(&key("a"), &Removal { grace_seconds: Some(10), ..Removal::default() }))
        .unwrap();
    let pod = memory.peek::<Pod>(&key("a")).unwrap();
    assert_eq!(pod.metadata.deletion_grace_period_seconds, Some(1));
    assert_eq!(pod.metadata.deletion_timestamp.as_ref().unwrap().0.as_second(), 1_800_000_100);
}

#[test]
fn json_loses_what_the_wire_loses() {
    let written = Timestamp::from_millisecond(1_800_000_000_500).unwrap();
    for (through_json, read) in [(false, 1_800_000_000_500), (true, 1_800_000_000_000)] {
        let memory = memory();
        if through_json {
            memory.go_through_json();
        }
        let pod = add(&memory, pod("a"));
        let mut pod = Pod::clone(&pod);
        pod.status.as_mut().unwrap().start_time = Some(Time(written));
        let pod = at_once(port(&memory).write_status(pod)).unwrap();
        let start = pod.status.as_ref().unwrap().start_time.clone().unwrap();
        assert_eq!(start.0.as_millisecond(), read);
    }
}

struct Fixed(Verdict);

impl Gate for Fixed {
    fn before(&self, point: &Point) -> Verdict {
        assert_eq!(point.to_string(), "cluster create configmaps/default/a");
        self.0
    }
}

#[test]
fn a_gate_cuts_before_and_after_the_effect() {
    for (verdict, effect, answer) in [
        (Verdict::Pass, true, Some(true)),
        (Verdict::CrashBefore, false, None),
        (Verdict::CrashAfterEffect, true, None),
        (Verdict::LostAnswer, true, Some(false)),
        (Verdict::FailBefore, false, Some(false)),
    ] {
        let memory = memory();
        let gated = crate::Gated::new(memory.clone(), Arc::new(Fixed(verdict)));
        let mut call = pin!(gated.create(ConfigMap::KIND, Arc::new(map("a"))));
        let polled = match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(Ok(_)) => Some(true),
            std::task::Poll::Ready(Err(ClusterError::Unknown(_))) => Some(false),
            std::task::Poll::Ready(Err(error)) => panic!("{verdict:?}: {error}"),
            std::task::Poll::Pending => None,
        };
        assert_eq!(polled, answer, "answer of {verdict:?}");
        assert_eq!(memory.peek::<ConfigMap>(&key("a")).is_some(), effect, "effect of {verdict:?}");
    }
}
