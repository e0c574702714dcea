//! The world simulation: real controllers, agents' logic, market, object store and API server in memory, under seeds.
//!
//! `WORLD_SEED=n` runs one world with its whole trace; `WORLD_RUNS=n` runs that many rough ones; `WORLD_SWEEP=all` cuts every call of
//! every story in every way.

mod engine;

use std::time::{Duration, Instant};

use engine::plan::{Cut, Story};
use engine::{Mood, Mutant, Options, report, run, sweep};

#[expect(clippy::disallowed_methods, reason = "a test's knobs")]
fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[expect(clippy::disallowed_methods, reason = "how long the test itself takes")]
fn stopwatch() -> Instant {
    Instant::now()
}

/// Seeds on as many threads as there are cores; the first failures, shortest trouble first.
fn all_hold(seeds: std::ops::Range<u64>) -> (u64, Vec<String>) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (failures, seeds) = (&failures, seeds.clone());
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % threads == thread) {
                    let options = Options::new(seed, Mood::Rough);
                    let outcome = run(&options);
                    if !outcome.violations.is_empty() {
                        failures.lock().unwrap().push(report(&options, &outcome));
                    }
                }
            });
        }
    });
    (seeds.end - seeds.start, failures.into_inner().unwrap())
}

#[test]
fn rough_worlds_keep_the_promises() {
    if let Some(seed) = knob("WORLD_SEED") {
        return one_world(seed);
    }
    let from = knob("WORLD_FROM").unwrap_or(0);
    let runs = knob("WORLD_RUNS").unwrap_or(150);
    let watch = stopwatch();
    let (worlds, failures) = all_hold(from..from + runs);
    let seconds = watch.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = worlds as f64 / seconds;
    println!("{worlds} rough worlds in {seconds:.1} s: {rate:.1} a second");
    assert!(failures.is_empty(), "{} of {worlds} worlds break a promise; one of them:\n{}", failures.len(), shortest(&failures));
}

/// One world with its whole trace, a story's if `WORLD_STORY` gives its number, with `WORLD_CUT` and `WORLD_WAY` as a sweep would.
fn one_world(seed: u64) {
    let index = |n: u64| usize::try_from(n).unwrap();
    let story = knob("WORLD_STORY").map(|n| Mood::Story(Story::ALL[index(n)]));
    let cut = knob("WORLD_CUT").map(|call| Cut { call, verdict: sweep::WAYS[index(knob("WORLD_WAY").unwrap_or(0))] });
    let mutant = knob("WORLD_MUTANT").map(|n| Mutant::ALL[index(n)]);
    let options = Options { verbose: true, cut, mutant, ..Options::new(seed, story.unwrap_or(Mood::Rough)) };
    let watch = stopwatch();
    let outcome = run(&options);
    println!("{} events, {} calls, {:?} of the world in {:?}", outcome.events, outcome.calls, outcome.time, watch.elapsed());
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
}

fn shortest(failures: &[String]) -> &str {
    failures.iter().min_by_key(|text| text.len()).map_or("", String::as_str)
}

#[test]
fn a_seed_repeats() {
    let options = Options::new(3, Mood::Rough);
    let (a, b) = (run(&options), run(&options));
    assert_eq!((a.trace, a.calls, a.time), (b.trace, b.calls, b.time));
}

#[test]
fn every_kind_of_call_may_go_wrong_once() {
    let all = std::env::vars().any(|(name, value)| name == "WORLD_SWEEP" && value == "all");
    let depth = if all { None } else { Some(usize::try_from(knob("WORLD_DEPTH").unwrap_or(1)).unwrap()) };
    let watch = stopwatch();
    let mut failures = Vec::new();
    let (mut worlds, mut known, mut covered) = (0, 0, 0);
    for story in Story::ALL {
        let swept = sweep::sweep(story, 11, depth);
        println!("{story:?}: {} calls, {} worlds, {} of {} crash points", swept.calls, swept.worlds, swept.covered, swept.known);
        worlds += swept.worlds;
        known += swept.known;
        covered += swept.covered;
        failures.extend(swept.failures);
    }
    let seconds = watch.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    println!("crash points covered/known: {covered}/{known}; {worlds} worlds in {seconds:.1} s");
    assert!(failures.is_empty(), "{} of {worlds} worlds break a promise; one of them:\n{}", failures.len(), shortest(&failures));
}

#[test]
fn deliberate_bugs_are_seen() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        let seen = (0..60).find_map(|seed| {
            let outcome = run(&Options { mutant: Some(mutant), ..Options::new(seed, Mood::Rough) });
            outcome.violations.first().map(|text| (seed, text.lines().next().unwrap_or("").to_owned()))
        });
        match seen {
            Some((seed, text)) => println!("{mutant:?}: seen at seed {seed}: {text}"),
            None => unseen.push(mutant),
        }
    }
    assert!(unseen.is_empty(), "the checker does not see {unseen:?}");
}
