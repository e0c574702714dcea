//! A running job moves for a gain that lasts, and never to and fro.

mod machine;

use machine::plain;
use proptest::prelude::*;
use tradewind_core::{Money, Offer};
use tradewind_planner::{
    Candidate, Knowledge, MoveRules, Requirements, Running, Verdict, WorkLeft, plan, staying, verdict,
};

fn machine(id: &str, micros: i64) -> Offer {
    Offer { price_per_hour: Money::from_micros(micros), ..plain(id) }
}

fn needs() -> Requirements {
    Requirements { gpu_count: 1, ..Requirements::default() }
}

fn known() -> Knowledge {
    Knowledge { checkpoint_interval_s: Some(600), checkpoint_mb: 1000, restore_mb: 1000, ..Knowledge::default() }
}

fn candidates(stay: i64, best: i64, work_s: u64) -> (Candidate, Candidate) {
    let work = WorkLeft { seconds: work_s, on: None };
    let stay = staying(&needs(), &work, &known(), &machine("a", stay));
    let best = plan(&needs(), &work, &known(), &[machine("b", best)], 1).ranked.remove(0);
    (stay, best)
}

const SETTLED: Running = Running { for_s: 100_000, gain_held_s: Some(100_000), unsaved_s: 0 };

#[test]
fn who_stays_pays_no_first_start() {
    let (stay, best) = candidates(500_000, 500_000, 36_000);
    assert_eq!((stay.time.setup_s, stay.time.image_pull_s, stay.time.restore_s), (0, 0, 0));
    assert_eq!(stay.time.run_s, best.time.run_s);
    assert_eq!(best.finish_in_s - stay.finish_in_s, best.time.startup_s());
    assert!(stay.cost.total < best.cost.total);
    assert_eq!(verdict(&stay, &best, &SETTLED, &MoveRules::default()), Verdict::Stay);
}

#[test]
fn a_gain_must_pay_for_the_restart_by_a_margin_and_must_last() {
    let rules = MoveRules::default();
    let (stay, best) = candidates(500_000, 300_000, 36_000);
    let Verdict::Move { gain } = verdict(&stay, &best, &SETTLED, &rules) else {
        panic!("4 of 10 cents an hour are worth it")
    };
    assert_eq!(gain, stay.cost.total - best.cost.total);

    let fresh = Running { gain_held_s: None, ..SETTLED };
    assert_eq!(verdict(&stay, &best, &fresh, &rules), Verdict::Watch { gain, for_s: 600 });
    let watched = Running { gain_held_s: Some(599), ..SETTLED };
    assert_eq!(verdict(&stay, &best, &watched, &rules), Verdict::Watch { gain, for_s: 1 });
    let arrived = Running { for_s: 600, ..SETTLED };
    assert_eq!(verdict(&stay, &best, &arrived, &rules), Verdict::Watch { gain, for_s: 1200 });

    // Much that is not saved is much to repeat.
    let unsaved = Running { unsaved_s: 36_000, ..SETTLED };
    assert_eq!(verdict(&stay, &best, &unsaved, &rules), Verdict::Stay);
    // The same prices shortly before the end: the restart eats the gain.
    let (stay, best) = candidates(500_000, 300_000, 300);
    assert_eq!(verdict(&stay, &best, &SETTLED, &rules), Verdict::Stay);
    // A gain of less than a tenth is within what estimates are wrong by.
    let (stay, best) = candidates(500_000, 460_000, 36_000);
    assert_eq!(verdict(&stay, &best, &SETTLED, &rules), Verdict::Stay);
    // The same machine at another price is not a move.
    let work = WorkLeft { seconds: 36_000, on: None };
    let same = plan(&needs(), &work, &known(), &[machine("a", 100_000)], 1).ranked.remove(0);
    assert_eq!(verdict(&stay, &same, &SETTLED, &rules), Verdict::Stay);
}

const MACHINES: usize = 4;
const MINUTES: usize = 48 * 60;

/// Moves of a job of 60 h over 48 h of prices, minute by minute: when and to which machine.
fn walk(prices: &[[i64; MACHINES]], rules: &MoveRules) -> Vec<(usize, usize)> {
    let (mut at, mut since, mut held) = (0_usize, 0_usize, None);
    let mut moves = Vec::new();
    for (minute, now) in prices.iter().enumerate() {
        let work = WorkLeft { seconds: (60 * 60 - minute as u64) * 60, on: None };
        let name = |n: usize| n.to_string();
        let stay = staying(&needs(), &work, &known(), &machine(&name(at), now[at]));
        let offers: Vec<Offer> = (0..MACHINES).filter(|n| *n != at).map(|n| machine(&name(n), now[n])).collect();
        let best = plan(&needs(), &work, &known(), &offers, 1).ranked.remove(0);
        let running = Running {
            for_s: (minute - since) as u64 * 60,
            gain_held_s: held.map(|from: usize| (minute - from) as u64 * 60),
            unsaved_s: 300,
        };
        match verdict(&stay, &best, &running, rules) {
            Verdict::Stay => held = None,
            Verdict::Watch { .. } => held = held.or(Some(minute)),
            Verdict::Move { .. } => {
                at = best.offer.id.parse().expect("machines are named by number");
                (since, held) = (minute, None);
                moves.push((minute, at));
            }
        }
    }
    moves
}

/// Prices that wander: each step goes up or down a little, and is drawn back to the mean.
fn wandering(seed: u64, step: i64, pull: i64) -> Vec<[i64; MACHINES]> {
    let mut state = seed;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(state >> 40).expect("24 bits") - (1 << 23)
    };
    let mut prices = [500_000_i64; MACHINES];
    (0..MINUTES)
        .map(|_| {
            for price in &mut prices {
                *price += draw() * step / (1 << 23) - (*price - 500_000) / pull;
                *price = (*price).clamp(100_000, 2_000_000);
            }
            prices
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_within_the_margin_moves_nobody(seed in any::<u64>()) {
        let noise: Vec<[i64; MACHINES]> = wandering(seed, 20_000, 8)
            .into_iter()
            .map(|prices| prices.map(|price| price.clamp(475_000, 525_000)))
            .collect();
        prop_assert!(noise.iter().any(|prices| *prices != noise[0]), "there is noise");
        prop_assert_eq!(walk(&noise, &MoveRules::default()), []);
    }

    #[test]
    fn a_random_walk_of_prices_makes_nobody_flap(seed in any::<u64>()) {
        let rules = MoveRules::default();
        let prices = wandering(seed, 15_000, 200);
        let moves = walk(&prices, &rules);
        let greedy = MoveRules { margin_ppm: 0, least_gain: Money::ZERO, held_s: 0, settle_s: 0 };
        let flapping = walk(&prices, &greedy);
        prop_assert!(flapping.len() > 4 * moves.len().max(1), "{} moves, {} without hysteresis", moves.len(), flapping.len());
        // Prices are a sixth off their mean as a rule: gains of a tenth are real, but not all the time.
        prop_assert!(moves.len() <= 24, "{moves:?}");
        for pair in moves.windows(2) {
            prop_assert!((pair[1].0 - pair[0].0) as u64 * 60 >= rules.settle_s, "{moves:?}");
        }
        let mut back_and_forth = moves.windows(3).filter(|three| three[0].1 == three[2].1 && three[2].0 - three[0].0 < 60);
        prop_assert_eq!(back_and_forth.next(), None, "there and back within an hour");
    }

    #[test]
    fn a_price_that_falls_for_good_is_followed_once(seed in any::<u64>(), when in 100_usize..1000) {
        let noise = wandering(seed, 5_000, 20);
        let prices: Vec<[i64; MACHINES]> = noise
            .into_iter()
            .enumerate()
            .map(|(minute, mut prices)| {
                prices[2] = if minute < when { prices[2] } else { 250_000 };
                prices
            })
            .collect();
        let moves = walk(&prices, &MoveRules::default());
        prop_assert_eq!(moves.len(), 1, "{:?}", moves);
        prop_assert_eq!((moves[0].0, moves[0].1), (when + 10, 2), "after the gain has held");
    }
}
