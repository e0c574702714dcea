//! An object store in memory, ready at the first poll: the twin of a real one for the world simulation and tests.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use jiff::Timestamp;
use tradewind_core::Clock;
use tradewind_protocol::Ticket;

use crate::store::{
    Answer, Fetched, MAX_TICKET_LIFETIME, ObjectInfo, PutOutcome, Store, StoreError, Stores, check_key, check_prefix,
};
use crate::{Location, StoreCredentials};

/// A server with any number of buckets. Clones share them.
#[derive(Clone)]
pub struct MemoryStore {
    server: Arc<Server>,
}

struct Server {
    clock: Arc<dyn Clock>,
    secret: u64,
    buckets: Mutex<BTreeMap<String, Bucket>>,
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Object>,
    denied: bool,
}

struct Object {
    bytes: Bytes,
    etag: String,
    last_modified: Timestamp,
}

/// Why a ticket was not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    /// Its time is over (403).
    #[error("the ticket has expired")]
    Expired,
    /// Not signed by this server for this verb and object, or the bucket is gone (403).
    #[error("the ticket is not valid for this")]
    Denied,
}

impl MemoryStore {
    /// A server without buckets. The clock decides times of change and the end of tickets.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let secret = clock.entropy();
        Self { server: Arc::new(Server { clock, secret, buckets: Mutex::default() }) }
    }

    /// Makes a bucket, or keeps it if it is there.
    pub fn create_bucket(&self, bucket: &str) {
        self.server.lock().entry(bucket.to_owned()).or_default();
    }

    /// Takes a bucket away with all it holds.
    pub fn remove_bucket(&self, bucket: &str) {
        self.server.lock().remove(bucket);
    }

    /// From now on the bucket denies every call by credentials (not by ticket), or no longer.
    pub fn deny(&self, bucket: &str, denied: bool) {
        if let Some(bucket) = self.server.lock().get_mut(bucket) {
            bucket.denied = denied;
        }
    }

    /// The place of this name.
    pub fn at(&self, location: &Location) -> MemoryPlace {
        MemoryPlace { server: Arc::clone(&self.server), location: location.clone() }
    }

    /// Every object of a bucket by its full key, for checkers.
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let buckets = self.server.lock();
        let objects = buckets.get(bucket).into_iter().flat_map(|bucket| &bucket.objects);
        objects.map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Puts an object into a bucket behind everybody's back, or takes it away: damage for tests. The key is the full one.
    pub fn tamper(&self, bucket: &str, key: &str, bytes: Option<Bytes>) {
        let now = self.server.clock.now();
        let mut buckets = self.server.lock();
        let objects = &mut buckets.entry(bucket.to_owned()).or_default().objects;
        match bytes {
            Some(bytes) => drop(objects.insert(key.to_owned(), Object::new(bytes, now))),
            None => drop(objects.remove(key)),
        }
    }

    /// What a machine does with a ticket to read. `if_none_match` is the etag it has.
    pub fn redeem_get(&self, url: &str, if_none_match: Option<&str>) -> Result<Fetched, RedeemError> {
        let (bucket, key) = self.server.check_ticket("get", url)?;
        let buckets = self.server.lock();
        let objects = &buckets.get(bucket).ok_or(RedeemError::Denied)?.objects;
        Ok(objects.get(key).map_or(Fetched::Absent, |object| object.fetch(if_none_match)))
    }

    /// What a machine does with a ticket to write; `if_absent` is `If-None-Match: *`.
    pub fn redeem_put(&self, url: &str, bytes: Bytes, if_absent: bool) -> Result<PutOutcome, RedeemError> {
        let (bucket, key) = self.server.check_ticket("put", url)?;
        let now = self.server.clock.now();
        let mut buckets = self.server.lock();
        let objects = &mut buckets.get_mut(bucket).ok_or(RedeemError::Denied)?.objects;
        if if_absent && objects.contains_key(key) {
            return Ok(PutOutcome::Exists);
        }
        objects.insert(key.to_owned(), Object::new(bytes, now));
        Ok(PutOutcome::Written)
    }
}

impl Stores for MemoryStore {
    fn open(&self, location: &Location, _credentials: &StoreCredentials) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(self.at(location)))
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enough to notice a changed ticket in a test; no cryptography.
    fn sign(&self, verb: &str, path: &str, expires_ms: i64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.secret, verb, path, expires_ms).hash(&mut hasher);
        hasher.finish()
    }

    fn ticket(&self, verb: &str, path: &str, lifetime: Duration) -> Ticket {
        let expires = self.clock.now().checked_add(lifetime.min(MAX_TICKET_LIFETIME)).unwrap_or(Timestamp::MAX);
        let ms = expires.as_millisecond();
        Ticket {
            url: format!("memory://{verb}/{path}?expires={ms}&signature={:x}", self.sign(verb, path, ms)),
            expires,
        }
    }

    /// Bucket and full key of a ticket that is good now.
    fn check_ticket<'u>(&self, verb: &str, url: &'u str) -> Result<(&'u str, &'u str), RedeemError> {
        let parts = || {
            let rest = url.strip_prefix("memory://")?.strip_prefix(verb)?.strip_prefix('/')?;
            let (path, query) = rest.split_once("?expires=")?;
            let (expires, signature) = query.split_once("&signature=")?;
            let expires: i64 = expires.parse().ok()?;
            let signature = u64::from_str_radix(signature, 16).ok()?;
            (signature == self.sign(verb, path, expires)).then_some((path.split_once('/')?, expires))
        };
        let (place, expires) = parts().ok_or(RedeemError::Denied)?;
        if self.clock.now().as_millisecond() > expires {
            return Err(RedeemError::Expired);
        }
        Ok(place)
    }
}

impl Object {
    fn new(bytes: Bytes, last_modified: Timestamp) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Self { etag: format!("\"{:016x}\"", hasher.finish()), bytes, last_modified }
    }

    fn fetch(&self, if_none_match: Option<&str>) -> Fetched {
        if if_none_match == Some(&self.etag) {
            return Fetched::Unchanged;
        }
        Fetched::Changed { bytes: self.bytes.clone(), etag: Some(self.etag.clone()) }
    }

    fn info(&self, key: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            size_bytes: self.bytes.len() as u64,
            etag: Some(self.etag.clone()),
            last_modified: self.last_modified,
        }
    }
}

/// One place of a [`MemoryStore`].
#[derive(Clone)]
pub struct MemoryPlace {
    server: Arc<Server>,
    location: Location,
}

impl MemoryPlace {
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.location.prefix())
    }

    /// Runs `act` on the bucket when the answer is first polled, never before: a gate may still cut the call.
    fn on_bucket<'a, T: Send + 'a>(
        &'a self,
        verb: &'static str,
        key: &'a str,
        act: impl FnOnce(&mut Bucket, Timestamp) -> Result<T, StoreError> + Send + 'a,
    ) -> Answer<'a, T> {
        async move {
            if matches!(verb, "list") {
                check_prefix(key)?;
            } else {
                check_key(key)?;
            }
            let now = self.server.clock.now();
            let mut buckets = self.server.lock();
            let bucket = buckets
                .get_mut(self.location.bucket())
                .ok_or_else(|| StoreError::NotFoundBucket { bucket: self.location.bucket().to_owned() })?;
            if bucket.denied {
                let detail = "AccessDenied".to_owned();
                return Err(StoreError::Denied { verb, key: key.to_owned(), detail });
            }
            act(bucket, now)
        }
        .boxed()
    }

    fn sign<'a>(&'a self, verb: &'static str, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        async move {
            check_key(key)?;
            let path = format!("{}/{}", self.location.bucket(), self.full(key));
            Ok(self.server.ticket(verb, &path, lifetime))
        }
        .boxed()
    }
}

/// The object's bytes unless it is larger than `max_bytes`.
fn bounded<'o>(key: &str, object: &'o Object, max_bytes: u64) -> Result<&'o Object, StoreError> {
    let size_bytes = object.bytes.len() as u64;
    if size_bytes > max_bytes {
        return Err(StoreError::TooLarge { key: key.to_owned(), size_bytes, limit_bytes: max_bytes });
    }
    Ok(object)
}

impl Store for MemoryPlace {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        self.on_bucket("get", key, move |bucket, _| {
            let object = bucket.objects.get(&self.full(key));
            object.map(|object| bounded(key, object, max_bytes).map(|object| object.bytes.clone())).transpose()
        })
    }

    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        self.on_bucket("get", key, move |bucket, _| {
            let Some(object) = bucket.objects.get(&self.full(key)) else { return Ok(Fetched::Absent) };
            Ok(bounded(key, object, max_bytes)?.fetch(etag))
        })
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.on_bucket("put", key, move |bucket, now| {
            bucket.objects.insert(self.full(key), Object::new(bytes, now));
            Ok(())
        })
    }

    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        self.on_bucket("put", key, move |bucket, now| {
            let full = self.full(key);
            if bucket.objects.contains_key(&full) {
                return Ok(PutOutcome::Exists);
            }
            bucket.objects.insert(full, Object::new(bytes, now));
            Ok(PutOutcome::Written)
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        self.on_bucket("get", key, move |bucket, _| {
            Ok(bucket.objects.get(&self.full(key)).map(|object| object.info(key)))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        self.on_bucket("list", prefix, move |bucket, _| {
            let full = self.full(prefix);
            let below = bucket.objects.range(full.clone()..).take_while(|(key, _)| key.starts_with(&full));
            let cut = self.location.prefix().len();
            let found: Vec<ObjectInfo> = below.take(limit + 1).map(|(key, object)| object.info(&key[cut..])).collect();
            if found.len() > limit {
                return Err(StoreError::TooMany { prefix: prefix.to_owned(), limit });
            }
            Ok(found)
        })
    }

    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        self.on_bucket("list", prefix, move |bucket, _| {
            let full = self.full(prefix);
            let below = bucket.objects.range(full.clone()..).take_while(|(key, _)| key.starts_with(&full));
            let mut folders: Vec<String> = Vec::new();
            for (key, _) in below {
                let Some((folder, _)) = key[full.len()..].split_once('/') else { continue };
                if folders.last().is_none_or(|last| last != folder) {
                    folders.push(folder.to_owned());
                }
            }
            if folders.len() > limit {
                return Err(StoreError::TooMany { prefix: prefix.to_owned(), limit });
            }
            folders.sort_unstable();
            Ok(folders)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.on_bucket("delete", key, move |bucket, _| {
            bucket.objects.remove(&self.full(key));
            Ok(())
        })
    }

    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.sign("get", key, lifetime)
    }

    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.sign("put", key, lifetime)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use tradewind_core::ManualClock;

    use super::*;

    fn server() -> (Arc<ManualClock>, MemoryStore, MemoryPlace) {
        let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH, 1));
        let server = MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>);
        server.create_bucket("bucket");
        let place = server.at(&"s3://bucket/a/b/".parse().unwrap());
        (clock, server, place)
    }

    #[test]
    fn tickets_hold_for_their_verb_their_object_and_their_time() {
        let (clock, server, place) = server();
        let put = block_on(place.sign_put("x/y", Duration::from_mins(1))).unwrap();
        assert_eq!(server.redeem_get(&put.url, None), Err(RedeemError::Denied));
        assert_eq!(server.redeem_put(&put.url.replace("x/y", "x/z"), Bytes::new(), false), Err(RedeemError::Denied));
        assert_eq!(server.redeem_put(&put.url, Bytes::from("1"), true), Ok(PutOutcome::Written));
        assert_eq!(server.redeem_put(&put.url, Bytes::from("2"), true), Ok(PutOutcome::Exists));
        let get = block_on(place.sign_get("x/y", Duration::from_hours(90 * 24))).unwrap();
        let Ok(Fetched::Changed { bytes, etag }) = server.redeem_get(&get.url, None) else { panic!("not there") };
        assert_eq!(bytes, "1");
        assert_eq!(server.redeem_get(&get.url, etag.as_deref()), Ok(Fetched::Unchanged));
        assert_eq!(server.redeem_put(&put.url, Bytes::from("2"), false), Ok(PutOutcome::Written));
        assert!(matches!(server.redeem_get(&get.url, etag.as_deref()), Ok(Fetched::Changed { .. })));
        clock.advance(Duration::from_secs(61));
        assert_eq!(server.redeem_put(&put.url, Bytes::from("3"), false), Err(RedeemError::Expired));
        clock.advance(MAX_TICKET_LIFETIME);
        assert_eq!(server.redeem_get(&get.url, None), Err(RedeemError::Expired), "90 days are cut to 7");
        assert_eq!(server.objects("bucket")["a/b/x/y"], "2");
    }

    #[test]
    fn nothing_happens_before_the_first_poll() {
        let (_, server, place) = server();
        drop(place.put("k", Bytes::from("1")));
        assert!(server.objects("bucket").is_empty());
    }

    #[test]
    fn a_missing_or_denied_bucket_is_told() {
        let (_, server, place) = server();
        server.deny("bucket", true);
        assert!(matches!(block_on(place.put("k", Bytes::new())), Err(StoreError::Denied { verb: "put", .. })));
        server.remove_bucket("bucket");
        assert!(matches!(block_on(place.list("", 1)), Err(StoreError::NotFoundBucket { .. })));
    }
}
