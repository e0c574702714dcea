//! The operator's requests in the API server's audit log.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tradewind_harness::{
    Stack,
    plane::audit::AuditEvent,
    stack::{NAMESPACE, SERVICE_ACCOUNT},
};

/// One request of the operator.
#[derive(Debug, Clone)]
pub struct Request {
    /// When the API server got it.
    pub at: Timestamp,
    /// Such as `update trainingjobs/status`.
    pub what: String,
    /// Meant to change something.
    pub is_write: bool,
    /// About a Lease: the election, and the Node's heartbeat.
    pub is_lease: bool,
}

/// All finished requests of the operator from `from` on and before `to`, in order.
pub fn requests(stack: &Stack, from: Timestamp, to: Timestamp) -> Result<Vec<Request>> {
    of(&stack.plane.audit()?, &format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"), from, to)
}

/// The same of any user, out of what the log holds.
pub fn of(events: &[AuditEvent], user: &str, from: Timestamp, to: Timestamp) -> Result<Vec<Request>> {
    let own = events.iter().filter(|event| event.user.username == user);
    let mut found = own.map(request).collect::<Result<Vec<_>>>()?;
    found.retain(|request| request.at >= from && request.at < to);
    found.sort_by_key(|request| request.at);
    Ok(found)
}

fn request(event: &AuditEvent) -> Result<Request> {
    let object = event.object_ref.clone().unwrap_or_default();
    let resource = match object.subresource.as_str() {
        "" => object.resource.clone(),
        sub => format!("{}/{sub}", object.resource),
    };
    let at = event.request_received_timestamp.parse().context("a time in the audit log")?;
    // A dry run changes nothing, whatever its verb.
    let dry = event.request_uri.contains("dryRun=");
    let what = format!("{} {resource}{}", event.verb, if dry { " (dry run)" } else { "" });
    Ok(Request { at, what, is_write: event.is_write() && !dry, is_lease: object.resource == "leases" })
}

/// How often each was asked, leases aside; most often first.
pub fn counted(requests: &[Request]) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::<String, usize>::new();
    for request in requests.iter().filter(|r| !r.is_lease) {
        *counts.entry(request.what.clone()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// [`counted`] in a line.
pub fn told(counts: &[(String, usize)]) -> String {
    let each: Vec<String> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}
