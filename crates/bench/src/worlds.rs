//! What the world simulation has printed: the Makefile runs it first and keeps its words in `worlds.log`.

use std::path::Path;

use anyhow::Result;
use regex::Regex;
use serde_json::json;

use crate::figures::Figures;

/// Figures of the simulation; `None` where its words are not there.
#[derive(Debug, PartialEq)]
struct Worlds {
    /// Worlds under a seed, and how many a second.
    rough: Option<(u64, f64)>,
    /// Crash points that were tried, and that there are.
    crash_points: Option<(u64, u64)>,
    /// All of its tests passed.
    passed: bool,
}

/// Reads them.
pub fn read(directory: &Path, figures: &mut Figures) -> Result<()> {
    let text = std::fs::read_to_string(directory.join("worlds.log")).unwrap_or_default();
    let worlds = parse(&text)?;
    let missing = || "not run here yet".to_owned();
    let verdict = if worlds.passed { "" } else { "; SOME BREAK A PROMISE" };
    figures.row(
        "simulated worlds",
        worlds.rough.map_or_else(missing, |(count, rate)| format!("{rate:.1} a second ({count} worlds{verdict})")),
    );
    figures.row(
        "crash points covered",
        worlds.crash_points.map_or_else(missing, |(covered, known)| format!("{covered} of {known} known")),
    );
    figures.value(
        "worlds",
        json!({
            "count": worlds.rough.map(|r| r.0), "perSecond": worlds.rough.map(|r| r.1),
            "crashPointsCovered": worlds.crash_points.map(|c| c.0), "crashPointsKnown": worlds.crash_points.map(|c| c.1),
            "passed": worlds.passed,
        }),
    );
    Ok(())
}

fn parse(text: &str) -> Result<Worlds> {
    let rough = Regex::new(r"(\d+) rough worlds in [0-9.]+ s: ([0-9.]+) a second")?;
    let points = Regex::new(r"crash points covered/known: (\d+)/(\d+)")?;
    let rough = rough.captures(text).map(|found| Ok::<_, anyhow::Error>((found[1].parse()?, found[2].parse()?)));
    let points = points.captures(text).map(|found| Ok::<_, anyhow::Error>((found[1].parse()?, found[2].parse()?)));
    let passed = text.contains("test result: ok.") && !text.contains("test result: FAILED");
    Ok(Worlds { rough: rough.transpose()?, crash_points: points.transpose()?, passed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_simulation_are_read() {
        let text = "150 rough worlds in 12.5 s: 12.0 a second\nrun: 3 calls\n\
                    crash points covered/known: 40/45; 99 worlds in 3.0 s\ntest result: ok. 2 passed";
        let found = parse(text).unwrap();
        assert_eq!(found, Worlds { rough: Some((150, 12.0)), crash_points: Some((40, 45)), passed: true });
        assert_eq!(parse("").unwrap(), Worlds { rough: None, crash_points: None, passed: false });
    }
}
