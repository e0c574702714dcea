//! Calls to a served account `runpod`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tradewind_harness::eventually;

use super::{PATIENCE, Served};

pub const GPU: &str = "NVIDIA GeForce RTX 4090";

/// An answer with its headers.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// The problem document of an error: its form is checked.
    pub fn problem(&self) -> Value {
        let problem = self.json();
        assert_eq!(self.headers["content-type"], "application/problem+json", "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        assert_eq!(problem["status"], self.status, "{problem}");
        problem
    }
}

/// A market with one account `runpod` and these GPU types.
pub fn market(offers: Value) -> Value {
    json!({"providers": {"runpod": {"kind": "runpod", "apiKey": "runpod-key", "credit": 50, "offers": offers}}})
}

/// RTX 4090 in both clouds and two data centres, ready at once, `stock` at a time.
pub fn simple(stock: u32) -> Value {
    market(json!([{"id": GPU, "memory": 24, "price": {"secure": 0.72, "community": 0.36},
        "dataCenters": [{"id": "EU-RO-1", "name": "EU Romania 1"}, {"id": "US-KS-2", "name": "US Kansas 2"}], "sim": {"boot": 0, "stock": stock}}]))
}

/// A body that runs `script` in a shell, with further fields.
pub fn body(script: &str, more: Value) -> Value {
    let mut body = json!({"name": "a-pod", "image": "busybox", "gpu": {"id": GPU, "count": 1}, "disk": 10, "entrypoint": ["/bin/sh"], "cmd": ["-c", script]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// One HTTP call with headers. An error is a connection that closed without a whole answer.
pub async fn request(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Result<Answer, String> {
    let bytes = body.filter(|body| !body.is_null()).map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    raw(method, url, headers, bytes).await
}

/// The same with any bytes as body.
pub async fn raw(method: Method, url: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Answer, String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).unwrap();
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let text = |value: &hyper::header::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let bytes = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Answer { status, headers, bytes })
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// Reads a log stream until it ends or `enough` says so of what has come.
pub async fn stream(url: &str, headers: &[(&str, &str)], enough: impl Fn(&str) -> bool) -> String {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().uri(url).header("authorization", "Bearer runpod-key");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "{url}");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut text = String::new();
    let read = async {
        while !enough(&text) {
            let Some(frame) = body.frame().await else { break };
            let data = frame.unwrap().into_data().unwrap();
            text.push_str(std::str::from_utf8(&data).unwrap());
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, read).await;
    assert!(in_time.is_ok(), "the stream did not bring enough: {text}");
    text
}

/// Lines of a stream: source and text, with their ids.
pub fn lines(stream: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for event in stream.split_terminator("\n\n") {
        let (id, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let id = id.strip_prefix("id: ").unwrap();
        assert_eq!(data["ts"], id);
        let text = |name: &str| data[name].as_str().unwrap().to_owned();
        found.push((text("source"), text("line"), id.to_owned()));
    }
    found
}

impl Served {
    /// A call to the account `runpod` with its key.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let url = format!("{}{path}", self.url("runpod"));
        request(method, &url, &[("authorization", "Bearer runpod-key")], Some(body)).await.unwrap()
    }

    /// A GET that must work.
    pub async fn read(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(answer.status, 200, "{path}: {:?}", answer.bytes);
        answer.json()
    }

    /// The same for a path that is made on the way.
    pub async fn read_owned(&self, path: String) -> Value {
        self.read(&path).await
    }

    /// Creates a pod, expecting success; its id.
    pub async fn create(&self, body: Value) -> String {
        let answer = self.call(Method::POST, "/v2/pods", body).await;
        assert_eq!(answer.status, 201, "{:?}", answer.bytes);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Acts on a pod.
    pub async fn act(&self, id: &str, action: &str) -> Answer {
        self.call(Method::POST, &format!("/v2/pods/{id}/action"), json!({"action": action})).await
    }

    /// What control can do to a pod; it must work.
    pub async fn make(&self, id: &str, what: Value) -> Value {
        self.told(Method::POST, &format!("/machines/runpod/{id}"), what).await
    }

    /// The pod as control shows it.
    pub async fn seen_pod(&self, id: &str) -> Value {
        let all = self.told(Method::GET, "/machines", Value::Null).await;
        let found = all["machines"].as_array().unwrap().iter().find(|m| m["id"] == id).cloned();
        found.unwrap_or_else(|| panic!("no machine {id} in {all}"))
    }

    /// Waits until the pod is `status` and, for `RUNNING`, has telemetry.
    pub async fn until_pod(&self, id: &str, status: &str) -> Value {
        eventually(&format!("pod {id} to be {status}"), PATIENCE, || async {
            let pod = self.read(&format!("/v2/pods/{id}")).await;
            let there = status != "RUNNING" || pod["runtime"]["uptime"].is_u64();
            if pod["status"] == status && there { Ok(pod) } else { Err(pod.to_string()) }
        })
        .await
        .unwrap()
    }

    /// The pod's directory.
    pub fn pod_directory(&self, id: &str) -> PathBuf {
        Path::new(self.ready["state"].as_str().unwrap()).join(format!("machines/runpod-{id}"))
    }

    /// Waits until a file in the pod's directory holds `text`.
    pub async fn until_pod_file(&self, id: &str, name: &str, text: &str) -> String {
        let path = self.pod_directory(id).join(name);
        eventually(&format!("{} to hold {text:?}", path.display()), PATIENCE, || async {
            let found = std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            if found.contains(text) { Ok(found) } else { Err(found) }
        })
        .await
        .unwrap()
    }
}
