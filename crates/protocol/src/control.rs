//! Operator to agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Check;
use crate::manifest::{MAX_SLOTS, data_prefix};
use crate::{Document, Invalid, Manifest, Ticket};

/// `control.json`: what the operator wants of the machine now. At most [`Control::MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// Protocol version.
    pub version: u32,
    /// Uid of the RentedMachine.
    pub machine: String,
    /// Rises with every change of this document. An agent ignores a lower one than it has seen.
    pub sequence: u64,
    /// Dead man's switch, in seconds: if no higher [`Control::sequence`] is heard for so long, by the agent's monotonic clock from the moment
    /// it first heard this one, the operator is silent and the machine has reached its money line. The agent then stops the program as if
    /// told to (grace: [`Start::stop_grace_s`]), saves, offers, reports [`crate::Report::silent`] and ends its rental by
    /// [`Control::self_end`]. Nothing takes that back. An operator that has nothing new to say raises the sequence in time.
    pub lease_s: u64,
    /// What to do.
    pub desired: Desired,
    /// The attempt this machine works for. A higher one, with [`Desired::Run`] and a `start` for the same boot, begins a new attempt on the
    /// machine once the agent has reported the end of the one before (`Exited`); `slots` then are the new attempt's.
    pub attempt: u32,
    /// Fresh ticket for this very document (GET).
    pub control_get: Ticket,
    /// Ticket for `report.json` (PUT), used again and again.
    pub report_put: Ticket,
    /// Ticket for `report.json` (GET): the agent reads its own last report before it starts anything.
    pub report_get: Ticket,
    /// Ticket for the immutable [`Start`] document (GET); present once the operator has sealed the environment to a boot's key.
    pub start: Option<Ticket>,
    /// Which boot `start` is for.
    pub start_boot: Option<String>,
    /// Tickets (GET) for immutable [`SlotBatch`] documents, oldest first; batches that are used up disappear from the list.
    pub slots: Vec<Ticket>,
    /// Tickets (PUT) for the ring of log segments `logs/0 … logs/n-1`.
    pub logs: Vec<Ticket>,
    /// The newest checkpoint of this attempt that is in the catalogue: (log sequence, step).
    pub committed: Option<Committed>,
    /// The newest offer that was refused, and why.
    pub refused: Option<RefusedOffer>,
    /// How the machine ends its own rental when the lease has run out; `None` where the provider has no way. Belongs into the very first
    /// document: the variable it names is kept from a program only if it was known when the program started.
    #[serde(default)]
    pub self_end: Option<SelfEnd>,
}

impl Control {
    /// The largest control document that an agent reads.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Reads a control document and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        Self::decode_any(bytes)
    }
}

impl Document for Control {
    const NAME: &'static str = "control";
    const MAX_BYTES: usize = Self::MAX_BYTES;

    fn validate(&self) -> Result<(), Invalid> {
        let check = Check(Self::NAME);
        check.version(self.version)?;
        check.id("machine", &self.machine)?;
        check.attempt(self.attempt)?;
        check.that(self.lease_s > 0, "leaseS", || "must be more than 0".to_owned())?;
        for (field, ticket) in
            [("controlGet", &self.control_get), ("reportPut", &self.report_put), ("reportGet", &self.report_get)]
        {
            check.ticket(field, ticket)?;
        }
        if let Some(start) = &self.start {
            check.ticket("start", start)?;
        }
        check.that(self.start.is_some() == self.start_boot.is_some(), "startBoot", || {
            "must be there exactly when start is".to_owned()
        })?;
        if let Some(boot) = &self.start_boot {
            check.id("startBoot", boot)?;
        }
        check.count("slots", self.slots.len(), 64)?;
        self.slots.iter().try_for_each(|ticket| check.ticket("slots", ticket))?;
        check.count("logs", self.logs.len(), 64)?;
        self.logs.iter().try_for_each(|ticket| check.ticket("logs", ticket))?;
        if let Desired::Stop { reason, .. } = &self.desired {
            check.text("desired.reason", reason, 100)?;
        }
        if let Some(refused) = &self.refused {
            check.text("refused.reason", &refused.reason, 500)?;
        }
        self.self_end.as_ref().map_or(Ok(()), |end| end.validate(check))
    }
}

/// One HTTP request by which a machine ends its own rental, with a key that the provider put into its environment. The body is `{}`;
/// 2xx and 404 are success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfEnd {
    /// `DELETE`, `POST` or `PUT`.
    pub method: String,
    /// An http or https URL without a secret in it.
    pub url: String,
    /// Name of the variable of the agent's own environment whose value is the bearer token. The program does not inherit it (but, being
    /// the same user, it could read the agent's memory).
    pub bearer_env: String,
}

impl SelfEnd {
    fn validate(&self, check: Check) -> Result<(), Invalid> {
        check.that(["DELETE", "POST", "PUT"].contains(&self.method.as_str()), "selfEnd.method", || {
            "must be DELETE, POST or PUT".to_owned()
        })?;
        check.url("selfEnd.url", &self.url)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = &self.bearer_env;
        let fits = (1..=128).contains(&name.len())
            && name.chars().all(plain)
            && !name.starts_with(|c: char| c.is_ascii_digit());
        check.that(fits, "selfEnd.bearerEnv", || {
            "must be 1 to 128 letters, digits or '_', and not begin with a digit".to_owned()
        })
    }
}

/// A checkpoint that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// Number of the offer that was committed.
    pub offer: u64,
    /// Its sequence in the catalogue's log.
    pub seq: u64,
    /// Its step.
    pub step: u64,
}

/// An offer that will never count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedOffer {
    /// Number of the offer.
    pub offer: u64,
    /// Why, in a sentence.
    pub reason: String,
}

/// What the machine should do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Desired {
    /// Report and wait for more.
    Wait,
    /// Run the program of `start`.
    Run,
    /// Ask the program to stop, save what can be saved within `grace_s`, report.
    #[serde(rename_all = "camelCase")]
    Stop {
        /// Why, in a word.
        reason: String,
        /// Seconds until the program is killed.
        grace_s: u64,
    },
}

/// What to run: an immutable document, made for one boot of one machine. At most [`Start::MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// Protocol version.
    pub version: u32,
    /// Uid of the RentedMachine.
    pub machine: String,
    /// The boot this was made for.
    pub boot: String,
    /// Id of the run; the same over all attempts.
    pub run_id: String,
    /// Attempt number.
    pub attempt: u32,
    /// Program and arguments (`command` + `args` of the container).
    pub command: Vec<String>,
    /// Environment that is no secret.
    pub env: BTreeMap<String, String>,
    /// Secret environment, sealed to the boot's key; a JSON object name -> value when opened ([`crate::seal::SecretEnv`]).
    pub sealed_env: Option<crate::seal::Sealed>,
    /// Working directory; `None` = where the agent was started.
    pub working_dir: Option<String>,
    /// Seconds between SIGTERM and SIGKILL when the program is told to stop.
    pub stop_grace_s: u64,
    /// Checkpoints; `None` = the program makes none.
    pub checkpoint: Option<CheckpointSettings>,
    /// What may be restored, newest first. Empty = start from zero.
    pub restore: Vec<RestoreCandidate>,
    /// Prefix of this machine's data keys in the checkpoint location (`data/<attempt>-<machine6>/`).
    pub data_prefix: String,
}

impl Start {
    /// The largest start document that an agent reads (tickets for hundreds of chunks).
    pub const MAX_BYTES: usize = 16 * 1024 * 1024;

    /// Reads a start document, which must be for this machine and this boot.
    pub fn decode(bytes: &[u8], machine: &str, boot: &str) -> Result<Self, Invalid> {
        let start = Self::decode_any(bytes)?;
        let check = Check(Self::NAME);
        check.that(start.machine == machine, "machine", || "is another machine".to_owned())?;
        check.that(start.boot == boot, "boot", || "is another boot".to_owned())?;
        Ok(start)
    }
}

impl Document for Start {
    const NAME: &'static str = "start";
    const MAX_BYTES: usize = Self::MAX_BYTES;

    fn validate(&self) -> Result<(), Invalid> {
        let check = Check(Self::NAME);
        check.version(self.version)?;
        check.id("machine", &self.machine)?;
        check.id("boot", &self.boot)?;
        check.id("runId", &self.run_id)?;
        check.attempt(self.attempt)?;
        check.that(!self.command.is_empty(), "command", || "must not be empty".to_owned())?;
        check.count("command", self.command.len(), 4096)?;
        self.command.iter().try_for_each(|word| check.no_nul("command", word))?;
        check.count("env", self.env.len(), 4096)?;
        for (name, value) in &self.env {
            check_env_name(check, name)?;
            check.no_nul("env", value)?;
        }
        if let Some(directory) = &self.working_dir {
            check.no_nul("workingDir", directory)?;
            check.text("workingDir", directory, 4096)?;
        }
        if let Some(settings) = &self.checkpoint {
            settings.validate(check)?;
        }
        check.that(self.data_prefix == data_prefix(self.attempt, &self.machine), "dataPrefix", || {
            "must be the prefix of this attempt and machine".to_owned()
        })?;
        check.count("restore", self.restore.len(), 16)?;
        self.restore.iter().try_for_each(|candidate| candidate.validate(check, &self.run_id))
    }
}

/// A variable name that every system can set: not empty, no `=`, no NUL.
fn check_env_name(check: Check, name: &str) -> Result<(), Invalid> {
    let fits = !name.is_empty() && name.len() <= 1024 && !name.contains(['=', '\0']);
    check.that(fits, "env", || "has a name that is empty, too long, or contains '=' or NUL".to_owned())
}

impl CheckpointSettings {
    fn validate(&self, check: Check) -> Result<(), Invalid> {
        check.that(!self.path.is_empty(), "checkpoint.path", || "must not be empty".to_owned())?;
        check.text("checkpoint.path", &self.path, 4096)?;
        check.no_nul("checkpoint.path", &self.path)?;
        let one_segment = !self.pattern.is_empty() && !self.pattern.contains(['/', '\0']);
        check.that(one_segment, "checkpoint.pattern", || "must be a glob for one path segment".to_owned())?;
        check.text("checkpoint.pattern", &self.pattern, 255)?;
        check.count("checkpoint.resumeArgs", self.resume_args.len(), 256)?;
        self.resume_args.iter().try_for_each(|word| check.no_nul("checkpoint.resumeArgs", word))
    }
}

impl RestoreCandidate {
    fn validate(&self, check: Check, run_id: &str) -> Result<(), Invalid> {
        self.manifest.validate()?;
        // Versions of others have no place on the disk of one.
        check.that(self.manifest.writers.is_empty(), "restore.manifest.writers", || {
            "must be empty: a worker restores its own part".to_owned()
        })?;
        check.that(self.manifest.run_id == run_id, "restore.manifest.runId", || "is another run".to_owned())?;
        let named = self.manifest.distinct_chunks();
        let complete = named.len() == self.chunks.len() && named.keys().all(|key| self.chunks.contains_key(*key));
        check.that(complete, "restore.chunks", || "must hold one ticket for each chunk of the manifest".to_owned())?;
        self.chunks.values().try_for_each(|ticket| check.ticket("restore.chunks", ticket))
    }
}

/// How the program saves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSettings {
    /// Directory the program writes checkpoints to; relative to the working directory or absolute.
    pub path: String,
    /// Glob for one checkpoint (a file or a directory directly under `path`); `{step}` stands for the digits of the step. Without it the
    /// last run of digits in the name is the step.
    pub pattern: String,
    /// Added to the command when something was restored; `$(TRADEWIND_RESUME_PATH)` and the like are replaced.
    pub resume_args: Vec<String>,
    /// Seconds between saves that we ask of the program (`TRADEWIND_CHECKPOINT_INTERVAL`).
    pub interval_s: u64,
    /// A directory counts as complete when nothing in it changed for so many milliseconds.
    pub quiet_ms: u64,
    /// Others save: what this program writes to `path` is not uploaded, and nothing waits for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restore_only: bool,
    /// Other workers save parts of the same checkpoints: every offer waits until all have one of the same step ([`crate::Report::waiting`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
}

/// A checkpoint that may be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreCandidate {
    /// Sequence in the catalogue's log.
    pub seq: u64,
    /// What it consists of.
    pub manifest: Manifest,
    /// One GET ticket per distinct chunk key.
    pub chunks: BTreeMap<String, Ticket>,
}

/// Numbered places to upload chunks to: an immutable document. At most [`SlotBatch::MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotBatch {
    /// Protocol version.
    pub version: u32,
    /// Uid of the RentedMachine.
    pub machine: String,
    /// Attempt.
    pub attempt: u32,
    /// Number of the first slot; the others follow without a gap. Batches never overlap.
    pub first: u64,
    /// PUT tickets, one per slot; the object's key is [`crate::manifest::slot_key`] of prefix and number.
    pub puts: Vec<Ticket>,
}

impl SlotBatch {
    /// The largest batch that an agent reads.
    pub const MAX_BYTES: usize = 4 * 1024 * 1024;

    /// Reads a batch, which must be for this machine.
    pub fn decode(bytes: &[u8], machine: &str) -> Result<Self, Invalid> {
        let batch = Self::decode_any(bytes)?;
        Check(Self::NAME).that(batch.machine == machine, "machine", || "is another machine".to_owned())?;
        Ok(batch)
    }

    /// The number after the last slot.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.puts.len() as u64)
    }
}

impl Document for SlotBatch {
    const NAME: &'static str = "slots";
    const MAX_BYTES: usize = Self::MAX_BYTES;

    fn validate(&self) -> Result<(), Invalid> {
        let check = Check(Self::NAME);
        check.version(self.version)?;
        check.id("machine", &self.machine)?;
        check.attempt(self.attempt)?;
        check.that(!self.puts.is_empty(), "puts", || "must not be empty".to_owned())?;
        check.count("puts", self.puts.len(), 4096)?;
        check.that(self.end() <= MAX_SLOTS, "first", || format!("goes beyond slot {MAX_SLOTS}"))?;
        self.puts.iter().try_for_each(|ticket| check.ticket("puts", ticket))
    }
}
