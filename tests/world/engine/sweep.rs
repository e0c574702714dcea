//! The crash sweep: a reference world is run once to learn its calls, then again for calls and ways to go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tradewind_core::gate::{Point, Verdict};

use super::plan::{Cut, Mood, Options, Story, Way};
use super::wire::{lock, reads};
use super::{Outcome, report, run};

/// Every way in which a call that changes something can go wrong.
pub const WAYS: [Way; 10] = [
    Way::Call(Verdict::CrashBefore),
    Way::Call(Verdict::CrashAfterEffect),
    Way::Call(Verdict::CrashAfterAnswer),
    Way::Call(Verdict::LostAnswer),
    Way::Call(Verdict::FailBefore),
    Way::Freeze,
    Way::Delete,
    Way::FreezeAfter,
    Way::FreezeInside,
    Way::FreezeInsideLong,
];

/// Ways in which a call can go wrong: one that only reads has no effect, so that each way has the same outcome as one of these.
pub fn ways(point: &Point) -> &'static [Way] {
    const READS: [Way; 3] = [Way::Call(Verdict::CrashBefore), Way::Call(Verdict::FailBefore), Way::Delete];
    match point.verb {
        verb if reads(verb) => &READS,
        "rent" => &WAYS,
        _ => &WAYS[..8],
    }
}

/// Kinds of calls by port, verb and what they are about, with the numbers of the calls of each kind.
pub type Kinds = BTreeMap<String, (Point, Vec<u64>)>;

/// What a sweep came to.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// Worlds run.
    pub worlds: usize,
    /// Crash points that exist: kinds of calls times ways.
    pub known: usize,
    /// Those of them that were tried.
    pub covered: usize,
    /// Calls in the reference worlds.
    pub calls: u64,
    /// What failed worlds tell.
    pub failures: Vec<String>,
}

/// What a call is about, without names and numbers that differ from world to world.
pub fn kind_of(point: &Point) -> String {
    let mut about = String::new();
    for segment in point.key.split(['/', '.']) {
        let plain = segment.len() <= 20 && segment.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        about.push('/');
        about.push_str(if plain { segment } else { "*" });
    }
    format!("{} {} {about}", point.port, point.verb)
}

/// The kinds of calls in a world, and how many calls there are.
pub fn kinds(world: &Options) -> Result<(Kinds, u64), String> {
    let options = Options { record: true, ..world.clone() };
    let outcome = run(&options);
    if !outcome.violations.is_empty() {
        return Err(report(&options, &outcome));
    }
    let mut kinds = Kinds::new();
    for (number, point) in (0_u64..).zip(&outcome.points) {
        kinds.entry(kind_of(point)).or_insert_with(|| (point.clone(), Vec::new())).1.push(number);
    }
    Ok((kinds, outcome.calls))
}

/// The worlds that are swept: all stories, then rough worlds, which make calls that no story makes.
pub fn references() -> Vec<Options> {
    let stories = Story::ALL.map(|story| Options::new(11, Mood::Story(story)));
    let rough = (0..12).map(|seed| Options::new(seed, Mood::Rough));
    let clusters = (0..4).map(|seed| Options::new(seed, Mood::Cluster));
    stories.into_iter().chain(rough).chain(clusters).collect()
}

/// Every way in which a call of a program's restart in place can go wrong: all calls around the one that makes the next attempt's Pod,
/// from the failure's report to the new program's first steps.
pub fn sweep_restart() -> Swept {
    const BEFORE: usize = 20;
    const AFTER: usize = 40;
    let world = Options::new(11, Mood::Story(Story::Fails));
    let outcome = run(&Options { record: true, ..world.clone() });
    let made = |point: &Point| point.verb == "create" && point.key.ends_with("/train-0-1");
    let Some(at) = outcome.points.iter().position(made).filter(|_| outcome.violations.is_empty()) else {
        return Swept { failures: vec![report(&world, &outcome)], ..Swept::default() };
    };
    let window = (at.saturating_sub(BEFORE)..(at + AFTER).min(outcome.points.len())).collect::<Vec<_>>();
    let cut = |&call: &usize| {
        let cut = |way: &Way| Options { cut: Some(Cut { call: call as u64, way: *way }), ..world.clone() };
        ways(&outcome.points[call]).iter().map(cut).collect::<Vec<_>>()
    };
    let cuts: Vec<Options> = window.iter().flat_map(cut).collect();
    Swept { worlds: cuts.len(), known: cuts.len(), covered: cuts.len(), calls: outcome.calls, failures: run_all(&cuts) }
}

/// How much of the reference worlds is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Each crash point once, in the first world that has it.
    Once,
    /// So many calls of each kind in every world, spread evenly.
    Calls(usize),
    /// Every call of every world.
    All,
}

/// Sweeps worlds on all cores.
pub fn sweep(worlds: &[Options], depth: Depth) -> Swept {
    let mut swept = Swept::default();
    let mut points: BTreeSet<(String, Way)> = BTreeSet::new();
    let mut cuts = Vec::new();
    for world in worlds {
        let (kinds, calls) = match kinds(world) {
            Ok(found) => found,
            Err(text) => {
                swept.failures.push(text);
                continue;
            }
        };
        swept.calls += calls;
        for (kind, (point, numbers)) in kinds {
            for way in ways(&point) {
                let is_new = points.insert((kind.clone(), *way));
                let picked = match depth {
                    Depth::Once if !is_new => Vec::new(),
                    // Not the first of many: it is mostly one from before anything was at stake.
                    Depth::Once => vec![numbers[numbers.len() / 2]],
                    Depth::Calls(count) => spread(&numbers, count),
                    Depth::All => numbers.clone(),
                };
                let cut = |call| Options { cut: Some(Cut { call, way: *way }), ..world.clone() };
                cuts.extend(picked.into_iter().map(cut));
            }
        }
    }
    swept.known = points.len();
    swept.covered = points.len();
    swept.worlds = cuts.len();
    swept.failures.extend(run_all(&cuts));
    swept
}

/// Runs worlds on all cores and gives back what the failed ones tell.
pub fn run_all(worlds: &[Options]) -> Vec<String> {
    let failures = Mutex::new(Vec::new());
    run_each(worlds, &|options, outcome| {
        if !outcome.violations.is_empty() {
            lock(&failures).push(report(options, outcome));
        }
    });
    std::mem::take(&mut *lock(&failures))
}

/// Runs worlds on all cores and tells how each went.
pub fn run_each(worlds: &[Options], tell: &(dyn Fn(&Options, &Outcome) + Sync)) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(options) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    tell(options, &run(options));
                }
            });
        }
    });
}

/// At most `count` of these, the first and the last among them.
fn spread(numbers: &[u64], count: usize) -> Vec<u64> {
    if numbers.len() <= count {
        return numbers.to_vec();
    }
    let last = numbers.len() - 1;
    let steps = count.saturating_sub(1).max(1);
    (0..count).map(|i| numbers[(i * last) / steps]).collect()
}
