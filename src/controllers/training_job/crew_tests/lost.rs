//! Workers that are lost with their Pods, their nodes or their agents.

use super::super::ending;
use super::*;

#[test]
fn pods_on_a_node_that_never_answers_are_not_waited_for_for_ever() {
    let mut play = Play::gang(2);
    play.all_run();
    play.change(
        1,
        Some("gpu-1"),
        &disrupted("Running", "DeletionByTaintManager"),
        &json!({"deletionTimestamp": "2026-01-01T00:00:30Z"}),
        &json!({}),
    );
    play.look();
    play.o.pods.retain(|pod| pod.metadata.name.as_deref() != Some("j-0-0"));
    play.o.views.iter_mut().flatten().for_each(|view| view.last_report_read = true);
    assert_eq!(play.after(Duration::from_secs(40)).status.attempt, Some(0));
    assert_eq!(play.after(Duration::from_secs(10)).status.attempt, Some(1));
}

#[test]
fn a_pod_of_which_neither_node_nor_agent_answers_is_not_waited_for() {
    for (what, dead, mute, waits) in [
        ("a dead node", true, true, false),
        ("the node is cut off, and the agent still saves", true, false, true),
        ("the node is well, and the agent may be busy", false, true, true),
    ] {
        let mut play = Play::gang(2);
        play.all_run();
        let grace = json!({"deletionTimestamp": "2026-01-01T00:10:00Z"});
        play.change(1, Some("gpu-1"), &disrupted("Running", "DeletionByTaintManager"), &grace, &json!({}));
        play.look();
        play.o.pods.retain(|pod| pod.metadata.name.as_deref() != Some("j-0-0"));
        play.o.views[0].as_mut().unwrap().last_report_read = true;
        play.o.views[1].as_mut().unwrap().heard_at = Some(play.o.now);
        play.after(Duration::from_secs(20));
        assert!(ending::doubtful_nodes(&play.o, 0).is_empty(), "{what}: no node is read while its agents talk");
        play.o.now = play.o.now.checked_add(Duration::from_secs(20)).unwrap();
        if mute {
            assert!(ending::doubtful_nodes(&play.o, 0).contains("gpu-1"), "{what}");
        } else {
            play.o.views[1].as_mut().unwrap().heard_at = Some(play.o.now);
        }
        play.o.dead_nodes = dead.then(|| "gpu-1".to_owned()).into_iter().collect();
        assert_eq!(play.look().status.attempt, Some(i64::from(!waits)), "{what}");
    }
}

#[test]
fn a_worker_frozen_with_its_agent_is_replaced_with_the_others_and_counts_as_no_failure() {
    let mut play = Play::gang(2);
    play.all_run();
    play.o.views[1].as_mut().unwrap().silent_for = Some(Duration::from_mins(10));
    let told = play.look();
    assert_eq!(told.status.phase, JobPhase::Checkpointing);
    assert_eq!(told.step, Step::RemovePods(vec!["j-0-0".to_owned(), "j-0-1".to_owned()]));
    let ending = told.status.ending.unwrap();
    assert_eq!(ending.reason, Reason::AgentSilent.as_str());
    assert!(ending.message.contains("Pod j-0-1 on node gpu-1") && ending.message.contains("for 10 min"), "{ending:?}");
    play.all_gone();
    let next = play.look().status;
    let counts = (next.attempt, next.preemptions, next.restarts, next.stalls);
    assert_eq!((counts, next.history[0].ended.as_str()), ((Some(1), 1, 0, 0), "AgentSilent"));
}

#[test]
fn agents_that_fall_silent_each_time_are_tried_more_and_more_rarely() {
    let mut play = Play::gang(2);
    for (attempt, pause_s) in [(0, 0), (1, 40), (2, 80)] {
        play.all_run();
        play.o.views[1].as_mut().unwrap().silent_for = Some(Duration::from_mins(10));
        play.look();
        play.all_gone();
        play.look();
        play.o.views.clear();
        let next = Step::CreatePods { attempt: attempt + 1, ranks: vec![0, 1] };
        if pause_s > 0 {
            let rests = play.after(Duration::from_secs(pause_s - 1));
            assert_eq!((rests.step, play.reason("Placed")), (Step::Rest, "AgentSilent"));
            let words = format!("the agents of the last {} attempts fell silent; it is tried again at", attempt + 1);
            assert!(rests.status.message.starts_with(&words), "{}", rests.status.message);
        }
        assert_eq!(play.after(Duration::from_secs(1)).step, next);
    }
}

#[test]
fn a_pod_that_vanished_was_lost_and_its_number_is_spent() {
    let mut play = Play::gang(2);
    play.all_run();
    play.o.pods.retain(|pod| pod.metadata.name.as_deref() != Some("j-0-1"));
    assert_eq!(play.look().step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    play.all_gone();
    assert_eq!(play.look().status.attempt, Some(1));
}

#[test]
fn last_reports_that_cannot_be_read_do_not_hold_a_job_for_ever() {
    let mut play = Play::gang(2);
    play.all_run();
    play.pod(1, Some("gpu-1"), &exited(1));
    play.look();
    play.o.pods.clear();
    assert_eq!(play.after(Duration::from_mins(14)).status.attempt, Some(0));
    assert_eq!(play.after(Duration::from_mins(2)).status.attempt, Some(1));
}
