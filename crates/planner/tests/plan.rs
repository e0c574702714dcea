//! Plans by table: the choices that a user would expect, and the sentences that say why.

mod machine;

use machine::{checked, ids, plain};
use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{
    CapacityChoice, Knowledge, Plan, RefusedNote, RejectReason, Requirements, SpeedBasis, WorkLeft, check, explain,
};

fn gpu(name: &str) -> GpuModel {
    GpuModel::normalise(name, 0)
}

fn dollars(text: &str) -> Money {
    text.parse().expect("a test writes amounts correctly")
}

/// An on-demand machine with plenty of everything, free disk and free traffic.
fn offer(id: &str, model: &str, price: &str) -> Offer {
    Offer { price_per_hour: dollars(price), gpu: Some(gpu(model)), reliability_ppm: 995_000, ..plain(id) }
}

fn needs() -> Requirements {
    Requirements { gpu_count: 1, disk_gib: 60, ..Requirements::default() }
}

fn hours_on(tenths: u64, model: &str) -> WorkLeft {
    WorkLeft { seconds: tenths * 360, on: Some(gpu(model)) }
}

fn saving() -> Knowledge {
    // Hosts that never fail: what reliability costs has tests of its own.
    Knowledge { checkpoint_interval_s: Some(900), checkpoint_mb: 1000, repair_s: 0, ..Knowledge::default() }
}

#[test]
fn the_faster_card_at_the_higher_price_wins_when_it_is_cheaper_in_the_end() {
    let offers = [offer("slow", "RTX3090", "0.50"), offer("fast", "RTX4090", "0.70")];
    let plan = checked(&needs(), &hours_on(15, "RTX4090"), &saving(), &offers);
    assert_eq!(ids(&plan), ["fast", "slow"]);
    let slow_run = plan.ranked[1].time.run_s;
    assert!((8_000..9_600).contains(&slow_run), "1.5 h of an RTX 4090 are near 2.5 h of an RTX 3090, not {slow_run} s");
    assert_eq!(plan.ranked[0].cost.compute, dollars("1.05"));

    // With no word on whose hours these are, all cards take the same time and the price decides.
    let anywhere = WorkLeft { seconds: 5400, on: None };
    assert_eq!(ids(&checked(&needs(), &anywhere, &saving(), &offers)), ["slow", "fast"]);
}

#[test]
fn short_work_prefers_the_host_that_starts_sooner() {
    let quick = offer("quick", "RTX4090", "0.44");
    let crawl = Offer { download_mbps: 50, ..offer("crawl", "RTX4090", "0.40") };
    let offers = [crawl, quick];
    assert_eq!(ids(&checked(&needs(), &hours_on(5, "RTX4090"), &saving(), &offers)), ["quick", "crawl"]);
    assert_eq!(ids(&checked(&needs(), &hours_on(100, "RTX4090"), &saving(), &offers)), ["crawl", "quick"]);
}

#[test]
fn every_part_of_the_sum_is_what_the_formula_says() {
    let spot = Offer {
        capacity: Capacity::Spot,
        storage_price_per_gib_hour: dollars("0.0001"),
        download_price_per_gb: dollars("0.01"),
        upload_price_per_gb: dollars("0.02"),
        ..offer("a", "RTX4090", "0.36")
    };
    let known = Knowledge {
        default_mean_life_s: 3600,
        default_setup_s: 100,
        image_mb: Some(10_000),
        restore_mb: 500,
        checkpoint_mb: 1000,
        checkpoint_interval_s: Some(600),
        checkpoint_upload_s: 20,
        repair_s: 0,
        ..Knowledge::default()
    };
    let plan = checked(&needs(), &hours_on(20, "RTX4090"), &known, &[spot]);
    let best = &plan.ranked[0];
    let time = best.time;
    assert_eq!((time.setup_s, time.image_pull_s, time.restore_s, time.run_s), (100, 80, 4, 7200));
    assert_eq!(time.losses_milli, 2000, "two hours at a mean life of one");
    assert_eq!(time.lost_s, 2 * (100 + 80 + 8 + 300 + 20), "changeover, half an interval, upload");
    assert_eq!(best.finish_in_s, 184 + 7200 + 1016);
    let cost = best.cost;
    assert_eq!(cost.compute, dollars("0.72"));
    assert_eq!(cost.setup, dollars("0.01"));
    assert_eq!(cost.image_pull, dollars("0.008"));
    assert_eq!(cost.restore, dollars("0.0004"));
    assert_eq!(cost.expected_lost_work, dollars("0.1016"));
    assert_eq!(cost.storage, dollars("0.006").for_seconds(8400));
    assert_eq!(cost.traffic, dollars("0.325") + dollars("0.24"), "10.5 + 2 × 11 GB down, 12 saves of 1 GB up");
    assert_eq!(best.price_cap_per_hour, dollars("0.36"), "the cap is the bid");
    assert_eq!(best.hourly, dollars("0.366"));
    assert_eq!(
        best.sentence(),
        "1xRTX4090 spot in NO at $0.36/h from vast-main: about $1.42 in all (compute 0.72, set-up 0.01, image pull 0.008, \
         restore 0.0004, expected lost work 0.10, disk 0.014, traffic 0.57), done in 2 h 20 min"
    );
}

#[test]
fn spot_wins_until_its_pool_is_known_to_be_short_lived() {
    let spot = Offer { capacity: Capacity::Spot, ..offer("spot", "RTX4090", "0.25") };
    let firm = offer("firm", "RTX4090", "0.40");
    let offers = [firm, spot];
    let work = hours_on(30, "RTX4090");
    assert_eq!(ids(&checked(&needs(), &work, &saving(), &offers)), ["spot", "firm"]);

    let mut known = saving();
    known.mean_life_s.insert(("vast-main".to_owned(), Some(gpu("RTX4090"))), 600);
    assert_eq!(ids(&checked(&needs(), &work, &known, &offers)), ["firm", "spot"]);

    // A job that saves nothing loses half its run each time.
    assert_eq!(ids(&checked(&needs(), &work, &Knowledge::default(), &offers)), ["firm", "spot"]);
}

#[test]
fn a_host_that_ends_its_offer_soon_costs_a_changeover_or_is_of_no_use() {
    let lasting = offer("lasting", "RTX4090", "0.40");
    let brief = Offer { max_duration_s: Some(7200), ..offer("brief", "RTX4090", "0.40") };
    let gone = Offer { max_duration_s: Some(600), ..offer("gone", "RTX4090", "0.10") };
    let offers = [gone, brief, lasting];
    let plan = checked(&needs(), &hours_on(50, "RTX4090"), &saving(), &offers);
    assert_eq!(ids(&plan), ["lasting", "brief"]);
    assert_eq!(plan.ranked[1].time.losses_milli, 2000, "5 h in stretches of less than 2 h");
    assert_eq!(plan.rejected[0].reason, RejectReason::MaxDuration);
    assert_eq!(plan.relaxation, None, "no change of the job makes a host stay");

    let unsaved = checked(&needs(), &hours_on(50, "RTX4090"), &Knowledge::default(), &offers);
    assert_eq!(ids(&unsaved), ["lasting"], "without checkpoints the whole run must fit");
}

#[test]
fn a_model_that_is_not_in_the_table_says_so() {
    let plan = checked(&needs(), &hours_on(10, "RTX4090"), &saving(), &[offer("a", "Quantum 9", "0.10")]);
    assert_eq!(plan.ranked[0].speed, SpeedBasis::Assumed);
    assert_eq!(plan.ranked[0].time.run_s, 7200);
    let sentence = plan.ranked[0].sentence();
    assert!(sentence.ends_with("; a GPU whose speed is not known was taken at 50 % of an RTX4090"), "{sentence}");
}

#[test]
fn each_requirement_rejects_under_its_own_name_and_says_what_to_change() {
    type Ask = fn(&mut Requirements);
    let cases: [(RejectReason, Ask, &str); 16] = [
        (RejectReason::Provider, |r| r.providers = vec!["other".to_owned()], "vast-main in providers"),
        (RejectReason::Region, |r| r.regions = vec!["US".to_owned()], "NO in regions"),
        (RejectReason::Capacity, |r| r.capacity = CapacityChoice::Spot, "capacity: Any"),
        (RejectReason::GpuModel, |r| r.gpu_models = vec![gpu("H100")], "RTX4090 in gpu.models"),
        (RejectReason::GpuCount, |r| r.gpu_count = 8, "gpu.count: 1"),
        (RejectReason::GpuMemory, |r| r.min_gpu_memory_mib = 40_000, "gpu.minMemory: 24564Mi"),
        (RejectReason::Cpu, |r| r.cpu_millis = 32_000, "CPU request: 16000m"),
        (RejectReason::Memory, |r| r.memory_mib = 100_000, "memory request: 64000Mi"),
        (RejectReason::Disk, |r| r.disk_gib = 500, "ephemeral-storage request: 200Gi"),
        (RejectReason::Trust, |r| r.min_trust = Trust::Enterprise, "minTrust: Datacenter"),
        (RejectReason::Reliability, |r| r.min_reliability_ppm = 999_000, "minReliability: 0.995"),
        (RejectReason::Download, |r| r.min_download_mbps = 2000, "minDownloadMbps: 1000"),
        (RejectReason::Upload, |r| r.min_upload_mbps = 900, "minUploadMbps: 500"),
        (RejectReason::PricePerHour, |r| r.max_price_per_hour = Some(dollars("0.30")), "budget.perHour: 0.40"),
        (RejectReason::Budget, |r| r.budget_left = Some(dollars("0.10")), "$0.31 more in budget.total"),
        (RejectReason::Region, |r| r.regions = vec!["SE".to_owned(), "DK".to_owned()], "NO in regions"),
    ];
    let offers = [offer("a", "RTX4090", "0.40")];
    for (reason, ask, change) in cases {
        let mut needs = needs();
        ask(&mut needs);
        let plan = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &offers);
        assert!(plan.ranked.is_empty(), "{reason:?}");
        assert_eq!((plan.rejected[0].reason, plan.rejected[0].count), (reason, 1));
        let relaxation = plan.relaxation.as_ref().unwrap_or_else(|| panic!("{reason:?} can give way"));
        assert_eq!((relaxation.change.as_slice(), relaxation.admits), ([change.to_owned()].as_slice(), 1));
    }
}

#[test]
fn regions_are_compared_without_case_and_an_untold_one_matches_none() {
    let untold = Offer { region: String::new(), ..offer("untold", "RTX4090", "0.10") };
    let needs = Requirements { regions: vec!["no".to_owned()], ..needs() };
    let plan = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &[untold, offer("told", "RTX4090", "0.40")]);
    assert_eq!(ids(&plan), ["told"]);
}

#[test]
fn refused_offers_and_banned_hosts_are_left_out() {
    let offers = [offer("a", "RTX4090", "0.40"), offer("b", "RTX4090", "0.41"), offer("c", "RTX4090", "0.42")];
    let mut known = saving();
    let note = |for_s| RefusedNote { reason: "out of stock".to_owned(), for_s };
    known.refused.insert(("vast-main".to_owned(), "a".to_owned()), note(240));
    known.refused.insert(("vast-main".to_owned(), "c".to_owned()), note(0));
    known.banned_hosts.insert(("vast-main".to_owned(), "host-b".to_owned()), "did not start".to_owned());
    let plan = checked(&needs(), &hours_on(10, "RTX4090"), &known, &offers);
    assert_eq!(ids(&plan), ["c"], "a note whose time is over no longer counts");

    known.refused.insert(("vast-main".to_owned(), "c".to_owned()), note(600));
    let none = checked(&needs(), &hours_on(10, "RTX4090"), &known, &offers);
    assert_eq!(
        none.why_none().as_deref(),
        Some(
            "no offer fits: 2 of 3 are left out because they were refused lately; nearest: 1xRTX4090 in NO at $0.40/h would \
             fit with 4 min of patience (it was refused: out of stock)"
        )
    );
}

#[test]
fn a_cpu_job_runs_anywhere_and_a_gpu_job_is_never_sent_to_a_cpu() {
    let cpu = Offer { gpu: None, gpu_count: 0, gpu_memory_mib: 0, ..offer("cpu", "", "0.05") };
    let offers = [cpu, offer("gpu", "RTX4090", "0.40")];
    let any = Requirements::default();
    let plan_any = checked(&any, &WorkLeft { seconds: 600, on: None }, &saving(), &offers);
    assert_eq!(ids(&plan_any), ["cpu", "gpu"]);
    assert!(plan_any.ranked[0].sentence().starts_with("16-core CPU on demand in NO at $0.05/h"));

    let two = Requirements { gpu_count: 2, ..Requirements::default() };
    let plan_two = checked(&two, &hours_on(10, "RTX4090"), &saving(), &offers);
    let relaxation = plan_two.relaxation.expect("fewer GPUs would do");
    assert_eq!((relaxation.change[0].as_str(), relaxation.nearest.id.as_str()), ("gpu.count: 1", "gpu"));
}

#[test]
fn contradictory_offers_are_named_and_never_ranked() {
    let offers = [
        Offer { price_per_hour: dollars("-0.10"), ..offer("paid", "RTX4090", "0.40") },
        Offer { gpu: None, ..offer("nameless", "RTX4090", "0.40") },
        Offer { gpu: Some(gpu("NVIDIA")), ..offer("empty", "RTX4090", "0.40") },
        Offer { storage_price_per_gib_hour: dollars("11"), ..offer("dear", "RTX4090", "0.40") },
        Offer { upload_price_per_gb: dollars("-1"), ..offer("gift", "RTX4090", "0.40") },
    ];
    let plan = checked(&Requirements::default(), &hours_on(10, "RTX4090"), &saving(), &offers);
    assert_eq!(
        plan.why_none().as_deref(),
        Some(
            "no offer fits: 2 of 5 are without a readable GPU model or number of GPUs; no change of the job would admit one"
        )
    );
    assert_eq!(
        explain::rejections(&plan.rejected, 10),
        [
            "2 are without a readable GPU model or number of GPUs",
            "1 is at a price below $0.001 or above $1000.00 per hour and GPU",
            "1 is at a disk price below zero or above $10.00 per GiB and hour",
            "1 is at a traffic price below zero or above $100.00 per GB",
        ]
    );
}

#[test]
fn nothing_fits_names_what_excludes_most_and_the_nearest() {
    let mut offers: Vec<Offer> = (0..14)
        .map(|n| Offer {
            trust: Trust::Community,
            region: "US".to_owned(),
            ..offer(&format!("c{n:02}"), "RTX4090", "0.31")
        })
        .collect();
    offers.extend((0..6).map(|n| offer(&format!("d{n}"), "RTX3090", "0.20")));
    let needs = Requirements { min_trust: Trust::Datacenter, gpu_models: vec![gpu("RTX4090")], ..needs() };
    let plan = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &offers);
    assert_eq!(
        plan.why_none().as_deref(),
        Some(
            "no offer fits: 14 of 20 are below minTrust Datacenter; nearest: 1xRTX4090 in US at $0.31/h would fit with \
             minTrust: Community"
        )
    );
    assert_eq!(plan.relaxation.as_ref().map(|r| r.admits), Some(14));
    assert_eq!(plan.why_first(), None);

    let empty = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &[]);
    assert_eq!(empty.why_none().as_deref(), Some("no offer fits: the market shows none"));
}

#[test]
fn two_constraints_give_way_together_when_one_is_not_enough() {
    let far = Offer { trust: Trust::Community, region: "US".to_owned(), ..offer("a", "RTX4090", "0.31") };
    let needs = Requirements { min_trust: Trust::Datacenter, regions: vec!["NO".to_owned()], ..needs() };
    let plan = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &[far]);
    let relaxation = plan.relaxation.expect("both can give way");
    assert_eq!(relaxation.constraints, [RejectReason::Region, RejectReason::Trust]);
    assert_eq!(relaxation.change, ["US in regions", "minTrust: Community"]);
    assert_eq!(plan.rejected[0].also_misses, [RejectReason::Trust]);
}

#[test]
fn why_first_names_the_next() {
    let offers = [offer("a", "RTX4090", "0.40"), offer("b", "RTX3090", "0.50")];
    let plan = checked(&needs(), &hours_on(10, "RTX4090"), &saving(), &offers);
    assert_eq!(plan.why_none(), None);
    assert_eq!(
        plan.why_first().as_deref(),
        Some(
            "1xRTX4090 on demand in NO at $0.40/h from vast-main: about $0.41 in all (compute 0.40, set-up 0.0067, image pull \
             0.0053), done in 1 h 2 min; next: 1xRTX3090 on demand in NO at $0.50/h from vast-main, about $0.81 in all"
        )
    );
}

#[test]
fn a_spoiled_plan_is_seen() {
    let offers = [offer("a", "RTX4090", "0.40"), offer("b", "RTX4090", "0.50"), offer("c", "H100", "9.00")];
    let needs = Requirements { gpu_models: vec![gpu("RTX4090")], ..needs() };
    let good = checked(&needs, &hours_on(10, "RTX4090"), &saving(), &offers);
    type Spoil = fn(&mut Plan);
    let spoils: [(&str, Spoil); 12] = [
        ("a candidate forgotten", |p| drop(p.ranked.pop())),
        ("the order turned round", |p| p.ranked.reverse()),
        ("a candidate twice", |p| p.ranked[1] = p.ranked[0].clone()),
        ("an offer nobody made", |p| p.ranked[0].offer.id = "z".to_owned()),
        ("a wrong sum", |p| p.ranked[0].cost.total = Money::ZERO),
        ("a wrong time", |p| p.ranked[1].finish_in_s += 1),
        ("a cap above the price", |p| p.ranked[0].price_cap_per_hour = Money::MAX),
        ("a rejection that counts nothing", |p| p.rejected[0].count = 0),
        ("more counted than excluded", |p| p.rejected[0].excludes = 0),
        ("a relaxation that admits nothing", |p| p.relaxation.as_mut().expect("the H100").admits = 0),
        ("a relaxation that changes nothing", |p| p.relaxation.as_mut().expect("the H100").change.clear()),
        ("a cut from nowhere", |p| p.cut = 1),
    ];
    for (what, spoil) in spoils {
        let mut bad = good.clone();
        spoil(&mut bad);
        let problems = check(&needs, &bad, &offers);
        assert!(!problems.is_empty(), "{what} must be seen");
        assert!(problems.iter().all(|p| !p.to_string().is_empty()), "{what}");
    }
    let stricter = Requirements { min_trust: Trust::Cluster, ..needs.clone() };
    assert!(!check(&stricter, &good, &offers).is_empty(), "a plan for weaker needs does not pass for stronger ones");
}
