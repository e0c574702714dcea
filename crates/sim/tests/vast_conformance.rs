//! The Vast.ai adapter against the simulator's server, as separate processes: the conformance suite, and the documented request limits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use support::fixture::{Sim, Terms};
use tradewind_core::{Capacity, Offer, SecretString};
use tradewind_providers::conformance;
use tradewind_providers::http::RateGate;
use tradewind_providers::vast::{Times, Vast, VastConfig};
use tradewind_providers::{
    Account, Capabilities, Charge, GpuProvider, Machine, OfferQuery, ProviderError, ProviderResult, Refusal,
    RentOutcome, RentRequest, SelfEnd,
};

const API_KEY: &str = "vast-key-5f3a9c1e7b2d";

static VAST: Terms =
    Terms { kind: "vast", api_key: API_KEY, stock_of: |offer| &offer.id, stock: 1, bids: true, taken_away: "outbid" };

fn offer(id: u64, price: f64) -> Value {
    json!({"id": id, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "dph_base": price, "min_bid": price / 2.0, "storage_cost": 0.15,
        "reliability": 0.995, "verification": "verified", "hosting_type": 1, "geolocation": "Norway, NO", "sim": {"boot": 0.2}})
}

fn start(rate_limits: bool) -> Sim {
    let offers: Vec<Value> = (0..6_u32).map(|n| offer(1001 + u64::from(n), 0.40 + f64::from(n) / 100.0)).collect();
    Sim::start(&VAST, &json!(offers), rate_limits)
}

/// The adapter, with the documented limits unless there is another gate.
fn adapter(sim: &Sim, gate: Option<Arc<RateGate>>) -> Vast {
    let documented = VastConfig::new("vast-main", SecretString::from(API_KEY), &sim.clock);
    let s = Duration::from_secs;
    let config = VastConfig {
        base_url: sim.url().parse().unwrap(),
        gate: gate.unwrap_or(Arc::clone(&documented.gate)),
        times: Times { one_try: s(5), read: s(30), terminate: s(30), rent: s(10), unseen: s(60) },
        ..documented
    };
    Vast::new(config, Arc::clone(&sim.clock)).unwrap()
}

#[tokio::test]
async fn the_adapter_conforms() {
    let mut sim = start(false);
    let vast = adapter(&sim, Some(sim.no_limits()));
    let suite = conformance::run(&vast, &mut sim);
    let report =
        tokio::time::timeout(Duration::from_mins(3), suite).await.expect("the suite did not end within three minutes");
    assert_eq!(report.failed, []);
    assert_eq!(report.left_out, Vec::<&str>::new(), "Vast.ai can do everything that the suite knows");
    assert!(report.passed.len() >= 17, "{:?}", report.passed);
}

/// An adapter with one fault of its own.
struct Wrong {
    vast: Vast,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Takes every error of a read for "gone".
    ErrorIsGone,
    /// Takes an unknown ending for a refusal.
    UnknownIsRefused,
    /// Rents whatever the time.
    NeverTooLate,
    /// Puts its key into its errors.
    Talks,
}

impl GpuProvider for Wrong {
    fn capabilities(&self) -> &Capabilities {
        self.vast.capabilities()
    }

    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<Offer>>> {
        self.vast.offers(query)
    }

    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome> {
        Box::pin(async move {
            let not_after = if self.how == How::NeverTooLate { Duration::MAX } else { not_after };
            match self.vast.rent(request, not_after).await {
                RentOutcome::Unknown { message } if self.how == How::UnknownIsRefused => {
                    RentOutcome::Refused { why: Refusal::OutOfStock, message, leftover: None }
                }
                other => other,
            }
        })
    }

    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<Machine>>> {
        Box::pin(async move {
            match self.vast.describe(id).await {
                Err(_) if self.how == How::ErrorIsGone => Ok(None),
                Err(ProviderError::Unauthorised { provider, .. }) if self.how == How::Talks => {
                    Err(ProviderError::Unauthorised { provider, message: format!("{API_KEY} is not valid") })
                }
                other => other,
            }
        })
    }

    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>> {
        self.vast.list_owned()
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>> {
        self.vast.terminate(id)
    }

    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>> {
        self.vast.account()
    }

    fn logs<'a>(&'a self, id: &'a str, lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>> {
        self.vast.logs(id, lines)
    }

    fn charges(&self, since: jiff::Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>> {
        self.vast.charges(since)
    }

    fn self_end(&self, id: &str) -> Option<SelfEnd> {
        self.vast.self_end(id)
    }
}

#[tokio::test]
async fn the_suite_finds_what_is_wrong() {
    let cases = [
        (How::ErrorIsGone, &["a bad key is a bad key and never gone"][..]),
        (
            How::UnknownIsRefused,
            &[
                "a lost answer is unknown and found by key",
                "a cut answer is unknown and found by key",
                "a 500 after the deed is unknown and found by key",
                "a 500 before the deed is unknown, and nothing is there",
            ],
        ),
        (How::NeverTooLate, &["nothing is sent when its time is over"]),
        (How::Talks, &["no text holds a secret"]),
    ];
    let runs = cases.map(|(how, expected)| async move {
        let mut sim = start(false);
        let vast = adapter(&sim, Some(sim.no_limits()));
        let wrong = Wrong { vast, how };
        let suite = conformance::run(&wrong, &mut sim);
        let report = tokio::time::timeout(Duration::from_mins(3), suite)
            .await
            .expect("the suite did not end within three minutes");
        let failed: Vec<&str> = report.failed.iter().map(|(name, _)| *name).collect();
        assert_eq!(failed, expected, "{how:?}: {:?}", report.failed);
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn the_documented_limits_are_kept() {
    let mut sim = start(true);
    let vast = adapter(&sim, None);
    let query = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };
    let mut offers = vast.offers(&query).await.unwrap();
    offers.retain(|offer| offer.capacity == Capacity::OnDemand);
    let not_after = sim.clock.monotonic() + Duration::from_secs(30);
    let mut ids = Vec::new();
    for offer in offers.into_iter().take(2) {
        let request = sim.request(offer, "sleep 600");
        match vast.rent(&request, not_after).await {
            RentOutcome::Rented { id } => ids.push(id),
            other => panic!("{other:?}"),
        }
    }
    let lists = futures::future::try_join_all((0..4).map(|_| vast.list_owned()));
    let reads = futures::future::try_join_all((0..3).map(|_| vast.describe(&ids[0])));
    futures::try_join!(lists, reads, vast.offers(&query)).unwrap();
    futures::future::try_join_all(ids.iter().map(|id| vast.terminate(id))).await.unwrap();
    let requests = sim.requests().await.unwrap();
    let refused: Vec<&Value> = requests.iter().filter(|request| request["status"] == 429).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(requests.len() >= 2 + 2 + 4 + 3 + 2 + 2, "{requests:?}");
}
