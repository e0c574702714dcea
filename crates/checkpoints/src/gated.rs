//! A store that can be cut: every call to the store passes a gate first.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tradewind_core::gate::{Gate, Point, pass};
use tradewind_protocol::Ticket;

use crate::store::{Answer, Fetched, ObjectInfo, PutOutcome, Store, StoreError};

/// A [`Store`] whose calls pass a [`Gate`] as port `store`. Signing is no call and passes freely.
pub struct Gated {
    store: Arc<dyn Store>,
    gate: Arc<dyn Gate>,
}

impl Gated {
    /// The store behind the gate.
    pub fn new(store: Arc<dyn Store>, gate: Arc<dyn Gate>) -> Self {
        Self { store, gate }
    }

    fn cut<'a, T: Send + 'a>(&'a self, verb: &'static str, key: &'a str, call: Answer<'a, T>) -> Answer<'a, T> {
        let point = Point { port: "store", verb, key: key.to_owned() };
        let unknown = move |detail| StoreError::Unavailable { verb, key: key.to_owned(), detail };
        async move { pass(&*self.gate, point, call, unknown).await }.boxed()
    }
}

impl Store for Gated {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        self.cut("get", key, self.store.get(key, max_bytes))
    }

    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        self.cut("get_if_changed", key, self.store.get_if_changed(key, etag, max_bytes))
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.cut("put", key, self.store.put(key, bytes))
    }

    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        self.cut("put_if_absent", key, self.store.put_if_absent(key, bytes))
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        self.cut("head", key, self.store.head(key))
    }

    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        self.cut("list", prefix, self.store.list(prefix, limit))
    }

    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        self.cut("list_folders", prefix, self.store.list_folders(prefix, limit))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.cut("delete", key, self.store.delete(key))
    }

    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.store.sign_get(key, lifetime)
    }

    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.store.sign_put(key, lifetime)
    }
}
