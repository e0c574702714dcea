//! Where Secrets must not appear.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::leaks::{Leak, Secrets};
use tradewind_harness::proxy::Recorded;

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{SOON, VAST, World, options, scenario_in};

const TOKEN: &str = "hf_s3cret/with+odd=signs&äöü";
/// Where the agent is in the mailbox.
const AGENT: &[u8] = b"/mailbox/tradewind/agent/";
const PASSWORD: &str = "correct horse battery staple";

/// Everything that must stay secret in this world.
fn secrets(world: &World) -> Result<Secrets> {
    let key = &world.stack.sim.provider(VAST)?.api_key;
    let store = &world.stack.s3.secret_key;
    Ok(Secrets::new([
        ("token", TOKEN),
        ("password", PASSWORD),
        ("account key", key.as_str()),
        ("store key", store.as_str()),
    ]))
}

/// The key travels to its own market in this one header.
fn without_authorization(mut exchange: Recorded) -> Recorded {
    let text: Vec<&[u8]> = exchange.request.split(|b| *b == b'\n').collect();
    let kept = text.into_iter().filter(|line| !line.to_ascii_lowercase().starts_with(b"authorization: bearer "));
    exchange.request = kept.collect::<Vec<_>>().join(&b'\n');
    exchange
}

/// Searches all that operator, agents, market and store have said or kept.
async fn search(world: &World) -> Result<Vec<Leak>> {
    let secrets = secrets(world)?;
    let mut leaks = Vec::new();
    let market: Vec<Recorded> =
        world.stack.provider_proxy(VAST)?.recorded()?.into_iter().map(without_authorization).collect();
    ensure!(market.iter().any(|e| e.request.starts_with(b"PUT /api/v0/asks/")), "the rent call was recorded");
    leaks.extend(secrets.find_in_exchanges("market", &market));
    // The agent itself is large and the same for all: it was built before there were secrets.
    let mut store = world.stack.s3.proxy.recorded()?;
    let is_agent = |e: &Recorded| e.request.get(4..).is_some_and(|target| target.starts_with(AGENT));
    store.retain(|e| !is_agent(e));
    let control = b"/control.json";
    let is_recorded = store.iter().any(|e| e.request.windows(control.len()).any(|w| w == control));
    ensure!(is_recorded, "the mailbox was recorded");
    leaks.extend(secrets.find_in_exchanges("store", &store));
    let buckets = world.stack.s3.buckets();
    for directory in [buckets.join("ckpt"), buckets.join("mailbox/tradewind/machines")] {
        if directory.exists() {
            leaks.extend(secrets.find_in_directory(&directory)?);
        }
    }
    leaks.extend(secrets.find_in_directory(world.stack.sim.state())?);
    for log in ["operator.log", "sim.log", "kube-scheduler.log", "kube-controller-manager.log"] {
        let path = world.stack.directory().join(log);
        leaks.extend(secrets.find(log, &std::fs::read(path)?));
    }
    for kinds in ["tj,twm,twp", "pods,nodes", "events,leases,configmaps"] {
        let all = world.stack.kubectl().run(["get", kinds, "-A", "-o", "yaml"]).await?;
        leaks.extend(secrets.find(kinds, all.as_bytes()));
    }
    leaks.extend(secrets.find("metrics", world.stack.operator.metrics().await?.as_bytes()));
    Ok(leaks)
}

#[test]
fn no_secret_appears_anywhere_and_a_planted_one_is_found() {
    let mut options = options("secrets");
    options.record_store = true;
    scenario_in(options, async |world| {
        let namespace = world.namespace("secrets").await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": namespace, "name": "hf" },
            "stringData": { "token": TOKEN, "TRAIN_SECRET": PASSWORD },
        });
        world.stack.apply(&secret.to_string()).await?;
        let job = Job::new(&namespace, "run", 60, 5, "0.1").container(json!({
            "env": [
                { "name": "HF_TOKEN", "valueFrom": { "secretKeyRef": { "name": "hf", "key": "token" } } },
                { "name": "TRAIN_SAY", "value": "$(HF_TOKEN) and $(TRAIN_SECRET)" },
            ],
            "envFrom": [{ "secretRef": { "name": "hf" } }],
        }));
        job.apply(world).await?;
        job.saved(world, 10, SOON).await?;
        let machine = world.running_machine(None).await?;
        let log = std::fs::read_to_string(machine.dir.as_ref().expect("a directory").join("log"))?;
        let known = format!("knows a secret of {} characters", PASSWORD.len());
        ensure!(log.contains(&known), "the program has got its secret: {log}");
        ensure!(log.contains("told: ***\n"), "what it prints of them is masked: {log}");
        world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
        world.running_machine(Some(&machine.id)).await?;
        let leaks = search(world).await?;
        ensure!(leaks.is_empty(), "while it runs: {leaks:#?}");
        job.phase(world, JobPhase::Complete, Duration::from_mins(1)).await?;
        finished_right(world, &job).await?;
        let leaks = search(world).await?;
        ensure!(leaks.is_empty(), "in the end: {leaks:#?}");

        // The same search finds what a careless user gives away.
        let careless = Job::new(&namespace, "careless", 5, 5, "0.1")
            .container(json!({ "env": [{ "name": "TRAIN_SAY", "value": PASSWORD }] }));
        careless.apply(world).await?;
        careless.phase(world, JobPhase::Complete, SOON).await?;
        world.all_gone().await?;
        let leaks = search(world).await?;
        for place in ["store: request", "tj,twm,twp", "pods,nodes"] {
            ensure!(leaks.iter().any(|l| l.secret == "password" && l.place.contains(place)), "{place}: {leaks:#?}");
        }
        ensure!(leaks.iter().all(|l| l.secret == "password" && !l.place.starts_with("market")), "{leaks:#?}");
        Ok(())
    });
}
