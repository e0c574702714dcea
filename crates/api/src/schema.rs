//! Hand-written pieces of schema that a derive cannot say.
//!
//! What users write is checked by CEL rules instead of bare patterns: a pattern's refusal shows the expression, a rule's our sentence.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Digits with at most six decimals.
pub(crate) const DECIMAL: &str = "^[0-9]{1,9}([.][0-9]{1,6})?$";

/// A text that must match `pattern` (at most `max` characters), else `message` says what would be right.
pub(crate) fn checked_text(max: u32, pattern: &str, message: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": max,
        "x-kubernetes-validations": [{"rule": format!("self.matches('{pattern}')"), "message": message}]
    })
}

const DOLLARS: &str = "must be dollars such as \"10.00\"";

/// Dollars that a user writes: text, not negative, at most six decimals.
pub fn dollars_given(_: &mut SchemaGenerator) -> Schema {
    checked_text(20, DECIMAL, DOLLARS)
}

/// Dollars that a user may write.
pub fn optional_dollars_given(_: &mut SchemaGenerator) -> Schema {
    let mut schema = checked_text(20, DECIMAL, DOLLARS);
    schema.insert("nullable".to_owned(), true.into());
    schema
}

/// A location of checkpoints in an object store.
pub fn location(_: &mut SchemaGenerator) -> Schema {
    let pattern = "^s3://[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9._=/-]*)?$";
    checked_text(512, pattern, "must be a bucket and a prefix of letters, digits and ._=/- such as s3://bucket/prefix/")
}

/// The name of a file or directory with `*` and `{step}` in it. What is no glob for other reasons is found by the operator.
pub fn name_pattern(_: &mut SchemaGenerator) -> Schema {
    let rules = [
        (
            "self.matches('^[^/]+$')",
            "must be a name without / such as step-{step}.npz or *-state; the directory goes into path",
        ),
        ("!self.matches('[{]step[}].*[{]step[}]')", "must have {step} at most once, such as step-{step}.npz"),
    ];
    ruled_text(1, 128, &rules)
}

/// A directory that the program saves into.
pub fn save_directory(_: &mut SchemaGenerator) -> Schema {
    let rules = [
        (
            "!self.matches('^/[/.]*$')",
            "must be a directory of the program's own such as output or /work/output, not the whole file system",
        ),
        ("!self.matches('(^|/)[.][.](/|$)')", "must not go up by ..: name the directory itself, such as /work/output"),
    ];
    ruled_text(1, 512, &rules)
}

/// A text with several rules, each with its sentence.
fn ruled_text(min: u32, max: u32, rules: &[(&str, &str)]) -> Schema {
    let rules: Vec<_> =
        rules.iter().map(|(rule, message)| serde_json::json!({"rule": rule, "message": message})).collect();
    json_schema!({"type": "string", "minLength": min, "maxLength": max, "x-kubernetes-validations": rules})
}

/// A share between 0 and 1.
pub fn optional_share(_: &mut SchemaGenerator) -> Schema {
    let mut schema =
        checked_text(20, "^(0([.][0-9]{1,6})?|1([.]0{1,6})?)$", "must be a number from 0 to 1 such as \"0.98\"");
    schema.insert("nullable".to_owned(), true.into());
    schema
}

/// A version of CUDA.
pub fn optional_cuda_version(_: &mut SchemaGenerator) -> Schema {
    let mut schema = checked_text(5, "^[1-9][0-9]?[.][0-9]$", "must be a CUDA version such as \"12.4\"");
    schema.insert("nullable".to_owned(), true.into());
    schema
}

/// Dollars that the operator writes.
pub fn dollars(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 20, "pattern": DECIMAL})
}

/// Dollars that the operator writes and that may be below zero.
pub fn signed_dollars(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 20, "pattern": "^-?[0-9]{1,9}([.][0-9]{1,6})?$"})
}

/// Dollars that the operator writes and that may also be absent.
pub fn optional_dollars(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "nullable": true, "maxLength": 20, "pattern": DECIMAL})
}

/// Key of a label: a name of at most 63 characters, perhaps after a DNS name and a slash.
const LABEL_KEY: &str = "^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$";
const LABEL_KEY_SAYS: &str = "must be the key of a label such as team or example.com/team";
/// Value of a label: at most 63 characters, or nothing.
const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$";
const LABEL_VALUE_SAYS: &str = "must be the value of a label: at most 63 letters, digits and ._-";

/// The key of a label.
pub fn label_key(_: &mut SchemaGenerator) -> Schema {
    checked_text(317, LABEL_KEY, LABEL_KEY_SAYS)
}

/// Values of a label.
pub fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 32, "items": checked_text(63, LABEL_VALUE, LABEL_VALUE_SAYS)})
}

/// Labels with their values.
pub fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": checked_text(63, LABEL_VALUE, LABEL_VALUE_SAYS),
        "x-kubernetes-validations": [{
            "rule": format!("self.all(key, size(key) <= 317 && key.matches('{LABEL_KEY}'))"),
            "message": LABEL_KEY_SAYS
        }]
    })
}

/// A pod template, partly typed: everything passes, containers merge by name. The real Pod's strict dry run checks the rest.
pub fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "metadata": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "annotations": {"type": "object", "additionalProperties": {"type": "string"}}
                }
            },
            "spec": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "required": ["containers"],
                "properties": {
                    "restartPolicy": checked_text(
                        16,
                        "^Never$",
                        "must be Never or absent: failurePolicy of the job says how often a failing program is started again"
                    ),
                    "containers": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 16,
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "x-kubernetes-preserve-unknown-fields": true,
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string", "maxLength": 63},
                                "image": {"type": "string", "maxLength": 1024}
                            }
                        }
                    }
                }
            }
        }
    })
}
