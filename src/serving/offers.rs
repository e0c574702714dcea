//! What agents save: places to upload to, the commit of what they offer, and what goes once newer ones count.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::Reason;
use tradewind_api::rented_machine::MachineCheckpoint;
use tradewind_api::training_job::CheckpointStatus;
use tradewind_checkpoints::{Catalogue, CommitOutcome, Keep, StoreError};
use tradewind_protocol::control::{Committed, RefusedOffer};
use tradewind_protocol::manifest::{data_prefix, slot_key};
use tradewind_protocol::{Control, Manifest, Report, SlotBatch, VERSION};

use super::{Memory, Saving, Serving};
use crate::events::Severity;

/// Upload slots in one batch.
const SLOTS_PER_BATCH: u64 = 128;
/// A new batch is made when fewer slots are left.
const SLOTS_LOW: u64 = 128;
/// So many saves of the largest size so far must find slots without us: one that uploads, one that follows, and the last one at the money
/// line.
const SAVES_AHEAD: u64 = 3;
/// Slots that are handed out ahead at most: an agent makes 4,000 pieces of a save at most.
const SLOTS_AHEAD: u64 = 4096;
/// The longest save that a machine is believed: a day.
const MOST_TOLD_S: u64 = 86_400;

impl Serving<'_> {
    /// Keeps enough numbered places to upload to. The batch that follows from the report is always the same one, so that a repeated pass
    /// hands out nothing twice.
    pub(super) async fn top_up_slots(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut Memory,
    ) -> Result<(), String> {
        let Some(settings) = self.whom.checkpoint.filter(|_| self.whom.saving != Saving::Never) else { return Ok(()) };
        // The numbers that an agent tells are of the attempt that its report is about.
        let earlier = report.attempt.is_some_and(|of| of != self.whom.attempt);
        if control.start.is_none() || earlier || report.slots_left >= slots_low(memory.most_chunks) {
            return Ok(());
        }
        let first = (report.slots_used + report.slots_left).div_ceil(SLOTS_PER_BATCH) * SLOTS_PER_BATCH;
        let number = first / SLOTS_PER_BATCH;
        if memory.slots_batch >= Some(number) && report.control_seen < control.sequence {
            // Handed out already; the agent has not looked yet.
            return Ok(());
        }
        let life = self.ctx.settings.ticket_lifetime;
        let catalogue = self.catalogue(settings).await?;
        let prefix = data_prefix(self.whom.attempt, self.whom.id);
        let mut puts = Vec::new();
        for slot in first..first + SLOTS_PER_BATCH {
            puts.push(catalogue.store().sign_put(&slot_key(&prefix, slot), life).await.map_err(|e| e.to_string())?);
        }
        let batch =
            SlotBatch { version: VERSION, machine: self.whom.id.to_owned(), attempt: self.whom.attempt, first, puts };
        self.mailbox.write_slots(&batch).await.map_err(|e| e.to_string())?;
        let ticket =
            self.mailbox.slots_ticket(self.whom.id, self.whom.attempt, first, life).await.map_err(|e| e.to_string())?;
        control.slots.push(ticket);
        memory.slots_batch = Some(number);
        if control.slots.len() > 4 {
            control.slots.remove(0);
        }
        Ok(())
    }

    /// Commits what the report offers, if it has not been decided yet.
    pub(super) async fn commit_offer(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut Memory,
    ) -> Result<(), String> {
        let (Some(offer), Some(settings)) = (&report.offer, self.whom.checkpoint) else { return Ok(()) };
        let decided = control.committed.map_or(0, |c| c.offer).max(control.refused.as_ref().map_or(0, |r| r.offer));
        // What an earlier attempt on this machine offered was decided while it was served.
        if report.attempt.is_some_and(|of| of != self.whom.attempt) {
            return Ok(());
        }
        // A later boot that carries on the report of an earlier one carries its offer too.
        if offer.number <= decided || (self.is_second_boot(report) && !report.restarted) {
            return Ok(());
        }
        let catalogue = self.catalogue(settings).await?;
        let committed: BoxFuture<'_, _> = Box::pin(catalogue.commit(self.whom.id, self.whom.attempt, &offer.manifest));
        let begun = self.ctx.clock.monotonic();
        let outcome = committed.await;
        let took = self.ctx.clock.monotonic().saturating_sub(begun);
        crate::telemetry::metrics().checkpoint_commit(commit_word(&outcome), took);
        match outcome.map_err(|e| e.to_string())? {
            CommitOutcome::Committed { seq } => {
                let manifest = &offer.manifest;
                // What the agent was told last is what its next offers build on, until it hears of this one.
                let told = control.committed.map(|c| c.seq);
                control.committed = Some(Committed { offer: offer.number, seq, step: manifest.step });
                let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                // By what was found in the bucket, not by what the machine says.
                let own = data_prefix(self.whom.attempt, self.whom.id);
                let sent = manifest.chunks().filter(|c| c.key.starts_with(&own)).map(|c| (&c.key, c.size_bytes));
                let sent: u64 = sent.collect::<BTreeMap<_, _>>().into_values().sum();
                let traffic = memory.traffic.get_or_insert_default();
                traffic.sent_bytes = traffic.sent_bytes.saturating_add(number(sent));
                let took = report.save_took.filter(|took| took.offer == offer.number).map(|took| took.millis);
                memory.checkpoint = Some(status_of(manifest, seq, took, self.ctx.clock.now()));
                let note = format!(
                    "the checkpoint of step {} counts from now on (attempt {})",
                    manifest.step, self.whom.attempt
                );
                self.tell(Severity::Normal, Reason::CheckpointCommitted, "Commit", note).await;
                tracing::info!(
                    checkpoint.id = seq,
                    step = manifest.step,
                    attempt = self.whom.attempt,
                    "Committed a checkpoint"
                );
                let restored = report.restore.as_ref().and_then(|r| r.restored).map(|r| r.seq);
                let pinned = [Some(seq), told, restored, manifest.parent].into_iter().flatten().collect();
                tidy(&catalogue, settings, pinned, false).await;
            }
            CommitOutcome::Refused(refusal) if refusal.is_final() => {
                memory.fenced |= matches!(refusal, tradewind_checkpoints::Refusal::Fenced { .. });
                control.refused = Some(RefusedOffer { offer: offer.number, reason: refusal.to_string() });
                let note = format!("the checkpoint of step {} was refused: {refusal}", offer.manifest.step);
                self.tell(Severity::Warning, Reason::CheckpointRefused, "Commit", note).await;
            }
            CommitOutcome::Refused(refusal) => return Err(refusal.to_string()),
        }
        Ok(())
    }
}

/// Remembers how large saves get: so many slots must be there ahead.
pub(super) fn count_chunks(report: &Report, memory: &mut Memory) {
    let files = report.offer.iter().flat_map(|offer| &offer.manifest.files);
    memory.most_chunks = memory.most_chunks.max(files.map(|file| file.chunks.len() as u64).sum());
}

/// The outcome of a commit in a word for metrics.
pub fn commit_word(outcome: &Result<CommitOutcome, StoreError>) -> &'static str {
    match outcome {
        Ok(CommitOutcome::Committed { .. }) => "committed",
        Ok(CommitOutcome::Refused(refusal)) => refusal.reason(),
        Err(error) => error.reason(),
    }
}

/// A checkpoint that counts since `now`, in words of a status; its save took so many milliseconds, if the agent told.
pub fn status_of(manifest: &Manifest, seq: u64, took_millis: Option<u64>, now: Timestamp) -> CheckpointStatus {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    CheckpointStatus {
        seq: number(seq),
        step: number(manifest.step),
        attempt: i64::from(manifest.attempt),
        bytes: number(manifest.files.iter().map(|f| f.size_bytes).sum()),
        took_seconds: took_millis.map(|millis| number(millis.div_ceil(1000).min(MOST_TOLD_S))),
        at: Some(Time(now)),
    }
}

/// How many slots are low, when the largest save so far has so many chunks.
fn slots_low(most_chunks: u64) -> u64 {
    most_chunks.saturating_mul(SAVES_AHEAD).clamp(SLOTS_LOW, SLOTS_AHEAD)
}

/// Retention after a commit, and once the run has ended. What fails is done the next time.
pub async fn tidy(catalogue: &Catalogue, settings: &MachineCheckpoint, pinned: BTreeSet<u64>, ended: bool) {
    let newest = usize::try_from(settings.keep).unwrap_or(1).max(1);
    let keep = Keep { newest, pinned, ended, max_changes: if ended { 2048 } else { 64 } };
    let collected: BoxFuture<'_, _> = Box::pin(catalogue.collect(&keep));
    match collected.await {
        Ok(collected) if collected.blocked => {
            tracing::warn!(
                reason = "LogUnreadable",
                "Keeping all data, because the log holds an entry that cannot be read"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::info!(%error, "Retention will be tried again"),
    }
}
