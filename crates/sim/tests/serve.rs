//! The served simulator from outside: start and end, control, keys, searches, pages, faults, events, time.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use support::{BINARY, PATIENCE, Served, call, market, simple};

fn command(image: &str) -> Value {
    json!({"image": image, "runtype": "args", "args": ["sleep", "600"], "disk": 10})
}

#[tokio::test]
async fn ready_line_and_end() {
    let mut sim = Served::start(&simple(1), &["--seed", "9"]);
    assert_eq!(sim.ready["ready"], true);
    assert_eq!(sim.ready["pid"], sim.child.id());
    assert_eq!(sim.ready["seed"], 9);
    assert_eq!(sim.ready["providers"]["vast"]["kind"], "vast");
    assert_eq!(sim.ready["providers"]["vast"]["apiKey"], "vast-key");
    let (status, clock) = sim.control(Method::GET, "/clock", Value::Null).await;
    assert_eq!((status, clock["scale"].clone()), (200, json!(1.0)));
    let now: jiff::Timestamp = clock["now"].as_str().unwrap().parse().unwrap();
    assert!((now.as_second() - unix_now()).abs() < 60, "{now}");
    assert_eq!(sim.end().code(), Some(0));
    let mut rest = String::new();
    std::io::Read::read_to_string(sim.child.stdout.as_mut().unwrap(), &mut rest).unwrap();
    assert_eq!(rest, "", "one line and no more");
}

fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[tokio::test]
async fn fixed_ports_follow_the_names() {
    let offers = json!([{"id": 1}]);
    let two = json!({"providers": {"b": {"kind": "vast", "offers": offers}, "a": {"kind": "vast", "offers": offers}}});
    let free = three_free_ports();
    let sim = Served::start(&two, &["--listen", &format!("127.0.0.1:{free}")]);
    assert_eq!(sim.ready["control"], format!("http://127.0.0.1:{free}"));
    assert_eq!(sim.url("a"), format!("http://127.0.0.1:{}", free + 1));
    assert_eq!(sim.url("b"), format!("http://127.0.0.1:{}", free + 2));
}

/// The first of three free ports in a row, below the range from which the kernel gives ports to every connection: nothing takes them meanwhile.
fn three_free_ports() -> u16 {
    let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let from = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    (from..32_700).step_by(3).find(|&port| (port..port + 3).all(free)).expect("three free ports in a row")
}

#[test]
fn bad_files_are_refused_before_the_ready_line() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("good.json", &simple(1).to_string());
    for (market, faults, says) in [
        (write("a.json", "{"), None, "a.json: not JSON"),
        (directory.path().join("none.json").to_str().unwrap().to_owned(), None, "none.json: cannot be read"),
        (
            write("b.json", r#"{"providers": {"r": {"kind": "lambda", "offers": []}}}"#),
            None,
            r#"b.json: providers.r.kind: must be "vast" or "runpod", found "lambda""#,
        ),
        (
            good.clone(),
            Some(write("c.json", r#"[{"op": "rent"}, {"when": "soon"}]"#)),
            r#"c.json: [1].when: must be before, after, lost, garbled or hang, found "soon""#,
        ),
        (good.clone(), Some(write("d.json", "{}")), "d.json: the file: must be a list of faults, found {}"),
    ] {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--market", &market]);
        if let Some(faults) = &faults {
            command.args(["--faults", faults]);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
        assert!(stderr.contains(says), "{stderr} should say {says}");
        assert_eq!(stderr.trim().lines().count(), 1, "one sentence: {stderr}");
    }
}

#[tokio::test]
async fn searches_filter_sort_and_price() {
    let sim = Served::start(
        &market(json!([
            {"id": 1, "gpu_name": "RTX 4090", "dph_base": 0.40, "min_bid": 0.21, "storage_cost": 0.72, "verification": "verified", "hosting_type": 1, "odd": {"x": 1}},
            {"id": 2, "gpu_name": "RTX 3090", "dph_base": 0.20, "min_bid": 0.30, "verification": "unverified", "geolocation": "Quebec, CA"},
            {"id": 3, "gpu_name": "RTX 4090", "dph_base": 0.50, "sim": {"stock": 0}}
        ])),
        &["--time-scale", "0"],
    );
    let url = format!("{}/api/v0/bundles/", sim.url("vast"));
    let search = async |query: Value| {
        let answer = call(Method::POST, &url, None, Some(query.clone())).await.unwrap();
        assert_eq!(answer.content_type, "application/json", "the official client refuses any other spelling");
        assert_eq!(answer.status, 200, "{query}");
        answer.json()["offers"].as_array().unwrap().clone()
    };
    let ids =
        async |query: Value| search(query).await.iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(json!({"order": [["id", "desc"]]})).await, [3, 2, 1], "a raw call gets no defaults");
    assert_eq!(ids(json!({"rentable": {"eq": true}, "order": [["dph_total", "asc"]]})).await, [2, 1]);
    assert_eq!(ids(json!({"verified": {"eq": true}, "rented": {"eq": false}})).await, [1]);
    assert_eq!(ids(json!({"datacenter": {"eq": true}})).await, [1]);
    assert_eq!(ids(json!({"geolocation": {"in": ["CA", "US"]}})).await, [2]);
    assert_eq!(ids(json!({"gpu_name": {"in": ["RTX 4090"]}, "order": [["id", "asc"]], "limit": 1})).await, [1]);
    assert_eq!(ids(json!({"dph_total": {"lt": "0.25"}, "external": false, "has_avx": null})).await, [2]);
    assert!(ids(json!({"gpu_name": {"eq": "RTX_4090"}})).await.is_empty(), "names have spaces");

    let row = &search(json!({"id": {"eq": 1}, "allocated_storage": 100})).await[0];
    assert_eq!(
        (row["dph_base"].clone(), row["min_bid"].clone(), row["odd"].clone()),
        (json!(0.40), json!(0.21), json!({"x": 1}))
    );
    assert_eq!(row["dph_total"], json!(0.5), "0.40 and 100 GB at 0.72 a month");
    assert_eq!(row["search"]["totalHour"], json!(0.5));
    assert!(row.get("sim").is_none());
    let row = &search(json!({"id": {"eq": 1}, "type": "bid", "allocated_storage": 0})).await[0];
    assert_eq!((row["is_bid"].clone(), row["dph_total"].clone()), (json!(true), json!(0.21)));
    for bad in [
        json!({"gpu_nam": {"eq": "x"}}),
        json!({"type": "cheap"}),
        json!({"limit": -1}),
        json!({"order": "id"}),
        json!({"num_gpus": 1}),
        json!([]),
    ] {
        let answer = call(Method::POST, &url, None, Some(bad.clone())).await.unwrap();
        assert_eq!((answer.status, answer.json()["error"].clone()), (400, json!("invalid_request")), "{bad}");
    }
    let (status, asks) = sim.put("/api/v0/search/asks", json!({"select_cols": ["*"], "q": {"id": {"eq": 2}}})).await;
    assert_eq!((status, asks["offers"][0]["id"].clone()), (200, json!(2)));
}

#[tokio::test]
async fn keys_open_only_what_is_theirs() {
    let sim = Served::start(&simple(2), &[]);
    let (_, made) = sim.put("/api/v0/asks/1001/", command("x")).await;
    let (id, own) = (made["new_contract"].as_u64().unwrap(), made["instance_api_key"].as_str().unwrap().to_owned());
    let other = sim.rent(1001, command("x")).await;
    let url = |path: &str| format!("{}{path}", sim.url("vast"));
    let status = async |method: Method, path: &str, key: Option<&str>| {
        call(method, &url(path), key, Some(json!({}))).await.unwrap().status
    };
    let show = format!("/api/v0/instances/{id}/");
    assert_eq!(status(Method::GET, &show, None).await, 401);
    assert_eq!(status(Method::GET, &show, Some("wrong")).await, 401);
    assert_eq!(
        status(Method::GET, &format!("{show}?api_key=vast-key"), None).await,
        401,
        "keys in the address are not taken"
    );
    assert_eq!(status(Method::GET, "/api/v0/charges/", None).await, 403);
    assert_eq!(status(Method::GET, "/api/v0/charges/", Some("wrong")).await, 404);
    assert_eq!(status(Method::POST, "/api/v0/bundles/", Some("wrong")).await, 404);
    assert_eq!(status(Method::GET, "/api/v0/instances/", Some(&own)).await, 401, "a machine's key does not list");
    assert_eq!(status(Method::DELETE, &format!("/api/v0/instances/{other}/"), Some(&own)).await, 401);
    assert_eq!(status(Method::GET, &show, Some(&own)).await, 200);
    assert_eq!(status(Method::DELETE, &show, Some(&own)).await, 200, "a machine may end itself");
    assert_eq!(status(Method::GET, &show, Some(&own)).await, 401);
    assert_eq!(sim.get(&show).await, (200, json!({"instances": null})));
    assert_eq!(sim.get("/api/v0/nothing/").await.0, 404);
    sim.told(Method::PATCH, "/providers/vast", json!({"apiKey": "new-key"})).await;
    assert_eq!(sim.get(&show).await.0, 401);
    assert_eq!(status(Method::GET, &show, Some("new-key")).await, 200);
}

#[tokio::test]
async fn lists_have_pages_filters_and_columns() {
    let sim = Served::start(&simple(60), &[]);
    for number in 0..30 {
        let mut body = command("x");
        body["label"] = json!(if number % 3 == 0 { "third" } else { "other" });
        sim.rent(1001, body).await;
    }
    let (_, first) = sim.get("/api/v1/instances/?limit=100").await;
    assert_eq!((first["instances"].as_array().unwrap().len(), first["total_instances"].clone()), (25, json!(30)));
    assert_eq!(first["label_counts"], json!({"third": 10, "other": 20}));
    let token = first["next_token"].as_str().unwrap().replace('+', "%2B").replace('=', "%3D");
    // What ends between two pages moves nothing else out of sight.
    let gone = first["instances"][3]["id"].as_u64().unwrap();
    sim.delete(&format!("/api/v0/instances/{gone}/")).await;
    let (_, second) = sim.get(&format!("/api/v1/instances/?after_token={token}")).await;
    assert_eq!(second["instances"].as_array().unwrap().len(), 5);
    assert_eq!(second["next_token"], Value::Null);
    let filter = "select_filters=%7B%22label%22%3A%7B%22eq%22%3A%22third%22%7D%7D&select_cols=%5B%22id%22%2C%22nope%22%5D&order_by=%5B%7B%22col%22%3A%22id%22%2C%22dir%22%3A%22desc%22%7D%5D";
    let (_, third) = sim.get(&format!("/api/v1/instances/?{filter}")).await;
    let rows = third["instances"].as_array().unwrap();
    assert!(rows.iter().all(|row| row.as_object().unwrap().len() == 2 && row["nope"].is_null()), "{third}");
    assert!(rows.is_sorted_by(|a, b| a["id"].as_u64() > b["id"].as_u64()));
    assert_eq!(sim.get("/api/v1/instances/?limit=0").await.1["instances"].as_array().unwrap().len(), 5);
    assert_eq!(sim.get("/api/v0/instances").await.1["instances"].as_array().unwrap().len(), 29);
}

#[tokio::test]
async fn creations_that_do_not_start() {
    let sim = Served::start(&simple(1), &["--time-scale", "0"]);
    let with = |more: Value| {
        let mut body = command("x");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    // A losing bid: an error, and all the same a stopped machine whose disk is billed.
    let (status, lost) = sim.put("/api/v0/asks/1001/", with(json!({"price": 0.1}))).await;
    assert_eq!((status, lost["success"].clone(), lost["error"].clone()), (400, json!(false), json!("invalid_price")));
    let leftover = lost["new_contract"].as_u64().unwrap();
    let machine = sim.machine(leftover).await;
    assert_eq!((machine["paid"].clone(), machine["running"].clone()), (json!(true), json!(false)));
    let (_, shown) = sim.get(&format!("/api/v0/instances/{leftover}/")).await;
    let row = &shown["instances"];
    for name in ["intended_status", "cur_state", "next_state"] {
        assert_eq!(row[name], "stopped");
    }
    let (status, refused) = sim.put("/api/v0/asks/1001/", with(json!({"price": 0.1, "cancel_unavail": true}))).await;
    assert_eq!((status, refused["error"].clone(), refused.get("new_contract")), (410, json!("no_such_ask"), None));
    // Sold out: on demand fails by default, a bid is parked.
    sim.rent(1001, with(json!({}))).await;
    assert_eq!(sim.put("/api/v0/asks/1001/", with(json!({}))).await.0, 410);
    let (status, parked) = sim.put("/api/v0/asks/1001/", with(json!({"price": 0.3}))).await;
    assert_eq!((status, parked["success"].clone()), (200, json!(true)));
    let parked = parked["new_contract"].as_u64().unwrap();
    let (status, queued) = sim.put(&format!("/api/v0/instances/{parked}/"), json!({"state": "running"})).await;
    assert_eq!(
        (status, queued["success"].clone(), queued["error"].clone()),
        (200, json!(false), json!("resources_unavailable"))
    );
    assert_eq!(sim.put("/api/v0/asks/4/", with(json!({}))).await.0, 404);
    sim.told(Method::PATCH, "/providers/vast", json!({"credit": 0})).await;
    let (status, poor) = sim.put("/api/v0/asks/1001/", with(json!({}))).await;
    assert_eq!((status, poor["error"].clone()), (400, json!("insufficient_credit")));
}

#[tokio::test]
async fn every_kind_of_fault() {
    let sim = Served::start(&simple(20), &[]);
    let url = format!("{}/api/v0/asks/1001/", sim.url("vast"));
    let count = async || sim.told(Method::GET, "/machines", Value::Null).await["machines"].as_array().unwrap().len();
    let arm = async |fault: Value| {
        sim.told(Method::POST, "/faults", fault).await;
    };
    let rent = async || call(Method::PUT, &url, Some("vast-key"), Some(command("x"))).await;

    arm(json!({"op": "rent", "when": "before"})).await;
    assert_eq!((rent().await.unwrap().status, count().await), (500, 0));
    arm(json!({"op": "rent", "when": "after", "status": 503, "message": "come back"})).await;
    let answer = rent().await.unwrap();
    assert_eq!((answer.status, answer.json()["msg"].clone(), count().await), (503, json!("come back"), 1));
    arm(json!({"provider": "vast", "op": "*", "when": "lost", "times": 2})).await;
    rent().await.unwrap_err();
    rent().await.unwrap_err();
    assert_eq!(count().await, 3);
    arm(json!({"op": "rent", "when": "garbled"})).await;
    let answer = rent().await.unwrap();
    assert!(answer.status == 200 && serde_json::from_slice::<Value>(&answer.bytes).is_err());
    assert_eq!(count().await, 4);
    arm(json!({"op": "rent", "when": "hang", "seconds": 0.7})).await;
    let (before, answer) = (Instant::now(), rent().await.unwrap());
    assert!(answer.status == 200 && before.elapsed() >= Duration::from_millis(700));
    assert_eq!(count().await, 5);
    assert_eq!(rent().await.unwrap().status, 200, "used up");
    arm(json!({"op": "list", "times": 5})).await;
    assert_eq!(sim.told(Method::GET, "/faults", Value::Null).await["faults"][0]["times"], 5);
    sim.told(Method::DELETE, "/faults", Value::Null).await;
    assert_eq!(sim.get("/api/v1/instances/").await.0, 200);
    for (op, method, path) in [
        ("offers", Method::POST, "bundles/"),
        ("describe", Method::GET, "instances/1/"),
        ("terminate", Method::DELETE, "instances/1/"),
        ("bid", Method::PUT, "instances/bid_price/1/"),
        ("logs", Method::PUT, "instances/request_logs/1/"),
        ("account", Method::GET, "users/current/"),
        ("charges", Method::GET, "charges/"),
    ] {
        arm(json!({"op": op, "status": 502})).await;
        assert_eq!(sim.vast(method, &format!("/api/v0/{path}"), json!({})).await.0, 502, "{op}");
    }
    for (op, body) in [
        ("start", json!({"state": "running"})),
        ("stop", json!({"state": "stopped"})),
        ("label", json!({"label": "x"})),
    ] {
        arm(json!({"op": op, "status": 502})).await;
        assert_eq!(sim.put("/api/v0/instances/1/", body).await.0, 502, "{op}");
    }
    let (status, refused) = sim.control(Method::POST, "/faults", json!({"op": "lend"})).await;
    assert!(status == 400 && refused["error"].as_str().unwrap().starts_with("op: must be"), "{refused}");
}

#[tokio::test]
async fn faults_may_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("faults.json");
    std::fs::write(&file, r#"[{"op": "account", "status": 418}]"#).unwrap();
    let sim = Served::start(&simple(1), &["--faults", file.to_str().unwrap()]);
    assert_eq!(sim.get("/api/v0/users/current/").await.0, 418);
    assert_eq!(sim.get("/api/v0/users/current/").await.0, 200);
}

#[tokio::test]
async fn control_does_what_it_says() {
    let sim = Served::start(&simple(3), &["--time-scale", "0"]);
    let mut body = command("x");
    body["price"] = json!(0.25);
    let id = sim.rent(1001, body).await;
    sim.told(Method::POST, "/clock", json!({"advance": 1})).await;
    let act = async |action: Value| sim.control(Method::POST, &format!("/machines/vast/{id}"), action).await;
    let (_, machine) = act(json!({"do": "status", "value": "frozen_solid"})).await;
    assert_eq!(machine["status"], "frozen_solid");
    assert_eq!(sim.get(&format!("/api/v0/instances/{id}/")).await.1["instances"]["actual_status"], "frozen_solid");
    assert_eq!(act(json!({"do": "status"})).await.1["status"], "running");
    assert_eq!(act(json!({"do": "fail"})).await.0, 409);
    assert_eq!(act(json!({"do": "dance"})).await.0, 400);
    assert_eq!(act(json!({"do": "outbid", "prise": 1})).await.0, 400);
    assert_eq!(act(json!({"do": "outbid", "price": 0.2})).await.0, 409);
    assert_eq!(act(json!({"do": "outbid", "price": 0.4})).await.0, 200);
    let offers = sim.told(Method::GET, "/offers", Value::Null).await;
    assert_eq!((offers["offers"][0]["bid"].clone(), offers["offers"][0]["stock"].clone()), (json!(0.4), json!(3)));
    assert_eq!(sim.control(Method::POST, "/machines/vast/7", json!({"do": "reclaim"})).await.0, 404);
    let on_demand = sim.rent(1001, command("x")).await;
    let (status, refused) =
        sim.control(Method::POST, &format!("/machines/vast/{on_demand}"), json!({"do": "outbid"})).await;
    assert!(status == 409 && refused["error"].as_str().unwrap().contains("on demand"), "{refused}");
    let (_, gone) = sim.control(Method::POST, &format!("/machines/vast/{on_demand}"), json!({"do": "reclaim"})).await;
    assert_eq!(
        (gone["status"].clone(), gone["paid"].clone(), gone["pid"].clone()),
        (json!("offline"), json!(false), Value::Null)
    );
    sim.told(Method::PATCH, "/offers/vast/1001", json!({"stock": 0, "price": 0.5})).await;
    assert_eq!(sim.put("/api/v0/asks/1001/", command("x")).await.0, 410);
    assert_eq!(sim.control(Method::PATCH, "/offers/vast/9", json!({"stock": 0})).await.0, 404);
    assert_eq!(sim.control(Method::PATCH, "/offers/vast/1001", json!({"stock": -1})).await.0, 400);
    assert_eq!(sim.control(Method::GET, "/nothing", Value::Null).await.0, 404);
}

#[tokio::test]
async fn with_the_clock_at_rest_the_same_calls_give_the_same_market() {
    let offers = json!([
        {"id": 1, "dph_base": 0.36, "min_bid": 0.18, "sim": {"boot": [1, 60], "stock": 3, "lifetime": 900, "prices": [[600, 0.5], [1200, 0.1]]}},
        {"id": 2, "dph_base": 0.72, "sim": {"boot": 5, "stock": 3, "refuse": 0.5}}
    ]);
    let run = async |seed: &str| {
        let sim = Served::start(&market(offers.clone()), &["--time-scale", "0", "--seed", seed]);
        let epoch = started(&sim).await;
        for step in 0..6 {
            for offer in [1, 2] {
                let mut body = command("x");
                if step % 2 == 0 && offer == 1 {
                    body["price"] = json!(0.2);
                }
                sim.put(&format!("/api/v0/asks/{offer}/"), body).await;
            }
            sim.told(Method::POST, "/clock", json!({"advance": 333.5})).await;
        }
        let machines = sim.told(Method::GET, "/machines", Value::Null).await;
        let events = sim.told(Method::GET, "/events", Value::Null).await;
        (relative(&machines, epoch), relative(&events, epoch))
    };
    let (first, second, other) = (run("3").await, run("3").await, run("4").await);
    assert_eq!(first, second);
    assert_ne!(first.0, other.0, "another seed is another market");
    assert!(first.0["totalMicros"].as_u64().unwrap() > 0);
}

async fn started(sim: &Served) -> jiff::Timestamp {
    sim.told(Method::GET, "/clock", Value::Null).await["now"].as_str().unwrap().parse().unwrap()
}

/// The same with times counted from the start, and without what a process's number or directory is.
fn relative(value: &Value, epoch: jiff::Timestamp) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| !["pid", "dir"].contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name.clone(), relative(value, epoch))).collect())
        }
        Value::Array(list) => list.iter().map(|value| relative(value, epoch)).collect(),
        Value::String(text) => text
            .parse::<jiff::Timestamp>()
            .map_or_else(|_| value.clone(), |at| json!(at.duration_since(epoch).as_micros().to_string())),
        other => other.clone(),
    }
}

#[tokio::test]
async fn the_clock_may_run_faster() {
    let sim = Served::start(&simple(1), &["--time-scale", "0"]);
    let id = sim.rent(1001, command("x")).await;
    sim.told(Method::POST, "/clock", json!({"advance": 0, "scale": 100_000})).await;
    tradewind_harness::eventually("an hour to pass", PATIENCE, || async {
        let cost = sim.machine(id).await["costMicros"].as_u64().unwrap();
        if cost >= 400_000 { Ok(()) } else { Err(format!("cost {cost}")) }
    })
    .await
    .unwrap();
    assert_eq!(sim.control(Method::POST, "/clock", json!({})).await.0, 400);
    assert_eq!(sim.control(Method::POST, "/clock", json!({"advance": -5})).await.0, 400);
}

#[tokio::test]
async fn events_tell_everything_but_secrets() {
    let sim = Served::start(&simple(1), &[]);
    let mut body = command("x");
    body["env"] = json!({"TOKEN": "s3cr3t-value"});
    body["label"] = json!("a-label");
    let id = sim.rent(1001, body).await;
    let instance_key = sim.get(&format!("/api/v0/instances/{id}/?api_key=vast-key")).await;
    assert_eq!(instance_key.0, 200);
    sim.until_status(id, "running").await;
    sim.delete(&format!("/api/v0/instances/{id}/")).await;
    let events = sim.told(Method::GET, "/events?after=0", Value::Null).await;
    let list = events["events"].as_array().unwrap();
    let own: Vec<&str> = list.iter().filter(|e| e["kind"] != "request").map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(own, ["created", "running", "terminated"]);
    let rent = list.iter().find(|e| e["op"] == "rent").unwrap();
    assert_eq!(
        (rent["method"].clone(), rent["path"].clone(), rent["status"].clone()),
        (json!("PUT"), json!("/api/v0/asks/1001/"), json!(200))
    );
    let text = events.to_string();
    assert!(!text.contains("s3cr3t-value") && !text.contains("vast-key"), "{text}");
    let next = events["next"].as_u64().unwrap();
    assert_eq!(next, list.last().unwrap()["seq"].as_u64().unwrap());
    assert_eq!(sim.told(Method::GET, &format!("/events?after={next}"), Value::Null).await["events"], json!([]));
    assert_eq!(sim.control(Method::GET, "/events?after=x", Value::Null).await.0, 400);
}
