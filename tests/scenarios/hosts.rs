//! Bad hosts: one that never reports, one on which a program fails at once. What was learned of them outlives the operator.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_harness::proxy::{Action, Match};

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{SOON, World, market, options, scenario_in};

const MINUTE: Duration = Duration::from_mins(1);

/// A registry on loopback in which every image has these bytes; its address.
fn registry(bytes: u64) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let body = json!({ "schemaVersion": 2, "config": { "size": 0 }, "layers": [{ "size": bytes }] }).to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let asked = head[..read].starts_with(b"GET /v2/acme/train/manifests/1 HTTP/1.1\r\n");
            let status = if asked { "200 OK" } else { "404 Not Found" };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
    });
    Ok(address)
}

/// Offers of the machines that were rented, in order.
async fn rented_offers(world: &World) -> Result<Vec<String>> {
    let machines = world.machines().await?;
    Ok(machines.iter().map(|machine| machine.offer.to_string().trim_matches('"').to_owned()).collect())
}

/// Waits until the mailbox says that this offer's host is banned.
async fn banned(world: &World, offer: &str) -> Result<()> {
    // The simulator numbers its hosts from 10,000 on, in the order of the offers.
    let host = (offer.parse::<u64>()? - 1001 + 10_000).to_string();
    let read = || -> Result<Value> {
        let key = world.stack.s3.keys("mailbox", "tradewind/market/")?.pop().context("no memory yet")?;
        Ok(serde_json::from_slice(&std::fs::read(world.stack.s3.object_path("mailbox", &key))?)?)
    };
    let look = || {
        let memory = read().map_err(|e| e.to_string());
        let found = memory.and_then(|memory| {
            let notes = memory["banned"].as_array().cloned().unwrap_or_default();
            let is =
                |note: &Value| note["what"] == host.as_str() && note["reason"].to_string().contains("AgentNotStarted");
            if notes.iter().any(is) { Ok(()) } else { Err(memory.to_string()) }
        });
        std::future::ready(found)
    };
    Ok(world.stack.eventually(&format!("host {host} banned in the mailbox"), SOON, look).await?)
}

#[test]
fn a_host_that_never_reports_is_left_out_by_the_next_operator_too() {
    let address = registry(100_000_000).expect("a registry on loopback");
    let image = format!("{address}/acme/train:1");
    let mut own = options("hosts")
        .operator_flag("image-registries", "on")
        .operator_flag("start-deadline", "6s")
        .operator_flag("refusal-memory", "10m");
    let mut market = market();
    let train = market["providers"]["vast"]["images"]["train:1"].clone();
    market["providers"]["vast"]["images"][&image] = train;
    own.market = market;
    // The market's logs are at an address of its own, which must be the one that the operator knows.
    own.provider_proxies = false;
    scenario_in(own, async |world| {
        let namespace = world.namespace("hosts").await?;
        // Until the first machine is given up, nobody gets the agent.
        let no_agent = world.stack.s3.proxy.rule(Match::method("GET").target("/agent/"), Action::Answer(403));
        let job = Job::new(&namespace, "first", 20, 5, "0.05").container(json!({ "image": image }));
        job.apply(world).await?;
        let first = job
            .until(world, "the end of the first attempt", MINUTE, |job| {
                let history = job.status.as_ref().map(|s| s.history.as_slice()).unwrap_or_default();
                history.first().cloned().ok_or_else(|| "none yet".to_owned())
            })
            .await?;
        no_agent.remove();
        // 0.1 GB at 900 Mbit/s take a second, twice is two, on top of the setting.
        let expected =
            "the machine did not start our agent within 8 s (image of 0.1 GB); its last log line: \"tradewind: ";
        ensure!(first.ended == "AgentNotStarted" && first.message.starts_with(expected), "{first:?}");
        banned(world, "1001").await?;
        let events = job.events(world).await?;
        let told = events.iter().find(|(reason, _)| reason == "AgentNotStarted").context("an Event")?;
        ensure!(told.1.contains("could not fetch the agent") && !told.1.contains("X-Amz"), "{told:?}");
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        ensure!(rented_offers(world).await? == ["1001", "1002"], "{:?}", rented_offers(world).await?);

        // The next operator knows nothing but what the last one has left in the mailbox.
        world.stack.operator.kill()?;
        world.stack.operator.restart().await?;
        let next = Job::new(&namespace, "second", 20, 5, "0.05").container(json!({ "image": image }));
        next.apply(world).await?;
        next.phase(world, JobPhase::Complete, MINUTE).await?;
        let offers = rented_offers(world).await?;
        ensure!(offers.len() == 3 && offers[2] != "1001", "{offers:?}");

        // One that ends in good order leaves what it has learned, however little time has passed since the last write.
        let again = world.stack.s3.proxy.rule(Match::method("GET").target("/agent/"), Action::Answer(403));
        let third = Job::new(&namespace, "third", 20, 5, "0.05").container(json!({ "image": image }));
        third.apply(world).await?;
        third
            .until(world, "the end of its first attempt", MINUTE, |job| {
                let count = job.status.as_ref().map_or(0, |s| s.history.len());
                if count == 1 { Ok(()) } else { Err(format!("{count} records")) }
            })
            .await?;
        world.stack.operator.stop().await?;
        again.remove();
        let offers = rented_offers(world).await?;
        ensure!(offers.len() == 4 && offers[3] != "1001", "{offers:?}");
        banned(world, &offers[3]).await?;
        world.stack.operator.restart().await?;
        third.phase(world, JobPhase::Complete, MINUTE).await?;
        let after = rented_offers(world).await?;
        ensure!(after.len() == 5 && after[4] != "1001" && after[4] != offers[3], "{after:?}");
        Ok(())
    });
}

#[test]
fn a_program_that_fails_at_once_on_an_unknown_host_is_tried_elsewhere_for_free_once() {
    scenario_in(options("quick"), async |world| {
        let namespace = world.namespace("quick").await?;
        // Fails before it saves anything, in its first attempt only.
        let once = "[ $TRADEWIND_ATTEMPT != 0 ] || { echo CUDA error: device kernel image is invalid; exit 1; }; exec train 20 5 0.05";
        let job = Job::new(&namespace, "once", 20, 5, "0.05")
            .container(json!({ "command": ["sh", "-c", once], "args": null }))
            .with(json!({ "failurePolicy": { "maxRestarts": 0 } }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        ensure!((status.restarts, status.preemptions, status.attempt) == (0, 0, Some(1)), "{status:?}");
        let first = status.history.first().context("a record")?;
        ensure!(first.ended == "ProgramFailed" && first.quick_failure, "{first:?}");
        ensure!(rented_offers(world).await? == ["1001", "1002"], "{:?}", rented_offers(world).await?);
        let events = job.events(world).await?;
        let told = events.iter().find(|(reason, _)| reason == "HostSuspected").context("an Event")?;
        ensure!(told.1.contains("host 10000 of vast"), "{told:?}");

        // Host 1002 has worked: the fault is the program's. So is one that shows on another host too.
        let always = Job::new(&namespace, "always", 20, 5, "0.05")
            .container(json!({ "command": ["sh", "-c", "echo boom; exit 1"], "args": null }))
            .with(json!({ "failurePolicy": { "maxRestarts": 0 }, "gpu": { "count": 1 } }));
        world.stack.sim.patch_offer("vast", "1002", &json!({ "stock": 0 })).await?;
        tokio::time::sleep(crate::world::OFFERS_MAX_AGE).await;
        always.apply(world).await?;
        let failed = always.phase(world, JobPhase::Failed, MINUTE).await?;
        let status = failed.status.context("a status")?;
        ensure!((status.restarts, status.history.len()) == (0, 2), "{status:?}");
        ensure!(status.history.iter().all(|record| record.quick_failure), "{:?}", status.history);
        ensure!(status.message.contains("exit code 1") && status.message.contains("boom"), "{}", status.message);
        Ok(())
    });
}

#[test]
fn a_machine_with_less_than_was_rented_is_given_back_before_anything_runs_on_it() {
    let mut own = options("unfit");
    let mut market = market();
    // The cheapest host has half of the disk that it offers, the next one shows no GPU.
    market["providers"]["vast"]["offers"][0]["sim"]["host"] = json!({ "diskBytes": 5_u64 << 30 });
    market["providers"]["vast"]["offers"][1]["sim"]["host"] = json!({ "gpus": 0 });
    own.market = market;
    scenario_in(own, async |world| {
        let namespace = world.namespace("unfit").await?;
        let job = Job::new(&namespace, "run", 20, 5, "0.05").with(json!({ "failurePolicy": { "maxRestarts": 0 } }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        let status = done.status.context("a status")?;
        ensure!((status.restarts, status.preemptions, status.attempt) == (0, 0, Some(2)), "{status:?}");
        let why: Vec<&str> = status.history.iter().take(2).map(|record| record.message.as_str()).collect();
        let expected = [
            "the machine is less than what was rented: its disk has 5120 MiB, 10240 were rented; nothing was started on it",
            "the machine is less than what was rented: it shows 0 of 1 rented GPUs; nothing was started on it",
        ];
        ensure!(why == expected && status.history[0].ended == "HostUnfit", "{:?}", status.history);
        ensure!(rented_offers(world).await? == ["1001", "1002", "1003"], "{:?}", rented_offers(world).await?);
        let log = world.machines().await?[0].dir.as_ref().map(|dir| std::fs::read_to_string(dir.join("log")));
        ensure!(log.is_none_or(|log| !log.unwrap_or_default().contains("starting from step")), "the program ran");
        Ok(())
    });
}
