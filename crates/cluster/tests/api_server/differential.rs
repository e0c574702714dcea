//! Random sequences of verbs on the twin and on the real server: every answer and every object afterwards must be the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSchedulingGate, PodSpec, Secret};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tradewind_api::Provider;
use tradewind_cluster::conformance::Setting;
use tradewind_cluster::object::{own, typed_ref};
use tradewind_cluster::{
    Cluster, ClusterError, Guard, Key, Kind, Memory, MetadataPatch, Object, Removal, StatusPatch, Strategy, Typed,
};
use tradewind_core::{Clock, ManualClock, SystemClock};

use crate::{RealSetting, client, cluster};

const OPERATIONS: usize = 250;
const STRANGER: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::test]
async fn the_twin_and_the_server_agree() {
    let Some(client) = client().await else { return };
    let real = cluster(&client);
    for seed in seeds() {
        let namespace = format!("differential-{seed}");
        let memory = Memory::new(Arc::new(SystemClock::default()));
        memory.go_through_json();
        let made = Namespace {
            metadata: ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        (&memory as &dyn Cluster).add(made.clone()).await.unwrap();
        (&real as &dyn Cluster).add(made).await.unwrap();
        RealSetting { client: client.clone() }.prepare(&namespace).await;
        let mut twin = Side { cluster: &memory, namespace: namespace.clone(), history: BTreeMap::new() };
        let mut server = Side { cluster: &real, namespace, history: BTreeMap::new() };
        compare(seed, &mut twin, &mut server).await;
    }
}

/// Four seeds, or `TRADEWIND_SEEDS=first-last` for a longer search or one seed again.
#[expect(clippy::disallowed_methods, reason = "a test has no config module")]
fn seeds() -> std::ops::RangeInclusive<u64> {
    let Ok(text) = std::env::var("TRADEWIND_SEEDS") else { return 1..=4 };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    first.parse().expect("TRADEWIND_SEEDS is first-last")..=last.parse().expect("TRADEWIND_SEEDS is first-last")
}

async fn compare(seed: u64, twin: &mut Side<'_>, server: &mut Side<'_>) {
    let chance = Chance(ManualClock::new(Timestamp::UNIX_EPOCH, seed));
    let mut done: Vec<(Target, Op, String)> = Vec::new();
    for number in 0..OPERATIONS {
        let target = chance.target();
        let op = chance.op();
        if server.was_touched(target).await {
            continue;
        }
        let on_twin = twin.play(target, &op).await;
        let on_server = server.play(target, &op).await;
        if server.was_touched(target).await {
            continue;
        }
        if on_twin != on_server {
            let mut story = String::new();
            for (_, op, outcome) in done.iter().filter(|(other, ..)| *other == target) {
                let _ = writeln!(story, "  {op:?} -> {outcome}");
            }
            panic!(
                "seed {seed}, operation {number} on {target:?}; before it:\n{story}{op:?}\n   twin: {}\n server: {}",
                on_twin.text(),
                on_server.text()
            );
        }
        done.push((target, op, on_server.outcome));
    }
    let fine = done.iter().filter(|(.., outcome)| outcome == "ok").count();
    assert!(fine > OPERATIONS / 4 && fine < OPERATIONS * 9 / 10, "seed {seed}: {fine} of {OPERATIONS} did something");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Pod(u64),
    Lease(u64),
    Secret(u64),
    Provider(u64),
}

/// Which version of the object a write is based on.
#[derive(Debug, Clone, Copy)]
enum Basis {
    Newest,
    Older,
    Stranger,
    Nothing,
}

#[derive(Debug, Clone)]
enum Op {
    Create { has_finaliser: bool, is_bound: bool, is_gated: bool, grace: Option<i64> },
    Replace { change: Change, basis: Basis },
    ReplaceStatus { change: Change, basis: Basis, phase: &'static str },
    PatchMetadata { finalizers: Option<Vec<String>>, label: Option<String>, basis: Basis },
    PatchStatus { strategy: Strategy, status: Value, basis: Basis },
    Delete { grace: Option<u32>, basis: Basis },
    Bind { basis: Basis },
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Nothing,
    Spec(u64),
    Label(u64),
    Finalisers(bool),
}

struct Chance(ManualClock);

impl Chance {
    fn below(&self, bound: u64) -> u64 {
        self.0.entropy() % bound
    }

    fn one<T: Clone>(&self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }

    fn target(&self) -> Target {
        match self.below(10) {
            0..=4 => Target::Pod(self.below(2)),
            5 => Target::Lease(0),
            6 => Target::Secret(0),
            _ => Target::Provider(self.below(2)),
        }
    }

    fn basis(&self) -> Basis {
        match self.below(8) {
            0 => Basis::Older,
            1 => Basis::Stranger,
            2 => Basis::Nothing,
            _ => Basis::Newest,
        }
    }

    fn change(&self) -> Change {
        match self.below(5) {
            0 => Change::Nothing,
            1 => Change::Label(self.below(3)),
            2 => Change::Finalisers(self.below(2) == 0),
            _ => Change::Spec(self.below(3)),
        }
    }

    fn op(&self) -> Op {
        let finalizers = || {
            let lists = [vec![], vec![], vec!["tradewind.dev/a"], vec!["tradewind.dev/a", "tradewind.dev/b"]];
            Some(self.one(&lists).iter().map(|name| (*name).to_owned()).collect())
        };
        let phases = ["Pending", "Running", "Running", "Succeeded", "Failed"];
        match self.below(16) {
            0..=3 => Op::Create {
                has_finaliser: self.below(3) == 0,
                is_bound: self.below(4) == 0,
                is_gated: self.below(6) == 0,
                grace: self.one(&[None, None, Some(0), Some(60)]),
            },
            4 | 5 => Op::Replace { change: self.change(), basis: self.basis() },
            6 | 7 => Op::ReplaceStatus { change: self.change(), basis: self.basis(), phase: self.one(&phases) },
            8 | 9 => Op::PatchMetadata {
                finalizers: if self.below(2) == 0 { finalizers() } else { None },
                label: self.one(&[None, Some("1".to_owned()), Some("2".to_owned())]),
                basis: self.basis(),
            },
            10 | 11 => Op::PatchStatus {
                strategy: self.one(&[Strategy::Merge, Strategy::Strategic]),
                status: self.status_patch(self.one(&phases)),
                basis: self.basis(),
            },
            12 | 13 => Op::Delete { grace: self.one(&[None, None, Some(0), Some(10), Some(90)]), basis: self.basis() },
            _ => Op::Bind { basis: self.basis() },
        }
    }

    /// Fits Pods and Providers: each drops or ignores what is the other's.
    fn status_patch(&self, phase: &str) -> Value {
        let condition = |type_: &str| {
            json!({ "type": type_, "status": self.one(&["True", "False"]), "reason": self.one(&["A", "B"]),
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
        };
        match self.below(5) {
            0 => json!({ "phase": phase, "machines": self.below(3) }),
            1 => json!({ "conditions": [condition("tradewind.dev/A")] }),
            2 => json!({ "conditions": [condition("tradewind.dev/B"), condition("Ready")] }),
            3 => json!({ "conditions": null, "message": null }),
            _ => json!({ "message": "m", "account": self.one(&["a", "b"]) }),
        }
    }
}

/// What one side shows after an operation.
#[derive(PartialEq)]
struct Seen {
    outcome: String,
    object: Option<Value>,
    is_new_version: bool,
}

impl Seen {
    fn text(&self) -> String {
        let object = self.object.as_ref().map_or_else(|| "absent".to_owned(), Value::to_string);
        format!("{}, new version: {}, {object}", self.outcome, self.is_new_version)
    }
}

struct Side<'a> {
    cluster: &'a dyn Cluster,
    namespace: String,
    history: BTreeMap<Target, Vec<Arc<dyn Object>>>,
}

impl Side<'_> {
    /// Whether the controller manager wrote to the object (PodGC fails unbound Pods that a finaliser keeps, every 20 s): from
    /// then on the twin, which has no such controller running, cannot agree.
    async fn was_touched(&self, target: Target) -> bool {
        let (kind, key) = self.name(target);
        let Ok(object) = self.cluster.get(kind, &key).await else { return false };
        let managers = object.meta().managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
        managers.into_iter().any(|manager| manager == "kube-controller-manager")
    }

    async fn play(&mut self, target: Target, op: &Op) -> Seen {
        let outcome = match self.run(target, op).await {
            Ok(()) => "ok".to_owned(),
            Err(ClusterError::Refused { code, .. }) => format!("refused {code}"),
            Err(ClusterError::Unknown(why)) => panic!("{op:?} on {target:?}: {why}"),
            Err(other) => format!("{other:?}"),
        };
        let (kind, key) = self.name(target);
        let now = match self.cluster.get(kind, &key).await {
            Ok(object) => Some(object),
            Err(ClusterError::NotFound) => None,
            Err(other) => panic!("get {target:?}: {other}"),
        };
        let history = self.history.entry(target).or_default();
        let version = |object: &Arc<dyn Object>| object.meta().resource_version.clone();
        let is_new_version = now.is_some() && now.as_ref().map(version) != history.last().map(version);
        let object = now.as_ref().map(|object| projection(kind, &**object, &self.namespace));
        if is_new_version {
            history.extend(now);
        }
        Seen { outcome, object, is_new_version }
    }

    fn name(&self, target: Target) -> (&'static Kind, Key) {
        let here = |name: String| Key::namespaced(&*self.namespace, name);
        match target {
            Target::Pod(n) => (Pod::KIND, here(format!("p{n}"))),
            Target::Lease(n) => (Lease::KIND, here(format!("l{n}"))),
            Target::Secret(n) => (Secret::KIND, here(format!("s{n}"))),
            Target::Provider(n) => (Provider::KIND, Key::cluster(format!("{}-{n}", self.namespace))),
        }
    }

    /// The object that a write starts from; where there never was one, a made-up one.
    fn basis(&self, target: Target, basis: Basis) -> Arc<dyn Object> {
        let history = self.history.get(&target).map(Vec::as_slice).unwrap_or_default();
        let newest = history.last().cloned();
        let mut object = match basis {
            Basis::Older => history.len().checked_sub(2).map(|at| history[at].clone()).or(newest),
            _ => newest,
        }
        .unwrap_or_else(|| {
            let mut object = self.fresh(target, false, false, false, None);
            own(&mut object).meta_mut().resource_version = Some("1".to_owned());
            object
        });
        match basis {
            Basis::Stranger => own(&mut object).meta_mut().uid = Some(STRANGER.to_owned()),
            Basis::Nothing => own(&mut object).meta_mut().resource_version = None,
            Basis::Newest | Basis::Older => {}
        }
        object
    }

    fn guard(&self, target: Target, basis: Basis) -> Guard {
        let object = self.basis(target, basis);
        match basis {
            Basis::Nothing => Guard::none(),
            Basis::Stranger => Guard::uid(STRANGER),
            Basis::Newest | Basis::Older => Guard::exact(&*object),
        }
    }

    async fn run(&self, target: Target, op: &Op) -> Result<(), ClusterError> {
        let (kind, key) = self.name(target);
        let cluster = self.cluster;
        match op {
            Op::Create { has_finaliser, is_bound, is_gated, grace } => {
                cluster.create(kind, self.fresh(target, *has_finaliser, *is_bound, *is_gated, *grace)).await.map(drop)
            }
            Op::Replace { change, basis } => {
                let mut object = self.basis(target, *basis);
                alter(own(&mut object), *change);
                cluster.replace(kind, object).await.map(drop)
            }
            Op::ReplaceStatus { change, basis, phase } => {
                let mut object = self.basis(target, *basis);
                alter(own(&mut object), *change);
                set_status(own(&mut object), phase);
                cluster.replace_status(kind, object).await.map(drop)
            }
            Op::PatchMetadata { finalizers, label, basis } => {
                let labels = [("label".to_owned(), label.clone())].into();
                let patch = MetadataPatch { finalizers: finalizers.clone(), labels, ..MetadataPatch::default() };
                cluster.patch_metadata(kind, &key, &patch, &self.guard(target, *basis)).await.map(drop)
            }
            Op::PatchStatus { strategy, status, basis } => {
                let patch = StatusPatch { strategy: *strategy, status: status.clone() };
                cluster.patch_status(kind, &key, &patch, &self.guard(target, *basis)).await.map(drop)
            }
            Op::Delete { grace, basis } => {
                let how = Removal { grace_seconds: *grace, ..Removal::guarded(self.guard(target, *basis)) };
                cluster.delete(kind, &key, &how).await
            }
            Op::Bind { basis } => {
                let object = self.basis(target, *basis);
                let uid = object.meta().uid.clone().unwrap_or_else(|| STRANGER.to_owned());
                let node = format!("{}-absent-node", self.namespace);
                let annotations = [("bound".to_owned(), "yes".to_owned())].into();
                let pod = if kind == Pod::KIND { key } else { Key::namespaced(&*self.namespace, "p0") };
                cluster.bind(&pod, &uid, &node, &annotations).await
            }
        }
    }

    fn fresh(
        &self,
        target: Target,
        has_finaliser: bool,
        is_bound: bool,
        is_gated: bool,
        grace: Option<i64>,
    ) -> Arc<dyn Object> {
        let (_, key) = self.name(target);
        let metadata = ObjectMeta {
            namespace: (!key.namespace.is_empty()).then_some(key.namespace),
            name: Some(key.name),
            finalizers: has_finaliser.then(|| vec!["tradewind.dev/a".to_owned()]),
            ..ObjectMeta::default()
        };
        match target {
            Target::Pod(_) => {
                let container =
                    Container { name: "main".to_owned(), image: Some("i:0".to_owned()), ..Container::default() };
                let gate = PodSchedulingGate { name: "tradewind.dev/gate".to_owned() };
                let spec = PodSpec {
                    containers: vec![container],
                    restart_policy: Some("Never".to_owned()),
                    scheduler_name: Some("differential".to_owned()),
                    automount_service_account_token: Some(false),
                    node_name: is_bound.then(|| format!("{}-absent-node", self.namespace)),
                    scheduling_gates: is_gated.then(|| vec![gate]),
                    termination_grace_period_seconds: grace,
                    ..PodSpec::default()
                };
                Arc::new(Pod { metadata, spec: Some(spec), status: None })
            }
            Target::Lease(_) => Arc::new(Lease { metadata, spec: Some(LeaseSpec::default()) }),
            Target::Secret(_) => Arc::new(Secret { metadata, ..Secret::default() }),
            Target::Provider(_) => {
                let mut provider: Provider = serde_json::from_value(json!({
                    "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": {},
                    "spec": {"kind": "Vast", "credentialsSecretRef": {"name": "key"}, "limits": {"perHour": "1", "perDay": "10"}},
                }))
                .unwrap();
                provider.metadata = metadata;
                Arc::new(provider)
            }
        }
    }
}

fn alter(object: &mut dyn Object, change: Change) {
    match change {
        Change::Nothing => {}
        Change::Label(n) => object.meta_mut().labels = Some([("label".to_owned(), n.to_string())].into()),
        Change::Finalisers(some) => {
            object.meta_mut().finalizers = some.then(|| vec!["tradewind.dev/a".to_owned()]);
        }
        Change::Spec(n) => {
            if let Some(pod) = object.any_mut().downcast_mut::<Pod>() {
                let spec = pod.spec.as_mut().unwrap();
                match n {
                    0 => spec.containers[0].image = Some("i:1".to_owned()),
                    1 => spec.scheduling_gates = None,
                    _ => spec.node_name = Some("elsewhere".to_owned()),
                }
            } else if let Some(lease) = object.any_mut().downcast_mut::<Lease>() {
                lease.spec.get_or_insert_default().holder_identity = Some(format!("holder-{n}"));
            } else if let Some(secret) = object.any_mut().downcast_mut::<Secret>() {
                secret.data = Some([("key".to_owned(), ByteString(n.to_string().into_bytes()))].into());
            } else if let Some(provider) = object.any_mut().downcast_mut::<Provider>() {
                provider.spec.credentials_secret_ref.name = format!("key-{n}");
            }
        }
    }
}

fn set_status(object: &mut dyn Object, phase: &str) {
    if let Some(pod) = object.any_mut().downcast_mut::<Pod>() {
        pod.status.get_or_insert_default().phase = Some(phase.to_owned());
    } else if let Some(provider) = object.any_mut().downcast_mut::<Provider>() {
        provider.status.get_or_insert_default().machines = i64::try_from(phase.len()).unwrap();
    }
}

/// What must be the same on both sides.
fn projection(kind: &'static Kind, object: &dyn Object, namespace: &str) -> Value {
    let meta = object.meta();
    let mut value = json!({
        "finalizers": meta.finalizers, "labels": meta.labels, "annotations": meta.annotations, "generation": meta.generation,
        "deleting": meta.deletion_timestamp.is_some(), "grace": meta.deletion_grace_period_seconds,
    });
    if let Some(pod) = typed_ref::<Pod>(object) {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let conditions: BTreeMap<_, _> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| (c.type_.clone(), (c.status.clone(), c.reason.clone())))
            .collect();
        value["spec"] = json!({
            "node": spec.node_name.map(|node| node.replace(namespace, "")), "image": spec.containers[0].image,
            "tolerations": spec.tolerations, "gates": spec.scheduling_gates, "grace": spec.termination_grace_period_seconds,
        });
        value["status"] = json!({ "phase": status.phase, "message": status.message, "conditions": conditions });
    } else {
        let whole = (kind.to_value)(object).unwrap();
        for part in ["spec", "status", "data"] {
            value[part] = whole[part].clone();
        }
    }
    value
}
