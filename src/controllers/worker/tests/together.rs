//! What all workers save together.

use super::*;

#[test]
fn workers_that_save_at_different_steps_are_told_so() {
    let (mut world, mut agents) = at_work(2, checkpoint("AllRanks"));
    agents[0].saves(&world, 100);
    world.later();
    assert!(world.control(0, 0).unwrap().refused.is_none(), "the other may follow");
    agents[1].saves(&world, 150);
    world.later();
    let refused = world.control(0, 0).unwrap().refused.expect("it never will count");
    assert!(
        refused.reason.contains("worker 0 has saved step 100") && refused.reason.contains("step 150"),
        "{refused:?}"
    );
    assert!(world.events().iter().any(|event| event.starts_with("CheckpointRefused")), "{:?}", world.events());
}

/// Two workers that save their parts, and go on while nobody looks: the first one further than the second.
fn unevenly_saved(lists: bool) -> World {
    let mut world = World::new(2, checkpoint("AllRanks"));
    world.look();
    let mut agents: Vec<Agent> = (0..2).map(|rank| Agent::boot(&mut world, 0, rank)).collect();
    all_say(&mut agents, &world, |_| {});
    world.later();
    assert!(agents[1].start(&world).unwrap().checkpoint.unwrap().together);
    all_say(&mut agents, &world, runs);
    world.later();
    for (agent, saved) in agents.iter_mut().zip([&[10, 20, 30][..], &[10, 20]]) {
        agent.lists = lists;
        for step in saved {
            agent.saves(&world, *step);
        }
    }
    world
}

#[test]
fn an_operator_that_was_away_finds_the_newest_step_that_all_have() {
    let mut world = unevenly_saved(true);
    world.restart();
    world.later();
    let committed = world.control(0, 1).unwrap().committed.expect("what both have counts");
    assert_eq!((committed.offer, committed.step), (2, 20));
    assert_eq!(world.control(0, 0).unwrap().committed, Some(committed));
    assert!(world.control(0, 0).unwrap().refused.is_none(), "the other one may follow to step 30");
}

#[test]
fn the_newest_common_step_is_found_in_the_last_words_of_lost_workers() {
    for (lists, expected) in [(true, Some(20)), (false, None)] {
        let mut world = unevenly_saved(lists);
        world.pods.clear();
        world.job["status"]["phase"] = json!("Running");
        world.restart();
        for _ in 0..4 {
            world.later();
        }
        assert!((0..2).all(|rank| world.view(0, rank).unwrap().last_report_read), "{lists}");
        let step = now(world.catalogue().load()).unwrap().checkpoints().map(|c| c.manifest.step).max();
        assert_eq!(step, expected, "an agent of the version before tells of one offer");
        // The step that only one of them has reached is given up with a word.
        let refused = world.events().into_iter().filter(|event| event.starts_with("CheckpointRefused"));
        assert!(refused.clone().any(|event| event.contains("worker 0 has saved step 30")), "{:?}", world.events());
    }
}

#[test]
fn a_common_step_that_is_not_whole_gives_way_to_the_one_before() {
    let mut world = unevenly_saved(true);
    let objects = world.store.objects("ckpt");
    // What worker 0 has sent for step 20; it is what both have alike.
    let prefix = tradewind_protocol::manifest::data_prefix(0, &id(&install(), UID, 0, 0));
    let lost = objects.keys().find(|key| key.contains(&tradewind_protocol::manifest::slot_key(&prefix, 1)));
    world.store.tamper("ckpt", lost.expect("a chunk"), None);
    for _ in 0..3 {
        world.later();
    }
    let control = world.control(0, 1).unwrap();
    assert_eq!(control.committed.map(|c| (c.offer, c.step)), Some((1, 10)));
    assert_eq!(control.refused.map(|refused| refused.offer), Some(2), "it is told once the one before counts");
}

#[test]
fn what_offers_that_wait_are_built_on_stays_until_they_are_decided() {
    let mut settings = checkpoint("AllRanks");
    settings["keep"] = json!(1);
    let (mut world, mut agents) = at_work(2, settings);
    let all_save = |world: &mut World, agents: &mut [Agent], step: u64| {
        for agent in agents {
            agent.saves(world, step);
        }
        world.later();
        world.control(0, 0).unwrap().committed.filter(|c| c.step == step).expect("a checkpoint").seq
    };
    let first = all_save(&mut world, &mut agents, 10);
    let known = agents[0].report.offer.clone().unwrap().manifest.files;
    all_save(&mut world, &mut agents, 20);
    // Worker 0 has heard of the first one alone when it saves step 40, and finds all of it there already.
    agents[0].lists = true;
    agents[0].report.offer = None;
    agents[0].saves(&world, 30);
    agents[0].report.offer.as_mut().unwrap().number = 3;
    agents[0].saves(&world, 40);
    agents[0].says(&world, |report| {
        let manifest = &mut report.offer.as_mut().unwrap().manifest;
        (manifest.parent, manifest.files) = (Some(first), known);
    });
    agents[1].saves(&world, 30);
    world.later();
    agents[1].saves(&world, 40);
    for _ in 0..3 {
        world.later();
    }
    let control = world.control(0, 0).unwrap();
    assert_eq!((control.committed.unwrap().step, control.refused), (40, None));
}
