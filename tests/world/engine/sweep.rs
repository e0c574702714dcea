//! The crash sweep: a reference world is run once to learn its calls, then again for calls and ways to go wrong.

use std::collections::BTreeMap;

use tradewind_core::gate::{Point, Verdict};

use super::plan::{Cut, Mood, Options, Story};
use super::{Outcome, report, run};

/// Every way in which one call can go wrong.
pub const WAYS: [Verdict; 5] = [
    Verdict::CrashBefore,
    Verdict::CrashAfterEffect,
    Verdict::CrashAfterAnswer,
    Verdict::LostAnswer,
    Verdict::FailBefore,
];

/// Kinds of calls by port, verb and what they are about, with the numbers of the calls of each kind.
pub type Kinds = BTreeMap<String, Vec<u64>>;

/// What a sweep came to.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// Worlds run.
    pub worlds: usize,
    /// Kinds of crash points that exist: kinds of calls times ways.
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

/// The kinds of calls of a story, and how many calls there are.
pub fn kinds(story: Story, seed: u64) -> Result<(Kinds, u64), String> {
    let options = Options { record: true, ..Options::new(seed, Mood::Story(story)) };
    let outcome = run(&options);
    if !outcome.violations.is_empty() {
        return Err(report(&options, &outcome));
    }
    let mut kinds = Kinds::new();
    for (number, point) in (0_u64..).zip(&outcome.points) {
        kinds.entry(kind_of(point)).or_default().push(number);
    }
    Ok((kinds, outcome.calls))
}

/// Sweeps a story. `depth` = calls of each kind that are tried, spread evenly; `None` = all.
pub fn sweep(story: Story, seed: u64, depth: Option<usize>) -> Swept {
    let mut swept = Swept::default();
    let (kinds, calls) = match kinds(story, seed) {
        Ok(found) => found,
        Err(text) => {
            swept.failures.push(text);
            return swept;
        }
    };
    swept.calls = calls;
    swept.known = kinds.len() * WAYS.len();
    for numbers in kinds.values() {
        let picked = spread(numbers, depth.unwrap_or(numbers.len()));
        for verdict in WAYS {
            swept.covered += 1;
            for call in &picked {
                let options = Options { cut: Some(Cut { call: *call, verdict }), ..Options::new(seed, Mood::Story(story)) };
                let outcome: Outcome = run(&options);
                swept.worlds += 1;
                if !outcome.violations.is_empty() {
                    swept.failures.push(report(&options, &outcome));
                }
            }
        }
    }
    swept
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
