//! What an agent says, in words of a status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::training_job::ProgressStatus;
use tradewind_protocol::{AgentPhase, Exit, HostFacts, Report};

/// What the agent says, in words of the status.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentView {
    /// It speaks of the attempt that the machine serves now, not of one before it.
    pub ours: bool,
    /// Id of its boot.
    pub boot: String,
    /// Public key of its boot.
    pub boot_key: String,
    /// Phase in a word.
    pub phase: String,
    /// Progress.
    pub progress: Option<ProgressStatus>,
    /// Step that was restored.
    pub restored_step: Option<i64>,
    /// How the program ended.
    pub exit: Option<Exit>,
    /// The program has ended and nothing more is to be saved.
    pub finished: bool,
    /// The agent cannot go on.
    pub failed: bool,
    /// An earlier boot had already begun to work.
    pub restarted: bool,
    /// A later attempt has started.
    pub fenced: bool,
    /// It has heard nothing of us up to the money line and ends by itself.
    pub silent: bool,
    /// Seconds without a sign of life of the program.
    pub quiet_s: u64,
    /// What the machine has, while nothing was started on it.
    pub host: Option<HostFacts>,
    /// Things a user should know.
    pub warnings: Vec<String>,
}

#[cfg(test)]
impl AgentView {
    /// An agent that has said nothing.
    pub fn bare() -> Self {
        Self {
            ours: true,
            boot: "b".to_owned(),
            boot_key: "k".to_owned(),
            phase: String::new(),
            progress: None,
            restored_step: None,
            exit: None,
            finished: false,
            failed: false,
            restarted: false,
            fenced: false,
            silent: false,
            quiet_s: 0,
            host: None,
            warnings: Vec::new(),
        }
    }
}

/// What a report says of this attempt.
pub(super) fn view(report: &Report, attempt: u32, fenced: bool, heard_at: Timestamp) -> AgentView {
    // What an earlier attempt on this machine came to is not this one's.
    let ours = report.attempt.is_none_or(|of| of == attempt);
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    AgentView {
        ours,
        boot: report.boot.clone(),
        boot_key: report.boot_key.clone(),
        phase: format!("{:?}", report.phase),
        progress: report.progress.as_ref().filter(|_| ours).map(|p| ProgressStatus {
            step: number(p.step),
            total: p.total.map(number),
            loss: p.loss.clone(),
            summary: p.total.map_or_else(|| p.step.to_string(), |total| format!("{}/{total}", p.step)),
            at: Some(Time(heard_at)),
        }),
        restored_step: report.restore.as_ref().filter(|_| ours).and_then(|r| r.restored).map(|r| number(r.step)),
        exit: report.exit.clone().filter(|_| ours),
        finished: ours && report.phase == AgentPhase::Exited,
        failed: report.phase == AgentPhase::Failed,
        restarted: report.restarted,
        silent: report.silent,
        quiet_s: report.quiet_s,
        fenced,
        host: report.host.filter(|_| report.phase == AgentPhase::Booted),
        warnings: report.warnings.clone(),
    }
}
