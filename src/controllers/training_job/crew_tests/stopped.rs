//! Programs that were told to stop by a kubelet: for their node's sake, or for their own.

use tradewind_protocol::Exit;

use super::*;

/// The agent says that its program was told to stop.
fn told_to_stop(play: &mut Play, rank: usize) {
    play.says(rank, "Exited");
    let at = play.o.now;
    let exit = Exit { code: 143, told_to_stop: true, at, log_tail: String::new(), oom_killed: None };
    play.o.views[rank].as_mut().unwrap().agent.as_mut().unwrap().exit = Some(exit);
}

/// Several workers whose kubelets look whether their programs live.
fn probed(workers: i64) -> Play {
    let mut play = Play::gang(workers);
    let mut job = (*play.o.job).clone();
    job.spec.template["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["true"]}});
    play.o.job = Arc::new(job);
    play
}

/// How a worker's Pod ended that was told to stop: reason and message of the attempt's end, and whether it counts.
fn end(reason: &str, message: &str) -> (String, String, bool) {
    let mut play = probed(2);
    play.all_run();
    told_to_stop(&mut play, 1);
    assert!(play.look().status.ending.is_none(), "its Pod has not said why yet");
    let mut status = exited(143);
    if !reason.is_empty() {
        (status["reason"], status["message"]) = (reason.into(), message.into());
    }
    play.pod(1, Some("gpu-1"), &status);
    let ending = play.look().status.ending.unwrap();
    play.all_gone();
    let next = play.look().status;
    assert_eq!(next.restarts + next.preemptions, 1, "{reason}");
    (ending.reason, ending.message, next.restarts == 1)
}

#[test]
fn a_program_that_its_kubelet_kills_for_its_own_sake_has_failed() {
    let limit = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\". ";
    for (reason, message, said) in [
        ("", "", "was killed by the kubelet, as a failing liveness probe does"),
        (
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
            "was stopped by the kubelet (DeadlineExceeded)",
        ),
        ("Evicted", limit, "was stopped by the kubelet (Evicted: Usage of EmptyDir volume"),
    ] {
        let (ended, told, counts) = end(reason, message);
        assert_eq!((ended.as_str(), counts), ("ProgramFailed", true), "{reason}: {told}");
        assert!(told.contains(said), "{reason}: {told}");
    }
}

#[test]
fn a_program_that_is_stopped_for_its_nodes_sake_is_disrupted() {
    for reason in
        ["Evicted", "NodeShutdown", "Terminated", "NodeLost", "NodeAffinity", "Preempting", "UnexpectedAdmissionError"]
    {
        let (ended, told, counts) = end(reason, "The node was low on resource: memory. ");
        assert_eq!((ended.as_str(), counts), ("Disrupted", false), "{reason}: {told}");
        assert!(told.contains(reason) && told.contains("low on resource"), "{told}");
    }
}

#[test]
fn a_pod_that_its_node_ends_is_disrupted_without_an_agent_too() {
    for (reason, counts) in [("NodeShutdown", false), ("DeadlineExceeded", true)] {
        let mut play = Play::new(&json!({}));
        play.look();
        let mut status = exited(0);
        (status["phase"], status["reason"]) = ("Failed".into(), reason.into());
        play.pod(0, Some("gpu-0"), &status);
        let next = play.look().status;
        assert_eq!((next.restarts, next.preemptions), (i64::from(counts), i64::from(!counts)), "{reason}");
        assert_eq!(next.phase, JobPhase::Resuming, "{reason}: it was stopped, whatever its program said");
    }
}

#[test]
fn a_container_that_its_node_lost_did_not_fail() {
    for (reason, code, counts) in
        [("ContainerStatusUnknown", 137, false), ("Unknown", 255, false), ("Error", 137, true)]
    {
        let mut play = probed(2);
        play.all_run();
        told_to_stop(&mut play, 1);
        let mut status = exited(code);
        status["containerStatuses"][0]["state"]["terminated"]["reason"] = reason.into();
        play.pod(1, Some("gpu-1"), &status);
        play.look();
        play.all_gone();
        let next = play.look().status;
        assert_eq!((next.restarts, next.preemptions), (i64::from(counts), i64::from(!counts)), "{reason}");
    }
}

#[test]
fn a_node_that_restarts_without_a_word_costs_no_restart() {
    let mut play = Play::gang(2);
    play.all_run();
    told_to_stop(&mut play, 1);
    play.pod(1, Some("gpu-1"), &exited(143));
    assert_eq!(play.look().status.ending.unwrap().reason, "Disrupted", "no probe could have killed it");
    play.all_gone();
    let next = play.look().status;
    assert_eq!((next.restarts, next.preemptions), (0, 1));
}

#[test]
fn a_probe_that_always_fails_ends_the_job_in_the_end() {
    let mut play = probed(1);
    for _ in 0..40 {
        if play.status().phase == JobPhase::Failed {
            break;
        }
        play.pod(0, Some("gpu-0"), &json!({"phase": "Running"}));
        told_to_stop(&mut play, 0);
        play.pod(0, Some("gpu-0"), &exited(143));
        play.look();
        play.all_gone();
        play.look();
        play.o.views.clear();
    }
    assert_eq!((play.status().phase, play.reason("Failed")), (JobPhase::Failed, "TooManyRestarts"));
}

#[test]
fn a_pod_that_is_deleted_or_gone_was_no_failure_of_its_program() {
    for gone in [false, true] {
        let mut play = Play::gang(2);
        play.all_run();
        told_to_stop(&mut play, 1);
        let going = json!({"deletionTimestamp": "2026-01-01T00:02:00Z"});
        play.change(1, Some("gpu-1"), &exited(143), &going, &json!({}));
        if gone {
            play.o.pods.retain(|pod| pod.metadata.name.as_deref() != Some("j-0-1"));
        }
        play.look();
        play.all_gone();
        let next = play.look().status;
        assert_eq!((next.attempt, next.restarts), (Some(1), 0), "gone: {gone}");
    }
}
