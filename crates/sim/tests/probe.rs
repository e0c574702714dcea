//! `tradewind-sim probe` against a served simulator: it does its steps, and ends what it rented whatever happens.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod support;

use hyper::Method;
use serde_json::{Value, json};
use support::{Served, simple};
use tradewind_harness::eventually;

#[tokio::test]
async fn the_probe_ends_what_it_rented() {
    let sim = Served::start(&simple(2), &[]);
    for (arguments, steps) in [
        (vec![], vec!["offers", "rent", "describe", "list", "terminate"]),
        (vec!["--spot"], vec!["offers", "rent", "describe", "list", "terminate"]),
        (vec!["--steps", "rent"], vec!["rent", "terminate"]),
        (vec!["--steps", "offers", "--max-price", "0.10"], vec!["offers"]),
    ] {
        let output = tokio::process::Command::new(support::BINARY)
            .args(["probe", "--kind", "vast", "--url", &sim.url("vast")])
            .args(&arguments)
            .env("TRADEWIND_API_KEY", "vast-key")
            .output()
            .await
            .unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(output.status.success(), "{arguments:?}: {told}");
        assert_eq!(lines.iter().map(|line| line["step"].as_str().unwrap()).collect::<Vec<_>>(), steps, "{told}");
        assert!(lines.iter().all(|line| line["ok"] == true), "{told}");
    }
    let all = sim.told(Method::GET, "/machines", Value::Null).await;
    assert_eq!(all["machines"].as_array().unwrap().len(), 3);
    assert!(all["machines"].as_array().unwrap().iter().all(|m| m["paid"] == false), "{all}");
}

#[tokio::test]
async fn the_probe_finds_what_a_lost_answer_left_and_fails() {
    let sim = Served::start(&simple(2), &[]);
    sim.told(Method::POST, "/faults", json!({"op": "rent", "when": "lost"})).await;
    let output = tokio::process::Command::new(support::BINARY)
        .args(["probe", "--kind", "vast", "--url", &sim.url("vast"), "--steps", "rent,describe"])
        .env("TRADEWIND_API_KEY", "vast-key")
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    eventually("the probe's machine to be gone", support::PATIENCE, || async {
        let all = sim.told(Method::GET, "/machines", Value::Null).await;
        let ended = all["machines"].as_array().unwrap().iter().filter(|m| m["paid"] == false).count();
        if ended == 1 { Ok(()) } else { Err(all.to_string()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_interrupted_probe_ends_what_it_rented() {
    // The machine never gets ready, so that the probe waits when the signal comes.
    let offers = json!([{"id": 1, "dph_base": 0.4, "sim": {"boot": 3600}}]);
    let sim = Served::start(&support::market(offers), &[]);
    let mut probe = tokio::process::Command::new(support::BINARY)
        .args(["probe", "--kind", "vast", "--url", &sim.url("vast")])
        .env("TRADEWIND_API_KEY", "vast-key")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let machines = async |paid: bool| {
        let all = sim.told(Method::GET, "/machines", Value::Null).await;
        let count = all["machines"].as_array().unwrap().iter().filter(|m| m["paid"] == paid).count();
        if count == 1 { Ok(()) } else { Err(all.to_string()) }
    };
    eventually("the probe to rent", support::PATIENCE, || machines(true)).await.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(probe.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(probe.wait().await.unwrap().code(), Some(1));
    machines(false).await.unwrap();
}
