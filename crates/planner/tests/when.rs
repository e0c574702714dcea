//! The decision over time: examples, the promise never to be late, and odd input.

use tradewind_core::{Capacity, Money};
use tradewind_planner::when::{
    Action, Changeover, Decision, Held, Memory, Pool, Reason, Record, Sight, Situation, checkpoint_interval_s, decide,
    earliest_finish, latest_start,
};

const HOUR: u64 = 3600;
const TICK: u64 = 600;

fn dollars(text: &str) -> Money {
    text.parse().expect("test price is money")
}

fn pool<'a>(capacity: Capacity, price: &str, up: bool, record: &'a Record) -> Pool<'a> {
    Pool { capacity, price_per_hour: dollars(price), speed_milli: 1000, up: Some(up), record }
}

/// Spot at a third of the price, and on demand.
fn two<'a>(spot_up: bool, spot: &'a Record, on_demand: &'a Record) -> [Pool<'a>; 2] {
    [pool(Capacity::Spot, "1.00", spot_up, spot), pool(Capacity::OnDemand, "3.00", true, on_demand)]
}

fn situation<'a>(pools: &'a [Pool<'a>], work_s: u64, deadline_in_s: Option<u64>) -> Situation<'a> {
    Situation {
        now_s: 0,
        work_s,
        deadline_in_s,
        patience_s: 0,
        changeover: Changeover { mean_s: 300, max_s: 600, ..Changeover::default() },
        look_s: TICK,
        next_look_s: TICK,
        sure_until_look: true,
        sight: Sight::Free,
        max_price_per_hour: None,
        pools,
        held: None,
        lets_go: true,
    }
}

fn fresh(situation: &Situation<'_>) -> Decision {
    decide(situation, &mut Memory::new())
}

/// Up for `up_s`, down for `down_s`, again and again for a week, and now so for `age_s`.
fn rhythm(up_s: u64, down_s: u64, up_now: bool, age_s: u64) -> Record {
    let rounds = 7 * 86_400 / (up_s + down_s);
    let life = |up: bool| (up, if up { up_s } else { down_s });
    let mut history: Vec<(bool, u64)> = (0..rounds).flat_map(|_| [life(up_now), life(!up_now)]).collect();
    history.push((up_now, age_s));
    Record::from_history(&history, 0)
}

#[test]
fn spot_that_stays_up_is_taken_and_kept() {
    let (calm, none) = (rhythm(20 * HOUR, HOUR, true, HOUR), Record::new());
    let pools = two(true, &calm, &none);
    let mut now = situation(&pools, 10 * HOUR, Some(14 * HOUR));
    assert_eq!(fresh(&now).action, Action::Launch(0));
    now.held = Some(Held { pool: 0, age_s: HOUR, ready: true });
    assert_eq!(fresh(&now).action, Action::Hold);
}

#[test]
fn with_time_to_spare_it_waits_for_spot_instead_of_going_on_demand() {
    let (short_gaps, none) = (rhythm(10 * HOUR, HOUR, false, 1200), Record::new());
    let pools = two(false, &short_gaps, &none);
    let decision = fresh(&situation(&pools, 5 * HOUR, Some(40 * HOUR)));
    assert_eq!(decision.action, Action::Wait);
    // 40 h less 5 h of work and two of the longest changeovers: spot that comes later could be lost too late.
    assert_eq!(decision.wait_ends_in_s, Some(35 * HOUR - 1200));
    assert!(decision.expected_cost < dollars("15.00"), "cheaper than on demand all the way: {decision:?}");
}

#[test]
fn at_the_last_safe_moment_it_goes_on_demand_and_stays() {
    let (spot, none) = (rhythm(HOUR, HOUR, true, 1200), Record::new());
    let pools = two(true, &spot, &none);
    let mut now = situation(&pools, 10 * HOUR, Some(10 * HOUR + 600));
    let decision = fresh(&now);
    assert_eq!(decision.action, Action::Launch(1));
    assert_eq!(decision.reason, Reason::LastSafeMoment);
    assert_eq!(decision.wait_ends_in_s, Some(0));
    now.held = Some(Held { pool: 1, age_s: 600, ready: true });
    now.deadline_in_s = Some(10 * HOUR);
    assert_eq!(fresh(&now).action, Action::Hold);
}

#[test]
fn on_demand_goes_back_to_spot_only_if_it_is_expected_to_last() {
    let none = Record::new();
    let held = Some(Held { pool: 1, age_s: HOUR, ready: true });
    let calm = rhythm(30 * HOUR, HOUR, true, 2 * HOUR);
    let pools = two(true, &calm, &none);
    let now = Situation { held, ..situation(&pools, 10 * HOUR, Some(12 * HOUR)) };
    assert_eq!(fresh(&now).action, Action::Launch(0));
    let flapping = rhythm(600, 600, true, 0);
    let pools = two(true, &flapping, &none);
    let now = Situation { held, ..situation(&pools, 10 * HOUR, Some(12 * HOUR)) };
    assert_eq!(fresh(&now).action, Action::Hold);
}

#[test]
fn of_two_pools_at_one_price_the_calm_one_is_taken() {
    let (calm, flapping, none) = (rhythm(20 * HOUR, HOUR, true, HOUR), rhythm(1200, 1200, true, 600), Record::new());
    let pools = [
        pool(Capacity::Spot, "1.00", true, &flapping),
        pool(Capacity::Spot, "1.00", true, &calm),
        pool(Capacity::OnDemand, "3.00", true, &none),
    ];
    assert_eq!(fresh(&situation(&pools, 10 * HOUR, Some(12 * HOUR))).action, Action::Launch(1));
}

#[test]
fn too_late_is_said_at_once_with_the_earliest_finish_and_its_cost() {
    let none = Record::new();
    let mut pools = two(false, &none, &none);
    let now = situation(&pools, 10 * HOUR, Some(9 * HOUR));
    let decision = fresh(&now);
    assert_eq!(decision.action, Action::Launch(1));
    assert_eq!(decision.reason, Reason::TooLate { late_by_s: HOUR + 600 });
    let earliest = earliest_finish(&now).expect("on demand can be had");
    assert_eq!((earliest.pool, earliest.finish_s), (1, 10 * HOUR + 600));
    assert_eq!(earliest.cost, dollars("30.50"));
    // A faster pool keeps it after all.
    pools[1].speed_milli = 2000;
    let decision = fresh(&situation(&pools, 10 * HOUR, Some(9 * HOUR)));
    assert!(!matches!(decision.reason, Reason::TooLate { .. }), "{decision:?}");
}

#[test]
fn without_a_deadline_patience_bounds_the_wait() {
    let (gaps, none) = (rhythm(10 * HOUR, HOUR, false, 1200), Record::new());
    let pools = two(false, &gaps, &none);
    let mut now = situation(&pools, 5 * HOUR, None);
    assert_eq!(fresh(&now).action, Action::Launch(1), "no patience: it runs");
    now.patience_s = 6 * HOUR;
    assert_eq!(fresh(&now).action, Action::Wait);
    assert_eq!(fresh(&now).wait_ends_in_s, None);
}

#[test]
fn a_price_is_waited_for_while_patience_lasts() {
    let (spot, none) = (rhythm(10 * HOUR, HOUR, true, 1200), Record::new());
    let pools = two(true, &spot, &none);
    let mut now = situation(&pools, 5 * HOUR, None);
    now.max_price_per_hour = Some(dollars("0.80"));
    now.patience_s = 2 * HOUR;
    assert_eq!(fresh(&now).action, Action::Wait);
    now.patience_s = 0;
    assert_eq!(fresh(&now).action, Action::Launch(0));
    now.patience_s = 2 * HOUR;
    now.max_price_per_hour = Some(dollars("1.00"));
    assert_eq!(fresh(&now).action, Action::Launch(0));
}

#[test]
fn unknown_pools_are_tried_and_on_demand_taken_when_the_tries_failed() {
    let (calm, none) = (rhythm(20 * HOUR, HOUR, true, HOUR), Record::new());
    let mut pools = two(true, &calm, &none);
    pools[0].up = None;
    let now = Situation { sight: Sight::Try { attempt_s: 60 }, ..situation(&pools, 10 * HOUR, Some(11 * HOUR + 600)) };
    assert_eq!(fresh(&now).action, Action::Launch(0));
    pools[0].up = Some(false);
    let tight =
        Situation { sight: Sight::Try { attempt_s: 60 }, ..situation(&pools, 10 * HOUR, Some(10 * HOUR + 600)) };
    assert_eq!(fresh(&tight).action, Action::Launch(1));
    pools[0].up = None;
    let tight =
        Situation { sight: Sight::Try { attempt_s: 60 }, ..situation(&pools, 10 * HOUR, Some(10 * HOUR + 659)) };
    assert_eq!(fresh(&tight).action, Action::Launch(1), "a failed try would make it late");
}

#[test]
fn the_last_launch_that_is_safe_is_taken_and_none_after_it() {
    let (calm, none) = (rhythm(20 * HOUR, HOUR, true, HOUR), Record::new());
    let pools = two(true, &calm, &none);
    // Were spot lost at the end of its changeover, one more changeover would still do.
    let with = |slack_s: u64| Situation {
        changeover: Changeover { mean_s: 720, max_s: 720, ..Changeover::default() },
        held: Some(Held { pool: 1, age_s: HOUR, ready: true }),
        ..situation(&pools, 10 * HOUR, Some(10 * HOUR + slack_s))
    };
    assert_eq!(fresh(&with(1440)).action, Action::Launch(0));
    assert_eq!(fresh(&with(1439)).action, Action::Hold);
}

#[test]
fn what_a_loss_costs_more_than_a_launch_keeps_from_spot_and_not_from_what_stays() {
    let (calm, none) = (rhythm(20 * HOUR, HOUR, true, HOUR), Record::new());
    let pools = two(true, &calm, &none);
    let changeover = Changeover { mean_s: 300, max_s: 600, loss_s: 900, leave_s: 60 };
    let with =
        |slack_s: u64, held| Situation { changeover, held, ..situation(&pools, 10 * HOUR, Some(10 * HOUR + slack_s)) };
    assert_eq!(fresh(&with(600, None)).action, Action::Launch(1));
    assert!(matches!(fresh(&with(599, None)).reason, Reason::TooLate { .. }));
    assert_eq!(fresh(&with(2100, None)).action, Action::Launch(0), "a launch, a loss, and another launch");
    assert_ne!(fresh(&with(2099, None)).action, Action::Launch(0));
    let spot = Some(Held { pool: 0, age_s: HOUR, ready: true });
    assert_eq!(fresh(&with(1500, spot)).action, Action::Hold);
    let leaves = fresh(&with(1499, spot));
    assert_eq!((leaves.action, leaves.reason), (Action::Launch(1), Reason::LastSafeMoment));
    assert!(matches!(fresh(&with(659, spot)).reason, Reason::TooLate { .. }), "its own end takes a minute");
}

#[test]
fn what_is_almost_done_is_finished_and_not_let_go() {
    let (flapping, none) = (rhythm(1200, 2400, true, 600), Record::new());
    let pools = two(true, &flapping, &none);
    for work_s in [1, 120, 600] {
        let held = Some(Held { pool: 0, age_s: HOUR, ready: true });
        let now = Situation { held, ..situation(&pools, work_s, Some(3 * HOUR)) };
        assert_eq!(fresh(&now).action, Action::Hold, "{work_s} s left");
    }
}

#[test]
fn while_something_is_held_a_pool_that_was_down_a_look_ago_is_tried_again() {
    let (down, none) = (rhythm(20 * HOUR, HOUR, false, 1200), Record::new());
    let mut pools = two(false, &down, &none);
    pools[0].up = None;
    let held = Some(Held { pool: 1, age_s: HOUR, ready: true });
    let sight = Sight::Try { attempt_s: 60 };
    let now = Situation { held, sight, ..situation(&pools, 10 * HOUR, Some(12 * HOUR)) };
    assert_eq!(fresh(&now).action, Action::Launch(0));
    pools[0].up = Some(false);
    let now = Situation { held, sight, ..situation(&pools, 10 * HOUR, Some(12 * HOUR)) };
    assert_ne!(fresh(&now).action, Action::Launch(0), "it was tried in this look");
}

#[test]
fn latest_start_and_checkpoint_cadence() {
    assert_eq!(latest_start(10_000, 4000, 1000, 600), Some(5400));
    assert_eq!(latest_start(10_000, 4000, 2000, 600), Some(7400));
    assert_eq!(latest_start(4599, 4000, 1000, 600), None);
    assert_eq!(latest_start(10_000, 1, 0, 0), None);
    // √(2 × 9 s × 7200 s) = 360 s.
    assert_eq!(checkpoint_interval_s(9, 7200, 60, 3600), 360);
    assert_eq!(checkpoint_interval_s(9, 7200, 600, 3600), 600);
    assert_eq!(checkpoint_interval_s(9, 7200, 60, 300), 300);
    assert_eq!(checkpoint_interval_s(u64::MAX, u64::MAX, 0, u64::MAX), u64::MAX);
}

/// Numerical Recipes' linear congruential generator: enough to draw worlds, and the same everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("index of a slice")]
    }
}

/// One run of the world of ticks, as hard as its rules allow: every changeover takes the longest.
fn finish_in_the_worst_world(seed: u64) -> (u64, u64) {
    let mut draw = Draw(seed);
    let tick = draw.of(&[34, 300, 600, 900]);
    let max = draw.of(&[0, 240, 720, 1441, 3600]);
    let work = draw.of(&[1, 1800, 4 * HOUR, 7 * HOUR + 17]);
    let (loss_s, leave_s) = (draw.of(&[0, 0, 61, 900]), draw.of(&[0, 0, 30, 1200]));
    let slack = max + draw.of(&[0, 1, tick - 1, tick, max, max + tick, 2 * max + 61, loss_s, HOUR, 3 * HOUR]);
    let deadline = work + slack;
    let (tries, lets_go) = (draw.below(2) == 0, draw.below(2) == 0);
    let fast = draw.of(&[500, 1000, 1000, 1500]);
    let (chance_up, chance_down) = (draw.of(&[5, 30, 90]), draw.of(&[5, 30, 90]));
    let mut records = [Record::new(), Record::new(), Record::new()];
    let mut memory = Memory::new();
    let mut up = [draw.below(2) == 0, draw.below(2) == 0, true];
    let (mut now, mut done_milli) = (0_u64, 0_u64);
    let mut held: Option<(usize, u64, u64)> = None; // pool, since, changeover left
    let mut ends_at = 0; // when what was left has ended
    let mut known: [Option<bool>; 3] = [None; 3];
    let speeds = [fast, 1000, 1000];
    while now <= deadline + HOUR {
        let shown: Vec<Option<bool>> = (0..3)
            .map(|i| if !tries || i == 2 || held.is_some_and(|h| h.0 == i) { Some(up[i]) } else { known[i] })
            .collect();
        for (i, record) in records.iter_mut().enumerate() {
            if let Some(up) = shown[i] {
                record.see(up, now.cast_signed(), tick);
            }
        }
        let pools: Vec<Pool<'_>> = (0..3)
            .map(|i| Pool {
                capacity: if i == 2 { Capacity::OnDemand } else { Capacity::Spot },
                price_per_hour: dollars(["1.00", "0.90", "3.00"][i]),
                speed_milli: speeds[i],
                up: shown[i],
                record: &records[i],
            })
            .collect();
        let left = tick - now % tick;
        let decision = decide(
            &Situation {
                now_s: now.cast_signed(),
                work_s: (work * 1000 - done_milli).div_ceil(1000),
                deadline_in_s: Some(deadline.saturating_sub(now)),
                changeover: Changeover { mean_s: max / 2, max_s: max, loss_s, leave_s },
                look_s: tick,
                next_look_s: left,
                sight: if tries { Sight::Try { attempt_s: 60 } } else { Sight::Free },
                held: held.map(|(pool, since, left)| Held { pool, age_s: now - since, ready: left == 0 }),
                lets_go,
                ..situation(&pools, work, None)
            },
            &mut memory,
        );
        let mut passes = left;
        match decision.action {
            Action::Hold => assert!(held.is_some(), "seed {seed}: nothing is held"),
            Action::Wait => {
                assert!(lets_go || held.is_none(), "seed {seed}: let go for nothing");
                ends_at = if held.is_some() { now + leave_s } else { ends_at };
                held = None;
            }
            Action::Launch(pool) if up[pool] => {
                let ends = if held.is_some() { now + leave_s } else { ends_at };
                held = Some((pool, now, max + ends.saturating_sub(now)));
            }
            Action::Launch(pool) => {
                assert!(tries, "seed {seed}: pool {pool} was seen to be down");
                known[pool] = Some(false);
                passes = left.min(60);
            }
        }
        if let Some((pool, since, pending)) = held {
            let useless = pending.min(passes);
            let need = (work * 1000 - done_milli).div_ceil(u64::from(speeds[pool]));
            if passes - useless >= need && (passes > useless || need == 0) {
                return (now + useless + need, deadline);
            }
            done_milli += (passes - useless) * u64::from(speeds[pool]);
            held = Some((pool, since, pending - useless));
        }
        now += passes;
        if now % tick == 0 {
            known = [None; 3];
            for (i, state) in up.iter_mut().enumerate().take(2) {
                let chance = if *state { chance_down } else { chance_up };
                // The meanest time to take a machine is when its changeover has just been paid.
                let mean = held.is_some_and(|h| h.0 == i && h.2 == 0) && draw.below(3) == 0;
                if draw.below(100) < chance || mean {
                    *state = !*state;
                }
            }
            if held.is_some_and(|h| !up[h.0]) {
                held = None;
                // Nobody sees it for so long, or so much is worked again.
                now += loss_s;
            }
        }
    }
    (now, deadline)
}

#[test]
fn never_late_whatever_the_world_does() {
    for seed in 0..3000 {
        let (finish, deadline) = finish_in_the_worst_world(seed);
        assert!(finish <= deadline, "seed {seed}: finished at {finish}, deadline {deadline}");
    }
}

#[test]
fn the_same_question_gets_the_same_answer() {
    let (spot, none) = (rhythm(2 * HOUR, HOUR, true, 600), Record::new());
    let pools = two(true, &spot, &none);
    let now = situation(&pools, 10 * HOUR, Some(14 * HOUR));
    let mut memory = Memory::new();
    let first = decide(&now, &mut memory);
    assert_eq!(first, decide(&now, &mut memory));
    assert_eq!(first, fresh(&now));
}

#[test]
fn odd_input_gives_a_decision() {
    let records = [Record::from_history(&[(true, u64::MAX), (false, u64::MAX), (true, 0)], i64::MIN), Record::new()];
    let numbers = [0, 1, 600, u64::MAX];
    let prices = [Money::ZERO, Money::from_micros(-1), Money::from_micros(i64::MIN), Money::MAX];
    let mut draw = Draw(7);
    for _ in 0..3000 {
        let pools: Vec<Pool<'_>> = (0..draw.below(4))
            .map(|_| Pool {
                capacity: draw.of(&[Capacity::Spot, Capacity::OnDemand]),
                price_per_hour: draw.of(&prices),
                speed_milli: draw.of(&[0, 1, 1000, u32::MAX]),
                up: draw.of(&[None, Some(true), Some(false)]),
                record: &records[usize::try_from(draw.below(2)).expect("0 or 1")],
            })
            .collect();
        let held =
            Held { pool: draw.of(&[0, 1, 2, 3, usize::MAX]), age_s: draw.of(&numbers), ready: draw.below(2) == 0 };
        let now = Situation {
            now_s: draw.of(&[i64::MIN, 0, i64::MAX]),
            work_s: draw.of(&numbers),
            deadline_in_s: draw.of(&[None, Some(0), Some(7200), Some(u64::MAX)]),
            patience_s: draw.of(&numbers),
            changeover: Changeover {
                mean_s: draw.of(&numbers),
                max_s: draw.of(&numbers),
                loss_s: draw.of(&numbers),
                leave_s: draw.of(&numbers),
            },
            look_s: draw.of(&numbers),
            next_look_s: draw.of(&numbers),
            sure_until_look: draw.below(2) == 0,
            sight: draw.of(&[Sight::Free, Sight::Try { attempt_s: 0 }, Sight::Try { attempt_s: u64::MAX }]),
            max_price_per_hour: draw.of(&[None, Some(Money::ZERO), Some(Money::MAX)]),
            pools: &pools,
            held: draw.of(&[None, Some(held)]),
            lets_go: draw.below(2) == 0,
        };
        let decision = fresh(&now);
        if let Action::Launch(index) = decision.action {
            assert!(index < pools.len() && pools[index].up != Some(false), "{decision:?} of {now:?}");
        }
    }
}
