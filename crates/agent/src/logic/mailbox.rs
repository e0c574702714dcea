//! The control document and the agent's report: when to look, when to write, what to believe.

use std::time::Duration;

use tradewind_protocol::{Control, Report, Ticket};

use super::Action;
use super::input::{Fetched, Now};
use super::settings::{Settings, backoff};

/// After so many answers in a row that nothing has changed the document is asked for whatever its tag. Stores that keep tags apart from
/// the bytes were seen to hand out old bytes with the new tag (versitygw 1.7.0, 2026-11): whoever believes that tag hears nothing more.
const UNCHANGED_BELIEVED: u32 = 12;

#[derive(Debug)]
pub(super) struct Mailbox {
    bootstrap: Ticket,
    etag: Option<String>,
    unchanged: u32,
    polling: bool,
    poll_at: Duration,
    denials: u32,
    control: Option<Box<Control>>,
    writing: Option<u64>,
    report_at: Duration,
    write_failures: u32,
    sequence: u64,
    stored: Option<Report>,
    stored_at: Duration,
    sent: Option<Report>,
}

/// What a control document means to the agent.
pub(super) enum Heard {
    /// Nothing that was not known.
    Nothing,
    /// A newer one.
    News,
    /// Something that should be said to people.
    Warning(String),
}

impl Mailbox {
    pub fn new(bootstrap: Ticket) -> Self {
        Self {
            bootstrap,
            etag: None,
            unchanged: 0,
            polling: false,
            poll_at: Duration::ZERO,
            denials: 0,
            control: None,
            writing: None,
            report_at: Duration::ZERO,
            write_failures: 0,
            sequence: 0,
            stored: None,
            stored_at: Duration::ZERO,
            sent: None,
        }
    }

    /// The newest control document.
    pub fn control(&self) -> Option<&Control> {
        self.control.as_deref()
    }

    /// The newest report that is in the store.
    pub fn stored(&self) -> Option<&Report> {
        self.stored.as_ref()
    }

    /// When a report was last known to be stored, on the monotonic clock.
    pub fn stored_at(&self) -> Duration {
        self.stored_at
    }

    /// True if the newest report sent is also stored.
    pub fn report_settled(&self) -> bool {
        self.writing.is_none() && self.write_failures == 0
    }

    /// Looks at the control document if it is time.
    pub fn poll(&mut self, now: Now, every: Duration, actions: &mut Vec<Action>) {
        // A wait that has become urgent does not sit out a long interval that began before it.
        self.poll_at = self.poll_at.min(now.monotonic + every);
        if self.polling || now.monotonic < self.poll_at {
            return;
        }
        self.polling = true;
        // A ticket that is refused may be out of date: the one given at the start is tried in turn.
        let ticket = match &self.control {
            Some(control) if self.denials.is_multiple_of(2) => control.control_get.clone(),
            _ => self.bootstrap.clone(),
        };
        let etag = self.etag.clone().filter(|_| self.unchanged < UNCHANGED_BELIEVED);
        actions.push(Action::FetchControl { ticket, etag });
    }

    /// Takes in the answer to a poll.
    pub fn polled(&mut self, now: Duration, every: Duration, fetched: Fetched<Box<Control>>) -> Heard {
        self.polling = false;
        self.poll_at = now + every;
        self.unchanged = if matches!(fetched, Fetched::NotModified) { self.unchanged.saturating_add(1) } else { 0 };
        match fetched {
            Fetched::Found { value, etag } => {
                self.denials = 0;
                self.etag = etag;
                self.believe(value)
            }
            Fetched::Denied => {
                self.denials += 1;
                Heard::Nothing
            }
            Fetched::Invalid(reason) => Heard::Warning(format!("The operator's control document is ignored: {reason}")),
            Fetched::NotModified | Fetched::Absent | Fetched::Failed(_) => Heard::Nothing,
        }
    }

    fn believe(&mut self, control: Box<Control>) -> Heard {
        if let Some(known) = &self.control {
            if known.machine != control.machine {
                return Heard::Warning("A control document for another machine is ignored".to_owned());
            }
            if known.sequence >= control.sequence {
                return Heard::Nothing;
            }
        }
        self.control = Some(control);
        Heard::News
    }

    /// Writes the report if it is time or `urgent` says that it differs in something that matters from the last one sent.
    pub fn write(
        &mut self,
        now: Now,
        settings: &Settings,
        mut report: Report,
        urgent: impl Fn(&Report, &Report) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(control) = &self.control else { return };
        if self.writing.is_some() {
            return;
        }
        let news = self.write_failures == 0 && self.sent.as_ref().is_none_or(|sent| urgent(sent, &report));
        if !news && now.monotonic < self.report_at {
            return;
        }
        self.sequence += 1;
        report.sequence = self.sequence;
        self.writing = Some(self.sequence);
        self.report_at = now.monotonic + settings.report;
        self.sent = Some(report.clone());
        actions.push(Action::WriteReport { ticket: control.report_put.clone(), report: Box::new(report) });
    }

    /// Takes in the answer to a write.
    pub fn written(&mut self, now: Duration, sequence: u64, stored: bool) {
        if self.writing.take_if(|writing| *writing == sequence).is_none() {
            return;
        }
        if stored {
            self.write_failures = 0;
            self.stored.clone_from(&self.sent);
            self.stored_at = now;
        } else {
            self.write_failures += 1;
            self.report_at = now + backoff(self.write_failures);
        }
    }

    /// When the control document is to be looked at.
    pub fn poll_wake(&self) -> Option<Duration> {
        (!self.polling).then_some(self.poll_at)
    }

    /// When the report is to be written.
    pub fn report_wake(&self) -> Option<Duration> {
        (self.writing.is_none() && self.control.is_some()).then_some(self.report_at)
    }
}
