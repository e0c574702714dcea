//! Where operator and agents meet: typed access to the operator's own bucket.
//!
//! Below `machines/<id>/`, where the id is a machine's uid or that of a worker in a cluster: `control.json` (the operator overwrites), `report.json` (the agent overwrites through a ticket),
//! `sealed/<boot>-<attempt>.json` (the start document, written once), `tickets/<attempt>-<first slot>.json` (written once).
//! `logs/<uid>/<slot>` is the ring of the machine's output, which outlives the machine: `kept/<install>/<uid>` says so, until it is
//! removed. `agent/<sha256>` is the agent's binary, `market/<install>.json` what an operator has learned of markets and hosts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tradewind_core::InstallId;
use tradewind_protocol::{Control, Document, Invalid, LogSegment, Report, SlotBatch, Start, Ticket};

use crate::store::{Fetched, ObjectInfo, PutOutcome, Store, StoreError, put_if_absent_resolved};

/// The most machines that are listed.
const MAX_MACHINES: usize = 100_000;
/// The most objects of one machine that are deleted at once.
const MAX_OBJECTS: usize = 10_000;

/// Bytes of the agent's binary that are read at once.
const PIECE: usize = 64 * 1024;

/// The operator's side of the mailbox.
#[derive(Clone)]
pub struct Mailbox {
    store: Arc<dyn Store>,
}

/// Why the mailbox gave no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// The store failed.
    #[error("the mailbox cannot be used: {0}")]
    Store(StoreError),
    /// A document is not what it should be: ignore it, log it once, count it.
    #[error("the mailbox holds a document that is not believed: {0}")]
    Invalid(Invalid),
}

impl MailboxError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Invalid(_) => "DocumentInvalid",
        }
    }
}

impl From<StoreError> for MailboxError {
    fn from(error: StoreError) -> Self {
        match error {
            // The size of a document is the machine's doing, not the store's.
            StoreError::TooLarge { size_bytes, limit_bytes, .. } => Self::Invalid(Invalid {
                document: "mailbox",
                field: "document".to_owned(),
                problem: format!("has {size_bytes} bytes, at most {limit_bytes} are read"),
            }),
            error => Self::Store(error),
        }
    }
}

impl From<Invalid> for MailboxError {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// Answer to a look at a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportRead {
    /// The machine has not reported yet.
    Absent,
    /// It is the report the caller has seen.
    Unchanged,
    /// A report that was checked.
    Changed {
        /// The report.
        report: Box<Report>,
        /// For the next look.
        etag: Option<String>,
    },
    /// A report that is not believed. Read again only when it has changed.
    Malformed {
        /// Why.
        invalid: Invalid,
        /// For the next look.
        etag: Option<String>,
    },
}

/// Segments of a program's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogTail {
    /// Segments in order; numbers may have gaps where the ring was faster than the reader.
    pub segments: Vec<LogSegment>,
    /// The number to ask for next.
    pub next: u64,
}

/// Answer to a look at one slot of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentRead {
    /// Nothing was ever written there, or nothing that is a segment.
    Absent,
    /// It is the segment that the caller has seen.
    Unchanged,
    /// A segment.
    Changed {
        /// The segment.
        segment: LogSegment,
        /// For the next look.
        etag: Option<String>,
    },
}

/// Output that has outlived its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLogs {
    /// Uid of the machine.
    pub machine: String,
    /// Since when the machine is gone.
    pub since: jiff::Timestamp,
}

/// The agent's binary in the mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentBinary {
    /// SHA-256 of its bytes, lower-case hex; its name in the mailbox.
    pub sha256: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl AgentBinary {
    /// Looks at a binary in pieces, without holding the whole of it.
    ///
    /// # Errors
    /// If it cannot be read to its end.
    pub fn of(mut binary: impl std::io::Read) -> std::io::Result<Self> {
        let (mut hash, mut size_bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
        loop {
            match binary.read(&mut piece) {
                Ok(0) => return Ok(Self { sha256: tradewind_core::hex(&hash.finalize()), size_bytes }),
                Ok(length) => {
                    hash.update(&piece[..length]);
                    size_bytes += length as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Mailbox {
    /// The mailbox at the store's place.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The store below, for a probe.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Overwrites a machine's control document.
    pub async fn write_control(&self, control: &Control) -> Result<(), MailboxError> {
        let bytes = Bytes::from(control.encode()?);
        Ok(self.store.put(&control_key(&control.machine), bytes).await?)
    }

    /// The control document that stands there, so that an operator that starts again goes on with its sequence.
    pub async fn read_control(&self, machine: &str) -> Result<Option<Control>, MailboxError> {
        let bytes = self.store.get(&control_key(machine), Control::MAX_BYTES as u64).await?;
        Ok(bytes.map(|bytes| Control::decode(&bytes)).transpose()?)
    }

    /// Reads a machine's report if it is another than the one with this etag. `Err` only if the store failed.
    pub async fn read_report(&self, machine: &str, etag: Option<&str>) -> Result<ReportRead, MailboxError> {
        let key = report_key(machine);
        let fetched =
            match self.store.get_if_changed(&key, etag, Report::MAX_BYTES as u64).await.map_err(MailboxError::from) {
                Ok(fetched) => fetched,
                Err(MailboxError::Invalid(invalid)) => return Ok(ReportRead::Malformed { invalid, etag: None }),
                Err(error) => return Err(error),
            };
        Ok(match fetched {
            Fetched::Absent => ReportRead::Absent,
            Fetched::Unchanged => ReportRead::Unchanged,
            Fetched::Changed { bytes, etag } => match Report::decode(&bytes, machine) {
                Ok(report) => ReportRead::Changed { report: Box::new(report), etag },
                Err(invalid) => ReportRead::Malformed { invalid, etag },
            },
        })
    }

    /// Writes the start document of one boot and attempt, once. Gives back the one that stands there, which may be one that was written
    /// before (by us, before a crash): that one counts.
    pub async fn write_start(&self, start: &Start) -> Result<Start, MailboxError> {
        let key = start_key(&start.machine, &start.boot, start.attempt);
        match self.write_once(&key, start.encode()?, Start::MAX_BYTES).await? {
            None => Ok(start.clone()),
            Some(there) => Ok(Start::decode(&there, &start.machine, &start.boot)?),
        }
    }

    /// Writes a batch of upload tickets, once. Gives back the one that stands there, as [`Mailbox::write_start`] does.
    pub async fn write_slots(&self, batch: &SlotBatch) -> Result<SlotBatch, MailboxError> {
        let key = slots_key(&batch.machine, batch.attempt, batch.first);
        match self.write_once(&key, batch.encode()?, SlotBatch::MAX_BYTES).await? {
            None => Ok(batch.clone()),
            Some(there) => Ok(SlotBatch::decode(&there, &batch.machine)?),
        }
    }

    /// `None` if our bytes stand there, else the bytes that do.
    async fn write_once(&self, key: &str, bytes: Vec<u8>, max_bytes: usize) -> Result<Option<Bytes>, MailboxError> {
        match put_if_absent_resolved(&*self.store, key, Bytes::from(bytes)).await? {
            PutOutcome::Written => Ok(None),
            PutOutcome::Exists => {
                let gone =
                    || StoreError::Malformed { key: key.to_owned(), problem: "vanished while it was read".to_owned() };
                Ok(Some(self.store.get(key, max_bytes as u64).await?.ok_or_else(gone)?))
            }
        }
    }

    /// Ticket to read the control document.
    pub async fn control_ticket(&self, machine: &str, lifetime: Duration) -> Result<Ticket, StoreError> {
        self.store.sign_get(&control_key(machine), lifetime).await
    }

    /// Ticket to overwrite the report.
    pub async fn report_put_ticket(&self, machine: &str, lifetime: Duration) -> Result<Ticket, StoreError> {
        self.store.sign_put(&report_key(machine), lifetime).await
    }

    /// Ticket to read the report: what the agent knows of earlier boots.
    pub async fn report_get_ticket(&self, machine: &str, lifetime: Duration) -> Result<Ticket, StoreError> {
        self.store.sign_get(&report_key(machine), lifetime).await
    }

    /// Ticket to read a start document.
    pub async fn start_ticket(
        &self,
        machine: &str,
        boot: &str,
        attempt: u32,
        lifetime: Duration,
    ) -> Result<Ticket, StoreError> {
        self.store.sign_get(&start_key(machine, boot, attempt), lifetime).await
    }

    /// Ticket to read the batch that begins with slot `first`.
    pub async fn slots_ticket(
        &self,
        machine: &str,
        attempt: u32,
        first: u64,
        lifetime: Duration,
    ) -> Result<Ticket, StoreError> {
        self.store.sign_get(&slots_key(machine, attempt, first), lifetime).await
    }

    /// Tickets to overwrite the `ring` log segments, in order.
    pub async fn log_tickets(&self, machine: &str, ring: u32, lifetime: Duration) -> Result<Vec<Ticket>, StoreError> {
        let mut tickets = Vec::new();
        for slot in 0..ring {
            tickets.push(self.store.sign_put(&log_key(machine, slot.into()), lifetime).await?);
        }
        Ok(tickets)
    }

    /// Puts the agent's binary into the mailbox under its SHA-256, unless it is there.
    pub async fn publish_agent(&self, binary: Bytes) -> Result<AgentBinary, StoreError> {
        let size_bytes = binary.len() as u64;
        let agent = AgentBinary { sha256: tradewind_core::hex(&Sha256::digest(&binary)), size_bytes };
        if !self.has_agent(&agent).await? {
            self.store.put(&agent_key(&agent.sha256), binary).await?;
        }
        Ok(agent)
    }

    /// Whether this binary of the agent is there.
    pub async fn has_agent(&self, agent: &AgentBinary) -> Result<bool, StoreError> {
        let there = self.store.head(&agent_key(&agent.sha256)).await?;
        Ok(there.is_some_and(|there| there.size_bytes == agent.size_bytes))
    }

    /// Ticket to read the agent's binary.
    pub async fn agent_ticket(&self, sha256: &str, lifetime: Duration) -> Result<Ticket, StoreError> {
        self.store.sign_get(&agent_key(sha256), lifetime).await
    }

    /// The log segments from number `from` on that the ring of `ring` slots still holds, when `written` have been written in all (as the report
    /// says). At most `ring` reads. Segments that were overwritten meanwhile or are malformed are left out.
    pub async fn read_log_segments(
        &self,
        machine: &str,
        from: u64,
        written: u64,
        ring: u32,
    ) -> Result<LogTail, MailboxError> {
        let mut tail = LogTail { segments: Vec::new(), next: from.max(written) };
        let slots = u64::from(ring.max(1));
        for number in from.max(written.saturating_sub(slots))..written {
            let key = log_key(machine, number % slots);
            let bytes = match self.store.get(&key, LogSegment::MAX_BYTES as u64).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) | Err(StoreError::TooLarge { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            tail.segments.extend(LogSegment::decode(&bytes).filter(|segment| segment.number == number));
        }
        Ok(tail)
    }

    /// Reads one slot of a machine's ring of logs if it is another segment than the one with this etag, or that has grown.
    pub async fn read_log_slot(
        &self,
        machine: &str,
        slot: u32,
        etag: Option<&str>,
    ) -> Result<SegmentRead, MailboxError> {
        let key = log_key(machine, slot.into());
        let fetched = match self.store.get_if_changed(&key, etag, LogSegment::MAX_BYTES as u64).await {
            Err(StoreError::TooLarge { .. }) => return Ok(SegmentRead::Absent),
            fetched => fetched?,
        };
        Ok(match fetched {
            Fetched::Absent => SegmentRead::Absent,
            Fetched::Unchanged => SegmentRead::Unchanged,
            Fetched::Changed { bytes, etag } => {
                LogSegment::decode(&bytes).map_or(SegmentRead::Absent, |segment| SegmentRead::Changed { segment, etag })
            }
        })
    }

    /// Notes that a machine's output stays although the machine goes, until [`Mailbox::remove_logs`]. Safe to repeat.
    pub async fn keep_logs(&self, install: &InstallId, machine: &str) -> Result<(), StoreError> {
        self.store.put(&format!("{}{machine}", kept_prefix(install)), Bytes::new()).await
    }

    /// Output of machines of this install that are gone.
    pub async fn kept_logs(&self, install: &InstallId) -> Result<Vec<KeptLogs>, StoreError> {
        let prefix = kept_prefix(install);
        let objects = self.store.list(&prefix, MAX_MACHINES).await?;
        let kept = objects.into_iter().filter_map(|object| {
            let machine = object.key.strip_prefix(&prefix)?.to_owned();
            Some(KeptLogs { machine, since: object.last_modified })
        });
        Ok(kept.collect())
    }

    /// Removes a machine's output and the note of it. Safe to repeat.
    pub async fn remove_logs(&self, install: &InstallId, machine: &str) -> Result<(), StoreError> {
        self.delete_all(&self.store.list(&format!("logs/{machine}/"), MAX_OBJECTS).await?).await?;
        // Last, so that a removal that broke off is done again.
        self.store.delete(&format!("{}{machine}", kept_prefix(install))).await
    }

    /// What the operators of this install have learned of markets and hosts, as last written; at most `max_bytes`.
    pub async fn read_market(&self, install: &InstallId, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        self.store.get(&market_key(install), max_bytes).await
    }

    /// Overwrites it. Only who leads may do that.
    pub async fn write_market(&self, install: &InstallId, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.store.put(&market_key(install), Bytes::from(bytes)).await
    }

    /// Deletes every object of a machine but its output ([`Mailbox::keep_logs`]). Safe to repeat; a machine that still writes leaves new ones.
    pub async fn forget(&self, machine: &str) -> Result<(), StoreError> {
        let objects = self.store.list(&machine_prefix(machine), MAX_OBJECTS).await?;
        self.delete_all(&objects).await
    }

    /// Deletes every object of a machine, as [`Mailbox::forget`] does, if none of them was written at this time or later. True if something was
    /// deleted. What a removal that broke off has left behind is as old as it was: it can be done again.
    pub async fn forget_unused(&self, machine: &str, since: jiff::Timestamp) -> Result<bool, StoreError> {
        let objects = self.store.list(&machine_prefix(machine), MAX_OBJECTS).await?;
        if objects.iter().any(|object| object.last_modified >= since) {
            return Ok(false);
        }
        self.delete_all(&objects).await?;
        Ok(!objects.is_empty())
    }

    async fn delete_all(&self, objects: &[ObjectInfo]) -> Result<(), StoreError> {
        for object in objects {
            self.store.delete(&object.key).await?;
        }
        Ok(())
    }

    /// Ids of all machines that have an object here: uids of machines, ids of workers in clusters, of all who share the mailbox.
    pub async fn list_machines(&self) -> Result<Vec<String>, StoreError> {
        self.store.list_folders("machines/", MAX_MACHINES).await
    }
}

fn machine_prefix(machine: &str) -> String {
    format!("machines/{machine}/")
}

fn control_key(machine: &str) -> String {
    format!("machines/{machine}/control.json")
}

fn report_key(machine: &str) -> String {
    format!("machines/{machine}/report.json")
}

fn start_key(machine: &str, boot: &str, attempt: u32) -> String {
    format!("machines/{machine}/sealed/{boot}-{attempt}.json")
}

fn slots_key(machine: &str, attempt: u32, first: u64) -> String {
    format!("machines/{machine}/tickets/{attempt}-{first}.json")
}

fn log_key(machine: &str, slot: u64) -> String {
    format!("logs/{machine}/{slot}")
}

fn kept_prefix(install: &InstallId) -> String {
    format!("kept/{install}/")
}

fn market_key(install: &InstallId) -> String {
    format!("market/{install}.json")
}

fn agent_key(sha256: &str) -> String {
    format!("agent/{sha256}")
}
