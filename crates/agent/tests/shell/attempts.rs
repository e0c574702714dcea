//! A new attempt on the same machine, and machines whose container the host starts again.

use tradewind_core::SecretString;
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::seal::{Place, SecretEnv};
use tradewind_protocol::{AgentPhase, LogSegment, Report, RestoreCandidate, Start};

use crate::world::{self, MACHINE, World};

fn seal(start: &mut Start, report: &Report, secret: &str) {
    let env = SecretEnv::new([("SECRET".to_owned(), SecretString::from(secret))].into());
    let sequence = u64::from(start.attempt);
    let place = Place { install: "install", machine: MACHINE, boot: &report.boot, sequence };
    start.sealed_env = Some(env.seal(&report.boot_key, &place).unwrap());
}

#[test]
fn a_failed_program_is_begun_again_in_place_from_its_checkpoint() {
    let mut world = World::new();
    world.agent();
    let report = world.wait("the first report", |report| report.phase == AgentPhase::Booted);
    let mut start = World::start_of(
        r#"echo "first $SECRET"; echo "step 10/20"
        mkdir -p out/ckpt/tmp; echo "weights 10" > out/ckpt/tmp/w; mv out/ckpt/tmp out/ckpt/step-10
        while [ ! -e go ]; do sleep 0.05; done
        mkdir out/ckpt/step-15; echo half > out/ckpt/step-15/w; kill -9 $$"#,
    );
    seal(&mut start, &report, "first-s3cr3t");
    world.order(start, &report);
    let manifest = world.commit(10);
    world.wait("the commit taken in", |report| report.offer.is_none());
    std::fs::write(world.path("go"), "").unwrap();
    let first = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    assert_eq!((first.attempt, first.exit.as_ref().unwrap().code), (Some(1), 137));

    // The next attempt is announced before its start document is there.
    world.control.attempt = 2;
    world.control.start = None;
    world.control.start_boot = None;
    world.control.slots.clear();
    world.give_slots(0, 64);
    let sequence = world.control.sequence;
    let waiting = world.wait("the announcement seen", |report| report.control_seen >= sequence);
    assert_eq!((waiting.attempt, waiting.exit), (Some(1), first.exit));
    let mut start = World::start_of_attempt(
        2,
        r#"echo "second $SECRET and first-s3cr3t from $TRADEWIND_RESUME_STEP: $(cat "$TRADEWIND_RESUME_PATH/w")"
        while [ ! -e on ]; do sleep 0.05; done
        echo "step 20/20"; echo "weights 20" > tmp; mv tmp out/ckpt/step-20"#,
    );
    let chunks = manifest.chunks().map(|chunk| (chunk.key.clone(), world::ticket(&world.store, &chunk.key))).collect();
    start.restore = vec![RestoreCandidate { seq: 1, manifest, chunks }];
    seal(&mut start, &report, "second-s3cr3t");
    world.order(start, &report);
    let second = world.wait("the second attempt", |report| report.phase == AgentPhase::Running);
    assert_eq!((second.attempt, second.exit, second.progress), (Some(2), None, None));
    assert_eq!((&second.boot, second.restarted), (&report.boot, false));
    assert!(second.sequence > first.sequence);
    assert_eq!(second.restore.unwrap().restored.map(|restored| (restored.seq, restored.step)), Some((1, 10)));
    // What lies there, restored or left behind, is no new save.
    std::fs::write(world.path("on"), "").unwrap();
    let manifest = world.commit(20);
    let keys: Vec<String> = manifest.chunks().map(|chunk| chunk.key.clone()).collect();
    assert_eq!((manifest.attempt, keys), (2, vec![format!("{}00000000", data_prefix(2, MACHINE))]));
    let report = world.wait("the second end", |report| report.phase == AgentPhase::Exited);
    let exit = report.exit.unwrap();
    assert_eq!((report.attempt, exit.code, report.slots_used), (Some(2), 0, 1));
    assert_eq!(exit.log_tail, "second *** and *** from 10: weights 10\nstep 20/20\n");
    let log = |slot: u32| LogSegment::decode(&world.store.get(&format!("mail/logs/{slot}")).unwrap()).unwrap();
    let (first, second) = (log(0), log(1));
    assert_eq!(
        (first.attempt, second.attempt),
        (Some(1), Some(2)),
        "the ring goes on, each attempt in segments of its own"
    );
    assert!(first.text().starts_with(b"first ***\n") && second.text().starts_with(b"second ***"));
    assert!(!world.read("stdout").contains("s3cr3t"));
}

/// What the host does to the container.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Blow {
    Kill,
    Terminate,
}

#[test]
fn a_container_that_the_host_starts_again_runs_nothing_a_second_time() {
    // The blow, whether the program had ended before, whether the disk is lost; what the second boot says.
    let table = [
        (Blow::Kill, false, false, (AgentPhase::Failed, None)),
        (Blow::Kill, false, true, (AgentPhase::Failed, None)),
        (Blow::Kill, true, false, (AgentPhase::Exited, Some((7, false)))),
        (Blow::Kill, true, true, (AgentPhase::Exited, Some((7, false)))),
        (Blow::Terminate, false, false, (AgentPhase::Exited, Some((143, true)))),
        (Blow::Terminate, false, true, (AgentPhase::Exited, Some((143, true)))),
        (Blow::Terminate, true, false, (AgentPhase::Exited, Some((7, false)))),
        (Blow::Terminate, true, true, (AgentPhase::Exited, Some((7, false)))),
    ];
    for (blow, ended, disk_lost, expected) in table {
        let what = format!("{blow:?}, ended {ended}, disk lost {disk_lost}");
        let mut world = World::new();
        let outside = tempfile::tempdir().unwrap();
        let count = outside.path().join("count");
        let mut start = World::start_of(
            r#"trap 'exit 0' TERM
            echo ran >> "$COUNT"; mkdir -p out/ckpt; echo weights > tmp; mv tmp out/ckpt/step-5
            while [ ! -e go ]; do sleep 0.05; done; exit 7"#,
        );
        start.env.insert("COUNT".to_owned(), count.to_str().unwrap().to_owned());
        let agent = world.run(start.clone());
        if ended || blow == Blow::Terminate {
            // An end waits for the operator to decide about the last save.
            world.commit(5);
        } else {
            world.wait("the offer", |report| report.offer.is_some());
        }
        let mut last = world.wait("the run", |report| report.phase == AgentPhase::Running);
        if ended {
            std::fs::write(world.path("go"), "").unwrap();
            last = world.wait("the end", |report| report.phase == AgentPhase::Exited);
        }
        world::signal(agent, if blow == Blow::Kill { "KILL" } else { "TERM" });
        world.ended();
        if disk_lost {
            world.lose_disk();
        }

        for boot in ["second", "third"] {
            let agent = world.agent();
            let report = world.wait(boot, |report| report.boot != last.boot);
            let exit = report.exit.as_ref().map(|exit| (exit.code, exit.told_to_stop));
            assert_eq!((report.phase, exit), expected, "{what}, {boot} boot");
            assert_eq!((report.restarted, report.attempt), (true, Some(1)), "{what}, {boot} boot");
            let waits = !ended && blow == Blow::Kill;
            assert_eq!(report.offer.is_some(), waits, "{what}, {boot} boot: an offer nobody decided about is not lost");
            // No start document is followed, neither for this attempt nor for another.
            for attempt in [1, 2] {
                let mut again = World::start_of_attempt(attempt, "echo ran >> $COUNT");
                again.env.clone_from(&start.env);
                world.control.attempt = attempt;
                world.order(again, &report);
                let sequence = world.control.sequence;
                let seen = world.wait("the order seen", |report| report.control_seen >= sequence);
                assert_eq!((seen.phase, seen.attempt), (report.phase, Some(1)), "{what}, {boot} boot");
            }
            assert_eq!(std::fs::read_to_string(&count).unwrap(), "ran\n", "{what}, {boot} boot");
            world::signal(agent, "KILL");
            world.ended();
            last = report;
        }
    }
}

#[test]
fn a_container_that_is_started_again_before_anything_was_is_as_good_as_new() {
    for disk_lost in [false, true] {
        let mut world = World::new();
        let agent = world.agent();
        let first = world.wait("the first boot", |report| report.phase == AgentPhase::Booted);
        world::signal(agent, "KILL");
        world.ended();
        if disk_lost {
            world.lose_disk();
        }
        // The document for the boot that is gone leads nowhere.
        world.order(World::start_of("echo ran >> count"), &first);
        world.agent();
        let sequence = world.control.sequence;
        let second =
            world.wait("the second boot", |report| report.boot != first.boot && report.control_seen >= sequence);
        assert_eq!((second.phase, second.restarted), (AgentPhase::Booted, false));
        assert_ne!(second.boot_key, first.boot_key);
        world.order(World::start_of("echo ran >> count"), &second);
        let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
        assert_eq!((report.exit.unwrap().code, world.read("count").as_str()), (0, "ran\n"));
    }
}
