//! Decisions over time: with a table that is there already, and without one.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tradewind_core::{Capacity, Money};
use tradewind_planner::when::{Changeover, Memory, Pool, Record, Sight, Situation, decide};

use crate::draw::Draw;
use crate::{row, spread};

/// Seconds of an hour.
const HOUR: u64 = 3600;
/// Situations measured for each number of pools.
const SITUATIONS: usize = 300;

/// A pool's record: forty lives and absences of minutes to hours.
fn record(draw: &mut Draw) -> Record {
    let mean = 600 + draw.below(5 * HOUR as usize) as u64;
    let lives: Vec<(bool, u64)> =
        (0..80).map(|n| (n % 2 == 0, 60 + draw.below(2 * mean as usize + 60) as u64)).collect();
    Record::from_history(&lives, 0)
}

/// Prints how long decisions of jobs of up to 48 h take.
pub fn measure() {
    println!("\ndecisions over time, up to 48 h of work");
    for pools in [1_usize, 3, 8] {
        let mut draw = Draw::new(11 + pools as u64);
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..SITUATIONS {
            let records: Vec<Record> = (0..=pools).map(|_| record(&mut draw)).collect();
            let work_s = HOUR + draw.below(47 * HOUR as usize) as u64;
            one(&records, work_s, &mut draw, (&mut cold, &mut warm));
        }
        row(&format!("cold, spot pools: {pools}"), &spread(&mut cold));
        row(&format!("with a table, spot pools: {pools}"), &spread(&mut warm));
    }
}

fn one(records: &[Record], work_s: u64, draw: &mut Draw, (cold, warm): (&mut Vec<Duration>, &mut Vec<Duration>)) {
    let pool = |n: usize, draw: &mut Draw| Pool {
        capacity: if n == 0 { Capacity::OnDemand } else { Capacity::Spot },
        price_per_hour: Money::from_micros(if n == 0 { 1_000_000 } else { 200_000 + draw.below(300_000) as i64 }),
        speed_milli: 1000,
        up: Some(n == 0 || draw.below(2) == 0),
        record: &records[n],
    };
    let pools: Vec<Pool<'_>> = (0..records.len()).map(|n| pool(n, draw)).collect();
    let situation = Situation {
        now_s: 0,
        work_s,
        deadline_in_s: Some(work_s + HOUR + draw.below(work_s as usize) as u64),
        patience_s: 0,
        changeover: Changeover { mean_s: 360, max_s: 720, ..Changeover::default() },
        look_s: 60,
        next_look_s: 60,
        sure_until_look: false,
        sight: Sight::Free,
        max_price_per_hour: None,
        pools: &pools,
        held: None,
        lets_go: true,
    };
    let mut memory = Memory::new();
    let mut timed = |situation: &Situation<'_>| {
        let started = Instant::now();
        black_box(decide(black_box(situation), &mut memory));
        started.elapsed()
    };
    cold.push(timed(&situation));
    warm.push(timed(&Situation { now_s: 60, work_s: work_s - 60, ..situation }));
}
