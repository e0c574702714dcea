//! What happened, in order, for `GET /events`. Never a key, never a value of a machine's environment.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::time::SimTime;

/// Events kept; older ones are forgotten.
const KEPT: usize = 100_000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Position in the log, from 1.
    pub seq: u64,
    /// When.
    pub at: SimTime,
    /// The account's name.
    pub provider: String,
    /// The machine's id, where there is one.
    pub machine: Option<String>,
    /// `request`, `created`, `running`, `outbid`, `reclaimed`, `stopped`, `started`, `exited` or `terminated`.
    pub kind: &'static str,
    /// Further fields, such as a request's status or an outbid's price.
    pub details: Map<String, Value>,
}

/// The details of a `request`: never its query, since a careless client puts its key there. `status` is none where no answer arrives.
pub fn request_details(
    operation: Option<&str>,
    method: &str,
    path: &str,
    status: Option<u16>,
    fault: Option<&str>,
) -> Map<String, Value> {
    let known = [("op", json!(operation)), ("method", json!(method)), ("path", json!(path)), ("status", json!(status))];
    let fault = fault.map(|fault| ("fault", json!(fault)));
    known.into_iter().chain(fault).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The log of events.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    last: u64,
    events: VecDeque<Event>,
}

impl EventLog {
    /// Appends an event.
    pub fn push(
        &mut self,
        at: SimTime,
        provider: &str,
        machine: Option<String>,
        kind: &'static str,
        details: Map<String, Value>,
    ) {
        self.last += 1;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Event { seq: self.last, at, provider: provider.to_owned(), machine, kind, details });
    }

    /// The number of the newest event, 0 before the first.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The kept events with a higher number.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Event> {
        let skip = self.events.partition_point(|event| event.seq <= seq);
        self.events.iter().skip(skip)
    }
}
