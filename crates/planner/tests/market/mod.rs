//! Random markets, jobs and knowledge. Values come from small sets, so that ties and clashes are common, and now and then from the ends of
//! their types.
#![allow(dead_code, reason = "each test file that shares this uses a part of it")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{CapacityChoice, HostRecord, Knowledge, Pool, RefusedNote, Requirements, WorkLeft};

const MODELS: [&str; 4] = ["RTX3090", "RTX4090", "A100-80GB", "QUANTUM9"];
const PROVIDERS: [&str; 2] = ["vast-a", "vast-b"];
const REGIONS: [&str; 3] = ["NO", "US", ""];

pub fn model() -> impl Strategy<Value = GpuModel> {
    select(MODELS.as_slice()).prop_map(|name| GpuModel::normalise(name, 0))
}

pub fn trust() -> impl Strategy<Value = Trust> {
    select([Trust::Community, Trust::Datacenter, Trust::Enterprise].as_slice())
}

/// Mostly ordinary prices, sometimes one that no sum can hold or that makes no sense.
pub fn price() -> impl Strategy<Value = Money> {
    prop_oneof![
        20 => (0_i64..6).prop_map(|n| Money::from_micros(n * 100_001)),
        1 => select(vec![Money::MAX, Money::from_micros(-1), Money::from_micros(i64::MIN)]),
    ]
}

pub fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0_u64..5, 10 => (0_u64..5).prop_map(|n| n * 1000), 1 => Just(u64::MAX)]
}

pub fn offer() -> impl Strategy<Value = Offer> {
    let terms = (price(), price(), price(), price());
    let names = (select(PROVIDERS.as_slice()), 0_u8..12, select(REGIONS.as_slice()), 0_u8..6, any::<bool>());
    let slice = (option::weighted(0.9, model()), 0_u32..3, amount(), amount(), amount(), amount());
    let reliability = select([0_u32, 900_000, 990_000, 990_000, 999_000, 1_000_000, 1_000_001].as_slice());
    let cuda = select([0_u32, 12_400, 12_800].as_slice());
    let host = (amount(), amount(), reliability, trust(), option::of(amount()), cuda);
    (terms, names, slice, host).prop_map(|(terms, names, slice, host)| Offer {
        provider: names.0.to_owned(),
        id: names.1.to_string(),
        capacity: if names.4 { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: terms.0,
        region: names.2.to_owned(),
        host: if names.3 == 0 { String::new() } else { names.3.to_string() },
        gpu: slice.0,
        gpu_count: slice.1,
        gpu_memory_mib: slice.2,
        cpu_millis: slice.3,
        memory_mib: slice.4,
        disk_gib: slice.5,
        storage_price_per_gib_hour: terms.1,
        download_price_per_gb: terms.2,
        upload_price_per_gb: terms.3,
        download_mbps: host.0,
        upload_mbps: host.1,
        reliability_ppm: host.2,
        trust: host.3,
        cuda_milli: host.5,
        max_duration_s: host.4,
    })
}

/// An offer that most requirements admit, so that ranking is tried as much as rejecting.
pub fn good_offer() -> impl Strategy<Value = Offer> {
    (offer(), model(), price()).prop_map(|(offer, model, price)| Offer {
        gpu: Some(model),
        gpu_count: 1,
        gpu_memory_mib: 24_000,
        cpu_millis: 8000,
        memory_mib: 32_000,
        disk_gib: 100,
        price_per_hour: if price < Money::ZERO { Money::from_micros(1000) } else { price },
        storage_price_per_gib_hour: Money::from_micros(100),
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 500,
        upload_mbps: 500,
        ..offer
    })
}

pub fn market() -> impl Strategy<Value = Vec<Offer>> {
    vec(prop_oneof![1 => offer(), 2 => good_offer()], 0..25)
}

pub fn needs() -> impl Strategy<Value = Requirements> {
    let gpu = (subsequence(MODELS.as_slice(), 0..=2), select([0_u32, 1, 1, 1, 2].as_slice()), amount());
    let size = (0_u64..3, 0_u64..3, 0_u64..3);
    let capacity =
        select([CapacityChoice::Any, CapacityChoice::Any, CapacityChoice::Spot, CapacityChoice::OnDemand].as_slice());
    let names = (subsequence(PROVIDERS.as_slice(), 0..=1), subsequence(REGIONS.as_slice(), 0..=2));
    let host = (trust(), select([0_u32, 950_000].as_slice()), 0_u64..3, 0_u64..3);
    let money = (option::weighted(0.3, price()), option::weighted(0.3, price()));
    let hosts = vec(select(["1", "2", "vast-a/3", "vast-b/", ""].as_slice()), 0..2);
    let more = (select([0_u32, 0, 12_400, 12_500].as_slice()), hosts, option::weighted(0.2, 0_u64..30_000));
    (gpu, size, capacity, names, host, money, more).prop_map(|(gpu, size, capacity, names, host, money, more)| {
        Requirements {
            gpu_models: gpu.0.iter().map(|name| GpuModel::normalise(name, 0)).collect(),
            gpu_count: gpu.1,
            min_gpu_memory_mib: gpu.2,
            cpu_millis: size.0,
            memory_mib: size.1,
            disk_gib: size.2,
            capacity,
            min_trust: host.0,
            providers: names.0.into_iter().map(str::to_owned).collect(),
            regions: names.1.into_iter().map(str::to_owned).collect(),
            min_reliability_ppm: host.1,
            min_download_mbps: host.2,
            min_upload_mbps: host.3,
            max_price_per_hour: money.0,
            budget_left: money.1,
            min_cuda_milli: more.0,
            excluded_hosts: more.1.into_iter().map(str::to_owned).collect(),
            finish_within_s: more.2,
        }
    })
}

pub fn work() -> impl Strategy<Value = WorkLeft> {
    let seconds = prop_oneof![10 => 0_u64..20_000, 1 => Just(u64::MAX)];
    (seconds, option::of(model())).prop_map(|(seconds, on)| WorkLeft { seconds, on })
}

type Records = (BTreeMap<(String, String), HostRecord>, u64, BTreeMap<Pool, u32>, BTreeMap<Pool, u64>);

/// Records of hosts, how long failed hosts stay away, refusals, and set-up times of pools.
fn host_records() -> impl Strategy<Value = Records> {
    let ppm = select([0_u32, 200_000, u32::MAX].as_slice());
    let record = (option::of(amount()), option::of(amount()), ppm.clone())
        .prop_map(|(mean_life_s, setup_s, failed_starts_ppm)| HostRecord { mean_life_s, setup_s, failed_starts_ppm });
    let hosts = vec((select(PROVIDERS.as_slice()), 0_u8..6, record), 0..4);
    let pool = || (select(PROVIDERS.as_slice()), option::of(model())).prop_map(|(p, gpu)| (p.to_owned(), gpu));
    let pools = (vec((pool(), ppm), 0..3), vec((pool(), amount()), 0..3));
    (hosts, select([0_u64, 3600, u64::MAX].as_slice()), pools).prop_map(|(hosts, repair_s, (refusals, setups))| {
        let name = |host: u8| if host == 0 { String::new() } else { host.to_string() };
        let hosts = hosts.into_iter().map(|(provider, host, record)| ((provider.to_owned(), name(host)), record));
        (hosts.collect(), repair_s, refusals.into_iter().collect(), setups.into_iter().collect())
    })
}

/// Inputs, results, the store's price and step rates; the rest as by default.
fn more_of_the_job() -> impl Strategy<Value = Knowledge> {
    let rates = vec((model(), amount()), 0..3);
    (amount(), amount(), price(), rates, option::of(amount())).prop_map(|(input, output, store, rates, steps_left)| {
        Knowledge {
            input_mb: input,
            output_mb: output,
            store_price_per_gb: store.max(Money::ZERO),
            step_rates: rates.into_iter().collect(),
            steps_left,
            ..Knowledge::default()
        }
    })
}

pub fn knowledge() -> impl Strategy<Value = Knowledge> {
    let refused = vec((select(PROVIDERS.as_slice()), 0_u8..12, 0_u64..3), 0..4);
    let banned = vec((select(PROVIDERS.as_slice()), 0_u8..6), 0..3);
    let lives = vec((select(PROVIDERS.as_slice()), option::of(model()), amount()), 0..3);
    let saves = (amount(), amount(), option::of(amount()), amount());
    (refused, banned, lives, amount(), option::of(amount()), saves, host_records(), more_of_the_job()).prop_map(
        |(refused, banned, lives, default_mean_life_s, image_mb, saves, records, more)| Knowledge {
            refused: refused
                .into_iter()
                .map(|(provider, id, for_s)| {
                    ((provider.to_owned(), id.to_string()), RefusedNote { reason: "gone".to_owned(), for_s })
                })
                .collect(),
            banned_hosts: banned
                .into_iter()
                .map(|(provider, host)| {
                    let host = if host == 0 { String::new() } else { host.to_string() };
                    ((provider.to_owned(), host), "unfit".to_owned())
                })
                .collect(),
            mean_life_s: lives.into_iter().map(|(p, gpu, life)| ((p.to_owned(), gpu), life)).collect(),
            default_mean_life_s,
            setup_s: BTreeMap::new(),
            default_setup_s: 60,
            image_mb,
            restore_mb: saves.0,
            checkpoint_mb: saves.1,
            checkpoint_interval_s: saves.2,
            checkpoint_upload_s: saves.3,
            hosts: records.0,
            repair_s: records.1,
            refusals_ppm: records.2,
            pool_setup_s: records.3,
            ..more
        },
    )
}
