//! What is remembered of an agent that is served. All of it can be found again after a restart.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::rented_machine::Traffic;
use tradewind_api::training_job::CheckpointStatus;
use tradewind_protocol::{Control, Report};

use super::Served;
use super::view::view;

/// Memory of one agent.
#[derive(Debug, Default, Clone)]
pub struct Memory {
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
    /// The last report was read after the end.
    pub last_report_read: bool,
    /// What stands in the way of serving the agent, told in the status.
    pub trouble: Option<String>,
    /// A later attempt has fenced this machine off.
    pub fenced: bool,
    /// Since when this process has seen the program run (monotonic).
    pub runs_since: Option<Duration>,
    /// A save of this attempt was seen.
    pub saved: bool,
}

impl Memory {
    /// A pass of this attempt begins. What was remembered of an attempt before it does not count any more.
    pub fn open(&mut self, attempt: u32) {
        self.trouble = None;
        self.looked = false;
        self.answered = false;
        if self.attempt.replace(attempt).is_some_and(|before| before != attempt) {
            self.slots_batch = None;
            self.fenced = false;
            self.last_report_read = false;
            self.runs_since = None;
            self.saved = false;
        }
    }

    /// What is known, in words for whoever decides.
    pub fn served(&self, attempt: u32, now: Timestamp) -> Served {
        let heard_at = self.heard_at.unwrap_or(now);
        Served {
            prepared: self.control.is_some(),
            looked: self.looked,
            agent: self.report.as_ref().map(|report| view(report, attempt, self.fenced, heard_at)),
            heard_at: self.heard_at,
            checkpoint: self.checkpoint.clone(),
            traffic: self.traffic,
            last_report_read: self.last_report_read,
            answered: self.answered,
            trouble: self.trouble.clone(),
        }
    }
}
