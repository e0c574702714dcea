//! The dead man's switch.

use super::*;

/// Lets time pass without a word of the operator. Every poll finds the document that is known.
fn unheard(rig: &mut Rig, time: Duration) {
    let end = rig.monotonic + time;
    while rig.monotonic < end {
        let wake = rig.logic.wake().unwrap().max(rig.monotonic + Duration::from_millis(1));
        rig.pass(wake.min(end).saturating_sub(rig.monotonic));
        if rig.took(|action| matches!(action, Action::FetchControl { .. })) {
            rig.give(Input::Control(Fetched::NotModified));
        }
        rig.store_reports();
    }
}

/// A program that runs under a lease of ten minutes, heard just now.
fn leased() -> Rig {
    let mut rig = Rig::running().with_self_end();
    rig.control.lease_s = 600;
    rig.hear_soon();
    rig
}

#[test]
fn a_word_of_the_operator_renews_the_lease_and_an_old_one_does_not() {
    let mut rig = leased();
    for _ in 0..5 {
        unheard(&mut rig, seconds(590));
        assert_eq!(rig.logic.phase(), AgentPhase::Running);
        rig.hear_soon();
    }
    // The same document once more, with another tag, is no word.
    unheard(&mut rig, seconds(300));
    rig.pass(seconds(6));
    assert!(rig.took(|action| matches!(action, Action::FetchControl { .. })));
    let value = Box::new(rig.control.clone());
    rig.give(Input::Control(Fetched::Found { value, etag: Some("other".to_owned()) }));
    unheard(&mut rig, seconds(301));
    assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
    assert!(rig.logic.report().silent);
}

#[test]
fn silence_stops_saves_offers_reports_and_ends_the_rental() {
    let mut rig = leased();
    unheard(&mut rig, seconds(601));
    assert_eq!(rig.signals(), [ProgramSignal::Terminate]);
    unheard(&mut rig, seconds(28));
    assert!(rig.signals().is_empty(), "the grace is the start document's");
    unheard(&mut rig, seconds(3));
    assert_eq!(rig.signals(), [ProgramSignal::Kill]);
    rig.exit(ProgramEnd::Signal(9));
    rig.save(10, &[1]);
    rig.give(Input::ScanFinished);
    rig.store_reports();
    assert_eq!((rig.logic.phase(), rig.rental_ends()), (AgentPhase::Stopping, 0), "a save is on its way");
    rig.upload_all();
    assert_eq!((rig.logic.phase(), rig.rental_ends()), (AgentPhase::Exited, 0), "the offer is not reported yet");
    let report = rig.store_reports().unwrap();
    assert_eq!((report.silent, report.offer.unwrap().number, report.exit.unwrap().code), (true, 1, 143));
    assert_eq!(rig.rental_ends(), 1, "nobody is waited for who would commit it");
    // Again and again, ever more slowly, until it is granted.
    let mut asked = Vec::new();
    for _ in 0..12 {
        let before = rig.monotonic;
        rig.give(Input::RentalEnded { failure: Some("the provider answered 500".to_owned()) });
        while rig.rental_ends() == 0 {
            unheard(&mut rig, seconds(1));
        }
        asked.push(rig.monotonic.saturating_sub(before).as_secs());
    }
    assert_eq!((asked[0], asked[1], asked[11]), (5, 10, 300), "{asked:?}");
    assert!(rig.logic.report().warnings.iter().any(|warning| warning.contains("500")));
    rig.give(Input::RentalEnded { failure: None });
    unheard(&mut rig, seconds(5_000));
    assert_eq!(rig.rental_ends(), 0);
}

#[test]
fn the_rental_is_ended_wherever_the_agent_is() {
    let restoring = || {
        let mut start = Rig::start_document();
        start.restore = vec![candidate(9, 90)];
        let mut rig = Rig::waiting().ordered(start);
        rig.store_reports();
        rig
    };
    let ended = || {
        let mut rig = Rig::running();
        rig.exit(ProgramEnd::Code(7));
        rig.give(Input::ScanFinished);
        rig.store_reports();
        rig
    };
    let broken = || {
        let mut rig = Rig::running();
        rig.give(Input::Broken { reason: "a fault".to_owned() });
        rig
    };
    let rebooted = || {
        let mut rig = Rig::new();
        rig.hear();
        let mut earlier = rig.logic.report();
        (earlier.boot, earlier.phase) = ("boot-0".to_owned(), AgentPhase::Running);
        rig.give(Input::OwnReport(Fetched::Found { value: Box::new(earlier), etag: None }));
        rig
    };
    type Case = (&'static str, fn() -> Rig, AgentPhase, Option<i32>);
    let table: [Case; 5] = [
        ("waiting", Rig::waiting, AgentPhase::Exited, Some(143)),
        ("restoring", restoring, AgentPhase::Exited, Some(143)),
        ("ended", ended, AgentPhase::Exited, Some(7)),
        ("broken", broken, AgentPhase::Failed, None),
        ("rebooted", rebooted, AgentPhase::Failed, None),
    ];
    for (what, rig, phase, code) in table {
        let mut rig = rig().with_self_end();
        rig.control.lease_s = 600;
        rig.hear_soon();
        unheard(&mut rig, seconds(599));
        assert_eq!((rig.rental_ends(), rig.logic.report().silent), (0, false), "{what}");
        unheard(&mut rig, seconds(2));
        let report = rig.logic.stored_report().unwrap().clone();
        assert_eq!((report.phase, report.silent), (phase, true), "{what}");
        assert_eq!(report.exit.map(|exit| exit.code), code, "{what}");
        assert_eq!(rig.rental_ends(), 1, "{what}");
        assert!(!rig.took(|action| matches!(action, Action::StartProgram(_))), "{what}");
    }
}

#[test]
fn a_store_that_is_away_delays_the_end_of_the_rental_only_for_so_long() {
    // Before the own report is known.
    let mut rig = Rig::new().with_self_end();
    rig.control.lease_s = 600;
    rig.hear();
    rig.pass(seconds(600));
    rig.pass(seconds(599));
    assert_eq!(rig.rental_ends(), 0);
    rig.pass(seconds(2));
    assert_eq!(rig.rental_ends(), 1);

    // After the end of the program.
    let mut rig = leased();
    unheard(&mut rig, seconds(601));
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    assert_eq!(rig.logic.phase(), AgentPhase::Exited);
    rig.pass(seconds(590));
    assert_eq!(rig.rental_ends(), 0);
    rig.pass(seconds(20));
    assert_eq!(rig.rental_ends(), 1);

    // A save that cannot be brought home, because nobody gives slots any more.
    let mut rig = leased();
    unheard(&mut rig, seconds(601));
    rig.exit(ProgramEnd::Code(0));
    rig.save(10, &(0..101).collect::<Vec<_>>());
    rig.give(Input::ScanFinished);
    rig.upload_all();
    unheard(&mut rig, seconds(599));
    assert_eq!(rig.rental_ends(), 0);
    unheard(&mut rig, seconds(10));
    assert_eq!(rig.rental_ends(), 1);

    // A program that no signal ends.
    let mut rig = leased();
    unheard(&mut rig, seconds(601));
    unheard(&mut rig, seconds(30 + 598));
    assert_eq!(rig.rental_ends(), 0);
    unheard(&mut rig, seconds(3));
    assert_eq!(rig.rental_ends(), 1);
}

#[test]
fn nothing_is_begun_again_by_an_operator_that_comes_back() {
    let mut rig = leased();
    unheard(&mut rig, seconds(601));
    rig.hear_soon();
    assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    rig.control.attempt = 2;
    rig.control.start = Some(ticket("start-2"));
    rig.hear_soon();
    let report = rig.store_reports().unwrap();
    assert_eq!((report.attempt, report.silent), (Some(1), true));
    assert_eq!(rig.rental_ends(), 1, "the end goes on");
    assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. } | Action::StartProgram(_))));
}

#[test]
fn a_machine_that_cannot_end_its_rental_stops_all_the_same() {
    let mut rig = Rig::running();
    rig.control.lease_s = 600;
    rig.hear_soon();
    unheard(&mut rig, seconds(601));
    assert_eq!(rig.signals(), [ProgramSignal::Terminate]);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    let report = rig.store_reports().unwrap();
    assert!(report.silent && report.warnings[0].contains("no way"), "{:?}", report.warnings);
    unheard(&mut rig, seconds(5_000));
    assert_eq!(rig.rental_ends(), 0);
    // An operator that comes back with a way to end it is followed.
    let mut rig = rig.with_self_end();
    rig.hear_soon();
    assert_eq!(rig.rental_ends(), 1);
}

#[test]
fn a_boot_after_a_silent_one_ends_the_rental_without_another_lease() {
    let mut rig = Rig::new().with_self_end();
    rig.hear();
    let mut earlier = rig.logic.report();
    (earlier.boot, earlier.phase, earlier.silent) = ("boot-0".to_owned(), AgentPhase::Stopping, true);
    rig.give(Input::OwnReport(Fetched::Found { value: Box::new(earlier), etag: None }));
    let report = rig.store_reports().unwrap();
    assert!(report.silent && report.restarted);
    assert_eq!(rig.rental_ends(), 1);
}

#[test]
fn while_the_operator_is_away_slots_for_the_last_save_are_kept_back() {
    let mut rig = Rig::running_with(8);
    // Nobody answers any offer. Two pieces each: the first three leave two for the last.
    rig.save(10, &[1, 2]);
    assert_eq!(rig.upload_all().len(), 2);
    unheard(&mut rig, seconds(61));
    rig.save(20, &[3, 4]);
    assert_eq!(rig.upload_all().len(), 2);
    unheard(&mut rig, seconds(61));
    rig.save(30, &[5, 6]);
    assert_eq!(rig.upload_all().len(), 2);
    unheard(&mut rig, seconds(61));
    rig.save(40, &[7, 8]);
    assert!(rig.upload_all().is_empty(), "two slots are left, for the last save");
    rig.save(50, &[9, 10]);
    assert!(rig.upload_all().is_empty());
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    assert_eq!(rig.upload_all(), [6, 7]);
    let report = rig.store_reports().unwrap();
    assert_eq!(report.offer.unwrap().manifest.step, 50, "the newest one took the place of the one before");
}

#[test]
fn saves_go_on_once_the_operator_is_back() {
    let mut rig = Rig::running_with(4);
    rig.save(10, &[1, 2]);
    assert_eq!(rig.upload_all().len(), 2);
    unheard(&mut rig, seconds(61));
    rig.save(20, &[3, 4]);
    assert!(rig.upload_all().is_empty());
    rig.commit(1, 5);
    assert_eq!(rig.upload_all(), [2, 3], "an answer says that there will be more slots");
}

#[test]
fn what_was_held_back_does_not_take_the_slots_of_the_save_that_follows_the_stop() {
    let mut rig = Rig::running_with(4);
    rig.control.lease_s = 600;
    rig.hear_soon();
    rig.save(10, &[1, 2]);
    assert_eq!(rig.upload_all().len(), 2);
    unheard(&mut rig, seconds(61));
    rig.save(20, &[3, 4]);
    assert!(rig.upload_all().is_empty(), "two slots are left, for the last save");
    unheard(&mut rig, seconds(560));
    assert_eq!(rig.logic.phase(), AgentPhase::Stopping);
    assert!(rig.upload_all().is_empty(), "the program may still save");
    rig.save(30, &[5, 6]);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    assert_eq!(rig.upload_all(), [2, 3]);
    assert_eq!(rig.store_reports().unwrap().offer.unwrap().manifest.step, 30);
}
