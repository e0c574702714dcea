//! `make bench`: measures on release binaries, a real API server and a simulated market, prints a table and writes JSON. What each
//! figure means is in `docs/benchmarks.md`.

mod audit;
mod figures;
mod gangs;
mod losses;
mod planner;
mod requests;
mod sizes;
mod times;
mod world;
mod worlds;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::figures::Figures;

/// Measures Tradewind; see docs/benchmarks.md.
#[derive(Parser, Debug)]
struct Settings {
    /// What is measured; everything if nothing is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Losses of a machine to measure.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    losses: u32,
    /// Losses of one job, before the next one takes over.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    losses_per_job: u32,
    /// Seconds for which a job without news is watched.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    #[command(flatten)]
    gangs: gangs::Size,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// From the answer that shows a loss to the next rent call.
    Losses,
    /// Requests to the API server, per job and while nothing happens; memory.
    Requests,
    /// Many jobs of several workers on fake nodes, beside JobSet.
    Gangs,
    /// What the world simulation has printed.
    Worlds,
    /// What planner-bench has printed: decisions of the planner over real offers, and over time.
    Planner,
    /// Sizes of the binaries.
    Sizes,
    /// How long `make test` and `make demo` took.
    Times,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(watched(&settings)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that was started goes with the future that is dropped.
async fn watched(settings: &Settings) -> Result<ExitCode> {
    tokio::select! {
        done = run(settings) => done.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
    }
}

async fn run(settings: &Settings) -> Result<()> {
    let directory = directory()?;
    let wants = |part| settings.parts.is_empty() || settings.parts.contains(&part);
    let mut figures = Figures::default();
    let before = load();
    if wants(Part::Sizes) {
        sizes::measure(&mut figures)?;
    }
    if wants(Part::Worlds) {
        worlds::read(&directory, &mut figures)?;
    }
    if wants(Part::Planner) {
        planner::read(&directory, &mut figures);
    }
    if wants(Part::Times) {
        times::read(&directory, &mut figures)?;
    }
    if wants(Part::Requests) {
        requests::measure(settings.idle, &mut figures).await?;
    }
    if wants(Part::Losses) {
        losses::measure(settings.losses, settings.losses_per_job, &mut figures).await?;
    }
    if wants(Part::Gangs) {
        gangs::measure(&settings.gangs, &mut figures).await?;
    }
    let machine = json!({ "processors": processors(), "loadBefore": before, "loadAfter": load() });
    println!("\n{}", figures.table());
    println!("processors: {}; load of this computer before and after: {before} and {}", processors(), load());
    let path = directory.join("figures.json");
    let text = serde_json::to_string_pretty(&json!({ "machine": machine, "figures": figures.values() }))?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

/// `bench` beside the directory of this binary, such as `target/bench`.
fn directory() -> Result<PathBuf> {
    let binary = std::env::current_exe().context("finding this program")?;
    let target = binary.parent().and_then(Path::parent).context("this program lies in no target directory")?;
    let directory = target.join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// Processes that ran or waited for a processor in the last minute, as the kernel counts them.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
