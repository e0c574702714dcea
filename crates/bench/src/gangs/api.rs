//! Plain requests to the API server as its administrator: the same hand for both contenders.

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

/// Requests under way at once, of whoever applies many objects.
const AT_ONCE: usize = 8;

/// The administrator.
#[derive(Clone)]
pub struct Api(kube::Client);

impl Api {
    /// Speaks through this client.
    pub fn new(client: kube::Client) -> Self {
        Self(client)
    }

    /// What is at a path.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let request = http::Request::get(path).body(Vec::new())?;
        self.0.request(request).await.with_context(|| format!("GET {path}"))
    }

    /// The text at a path.
    pub async fn text(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        self.0.request_text(request).await.with_context(|| format!("GET {path}"))
    }

    /// Makes objects in a collection, several at a time, in this order.
    pub async fn create_all(&self, path: &str, objects: impl Iterator<Item = Value>) -> Result<()> {
        let create = |object: Value| async move {
            let request = http::Request::post(path).header("content-type", "application/json");
            let request = request.body(serde_json::to_vec(&object)?)?;
            self.0.request::<Value>(request).await.with_context(|| format!("POST {path}")).map(drop)
        };
        stream::iter(objects.map(create)).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Merges the same patch into many objects at once.
    pub async fn patch_all(&self, paths: Vec<String>, patch: &Value) -> Result<()> {
        let patch = &serde_json::to_vec(patch)?;
        let merge = |path: String| async move {
            let request = http::Request::patch(&path).header("content-type", "application/merge-patch+json");
            let request = request.body(patch.clone())?;
            self.0.request::<Value>(request).await.with_context(|| format!("PATCH {path}")).map(drop)
        };
        let everything_at_once = paths.len().max(1);
        stream::iter(paths.into_iter().map(merge)).buffer_unordered(everything_at_once).try_collect().await
    }
}
