//! One look at a job's workers: read what is due, let them meet, decide on what they save together, answer, publish.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tradewind_api::rented_machine::{JobRef, MachineCheckpoint};
use tradewind_api::training_job::Writers;
use tradewind_api::{Reason, TrainingJob};
use tradewind_checkpoints::{CommitOutcome, FenceRefused, Mailbox};
use tradewind_cluster::Key;
use tradewind_protocol::RestoreCandidate;

use super::gang;
use super::memory::{JobMemory, WorkerMemory};
use super::rendezvous::{Gang, Meeting, Rank, meet};
use super::whom::PodState;
use super::{WorkerView, news};
use crate::context::Context;
use crate::controllers::training_job::{self, template};
use crate::events::Severity;
use crate::runtime::Wake;
use crate::serving::{self, Begin, Program, Restorable, Saving, Serving, Turn, Verdict, Whom, commit_word, status_of};

/// Reads and writes of one job that are under way at once.
const AT_ONCE: usize = 16;
/// Workers other than the first are looked at so many times more rarely while they run: their Pods say whether they live.
const OTHERS: u32 = 4;
/// A Pod that should be gone by now is believed to say nothing more after so long: its node may be dead, and its clock and ours differ.
const LATE: SignedDuration = SignedDuration::from_secs(10);
/// An agent in a Pod that is going reports every few seconds; after so long without a word it is dead with its node.
const MUTE: SignedDuration = SignedDuration::from_secs(60);
/// Tickets are looked at at an eighth of their life, since they are renewed at half of it, but often enough for stores that give less than
/// was asked for.
const TICKETS_OFTEN: Duration = Duration::from_mins(10);

/// What all workers of an attempt have in common.
pub struct Common<'a> {
    ctx: &'a Context,
    mailbox: &'a Mailbox,
    key: &'a Key,
    job: JobRef,
    run_id: String,
    attempt: i64,
    /// Number of workers.
    count: usize,
    writers: Writers,
    checkpoint: Option<MachineCheckpoint>,
    command: Vec<String>,
    grace_s: i64,
    gang: Gang,
}

impl<'a> Common<'a> {
    /// What can be known of a job; `None` while nothing of it can be served.
    pub fn new(ctx: &'a Context, key: &'a Key, job: &TrainingJob) -> Option<Self> {
        let status = job.status.as_ref()?;
        let spec = &job.spec;
        let gpus = spec.gpu.as_ref().map_or(0, |gpu| u32::try_from(gpu.count).unwrap_or(0));
        Some(Self {
            ctx,
            mailbox: ctx.mailbox.as_ref()?,
            key,
            job: JobRef {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                uid: job.metadata.uid.clone().unwrap_or_default(),
            },
            run_id: status.run_id.clone()?,
            attempt: status.attempt?,
            count: usize::try_from(spec.workers).unwrap_or(1).max(1),
            writers: spec.checkpoint.as_ref().map(|c| c.writers).unwrap_or_default(),
            checkpoint: spec.checkpoint.as_ref().map(MachineCheckpoint::from),
            // The Pod has the command; a start document must name one.
            command: vec!["as-in-the-pod".to_owned()],
            grace_s: template::grace(job).1,
            gang: Gang { addresses: Vec::new(), port: Gang::port(&spec.template), gpus },
        })
    }

    /// The attempt that is served.
    pub fn attempt(&self) -> i64 {
        self.attempt
    }

    fn attempt_u32(&self) -> u32 {
        u32::try_from(self.attempt).unwrap_or(0)
    }

    fn together(&self) -> bool {
        self.count > 1 && self.writers == Writers::AllRanks
    }

    fn serving<'s>(&'s self, rank: i64, id: &'s str, boot: Option<&'s str>) -> Serving<'s> {
        let saving = match (rank, self.together()) {
            (_, true) => Saving::Together,
            (0, false) => Saving::Alone,
            (_, false) => Saving::Never,
        };
        let whom = Whom {
            id,
            job: &self.job,
            called: if self.count > 1 { format!("worker {rank}: ") } else { String::new() },
            run_id: &self.run_id,
            attempt: self.attempt_u32(),
            program: Program { command: &self.command, env: &[], working_dir: None, stop_grace_s: self.grace_s },
            checkpoint: self.checkpoint.as_ref(),
            saving,
            stop: None,
            boot,
            lease_s: None,
            self_end: None,
            log_ring: 0,
        };
        Serving { ctx: self.ctx, mailbox: self.mailbox, whom }
    }

    fn now(&self) -> Duration {
        self.ctx.clock.monotonic()
    }

    /// One look. Says when the next one is due.
    pub async fn pass(&self, memory: &mut JobMemory) -> Wake {
        let mut workers = self.take_present(memory);
        let due: Vec<i64> =
            workers.iter().filter(|(_, w)| w.due.is_some_and(|due| due <= self.now())).map(|(r, _)| *r).collect();
        if !due.is_empty() {
            let heard: Vec<i64> = self.each(&mut workers, &due, |rank, worker| Box::pin(self.look(rank, worker))).await;
            let turns = self.decide(&mut workers, memory).await;
            let wanting: Vec<i64> =
                workers.iter().filter(|(rank, w)| self.wants(w, turns.of(**rank))).map(|(r, _)| *r).collect();
            let turns = &turns;
            self.each(&mut workers, &wanting, |rank, worker| Box::pin(self.respond(rank, worker, turns.of(rank))))
                .await;
            self.publish(&mut workers, &heard, &wanting, memory);
        }
        let next = workers.values().filter_map(|worker| worker.due).min();
        memory.workers.extend(workers.into_iter().map(|(rank, worker)| ((self.attempt, rank), Box::new(worker))));
        let now = self.now();
        next.map_or(Wake::OnChange, |due| Wake::After(due.saturating_sub(now), "the agents' reports"))
    }

    /// The workers of this attempt, by rank.
    fn take_present(&self, memory: &mut JobMemory) -> BTreeMap<i64, WorkerMemory> {
        let present = |(attempt, _): &(i64, i64)| *attempt == self.attempt;
        let keys: Vec<(i64, i64)> = memory.workers.keys().copied().filter(present).collect();
        let taken = keys.into_iter().filter_map(|key| Some((key.1, *memory.workers.remove(&key)?)));
        taken
            .map(|(rank, mut worker)| {
                if worker.agent.last_report_read {
                    worker.due = None;
                }
                (rank, worker)
            })
            .collect()
    }

    /// Does something with some workers, a few at a time. Gives back whom it was true of.
    async fn each<'s, F>(&'s self, workers: &mut BTreeMap<i64, WorkerMemory>, whom: &[i64], act: F) -> Vec<i64>
    where
        F: Fn(i64, WorkerMemory) -> BoxFuture<'s, (WorkerMemory, bool)>,
    {
        let taken: Vec<(i64, WorkerMemory)> = whom.iter().filter_map(|rank| workers.remove_entry(rank)).collect();
        let acts: Vec<BoxFuture<'_, (i64, WorkerMemory, bool)>> = taken
            .into_iter()
            .map(|(rank, worker)| {
                let done = act(rank, worker);
                Box::pin(async move {
                    let (worker, is) = done.await;
                    (rank, worker, is)
                }) as BoxFuture<'_, _>
            })
            .collect();
        let mut done = std::pin::pin!(stream::iter(acts).buffer_unordered(AT_ONCE));
        let mut those = Vec::new();
        while let Some((rank, worker, is)) = done.next().await {
            workers.insert(rank, worker);
            those.extend(is.then_some(rank));
        }
        those
    }

    /// Reads what one worker says.
    async fn look(&self, rank: i64, mut worker: WorkerMemory) -> (WorkerMemory, bool) {
        let id = worker.id.clone();
        let serving = self.serving(rank, &id, None);
        worker.agent.open(self.attempt_u32());
        let before = worker.agent.report_etag.clone();
        let ending = worker.pod == PodState::Over;
        let heard = async {
            serving.recall(&mut worker.agent).await?;
            if worker.pod == PodState::Bound {
                return Ok(());
            }
            if matches!(worker.pod, PodState::Over | PodState::Going(_)) && worker.agent.control.is_none() {
                // Nobody ever served it: there is nothing that it could have said.
                (worker.agent.looked, worker.agent.last_report_read) = (true, true);
                return Ok(());
            }
            serving.hear(&mut worker.agent, ending).await
        }
        .await;
        let same = worker.agent.report_etag == before;
        if matches!(worker.pod, PodState::Going(_)) && worker.silent_for.is_some() {
            worker.given_up = Some(self.now());
        }
        if heard.is_err() || !same || worker.pod != PodState::Running {
            worker.heard = Some(self.now());
        }
        // An agent reports every few seconds, whatever its program does: one that does not is frozen, as its Pod is. Only a look can tell: there
        // may be a minute between two of them. One that has said all may have a sidecar that keeps its Pod.
        let quiet = self.now().saturating_sub(*worker.heard.get_or_insert(self.now()));
        let limit = self.ctx.settings.agent_silent_after;
        worker.silent_for = (worker.agent.report.is_some() && !worker.said_all() && quiet > limit).then_some(limit);
        if let Err(trouble) = heard {
            worker.agent.trouble = Some(trouble);
        }
        worker.looked |= worker.agent.looked;
        worker.settled &= same;
        worker.due = self.next_look(rank, &worker);
        (worker, true)
    }

    /// When a worker is looked at next: often while somebody waits for what it says or for our answer; while its program only goes on, twice
    /// for each time that progress is written into the status. Its end is seen by its Pod.
    fn next_look(&self, rank: i64, worker: &WorkerMemory) -> Option<Duration> {
        let settings = &self.ctx.settings;
        let often = settings.report_poll;
        let now = self.now();
        match worker.pod {
            _ if worker.agent.last_report_read => None,
            _ if worker.agent.trouble.is_some() => Some(now + often),
            PodState::Bound if worker.agent.control.is_some() => None,
            PodState::Running if worker.only_goes_on() => {
                let steady = often.max(settings.status_interval / 2);
                Some(now + if rank > 0 && !self.together() { steady * OTHERS } else { steady })
            }
            _ => Some(now + often),
        }
    }

    /// What this pass brings about besides answers: whether they begin, and what becomes of what they saved together.
    async fn decide(&self, workers: &mut BTreeMap<i64, WorkerMemory>, memory: &mut JobMemory) -> Turns {
        let mut turns = Turns::default();
        let ranks: Vec<Rank> =
            (0..self.count).map(|n| workers.get(&rank_of(n)).map(WorkerMemory::rank).unwrap_or_default()).collect();
        if let Meeting::Go(addresses) = meet(&ranks)
            && ranks.iter().any(|rank| !rank.started)
        {
            match self.begin(workers, memory).await {
                Ok(restore) => {
                    let gang = Gang { addresses, ..self.gang.clone() };
                    turns.begin = Some(Beginning { gang, restore });
                }
                Err(trouble) => {
                    for worker in workers.values_mut() {
                        worker.agent.trouble = Some(trouble.clone());
                    }
                }
            }
        }
        for worker in workers.values() {
            let rejected = worker.agent.report.as_ref().and_then(|report| report.restore.as_ref()).map(|r| &r.rejected);
            memory.rejected.extend(rejected.into_iter().flatten().map(|bad| bad.seq));
        }
        if self.together() && (0..self.count).all(|n| workers.contains_key(&rank_of(n))) {
            turns.verdicts = self.decide_together(workers, memory).await;
        }
        turns
    }

    /// Puts up the attempt's fence and lists what all begin with.
    async fn begin(
        &self,
        workers: &mut BTreeMap<i64, WorkerMemory>,
        memory: &JobMemory,
    ) -> Result<Vec<RestoreCandidate>, String> {
        let Some(settings) = &self.checkpoint else { return Ok(Vec::new()) };
        let catalogue = self.serving(0, "", None).catalogue(settings).await?;
        let attempt = self.attempt_u32();
        let begun: BoxFuture<'_, _> = Box::pin(serving::begin_attempt(
            self.ctx,
            &catalogue,
            settings,
            &self.run_id,
            attempt,
            Restorable::AtFence,
        ));
        match begun.await? {
            Ok(candidates) => self.for_all(candidates, &memory.rejected).await,
            Err(refused) => {
                if let FenceRefused::HigherAttempt { newest } = refused {
                    tracing::info!(attempt, newest, "Not starting an attempt that is fenced off");
                    for worker in workers.values_mut() {
                        worker.agent.fenced = true;
                    }
                }
                Err(refused.to_string())
            }
        }
    }

    /// What every worker can go on from: all begin with the same checkpoint or none does.
    async fn for_all(
        &self,
        mut candidates: Vec<RestoreCandidate>,
        rejected: &BTreeSet<u64>,
    ) -> Result<Vec<RestoreCandidate>, String> {
        let about = serving::job_reference(&self.job);
        let mut usable = Vec::new();
        let mut misfit = None;
        // What one worker could not restore, the others do not go on from either.
        candidates.retain(|candidate| self.count == 1 || !rejected.contains(&candidate.seq));
        for candidate in candidates {
            let writers = candidate.manifest.writers.len();
            if candidate.manifest.files.iter().any(|file| file.rank.is_some()) && writers != self.count {
                let step = candidate.manifest.step;
                misfit = Some(format!(
                    "the checkpoint of step {step} has parts of {writers} workers, and the job has {} now: set spec.workers back, or start over with checkpoint.onExisting Fresh",
                    self.count
                ));
                continue;
            }
            match (0..self.count).find_map(|rank| gang::for_rank(&candidate, rank).err()) {
                None => usable.push(candidate),
                Some(why) => {
                    let note = format!("checkpoint {} cannot be used: {why}; the one before is tried", candidate.seq);
                    self.ctx.tell(&about, Severity::Warning, Reason::CheckpointCorrupt, "Restore", note).await;
                }
            }
        }
        match misfit {
            Some(misfit) if usable.is_empty() => Err(misfit),
            _ => Ok(usable),
        }
    }

    /// Commits what all have saved, or finds out which offers never can be.
    async fn decide_together(
        &self,
        workers: &mut BTreeMap<i64, WorkerMemory>,
        memory: &JobMemory,
    ) -> Vec<Option<Verdict>> {
        for worker in workers.values_mut() {
            let last = self.is_last(worker);
            let agent = &worker.agent;
            worker.part.note(agent.report.as_ref(), agent.control.as_ref(), self.attempt_u32(), last);
        }
        let parts: Vec<gang::Part> =
            (0..self.count).filter_map(|n| Some(workers.get(&rank_of(n))?.part.clone())).collect();
        let id = |n| super::id(&self.ctx.settings.install, &memory.uid, self.attempt, rank_of(n));
        let ids: Vec<String> = (0..self.count).map(id).collect();
        let mut refused = None;
        for step in gang::common(&parts) {
            match self.commit_together(workers, &ids, &parts, step).await {
                Ok(Ok(seq)) => return gang::outcome(&parts, step, &Ok(seq)),
                // An older one may be whole. That this one is not is told then, since to refuse it is to refuse all before it.
                Ok(Err(why)) => {
                    refused.get_or_insert_with(|| gang::outcome(&parts, step, &Err(why)));
                }
                Err(trouble) => {
                    for worker in workers.values_mut() {
                        worker.agent.trouble = Some(trouble.clone());
                        worker.settled = false;
                    }
                    return Vec::new();
                }
            }
        }
        let verdicts = refused.unwrap_or_else(|| gang::verdicts(&parts));
        self.tell_refused(&verdicts).await;
        verdicts
    }

    /// The sequence of the common checkpoint, or why it never will count; the outer error is for now.
    async fn commit_together(
        &self,
        workers: &mut BTreeMap<i64, WorkerMemory>,
        ids: &[String],
        parts: &[gang::Part],
        step: u64,
    ) -> Result<Result<u64, String>, String> {
        let Some(settings) = &self.checkpoint else { return Err("the job has no checkpoints".to_owned()) };
        let serving = self.serving(0, "", None);
        let catalogue = serving.catalogue(settings).await?;
        let manifests: Vec<_> = parts.iter().filter_map(|part| Some(part.offers.get(&step)?.1.clone())).collect();
        let begun = self.now();
        let committed: BoxFuture<'_, _> = Box::pin(gang::commit(&catalogue, ids, self.attempt_u32(), &manifests));
        let (outcome, merged) = match committed.await {
            Ok(Ok((outcome, merged))) => (Ok(outcome), Some(merged)),
            Ok(Err(refused)) => return Ok(Err(refused)),
            Err(error) => (Err(error), None),
        };
        crate::telemetry::metrics().checkpoint_commit(commit_word(&outcome), self.now().saturating_sub(begun));
        match outcome.map_err(|error| error.to_string())? {
            CommitOutcome::Committed { seq } => {
                let took = |worker: &WorkerMemory| worker.agent.report.as_ref()?.save_took.map(|took| took.millis);
                let took = workers.values().filter_map(took).max();
                let restored =
                    |w: &WorkerMemory| Some(w.agent.report.as_ref()?.restore.as_ref()?.restored.as_ref()?.seq);
                // What the agents were told last is what their next offers build on, until they hear of this one.
                let told = parts.iter().filter_map(|part| Some(part.committed?.seq));
                // So are those that wait.
                let parents = parts.iter().flat_map(|part| part.offers.values()).filter_map(|(_, m)| m.parent);
                let pinned = workers.values().filter_map(restored).chain(told).chain(parents).chain([seq]).collect();
                if let (Some(first), Some(merged)) = (workers.get_mut(&0), &merged) {
                    first.agent.checkpoint = Some(status_of(merged, seq, took, self.ctx.clock.now()));
                }
                let note = format!(
                    "the checkpoint of step {step} of all {} workers counts from now on (attempt {})",
                    self.count, self.attempt
                );
                let about = serving::job_reference(&self.job);
                self.ctx.tell(&about, Severity::Normal, Reason::CheckpointCommitted, "Commit", note).await;
                serving::tidy(&catalogue, settings, pinned, false).await;
                Ok(Ok(seq))
            }
            CommitOutcome::Refused(refusal) if refusal.is_final() => {
                let fenced = matches!(refusal, tradewind_checkpoints::Refusal::Fenced { .. });
                for worker in workers.values_mut() {
                    worker.agent.fenced |= fenced;
                }
                Ok(Err(refusal.to_string()))
            }
            CommitOutcome::Refused(refusal) => Err(refusal.to_string()),
        }
    }

    async fn tell_refused(&self, verdicts: &[Option<Verdict>]) {
        let about = serving::job_reference(&self.job);
        for verdict in verdicts.iter().flatten() {
            if let Verdict::Refused(refused) = verdict {
                let note = format!("a checkpoint was refused: {}", refused.reason);
                self.ctx.tell(&about, Severity::Warning, Reason::CheckpointRefused, "Commit", note).await;
            }
        }
    }

    /// Its Pod is over or going, and what was read of it is the last that it will have said.
    fn is_last(&self, worker: &WorkerMemory) -> bool {
        let now = self.ctx.clock.now();
        let after = |at: Timestamp, wait: SignedDuration| at.checked_add(wait).is_ok_and(|until| now > until);
        // Of one that was silent before its Pod went, only what it says since then tells whether it lives.
        let given_up = worker.given_up.is_some_and(|since| self.now().saturating_sub(since) <= MUTE.unsigned_abs());
        let mute = !given_up && worker.agent.heard_at.is_some_and(|heard| after(heard, MUTE));
        match worker.pod {
            PodState::Over => true,
            PodState::Going(until) => worker.said_all() || after(until, LATE) || mute,
            PodState::Bound | PodState::Running => false,
        }
    }

    /// Whether something is to be told to a worker, or to be tried again.
    fn wants(&self, worker: &WorkerMemory, turn: WorkerTurn<'_>) -> bool {
        let agent = &worker.agent;
        if agent.last_report_read || agent.trouble.is_some() {
            return false;
        }
        let begins = turn.begin.is_some() && worker.boot().is_none();
        let last = agent.looked && self.is_last(worker);
        let renews = agent.control.is_none() || agent.control_unwritten || self.now() >= worker.tickets_at;
        begins || last || renews || turn.verdict.is_some() || (agent.report.is_some() && !worker.settled)
    }

    /// Answers one worker.
    async fn respond(&self, rank: i64, mut worker: WorkerMemory, turn: WorkerTurn<'_>) -> (WorkerMemory, bool) {
        let (id, boot) = (worker.id.clone(), worker.boot().map(str::to_owned));
        let serving = self.serving(rank, &id, boot.as_deref());
        let ending = self.is_last(&worker);
        // A part of a common checkpoint that is not decided yet.
        let undecided = self.together() && worker.part.waits_beyond(turn.verdict);
        let env_restore = turn.begin.map(|begin| begin.of(rank));
        let begin = match &env_restore {
            Some((env, restore)) => Begin::Now { env, restore: Some(restore) },
            None => Begin::Wait,
        };
        if ending && undecided && self.checkpoint.is_some() && !worker.agent.fenced {
            if let Some(verdict) = turn.verdict {
                worker.part.hear(verdict);
            }
            worker.due = Some(self.now() + self.ctx.settings.report_poll);
            return (worker, true);
        }
        let verdict = turn.verdict;
        let passed = serving.respond(&mut worker.agent, Turn { ending, begin, verdict }).await;
        worker.settled = passed.is_ok();
        worker.agent.trouble = passed.err();
        let life = self.ctx.settings.ticket_lifetime;
        worker.tickets_at = self.now() + (life / 8).min(TICKETS_OFTEN);
        worker.due = self.next_look(rank, &worker);
        (worker, true)
    }

    /// Tells `training_job`: at once what it decides by, now and then what only grows.
    fn publish(&self, workers: &mut BTreeMap<i64, WorkerMemory>, heard: &[i64], told: &[i64], memory: &mut JobMemory) {
        let mut urgent = false;
        let mut grown = false;
        for (rank, worker) in workers.iter_mut().filter(|(rank, _)| heard.contains(rank) || told.contains(rank)) {
            let next = self.view(*rank, worker);
            let old = self.ctx.workers.get(&worker.id);
            grown |= self.ctx.workers.put(&worker.id, next.clone());
            urgent |= old.is_none_or(|old| news(&old) != news(&next));
        }
        let now = self.now();
        let patient = memory.told.is_some_and(|at| now.saturating_sub(at) < self.ctx.settings.status_interval);
        if urgent || (grown && !patient) {
            memory.told = Some(now);
            self.ctx.ask(training_job::NAME, self.key.clone());
        }
    }

    fn view(&self, rank: i64, worker: &WorkerMemory) -> WorkerView {
        let served = worker.agent.served(self.attempt_u32(), self.ctx.clock.now());
        let mute = self.count > 1
            && worker.agent.report.as_ref().is_some_and(|report| report.address.is_none())
            && worker.boot().is_none();
        let mute = mute.then(|| format!("the agent of worker {rank} tells no address, so the others cannot find it"));
        let agent = served.agent.map(|mut agent| {
            // Whatever it says of itself: what was started was started on another boot.
            agent.restarted |= worker.boot().is_some_and(|boot| boot != agent.boot);
            agent
        });
        WorkerView {
            silent_for: worker.silent_for,
            looked: worker.looked,
            agent,
            heard_at: served.heard_at,
            checkpoint: served.checkpoint,
            last_report_read: served.last_report_read,
            fenced: worker.agent.fenced,
            trouble: served.trouble.or(mute),
        }
    }
}

fn rank_of(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What a pass brings about for all.
#[derive(Default)]
struct Turns {
    begin: Option<Beginning>,
    verdicts: Vec<Option<Verdict>>,
}

/// The same for one.
#[derive(Clone, Copy)]
struct WorkerTurn<'t> {
    begin: Option<&'t Beginning>,
    verdict: Option<&'t Verdict>,
}

impl Turns {
    fn of(&self, rank: i64) -> WorkerTurn<'_> {
        let verdict = usize::try_from(rank).ok().and_then(|n| self.verdicts.get(n)?.as_ref());
        WorkerTurn { begin: self.begin.as_ref(), verdict }
    }
}

/// What those begin with that have not begun.
struct Beginning {
    gang: Gang,
    restore: Vec<RestoreCandidate>,
}

impl Beginning {
    fn of(&self, rank: i64) -> (BTreeMap<String, String>, Vec<RestoreCandidate>) {
        let rank = usize::try_from(rank).unwrap_or(0);
        let part = |candidate: &RestoreCandidate| gang::for_rank(candidate, rank).ok();
        (self.gang.environment(rank), self.restore.iter().filter_map(part).collect())
    }
}
