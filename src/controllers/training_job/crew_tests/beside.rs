//! Pods with containers beside the program, whose end is that of the template's first container.

use super::*;

/// The status of one container.
fn container(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

/// A Pod of the program `train` and a sidecar `metrics`, as a kubelet shows it: by name.
fn two(play: &mut Play, rank: i64, phase: &str, train: &Value, metrics: &Value) {
    let statuses = json!([container("metrics", metrics), container("train", train)]);
    let spec = json!({"containers": [{"name": "train"}, {"name": "metrics"}]});
    let status = json!({"phase": phase, "containerStatuses": statuses});
    play.change(rank, Some("gpu-1"), &status, &json!({}), &spec);
}

fn ended(code: i32) -> Value {
    json!({"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}})
}

fn runs() -> Value {
    json!({"running": {}})
}

#[test]
fn the_program_has_ended_although_a_sidecar_goes_on() {
    let mut play = Play::gang(1);
    play.all_run();
    two(&mut play, 0, "Running", &ended(0), &runs());
    play.says(0, "Exited");
    let told = play.look();
    assert_eq!(told.step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    assert_eq!(told.status.ending.unwrap().reason, "Finished");
    let view = play.o.views[0].clone();
    play.all_gone();
    play.o.views[0] = view;
    assert_ne!(play.look().status.phase, JobPhase::Complete, "the last checkpoint may not be committed yet");
    play.all_gone();
    let done = play.look().status;
    assert_eq!((done.phase, done.restarts, done.preemptions), (JobPhase::Complete, 0, 0));
}

#[test]
fn without_an_agent_too_the_end_of_the_program_is_the_end() {
    let mut play = Play::new(&json!({}));
    play.look();
    two(&mut play, 0, "Running", &runs(), &ended(0));
    assert_eq!(play.look().status.phase, JobPhase::Running, "only a sidecar has ended");
    two(&mut play, 0, "Running", &ended(0), &runs());
    assert_eq!(play.look().step, Step::Rest, "its node may be ending both, and has not said so yet");
    assert_eq!(play.after(Duration::from_mins(1)).step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    play.all_gone();
    assert_eq!(play.look().status.phase, JobPhase::Complete);
}

#[test]
fn a_program_that_obeys_its_node_without_an_agent_has_not_finished() {
    let mut play = Play::new(&json!({}));
    play.look();
    two(&mut play, 0, "Running", &ended(0), &runs());
    play.look();
    play.pod(0, Some("gpu-1"), &disrupted("Failed", "TerminationByKubelet"));
    assert_eq!(play.look().status.preemptions, 1);
}

#[test]
fn what_a_sidecar_comes_to_says_nothing_of_the_program() {
    let mut play = Play::new(&json!({}));
    play.look();
    two(&mut play, 0, "Failed", &ended(0), &ended(1));
    assert_eq!(play.look().status.phase, JobPhase::Complete);

    let mut play = Play::new(&json!({"failurePolicy": {"rules": [{"exitCodes": [3], "action": "Fail"}]}}));
    play.look();
    two(&mut play, 0, "Running", &ended(3), &runs());
    play.look();
    let failed = play.after(Duration::from_mins(1));
    assert_eq!(failed.step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    assert_eq!(failed.status.ending.unwrap().exit_code, Some(3));
    play.all_gone();
    assert_eq!((play.look().status.phase, play.reason("Failed")), (JobPhase::Failed, "ProgramFailed"));
}

#[test]
fn a_worker_that_is_done_waits_for_the_others_whatever_is_beside_it() {
    let mut play = Play::gang(2);
    play.all_run();
    two(&mut play, 0, "Running", &ended(0), &runs());
    play.says(0, "Exited");
    let waits = play.look();
    assert_eq!((waits.status.phase, waits.step), (JobPhase::Running, Step::Rest));
    two(&mut play, 1, "Running", &ended(0), &runs());
    assert_eq!(play.look().status.ending.unwrap().reason, "Finished");
}

#[test]
fn a_program_that_was_killed_beside_a_sidecar_is_judged_once_its_pod_has_had_its_time_to_end() {
    let mut play = Play::gang(1);
    play.all_run();
    two(&mut play, 0, "Running", &ended(143), &runs());
    play.says(0, "Exited");
    let waits = play.look();
    assert!(waits.status.ending.is_none(), "its Pod may be evicted: it will say so");
    assert!(matches!(waits.wake, crate::runtime::Wake::After(..)), "{:?}", waits.wake);
    let status = disrupted("Failed", "TerminationByKubelet");
    let mut evicted = Play::gang(1);
    evicted.all_run();
    two(&mut evicted, 0, "Running", &ended(143), &runs());
    evicted.look();
    evicted.pod(0, Some("gpu-1"), &status);
    assert_eq!(evicted.look().status.ending.unwrap().reason, "Disrupted");

    let over = play.after(Duration::from_mins(3)).status.ending.unwrap();
    assert_eq!((over.reason.as_str(), over.exit_code), ("ProgramFailed", Some(143)));
}
