//! The world simulation: real controllers, agents' logic, market, object store and API server in memory, under seeds.
//!
//! `WORLD_SEED=n` runs one world with its whole trace; `WORLD_RUNS=n` runs that many rough ones; `WORLD_SWEEP=all` cuts every call of
//! every story in every way. `ends.rs` is the table of ends in phases.

mod ends;
mod engine;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use engine::plan::{Cut, Story, Way};
use engine::sweep::Depth;
use engine::wire::lock;
use engine::{Mood, Mutant, Options, report, run, sweep};
use tradewind_core::gate::Point;

#[expect(clippy::disallowed_methods, reason = "a test's knobs")]
fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[expect(clippy::disallowed_methods, reason = "how long the test itself takes")]
fn stopwatch() -> Instant {
    Instant::now()
}

#[test]
fn rough_worlds_keep_the_promises() {
    if let Some(seed) = knob("WORLD_SEED") {
        return one_world(seed);
    }
    let from = knob("WORLD_FROM").unwrap_or(0);
    let runs = knob("WORLD_RUNS").unwrap_or(100);
    let watch = stopwatch();
    let worlds: Vec<Options> = (from..from + runs).map(|seed| Options::new(seed, Mood::Rough)).collect();
    let failures = sweep::run_all(&worlds);
    let worlds = worlds.len();
    let seconds = watch.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = worlds as f64 / seconds;
    println!("{worlds} rough worlds in {seconds:.1} s: {rate:.1} a second");
    all_hold(&failures, worlds);
}

/// One world with its whole trace, a story's if `WORLD_STORY` gives its number, with `WORLD_CUT` and `WORLD_WAY` as a sweep would.
fn one_world(seed: u64) {
    let index = |n: u64| usize::try_from(n).expect("a small number");
    let story = knob("WORLD_STORY").map(|n| Mood::Story(Story::ALL[index(n)]));
    let cut = knob("WORLD_CUT").map(|call| Cut { call, way: sweep::WAYS[index(knob("WORLD_WAY").unwrap_or(0))] });
    let mutant = knob("WORLD_MUTANT").map(|n| Mutant::ALL[index(n)]);
    told_world(Options { mutant, cut, ..Options::new(seed, story.unwrap_or(Mood::Rough)) });
}

/// Runs a world and prints everything that happens.
fn told_world(options: Options) {
    let options = Options { verbose: true, ..options };
    let watch = stopwatch();
    let outcome = run(&options);
    println!(
        "{} events, {} calls, {:?} of the world in {:?}",
        outcome.events,
        outcome.calls,
        outcome.time,
        watch.elapsed()
    );
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
}

/// One line for each failed world, and everything about one of them.
fn told(failures: &[String]) -> String {
    let first_lines = failures.iter().map(|text| text.lines().take(2).collect::<Vec<_>>().join(" "));
    let lines: Vec<String> = first_lines.map(|line| line.chars().take(400).collect()).collect();
    let one = failures.iter().min_by_key(|text| text.len()).map_or("", String::as_str);
    format!("{}\n{one}", lines.join("\n"))
}

/// No world has broken a promise.
fn all_hold(failures: &[String], worlds: usize) {
    assert!(failures.is_empty(), "{} of {worlds} worlds break a promise, namely\n{}", failures.len(), told(failures));
}

#[test]
fn rough_clusters_keep_the_promises() {
    if let Some(seed) = knob("WORLD_SEED") {
        return told_world(Options::new(seed, Mood::Cluster));
    }
    let from = knob("WORLD_FROM").unwrap_or(0);
    let runs = knob("WORLD_RUNS").unwrap_or(60);
    let watch = stopwatch();
    let worlds: Vec<Options> = (from..from + runs).map(|seed| Options::new(seed, Mood::Cluster)).collect();
    let failures = sweep::run_all(&worlds);
    println!("{} rough worlds in the cluster in {:.1} s", worlds.len(), watch.elapsed().as_secs_f64());
    all_hold(&failures, worlds.len());
}

#[test]
fn a_deadline_that_is_promised_is_kept() {
    if let Some(seed) = knob("WORLD_SEED") {
        return told_world(Options::new(seed, Mood::Deadline));
    }
    let from = knob("WORLD_FROM").unwrap_or(0);
    let runs = knob("WORLD_RUNS").unwrap_or(60);
    let watch = stopwatch();
    let worlds: Vec<Options> = (from..from + runs).map(|seed| Options::new(seed, Mood::Deadline)).collect();
    let (promised, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    sweep::run_each(&worlds, &|options, outcome| {
        promised.fetch_add(outcome.promised, Ordering::Relaxed);
        if !outcome.violations.is_empty() {
            lock(&failures).push(report(options, outcome));
        }
    });
    let promised = promised.into_inner();
    println!(
        "{promised} of {} jobs were promised to be in time, in {:.1} s",
        worlds.len(),
        watch.elapsed().as_secs_f64()
    );
    all_hold(&lock(&failures), worlds.len());
    assert!(promised * 2 > worlds.len(), "most deadlines leave time enough to be promised: {promised}");
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
    let calls = knob("WORLD_DEPTH").map(|n| Depth::Calls(usize::try_from(n).unwrap()));
    let depth = if all { Depth::All } else { calls.unwrap_or(Depth::Once) };
    let references = sweep::references();
    let watch = stopwatch();
    let swept = sweep::sweep(&references, depth);
    let seconds = watch.elapsed().as_secs_f64();
    println!(
        "crash points covered/known: {}/{} in {} calls of {} worlds; {} worlds in {seconds:.1} s",
        swept.covered,
        swept.known,
        swept.calls,
        references.len(),
        swept.worlds
    );
    all_hold(&swept.failures, swept.worlds);
}

#[test]
fn a_restart_in_place_survives_every_cut() {
    let outcome = run(&Options { record: true, ..Options::new(11, Mood::Story(Story::Fails)) });
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
    let started: Vec<_> = outcome.trace.iter().filter(|line| line.contains("program of attempt")).collect();
    let machine =
        |line: &&String| line.split("machine ").nth(1).and_then(|rest| rest.split(':').next()).map(str::to_owned);
    assert_eq!(started.len(), 2, "{started:?}");
    assert_eq!(machine(&started[0]), machine(&started[1]), "both attempts run on one machine: {started:?}");
    let swept = sweep::sweep_restart();
    println!("restart in place: {} worlds, {} failures", swept.worlds, swept.failures.len());
    all_hold(&swept.failures, swept.worlds);
}

/// True for a call of which a freeze could buy twice, forget a machine, or count its cost twice.
fn is_of_renting(point: &Point) -> bool {
    let written = ["rentedmachines/", "trainingjobs/", "providers/"];
    match (point.port, point.verb) {
        ("provider", "rent" | "terminate" | "describe") => true,
        ("cluster", "replace_status" | "replace" | "create" | "patch_metadata" | "delete") => {
            written.iter().any(|kind| point.key.starts_with(kind))
        }
        _ => false,
    }
}

#[test]
fn an_operator_frozen_at_any_call_of_renting_rents_nothing_twice() {
    let watch = stopwatch();
    let mut worlds = Vec::new();
    for story in [Story::Outbid, Story::Unknown, Story::Fails] {
        let reference = Options { record: true, ..Options::new(11, Mood::Story(story)) };
        let points = run(&reference).points;
        for (call, point) in (0_u64..).zip(&points).filter(|(_, point)| is_of_renting(point)) {
            let ways = sweep::ways(point).iter().filter(|way| !matches!(way, Way::Call(_) | Way::Delete));
            worlds.extend(ways.map(|way| Options {
                cut: Some(Cut { call, way: *way }),
                record: false,
                ..reference.clone()
            }));
        }
    }
    let failures = sweep::run_all(&worlds);
    println!("{} freezes at calls of renting in {:.1} s", worlds.len(), watch.elapsed().as_secs_f64());
    assert!(worlds.len() > 50, "the stories make calls of renting");
    all_hold(&failures, worlds.len());
}

/// Worlds in which a bug should show, likely ones first.
fn worlds_for(mutant: Mutant) -> Vec<Options> {
    let with = |options: Options| Options { mutant: Some(mutant), ..options };
    let story = |story| with(Options::new(11, Mood::Story(story)));
    let frozen = |call| Options { cut: Some(Cut { call, way: Way::Freeze }), ..story(Story::Outbid) };
    let likely = match mutant {
        Mutant::FailedListIsEmpty => vec![story(Story::Blackout)],
        Mutant::BlindLedger => vec![story(Story::TwoJobs)],
        Mutant::RestoreUnverified => vec![story(Story::Damaged)],
        Mutant::SkipLastReport => vec![story(Story::LastWord)],
        Mutant::SecretNotHeld => vec![story(Story::SecretDeleted)],
        Mutant::NoVersionCheck => (0..120).map(frozen).collect(),
        _ => Story::ALL.map(story).into(),
    };
    likely.into_iter().chain((0..30).map(|seed| with(Options::new(seed, Mood::Rough)))).collect()
}

#[test]
fn deliberate_bugs_are_seen() {
    let mut unseen = Vec::new();
    for mutant in Mutant::ALL {
        let worlds = worlds_for(mutant);
        let seen = worlds.iter().enumerate().find_map(|(n, options)| {
            let outcome = run(options);
            outcome.violations.first().map(|text| (n + 1, text.lines().next().unwrap_or("").to_owned()))
        });
        match seen {
            Some((n, text)) => println!("{mutant:?}: seen in world {n}: {text}"),
            None => unseen.push(mutant),
        }
    }
    assert!(unseen.is_empty(), "the checker does not see {unseen:?}");
}
