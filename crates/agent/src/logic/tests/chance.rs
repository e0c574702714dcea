//! Every order of events that chance can think of.

use std::collections::BTreeSet;

use super::*;

/// Answers every action in some way that chance decides, for a while, and checks what must hold whatever happens.
#[test]
fn whatever_happens_in_whatever_order_the_promises_hold() {
    let (mut again, mut ended) = (0, 0);
    for seed in 0..300 {
        let mut world = Chance::new(seed);
        for _ in 0..600 {
            world.step();
        }
        again += usize::from(world.started.len() > 1);
        ended += usize::from(world.rental_ended);
    }
    assert!(again > 30 && ended > 30, "chance hardly ever begins a next attempt ({again}) or ends a rental ({ended})");
}

/// The same in a Pod, until the agent leaves it.
#[test]
fn in_the_cluster_the_promises_hold_until_the_agent_leaves() {
    let (mut ran, mut left) = (0, 0);
    for seed in 0..200 {
        let mut world = Chance::of(seed, Rig::of(Some(super::cluster::pod())));
        for _ in 0..900 {
            world.step();
            if world.left {
                break;
            }
        }
        assert!(world.started.len() <= 1, "seed {seed}: a second attempt in one Pod");
        ran += usize::from(!world.started.is_empty());
        left += usize::from(world.left);
    }
    assert!(ran > 100 && left > 100, "chance hardly ever runs ({ran}) or ends ({left}) a program");
}

struct Chance {
    rig: Rig,
    state: u64,
    pending: Vec<Action>,
    /// Attempts whose program was started.
    started: BTreeSet<u32>,
    /// Whether one runs.
    runs: bool,
    /// What was sent to each slot of each attempt.
    slots: BTreeMap<(u32, u64), String>,
    /// Whether a report said that the operator is silent.
    told_silent: bool,
    rental_ended: bool,
    /// Whether the agent has ended.
    left: bool,
    last_sequence: u64,
    saves: u64,
    seed: u64,
}

impl Chance {
    fn new(seed: u64) -> Self {
        Self::of(seed, Rig::new())
    }

    fn of(seed: u64, mut rig: Rig) -> Self {
        rig.control.logs = vec![ticket("log-0"), ticket("log-1")];
        rig.control.slots = vec![ticket("slots-1")];
        // Some operators fall silent before the end, some machines can do something about it.
        rig.control.lease_s = [60, 600, 1_000_000][usize::try_from(seed % 3).unwrap()];
        let rig = if seed.is_multiple_of(2) { rig.with_self_end() } else { rig };
        Self {
            rig,
            state: seed,
            pending: Vec::new(),
            started: BTreeSet::new(),
            runs: false,
            slots: BTreeMap::new(),
            told_silent: false,
            rental_ended: false,
            left: false,
            last_sequence: 0,
            saves: 0,
            seed,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    fn step(&mut self) {
        let actions = std::mem::take(&mut self.rig.todo);
        self.check(&actions);
        self.pending.extend(actions);
        match self.below(10) {
            0 => {
                let Some(wake) = self.rig.logic.wake() else { return };
                // Not to the end of a long lease in one leap: answers are not late for days.
                let time = wake.saturating_sub(self.rig.monotonic).min(Duration::from_mins(1));
                self.rig.pass(time);
                let next = self.rig.logic.wake();
                assert!(next.is_none_or(|next| next > self.rig.monotonic), "seed {}: it would spin", self.seed);
            }
            1 => {
                let time = Duration::from_millis(self.below(20_000));
                self.rig.pass(time);
            }
            2 if self.runs => {
                self.saves += 1;
                let (step, continues) = (self.saves / 2, self.below(2) == 0);
                self.rig.save_seen(step, continues);
            }
            3 if self.runs && self.below(10) == 0 => {
                self.runs = false;
                self.rig.give(Input::ProgramExited { end: ProgramEnd::Code(0), oom_killed: Some(false) });
            }
            4 if self.below(200) == 0 => self.rig.give(Input::Signalled),
            5 if self.runs => self.rig.give(Input::Output(b"step 1 loss 2\n".to_vec())),
            _ => {
                if !self.pending.is_empty() {
                    let at = usize::try_from(self.below(self.pending.len() as u64)).unwrap();
                    let action = self.pending.remove(at);
                    self.answer(action);
                }
            }
        }
    }

    fn check(&mut self, actions: &[Action]) {
        let (seed, silent) = (self.seed, self.rig.logic.report().silent);
        for action in actions {
            match action {
                Action::StartProgram(launch) => {
                    let attempt: u32 = launch.env["TRADEWIND_ATTEMPT"].parse().unwrap();
                    assert!(self.started.last().is_none_or(|last| *last < attempt), "seed {seed}: {attempt} again");
                    self.started.insert(attempt);
                    assert!(!std::mem::replace(&mut self.runs, true), "seed {seed}: two at once");
                    assert!(!silent, "seed {seed}: started for a silent operator");
                    let stored = self.rig.logic.stored_report().unwrap();
                    assert!(stored.phase > AgentPhase::Booted, "seed {seed}: started unmarked");
                    assert_eq!(stored.attempt, Some(attempt), "seed {seed}: marked for another attempt");
                    let withheld = self.rig.control.self_end.as_ref().map(|end| &end.bearer_env);
                    assert_eq!(launch.withheld.as_ref(), withheld, "seed {seed}");
                }
                Action::Leave { code, .. } => {
                    let exit = self.rig.logic.report().exit.filter(|_| self.rig.logic.boot.in_cluster.is_some());
                    self.left = true;
                    assert!(exit.is_none_or(|exit| exit.code == *code && !self.runs), "seed {seed}: {code}");
                }
                Action::EndRental { .. } => {
                    self.rental_ended = true;
                    assert!(silent, "seed {seed}: the rental of a live operator's machine is ended");
                }
                Action::UploadChunk { slot, piece, .. } => {
                    let attempt = self.rig.logic.report().attempt.unwrap();
                    let before = self.slots.insert((attempt, *slot), piece.sha256.clone());
                    assert!(before.is_none_or(|before| before == piece.sha256), "seed {seed}: slot {slot} twice");
                }
                Action::WriteReport { report, .. } => {
                    assert!(report.sequence > self.last_sequence, "seed {seed}");
                    self.last_sequence = report.sequence;
                    assert!(tradewind_protocol::Document::encode(&**report).is_ok(), "seed {seed}: unreadable report");
                    assert!(report.silent || !self.told_silent, "seed {seed}: silence taken back");
                    self.told_silent |= report.silent;
                    let of = report.offer.as_ref().map(|offer| offer.manifest.attempt);
                    assert!(of.is_none() || of == report.attempt, "seed {seed}: an offer of another attempt");
                    let begun = report.attempt.is_some_and(|attempt| self.started.contains(&attempt));
                    assert!(begun || report.progress.is_none(), "seed {seed}: progress of another attempt");
                    let ended = report.exit.as_ref().is_some_and(|exit| !exit.told_to_stop);
                    assert!(begun || !ended, "seed {seed}: the end of another attempt");
                }
                _ => {}
            }
        }
        let waiting = |is: fn(&Action) -> bool| self.pending.iter().chain(actions).filter(|action| is(action)).count();
        assert!(waiting(|action| matches!(action, Action::FetchControl { .. })) <= 1, "seed {seed}");
        assert!(waiting(|action| matches!(action, Action::WriteReport { .. })) <= 1, "seed {seed}");
        assert!(waiting(|action| matches!(action, Action::Hash { .. })) <= 4, "seed {seed}");
    }

    fn answer(&mut self, action: Action) {
        let bad = self.below(4) == 0;
        match action {
            Action::FetchControl { .. } if bad => self.rig.give(Input::Control(Fetched::Failed("away".to_owned()))),
            Action::FetchControl { .. } => self.control(),
            Action::FetchOwnReport { .. } if bad => self.rig.give(Input::OwnReport(Fetched::Denied)),
            Action::FetchOwnReport { .. } => self.rig.give(Input::OwnReport(Fetched::Absent)),
            Action::FetchStart { .. } if bad => self.rig.give(Input::Start(Fetched::Absent)),
            Action::FetchStart { .. } => {
                let attempt = self.rig.control.attempt;
                let mut start = Rig::start_document();
                (start.attempt, start.data_prefix) = (attempt, data_prefix(attempt, MACHINE));
                start.restore = vec![candidate(9, 90), candidate(7, 70)];
                self.rig.give(Input::Start(Fetched::Found { value: Box::new(start), etag: None }));
            }
            Action::FetchSlots { batch, .. } => {
                let puts = (0..500).map(|slot| ticket(&format!("slot-{slot}"))).collect();
                let attempt = batch.rsplit('-').next().unwrap().parse().unwrap();
                let value = SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt, first: 0, puts };
                self.rig.give(Input::Slots { batch, fetched: Fetched::Found { value: Box::new(value), etag: None } });
            }
            Action::WriteReport { report, .. } => {
                let failure = bad.then(|| "away".to_owned());
                self.rig.give(Input::ReportWritten { sequence: report.sequence, failure });
            }
            Action::WriteLog { segment, .. } => self.rig.give(Input::LogWritten { segment, stored: !bad }),
            Action::Restore { candidate, .. } => {
                let result = match self.below(3) {
                    0 => Restore::Bad("bytes".to_owned()),
                    1 => Restore::Failed("away".to_owned()),
                    _ => Restore::Done { path: "/x".to_owned() },
                };
                self.rig.give(Input::Restored { seq: candidate.seq, result });
            }
            Action::FinalScan { .. } => self.rig.give(Input::ScanFinished),
            Action::Link { save, .. } | Action::Hash { save } if bad => {
                self.rig.give(Input::SaveLost { save, reason: None });
            }
            Action::Link { save, .. } => self.rig.give(Input::SaveLinked { save }),
            Action::Hash { save } => {
                self.rig.todo.push(Action::Hash { save });
                let hashes = [self.below(50), 50 + self.below(50)];
                self.rig.hash(&hashes);
            }
            Action::UploadChunk { save, slot, .. } => {
                let outcome = match self.below(6) {
                    0 => ChunkOutcome::Taken,
                    1 => ChunkOutcome::Failed("reset".to_owned()),
                    2 => ChunkOutcome::Denied,
                    3 if bad => ChunkOutcome::Unreadable("changed".to_owned()),
                    _ => ChunkOutcome::Stored,
                };
                self.rig.done(save, slot, outcome);
            }
            Action::EndRental { .. } => {
                self.rig.give(Input::RentalEnded { failure: bad.then(|| "away".to_owned()) });
            }
            Action::StartProgram(_)
            | Action::Signal(_)
            | Action::ClearSaves { .. }
            | Action::DropStaging { .. }
            | Action::Leave { .. } => {}
        }
    }

    fn control(&mut self) {
        // An operator that is away for a while hears nothing and says nothing.
        if self.below(3) == 0 {
            return self.rig.give(Input::Control(Fetched::NotModified));
        }
        let report = self.rig.logic.stored_report().cloned();
        let over = report.is_some_and(|report| {
            report.phase == AgentPhase::Exited && report.attempt == Some(self.rig.control.attempt)
        });
        let next = over && self.below(2) == 0;
        let offer = self.rig.logic.report().offer;
        let control = &mut self.rig.control;
        control.sequence += 1;
        control.desired = Desired::Run;
        control.start = Some(ticket("start"));
        control.start_boot = Some("boot-1".to_owned());
        if next {
            control.attempt += 1;
            control.slots.push(ticket(&format!("slots-{}", control.attempt)));
        }
        if let Some(offer) = offer {
            let seq = control.committed.map_or(10, |committed| committed.seq + 1);
            control.committed = Some(Committed { offer: offer.number, seq, step: offer.manifest.step });
        }
        let value = Box::new(control.clone());
        self.rig.give(Input::Control(Fetched::Found { value, etag: None }));
    }
}
