//! Jobs that are stuck, and what a job needs. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::Value;
use tradewind_api::access::entry_for;
use tradewind_api::conditions::{ACCEPTED, PLACED, STALLED, condition};
use tradewind_api::training_job::InCluster;
use tradewind_api::values::quantity_millis;
use tradewind_api::{Provider, TrainingJob};

use super::mends;
use super::report::Check;
use crate::advice;
use crate::cli::DoctorArgs;
use crate::status::main_reason;
use crate::text::ago;

const AREA: &str = "jobs";
/// A job that waits longer for a place is told of; markets and queues take minutes.
const WAITS_LONG_S: i64 = 15 * 60;

/// Jobs that do not go on by themselves, and those that have waited long.
pub fn stuck(jobs: &[TrainingJob], args: &DoctorArgs, now: Timestamp) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut live = 0;
    for job in jobs {
        let status = job.status.clone().unwrap_or_default();
        if status.phase.is_terminal() {
            continue;
        }
        live += 1;
        let (name, namespace) =
            (job.metadata.name.clone().unwrap_or_default(), job.metadata.namespace.clone().unwrap_or_default());
        let title = format!("{namespace}/{name}");
        let is = |type_: &str, value: &str| condition(&status.conditions, type_).filter(|c| c.status == value);
        let long = |at: Timestamp| now.duration_since(at).as_secs() > WAITS_LONG_S;
        let check = if let Some(c) = is(STALLED, "True").or_else(|| is(ACCEPTED, "False")) {
            Check::problem(AREA, title, format!("{}: {}", c.reason, c.message))
        } else if let Some(c) = is(PLACED, "False").filter(|c| long(c.last_transition_time.0) && !job.spec.suspend) {
            let since = ago(now, c.last_transition_time.0);
            Check::warning(AREA, title, format!("has no place for {since}: {}: {}", c.reason, c.message))
        } else if status.conditions.is_empty()
            && job.metadata.creation_timestamp.as_ref().is_some_and(|t| now.duration_since(t.0).as_secs() > 60)
        {
            Check::problem(AREA, title, "the operator has not looked at it: does it run?")
                .mend(mends::look_at_operator(args))
        } else {
            continue;
        };
        let mend = main_reason(&status).and_then(|reason| advice::for_job(reason, &name, &namespace));
        checks.push(match mend {
            Some(mend) => check.mend(mend),
            None => check,
        });
    }
    if checks.is_empty() {
        checks.push(Check::ok(AREA, "stuck jobs", format!("none of {live} that are not over")));
    }
    checks
}

/// What a job wants of a Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Keys that must be there.
    pub keys: BTreeSet<String>,
    /// What names it.
    pub used_by: BTreeSet<String>,
}

/// Secrets that a job names and cannot do without, by name.
pub fn wanted_secrets(job: &TrainingJob) -> BTreeMap<String, Wanted> {
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    let mut want = |secret: &Value, key: Option<&str>, used_by: String| {
        let Some(name) = secret["name"].as_str().filter(|_| secret["optional"] != true) else { return };
        let entry = wanted.entry(name.to_owned()).or_default();
        entry.keys.extend(key.map(str::to_owned));
        entry.used_by.insert(used_by);
    };
    if let Some(checkpoint) = &job.spec.checkpoint {
        let secret = serde_json::json!({ "name": checkpoint.secret_ref.name });
        for key in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            want(&secret, Some(key), "checkpoint.secretRef".to_owned());
        }
    }
    let spec = &job.spec.template["spec"];
    for container in
        ["initContainers", "containers"].iter().flat_map(|list| spec[list].as_array().into_iter().flatten())
    {
        for env in container["env"].as_array().into_iter().flatten() {
            let secret = &env["valueFrom"]["secretKeyRef"];
            want(secret, secret["key"].as_str(), format!("env {}", env["name"].as_str().unwrap_or_default()));
        }
        for from in container["envFrom"].as_array().into_iter().flatten() {
            want(&from["secretRef"], None, "envFrom".to_owned());
        }
    }
    for secret in spec["imagePullSecrets"].as_array().into_iter().flatten() {
        want(secret, None, "imagePullSecrets".to_owned());
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let named =
            serde_json::json!({ "name": volume["secret"]["secretName"], "optional": volume["secret"]["optional"] });
        want(&named, None, format!("volume {}", volume["name"].as_str().unwrap_or_default()));
    }
    wanted
}

/// Keys that a Secret with these keys does not have.
pub fn missing_keys(wanted: &Wanted, there: &BTreeSet<String>) -> Vec<String> {
    wanted.keys.difference(there).cloned().collect()
}

/// Providers that a job may use by its spec, but whose `access` selects no namespace with these labels; `None` if one does, or none is
/// needed.
pub fn missing_access(
    job: &TrainingJob,
    providers: &[Provider],
    labels: &BTreeMap<String, String>,
) -> Option<Vec<String>> {
    let placement = &job.spec.placement;
    if placement.in_cluster == InCluster::Only {
        return None;
    }
    let name = |provider: &Provider| provider.metadata.name.clone().unwrap_or_default();
    let named: Vec<&Provider> =
        providers.iter().filter(|p| placement.providers.is_empty() || placement.providers.contains(&name(p))).collect();
    let open = |p: &&Provider| p.spec.access.is_empty() || entry_for(&p.spec.access, labels).is_some();
    if named.iter().any(open) { None } else { Some(named.into_iter().map(name).collect()) }
}

/// Quotas without room for the job's Pods: name, resource, what is left, what is needed.
pub fn short_quotas(job: &TrainingJob, quotas: &[ResourceQuota]) -> Vec<String> {
    let workers = u64::try_from(job.spec.workers).unwrap_or(1);
    let gpus = job.spec.gpu.as_ref().map_or(0, |gpu| u64::try_from(gpu.count).unwrap_or(0));
    let needs = [("pods", workers), ("count/pods", workers), ("requests.nvidia.com/gpu", workers * gpus)];
    let mut short = Vec::new();
    for quota in quotas {
        let name = quota.metadata.name.as_deref().unwrap_or_default();
        let status = quota.status.clone().unwrap_or_default();
        let (hard, used) = (status.hard.unwrap_or_default(), status.used.unwrap_or_default());
        for (resource, need) in needs.iter().filter(|(_, need)| *need > 0) {
            let Some(limit) = hard.get(*resource).and_then(|q| quantity_millis(&q.0)) else { continue };
            let taken = used.get(*resource).and_then(|q| quantity_millis(&q.0)).unwrap_or(0);
            let left = limit.saturating_sub(taken) / 1000;
            if left < *need {
                short.push(format!("ResourceQuota {name} has room for {left} of {resource}, the job needs {need}"));
            }
        }
    }
    short
}
