//! The few plain HTTP calls that the harness itself makes on loopback. No connection is kept, so that a value may be used
//! from the runtimes of several tests.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use crate::{Error, Result};

const LIMIT: Duration = Duration::from_secs(20);

/// Sends `body` (JSON, if any) and gives back the status and the body.
pub(crate) async fn call(method: Method, url: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes)> {
    let failed = |why: String| Error::Call { call: format!("{method} {url}"), why };
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let mut request = Request::builder().method(method.clone()).uri(url);
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let bytes = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes)).map_err(|e| failed(e.to_string()))?;
    let exchange = async {
        let response = client.request(request).await.map_err(|e| failed(chain(&e)))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| failed(chain(&e)))?.to_bytes();
        Ok((status, body))
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .map_err(|_| failed(format!("no answer within {} s", LIMIT.as_secs())))?
}

/// As [`call`], but anything that is not a 2xx with JSON (or nothing: `null`) is an error.
pub(crate) async fn json(method: Method, url: &str, body: Option<&Value>) -> Result<Value> {
    let (status, bytes) = call(method.clone(), url, body).await?;
    let failed = |why: String| Error::Call { call: format!("{method} {url}"), why };
    if !status.is_success() {
        return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&bytes))));
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|e| failed(format!("the answer is not JSON: {e}")))
}

/// hyper's errors say little without their sources.
fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |e| e.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
