//! The smallest change of the requirements that would let more offers in.

use std::collections::BTreeMap;

use tradewind_core::{GpuModel, Offer, Trust};

use crate::fit::{Misses, RejectReason, cuda, share};
use crate::gpus;
use crate::knowledge::Knowledge;
use crate::lookup::{Lookup, Paces};
use crate::needs::{CapacityChoice, Requirements, WorkLeft};
use crate::rank::{Assessed, assess};

/// What to ask for instead, so that offers fit which do not fit now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relaxation {
    /// The constraints that have to give way together: as few as possible, mostly one.
    pub constraints: Vec<RejectReason>,
    /// How many offers fit after the change that do not fit now.
    pub admits: u32,
    /// The offer that asks for the smallest change, which is among them.
    pub nearest: Offer,
    /// What to change, one for each constraint, after "would fit with": `minTrust: Community`, or `V100 in gpu.models`.
    pub change: Vec<String>,
}

/// Finds the relaxation: of all offers that miss only what can be changed, those that miss the fewest constraints; of these the
/// constraint (or set) that alone stands in the way of most; of these the offer that is nearest to it. Where a model is asked for that nobody
/// knows, the one that was meant is nearer than a cheaper one.
pub(crate) fn relaxation(
    needs: &Requirements,
    work: &WorkLeft,
    lookup: &Lookup<'_>,
    assessed: &[Assessed<'_>],
) -> Option<Relaxation> {
    let mut groups: BTreeMap<Misses, u32> = BTreeMap::new();
    // A machine without GPUs is no answer to somebody who asked for some.
    let answers = |a: &&Assessed<'_>| needs.gpu_count == 0 || a.offer.gpu.is_some();
    let can_give_way = |a: &&Assessed<'_>| !a.misses.is_empty() && a.misses.iter().all(RejectReason::relaxable);
    for one in assessed.iter().filter(answers).filter(can_give_way) {
        *groups.entry(one.misses).or_default() += 1;
    }
    let set = *groups.iter().min_by_key(|(set, count)| (set.len(), u32::MAX - **count, **set))?.0;
    let meant = if set.has(RejectReason::GpuModel) { meant(needs) } else { Vec::new() };
    let meant_at = |offer: &Offer| {
        let is_it = |name: &GpuModel| offer.gpu.as_ref().is_some_and(|gpu| gpus::admits(name, gpu));
        meant.iter().position(is_it).unwrap_or(meant.len())
    };
    let nearest = assessed
        .iter()
        .filter(answers)
        .filter(|a| a.misses == set)
        .min_by_key(|a| (meant_at(a.offer), gap(needs, lookup, a), a.score()))?;

    let mut asked = needs.clone();
    let mut known = lookup.market.clone();
    let mut change = Vec::new();
    for reason in set.iter() {
        change.push(relax(reason, nearest, lookup, &mut asked, &mut known));
    }
    let lookup = Lookup::with_job(&known, lookup.job);
    let paces = Paces::new(&asked, work, &lookup.job, assessed.iter().map(|a| a.offer));
    let fits = |offer: &Offer| assess(&asked, &lookup, &paces, offer).misses.is_empty();
    let admits = assessed.iter().filter(|a| !a.misses.is_empty() && fits(a.offer)).count();
    Some(Relaxation {
        constraints: set.iter().collect(),
        admits: u32::try_from(admits).unwrap_or(u32::MAX),
        nearest: nearest.offer.clone(),
        change,
    })
}

/// The models that may have been meant by those that are asked for and that nobody knows, the likeliest first.
fn meant(needs: &Requirements) -> Vec<GpuModel> {
    let unknown = needs.gpu_models.iter().filter(|model| gpus::find(model).is_none());
    let names = unknown.flat_map(|model| gpus::nearest_names(model, gpus::MEANT));
    names.map(|name| GpuModel::normalise(name, 0)).collect()
}

/// How far an offer is from what it misses, in millionths of what is asked for; only for comparing offers that miss the same.
pub(crate) fn gap(needs: &Requirements, lookup: &Lookup<'_>, one: &Assessed<'_>) -> u64 {
    one.misses.iter().fold(0_u64, |sum, reason| sum.saturating_add(gap_of(reason, needs, lookup, one)))
}

fn gap_of(reason: RejectReason, needs: &Requirements, lookup: &Lookup<'_>, one: &Assessed<'_>) -> u64 {
    let offer = one.offer;
    let part = |distance: u64, whole: u64| {
        let millionths = u128::from(distance) * 1_000_000 / u128::from(whole.max(1));
        u64::try_from(millionths).unwrap_or(u64::MAX)
    };
    let below = |has: u64, wanted: u64| part(wanted.saturating_sub(has), wanted);
    let above = |has: tradewind_core::Money, limit: Option<tradewind_core::Money>| {
        let limit = limit.unwrap_or_default();
        part((has - limit).micros().unsigned_abs(), limit.micros().unsigned_abs())
    };
    match reason {
        RejectReason::GpuCount => {
            part(u64::from(offer.gpu_count.abs_diff(needs.gpu_count)), u64::from(needs.gpu_count))
        }
        RejectReason::GpuMemory => below(offer.gpu_memory_mib, needs.min_gpu_memory_mib),
        RejectReason::Cpu => below(offer.cpu_millis, needs.cpu_millis),
        RejectReason::Memory => below(offer.memory_mib, needs.memory_mib),
        RejectReason::Disk => below(offer.disk_gib, needs.disk_gib),
        RejectReason::Trust => below(rung(offer.trust), rung(needs.min_trust)),
        RejectReason::Reliability => below(offer.reliability_ppm.into(), needs.min_reliability_ppm.into()),
        RejectReason::Download => below(offer.download_mbps, needs.min_download_mbps),
        RejectReason::Upload => below(offer.upload_mbps, needs.min_upload_mbps),
        RejectReason::Cuda => below(offer.cuda_milli.into(), needs.min_cuda_milli.into()),
        RejectReason::Deadline => {
            let within = needs.finish_within_s.unwrap_or_default();
            part(one.estimate.time.total_s().saturating_sub(within), within)
        }
        RejectReason::Refused => lookup.refusal(offer).map_or(0, |note| note.for_s),
        RejectReason::PricePerHour => above(one.estimate.hourly, needs.max_price_per_hour),
        RejectReason::Budget => above(one.estimate.cost.total, needs.budget_left),
        RejectReason::Malformed
        | RejectReason::AbsurdPrice
        | RejectReason::AbsurdDiskPrice
        | RejectReason::AbsurdTrafficPrice
        | RejectReason::Impossible
        | RejectReason::HostExcluded
        | RejectReason::Provider
        | RejectReason::Region
        | RejectReason::Capacity
        | RejectReason::GpuModel
        | RejectReason::HostBanned
        | RejectReason::MaxDuration => 0,
    }
}

/// Steps of trust from nothing.
const fn rung(trust: Trust) -> u64 {
    match trust {
        Trust::Community => 1,
        Trust::Datacenter => 2,
        Trust::Enterprise => 3,
        Trust::Cluster => 4,
    }
}

/// Gives way in `asked` or `known` just so far that `nearest` no longer misses `reason`, and says so.
fn relax(
    reason: RejectReason,
    nearest: &Assessed<'_>,
    lookup: &Lookup<'_>,
    asked: &mut Requirements,
    known: &mut Knowledge,
) -> String {
    let offer = nearest.offer;
    match reason {
        RejectReason::Provider => {
            asked.providers.push(offer.provider.clone());
            format!("{} in providers", offer.provider)
        }
        RejectReason::Region if offer.region.is_empty() => {
            asked.regions.clear();
            "regions: none, since this one does not tell its own".to_owned()
        }
        RejectReason::Region => {
            asked.regions.push(offer.region.clone());
            format!("{} in regions", offer.region)
        }
        RejectReason::Capacity => {
            asked.capacity = CapacityChoice::Any;
            "capacity: Any".to_owned()
        }
        RejectReason::GpuModel => {
            asked.gpu_models.extend(offer.gpu.clone());
            format!("{} in gpu.models", offer.gpu.as_ref().map_or("", GpuModel::as_str))
        }
        RejectReason::GpuCount => {
            asked.gpu_count = offer.gpu_count;
            format!("gpu.count: {}", offer.gpu_count)
        }
        RejectReason::GpuMemory => {
            asked.min_gpu_memory_mib = offer.gpu_memory_mib;
            format!("gpu.minMemory: {}Mi", offer.gpu_memory_mib)
        }
        RejectReason::Cpu => {
            asked.cpu_millis = offer.cpu_millis;
            format!("CPU request: {}m", offer.cpu_millis)
        }
        RejectReason::Memory => {
            asked.memory_mib = offer.memory_mib;
            format!("memory request: {}Mi", offer.memory_mib)
        }
        RejectReason::Disk => {
            asked.disk_gib = offer.disk_gib;
            format!("ephemeral-storage request: {}Gi", offer.disk_gib)
        }
        RejectReason::Trust => {
            asked.min_trust = offer.trust;
            format!("minTrust: {}", offer.trust)
        }
        RejectReason::Reliability => {
            asked.min_reliability_ppm = offer.reliability_ppm;
            format!("minReliability: {}", share(offer.reliability_ppm))
        }
        RejectReason::Download => {
            asked.min_download_mbps = offer.download_mbps;
            format!("minDownloadMbps: {}", offer.download_mbps)
        }
        RejectReason::Upload => {
            asked.min_upload_mbps = offer.upload_mbps;
            format!("minUploadMbps: {}", offer.upload_mbps)
        }
        RejectReason::Cuda => {
            asked.min_cuda_milli = offer.cuda_milli;
            match offer.cuda_milli {
                0 => "minCudaVersion: none, since this one does not tell its own".to_owned(),
                milli => format!("minCudaVersion: {}", cuda(milli)),
            }
        }
        RejectReason::HostExcluded => {
            let (provider, host) = (&offer.provider, &offer.host);
            asked.excluded_hosts.retain(|entry| {
                let one = Requirements { excluded_hosts: vec![entry.clone()], ..Requirements::default() };
                !one.excludes_host(provider, host)
            });
            format!("{provider}/{host} out of excludedHosts")
        }
        RejectReason::Deadline => {
            let needed = nearest.estimate.time.total_s();
            let more = needed.saturating_sub(asked.finish_within_s.unwrap_or_default());
            asked.finish_within_s = Some(needed);
            format!("{} more in completeWithin", crate::explain::span(more))
        }
        RejectReason::Refused => {
            let (wait_s, why) = lookup.refusal(offer).map_or((0, ""), |note| (note.for_s, note.reason.as_str()));
            known.refused.retain(|_, note| note.for_s > wait_s);
            format!("{} of patience (it was refused: {why})", crate::explain::span(wait_s))
        }
        RejectReason::PricePerHour => {
            asked.max_price_per_hour = Some(nearest.estimate.hourly);
            format!("budget.perHour: {}", nearest.estimate.hourly)
        }
        RejectReason::Budget => {
            let more = nearest.estimate.cost.total - asked.budget_left.unwrap_or_default();
            asked.budget_left = Some(nearest.estimate.cost.total);
            format!("${} more in budget.total", crate::explain::about(more))
        }
        RejectReason::Malformed
        | RejectReason::AbsurdPrice
        | RejectReason::AbsurdDiskPrice
        | RejectReason::AbsurdTrafficPrice
        | RejectReason::Impossible
        | RejectReason::HostBanned
        | RejectReason::MaxDuration => String::new(),
    }
}
