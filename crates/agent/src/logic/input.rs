//! What the logic is told.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_protocol::{Control, EntryKind, Progress, Report, SlotBatch, Start};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall time; for what others read.
    pub wall: Timestamp,
    /// Time since some instant of this process; for limits.
    pub monotonic: Duration,
}

/// Number of a save, from 1, in the order in which saves were seen.
pub type SaveId = u64;

/// What became of a GET. Texts never hold a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched<T> {
    /// There it is, decoded and valid by itself.
    Found {
        /// The document.
        value: T,
        /// Its entity tag.
        etag: Option<String>,
    },
    /// Unchanged since the tag that was sent (304).
    NotModified,
    /// No such object (404).
    Absent,
    /// The store does not honour the ticket (401, 403).
    Denied,
    /// Something was there, but it is malformed, too large or not valid.
    Invalid(String),
    /// No answer, or one that says nothing about the object.
    Failed(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// Answer to [`super::Action::FetchControl`].
    Control(Fetched<Box<Control>>),
    /// Answer to [`super::Action::FetchOwnReport`].
    OwnReport(Fetched<Box<Report>>),
    /// Answer to [`super::Action::FetchStart`].
    Start(Fetched<Box<Start>>),
    /// Answer to [`super::Action::FetchSlots`].
    Slots {
        /// Name of the batch.
        batch: String,
        /// The batch.
        fetched: Fetched<Box<SlotBatch>>,
    },
    /// Answer to [`super::Action::WriteReport`]: the sequence of the report and why it was not stored, if it was not.
    ReportWritten {
        /// Sequence of the report.
        sequence: u64,
        /// Why not.
        failure: Option<String>,
    },
    /// Answer to [`super::Action::WriteLog`].
    LogWritten {
        /// Number of the segment.
        segment: u64,
        /// True if it is stored.
        stored: bool,
    },
    /// Answer to [`super::Action::Restore`].
    Restored {
        /// Sequence of the candidate.
        seq: u64,
        /// What became of it.
        result: Restore,
    },
    /// The program wrote to stdout or stderr.
    Output(Vec<u8>),
    /// The program wrote its progress file.
    Progress(Progress),
    /// A new save is complete on disk.
    SaveSeen(SeenSave),
    /// Answer to [`super::Action::Link`].
    SaveLinked {
        /// Number of the save.
        save: SaveId,
    },
    /// Answer to [`super::Action::Hash`]: the files, sorted by path.
    SaveHashed {
        /// Number of the save.
        save: SaveId,
        /// Its files.
        files: Vec<StagedFile>,
    },
    /// A save could not be linked or hashed, or it changed meanwhile (then it will be seen again).
    SaveLost {
        /// Number of the save.
        save: SaveId,
        /// Why, in a sentence; `None` if it simply changed.
        reason: Option<String>,
    },
    /// Answer to [`super::Action::UploadChunk`].
    ChunkDone {
        /// Number of the save.
        save: SaveId,
        /// Number of the slot.
        slot: u64,
        /// How it went.
        outcome: ChunkOutcome,
    },
    /// A GPU of the machine is at work.
    GpuBusy,
    /// The program has ended, none of its descendants is left and all of its output was handed over.
    ProgramExited {
        /// How.
        end: ProgramEnd,
        /// Whether the kernel killed something for want of memory meanwhile, if that is known.
        oom_killed: Option<bool>,
    },
    /// Answer to [`super::Action::EndRental`]: why the end was not accepted, if it was not. Texts hold neither URL nor key.
    RentalEnded {
        /// Why not.
        failure: Option<String>,
    },
    /// Answer to [`super::Action::FinalScan`]: everything found has been told.
    ScanFinished,
    /// The agent got SIGTERM or SIGINT: the machine is going down.
    Signalled,
    /// The agent itself cannot go on.
    Broken {
        /// Why, in a sentence.
        reason: String,
    },
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restore {
    /// In place, every byte verified.
    Done {
        /// Path of the restored file or directory, as the program should use it.
        path: String,
    },
    /// This checkpoint can never be restored: bytes are missing or wrong, or its manifest is not to be followed.
    Bad(String),
    /// The store could not be reached or the disk failed; trying again may help.
    Failed(String),
}

/// A complete save on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSave {
    /// Name below the checkpoint path (one segment).
    pub name: String,
    /// Step in the name; `None` if it has no digits.
    pub step: Option<u64>,
    /// File or directory.
    pub kind: EntryKind,
    /// True if this is an earlier save of the same name that went on growing or changing where it lay: what was seen of it before was
    /// not complete. A save that was renamed over another is no such thing.
    pub continues: bool,
    /// When the program began it, as far as is known.
    pub began_at: Timestamp,
    /// When it was seen to be complete.
    pub complete_at: Timestamp,
}

/// A hashed file of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedFile {
    /// Path below the save, `/` between segments; empty for a save that is one file.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Its pieces in order, cut at [`tradewind_protocol::manifest::chunk_size`].
    pub pieces: Vec<StagedPiece>,
}

/// A hashed piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedPiece {
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// MD5, base64.
    pub md5: String,
}

/// How an upload of one piece went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// Stored.
    Stored,
    /// The slot holds an object already (412), perhaps this very piece after an answer that was lost.
    Taken,
    /// The store does not honour the ticket.
    Denied,
    /// No answer, or a failure of the store.
    Failed(String),
    /// The staged bytes are not what was hashed, or cannot be read.
    Unreadable(String),
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramEnd {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}
