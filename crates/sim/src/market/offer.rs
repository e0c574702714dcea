//! An offer: what can be rented on which terms, and how the simulation moves it.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::money::{dollars_of_micros, micros_of_dollars};
use super::time::SimTime;

/// How the simulation treats an offer: the `sim` object of a market file, never on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferTerms {
    /// Machines at once.
    pub stock: u32,
    /// Shortest and longest boot, in seconds.
    pub boot: (f64, f64),
    /// Seconds until a new machine can be seen.
    pub lag: f64,
    /// Spot prices over time: seconds after the start and dollars an hour, in order of time.
    pub prices: Vec<(f64, f64)>,
    /// Mean seconds until the host takes a machine back.
    pub lifetime: Option<f64>,
    /// Share of rent calls refused for lack of capacity, 0 to 1.
    pub refuse: f64,
    /// What our agent is to believe that its host has (`diskBytes`, `memoryBytes`, `gpus`), as a JSON object. Empty, it cannot tell: a
    /// simulated machine is a process on a host that is none of the market's.
    pub host: String,
}

impl Default for OfferTerms {
    fn default() -> Self {
        Self {
            stock: 1,
            boot: (2.0, 2.0),
            lag: 0.0,
            prices: Vec::new(),
            lifetime: None,
            refuse: 0.0,
            host: "{}".to_owned(),
        }
    }
}

/// A data centre that an offer is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its id.
    pub id: String,
    /// Machines at once in it, where that is limited apart from the offer's stock.
    pub stock: Option<u32>,
}

/// Something on the market.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The provider's id, in digits for Vast.ai.
    pub id: String,
    /// The wire's fields as in the market file, with realistic values where it has none.
    pub fields: Arc<Map<String, Value>>,
    /// Simulation terms.
    pub terms: OfferTerms,
    /// On-demand price in micro-dollars an hour.
    pub on_demand_micros_per_hour: u64,
    /// Lowest winning bid in micro-dollars an hour; `None` where the offer has no spot.
    pub bid_micros_per_hour: Option<u64>,
    /// Micro-dollars per GB of disk and month.
    pub storage_micros_per_gb_month: u64,
    /// When the host's offer ends: the hard end of every rental on it.
    pub ends_at: SimTime,
    /// The price on hosts of strangers in micro-dollars an hour, where the offer has such hosts (RunPod's Community Cloud).
    pub community_micros_per_hour: Option<u64>,
    /// Data centres, for offers that are in several.
    pub regions: Vec<Region>,
    /// How many machines may hold it at once, now.
    pub(super) capacity: u32,
    /// Entries of the price script that have happened.
    pub(super) script_done: usize,
    /// Prices changed since the file was read: those that the wire must show instead of the file's.
    pub(super) on_demand_changed: bool,
    pub(super) bid_changed: bool,
    pub(super) stock_changed: bool,
}

impl Offer {
    /// An offer with these wire fields, of which `dph_base`, `min_bid`, `storage_cost` and `end_date` matter to the market.
    pub fn new(id: String, fields: Map<String, Value>, terms: OfferTerms, ends_at: SimTime) -> Self {
        let dollars = |name: &str| fields.get(name).and_then(Value::as_f64);
        Self {
            id,
            on_demand_micros_per_hour: dollars("dph_base").map_or(0, micros_of_dollars),
            bid_micros_per_hour: dollars("min_bid").map(micros_of_dollars),
            storage_micros_per_gb_month: dollars("storage_cost").map_or(0, micros_of_dollars),
            ends_at,
            capacity: terms.stock,
            script_done: 0,
            on_demand_changed: false,
            bid_changed: false,
            stock_changed: false,
            community_micros_per_hour: None,
            regions: Vec::new(),
            fields: Arc::new(fields),
            terms,
        }
    }

    /// A GPU type of a catalogue: RunPod's way. `fields` hold the price of one GPU in `price`.
    pub fn of_catalogue(
        id: String,
        fields: Map<String, Value>,
        terms: OfferTerms,
        regions: Vec<Region>,
        storage_micros_per_gb_month: u64,
    ) -> Self {
        let price = |tier: &str| fields.get("price").and_then(|price| price.get(tier)).and_then(Value::as_f64);
        let has = |tier: &str| fields.get(tier).and_then(Value::as_bool) == Some(true);
        let on_demand = price("secure").map_or(0, micros_of_dollars);
        let community = price("community").filter(|_| has("community")).map(micros_of_dollars);
        let mut offer = Self::new(id, fields, terms, SimTime::from_micros(u64::MAX));
        offer.on_demand_micros_per_hour = on_demand;
        offer.community_micros_per_hour = community;
        offer.storage_micros_per_gb_month = storage_micros_per_gb_month;
        offer.regions = regions;
        offer
    }

    /// A number among the wire fields.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.fields.get(name).and_then(Value::as_f64)
    }

    /// A text among the wire fields.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    /// GPUs in the slice.
    pub fn gpu_count(&self) -> u64 {
        self.fields.get("num_gpus").and_then(Value::as_u64).unwrap_or(0)
    }

    /// The on-demand price for the wire: the file's own number until the market changed it.
    pub fn on_demand_dollars(&self) -> f64 {
        let tier = |tier: &str| self.fields.get("price").and_then(|price| price.get(tier)).and_then(Value::as_f64);
        let catalogue =
            if self.fields.get("secure") == Some(&Value::Bool(false)) { tier("community") } else { tier("secure") };
        match self.number("dph_base").or(catalogue) {
            Some(given) if !self.on_demand_changed => given,
            _ => dollars_of_micros(i64::try_from(self.on_demand_micros_per_hour).unwrap_or(i64::MAX)),
        }
    }

    /// What an hour on demand costs for one unit, on hosts of strangers or not, in micro-dollars.
    pub fn price_in(&self, community: bool) -> u64 {
        self.community_micros_per_hour.filter(|_| community).unwrap_or(self.on_demand_micros_per_hour)
    }

    /// The lowest winning bid for the wire: the file's own number until the market changed it.
    pub fn bid_dollars(&self) -> Option<f64> {
        match self.number("min_bid") {
            Some(given) if !self.bid_changed => Some(given),
            _ => self.bid_micros_per_hour.map(|micros| dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX))),
        }
    }

    /// The stock is not the file's any more.
    pub const fn stock_has_changed(&self) -> bool {
        self.stock_changed
    }

    /// The on-demand price is not the file's any more.
    pub const fn price_has_changed(&self) -> bool {
        self.on_demand_changed
    }

    /// When the next entry of the price script is due.
    pub(super) fn next_price_at(&self) -> Option<SimTime> {
        self.terms.prices.get(self.script_done).map(|(second, _)| SimTime::ZERO.after_seconds(*second))
    }

    pub(super) fn set_bid(&mut self, micros_per_hour: u64) {
        self.bid_changed |= self.bid_micros_per_hour != Some(micros_per_hour);
        self.bid_micros_per_hour = Some(micros_per_hour);
    }

    pub(super) fn set_on_demand(&mut self, micros_per_hour: u64) {
        self.on_demand_changed |= self.on_demand_micros_per_hour != micros_per_hour
            || self.community_micros_per_hour.is_some_and(|community| community != micros_per_hour);
        self.on_demand_micros_per_hour = micros_per_hour;
        self.community_micros_per_hour = self.community_micros_per_hour.map(|_| micros_per_hour);
    }

    /// So many machines may hold it at once from now on, wherever.
    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity;
        self.stock_changed = true;
        for region in &mut self.regions {
            region.stock = None;
        }
    }
}
