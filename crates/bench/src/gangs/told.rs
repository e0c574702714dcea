//! The figures of gangs as lines of the table and as JSON.

use std::fmt::Write as _;

use serde_json::json;

use super::contender::Kind;
use super::{Shown, Size, Span};
use crate::audit;
use crate::figures::{Figures, percentile};

/// Requests may be this part of JobSet's, with the job controller that makes its Pods.
const GOAL_REQUESTS: f64 = 0.5;
/// Resident memory may be this part of JobSet's.
const GOAL_MEMORY: f64 = 0.25;
/// Growth of memory, in KiB, that still counts as none: what an allocator keeps back here and there.
const FLAT_KIB: u64 = 4 * 1024;

/// Writes all of it down.
pub fn tell(size: &Size, shown: &[(Kind, Shown)], figures: &mut Figures) {
    figures.row(format!("gangs: {} jobs of {} workers", size.jobs, size.workers), String::new());
    for (kind, shown) in shown {
        one(*kind, shown, size, figures);
    }
    let of = |wanted| shown.iter().find(|(kind, _)| *kind == wanted).map(|(_, shown)| shown);
    if let (Some(ours), Some(theirs)) = (of(Kind::Tradewind), of(Kind::JobSet)) {
        compare(ours, theirs, figures);
    }
    let each = shown.iter().map(|(kind, shown)| (kind.name().to_lowercase(), json_of(shown)));
    figures.value(
        "gangs",
        json!({ "jobs": size.jobs, "workers": size.workers, "contenders": each.collect::<serde_json::Map<_, _>>() }),
    );
}

fn json_of(shown: &Shown) -> serde_json::Value {
    json!({
        "start": { "lastPodSeconds": shown.start.last_pod_s, "runningSeconds": shown.start.running_s, "cost": shown.start.span.json() },
        "idle": shown.idle.json(), "idleWithHeartbeats": shown.beating.as_ref().map(Span::json), "growth": shown.growth.json(),
        "replacedSeconds": shown.lost,
        "restart": { "readySeconds": shown.restarted.ready_s, "leadSeconds": shown.restarted.lead_s, "cost": shown.restart.json() },
    })
}

fn one(kind: Kind, shown: &Shown, size: &Size, figures: &mut Figures) {
    let mut row = |what: &str, value: String| figures.row(format!("  {}: {what}", kind.name()), value);
    let (start, cost) = (&shown.start, &shown.start.span);
    row(
        "first job to last Pod",
        format!("{:.1} s; every job says Running after {:.1} s", start.last_pod_s, start.running_s),
    );
    let per_job = |n: u64| count(n) / f64::from(size.jobs);
    let with = cost.requests + cost.job_controller;
    let mut requests =
        format!("{:.1} a job, {:.1} of these writes", per_job(cost.requests), per_job(cost.writes as u64));
    if kind == Kind::JobSet {
        let writes = (cost.writes + cost.job_controller_writes) as u64;
        // Writing into a String cannot fail.
        let _ =
            write!(requests, "; with the job controller {:.1}, {:.1} of these writes", per_job(with), per_job(writes));
    }
    row("requests until all run", requests);
    row("  each", audit::told(&cost.each));
    if kind == Kind::JobSet {
        row("  each of the job controller", audit::told(&cost.job_controller_each));
    }
    row("memory and processor until all run", format!("{} at most, {:.1} s", mb(cost.after.peak), cost.cpu_s));
    row("  meanwhile", beside(cost));
    row("idle", idle(&shown.idle));
    if let Some(beating) = &shown.beating {
        row("idle with heartbeats", idle(beating));
        row("  meanwhile", beside(beating));
    }
    let growth = &shown.growth;
    row(
        &format!("{} Pods and {} Secrets of others", size.foreign_pods, size.secrets),
        format!(
            "memory {} to {}, {:.1} s, {} requests, {} writes besides Leases",
            mb(growth.before.resident),
            mb(growth.after.resident),
            growth.cpu_s,
            growth.requests,
            growth.writes
        ),
    );
    let at = |percent| percentile(&shown.lost, percent).unwrap_or(f64::NAN);
    row(
        &format!("{} gangs lose a worker, to the last new Pod", shown.lost.len()),
        format!("p50 {:.2} s, p99 {:.2} s, most {:.2} s", at(50), at(99), at(100)),
    );
    let restart = &shown.restart;
    row(
        "restart with all jobs",
        format!(
            "ready after {:.1} s, leads after {:.1} s; {} requests, {} writes besides Leases, {} at most, {:.1} s of processor",
            shown.restarted.ready_s,
            shown.restarted.lead_s,
            restart.requests,
            restart.writes,
            mb(restart.after.peak),
            restart.cpu_s
        ),
    );
}

fn compare(ours: &Shown, theirs: &Shown, figures: &mut Figures) {
    let (us, them) = (&ours.start, &theirs.start);
    let kept = |good: bool| if good { "kept" } else { "MISSED" };
    let ratio = count(us.span.requests) / count(them.span.requests + them.span.job_controller).max(1.0);
    let alone = count(us.span.requests) / count(them.span.requests).max(1.0);
    figures.row(
        "  requests, Tradewind to JobSet",
        format!(
            "{ratio:.2} with the job controller (goal {GOAL_REQUESTS}: {}), {alone:.2} without it",
            kept(ratio <= GOAL_REQUESTS)
        ),
    );
    let memory = count(us.span.after.peak) / count(them.span.after.peak).max(1.0);
    figures.row(
        "  peak memory, Tradewind to JobSet",
        format!("{memory:.2} (goal {GOAL_MEMORY}: {})", kept(memory <= GOAL_MEMORY)),
    );
    let faster = us.last_pod_s < them.last_pod_s;
    figures.row(
        "  first job to last Pod, Tradewind to JobSet",
        format!("{:.2} (goal below 1: {})", us.last_pod_s / them.last_pod_s, kept(faster)),
    );
    figures.row("  writes of idle jobs (goal 0)", kept(ours.idle.writes == 0));
    let grown = ours.growth.after.resident.saturating_sub(ours.growth.before.resident);
    figures.row("  growth by what others do (goal flat)", format!("{}: {}", mb(grown), kept(grown <= FLAT_KIB)));
}

fn idle(span: &Span) -> String {
    format!(
        "{:.0} s: {} writes ({}) and {} of Leases, {} requests in all; {:.1}% of a processor, {} resident",
        span.seconds,
        span.writes,
        audit::told(&span.each),
        span.lease_writes,
        span.requests,
        span.cpu_s / span.seconds * 100.0,
        mb(span.after.resident)
    )
}

/// What plays the world has taken of the machine meanwhile.
fn beside(span: &Span) -> String {
    format!(
        "agents and administrator, played by this program, took {:.1} s of processor, the object store {:.1} s, in {:.0} s",
        span.bench_cpu_s, span.store_cpu_s, span.seconds
    )
}

fn mb(kib: u64) -> String {
    format!("{:.1} MB", count(kib) * 1024.0 / 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn count(n: u64) -> f64 {
    n as f64
}
