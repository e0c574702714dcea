//! Machines for a gang: together, enough of them, and cheap.

mod machine;

use machine::plain;
use proptest::collection::vec;
use proptest::prelude::*;
use tradewind_core::{Capacity, GpuModel, Money, Offer};
use tradewind_planner::{GangPlan, HostRecord, Knowledge, Requirements, Together, WorkLeft, gang};

fn machine(id: &str, region: &str, micros: i64) -> Offer {
    Offer { price_per_hour: Money::from_micros(micros), region: region.to_owned(), ..plain(id) }
}

fn needs() -> Requirements {
    Requirements { gpu_count: 1, ..Requirements::default() }
}

fn known() -> Knowledge {
    Knowledge { checkpoint_interval_s: Some(600), checkpoint_mb: 1000, ..Knowledge::default() }
}

fn work() -> WorkLeft {
    WorkLeft { seconds: 36_000, on: None }
}

fn ids(plan: &GangPlan) -> Vec<&str> {
    plan.ranked.first().map(|gang| gang.members.iter().map(|m| m.offer.id.as_str()).collect()).unwrap_or_default()
}

#[test]
fn all_are_in_one_region_unless_the_job_says_otherwise() {
    let offers = [
        machine("no-1", "NO", 300_000),
        machine("no-2", "NO", 300_000),
        machine("us-1", "US", 400_000),
        machine("us-2", "us", 400_000),
        machine("us-3", "US", 400_000),
    ];
    let three = gang(&needs(), &work(), &known(), &offers, 3, Together::Region);
    assert_eq!(ids(&three), ["us-1", "us-2", "us-3"]);
    assert_eq!(three.short.len(), 1, "Norway has two");
    assert!(
        three.ranked[0].sentence().starts_with("3 machines at vast-main, region us, RTX4090: about $12."),
        "{}",
        three.ranked[0].sentence()
    );
    let anywhere = gang(&needs(), &work(), &known(), &offers, 3, Together::Provider);
    assert_eq!(ids(&anywhere), ["no-1", "no-2", "us-1"]);
    assert!(anywhere.ranked[0].total < three.ranked[0].total);

    let four = gang(&needs(), &work(), &known(), &offers, 4, Together::Region);
    assert_eq!(
        four.why_none().as_deref(),
        Some("no place has 4 machines together; most are in vast-main, region us, RTX4090: 3 of 4; 5 fit one by one")
    );
    assert_eq!(
        gang(&needs(), &work(), &known(), &[], 4, Together::Region).why_none().as_deref(),
        Some("no offer fits: the market shows none")
    );
    let limited = Requirements { finish_within_s: Some(36_100), ..needs() };
    let slow = gang(&limited, &work(), &known(), &offers, 3, Together::Region);
    assert!(slow.why_none().is_some());
}

#[test]
fn one_provider_one_model_and_one_network() {
    let mut offers = vec![machine("a", "NO", 300_000), machine("b", "NO", 300_000)];
    offers[1].provider = "runpod".to_owned();
    assert!(gang(&needs(), &work(), &known(), &offers, 2, Together::Provider).ranked.is_empty(), "two providers");
    offers[1].provider = "vast-main".to_owned();
    offers[1].gpu = Some(GpuModel::normalise("RTX 3090", 0));
    assert!(gang(&needs(), &work(), &known(), &offers, 2, Together::Provider).ranked.is_empty(), "two models");

    let mut known = known();
    let offers: Vec<Offer> =
        ["a", "b", "c", "d"].iter().zip(0..).map(|(id, n)| machine(id, "NO", 300_000 + n)).collect();
    for (id, network) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        known.networks.insert(("vast-main".to_owned(), id.to_owned()), network.to_owned());
    }
    let two = gang(&needs(), &work(), &known, &offers, 2, Together::Region);
    assert_eq!(ids(&two), ["a", "c"], "b and d are cheaper together with a, and cannot reach it");
    assert_eq!(two.ranked[0].place.network, "red");

    let untold: Vec<Offer> = ["a", "b"].iter().map(|id| machine(id, "", 300_000)).collect();
    assert!(gang(&needs(), &work(), &self::known(), &untold, 2, Together::Region).ranked.is_empty(), "who knows where");
    assert_eq!(gang(&needs(), &work(), &self::known(), &untold, 1, Together::Region).ranked.len(), 1);
}

#[test]
fn a_stock_counts_as_many_and_two_terms_of_one_machine_as_one() {
    let spot = Offer { capacity: Capacity::Spot, ..machine("a", "NO", 200_000) };
    let offers = [spot, machine("a", "NO", 300_000)];
    assert!(gang(&needs(), &work(), &known(), &offers, 2, Together::Region).ranked.is_empty());
    let mut stocked = known();
    stocked.stock.insert(("vast-main".to_owned(), "a".to_owned()), 5);
    assert_eq!(ids(&gang(&needs(), &work(), &stocked, &offers, 4, Together::Region)).len(), 4);
    assert!(gang(&needs(), &work(), &stocked, &offers, 6, Together::Region).ranked.is_empty());
}

#[test]
fn everybody_waits_for_the_slowest_so_a_slow_machine_must_be_very_cheap() {
    let mut known = known();
    let slow = HostRecord { setup_s: Some(7200), ..HostRecord::default() };
    known.hosts.insert(("vast-main".to_owned(), "host-slow".to_owned()), slow);
    let mut offers: Vec<Offer> = (0..8).map(|n| machine(&n.to_string(), "NO", 400_000)).collect();
    offers.push(machine("slow", "NO", 330_000));
    // Alone the slow one costs least, even with its set-up.
    let alone = gang(&needs(), &work(), &known, &offers, 1, Together::Region);
    assert_eq!(ids(&alone), ["slow"]);
    let eight = gang(&needs(), &work(), &known, &offers, 8, Together::Region);
    assert!(!ids(&eight).contains(&"slow"), "two hours of seven others cost more than it saves");
    let gang = &eight.ranked[0];
    assert_eq!(gang.total, gang.members.iter().map(|m| m.cost.total).sum());
    assert!(gang.members.iter().all(|m| m.finish_in_s == gang.finish_in_s), "they end together");
}

/// The total of a gang of exactly these offers.
fn total_of(known: &Knowledge, offers: &[Offer]) -> Option<Money> {
    let workers = u32::try_from(offers.len()).expect("few offers");
    gang(&needs(), &work(), known, offers, workers, Together::Region).ranked.first().map(|gang| gang.total)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nearly_as_cheap_as_the_best_of_all_choices(
        machines in vec((100_000_i64..600_000, 0_u64..3000, 50_u64..2000, 900_000_u32..1_000_000, any::<bool>()), 3..8),
    ) {
        let mut known = known();
        let offers: Vec<Offer> = machines
            .iter()
            .enumerate()
            .map(|(n, (price, setup_s, mbps, reliability_ppm, spot))| {
                let record = HostRecord { setup_s: Some(*setup_s), ..HostRecord::default() };
                known.hosts.insert(("vast-main".to_owned(), format!("host-{n}")), record);
                let capacity = if *spot { Capacity::Spot } else { Capacity::OnDemand };
                let offer = machine(&n.to_string(), "NO", *price);
                Offer { download_mbps: *mbps, reliability_ppm: *reliability_ppm, capacity, ..offer }
            })
            .collect();
        let found = gang(&needs(), &work(), &known, &offers, 3, Together::Region).ranked[0].total;
        let mut best: Option<Money> = None;
        for a in 0..offers.len() {
            for b in a + 1..offers.len() {
                for c in b + 1..offers.len() {
                    let three = [offers[a].clone(), offers[b].clone(), offers[c].clone()];
                    let total = total_of(&known, &three).expect("three machines are a gang of three");
                    best = Some(best.map_or(total, |best| best.min(total)));
                }
            }
        }
        let best = best.expect("at least three machines");
        prop_assert!(found >= best);
        prop_assert!(found.micros() * 100 <= best.micros() * 105, "{} against {}", found, best);
    }
}
