//! Which requirements an offer misses, and in words.

use tradewind_core::{GpuModel, Money, Offer, Trust};

use crate::cost::Estimate;
use crate::gpus;
use crate::lookup::Lookup;
use crate::needs::Requirements;

/// Why an offer does not fit. An offer that misses several is counted under the first of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectReason {
    /// The offer contradicts itself: GPUs without a model that can be read, or a model without GPUs.
    Malformed,
    /// A price of the machine that nobody means: less than nothing, (nearly) nothing, or more than any machine costs.
    AbsurdPrice,
    /// The same of its disk.
    AbsurdDiskPrice,
    /// The same of its traffic.
    AbsurdTrafficPrice,
    /// A figure that no machine has, such as a reliability above 100 %.
    Impossible,
    /// Another provider than those asked for.
    Provider,
    /// Another region than those asked for.
    Region,
    /// Spot where on demand is asked for, or the other way round.
    Capacity,
    /// Another GPU model.
    GpuModel,
    /// More or fewer GPUs.
    GpuCount,
    /// Too little memory per GPU.
    GpuMemory,
    /// Too little CPU.
    Cpu,
    /// Too little main memory.
    Memory,
    /// Too little disk.
    Disk,
    /// Below the trust asked for.
    Trust,
    /// Below the reliability asked for.
    Reliability,
    /// Below the download bandwidth asked for.
    Download,
    /// Below the upload bandwidth asked for.
    Upload,
    /// Its driver runs no CUDA so new, or does not tell.
    Cuda,
    /// The job keeps away from this host.
    HostExcluded,
    /// The host is banned.
    HostBanned,
    /// The offer was refused lately.
    Refused,
    /// The host takes the machine back too soon to be of use.
    MaxDuration,
    /// Compute and disk cost more per hour than allowed.
    PricePerHour,
    /// The work is expected to be done too late.
    Deadline,
    /// The work would be expected to cost more than is left.
    Budget,
}

impl RejectReason {
    /// All reasons, in the order in which offers are counted under them.
    pub const ALL: [Self; 26] = [
        Self::Malformed,
        Self::AbsurdPrice,
        Self::AbsurdDiskPrice,
        Self::AbsurdTrafficPrice,
        Self::Impossible,
        Self::Provider,
        Self::Region,
        Self::Capacity,
        Self::GpuModel,
        Self::GpuCount,
        Self::GpuMemory,
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Trust,
        Self::Reliability,
        Self::Download,
        Self::Upload,
        Self::Cuda,
        Self::HostExcluded,
        Self::HostBanned,
        Self::Refused,
        Self::MaxDuration,
        Self::PricePerHour,
        Self::Deadline,
        Self::Budget,
    ];

    /// The one word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed",
            Self::AbsurdPrice => "AbsurdPrice",
            Self::AbsurdDiskPrice => "AbsurdDiskPrice",
            Self::AbsurdTrafficPrice => "AbsurdTrafficPrice",
            Self::Impossible => "Impossible",
            Self::Provider => "Provider",
            Self::Region => "Region",
            Self::Capacity => "Capacity",
            Self::GpuModel => "GpuModel",
            Self::GpuCount => "GpuCount",
            Self::GpuMemory => "GpuMemory",
            Self::Cpu => "Cpu",
            Self::Memory => "Memory",
            Self::Disk => "Disk",
            Self::Trust => "Trust",
            Self::Reliability => "Reliability",
            Self::Download => "Download",
            Self::Upload => "Upload",
            Self::Cuda => "Cuda",
            Self::HostExcluded => "HostExcluded",
            Self::HostBanned => "HostBanned",
            Self::Refused => "Refused",
            Self::MaxDuration => "MaxDuration",
            Self::PricePerHour => "PricePerHour",
            Self::Deadline => "Deadline",
            Self::Budget => "Budget",
        }
    }

    /// Whether the user could ask for something else, or wait, so that this no longer stands in the way.
    pub const fn relaxable(self) -> bool {
        !matches!(
            self,
            Self::Malformed
                | Self::AbsurdPrice
                | Self::AbsurdDiskPrice
                | Self::AbsurdTrafficPrice
                | Self::Impossible
                | Self::HostBanned
                | Self::MaxDuration
        )
    }

    /// What offers rejected for this are, after "are": `below minTrust Datacenter`.
    pub(crate) fn says(self, needs: &Requirements) -> String {
        let dollars = |limit: Option<Money>| limit.unwrap_or_default();
        match self {
            Self::Malformed => "without a readable GPU model or number of GPUs".to_owned(),
            Self::AbsurdPrice => format!("at a price below ${LEAST_PRICE} or above ${MOST_PRICE} per hour and GPU"),
            Self::AbsurdDiskPrice => {
                format!("at a disk price below zero or above ${MOST_STORAGE_PRICE} per GiB and hour")
            }
            Self::AbsurdTrafficPrice => format!("at a traffic price below zero or above ${MOST_TRAFFIC_PRICE} per GB"),
            Self::Impossible => "described with figures that no machine has".to_owned(),
            Self::Provider => format!("not from providers {}", needs.providers.join(", ")),
            Self::Region => format!("outside regions {}", needs.regions.join(", ")),
            Self::Capacity => format!("not of capacity {}", needs.capacity.as_str()),
            Self::GpuModel => format!("not of GPU model {}", models(needs)),
            Self::GpuCount => format!("not of gpu.count {}", needs.gpu_count),
            Self::GpuMemory => format!("below gpu.minMemory {}", size(needs.min_gpu_memory_mib)),
            Self::Cpu => format!("below the CPU request {}m", needs.cpu_millis),
            Self::Memory => format!("below the memory request {}Mi", needs.memory_mib),
            Self::Disk => format!("below the disk request {}Gi", needs.disk_gib),
            Self::Trust => format!("below minTrust {}", needs.min_trust),
            Self::Reliability => format!("below minReliability {}", share(needs.min_reliability_ppm)),
            Self::Download => format!("below minDownloadMbps {}", needs.min_download_mbps),
            Self::Upload => format!("below minUploadMbps {}", needs.min_upload_mbps),
            Self::Cuda => format!("below minCudaVersion {}", cuda(needs.min_cuda_milli)),
            Self::HostExcluded => "on excluded hosts".to_owned(),
            Self::HostBanned => "on banned hosts".to_owned(),
            Self::Refused => "left out because they were refused lately".to_owned(),
            Self::MaxDuration => "offered for too short a time".to_owned(),
            Self::PricePerHour => format!("above ${} per hour with disk", dollars(needs.max_price_per_hour)),
            Self::Deadline => {
                let within = crate::explain::span(needs.finish_within_s.unwrap_or_default());
                format!("expected to be done later than the {within} that are left")
            }
            Self::Budget => {
                format!("expected to cost more than the ${} that are left of the budget", dollars(needs.budget_left))
            }
        }
    }
}

/// The models that are asked for; after one that nobody knows, those that may have been meant.
fn models(needs: &Requirements) -> String {
    let one = |model: &GpuModel| {
        let meant = if gpus::find(model).is_none() { gpus::meant(model) } else { None };
        meant.map_or_else(|| model.to_string(), |meant| format!("{model} ({meant})"))
    };
    needs.gpu_models.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// MiB as people write them: whole GiB where they are, as 40Gi.
fn size(mib: u64) -> String {
    if mib > 0 && mib.is_multiple_of(1024) { format!("{}Gi", mib / 1024) } else { format!("{mib}Mi") }
}

/// Thousandths as a version: 12400 is `12.4`.
pub(crate) fn cuda(milli: u32) -> String {
    let (major, mut minor) = (milli / 1000, format!("{:03}", milli % 1000));
    while minor.len() > 1 && minor.ends_with('0') {
        minor.pop();
    }
    format!("{major}.{minor}")
}

/// Millionths as a decimal share: 980000 is `0.98`.
pub(crate) fn share(ppm: u32) -> String {
    Money::from_micros(i64::from(ppm)).to_string()
}

/// A set of reasons. Ordered so that grouping by it is deterministic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Misses(u32);

impl Misses {
    /// Whether this reason is among them.
    pub(crate) const fn has(self, reason: RejectReason) -> bool {
        self.0 & (1 << (reason as u32)) != 0
    }

    fn of(missed: &[(RejectReason, bool)]) -> Self {
        let bits = missed.iter().filter(|(_, missed)| *missed).map(|(reason, _)| 1 << (*reason as u32));
        Self(bits.fold(0, |set, bit: u32| set | bit))
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = RejectReason> {
        RejectReason::ALL.into_iter().filter(move |reason| self.has(*reason))
    }

    pub(crate) fn first(self) -> Option<RejectReason> {
        self.iter().next()
    }
}

/// The least that anybody asks for an hour of a machine, except for the user's own.
const LEAST_PRICE: Money = Money::from_micros(1_000);
/// More than the dearest GPU (or machine without GPUs) on any market costs an hour, many times.
const MOST_PRICE: Money = Money::from_micros(1_000_000_000);
/// More than a GiB of any disk costs an hour.
const MOST_STORAGE_PRICE: Money = Money::from_micros(10_000_000);
/// More than a GB of any traffic costs.
const MOST_TRAFFIC_PRICE: Money = Money::from_micros(100_000_000);
/// More GPUs, and more of everything else, than one machine has.
const MOST_GPUS: u32 = 1024;
const MOST_GPU_MEMORY_MIB: u64 = 4 << 20;
const MOST_CPU_MILLIS: u64 = 1_000_000_000;
const MOST_MEMORY_MIB: u64 = 1 << 30;
const MOST_DISK_GIB: u64 = 1 << 30;
const MOST_MBPS: u64 = 100_000_000;
const MOST_CUDA_MILLI: u32 = 1_000_000;

/// What makes an offer unusable for everybody, if anything: its other figures then mean nothing.
pub(crate) fn unusable(offer: &Offer) -> Option<RejectReason> {
    // Without a letter or digit, the name says nothing of the card, which would fit every job that does not say which it wants.
    let readable = match &offer.gpu {
        Some(gpu) => offer.gpu_count > 0 && gpu.as_str().contains(char::is_alphanumeric),
        None => offer.gpu_count == 0,
    };
    if !readable {
        return Some(RejectReason::Malformed);
    }
    // The cluster's own nodes may cost nothing.
    let least = if offer.trust == Trust::Cluster { Money::ZERO } else { LEAST_PRICE };
    if offer.price_per_hour < least || offer.price_per_hour > MOST_PRICE.times(offer.gpu_count.max(1).into()) {
        return Some(RejectReason::AbsurdPrice);
    }
    let beyond = |price: Money, most: Money| price < Money::ZERO || price > most;
    if beyond(offer.storage_price_per_gib_hour, MOST_STORAGE_PRICE) {
        return Some(RejectReason::AbsurdDiskPrice);
    }
    let traffic = [offer.download_price_per_gb, offer.upload_price_per_gb];
    if traffic.into_iter().any(|price| beyond(price, MOST_TRAFFIC_PRICE)) {
        return Some(RejectReason::AbsurdTrafficPrice);
    }
    let impossible = offer.gpu_count > MOST_GPUS
        || offer.gpu_memory_mib > MOST_GPU_MEMORY_MIB
        || offer.cpu_millis > MOST_CPU_MILLIS
        || offer.memory_mib > MOST_MEMORY_MIB
        || offer.disk_gib > MOST_DISK_GIB
        || offer.download_mbps.max(offer.upload_mbps) > MOST_MBPS
        || offer.reliability_ppm > 1_000_000
        || offer.cuda_milli > MOST_CUDA_MILLI;
    impossible.then_some(RejectReason::Impossible)
}

/// Everything that this offer misses. One that is unusable for everybody misses only that.
pub(crate) fn misses(needs: &Requirements, lookup: &Lookup<'_>, offer: &Offer, estimate: &Estimate) -> Misses {
    if let Some(reason) = unusable(offer) {
        return Misses(1 << (reason as u32));
    }
    Misses(misses_by_itself(needs, lookup, offer).0 | misses_by_cost(needs, estimate).0)
}

/// Whether this offer can fit, whatever it would cost.
pub(crate) fn may_fit(needs: &Requirements, lookup: &Lookup<'_>, offer: &Offer) -> bool {
    misses_by_itself(needs, lookup, offer).is_empty() && unusable(offer).is_none()
}

/// What it misses that shows without an estimate.
fn misses_by_itself(needs: &Requirements, lookup: &Lookup<'_>, offer: &Offer) -> Misses {
    use RejectReason as R;
    let gpus = needs.gpu_count > 0;
    let one_of = |offered| needs.gpu_models.iter().any(|asked| asked == offered || gpus::admits(asked, offered));
    let model_fits = needs.gpu_models.is_empty() || offer.gpu.as_ref().is_some_and(one_of);
    let region_fits = needs.regions.is_empty() || needs.regions.iter().any(|r| r.eq_ignore_ascii_case(&offer.region));
    Misses::of(&[
        (R::Provider, !needs.providers.is_empty() && !needs.providers.contains(&offer.provider)),
        (R::Region, !region_fits),
        (R::Capacity, !needs.capacity.admits(offer.capacity)),
        (R::GpuModel, gpus && !model_fits),
        (R::GpuCount, gpus && offer.gpu_count != needs.gpu_count),
        (R::GpuMemory, gpus && offer.gpu_memory_mib < needs.enough_gpu_memory_mib()),
        (R::Cpu, offer.cpu_millis < needs.cpu_millis),
        (R::Memory, offer.memory_mib < needs.memory_mib),
        (R::Disk, offer.disk_gib < needs.disk_gib),
        (R::Trust, offer.trust < needs.min_trust),
        (R::Reliability, offer.reliability_ppm < needs.min_reliability_ppm),
        (R::Download, offer.download_mbps < needs.min_download_mbps),
        (R::Upload, offer.upload_mbps < needs.min_upload_mbps),
        (R::Cuda, offer.cuda_milli < needs.min_cuda_milli),
        (R::HostExcluded, needs.excludes_host(&offer.provider, &offer.host)),
        (R::HostBanned, lookup.banned(offer)),
        (R::Refused, lookup.refusal(offer).is_some()),
    ])
}

/// What it misses for its cost and time.
fn misses_by_cost(needs: &Requirements, estimate: &Estimate) -> Misses {
    use RejectReason as R;
    let above = |amount: Money, limit: Option<Money>| limit.is_some_and(|limit| amount > limit);
    Misses::of(&[
        (R::MaxDuration, estimate.too_short),
        (R::PricePerHour, above(estimate.hourly, needs.max_price_per_hour)),
        (R::Deadline, needs.finish_within_s.is_some_and(|within| estimate.time.total_s() > within)),
        (R::Budget, above(estimate.cost.total, needs.budget_left)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_reasons_is_complete_and_in_order() {
        for (index, reason) in RejectReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}: bits and order follow the declaration");
        }
        let last = Misses(1 << (RejectReason::Budget as u32));
        assert_eq!(last.first(), Some(RejectReason::Budget));
        assert_eq!(RejectReason::Budget as usize + 1, RejectReason::ALL.len());
    }

    #[test]
    fn shares_print_as_people_write_them() {
        assert_eq!(share(980_000), "0.98");
        assert_eq!(share(995_500), "0.9955");
        assert_eq!((cuda(12_400).as_str(), cuda(13_000).as_str()), ("12.4", "13.0"));
    }
}
