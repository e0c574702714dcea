//! What is rented runs: environment, restarts, ends, directories. And nothing of it survives the simulator.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{PATIENCE, Served, is_alive, simple};
use tradewind_harness::eventually;

/// A script that leaves a child in its group, one in another session, and stays.
const TREE: &str = "sleep 1000 & echo $! > a; setsid sleep 1000 & echo $! > b; (setsid setsid sh -c 'echo $$ > c; sleep 1000' &) ; echo $$ > d; echo up; wait";

/// The pids of [`TREE`].
async fn tree(sim: &Served, id: u64) -> Vec<u64> {
    sim.until_file(id, "log", "up").await;
    let mut pids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        pids.push(sim.until_file(id, name, "\n").await.trim().parse().unwrap());
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    pids
}

async fn until_dead(what: &str, pids: &[u64]) {
    eventually(what, PATIENCE, || async {
        let alive: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        if alive.is_empty() { Ok(()) } else { Err(format!("still alive: {alive:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_command_gets_exactly_its_environment_and_its_directory() {
    let sim = Served::start(&simple(1), &[]);
    let env = json!({"env": {"GREETING": "hello world", "-p 8000:8000": "1", "-p 53:53/udp": "1", "-h name": "1"}});
    let id = sim.rent_script(1001, "env > environment; pwd -P > where; echo done; sleep 1000", env).await;
    sim.until_file(id, "log", "done").await;
    let directory = sim.machine_directory(id);
    let text = std::fs::read_to_string(directory.join("environment")).unwrap();
    let found: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let mut names: Vec<&str> = found.keys().copied().collect();
    names.retain(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name)); // The shell's own.
    assert_eq!(
        names,
        [
            "CONTAINER_API_KEY",
            "CONTAINER_ID",
            "GPU_COUNT",
            "GREETING",
            "HOME",
            "PATH",
            "PUBLIC_IPADDR",
            "SIM_PORT_53",
            "SIM_PORT_8000",
            "TRADEWIND_HOST_FACTS",
            "VAST_CONTAINERLABEL",
            "VAST_TCP_PORT_8000",
            "VAST_UDP_PORT_53"
        ]
    );
    assert_eq!(found["GREETING"], "hello world");
    assert_eq!(found["CONTAINER_ID"], id.to_string());
    assert_eq!(found["VAST_CONTAINERLABEL"], format!("C.{id}"));
    assert_eq!(found["HOME"], directory.to_str().unwrap());
    assert_eq!(
        std::fs::read_to_string(directory.join("where")).unwrap().trim(),
        directory.canonicalize().unwrap().to_str().unwrap()
    );
    let machine = sim.until_status(id, "running").await;
    assert_eq!(machine["dir"], directory.to_str().unwrap());
    let (_, shown) = sim.get(&format!("/api/v0/instances/{id}/")).await;
    let ports = &shown["instances"]["ports"];
    assert_eq!(ports["8000/tcp"][0]["HostPort"], found["SIM_PORT_8000"]);
    assert_eq!(ports["53/udp"][0]["HostPort"], found["VAST_UDP_PORT_53"]);
    assert!(shown["instances"]["extra_env"].as_array().unwrap().contains(&json!(["GREETING", "hello world"])));
}

#[tokio::test]
async fn a_command_leads_its_process_group_and_is_restarted_when_it_exits() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, "echo start; [ -e again ] && sleep 1000; touch again; exit 3", json!({})).await;
    sim.until_file(id, "log", "start\nstart\n").await;
    let machine = sim.until_status(id, "running").await;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", machine["pid"])).unwrap();
    let group = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_owned();
    assert_eq!(group, machine["pid"].to_string(), "the command leads a process group of its own");
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    let exited: Vec<&Value> = events["events"].as_array().unwrap().iter().filter(|e| e["kind"] == "exited").collect();
    assert_eq!(exited.len(), 1, "{events}");
    assert_eq!(exited[0]["code"], 3);
    assert!(machine["costMicros"].is_u64() && machine["running"] == true);
}

#[tokio::test]
async fn outbid_kills_the_whole_tree_and_keeps_the_disk() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, &format!("trap '' TERM; {TREE}"), json!({"price": 0.25})).await;
    let pids = tree(&sim, id).await;
    let machine = sim.told(Method::POST, &format!("/machines/vast/{id}"), json!({"do": "outbid", "price": 0.3})).await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "the answer comes when it has happened");
    assert_eq!(
        (machine["status"].clone(), machine["pid"].clone(), machine["paid"].clone()),
        (json!("exited"), Value::Null, json!(true))
    );
    assert!(sim.machine_directory(id).join("a").exists());
    // It comes back by itself when its bid wins again, on the same disk.
    std::fs::remove_file(sim.machine_directory(id).join("c")).unwrap();
    sim.told(Method::PATCH, "/offers/vast/1001", json!({"bid": 0.2})).await;
    sim.until_status(id, "running").await;
    sim.until_file(id, "log", "up\nup\n").await;
    let pids = tree(&sim, id).await;
    let (status, _) = sim.delete(&format!("/api/v0/instances/{id}/")).await;
    assert_eq!(status, 200);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!sim.machine_directory(id).exists(), "the directory goes with the machine");
}

#[tokio::test]
async fn a_stop_asks_first_and_a_start_goes_on_with_the_disk() {
    let sim = Served::start(&simple(1), &[]);
    let script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let id = sim.rent_script(1001, script, json!({})).await;
    sim.until_file(id, "log", "up").await;
    let (status, answer) = sim.put(&format!("/api/v0/instances/{id}/"), json!({"state": "stopped"})).await;
    assert_eq!((status, answer["success"].clone()), (200, json!(true)));
    sim.until_file(id, "log", "asked").await;
    let (_, answer) = sim.put(&format!("/api/v0/instances/{id}/"), json!({"state": "running"})).await;
    assert_eq!(answer["success"], true);
    sim.until_file(id, "log", "up\nasked\nup\n").await;
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    assert!(events["events"].as_array().unwrap().iter().all(|e| e["kind"] != "exited"), "a stop is no exit: {events}");
}

#[tokio::test]
async fn who_ignores_a_stop_is_killed_after_the_grace() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, &format!("trap '' TERM; {TREE}"), json!({})).await;
    let pids = tree(&sim, id).await;
    let asked = std::time::Instant::now();
    sim.put(&format!("/api/v0/instances/{id}/"), json!({"state": "stopped"})).await;
    until_dead("the stopped tree to die", &pids).await;
    assert!(asked.elapsed() > Duration::from_secs(9), "Docker's grace is 10 s, this took {:?}", asked.elapsed());
}

#[tokio::test]
async fn an_exit_may_wipe_the_disk() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, "[ -e mark ] && echo again || echo fresh; touch mark; sleep 1000", json!({})).await;
    sim.until_file(id, "log", "fresh").await;
    sim.until_status(id, "running").await;
    let machine = sim.told(Method::POST, &format!("/machines/vast/{id}"), json!({"do": "exit", "code": 137})).await;
    assert_eq!(machine["status"], "exited");
    sim.until_file(id, "log", "fresh\nagain\n").await;
    sim.until_status(id, "running").await;
    sim.told(Method::POST, &format!("/machines/vast/{id}"), json!({"do": "exit", "wipe": true})).await;
    assert_eq!(sim.until_file(id, "log", "fresh\n").await, "fresh\n", "the log goes with the disk");
}

#[tokio::test]
async fn an_image_with_a_root_is_copied_and_its_bin_comes_first() {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("greet"), "#!/bin/sh\necho from the image\n").unwrap();
    std::fs::set_permissions(bin.join("greet"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("greet", bin.join("hello")).unwrap();
    std::fs::write(root.path().join("data"), "some data").unwrap();
    let mut market = simple(1);
    market["providers"]["vast"]["images"] =
        json!({"trainer": {"pull": 0.2, "root": root.path()}, "gone": {"error": "manifest unknown"}});
    let sim = Served::start(&market, &[]);
    let id = sim
        .rent_script(1001, "hello; cat data; echo changed > data; echo; sleep 1000", json!({"image": "trainer"}))
        .await;
    sim.until_file(id, "log", "from the image\nsome data\n").await;
    sim.until_status(id, "running").await;
    sim.told(Method::POST, &format!("/machines/vast/{id}"), json!({"do": "exit"})).await;
    sim.until_file(id, "log", "changed").await;
    assert_eq!(
        std::fs::read_to_string(root.path().join("data")).unwrap(),
        "some data",
        "the image itself stays as it is"
    );
    sim.delete(&format!("/api/v0/instances/{id}/")).await;
    let id = sim.rent_script(1001, "true", json!({"image": "gone"})).await;
    sim.until_status(id, "created").await;
    let (_, shown) = sim.get(&format!("/api/v0/instances/{id}/")).await;
    assert_eq!(shown["instances"]["status_msg"], "manifest unknown");
}

#[tokio::test]
async fn a_command_that_does_not_exist_says_so_in_the_log() {
    let sim = Served::start(&simple(1), &[]);
    let body = json!({"image": "x", "runtype": "args", "onstart": "/no/such/program", "args": ["x"]});
    let id = sim.rent(1001, body).await;
    sim.until_file(id, "log", "/no/such/program: No such file").await;
}

#[tokio::test]
async fn ssh_machines_run_their_script_and_live_on() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent(1001, json!({"image": "x", "runtype": "ssh", "onstart": "echo script; exit 7"})).await;
    sim.until_file(id, "log", "script").await;
    let machine = sim.until_status(id, "running").await;
    assert!(is_alive(machine["pid"].as_u64().unwrap()));
}

#[tokio::test]
async fn logs_and_commands_look_inside() {
    let sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, "echo one; echo two; echo three; echo x > file; sleep 1000", json!({})).await;
    sim.until_file(id, "log", "three").await;
    let (status, answer) =
        sim.put(&format!("/api/v0/instances/request_logs/{id}/"), json!({"tail": "2", "filter": "t"})).await;
    assert_eq!(status, 200, "{answer}");
    let url = answer["result_url"].as_str().unwrap().to_owned();
    let fetch = || support::call(Method::GET, &url, None, None);
    assert_eq!(fetch().await.unwrap().status, 403, "not uploaded yet");
    let fetched = fetch().await.unwrap();
    assert_eq!((fetched.status, &fetched.bytes[..]), (200, &b"two\nthree\n"[..]));
    let (status, answer) = sim.put(&format!("/api/v0/instances/command/{id}/"), json!({"command": "rm /file"})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(!sim.machine_directory(id).join("file").exists());
    let (status, answer) =
        sim.put(&format!("/api/v0/instances/command/{id}/"), json!({"command": "cat /etc/passwd"})).await;
    assert_eq!((status, answer["error"].clone()), (400, json!("invalid_args")));
}

#[tokio::test]
async fn sigterm_ends_every_machine_and_removes_the_directory() {
    let mut sim = Served::start(&simple(2), &[]);
    let (first, second) = (
        sim.rent_script(1001, TREE, json!({})).await,
        sim.rent_script(1001, &format!("trap '' TERM; {TREE}"), json!({})).await,
    );
    let pids = [tree(&sim, first).await, tree(&sim, second).await].concat();
    let state = std::path::PathBuf::from(sim.ready["state"].as_str().unwrap());
    let status = sim.end();
    assert_eq!(status.code(), Some(0));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!state.exists());
}

#[tokio::test]
async fn ctrl_c_is_as_good() {
    let mut sim = Served::start(&simple(1), &[]);
    let id = sim.rent_script(1001, TREE, json!({})).await;
    let pids = tree(&sim, id).await;
    sim.signal(Signal::INT);
    assert_eq!(sim.child.wait().unwrap().code(), Some(0));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn nothing_survives_a_killed_simulator() {
    let mut sim = Served::start(&simple(2), &[]);
    let (first, second) = (
        sim.rent_script(1001, TREE, json!({})).await,
        sim.rent_script(1001, &format!("trap '' TERM INT HUP USR1; {TREE}"), json!({})).await,
    );
    let pids = [tree(&sim, first).await, tree(&sim, second).await].concat();
    sim.signal(Signal::KILL);
    sim.child.wait().unwrap();
    until_dead("the machines of a killed simulator to die", &pids).await;
    let state = sim.ready["state"].as_str().unwrap();
    std::fs::remove_dir_all(state).unwrap();
}
