//! The screen of `status`. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use tradewind_api::training_job::JobPhase;
use tradewind_core::Money;

use super::view::{Checkpoint, MoneyView, Progress, StatusView, Workers};
use crate::screen::{Ink, Shade};
use crate::table::{Cell, Table};
use crate::text::{NONE, ago, bytes, count, dollars, span, until};

/// Events that are shown; `-o json` has more.
const EVENTS: usize = 8;
/// Pods of a gang that are told one by one.
const PODS: usize = 8;
/// Width of the first column.
const LABEL: usize = 12;

/// The whole screen.
pub fn render(view: &StatusView, now: Timestamp, ink: Ink) -> String {
    let mut text = head(view, now, ink);
    let mut part = |label: &str, lines: Vec<String>| {
        for (n, line) in lines.iter().enumerate() {
            let label = if n == 0 { label } else { "" };
            let _ = writeln!(text, "{}{line}", ink.paint(&format!("{label:LABEL$}"), Shade::Strong));
        }
    };
    part("Where", place(view));
    part("Workers", workers(&view.workers, view.phase));
    part("Progress", view.progress.as_ref().map(|p| vec![progress(p, now)]).unwrap_or_default());
    part("Checkpoint", view.checkpoint.as_ref().map(|c| checkpoint(c, now)).unwrap_or_default());
    part("Money", money(&view.money));
    part("Deadline", view.deadlines.iter().map(|d| format!("{}: {}", until(now, d.at), d.what)).collect());
    part("Counted", counted(view));
    history(&mut text, view, now, ink);
    conditions(&mut text, view, now, ink);
    events(&mut text, view, now, ink);
    if let Some(next) = &view.next {
        let _ = writeln!(text, "\n{}{next}", ink.paint(&format!("{:LABEL$}", "Next"), Shade::Strong));
    }
    text
}

/// How a phase is meant.
pub fn shade(phase: JobPhase) -> Shade {
    match phase {
        JobPhase::Running | JobPhase::Complete => Shade::Good,
        JobPhase::Failed => Shade::Bad,
        _ => Shade::Waiting,
    }
}

fn head(view: &StatusView, now: Timestamp, ink: Ink) -> String {
    let mut about = vec![format!("namespace {}", view.namespace)];
    about.extend(view.attempt.map(|attempt| format!("attempt {attempt}")));
    about.extend(view.created_at.map(|at| format!("made {} ago", ago(now, at))));
    about.extend(view.started_at.map(|at| {
        let end = view.finished_at.unwrap_or(now);
        format!("{} since its first start", span(end.duration_since(at).as_secs()))
    }));
    about.extend(view.finished_at.map(|at| format!("over for {}", ago(now, at))));
    let phase = ink.paint(&format!("{:?}", view.phase), shade(view.phase));
    let mut text = format!("{}  {phase}  ({})\n", ink.paint(&view.name, Shade::Strong), about.join(", "));
    if !view.message.is_empty() {
        let _ = writeln!(text, "{}", view.message);
    }
    if view.outdated {
        text.push_str(
            "The operator has not looked at the newest spec yet (kubectl tradewind doctor says whether it runs).\n",
        );
    }
    text.push('\n');
    text
}

fn place(view: &StatusView) -> Vec<String> {
    let Some(place) = &view.placement else { return vec!["nowhere now".to_owned()] };
    let mut parts = vec![place.summary.clone()];
    parts.extend(place.gpu.clone());
    parts.extend(place.price_per_hour.map(|price| format!("{}/h", dollars(price))));
    parts.extend(place.trust.as_ref().map(|trust| format!("trust {trust}")));
    parts.extend(place.machine.as_ref().map(|machine| format!("machine {machine}")));
    let mut lines = vec![parts.join(", ")];
    // In the cluster the sentence at the top says it already.
    let why = place.why.as_ref().filter(|why| !view.message.starts_with(why.as_str()));
    lines.extend(why.map(|why| format!("why: {why}")));
    lines
}

fn workers(workers: &Workers, phase: JobPhase) -> Vec<String> {
    if phase.is_terminal() || workers.total == 0 {
        return Vec::new();
    }
    let mut lines = vec![format!("{}/{} run", workers.ready, workers.total)];
    if workers.total > 1 {
        // Below stand Pods, which run before their programs do.
        lines = vec![format!("{}/{} programs run", workers.ready, workers.total)];
        // Those that do not run are the interesting ones.
        let mut pods: Vec<_> = workers.pods.iter().collect();
        pods.sort_by_key(|pod| (pod.state == "Running", pod.rank));
        for pod in pods.iter().take(PODS) {
            let place = match (&pod.node, pod.state.as_str()) {
                (Some(node), state) => format!("{state} on {node}"),
                (None, "Pending") => "waits for a node".to_owned(),
                (None, state) => state.to_owned(),
            };
            lines.push(format!("rank {}: {} {place}", pod.rank, pod.name));
        }
        if pods.len() > PODS {
            lines.push(format!("and {} more", pods.len() - PODS));
        }
    }
    lines
}

fn progress(progress: &Progress, now: Timestamp) -> String {
    let mut parts = vec![match progress.total.filter(|total| *total > 0) {
        Some(total) => format!("step {}/{total} ({} %)", progress.step, progress.step.saturating_mul(100) / total),
        None => format!("step {}", progress.step),
    }];
    parts.extend(progress.loss.as_ref().map(|loss| format!("loss {loss}")));
    parts.extend(progress.steps_per_hour.map(rate));
    parts.extend(progress.seconds_left.map(|seconds| format!("about {} left", span(seconds))));
    parts.extend(progress.at.map(|at| format!("told {} ago", ago(now, at))));
    parts.join(", ")
}

fn rate(per_hour: i64) -> String {
    match per_hour {
        n if n >= 7_200 => format!("{}.{} steps/s", n / 3_600, n % 3_600 * 10 / 3_600),
        n if n >= 120 => format!("{} steps/min", n / 60),
        n => format!("{n} steps/h"),
    }
}

fn checkpoint(checkpoint: &Checkpoint, now: Timestamp) -> Vec<String> {
    let plan = format!(
        "every {}, {} kept, in {}",
        span(i64::try_from(checkpoint.interval_seconds).unwrap_or(i64::MAX)),
        checkpoint.keep,
        checkpoint.to
    );
    let Some(step) = checkpoint.step else { return vec!["none yet".to_owned(), plan] };
    let mut parts = vec![format!("step {step}")];
    parts.extend(checkpoint.at.map(|at| format!("{} ago", ago(now, at))));
    parts.extend(checkpoint.bytes.map(bytes));
    parts.extend(checkpoint.took_seconds.map(|seconds| format!("took {}", span(seconds))));
    parts.extend(checkpoint.attempt.map(|attempt| format!("by attempt {attempt}")));
    vec![parts.join(", "), plan]
}

fn money(money: &MoneyView) -> Vec<String> {
    let mut line = format!("{} so far", dollars(money.total));
    if money.settled > Money::ZERO && money.running > Money::ZERO {
        let _ = write!(line, " ({} final, {} running)", dollars(money.settled), dollars(money.running));
    }
    let _ = write!(line, ", {}/h now", dollars(money.per_hour));
    let mut lines = vec![line];
    let mut budget = Vec::new();
    if let (Some(total), Some(left)) = (money.budget_total, money.left) {
        let lasts = money.lasts_seconds.map_or(String::new(), |s| format!(", {} at this price", span(s)));
        budget.push(format!("budget {}: {} left{lasts}", dollars(total), dollars(left)));
    }
    budget.extend(money.budget_per_hour.map(|hour| format!("at most {}/h", dollars(hour))));
    if budget.is_empty() && money.may_rent {
        budget.push("no budget of its own; the limits of the Providers hold".to_owned());
    }
    if !budget.is_empty() {
        lines.push(budget.join("; "));
    }
    lines.extend(money.limited.as_ref().map(|limited| format!("limited: {limited}")));
    lines
}

fn counted(view: &StatusView) -> Vec<String> {
    let mut parts = Vec::new();
    for (n, word) in [(view.preemptions, "preemption"), (view.restarts, "restart"), (view.stalls, "stall")] {
        if n > 0 {
            parts.push(count(n, word));
        }
    }
    if view.lost_work_seconds > 0 {
        parts.push(format!("{} of work done again", span(view.lost_work_seconds)));
    }
    if parts.is_empty() { Vec::new() } else { vec![parts.join(", ")] }
}

fn history(text: &mut String, view: &StatusView, now: Timestamp, ink: Ink) {
    if view.history.is_empty() {
        return;
    }
    let mut table = Table::new(&["ATTEMPT", "WHERE", "ENDED", "FROM", "LAST", "WHEN", "HOW"]);
    let step = |step: Option<i64>, none: &str| step.map_or_else(|| none.to_owned(), |step| step.to_string());
    for record in &view.history {
        let good = record.ended == "Finished";
        table.row([
            record.attempt.to_string().into(),
            record.place.clone().into(),
            Cell::shaded(record.ended.clone(), if good { Shade::Good } else { Shade::Waiting }),
            step(record.from_step, "zero").into(),
            step(record.last_step, NONE).into(),
            record.at.as_ref().map_or_else(|| NONE.to_owned(), |at| format!("{} ago", ago(now, at.0))).into(),
            record.message.clone().into(),
        ]);
    }
    let _ = write!(text, "\n{}\n{}", ink.paint("History", Shade::Strong), table.text(ink));
}

fn conditions(text: &mut String, view: &StatusView, now: Timestamp, ink: Ink) {
    if view.conditions.is_empty() {
        return;
    }
    let mut table = Table::new(&["CONDITION", "REASON", "SINCE", "MESSAGE"]);
    for trouble in &view.conditions {
        let bad = trouble.conditions.iter().any(|c| c == "Failed=True" || c == "Stalled=True");
        table.row([
            Cell::shaded(trouble.conditions.join(","), if bad { Shade::Bad } else { Shade::Waiting }),
            trouble.reason.clone().into(),
            ago(now, trouble.since).into(),
            trouble.message.clone().into(),
        ]);
    }
    let _ = write!(text, "\n{}\n{}", ink.paint("Not as it should be", Shade::Strong), table.text(ink));
}

fn events(text: &mut String, view: &StatusView, now: Timestamp, ink: Ink) {
    if view.events.is_empty() {
        return;
    }
    let mut table = Table::new(&["AGE", "TYPE", "REASON", "MESSAGE"]);
    for event in view.events.iter().take(EVENTS) {
        let warning = event.type_ == "Warning";
        table.row([
            event.at.map_or_else(|| NONE.to_owned(), |at| ago(now, at)).into(),
            Cell::shaded(event.type_.clone(), if warning { Shade::Waiting } else { Shade::Plain }),
            event.reason.clone().into(),
            event.message.clone().into(),
        ]);
    }
    let more = view.events.len().saturating_sub(EVENTS);
    let title =
        if more > 0 { format!("Events (newest {EVENTS} of {})", view.events.len()) } else { "Events".to_owned() };
    let _ = write!(text, "\n{}\n{}", ink.paint(&title, Shade::Strong), table.text(ink));
}
