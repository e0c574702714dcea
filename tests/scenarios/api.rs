//! Between the operator and the API server: a proxy that can hold a call before it has an effect, or its answer after.
//!
//! The operator speaks plain HTTP to it; it speaks to the server with the operator's own credentials, so that the operator has
//! the rights it has in production.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::watch;

/// One call to the API server.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its body as JSON; null without one.
    pub body: Value,
}

impl Call {
    /// The method and the end of the path.
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method.as_str() == method && self.path.contains(part)
    }
}

/// Where a call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It never reaches the server unless it is let go.
    Before,
    /// The server has done it; the operator does not know.
    After,
}

type Picks = Box<dyn Fn(&Call) -> bool + Send + Sync>;

struct Rule {
    picks: Picks,
    side: Side,
    met: watch::Sender<Vec<Call>>,
    open: watch::Receiver<bool>,
}

/// A hold in force; ends with [`Hold::release`] or when the value goes.
pub struct Hold {
    met: watch::Receiver<Vec<Call>>,
    open: watch::Sender<bool>,
}

impl Hold {
    /// Waits until a call is held (and, if it is held after, until the server has done it).
    pub async fn met(&self, limit: Duration) -> Result<Call> {
        let mut met = self.met.clone();
        let met = tokio::time::timeout(limit, met.wait_for(|calls| !calls.is_empty())).await;
        let call = met.context("the call that was to be held never came")??.first().cloned();
        call.context("a call")
    }

    /// How many calls were held so far.
    pub fn held(&self) -> usize {
        self.met.borrow().len()
    }

    /// Lets everything go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Nobody may be held.
        let _ = self.open.send(true);
    }
}

#[derive(Clone)]
struct Shared {
    server: kube::Client,
    rules: Arc<Mutex<Vec<Arc<Rule>>>>,
}

/// The proxy.
pub struct ApiProxy {
    url: String,
    shared: Shared,
}

impl ApiProxy {
    /// Listens in front of the server that this kubeconfig leads to, with its credentials.
    pub async fn start(kubeconfig: &str) -> Result<Self> {
        let config = kube::config::Kubeconfig::from_yaml(kubeconfig)?;
        let mut config =
            kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await?;
        config.read_timeout = None;
        let shared = Shared { server: kube::Client::try_from(config)?, rules: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = Router::new().fallback(forward).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, shared })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Holds every call that `picks` picks, from now until the hold is released.
    pub fn hold(&self, side: Side, picks: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Hold {
        let (met, seen) = watch::channel(Vec::new());
        let (open, closed) = watch::channel(false);
        let rule = Rule { picks: Box::new(picks), side, met, open: closed };
        let mut rules = self.shared.rules.lock().expect("no holder panics");
        rules.retain(|rule| !*rule.open.borrow() && rule.open.has_changed().is_ok());
        rules.push(Arc::new(rule));
        Hold { met: seen, open }
    }
}

async fn forward(State(shared): State<Shared>, request: Request) -> Response {
    match pass(&shared, request).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = Response::new(Body::from(format!("{error:#}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

async fn pass(shared: &Shared, request: Request) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await?;
    let call = Call {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let rules: Vec<Arc<Rule>> = shared.rules.lock().expect("no holder panics").clone();
    let rule = rules.into_iter().find(|rule| !*rule.open.borrow() && (rule.picks)(&call));
    if let Some(rule) = rule.as_ref().filter(|rule| rule.side == Side::Before) {
        wait(rule, &call).await;
    }
    // The server's client brings its own.
    for name in ["host", "authorization", "connection", "content-length"] {
        parts.headers.remove(name);
    }
    parts.uri = parts.uri.path_and_query().context("a path")?.as_str().parse()?;
    let answer = shared.server.send(Request::from_parts(parts, kube::client::Body::from(body.to_vec()))).await?;
    let answer = answer.map(Body::new);
    let Some(rule) = rule.filter(|rule| rule.side == Side::After) else { return Ok(answer) };
    let (mut parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await?;
    parts.headers.remove("transfer-encoding");
    parts.headers.remove("content-length");
    wait(&rule, &call).await;
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Until the hold is over; a client that goes away meanwhile takes its call with it.
async fn wait(rule: &Rule, call: &Call) {
    rule.met.send_modify(|calls| calls.push(call.clone()));
    let mut open = rule.open.clone();
    // A hold that is gone is over.
    let _ = open.wait_for(|open| *open).await;
}
