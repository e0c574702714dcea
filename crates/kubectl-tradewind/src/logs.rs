//! `logs JOB`: what the program prints, through the API server, wherever it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::try_join_all;
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde::Serialize;
use tradewind_api::names;

use crate::Trouble;
use crate::cli::{Form, LogsArgs};
use crate::connect::Connection;
use crate::screen::Screen;

/// Between two tries to follow a program that has not started yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A Pod whose output can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Attempt.
    pub attempt: i64,
    /// Rank.
    pub rank: i64,
    /// Name of the Pod.
    pub pod: String,
    /// The program's container: the template's first.
    pub container: Option<String>,
}

/// One line, for `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    pod: &'a str,
    attempt: i64,
    rank: i64,
    line: &'a str,
}

/// Runs the command.
pub async fn run(connection: &Connection, args: &LogsArgs, form: Option<Form>, screen: Screen) -> Result<(), Trouble> {
    if form == Some(Form::Yaml) {
        return Err(Trouble::Usage(
            "logs are lines: -o json prints one object for each, -o yaml is not possible".to_owned(),
        ));
    }
    let job = connection.job(&args.job).await?;
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    // Not those of an earlier job of this name.
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let labels = format!("{}={},{}={uid}", names::JOB_NAME, args.job, names::JOB_UID);
    let pods = api.list(&ListParams::default().labels(&labels)).await.map_err(|error| Trouble::of("Pods", &error))?;
    let sources = sources(&pods.items);
    let chosen = choose(&sources, args).map_err(Trouble::NotThere)?;
    let workers = sources.iter().filter(|s| s.attempt == chosen[0].attempt).count();
    if workers > 1 && chosen.len() == 1 && args.rank.is_none() {
        eprintln!("{workers} workers, this is rank {}; --rank R shows another, --all-ranks all", chosen[0].rank);
    }
    let present = job.status.and_then(|s| s.attempt);
    if args.attempt.is_none() && present.is_some_and(|present| present > chosen[0].attempt) {
        eprintln!("attempt {} has no Pod yet, this is attempt {}", present.unwrap_or_default(), chosen[0].attempt);
    }
    let prefixed = chosen.len() > 1;
    let streams = chosen.iter().map(|source| stream(&api, source, args, form, prefixed, screen));
    try_join_all(streams).await.map(drop)
}

/// Pods of the job, by attempt and rank.
pub fn sources(pods: &[Pod]) -> Vec<Source> {
    let source = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref()?;
        Some(Source {
            attempt: labels.get(names::ATTEMPT)?.parse().ok()?,
            rank: labels.get(names::RANK).and_then(|rank| rank.parse().ok()).unwrap_or(0),
            pod: pod.metadata.name.clone()?,
            container: pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|c| c.name.clone()),
        })
    };
    let mut sources: Vec<Source> = pods.iter().filter_map(source).collect();
    sources.sort_by_key(|source| (source.attempt, source.rank));
    sources
}

/// The Pods that are meant; at least one, or a sentence.
pub fn choose<'a>(sources: &'a [Source], args: &LogsArgs) -> Result<Vec<&'a Source>, String> {
    let attempts: BTreeSet<i64> = sources.iter().map(|source| source.attempt).collect();
    let Some(newest) = attempts.last().copied() else {
        return Err(format!(
            "no attempt of {} has a Pod: it has not started yet, or its Pods are removed (kubectl tradewind status {} says which)",
            args.job, args.job
        ));
    };
    let attempt = args.attempt.unwrap_or(newest);
    let ranks: BTreeMap<i64, &Source> = sources.iter().filter(|s| s.attempt == attempt).map(|s| (s.rank, s)).collect();
    if ranks.is_empty() {
        return Err(format!("attempt {attempt} has no Pod any more; these still have one: {}", list(&attempts)));
    }
    if args.all_ranks {
        return Ok(ranks.into_values().collect());
    }
    let first = ranks.keys().next().copied().unwrap_or_default();
    let rank = args.rank.unwrap_or(first);
    match ranks.get(&rank) {
        Some(source) => Ok(vec![source]),
        None => Err(format!("attempt {attempt} has no Pod of rank {rank}; it has {}", list(ranks.keys()))),
    }
}

fn list<N: ToString>(numbers: impl IntoIterator<Item = N>) -> String {
    numbers.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

async fn stream(
    api: &Api<Pod>,
    source: &Source,
    args: &LogsArgs,
    form: Option<Form>,
    prefixed: bool,
    screen: Screen,
) -> Result<(), Trouble> {
    let params = LogParams {
        container: source.container.clone(),
        follow: args.follow,
        tail_lines: args.tail,
        since_seconds: args.since.map(|since| i64::try_from(since.as_secs().max(1)).unwrap_or(i64::MAX)),
        timestamps: args.timestamps,
        ..LogParams::default()
    };
    let mut told = false;
    let lines = loop {
        match api.log_stream(&source.pod, &params).await {
            Ok(lines) => break lines,
            Err(kube::Error::Api(status)) if status.code == 400 && status.message.contains("waiting to start") => {
                let sentence = format!("the program has not started: {}", status.message);
                if !args.follow {
                    return Err(Trouble::NotThere(sentence));
                }
                if !std::mem::replace(&mut told, true) {
                    eprintln!("{sentence}; waiting");
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error) => return Err(Trouble::of("logs", &error)),
        }
    };
    let mut lines = lines.lines();
    loop {
        let line = match lines.try_next().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(Trouble::Unreachable(format!("the log of Pod {} broke off: {error}", source.pod)));
            }
        };
        screen.print(&printed(source, &line, form, prefixed))?;
    }
}

fn printed(source: &Source, line: &str, form: Option<Form>, prefixed: bool) -> String {
    if form == Some(Form::Json) {
        let line = Printed { pod: &source.pod, attempt: source.attempt, rank: source.rank, line };
        return serde_json::to_string(&line).unwrap_or_default() + "\n";
    }
    if prefixed { format!("[{}] {line}\n", source.rank) } else { format!("{line}\n") }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(flags: &str) -> LogsArgs {
        let words = format!("kubectl-tradewind logs run {flags}");
        match Cli::try_parse_from(words.split_whitespace()).unwrap().command {
            Command::Logs(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn pod(attempt: i64, rank: Option<i64>) -> Pod {
        let mut labels = serde_json::json!({ names::ATTEMPT: attempt.to_string() });
        if let Some(rank) = rank {
            labels[names::RANK] = rank.to_string().into();
        }
        let name = format!("run-{attempt}-{}", rank.unwrap_or(0));
        let containers = serde_json::json!([{ "name": "train" }, { "name": "beside" }]);
        let pod =
            serde_json::json!({ "metadata": { "name": name, "labels": labels }, "spec": { "containers": containers } });
        serde_json::from_value(pod).unwrap()
    }

    fn chosen(pods: &[Pod], flags: &str) -> Result<Vec<String>, String> {
        choose(&sources(pods), &args(flags)).map(|chosen| chosen.into_iter().map(|s| s.pod.clone()).collect())
    }

    #[test]
    fn the_newest_attempt_and_the_first_rank_are_meant_unless_others_are_named() {
        let pods = [pod(2, Some(1)), pod(0, None), pod(2, Some(0)), pod(1, None)];
        assert_eq!(chosen(&pods, "").unwrap(), ["run-2-0"]);
        assert_eq!(chosen(&pods, "--all-ranks").unwrap(), ["run-2-0", "run-2-1"]);
        assert_eq!(chosen(&pods, "--rank 1").unwrap(), ["run-2-1"]);
        assert_eq!(chosen(&pods, "--attempt 0").unwrap(), ["run-0-0"]);
        assert_eq!(sources(&pods)[0].container.as_deref(), Some("train"));
    }

    #[test]
    fn what_is_not_there_leads_to_what_is() {
        let pods = [pod(1, None), pod(3, None)];
        assert_eq!(
            chosen(&pods, "--attempt 2").unwrap_err(),
            "attempt 2 has no Pod any more; these still have one: 1, 3"
        );
        assert!(chosen(&pods, "--rank 5").unwrap_err().contains("no Pod of rank 5; it has 0"));
        assert!(chosen(&[], "").unwrap_err().contains("status run"));
    }

    #[test]
    fn lines_of_several_ranks_can_be_told_apart() {
        let source = &sources(&[pod(0, Some(3))])[0];
        assert_eq!(printed(source, "a", None, true), "[3] a\n");
        assert_eq!(printed(source, "a", None, false), "a\n");
        let json: serde_json::Value =
            serde_json::from_str(&printed(source, "a \"b\"", Some(Form::Json), true)).unwrap();
        assert_eq!(json, serde_json::json!({ "pod": "run-0-3", "attempt": 0, "rank": 3, "line": "a \"b\"" }));
    }
}
