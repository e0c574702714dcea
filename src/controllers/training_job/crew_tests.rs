//! Jobs in the cluster, from the first look to the end: Pods and agents are played by hand.

mod beside;
mod gated;
mod lost;
mod stopped;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tradewind_api::training_job::{InCluster, JobPhase};
use tradewind_api::{Reason, TrainingJobStatus, names};
use tradewind_core::{Money, Offer};
use tradewind_planner::CostBreakdown;

use super::decide::{Admission, Step};
use super::placement::{Choice, Rent};
use super::play::{Play, disrupted, exited, unschedulable};
use super::timing::Prospect;
use super::turns::{Standing, Turn};
use super::valid::Refused;
use super::{ending, gang};
use crate::controllers::worker::WorkerView;
use crate::events::Severity;
use crate::test_machine;

#[test]
fn a_gang_runs_once_every_worker_does_and_is_complete_once_every_last_report_is_read() {
    let mut play = Play::gang(3);
    assert_eq!(play.look().step, Step::CreatePods { attempt: 0, ranks: vec![0, 1, 2] });
    for rank in 0..3 {
        play.pod(rank, Some("gpu-1"), &json!({"phase": "Running"}));
    }
    play.says(0, "Booted");
    let started = play.look();
    assert_eq!(started.status.phase, JobPhase::Starting);
    assert!(started.status.message.contains("1 of 3 workers are there"), "{}", started.status.message);
    assert_eq!(play.reason("Ready"), "WaitingForWorkers");
    play.all_run();
    assert_eq!(play.status().workers.as_ref().unwrap().summary, "3/3");
    for rank in 0..3 {
        play.pod(rank, Some("gpu-1"), &exited(0));
    }
    assert_ne!(play.look().status.phase, JobPhase::Complete, "the last checkpoint may not be committed yet");
    play.o.views[0].as_mut().unwrap().last_report_read = true;
    assert_eq!(play.look().status.phase, JobPhase::Complete);
}

#[test]
fn why_an_attempt_ended_is_news_once_and_what_was_said_of_it_does_not_stay() {
    let mut play = Play::gang(2);
    play.all_run();
    assert_eq!(play.reason("Ready"), "Running");
    play.pod(1, Some("gpu-1"), &disrupted("Running", "EvictionByEvictionAPI"));
    play.look();
    play.all_gone();
    let before = play.status().clone();
    play.look();
    let (severity, reason, note) = ending::news(&before, play.status()).unwrap();
    assert_eq!((severity, reason), (Severity::Warning, Reason::Disrupted));
    assert!(note.starts_with("attempt 0 ended: Pod j-0-1 on node gpu-1: it was evicted"), "{note}");
    assert_eq!(ending::news(play.status(), play.status()), None);
    // There is no room for the next one.
    for rank in 0..2 {
        play.pod(rank, None, &unschedulable("2026-01-01T00:00:00Z"));
    }
    let waits = play.look().status;
    assert_eq!((waits.phase, waits.placement), (JobPhase::Waiting, None));
    assert_ne!(play.reason("Ready"), "Running");
}

#[test]
fn one_lost_worker_ends_the_attempt_of_all_and_costs_no_restart() {
    for (what, status) in [
        ("drained", disrupted("Running", "EvictionByEvictionAPI")),
        ("preempted, and its program said 0", disrupted("Succeeded", "PreemptionByScheduler")),
        ("its node died", disrupted("Running", "DeletionByTaintManager")),
    ] {
        let mut play = Play::gang(2);
        play.all_run();
        play.pod(1, Some("gpu-1"), &status);
        // The others fail because one is missing: that is no failure of theirs.
        play.pod(0, Some("gpu-0"), &exited(1));
        let told = play.look();
        assert_eq!(told.status.phase, JobPhase::Checkpointing, "{what}");
        let lives = status["phase"] == "Running";
        assert_eq!(told.step, if lives { Step::RemovePods(vec!["j-0-1".to_owned()]) } else { Step::Rest }, "{what}");
        assert_eq!(play.status().attempt, Some(0), "{what}: the last report first");
        play.all_gone();
        let next = play.look();
        assert_eq!((next.status.attempt, next.status.preemptions, next.status.restarts), (Some(1), 1, 0), "{what}");
        assert_eq!(next.status.history[0].ended, "Disrupted", "{what}");
        assert_eq!(play.reason("Ready"), "Resuming", "{what}: nothing runs");
        play.o.views.clear();
        assert_eq!(play.look().step, Step::CreatePods { attempt: 1, ranks: vec![0, 1] }, "{what}");
    }
}

#[test]
fn a_failing_worker_counts_once_and_all_begin_again() {
    let mut play = Play::gang(2);
    play.all_run();
    play.pod(1, Some("gpu-1"), &exited(1));
    assert_eq!(play.look().step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    play.all_gone();
    let next = play.look();
    assert_eq!((next.status.attempt, next.status.preemptions, next.status.restarts), (Some(1), 0, 1));
}

#[test]
fn half_a_gang_gives_back_what_it_holds_and_leaves_it_to_others_for_a_while() {
    let mut play = Play::gang(2);
    play.pod(0, Some("gpu-0"), &json!({"phase": "Running"}));
    play.pod(1, None, &unschedulable("2026-01-01T00:00:00Z"));
    assert_eq!(gang::standing(&play.o, 0), Some(Standing::Stuck));
    let waits = play.look();
    assert_eq!((waits.status.phase, play.reason("Placed")), (JobPhase::Waiting, "NoPrivateNetwork"));
    assert!(waits.status.message.contains("room for 1 of 2 workers"), "{}", waits.status.message);
    let over = play.after(Duration::from_mins(5));
    assert_eq!(over.step, Step::RemovePods(vec!["j-0-0".to_owned(), "j-0-1".to_owned()]));
    play.all_gone();
    play.says(0, "Booted");
    play.o.views[0].as_mut().unwrap().last_report_read = true;
    let rests = play.look();
    assert_eq!((rests.status.attempt, rests.status.preemptions, rests.status.restarts), (Some(1), 0, 0));
    assert_eq!(play.look().step, Step::Rest);
    assert_eq!(play.reason("Placed"), "GangTimeout");
    assert_eq!(gang::standing(&play.o, 1), None, "it stands in nobody's way");
    assert_eq!(play.after(Duration::from_mins(5)).step, Step::CreatePods { attempt: 1, ranks: vec![0, 1] });
}

#[test]
fn a_gang_that_holds_nothing_and_is_alone_waits_without_a_limit() {
    let mut play = Play::gang(2);
    for rank in 0..2 {
        play.pod(rank, None, &unschedulable("2026-01-01T00:00:00Z"));
    }
    assert_eq!(play.after(Duration::from_hours(5)).step, Step::Rest);
    play.o.others_wait = true;
    assert!(matches!(play.look().step, Step::RemovePods(_)), "but not if others wait behind it");
}

#[test]
fn the_younger_of_two_half_gangs_gives_way() {
    let mut play = Play::gang(2);
    play.pod(0, Some("gpu-0"), &json!({"phase": "Running"}));
    play.pod(1, None, &unschedulable("2026-01-01T00:00:00Z"));
    play.o.turn = Turn::Yield(1);
    assert!(matches!(play.look().step, Step::RemovePods(_)));
    play.all_gone();
    play.says(0, "Booted");
    play.o.views[0].as_mut().unwrap().last_report_read = true;
    let next = play.look();
    assert!(next.status.history.is_empty(), "nothing of it ran");
    play.o.views.clear();
    play.o.turn = Turn::Behind(1);
    assert_eq!((play.look().step, play.reason("Placed")), (Step::Rest, "WaitingForTurn"));
}

#[test]
fn time_behind_a_gate_never_counts() {
    let mut play = Play::gang(2);
    for rank in 0..2 {
        let status = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]});
        play.change(
            rank,
            None,
            &status,
            &json!({}),
            &json!({"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}),
        );
    }
    assert_eq!(play.after(Duration::from_hours(9)).step, Step::Rest);
    assert_eq!(play.reason("Placed"), "Gated");
    assert!(play.status().message.contains("kueue.x-k8s.io/admission"));
}

#[test]
fn a_gang_hangs_only_if_all_of_it_does() {
    let mut play = Play::gang(2);
    play.all_run();
    let quiet = |play: &mut Play, rank: usize, seconds| {
        play.o.views[rank].as_mut().unwrap().agent.as_mut().unwrap().quiet_s = seconds;
    };
    quiet(&mut play, 0, 3600);
    assert_eq!(play.look().step, Step::Rest);
    quiet(&mut play, 1, 1800);
    assert!(matches!(play.look().step, Step::RemovePods(_)));
    play.all_gone();
    let next = play.look();
    assert_eq!((next.status.stalls, next.status.restarts, next.status.attempt), (1, 0, Some(1)));
}

#[test]
fn a_suspended_gang_stops_with_a_checkpoint_and_spends_its_number() {
    let mut play = Play::gang(2);
    play.all_run();
    let mut job = (*play.o.job).clone();
    job.spec.suspend = true;
    play.o.job = Arc::new(job);
    let told = play.look();
    assert_eq!(
        (told.status.phase, told.step),
        (JobPhase::Suspending, Step::RemovePods(vec!["j-0-0".to_owned(), "j-0-1".to_owned()]))
    );
    play.all_gone();
    play.look();
    let stopped = play.look();
    assert_eq!(
        (stopped.status.phase, stopped.status.attempt, stopped.status.preemptions),
        (JobPhase::Suspended, Some(1), 0)
    );
}

#[test]
fn a_plain_pod_needs_no_report() {
    let mut play = Play::new(&json!({}));
    assert_eq!(play.look().step, Step::CreatePods { attempt: 0, ranks: vec![0] });
    let plain = |play: &mut Play, status: &Value| {
        play.pod(0, Some("gpu-0"), status);
        let mut pod = (*play.o.pods[0]).clone();
        pod.metadata.labels.as_mut().unwrap().remove(names::RANK);
        play.o.pods[0] = Arc::new(pod);
    };
    plain(&mut play, &json!({"phase": "Running"}));
    assert_eq!(play.look().status.phase, JobPhase::Running);
    plain(&mut play, &exited(0));
    assert_eq!(play.look().status.phase, JobPhase::Complete);
}

#[test]
fn agents_that_never_report_are_not_waited_for_for_ever() {
    let mut play = Play::gang(2);
    let looked = |play: &mut Play| {
        let view = WorkerView { looked: true, heard_at: Some(play.o.now), ..WorkerView::default() };
        play.o.views = vec![Some(view.clone()), Some(view)];
    };
    for attempt in 0..5 {
        let begun: Timestamp = play.o.now;
        for rank in 0..2 {
            play.pod(rank, Some("gpu-0"), &json!({"phase": "Running", "startTime": begun.to_string()}));
        }
        looked(&mut play);
        play.look();
        let over = play.after(Duration::from_mins(15));
        assert_eq!(over.status.ending.as_ref().map(|e| e.reason.as_str()), Some("AgentNotStarted"), "{attempt}");
        play.all_gone();
        play.look();
        play.o.views.clear();
        if attempt < 4 {
            assert_eq!(play.look().step, Step::Rest, "not at once");
        }
    }
    assert_eq!((play.status().phase, play.reason("Failed")), (JobPhase::Failed, Reason::NotStartable.as_str()));
}

#[test]
fn an_operator_that_has_just_started_takes_nobody_for_silent() {
    let mut play = Play::gang(2);
    play.all_run();
    for rank in 0..2 {
        let long_ago = json!({"phase": "Running", "startTime": "2025-12-01T00:00:00Z"});
        play.pod(rank, Some("gpu-0"), &long_ago);
    }
    play.o.views = vec![None, None];
    let looked = play.look();
    assert_eq!((looked.status.phase, looked.step), (JobPhase::Running, Step::Rest), "nothing is new");
}

#[test]
fn what_fails_before_the_program_is_counted_too() {
    let mut play = Play::new(&json!({"failurePolicy": {"maxRestarts": 1}}));
    play.look();
    let init = json!({"phase": "Failed", "initContainerStatuses": [
        {"name": "i", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 2}}},
    ]});
    for restarts in [1, 1] {
        play.o.pods.clear();
        play.change(
            0,
            Some("gpu-0"),
            &init,
            &json!({"labels": {names::ATTEMPT: play.status().attempt.unwrap().to_string()}}),
            &json!({}),
        );
        assert_eq!(play.look().status.restarts, restarts);
    }
    assert_eq!((play.status().phase, play.reason("Failed")), (JobPhase::Failed, "TooManyRestarts"));
}

#[test]
fn a_pod_that_its_node_refuses_is_tried_again_after_a_pause() {
    let mut play = Play::new(&json!({}));
    play.look();
    let refused = json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"});
    play.change(0, Some("gpu-0"), &refused, &json!({"labels": {names::ATTEMPT: "0"}}), &json!({}));
    let again = play.look();
    assert_eq!((again.status.attempt, again.status.preemptions, again.status.restarts), (Some(1), 0, 0));
    assert_eq!(play.look().step, Step::Rest);
    assert_eq!(play.after(Duration::from_secs(21)).step, Step::CreatePods { attempt: 1, ranks: vec![0] });
}

#[test]
fn a_failure_beside_a_node_that_turns_out_to_be_lost_is_no_failure() {
    let mut play = Play::gang(2);
    play.all_run();
    play.pod(0, Some("gpu-0"), &exited(1));
    assert_eq!(play.look().step, Step::RemovePods(vec!["j-0-1".to_owned()]));
    let going = json!({"deletionTimestamp": "2026-01-01T00:02:00Z"});
    play.change(1, Some("gpu-1"), &disrupted("Running", "DeletionByTaintManager"), &going, &json!({}));
    play.o.views.iter_mut().flatten().for_each(|view| view.last_report_read = true);
    let next = play.after(Duration::from_mins(3));
    assert_eq!((next.status.attempt, next.status.preemptions, next.status.restarts), (Some(1), 1, 0));
}

#[test]
fn a_program_that_is_finished_is_not_suspended() {
    let mut play = Play::gang(2);
    play.all_run();
    for rank in 0..2 {
        play.pod(rank, Some("gpu-1"), &exited(0));
    }
    let mut job = (*play.o.job).clone();
    job.spec.suspend = true;
    play.o.job = Arc::new(job);
    play.look();
    play.o.views.iter_mut().flatten().for_each(|view| view.last_report_read = true);
    assert_eq!(play.look().status.phase, JobPhase::Complete);
}

#[test]
fn a_suspended_job_makes_no_pod_for_the_attempt_that_follows_a_failure() {
    let mut play = Play::new(&json!({"suspend": true}));
    let mut job = (*play.o.job).clone();
    job.status = Some(TrainingJobStatus { attempt: Some(0), ..TrainingJobStatus::default() });
    play.o.job = Arc::new(job);
    play.change(0, Some("gpu-0"), &exited(1), &json!({"labels": {names::ATTEMPT: "0"}}), &json!({}));
    let failed = play.look();
    assert_eq!((failed.status.attempt, failed.status.restarts, failed.step), (Some(1), 1, Step::Rest));
    assert_eq!(play.look().status.phase, JobPhase::Suspended);
}

#[test]
fn where_the_cluster_costs_money_the_cheaper_place_is_taken() {
    let dollars = |text: &str| text.parse::<Money>().unwrap();
    let choose = |play: &mut Play, price: &str| {
        let first = Offer { price_per_hour: dollars(price), ..test_machine::offer("1") };
        let (why, provider) = (format!("at ${price}/h"), "p".to_owned());
        let rent = Rent {
            provider,
            offers: Vec::new(),
            why,
            cost: CostBreakdown::default(),
            finish_in_s: 0,
            others: Vec::new(),
            rejected: Vec::new(),
            first,
            image_bytes: None,
            prospect: Prospect::Unknown,
            save_every_s: None,
        };
        play.o.choice = Some(Choice::Rent(Box::new(rent)));
    };
    let mut play = Play::new(&json!({"gpu": {"count": 2}}));
    play.o.valid.priced(dollars("0.50"));
    assert_eq!(play.o.valid.cluster_price, Some(dollars("1")));
    assert_eq!(play.look().step, Step::Rest, "it is compared first");
    play.o.choice = Some(Choice::Wait { message: "offers are read".to_owned() });
    assert_eq!((play.look().step, play.reason("Placed")), (Step::Rest, "WaitingForOffers"));
    for (price, cheaper) in [("0.99", true), ("1.00", false), ("1.01", false)] {
        choose(&mut play, price);
        assert_eq!(play.o.valid.is_cheaper(play.o.choice.as_ref()), cheaper, "{price}");
        assert_eq!(play.look().step, Step::CreatePods { attempt: 0, ranks: vec![0] });
    }
    // A Pod that waits to be rented for, when the market is dear all of a sudden.
    play.o.valid.in_cluster = InCluster::Never;
    play.change(
        0,
        None,
        &json!({"phase": "Pending"}),
        &json!({"labels": {names::ATTEMPT: "0"}}),
        &json!({"schedulerName": names::NO_SCHEDULER}),
    );
    assert_eq!(play.look().step, Step::RemovePod("j-0-0".to_owned()));
    choose(&mut play, "0.10");
    assert!(matches!(play.look().step, Step::Claim { .. }));
}

/// A Pod whose container waits for this.
fn held_up(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}}},
    ]})
}

#[test]
fn what_keeps_a_worker_from_starting_is_said_once_and_is_the_reason_in_the_end() {
    let mut play = Play::gang(2);
    play.pod(0, Some("gpu-0"), &json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}));
    play.says(0, "Booted");
    play.pod(1, Some("gpu-1"), &held_up("ErrImagePull", "rpc error: 401"));
    let waits = play.look().status;
    assert_eq!(waits.phase, JobPhase::Starting);
    assert!(
        waits.message.starts_with("Pod j-0-1 on node gpu-1: ImagePullBackOff: image i cannot"),
        "{}",
        waits.message
    );
    play.pod(1, Some("gpu-1"), &held_up("ImagePullBackOff", "Back-off pulling image"));
    assert_eq!(play.look().status, waits, "every try would be a write");
    play.pod(1, Some("gpu-1"), &held_up("CreateContainerConfigError", "secret \"hf\" not found"));
    assert!(play.look().status.message.contains("gpu-1: CreateContainerConfigError: secret \"hf\" not found"));
    let over = play.after(Duration::from_mins(15)).status.ending.unwrap();
    assert_eq!(over.reason, "AgentNotStarted");
    assert!(over.message.contains("secret \"hf\" not found"), "{}", over.message);
}

#[test]
fn a_pod_that_waits_for_a_volume_is_named_when_its_time_is_over() {
    let mut play = Play::gang(2);
    play.pod(0, Some("gpu-0"), &json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}));
    play.says(0, "Booted");
    play.pod(1, Some("gpu-1"), &held_up("ContainerCreating", ""));
    assert!(play.look().status.message.contains("1 of 2 workers are there"));
    let over = play.after(Duration::from_mins(15)).status.ending.unwrap();
    assert!(over.message.contains("kubectl describe pod j-0-1"), "{}", over.message);
}

#[test]
fn an_init_container_that_fails_does_not_begin_again_for_ever() {
    let failed = |name: &str| {
        json!({"phase": "Failed", "initContainerStatuses": [
            {"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1}}},
        ], "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}},
        ]})
    };
    for (name, ended) in [("fetch-data", "TooManyRestarts"), ("tradewind-agent", "NotStartable")] {
        let mut play = Play::gang(2);
        for _ in 0..6 {
            if play.status().phase == JobPhase::Failed {
                break;
            }
            for rank in 0..2 {
                play.pod(rank, Some("gpu-0"), &failed(name));
            }
            play.says(0, "Booted");
            play.o.views[0].as_mut().unwrap().agent = None;
            play.o.views[0].as_mut().unwrap().last_report_read = true;
            play.look();
            play.all_gone();
            play.look();
            play.o.views.clear();
        }
        assert_eq!((play.status().phase, play.reason("Failed")), (JobPhase::Failed, ended), "{name}");
        assert!(play.status().message.contains(&format!("init container {name}")), "{}", play.status().message);
    }
}

#[test]
fn a_quota_that_admits_half_a_gang_is_named_and_its_nodes_are_given_back() {
    let mut play = Play::gang(2);
    play.pod(0, Some("gpu-0"), &json!({"phase": "Running"}));
    let words = "Pod j-0-1 cannot be made now: exceeded quota: gpus; it is tried again";
    play.o.pod_refused = Some((Reason::QuotaExceeded, words.to_owned()));
    let waits = play.look();
    assert_eq!((waits.status.phase, play.reason("Placed")), (JobPhase::Waiting, "QuotaExceeded"));
    assert!(waits.status.message.contains(words), "{}", waits.status.message);
    assert_eq!(waits.step, Step::Rest);
    let over = play.after(Duration::from_mins(5));
    assert_eq!(over.step, Step::RemovePods(vec!["j-0-0".to_owned()]));
    assert_eq!(over.status.ending.unwrap().reason, "GangTimeout");
}

#[test]
fn a_worker_whose_labels_somebody_changed_is_replaced_with_the_others() {
    for labels in [
        json!({names::ATTEMPT: "0", names::RANK: "seven"}),
        json!({names::ATTEMPT: "0", names::RANK: "99999999999999999999"}),
        json!({names::ATTEMPT: "0", names::RANK: "0"}),
        json!({names::ATTEMPT: "7", names::RANK: "1"}),
        json!({}),
    ] {
        let mut play = Play::gang(2);
        play.all_run();
        play.change(1, Some("gpu-1"), &json!({"phase": "Running"}), &json!({"labels": labels}), &json!({}));
        let mut told = play.look();
        if let Step::RemovePod(stranger) = &told.step {
            // It looks like one of another attempt: it goes first.
            assert_eq!(stranger, "j-0-1", "{labels}");
            play.o.pods.retain(|pod| pod.metadata.name.as_deref() != Some("j-0-1"));
            told = play.look();
        }
        assert_eq!(told.status.phase, JobPhase::Checkpointing, "{labels}");
        let Step::RemovePods(removed) = &told.step else { panic!("{labels}: {:?}", told.step) };
        assert!(removed.contains(&"j-0-0".to_owned()), "{labels}");
        play.all_gone();
        play.o.pods.clear();
        assert_eq!(play.look().status.attempt, Some(1), "{labels}");
    }
}

#[test]
fn it_is_written_down_since_when_each_attempt_runs_and_from_which_step() {
    let mut play = Play::gang(2);
    let began = play.o.now;
    play.all_run();
    let program = |play: &Play| play.status().program.as_ref().map(|p| (p.since.0, p.from_step));
    assert_eq!(program(&play), Some((began, None)));
    play.after(Duration::from_mins(5));
    assert_eq!(program(&play), Some((began, None)), "it goes on");

    play.pod(1, Some("gpu-1"), &disrupted("Failed", "DeletionByTaintManager"));
    play.look();
    play.all_gone();
    play.look();
    assert_eq!((play.status().attempt, program(&play)), (Some(1), None));
    for rank in 0..2 {
        play.pod(rank, Some("gpu-0"), &json!({"phase": "Running"}));
        play.says(usize::try_from(rank).unwrap(), "Running");
        play.o.views[usize::try_from(rank).unwrap()].as_mut().unwrap().agent.as_mut().unwrap().restored_step =
            Some(400);
    }
    let again = play.after(Duration::from_mins(1));
    assert_eq!(again.status.phase, JobPhase::Running);
    assert_eq!(program(&play), Some((play.o.now, Some(400))));

    // Of one that ran before operators wrote that down, nobody knows.
    let mut job = (*play.o.job).clone();
    job.status.as_mut().unwrap().program = None;
    play.o.job = Arc::new(job);
    play.after(Duration::from_mins(1));
    assert_eq!(program(&play), None);
}

#[test]
fn an_operator_that_has_just_started_gives_the_agents_of_old_pods_their_time() {
    let mut play = Play::gang(2);
    for rank in 0..2 {
        play.pod(rank, Some("gpu-0"), &json!({"phase": "Running", "startTime": "2025-12-01T00:00:00Z"}));
    }
    let view = WorkerView { looked: true, heard_at: Some(play.o.now), ..WorkerView::default() };
    play.o.views = vec![Some(view.clone()), Some(view)];
    assert_eq!(play.look().status.phase, JobPhase::Starting);
    assert!(play.after(Duration::from_mins(14)).status.ending.is_none(), "their reports may be on their way");
    let ending = play.after(Duration::from_mins(1)).status.ending.unwrap();
    assert_eq!(ending.reason, "AgentNotStarted");
}

#[test]
fn a_worker_whose_run_goes_on_elsewhere_ends() {
    let mut play = Play::gang(2);
    play.all_run();
    play.o.views[1].as_mut().unwrap().fenced = true;
    let ending = play.look().status.ending.unwrap();
    assert_eq!(ending.reason, "AgentFailed");
    assert!(ending.message.contains("j-0-1") && ending.message.contains("a later attempt of the run has begun"));
}

#[test]
fn workers_that_are_done_do_not_hide_that_the_rest_hangs() {
    let mut play = Play::gang(2);
    play.all_run();
    play.pod(0, Some("gpu-0"), &exited(0));
    play.o.views[1].as_mut().unwrap().agent.as_mut().unwrap().quiet_s = 1800;
    assert_eq!(play.look().status.ending.unwrap().reason, "ProgramStalled");
}

#[test]
fn what_fails_with_a_broken_agent_is_no_failure_of_the_program() {
    // Its own agent broke: the exit code says nothing about the program.
    let mut play = Play::gang(2);
    play.all_run();
    play.o.views[0].as_mut().unwrap().agent.as_mut().unwrap().failed = true;
    play.pod(0, Some("gpu-0"), &exited(70));
    assert_eq!(play.look().status.ending.unwrap().reason, "AgentFailed");

    // The other's broke, as its last report says later: the first failed because it talked to that one.
    let mut play = Play::gang(2);
    play.all_run();
    play.pod(0, Some("gpu-0"), &exited(1));
    assert_eq!(play.look().status.ending.unwrap().reason, "ProgramFailed");
    let agent = play.o.views[1].as_mut().unwrap().agent.as_mut().unwrap();
    (agent.failed, agent.warnings) = (true, vec!["the disk is full".to_owned()]);
    play.all_gone();
    let next = play.look().status;
    let last = next.history.last().unwrap();
    assert_eq!((last.ended.as_str(), next.restarts), ("AgentFailed", 0));
    assert!(last.message.starts_with("the disk is full"), "{}", last.message);
}

#[test]
fn whoever_is_refused_stands_in_nobodys_way() {
    let mut play = Play::gang(2);
    play.pod(0, None, &unschedulable("2026-01-01T00:00:00Z"));
    assert_eq!(gang::standing(&play.o, 0), Some(Standing::Stuck));
    play.o.pod_refused = Some((Reason::QuotaExceeded, "exceeded quota".to_owned()));
    assert_eq!(gang::standing(&play.o, 0), None, "a quota holds the other Pod");
    play.o.pod_refused = None;
    play.o.refused = Some(Refused { reason: Reason::NoMailbox, message: "as a whole".to_owned() });
    assert_eq!(gang::standing(&play.o, 0), None);
    let mut fresh = Play::new(&json!({"workers": 2}));
    assert_eq!(gang::standing(&fresh.o, 0), Some(Standing::Waiting));
    fresh.o.admission = Admission::Refused { reason: Reason::PodRefused, message: "no".to_owned(), passing: true };
    assert_eq!(gang::standing(&fresh.o, 0), None);
    for held in [json!({"suspend": true}), json!({"budget": {"total": "0"}})] {
        let mut spec = json!({"workers": 2});
        spec.as_object_mut().unwrap().extend(held.as_object().unwrap().clone());
        let play = Play::new(&spec);
        assert_eq!(gang::standing(&play.o, 0), None, "{held} lets it make no Pod");
    }
}

#[test]
fn what_only_passes_is_marked_but_not_where_something_may_be_saved() {
    for (what, checkpoint, agents, passes) in [
        ("its agents are not there", true, 0, true),
        ("its agents are there, and another operator must find what they save", true, 1, false),
        ("it saves nothing", false, 1, true),
    ] {
        let mut play = Play::gang(2);
        if !checkpoint {
            play = Play::new(&json!({"workers": 2}));
            play.look();
        }
        for rank in 0..2 {
            play.pod(rank, Some("gpu-0"), &json!({"phase": "Running"}));
        }
        (0..agents).for_each(|rank| play.says(rank, "Running"));
        let decision = play.look();
        assert_eq!((decision.status.phase, decision.passing), (JobPhase::Starting, passes), "{what}");
    }
}
