//! TrainingJobs out of manifests, checked as the API server would check them.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};
use regex::Regex;
use serde_json::{Map, Value};
use tradewind_api::TrainingJob;

use super::schema::{Checker, meant};
use crate::Trouble;

const KIND: &str = "TrainingJob";
const VERSION: &str = "tradewind.dev/v1alpha1";
/// Fields at the top of an object.
const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// The schema of a TrainingJob's `spec`, as in its CRD.
static SPEC: LazyLock<Value> = LazyLock::new(|| {
    let ours = tradewind_api::crd::all().into_iter().find(|(name, _)| name.contains("trainingjobs"));
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    ours.and_then(|(_, mut crd)| crd.pointer_mut(path).map(Value::take)).unwrap_or_default()
});
static META: LazyLock<Value> = LazyLock::new(schema::<ObjectMeta>);
/// Kubernetes' own form of a quantity (apimachinery, `resource.Quantity`).
static QUANTITY: LazyLock<Regex> = LazyLock::new(|| {
    let form = "^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$";
    Regex::new(form).expect("the constant is an expression")
});
static TEMPLATE: LazyLock<Value> = LazyLock::new(schema::<PodTemplateSpec>);

fn schema<T: JsonSchema>() -> Value {
    SchemaGenerator::default().into_root_schema_for::<T>().into()
}

/// What a file holds.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// Its TrainingJobs, in their order.
    pub jobs: Vec<TrainingJob>,
    /// Other objects, as `Secret s3`.
    pub others: Vec<String>,
}

impl Manifest {
    /// Reads YAML (or JSON) of any number of documents. `name` is for messages.
    pub fn read(name: &str, text: &str) -> Result<Self, Trouble> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
            Trouble::Usage(format!("{name} is no YAML: {}", error.to_string().trim_start_matches("error: ").trim_end()))
        })?;
        let mut found = Self::default();
        for document in documents.into_iter().flat_map(items).filter(|document| !document.is_null()) {
            found.take(name, document)?;
        }
        if found.jobs.is_empty() {
            let has = if found.others.is_empty() { "nothing".to_owned() } else { found.others.join(", ") };
            return Err(Trouble::Usage(format!(
                "there is no TrainingJob in {name}, only {has}: a plan needs apiVersion: {VERSION}, kind: {KIND}"
            )));
        }
        Ok(found)
    }

    fn take(&mut self, file: &str, mut document: Value) -> Result<(), Trouble> {
        let word = |field: &str| document.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version, name) = (word("/kind"), word("/apiVersion"), word("/metadata/name"));
        let object = format!("{kind} {name}").trim_end().to_owned();
        if kind.is_empty() {
            return Err(Trouble::Usage(format!("{file} has an object without kind: a plan needs kind: {KIND}")));
        }
        if kind != KIND {
            let lower = KIND.to_lowercase();
            if kind.to_lowercase() == lower || version == VERSION && !meant(&kind, [KIND]).is_empty() {
                return Err(Trouble::Usage(format!("{file} has an object of kind {kind}; did you mean {KIND}?")));
            }
            self.others.push(object);
            return Ok(());
        }
        if version != VERSION {
            let is = if version.is_empty() { "no apiVersion".to_owned() } else { format!("apiVersion {version}") };
            return Err(Trouble::Usage(format!("{object} in {file} has {is}, but ours is {VERSION}")));
        }
        let problems = problems(&document);
        if !problems.is_empty() {
            return Err(Trouble::Usage(format!("{object} in {file} would be refused:\n  {}", problems.join("\n  "))));
        }
        without_nulls(&mut document);
        let job = serde_json::from_value(document)
            .map_err(|error| Trouble::Usage(format!("{object} in {file} would be refused: {error}")))?;
        self.jobs.push(job);
        Ok(())
    }
}

/// The objects of a list, or the one that is none.
fn items(document: Value) -> Vec<Value> {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Object(mut list) if is_list && list.get("items").is_some_and(Value::is_array) => {
            match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        one => vec![one],
    }
}

fn problems(document: &Value) -> Vec<String> {
    let none = Map::new();
    let top = document.as_object().unwrap_or(&none);
    let mut found: Vec<String> = top
        .keys()
        .filter(|field| !TOP.contains(&field.as_str()))
        .map(|field| format!("{field}: there is no such field{}", meant(field, TOP)))
        .collect();
    let meta = &document["metadata"];
    found.extend(Checker::new(&META).problems(meta, "metadata"));
    let name = meta["name"].as_str().unwrap_or_default();
    if name.is_empty() && meta["generateName"].as_str().is_none_or(str::is_empty) {
        found.push("metadata.name: is missing".to_owned());
    }
    if name.chars().count() > 52 {
        found.push("metadata.name: must have at most 52 characters, since Pods are named after it".to_owned());
    }
    if document["spec"].is_null() {
        found.push("spec: is missing".to_owned());
    }
    found.extend(Checker::new(&SPEC).problems(&document["spec"], "spec"));
    let template = Checker::new(&TEMPLATE).problems(&document["spec"]["template"], "spec.template");
    for problem in template {
        if !found.contains(&problem) {
            found.push(problem);
        }
    }
    found.extend(quantities(&document["spec"]["template"]));
    found
}

/// Requests and limits that are no quantities: a schema calls them any text.
fn quantities(template: &Value) -> Vec<String> {
    let containers = template.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten().enumerate();
    let mut found = Vec::new();
    for (n, container) in containers {
        for part in ["requests", "limits"] {
            for (name, amount) in container["resources"][part].as_object().into_iter().flatten() {
                if amount.as_str().is_some_and(|amount| !QUANTITY.is_match(amount)) {
                    let path = format!("spec.template.spec.containers[{n}].resources.{part}.{name}");
                    found.push(format!("{path}: must be a quantity such as 500m or 8Gi, not {amount}"));
                }
            }
        }
    }
    found
}

/// What is null is as if it were not there.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "
apiVersion: tradewind.dev/v1alpha1
kind: TrainingJob
metadata: {name: my-run, creationTimestamp: null}
spec:
  gpu: {count: 1, models: [RTX4090], minMemory: 20Gi}
  template:
    spec:
      containers:
      - name: train
        image: train:1
        command: [train]
        resources: {requests: {cpu: 1, memory: 8Gi}}
  placement: {inCluster: Never}
";

    fn refused(text: &str) -> String {
        Manifest::read("job.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn several_documents_and_lists_are_read() {
        let second = JOB.replace("my-run", "second");
        let text = format!("{JOB}---\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s3}}\n---{second}");
        let found = Manifest::read("x", &text).unwrap();
        let names: Vec<_> = found.jobs.iter().map(|job| job.metadata.name.clone().unwrap()).collect();
        assert_eq!(
            (names, found.others),
            (vec!["my-run".to_owned(), "second".to_owned()], vec!["Secret s3".to_owned()])
        );
        let indented = JOB.trim().replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {indented}\n");
        assert_eq!(Manifest::read("x", &list).unwrap().jobs.len(), 1);
    }

    #[test]
    fn what_is_no_job_of_ours_is_said() {
        assert!(refused("").contains("no TrainingJob in job.yaml, only nothing"));
        assert!(refused("kind: Secret\nmetadata: {name: s3}\n").contains("only Secret s3"));
        assert!(refused(&JOB.replace("kind: TrainingJob", "kind: TrainigJob")).contains("did you mean TrainingJob?"));
        assert!(refused(&JOB.replace("kind: TrainingJob", "kind: trainingjob")).contains("did you mean TrainingJob?"));
        let other = refused(&JOB.replace("tradewind.dev/v1alpha1", "kubeflow.org/v1"));
        assert_eq!(
            other,
            "TrainingJob my-run in job.yaml has apiVersion kubeflow.org/v1, but ours is tradewind.dev/v1alpha1"
        );
        assert!(refused("a: [").starts_with("job.yaml is no YAML: "));
        assert!(refused("- 1\n- 2\n").contains("without kind"));
    }

    #[test]
    fn unknown_wrong_and_missing_fields_are_named_with_their_paths() {
        for (from, to, problem) in [
            ("models:", "model:", "spec.gpu.model: there is no such field; did you mean models?"),
            ("placement:", "placment:", "spec.placment: there is no such field; did you mean placement?"),
            ("count: 1", "count: one", "spec.gpu.count: must be a whole number, not \"one\""),
            ("20Gi", "20 GB", "spec.gpu.minMemory: must be a size such as 20Gi"),
            (
                "Never",
                "never",
                "spec.placement.inCluster: \"never\" is none of Prefer, Only, Never; did you mean Never?",
            ),
            (
                "image: train:1",
                "imag: train:1",
                "spec.template.spec.containers[0].imag: there is no such field; did you mean image or",
            ),
            (
                "requests:",
                "request:",
                "spec.template.spec.containers[0].resources.request: there is no such field; did you mean requests?",
            ),
            (
                "8Gi",
                "8 GB",
                "spec.template.spec.containers[0].resources.requests.memory: must be a quantity such as 500m or 8Gi, not \"8 GB\"",
            ),
            (
                "command: [train]",
                "command: train",
                "spec.template.spec.containers[0].command: must be a list, not \"train\"",
            ),
            ("- name: train", "- naem: train", "name is missing"),
            ("spec:\n  gpu", "specs:\n  gpu", "spec: is missing"),
            ("name: my-run", "labels: {a: b}", "metadata.name: is missing"),
            (
                "inCluster: Never",
                "inCluster: Never, maxPricePerHour: \"0.30\"",
                "spec.placement.maxPricePerHour: is a price to wait for: say how long with placement.patience",
            ),
        ] {
            let text = JOB.replacen(from, to, 1);
            assert_ne!(text, JOB, "{from}");
            assert!(refused(&text).contains(problem), "{to}: {}", refused(&text));
        }
        let two = JOB.replace("models:", "model:").replace("Never", "never");
        assert_eq!(refused(&two).lines().count(), 3, "{}", refused(&two));
    }

    #[test]
    fn hostile_texts_are_errors() {
        for text in ["\0", "&a [*a]", "{{{{", "? ? ?", "!!binary x", "kind: TrainingJob\nkind: TrainingJob"] {
            assert!(Manifest::read("x", text).is_err(), "{text}");
        }
        assert!(Manifest::read("x", &"[".repeat(50_000)).is_err());
        let levels = (b'b'..=b'm').map(|this| {
            let (this, before) = (char::from(this), char::from(this - 1));
            format!("{this}: &{this} [{}]", vec![format!("*{before}"); 9].join(","))
        });
        let bomb = std::iter::once("a: &a [x]".to_owned()).chain(levels).collect::<Vec<_>>().join("\n");
        assert!(Manifest::read("x", &bomb).is_err());
    }
}
