//! What is ordered: the best offers of a plan, and the RentedMachine that asks for them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tradewind_api::rented_machine::{ChosenOffer, Claim, JobRef, MachineCheckpoint, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_core::{Money, Offer};
use tradewind_planner::{self as planner, Candidate, Plan, RejectReason};

use super::placement::{Choice, OTHERS_TOLD, Other, Rent};
use super::timing::Prospect;
use super::valid::Valid;
use crate::images::ASSUMED_BYTES;

/// Offers handed to one RentedMachine: if all are refused the job plans again.
const OFFERS_PER_MACHINE: usize = 6;
/// Lines that a status tells about offers that do not fit.
const REJECTED_TOLD: usize = 10;
/// No program is asked to save more often.
const SAVE_EVERY_LEAST_S: u64 = 60;

/// What a plan comes to: its best offers, all of one Provider, or why there is none.
pub(super) fn into_choice(needs: &planner::Requirements, plan: &Plan, start: &StartTime) -> Choice {
    let Some(first) = plan.ranked.first() else {
        let only_budget = !plan.rejected.is_empty() && plan.rejected.iter().all(|r| r.reason == RejectReason::Budget);
        let broke = needs.budget_left.is_some_and(|left| left <= Money::ZERO);
        let reason = if only_budget || broke { Reason::BudgetExhausted } else { Reason::NoOffer };
        let message = plan.why_none().unwrap_or_else(|| "no offer fits".to_owned());
        let message = if reason == Reason::NoOffer {
            format!("{message}; the market is looked at again as it changes")
        } else {
            message
        };
        return Choice::None { reason, message };
    };
    let provider = first.offer.provider.clone();
    let offers: Vec<ChosenOffer> = plan
        .ranked
        .iter()
        .filter(|c| c.offer.provider == provider)
        .take(OFFERS_PER_MACHINE)
        .map(|c| ChosenOffer {
            id: c.offer.id.clone(),
            offer: serde_json::to_value(&c.offer).expect("an offer is plain data"),
            price_cap: c.price_cap_per_hour,
            reserve_per_hour: c.hourly,
            start_deadline_s: Some(start.deadline_s(&c.offer)),
        })
        .collect();
    let others = plan.others(first, OTHERS_TOLD).into_iter().map(|c| Other {
        summary: planner::explain::kind(&c.offer),
        price_per_hour: c.offer.price_per_hour,
        extra_cost: c.cost.total - first.cost.total,
        finish_in_s: c.finish_in_s,
    });
    Choice::Rent(Box::new(Rent {
        provider,
        offers,
        why: plan.why_first().unwrap_or_default(),
        cost: first.cost,
        finish_in_s: first.finish_in_s,
        others: others.collect(),
        rejected: planner::explain::rejections(&plan.rejected, REJECTED_TOLD),
        first: first.offer.clone(),
        image_bytes: start.image_bytes,
        prospect: Prospect::Unknown,
        save_every_s: start.save_s.map(|save_s| save_every_s(first, save_s)),
    }))
}

/// Seconds between two saves with which the least work is lost where the machine lives as long as is expected. A save is counted as if the
/// program stood still meanwhile, which it need not: so it is not asked to save more often than pays in any case.
fn save_every_s(on: &Candidate, save_s: u64) -> u64 {
    let life_s = on.time.run_s.saturating_mul(1000).checked_div(on.time.losses_milli).unwrap_or(u64::MAX);
    planner::when::checkpoint_interval_s(save_s, life_s, SAVE_EVERY_LEAST_S, u64::MAX)
}

/// The checkpoint of a machine: its program is asked to save as often as pays there, in seconds, and never more seldom than the job says.
pub(super) fn checkpoint(valid: &Valid, pays_s: Option<i64>) -> Option<MachineCheckpoint> {
    let mut checkpoint = valid.checkpoint.clone()?;
    checkpoint.interval_s = checkpoint.interval_s.min(pays_s.unwrap_or(i64::MAX));
    Some(checkpoint)
}

/// The RentedMachine of a job's attempt, number `n` of that attempt, claiming the Pod.
pub fn machine(job: &TrainingJob, valid: &Valid, rent: &Rent, attempt: i64, claim: Claim) -> Option<RentedMachine> {
    let mut workload = valid.rental.as_ref().ok()?.clone();
    workload.memory_mib = i64::try_from(valid.needs.memory_mib).unwrap_or(i64::MAX);
    workload.gpus = i64::from(valid.needs.gpu_count);
    let meta = &job.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(10).collect();
    let labels = BTreeMap::from([
        (names::JOB_UID.to_owned(), uid.clone()),
        (names::JOB_NAME.to_owned(), meta.name.clone().unwrap_or_default()),
        (names::ATTEMPT.to_owned(), attempt.to_string()),
    ]);
    let deadlines = rent.offers.iter().filter_map(|offer| offer.start_deadline_s);
    let status = job.status.as_ref();
    let budget = job.spec.budget.as_ref();
    Some(RentedMachine {
        metadata: ObjectMeta {
            // One name per attempt: the API server lets only one of several creators have it, whatever their caches say.
            name: Some(format!("{}-{short}-{attempt}", meta.name.as_deref().unwrap_or_default())),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: RentedMachineSpec {
            provider: rent.provider.clone(),
            job: JobRef {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                uid,
            },
            claim,
            run_id: status.and_then(|s| s.run_id.clone()).unwrap_or_default(),
            attempt,
            offers: rent.offers.clone(),
            start_deadline_s: deadlines.max().unwrap_or(0),
            image_bytes: rent.image_bytes.and_then(|bytes| i64::try_from(bytes).ok()),
            workload,
            checkpoint: checkpoint(valid, rent.save_every_s.and_then(|s| i64::try_from(s).ok())),
            budget_per_hour: budget.and_then(|b| b.per_hour),
            stall_timeout_s: seconds(valid.stall_timeout),
            stop: None,
        },
        status: None,
    })
}

/// Whole seconds of a span.
pub fn seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

/// The longest time that a host is waited for, whatever it has to download: what takes longer costs more than another host.
const LONGEST_START: Duration = Duration::from_hours(1);
/// Hosts share their line and unpack what they have downloaded, so the download takes up to twice its calculated time.
const PULL_FACTOR: u64 = 2;

/// What decides how long a machine has from the rent call to its agent's first report.
pub(super) struct StartTime {
    /// At least.
    pub(super) least: Duration,
    /// Compressed size of the image, if it is known.
    pub(super) image_bytes: Option<u64>,
    /// Seconds that a save takes.
    pub(super) save_s: Option<u64>,
}

impl StartTime {
    /// Seconds for a machine of this offer.
    fn deadline_s(&self, offer: &Offer) -> i64 {
        let mbps = if offer.download_mbps == 0 { planner::DEFAULT_DOWNLOAD_MBPS } else { offer.download_mbps };
        let bits = u128::from(self.image_bytes.unwrap_or(ASSUMED_BYTES)) * 8 * u128::from(PULL_FACTOR);
        let pull = u64::try_from(bits.div_ceil(u128::from(mbps) * 1_000_000)).unwrap_or(u64::MAX);
        let least = self.least.as_secs();
        let deadline = least.saturating_add(pull).min(LONGEST_START.as_secs().max(least));
        i64::try_from(deadline).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tradewind_core::{GpuModel, Trust};

    use super::super::decide::Observed;
    use super::super::status::Report;
    use super::*;
    use crate::test_machine;

    fn offer(download_mbps: u64) -> Offer {
        Offer { download_mbps, ..test_machine::offer("o") }
    }

    /// 400 offers of which each misses something else, with the longest names that markets have.
    fn large_market() -> Vec<Offer> {
        let long = |n: usize| format!("a-region-with-a-very-long-name-in-some-country-far-away-{n:04}");
        let offer = |n: usize| {
            let mut offer = Offer {
                provider: "p".repeat(63),
                region: long(n),
                gpu: Some(GpuModel::normalise("RTX PRO 6000 Blackwell Server Edition", 0)),
                gpu_count: 8,
                gpu_memory_mib: 96_000,
                cpu_millis: 64_000,
                memory_mib: 512_000,
                disk_gib: 4000,
                price_per_hour: Money::from_micros(1_000_001 + i64::try_from(n).unwrap()),
                download_mbps: 1000,
                upload_mbps: 1000,
                reliability_ppm: 999_000,
                trust: Trust::Datacenter,
                ..test_machine::offer(&format!("offer-{n}-{}", "x".repeat(40)))
            };
            match n % 12 {
                0 => offer.gpu_memory_mib = 10,
                1 => offer.cpu_millis = 1,
                2 => offer.memory_mib = 1,
                3 => offer.disk_gib = 1,
                4 => offer.download_mbps = 1,
                5 => offer.upload_mbps = 1,
                6 => offer.reliability_ppm = 1,
                7 => offer.trust = Trust::Community,
                8 => offer.gpu_count = 1,
                9 => offer.price_per_hour = Money::from_micros(999_000_000),
                _ => {}
            }
            offer
        };
        (0..400).map(offer).collect()
    }

    #[test]
    fn what_a_status_tells_of_a_placement_stays_below_4_kb() {
        let needs = planner::Requirements {
            gpu_count: 8,
            min_gpu_memory_mib: 90_000,
            cpu_millis: 1000,
            memory_mib: 1000,
            disk_gib: 100,
            min_download_mbps: 100,
            min_upload_mbps: 100,
            min_reliability_ppm: 900_000,
            min_trust: Trust::Datacenter,
            max_price_per_hour: Some(Money::from_micros(50_000_000)),
            ..planner::Requirements::default()
        };
        let work = planner::WorkLeft { seconds: 100_000, on: None };
        let plan = planner::plan(&needs, &work, &planner::Knowledge::default(), &large_market(), 64);
        let start = StartTime { least: Duration::from_mins(15), image_bytes: None, save_s: Some(60) };
        let Choice::Rent(rent) = into_choice(&needs, &plan, &start) else { panic!("{plan:?}") };
        let job = serde_json::json!({"metadata": {"name": "j", "namespace": "n"}, "spec": {"template": {}}});
        let o = Observed::bare(serde_json::from_value(job).unwrap());
        let mut report = Report::new(&o);
        report.chosen(&rent);
        let placement = report.status.placement.unwrap();
        assert!(placement.rejected.len() >= 8 && placement.alternatives.len() == 3, "{placement:#?}");
        let bytes = serde_json::to_string(&placement).unwrap().len();
        assert!(bytes < 4096, "{bytes} bytes: {placement:#?}");
    }

    #[test]
    fn the_start_deadline_follows_image_and_bandwidth() {
        const GB: u64 = 1_000_000_000;
        for (image_bytes, mbps, least, expected, why) in [
            (Some(GB), 1000, 900, 916, "8 s, twice, on top of the setting"),
            (Some(20 * GB), 1000, 900, 1220, "an image twenty times as large"),
            (Some(20 * GB), 200, 900, 2500, "a fifth of the bandwidth"),
            (Some(20 * GB), 10, 900, 3600, "never more than an hour"),
            (Some(20 * GB), 10, 7200, 7200, "unless the setting says more"),
            (Some(0), 10, 900, 900, "never less than the setting"),
            (None, 1000, 900, 1060, "10 GB are assumed"),
            (Some(GB), 0, 900, 980, "200 Mbit/s are assumed"),
            (Some(u64::MAX), 1, u64::MAX / 2, i64::MAX, "absurd figures"),
        ] {
            let start = StartTime { least: Duration::from_secs(least), image_bytes, save_s: None };
            assert_eq!(start.deadline_s(&offer(mbps)), expected, "{why}");
        }
    }
}
