//! Feeds the caches from the API server and tells the work queue what has changed.
//!
//! Scoped, so that memory does not grow with other people's objects: our own kinds; Pods with our label and Pods on our Node (two
//! watches, one cache), those on other nodes without what nobody reads; our Node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinSet;
use tradewind_api::{RentedMachine, names};
use tradewind_cluster::cache::Event;
use tradewind_cluster::watch::{Watch, events};
use tradewind_cluster::{Key, Typed};

use super::inbox::Inbox;
use super::queue::Work;
use crate::context::{Cached, Caches, Context, routes};
use crate::controllers::pod;
use crate::telemetry::metrics;

/// Starts all watches. They end when the set is dropped.
pub fn start(client: &kube::Client, ctx: &Arc<Context>, inbox: &Arc<Inbox>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(one(client.clone(), Watch::default(), ctx, inbox, |c| &c.jobs));
    tasks.spawn(one(client.clone(), Watch::default(), ctx, inbox, |c| &c.providers));
    let node = Watch { fields: Some(format!("metadata.name={}", ctx.settings.node_name)), ..Watch::default() };
    tasks.spawn(one(client.clone(), node, ctx, inbox, |c| &c.nodes));
    tasks.spawn(machines(client.clone(), Arc::clone(ctx), Arc::clone(inbox)));

    let labelled = Watch { label_present: Some(names::JOB_UID), ..Watch::default() };
    let on_node = Watch { fields: Some(format!("spec.nodeName={}", ctx.settings.node_name)), ..Watch::default() };
    let merged = Arc::new(Mutex::new(Merge::default()));
    for (source, what) in [(0, labelled), (1, on_node)] {
        let (client, ctx, inbox, merged) = (client.clone(), Arc::clone(ctx), Arc::clone(inbox), Arc::clone(&merged));
        tasks.spawn(async move {
            let slim = |pod: &mut Pod| pod::slim(pod, &ctx.settings.node_name);
            events::<Pod>(client, what, slim, |event| {
                let mut merged = merged.lock().unwrap_or_else(PoisonError::into_inner);
                for event in merged.pass(source, event, &ctx.caches.pods) {
                    inbox.ask(feed(&ctx.caches.pods, event));
                }
            })
            .await;
        });
    }
    tasks
}

/// Kinds of which no complete list has arrived yet.
pub fn not_listed(caches: &Caches) -> Vec<&'static str> {
    let all = [
        ("TrainingJobs", caches.jobs.lock().is_ready()),
        ("RentedMachines", caches.rented.lock().is_ready()),
        ("Providers", caches.providers.lock().is_ready()),
        ("Pods", caches.pods.lock().is_ready()),
        ("Nodes", caches.nodes.lock().is_ready()),
    ];
    all.into_iter().filter(|(_, listed)| !listed).map(|(kind, _)| kind).collect()
}

/// The work that everything in the caches asks for: where a new leader begins.
pub fn everything(caches: &Caches) -> BTreeSet<Work> {
    let mut work = BTreeSet::new();
    // One after the other: all of them unpacked at once would be the most that this process ever needs.
    work.extend(caches.jobs.lock().iter().flat_map(|o| routes(&*o)));
    work.extend(caches.rented.lock().iter().flat_map(|o| routes(&*o)));
    work.extend(caches.providers.lock().iter().flat_map(|o| routes(&*o)));
    work.extend(caches.pods.lock().iter().flat_map(|o| routes(&*o)));
    work.extend(caches.nodes.lock().iter().flat_map(|o| routes(&*o)));
    work
}

fn one<K>(
    client: kube::Client,
    what: Watch,
    ctx: &Arc<Context>,
    inbox: &Arc<Inbox>,
    cache: fn(&Caches) -> &Cached<K>,
) -> impl Future<Output = ()> + Send + use<K>
where
    K: Typed + kube::Resource<DynamicType = ()> + Debug,
{
    let (ctx, inbox) = (Arc::clone(ctx), Arc::clone(inbox));
    async move { events(client, what, |_| {}, |event| inbox.ask(feed(cache(&ctx.caches), event))).await }
}

/// RentedMachines, whose growing cost is also counted.
async fn machines(client: kube::Client, ctx: Arc<Context>, inbox: Arc<Inbox>) {
    events::<RentedMachine>(
        client,
        Watch::default(),
        |_| {},
        |event| {
            match &event {
                Event::Set(machine) => metrics().machine_seen(machine, false),
                Event::Gone(machine) => metrics().machine_gone(machine),
                Event::Relist(machines) => machines.iter().for_each(|m| metrics().machine_seen(m, true)),
            }
            inbox.ask(feed(&ctx.caches.rented, event));
        },
    )
    .await;
}

/// Takes in an event and tells whom the objects that look different now concern, as they were and as they are.
pub fn feed<K: Typed>(cache: &Cached<K>, event: Event<K>) -> BTreeSet<Work> {
    let concerns = |object: Arc<K>| routes(&*object);
    let before: BTreeMap<Key, Vec<Work>> = match &event {
        Event::Set(object) | Event::Gone(object) => {
            let key = Key::of(&**object);
            cache.get(&key).map(|old| (key, concerns(old))).into_iter().collect()
        }
        Event::Relist(_) => cache.lock().iter().map(|old| (Key::of(&*old), concerns(old))).collect(),
    };
    let told: Vec<Key> = match &event {
        Event::Set(object) | Event::Gone(object) => vec![Key::of(&**object)],
        Event::Relist(objects) => objects.iter().map(|object| Key::of(&**object)).collect(),
    };
    let mut changed: BTreeSet<Key> = cache.lock().apply(event).into_iter().collect();
    changed.extend(told.into_iter().filter(|key| cache.heard(key)));
    let mut work = BTreeSet::new();
    for key in changed {
        work.extend(before.get(&key).cloned().into_iter().flatten());
        work.extend(cache.get(&key).into_iter().flat_map(concerns));
    }
    work
}

/// Makes one stream of news out of two watches whose selections overlap. An object is gone when neither has it any more.
#[derive(Default)]
struct Merge {
    /// Keys that each source has; `None` before its first list.
    known: [Option<BTreeSet<Key>>; 2],
}

impl Merge {
    fn pass(&mut self, source: usize, event: Event<Pod>, cache: &Cached<Pod>) -> Vec<Event<Pod>> {
        match event {
            Event::Set(pod) => {
                if let Some(known) = &mut self.known[source] {
                    known.insert(Key::of(&*pod));
                }
                vec![Event::Set(pod)]
            }
            Event::Gone(pod) => {
                let key = Key::of(&*pod);
                if let Some(known) = &mut self.known[source] {
                    known.remove(&key);
                }
                // Still selected by the other: it only left this selection, or the other is about to tell its end too.
                let stays = self.known[1 - source].as_ref().is_some_and(|known| known.contains(&key));
                if stays { Vec::new() } else { vec![Event::Gone(pod)] }
            }
            Event::Relist(pods) => {
                self.known[source] = Some(pods.iter().map(|pod| Key::of(&**pod)).collect());
                let (Some(mine), Some(others)) = (&self.known[source], &self.known[1 - source]) else {
                    // Half a picture is no list yet.
                    return pods.into_iter().map(Event::Set).collect();
                };
                let theirs = others.iter().filter(|key| !mine.contains(key)).filter_map(|key| cache.get(key));
                let all = pods.into_iter().chain(theirs).collect();
                vec![Event::Relist(all)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, version: u64) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("n".to_owned());
        pod.metadata.resource_version = Some(version.to_string());
        Arc::new(pod)
    }

    struct Pods {
        merge: Merge,
        cache: Cached<Pod>,
    }

    impl Pods {
        fn tell(&mut self, source: usize, event: Event<Pod>) -> String {
            for event in self.merge.pass(source, event, &self.cache) {
                feed(&self.cache, event);
            }
            let names: Vec<_> = self.cache.all().iter().filter_map(|p| p.metadata.name.clone()).collect();
            format!("{}{}", if self.cache.lock().is_ready() { "" } else { "not ready: " }, names.join(" "))
        }
    }

    #[test]
    fn a_pod_is_gone_when_neither_watch_has_it() {
        let mut pods = Pods { merge: Merge::default(), cache: Cached::default() };
        assert_eq!(pods.tell(0, Event::Relist(vec![pod("both", 1), pod("labelled", 2)])), "not ready: both labelled");
        assert_eq!(pods.tell(1, Event::Relist(vec![pod("both", 1), pod("stranger", 3)])), "both labelled stranger");
        assert_eq!(pods.tell(0, Event::Gone(pod("both", 5))), "both labelled stranger", "its label was taken off");
        assert_eq!(pods.tell(1, Event::Gone(pod("both", 6))), "labelled stranger");
        assert_eq!(pods.tell(1, Event::Relist(vec![])), "labelled", "the stranger went while the watch was broken");
        assert_eq!(pods.tell(0, Event::Relist(vec![pod("new", 9)])), "new");
        assert_eq!(pods.tell(1, Event::Set(pod("new", 10))), "new");
        assert_eq!(pods.tell(0, Event::Gone(pod("new", 11))), "new");
        assert_eq!(pods.tell(1, Event::Gone(pod("new", 11))), "", "deleted: both tell");
    }

    #[test]
    fn news_of_a_pod_concerns_its_job_before_and_after() {
        let cache = Cached::<Pod>::default();
        let labelled = |job: &str, version| {
            let mut pod = (*pod("p", version)).clone();
            pod.metadata.labels = Some([(names::JOB_NAME.to_owned(), job.to_owned())].into());
            Arc::new(pod)
        };
        let jobs = |work: BTreeSet<Work>| -> Vec<String> {
            work.into_iter()
                .filter(|(c, _)| *c == crate::controllers::training_job::NAME)
                .map(|(_, k)| k.name)
                .collect()
        };
        assert_eq!(jobs(feed(&cache, Event::Set(labelled("a", 1)))), ["a"]);
        assert_eq!(jobs(feed(&cache, Event::Set(labelled("b", 2)))), ["a", "b"]);
        assert_eq!(jobs(feed(&cache, Event::Set(labelled("b", 2)))), Vec::<String>::new(), "nothing new");
        cache.own(&labelled("b", 3));
        assert_eq!(jobs(feed(&cache, Event::Set(labelled("b", 3)))), ["b"], "an own write is news to the others");
        assert_eq!(jobs(feed(&cache, Event::Set(labelled("b", 3)))), Vec::<String>::new(), "once");
        assert_eq!(jobs(feed(&cache, Event::Relist(vec![]))), ["b"]);
    }
}
