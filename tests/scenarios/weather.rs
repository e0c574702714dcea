//! Both markets failing in turn: answers that are lost, cut, late or wrong, machines listed late, words that nobody knows, no credit.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_harness::StackOptions;

use crate::checks::newest_bytes;
use crate::job::Job;
use crate::world::{SOON, VAST, World, market, options, scenario_in};

const RUNPOD: &str = "runpod";
const MINUTE: Duration = Duration::from_mins(1);
/// Seconds until a new machine is listed.
const LAG: f64 = 1.0;
/// For so long in all nobody could see what a machine did: its listing was late, or the account could not be read.
const UNSEEN: Duration = Duration::from_secs(20);

fn two_markets() -> StackOptions {
    let mut options = options("weather");
    let image = market()["providers"][VAST]["images"].clone();
    let vast = &mut options.market["providers"][VAST];
    for offer in vast["offers"].as_array_mut().expect("the usual offers") {
        offer["sim"] = json!({ "boot": 0.1, "lag": LAG });
    }
    options.market["providers"][RUNPOD] = json!({
        "kind": "runpod", "apiKey": "runpod-account-key-of-the-weather", "credit": 50, "images": image, "offers": [{
            "id": "NVIDIA GeForce RTX 4090", "memory": 24, "price": { "secure": 0.45 },
            "dataCenters": [{ "id": "EU-RO-1", "availability": "HIGH" }], "sim": { "stock": 6, "boot": 0.1, "lag": LAG },
        }],
    });
    options.provider_proxies = false;
    options
}

/// What goes wrong once somebody makes such a call.
fn faults(provider: &str) -> Vec<Value> {
    let fault = |op: &str, when: &str, times: u32| json!({ "provider": provider, "op": op, "when": when, "times": times, "seconds": 2 });
    vec![
        fault("offers", "garbled", 1),
        fault("offers", "before", 1),
        fault("rent", "lost", 1),
        fault("rent", "garbled", 1),
        fault("rent", "after", 1),
        fault("terminate", "before", 2),
        fault("terminate", "lost", 1),
        fault("describe", "garbled", 2),
        fault("describe", "hang", 1),
    ]
}

/// Spells of bad weather over everything that is asked, first here, then there, until each is over.
async fn spells(world: &World) -> Result<()> {
    for (when, times) in [("before", 4), ("garbled", 3), ("hang", 2), ("lost", 3)] {
        for provider in [VAST, RUNPOD] {
            let fault = json!({ "provider": provider, "op": "list", "when": when, "times": times, "status": 503, "seconds": 1 });
            world.stack.sim.add_fault(&fault).await?;
            let look = || async {
                let left = world.stack.sim.faults().await.map_err(|e| e.to_string())?.to_string();
                let waits = left.contains(r#""op":"list""#);
                if waits { Err(left) } else { Ok(()) }
            };
            world.stack.eventually(&format!("the end of a spell ({when}) at {provider}"), SOON, look).await?;
        }
    }
    Ok(())
}

/// Every running machine shows a word that nobody has heard of; nobody takes it for an end.
async fn unknown_words(world: &World, jobs: &[Job]) -> Result<()> {
    let running: Vec<_> = world.machines().await?.into_iter().filter(|m| m.paid && m.running).collect();
    ensure!(running.len() == jobs.len(), "{running:#?}");
    let lists = async || -> Result<usize> {
        let events = world.stack.sim.events(0).await?.events;
        Ok(events.iter().filter(|e| e["op"] == "list" && e["status"] == 200).count())
    };
    for machine in &running {
        world.stack.sim.act(&machine.provider, &machine.id, "status", &json!({ "value": "teleporting" })).await?;
    }
    let before = lists().await?;
    let look = || async {
        let seen = lists().await.map_err(|e| e.to_string())? - before;
        if seen >= 6 { Ok(()) } else { Err(format!("{seen} lists")) }
    };
    world.stack.eventually("lists with words that nobody knows", SOON, look).await?;
    for machine in &running {
        world.stack.sim.act(&machine.provider, &machine.id, "status", &json!({ "value": null })).await?;
    }
    for job in jobs {
        let status = job.now(world).await?.status.context("a status")?;
        ensure!(status.attempt == Some(0) && status.phase == JobPhase::Running, "{}: {status:?}", job.name);
    }
    Ok(())
}

#[test]
fn in_any_weather_jobs_end_right_and_nothing_is_left() {
    scenario_in(two_markets(), async |world| {
        let namespace = world.namespace("weather").await?;
        for fault in [VAST, RUNPOD].iter().flat_map(|provider| faults(provider)) {
            world.stack.sim.add_fault(&fault).await?;
        }
        let job = |name: &str, providers: &[&str]| {
            Job::new(&namespace, name, 400, 25, "0.1").with(json!({ "placement": { "providers": providers } }))
        };
        let jobs = [job("a", &[VAST]), job("b", &[RUNPOD]), job("c", &[VAST]), job("d", &[RUNPOD]), job("e", &[])];
        for job in &jobs {
            job.apply(world).await?;
        }
        for job in &jobs {
            job.phase(world, JobPhase::Running, MINUTE).await?;
        }
        unknown_words(world, &jobs).await?;
        // Without credit the market stops what it has rented out.
        world.stack.sim.patch_provider(VAST, &json!({ "credit": 0 })).await?;
        jobs[0]
            .until(world, "its machine's loss", SOON, |job| {
                let status = job.status.as_ref().ok_or("no status")?;
                if status.attempt > Some(0) { Ok(()) } else { Err(status.message.clone()) }
            })
            .await?;
        world.stack.sim.patch_provider(VAST, &json!({ "credit": 50 })).await?;
        spells(world).await?;
        let mut ours = 0;
        for job in &jobs {
            let done = job.phase(world, JobPhase::Complete, 2 * MINUTE).await?;
            let status = done.status.context("a status")?;
            ensure!(status.restarts == 0, "{}: {status:?}", job.name);
        }
        world.all_gone().await?;
        for job in &jobs {
            ensure!(newest_bytes(world, &job.location).await? == job.undisturbed()?, "{}: other weights", job.name);
            let cost = job.now(world).await?.status.context("a status")?.cost;
            ensure!(cost.per_hour.micros() == 0 && cost.settled == cost.total, "{}: {cost:?}", job.name);
            ours += cost.total.micros();
        }
        let left = world.stack.sim.faults().await?;
        println!("{} machines for {} jobs; faults that met nobody: {left}", world.machines().await?.len(), jobs.len());
        world.bill_is_right(ours, UNSEEN).await
    });
}
