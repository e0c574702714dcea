//! The RunPod adapter against the simulator's server, as separate processes: the conformance suite, the documented request limits, the
//! output of a machine and the account's bill.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by them")]

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tradewind_core::{Capacity, Clock, InstallId, Money, Offer, OrderKey, SecretString, SystemClock, Trust};
use tradewind_providers::conformance::{self, Check, Fault, Fixture, Verb};
use tradewind_providers::http::{Call, Http, HttpSettings, Lane, Method, RateGate};
use tradewind_providers::runpod::{RunPod, RunPodConfig, Times};
use tradewind_providers::{GpuProvider, MachineState, OfferQuery, Refusal, RentOutcome, RentRequest, SecretEnv};

const API_KEY: &str = "runpod-key-5f3a9c1e7b2d";
const ANY: OfferQuery = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: 10 };

struct Sim {
    control: Http,
    url: String,
    clock: Arc<dyn Clock>,
    keys: u32,
    // Ends with the fixture.
    _process: tokio::process::Child,
    _files: tempfile::TempDir,
}

fn gpu(id: &str, memory: u32, secure: f64, community: f64) -> Value {
    json!({"id": id, "memory": memory, "price": {"secure": secure, "community": community}, "availability": "HIGH",
        "dataCenters": [{"id": "EU-RO-1", "availability": "HIGH"}, {"id": "US-KS-2", "availability": "LOW"}],
        "sim": {"stock": 6, "boot": 0.2, "lag": 0.3}})
}

impl Sim {
    async fn start(rate_limits: bool) -> Self {
        let files = tempfile::tempdir().unwrap();
        let market = files.path().join("market.json");
        let offers = [
            gpu("NVIDIA GeForce RTX 4090", 24, 0.69, 0.34),
            gpu("NVIDIA RTX A6000", 48, 0.49, 0.33),
            gpu("NVIDIA L4", 24, 0.43, 0.39),
        ];
        let account =
            json!({"kind": "runpod", "apiKey": API_KEY, "credit": 50, "rateLimits": rate_limits, "offers": offers});
        std::fs::File::create(&market)
            .unwrap()
            .write_all(json!({"providers": {"runpod": account}}).to_string().as_bytes())
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
            url: text(&ready["providers"]["runpod"]["url"]),
            clock,
            keys: 0,
            _process: process,
            _files: files,
        }
    }

    fn runpod(&self, gate: Option<Arc<RateGate>>) -> RunPod {
        let documented = RunPodConfig::new("runpod-main", SecretString::from(API_KEY), &self.clock);
        let s = Duration::from_secs;
        let config = RunPodConfig {
            base_url: self.url.parse().unwrap(),
            gate: gate.unwrap_or(Arc::clone(&documented.gate)),
            times: Times {
                one_try: s(5),
                read: s(30),
                terminate: s(30),
                rent: s(10),
                unseen: s(60),
                ..documented.times
            },
            ..documented
        };
        RunPod::new(config, Arc::clone(&self.clock)).unwrap()
    }

    fn without_limits(&self) -> RunPod {
        self.runpod(Some(Arc::new(RateGate::off(Arc::clone(&self.clock)))))
    }

    fn request(&mut self, offer: Offer, bootstrap: &str) -> RentRequest {
        RentRequest {
            key: self.next_key(),
            price_cap: offer.price_per_hour,
            offer,
            image: "busybox".to_owned(),
            disk_gib: 10,
            env: SecretEnv::default(),
            bootstrap: bootstrap.to_owned(),
        }
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

    /// How many more machines of the offer's GPU type can be had.
    async fn stock(&self, offer: &Offer, stock: u32) -> Check {
        let gpu = offer.id.splitn(4, '/').last().unwrap_or_default();
        self.patch(&format!("/offers/runpod/{gpu}"), json!({ "stock": stock })).await
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
        Box::pin(self.stock(offer, 0))
    }

    fn restock<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        Box::pin(self.stock(offer, 6))
    }

    fn set_winning_bid<'a>(&'a mut self, _: &'a Offer, _: Money) -> BoxFuture<'a, Check> {
        Box::pin(async { Err("nobody bids here".to_owned()) })
    }

    fn arm(&mut self, verb: Verb, fault: Fault) -> BoxFuture<'_, Check> {
        let when = match fault {
            Fault::Before => "before",
            Fault::After => "after",
            Fault::Lost => "lost",
            Fault::Garbled => "garbled",
        };
        let fault = json!({"provider": "runpod", "op": op(verb), "when": when, "status": 500});
        Box::pin(async move { self.call(Method::POST, "/faults", Some(fault)).await.map(|_| ()) })
    }

    fn set_key_valid(&mut self, valid: bool) -> BoxFuture<'_, Check> {
        let key = if valid { API_KEY } else { "another-key-4711" };
        Box::pin(async move { self.patch("/providers/runpod", json!({ "apiKey": key })).await })
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
        let body = json!({"do": "reclaim"});
        Box::pin(
            async move { self.call(Method::POST, &format!("/machines/runpod/{id}"), Some(body)).await.map(|_| ()) },
        )
    }
}

#[tokio::test]
async fn the_adapter_conforms() {
    let mut sim = Sim::start(false).await;
    let runpod = sim.without_limits();
    let suite = conformance::run(&runpod, &mut sim);
    let report =
        tokio::time::timeout(Duration::from_mins(3), suite).await.expect("the suite did not end within three minutes");
    assert_eq!(report.failed, []);
    assert_eq!(report.left_out, ["a losing bid leaves nothing unnamed"]);
    assert!(report.passed.len() >= 16, "{:?}", report.passed);
}

#[tokio::test]
async fn clouds_differ_in_trust_and_capacity_and_each_data_centre_is_an_offer() {
    let sim = Sim::start(false).await;
    let offers = sim.without_limits().offers(&ANY).await.unwrap();
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
    let mut sim = Sim::start(false).await;
    let runpod = sim.without_limits();
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
    let mut sim = Sim::start(false).await;
    let runpod = sim.without_limits();
    let since = sim.clock.now();
    let request = sim.request(cheapest(&runpod).await, "sleep 600");
    let id = rented(&runpod, &request).await;
    wait_for("running", async || {
        let machine = runpod.describe(&id).await.unwrap();
        machine.filter(|machine| machine.state == MachineState::Running)
    })
    .await;
    sim.call(Method::POST, "/clock", Some(json!({"advance": 5400}))).await.unwrap();
    runpod.terminate(&id).await.unwrap();
    wait_for("its end", async || runpod.describe(&id).await.unwrap().is_none().then_some(())).await;
    let machines = sim.call(Method::GET, "/machines", None).await.unwrap();
    let cost = Money::from_micros(machines["totalMicros"].as_i64().unwrap());
    let charges = runpod.charges(since).await.unwrap().expect("RunPod publishes its charges");
    assert_eq!(charges.iter().map(|charge| charge.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    let off = (charges[0].amount - cost).micros().abs();
    assert!(off <= 20_000, "billed ${}, the market took ${cost}", charges[0].amount);
    assert!(cost >= request.offer.price_per_hour, "an hour and a half of it: ${cost}");
}

#[tokio::test]
async fn an_account_without_credit_is_told_from_an_empty_market() {
    let mut sim = Sim::start(false).await;
    let runpod = sim.without_limits();
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
    let mut sim = Sim::start(true).await;
    let runpod = sim.runpod(None);
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
