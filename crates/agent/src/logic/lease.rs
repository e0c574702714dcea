//! The dead man's switch: how long the operator's word holds, and what follows when it has run out.

use std::time::Duration;

use super::settings::backoff;
use super::{Action, Logic, Stage, matters};

/// Requests to end the rental wait longer than those to the store: providers count them.
const PATIENCE: u32 = 10;

/// The lease of the newest control document.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// When it runs out; `None` until a control document was heard.
    until: Option<Duration>,
    silent_since: Option<Duration>,
    ending: Ending,
}

/// How far the end of the rental is.
#[derive(Debug, Default)]
enum Ending {
    #[default]
    NotAsked,
    UnderWay {
        failures: u32,
    },
    Refused {
        retry_at: Duration,
        failures: u32,
    },
    Accepted,
}

impl Lease {
    /// True once the lease has run out, for good.
    pub fn silent(&self) -> bool {
        self.silent_since.is_some()
    }
}

impl Logic {
    /// A newer control document was heard. What has run out stays so: the end is under way.
    pub(super) fn renew_lease(&mut self) {
        let Some(control) = self.mailbox.control() else { return };
        // More than a century makes no difference, and sums with it do not overflow.
        let lease = Duration::from_secs(control.lease_s.min(u64::from(u32::MAX)));
        self.lease.until = Some(self.now.monotonic + lease);
    }

    /// Stops everything once the lease has run out.
    pub(super) fn notice_silence(&mut self) {
        if !self.lease.silent() && self.lease.until.is_some_and(|until| until <= self.now.monotonic) {
            self.fall_silent();
        }
    }

    /// From now on the operator counts as silent.
    pub(super) fn fall_silent(&mut self) {
        self.lease.silent_since = Some(self.now.monotonic);
        self.stop_in_order();
        let end = match self.mailbox.control().and_then(|control| control.self_end.as_ref()) {
            Some(_) => "the machine ends its rental by itself",
            None => "the machine has no way to end its rental by itself",
        };
        self.warn(Some(format!("The operator's lease has run out; the program is stopped and {end}")));
    }

    /// Asks for the end of the rental when nothing is left to be said, and again until it is granted.
    pub(super) fn end_rental(&mut self, actions: &mut Vec<Action>) {
        let failures = match self.lease.ending {
            Ending::NotAsked if self.end_due().is_some_and(|due| due <= self.now.monotonic) => 0,
            Ending::Refused { retry_at, failures } if retry_at <= self.now.monotonic => failures,
            _ => return,
        };
        let Some(end) = self.mailbox.control().and_then(|control| control.self_end.clone()) else { return };
        self.lease.ending = Ending::UnderWay { failures };
        actions.push(Action::EndRental { end });
    }

    /// The answer to [`Action::EndRental`].
    pub(super) fn rental_ended(&mut self, failure: Option<String>) {
        let Ending::UnderWay { failures } = self.lease.ending else { return };
        let Some(reason) = failure else {
            self.lease.ending = Ending::Accepted;
            return;
        };
        let failures = failures.saturating_add(1);
        self.lease.ending = Ending::Refused { retry_at: self.now.monotonic + backoff(failures) * PATIENCE, failures };
        self.warn(Some(format!("The machine could not end its rental by itself and tries again: {reason}")));
    }

    /// When the end of the rental is to be asked for, as far as that is known: at once when everything is said, otherwise when waiting
    /// for it has lasted too long.
    fn end_due(&self) -> Option<Duration> {
        let silent_since = self.lease.silent_since?;
        self.mailbox.control()?.self_end.as_ref()?;
        let limit = self.boot.settings.finish_limit;
        match self.stage {
            Stage::Over | Stage::Idle { .. } if self.all_said() => Some(Duration::ZERO),
            Stage::Over | Stage::Idle { .. } => Some(self.mailbox.stored_at().max(silent_since) + limit),
            // A process can hang in the kernel, where no signal reaches it.
            Stage::Running => Some(self.stop.as_ref()?.kill_at().saturating_add(limit)),
            Stage::Asking { .. } => Some(silent_since + limit),
            Stage::Waiting | Stage::Marking | Stage::Restoring { .. } | Stage::Finishing { .. } => None,
        }
    }

    /// True if the store holds all that matters of the present report.
    pub(super) fn all_said(&self) -> bool {
        let said = |stored| !matters(stored, &self.report(), self.slots.most());
        self.mailbox.report_settled() && self.mailbox.stored().is_some_and(said)
    }

    /// When something is to be done about the lease.
    pub(super) fn lease_wake(&self) -> Option<Duration> {
        match (&self.lease.ending, self.lease.silent()) {
            (_, false) => self.lease.until,
            (Ending::NotAsked, true) => self.end_due(),
            (Ending::Refused { retry_at, .. }, true) => Some(*retry_at),
            (Ending::UnderWay { .. } | Ending::Accepted, true) => None,
        }
    }
}
