mod attempts;
mod chance;
mod cluster;
mod lease;
mod life;
mod saves;

use std::collections::BTreeMap;

use jiff::Timestamp;
use tradewind_protocol::control::{Committed, RefusedOffer};
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::{CheckpointSettings, Chunk, Desired, EntryKind, ManifestFile, RestoreCandidate, SelfEnd};

use super::*;

const MACHINE: &str = "machine-1";

fn ticket(name: &str) -> Ticket {
    Ticket { url: format!("http://store/{name}?sig=x"), expires: Timestamp::MAX }
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn sha256(number: u64) -> String {
    format!("{number:064x}")
}

/// A logic under a clock that stands still until it is told to move.
struct Rig {
    logic: Logic,
    monotonic: Duration,
    control: Control,
    /// Actions that nobody has looked at.
    todo: Vec<Action>,
}

impl Rig {
    fn new() -> Self {
        Self::of(None)
    }

    fn of(in_cluster: Option<InCluster>) -> Self {
        let boot = Boot {
            id: "boot-1".to_owned(),
            key: "A".repeat(43) + "=",
            control: ticket("bootstrap"),
            host: tradewind_protocol::HostFacts::default(),
            settings: Settings::default(),
            in_cluster,
        };
        let control = Control {
            version: VERSION,
            machine: MACHINE.to_owned(),
            sequence: 0,
            // Out of the way of tests of other things.
            lease_s: 1_000_000,
            desired: Desired::Wait,
            attempt: 1,
            control_get: ticket("control"),
            report_put: ticket("report-put"),
            report_get: ticket("report-get"),
            start: None,
            start_boot: None,
            slots: vec![],
            logs: vec![],
            committed: None,
            refused: None,
            self_end: None,
        };
        let now = Now { wall: Timestamp::UNIX_EPOCH, monotonic: Duration::ZERO };
        let mut rig = Self { logic: Logic::new(boot, now), monotonic: Duration::ZERO, control, todo: vec![] };
        rig.give(Input::Tick);
        rig
    }

    fn now(&self) -> Now {
        let wall = Timestamp::UNIX_EPOCH.checked_add(self.monotonic).unwrap();
        Now { wall, monotonic: self.monotonic }
    }

    fn give(&mut self, input: Input) {
        let actions = self.logic.handle(self.now(), input);
        self.todo.extend(actions);
    }

    fn pass(&mut self, time: Duration) {
        self.monotonic += time;
        self.give(Input::Tick);
    }

    /// Takes the actions that `pick` wants out of what is to do.
    fn take<T>(&mut self, pick: impl Fn(&Action) -> Option<T>) -> Vec<T> {
        let found = self.todo.iter().filter_map(&pick).collect();
        self.todo.retain(|action| pick(action).is_none());
        found
    }

    fn took(&mut self, is: impl Fn(&Action) -> bool) -> bool {
        !self.take(|action| is(action).then_some(())).is_empty()
    }

    /// Answers the poll that is to do with the control document as it stands.
    fn hear(&mut self) {
        assert!(self.took(|action| matches!(action, Action::FetchControl { .. })), "no poll: {:?}", self.todo);
        self.control.sequence += 1;
        let value = Box::new(self.control.clone());
        self.give(Input::Control(Fetched::Found { value, etag: Some("tag".to_owned()) }));
    }

    /// Lets time pass until the next poll, and answers it.
    fn hear_soon(&mut self) {
        for _ in 0..100 {
            if self.todo.iter().any(|action| matches!(action, Action::FetchControl { .. })) {
                return self.hear();
            }
            self.pass(Duration::from_millis(100));
        }
        panic!("no poll in ten seconds");
    }

    /// Stores every report that is to do and returns the newest.
    fn store_reports(&mut self) -> Option<Report> {
        let mut newest = None;
        for _ in 0..10 {
            let reports = self.take(|action| match action {
                Action::WriteReport { report, .. } => Some((**report).clone()),
                _ => None,
            });
            let Some(report) = reports.into_iter().next() else { break };
            self.give(Input::ReportWritten { sequence: report.sequence, failure: None });
            newest = Some(report);
        }
        newest
    }

    fn waiting() -> Self {
        Self::new().booted()
    }

    /// Past the question for an earlier boot.
    fn booted(self) -> Self {
        let mut rig = self;
        rig.hear();
        assert!(rig.took(|action| matches!(action, Action::FetchOwnReport { .. })));
        rig.give(Input::OwnReport(Fetched::Absent));
        assert_eq!(rig.store_reports().unwrap().phase, AgentPhase::Booted);
        rig
    }

    fn start_document() -> Start {
        Start {
            version: VERSION,
            machine: MACHINE.to_owned(),
            boot: "boot-1".to_owned(),
            run_id: "run".to_owned(),
            attempt: 1,
            command: vec!["train".to_owned()],
            env: BTreeMap::new(),
            sealed_env: None,
            working_dir: None,
            stop_grace_s: 30,
            checkpoint: Some(CheckpointSettings {
                path: "ckpt".to_owned(),
                pattern: "step-{step}".to_owned(),
                resume_args: vec!["--resume".to_owned()],
                interval_s: 60,
                quiet_ms: 1000,
                restore_only: false,
                together: false,
            }),
            restore: vec![],
            data_prefix: data_prefix(1, MACHINE),
        }
    }

    /// Gives the order to run and the start document.
    fn ordered(mut self, start: Start) -> Self {
        self.control.start = Some(ticket("start"));
        self.control.start_boot = Some("boot-1".to_owned());
        self.control.desired = Desired::Run;
        self.hear_soon();
        assert!(self.took(|action| matches!(action, Action::FetchStart { .. })));
        self.give(Input::Start(Fetched::Found { value: Box::new(start), etag: None }));
        self
    }

    /// The machine can end its rental by itself, from the next control document on.
    fn with_self_end(mut self) -> Self {
        let url = "https://provider/instances/7".to_owned();
        self.control.self_end = Some(SelfEnd { method: "DELETE".to_owned(), url, bearer_env: "KEY".to_owned() });
        self
    }

    /// How often the end of the rental was asked for.
    fn rental_ends(&mut self) -> usize {
        self.take(|action| matches!(action, Action::EndRental { .. }).then_some(())).len()
    }

    fn running() -> Self {
        Self::running_with(100)
    }

    /// A program that runs, with so many slots for its saves.
    fn running_with(slots: u64) -> Self {
        let mut rig = Self::waiting().ordered(Self::start_document());
        rig.give_slots(0, slots);
        rig.store_reports();
        assert!(rig.took(|action| matches!(action, Action::StartProgram(_))));
        rig.store_reports();
        rig
    }

    fn give_slots(&mut self, first: u64, count: u64) {
        self.control.slots.push(ticket(&format!("slots-{first}")));
        self.hear_soon();
        let batches = self.take(|action| match action {
            Action::FetchSlots { batch, .. } => Some(batch.clone()),
            _ => None,
        });
        let puts = (0..count).map(|slot| ticket(&format!("slot-{}", first + slot))).collect();
        let attempt = self.control.attempt;
        let value = Box::new(SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt, first, puts });
        self.give(Input::Slots { batch: batches[0].clone(), fetched: Fetched::Found { value, etag: None } });
    }

    fn save_seen(&mut self, step: u64, continues: bool) {
        let at = self.now().wall;
        self.give(Input::SaveSeen(SeenSave {
            name: format!("step-{step}"),
            step: Some(step),
            kind: EntryKind::Directory,
            continues,
            began_at: at,
            complete_at: at,
        }));
    }

    /// The save is seen and linked; hashed if the logic asks for it, as one file per hash.
    fn save(&mut self, step: u64, hashes: &[u64]) {
        self.save_seen(step, false);
        for save in self.take(|action| match action {
            Action::Link { save, .. } => Some(*save),
            _ => None,
        }) {
            self.give(Input::SaveLinked { save });
        }
        self.hash(hashes);
    }

    fn hash(&mut self, hashes: &[u64]) {
        for save in self.take(|action| match action {
            Action::Hash { save } => Some(*save),
            _ => None,
        }) {
            let file = |(index, hash): (usize, &u64)| StagedFile {
                path: format!("file-{index:03}"),
                size_bytes: 10,
                mode: 0o644,
                pieces: vec![StagedPiece { size_bytes: 10, sha256: sha256(*hash), md5: "md5".to_owned() }],
            };
            self.give(Input::SaveHashed { save, files: hashes.iter().enumerate().map(file).collect() });
        }
    }

    fn uploads(&mut self) -> Vec<(SaveId, u64, String)> {
        self.take(|action| match action {
            Action::UploadChunk { save, slot, piece, .. } => Some((*save, *slot, piece.sha256.clone())),
            _ => None,
        })
    }

    fn done(&mut self, save: SaveId, slot: u64, outcome: ChunkOutcome) {
        self.give(Input::ChunkDone { save, slot, outcome });
    }

    /// Uploads until nothing is left; returns the slots.
    fn upload_all(&mut self) -> Vec<u64> {
        let mut slots = Vec::new();
        loop {
            let uploads = self.uploads();
            if uploads.is_empty() {
                return slots;
            }
            for (save, slot, _) in uploads {
                slots.push(slot);
                self.done(save, slot, ChunkOutcome::Stored);
            }
        }
    }

    fn commit(&mut self, offer: u64, seq: u64) {
        self.control.committed = Some(Committed { offer, seq, step: 0 });
        self.hear_soon();
    }

    fn signals(&mut self) -> Vec<ProgramSignal> {
        self.take(|action| match action {
            Action::Signal(signal) => Some(*signal),
            _ => None,
        })
    }

    fn exit(&mut self, end: ProgramEnd) -> bool {
        self.give(Input::ProgramExited { end, oom_killed: None });
        let scans = self.take(|action| match action {
            Action::FinalScan { trust_unsettled } => Some(*trust_unsettled),
            _ => None,
        });
        scans[0]
    }
}

fn candidate(seq: u64, step: u64) -> RestoreCandidate {
    let key = format!("data/0-abcdef/{seq:08}");
    let manifest = Manifest {
        version: VERSION,
        run_id: "run".to_owned(),
        attempt: 0,
        machine: "other".to_owned(),
        step,
        name: format!("step-{step}"),
        kind: EntryKind::File,
        files: vec![ManifestFile {
            path: String::new(),
            size_bytes: 10,
            mode: 0o644,
            chunks: vec![Chunk { key: key.clone(), size_bytes: 10, sha256: sha256(seq) }],
            rank: None,
        }],
        saved_at: Timestamp::UNIX_EPOCH,
        save_began_at: Timestamp::UNIX_EPOCH,
        parent: None,
        writers: vec![],
    };
    RestoreCandidate { seq, manifest, chunks: BTreeMap::from([(key.clone(), ticket(&key))]) }
}
