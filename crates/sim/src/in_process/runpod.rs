//! What our RunPod adapter tells of a market of its kind: an offer is a number of GPUs of one type in one data centre of one cloud, and
//! what is on hosts of strangers may be taken away.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_core::{Capacity, GpuModel, Money, Offer as MarketOffer, Trust};
use tradewind_providers::{Capabilities, Charge, Machine as ProviderMachine, MachineState, OfferQuery, RentRequest};

use super::{disk_gb, money};
use crate::market::{Kind, Machine, Market, Offer, Place, RentSpec, SimTime, Workload};
use crate::runpod::{cuda_versions, is_offered, max_count, status_word};

/// Numbers of GPUs that are asked for.
const COUNTS: [u32; 4] = [1, 2, 4, 8];
/// Disk that is offered, in GiB; the catalogue does not tell.
const DISK_GIB: u64 = 1000;
/// Thousandths of a CPU that come with each GPU at least.
const CPU_MILLIS: u64 = 4000;
/// Whole MiB of a GB.
const MIB_PER_GB: u64 = 953;

/// Every offer that can be had now.
pub(super) fn offers(
    market: &mut Market,
    now: SimTime,
    (account, provider): (&str, &str),
    query: &OfferQuery,
) -> Vec<MarketOffer> {
    let types: Vec<Offer> = market.offers(now, account).into_iter().map(|(offer, _)| offer).collect();
    let mut found = Vec::new();
    for count in COUNTS.into_iter().filter(|count| *count >= query.min_gpu_count) {
        for community in [false, true] {
            let fits = |offer: &&Offer| is_offered(offer, community) && u64::from(count) <= max_count(offer, community);
            for offer in types.iter().filter(fits) {
                for region in &offer.regions {
                    if market.free_at(now, account, offer, &region.id) > 0 {
                        found.extend(convert(provider, offer, count, community, &region.id));
                    }
                }
            }
        }
    }
    found
}

fn convert(provider: &str, offer: &Offer, count: u32, community: bool, region: &str) -> Option<MarketOffer> {
    let versions = cuda_versions(offer).filter_map(|version| {
        let (major, minor) = version.split_once('.')?;
        Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok()? * 100)
    });
    let cuda_milli = versions.min()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of a GPU")]
    let memory_gb = offer.number("memory")? as u64;
    let price = if community { offer.community_micros_per_hour? } else { offer.on_demand_micros_per_hour };
    let gpus = u64::from(count);
    let cloud = if community { "COMMUNITY" } else { "SECURE" };
    Some(MarketOffer {
        provider: provider.to_owned(),
        id: format!("{cloud}/{region}/{count}/{}", offer.id),
        capacity: if community { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: money(price * gpus),
        region: crate::runpod::country(region).to_owned(),
        host: String::new(),
        gpu: Some(GpuModel::normalise(offer.text("name")?, memory_gb * 1024)),
        gpu_count: count,
        gpu_memory_mib: memory_gb * 1024,
        cpu_millis: CPU_MILLIS * gpus,
        memory_mib: MIB_PER_GB * memory_gb * gpus,
        disk_gib: DISK_GIB,
        // A tenth of a dollar a GB and month, rounded up to the next micro-dollar.
        storage_price_per_gib_hour: Money::from_micros(150),
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 0,
        upload_mbps: 0,
        reliability_ppm: 0,
        trust: if community { Trust::Community } else { Trust::Datacenter },
        cuda_milli,
        max_duration_s: None,
    })
}

/// What a rent call asks of the market; `None` where the offer's id is not one of [`offers`].
pub(super) fn order(request: &RentRequest) -> Option<(RentSpec, Place)> {
    let mut parts = request.offer.id.splitn(4, '/');
    let (cloud, region, count, gpu) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    let spec = RentSpec {
        offer: gpu.to_owned(),
        label: Some(request.key.to_string()),
        bid_micros_per_hour: None,
        disk_milli_gb: disk_gb(request.disk_gib).saturating_mul(1000),
        workload: Workload {
            image: request.image.clone(),
            argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), request.bootstrap.clone()],
            env: request.env.0.clone().into_iter().collect(),
            ..Workload::default()
        },
        park: false,
        start: true,
    };
    let place =
        Place { regions: vec![region.to_owned()], community: cloud == "COMMUNITY", gpus: count, ..Place::default() };
    Some((spec, place))
}

/// A pod as the adapter sees it; one that says it is terminated is gone.
pub(super) fn machine(market: &Market, pod: &Machine) -> Option<ProviderMachine> {
    let price = money(pod.compute_micros_per_hour());
    let word = status_word(market, pod);
    (word != "TERMINATED").then(|| ProviderMachine {
        id: pod.wire_id(),
        key: pod.label.as_deref().and_then(|label| label.parse().ok()),
        state: state(pod, &word),
        capacity: if pod.community { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: (word != "EXITED").then_some(price),
        created_at: Timestamp::from_millisecond(market.timestamp(pod.created_at).as_millisecond()).ok(),
    })
}

fn state(pod: &Machine, word: &str) -> MachineState {
    let never_ran = |message: &str| MachineState::BootFailed { message: message.to_owned() };
    match word {
        "RUNNING" if pod.runs() => MachineState::Running,
        "PROVISIONING" | "STARTING" | "RUNNING" => MachineState::Starting,
        "EXITED" if pod.boots == 0 => {
            never_ran("RunPod stopped it before its container ever ran, as it does when an image cannot be pulled")
        }
        "ERROR" if pod.boots == 0 => never_ran("RunPod calls its container's state unrecoverable (ERROR)"),
        "EXITED" | "ERROR" => MachineState::TakenAway,
        word => MachineState::Unknown { word: word.to_owned() },
    }
}

/// What each pod of the account was charged since the start of `since`'s hour.
pub(super) fn charges(market: &Market, now: SimTime, account: &str, since: Timestamp) -> Vec<Charge> {
    let hour = Timestamp::from_second(since.as_second().div_euclid(3600) * 3600).unwrap_or(since);
    let from = SimTime::from_duration(
        Duration::try_from(hour.duration_since(market.timestamp(SimTime::ZERO))).unwrap_or_default(),
    );
    let charge = |pod: &Machine| {
        let (after, before) = (pod.costs_by(now), pod.costs_by(from));
        Charge { id: pod.wire_id(), amount: money((after.0 + after.1) - (before.0 + before.1)) }
    };
    let own = market.machines().iter().filter(|pod| pod.account == account && pod.kind == Kind::Runpod);
    own.map(charge).filter(|charge| charge.amount > Money::ZERO).collect()
}

/// What RunPod can do: the same as the adapter says.
pub(super) fn capabilities() -> Capabilities {
    Capabilities {
        kind: Kind::Runpod.as_str(),
        container: true,
        spot: true,
        bids: false,
        label: true,
        idempotent_rent: false,
        visibility_window: Duration::from_secs(150),
        rent_limit: Duration::from_secs(30),
        starting_costs: true,
        stopped_costs: true,
        resumes_by_itself: false,
        self_termination: false,
        max_command_chars: 16_384,
    }
}
