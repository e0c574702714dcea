//! Two hundred jobs at once, two markets with thirty machines each, and limits that allow twenty of each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::time::Instant;
use tradewind_api::training_job::JobPhase;
use tradewind_api::{RentedMachine, TrainingJob};
use tradewind_core::Money;
use tradewind_harness::StackOptions;
use tradewind_harness::proxy::Match;
use tradewind_harness::sim::SimMachine;
use tradewind_harness::stack::{NAMESPACE, SERVICE_ACCOUNT};

use crate::world::{World, scenario_alone_in};

const JOBS: usize = 200;
/// Machines that each market has.
const STOCK: u64 = 30;
/// Machines of each market that its limit allows at once.
const ALLOWED: usize = 20;
/// Dollars an hour of each account: enough for [`ALLOWED`] machines with their disks, not for one more.
const LIMIT: &str = "8.20";
const LIMIT_MICROS: i64 = 8_200_000;
/// With so much to do for so few processors, what the market does and what is known of it lie so far apart for each machine.
const ANSWERED_LATE: Duration = Duration::from_secs(3);
/// What a computer with two slow processors needs.
const ALL_DONE: Duration = Duration::from_mins(6);

fn crowded() -> StackOptions {
    let vast = |n: u64| {
        json!({
            "id": 2001 + n, "gpu_name": "RTX 4090", "dph_base": 0.40, "storage_cost": 0.0, "geolocation": "Norway, NO",
            "hosting_type": 1, "reliability": 0.995, "sim": { "boot": 0.1 },
        })
    };
    let runpod = json!({
        "id": "NVIDIA GeForce RTX 4090", "memory": 24, "price": { "secure": 0.40 },
        "dataCenters": [{ "id": "EU-RO-1", "availability": "HIGH" }], "sim": { "stock": STOCK, "boot": 0.1 },
    });
    let images = json!({ "crowd:1": { "pull": 0 } });
    let market = json!({ "providers": {
        "vast": {
            "kind": "vast", "apiKey": "vast-account-key-of-the-crowd", "credit": 1000, "images": images,
            "offers": (0..STOCK).map(vast).collect::<Vec<_>>(),
        },
        "runpod": {
            "kind": "runpod", "apiKey": "runpod-account-key-of-the-crowd", "credit": 1000, "images": images, "offers": [runpod],
        },
    } });
    // Slower than elsewhere: agents and operator share the processors with everything else.
    let mut options = StackOptions::new("crowd", market)
        .operator_flag("account-poll", "1s")
        .operator_flag("lease-duration", "15s")
        .operator_flag("report-poll", "1s")
        .operator_flag("agent-poll", "1s");
    options.limits = (LIMIT.into(), "1000".into());
    options.plane.audit = true;
    options.provider_proxies = true;
    options
}

fn job(namespace: &str, n: usize) -> Value {
    json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": { "namespace": namespace, "name": format!("job-{n:03}") },
        "spec": {
            "gpu": { "count": 1, "models": ["RTX4090"] },
            "template": { "spec": { "containers": [{
                "name": "train", "image": "crowd:1", "command": ["/bin/sh", "-c", "echo step 1/1; sleep 4"],
            }] } },
            "placement": { "inCluster": "Never", "capacity": "OnDemand" },
        },
    })
}

/// All of them, as soon as each is over, and how many RentedMachines each provider was seen to have at once.
async fn all_over(world: &World, namespace: &str) -> Result<(Vec<TrainingJob>, BTreeMap<String, usize>)> {
    let api: Api<TrainingJob> = Api::namespaced(world.stack.client(), namespace);
    let rented: Api<RentedMachine> = Api::all(world.stack.client());
    let most = RefCell::new(BTreeMap::<String, usize>::new());
    let look = || async {
        // Two hundred jobs are a long answer; asking all the time would keep the server busier than the operator does.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut claims = BTreeMap::<String, usize>::new();
        for machine in rented.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items {
            *claims.entry(machine.spec.provider).or_default() += 1;
        }
        for (provider, now) in claims {
            let mut most = most.borrow_mut();
            let most = most.entry(provider).or_default();
            *most = now.max(*most);
        }
        let jobs = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
        let mut phases = BTreeMap::<String, usize>::new();
        for job in &jobs {
            let phase = job.status.as_ref().map_or_else(|| "new".to_owned(), |s| format!("{:?}", s.phase));
            *phases.entry(phase).or_default() += 1;
        }
        let over = jobs.iter().filter(|job| job.status.as_ref().is_some_and(|s| s.phase.is_terminal())).count();
        if over == JOBS { Ok(jobs) } else { Err(format!("{phases:?}")) }
    };
    let jobs = world.stack.eventually("the end of all jobs", ALL_DONE, look).await?;
    Ok((jobs, most.into_inner()))
}

/// The most machines, and dollars an hour, that one account had at the same moment.
fn most_at_once(machines: &[SimMachine], provider: &str) -> Result<(usize, i64)> {
    let mut changes: Vec<(Timestamp, bool, i64)> = Vec::new();
    for machine in machines.iter().filter(|m| m.provider == provider) {
        let end = machine.ended_at.as_ref().context("a machine without an end")?;
        changes.push((machine.created_at.parse()?, true, machine.price_per_hour_micros));
        changes.push((end.parse()?, false, machine.price_per_hour_micros));
    }
    // At the same moment an end comes before a beginning.
    changes.sort();
    let (mut now, mut most) = ((0_usize, 0_i64), (0, 0));
    for (_, begins, price) in changes {
        now = if begins { (now.0 + 1, now.1 + price) } else { (now.0 - 1, now.1 - price) };
        most = (most.0.max(now.0), most.1.max(now.1));
    }
    Ok(most)
}

/// Rent calls of an account one after the other, never two at once; how many there were.
fn one_after_the_other(world: &World, provider: &str, calls: Match) -> Result<usize> {
    let mut calls = world.stack.provider_proxy(provider)?.exchanges(&calls);
    calls.sort_by_key(|call| call.began);
    for pair in calls.windows(2) {
        ensure!(pair[0].ended <= pair[1].began, "{} and {} at once", pair[0].head.target, pair[1].head.target);
    }
    Ok(calls.len())
}

/// Requests of the operator, and how many of them are writes, by what they are about; Leases aside.
fn requests(world: &World) -> Result<BTreeMap<String, usize>> {
    let operator = format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}");
    let mut counts = BTreeMap::new();
    for event in world.stack.plane.audit()?.into_iter().filter(|event| event.user.username == operator) {
        let object = event.object_ref.clone().unwrap_or_default();
        if object.resource != "leases" {
            let dry = if event.request_uri.contains("dryRun=") { " (dry run)" } else { "" };
            let code = event.response_status.as_ref().map_or(0, |status| status.code);
            let refused = if code >= 400 { format!(" {code}") } else { String::new() };
            let what = format!("{} {} {}{dry}{refused}", event.verb, object.resource, object.subresource);
            *counts.entry(what).or_default() += 1;
        }
    }
    Ok(counts)
}

fn told(world: &World, began: Instant, over: Duration) -> Result<()> {
    let counts = requests(world)?;
    let is_write =
        |what: &str| !["get", "list", "watch"].iter().any(|verb| what.starts_with(verb)) && !what.contains("dry");
    let all: usize = counts.values().sum();
    let writes: usize = counts.iter().filter(|(what, _)| is_write(what)).map(|(_, count)| count).sum();
    // In hundredths.
    let per_job = |n: usize| format!("{}.{:02}", n / JOBS, n * 100 / JOBS % 100);
    println!(
        "{JOBS} jobs: all over after {:.0} s, all gone after {:.0} s; per job {} requests, of these {} writes",
        over.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        per_job(all),
        per_job(writes)
    );
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (what, count) in counts.iter().take(24) {
        println!("  {:>6} {what}", per_job(*count));
    }
    Ok(())
}

#[test]
fn two_hundred_jobs_share_what_the_limits_allow() {
    scenario_alone_in(crowded(), async |world| {
        let namespace = world.namespace("crowd").await?;
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": (0..JOBS).map(|n| job(&namespace, n)).collect::<Vec<_>>() });
        let began = Instant::now();
        world.stack.apply(&list.to_string()).await?;
        let (jobs, claimed) = all_over(world, &namespace).await?;
        let over = began.elapsed();
        world.all_gone().await?;
        told(world, began, over)?;
        for job in &jobs {
            let status = job.status.as_ref().context("a status")?;
            ensure!(status.phase == JobPhase::Complete, "{:?}: {}", job.metadata.name, status.message);
            ensure!(status.attempt == Some(0) && status.preemptions == 0 && status.restarts == 0, "{status:?}");
            ensure!(status.cost.settled_machines.len() <= 1 && status.cost.settled.micros() > 0, "{:?}", status.cost);
        }
        let machines = world.machines().await?;
        ensure!(machines.len() == JOBS, "{} machines for {JOBS} jobs", machines.len());
        for (provider, calls) in [
            ("vast", Match::method("PUT").target("^/api/v0/asks/")),
            ("runpod", Match::method("POST").target("^/v2/pods/?$")),
        ] {
            let (most, micros) = most_at_once(&machines, provider)?;
            let rented = machines.iter().filter(|m| m.provider == provider).count();
            let calls = one_after_the_other(world, provider, calls)?;
            let claimed = claimed.get(provider).copied().unwrap_or(0);
            println!(
                "{provider}: {rented} machines by {calls} rent calls, at most {claimed} claimed and {most} there at once for ${} an hour",
                Money::from_micros(micros)
            );
            ensure!(
                most <= ALLOWED && micros <= LIMIT_MICROS,
                "{most} machines of {provider} at once for {micros} an hour"
            );
            // What the limit allows is used: claimed, since how many of them the market shows at once depends on this computer.
            ensure!(claimed >= ALLOWED * 3 / 4, "never more than {claimed} machines of {provider} claimed at once");
        }
        let settled: i64 = jobs.iter().filter_map(|job| job.status.as_ref()).map(|s| s.cost.settled.micros()).sum();
        world.bill_is_right(settled, ANSWERED_LATE).await
    });
}
