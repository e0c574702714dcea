//! What a worker asks for.

use tradewind_core::{Capacity, GpuModel, Money, Trust};

/// Which kinds of capacity will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum CapacityChoice {
    /// Whatever is cheaper in the end.
    #[default]
    Any,
    /// Only what may be taken away.
    Spot,
    /// Only what stays ours until we end it.
    OnDemand,
}

impl CapacityChoice {
    /// The word used in objects and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "Any",
            Self::Spot => "Spot",
            Self::OnDemand => "OnDemand",
        }
    }

    /// Whether this capacity will do.
    pub const fn admits(self, capacity: Capacity) -> bool {
        match self {
            Self::Any => true,
            Self::Spot => matches!(capacity, Capacity::Spot),
            Self::OnDemand => matches!(capacity, Capacity::OnDemand),
        }
    }
}

/// What one worker's machine must have and may cost. A minimum of 0 asks for nothing; a minimum above 0 is not met by an
/// offer that does not tell its figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Models that will do, in any spelling that [`gpus`](crate::gpus) knows; empty = any.
    pub gpu_models: Vec<GpuModel>,
    /// GPUs in the machine, exactly: a program that finds more than it asked for may split its batch over all of them and train
    /// something else. 0 = a CPU job, which runs on any machine and for which the other GPU fields do not count.
    pub gpu_count: u32,
    /// Memory of each GPU in MiB, as it is written on the box: a card that reports a little less will do.
    pub min_gpu_memory_mib: u64,
    /// CPU in thousandths of a core.
    pub cpu_millis: u64,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB: what is needed, rented and paid for.
    pub disk_gib: u64,
    /// Spot, on demand, or either.
    pub capacity: CapacityChoice,
    /// Weakest trust that will do.
    pub min_trust: Trust,
    /// Names of the Provider objects that may be used; empty = all.
    pub providers: Vec<String>,
    /// Regions that may be used, compared without regard to case; empty = all.
    pub regions: Vec<String>,
    /// Reliability in millionths.
    pub min_reliability_ppm: u32,
    /// Download bandwidth in Mbit/s.
    pub min_download_mbps: u64,
    /// Upload bandwidth in Mbit/s.
    pub min_upload_mbps: u64,
    /// Lowest CUDA version that the driver must run, in thousandths (12400 = 12.4).
    pub min_cuda_milli: u32,
    /// Hosts that may not be used: `host` means that host of every provider, `provider/host` of that one only.
    pub excluded_hosts: Vec<String>,
    /// Seconds from now in which the work must be expected to be done; `None` = whenever.
    pub finish_within_s: Option<u64>,
    /// Most that compute and disk together may cost per hour.
    pub max_price_per_hour: Option<Money>,
    /// Most that the rest of the work may be expected to cost in all.
    pub budget_left: Option<Money>,
}

impl Default for Requirements {
    /// A CPU job without any wish.
    fn default() -> Self {
        Self {
            gpu_models: Vec::new(),
            gpu_count: 0,
            min_gpu_memory_mib: 0,
            cpu_millis: 0,
            memory_mib: 0,
            disk_gib: 0,
            capacity: CapacityChoice::Any,
            min_trust: Trust::Community,
            providers: Vec::new(),
            regions: Vec::new(),
            min_reliability_ppm: 0,
            min_download_mbps: 0,
            min_upload_mbps: 0,
            min_cuda_milli: 0,
            excluded_hosts: Vec::new(),
            finish_within_s: None,
            max_price_per_hour: None,
            budget_left: None,
        }
    }
}

impl Requirements {
    /// What a GPU must report at least: cards report a little less than their round size (24564 MiB for "24 GB"), so two per cent of slack.
    pub(crate) const fn enough_gpu_memory_mib(&self) -> u64 {
        self.min_gpu_memory_mib - self.min_gpu_memory_mib.div_ceil(50)
    }

    /// Whether the job keeps away from this host. A host that is not told (`""`) cannot be excluded.
    pub(crate) fn excludes_host(&self, provider: &str, host: &str) -> bool {
        let named = |entry: &String| {
            entry == host || entry.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')) == Some(host)
        };
        !host.is_empty() && self.excluded_hosts.iter().any(named)
    }
}

/// Work that is still to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkLeft {
    /// Seconds of pure running, without set-up, restore and repeated work.
    pub seconds: u64,
    /// The GPU on which it takes that long, at the asked number of GPUs; `None` = on whatever we get. Does not count for a CPU job.
    pub on: Option<GpuModel>,
}
