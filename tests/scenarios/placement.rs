//! The cluster first, then the market; and offers that cannot be had.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;

use crate::api::Side;
use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{OFFERS_MAX_AGE, SOON, VAST, World, scenario};

/// Would rather run in the cluster; there its Pod ends with exit code 0 after a moment.
fn homely(job: Job, burst_after: &str) -> Job {
    job.with(json!({
        "placement": { "inCluster": "Prefer", "burstAfter": burst_after },
        "template": { "metadata": { "annotations": {
            "fake.tradewind.dev/exit-code": "0", "fake.tradewind.dev/runs-for": "1s",
        } } },
    }))
}

/// Runs `test` while the cluster has a node with so many GPUs, and removes the node.
async fn with_node(world: &World, name: &str, gpus: u32, test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    world.stack.plane.add_fake_node(name, &json!({ "nvidia.com/gpu": gpus.to_string() })).await?;
    let outcome = test().await;
    world.stack.kubectl().run(["delete", "node", name]).await?;
    outcome
}

fn placement(job: &tradewind_api::TrainingJob) -> String {
    job.status.as_ref().and_then(|s| s.placement.as_ref()).map(|p| p.summary.clone()).unwrap_or_default()
}

#[test]
fn with_a_free_gpu_nothing_is_rented() {
    scenario(async |world| {
        let namespace = world.namespace("home").await?;
        with_node(world, "free", 1, async || {
            let job = homely(Job::new(&namespace, "run", 10, 5, "0.05"), "0s");
            job.apply(world).await?;
            let done = job.phase(world, JobPhase::Complete, SOON).await?;
            ensure!(placement(&done) == "cluster" && world.machines().await?.is_empty(), "{:?}", done.status);
            Ok(())
        })
        .await
    });
}

#[test]
fn without_a_free_gpu_a_machine_is_rented_after_burst_after() {
    scenario(async |world| {
        let namespace = world.namespace("full").await?;
        let full = homely(Job::new(&namespace, "blocker", 10, 5, "0.05"), "1h");
        let full = full
            .with(json!({ "template": { "metadata": { "annotations": { "fake.tradewind.dev/exit-code": null } } } }))
            // Without our agent: nothing runs on this node.
            .with(json!({ "checkpoint": null }));
        with_node(world, "full", 1, async || {
            full.apply(world).await?;
            full.phase(world, JobPhase::Running, SOON).await?;
            let job = homely(Job::new(&namespace, "run", 20, 5, "0.05"), "3s");
            job.apply(world).await?;
            let message = job.condition(world, "Placed", "False", "WaitingForCluster", SOON).await?;
            let rented = &world.rented(1).await?[0];
            let status = job.now(world).await?.status.context("a status")?;
            let since = status.unschedulable_since.context("unschedulableSince")?.0;
            let waited = rented.created_at.parse::<jiff::Timestamp>()?.duration_since(since);
            // The server tells times in whole seconds.
            ensure!((2.9..10.0).contains(&waited.as_secs_f64()), "rented after {waited:?}; it said: {message}");
            job.phase(world, JobPhase::Complete, SOON).await?;
            finished_right(world, &job).await?;
            full.delete(world).await
        })
        .await
    });
}

#[test]
fn the_scheduler_wins_the_race_and_nothing_is_spent() {
    scenario(async |world| {
        let namespace = world.namespace("race").await?;
        let job = homely(Job::new(&namespace, "run", 10, 5, "0.05"), "0s");
        let bind = world.api.hold(Side::Before, |call| call.is("POST", "/binding"));
        job.apply(world).await?;
        bind.met(SOON).await?;
        // At this very moment there is room.
        with_node(world, "sudden", 1, async || {
            let look = || async {
                let pod = world
                    .stack
                    .kubectl()
                    .get_json(["pod", "run-0", "-n", &namespace])
                    .await
                    .map_err(|e| e.to_string())?;
                let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
                if node == "sudden" { Ok(()) } else { Err(format!("bound to {node:?}")) }
            };
            world.stack.eventually("the scheduler's bind", SOON, look).await?;
            bind.release();
            let done = job.phase(world, JobPhase::Complete, SOON).await?;
            ensure!(placement(&done) == "cluster", "{:?}", done.status);
            let cost = done.status.map(|s| s.cost.total.micros());
            ensure!(world.machines().await?.is_empty() && cost == Some(0), "{cost:?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn scheduler_and_binder_race_for_many_pods() {
    scenario(async |world| {
        const JOBS: usize = 6;
        let namespace = world.namespace("race").await?;
        let job = |n: usize| homely(Job::new(&namespace, &format!("run{n}"), 10, 5, "0.05"), "1s");
        let jobs: Vec<Job> = (0..JOBS).map(job).collect();
        // All binds are under way when room appears for half of the Pods.
        let bind = world.api.hold(Side::Before, |call| call.is("POST", "/binding"));
        for job in &jobs {
            job.apply(world).await?;
        }
        let held = || std::future::ready(if bind.held() == JOBS { Ok(()) } else { Err(format!("{}", bind.held())) });
        world.stack.eventually("all binds", SOON, held).await?;
        with_node(world, "sudden", 3, async || {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
            bind.release();
            let (mut home, mut away) = (0, 0);
            for job in &jobs {
                let done = job.phase(world, JobPhase::Complete, SOON).await?;
                let cost = done.status.as_ref().map_or(-1, |s| s.cost.total.micros());
                match placement(&done).as_str() {
                    "cluster" if cost == 0 => home += 1,
                    place if place.starts_with(VAST) => away += 1,
                    place => anyhow::bail!("{place}, cost {cost}"),
                }
            }
            world.all_gone().await?;
            println!("{home} in the cluster, {away} rented");
            let machines = world.machines().await?;
            ensure!(home + away == JOBS && away >= 3 && machines.len() == away, "{home} + {away}: {machines:#?}");
            Ok(())
        })
        .await
    });
}

#[test]
fn offers_that_cannot_be_had_are_passed_over_and_remembered() {
    scenario(async |world| {
        let namespace = world.namespace("offers").await?;
        let job = Job::new(&namespace, "run", 20, 5, "0.05");
        // The cheapest is gone by the time it is ordered, the next one refuses, the third is slow.
        let order =
            world.api.hold(Side::After, |call| call.is("PUT", "/rentedmachines/") && has_open_order(&call.body));
        job.apply(world).await?;
        let machine = order.met(SOON).await?.body;
        let cheapest = machine["spec"]["offers"][0]["id"].as_str().context("an offer")?.to_owned();
        world.stack.sim.patch_offer(VAST, &cheapest, &json!({ "stock": 0 })).await?;
        let second = world.api.hold(Side::After, |call| {
            let orders = call.body["status"]["orders"].as_array().map_or(0, Vec::len);
            call.is("PUT", "/rentedmachines/") && orders == 2 && has_open_order(&call.body)
        });
        order.release();
        second.met(SOON).await?;
        let refused = json!({ "op": "rent", "status": 400, "message": "this host does not like you" });
        let slow = json!({ "op": "rent", "when": "hang", "seconds": 1 });
        world.stack.sim.add_fault(&refused).await?;
        world.stack.sim.add_fault(&slow).await?;
        second.release();
        job.phase(world, JobPhase::Complete, SOON).await?;
        let events = job.events(world).await?;
        let told = |offer: &str, word: &str| {
            events
                .iter()
                .any(|(r, n)| r == "OrderRefused" && n.contains(&format!("offer {offer} ")) && n.contains(word))
        };
        ensure!(told(&cheapest, "OutOfStock"), "{events:#?}");
        ensure!(events.iter().any(|(r, n)| r == "OrderRefused" && n.contains("does not like you")), "{events:#?}");
        finished_right(world, &job).await?;
        Ok(())
    });
}

/// A RentedMachine whose newest order is written and not known to have an outcome.
pub fn has_open_order(machine: &Value) -> bool {
    let orders = machine["status"]["orders"].as_array();
    orders.and_then(|orders| orders.last()).is_some_and(|order| order["outcome"] == "Open")
}

#[test]
fn a_machine_that_cannot_boot_is_replaced_and_the_reason_kept() {
    scenario(async |world| {
        let namespace = world.namespace("offers").await?;
        // It takes its time to boot, so that it can be caught at it.
        world.stack.sim.patch_offer(VAST, "1000", &json!({ "stock": 1 })).await?;
        tokio::time::sleep(OFFERS_MAX_AGE).await;
        let job = Job::new(&namespace, "run", 20, 5, "0.05");
        job.apply(world).await?;
        let machine = world.rented(1).await?.remove(0);
        ensure!(machine.offer.to_string().contains("1000"), "{machine:#?}");
        world
            .stack
            .sim
            .act(VAST, &machine.id, "fail", &json!({ "message": "Error response: manifest unknown" }))
            .await?;
        let done = job.phase(world, JobPhase::Complete, SOON).await?;
        let status = done.status.context("a status")?;
        let first = status.history.first().context("a record of the first attempt")?;
        ensure!(first.ended == "BootFailed" && first.message.contains("manifest unknown"), "{first:?}");
        ensure!(status.restarts == 0, "a bad host is not the job's fault: {status:?}");
        finished_right(world, &job).await?;
        Ok(())
    });
}

#[test]
fn an_order_whose_answer_is_lost_is_found_by_its_key() {
    scenario(async |world| {
        let namespace = world.namespace("offers").await?;
        world.stack.sim.add_fault(&json!({ "op": "rent", "when": "lost" })).await?;
        let job = Job::new(&namespace, "run", 20, 5, "0.05");
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let machines = world.machines().await?;
        ensure!(machines.len() == 1, "{machines:#?}");
        finished_right(world, &job).await?;
        Ok(())
    });
}
