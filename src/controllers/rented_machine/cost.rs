//! What a machine costs, from what was observed. Pure.

use jiff::Timestamp;
use tradewind_api::RentedMachineStatus;
use tradewind_core::{Money, Offer};

/// Dollars until `now`: compute while it was seen running, disk from the rental until it was ended.
///
/// Vast.ai bills compute by the second while running and disk from creation to destruction (`providers/vastai.md` section 8).
pub fn so_far(offer: &Offer, disk_gib: i64, status: &RentedMachineStatus, now: Timestamp) -> Money {
    let Some(rented) = status.rented_at.as_ref().map(|t| t.0) else { return Money::ZERO };
    let gone = status.gone_at.as_ref().map_or(now, |t| t.0);
    let disk_rate = disk_per_hour(offer, disk_gib);
    let rate = status.price_per_hour.map_or(offer.price_per_hour, |price| price - disk_rate);
    let disk = disk_rate.for_seconds(seconds(rented, gone));
    let compute = status.running_since.as_ref().map_or(Money::ZERO, |since| {
        let until = status.running_until.as_ref().map_or(gone, |t| t.0.min(gone));
        rate.for_seconds(seconds(since.0, until))
    });
    disk + compute
}

/// Dollars an hour with disk.
pub fn per_hour(offer: &Offer, disk_gib: i64) -> Money {
    with_disk(offer.price_per_hour, offer, disk_gib)
}

/// Dollars an hour with disk, when compute costs `price` an hour.
pub fn with_disk(price: Money, offer: &Offer, disk_gib: i64) -> Money {
    price + disk_per_hour(offer, disk_gib)
}

fn disk_per_hour(offer: &Offer, disk_gib: i64) -> Money {
    offer.storage_price_per_gib_hour.times(u64::try_from(disk_gib).unwrap_or(0))
}

/// The instant half-way between two.
pub fn between(a: Timestamp, b: Timestamp) -> Timestamp {
    let half = b.duration_since(a) / 2;
    a.checked_add(half).unwrap_or(b)
}

/// Whole seconds, as the bill counts them.
fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)
}
