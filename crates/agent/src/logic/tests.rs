use std::collections::BTreeMap;

use jiff::Timestamp;
use tradewind_protocol::control::{Committed, RefusedOffer};
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::{CheckpointSettings, Chunk, Desired, EntryKind, ManifestFile, RestoreCandidate};

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
        let boot = Boot {
            id: "boot-1".to_owned(),
            key: "A".repeat(43) + "=",
            control: ticket("bootstrap"),
            settings: Settings::default(),
        };
        let control = Control {
            version: VERSION,
            machine: MACHINE.to_owned(),
            sequence: 0,
            lease_s: 60,
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
        let mut rig = Self::new();
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

    fn running() -> Self {
        let mut rig = Self::waiting().ordered(Self::start_document());
        rig.give_slots(0, 100);
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
        let value = Box::new(SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt: 1, first, puts });
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
        self.give(Input::ProgramExited(end));
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
        }],
        saved_at: Timestamp::UNIX_EPOCH,
        save_began_at: Timestamp::UNIX_EPOCH,
        parent: None,
    };
    RestoreCandidate { seq, manifest, chunks: BTreeMap::from([(key.clone(), ticket(&key))]) }
}

#[test]
fn nothing_is_written_or_started_before_the_own_report_is_certain() {
    for uncertain in [Fetched::Failed("away".to_owned()), Fetched::Denied, Fetched::NotModified] {
        let mut rig = Rig::new();
        rig.control.start = Some(ticket("start"));
        rig.control.start_boot = Some("boot-1".to_owned());
        rig.hear();
        for _ in 0..5 {
            assert!(rig.took(|action| matches!(action, Action::FetchOwnReport { .. })));
            rig.give(Input::OwnReport(uncertain.clone()));
            rig.pass(seconds(31));
        }
        assert!(!rig.took(|action| matches!(action, Action::WriteReport { .. } | Action::FetchStart { .. })));
        assert!(rig.took(|action| matches!(action, Action::FetchOwnReport { .. })));
        rig.give(Input::OwnReport(Fetched::Absent));
        assert!(rig.took(|action| matches!(action, Action::WriteReport { .. })));
    }
}

#[test]
fn an_earlier_boot_that_got_somewhere_is_not_repeated() {
    for (phase, restarted, machine, expected) in [
        (AgentPhase::Booted, false, MACHINE, None),
        (AgentPhase::Booted, true, MACHINE, Some(AgentPhase::Failed)),
        (AgentPhase::Restoring, false, MACHINE, Some(AgentPhase::Failed)),
        (AgentPhase::Running, false, MACHINE, Some(AgentPhase::Failed)),
        (AgentPhase::Stopping, false, MACHINE, Some(AgentPhase::Failed)),
        (AgentPhase::Exited, false, MACHINE, Some(AgentPhase::Exited)),
        (AgentPhase::Booted, false, "another", Some(AgentPhase::Failed)),
    ] {
        let mut rig = Rig::new();
        rig.hear();
        let mut earlier = rig.logic.report();
        (earlier.boot, earlier.phase, earlier.restarted) = ("boot-0".to_owned(), phase, restarted);
        earlier.machine = machine.to_owned();
        rig.give(Input::OwnReport(Fetched::Found { value: Box::new(earlier), etag: None }));
        let report = rig.store_reports().unwrap();
        assert_eq!(report.restarted, expected.is_some(), "{phase:?} {restarted}");
        assert_eq!(report.phase, expected.unwrap_or(AgentPhase::Booted), "{phase:?} {restarted}");
        if expected.is_some() {
            rig.control.start = Some(ticket("start"));
            rig.control.start_boot = Some("boot-1".to_owned());
            rig.control.desired = Desired::Run;
            rig.hear_soon();
            rig.pass(seconds(600));
            assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. } | Action::StartProgram(_))));
        }
    }
}

#[test]
fn the_program_starts_only_after_a_report_past_booted_is_stored() {
    let mut rig = Rig::waiting().ordered(Rig::start_document());
    for _ in 0..3 {
        let sequences = rig.take(|action| match action {
            Action::WriteReport { report, .. } if report.phase == AgentPhase::Restoring => Some(report.sequence),
            _ => None,
        });
        assert_eq!(sequences.len(), 1, "{:?}", rig.todo);
        rig.give(Input::ReportWritten { sequence: sequences[0], failure: Some("away".to_owned()) });
        assert!(!rig.took(|action| matches!(action, Action::StartProgram(_))));
        rig.pass(seconds(5));
    }
    let report = rig.store_reports().unwrap();
    assert!(rig.took(|action| matches!(action, Action::StartProgram(_))));
    assert_eq!(report.phase, AgentPhase::Running);
}

#[test]
fn only_a_start_document_for_this_boot_is_fetched_and_followed() {
    let mut rig = Rig::waiting();
    rig.control.start = Some(ticket("start"));
    rig.control.start_boot = Some("boot-0".to_owned());
    rig.control.desired = Desired::Run;
    rig.hear_soon();
    assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. })));

    for wrong in [
        Start { machine: "another".to_owned(), ..Rig::start_document() },
        Start { boot: "boot-0".to_owned(), ..Rig::start_document() },
        Start { command: vec![], ..Rig::start_document() },
    ] {
        let mut rig = Rig::waiting().ordered(wrong);
        rig.pass(seconds(1));
        rig.store_reports();
        assert_eq!((rig.logic.phase(), rig.logic.report().warnings.len()), (AgentPhase::Booted, 1));
        assert!(rig.took(|action| matches!(action, Action::FetchStart { .. })), "tried again");
    }
}

#[test]
fn control_documents_that_are_old_or_for_others_change_nothing() {
    let mut rig = Rig::running();
    let stop = Desired::Stop { reason: "x".to_owned(), grace_s: 1 };
    for (machine, sequence) in [("another", 1_000), (MACHINE, rig.control.sequence), (MACHINE, 0)] {
        let value =
            Box::new(Control { machine: machine.to_owned(), sequence, desired: stop.clone(), ..rig.control.clone() });
        rig.pass(seconds(6));
        assert!(rig.took(|action| matches!(action, Action::FetchControl { .. })));
        rig.give(Input::Control(Fetched::Found { value, etag: None }));
        assert_eq!(rig.logic.phase(), AgentPhase::Running);
        assert!(rig.signals().is_empty());
    }
    rig.pass(seconds(6));
    assert!(rig.took(|action| matches!(action, Action::FetchControl { .. })));
    rig.give(Input::Control(Fetched::Invalid("nonsense".to_owned())));
    assert_eq!(rig.logic.report().warnings.len(), 2, "{:?}", rig.logic.report().warnings);
}

#[test]
fn polls_are_fast_while_something_waits_for_the_operator_and_slow_otherwise() {
    /// Polls in the next ten seconds.
    fn polls(rig: &mut Rig) -> usize {
        let end = rig.monotonic + seconds(10);
        let mut polls = 0;
        while rig.monotonic < end {
            if rig.took(|action| matches!(action, Action::FetchControl { .. })) {
                polls += 1;
                rig.give(Input::Control(Fetched::NotModified));
            }
            let wake = rig.logic.wake().unwrap().max(rig.monotonic + Duration::from_millis(1));
            rig.pass(wake.min(end) - rig.monotonic);
            rig.store_reports();
        }
        polls
    }
    let mut rig = Rig::waiting();
    assert!((19..=21).contains(&polls(&mut rig)));
    rig.pass(seconds(60));
    assert!(polls(&mut rig) <= 3, "the operator is taken to be away");

    let mut rig = Rig::running();
    assert!(polls(&mut rig) <= 3);
    rig.save(10, &[1]);
    rig.upload_all();
    assert!(polls(&mut rig) >= 19, "an offer waits");
    rig.commit(1, 5);
    assert!(polls(&mut rig) <= 3);
}

#[test]
fn a_refused_control_ticket_is_tried_in_turn_with_the_first_one() {
    let mut rig = Rig::running();
    let mut asked = Vec::new();
    for _ in 0..4 {
        rig.pass(seconds(6));
        asked.extend(rig.take(|action| match action {
            Action::FetchControl { ticket, .. } => Some(ticket.url.clone()),
            _ => None,
        }));
        rig.give(Input::Control(Fetched::Denied));
    }
    let [control, bootstrap] = ["control", "bootstrap"].map(|name| ticket(name).url);
    assert_eq!(asked, [&control, &bootstrap, &control, &bootstrap].map(Clone::clone));
}

#[test]
fn reports_are_written_every_interval_at_every_change_and_one_at_a_time() {
    let mut rig = Rig::running();
    let writes = |rig: &mut Rig| {
        rig.take(|action| match action {
            Action::WriteReport { report, .. } => Some((report.sequence, report.progress.as_ref().map(|p| p.step))),
            _ => None,
        })
    };
    rig.give(Input::Output(b"step 5/10 loss 1.5\n".to_vec()));
    assert!(writes(&mut rig).is_empty(), "progress can wait");
    rig.pass(seconds(10));
    let first = writes(&mut rig);
    assert_eq!(first[0].1, Some(5));
    rig.pass(seconds(60));
    rig.exit(ProgramEnd::Code(0));
    assert!(writes(&mut rig).is_empty(), "one is on its way");
    rig.give(Input::ReportWritten { sequence: first[0].0, failure: Some("away".to_owned()) });
    assert!(writes(&mut rig).is_empty(), "after a failure it waits a moment");
    rig.pass(seconds(1));
    let second = writes(&mut rig);
    assert_eq!(second[0].0, first[0].0 + 1);
    rig.give(Input::ReportWritten { sequence: 1, failure: None });
    assert!(rig.logic.stored_report().unwrap().exit.is_none(), "an answer to another report says nothing");
}

#[test]
fn a_save_is_linked_hashed_uploaded_in_parallel_and_offered() {
    let mut rig = Rig::running();
    rig.save(10, &[1, 2, 3, 4, 5, 6, 2]);
    let uploads = rig.uploads();
    assert_eq!(uploads.iter().map(|upload| upload.1).collect::<Vec<_>>(), [0, 1, 2, 3], "four at a time");
    rig.done(1, 2, ChunkOutcome::Stored);
    assert_eq!(rig.uploads().len(), 1);
    assert_eq!(rig.logic.report().uploading.unwrap().sent_bytes, 10);
    for slot in [0, 1, 3, 4] {
        rig.done(1, slot, ChunkOutcome::Stored);
    }
    rig.upload_all();
    let offer = rig.logic.report().offer.unwrap();
    assert_eq!((offer.number, offer.manifest.step, offer.manifest.parent), (1, 10, None));
    let keys: Vec<&str> = offer.manifest.chunks().map(|chunk| &chunk.key[chunk.key.len() - 2..]).collect();
    assert_eq!(keys, ["00", "01", "02", "03", "04", "05", "01"], "equal content is sent once");
    assert!(rig.took(|action| *action == Action::DropStaging { save: 1 }));
    assert_eq!(rig.store_reports().unwrap().offer.unwrap().number, 1, "reported at once");
}

#[test]
fn what_the_committed_parent_has_is_not_sent_again() {
    let mut start = Rig::start_document();
    start.restore = vec![candidate(7, 70)];
    let mut rig = Rig::waiting().ordered(start);
    rig.give_slots(0, 100);
    rig.store_reports();
    rig.give(Input::Restored { seq: 7, result: Restore::Done { path: "/ckpt/step-70".to_owned() } });
    // The restored checkpoint is the first parent: it had the content with hash 7.
    rig.save(80, &[7, 8]);
    assert_eq!(rig.upload_all().len(), 1);
    let offer = rig.logic.report().offer.unwrap();
    assert_eq!(offer.manifest.parent, Some(7));
    assert_eq!(offer.manifest.files[0].chunks[0].key, "data/0-abcdef/00000007");

    // Not committed yet: the parent stays.
    rig.save(90, &[8, 9]);
    assert_eq!(rig.upload_all().len(), 2);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.parent, None);
    // The first offer was committed although a second one is there: it becomes the parent.
    rig.commit(1, 8);
    assert_eq!(rig.logic.report().offer.unwrap().number, 2, "the second one still waits");
    rig.save(100, &[7, 8, 10]);
    assert_eq!(rig.upload_all().len(), 1);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.parent, Some(8));
}

#[test]
fn a_newer_save_takes_the_place_of_one_that_has_not_begun_to_upload() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let hanging = rig.uploads();
    assert_eq!(hanging.len(), 1);
    for step in [20, 30, 40] {
        rig.save(step, &[step]);
    }
    let dropped = rig.take(|action| match action {
        Action::DropStaging { save } => Some(*save),
        _ => None,
    });
    assert_eq!(dropped, [2, 3]);
    assert!(rig.uploads().is_empty(), "one upload at a time");
    rig.done(1, hanging[0].1, ChunkOutcome::Stored);
    assert_eq!(rig.uploads()[0].0, 4);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.step, 10);
}

#[test]
fn a_save_that_goes_on_changing_where_it_lies_was_not_complete() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let first = rig.uploads();
    rig.save_seen(10, true);
    assert!(rig.took(|action| *action == Action::DropStaging { save: 1 }));
    rig.done(1, first[0].1, ChunkOutcome::Stored);
    assert!(rig.logic.report().offer.is_none());
    // Renamed over: what was linked of it before is whole.
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let first = rig.uploads();
    rig.save_seen(10, false);
    rig.done(1, first[0].1, ChunkOutcome::Stored);
    assert!(rig.logic.report().offer.is_some());
}

#[test]
fn uploads_that_fail_are_tried_again_in_the_same_slot_or_a_fresh_one() {
    let failed = || ChunkOutcome::Failed("reset".to_owned());
    for (outcome, times, expected) in [
        (failed(), 1, 0),
        (failed(), 6, 0),
        (ChunkOutcome::Taken, 1, 1),
        (ChunkOutcome::Taken, 3, 3),
        (ChunkOutcome::Denied, 1, 0),
        (ChunkOutcome::Denied, 5, 1),
    ] {
        let mut rig = Rig::running();
        rig.save(10, &[1]);
        let mut slot = rig.uploads()[0].1;
        for _ in 0..times {
            rig.done(1, slot, outcome.clone());
            let again = rig.uploads();
            rig.pass(seconds(31));
            slot = again.into_iter().chain(rig.uploads()).next().unwrap().1;
        }
        assert_eq!(slot, expected, "{outcome:?} {times} times");
        rig.done(1, slot, ChunkOutcome::Stored);
        let chunk = rig.logic.report().offer.unwrap().manifest.files[0].chunks[0].clone();
        assert!(chunk.key.ends_with(&format!("/{expected:08}")));
    }
}

#[test]
fn a_hopeless_upload_gives_way_and_an_unreadable_one_is_given_up() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let slot = rig.uploads()[0].1;
    for _ in 0..8 {
        rig.done(1, slot, ChunkOutcome::Failed("reset".to_owned()));
        rig.pass(seconds(31));
        rig.uploads();
    }
    assert!(rig.logic.report().uploading.is_some(), "nothing newer is there");
    rig.save(20, &[2]);
    assert_eq!(rig.uploads()[0].0, 2);
    rig.done(2, 1, ChunkOutcome::Unreadable("its bytes changed".to_owned()));
    assert!(rig.logic.report().uploading.is_none());
    assert!(rig.logic.report().warnings[0].contains("step-20"));
}

#[test]
fn slots_are_used_once_topped_up_and_never_with_a_ticket_about_to_expire() {
    let mut rig = Rig::waiting().ordered(Rig::start_document());
    rig.give_slots(0, 2);
    rig.store_reports();
    rig.save(10, &[1, 2, 3]);
    assert_eq!(rig.upload_all(), [0, 1]);
    let report = rig.store_reports().unwrap();
    assert_eq!((report.slots_left, report.slots_used), (0, 2));
    // A batch that overlaps with what was used, and holds one that dies in a moment.
    rig.control.slots = vec![ticket("slots-1")];
    rig.hear_soon();
    assert!(rig.took(|action| matches!(action, Action::FetchSlots { .. })));
    let mut puts: Vec<Ticket> = (1..5).map(|slot| ticket(&format!("slot-{slot}"))).collect();
    puts[1].expires = rig.now().wall.checked_add(seconds(30)).unwrap();
    let value = Box::new(SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt: 1, first: 1, puts });
    let batch = "http://store/slots-1".to_owned();
    rig.give(Input::Slots { batch, fetched: Fetched::Found { value, etag: None } });
    assert_eq!(rig.upload_all(), [3]);
    assert!(rig.logic.report().offer.is_some());
    // The same batch, signed anew, is not fetched again.
    rig.control.slots = vec![Ticket { url: "http://store/slots-1?sig=other".to_owned(), expires: Timestamp::MAX }];
    rig.hear_soon();
    assert!(!rig.took(|action| matches!(action, Action::FetchSlots { .. })));
}

#[test]
fn restores_fall_back_over_bad_candidates_but_not_over_an_absent_store() {
    let restores = |rig: &mut Rig| {
        rig.take(|action| match action {
            Action::Restore { candidate, .. } => Some(candidate.seq),
            _ => None,
        })
    };
    let mut start = Rig::start_document();
    start.restore = vec![candidate(9, 90), candidate(7, 70)];
    let mut rig = Rig::waiting().ordered(start.clone());
    rig.store_reports();
    assert_eq!(restores(&mut rig), [9]);
    rig.give(Input::Restored { seq: 9, result: Restore::Failed("away".to_owned()) });
    assert!(restores(&mut rig).is_empty());
    rig.pass(seconds(1));
    assert_eq!(restores(&mut rig), [9], "the same one again");
    rig.give(Input::Restored { seq: 9, result: Restore::Bad("bytes".to_owned()) });
    assert_eq!(restores(&mut rig), [7]);
    rig.give(Input::Restored { seq: 7, result: Restore::Done { path: "/x/step-70".to_owned() } });
    let launches = rig.take(|action| match action {
        Action::StartProgram(launch) => Some(launch.clone()),
        _ => None,
    });
    assert_eq!(launches[0].command, ["train", "--resume"]);
    assert_eq!(launches[0].env["TRADEWIND_RESUME_STEP"], "70");
    assert_eq!(launches[0].env["TRADEWIND_RESUME_PATH"], "/x/step-70");
    let restore = rig.logic.report().restore.unwrap();
    assert_eq!((restore.restored.unwrap().seq, restore.rejected.len()), (7, 1));

    let mut rig = Rig::waiting().ordered(start);
    rig.store_reports();
    for _ in 0..200 {
        rig.give(Input::Restored { seq: 9, result: Restore::Failed("away".to_owned()) });
        rig.pass(seconds(31));
        rig.store_reports();
    }
    assert_eq!(rig.logic.phase(), AgentPhase::Failed, "every wait has a limit");
    assert!(!rig.took(|action| matches!(action, Action::StartProgram(_))));
}

#[test]
fn a_stop_terminates_then_kills_and_always_exits_143() {
    let mut rig = Rig::running();
    rig.control.desired = Desired::Stop { reason: "budget".to_owned(), grace_s: 60 };
    rig.hear_soon();
    assert_eq!(rig.signals(), [ProgramSignal::Terminate]);
    assert_eq!(rig.store_reports().unwrap().phase, AgentPhase::Stopping);
    // A shorter grace counts, a longer one does not.
    rig.control.desired = Desired::Stop { reason: "spot".to_owned(), grace_s: 10 };
    rig.hear_soon();
    rig.control.desired = Desired::Stop { reason: "spot".to_owned(), grace_s: 500 };
    rig.hear_soon();
    assert!(rig.signals().is_empty());
    rig.pass(seconds(10));
    assert_eq!(rig.signals(), [ProgramSignal::Kill]);
    rig.pass(seconds(10));
    assert!(rig.signals().is_empty());
    assert!(!rig.exit(ProgramEnd::Signal(9)), "a save cut in two is not trusted");
    rig.give(Input::ScanFinished);
    let report = rig.store_reports().unwrap();
    assert_eq!((report.phase, report.exit.unwrap().code), (AgentPhase::Exited, 143));
}

#[test]
fn exit_codes_follow_what_happened() {
    for (stopped, end, code, trusted) in [
        (false, ProgramEnd::Code(0), 0, true),
        (false, ProgramEnd::Code(3), 3, false),
        (false, ProgramEnd::Code(143), 143, false),
        (false, ProgramEnd::Signal(11), 139, false),
        (true, ProgramEnd::Code(0), 143, true),
        (true, ProgramEnd::Code(143), 143, true),
        (true, ProgramEnd::Code(1), 143, false),
        (true, ProgramEnd::Signal(15), 143, false),
    ] {
        let mut rig = Rig::running();
        if stopped {
            rig.control.desired = Desired::Stop { reason: "x".to_owned(), grace_s: 60 };
            rig.hear_soon();
        }
        assert_eq!(rig.exit(end), trusted, "{end:?}");
        let exit = rig.logic.report().exit.unwrap();
        assert_eq!((exit.code, exit.told_to_stop), (code, stopped), "{end:?}");
    }
}

#[test]
fn told_to_stop_before_the_start_nothing_is_started() {
    let stop = Desired::Stop { reason: "x".to_owned(), grace_s: 60 };
    let mut start = Rig::start_document();
    start.restore = vec![candidate(9, 90)];
    let mut restoring = Rig::waiting().ordered(start);
    restoring.store_reports();
    for mut rig in [Rig::waiting(), restoring] {
        rig.control.desired = stop.clone();
        rig.hear_soon();
        rig.give(Input::Restored { seq: 9, result: Restore::Done { path: "/x".to_owned() } });
        rig.pass(seconds(1));
        assert!(!rig.took(|action| matches!(action, Action::StartProgram(_))));
        let report = rig.logic.report();
        assert_eq!((report.phase, report.exit.unwrap().code), (AgentPhase::Exited, 143));
    }
}

#[test]
fn the_end_waits_for_the_last_save_to_be_answered_but_not_for_ever() {
    let ready = || {
        let mut rig = Rig::running();
        rig.exit(ProgramEnd::Code(0));
        rig.save(10, &[1]);
        rig.give(Input::ScanFinished);
        assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
        rig.upload_all();
        rig.store_reports();
        assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
        rig
    };
    let mut rig = ready();
    rig.commit(1, 3);
    assert_eq!(rig.store_reports().unwrap().phase, AgentPhase::Exited);

    let mut rig = ready();
    rig.control.refused = Some(RefusedOffer { offer: 1, reason: "fenced".to_owned() });
    rig.hear_soon();
    let report = rig.store_reports().unwrap();
    assert_eq!((report.phase, report.offer), (AgentPhase::Exited, None));
    assert!(report.warnings[0].contains("fenced"));

    let mut rig = ready();
    rig.pass(seconds(599));
    assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
    rig.pass(seconds(2));
    let report = rig.store_reports().unwrap();
    assert_eq!(report.phase, AgentPhase::Exited);
    assert!(report.offer.is_some(), "the operator may come back and find it");
}

#[test]
fn a_signal_to_the_agent_stops_reports_and_leaves() {
    let leave = |rig: &mut Rig| {
        rig.take(|action| match action {
            Action::Leave { code } => Some(*code),
            _ => None,
        })
    };
    let mut rig = Rig::running();
    rig.give(Input::Signalled);
    assert_eq!(rig.signals(), [ProgramSignal::Terminate]);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    assert!(leave(&mut rig).is_empty(), "not before the report is stored");
    rig.store_reports();
    assert_eq!(leave(&mut rig), [143]);

    let mut rig = Rig::running();
    rig.give(Input::Signalled);
    rig.signals();
    rig.give(Input::Signalled);
    assert_eq!(rig.signals(), [ProgramSignal::Kill]);
    assert_eq!(leave(&mut rig), [143]);

    let mut rig = Rig::new();
    rig.give(Input::Signalled);
    assert_eq!(leave(&mut rig), [143], "nothing has begun");
}

#[test]
fn log_segments_grow_close_and_are_written_again_after_a_failure() {
    let mut rig = Rig::running();
    rig.control.logs = (0..2).map(|slot| ticket(&format!("log-{slot}"))).collect();
    rig.hear_soon();
    let writes = |rig: &mut Rig| {
        rig.take(|action| match action {
            Action::WriteLog { segment, ticket, body } => Some((*segment, ticket.url.clone(), body.len())),
            _ => None,
        })
    };
    rig.give(Input::Output(b"one\n".to_vec()));
    let first = writes(&mut rig);
    assert_eq!((first[0].0, &first[0].1), (0, &ticket("log-0").url));
    rig.give(Input::Output(b"two\n".to_vec()));
    rig.give(Input::LogWritten { segment: 0, stored: false });
    assert!(writes(&mut rig).is_empty());
    rig.pass(seconds(5));
    let again = writes(&mut rig);
    assert_eq!((again[0].0, again[0].2), (0, first[0].2 + 4));
    rig.give(Input::LogWritten { segment: 0, stored: true });
    assert_eq!(rig.logic.report().log_segments, 1);
    // Three segments at once: the first of them is written at once, and the ring goes round.
    let line = [&[b'x'; 1023][..], b"\n"].concat();
    rig.give(Input::Output(line.repeat(300)));
    let mut numbers = Vec::new();
    for _ in 0..10 {
        for (segment, url, _) in writes(&mut rig) {
            assert_eq!(url, ticket(&format!("log-{}", segment % 2)).url);
            numbers.push(segment);
            rig.give(Input::LogWritten { segment, stored: true });
        }
        rig.pass(seconds(5));
    }
    assert_eq!(numbers, [1, 2], "what the ring would overwrite at once is not written");
    assert_eq!(rig.logic.report().log_segments, 3);
}

#[test]
fn the_agents_own_fault_is_reported_and_ends_the_program() {
    let mut rig = Rig::running();
    rig.give(Input::Broken { reason: "a fault".to_owned() });
    assert_eq!(rig.signals(), [ProgramSignal::Kill]);
    let report = rig.store_reports().unwrap();
    assert_eq!(report.phase, AgentPhase::Failed);
    assert!(report.warnings[0].contains("a fault"));
}

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
