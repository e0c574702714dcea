//! A TrainingJob's spec as checked, owned values. Later stages never look at the raw spec again. Pure.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tradewind_api::rented_machine::{EnvEntry, MachineCheckpoint, Workload};
use tradewind_api::training_job::{CapacityChoice, FailureRule, InCluster, OnExisting, Writers};
use tradewind_api::values::{Size, quantity_bytes, quantity_millis};
use tradewind_api::{Reason, TrainingJob};
use tradewind_core::{GpuModel, Money, Trust, hex};
use tradewind_planner as planner;

use super::placement::Choice;
use super::{input, template};

/// What a job asks for, checked.
#[derive(Debug, Clone)]
pub struct Valid {
    /// Whether the cluster's own nodes are used.
    pub in_cluster: InCluster,
    /// How long unschedulable before renting.
    pub burst_after: Duration,
    /// How often a failing program is started again.
    pub max_restarts: i64,
    /// What certain exit codes lead to.
    pub rules: Vec<FailureRule>,
    /// Time without a sign of life after which the program is started again.
    pub stall_timeout: Duration,
    /// What to do with a run that is there already.
    pub on_existing: OnExisting,
    /// Number of workers.
    pub workers: i64,
    /// For how long some workers may wait while others hold nodes.
    pub gang_timeout: Duration,
    /// Each worker writes its part of a checkpoint.
    pub all_ranks: bool,
    /// The job runs with our agent in the cluster too.
    pub needs_agent: bool,
    /// What the cluster's own GPUs cost it an hour, where they are not free and renting is the other way: the cheaper one is taken.
    pub cluster_price: Option<Money>,
    /// Hash of what its Pods ask the scheduler for.
    pub kind: String,
    /// Hash of what decides the result: template, workers, GPUs, and how it saves.
    pub spec_hash: String,
    /// Hash of the template.
    pub template_hash: String,
    /// What a rented machine would run, or what stands in the way of renting.
    pub rental: Result<Workload, NotRentable>,
    /// Checkpoints.
    pub checkpoint: Option<MachineCheckpoint>,
    /// What a machine must have.
    pub needs: planner::Requirements,
    /// Work in all.
    pub work: planner::WorkLeft,
    /// What the program downloads on each machine, in MB.
    pub input_mb: u64,
    /// Dollars in all.
    pub budget_total: Option<Money>,
    /// Time from its creation within which the job must be complete.
    pub complete_within: Option<Duration>,
    /// How long it may wait for a cheaper machine.
    pub patience: Duration,
    /// Dollars an hour to wait for.
    pub max_price_per_hour: Option<Money>,
}

/// Why a job cannot run on a rented machine: the one field, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRentable {
    /// Reason for a condition.
    pub reason: Reason,
    /// Names the field: `volumes[2] is a persistentVolumeClaim`.
    pub message: String,
}

/// Why a job cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Reason for the condition.
    pub reason: Reason,
    /// Sentence: what is wrong and what would be right.
    pub message: String,
}

/// Hours of work assumed for a job that does not say: enough that set-up does not decide between offers.
pub const ASSUMED_WORK_S: u64 = 3600;
/// Disk for a job that asks for none, in GiB; Vast.ai's own default is 8 to 10.
const DEFAULT_DISK_GIB: i64 = 10;

/// Why a job cannot be accepted, if it cannot.
pub fn refusal(job: &TrainingJob, values: &Valid) -> Option<Refused> {
    let workers = job.spec.workers;
    if workers > 1 && values.in_cluster == InCluster::Never {
        return Some(Refused {
            reason: Reason::NoPrivateNetwork,
            message: format!(
                "spec.workers is {workers} and placement.inCluster is Never, but rented machines have no private network between them: allow the cluster, or set workers to 1"
            ),
        });
    }
    let command = job.spec.template.pointer("/spec/containers/0/command").and_then(Value::as_array);
    if values.needs_agent && command.is_none_or(Vec::is_empty) {
        return Some(Refused {
            reason: Reason::CommandRequired,
            message: "containers[0].command is empty: a job with checkpoints or several workers must name its program there, since the image's own entrypoint is not read".to_owned(),
        });
    }
    let wrong = unknown_gpu(job).or_else(|| input::checkpoint(job)).or_else(|| input::conflict(job));
    if wrong.is_some() {
        return wrong;
    }
    let (InCluster::Never, Err(obstacle)) = (values.in_cluster, &values.rental) else { return None };
    Some(Refused {
        reason: obstacle.reason,
        message: format!(
            "placement.inCluster is Never, but the job cannot run on a rented machine: {}",
            obstacle.message
        ),
    })
}

/// A model in `work` that is not in the planner's table: hours on it say nothing of any other GPU, so that costs and times would be guesses.
/// In `gpu.models` such a name is only a wish: a market may sell what the table does not have yet.
fn unknown_gpu(job: &TrainingJob) -> Option<Refused> {
    let written = job.spec.work.as_ref()?.gpu.as_deref()?;
    let model = GpuModel::normalise(written, 0);
    if planner::gpus::find(&model).is_some() {
        return None;
    }
    let hint = planner::gpus::meant(&model).unwrap_or_else(|| "names are as RTX4090, A100-80GB or H100".to_owned());
    Some(Refused {
        reason: Reason::UnknownGpu,
        message: format!(
            "spec.work.gpu is \"{}\", which is no GPU model that we know ({hint}): the hours on it cannot be compared with other GPUs",
            written.escape_debug()
        ),
    })
}

impl Valid {
    /// What follows where agents cannot run in the cluster (no mailbox, or no image with the agent): a job that needs one is rented for, or
    /// refused.
    pub fn without_agents(&mut self, there: bool) -> Option<Refused> {
        if there || !self.needs_agent || self.in_cluster == InCluster::Never {
            return None;
        }
        if self.in_cluster == InCluster::Prefer && self.rental.is_ok() {
            self.in_cluster = InCluster::Never;
            return None;
        }
        Some(Refused {
            reason: Reason::NoMailbox,
            message: "a job with checkpoints or several workers runs in the cluster with our agent: the operator needs --mailbox and --agent-image for that".to_owned(),
        })
    }
}

impl Valid {
    /// What the cluster's GPUs cost the job, if that matters to it.
    pub fn priced(&mut self, price_per_gpu: Money) {
        let other_way = self.in_cluster == InCluster::Prefer && self.workers == 1 && self.rental.is_ok();
        if other_way && price_per_gpu > Money::ZERO && self.needs.gpu_count > 0 {
            self.cluster_price = Some(price_per_gpu.times(u64::from(self.needs.gpu_count)));
        }
    }

    /// Whether renting this is cheaper than the cluster's own GPUs.
    pub fn is_cheaper(&self, choice: Option<&Choice>) -> bool {
        let per_hour = match choice {
            Some(Choice::Rent(rent)) => rent.first.price_per_hour,
            // It waits for something cheaper still.
            Some(Choice::Later { now, .. }) => *now,
            _ => return false,
        };
        self.cluster_price.is_some_and(|price| per_hour < price)
    }
}

/// A job's spec as values. Total: a spec that cannot be accepted has them too, since what was started before goes by them.
pub fn values(job: &TrainingJob) -> Valid {
    let spec = &job.spec;
    let rental = if spec.workers > 1 { Err(no_private_network(spec.workers)) } else { workload(&spec.template) };
    let checkpoint = spec.checkpoint.as_ref().map(|c| MachineCheckpoint {
        path: c.path.clone(),
        pattern: c.pattern.clone(),
        to: c.to.clone(),
        secret_ref: c.secret_ref.clone(),
        resume_args: c.resume_args.clone(),
        interval_s: i64::try_from(c.interval.seconds()).unwrap_or(i64::MAX),
        keep: i64::from(c.keep),
    });
    let input = spec.work.as_ref().and_then(|work| work.input_size.as_ref());
    let receives_secrets = rental.as_ref().is_ok_and(|w| w.env.iter().any(|e| e.secret.is_some()));
    let work =
        spec.work.as_ref().map_or(planner::WorkLeft { seconds: ASSUMED_WORK_S, on: None }, |w| planner::WorkLeft {
            seconds: (w.hours.millionths().saturating_mul(3600) / 1_000_000).max(1),
            on: w.gpu.as_deref().map(|gpu| GpuModel::normalise(gpu, 0)),
        });
    Valid {
        in_cluster: spec.placement.in_cluster,
        burst_after: burst_after(spec, work.seconds),
        max_restarts: i64::from(spec.failure_policy.max_restarts),
        rules: spec.failure_policy.rules.clone(),
        stall_timeout: Duration::from_secs(spec.stall_timeout.seconds()),
        on_existing: spec.checkpoint.as_ref().map(|c| c.on_existing).unwrap_or_default(),
        workers: i64::from(spec.workers.max(1)),
        gang_timeout: Duration::from_secs(spec.gang_timeout.seconds()),
        all_ranks: spec.checkpoint.as_ref().is_some_and(|c| c.writers == Writers::AllRanks),
        needs_agent: template::needs_agent(job),
        cluster_price: None,
        kind: kind(job),
        spec_hash: spec_hash(job),
        template_hash: hash(&spec.template),
        needs: needs(job, &rental, receives_secrets),
        rental,
        checkpoint,
        work,
        input_mb: input.and_then(Size::bytes).map_or(0, |bytes| bytes.div_ceil(1_000_000)),
        budget_total: spec.budget.as_ref().and_then(|b| b.total),
        complete_within: spec.complete_within.as_ref().map(|span| Duration::from_secs(span.seconds())),
        patience: Duration::from_secs(spec.placement.patience.seconds()),
        max_price_per_hour: spec.placement.max_price_per_hour,
    }
}

/// How long the cluster may be waited for; with a deadline not longer than a quarter of the time to spare.
fn burst_after(spec: &tradewind_api::TrainingJobSpec, work_s: u64) -> Duration {
    let said = Duration::from_secs(spec.placement.burst_after.seconds());
    let spare_s = spec.complete_within.as_ref().map(|within| within.seconds().saturating_sub(work_s));
    spare_s.map_or(said, |spare_s| said.min(Duration::from_secs(spare_s / 4)))
}

fn needs(job: &TrainingJob, rental: &Result<Workload, NotRentable>, receives_secrets: bool) -> planner::Requirements {
    let spec = &job.spec;
    let placement = &spec.placement;
    let gpu = spec.gpu.as_ref();
    let requests = spec.template.pointer("/spec/containers/0/resources/requests");
    let quantity = |name: &str| requests.and_then(|r| r.get(name)).map(text_of).unwrap_or_default();
    // Promise 6: a machine that receives Secrets is a data centre's unless the job says otherwise.
    let default_trust = if receives_secrets { Trust::Datacenter } else { Trust::Community };
    let number = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    planner::Requirements {
        gpu_models: gpu.map(|g| g.models.iter().map(|m| GpuModel::normalise(m, 0)).collect()).unwrap_or_default(),
        gpu_count: gpu.and_then(|g| u32::try_from(g.count).ok()).unwrap_or(0),
        min_gpu_memory_mib: gpu.and_then(|g| g.min_memory.as_ref()).map_or(0, Size::mib),
        cpu_millis: quantity_millis(&quantity("cpu")).unwrap_or(0),
        memory_mib: quantity_bytes(&quantity("memory")).unwrap_or(0).div_ceil(1 << 20),
        disk_gib: rental.as_ref().map_or(0, |w| u64::try_from(w.disk_gib).unwrap_or(0)),
        capacity: match placement.capacity {
            CapacityChoice::Any => planner::CapacityChoice::Any,
            CapacityChoice::Spot => planner::CapacityChoice::Spot,
            CapacityChoice::OnDemand => planner::CapacityChoice::OnDemand,
        },
        min_trust: placement.min_trust.map_or(default_trust, Trust::from),
        providers: placement.providers.clone(),
        regions: placement.regions.clone(),
        min_reliability_ppm: placement
            .min_reliability
            .as_ref()
            .and_then(|r| u32::try_from(r.millionths()).ok())
            .unwrap_or(0),
        min_download_mbps: number(placement.min_download_mbps),
        min_upload_mbps: number(placement.min_upload_mbps),
        min_cuda_milli: gpu
            .and_then(|g| g.min_cuda_version.as_ref())
            .map_or(0, |version| u32::try_from(version.millionths() / 1000).unwrap_or(u32::MAX)),
        excluded_hosts: placement.excluded_hosts.clone(),
        max_price_per_hour: spec.budget.as_ref().and_then(|b| b.per_hour),
        ..planner::Requirements::default()
    }
}

/// Hash of what decides where the scheduler may put a job's Pods, and before whom.
fn kind(job: &TrainingJob) -> String {
    let spec = job.spec.template.get("spec").unwrap_or(&Value::Null);
    let part = |field: &str| spec.get(field).unwrap_or(&Value::Null);
    let resources = spec.pointer("/containers/0/resources").unwrap_or(&Value::Null);
    let named =
        |part: &str| resources.get(part).and_then(Value::as_object).map(|r| r.keys().cloned().collect::<Vec<_>>());
    hash(&serde_json::json!([
        job.spec.gpu.is_some(),
        part("nodeSelector"),
        part("affinity"),
        part("priorityClassName"),
        part("schedulerName"),
        named("requests"),
        named("limits"),
    ]))
}

/// Hash of a template: SHA-256 of its JSON (keys are sorted), 16 hex digits.
pub fn hash(template: &Value) -> String {
    let digest = Sha256::digest(template.to_string().as_bytes());
    hex(&digest[..8])
}

/// Hash of what decides the result. What a job may cost, where it runs and when it is suspended make no other run of it.
fn spec_hash(job: &TrainingJob) -> String {
    let spec = &job.spec;
    let saves = spec.checkpoint.as_ref().map(|c| (&c.path, &c.pattern, &c.resume_args));
    hash(&serde_json::json!([spec.template, spec.workers, spec.gpu, saves]))
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Fields of a Pod's spec that mean nothing on a rented machine but do no harm there: they steer scheduling in the cluster.
const HARMLESS_POD_FIELDS: &[&str] = &[
    "containers",
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "schedulerName",
    "tolerations",
    "nodeSelector",
    "affinity",
    "priorityClassName",
    "priority",
    "preemptionPolicy",
    "topologySpreadConstraints",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "runtimeClassName",
    "dnsPolicy",
];

/// Fields of the container that are carried out or harmless.
const KNOWN_CONTAINER_FIELDS: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "env",
    "envFrom",
    "workingDir",
    "resources",
    "securityContext",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "ports",
];

fn no_private_network(workers: i32) -> NotRentable {
    NotRentable {
        reason: Reason::NoPrivateNetwork,
        message: format!(
            "its {workers} workers need a private network between them, which rented machines do not have"
        ),
    }
}

fn not_rentable(message: impl Into<String>) -> NotRentable {
    NotRentable { reason: Reason::NotRentable, message: message.into() }
}

/// What a rented machine would run.
fn workload(template: &Value) -> Result<Workload, NotRentable> {
    let empty = serde_json::Map::new();
    let spec = template.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    if let Some(volume) = spec.get("volumes").and_then(|v| v.get(0)) {
        let kind = volume.as_object().and_then(|v| v.keys().find(|k| *k != "name")).map_or("nothing", String::as_str);
        return Err(not_rentable(format!(
            "volumes[0] is a {kind}, which this version cannot give to a rented machine"
        )));
    }
    if let Some(field) = spec.keys().find(|k| !HARMLESS_POD_FIELDS.contains(&k.as_str()) && *k != "volumes") {
        return Err(not_rentable(format!("the template's {field} means something only inside the cluster")));
    }
    let containers = spec.get("containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if containers.len() > 1 {
        let name = containers[1].get("name").and_then(Value::as_str).unwrap_or("");
        return Err(not_rentable(format!("containers[1] ({name}) is a sidecar; a rented machine runs one container")));
    }
    let container = containers.first().and_then(Value::as_object).unwrap_or(&empty);
    if let Some(field) = container.keys().find(|k| !KNOWN_CONTAINER_FIELDS.contains(&k.as_str())) {
        return Err(not_rentable(format!("containers[0].{field} means something only inside the cluster")));
    }
    let texts = |field: &str| -> Vec<String> {
        container
            .get(field)
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let mut command = texts("command");
    if command.is_empty() {
        return Err(NotRentable {
            reason: Reason::CommandRequired,
            message: "containers[0].command is empty; a rented machine needs it, since the image's own entrypoint is not read".to_owned(),
        });
    }
    command.extend(texts("args"));
    let disk = container.get("resources").and_then(|r| r.pointer("/requests/ephemeral-storage")).map(text_of);
    let disk_gib = disk
        .and_then(|d| quantity_bytes(&d))
        .map_or(DEFAULT_DISK_GIB, |bytes| i64::try_from(bytes.div_ceil(1 << 30)).unwrap_or(i64::MAX).max(1));
    Ok(Workload {
        container: container.get("name").and_then(Value::as_str).unwrap_or("main").to_owned(),
        image: container.get("image").and_then(Value::as_str).unwrap_or_default().to_owned(),
        command,
        working_dir: container.get("workingDir").and_then(Value::as_str).map(str::to_owned),
        env: environment(container)?,
        disk_gib,
        stop_grace_s: spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30),
        // Of the job, not of its template: added where the machine's object is made.
        memory_mib: 0,
        gpus: 0,
    })
}

fn environment(container: &serde_json::Map<String, Value>) -> Result<Vec<EnvEntry>, NotRentable> {
    let mut entries = Vec::new();
    let text = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let flag = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_bool).unwrap_or(false);
    for (i, source) in container.get("envFrom").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let Some(secret) = text(source, "/secretRef/name") else {
            return Err(not_rentable(format!("containers[0].envFrom[{i}] is no secretRef")));
        };
        entries.push(EnvEntry {
            secret: Some(secret),
            prefix: text(source, "/prefix").unwrap_or_default(),
            optional: flag(source, "/secretRef/optional"),
            ..EnvEntry::default()
        });
    }
    for (i, variable) in container.get("env").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let name = text(variable, "/name").unwrap_or_default();
        let entry = match variable.get("valueFrom") {
            None => EnvEntry { name, value: Some(text(variable, "/value").unwrap_or_default()), ..EnvEntry::default() },
            Some(from) if from.get("secretKeyRef").is_some() => EnvEntry {
                name,
                secret: text(from, "/secretKeyRef/name"),
                key: text(from, "/secretKeyRef/key"),
                optional: flag(from, "/secretKeyRef/optional"),
                ..EnvEntry::default()
            },
            Some(_) => {
                return Err(not_rentable(format!(
                    "containers[0].env[{i}] ({name}) takes its value from something else than a Secret"
                )));
            }
        };
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(spec: Value) -> TrainingJob {
        serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "j", "namespace": "n"}, "spec": spec,
        }))
        .unwrap()
    }

    fn template(container: Value, more: Value) -> Value {
        let mut base = json!({"name": "train", "image": "i", "command": ["python3", "t.py"]});
        base.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let mut spec = json!({"containers": [base]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"spec": spec})
    }

    fn validate(job: &TrainingJob) -> Result<Valid, Refused> {
        let values = values(job);
        refusal(job, &values).map_or(Ok(values), Err)
    }

    #[test]
    fn the_one_field_that_stands_in_the_way_is_named() {
        for (container, more, part) in [
            (
                json!({}),
                json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}]}),
                "volumes[0] is a persistentVolumeClaim",
            ),
            (json!({}), json!({"initContainers": [{"name": "i"}]}), "initContainers"),
            (json!({}), json!({"serviceAccountName": "x"}), "serviceAccountName"),
            (json!({"livenessProbe": {}}), json!({}), "containers[0].livenessProbe"),
            (
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}),
                json!({}),
                "env[0] (A)",
            ),
            (json!({"command": []}), json!({}), "containers[0].command is empty"),
        ] {
            let spec = json!({"template": template(container, more), "placement": {"inCluster": "Never"}});
            let refused = validate(&job(spec)).unwrap_err();
            assert!(refused.message.contains(part), "{part}: {}", refused.message);
        }
    }

    #[test]
    fn jobs_with_secrets_want_a_data_centre_unless_they_say_otherwise() {
        let secret = json!({"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        let plain = validate(&job(json!({"template": template(json!({}), json!({}))}))).unwrap();
        let with = validate(&job(json!({"template": template(secret.clone(), json!({}))}))).unwrap();
        let said = json!({"template": template(secret, json!({})), "placement": {"minTrust": "Community"}});
        let said = validate(&job(said)).unwrap();
        assert_eq!(plain.needs.min_trust, Trust::Community);
        assert_eq!(with.needs.min_trust, Trust::Datacenter);
        assert_eq!(said.needs.min_trust, Trust::Community);
    }

    #[test]
    fn what_a_machine_must_have_reaches_the_planner() {
        let spec = json!({
            "template": template(json!({}), json!({})),
            "gpu": {"minCudaVersion": "12.4", "minMemory": "200Gi"},
            "placement": {"excludedHosts": ["4711", "vast/12"]},
            "work": {"hours": "2", "inputSize": "1Gi"},
        });
        let valid = validate(&job(spec)).unwrap();
        assert_eq!(valid.needs.min_cuda_milli, 12_400);
        assert_eq!(valid.needs.min_gpu_memory_mib, 200 << 10, "as it is written; the planner knows what is enough");
        assert_eq!(valid.needs.excluded_hosts, ["4711", "vast/12"]);
        assert_eq!(valid.input_mb, 1074, "rounded up");
    }

    #[test]
    fn hours_on_a_gpu_that_nobody_knows_are_refused() {
        let with = |work: Value| validate(&job(json!({"template": template(json!({}), json!({})), "work": work})));
        for (gpu, parts) in [
            ("RTX4O90", ["spec.work.gpu is \"RTX4O90\"", "did you mean RTX4090 or "]),
            ("my own\n", ["spec.work.gpu is \"my own\\n\"", "names are as RTX4090"]),
            ("", ["spec.work.gpu is \"\"", "names are as RTX4090"]),
        ] {
            let message = with(json!({"hours": "1.5", "gpu": gpu})).unwrap_err().message;
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        for gpu in ["rtx_4090", "NVIDIA GeForce RTX 4090", "A100", "H100 SXM"] {
            assert!(with(json!({"hours": "1.5", "gpu": gpu})).is_ok(), "{gpu}");
        }
        assert!(with(json!({"hours": "1.5"})).is_ok());
        let new = json!({"template": template(json!({}), json!({})), "gpu": {"models": ["RTX 9090"]}});
        assert!(validate(&job(new)).is_ok(), "the market may have what the table has not");
    }

    #[test]
    fn several_workers_are_never_rented() {
        let never =
            json!({"workers": 4, "template": template(json!({}), json!({})), "placement": {"inCluster": "Never"}});
        assert_eq!(validate(&job(never)).unwrap_err().reason, Reason::NoPrivateNetwork);
    }
}
