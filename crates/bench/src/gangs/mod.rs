//! Gangs on fake nodes: how Tradewind starts, keeps and replaces many workers, beside JobSet in the same run.

mod api;
mod contender;
mod crowd;
mod jobset;
mod meter;
mod pods;
mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use tradewind_core::{Clock, SystemClock};
use tradewind_harness::{eventually, plane::audit::AuditEvent};

use self::contender::{Contender, JOB_CONTROLLER, JOB_SCHEMA, Kind, Restarted, SCHEMA};
use self::meter::{Reading, Usage};
use crate::audit::{self, Request};
use crate::figures::Figures;

/// From the last news until all that it has set off is written and memory is given back.
const SETTLE: Duration = Duration::from_secs(15);
/// The slowest start of all jobs that is waited for; a debug build on a busy computer needs some of it.
const START_LIMIT: Duration = Duration::from_mins(30);
/// Between what is measured agents say often enough that they live not to be given up (`--agent-silent-after`, 10 minutes).
const FAINT: Duration = Duration::from_mins(4);

/// What is measured, and how much of it.
#[derive(clap::Args, Debug, Clone)]
pub struct Size {
    /// Gangs: jobs.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: u32,
    /// Gangs: workers of each job.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub workers: u32,
    /// Gangs: seconds for which running jobs are watched.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    pub gang_idle: u64,
    /// Gangs: seconds between heartbeats of an agent, in the second such time; 0 leaves that out.
    #[arg(long, default_value_t = 10)]
    pub heartbeat: u64,
    /// Gangs: Pods of others that appear.
    #[arg(long, default_value_t = 5000)]
    pub foreign_pods: u32,
    /// Gangs: Secrets that appear.
    #[arg(long, default_value_t = 2000)]
    pub secrets: u32,
    /// Gangs: jobs that lose a worker in the same moment.
    #[arg(long, default_value_t = 200)]
    pub gang_losses: u32,
    /// Gangs: who is measured.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["job-set", "tradewind"])]
    pub contenders: Vec<Kind>,
}

/// What one contender has shown.
#[derive(Debug)]
struct Shown {
    start: Start,
    idle: Span,
    beating: Option<Span>,
    growth: Span,
    lost: Vec<f64>,
    restarted: Restarted,
    restart: Span,
}

/// All jobs applied at once.
#[derive(Debug)]
struct Start {
    /// From the arrival of the first job at the API server to the end of the creation of the last Pod, in seconds.
    last_pod_s: f64,
    /// From the same moment until it says of every job that it runs.
    running_s: f64,
    /// From the first job until shortly after all ran.
    span: Span,
}

/// What a stretch of time has cost.
#[derive(Debug)]
struct Span {
    seconds: f64,
    /// Requests of the contender as the API server counts them, Leases among them.
    requests: u64,
    /// Those of the job controller.
    job_controller: u64,
    /// By verb and kind, Leases aside; by the audit log.
    each: Vec<(String, usize)>,
    writes: usize,
    lease_writes: usize,
    /// The job controller's, if it is not idle.
    job_controller_each: Vec<(String, usize)>,
    job_controller_writes: usize,
    /// Requests of everybody else that the API server has finished, by user.
    others: BTreeMap<String, usize>,
    cpu_s: f64,
    before: Usage,
    after: Usage,
    bench_cpu_s: f64,
    store_cpu_s: f64,
    /// Requests of the played agents to the store.
    agent_requests: u64,
}

/// Measures all contenders, one after the other.
pub async fn measure(size: &Size, figures: &mut Figures) -> Result<()> {
    let mut shown = Vec::new();
    for kind in &size.contenders {
        shown.push((*kind, one(*kind, size).await?));
    }
    told::tell(size, &shown, figures);
    Ok(())
}

async fn one(kind: Kind, size: &Size) -> Result<Shown> {
    eprintln!("gangs: {}: control plane and nodes", kind.name());
    let mut contender = Contender::start(kind, size).await?;
    match phases(&mut contender, size).await {
        Ok(shown) => Ok(shown),
        Err(error) => {
            let directory = contender.keep().display().to_string();
            let tail = contender.process().tail(3000);
            Err(error.context(format!("measuring {}; see {directory}; the end of its log:\n{tail}", kind.name())))
        }
    }
}

async fn phases(contender: &mut Contender, size: &Size) -> Result<Shown> {
    let say = |what: &str| eprintln!("gangs: {}: {what}", contender.kind.name());
    say(&format!("{} jobs of {} workers", size.jobs, size.workers));
    let start = while_it_lives(contender, start(contender, size)).await?;
    say(&format!("{} s in which nothing happens", size.gang_idle));
    let idle = watched(contender, Duration::from_secs(size.gang_idle)).await?;
    let beating = match (&contender.crowd, size.heartbeat) {
        (None, _) | (_, 0) => None,
        (Some(crowd), every) => {
            say(&format!("{} s with a heartbeat of each agent every {every} s", size.gang_idle));
            crowd.beat(Some(Duration::from_secs(every)));
            let beating = watched(contender, Duration::from_secs(size.gang_idle)).await?;
            crowd.beat(Some(FAINT));
            Some(beating)
        }
    };
    say(&format!("{} Pods and {} Secrets of others", size.foreign_pods, size.secrets));
    let growth = growth(contender, size).await?;
    say(&format!("{} jobs lose a worker", size.gang_losses.min(size.jobs)));
    let lost = while_it_lives(contender, losses(contender, size)).await?;
    eprintln!("gangs: {}: restart", contender.kind.name());
    let before = Mark::set(contender).await?;
    let restarted = contender.restart().await?;
    tokio::time::sleep(SETTLE).await;
    let restart = before.reached_after_restart(contender).await?;
    Ok(Shown { start, idle, beating, growth, lost, restarted, restart })
}

/// Does something unless whoever is measured has ended, as a controller does that cannot renew its Lease: nobody starts it again here.
async fn while_it_lives<T>(contender: &Contender, work: impl Future<Output = Result<T>>) -> Result<T> {
    let pid = contender.process().pid();
    let ended = async {
        // Of a process that has ended the kernel tells no memory.
        while meter::usage(pid).is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = ended => bail!("its process has ended"),
    }
}

async fn start(contender: &Contender, size: &Size) -> Result<Start> {
    let clock = SystemClock::default();
    let before = Mark::set(contender).await?;
    let jobs = (0..size.jobs).map(|n| contender.manifest(&name(n), size.workers));
    contender.api.create_all(&contender.collection(), jobs).await?;
    let pods = (size.jobs * size.workers) as usize;
    contender.pods.made(pods, START_LIMIT).await?;
    contender.pods.running(pods, START_LIMIT).await?;
    contender.says_running(size.jobs, START_LIMIT).await?;
    let running = clock.now();
    tokio::time::sleep(SETTLE).await;
    let (span, events) = before.reached_with_events(contender).await?;
    let (first, last) = first_and_last(contender, &events, pods)?;
    Ok(Start {
        last_pod_s: last.duration_since(first).as_secs_f64(),
        running_s: running.duration_since(first).as_secs_f64(),
        span,
    })
}

/// Name of a job.
fn name(number: u32) -> String {
    format!("gang-{number}")
}

/// When the first job arrived, and when the last Pod was made.
fn first_and_last(contender: &Contender, events: &[AuditEvent], pods: usize) -> Result<(Timestamp, Timestamp)> {
    let created = |resource: &str| {
        let about = |event: &&AuditEvent| {
            event.verb == "create"
                && event.response_status.as_ref().is_some_and(|status| status.code == 201)
                && event.object_ref.as_ref().is_some_and(|object| {
                    object.resource == resource
                        && object.subresource.is_empty()
                        && object.namespace == contender.namespace
                })
        };
        events.iter().filter(about).collect::<Vec<_>>()
    };
    let jobs =
        created(contender.plural()).into_iter().map(|event| event.request_received_timestamp.parse::<Timestamp>());
    let made = created("pods").into_iter().map(|event| event.stage_timestamp.parse::<Timestamp>());
    let (jobs, made) = (jobs.collect::<Result<Vec<_>, _>>()?, made.collect::<Result<Vec<_>, _>>()?);
    ensure!(made.len() >= pods, "the audit log shows {} of {pods} Pods", made.len());
    Ok((jobs.into_iter().min().context("no job in the audit log")?, made.into_iter().max().context("no Pod")?))
}

async fn watched(contender: &Contender, seconds: Duration) -> Result<Span> {
    let before = Mark::set(contender).await?;
    tokio::time::sleep(seconds).await;
    before.reached(contender).await
}

/// What appears of others, none of it anybody's here.
async fn growth(contender: &Contender, size: &Size) -> Result<Span> {
    let namespace = contender.plane().namespace("foreign").await?;
    let before = Mark::set(contender).await?;
    let pod = |n: u32| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("foreign-{n}"), "labels": { "app": "foreign" } },
            "spec": {
                // Nobody schedules it: the scheduler's work is not to be measured.
                "schedulerName": "nobody", "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "foreign:1", "command": ["/bin/sh", "-c", "sleep 100000"] }],
            },
        })
    };
    let collection = format!("/api/v1/namespaces/{namespace}");
    contender.api.create_all(&format!("{collection}/pods"), (0..size.foreign_pods).map(pod)).await?;
    let secret = |n: u32| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": format!("foreign-{n}") },
            "stringData": { "content": "x".repeat(1024) },
        })
    };
    contender.api.create_all(&format!("{collection}/secrets"), (0..size.secrets).map(secret)).await?;
    tokio::time::sleep(SETTLE).await;
    before.reached(contender).await
}

/// Takes a worker from each of so many jobs. Seconds from the sight of the loss to the sight of the last replacement Pod, sorted.
async fn losses(contender: &Contender, size: &Size) -> Result<Vec<f64>> {
    let mut victims = BTreeMap::new();
    for seen in contender.pods.seen().into_iter().filter(pods::Seen::is_running) {
        victims.entry(seen.job).or_insert(seen.name);
    }
    let count = size.gang_losses.min(size.jobs) as usize;
    ensure!(victims.len() >= count, "only {} jobs have a running Pod", victims.len());
    let victims: BTreeMap<String, String> = victims.into_iter().take(count).collect();
    let path = |pod: &String| format!("/api/v1/namespaces/{}/pods/{pod}", contender.namespace);
    let patch = json!({ "metadata": { "annotations": { "fake.tradewind.dev/disrupted": "true" } } });
    contender.api.patch_all(victims.values().map(path).collect(), &patch).await?;
    let look = || {
        let times = replaced(&contender.pods.seen(), &victims, size.workers as usize);
        std::future::ready(if times.len() >= count { Ok(times) } else { Err(format!("{} of {count}", times.len())) })
    };
    let mut times = eventually("the replacement of lost workers", START_LIMIT, look).await?;
    contender.says_running(size.jobs, START_LIMIT).await?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// For each job whose replacement is complete: seconds.
fn replaced(seen: &[pods::Seen], victims: &BTreeMap<String, String>, workers: usize) -> Vec<f64> {
    let failed: BTreeMap<&str, _> = seen.iter().filter_map(|pod| Some((pod.name.as_str(), pod.failed?))).collect();
    let mut later = BTreeMap::<&str, Vec<_>>::new();
    for pod in seen {
        let failed = victims.get(&pod.job).and_then(|victim| failed.get(victim.as_str()));
        if let Some(after) = failed.and_then(|failed| pod.made.checked_duration_since(*failed)) {
            later.entry(&pod.job).or_default().push(after.as_secs_f64());
        }
    }
    let complete = later.into_values().filter_map(|mut after| {
        after.sort_by(f64::total_cmp);
        after.get(workers - 1).copied()
    });
    complete.collect()
}

/// The beginning of a stretch of time.
struct Mark(Reading);

impl Mark {
    async fn set(contender: &Contender) -> Result<Self> {
        Ok(Self(read(contender).await?))
    }

    async fn reached(self, contender: &Contender) -> Result<Span> {
        Ok(self.reached_with_events(contender).await?.0)
    }

    /// The process is a new one: all of its time counts, and nothing of the one before.
    async fn reached_after_restart(mut self, contender: &Contender) -> Result<Span> {
        self.0.process.cpu_s = 0.0;
        self.reached(contender).await
    }

    async fn reached_with_events(self, contender: &Contender) -> Result<(Span, Vec<AuditEvent>)> {
        let (before, after) = (self.0, read(contender).await?);
        let events = contender.plane().audit()?;
        let user = contender.user();
        let own = audit::of(&events, &user, before.at, after.at)?;
        let jobs = audit::of(&events, JOB_CONTROLLER, before.at, after.at)?;
        let written = |requests: &[Request], lease: bool| {
            requests.iter().filter(|request| request.is_write && request.is_lease == lease).count()
        };
        let span = Span {
            seconds: after.seconds_since(&before),
            requests: after.requests_since(&before, SCHEMA),
            job_controller: after.requests_since(&before, JOB_SCHEMA),
            writes: written(&own, false),
            lease_writes: written(&own, true),
            each: audit::counted(&own),
            job_controller_writes: written(&jobs, false),
            job_controller_each: audit::counted(&jobs),
            others: others(&events, &[&user, JOB_CONTROLLER], before.at, after.at)?,
            cpu_s: after.process.cpu_s - before.process.cpu_s,
            before: before.process,
            after: after.process,
            bench_cpu_s: after.bench_cpu_s - before.bench_cpu_s,
            store_cpu_s: after.store_cpu_s - before.store_cpu_s,
            agent_requests: after.agent_requests - before.agent_requests,
        };
        Ok((span, events))
    }
}

async fn read(contender: &Contender) -> Result<Reading> {
    let agent_requests = contender.crowd.as_ref().map_or(0, crowd::Crowd::requests);
    let reading = meter::read(&contender.api, contender.process().pid(), contender.store()).await?;
    Ok(Reading { agent_requests, ..reading })
}

/// How often each other user asked.
fn others(events: &[AuditEvent], known: &[&str], from: Timestamp, to: Timestamp) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter(|event| !known.contains(&event.user.username.as_str())) {
        let at: Timestamp = event.request_received_timestamp.parse()?;
        if at >= from && at < to {
            *counts.entry(event.user.username.clone()).or_default() += 1;
        }
    }
    Ok(counts)
}

impl Span {
    fn json(&self) -> Value {
        let kib = |usage: &Usage| json!({ "residentKiB": usage.resident, "peakKiB": usage.peak });
        json!({
            "seconds": self.seconds, "requests": self.requests, "writes": self.writes, "leaseWrites": self.lease_writes,
            "each": self.each, "jobControllerRequests": self.job_controller, "jobControllerWrites": self.job_controller_writes,
            "jobControllerEach": self.job_controller_each, "otherRequests": self.others, "cpuSeconds": self.cpu_s,
            "before": kib(&self.before), "after": kib(&self.after), "benchCpuSeconds": self.bench_cpu_s,
            "storeCpuSeconds": self.store_cpu_s,
            "agentRequests": self.agent_requests,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_gang_is_replaced_when_its_last_worker_is() {
        let zero = Instant::now();
        let pod = |job: &str, name: &str, made: u64, failed: Option<u64>| pods::Seen {
            name: name.into(),
            job: job.into(),
            control: None,
            made: zero + Duration::from_secs(made),
            ran: None,
            failed: failed.map(|at| zero + Duration::from_secs(at)),
            gone: None,
        };
        let victims = BTreeMap::from([("a".to_owned(), "a-1-0".to_owned()), ("b".to_owned(), "b-1-0".to_owned())]);
        let seen = [
            pod("a", "a-1-0", 0, Some(10)),
            pod("a", "a-1-1", 0, None),
            pod("a", "a-2-0", 12, None),
            pod("a", "a-2-1", 13, None),
            pod("b", "b-1-0", 0, Some(10)),
            pod("b", "b-2-0", 11, None),
            pod("c", "c-1-0", 20, None),
        ];
        assert_eq!(replaced(&seen, &victims, 2), [3.0]);
    }
}
