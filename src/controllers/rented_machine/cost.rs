//! What a machine costs, from what was observed. Pure.

use jiff::Timestamp;
use tradewind_api::RentedMachineStatus;
use tradewind_core::{Money, Offer};
use tradewind_planner::DEFAULT_IMAGE_MB;

/// Dollars until `now`: compute while it was seen running, disk from the rental until it was ended, and an estimate of its traffic.
///
/// Vast.ai bills compute by the second while running, disk from creation to destruction, and every byte in and out at the host's price, the
/// image's too (`providers/vastai.md` section 8).
pub fn so_far(
    offer: &Offer,
    (disk_gib, image_bytes): (i64, Option<i64>),
    status: &RentedMachineStatus,
    now: Timestamp,
) -> Money {
    let Some(rented) = status.rented_at.as_ref().map(|t| t.0) else { return Money::ZERO };
    let gone = status.gone_at.as_ref().map_or(now, |t| t.0);
    let disk_rate = disk_per_hour(offer, disk_gib);
    let rate = status.price_per_hour.map_or(offer.price_per_hour, |price| price - disk_rate);
    let disk = disk_rate.for_seconds(seconds(rented, gone));
    let compute = status.running_since.as_ref().map_or(Money::ZERO, |since| {
        let until = status.running_until.as_ref().map_or(gone, |t| t.0.min(gone));
        rate.for_seconds(seconds(since.0, until))
    });
    disk + compute + traffic(offer, status, image_bytes)
}

/// An estimate of what a machine's bytes in and out cost so far: the image once it was pulled, at the size that plans assume where it is
/// not known, and checkpoints.
/// What the program itself sends and fetches nobody sees.
pub fn traffic(offer: &Offer, status: &RentedMachineStatus, image_bytes: Option<i64>) -> Money {
    let mb = |bytes: i64| u64::try_from(bytes).unwrap_or(0).div_ceil(1_000_000);
    let pulled = status.running_since.is_some() || status.boot.is_some();
    let image = if pulled { image_bytes.map_or(DEFAULT_IMAGE_MB, mb) } else { 0 };
    let counted = status.traffic.unwrap_or_default();
    offer.download_price_per_gb.ratio(image + mb(counted.received_bytes), 1000)
        + offer.upload_price_per_gb.ratio(mb(counted.sent_bytes), 1000)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_cost_what_the_host_asks() {
        let mut offer = super::super::decide_tests::offer("1");
        let status = |value| serde_json::from_value::<RentedMachineStatus>(value).unwrap();
        let traffic = json!({"sentBytes": 2_500_000_000_u64, "receivedBytes": 4_000_000_000_u64});
        let booted = status(json!({"boot": "b", "traffic": traffic}));
        assert_eq!(super::traffic(&offer, &booted, None), Money::ZERO, "a host that bills none");
        offer.download_price_per_gb = Money::from_micros(10_000);
        offer.upload_price_per_gb = Money::from_micros(20_000);
        assert_eq!(super::traffic(&offer, &status(json!({})), None), Money::ZERO, "nothing was pulled yet");
        assert_eq!(super::traffic(&offer, &booted, None).to_string(), "0.15", "6 + 4 GB in, 2.5 GB out");
        let more = super::traffic(&offer, &booted, Some(16_000_000_000)) - super::traffic(&offer, &booted, None);
        assert_eq!(more, offer.download_price_per_gb.times(10), "an image of 16 GB is 10 GB more than is assumed");
        let at = "2026-11-21T10:00:00.000000Z";
        let gone = status(json!({"boot": "b", "traffic": traffic, "rentedAt": at, "goneAt": at}));
        assert_eq!(
            so_far(&offer, (10, None), &gone, Timestamp::UNIX_EPOCH).to_string(),
            "0.15",
            "it is part of the cost"
        );
    }
}
