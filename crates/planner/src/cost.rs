//! What an offer would cost until the work is done, in money and in time.
//!
//! Time = set-up + image pull + restore + run + lost. A machine is expected to be lost run ÷ mean life times (spot only) and once
//! each time its host's offer ends under it. Each loss costs one changeover (set-up, pull, restore), half a save interval, and the
//! upload that the newest save had not finished. A job that saves nothing loses half of its run instead. Every part but disk and
//! traffic is that time at the hourly price. All sums round up and stop at the largest number.

use tradewind_core::{Capacity, Money, Offer};

use crate::knowledge::{DEFAULT_DOWNLOAD_MBPS, Lookup};
use crate::needs::{Requirements, WorkLeft};
use crate::speed::{SpeedBasis, scale};

/// Expected seconds from the rent call to the end of the work, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeBreakdown {
    /// Until the container could start.
    pub setup_s: u64,
    /// Pulling the image.
    pub image_pull_s: u64,
    /// Fetching the checkpoint to go on from.
    pub restore_s: u64,
    /// The work itself.
    pub run_s: u64,
    /// Changeovers and repeated work of all expected losses.
    pub lost_s: u64,
    /// Expected number of losses, in thousandths.
    pub losses_milli: u64,
}

impl TimeBreakdown {
    /// Seconds until the program runs.
    pub fn startup_s(&self) -> u64 {
        self.setup_s.saturating_add(self.image_pull_s).saturating_add(self.restore_s)
    }

    /// Seconds in all.
    pub fn total_s(&self) -> u64 {
        self.startup_s().saturating_add(self.run_s).saturating_add(self.lost_s)
    }
}

/// Expected cost until the work is done, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CostBreakdown {
    /// The work itself.
    pub compute: Money,
    /// Waiting for the container.
    pub setup: Money,
    /// Pulling the image.
    pub image_pull: Money,
    /// Fetching the checkpoint.
    pub restore: Money,
    /// Changeovers and repeated work.
    pub expected_lost_work: Money,
    /// Disk over the whole time.
    pub storage: Money,
    /// Image, restores and checkpoint uploads at the host's price per GB.
    pub traffic: Money,
    /// The sum of all above.
    pub total: Money,
}

/// Everything that is computed about one offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Estimate {
    pub(crate) time: TimeBreakdown,
    pub(crate) cost: CostBreakdown,
    /// Compute and disk for one hour.
    pub(crate) hourly: Money,
    pub(crate) speed: SpeedBasis,
    /// Whether the host offers the machine for so short a time that nothing would be gained.
    pub(crate) too_short: bool,
}

/// Seconds to move `mb` megabytes at `mbps`, rounded up.
fn transfer_s(mb: u64, mbps: u64) -> u64 {
    let mbps = if mbps == 0 { DEFAULT_DOWNLOAD_MBPS } else { mbps };
    mb.saturating_mul(8).div_ceil(mbps)
}

/// `amount` × thousandths, rounded up.
fn times_milli(amount: u64, milli: u64) -> u64 {
    let product = (u128::from(amount) * u128::from(milli)).div_ceil(1000);
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// What the host's end of offer does to the run: losses that are sure to come, or no use at all.
fn offer_ends(offer: &Offer, startup_s: u64, run_s: u64, one_save_s: Option<u64>) -> (u64, bool) {
    let Some(limit) = offer.max_duration_s else { return (0, false) };
    let usable = limit.saturating_sub(startup_s);
    if run_s <= usable {
        return (0, false);
    }
    match one_save_s {
        Some(save) if usable > save => ((run_s - 1) / usable, false),
        _ => (0, true),
    }
}

pub(crate) fn estimate(needs: &Requirements, work: &WorkLeft, lookup: &Lookup<'_>, offer: &Offer) -> Estimate {
    let known = lookup.known;
    let gpu = if needs.gpu_count == 0 { None } else { offer.gpu.as_ref() };
    let (run_s, speed) = scale(work.seconds, work.on.as_ref(), gpu);
    let mut time = TimeBreakdown {
        setup_s: lookup.setup_s(offer),
        image_pull_s: transfer_s(lookup.image_mb(), offer.download_mbps),
        restore_s: transfer_s(known.restore_mb, offer.download_mbps),
        run_s,
        ..TimeBreakdown::default()
    };

    let one_save_s = known.checkpoint_interval_s.map(|s| s.saturating_add(known.checkpoint_upload_s));
    let (ends, too_short) = offer_ends(offer, time.startup_s(), run_s, one_save_s);
    let taken_milli = match offer.capacity {
        Capacity::Spot => run_s.saturating_mul(1000) / lookup.mean_life_s(offer),
        Capacity::OnDemand => 0,
    };
    time.losses_milli = taken_milli.saturating_add(ends.saturating_mul(1000));
    let later_restore_s = transfer_s(lookup.checkpoint_mb(), offer.download_mbps);
    let repeated_s = match known.checkpoint_interval_s {
        // A save interval longer than the run saves nothing in time.
        Some(interval) => (interval.min(run_s) / 2).saturating_add(known.checkpoint_upload_s),
        None => run_s / 2,
    };
    let one_loss_s =
        time.setup_s.saturating_add(time.image_pull_s).saturating_add(later_restore_s).saturating_add(repeated_s);
    time.lost_s = times_milli(one_loss_s, time.losses_milli);

    let disk_per_hour = offer.storage_price_per_gib_hour.times(needs.disk_gib);
    let price = offer.price_per_hour;
    let mut cost = CostBreakdown {
        compute: price.for_seconds(time.run_s),
        setup: price.for_seconds(time.setup_s),
        image_pull: price.for_seconds(time.image_pull_s),
        restore: price.for_seconds(time.restore_s),
        expected_lost_work: price.for_seconds(time.lost_s),
        storage: disk_per_hour.for_seconds(time.total_s()),
        traffic: traffic(lookup, offer, &time),
        total: Money::ZERO,
    };
    cost.total = cost.sum();
    Estimate { time, cost, hourly: price + disk_per_hour, speed, too_short }
}

impl CostBreakdown {
    /// The sum of the parts.
    pub(crate) fn sum(&self) -> Money {
        [self.compute, self.setup, self.image_pull, self.restore, self.expected_lost_work, self.storage, self.traffic]
            .into_iter()
            .sum()
    }
}

/// Bytes in both directions at the host's prices. Every save counts in full: what the parent checkpoint already holds is not sent
/// again, but how much that is nobody knows before.
fn traffic(lookup: &Lookup<'_>, offer: &Offer, time: &TimeBreakdown) -> Money {
    let image = lookup.image_mb();
    let again = times_milli(image.saturating_add(lookup.checkpoint_mb()), time.losses_milli);
    let down_mb = image.saturating_add(lookup.known.restore_mb).saturating_add(again);
    let saves = lookup.known.checkpoint_interval_s.map_or(0, |interval| time.run_s.div_ceil(interval.max(1)));
    let up_mb = saves.saturating_mul(lookup.checkpoint_mb());
    offer.download_price_per_gb.ratio(down_mb, 1000) + offer.upload_price_per_gb.ratio(up_mb, 1000)
}
