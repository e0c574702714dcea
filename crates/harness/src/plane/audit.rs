//! The API server's audit log: what was asked of it, and by whom.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::{Error, Result};

/// One line a request, written when the answer is complete (a watch: when it ends).
pub(super) const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: Metadata
";

/// One finished request to the API server.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: String,
    /// Who asked.
    pub user: AuditUser,
    /// The program that asked, as it names itself.
    #[serde(default)]
    pub user_agent: String,
    /// What it was about; absent for paths that are no resource.
    pub object_ref: Option<AuditObject>,
    /// The answer's status.
    pub response_status: Option<AuditStatus>,
    /// When the request came (RFC 3339 with microseconds).
    pub request_received_timestamp: String,
    /// When the answer was complete.
    pub stage_timestamp: String,
}

/// The asking user.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditUser {
    /// Its name, such as `system:serviceaccount:tradewind-system:operator`.
    pub username: String,
}

/// The object of a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// The plural, such as `pods`.
    pub resource: String,
    /// Such as `status` or `binding`; empty without one.
    pub subresource: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Empty for lists and for creates with a generated name.
    pub name: String,
    /// Empty for the core group.
    pub api_group: String,
}

/// The status of an answer.
#[derive(Clone, Debug, Deserialize)]
pub struct AuditStatus {
    /// The HTTP status.
    pub code: u16,
}

impl AuditEvent {
    /// Says whether the request was meant to change something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// Reads the log as far as it is written; a last line without its end is left for the next time.
pub(super) fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| serde_json::from_str(line).map_err(Error::unexpected("a line of the audit log")))
        .collect()
}
