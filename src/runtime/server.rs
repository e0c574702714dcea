//! The small HTTP server for probes and metrics. It serves no secrets and takes no input.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::context::Context;
use crate::telemetry::metrics;

/// What the process still waits for before it counts as ready, by a short word.
#[derive(Default)]
pub struct Health {
    missing: Mutex<BTreeMap<&'static str, String>>,
    /// Set once there is one: metrics about objects come from its caches.
    context: OnceLock<Arc<Context>>,
}

impl Health {
    /// Not ready because of `what`, which a sentence explains.
    pub fn waits(&self, what: &'static str, sentence: impl Into<String>) {
        let sentence = sentence.into();
        let old = self.lock().insert(what, sentence.clone());
        if old.as_ref() != Some(&sentence) {
            tracing::info!(what, sentence, "Not ready");
        }
    }

    /// `what` is no longer in the way.
    pub fn has(&self, what: &'static str) {
        self.lock().remove(what);
    }

    /// What is missing, one line each; empty = ready.
    pub fn missing(&self) -> String {
        let lines: Vec<String> = self.lock().iter().map(|(what, sentence)| format!("{what}: {sentence}\n")).collect();
        lines.concat()
    }

    /// Lets metrics see the caches.
    pub fn show(&self, context: Arc<Context>) {
        // A second context of one process would be a mistake, and is not shown.
        let _ = self.context.set(context);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on `address` (port 0: any) and serves for as long as the process lives. Returns the address.
///
/// # Errors
/// If nothing can listen there.
pub async fn serve(address: SocketAddr, health: Arc<Health>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let service = router(health);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "Server for probes and metrics ended");
        }
    });
    Ok(address)
}

fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(measure))
        .with_state(health)
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    let missing = health.missing();
    if missing.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, missing) }
}

async fn measure(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let text = metrics().render(health.context.get().map(AsRef::as_ref));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn answer(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let health = Arc::new(Health::default());
        health.waits("caches", "the watch of Pods has not listed yet");
        let address = serve(([127, 0, 0, 1], 0).into(), Arc::clone(&health)).await.unwrap();
        assert!(answer(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let text = answer(address, "/readyz").await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("caches: the watch of Pods"), "{text}");
        health.has("caches");
        assert!(answer(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(answer(address, "/metrics").await.contains("tradewind_build_info"));
        assert!(answer(address, "/other").await.starts_with("HTTP/1.1 404"));
    }
}
