//! Documents and answers that are malformed, huge or hostile: ignored, and nothing is spent or deleted because of them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;
use tradewind_checkpoints::Store as _;
use tradewind_harness::proxy::{Action, Match};
use tradewind_harness::stack::MAILBOX;

use crate::checks::{finished_right, finished_right_but_for};
use crate::job::Job;
use crate::world::{SOON, VAST, scenario};

#[test]
fn reports_that_are_no_reports() {
    scenario(async |world| {
        let namespace = world.namespace("hostile").await?;
        let job = Job::new(&namespace, "reports", 60, 5, "0.1");
        job.apply(world).await?;
        job.saved(world, 5, SOON).await?;
        let uid = world.stack.machines_of("reports").await?[0].metadata.uid.clone().context("a uid")?;
        let key = format!("machines/{uid}/report.json");
        let mailbox = world.stack.store(MAILBOX)?;
        let good = mailbox.get(&key, 1 << 20).await?.context("a report")?;
        let mut other: serde_json::Value = serde_json::from_slice(&good)?;
        other["machine"] = "00000000-0000-0000-0000-000000000000".into();
        other["phase"] = "Failed".into();
        let hostile: [Vec<u8>; 6] = [
            b"{".to_vec(),
            b"null".to_vec(),
            Vec::new(),
            vec![b'['; 200_000],
            vec![b'x'; 8 << 20],
            serde_json::to_vec(&other)?,
        ];
        // The agent is silent meanwhile, so that each of them is read.
        let silent =
            world.stack.s3.proxy.rule(Match::method("PUT").target(&format!("{key}.*X-Amz-Signature=")), Action::Drop);
        for document in hostile {
            let reads = Match::method("GET").target(&key).header("authorization", ".");
            mailbox.put(&key, document.into()).await?;
            let seen = world.stack.s3.proxy.exchanges(&reads).len();
            world.stack.s3.proxy.wait_exchanges(&reads, seen + 2, SOON).await?;
        }
        silent.remove();
        let done = job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(0) && status.preemptions == 0, "{status:?}");
        ensure!(world.machines().await?.len() == 1);
        let told = world.stack.operator.process.tail(1 << 20).matches("ReportMalformed").count();
        ensure!((1..=2).contains(&told), "told {told} times");
        finished_right(world, &job).await?;
        Ok(())
    });
}

#[test]
fn manifests_that_are_no_manifests() {
    scenario(async |world| {
        let namespace = world.namespace("hostile").await?;
        let job = Job::new(&namespace, "manifests", 80, 5, "0.1");
        job.apply(world).await?;
        job.saved(world, 5, SOON).await?;
        let store = world.stack.store(&job.location)?;
        for document in [b"{".to_vec(), Vec::new(), vec![b'['; 100_000], vec![b'{'; 3 << 20]] {
            let log = world.stack.catalogue(&job.location)?.load().await?;
            // Whoever is faster takes the place: then the one after.
            let next = log.last_seq.context("a log")? + 1;
            let put = store.put_if_absent(&format!("log/{next:010}.json"), document.into()).await?;
            println!("entry {next}: {put:?}");
            let saved = job.now(world).await?.status.and_then(|s| s.checkpoint).map_or(0, |c| c.step);
            job.saved(world, saved + 5, SOON).await?;
        }
        store.put("log/whatever.txt", b"?".to_vec().into()).await?;
        store.put("data/stranger", b"?".to_vec().into()).await?;
        let machine = world.running_machine(None).await?;
        world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
        job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        ensure!(store.head("data/stranger").await?.is_some() && store.head("log/whatever.txt").await?.is_some());
        finished_right(world, &job).await?;
        Ok(())
    });
}

#[test]
fn answers_of_the_market_that_are_cut_in_half() {
    scenario(async |world| {
        let namespace = world.namespace("hostile").await?;
        // The machine is there, the answer cannot be read: it is found by its key.
        world.stack.sim.add_fault(&json!({ "op": "rent", "when": "garbled" })).await?;
        let job = Job::new(&namespace, "answers", 60, 5, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        let market = world.stack.provider_proxy(VAST)?;
        for (op, target) in [("list", "/instances/"), ("account", "/users/current"), ("describe", "/instances/")] {
            let times = if op == "describe" { 1 } else { 4 };
            world.stack.sim.add_fault(&json!({ "op": op, "when": "garbled", "times": times })).await?;
            let calls = Match::method("GET").target(target);
            let seen = market.exchanges(&calls).len();
            market.wait_exchanges(&calls, seen + 4, SOON).await?;
        }
        // An empty page with status 200, and a stranger's.
        for action in [Action::Answer(200), Action::Answer(404), Action::AnswerAfter(200)] {
            let rule = market.rule_times(Match::method("GET").target("/instances/"), action, 3);
            let look = || std::future::ready(if rule.hits() == 3 { Ok(()) } else { Err(format!("{}", rule.hits())) });
            world.stack.eventually("three such answers", SOON, look).await?;
        }
        world.stack.sim.add_fault(&json!({ "op": "terminate", "when": "garbled", "times": 2 })).await?;
        let done = job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(0) && status.preemptions == 0, "{status:?}");
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        // That the end was accepted at the first call, nobody knows.
        finished_right_but_for(world, &job, Duration::from_secs(2)).await?;
        Ok(())
    });
}
