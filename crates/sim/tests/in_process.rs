//! The market as a provider in process: the providers' conformance suite, its crashes, and a comparison with what our adapters
//! tell of the same market over HTTP (whose own conformance is in `vast_conformance.rs` and `runpod_conformance.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::cast_precision_loss,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use support::Served;
use support::fixture::op;
use tradewind_core::gate::{Gate, Point, Verdict};
use tradewind_core::{Capacity, Clock, InstallId, ManualClock, Money, Offer, OrderKey, SecretString, SystemClock};
use tradewind_providers::conformance::{self, Check, Fault as Disturb, Fixture, Verb};
use tradewind_providers::http::RateGate;
use tradewind_providers::runpod::{RunPod, RunPodConfig};
use tradewind_providers::vast::{Vast, VastConfig};
use tradewind_providers::{GpuProvider, OfferQuery, Refusal, RentOutcome, RentRequest, SecretEnv};
use tradewind_sim::faults::Fault;
use tradewind_sim::file::parse_market;
use tradewind_sim::in_process::MarketProvider;
use tradewind_sim::market::{Kind, Machine, Market, OfferChange};

fn market() -> Value {
    support::market(json!([
        {"id": 1001, "gpu_name": "RTX 4090", "dph_base": 0.40, "min_bid": 0.20, "verification": "verified", "hosting_type": 1, "geolocation": "Norway, NO", "sim": {"boot": 0.3, "stock": 4}},
        {"id": 1002, "gpu_name": "A100 SXM4", "num_gpus": 2, "gpu_ram": 81559, "dph_base": 1.83, "min_bid": 1.5, "verification": "unverified", "geolocation": ", US", "cpu_cores": 96, "cpu_cores_effective": 31.5},
        {"id": 1003, "gpu_name": "RTX 3090", "dph_base": 0.22, "min_bid": 0.30, "disk_space": 31.4, "storage_cost": 0.2, "inet_down_cost": 0.0031},
        {"id": 1004, "gpu_name": "H100 SXM", "external": true},
        {"id": 1005, "gpu_name": "H100 SXM", "verification": "deverified"},
        {"id": 1006, "gpu_name": "H100 SXM", "sim": {"stock": 0}},
        {"id": 1007, "num_gpus": 0}
    ]))
}

fn pods() -> Value {
    support::pods::market(json!([
        {"id": support::pods::GPU, "memory": 24, "price": {"secure": 0.69, "community": 0.44}, "dataCenters": [{"id": "EU-RO-1"}, {"id": "US-KS-2"}],
         "sim": {"boot": 0.3, "stock": 4}},
        {"id": "NVIDIA H200", "memory": 141, "price": {"secure": 3.99}, "dataCenters": [{"id": "EU-FR-1"}], "sim": {"stock": {"EU-FR-1": 2}}},
        {"id": "NVIDIA A40", "price": {"community": 0.2}, "dataCenters": [{"id": "CA-MTL-3"}]},
        {"id": "NVIDIA L4", "sim": {"stock": 0}},
        {"id": "AMD Instinct MI300X OAM"}
    ]))
}

const fn when(fault: Disturb) -> &'static str {
    match fault {
        Disturb::Before => "before",
        Disturb::After => "after",
        Disturb::Lost => "lost",
        Disturb::Garbled => "garbled",
    }
}

fn key(clock: &Arc<dyn Clock>, number: &mut u32) -> OrderKey {
    *number += 1;
    OrderKey::new(&InstallId::derive("conformance", "sim"), "uid", *number, clock.now())
}

/// The market's knobs.
struct InProcess {
    market: Arc<Mutex<Market>>,
    provider: MarketProvider,
    /// The account, named like its kind.
    account: &'static str,
    clock: Arc<ManualClock>,
    keys: u32,
}

impl InProcess {
    fn change(&self, offer: &Offer, change: OfferChange) -> Check {
        let now = self.provider.now();
        // RunPod's offers are named by cloud, data centre and count before the GPU type.
        let id = offer.id.splitn(4, '/').last().unwrap();
        self.market.lock().unwrap().change_offer(now, self.account, id, change).map_err(|error| error.to_string())
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Fixture for InProcess {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
    fn image(&self) -> String {
        "busybox".to_owned()
    }
    fn next_key(&mut self) -> OrderKey {
        let clock: Arc<dyn Clock> = self.clock.clone();
        key(&clock, &mut self.keys)
    }
    fn secrets(&self) -> Vec<String> {
        vec![format!("{}-key", self.account)]
    }
    fn pass_time(&mut self, time: Duration) -> BoxFuture<'_, ()> {
        self.clock.advance(time);
        ready(())
    }
    fn sell_out<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        ready(self.change(offer, OfferChange { stock: Some(0), ..OfferChange::default() }))
    }
    fn restock<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        ready(self.change(offer, OfferChange { stock: Some(4), ..OfferChange::default() }))
    }
    fn set_winning_bid<'a>(&'a mut self, offer: &'a Offer, price: Money) -> BoxFuture<'a, Check> {
        let bid = u64::try_from(price.micros()).unwrap();
        ready(self.change(offer, OfferChange { bid_micros_per_hour: Some(bid), ..OfferChange::default() }))
    }
    fn arm(&mut self, verb: Verb, fault: Disturb) -> BoxFuture<'_, Check> {
        let fault = Fault::parse(&json!({"op": op(verb), "when": when(fault)}), &[self.account]);
        ready(fault.map(|fault| self.provider.faults().add(fault)).map_err(|error| error.to_string()))
    }
    fn set_key_valid(&mut self, valid: bool) -> BoxFuture<'_, Check> {
        let key = if valid { format!("{}-key", self.account) } else { "another".to_owned() };
        ready(self.market.lock().unwrap().set_api_key(self.account, key).map_err(|error| error.to_string()))
    }
    fn calls(&mut self, verb: Verb) -> BoxFuture<'_, Check<usize>> {
        ready(Ok(self.provider.calls(op(verb))))
    }
    fn billed<'a>(&'a mut self, key: &'a OrderKey) -> BoxFuture<'a, Check<Vec<String>>> {
        let market = self.market.lock().unwrap();
        let paid = market.machines().iter().filter(|m| m.is_paid() && m.label.as_deref() == Some(&key.to_string()));
        ready(Ok(paid.map(Machine::wire_id).collect()))
    }
    fn take_away<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Check> {
        let now = self.provider.now();
        let mut market = self.market.lock().unwrap();
        let kind = market.account(self.account).unwrap().kind;
        let id = kind.parse_machine_id(id).unwrap();
        let done = match kind {
            Kind::Vast => market.outbid(now, self.account, id, None),
            Kind::Runpod => market.reclaim(now, self.account, id),
        };
        ready(done.map_err(|error| error.to_string()))
    }
}

fn adapter(sim: &Served, clock: &Arc<dyn Clock>) -> Vast {
    let mut config = VastConfig::new("main", SecretString::from("vast-key"), clock);
    config.base_url = sim.url("vast").parse().unwrap();
    config.gate = Arc::new(RateGate::off(clock.clone()));
    Vast::new(config, clock.clone()).unwrap()
}

fn pod_adapter(sim: &Served, clock: &Arc<dyn Clock>) -> RunPod {
    let mut config = RunPodConfig::new("main", SecretString::from("runpod-key"), clock);
    config.base_url = sim.url("runpod").parse().unwrap();
    config.gate = Arc::new(RateGate::off(clock.clone()));
    RunPod::new(config, clock.clone()).unwrap()
}

fn in_process(seed: u64) -> InProcess {
    in_process_of("vast", &market(), seed)
}

fn in_process_of(account: &'static str, market: &Value, seed: u64) -> InProcess {
    let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_795_000_000).unwrap(), seed));
    let accounts = parse_market(market, "market", std::path::Path::new(".")).unwrap();
    let market = Arc::new(Mutex::new(Market::new(seed, clock.now(), accounts)));
    let provider =
        MarketProvider::new(market.clone(), account, "main", clock.clone()).with_key(&format!("{account}-key"));
    InProcess { market, provider, account, clock, keys: 0 }
}

fn assert_conforms(report: &conformance::Report) {
    assert_eq!(report.failed, [], "passed: {:?}", report.passed);
    assert!(report.passed.len() > 12, "{report:?}");
}

#[test]
fn the_market_in_process_conforms_without_an_executor() {
    conforms(in_process(5));
    conforms(in_process_of("runpod", &pods(), 5));
}

fn conforms(mut fixture: InProcess) {
    let provider = fixture.provider.clone();
    let run = std::pin::pin!(conformance::run(&provider, &mut fixture));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match run.poll(&mut context) {
        std::task::Poll::Ready(report) => assert_conforms(&report),
        std::task::Poll::Pending => panic!("a future of the market in process waited"),
    }
}

#[tokio::test]
async fn both_tell_the_same_of_the_same_market() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let sim = Served::start(&market(), &["--time-scale", "0"]);
    let (http, memory) = (adapter(&sim, &clock), in_process(0));
    for query in [
        OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 },
        OfferQuery { min_gpu_count: 2, min_gpu_memory_mib: 40_000, disk_gib: 100 },
        OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 24_000, disk_gib: 29 },
        OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 30 },
    ] {
        let (mut ours, mut theirs) =
            (http.offers(&query).await.unwrap(), memory.provider.offers(&query).await.unwrap());
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{query:?}");
        assert!(!ours.is_empty());
    }
    assert_eq!(http.capabilities(), memory.provider.capabilities());
    assert_eq!(http.account().await.unwrap(), memory.provider.account().await.unwrap());
}

#[tokio::test]
async fn both_tell_the_same_of_the_same_pods() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let sim = Served::start(&pods(), &["--time-scale", "0"]);
    let (http, mut memory) = (pod_adapter(&sim, &clock), in_process_of("runpod", &pods(), 0));
    for count in [1, 3, 8] {
        let query = OfferQuery { min_gpu_count: count, min_gpu_memory_mib: 20_000, disk_gib: 10 };
        let (mut ours, mut theirs) =
            (http.offers(&query).await.unwrap(), memory.provider.offers(&query).await.unwrap());
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{query:?}");
        assert!(!ours.is_empty());
    }
    assert_eq!(http.capabilities(), memory.provider.capabilities());
    assert_eq!(http.account().await.unwrap(), memory.provider.account().await.unwrap());
    assert_eq!(http.self_end("x"), memory.provider.self_end("x"));

    // The same pods, rented in both, through what may happen to them.
    let mut ids = Vec::new();
    for capacity in [Capacity::OnDemand, Capacity::Spot, Capacity::OnDemand] {
        // Over HTTP it really runs, and must not end by itself.
        let request = RentRequest { bootstrap: "sleep 600".to_owned(), ..request(&mut memory, capacity) };
        let not_after = clock.monotonic() + Duration::from_mins(1);
        let RentOutcome::Rented { id } = http.rent(&request, not_after).await else { panic!("not rented over HTTP") };
        let not_after = memory.clock.monotonic() + Duration::from_mins(1);
        assert_eq!(memory.provider.rent(&request, not_after).await, RentOutcome::Rented { id: id.clone() });
        ids.push(id);
    }
    let same = async |what: &str| {
        for (position, id) in ids.iter().enumerate() {
            let mut pair = [http.describe(id).await.unwrap(), memory.provider.describe(id).await.unwrap()];
            for machine in pair.iter_mut().flatten() {
                machine.created_at = None; // The two markets began at different times.
            }
            assert_eq!(pair[0], pair[1], "pod {position}, {what}");
        }
        assert_eq!(http.list_owned().await.unwrap().len(), memory.provider.list_owned().await.unwrap().len());
    };
    same("rented").await;
    let pass = async |seconds: u64| {
        sim.told(Method::POST, "/clock", json!({"advance": seconds})).await;
        memory.clock.advance(Duration::from_secs(seconds));
    };
    pass(1).await;
    same("running").await;
    let number = |position: usize| Kind::Runpod.parse_machine_id(&ids[position]).unwrap();
    let now = memory.provider.now();
    sim.make(&ids[0], json!({"do": "exit"})).await;
    memory.market.lock().unwrap().exit(now, "runpod", number(0), None, false).unwrap();
    sim.make(&ids[1], json!({"do": "reclaim"})).await;
    memory.market.lock().unwrap().reclaim(now, "runpod", number(1)).unwrap();
    for word in ["PROVISIONING", "ERROR", "TERMINATED", "MIGRATING"] {
        sim.make(&ids[2], json!({"do": "status", "value": word})).await;
        memory.market.lock().unwrap().show_status(now, "runpod", number(2), Some(word.to_owned())).unwrap();
        same(word).await;
    }
    sim.make(&ids[2], json!({"do": "reclaim", "value": "absent"})).await;
    memory.market.lock().unwrap().reclaim_without_trace(now, "runpod", number(2)).unwrap();
    same("absent").await;
    let amounts = async |provider: &dyn GpuProvider, clock: Arc<dyn Clock>| {
        let since = clock.now() - jiff::SignedDuration::from_hours(3);
        let mut charges = provider.charges(since).await.unwrap().unwrap();
        charges.sort_by(|a, b| a.id.cmp(&b.id));
        charges
    };
    pass(600).await;
    let ours = amounts(&http, clock.clone()).await;
    assert_eq!(ours, amounts(&memory.provider, memory.clock.clone()).await);
    assert_eq!(ours.len(), 3, "{ours:?}");
}

#[test]
fn a_price_that_rose_at_runpod_is_known_too_late() {
    let mut world = in_process_of("runpod", &pods(), 1);
    let request = request(&mut world, Capacity::Spot);
    let dearer = OfferChange { on_demand_micros_per_hour: Some(900_000), ..OfferChange::default() };
    world.change(&request.offer.clone(), dearer).unwrap();
    let outcome = poll_once(world.provider.rent(&request, Duration::from_mins(1))).unwrap();
    let RentOutcome::Refused { why: Refusal::PriceRose, leftover: Some(id), .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(poll_once(world.billed(&request.key)).unwrap().unwrap(), [id]);
}

/// A gate with one verdict for everything.
struct Fixed(Verdict);

impl Gate for Fixed {
    fn before(&self, _: &Point) -> Verdict {
        self.0
    }
}

fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

fn request(world: &mut InProcess, capacity: Capacity) -> RentRequest {
    let query = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };
    let offers = poll_once(world.provider.offers(&query)).unwrap().unwrap();
    let offer = offers.into_iter().find(|offer| offer.capacity == capacity).unwrap();
    RentRequest {
        key: world.next_key(),
        price_cap: offer.price_per_hour,
        offer,
        image: "busybox".to_owned(),
        disk_gib: 10,
        env: SecretEnv::default(),
        bootstrap: "true".to_owned(),
    }
}

#[test]
fn a_crash_comes_before_or_after_the_deed() {
    for (verdict, happens, answers) in [
        (Verdict::Pass, true, true),
        (Verdict::CrashBefore, false, false),
        (Verdict::CrashAfterEffect, true, false),
        (Verdict::LostAnswer, true, true),
        (Verdict::FailBefore, false, true),
    ] {
        let mut world = in_process(1);
        let request = request(&mut world, Capacity::OnDemand);
        let gated = world.provider.clone().with_gate(Arc::new(Fixed(verdict)));
        let outcome = poll_once(gated.rent(&request, Duration::from_mins(1)));
        assert_eq!(outcome.is_some(), answers, "{verdict:?}");
        assert_eq!(world.market.lock().unwrap().machines().len(), usize::from(happens), "{verdict:?}");
        let known = matches!(outcome, Some(RentOutcome::Rented { .. }));
        assert_eq!(known, verdict == Verdict::Pass, "{verdict:?}: {outcome:?}");
        let listed = poll_once(gated.list_owned());
        assert_eq!(matches!(listed, Some(Ok(_))), verdict == Verdict::Pass, "{verdict:?}: {listed:?}");
    }
}

#[test]
fn a_losing_bid_may_leave_a_machine_behind() {
    let mut world = in_process(1);
    let request = request(&mut world, Capacity::Spot);
    let offer = request.offer.clone();
    poll_once(world.set_winning_bid(&offer, offer.price_per_hour.times(2))).unwrap().unwrap();
    let leaky = world.provider.clone().with_leftovers();
    let outcome = poll_once(leaky.rent(&request, Duration::from_mins(1))).unwrap();
    let RentOutcome::Refused { why: Refusal::PriceRose, leftover: Some(id), .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(poll_once(world.billed(&request.key)).unwrap().unwrap(), std::slice::from_ref(&id));
    poll_once(leaky.terminate(&id)).unwrap().unwrap();
    assert!(poll_once(world.billed(&request.key)).unwrap().unwrap().is_empty());
}
