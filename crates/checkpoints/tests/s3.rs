//! The store port on two real S3 servers and in memory: one list of facts for all, then what only a network can do wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tradewind_checkpoints::store::MAX_TICKET_LIFETIME;
use tradewind_checkpoints::{
    Catalogue, CommitOutcome, Fetched, Keep, Location, MemoryStore, PutOutcome, S3Store, Store, StoreCredentials,
    StoreError, probe, put_if_absent_resolved,
};
use tradewind_core::{Clock, ManualClock, SystemClock};
use tradewind_harness::proxy::{Action, Match};
use tradewind_harness::{RunDir, S3, S3Server, Tools, or_skip};
use tradewind_protocol::manifest::{data_prefix, slot_key};
use tradewind_protocol::{Chunk, EntryKind, Manifest, ManifestFile, VERSION};

const BUCKET: &str = "checkpoints";
const HOUR: Duration = Duration::from_hours(1);

/// A server of its own for each test, so that faults of one do not meet another. Ends with the value.
struct Server {
    s3: S3,
    _run: RunDir,
}

impl Server {
    /// `None` after printing why there is none.
    async fn start(label: &str, kind: S3Server) -> Option<Self> {
        rustls::crypto::ring::default_provider().install_default().ok();
        let tools = or_skip(Tools::locate())?;
        let run = RunDir::new(label).unwrap();
        let s3 = S3::start_with(&tools, run.path(), kind, false).await.unwrap();
        s3.create_bucket(BUCKET).unwrap();
        Some(Self { s3, _run: run })
    }

    fn credentials(&self) -> StoreCredentials {
        StoreCredentials::new(&*self.s3.access_key, &*self.s3.secret_key).with_endpoint(&self.s3.url()).unwrap()
    }

    fn store(&self, location: &str) -> S3Store {
        open(location, &self.credentials())
    }
}

fn open(location: &str, credentials: &StoreCredentials) -> S3Store {
    S3Store::open(&location.parse().unwrap(), credentials, Arc::new(SystemClock::default())).unwrap()
}

/// What every store does.
async fn conformance(store: &dyn Store) {
    let text = Bytes::from_static;
    assert_eq!(store.get("a/x", 10).await.unwrap(), None);
    assert_eq!(store.head("a/x").await.unwrap(), None);
    assert_eq!(store.get_if_changed("a/x", None, 10).await.unwrap(), Fetched::Absent);
    store.delete("a/x").await.unwrap();
    assert!(store.list("", 10).await.unwrap().is_empty());
    assert!(store.list("a/", 10).await.unwrap().is_empty());
    assert!(store.list_folders("", 10).await.unwrap().is_empty());

    store.put("a/x", text(b"one")).await.unwrap();
    assert_eq!(store.get("a/x", 3).await.unwrap(), Some(text(b"one")));
    let too_large = store.get("a/x", 2).await.unwrap_err();
    assert!(matches!(too_large, StoreError::TooLarge { limit_bytes: 2, .. }), "{too_large:?}");
    let Fetched::Changed { etag: Some(etag), .. } = store.get_if_changed("a/x", None, 10).await.unwrap() else {
        panic!("no etag")
    };
    assert_eq!(store.get_if_changed("a/x", Some(&etag), 10).await.unwrap(), Fetched::Unchanged);
    assert_eq!(store.put_if_absent("a/x", text(b"two")).await.unwrap(), PutOutcome::Exists);
    assert_eq!(store.get("a/x", 10).await.unwrap(), Some(text(b"one")));
    store.put("a/x", text(b"three")).await.unwrap();
    assert!(matches!(store.get_if_changed("a/x", Some(&etag), 10).await.unwrap(), Fetched::Changed { .. }));
    let info = store.head("a/x").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.size_bytes), ("a/x", 5));

    assert_eq!(store.put_if_absent("a/b/y", Bytes::new()).await.unwrap(), PutOutcome::Written);
    assert_eq!(store.put_if_absent("ab/z", text(b"z")).await.unwrap(), PutOutcome::Written);
    let keys = |listed: Vec<tradewind_checkpoints::ObjectInfo>| -> Vec<(String, u64)> {
        listed.into_iter().map(|object| (object.key, object.size_bytes)).collect()
    };
    let all = [("a/b/y".to_owned(), 0), ("a/x".to_owned(), 5), ("ab/z".to_owned(), 1)];
    assert_eq!(keys(store.list("", 3).await.unwrap()), all);
    assert_eq!(keys(store.list("a/", 3).await.unwrap()), all[..2], "a prefix is a folder");
    let listed_etag = store.list("a/", 3).await.unwrap()[1].etag.clone();
    assert!(listed_etag.is_none() || listed_etag == info.etag, "lists tell the same etag, or none: {listed_etag:?}");
    assert!(matches!(store.list("", 2).await, Err(StoreError::TooMany { limit: 2, .. })), "never a part of a list");
    assert_eq!(store.list_folders("", 10).await.unwrap(), ["a", "ab"]);
    assert_eq!(store.list_folders("a/", 10).await.unwrap(), ["b"]);
    assert!(matches!(store.list_folders("", 1).await, Err(StoreError::TooMany { .. })));

    for key in ["", "/a", "a//b", "../a", "a/..", "a b", "a?b", "a%20b", "\u{e4}"] {
        assert!(matches!(store.put(key, Bytes::new()).await, Err(StoreError::Malformed { .. })), "{key:?}");
    }
    assert!(matches!(store.list("a", 10).await, Err(StoreError::Malformed { .. })));
    for key in ["a/x", "a/b/y", "ab/z"] {
        store.delete(key).await.unwrap();
    }
    assert!(store.list("", 10).await.unwrap().is_empty());
    probe(store, 1).await.unwrap();
    assert!(store.list("", 10).await.unwrap().is_empty(), "a probe leaves nothing");
}

#[tokio::test]
async fn memory_does_what_a_store_does() {
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH, 1));
    let server = MemoryStore::new(clock);
    server.create_bucket(BUCKET);
    conformance(&server.at(&format!("s3://{BUCKET}/team/job/").parse::<Location>().unwrap())).await;
}

/// Each of these on both servers: what only one of them does would be no fact about S3.
macro_rules! on_each_server {
    ($($fact:ident)*) => {$(
        mod $fact {
            #[tokio::test(flavor = "multi_thread")]
            async fn versitygw() {
                super::$fact(super::S3Server::Versitygw).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn s3s_fs() {
                super::$fact(super::S3Server::S3sFs).await;
            }
        }
    )*};
}

on_each_server! {
    s3_does_what_a_store_does
    long_lists_are_complete
    what_is_wrong_is_named_and_no_secret_is_told
    tickets_work_for_strangers_and_only_for_their_object
    one_of_many_creators_wins_and_each_knows
    a_run_is_saved_fenced_restored_and_collected
}

async fn s3_does_what_a_store_does(kind: S3Server) {
    let Some(server) = Server::start("store-facts", kind).await else { return };
    conformance(&server.store(&format!("s3://{BUCKET}/team/job/"))).await;
    conformance(&server.store(&format!("s3://{BUCKET}"))).await;
}

async fn long_lists_are_complete(kind: S3Server) {
    let Some(server) = Server::start("store-lists", kind).await else { return };
    let store = server.store(&format!("s3://{BUCKET}/x/"));
    // More than one page of a thousand.
    for batch in 0..11 {
        let puts = (0..100).map(|n| {
            let (store, key) = (&store, format!("many/{:05}", batch * 100 + n));
            async move { store.put(&key, Bytes::from_static(b"x")).await.unwrap() }
        });
        join_all(puts).await;
    }
    let listed = store.list("many/", 2000).await.unwrap();
    assert_eq!(listed.len(), 1100);
    assert!(listed.is_sorted_by(|a, b| a.key < b.key));
    assert!(matches!(store.list("many/", 1099).await, Err(StoreError::TooMany { .. })));
}

async fn what_is_wrong_is_named_and_no_secret_is_told(kind: S3Server) {
    let Some(server) = Server::start("store-errors", kind).await else { return };
    let absent = server.store("s3://nowhere/x/");
    assert_eq!(absent.list("", 1).await, Err(StoreError::NotFoundBucket { bucket: "nowhere".to_owned() }));
    // The other server says of an object in no bucket that the object is missing, and makes a bucket that is written to.
    if kind == S3Server::Versitygw {
        assert_eq!(absent.get("k", 1).await, Err(StoreError::NotFoundBucket { bucket: "nowhere".to_owned() }));
        let missing = probe(&absent, 1).await.unwrap_err();
        assert_eq!(missing.reason(), "BucketNotFound", "{missing}");
    }

    let wrong_secret =
        StoreCredentials::new(&*server.s3.access_key, "wrongsecretwrongsecret").with_endpoint(&server.s3.url());
    let wrong_id = StoreCredentials::new("AKIANOBODY", &*server.s3.secret_key).with_endpoint(&server.s3.url());
    for credentials in [wrong_secret.unwrap(), wrong_id.unwrap()] {
        let store = open(&format!("s3://{BUCKET}/x/"), &credentials);
        // Whatever the status: a read that failed never looks like an empty place.
        for failed in [store.get("k", 1).await.map(drop), store.list("", 1).await.map(drop), store.delete("k").await] {
            assert!(matches!(failed, Err(StoreError::Denied { .. })), "{failed:?}");
        }
        let denied = probe(&store, 1).await.unwrap_err();
        assert_eq!(denied.reason(), "StoreDenied", "{denied:?}");
        let told = format!("{denied} {denied:?}");
        for secret in
            ["wrongsecret", "AKIANOBODY", &server.s3.access_key, &server.s3.secret_key, "Signature=", "http://"]
        {
            assert!(!told.contains(secret), "{told}");
        }
    }

    let rule = server.s3.proxy.rule(Match::any(), Action::Answer(404));
    let stranger = server.store(&format!("s3://{BUCKET}")).get("k", 1).await.unwrap_err();
    assert!(stranger.is_unknown(), "a 404 of somebody in between says nothing: {stranger}");
    rule.remove();
    let rule = server.s3.proxy.rule(Match::any(), Action::Answer(503));
    let busy = server.store(&format!("s3://{BUCKET}")).put("k", Bytes::new()).await.unwrap_err();
    assert!(busy.is_unknown() && busy.to_string().contains("503"), "{busy}");
    rule.remove();
    let nobody = StoreCredentials::new("a", "b").with_endpoint("http://127.0.0.1:9").unwrap();
    let refused = open(&format!("s3://{BUCKET}"), &nobody).get("k", 1).await.unwrap_err();
    assert!(refused.is_unknown() && !refused.to_string().contains("://"), "{refused}");
}

/// What a machine does with a ticket.
#[expect(clippy::disallowed_methods, reason = "a test's own client, to use tickets as a stranger would")]
async fn redeem(
    method: reqwest::Method,
    url: &str,
    header: Option<(&str, &str)>,
    body: &'static str,
) -> (u16, String, Option<String>) {
    let mut request = reqwest::Client::new().request(method, url).body(body);
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let answer = request.send().await.unwrap();
    let etag = answer.headers().get("etag").map(|etag| etag.to_str().unwrap().to_owned());
    (answer.status().as_u16(), answer.text().await.unwrap(), etag)
}

async fn tickets_work_for_strangers_and_only_for_their_object(kind: S3Server) {
    let Some(server) = Server::start("store-tickets", kind).await else { return };
    let store = server.store(&format!("s3://{BUCKET}/team/dt=2026/"));
    let put = store.sign_put("data/0-abcdef/00000000", HOUR).await.unwrap();
    // A lifetime that no store would honour is cut, so that the ticket works.
    let get = store.sign_get("data/0-abcdef/00000000", Duration::from_hours(30 * 24)).await.unwrap();
    let latest = SystemClock::default().now().checked_add(MAX_TICKET_LIFETIME).unwrap();
    assert!(get.expires <= latest, "{}", get.expires);
    assert!(!format!("{put:?}").contains("X-Amz-Signature"));
    let (get_m, put_m) = (reqwest::Method::GET, reqwest::Method::PUT);
    let create = Some(("If-None-Match", "*"));
    assert_eq!(redeem(put_m.clone(), &put.url, create, "weights").await.0, 200);
    assert_eq!(redeem(put_m.clone(), &put.url, create, "others").await.0, 412);
    let (status, body, etag) = redeem(get_m.clone(), &get.url, None, "").await;
    assert_eq!((status, body.as_str()), (200, "weights"));
    let again = redeem(get_m.clone(), &get.url, Some(("If-None-Match", &etag.unwrap())), "").await;
    // s3s-fs sends again what has not changed.
    assert_eq!((again.0, again.1), if kind == S3Server::S3sFs { (200, body) } else { (304, String::new()) });
    assert_eq!(redeem(get_m.clone(), &put.url, None, "").await.0, 403, "a ticket to write is none to read");
    assert_eq!(redeem(put_m.clone(), &get.url, None, "x").await.0, 403);
    assert_eq!(redeem(put_m, &put.url.replace("00000000", "00000001"), None, "x").await.0, 403);
    assert_eq!(store.get("data/0-abcdef/00000000", 10).await.unwrap().unwrap(), "weights");
}

async fn one_of_many_creators_wins_and_each_knows(kind: S3Server) {
    let Some(server) = Server::start("store-races", kind).await else { return };
    let store = server.store(&format!("s3://{BUCKET}"));
    for round in 0..20 {
        let key = format!("race/{round}");
        let creators = (0..8).map(|n| {
            let (store, key) = (&store, &key);
            async move { (n, put_if_absent_resolved(store, key, Bytes::from(format!("by {n}"))).await.unwrap()) }
        });
        let outcomes = join_all(creators).await;
        let winners: Vec<i32> =
            outcomes.iter().filter(|(_, outcome)| *outcome == PutOutcome::Written).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
        assert_eq!(store.get(&key, 100).await.unwrap().unwrap(), format!("by {}", winners[0]));
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Uploads one chunk with a ticket and gives the manifest that offers it.
async fn save(store: &S3Store, machine: &str, attempt: u32, step: u64) -> Manifest {
    let key = slot_key(&data_prefix(attempt, machine), step);
    let ticket = store.sign_put(&key, HOUR).await.unwrap();
    let (status, _, _) = redeem(reqwest::Method::PUT, &ticket.url, Some(("If-None-Match", "*")), "weights").await;
    assert_eq!(status, 200);
    let chunk = Chunk { key, size_bytes: 7, sha256: sha256(b"weights") };
    Manifest {
        version: VERSION,
        run_id: "run-1".to_owned(),
        attempt,
        machine: machine.to_owned(),
        step,
        name: format!("step-{step}"),
        kind: EntryKind::File,
        files: vec![ManifestFile { path: String::new(), size_bytes: 7, mode: 0o644, chunks: vec![chunk], rank: None }],
        saved_at: Timestamp::UNIX_EPOCH,
        save_began_at: Timestamp::UNIX_EPOCH,
        parent: None,
        writers: vec![],
    }
}

async fn a_run_is_saved_fenced_restored_and_collected(kind: S3Server) {
    let Some(server) = Server::start("store-run", kind).await else { return };
    let location = format!("s3://{BUCKET}/team/job/");
    let store = server.store(&location);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let catalogue = Catalogue::open(Arc::new(server.store(&location)), Arc::clone(&clock));
    let old_leader = Catalogue::open(Arc::new(server.store(&location)), Arc::clone(&clock));
    catalogue.begin_attempt("run-1", 0, None, clock.now()).await.unwrap().unwrap();

    let first = save(&store, "machine-a", 0, 1).await;
    // Two operators commit the same offer at once: one entry.
    let both = join_all([catalogue.commit("machine-a", 0, &first), old_leader.commit("machine-a", 0, &first)]).await;
    for outcome in both {
        assert_eq!(outcome.unwrap(), CommitOutcome::Committed { seq: 1 });
    }
    // The answer to the write is lost on every try: it counts all the same.
    let second = save(&store, "machine-a", 0, 2).await;
    let rule = server.s3.proxy.rule(Match::method("PUT").target("log/"), Action::DropAnswer);
    assert_eq!(catalogue.commit("machine-a", 0, &second).await.unwrap(), CommitOutcome::Committed { seq: 2 });
    assert!(rule.hits() > 0);
    rule.remove();
    // A chunk that is not there is refused.
    let mut broken = second.clone();
    broken.step = 9;
    broken.files[0].chunks[0].key = slot_key(&data_prefix(0, "machine-a"), 99);
    let refused = catalogue.commit("machine-a", 0, &broken).await.unwrap();
    assert!(matches!(&refused, CommitOutcome::Refused(refusal) if refusal.reason() == "ChunkMissing"), "{refused:?}");

    let zombie = save(&store, "machine-a", 0, 3).await;
    catalogue.begin_attempt("run-1", 1, Some(2), clock.now()).await.unwrap().unwrap();
    let fenced = old_leader.commit("machine-a", 0, &zombie).await.unwrap();
    assert!(matches!(&fenced, CommitOutcome::Refused(refusal) if refusal.reason() == "Fenced"), "{fenced:?}");
    assert_eq!(catalogue.max_attempt().await.unwrap(), Some(1));

    let log = catalogue.load().await.unwrap();
    let candidates = catalogue.candidates(&log, "run-1", 3, HOUR).await.unwrap();
    assert_eq!(candidates.iter().map(|candidate| candidate.seq).collect::<Vec<_>>(), [2, 1]);
    for ticket in candidates[0].chunks.values() {
        assert_eq!(redeem(reqwest::Method::GET, &ticket.url, None, "").await.1, "weights");
    }
    let keep = Keep { newest: 1, pinned: std::collections::BTreeSet::new(), ended: true, max_changes: 100 };
    let done = catalogue.collect(&keep).await.unwrap();
    assert_eq!((done.dropped, done.deleted), (vec![1], 2), "the oldest checkpoint's chunk and the zombie's");
    assert_eq!(server.s3.keys(BUCKET, "team/job/data/").unwrap().len(), 1);
    let log = old_leader.load().await.unwrap();
    assert_eq!(log.checkpoints().map(|checkpoint| checkpoint.seq).collect::<Vec<_>>(), [2]);
}
