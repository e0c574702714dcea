//! Serving an agent through the mailbox: control, start document, upload slots, commits, Events about what it says.
//!
//! It does not matter here where the agent runs: [`Whom`] says everything that decides what it is told. `rented_machine` serves the agents
//! of machines, `worker` those in Pods of the cluster.
//!
//! Everything here may be repeated. What fails is told in the status and tried again at the next look; it never stands in the way of
//! ending the machine.

mod lease;
mod memory;
mod offers;
mod start;
mod tell;
mod tickets;
mod view;

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tradewind_api::rented_machine::{EnvEntry, JobRef, MachineCheckpoint, StopRequest, Traffic};
use tradewind_api::training_job::CheckpointStatus;
use tradewind_checkpoints::{Catalogue, FenceRefused, Mailbox, ReportRead};
use tradewind_protocol::control::{Committed, RefusedOffer, SelfEnd};
use tradewind_protocol::{Control, Desired, Report, RestoreCandidate, VERSION};

use crate::context::Context;

pub use memory::Memory;
pub use offers::{commit_word, status_of, tidy};
pub use start::{Restorable, begin_attempt};
pub use view::AgentView;

/// Whom we serve: one agent, and everything that decides what it is told. Made anew for each pass.
#[derive(Debug, Clone)]
pub struct Whom<'a> {
    /// Its name in the mailbox, in every document and in the keys of its data: the uid of a RentedMachine, the id of a worker.
    pub id: &'a str,
    /// The job that it works for, to which Events are told.
    pub job: &'a JobRef,
    /// How its warnings are told apart from those of other workers of the job, such as `worker 3: `; empty for a single one.
    pub called: String,
    /// Id of the run.
    pub run_id: &'a str,
    /// Attempt as the protocol counts it.
    pub attempt: u32,
    /// What it runs.
    pub program: Program<'a>,
    /// How the program saves; `None` = it does not.
    pub checkpoint: Option<&'a MachineCheckpoint>,
    /// What becomes of what it saves.
    pub saving: Saving,
    /// The program is to save its state and stop.
    pub stop: Option<&'a StopRequest>,
    /// The boot that is served; another one is a second boot. `None` = any.
    pub boot: Option<&'a str>,
    /// Seconds after which an agent that hears nothing of us ends by itself; `None` = never, since it costs nothing that a Pod does not.
    pub lease_s: Option<u64>,
    /// How it ends its own rental.
    pub self_end: Option<SelfEnd>,
    /// Segments in its ring of logs; 0 = it keeps none.
    pub log_ring: u32,
}

/// What an agent runs.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Command and arguments.
    pub command: &'a [String],
    /// Environment, in order.
    pub env: &'a [EnvEntry],
    /// Working directory; `None` = where the agent was started.
    pub working_dir: Option<&'a str>,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace_s: i64,
}

/// What becomes of an agent's saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// It restores what others have saved and uploads nothing.
    Never,
    /// What it offers is committed as it is.
    Alone,
    /// What it offers is a part; somebody else commits it with the others' parts, and says so in [`Turn::verdict`].
    Together,
}

/// Whether the program may begin.
#[derive(Debug, Clone, Copy)]
pub enum Begin<'t> {
    /// Not yet, or not here.
    Wait,
    /// Now.
    Now {
        /// Environment that overlays the program's own.
        env: &'t BTreeMap<String, String>,
        /// What may be restored, if the attempt's fence is up already; `None` = the fence is put up now.
        restore: Option<&'t [RestoreCandidate]>,
    },
}

/// What one pass is to bring about, besides answering the report.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'t> {
    /// Only read the last report and commit what it offers.
    pub ending: bool,
    /// Whether the program may begin.
    pub begin: Begin<'t>,
    /// What became of a common checkpoint that this one has a part in.
    pub verdict: Option<&'t Verdict>,
}

/// What became of an offer that others decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Committed(Committed),
    /// It never will.
    Refused(RefusedOffer),
}

impl Verdict {
    /// The offer that it is about. It and all before it are decided.
    pub fn offer(&self) -> u64 {
        match self {
            Self::Committed(committed) => committed.offer,
            Self::Refused(refused) => refused.offer,
        }
    }
}

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

/// One agent and where its things are.
pub struct Serving<'a> {
    /// Everything shared.
    pub ctx: &'a Context,
    /// The mailbox.
    pub mailbox: &'a Mailbox,
    /// Whom.
    pub whom: Whom<'a>,
}

/// The job that is worked for, as the object of an Event.
pub fn job_reference(job: &JobRef) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{}/{}", tradewind_api::GROUP, tradewind_api::VERSION)),
        kind: Some("TrainingJob".to_owned()),
        namespace: Some(job.namespace.clone()),
        name: Some(job.name.clone()),
        uid: Some(job.uid.clone()),
        ..ObjectReference::default()
    }
}

impl Serving<'_> {
    /// What a pass has come to, in words for whoever decides.
    pub fn close(&self, memory: &mut Memory, passed: Result<(), String>) -> Served {
        if let Err(trouble) = passed {
            tracing::info!(reason = "ServeTrouble", error = trouble, "Serving the agent met an obstacle");
            memory.trouble = Some(trouble);
        }
        memory.served(self.whom.attempt, self.ctx.clock.now())
    }

    /// Finds the control document again after a restart of the operator.
    pub async fn recall(&self, memory: &mut Memory) -> Result<(), String> {
        if memory.control.is_none() && !memory.control_looked_up {
            let found = self.mailbox.read_control(self.whom.id).await.map_err(|e| e.to_string())?;
            memory.control = found.map(tickets::take_urls);
            memory.control_looked_up = true;
        }
        Ok(())
    }

    /// Reads the report, if it is another than at the last look; in any case if it is the last one.
    pub async fn hear(&self, memory: &mut Memory, ending: bool) -> Result<(), String> {
        let now = self.ctx.clock.now();
        memory.heard_at.get_or_insert(now);
        let etag = if ending { None } else { memory.report_etag.clone() };
        let read = self.mailbox.read_report(self.whom.id, etag.as_deref()).await.map_err(|error| {
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
                    tracing::warn!(reason = "ReportMalformed", error = %invalid, machine.uid = self.whom.id, "Ignoring a malformed report");
                }
            }
        }
        Ok(())
    }

    /// Answers what was heard.
    pub async fn respond(&self, memory: &mut Memory, turn: Turn<'_>) -> Result<(), String> {
        let Some(mut control) = memory.control.clone() else { return self.prepare(memory).await };
        let before = control.clone();
        if control.attempt < self.whom.attempt {
            next_attempt(&mut control, self.whom.attempt);
        }
        let mut answered = Ok(());
        if let Some(report) = memory.report.clone() {
            self.tell_restore(&report).await;
            self.tell_warnings(&report).await;
            self.tell_odd_progress(&report, memory).await;
            answered = self.answer(&report, &mut control, memory, turn).await;
            memory.answered = answered.is_ok();
        }
        if turn.ending {
            answered?;
            memory.last_report_read = true;
            return Ok(());
        }
        // What was decided is told whatever came after it: an agent that never hears of a commit builds on what retention takes away.
        self.renew_lease(&mut control, memory);
        let old = self.are_tickets_old(&control).await;
        memory.control_unwritten |= old == Ok(true);
        self.write(before, control, memory).await?;
        answered.and(old.map(drop))
    }

    /// Answers a report: commits its offer and, while the machine is to live, hands out what it needs next.
    async fn answer(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut Memory,
        turn: Turn<'_>,
    ) -> Result<(), String> {
        offers::count_chunks(report, memory);
        match self.whom.saving {
            Saving::Never => {}
            Saving::Alone => self.commit_offer(report, control, memory).await?,
            Saving::Together => take_verdict(turn.verdict, control),
        }
        control.self_end = self.whom.self_end.clone().or_else(|| control.self_end.take());
        if turn.ending || self.is_second_boot(report) || report.restarted || memory.fenced {
            return Ok(());
        }
        if let Some(stop) = self.whom.stop {
            let grace_s = u64::try_from(self.whom.program.stop_grace_s).unwrap_or(0);
            control.desired = Desired::Stop { reason: stop.reason.clone(), grace_s };
        } else {
            self.start(report, control, memory, turn.begin).await?;
        }
        self.top_up_slots(report, control, memory).await
    }

    /// Writes the first control document: the machine is told to wait.
    pub async fn prepare(&self, memory: &mut Memory) -> Result<(), String> {
        let control = Control {
            version: VERSION,
            machine: self.whom.id.to_owned(),
            sequence: 1,
            lease_s: self.whom.lease_s.unwrap_or(lease::NEVER_S),
            self_end: None,
            desired: Desired::Wait,
            attempt: self.whom.attempt,
            control_get: tickets::unsigned(),
            report_put: tickets::unsigned(),
            report_get: tickets::unsigned(),
            start: None,
            start_boot: None,
            slots: Vec::new(),
            logs: Vec::new(),
            committed: None,
            refused: None,
        };
        let control = self.sign(control).await?;
        self.mailbox.write_control(&control).await.map_err(|e| e.to_string())?;
        memory.control = Some(tickets::take_urls(control));
        Ok(())
    }

    async fn write(&self, before: Control, mut control: Control, memory: &mut Memory) -> Result<(), String> {
        if control == before && !memory.control_unwritten {
            return Ok(());
        }
        control.sequence = before.sequence + 1;
        // Whatever becomes of the write, what it says is decided.
        memory.control = Some(tickets::take_urls(control.clone()));
        memory.control_unwritten = true;
        let control = self.sign(control).await?;
        self.mailbox.write_control(&control).await.map_err(|e| e.to_string())?;
        memory.control = Some(tickets::take_urls(control));
        memory.control_unwritten = false;
        Ok(())
    }

    fn is_second_boot(&self, report: &Report) -> bool {
        self.whom.boot.is_some_and(|boot| *boot != report.boot)
    }

    /// The catalogue of the job's checkpoint location.
    pub async fn catalogue(&self, settings: &MachineCheckpoint) -> Result<std::sync::Arc<Catalogue>, String> {
        let namespace = &self.whom.job.namespace;
        self.ctx.catalogue(namespace, &settings.to, &settings.secret_ref.name).await.map_err(|u| u.message)
    }

    /// Makes the start document for this boot, once.
    async fn start(
        &self,
        report: &Report,
        control: &mut Control,
        memory: &mut Memory,
        begin: Begin<'_>,
    ) -> Result<(), String> {
        if control.start_boot.as_deref() == Some(report.boot.as_str()) {
            return Ok(());
        }
        let Begin::Now { env, restore } = begin else { return Ok(()) };
        let made: BoxFuture<'_, _> = Box::pin(start::make(self, report, env, restore));
        let fetches = match made.await? {
            Ok(fetches) => fetches,
            Err(FenceRefused::HigherAttempt { newest }) => {
                tracing::info!(attempt = self.whom.attempt, newest, "Not starting an attempt that is fenced off");
                memory.fenced = true;
                return Ok(());
            }
            Err(refused) => return Err(refused.to_string()),
        };
        control.start = Some(tickets::unsigned());
        control.start_boot = Some(report.boot.clone());
        control.desired = Desired::Run;
        let traffic = memory.traffic.get_or_insert_default();
        traffic.received_bytes = traffic.received_bytes.saturating_add(i64::try_from(fetches).unwrap_or(i64::MAX));
        Ok(())
    }
}

/// The machine is taken over by the next attempt: nothing of the one before goes on but the numbers of its offers.
fn next_attempt(control: &mut Control, attempt: u32) {
    control.attempt = attempt;
    control.desired = Desired::Wait;
    control.start = None;
    control.start_boot = None;
    control.slots.clear();
}

fn take_verdict(verdict: Option<&Verdict>, control: &mut Control) {
    match verdict {
        Some(Verdict::Committed(committed)) => control.committed = Some(*committed),
        Some(Verdict::Refused(refused)) => control.refused = Some(refused.clone()),
        None => {}
    }
}
