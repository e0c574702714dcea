//! What it costs when the operator is gone for good: the figures of docs/providers.md, measured.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tradewind_harness::{project_root, sim::SimMachine};

use crate::job::Job;
use crate::world::{SOON, VAST, World, market, options_of, scenario_in};

const RUNPOD: &str = "runpod";
/// `operatorOutageTolerance`, and so the money line.
const LINE_S: u64 = 6;
/// The program's own grace (`terminationGracePeriodSeconds`, here the default), its last upload, and a few seconds.
const AFTER_LINE_S: u64 = 30 + 5 + 10;
/// Dollars on the RunPod account; about an hour of the pod is needed to rent at all.
const CREDIT: i64 = 2;

/// Both markets.
fn both() -> Value {
    let image = project_root().join("tests/scenarios/images/train");
    let mut market = market();
    market["providers"][RUNPOD] = json!({
        "kind": "runpod", "apiKey": "runpod-account-key-of-the-scenarios", "credit": CREDIT,
        "images": { "train:1": { "pull": 0, "root": image } },
        "offers": [{
            "id": "NVIDIA GeForce RTX 4090", "memory": 24, "price": { "secure": 0.69, "community": 0.44 },
            "dataCenters": [{ "id": "EU-RO-1", "availability": "HIGH" }], "sim": { "boot": 0.1 },
        }],
    });
    market
}

async fn machine_of(world: &World, provider: &str) -> Result<SimMachine, String> {
    let machines = world.machines().await.map_err(|e| e.to_string())?;
    machines.into_iter().find(|m| m.provider == provider).ok_or_else(|| format!("no machine of {provider}"))
}

#[test]
fn with_the_operator_gone_for_good_vast_costs_the_line_and_runpod_the_credit() {
    scenario_in(options_of("worst-case", both()), async |world| {
        let namespace = world.namespace("gone").await?;
        let tolerate = json!({ "spec": { "operatorOutageTolerance": format!("{LINE_S}s") } }).to_string();
        let mut jobs = Vec::new();
        for provider in [VAST, RUNPOD] {
            world.stack.kubectl().run(["patch", "twp", provider, "--type=merge", "-p", &tolerate]).await?;
            let only = json!({ "placement": { "providers": [provider], "capacity": "OnDemand" } });
            let job = Job::new(&namespace, &format!("on-{provider}"), 4000, 20, "0.1").with(only);
            job.apply(world).await?;
            jobs.push(job);
        }
        for job in &jobs {
            job.saved(world, 20, SOON).await?;
        }
        let before = machine_of(world, VAST).await.map_err(anyhow::Error::msg)?;
        world.stack.operator.kill()?;

        // Vast.ai: nobody but the machine itself is there to end it.
        let look = || async {
            let machine = machine_of(world, VAST).await?;
            if machine.paid { Err("still paid".to_owned()) } else { Ok(machine) }
        };
        let limit = Duration::from_secs(LINE_S + AFTER_LINE_S + 5);
        let vast = world.stack.eventually("the end of the machine by itself", limit, look).await?;
        let after_kill = vast.cost_micros - before.cost_micros;
        let worst = vast.price_per_hour_micros * i64::try_from(LINE_S + AFTER_LINE_S)? / 3600;
        println!("vast: {after_kill} micro-dollars after the operator's end, at most {worst} are documented");
        ensure!(after_kill <= worst, "{after_kill} of {worst}: {vast:#?}");

        // RunPod: the program has stopped and saved, and the pod is paid all the same.
        let told = || {
            let reports = world.stack.s3.keys("mailbox", "tradewind/machines/").map_err(|e| e.to_string());
            std::future::ready(reports.and_then(|keys| {
                let read = |key: &String| std::fs::read_to_string(world.stack.s3.object_path("mailbox", key)).ok();
                let reports: Vec<String> =
                    keys.iter().filter(|k| k.ends_with("report.json")).filter_map(read).collect();
                let over = |text: &String| text.contains(r#""phase":"Exited""#) && text.contains(r#""silent":true"#);
                if reports.iter().filter(|text| over(text)).count() == 2 { Ok(()) } else { Err(reports.join("\n")) }
            }))
        };
        world.stack.eventually("the last report of both programs", SOON, told).await?;
        let pod = machine_of(world, RUNPOD).await.map_err(anyhow::Error::msg)?;
        ensure!(pod.paid, "{pod:#?}");
        // A day later.
        world.stack.sim.advance(Duration::from_hours(24)).await?;
        let pod = machine_of(world, RUNPOD).await.map_err(anyhow::Error::msg)?;
        let credit = CREDIT * 1_000_000;
        let ended: Timestamp = pod.ended_at.as_deref().context("an end")?.parse()?;
        let hours = ended.duration_since(pod.created_at.parse()?).as_secs_f64() / 3600.0;
        println!("runpod: {} micro-dollars of {credit} on the account, in {hours:.2} hours", pod.cost_micros);
        ensure!(!pod.paid, "{pod:#?}");
        // The last second may be begun and not paid.
        let second = pod.price_per_hour_micros / 3600 + 1;
        ensure!((pod.cost_micros - credit).abs() <= second, "{} of {credit}", pod.cost_micros);

        for job in &jobs {
            job.delete(world).await?;
        }
        world.stack.operator.restart().await?;
        Ok(())
    });
}
