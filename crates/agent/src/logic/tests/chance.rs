//! Every order of events that chance can think of.

use super::*;

/// Answers every action in some way that chance decides, for a while, and checks what must hold whatever happens.
#[test]
fn whatever_happens_in_whatever_order_the_promises_hold() {
    for seed in 0..300 {
        let mut world = Chance::new(seed);
        for _ in 0..400 {
            world.step();
        }
    }
}

struct Chance {
    rig: Rig,
    state: u64,
    pending: Vec<Action>,
    starts: usize,
    /// What was sent to each slot.
    slots: BTreeMap<u64, String>,
    last_sequence: u64,
    saves: u64,
    seed: u64,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::new();
        rig.control.logs = vec![ticket("log-0"), ticket("log-1")];
        rig.control.slots = vec![ticket("slots-0")];
        let (pending, slots) = (Vec::new(), BTreeMap::new());
        Self { rig, state: seed, pending, starts: 0, slots, last_sequence: 0, saves: 0, seed }
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
                let time = wake.saturating_sub(self.rig.monotonic);
                self.rig.pass(time);
                let next = self.rig.logic.wake();
                assert!(next.is_none_or(|next| next > self.rig.monotonic), "seed {}: it would spin", self.seed);
            }
            1 => {
                let time = Duration::from_millis(self.below(20_000));
                self.rig.pass(time);
            }
            2 if self.starts > 0 => {
                self.saves += 1;
                let (step, continues) = (self.saves / 2, self.below(2) == 0);
                self.rig.save_seen(step, continues);
            }
            3 if self.starts > 0 && self.below(40) == 0 => self.rig.give(Input::ProgramExited(ProgramEnd::Code(0))),
            4 if self.below(60) == 0 => self.rig.give(Input::Signalled),
            5 => self.rig.give(Input::Output(b"step 1 loss 2\n".to_vec())),
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
        let seed = self.seed;
        for action in actions {
            match action {
                Action::StartProgram(_) => {
                    self.starts += 1;
                    let stored = self.rig.logic.stored_report().map(|report| report.phase);
                    assert!(stored.is_some_and(|phase| phase > AgentPhase::Booted), "seed {seed}: started unmarked");
                }
                Action::UploadChunk { slot, piece, .. } => {
                    let before = self.slots.insert(*slot, piece.sha256.clone());
                    assert!(before.is_none_or(|before| before == piece.sha256), "seed {seed}: slot {slot} twice");
                }
                Action::WriteReport { report, .. } => {
                    assert!(report.sequence > self.last_sequence, "seed {seed}");
                    self.last_sequence = report.sequence;
                    assert!(tradewind_protocol::Document::encode(&**report).is_ok(), "seed {seed}: unreadable report");
                }
                _ => {}
            }
        }
        assert!(self.starts <= 1, "seed {seed}: started twice");
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
                let mut start = Rig::start_document();
                start.restore = vec![candidate(9, 90), candidate(7, 70)];
                self.rig.give(Input::Start(Fetched::Found { value: Box::new(start), etag: None }));
            }
            Action::FetchSlots { batch, .. } => {
                let puts = (0..500).map(|slot| ticket(&format!("slot-{slot}"))).collect();
                let value = SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt: 1, first: 0, puts };
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
            Action::StartProgram(_) | Action::Signal(_) | Action::DropStaging { .. } | Action::Leave { .. } => {}
        }
    }

    fn control(&mut self) {
        let control = &mut self.rig.control;
        control.sequence += 1;
        control.desired = Desired::Run;
        control.start = Some(ticket("start"));
        control.start_boot = Some("boot-1".to_owned());
        if let Some(offer) = self.rig.logic.report().offer {
            let seq = control.committed.map_or(10, |committed| committed.seq + 1);
            control.committed = Some(Committed { offer: offer.number, seq, step: offer.manifest.step });
        }
        let value = Box::new(control.clone());
        self.rig.give(Input::Control(Fetched::Found { value, etag: None }));
    }
}
