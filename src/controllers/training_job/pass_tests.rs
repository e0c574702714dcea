//! The controller over the ports in memory: what it reads besides its caches, and what it asks of others. The watch tells what the test lets
//! it tell.

use std::sync::Mutex;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde_json::{Value, json};
use tradewind_checkpoints::MemoryStore;
use tradewind_cluster::memory::controllers::schedule;
use tradewind_cluster::{Cluster, ClusterError, Gated, Memory, Removal, cache};
use tradewind_core::ManualClock;
use tradewind_core::gate::{Gate, Point, Verdict};

use super::*;
use crate::controllers::worker::{self, WorkerView};
use crate::test_context::{context, install};

/// What the API server was asked.
#[derive(Default)]
struct Calls(Mutex<Vec<String>>);

impl Calls {
    /// How often since the last time this was asked of anything.
    fn take(&self, call: &str) -> usize {
        std::mem::take(&mut *self.0.lock().unwrap()).iter().filter(|made| made.starts_with(call)).count()
    }

    fn lists_of_pods(&self) -> usize {
        self.take("list pods")
    }
}

impl Gate for Calls {
    fn before(&self, point: &Point) -> Verdict {
        self.0.lock().unwrap().push(format!("{} {}", point.verb, point.key));
        Verdict::Pass
    }
}

/// A cluster, a store and an operator.
struct World {
    clock: Arc<ManualClock>,
    cluster: Arc<Memory>,
    calls: Arc<Calls>,
    operator: TrainingJobs,
}

fn key(name: &str) -> Key {
    Key::namespaced("default", name)
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("in memory everything is ready")
}

impl World {
    fn new() -> Self {
        // An error says that a provider is installed already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_790_000_000).unwrap(), 1));
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        store.create_bucket("mailbox");
        store.create_bucket("ckpt");
        let cluster = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let calls = Arc::new(Calls::default());
        let gated = Gated::new(Arc::clone(&cluster) as _, Arc::clone(&calls) as _);
        let operator = TrainingJobs::new(Arc::new(context(Arc::clone(&clock) as _, &store, Arc::new(gated))));
        let world = Self { clock, cluster, calls, operator };
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "keys", "namespace": "default"},
            "data": {"AWS_ACCESS_KEY_ID": "YQ==", "AWS_SECRET_ACCESS_KEY": "Yg=="},
        }))
        .unwrap();
        now(world.api().add(secret)).unwrap();
        world
    }

    fn api(&self) -> &dyn Cluster {
        &*self.cluster
    }

    /// Applies a job.
    fn job(&self, name: &str, spec: &Value) {
        let mut full = json!({"template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let job: TrainingJob = serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": "default"}, "spec": full,
        }))
        .unwrap();
        now(self.api().add(job)).unwrap();
        self.clock.advance(Duration::from_secs(10));
    }

    /// The watch tells of all jobs, and of these Pods.
    fn tell(&self, pods: Vec<Arc<Pod>>) {
        let caches = &self.operator.ctx.caches;
        caches.jobs.lock().apply(cache::Event::Relist(self.cluster.peek_all::<TrainingJob>()));
        caches.pods.lock().apply(cache::Event::Relist(pods));
    }

    /// One reconcile.
    fn pass(&self, name: &str) -> Result<Wake, Failure> {
        now(self.operator.run(&key(name)))
    }

    /// Reconciles, as long as there is a next step. The watch is as fast.
    fn settle(&self, name: &str) {
        for _ in 0..10 {
            self.tell(self.cluster.peek_all::<Pod>());
            if !matches!(self.pass(name).unwrap(), Wake::After(Duration::ZERO, _)) {
                return;
            }
        }
        panic!("no end: {:?}", self.status(name));
    }

    fn status(&self, name: &str) -> TrainingJobStatus {
        self.cluster.peek::<TrainingJob>(&key(name)).unwrap().status.clone().unwrap_or_default()
    }

    fn pods(&self) -> Vec<String> {
        self.cluster.peek_all::<Pod>().iter().filter_map(|pod| pod.metadata.name.clone()).collect()
    }

    /// A kubelet says so of a Pod.
    fn phase(&self, name: &str, status: &Value) {
        let mut pod = (*self.cluster.peek::<Pod>(&key(name)).unwrap()).clone();
        let mut whole = serde_json::to_value(pod.status.unwrap_or_default()).unwrap();
        whole.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        pod.status = Some(serde_json::from_value(whole).unwrap());
        now(self.api().write_status(pod)).unwrap();
    }

    /// The job's Pods get nodes, and its programs run.
    fn runs(&self, name: &str, workers: i64) {
        self.settle(name);
        schedule(&self.cluster, &mut |_| Some("gpu-0".to_owned()));
        let uid = self.cluster.peek::<TrainingJob>(&key(name)).unwrap().metadata.uid.clone().unwrap();
        for rank in 0..workers {
            let pod = if workers > 1 { format!("{name}-0-{rank}") } else { format!("{name}-0") };
            self.phase(&pod, &json!({"phase": "Running"}));
            let agent = serving_agent();
            let view = WorkerView { looked: true, agent: Some(agent), last_report_read: true, ..WorkerView::default() };
            self.operator.ctx.workers.put(&worker::id(&install(), &uid, 0, rank), view);
        }
        self.settle(name);
        assert_eq!(self.status(name).phase, JobPhase::Running, "{}", self.status(name).message);
        self.calls.lists_of_pods();
    }
}

fn serving_agent() -> crate::serving::AgentView {
    crate::serving::AgentView { phase: "Running".to_owned(), ..crate::serving::AgentView::bare() }
}

fn only() -> Value {
    json!({"placement": {"inCluster": "Only"}})
}

fn gang() -> Value {
    json!({"placement": {"inCluster": "Only"}, "workers": 2})
}

fn saves(in_cluster: &str) -> Value {
    json!({
        "placement": {"inCluster": in_cluster}, "gpu": {"count": 1, "models": ["RTX4090"]},
        "checkpoint": {"path": "out", "pattern": "step-{step}", "to": "s3://ckpt/run/", "secretRef": {"name": "keys"}},
    })
}

/// Puts up the fence of an attempt at the job's place.
fn fence(world: &World, attempt: u32) {
    let ctx = &world.operator.ctx;
    let catalogue = now(ctx.catalogue("default", "s3://ckpt/run/", "keys")).ok().unwrap();
    let run = world.status("j").run_id.unwrap();
    now(catalogue.begin_attempt(&run, attempt, None, ctx.clock.now())).unwrap().unwrap();
}

#[test]
fn a_pod_that_the_watch_has_not_told_is_asked_for_before_it_counts_as_lost() {
    let world = World::new();
    world.job("j", &only());
    world.runs("j", 1);
    world.settle("j");
    assert_eq!(world.calls.lists_of_pods(), 0, "all are told: nobody asks");
    world.tell(Vec::new());
    world.pass("j").unwrap();
    assert_eq!((world.calls.lists_of_pods(), world.status("j").phase), (1, JobPhase::Running));

    now(world.api().remove::<Pod>(&key("j-0"), &Removal::default().at_once())).unwrap();
    world.tell(Vec::new());
    world.pass("j").unwrap();
    assert_eq!((world.status("j").attempt, world.status("j").preemptions), (Some(1), 1), "now it is lost");
}

#[test]
fn an_attempt_is_not_over_while_a_pod_of_it_is_that_the_watch_has_not_told() {
    let world = World::new();
    world.job("j", &gang());
    world.runs("j", 2);
    world.phase("j-0-1", &json!({"phase": "Failed", "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1}}},
    ]}));
    world.tell(world.cluster.peek_all::<Pod>());
    world.pass("j").unwrap();
    assert!(world.status("j").ending.is_some(), "{:?}", world.status("j"));
    // It is deleted, and its program has its grace period.
    assert!(world.cluster.peek::<Pod>(&key("j-0-0")).unwrap().metadata.deletion_timestamp.is_some());
    for _ in 0..3 {
        world.tell(Vec::new());
        world.pass("j").unwrap();
        assert_eq!(world.status("j").attempt, Some(0), "its program still runs");
    }
    now(world.api().remove::<Pod>(&key("j-0-0"), &Removal::default().at_once())).unwrap();
    world.settle("j");
    assert_eq!(world.status("j").attempt, Some(1));
}

#[test]
fn a_deleted_job_leaves_the_queue_to_the_next() {
    let world = World::new();
    world.job("first", &gang());
    world.job("next", &gang());
    world.settle("first");
    schedule(&world.cluster, &mut |_| None);
    world.settle("first");
    assert_eq!(world.status("first").phase, JobPhase::Waiting);
    world.settle("next");
    let placed = |name: &str| {
        let conditions = world.status(name).conditions;
        conditions::condition(&conditions, conditions::PLACED).map(|c| c.reason.clone()).unwrap_or_default()
    };
    assert_eq!((placed("next").as_str(), world.pods().len()), ("WaitingForTurn", 2));

    now(world.api().remove::<TrainingJob>(&key("first"), &Removal::default())).unwrap();
    world.operator.ctx.take_asked();
    world.tell(world.cluster.peek_all::<Pod>());
    world.pass("first").unwrap();
    assert_eq!(world.operator.ctx.take_asked(), [(NAME, key("next"))], "it is woken");
    world.settle("next");
    assert!(world.pods().contains(&"next-0-1".to_owned()), "{:?}", world.pods());
}

#[test]
fn the_agent_s_container_is_no_reason_to_refuse_a_job_that_rents() {
    for (in_cluster, accepted) in [("Never", true), ("Prefer", false)] {
        let world = World::new();
        world.cluster.set_admission(Box::new(|_, object| {
            let refused = ClusterError::Refused {
                code: 403,
                reason: "Forbidden".to_owned(),
                message: "minimum cpu usage per Container is 100m".to_owned(),
                causes: Vec::new(),
            };
            let small = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.init_containers.is_some());
            let pod = object.any_ref().downcast_ref::<Pod>();
            if pod.is_some_and(small) { Err(refused) } else { Ok(()) }
        }));
        world.job("j", &saves(in_cluster));
        world.settle("j");
        let conditions = world.status("j").conditions;
        let is = conditions::condition(&conditions, conditions::ACCEPTED).unwrap();
        assert_eq!(is.status == "True", accepted, "{in_cluster}: {}", is.message);
    }
}

#[test]
fn somebody_else_s_pod_of_that_name_is_told_of_and_left_alone() {
    let world = World::new();
    let stranger: Pod = serde_json::from_value(json!({
        "metadata": {"name": "j-0", "namespace": "default"}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
    .unwrap();
    now(world.api().add(stranger)).unwrap();
    world.job("j", &only());
    world.settle("j");
    world.settle("j");
    let message = world.status("j").message;
    assert!(message.contains("j-0 is there already and is not this job's"), "{message}");
    assert_eq!(world.pods(), ["j-0"]);
}

#[test]
fn a_number_that_the_storage_knows_is_not_used_again_in_the_cluster_either() {
    let world = World::new();
    world.job("j", &saves("Only"));
    world.settle("j");
    fence(&world, 0);
    world.tell(Vec::new());
    let lags = world.pass("j").unwrap_err();
    assert!(lags.benign && lags.reason == "WatchLags", "its Pod is there: {lags:?}");
    assert_eq!(world.pods(), ["j-0"]);
    now(world.api().remove::<Pod>(&key("j-0"), &Removal::default().at_once())).unwrap();
    world.settle("j");
    assert_eq!((world.status("j").attempt, world.pods()), (Some(1), vec!["j-1".to_owned()]));
}

#[test]
fn a_pod_that_is_known_is_no_sign_of_a_watch_that_lags() {
    let world = World::new();
    world.job("j", &saves("Prefer"));
    world.settle("j");
    // Its machine was torn away, with all that was known of it; its Pod waits.
    schedule(&world.cluster, &mut |_| None);
    fence(&world, 0);
    world.clock.advance(Duration::from_mins(10));
    world.settle("j");
    assert_eq!(world.status("j").attempt, Some(1), "{}", world.status("j").message);
}

#[test]
fn what_is_only_on_its_way_is_not_written_at_every_step() {
    let writes = "replace_status trainingjobs/default/j";
    let world = World::new();
    world.job("j", &gang());
    world.settle("j");
    assert!(world.calls.take(writes) > 0);
    schedule(&world.cluster, &mut |_| Some("gpu-0".to_owned()));
    world.tell(world.cluster.peek_all::<Pod>());
    let wake = world.pass("j").unwrap();
    assert_eq!(world.calls.take(writes), 0, "it has its nodes, and will run in a moment");
    let Wake::After(left, _) = wake else { panic!("{wake:?}") };
    world.clock.advance(left);
    world.settle("j");
    assert_eq!((world.calls.take(writes), world.status("j").phase), (1, JobPhase::Starting), "it did not");
}
