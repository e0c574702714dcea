//! The dead man's switch of the real process.

use tradewind_protocol::{AgentPhase, Report};

use crate::store::{End, Fault};
use crate::world::{self, KEY, MACHINE, World};

/// From now on the operator says no more.
fn fall_silent(world: &mut World) {
    world.control.lease_s = 1;
    world.publish();
}

fn ends(world: &World, number: usize) -> Vec<End> {
    world.wait_for("request to end the rental", || Some(world.store.lock().ends.clone()).filter(|e| e.len() >= number))
}

#[test]
fn a_silent_operator_ends_the_program_and_then_the_rental() {
    let mut world = World::new();
    world.self_end();
    // The provider fails once.
    let mut fails = true;
    world.store.rule(move |method, _| (method == "DELETE" && std::mem::take(&mut fails)).then_some(Fault::Status(500)));
    let mut start = World::start_of(
        r#"trap 'mkdir -p out/ckpt; echo weights > tmp; mv tmp out/ckpt/step-9; exit 0' TERM
        echo "mine: ${PROVIDERS_KEY:-none} $1"; tr '\0' '\n' < /proc/$PPID/environ | grep PROVIDERS_KEY
        echo ran >> count; while :; do sleep 0.05; done"#,
    );
    start.command.push("$(PROVIDERS_KEY)".to_owned());
    world.run(start);
    world.wait("the program", |report| report.phase == AgentPhase::Running && report.log_segments == 1);
    fall_silent(&mut world);

    let asked = ends(&world, 2);
    for end in &asked {
        assert_eq!((end.key.as_str(), end.authorization.as_str()), ("rental/7", format!("Bearer {KEY}").as_str()));
    }
    let report = Report::decode(asked[0].report.as_ref().unwrap(), MACHINE).unwrap();
    assert_eq!((report.phase, report.silent), (AgentPhase::Exited, true), "everything was said before");
    assert_eq!((report.exit.unwrap().code, report.offer.unwrap().manifest.step), (143, 9));
    let accepted = |printed: &String| printed.contains("tradewind: The end of the rental is accepted");
    let printed = world.wait_for("words in the machine's log", || Some(world.read("stdout")).filter(accepted));
    // Whole lines: the agent's own may come between them.
    for line in ["mine: none $(PROVIDERS_KEY)", "PROVIDERS_KEY=***"] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in:\n{printed}");
    }
    assert!(printed.contains("not accepted: the provider answered 500"), "{printed}");
    assert!(!printed.contains(KEY) && !world.read("stderr").contains(KEY), "{printed}");

    // The operator comes back too late.
    world.control.attempt = 2;
    let report = world.report().unwrap();
    world.order(World::start_of_attempt(2, "echo ran >> count"), &report);
    let sequence = world.control.sequence;
    let report = world.wait("the order seen", |report| report.control_seen >= sequence);
    assert_eq!((report.attempt, report.silent, world.read("count").as_str()), (Some(1), true, "ran\n"));
}

#[test]
fn a_machine_on_which_nothing_runs_ends_its_rental_too() {
    // Nothing was ever started.
    let mut world = World::new();
    world.self_end();
    world.agent();
    world.wait("the first report", |report| report.phase == AgentPhase::Booted);
    fall_silent(&mut world);
    ends(&world, 1);
    let report = world.report().unwrap();
    assert_eq!((report.phase, report.silent, report.exit.unwrap().code), (AgentPhase::Exited, true, 143));

    // The program has ended; then the host starts the container again while the rental is being ended.
    let mut world = World::new();
    world.self_end();
    world.store.rule(|method, _| (method == "DELETE").then_some(Fault::Status(503)));
    let agent = world.run(World::start_of("exit 7"));
    world.wait("the end", |report| report.phase == AgentPhase::Exited);
    fall_silent(&mut world);
    ends(&world, 1);
    world::signal(agent, "KILL");
    world.ended();
    // Another lease would be an hour.
    world.control.lease_s = 3_600;
    world.publish();
    let before = world.store.lock().ends.len();
    world.agent();
    ends(&world, before + 1);
    let report = world.report().unwrap();
    assert_eq!((report.restarted, report.silent, report.exit.unwrap().code), (true, true, 7));
}

#[test]
fn a_key_that_is_not_there_is_named() {
    let mut world = World::new();
    world.self_end();
    world.env.clear();
    world.agent();
    world.wait("the first report", |report| report.phase == AgentPhase::Booted);
    fall_silent(&mut world);
    let named = |report: &Report| report.warnings.iter().any(|warning| warning.contains("PROVIDERS_KEY is not set"));
    world.wait("a warning", named);
    assert!(world.store.lock().ends.is_empty());
}
