//! The agent in a Pod of the cluster: its own program, its own end.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use tradewind_protocol::{AgentPhase, EntryKind};

use crate::store::Fault;
use crate::world::{self, World};

/// The start document names another program: it must not be run.
fn order(world: &mut World) -> u32 {
    world.run(World::start_of("echo wrong program"))
}

#[test]
fn a_program_of_the_pod_runs_to_its_end_and_the_agent_leaves_with_its_code() {
    for (end, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
        let script = format!(
            r#"echo "$GREETING $1 $PROVIDERS_OWN attempt $TRADEWIND_ATTEMPT address ${{TRADEWIND_POD_IP:-hidden}}" '$(GREETING)'
            mkdir -p out/ckpt; echo weights > tmp; mv tmp out/ckpt/step-1; echo to stderr >&2
            while [ ! -e go ]; do sleep 0.05; done
            {end}"#
        );
        let mut world = World::in_cluster(&script);
        world.command.push("$HOME".to_owned());
        let report = {
            order(&mut world);
            world.wait("the address", |report| report.address.is_some())
        };
        assert_eq!(report.address.unwrap().to_string(), "10.9.8.7");
        world.commit(1);
        std::fs::write(world.path("go"), "").unwrap();
        assert_eq!(world.ended(), code, "{}", world.read("stderr"));
        let report = world.report().unwrap();
        let exit = report.exit.unwrap();
        assert_eq!((report.phase, exit.code, exit.told_to_stop), (AgentPhase::Exited, code, false));
        let printed = world.read("stdout");
        assert!(printed.contains("hello $HOME injected attempt 1 address hidden $(GREETING)\n"), "{printed}");
        assert!(printed.contains("to stderr\n") && !printed.contains("wrong"), "{printed}");
        assert_eq!((report.log_segments, world.read("termination-log").as_str()), (0, ""));
    }
}

#[test]
fn a_pod_that_is_deleted_saves_and_ends_with_143() {
    let script = r"trap 'echo saved > tmp; mkdir -p out/ckpt; mv tmp out/ckpt/step-9; exit 0' TERM
        echo ready; while :; do sleep 0.05; done";
    let mut world = World::in_cluster(script);
    let agent = order(&mut world);
    world.wait_for("the program", || world.read("stdout").contains("ready").then_some(()));
    world::signal(agent, "TERM");
    world::signal(agent, "TERM");
    assert_eq!(world.ended(), 143);
    let report = world.report().unwrap();
    let (exit, offer) = (report.exit.unwrap(), report.offer.unwrap());
    assert_eq!((report.phase, exit.code, exit.told_to_stop), (AgentPhase::Exited, 143, true));
    assert_eq!(offer.manifest.step, 9);
    assert!(offer.manifest.chunks().all(|chunk| world.store.get(&chunk.key).is_some()), "all of it is in the store");
}

#[test]
fn a_pod_that_is_deleted_before_its_program_starts_ends_with_143() {
    let mut world = World::in_cluster("echo ran");
    let agent = world.agent();
    world.wait("the first report", |report| report.phase == AgentPhase::Booted);
    world::signal(agent, "QUIT");
    assert_eq!(world.ended(), 143);
    assert_eq!(world.report().unwrap().phase, AgentPhase::Exited);
    // Nobody has ever answered.
    let mut world = World::in_cluster("echo ran");
    world.store.rule(|_, _| Some(Fault::Status(503)));
    let agent = world.agent();
    world.wait_for("words", || world.read("stdout").contains("the store answered 503").then_some(()));
    world::signal(agent, "TERM");
    assert_eq!(world.ended(), 143);
    assert!(world.read("termination-log").contains("before the program could start"));
}

#[test]
fn a_checkpoint_is_restored_and_the_pods_program_told() {
    let script = r#"echo "resume $TRADEWIND_RESUME_STEP with $1 $2"; cat "$TRADEWIND_RESUME_PATH""#;
    let mut world = World::in_cluster(script);
    let mut start = World::start_of("echo wrong program");
    start.restore = vec![world.candidate(7, 120, EntryKind::File, &[("", "weights\n")])];
    world.run(start);
    assert_eq!(world.ended(), 0);
    let path = world.path("out/ckpt/step-120").canonicalize().unwrap();
    // The agent's own lines may come between those of the program.
    let printed = world.read("stdout");
    let told = format!("resume 120 with --resume {}", path.display());
    let lines: Vec<_> = printed.lines().filter(|line| !line.starts_with("tradewind: ")).collect();
    assert_eq!(lines, [told.as_str(), "weights"], "{printed}");
}

#[test]
fn a_store_that_is_away_at_the_end_is_told_where_the_kubelet_looks() {
    let mut world = World::in_cluster("echo ready; while [ ! -e go ]; do sleep 0.05; done; exit 3");
    world.env.insert("TRADEWIND_LEAVE_MS".to_owned(), "1500".to_owned());
    order(&mut world);
    world.wait("the program", |report| report.phase == AgentPhase::Running);
    world.store.rule(|_, _| Some(Fault::Status(503)));
    std::fs::write(world.path("go"), "").unwrap();
    assert_eq!(world.ended(), 3, "the program's own code all the same");
    let told = "The last report could not be stored in time";
    assert!(world.read("termination-log").starts_with(told) && world.read("stderr").contains(told));
}

#[test]
fn an_agent_that_cannot_begin_or_is_told_nonsense_says_so() {
    let mut world = World::in_cluster("echo ran");
    world.env.insert("TRADEWIND_CONTROL_URL".to_owned(), String::new());
    world.agent();
    assert_eq!(world.ended(), 70);
    assert!(world.read("termination-log").contains("TRADEWIND_CONTROL_URL is not set"));
    assert!(world.read("stderr").contains("TRADEWIND_CONTROL_URL is not set") && !world.read("stdout").contains("ran"));

    let mut world = World::in_cluster("echo ran");
    world.env.insert("TRADEWIND_POD_IP".to_owned(), "everywhere".to_owned());
    order(&mut world);
    assert_eq!(world.ended(), 0);
    let report = world.report().unwrap();
    assert!(report.address.is_none() && report.warnings[0].contains("TRADEWIND_POD_IP"), "{:?}", report.warnings);
    assert!(world.read("stderr").contains("TRADEWIND_POD_IP is no IP address"));
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Runs as a user who may write to the checkpoint directory and to the scratch directory alone.
#[test]
fn a_working_directory_that_cannot_be_written_to_is_enough() {
    let script = r#"touch here 2>/dev/null && echo writable
        cat "$TRADEWIND_RESUME_PATH"
        echo '{"step": 41}' > "$TRADEWIND_PROGRESS_FILE"
        echo weights > out/ckpt/tmp; mv out/ckpt/tmp out/ckpt/step-2
        while [ ! -e out/ckpt/go ]; do sleep 0.05; done"#;
    let mut world = World::in_cluster(script);
    let mut start = World::start_of("echo wrong program");
    start.restore = vec![world.candidate(7, 1, EntryKind::File, &[("", "restored\n")])];
    let installed = world.path("agent/tradewind-agent");
    std::fs::create_dir_all(world.path("agent")).unwrap();
    std::fs::create_dir_all(world.path("out/ckpt")).unwrap();
    install(&installed);
    world.command[0] = installed.to_str().unwrap().to_owned();
    let root = std::fs::metadata(world.path("out")).unwrap().uid() == 0;
    world.user = root.then_some(65_534);
    // The test's own files are there already.
    for own in ["stdout", "stderr"] {
        std::fs::write(world.path(own), "").unwrap();
    }
    for open in ["scratch", "out/ckpt"] {
        mode(&world.path(open), 0o777);
    }
    for closed in ["out", "."] {
        mode(&world.path(closed), 0o555);
    }
    world.run(start);
    let report = world.wait("progress", |report| report.progress.is_some());
    assert_eq!((report.progress.unwrap().step, report.restore.unwrap().restored.unwrap().step), (41, 1));
    assert_eq!(world.commit(2).name, "step-2");
    std::fs::write(world.path("out/ckpt/go"), "").unwrap();
    let code = world.ended();
    for closed in [".", "out"] {
        mode(&world.path(closed), 0o755);
    }
    assert_eq!(code, 0, "{}", world.read("stderr"));
    let printed = world.read("stdout");
    assert!(printed.contains("restored\n") && !printed.contains("writable"), "{printed}");
    let left: Vec<_> = std::fs::read_dir(world.path("scratch")).unwrap().collect();
    assert!(left.is_empty(), "the progress file is gone with the program");
}

/// Two volumes of a Pod that are folders of the node's one disk, the checkpoints' inside the other.
#[test]
fn nothing_is_linked_from_one_volume_to_another() {
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: this system lets nobody mount anything");
        return;
    }
    let script = "echo weights > out/ckpt/tmp; mv out/ckpt/tmp out/ckpt/step-2; while [ ! -e go ]; do sleep 0.05; done";
    let mut world = World::in_cluster(script);
    std::fs::create_dir_all(world.path("out/ckpt")).unwrap();
    std::fs::create_dir_all(world.path("volume")).unwrap();
    let before = ["unshare", "-rm", "/bin/sh", "-c", r#"mount --bind volume out/ckpt && exec "$@""#, "sh"];
    world.command.splice(0..0, before.map(ToOwned::to_owned));
    order(&mut world);
    world.commit(2);
    assert!(world.path("volume/step-2").exists() && !world.path("out/ckpt/step-2").exists(), "it was mounted");
    std::fs::write(world.path("go"), "").unwrap();
    assert_eq!(world.ended(), 0);
}

fn install(to: &Path) {
    let installed =
        Command::new(env!("CARGO_BIN_EXE_tradewind-agent")).arg("install").arg(to).env_clear().output().unwrap();
    assert!(installed.status.success(), "{installed:?}");
}

#[test]
fn the_agent_installs_itself_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("tradewind-agent");
    std::fs::write(&place, "an older one").unwrap();
    install(&place);
    assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o755);
    let version = Command::new(&place).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("tradewind-agent {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing beside it");

    // A directory in its place, and one that is not there.
    std::fs::create_dir_all(directory.path().join("taken/inside")).unwrap();
    for place in ["taken", "missing/tradewind-agent"] {
        let agent = env!("CARGO_BIN_EXE_tradewind-agent");
        let refused = Command::new(agent).arg("install").arg(directory.path().join(place)).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("the agent cannot be copied to"), "{said}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}
