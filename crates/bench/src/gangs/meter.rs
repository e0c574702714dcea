//! Reading what a contender costs: requests as the API server counts them, memory and processor time as the kernel does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use tradewind_core::{Clock, SystemClock};

use super::api::Api;

/// The kernel counts processor time in hundredths of a second for everybody who asks (`USER_HZ`), on all that Rust's Linux targets run on.
const TICKS: f64 = 100.0;

/// A FlowSchema of its own for each: whatever a ServiceAccount asks is counted under its name.
pub fn schema(name: &str, namespace: &str, account: &str) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": { "name": name },
        "spec": {
            // Before every schema that comes with Kubernetes besides that of administrators and probes; the level is the one that
            // Kubernetes' own controllers have, for all alike.
            "matchingPrecedence": 50, "priorityLevelConfiguration": { "name": "workload-high" },
            "distinguisherMethod": { "type": "ByUser" },
            "rules": [{
                "subjects": [{ "kind": "ServiceAccount", "serviceAccount": { "namespace": namespace, "name": account } }],
                "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"] }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            }],
        },
    })
}

/// What a process and its requests have cost until a moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The moment.
    pub at: Timestamp,
    /// Requests that the API server has taken from each FlowSchema.
    pub requests: BTreeMap<String, u64>,
    /// Of the process.
    pub process: Usage,
    /// Processor time of this very program, which plays administrator, agents and the way to the store.
    pub bench_cpu_s: f64,
    /// Processor time of the object store.
    pub store_cpu_s: f64,
    /// Requests of the played agents to the store.
    pub agent_requests: u64,
}

/// Memory and processor time of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_s: f64,
    /// Resident memory now, in KiB.
    pub resident: u64,
    /// The most that was resident, in KiB.
    pub peak: u64,
}

/// Reads all of it but what agents count. `store` is the object store's process, if there is one.
pub async fn read(api: &Api, process: u32, store: Option<u32>) -> Result<Reading> {
    let requests = dispatched(&api.text("/metrics").await?);
    let store_cpu_s = store.map(usage).transpose()?.map_or(0.0, |usage| usage.cpu_s);
    let bench_cpu_s = usage(std::process::id())?.cpu_s;
    let (at, process) = (SystemClock::default().now(), usage(process)?);
    Ok(Reading { at, requests, process, bench_cpu_s, store_cpu_s, agent_requests: 0 })
}

impl Reading {
    /// Requests under a schema since an earlier reading.
    pub fn requests_since(&self, before: &Self, schema: &str) -> u64 {
        let count = |reading: &Self| reading.requests.get(schema).copied().unwrap_or(0);
        count(self).saturating_sub(count(before))
    }

    /// Seconds since an earlier reading.
    pub fn seconds_since(&self, before: &Self) -> f64 {
        self.at.duration_since(before.at).as_secs_f64()
    }
}

/// Requests by FlowSchema, over all priority levels.
fn dispatched(metrics: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let lines = metrics.lines().filter_map(|l| l.strip_prefix("apiserver_flowcontrol_dispatched_requests_total{"));
    for line in lines {
        let Some((labels, count)) = line.split_once("} ") else { continue };
        let schema = labels.split(',').find_map(|label| label.strip_prefix("flow_schema=\""));
        let (Some(schema), Some(count)) = (schema, whole(count)) else { continue };
        *counts.entry(schema.trim_end_matches('"').to_owned()).or_default() += count;
    }
    counts
}

/// A counter as Prometheus' text format writes it: large ones as `1.234567e+06`.
fn whole(text: &str) -> Option<u64> {
    let value: f64 = text.trim().parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and not negative")]
    (value >= 0.0).then_some(value as u64)
}

/// Looks at a process.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{name}")).with_context(|| format!("looking at process {pid}"))
    };
    parse_usage(&read("stat")?, &read("status")?).with_context(|| format!("what the kernel says of process {pid}"))
}

fn parse_usage(stat: &str, status: &str) -> Option<Usage> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>().ok().map(f64::from));
    let ticks = times.next()?? + times.next()??;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    Some(Usage { cpu_s: ticks / TICKS, resident: kib("VmRSS")?, peak: kib("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let name = "apiserver_flowcontrol_dispatched_requests_total";
        let text = format!(
            "# TYPE {name} counter\n{name}{{flow_schema=\"a\",priority_level=\"x\"}} 3\n{name}{{flow_schema=\"a\",priority_level=\"y\"}} 4\n\
             {name}{{flow_schema=\"b\",priority_level=\"x\"}} 1.234567e+06\nother{{flow_schema=\"a\"}} 9\n"
        );
        assert_eq!(dispatched(&text), BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 1_234_567)]));
    }

    #[test]
    fn the_kernel_is_read() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 8 0 1 2 3";
        let status = "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let usage = parse_usage(stat, status).unwrap();
        assert!((usage.cpu_s - 2.0).abs() < 1e-9, "{usage:?}");
        assert_eq!((usage.resident, usage.peak), (1024, 2048));
        assert!(super::usage(std::process::id()).unwrap().resident > 1000);
    }
}
