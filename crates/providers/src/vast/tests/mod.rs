mod calls;
mod offers;
mod refusals;
mod spec;
mod states;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tradewind_core::{Clock, InstallId, OrderKey, SecretString, SystemClock};

use super::{Times, Vast, VastConfig};
use crate::http::RateGate;
use crate::http::scripted::Server;
use crate::{OfferQuery, RentRequest, SecretEnv};

const API_KEY: &str = "0123456789abcdef0123456789abcdef";
const SIGNED: &str =
    "https://bucket.s3.eu-north-1.amazonaws.com/machines/1/control.json?X-Amz-Signature=5ec2e7c0ffee5ec2e7";

/// Official examples (github vast-ai/docs, endpoint files of 2026-08-07) as JSON.
fn fixture(name: &str) -> serde_json::Value {
    let text = match name {
        "search" => include_str!("../fixtures/search.json"),
        "instances" => include_str!("../fixtures/instances.json"),
        _ => unreachable!("no such fixture"),
    };
    serde_json::from_str(text).unwrap()
}

fn vast(server: &Server) -> Vast {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let s = Duration::from_secs;
    let config = VastConfig {
        base_url: server.url.clone(),
        gate: Arc::new(RateGate::off(Arc::clone(&clock))),
        times: Times { one_try: s(2), read: s(3), terminate: s(3), rent: s(2), unseen: s(120) },
        ..VastConfig::new("vast-main", SecretString::from(API_KEY), &clock)
    };
    Vast::new(config, clock).unwrap()
}

fn query() -> OfferQuery {
    OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 24_000, disk_gib: 20 }
}

fn key() -> OrderKey {
    OrderKey::new(&InstallId::derive("uid", "tradewind"), "machine", 0, "2026-11-21T12:00:00Z".parse().unwrap())
}

/// A request for the official example's offer on these terms.
fn request(capacity: tradewind_core::Capacity) -> RentRequest {
    let search = fixture("search");
    let raw = serde_json::to_string(&search).unwrap();
    let answer = serde_json::from_str(&raw).unwrap();
    let offers = super::convert::offers("vast-main", &answer, &answer).offers;
    let offer = offers.into_iter().find(|o| o.capacity == capacity).unwrap();
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
