//! Rows, versions and the change log of the twin.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tradewind_core::Clock;

use super::{Admission, Authoriser};
use crate::object::{Key, Kind, Object, Typed, own};
use crate::port::{ClusterError, Review};

/// How many changes the log keeps. A watcher that is further behind must take a snapshot.
const LOG_LENGTH: usize = 8_192;

/// Namespaces that exist on every cluster.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// One change: an object in its new version, or in its last one if it is gone.
#[derive(Debug, Clone)]
pub struct Change {
    /// Position in the log of the whole cluster; rises by one with each change of any kind.
    pub index: u64,
    /// The kind of the object.
    pub kind: &'static Kind,
    /// The object; if it is gone, its last content with the resourceVersion of its end.
    pub object: Arc<dyn Object>,
    /// Whether the object is gone.
    pub gone: bool,
}

/// An earlier state of the whole cluster.
#[derive(Clone)]
pub struct Backup {
    tables: BTreeMap<&'static str, Table>,
    version: u64,
    unsettled: BTreeSet<(&'static str, Key)>,
}

/// A piece of the change log.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The changes, oldest first.
    pub changes: Vec<Change>,
    /// Where the next piece begins.
    pub next: u64,
}

pub(super) struct State {
    tables: BTreeMap<&'static str, Table>,
    version: u64,
    log: VecDeque<Change>,
    index: u64,
    /// Custom resources that were not written since their create: the next write changes them in any case.
    pub(super) unsettled: BTreeSet<(&'static str, Key)>,
    pub(super) goes_through_json: bool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) admission: Admission,
    pub(super) authoriser: Authoriser,
}

#[derive(Clone)]
struct Table {
    kind: &'static Kind,
    rows: BTreeMap<Key, Arc<dyn Object>>,
}

impl State {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let mut state = Self {
            tables: BTreeMap::new(),
            version: 0,
            log: VecDeque::new(),
            index: 0,
            unsettled: BTreeSet::new(),
            goes_through_json: false,
            clock,
            admission: Box::new(|_, _| Ok(())),
            authoriser: Box::new(|_| Review { allowed: true, reason: String::new() }),
        };
        for name in NAMESPACES {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let mut namespace = Namespace { metadata, ..Namespace::default() };
            state.stamp_new(&mut namespace, Namespace::KIND);
            prepare_namespace(&mut namespace);
            state.put(Namespace::KIND, Key::cluster(name), Arc::new(namespace));
        }
        state
    }

    /// Wall time as the API server writes it: whole seconds.
    pub(super) fn now(&self) -> Time {
        whole_second(self.clock.now())
    }

    pub(super) fn row(&self, kind: &'static Kind, key: &Key) -> Result<Arc<dyn Object>, ClusterError> {
        let table = self.tables.get(kind.plural).ok_or(ClusterError::NotFound)?;
        table.rows.get(key).cloned().ok_or(ClusterError::NotFound)
    }

    pub(super) fn all(&self, kind: &'static Kind) -> impl Iterator<Item = &Arc<dyn Object>> {
        self.tables.get(kind.plural).into_iter().flat_map(|table| table.rows.values())
    }

    /// Every object of every kind.
    pub(super) fn everything(&self) -> impl Iterator<Item = (&'static Kind, &Arc<dyn Object>)> {
        self.tables.values().flat_map(|table| table.rows.values().map(|object| (table.kind, object)))
    }

    pub(super) fn backup(&self) -> Backup {
        Backup { tables: self.tables.clone(), version: self.version, unsettled: self.unsettled.clone() }
    }

    pub(super) fn restore(&mut self, backup: &Backup, bumped: bool) {
        self.tables.clone_from(&backup.tables);
        self.unsettled.clone_from(&backup.unsettled);
        if !bumped {
            self.version = backup.version;
        }
        // Nobody can go on from what was logged before.
        self.log.clear();
        self.index += 1;
    }

    /// Identity and birth of a new object.
    pub(super) fn stamp_new(&self, object: &mut dyn Object, kind: &'static Kind) {
        let uid = uuid(self.clock.entropy(), self.clock.entropy());
        let now = self.now();
        let meta = object.meta_mut();
        meta.uid = Some(uid);
        meta.creation_timestamp = Some(now);
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.generation = kind.generation.then_some(1);
        meta.resource_version = None;
        tidy(meta);
    }

    /// Stores a version of an object and logs it.
    pub(super) fn put(&mut self, kind: &'static Kind, key: Key, mut object: Arc<dyn Object>) -> Arc<dyn Object> {
        self.version += 1;
        own(&mut object).meta_mut().resource_version = Some(self.version.to_string());
        self.settle(kind, &key);
        let table = self.tables.entry(kind.plural).or_insert_with(|| Table { kind, rows: BTreeMap::new() });
        table.rows.insert(key, Arc::clone(&object));
        self.note(kind, Arc::clone(&object), false);
        object
    }

    /// Ends an object. The answer is its last version, as the log shows it.
    pub(super) fn end(&mut self, kind: &'static Kind, key: &Key, mut last: Arc<dyn Object>) -> Arc<dyn Object> {
        if let Some(table) = self.tables.get_mut(kind.plural) {
            table.rows.remove(key);
        }
        self.settle(kind, key);
        self.version += 1;
        own(&mut last).meta_mut().resource_version = Some(self.version.to_string());
        self.note(kind, Arc::clone(&last), true);
        last
    }

    fn settle(&mut self, kind: &'static Kind, key: &Key) {
        if kind.custom && !self.unsettled.is_empty() {
            self.unsettled.remove(&(kind.plural, key.clone()));
        }
    }

    fn note(&mut self, kind: &'static Kind, object: Arc<dyn Object>, gone: bool) {
        self.index += 1;
        if self.log.len() == LOG_LENGTH {
            self.log.pop_front();
        }
        self.log.push_back(Change { index: self.index, kind, object, gone });
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    pub(super) fn changes(&self, kind: &'static Kind, since: u64) -> Option<Changes> {
        let oldest = self.index - self.log.len() as u64;
        if since < oldest {
            return None;
        }
        let skip = usize::try_from(since - oldest).unwrap_or(usize::MAX).min(self.log.len());
        let changes = self.log.range(skip..).filter(|change| change.kind == kind).cloned().collect();
        Some(Changes { changes, next: self.index })
    }
}

/// What the server gives a new namespace.
pub(super) fn prepare_namespace(namespace: &mut Namespace) {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    let labels = namespace.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name);
    namespace.spec = Some(NamespaceSpec { finalizers: Some(vec!["kubernetes".to_owned()]) });
    namespace.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() });
}

/// Empty maps and lists read back as absent.
pub(super) fn tidy(meta: &mut ObjectMeta) {
    meta.finalizers.take_if(|list| list.is_empty());
    meta.owner_references.take_if(|list| list.is_empty());
    meta.labels.take_if(|map| map.is_empty());
    meta.annotations.take_if(|map| map.is_empty());
}

pub(super) fn whole_second(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn uuid(high: u64, low: u64) -> String {
    // Version 4, variant 1, as the API server's uids.
    let high = (high & !0xF000) | 0x4000;
    let low = (low >> 2) | (1 << 63);
    let (a, b, c) = (high >> 32, (high >> 16) & 0xFFFF, high & 0xFFFF);
    format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xFFFF_FFFF_FFFF)
}
