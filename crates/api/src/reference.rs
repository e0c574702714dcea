//! The API reference for people: one page per kind, written from the very schema that the API server holds.

use std::fmt::Write as _;

use serde_json::Value;

use crate::crd;

/// File name and text of every page in `docs/reference/`.
pub fn files() -> Vec<(String, String)> {
    crd::all().iter().map(|(_, crd)| page(crd)).collect()
}

fn page(crd: &Value) -> (String, String) {
    let text = |path: &str| crd.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text("/spec/names/kind"), text("/spec/versions/0/name"));
    let short = text("/spec/names/shortNames/0");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let scope = match text("/spec/scope").as_str() {
        "Namespaced" => "It lives in a namespace.",
        _ => "It belongs to the whole cluster, not to a namespace.",
    };
    let mut out = format!(
        "<!-- Written by `tradewind-operator reference`. Do not edit: change crates/api and run `make generate`. -->\n\
         # {kind}\n\n{}\n\n`apiVersion: {}/{version}`, `kind: {kind}`; for kubectl also `{short}`. {scope}\n",
        sentence(schema),
        text("/spec/group"),
    );
    columns(&mut out, &crd["spec"]["versions"][0]["additionalPrinterColumns"], &short);
    for (part, intro) in [
        ("spec", "What you write. A field without a default that is not required may be left out."),
        ("status", "What the operator tells. Nobody else writes it."),
    ] {
        let Some(below) = schema["properties"].get(part) else { continue };
        let (mut rows, mut rules) = (Vec::new(), Vec::new());
        // Rules of the whole object are told with the spec: that is what they are about.
        if part == "spec" {
            object_rules("", schema, &mut rules);
        }
        object_rules("", below, &mut rules);
        walk("", below, &mut rows, &mut rules);
        let _ = write!(
            out,
            "\n## {part}\n\n{intro}\n\n| field | type | default | what it is |\n|---|---|---|---|\n{}",
            rows.concat()
        );
        if !rules.is_empty() {
            let _ = write!(out, "\nRules that the API server checks between fields:\n\n{}", rules.concat());
        }
    }
    (format!("{}.md", kind.to_lowercase()), out)
}

/// What `kubectl get` shows.
fn columns(out: &mut String, columns: &Value, short: &str) {
    let names = |wide: bool| {
        let columns = columns.as_array().into_iter().flatten();
        let chosen = columns.filter(|c| (c["priority"].as_i64().unwrap_or(0) > 0) == wide);
        chosen
            .filter_map(|c| Some(format!("{} (`{}`)", c["name"].as_str()?, c["jsonPath"].as_str()?)))
            .collect::<Vec<_>>()
    };
    let (usual, wide) = (names(false), names(true));
    if !usual.is_empty() {
        let _ = write!(out, "\n`kubectl get {short}` shows {}", usual.join(", "));
        if !wide.is_empty() {
            let _ = write!(out, "; with `-o wide` also {}", wide.join(", "));
        }
        out.push_str(".\n");
    }
}

/// One row per field below `schema`, parents first.
fn walk(path: &str, schema: &Value, rows: &mut Vec<String>, rules: &mut Vec<String>) {
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = match field.get("default") {
            _ if required(name) => "required".to_owned(),
            // The defaults of an object's fields are in their own rows.
            None | Some(Value::Object(_)) => String::new(),
            Some(Value::String(default)) => format!("`{default}`"),
            Some(default) => format!("`{default}`"),
        };
        let (kind, inner) = type_of(field);
        rows.push(format!("| `{path}` | {kind} | {default} | {} |\n", told(field)));
        // Kubernetes' own, and the same everywhere.
        if name == "conditions" {
            continue;
        }
        for (suffix, schema) in inner {
            let path = format!("{path}{suffix}");
            object_rules(&path, schema, rules);
            walk(&path, schema, rows, rules);
        }
    }
}

/// The type in words, and the objects below it with what their paths end in.
fn type_of(field: &Value) -> (String, Vec<(String, &Value)>) {
    match field["type"].as_str() {
        Some("array") => {
            let (of, inner) = type_of(&field["items"]);
            (format!("list of {of}"), inner.into_iter().map(|(end, s)| (format!("[]{end}"), s)).collect())
        }
        Some("object") if field["additionalProperties"].is_object() => {
            let (of, inner) = type_of(&field["additionalProperties"]);
            (format!("map of {of}"), inner.into_iter().map(|(end, s)| (format!(".*{end}"), s)).collect())
        }
        Some("object") => ("object".to_owned(), vec![(String::new(), field)]),
        Some("string") if field["format"] == "date-time" => ("time".to_owned(), Vec::new()),
        Some(other) => (other.to_owned(), Vec::new()),
        None => ("anything".to_owned(), Vec::new()),
    }
}

/// Description, values and bounds of one field.
fn told(field: &Value) -> String {
    let mut parts = vec![sentence(field)];
    parts.extend(bounds(field));
    // What an element must be stands with its list: it has no row of its own.
    for (below, word) in [("items", "each"), ("additionalProperties", "each value")] {
        if field[below].is_object() && field[below]["type"] != "object" {
            parts.extend(bounds(&field[below]).into_iter().map(|b| format!("{}: {}", capital(word), decapital(&b))));
        }
    }
    parts.retain(|part| !part.is_empty());
    cell(&parts.join(" "))
}

/// Values and bounds, each as a sentence.
fn bounds(field: &Value) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> = values.iter().filter_map(|v| Some(format!("`{}`", v.as_str()?))).collect();
        parts.push(format!("One of {}.", values.join(", ")));
    }
    let number = |name: &str| field[name].as_i64().map(|n| n.to_string());
    for (least, most, unit) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ] {
        let range = match (number(least), number(most)) {
            (Some(least), Some(most)) => format!("{least} to {most}{unit}."),
            (Some(least), None) => format!("At least {least}{unit}."),
            (None, Some(most)) => format!("At most {most}{unit}."),
            (None, None) => continue,
        };
        parts.push(range);
    }
    // Rules of an object with fields of its own stand below the table.
    if type_of(field).1.is_empty() {
        parts.extend(messages(field).map(|(_, message)| finished(&capital(message))));
    }
    parts
}

/// Rules of an object, about it or one of its fields, as list items.
fn object_rules(path: &str, schema: &Value, rules: &mut Vec<String>) {
    for (at, message) in messages(schema) {
        let at = format!("{path}{at}");
        let at = at.trim_start_matches('.').trim_start_matches("spec.");
        let line = match at {
            "" => format!("- {}\n", finished(&capital(message))),
            // Some messages name their field, since kubectl shows no path for them.
            at => format!("- `{at}` {}\n", finished(message.strip_prefix(at).map_or(message, str::trim_start))),
        };
        rules.push(line);
    }
}

/// Where each CEL rule of a schema points, and its sentence.
fn messages(schema: &Value) -> impl Iterator<Item = (&str, &str)> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.filter_map(|rule| Some((rule["fieldPath"].as_str().unwrap_or_default(), rule["message"].as_str()?)))
}

fn sentence(schema: &Value) -> String {
    let words: Vec<&str> = schema["description"].as_str().unwrap_or_default().split_whitespace().collect();
    finished(&words.join(" "))
}

/// With a full stop at the end.
fn finished(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn decapital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// A bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(kind: &str) -> String {
        files().into_iter().find(|(name, _)| name == &format!("{kind}.md")).expect("a page").1
    }

    #[test]
    fn a_page_tells_type_default_bounds_values_and_rules() {
        let page = page_of("trainingjob");
        for expected in [
            "# TrainingJob\n",
            "for kubectl also `tj`",
            "| `workers` | integer | `1` | Number of workers",
            "1 to 512. |",
            "| `checkpoint.to` | string | required | ",
            "Must be a bucket and a prefix",
            "| `checkpoint.writers` | string | `RankZero` | ",
            "One of `RankZero`, `AllRanks`. |",
            "| `failurePolicy.rules[].exitCodes` | list of integer | required | ",
            "Each: 1 to 255. |",
            "- `budget.perHour` must not be more than budget.total.\n",
            "- `checkpoint` cannot be changed, since the run is kept there: make another job.\n",
            "- `checkpoint.interval` must be longer than zero.\n",
            "## status\n",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
    }

    #[test]
    fn every_rule_of_every_kind_is_on_its_page() {
        fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            found.extend(messages(value).map(|(_, message)| message));
            match value {
                Value::Object(map) => map.values().for_each(|v| collect(v, found)),
                Value::Array(items) => items.iter().for_each(|v| collect(v, found)),
                _ => {}
            }
        }
        for (_, crd) in crd::all() {
            let page = page_of(&crd["spec"]["names"]["kind"].as_str().unwrap().to_lowercase());
            let mut rules = Vec::new();
            collect(&crd, &mut rules);
            for rule in rules {
                // The first letter may have become a capital, the first word be left out where it is the field's name.
                let tail = rule.split_once(' ').map_or(rule, |(_, tail)| tail);
                assert!(page.contains(&cell(tail)), "{rule:?} is not on the page");
            }
        }
    }
}
