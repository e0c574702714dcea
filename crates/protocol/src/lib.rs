//! What agent and operator say to each other: control, report, tickets, manifests, sealing. No I/O.
//!
//! Both sides meet in the mailbox, an object store. The operator overwrites `control.json`, the agent `report.json`; everything else is
//! written once. Every document carries [`VERSION`]; the operator speaks this version and the one before.
//! Whatever arrives is checked by `validate` before anybody looks at it: the other side may be old, broken or hostile.

pub mod bootstrap;
mod check;
pub mod control;
mod document;
pub mod expand;
pub mod log;
pub mod manifest;
pub mod pattern;
pub mod report;
pub mod seal;
pub mod ticket;

pub use check::{MAX_ATTEMPT, clean_text};
pub use control::{CheckpointSettings, Control, Desired, RestoreCandidate, SelfEnd, SlotBatch, Start};
pub use document::Document;
pub use expand::expand;
pub use log::{LogRecord, LogSegment, Said};
pub use manifest::{Chunk, EntryKind, LogEntry, Manifest, ManifestFile, Writer};
pub use pattern::Pattern;
pub use report::{AgentPhase, CheckpointOffer, Exit, HostFacts, Progress, Report, RestoreOutcome};
pub use ticket::Ticket;

/// Version of every document in this crate.
pub const VERSION: u32 = 1;
/// The oldest version that is still understood.
pub const OLDEST_VERSION: u32 = 1;

/// Why a document is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{document}: {field} {problem}")]
pub struct Invalid {
    /// Which document (`control`, `report`, `manifest`, `start`, `slots`).
    pub document: &'static str,
    /// The field.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Invalid {
    pub(crate) fn new(document: &'static str, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { document, field: field.into(), problem: problem.into() }
    }
}
