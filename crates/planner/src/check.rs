//! Everything that can be wrong with a plan.
//!
//! Written apart from the planner: it judges an offer against the requirements in its own words, so that one mistake cannot hide
//! in both. What it cannot see without the knowledge that the plan was made with: refusals, bans, and whether estimates are right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tradewind_core::{Capacity, Money, Offer, Trust};

use crate::fit::RejectReason;
use crate::needs::{CapacityChoice, Requirements};
use crate::rank::{Candidate, Plan};
use crate::{explain, gpus};

/// One thing that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Ranked, cut and rejected offers together are not the offers given.
    Miscounted {
        /// Offers given.
        offers: u64,
        /// Offers that the plan accounts for.
        accounted: u64,
    },
    /// An offer appears that was not given, or more often than it was given.
    NotOffered {
        /// The offer in words.
        offer: String,
    },
    /// A ranked offer misses a requirement.
    Unfit {
        /// The offer in words.
        offer: String,
        /// What it misses.
        misses: RejectReason,
    },
    /// A ranked offer's figures contradict each other.
    BadFigures {
        /// The offer in words.
        offer: String,
        /// Which figure.
        figure: &'static str,
    },
    /// A worse candidate stands before a better one.
    OutOfOrder {
        /// Place of the worse one, counted from 0.
        at: usize,
    },
    /// A rejection is empty, appears twice, is out of order, or counts more than it excludes.
    BadRejection {
        /// Its reason.
        reason: RejectReason,
    },
    /// The relaxation admits nothing, changes nothing, or names an offer that already fits.
    BadRelaxation,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Miscounted { offers, accounted } => {
                write!(f, "the plan accounts for {accounted} offers of {offers}")
            }
            Self::NotOffered { offer } => write!(f, "{offer} was not offered (so often)"),
            Self::Unfit { offer, misses } => write!(f, "{offer} is ranked but misses {}", misses.as_str()),
            Self::BadFigures { offer, figure } => write!(f, "{offer}: wrong {figure}"),
            Self::OutOfOrder { at } => write!(f, "candidate {at} is worse than the one after it"),
            Self::BadRejection { reason } => write!(f, "the rejection {} is inconsistent", reason.as_str()),
            Self::BadRelaxation => f.write_str("the relaxation would admit nothing new"),
        }
    }
}

/// Lists everything that is wrong with `plan` as an answer to `needs` and `offers`; empty if nothing is.
pub fn check(needs: &Requirements, plan: &Plan, offers: &[Offer]) -> Vec<Problem> {
    let mut problems = Vec::new();
    counts(plan, offers, &mut problems);
    for candidate in &plan.ranked {
        if let Some(misses) = first_miss(needs, candidate) {
            problems.push(Problem::Unfit { offer: explain::offer(&candidate.offer), misses });
        }
        if let Some(figure) = bad_figure(needs, candidate) {
            problems.push(Problem::BadFigures { offer: explain::offer(&candidate.offer), figure });
        }
    }
    for (at, pair) in plan.ranked.windows(2).enumerate() {
        if pair[0].score() > pair[1].score() {
            problems.push(Problem::OutOfOrder { at });
        }
    }
    rejections(plan, &mut problems);
    relaxation(plan, offers, &mut problems);
    problems
}

fn counts(plan: &Plan, offers: &[Offer], problems: &mut Vec<Problem>) {
    let rejected: u64 = plan.rejected.iter().map(|r| u64::from(r.count)).sum();
    let accounted = plan.ranked.len() as u64 + u64::from(plan.cut) + rejected;
    if accounted != offers.len() as u64 || u64::from(plan.offers) != offers.len() as u64 {
        problems.push(Problem::Miscounted { offers: offers.len() as u64, accounted });
    }
    let mut left: BTreeMap<&Offer, u64> = BTreeMap::new();
    for offer in offers {
        *left.entry(offer).or_default() += 1;
    }
    let placed = plan.ranked.iter().map(|c| &c.offer).chain(plan.rejected.iter().map(|r| &r.nearest));
    for offer in placed {
        match left.get_mut(offer) {
            Some(n) if *n > 0 => *n -= 1,
            _ => problems.push(Problem::NotOffered { offer: explain::offer(offer) }),
        }
    }
}

/// The first requirement that a candidate misses, of those that can be seen without knowledge.
fn first_miss(needs: &Requirements, candidate: &Candidate) -> Option<RejectReason> {
    let offer = &candidate.offer;
    if offer.gpu.as_ref().is_some_and(|gpu| !gpu.as_str().contains(char::is_alphanumeric)) {
        return Some(RejectReason::Malformed);
    }
    if offer.price_per_hour < Money::ZERO || (offer.price_per_hour == Money::ZERO && offer.trust != Trust::Cluster) {
        return Some(RejectReason::AbsurdPrice);
    }
    if offer.storage_price_per_gib_hour < Money::ZERO {
        return Some(RejectReason::AbsurdDiskPrice);
    }
    if offer.reliability_ppm > 1_000_000 {
        return Some(RejectReason::Impossible);
    }
    if !needs.providers.is_empty() && needs.providers.iter().all(|name| *name != offer.provider) {
        return Some(RejectReason::Provider);
    }
    let region = offer.region.to_ascii_lowercase();
    if !needs.regions.is_empty() && needs.regions.iter().all(|r| r.to_ascii_lowercase() != region) {
        return Some(RejectReason::Region);
    }
    match (needs.capacity, offer.capacity) {
        (CapacityChoice::Spot, Capacity::OnDemand) | (CapacityChoice::OnDemand, Capacity::Spot) => {
            return Some(RejectReason::Capacity);
        }
        _ => {}
    }
    if needs.gpu_count > 0 {
        let meant = |model| offer.gpu.as_ref().is_some_and(|offered| model == offered || gpus::admits(model, offered));
        if !needs.gpu_models.is_empty() && !needs.gpu_models.iter().any(meant) {
            return Some(RejectReason::GpuModel);
        }
        if offer.gpu_count != needs.gpu_count || offer.gpu.is_none() {
            return Some(RejectReason::GpuCount);
        }
        // Two per cent less will do: the next MiB above what it has would have to be too little still.
        if u128::from(needs.min_gpu_memory_mib) * 98 >= (u128::from(offer.gpu_memory_mib) + 1) * 100 {
            return Some(RejectReason::GpuMemory);
        }
    }
    let minimums = [
        (RejectReason::Cpu, needs.cpu_millis, offer.cpu_millis),
        (RejectReason::Memory, needs.memory_mib, offer.memory_mib),
        (RejectReason::Disk, needs.disk_gib, offer.disk_gib),
        (RejectReason::Reliability, needs.min_reliability_ppm.into(), offer.reliability_ppm.into()),
        (RejectReason::Download, needs.min_download_mbps, offer.download_mbps),
        (RejectReason::Upload, needs.min_upload_mbps, offer.upload_mbps),
        (RejectReason::Cuda, needs.min_cuda_milli.into(), offer.cuda_milli.into()),
    ];
    if let Some((reason, ..)) = minimums.into_iter().find(|(_, wanted, has)| has < wanted) {
        return Some(reason);
    }
    if needs.min_trust > offer.trust {
        return Some(RejectReason::Trust);
    }
    let full_name = format!("{}/{}", offer.provider, offer.host);
    if !offer.host.is_empty() && needs.excluded_hosts.iter().any(|host| *host == offer.host || *host == full_name) {
        return Some(RejectReason::HostExcluded);
    }
    if needs.finish_within_s.is_some_and(|within| within < candidate.finish_in_s) {
        return Some(RejectReason::Deadline);
    }
    let hourly = candidate.price_cap_per_hour + offer.storage_price_per_gib_hour.times(needs.disk_gib);
    if needs.max_price_per_hour.is_some_and(|limit| limit < hourly) {
        return Some(RejectReason::PricePerHour);
    }
    needs.budget_left.is_some_and(|left| left < candidate.cost.total).then_some(RejectReason::Budget)
}

fn bad_figure(needs: &Requirements, candidate: &Candidate) -> Option<&'static str> {
    let (cost, time, offer) = (&candidate.cost, &candidate.time, &candidate.offer);
    let sum = cost.compute
        + cost.setup
        + cost.image_pull
        + cost.input_download
        + cost.restore
        + cost.expected_lost_work
        + cost.storage
        + cost.traffic
        + cost.egress;
    let seconds = [time.image_pull_s, time.input_s, time.restore_s, time.run_s, time.lost_s, time.refused_s]
        .into_iter()
        .fold(time.setup_s, u64::saturating_add);
    let hourly = offer.price_per_hour + offer.storage_price_per_gib_hour.times(needs.disk_gib);
    [
        (sum != cost.total, "sum of costs"),
        (cost.compute != offer.price_per_hour.for_seconds(time.run_s), "compute cost"),
        (candidate.finish_in_s != seconds, "sum of times"),
        (candidate.price_cap_per_hour != offer.price_per_hour, "price cap"),
        (candidate.hourly != hourly, "price per hour"),
    ]
    .into_iter()
    .find_map(|(wrong, figure)| wrong.then_some(figure))
}

fn rejections(plan: &Plan, problems: &mut Vec<Problem>) {
    let mut last = None;
    for rejection in &plan.rejected {
        let reason = rejection.reason;
        let rising = last.is_none_or(|last| last < reason);
        let first = rejection.also_misses.iter().all(|other| *other > reason);
        let counted = rejection.count > 0 && rejection.count <= rejection.excludes && rejection.excludes <= plan.offers;
        if !rising || !first || !counted {
            problems.push(Problem::BadRejection { reason });
        }
        last = Some(reason);
    }
}

fn relaxation(plan: &Plan, offers: &[Offer], problems: &mut Vec<Problem>) {
    let Some(relaxation) = &plan.relaxation else { return };
    let rejected: u64 = plan.rejected.iter().map(|r| u64::from(r.count)).sum();
    let ranked: BTreeSet<&Offer> = plan.ranked.iter().map(|c| &c.offer).collect();
    let changes = relaxation.constraints.len() == relaxation.change.len()
        && !relaxation.constraints.is_empty()
        && relaxation.change.iter().all(|text| !text.is_empty());
    let admits = relaxation.admits > 0 && u64::from(relaxation.admits) <= rejected;
    let new = offers.contains(&relaxation.nearest) && !ranked.contains(&relaxation.nearest);
    if !(changes && admits && new) {
        problems.push(Problem::BadRelaxation);
    }
}
