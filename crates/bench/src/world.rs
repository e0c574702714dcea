//! What the measurements run in: a market, and jobs whose program is a loop in a shell.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tradewind_api::{TrainingJob, training_job::JobPhase};
use tradewind_harness::{Stack, StackOptions};

/// The account of the market.
pub const ACCOUNT: &str = "vast";
/// Nothing here takes longer unless something is wrong.
pub const SOON: Duration = Duration::from_mins(1);
/// Lowest winning bid of the first offer in micro-dollars an hour; each further one costs [`STEP`] more.
const FIRST_BID: u32 = 100_000;
const STEP: u32 = 2_000;
/// First offer.
const FIRST_OFFER: u32 = 1001;
/// Offers of the same quality.
const OFFERS: u32 = 24;

/// Options of a stack with the market, the audit log and recording proxies.
pub fn options(label: &str) -> StackOptions {
    let offer = |n: u32| {
        json!({
            "id": FIRST_OFFER + n, "gpu_name": "RTX 4090", "dph_base": 0.9, "min_bid": dollars(bid(n)),
            "geolocation": "Norway, NO", "hosting_type": 1, "reliability": 0.995, "sim": { "boot": 0 },
        })
    };
    let market = json!({ "providers": { ACCOUNT: {
        "kind": "vast", "apiKey": "key-of-the-measurements", "credit": 1000, "images": { "bench:1": { "pull": 0 } },
        "offers": (0..OFFERS).map(offer).collect::<Vec<_>>(),
    } } });
    let mut options = StackOptions::new(label, market);
    options.plane.audit = true;
    options.provider_proxies = true;
    options.limits = ("1000".into(), "10000".into());
    options
}

fn bid(n: u32) -> u32 {
    FIRST_BID + n * STEP
}

fn dollars(micros: u32) -> f64 {
    f64::from(micros) / 1e6
}

/// Brings the lowest winning bid of an offer back to what it was.
pub async fn calm(stack: &Stack, offer: &Value) -> Result<()> {
    let id = offer.as_str().map_or_else(|| offer.to_string(), str::to_owned);
    let n = id.parse::<u32>()?.saturating_sub(FIRST_OFFER);
    stack.sim.patch_offer(ACCOUNT, &id, &json!({ "bid": dollars(bid(n)) })).await?;
    Ok(())
}

/// A job that runs `script` on a rented machine.
pub async fn apply(stack: &Stack, namespace: &str, name: &str, script: &str) -> Result<()> {
    let manifest = json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "gpu": { "count": 1, "models": ["RTX4090"] },
            "template": { "spec": { "containers": [{
                "name": "train", "image": "bench:1", "command": ["/bin/sh", "-c", script],
            }] } },
            "checkpoint": {
                "path": "ckpt", "pattern": "step-{step}.txt", "to": format!("s3://ckpt/{namespace}/{name}/"),
                "secretRef": { "name": "s3" }, "interval": "1s",
            },
            "placement": { "inCluster": "Never" },
        },
    });
    stack.apply(&manifest.to_string()).await?;
    Ok(())
}

/// Deletes a job and waits until nothing of it is left.
pub async fn delete(stack: &Stack, namespace: &str, name: &str) -> Result<()> {
    stack.kubectl().run(["delete", "tj", name, "-n", namespace, "--timeout=60s"]).await?;
    Ok(stack.wait_all_gone(SOON).await?)
}

/// A loop of so many steps with a pause after each, that saves a few bytes every so many.
pub fn steps(steps: u32, every: u32, pause: &str) -> String {
    format!(
        "mkdir -p ckpt; s=0; while [ $s -lt {steps} ]; do s=$((s+1)); echo \"step $s/{steps} loss 0.5\"; \
         if [ $((s % {every})) = 0 ]; then n=ckpt/step-$(printf %08d $s).txt; echo $s >$n.tmp; mv $n.tmp $n; fi; \
         sleep {pause}; done"
    )
}

/// Waits until the program of this attempt runs.
pub async fn running(stack: &Stack, namespace: &str, name: &str, attempt: i64) -> Result<TrainingJob> {
    let what = format!("the program of attempt {attempt}");
    let look = |job: &TrainingJob| match job.status.as_ref() {
        Some(s) if s.phase == JobPhase::Running && s.attempt == Some(attempt) => Ok(job.clone()),
        Some(s) => Err(format!("{:?} in attempt {:?}", s.phase, s.attempt)),
        None => Err("no status".to_owned()),
    };
    Ok(stack.wait_job(namespace, name, &what, SOON, look).await?)
}

/// Prints what machines have printed that still cost money: somebody has to find out why a measurement failed.
pub async fn tell_machines(stack: &Stack) {
    for machine in stack.paid_machines().await.unwrap_or_default() {
        let log =
            machine.dir.as_ref().and_then(|dir| std::fs::read_to_string(dir.join("log")).ok()).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(20).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        eprintln!("machine {} {:?}, running {}\n  {}", machine.id, machine.status, machine.running, end.join("\n  "));
    }
}
