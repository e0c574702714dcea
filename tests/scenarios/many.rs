//! More jobs with several workers than the cluster has room for.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use serde_json::json;
use tradewind_api::TrainingJob;
use tradewind_api::training_job::JobPhase;
use tradewind_harness::{FakeNodeOptions, StackOptions};

use crate::golden::golden;
use crate::job::Job;
use crate::nodes::{Cluster, PATIENCE, counts, gang, images};
use crate::world::{World, options, scenario, scenario_alone_in, scenario_in};

/// Workers of each job.
const WORKERS: u64 = 4;
/// All jobs of the crowd are done in this time on a machine that does nothing else; tests share one with many.
const CROWD_LIMIT: Duration = Duration::from_mins(15);

/// Jobs of the crowd, and for how many of them there is room at once.
const CROWD: usize = 100;
const ROOM: usize = 30;

/// Four workers that only wait for a moment: each asks for a GPU, none saves anything.
fn brief(namespace: &str, name: &str, seconds: &str) -> Job {
    let sleep = format!("sleep {seconds}");
    gang(namespace, name, WORKERS, 1, 1, "0").with(json!({ "checkpoint": null })).container(json!({
        "image": "train:1", "command": ["sh", "-c", sleep], "args": null,
    }))
}

/// So many agents on one machine keep everybody waiting: nobody loses the lead or is asked for reports more than once a second for that.
fn for_a_crowd() -> StackOptions {
    let slow = [("lease-duration", "60s"), ("agent-poll", "1s"), ("report-poll", "1s"), ("log", "info")];
    slow.into_iter().fold(options("crowd"), |options, (flag, value)| options.operator_flag(flag, value))
}

#[test]
fn many_more_jobs_than_room_all_finish_the_oldest_first() {
    scenario_alone_in(for_a_crowd(), async |world| {
        let namespace = world.namespace("crowd").await?;
        let images = images(world)?;
        let gpus = u32::try_from(ROOM * 4 / 3)?;
        let node = |n: usize| FakeNodeOptions::new(&format!("crowd-{n}"), &images).gpus(gpus).capacity("pods", "400");
        let cluster = Cluster::of(world, (0..3).map(node)).await?;
        let began = tokio::time::Instant::now();
        let names: Vec<String> = (0..CROWD).map(|n| format!("j{n:03}")).collect();
        let all: Vec<Job> = names.iter().map(|name| brief(&namespace, name, "2")).collect();
        // A second is the finest age that the API server keeps: ten of each.
        for ten in all.chunks(10) {
            let list: Vec<_> = ten.iter().map(|job| job.manifest.clone()).collect();
            world.stack.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": list }).to_string()).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let done = try_join_all(all.iter().map(|job| job.phase(world, JobPhase::Complete, CROWD_LIMIT))).await?;
        let took = began.elapsed();
        let wasted: i64 = done.iter().map(|job| job.status.as_ref().and_then(|s| s.attempt).unwrap_or(0)).sum();
        let late = latecomers(&done)?;
        println!("{CROWD} jobs in {:.0} s, {wasted} attempts wasted, overtaken by at most {late}", took.as_secs_f64());
        ensure!(done.iter().all(|job| counts(job) == (0, 0, 0)), "nobody failed or was disrupted");
        // Jobs of one second are of the same age, and those that run at the same time end in any order.
        ensure!(late <= ROOM + 10, "a job was overtaken by {late} younger ones that there was no room for beside it");
        // Those without room give back; on a machine with nothing else to do hardly anybody has to.
        ensure!(wasted <= i64::try_from(CROWD)? * 2, "{wasted} attempts for nothing");
        world.stack.kubectl().run(["delete", "tj", "--all", "-n", &namespace, "--timeout=100s"]).await?;
        cluster.end(world).await
    });
}

/// The most younger jobs that ended before an older one.
fn latecomers(done: &[TrainingJob]) -> Result<usize> {
    let mut ends = Vec::new();
    for job in done {
        let born = job.metadata.creation_timestamp.as_ref().context("a time of creation")?.0;
        let conditions = &job.status.as_ref().context("a status")?.conditions;
        let end = conditions.iter().find(|c| c.type_ == "Complete").context("Complete")?.last_transition_time.0;
        ends.push((born, end));
    }
    let overtaken =
        |(born, end): &(jiff::Timestamp, jiff::Timestamp)| ends.iter().filter(|o| o.0 > *born && o.1 < *end).count();
    Ok(ends.iter().map(overtaken).max().unwrap_or(0))
}

/// Waits until so many Pods of the namespace have a node.
async fn placed(world: &World, namespace: &str, count: usize) -> Result<()> {
    let look = || async {
        let arguments = ["get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].spec.nodeName}"];
        let names = world.stack.kubectl().run(arguments).await.map_err(|e| e.to_string())?;
        let placed = names.split_whitespace().count();
        if placed == count { Ok(()) } else { Err(format!("{placed} Pods have nodes")) }
    };
    Ok(world.stack.eventually(&format!("{count} Pods with nodes"), PATIENCE, look).await?)
}

/// A job whose Pods wait until the test lets the scheduler see them.
fn gated(job: Job) -> Job {
    let gates = json!({ "schedulingGates": [{ "name": "example.com/half" }] });
    job.with(json!({ "template": { "spec": gates } }))
}

/// Lets the scheduler see a Pod, as soon as it is there.
async fn open(world: &World, namespace: &str, pod: &str) -> Result<()> {
    let patch = json!([{ "op": "remove", "path": "/spec/schedulingGates" }]).to_string();
    let look = || async {
        let arguments = ["patch", "pod", pod, "-n", namespace, "--type=json", "-p", &patch];
        world.stack.kubectl().run(arguments).await.map(drop).map_err(|e| e.to_string())
    };
    Ok(world.stack.eventually(&format!("Pod {pod}"), PATIENCE, look).await?)
}

/// Lets the scheduler see every Pod there is, for ever.
async fn keep_open(world: &World, namespace: &str) -> Result<()> {
    loop {
        let pods = world.stack.kubectl().get_json(["pods", "-n", namespace]).await?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            if let (Some(name), false) = (pod["metadata"]["name"].as_str(), pod["spec"]["schedulingGates"].is_null()) {
                let patch = json!([{ "op": "remove", "path": "/spec/schedulingGates" }]).to_string();
                // One that goes meanwhile needs no help.
                let _ = world
                    .stack
                    .kubectl()
                    .run(["patch", "pod", name, "-n", namespace, "--type=json", "-p", &patch])
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Both jobs get half of the nodes, and then ask for the other half.
async fn halve(world: &World, namespace: &str, jobs: &[Job; 2]) -> Result<()> {
    for job in jobs {
        job.apply(world).await?;
        job.condition(world, "Placed", "False", "Gated", PATIENCE).await?;
        // So that there is an older one: the API server keeps whole seconds.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for job in jobs {
        for rank in [0, 1] {
            open(world, namespace, &format!("{}-0-{rank}", job.name)).await?;
        }
    }
    placed(world, namespace, 4).await
}

/// Both come to their end.
async fn both_end(world: &World, namespace: &str, jobs: &[Job; 2]) -> Result<[TrainingJob; 2]> {
    let ends = async {
        let first = jobs[0].phase(world, JobPhase::Complete, PATIENCE).await?;
        Ok::<_, anyhow::Error>([first, jobs[1].phase(world, JobPhase::Complete, PATIENCE).await?])
    };
    tokio::select! {
        done = ends => done,
        failed = keep_open(world, namespace) => Err(failed.err().context("it does not end by itself")?),
    }
}

fn attempts(job: &TrainingJob) -> Option<i64> {
    job.status.as_ref()?.attempt
}

#[test]
fn of_two_jobs_that_each_hold_half_of_the_cluster_the_younger_gives_back() {
    scenario(async |world| {
        let namespace = world.namespace("halves").await?;
        let cluster = Cluster::start(world, "halves", 2, 2).await?;
        let jobs = ["first", "second"].map(|name| gated(brief(&namespace, name, "2")));
        halve(world, &namespace, &jobs).await?;
        let done = both_end(world, &namespace, &jobs).await?;
        ensure!(done.iter().all(|job| counts(job) == (0, 0, 0)), "{done:#?}");
        ensure!(attempts(&done[0]) == Some(0), "the older one keeps what it has: attempt {:?}", attempts(&done[0]));
        ensure!(attempts(&done[1]) == Some(1), "the younger one gave back once: attempt {:?}", attempts(&done[1]));
        cluster.end(world).await
    });
}

#[test]
fn two_unlike_jobs_that_each_hold_half_of_the_cluster_do_not_wait_for_ever() {
    scenario(async |world| {
        let namespace = world.namespace("unlike").await?;
        let cluster = Cluster::start(world, "unlike", 2, 2).await?;
        let patient = |job: Job| gated(job).with(json!({ "gangTimeout": "6s" }));
        // Jobs that ask for something else are no queue; only time helps.
        let other = json!({ "resources": { "requests": { "cpu": "1500m" } } });
        let jobs =
            [patient(brief(&namespace, "first", "2")), patient(brief(&namespace, "second", "2").container(other))];
        halve(world, &namespace, &jobs).await?;
        let done = both_end(world, &namespace, &jobs).await?;
        ensure!(done.iter().all(|job| counts(job) == (0, 0, 0)), "{done:#?}");
        let gave_back = done.iter().filter_map(attempts).sum::<i64>();
        ensure!((1..=6).contains(&gave_back), "given back {gave_back} times");
        cluster.end(world).await
    });
}

#[test]
fn who_waits_for_an_older_job_is_told_so() {
    scenario(async |world| {
        let namespace = world.namespace("turn").await?;
        let cluster = Cluster::start(world, "turn", 1, 2).await?;
        let older = brief(&namespace, "older", "1").with(json!({ "gangTimeout": "1h" }));
        older.apply(world).await?;
        older.condition(world, "Placed", "False", "WaitingForCluster", PATIENCE).await?;
        placed(world, &namespace, 2).await?;
        golden(world, "gang-half", &older).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let younger = brief(&namespace, "younger", "1");
        younger.apply(world).await?;
        younger.condition(world, "Placed", "False", "WaitingForTurn", PATIENCE).await?;
        golden(world, "gang-turn", &younger).await?;
        older.delete(world).await?;
        younger.delete(world).await?;
        cluster.end(world).await
    });
}

/// Signed URLs that live for seconds.
fn short_lived() -> StackOptions {
    options("short-lived").operator_flag("ticket-lifetime", &format!("{}s", TICKETS_LIVE.as_secs()))
}

/// Long enough for an agent that begins with half of it, on a machine that is busy with other tests.
const TICKETS_LIVE: Duration = Duration::from_secs(30);

#[test]
fn pods_that_wait_for_longer_than_signed_urls_live_start_as_they_are() {
    scenario_in(short_lived(), async |world| {
        let namespace = world.namespace("patient").await?;
        let cluster = Cluster::start(world, "patient", 2, 2).await?;
        let job = gated(brief(&namespace, "run", "1"));
        job.apply(world).await?;
        job.condition(world, "Placed", "False", "Gated", PATIENCE).await?;
        let read = async |path: &str| {
            let pods = world.stack.kubectl().get_json(["pods", "-n", &namespace]).await?;
            let items = pods["items"].as_array().cloned().unwrap_or_default();
            let all = items.iter().map(|pod| pod.pointer(path).cloned().unwrap_or_default().to_string());
            anyhow::Ok(all.collect::<Vec<_>>())
        };
        let (before, urls) =
            (read("/metadata/uid").await?, read("/metadata/annotations/tradewind.dev~1control").await?);
        ensure!(before.len() == 4 && urls.iter().all(|url| url.contains("control.json")), "{before:?}");
        tokio::time::sleep(TICKETS_LIVE + Duration::from_secs(2)).await;
        let now = read("/metadata/annotations/tradewind.dev~1control").await?;
        ensure!(now.iter().zip(&urls).all(|(now, then)| now != then), "all are renewed");
        for rank in 0..4 {
            open(world, &namespace, &format!("run-0-{rank}")).await?;
        }
        let done = job.phase(world, JobPhase::Complete, PATIENCE).await?;
        ensure!((attempts(&done), counts(&done)) == (Some(0), (0, 0, 0)), "{:?}", done.status);
        ensure!(read("/metadata/uid").await? == before, "they are the same Pods");
        cluster.end(world).await
    });
}
