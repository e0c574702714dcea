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

/// Objects of one kind as last heard of, with indexes.
///
/// A typed object takes several times the room of what it says: most fields of its kind are absent, and each map has room for eleven. Where
/// there are thousands that are rarely looked at, [`Cache::packing`] keeps them as JSON and unpacks a copy for each look.
#[derive(Debug)]
pub struct Cache<K> {
    rows: BTreeMap<Key, Row<K>>,
    ended: BTreeMap<Key, u64>,
    /// Versions known from answers to own writes, of which no event has told yet.
    untold: BTreeMap<Key, u64>,
    indexes: Vec<Index<K>>,
    packs: fn(&K) -> bool,
    is_ready: bool,
}

/// What an index makes of an object.
type Value<K> = Box<dyn Fn(&K) -> Option<String> + Send + Sync>;

struct Index<K> {
    name: &'static str,
    value: Value<K>,
    keys: BTreeMap<String, BTreeSet<Key>>,
}

impl<K> std::fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.name, self.keys)
    }
}

/// One object.
enum Row<K> {
    Whole(Arc<K>),
    Packed { version: u64, json: Box<[u8]> },
}

impl<K> std::fmt::Debug for Row<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Whole(_)) { "whole" } else { "packed" })
    }
}

impl<K: Typed> Row<K> {
    fn new(object: Arc<K>, packs: fn(&K) -> bool) -> Self {
        if !packs(&object) {
            return Self::Whole(object);
        }
        match serde_json::to_vec(&*object) {
            // What cannot be unpacked again must not be packed.
            Ok(json) if serde_json::from_slice::<K>(&json).is_ok() => {
                Self::Packed { version: version(&*object), json: json.into_boxed_slice() }
            }
            _ => Self::Whole(object),
        }
    }

    fn version(&self) -> u64 {
        match self {
            Self::Whole(object) => version(&**object),
            Self::Packed { version, .. } => *version,
        }
    }

    fn object(&self) -> Arc<K> {
        match self {
            Self::Whole(object) => Arc::clone(object),
            Self::Packed { json, .. } => Arc::new(serde_json::from_slice(json).expect("it was unpacked for a trial")),
        }
    }
}

impl<K: Typed> Default for Cache<K> {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl<K: Typed> Cache<K> {
    /// An empty cache that can be asked by the values of these labels.
    pub fn new(labels: &[&'static str]) -> Self {
        let cache = Self {
            rows: BTreeMap::new(),
            ended: BTreeMap::new(),
            untold: BTreeMap::new(),
            indexes: Vec::new(),
            packs: |_| false,
            is_ready: false,
        };
        labels.iter().fold(cache, |cache, name| cache.indexed(name, |object| label(object, name).map(str::to_owned)))
    }

    /// The same, still empty, that can also be asked by what `value` makes of an object; objects of which it makes nothing are not found.
    pub fn indexed(mut self, name: &'static str, value: impl Fn(&K) -> Option<String> + Send + Sync + 'static) -> Self {
        self.indexes.push(Index { name, value: Box::new(value), keys: BTreeMap::new() });
        self
    }

    /// The same, still empty, that keeps the objects packed of which `packs` says so.
    pub fn packing(mut self, packs: fn(&K) -> bool) -> Self {
        self.packs = packs;
        self
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
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.rows.get(key).map(Row::object)
    }

    /// All objects, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = Arc<K>> {
        self.rows.values().map(Row::object)
    }

    /// The objects that are not packed, ordered by key.
    pub fn whole(&self) -> impl Iterator<Item = &Arc<K>> {
        self.rows.values().filter_map(|row| if let Row::Whole(object) = row { Some(object) } else { None })
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The objects for which the index has this value, ordered by key. The index must be one the cache was made with; one by a label has its
    /// name.
    pub fn by<'a>(&'a self, index: &str, value: &str) -> impl Iterator<Item = Arc<K>> + use<'a, K> {
        let keys = self.index(index).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.rows.get(key)).map(Row::object)
    }

    /// The keys of all objects for which the index has a value, ordered by this value. Unpacks nothing.
    pub fn keys_by<'a>(&'a self, index: &str) -> impl Iterator<Item = &'a Key> + use<'a, K> {
        self.index(index).into_iter().flat_map(|index| index.keys.values().flatten())
    }

    fn index(&self, name: &str) -> Option<&Index<K>> {
        let index = self.indexes.iter().find(|index| index.name == name);
        debug_assert!(index.is_some(), "the cache has no index by {name}");
        index
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
        let known = self.rows.get(&key).map(Row::version).or_else(|| self.ended.get(&key).copied());
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
        let known = self.rows.get(&key).map(Row::version);
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
        if self.rows.get(&key).is_none_or(|known| known.version() <= version(&*object)) {
            return self.hear(object);
        }
        self.untold.remove(&key);
        self.insert(key.clone(), object);
        Some(key)
    }

    fn insert(&mut self, key: Key, object: Arc<K>) {
        self.remove(&key);
        for index in &mut self.indexes {
            if let Some(value) = (index.value)(&object) {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        self.rows.insert(key, Row::new(object, self.packs));
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(row) = self.rows.remove(key) else { return false };
        let object = row.object();
        for index in &mut self.indexes {
            let Some(value) = (index.value)(&object) else { continue };
            if let Some(keys) = index.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    index.keys.remove(&value);
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
        cache.by("job", job).filter_map(|object| object.metadata.name.clone()).collect()
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

    #[test]
    fn packed_objects_are_found_as_they_were_and_leave_no_trace() {
        let whole = Cache::new(&["job"]);
        let packed = Cache::new(&["job"]).packing(|object: &ConfigMap| object.metadata.name.as_deref() != Some("w"));
        for mut cache in [whole, packed.indexed("all", |object| object.metadata.resource_version.clone())] {
            let packs = cache.indexes.len() > 1;
            for (name, version, job) in [("a", 9, "x"), ("b", 8, "y"), ("w", 7, "x")] {
                assert_eq!(cache.apply(Event::Set(object(name, version, job))), [key(name)]);
            }
            assert_eq!(cache.get(&key("a")), Some(object("a", 9, "x")));
            assert_eq!(names(&cache, "x"), ["a", "w"]);
            assert_eq!(cache.whole().count(), if packs { 1 } else { 3 });
            if packs {
                assert_eq!(cache.keys_by("all").collect::<Vec<_>>(), [&key("w"), &key("b"), &key("a")], "by version");
            }
            assert!(cache.apply(Event::Set(object("a", 8, "y"))).is_empty(), "older");
            assert_eq!(cache.apply(Event::Set(object("a", 10, "y"))), [key("a")]);
            assert_eq!(
                (names(&cache, "x"), names(&cache, "y")),
                (vec!["w".to_owned()], vec!["a".to_owned(), "b".to_owned()])
            );
            for (name, version) in [("a", 12), ("b", 13), ("w", 14)] {
                cache.apply(Event::Gone(object(name, version, "y")));
            }
            assert!(cache.is_empty() && cache.indexes.iter().all(|index| index.keys.is_empty()));
        }
    }
}
