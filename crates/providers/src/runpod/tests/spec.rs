//! Both directions by the official document: what we send is valid by it, strictly, and what it shows as answers is understood.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{LATER, offer, pod, request, runpod};
use crate::http::scripted::{Act, Seen, Server, ok};
use crate::runpod::convert::Cloud;
use crate::{GpuProvider, MachineState, OfferQuery, ProviderError, Refusal, RentOutcome};

/// The document, or `None` with the reason printed. With `CI=true` its absence is a failure.
#[expect(clippy::disallowed_methods, reason = "tests find the shared files by the environment")]
fn document() -> Option<Value> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared =
        std::env::var_os("TRADEWIND_SHARED").map_or_else(|| root.join("..").join("shared"), |dir| root.join(dir));
    let file = shared.join("providers/specs/runpod-rest-v2-openapi.json");
    if let Ok(text) = std::fs::read_to_string(&file) {
        return Some(serde_json::from_str(&text).unwrap());
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no document at {}", file.display());
    eprintln!("Skipped: no API document; set TRADEWIND_SHARED");
    None
}

/// Fields that are newer than the document (2026-08-18): published clients of later date send them.
const NEWER: [(&str, &str); 4] = [
    ("entrypoint", r#"{"type": "array", "items": {"type": "string"}}"#),
    ("cmd", r#"{"type": "array", "items": {"type": "string"}}"#),
    ("minRamPerGpu", r#"{"type": "integer", "minimum": 1}"#),
    ("minVcpuCountPerGpu", r#"{"type": "integer", "minimum": 1}"#),
];

/// A schema checker for the part of JSON Schema that the document uses.
struct Checker<'a> {
    document: &'a Value,
    found: Vec<String>,
}

impl<'a> Checker<'a> {
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(path) => self.document.pointer(path.trim_start_matches('#')).expect("a reference leads somewhere"),
            None => schema,
        }
    }

    /// All properties that a schema names, whatever it is composed of.
    fn properties(&self, schema: &'a Value, into: &mut Vec<(String, &'a Value)>) {
        let schema = self.resolve(schema);
        into.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, s)| (name.clone(), s)));
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.properties(part, into);
        }
    }

    fn closed(&self, schema: &'a Value) -> bool {
        let schema = self.resolve(schema);
        schema["unevaluatedProperties"] == false
            || schema["additionalProperties"] == false
            || schema["allOf"].as_array().into_iter().flatten().any(|part| self.closed(part))
    }

    fn wrong(&mut self, value: &Value, schema: &'a Value, at: &str) {
        let schema = self.resolve(schema);
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.wrong(value, part, at);
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let fits = any.iter().any(|part| {
                let mut inner = Checker { document: self.document, found: Vec::new() };
                inner.wrong(value, part, at);
                inner.found.is_empty()
            });
            if !fits {
                self.found.push(format!("{at}: fits none of its forms"));
            }
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let is = |kind: &str| match kind {
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => value.is_null(),
        };
        if !types.is_empty() && !types.into_iter().any(is) {
            self.found.push(format!("{at}: {value} is no {}", schema["type"]));
        }
        if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
            self.found.push(format!("{at}: {value} is none of {}", schema["enum"]));
        }
        let below = |name: &str, n: Option<f64>| n.zip(schema[name].as_f64()).is_some_and(|(n, limit)| n < limit);
        let above = |name: &str, n: Option<f64>| n.zip(schema[name].as_f64()).is_some_and(|(n, limit)| n > limit);
        #[expect(clippy::cast_precision_loss, reason = "lengths in tests are small")]
        let length = value.as_str().map(str::len).or(value.as_array().map(Vec::len)).map(|n| n as f64);
        if below("minimum", value.as_f64())
            || above("maximum", value.as_f64())
            || below("minLength", length)
            || above("maxItems", length)
        {
            self.found.push(format!("{at}: {value} is out of bounds"));
        }
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            if schema["items"].is_object() {
                self.wrong(item, &schema["items"], &format!("{at}[{i}]"));
            }
        }
        self.object(value, schema, at);
    }

    fn object(&mut self, value: &Value, schema: &'a Value, at: &str) {
        let Some(object) = value.as_object() else { return };
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                self.found.push(format!("{at}.{name}: missing"));
            }
        }
        let mut named = Vec::new();
        self.properties(schema, &mut named);
        for (name, value) in object {
            let path = format!("{at}.{name}");
            if let Some(schema) = schema["properties"].get(name) {
                self.wrong(value, schema, &path);
            } else if schema["additionalProperties"].is_object() {
                self.wrong(value, &schema["additionalProperties"], &path);
            } else if let Some((_, newer)) = NEWER.iter().find(|(newer, _)| newer == name)
                && !named.iter().any(|(known, _)| known == name)
            {
                let newer: Value = serde_json::from_str(newer).unwrap();
                let mut inner = Checker { document: &newer, found: Vec::new() };
                inner.wrong(value, &newer, &path);
                self.found.extend(inner.found);
            } else if self.closed(schema) && !named.iter().any(|(known, _)| known == name) {
                self.found.push(format!("{path}: not in the document"));
            }
        }
    }

    /// A request, by the path that it should have.
    fn request(mut self, seen: &Seen, path: &str) -> Vec<String> {
        let item = &self.document["paths"][path];
        let operation = &item[seen.method.to_lowercase()];
        assert!(operation.is_object(), "{} {path} is not in the document", seen.method);
        let target: reqwest::Url = format!("http://x{}", seen.target).parse().unwrap();
        let shape = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        let (ours, theirs) = (shape(target.path()), shape(path));
        if ours.len() != theirs.len() || ours.iter().zip(&theirs).any(|(a, b)| a != b && !b.starts_with('{')) {
            self.found.push(format!("{} is not {path}", target.path()));
        }
        let parameters: Vec<&Value> =
            operation["parameters"].as_array().into_iter().flatten().map(|p| self.resolve(p)).collect();
        for (name, value) in target.query_pairs() {
            match parameters.iter().find(|p| p["in"] == "query" && p["name"] == *name) {
                None if name == "cursor" => {}
                None => self.found.push(format!("query {name}: not in the document")),
                Some(parameter) => {
                    let schema = self.resolve(&parameter["schema"]);
                    let typed = match schema["type"].as_str() {
                        Some("integer" | "boolean") => serde_json::from_str(&value).unwrap_or_else(|_| json!(value)),
                        // Lists are joined by commas.
                        Some("array") => json!(value.split(',').collect::<Vec<_>>()),
                        _ => json!(value),
                    };
                    self.wrong(&typed, schema, &name);
                }
            }
        }
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        match (body.is_object(), seen.body.is_empty()) {
            (true, false) => self.wrong(&seen.json(), body, "body"),
            (false, true) => {}
            _ => self.found.push("a body where none belongs, or none".to_owned()),
        }
        if seen.header("authorization").is_none_or(|value| !value.starts_with("Bearer ")) {
            self.found.push("no key in the header".to_owned());
        }
        self.found
    }
}

#[tokio::test]
async fn every_request_is_valid_by_the_official_document() {
    let Some(document) = document() else { return };
    let server = Server::by(|request, _| {
        let path = request.target.split('?').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            ("POST", _) => Act::Answer(201, "", pod("p1").to_string().into_bytes()),
            ("DELETE", _) => Act::Answer(204, "", vec![]),
            (_, "/v2/catalog/gpus") => ok(r#"{"gpus": []}"#),
            (_, "/v2/account/ssh-keys") => ok(r#"{"keys": []}"#),
            (_, "/v2/billing/pods") => ok(r#"{"records": []}"#),
            (_, "/v2/pods") if !request.target.contains("cursor") => {
                ok(r#"{"pods": [], "pagination": {"nextCursor": "x", "hasNextPage": true}}"#)
            }
            (_, "/v2/pods") => ok(r#"{"pods": []}"#),
            _ => ok(pod("p1").to_string()),
        }
    })
    .await;
    let runpod = runpod(&server);
    let mut checked = 0;
    let mut expect = |path: &str, from: usize| {
        let seen = server.seen();
        assert!(seen.len() > from, "{path} was not called");
        for request in &seen[from..] {
            let found = Checker { document: &document, found: Vec::new() }.request(request, path);
            assert_eq!(found, Vec::<String>::new(), "{} {}", request.method, request.target);
            checked += 1;
        }
        seen.len()
    };
    runpod.offers(&OfferQuery::default()).await.unwrap();
    let mut n = expect("/v2/catalog/gpus", 0);
    for cloud in Cloud::ALL {
        runpod.rent(&request(cloud), LATER).await;
        n = expect("/v2/pods", n);
    }
    runpod.list_owned().await.unwrap();
    n = expect("/v2/pods", n);
    runpod.describe("p1").await.unwrap();
    n = expect("/v2/pods/{id}", n);
    runpod.terminate("p1").await.unwrap();
    n = expect("/v2/pods/{id}", n);
    runpod.account().await.unwrap();
    n = expect("/v2/account/ssh-keys", n);
    runpod.logs("p1", 100).await.unwrap();
    n = expect("/v2/pods/{id}/logs", n);
    runpod.charges("2026-11-21T12:00:00Z".parse().unwrap()).await.unwrap();
    expect("/v2/billing/pods", n);
    assert_eq!(checked, 8 + 2 + 2 + 5);
}

#[test]
fn the_check_finds_what_is_wrong() {
    let Some(document) = document() else { return };
    let body = json!({"name": "", "image": 5, "cloud": "ALL", "disk": 0, "env": {"A": 1}, "bogus": 1, "cmd": "sh",
        "gpu": {"count": 0, "bogus": 1, "minRamPerGpu": "1"}, "mounts": {"bogus": 1}});
    let seen = Seen {
        method: "POST".to_owned(),
        target: "/v2/pod?q=1".to_owned(),
        headers: vec![],
        body: body.to_string().into_bytes(),
    };
    let found = Checker { document: &document, found: Vec::new() }.request(&seen, "/v2/pods").join("\n");
    for part in [
        "is not /v2/pods",
        "query q",
        "body.name: \"\" is out",
        "body.image",
        "body.cloud",
        "body.disk",
        "body.env.A",
        "body.bogus: not",
        "body.cmd",
        "body.gpu.id: missing",
        "body.gpu.count",
        "body.gpu.bogus: not",
        "body.gpu.minRamPerGpu",
        "body.mounts.bogus: not",
        "no key",
    ] {
        assert!(found.contains(part), "{part} in\n{found}");
    }
    let Value::Object(mut whole) = pod("p1") else { unreachable!() };
    let schema = &document["components"]["schemas"]["Pod"];
    let wrong = |pod: &Value| {
        let mut checker = Checker { document: &document, found: Vec::new() };
        checker.wrong(pod, schema, "pod");
        checker.found
    };
    assert_eq!(
        wrong(&Value::Object(whole.clone())),
        Vec::<String>::new(),
        "our own rows are what the document describes"
    );
    whole.remove("ssh");
    assert!(!wrong(&Value::Object(whole)).is_empty());
}

/// Every example value of a response.
fn example<'a>(document: &'a Value, method: &str, path: &str, status: &str, kind: &str) -> &'a Value {
    let response = &document["paths"][path][method]["responses"][status];
    let response = match response["$ref"].as_str() {
        Some(to) => document.pointer(to.trim_start_matches('#')).unwrap(),
        None => response,
    };
    let examples = response["content"][kind]["examples"].as_object().unwrap();
    assert_eq!(examples.len(), 1, "{method} {path} {status}");
    &examples.values().next().unwrap()["value"]
}

#[tokio::test]
async fn every_official_example_is_understood() {
    let Some(document) = document() else { return };
    let json_of = |method, path, status| example(&document, method, path, status, "application/json").to_string();
    let serve = |status: u16, body: String| Server::new(vec![Act::Answer(status, "", body.into_bytes())]);

    let server = serve(200, json_of("get", "/v2/catalog/gpus", "200")).await;
    let found = runpod(&server).offers(&OfferQuery { min_gpu_count: 8, ..OfferQuery::default() }).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|o| o.id.as_str()).collect();
    assert_eq!(ids, ["SECURE/US-KS-2/8/NVIDIA GeForce RTX 4090"], "Community machines have four at most");
    assert_eq!((found[0].price_per_hour.micros(), found[0].region.as_str()), (3_520_000, "US"));

    let server = serve(201, json_of("post", "/v2/pods", "201")).await;
    let outcome = runpod(&server).rent(&request(Cloud::Secure), LATER).await;
    assert_eq!(outcome, RentOutcome::Rented { id: "7h9k2m4n6p".to_owned() });

    let server = serve(200, json_of("get", "/v2/pods", "200")).await;
    let listed = runpod(&server).list_owned().await.unwrap();
    let server = serve(200, json_of("get", "/v2/pods/{id}", "200")).await;
    let shown = runpod(&server).describe("7h9k2m4n6p").await.unwrap().unwrap();
    assert_eq!(listed, std::slice::from_ref(&shown));
    assert_eq!((shown.state, shown.price_per_hour), (MachineState::Running, Some("0.44".parse().unwrap())));

    let server = serve(200, json_of("get", "/v2/account/ssh-keys", "200")).await;
    runpod(&server).account().await.unwrap();
    let server = serve(200, json_of("get", "/v2/billing/pods", "200")).await;
    let charges = runpod(&server).charges("2026-06-01T00:00:00Z".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(
        (charges.len(), charges[0].id.as_str(), charges[0].amount.to_string().as_str()),
        (1, "7h9k2m4n6p", "12.34")
    );
    let stream = example(&document, "get", "/v2/pods/{id}/logs", "200", "text/event-stream").as_str().unwrap();
    let server = serve(200, stream.to_owned()).await;
    assert_eq!(runpod(&server).logs("7h9k2m4n6p", 5).await.unwrap().as_deref(), Some("Model loaded."));
}

#[tokio::test]
async fn every_official_error_is_understood() {
    let Some(document) = document() else { return };
    let error = |status: &str| {
        example(&document, "post", "/v2/pods", status, "application/problem+json").to_string().into_bytes()
    };
    for (status, why) in [
        (400, Refusal::Invalid),
        (401, Refusal::Unauthorised),
        (403, Refusal::OutOfStock),
        (422, Refusal::Invalid),
        (429, Refusal::RateLimited),
    ] {
        let server = Server::new(vec![Act::Answer(status, "", error(&status.to_string()))]).await;
        let outcome = runpod(&server).rent(&request(Cloud::Secure), LATER).await;
        let refused = matches!(&outcome, RentOutcome::Refused { why: got, leftover: None, .. } if *got == why);
        assert!(refused, "{status}: {outcome:?}");
    }
    let body = example(&document, "get", "/v2/pods/{id}", "404", "application/problem+json").to_string();
    let server = Server::new(vec![Act::Answer(404, "", body.into_bytes())]).await;
    assert_eq!(runpod(&server).describe("p1").await, Ok(None));
    runpod(&server).terminate("p1").await.unwrap();
    let listed = runpod(&server).list_owned().await;
    assert!(
        matches!(listed, Err(ProviderError::Refused { .. })),
        "a list that is not found is no empty list: {listed:?}"
    );
}

/// The limits that we keep without being told are those of the document's own example.
#[test]
fn the_documented_limits_leave_room() {
    let Some(document) = document() else { return };
    let policy = &document["components"]["schemas"]["RateLimitPolicyHeader"]["examples"][0];
    let limit = super::super::limit();
    for window in policy.as_str().unwrap().split(", ") {
        let number = |name: &str| window.split(';').find_map(|p| p.strip_prefix(name)?.parse::<u64>().ok()).unwrap();
        let (quota, length) = (number("q="), Duration::from_secs(number("w=")));
        let most = u64::from(limit.burst) + u64::try_from(length.as_millis() / limit.interval.as_millis()).unwrap();
        assert!(most <= quota, "{window}: {most}");
    }
    assert!(offer(Cloud::Secure, 1).price_per_hour.micros() > 0);
}
