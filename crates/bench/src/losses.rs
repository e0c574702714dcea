//! From the provider's answer that shows a loss to the next rent call, both as a proxy before the market sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use tradewind_core::{Clock, SystemClock};
use tradewind_harness::{
    Stack, eventually,
    proxy::{Exchange, Match},
    sim::SimMachine,
};

use crate::audit::{self, Request};
use crate::figures::{Figures, percentile};
use crate::world::{self, ACCOUNT, SOON};

/// What must be kept, in milliseconds.
const GOAL_P99_MS: f64 = 1000.0;
/// Never reached.
const STEPS: u32 = 10_000_000;

/// One loss.
#[derive(Debug)]
struct Loss {
    /// The lost machine.
    machine: String,
    /// The list answer that first shows it was handed on completely.
    shown: Instant,
    /// The next rent call arrived.
    rented: Instant,
}

impl Loss {
    fn millis(&self) -> f64 {
        self.rented.duration_since(self.shown).as_secs_f64() * 1000.0
    }
}

/// Takes `count` machines from jobs, one after the other.
pub async fn measure(count: u32, per_job: u32, figures: &mut Figures) -> Result<()> {
    eprintln!("losses: control plane, market, operator with short intervals");
    let mut stack = Stack::start(world::options("bench-losses")).await?;
    let clock = SystemClock::default();
    let anchor = (Instant::now(), clock.now());
    let namespace = stack.namespace("bench").await?;
    let mut lost = Vec::new();
    for number in 0..count.div_ceil(per_job) {
        let name = format!("lossy-{number}");
        let left = count - number * per_job;
        if let Err(error) = one_job(&stack, &namespace, &name, left.min(per_job), &mut lost).await {
            world::tell_machines(&stack).await;
            stack.keep_directory();
            return Err(error.context(format!("after {} losses; see {}", lost.len(), stack.directory().display())));
        }
        eprintln!("losses: {} of {count}", lost.len());
    }
    let losses = find(&stack, &lost)?;
    let wall = |at: Instant| {
        let after = SignedDuration::try_from(at.duration_since(anchor.0)).unwrap_or(SignedDuration::MAX);
        anchor.1.checked_add(after).unwrap_or(Timestamp::MAX)
    };
    let requests = audit::requests(&stack, anchor.1, clock.now())?;
    tell(figures, &losses, &steps(&stack, &losses, &requests, wall)?);
    Ok(())
}

/// Runs a job and takes its machine `losses` times.
async fn one_job(stack: &Stack, namespace: &str, name: &str, losses: u32, lost: &mut Vec<String>) -> Result<()> {
    world::apply(stack, namespace, name, &world::steps(STEPS, 10, "0.1")).await?;
    world::running(stack, namespace, name, 0).await?;
    for loss in 1..=losses {
        let machine = running_machine(stack).await?;
        stack.sim.act(ACCOUNT, &machine.id, "outbid", &json!({})).await?;
        gone(stack, &machine.id).await?;
        world::calm(stack, &machine.offer).await?;
        lost.push(machine.id);
        world::running(stack, namespace, name, loss.into()).await?;
    }
    world::delete(stack, namespace, name).await
}

async fn running_machine(stack: &Stack) -> Result<SimMachine> {
    let look = || async {
        let mut machines = stack.paid_machines().await.map_err(|e| e.to_string())?;
        machines.retain(|m| m.running);
        match machines.len() {
            1 => Ok(machines.remove(0)),
            n => Err(format!("{n} machines run")),
        }
    };
    Ok(eventually("the machine", SOON, look).await?)
}

async fn gone(stack: &Stack, id: &str) -> Result<()> {
    let look = || async {
        let paid = stack.paid_machines().await.map_err(|e| e.to_string())?;
        if paid.iter().any(|m| m.id == id) { Err("still paid".to_owned()) } else { Ok(()) }
    };
    Ok(eventually(&format!("the end of machine {id}"), SOON, look).await?)
}

/// Finds each loss in what the proxy has recorded.
fn find(stack: &Stack, lost: &[String]) -> Result<Vec<Loss>> {
    let proxy = stack.provider_proxy(ACCOUNT)?;
    let lists: BTreeMap<u64, Exchange> = proxy
        .exchanges(&Match::method("GET").target("^/api/v[01]/instances/?(\\?|$)"))
        .into_iter()
        .map(|e| (e.id, e))
        .collect();
    let mut rents = proxy.exchanges(&Match::method("PUT").target("^/api/v0/asks/"));
    rents.sort_by_key(|e| e.began);
    let mut shown = BTreeMap::<String, Instant>::new();
    for recorded in proxy.recorded()? {
        let Some(list) = lists.get(&recorded.id) else { continue };
        for machine in taken_away(&recorded.response) {
            let first = shown.entry(machine).or_insert(list.ended);
            *first = list.ended.min(*first);
        }
    }
    let one = |machine: &String| {
        let shown = *shown.get(machine).with_context(|| format!("no list shows the loss of machine {machine}"))?;
        let rent = rents.iter().find(|rent| rent.began >= shown);
        let rented = rent.with_context(|| format!("no rent call follows the loss of machine {machine}"))?.began;
        Ok(Loss { machine: machine.clone(), shown, rented })
    };
    let losses: Vec<Loss> = lost.iter().map(one).collect::<Result<_>>()?;
    let in_turn = losses.windows(2).all(|pair| pair[0].rented < pair[1].shown);
    ensure!(in_turn, "two losses overlap, so rent calls cannot be told apart");
    Ok(losses)
}

/// Ids of the machines that an answer shows as stopped by the platform.
fn taken_away(response: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(response);
    let Some((_, body)) = text.split_once("\r\n\r\n") else { return Vec::new() };
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let rows = answer["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter(|row| row["intended_status"] == "stopped").map(|row| row["id"].to_string()).collect()
}

/// What happened between answer and call: milliseconds after the answer, and what.
type Steps = Vec<(f64, String)>;

fn steps(
    stack: &Stack,
    losses: &[Loss],
    requests: &[Request],
    wall: impl Fn(Instant) -> Timestamp,
) -> Result<Vec<Steps>> {
    let calls = stack.provider_proxy(ACCOUNT)?.exchanges(&Match::any());
    let one = |loss: &Loss| {
        let (from, to) = (wall(loss.shown), wall(loss.rented));
        let asked = requests.iter().filter(|r| r.at >= from && r.at <= to && !r.is_lease);
        let mut steps: Steps =
            asked.map(|r| (r.at.duration_since(from).as_secs_f64() * 1000.0, format!("API {}", r.what))).collect();
        let called = calls.iter().filter(|call| call.began > loss.shown && call.began <= loss.rented);
        steps.extend(called.map(|call| {
            let path = call.head.target.split('?').next().unwrap_or_default();
            let shape: Vec<&str> =
                path.split('/').map(|part| if part.parse::<u64>().is_ok() { "{id}" } else { part }).collect();
            let after: Duration = call.began.duration_since(loss.shown);
            (after.as_secs_f64() * 1000.0, format!("market {} {}", call.head.method, shape.join("/")))
        }));
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        steps
    };
    Ok(losses.iter().map(one).collect())
}

fn tell(figures: &mut Figures, losses: &[Loss], steps: &[Steps]) {
    let mut sorted: Vec<f64> = losses.iter().map(Loss::millis).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |percent| percentile(&sorted, percent).unwrap_or(f64::NAN);
    let kept = if at(99) <= GOAL_P99_MS { "kept" } else { "MISSED" };
    figures.row(
        format!("loss to rent call, {} losses", losses.len()),
        format!(
            "p50 {:.0} ms, p99 {:.0} ms, most {:.0} ms (goal p99 {GOAL_P99_MS:.0} ms: {kept})",
            at(50),
            at(99),
            at(100)
        ),
    );
    let requests = steps.iter().flatten().filter(|(_, what)| what.starts_with("API")).count();
    figures.row("  API requests between the two", format!("{} a loss", requests / losses.len().max(1)));
    let typical = typical(steps);
    for (median, seen, what) in &typical {
        figures.row(format!("  first {what}"), format!("after {median:.0} ms (p50 of {seen})"));
    }
    let slowest = losses.iter().zip(steps).max_by(|a, b| a.0.millis().total_cmp(&b.0.millis()));
    if let Some((loss, steps)) = slowest.filter(|_| kept == "MISSED") {
        figures.row(format!("  the slowest, machine {}", loss.machine), format!("{:.0} ms", loss.millis()));
        for (after, what) in steps {
            figures.row(format!("    {what}"), format!("after {after:.0} ms"));
        }
    }
    figures.value(
        "lossToRent",
        json!({
            "losses": losses.len(), "p50Ms": at(50), "p99Ms": at(99), "maxMs": at(100), "goalP99Ms": GOAL_P99_MS,
            "eachMs": losses.iter().map(Loss::millis).collect::<Vec<_>>(),
            "slowest": slowest.map(|(_, steps)| steps),
            "firstSteps": typical.iter().map(|(median, seen, what)| json!({ "what": what, "p50Ms": median, "seen": seen })).collect::<Vec<_>>(),
        }),
    );
}

/// For each kind of step that most losses have: the median of when it first happened.
fn typical(steps: &[Steps]) -> Vec<(f64, usize, String)> {
    let mut firsts = BTreeMap::<&str, Vec<f64>>::new();
    for steps in steps {
        let mut seen = BTreeMap::<&str, f64>::new();
        for (after, what) in steps {
            seen.entry(what).or_insert(*after);
        }
        for (what, after) in seen {
            firsts.entry(what).or_default().push(after);
        }
    }
    firsts.retain(|_, times| times.len() * 2 > steps.len());
    let mut typical: Vec<(f64, usize, String)> = firsts
        .into_iter()
        .map(|(what, mut times)| {
            times.sort_by(f64::total_cmp);
            (percentile(&times, 50).unwrap_or(f64::NAN), times.len(), what.to_owned())
        })
        .collect();
    typical.sort_by(|a, b| a.0.total_cmp(&b.0));
    typical
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_who_was_taken_away() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"instances\":[\
            {\"id\":7,\"intended_status\":\"stopped\"},{\"id\":8,\"intended_status\":\"running\"}]}";
        assert_eq!(taken_away(answer), ["7"]);
        assert!(taken_away(b"HTTP/1.1 502 Bad Gateway\r\n\r\nnothing").is_empty());
    }

    #[test]
    fn a_step_that_few_losses_have_is_not_typical() {
        let often = |after| (after, "API update a".to_owned());
        let steps = [vec![often(3.0), (5.0, "API get b".to_owned())], vec![often(1.0), often(9.0)], vec![often(2.0)]];
        assert_eq!(typical(&steps), [(2.0, 3, "API update a".to_owned())]);
    }
}
