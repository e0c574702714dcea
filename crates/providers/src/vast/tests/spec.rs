//! Every request that the adapter makes is valid by the official endpoint files.

use std::path::PathBuf;

use serde_json::Value;
use tradewind_core::Capacity;

use super::{LATER, fixture, query, request, vast};
use crate::GpuProvider;
use crate::http::scripted::{Seen, Server, ok};

/// Where the files are, or `None` with the reason printed. With `CI=true` their absence is a failure.
#[expect(clippy::disallowed_methods, reason = "tests find the shared files by the environment")]
fn specs() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared =
        std::env::var_os("TRADEWIND_SHARED").map_or_else(|| root.join("..").join("shared"), |dir| root.join(dir));
    let specs = shared.join("providers/specs/vastai-endpoints");
    if specs.is_dir() {
        return Some(specs);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no endpoint files under {}", specs.display());
    eprintln!("Skipped: no endpoint files; set TRADEWIND_SHARED");
    None
}

/// What the official files do not say but the official client does: `env` is typed as a string there, and the client sends an object;
/// `client_id` is not listed there, and the client sends it.
const CLIENT_KNOWS_BETTER: [&str; 2] = ["env", "client_id"];

fn wrong(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    let fits = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    if !fits {
        found.push(format!("{at}: {value} is no {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        found.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    let number = value.as_f64();
    if number.zip(schema["minimum"].as_f64()).is_some_and(|(n, min)| n < min)
        || number.zip(schema["maximum"].as_f64()).is_some_and(|(n, max)| n > max)
    {
        found.push(format!("{at}: {value} is out of bounds"));
    }
    if let Some(items) = value.as_array() {
        let length = items.len() as u64;
        if schema["minItems"].as_u64().is_some_and(|min| length < min)
            || schema["maxItems"].as_u64().is_some_and(|max| length > max)
        {
            found.push(format!("{at}: {length} items"));
        }
        for (i, item) in items.iter().enumerate() {
            wrong(item, &schema["items"], &format!("{at}[{i}]"), found);
        }
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{at}.{name}");
        match properties.get(name) {
            _ if CLIENT_KNOWS_BETTER.contains(&name.as_str()) => {}
            Some(schema) => wrong(value, schema, &path, found),
            // Filters are open: an operator's property is listed only where it needs a type.
            None if matches!(name.as_str(), "eq" | "neq" | "gt" | "gte" | "lt" | "lte" | "in" | "notin") => {}
            None => found.push(format!("{path}: not in the file")),
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            found.push(format!("{at}.{name}: missing"));
        }
    }
}

fn check(seen: &Seen, path: &str, spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let operation = &spec["paths"][path][seen.method.to_lowercase()];
    assert!(operation.is_object(), "{} {path} is not in the file", seen.method);
    let target: reqwest::Url = format!("http://x{}", seen.target).parse().unwrap();
    let shape = |path: &str| path.trim_end_matches('/').split('/').map(str::to_owned).collect::<Vec<_>>();
    let (ours, theirs) = (shape(target.path()), shape(path));
    let same = ours.len() == theirs.len()
        && ours.iter().zip(&theirs).all(|(a, b)| a == b || b.starts_with('{') && a.bytes().all(|c| c.is_ascii_digit()));
    if !same {
        found.push(format!("{} is not {path}", target.path()));
    }
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    for (name, value) in target.query_pairs() {
        match parameters.iter().find(|p| p["in"] == "query" && p["name"] == *name) {
            None => found.push(format!("query {name}: not in the file")),
            Some(p) => {
                let typed = value.parse::<i64>().map_or_else(|_| Value::from(&*value), Value::from);
                wrong(&typed, &p["schema"], &name, &mut found);
            }
        }
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if body.is_object() {
        wrong(&seen.json(), body, "body", &mut found);
    }
    if seen.header("authorization").is_none_or(|value| !value.starts_with("Bearer ")) {
        found.push("no key in the header".to_owned());
    }
    found
}

#[tokio::test]
async fn every_request_is_valid_by_the_official_files() {
    let Some(specs) = specs() else { return };
    let server = Server::by(|request, _| match request.method.as_str() {
        "POST" => ok(fixture("search").to_string()),
        "PUT" => ok(r#"{"success": true, "new_contract": 1}"#),
        "DELETE" => ok(r#"{"success": true}"#),
        _ if request.target.contains("/charges/") => ok(r#"{"results": []}"#),
        _ if request.target.contains("/v1/") && !request.target.contains("after_token") => {
            ok(r#"{"instances": [], "next_token": "eyJ2YWx1ZXMiOiB7ImlkIjogMTIzfX0="}"#)
        }
        _ => ok(r#"{"id": 1, "instances": null}"#),
    })
    .await;
    let vast = vast(&server);
    let mut checked = 0;
    let mut expect = |path: &str, file: &str, from: usize| {
        let text = std::fs::read_to_string(specs.join(file)).unwrap();
        let spec: Value = serde_saphyr::from_str(&text).unwrap();
        let seen = server.seen();
        assert!(seen.len() > from, "{path} was not called");
        for request in &seen[from..] {
            assert_eq!(check(request, path, &spec), Vec::<String>::new(), "{} {}", request.method, request.target);
            checked += 1;
        }
        seen.len()
    };
    vast.offers(&query()).await.unwrap();
    let mut n = expect("/api/v0/bundles/", "search_offers.yaml", 0);
    for capacity in [Capacity::Spot, Capacity::OnDemand] {
        vast.rent(&request(capacity), LATER).await;
        n = expect("/api/v0/asks/{id}/", "create_instance.yaml", n);
    }
    vast.describe("1").await.unwrap();
    n = expect("/api/v0/instances/{id}/", "show_instance.yaml", n);
    vast.list_owned().await.unwrap();
    n = expect("/api/v1/instances/", "show_instances.yaml", n);
    vast.terminate("1").await.unwrap();
    n = expect("/api/v0/instances/{id}/", "destroy_instance.yaml", n);
    vast.account().await.unwrap();
    n = expect("/api/v0/users/current/", "show_user.yaml", n);
    vast.logs("1", 100).await.unwrap();
    n = expect("/api/v0/instances/request_logs/{id}", "logs.yaml", n);
    vast.charges("2026-11-21T12:00:00Z".parse().unwrap()).await.unwrap();
    expect("/api/v0/charges/", "show_charges.yaml", n);
    assert_eq!(checked, 11);
}

#[test]
fn the_check_finds_what_is_wrong() {
    let spec = serde_json::json!({"paths": {"/a/{id}/": {"put": {"requestBody": {"content": {"application/json": {"schema": {
        "type": "object", "required": ["image"],
        "properties": {"disk": {"type": "number"}, "price": {"type": "number", "maximum": 128.0}, "runtype": {"type": "string", "enum": ["args"]}}
    }}}}}}}});
    let seen = Seen {
        method: "PUT".to_owned(),
        target: "/a/x/?q=1".to_owned(),
        headers: vec![],
        body: br#"{"disk": "8", "price": 200, "runtype": "shell", "new": 1}"#.to_vec(),
    };
    let found = check(&seen, "/a/{id}/", &spec).join("\n");
    for part in [
        "is not /a/{id}/",
        "query q",
        "body.disk",
        "body.price",
        "body.runtype",
        "body.new: not",
        "body.image: missing",
        "no key",
    ] {
        assert!(found.contains(part), "{part} in\n{found}");
    }
}
