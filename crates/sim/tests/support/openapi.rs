//! A checker for the part of OpenAPI 3.1 schemas that RunPod's official document uses. A keyword that it does not know fails the test, so
//! that nothing is passed over in silence.
#![allow(dead_code, clippy::panic, reason = "each test binary uses its own part, and fails where it cannot go on")]

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Keywords that say nothing about a value.
const WORDS_ONLY: [&str; 6] = ["description", "example", "examples", "default", "x-enum-varnames", "title"];
/// Keywords that are checked.
const CHECKED: [&str; 19] = [
    "$ref",
    "type",
    "enum",
    "allOf",
    "anyOf",
    "required",
    "properties",
    "additionalProperties",
    "unevaluatedProperties",
    "items",
    "maxItems",
    "minimum",
    "maximum",
    "minLength",
    "pattern",
    "format",
    "if",
    "then",
    "not",
];

/// The official document.
pub struct Document(pub Value);

impl Document {
    /// Reads a JSON file.
    pub fn read(path: &std::path::Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// A schema by its name.
    pub fn schema(&self, name: &str) -> &Value {
        let schema = &self.0["components"]["schemas"][name];
        assert!(schema.is_object(), "the document has no schema {name}");
        schema
    }

    /// The schema and content type of an operation's answer with this status; `None` for an answer without a body.
    pub fn answer(&self, path: &str, method: &str, status: u16) -> Option<(&Value, &str)> {
        let responses = &self.0["paths"][path][method]["responses"];
        let found = &responses[status.to_string()];
        let found = if found.is_null() { &responses["default"] } else { found };
        let found = self.resolved(found);
        assert!(found["description"].is_string(), "the document has no {method} {path} answered by {status}");
        let (kind, content) = found["content"].as_object()?.iter().next()?;
        Some((&content["schema"], kind))
    }

    /// Follows a `$ref`.
    pub fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("references stay in the document");
                self.0.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
            }
            None => schema,
        }
    }

    /// Everything in which `value` is not what `schema` says, as `path: what`.
    pub fn violations(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.check(schema, value, "$", &mut found);
        found
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        self.violations(schema, value).is_empty()
    }

    fn check(&self, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let object = schema.as_object().unwrap_or_else(|| panic!("{path}: the schema is {schema}"));
        for keyword in object.keys() {
            let known = CHECKED.contains(&keyword.as_str()) || WORDS_ONLY.contains(&keyword.as_str());
            assert!(known, "{path}: the checker does not know the keyword {keyword}");
        }
        if object.contains_key("$ref") {
            self.check(self.resolved(schema), value, path, found);
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !kinds.is_empty() && !kinds.iter().any(|kind| is_a(kind, value)) {
            return found.push(format!("{path}: {value} is no {}", kinds.join(" or ")));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            found.push(format!("{path}: {value} is none of {allowed:?}"));
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.check(part, value, path, found);
        }
        if let Some(parts) = schema["anyOf"].as_array()
            && !parts.iter().any(|part| self.fits(part, value))
        {
            found.push(format!("{path}: {value} fits none of the alternatives"));
        }
        if object.contains_key("not") && self.fits(&schema["not"], value) {
            found.push(format!("{path}: {value} must not fit {}", schema["not"]));
        }
        if object.contains_key("if") && self.fits(&schema["if"], value) {
            self.check(&schema["then"], value, path, found);
        }
        check_number_or_text(schema, value, path, found);
        self.check_object(schema, value, path, found);
        if let Some(list) = value.as_array() {
            if schema["maxItems"].as_u64().is_some_and(|most| list.len() as u64 > most) {
                found.push(format!("{path}: has too many items"));
            }
            if schema["items"].is_object() {
                for value in list {
                    self.check(&schema["items"], value, &format!("{path}[]"), found);
                }
            }
        }
    }

    fn check_object(&self, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                found.push(format!("{path}.{name}: is missing"));
            }
        }
        let properties = self.properties(schema);
        for (name, value) in object {
            if !properties.contains_key(name.as_str()) {
                if schema["additionalProperties"] == false || schema["unevaluatedProperties"] == false {
                    found.push(format!("{path}.{name}: is unknown"));
                } else if schema["additionalProperties"].is_object() {
                    self.check(&schema["additionalProperties"], value, &format!("{path}.{name}"), found);
                }
            }
            if let Some(inner) = schema["properties"].get(name) {
                self.check(inner, value, &format!("{path}.{name}"), found);
            }
        }
    }

    /// All properties that a schema describes, with those of its parts.
    pub fn properties<'a>(&'a self, schema: &'a Value) -> BTreeMap<&'a str, &'a Value> {
        let schema = self.resolved(schema);
        let mut all: BTreeMap<&str, &Value> = BTreeMap::new();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            all.extend(self.properties(part));
        }
        all.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, inner)| (name.as_str(), inner)));
        all
    }

    /// A value that fits a schema, and one that does not.
    pub fn samples(&self, schema: &Value) -> (Value, Value) {
        let schema = self.resolved(schema);
        let wrong = json!([[true]]);
        if let Some(word) = schema["enum"].as_array().and_then(|words| words.first()) {
            return (word.clone(), wrong);
        }
        let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
        let good = match kind {
            Some("string") if schema["pattern"].is_string() => json!("12.4"),
            Some("string") => json!("sample"),
            Some("boolean") => json!(true),
            Some("integer" | "number") => json!(schema["minimum"].as_u64().unwrap_or(10).max(2)),
            Some("array") => json!([self.samples(&schema["items"]).0]),
            Some("object") if schema["additionalProperties"].is_object() => json!({"SAMPLE": "sample"}),
            _ if schema["properties"].is_object() || schema["allOf"].is_array() => {
                let parts = schema["allOf"].as_array();
                if let Some(word) = parts.and_then(|parts| self.resolved(&parts[0])["enum"].as_array()?.first()) {
                    return (word.clone(), wrong);
                }
                let fields = self.properties(schema).into_iter();
                Value::Object(
                    fields.map(|(name, inner)| (name.to_owned(), self.samples(inner).0)).collect::<Map<_, _>>(),
                )
            }
            other => panic!("the checker has no sample for {other:?}: {schema}"),
        };
        (good, wrong)
    }
}

fn check_number_or_text(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    if let Some(number) = value.as_f64()
        && (schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most))
    {
        found.push(format!("{path}: {number} is out of bounds"));
    }
    let Some(text) = value.as_str() else { return };
    if schema["minLength"].as_u64().is_some_and(|least| (text.chars().count() as u64) < least) {
        found.push(format!("{path}: is too short"));
    }
    let fits = match schema["pattern"].as_str() {
        None => true,
        Some(r"^\d+\.\d+$") => text.split('.').count() == 2 && text.split('.').all(|part| part.parse::<u32>().is_ok()),
        Some(r"^(ssh|ecdsa|sk)-[^\s]+ [^\s]+([ \t][^\n\r]*)?$") => text.starts_with("ssh-") && text.contains(' '),
        Some(other) => panic!("{path}: the checker does not know the pattern {other}"),
    };
    if !fits {
        found.push(format!("{path}: {text} does not fit the pattern"));
    }
    match schema["format"].as_str() {
        Some("date-time") if text.parse::<jiff::Timestamp>().is_err() => {
            found.push(format!("{path}: {text} is no point of time"));
        }
        _ => {}
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("the checker does not know the type {other}"),
    }
}
