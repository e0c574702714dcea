//! The workers of an attempt on the cluster's own nodes: what their Pods and agents say, taken together. Pure.
//!
//! A Pod is judged in this order: why it is disrupted, whether it is being deleted, its phase, the end of its program. A program that was told
//! to stop may end with exit code 0, a Pod on a dead node says Running for ever, and so does one whose sidecar goes on.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tradewind_api::training_job::{JobPhase, PlacementStatus, ProgressStatus};
use tradewind_api::{Reason, TrainingJob};

use super::decide::{Decision, Observed, Step};
use super::ending::{self, Cause};
use super::gang;
use super::status::{IN_CLUSTER, Report};
use super::template::{self, AGENT};
use crate::controllers::pod;
use crate::controllers::worker::WorkerView;
use crate::runtime::Wake;

/// Exit codes of a program that was ended by a signal.
const KILLED: i64 = 137;
const TERMINATED: i64 = 143;

/// So long after its grace a Pod that its node ends may still not say so.
const SAYS_WHY: SignedDuration = SignedDuration::from_secs(15);

/// How a worker stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// It has no Pod.
    Missing,
    /// A scheduling gate of this name holds its Pod.
    Gated(String),
    /// Its Pod has no node.
    Pending,
    /// Its Pod has a node; the program does not run yet.
    Starting,
    /// The program runs.
    Running,
    /// The program ended, perhaps because it was told to, and other containers keep its Pod: until then the Pod may say that its node ends it.
    Ended(Timestamp),
    /// The program ended with exit code 0.
    Done,
    /// It is over, or must end.
    Over(Cause),
}

/// One worker.
#[derive(Debug)]
pub struct Worker<'a> {
    /// Number, from 0.
    pub rank: i64,
    /// Its Pod.
    pub pod: Option<&'a Arc<Pod>>,
    /// What its agent says.
    pub view: Option<&'a WorkerView>,
    /// How it stands.
    pub state: State,
}

/// All workers of an attempt.
#[derive(Debug)]
pub struct Crew<'a> {
    /// By rank.
    pub workers: Vec<Worker<'a>>,
}

impl Worker<'_> {
    /// Its Pod runs, and the mailbox has not been asked about it since this process began.
    fn is_unheard(&self) -> bool {
        self.state == State::Starting && self.view.is_none_or(|view| !view.looked)
    }
}

impl<'a> Crew<'a> {
    /// The workers of this attempt.
    pub fn of(o: &'a Observed, attempt: i64) -> Self {
        let workers = (0..o.valid.workers).map(|rank| {
            let pod = o.pods.iter().find(|pod| pod::is_of(pod, attempt) && pod::rank(pod) == Some(rank));
            let view = usize::try_from(rank).ok().and_then(|n| o.views.get(n)).and_then(Option::as_ref);
            let state = pod.map_or(State::Missing, |pod| state(o, pod, view));
            Worker { rank, pod, view, state }
        });
        Self { workers: workers.collect() }
    }

    /// How many stand so.
    pub fn count(&self, stands: impl Fn(&State) -> bool) -> usize {
        self.workers.iter().filter(|w| stands(&w.state)).count()
    }

    /// Numbers of those without a Pod.
    pub fn missing(&self) -> Vec<i64> {
        self.workers.iter().filter(|w| w.state == State::Missing).map(|w| w.rank).collect()
    }

    /// Pods that are there.
    pub fn pods(&self) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.workers.iter().filter_map(|w| w.pod)
    }

    /// Whether some worker has a node.
    pub fn has_nodes(&self) -> bool {
        self.pods().any(|pod| !pod::node(pod).is_empty())
    }

    /// Whether nothing is left to run.
    pub fn is_over(&self) -> bool {
        self.cause().is_some() || self.workers.iter().all(|w| w.state == State::Done)
    }

    /// Why the attempt is over, if it is: a disruption explains the failures that follow from it.
    fn cause(&self) -> Option<Cause> {
        let causes = || self.workers.iter().filter_map(|w| if let State::Over(c) = &w.state { Some(c) } else { None });
        causes().find(|c| !c.is_failure()).or_else(|| causes().next()).cloned()
    }
}

fn state(o: &Observed, pod: &Pod, view: Option<&WorkerView>) -> State {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod::node(pod);
    if let Some(cause) = pod::disruption(pod) {
        return State::Over(Cause::new(Reason::Disrupted, format!("Pod {name} on node {node}: {cause}")));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        // Without a node it never ran anything.
        return if node.is_empty() {
            State::Pending
        } else {
            State::Over(Cause::new(Reason::PodDeleted, format!("Pod {name} on node {node} was deleted")))
        };
    }
    match pod::phase(pod) {
        "Succeeded" => State::Done,
        "Failed" if ended_well(o, pod) => State::Done,
        "Failed" => State::Over(failed(o, pod, view)),
        _ if node.is_empty() => pod::gate(pod).map_or(State::Pending, |gate| State::Gated(gate.to_owned())),
        _ if let Some(code) = pod::exit_code(pod) => outlived(o, pod, view, code),
        phase => {
            let agent = view.and_then(|v| v.agent.as_ref());
            if view.is_some_and(|v| v.fenced) {
                let message = format!("Pod {name} on node {node}: a later attempt of the run has begun");
                return State::Over(Cause::new(Reason::AgentFailed, message));
            }
            if let Some(agent) = agent.filter(|a| a.restarted || a.failed) {
                let why = agent.warnings.last().cloned().unwrap_or_else(|| "its agent cannot go on".to_owned());
                return State::Over(Cause::new(Reason::AgentFailed, format!("Pod {name} on node {node}: {why}")));
            }
            if let Some(limit) = view.and_then(|v| v.silent_for).filter(|_| phase == "Running") {
                return State::Over(Cause::new(
                    Reason::AgentSilent,
                    format!(
                        "Pod {name} on node {node} runs, but its agent has said nothing for {}: it hangs with everything in it, or cannot reach the operator's mailbox",
                        spoken(limit)
                    ),
                ));
            }
            let works = agent.is_some_and(|a| matches!(a.phase.as_str(), "Running" | "Stopping" | "Exited"));
            if phase == "Running" && (works || !o.valid.needs_agent) { State::Running } else { State::Starting }
        }
    }
}

/// Whether the program of a Pod that failed ended by itself with exit code 0: then a container beside it failed. An agent never says so of a
/// program that was told to stop; without one, a Pod that was ended says why.
fn ended_well(o: &Observed, pod: &Pod) -> bool {
    pod::exit_code(pod) == Some(0) && (o.valid.needs_agent || pod::reason(pod).is_none())
}

/// The program ended, and containers beside it keep its Pod, perhaps for ever: its end counts. Where its node ends all of them, the Pod says so
/// only once the last is gone, and without an agent nobody else knows whether the program was told to stop.
fn outlived(o: &Observed, pod: &Pod, view: Option<&WorkerView>, code: i64) -> State {
    let end = || if code == 0 { State::Done } else { State::Over(failed(o, pod, view)) };
    let exit = view.and_then(|v| v.agent.as_ref()).and_then(|a| a.exit.as_ref());
    let by_signal = || matches!(code, KILLED | TERMINATED) && !pod::is_out_of_memory(pod);
    let stopped = !o.valid.needs_agent || exit.map_or_else(by_signal, |exit| exit.told_to_stop);
    let grace = SignedDuration::from_secs(template::grace(&o.job).0).saturating_add(SAYS_WHY);
    let until = pod::ended_at(pod).and_then(|at| at.checked_add(grace).ok()).filter(|until| stopped && o.now < *until);
    until.map_or_else(end, State::Ended)
}

/// A time in words.
fn spoken(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

/// How a Pod failed.
fn failed(o: &Observed, pod: &Pod, view: Option<&WorkerView>) -> Cause {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod::node(pod);
    let exit = view.and_then(|v| v.agent.as_ref()).and_then(|a| a.exit.as_ref());
    let ran = pod::exit_code(pod).is_some() || pod::failed_init(pod).is_some();
    if let Some(why) = pod::ended_by_node(pod).filter(|_| ran) {
        return Cause::new(Reason::Disrupted, format!("Pod {name} on node {node}: {why}"));
    }
    if let Some((container, code)) = pod::failed_init(pod).filter(|_| pod::exit_code(pod).is_none()) {
        return init_failed(name, node, container, code);
    }
    let Some(code) = pod::exit_code(pod) else {
        // Nothing of it ran: the kubelet refused it.
        let status = pod.status.as_ref();
        let reason = status.and_then(|s| s.reason.clone()).unwrap_or_else(|| "no reason given".to_owned());
        let message = status.and_then(|s| s.message.clone()).unwrap_or_default();
        return Cause::new(Reason::NotStartable, format!("Pod {name} did not run on node {node}: {reason} {message}"));
    };
    if exit.is_none() && view.and_then(|v| v.agent.as_ref()).is_some_and(|agent| agent.failed) {
        return Cause::new(Reason::AgentFailed, format!("the agent in Pod {name} on node {node} could not go on"));
    }
    let stopped = exit.is_some_and(|exit| exit.told_to_stop);
    if stopped && pod::ended_by_kubelet(pod).is_none() && !has_probe(&o.job) {
        // As a node that restarts without a word leaves it.
        return Cause::new(
            Reason::Disrupted,
            format!("Pod {name} was told to stop on node {node}, which does not say why"),
        );
    }
    // Nobody has deleted the Pod, and its node has not ended it: it was stopped for what it did itself, and will be again.
    let (reason, how) = if pod::is_out_of_memory(pod) {
        (Reason::OutOfMemory, format!("ran out of memory (exit code {code})"))
    } else if let Some(why) = pod::ended_by_kubelet(pod) {
        (Reason::ProgramFailed, format!("was stopped by the kubelet ({why})"))
    } else if stopped {
        (Reason::ProgramFailed, "was killed by the kubelet, as a failing liveness probe does,".to_owned())
    } else {
        (Reason::ProgramFailed, format!("ended with exit code {code}"))
    };
    let log = exit.map(|exit| exit.log_tail.clone()).unwrap_or_default();
    Cause {
        exit_code: Some(code),
        log,
        ..Cause::new(reason, format!("the program in Pod {name} {how} on node {node}"))
    }
}

/// Whether a kubelet may kill the program for what a probe finds.
fn has_probe(job: &TrainingJob) -> bool {
    let program = &job.spec.template["spec"]["containers"][0];
    ["livenessProbe", "startupProbe"].iter().any(|probe| program[probe].is_object())
}

/// An init container failed: the template's own, which counts like the program, or our agent's, which another attempt may mend.
fn init_failed(name: &str, node: &str, container: &str, code: i64) -> Cause {
    let message = format!("init container {container} of Pod {name} ended with exit code {code} on node {node}");
    if container == AGENT {
        return Cause::new(Reason::AgentNotStarted, message);
    }
    Cause { exit_code: Some(code), ..Cause::new(Reason::ProgramFailed, message) }
}

/// What keeps the first of the workers from starting, if anything does.
fn hindrance(crew: &Crew<'_>) -> Option<String> {
    let starting = crew.workers.iter().filter(|w| w.state == State::Starting).filter_map(|w| w.pod);
    starting.into_iter().find_map(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        Some(format!("Pod {name} on node {}: {}", pod::node(pod), pod::hindrance(pod)?))
    })
}

/// The attempt is in the cluster, or on its way there.
pub fn look(o: &Observed, mut r: Report, attempt: i64) -> Decision {
    let crew = Crew::of(o, attempt);
    let nodeless = |s: &State| matches!(s, State::Missing | State::Pending | State::Gated(_));
    if crew.count(nodeless) == 0 {
        // A short program is over before anybody has seen it run.
        r.status.placement = Some(placement(o, &crew));
    }
    if let Some(cause) = crew.cause() {
        return ending::begin(o, r, &crew, attempt, cause);
    }
    if gone(&crew, &r) {
        let cause = Cause::new(Reason::Disrupted, "a Pod that had a node is gone".to_owned());
        return ending::begin(o, r, &crew, attempt, cause);
    }
    if crew.count(|s| *s == State::Done) == crew.workers.len() {
        let all = if crew.workers.len() == 1 { "the program" } else { "all workers" };
        let cause = Cause::new(Reason::Finished, format!("{all} ended with exit code 0 in the cluster"));
        return ending::begin(o, r, &crew, attempt, cause);
    }
    if crew.count(nodeless) > 0 {
        return gang::gather(o, r, attempt, &crew);
    }
    if o.valid.needs_agent && r.status.phase == JobPhase::Running && crew.workers.iter().any(Worker::is_unheard) {
        // This process has not read yet what runs for long: nothing is new.
        return r.rest(Wake::OnChange);
    }
    if let Some(cause) = stalled(o, &crew) {
        return ending::begin(o, r, &crew, attempt, cause);
    }
    if let Some(cause) = torn(&crew) {
        return ending::begin(o, r, &crew, attempt, cause);
    }
    follow(o, &mut r, &crew);
    let ended = crew.workers.iter().filter_map(|w| if let State::Ended(until) = w.state { Some(until) } else { None });
    if let Some(until) = ended.min() {
        let left = o.left(until) + Duration::from_millis(50);
        return r.rest(Wake::After(left, "a Pod may say why its program ended"));
    }
    if o.valid.needs_agent && crew.count(|s| *s == State::Starting) > 0 {
        return start_deadline(o, r, attempt, &crew);
    }
    r.rest(Wake::OnChange)
}

/// A worker that had a node has no Pod any more: all had one once the status says so.
fn gone(crew: &Crew<'_>, r: &Report) -> bool {
    let begun = |w: &Worker<'_>| w.view.and_then(|v| v.agent.as_ref()).is_some_and(|a| a.ours && a.phase != "Booted");
    crew.workers.iter().any(|w| w.state == State::Missing && (r.is_in_cluster() || begun(w)))
}

/// All workers have shown no sign of life for too long: one that still does is waited for by the others.
fn stalled(o: &Observed, crew: &Crew<'_>) -> Option<Cause> {
    let quiet = |w: &Worker<'_>| {
        let agent = w.view?.agent.as_ref()?;
        (w.state == State::Running && agent.phase == "Running").then_some(agent.quiet_s)
    };
    let least = crew
        .workers
        .iter()
        .filter(|w| w.state != State::Done)
        .map(quiet)
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .min()?;
    if least < o.valid.stall_timeout.as_secs() {
        return None;
    }
    let minutes = o.valid.stall_timeout.as_secs().div_ceil(60);
    let message = format!("the program showed no sign of life for {minutes} min (stallTimeout)");
    Some(Cause::new(Reason::ProgramStalled, message))
}

/// Workers that went on from different checkpoints would spoil the run without a word: one of them met a bad part. The next attempt is not
/// offered what one of them has refused.
fn torn(crew: &Crew<'_>) -> Option<Cause> {
    let runs = crew.workers.iter().filter(|w| w.state == State::Running);
    let steps: Vec<Option<i64>> = runs.filter_map(|w| Some(w.view?.agent.as_ref()?.restored_step)).collect();
    let (first, other) = (steps.first()?, steps.iter().find(|step| **step != steps[0])?);
    let word = |step: &Option<i64>| step.map_or("zero".to_owned(), |step| format!("step {step}"));
    let message = format!("the workers went on from different checkpoints, {} and {}", word(first), word(other));
    Some(Cause::new(Reason::CheckpointCorrupt, message))
}

/// The agents of some workers have said nothing: not for ever. That they were looked for in vain counts, not that we could not look.
fn start_deadline(o: &Observed, r: Report, attempt: i64, crew: &Crew<'_>) -> Decision {
    let runs = |w: &Worker<'_>| w.pod.is_some_and(|pod| pod::phase(pod) == "Running");
    let is_silent = |w: &&Worker<'_>| {
        let looked = w.view.is_some_and(|v| v.looked && v.agent.is_none() && v.trouble.is_none());
        w.state == State::Starting && (looked || !runs(w))
    };
    let since = |w: &Worker<'_>| {
        let heard = w.view.and_then(|v| v.heard_at).filter(|_| runs(w));
        Some(pod::started(w.pod?)?.max(heard.unwrap_or(Timestamp::MIN)))
    };
    let silent = crew.workers.iter().filter(is_silent).find_map(|w| Some((w, since(w)?)));
    let Some((silent, begun)) = silent else { return r.rest(Wake::OnChange) };
    let due = begun.checked_add(o.start_deadline).unwrap_or(Timestamp::MAX);
    if o.now < due {
        let left = o.left(due);
        return r.rest(Wake::After(left, "the agents' first reports"));
    }
    let pod = silent.pod.and_then(|pod| pod.metadata.name.clone()).unwrap_or_default();
    let minutes = o.start_deadline.as_secs().div_ceil(60);
    let waits = silent.pod.filter(|pod| pod::phase(pod) != "Running");
    let message = match (hindrance(crew), waits) {
        (Some(hindrance), _) => hindrance,
        (None, Some(waits)) => format!(
            "Pod {pod} never started on node {}; its Events (`kubectl describe pod {pod}`) say why",
            pod::node(waits)
        ),
        _ => format!("the agent in Pod {pod} has not reported for {minutes} min: it must reach the operator's mailbox"),
    };
    ending::begin(o, r, crew, attempt, Cause::new(Reason::AgentNotStarted, message))
}

fn placement(o: &Observed, crew: &Crew<'_>) -> PlacementStatus {
    let mut nodes: Vec<&str> = crew.pods().map(|pod| pod::node(pod)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let (shown, more) = (nodes.len().min(4), nodes.len().saturating_sub(4));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let word = if nodes.len() == 1 { "node" } else { "nodes" };
    let gpus = o.job.spec.gpu.as_ref().map(|gpu| i64::from(gpu.count) * o.valid.workers);
    PlacementStatus {
        summary: IN_CLUSTER.to_owned(),
        gpu: gpus.map(|count| format!("{count}xGPU")),
        why: Some(format!("runs on {word} {}{more}", nodes[..shown].join(", "))),
        ..PlacementStatus::default()
    }
}

/// What the agents and Pods of workers that all have nodes say.
fn follow(o: &Observed, r: &mut Report, crew: &Crew<'_>) {
    let on = r.status.placement.as_ref().and_then(|p| p.why.clone()).unwrap_or_default();
    let total = crew.workers.len();
    let ready = crew.count(|s| matches!(s, State::Running | State::Ended(_) | State::Done));
    let first = crew.workers.first().and_then(|w| w.view);
    let agent = first.and_then(|v| v.agent.as_ref());
    if let Some(progress) = agent.and_then(|a| a.progress.clone()) {
        take_progress(r, progress);
    }
    if let Some(checkpoint) = first.and_then(|v| v.checkpoint.clone()) {
        r.status.checkpoint = Some(checkpoint);
    }
    r.placed(Reason::InCluster, &on);
    if ready == total {
        let step = agent.and_then(|a| a.restored_step);
        let from = step.map_or(String::new(), |s| format!(", resumed from step {s}"));
        r.begun(step, None);
        r.runs(Reason::InCluster, &format!("{on}{from}"));
        return;
    }
    r.workers(i64::try_from(ready).unwrap_or(0));
    let trouble = crew.workers.iter().find_map(|w| w.view.and_then(|v| v.trouble.clone()));
    let there = crew.workers.iter().filter(|w| w.view.is_some_and(|v| v.agent.is_some())).count();
    if let Some(hindrance) = hindrance(crew) {
        r.phase(JobPhase::Starting, &format!("{hindrance}; its node tries again"));
        return;
    }
    let message = match agent.map(|a| a.phase.as_str()) {
        Some("Restoring") => "the last checkpoint is downloaded and verified".to_owned(),
        _ if total > 1 && there < total => {
            format!("{there} of {total} workers are there; the program starts in all of them once the others are")
        }
        _ if total > 1 => format!("the program runs in {ready} of {total} workers; the others are about to start it"),
        _ => on.replacen("runs", "starts", 1),
    };
    // Once there may be something to save, the status must tell where it runs: another operator looks there for what was saved.
    if trouble.is_none() && (o.valid.checkpoint.is_none() || there == 0) {
        r.passes();
    }
    let trouble = trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
    r.phase(JobPhase::Starting, &format!("{message}{trouble}"));
}

/// Progress that says something new; when it was read is not news.
fn take_progress(r: &mut Report, progress: ProgressStatus) {
    let old = r.status.progress.as_ref().map(|p| (p.step, p.total, p.loss.clone()));
    if old != Some((progress.step, progress.total, progress.loss.clone())) {
        r.status.progress = Some(progress);
    }
}

/// Whether a Pod of the attempt has a node of the cluster, or the job can have no other.
pub fn is_theirs(o: &Observed, attempt: i64) -> bool {
    let in_cluster = |pod: &Arc<Pod>| {
        let node = pod::node(pod);
        pod::is_of(pod, attempt) && !node.is_empty() && node != o.node
    };
    o.valid.workers > 1 || o.pods.iter().any(in_cluster)
}

/// The step that removes Pods.
pub fn removal(pods: Vec<String>) -> Step {
    if pods.is_empty() { Step::Rest } else { Step::RemovePods(pods) }
}
