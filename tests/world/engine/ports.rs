//! The ports of one process: each call goes over its [`Wire`], through the crate's own gate, to the world in memory. Deliberate bugs
//! sit here, so that production code has none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;
use tradewind::accounts::OpenAccount;
use tradewind::images::ImageSizes;
use tradewind_api::provider::ProviderKind;
use tradewind_api::rented_machine::OrderOutcome;
use tradewind_api::{Provider, RentedMachine, TrainingJob};
use tradewind_checkpoints::{
    Answer as StoreAnswer, Fetched, ObjectInfo, PutOutcome, Store, StoreCredentials, StoreError, Stores,
};
use tradewind_checkpoints::{Gated as GatedStore, Location};
use tradewind_cluster::object::{own, typed_ref};
use tradewind_cluster::{
    Access, Answer, Cluster, Gated as GatedCluster, Guard, Key, Kind, MetadataPatch, Object, Removal, Review, Selector,
    StatusPatch, Typed,
};
use tradewind_core::gate::{Point, pass};
use tradewind_core::{Clock, ExposeSecret, Offer, SecretString};
use tradewind_protocol::{LogEntry, Ticket};
use tradewind_providers::{
    Account, Capabilities, Charge, GpuProvider, Machine, OfferQuery, ProviderResult, RentOutcome, RentRequest, SelfEnd,
};
use tradewind_sim::in_process::MarketProvider;
use tradewind_sim::market::State;

use super::plan::Mutant;
use super::wire::{Common, Wire, lock};

/// Name of the market's account and of the Provider object.
pub const ACCOUNT: &str = "vast";
/// Bucket of the mailbox.
pub const MAILBOX: &str = "mailbox";
/// The users' bucket.
pub const BUCKET: &str = "ckpt";

/// The API server as one process sees it.
pub struct WorldCluster {
    inner: GatedCluster,
    wire: Arc<Wire>,
}

impl WorldCluster {
    /// The API server at the end of this line.
    pub fn new(wire: &Arc<Wire>) -> Self {
        let memory: Arc<dyn Cluster> = Arc::clone(&wire.common.memory) as Arc<dyn Cluster>;
        Self { inner: GatedCluster::new(memory, Arc::clone(wire) as _), wire: Arc::clone(wire) }
    }

    fn pass<'a, T: Send + 'a>(&'a self, writes: bool, call: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(self.wire.around(writes, call))
    }

    /// What a deliberate bug makes of a status before it is written; `None` = it is swallowed.
    fn spoil(&self, mut object: Arc<dyn Object>) -> Option<Arc<dyn Object>> {
        let common = &self.wire.common;
        if let Some(machine) = typed_ref::<RentedMachine>(&*object) {
            let key = Key::of(&*object);
            let there = common.memory.peek::<RentedMachine>(&key);
            let orders = |m: &RentedMachine| m.status.as_ref().map_or(0, |s| s.orders.len());
            let is_new = orders(machine) > there.as_deref().map_or(0, orders)
                && machine
                    .status
                    .as_ref()
                    .and_then(|s| s.orders.last())
                    .is_some_and(|o| o.outcome == OrderOutcome::Open);
            if common.has(Mutant::RentWithoutOrder) && is_new {
                return None;
            }
            if common.has(Mutant::NoVersionCheck)
                && let Some(there) = there
            {
                own(&mut object).meta_mut().resource_version.clone_from(&there.metadata.resource_version);
            }
        } else if common.has(Mutant::BookTwice)
            && let Some(provider) = own(&mut object).any_mut().downcast_mut::<Provider>()
            && let Some(status) = &mut provider.status
        {
            status.spend.booked.clear();
        } else if common.has(Mutant::SettleTwice)
            && let Some(job) = own(&mut object).any_mut().downcast_mut::<TrainingJob>()
            && let Some(status) = &mut job.status
        {
            status.cost.settled_machines.clear();
        }
        Some(object)
    }
}

impl Cluster for WorldCluster {
    fn get<'a>(&'a self, kind: &'static Kind, key: &'a Key) -> Answer<'a, Arc<dyn Object>> {
        self.pass(false, self.inner.get(kind, key))
    }

    fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        labels: &'a Selector,
    ) -> Answer<'a, Vec<Arc<dyn Object>>> {
        if self.wire.common.has(Mutant::BlindLedger) && kind == RentedMachine::KIND && labels.query().is_none() {
            return Box::pin(async { Ok(Vec::new()) });
        }
        self.pass(false, self.inner.list(kind, namespace, labels))
    }

    fn create<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        self.pass(true, self.inner.create(kind, object))
    }

    fn create_dry_run_strict<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: &'a str,
        object: &'a Value,
    ) -> Answer<'a, ()> {
        self.pass(false, self.inner.create_dry_run_strict(kind, namespace, object))
    }

    fn replace<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        self.pass(true, self.inner.replace(kind, object))
    }

    fn patch_metadata<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a MetadataPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        if self.wire.common.has(Mutant::SecretNotHeld) && kind.plural == "secrets" {
            return self.pass(false, self.inner.get(kind, key));
        }
        self.pass(true, self.inner.patch_metadata(kind, key, patch, guard))
    }

    fn replace_status<'a>(&'a self, kind: &'static Kind, object: Arc<dyn Object>) -> Answer<'a, Arc<dyn Object>> {
        match self.spoil(Arc::clone(&object)) {
            Some(object) => self.pass(true, self.inner.replace_status(kind, object)),
            None => Box::pin(async move { Ok(object) }),
        }
    }

    fn patch_status<'a>(
        &'a self,
        kind: &'static Kind,
        key: &'a Key,
        patch: &'a StatusPatch,
        guard: &'a Guard,
    ) -> Answer<'a, Arc<dyn Object>> {
        self.pass(true, self.inner.patch_status(kind, key, patch, guard))
    }

    fn delete<'a>(&'a self, kind: &'static Kind, key: &'a Key, how: &'a Removal) -> Answer<'a, ()> {
        self.pass(true, self.inner.delete(kind, key, how))
    }

    fn bind<'a>(
        &'a self,
        pod: &'a Key,
        uid: &'a str,
        node: &'a str,
        annotations: &'a BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        self.pass(true, self.inner.bind(pod, uid, node, annotations))
    }

    fn access_review<'a>(&'a self, access: &'a Access) -> Answer<'a, Review> {
        self.pass(false, self.inner.access_review(access))
    }
}

/// A place in a bucket as one process sees it.
struct WorldStore {
    inner: GatedStore,
    bucket: String,
    prefix: String,
    wire: Arc<Wire>,
    /// Reports as last read, for the bug that never reads the last one.
    reports: Mutex<BTreeMap<String, Fetched>>,
}

impl WorldStore {
    fn pass<'a, T: Send + 'a>(&'a self, writes: bool, call: StoreAnswer<'a, T>) -> StoreAnswer<'a, T> {
        Box::pin(async move {
            if writes {
                lock(&self.wire.common.checker).store_changes();
            }
            self.wire.around(writes, call).await
        })
    }

    /// True if the machine whose report this is runs at the market.
    fn runs(&self, key: &str) -> bool {
        let uid = key.split('/').nth(1).unwrap_or_default();
        let checker = lock(&self.wire.common.checker);
        let status = checker.rentals.get(uid).and_then(|r| r.object.status.as_ref());
        let id: Option<u64> = status.and_then(|s| s.machine_id.as_ref()).and_then(|id| id.parse().ok());
        drop(checker);
        id.is_some_and(|id| {
            self.wire.common.with_market(|m, _| m.machine(id).is_some_and(|m| m.state == State::Running))
        })
    }

    /// Bugs that follow an entry in the log.
    fn spoil(&self, key: &str, bytes: &Bytes) {
        let common = &self.wire.common;
        let Ok(entry) = LogEntry::decode(bytes) else { return };
        let objects = common.server.objects(&self.bucket);
        let full = |key: &str| format!("{}{key}", self.prefix);
        match &entry {
            LogEntry::Checkpoint { manifest, .. } if common.has(Mutant::DeleteChunk) => {
                if let Some(chunk) = manifest.chunks().last() {
                    common.server.tamper(&self.bucket, &full(&chunk.key), None);
                }
            }
            LogEntry::AttemptStarted { .. } if common.has(Mutant::CommitAcrossFence) => {
                let before = objects.iter().rev().find(|(name, bytes)| {
                    name.starts_with(&full("log/"))
                        && matches!(LogEntry::decode(bytes), Ok(LogEntry::Checkpoint { .. }))
                });
                let number: u64 = key.trim_start_matches("log/").trim_end_matches(".json").parse().unwrap_or(0);
                if let Some((_, old)) = before {
                    common.server.tamper(
                        &self.bucket,
                        &full(&format!("log/{:010}.json", number + 1)),
                        Some(old.clone()),
                    );
                }
            }
            _ => return,
        }
        lock(&common.checker).store_changes();
    }
}

impl Store for WorldStore {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> StoreAnswer<'a, Option<Bytes>> {
        self.pass(false, self.inner.get(key, max_bytes))
    }

    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> StoreAnswer<'a, Fetched> {
        if !self.wire.common.has(Mutant::SkipLastReport) || !key.ends_with("report.json") {
            return self.pass(false, self.inner.get_if_changed(key, etag, max_bytes));
        }
        Box::pin(async move {
            let known = lock(&self.reports).get(key).cloned().filter(|_| !self.runs(key));
            if let Some(known) = known {
                return Ok(if etag.is_some() { Fetched::Unchanged } else { known });
            }
            let fetched = self.pass(false, self.inner.get_if_changed(key, etag, max_bytes)).await?;
            if matches!(fetched, Fetched::Changed { .. }) {
                lock(&self.reports).insert(key.to_owned(), fetched.clone());
            }
            Ok(fetched)
        })
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> StoreAnswer<'a, ()> {
        self.pass(true, self.inner.put(key, bytes))
    }

    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> StoreAnswer<'a, PutOutcome> {
        Box::pin(async move {
            let outcome = self.pass(true, self.inner.put_if_absent(key, bytes.clone())).await;
            if outcome == Ok(PutOutcome::Written) && key.starts_with("log/") {
                self.spoil(key, &bytes);
            }
            outcome
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreAnswer<'a, Option<ObjectInfo>> {
        self.pass(false, self.inner.head(key))
    }

    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> StoreAnswer<'a, Vec<ObjectInfo>> {
        self.pass(false, self.inner.list(prefix, limit))
    }

    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> StoreAnswer<'a, Vec<String>> {
        self.pass(false, self.inner.list_folders(prefix, limit))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreAnswer<'a, ()> {
        self.pass(true, self.inner.delete(key))
    }

    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> StoreAnswer<'a, Ticket> {
        self.inner.sign_get(key, lifetime)
    }

    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> StoreAnswer<'a, Ticket> {
        self.inner.sign_put(key, lifetime)
    }
}

/// All buckets as one process sees them.
pub struct WorldStores {
    /// The process's line.
    pub wire: Arc<Wire>,
}

impl WorldStores {
    /// The place of this name.
    pub fn at(&self, location: &Location) -> Arc<dyn Store> {
        let place = self.wire.common.server.at(location);
        Arc::new(WorldStore {
            inner: GatedStore::new(Arc::new(place), Arc::clone(&self.wire) as _),
            bucket: location.bucket().to_owned(),
            prefix: location.prefix().to_owned(),
            wire: Arc::clone(&self.wire),
            reports: Mutex::default(),
        })
    }
}

impl Stores for WorldStores {
    fn open(&self, location: &Location, _credentials: &StoreCredentials) -> Result<Arc<dyn Store>, StoreError> {
        Ok(self.at(location))
    }
}

/// The registries of images as one process sees them: every image has 2 GB.
pub struct WorldImages {
    /// The process's line.
    pub wire: Arc<Wire>,
}

impl ImageSizes for WorldImages {
    fn compressed_bytes<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<u64, String>> {
        let point = Point { port: "registry", verb: "get", key: image.to_owned() };
        let call = pass(&*self.wire, point, async { Ok(2_000_000_000) }, |message| message);
        Box::pin(self.wire.around(false, call))
    }
}

/// Opens the one account of the market.
pub struct WorldAccounts {
    /// The process's line.
    pub wire: Arc<Wire>,
    /// The process's clock.
    pub clock: Arc<dyn Clock>,
}

impl OpenAccount for WorldAccounts {
    fn open(&self, name: &str, _kind: ProviderKind, key: &SecretString) -> Result<Arc<dyn GpuProvider>, String> {
        let market = Arc::clone(&self.wire.common.market);
        let inner =
            MarketProvider::new(market, ACCOUNT, name, Arc::clone(&self.clock)).with_gate(Arc::clone(&self.wire) as _);
        let inner = inner.with_leftovers().with_key(key.expose_secret());
        Ok(Arc::new(WorldProvider { inner, wire: Arc::clone(&self.wire) }))
    }
}

/// The market's account as one process sees it.
struct WorldProvider {
    inner: MarketProvider,
    wire: Arc<Wire>,
}

impl WorldProvider {
    fn common(&self) -> &Common {
        &self.wire.common
    }

    fn pass<'a, T: Send + 'a>(&'a self, writes: bool, call: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        Box::pin(async move {
            let faults = std::mem::take(&mut *lock(&self.common().faults));
            for fault in faults {
                self.inner.faults().add(fault);
            }
            self.wire.around(writes, call).await
        })
    }
}

impl GpuProvider for WorldProvider {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<Offer>>> {
        self.pass(false, self.inner.offers(query))
    }

    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome> {
        Box::pin(async move {
            let late = self.common().has(Mutant::RentLate);
            if late {
                self.wire.park(Duration::from_secs(7)).await;
            }
            let frozen = self.wire.freezes_inside().await;
            if frozen {
                lock(&self.common().checker).late.insert(request.key.to_string());
            }
            let not_after = if late || frozen { Duration::MAX } else { not_after };
            if self.common().has(Mutant::RentTwice) {
                let _ = self.inner.rent(request, not_after).await;
            }
            let call: BoxFuture<'_, RentOutcome> = Box::pin(async move {
                let before = self.inner.calls("rent");
                let outcome = self.inner.rent(request, not_after).await;
                if self.inner.calls("rent") > before {
                    lock(&self.common().checker).rent_called(self.common(), &request.key.to_string());
                }
                outcome
            });
            let outcome = self.pass(true, call).await;
            self.common().note(|| format!("p{} rent {} = {outcome:?}", self.wire.process, request.key));
            outcome
        })
    }

    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<Machine>>> {
        if self.common().has(Mutant::DropTerminate) {
            return Box::pin(async { Ok(None) });
        }
        self.pass(false, self.inner.describe(id))
    }

    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>> {
        Box::pin(async move {
            let call: BoxFuture<'_, _> = Box::pin(async move {
                let list = self.inner.list_owned().await;
                if list.is_ok() {
                    lock(&self.common().checker).listed(self.common().now());
                }
                list
            });
            let list = self.pass(false, call).await;
            if self.common().has(Mutant::FailedListIsEmpty) { Ok(list.unwrap_or_default()) } else { list }
        })
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>> {
        if self.common().has(Mutant::DropTerminate) {
            return Box::pin(async { Ok(()) });
        }
        self.pass(true, self.inner.terminate(id))
    }

    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>> {
        self.pass(false, self.inner.account())
    }

    fn logs<'a>(&'a self, id: &'a str, lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>> {
        Box::pin(async move {
            self.pass(false, self.inner.logs(id, lines)).await?;
            // The worst that a machine may print: everything that it was given.
            let machine: Option<u64> = id.parse().ok();
            let env = self.common().with_market(|market, _| {
                market
                    .machine(machine?)
                    .map(|m| m.workload.env.iter().map(|(k, v)| format!("{k}={v}\n")).collect::<Vec<_>>().concat())
            });
            Ok(env)
        })
    }

    fn charges(&self, since: jiff::Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>> {
        self.pass(false, self.inner.charges(since))
    }

    fn self_end(&self, id: &str) -> Option<SelfEnd> {
        self.inner.self_end(id)
    }
}
