//! The kind `runpod` against RunPod's official OpenAPI document: what it answers, what it accepts, what it refuses. Skipped where the
//! document is not there.
//!
//! Fields that are newer than the saved document (`cmd`, `entrypoint`, `gpu.minRamPerGpu`, `gpu.minVcpuCountPerGpu`) are accepted although
//! it refuses them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it cannot go on")]

#[path = "support/openapi.rs"]
mod openapi;
mod support;

use hyper::Method;
use openapi::Document;
use serde_json::{Value, json};
use support::Served;
use support::pods::{Answer, GPU, body, request, simple};
use tradewind_harness::{or_skip, shared_material};

fn document() -> Option<Document> {
    or_skip(shared_material("providers/specs/runpod-rest-v2-openapi.json")).map(|path| Document::read(&path))
}

/// Fails unless the answer is what the document says of this operation.
fn assert_fits(document: &Document, method: &str, path: &str, answer: &Answer) {
    let what = format!("{method} {path} answered by {}", answer.status);
    let Some((schema, kind)) = document.answer(path, method, answer.status) else {
        assert!(answer.bytes.is_empty(), "{what}: there should be no body");
        return;
    };
    assert_eq!(answer.headers["content-type"], kind, "{what}");
    if kind == "text/event-stream" {
        return;
    }
    let found = document.violations(schema, &answer.json());
    assert!(found.is_empty(), "{what}: {found:#?}\n{}", answer.json());
}

struct Checked {
    sim: Served,
    document: Document,
}

impl Checked {
    /// A call whose answer must be as documented, and have this status. `{id}` of the documented path is filled in.
    async fn ask(&self, method: Method, path: &str, (id, query): (&str, &str), body: Value, status: u16) -> Value {
        let real = format!("{}{query}", path.replace("{id}", &id.replace(' ', "%20")));
        let answer = self.sim.call(method.clone(), &real, body.clone()).await;
        assert_eq!(answer.status, status, "{method} {real} {body}: {:?}", answer.bytes);
        assert_fits(&self.document, &method.as_str().to_lowercase(), path, &answer);
        if answer.bytes.is_empty() { Value::Null } else { answer.json() }
    }
}

#[tokio::test]
async fn answers_are_what_the_document_says() {
    let Some(document) = document() else { return };
    let mut market = simple(5);
    market["providers"]["runpod"]["sshKeys"] = json!(["ssh-ed25519 AAAA me"]);
    market["providers"]["runpod"]["offers"][0]["sim"]["boot"] = json!(6);
    let all = Checked { sim: Served::start(&market, &["--time-scale", "0"]), document };
    let (none, pods, pod) = (("", ""), "/v2/pods", "/v2/pods/{id}");
    let more = json!({"ports": ["22/tcp", "80/http"], "mounts": {"persistent": {"size": 10, "path": "/w"}}, "startSsh": true, "startJupyter": true,
        "globalNetworking": true, "env": {"A": "b"}});
    let made = all.ask(Method::POST, pods, none, body("sleep 600", more), 201).await;
    let id = made["id"].as_str().unwrap();
    let plain = all.ask(Method::POST, pods, none, body("sleep 600", json!({"cloud": "COMMUNITY"})), 201).await;
    let plain = plain["id"].as_str().unwrap();
    for (seconds, what) in [(1.0, json!({})), (3.0, json!({})), (9.0, json!({"do": "exit"}))] {
        all.sim.told(Method::POST, "/clock", json!({"advance": seconds})).await;
        if what != json!({}) {
            all.sim.make(id, what).await;
        }
        all.ask(Method::GET, pod, (id, ""), Value::Null, 200).await;
        all.ask(Method::GET, pods, ("", "?limit=1"), Value::Null, 200).await;
    }
    all.sim.told(Method::POST, "/clock", json!({"advance": 3})).await;
    all.ask(Method::PATCH, pod, (id, ""), json!({"name": "y", "env": {}}), 200).await;
    for (action, status) in [("restart", 200), ("stop", 200), ("stop", 409), ("start", 200), ("walk", 422)] {
        all.ask(Method::POST, "/v2/pods/{id}/action", (id, ""), json!({"action": action}), status).await;
        all.sim.told(Method::POST, "/clock", json!({"advance": 9})).await;
    }
    all.sim.make(plain, json!({"do": "reclaim"})).await;
    all.ask(Method::GET, pods, none, Value::Null, 200).await;
    for (refused, status) in [
        (json!({"name": 3}), 422),
        (body("true", json!({"gpu": {"id": "none"}})), 400),
        (body("true", json!({"templateId": "t"})), 404),
    ] {
        all.ask(Method::POST, pods, none, refused, status).await;
    }
    all.ask(Method::GET, pod, ("nothing", ""), Value::Null, 404).await;
    all.ask(Method::PATCH, pod, ("nothing", ""), json!({}), 404).await;
    all.ask(Method::DELETE, pod, ("nothing", ""), Value::Null, 404).await;
    all.ask(Method::GET, "/v2/pods/{id}/logs", ("nothing", ""), Value::Null, 404).await;
    for (path, id, query, status) in [
        ("/v2/catalog/gpus", "", "", 200),
        ("/v2/catalog/gpus", "", "?include=AVAILABILITY&product=POD,CLUSTER&countryCodes=RO,US", 200),
        ("/v2/catalog/gpus", "", "?include=AVAILABILITY", 400),
        ("/v2/catalog/gpus/{id}", GPU, "?include=AVAILABILITY&product=POD&count=2&cloud=COMMUNITY", 200),
        ("/v2/catalog/gpus/{id}", GPU, "?include=AVAILABILITY&product=SERVERLESS", 200),
        ("/v2/catalog/gpus/{id}", "nothing", "", 404),
        ("/v2/catalog/datacenters", "", "?include=GPU_AVAILABILITY,CPU_AVAILABILITY", 200),
        ("/v2/catalog/datacenters", "", "?regions=EUROPE&compliance=GDPR", 200),
        ("/v2/account/ssh-keys", "", "", 200),
        ("/v2/registries", "", "", 200),
        ("/v2/billing/pods", "", "", 200),
        ("/v2/billing/pods", "", "?bucketSize=hour&lastN=3", 200),
        ("/v2/billing/pods", "", "?bucketSize=minute", 422),
    ] {
        all.ask(Method::GET, path, (id, query), Value::Null, status).await;
    }
    all.ask(Method::PUT, "/v2/account/ssh-keys", none, json!({"keys": ["ssh-rsa BBBB"]}), 200).await;
    all.ask(Method::PUT, "/v2/account/ssh-keys", none, json!({"keys": [1]}), 422).await;
    all.ask(Method::POST, "/v2/pods/{id}/action", (plain, ""), json!({"action": "terminate"}), 204).await;
    all.ask(Method::DELETE, pod, (id, ""), Value::Null, 204).await;
    all.sim.told(Method::PATCH, "/providers/runpod", json!({"credit": 0})).await;
    all.ask(Method::POST, pods, none, body("true", json!({})), 402).await;
    for (path, method) in [(pods, Method::GET), ("/v2/registries", Method::GET), ("/v2/catalog/gpus", Method::GET)] {
        let url = format!("{}{path}", all.sim.url("runpod"));
        let answer = request(method.clone(), &url, &[], None).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_fits(&all.document, &method.as_str().to_lowercase(), path, &answer);
    }
}

#[tokio::test]
async fn every_documented_field_is_accepted_and_no_other() {
    let Some(document) = document() else { return };
    let sim = Served::start(&simple(200), &["--time-scale", "0"]);
    // What the simulator does not have is refused with a sentence, but not as unknown: 400 or 404.
    let least = json!({"name": "x", "image": "busybox", "gpu": {"id": GPU}});
    let create = document.schema("CreatePodRequest");
    let mut seen = 0;
    for (name, property) in document.properties(create) {
        let (mut good, wrong) = document.samples(property);
        let mut body = least.clone();
        let mut status = 201;
        match name {
            "gpu" => {
                good = json!({"id": GPU, "count": 2, "minCudaVersion": "12.4", "allowedCudaVersions": []});
                assert_eq!(
                    good.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(),
                    document.properties(property).into_keys().collect::<Vec<_>>(),
                    "every field of gpu is tried"
                );
            }
            "cpu" => {
                body.as_object_mut().unwrap().remove("gpu");
                status = 400;
            }
            "dataCenterIds" => good = json!(["EU-RO-1"]),
            "ports" => good = json!(["8000/http"]),
            "mounts" => good = json!({"persistent": {"size": 10, "path": "/w"}}),
            "registry" => good = Value::Null,
            "templateId" => status = 404,
            _ => {}
        }
        body[name] = good;
        let violations = document.violations(create, &body);
        assert!(violations.is_empty(), "{name}: the sample itself is wrong: {violations:?}");
        let answer = sim.call(Method::POST, "/v2/pods", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {:?}", answer.bytes);
        body[name] = wrong;
        assert!(!document.violations(create, &body).is_empty(), "{name}");
        assert_eq!(sim.call(Method::POST, "/v2/pods", body.clone()).await.status, 422, "{body}");
        seen += 1;
    }
    assert_eq!(seen, 16, "all fields of the document were tried");
    // What the document refuses is 422, but for the fields that are newer than it.
    for (more, both) in [
        (json!({"more": 1}), true),
        (json!({"name": ""}), true),
        (json!({"gpu": {"id": GPU, "more": 1}}), true),
        (json!({"gpu": {"count": 1}}), true),
        (json!({"gpu": {"id": GPU, "count": 0}}), true),
        (json!({"cloud": "ALL"}), true),
        (json!({"disk": 0}), true),
        (json!({"mounts": {"persistent": {"size": 10}}}), true),
        (json!({"mounts": {"network": [{"volumeId": "v", "path": "/a", "more": 1}]}}), true),
        (json!({"gpu": {"id": GPU, "minCudaVersion": "12"}}), true),
        (json!({"cpu": {"id": "x", "vcpuCount": 1}}), true),
        (json!({"env": {"A": null}}), true),
        (json!({"cmd": ["a"]}), false),
        (json!({"entrypoint": ["a"]}), false),
        (json!({"gpu": {"id": GPU, "minRamPerGpu": 8, "minVcpuCountPerGpu": 4}}), false),
    ] {
        let mut body = least.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert!(!document.violations(create, &body).is_empty(), "the document accepts {body}");
        let status = sim.call(Method::POST, "/v2/pods", body.clone()).await.status;
        assert_eq!(status == 422, both, "{body}: {status}");
    }
}

#[tokio::test]
async fn updates_take_the_documented_fields_and_no_others() {
    let Some(document) = document() else { return };
    let sim = Served::start(&simple(2), &["--time-scale", "0"]);
    let id = sim.create(body("sleep 600", json!({"mounts": {"persistent": {"size": 10, "path": "/w"}}}))).await;
    let update = document.schema("UpdatePodRequest");
    let patch = async |body: Value| sim.call(Method::PATCH, &format!("/v2/pods/{id}"), body).await;
    let mut seen = 0;
    for (name, property) in document.properties(update) {
        let (mut good, wrong) = document.samples(property);
        match name {
            "ports" => good = json!(["8000/http"]),
            "mounts" => good = json!({"persistent": {"size": 12, "path": "/x"}}),
            "registry" => good = Value::Null,
            "locked" => good = json!(false),
            _ => {}
        }
        let body = json!({ name: good });
        assert!(document.violations(update, &body).is_empty(), "{body}");
        let answer = patch(body.clone()).await;
        assert_eq!(answer.status, if name == "templateId" { 404 } else { 200 }, "{body}: {:?}", answer.bytes);
        assert_eq!(patch(json!({ name: wrong })).await.status, 422, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 11, "all fields of the document were tried");
    let refused = json!({"cloud": "SECURE"});
    assert!(!document.violations(update, &refused).is_empty());
    assert_eq!(patch(refused).await.status, 422);
    let action = document.schema("PodActionRequest");
    for body in [json!({}), json!({"action": "reset"}), json!({"action": "stop", "force": true})] {
        assert!(!document.violations(action, &body).is_empty());
        assert_eq!(sim.call(Method::POST, &format!("/v2/pods/{id}/action"), body).await.status, 422);
    }
}
