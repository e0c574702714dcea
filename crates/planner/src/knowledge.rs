//! What is known about pools, offers and hosts, and what is assumed where nothing is known.

use std::collections::BTreeMap;

use tradewind_core::{GpuModel, Money};

/// Mean life of a spot machine assumed until a pool has been measured, in seconds: our own careful guess, not a provider's figure.
pub const DEFAULT_MEAN_LIFE_S: u64 = 7200;
/// From the rent call to a started container, without the image pull, in seconds.
pub const DEFAULT_SETUP_S: u64 = 60;
/// Size assumed for an image whose size is not known, in MB: a CUDA and PyTorch runtime image, compressed.
pub const DEFAULT_IMAGE_MB: u64 = 6000;
/// Bandwidth assumed for an offer that does not tell it, in Mbit/s.
pub const DEFAULT_DOWNLOAD_MBPS: u64 = 200;
/// Time to upload a checkpoint assumed until one has been uploaded, in seconds.
pub const DEFAULT_CHECKPOINT_UPLOAD_S: u64 = 30;
/// How long a host that fails stays away, in seconds: turns a share of time (reliability) into a rate of failures. Our own guess.
pub const DEFAULT_REPAIR_S: u64 = 3600;
/// Reliability assumed for an offer that does not tell it, in millionths. Our own careful guess.
pub const DEFAULT_RELIABILITY_PPM: u32 = 990_000;
/// From a refused rent call to the next, in seconds.
pub const REFUSAL_S: u64 = 30;
/// However often a pool or host has failed, a try succeeds at least so often, in millionths: a record is never proof.
const LEAST_SUCCESS_PPM: u64 = 50_000;

/// That an offer was refused lately, and for how much longer it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedNote {
    /// The provider's reason, in words that may be shown.
    pub reason: String,
    /// Seconds from now for which the offer is still left out; with 0 the note no longer counts.
    pub for_s: u64,
}

/// What was learned about one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostRecord {
    /// Mean time between failures of the host itself, in seconds; `None` = as its reliability says.
    pub mean_life_s: Option<u64>,
    /// Measured time from the rent call to a started container without the image pull, in seconds; `None` = as its pool's.
    pub setup_s: Option<u64>,
    /// Share of its machines that were paid for and never started a container, in millionths.
    pub failed_starts_ppm: u32,
}

/// A pool: a provider and a GPU model (`None` = machines without GPUs).
pub type Pool = (String, Option<GpuModel>);

/// Everything that was learned and matters to the choice. The owner keeps it and counts the times down; the planner only reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knowledge {
    /// Refusals by provider and offer id. A note counts for the spot and the on-demand terms of that id alike.
    pub refused: BTreeMap<(String, String), RefusedNote>,
    /// Banned hosts by provider and host, with the reason.
    pub banned_hosts: BTreeMap<(String, String), String>,
    /// Measured mean life of spot machines in seconds, by provider and GPU model (`None` = machines without GPUs).
    pub mean_life_s: BTreeMap<Pool, u64>,
    /// Mean life of spot machines in all other pools, in seconds.
    pub default_mean_life_s: u64,
    /// Measured time from the rent call to a started container without the image pull, in seconds, by provider.
    pub setup_s: BTreeMap<String, u64>,
    /// The same by pool, which counts before the provider's.
    pub pool_setup_s: BTreeMap<Pool, u64>,
    /// The same for all other providers.
    pub default_setup_s: u64,
    /// Share of rent calls that a pool refused, in millionths.
    pub refusals_ppm: BTreeMap<Pool, u32>,
    /// Records of hosts by provider and host.
    pub hosts: BTreeMap<(String, String), HostRecord>,
    /// How long a failed host stays away, in seconds; 0 = reliability counts for the minimum only, not as expected losses.
    pub repair_s: u64,
    /// How many machines can be rented on an offer's terms, by provider and offer id; 1 where nothing is said.
    pub stock: BTreeMap<(String, String), u32>,
    /// Private networks by provider and offer id: machines of one network reach each other without the internet.
    pub networks: BTreeMap<(String, String), String>,
    /// Compressed size of the image in MB (10^6 bytes); `None` = [`DEFAULT_IMAGE_MB`].
    pub image_mb: Option<u64>,
    /// What the job downloads before it can work, and again on each new machine, in MB.
    pub input_mb: u64,
    /// What the job uploads besides its checkpoints, in MB.
    pub output_mb: u64,
    /// What is restored before the work goes on, in MB; 0 = it starts from zero.
    pub restore_mb: u64,
    /// Size of a checkpoint that is yet to be written, in MB; 0 = as `restore_mb`.
    pub checkpoint_mb: u64,
    /// Seconds between two saves; `None` = the job saves nothing, and a lost machine loses all its work.
    pub checkpoint_interval_s: Option<u64>,
    /// Seconds from the start of a save until it is fully uploaded.
    pub checkpoint_upload_s: u64,
    /// What the store of inputs and checkpoints takes for each GB read out of it, in dollars.
    pub store_price_per_gb: Money,
    /// Steps that this job does per million seconds, measured, by GPU model, at the asked number of GPUs; 0 = not measured.
    pub step_rates: BTreeMap<GpuModel, u64>,
    /// Steps that are left. Without it the rates only compare models with the one that the work is given for.
    pub steps_left: Option<u64>,
}

impl Default for Knowledge {
    /// Nothing learned yet, and no checkpoints.
    fn default() -> Self {
        Self {
            refused: BTreeMap::new(),
            banned_hosts: BTreeMap::new(),
            mean_life_s: BTreeMap::new(),
            default_mean_life_s: DEFAULT_MEAN_LIFE_S,
            setup_s: BTreeMap::new(),
            pool_setup_s: BTreeMap::new(),
            default_setup_s: DEFAULT_SETUP_S,
            refusals_ppm: BTreeMap::new(),
            hosts: BTreeMap::new(),
            repair_s: DEFAULT_REPAIR_S,
            stock: BTreeMap::new(),
            networks: BTreeMap::new(),
            image_mb: None,
            input_mb: 0,
            output_mb: 0,
            restore_mb: 0,
            checkpoint_mb: 0,
            checkpoint_interval_s: None,
            checkpoint_upload_s: DEFAULT_CHECKPOINT_UPLOAD_S,
            store_price_per_gb: Money::ZERO,
            step_rates: BTreeMap::new(),
            steps_left: None,
        }
    }
}

/// The part of the knowledge that is about one job and not about the market. Fields as in [`Knowledge`].
#[derive(Debug, Clone, Copy)]
pub struct JobFacts<'a> {
    /// Compressed size of the image in MB.
    pub image_mb: Option<u64>,
    /// Downloaded on each machine, in MB.
    pub input_mb: u64,
    /// Uploaded besides the checkpoints, in MB.
    pub output_mb: u64,
    /// Restored at the start, in MB.
    pub restore_mb: u64,
    /// Size of a later checkpoint, in MB.
    pub checkpoint_mb: u64,
    /// Seconds between two saves.
    pub checkpoint_interval_s: Option<u64>,
    /// Seconds of an upload.
    pub checkpoint_upload_s: u64,
    /// What the store takes for each GB read, in dollars.
    pub store_price_per_gb: Money,
    /// Steps per million seconds by GPU model.
    pub step_rates: &'a BTreeMap<GpuModel, u64>,
    /// Steps that are left.
    pub steps_left: Option<u64>,
}

impl Knowledge {
    /// What is known of the job.
    pub fn job(&self) -> JobFacts<'_> {
        JobFacts {
            image_mb: self.image_mb,
            input_mb: self.input_mb,
            output_mb: self.output_mb,
            restore_mb: self.restore_mb,
            checkpoint_mb: self.checkpoint_mb,
            checkpoint_interval_s: self.checkpoint_interval_s,
            checkpoint_upload_s: self.checkpoint_upload_s,
            store_price_per_gb: self.store_price_per_gb.max(Money::ZERO),
            step_rates: &self.step_rates,
            steps_left: self.steps_left,
        }
    }
}

impl JobFacts<'_> {
    pub(crate) fn image_mb(&self) -> u64 {
        self.image_mb.unwrap_or(DEFAULT_IMAGE_MB)
    }

    /// Size of a checkpoint that is yet to be written; nothing where the job saves nothing.
    pub(crate) fn later_checkpoint_mb(&self) -> u64 {
        match (self.checkpoint_interval_s, self.checkpoint_mb) {
            (None, _) => 0,
            (Some(_), 0) => self.restore_mb,
            (Some(_), mb) => mb,
        }
    }
}

/// Expected failures before the first success, in thousandths, of tries that fail with this share.
pub(crate) fn failures_milli(failing_ppm: u32) -> u64 {
    let succeeding = 1_000_000_u64.saturating_sub(failing_ppm.into()).max(LEAST_SUCCESS_PPM);
    (1_000_000 - succeeding) * 1000 / succeeding
}

/// Mean time between failures of a host that is there for this share of the time; `u64::MAX` = it never fails.
pub(crate) fn life_by_reliability_s(reliability_ppm: u32, repair_s: u64) -> u64 {
    let there = u64::from(if reliability_ppm == 0 { DEFAULT_RELIABILITY_PPM } else { reliability_ppm });
    match 1_000_000_u64.saturating_sub(there) {
        _ if repair_s == 0 => u64::MAX,
        0 => u64::MAX,
        away => (repair_s.saturating_mul(there) / away).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_expected_failures() {
        assert_eq!(failures_milli(0), 0);
        assert_eq!(failures_milli(500_000), 1000, "every other try: one failure before a success");
        assert_eq!(failures_milli(u32::MAX), 19_000, "a record is never proof");
    }

    #[test]
    fn shares_of_time_become_lives() {
        assert_eq!(life_by_reliability_s(970_000, 3600), 116_400, "away an hour after 32 h 20 min");
        assert_eq!(life_by_reliability_s(999_000, 3600), 3_596_400);
        assert_eq!(life_by_reliability_s(0, 3600), 356_400, "untold is taken for 99 %");
        assert_eq!(life_by_reliability_s(1_000_000, 3600), u64::MAX);
        assert_eq!(life_by_reliability_s(500_000, 0), u64::MAX, "switched off");
        assert_eq!(life_by_reliability_s(1, u64::MAX), u64::MAX / 999_999);
    }
}
