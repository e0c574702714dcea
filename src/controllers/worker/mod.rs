//! Workers of a job in the cluster: serves the agents in their Pods through the mailbox, as `rented_machine` does for machines.
//!
//! Nothing of it is written into objects: what agents say is found again in the mailbox after a restart. `training_job` decides from
//! [`Workers`] and from the Pods.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tradewind_api::training_job::CheckpointStatus;
use tradewind_core::hex;

use crate::controllers::rented_machine::serve::AgentView;

/// Its name in queue, logs and metrics. Its keys are those of jobs.
pub const NAME: &str = "worker";

/// The worker's id in the mailbox: what the uid of its RentedMachine is to a machine.
pub fn id(job_uid: &str, attempt: i64, rank: i64) -> String {
    hex(&Sha256::digest(format!("{job_uid}/{attempt}/{rank}"))[..16])
}

/// What the agents in the cluster say, by id.
#[derive(Debug, Default)]
pub struct Workers {
    views: Mutex<BTreeMap<String, WorkerView>>,
}

/// What one agent in the cluster says, and what became of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerView {
    /// The mailbox answered since this process started, if only that there is no report.
    pub looked: bool,
    /// What the agent says.
    pub agent: Option<AgentView>,
    /// When it last said something new; from this process's first look on.
    pub heard_at: Option<Timestamp>,
    /// The newest checkpoint that this attempt brought into the catalogue (worker 0 only).
    pub checkpoint: Option<CheckpointStatus>,
    /// The Pod is over or going, and its last report was read after that and what it offers is committed or refused.
    pub last_report_read: bool,
    /// A later attempt has started.
    pub fenced: bool,
    /// What stands in the way of serving it.
    pub trouble: Option<String>,
}

impl Workers {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, WorkerView>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a worker.
    pub fn get(&self, id: &str) -> Option<WorkerView> {
        self.lock().get(id).cloned()
    }

    /// Takes news of a worker; true if something is new.
    pub fn put(&self, id: &str, view: WorkerView) -> bool {
        let old = self.lock().insert(id.to_owned(), view.clone());
        old.as_ref() != Some(&view)
    }

    /// Forgets a worker.
    pub fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}
