//! How fast the planner decides, on real offers: `TRADEWIND_SHARED=... cargo bench -p tradewind-planner --bench planner-bench`.
//!
//! Every decision has requirements of its own. What the figures mean is in `docs/planner.md`.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock and finds its data by the environment")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts and prices of a measurement are small"
)]

mod draw;
mod market;
mod time;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tradewind_core::{Money, Offer};
use tradewind_planner::{Effort, Knowledge, OfferIndex, Pending, explain, plan, rank};

use draw::{Ask, Draw};

/// Decisions measured in one go, and one by one.
const WARM: usize = 200_000;
const COLD: usize = 2_000;
/// Alternatives that a status shows, and what the operator asks for.
const LIMITS: [usize; 2] = [8, 64];
/// A row of the index lies in three lines of a cache.
const ROW_BYTES: f64 = 192.0;
/// Jobs that are given machines in one go.
const BATCH: usize = 200;
/// More than any cache of a processor.
const EVICTED_BYTES: usize = 96 << 20;

fn main() -> ExitCode {
    let Some(real) = market::real() else {
        let ci = std::env::var("CI").as_deref() == Ok("true");
        return if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    };
    let jittered = market::replicated(&real, 20_000, &mut Draw::new(7));
    println!("planner-bench: one core, every decision with requirements of its own");
    measure("real offers", &real);
    measure("replicated with jittered prices", &jittered);
    time::measure();
    ExitCode::SUCCESS
}

fn measure(name: &str, offers: &[Offer]) {
    let known = market::knowledge(offers);
    let before = resident_kib();
    let started = Instant::now();
    let mut index = OfferIndex::new(offers.to_vec(), &known);
    let built = started.elapsed();
    println!("\n{name}: {} offers", offers.len());
    row("index built", &format!("{:.1} ms", millis(built)));
    let grown = resident_kib().saturating_sub(before);
    row(
        "memory",
        &format!("{:.1} MB counted, {:.1} MB resident more", index.heap_bytes() as f64 / 1e6, grown as f64 / 1e3),
    );
    for limit in LIMITS {
        warm(&index, offers, limit);
    }
    cold(&index, offers, "requirements drawn at random", Draw::new(2));
    reasons(&index, offers);
    without_index(&known, offers);
    batch(&index, offers);
    changes(&mut index, offers);
    agree(&index, &known, offers);
}

fn asks(offers: &[Offer], draw: &mut Draw, n: usize) -> Vec<Ask> {
    (0..n).map(|_| draw.ask(offers)).collect()
}

/// Many decisions in a row.
fn warm(index: &OfferIndex, offers: &[Offer], limit: usize) {
    let asks = asks(offers, &mut Draw::new(1), WARM);
    let mut effort = Effort::default();
    let (mut found, mut empty) = (0, 0);
    let (started, busy) = (Instant::now(), processor_time());
    for ask in &asks {
        let (ranked, took) = index.rank_measured(&ask.needs, &ask.work, &ask.job.job(), limit);
        found += ranked.len();
        empty += usize::from(ranked.is_empty());
        effort.words += took.words;
        effort.groups += took.groups;
        effort.rows += took.rows;
        effort.estimates += took.estimates;
        black_box(ranked);
    }
    let wall_s = started.elapsed().as_secs_f64() / WARM as f64;
    let each_s = processor_time().saturating_sub(busy).as_secs_f64() / WARM as f64;
    let mean = |n: usize| n as f64 / WARM as f64;
    row(
        &format!("decisions/s, best {limit}"),
        &format!(
            "{:.0} ({:.2} µs of processor time each, {:.2} µs by the clock)",
            1.0 / each_s,
            each_s * 1e6,
            wall_s * 1e6
        ),
    );
    row(
        "  a decision",
        &format!(
            "{:.0} words of bits, {:.1} groups bounded, {:.1} offers looked at, {:.1} estimated, {:.1} ranked; none fits in {:.1} %",
            mean(effort.words),
            mean(effort.groups),
            mean(effort.rows),
            mean(effort.estimates),
            mean(found),
            mean(empty) * 100.0,
        ),
    );
    let bytes = mean(effort.words) * 8.0 + mean(effort.rows) * ROW_BYTES;
    let speed = read_speed();
    row(
        "  limit of this machine",
        &format!(
            "{bytes:.0} bytes a decision at {:.1} GB/s from its cache = {:.2} µs, so {:.0} decisions/s; reached: {:.1} %",
            speed / 1e9,
            bytes / speed * 1e6,
            speed / bytes,
            100.0 * bytes / speed / each_s,
        ),
    );
    let all = offers.len() as f64 * ROW_BYTES;
    row("  without an index", &format!("{:.0} bytes a decision, so at most {:.0} decisions/s", all, speed / all));
}

/// Single decisions, each with caches that hold something else.
fn cold(index: &OfferIndex, offers: &[Offer], what: &str, mut draw: Draw) {
    let asks = asks(offers, &mut draw, COLD);
    let mut evicted = vec![1_u8; EVICTED_BYTES];
    let mut times: Vec<Duration> = asks
        .iter()
        .map(|ask| {
            evicted.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
            black_box(&evicted);
            let started = Instant::now();
            black_box(index.rank(&ask.needs, &ask.work, &ask.job.job(), LIMITS[0]));
            started.elapsed()
        })
        .collect();
    row(&format!("single cold decision, {what}"), &spread(&mut times));
}

/// The whole plan, with a reason for every offer.
fn reasons(index: &OfferIndex, offers: &[Offer]) {
    let asks = asks(offers, &mut Draw::new(3), 200);
    let mut lines = 0;
    let mut times: Vec<Duration> = asks
        .iter()
        .map(|ask| {
            let started = Instant::now();
            let plan = index.plan(&ask.needs, &ask.work, &ask.job.job(), LIMITS[0]);
            let told = explain::rejections(&plan.rejected, 10);
            let took = started.elapsed();
            lines = lines.max(told.len());
            took
        })
        .collect();
    row("rejections of all offers on demand", &format!("{}; at most {lines} lines", spread(&mut times)));
}

/// A ranking that looks at every offer and gives no reasons: what the operator does at each look.
fn without_index(known: &Knowledge, offers: &[Offer]) {
    let asks = asks(offers, &mut Draw::new(7), 200);
    let all: Vec<&Offer> = offers.iter().collect();
    let mut times: Vec<Duration> = asks
        .iter()
        .map(|ask| {
            let known = with_market(&ask.job, known);
            let started = Instant::now();
            let mut fitting = 0;
            let ranked = rank(&ask.needs, &ask.work, &known, &all, |_| {
                fitting += 1;
                fitting <= LIMITS[1]
            });
            let took = started.elapsed();
            black_box(ranked);
            took
        })
        .collect();
    row(&format!("ranking without an index, best {}", LIMITS[1]), &spread(&mut times));
}

/// What is known of a job and of the market.
fn with_market(job: &Knowledge, market: &Knowledge) -> Knowledge {
    Knowledge {
        mean_life_s: market.mean_life_s.clone(),
        refused: market.refused.clone(),
        banned_hosts: market.banned_hosts.clone(),
        ..job.clone()
    }
}

/// Many pending jobs at once.
fn batch(index: &OfferIndex, offers: &[Offer]) {
    let mut draw = Draw::new(6);
    let mut placed = 0;
    let mut times: Vec<Duration> = (0..10)
        .map(|_| {
            let asks = asks(offers, &mut draw, BATCH);
            let pending: Vec<Pending<'_>> =
                asks.iter().map(|ask| Pending { needs: &ask.needs, work: &ask.work, job: ask.job.job() }).collect();
            let started = Instant::now();
            placed += index.assign(&pending).iter().flatten().count();
            started.elapsed()
        })
        .collect();
    row(&format!("{BATCH} jobs at once"), &format!("{}; {} placed on average", spread(&mut times), placed / 10));
}

/// One offer with another price, and one that goes and comes back.
fn changes(index: &mut OfferIndex, offers: &[Offer]) {
    let mut draw = Draw::new(4);
    let mut priced = Vec::new();
    let mut replaced = Vec::new();
    for _ in 0..2_000 {
        let offer = &offers[draw.below(offers.len())];
        let price_per_hour = Money::from_micros(offer.price_per_hour.micros() * (80 + draw.below(40) as i64) / 100);
        let offer = Offer { price_per_hour, ..offer.clone() };
        let started = Instant::now();
        index.put(offer.clone());
        priced.push(started.elapsed());
        let started = Instant::now();
        index.remove(&offer.provider, &offer.id, offer.capacity);
        index.put(offer);
        replaced.push(started.elapsed());
    }
    row("one offer with a new price", &spread(&mut priced));
    row("one offer removed and one added", &spread(&mut replaced));
    for offer in offers {
        index.put(offer.clone());
    }
}

/// What was measured is what the plan says.
fn agree(index: &OfferIndex, known: &Knowledge, offers: &[Offer]) {
    let asks = asks(offers, &mut Draw::new(5), 100);
    for ask in &asks {
        let expected = plan(&ask.needs, &ask.work, &with_market(&ask.job, known), offers, LIMITS[0]).ranked;
        assert_eq!(index.rank(&ask.needs, &ask.work, &ask.job.job(), LIMITS[0]), expected, "the index is not the plan");
    }
    row("compared with the plan", &format!("{} decisions, all equal", asks.len()));
}

fn row(what: &str, value: &str) {
    println!("  {what:<48}  {value}");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median, 99th percentile and worst.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| millis(times[(times.len() * percent).div_ceil(100).max(1) - 1]);
    format!("p50 {:.4} ms, p99 {:.4} ms, worst {:.4} ms", at(50), at(99), at(100))
}

/// Bytes a second that one core reads and ands, from a buffer as large as an index's bits.
fn read_speed() -> f64 {
    const ROUNDS: usize = 20_000;
    let words = vec![0x5555_u64; 64 << 10];
    let started = processor_time();
    let mut sum = 0_u64;
    for round in 0..ROUNDS as u64 {
        sum = sum.wrapping_add(black_box(&words).iter().fold(round, |all, word| all ^ word));
    }
    black_box(sum);
    (words.len() * 8 * ROUNDS) as f64 / processor_time().saturating_sub(started).as_secs_f64()
}

/// How long this process has had a processor: what others do on the same computer does not count.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

/// Memory of this process, as the kernel counts it.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
