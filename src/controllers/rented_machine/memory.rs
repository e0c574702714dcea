//! What the operator remembers of each machine besides its object. All of it can be found again after a restart.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::serving;

/// Memory of all machines, by uid.
#[derive(Default)]
pub struct Memory {
    machines: Mutex<BTreeMap<String, MachineMemory>>,
}

/// Memory of one machine.
#[derive(Debug, Default, Clone)]
pub struct MachineMemory {
    /// What its agent says and was told.
    pub agent: serving::Memory,
    /// When this process first saw the object (monotonic).
    pub first_seen: Option<Duration>,
    /// Looks in a row at which the provider knew nothing of the machine, after its end was asked for.
    pub gone_looks: u32,
    /// Looks whether it is gone so far.
    pub end_looks: u32,
    /// The provider has shown the machine at least once: only then does its absence mean anything soon.
    pub seen: bool,
    /// When the provider first accepted the end.
    pub end_accepted: Option<Timestamp>,
    /// When compute began and ended, as found out first: a status that cannot be written now must not make it a later moment.
    pub running: (Option<MicroTime>, Option<MicroTime>),
    /// When the newest list that shows the machine running was asked for.
    pub ran_at: Option<Timestamp>,
    /// Leftovers that are gone.
    pub leftovers_gone: Vec<String>,
    /// When the provider last accepted the end of each id (monotonic).
    pub end_asked: BTreeMap<String, Duration>,
    /// When this process first saw that the machine is to end (monotonic).
    pub ending_since: Option<Duration>,
    /// When this process first saw the end written down (monotonic): from then on the last report holds up the job.
    pub end_written: Option<Duration>,
    /// When the status was last written (monotonic).
    pub status_written: Option<Duration>,
    /// The market knows that a program has worked on its host.
    pub proven: bool,
    /// The provider's last log lines of a machine that never ran anything, once they were asked for.
    pub last_words: Option<Vec<String>>,
    /// Until when the ledger is not asked again (monotonic): it has no room.
    pub full_until: Option<Duration>,
}

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, MachineMemory>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the memory of a machine out; one reconcile at a time works on a key.
    pub fn take(&self, uid: &str) -> MachineMemory {
        self.lock().remove(uid).unwrap_or_default()
    }

    /// Puts it back.
    pub fn put(&self, uid: &str, memory: MachineMemory) {
        self.lock().insert(uid.to_owned(), memory);
    }
}
