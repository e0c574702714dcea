//! Events about what an agent says. Each is written once, whoever looks how often.

use std::time::Duration;

use tradewind_api::Reason;
use tradewind_protocol::{AgentPhase, Report};

use super::{Memory, Saving, Serving};
use crate::events::Severity;

impl Serving<'_> {
    /// Events for what became of the restore.
    pub(super) async fn tell_restore(&self, report: &Report) {
        let Some(restore) = &report.restore else { return };
        for bad in &restore.rejected {
            let note = format!(
                "{}checkpoint {} (step {}) cannot be used: {}; the one before is tried",
                self.whom.called, bad.seq, bad.step, bad.reason
            );
            self.tell(Severity::Warning, Reason::CheckpointCorrupt, "Restore", note).await;
        }
        match restore.restored {
            Some(restored) => {
                let note = format!(
                    "attempt {} goes on from checkpoint {} (step {})",
                    self.whom.attempt, restored.seq, restored.step
                );
                self.tell(Severity::Normal, Reason::Resumed, "Restore", note).await;
            }
            None if !restore.rejected.is_empty() => {
                let note = format!("no checkpoint can be used; attempt {} starts from zero", self.whom.attempt);
                self.tell(Severity::Warning, Reason::NoUsableCheckpoint, "Restore", note).await;
            }
            None => {}
        }
    }

    /// Each warning of the agent is told once.
    pub(super) async fn tell_warnings(&self, report: &Report) {
        for warning in &report.warnings {
            self.tell(Severity::Warning, Reason::AgentWarning, "Run", format!("{}{warning}", self.whom.called)).await;
        }
    }

    /// Events for what looks as if checkpoints did not work: resumed, but counting from an earlier step; running, but never saving. Their words
    /// hold nothing that changes, so that they are told once even by several operators in turn.
    pub(super) async fn tell_odd_progress(&self, report: &Report, memory: &mut Memory) {
        let Some(settings) = self.whom.checkpoint.filter(|_| self.whom.saving != Saving::Never) else { return };
        if report.attempt.is_some_and(|of| of != self.whom.attempt) {
            return;
        }
        if let Some(step) = began_anew(report) {
            let note = format!(
                "attempt {} was given the checkpoint of step {step}, but its program counts from an earlier step: does it read TRADEWIND_RESUME_PATH, or are checkpoint.resumeArgs missing?",
                self.whom.attempt
            );
            self.tell(Severity::Warning, Reason::NotResumed, "Restore", note).await;
        }
        let now = self.ctx.clock.monotonic();
        let saves = report.offer.is_some() || report.uploading.is_some() || report.save_took.is_some();
        memory.saved |= saves || memory.checkpoint.is_some();
        if report.phase != AgentPhase::Running || memory.saved {
            memory.runs_since = None;
            return;
        }
        let since = *memory.runs_since.get_or_insert(now);
        if now.saturating_sub(since) < save_expected_after(settings.interval_s) {
            return;
        }
        let note = format!(
            "attempt {} saves nothing that would be found: nothing in checkpoint.path ({}) matched checkpoint.pattern ({}) so far, and what it has done would be lost with its machine; the program may save elsewhere, under other names, or more rarely than checkpoint.interval",
            self.whom.attempt, settings.path, settings.pattern
        );
        self.tell(Severity::Warning, Reason::NothingSaved, "Save", note).await;
    }

    pub(super) async fn tell(&self, severity: Severity, reason: Reason, action: &str, note: String) {
        self.ctx.tell(&super::job_reference(self.whom.job), severity, reason, action, note).await;
    }
}

/// The restored step, if the program counts from an earlier one. One step less may only be another way of counting.
fn began_anew(report: &Report) -> Option<u64> {
    let restored = report.restore.as_ref()?.restored?.step;
    let progress = report.progress.as_ref()?.step;
    (progress.saturating_add(1) < restored).then_some(restored)
}

/// How long a program may run before a save of it must have been seen: two intervals, since the first may be late, but ten minutes at least,
/// since the first step of all can take minutes. Intervals of seconds belong to tests, where twenty of them are enough.
fn save_expected_after(interval_s: i64) -> Duration {
    const AT_LEAST: Duration = Duration::from_mins(10);
    let interval = Duration::from_secs(u64::try_from(interval_s).unwrap_or(0).max(1));
    interval.saturating_mul(2).max(AT_LEAST.min(interval.saturating_mul(20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_is_expected_after_two_intervals_but_not_within_minutes() {
        for (interval_s, expected_s) in
            [(900, 1800), (300, 600), (60, 600), (30, 600), (5, 100), (1, 20), (0, 20), (-1, 20)]
        {
            assert_eq!(save_expected_after(interval_s), Duration::from_secs(expected_s), "{interval_s}");
        }
    }
}
