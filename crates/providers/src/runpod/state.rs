//! What a pod says about a machine.
//!
//! `RUNNING` comes right after creation, before anything runs: only with `runtime`, which is telemetry, has a container started. Nothing
//! tells why a pod is `EXITED`: its host took it back, the account is empty, or its image could not be pulled. The last one is known by
//! a pod that was seen to start and never seen to run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tradewind_core::{Capacity, OrderKey};

use super::client::is_id;
use super::convert::Cloud;
use super::rent::MARKER;
use crate::amounts::money;
use crate::http::Redactor;
use crate::{Machine, MachineState};

/// In micro-dollars.
const CENT: i64 = 10_000;

/// A pod as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub machine: Machine,
    /// RunPod calls it deleted for good.
    pub deleted: bool,
}

/// Whether machines were seen to run: makes some readings certain. Lost with the process, which makes us less certain, not wrong.
#[derive(Debug, Default)]
pub(super) struct Memory {
    ran: Mutex<BTreeMap<String, bool>>,
}

impl Memory {
    /// A pod as a machine. `None` only if it has no id, without which nothing can be said or done about it.
    pub fn machine(&self, pod: &Value) -> Option<Row> {
        let text = |name: &str| pod.get(name).and_then(Value::as_str).unwrap_or_default();
        let id = Some(text("id")).filter(|id| is_id(id))?.to_owned();
        let runs = pod.get("runtime").is_some_and(Value::is_object);
        let state = self.settle(&id, text("status"), runs);
        let cloud = Cloud::of_word(text("cloud"));
        let price = pod.get("cost").and_then(Value::as_f64).and_then(money);
        let machine = Machine {
            key: key(pod),
            state,
            capacity: cloud.map_or(Capacity::OnDemand, Cloud::capacity),
            // A pod that does not run shows 0.0, which is not its price; and what is no whole number of cents, as prices of GPUs are, has
            // something else in it, the disk, as one source says. Then the offer knows better what compute costs.
            price_per_hour: price.filter(|price| price.micros() > 0 && price.micros() % CENT == 0),
            created_at: text("createdAt").parse().ok(),
            id,
        };
        Some(Row { machine, deleted: text("status") == "TERMINATED" })
    }

    fn settle(&self, id: &str, status: &str, runs: bool) -> MachineState {
        let mut ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
        match (status, runs) {
            ("RUNNING", true) => {
                ran.insert(id.to_owned(), true);
                MachineState::Running
            }
            ("PROVISIONING" | "STARTING" | "RUNNING", _) => {
                ran.entry(id.to_owned()).or_insert(false);
                MachineState::Starting
            }
            ("EXITED", _) => match ran.get(id) {
                Some(false) => {
                    boot_failed("stopped it before its container ever ran, as it does when an image cannot be pulled")
                }
                _ => MachineState::TakenAway,
            },
            ("ERROR", _) => match ran.get(id) {
                Some(true) => MachineState::TakenAway,
                _ => boot_failed("calls its container's state unrecoverable (ERROR)"),
            },
            ("TERMINATED", _) => MachineState::TakenAway,
            (word, _) => MachineState::Unknown { word: Redactor::default().clean(word, 40) },
        }
    }

    /// Forgets every machine that is not in this complete list.
    pub fn keep(&self, ids: &BTreeSet<String>) {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id));
    }
}

fn boot_failed(what: &str) -> MachineState {
    MachineState::BootFailed { message: format!("RunPod {what}") }
}

/// The order's key, from the name or, should somebody have changed that, from the environment. A cluster's pod is never ours: we make
/// none, and it cannot be ended by itself.
fn key(pod: &Value) -> Option<OrderKey> {
    if pod.get("cluster").is_some_and(|cluster| !cluster.is_null()) {
        return None;
    }
    let named = pod.get("name").and_then(Value::as_str).and_then(|name| name.parse().ok());
    named.or_else(|| pod.get("env")?.get(MARKER)?.as_str()?.parse().ok())
}
