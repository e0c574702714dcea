//! `tradewind-sim probe`: drives our own adapter against any base URL, one step after the other. Whatever happens, it ends what it
//! rented.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tradewind_core::{Capacity, Clock, InstallId, Money, Offer, OrderKey, SecretString, SystemClock};
use tradewind_providers::http::SetupError;
use tradewind_providers::runpod::{RunPod, RunPodConfig};
use tradewind_providers::vast::{Vast, VastConfig};
use tradewind_providers::{GpuProvider, MachineState, OfferQuery, RentOutcome, RentRequest, SecretEnv};

use crate::market::Kind;

/// How long to wait for a machine to run or to be gone.
const PATIENCE: Duration = Duration::from_mins(15);
const DISK_GIB: u64 = 10;

/// A step of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Read the market.
    Offers,
    /// Rent the cheapest machine under the cap.
    Rent,
    /// Wait until it runs.
    Describe,
    /// List the account's machines.
    List,
    /// End it and wait until it is gone.
    Terminate,
}

impl Step {
    const fn word(self) -> &'static str {
        match self {
            Self::Offers => "offers",
            Self::Rent => "rent",
            Self::Describe => "describe",
            Self::List => "list",
            Self::Terminate => "terminate",
        }
    }
}

/// What the probe needs to know.
pub struct Settings {
    /// The provider's kind.
    pub kind: Kind,
    /// Base URL; the key goes there.
    pub url: reqwest::Url,
    /// The account's key.
    pub key: SecretString,
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Rent what may be taken away.
    pub spot: bool,
    /// Most dollars an hour.
    pub max_price: Money,
}

struct Probe {
    provider: Box<dyn GpuProvider>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    offers: Vec<Offer>,
    order: Option<OrderKey>,
    rented: Option<String>,
}

/// Runs the steps until one fails; each is one JSON line for `tell`. True if every step was ok and nothing is left.
pub async fn run(settings: Settings, tell: impl Fn(&str)) -> anyhow::Result<bool> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let provider = adapter(&settings, &clock)?;
    let mut probe = Probe { provider, clock, settings, offers: Vec::new(), order: None, rented: None };
    let mut all_ok = true;
    for step in probe.settings.steps.clone() {
        all_ok = tokio::select! {
            ok = probe.told(step, &tell) => ok,
            () = interrupted() => false,
        };
        if !all_ok {
            break;
        }
    }
    if probe.order.is_some() || probe.rented.is_some() {
        // Not asked for, or the step before failed: it must not go on costing money.
        all_ok &= probe.told(Step::Terminate, &tell).await;
    }
    Ok(all_ok)
}

/// Our adapter for the kind.
fn adapter(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Box<dyn GpuProvider>, SetupError> {
    let (key, url) = (settings.key.clone(), settings.url.clone());
    Ok(match settings.kind {
        Kind::Vast => {
            let config = VastConfig { base_url: url, ..VastConfig::new("probe", key, clock) };
            Box::new(Vast::new(config, Arc::clone(clock))?)
        }
        Kind::Runpod => {
            let config = RunPodConfig { base_url: url, ..RunPodConfig::new("probe", key, clock) };
            Box::new(RunPod::new(config, Arc::clone(clock))?)
        }
    })
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

impl Probe {
    async fn told(&mut self, step: Step, tell: &impl Fn(&str)) -> bool {
        let result = match step {
            Step::Offers => self.read_offers().await,
            Step::Rent => self.rent().await,
            Step::Describe => self.wait_until_running().await,
            Step::List => self.list().await,
            Step::Terminate => self.terminate().await,
        };
        let mut line =
            Map::from_iter([("step".to_owned(), json!(step.word())), ("ok".to_owned(), json!(result.is_ok()))]);
        match result {
            Ok(Value::Object(fields)) => line.extend(fields),
            Ok(_) => {}
            Err(why) => drop(line.insert("error".to_owned(), json!(why))),
        }
        let ok = line["ok"] == true;
        tell(&Value::Object(line).to_string());
        ok
    }

    async fn read_offers(&mut self) -> Result<Value, String> {
        let query = OfferQuery { min_gpu_count: 1, min_gpu_memory_mib: 0, disk_gib: DISK_GIB };
        self.offers = self.provider.offers(&query).await.map_err(|error| error.to_string())?;
        Ok(json!({"count": self.offers.len()}))
    }

    async fn rent(&mut self) -> Result<Value, String> {
        if self.rented.is_some() {
            return Err("a machine is rented already".to_owned());
        }
        if self.offers.is_empty() {
            self.read_offers().await?;
        }
        let capacity = if self.settings.spot { Capacity::Spot } else { Capacity::OnDemand };
        let cap = self.settings.max_price;
        let whole = |offer: &Offer| offer.price_per_hour + offer.storage_price_per_gib_hour.times(DISK_GIB);
        let fitting = self.offers.iter().filter(|offer| offer.capacity == capacity && whole(offer) <= cap);
        let offer = fitting.min_by_key(|offer| (whole(offer), offer.id.clone())).cloned();
        let offer = offer.ok_or_else(|| format!("no {capacity} offer costs at most {cap} an hour"))?;
        let uid = format!("probe-{:016x}", self.clock.entropy());
        let key = OrderKey::new(&InstallId::derive("probe", "probe"), &uid, 0, self.clock.now());
        let request = RentRequest {
            key: key.clone(),
            price_cap: offer.price_per_hour,
            image: "busybox".to_owned(),
            disk_gib: DISK_GIB,
            env: SecretEnv(BTreeMap::new()),
            bootstrap: "sleep 600".to_owned(),
            offer: offer.clone(),
        };
        self.order = Some(key);
        let not_after = self.clock.monotonic() + Duration::from_mins(1);
        match self.provider.rent(&request, not_after).await {
            RentOutcome::Rented { id } => {
                self.rented = Some(id.clone());
                Ok(json!({"id": id, "offer": offer.id, "pricePerHour": offer.price_per_hour.to_string()}))
            }
            RentOutcome::Refused { why, message, leftover } => {
                self.order = None;
                self.rented = leftover;
                Err(format!("refused ({}): {message}", why.as_str()))
            }
            RentOutcome::Unknown { message } => Err(format!("not known whether it was rented: {message}")),
        }
    }

    async fn wait_until_running(&mut self) -> Result<Value, String> {
        let id = self.rented.clone().ok_or("nothing is rented")?;
        let until = self.clock.monotonic() + PATIENCE;
        loop {
            // Not visible yet is no end: a read right after creation can miss the machine.
            let machine = self.provider.describe(&id).await.map_err(|error| error.to_string())?;
            match machine.map(|machine| machine.state) {
                Some(MachineState::Running) => return Ok(json!({"id": id, "state": "running"})),
                Some(MachineState::BootFailed { message }) => return Err(format!("the boot failed: {message}")),
                Some(MachineState::TakenAway) => return Err("the machine was taken away".to_owned()),
                _ if self.clock.monotonic() >= until => {
                    return Err(format!("not running after {} s", PATIENCE.as_secs()));
                }
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn list(&mut self) -> Result<Value, String> {
        let machines = self.provider.list_owned().await.map_err(|error| error.to_string())?;
        let missing = self.rented.as_ref().is_some_and(|id| machines.iter().all(|machine| machine.id != *id));
        if missing {
            Err("the rented machine is not on the list".to_owned())
        } else {
            Ok(json!({"count": machines.len()}))
        }
    }

    async fn terminate(&mut self) -> Result<Value, String> {
        let until = self.clock.monotonic() + PATIENCE;
        if self.rented.is_none() {
            self.find_by_key().await?;
        }
        let Some(id) = self.rented.clone() else { return Err("nothing is rented".to_owned()) };
        loop {
            let ended = self.provider.terminate(&id).await;
            // Ending is only believed once the machine reads as gone.
            if let Ok(None) = self.provider.describe(&id).await {
                (self.rented, self.order) = (None, None);
                return Ok(json!({"id": id}));
            }
            if self.clock.monotonic() >= until {
                let why = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(format!("machine {id} is still there; end it by hand{why}"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// After a rent call of unknown outcome: looks the order's key up until the machine can no longer appear.
    async fn find_by_key(&mut self) -> Result<(), String> {
        let Some(key) = self.order.clone() else { return Err("nothing is rented".to_owned()) };
        let until = self.clock.monotonic() + self.provider.capabilities().visibility_window;
        loop {
            if let Ok(machines) = self.provider.list_owned().await
                && let Some(machine) = machines.into_iter().find(|machine| machine.key.as_ref() == Some(&key))
            {
                self.rented = Some(machine.id);
                return Ok(());
            }
            if self.clock.monotonic() >= until {
                self.order = None;
                return Err("no machine appeared under the order's key".to_owned());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
