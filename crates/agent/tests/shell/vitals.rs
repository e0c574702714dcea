//! Memory and GPUs, as far as the agent can see them.

use std::os::unix::fs::PermissionsExt;

use tradewind_protocol::AgentPhase;

use crate::world::{World, alive};
use crate::zombies_of;

#[test]
fn a_kill_for_want_of_memory_is_told_from_any_other() {
    let (v2, v1) = ("cgroup/memory.events", "cgroup/memory/memory.oom_control");
    for (file, before, after, expected) in [
        (v2, "oom 1\noom_kill 1\n", "oom 2\noom_kill 2\n", Some(true)),
        (v2, "oom 1\noom_kill 1\n", "oom 9\noom_kill 1\n", Some(false)),
        (v1, "oom_kill_disable 0\noom_kill 0\n", "oom_kill_disable 0\noom_kill 1\n", Some(true)),
        (v1, "oom_kill_disable 0\n", "oom_kill_disable 0\n", None),
        ("other", "", "oom_kill 1\n", None),
    ] {
        let mut world = World::new();
        std::fs::create_dir_all(world.path("cgroup/memory")).unwrap();
        std::fs::write(world.path(file), before).unwrap();
        std::fs::write(world.path("after"), after).unwrap();
        world.run(World::start_of(&format!("cat after > {file}; kill -9 $$")));
        let exit = world.wait("the end", |report| report.phase == AgentPhase::Exited).exit.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (137, expected), "{file} {before:?} {after:?}");
    }
}

#[test]
fn a_busy_gpu_is_a_sign_of_life_of_a_program_that_says_nothing() {
    let mut world = World::new();
    world.self_end();
    std::fs::create_dir(world.path("bin")).unwrap();
    let tool = world.path("bin/nvidia-smi");
    let script = r#"#!/bin/sh
        echo "$* key ${PROVIDERS_KEY:-none}" > asked
        if [ -e hang ]; then echo $$ > hanging; exec sleep 600; fi
        cat gpus"#;
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(world.path("gpus"), "0\n[N/A]\n4\n").unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", world.path("bin").display());
    world.env.insert("PATH".to_owned(), path);
    world.env.insert("TRADEWIND_GPU_MS".to_owned(), "1000".to_owned());
    let agent = world.run(World::start_of("while [ ! -e finish ]; do sleep 0.05; done"));
    world.wait("quiet", |report| report.quiet_s >= 4);
    let asked = world.read("asked");
    assert_eq!(asked, "--query-gpu=utilization.gpu --format=csv,noheader,nounits key none\n");

    std::fs::write(world.path("gpus"), "0\n97\n").unwrap();
    world.wait("a sign of life", |report| report.phase == AgentPhase::Running && report.quiet_s <= 1);
    // One that hangs is ended and says nothing; what it leaves is reaped.
    std::fs::write(world.path("hang"), "").unwrap();
    let pid = || Some(world.read("hanging").trim().to_owned()).filter(|pid| !pid.is_empty());
    let pid = world.wait_for("a hanging nvidia-smi", pid);
    world.wait_for("its end", || (!alive(&pid)).then_some(()));
    world.wait("quiet again", |report| report.quiet_s >= 3);
    std::fs::write(world.path("finish"), "").unwrap();
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    assert_eq!((report.quiet_s, report.exit.unwrap().code), (0, 0));
    world.wait_for("no zombies", || zombies_of(agent).is_empty().then_some(()));
}
