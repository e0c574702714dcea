//! The CRDs as YAML, one file per kind.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{Provider, RentedMachine, TrainingJob};

/// File name and CRD of every kind, as JSON values ready to be written.
///
/// `status` gets a default of `{}`, so that `observedGeneration: -1` is there from the first read (the derive cannot say this), and long
/// texts below `status.conditions` are left out, since every CRD must stay below 100 KB.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("tradewind.dev_trainingjobs.yaml", finished(&TrainingJob::crd())),
        ("tradewind.dev_providers.yaml", finished(&Provider::crd())),
        ("tradewind.dev_rentedmachines.yaml", finished(&RentedMachine::crd())),
    ]
}

/// File name and text of every generated file in `crds/`.
pub fn files() -> Vec<(&'static str, String)> {
    let head = "# Written by `tradewind-operator crds`. Do not edit: change crates/api and run it again.";
    let text = |value: &Value| {
        let yaml = serde_saphyr::to_string(value).expect("plain data can be written as YAML");
        format!("{head}\n{yaml}")
    };
    all().iter().map(|(name, value)| (*name, text(value))).collect()
}

fn finished(crd: &CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(crd).expect("a CRD is plain data");
    // So that a refusal of the name can show the field's path.
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties";
    if let Some(properties) = value.pointer_mut(properties).and_then(Value::as_object_mut) {
        properties.insert(
            "metadata".to_owned(),
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}}),
        );
    }
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/status";
    if let Some(status) = value.pointer_mut(path).and_then(Value::as_object_mut) {
        status.remove("nullable");
        status.insert("default".to_owned(), json!({}));
        let conditions = status.get_mut("properties").and_then(|p| p.get_mut("conditions"));
        if let Some(items) = conditions.and_then(|c| c.get_mut("items")) {
            strip_descriptions(items);
        }
    }
    whole_numbers(&mut value);
    value
}

/// Bounds come out of the derive as `512.0`; people write 512.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15) {
                #[expect(clippy::cast_possible_truncation, reason = "whole and far below the bounds of i64")]
                let whole = whole as i64;
                *number = whole.into();
            }
        }
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        _ => {}
    }
}

fn strip_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(strip_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_descriptions),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `look` with every schema below `value` and its path.
    fn walk(path: &str, schema: &Value, look: &mut impl FnMut(&str, &Value)) {
        look(path, schema);
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), child, look);
        }
        for (name, below) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[name].is_object() {
                walk(&format!("{path}{below}"), &schema[name], look);
            }
        }
    }

    fn schemas() -> Vec<(String, Value)> {
        let schema = |crd: &Value| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        all().iter().map(|(_, crd)| (crd["spec"]["names"]["kind"].as_str().unwrap().to_owned(), schema(crd))).collect()
    }

    #[test]
    fn every_list_has_a_bound() {
        let mut lists = 0;
        for (kind, schema) in schemas() {
            walk(&kind, &schema, &mut |path, schema| {
                if schema["type"] == "array" {
                    lists += 1;
                    assert!(schema["maxItems"].is_i64(), "{path} has no maxItems");
                }
            });
        }
        assert!(lists > 10, "only {lists} lists were looked at");
    }

    #[test]
    fn every_field_of_ours_is_explained() {
        for (kind, schema) in schemas() {
            walk(&kind, &schema, &mut |path, schema| {
                // The pod template, the conditions and the parts of a list or a map are Kubernetes' own or have their text one level up.
                let own = !path.contains(".template.")
                    && !path.contains(".conditions")
                    && !path.contains(".metadata")
                    && !path.ends_with("[]")
                    && !path.ends_with("{}");
                assert!(!own || schema["description"].is_string(), "{path} has no description");
            });
        }
    }

    #[test]
    fn a_fresh_object_says_that_nobody_has_looked() {
        for (kind, schema) in schemas() {
            let status = &schema["properties"]["status"];
            assert_eq!(status["default"], json!({}), "{kind}");
            assert_eq!(status["properties"]["observedGeneration"]["default"], json!(-1), "{kind}");
        }
    }

    #[test]
    fn files_are_small_and_say_the_same_as_the_types() {
        for ((name, text), (_, crd)) in files().iter().zip(all()) {
            assert!(text.len() < 100_000, "{name} has {} bytes", text.len());
            let read: Value = serde_saphyr::from_str(text).unwrap();
            assert_eq!(read, crd, "{name}");
        }
    }
}
