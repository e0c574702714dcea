//! Which requests are under way, and which were.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::rules::{Head, Match};

/// A request under way.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Its number in this proxy, from 1.
    pub id: u64,
    /// Method, target and headers.
    pub head: Head,
    /// When its head was read.
    pub began: Instant,
    /// How much of its body has been read so far.
    pub request_bytes: u64,
}

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Its number in this proxy, from 1.
    pub id: u64,
    /// Method, target and headers.
    pub head: Head,
    /// When its head was read.
    pub began: Instant,
    /// When the last byte of the answer was handed on, or the client or a rule cut it off.
    pub ended: Instant,
    /// The answer's status; `None` if the client got none.
    pub status: Option<u16>,
    /// Length of the request's body, as far as it was read.
    pub request_bytes: u64,
    /// Length of the answer's body, as far as it was handed on.
    pub response_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Traffic {
    next: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    under_way: BTreeMap<u64, Exchange>,
    over: Vec<Exchange>,
}

impl Traffic {
    /// Enters a request; it counts as under way as long as the answer lives.
    pub fn enter(self: &Arc<Self>, head: Head) -> Flight {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let exchange = Exchange { id, head, began: now, ended: now, status: None, request_bytes: 0, response_bytes: 0 };
        self.seen().under_way.insert(id, exchange);
        Flight { id, traffic: self.clone() }
    }

    pub fn in_flight(&self, matching: &Match) -> Vec<InFlight> {
        let seen = self.seen();
        let fitting = seen.under_way.values().filter(|e| matching.fits(&e.head));
        fitting
            .map(|e| InFlight { id: e.id, head: e.head.clone(), began: e.began, request_bytes: e.request_bytes })
            .collect()
    }

    pub fn exchanges(&self, matching: &Match) -> Vec<Exchange> {
        self.seen().over.iter().filter(|e| matching.fits(&e.head)).cloned().collect()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no code panics while it holds the traffic")
    }
}

/// One request's entry; moves to those that are over when dropped.
#[derive(Debug)]
pub(super) struct Flight {
    pub id: u64,
    traffic: Arc<Traffic>,
}

impl Flight {
    pub fn note(&self, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = self.traffic.seen().under_way.get_mut(&self.id) {
            change(exchange);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut seen = self.traffic.seen();
        if let Some(mut exchange) = seen.under_way.remove(&self.id) {
            exchange.ended = Instant::now();
            seen.over.push(exchange);
        }
    }
}
