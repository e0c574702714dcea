//! When to rent: for a deadline, and for a price.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_harness::{StackOptions, project_root};

use crate::checks::newest_bytes;
use crate::job::Job;
use crate::world::{OFFERS_MAX_AGE, SOON, VAST, World, options_of, scenario_in};

/// Cheap, and only as spot: what it costs on demand nobody would pay.
const SPOT: &str = "2001";
/// Stays, and costs more.
const STAYS: &str = "2002";

fn world() -> StackOptions {
    let image = project_root().join("tests/scenarios/images/train");
    let offer = |id: &str, place: &str, price: f64, bid: f64| {
        json!({
            "id": id.parse::<u64>().unwrap_or_default(), "gpu_name": "RTX 4090", "dph_base": price, "min_bid": bid, "geolocation": place,
            "hosting_type": 1, "reliability": 0.999, "inet_down": 40_000, "inet_up": 40_000, "sim": { "boot": 0.1 },
        })
    };
    let market: Value = json!({ "providers": { VAST: {
        "kind": "vast", "apiKey": "vast-account-key-of-the-scenarios", "credit": 50,
        "images": { "train:1": { "pull": 0, "root": image } },
        "offers": [offer(SPOT, "Norway, NO", 5.0, 0.20), offer(STAYS, "Sweden, SE", 0.90, 1.50)],
    } } });
    options_of("deadline", market).operator_flag("replan-interval", "1s")
}

async fn stock(world: &World, offer: &str, stock: u32) -> Result<()> {
    world.stack.sim.patch_offer(VAST, offer, &json!({ "stock": stock })).await?;
    tokio::time::sleep(OFFERS_MAX_AGE).await;
    Ok(())
}

/// Nothing is left, and the last checkpoint is that of an undisturbed run.
async fn right_weights(world: &World, job: &Job) -> Result<()> {
    world.all_gone().await?;
    ensure!(newest_bytes(world, &job.location).await? == job.undisturbed()?, "other weights");
    Ok(())
}

/// Two short jobs: so the operator has seen the spot pool, and how soon machines start here.
async fn experience(world: &World, namespace: &str) -> Result<()> {
    for n in 0..2 {
        let job = Job::new(namespace, &format!("before{n}"), 5, 5, "0.02");
        job.apply(world).await?;
        job.phase(world, JobPhase::Complete, SOON).await?;
        job.delete(world).await?;
    }
    world.all_gone().await
}

#[test]
fn a_job_with_a_deadline_waits_takes_spot_loses_it_and_goes_on_demand_in_time() {
    scenario_in(world(), async |world| {
        let namespace = world.namespace("deadline").await?;
        experience(world, &namespace).await?;
        stock(world, SPOT, 0).await?;
        let before = world.machines().await?.len();
        // It says that it takes 43 s, and takes 20: so the deadline is kept on a slow computer too.
        let job = Job::new(&namespace, "run", 40, 5, "0.5").with(json!({
            "completeWithin": "3m", "work": { "hours": "0.012", "gpu": "RTX4090" }, "placement": { "maxPricePerHour": "0.50" },
        }));
        job.apply(world).await?;

        let waits = job.condition(world, "Placed", "False", "WaitingForPrice", SOON).await?;
        ensure!(waits.contains("then the deadline needs one"), "{waits}");
        job.condition(world, "OnTime", "True", "DeadlineInReach", SOON).await?;
        ensure!(world.machines().await?.len() == before, "nothing is rented while it waits");

        stock(world, SPOT, 1).await?;
        let first = world.running_machine(None).await?;
        ensure!(first.spot && first.offer.to_string().contains(SPOT), "{first:#?}");
        job.saved(world, 5, SOON).await?;
        // The price rises for everybody, so the machine is lost and no other one like it is cheap.
        world.stack.sim.patch_offer(VAST, SPOT, &json!({ "bid": 10 })).await?;

        // It waits again for what is cheaper, as long as it may.
        let minutes = Duration::from_mins(3);
        let on_demand = job.until(world, "a machine on demand", minutes, |job| {
            let placement = job.status.as_ref().and_then(|s| s.placement.as_ref());
            match placement.map(|p| (p.capacity.as_deref().unwrap_or_default(), p.why.clone().unwrap_or_default())) {
                Some(("OnDemand", why)) => Ok(why),
                other => Err(format!("{other:?}")),
            }
        });
        let why = on_demand.await?;
        ensure!(why.contains("by the deadline"), "{why}");
        let done = job.phase(world, JobPhase::Complete, minutes).await?;
        let status = done.status.as_ref().context("a status")?;
        let (finished, deadline) = (status.finished_at.as_ref(), status.deadline.as_ref());
        let in_time = finished.zip(deadline).is_some_and(|(finished, deadline)| finished.0 < deadline.0);
        ensure!(in_time && status.preemptions == 1, "{status:#?}");
        job.condition(world, "OnTime", "True", "DeadlineKept", SOON).await?;
        let machines = world.machines().await?;
        let last = machines.last().context("a machine")?;
        ensure!(!last.spot && last.offer.to_string().contains(STAYS) && machines.len() == before + 2, "{machines:#?}");
        right_weights(world, &job).await
    });
}

#[test]
fn a_price_is_waited_for_and_a_deadline_that_cannot_be_kept_is_told_at_once() {
    scenario_in(world(), async |world| {
        let namespace = world.namespace("price").await?;
        stock(world, SPOT, 0).await?;
        let patient = |name: &str, patience: &str| {
            let placement = json!({ "patience": patience, "maxPricePerHour": "0.50" });
            Job::new(&namespace, name, 10, 5, "0.05").with(json!({ "placement": placement }))
        };
        let waits = patient("waits", "10m");
        waits.apply(world).await?;
        let message = waits.condition(world, "Placed", "False", "WaitingForPrice", SOON).await?;
        for part in ["at $0.50 an hour or less", "until 20", "then its patience is over", "/h"] {
            ensure!(message.contains(part), "{part}: {message}");
        }
        ensure!(world.machines().await?.is_empty(), "nothing is rented while it waits");
        stock(world, SPOT, 1).await?;
        waits.phase(world, JobPhase::Complete, SOON).await?;
        let machines = world.machines().await?;
        ensure!(machines.len() == 1 && machines[0].spot, "{machines:#?}");
        right_weights(world, &waits).await?;

        stock(world, SPOT, 0).await?;
        let over = patient("over", "4s");
        over.apply(world).await?;
        let done = over.phase(world, JobPhase::Complete, SOON).await?;
        let status = done.status.context("a status")?;
        ensure!(status.cost.total.micros() > 0 && status.waits_since.is_none(), "{status:#?}");

        let late = Job::new(&namespace, "late", 20, 5, "0.1")
            .with(json!({ "completeWithin": "30s", "work": { "hours": "2", "gpu": "RTX4090" } }));
        late.apply(world).await?;
        let message = late.condition(world, "OnTime", "False", "DeadlineOutOfReach", SOON).await?;
        ensure!(message.contains("cannot be kept: the earliest finish is about"), "{message}");
        let told = async || -> Result<(), String> {
            let events = late.events(world).await.map_err(|e| e.to_string())?;
            let found = events.iter().any(|(reason, _)| reason == "DeadlineOutOfReach");
            if found { Ok(()) } else { Err(format!("{events:#?}")) }
        };
        world.stack.eventually("an Event", SOON, told).await?;
        late.phase(world, JobPhase::Complete, SOON).await?;
        right_weights(world, &late).await
    });
}
