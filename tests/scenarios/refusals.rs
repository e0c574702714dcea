//! What stands in the way is named in a condition, costs nothing, and is no obstacle any more once it is mended.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_harness::Launch;
use tradewind_harness::stack::NAMESPACE;

use crate::checks::finished_right;
use crate::golden::golden;
use crate::job::Job;
use crate::world::{SOON, VAST, World, operator_kubeconfig, scenario};

/// A short job.
fn short(namespace: &str, name: &str) -> Job {
    Job::new(namespace, name, 10, 5, "0.05")
}

async fn nothing_rented(world: &World) -> Result<()> {
    let machines = world.machines().await?;
    ensure!(machines.is_empty(), "rented before the obstacle was gone: {machines:#?}");
    Ok(())
}

/// Waits for the condition, checks that it names what it should and that nothing was rented.
async fn refused(world: &World, job: &Job, type_: &str, reason: &str, names: &[&str]) -> Result<()> {
    let message = job.condition(world, type_, "False", reason, SOON).await?;
    for name in names {
        ensure!(message.contains(name), "{reason} does not name {name}: {message}");
    }
    nothing_rented(world).await
}

/// The obstacle is gone: it goes on by itself.
async fn goes_on(world: &World, job: &Job) -> Result<()> {
    job.phase(world, JobPhase::Complete, SOON * 2).await?;
    finished_right(world, job).await?;
    Ok(())
}

async fn secret(world: &World, namespace: &str, name: &str, data: Value) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": namespace, "name": name }, "stringData": data,
    });
    world.stack.apply(&secret.to_string()).await?;
    Ok(())
}

fn keys(world: &World) -> Value {
    json!({
        "AWS_ACCESS_KEY_ID": world.stack.s3.access_key, "AWS_SECRET_ACCESS_KEY": world.stack.s3.secret_key,
        "AWS_ENDPOINT_URL": world.stack.s3.url(),
    })
}

#[test]
fn a_quota_without_room() {
    scenario(async |world| {
        let namespace = world.namespace("quota").await?;
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "namespace": namespace, "name": "none" },
            "spec": { "hard": { "pods": "0" } },
        });
        world.stack.apply(&quota.to_string()).await?;
        // A quota holds once it has been counted.
        let kubectl = world.stack.kubectl();
        let counted = "--for=jsonpath={.status.hard.pods}=0";
        kubectl.run(["wait", "-n", &namespace, "resourcequota/none", counted]).await?;
        let job = short(&namespace, "run");
        job.apply(world).await?;
        refused(world, &job, "Placed", "QuotaExceeded", &["exceeded quota: none", "tried again"]).await?;
        ensure!(job.now(world).await?.status.context("a status")?.phase == JobPhase::Waiting);
        kubectl.run(["delete", "resourcequota", "none", "-n", &namespace]).await?;
        goes_on(world, &job).await
    });
}

#[test]
fn a_pod_that_the_server_refuses() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let bad = short(&namespace, "pod").container(json!({ "imagePullPolicy": "Sometimes" }));
        bad.apply(world).await?;
        let server = "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\"";
        refused(world, &bad, "Accepted", "PodRefused", &[server]).await?;
        let good = short(&namespace, "pod").container(json!({ "imagePullPolicy": "Always" }));
        good.apply(world).await?;
        goes_on(world, &good).await
    });
}

#[test]
fn a_template_that_cannot_be_rented() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let volumes = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }]);
        let bad = short(&namespace, "volumes").with(json!({ "template": { "spec": { "volumes": volumes } } }));
        bad.apply(world).await?;
        refused(world, &bad, "Accepted", "NotRentable", &["volumes[0] is a persistentVolumeClaim"]).await?;
        short(&namespace, "volumes").with(json!({ "template": { "spec": { "volumes": [] } } })).apply(world).await?;
        goes_on(world, &bad).await
    });
}

#[test]
fn a_pattern_that_no_agent_could_go_by() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let good = short(&namespace, "pattern");
        let bad = short(&namespace, "pattern").with(json!({ "checkpoint": { "pattern": "step-[" } }));
        bad.apply(world).await?;
        refused(world, &bad, "Accepted", "InvalidCheckpoint", &["checkpoint.pattern \"step-[\" is no glob"]).await?;
        good.apply(world).await?;
        goes_on(world, &good).await
    });
}

#[test]
fn a_secret_or_key_of_the_bucket_that_is_missing() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let job = short(&namespace, "keys").with(json!({ "checkpoint": { "secretRef": { "name": "late" } } }));
        job.apply(world).await?;
        refused(world, &job, "Accepted", "SecretNotFound", &[&format!("{namespace}/late")]).await?;
        let mut some = keys(world);
        let key = some.as_object_mut().context("an object")?.remove("AWS_SECRET_ACCESS_KEY").context("the key")?;
        secret(world, &namespace, "late", some.clone()).await?;
        refused(world, &job, "Accepted", "SecretKeyMissing", &["late", "AWS_SECRET_ACCESS_KEY"]).await?;
        some["AWS_SECRET_ACCESS_KEY"] = key;
        secret(world, &namespace, "late", some).await?;
        goes_on(world, &job).await
    });
}

#[test]
fn a_secret_of_the_program_that_is_missing() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let job = short(&namespace, "env").container(json!({
            "env": [{ "name": "TRAIN_SECRET", "valueFrom": { "secretKeyRef": { "name": "hf", "key": "token" } } }],
        }));
        job.apply(world).await?;
        refused(world, &job, "Placed", "SecretNotFound", &[&format!("{namespace}/hf")]).await?;
        secret(world, &namespace, "hf", json!({ "other": "x" })).await?;
        refused(world, &job, "Placed", "SecretKeyMissing", &["hf", "token"]).await?;
        secret(world, &namespace, "hf", json!({ "token": "y" })).await?;
        goes_on(world, &job).await
    });
}

#[test]
fn a_bucket_that_is_missing() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let bucket = format!("late-{namespace}");
        let mut job = short(&namespace, "bucket");
        job.location = format!("s3://{bucket}/run/");
        let job = job.with(json!({ "checkpoint": { "to": format!("s3://{bucket}/run/") } }));
        job.apply(world).await?;
        refused(world, &job, "Accepted", "BucketNotFound", &[&bucket]).await?;
        world.stack.s3.create_bucket(&bucket)?;
        goes_on(world, &job).await
    });
}

#[test]
fn a_bucket_that_refuses_the_keys() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let mut wrong = keys(world);
        wrong["AWS_SECRET_ACCESS_KEY"] = "not-the-key-of-this-account".into();
        secret(world, &namespace, "wrong", wrong).await?;
        let job = short(&namespace, "denied").with(json!({ "checkpoint": { "secretRef": { "name": "wrong" } } }));
        job.apply(world).await?;
        refused(world, &job, "Accepted", "BucketDenied", &[&job.location]).await?;
        secret(world, &namespace, "wrong", keys(world)).await?;
        goes_on(world, &job).await
    });
}

#[test]
fn an_account_key_that_the_provider_refuses() {
    scenario(async |world| {
        let key = world.stack.sim.provider(VAST)?.api_key.clone();
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": "another-key-than-ours" })).await?;
        let wait = [
            "wait",
            "--for=jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}=KeyRefused",
            "twp/vast",
            "--timeout=30s",
        ];
        world.stack.kubectl().run(wait).await?;
        let namespace = world.namespace("refused").await?;
        let job = short(&namespace, "account");
        job.apply(world).await?;
        refused(world, &job, "Placed", "NoProvider", &[VAST, "key"]).await?;
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": key })).await?;
        goes_on(world, &job).await
    });
}

#[test]
fn an_operator_without_a_mailbox() {
    scenario(async |world| {
        world.stack.operator.stop().await?;
        let binary = tradewind_harness::Binaries::locate()?.operator;
        let launch = Launch::new("operator-without-mailbox", binary, world.stack.directory())
            .args(["run", "--namespace", NAMESPACE, "--metrics-listen", "127.0.0.1:0", "--lease-duration", "3s"])
            .arg("--allow-http-stores")
            .arg("--provider-url")
            .arg(format!("{VAST}={}", world.stack.provider_proxy(VAST)?.url()))
            .args(["--kubeconfig".as_ref(), operator_kubeconfig(&world.stack)?.as_os_str()]);
        let mut bare = tradewind_harness::Process::start(launch)?;
        let namespace = world.namespace("refused").await?;
        let job = short(&namespace, "mailbox");
        job.apply(world).await?;
        refused(world, &job, "Placed", "NoMailbox", &["--mailbox"]).await?;
        ensure!(bare.stop(SOON).await?.success());
        world.stack.operator.restart().await?;
        goes_on(world, &job).await
    });
}

#[test]
fn a_market_without_anything_that_fits() {
    scenario(async |world| {
        let namespace = world.namespace("refused").await?;
        let job = short(&namespace, "offers").with(json!({ "gpu": { "minMemory": "40Gi" } }));
        job.apply(world).await?;
        let message = job.condition(world, "Placed", "False", "NoOffer", SOON).await?;
        println!("{message}");
        nothing_rented(world).await?;
        ensure!(message.contains("gpu.minMemory"), "names no constraint: {message}");
        ensure!(message.contains("1001") || message.contains("RTX4090"), "names no nearest offer: {message}");
        golden(world, "no-offer", &job).await?;
        let job = short(&namespace, "offers").with(json!({ "gpu": { "minMemory": "20Gi" } }));
        job.apply(world).await?;
        goes_on(world, &job).await
    });
}
