//! The market of the kind `runpod` by itself: whatever happens, stocks hold, bills by the hour add up, and the same calls give the same.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a test fails where it cannot go on")]

use std::path::Path;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tradewind_sim::file::parse_market;
use tradewind_sim::market::{Market, OfferChange, Place, RentSpec, SimTime, StartError, State, Workload};

const ACCOUNT: &str = "runpod";
const GPU: &str = "NVIDIA L4";

fn market(sim: &Value, credit: f64, seed: u64) -> Market {
    let offer = json!({"id": GPU, "price": {"secure": 0.72, "community": 0.36}, "dataCenters": [{"id": "EU-RO-1"}, {"id": "US-KS-2"}], "sim": sim});
    let images = json!({"slow": {"pull": 30}, "gone": {"pull": 5, "error": "manifest unknown"}});
    let file =
        json!({"providers": {ACCOUNT: {"kind": "runpod", "credit": credit, "images": images, "offers": [offer]}}});
    Market::new(seed, Timestamp::UNIX_EPOCH, parse_market(&file, "test", Path::new(".")).unwrap())
}

fn spec(image: &str) -> RentSpec {
    RentSpec {
        offer: GPU.to_owned(),
        label: None,
        bid_micros_per_hour: None,
        disk_milli_gb: 10_000,
        workload: Workload { image: image.to_owned(), ..Workload::default() },
        park: false,
        start: true,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Rent { community: bool, gpus: u32, volume: u64, gone: bool },
    Stop(usize),
    Start(usize),
    Restart(usize),
    Terminate(usize),
    Reclaim(usize, bool),
    Exit(usize),
    Price(u64),
    Wait,
}

fn step() -> impl Strategy<Value = (f64, Step)> {
    let one = || 0_usize..8;
    let rent = (any::<bool>(), 1_u32..3, prop_oneof![Just(0_u64), Just(30_000)], proptest::bool::weighted(0.1));
    let step = prop_oneof![
        4 => rent.prop_map(|(community, gpus, volume, gone)| Step::Rent { community, gpus, volume, gone }),
        2 => one().prop_map(Step::Stop),
        2 => one().prop_map(Step::Start),
        1 => one().prop_map(Step::Restart),
        2 => one().prop_map(Step::Terminate),
        1 => (one(), any::<bool>()).prop_map(|(n, absent)| Step::Reclaim(n, absent)),
        1 => one().prop_map(Step::Exit),
        1 => (100_000_u64..900_000).prop_map(Step::Price),
        3 => Just(Step::Wait),
    ];
    ((0_u64..4_000_000_000).prop_map(|micros| micros as f64 / 1e6), step)
}

fn take(market: &mut Market, now: SimTime, step: &Step) {
    let id = |n: usize| market.machines().get(n).map_or(0, |m| m.id);
    match step {
        Step::Rent { community, gpus, volume, gone } => {
            let place = Place { community: *community, gpus: *gpus, volume_milli_gb: *volume, ..Place::default() };
            drop(market.rent_at(now, ACCOUNT, spec(if *gone { "gone" } else { "slow" }), &place));
        }
        Step::Stop(n) => drop(market.stop(now, ACCOUNT, id(*n))),
        Step::Start(n) => drop(market.start(now, ACCOUNT, id(*n))),
        Step::Restart(n) => drop(market.reboot(now, ACCOUNT, id(*n), true)),
        Step::Terminate(n) => drop(market.terminate(now, ACCOUNT, id(*n))),
        Step::Reclaim(n, true) => drop(market.reclaim_without_trace(now, ACCOUNT, id(*n))),
        Step::Reclaim(n, false) => drop(market.reclaim(now, ACCOUNT, id(*n))),
        Step::Exit(n) => drop(market.exit(now, ACCOUNT, id(*n), None, false)),
        Step::Price(micros) => drop(market.change_offer(
            now,
            ACCOUNT,
            GPU,
            OfferChange { on_demand_micros_per_hour: Some(*micros), ..OfferChange::default() },
        )),
        Step::Wait => market.advance(now),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_the_books_hold(steps in proptest::collection::vec(step(), 1..60), seed in 0_u64..4) {
        let sim = json!({"boot": [1, 20], "stock": {"EU-RO-1": 1, "US-KS-2": 2}, "lifetime": 20_000, "refuse": 0.1});
        let (mut market, mut again) = (market(&sim, 3.0, seed), market(&sim, 3.0, seed));
        let mut now = SimTime::ZERO;
        let mut spent = 0;
        for (wait, step) in &steps {
            let then = now.after_seconds(*wait);
            again.advance(now.after_seconds(wait / 3.0));
            again.advance(now.after_seconds(wait / 2.0));
            now = then;
            take(&mut market, now, step);
            take(&mut again, now, step);
            let held = |region: &str| {
                market.machines().iter().filter(|m| m.holds_gpu() && m.region.as_deref() == Some(region)).count()
            };
            prop_assert!(held("EU-RO-1") <= 1 && held("US-KS-2") <= 2);
            let total: u64 = market.machines().iter().map(|m| m.cost_micros(now)).sum();
            prop_assert!(total >= spent);
            spent = total;
            for pod in market.machines() {
                // A bill by the hour ends where the meters are, and never shrinks on the way.
                let (compute, storage) = pod.costs_by(now);
                prop_assert_eq!(compute + storage, pod.cost_micros(now));
                let half = pod.costs_by(SimTime::from_micros(now.as_micros() / 2));
                prop_assert!(half.0 <= compute && half.1 <= storage);
                let stopped = matches!(pod.state, State::Stopped(_) | State::BootFailed { .. });
                prop_assert!(!stopped || pod.burn_micros_per_hour() == pod.volume_milli_gb * 200 / 720);
                prop_assert!(!stopped || !pod.wants_to_run(), "nothing waits to start by itself");
            }
        }
        prop_assert_eq!(format!("{:?}", market.machines()), format!("{:?}", again.machines()));
        prop_assert_eq!(market.take_effects(), again.take_effects());
        prop_assert!(market.events().after(0).eq(again.events().after(0)));
    }
}

#[test]
fn a_start_that_cannot_be_had_does_not_wait() {
    let mut market = market(&json!({"boot": 1, "stock": 1}), 50.0, 0);
    let at = |seconds: f64| SimTime::ZERO.after_seconds(seconds);
    let first = market.rent_at(at(0.0), ACCOUNT, spec("x"), &Place::default()).unwrap().id();
    market.stop(at(5.0), ACCOUNT, first).unwrap();
    let second = market.rent_at(at(6.0), ACCOUNT, spec("x"), &Place::default()).unwrap().id();
    assert_eq!(market.start(at(7.0), ACCOUNT, first), Err(StartError::Queued));
    market.terminate(at(8.0), ACCOUNT, second).unwrap();
    market.advance(at(100.0));
    assert!(matches!(market.machine(first).unwrap().state, State::Stopped(_)));
    market.start(at(101.0), ACCOUNT, first).unwrap();
    assert!(market.next_due().is_some_and(|due| due == at(102.0)), "{:?}", market.next_due());
    market.advance(at(103.0));
    assert_eq!(market.machine(first).unwrap().state, State::Running);
    assert_eq!(
        market.next_due().map(|due| due < SimTime::from_micros(u64::MAX)),
        Some(true),
        "only the credit can end now"
    );
}
