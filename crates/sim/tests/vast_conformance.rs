//! The Vast.ai adapter against the simulator's server, as separate processes: the conformance suite, and the documented request limits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tradewind_core::{Capacity, Clock, InstallId, Money, Offer, OrderKey, SecretString, SystemClock};
use tradewind_providers::conformance::{self, Check, Fault, Fixture, Verb};
use tradewind_providers::http::{Call, Http, HttpSettings, Lane, Method, RateGate};
use tradewind_providers::vast::{Times, Vast, VastConfig};
use tradewind_providers::{
    Account, Capabilities, Charge, GpuProvider, Machine, OfferQuery, ProviderError, ProviderResult, Refusal,
    RentOutcome, RentRequest, SecretEnv, SelfEnd,
};

const API_KEY: &str = "vast-key-5f3a9c1e7b2d";

struct Sim {
    control: Http,
    url: String,
    clock: Arc<dyn Clock>,
    keys: u32,
    // Ends with the fixture.
    _process: tokio::process::Child,
    _files: tempfile::TempDir,
}

fn offer(id: u64, price: f64) -> Value {
    json!({"id": id, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "dph_base": price, "min_bid": price / 2.0, "storage_cost": 0.15,
        "reliability": 0.995, "verification": "verified", "hosting_type": 1, "geolocation": "Norway, NO", "sim": {"boot": 0.2}})
}

impl Sim {
    async fn start(rate_limits: bool) -> Self {
        let files = tempfile::tempdir().unwrap();
        let market = files.path().join("market.json");
        let offers: Vec<Value> = (0..6_u32).map(|n| offer(1001 + u64::from(n), 0.40 + f64::from(n) / 100.0)).collect();
        let account =
            json!({"kind": "vast", "apiKey": API_KEY, "credit": 50, "rateLimits": rate_limits, "offers": offers});
        std::fs::File::create(&market)
            .unwrap()
            .write_all(json!({"providers": {"vast": account}}).to_string().as_bytes())
            .unwrap();
        let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_tradewind-sim"))
            .args(["serve", "--seed", "7", "--market"])
            .arg(&market)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let line = ready.expect("no ready line within 30 s").unwrap().expect("the simulator ended before it was ready");
        let ready: Value = serde_json::from_str(&line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let control = HttpSettings {
            provider: "control",
            base_url: text(&ready["control"]).parse().unwrap(),
            gate: Arc::new(RateGate::off(Arc::clone(&clock))),
            observer: Arc::new(()),
            clock: Arc::clone(&clock),
        };
        Self {
            control: Http::new(control).unwrap(),
            url: text(&ready["providers"]["vast"]["url"]),
            clock,
            keys: 0,
            _process: process,
            _files: files,
        }
    }

    fn vast(&self, gate: Option<Arc<RateGate>>) -> Vast {
        let documented = VastConfig::new("vast-main", SecretString::from(API_KEY), &self.clock);
        let s = Duration::from_secs;
        let config = VastConfig {
            base_url: self.url.parse().unwrap(),
            gate: gate.unwrap_or(Arc::clone(&documented.gate)),
            times: Times { one_try: s(5), read: s(30), terminate: s(30), rent: s(10), unseen: s(60) },
            ..documented
        };
        Vast::new(config, Arc::clone(&self.clock)).unwrap()
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Check<Value> {
        let call = Call {
            operation: "control",
            method,
            path: path.to_owned(),
            query: Vec::new(),
            body: body.map(|body| body.to_string().into_bytes()),
            bearer: None,
            timeout: Duration::from_secs(10),
            max_answer_bytes: 16 << 20,
            lane: Lane::Other,
        };
        let answer = self.control.send_once(&call, Duration::MAX).await.map_err(|e| format!("control {path}: {e}"))?;
        if answer.status != 200 {
            return Err(format!("control {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)));
        }
        serde_json::from_slice(&answer.body).map_err(|e| format!("control {path}: {e}"))
    }

    async fn patch(&self, path: &str, body: Value) -> Check {
        self.call(Method::PATCH, path, Some(body)).await.map(|_| ())
    }

    /// Requests that reached the market so far.
    async fn requests(&self) -> Check<Vec<Value>> {
        let mut events = self.call(Method::GET, "/events", None).await?;
        let events = events["events"].take();
        Ok(events.as_array().into_iter().flatten().filter(|event| event["kind"] == "request").cloned().collect())
    }
}

fn op(verb: Verb) -> &'static str {
    match verb {
        Verb::Offers => "offers",
        Verb::Rent => "rent",
        Verb::Describe => "describe",
        Verb::List => "list",
        Verb::Terminate => "terminate",
    }
}

fn dollars(money: Money) -> Value {
    let text = money.to_string();
    json!(text.parse::<f64>().unwrap())
}

impl Fixture for Sim {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn image(&self) -> String {
        "busybox".to_owned()
    }

    fn next_key(&mut self) -> OrderKey {
        self.keys += 1;
        OrderKey::new(&InstallId::derive("uid", "conformance"), "machine", self.keys, self.clock.now())
    }

    fn secrets(&self) -> Vec<String> {
        vec![API_KEY.to_owned()]
    }

    fn pass_time(&mut self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn sell_out<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        Box::pin(async move { self.patch(&format!("/offers/vast/{}", offer.id), json!({"stock": 0})).await })
    }

    fn restock<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        Box::pin(async move { self.patch(&format!("/offers/vast/{}", offer.id), json!({"stock": 1})).await })
    }

    fn set_winning_bid<'a>(&'a mut self, offer: &'a Offer, price: Money) -> BoxFuture<'a, Check> {
        Box::pin(async move { self.patch(&format!("/offers/vast/{}", offer.id), json!({"bid": dollars(price)})).await })
    }

    fn arm(&mut self, verb: Verb, fault: Fault) -> BoxFuture<'_, Check> {
        let when = match fault {
            Fault::Before => "before",
            Fault::After => "after",
            Fault::Lost => "lost",
            Fault::Garbled => "garbled",
        };
        let fault = json!({"provider": "vast", "op": op(verb), "when": when, "status": 500});
        Box::pin(async move { self.call(Method::POST, "/faults", Some(fault)).await.map(|_| ()) })
    }

    fn set_key_valid(&mut self, valid: bool) -> BoxFuture<'_, Check> {
        let key = if valid { API_KEY } else { "another-key-4711" };
        Box::pin(async move { self.patch("/providers/vast", json!({ "apiKey": key })).await })
    }

    fn calls(&mut self, verb: Verb) -> BoxFuture<'_, Check<usize>> {
        Box::pin(async move { Ok(self.requests().await?.iter().filter(|request| request["op"] == op(verb)).count()) })
    }

    fn billed<'a>(&'a mut self, key: &'a OrderKey) -> BoxFuture<'a, Check<Vec<String>>> {
        Box::pin(async move {
            let machines = self.call(Method::GET, "/machines", None).await?;
            let label = key.to_string();
            let rows = machines["machines"].as_array().into_iter().flatten();
            let billed = rows.filter(|m| m["label"] == label.as_str() && m["paid"] == true);
            Ok(billed.filter_map(|m| m["id"].as_str()).map(str::to_owned).collect())
        })
    }

    fn take_away<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Check> {
        let body = json!({"do": "outbid"});
        Box::pin(async move { self.call(Method::POST, &format!("/machines/vast/{id}"), Some(body)).await.map(|_| ()) })
    }
}

#[tokio::test]
async fn the_adapter_conforms() {
    let mut sim = Sim::start(false).await;
    let vast = sim.vast(Some(Arc::new(RateGate::off(Arc::clone(&sim.clock)))));
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
        let mut sim = Sim::start(false).await;
        let vast = sim.vast(Some(Arc::new(RateGate::off(Arc::clone(&sim.clock)))));
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
    let mut sim = Sim::start(true).await;
    let vast = sim.vast(None);
    let query = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };
    let mut offers = vast.offers(&query).await.unwrap();
    offers.retain(|offer| offer.capacity == Capacity::OnDemand);
    let not_after = sim.clock.monotonic() + Duration::from_secs(30);
    let mut ids = Vec::new();
    for offer in offers.into_iter().take(2) {
        let request = RentRequest {
            key: sim.next_key(),
            price_cap: offer.price_per_hour,
            offer,
            image: "busybox".to_owned(),
            disk_gib: 10,
            env: SecretEnv::default(),
            bootstrap: "sleep 600".to_owned(),
        };
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
