//! What the operator remembers of each machine besides its object. All of it can be found again after a restart.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tradewind_api::rented_machine::Traffic;
use tradewind_api::training_job::CheckpointStatus;
use tradewind_protocol::{Control, Report};

/// Memory of all machines, by uid.
#[derive(Default)]
pub struct Memory {
    machines: Mutex<BTreeMap<String, MachineMemory>>,
}

/// Memory of one machine.
#[derive(Debug, Default, Clone)]
pub struct MachineMemory {
    /// The control document as last written, or read back after a restart.
    pub control: Option<Control>,
    /// The mailbox may still hold an older one.
    pub control_unwritten: bool,
    /// When the agent's money line was drawn last (monotonic).
    pub lease_drawn: Option<Duration>,
    /// The mailbox was looked into for it.
    pub control_looked_up: bool,
    /// Version of the report as last read.
    pub report_etag: Option<String>,
    /// The report as last read.
    pub report: Option<Report>,
    /// When it last changed; counted from this process's first look, so that our own outage is never the agent's silence.
    pub heard_at: Option<Timestamp>,
    /// The mailbox answered in the last pass.
    pub looked: bool,
    /// The report was answered in the last pass.
    pub answered: bool,
    /// The attempt that was served last.
    pub attempt: Option<u32>,
    /// When this process first saw the object (monotonic).
    pub first_seen: Option<Duration>,
    /// Number of the newest batch of upload slots that was handed out.
    pub slots_batch: Option<u64>,
    /// Chunks of the largest save that it has offered.
    pub most_chunks: u64,
    /// A malformed report was told of.
    pub told_malformed: bool,
    /// The newest checkpoint this machine brought in.
    pub checkpoint: Option<CheckpointStatus>,
    /// What the machine has sent and fetched, counted on from its status.
    pub traffic: Option<Traffic>,
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
    /// The last report was read after the end.
    pub last_report_read: bool,
    /// What stands in the way of serving the agent, told in the status.
    pub trouble: Option<String>,
    /// Until when the ledger is not asked again (monotonic): it has no room.
    pub full_until: Option<Duration>,
    /// A later attempt has fenced this machine off.
    pub fenced: bool,
}

impl MachineMemory {
    /// The machine serves this attempt; what was remembered of one before it does not count any more.
    pub fn serves(&mut self, attempt: u32) {
        if self.attempt.replace(attempt).is_some_and(|before| before != attempt) {
            self.slots_batch = None;
            self.fenced = false;
            self.last_report_read = false;
        }
    }
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
