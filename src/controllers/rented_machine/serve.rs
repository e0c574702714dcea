//! Serving the agent of one machine through the mailbox: control, start document, upload slots, commits.
//!
//! Everything here may be repeated. What fails is told in the status and tried again at the next look; it never stands in the way of
//! ending the machine.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::rented_machine::{MachineCheckpoint, Traffic};
use tradewind_api::training_job::{CheckpointStatus, ProgressStatus};
use tradewind_api::{Reason, RentedMachine};
use tradewind_checkpoints::{Catalogue, CommitOutcome, FenceRefused, Keep, Mailbox, ReportRead};
use tradewind_protocol::control::{Committed, RefusedOffer, SelfEnd};
use tradewind_protocol::manifest::{data_prefix, slot_key};
use tradewind_protocol::{AgentPhase, Control, Desired, Exit, HostFacts, Report, SlotBatch, VERSION};

use super::memory::MachineMemory;
use super::{fit, start};
use crate::context::Context;
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
/// Segments in the ring of logs.
pub const LOG_RING: u32 = 8;

/// What serving has found out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Served {
    /// The control document is in the mailbox.
    pub prepared: bool,
    /// The mailbox answered in this pass, if only that there is no report.
    pub looked: bool,
    /// What the agent says.
    pub agent: Option<AgentView>,
    /// When it last said something new.
    pub heard_at: Option<Timestamp>,
    /// The newest checkpoint that this machine brought into the catalogue.
    pub checkpoint: Option<CheckpointStatus>,
    /// What the machine has sent and fetched.
    pub traffic: Option<Traffic>,
    /// The last report was read after the end, and what it offered is committed.
    pub last_report_read: bool,
    /// The report as last read is answered: what it offers is committed or refused.
    pub answered: bool,
    /// What stands in the way.
    pub trouble: Option<String>,
}

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

/// One machine and where its things are.
pub struct Serving<'a> {
    /// Everything shared.
    pub ctx: &'a Context,
    /// The mailbox.
    pub mailbox: &'a Mailbox,
    /// The object.
    pub machine: &'a RentedMachine,
    /// Its uid.
    pub uid: &'a str,
    /// Attempt as the protocol counts it.
    pub attempt: u32,
}

/// Serves one machine. `ending`: only read the last report and commit what it offers.
pub async fn serve(ctx: &Context, machine: &RentedMachine, memory: &mut MachineMemory, ending: bool) -> Served {
    let (Some(mailbox), Some(uid)) = (&ctx.mailbox, machine.metadata.uid.as_deref()) else { return Served::default() };
    let attempt = u32::try_from(machine.spec.attempt).unwrap_or(0);
    let serving = Serving { ctx, mailbox, machine, uid, attempt };
    memory.trouble = None;
    memory.looked = false;
    memory.answered = false;
    memory.serves(attempt);
    memory.traffic = memory.traffic.or_else(|| machine.status.as_ref()?.traffic);
    if let Err(trouble) = serving.pass(memory, ending).await {
        tracing::info!(reason = "ServeTrouble", error = trouble, "Serving the agent met an obstacle");
        memory.trouble = Some(trouble);
    }
    Served {
        prepared: memory.control.is_some(),
        looked: memory.looked,
        agent: memory
            .report
            .as_ref()
            .map(|r| view(r, attempt, memory.fenced, memory.heard_at.unwrap_or_else(|| ctx.clock.now()))),
        heard_at: memory.heard_at,
        checkpoint: memory.checkpoint.clone(),
        traffic: memory.traffic,
        last_report_read: memory.last_report_read,
        answered: memory.answered,
        trouble: memory.trouble.clone(),
    }
}

fn view(report: &Report, attempt: u32, fenced: bool, heard_at: Timestamp) -> AgentView {
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

impl Serving<'_> {
    async fn pass(&self, memory: &mut MachineMemory, ending: bool) -> Result<(), String> {
        if memory.control.is_none() && !memory.control_looked_up {
            memory.control = self.mailbox.read_control(self.uid).await.map_err(|e| e.to_string())?;
            memory.control_looked_up = true;
        }
        let rented = self.machine.status.as_ref().is_some_and(|s| s.machine_id.is_some());
        if !rented {
            return Ok(());
        }
        self.read_report(memory, ending).await?;
        let Some(mut control) = memory.control.clone() else { return self.prepare(memory).await };
        let before = control.clone();
        if control.attempt < self.attempt {
            next_attempt(&mut control, self.attempt);
        }
        let mut answered = Ok(());
        if let Some(report) = memory.report.clone() {
            self.tell_restore(&report).await;
            self.tell_warnings(&report).await;
            answered = self.answer(&report, &mut control, memory, ending).await;
            memory.answered = answered.is_ok();
        }
        if ending {
            answered?;
            memory.last_report_read = true;
            return Ok(());
        }
        // What was decided is told whatever came after it: an agent that never hears of a commit builds on what retention takes away.
        self.renew_lease(&mut control, memory);
        let renewed = self.renew_tickets(&mut control).await;
        self.write(before, control, memory).await?;
        answered.and(renewed)
    }

    /// How the machine can end its own rental, where its market allows that.
    fn self_end(&self) -> Option<SelfEnd> {
        let id = self.machine.status.as_ref()?.machine_id.as_deref()?;
        let how = self.ctx.accounts.get(&self.machine.spec.provider)?.provider.self_end(id)?;
        Some(SelfEnd { method: how.method, url: how.url, bearer_env: how.bearer_env })
    }

    /// Answers a report: commits its offer and, while the machine is to live, hands out what it needs next.
    async fn answer(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut MachineMemory,
        ending: bool,
    ) -> Result<(), String> {
        self.commit_offer(report, control, memory).await?;
        control.self_end = self.self_end().or_else(|| control.self_end.take());
        if ending || self.is_second_boot(report) || report.restarted || memory.fenced {
            return Ok(());
        }
        if let Some(stop) = &self.machine.spec.stop {
            let grace_s = u64::try_from(self.machine.spec.workload.stop_grace_s).unwrap_or(0);
            control.desired = Desired::Stop { reason: stop.reason.clone(), grace_s };
        } else {
            self.start(report, control, memory).await?;
        }
        self.top_up_slots(report, control, memory).await
    }

    /// Writes the first control document: the machine is told to wait.
    pub async fn prepare(&self, memory: &mut MachineMemory) -> Result<(), String> {
        let life = self.ctx.settings.ticket_lifetime;
        let text = |e: tradewind_checkpoints::StoreError| e.to_string();
        let control = Control {
            version: VERSION,
            machine: self.uid.to_owned(),
            sequence: 1,
            lease_s: super::lease::line(self.ctx, self.machine),
            self_end: None,
            desired: Desired::Wait,
            attempt: self.attempt,
            control_get: self.mailbox.control_ticket(self.uid, life).await.map_err(text)?,
            report_put: self.mailbox.report_put_ticket(self.uid, life).await.map_err(text)?,
            report_get: self.mailbox.report_get_ticket(self.uid, life).await.map_err(text)?,
            start: None,
            start_boot: None,
            slots: Vec::new(),
            logs: self.mailbox.log_tickets(self.uid, LOG_RING, life).await.map_err(text)?,
            committed: None,
            refused: None,
        };
        self.mailbox.write_control(&control).await.map_err(|e| e.to_string())?;
        memory.control = Some(control);
        Ok(())
    }

    async fn write(&self, before: Control, mut control: Control, memory: &mut MachineMemory) -> Result<(), String> {
        if control == before && !memory.control_unwritten {
            return Ok(());
        }
        control.sequence = before.sequence + 1;
        // Whatever becomes of the write, what it says is decided.
        memory.control = Some(control.clone());
        memory.control_unwritten = true;
        self.mailbox.write_control(&control).await.map_err(|e| e.to_string())?;
        memory.control_unwritten = false;
        Ok(())
    }

    async fn read_report(&self, memory: &mut MachineMemory, ending: bool) -> Result<(), String> {
        let now = self.ctx.clock.now();
        memory.heard_at.get_or_insert(now);
        let etag = if ending { None } else { memory.report_etag.clone() };
        let read = self.mailbox.read_report(self.uid, etag.as_deref()).await.map_err(|error| {
            // Our own blindness is never the agent's silence.
            memory.heard_at = Some(now);
            error.to_string()
        })?;
        memory.looked = true;
        match read {
            ReportRead::Absent | ReportRead::Unchanged => {}
            ReportRead::Changed { report, etag } => {
                memory.report_etag = etag;
                memory.heard_at = Some(now);
                memory.report = Some(*report);
            }
            ReportRead::Malformed { invalid, etag } => {
                // Nothing is believed, spent or deleted because of it; said once.
                memory.report_etag = etag;
                if !memory.told_malformed {
                    memory.told_malformed = true;
                    tracing::warn!(reason = "ReportMalformed", error = %invalid, machine.uid = self.uid, "Ignoring a malformed report");
                }
            }
        }
        Ok(())
    }

    fn is_second_boot(&self, report: &Report) -> bool {
        self.machine.status.as_ref().and_then(|s| s.boot.as_ref()).is_some_and(|boot| *boot != report.boot)
    }

    /// The catalogue of the job's checkpoint location.
    pub async fn catalogue(&self, settings: &MachineCheckpoint) -> Result<std::sync::Arc<Catalogue>, String> {
        let namespace = &self.machine.spec.job.namespace;
        self.ctx.catalogue(namespace, &settings.to, &settings.secret_ref.name).await.map_err(|u| u.message)
    }

    /// Makes the start document for this boot, once.
    async fn start(&self, report: &Report, control: &mut Control, memory: &mut MachineMemory) -> Result<(), String> {
        if control.start_boot.as_deref() == Some(report.boot.as_str()) {
            return Ok(());
        }
        if report.host.is_some_and(|host| fit::lacks(&self.machine.spec.workload, &host).is_some()) {
            // Neither fence nor secrets for a machine that will be given back.
            return Ok(());
        }
        let made: BoxFuture<'_, _> = Box::pin(start::make(self, report));
        let fetches = match made.await? {
            Ok(fetches) => fetches,
            Err(FenceRefused::HigherAttempt { newest }) => {
                tracing::info!(attempt = self.attempt, newest, "Not starting an attempt that is fenced off");
                memory.fenced = true;
                return Ok(());
            }
            Err(refused) => return Err(refused.to_string()),
        };
        let life = self.ctx.settings.ticket_lifetime;
        let ticket = self.mailbox.start_ticket(self.uid, &report.boot, self.attempt, life).await;
        control.start = Some(ticket.map_err(|e| e.to_string())?);
        control.start_boot = Some(report.boot.clone());
        control.desired = Desired::Run;
        let traffic = memory.traffic.get_or_insert_default();
        traffic.received_bytes = traffic.received_bytes.saturating_add(i64::try_from(fetches).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Keeps enough numbered places to upload to. The batch that follows from the report is always the same one, so that a repeated pass
    /// hands out nothing twice.
    async fn top_up_slots(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut MachineMemory,
    ) -> Result<(), String> {
        let Some(settings) = &self.machine.spec.checkpoint else { return Ok(()) };
        // The numbers that an agent tells are of the attempt that its report is about.
        let earlier = report.attempt.is_some_and(|of| of != self.attempt);
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
        let prefix = data_prefix(self.attempt, self.uid);
        let mut puts = Vec::new();
        for slot in first..first + SLOTS_PER_BATCH {
            puts.push(catalogue.store().sign_put(&slot_key(&prefix, slot), life).await.map_err(|e| e.to_string())?);
        }
        let batch = SlotBatch { version: VERSION, machine: self.uid.to_owned(), attempt: self.attempt, first, puts };
        self.mailbox.write_slots(&batch).await.map_err(|e| e.to_string())?;
        let ticket = self.mailbox.slots_ticket(self.uid, self.attempt, first, life).await.map_err(|e| e.to_string())?;
        control.slots.push(ticket);
        memory.slots_batch = Some(number);
        if control.slots.len() > 4 {
            control.slots.remove(0);
        }
        Ok(())
    }

    /// Commits what the report offers, if it has not been decided yet.
    async fn commit_offer(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut MachineMemory,
    ) -> Result<(), String> {
        let (Some(offer), Some(settings)) = (&report.offer, &self.machine.spec.checkpoint) else { return Ok(()) };
        let chunks = offer.manifest.files.iter().map(|file| file.chunks.len() as u64).sum();
        memory.most_chunks = memory.most_chunks.max(chunks);
        let decided = control.committed.map_or(0, |c| c.offer).max(control.refused.as_ref().map_or(0, |r| r.offer));
        // What an earlier attempt on this machine offered was decided while it was served.
        if report.attempt.is_some_and(|of| of != self.attempt) {
            return Ok(());
        }
        // A later boot that carries on the report of an earlier one carries its offer too.
        if offer.number <= decided || (self.is_second_boot(report) && !report.restarted) {
            return Ok(());
        }
        let catalogue = self.catalogue(settings).await?;
        let committed: BoxFuture<'_, _> = Box::pin(catalogue.commit(self.uid, self.attempt, &offer.manifest));
        let begun = self.ctx.clock.monotonic();
        let outcome = committed.await;
        let word = match &outcome {
            Ok(CommitOutcome::Committed { .. }) => "committed",
            Ok(CommitOutcome::Refused(refusal)) => refusal.reason(),
            Err(error) => error.reason(),
        };
        crate::telemetry::metrics().checkpoint_commit(word, self.ctx.clock.monotonic().saturating_sub(begun));
        match outcome.map_err(|e| e.to_string())? {
            CommitOutcome::Committed { seq } => {
                let manifest = &offer.manifest;
                // What the agent was told last is what its next offers build on, until it hears of this one.
                let told = control.committed.map(|c| c.seq);
                control.committed = Some(Committed { offer: offer.number, seq, step: manifest.step });
                let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                let took = report.save_took.filter(|took| took.offer == offer.number);
                // By what was found in the bucket, not by what the machine says.
                let own = data_prefix(self.attempt, self.uid);
                let sent = manifest.chunks().filter(|c| c.key.starts_with(&own)).map(|c| (&c.key, c.size_bytes));
                let sent: u64 = sent.collect::<BTreeMap<_, _>>().into_values().sum();
                let traffic = memory.traffic.get_or_insert_default();
                traffic.sent_bytes = traffic.sent_bytes.saturating_add(number(sent));
                memory.checkpoint = Some(CheckpointStatus {
                    seq: number(seq),
                    step: number(manifest.step),
                    attempt: self.machine.spec.attempt,
                    bytes: number(manifest.files.iter().map(|f| f.size_bytes).sum()),
                    took_seconds: took.map(|took| number(took.millis.div_ceil(1000).min(MOST_TOLD_S))),
                    at: Some(Time(self.ctx.clock.now())),
                });
                let note =
                    format!("the checkpoint of step {} counts from now on (attempt {})", manifest.step, self.attempt);
                self.tell(Severity::Normal, Reason::CheckpointCommitted, "Commit", note).await;
                tracing::info!(
                    checkpoint.id = seq,
                    step = manifest.step,
                    attempt = self.attempt,
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

    /// Events for what became of the restore. Each is written once, whoever looks how often.
    async fn tell_restore(&self, report: &Report) {
        let Some(restore) = &report.restore else { return };
        for bad in &restore.rejected {
            let note = format!(
                "checkpoint {} (step {}) cannot be used: {}; the one before is tried",
                bad.seq, bad.step, bad.reason
            );
            self.tell(Severity::Warning, Reason::CheckpointCorrupt, "Restore", note).await;
        }
        match restore.restored {
            Some(restored) => {
                let note = format!(
                    "attempt {} goes on from checkpoint {} (step {})",
                    self.attempt, restored.seq, restored.step
                );
                self.tell(Severity::Normal, Reason::Resumed, "Restore", note).await;
            }
            None if !restore.rejected.is_empty() => {
                let note = format!("no checkpoint can be used; attempt {} starts from zero", self.attempt);
                self.tell(Severity::Warning, Reason::NoUsableCheckpoint, "Restore", note).await;
            }
            None => {}
        }
    }

    /// Each warning of the agent is told once.
    async fn tell_warnings(&self, report: &Report) {
        for warning in &report.warnings {
            self.tell(Severity::Warning, Reason::AgentWarning, "Run", warning.clone()).await;
        }
    }

    async fn tell(&self, severity: Severity, reason: Reason, action: &str, note: String) {
        self.ctx.tell(&super::job_reference(self.machine), severity, reason, action, note).await;
    }

    /// New tickets at half-life.
    async fn renew_tickets(&self, control: &mut Control) -> Result<(), String> {
        let life = self.ctx.settings.ticket_lifetime;
        let text = |e: tradewind_checkpoints::StoreError| e.to_string();
        let fresh = self.mailbox.control_ticket(self.uid, life).await.map_err(text)?;
        // Half of the life that the store really gives, which may be far less than was asked for.
        let now = self.ctx.clock.now();
        if control.control_get.expires.duration_since(now) * 2 > fresh.expires.duration_since(now) {
            return Ok(());
        }
        control.control_get = fresh;
        control.report_put = self.mailbox.report_put_ticket(self.uid, life).await.map_err(text)?;
        control.report_get = self.mailbox.report_get_ticket(self.uid, life).await.map_err(text)?;
        control.logs = self.mailbox.log_tickets(self.uid, LOG_RING, life).await.map_err(text)?;
        Ok(())
    }
}

/// How many slots are low, when the largest save so far has so many chunks.
fn slots_low(most_chunks: u64) -> u64 {
    most_chunks.saturating_mul(SAVES_AHEAD).clamp(SLOTS_LOW, SLOTS_AHEAD)
}

/// The machine is taken over by the next attempt: nothing of the one before goes on but the numbers of its offers.
fn next_attempt(control: &mut Control, attempt: u32) {
    control.attempt = attempt;
    control.desired = Desired::Wait;
    control.start = None;
    control.start_boot = None;
    control.slots.clear();
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
