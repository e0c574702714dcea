//! From the first look at the mailbox to the end of the program.

use std::time::Duration;

use tradewind_protocol::report::{RejectedCandidate, Restored};
use tradewind_protocol::{AgentPhase, Desired, Exit, Report, RestoreOutcome};

use super::input::{Fetched, ProgramEnd, Restore};
use super::settings::backoff;
use super::{Action, Launch, Logic, ProgramSignal, Stage};

/// Exit code of a program that was told to stop: exit 0 would read as success.
pub(super) const STOPPED: i32 = 143;

/// The order to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    kill_at: Duration,
    term_sent: bool,
    kill_sent: bool,
}

impl Stop {
    /// When the program is killed.
    pub fn kill_at(&self) -> Duration {
        self.kill_at
    }

    pub fn wake(&self) -> Option<Duration> {
        (!self.kill_sent).then_some(if self.term_sent { self.kill_at } else { Duration::ZERO })
    }
}

impl Logic {
    /// Reads what an earlier boot said. Nothing is started before this is certain.
    pub(super) fn own_report(&mut self, fetched: Fetched<Box<Report>>) {
        let Stage::Asking { failures, .. } = self.stage else { return };
        let machine = self.mailbox.control().map(|control| control.machine.clone());
        let fetched = match fetched {
            Fetched::Found { value, .. } if Some(&value.machine) != machine.as_ref() => {
                Fetched::Invalid("it is of another machine".to_owned())
            }
            other => other,
        };
        match fetched {
            Fetched::Absent => self.stage = Stage::Waiting,
            Fetched::Found { value, .. } => {
                if value.boot == self.boot.id || (value.phase == AgentPhase::Booted && !value.restarted) {
                    self.stage = Stage::Waiting;
                } else {
                    self.restarted(value);
                }
            }
            Fetched::Invalid(reason) => {
                // Somebody wrote something: whether the program ran is not known, so it is not run.
                self.warn(Some(format!("The report of an earlier boot cannot be read: {reason}")));
                let mut blank = self.report();
                blank.phase = AgentPhase::Failed;
                self.restarted(Box::new(blank));
            }
            Fetched::NotModified | Fetched::Denied | Fetched::Failed(_) => {
                let failures = failures + 1;
                let retry_at = Some(self.now.monotonic + backoff(failures));
                self.stage = Stage::Asking { retry_at, failures };
            }
        }
        self.waiting_since = self.now.monotonic;
    }

    /// An earlier boot ran here. What it said stays true: an exit it reported is not lost by the restart of the container.
    fn restarted(&mut self, mut earlier: Box<Report>) {
        earlier.attempt = earlier.attempt.or_else(|| self.mailbox.control().map(|control| control.attempt));
        let phase = if earlier.phase == AgentPhase::Exited { AgentPhase::Exited } else { AgentPhase::Failed };
        for warning in &earlier.warnings {
            self.warn(Some(warning.clone()));
        }
        self.warn(Some("The machine was started again; the program is not run a second time".to_owned()));
        let silent = earlier.silent;
        self.earlier = Some(earlier);
        self.stage = Stage::Idle { phase };
        if silent && !self.lease.silent() {
            // The earlier boot was about to end the rental: another lease is not waited for.
            self.fall_silent();
        }
    }

    pub(super) fn note_stop(&mut self, desired: &Desired) {
        if let Desired::Stop { grace_s, .. } = desired {
            self.stop_within(Duration::from_secs(*grace_s));
        }
    }

    fn stop_within(&mut self, grace: Duration) {
        let kill_at = self.now.monotonic.saturating_add(grace);
        match &mut self.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => self.stop = Some(Stop { kill_at, term_sent: false, kill_sent: false }),
        }
    }

    /// The machine is going down: stop as if told to. A second time there is nothing left to wait for.
    pub(super) fn signalled(&mut self, actions: &mut Vec<Action>) {
        if self.signalled {
            // The kubelet may ask again with another limit, and kills by itself when that is over.
            if self.boot.in_cluster.is_some() {
                return;
            }
            if self.stage == Stage::Running {
                actions.push(Action::Signal(ProgramSignal::Kill));
            }
            self.left = true;
            actions.push(Action::Leave { code: STOPPED, why: None });
            return;
        }
        self.signalled = true;
        self.stop_in_order();
    }

    /// Stops the program as if told to, with the grace that its start document gives.
    pub(super) fn stop_in_order(&mut self) {
        let grace = self.start.as_ref().map_or(0, |start| start.stop_grace_s);
        self.stop_within(Duration::from_secs(grace));
    }

    pub(super) fn broken(&mut self, reason: &str, actions: &mut Vec<Action>) {
        if self.stage == Stage::Running {
            actions.push(Action::Signal(ProgramSignal::Kill));
        }
        self.warn(Some(format!("The agent cannot go on: {reason}")));
        self.working = self.attempt();
        self.stage = Stage::Idle { phase: AgentPhase::Failed };
    }

    pub(super) fn advance_stage(&mut self, actions: &mut Vec<Action>) {
        loop {
            let before = self.stage.clone();
            match &self.stage {
                Stage::Asking { retry_at: Some(at), failures } if *at <= self.now.monotonic => {
                    let failures = *failures;
                    if let Some(control) = self.mailbox.control() {
                        actions.push(Action::FetchOwnReport { ticket: control.report_get.clone() });
                        self.stage = Stage::Asking { retry_at: None, failures };
                    }
                }
                Stage::Waiting | Stage::Marking | Stage::Restoring { .. } if self.stop.is_some() => {
                    self.end_unstarted();
                }
                Stage::Waiting if self.may_run() => {
                    self.working = self.start.as_ref().map(|start| start.attempt);
                    self.stage = Stage::Marking;
                }
                Stage::Marking if self.marked() => self.try_candidate(0, self.now.monotonic, actions),
                Stage::Restoring { index, since, retry_at: Some(at), failures } if *at <= self.now.monotonic => {
                    let (index, since, failures) = (*index, *since, *failures);
                    self.try_candidate(index, since, actions);
                    if let Stage::Restoring { failures: counted, .. } = &mut self.stage {
                        *counted = failures;
                    }
                }
                Stage::Running => self.enforce_stop(actions),
                _ => {}
            }
            if self.stage == before {
                return;
            }
        }
    }

    fn may_run(&self) -> bool {
        let (Some(start), Some(control)) = (&self.start, self.mailbox.control()) else { return false };
        control.desired == Desired::Run && control.attempt == start.attempt
    }

    /// True once the store holds a report of this boot past `Booted`, and of this attempt: a later boot then neither starts the program nor
    /// takes the end of the attempt before for the end of this one.
    fn marked(&self) -> bool {
        let marks = |stored: &Report| stored.phase != AgentPhase::Booted && stored.attempt == self.attempt();
        self.mailbox.stored().is_some_and(marks)
    }

    fn try_candidate(&mut self, index: usize, since: Duration, actions: &mut Vec<Action>) {
        let Some(start) = self.start.as_deref() else { return };
        match (start.restore.get(index), &start.checkpoint) {
            (Some(candidate), Some(checkpoint)) => {
                actions.push(Action::Restore {
                    candidate: Box::new(candidate.clone()),
                    checkpoint: checkpoint.clone(),
                    working_dir: start.working_dir.clone(),
                });
                self.stage = Stage::Restoring { index, since, retry_at: None, failures: 0 };
            }
            _ => self.start_program(actions),
        }
    }

    pub(super) fn restore_done(&mut self, seq: u64, result: Restore) {
        let Stage::Restoring { index, since, retry_at: None, failures } = self.stage else { return };
        let Some(candidate) = self.start.as_ref().and_then(|start| start.restore.get(index)).cloned() else { return };
        if candidate.seq != seq {
            return;
        }
        let step = candidate.manifest.step;
        match result {
            Restore::Done { path } => {
                self.restore.get_or_insert_with(no_restore).restored = Some(Restored { seq, step });
                self.restored_path = Some(path);
                self.pin_restored(seq, &candidate.manifest);
                // No candidate has this index: the program starts.
                self.stage =
                    Stage::Restoring { index: usize::MAX, since, retry_at: Some(self.now.monotonic), failures: 0 };
            }
            Restore::Bad(reason) => {
                self.warn(Some(format!("Checkpoint of step {step} cannot be restored: {reason}")));
                let rejected = RejectedCandidate { seq, step, reason };
                self.restore.get_or_insert_with(no_restore).rejected.push(rejected);
                self.stage =
                    Stage::Restoring { index: index + 1, since, retry_at: Some(self.now.monotonic), failures: 0 };
            }
            Restore::Failed(reason) => {
                // The store is away, the checkpoint is not: an older one would throw away work that is safe.
                self.warn(Some(format!("Restoring the checkpoint of step {step} failed and is tried again: {reason}")));
                if self.now.monotonic.saturating_sub(since) >= self.boot.settings.restore_limit {
                    self.warn(Some("The agent cannot go on: no checkpoint could be downloaded in time".to_owned()));
                    self.stage = Stage::Idle { phase: AgentPhase::Failed };
                    return;
                }
                let failures = failures + 1;
                let retry_at = Some(self.now.monotonic + backoff(failures));
                self.stage = Stage::Restoring { index, since, retry_at, failures };
            }
        }
    }

    fn start_program(&mut self, actions: &mut Vec<Action>) {
        let Some(start) = self.start.as_deref() else { return };
        let outcome = self.restore.get_or_insert_with(no_restore);
        let from_zero = outcome.restored.is_none() && !outcome.rejected.is_empty();
        let mut command = match &self.boot.in_cluster {
            // What the kubelet has left of `$` is meant so; the shell replaces once more.
            Some(pod) => pod.program.iter().map(|word| word.replace('$', "$$")).collect(),
            None => start.command.clone(),
        };
        let mut env = start.env.clone();
        env.insert("TRADEWIND_RUN_ID".to_owned(), start.run_id.clone());
        env.insert("TRADEWIND_ATTEMPT".to_owned(), start.attempt.to_string());
        if let Some(checkpoint) = &start.checkpoint {
            env.insert("TRADEWIND_CHECKPOINT_INTERVAL".to_owned(), checkpoint.interval_s.to_string());
            if let (Some(restored), Some(path)) = (outcome.restored, &self.restored_path) {
                env.insert("TRADEWIND_RESUME_STEP".to_owned(), restored.step.to_string());
                env.insert("TRADEWIND_RESUME_PATH".to_owned(), path.clone());
                command.extend(checkpoint.resume_args.iter().cloned());
            }
        }
        let self_end = self.mailbox.control().and_then(|control| control.self_end.as_ref());
        let launch = Launch {
            command,
            env,
            working_dir: start.working_dir.clone(),
            checkpoint: start.checkpoint.clone(),
            withheld: self_end.map(|end| end.bearer_env.clone()),
        };
        actions.push(Action::StartProgram(Box::new(launch)));
        self.stage = Stage::Running;
        self.alive_at = self.now.monotonic;
        if from_zero {
            self.warn(Some("No checkpoint could be restored; the program starts from zero".to_owned()));
        }
    }

    fn enforce_stop(&mut self, actions: &mut Vec<Action>) {
        let now = self.now.monotonic;
        let Some(stop) = &mut self.stop else { return };
        if !stop.term_sent {
            stop.term_sent = true;
            actions.push(Action::Signal(ProgramSignal::Terminate));
        }
        if !stop.kill_sent && stop.kill_at <= now {
            stop.kill_sent = true;
            actions.push(Action::Signal(ProgramSignal::Kill));
        }
    }

    /// Told to stop before the program ran.
    fn end_unstarted(&mut self) {
        self.working = self.attempt();
        self.exit = Some(Exit {
            code: STOPPED,
            told_to_stop: true,
            at: self.now.wall,
            log_tail: String::new(),
            oom_killed: None,
        });
        self.stage = Stage::Over;
    }

    pub(super) fn program_exited(&mut self, end: ProgramEnd, oom_killed: Option<bool>, actions: &mut Vec<Action>) {
        if self.stage != Stage::Running {
            return;
        }
        let told_to_stop = self.stop.is_some();
        let code = match end {
            _ if told_to_stop => STOPPED,
            ProgramEnd::Code(code) => code,
            ProgramEnd::Signal(signal) => 128 + signal,
        };
        let (at, log_tail) = (self.now.wall, self.output.tail());
        let (of, ring) = self.log_place();
        self.output.end(of, code, &self.boot.settings, ring);
        self.exit = Some(Exit { code, told_to_stop, at, log_tail, oom_killed });
        self.stage = Stage::Finishing { scanned: false, headway: (0, 0), since: self.now.monotonic };
        // A program that was cut down in the middle of a save leaves half of it behind. One that says by itself that it was stopped was told
        // so by another worker, a moment before us.
        let orderly = matches!(end, ProgramEnd::Code(0 | STOPPED));
        actions.push(Action::FinalScan { trust_unsettled: orderly });
    }

    /// The end is said when the last save is committed or refused and the log is stored, or when nothing has moved for too long.
    pub(super) fn finish_if_settled(&mut self) {
        let Stage::Finishing { scanned, headway, since } = self.stage else { return };
        let moved = (self.saves.headway(), self.output.written());
        let since = if moved == headway { since } else { self.now.monotonic };
        self.stage = Stage::Finishing { scanned, headway: moved, since };
        let no_ring = self.mailbox.control().is_none_or(|control| control.logs.is_empty());
        // A silent operator commits nothing: what is offered is as safe as it can get. In the cluster the last report outlives the Pod, and
        // the operator commits what it offers; a node that is drained does not wait for that.
        let offered_is_enough = self.lease.silent() || self.boot.in_cluster.is_some();
        let saved = self.saves.settled() || (offered_is_enough && self.saves.all_offered());
        let settled = scanned && saved && (no_ring || self.output.flushed());
        if settled {
            self.stage = Stage::Over;
        } else if self.now.monotonic.saturating_sub(since) >= self.boot.settings.finish_limit {
            self.warn(Some("The last checkpoint or log could not be brought home in time".to_owned()));
            self.stage = Stage::Over;
        }
    }
}

fn no_restore() -> RestoreOutcome {
    RestoreOutcome { restored: None, rejected: Vec::new() }
}
