//! The Pods of an attempt: what they are made of. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Map, Value, json};
use tradewind_api::training_job::InCluster;
use tradewind_api::{TrainingJob, names};

/// Where the agent is in a Pod of the cluster.
pub const SCRATCH: &str = "/tradewind";
/// Where the agent is in its image.
const IN_IMAGE: &str = "/usr/local/bin/tradewind-agent";
/// Name of the agent's init container and of the volume that it shares with the program.
pub const AGENT: &str = "tradewind-agent";
/// Time that workers with checkpoints have to stop, where the template does not say: a save and its way to the bucket.
const SAVING_GRACE_S: i64 = 120;
/// Kubernetes' own default.
const GRACE_S: i64 = 30;
/// So long after its node was called unreachable a worker is given up: with Kubernetes' own 300 s a dead node would cost six minutes.
const GIVE_UP_S: i64 = 30;
/// Jobs of Kueue carry this label; its groups of Pods are admitted together.
const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";

/// Which Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Attempt.
    pub attempt: i64,
    /// Number of the worker, from 0.
    pub rank: i64,
}

/// What a Pod with our agent needs besides its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPod {
    /// Image with the agent.
    pub image: String,
    /// Where its agent finds its control document.
    pub control: ControlUrl,
    /// How often the agent looks and reports, if not as it likes.
    pub poll: Option<Duration>,
}

/// Signed URL of a worker's control document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlUrl {
    /// The URL.
    pub url: String,
    /// When it is renewed, should the Pod still wait then.
    pub renewal: Timestamp,
}

impl ControlUrl {
    /// As a Pod carries it.
    pub fn annotations(&self) -> [(&'static str, String); 2] {
        [(names::CONTROL, self.url.clone()), (names::CONTROL_RENEWAL, self.renewal.to_string())]
    }
}

/// Where a Pod goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goes<'a> {
    /// Where the scheduler puts it.
    Scheduled,
    /// Nowhere in the cluster: it waits to be bound to our Node.
    ToBeRented,
    /// Past the scheduler onto this Node.
    On(&'a str),
}

/// Whether the job runs with our agent in the cluster too.
pub fn needs_agent(job: &TrainingJob) -> bool {
    job.spec.checkpoint.is_some() || job.spec.workers > 1
}

/// Where the Pods of a job go that no machine lives for.
pub fn goes(in_cluster: InCluster) -> Goes<'static> {
    if in_cluster == InCluster::Never { Goes::ToBeRented } else { Goes::Scheduled }
}

/// The first Pod as the API server is asked about it before anything is made: a rented one has no agent beside it, which a LimitRange or a
/// policy on images might refuse. `in_cluster` is what the operator makes of the job's wish: without an image of the agent it rents.
pub fn trial(job: &TrainingJob, in_cluster: InCluster, agent_image: Option<&str>) -> Value {
    let goes = goes(in_cluster);
    let image = agent_image.filter(|_| needs_agent(job) && goes == Goes::Scheduled);
    // Always the same, so that Pods of one shape are one to the API server too.
    let control = ControlUrl { url: "https://mailbox.invalid/".to_owned(), renewal: Timestamp::UNIX_EPOCH };
    let agent = image.map(|image| AgentPod { image: image.to_owned(), control, poll: None });
    build(job, Seat { attempt: 0, rank: 0 }, goes, agent.as_ref())
}

/// Whether Kueue decides when the job's Pods may run.
pub fn is_queued(job: &TrainingJob) -> bool {
    job.spec.template.pointer("/metadata/labels").and_then(|labels| labels.get(KUEUE_QUEUE)).is_some()
}

/// Name of a Pod of an attempt.
pub fn name(job: &TrainingJob, seat: Seat) -> String {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    if job.spec.workers > 1 {
        format!("{name}-{}-{}", seat.attempt, seat.rank)
    } else {
        format!("{name}-{}", seat.attempt)
    }
}

/// Seconds that a worker has to stop in the cluster: the Pod's, and of these the program's; in the rest the last save goes home.
pub fn grace(job: &TrainingJob) -> (i64, i64) {
    let said = job.spec.template.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let default = if job.spec.checkpoint.is_some() { SAVING_GRACE_S } else { GRACE_S };
    let pod = said.unwrap_or(default).max(0);
    let upload = if job.spec.checkpoint.is_some() { pod / 3 } else { pod / 10 };
    (pod, (pod - upload.max(1)).max(0))
}

/// A Pod of an attempt as JSON: for the strict dry run as for the real create.
///
/// `agent` is given where the job needs one and the Pod may run in the cluster.
pub fn build(job: &TrainingJob, seat: Seat, goes: Goes<'_>, agent: Option<&AgentPod>) -> Value {
    let template = &job.spec.template;
    let part = |path: &str| template.pointer(path).and_then(Value::as_object).cloned().unwrap_or_default();
    let meta = &job.metadata;
    let mut annotations = part("/metadata/annotations");
    let mut labels = part("/metadata/labels");
    labels.insert(names::JOB_NAME.to_owned(), json!(meta.name));
    labels.insert(names::JOB_UID.to_owned(), json!(meta.uid));
    labels.insert(names::ATTEMPT.to_owned(), json!(seat.attempt.to_string()));
    if job.spec.workers > 1 {
        labels.insert(names::RANK.to_owned(), json!(seat.rank.to_string()));
        if is_queued(job) {
            let group = format!("{}-{}", meta.name.as_deref().unwrap_or_default(), seat.attempt);
            labels.insert("kueue.x-k8s.io/pod-group-name".to_owned(), json!(group));
            annotations.insert("kueue.x-k8s.io/pod-group-total-count".to_owned(), json!(job.spec.workers.to_string()));
        }
    }
    let owner = OwnerReference {
        api_version: format!("{}/{}", tradewind_api::GROUP, tradewind_api::VERSION),
        kind: "TrainingJob".to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    };
    let mut spec = part("/spec");
    spec.insert("restartPolicy".to_owned(), json!("Never"));
    spec.entry("automountServiceAccountToken").or_insert(json!(false));
    if goes == Goes::ToBeRented || job.spec.placement.in_cluster == InCluster::Never {
        spec.insert("schedulerName".to_owned(), json!(names::NO_SCHEDULER));
    }
    if let Goes::On(node) = goes {
        spec.insert("nodeName".to_owned(), json!(node));
    }
    if let Some(gpu) = &job.spec.gpu {
        ask_for_gpus(&mut spec, gpu.count);
    }
    if goes == Goes::Scheduled {
        give_up_dead_nodes(&mut spec);
    }
    if let Some(agent) = agent {
        let said = agent.control.annotations();
        annotations.extend(said.into_iter().map(|(name, value)| (name.to_owned(), json!(value))));
        spec.insert("terminationGracePeriodSeconds".to_owned(), json!(grace(job).0));
        add_agent(&mut spec, agent);
    }
    let mut metadata = json!({
        "name": name(job, seat),
        "namespace": meta.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    });
    if !annotations.is_empty() {
        metadata["annotations"] = Value::Object(annotations);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// The agent becomes the parent of the program: an init container puts it into a volume, and the command runs under it.
fn add_agent(spec: &mut Map<String, Value>, agent: &AgentPod) {
    let mount = json!({"name": AGENT, "mountPath": SCRATCH});
    list(spec, "volumes").push(json!({"name": AGENT, "emptyDir": {}}));
    // Limits of its own: a LimitRange's defaults, GPUs among them, would be added to what the Pod asks for.
    let mut resources = json!({
        "requests": {"cpu": "10m", "memory": "32Mi"},
        "limits": {"cpu": "1", "memory": "64Mi"},
    });
    for device in devices(spec) {
        resources["requests"][&device] = json!("0");
        resources["limits"][&device] = json!("0");
    }
    let install = json!({
        "name": AGENT,
        "image": agent.image,
        "command": [IN_IMAGE, "install", format!("{SCRATCH}/{AGENT}")],
        "volumeMounts": [mount.clone()],
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    list(spec, "initContainers").insert(0, install);
    let Some(container) = spec.get_mut("containers").and_then(|c| c.get_mut(0)).and_then(Value::as_object_mut) else {
        return;
    };
    let words = |container: &Map<String, Value>, field: &str| {
        container.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut command =
        vec![json!(format!("{SCRATCH}/{AGENT}")), json!("run"), json!("--scratch"), json!(SCRATCH), json!("--")];
    command.extend(words(container, "command"));
    command.extend(words(container, "args"));
    container.insert("command".to_owned(), Value::Array(command));
    container.remove("args");
    list(container, "volumeMounts").push(mount);
    let env = list(container, "env");
    let field = |name: &str, path: String| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    env.push(field("TRADEWIND_CONTROL_URL", format!("metadata.annotations['{}']", names::CONTROL)));
    env.push(field("TRADEWIND_POD_IP", "status.podIP".to_owned()));
    if let Some(poll) = agent.poll {
        for name in ["TRADEWIND_POLL_MS", "TRADEWIND_REPORT_MS"] {
            env.push(json!({"name": name, "value": poll.as_millis().to_string()}));
        }
    }
}

/// Devices, GPUs above all, that some container of a Pod asks for: all extended resources, whose names alone begin with a domain.
fn devices(spec: &Map<String, Value>) -> BTreeSet<String> {
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| spec.get(list)?.as_array());
    let resources = lists.flatten().filter_map(|container| container.get("resources"));
    let asked = resources.flat_map(|resources| ["requests", "limits"].map(|part| resources.get(part)));
    let names = asked.flatten().filter_map(Value::as_object).flat_map(Map::keys);
    names.filter(|name| name.contains('/')).cloned().collect()
}

/// The list in a field, made if it is not there.
fn list<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = object.entry(field.to_owned()).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it was made a list")
}

/// A worker on a node that died is given up soon, unless the template says when.
fn give_up_dead_nodes(spec: &mut Map<String, Value>) {
    let tolerations = list(spec, "tolerations");
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let said =
            |t: &Value| t.get("key").is_none_or(|k| k == key) && t.get("effect").is_none_or(|e| e == "NoExecute");
        if !tolerations.iter().any(said) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": GIVE_UP_S}));
        }
    }
}

/// Quotas count GPUs by the Pod's limits, rented or not.
fn ask_for_gpus(spec: &mut Map<String, Value>, count: i32) {
    let Some(container) = spec.get_mut("containers").and_then(|c| c.get_mut(0)).and_then(Value::as_object_mut) else {
        return;
    };
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    let Some(resources) = resources.as_object_mut() else { return };
    let limits = resources.entry("limits").or_insert_with(|| json!({}));
    if let Some(limits) = limits.as_object_mut() {
        limits.entry("nvidia.com/gpu").or_insert(json!(count.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: &Value) -> TrainingJob {
        let mut full = json!({"template": {"spec": {"containers": [
            {"name": "train", "image": "i", "command": ["python"], "args": ["train.py", "$(MODE)"]},
        ]}}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": full,
        }))
        .unwrap()
    }

    fn agent() -> AgentPod {
        let renewal = "2026-01-02T12:00:00Z".parse().unwrap();
        let control = ControlUrl { url: "http://store/control?sig".to_owned(), renewal };
        AgentPod { image: "agent:1".to_owned(), control, poll: None }
    }

    #[test]
    fn the_agent_is_the_parent_of_the_program() {
        let job = job(&json!({"workers": 2, "gpu": {"count": 8}}));
        let pod = build(&job, Seat { attempt: 3, rank: 1 }, Goes::Scheduled, Some(&agent()));
        assert_eq!(pod["metadata"]["name"], "j-3-1");
        assert_eq!(pod["metadata"]["labels"][names::RANK], "1");
        assert_eq!(pod["metadata"]["annotations"][names::CONTROL], "http://store/control?sig");
        assert_eq!(pod["metadata"]["annotations"][names::CONTROL_RENEWAL], "2026-01-02T12:00:00Z");
        let (init, main) = (&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]);
        assert_eq!(init["resources"]["limits"]["nvidia.com/gpu"], "0", "a LimitRange must not add GPUs");
        let command =
            ["/tradewind/tradewind-agent", "run", "--scratch", "/tradewind", "--", "python", "train.py", "$(MODE)"];
        assert_eq!(main["command"], json!(command));
        assert!(main.get("args").is_none());
        assert_eq!(main["resources"]["limits"]["nvidia.com/gpu"], "8");
        assert_eq!(main["env"][1]["valueFrom"]["fieldRef"]["fieldPath"], "status.podIP");
        assert_eq!(main["volumeMounts"], init["volumeMounts"]);
    }

    #[test]
    fn no_limit_range_gives_the_agent_devices_that_the_template_asks_for_itself() {
        for (list, part, name) in [
            ("containers", "limits", "nvidia.com/gpu"),
            ("containers", "requests", "amd.com/gpu"),
            ("initContainers", "limits", "nvidia.com/mig-1g.5gb"),
        ] {
            let mut job = job(&json!({"workers": 2}));
            job.spec.template["spec"][list] = json!([
                {"name": "train", "image": "i", "command": ["x"]},
                {"name": "metrics", "image": "i", "resources": {part: {name: 1, "cpu": "2"}}},
            ]);
            let pod = build(&job, Seat { attempt: 0, rank: 0 }, Goes::Scheduled, Some(&agent()));
            let resources = &pod["spec"]["initContainers"][0]["resources"];
            for part in ["requests", "limits"] {
                assert_eq!(resources[part][name], "0", "{list}: {resources}");
                assert_eq!(resources[part].as_object().unwrap().len(), 3, "{list}: {resources}");
            }
        }
        let plain = build(&job(&json!({"workers": 2})), Seat { attempt: 0, rank: 0 }, Goes::Scheduled, Some(&agent()));
        let limits = plain["spec"]["initContainers"][0]["resources"]["limits"].as_object().unwrap().clone();
        assert_eq!(limits.len(), 2, "it asks for none: {limits:?}");
    }

    #[test]
    fn one_worker_without_checkpoints_is_a_plain_pod() {
        let job = job(&json!({}));
        assert!(!needs_agent(&job));
        let pod = build(&job, Seat { attempt: 0, rank: 0 }, Goes::Scheduled, None);
        assert_eq!(pod["metadata"]["name"], "j-0");
        assert_eq!(pod["spec"]["containers"][0]["command"], json!(["python"]));
        let seconds: Vec<_> =
            pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| &t["tolerationSeconds"]).collect();
        assert_eq!(seconds, [30, 30]);
        assert_eq!(grace(&job), (30, 27));
    }

    #[test]
    fn the_api_server_is_asked_about_the_pod_that_will_be_made() {
        let checkpoint = json!({"path": "c", "pattern": "{step}", "to": "s3://b/", "secretRef": {"name": "s"}});
        let job = job(&json!({"checkpoint": checkpoint}));
        let scheduled = trial(&job, InCluster::Prefer, Some("agent:1"));
        assert_eq!(scheduled["spec"]["initContainers"][0]["image"], "agent:1");
        let rented = trial(&job, InCluster::Never, Some("agent:1"));
        assert!(rented["spec"].get("initContainers").is_none(), "no agent of ours is beside it: {rented}");
        assert_eq!(rented["spec"]["containers"][0]["command"], json!(["python"]));
        assert_eq!(rented["spec"]["schedulerName"], names::NO_SCHEDULER);
    }

    #[test]
    fn what_the_template_says_of_dead_nodes_and_of_the_grace_holds() {
        let mut job = job(&json!({"workers": 2}));
        job.spec.template["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        job.spec.template["spec"]["terminationGracePeriodSeconds"] = json!(600);
        let pod = build(&job, Seat { attempt: 0, rank: 0 }, Goes::Scheduled, Some(&agent()));
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 600);
    }

    #[test]
    fn a_queue_of_kueue_admits_the_workers_together() {
        let mut job = job(&json!({"workers": 4}));
        job.spec.template["metadata"] = json!({"labels": {KUEUE_QUEUE: "gpus"}});
        let pod = build(&job, Seat { attempt: 1, rank: 2 }, Goes::Scheduled, None);
        assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"], "j-1");
        assert_eq!(pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"], "4");
    }
}
