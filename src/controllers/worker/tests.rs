//! The controller over the ports in memory; agents are driven by hand.

mod silent;
mod together;

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};
use tradewind_checkpoints::{Catalogue, Fetched, MemoryStore};
use tradewind_cluster::{Cluster, Memory, Selector, cache};
use tradewind_core::{Clock, ManualClock};
use tradewind_protocol::manifest::EntryKind;
use tradewind_protocol::report::{CheckpointOffer, Exit, Progress, RestoreOutcome, Restored};
use tradewind_protocol::seal::BootKeys;
use tradewind_protocol::{
    AgentPhase, Chunk, Control, Document, Manifest, ManifestFile, Report, SlotBatch, Start, Ticket, VERSION,
};

use super::*;
use crate::test_context::{context, install};

const UID: &str = "7a1c2f60-0000-4000-8000-00000000000a";
const SHA: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

const REPORTS_IN_5_S: Wake = Wake::After(Duration::from_secs(5), "the agents' reports");
const REPORTS_IN_15_S: Wake = Wake::After(Duration::from_secs(15), "the agents' reports");

/// A cluster, a bucket for the mailbox and one for checkpoints, and a job with its Pods.
struct World {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    cluster: Arc<Memory>,
    job: Value,
    pods: Vec<Value>,
    operator: WorkerAgents,
    version: u64,
}

fn name(attempt: i64, rank: i64) -> String {
    id(&install(), UID, attempt, rank)
}

fn key() -> Key {
    Key::namespaced("default", "job")
}

impl World {
    fn new(workers: usize, checkpoint: Value) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_790_000_000).unwrap(), 1));
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        store.create_bucket("mailbox");
        store.create_bucket("ckpt");
        let cluster = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "keys", "namespace": "default"},
            "data": {"AWS_ACCESS_KEY_ID": "YQ==", "AWS_SECRET_ACCESS_KEY": "Yg=="},
        }))
        .unwrap();
        now((&*cluster as &dyn Cluster).add(secret)).unwrap();
        let mut job = json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "job", "namespace": "default", "uid": UID},
            "spec": {"workers": workers, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"phase": "Starting", "runId": "run", "attempt": 0, "cost": {}},
        });
        if !checkpoint.is_null() {
            job["spec"]["checkpoint"] = checkpoint;
        }
        let operator = operator(&clock, &store, &cluster);
        let mut world = Self { clock, store, cluster, job, pods: Vec::new(), operator, version: 0 };
        world.attempt(0, workers);
        world
    }

    /// An attempt with all its Pods, bound to nodes.
    fn attempt(&mut self, attempt: i64, workers: usize) {
        self.job["status"]["attempt"] = json!(attempt);
        for rank in 0..workers {
            self.pods.push(json!({
                "metadata": {
                    "name": format!("job-{attempt}-{rank}"), "namespace": "default", "uid": format!("{attempt}-{rank}"),
                    "labels": {
                        "tradewind.dev/job-name": "job", "tradewind.dev/job-uid": UID,
                        "tradewind.dev/attempt": attempt.to_string(), "tradewind.dev/rank": rank.to_string(),
                    },
                    "annotations": {"tradewind.dev/control": "https://s3/control"},
                },
                "spec": {"containers": [], "nodeName": format!("node-{rank}")},
                "status": {"phase": "Pending"},
            }));
        }
    }

    /// The Pod of a worker.
    fn pod(&mut self, attempt: i64, rank: i64) -> &mut Value {
        let name = format!("job-{attempt}-{rank}");
        self.pods.iter_mut().find(|pod| pod["metadata"]["name"] == name).expect("a Pod")
    }

    fn phase(&mut self, attempt: i64, rank: i64, phase: &str) {
        self.pod(attempt, rank)["status"]["phase"] = json!(phase);
    }

    /// Another process takes over, that knows nothing.
    fn restart(&mut self) {
        self.operator = operator(&self.clock, &self.store, &self.cluster);
    }

    /// The watch tells, and one reconcile runs to its end.
    fn look(&mut self) -> Wake {
        self.version += 1;
        let caches = &self.operator.ctx.caches;
        let mut job = self.job.clone();
        job["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let job = Arc::new(serde_json::from_value(job).unwrap());
        caches.jobs.lock().apply(cache::Event::Relist(vec![job]));
        let pods = self.pods.iter().map(|pod| {
            let mut pod = pod.clone();
            pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        });
        caches.pods.lock().apply(cache::Event::Relist(pods.collect()));
        now(self.operator.run(&key())).unwrap()
    }

    /// Time for a look at everybody, then one.
    fn later(&mut self) -> Wake {
        self.clock.advance(Duration::from_secs(30));
        self.look()
    }

    fn view(&self, attempt: i64, rank: i64) -> Option<WorkerView> {
        self.operator.ctx.workers.get(&name(attempt, rank))
    }

    fn control(&self, attempt: i64, rank: i64) -> Option<Control> {
        let bytes = self.object(&format!("tw/machines/{}/control.json", name(attempt, rank)))?;
        Some(Control::decode(&bytes).unwrap())
    }

    fn object(&self, key: &str) -> Option<Bytes> {
        self.store.objects("mailbox").remove(key)
    }

    fn fetch(&self, ticket: &Ticket) -> Bytes {
        match self.store.redeem_get(&ticket.url, None).unwrap() {
            Fetched::Changed { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn events(&self) -> Vec<String> {
        let all = now((&*self.cluster as &dyn Cluster).read_all::<Event>(None, &Selector::everything())).unwrap();
        all.iter().map(|e| format!("{}: {}", e.reason.as_deref().unwrap(), e.note.as_deref().unwrap())).collect()
    }

    fn catalogue(&self) -> Catalogue {
        let place = self.store.at(&"s3://ckpt/run/".parse().unwrap());
        Catalogue::open(Arc::new(place), Arc::clone(&self.clock) as _)
    }
}

fn operator(clock: &Arc<ManualClock>, store: &MemoryStore, cluster: &Arc<Memory>) -> WorkerAgents {
    WorkerAgents::new(Arc::new(context(Arc::clone(clock) as _, store, Arc::clone(cluster) as _)))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("in memory everything is ready")
}

fn checkpoint(writers: &str) -> Value {
    json!({
        "path": "out", "pattern": "*-state", "to": "s3://ckpt/run/", "secretRef": {"name": "keys"},
        "writers": writers, "interval": "5s",
    })
}

/// Workers whose programs run.
fn at_work(workers: usize, checkpoint: Value) -> (World, Vec<Agent>) {
    let mut world = World::new(workers, checkpoint);
    world.look();
    let mut agents: Vec<Agent> = (0..).take(workers).map(|rank| Agent::boot(&mut world, 0, rank)).collect();
    all_say(&mut agents, &world, |_| {});
    world.later();
    all_say(&mut agents, &world, runs);
    world.later();
    (world, agents)
}

/// An agent in a Pod.
struct Agent {
    attempt: i64,
    rank: i64,
    report: Report,
    /// It tells of all that waits, not of the newest offer alone.
    lists: bool,
}

impl Agent {
    fn boot(world: &mut World, attempt: i64, rank: i64) -> Self {
        let id = name(attempt, rank);
        let report = json!({
            "version": VERSION, "machine": id, "boot": format!("boot-{attempt}-{rank}"), "bootKey": BootKeys::generate().public(),
            "sequence": 1, "controlSeen": 1, "attempt": attempt, "phase": "Booted", "at": world.clock.now(),
            "progress": null, "exit": null, "restore": null, "offer": null, "uploading": null,
            "slotsLeft": 0, "slotsUsed": 0, "logSegments": 0, "warnings": [], "restarted": false,
            "address": format!("10.0.0.{}", rank + 1),
        });
        world.phase(attempt, rank, "Running");
        Self { attempt, rank, report: serde_json::from_value(report).unwrap(), lists: false }
    }

    /// Stores its report through its ticket.
    fn says(&mut self, world: &World, change: impl FnOnce(&mut Report)) {
        let control = world.control(self.attempt, self.rank).expect("a control document");
        self.report.sequence += 1;
        self.report.control_seen = control.sequence;
        change(&mut self.report);
        let bytes = Bytes::from(self.report.encode().unwrap());
        world.store.redeem_put(&control.report_put.url, bytes, false).unwrap();
    }

    fn start(&self, world: &World) -> Option<Start> {
        let ticket = world.control(self.attempt, self.rank)?.start?;
        Some(Start::decode(&world.fetch(&ticket), &self.report.machine, &self.report.boot).unwrap())
    }

    /// Uploads a save of one piece through the next slot and offers it.
    fn saves(&mut self, world: &World, step: u64) {
        let control = world.control(self.attempt, self.rank).unwrap();
        let batch = SlotBatch::decode(&world.fetch(&control.slots[0]), &self.report.machine).unwrap();
        let slot = self.report.slots_used;
        let put = &batch.puts[usize::try_from(slot).unwrap()];
        world.store.redeem_put(&put.url, Bytes::from_static(b"test"), true).unwrap();
        let attempt = u32::try_from(self.attempt).unwrap();
        let prefix = tradewind_protocol::manifest::data_prefix(attempt, &self.report.machine);
        let chunk =
            Chunk { key: tradewind_protocol::manifest::slot_key(&prefix, slot), size_bytes: 4, sha256: SHA.to_owned() };
        let at = world.clock.now();
        let manifest = Manifest {
            version: VERSION,
            run_id: "run".to_owned(),
            attempt,
            machine: self.report.machine.clone(),
            step,
            name: format!("{step}-state"),
            kind: EntryKind::File,
            files: vec![ManifestFile {
                path: String::new(),
                size_bytes: 4,
                mode: 0o644,
                rank: None,
                chunks: vec![chunk],
            }],
            saved_at: at,
            save_began_at: at,
            parent: None,
            writers: Vec::new(),
        };
        let number = self.report.offer.as_ref().map_or(1, |offer| offer.number + 1);
        let lists = self.lists;
        self.says(world, |report| {
            (report.slots_used, report.slots_left) = (slot + 1, 127 - slot);
            report.waiting.extend(report.offer.take().filter(|_| lists));
            report.offer = Some(CheckpointOffer { number, manifest });
        });
    }
}

fn all_say(agents: &mut [Agent], world: &World, change: fn(&mut Report)) {
    for agent in agents {
        agent.says(world, change);
    }
}

fn runs(report: &mut Report) {
    report.phase = AgentPhase::Running;
    (report.slots_left, report.slots_used) = (128, 0);
}

fn steps(report: &mut Report, step: u64) {
    report.progress = Some(Progress { step, total: None, loss: None });
}

fn ends(report: &mut Report, at: Timestamp, code: i32) {
    report.phase = AgentPhase::Exited;
    report.offer = None;
    report.exit = Some(Exit { code, told_to_stop: false, at, log_tail: String::new(), oom_killed: None });
}

#[test]
fn a_worker_boots_starts_saves_ends_and_goes_on_in_the_next_attempt_whoever_serves_it() {
    // Each time with another operator from one of the steps on; the first time with the same one all the way.
    for dies_before in 0..8 {
        let mut world = World::new(1, checkpoint("RankZero"));
        let mut step = 0;
        let mut look = |world: &mut World| {
            step += 1;
            if step == dies_before {
                world.restart();
            }
            world.later()
        };
        assert_eq!(look(&mut world), Wake::OnChange, "its image is pulled: its Pod will tell");
        assert!(world.control(0, 0).is_some_and(|c| c.start.is_none() && c.logs.is_empty() && c.self_end.is_none()));
        let mut agent = Agent::boot(&mut world, 0, 0);
        agent.says(&world, |_| {});
        look(&mut world);
        let start = agent.start(&world).expect("a single worker waits for nobody");
        assert!(start.env.is_empty() && start.restore.is_empty() && !start.checkpoint.unwrap().restore_only);
        agent.says(&world, runs);
        look(&mut world);
        assert_eq!(world.view(0, 0).unwrap().agent.unwrap().phase, "Running");
        agent.saves(&world, 1200);
        look(&mut world);
        let committed = world.control(0, 0).unwrap().committed.expect("what it offers counts");
        assert_eq!((committed.offer, committed.step), (1, 1200));
        let at = world.clock.now();
        agent.says(&world, |report| ends(report, at, 1));
        world.phase(0, 0, "Failed");
        look(&mut world);
        let view = world.view(0, 0).unwrap();
        assert!(view.last_report_read && view.agent.unwrap().exit.unwrap().code == 1, "{dies_before}");

        // The next attempt: the folder of the one before goes, and the program gets what was saved.
        world.attempt(1, 1);
        look(&mut world);
        assert!(world.control(0, 0).is_none() && world.view(0, 0).is_none(), "decided: its folder is removed");
        let mut agent = Agent::boot(&mut world, 1, 0);
        agent.says(&world, |_| {});
        look(&mut world);
        let restored: Vec<u64> = agent.start(&world).unwrap().restore.iter().map(|c| c.manifest.step).collect();
        assert_eq!(restored, [1200]);
        assert_eq!(now(world.catalogue().load()).unwrap().newest_fence().unwrap().attempt, 1);
    }
}

#[test]
fn nobody_in_a_gang_begins_before_all_are_there_and_only_the_first_saves() {
    let mut world = World::new(3, checkpoint("RankZero"));
    world.look();
    let mut agents: Vec<Agent> = (0..3).map(|rank| Agent::boot(&mut world, 0, rank)).collect();
    agents[0].says(&world, |_| {});
    agents[2].says(&world, |_| {});
    world.later();
    assert!(agents.iter().all(|agent| agent.start(&world).is_none()), "worker 1 is missing");
    assert!(now(world.catalogue().load()).unwrap().newest_fence().is_none(), "no fence before everybody is there");
    // One boots again before anything was started: it is waited for, and what it says now counts.
    agents[2].says(&world, |report| {
        report.boot = "again".to_owned();
        report.address = Some([10, 0, 0, 9].into());
    });
    world.restart();
    agents[1].says(&world, |_| {});
    world.look();
    for (rank, agent) in agents.iter().enumerate() {
        let start = agent.start(&world).expect("all are there");
        assert_eq!(
            (start.env["RANK"].as_str(), start.env["MASTER_ADDR"].as_str()),
            (rank.to_string().as_str(), "10.0.0.1")
        );
        assert_eq!(start.env["NODE_IPS"], "10.0.0.1\n10.0.0.2\n10.0.0.9");
        assert_eq!(start.checkpoint.unwrap().restore_only, rank > 0);
    }
    all_say(&mut agents, &world, runs);
    let wake = world.later();
    assert_eq!(wake, REPORTS_IN_15_S, "the first one's progress is wanted");
    let slots: Vec<usize> = (0..3).map(|rank| world.control(0, rank).unwrap().slots.len()).collect();
    assert_eq!(slots, [1, 0, 0]);

    // One that boots again now has lost its program: the attempt is over, and nothing is started on it.
    agents[1].says(&world, |report| {
        report.boot = "second".to_owned();
        report.phase = AgentPhase::Booted;
    });
    world.later();
    world.later();
    assert!(world.view(0, 1).unwrap().agent.unwrap().restarted);
    assert_eq!(world.control(0, 1).unwrap().start_boot.as_deref(), Some("boot-0-1"));
}

#[test]
fn workers_that_only_go_on_are_looked_at_rarely_and_those_that_wait_for_an_answer_often() {
    let mut world = World::new(2, checkpoint("AllRanks"));
    world.look();
    let mut agents: Vec<Agent> = (0..2).map(|rank| Agent::boot(&mut world, 0, rank)).collect();
    agents[0].says(&world, |_| {});
    assert_eq!(world.later(), REPORTS_IN_5_S, "the other one is waited for");
    agents[1].says(&world, |_| {});
    assert_eq!(world.later(), REPORTS_IN_5_S, "their programs are about to start");
    all_say(&mut agents, &world, runs);
    assert_eq!(world.later(), REPORTS_IN_15_S);
    all_say(&mut agents, &world, |report| steps(report, 7));
    assert_eq!(world.later(), REPORTS_IN_15_S, "progress is no reason to look more often");
    agents[0].saves(&world, 7);
    assert_eq!(world.later(), REPORTS_IN_5_S, "the first one waits for what the other one saves");
    agents[1].saves(&world, 7);
    assert_eq!(world.later(), REPORTS_IN_15_S, "both are answered");
    assert!((0..2).all(|rank| world.control(0, rank).unwrap().committed.is_some()));
    agents[0].says(&world, |report| report.phase = AgentPhase::Stopping);
    assert_eq!(world.later(), REPORTS_IN_5_S, "its end is near");
}

#[test]
fn an_operator_that_died_between_two_start_documents_gives_the_rest() {
    let mut world = World::new(2, checkpoint("RankZero"));
    world.look();
    let mut agents: Vec<Agent> = (0..2).map(|rank| Agent::boot(&mut world, 0, rank)).collect();
    all_say(&mut agents, &world, |_| {});
    let before = world.object(&format!("tw/machines/{}/control.json", name(0, 1)));
    world.later();
    // The write to worker 1 never happened.
    world.store.tamper("mailbox", &format!("tw/machines/{}/control.json", name(0, 1)), before);
    assert!(agents[0].start(&world).is_some() && agents[1].start(&world).is_none());
    agents[0].says(&world, runs);
    world.restart();
    world.later();
    assert_eq!(agents[1].start(&world).unwrap().env["MASTER_ADDR"], "10.0.0.1");
}

#[test]
fn the_last_save_of_a_worker_that_is_evicted_comes_home() {
    let (mut world, mut agents) = at_work(1, checkpoint("RankZero"));
    let agent = &mut agents[0];
    let until = world.clock.now() + Duration::from_mins(10);
    world.pod(0, 0)["metadata"]["deletionTimestamp"] = json!(until);
    world.look();
    assert!(!world.view(0, 0).unwrap().last_report_read, "it still saves");
    agent.saves(&world, 70);
    // The Pod goes at once, and nobody looked in between: what was offered is found in the mailbox.
    world.pods.clear();
    world.job["status"]["phase"] = json!("Running");
    world.restart();
    world.look();
    let view = world.view(0, 0).unwrap();
    assert!(view.last_report_read);
    assert_eq!(view.checkpoint.unwrap().step, 70);
}

#[test]
fn what_an_agent_says_that_makes_no_sense_changes_nothing() {
    let mut world = World::new(1, checkpoint("RankZero"));
    world.look();
    let agent = Agent::boot(&mut world, 0, 0);
    let report = world.control(0, 0).unwrap().report_put;
    for bytes in ["", "{}", "null", "{\"version\": 1}", "\u{0}"] {
        world.store.redeem_put(&report.url, Bytes::from(bytes), false).unwrap();
        world.later();
        let view = world.view(0, 0).unwrap();
        assert!(view.looked && view.agent.is_none() && agent.start(&world).is_none(), "{bytes}");
    }
}

#[test]
fn what_makes_no_sense_from_a_worker_that_runs_changes_nothing() {
    let (mut world, mut agents) = at_work(2, checkpoint("RankZero"));
    let mut forged: Value = serde_json::to_value(&agents[0].report).unwrap();
    forged["phase"] = json!("Exited");
    forged["sequence"] = json!(1_000);
    forged["exit"] = json!({"code": 1, "signal": null, "toldToStop": false, "logTail": "", "at": world.clock.now()});
    let hostile = [
        b"{".to_vec(),
        vec![b'['; 200_000],
        vec![b'x'; 8 << 20],
        // Its neighbour's word in its own place.
        serde_json::to_vec(&forged).unwrap(),
    ];
    let report = world.control(0, 1).unwrap().report_put;
    for bytes in hostile {
        world.store.redeem_put(&report.url, Bytes::from(bytes), false).unwrap();
        // Workers that only go on are read every minute.
        world.later();
        world.later();
        let heard = world.view(0, 1).unwrap().agent.map(|agent| (agent.phase, agent.exit.is_some()));
        assert_eq!(heard, Some(("Running".to_owned(), false)));
    }
    agents[1].says(&world, |report| ends(report, world.clock.now(), 0));
    world.later();
    world.later();
    assert_eq!(world.view(0, 1).unwrap().agent.unwrap().phase, "Exited", "and it is heard again");
}

#[test]
fn checkpoints_that_cannot_work_are_told_of_once() {
    let mut world = World::new(1, checkpoint("RankZero"));
    world.look();
    let mut agent = Agent::boot(&mut world, 0, 0);
    agent.says(&world, |_| {});
    world.later();
    agent.says(&world, |report| {
        runs(report);
        report.restore = Some(RestoreOutcome { restored: Some(Restored { seq: 5, step: 1200 }), rejected: vec![] });
        steps(report, 1200);
    });
    world.later();
    assert!(!world.events().iter().any(|event| event.starts_with("NotResumed")), "{:?}", world.events());
    for step in [0, 10, 20, 30, 40] {
        agent.says(&world, |report| steps(report, step));
        world.later();
        if step == 20 {
            world.restart();
        }
    }
    let told = |word: &str| world.events().into_iter().filter(|e| e.starts_with(word)).collect::<Vec<_>>();
    let resumed = told("NotResumed");
    assert_eq!(resumed.len(), 1, "{resumed:?}");
    assert!(resumed[0].contains("step 1200") && resumed[0].contains("TRADEWIND_RESUME_PATH"), "{resumed:?}");
    // An interval of five seconds lets a first save be expected within 100 s.
    for _ in 0..5 {
        agent.says(&world, |_| {});
        world.later();
    }
    let unsaved = world.events().into_iter().filter(|e| e.starts_with("NothingSaved")).collect::<Vec<_>>();
    assert_eq!(unsaved.len(), 1, "{:?}", world.events());
    assert!(unsaved[0].contains("(out)") && unsaved[0].contains("(*-state)"), "{unsaved:?}");
}

#[test]
fn an_idle_gang_costs_a_read_now_and_then_and_no_write() {
    let (mut world, _agents) = at_work(4, checkpoint("RankZero"));
    world.later();
    let before = world.store.objects("mailbox");
    world.operator.ctx.take_asked();
    for _ in 0..36 {
        world.clock.advance(Duration::from_secs(5));
        world.look();
    }
    assert_eq!(world.store.objects("mailbox"), before, "three minutes without a write");
    assert_eq!(world.operator.ctx.take_asked(), [], "and without news");
}

#[test]
fn the_folders_of_a_deleted_job_go_with_its_pods() {
    let mut world = World::new(2, Value::Null);
    world.look();
    assert_eq!(world.store.objects("mailbox").len(), 2);
    world.job["metadata"]["deletionTimestamp"] = json!(world.clock.now());
    world.later();
    assert_eq!(world.store.objects("mailbox").len(), 2, "its Pods still write");
    world.pods.clear();
    world.later();
    assert!(world.store.objects("mailbox").is_empty());
}
