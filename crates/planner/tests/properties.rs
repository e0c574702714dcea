//! Properties that hold for every market. Values come from small sets, so that ties and clashes are common.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{CapacityChoice, Knowledge, RefusedNote, Requirements, WorkLeft, check, plan};

const MODELS: [&str; 4] = ["RTX3090", "RTX4090", "A100-80GB", "QUANTUM9"];
const PROVIDERS: [&str; 2] = ["vast-a", "vast-b"];
const REGIONS: [&str; 3] = ["NO", "US", ""];

fn model() -> impl Strategy<Value = GpuModel> {
    select(MODELS.as_slice()).prop_map(|name| GpuModel::normalise(name, 0))
}

fn trust() -> impl Strategy<Value = Trust> {
    select([Trust::Community, Trust::Datacenter, Trust::Enterprise].as_slice())
}

/// Mostly ordinary prices, sometimes one that no sum can hold or that makes no sense.
fn price() -> impl Strategy<Value = Money> {
    prop_oneof![
        20 => (0_i64..6).prop_map(|n| Money::from_micros(n * 100_001)),
        1 => select(vec![Money::MAX, Money::from_micros(-1), Money::from_micros(i64::MIN)]),
    ]
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0_u64..5, 10 => (0_u64..5).prop_map(|n| n * 1000), 1 => Just(u64::MAX)]
}

fn offer() -> impl Strategy<Value = Offer> {
    let terms = (price(), price(), price(), price());
    let names = (select(PROVIDERS.as_slice()), 0_u8..12, select(REGIONS.as_slice()), 0_u8..6, any::<bool>());
    let slice = (option::weighted(0.9, model()), 0_u32..3, amount(), amount(), amount(), amount());
    let host = (amount(), amount(), select([0_u32, 900_000, 990_000].as_slice()), trust(), option::of(amount()));
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
        cuda_milli: 0,
        max_duration_s: host.4,
    })
}

/// An offer that most requirements admit, so that ranking is tried as much as rejecting.
fn good_offer() -> impl Strategy<Value = Offer> {
    (offer(), model(), price()).prop_map(|(offer, model, price)| Offer {
        gpu: Some(model),
        gpu_count: 1,
        gpu_memory_mib: 24_000,
        cpu_millis: 8000,
        memory_mib: 32_000,
        disk_gib: 100,
        price_per_hour: if price < Money::ZERO { Money::ZERO } else { price },
        storage_price_per_gib_hour: Money::from_micros(100),
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 500,
        upload_mbps: 500,
        ..offer
    })
}

fn market() -> impl Strategy<Value = Vec<Offer>> {
    vec(prop_oneof![1 => offer(), 2 => good_offer()], 0..25)
}

fn needs() -> impl Strategy<Value = Requirements> {
    let gpu = (subsequence(MODELS.as_slice(), 0..=2), select([0_u32, 1, 1, 1, 2].as_slice()), amount());
    let size = (0_u64..3, 0_u64..3, 0_u64..3);
    let capacity =
        select([CapacityChoice::Any, CapacityChoice::Any, CapacityChoice::Spot, CapacityChoice::OnDemand].as_slice());
    let names = (subsequence(PROVIDERS.as_slice(), 0..=1), subsequence(REGIONS.as_slice(), 0..=2));
    let host = (trust(), select([0_u32, 950_000].as_slice()), 0_u64..3, 0_u64..3);
    let money = (option::weighted(0.3, price()), option::weighted(0.3, price()));
    (gpu, size, capacity, names, host, money).prop_map(|(gpu, size, capacity, names, host, money)| Requirements {
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
    })
}

fn work() -> impl Strategy<Value = WorkLeft> {
    let seconds = prop_oneof![10 => 0_u64..20_000, 1 => Just(u64::MAX)];
    (seconds, option::of(model())).prop_map(|(seconds, on)| WorkLeft { seconds, on })
}

fn knowledge() -> impl Strategy<Value = Knowledge> {
    let refused = vec((select(PROVIDERS.as_slice()), 0_u8..12, 0_u64..3), 0..4);
    let banned = vec((select(PROVIDERS.as_slice()), 0_u8..6), 0..3);
    let lives = vec((select(PROVIDERS.as_slice()), option::of(model()), amount()), 0..3);
    let saves = (amount(), amount(), option::of(amount()), amount());
    (refused, banned, lives, amount(), option::of(amount()), saves).prop_map(
        |(refused, banned, lives, default_mean_life_s, image_mb, saves)| Knowledge {
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
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_offer_is_in_one_place_and_the_plan_is_clean(
        needs in needs(), work in work(), known in knowledge(), offers in market(), limit in 0_usize..10,
    ) {
        let plan = plan(&needs, &work, &known, &offers, limit);
        prop_assert_eq!(check(&needs, &plan, &offers), []);
        prop_assert!(plan.ranked.len() <= limit);
        prop_assert!(plan.cut == 0 || plan.ranked.len() == limit, "cut only by the limit");
        for candidate in &plan.ranked {
            let offer = &candidate.offer;
            let note = known.refused.get(&(offer.provider.clone(), offer.id.clone()));
            prop_assert!(note.is_none_or(|note| note.for_s == 0), "refused, yet ranked");
            let host = (offer.provider.clone(), offer.host.clone());
            prop_assert!(offer.host.is_empty() || !known.banned_hosts.contains_key(&host), "banned, yet ranked");
            prop_assert!(!candidate.sentence().is_empty());
        }
        prop_assert_eq!(plan.why_none().is_some(), plan.ranked.is_empty() && plan.cut == 0);
    }

    #[test]
    fn the_order_of_the_market_does_not_matter(
        needs in needs(), work in work(), known in knowledge(),
        (offers, shuffled) in market().prop_flat_map(|offers| (Just(offers.clone()), Just(offers).prop_shuffle())),
    ) {
        prop_assert_eq!(plan(&needs, &work, &known, &offers, 8), plan(&needs, &work, &known, &shuffled, 8));
    }

    #[test]
    fn a_smaller_limit_keeps_the_same_beginning(
        needs in needs(), work in work(), known in knowledge(), offers in market(), limit in 0_usize..10,
    ) {
        let all = plan(&needs, &work, &known, &offers, offers.len());
        let some = plan(&needs, &work, &known, &offers, limit);
        prop_assert_eq!(&all.ranked[..some.ranked.len()], &some.ranked[..]);
        prop_assert_eq!(&all.rejected, &some.rejected);
    }

    #[test]
    fn a_cheaper_offer_that_is_otherwise_the_same_never_ranks_lower(
        needs in needs(), work in work(), known in knowledge(), mut offers in market(),
        dear in good_offer(), less in 0_i64..200_000,
    ) {
        let micros = dear.price_per_hour.micros().saturating_sub(less).max(0);
        // The later id: were it ranked by the tie-break before the price, it would come second.
        let cheap = Offer { id: "zz".to_owned(), price_per_hour: Money::from_micros(micros), ..dear.clone() };
        let dear = Offer { id: "z".to_owned(), ..dear };
        offers.extend([dear.clone(), cheap.clone()]);
        let plan = plan(&needs, &work, &known, &offers, offers.len());
        let place = |offer: &Offer| plan.ranked.iter().position(|c| c.offer == *offer);
        if let Some(dear_at) = place(&dear) {
            let cheap_at = place(&cheap);
            prop_assert!(cheap_at.is_some(), "the cheaper one is rejected where the dearer fits");
            prop_assert!(cheap.price_per_hour == dear.price_per_hour || cheap_at < Some(dear_at));
        }
    }

    #[test]
    fn more_asked_never_admits_more(needs in needs(), work in work(), known in knowledge(), offers in market()) {
        let asked = Requirements { min_trust: Trust::Enterprise, capacity: CapacityChoice::Spot, ..needs.clone() };
        prop_assume!(needs.capacity != CapacityChoice::OnDemand);
        let wide = plan(&needs, &work, &known, &offers, offers.len());
        let narrow = plan(&asked, &work, &known, &offers, offers.len());
        for candidate in &narrow.ranked {
            prop_assert!(wide.ranked.contains(candidate));
        }
    }
}
