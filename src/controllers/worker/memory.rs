//! What is remembered of a job's workers besides the Pods. All of it is found again in the mailbox after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tradewind_protocol::AgentPhase;

use super::gang::Part;
use super::rendezvous::Rank;
use super::whom::PodState;
use crate::serving;

/// Memory of one job.
#[derive(Debug, Default)]
pub struct JobMemory {
    /// Uid of the job: another object of the same name begins anew.
    pub uid: String,
    /// Workers by attempt and rank. In boxes: a map has room for eleven from its first entry on, and there may be a thousand small gangs.
    pub workers: BTreeMap<(i64, i64), Box<WorkerMemory>>,
    /// Workers whose attempt is decided and whose folders are removed.
    pub removed: BTreeSet<(i64, i64)>,
    /// The mailbox was asked for workers of this attempt that have no Pod.
    pub sought: Option<i64>,
    /// Checkpoints, by their sequence, that some worker could not restore.
    pub rejected: BTreeSet<u64>,
    /// When `training_job` was last asked to look at what only grows (monotonic).
    pub told: Option<Duration>,
}

/// Memory of one worker.
#[derive(Debug)]
pub struct WorkerMemory {
    /// Its id in the mailbox.
    pub id: String,
    /// What its agent says and was told.
    pub agent: serving::Memory,
    /// How far its Pod was at the last look.
    pub pod: PodState,
    /// When it is looked at next (monotonic); `None` = when its Pod changes.
    pub due: Option<Duration>,
    /// The mailbox has answered since this process started.
    pub looked: bool,
    /// The report as last read is answered, and nothing is left to be tried again.
    pub settled: bool,
    /// When its tickets are looked at next (monotonic).
    pub tickets_at: Duration,
    /// When its report was last another one (monotonic: a machine that slept has not been silent), or could not be looked at.
    pub heard: Option<Duration>,
    /// Its report has stayed the same for longer than this while its Pod ran.
    pub silent_for: Option<Duration>,
    /// Since when its Pod goes that was given up for its silence (monotonic): it has its grace to be heard again.
    pub given_up: Option<Duration>,
    /// What it saved, where all save together.
    pub part: Part,
}

impl WorkerMemory {
    /// A worker that was not known before.
    pub fn new(id: String, pod: PodState) -> Box<Self> {
        Box::new(Self {
            id,
            agent: serving::Memory::default(),
            pod,
            due: Some(Duration::ZERO),
            looked: false,
            settled: false,
            tickets_at: Duration::ZERO,
            heard: None,
            silent_for: None,
            given_up: None,
            part: Part::default(),
        })
    }

    /// The boot that it was told to start, if it was.
    pub fn boot(&self) -> Option<&str> {
        self.agent.control.as_ref()?.start_boot.as_deref()
    }

    /// Its program runs as it was told to, and nothing that it saved waits for an answer.
    pub fn only_goes_on(&self) -> bool {
        let Some(report) = &self.agent.report else { return false };
        let control = self.agent.control.as_ref();
        let decided = control.map_or(0, |control| {
            let refused = control.refused.as_ref().map_or(0, |refused| refused.offer);
            control.committed.map_or(0, |committed| committed.offer).max(refused)
        });
        report.phase == AgentPhase::Running
            && self.boot() == Some(report.boot.as_str())
            && report.offer.as_ref().is_none_or(|offer| offer.number <= decided)
    }

    /// Its agent has said that it will say nothing more that counts.
    pub fn said_all(&self) -> bool {
        let phase = self.agent.report.as_ref().map(|report| report.phase);
        matches!(phase, Some(AgentPhase::Exited | AgentPhase::Failed))
    }

    /// How it stands in the rendezvous.
    pub fn rank(&self) -> Rank {
        let report = self.agent.report.as_ref();
        Rank {
            there: matches!(self.pod, PodState::Bound | PodState::Running),
            started: report.is_some_and(|report| self.boot() == Some(report.boot.as_str())),
            booted: report.is_some_and(|r| r.phase == AgentPhase::Booted && !r.restarted && self.boot().is_none()),
            address: report.and_then(|report| report.address),
        }
    }
}
