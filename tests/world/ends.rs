//! Each end in each phase, as a table.
//!
//! Each cell once; `WORLD_RUNS=n` takes a hundredth of n seeds for each, `WORLD_FROM=n` begins with that seed, `WORLD_END=n` runs only
//! that row, and `WORLD_CELL=n` with `WORLD_SEED` one cell with its whole trace.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::engine::table::{At, Cell, ENDS, Reached};
use crate::engine::wire::lock;
use crate::engine::{Mood, Options, report, sweep};
use crate::{all_hold, knob, stopwatch};

/// How long a machine that no object knows may live once it must be visible. The project's goal.
const LEAK_BOUND: Duration = Duration::from_mins(1);

/// The worlds of every cell: `count` seeds from `from` on.
fn worlds(from: u64, count: u64) -> Vec<Options> {
    let row = knob("WORLD_END").and_then(|row| ENDS.get(usize::try_from(row).ok()?)).map(|(end, _)| *end);
    let cells: Vec<Cell> = Cell::all().into_iter().filter(|cell| row.is_none_or(|end| cell.end == end)).collect();
    let cells = &cells;
    (from..from + count).flat_map(|seed| cells.iter().map(move |cell| Options::new(seed, Mood::Cell(*cell)))).collect()
}

/// Cells as a matrix: a row for each end, a column for each phase.
fn matrix(cells: &BTreeMap<usize, char>) -> String {
    let columns = At::all();
    let name = |at: &At| match at {
        At::Job(phase) => format!("job {phase:?}"),
        At::Machine(phase) => format!("machine {phase:?}"),
        At::InCluster(phase) => format!("cluster {phase:?}"),
    };
    let mut lines: Vec<String> =
        columns.iter().enumerate().map(|(n, at)| format!("{:18}{}| {}", "", "  ".repeat(n), name(at))).collect();
    for (row, (end, fate)) in ENDS.iter().enumerate() {
        let marks: Vec<String> = (0..columns.len())
            .map(|n| cells.get(&(row * columns.len() + n)).copied().unwrap_or('?').to_string())
            .collect();
        lines.push(format!("{:18}{} {fate:?}", format!("{end:?}"), marks.join(" ")));
    }
    lines.join("\n")
}

#[test]
fn every_end_in_every_phase() {
    let cells = Cell::all();
    let number = |cell: Cell| cells.iter().position(|known| *known == cell).expect("a cell of the table");
    if let Some(cell) = knob("WORLD_CELL") {
        let cell = cells[usize::try_from(cell).expect("a small number")];
        return crate::told_world(Options::new(knob("WORLD_SEED").unwrap_or(0), Mood::Cell(cell)));
    }
    let runs = knob("WORLD_RUNS").map_or(1, |runs| runs.div_ceil(100));
    let watch = stopwatch();
    let worlds = worlds(knob("WORLD_FROM").unwrap_or(0), runs);
    let (marks, failures) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let leaks = Mutex::new(Vec::new());
    sweep::run_each(&worlds, &|options, outcome| {
        let Mood::Cell(cell) = options.mood else { return };
        let number = number(cell);
        lock(&leaks).extend(outcome.leaks.iter().copied());
        // What any seed reaches counts; a failure counts most.
        let mark = match outcome.reached {
            _ if !outcome.violations.is_empty() => 'X',
            Reached::Never => '-',
            Reached::Nothing => 'o',
            Reached::Happened => '#',
        };
        let rank = |mark: char| "-o#X".find(mark);
        let mut marks = lock(&marks);
        let known = marks.entry(number).or_insert(mark);
        if rank(mark) > rank(*known) {
            *known = mark;
        }
        if mark == 'X' {
            lock(&failures).push(format!(
                "WORLD_CELL={number} WORLD_SEED={}: {}",
                options.seed,
                report(options, outcome)
            ));
        }
    });
    let (marks, failures, leaks) = (lock(&marks), lock(&failures), lock(&leaks));
    println!("{}", matrix(&marks));
    println!(
        "# the end happened there, o it finds nothing there to end, - the phase is never seen, X a promise is broken"
    );
    let reached = marks.values().filter(|mark| **mark != '-').count();
    let hit = marks.values().filter(|mark| matches!(**mark, '#' | 'X')).count();
    println!(
        "ends in phases reached/all: {reached}/{}, of which {hit} found something to end; {} worlds, {:.1} s",
        cells.len(),
        worlds.len(),
        watch.elapsed().as_secs_f64()
    );
    let worst = leaks.iter().max().copied().unwrap_or_default();
    println!(
        "leak bound: {:.1} s from the end of the visibility window to the end of a machine that no object knows (worst of {} machines)",
        worst.as_secs_f64(),
        leaks.len()
    );
    all_hold(&failures, worlds.len());
    assert!(worst <= LEAK_BOUND, "a machine lived on for {worst:?}");
    assert!(reached == cells.len() || knob("WORLD_END").is_some(), "every phase is reached");
}
