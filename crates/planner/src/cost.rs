//! What an offer would cost until the work is done, in money and in time.
//!
//! Time = refused calls + set-up + image pull + input + restore + run + lost. A machine is expected to be lost run ÷ mean life of its pool
//! times (spot only), run ÷ mean life of its host times, and once each time its host's offer ends under it. Each loss costs one changeover
//! (set-up, pull, input, restore), half a save interval, and the upload that the newest save had not finished. A job that saves nothing
//! loses half of its run instead. A host that often does not start a machine costs the vain starts. Time before a machine is ours is free;
//! every other part but disk and bytes is its time at the hourly price. All sums round up and stop at the largest number.

use tradewind_core::Money;

use crate::knowledge::{DEFAULT_DOWNLOAD_MBPS, JobFacts, REFUSAL_S};
use crate::speed::{Pace, SpeedBasis};

/// Expected seconds from the rent call to the end of the work, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeBreakdown {
    /// Rent calls that are refused, before any machine is paid for.
    pub refused_s: u64,
    /// Until the container could start.
    pub setup_s: u64,
    /// Pulling the image.
    pub image_pull_s: u64,
    /// Downloading the job's inputs.
    pub input_s: u64,
    /// Fetching the checkpoint to go on from.
    pub restore_s: u64,
    /// The work itself.
    pub run_s: u64,
    /// Changeovers and repeated work of all expected losses, and vain starts.
    pub lost_s: u64,
    /// Expected number of losses, in thousandths.
    pub losses_milli: u64,
}

impl TimeBreakdown {
    /// Seconds from the start of the machine until the program runs.
    pub fn startup_s(&self) -> u64 {
        self.setup_s.saturating_add(self.image_pull_s).saturating_add(self.input_s).saturating_add(self.restore_s)
    }

    /// Seconds for which a machine is paid.
    pub fn paid_s(&self) -> u64 {
        self.startup_s().saturating_add(self.run_s).saturating_add(self.lost_s)
    }

    /// Seconds in all.
    pub fn total_s(&self) -> u64 {
        self.paid_s().saturating_add(self.refused_s)
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
    /// Downloading the job's inputs.
    pub input_download: Money,
    /// Fetching the checkpoint.
    pub restore: Money,
    /// Changeovers and repeated work.
    pub expected_lost_work: Money,
    /// Disk over the whole time.
    pub storage: Money,
    /// Image, inputs, restores, checkpoint uploads and results at the host's price per GB.
    pub traffic: Money,
    /// What the store takes for inputs and checkpoints that are read out of it.
    pub egress: Money,
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

/// The figures of one offer, its pool and its host that its cost depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) price: Money,
    pub(crate) storage_price: Money,
    pub(crate) download_price: Money,
    pub(crate) upload_price: Money,
    /// 0 = not told.
    pub(crate) download_mbps: u64,
    pub(crate) setup_s: u64,
    /// Mean time until the pool takes the machine away, at least a second; `u64::MAX` = never.
    pub(crate) pool_life_s: u64,
    /// Mean time until the host fails, at least a second; `u64::MAX` = never.
    pub(crate) host_life_s: u64,
    /// Expected vain starts before one that works, in thousandths.
    pub(crate) failed_starts_milli: u64,
    /// Expected refusals before a rent call succeeds, in thousandths.
    pub(crate) refused_milli: u64,
    /// How long the host offers the machine; `u64::MAX` = without an end.
    pub(crate) max_duration_s: u64,
    /// The program already runs there: its first start is behind it and paid.
    pub(crate) running: bool,
}

/// Seconds to move `mb` megabytes at `mbps` megabits a second (0 = not told: [`DEFAULT_DOWNLOAD_MBPS`]), rounded up.
pub fn transfer_s(mb: u64, mbps: u64) -> u64 {
    let mbps = if mbps == 0 { DEFAULT_DOWNLOAD_MBPS } else { mbps };
    if mb == 0 { 0 } else { mb.saturating_mul(8).div_ceil(mbps) }
}

/// `amount` × thousandths, rounded up.
pub(crate) fn times_milli(amount: u64, milli: u64) -> u64 {
    match amount.checked_mul(milli) {
        Some(product) => product.div_ceil(1000),
        None => u64::try_from((u128::from(amount) * u128::from(milli)).div_ceil(1000)).unwrap_or(u64::MAX),
    }
}

/// Expected losses of a run at this mean life, in thousandths, rounded down.
fn losses_milli(run_s: u64, life_s: u64) -> u64 {
    if life_s == u64::MAX { 0 } else { run_s.saturating_mul(1000) / life_s.max(1) }
}

/// Work that is repeated after a loss: half an interval and the upload that was not finished, or half of the run.
fn repeated_s(job: &JobFacts<'_>, run_s: u64) -> u64 {
    match job.checkpoint_interval_s {
        // A save interval longer than the run saves nothing in time.
        Some(interval) => (interval.min(run_s) / 2).saturating_add(job.checkpoint_upload_s),
        None => run_s / 2,
    }
}

/// What one loss costs: a changeover and the work that is repeated.
pub(crate) fn one_loss_s(job: &JobFacts<'_>, terms: &Terms, run_s: u64) -> u64 {
    terms
        .setup_s
        .saturating_add(transfer_s(job.image_mb(), terms.download_mbps))
        .saturating_add(transfer_s(job.input_mb, terms.download_mbps))
        .saturating_add(transfer_s(job.later_checkpoint_mb(), terms.download_mbps))
        .saturating_add(repeated_s(job, run_s))
}

/// What the host's end of offer does to the run: losses that are sure to come, or no use at all.
fn offer_ends(max_duration_s: u64, startup_s: u64, run_s: u64, one_save_s: Option<u64>) -> (u64, bool) {
    let usable = max_duration_s.saturating_sub(startup_s);
    if max_duration_s == u64::MAX || run_s <= usable {
        return (0, false);
    }
    match one_save_s {
        Some(save) if usable > save => ((run_s - 1) / usable, false),
        _ => (0, true),
    }
}

fn time(job: &JobFacts<'_>, terms: &Terms, run_s: u64) -> (TimeBreakdown, bool) {
    let mbps = terms.download_mbps;
    let start = TimeBreakdown {
        setup_s: terms.setup_s,
        image_pull_s: transfer_s(job.image_mb(), mbps),
        input_s: transfer_s(job.input_mb, mbps),
        restore_s: transfer_s(job.restore_mb, mbps),
        ..TimeBreakdown::default()
    };
    let vain_s = start.setup_s.saturating_add(start.image_pull_s);
    let one_loss_s = one_loss_s(job, terms, run_s);
    let mut time = TimeBreakdown { run_s, ..if terms.running { TimeBreakdown::default() } else { start } };
    let one_save_s = job.checkpoint_interval_s.map(|s| s.saturating_add(job.checkpoint_upload_s));
    let (ends, too_short) = offer_ends(terms.max_duration_s, time.startup_s(), run_s, one_save_s);
    time.losses_milli = losses_milli(run_s, terms.pool_life_s)
        .saturating_add(losses_milli(run_s, terms.host_life_s))
        .saturating_add(ends.saturating_mul(1000));
    let starts_milli = time.losses_milli.saturating_add(if terms.running { 0 } else { 1000 });
    let vain_milli = times_milli(terms.failed_starts_milli, starts_milli);
    time.lost_s = times_milli(one_loss_s, time.losses_milli).saturating_add(times_milli(vain_s, vain_milli));
    time.refused_s = times_milli(REFUSAL_S, times_milli(terms.refused_milli, starts_milli));
    (time, too_short)
}

pub(crate) fn estimate(disk_gib: u64, pace: Pace, job: &JobFacts<'_>, terms: &Terms) -> Estimate {
    let (time, too_short) = time(job, terms, pace.run_s);
    let mut cost = CostBreakdown::default();
    cost.fill(disk_gib, job, terms, &time);
    let hourly = terms.price + terms.storage_price.times(disk_gib);
    Estimate { time, cost, hourly, speed: pace.basis, too_short }
}

/// Megabytes that machines read.
struct Reads {
    /// From wherever.
    down_mb: u64,
    /// From the store.
    stored_mb: u64,
}

/// All starts together: the first, unless it is behind the program, and one for each loss.
fn reads(job: &JobFacts<'_>, terms: &Terms, losses_milli: u64) -> Reads {
    let image = job.image_mb();
    let stored_later = job.input_mb.saturating_add(job.later_checkpoint_mb());
    let first = if terms.running { 0 } else { job.input_mb.saturating_add(job.restore_mb) };
    let first_image = if terms.running { 0 } else { image };
    let again = times_milli(image.saturating_add(stored_later), losses_milli);
    Reads {
        down_mb: first_image.saturating_add(first).saturating_add(again),
        stored_mb: first.saturating_add(times_milli(stored_later, losses_milli)),
    }
}

/// What nobody with these terms or worse can be better than: least seconds of paid time, least cost besides the price, and the earliest
/// finish. The sum of parts that are each rounded up is never below the price for the sum of their times.
pub(crate) fn least(disk_gib: u64, run_s: u64, job: &JobFacts<'_>, best: &Terms) -> (u64, Money, u64) {
    let (time, _) = time(job, best, run_s);
    let stored = job.store_price_per_gb.ratio(reads(job, best, time.losses_milli).stored_mb, 1000);
    let disk = best.storage_price.times(disk_gib).for_seconds(time.paid_s());
    (time.paid_s(), disk + stored, time.total_s())
}

impl CostBreakdown {
    /// Works out all parts from the times.
    pub(crate) fn fill(&mut self, disk_gib: u64, job: &JobFacts<'_>, terms: &Terms, time: &TimeBreakdown) {
        let price = terms.price;
        self.compute = price.for_seconds(time.run_s);
        self.setup = price.for_seconds(time.setup_s);
        self.image_pull = price.for_seconds(time.image_pull_s);
        self.input_download = price.for_seconds(time.input_s);
        self.restore = price.for_seconds(time.restore_s);
        self.expected_lost_work = price.for_seconds(time.lost_s);
        self.storage = terms.storage_price.times(disk_gib).for_seconds(time.paid_s());
        let reads = reads(job, terms, time.losses_milli);
        self.traffic = terms.download_price.ratio(reads.down_mb, 1000)
            + terms.upload_price.ratio(writes_mb(job, time.run_s), 1000);
        self.egress = job.store_price_per_gb.ratio(reads.stored_mb, 1000);
        self.total = self.sum();
    }

    /// The sum of the parts.
    pub(crate) fn sum(&self) -> Money {
        [
            self.compute,
            self.setup,
            self.image_pull,
            self.input_download,
            self.restore,
            self.expected_lost_work,
            self.storage,
            self.traffic,
            self.egress,
        ]
        .into_iter()
        .sum()
    }
}

/// What is uploaded. Every save counts in full: what the parent checkpoint already holds is not sent again, but how much that is nobody
/// knows before.
fn writes_mb(job: &JobFacts<'_>, run_s: u64) -> u64 {
    let saves = job.checkpoint_interval_s.map_or(0, |interval| run_s.div_ceil(interval.max(1)));
    saves.saturating_mul(job.later_checkpoint_mb()).saturating_add(job.output_mb)
}
