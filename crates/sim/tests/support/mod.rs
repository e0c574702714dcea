//! A served simulator for tests, and plain HTTP calls to it.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

pub mod fixture;
pub mod pods;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tradewind_harness::eventually;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The simulator's binary, built for this test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tradewind-sim");

/// A running simulator. It ends with the value.
pub struct Served {
    pub child: Child,
    pub ready: Value,
    pub directory: tempfile::TempDir,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }
}

impl Served {
    /// Starts the simulator on a market.
    pub fn start(market: &Value, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("market.json");
        std::fs::write(&file, market.to_string()).unwrap();
        let mut child = Command::new(BINARY)
            .args(["serve", "--market"])
            .arg(&file)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("no ready line: {error}: {line:?}"));
        Self { child, ready, directory }
    }

    pub fn url(&self, provider: &str) -> String {
        self.ready["providers"][provider]["url"].as_str().unwrap().to_owned()
    }

    /// A call to the account `vast` with its key.
    pub async fn vast(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let key = self.ready["providers"]["vast"]["apiKey"].as_str().unwrap();
        let answer = call(method, &format!("{}{path}", self.url("vast")), Some(key), Some(body)).await.unwrap();
        (answer.status, answer.json())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.vast(Method::GET, path, Value::Null).await
    }

    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.vast(Method::PUT, path, body).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.vast(Method::DELETE, path, json!({})).await
    }

    /// A call to the control API.
    pub async fn control(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}{path}", self.ready["control"].as_str().unwrap());
        let answer = call(method, &url, None, Some(body)).await.unwrap();
        (answer.status, answer.json())
    }

    /// A call to the control API that must work.
    pub async fn told(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.control(method, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The machine as control shows it.
    pub async fn machine(&self, id: u64) -> Value {
        let all = self.told(Method::GET, "/machines", Value::Null).await;
        all["machines"]
            .as_array()
            .unwrap()
            .iter()
            .find(|m| m["id"].as_str() == Some(&*id.to_string()))
            .unwrap_or_else(|| panic!("no machine {id} in {all}"))
            .clone()
    }

    /// Rents, expecting success.
    pub async fn rent(&self, offer: u64, body: Value) -> u64 {
        let (status, answer) = self.put(&format!("/api/v0/asks/{offer}/"), body).await;
        assert_eq!(status, 200, "{answer}");
        answer["new_contract"].as_u64().unwrap()
    }

    /// Rents something that runs `script` in a shell.
    pub async fn rent_script(&self, offer: u64, script: &str, more: Value) -> u64 {
        let mut body = json!({"client_id": "me", "image": "busybox", "disk": 10, "runtype": "args", "onstart": "/bin/sh", "args": ["-c", script]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.rent(offer, body).await
    }

    /// Waits until the machine's status is `word` and, for `running`, its process is there.
    pub async fn until_status(&self, id: u64, word: &str) -> Value {
        eventually(&format!("machine {id} to be {word}"), PATIENCE, || async {
            let machine = self.machine(id).await;
            let there = word != "running" || machine["pid"].is_u64();
            if machine["status"] == word && there { Ok(machine) } else { Err(machine.to_string()) }
        })
        .await
        .unwrap()
    }

    /// The machine's directory.
    pub fn machine_directory(&self, id: u64) -> PathBuf {
        Path::new(self.ready["state"].as_str().unwrap()).join(format!("machines/vast-{id}"))
    }

    /// Waits until a file in the machine's directory holds `text`.
    pub async fn until_file(&self, id: u64, name: &str, text: &str) -> String {
        let path = self.machine_directory(id).join(name);
        eventually(&format!("{} to hold {text:?}", path.display()), PATIENCE, || async {
            let found = std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            if found.contains(text) { Ok(found) } else { Err(found) }
        })
        .await
        .unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Ends the simulator as a user would.
    pub fn end(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // Asked first, so that it removes its directory.
        self.signal(Signal::TERM);
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP call. An error is a connection that closed without a whole answer.
pub async fn call(method: Method, url: &str, key: Option<&str>, body: Option<Value>) -> Result<Answer, String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let mut request = Request::builder().method(method).uri(url);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let bytes = body.filter(|body| !body.is_null()).map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes)).unwrap();
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let content_type =
            response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let bytes = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Answer { status, content_type, bytes })
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// A market with one account `vast` and these offers.
pub fn market(offers: Value) -> Value {
    json!({"providers": {"vast": {"kind": "vast", "apiKey": "vast-key", "credit": 50, "offers": offers}}})
}

/// One RTX 4090, ready at once, `stock` at a time.
pub fn simple(stock: u32) -> Value {
    market(
        json!([{"id": 1001, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "dph_base": 0.40, "min_bid": 0.20, "storage_cost": 0.15,
        "geolocation": "Norway, NO", "hosting_type": 1, "verification": "verified", "sim": {"boot": 0, "stock": stock}}]),
    )
}

/// Whether a process exists (a zombie counts as gone).
pub fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}
