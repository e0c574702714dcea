//! What all controllers share: ports, caches, accounts, market, settings.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Provider, Reason, RentedMachine, TrainingJob, conditions, names};
use tradewind_checkpoints::{Mailbox, Stores};
use tradewind_cluster::{Cache, Cluster, Key, Object, Typed};
use tradewind_core::Clock;

use crate::accounts::access::Namespaces;
use crate::accounts::{Accounts, OpenAccount};
use crate::events::Told;
use crate::images::Images;
use crate::market::{Market, MarketKeeper, MarketReader};
use crate::runtime::queue::Work;
use crate::settings::Settings;
use crate::storage::OpenCatalogues;

/// Everything a controller may touch.
pub struct Context {
    /// The Kubernetes API.
    pub cluster: Arc<dyn Cluster>,
    /// Time and entropy.
    pub clock: Arc<dyn Clock>,
    /// What watches have told.
    pub caches: Caches,
    /// Rental accounts.
    pub accounts: Accounts,
    /// Builds handles of accounts.
    pub open_account: Arc<dyn OpenAccount>,
    /// Offers and refusals.
    pub market: Market,
    /// How large images are.
    pub images: Images,
    /// The mailbox; without it nothing is rented.
    pub mailbox: Option<Mailbox>,
    /// Opens users' stores.
    pub stores: Arc<dyn Stores>,
    /// Checkpoint catalogues that are open.
    pub catalogues: OpenCatalogues,
    /// Labels of Namespaces as last read.
    pub namespaces: Namespaces,
    /// The agent binary in the mailbox.
    pub agent: Option<AgentBinary>,
    /// Settings.
    pub settings: Settings,
    /// Events already told.
    pub told: Mutex<Told>,
    /// What the agents' machines are known to do, in memory only.
    pub machines: crate::controllers::rented_machine::Memory,
    /// What the agents in the cluster say.
    pub workers: crate::controllers::worker::Workers,
    /// Whose turn it is among jobs with several workers.
    pub turns: crate::controllers::training_job::turns::Turns,
    /// Pods that the API server has just accepted in a dry run.
    pub admitted: crate::controllers::training_job::admitted::Admitted,
    /// Keys that controllers ask to be looked at; drained by the runtime.
    pub asked: Mutex<Vec<Work>>,
}

/// The agent that machines fetch.
#[derive(Debug, Clone)]
pub struct AgentBinary {
    /// Its SHA-256 in lower-case hex, which is also its name in the mailbox.
    pub sha256: String,
}

/// Objects as the watches have told them.
pub struct Caches {
    /// TrainingJobs, packed.
    pub jobs: Cached<TrainingJob>,
    /// RentedMachines.
    pub rented: Cached<RentedMachine>,
    /// Providers.
    pub providers: Cached<Provider>,
    /// Pods of our jobs and on our Node. Those on other nodes are slim and packed.
    pub pods: Cached<Pod>,
    /// Our Node.
    pub nodes: Cached<Node>,
}

/// Index of the jobs that are not over.
const ONGOING: &str = "ongoing";
/// Index of the jobs that wait for room to rent, by their age.
const FOR_ROOM: &str = "for room";

impl Default for Caches {
    fn default() -> Self {
        // A job does not carry the label by which what belongs to it is found.
        let jobs = Cache::new(&[]).indexed(ONGOING, ongoing).indexed(FOR_ROOM, waits_for_room).packing(|_| true);
        Self {
            jobs: Cached::over(jobs),
            rented: Cached::default(),
            providers: Cached::default(),
            pods: Cached::over(Cache::new(&[names::JOB_UID]).packing(crate::controllers::pod::is_slim)),
            nodes: Cached::default(),
        }
    }
}

fn ongoing(job: &TrainingJob) -> Option<String> {
    let over = job.status.as_ref().is_some_and(|s| s.phase.is_terminal());
    (!over).then(String::new)
}

/// Since when a job is there that waits for offers or limits.
fn waits_for_room(job: &TrainingJob) -> Option<String> {
    let status = job.status.as_ref().filter(|s| s.phase == JobPhase::Waiting)?;
    let placed = conditions::condition(&status.conditions, conditions::PLACED)?;
    let waits = [Reason::LimitReached, Reason::NoOffer].iter().any(|r| r.as_str() == placed.reason);
    // Whole seconds in UTC: their texts are ordered as the times are.
    waits.then(|| job.metadata.creation_timestamp.as_ref().map_or_else(String::new, |at| at.0.to_string()))
}

/// A cache behind a lock.
pub struct Cached<K: Typed> {
    inner: Mutex<Cache<K>>,
    /// Keys of own writes whose event has not come yet: it will find the cache as it is, but the other controllers have not heard of it.
    unheard: Mutex<BTreeSet<Key>>,
}

impl<K: Typed> Default for Cached<K> {
    fn default() -> Self {
        Self::over(Cache::new(&[names::JOB_UID]))
    }
}

impl<K: Typed> Cached<K> {
    fn over(cache: Cache<K>) -> Self {
        Self { inner: Mutex::new(cache), unheard: Mutex::default() }
    }

    /// The cache itself, for feeding it.
    pub fn lock(&self) -> std::sync::MutexGuard<'_, Cache<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.lock().get(key)
    }

    /// All objects, by key. Where they are packed that is work: thousands of them belong into no pass.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.lock().iter().collect()
    }

    /// All objects that are not packed, by key.
    pub fn whole(&self) -> Vec<Arc<K>> {
        self.lock().whole().cloned().collect()
    }

    /// Objects that belong to the job with this uid.
    pub fn of_job(&self, uid: &str) -> Vec<Arc<K>> {
        self.lock().by(names::JOB_UID, uid).collect()
    }

    /// Takes the server's answer to a write of ours, unless something newer is known.
    pub fn own(&self, object: &Arc<K>) {
        if self.lock().apply_own(Arc::clone(object)) {
            self.unheard().insert(Key::of(&**object));
        }
    }

    /// True once after each own write of this object: its event is news to the other controllers.
    pub fn heard(&self, key: &Key) -> bool {
        self.unheard().remove(key)
    }

    fn unheard(&self) -> std::sync::MutexGuard<'_, BTreeSet<Key>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// Asks the runtime to look at a key soon.
    pub fn ask(&self, controller: &'static str, key: Key) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((controller, key));
    }

    /// Takes what controllers have asked for.
    pub fn take_asked(&self) -> Vec<Work> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks again at every job that waits for offers or machines.
    pub fn wake_waiting_jobs(&self) {
        self.ask_jobs(self.caches.jobs.lock().keys_by(ONGOING));
    }

    /// Looks again at the jobs that have waited longest for room: something that was paid for is gone. Only at a few: there is room for
    /// one, and if a thousand looked each time they would do nothing else.
    pub fn wake_next_jobs(&self) {
        const FEW: usize = 8;
        self.ask_jobs(self.caches.jobs.lock().keys_by(FOR_ROOM).take(FEW));
    }

    fn ask_jobs<'k>(&self, keys: impl Iterator<Item = &'k Key>) {
        for key in keys {
            self.ask(crate::controllers::training_job::NAME, key.clone());
        }
    }

    /// Whether somebody has cordoned our Node: nothing new is rented then.
    pub fn cordoned(&self) -> bool {
        let node = self.caches.nodes.get(&Key::cluster(self.settings.node_name.as_str()));
        node.is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)))
    }

    /// Has what was learned of the market written down before long.
    pub fn keep_market(&self) {
        self.ask(MarketKeeper::NAME, MarketKeeper::key());
    }

    /// Wants fresh offers for a while and wakes the readers.
    pub fn want_offers(&self) {
        self.want_offers_for(self.settings.offers_max_age * 4, self.settings.offers_max_age);
    }

    /// Wants the offers of this moment, and wakes the readers if they have none.
    pub fn want_offers_once(&self) {
        self.want_offers_for(self.settings.offers_max_age / 4, Duration::ZERO);
    }

    fn want_offers_for(&self, span: Duration, at_least: Duration) {
        let until = self.clock.monotonic() + span;
        let already = self.market.wanted(self.clock.monotonic() + at_least);
        self.market.want(self.clock.monotonic(), until);
        if !already {
            for account in self.accounts.all() {
                self.ask(MarketReader::NAME, Key::cluster(account.name.as_str()));
            }
        }
    }
}

/// Which keys of which controllers a changed object concerns.
pub fn routes(object: &dyn Object) -> Vec<Work> {
    use crate::controllers::{node, provider, rented_machine, training_job, worker};
    let meta = object.meta();
    let key = Key::of(object);
    let label = |name: &str| meta.labels.as_ref().and_then(|l| l.get(name)).cloned();
    let any = object.any_ref();
    if any.is::<TrainingJob>() {
        // Machines of the job look at it for their release and for the settlement.
        return vec![(training_job::NAME, key.clone()), (worker::NAME, key)];
    }
    if let Some(machine) = any.downcast_ref::<RentedMachine>() {
        let job = &machine.spec.job;
        return vec![
            (rented_machine::NAME, key),
            (training_job::NAME, Key::namespaced(job.namespace.as_str(), job.name.as_str())),
            (provider::NAME, Key::cluster(machine.spec.provider.as_str())),
        ];
    }
    if any.is::<Provider>() {
        return vec![(provider::NAME, key)];
    }
    if let Some(pod) = any.downcast_ref::<Pod>() {
        let mut work = Vec::new();
        if let Some(job) = label(names::JOB_NAME) {
            let job = Key::namespaced(key.namespace.clone(), job);
            work.extend([(training_job::NAME, job.clone()), (worker::NAME, job)]);
        }
        if let Some(machine) = pod.metadata.annotations.as_ref().and_then(|a| a.get(names::MACHINE)) {
            work.push((rented_machine::NAME, Key::cluster(machine.as_str())));
        }
        if !crate::controllers::pod::is_slim(pod) && !crate::controllers::pod::node(pod).is_empty() {
            work.push((node::NAME, Key::cluster(node::SINGLE)));
        }
        return work;
    }
    if any.is::<Node>() {
        return vec![(node::NAME, Key::cluster(node::SINGLE))];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tradewind_cluster::cache::Event;
    use tradewind_core::SystemClock;

    use super::*;
    use crate::controllers::training_job;

    fn job(name: &str, age: &str, phase: &str, reason: &str) -> Arc<TrainingJob> {
        let status = json!({ "phase": phase, "conditions": [{
            "type": "Placed", "status": "False", "reason": reason, "message": "", "lastTransitionTime": age,
        }] });
        let template = json!({ "spec": { "containers": [{
            "name": "train", "image": "train:1", "ports": [{ "containerPort": 29_500 }],
            "resources": { "limits": { "nvidia.com/gpu": 1, "memory": "1Gi" } },
        }] } });
        let spec = json!({
            "gpu": { "count": 1, "models": ["RTX4090"] }, "template": template,
            "checkpoint": { "to": "s3://b/p/", "path": "/ckpt", "pattern": "step-*", "secretRef": { "name": "s" } },
        });
        let meta =
            json!({ "namespace": "n", "name": name, "uid": name, "resourceVersion": "7", "creationTimestamp": age });
        let job = json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": meta, "spec": spec, "status": status,
        });
        Arc::new(serde_json::from_value(job).expect("a job"))
    }

    #[test]
    fn packed_jobs_are_as_they_were_and_those_that_wait_longest_are_woken() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let store = tradewind_checkpoints::MemoryStore::new(Arc::clone(&clock));
        let cluster = Arc::new(tradewind_cluster::Memory::new(Arc::clone(&clock)));
        let ctx = crate::test_context::context(clock, &store, cluster);
        let mut jobs = vec![
            job("over", "2026-01-01T00:00:00Z", "Complete", "NoOffer"),
            job("other", "2026-01-01T00:00:00Z", "Waiting", "QueuedInCluster"),
        ];
        // The younger its name, the older it is.
        jobs.extend(
            (10..20).map(|n| job(&format!("w{n}"), &format!("2026-01-{:02}T09:00:00Z", 40 - n), "Waiting", "NoOffer")),
        );
        ctx.caches.jobs.lock().apply(Event::Relist(jobs.clone()));
        for job in &jobs {
            let kept = ctx.caches.jobs.get(&Key::of(&**job)).expect("it is there");
            assert_eq!((&kept.spec, &kept.status), (&job.spec, &job.status));
            assert_eq!(kept.metadata, job.metadata);
        }
        assert!(ctx.caches.jobs.whole().is_empty());
        let names = |work: Vec<Work>| -> Vec<String> {
            assert!(work.iter().all(|(controller, _)| *controller == training_job::NAME));
            work.into_iter().map(|(_, key)| key.name).collect()
        };
        ctx.wake_next_jobs();
        assert_eq!(names(ctx.take_asked()), ["w19", "w18", "w17", "w16", "w15", "w14", "w13", "w12"]);
        ctx.wake_waiting_jobs();
        let woken = names(ctx.take_asked());
        assert_eq!((woken.len(), woken.contains(&"over".to_owned())), (11, false));
    }
}
