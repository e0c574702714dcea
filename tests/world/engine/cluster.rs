//! The cluster around the operator: what users have applied, and what scheduler, controller manager and kubelets do.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tradewind_api::{Provider, TrainingJob};
use tradewind_cluster::memory::{at_once, controllers};
use tradewind_cluster::{Cluster, Key, Memory, Propagation, Removal, Typed};
use tradewind_core::Clock;

use super::machines::Fleet;
use super::nodes::{Nodes, add_node};
use super::operator::settings;
use super::plan::Plan;
use super::ports::{ACCOUNT, BUCKET};
use super::wire::Common;

/// The operator's own namespace.
pub const OPERATOR_NAMESPACE: &str = "tradewind-system";
/// The users' namespace.
pub const TEAM: &str = "team";
/// The account's key at first.
pub const FIRST_KEY: &str = "vast-key";
/// The value of a Secret that travels to the machine.
pub const SECRET_VALUE: &str = "hunter2-hunter2";

fn add<K: Typed>(memory: &Memory, object: K) {
    let cluster: &dyn Cluster = memory;
    at_once(cluster.add(object)).expect("the twin takes what users apply");
}

/// Name of the n-th job.
pub fn job_name(n: usize) -> String {
    format!("train-{n}")
}

/// Key of the n-th job.
pub fn job_key(n: usize) -> Key {
    Key::namespaced(TEAM, job_name(n))
}

/// Folder of the n-th job's checkpoints in the bucket.
pub fn job_prefix(n: usize) -> String {
    format!("jobs/{}/", job_name(n))
}

/// Applies everything that is there from the start.
pub fn apply(memory: &Memory, plan: &Plan) {
    for name in [OPERATOR_NAMESPACE, TEAM] {
        let labels = Some([("team".to_owned(), name.to_owned())].into());
        let metadata = ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() };
        add(memory, Namespace { metadata, ..Namespace::default() });
    }
    apply_account_secret(memory, FIRST_KEY);
    secret(memory, TEAM, "s3", &[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")]);
    secret(memory, TEAM, "token", &[("token", SECRET_VALUE)]);
    (0..plan.slots.len()).for_each(|n| add_node(memory, n));
    apply_provider(memory, plan);
    for n in 0..plan.jobs.len() {
        add(memory, job(plan, n));
    }
}

/// Key of the Secret with the account's key.
pub fn account_secret() -> Key {
    Key::namespaced(OPERATOR_NAMESPACE, "vast")
}

/// A user applies the Secret with the account's key.
pub fn apply_account_secret(memory: &Memory, key: &str) {
    secret(memory, OPERATOR_NAMESPACE, "vast", &[("apiKey", key)]);
}

/// A user puts another key into the Secret.
pub fn rotate_account_secret(common: &Common, key: &str) {
    let Some(secret) = common.memory.peek::<Secret>(&account_secret()) else { return };
    let mut secret = (*secret).clone();
    secret.data.get_or_insert_default().insert("apiKey".to_owned(), ByteString(key.as_bytes().to_vec()));
    let cluster: &dyn Cluster = &*common.memory;
    let _ = at_once(cluster.write(secret));
    common.note(|| "user puts a new key into the Secret".to_owned());
}

/// Key of somebody else's Pod.
pub fn stranger() -> Key {
    Key::namespaced("default", "stranger")
}

/// Somebody puts a Pod onto our Node.
pub fn apply_stranger(memory: &Memory) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": stranger().name, "namespace": stranger().namespace},
        "spec": {"nodeName": settings().node_name, "containers": [{"name": "main", "image": "i"}]},
    });
    add::<Pod>(memory, serde_json::from_value(pod).expect("a Pod"));
}

/// A user applies the Provider.
pub fn apply_provider(memory: &Memory, plan: &Plan) {
    let mut provider = json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": {"name": ACCOUNT},
        "spec": {"kind": "Vast", "credentialsSecretRef": {"name": "vast"}, "limits": {"perHour": plan.per_hour, "perDay": "20"}, "operatorOutageTolerance": plan.tolerance},
    });
    if plan.by_access {
        provider["spec"]["limits"]["perHour"] = "100".into();
        provider["spec"]["access"] = json!([
            {"namespaceSelector": {"matchLabels": {"team": "somebody-else"}}},
            {
                "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": [TEAM]}]},
                "limits": {"perHour": plan.per_hour, "perDay": "20"},
            },
        ]);
    }
    add::<Provider>(memory, serde_json::from_value(provider).expect("a Provider"));
}

fn secret(memory: &Memory, namespace: &str, name: &str, entries: &[(&str, &str)]) {
    let data = entries.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
    add(memory, Secret { metadata, data: Some(data), ..Secret::default() });
}

fn job(plan: &Plan, n: usize) -> TrainingJob {
    let mut env = vec![json!({"name": "MODE", "value": "train"})];
    if plan.secrets {
        env.push(json!({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}}));
    }
    let mut job = json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": job_name(n), "namespace": TEAM},
        "spec": {
            "gpu": {"count": 1},
            "template": {"spec": {"containers": [
                {"name": "train", "image": "registry.example.com/train:1", "command": ["python", "train.py"], "env": env},
            ]}},
            "checkpoint": {
                "path": "out", "pattern": "step-{step}", "to": format!("s3://{BUCKET}/{}", job_prefix(n)),
                "secretRef": {"name": "s3"}, "interval": "1m", "keep": plan.keep,
            },
            "placement": {"inCluster": plan.in_cluster, "burstAfter": "15s", "minTrust": "Community"},
            "work": {"hours": plan.work_hours},
        },
    });
    let recipe = &plan.jobs[n];
    if recipe.workers > 1 {
        job["spec"]["workers"] = recipe.workers.into();
        job["spec"]["gangTimeout"] = "1m".into();
    }
    if let Some(span) = &plan.complete_within {
        job["spec"]["completeWithin"] = span.as_str().into();
    }
    if let Some((patience, price)) = plan.patience.filter(|_| recipe.workers == 1 && plan.in_cluster != "Only") {
        job["spec"]["placement"]["patience"] = patience.into();
        job["spec"]["placement"]["maxPricePerHour"] = price.into();
    }
    if recipe.all_ranks {
        job["spec"]["checkpoint"]["writers"] = "AllRanks".into();
    }
    if recipe.hangs.is_some() {
        job["spec"]["stallTimeout"] = "2m".into();
    }
    if let Some(most) = plan.max_restarts {
        job["spec"]["failurePolicy"] = json!({"maxRestarts": most});
    }
    serde_json::from_value(job).expect("a TrainingJob")
}

/// What the control plane does by itself.
pub struct ControlPlane {
    memory: Arc<Memory>,
    /// The cluster's own nodes.
    pub nodes: Nodes,
    /// Since when our Node is missing.
    node_missing: Option<Duration>,
    next_at: Duration,
}

impl ControlPlane {
    /// A control plane that looks for the first time at once.
    pub fn new(memory: Arc<Memory>, plan: &Plan) -> Self {
        let nodes = Nodes::new(Arc::clone(&memory), &plan.slots, plan.room_at);
        Self { memory, nodes, node_missing: None, next_at: Duration::ZERO }
    }

    /// When it looks again.
    pub fn next_due(&self) -> Duration {
        self.next_at
    }

    /// One look of every controller. `again_in`: time to the next; `skips`: how often the scheduler errs.
    pub fn step(&mut self, common: &Common, fleet: &mut Fleet, again_in: Duration, skips: u64) {
        let now = common.now();
        self.next_at = now + again_in;
        let memory = &self.memory;
        self.nodes.schedule(now, &mut fleet.chance, skips);
        self.nodes.run(common, fleet);
        while controllers::collect_garbage(memory) > 0 {}
        controllers::drain_namespaces(memory);
        self.lose_node(common);
    }

    /// The node lifecycle controller and PodGC.
    fn lose_node(&mut self, common: &Common) {
        let now = common.now();
        let name = settings().node_name;
        let Some(node) = self.memory.peek::<Node>(&Key::cluster(name.as_str())) else {
            let since = *self.node_missing.get_or_insert(now);
            if now.saturating_sub(since) > Duration::from_secs(40) && controllers::collect_pods(&self.memory) > 0 {
                common.note(|| "PodGC collects the Pods of the missing Node".to_owned());
            }
            return;
        };
        self.node_missing = None;
        let lease = self.memory.peek::<Lease>(&Key::namespaced("kube-node-lease", name.as_str()));
        let renewed = lease.as_ref().and_then(|l| l.spec.as_ref()).and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
        let late = renewed.is_some_and(|at| common.clock.now().duration_since(at).as_secs() > 50);
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        let ready = conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        if late && ready {
            common.note(|| "the Node's Lease is late: Ready=Unknown".to_owned());
            controllers::lose_node(&self.memory, &name);
        }
    }
}

/// A user deletes an object, if it is there.
pub fn delete<K: Typed>(common: &Common, key: &Key) -> bool {
    let cluster: &dyn Cluster = &*common.memory;
    let done = at_once(cluster.remove::<K>(key, &Removal::default())).is_ok();
    if done {
        common.note(|| format!("user deletes {} {key}", K::KIND.kind));
        common.look();
    }
    done
}

/// A user deletes an object by force.
pub fn force_delete<K: Typed>(common: &Common, key: &Key) {
    let cluster: &dyn Cluster = &*common.memory;
    let _ = at_once(cluster.remove::<K>(key, &Removal::default().at_once()));
    common.note(|| format!("user deletes {} {key} by force", K::KIND.kind));
    common.look();
}

/// A user deletes a job and waits for what it owns.
pub fn delete_foreground(common: &Common, key: &Key) {
    let cluster: &dyn Cluster = &*common.memory;
    let how = Removal { propagation: Propagation::Foreground, ..Removal::default() };
    let _ = at_once(cluster.remove::<TrainingJob>(key, &how));
    common.note(|| format!("user deletes {key} in the foreground"));
    common.look();
}

/// A user changes a job's spec.
pub fn edit_job(common: &Common, n: usize, change: impl FnOnce(&mut TrainingJob)) {
    let Some(job) = common.memory.peek::<TrainingJob>(&job_key(n)) else { return };
    let mut job = (*job).clone();
    change(&mut job);
    common.note(|| format!("user edits {}: suspend {}, budget {:?}", job_name(n), job.spec.suspend, job.spec.budget));
    let cluster: &dyn Cluster = &*common.memory;
    let _ = at_once(cluster.write(job));
    common.look();
}

/// A user cordons or uncordons our Node.
pub fn cordon(common: &Common, cordoned: bool) {
    let Some(node) = common.memory.peek::<Node>(&Key::cluster(settings().node_name)) else { return };
    let mut node = (*node).clone();
    node.spec.get_or_insert_default().unschedulable = cordoned.then_some(true);
    let cluster: &dyn Cluster = &*common.memory;
    let _ = at_once(cluster.write(node));
    common.note(|| format!("user sets cordoned: {cordoned}"));
}

/// A user pauses or resumes the Provider.
pub fn pause(common: &Common, paused: bool) {
    let key = Key::cluster(ACCOUNT);
    let Some(provider) = common.memory.peek::<Provider>(&key) else { return };
    let mut provider = (*provider).clone();
    provider.spec.paused = paused;
    let cluster: &dyn Cluster = &*common.memory;
    let _ = at_once(cluster.write(provider));
    common.note(|| format!("user sets paused: {paused}"));
}
