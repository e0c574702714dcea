//! A cache of one kind: plain, synchronous, and going back in time only with a complete list.
//!
//! In production [`watch`](crate::watch) feeds it; in the world simulation the scheduler does, late, twice or in another order. A late
//! event never brings back an older version or an object that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::object::{Key, Object, Typed};

/// How many ended objects are remembered, so that late news of them is recognised.
const MAX_ENDED: usize = 4_096;

/// News about objects of one kind.
#[derive(Debug, Clone)]
pub enum Event<K> {
    /// The object exists in this version.
    Set(Arc<K>),
    /// The object is gone; this was its last version, with the resourceVersion of its end.
    Gone(Arc<K>),
    /// These objects exist, and no others.
    Relist(Vec<Arc<K>>),
}

/// Objects of one kind as last heard of, with indexes by label.
#[derive(Debug)]
pub struct Cache<K> {
    rows: BTreeMap<Key, Arc<K>>,
    ended: BTreeMap<Key, u64>,
    /// Versions known from answers to own writes, of which no event has told yet.
    untold: BTreeMap<Key, u64>,
    indexes: Vec<Index>,
    is_ready: bool,
}

#[derive(Debug)]
struct Index {
    label: &'static str,
    keys: BTreeMap<String, BTreeSet<Key>>,
}

impl<K: Typed> Default for Cache<K> {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl<K: Typed> Cache<K> {
    /// An empty cache that can be asked by the values of these labels.
    pub fn new(labels: &[&'static str]) -> Self {
        let indexes = labels.iter().map(|label| Index { label, keys: BTreeMap::new() }).collect();
        Self { rows: BTreeMap::new(), ended: BTreeMap::new(), untold: BTreeMap::new(), indexes, is_ready: false }
    }

    /// Whether a first complete list has arrived. Before, an absent object means nothing.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Takes in news and tells which keys look different now. Older versions and repetitions change nothing. The event of an own
    /// write counts as news, whether it or the answer came first: the others have not heard of it.
    pub fn apply(&mut self, event: Event<K>) -> Vec<Key> {
        match event {
            Event::Set(object) => self.hear(object).into_iter().collect(),
            Event::Gone(object) => self.end(&*object).into_iter().collect(),
            Event::Relist(objects) => self.relist(objects),
        }
    }

    /// Takes in the answer to an own write, before its event arrives. True if the cache looks different now.
    pub fn apply_own(&mut self, object: Arc<K>) -> bool {
        let (key, new) = (Key::of(&*object), version(&*object));
        let differs = self.set(object).is_some();
        if differs {
            self.untold.insert(key, new);
        }
        differs
    }

    /// The object as last heard of.
    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.rows.get(key)
    }

    /// All objects, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.rows.values()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The objects whose label has this value, ordered by key. The label must be one the cache was made with.
    pub fn by_label<'a>(&'a self, label: &str, value: &str) -> impl Iterator<Item = &'a Arc<K>> + use<'a, K> {
        let index = self.indexes.iter().find(|index| index.label == label);
        debug_assert!(index.is_some(), "the cache has no index by {label}");
        let keys = index.and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.rows.get(key))
    }

    fn hear(&mut self, object: Arc<K>) -> Option<Key> {
        let (key, told) = (Key::of(&*object), version(&*object));
        let is_own = self.untold.get(&key) == Some(&told);
        if self.untold.get(&key).is_some_and(|untold| *untold <= told) {
            self.untold.remove(&key);
        }
        self.set(object).or_else(|| is_own.then_some(key))
    }

    fn set(&mut self, object: Arc<K>) -> Option<Key> {
        let key = Key::of(&*object);
        let new = version(&*object);
        let known = self.rows.get(&key).map(|known| version(&**known)).or_else(|| self.ended.get(&key).copied());
        if known.is_some_and(|known| known >= new) {
            return None;
        }
        self.ended.remove(&key);
        self.insert(key.clone(), object);
        Some(key)
    }

    fn end(&mut self, object: &K) -> Option<Key> {
        let key = Key::of(object);
        let end = version(object);
        let known = self.rows.get(&key).map(|known| version(&**known));
        if known.is_some_and(|known| known > end) {
            return None;
        }
        let last = self.ended.entry(key.clone()).or_default();
        *last = end.max(*last);
        self.untold.remove(&key);
        self.forget_oldest();
        self.remove(&key).then_some(key)
    }

    fn relist(&mut self, objects: Vec<Arc<K>>) -> Vec<Key> {
        self.is_ready = true;
        self.ended.clear();
        let listed: BTreeSet<Key> = objects.iter().map(|object| Key::of(&**object)).collect();
        let mut changed: Vec<Key> = self.rows.keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in &changed {
            self.remove(key);
            self.untold.remove(key);
        }
        changed.extend(objects.into_iter().filter_map(|object| self.take_listed(object)));
        changed
    }

    /// A list is the truth even where it is older than what is known: the API server may have been restored from an earlier state, and
    /// every write against what it no longer knows would fail for ever. If only the answer to an own write was faster, its event follows.
    fn take_listed(&mut self, object: Arc<K>) -> Option<Key> {
        let key = Key::of(&*object);
        if self.rows.get(&key).is_none_or(|known| version(&**known) <= version(&*object)) {
            return self.hear(object);
        }
        self.untold.remove(&key);
        self.insert(key.clone(), object);
        Some(key)
    }

    fn insert(&mut self, key: Key, object: Arc<K>) {
        self.remove(&key);
        for index in &mut self.indexes {
            if let Some(value) = label(&*object, index.label) {
                index.keys.entry(value.to_owned()).or_default().insert(key.clone());
            }
        }
        self.rows.insert(key, object);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(object) = self.rows.remove(key) else { return false };
        for index in &mut self.indexes {
            let Some(value) = label(&*object, index.label) else { continue };
            if let Some(keys) = index.keys.get_mut(value) {
                keys.remove(key);
                if keys.is_empty() {
                    index.keys.remove(value);
                }
            }
        }
        true
    }

    fn forget_oldest(&mut self) {
        if self.ended.len() > MAX_ENDED {
            let mut versions: Vec<u64> = self.ended.values().copied().collect();
            versions.sort_unstable();
            let middle = versions[versions.len() / 2];
            self.ended.retain(|_, version| *version >= middle);
        }
    }
}

/// A resourceVersion as a number: decimal and comparable within one resource since Kubernetes 1.35 says so, and always was in
/// etcd. Anything else counts as 0.
fn version(object: &dyn Object) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn label<'a>(object: &'a dyn Object, label: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(label).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(name: &str, version: u64, job: &str) -> Arc<ConfigMap> {
        let metadata = ObjectMeta {
            namespace: Some("n".to_owned()),
            name: Some(name.to_owned()),
            resource_version: Some(version.to_string()),
            labels: Some([("job".to_owned(), job.to_owned())].into()),
            ..ObjectMeta::default()
        };
        Arc::new(ConfigMap { metadata, ..ConfigMap::default() })
    }

    fn key(name: &str) -> Key {
        Key::namespaced("n", name)
    }

    fn names(cache: &Cache<ConfigMap>, job: &str) -> Vec<String> {
        cache.by_label("job", job).filter_map(|object| object.metadata.name.clone()).collect()
    }

    #[test]
    fn late_and_repeated_events_change_nothing() {
        let mut cache = Cache::new(&["job"]);
        assert_eq!(cache.apply(Event::Set(object("a", 9, "x"))), [key("a")]);
        assert!(cache.apply(Event::Set(object("a", 9, "x"))).is_empty(), "the same version again");
        assert!(
            cache.apply(Event::Set(object("a", 8, "y"))).is_empty(),
            "an older version; 8 < 9 but also \"10\" < \"9\""
        );
        assert_eq!(cache.apply(Event::Set(object("a", 10, "y"))), [key("a")]);
        assert_eq!((names(&cache, "x"), names(&cache, "y")), (vec![], vec!["a".to_owned()]));
        assert_eq!(cache.apply(Event::Gone(object("a", 12, "y"))), [key("a")]);
        assert!(cache.apply(Event::Set(object("a", 11, "y"))).is_empty(), "a version from before its end");
        assert!(cache.is_empty() && names(&cache, "y").is_empty());
        assert_eq!(cache.apply(Event::Set(object("a", 13, "y"))), [key("a")], "made again");
    }

    #[test]
    fn the_end_of_a_predecessor_does_not_end_its_successor() {
        let mut cache = Cache::new(&[]);
        cache.apply(Event::Set(object("a", 5, "x")));
        assert!(cache.apply_own(object("a", 8, "x")), "made again by ourselves");
        assert!(cache.apply(Event::Gone(object("a", 7, "x"))).is_empty());
        assert!(cache.get(&key("a")).is_some());
        assert!(!cache.apply_own(object("a", 8, "x")));
    }

    #[test]
    fn the_event_of_an_own_write_is_news_once_even_after_its_answer() {
        let mut cache = Cache::new(&[]);
        assert!(cache.apply_own(object("a", 5, "x")) && cache.apply_own(object("a", 7, "x")));
        assert!(cache.apply(Event::Set(object("a", 5, "x"))).is_empty(), "a newer one is on its way");
        assert_eq!(cache.apply(Event::Set(object("a", 7, "x"))), [key("a")]);
        assert!(cache.apply(Event::Set(object("a", 7, "x"))).is_empty(), "told already");
        assert!(cache.apply_own(object("a", 8, "x")));
        assert_eq!(cache.apply(Event::Set(object("a", 9, "x"))), [key("a")]);
        assert!(cache.apply(Event::Set(object("a", 8, "x"))).is_empty(), "overtaken");
        assert!(cache.apply_own(object("a", 10, "x")));
        assert_eq!(cache.apply(Event::Relist(vec![object("a", 10, "x")])), [key("a")]);
        assert_eq!(cache.apply(Event::Set(object("b", 11, "x"))), [key("b")]);
        assert!(!cache.apply_own(object("b", 11, "x")), "the event came first");
        assert!(cache.apply(Event::Set(object("b", 11, "x"))).is_empty());
    }

    #[test]
    fn a_list_tells_what_came_went_and_changed() {
        let mut cache = Cache::new(&["job"]);
        assert!(!cache.is_ready());
        cache.apply(Event::Set(object("a", 1, "x")));
        cache.apply(Event::Set(object("b", 2, "x")));
        cache.apply(Event::Set(object("c", 9, "x")));
        let changed = cache.apply(Event::Relist(vec![object("b", 2, "x"), object("c", 7, "y"), object("d", 4, "y")]));
        assert_eq!(changed, [key("a"), key("c"), key("d")], "c is older: the server was restored");
        assert!(cache.is_ready());
        assert_eq!(names(&cache, "x"), ["b"]);
        assert_eq!(names(&cache, "y"), ["c", "d"]);
        assert_eq!(cache.apply(Event::Set(object("c", 8, "y"))), [key("c")], "and goes on from there");
    }

    #[test]
    fn ended_objects_are_forgotten_oldest_first() {
        let mut cache = Cache::<ConfigMap>::new(&[]);
        for version in 1..=5_000 {
            cache.apply(Event::Gone(object(&format!("o{version}"), version, "x")));
        }
        assert!(cache.ended.len() <= MAX_ENDED);
        assert!(cache.apply(Event::Set(object("o5000", 4_999, "x"))).is_empty());
    }
}
