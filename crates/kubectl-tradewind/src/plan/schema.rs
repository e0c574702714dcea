//! What is wrong with a value by its schema, in sentences with the field's path: as the API server would say it, but all at once.

use serde_json::{Map, Value};

use super::rules;
use crate::text;

/// Deeper than any schema of ours or of Kubernetes.
const DEEPEST: usize = 64;

/// Looks a value through.
pub struct Checker<'a> {
    /// The schema's root, for references into it.
    root: &'a Value,
    found: Vec<String>,
}

impl<'a> Checker<'a> {
    /// For this schema.
    pub fn new(root: &'a Value) -> Self {
        Self { root, found: Vec::new() }
    }

    /// Everything that is wrong with `value`, which stands at `path`.
    pub fn problems(mut self, value: &Value, path: &str) -> Vec<String> {
        self.check(self.root, value, path, 0);
        self.found
    }

    fn wrong(&mut self, path: &str, what: &str) {
        self.found.push(format!("{path}: {what}"));
    }

    fn resolved(&self, mut schema: &'a Value) -> &'a Value {
        for _ in 0..DEEPEST {
            if let Some(place) = schema["$ref"].as_str().and_then(|place| place.strip_prefix('#')) {
                schema = self.root.pointer(place).unwrap_or(&Value::Null);
            } else if let Some(part) = first_of(schema) {
                schema = part;
            } else {
                break;
            }
        }
        schema
    }

    fn check(&mut self, schema: &'a Value, value: &Value, path: &str, depth: usize) {
        let schema = self.resolved(schema);
        // What is null is as if it were not there.
        if value.is_null() || depth > DEEPEST {
            return;
        }
        if let Some(wanted) = another_kind(schema, value) {
            return self.wrong(path, &format!("must be {wanted}, not {}", kind_of(value)));
        }
        match value {
            Value::Object(map) => self.object(schema, map, path, depth),
            Value::Array(list) => self.list(schema, list, path, depth),
            Value::String(text) => self.text(schema, text, path),
            Value::Number(number) => self.number(schema, number.as_f64().unwrap_or(0.0), path),
            _ => {}
        }
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            if rules::keeps(rule["rule"].as_str().unwrap_or_default(), value) == Some(false) {
                let place = rule["fieldPath"].as_str().unwrap_or_default();
                self.wrong(&format!("{path}{place}"), rule["message"].as_str().unwrap_or("breaks a rule"));
            }
        }
    }

    fn object(&mut self, schema: &'a Value, map: &Map<String, Value>, path: &str, depth: usize) {
        let none = Map::new();
        let known = schema["properties"].as_object();
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if map.get(name).is_none_or(Value::is_null) {
                self.wrong(path, &format!("{name} is missing"));
            }
        }
        let open = schema["x-kubernetes-preserve-unknown-fields"] == true
            || schema["additionalProperties"] == true
            || (known.is_none() && schema["additionalProperties"].is_null());
        for (name, value) in map {
            let below = format!("{path}.{name}");
            if let Some(schema) = known.and_then(|known| known.get(name)) {
                self.check(schema, value, &below, depth + 1);
            } else if schema["additionalProperties"].is_object() {
                self.check(&schema["additionalProperties"], value, &below, depth + 1);
            } else if !open {
                let names = known.unwrap_or(&none).keys().map(String::as_str);
                self.wrong(&below, &format!("there is no such field{}", meant(name, names)));
            }
        }
    }

    fn list(&mut self, schema: &'a Value, list: &[Value], path: &str, depth: usize) {
        let len = list.len() as u64;
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| len > *most) {
            return self.wrong(path, &format!("has {len} entries, at most {most} are allowed"));
        }
        if let Some(least) = schema["minItems"].as_u64().filter(|least| len < *least) {
            self.wrong(path, &format!("has {len} entries, at least {least} are needed"));
        }
        for (n, value) in list.iter().enumerate() {
            self.check(&schema["items"], value, &format!("{path}[{n}]"), depth + 1);
        }
    }

    fn text(&mut self, schema: &Value, text: &str, path: &str) {
        let len = text.chars().count() as u64;
        if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.iter().any(|one| one == text)) {
            let words: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            let meant = meant(text, words.iter().copied());
            return self.wrong(path, &format!("\"{text}\" is none of {}{meant}", words.join(", ")));
        }
        if let Some(most) = schema["maxLength"].as_u64().filter(|most| len > *most) {
            self.wrong(path, &format!("has {len} characters, at most {most} are allowed"));
        }
        if let Some(least) = schema["minLength"].as_u64().filter(|least| len < *least) {
            self.wrong(path, &format!("has {len} characters, at least {least} are needed"));
        }
    }

    fn number(&mut self, schema: &Value, number: f64, path: &str) {
        if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
            self.wrong(path, &format!("must be at most {most}"));
        }
        if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
            self.wrong(path, &format!("must be at least {least}"));
        }
    }
}

/// The one schema that an `allOf`, or an `anyOf` with null, comes down to.
fn first_of(schema: &Value) -> Option<&Value> {
    let parts = ["allOf", "anyOf", "oneOf"].into_iter().find_map(|word| schema[word].as_array())?;
    let mut parts = parts.iter().filter(|part| part["type"] != "null");
    let first = parts.next()?;
    (parts.next().is_none() && schema["properties"].is_null()).then_some(first)
}

/// What a value should be, if it is something else.
fn another_kind(schema: &Value, value: &Value) -> Option<String> {
    if schema["x-kubernetes-int-or-string"] == true {
        let fits = value.is_string() || value.is_number();
        return (!fits).then(|| "a number or a text".to_owned());
    }
    let fits = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
        _ => return None,
    };
    let word = |kind: &&str| match *kind {
        "object" => "an object",
        "array" => "a list",
        "string" => "a text (in quotes if it looks like a number)",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "a number",
    };
    (!kinds.iter().any(|kind| fits(kind))).then(|| kinds.iter().map(word).collect::<Vec<_>>().join(" or "))
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("\"{text}\""),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// `; did you mean models?`, or nothing.
pub fn meant<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    let near = text::nearest(name, names);
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_wrong_is_said_at_once_with_its_path() {
        let schema = json!({
            "type": "object", "required": ["image"],
            "properties": {
                "image": { "$ref": "#/$defs/Name" }, "count": { "type": "integer", "minimum": 1, "maximum": 64 },
                "models": { "type": "array", "maxItems": 2, "items": { "type": "string", "maxLength": 3 } },
                "when": { "enum": ["Always", "Never"], "type": "string" },
                "maybe": { "anyOf": [{ "type": "boolean" }, { "type": "null" }] },
                "size": { "x-kubernetes-int-or-string": true },
                "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                "any": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                "span": { "type": ["string", "null"], "x-kubernetes-validations": [{ "rule": "self.matches('^[0-9]+m$')", "message": "must be a time span" }] },
            },
            "$defs": { "Name": { "type": "string", "minLength": 1 } },
        });
        let problems = |value: &Value| Checker::new(&schema).problems(value, "spec");
        let fine = json!({
            "image": "i", "count": 2, "models": ["a"], "when": "Never", "maybe": true, "size": 1, "labels": { "x": "y" },
            "any": { "x": 1 }, "span": "5m",
        });
        assert_eq!(problems(&fine), [""; 0]);
        assert_eq!(problems(&json!({ "image": "i", "maybe": null, "span": null, "size": "1Gi" })), [""; 0]);
        for (patch, problem) in [
            (json!({ "imag": "x" }), "spec.imag: there is no such field; did you mean image?"),
            (json!({ "count": "2" }), "spec.count: must be a whole number, not \"2\""),
            (json!({ "count": 0 }), "spec.count: must be at least 1"),
            (json!({ "count": 1.5 }), "spec.count: must be a whole number, not 1.5"),
            (
                json!({ "models": ["a", 4090] }),
                "spec.models[1]: must be a text (in quotes if it looks like a number), not 4090",
            ),
            (json!({ "models": ["a", "b", "c"] }), "spec.models: has 3 entries, at most 2 are allowed"),
            (json!({ "models": ["abcd"] }), "spec.models[0]: has 4 characters, at most 3 are allowed"),
            (json!({ "when": "never" }), "spec.when: \"never\" is none of Always, Never; did you mean Never?"),
            (json!({ "maybe": "yes" }), "spec.maybe: must be true or false, not \"yes\""),
            (json!({ "size": [] }), "spec.size: must be a number or a text, not a list"),
            (
                json!({ "labels": { "x": 1 } }),
                "spec.labels.x: must be a text (in quotes if it looks like a number), not 1",
            ),
            (json!({ "span": "5 minutes" }), "spec.span: must be a time span"),
            (json!({ "image": null }), "spec: image is missing"),
        ] {
            let mut value = fine.clone();
            value.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            assert_eq!(problems(&value), [problem]);
        }
        assert_eq!(problems(&json!([])), ["spec: must be an object, not a list"]);
        assert_eq!(problems(&json!({ "x": 1, "count": 0 })).len(), 3);
    }
}
