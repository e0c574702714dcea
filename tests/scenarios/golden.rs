//! What `kubectl describe` tells of a job at an interesting moment, compared word for word with `goldens/<name>.txt`.
//!
//! Numbers that depend on when one looks are replaced by `N`, names that differ each time by a word in angle brackets.
//! `TRADEWIND_BLESS=1` writes the files anew; then read them as the user would who has nothing else.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use regex::Regex;
use tradewind_api::{Provider, TrainingJob};
use tradewind_harness::project_root;

use crate::job::Job;
use crate::world::{SOON, VAST, World};

/// For what changes on the way to the moment: statuses of a second ago, events that are being written.
const SETTLED: Duration = Duration::from_secs(3);

/// Compares what is told of a job. Waits for it: conditions and events come one after the other.
pub async fn golden(world: &World, name: &str, job: &Job) -> Result<()> {
    same(world, name, async || {
        let now = job.now(world).await?;
        let events = world.stack.events(&job.namespace).await?;
        Ok(plain(&of_job(&now, &about(events, &job.name)), &job.namespace))
    })
    .await
}

/// Compares what is told of the account.
pub async fn golden_provider(world: &World, name: &str) -> Result<()> {
    same(world, name, async || {
        let provider = Api::<Provider>::all(world.stack.client()).get(VAST).await?;
        let mut text = String::from("Conditions:\n");
        conditions(&mut text, &provider.status.map(|s| s.conditions).unwrap_or_default());
        Ok(plain(&text, "default"))
    })
    .await
}

#[expect(clippy::disallowed_methods, reason = "a test's knob")]
fn is_blessed() -> bool {
    std::env::var_os("TRADEWIND_BLESS").is_some()
}

/// Compares what is told with a file, as often as it takes within [`SOON`].
pub async fn same(world: &World, name: &str, told: impl AsyncFn() -> Result<String>) -> Result<()> {
    let path: PathBuf = project_root().join("tests/scenarios/goldens").join(format!("{name}.txt"));
    if is_blessed() {
        tokio::time::sleep(SETTLED).await;
        return Ok(std::fs::write(path, told().await?)?);
    }
    let wanted =
        std::fs::read_to_string(&path).with_context(|| format!("TRADEWIND_BLESS=1 makes {}", path.display()))?;
    let look = || async {
        let now = told().await.map_err(|e| e.to_string())?;
        if now == wanted { Ok(()) } else { Err(difference(&wanted, &now)) }
    };
    Ok(world.stack.eventually(&format!("the words of goldens/{name}.txt"), SOON, look).await?)
}

/// Lines that only one of them has.
fn difference(wanted: &str, now: &str) -> String {
    let only = |these: &str, those: &str, mark: &str| -> Vec<String> {
        these.lines().filter(|line| !those.lines().any(|l| l == *line)).map(|line| format!("{mark} {line}")).collect()
    };
    let lines = [only(wanted, now, "-"), only(now, wanted, "+")].concat();
    if lines.is_empty() { "the same lines in another order".to_owned() } else { format!("\n{}", lines.join("\n")) }
}

fn about(mut events: Vec<Event>, name: &str) -> Vec<Event> {
    events.retain(|e| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name));
    events
}

fn of_job(job: &TrainingJob, events: &[Event]) -> String {
    let status = job.status.clone().unwrap_or_default();
    let mut text = format!("Phase:    {:?}\nMessage:  {}\n", status.phase, status.message);
    if let Some(placement) = &status.placement {
        let _ = writeln!(text, "Where:    {}", placement.summary);
    }
    let saved = status.checkpoint.as_ref().map_or_else(|| "nothing".to_owned(), |c| format!("step {}", c.step));
    let _ = writeln!(text, "Saved:    {saved}\nCost:     {}", status.cost.summary);
    let _ = writeln!(
        text,
        "Counted:  {} preemptions, {} restarts, {} stalls\nConditions:",
        status.preemptions, status.restarts, status.stalls
    );
    conditions(&mut text, &status.conditions);
    if !status.history.is_empty() {
        text.push_str("History:\n");
    }
    for record in &status.history {
        let _ = writeln!(text, "  attempt {}, {}: {}: {}", record.attempt, record.place, record.ended, record.message);
    }
    text.push_str("Events:\n");
    for event in events {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let _ = writeln!(text, "  {:8}{:20} {}", part(&event.type_), part(&event.reason), part(&event.note));
    }
    text
}

fn conditions(text: &mut String, conditions: &[Condition]) {
    // They stand in the order in which they first came up, which is not always the same.
    let mut conditions: Vec<&Condition> = conditions.iter().collect();
    conditions.sort_by_key(|c| &c.type_);
    for c in conditions {
        let _ = writeln!(text, "  {:12} {:6} {:18} {}", c.type_, c.status, c.reason, c.message);
    }
}

/// Without what differs each time, and each sentence once.
fn plain(text: &str, namespace: &str) -> String {
    let text = without_chance(text, namespace);
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

/// Without what differs each time.
pub fn without_chance(text: &str, namespace: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
        [
            (r"-[0-9a-f]{10}-(\d+)\b", "-<uid>-$1"),
            (r"\btw-[0-9a-z-]+", "<order>"),
            (r"\btradewind-[0-9a-f]{8}\b", "<node>"),
            (r"\b[0-9a-f]{16}\b", "<id>"),
            (r"\b\d{4}-\d\d-\d\dT[0-9:.]+Z", "<time>"),
            (r"\b\d\d:\d\d:\d\d\b", "<time>"),
            (r"\b[12]\d{7}\b", "<machine>"),
            (r"\b10\d\d\b", "<offer>"),
            (r"\$\d+(\.\d+)?", "$$N"),
            (r"\b\d+\.\d+\b", "N"),
            (r"\bstep \d+(/\d+)?", "step N"),
            (r"\bloss [0-9.]+", "loss N"),
            (r"\bcheckpoint \d+", "checkpoint N"),
            (r"\bPod (\S+?)-\d+-\d+ on node [^:]+:", "Pod $1 on node N:"),
            // Which of several nodes alike is the scheduler's dice. One may be called as the namespace is.
            (r"\bon nodes ([a-z0-9-]+\d|<namespace>)(, ([a-z0-9-]+\d|<namespace>))*", "on nodes <nodes>"),
            (r"\(compute [^)]*\), done in [^;]*", "(<parts>), done in <time>"),
            (r"\b\d+ (of \d+ )?(s|min|h|steps|KB|MB|kB)\b", "N $2"),
        ]
        .into_iter()
        .map(|(pattern, to)| (Regex::new(pattern).expect("a regular expression"), to))
        .collect()
    });
    let mut text = text.replace(namespace, "<namespace>");
    for (pattern, to) in RULES.iter() {
        text = pattern.replace_all(&text, *to).into_owned();
    }
    text
}
