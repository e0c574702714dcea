//! The RunPod adapter against the simulator's server, as separate processes: the conformance suite, the documented request limits, the
//! output of a machine and the account's bill.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use support::fixture::{Sim, Terms};
use tradewind_core::{Capacity, Money, Offer, SecretString, Trust};
use tradewind_providers::conformance;
use tradewind_providers::http::RateGate;
use tradewind_providers::runpod::{RunPod, RunPodConfig, Times};
use tradewind_providers::{GpuProvider, MachineState, OfferQuery, Refusal, RentOutcome, RentRequest};

const API_KEY: &str = "runpod-key-5f3a9c1e7b2d";
const ANY: OfferQuery = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };

static RUNPOD: Terms = Terms {
    kind: "runpod",
    api_key: API_KEY,
    // The stock is of a GPU type, the last part of an offer's id.
    stock_of: |offer| offer.id.splitn(4, '/').last().unwrap_or_default(),
    stock: 6,
    bids: false,
    taken_away: "reclaim",
};

fn gpu(id: &str, memory: u32, secure: f64, community: f64) -> Value {
    json!({"id": id, "memory": memory, "price": {"secure": secure, "community": community}, "availability": "HIGH",
        "dataCenters": [{"id": "EU-RO-1", "availability": "HIGH"}, {"id": "US-KS-2", "availability": "LOW"}],
        "sim": {"stock": 6, "boot": 0.2, "lag": 0.3}})
}

fn start(rate_limits: bool) -> Sim {
    let offers = json!([
        gpu("NVIDIA GeForce RTX 4090", 24, 0.69, 0.34),
        gpu("NVIDIA RTX A6000", 48, 0.49, 0.33),
        gpu("NVIDIA L4", 24, 0.43, 0.39),
    ]);
    Sim::start(&RUNPOD, &offers, rate_limits)
}

/// The adapter, with the documented limits unless there is another gate.
fn adapter(sim: &Sim, gate: Option<Arc<RateGate>>) -> RunPod {
    let documented = RunPodConfig::new("runpod-main", SecretString::from(API_KEY), &sim.clock);
    let s = Duration::from_secs;
    let times = Times { one_try: s(5), read: s(30), terminate: s(30), rent: s(10), unseen: s(60), ..documented.times };
    let config = RunPodConfig {
        base_url: sim.url().parse().unwrap(),
        gate: gate.unwrap_or(Arc::clone(&documented.gate)),
        times,
        ..documented
    };
    RunPod::new(config, Arc::clone(&sim.clock)).unwrap()
}

fn without_limits(sim: &Sim) -> RunPod {
    adapter(sim, Some(sim.no_limits()))
}

#[tokio::test]
async fn the_adapter_conforms() {
    let mut sim = start(false);
    let runpod = without_limits(&sim);
    let suite = conformance::run(&runpod, &mut sim);
    let report =
        tokio::time::timeout(Duration::from_mins(3), suite).await.expect("the suite did not end within three minutes");
    assert_eq!(report.failed, []);
    assert_eq!(report.left_out, ["a losing bid leaves nothing unnamed"]);
    assert!(report.passed.len() >= 16, "{:?}", report.passed);
}

#[tokio::test]
async fn clouds_differ_in_trust_and_capacity_and_each_data_centre_is_an_offer() {
    let sim = start(false);
    let offers = without_limits(&sim).offers(&ANY).await.unwrap();
    let of = |capacity| offers.iter().filter(move |offer| offer.capacity == capacity);
    assert!(of(Capacity::OnDemand).all(|offer| offer.trust == Trust::Datacenter));
    assert!(of(Capacity::Spot).all(|offer| offer.trust == Trust::Community));
    let mut places: Vec<&str> =
        of(Capacity::OnDemand).filter(|o| o.gpu_count == 1).map(|o| o.id.split('/').nth(1).unwrap()).collect();
    places.sort_unstable();
    assert_eq!(places, ["EU-RO-1", "EU-RO-1", "EU-RO-1", "US-KS-2", "US-KS-2", "US-KS-2"]);
    assert!(of(Capacity::Spot).count() >= 3);
}

/// The first on-demand offer of one GPU.
async fn cheapest(runpod: &RunPod) -> Offer {
    let mut offers = runpod.offers(&ANY).await.unwrap();
    offers.retain(|offer| offer.capacity == Capacity::OnDemand && offer.gpu_count == 1);
    offers.into_iter().min_by_key(|offer| offer.price_per_hour).unwrap()
}

async fn rented(runpod: &RunPod, request: &RentRequest) -> String {
    let not_after = Duration::MAX;
    match runpod.rent(request, not_after).await {
        RentOutcome::Rented { id } => id,
        other => panic!("{other:?}"),
    }
}

async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"))
}

#[tokio::test]
async fn what_a_machine_prints_is_read_from_the_stream() {
    let mut sim = start(false);
    let runpod = without_limits(&sim);
    let request = sim.request(cheapest(&runpod).await, "echo one; echo two; echo order $TRADEWIND_ORDER; sleep 600");
    let id = rented(&runpod, &request).await;
    let expected = format!("order {}", request.key);
    let text = wait_for("its output", async || {
        runpod.logs(&id, 50).await.unwrap().filter(|text| text.lines().any(|line| line == expected))
    })
    .await;
    assert!(text.contains("one\ntwo\n"), "{text}");
    assert_eq!(runpod.logs(&id, 1).await.unwrap(), Some(expected));
    runpod.terminate(&id).await.unwrap();
    wait_for("its end", async || runpod.logs(&id, 1).await.unwrap().is_none().then_some(())).await;
}

#[tokio::test]
async fn the_bill_is_what_the_market_takes() {
    let mut sim = start(false);
    let runpod = without_limits(&sim);
    let since = sim.clock.now();
    let request = sim.request(cheapest(&runpod).await, "sleep 600");
    let id = rented(&runpod, &request).await;
    wait_for("running", async || {
        let machine = runpod.describe(&id).await.unwrap();
        machine.filter(|machine| machine.state == MachineState::Running)
    })
    .await;
    sim.call(Method::POST, "/clock", json!({"advance": 5400})).await.unwrap();
    runpod.terminate(&id).await.unwrap();
    wait_for("its end", async || runpod.describe(&id).await.unwrap().is_none().then_some(())).await;
    let machines = sim.call(Method::GET, "/machines", Value::Null).await.unwrap();
    let cost = Money::from_micros(machines["totalMicros"].as_i64().unwrap());
    let charges = runpod.charges(since).await.unwrap().expect("RunPod publishes its charges");
    assert_eq!(charges.iter().map(|charge| charge.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    let off = (charges[0].amount - cost).micros().abs();
    assert!(off <= 20_000, "billed ${}, the market took ${cost}", charges[0].amount);
    assert!(cost >= request.offer.price_per_hour, "an hour and a half of it: ${cost}");
}

#[tokio::test]
async fn an_account_without_credit_is_told_from_an_empty_market() {
    let mut sim = start(false);
    let runpod = without_limits(&sim);
    let offer = cheapest(&runpod).await;
    sim.patch("/providers/runpod", json!({"credit": 0})).await.unwrap();
    let request = sim.request(offer, "sleep 600");
    let outcome = runpod.rent(&request, Duration::MAX).await;
    let told = matches!(outcome, RentOutcome::Refused { why: Refusal::OutOfCredit, leftover: None, .. });
    assert!(told, "{outcome:?}");
    runpod.account().await.unwrap();
}

#[tokio::test]
async fn the_documented_limits_are_kept() {
    let mut sim = start(true);
    let runpod = adapter(&sim, None);
    let offer = cheapest(&runpod).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let request = sim.request(offer.clone(), "sleep 600");
        ids.push(rented(&runpod, &request).await);
    }
    let lists = futures::future::try_join_all((0..6).map(|_| runpod.list_owned()));
    let reads = futures::future::try_join_all((0..6).map(|_| runpod.describe(&ids[0])));
    futures::try_join!(lists, reads).unwrap();
    let waits = sim.clock.monotonic();
    futures::future::try_join_all(ids.iter().map(|id| runpod.terminate(id))).await.unwrap();
    let waited = sim.clock.monotonic().saturating_sub(waits);
    assert!(waited < Duration::from_millis(1700), "endings have places of their own, yet they waited {waited:?}");
    let requests = sim.requests().await.unwrap();
    let refused: Vec<&Value> = requests.iter().filter(|request| request["status"] == 429).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(requests.len() >= 8 + 2 + 6 + 6 + 2, "{requests:?}");
}
