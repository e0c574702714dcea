//! The world simulation: the real controllers over in-memory ports under a seed, and a checker of the promises.
//!
//! One loop lets one thing happen at a time: a watch's news, a reconcile, a machine's step, the market, users, trouble. Everything
//! follows from the seed. Tests and the benchmark share this module.

pub mod chance;
pub mod checker;
pub mod cluster;
mod ends;
mod happenings;
mod machines;
mod nodes;
pub mod operator;
pub mod plan;
pub mod ports;
pub mod program;
pub mod sweep;
pub mod table;
mod timed;
pub mod wire;
mod workers;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use plan::{Mood, Mutant, Options};
pub use world::Outcome;

/// Runs one world.
pub fn run(options: &Options) -> Outcome {
    let world = world::World::new(options);
    let common = std::sync::Arc::clone(&world.common);
    catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        Outcome { violations: vec![format!("panic: {text}")], trace: common.tail(), ..Outcome::default() }
    })
}

/// What a failed world tells.
pub fn report(options: &Options, outcome: &Outcome) -> String {
    let cut = options.cut.map(|cut| format!(", {:?} at call {}", cut.way, cut.call)).unwrap_or_default();
    format!(
        "seed {} ({:?}{cut}, mutant {:?}) after {:?}:\n  {}\ntrace:\n{}",
        options.seed,
        options.mood,
        options.mutant,
        outcome.time,
        outcome.violations.join("\n  "),
        outcome.trace.join("\n")
    )
}
