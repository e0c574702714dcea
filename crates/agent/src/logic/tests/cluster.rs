//! In a Pod of the cluster.

use super::*;

pub fn pod() -> InCluster {
    let program = ["train", "--home=$HOME", "$(NOT_MINE)"].map(ToOwned::to_owned).to_vec();
    InCluster { program, address: Some([10, 1, 2, 3].into()), warnings: vec![] }
}

fn waiting() -> Rig {
    Rig::of(Some(pod())).booted()
}

/// What the program is started with, once everything before is done.
fn launched(mut rig: Rig) -> (Rig, Launch) {
    rig.give_slots(0, 10);
    rig.store_reports();
    for seq in rig.take(|action| match action {
        Action::Restore { candidate, .. } => Some(candidate.seq),
        _ => None,
    }) {
        rig.give(Input::Restored { seq, result: Restore::Done { path: "/ckpt/step-9".to_owned() } });
    }
    let launch = rig.take(|action| match action {
        Action::StartProgram(launch) => Some((**launch).clone()),
        _ => None,
    });
    rig.store_reports();
    (rig, launch.into_iter().next().unwrap())
}

fn running() -> Rig {
    launched(waiting().ordered(Rig::start_document())).0
}

fn left(rig: &mut Rig) -> Vec<(i32, Option<String>)> {
    rig.take(|action| match action {
        Action::Leave { code, why } => Some((*code, why.clone())),
        _ => None,
    })
}

#[test]
fn the_containers_own_program_runs_as_the_kubelet_wrote_it() {
    let (_, launch) = launched(waiting().ordered(Rig::start_document()));
    let words = |launch: &Launch| -> Vec<String> {
        launch.command.iter().map(|word| tradewind_protocol::expand(word, |_| Some("replaced"))).collect()
    };
    assert_eq!(words(&launch), ["train", "--home=$HOME", "$(NOT_MINE)"], "not the start document's");
    assert!(!launch.env.contains_key("TRADEWIND_RESUME_STEP"));

    let mut start = Rig::start_document();
    start.env.insert("RANK".to_owned(), "3".to_owned());
    start.checkpoint.as_mut().unwrap().resume_args = vec!["--from=$(TRADEWIND_RESUME_PATH)".to_owned()];
    start.restore = vec![candidate(9, 90)];
    let (rig, launch) = launched(waiting().ordered(start));
    assert_eq!(words(&launch)[3..], ["--from=replaced"]);
    assert_eq!((launch.env["RANK"].as_str(), launch.env["TRADEWIND_RESUME_STEP"].as_str()), ("3", "90"));
    assert_eq!(rig.logic.report().address, Some([10, 1, 2, 3].into()));
}

#[test]
fn a_pod_is_left_with_the_programs_code_once_the_end_is_reported() {
    for (end, code) in [(ProgramEnd::Code(0), 0), (ProgramEnd::Code(3), 3), (ProgramEnd::Signal(9), 137)] {
        let mut rig = running();
        rig.exit(end);
        rig.give(Input::ScanFinished);
        assert!(left(&mut rig).is_empty(), "not before the report is stored");
        let report = rig.store_reports().unwrap();
        assert_eq!((report.phase, report.exit.unwrap().code), (AgentPhase::Exited, code));
        assert_eq!(left(&mut rig), [(code, None)]);
        rig.pass(seconds(600));
        assert!(left(&mut rig).is_empty(), "once");
    }
}

#[test]
fn the_last_save_is_offered_first_and_its_commit_not_waited_for() {
    let mut rig = running();
    rig.save(5, &[1, 2]);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    rig.store_reports();
    assert!(left(&mut rig).is_empty(), "its pieces are on their way");
    rig.upload_all();
    let report = rig.store_reports().unwrap();
    assert_eq!((report.phase, report.offer.unwrap().manifest.step), (AgentPhase::Exited, 5));
    assert_eq!(left(&mut rig), [(0, None)]);
}

#[test]
fn a_pod_that_is_told_to_stop_is_left_with_143() {
    let mut rig = running();
    rig.give(Input::Signalled);
    assert_eq!(rig.signals(), [ProgramSignal::Terminate]);
    rig.give(Input::Signalled);
    assert!(rig.signals().is_empty() && left(&mut rig).is_empty(), "the kubelet may say it twice");
    rig.save(5, &[1]);
    rig.exit(ProgramEnd::Code(0));
    rig.give(Input::ScanFinished);
    rig.upload_all();
    let report = rig.store_reports().unwrap();
    assert!(report.offer.is_some() && report.exit.unwrap().told_to_stop);
    assert_eq!(left(&mut rig), [(143, None)]);

    // One that does not listen is killed when its grace is over.
    let mut rig = running();
    rig.give(Input::Signalled);
    rig.signals();
    rig.pass(seconds(30));
    assert_eq!(rig.signals(), [ProgramSignal::Kill]);

    let mut rig = waiting();
    rig.give(Input::Signalled);
    assert_eq!(rig.store_reports().unwrap().phase, AgentPhase::Exited);
    assert_eq!(left(&mut rig), [(143, None)], "nothing has begun");
    let mut rig = Rig::of(Some(pod()));
    rig.give(Input::Signalled);
    assert_eq!(left(&mut rig)[0].0, 143, "nobody has answered yet");
}

#[test]
fn a_store_that_is_away_is_not_waited_for_for_ever() {
    let mut rig = running();
    rig.exit(ProgramEnd::Code(3));
    rig.give(Input::ScanFinished);
    let fail = |rig: &mut Rig| {
        let reports = rig.take(|action| match action {
            Action::WriteReport { report, .. } => Some(report.sequence),
            _ => None,
        });
        for sequence in reports {
            rig.give(Input::ReportWritten { sequence, failure: Some("away".to_owned()) });
        }
    };
    for _ in 0..59 {
        fail(&mut rig);
        rig.pass(seconds(1));
        assert!(left(&mut rig).is_empty());
    }
    let wake = rig.logic.wake().unwrap();
    assert!(wake <= rig.monotonic + seconds(1), "it wakes by itself");
    rig.pass(seconds(1));
    let (code, why) = left(&mut rig).remove(0);
    assert!(code == 3 && why.unwrap().contains("could not be stored in time"));
}

#[test]
fn an_agent_that_cannot_go_on_says_so() {
    let mut rig = running();
    rig.give(Input::Broken { reason: "no more memory".to_owned() });
    assert!(left(&mut rig).is_empty());
    assert_eq!(rig.store_reports().unwrap().phase, AgentPhase::Failed);
    assert_eq!(left(&mut rig), [(CANNOT_GO_ON, Some("The agent cannot go on: no more memory".to_owned()))]);
}

#[test]
fn a_pod_serves_one_attempt_and_is_never_begun_again() {
    let mut rig = running();
    rig.exit(ProgramEnd::Code(1));
    rig.give(Input::ScanFinished);
    // The end is not reported yet when the order for another attempt comes.
    rig.control.attempt = 2;
    rig.hear_soon();
    assert!(!rig.took(|action| matches!(action, Action::FetchStart { .. })));
    rig.store_reports();
    assert_eq!(left(&mut rig)[0].0, 1);

    let earlier = running().logic.report();
    let mut rig = Rig::of(Some(pod()));
    rig.hear();
    rig.give(Input::OwnReport(Fetched::Found {
        value: Box::new(Report { boot: "boot-0".to_owned(), ..earlier }),
        etag: None,
    }));
    let report = rig.store_reports().unwrap();
    assert!(report.restarted && report.phase == AgentPhase::Failed);
    let (code, why) = left(&mut rig).remove(0);
    assert!(code == CANNOT_GO_ON && why.unwrap().contains("started again"));
}

#[test]
fn what_is_wrong_with_a_pod_is_in_its_reports() {
    let mut rig = Rig::of(Some(InCluster { address: None, warnings: vec!["bad address".to_owned()], ..pod() }));
    rig.hear();
    rig.give(Input::OwnReport(Fetched::Absent));
    let report = rig.store_reports().unwrap();
    assert_eq!((report.address, report.warnings), (None, vec!["bad address".to_owned()]));
}
