//! What a job costs the API server, at the intervals that a real cluster has.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tradewind_api::training_job::JobPhase;
use tradewind_core::{Clock, SystemClock};
use tradewind_harness::Stack;

use crate::audit::{self, Request};
use crate::figures::Figures;
use crate::world;

/// The measured job: 60 s of work with a save every 10 s.
const STEPS: u32 = 60;
const SAVE_EVERY: u32 = 10;
/// From the first sight of the running program until all that its start has set off is written.
const SETTLE: Duration = Duration::from_secs(15);

/// Runs one job to its end and watches one of which there is no news.
pub async fn measure(idle: u64, figures: &mut Figures) -> Result<()> {
    eprintln!("requests: control plane, market, operator with its usual intervals");
    let stack = Stack::start(world::options("bench-requests").production_intervals()).await?;
    let namespace = stack.namespace("bench").await?;
    one_job(&stack, &namespace, figures).await?;
    quiet_job(&stack, &namespace, idle, figures).await
}

async fn one_job(stack: &Stack, namespace: &str, figures: &mut Figures) -> Result<()> {
    let clock = SystemClock::default();
    eprintln!("requests: one job of {STEPS} s");
    let from = clock.now();
    world::apply(stack, namespace, "whole", &world::steps(STEPS, SAVE_EVERY, "1")).await?;
    stack.wait_phase(namespace, "whole", JobPhase::Complete, Duration::from_mins(5)).await?;
    let complete = clock.now();
    stack.wait_all_gone(Duration::from_mins(2)).await?;
    let gone = clock.now();
    let until_complete = audit::requests(stack, from, complete)?;
    let afterwards = audit::requests(stack, complete, gone)?;
    let (all, writes) = count(&until_complete);
    let (all_after, writes_after) = count(&afterwards);
    let seconds = complete.duration_since(from).as_secs();
    figures.row("API requests of a job until Complete", format!("{all}, of these {writes} writes ({seconds} s)"));
    figures.row("  each", audit::told(&audit::counted(&until_complete)));
    figures.row("API requests from then until all is gone", format!("{all_after}, of these {writes_after} writes"));
    figures.row("  each", audit::told(&audit::counted(&afterwards)));
    figures.value(
        "job",
        json!({
            "seconds": seconds, "requests": all, "writes": writes, "each": audit::counted(&until_complete),
            "requestsAfterwards": all_after, "writesAfterwards": writes_after, "eachAfterwards": audit::counted(&afterwards),
        }),
    );
    Ok(())
}

/// Requests and writes, Leases aside.
fn count(requests: &[Request]) -> (usize, usize) {
    let besides_leases = || requests.iter().filter(|r| !r.is_lease);
    (besides_leases().count(), besides_leases().filter(|r| r.is_write).count())
}

async fn quiet_job(stack: &Stack, namespace: &str, idle: u64, figures: &mut Figures) -> Result<()> {
    let clock = SystemClock::default();
    world::apply(stack, namespace, "quiet", "echo quiet; sleep 100000").await?;
    world::running(stack, namespace, "quiet", 0).await?;
    eprintln!("requests: {idle} s of a job without news");
    tokio::time::sleep(SETTLE).await;
    let from = clock.now();
    tokio::time::sleep(Duration::from_secs(idle)).await;
    let to = clock.now();
    let memory = resident_kib(stack.operator.process.pid())?;
    let seen = audit::requests(stack, from, to)?;
    let leases = seen.iter().filter(|r| r.is_lease && r.is_write).count();
    let writes: Vec<Request> = seen.iter().filter(|r| r.is_write).cloned().collect();
    let (_, others) = count(&writes);
    let per_minute =
        |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX)) * 60.0 / to.duration_since(from).as_secs_f64();
    let each = audit::counted(&writes);
    figures.row("writes a minute of a job without news", format!("{:.1} ({})", per_minute(others), audit::told(&each)));
    figures.row("  and of Leases", format!("{:.1}", per_minute(leases)));
    figures.row("memory of the operator with one job", format!("{:.1} MB", f64::from(memory) * 1024.0 / 1e6));
    figures.value(
        "quiet",
        json!({
            "seconds": to.duration_since(from).as_secs_f64(), "writes": others, "each": each, "leaseWrites": leases,
            "operatorResidentKiB": memory,
        }),
    );
    world::delete(stack, namespace, "quiet").await
}

/// `VmRSS` of a process.
fn resident_kib(pid: u32) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("looking at the operator")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the operator has no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
