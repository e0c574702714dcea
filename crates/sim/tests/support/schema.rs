//! A checker for the part of OpenAPI 3.0 schemas that the official documents use: `type`, `nullable`, `enum`, `required`, `properties`,
//! `items`, `minimum`, `maximum`, `maxLength`, `$ref`.
#![allow(dead_code, clippy::panic, reason = "each test binary uses its own part, and fails where it cannot go on")]

use serde_json::Value;

/// An official document.
pub struct Document(Value);

impl Document {
    /// Reads a YAML file.
    pub fn read(path: &std::path::Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// The only operation of the document.
    pub fn operation(&self) -> &Value {
        let paths = self.0["paths"].as_object().expect("paths");
        assert_eq!(paths.len(), 1, "one path to a document");
        let operations = paths.values().next().expect("a path").as_object().expect("operations");
        operations.values().next().expect("an operation")
    }

    /// The schema of the answer with this status.
    pub fn answer(&self, status: u16) -> Option<&Value> {
        let schema = &self.operation()["responses"][status.to_string()]["content"]["application/json"]["schema"];
        schema.is_object().then(|| self.resolved(schema))
    }

    /// The schema of the request's body.
    pub fn request(&self) -> &Value {
        self.resolved(&self.operation()["requestBody"]["content"]["application/json"]["schema"])
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

    fn check(&self, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let schema = self.resolved(schema);
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        if let Some(kind) = schema["type"].as_str()
            && !fits(kind, value)
        {
            found.push(format!("{path}: {value} is no {kind}"));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            found.push(format!("{path}: {value} is none of {allowed:?}"));
        }
        if let (Some(number), minimum, maximum) =
            (value.as_f64(), schema["minimum"].as_f64(), schema["maximum"].as_f64())
            && (minimum.is_some_and(|least| number < least) || maximum.is_some_and(|most| number > most))
        {
            found.push(format!("{path}: {number} is out of bounds"));
        }
        if let (Some(text), Some(most)) = (value.as_str(), schema["maxLength"].as_u64())
            && text.chars().count() as u64 > most
        {
            found.push(format!("{path}: is too long"));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(name).is_none() {
                found.push(format!("{path}.{name}: is missing"));
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = value.get(name) {
                self.check(inner, value, &format!("{path}.{name}"), found);
            }
        }
        if schema["items"].is_object() {
            for value in value.as_array().into_iter().flatten() {
                self.check(&schema["items"], value, &format!("{path}[]"), found);
            }
        }
    }
}

fn fits(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("the checker does not know the type {other}"),
    }
}

/// A value that fits a property's schema, and one that does not.
pub fn samples(schema: &Value) -> (Value, Value) {
    let wrong = Value::Array(vec![Value::Bool(true)]);
    if let Some(word) = schema["enum"].as_array().and_then(|words| words.first()) {
        return (word.clone(), wrong);
    }
    let good = match schema["type"].as_str().expect("a property has a type") {
        "string" => serde_json::json!("sample"),
        "boolean" => serde_json::json!(true),
        "integer" => serde_json::json!(9),
        "number" => serde_json::json!(schema["minimum"].as_f64().unwrap_or(9.0)),
        "array" => serde_json::json!(["sample"]),
        "object" => serde_json::json!({}),
        other => panic!("the checker does not know the type {other}"),
    };
    let wrong = if good.is_array() { Value::Bool(true) } else { wrong };
    (good, wrong)
}
