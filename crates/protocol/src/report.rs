//! Agent to operator.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::check::{Check, clean_in_place};
use crate::seal::is_public_key;
use crate::{Document, Invalid, Manifest};

/// `report.json`: what the machine says of itself. At most [`Report::MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Protocol version.
    pub version: u32,
    /// Uid of the RentedMachine.
    pub machine: String,
    /// Random id of this boot of the agent.
    pub boot: String,
    /// Public X25519 key of this boot, base64 of 32 bytes.
    pub boot_key: String,
    /// Rises with every report of this boot.
    pub sequence: u64,
    /// The highest control sequence this boot has acted on.
    pub control_seen: u64,
    /// The attempt that `phase`, `progress`, `exit`, `restore`, `offer`, `uploading` and the slots are about: that of the start document that
    /// was begun last, or, while none was begun, the one of the control document. So the report of an attempt that has ended keeps its
    /// number while the next one waits, and the number changes with the first report of the next one, in which nothing of the one before
    /// is left. `None` until a control document was heard.
    pub attempt: Option<u32>,
    /// Where it is.
    pub phase: AgentPhase,
    /// The machine's clock.
    pub at: Timestamp,
    /// Newest progress of the program.
    pub progress: Option<Progress>,
    /// How the program ended.
    pub exit: Option<Exit>,
    /// What was restored.
    pub restore: Option<RestoreOutcome>,
    /// The newest checkpoint that is completely uploaded and waits for its commit.
    pub offer: Option<CheckpointOffer>,
    /// Older ones that wait too, by their numbers. Only where several workers save together: an operator that was away finds the newest step
    /// that all of them have. An agent of the version before does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<CheckpointOffer>,
    /// A checkpoint that is on its way: (step, bytes sent, bytes in all).
    pub uploading: Option<Uploading>,
    /// Upload slots still unused, over all batches fetched.
    pub slots_left: u64,
    /// Slot number up to which slots are used up (exclusive).
    pub slots_used: u64,
    /// Number of log segments written in all; segment n is in slot n modulo the ring's size.
    pub log_segments: u64,
    /// Things a user should know, newest last, at most 8, each at most 300 characters.
    pub warnings: Vec<String>,
    /// True if this boot found the report of an earlier boot that had got past `Booted` (or one that cannot be read): the host started the
    /// container again, with or without its disk, and nothing is started a second time, of no attempt. What the operator should do:
    ///
    /// * `restarted`, phase `Exited`: the program had ended before. `attempt`, `exit` and `offer` are those of the earlier boot: commit the
    ///   offer, take the exit as it is (one that was [`Exit::told_to_stop`] by nobody but the host is a disruption), end the machine. A new
    ///   attempt needs another machine.
    /// * `restarted`, phase `Failed`: the program was cut down. Its offer, if it is not committed yet, can still be; then end the machine and
    ///   begin a new attempt elsewhere.
    /// * another `boot` without `restarted`: nothing had been started (the earlier boot had said no more than `Booted`). The machine is as
    ///   good as new: it may go on with a start document for this boot, sealed to its key.
    pub restarted: bool,
    /// The lease of the control document has run out: the operator is silent, the program is being stopped or has been, and the machine
    /// ends its own rental if it can. Never taken back.
    #[serde(default)]
    pub silent: bool,
    /// While `Running`: seconds since the last sign of life, which is output, a change of progress, a save or a busy GPU. Otherwise 0.
    #[serde(default)]
    pub quiet_s: u64,
    /// What the machine has.
    #[serde(default)]
    pub host: Option<HostFacts>,
    /// Where other workers of the job reach this one: an IP address. Only in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// How long the save of the newest offer took. An agent of the version before does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_took: Option<SaveTook>,
}

/// What the machine has, as far as the agent can see from within: looked at once, when it starts. `None` = it cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFacts {
    /// Size of the file system with the working directory, used and free.
    pub disk_bytes: Option<u64>,
    /// Memory of the machine, or of the container if that is less.
    pub memory_bytes: Option<u64>,
    /// NVIDIA GPUs that the container can open.
    pub gpus: Option<u32>,
}

impl Report {
    /// The largest report that the operator reads.
    pub const MAX_BYTES: usize = 1024 * 1024;
    /// The most offers that wait at once.
    pub const MAX_OFFERS: usize = 8;

    /// All offers that wait, by their numbers.
    pub fn offers(&self) -> impl Iterator<Item = &CheckpointOffer> {
        self.waiting.iter().chain(&self.offer)
    }

    /// Reads a report, which must be of this machine. Texts come out without control characters.
    pub fn decode(bytes: &[u8], machine: &str) -> Result<Self, Invalid> {
        let report = Self::decode_any(bytes)?;
        Check(Self::NAME).that(report.machine == machine, "machine", || "is another machine".to_owned())?;
        Ok(report)
    }
}

impl Document for Report {
    const NAME: &'static str = "report";
    const MAX_BYTES: usize = Self::MAX_BYTES;

    fn validate(&self) -> Result<(), Invalid> {
        let check = Check(Self::NAME);
        check.version(self.version)?;
        check.id("machine", &self.machine)?;
        check.id("boot", &self.boot)?;
        check.that(is_public_key(&self.boot_key), "bootKey", || "must be base64 of 32 bytes".to_owned())?;
        check.attempt(self.attempt.unwrap_or(0))?;
        if let Some(loss) = self.progress.as_ref().and_then(|progress| progress.loss.as_ref()) {
            check.text("progress.loss", loss, 32)?;
        }
        if let Some(exit) = &self.exit {
            check.text("exit.logTail", &exit.log_tail, 2000)?;
        }
        if let Some(restore) = &self.restore {
            check.count("restore.rejected", restore.rejected.len(), 16)?;
            restore.rejected.iter().try_for_each(|bad| check.text("restore.rejected", &bad.reason, 500))?;
        }
        self.validate_offers(check)?;
        check.count("warnings", self.warnings.len(), 8)?;
        self.warnings.iter().try_for_each(|warning| check.text("warnings", warning, 300))
    }

    fn clean(&mut self) {
        let loss = self.progress.iter_mut().filter_map(|progress| progress.loss.as_mut());
        let tail = self.exit.iter_mut().map(|exit| &mut exit.log_tail);
        let rejected = self.restore.iter_mut().flat_map(|restore| &mut restore.rejected).map(|bad| &mut bad.reason);
        loss.chain(tail).chain(rejected).chain(&mut self.warnings).for_each(clean_in_place);
    }
}

impl Report {
    fn validate_offers(&self, check: Check) -> Result<(), Invalid> {
        check.count("waiting", self.offers().count(), Self::MAX_OFFERS)?;
        let mut last = 0;
        for offer in self.offers() {
            check.that(offer.number > last, "offer.number", || {
                "must be at least 1, and higher than that of an older offer".to_owned()
            })?;
            last = offer.number;
            check.that(offer.manifest.machine == self.machine, "offer.manifest.machine", || {
                "is another machine".to_owned()
            })?;
            check.that(offer.manifest.writers.is_empty(), "offer.manifest.writers", || {
                "must be empty: a worker offers its own part".to_owned()
            })?;
            offer.manifest.validate()?;
        }
        Ok(())
    }
}

/// Where the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AgentPhase {
    /// Started; waits for its start document.
    Booted,
    /// Downloads the last checkpoint.
    Restoring,
    /// The program runs.
    Running,
    /// The program was told to stop or has ended; the last checkpoint is on its way.
    Stopping,
    /// The program has ended and everything worth keeping is offered.
    Exited,
    /// The agent itself cannot go on; see warnings.
    Failed,
}

/// Progress as the program tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Step reached.
    pub step: u64,
    /// Steps in all, if told.
    pub total: Option<u64>,
    /// Loss as the program printed it, if told (at most 32 characters).
    pub loss: Option<String>,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code; 128 + signal after a signal; 143 after a stop, whatever the program said.
    pub code: i32,
    /// True if it had been told to stop: by the control document, by the end of its lease, or by the host's signal to the agent, which an
    /// operator recognises by never having said so itself.
    pub told_to_stop: bool,
    /// The machine's clock.
    pub at: Timestamp,
    /// Last lines of output, at most 2,000 characters.
    pub log_tail: String,
    /// Whether the kernel killed a process of the container for want of memory while the program ran, by the container's cgroup counters.
    /// It need not have been the program's first process. `None` where there are no counters.
    #[serde(default)]
    pub oom_killed: Option<bool>,
}

/// What became of the restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreOutcome {
    /// Sequence and step of what was restored; `None` = started from zero.
    pub restored: Option<Restored>,
    /// Candidates that were bad, with the reason.
    pub rejected: Vec<RejectedCandidate>,
}

/// A checkpoint that was put back on disk, every byte verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Log sequence.
    pub seq: u64,
    /// Step.
    pub step: u64,
}

/// A candidate that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedCandidate {
    /// Log sequence.
    pub seq: u64,
    /// Step.
    pub step: u64,
    /// What was wrong, in a sentence without URLs.
    pub reason: String,
}

/// A completely uploaded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointOffer {
    /// Rises with every offer of this machine, from 1.
    pub number: u64,
    /// What it consists of.
    pub manifest: Manifest,
}

/// How long a save took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SaveTook {
    /// Number of the offer that it became.
    pub offer: u64,
    /// From the moment at which the program began to write it until all of it was uploaded, in milliseconds.
    pub millis: u64,
}

/// An upload under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uploading {
    /// Step.
    pub step: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}
