//! The market by itself: money exact to the micro-dollar, states, chance, and the same again for the same seed.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    reason = "a test fails where it cannot go on, and measures with its own clock"
)]

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use tradewind_sim::file::parse_market;
use tradewind_sim::market::{
    ControlError, Effect, Market, OfferChange, RentError, RentSpec, Rented, SimTime, StartError, State, StopCause,
    Workload,
};

const ACCOUNT: &str = "vast";

fn market_of(sim: serde_json::Value, credit: f64, seed: u64) -> Market {
    let file = json!({"providers": {"vast": {"kind": "vast", "credit": credit, "images": {"slow": {"pull": 30}, "bad": {"pull": 5, "error": "manifest unknown"}},
        "offers": [{"id": 1, "dph_base": 0.40, "min_bid": 0.20, "storage_cost": 0.15, "sim": sim}]}}});
    Market::new(seed, Timestamp::UNIX_EPOCH, parse_market(&file, "test", std::path::Path::new(".")).unwrap())
}

fn market() -> Market {
    market_of(json!({"boot": 10}), 50.0, 0)
}

fn at(seconds: f64) -> SimTime {
    SimTime::ZERO.after_seconds(seconds)
}

fn spec(bid: Option<u64>) -> RentSpec {
    let workload = Workload { image: "busybox".to_owned(), argv: vec!["true".to_owned()], ..Workload::default() };
    RentSpec {
        offer: "1".to_owned(),
        label: None,
        bid_micros_per_hour: bid,
        disk_milli_gb: 10_000,
        workload,
        park: false,
        start: true,
    }
}

fn rent(market: &mut Market, seconds: f64, bid: Option<u64>) -> u64 {
    market.rent(at(seconds), ACCOUNT, spec(bid)).unwrap().id()
}

fn cost(market: &mut Market, seconds: f64, id: u64) -> u64 {
    market.advance(at(seconds));
    market.machine(id).unwrap().cost_micros(at(seconds))
}

/// Disk of 10 GB at $0.15 a GB and month, in micro-dollars.
fn disk_micros(seconds: u64) -> u64 {
    seconds * 1_500_000 / (30 * 24 * 3600)
}

#[test]
fn compute_is_billed_while_running_and_disk_from_creation_to_the_end() {
    let mut market = market();
    let id = rent(&mut market, 100.0, None);
    assert_eq!(cost(&mut market, 110.0, id), disk_micros(10), "booting");
    assert_eq!(market.machine(id).unwrap().state, State::Running);
    assert_eq!(cost(&mut market, 3710.0, id), 400_000 + disk_micros(3610), "an hour of running");
    market.stop(at(3710.0), ACCOUNT, id).unwrap();
    assert_eq!(cost(&mut market, 103_710.0, id), 400_000 + disk_micros(103_610), "stopped");
    market.terminate(at(103_710.0), ACCOUNT, id).unwrap();
    assert_eq!(cost(&mut market, 999_999.0, id), 400_000 + disk_micros(103_610), "ended");
    assert_eq!(market.credit_micros(ACCOUNT), 50_000_000 - i64::try_from(400_000 + disk_micros(103_610)).unwrap());
    assert!(market.describe(at(999_999.0), ACCOUNT, id).is_none());
}

#[test]
fn an_outbid_machine_pays_its_disk_and_comes_back_by_itself() {
    let mut market = market_of(json!({"boot": 10, "prices": [[0, 0.20], [600, 0.45], [1200, 0.20]]}), 50.0, 0);
    let id = rent(&mut market, 0.0, Some(250_000));
    market.advance(at(600.0));
    assert_eq!(market.machine(id).unwrap().state, State::Stopped(StopCause::Outbid));
    let paid = 590 * 250_000 / 3600;
    assert_eq!(cost(&mut market, 1200.0, id), paid + disk_micros(1200));
    assert!(matches!(market.machine(id).unwrap().state, State::Booting { .. }), "it resumes when its bid wins again");
    market.advance(at(1210.0));
    assert_eq!(market.machine(id).unwrap().state, State::Running);
    let effects = market.take_effects();
    assert_eq!(
        effects,
        [Effect::Start { machine: id, boot: 1 }, Effect::Kill { machine: id }, Effect::Start { machine: id, boot: 2 }]
    );
    let kinds: Vec<_> = market.events().after(0).map(|event| event.kind).collect();
    assert_eq!(kinds, ["created", "running", "outbid", "started", "running"]);
}

#[test]
fn a_changed_bid_is_paid_from_then_on_and_may_lose() {
    let mut market = market_of(json!({"boot": 0}), 50.0, 0);
    let id = rent(&mut market, 0.0, Some(360_000));
    market.bid(at(100.0), ACCOUNT, id, 720_000).unwrap();
    let expected = (100 * 360_000 + 50 * 720_000) / 3600 + disk_micros(150);
    assert_eq!(cost(&mut market, 150.0, id), expected);
    market.bid(at(150.0), ACCOUNT, id, 100_000).unwrap();
    assert_eq!(market.machine(id).unwrap().state, State::Stopped(StopCause::Outbid));
}

#[test]
fn a_losing_bid_parks_leaks_or_fails() {
    let mut market = market();
    assert_eq!(market.rent(at(0.0), ACCOUNT, spec(Some(100_000))), Err(RentError::SoldOut));
    assert!(market.machines().is_empty());
    let parked = market.rent(at(0.0), ACCOUNT, RentSpec { park: true, ..spec(Some(100_000)) });
    let Err(RentError::BidTooLow { leftover: Some(id) }) = parked else { panic!("{parked:?}") };
    assert_eq!(cost(&mut market, 3600.0, id), disk_micros(3600), "its disk is billed");
    assert_eq!(
        market.rent(at(0.0), ACCOUNT, RentSpec { offer: "2".to_owned(), ..spec(None) }),
        Err(RentError::NoSuchOffer)
    );
}

#[test]
fn stock_bounds_what_runs_and_waiting_machines_get_what_is_freed() {
    let mut market = market();
    let first = rent(&mut market, 0.0, None);
    assert_eq!(market.rent(at(1.0), ACCOUNT, spec(None)), Err(RentError::SoldOut));
    let waiting = market.rent(at(1.0), ACCOUNT, RentSpec { park: true, ..spec(None) }).unwrap();
    assert!(matches!(waiting, Rented::Parked(_)));
    market.stop(at(20.0), ACCOUNT, first).unwrap();
    assert!(matches!(market.machine(waiting.id()).unwrap().state, State::Booting { .. }));
    assert_eq!(market.start(at(30.0), ACCOUNT, first), Err(StartError::Queued));
    market.terminate(at(40.0), ACCOUNT, waiting.id()).unwrap();
    assert!(
        matches!(market.machine(first).unwrap().state, State::Booting { .. }),
        "a queued start happens later by itself"
    );
    market.change_offer(at(41.0), ACCOUNT, "1", OfferChange { stock: Some(2), ..OfferChange::default() }).unwrap();
    assert_eq!(market.offers(at(41.0), ACCOUNT)[0].1, 2, "two more besides the one that runs");
}

#[test]
fn without_credit_everything_stops_to_the_second() {
    let mut market = market_of(json!({"boot": 0, "stock": 2}), 0.1, 0);
    let id = rent(&mut market, 0.0, None);
    market.advance(at(10_000.0));
    assert_eq!(market.machine(id).unwrap().state, State::Stopped(StopCause::NoCredit));
    let ran = market.machine(id).unwrap().compute_seconds(at(10_000.0));
    // 100000 micro-dollars at 400000 + 2083 an hour.
    assert!((894..=896).contains(&ran), "{ran}");
    assert_eq!(market.rent(at(10_000.0), ACCOUNT, spec(None)), Err(RentError::NoCredit));
    market.set_credit(at(10_001.0), ACCOUNT, 5_000_000).unwrap();
    assert_eq!(market.credit_micros(ACCOUNT), 5_000_000);
    market.start(at(10_001.0), ACCOUNT, id).unwrap();
    market.set_credit(at(10_010.0), ACCOUNT, 0).unwrap();
    assert_eq!(market.machine(id).unwrap().state, State::Stopped(StopCause::NoCredit));
}

#[test]
fn images_take_their_time_once_and_may_fail() {
    let mut market = market();
    let workload = |image: &str| Workload { image: image.to_owned(), ..Workload::default() };
    let slow = market.rent(at(0.0), ACCOUNT, RentSpec { workload: workload("slow"), ..spec(None) }).unwrap().id();
    market.advance(at(39.0));
    assert!(matches!(market.machine(slow).unwrap().state, State::Booting { .. }), "30 s of pull and 10 s of boot");
    market.advance(at(40.0));
    assert_eq!(market.machine(slow).unwrap().state, State::Running);
    market.stop(at(50.0), ACCOUNT, slow).unwrap();
    market.start(at(60.0), ACCOUNT, slow).unwrap();
    market.advance(at(70.0));
    assert_eq!(market.machine(slow).unwrap().state, State::Running, "the image is there already");
    market.terminate(at(70.0), ACCOUNT, slow).unwrap();
    let bad = market.rent(at(70.0), ACCOUNT, RentSpec { workload: workload("bad"), ..spec(None) }).unwrap().id();
    market.advance(at(75.0));
    assert_eq!(market.machine(bad).unwrap().state, State::BootFailed { message: "manifest unknown".to_owned() });
    assert_eq!(market.offers(at(75.0), ACCOUNT)[0].1, 1, "a failed boot gives the GPU back");
}

#[test]
fn a_vanished_host_costs_nothing_any_more() {
    let mut market = market_of(json!({"boot": 0}), 50.0, 0);
    let id = rent(&mut market, 0.0, None);
    market.reclaim(at(3600.0), ACCOUNT, id).unwrap();
    assert_eq!(cost(&mut market, 99_999.0, id), 400_000 + disk_micros(3600));
    assert!(!market.machine(id).unwrap().is_paid());
    assert!(matches!(market.reclaim(at(99_999.0), ACCOUNT, id), Err(ControlError::Conflict(_))));
    assert_eq!(market.start(at(99_999.0), ACCOUNT, id), Err(StartError::HostGone));
}

#[test]
fn lifetimes_and_refusals_follow_their_means() {
    let mut market = market_of(json!({"boot": 0, "stock": 1000, "lifetime": 1000, "refuse": 0.25}), 1e6, 3);
    let mut refused = 0;
    for _ in 0..1000 {
        if market.rent(at(0.0), ACCOUNT, spec(None)) == Err(RentError::Refused) {
            refused += 1;
        }
    }
    assert!((200..300).contains(&refused), "{refused} of 1000");
    market.advance(at(1000.0));
    let alive = market.machines().iter().filter(|m| m.holds_gpu()).count();
    let share = alive as f64 / (1000 - refused) as f64;
    assert!((0.31..0.43).contains(&share), "after the mean lifetime 1/e should be left, not {share}");
}

#[test]
fn a_new_machine_shows_up_after_its_lag() {
    let mut market = market_of(json!({"boot": 0, "lag": 4}), 50.0, 0);
    let id = rent(&mut market, 0.0, None);
    assert!(market.describe(at(3.9), ACCOUNT, id).is_none());
    assert!(market.list(at(3.9), ACCOUNT).is_empty());
    assert!(market.describe(at(4.0), ACCOUNT, id).is_some());
    assert_eq!(market.list(at(4.0), ACCOUNT).len(), 1);
}

#[test]
fn control_refuses_what_makes_no_sense() {
    let mut market = market_of(json!({"boot": 10, "stock": 2}), 50.0, 0);
    let id = rent(&mut market, 0.0, None);
    let conflict =
        |result: Result<(), ControlError>| assert!(matches!(result, Err(ControlError::Conflict(_))), "{result:?}");
    conflict(market.outbid(at(1.0), ACCOUNT, id, None));
    conflict(market.exit(at(1.0), ACCOUNT, id, None, false));
    let spot = rent(&mut market, 1.0, Some(300_000));
    conflict(market.outbid(at(1.0), ACCOUNT, spot, Some(300_000)));
    market.outbid(at(1.0), ACCOUNT, spot, None).unwrap();
    conflict(market.outbid(at(1.0), ACCOUNT, spot, None));
    assert_eq!(market.offers(at(1.0), ACCOUNT)[0].0.bid_micros_per_hour, Some(330_000));
    market.advance(at(20.0));
    conflict(market.fail(at(20.0), ACCOUNT, id, None));
    market.terminate(at(20.0), ACCOUNT, id).unwrap();
    conflict(market.reclaim(at(20.0), ACCOUNT, id));
    assert!(matches!(market.reclaim(at(20.0), "other", id), Err(ControlError::NotFound(_))));
    assert!(matches!(market.reclaim(at(20.0), ACCOUNT, 7), Err(ControlError::NotFound(_))));
}

/// What a customer or control may do next.
#[derive(Debug, Clone)]
enum Step {
    Rent(Option<u64>),
    Stop(usize),
    Start(usize),
    Terminate(usize),
    Bid(usize, u64),
    Price(u64),
    Reclaim(usize),
    Exit(usize),
    Wait,
}

fn step() -> impl Strategy<Value = (f64, Step)> {
    let bid = || (100_000_u64..600_000).prop_map(|micros| micros / 1000 * 1000);
    let step = prop_oneof![
        4 => proptest::option::of(bid()).prop_map(Step::Rent),
        2 => (0_usize..8).prop_map(Step::Stop),
        2 => (0_usize..8).prop_map(Step::Start),
        2 => (0_usize..8).prop_map(Step::Terminate),
        2 => ((0_usize..8), bid()).prop_map(|(n, b)| Step::Bid(n, b)),
        2 => bid().prop_map(Step::Price),
        1 => (0_usize..8).prop_map(Step::Reclaim),
        1 => (0_usize..8).prop_map(Step::Exit),
        3 => Just(Step::Wait),
    ];
    ((0_u64..400_000_000).prop_map(|micros| micros as f64 / 1e6), step)
}

fn take(market: &mut Market, now: SimTime, step: &Step) {
    let id = |n: usize| market.machines().get(n).map_or(0, |m| m.id);
    match step {
        Step::Rent(bid) => drop(market.rent(now, ACCOUNT, RentSpec { park: bid.is_some(), ..spec(*bid) })),
        Step::Stop(n) => drop(market.stop(now, ACCOUNT, id(*n))),
        Step::Start(n) => drop(market.start(now, ACCOUNT, id(*n))),
        Step::Terminate(n) => drop(market.terminate(now, ACCOUNT, id(*n))),
        Step::Bid(n, micros) => drop(market.bid(now, ACCOUNT, id(*n), *micros)),
        Step::Price(micros) => drop(market.change_offer(
            now,
            ACCOUNT,
            "1",
            OfferChange { bid_micros_per_hour: Some(*micros), ..OfferChange::default() },
        )),
        Step::Reclaim(n) => drop(market.reclaim(now, ACCOUNT, id(*n))),
        Step::Exit(n) => drop(market.exit(now, ACCOUNT, id(*n), None, false)),
        Step::Wait => market.advance(now),
    }
}

/// Money computed the slow way: looking at every machine once a second.
#[derive(Default, Clone)]
struct Watched {
    compute: u128,
    disk_seconds: u128,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With calls on whole seconds, each machine's cost is what a look at it every second adds up to.
    #[test]
    fn costs_are_what_an_observer_adds_up(steps in proptest::collection::vec(step(), 1..40)) {
        let mut market = market_of(json!({"boot": 7, "stock": 2}), 1e6, 1);
        let mut watched: Vec<Watched> = Vec::new();
        let mut second = 0_u64;
        for (wait, step) in &steps {
            let until = second + *wait as u64 / 4;
            while second < until {
                market.advance(at(second as f64));
                watched.resize(market.machines().len(), Watched::default());
                for (machine, seen) in market.machines().iter().zip(&mut watched) {
                    if machine.pays_compute() {
                        seen.compute += u128::from(machine.compute_micros_per_hour());
                    }
                    seen.disk_seconds += u128::from(machine.is_paid());
                }
                second += 1;
            }
            take(&mut market, at(second as f64), step);
        }
        market.advance(at(second as f64));
        watched.resize(market.machines().len(), Watched::default());
        let mut total = 0;
        for (machine, seen) in market.machines().iter().zip(&watched) {
            let expected = seen.compute / 3600 + seen.disk_seconds * 1_500_000 / 2_592_000;
            prop_assert_eq!(u128::from(machine.cost_micros(market.now())), expected, "machine {}", machine.id);
            total += machine.cost_micros(market.now());
        }
        prop_assert_eq!(market.credit_micros(ACCOUNT), 1_000_000_000_000 - i64::try_from(total).unwrap());
    }

    /// Never more on the GPUs than there are, no loser among them, no cost that shrinks; and all of it the same a second time,
    /// however time is cut into pieces.
    #[test]
    fn whatever_happens_the_books_hold(steps in proptest::collection::vec(step(), 1..60), seed in 0_u64..4) {
        let sim = json!({"boot": [1, 20], "stock": 2, "lifetime": 2000, "refuse": 0.1, "prices": [[500, 0.35], [1500, 0.15]]});
        let (mut market, mut again) = (market_of(sim.clone(), 0.3, seed), market_of(sim, 0.3, seed));
        let mut now = SimTime::ZERO;
        let mut spent = 0;
        for (wait, step) in &steps {
            let then = now.after_seconds(*wait);
            again.advance(now.after_seconds(wait / 3.0));
            again.advance(now.after_seconds(wait / 2.0));
            now = then;
            take(&mut market, now, step);
            take(&mut again, now, step);
            let held: Vec<_> = market.machines().iter().filter(|m| m.holds_gpu()).collect();
            prop_assert!(held.len() <= 2);
            let lowest = market.account(ACCOUNT).unwrap().offers[0].bid_micros_per_hour.unwrap();
            prop_assert!(held.iter().all(|m| m.bid_micros_per_hour.is_none_or(|bid| bid >= lowest)));
            let total: u64 = market.machines().iter().map(|m| m.cost_micros(now)).sum();
            prop_assert!(total >= spent);
            spent = total;
        }
        prop_assert_eq!(format!("{:?}", market.machines()), format!("{:?}", again.machines()));
        prop_assert_eq!(market.take_effects(), again.take_effects());
        prop_assert!(market.events().after(0).eq(again.events().after(0)));
    }
}

#[test]
fn slips_in_a_market_file_name_file_field_and_value() {
    let refusal = |file: serde_json::Value| {
        parse_market(&file, "m.json", std::path::Path::new(".")).err().expect("must be refused").to_string()
    };
    let offer = |offer: serde_json::Value| refusal(json!({"providers": {"v": {"kind": "vast", "offers": [offer]}}}));
    for (refused, says) in [
        (
            refusal(json!({"providers": {"r": {"kind": "lambda", "offers": []}}})),
            "m.json: providers.r.kind: must be \"vast\" or \"runpod\", found \"lambda\"",
        ),
        (refusal(json!([])), "m.json: the file: must be an object, found []"),
        (refusal(json!({"providers": {}})), "m.json: providers: must name at least one provider"),
        (
            refusal(json!({"providers": {"v": {"kind": "vast", "credits": 3}}})),
            "m.json: providers.v.credits: unknown field",
        ),
        (
            refusal(json!({"providers": {"v": {"kind": "vast", "credit": -3, "offers": []}}})),
            "m.json: providers.v.credit: must be a number from 0",
        ),
        (
            refusal(
                json!({"providers": {"v": {"kind": "vast", "offers": [], "images": {"i": {"root": "/does/not/exist"}}}}}),
            ),
            "m.json: providers.v.images.i.root: must be a directory",
        ),
        (offer(json!({})), "m.json: providers.v.offers[0]: must have the field id"),
        (offer(json!({"id": "1"})), "m.json: providers.v.offers[0].id: must be a whole number, found \"1\""),
        (offer(json!({"id": 1, "sim": {"boots": 3}})), "m.json: providers.v.offers[0].sim.boots: unknown field"),
        (
            offer(json!({"id": 1, "sim": {"boot": [3, 1]}})),
            "m.json: providers.v.offers[0].sim.boot: must be [min, max]",
        ),
        (
            offer(json!({"id": 1, "sim": {"prices": [[5, 1], [4, 1]]}})),
            "m.json: providers.v.offers[0].sim.prices[1][0]: seconds must not go back, found 4",
        ),
        (
            offer(json!({"id": 1, "sim": {"refuse": 2}})),
            "m.json: providers.v.offers[0].sim.refuse: must be a number from 0 to 1, found 2",
        ),
    ] {
        assert!(refused.starts_with(says), "{refused}\n  should begin with\n{says}");
    }
    let twice = refusal(json!({"providers": {"v": {"kind": "vast", "offers": [{"id": 1}, {"id": 1}]}}}));
    assert!(twice.starts_with("m.json: providers.v.offers[1]: the id 1 is used twice"), "{twice}");
}
