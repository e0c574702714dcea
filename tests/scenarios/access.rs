//! Who may use an account: `Provider.spec.access` by the labels of namespaces, with limits that several share and a floor of trust.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;

use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);

/// Sets the account's list; `null` takes it away.
async fn access(world: &World, list: Value) -> Result<()> {
    let patch = json!({ "spec": { "access": list } }).to_string();
    world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await?;
    Ok(())
}

async fn label(world: &World, namespace: &str, label: &str) -> Result<()> {
    world.stack.kubectl().run(["label", "--overwrite", "ns", namespace, label]).await?;
    Ok(())
}

#[test]
fn a_namespace_that_no_entry_selects_rents_nothing_until_it_has_the_label() {
    scenario(async |world| {
        let namespace = world.namespace("stranger").await?;
        access(world, json!([{ "namespaceSelector": { "matchLabels": { "team": "a" } } }])).await?;
        let job = Job::new(&namespace, "train", 10, 5, "0.05");
        job.apply(world).await?;
        let message = job.condition(world, "Placed", "False", "NoAccess", SOON).await?;
        println!("{message}");
        let says = format!("no access entry of Provider {VAST} selects namespace {namespace}");
        ensure!(message.contains(&says) && message.contains("a label to the namespace"), "{message}");
        ensure!(world.machines().await?.is_empty(), "{:#?}", world.machines().await?);
        label(world, &namespace, "team=a").await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        access(world, Value::Null).await
    });
}

#[test]
fn hosts_below_a_namespaces_floor_are_not_used_whatever_the_job_says() {
    scenario(async |world| {
        let namespace = world.namespace("floor").await?;
        label(world, &namespace, "data=secret").await?;
        access(
            world,
            json!([
                { "namespaceSelector": { "matchExpressions": [{ "key": "data", "operator": "Exists" }] }, "minTrust": "Enterprise" },
                { "namespaceSelector": {} },
            ]),
        )
        .await?;
        let job =
            Job::new(&namespace, "train", 10, 5, "0.05").with(json!({ "placement": { "minTrust": "Community" } }));
        job.apply(world).await?;
        let message = job.condition(world, "Placed", "False", "NoOffer", SOON).await?;
        println!("{message}");
        let says = format!("lets jobs of namespace {namespace} run on hosts of trust Enterprise or higher only");
        ensure!(message.contains(&says), "{message}");
        ensure!(world.machines().await?.is_empty(), "{:#?}", world.machines().await?);
        // The first entry that selects it holds: without the label that is the second.
        label(world, &namespace, "data-").await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        access(world, Value::Null).await
    });
}

#[test]
fn namespaces_share_the_limit_of_the_entry_that_selects_them() {
    scenario(async |world| {
        let (one, two, other) =
            (world.namespace("one").await?, world.namespace("two").await?, world.namespace("other").await?);
        for namespace in [&one, &two] {
            label(world, namespace, "team=shared").await?;
        }
        let first = Job::new(&one, "first", 60, 10, "0.1");
        first.apply(world).await?;
        first.phase(world, JobPhase::Running, SOON).await?;
        let machine = world.stack.machines_of("first").await?.pop().context("a machine")?;
        let hourly = machine.spec.offers.first().context("an offer")?.reserve_per_hour;
        // Room for one machine and a half.
        let limit = (hourly + hourly.ratio(1, 2)).to_string();
        access(
            world,
            json!([
                { "namespaceSelector": { "matchLabels": { "team": "shared" } }, "limits": { "perHour": limit } },
                { "namespaceSelector": {} },
            ]),
        )
        .await?;
        let second = Job::new(&two, "second", 10, 5, "0.05");
        second.apply(world).await?;
        let message = second.condition(world, "Placed", "False", "LimitReached", SOON).await?;
        println!("{message}");
        ensure!(message.contains(&format!("is ${limit}, ${hourly} an hour are committed")), "{message}");
        // Who is selected by another entry is not held up by it.
        let free = Job::new(&other, "free", 10, 5, "0.05");
        free.apply(world).await?;
        free.phase(world, JobPhase::Complete, MINUTE).await?;
        let paid = world.machines().await?.len();
        ensure!(paid == 2, "{:#?}", world.machines().await?);
        first.phase(world, JobPhase::Complete, MINUTE).await?;
        second.phase(world, JobPhase::Complete, MINUTE).await?;
        access(world, Value::Null).await
    });
}
