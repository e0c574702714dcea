//! Whatever a provider, a user or a measurement says: an answer, never a panic, and the same from the index.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{
    CapacityChoice, HostRecord, Knowledge, MoveRules, OfferIndex, Pending, RefusedNote, Requirements, Running,
    Together, WorkLeft, check, explain, gang, gpus, plan, staying, verdict,
};

fn any_u64() -> impl Strategy<Value = u64> {
    prop_oneof![
        select(vec![0, 1, 999, 1000, 1001, 1 << 32, u64::MAX / 1000, u64::MAX - 1, u64::MAX]),
        any::<u64>(),
        0_u64..100_000
    ]
}

fn any_u32() -> impl Strategy<Value = u32> {
    prop_oneof![select(vec![0, 1, 999_999, 1_000_000, 1_000_001, u32::MAX]), any::<u32>()]
}

fn any_money() -> impl Strategy<Value = Money> {
    prop_oneof![
        select(vec![i64::MIN, -1, 0, 1, 999, 1000, 1_000_000_000, i64::MAX - 1, i64::MAX]),
        any::<i64>(),
        1000_i64..5_000_000
    ]
    .prop_map(Money::from_micros)
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![select(vec!["", "a", "b", "A/b", "ü", "NO", "no", "\u{0}", "𝔘"]).prop_map(str::to_owned), "\\PC{0,12}"]
}

fn any_model() -> impl Strategy<Value = GpuModel> {
    prop_oneof![select(vec!["RTX 4090", "A100", "", "-", "ÄÖ"]).prop_map(str::to_owned), any_text()]
        .prop_map(|name| GpuModel::normalise(&name, 0))
}

fn any_trust() -> impl Strategy<Value = Trust> {
    select(vec![Trust::Community, Trust::Datacenter, Trust::Enterprise, Trust::Cluster])
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let names = (any_text(), any_text(), any_text(), any_text(), any::<bool>());
    let prices = (any_money(), any_money(), any_money(), any_money());
    let size = (option::of(any_model()), prop_oneof![0_u32..3, any_u32()], any_u64(), any_u64(), any_u64(), any_u64());
    let host = (any_u64(), any_u64(), any_u32(), any_trust(), any_u32(), option::of(any_u64()));
    (names, prices, size, host).prop_map(|(names, prices, size, host)| Offer {
        provider: names.0,
        id: names.1,
        capacity: if names.4 { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: prices.0,
        region: names.2,
        host: names.3,
        gpu: size.0,
        gpu_count: size.1,
        gpu_memory_mib: size.2,
        cpu_millis: size.3,
        memory_mib: size.4,
        disk_gib: size.5,
        storage_price_per_gib_hour: prices.1,
        download_price_per_gb: prices.2,
        upload_price_per_gb: prices.3,
        download_mbps: host.0,
        upload_mbps: host.1,
        reliability_ppm: host.2,
        trust: host.3,
        cuda_milli: host.4,
        max_duration_s: host.5,
    })
}

/// Sound in itself, with extreme terms: these are ranked.
fn sound_offer() -> impl Strategy<Value = Offer> {
    (any_offer(), 1000_i64..1_000_000_000, 0_i64..10_000_000, 0_i64..100_000_000).prop_map(
        |(offer, price, disk, bytes)| Offer {
            price_per_hour: Money::from_micros(price),
            storage_price_per_gib_hour: Money::from_micros(disk),
            download_price_per_gb: Money::from_micros(bytes),
            upload_price_per_gb: Money::from_micros(bytes),
            gpu: Some(GpuModel::normalise("RTX 4090", 0)),
            gpu_count: 1,
            gpu_memory_mib: offer.gpu_memory_mib % (4 << 20),
            cpu_millis: offer.cpu_millis % 1_000_000_000,
            memory_mib: offer.memory_mib % (1 << 30),
            disk_gib: offer.disk_gib % (1 << 30),
            download_mbps: offer.download_mbps % 100_000_000,
            upload_mbps: offer.upload_mbps % 100_000_000,
            reliability_ppm: offer.reliability_ppm % 1_000_001,
            cuda_milli: offer.cuda_milli % 1_000_001,
            ..offer
        },
    )
}

fn any_needs() -> impl Strategy<Value = Requirements> {
    let gpu = (vec(any_model(), 0..3), prop_oneof![Just(1_u32), any_u32()], prop_oneof![Just(0), any_u64()]);
    let few = || prop_oneof![3 => Just(0_u64), 1 => any_u64()];
    let size = (few(), few(), few(), few(), few());
    let words = (vec(any_text(), 0..2), vec(any_text(), 0..2), vec(any_text(), 0..2));
    let limits =
        (option::weighted(0.3, any_money()), option::weighted(0.3, any_money()), option::weighted(0.3, any_u64()));
    let rest =
        (any_trust(), prop_oneof![2 => Just(0_u32), 1 => any_u32()], prop_oneof![2 => Just(0_u32), 1 => any_u32()]);
    (gpu, size, words, limits, rest).prop_map(|(gpu, size, words, limits, rest)| Requirements {
        gpu_models: gpu.0,
        gpu_count: gpu.1,
        min_gpu_memory_mib: gpu.2,
        cpu_millis: size.0,
        memory_mib: size.1,
        disk_gib: size.2,
        capacity: CapacityChoice::Any,
        min_trust: rest.0,
        providers: words.0,
        regions: words.1,
        min_reliability_ppm: rest.1,
        min_download_mbps: size.3,
        min_upload_mbps: size.4,
        min_cuda_milli: rest.2,
        excluded_hosts: words.2,
        finish_within_s: limits.2,
        max_price_per_hour: limits.0,
        budget_left: limits.1,
    })
}

fn any_knowledge() -> impl Strategy<Value = Knowledge> {
    let two = || (any_text(), any_text());
    let pool = || (any_text(), option::of(any_model()));
    let record = (option::of(any_u64()), option::of(any_u64()), any_u32())
        .prop_map(|(mean_life_s, setup_s, failed_starts_ppm)| HostRecord { mean_life_s, setup_s, failed_starts_ppm });
    let note = any_u64().prop_map(|for_s| RefusedNote { reason: "refused".to_owned(), for_s });
    let maps = (
        vec((two(), note), 0..3),
        vec((two(), any_text()), 0..3),
        vec((pool(), any_u64()), 0..3),
        vec((pool(), any_u32()), 0..3),
        vec((two(), record), 0..3),
        vec((two(), any_u32()), 0..3),
    );
    let job = (option::of(any_u64()), any_u64(), any_u64(), any_u64(), any_u64(), option::of(any_u64()), any_u64());
    let rates = (vec((any_model(), any_u64()), 0..3), option::of(any_u64()));
    let rest = (any_u64(), any_u64(), any_u64(), any_money());
    (maps, job, rates, rest).prop_map(|(maps, job, rates, rest)| Knowledge {
        refused: maps.0.into_iter().collect(),
        banned_hosts: maps.1.into_iter().collect(),
        mean_life_s: maps.2.iter().cloned().collect(),
        pool_setup_s: maps.2.into_iter().collect(),
        refusals_ppm: maps.3.into_iter().collect(),
        hosts: maps.4.into_iter().collect(),
        stock: maps.5.into_iter().collect(),
        networks: BTreeMap::new(),
        setup_s: BTreeMap::new(),
        default_mean_life_s: rest.0,
        default_setup_s: rest.1,
        repair_s: rest.2,
        store_price_per_gb: rest.3.max(Money::ZERO),
        image_mb: job.0,
        input_mb: job.1,
        output_mb: job.2,
        restore_mb: job.3,
        checkpoint_mb: job.4,
        checkpoint_interval_s: job.5,
        checkpoint_upload_s: job.6,
        step_rates: rates.0.into_iter().collect(),
        steps_left: rates.1,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_input_has_an_answer(
        needs in any_needs(),
        work in (any_u64(), option::of(any_model())).prop_map(|(seconds, on)| WorkLeft { seconds, on }),
        known in any_knowledge(),
        offers in vec(prop_oneof![1 => any_offer(), 1 => sound_offer()], 0..12),
        running in (any_u64(), option::of(any_u64()), any_u64()),
        limit in prop_oneof![0_usize..8, Just(usize::MAX)],
    ) {
        let found = plan(&needs, &work, &known, &offers, limit);
        prop_assert_eq!(check(&needs, &found, &offers), []);
        for candidate in &found.ranked {
            prop_assert!(candidate.cost.total >= Money::ZERO && candidate.cost.compute >= Money::ZERO);
            prop_assert!(!candidate.sentence().is_empty());
        }
        prop_assert!(explain::rejections(&found.rejected, 10).len() <= 10);
        let _ = (found.why_first(), found.why_none());

        let index = OfferIndex::new(offers.clone(), &known);
        prop_assert_eq!(&index.rank(&needs, &work, &known.job(), limit), &found.ranked);
        let pending = Pending { needs: &needs, work: &work, job: known.job() };
        prop_assert_eq!(index.assign(&[pending; 3]).len(), 3);

        for workers in [0, 1, 2, 3] {
            let gang = gang(&needs, &work, &known, &offers, workers, Together::Region);
            prop_assert_eq!(gang.why_none().is_none(), !gang.ranked.is_empty());
            prop_assert!(gang.ranked.iter().all(|gang| gang.members.len() == workers as usize));
        }
        if let (Some(here), Some(best)) = (offers.first(), found.ranked.first()) {
            let running = Running { for_s: running.0, gain_held_s: running.1, unsaved_s: running.2 };
            let _ = verdict(&staying(&needs, &work, &known, here), best, &running, &MoveRules::default());
        }
    }

    #[test]
    fn every_name_has_neighbours_or_none(model in any_model(), most in 0_usize..5) {
        prop_assert!(gpus::nearest_names(&model, most).len() <= most);
        let _ = gpus::find(&model);
    }
}
