//! What is created as a pod runs: environment, restarts, disks, logs, ends.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

mod support;

use std::collections::BTreeMap;

use hyper::Method;
use serde_json::{Value, json};
use support::pods::{GPU, body, lines, request, simple, stream};
use support::{PATIENCE, Served, is_alive};
use tradewind_harness::eventually;

async fn pid(sim: &Served, id: &str) -> u64 {
    eventually("the pod's process", PATIENCE, || async {
        let seen = sim.seen_pod(id).await;
        seen["pid"].as_u64().ok_or_else(|| seen.to_string())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_command_gets_exactly_its_environment_and_its_directory() {
    let sim = Served::start(&simple(1), &[]);
    let more = json!({"env": {"GREETING": "hello world"}, "ports": ["22/tcp", "8000/http", "70001/tcp"], "gpu": {"id": GPU, "count": 2}, "dataCenterIds": ["US-KS-2"]});
    let id = sim.create(body("env > environment; pwd -P > where; echo done; sleep 1000", more)).await;
    sim.until_pod_file(&id, "log", "done").await;
    let directory = sim.pod_directory(&id);
    let text = std::fs::read_to_string(directory.join("environment")).unwrap();
    let found: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let mut names: Vec<&str> = found.keys().copied().collect();
    names.retain(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name)); // The shell's own.
    assert_eq!(
        names,
        [
            "CUDA_VERSION",
            "GREETING",
            "HOME",
            "PATH",
            "RUNPOD_API_KEY",
            "RUNPOD_CPU_COUNT",
            "RUNPOD_DC_ID",
            "RUNPOD_GPU_COUNT",
            "RUNPOD_POD_HOSTNAME",
            "RUNPOD_POD_ID",
            "RUNPOD_PUBLIC_IP",
            "RUNPOD_TCP_PORT_22",
            "RUNPOD_TCP_PORT_70001",
            "SIM_PORT_22",
            "SIM_PORT_70001",
            "SIM_PORT_8000",
            "TRADEWIND_HOST_FACTS",
        ]
    );
    assert_eq!((found["GREETING"], found["RUNPOD_POD_ID"]), ("hello world", id.as_str()));
    assert_eq!((found["RUNPOD_GPU_COUNT"], found["RUNPOD_DC_ID"]), ("2", "US-KS-2"));
    assert_eq!(found["HOME"], directory.to_str().unwrap());
    let inside = std::fs::read_to_string(directory.join("where")).unwrap();
    assert_eq!(inside.trim(), directory.canonicalize().unwrap().to_str().unwrap());
    let pod = sim.until_pod(&id, "RUNNING").await;
    let public = |private: u64| {
        let ports = pod["runtime"]["ports"].as_array().unwrap();
        ports.iter().find(|port| port["private"] == private).unwrap()["public"].to_string()
    };
    assert_eq!(public(22), found["RUNPOD_TCP_PORT_22"]);
    assert_eq!(public(8000), found["SIM_PORT_8000"]);
    // The pod's own key opens nothing.
    let url = format!("{}/v2/pods/{id}", sim.url("runpod"));
    let own = format!("Bearer {}", found["RUNPOD_API_KEY"]);
    let answer = request(Method::DELETE, &url, &[("authorization", &own)], None).await.unwrap();
    assert_eq!((answer.status, answer.problem()["detail"].clone()), (403, json!("access denied")));
}

#[tokio::test]
async fn a_command_that_exits_is_started_again_with_its_disk() {
    let sim = Served::start(&simple(1), &[]);
    let script = "echo start >> starts; echo up; [ $(wc -l < starts) -ge 3 ] && sleep 1000; sleep 2; exit 3";
    let id = sim.create(body(script, json!({}))).await;
    sim.until_pod_file(&id, "log", "up").await;
    // Uptimes as they are seen; each restart makes them fall.
    let uptimes = std::cell::RefCell::new(Vec::new());
    eventually("two restarts to be seen", PATIENCE, || async {
        let pod = sim.read(&format!("/v2/pods/{id}")).await;
        let uptime = pod["runtime"]["uptime"].as_u64().ok_or_else(|| pod.to_string())?;
        assert_eq!(pod["status"], "RUNNING", "an exit does not show in the status");
        let mut seen = uptimes.borrow_mut();
        seen.push(uptime);
        let falls = seen.windows(2).filter(|pair| pair[1] < pair[0]).count();
        if falls == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
    .unwrap();
    sim.until_pod_file(&id, "starts", "start\nstart\nstart\n").await;
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    let codes: Vec<&Value> =
        events["events"].as_array().unwrap().iter().filter(|e| e["kind"] == "exited").map(|e| &e["code"]).collect();
    assert_eq!(codes, [&json!(3), &json!(3)]);
}

#[tokio::test]
async fn a_restart_wipes_the_containers_disk_but_not_a_volume() {
    let sim = Served::start(&simple(2), &[]);
    let script = "[ -e mark ] && word=again || word=fresh; touch mark; echo $word; sleep 1000";
    let volume = json!({"mounts": {"persistent": {"size": 10, "path": "/workspace"}}});
    let (plain, kept) = (sim.create(body(script, json!({}))).await, sim.create(body(script, volume)).await);
    for id in [&plain, &kept] {
        sim.until_pod_file(id, "log", "fresh").await;
        sim.until_pod(id, "RUNNING").await;
        // Whoever reads the log before sees it whole afterwards.
        stream(&format!("{}/v2/pods/{id}/logs?source=container", sim.url("runpod")), &[], |text| !text.is_empty())
            .await;
        assert_eq!(sim.act(id, "stop").await.status, 200);
        assert_eq!(sim.act(id, "start").await.status, 200);
    }
    sim.until_pod_file(&kept, "log", "fresh\nagain\n").await;
    eventually("the wiped pod to start afresh", PATIENCE, || async {
        let log = stream(&format!("{}/v2/pods/{plain}/logs?source=container", sim.url("runpod")), &[], |text| {
            !text.is_empty()
        })
        .await;
        let told: Vec<String> = lines(&log).into_iter().map(|(_, line, _)| line).collect();
        if told == ["fresh", "fresh"] { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert_eq!(sim.until_pod_file(&plain, "log", "fresh").await, "fresh\n", "the log file went with the disk");
    sim.until_pod(&plain, "RUNNING").await;
    sim.make(&plain, json!({"do": "exit", "code": 137})).await;
    sim.until_pod_file(&plain, "log", "fresh\nagain\n").await;
    sim.until_pod(&plain, "RUNNING").await;
    sim.make(&plain, json!({"do": "exit", "wipe": true})).await;
    sim.until_pod_file(&plain, "log", "fresh").await;
}

#[tokio::test]
async fn the_log_is_a_stream_of_events() {
    let mut market = simple(2);
    market["providers"]["runpod"]["images"] = json!({"gone": {"pull": 0.1, "error": "manifest for gone not found"}});
    let sim = Served::start(&market, &[]);
    let id = sim
        .create(body(
            "echo one; echo two >&2; while [ ! -e go ]; do sleep 0.05; done; echo three; sleep 1000",
            json!({}),
        ))
        .await;
    sim.until_pod_file(&id, "log", "one\ntwo\n").await;
    let url = |query: &str| format!("{}/v2/pods/{id}/logs{query}", sim.url("runpod"));
    let text = stream(&url(""), &[], |text| text.contains("two")).await;
    let told = lines(&text);
    assert!(told.iter().any(|(source, line, _)| source == "system" && line == "create container busybox"), "{text}");
    let container = |text: &str| -> Vec<String> {
        lines(text).into_iter().filter(|line| line.0 == "container").map(|line| line.1).collect()
    };
    assert_eq!(container(&text), ["one", "two"]);
    assert_eq!(container(&stream(&url("?source=container&tail=1"), &[], |text| !text.is_empty()).await), ["two"]);
    let id_of = |name: &str| told.iter().find(|line| line.1 == name).unwrap().2.clone();
    let resumed =
        stream(&url("?source=container&tail=0"), &[("last-event-id", &id_of("one"))], |t| !t.is_empty()).await;
    assert_eq!(container(&resumed), ["two"]);
    let since = stream(&url(&format!("?source=container&since={}", id_of("two"))), &[], |t| !t.is_empty()).await;
    assert_eq!(container(&since), ["two"]);
    // What is printed while somebody reads comes by itself, and the stream ends with the pod.
    let live = url("?source=container&tail=0");
    let reader = tokio::spawn(async move { stream(&live, &[], |text| text.contains("never")).await });
    std::fs::write(sim.pod_directory(&id).join("go"), "").unwrap();
    sim.until_pod_file(&id, "log", "three").await;
    stream(&url("?source=container"), &[], |text| text.contains("three")).await;
    assert_eq!(sim.call(Method::DELETE, &format!("/v2/pods/{id}"), Value::Null).await.status, 204);
    let text = tokio::time::timeout(PATIENCE, reader).await.unwrap().unwrap();
    assert!(container(&text).len() <= 1 && (text.is_empty() || text.contains("three")), "{text}");
    for query in ["?source=kernel", "?tail=5001", "?tail=x", "?since=yesterday"] {
        let refused = sim.call(Method::GET, &format!("/v2/pods/{id}/logs{query}"), Value::Null).await;
        assert_eq!(refused.status, 404, "a pod that is gone has no log");
    }

    let gone = sim.create(body("true", json!({"image": "gone"}))).await;
    sim.until_pod(&gone, "EXITED").await;
    let url = format!("{}/v2/pods/{gone}/logs?source=system", sim.url("runpod"));
    let text = stream(&url, &[], |text| text.contains("pulling")).await;
    assert!(text.contains("error pulling image: manifest for gone not found"), "{text}");
    for query in ["?source=kernel", "?tail=5001", "?tail=x", "?since=yesterday"] {
        let refused = sim.call(Method::GET, &format!("/v2/pods/{gone}/logs{query}"), Value::Null).await;
        assert_eq!(refused.status, 422, "{query}");
        refused.problem();
    }
}

#[tokio::test]
async fn a_cut_log_is_half_of_what_there_is() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.create(body("echo one; sleep 1000", json!({}))).await;
    sim.until_pod_file(&id, "log", "one").await;
    sim.told(Method::POST, "/faults", json!({"op": "logs", "when": "garbled"})).await;
    let url = format!("{}/v2/pods/{id}/logs?source=container", sim.url("runpod"));
    let text = stream(&url, &[], |_| false).await;
    assert!(text.starts_with("id: ") && !text.ends_with("\n\n"), "{text}");
}

#[tokio::test]
async fn a_stop_asks_first_and_a_termination_leaves_nothing() {
    let sim = Served::start(&simple(1), &[]);
    let volume = json!({"mounts": {"persistent": {"size": 10, "path": "/workspace"}}});
    let script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let id = sim.create(body(script, volume)).await;
    sim.until_pod_file(&id, "log", "up").await;
    assert_eq!(sim.act(&id, "stop").await.json()["status"], "EXITED");
    sim.until_pod_file(&id, "log", "asked").await;
    assert_eq!(sim.act(&id, "start").await.status, 200);
    sim.until_pod_file(&id, "log", "up\nasked\nup\n").await;
    let running = pid(&sim, &id).await;
    assert_eq!(sim.call(Method::DELETE, &format!("/v2/pods/{id}"), Value::Null).await.status, 204);
    assert!(!is_alive(running) && !sim.pod_directory(&id).exists());
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    assert!(events["events"].as_array().unwrap().iter().all(|e| e["kind"] != "exited"), "a stop is no exit: {events}");
}

#[tokio::test]
async fn a_reclaimed_pod_runs_no_more_and_keeps_no_file() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.create(body("echo up; sleep 1000", json!({"cloud": "COMMUNITY"}))).await;
    sim.until_pod_file(&id, "log", "up").await;
    let running = pid(&sim, &id).await;
    sim.make(&id, json!({"do": "reclaim"})).await;
    assert!(!is_alive(running));
    assert!(!sim.pod_directory(&id).join("log").exists());
    assert_eq!(sim.read(&format!("/v2/pods/{id}")).await["status"], "EXITED");
}
