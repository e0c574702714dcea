//! The kind `runpod` from outside: keys, methods, bodies, limits, lists, catalogue, lifecycle, money, control, faults.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

mod support;

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use support::Served;
use support::pods::{GPU, body, market, raw, request, simple};

const STILL: &[&str] = &["--time-scale", "0"];

async fn advance(sim: &Served, seconds: f64) {
    sim.told(Method::POST, "/clock", json!({"advance": seconds})).await;
}

#[tokio::test]
async fn the_ready_line_names_the_kind() {
    let mut two = simple(1);
    two["providers"]["vast"] = json!({"kind": "vast", "offers": [{"id": 1}]});
    two["providers"]["second"] = json!({"kind": "runpod", "offers": [{"id": GPU}]});
    let sim = Served::start(&two, &[]);
    assert_eq!(sim.ready["providers"]["runpod"]["kind"], "runpod");
    assert_eq!(sim.ready["providers"]["runpod"]["apiKey"], "runpod-key");
    assert_eq!(sim.ready["providers"]["second"]["apiKey"], "second-key");
    let id = sim.create(body("sleep 600", json!({}))).await;
    let url = format!("{}/v2/pods/{id}", sim.url("second"));
    let other = request(Method::GET, &url, &[("authorization", "Bearer second-key")], None).await.unwrap();
    assert_eq!(other.status, 404, "an account sees its own pods only");
}

#[test]
fn bad_files_are_refused_naming_the_field() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("market.json");
    for (offer, says) in [
        (json!({"id": 7}), "offers[0].id: must be a text, found 7"),
        (json!({"id": GPU, "price": {"secure": "1"}}), "offers[0].price.secure: must be a number"),
        (
            json!({"id": GPU, "dataCenters": [{"id": "EU-RO-1", "availability": "LOTS"}]}),
            "offers[0].dataCenters[0].availability: must be one of NONE",
        ),
        (
            json!({"id": GPU, "dataCenters": [{"id": "EU-RO-1"}], "sim": {"stock": {"EU-CZ-1": 1}}}),
            "offers[0].sim.stock.EU-CZ-1: no such data centre",
        ),
        (
            json!({"id": GPU, "sim": {"stock": -1}}),
            "offers[0].sim.stock: must be a whole number, or one for each data centre",
        ),
        (json!({"id": GPU, "sim": {"stok": 1}}), "offers[0].sim.stok: unknown field"),
    ] {
        std::fs::write(&file, market(json!([offer])).to_string()).unwrap();
        let output =
            std::process::Command::new(support::BINARY).args(["serve", "--market"]).arg(&file).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
        assert!(stderr.contains(says), "{stderr} should say {says}");
    }
}

#[tokio::test]
async fn keys_paths_methods_and_bodies() {
    let sim = Served::start(&simple(2), STILL);
    let url = |path: &str| format!("{}{path}", sim.url("runpod"));
    for (key, detail) in [(None, "missing bearer token"), (Some("Bearer wrong"), "invalid bearer token")] {
        let headers: Vec<(&str, &str)> = key.map(|key| ("authorization", key)).into_iter().collect();
        let answer = request(Method::GET, &url("/v2/pods"), &headers, None).await.unwrap();
        assert_eq!((answer.status, answer.problem()["detail"].clone()), (401, json!(detail)));
    }
    for path in ["/v2/openapi.json", "/v1/pods", "/v2/pods/", "/graphql", "/"] {
        let answer = sim.call(Method::GET, path, Value::Null).await;
        assert_eq!((answer.status, answer.problem()["title"].clone()), (404, json!("Not Found")), "{path}");
    }
    for (method, path, allow) in [
        (Method::PUT, "/v2/pods", "GET, POST"),
        (Method::POST, "/v2/pods/x", "GET, PATCH, DELETE"),
        (Method::GET, "/v2/pods/x/action", "POST"),
        (Method::POST, "/v2/registries", "GET"),
        (Method::DELETE, "/v2/account/ssh-keys", "GET, PUT"),
        (Method::POST, "/v2/billing/pods", "GET"),
    ] {
        let answer = sim.call(method, path, Value::Null).await;
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, allow), "{path}");
        answer.problem();
    }
    let refused = sim.call(Method::POST, "/v2/pods", body("true", json!({"interruptible": true, "disk": 0}))).await;
    assert_eq!(refused.status, 422);
    let errors = refused.problem()["errors"].clone();
    assert_eq!(errors, json!(["$.disk: value must be at least 1", "$: property 'interruptible' is unsupported"]));
    assert!(!refused.headers["x-request-id"].is_empty());
    let key = [("authorization", "Bearer runpod-key")];
    let broken = raw(Method::POST, &url("/v2/pods"), &key, "{".into()).await.unwrap();
    assert_eq!((broken.status, broken.problem()["title"].clone()), (400, json!("Bad Request")));
    let fill = "x".repeat(102_400);
    let large = raw(Method::POST, &url("/v2/pods"), &key, fill.into()).await.unwrap();
    assert_eq!(large.status, 400, "102400 bytes are read");
    let larger = raw(Method::POST, &url("/v2/pods"), &key, "x".repeat(102_401).into()).await.unwrap();
    assert_eq!(larger.status, 413);
    larger.problem();
    assert_eq!(sim.read("/v2/registries").await, json!({"registries": []}));
}

#[tokio::test]
async fn a_pod_as_it_is_created_and_read() {
    let sim = Served::start(&simple(2), STILL);
    let more = json!({"cloud": "COMMUNITY", "dataCenterIds": ["US-KS-2"], "gpu": {"id": GPU, "count": 2, "minCudaVersion": "12.6"},
        "ports": ["22/tcp", "8000/http"], "env": {"A": "b"}, "mounts": {"persistent": {"size": 20, "path": "/workspace"}}, "globalNetworking": true});
    let answer = sim.call(Method::POST, "/v2/pods", body("sleep 600", more)).await;
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (201, "application/json"));
    let made = answer.json();
    assert_eq!(made["runtime"], Value::Null, "nothing runs yet, whatever the status says");
    assert_eq!(made["ssh"]["direct"], Value::Null);
    let id = made["id"].as_str().unwrap();
    assert!(id.len() == 14 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
    advance(&sim, 0.0).await;
    let pod = sim.read(&format!("/v2/pods/{id}")).await;
    let expected = json!({
        "name": "a-pod", "status": "RUNNING", "actions": ["stop", "restart", "terminate"], "image": "busybox", "args": "", "disk": 10,
        "mounts": {"persistent": {"size": 20, "path": "/workspace"}}, "ports": ["22/tcp", "8000/http"], "env": {"A": "b"}, "registry": null,
        "cloud": "COMMUNITY", "dataCenterId": "US-KS-2", "cudaVersion": "13.0", "cost": 0.72, "locked": false, "template": null,
        "entrypoint": ["/bin/sh"], "cmd": ["-c", "sleep 600"],
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(pod[name], *value, "{name}");
    }
    assert_eq!((pod["gpu"]["id"].clone(), pod["gpu"]["count"].clone()), (json!(GPU), json!(2)));
    assert_eq!(pod["globalNetworking"]["internalDns"], format!("{id}.runpod.internal"));
    assert_eq!(pod["runtime"]["gpus"].as_array().unwrap().len(), 2);
    let ports = pod["runtime"]["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(|port| port["ip"] == "127.0.0.1" && port["public"].as_u64().unwrap() > 1023), "{ports:?}");
    assert_eq!(pod["ssh"]["direct"]["port"], ports[0]["public"]);
    assert_eq!(sim.seen_pod(id).await["label"], "a-pod");
}

#[tokio::test]
async fn some_pods_say_that_they_run_before_they_do() {
    let mut slow = simple(100);
    slow["providers"]["runpod"]["offers"][0]["sim"] = json!({"boot": 8, "stock": 100});
    let sim = Served::start(&slow, STILL);
    let mut words = Vec::new();
    for _ in 0..16 {
        let answer = sim.call(Method::POST, "/v2/pods", body("sleep 600", json!({}))).await.json();
        let id = answer["id"].as_str().unwrap().to_owned();
        words.push((id, answer["status"].as_str().unwrap().to_owned()));
        assert_eq!(answer["runtime"], Value::Null);
    }
    let early = words.iter().filter(|(_, word)| word == "RUNNING").count();
    assert!((2..=14).contains(&early), "{words:?}");
    assert!(words.iter().all(|(_, word)| word == "RUNNING" || word == "PROVISIONING"), "{words:?}");
    advance(&sim, 4.0).await;
    for (id, word) in &words {
        let pod = sim.read(&format!("/v2/pods/{id}")).await;
        assert_eq!(pod["status"], if word == "RUNNING" { "RUNNING" } else { "STARTING" });
        assert_eq!(pod["runtime"], Value::Null);
        let actions =
            if word == "RUNNING" { json!(["stop", "restart", "terminate"]) } else { json!(["stop", "terminate"]) };
        assert_eq!(pod["actions"], actions);
    }
    advance(&sim, 5.0).await;
    for (id, _) in &words {
        let pod = sim.read(&format!("/v2/pods/{id}")).await;
        assert_eq!((pod["status"].clone(), pod["runtime"]["uptime"].clone()), (json!("RUNNING"), json!(1)));
    }
}

#[tokio::test]
async fn lists_have_pages() {
    let mut lagging = simple(20);
    lagging["providers"]["runpod"]["offers"][0]["sim"]["lag"] = json!(10);
    let sim = Served::start(&lagging, STILL);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(sim.create(body("true", json!({"name": "same"}))).await);
    }
    assert_eq!(sim.read("/v2/pods").await["pods"], json!([]), "not listed yet");
    for (method, path) in [(Method::GET, ""), (Method::DELETE, ""), (Method::POST, "/action")] {
        let answer = sim.call(method, &format!("/v2/pods/{}{path}", ids[0]), json!({"action": "stop"})).await;
        assert_eq!(answer.status, 404, "what cannot be seen yet is not found");
    }
    advance(&sim, 10.0).await;
    let (mut found, mut path) = (Vec::new(), "/v2/pods?limit=2&name=other&includeClusterPods=true".to_owned());
    loop {
        let page = sim.read(&path).await;
        let pods = page["pods"].as_array().unwrap();
        assert!(pods.len() <= 2);
        found.extend(pods.iter().map(|pod| pod["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["pagination"]["nextCursor"].as_str() else {
            assert_eq!(page["pagination"]["hasNextPage"], false);
            break;
        };
        assert_eq!(page["pagination"]["hasNextPage"], true);
        path = format!("/v2/pods?limit=2&cursor={cursor}");
    }
    assert_eq!(found, ids, "an unknown parameter filters nothing");
    let all = sim.read("/v2/pods").await;
    assert_eq!(all["pods"].as_array().unwrap().len(), 5);
    assert_eq!(all["pagination"], json!({"nextCursor": null, "hasNextPage": false}));
    // Of another account: "other 20000001".
    for query in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=nonsense",
        "cursor=b3RoZXIgMjAwMDAwMDE",
        "includeClusterPods=maybe",
    ] {
        let refused = sim.call(Method::GET, &format!("/v2/pods?{query}"), Value::Null).await;
        assert_eq!(refused.status, 422, "{query}");
        assert!(refused.problem()["errors"][0].is_string(), "{query}");
    }
    let repeated = sim.call(Method::GET, "/v2/pods?limit=1&limit=2", Value::Null).await;
    assert!(repeated.status == 400 && repeated.problem()["detail"].as_str().unwrap().contains("multiple times"));
}

#[tokio::test]
async fn limits_are_told_and_enforced() {
    let mut limited = simple(1);
    limited["providers"]["runpod"]["rateLimits"] = json!(true);
    let sim = Served::start(&limited, STILL);
    let url = format!("{}/v2/pods", sim.url("runpod"));
    let wrong = request(Method::GET, &url, &[("authorization", "Bearer no")], None);
    assert!(!wrong.await.unwrap().headers.contains_key("ratelimit"), "only known callers have a quota");
    let first = sim.call(Method::GET, "/v2/pods", Value::Null).await;
    assert_eq!(first.headers["ratelimit"], "\"minute\";r=59;t=60, \"hour\";r=2999;t=3600, \"day\";r=49999;t=86400");
    assert_eq!(
        first.headers["ratelimit-policy"],
        "\"minute\";q=60;w=60, \"hour\";q=3000;w=3600, \"day\";q=50000;w=86400"
    );
    for _ in 1..60 {
        assert_ne!(sim.call(Method::GET, "/v2/pods/x", Value::Null).await.status, 429);
    }
    advance(&sim, 18.0).await;
    let refused = sim.call(Method::POST, "/v2/pods", body("true", json!({}))).await;
    assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "42"));
    assert!(refused.headers["ratelimit"].starts_with("\"minute\";r=0;t=42"));
    refused.problem();
    advance(&sim, 42.0).await;
    assert_eq!(sim.call(Method::POST, "/v2/pods", body("true", json!({}))).await.status, 201);
    let unlimited = Served::start(&simple(1), STILL);
    assert!(!unlimited.call(Method::GET, "/v2/pods", Value::Null).await.headers.contains_key("ratelimit"));
}

#[tokio::test]
async fn the_catalogue_tells_prices_and_on_request_stock() {
    let sim = Served::start(
        &market(json!([
            {"id": GPU, "memory": 24, "price": {"secure": 0.69, "community": 0.44}, "odd": [1], "dataCenters": [{"id": "EU-RO-1", "availability": "HIGH"}, {"id": "US-KS-2"}],
             "sim": {"stock": {"EU-RO-1": 1, "US-KS-2": 2}}},
            {"id": "NVIDIA H200", "price": {"secure": 3.99}, "dataCenters": [{"id": "EU-FR-1"}], "sim": {"stock": 8}},
        ])),
        STILL,
    );
    let plain = sim.read("/v2/catalog/gpus").await;
    let (first, second) = (&plain["gpus"][0], &plain["gpus"][1]);
    assert_eq!(
        (first["price"].clone(), first["odd"].clone()),
        (json!({"secure": 0.69, "community": 0.44}), json!([1]))
    );
    assert_eq!((first["name"].clone(), first["manufacturer"].clone()), (json!("RTX 4090"), json!("NVIDIA")));
    assert!(first.get("availability").is_none() && first.get("dataCenters").is_none() && first.get("sim").is_none());
    assert_eq!((second["secure"].clone(), second["community"].clone()), (json!(true), json!(false)));
    let gpu = |query: &str| {
        sim.read_owned(format!(
            "/v2/catalog/gpus/NVIDIA%20GeForce%20RTX%204090?include=AVAILABILITY&product=POD{query}"
        ))
    };
    let told = gpu("").await;
    assert_eq!(told["availability"], "HIGH");
    assert_eq!(
        told["dataCenters"],
        json!([{"id": "EU-RO-1", "name": "EU-RO-1", "availability": "HIGH"}, {"id": "US-KS-2", "name": "US-KS-2", "availability": "MEDIUM"}])
    );
    assert_eq!(told["cudaVersions"].as_array().unwrap().len(), 4);
    assert_eq!(gpu("&countryCodes=US").await["dataCenters"].as_array().unwrap().len(), 1);
    assert_eq!(gpu("&countryCodes=FR").await["availability"], "NONE");
    assert_eq!(gpu("&count=5&cloud=COMMUNITY").await["availability"], "NONE", "the largest machine there has 4");
    assert_eq!(gpu("&minCudaVersion=13").await["cudaVersions"], json!([{"version": "13.0", "available": true}]));
    assert_eq!(gpu("&cudaVersions=11.8").await["availability"], "NONE");
    let in_france = sim.read("/v2/catalog/gpus?include=AVAILABILITY&product=POD,CLUSTER&countryCodes=FR").await;
    assert_eq!(in_france["gpus"].as_array().unwrap().len(), 1);
    let community = sim.read("/v2/catalog/gpus/NVIDIA%20H200?include=AVAILABILITY&product=POD&cloud=COMMUNITY").await;
    assert_eq!((community["availability"].clone(), community.get("dataCenters")), (json!("NONE"), None));
    for (query, status) in [
        ("include=AVAILABILITY", 400),
        ("product=POD", 400),
        ("count=2", 400),
        ("include=AVAILABILITY&include=AVAILABILITY&product=POD", 400),
        ("include=AVAILABILITY&product=POD&cudaVersions=12.4&minCudaVersion=12.4", 400),
        ("include=STOCK", 422),
        ("include=AVAILABILITY&product=PODS", 422),
        ("include=AVAILABILITY&product=POD&countryCodes=fr", 422),
        ("include=AVAILABILITY&product=POD&count=0", 422),
    ] {
        let refused = sim.call(Method::GET, &format!("/v2/catalog/gpus?{query}"), Value::Null).await;
        assert_eq!(refused.status, status, "{query}");
        refused.problem();
    }
    assert_eq!(sim.call(Method::GET, "/v2/catalog/gpus/nothing", Value::Null).await.status, 404);
    let centers = sim.read("/v2/catalog/datacenters?include=GPU_AVAILABILITY&regions=EUROPE&globalNetwork=true").await;
    let found: Vec<&Value> =
        centers["dataCenters"].as_array().unwrap().iter().filter(|c| c.get("gpuAvailability").is_some()).collect();
    assert_eq!(found.len(), 2, "{centers}");
    assert!(found.iter().any(|c| c["id"] == "EU-RO-1" && c["gpuAvailability"][0]["availability"] == "HIGH"));

    // What is rented is not there for others; a whole region may be sold out.
    let here = |region: &str| body("true", json!({"dataCenterIds": [region]}));
    sim.create(here("EU-RO-1")).await;
    let told = gpu("").await;
    assert_eq!(
        (told["dataCenters"][0]["availability"].clone(), told["availability"].clone()),
        (json!("NONE"), json!("MEDIUM"))
    );
    let refused = sim.call(Method::POST, "/v2/pods", here("EU-RO-1")).await;
    assert!(
        refused.status == 400
            && refused.problem()["detail"].as_str().unwrap().contains("no longer any instances available")
    );
    sim.told(Method::PATCH, "/offers/runpod/NVIDIA%20GeForce%20RTX%204090", json!({"stock": 4, "price": 0.8})).await;
    let told = gpu("").await;
    assert_eq!(
        (told["price"].clone(), told["availability"].clone()),
        (json!({"secure": 0.8, "community": 0.8}), json!("HIGH"))
    );
    let id = sim.create(here("EU-RO-1")).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["cost"], 0.8);
    sim.told(Method::PATCH, "/offers/runpod/NVIDIA%20GeForce%20RTX%204090", json!({"stock": 0})).await;
    let told = gpu("").await;
    assert_eq!((told["availability"].clone(), told.get("dataCenters")), (json!("NONE"), None));
    let (status, refused) = sim.control(Method::PATCH, "/offers/runpod/NVIDIA%20H200", json!({"bid": 1})).await;
    assert!(status == 409 && refused["error"].as_str().unwrap().contains("rents nothing by bid"), "{refused}");
}

#[tokio::test]
async fn creations_that_fail() {
    let sim = Served::start(&simple(1), STILL);
    let status = async |more: Value| sim.call(Method::POST, "/v2/pods", body("true", more)).await;
    for (more, code, says) in [
        (json!({"gpu": {"id": "NVIDIA  A30"}}), 400, "could not find any pods"),
        (json!({"gpu": {"id": GPU, "count": 9}}), 400, "no longer any instances"),
        (json!({"gpu": {"id": GPU, "allowedCudaVersions": ["11.8"]}}), 400, "no longer any instances"),
        (json!({"gpu": {"id": GPU, "minRamPerGpu": 500}}), 400, "no longer any instances"),
        (json!({"gpu": {"id": GPU, "minVcpuCountPerGpu": 64}}), 400, "no longer any instances"),
        (json!({"dataCenterIds": ["eu-ro-1"]}), 400, "no longer any instances"),
        (json!({"templateId": "none"}), 404, "template not found"),
    ] {
        let answer = status(more.clone()).await;
        let detail = answer.problem()["detail"].as_str().unwrap().to_owned();
        assert!(answer.status == code && detail.contains(says), "{more}: {detail}");
    }
    sim.told(Method::PATCH, "/providers/runpod", json!({"credit": 0.5})).await;
    assert_eq!(status(json!({})).await.status, 402, "an hour's credit is needed");
    sim.told(Method::PATCH, "/providers/runpod", json!({"credit": 5})).await;
    assert_eq!(status(json!({})).await.status, 201);
    assert_eq!(status(json!({})).await.status, 400, "sold out");
}

#[tokio::test]
async fn chance_refuses_for_lack_of_capacity() {
    let mut mean = simple(50);
    mean["providers"]["runpod"]["offers"][0]["sim"]["refuse"] = json!(0.5);
    let sim = Served::start(&mean, STILL);
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(sim.call(Method::POST, "/v2/pods", body("true", json!({}))).await.status == 400);
    }
    assert!((4..=16).contains(&refused), "{refused} of 20");
}

#[tokio::test]
async fn actions_depend_on_the_status() {
    let sim = Served::start(&simple(1), STILL);
    let id = sim.create(body("sleep 600", json!({}))).await;
    advance(&sim, 5.0).await;
    let refused = sim.act(&id, "start").await;
    assert_eq!(refused.status, 409);
    refused.problem();
    assert_eq!(sim.act(&id, "reset").await.status, 422);
    let restarted = sim.act(&id, "restart").await;
    assert_eq!((restarted.status, restarted.json()["runtime"]["uptime"].clone()), (200, json!(0)));
    advance(&sim, 3.0).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["runtime"]["uptime"], 2, "uptime fell");
    let patched = sim.call(Method::PATCH, &format!("/v2/pods/{id}"), json!({"locked": true, "name": "locked"})).await;
    assert_eq!(
        (patched.status, patched.json()["locked"].clone(), patched.json()["name"].clone()),
        (200, json!(true), json!("locked"))
    );
    assert_eq!(sim.act(&id, "stop").await.status, 409, "a locked pod is not stopped");
    sim.call(Method::PATCH, &format!("/v2/pods/{id}"), json!({"locked": false})).await;
    let stopped = sim.act(&id, "stop").await.json();
    assert_eq!(
        (stopped["status"].clone(), stopped["cost"].clone(), stopped["runtime"].clone()),
        (json!("EXITED"), json!(0.0), Value::Null)
    );
    assert_eq!(stopped["actions"], json!(["start", "terminate"]));
    assert_eq!(sim.act(&id, "restart").await.status, 409);
    // Somebody else has the GPU by now.
    let other = sim.create(body("true", json!({}))).await;
    let refused = sim.act(&id, "start").await;
    assert!(refused.status == 400 && refused.problem()["detail"].as_str().unwrap().contains("not enough free GPUs"));
    assert_eq!(sim.call(Method::DELETE, &format!("/v2/pods/{other}"), Value::Null).await.status, 204);
    advance(&sim, 60.0).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["status"], "EXITED", "nothing starts by itself");
    assert_eq!(sim.act(&id, "start").await.status, 200);
    advance(&sim, 1.0).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["status"], "RUNNING");
    let ended = sim.act(&id, "terminate").await;
    assert_eq!((ended.status, ended.bytes.len()), (204, 0));
    for (method, path) in [(Method::GET, ""), (Method::DELETE, ""), (Method::PATCH, ""), (Method::GET, "/logs")] {
        let answer = sim.call(method, &format!("/v2/pods/{id}{path}"), json!({})).await;
        assert_eq!(answer.status, 404, "{path}");
        answer.problem();
    }
    assert_eq!(sim.act(&id, "stop").await.status, 404);
    let seen = sim.seen_pod(&id).await;
    assert_eq!((seen["status"].clone(), seen["paid"].clone()), (json!("TERMINATED"), json!(false)));
}

#[tokio::test]
async fn a_change_of_the_container_makes_it_anew() {
    let sim = Served::start(&simple(1), STILL);
    let id = sim.create(body("sleep 600", json!({"mounts": {"persistent": {"size": 20, "path": "/a"}}}))).await;
    advance(&sim, 10.0).await;
    let patch = async |change: Value| sim.call(Method::PATCH, &format!("/v2/pods/{id}"), change).await;
    let renamed = patch(json!({"name": "new"})).await.json();
    assert_eq!((renamed["name"].clone(), renamed["runtime"]["uptime"].clone()), (json!("new"), json!(10)));
    let changed = patch(json!({"env": {"B": "c"}, "mounts": {"persistent": {"size": 20, "path": "/b"}}})).await.json();
    assert_eq!((changed["env"].clone(), changed["runtime"]["uptime"].clone()), (json!({"B": "c"}), json!(0)));
    assert_eq!(changed["mounts"]["persistent"]["path"], "/b");
    for (change, status) in [
        (json!({"gpu": {"id": GPU}}), 422),
        (json!({"mounts": {"network": []}}), 400),
        (json!({"mounts": {"persistent": {"size": 20}}}), 422),
        (json!({"templateId": "x"}), 404),
        (json!({"name": ""}), 422),
    ] {
        assert_eq!(patch(change.clone()).await.status, status, "{change}");
    }
}

#[tokio::test]
async fn money_counts_by_the_second() {
    let sim = Served::start(&simple(3), STILL);
    let cost = async |id: &str| sim.seen_pod(id).await["costMicros"].as_u64().unwrap();
    let volume = json!({"disk": 20, "gpu": {"id": GPU, "count": 2}, "mounts": {"persistent": {"size": 30, "path": "/workspace"}}});
    let with = sim.create(body("sleep 600", volume)).await;
    let without = sim.create(body("sleep 600", json!({"cloud": "COMMUNITY"}))).await;
    advance(&sim, 7200.0).await;
    // Two hours of two GPUs at 0.72; disk and volume at 0.10 a GB and month of 720 hours.
    assert_eq!(cost(&with).await, 2 * 2 * 720_000 + 2 * 50 * 100_000 / 720);
    assert_eq!(cost(&without).await, 2 * 360_000 + 2 * 10 * 100_000 / 720);
    for id in [&with, &without] {
        assert_eq!(sim.act(id, "stop").await.status, 200);
    }
    let fixed = cost(&without).await;
    advance(&sim, 72_000.0).await;
    let storage = (2 * 50 * 100_000 + 20 * 30 * 200_000) / 720;
    assert_eq!(cost(&with).await, 2 * 2 * 720_000 + storage, "a stopped volume costs twice as much");
    assert_eq!(cost(&without).await, fixed, "a stopped container's disk costs nothing");
    assert_eq!(sim.seen_pod(&with).await["paid"], true);
    sim.call(Method::DELETE, &format!("/v2/pods/{with}"), Value::Null).await;
    let last = cost(&with).await;
    advance(&sim, 7200.0).await;
    assert_eq!(cost(&with).await, last);

    let bill = sim.read("/v2/billing/pods?lastN=40&bucketSize=hour").await;
    let records = bill["records"].as_array().unwrap();
    assert!(records.len() > 20, "{bill}");
    let sum = |name: &str| records.iter().map(|record| (record[name].as_f64().unwrap() * 1e6).round()).sum::<f64>();
    #[expect(clippy::cast_precision_loss, reason = "micro-dollars of a test")]
    let both = (last + fixed) as f64;
    assert!((sum("totalAmount") - both).abs() < 0.5, "hours add up to the bill");
    assert!((sum("gpuAmount") - (2.0 * 2.0 * 720_000.0 + 2.0 * 360_000.0)).abs() < 0.5);
    assert!((bill["metadata"]["totals"]["totalAmount"].as_f64().unwrap() * 1e6 - both).abs() < 0.5);
    assert_eq!(
        (bill["metadata"]["uniquePodCount"].clone(), bill["metadata"]["recordCount"].clone()),
        (json!(2), json!(records.len()))
    );
    let one = sim.read(&format!("/v2/billing/pods?podId={without}&bucketSize=year")).await;
    assert!(one["records"].as_array().unwrap().iter().all(|record| record["podId"] == *without));
    assert!((one["metadata"]["totals"]["gpuAmount"].as_f64().unwrap() - 0.72).abs() < 1e-9, "{one}");
    assert_eq!(
        sim.read("/v2/billing/pods?startTime=2020-01-01T00:00:00Z&endTime=2020-02-01T00:00:00Z").await["records"],
        json!([])
    );
    for (query, status) in [
        ("lastN=1&startTime=2020-01-01T00:00:00Z", 400),
        ("bucketSize=minute", 422),
        ("startTime=yesterday", 422),
        ("lastN=0", 422),
    ] {
        assert_eq!(
            sim.call(Method::GET, &format!("/v2/billing/pods?{query}"), Value::Null).await.status,
            status,
            "{query}"
        );
    }
}

#[tokio::test]
async fn compute_is_billed_while_a_pod_boots_and_while_its_command_restarts() {
    let mut slow = simple(2);
    slow["providers"]["runpod"]["offers"][0]["sim"] = json!({"boot": 100, "stock": 2});
    slow["providers"]["runpod"]["images"] = json!({"gone": {"pull": 60, "error": "manifest unknown"}});
    let sim = Served::start(&slow, STILL);
    let id = sim.create(body("sleep 600", json!({}))).await;
    let lost = sim.create(body("sleep 600", json!({"image": "gone"}))).await;
    advance(&sim, 50.0).await;
    assert_eq!(sim.seen_pod(&id).await["costMicros"], 50 * 720_000 / 3600 + 50 * 10 * 100_000 / 720 / 3600);
    advance(&sim, 50.0).await;
    let pod = sim.read(&format!("/v2/pods/{lost}")).await;
    assert_eq!(
        (pod["status"].clone(), pod["cost"].clone()),
        (json!("EXITED"), json!(0.0)),
        "the image could not be pulled"
    );
    assert_eq!(sim.seen_pod(&lost).await["costMicros"], 60 * 720_000 / 3600 + 60 * 10 * 100_000 / 720 / 3600);
    sim.make(&id, json!({"do": "exit", "code": 3})).await;
    let before = sim.seen_pod(&id).await["costMicros"].as_u64().unwrap();
    advance(&sim, 1.0).await;
    assert!(sim.seen_pod(&id).await["costMicros"].as_u64().unwrap() >= before + 200);
}

#[tokio::test]
async fn without_credit_pods_are_terminated() {
    let sim = Served::start(&simple(1), STILL);
    sim.told(Method::PATCH, "/providers/runpod", json!({"credit": 1})).await;
    let id = sim.create(body("sleep 600", json!({}))).await;
    advance(&sim, 3600.0).await;
    assert_eq!(sim.read("/v2/pods").await["pods"].as_array().unwrap().len(), 1);
    advance(&sim, 3600.0).await;
    assert_eq!(sim.read("/v2/pods").await["pods"], json!([]));
    let seen = sim.seen_pod(&id).await;
    assert!(seen["endedAt"].is_string() && seen["costMicros"].as_u64().unwrap() >= 1_000_000, "{seen}");
    assert!(seen["costMicros"].as_u64().unwrap() < 1_001_000, "{seen}");
}

#[tokio::test]
async fn control_does_what_the_kind_knows() {
    let sim = Served::start(&simple(5), STILL);
    let cloud = json!({"cloud": "COMMUNITY"});
    let id = sim.create(body("sleep 600", cloud.clone())).await;
    let (status, refused) = sim.control(Method::POST, &format!("/machines/runpod/{id}"), json!({"do": "outbid"})).await;
    assert!(status == 409 && refused["error"].as_str().unwrap().contains("no machines rented by bid"), "{refused}");
    assert_eq!(sim.control(Method::POST, "/machines/runpod/20000001", json!({"do": "reclaim"})).await.0, 404);
    advance(&sim, 5.0).await;
    let seen = sim.make(&id, json!({"do": "status", "value": "HIBERNATING"})).await;
    assert_eq!(seen["status"], "HIBERNATING");
    let pod = sim.read(&format!("/v2/pods/{id}")).await;
    assert_eq!((pod["status"].clone(), pod["runtime"].clone()), (json!("HIBERNATING"), Value::Null));
    sim.make(&id, json!({"do": "status"})).await;
    sim.make(&id, json!({"do": "exit", "code": 9})).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["runtime"]["uptime"], 0);
    advance(&sim, 2.0).await;

    let gone = sim.make(&id, json!({"do": "reclaim"})).await;
    assert_eq!((gone["status"].clone(), gone["paid"].clone()), (json!("EXITED"), json!(false)));
    let pod = sim.read(&format!("/v2/pods/{id}")).await;
    assert_eq!((pod["status"].clone(), pod["runtime"].clone()), (json!("EXITED"), Value::Null));
    assert_eq!(sim.act(&id, "start").await.status, 400, "its host is gone");
    assert_eq!(sim.control(Method::POST, &format!("/machines/runpod/{id}"), json!({"do": "reclaim"})).await.0, 409);
    let absent = sim.create(body("sleep 600", cloud)).await;
    sim.make(&absent, json!({"do": "reclaim", "value": "absent"})).await;
    assert_eq!(sim.call(Method::GET, &format!("/v2/pods/{absent}"), Value::Null).await.status, 404);
    assert!(sim.seen_pod(&absent).await["endedAt"].is_string());

    let failed = sim.create(body("sleep 600", json!({}))).await;
    // The boot takes no time, so that it has to be caught with the clock at rest.
    let (status, _) = sim.control(Method::POST, &format!("/machines/runpod/{failed}"), json!({"do": "fail"})).await;
    assert_eq!(status, 409, "it runs already");
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["machine"] == *id && e["kind"] != "request")
        .map(|e| e["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["created", "running", "exited", "started", "reclaimed"]);
    let text = events.to_string();
    assert!(!text.contains("runpod-key") && !text.contains("sleep 600"), "{text}");
}

#[tokio::test]
async fn a_failed_boot_is_an_error() {
    let mut slow = simple(1);
    slow["providers"]["runpod"]["offers"][0]["sim"]["boot"] = json!(30);
    let sim = Served::start(&slow, STILL);
    let id = sim.create(body("sleep 600", json!({}))).await;
    sim.make(&id, json!({"do": "fail", "message": "no such runtime"})).await;
    let pod = sim.read(&format!("/v2/pods/{id}")).await;
    assert_eq!((pod["status"].clone(), pod["actions"].clone()), (json!("ERROR"), json!(["start", "terminate"])));
}

#[tokio::test]
async fn hosts_take_their_machines_back_in_two_ways() {
    let mut brief = simple(40);
    brief["providers"]["runpod"]["offers"][0]["sim"]["lifetime"] = json!(10);
    let sim = Served::start(&brief, STILL);
    for _ in 0..24 {
        sim.create(body("true", json!({"cloud": "COMMUNITY"}))).await;
    }
    advance(&sim, 1000.0).await;
    let left = sim.read("/v2/pods").await["pods"].as_array().unwrap().clone();
    assert!((4..=20).contains(&left.len()), "some are absent, some EXITED: {}", left.len());
    assert!(left.iter().all(|pod| pod["status"] == "EXITED"));
}

#[tokio::test]
async fn a_price_script_moves_new_rentals() {
    let mut scripted = simple(4);
    scripted["providers"]["runpod"]["offers"][0]["sim"]["prices"] = json!([[60, 0.9]]);
    let sim = Served::start(&scripted, STILL);
    let old = sim.create(body("true", json!({}))).await;
    advance(&sim, 61.0).await;
    let new = sim.create(body("true", json!({"cloud": "COMMUNITY"}))).await;
    assert_eq!(sim.read(&format!("/v2/pods/{old}")).await["cost"], 0.72, "a running pod keeps its price");
    assert_eq!(sim.read(&format!("/v2/pods/{new}")).await["cost"], 0.9);
}

#[tokio::test]
async fn every_kind_of_fault() {
    let sim = Served::start(&simple(20), &[]);
    let arm = async |fault: Value| {
        sim.told(Method::POST, "/faults", fault).await;
    };
    let url = format!("{}/v2/pods", sim.url("runpod"));
    let headers = [("authorization", "Bearer runpod-key")];
    let rent = async || request(Method::POST, &url, &headers, Some(body("sleep 600", json!({})))).await;
    let count = async || sim.told(Method::GET, "/machines", Value::Null).await["machines"].as_array().unwrap().len();
    arm(json!({"op": "rent", "when": "before", "status": 403, "message": "no access to this pool"})).await;
    let refused = rent().await.unwrap();
    assert_eq!(
        (refused.status, refused.problem()["detail"].clone(), count().await),
        (403, json!("no access to this pool"), 0)
    );
    arm(json!({"op": "rent", "when": "after", "status": 500})).await;
    assert_eq!((rent().await.unwrap().status, count().await), (500, 1));
    arm(json!({"op": "rent", "when": "lost"})).await;
    rent().await.unwrap_err();
    assert_eq!(count().await, 2);
    arm(json!({"op": "rent", "when": "garbled"})).await;
    let garbled = rent().await.unwrap();
    assert!(garbled.status == 201 && serde_json::from_slice::<Value>(&garbled.bytes).is_err());
    assert_eq!(count().await, 3);
    arm(json!({"op": "rent", "when": "hang", "seconds": 0.7})).await;
    let (before, late) = (Instant::now(), rent().await.unwrap());
    assert!(late.status == 201 && before.elapsed() >= Duration::from_millis(700));
    let id = late.json()["id"].as_str().unwrap().to_owned();
    arm(json!({"op": "list", "when": "before", "status": 429})).await;
    assert_eq!(sim.call(Method::GET, "/v2/pods", Value::Null).await.headers["retry-after"], "1");
    arm(json!({"op": "*", "when": "before", "status": 410, "message": "gone", "times": 3})).await;
    for (method, path) in [
        (Method::GET, "/v2/pods".to_owned()),
        (Method::GET, format!("/v2/pods/{id}")),
        (Method::DELETE, format!("/v2/pods/{id}")),
    ] {
        assert_eq!(sim.call(method, &path, Value::Null).await.status, 410);
    }
    for (op, method, path, body) in [
        ("offers", Method::GET, "/v2/catalog/gpus".to_owned(), Value::Null),
        ("offers", Method::GET, "/v2/catalog/datacenters".to_owned(), Value::Null),
        ("describe", Method::GET, format!("/v2/pods/{id}"), Value::Null),
        ("label", Method::PATCH, format!("/v2/pods/{id}"), json!({"name": "y"})),
        ("stop", Method::POST, format!("/v2/pods/{id}/action"), json!({"action": "stop"})),
        ("start", Method::POST, format!("/v2/pods/{id}/action"), json!({"action": "start"})),
        ("terminate", Method::POST, format!("/v2/pods/{id}/action"), json!({"action": "terminate"})),
        ("terminate", Method::DELETE, format!("/v2/pods/{id}"), Value::Null),
        ("logs", Method::GET, format!("/v2/pods/{id}/logs"), Value::Null),
        ("account", Method::GET, "/v2/account/ssh-keys".to_owned(), Value::Null),
        ("charges", Method::GET, "/v2/billing/pods".to_owned(), Value::Null),
    ] {
        arm(json!({"op": op, "status": 502})).await;
        assert_eq!(sim.call(method, &path, body).await.status, 502, "{op}");
    }
    sim.told(Method::PATCH, "/providers/runpod", json!({"apiKey": "other"})).await;
    assert_eq!(sim.call(Method::GET, "/v2/pods", Value::Null).await.status, 401);
}

#[tokio::test]
async fn keys_for_machines_can_be_replaced() {
    let mut keyed = simple(1);
    keyed["providers"]["runpod"]["sshKeys"] = json!(["ssh-ed25519 AAAA first"]);
    let sim = Served::start(&keyed, STILL);
    assert_eq!(sim.read("/v2/account/ssh-keys").await, json!({"keys": ["ssh-ed25519 AAAA first"]}));
    let refused = sim.call(Method::PUT, "/v2/account/ssh-keys", json!({"keys": ["AAAA"]})).await;
    assert!(refused.status == 422 && refused.problem()["errors"][0].as_str().unwrap().starts_with("$.keys[0]"));
    let replaced = sim.call(Method::PUT, "/v2/account/ssh-keys", json!({"keys": ["ssh-rsa BBBB"]})).await;
    assert_eq!((replaced.status, replaced.json()), (200, json!({"keys": ["ssh-rsa BBBB"]})));
    let id = sim.create(body("true", json!({"startSsh": true}))).await;
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["env"], json!({"PUBLIC_KEY": "ssh-rsa BBBB"}));
}
