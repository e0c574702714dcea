//! The simulator against Vast.ai's official OpenAPI documents: what it answers, what it accepts, what it refuses. Skipped where the
//! documents are not there.
//!
//! Where a document contradicts the official client or several users, the list below names it and says why.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

#[path = "support/schema.rs"]
mod schema;
mod support;

use std::path::PathBuf;

use hyper::Method;
use schema::{Document, samples};
use serde_json::{Value, json};
use support::{Served, simple};
use tradewind_harness::{or_skip, shared_material};

/// Violations that are right all the same: path in the answer, and why.
const CONTRADICTED: [(&str, &str); 7] = [
    ("$.instances.ports", "the client and the guides read a map of ports in Docker's shape, shown while running"),
    ("$.instances.extra_env[]", "the client reads pairs; the list's document says so too"),
    ("$.instances: null", "a destroyed or foreign id is 200 with null (users and client)"),
    ("$.instances[].ports", "as above"),
    ("$.instances[].onstart: null", "the document of one instance allows null"),
    (
        "$.error: \"auth_error\"",
        "the list of manage_instance.yaml is for its own errors; show_instance.yaml has this word for keys",
    ),
    ("$.error: \"invalid_args\"", "the word of every other document for a body that is wrong"),
];

fn documents() -> Option<PathBuf> {
    or_skip(shared_material("providers/specs/vastai-endpoints"))
}

fn read(directory: &std::path::Path, name: &str) -> Document {
    Document::read(&directory.join(name))
}

/// Fails unless the answer is what the document says, contradicted points aside.
fn assert_fits(document: &Document, what: &str, (status, body): &(u16, Value)) {
    let schema =
        document.answer(*status).unwrap_or_else(|| panic!("{what}: the document has no answer {status}: {body}"));
    let mut found = document.violations(schema, body);
    found.retain(|violation| !CONTRADICTED.iter().any(|(path, _)| violation.starts_with(path)));
    assert!(found.is_empty(), "{what}: {found:#?}");
}

const BODY: &str = "image";

#[tokio::test]
async fn answers_are_what_the_documents_say() {
    let Some(directory) = documents() else { return };
    let sim = Served::start(&simple(2), &[]);
    let create = read(&directory, "create_instance.yaml");
    let env = json!({"A": "b", "-p 8000:8000": "1"});
    let made = sim
        .put("/api/v0/asks/1001/", json!({BODY: "busybox", "env": env, "args": ["sleep", "100"], "label": "x"}))
        .await;
    assert_fits(&create, "create", &made);
    let id = made.1["new_contract"].as_u64().unwrap();
    for (body, status) in [
        (json!({BODY: "x", "label": 3}), 400),
        (json!({BODY: "x", "price": 300}), 400),
        (json!({BODY: "x", "price": 0.1}), 400),
        (json!({BODY: "x", "price": 0.1, "cancel_unavail": true}), 410),
    ] {
        let answer = sim.put("/api/v0/asks/1001/", body).await;
        assert_eq!(answer.0, status, "{answer:?}");
        assert_fits(&create, "create", &answer);
    }
    let missing = sim.put("/api/v0/asks/7/", json!({BODY: "x"})).await;
    assert_eq!(missing.0, 404);
    assert_fits(&create, "create", &missing);
    sim.until_status(id, "running").await;

    let show = read(&directory, "show_instance.yaml");
    let shown = sim.get(&format!("/api/v0/instances/{id}/")).await;
    assert_fits(&show, "show", &shown);
    let official =
        show.resolved(&show.answer(200).unwrap()["properties"]["instances"])["properties"].as_object().unwrap();
    let absent: Vec<_> = official.keys().filter(|name| shown.1["instances"].get(name).is_none()).collect();
    assert!(absent.is_empty(), "an instance lacks {absent:?}");
    assert_fits(&show, "show of what is not there", &sim.get("/api/v0/instances/77/").await);
    assert_fits(&show, "show of no number", &sim.get("/api/v0/instances/x/").await);

    let list = read(&directory, "show_instances.yaml");
    assert_fits(&list, "list", &sim.get("/api/v1/instances/?limit=1").await);
    for query in [
        "select_filters=%7B%22dph_total%22%3A%7B%22eq%22%3A1%7D%7D",
        "after_token=xyz",
        "order_by=%5B%7B%22col%22%3A%22nope%22%7D%5D",
    ] {
        let refused = sim.get(&format!("/api/v1/instances/?{query}")).await;
        assert_eq!(refused.0, 400, "{query}");
        assert_fits(&list, query, &refused);
    }
    for (file, path, body) in [
        ("change_bid.yaml", "instances/bid_price/{id}/", json!({"client_id": "me", "price": 0.5})),
        ("change_bid.yaml", "instances/bid_price/{id}/", json!({"client_id": "me", "price": 0})),
        ("change_bid.yaml", "instances/bid_price/77/", json!({"client_id": "me", "price": 0.5})),
        ("manage_instance.yaml", "instances/{id}/", json!({"label": "y"})),
        ("manage_instance.yaml", "instances/{id}/", json!({"state": "stopped"})),
        ("manage_instance.yaml", "instances/{id}/", json!({"state": "running"})),
        ("manage_instance.yaml", "instances/{id}/", json!({"label": "l".repeat(1025)})),
        ("manage_instance.yaml", "instances/77/", json!({"label": "y"})),
        ("reboot_instance.yaml", "instances/reboot/{id}/", json!({})),
        ("reboot_instance.yaml", "instances/reboot/77/", json!({})),
        ("recycle_instance.yaml", "instances/recycle/{id}/", json!({})),
        ("recycle_instance.yaml", "instances/recycle/77/", json!({})),
        ("logs.yaml", "instances/request_logs/{id}/", json!({"tail": "10"})),
        ("logs.yaml", "instances/request_logs/77/", json!({})),
        ("execute.yaml", "instances/command/{id}/", json!({"command": "ls -l"})),
        ("execute.yaml", "instances/command/{id}/", json!({"command": "reboot"})),
        ("execute.yaml", "instances/command/77/", json!({"command": "ls"})),
    ] {
        let answer = sim.put(&format!("/api/v0/{}", path.replace("{id}", &id.to_string())), body).await;
        assert_fits(&read(&directory, file), file, &answer);
    }
    assert_fits(&read(&directory, "show_user.yaml"), "user", &sim.get("/api/v0/users/current/").await);
    let charges = read(&directory, "show_charges.yaml");
    let range = "select_filters=%7B%22day%22%3A%7B%22gte%22%3A0%2C%22lte%22%3A9999999999%7D%7D";
    let bill = sim.get(&format!("/api/v0/charges/?{range}")).await;
    assert_eq!(
        bill.1["results"].as_array().unwrap().len(),
        2,
        "the machine and the leftover of the losing bid: {bill:?}"
    );
    assert_fits(&charges, "charges", &bill);
    assert_fits(&charges, "charges without a range", &sim.get("/api/v0/charges/").await);
    let destroy = read(&directory, "destroy_instance.yaml");
    assert_fits(&destroy, "destroy", &sim.delete(&format!("/api/v0/instances/{id}/")).await);
    assert_fits(&destroy, "destroy of what is not there", &sim.delete(&format!("/api/v0/instances/{id}/")).await);
}

#[tokio::test]
async fn keys_and_limits_are_answered_as_documented() {
    let Some(directory) = documents() else { return };
    let mut market = simple(2);
    market["providers"]["vast"]["rateLimits"] = json!(true);
    let sim = Served::start(&market, &["--time-scale", "0"]);
    for (file, method, path, body) in [
        ("create_instance.yaml", Method::PUT, "asks/1001/", json!({BODY: "x"})),
        ("show_instance.yaml", Method::GET, "instances/77/", Value::Null),
        ("manage_instance.yaml", Method::PUT, "instances/77/", json!({"label": "x"})),
        ("change_bid.yaml", Method::PUT, "instances/bid_price/77/", json!({"client_id": "me", "price": 1})),
        ("reboot_instance.yaml", Method::PUT, "instances/reboot/77/", json!({})),
        ("recycle_instance.yaml", Method::PUT, "instances/recycle/77/", json!({})),
        ("execute.yaml", Method::PUT, "instances/command/77/", json!({"command": "ls"})),
        ("show_charges.yaml", Method::GET, "charges/", Value::Null),
        ("destroy_instance.yaml", Method::DELETE, "instances/77/", json!({})),
    ] {
        let document = read(&directory, file);
        let url = format!("{}/api/v0/{path}", sim.url("vast"));
        for key in [None, Some("wrong")] {
            let answer = support::call(method.clone(), &url, key, Some(body.clone())).await.unwrap();
            assert!([401, 403, 404].contains(&answer.status), "{file}");
            if document.answer(answer.status).is_some() {
                assert_fits(&document, file, &(answer.status, answer.json()));
            }
        }
        let first = sim.vast(method.clone(), &format!("/api/v0/{path}"), body.clone()).await;
        assert_ne!(first.0, 429, "{file}: a refused key must not count");
        let second = sim.vast(method, &format!("/api/v0/{path}"), body).await;
        assert_eq!(second.0, 429, "{file}: {second:?}");
        assert_fits(&document, file, &second);
        let threshold = document_threshold(&directory, file);
        assert!(second.1.to_string().contains(&format!("threshold={threshold:.1}")), "{file}: {second:?}");
    }
}

/// `x-rate-limit.threshold` of a document.
fn document_threshold(directory: &std::path::Path, file: &str) -> f64 {
    let document: Value = serde_saphyr::from_str(&std::fs::read_to_string(directory.join(file)).unwrap()).unwrap();
    document["x-rate-limit"]["threshold"].as_f64().unwrap()
}

#[tokio::test]
async fn every_documented_field_is_accepted_and_ill_typed_ones_are_not() {
    let Some(directory) = documents() else { return };
    let mut market = simple(100);
    market["providers"]["vast"]["sshKeys"] = json!(["ssh-ed25519 AAAA"]);
    let sim = Served::start(&market, &["--time-scale", "0"]);
    // Templates and volumes are other resources, which the simulator does not have: it refuses them with a sentence.
    let not_simulated = ["template_hash_id", "volume_info"];
    for (name, property) in read(&directory, "create_instance.yaml").request()["properties"].as_object().unwrap() {
        let (mut good, wrong) = samples(property);
        if name == "env" {
            good = json!("-e HF_TOKEN=hf_xxx -p 8000:8000");
        }
        let mut body = json!({BODY: "busybox"});
        // A bid that wins; the documented bounds are wider than the market's.
        body[name] = if name == "price" { json!(0.3) } else { good };
        let (status, answer) = sim.put("/api/v0/asks/1001/", body.clone()).await;
        if not_simulated.contains(&name.as_str()) {
            assert!(status == 400 && answer.to_string().contains("not simulated"), "{name}: {answer}");
        } else {
            assert_eq!(status, 200, "{body}: {answer}");
        }
        body[name] = wrong;
        let (status, answer) = sim.put("/api/v0/asks/1001/", body.clone()).await;
        assert_eq!((status, answer["error"].clone()), (400, json!("invalid_args")), "{body}: {answer}");
    }
    let search = read(&directory, "search_offers.yaml");
    for (name, property) in search.request()["properties"].as_object().unwrap() {
        let value = match (name.as_str(), property["type"].as_str()) {
            ("order", _) => json!([["dph_total", "asc"]]),
            (_, Some("object")) => json!({"neq": "nothing"}),
            _ => samples(property).0,
        };
        let (status, answer) = sim.vast(Method::POST, "/api/v0/bundles/", json!({name: value})).await;
        assert_eq!(status, 200, "{name}: {answer}");
        assert_fits(&search, name, &(status, answer));
        if property["type"] == "object" {
            let (status, answer) = sim.vast(Method::POST, "/api/v0/bundles/", json!({name: {"above": 1}})).await;
            assert_eq!((status, answer["error"].clone()), (400, json!("invalid_request")), "{name}");
        }
    }
    let (_, answer) = sim.vast(Method::POST, "/api/v0/bundles/", json!({})).await;
    let row = answer["offers"][0].as_object().unwrap();
    let example = &search.operation()["responses"]["200"]["content"]["application/json"]["example"]["offers"];
    let absent: Vec<_> = example.as_object().unwrap().keys().filter(|name| !row.contains_key(*name)).collect();
    assert!(absent.is_empty(), "an offer lacks {absent:?}");
}
