//! One attempt after the other on the same machine.

use super::*;

fn start_of(attempt: u32) -> Start {
    Start { attempt, data_prefix: data_prefix(attempt, MACHINE), ..Rig::start_document() }
}

/// A machine whose first attempt has ended with code 3, after a save that was committed.
fn ended() -> Rig {
    let mut rig = Rig::running();
    rig.give(Input::Output(b"step 10/20 loss 1\nboom\n".to_vec()));
    rig.save(10, &[1, 2]);
    rig.upload_all();
    rig.commit(1, 5);
    rig.exit(ProgramEnd::Code(3));
    rig.give(Input::ScanFinished);
    let report = rig.store_reports().unwrap();
    assert_eq!((report.phase, report.attempt), (AgentPhase::Exited, Some(1)));
    rig
}

/// The order to begin attempt `attempt`, as yet without its start document.
fn order(rig: &mut Rig, attempt: u32) {
    rig.control.attempt = attempt;
    rig.control.start = Some(ticket(&format!("start-{attempt}")));
    rig.control.slots = vec![];
    rig.hear_soon();
}

fn give_start(rig: &mut Rig, start: Start) {
    assert!(rig.took(|action| matches!(action, Action::FetchStart { .. })));
    rig.give(Input::Start(Fetched::Found { value: Box::new(start), etag: None }));
}

fn launches(rig: &mut Rig) -> Vec<Launch> {
    rig.take(|action| match action {
        Action::StartProgram(launch) => Some((**launch).clone()),
        _ => None,
    })
}

#[test]
fn the_next_attempt_begins_on_the_same_boot_with_nothing_of_the_one_before() {
    let mut rig = ended();
    let before = rig.logic.stored_report().unwrap().clone();
    order(&mut rig, 2);
    let report = rig.logic.report();
    assert_eq!((report.attempt, report.exit.unwrap().code), (Some(1), 3), "it has not begun");
    give_start(&mut rig, Start { restore: vec![candidate(9, 90)], ..start_of(2) });
    assert!(rig.took(|action| matches!(action, Action::ClearSaves { .. })), "only what is restored is there");
    assert!(!rig.took(|action| matches!(action, Action::Restore { .. })), "not before it is marked");
    let report = rig.store_reports().unwrap();
    assert!(report.sequence > before.sequence);
    assert_eq!((report.attempt, report.phase), (Some(2), AgentPhase::Restoring));
    assert_eq!((report.exit, report.offer, report.progress, report.restore), (None, None, None, None));
    assert_eq!((report.slots_used, report.slots_left, report.warnings.len()), (0, 0, 0));
    assert!(rig.took(|action| matches!(action, Action::Restore { .. })));
    rig.give(Input::Restored { seq: 9, result: Restore::Done { path: "/x/step-90".to_owned() } });
    let launch = launches(&mut rig).remove(0);
    assert_eq!((launch.env["TRADEWIND_ATTEMPT"].as_str(), launch.env["TRADEWIND_RESUME_STEP"].as_str()), ("2", "90"));

    // Its slots begin anew under its own prefix, and its parent is what it was restored from.
    rig.give_slots(0, 10);
    rig.save(100, &[1, 9]);
    assert_eq!(rig.upload_all(), [0], "of the first attempt's chunks none is known, of the restored one's one");
    let offer = rig.store_reports().unwrap().offer.unwrap();
    assert_eq!((offer.number, offer.manifest.attempt, offer.manifest.parent), (2, 2, Some(9)), "offers are counted on");
    let key = &offer.manifest.files[0].chunks[0].key;
    assert_eq!(*key, format!("{}00000000", data_prefix(2, MACHINE)));
    rig.commit(2, 10);
    rig.give(Input::Output(b"fine\n".to_vec()));
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    let report = rig.store_reports().unwrap();
    let exit = report.exit.unwrap();
    assert_eq!((report.attempt, exit.code, exit.log_tail.as_str()), (Some(2), 0, "fine\n"));

    // And once more.
    order(&mut rig, 7);
    give_start(&mut rig, start_of(7));
    rig.store_reports();
    assert_eq!(launches(&mut rig).len(), 1);
    assert_eq!(rig.logic.report().attempt, Some(7));
}

#[test]
fn the_report_of_an_ended_attempt_keeps_its_number_while_the_next_one_waits() {
    let wrong = [start_of(1), start_of(3), Start { boot: "boot-0".to_owned(), ..start_of(2) }];
    for start in wrong {
        let mut rig = ended();
        order(&mut rig, 2);
        give_start(&mut rig, start);
        rig.pass(seconds(20));
        let report = rig.store_reports().unwrap();
        assert_eq!((report.attempt, report.phase), (Some(1), AgentPhase::Exited));
        assert_eq!(report.exit.unwrap().code, 3);
        assert!(rig.took(|action| matches!(action, Action::FetchStart { .. })), "tried again");
        assert!(launches(&mut rig).is_empty());
    }
    // Also where the one before was stopped before anything was fetched for it.
    let mut rig = Rig::waiting();
    rig.control.desired = Desired::Stop { reason: "x".to_owned(), grace_s: 1 };
    rig.hear_soon();
    rig.control.desired = Desired::Run;
    rig.control.start_boot = Some("boot-1".to_owned());
    order(&mut rig, 2);
    let report = rig.store_reports().unwrap();
    assert_eq!((report.attempt, report.exit.unwrap().code), (Some(1), 143));
    give_start(&mut rig, start_of(2));
    rig.store_reports();
    assert_eq!(launches(&mut rig).len(), 1);
}

#[test]
fn no_other_order_begins_a_next_attempt() {
    type Change = fn(&mut Rig);
    let changes: [(&str, Change); 5] = [
        ("the same attempt", |rig| rig.control.attempt = 1),
        ("a lower one", |rig| rig.control.attempt = 0),
        ("a wait", |rig| rig.control.desired = Desired::Wait),
        ("a stop", |rig| rig.control.desired = Desired::Stop { reason: "x".to_owned(), grace_s: 1 }),
        ("another boot", |rig| rig.control.start_boot = Some("boot-0".to_owned())),
    ];
    for (what, change) in changes {
        let mut rig = ended();
        rig.control.attempt = 2;
        change(&mut rig);
        rig.hear_soon();
        assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. })), "{what}");
        assert_eq!(rig.logic.report().attempt, Some(1), "{what}");
    }
    // The order was taken back while the document was on its way.
    let mut rig = ended();
    order(&mut rig, 2);
    rig.control.desired = Desired::Wait;
    rig.hear_soon();
    give_start(&mut rig, start_of(2));
    rig.store_reports();
    assert!(launches(&mut rig).is_empty());
    assert_eq!((rig.logic.report().attempt, rig.logic.report().warnings.len()), (Some(1), 0));
    // A program that still runs is not disturbed.
    let mut rig = Rig::running();
    order(&mut rig, 2);
    assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. })));
    assert_eq!((rig.logic.report().attempt, rig.logic.phase()), (Some(1), AgentPhase::Running));
}

#[test]
fn the_next_attempt_starts_only_after_a_report_of_its_own_is_stored() {
    let mut rig = ended();
    order(&mut rig, 2);
    give_start(&mut rig, start_of(2));
    let reports = rig.take(|action| match action {
        Action::WriteReport { report, .. } => Some((**report).clone()),
        _ => None,
    });
    assert_eq!(reports[0].attempt, Some(2));
    rig.give(Input::ReportWritten { sequence: reports[0].sequence, failure: Some("away".to_owned()) });
    rig.pass(Duration::from_millis(400));
    assert!(launches(&mut rig).is_empty(), "a later boot would report the end of attempt 1");
    rig.pass(seconds(1));
    rig.store_reports();
    assert_eq!(launches(&mut rig).len(), 1);
}

#[test]
fn what_the_attempt_before_left_under_way_is_dropped_and_slots_are_not_mixed() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let hanging = rig.uploads();
    rig.save(20, &[2]);
    rig.exit(ProgramEnd::Code(1));
    rig.give(Input::ScanFinished);
    rig.pass(seconds(601));
    assert_eq!(rig.logic.phase(), AgentPhase::Exited, "given up");
    rig.control.slots.push(ticket("slots-2"));
    rig.control.attempt = 2;
    rig.control.start = Some(ticket("start-2"));
    rig.store_reports();
    rig.hear_soon();
    assert!(!rig.took(|action| matches!(action, Action::FetchSlots { .. })), "they are of the next attempt");
    rig.todo.retain(|action| !matches!(action, Action::DropStaging { .. }));
    give_start(&mut rig, start_of(2));
    let dropped = rig.take(|action| match action {
        Action::DropStaging { save } => Some(*save),
        _ => None,
    });
    assert_eq!(dropped, [2, 1]);
    rig.store_reports();
    rig.done(hanging[0].0, hanging[0].1, ChunkOutcome::Stored);
    assert_eq!((rig.logic.report().offer, rig.logic.report().slots_used), (None, 0));
    // The list still names the first attempt's batch.
    let batches = |rig: &mut Rig| {
        rig.take(|action| match action {
            Action::FetchSlots { batch, .. } => Some(batch.clone()),
            _ => None,
        })
    };
    for attempt in [1, 2] {
        let batch = batches(&mut rig).remove(0);
        let puts = vec![ticket("slot"); 3];
        let value = Box::new(SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt, first: 0, puts });
        rig.give(Input::Slots { batch, fetched: Fetched::Found { value, etag: None } });
    }
    let report = rig.logic.report();
    assert_eq!((report.slots_left, report.warnings.len()), (3, 0), "{:?}", report.warnings);
    // Saves are counted on: an answer of before is never taken for one of now.
    rig.save(30, &[3]);
    assert_eq!(rig.uploads()[0].0, 3);
}

#[test]
fn an_attempt_that_never_began_gives_way_to_a_higher_one() {
    let mut rig = Rig::waiting();
    rig.control.start = Some(ticket("start"));
    rig.control.start_boot = Some("boot-1".to_owned());
    rig.hear_soon();
    give_start(&mut rig, start_of(1));
    rig.control.desired = Desired::Run;
    order(&mut rig, 2);
    rig.store_reports();
    assert!(launches(&mut rig).is_empty(), "the document of attempt 1 is out of date");
    assert_eq!((rig.logic.report().attempt, rig.logic.phase()), (Some(2), AgentPhase::Booted));
    give_start(&mut rig, start_of(2));
    rig.store_reports();
    assert_eq!(launches(&mut rig)[0].env["TRADEWIND_ATTEMPT"], "2");
}

#[test]
fn a_later_boot_speaks_of_the_attempt_that_the_earlier_one_spoke_of() {
    for earlier_attempt in [Some(1), None] {
        let mut rig = Rig::new();
        rig.control.attempt = 2;
        rig.hear();
        let mut earlier = rig.logic.report();
        (earlier.boot, earlier.phase, earlier.attempt) = ("boot-0".to_owned(), AgentPhase::Exited, earlier_attempt);
        rig.give(Input::OwnReport(Fetched::Found { value: Box::new(earlier), etag: None }));
        rig.control.attempt = 3;
        rig.control.start = Some(ticket("start-3"));
        rig.control.start_boot = Some("boot-1".to_owned());
        rig.control.desired = Desired::Run;
        rig.store_reports();
        rig.hear_soon();
        assert_eq!(rig.logic.report().attempt, earlier_attempt.or(Some(2)));
        assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. })));
    }
}
