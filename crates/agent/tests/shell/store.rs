//! A small object store on loopback: conditional writes, Content-MD5, entity tags, and faults on demand. Signatures are not looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

/// What the store does to a request before anything else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Does nothing until the rule is lifted, then does it.
    Hang,
    /// Answers with this status.
    Status(u16),
    /// Does it, then answers 500.
    LoseAnswer,
}

type Rule = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

#[derive(Default)]
pub struct Inner {
    pub objects: BTreeMap<String, Bytes>,
    pub rule: Option<Rule>,
    /// Requests to end a rental, whatever became of them.
    pub ends: Vec<End>,
}

/// A request to end a rental.
#[derive(Debug, Clone)]
pub struct End {
    pub key: String,
    pub authorization: String,
    /// The report that was stored at that moment.
    pub report: Option<Bytes>,
}

#[derive(Clone)]
pub struct Store {
    pub port: u16,
    inner: Arc<Mutex<Inner>>,
}

impl Store {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let store = Self { port: listener.local_addr().unwrap().port(), inner: Arc::default() };
        let served = store.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let limit = axum::extract::DefaultBodyLimit::disable();
                let routes =
                    Router::new().route("/{*key}", get(read).put(write).delete(end)).layer(limit).with_state(served);
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), routes).await.unwrap();
            });
        });
        store
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn put(&self, key: &str, body: impl Into<Bytes>) {
        self.lock().objects.insert(key.to_owned(), body.into());
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.lock().objects.get(key).cloned()
    }

    pub fn rule(&self, rule: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static) {
        self.lock().rule = Some(Box::new(rule));
    }

    async fn lifted(&self) {
        while self.lock().rule.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn fault(&self, method: &str, key: &str) -> Option<Fault> {
        let mut inner = self.lock();
        inner.rule.as_mut().and_then(|rule| rule(method, key))
    }
}

fn answer(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn tag(body: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(Md5::digest(body)))
}

async fn read(State(store): State<Store>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    match store.fault("GET", &key) {
        Some(Fault::Hang) => store.lifted().await,
        Some(Fault::Status(status)) => return answer(status),
        _ => {}
    }
    let Some(body) = store.get(&key) else { return answer(404) };
    let tag = tag(&body);
    if headers.get("if-none-match").is_some_and(|sent| sent.as_bytes() == tag.as_bytes()) {
        return answer(304);
    }
    Response::builder().header("etag", tag).body(Body::from(body)).unwrap()
}

async fn end(State(store): State<Store>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    let authorization =
        headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let report = store.get("mail/report.json");
    let fault = store.fault("DELETE", &key);
    store.lock().ends.push(End { key, authorization, report });
    answer(if let Some(Fault::Status(status)) = fault { status } else { 200 })
}

async fn write(State(store): State<Store>, Path(key): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let fault = store.fault("PUT", &key);
    match fault {
        Some(Fault::Hang) => store.lifted().await,
        Some(Fault::Status(status)) => return answer(status),
        _ => {}
    }
    if !headers.contains_key("content-length") {
        return answer(StatusCode::LENGTH_REQUIRED.as_u16());
    }
    if let Some(md5) = headers.get("content-md5")
        && md5.as_bytes() != STANDARD.encode(Md5::digest(&body)).as_bytes()
    {
        let text = Body::from("<Error><Code>BadDigest</Code></Error>");
        return Response::builder().status(400).body(text).unwrap();
    }
    let mut inner = store.lock();
    if headers.get("if-none-match").is_some_and(|sent| sent.as_bytes() == b"*") && inner.objects.contains_key(&key) {
        return answer(412);
    }
    inner.objects.insert(key, body);
    drop(inner);
    answer(if fault == Some(Fault::LoseAnswer) { 500 } else { 200 })
}
