//! From the boot to the end.

use tradewind_protocol::Progress;

use super::*;

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
fn an_unchanged_control_document_is_asked_for_now_and_then_whatever_its_tag() {
    let mut rig = Rig::running();
    let found = |rig: &Rig| Fetched::Found { value: Box::new(rig.control.clone()), etag: Some("tag".to_owned()) };
    rig.pass(seconds(6));
    rig.give(Input::Control(found(&rig)));
    let mut tags: Vec<bool> = Vec::new();
    for _ in 0..14 {
        rig.pass(seconds(6));
        let asked = rig.take(|action| match action {
            Action::FetchControl { etag, .. } => Some(etag.is_some()),
            _ => None,
        });
        tags.extend(asked.last());
        let answer = if asked.last() == Some(&false) { found(&rig) } else { Fetched::NotModified };
        rig.give(Input::Control(answer));
    }
    assert_eq!(tags.iter().filter(|tagged| !**tagged).count(), 1, "{tags:?}");
    assert!(!tags[12] && tags[13], "{tags:?}");
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
            rig.pass(wake.min(end).saturating_sub(rig.monotonic));
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
        (false, ProgramEnd::Code(143), 143, true),
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
            Action::Leave { code, .. } => Some(*code),
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
    assert_eq!((again[0].0, again[0].2), (0, first[0].2 + b"F0 two\n".len()));
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

#[test]
fn only_signs_of_life_end_the_quiet() {
    let progress = Progress { step: 5, total: None, loss: None };
    let signs: [(&str, Input, bool); 6] = [
        ("a tick", Input::Tick, false),
        ("output", Input::Output(b".".to_vec()), true),
        ("progress", Input::Progress(progress.clone()), true),
        ("the same progress again", Input::Progress(progress), false),
        ("a busy GPU", Input::GpuBusy, true),
        ("a log segment stored", Input::LogWritten { segment: 0, stored: true }, false),
    ];
    let mut rig = Rig::running();
    for (what, input, alive) in signs {
        let before = rig.logic.report().quiet_s;
        rig.pass(seconds(70));
        rig.give(input);
        assert_eq!(rig.logic.report().quiet_s, if alive { 0 } else { before + 70 }, "{what}");
    }
    rig.pass(seconds(70));
    rig.save_seen(10, false);
    assert_eq!(rig.logic.report().quiet_s, 0, "a save");
    rig.pass(seconds(70));
    assert_eq!(rig.store_reports().unwrap().quiet_s, 70);
    rig.control.desired = Desired::Stop { reason: "x".to_owned(), grace_s: 600 };
    rig.hear_soon();
    assert_eq!(rig.logic.report().quiet_s, 0, "it is not expected to say anything");
    assert_eq!(Rig::waiting().logic.report().quiet_s, 0);
}

#[test]
fn the_quiet_begins_with_the_program() {
    let mut rig = Rig::waiting();
    rig.pass(seconds(500));
    rig.store_reports();
    let mut rig = rig.ordered(Rig::start_document());
    rig.store_reports();
    rig.pass(seconds(3));
    assert_eq!((rig.logic.phase(), rig.logic.report().quiet_s), (AgentPhase::Running, 3));
}

#[test]
fn kills_for_want_of_memory_are_reported_as_they_were_counted() {
    for oom_killed in [None, Some(false), Some(true)] {
        let mut rig = Rig::running();
        rig.give(Input::ProgramExited { end: ProgramEnd::Signal(9), oom_killed });
        let exit = rig.logic.report().exit.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (137, oom_killed));
    }
}
