mod calls;
mod offers;
mod refusals;
mod spec;
mod states;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tradewind_core::{Clock, InstallId, Offer, OrderKey, SecretString, SystemClock};

use super::convert::Cloud;
use super::{RunPod, RunPodConfig, Times};
use crate::http::RateGate;
use crate::http::scripted::{Act, Server};
use crate::{RentRequest, SecretEnv};

const API_KEY: &str = "rpa_0123456789abcdef0123456789abcdef";
const SIGNED: &str =
    "https://bucket.s3.eu-north-1.amazonaws.com/machines/1/control.json?X-Amz-Signature=5ec2e7c0ffee5ec2e7";

fn runpod(server: &Server) -> RunPod {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let s = Duration::from_secs;
    let config = RunPodConfig {
        base_url: server.url.clone(),
        gate: Arc::new(RateGate::off(Arc::clone(&clock))),
        times: Times {
            one_try: s(2),
            read: s(3),
            terminate: s(3),
            rent: s(2),
            unseen: s(120),
            logs: s(2),
            logs_quiet: Duration::from_millis(500),
        },
        ..RunPodConfig::new("runpod-main", SecretString::from(API_KEY), &clock)
    };
    RunPod::new(config, clock).unwrap()
}

fn key() -> OrderKey {
    OrderKey::new(&InstallId::derive("uid", "tradewind"), "machine", 0, "2026-11-21T12:00:00Z".parse().unwrap())
}

/// A GPU type of the catalogue, as the document describes one.
fn gpu() -> Value {
    json!({
        "id": "NVIDIA GeForce RTX 4090", "name": "RTX 4090", "pool": "ADA_24", "manufacturer": "NVIDIA", "memory": 24,
        "secure": true, "community": true, "price": {"secure": 0.69, "community": 0.34, "serverless": 1.1},
        "maxCount": {"secure": 8, "community": 4}, "availability": "HIGH",
        "dataCenters": [
            {"id": "EU-RO-1", "name": "EU Romania 1", "availability": "HIGH"},
            {"id": "US-KS-2", "name": "US Kansas 2", "availability": "NONE"},
        ],
        "cudaVersions": [{"version": "12.8", "available": true}, {"version": "12.4", "available": true}, {"version": "11.8", "available": false}],
    })
}

/// A pod that runs, as lists and `GET` show it.
fn pod(id: &str) -> Value {
    json!({
        "id": id, "name": "somebody's", "status": "RUNNING", "actions": ["stop", "restart", "terminate"], "image": "busybox", "args": "",
        "disk": 22, "mounts": {}, "ports": [], "env": {"A": "b"}, "registry": null, "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 1},
        "cloud": "SECURE", "dataCenterId": "EU-RO-1", "cudaVersion": "12.8", "ssh": {"proxy": null, "direct": null}, "template": null,
        "cost": 0.69, "locked": false, "globalNetworking": {"enabled": false}, "runtime": {"uptime": 3, "ports": []},
        "createdAt": "2026-11-21T12:00:00.439Z", "startedAt": "2026-11-21T12:00:00.43Z",
    })
}

/// The pod with these fields changed.
fn changed(mut row: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        row[name] = value.clone();
    }
    row
}

fn answer(status: u16, body: &Value) -> Act {
    Act::Answer(status, "", body.to_string().into_bytes())
}

fn problem(status: u16, detail: &str) -> Act {
    answer(status, &json!({"title": "Title", "status": status, "detail": detail}))
}

fn offer(cloud: Cloud, count: u32) -> Offer {
    let text = json!({"gpus": [gpu()]}).to_string();
    let look = super::convert::offers("runpod-main", &serde_json::from_str(&text).unwrap(), cloud, count);
    look.offers.into_iter().next().unwrap()
}

fn request(cloud: Cloud) -> RentRequest {
    let offer = offer(cloud, 2);
    RentRequest {
        key: key(),
        price_cap: offer.price_per_hour,
        offer,
        image: "busybox".to_owned(),
        disk_gib: 20,
        env: SecretEnv(BTreeMap::from([("TRADEWIND_CONTROL_URL".to_owned(), SIGNED.to_owned())])),
        bootstrap: "wget -O a \"$TRADEWIND_AGENT_URL\" && exec ./a run".to_owned(),
    }
}

const LATER: Duration = Duration::from_hours(1);
