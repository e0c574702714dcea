//! The market as a [`GpuProvider`] in memory: for the world simulation, which needs neither HTTP nor an executor. Every future is ready
//! at the first poll, or, where the [`Gate`] says crash, never.
//!
//! What it tells is what our adapter of the account's kind tells of the same market over HTTP; `tests/in_process.rs` compares the two.

mod runpod;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_core::gate::{Gate, Open, Point, pass};
use tradewind_core::{Capacity, Clock, GpuModel, Money, Offer as MarketOffer, Trust};
use tradewind_providers::{
    Account, Capabilities, Charge, GpuProvider, Machine as ProviderMachine, MachineState, OfferQuery, ProviderError,
    ProviderResult, Refusal, RentOutcome, RentRequest, SelfEnd,
};

use crate::faults::{Fault, Faults, When};
use crate::market::{Kind, Machine, Market, Offer, Place, RentError, RentSpec, SimTime, State, Workload};

/// Bytes in a GiB over bytes in a GB.
const GB_PER_GIB: f64 = 1.073_741_824;
/// Times that a read or a termination is tried, as the adapter does.
const TRIES: usize = 3;
/// How long a vanished host is only "not known", as the adapter has it, in microseconds.
const OFFLINE_DOUBT_MICROS: u64 = 30_000_000;

/// One account of a shared market. Cheap to clone; clones share faults and counters.
#[derive(Clone)]
pub struct MarketProvider {
    market: Arc<Mutex<Market>>,
    kind: Kind,
    account: String,
    provider: String,
    key: Option<String>,
    clock: Arc<dyn Clock>,
    gate: Arc<dyn Gate>,
    faults: Arc<Mutex<Faults>>,
    calls: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    leftovers: bool,
    capabilities: Arc<Capabilities>,
}

impl MarketProvider {
    /// The account `account` of the market, offered under the name of the Provider object `provider`. Market time is `clock`'s wall
    /// time, counted from the market's epoch.
    pub fn new(market: Arc<Mutex<Market>>, account: &str, provider: &str, clock: Arc<dyn Clock>) -> Self {
        let known = market.lock().unwrap_or_else(PoisonError::into_inner).account(account).map(|account| account.kind);
        let kind = known.unwrap_or(Kind::Vast);
        let capabilities = match kind {
            Kind::Vast => capabilities(),
            Kind::Runpod => runpod::capabilities(),
        };
        Self {
            market,
            kind,
            account: account.to_owned(),
            provider: provider.to_owned(),
            key: None,
            clock,
            gate: Arc::new(Open),
            faults: Arc::default(),
            calls: Arc::default(),
            leftovers: false,
            capabilities: Arc::new(capabilities),
        }
    }

    /// Asks `gate` before every call: port `provider`, the verb, and what it is about.
    pub fn with_gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// Uses this key instead of always the right one.
    pub fn with_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// A losing bid leaves a stopped machine behind whose disk is billed (dstack #4036), named in the refusal.
    pub fn with_leftovers(mut self) -> Self {
        self.leftovers = true;
        self
    }

    /// The faults that wait for calls of this provider.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a verb (`offers`, `rent`, `describe`, `list`, `terminate`, `account`) has reached the market.
    pub fn calls(&self, verb: &str) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).get(verb).copied().unwrap_or(0)
    }

    /// The market's time now.
    pub fn now(&self) -> SimTime {
        self.with(|_, now| now)
    }

    fn with<R>(&self, what: impl FnOnce(&mut Market, SimTime) -> R) -> R {
        let mut market = self.market.lock().unwrap_or_else(PoisonError::into_inner);
        let since = self.clock.now().duration_since(market.timestamp(SimTime::ZERO));
        let now = SimTime::from_duration(Duration::try_from(since).unwrap_or_default());
        market.advance(now);
        what(&mut market, now)
    }

    /// One call as it reaches the market, with the fault that hits it.
    fn call<R>(&self, verb: &'static str, deed: impl FnOnce(&mut Market, SimTime) -> R) -> Result<R, Failure> {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(verb).or_default() += 1;
        let fault = self.faults().take(&self.account, verb);
        if let Some(Fault { when: When::Before, status, message, .. }) = fault {
            return Err(Failure::Answered(status, message));
        }
        let done = self.with(|market, now| {
            let account = market.account(&self.account)?;
            let known = self.key.as_ref().is_none_or(|key| *key == account.api_key);
            known.then(|| deed(market, now))
        });
        let done = done.ok_or_else(|| Failure::Answered(401, "Invalid user key".to_owned()))?;
        match fault {
            None => Ok(done),
            Some(Fault { when: When::After, status, message, .. }) => Err(Failure::Answered(status, message)),
            Some(_) => Err(Failure::Unanswered),
        }
    }

    /// A call that may be repeated.
    async fn repeat<R>(
        &self,
        verb: &'static str,
        about: &str,
        deed: impl Fn(&mut Market, SimTime) -> ProviderResult<R>,
    ) -> ProviderResult<R> {
        let provider = self.kind.as_str();
        let unavailable = |message| ProviderError::Unavailable { provider, operation: verb, message };
        let point = Point { port: "provider", verb, key: about.to_owned() };
        let tries = async {
            let mut failure = Failure::Unanswered;
            for _ in 0..TRIES {
                match self.call(verb, &deed) {
                    Ok(result) => return result,
                    Err(Failure::Answered(status, message)) if status < 500 => {
                        return Err(refused(provider, verb, status, message));
                    }
                    Err(other) => failure = other,
                }
            }
            Err(unavailable(failure.to_string()))
        };
        pass(&*self.gate, point, tries, unavailable).await
    }

    fn rent_now(&self, request: &RentRequest, not_after: Duration) -> RentOutcome {
        let refused = |why, message: String| RentOutcome::Refused { why, message, leftover: None };
        let spot = request.offer.capacity == Capacity::Spot;
        if !spot && request.offer.price_per_hour > request.price_cap {
            return refused(
                Refusal::PriceRose,
                format!("{} an hour is above the cap {}", request.offer.price_per_hour, request.price_cap),
            );
        }
        if self.clock.monotonic() > not_after {
            return refused(Refusal::RateLimited, "the time for this call is over".to_owned());
        }
        let ordered = match self.kind {
            Kind::Vast => Some((self.vast_order(request), Place::default())),
            Kind::Runpod => runpod::order(request),
        };
        let Some((spec, place)) = ordered else {
            return refused(Refusal::Invalid, "the offer is not one of this market".to_owned());
        };
        match self.call("rent", |market, now| self.rent_at(market, now, spec, &place, request.price_cap)) {
            Ok(outcome) => outcome,
            Err(Failure::Answered(status, message)) if status < 500 => match refusal_of_status(status) {
                Some(why) => refused(why, message),
                None => RentOutcome::Unknown { message },
            },
            Err(failure) => RentOutcome::Unknown { message: failure.to_string() },
        }
    }

    fn rent_at(&self, market: &mut Market, now: SimTime, spec: RentSpec, place: &Place, cap: Money) -> RentOutcome {
        let id = match market.rent_at(now, &self.account, spec, place) {
            Ok(rented) => rented.id(),
            Err(error) => return refusal(&error),
        };
        let Some(made) = market.machine(id) else { return RentOutcome::Unknown { message: "it is gone".to_owned() } };
        let (id, price) = (made.wire_id(), money(made.compute_micros_per_hour()));
        // RunPod takes no cap: the price is known by the answer only.
        if self.kind == Kind::Runpod && price > cap {
            let message = format!("the pod costs {price} an hour, more than its offer said");
            return RentOutcome::Refused { why: Refusal::PriceRose, message, leftover: Some(id) };
        }
        RentOutcome::Rented { id }
    }

    fn vast_order(&self, request: &RentRequest) -> RentSpec {
        let spot = request.offer.capacity == Capacity::Spot;
        let bid = request.offer.price_per_hour.min(request.price_cap);
        RentSpec {
            offer: request.offer.id.clone(),
            label: Some(request.key.to_string()),
            bid_micros_per_hour: spot.then(|| u64::try_from(bid.micros()).unwrap_or(0)),
            disk_milli_gb: disk_milli_gb(request.disk_gib),
            workload: Workload {
                image: request.image.clone(),
                argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), request.bootstrap.clone()],
                env: request.env.0.clone().into_iter().collect(),
                ..Workload::default()
            },
            park: self.leftovers && spot,
            start: true,
        }
    }

    fn number(&self, operation: &'static str, id: &str) -> ProviderResult<u64> {
        self.kind.parse_machine_id(id).ok_or_else(|| ProviderError::Refused {
            provider: self.kind.as_str(),
            operation,
            message: "the id is not one of this market".to_owned(),
        })
    }

    fn machine(&self, market: &Market, m: &Machine) -> Option<ProviderMachine> {
        match self.kind {
            Kind::Vast => Some(machine(market, m)),
            Kind::Runpod => runpod::machine(market, m),
        }
    }
}

impl GpuProvider for MarketProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<MarketOffer>>> {
        Box::pin(self.repeat("offers", &self.account, |market, now| {
            if self.kind == Kind::Runpod {
                return Ok(runpod::offers(market, now, (&self.account, &self.provider), query));
            }
            let found = market.offers(now, &self.account);
            let (now, fits) = (market.now(), |offer: &Offer| fits(offer, query));
            let rentable = || found.iter().filter(|(offer, free)| *free > 0 && fits(offer)).map(|(offer, _)| offer);
            let on_demand = rentable().filter_map(|offer| convert(&self.provider, offer, now, Capacity::OnDemand));
            let spot = rentable().filter_map(|offer| convert(&self.provider, offer, now, Capacity::Spot));
            Ok(on_demand.chain(spot).collect())
        }))
    }

    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome> {
        Box::pin(async move {
            let point = Point { port: "provider", verb: "rent", key: request.key.to_string() };
            let call = async { Ok::<_, String>(self.rent_now(request, not_after)) };
            pass(&*self.gate, point, call, |message| message)
                .await
                .unwrap_or_else(|message| RentOutcome::Unknown { message })
        })
    }

    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<ProviderMachine>>> {
        Box::pin(self.repeat("describe", id, move |market, now| {
            let number = self.number("describe", id)?;
            let visible = market.describe(now, &self.account, number).is_some();
            Ok(market.machine(number).filter(|_| visible).and_then(|m| self.machine(market, m)))
        }))
    }

    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<ProviderMachine>>> {
        Box::pin(self.repeat("list", &self.account, |market, now| {
            let ids: Vec<u64> = market.list(now, &self.account).iter().map(|m| m.id).collect();
            Ok(ids.iter().filter_map(|id| self.machine(market, market.machine(*id)?)).collect())
        }))
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>> {
        Box::pin(self.repeat("terminate", id, move |market, now| {
            // Gone already is as good.
            let _ = market.terminate(now, &self.account, self.number("terminate", id)?);
            Ok(())
        }))
    }

    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>> {
        Box::pin(self.repeat("account", &self.account, |market, _| {
            if self.kind == Kind::Runpod {
                // REST tells neither who the account is nor what it has.
                return Ok(Account { id: None, credit: None });
            }
            let credit = Money::from_micros(market.credit_micros(&self.account));
            Ok(Account { id: Some(crate::vast::user_id(&self.account).to_string()), credit: Some(credit) })
        }))
    }

    fn logs<'a>(&'a self, id: &'a str, _lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>> {
        // Nothing runs here, so nothing is printed.
        Box::pin(self.repeat("logs", id, |_, _| Ok(None)))
    }

    fn charges(&self, since: jiff::Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>> {
        Box::pin(self.repeat("charges", &self.account, move |market, now| {
            if self.kind == Kind::Runpod {
                return Ok(Some(runpod::charges(market, now, &self.account, since)));
            }
            let paid = |m: &&Machine| {
                let ended = market.timestamp(m.ended_at.unwrap_or(now));
                m.account == self.account && ended >= since
            };
            // The wire rounds to a tenth of a cent.
            let amount = |m: &Machine| {
                let micros = (m.cost_micros(now) + 500) / 1000 * 1000;
                Money::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
            };
            let charge = |m: &Machine| Charge { id: m.id.to_string(), amount: amount(m) };
            Ok(Some(market.machines().iter().filter(paid).map(charge).collect()))
        }))
    }

    fn self_end(&self, id: &str) -> Option<SelfEnd> {
        // There is nobody to call; the words are those of the adapter.
        let id = self.number("terminate", id).ok().filter(|_| self.kind == Kind::Vast)?;
        Some(SelfEnd {
            method: "DELETE".to_owned(),
            url: format!("https://market.invalid/api/v0/instances/{id}/"),
            bearer_env: "CONTAINER_API_KEY".to_owned(),
        })
    }
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("status {0}: {1}")]
    Answered(u16, String),
    #[error("the connection closed without an answer")]
    Unanswered,
}

fn refused(provider: &'static str, operation: &'static str, status: u16, message: String) -> ProviderError {
    match status {
        401 | 403 => ProviderError::Unauthorised { provider, message },
        429 => ProviderError::RateLimited { provider, retry_after: None },
        _ => ProviderError::Refused { provider, operation, message },
    }
}

fn refusal_of_status(status: u16) -> Option<Refusal> {
    match status {
        401 | 403 => Some(Refusal::Unauthorised),
        402 => Some(Refusal::OutOfCredit),
        404 | 410 => Some(Refusal::OutOfStock),
        429 => Some(Refusal::RateLimited),
        400..=499 => Some(Refusal::Invalid),
        _ => None,
    }
}

fn refusal(error: &RentError) -> RentOutcome {
    let (why, leftover) = match error {
        RentError::NoSuchAccount => (Refusal::Unauthorised, None),
        RentError::NoSuchOffer | RentError::SoldOut | RentError::Refused => (Refusal::OutOfStock, None),
        RentError::NoCredit => (Refusal::OutOfCredit, None),
        RentError::DiskTooLarge => (Refusal::Invalid, None),
        RentError::BidTooLow { leftover } => (Refusal::PriceRose, *leftover),
    };
    RentOutcome::Refused { why, message: error.to_string(), leftover: leftover.map(|id| id.to_string()) }
}

fn machine(market: &Market, m: &Machine) -> ProviderMachine {
    ProviderMachine {
        id: m.id.to_string(),
        key: m.label.as_deref().and_then(|label| label.parse().ok()),
        state: state(market, m),
        capacity: if m.is_spot() { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: Some(Money::from_micros(i64::try_from(m.compute_micros_per_hour()).unwrap_or(i64::MAX))),
        created_at: market.timestamp(m.created_at).round(jiff::Unit::Millisecond).ok(),
    }
}

fn state(market: &Market, m: &Machine) -> MachineState {
    let unknown = |word: &str| MachineState::Unknown { word: word.to_owned() };
    match &m.status_override {
        Some(word) if word == "running" => return MachineState::Running,
        Some(word) => return unknown(word),
        None => {}
    }
    match &m.state {
        State::Booting { .. } | State::Restarting { word: "rebooting", .. } => MachineState::Starting,
        State::Running => MachineState::Running,
        State::Restarting { word, .. } => unknown(word),
        State::BootFailed { message } => MachineState::BootFailed { message: message.clone() },
        State::Offline { since } if market.now().micros_since(*since) < OFFLINE_DOUBT_MICROS => unknown("offline"),
        State::Stopped(_) | State::Offline { .. } => MachineState::TakenAway,
        State::Ended => unknown("destroyed"),
    }
}

fn fits(offer: &Offer, query: &OfferQuery) -> bool {
    let least = |name: &str, least: f64| offer.number(name).is_some_and(|number| number >= least);
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let (memory, disk) = ((query.min_gpu_memory_mib / 100 * 97) as f64, disk_milli_gb(query.disk_gib) as f64 / 1000.0);
    let flag = |name: &str| offer.fields.get(name).and_then(serde_json::Value::as_bool);
    least("num_gpus", f64::from(query.min_gpu_count.max(1)))
        && least("gpu_ram", memory)
        && least("disk_space", disk)
        && offer.text("cpu_arch") == Some("amd64")
        && matches!(offer.text("verification"), Some("verified" | "unverified"))
        && flag("external") != Some(true)
}

fn convert(provider: &str, offer: &Offer, now: SimTime, capacity: Capacity) -> Option<MarketOffer> {
    let asked = money(offer.on_demand_micros_per_hour);
    let price = match capacity {
        Capacity::OnDemand => asked,
        Capacity::Spot => {
            let winning = money(offer.bid_micros_per_hour?.max(1_000));
            (winning <= asked).then_some(())?;
            winning.ratio(11, 10).min(asked)
        }
    };
    (price > Money::ZERO).then_some(())?;
    let gpu_memory_mib = floor(offer.number("gpu_ram")?);
    let cores = offer.number("cpu_cores_effective").or_else(|| offer.number("cpu_cores"))?;
    let share = offer.number("cpu_cores").filter(|all| *all > 0.0).map_or(1.0, |all| (cores / all).min(1.0));
    let verified = offer.text("verification") == Some("verified");
    let datacenter = offer.number("hosting_type").is_some_and(|kind| kind >= 1.0);
    let code = offer.text("geolocation").unwrap_or_default().rsplit(',').next().unwrap_or_default().trim();
    let is_code = code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase());
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let dollars = |name: &str| offer.number(name).map_or(Money::ZERO, ceil_money);
    let reliability = offer.number("reliability2").or_else(|| offer.number("reliability")).unwrap_or(0.0);
    Some(MarketOffer {
        provider: provider.to_owned(),
        id: offer.id.clone(),
        capacity,
        price_per_hour: price,
        region: if is_code { code.to_owned() } else { String::new() },
        host: offer.number("machine_id").map(|id| floor(id).to_string()).unwrap_or_default(),
        gpu: Some(GpuModel::normalise(offer.text("gpu_name")?, gpu_memory_mib)),
        gpu_count: small(offer.gpu_count()),
        gpu_memory_mib,
        cpu_millis: floor(cores * 1000.0),
        memory_mib: floor(offer.number("cpu_ram")? * share),
        disk_gib: floor(offer.number("disk_space")? / GB_PER_GIB),
        storage_price_per_gib_hour: ceil_money(offer.number("storage_cost")? * GB_PER_GIB / 720.0),
        download_price_per_gb: dollars("inet_down_cost"),
        upload_price_per_gb: dollars("inet_up_cost"),
        download_mbps: floor(offer.number("inet_down").unwrap_or(0.0)),
        upload_mbps: floor(offer.number("inet_up").unwrap_or(0.0)),
        reliability_ppm: small(floor((reliability * 1e6).round())),
        trust: if verified && datacenter { Trust::Datacenter } else { Trust::Community },
        cuda_milli: small(floor((offer.number("cuda_max_good").unwrap_or(0.0) * 1000.0).round())),
        max_duration_s: Some(offer.ends_at.micros_since(now) / 1_000_000),
    })
}

/// Dollars rounded up to the next micro-dollar, but for what is a float's doing.
fn ceil_money(dollars: f64) -> Money {
    let micros = dollars * 1e6;
    let up = if (micros - micros.round()).abs() < 1e-3 { micros.round() } else { micros.ceil() };
    Money::from_micros(i64::try_from(floor(up)).unwrap_or(i64::MAX))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating float to integer cast is wanted"
)]
fn floor(number: f64) -> u64 {
    number as u64
}

fn money(micros: u64) -> Money {
    Money::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// GiB as whole GB, rounded up.
fn disk_gb(gib: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let gb = (gib as f64 * GB_PER_GIB).ceil();
    floor(gb)
}

/// GiB as thousandths of a GB, rounded up to hundredths of a GB, at least Vast.ai's minimum of 8 GB.
fn disk_milli_gb(gib: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let hundredths = (gib as f64 * GB_PER_GIB * 100.0).ceil();
    floor(hundredths).saturating_mul(10).max(8_000)
}

/// What Vast.ai can do: the same as the adapter says.
fn capabilities() -> Capabilities {
    Capabilities {
        kind: Kind::Vast.as_str(),
        container: true,
        spot: true,
        bids: true,
        label: true,
        idempotent_rent: false,
        visibility_window: Duration::from_secs(150),
        rent_limit: Duration::from_secs(30),
        starting_costs: false,
        stopped_costs: true,
        resumes_by_itself: true,
        self_termination: true,
        max_command_chars: 4096 - "/bin/sh".len() - "-c".len(),
    }
}
