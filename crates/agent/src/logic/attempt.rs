//! Which attempt the agent works for: start documents, and one attempt after the other on the same machine.

use tradewind_protocol::{Desired, Start, Ticket};

use super::input::Fetched;
use super::settings::backoff;
use super::slots::Slots;
use super::{Action, Logic, Stage};

impl Logic {
    /// The attempt that the report is about; see [`tradewind_protocol::Report::attempt`].
    pub(super) fn attempt(&self) -> Option<u32> {
        match &self.earlier {
            Some(earlier) => earlier.attempt,
            None => self.working.or_else(|| self.mailbox.control().map(|control| control.attempt)),
        }
    }

    /// True if the control document speaks of the attempt that the report is about.
    pub(super) fn same_attempt(&self) -> bool {
        self.mailbox.control().is_some_and(|control| Some(control.attempt) == self.attempt())
    }

    /// True if the start document of the control's attempt is not here yet and would be followed.
    fn wants_start(&self) -> bool {
        let Some(control) = self.mailbox.control() else { return false };
        if control.start_boot.as_deref() != Some(self.boot.id.as_str()) {
            return false;
        }
        match self.stage {
            Stage::Waiting => self.start.as_ref().is_none_or(|start| start.attempt < control.attempt),
            // The attempt before has ended: the next one begins here.
            Stage::Over => {
                control.desired == Desired::Run
                    && self.working.is_some_and(|ended| ended < control.attempt)
                    && !self.lease.silent()
                    && !self.signalled
                    && self.boot.in_cluster.is_none()
            }
            _ => false,
        }
    }

    /// The ticket for a start document that is still wanted.
    pub(super) fn start_ticket(&self) -> Option<&Ticket> {
        if self.fetching_start || !self.wants_start() {
            return None;
        }
        self.mailbox.control()?.start.as_ref()
    }

    pub(super) fn fetch_start(&mut self, actions: &mut Vec<Action>) {
        if self.now.monotonic < self.start_retry_at {
            return;
        }
        if let Some(ticket) = self.start_ticket().cloned() {
            self.fetching_start = true;
            actions.push(Action::FetchStart { ticket });
        }
    }

    pub(super) fn start_fetched(&mut self, fetched: Fetched<Box<Start>>, actions: &mut Vec<Action>) {
        self.fetching_start = false;
        // It was asked for under an order that is no more.
        if !self.wants_start() {
            return;
        }
        let Some(control) = self.mailbox.control() else { return };
        let problem = match fetched {
            Fetched::Found { value, .. } => {
                if value.machine != control.machine || value.boot != self.boot.id {
                    Some("it is for another machine or boot".to_owned())
                } else if value.attempt != control.attempt {
                    Some("it is for another attempt".to_owned())
                } else if value.command.is_empty() && self.boot.in_cluster.is_none() {
                    Some("it names no program".to_owned())
                } else {
                    (self.start_failures, self.start_retry_at) = (0, self.now.monotonic);
                    self.follow(value, actions);
                    return;
                }
            }
            Fetched::Invalid(reason) => Some(reason),
            Fetched::Absent => Some("it is not in the mailbox".to_owned()),
            Fetched::NotModified | Fetched::Denied | Fetched::Failed(_) => None,
        };
        self.warn(problem.map(|problem| format!("The start document cannot be used: {problem}")));
        self.start_failures += 1;
        self.start_retry_at = self.now.monotonic + backoff(self.start_failures);
    }

    fn follow(&mut self, start: Box<Start>, actions: &mut Vec<Action>) {
        if self.stage == Stage::Over {
            self.begin_anew(start.attempt, actions);
            if let Some(checkpoint) = start.checkpoint.clone() {
                actions.push(Action::ClearSaves { checkpoint, working_dir: start.working_dir.clone() });
            }
        }
        self.start = Some(start);
    }

    /// Leaves the attempt before behind. Only what belongs to the boot goes on: the report's sequence, the ring of logs, the numbers of
    /// saves and offers.
    fn begin_anew(&mut self, attempt: u32, actions: &mut Vec<Action>) {
        self.saves.begin_anew(actions);
        self.output.begin_anew();
        self.slots = Slots::default();
        if let Some(control) = self.mailbox.control() {
            self.slots.list(&control.slots);
        }
        self.stop = None;
        self.exit = None;
        self.restore = None;
        self.restored_path = None;
        self.starved_since = None;
        self.warnings.clear();
        self.working = Some(attempt);
        // Never back to `Booted`: a later boot would take the machine for new.
        self.stage = Stage::Marking;
    }
}
