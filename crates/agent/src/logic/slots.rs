//! The pool of numbered upload slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tradewind_protocol::{SlotBatch, Ticket};

use super::Action;
use super::input::{Fetched, Now};
use super::settings::backoff;

/// Slots in one pool at most: a hostile mailbox cannot fill the memory.
const MOST_FREE: usize = 100_000;
/// A ticket that lives shorter than this is not begun with.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Slots {
    free: BTreeMap<u64, Ticket>,
    used: u64,
    most: usize,
    listed: Vec<(String, Ticket)>,
    known: BTreeSet<String>,
    fetching: Option<String>,
    failures: u32,
    retry_at: Duration,
}

impl Slots {
    /// Slots not used yet.
    pub fn left(&self) -> u64 {
        self.free.len() as u64
    }

    /// First number above all slots that were taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Most slots that there ever were at once.
    pub fn most(&self) -> u64 {
        self.most as u64
    }

    /// The batches of the newest control document.
    pub fn list(&mut self, tickets: &[Ticket]) {
        self.listed = tickets.iter().map(|ticket| (batch_name(ticket), ticket.clone())).collect();
        let listed: BTreeSet<&String> = self.listed.iter().map(|(name, _)| name).collect();
        self.known.retain(|name| listed.contains(name));
    }

    /// Fetches the next unknown batch.
    pub fn advance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.fetching.is_some() || now.monotonic < self.retry_at || self.free.len() >= MOST_FREE {
            return;
        }
        if let Some((batch, ticket)) = self.listed.iter().find(|(name, _)| !self.known.contains(name)) {
            self.fetching = Some(batch.clone());
            actions.push(Action::FetchSlots { batch: batch.clone(), ticket: ticket.clone() });
        }
    }

    /// When [`Slots::advance`] has something to do by itself.
    pub fn wake(&self) -> Option<Duration> {
        (self.fetching.is_none()
            && self.free.len() < MOST_FREE
            && self.listed.iter().any(|(name, _)| !self.known.contains(name)))
        .then_some(self.retry_at)
    }

    /// Takes in a batch; a sentence if it is not to be believed.
    pub fn fetched(
        &mut self,
        now: Now,
        batch: &str,
        fetched: Fetched<Box<SlotBatch>>,
        machine: &str,
        attempt: u32,
    ) -> Option<String> {
        if self.fetching.as_deref() != Some(batch) {
            return None;
        }
        self.fetching = None;
        match fetched {
            Fetched::Found { value, .. } => {
                self.failures = 0;
                self.known.insert(batch.to_owned());
                if value.machine == machine && value.attempt < attempt {
                    // Left over in the list from an attempt that ended on this machine.
                    return None;
                }
                if value.machine != machine || value.attempt != attempt {
                    return Some("A batch of upload slots is for another machine or attempt and is ignored".to_owned());
                }
                for (slot, ticket) in (value.first..).zip(value.puts) {
                    // A number below the mark was used, or skipped, before: its object may exist.
                    if slot >= self.used && self.free.len() < MOST_FREE {
                        self.free.insert(slot, ticket);
                    }
                }
                self.most = self.most.max(self.free.len());
                None
            }
            Fetched::Invalid(reason) => {
                self.known.insert(batch.to_owned());
                Some(format!("A batch of upload slots is ignored: {reason}"))
            }
            Fetched::NotModified | Fetched::Absent | Fetched::Denied | Fetched::Failed(_) => {
                self.failures += 1;
                self.retry_at = now.monotonic + backoff(self.failures);
                None
            }
        }
    }

    /// Takes the lowest slot whose ticket lives long enough.
    pub fn take(&mut self, wall: Timestamp) -> Option<(u64, Ticket)> {
        while let Some((slot, ticket)) = self.free.pop_first() {
            self.used = slot + 1;
            if wall.checked_add(MARGIN).is_ok_and(|begin| ticket.expires > begin) {
                return Some((slot, ticket));
            }
        }
        None
    }
}

/// The URL without what signs it: stays the same when a batch is signed anew.
fn batch_name(ticket: &Ticket) -> String {
    ticket.url.split(['?', '#']).next().unwrap_or_default().to_owned()
}
