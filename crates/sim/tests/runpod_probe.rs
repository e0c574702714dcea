//! `tradewind-sim probe --kind runpod` against a served simulator: our own adapter meets the kind, and ends what it rented.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod support;

use hyper::Method;
use serde_json::Value;
use support::Served;
use support::pods::simple;

#[tokio::test]
async fn the_probe_ends_what_it_rented() {
    let sim = Served::start(&simple(2), &[]);
    let output = tokio::process::Command::new(support::BINARY)
        .args(["probe", "--kind", "runpod", "--url", &sim.url("runpod")])
        .env("TRADEWIND_API_KEY", "runpod-key")
        .output()
        .await
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{stderr}");
    let steps: Vec<&str> = lines.iter().map(|line| line["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["offers", "rent", "describe", "list", "terminate"], "{told}");
    assert!(lines.iter().all(|line| line["ok"] == true), "{told}");
    let all = sim.told(Method::GET, "/machines", Value::Null).await;
    assert_eq!(all["machines"].as_array().unwrap().len(), 1);
    assert!(all["machines"][0]["paid"] == false && all["machines"][0]["endedAt"].is_string(), "{all}");
}
