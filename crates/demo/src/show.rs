//! The show from the first process to the last check.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::time::Instant;
use tradewind_api::TrainingJob;
use tradewind_harness::{Binaries, RunDir, Stack, StackOptions, Tools, project_root, stack};

use crate::{
    checks::{self, Evidence},
    gang::{self, Gang},
    image,
    outbid::{Outbid, Plan},
    screen::{Screen, Who},
    settings::Settings,
    story::{self, Story},
    weights::Committed,
};

/// Namespace of the demo's jobs.
pub const NAMESPACE: &str = "default";
/// The job that is outbid.
pub const MAIN: &str = "charlm";
/// The job that nobody disturbs.
pub const REFERENCE: &str = "charlm-reference";
/// The job with several workers, in the cluster.
pub const GANG: &str = "gang";
/// Manifest of [`MAIN`], below the project's root.
const MANIFEST: &str = "deploy/demo/training-job.yaml";
/// From the apply to the end of the last machine: three times what it takes.
const LIMIT: Duration = Duration::from_mins(3);
const TICK: Duration = Duration::from_millis(100);

/// Shows everything; true if every check holds. With `KEEP=1` it stays after that, and leaves only the verdict.
pub async fn run(settings: &Settings, screen: &Screen, verdict: &OnceLock<bool>) -> Result<bool> {
    let seed = settings.seed;
    screen.plain(&format!("tradewind demo, seed {seed} (DEMO_SEED={seed} repeats it)"));
    let tools = Tools::locate()?;
    let scratch = RunDir::new("image")?;
    let images = image::assemble(&tools, scratch.path())?;
    let mut stack = start(settings, screen, &images).await?;
    // They end before the stack.
    let nodes = gang::nodes(&stack, &images).await?;
    screen.say(
        Who::Demo,
        "ready: a real API server with three nodes without GPUs, an S3 server, a market of rented machines, the operator",
    );
    let outcome = perform(settings, screen, &mut stack, Gang::new(screen, &nodes, &images.gang)).await;
    if let (true, Ok(holds)) = (settings.keep, &outcome) {
        verdict.get_or_init(|| *holds);
        linger(screen, &stack, &tools);
        std::future::pending::<()>().await;
    }
    if !matches!(outcome, Ok(true)) {
        stack.keep_directory();
        screen.plain(&format!("logs are kept for a while in {}", stack.directory().display()));
    }
    outcome
}

async fn start(settings: &Settings, screen: &Screen, images: &image::Images) -> Result<Stack> {
    let path = project_root().join("deploy/demo/market.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut market: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    for provider in ["vast", "runpod"] {
        market["providers"][provider]["images"]["demo/charlm:1"]["root"] = images.charlm.display().to_string().into();
    }
    let mut options = StackOptions::new("demo", market);
    options.seed = settings.seed;
    // A dead node is noticed soon; so the operator's own must show more often that it lives.
    options.plane.node_grace = Some(gang::NODE_GRACE);
    let mut options = options.operator_flag("node-renew", "1s");
    let told = screen.clone();
    options.progress = stack::Progress::to(move |what| told.say(Who::Demo, &format!("starting: {what}")));
    Ok(Stack::start(options).await?)
}

async fn perform(settings: &Settings, screen: &Screen, stack: &mut Stack, mut gang: Gang<'_>) -> Result<bool> {
    let plan = prepare(settings, screen, stack).await?;
    let (mut story, mut outbid) = (Story::new(screen, MAIN), Outbid::new(plan));
    let mut committed = Committed::default();
    let (jobs, began) = watch(screen, stack, &mut story, &mut outbid, &mut committed, &mut gang).await?;
    screen.head(&format!("what is left after {:.0} s", began.elapsed().as_secs_f64()));
    look_back(screen, stack).await?;
    let evidence = Evidence {
        plan,
        misfortune: outbid.done.as_ref(),
        committed: &committed,
        logs: &story.logs,
        machines: &story.machines,
        jobs: &jobs,
    };
    screen.head("checks");
    let mut all = true;
    let mut checks = checks::all(stack, &evidence).await?;
    checks.extend(checks::of_gang(stack, &evidence, &mut gang).await);
    for check in checks {
        screen.check(check.holds, &check.text);
        all &= check.holds;
    }
    let verdict = if all { "every check holds" } else { "NOT every check holds" };
    screen.plain(&format!("\n{verdict}; {:.0} s in all", screen.seconds()));
    Ok(all)
}

/// What somebody looks at who was away: the jobs, one of them on one screen, and the end of what their programs wrote.
async fn look_back(screen: &Screen, stack: &Stack) -> Result<()> {
    screen.plain("$ kubectl get tj,twm,twp");
    screen.plain(stack.kubectl().run(["get", "tj,twm,twp"]).await?.trim_end());
    screen.plain(&format!("\n$ kubectl tradewind status {MAIN}"));
    let plugin = tokio::process::Command::new(Binaries::locate_plugin()?)
        .args(["status", MAIN])
        .env("KUBECONFIG", stack.plane.kubeconfig())
        .kill_on_drop(true)
        .output()
        .await
        .context("running the plug-in")?;
    screen.plain(
        String::from_utf8_lossy(if plugin.status.success() { &plugin.stdout } else { &plugin.stderr }).trim_end(),
    );
    for pod in [format!("{MAIN}-1"), format!("{GANG}-1-3")] {
        let of =
            if pod.starts_with(MAIN) { "the machine is gone, what it wrote is not" } else { "a worker of the gang" };
        screen.plain(&format!("\n$ kubectl logs {pod} --tail=4      # {of}"));
        let lines = stack.kubectl().run(["logs", &pod, "--tail=4"]).await;
        screen.plain(lines.unwrap_or_else(|error| error.to_string()).trim_end());
    }
    Ok(())
}

/// A manifest below the project's root.
pub fn manifest(path: &str) -> Result<Value> {
    let path = project_root().join(path);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", path.display()))
}

/// Shows the market and applies the manifests.
async fn prepare(settings: &Settings, screen: &Screen, stack: &Stack) -> Result<Plan> {
    let offers = story::offers(&stack.sim.call(http_get(), "/offers", None).await?);
    screen.say(Who::Market, &format!("{} offers:\n{}", offers.len(), offers.join("\n")));
    screen
        .say(Who::Demo, "$ kubectl create secret generic s3 --from-literal AWS_ACCESS_KEY_ID=... (the bucket's keys)");
    stack.apply(&stack.store_secret(NAMESPACE).to_string()).await?;
    let manifest = manifest(MANIFEST)?;
    let plan = Plan::seeded(settings.seed, argument(&manifest, "--steps=")?, argument(&manifest, "--save-every=")?);
    screen.say(
        Who::Demo,
        &format!(
            "the seed says: outbid at step {}, while the save of step {} is being uploaded",
            plan.step(),
            plan.save * plan.every
        ),
    );
    let files = ["deploy/samples/secret-access.yaml", MANIFEST, gang::MANIFEST];
    screen.say(Who::Demo, &format!("$ kubectl apply -f {}", files.join(" -f ")));
    let mut apply = vec!["apply".into()];
    apply.extend(files.iter().flat_map(|file| ["-f".into(), project_root().join(file).into_os_string()]));
    screen.say(Who::Demo, stack.kubectl().run(apply).await?.trim());
    stack.apply(&reference(manifest).to_string()).await?;
    screen.say(
        Who::Reference,
        "the same manifest with another name and location, on demand at another market (RunPod), where nobody can outbid it",
    );
    Ok(plan)
}

fn http_get() -> http::Method {
    http::Method::GET
}

/// The same job under another name, with a location of its own, on the other market and on a machine that nobody takes away.
fn reference(mut manifest: Value) -> Value {
    manifest["metadata"]["name"] = json!(REFERENCE);
    manifest["spec"]["checkpoint"]["to"] = json!(location(REFERENCE));
    let placement = &mut manifest["spec"]["placement"];
    placement["capacity"] = json!("OnDemand");
    placement["providers"] = json!(["runpod"]);
    if let Some(placement) = placement.as_object_mut() {
        // RunPod tells nothing of how reliable a host is, so a filter would leave all of it out.
        placement.remove("minReliability");
    }
    manifest
}

/// Where a job's checkpoints are.
pub fn location(job: &str) -> String {
    format!("s3://{}", place(job))
}

/// The same as `bucket/prefix/`.
pub fn place(job: &str) -> String {
    format!("{}/{job}/", stack::CHECKPOINT_BUCKET)
}

/// A number among the program's arguments.
pub fn argument(manifest: &Value, flag: &str) -> Result<u64> {
    let arguments = manifest.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array);
    let mut texts = arguments.into_iter().flatten().filter_map(Value::as_str);
    let number = texts.find_map(|text| text.strip_prefix(flag)?.parse().ok());
    number.with_context(|| format!("the demo's manifest has no argument {flag}"))
}

/// Tells the stories until all jobs have ended and every machine is gone.
async fn watch(
    screen: &Screen,
    stack: &Stack,
    story: &mut Story<'_>,
    outbid: &mut Outbid,
    committed: &mut Committed,
    gang: &mut Gang<'_>,
) -> Result<(Vec<TrainingJob>, Instant)> {
    let (mailbox, catalogue) = (stack.mailbox()?, stack.catalogue(&location(MAIN))?);
    let began = Instant::now();
    let mut struck = false;
    loop {
        let mut jobs = story.look(stack, &mailbox, NAMESPACE, &[MAIN, REFERENCE]).await?;
        jobs.push(gang.look(stack).await?);
        committed.look(&catalogue).await?;
        outbid.look(stack, story.current(), &place(MAIN)).await?;
        if let Some(misfortune) = outbid.done.as_ref().filter(|_| !struck) {
            struck = true;
            let upload = misfortune.upload.map_or_else(
                || "with no upload under way".to_owned(),
                |upload| format!("in the middle of an upload ({upload})"),
            );
            screen.say(
                Who::Demo,
                &format!(
                    "somebody bids more for machine {}, at step {}, {upload}",
                    misfortune.machine, misfortune.step
                ),
            );
        }
        let ended = jobs.iter().all(|job| job.status.as_ref().is_some_and(|s| s.phase.is_terminal()));
        if ended && story.present.is_empty() && stack.paid_machines().await?.is_empty() {
            return Ok((jobs, began));
        }
        if began.elapsed() > LIMIT {
            let mut states: Vec<String> = jobs.iter().map(stack::summary).collect();
            states.extend(story.present.iter().map(stack::summary_of_machine));
            states.extend(stack.paid_machines().await?.iter().map(|m| format!("machine {} still costs money", m.id)));
            bail!(
                "not over after {} s: {}; the end of the operator's log:\n{}",
                LIMIT.as_secs(),
                states.join("; "),
                stack.operator.process.tail(3000)
            );
        }
        tokio::time::sleep(TICK).await;
    }
}

/// What somebody may try while everything is left running.
fn linger(screen: &Screen, stack: &Stack, tools: &Tools) {
    let kubectl = tools.program("kubectl").ok();
    let plugin = Binaries::locate_plugin().ok();
    let directories = [&kubectl, &plugin].map(|program| program.as_deref().and_then(|p| p.parent()));
    let bin = directories.into_iter().flatten().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    screen.head("everything is left running; Ctrl-C ends it");
    screen.plain(&format!(
        "In another terminal:

  export KUBECONFIG={config} PATH={bin}:$PATH
  export AWS_ENDPOINT_URL={s3} AWS_REGION={region} AWS_ACCESS_KEY_ID={access} AWS_SECRET_ACCESS_KEY={secret}

  kubectl get tj,twm,twp -o wide                   what there is
  kubectl describe tj charlm                       how it went
  kubectl tradewind status charlm                  the same on one screen; also: cost, doctor
  kubectl tradewind logs gang --all-ranks          what the workers wrote
  kubectl get events                               what was told
  sed 's/name: charlm$/name: again/; s#ckpt/charlm/#ckpt/again/#' deploy/demo/training-job.yaml | kubectl apply -f -
  kubectl get tj -w                                once more, under another name
  curl {sim}/machines                              the market's books
  curl -d '{{\"do\": \"outbid\"}}' {sim}/machines/vast/ID     bid more for a running machine
  aws s3 ls --recursive s3://ckpt/                 checkpoints, if the AWS command line is installed

Logs are in {logs}",
        config = stack.plane.kubeconfig().display(),
        s3 = stack.s3.url(),
        region = tradewind_harness::S3::REGION,
        access = stack.s3.access_key,
        secret = stack.s3.secret_key,
        sim = stack.sim.control_url(),
        logs = stack.directory().display(),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_jobs_run_the_same_commands() {
        let text = std::fs::read_to_string(project_root().join("deploy/demo/training-job.yaml")).unwrap();
        let manifest: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(manifest["metadata"]["name"], MAIN);
        assert_eq!(manifest["spec"]["checkpoint"]["to"], location(MAIN));
        assert_eq!(argument(&manifest, "--steps=").unwrap() % argument(&manifest, "--save-every=").unwrap(), 0);
        let other = reference(manifest.clone());
        assert_eq!(other["spec"]["template"], manifest["spec"]["template"]);
        assert_ne!(other["spec"]["checkpoint"]["to"], manifest["spec"]["checkpoint"]["to"]);
    }
}
