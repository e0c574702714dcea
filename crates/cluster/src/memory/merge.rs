//! JSON merging as the API server does it, and the search for unknown fields.

use serde_json::{Map, Value};

/// The lists below `status` of built-in types that are merged by a key (`patchMergeKey` in their API types).
const MERGED_LISTS: [(&str, &str); 5] = [
    ("conditions", "type"),
    ("addresses", "type"),
    ("podIPs", "ip"),
    ("hostIPs", "ip"),
    ("resourceClaimStatuses", "name"),
];

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Strategic merge of a status: as [`merge()`], but some lists are merged by their key.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = object(target);
    for (name, value) in patch {
        let merge_key = MERGED_LISTS.iter().find(|(list, _)| list == name).map(|(_, key)| *key);
        match (value, merge_key) {
            (Value::Null, _) => {
                target.remove(name);
            }
            (Value::Array(items), Some(key)) => {
                merge_list(target.entry(name.clone()).or_insert(Value::Null), items, key);
            }
            _ => strategic(target.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_list(target: &mut Value, items: &[Value], key: &str) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(list) = target else { return };
    for item in items {
        let at = list.iter().position(|known| known.get(key) == item.get(key));
        if item.get("$patch").and_then(Value::as_str) == Some("delete") {
            at.map(|at| list.remove(at));
            continue;
        }
        match at {
            Some(at) => strategic(&mut list[at], item),
            None => list.push(item.clone()),
        }
    }
}

fn object(target: &mut Value) -> &mut Map<String, Value> {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    target.as_object_mut().expect("it was made an object just now")
}

/// The path of the first field that is in `given` but not in `known`, which was read from it and written again.
pub(super) fn unknown_field(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(name, value)| match known.get(name) {
            Some(found) => unknown_field(value, found).map(|rest| join(name, &rest)),
            // Absent, null and empty are one and the same to most types.
            None => (!is_empty(value)).then(|| name.clone()),
        }),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(at, (a, b))| unknown_field(a, b).map(|rest| join(&format!("[{at}]"), &rest))),
        _ => None,
    }
}

fn join(head: &str, rest: &str) -> String {
    if rest.starts_with('[') { format!("{head}{rest}") } else { format!("{head}.{rest}") }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rfc_7386_examples() {
        // From the table in appendix A of the RFC.
        let table = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (mut target, patch, result) in table {
            let start = target.clone();
            merge(&mut target, &patch);
            assert_eq!(target, result, "{start} patched by {patch}");
        }
    }

    #[test]
    fn conditions_merge_by_type_and_other_lists_are_replaced() {
        let mut status = json!({"conditions": [{"type": "A", "status": "True", "reason": "x"}, {"type": "B", "status": "True"}],
            "containerStatuses": [{"name": "a"}]});
        let patch = json!({"conditions": [{"type": "A", "status": "False"}, {"type": "C", "status": "True"},
            {"type": "B", "$patch": "delete"}], "containerStatuses": [{"name": "b"}]});
        strategic(&mut status, &patch);
        let expected = json!({"conditions": [{"type": "A", "status": "False", "reason": "x"}, {"type": "C", "status": "True"}],
            "containerStatuses": [{"name": "b"}]});
        assert_eq!(status, expected);
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let given = json!({"spec": {"containers": [{"name": "a", "imagee": "b"}], "empty": []}});
        let known = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(unknown_field(&given, &known).as_deref(), Some("spec.containers[0].imagee"));
        assert_eq!(unknown_field(&known, &known), None);
    }
}
