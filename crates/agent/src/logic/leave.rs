//! The agent's own end: after a signal on a rented machine, in the cluster as soon as all is said.

use std::time::Duration;

use super::program::STOPPED;
use super::{Action, Logic, Stage};

/// Exit code in the cluster if the agent itself cannot go on: `EX_SOFTWARE` of sysexits.h. Programs hardly ever use it.
pub const CANNOT_GO_ON: i32 = 70;

impl Logic {
    /// Ends the process when nothing is left to be done.
    pub(super) fn leave_if_done(&mut self, actions: &mut Vec<Action>) {
        let over = matches!(self.stage, Stage::Over | Stage::Idle { .. });
        self.over_since = over.then(|| self.over_since.unwrap_or(self.now.monotonic));
        if self.left {
            return;
        }
        let leave = if self.boot.in_cluster.is_some() { self.leave_pod() } else { self.leave_machine() };
        if let Some((code, why)) = leave {
            self.left = true;
            actions.push(Action::Leave { code, why });
        }
    }

    /// After a signal, once the final report is stored. The host does not wait for ever.
    fn leave_machine(&self) -> Option<(i32, Option<String>)> {
        let told = self.mailbox.stored().is_some_and(|stored| stored.phase == self.phase());
        let ended = self.over_since.is_some() && told && self.mailbox.report_settled();
        let done = self.signalled && (ended || self.nothing_to_end());
        done.then(|| (self.exit.as_ref().map_or(STOPPED, |exit| exit.code), None))
    }

    /// With the program's exit code, once the final report is stored or was waited for long enough.
    fn leave_pod(&self) -> Option<(i32, Option<String>)> {
        let told_to_stop = self.signalled || self.stop.is_some();
        if told_to_stop && self.nothing_to_end() {
            return Some((STOPPED, Some("Told to stop before the program could start".to_owned())));
        }
        let late = self.leave_due()? <= self.now.monotonic;
        if !late && !self.all_said() {
            return None;
        }
        // What an earlier boot reported of the program's end stays true.
        let exit = self.exit.as_ref().or_else(|| self.earlier.as_ref()?.exit.as_ref());
        let failed = matches!(self.stage, Stage::Idle { .. }) && exit.is_none();
        let code = match exit {
            Some(exit) => exit.code,
            None if told_to_stop => STOPPED,
            None => CANNOT_GO_ON,
        };
        let why = match (failed, late) {
            (true, _) => Some(self.warnings.last().cloned().unwrap_or_else(|| "The agent cannot go on".to_owned())),
            (false, true) => Some(format!(
                "The last report could not be stored in time: a checkpoint of the last minutes may be lost (exit code {code})"
            )),
            (false, false) => None,
        };
        Some((code, why))
    }

    fn nothing_to_end(&self) -> bool {
        matches!(self.stage, Stage::Asking { .. })
    }

    fn leave_due(&self) -> Option<Duration> {
        Some(self.over_since? + self.boot.settings.leave_limit)
    }

    /// When the Pod is left whatever the store says.
    pub(super) fn leave_wake(&self) -> Option<Duration> {
        let waits = self.boot.in_cluster.is_some() && !self.left;
        waits.then(|| self.leave_due()).flatten()
    }
}
