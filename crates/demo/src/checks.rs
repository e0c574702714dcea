//! What must be true at the end. Each check looks at the thing itself, not at what the operator says of it, where there is one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tradewind_api::{TrainingJob, training_job::JobPhase};
use tradewind_core::Money;
use tradewind_harness::{Stack, sim::SimMachine};

use crate::{
    gang::Gang,
    logs::Logs,
    outbid::{Misfortune, Plan, step_of},
    show::{GANG, MAIN, REFERENCE, location},
    story::Facts,
    weights::{self, Committed},
};

/// One check.
pub struct Check {
    /// Whether it holds.
    pub holds: bool,
    /// What was looked at, with figures.
    pub text: String,
}

fn check(holds: bool, text: impl Into<String>) -> Check {
    Check { holds, text: text.into() }
}

/// What was seen during the show.
pub struct Evidence<'a> {
    /// What was meant to happen.
    pub plan: Plan,
    /// What happened.
    pub misfortune: Option<&'a Misfortune>,
    /// Checkpoints of the job as they were committed.
    pub committed: &'a Committed,
    /// Reports and logs.
    pub logs: &'a Logs,
    /// Machines by the provider's id.
    pub machines: &'a BTreeMap<String, Facts>,
    /// The jobs at their end.
    pub jobs: &'a [TrainingJob],
}

impl Evidence<'_> {
    fn job(&self, name: &str) -> Option<&TrainingJob> {
        self.jobs.iter().find(|job| job.metadata.name.as_deref() == Some(name))
    }
}

/// All checks.
pub async fn all(stack: &Stack, seen: &Evidence<'_>) -> Result<Vec<Check>> {
    let mut checks = vec![same_weights(stack).await, outbid_as_planned(seen), log_tells_the_restart(seen)];
    checks.push(work_lost(seen)?);
    let books = stack.sim.machines().await?.machines;
    checks.push(nothing_left(stack, &books).await?);
    for name in [MAIN, REFERENCE] {
        checks.push(cost(seen, &books, name));
    }
    Ok(checks)
}

/// What must be true of the job with several workers.
pub async fn of_gang(stack: &Stack, seen: &Evidence<'_>, gang: &mut Gang<'_>) -> Vec<Check> {
    vec![lost_a_node(seen, gang), all_began_again(gang), same_as_undisturbed(stack, gang).await]
}

fn lost_a_node(seen: &Evidence<'_>, gang: &Gang<'_>) -> Check {
    let Some(lost) = &gang.lost else { return check(false, "gang: no node was ever lost") };
    let Some(status) = seen.job(GANG).and_then(|j| j.status.as_ref()) else {
        return check(false, "gang: the job has no status");
    };
    let ended = status.history.first().map_or("?", |record| record.ended.as_str());
    let (preemptions, restarts) = (status.preemptions, status.restarts);
    let back = lost.back_after.map_or("never".to_owned(), |time| format!("after {:.1} s", time.as_secs_f64()));
    let holds = status.phase == JobPhase::Complete
        && status.attempt == Some(1)
        && ended == "Disrupted"
        && (preemptions, restarts) == (1, 0)
        && lost.back_after.is_some();
    let workers = lost.workers.len();
    check(
        holds,
        format!(
            "gang: {} died with {workers} of the workers; attempt 0 ended as {ended}; all run again {back}; preemptions {preemptions}, failures of the program {restarts}",
            lost.node
        ),
    )
}

/// Not only the lost one, all from the same step, and from a checkpoint at least as new as the newest that counted then.
fn all_began_again(gang: &Gang<'_>) -> Check {
    let known = gang.lost.as_ref().map_or(i64::MAX, |lost| lost.checkpoint);
    let beginnings = gang.beginnings(1);
    let step = |line: &String| line.split_once("resumed from step ")?.1.trim().parse::<i64>().ok();
    let steps: Vec<Option<i64>> = beginnings.iter().map(step).collect();
    let holds = steps.iter().all(|step| *step == steps[0] && step.is_some_and(|step| step >= known));
    let lines = beginnings.iter().map(|line| format!("\"{line}\"")).collect::<Vec<_>>().join(", ");
    check(holds, format!("gang: a checkpoint of step {known} counted; in the next attempt {lines}"))
}

async fn same_as_undisturbed(stack: &Stack, gang: &mut Gang<'_>) -> Check {
    match (weights::newest(stack, &location(GANG)).await, gang.undisturbed().await) {
        (Ok(ours), Ok(whole)) => {
            let theirs = tradewind_core::hex(&Sha256::digest(&whole));
            let text = format!(
                "gang's final weights: step {}, sha256 {}…; of four processes without a cluster that nobody disturbed: {}…",
                ours.step,
                ours.digest(),
                &theirs[..12]
            );
            check(ours.bytes == whole, text)
        }
        (Err(error), _) | (_, Err(error)) => check(false, format!("gang's final weights: {error:#}")),
    }
}

async fn same_weights(stack: &Stack) -> Check {
    let (ours, reference) =
        (weights::newest(stack, &location(MAIN)).await, weights::newest(stack, &location(REFERENCE)).await);
    match (ours, reference) {
        (Ok(ours), Ok(reference)) => {
            let difference = ours.bytes.iter().zip(&reference.bytes).filter(|(a, b)| a != b).count();
            let text = format!(
                "final weights: step {}, {} bytes, sha256 {}…; undisturbed run: step {}, {} bytes, sha256 {}…; {difference} bytes differ",
                ours.step,
                ours.bytes.len(),
                ours.digest(),
                reference.step,
                reference.bytes.len(),
                reference.digest()
            );
            check(ours == reference, text)
        }
        (Err(error), _) | (_, Err(error)) => check(false, format!("final weights: {error:#}")),
    }
}

fn outbid_as_planned(seen: &Evidence<'_>) -> Check {
    let Some(misfortune) = seen.misfortune else {
        return check(false, "the machine was never outbid");
    };
    let planned = seen.plan.step();
    let status = seen.job(MAIN).and_then(|j| j.status.as_ref());
    // The job's own record: the machine's object may be gone before anybody looked at it again.
    let attempt = seen.machines.get(&misfortune.machine).map(|facts| facts.attempt);
    let record = status.and_then(|s| s.history.iter().find(|record| Some(record.attempt) == attempt));
    let ended = record.map_or("?", |record| record.ended.as_str());
    let (preemptions, restarts) = status.map_or((0, 0), |s| (s.preemptions, s.restarts));
    let upload = misfortune.upload.map_or_else(|| "no upload".to_owned(), |upload| format!("an upload ({upload})"));
    let holds = misfortune.upload.is_some() && preemptions == 1 && restarts == 0 && ended == "Preempted";
    check(
        holds,
        format!(
            "outbid at step {} (seed: {planned}) with {upload} in flight; machine {} ended as {ended}; preemptions {preemptions}, failures of the program {restarts}",
            misfortune.step, misfortune.machine
        ),
    )
}

/// The step in `resumed from step 120`.
fn resumed_from(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("resumed from step ")?.trim().parse().ok())
}

fn log_tells_the_restart(seen: &Evidence<'_>) -> Check {
    let machines = seen.logs.of(MAIN);
    let [first, second] = machines.as_slice() else {
        return check(
            false,
            format!("log of the outbid run: {} machines told something, 2 were expected", machines.len()),
        );
    };
    let (first, second) = (first.log(), second.log());
    let last = first.lines().rev().find_map(step_of).unwrap_or(0);
    let restored = seen.machines.values().find(|f| f.job == MAIN && f.attempt == 1).and_then(|f| f.restored_step);
    let from = resumed_from(&second);
    let holds = first.contains("starting from step 0")
        && !first.contains("finished")
        && from.is_some_and(|step| step > 0 && i64::try_from(step).ok() == restored)
        && seen.job(MAIN).and_then(|j| j.status.as_ref()).is_some_and(|s| s.phase == JobPhase::Complete);
    // The last lines may be gone with the machine before they were read here.
    let last_line = second.lines().last().unwrap_or_default().to_owned();
    let from = from.map_or_else(|| "no resume".to_owned(), |step| format!("\"resumed from step {step}\""));
    check(
        holds,
        format!(
            "log of the outbid run: \"starting from step 0\" … step {last}, then on the second machine {from} … \"{last_line}\""
        ),
    )
}

/// Promise 3: nothing that was fully uploaded is lost, so the work lost is what was done since the newest such save began.
fn work_lost(seen: &Evidence<'_>) -> Result<Check> {
    let Some(misfortune) = seen.misfortune else { return Ok(check(false, "work lost: nothing was lost")) };
    let manifests = seen.committed.all();
    let uploaded: BTreeSet<&str> = misfortune.uploaded.iter().map(String::as_str).collect();
    let whole: Vec<_> =
        manifests.iter().filter(|m| m.attempt == 0 && m.chunks().all(|c| uploaded.contains(c.key.as_str()))).collect();
    let named: BTreeSet<&str> = whole.iter().flat_map(|m| m.chunks().map(|c| c.key.as_str())).collect();
    let forgotten: Vec<&&str> = uploaded.difference(&named).collect();
    let newest = whole.iter().max_by_key(|m| m.step).context("no save was fully uploaded before the outbid")?;
    let second = seen.logs.of(MAIN).into_iter().find(|told| told.attempt == 1).map(crate::logs::Told::log);
    let from = second.as_deref().and_then(resumed_from).unwrap_or(0);
    let lost = misfortune.at.duration_since(newest.save_began_at).as_secs_f64();
    let same_attempt = manifests.windows(2).filter(|pair| pair[0].attempt == pair[1].attempt);
    let gaps = same_attempt.map(|pair| pair[1].save_began_at.duration_since(pair[0].save_began_at).as_secs_f64());
    let interval = gaps.fold(0.0, f64::max);
    let upload = misfortune.upload.map_or(0.0, |upload| upload.seconds);
    Ok(check(
        from >= newest.step && forgotten.is_empty(),
        format!(
            "work lost: steps {} to {} ({lost:.1} s), no more than since the newest fully uploaded save began (step {}): one save interval (up to {interval:.1} s seen) and the upload under way ({upload:.1} s) with its detection; uploaded but not counted: {}",
            from + 1,
            misfortune.step,
            newest.step,
            forgotten.len()
        ),
    ))
}

async fn nothing_left(stack: &Stack, books: &[SimMachine]) -> Result<Check> {
    let paid = books.iter().filter(|m| m.paid).count();
    let running = books.iter().filter(|m| m.running || m.pid.is_some()).count();
    let objects = stack.rented_machines().await?.len();
    let text = format!(
        "machines: {} rented in all, {paid} still paid, {running} still running, {objects} RentedMachine objects left",
        books.len()
    );
    Ok(check(paid == 0 && running == 0 && objects == 0, text))
}

/// Our cost of a job against the market's bill, within one second of each machine's price.
fn cost(seen: &Evidence<'_>, books: &[SimMachine], name: &str) -> Check {
    let mine: Vec<&SimMachine> =
        books.iter().filter(|m| seen.machines.get(&m.id).is_some_and(|facts| facts.job == name)).collect();
    let bill: i64 = mine.iter().map(|m| m.cost_micros).sum();
    // A second of compute and one of disk, each rounded up by whoever counts.
    let second = |m: &&SimMachine| {
        let with_disk = seen.machines.get(&m.id).map_or(0, |facts| facts.price_per_hour.micros());
        (m.price_per_hour_micros.max(with_disk) + 3599) / 3600 + 1
    };
    let allowed: i64 = mine.iter().map(second).sum();
    let Some(status) = seen.job(name).and_then(|j| j.status.as_ref()) else {
        return check(false, format!("cost of {name}: the job has no status"));
    };
    let (settled, total) = (status.cost.settled.micros(), status.cost.total.micros());
    let off = (settled - bill).abs();
    let holds = !mine.is_empty() && off <= allowed && settled == total;
    let dollars = |micros: i64| Money::from_micros(micros).to_string();
    check(
        holds,
        format!(
            "cost of {name}: ${} by our account, ${} by the provider's bill for {} machine{}; ${} apart, one second of each is ${}",
            dollars(settled),
            dollars(bill),
            mine.len(),
            if mine.len() == 1 { "" } else { "s" },
            dollars(off),
            dollars(allowed)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restart_is_read_from_the_log() {
        assert_eq!(resumed_from("x\nresumed from step 120\nstep 125/480 loss 1.0\n"), Some(120));
        assert_eq!(resumed_from("starting from step 0\n"), None);
    }
}
