//! What the agent decides, without doing any of it: no I/O, no clock, no chance.
//!
//! ```text
//! Asking ──own last report──▶ Waiting ──start document, Run──▶ Marking ──report stored──▶ Restoring ──▶ Running ──▶ Finishing ──▶ Over
//!    └─ an earlier boot got past Booted ──▶ Restarted                 Over ──start document of a higher attempt──▶ Marking
//! ```
//!
//! Beside it the lease of the control document runs: when it has run out, the program is stopped and the machine ends its own rental.
//! In a Pod of the cluster ([`InCluster`]) the agent leaves when it is `Over` or cannot go on, with the program's exit code.
//!
//! Feed every [`Input`] to [`Logic::handle`], do the [`Action`]s it returns, answer them, and call it with [`Input::Tick`] at
//! [`Logic::wake`] at the latest. Same inputs at the same times give the same actions.

mod action;
mod attempt;
mod input;
mod lease;
mod leave;
mod mailbox;
mod output;
mod program;
mod saves;
mod settings;
mod slots;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use tradewind_protocol::{
    AgentPhase, Control, Exit, HostFacts, Manifest, Report, RestoreOutcome, SlotBatch, Start, Ticket, VERSION,
};

pub use action::{Action, Launch, Piece, ProgramSignal};
pub use input::{ChunkOutcome, Fetched, Input, Now, ProgramEnd, Restore, SaveId, SeenSave, StagedFile, StagedPiece};
pub use leave::CANNOT_GO_ON;
pub use settings::Settings;

use lease::Lease;
use mailbox::{Heard, Mailbox};
use output::Output;
use program::Stop;
use saves::{Origin, Saves};
use slots::Slots;

/// Warnings that a report carries, and characters of each.
const WARNINGS: usize = 8;
const WARNING_CHARS: usize = 300;

/// What is known when the agent starts.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Random id of this boot.
    pub id: String,
    /// Public key of this boot, base64.
    pub key: String,
    /// Right to read `control.json`, as given to the machine.
    pub control: Ticket,
    /// What the machine has.
    pub host: HostFacts,
    /// Intervals and limits.
    pub settings: Settings,
    /// What is different in a Pod of the cluster; `None` on a rented machine.
    pub in_cluster: Option<InCluster>,
}

/// An agent in a Pod of the cluster: the program is the container's own, and the agent leaves by itself when all is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InCluster {
    /// Program and arguments. The kubelet has replaced every `$(NAME)` in them.
    pub program: Vec<String>,
    /// Where other workers reach this one.
    pub address: Option<IpAddr>,
    /// What is wrong with what the agent was given, in sentences.
    pub warnings: Vec<String>,
}

/// Where the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Wants to know whether an earlier boot got somewhere. `retry_at` is `None` while the answer is on its way.
    Asking { retry_at: Option<Duration>, failures: u32 },
    /// Waits for a start document and the order to run.
    Waiting,
    /// Waits until a report past `Booted` is stored: from then on no later boot starts the program.
    Marking,
    /// Candidate `index` is being restored (`retry_at` is `None`) or will be tried again.
    Restoring { index: usize, since: Duration, retry_at: Option<Duration>, failures: u32 },
    /// The program runs.
    Running,
    /// The program has ended; the last save is on its way.
    Finishing { scanned: bool, headway: (u64, u64), since: Duration },
    /// Everything is said.
    Over,
    /// An earlier boot has run already, or the agent cannot go on.
    Idle { phase: AgentPhase },
}

/// The agent's mind.
#[derive(Debug)]
pub struct Logic {
    boot: Boot,
    now: Now,
    stage: Stage,
    mailbox: Mailbox,
    slots: Slots,
    saves: Saves,
    output: Output,
    lease: Lease,
    /// The start document that was fetched last.
    start: Option<Box<Start>>,
    /// The attempt that has begun, or that ended before it could begin.
    working: Option<u32>,
    fetching_start: bool,
    start_retry_at: Duration,
    start_failures: u32,
    stop: Option<Stop>,
    signalled: bool,
    left: bool,
    /// Since when nothing is left to be done but to say so.
    over_since: Option<Duration>,
    exit: Option<Exit>,
    restore: Option<RestoreOutcome>,
    restored_path: Option<String>,
    warnings: Vec<String>,
    /// What an earlier boot reported, if it got past `Booted`.
    earlier: Option<Box<Report>>,
    waiting_since: Duration,
    /// Since when an upload waits for slots.
    starved_since: Option<Duration>,
    /// The program's last sign of life.
    alive_at: Duration,
}

impl Logic {
    /// A boot that has done nothing yet. It begins with the first input.
    pub fn new(boot: Boot, now: Now) -> Self {
        let mailbox = Mailbox::new(boot.control.clone());
        let warnings = boot.in_cluster.iter().flat_map(|pod| pod.warnings.clone()).collect();
        Self {
            boot,
            now,
            stage: Stage::Asking { retry_at: Some(Duration::ZERO), failures: 0 },
            mailbox,
            slots: Slots::default(),
            saves: Saves::default(),
            output: Output::default(),
            lease: Lease::default(),
            start: None,
            working: None,
            fetching_start: false,
            start_retry_at: Duration::ZERO,
            start_failures: 0,
            stop: None,
            signalled: false,
            left: false,
            over_since: None,
            exit: None,
            restore: None,
            restored_path: None,
            warnings,
            earlier: None,
            waiting_since: now.monotonic,
            starved_since: None,
            alive_at: now.monotonic,
        }
    }

    /// Takes in what happened and says what to do, in order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Action> {
        self.now = now;
        let mut actions = Vec::new();
        self.take_in(input, &mut actions);
        self.advance(&mut actions);
        actions
    }

    /// When the logic wants a [`Input::Tick`] at the latest (monotonic), if nothing else happens.
    pub fn wake(&self) -> Option<Duration> {
        let stage = match &self.stage {
            Stage::Asking { retry_at, .. } if self.mailbox.control().is_some() => *retry_at,
            Stage::Restoring { retry_at, .. } => *retry_at,
            Stage::Finishing { since, .. } => Some(*since + self.boot.settings.finish_limit),
            _ => None,
        };
        let start = self.start_ticket().map(|_| self.start_retry_at);
        let kill = matches!(self.stage, Stage::Running).then(|| self.stop.as_ref().and_then(Stop::wake)).flatten();
        let report = self.reports().then(|| self.mailbox.report_wake()).flatten();
        let poll = self.mailbox.poll_wake();
        let slots = if self.same_attempt() { self.slots.wake() } else { None };
        [
            stage,
            start,
            kill,
            poll,
            report,
            slots,
            self.saves.wake(),
            self.log_wake(),
            self.lease_wake(),
            self.leave_wake(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The report as it would be written now (with the sequence of none).
    pub fn report(&self) -> Report {
        let carried = self.earlier.as_deref();
        let (offer, waiting) = match (self.saves.offers(), carried) {
            ((None, _), Some(carried)) => (carried.offer.clone(), carried.waiting.clone()),
            (own, _) => own,
        };
        Report {
            version: VERSION,
            machine: self.mailbox.control().map(|control| control.machine.clone()).unwrap_or_default(),
            boot: self.boot.id.clone(),
            boot_key: self.boot.key.clone(),
            sequence: 0,
            control_seen: self.mailbox.control().map_or(0, |control| control.sequence),
            attempt: self.attempt(),
            phase: self.phase(),
            at: self.now.wall,
            progress: self.output.progress.clone().or_else(|| carried?.progress.clone()),
            exit: self.exit.clone().or_else(|| carried?.exit.clone()),
            restore: self.restore.clone().or_else(|| carried?.restore.clone()),
            offer,
            waiting,
            uploading: self.saves.uploading(),
            slots_left: self.slots.left(),
            slots_used: self.slots.used().max(carried.map_or(0, |report| report.slots_used)),
            log_segments: self.output.written().max(carried.map_or(0, |report| report.log_segments)),
            warnings: self.warnings.clone(),
            restarted: self.earlier.is_some(),
            silent: self.lease.silent(),
            quiet_s: self.quiet_s(),
            host: Some(self.boot.host),
            address: self.boot.in_cluster.as_ref().and_then(|pod| pod.address),
            save_took: self.saves.took().or_else(|| carried?.save_took),
        }
    }

    /// The newest report that is known to be stored.
    pub fn stored_report(&self) -> Option<&Report> {
        self.mailbox.stored()
    }

    /// Where the agent is, as its report says.
    pub fn phase(&self) -> AgentPhase {
        match &self.stage {
            Stage::Asking { .. } | Stage::Waiting => AgentPhase::Booted,
            Stage::Marking | Stage::Restoring { .. } => AgentPhase::Restoring,
            Stage::Running if self.stop.is_none() => AgentPhase::Running,
            Stage::Running | Stage::Finishing { .. } => AgentPhase::Stopping,
            Stage::Over => AgentPhase::Exited,
            Stage::Idle { phase } => *phase,
        }
    }

    /// Seconds without a sign of life.
    fn quiet_s(&self) -> u64 {
        let running = self.phase() == AgentPhase::Running;
        if running { self.now.monotonic.saturating_sub(self.alive_at).as_secs() } else { 0 }
    }

    fn take_in(&mut self, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Tick => {}
            Input::Control(fetched) => self.control_polled(fetched),
            Input::OwnReport(fetched) => self.own_report(fetched),
            Input::Start(fetched) => self.start_fetched(fetched, actions),
            Input::Slots { batch, fetched } => self.slots_fetched(&batch, fetched),
            Input::ReportWritten { sequence, failure } => {
                self.mailbox.written(self.now.monotonic, sequence, failure.is_none());
            }
            Input::LogWritten { segment, stored } => {
                self.output.log_written(self.now.monotonic, segment, stored);
            }
            Input::Restored { seq, result } => self.restore_done(seq, result),
            Input::Output(bytes) => {
                let (of, ring) = self.log_place();
                self.output.push(of, &bytes, &self.boot.settings, ring);
                self.alive_at = self.now.monotonic;
            }
            Input::Progress(progress) => {
                // The file is read again and again; only what is new in it is a sign of life.
                if self.output.progress.as_ref() != Some(&progress) {
                    self.output.progress = Some(progress);
                    self.alive_at = self.now.monotonic;
                }
            }
            Input::GpuBusy => self.alive_at = self.now.monotonic,
            Input::SaveSeen(seen) => self.save_seen(seen, actions),
            Input::SaveLinked { save } => self.saves.linked(save, actions),
            Input::SaveHashed { save, files } => {
                let warning = self.saves.hashed(save, files, &self.boot.settings, actions);
                self.warn(warning);
            }
            Input::SaveLost { save, reason } => {
                if let (Some(name), Some(reason)) = (self.saves.lost(save, actions), reason) {
                    self.warn(Some(format!("Checkpoint {name} is not uploaded: {reason}")));
                }
            }
            Input::ChunkDone { save, slot, outcome } => self.chunk_done(save, slot, outcome, actions),
            Input::ProgramExited { end, oom_killed } => self.program_exited(end, oom_killed, actions),
            Input::RentalEnded { failure } => self.rental_ended(failure),
            Input::ScanFinished => {
                if let Stage::Finishing { scanned, .. } = &mut self.stage {
                    *scanned = true;
                }
            }
            Input::Signalled => self.signalled(actions),
            Input::Broken { reason } => self.broken(&reason, actions),
        }
    }

    /// Does whatever is due; a question of state alone, so that no order of inputs can leave something undone.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        let every = self.poll_interval();
        self.mailbox.poll(self.now, every, actions);
        if self.mailbox.control().is_none() {
            self.leave_if_done(actions);
            return;
        }
        self.notice_silence();
        if self.same_attempt() {
            self.slots.advance(self.now, actions);
        }
        self.fetch_start(actions);
        self.advance_stage(actions);
        if let Some(origin) = self.origin() {
            let settings = &self.boot.settings;
            // A program that was told to stop may still save.
            let last = matches!(self.stage, Stage::Finishing { scanned: true, .. });
            for warning in self.saves.advance(self.now, &origin, (&mut self.slots, last), settings, actions) {
                self.warn(Some(warning));
            }
        }
        let starved = self.saves.starved(&self.slots);
        self.starved_since = starved.then(|| self.starved_since.unwrap_or(self.now.monotonic));
        self.finish_if_settled();
        let tickets = self.mailbox.control().map(|control| control.logs.clone()).unwrap_or_default();
        let ending = matches!(self.stage, Stage::Finishing { .. } | Stage::Over);
        self.output.advance(self.now.monotonic, &tickets, &self.boot.settings, ending, actions);
        if self.reports() {
            let report = self.report();
            let most = self.slots.most();
            let urgent = |sent: &Report, report: &Report| matters(sent, report, most);
            self.mailbox.write(self.now, &self.boot.settings, report, urgent, actions);
        }
        self.end_rental(actions);
        self.leave_if_done(actions);
    }

    fn control_polled(&mut self, fetched: Fetched<Box<Control>>) {
        let every = self.poll_interval();
        match self.mailbox.polled(self.now.monotonic, every, fetched) {
            Heard::Nothing => {}
            Heard::Warning(warning) => self.warn(Some(warning)),
            Heard::News => self.obey(),
        }
    }

    /// What changes at once when a newer control document arrives.
    fn obey(&mut self) {
        let Some(control) = self.mailbox.control().cloned() else { return };
        self.renew_lease();
        self.slots.list(&control.slots);
        if let Some(committed) = control.committed {
            self.saves.committed(committed.offer, committed.seq);
        }
        if let Some(refused) = &control.refused
            && self.saves.refused(refused.offer)
        {
            let reason = refused.reason.clone();
            self.warn(Some(format!("Checkpoint offer {} was refused: {reason}", refused.offer)));
        }
        self.note_stop(&control.desired);
    }

    fn slots_fetched(&mut self, batch: &str, fetched: Fetched<Box<SlotBatch>>) {
        let machine = self.mailbox.control().map(|control| control.machine.clone());
        let (Some(machine), Some(attempt)) = (machine, self.attempt()) else { return };
        let warning = self.slots.fetched(self.now, batch, fetched, &machine, attempt);
        self.warn(warning);
    }

    fn save_seen(&mut self, mut seen: SeenSave, actions: &mut Vec<Action>) {
        if !matches!(self.stage, Stage::Running | Stage::Finishing { .. }) {
            return;
        }
        // A name without digits tells no step; the program's own progress is the best there is.
        self.alive_at = self.now.monotonic;
        // A sign of life all the same; but others save, and no slots come for this one.
        if self.start.as_deref().and_then(|start| start.checkpoint.as_ref()).is_some_and(|c| c.restore_only) {
            return;
        }
        seen.step = seen.step.or_else(|| self.output.progress.as_ref().map(|progress| progress.step));
        self.saves.seen(self.now, seen, actions);
    }

    fn chunk_done(&mut self, save: SaveId, slot: u64, outcome: ChunkOutcome, actions: &mut Vec<Action>) {
        let Some(origin) = self.origin() else { return };
        let warning = self.saves.chunk_done(self.now, save, slot, outcome, &origin, actions);
        self.warn(warning);
    }

    fn origin(&self) -> Option<Origin> {
        let start = self.start.as_deref()?;
        Some(Origin {
            run_id: start.run_id.clone(),
            attempt: start.attempt,
            machine: start.machine.clone(),
            data_prefix: start.data_prefix.clone(),
            together: start.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.together),
        })
    }

    /// Nothing is written over the report of an earlier boot before it was read.
    fn reports(&self) -> bool {
        !matches!(self.stage, Stage::Asking { .. })
    }

    /// Polls fast while something waits for the operator, but not for ever: it may be away.
    fn poll_interval(&self) -> Duration {
        let settings = &self.boot.settings;
        let since = match &self.stage {
            Stage::Asking { .. } | Stage::Waiting => Some(self.waiting_since),
            Stage::Finishing { since, .. } => Some(*since),
            _ => None,
        };
        let fast = [since, self.saves.offered_since(), self.starved_since]
            .into_iter()
            .flatten()
            .any(|since| self.now.monotonic.saturating_sub(since) < settings.fast_for);
        if fast { settings.poll_fast.min(settings.poll) } else { settings.poll }
    }

    /// Whose output it is that comes now, and how many segments the ring has.
    fn log_place(&self) -> ((u32, Timestamp), usize) {
        let ring = self.mailbox.control().map_or(0, |control| control.logs.len());
        ((self.attempt().unwrap_or(0), self.now.wall), ring)
    }

    fn log_wake(&self) -> Option<Duration> {
        let ring = self.mailbox.control().is_some_and(|control| !control.logs.is_empty());
        ring.then(|| self.output.wake()).flatten()
    }

    fn warn(&mut self, warning: Option<String>) {
        let Some(warning) = warning else { return };
        let warning: String = warning.chars().take(WARNING_CHARS).collect();
        if self.warnings.contains(&warning) {
            return;
        }
        self.warnings.push(warning);
        if self.warnings.len() > WARNINGS {
            self.warnings.remove(0);
        }
    }

    fn pin_restored(&mut self, seq: u64, manifest: &Manifest) {
        self.saves.pin(seq, manifest);
    }
}

/// Whether a report says something that the operator should know at once. `most` = slots that there ever were at once.
fn matters(sent: &Report, report: &Report, most: u64) -> bool {
    let low = |report: &Report| report.slots_left * 2 < most;
    sent.phase != report.phase
        || sent.offer.as_ref().map(|offer| offer.number) != report.offer.as_ref().map(|offer| offer.number)
        || sent.exit.is_some() != report.exit.is_some()
        || sent.restore != report.restore
        || sent.attempt != report.attempt
        || sent.silent != report.silent
        || low(sent) != low(report)
}
