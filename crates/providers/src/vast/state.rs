//! What a row of the instance list says about a machine.
//!
//! Vast.ai has no word for outbid. The platform sets `intended_status`, `cur_state` and `next_state` to `stopped`, all three, and
//! `intended_status` is where the platform is heading, not what we asked for; we never ask for a stop. A fresh machine may show the same
//! for a moment, so there it counts only if it lasts or if the machine ran before.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tradewind_core::Capacity;

use super::convert::money;
use super::wire::id;
use crate::http::Redactor;
use crate::{Machine, MachineState};

/// How long a fresh machine must look stopped before we believe it.
const FRESH_STOP: Duration = Duration::from_secs(5);
/// How long a host must be away before we believe that it is lost.
const OFFLINE: Duration = Duration::from_secs(30);
/// Longest text of the provider's in a state, in characters.
const MAX_WORDS: usize = 200;

/// Words in `status_msg` that mean a dead boot (tokens of the official client and of field recordings).
const DEAD_BOOT: [&str; 9] = [
    "error",
    "failed",
    "failure",
    "exception",
    "oci runtime",
    "permission denied",
    "manifest unknown",
    "unauthorized",
    "access denied",
];

/// What one row says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// Being made.
    Starting,
    /// Runs.
    Running,
    /// Stopped by the platform.
    TakenAway,
    /// Stopped by the platform, or so fresh that it is not known yet.
    FreshAndStopped,
    /// The host does not answer the platform.
    Offline,
    /// The boot failed.
    BootFailed(String),
    /// No known meaning.
    Unknown(String),
}

/// Reads the states of a row.
pub(super) fn read(row: &Map<String, Value>) -> Reading {
    let word = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_ascii_lowercase();
    let (actual, intended) = (word("actual_status"), word("intended_status"));
    let stopped = intended == "stopped" && word("cur_state") == "stopped" && word("next_state") == "stopped";
    let message = row.get("status_msg").and_then(Value::as_str).unwrap_or_default();
    let fresh = matches!(actual.as_str(), "" | "created" | "loading");
    if (fresh || (actual == "exited" && !stopped)) && is_dead_boot(message) {
        return Reading::BootFailed(Redactor::default().clean(message, MAX_WORDS));
    }
    match actual.as_str() {
        _ if fresh && stopped => Reading::FreshAndStopped,
        _ if stopped => Reading::TakenAway,
        // Nobody but the platform stops our machines; the triple above follows within a poll.
        "stopped" => Reading::TakenAway,
        "exited" if intended == "stopped" => Reading::TakenAway,
        // A row without any word at all is not a machine that starts.
        "" if intended.is_empty() => Reading::Unknown(String::new()),
        "" | "created" | "loading" | "rebooting" => Reading::Starting,
        "running" => Reading::Running,
        "offline" => Reading::Offline,
        // `exited` with `intended_status: running` lasts until the platform starts the container again, `unknown` until the next
        // heartbeat; `frozen` is billed and alive.
        _ => Reading::Unknown(Redactor::default().clean(&actual, 40)),
    }
}

fn is_dead_boot(message: &str) -> bool {
    let message = message.trim().to_lowercase();
    // "success, running IMAGE" and "Successfully loaded IMAGE" may hold any word in the image's name.
    let pull = message.contains("not found") && (message.contains("image") || message.contains("manifest"));
    !message.starts_with("success") && (pull || DEAD_BOOT.iter().any(|word| message.contains(word)))
}

/// What was seen of machines before: only that makes some readings certain. Lost with the process, which makes us slower, not wrong.
#[derive(Debug, Default)]
pub(super) struct Memory {
    seen: Mutex<BTreeMap<u64, Seen>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    ran: bool,
    doubtful_since: Option<Duration>,
}

impl Memory {
    /// The state of machine `id` by its newest reading, at `now` (monotonic).
    pub fn settle(&self, id: u64, reading: Reading, now: Duration) -> MachineState {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry(id).or_default();
        seen.ran |= reading == Reading::Running;
        let doubt = matches!(reading, Reading::FreshAndStopped | Reading::Offline);
        let since = doubt.then(|| seen.doubtful_since.unwrap_or(now));
        seen.doubtful_since = since;
        let lasted = since.map(|since| now.saturating_sub(since)).unwrap_or_default();
        match reading {
            Reading::Running => MachineState::Running,
            Reading::TakenAway => MachineState::TakenAway,
            Reading::FreshAndStopped if seen.ran || lasted >= FRESH_STOP => MachineState::TakenAway,
            Reading::Starting | Reading::FreshAndStopped => MachineState::Starting,
            Reading::Offline if lasted >= OFFLINE => MachineState::TakenAway,
            Reading::Offline => MachineState::Unknown { word: "offline".to_owned() },
            Reading::BootFailed(message) => MachineState::BootFailed { message },
            Reading::Unknown(word) => MachineState::Unknown { word },
        }
    }

    /// Forgets every machine that `is_there` denies: called with complete lists.
    pub fn keep(&self, is_there: impl Fn(u64) -> bool) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| is_there(*id));
    }
}

/// A row as a machine. `None` only if it has no id, without which nothing can be said or done about it.
pub(super) fn machine(row: &Value, memory: &Memory, now: Duration) -> Option<(u64, Machine)> {
    let row = row.as_object()?;
    let number = id(row.get("id")?)?;
    let is_bid = row.get("is_bid").and_then(Value::as_bool) == Some(true);
    let machine = Machine {
        id: number.to_string(),
        key: row.get("label").and_then(Value::as_str).and_then(|label| label.parse().ok()),
        state: memory.settle(number, read(row), now),
        capacity: if is_bid { Capacity::Spot } else { Capacity::OnDemand },
        price_per_hour: row.get("dph_base").and_then(Value::as_f64).and_then(money),
        created_at: row.get("start_date").and_then(Value::as_f64).and_then(timestamp),
    };
    Some((number, machine))
}

fn timestamp(seconds: f64) -> Option<jiff::Timestamp> {
    if !(0.0..=1e11).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 1e14")]
    jiff::Timestamp::from_millisecond((seconds * 1000.0) as i64).ok()
}
