//! The Pod of an attempt: what it is made of. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Map, Value, json};
use tradewind_api::training_job::InCluster;
use tradewind_api::{TrainingJob, names};

/// Name of the Pod of an attempt.
pub fn name(job: &TrainingJob, attempt: i64) -> String {
    format!("{}-{attempt}", job.metadata.name.as_deref().unwrap_or_default())
}

/// The Pod of an attempt as JSON: for the strict dry run as for the real create.
///
/// `node` is given when a machine for this attempt lives already: the Pod is made again on it, past the scheduler.
pub fn build(job: &TrainingJob, attempt: i64, node: Option<&str>) -> Value {
    let template = &job.spec.template;
    let part = |path: &str| template.pointer(path).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut labels = part("/metadata/labels");
    let meta = &job.metadata;
    labels.insert(names::JOB_NAME.to_owned(), json!(meta.name));
    labels.insert(names::JOB_UID.to_owned(), json!(meta.uid));
    labels.insert(names::ATTEMPT.to_owned(), json!(attempt.to_string()));
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
    if job.spec.placement.in_cluster == InCluster::Never {
        spec.insert("schedulerName".to_owned(), json!(names::NO_SCHEDULER));
    }
    if let Some(node) = node {
        spec.insert("nodeName".to_owned(), json!(node));
    }
    if let Some(gpu) = &job.spec.gpu {
        ask_for_gpus(&mut spec, gpu.count);
    }
    let mut metadata = json!({
        "name": name(job, attempt),
        "namespace": meta.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    });
    let annotations = part("/metadata/annotations");
    if !annotations.is_empty() {
        metadata["annotations"] = Value::Object(annotations);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
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
