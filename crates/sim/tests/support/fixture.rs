//! The surroundings of the conformance suite: a served simulator with one account of either kind.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tradewind_core::{Clock, InstallId, Money, Offer, OrderKey, SystemClock};
use tradewind_providers::conformance::{Check, Fault, Fixture, Verb};
use tradewind_providers::http::RateGate;
use tradewind_providers::{RentRequest, SecretEnv};

use super::Served;

/// What sets one kind of account apart.
pub struct Terms {
    /// The kind, which is also the account's name.
    pub kind: &'static str,
    /// The account's key.
    pub api_key: &'static str,
    /// The control API's id of what an offer is taken from.
    pub stock_of: fn(&Offer) -> &str,
    /// How many there are once it is restocked.
    pub stock: u32,
    /// Whether offers are bid for.
    pub bids: bool,
    /// The control API's word for losing a machine.
    pub taken_away: &'static str,
}

/// A served simulator. It ends with the value.
pub struct Sim {
    served: Served,
    terms: &'static Terms,
    pub clock: Arc<dyn Clock>,
    keys: u32,
}

impl Sim {
    /// Starts it with these offers.
    pub fn start(terms: &'static Terms, offers: &Value, rate_limits: bool) -> Self {
        let account = json!({"kind": terms.kind, "apiKey": terms.api_key, "credit": 50, "rateLimits": rate_limits, "offers": offers});
        let market = json!({ "providers": { terms.kind: account } });
        let served = Served::start(&market, &["--seed", "7"]);
        Self { served, terms, clock: Arc::new(SystemClock::default()), keys: 0 }
    }

    /// Where the account is served.
    pub fn url(&self) -> String {
        self.served.url(self.terms.kind)
    }

    /// No request limits.
    pub fn no_limits(&self) -> Arc<RateGate> {
        Arc::new(RateGate::off(Arc::clone(&self.clock)))
    }

    /// A request for this offer at its price.
    pub fn request(&mut self, offer: Offer, bootstrap: &str) -> RentRequest {
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

    /// A call to the control API.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Check<Value> {
        let (status, answer) = self.served.control(method, path, body).await;
        if status == 200 { Ok(answer) } else { Err(format!("control {path}: {status} {answer}")) }
    }

    /// A change by the control API.
    pub async fn patch(&self, path: &str, body: Value) -> Check {
        self.call(Method::PATCH, path, body).await.map(drop)
    }

    /// Requests that reached the market so far.
    pub async fn requests(&self) -> Check<Vec<Value>> {
        let mut events = self.call(Method::GET, "/events", Value::Null).await?;
        let events = events["events"].take();
        Ok(events.as_array().into_iter().flatten().filter(|event| event["kind"] == "request").cloned().collect())
    }

    async fn change(&self, offer: &Offer, change: Value) -> Check {
        // Names of GPUs have blanks.
        let id = utf8_percent_encode((self.terms.stock_of)(offer), NON_ALPHANUMERIC);
        self.patch(&format!("/offers/{}/{id}", self.terms.kind), change).await
    }
}

/// The word for a verb in faults and events.
pub fn op(verb: Verb) -> &'static str {
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
        vec![self.terms.api_key.to_owned()]
    }

    fn pass_time(&mut self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn sell_out<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        Box::pin(self.change(offer, json!({"stock": 0})))
    }

    fn restock<'a>(&'a mut self, offer: &'a Offer) -> BoxFuture<'a, Check> {
        Box::pin(self.change(offer, json!({"stock": self.terms.stock})))
    }

    fn set_winning_bid<'a>(&'a mut self, offer: &'a Offer, price: Money) -> BoxFuture<'a, Check> {
        if !self.terms.bids {
            return Box::pin(async { Err("nobody bids here".to_owned()) });
        }
        Box::pin(self.change(offer, json!({"bid": dollars(price)})))
    }

    fn arm(&mut self, verb: Verb, fault: Fault) -> BoxFuture<'_, Check> {
        let when = match fault {
            Fault::Before => "before",
            Fault::After => "after",
            Fault::Lost => "lost",
            Fault::Garbled => "garbled",
        };
        let fault = json!({"provider": self.terms.kind, "op": op(verb), "when": when, "status": 500});
        Box::pin(async move { self.call(Method::POST, "/faults", fault).await.map(drop) })
    }

    fn set_key_valid(&mut self, valid: bool) -> BoxFuture<'_, Check> {
        let key = if valid { self.terms.api_key } else { "another-key-4711" };
        Box::pin(async move { self.patch(&format!("/providers/{}", self.terms.kind), json!({ "apiKey": key })).await })
    }

    fn calls(&mut self, verb: Verb) -> BoxFuture<'_, Check<usize>> {
        Box::pin(async move { Ok(self.requests().await?.iter().filter(|request| request["op"] == op(verb)).count()) })
    }

    fn billed<'a>(&'a mut self, key: &'a OrderKey) -> BoxFuture<'a, Check<Vec<String>>> {
        Box::pin(async move {
            let machines = self.call(Method::GET, "/machines", Value::Null).await?;
            let label = key.to_string();
            let rows = machines["machines"].as_array().into_iter().flatten();
            let billed = rows.filter(|m| m["label"] == label.as_str() && m["paid"] == true);
            Ok(billed.filter_map(|m| m["id"].as_str()).map(str::to_owned).collect())
        })
    }

    fn take_away<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Check> {
        let body = json!({"do": self.terms.taken_away});
        Box::pin(async move {
            self.call(Method::POST, &format!("/machines/{}/{id}", self.terms.kind), body).await.map(drop)
        })
    }
}
