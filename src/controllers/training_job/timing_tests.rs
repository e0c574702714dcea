//! When what fits is rented: deadlines, patience and prices to wait for, over candidates of the planner.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_core::{Capacity, Offer};
use tradewind_planner::when::Record;
use tradewind_planner::{Candidate, Knowledge, Requirements, WorkLeft};

use super::deadline::later;
use super::groups::{changeover, groups};
use super::times::Times;
use super::timing::{Holding, Prospect, Verdict, decide};
use crate::market::pools::PoolId;
use crate::test_machine;

const HOUR: u64 = 3600;
const LOOK: Duration = Duration::from_mins(1);
const WORK: WorkLeft = WorkLeft { seconds: 2 * HOUR, on: None };

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

fn offer(id: &str, dollars: &str, capacity: Capacity) -> Offer {
    let plain = test_machine::offer(id);
    Offer { price_per_hour: dollars.parse().unwrap(), capacity, reliability_ppm: 999_000, ..plain }
}

fn fitting(offers: &[Offer]) -> Vec<Candidate> {
    tradewind_planner::plan(&Requirements::default(), &WORK, &Knowledge::default(), offers, 64).ranked
}

fn times() -> Times {
    Times {
        now: now(),
        deadline: None,
        patience_until: None,
        max_price_per_hour: None,
        look: LOOK,
        interval_s: Some(120),
        stop_s: 30,
    }
}

fn in_s(seconds: u64) -> Timestamp {
    later(now(), Duration::from_secs(seconds))
}

/// A pool that is up and down for two hours each.
fn record() -> Record {
    Record::from_history(&[(true, 2 * HOUR), (false, 2 * HOUR)].repeat(20), now().as_second())
}

/// Until a machine works, at most, and half a minute: what a deadline is kept with.
fn longest_start() -> u64 {
    let any = fitting(&[offer("any", "1.00", Capacity::OnDemand)]);
    changeover(&times(), &groups(&any, &[]), None).max_s + 30
}

/// The same after a loss.
fn longest_loss() -> u64 {
    longest_start() + times().loss_s(1000)
}

fn decided(times: &Times, there: &[Offer], absent: &[Offer]) -> Verdict {
    let (there, absent) = (fitting(there), fitting(absent));
    let records = |ids: &[PoolId]| vec![record(); ids.len()];
    decide(times, &WORK, (&there, &absent), records, None).0
}

fn taken(verdict: &Verdict) -> (&str, Option<&str>) {
    let Verdict::Go { ranked, because, .. } = verdict else { panic!("{verdict:?}") };
    (ranked[0].offer.id.as_str(), because.as_deref())
}

#[test]
fn a_price_is_waited_for_until_it_comes_or_patience_is_over() {
    let price = Some("0.30".parse().unwrap());
    let patient = Times { patience_until: Some(in_s(4 * HOUR)), max_price_per_hour: price, ..times() };
    assert!(patient.matter() && !times().matter());
    let dear = offer("dear", "0.40", Capacity::OnDemand);
    let Verdict::Wait { message, again_in } = decided(&patient, std::slice::from_ref(&dear), &[]) else {
        panic!("0.40 is more than 0.30")
    };
    assert!(again_in <= LOOK, "{again_in:?}");
    for part in ["$0.30 an hour or less", "until 2026-11-22 14:00 UTC", "0.40/h"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let cheap = offer("cheap", "0.29", Capacity::OnDemand);
    assert_eq!(taken(&decided(&patient, &[dear.clone(), cheap], &[])), ("cheap", None));
    let over = Times { patience_until: Some(in_s(0)), ..patient };
    assert_eq!(taken(&decided(&over, &[dear], &[])).0, "dear");
}

#[test]
fn a_deadline_waits_for_spot_while_it_may_and_then_takes_what_stays() {
    let (spot, stays) = (offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand));
    let by = |seconds| Times { deadline: Some(in_s(seconds)), ..times() };
    let both = [spot.clone(), stays.clone()];
    assert_eq!(taken(&decided(&by(24 * HOUR), &both, &[])).0, "spot");
    let waits = decided(&by(24 * HOUR), std::slice::from_ref(&stays), std::slice::from_ref(&spot));
    assert!(
        matches!(&waits, Verdict::Wait { message, .. } if message.contains("then the deadline needs one")),
        "{waits:?}"
    );
    let tight = decided(&by(2 * HOUR + longest_start()), &both, &[]);
    let (id, because) = taken(&tight);
    assert_eq!((id, because.is_some_and(|b| b.contains("by the deadline"))), ("stays", true));
    let late = decided(&by(HOUR), &both, &[]);
    assert!(taken(&late).1.is_some_and(|b| b.contains("nothing can keep the deadline")), "{late:?}");
}

#[test]
fn a_spot_machine_that_works_loses_no_time_and_a_slow_one_does() {
    let (spot, stays) = (offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand));
    let candidate = tradewind_planner::staying(&Requirements::default(), &WORK, &Knowledge::default(), &spot);
    let mut held = Holding { candidate, age_s: HOUR, ready: true };
    let there = fitting(std::slice::from_ref(&stays));
    let look = |held: &Holding, seconds| {
        let times = Times { deadline: Some(in_s(seconds)), ..times() };
        let records = |ids: &[PoolId]| vec![record(); ids.len()];
        decide(&times, &WORK, (&there, &[]), records, Some(held)).0
    };
    assert_eq!(look(&held, 24 * HOUR), Verdict::Stay);
    let tight = 2 * HOUR + longest_loss();
    assert_eq!(look(&held, tight), Verdict::Stay, "if it is lost, there is still time to start again");
    let tighter = look(&held, 2 * HOUR + longest_start());
    assert!(matches!(&tighter, Verdict::Go { must: true, .. }), "its end takes time too: {tighter:?}");
    let too_late = look(&held, 2 * HOUR + longest_start() - 30);
    assert_eq!(too_late, Verdict::Stay, "it has to end first, so nothing else is sure to be in time");
    held.candidate.time.run_s *= 3;
    assert_eq!(look(&held, 24 * HOUR), Verdict::Stay);
    let leaves = look(&held, tight);
    assert!(matches!(&leaves, Verdict::Go { must: true, .. }), "{leaves:?}");
    assert_eq!(taken(&leaves).0, "stays");
}

/// Four models with measured speeds: 2.5 h, 1.5 h, 1.5 h and 1 h of work.
fn models() -> (Vec<Offer>, Knowledge) {
    let models = [
        ("RTX3090", "0.50", 9000_u64),
        ("RTX4090", "0.70", 5400),
        ("RTXA6000", "0.80", 5400),
        ("A100-40GB", "1.50", 3600),
    ];
    let gpu = |name: &str| tradewind_core::GpuModel::normalise(name, 0);
    let on = |(name, dollars, _): &(&str, &str, u64)| Offer {
        gpu: Some(gpu(name)),
        gpu_count: 1,
        gpu_memory_mib: 24_000,
        download_mbps: 10_000,
        ..offer(name, dollars, Capacity::OnDemand)
    };
    let step_rates = models.iter().map(|(name, _, seconds)| (gpu(name), 1_000_000 * 3600 / seconds)).collect();
    let known = Knowledge { step_rates, steps_left: Some(3600), ..Knowledge::default() };
    (models.iter().map(on).collect(), known)
}

fn with_models(seconds: u64, offers: &[Offer]) -> Vec<String> {
    let needs = Requirements { gpu_count: 1, ..Requirements::default() };
    let ranked = tradewind_planner::plan(&needs, &WORK, &models().1, offers, usize::MAX).ranked;
    let times = Times { deadline: Some(in_s(seconds)), ..times() };
    let (verdict, _) = decide(&times, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None);
    let Verdict::Go { ranked, .. } = verdict else { panic!("{verdict:?}") };
    ranked.into_iter().map(|c| c.offer.id).collect()
}

#[test]
fn the_cheapest_model_that_is_in_time_is_taken_and_those_after_it_are_in_time_too() {
    let (offers, _) = models();
    assert_eq!(with_models(6 * HOUR, &offers), ["RTX4090", "RTXA6000", "RTX3090", "A100-40GB"]);
    assert_eq!(with_models(2 * HOUR, &offers), ["RTX4090", "RTXA6000", "A100-40GB"]);
    assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
    assert_eq!(with_models(30 * 60, &offers)[0], "A100-40GB", "nothing is in time: the fastest");
}

#[test]
fn what_keeps_the_deadline_is_found_behind_a_hundred_cheaper_ones() {
    let (mut offers, _) = models();
    let slow = |n: usize| Offer { id: format!("slow{n}"), region: format!("r{n}"), ..models().0[0].clone() };
    offers.extend((0..100).map(slow));
    assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
    // A line that would take hours to load the image makes nobody late.
    let drip = Offer { download_mbps: 10, capacity: Capacity::Spot, ..models().0[1].clone() };
    offers.push(Offer { id: "drip".into(), price_per_hour: "0.01".parse().unwrap(), ..drip });
    assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
}

#[test]
fn what_nobody_keeps_for_certain_is_done_as_soon_as_it_may_be() {
    let (models, known) = models();
    let work = WorkLeft { seconds: 9000, on: None };
    let needs = Requirements { gpu_count: 1, ..Requirements::default() };
    let look = |seconds, offers: &[Offer]| {
        let ranked = tradewind_planner::plan(&needs, &work, &known, offers, usize::MAX).ranked;
        let times = Times { deadline: Some(in_s(seconds)), ..times() };
        decide(&times, &work, (&ranked, &[]), |ids| vec![record(); ids.len()], None)
    };
    let slow = models[0].clone();
    let spot = Offer { capacity: Capacity::Spot, ..models[3].clone() };
    let cheaper = |n: usize| Offer { region: format!("r{n}"), capacity: Capacity::Spot, ..slow.clone() };
    let market: Vec<Offer> = (0..20).map(cheaper).chain([slow.clone(), spot]).collect();
    // The one that stays takes 2.5 h; spot takes 1 h, is dearer than twenty others, and may be lost.
    let (verdict, prospect) = look(100 * 60, &market);
    assert_eq!(taken(&verdict).0, "A100-40GB");
    assert!(matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")), "{prospect:?}");
    let (verdict, prospect) = look(30 * 60, &market);
    assert_eq!(taken(&verdict).0, "A100-40GB", "the first of what is late");
    assert!(matches!(&prospect, Prospect::Late(why) if why.contains("A100-40GB")), "{prospect:?}");
    assert_eq!(taken(&look(30 * 60, std::slice::from_ref(&slow)).0).0, "RTX3090");

    // A job on slow spot leaves it for what is done first, and stays where it is in time itself.
    let holds =
        Holding { candidate: tradewind_planner::staying(&needs, &work, &known, &cheaper(0)), age_s: HOUR, ready: true };
    let look = |seconds, offers: &[Offer]| {
        let ranked = tradewind_planner::plan(&needs, &work, &known, offers, usize::MAX).ranked;
        let times = Times { deadline: Some(in_s(seconds)), ..times() };
        decide(&times, &work, (&ranked, &[]), |ids| vec![record(); ids.len()], Some(&holds))
    };
    for seconds in [100 * 60, 30 * 60] {
        let (verdict, prospect) = look(seconds, &market);
        assert!(matches!(verdict, Verdict::Go { must: true, .. }), "{seconds}: {verdict:?}");
        assert_eq!(taken(&verdict).0, "A100-40GB");
        let late = seconds < 60 * 60;
        assert!(matches!(&prospect, Prospect::Late(_)) == late, "{seconds}: {prospect:?}");
    }
    let safer = look(100 * 60, std::slice::from_ref(&slow)).0;
    assert_eq!(taken(&safer).0, "RTX3090", "as slow, but nobody takes it: with losses counted it is done sooner");
    let (verdict, prospect) = look(9100, &[slow]);
    assert_eq!(verdict, Verdict::Stay);
    assert!(matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")), "{prospect:?}");
}

#[test]
fn what_begins_on_a_slow_machine_is_said_to_move_on() {
    let (models, known) = models();
    let spot = Offer { capacity: Capacity::Spot, price_per_hour: "0.10".parse().unwrap(), ..models[0].clone() };
    let needs = Requirements { gpu_count: 1, ..Requirements::default() };
    let ranked = tradewind_planner::plan(&needs, &WORK, &known, &[spot, models[3].clone()], 8).ranked;
    let look = |seconds| {
        let times = Times { deadline: Some(in_s(seconds)), ..times() };
        decide(&times, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None)
    };
    let (verdict, prospect) = look(9000);
    let (id, because) = taken(&verdict);
    assert_eq!((id, prospect), ("RTX3090", Prospect::OnTime));
    assert!(because.is_some_and(|why| why.contains("moves on to a machine that stays")), "{because:?}");
    assert_eq!(taken(&look(24 * HOUR).0), ("RTX3090", None));
}

#[test]
fn neither_a_cheaper_host_of_the_pool_nor_spot_that_starts_slowly_makes_a_job_late() {
    let with_line = |offer: Offer, download_mbps| Offer { download_mbps, ..offer };
    let known = Knowledge { input_mb: 43_000, ..Knowledge::default() };
    let fits = |offers: &[Offer]| tradewind_planner::plan(&Requirements::default(), &WORK, &known, offers, 64).ranked;
    let fast = with_line(offer("fast", "0.50", Capacity::OnDemand), 2000);
    let slow = with_line(offer("slow", "0.30", Capacity::OnDemand), 400);
    let spot = with_line(offer("spot", "0.10", Capacity::Spot), 900);
    let start_s = fits(std::slice::from_ref(&fast))[0].time.startup_s();
    let tight = Times { deadline: Some(in_s(2 * HOUR + 2 * start_s + 10)), ..times() };
    for others in [vec![], vec![slow.clone()], vec![spot.clone()], vec![slow, spot]] {
        let ranked = fits(&[vec![fast.clone()], others].concat());
        let (verdict, prospect) = decide(&tight, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None);
        let Verdict::Go { ranked, .. } = &verdict else { panic!("{verdict:?}") };
        assert_eq!((ranked[0].offer.id.as_str(), prospect), ("fast", Prospect::OnTime));
    }
}

#[test]
fn where_only_spot_may_be_had_the_deadline_is_at_risk_and_told_so() {
    let there = fitting(&[offer("there", "0.60", Capacity::Spot)]);
    let cheaper = |n: usize| Offer { region: format!("r{n}"), ..offer(&format!("gone{n}"), "0.10", Capacity::Spot) };
    let absent = fitting(&(0..20).map(cheaper).collect::<Vec<_>>());
    let look = |times: Times, there: &[Candidate]| {
        decide(&times, &WORK, (there, &absent), |ids| vec![record(); ids.len()], None)
    };
    let tight = Times { deadline: Some(in_s(2 * HOUR + longest_start())), ..times() };
    let (verdict, prospect) = look(tight, &there);
    assert_eq!(taken(&verdict).0, "there", "what may come does not hide what is there");
    assert!(matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")), "{prospect:?}");
    let unsaved = Times { interval_s: None, ..tight };
    assert_eq!(taken(&look(unsaved, &there).0).0, "there", "without checkpoints too");
    assert!(matches!(look(tight, &[]), (Verdict::Wait { .. }, Prospect::AtRisk(_))), "nothing is there");
    let (verdict, prospect) = look(Times { deadline: Some(in_s(HOUR)), ..tight }, &there);
    assert!(matches!((&verdict, &prospect), (Verdict::Go { .. }, Prospect::Late(_))), "{verdict:?} {prospect:?}");
    // A price is waited for as long as there is time to spare.
    let price = Some("0.20".parse().unwrap());
    let spare = Times { deadline: Some(in_s(24 * HOUR)), max_price_per_hour: price, ..tight };
    assert!(matches!(look(spare, &there).0, Verdict::Wait { .. }));
    assert_eq!(taken(&look(Times { max_price_per_hour: price, ..tight }, &there).0).0, "there");
}

#[test]
fn without_checkpoints_no_deadline_is_promised_on_spot() {
    let both = [offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand)];
    let unsaved = Times { deadline: Some(in_s(24 * HOUR)), interval_s: None, ..times() };
    assert_eq!(taken(&decided(&unsaved, &both, &[])).0, "stays");
}

#[test]
fn what_follows_the_chosen_one_is_on_the_same_terms() {
    let both = [
        offer("spot", "0.30", Capacity::Spot),
        offer("stays", "1.00", Capacity::OnDemand),
        Offer { region: "SE".into(), ..offer("stays too", "1.10", Capacity::OnDemand) },
    ];
    let tight = decided(&Times { deadline: Some(in_s(2 * HOUR + longest_start())), ..times() }, &both, &[]);
    let Verdict::Go { ranked, .. } = tight else { panic!("{tight:?}") };
    assert_eq!(ranked.iter().map(|c| c.offer.id.as_str()).collect::<Vec<_>>(), ["stays", "stays too"]);
}
