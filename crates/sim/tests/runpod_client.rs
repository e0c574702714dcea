//! A served simulator driven by RunPod's own published client (npm `@runpod/mcp-server` 4.0.0, which speaks REST v2): it is a server of
//! tools over its standard streams, one JSON message a line, and every tool is one request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it cannot go on")]

mod support;

use std::path::PathBuf;
use std::process::Stdio;

use hyper::Method;
use serde_json::{Value, json};
use support::pods::{GPU, simple};
use support::{PATIENCE, Served};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tradewind_harness::{Error, Tools, eventually, or_skip};

/// The client's entry point, if it and Node.js are there.
async fn entry() -> Result<PathBuf, Error> {
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status().await;
    if !node.is_ok_and(|status| status.success()) {
        return Err(Error::Missing("Node.js is not installed, which RunPod's own client needs".to_owned()));
    }
    let package = Tools::locate()?.program("npm-runpod")?;
    Ok(package.join("node_modules/@runpod/mcp-server/dist/stdio.mjs"))
}

struct Client {
    // Ends with the value.
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    asked: u64,
}

impl Client {
    async fn start(entry: PathBuf, url: &str, key: &str) -> Self {
        let mut child = Command::new("node")
            .arg(entry)
            .env("RUNPOD_API_BASE_URL", url)
            .env("RUNPOD_API_KEY", key)
            .env_remove("POSTHOG_API_KEY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut client = Self { _child: child, stdin, lines: BufReader::new(stdout).lines(), asked: 0 };
        let about = json!({"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
        let told = client.ask("initialize", about).await;
        let version = told["serverInfo"]["version"].as_str().unwrap_or_default();
        assert!(version.starts_with("4.0.0"), "the lock file pins another version than {version}");
        client.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        client
    }

    async fn send(&mut self, message: Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no answer to {method}")).unwrap().expect("the client ended");
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{message}");
                return message["result"].clone();
            }
        }
    }

    /// Calls a tool: whether it failed, and what it told.
    async fn call(&mut self, tool: &str, arguments: Value) -> (bool, Value) {
        let told = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await;
        let text = told["content"][0]["text"].as_str().unwrap_or_default();
        let told_value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        (told["isError"] == true, told_value)
    }

    /// Calls a tool that must work.
    async fn must(&mut self, tool: &str, arguments: Value) -> Value {
        let (failed, told) = self.call(tool, arguments).await;
        assert!(!failed, "{tool}: {told}");
        told
    }
}

#[tokio::test]
async fn the_providers_own_client_works() {
    let Some(entry) = or_skip(entry().await) else { return };
    let mut market = simple(2);
    market["providers"]["runpod"]["rateLimits"] = json!(true);
    let sim = Served::start(&market, &[]);
    let mut client = Client::start(entry, &sim.url("runpod"), "runpod-key").await;

    let gpus = client
        .must(
            "list-gpu-types",
            json!({"include": ["AVAILABILITY"], "product": ["POD", "CLUSTER"], "countryCodes": ["RO", "US"]}),
        )
        .await;
    assert!(gpus.to_string().contains(GPU) && gpus.to_string().contains("MEDIUM"), "{gpus}");
    let gpu = client.must("get-gpu-type", json!({"id": GPU})).await;
    assert_eq!(gpu["price"]["community"], 0.36, "{gpu}");
    let centers =
        client.must("list-data-centers", json!({"include": ["GPU_AVAILABILITY"], "regions": ["EUROPE"]})).await;
    assert!(centers.to_string().contains("EU-RO-1"), "{centers}");
    let key = "ssh-ed25519 AAAA me@example.com";
    assert_eq!(client.must("update-ssh-keys", json!({"body": {"keys": [key]}})).await, json!({"keys": [key]}));
    assert_eq!(client.must("get-ssh-keys", json!({})).await, json!({"keys": [key]}));
    assert_eq!(client.must("list-registries", json!({})).await, json!({"registries": []}));

    let body = json!({"name": "by-client", "image": "busybox", "gpu": {"id": GPU, "count": 1}, "cloud": "COMMUNITY", "dataCenterIds": ["US-KS-2"],
        "disk": 10, "ports": ["22/tcp"], "env": {"GREETING": "hello"}, "startSsh": true, "args": "sh -c 'echo says $GREETING; sleep 600'"});
    let made = client.must("create-pod", json!({"body": body})).await;
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    sim.until_pod(&id, "RUNNING").await;
    let read = client.must("get-pod", json!({"id": id})).await;
    for (name, value) in [
        ("name", json!("by-client")),
        ("status", json!("RUNNING")),
        ("cloud", json!("COMMUNITY")),
        ("dataCenterId", json!("US-KS-2")),
        ("cost", json!(0.36)),
    ] {
        assert_eq!(read[name], value, "{name} of {read}");
    }
    let listed = client.must("list-pods", json!({"includeClusterPods": true})).await;
    assert_eq!(listed["pods"].as_array().map(Vec::len), Some(1), "{listed}");
    sim.until_pod_file(&id, "log", "says hello").await;
    let log = client.must("stream-pod-logs", json!({"podId": id, "source": "container", "maxWaitMs": 1000})).await;
    assert!(log.to_string().contains("says hello"), "{log}");

    let (failed, refused) = client.call("pod-action", json!({"id": id, "body": {"action": "start"}})).await;
    assert!(failed && refused.to_string().contains("409"), "a running pod is not started: {refused}");
    let stopped = client.must("pod-action", json!({"id": id, "body": {"action": "stop"}})).await;
    assert_eq!(stopped["status"], "EXITED", "{stopped}");
    client.must("pod-action", json!({"id": id, "body": {"action": "start"}})).await;
    sim.until_pod(&id, "RUNNING").await;
    let renamed = client.must("update-pod", json!({"id": id, "body": {"name": "renamed"}})).await;
    assert_eq!(renamed["name"], "renamed", "{renamed}");
    client.must("pod-action", json!({"id": id, "body": {"action": "restart"}})).await;
    let bill = client.must("list-pod-billing", json!({"lastN": 2, "bucketSize": "hour", "podId": id})).await;
    assert_eq!(bill["metadata"]["query"]["podId"], json!(id), "{bill}");

    let (failed, refused) =
        client.call("create-pod", json!({"body": {"name": "x", "image": "y", "gpu": {"id": "none"}}})).await;
    assert!(failed && refused.to_string().contains("could not find any pods"), "{refused}");
    client.must("delete-pod", json!({"id": id})).await;
    let (failed, gone) = client.call("get-pod", json!({"id": id})).await;
    assert!(failed && gone.to_string().contains("not found"), "{gone}");
    let listed = client.must("list-pods", json!({})).await;
    assert_eq!(listed["pods"], json!([]), "{listed}");

    // It repeats a read, but not a creation whose outcome is unknown.
    for (op, tool, arguments, calls) in
        [("list", "list-pods", json!({}), 2), ("rent", "create-pod", json!({"body": body}), 1)]
    {
        let before = requests(&sim, op).await;
        sim.told(Method::POST, "/faults", json!({"op": op, "when": "after", "status": 503})).await;
        let (failed, told) = client.call(tool, arguments).await;
        assert_eq!((failed, requests(&sim, op).await - before), (calls == 1, calls), "{told}");
    }
    eventually("the pod of the failed creation", PATIENCE, || async {
        let pods = sim.read("/v2/pods").await["pods"].as_array().unwrap().len();
        if pods == 1 { Ok(()) } else { Err(format!("{pods} pods")) }
    })
    .await
    .unwrap();
}

async fn requests(sim: &Served, op: &str) -> usize {
    let events = sim.told(Method::GET, "/events", Value::Null).await;
    events["events"].as_array().unwrap().iter().filter(|event| event["op"] == op).count()
}
