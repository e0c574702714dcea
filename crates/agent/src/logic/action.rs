//! What the logic wants done. Every action is answered by the [`super::Input`] that its documentation names, sooner or later, once.

use std::collections::BTreeMap;

use tradewind_protocol::{CheckpointSettings, Report, RestoreCandidate, SelfEnd, Ticket};

use super::input::SaveId;

/// One thing to do. Tickets in here are secrets: they do not print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// GET `control.json`, with `If-None-Match` if there is a tag. Answer: [`super::Input::Control`].
    FetchControl {
        /// Right to read it.
        ticket: Ticket,
        /// Tag of the version that is known.
        etag: Option<String>,
    },
    /// GET `report.json`, which an earlier boot may have left. Answer: [`super::Input::OwnReport`].
    FetchOwnReport {
        /// Right to read it.
        ticket: Ticket,
    },
    /// GET the start document and open its sealed environment. Answer: [`super::Input::Start`].
    FetchStart {
        /// Right to read it.
        ticket: Ticket,
    },
    /// GET a batch of upload slots. Answer: [`super::Input::Slots`] with the same `batch`.
    FetchSlots {
        /// Name of the batch: its URL without the signature.
        batch: String,
        /// Right to read it.
        ticket: Ticket,
    },
    /// PUT `report.json`. Answer: [`super::Input::ReportWritten`].
    WriteReport {
        /// Right to overwrite it.
        ticket: Ticket,
        /// What to write.
        report: Box<Report>,
    },
    /// PUT one log segment over what is in its slot. Answer: [`super::Input::LogWritten`].
    WriteLog {
        /// Number of the segment.
        segment: u64,
        /// Right to overwrite the slot.
        ticket: Ticket,
        /// The whole segment.
        body: Vec<u8>,
    },
    /// Download a checkpoint, verify every byte, put it in place. Answer: [`super::Input::Restored`].
    Restore {
        /// What to download.
        candidate: Box<RestoreCandidate>,
        /// Where checkpoints live.
        checkpoint: CheckpointSettings,
        /// The program's working directory.
        working_dir: Option<String>,
    },
    /// Remove every save that an earlier attempt left in the checkpoint directory: what the next one finds there is what is restored,
    /// whole and verified. The last save of a program that failed may be broken, or the reason why it failed. No answer.
    ClearSaves {
        /// Where checkpoints live.
        checkpoint: CheckpointSettings,
        /// The program's working directory.
        working_dir: Option<String>,
    },
    /// Start the program and, if it makes checkpoints, the watch on its checkpoint directory. What is there already is no new save.
    /// Answers: [`super::Input::Output`], [`super::Input::SaveSeen`] and [`super::Input::GpuBusy`] at any time,
    /// [`super::Input::ProgramExited`] at the end. A program that was started before has ended; nothing of it is told any more.
    StartProgram(Box<Launch>),
    /// Signal the program's process group. No answer.
    Signal(ProgramSignal),
    /// The program has ended: look at the checkpoint directory once more. Answers: [`super::Input::SaveSeen`] for each new save, then
    /// [`super::Input::ScanFinished`].
    FinalScan {
        /// Whether a save counts as complete although it was written to a moment before the end: only if the program ended in order.
        trust_unsettled: bool,
    },
    /// Hold on to a save by linking its files, before the program prunes it. Answer: [`super::Input::SaveLinked`] or
    /// [`super::Input::SaveLost`].
    Link {
        /// Number of the save.
        save: SaveId,
        /// Name below the checkpoint path.
        name: String,
    },
    /// Hash a linked save. Answer: [`super::Input::SaveHashed`] or [`super::Input::SaveLost`].
    Hash {
        /// Number of the save.
        save: SaveId,
    },
    /// PUT one piece of a linked save with `If-None-Match: *` and Content-MD5. Answer: [`super::Input::ChunkDone`].
    UploadChunk {
        /// Number of the save.
        save: SaveId,
        /// Which bytes.
        piece: Piece,
        /// Number of the slot.
        slot: u64,
        /// Right to fill the slot.
        ticket: Ticket,
    },
    /// Remove the links of a save; whatever is still being done to it is given up. No answer (a late one is ignored).
    DropStaging {
        /// Number of the save.
        save: SaveId,
    },
    /// The operator is silent and everything is said: end the rental of this machine with the provider's own key. Answer:
    /// [`super::Input::RentalEnded`], if there is still somebody to hear it.
    EndRental {
        /// The request.
        end: SelfEnd,
    },
    /// Everything is reported and the machine itself is going down, or the Pod has nothing more to do: end the agent with this exit code.
    Leave {
        /// Exit code.
        code: i32,
        /// What people should know besides the code, in a sentence.
        why: Option<String>,
    },
}

/// Which signal the program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramSignal {
    /// SIGTERM to the group.
    Terminate,
    /// SIGKILL to the group and every descendant.
    Kill,
}

/// Some bytes of one staged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Path of the file below the save; empty for a save that is one file.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// MD5 of the bytes, base64 (Content-MD5).
    pub md5: String,
}

/// How to start the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments; `$(NAME)` is not yet replaced, because secret values are not known here.
    pub command: Vec<String>,
    /// Environment without the secret part: the start document's, `TRADEWIND_*` of this attempt.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` = the agent's.
    pub working_dir: Option<String>,
    /// What to watch.
    pub checkpoint: Option<CheckpointSettings>,
    /// A variable of the machine's environment that the program does not inherit: the key that can end the rental.
    pub withheld: Option<String>,
}
