//! What is on the market, in words that all providers share.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{GpuModel, Money};

/// How far a host may be believed with data, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Trust {
    /// A private person's machine.
    Community,
    /// A verified data centre.
    Datacenter,
    /// A company with contracts and audits.
    Enterprise,
    /// The user's own cluster.
    Cluster,
}

impl Trust {
    /// The word used in objects and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Community => "Community",
            Self::Datacenter => "Datacenter",
            Self::Enterprise => "Enterprise",
            Self::Cluster => "Cluster",
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a machine may be taken away for a higher bid or another customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Capacity {
    /// May be taken away at any time.
    Spot,
    /// Ours until we end it.
    OnDemand,
}

impl Capacity {
    /// The word used in objects and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "Spot",
            Self::OnDemand => "OnDemand",
        }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One machine that can be rented now, on one set of terms. A slice that can be had both as spot and on demand is two offers.
///
/// Whole slice, not per GPU: prices, memory and bandwidth are for the machine as rented.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Name of the Provider object (the account) that can rent it.
    pub provider: String,
    /// The provider's id of the offer; short-lived on some markets.
    pub id: String,
    /// Spot or on demand.
    pub capacity: Capacity,
    /// Dollars an hour of compute: for spot the price that we would pay (our bid), on demand the asking price. Without disk and traffic.
    pub price_per_hour: Money,
    /// Country code or the provider's region, `""` where it is not told.
    pub region: String,
    /// The physical host, for bans; `""` where it is not told.
    pub host: String,
    /// Model of every GPU in the slice; `None` for a machine without GPUs.
    pub gpu: Option<GpuModel>,
    /// Number of GPUs.
    pub gpu_count: u32,
    /// Memory of one GPU in MiB.
    pub gpu_memory_mib: u64,
    /// CPU in thousandths of a core.
    pub cpu_millis: u64,
    /// Main memory in MiB.
    pub memory_mib: u64,
    /// Disk that can be had, in GiB.
    pub disk_gib: u64,
    /// Dollars per GiB of disk and hour.
    pub storage_price_per_gib_hour: Money,
    /// Dollars per GB sent to the machine.
    pub download_price_per_gb: Money,
    /// Dollars per GB sent by the machine.
    pub upload_price_per_gb: Money,
    /// Download bandwidth in Mbit/s; 0 where it is not told.
    pub download_mbps: u64,
    /// Upload bandwidth in Mbit/s; 0 where it is not told.
    pub upload_mbps: u64,
    /// Reliability in millionths (995000 = 0.995); 0 where it is not told.
    pub reliability_ppm: u32,
    /// How far the host may be believed.
    pub trust: Trust,
    /// Highest CUDA version the driver runs, in thousandths (12800 = 12.8); 0 where it is not told.
    pub cuda_milli: u32,
    /// How long the host still offers the machine, in seconds; `None` without an end.
    pub max_duration_s: Option<u64>,
}
