//! Where a job goes: the examples that users were promised, literally.

mod machine;

use std::collections::BTreeMap;

use machine::{checked, ids, plain};
use tradewind_core::{GpuModel, Money, Offer, Trust};
use tradewind_planner::{HostRecord, Knowledge, RejectReason, Requirements, SpeedBasis, WorkLeft, explain};

fn gpu(name: &str) -> GpuModel {
    GpuModel::normalise(name, 0)
}

fn dollars(text: &str) -> Money {
    text.parse().expect("a test writes amounts correctly")
}

fn card(model: &str, memory_gib: u64, price: &str) -> Offer {
    Offer { price_per_hour: dollars(price), gpu: Some(gpu(model)), gpu_memory_mib: memory_gib * 1024, ..plain(model) }
}

/// The four cards of the example, at their prices.
fn cards() -> Vec<Offer> {
    vec![
        card("RTX 3090", 24, "0.50"),
        card("RTX 4090", 24, "0.70"),
        card("RTX A6000", 48, "0.80"),
        card("A100-40GB", 40, "1.50"),
    ]
}

/// 2.5 h on a 3090, 1.5 h on a 4090 and an A6000, 1.0 h on an A100: 54,000 steps at the rates that were measured.
fn measured() -> Knowledge {
    let hours = [("RTX 3090", 9000), ("RTX 4090", 5400), ("RTX A6000", 5400), ("A100-40GB", 3600)];
    let steps = 54_000_u64;
    Knowledge {
        step_rates: hours.into_iter().map(|(name, seconds)| (gpu(name), steps * 1_000_000 / seconds)).collect(),
        steps_left: Some(steps),
        checkpoint_interval_s: Some(600),
        checkpoint_mb: 100,
        ..Knowledge::default()
    }
}

/// SD 1.5 LoRA: 12 GiB will do.
fn lora() -> Requirements {
    Requirements { gpu_count: 1, min_gpu_memory_mib: 12 << 10, ..Requirements::default() }
}

/// The measured rates count, whatever this says.
fn some_work() -> WorkLeft {
    WorkLeft { seconds: 5400, on: Some(gpu("T4")) }
}

#[test]
fn sd_15_lora_goes_to_the_4090_and_without_one_to_the_next_by_total() {
    let plan = checked(&lora(), &some_work(), &measured(), &cards());
    assert_eq!(ids(&plan), ["RTX 4090", "RTX A6000", "RTX 3090", "A100-40GB"]);
    let computes: Vec<Money> = plan.ranked.iter().map(|c| c.cost.compute).collect();
    assert_eq!(computes, [dollars("1.05"), dollars("1.20"), dollars("1.25"), dollars("1.50")]);
    assert!(plan.ranked.iter().all(|c| c.speed == SpeedBasis::Measured));

    let mut no_4090 = cards();
    no_4090.remove(1);
    assert_eq!(ids(&checked(&lora(), &some_work(), &measured(), &no_4090))[0], "RTX A6000");
    no_4090.remove(1);
    assert_eq!(ids(&checked(&lora(), &some_work(), &measured(), &no_4090))[0], "RTX 3090");
}

#[test]
fn sdxl_refuses_a_card_of_12_gib_with_a_reason() {
    let sdxl = Requirements { min_gpu_memory_mib: 16 << 10, ..lora() };
    let mut offers = cards();
    offers.push(card("RTX 3060", 12, "0.08"));
    let plan = checked(&sdxl, &some_work(), &measured(), &offers);
    assert!(!ids(&plan).contains(&"RTX 3060"));
    assert_eq!(plan.rejected.len(), 1);
    assert_eq!((plan.rejected[0].reason, plan.rejected[0].nearest.id.as_str()), (RejectReason::GpuMemory, "RTX 3060"));
    assert_eq!(explain::rejections(&plan.rejected, 10), ["1 is below gpu.minMemory 16Gi"]);
}

#[test]
fn a_card_that_reports_a_little_less_than_its_size_will_do() {
    // RTX 4090 and A100-80GB as their drivers report them.
    for (wanted_gib, has_mib, fits) in [(24, 24_564, true), (24, 24_084, true), (24, 24_083, false), (80, 81_559, true)]
    {
        let needs = Requirements { min_gpu_memory_mib: wanted_gib << 10, ..lora() };
        let offer = Offer { gpu_memory_mib: has_mib, ..card("RTX 4090", 24, "0.70") };
        let plan = checked(&needs, &some_work(), &measured(), &[offer]);
        assert_eq!(plan.ranked.len(), usize::from(fits), "{has_mib} MiB for {wanted_gib} GiB");
    }
    let odd = Requirements { min_gpu_memory_mib: 19_074, ..lora() };
    let plan = checked(&odd, &some_work(), &measured(), &[card("RTX 3060", 12, "0.08")]);
    assert_eq!(explain::rejections(&plan.rejected, 10), ["1 is below gpu.minMemory 19074Mi"]);
}

#[test]
fn complete_within_70_minutes_picks_the_a100() {
    let hurried = Requirements { finish_within_s: Some(70 * 60), ..lora() };
    let plan = checked(&hurried, &some_work(), &measured(), &cards());
    assert_eq!(ids(&plan), ["A100-40GB"]);
    assert_eq!((plan.rejected[0].reason, plan.rejected[0].count), (RejectReason::Deadline, 3));
    assert_eq!(plan.rejected[0].says, "expected to be done later than the 1 h 10 min that are left");

    let too_hurried = Requirements { finish_within_s: Some(50 * 60), ..lora() };
    let none = checked(&too_hurried, &some_work(), &measured(), &cards());
    let relaxation = none.relaxation.expect("more time helps");
    assert_eq!(
        (relaxation.constraints.as_slice(), relaxation.nearest.id.as_str()),
        ([RejectReason::Deadline].as_slice(), "A100-40GB")
    );
    assert_eq!(relaxation.change, ["12 min more in completeWithin"]);
    assert_eq!(relaxation.admits, 1);
}

#[test]
fn a_set_up_of_30_minutes_loses_the_short_job_and_wins_the_long_one() {
    let cheap = card("cheap", 24, "0.40");
    let dear = card("dear", 24, "0.44");
    let mut known = Knowledge { checkpoint_interval_s: Some(600), ..Knowledge::default() };
    for (host, setup_s) in [("host-cheap", 1800), ("host-dear", 180)] {
        let record = HostRecord { setup_s: Some(setup_s), ..HostRecord::default() };
        known.hosts.insert(("vast-main".to_owned(), host.to_owned()), record);
    }
    let offers = [cheap, dear];
    let hours = |hours: u64| WorkLeft { seconds: hours * 3600, on: None };
    assert_eq!(ids(&checked(&lora(), &hours(1), &known, &offers))[0], "dear");
    assert_eq!(ids(&checked(&lora(), &hours(20), &known, &offers))[0], "cheap");

    // The same by pool, where hosts are not told apart.
    let by_pool = Knowledge {
        hosts: BTreeMap::new(),
        pool_setup_s: [("cheap", 1800), ("dear", 180)]
            .map(|(name, s)| (("vast-main".to_owned(), Some(gpu(name))), s))
            .into(),
        ..known
    };
    assert_eq!(ids(&checked(&lora(), &hours(1), &by_pool, &offers))[0], "dear");
    assert_eq!(ids(&checked(&lora(), &hours(20), &by_pool, &offers))[0], "cheap");
}

#[test]
fn between_97_and_99_9_percent_the_expected_lost_work_decides() {
    let shaky = Offer { id: "shaky".to_owned(), reliability_ppm: 970_000, ..card("RTX 4090", 24, "0.700") };
    let firm = Offer { id: "firm".to_owned(), reliability_ppm: 999_000, ..card("RTX 4090", 24, "0.705") };
    let offers = [shaky, firm];
    let work = WorkLeft { seconds: 20 * 3600, on: None };
    let rarely = Knowledge { checkpoint_interval_s: Some(3600), ..Knowledge::default() };
    let plan = checked(&lora(), &work, &rarely, &offers);
    assert_eq!(ids(&plan), ["firm", "shaky"]);
    let lost = |at: usize| plan.ranked[at].cost.expected_lost_work;
    let others = |at: usize| plan.ranked[at].cost.total - lost(at);
    assert!(others(0) > others(1), "without the lost work the cheaper one would win");
    assert!(lost(1) > lost(0) + dollars("0.10"), "{} and {}", lost(1), lost(0));

    // Who saves all the time loses little, and takes the cheaper one.
    let often = Knowledge { checkpoint_interval_s: Some(60), checkpoint_upload_s: 1, ..Knowledge::default() };
    assert_eq!(ids(&checked(&lora(), &work, &often, &offers)), ["shaky", "firm"]);
    // What was seen of a host counts more than what it says of itself.
    let mut seen = often;
    let failing = HostRecord { mean_life_s: Some(3600), ..HostRecord::default() };
    seen.hosts.insert(("vast-main".to_owned(), offers[0].host.clone()), failing);
    let both_fail = checked(&lora(), &work, &seen, &offers);
    assert_eq!(both_fail.ranked[0].time.losses_milli, 20_000, "20 h on a host that fails every hour");
}

#[test]
fn inputs_results_and_the_stores_egress_are_paid() {
    let offer = Offer {
        download_price_per_gb: dollars("0.01"),
        upload_price_per_gb: dollars("0.02"),
        ..card("RTX 4090", 24, "0.36")
    };
    let known = Knowledge {
        repair_s: 0,
        image_mb: Some(1000),
        input_mb: 50_000,
        output_mb: 3000,
        store_price_per_gb: dollars("0.09"),
        ..Knowledge::default()
    };
    let plan = checked(&lora(), &WorkLeft { seconds: 3600, on: None }, &known, &[offer]);
    let best = &plan.ranked[0];
    assert_eq!((best.time.input_s, best.cost.input_download), (400, dollars("0.04")), "50 GB at 1 Gbit/s");
    assert_eq!(best.cost.traffic, dollars("0.51") + dollars("0.06"), "51 GB down, 3 GB up");
    assert_eq!(best.cost.egress, dollars("4.50"), "50 GB out of the store");
    assert_eq!(best.finish_in_s, 60 + 8 + 400 + 3600);
    let sentence = best.sentence();
    assert!(sentence.contains("input 0.04") && sentence.contains("egress 4.50"), "{sentence}");
}

#[test]
fn pools_that_refuse_take_time_and_hosts_that_do_not_start_take_money() {
    let work = WorkLeft { seconds: 3600, on: None };
    let pool = ("vast-main".to_owned(), Some(gpu("RTX 4090")));
    let refusing = Knowledge { repair_s: 0, refusals_ppm: BTreeMap::from([(pool, 750_000)]), ..Knowledge::default() };
    let offers = [card("RTX 4090", 24, "0.36")];
    let plain = Knowledge { repair_s: 0, ..Knowledge::default() };
    let usual = checked(&lora(), &work, &plain, &offers).ranked.remove(0);
    let refused = checked(&lora(), &work, &refusing, &offers).ranked.remove(0);
    assert_eq!(refused.time.refused_s, 90, "three refusals before a success");
    assert_eq!((refused.cost, refused.finish_in_s), (usual.cost, usual.finish_in_s + 90));

    let mut failing = plain;
    let record = HostRecord { failed_starts_ppm: 500_000, ..HostRecord::default() };
    failing.hosts.insert(("vast-main".to_owned(), offers[0].host.clone()), record);
    let vain = checked(&lora(), &work, &failing, &offers).ranked.remove(0);
    assert_eq!(vain.time.lost_s, 60 + 48, "one set-up and one pull for nothing");
}

#[test]
fn cuda_and_excluded_hosts_are_constraints_like_others() {
    let old = Offer { cuda_milli: 12_200, ..card("RTX 4090", 24, "0.70") };
    let needs = Requirements { min_cuda_milli: 12_400, ..lora() };
    let work = WorkLeft { seconds: 3600, on: None };
    let plan_old = checked(&needs, &work, &Knowledge::default(), std::slice::from_ref(&old));
    assert_eq!(
        plan_old.why_none().as_deref(),
        Some(
            "no offer fits: 1 of 1 is below minCudaVersion 12.4; nearest: 1xRTX4090 in NO at $0.70/h would fit with \
             minCudaVersion: 12.2"
        )
    );
    for name in ["host-RTX 4090", "vast-main/host-RTX 4090"] {
        let away = Requirements { excluded_hosts: vec!["other".to_owned(), name.to_owned()], ..lora() };
        let none = checked(&away, &work, &Knowledge::default(), std::slice::from_ref(&old));
        assert_eq!(none.rejected[0].reason, RejectReason::HostExcluded);
        let change = none.relaxation.expect("it could be allowed").change;
        assert_eq!(change, ["vast-main/host-RTX 4090 out of excludedHosts"]);
    }
    let elsewhere = Requirements { excluded_hosts: vec!["runpod/host-RTX 4090".to_owned()], ..lora() };
    assert_eq!(checked(&elsewhere, &work, &Knowledge::default(), &[old]).ranked.len(), 1, "another provider's host");
}

#[test]
fn a_model_is_known_by_all_its_names_and_a_mistyped_one_by_its_neighbours() {
    let offers = [card("A6000", 48, "0.80"), card("A100-80GB", 80, "1.50")];
    let work = WorkLeft { seconds: 3600, on: None };
    let asking = |name: &str| Requirements { gpu_models: vec![gpu(name)], ..lora() };
    assert_eq!(ids(&checked(&asking("RTX A6000"), &work, &Knowledge::default(), &offers)), ["A6000"]);
    assert_eq!(ids(&checked(&asking("A100"), &work, &Knowledge::default(), &offers)), ["A100-80GB"]);
    let none = checked(&asking("RTX A600O"), &work, &Knowledge::default(), &offers);
    let says = &none.rejected[0].says;
    assert!(says.starts_with("not of GPU model RTXA600O (did you mean RTXA6000"), "{says}");

    let cheaper = [card("V100", 16, "0.10"), card("RTX 4070", 12, "0.15"), card("A6000", 48, "0.80")];
    let none = checked(&asking("RTX A600O"), &work, &Knowledge::default(), &cheaper);
    let sentence = none.why_none().unwrap();
    assert!(
        sentence.ends_with("; nearest: 1xA6000 in NO at $0.80/h would fit with A6000 in gpu.models"),
        "what was meant, not what is cheapest: {sentence}"
    );
    let far = checked(&asking("Quantum 9"), &work, &Knowledge::default(), &cheaper);
    assert_eq!(far.relaxation.map(|r| r.nearest.id), Some("V100".to_owned()), "nothing was meant: the cheapest");
}

#[test]
fn twenty_thousand_rejections_read_as_ten_lines() {
    let mut offers = Vec::new();
    for n in 0..20_000_u64 {
        let base = Offer { id: n.to_string(), ..card("RTX 4090", 24, "0.70") };
        offers.push(match n % 14 {
            0 => Offer { price_per_hour: Money::ZERO, ..base },
            1 => Offer { storage_price_per_gib_hour: dollars("-1"), ..base },
            2 => Offer { region: "US".to_owned(), ..base },
            3 => Offer { gpu: Some(gpu("T4")), ..base },
            4 => Offer { gpu_count: 2, ..base },
            5 => Offer { gpu_memory_mib: 8 << 10, ..base },
            6 => Offer { cpu_millis: 1000, ..base },
            7 => Offer { memory_mib: 1000, ..base },
            8 => Offer { trust: Trust::Community, ..base },
            9 => Offer { reliability_ppm: 900_000, ..base },
            10 => Offer { download_mbps: 10, ..base },
            11 => Offer { cuda_milli: 11_000, ..base },
            12 => Offer { reliability_ppm: 2_000_000, ..base },
            _ => Offer { price_per_hour: dollars("9"), ..base },
        });
    }
    let needs = Requirements {
        gpu_models: vec![gpu("RTX 4090")],
        regions: vec!["NO".to_owned()],
        cpu_millis: 4000,
        memory_mib: 16_000,
        min_trust: Trust::Datacenter,
        min_reliability_ppm: 990_000,
        min_download_mbps: 100,
        min_cuda_milli: 12_000,
        max_price_per_hour: Some(dollars("1")),
        ..lora()
    };
    let plan = checked(&needs, &some_work(), &measured(), &offers);
    assert_eq!(plan.rejected.len(), 14);
    let lines = explain::rejections(&plan.rejected, 10);
    assert_eq!(lines.len(), 10);
    assert!(lines[9].ends_with("are left out for 5 other reasons"), "{}", lines[9]);
    let number = |line: &String| line.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    assert_eq!(lines.iter().map(number).sum::<u64>(), 20_000, "every offer is in one line");
}

#[test]
fn absurd_and_impossible_offers_are_rejected_for_what_they_are() {
    let base = || card("RTX 4090", 24, "0.70");
    let cases = [
        (RejectReason::AbsurdPrice, Offer { price_per_hour: Money::ZERO, ..base() }),
        (RejectReason::AbsurdPrice, Offer { price_per_hour: Money::from_micros(1), ..base() }),
        (RejectReason::AbsurdPrice, Offer { price_per_hour: Money::MAX, ..base() }),
        (RejectReason::AbsurdPrice, Offer { price_per_hour: dollars("-1"), ..base() }),
        (RejectReason::AbsurdDiskPrice, Offer { storage_price_per_gib_hour: dollars("11"), ..base() }),
        (RejectReason::AbsurdDiskPrice, Offer { storage_price_per_gib_hour: dollars("-0.01"), ..base() }),
        (RejectReason::AbsurdTrafficPrice, Offer { upload_price_per_gb: Money::MAX, ..base() }),
        (RejectReason::AbsurdTrafficPrice, Offer { download_price_per_gb: dollars("-0.01"), ..base() }),
        (RejectReason::Malformed, Offer { gpu: None, ..base() }),
        (RejectReason::Malformed, Offer { gpu: Some(gpu("")), ..base() }),
        (RejectReason::Malformed, Offer { gpu: Some(gpu("-")), ..base() }),
        (RejectReason::Malformed, Offer { gpu_count: 0, ..base() }),
        (RejectReason::Impossible, Offer { reliability_ppm: 1_000_001, ..base() }),
        (RejectReason::Impossible, Offer { gpu_count: u32::MAX, ..base() }),
        (RejectReason::Impossible, Offer { gpu_memory_mib: u64::MAX, ..base() }),
        (RejectReason::Impossible, Offer { download_mbps: u64::MAX, ..base() }),
        (RejectReason::Impossible, Offer { disk_gib: u64::MAX, ..base() }),
    ];
    for (reason, offer) in cases {
        let plan = checked(&lora(), &some_work(), &measured(), std::slice::from_ref(&offer));
        assert_eq!(plan.rejected.first().map(|r| r.reason), Some(reason), "{offer:?}");
        assert_eq!(plan.relaxation, None, "no change of the job makes it usable");
    }
    let own = Offer { trust: Trust::Cluster, price_per_hour: Money::ZERO, ..base() };
    assert_eq!(checked(&lora(), &some_work(), &measured(), &[own]).ranked.len(), 1, "the user's own machine is free");
}
