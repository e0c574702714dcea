//! From the market's offers to ours. Whatever is odd about one row costs that row only.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};

use super::wire::{OfferRow, SearchAnswer};
pub(super) use crate::amounts::money;
use crate::amounts::{GB_PER_GIB, HOURS_PER_MONTH, whole};

/// The bounds of a bid, $/h (endpoint file of create instance, `x-input-validation`).
pub(super) const MIN_BID: Money = Money::from_micros(1_000);
pub(super) const MAX_BID: Money = Money::from_micros(128_000_000);
/// The smallest disk, GB (same file).
const MIN_DISK_GB: f64 = 8.0;

/// Offers of one look at the market.
pub(super) struct Look {
    pub offers: Vec<Offer>,
    /// Rows that could not be read or cannot be rented.
    pub dropped: usize,
    /// Those of them that could not even be read.
    pub unreadable: usize,
}

/// Reads both searches: on demand, and by bid.
pub(super) fn offers(provider: &str, on_demand: &SearchAnswer<'_>, bid: &SearchAnswer<'_>) -> Look {
    let mut result = Look { offers: Vec::new(), dropped: 0, unreadable: 0 };
    let mut asked: BTreeMap<String, Money> = BTreeMap::new();
    for raw in &on_demand.offers {
        let row = result.read(raw);
        match row.and_then(|row| on_demand_offer(provider, &row)) {
            Some(offer) => {
                asked.insert(offer.id.clone(), offer.price_per_hour);
                result.offers.push(offer);
            }
            None => result.dropped += 1,
        }
    }
    for raw in &bid.offers {
        let row = result.read(raw);
        match row.and_then(|row| spot_offer(provider, &row, &asked)) {
            Some(offer) => result.offers.push(offer),
            None => result.dropped += 1,
        }
    }
    result
}

impl Look {
    fn read(&mut self, raw: &RawValue) -> Option<OfferRow> {
        let row = serde_json::from_str(raw.get()).ok();
        self.unreadable += usize::from(row.is_none());
        row
    }
}

fn on_demand_offer(provider: &str, row: &OfferRow) -> Option<Offer> {
    let price = money(row.dph_base.or(row.dph_total)?)?;
    (price > Money::ZERO).then_some(())?;
    machine(provider, row, Capacity::OnDemand, price)
}

/// Our bid is the lowest that wins now and a tenth more, at most what the machine costs on demand. Where even the lowest winning bid
/// costs more than that, there is nothing to gain by bidding.
fn spot_offer(provider: &str, row: &OfferRow, asked: &BTreeMap<String, Money>) -> Option<Offer> {
    let winning = money(row.min_bid?)?.max(MIN_BID);
    let ceiling = asked.get(&row.id.to_string()).copied().unwrap_or(MAX_BID).min(MAX_BID);
    let price = winning.ratio(11, 10).min(ceiling);
    (winning <= ceiling).then_some(())?;
    machine(provider, row, Capacity::Spot, price)
}

fn machine(provider: &str, row: &OfferRow, capacity: Capacity, price_per_hour: Money) -> Option<Offer> {
    let rentable = row.rentable != Some(false) && row.external != Some(true);
    // Slices without GPU are listed, but cannot be created (field report).
    let gpu_count = whole(row.num_gpus?).filter(|n| (1..=1024).contains(n))?;
    let memory_mib = whole(row.gpu_ram?)?;
    let cores = row.cpu_cores_effective.or_else(|| Some(row.cpu_cores? * row.gpu_frac.unwrap_or(1.0)))?;
    let name = row.gpu_name.as_deref().filter(|name| !name.trim().is_empty() && name.len() <= 64)?;
    rentable.then(|| {
        Some(Offer {
            provider: provider.to_owned(),
            id: row.id.to_string(),
            capacity,
            price_per_hour,
            region: region(row.geolocation.as_deref().unwrap_or_default()),
            host: row.machine_id.map(|id| id.to_string()).unwrap_or_default(),
            gpu: Some(GpuModel::normalise(name, memory_mib)),
            gpu_count: u32::try_from(gpu_count).ok()?,
            gpu_memory_mib: memory_mib,
            cpu_millis: whole(cores * 1000.0)?,
            memory_mib: memory_share(row, cores)?,
            disk_gib: whole(row.disk_space? / GB_PER_GIB)?,
            storage_price_per_gib_hour: money(row.storage_cost? * GB_PER_GIB / HOURS_PER_MONTH)?,
            download_price_per_gb: money(row.inet_down_cost.unwrap_or(0.0))?,
            upload_price_per_gb: money(row.inet_up_cost.unwrap_or(0.0))?,
            download_mbps: whole(row.inet_down.unwrap_or(0.0))?,
            upload_mbps: whole(row.inet_up.unwrap_or(0.0))?,
            reliability_ppm: reliability(row),
            trust: trust(row),
            cuda_milli: whole((row.cuda_max_good.unwrap_or(0.0) * 1000.0).round())
                .and_then(|n| u32::try_from(n).ok())?,
            max_duration_s: row.duration.and_then(whole),
        })
    })?
}

/// `cpu_ram` is the whole host's; ours is the share that goes with our cores.
fn memory_share(row: &OfferRow, cores: f64) -> Option<u64> {
    let share = row.cpu_cores.filter(|all| *all > 0.0).map_or(1.0, |all| (cores / all).min(1.0));
    whole(row.cpu_ram? * share)
}

/// Verified and in a data centre. `verified` itself is stale in answers; `verification` is the word, `vericode` 1 its stand-in.
fn trust(row: &OfferRow) -> Trust {
    let verified = row.verification.as_deref().map_or(row.vericode == Some(1), |word| word == "verified");
    if verified && row.hosting_type.is_some_and(|kind| kind >= 1) { Trust::Datacenter } else { Trust::Community }
}

fn reliability(row: &OfferRow) -> u32 {
    let share = row.reliability2.or(row.reliability).unwrap_or(0.0).clamp(0.0, 1.0);
    whole((share * 1e6).round()).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// The country of `"Czechia, CZ"` or `", US"`; `""` if its last part is no country code. Answers have a continent behind it only for
/// those who ask for one.
fn region(geolocation: &str) -> String {
    let last = geolocation.rsplit(',').next().unwrap_or_default().trim();
    let is_code = last.len() == 2 && last.bytes().all(|b| b.is_ascii_uppercase());
    if is_code { last.to_owned() } else { String::new() }
}

/// Dollars for the wire.
pub(super) fn dollars(money: Money) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "bids are at most 128 million micro-dollars")]
    let micros = money.micros() as f64;
    micros / 1e6
}

/// The disk to ask for, in GB rounded up to hundredths, at least the market's minimum.
pub(super) fn disk_gb(gib: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a disk's size in GiB is far below 2^52")]
    let gb = gib as f64 * GB_PER_GIB;
    ((gb * 100.0).ceil() / 100.0).max(MIN_DISK_GB)
}
