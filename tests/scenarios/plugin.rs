//! `kubectl tradewind` as a user runs it: the real plug-in, found by the real kubectl, against what runs. What it prints is kept in
//! `goldens/plugin-*.txt`.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde_json::{Value, json};
use tokio::process::Command;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::{Binaries, Tools, or_skip};

use crate::golden::{same, without_chance};
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

/// What a call printed and how it ended.
struct Answer {
    out: String,
    err: String,
    code: i32,
}

/// kubectl, which finds the plug-in beside it.
struct Plugin<'a> {
    world: &'a World,
    namespace: String,
    path: String,
}

impl<'a> Plugin<'a> {
    fn new(world: &'a World, namespace: &str, plugin: &std::path::Path) -> Result<Self> {
        let kubectl = Tools::locate()?.program("kubectl")?;
        let directories =
            [kubectl.parent(), plugin.parent()].map(|d| d.map(|d| d.display().to_string()).unwrap_or_default());
        Ok(Self { world, namespace: namespace.to_owned(), path: directories.join(":") })
    }

    fn command(&self, arguments: &str) -> Result<Command> {
        let mut command = Command::new(Tools::locate()?.program("kubectl")?);
        command
            .arg("tradewind")
            .args(arguments.split_whitespace())
            .args(["-n", &self.namespace])
            .env_clear()
            .env("PATH", &self.path)
            .env("KUBECONFIG", self.world.stack.plane.kubeconfig())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    async fn run(&self, arguments: &str) -> Result<Answer> {
        let output =
            tokio::time::timeout(SOON * 3, self.command(arguments)?.output()).await.context(arguments.to_owned())??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code().unwrap_or(-1) })
    }

    /// Compares what it prints, with its exit code, as often as it takes.
    async fn golden(&self, name: &str, arguments: &str, keep: impl Fn(&str) -> String) -> Result<()> {
        same(self.world, name, async || {
            let answer = self.run(arguments).await?;
            ensure!(!answer.out.contains('\u{1b}'), "colours without a terminal");
            println!("$ kubectl tradewind {arguments}\n{}{}exit code {}", answer.out, answer.err, answer.code);
            let text = format!(
                "$ kubectl tradewind {arguments}\n{}{}exit code {}\n",
                keep(&answer.out),
                answer.err,
                answer.code
            );
            Ok(plain(&text, &self.namespace))
        })
        .await
    }

    async fn says(&self, arguments: &str, code: i32, parts: &[&str]) -> Result<String> {
        let answer = self.run(arguments).await?;
        let text = format!("{}{}", answer.out, answer.err);
        ensure!(answer.code == code, "{arguments}: exit code {}, not {code}:\n{text}", answer.code);
        for part in parts {
            ensure!(text.contains(part), "{arguments}: {part} is missing in:\n{text}");
        }
        Ok(text)
    }

    async fn json(&self, arguments: &str) -> Result<Value> {
        let answer = self.run(&format!("{arguments} -o json")).await?;
        serde_json::from_str(&answer.out).with_context(|| format!("{}{}", answer.out, answer.err))
    }
}

/// Without what differs each time; lines that are the same then stand there once.
pub fn plain(text: &str, namespace: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
        [
            (r"\b\d+(s|m|h|d)(\d+(s|m|h))?\b", "<age>"),
            (r"\(\d+ %\)", "(N %)"),
            (r"N steps/\w+", "N steps/<time>"),
            (r"\b(N|\d+) (B|KiB|MiB)\b", "N bytes"),
            (r", took <age>", ""),
            (r"(, |; )?<age> at this price", "$1<age> at this price"),
            (r" {2,}", "  "),
            (r"(zero|\d+)  (\d+|<none>)  <age> ago", "<step>  <step>  <age> ago"),
            (r"\S+-<id> leads", "<replica> leads"),
            (r"\btradewind-[0-9a-z]{8} is", "<node> is"),
            (r"the agent [0-9a-f]{12}", "the agent <sha256>"),
            (r"all \d+ things", "all N things"),
            (r"ready, \d+ machines?", "ready, N machines"),
            (r"^(vast|sum)(  \d+)?  .*\$N", "$1 ... $$N"),
            (r"\(newest 8 of \d+\)", "(newest)"),
        ]
        .into_iter()
        .map(|(pattern, to)| (Regex::new(pattern).expect("a regular expression"), to))
        .collect()
    });
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut line = without_chance(line, namespace);
        for (pattern, to) in RULES.iter() {
            line = pattern.replace_all(&line, *to).into_owned();
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() || !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

fn whole(text: &str) -> String {
    text.to_owned()
}

fn found() -> Option<PathBuf> {
    or_skip(Binaries::locate_plugin())
}

#[test]
fn a_user_follows_jobs_from_start_to_end() {
    let Some(plugin) = found() else { return };
    scenario(async |world| {
        let ns = world.namespace("plugin").await?;
        let tradewind = Plugin::new(world, &ns, &plugin)?;
        tradewind
            .says("status my-run", 1, &["there is no TrainingJob my-run in namespace", "has no TrainingJob at all"])
            .await?;
        tradewind.says("cost", 0, &["No TrainingJobs found.", "PROVIDER"]).await?;

        let long =
            Job::new(&ns, "my-run", 100_000, 100, "0.1").with(json!({ "budget": { "total": "10", "perHour": "1" } }));
        long.apply(world).await?;
        long.saved(world, 100, SOON * 2).await?;
        tradewind.golden("plugin-status-running", "status my-run", whole).await?;
        tradewind.says("status my-rnu", 1, &["did you mean my-run?"]).await?;
        tradewind.says("status my-run --context nowhere", 2, &["error: the kubeconfig cannot be used"]).await?;
        tradewind
            .says("logs my-run --attempt 7", 1, &["attempt 7 has no Pod any more; these still have one: 0"])
            .await?;
        tradewind.says("logs my-run -o yaml", 2, &["logs are lines"]).await?;
        tradewind.says("logs my-run --tail 1", 0, &["step "]).await?;
        tradewind.says("frobnicate", 2, &["unrecognized subcommand", "Usage: kubectl tradewind"]).await?;

        let first = world.running_machine(None).await?;
        world.stack.sim.act(VAST, &first.id, "outbid", &json!({})).await?;
        world.running_machine(Some(&first.id)).await?;
        let again = |job: &tradewind_api::TrainingJob| match job.status.as_ref() {
            Some(s) if s.phase == JobPhase::Running && s.preemptions == 1 && s.cost.settled.micros() > 0 => Ok(()),
            other => Err(format!("{:?}", other.map(|s| (s.phase, s.preemptions)))),
        };
        long.until(world, "the second machine", SOON, again).await?;
        // Which of its events are the newest depends on how fast it is.
        let before_events = |text: &str| text.split("\nEvents").next().unwrap_or_default().to_owned();
        tradewind.golden("plugin-status-lost", "status my-run", before_events).await?;
        let view = tradewind.json("status my-run").await?;
        ensure!(view["phase"] == "Running" && view["history"][0]["ended"] == "Preempted", "{view:#}");
        ensure!(view["progress"]["stepsPerHour"].as_i64().is_some_and(|rate| rate > 0), "{view:#}");

        let short = Job::new(&ns, "short", 40, 40, "0.05");
        short.apply(world).await?;
        // It ends by itself with the job, and has shown it on its way.
        let watched = tradewind.says("status short --watch", 0, &["short  Complete"]).await?;
        ensure!(
            watched.matches("\nEvents").count() + watched.matches("nowhere now").count() > 1,
            "one screen only:\n{watched}"
        );
        world
            .stack
            .eventually("one machine", SOON, || async {
                let paid = world.machines().await.map_err(|e| e.to_string())?.iter().filter(|m| m.paid).count();
                if paid == 1 { Ok(()) } else { Err(format!("{paid} are paid")) }
            })
            .await?;
        tradewind.golden("plugin-status-complete", "status short", whole).await?;
        // Its machine is gone, what the program wrote is not.
        tradewind.golden("plugin-logs", "logs short", whole).await?;
        let last = tradewind.json("logs short --tail 1").await?;
        ensure!(last["pod"] == "short-0" && last["attempt"] == 0 && last["rank"] == 0, "{last:#}");
        tradewind.golden("plugin-cost", "cost", whole).await?;
        tradewind.says("cost -A", 0, &["NAMESPACE", &ns, "my-run", "short"]).await?;
        let cost = tradewind.json("cost short").await?;
        ensure!(
            cost["jobs"].as_array().is_some_and(|jobs| jobs.len() == 1 && jobs[0]["phase"] == "Complete"),
            "{cost:#}"
        );
        long.delete(world).await?;
        short.delete(world).await
    });
}

#[test]
fn a_doctor_names_what_is_wrong_and_the_command_that_mends_it() {
    let Some(plugin) = found() else { return };
    scenario(async |world| {
        let ns = world.namespace("plugin").await?;
        let doctor = Plugin::new(world, &ns, &plugin)?;
        let job = Job::new(&ns, "my-run", 100_000, 100, "0.1").container(json!({
            "env": [{ "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "hub", "key": "token", "optional": false } } }],
        }));
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": ns, "name": "hub" }, "stringData": { "token": "hunter2" } });
        world.stack.apply(&secret.to_string()).await?;
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        doctor.golden("plugin-doctor-fine", "doctor --for my-run", without_agent_image).await?;

        // Three things at once: the account's key, the operator's right to read Secrets here, a key of a Secret.
        let key = world.stack.sim.provider(VAST)?.api_key.clone();
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": "another-key-than-ours" })).await?;
        world.stack.kubectl().run(["delete", "rolebinding", "tradewind-secret-reader", "-n", &ns]).await?;
        let other = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": ns, "name": "hub" }, "data": { "token": null } });
        world.stack.kubectl().run(["patch", "secret", "hub", "-n", &ns, "-p", &other.to_string()]).await?;
        doctor.golden("plugin-doctor-ill", "doctor --for my-run", without_agent_image).await?;
        let report = doctor.json("doctor --for my-run").await?;
        ensure!(report["problems"] == 3, "{report:#}");

        // What it says is what one does.
        let mends = report["checks"].as_array().into_iter().flatten().filter(|c| c["state"] == "problem");
        for mend in mends.filter_map(|c| c["mend"].as_str()) {
            let mend = mend.replace("VALUE", "hunter3").replace("=KEY", &format!("={key}"));
            let script = mend.replace("kubectl ", &format!("{} ", Tools::locate()?.program("kubectl")?.display()));
            let ran = Command::new("sh")
                .args(["-c", &script])
                .env("KUBECONFIG", world.stack.plane.kubeconfig())
                .output()
                .await?;
            ensure!(ran.status.success(), "{mend}: {}", String::from_utf8_lossy(&ran.stderr));
        }
        world.stack.sim.patch_provider(VAST, &json!({ "apiKey": key })).await?;
        let look = || async {
            let answer = doctor.run("doctor --for my-run").await.map_err(|e| e.to_string())?;
            if answer.code == 0 { Ok(answer.out) } else { Err(answer.out) }
        };
        let text = world.stack.eventually("a doctor without problems", SOON, look).await?;
        ensure!(!text.contains("hunter"), "a value of a Secret is shown:\n{text}");
        job.delete(world).await
    });
}

#[test]
fn a_mailbox_that_broke_is_told_and_so_is_its_recovery() {
    let Some(plugin) = found() else { return };
    scenario(async |world| {
        let ns = world.namespace("plugin").await?;
        let right = world.stack.kubectl().get_json(["secret", "mailbox", "-n", "tradewind-system"]).await?;
        let wrong = json!({ "stringData": { "AWS_SECRET_ACCESS_KEY": "not-the-key" } }).to_string();
        world.stack.kubectl().run(["patch", "secret", "mailbox", "-n", "tradewind-system", "-p", &wrong]).await?;
        world.stack.operator.restart().await?;
        {
            let doctor = Plugin::new(world, &ns, &plugin)?;
            doctor
                .golden("plugin-doctor-mailbox", "doctor", |text| {
                    let wanted = ["mailbox", "exit", "problem", "ticket", "agent "];
                    lines(&without_agent_image(text), |line| wanted.iter().any(|w| line.contains(w)))
                })
                .await?;
        }
        let back = json!({ "data": { "AWS_SECRET_ACCESS_KEY": right["data"]["AWS_SECRET_ACCESS_KEY"] } }).to_string();
        world.stack.kubectl().run(["patch", "secret", "mailbox", "-n", "tradewind-system", "-p", &back]).await?;
        world.stack.operator.restart().await?;
        let doctor = Plugin::new(world, &ns, &plugin)?;
        let look = || async {
            let answer = doctor.run("doctor").await.map_err(|e| e.to_string())?;
            if answer.code == 0 && answer.out.contains("takes conditional writes") { Ok(()) } else { Err(answer.out) }
        };
        world.stack.eventually("a doctor without problems", SOON, look).await?;
        Ok(())
    });
}

/// Whether this stack has one is not what is tested.
fn without_agent_image(text: &str) -> String {
    lines(text, |line| !line.contains("agent image") && !line.contains("--agent-image"))
        .replace("No problems, 1 warning.", "No problems.")
        .replace(", 1 warning.", ".")
}

fn lines(text: &str, keep: impl Fn(&str) -> bool) -> String {
    text.lines().filter(|line| keep(line)).flat_map(|line| [line, "\n"]).collect()
}
