//! What the index keeps of an offer, in the order in which it is searched.

use tradewind_core::{Capacity, GpuModel, Money, Offer};

use crate::cost::Terms;
use crate::fit::unusable;
use crate::gpus::{Gpu, Known};
use crate::knowledge::{HostRecord, failures_milli};
use crate::lookup::{PoolFacts, host_life_s};

/// The figures of one offer that a decision needs, side by side in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) price: Money,
    pub(super) storage_price: Money,
    download_price: Money,
    upload_price: Money,
    pub(super) download_mbps: u64,
    host_life_s: u64,
    max_duration_s: u64,
    /// Set-up of its host, where that has a figure of its own.
    pub(super) host_setup_s: Option<u64>,
    pub(super) minimums: [u64; MINIMUMS],
    failed_starts_milli: u64,
    pub(super) region: u32,
    pub(super) slot: u32,
    /// Whether the offer makes sense. One that does not is never ranked, and bounds nothing.
    pub(super) sound: bool,
}

/// Figures of which a job may ask for a minimum.
pub(super) const MINIMUMS: usize = 9;
/// The place of the reliability among them.
pub(super) const RELIABILITY: usize = 5;

/// Those figures of an offer. [`crate::index::query`] lists what a job asks for in the same order.
pub(super) fn minimums(offer: &Offer) -> [u64; MINIMUMS] {
    [
        offer.gpu_memory_mib,
        offer.cpu_millis,
        offer.memory_mib,
        offer.disk_gib,
        offer.trust as u64,
        offer.reliability_ppm.into(),
        offer.download_mbps,
        offer.upload_mbps,
        offer.cuda_milli.into(),
    ]
}

impl Row {
    pub(super) fn new(offer: &Offer, region: u32, slot: u32, host: HostRecord, repair_s: u64) -> Self {
        let mut row = Self {
            price: offer.price_per_hour,
            storage_price: offer.storage_price_per_gib_hour,
            download_price: offer.download_price_per_gb,
            upload_price: offer.upload_price_per_gb,
            download_mbps: offer.download_mbps,
            host_life_s: u64::MAX,
            max_duration_s: offer.max_duration_s.unwrap_or(u64::MAX),
            host_setup_s: None,
            minimums: minimums(offer),
            failed_starts_milli: 0,
            region,
            slot,
            sound: unusable(offer).is_none(),
        };
        row.learn(host, offer.reliability_ppm, repair_s);
        row
    }

    /// Takes over what is known of its host.
    pub(super) fn learn(&mut self, host: HostRecord, reliability_ppm: u32, repair_s: u64) {
        self.host_life_s = host_life_s(host, reliability_ppm, repair_s);
        self.host_setup_s = host.setup_s;
        self.failed_starts_milli = failures_milli(host.failed_starts_ppm);
    }

    /// The same as the look-up says for its offer.
    pub(super) fn terms(&self, group: &Group) -> Terms {
        Terms {
            price: self.price,
            storage_price: self.storage_price,
            download_price: self.download_price,
            upload_price: self.upload_price,
            download_mbps: self.download_mbps,
            setup_s: self.host_setup_s.unwrap_or(group.pool.setup_s),
            pool_life_s: group.pool_life_s(),
            host_life_s: self.host_life_s,
            failed_starts_milli: self.failed_starts_milli,
            refused_milli: group.pool.refused_milli,
            max_duration_s: self.max_duration_s,
            running: false,
        }
    }
}

/// What all offers of a group have in common. The order of the fields is the order of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) gpu_count: u32,
    /// Place in the list of models; [`NO_GPU`] = none.
    pub(super) model: u32,
    /// Place in the list of providers.
    pub(super) provider: u32,
    pub(super) capacity: Capacity,
}

/// The place of no model.
pub(super) const NO_GPU: u32 = u32::MAX;

/// Offers with one key, side by side, cheapest first.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) key: Key,
    /// Where its rows begin; they end where the next group's begin.
    pub(super) start: usize,
    pub(super) pool: PoolFacts,
    /// The best of each figure that any of its rows has had: what no row can be better than.
    pub(super) best: Best,
}

/// Bounds for all rows of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) price: Money,
    pub(super) setup_s: u64,
    /// Not told counts as the assumed bandwidth.
    pub(super) download_mbps: u64,
    pub(super) storage_price: Money,
}

impl Group {
    pub(super) fn new(key: Key, start: usize, pool: PoolFacts) -> Self {
        let best = Best { price: Money::MAX, setup_s: pool.setup_s, download_mbps: 1, storage_price: Money::MAX };
        Self { key, start, pool, best }
    }

    pub(super) const fn pool_life_s(&self) -> u64 {
        match self.key.capacity {
            Capacity::Spot => self.pool.life_s,
            Capacity::OnDemand => u64::MAX,
        }
    }

    /// What no row of the group can be better than, at the price of nothing.
    pub(super) fn best_terms(&self) -> Terms {
        Terms {
            price: Money::ZERO,
            storage_price: self.best.storage_price,
            download_price: Money::ZERO,
            upload_price: Money::ZERO,
            download_mbps: self.best.download_mbps,
            setup_s: self.best.setup_s,
            pool_life_s: self.pool_life_s(),
            host_life_s: u64::MAX,
            failed_starts_milli: 0,
            refused_milli: self.pool.refused_milli,
            max_duration_s: u64::MAX,
            running: false,
        }
    }

    /// Widens the bounds, so that they hold for this row too.
    pub(super) fn admit(&mut self, row: &Row) {
        if !row.sound {
            return;
        }
        let mbps = if row.download_mbps == 0 { crate::knowledge::DEFAULT_DOWNLOAD_MBPS } else { row.download_mbps };
        self.best.price = self.best.price.min(row.price);
        self.best.setup_s = self.best.setup_s.min(row.host_setup_s.unwrap_or(u64::MAX));
        self.best.download_mbps = self.best.download_mbps.max(mbps);
        self.best.storage_price = self.best.storage_price.min(row.storage_price);
    }
}

/// One model of the market, with its row of the table.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) name: GpuModel,
    row: Option<&'static Gpu>,
    speed_milli: Option<u32>,
}

impl Model {
    pub(super) fn new(name: &GpuModel) -> Self {
        let Known { row, speed_milli, .. } = Known::new(name);
        Self { name: name.clone(), row, speed_milli }
    }

    pub(super) fn known(&self) -> Known<'_> {
        Known { model: &self.name, row: self.row, speed_milli: self.speed_milli }
    }
}
