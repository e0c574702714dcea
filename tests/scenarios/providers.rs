//! What befalls an account: deleted with what runs on it, its key deleted, refused or out of credit, many machines lost at once, and its books.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use tradewind_api::Provider;
use tradewind_api::conditions::condition;
use tradewind_api::training_job::JobPhase;
use tradewind_core::Money;
use tradewind_harness::stack::NAMESPACE;

use crate::checks::finished_right;
use crate::golden::{golden, golden_provider};
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);
const SECRET: &str = "vast-credentials";

async fn provider(world: &World) -> Result<Provider, String> {
    Api::<Provider>::all(world.stack.client()).get(VAST).await.map_err(|e| e.to_string())
}

/// Waits until a condition of the Provider has this status and reason; returns its message.
async fn condition_is(world: &World, type_: &str, status: &str, reason: &str) -> Result<String> {
    let look = || async {
        let conditions = provider(world).await?.status.map(|s| s.conditions).unwrap_or_default();
        match condition(&conditions, type_) {
            Some(c) if c.status == status && c.reason == reason => Ok(c.message.clone()),
            found => Err(format!("{found:?}")),
        }
    };
    Ok(world.stack.eventually(&format!("{type_}={status}/{reason} of the Provider"), SOON, look).await?)
}

async fn gone(world: &World, what: &[&str]) -> Result<()> {
    let look = || async {
        let found = world.stack.kubectl().run(["get", "-o", "name", "--ignore-not-found"].iter().chain(what)).await;
        let found = found.map_err(|e| e.to_string())?;
        if found.trim().is_empty() { Ok(()) } else { Err(format!("{} is still there", found.trim())) }
    };
    Ok(world.stack.eventually(&format!("the end of {}", what.join(" ")), SOON, look).await?)
}

const THE_PROVIDER: &[&str] = &["twp", VAST];
const THE_SECRET: &[&str] = &["secret", SECRET, "-n", NAMESPACE];

async fn delete(world: &World, what: &[&str]) -> Result<()> {
    world.stack.kubectl().run(["delete", "--wait=false"].iter().chain(what)).await?;
    Ok(())
}

/// As the administrator had applied them.
struct Account {
    provider: Value,
    secret: Value,
}

impl Account {
    async fn of(world: &World) -> Result<Self> {
        let kubectl = world.stack.kubectl();
        let bare = |mut object: Value| {
            let name = object["metadata"]["name"].take();
            let namespace = object["metadata"]["namespace"].take();
            object["metadata"] = json!({ "name": name });
            if namespace.is_string() {
                object["metadata"]["namespace"] = namespace;
            }
            object.as_object_mut().expect("an object").remove("status");
            object
        };
        Ok(Self {
            provider: bare(kubectl.get_json(THE_PROVIDER).await?),
            secret: bare(kubectl.get_json(THE_SECRET).await?),
        })
    }

    async fn apply(&self, world: &World) -> Result<()> {
        world.stack.apply(&self.secret.to_string()).await?;
        world.stack.apply(&self.provider.to_string()).await?;
        condition_is(world, "Ready", "True", "AccountReady").await?;
        Ok(())
    }
}

/// The job's one machine runs.
async fn runs(world: &World, namespace: &str, name: &str, steps: u64) -> Result<Job> {
    let job = Job::new(namespace, name, steps, 10, "0.1");
    job.apply(world).await?;
    job.phase(world, JobPhase::Running, SOON).await?;
    Ok(job)
}

async fn nothing_new_for(world: &World, job: &Job, says: &str) -> Result<()> {
    job.apply(world).await?;
    let message = job.condition(world, "Placed", "False", "NoProvider", SOON).await?;
    ensure!(message.contains(says), "{message}");
    ensure!(world.machines().await?.iter().filter(|m| m.paid).count() <= 1, "{:#?}", world.machines().await?);
    Ok(())
}

#[test]
fn a_provider_deleted_while_a_machine_runs_waits_for_its_end() {
    scenario(async |world| {
        let account = Account::of(world).await?;
        let namespace = world.namespace("provider").await?;
        let job = runs(world, &namespace, "run", 120).await?;
        delete(world, THE_PROVIDER).await?;
        delete(world, THE_SECRET).await?;
        let message = condition_is(world, "Ready", "False", "Deleting").await?;
        println!("{message}");
        let of = format!("of job {namespace}/run to be gone: delete or finish the job to end it");
        ensure!(message.starts_with("deleted; waits for 1 machine (run-") && message.contains(&of), "{message}");
        let other = Job::new(&namespace, "other", 10, 5, "0.05");
        nothing_new_for(world, &other, "vast: deleted; waits for 1 machine").await?;
        // Nothing was lost: the job ends on the machine that it had.
        let done = job.phase(world, JobPhase::Complete, MINUTE).await?;
        ensure!(done.status.is_some_and(|s| s.attempt == Some(0) && s.preemptions == 0), "another attempt");
        gone(world, THE_PROVIDER).await?;
        gone(world, THE_SECRET).await?;
        finished_right(world, &job).await?;
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        other.condition(world, "Placed", "False", "NoProvider", SOON).await?;
        account.apply(world).await?;
        other.phase(world, JobPhase::Complete, MINUTE).await?;
        Ok(())
    });
}

#[test]
fn a_secret_deleted_while_a_machine_runs_stays_until_it_is_ended() {
    scenario(async |world| {
        let account = Account::of(world).await?;
        let namespace = world.namespace("secret").await?;
        let job = runs(world, &namespace, "run", 2000).await?;
        delete(world, THE_SECRET).await?;
        let message = condition_is(world, "Ready", "False", "Deleting").await?;
        println!("{message}");
        ensure!(
            message.contains("Secret tradewind-system/vast-credentials with its key is being deleted")
                && message.contains("it waits for 1 machine (run-"),
            "{message}"
        );
        nothing_new_for(world, &Job::new(&namespace, "other", 10, 5, "0.05"), "is being deleted").await?;
        job.delete(world).await?;
        gone(world, THE_SECRET).await?;
        world.stack.wait_all_gone(SOON).await?;
        condition_is(world, "Ready", "False", "SecretNotFound").await?;
        account.apply(world).await?;
        let other = Job::new(&namespace, "other", 10, 5, "0.05");
        other.phase(world, JobPhase::Complete, MINUTE).await?;
        let held = world.stack.kubectl().get_json(THE_SECRET).await?;
        ensure!(held["metadata"]["finalizers"] == json!(["provider.tradewind.dev/vast"]), "{held}");
        Ok(())
    });
}

#[test]
fn an_operator_that_dies_between_finds_the_key_and_ends_what_ran() {
    scenario(async |world| {
        let account = Account::of(world).await?;
        let namespace = world.namespace("restart").await?;
        let job = runs(world, &namespace, "run", 2000).await?;
        world.stack.operator.kill()?;
        delete(world, THE_SECRET).await?;
        delete(world, THE_PROVIDER).await?;
        // The dead leader's Lease would only make the successor wait.
        let leases: Api<Lease> = Api::namespaced(world.stack.client(), NAMESPACE);
        for lease in leases.list(&ListParams::default()).await? {
            leases.delete(&lease.metadata.name.context("a name")?, &DeleteParams::default()).await?;
        }
        world.stack.operator.restart().await?;
        condition_is(world, "Ready", "False", "Deleting").await?;
        let machine = world.running_machine(None).await?;
        ensure!(machine.paid, "{machine:#?}");
        job.delete(world).await?;
        world.stack.wait_all_gone(SOON).await?;
        gone(world, THE_PROVIDER).await?;
        gone(world, THE_SECRET).await?;
        ensure!(world.machines().await?.len() == 1, "{:#?}", world.machines().await?);
        account.apply(world).await
    });
}

#[test]
fn another_secret_is_held_before_the_old_one_is_let_go() {
    scenario(async |world| {
        let account = Account::of(world).await?;
        let namespace = world.namespace("rotated").await?;
        let job = runs(world, &namespace, "run", 2000).await?;
        let mut other = account.secret.clone();
        other["metadata"]["name"] = "vast-next".into();
        world.stack.apply(&other.to_string()).await?;
        let patch = json!({ "spec": { "credentialsSecretRef": { "name": "vast-next" } } }).to_string();
        world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await?;
        let finalizers = async |name: &str| {
            let secret = world.stack.kubectl().get_json(["secret", name, "-n", NAMESPACE]).await;
            secret.map(|s| s["metadata"]["finalizers"].clone()).map_err(|e| e.to_string())
        };
        let look = || async {
            let (old, new) = (finalizers(SECRET).await?, finalizers("vast-next").await?);
            if old.is_null() && new.is_array() { Ok(()) } else { Err(format!("old {old}, new {new}")) }
        };
        world.stack.eventually("the finaliser on the new Secret only", SOON, look).await?;
        delete(world, THE_SECRET).await?;
        gone(world, THE_SECRET).await?;
        job.delete(world).await?;
        world.stack.wait_all_gone(SOON).await?;
        account.apply(world).await?;
        let next = ["secret", "vast-next", "-n", NAMESPACE];
        delete(world, &next).await?;
        gone(world, &next).await
    });
}

#[test]
fn an_account_in_trouble_rents_nothing_and_what_runs_is_ended() {
    scenario(async |world| {
        let namespace = world.namespace("trouble").await?;
        // The market does not tell what is there, but takes orders to end.
        let job = runs(world, &namespace, "away", 2000).await?;
        world.stack.sim.add_fault(&json!({ "op": "list", "when": "before", "status": 400, "times": 100_000 })).await?;
        condition_is(world, "Ready", "False", "ProviderUnavailable").await?;
        let other = Job::new(&namespace, "other", 10, 5, "0.05");
        nothing_new_for(world, &other, "nothing new is rented meanwhile").await?;
        job.delete(world).await?;
        world.stack.wait_all_gone(SOON).await?;
        other.delete(world).await?;
        world.stack.sim.clear_faults().await?;
        condition_is(world, "Ready", "True", "AccountReady").await?;

        // The key is refused: what runs goes on, and is ended once the key counts again.
        let job = runs(world, &namespace, "refused", 2000).await?;
        let key = world.stack.sim.provider(VAST)?.api_key.clone();
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": "another-key-than-ours" })).await?;
        condition_is(world, "Ready", "False", "KeyRefused").await?;
        nothing_new_for(world, &other, "key").await?;
        golden_provider(world, "key-revoked-provider").await?;
        golden(world, "key-revoked", &other).await?;
        job.delete(world).await?;
        other.delete(world).await?;
        ensure!(world.machines().await?.iter().filter(|m| m.paid).count() == 1, "{:#?}", world.machines().await?);
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": key })).await?;
        world.stack.wait_all_gone(SOON).await?;

        // Without credit the market stops what runs; it is ended all the same, and the job goes on when there is credit.
        let job = runs(world, &namespace, "broke", 40).await?;
        world.stack.sim.patch_provider(VAST, &json!({ "credit": 0 })).await?;
        condition_is(world, "Ready", "False", "OutOfCredit").await?;
        let look = || async {
            let paid = world.stack.paid_machines().await.map_err(|e| e.to_string())?;
            if paid.is_empty() { Ok(()) } else { Err(format!("{paid:?}")) }
        };
        world.stack.eventually("the end of what was stopped", SOON, look).await?;
        // In its condition, or in the claim that it had made before the credit was looked at.
        let says = |job: &tradewind_api::TrainingJob| {
            let message = job.status.as_ref().map(|s| s.message.clone()).unwrap_or_default();
            if message.contains("the account has no credit") { Ok(()) } else { Err(message) }
        };
        job.until(world, "a message about credit", SOON, says).await?;
        world.stack.sim.patch_provider(VAST, &json!({ "credit": 50 })).await?;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        Ok(())
    });
}

#[test]
fn many_machines_lost_at_once_are_the_accounts_trouble() {
    scenario(async |world| {
        let namespace = world.namespace("burst").await?;
        let mut jobs = Vec::new();
        for name in ["a", "b", "c"] {
            jobs.push(runs(world, &namespace, name, 60).await?);
        }
        for machine in world.machines().await?.iter().filter(|m| m.paid) {
            world.stack.sim.act(VAST, &machine.id, "outbid", &json!({})).await?;
        }
        let message = condition_is(world, "LossesAtOnce", "True", "LossesAtOnce").await?;
        println!("{message}");
        ensure!(message.starts_with("3 of 3 machines on this account were taken away"), "{message}");
        ensure!(condition_is(world, "Ready", "False", "LossesAtOnce").await? == message);
        let rented = world.machines().await?.len();
        ensure!(rented == 3, "rented at once again: {:#?}", world.machines().await?);
        condition_is(world, "Ready", "True", "AccountReady").await?;
        for job in &jobs {
            job.phase(world, JobPhase::Complete, MINUTE).await?;
        }
        let told = world.stack.events_about("default", VAST).await?;
        let told: Vec<_> = told.iter().filter(|(reason, _)| reason == "LossesAtOnce").collect();
        ensure!(told.len() == 1, "{told:?}");
        Ok(())
    });
}

/// Dollars in the books, by all months.
async fn booked(world: &World) -> Result<Money, String> {
    let status = provider(world).await?.status.unwrap_or_default();
    let sum = |list: &[tradewind_api::provider::Spent]| list.iter().map(|spent| spent.dollars).sum::<Money>();
    let (days, months) = (sum(&status.spend.days), sum(&status.spend.months));
    if days == months { Ok(days) } else { Err(format!("{:?}", status.spend)) }
}

async fn per_day(world: &World, dollars: Money) -> Result<()> {
    let patch = json!({ "spec": { "limits": { "perDay": dollars.to_string() } } }).to_string();
    world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await?;
    Ok(())
}

#[test]
fn the_daily_limit_counts_machines_whose_object_is_gone() {
    scenario(async |world| {
        let namespace = world.namespace("books").await?;
        let (before, limit) = (booked(world).await.map_err(anyhow::Error::msg)?, {
            let provider = provider(world).await.map_err(anyhow::Error::msg)?;
            provider.spec.limits.per_day
        });
        let job = runs(world, &namespace, "first", 20).await?;
        let machine = world.stack.machines_of("first").await?.pop().context("a machine")?;
        let hourly = machine.spec.offers.first().context("an offer")?.reserve_per_hour;
        job.phase(world, JobPhase::Complete, MINUTE).await?;
        let done = finished_right(world, &job).await?;
        let cost = done.status.context("a status")?.cost.total;
        let after = booked(world).await.map_err(anyhow::Error::msg)?;
        ensure!(cost > Money::ZERO && after - before == cost, "{before} and {cost} became {after}");
        // Room for an hour of any machine, but for what was spent already.
        let dearest = hourly.times(3);
        per_day(world, dearest).await?;
        let fits = Job::new(&namespace, "fits", 10, 5, "0.05");
        fits.apply(world).await?;
        fits.phase(world, JobPhase::Complete, MINUTE).await?;
        world.all_gone().await?;
        let spent = booked(world).await.map_err(anyhow::Error::msg)?;
        per_day(world, hourly + Money::from_micros(spent.micros() / 2)).await?;
        let late = Job::new(&namespace, "late", 10, 5, "0.05");
        late.apply(world).await?;
        let says = |job: &tradewind_api::TrainingJob| {
            let message = job.status.as_ref().map(|s| s.message.clone()).unwrap_or_default();
            if message.contains("limits.perDay") { Ok(message) } else { Err(message) }
        };
        let message = late.until(world, "the ledger's refusal", SOON, says).await?;
        println!("{message}");
        ensure!(message.contains(&format!("${spent} were spent in the last 24 hours")), "{message}");
        per_day(world, limit).await?;
        late.phase(world, JobPhase::Complete, MINUTE).await?;
        Ok(())
    });
}

#[test]
fn the_markets_own_bill_is_compared_machine_by_machine() {
    scenario(async |world| {
        let namespace = world.namespace("audit").await?;
        let settled = async || {
            let look = || async {
                let audit = provider(world).await?.status.unwrap_or_default().audit;
                if audit.pending.is_empty() { Ok(audit) } else { Err(format!("{audit:?}")) }
            };
            world.stack.eventually("the end of the comparison", SOON, look).await
        };
        let before = settled().await?;
        // The market rounds each row to a tenth of a cent: machines so dear that a second of theirs is more than that.
        let limits = provider(world).await.map_err(anyhow::Error::msg)?.spec.limits;
        let set = async |limits: Value| {
            let patch = json!({ "spec": { "limits": limits } }).to_string();
            world.stack.kubectl().run(["patch", "twp", VAST, "--type=merge", "-p", &patch]).await
        };
        set(json!({ "perHour": "1000", "perDay": "1000" })).await?;
        for offer in 1001..=1006 {
            let dear = json!({ "price": 40.0, "bid": 20.0 });
            world.stack.sim.patch_offer(VAST, &offer.to_string(), &dear).await?;
        }
        tokio::time::sleep(crate::world::OFFERS_MAX_AGE).await;
        for name in ["a", "b"] {
            let job = Job::new(&namespace, name, 30, 10, "0.1");
            job.apply(world).await?;
            job.phase(world, JobPhase::Complete, MINUTE).await?;
        }
        world.all_gone().await?;
        let audit = settled().await?;
        let machines = world.machines().await?;
        ensure!(audit.machines - before.machines == 2 && machines.len() == 2, "{audit:?} after {before:?}");
        let bill: i64 = machines.iter().map(|m| m.cost_micros).sum();
        // The market rounds each row to a tenth of a cent.
        let billed = (audit.billed - before.billed).micros();
        ensure!(bill > 20_000 && (billed - bill).abs() <= 1000 * 2, "{billed} of {bill}");
        let second: i64 = machines.iter().map(|m| m.price_per_hour_micros / 3600 + 4 + 500).sum();
        let off = (audit.difference - before.difference).micros();
        println!("the market billed ${}, ours ${}: {off} micro-dollars off", audit.billed, audit.ours);
        ensure!(off.abs() <= second, "{off} off, {second} are allowed: {audit:?}");
        let wide = world.stack.kubectl().run(["get", "twp", "-o", "wide"]).await?;
        ensure!(wide.contains("BILLED") && wide.contains(&audit.billed.to_string()), "{wide}");
        set(serde_json::to_value(limits)?).await?;
        Ok(())
    });
}
