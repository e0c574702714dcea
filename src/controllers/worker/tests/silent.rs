//! Agents that say nothing any more.

use super::*;

#[test]
fn a_worker_on_a_dead_node_is_not_waited_for_until_its_node_comes_back() {
    let (mut world, _agents) = at_work(1, Value::Null);
    // Nobody tells the kubelet any more: the Pod stays as it is.
    let until = world.clock.now() + Duration::from_hours(1);
    world.pod(0, 0)["metadata"]["deletionTimestamp"] = json!(until);
    world.later();
    assert!(!world.view(0, 0).unwrap().last_report_read);
    world.later();
    world.later();
    assert!(world.view(0, 0).unwrap().last_report_read, "mute for a minute");
}

#[test]
fn an_agent_that_says_nothing_for_long_in_a_pod_that_runs_is_silent_but_never_for_our_own_blindness() {
    let (mut world, mut agents) = at_work(2, Value::Null);
    let silent = |world: &World| [0, 1].map(|rank| world.view(0, rank).unwrap().silent_for.is_some());
    // Half a minute each, so that these are ten minutes.
    let minutes = |world: &mut World, agents: &mut [Agent], minutes: usize| {
        for _ in 0..minutes * 2 {
            agents[0].says(world, |report| report.log_segments += 1);
            world.later();
        }
    };
    minutes(&mut world, &mut agents, 10);
    assert_eq!(silent(&world), [false, false], "not longer than the limit");
    // Another operator has heard nothing yet, and cannot tell for how long that is so.
    world.restart();
    minutes(&mut world, &mut agents, 9);
    assert_eq!(silent(&world), [false, false]);
    // What could not be read may have been there.
    world.store.deny("mailbox", true);
    for _ in 0..40 {
        world.later();
    }
    world.store.deny("mailbox", false);
    world.operator.ctx.take_asked();
    minutes(&mut world, &mut agents, 9);
    assert_eq!(silent(&world), [false, false]);
    minutes(&mut world, &mut agents, 3);
    assert_eq!(silent(&world), [false, true]);
    assert!(!world.operator.ctx.take_asked().is_empty(), "the job is looked at");
    agents[1].says(&world, |report| report.log_segments += 1);
    minutes(&mut world, &mut agents, 2);
    assert_eq!(silent(&world), [false, false], "it was heard again");
    world.phase(0, 1, "Succeeded");
    minutes(&mut world, &mut agents, 12);
    assert_eq!(silent(&world), [false, false], "its Pod tells what became of it");
}

/// A worker with its agent at work, which then says nothing for longer than is waited.
fn silent(checkpoint: Value) -> (World, Agent) {
    let (mut world, mut agents) = at_work(1, checkpoint);
    for _ in 0..21 {
        world.later();
    }
    (world, agents.remove(0))
}

#[test]
fn an_agent_that_has_said_how_its_program_ended_is_not_silent() {
    let (mut world, mut agent) = silent(Value::Null);
    assert!(world.view(0, 0).unwrap().silent_for.is_some());
    // A sidecar keeps the Pod.
    agent.says(&world, |report| report.phase = AgentPhase::Exited);
    for _ in 0..30 {
        world.later();
    }
    assert_eq!(world.view(0, 0).unwrap().silent_for, None);
}

#[test]
fn a_silent_worker_that_is_heard_again_in_its_grace_loses_nothing() {
    let (mut world, mut agent) = silent(checkpoint("RankZero"));
    assert!(world.view(0, 0).unwrap().silent_for.is_some());
    let until = world.clock.now() + Duration::from_mins(10);
    world.pod(0, 0)["metadata"]["deletionTimestamp"] = json!(until);
    world.look();
    world.later();
    assert!(!world.view(0, 0).unwrap().last_report_read, "it has just been told to stop");
    agent.saves(&world, 70);
    world.later();
    assert_eq!(world.view(0, 0).unwrap().checkpoint.unwrap().step, 70);
    for _ in 0..3 {
        assert!(!world.view(0, 0).unwrap().last_report_read, "heard within a minute");
        world.later();
    }
    assert!(world.view(0, 0).unwrap().last_report_read);
}
