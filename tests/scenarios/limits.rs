//! Limits of an account: two jobs at the last dollar and at the last machine, and a limit lowered below what runs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_core::Money;

use crate::checks::newest_bytes;
use crate::job::Job;
use crate::world::{SOON, VAST, World, market, options_of, scenario, scenario_in};

const MINUTE: Duration = Duration::from_mins(1);

/// The hourly limit of the account; gives back the one before.
async fn per_hour(world: &World, dollars: &str) -> Result<String> {
    let provider = world.stack.kubectl().get_json(["twp", VAST]).await?;
    let before = provider["spec"]["limits"]["perHour"].as_str().context("a limit")?.to_owned();
    let patch = json!({ "spec": { "limits": { "perHour": dollars } } }).to_string();
    world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await?;
    Ok(before)
}

/// What the machine of a job may cost an hour.
async fn hourly(world: &World, job: &str) -> Result<Money> {
    let machine = world.stack.machines_of(job).await?.pop().context("a machine")?;
    Ok(machine.spec.offers.first().context("an offer")?.reserve_per_hour)
}

/// Waits for the end of both, and fails if ever more than one machine is paid.
async fn one_after_the_other(world: &World, jobs: &[Job]) -> Result<()> {
    let look = || async {
        let machines = world.machines().await.map_err(|e| e.to_string())?;
        let paid = machines.iter().filter(|m| m.paid).count();
        let mut over = 0;
        for job in jobs {
            let status = job.now(world).await.map_err(|e| e.to_string())?.status;
            over += usize::from(status.is_some_and(|s| s.phase == JobPhase::Complete));
        }
        match (paid, over) {
            (2.., _) => Ok(Err(format!("{paid} machines at once: {machines:#?}"))),
            (_, over) if over == jobs.len() => Ok(Ok(())),
            _ => Err(format!("{over} are complete")),
        }
    };
    let outcome: Result<(), String> = world.stack.eventually("the end of all jobs", MINUTE * 2, look).await?;
    outcome.map_err(anyhow::Error::msg)?;
    for job in jobs {
        ensure!(newest_bytes(world, &job.location).await? == job.undisturbed()?, "other weights of {}", job.name);
    }
    Ok(())
}

async fn two(world: &World, namespace: &str, steps: u64) -> Result<Vec<Job>> {
    let jobs: Vec<Job> = ["one", "two"].map(|name| Job::new(namespace, name, steps, 10, "0.1")).into();
    let all: Vec<Value> = jobs.iter().map(|job| job.manifest.clone()).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": all });
    world.stack.apply(&list.to_string()).await?;
    Ok(jobs)
}

#[test]
fn two_jobs_at_the_last_dollar_and_at_the_last_machine_run_one_after_the_other() {
    scenario(async |world| {
        let namespace = world.namespace("race").await?;
        let first = Job::new(&namespace, "first", 10, 5, "0.05");
        first.apply(world).await?;
        first.phase(world, JobPhase::Running, SOON).await?;
        let price = hourly(world, "first").await?;
        first.phase(world, JobPhase::Complete, MINUTE).await?;
        world.all_gone().await?;
        // Room for one machine and a half.
        let before = per_hour(world, &(price + price.ratio(1, 2)).to_string()).await?;
        one_after_the_other(world, &two(world, &namespace, 20).await?).await?;
        per_hour(world, &before).await?;
        // One machine on the market.
        for offer in ["1002", "1003", "1004", "1005", "1006"] {
            world.stack.sim.patch_offer(VAST, offer, &json!({ "stock": 0 })).await?;
        }
        let other = world.namespace("last").await?;
        one_after_the_other(world, &two(world, &other, 20).await?).await
    });
}

#[test]
fn a_limit_lowered_below_what_runs_stops_the_newest_with_a_checkpoint() {
    scenario(async |world| {
        let namespace = world.namespace("lowered").await?;
        let old = Job::new(&namespace, "old", 150, 10, "0.1");
        old.apply(world).await?;
        old.saved(world, 10, SOON).await?;
        let price = hourly(world, "old").await?;
        let new = Job::new(&namespace, "new", 100, 10, "0.1");
        new.apply(world).await?;
        new.saved(world, 10, SOON).await?;
        let before = per_hour(world, &(price + price.ratio(1, 2)).to_string()).await?;
        let look = || async {
            let machines = world.machines().await.map_err(|e| e.to_string())?;
            let paid = machines.iter().filter(|m| m.paid).count();
            if paid == 1 { Ok(()) } else { Err(format!("{paid} are paid")) }
        };
        world.stack.eventually("the end of the newer machine", SOON, look).await?;
        let refused = |job: &tradewind_api::TrainingJob| {
            let message = job.status.as_ref().map(|s| s.message.clone()).unwrap_or_default();
            if message.contains("leaves no room for another machine now") { Ok(message) } else { Err(message) }
        };
        println!("{}", new.until(world, "a word about the limit", SOON, refused).await?);
        let status = new.now(world).await?.status.context("a status")?;
        let record = status.history.first().context("a record")?;
        println!("{}", record.message);
        ensure!(record.ended == "LimitReached", "{record:?}");
        ensure!(record.message.contains("may cost $") && record.message.contains("when there is room"), "{record:?}");
        ensure!(status.preemptions == 0 && status.restarts == 0, "{status:?}");
        ensure!(status.checkpoint.as_ref().map(|c| c.step) >= record.last_step, "work was lost: {status:?}");
        ensure!(old.now(world).await?.status.is_some_and(|s| s.attempt == Some(0)), "the older one was stopped");
        per_hour(world, &before).await?;
        for job in [&old, &new] {
            job.phase(world, JobPhase::Complete, MINUTE).await?;
            ensure!(newest_bytes(world, &job.location).await? == job.undisturbed()?, "other weights");
        }
        ensure!(world.machines().await?.len() == 3, "{:#?}", world.machines().await?);
        Ok(())
    });
}

#[test]
fn a_days_money_used_up_sends_the_job_to_another_account() {
    let mut two = market();
    let mut second = two["providers"][VAST].clone();
    second["apiKey"] = json!("the-key-of-the-second-account");
    for (n, offer) in second["offers"].as_array_mut().expect("offers").iter_mut().enumerate() {
        // Dearer than all of the first one's.
        (offer["id"], offer["dph_base"], offer["min_bid"]) = (json!(2001 + n), json!(0.9), json!(0.8));
    }
    two["providers"]["second"] = second;
    scenario_in(options_of("two-accounts", two), async |world| {
        let namespace = world.namespace("days").await?;
        let patch = json!({ "spec": { "limits": { "perDay": "0.01" } } }).to_string();
        world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await?;
        let job = Job::new(&namespace, "run", 10, 5, "0.05");
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        let placement = done.status.and_then(|s| s.placement).context("a placement")?;
        ensure!(placement.provider.as_deref() == Some("second"), "{placement:?}");
        let only = Job::new(&namespace, "only", 10, 5, "0.05").with(json!({ "placement": { "providers": [VAST] } }));
        only.apply(world).await?;
        let message = only.condition(world, "Placed", "False", "LimitReached", SOON).await?;
        ensure!(message.contains("limits.perDay of Provider vast is $0.01"), "{message}");
        only.delete(world).await?;
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        Ok(())
    });
}
