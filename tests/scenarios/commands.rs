//! What a user types every day, on a running demo: one job on a rented machine, a gang on the cluster's own nodes. The real kubectl prints, and
//! what it prints is kept in `goldens/commands-*.txt`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::{Binaries, StackOptions, Tools, or_skip};

use crate::golden::{same, without_chance};
use crate::job::Job;
use crate::nodes::{Cluster, PATIENCE, gang};
use crate::world::{SOON, World, options, scenario_in};

/// Lines of output that are followed.
const FOLLOWED: usize = 20;

/// A shell whose kubeconfig names the user's namespace, with the plug-in in its PATH.
struct Terminal<'a> {
    world: &'a World,
    namespace: String,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    path: String,
    /// Name of the Node of rented Pods.
    node: String,
}

impl<'a> Terminal<'a> {
    async fn open(world: &'a World, namespace: &str, plugin: &Path) -> Result<Self> {
        let kubectl = Tools::locate()?.program("kubectl")?;
        let kubeconfig = world.stack.directory().join(format!("{namespace}.kubeconfig"));
        std::fs::copy(world.stack.plane.kubeconfig(), &kubeconfig)?;
        let directories = [kubectl.parent(), plugin.parent()].map(|d| d.map(Path::display).map(|d| d.to_string()));
        let path = directories.map(Option::unwrap_or_default).join(":");
        let nodes = world.stack.kubectl().get_json(["nodes", "-l", "type=virtual-kubelet"]).await?;
        let node = nodes["items"][0]["metadata"]["name"].as_str().context("a Node")?.to_owned();
        let terminal = Self { world, namespace: namespace.to_owned(), kubectl, kubeconfig, path, node };
        let (text, code) = terminal.run(&format!("config set-context --current --namespace={namespace}")).await?;
        ensure!(code == 0, "{text}");
        Ok(terminal)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.world.stack.directory())
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// What it prints, and its exit code.
    async fn run(&self, line: &str) -> Result<(String, i32)> {
        let output = tokio::time::timeout(SOON, self.command(line).output()).await.context(line.to_owned())??;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((text, output.status.code().unwrap_or(-1)))
    }

    /// The commands with what each prints.
    async fn typed(&self, lines: &[&str]) -> Result<String> {
        let mut screen = Vec::new();
        for line in lines {
            let (text, code) = self.run(line).await?;
            println!("$ kubectl {line}\n{text}");
            let end = if code == 0 { String::new() } else { format!("exit code {code}\n") };
            let break_ = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            screen.push(format!("$ kubectl {line}\n{text}{break_}{end}"));
        }
        Ok(screen.join("\n"))
    }

    /// Compares what they print with `goldens/commands-<name>.txt`, as often as it takes.
    async fn golden(&self, name: &str, lines: &[&str], keep: impl Fn(&str) -> String) -> Result<()> {
        same(self.world, &format!("commands-{name}"), async || {
            Ok(plain(&keep(&self.typed(lines).await?), &self.namespace, &self.node))
        })
        .await
    }

    /// The first lines of a command that goes on for ever, read as they come.
    async fn first_lines(&self, line: &str, count: usize) -> Result<Vec<String>> {
        let mut child = self.command(line).spawn()?;
        let mut from = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut lines = Vec::new();
        while lines.len() < count {
            let next = tokio::time::timeout(SOON, from.next_line()).await;
            lines.push(next.with_context(|| format!("{line}: {lines:?}"))??.context("it ended")?);
        }
        child.kill().await?;
        Ok(lines)
    }
}

/// Lines alike in a row that are still told one by one.
const ALIKE: usize = 5;

/// Without what differs each time; of many lines alike the first stands for all.
fn plain(text: &str, namespace: &str, node: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
        [
            (r"\b\d+(s|m|h|d)(\d+(s|m|h))?\b", "<age>"),
            (r"<age> \(x\d+ over <age>\)", "<age>"),
            (r"(\S) {2,}", "$1  "),
            (r"UID:  .*", "UID:  <uid>"),
            (r"\b(Resource Version|Bytes|Seq|Step|Loss):  \S+", "$1:  N"),
            (r"\b(N|\d+)/100000\b", "N/N"),
            // Steps, and the newest checkpoint beside them.
            (r"N/N  \d+", "N/N  N"),
        ]
        .into_iter()
        .map(|(pattern, to)| (Regex::new(pattern).expect("a regular expression"), to))
        .collect()
    });
    // Some losses look like the numbers of machines.
    static LOSS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bloss [0-9.]+").expect("a regular expression"));
    let mut lines: Vec<(String, usize)> = Vec::new();
    for line in LOSS.replace_all(&text.replace(node, "<node>"), "loss N").lines() {
        let mut line = without_chance(line, namespace);
        for (pattern, to) in RULES.iter() {
            line = pattern.replace_all(&line, *to).into_owned();
        }
        let line = line.trim_end();
        match lines.last_mut() {
            Some((last, count)) if last == line => *count += 1,
            _ => lines.push((line.to_owned(), 1)),
        }
    }
    let shown = |(line, count): (String, usize)| {
        let many = count > ALIKE;
        let line = format!("{line}\n");
        if many { line + "...\n" } else { line.repeat(count) }
    };
    lines.into_iter().map(shown).collect()
}

fn whole(text: &str) -> String {
    text.to_owned()
}

/// What `describe` shows, in an order that is the same each time: conditions stand as they first came up, Events by their random names.
fn described(text: &str) -> String {
    const CONDITION: usize = 6;
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("Took Seconds:")).collect();
    if let Some(first) = lines.iter().position(|line| line.starts_with("    Last Transition Time:")) {
        let count = lines[first..].iter().position(|line| !line.starts_with("    ")).unwrap_or(0);
        let mut conditions: Vec<Vec<&str>> = lines[first..first + count].chunks(CONDITION).map(<[_]>::to_vec).collect();
        conditions.sort_by_key(|condition| condition.last().copied().unwrap_or_default());
        lines.splice(first..first + count, conditions.concat());
    }
    let events = lines.iter().position(|line| line.starts_with("  ----")).map_or(lines.len(), |at| at + 1);
    let mut told: Vec<String> = lines.split_off(events).into_iter().map(event).collect();
    told.sort();
    told.dedup();
    lines.into_iter().map(str::to_owned).chain(told).flat_map(|line| [line, "\n".to_owned()]).collect()
}

/// An Event without when and how often.
fn event(line: &str) -> String {
    static AGE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r" {2,}\d+(s|m|h)(\d+s)?( \(x\d+ over \w+\))? {2,}").expect("a regular expression")
    });
    static STEP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bstep \d+").expect("a regular expression"));
    STEP.replace_all(&AGE.replace(line, "  <age>  "), "step N").into_owned()
}

/// Which Events are the newest depends on how fast it is, and where the scheduler put a worker on its dice.
fn without_events(text: &str) -> String {
    static ON: LazyLock<Regex> = LazyLock::new(|| Regex::new(r" on own-\d").expect("a regular expression"));
    let shown = text.split("\nEvents").next().unwrap_or_default();
    shown.lines().flat_map(|line| [ON.replace_all(line, " on <node>"), "\n".into()]).collect()
}

/// Numbers of the steps that lines tell of.
fn steps(lines: &[String]) -> Vec<u64> {
    lines.iter().filter_map(|line| line.strip_prefix("step ")?.split('/').next()?.parse().ok()).collect()
}

/// Lists show all that is there, so nobody else's is. On a machine that is busy with a dozen programs the lead is not lost within two seconds.
fn own_stack() -> StackOptions {
    options("commands").operator_flag("lease-duration", "15s")
}

/// A job on a rented machine and a gang in the cluster, both with a checkpoint.
async fn demo(world: &World, namespace: &str) -> Result<(Job, Job)> {
    let budget = json!({ "budget": { "total": "10", "perHour": "1" } });
    let rented = Job::new(namespace, "my-run", 100_000, 100, "0.05").with(budget);
    let team = gang(namespace, "team", 4, 100_000, 20, "0.1");
    rented.apply(world).await?;
    team.apply(world).await?;
    rented.saved(world, 100, SOON * 2).await?;
    team.phase(world, JobPhase::Running, PATIENCE).await?;
    team.saved(world, 20, PATIENCE).await?;
    Ok((rented, team))
}

#[test]
fn everything_that_a_user_types_on_a_running_demo() {
    let Some(plugin) = or_skip(Binaries::locate_plugin()) else { return };
    scenario_in(own_stack(), async |world| {
        let namespace = world.namespace("commands").await?;
        let cluster = Cluster::start(world, "own", 2, 2).await?;
        let (rented, team) = demo(world, &namespace).await?;
        let user = Terminal::open(world, &namespace, &plugin).await?;
        user.looks().await?;
        user.reads_logs().await?;
        user.wants_in().await?;
        user.asks_the_plugin().await?;
        rented.delete(world).await?;
        team.delete(world).await?;
        cluster.end(world).await
    });
}

impl Terminal<'_> {
    async fn looks(&self) -> Result<()> {
        let kinds = ["get tj", "get tj -o wide", "get rentedmachines", "get providers", "get pods", "get nodes"];
        self.golden("get", &kinds, whole).await?;
        self.golden("describe", &["describe tj my-run"], described).await?;
        self.golden("describe-gang", &["describe tj team"], described).await?;
        self.golden("explain", &["explain tj.spec.placement"], whole).await
    }

    async fn reads_logs(&self) -> Result<()> {
        let logs = [
            "logs my-run-0",
            "logs my-run-0 --tail=3",
            "logs my-run-0 --since=3s",
            "logs my-run-0 --timestamps --tail=2",
            "logs my-run-0 --previous",
            "logs my-run-1",
        ];
        self.golden("logs", &logs, whole).await?;
        let follow = "logs -f my-run-0 --tail=5";
        let lines = self.first_lines(follow, FOLLOWED).await?;
        let told = steps(&lines);
        ensure!(told.len() == FOLLOWED && told.windows(2).all(|pair| pair[1] == pair[0] + 1), "{lines:?}");
        let screen = format!("$ kubectl {follow}\n{}\n^C\n", lines.join("\n"));
        same(self.world, "commands-logs-follow", async || Ok(plain(&screen, &self.namespace, &self.node))).await?;
        let (all, _) = self.run("logs my-run-0").await?;
        let (late, _) = self.run("logs my-run-0 --since=3s").await?;
        ensure!(late.len() * 2 < all.len(), "all of it, not that of three seconds:\n{late}");
        Ok(())
    }

    async fn wants_in(&self) -> Result<()> {
        // What forwards would not end by itself: it must say at once that it cannot.
        let ways = ["exec my-run-0 -- ls", "exec -it my-run-0 -- sh", "attach my-run-0", "port-forward my-run-0 :80"];
        self.golden("into", &ways, whole).await
    }

    async fn asks_the_plugin(&self) -> Result<()> {
        let commands = [
            "tradewind status my-run",
            "tradewind status team",
            "tradewind logs my-run --tail 3",
            "tradewind logs my-run --attempt 7",
            "tradewind cost",
            "tradewind doctor",
        ];
        same(self.world, "commands-plugin", async || {
            let mut screen = Vec::new();
            for command in commands {
                let text = without_events(&self.typed(&[command]).await?);
                screen.push(crate::plugin::plain(&text, &self.namespace));
            }
            Ok(screen.join("\n"))
        })
        .await
    }
}
