//! The agent's binary against a small object store, with shell scripts as programs.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    reason = "tests look at real clocks and tell by their names what they are"
)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect, reason = "a test that cannot go on says where")]

mod attempts;
mod cluster;
mod silence;
mod store;
mod vitals;
mod world;

use store::Fault;
use tradewind_core::SecretString;
use tradewind_protocol::seal::{Place, SecretEnv};
use tradewind_protocol::{AgentPhase, Desired, EntryKind, LogSegment};
use world::{MACHINE, World, alive};

#[test]
fn a_job_runs_saves_commits_and_ends() {
    let mut world = World::new();
    let report = {
        world.agent();
        world.wait("first report", |report| report.phase == AgentPhase::Booted)
    };
    let mut start = World::start_of(
        r#"echo "$GREETING $SECRET ${#SECRET} $PROVIDERS_OWN run $TRADEWIND_RUN_ID attempt $TRADEWIND_ATTEMPT every $TRADEWIND_CHECKPOINT_INTERVAL"
        echo "hidden: ${TRADEWIND_CONTROL_URL:-no} ${TRADEWIND_AGENT_URL:-no} ${TRADEWIND_RESUME_STEP:-no}"
        mkdir -p out/ckpt
        for step in 10 20; do
          echo "step $step/20 loss 0.$step"
          mkdir out/ckpt/tmp; echo "weights $step" > out/ckpt/tmp/w; echo constant > out/ckpt/tmp/c
          mv out/ckpt/tmp out/ckpt/step-$step
          while [ ! -e go-$step ]; do sleep 0.05; done
        done
        echo to stderr >&2
        exit 3"#,
    );
    let env = SecretEnv::new([("SECRET".to_owned(), SecretString::from("s3cr3t"))].into());
    let place = Place { install: "install", machine: MACHINE, boot: &report.boot, sequence: 1 };
    start.sealed_env = Some(env.seal(&report.boot_key, &place).unwrap());
    world.order(start, &report);

    let first = world.commit(10);
    assert_eq!(first.kind, EntryKind::Directory);
    assert_eq!(first.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["c", "w"]);
    assert!(first.save_began_at <= first.saved_at);
    world.wait("the commit taken in", |report| report.offer.is_none());
    std::fs::write(world.path("go-10"), "").unwrap();
    let second = world.commit(20);
    assert_eq!(second.parent, Some(1), "the unchanged file is referenced in the committed checkpoint");
    assert_eq!(second.files[0].chunks, first.files[0].chunks);
    assert_ne!(second.files[1].chunks, first.files[1].chunks);
    std::fs::write(world.path("go-20"), "").unwrap();

    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let exit = report.exit.unwrap();
    assert_eq!((exit.code, exit.told_to_stop), (3, false));
    assert!(exit.log_tail.ends_with("to stderr\n"), "{}", exit.log_tail);
    let progress = report.progress.unwrap();
    assert_eq!((progress.step, progress.total, progress.loss.as_deref()), (20, Some(20), Some("0.20")));
    assert_eq!(report.log_segments, 1);
    let log = LogSegment::decode(&world.store.get("mail/logs/0").unwrap()).unwrap();
    let text = String::from_utf8(log.text()).unwrap();
    assert!(text.contains("hello *** 6 injected run run-1 attempt 1 every 30\n"), "{text}");
    assert!(text.contains("hidden: no no no\n"), "{text}");
    let whole = |printed: &String| printed.contains("step 20/20 loss 0.20") && printed.contains("tradewind: Exited");
    let printed = world.wait_for("words in the machine's log", || Some(world.read("stdout")).filter(whole));
    assert!(!printed.contains("signature") && !world.read("stderr").contains("signature"), "tickets do not print");
    assert!(printed.contains("hello *** 6") && !printed.contains("s3cr3t"), "nor do secrets: {printed}");
    assert!(!world.path("out/.tradewind-staging").exists(), "nothing is left behind");
}

#[test]
fn a_directory_that_falls_quiet_is_a_save_and_a_file_changed_under_the_hands_is_not() {
    let mut world = World::new();
    world.store.rule(|method, key| (method == "PUT" && key.starts_with("data/")).then_some(Fault::Status(503)));
    let script = r"mkdir -p out/ckpt/step-5; for i in 1 2 3; do echo $i > out/ckpt/step-5/$i; sleep 0.2; done
        while [ ! -e change ]; do sleep 0.05; done
        echo other > out/ckpt/step-5/2
        while [ ! -e finish ]; do sleep 0.05; done";
    world.run(World::start_of(script));
    // The save cannot be uploaded, and changes meanwhile.
    world.wait("the upload", |report| report.uploading.is_some());
    std::fs::write(world.path("change"), "").unwrap();
    let again = world.path("out/.tradewind-staging/2");
    world.wait_for("the save seen again", || again.exists().then_some(()));
    world.store.lock().rule = None;
    let manifest = world.commit(5);
    assert_eq!(world.report().unwrap().offer.map_or(1, |offer| offer.number), 1, "the first state was never offered");
    let body = world.store.get(&manifest.files[1].chunks[0].key).unwrap();
    assert_eq!((manifest.files[1].path.as_str(), &body[..]), ("2", &b"other\n"[..]));
    std::fs::write(world.path("finish"), "").unwrap();
    world.wait("the end", |report| report.phase == AgentPhase::Exited);
}

#[test]
fn a_checkpoint_is_restored_and_the_program_told() {
    let mut world = World::new();
    let mut start = World::start_of(
        r#"echo "resume $TRADEWIND_RESUME_STEP with $1 $2"; cat "$TRADEWIND_RESUME_PATH/sub/b"; ls out; ls out/ckpt"#,
    );
    let files = [("a", "first"), ("sub/b", "second\n")];
    start.restore = vec![world.candidate(7, 120, EntryKind::Directory, &files)];
    world.run(start);
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let restored = report.restore.unwrap().restored.unwrap();
    assert_eq!((restored.seq, restored.step), (7, 120));
    let path = world.path("out/ckpt/step-120").canonicalize().unwrap();
    let printed = report.exit.unwrap().log_tail;
    assert!(printed.contains(&format!("resume 120 with --resume {}", path.display())), "{printed}");
    assert!(printed.ends_with("second\nckpt\nstep-120\n"), "{printed}");
    assert!(report.offer.is_none(), "what was restored is no new save");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.join("a").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn a_corrupt_checkpoint_falls_back_to_the_one_before_and_none_to_zero() {
    for (bad, expected) in [(1, Some(100)), (2, None)] {
        let mut world = World::new();
        let mut start = World::start_of(r#"echo "from ${TRADEWIND_RESUME_STEP:-zero} args $#""#);
        start.restore = vec![
            world.candidate(9, 120, EntryKind::File, &[("", "newest")]),
            world.candidate(7, 100, EntryKind::File, &[("", "before")]),
        ];
        let keys: Vec<String> = start.restore.iter().flat_map(|one| one.chunks.keys().cloned()).collect();
        world.store.put(&keys[0], "nEwest");
        if bad == 2 {
            world.store.lock().objects.remove(&keys[1]);
        }
        world.run(start);
        let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
        let outcome = report.restore.unwrap();
        assert_eq!(outcome.restored.map(|restored| restored.step), expected);
        assert_eq!(outcome.rejected.len(), bad);
        assert_eq!((outcome.rejected[0].seq, outcome.rejected[0].step), (9, 120));
        let printed = report.exit.unwrap().log_tail;
        let said = if bad == 1 { "from 100 args 2\n" } else { "from zero args 0\n" };
        assert_eq!(printed, said);
        assert_eq!(report.warnings.iter().any(|warning| warning.contains("from zero")), bad == 2);
        assert!(!world.path("out/ckpt/step-120").exists());
    }
}

#[test]
fn a_store_that_is_away_is_waited_for_and_no_work_is_thrown_away() {
    let mut world = World::new();
    let mut start = World::start_of(r#"echo "from ${TRADEWIND_RESUME_STEP:-zero}""#);
    start.restore = vec![world.candidate(9, 120, EntryKind::File, &[("", "newest")])];
    let key = start.restore[0].chunks.keys().next().unwrap().clone();
    let mut left = 3;
    world.store.rule(move |method, asked| {
        let hit = method == "GET" && asked == key && left > 0;
        left -= i32::from(hit);
        hit.then_some(Fault::Status(503))
    });
    world.run(start);
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    assert_eq!(report.exit.unwrap().log_tail, "from 120\n");
    assert!(report.restore.unwrap().rejected.is_empty());
}

#[test]
fn a_stop_asks_saves_and_reports_143() {
    let mut world = World::new();
    let script = r"trap 'echo saved > tmp; mkdir -p out/ckpt; mv tmp out/ckpt/step-9; exit 0' TERM
        echo ready; while :; do sleep 0.05; done";
    world.run(World::start_of(script));
    world.wait("the program", |report| report.phase == AgentPhase::Running && report.log_segments == 1);
    world.control.desired = Desired::Stop { reason: "test".to_owned(), grace_s: 20 };
    world.publish();
    let manifest = world.commit(9);
    assert_eq!(manifest.kind, EntryKind::File);
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let exit = report.exit.unwrap();
    assert_eq!((exit.code, exit.told_to_stop), (143, true), "whatever the program said");
}

#[test]
fn a_program_that_ignores_the_stop_is_killed_with_everything_it_started() {
    let mut world = World::new();
    let script = r#"trap '' TERM
        setsid sh -c 'trap "" TERM; echo $$ > grandchild; while :; do sleep 0.05; done' &
        (sleep 0.01 & )
        echo ready; while :; do sleep 0.05; done"#;
    let agent = world.run(World::start_of(script));
    let grandchild = world
        .wait_for("the grandchild", || Some(world.read("grandchild").trim().to_owned()).filter(|pid| !pid.is_empty()));
    world.wait("the program", |report| report.log_segments == 1);
    assert!(alive(&grandchild));
    // Orphans that end meanwhile are reaped by the agent.
    world.wait_for("no zombies", || zombies_of(agent).is_empty().then_some(()));
    world.control.desired = Desired::Stop { reason: "test".to_owned(), grace_s: 1 };
    world.publish();
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    assert_eq!(report.exit.unwrap().code, 143);
    assert!(!alive(&grandchild));
}

fn zombies_of(parent: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let is = |stat: &String| {
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[0] == "Z" && fields[1] == parent.to_string()
    };
    stats.filter(is).collect()
}

#[test]
fn a_signal_to_the_agent_stops_the_program_and_ends_the_agent() {
    let mut world = World::new();
    let agent = world.run(World::start_of("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"));
    world.wait("the program", |report| report.log_segments == 1);
    world::signal(agent, "TERM");
    assert_eq!(world.ended(), 143);
    let report = world.report().unwrap();
    assert_eq!((report.phase, report.exit.unwrap().code), (AgentPhase::Exited, 143));
}

#[test]
fn a_program_dies_with_its_agent() {
    let mut world = World::new();
    let agent = world.run(World::start_of("echo $$ > pid; exec sleep 600"));
    let pid = world.wait_for("the program", || Some(world.read("pid").trim().to_owned()).filter(|pid| !pid.is_empty()));
    world::signal(agent, "KILL");
    world.wait_for("the program's end", || (!alive(&pid)).then_some(()));
}

#[test]
fn signals_and_missing_programs_become_exit_codes() {
    for (command, code) in
        [(vec!["/bin/sh", "-c", "kill -9 $$$$"], 137), (vec!["no-such-program"], 127), (vec!["/"], 126)]
    {
        let mut world = World::new();
        let mut start = World::start_of("");
        start.command = command.into_iter().map(ToOwned::to_owned).collect();
        world.run(start);
        let exit = world.wait("the end", |report| report.phase == AgentPhase::Exited).exit.unwrap();
        assert_eq!(exit.code, code, "{}", exit.log_tail);
    }
}

#[test]
fn while_an_upload_hangs_the_newest_of_three_saves_waits() {
    let mut world = World::new();
    world.store.rule(|method, key| (method == "PUT" && key.starts_with("data/")).then_some(Fault::Hang));
    let script = r"mkdir -p out/ckpt
        for step in 1 2 3 4; do
          echo $step > tmp; mv tmp out/ckpt/step-$step
          while [ ! -e go-$step ]; do sleep 0.05; done
          rm out/ckpt/step-$step
        done
        while [ ! -e finish ]; do sleep 0.05; done";
    world.run(World::start_of(script));
    world.wait("the first upload", |report| report.uploading.is_some_and(|uploading| uploading.step == 1));
    for step in 1..=3 {
        std::fs::write(world.path(&format!("go-{step}")), "").unwrap();
        let staged = world.path("out/.tradewind-staging");
        let next = format!("out/ckpt/step-{}", step + 1);
        world.wait_for("the next save staged", || {
            let held = std::fs::read_dir(&staged).ok()?.flatten();
            let links = held.flat_map(|save| std::fs::read_dir(save.path())).flatten().flatten();
            let found = links.filter_map(|link| std::fs::read_to_string(link.path()).ok());
            (world.path(&next).exists() && found.collect::<String>().contains(&(step + 1).to_string())).then_some(())
        });
    }
    std::fs::write(world.path("go-4"), "").unwrap();
    world.store.lock().rule = None;
    world.commit(4);
    std::fs::write(world.path("finish"), "").unwrap();
    world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let uploads = world.store.lock().objects.keys().filter(|key| key.starts_with("data/")).count();
    assert_eq!(uploads, 2, "the saves between were never sent");
}

#[test]
fn an_upload_whose_answer_is_lost_takes_a_fresh_slot() {
    let mut world = World::new();
    let mut first = true;
    world.store.rule(move |method, key| {
        (method == "PUT" && key.starts_with("data/") && std::mem::take(&mut first)).then_some(Fault::LoseAnswer)
    });
    world.run(World::start_of("mkdir -p out/ckpt; echo x > tmp; mv tmp out/ckpt/step-1; sleep 0.1"));
    let manifest = world.commit(1);
    assert!(manifest.files[0].chunks[0].key.ends_with("/00000001"), "the first slot may hold anything");
    world.wait("the end", |report| report.phase == AgentPhase::Exited);
}

#[test]
fn hostile_manifests_are_refused() {
    for path in ["../outside", "/etc/outside", "a/../../outside", "a/./b", ""] {
        let mut world = World::new();
        let mut start = World::start_of("echo ran");
        start.restore = vec![world.candidate(9, 120, EntryKind::Directory, &[("good", "x")])];
        world.agent();
        let report = world.wait("first report", |report| report.phase == AgentPhase::Booted);
        start.boot.clone_from(&report.boot);
        // The operator's own encoder would refuse it: it is written past it.
        start.restore[0].manifest.files[0].path = path.to_owned();
        world.store.put("mail/start.json", serde_json::to_vec(&start).unwrap());
        world.control.start = Some(world::ticket(&world.store, "mail/start.json"));
        world.control.start_boot = Some(report.boot);
        world.control.desired = Desired::Run;
        world.publish();
        let report = world.wait("a warning", |report| !report.warnings.is_empty());
        assert!(report.warnings[0].contains("files.path"), "{:?}", report.warnings);
        assert_eq!(report.phase, AgentPhase::Booted);
        assert!(!world.path("outside").exists() && !world.path("out/outside").exists());
    }
}

#[test]
fn log_segments_fill_and_go_round_the_ring() {
    let mut world = World::new();
    world.run(World::start_of(
        "i=0; while [ $i -lt 20000 ]; do echo \"line $i of a program that talks a great deal\"; i=$((i+1)); done",
    ));
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let last = report.log_segments - 1;
    assert!(last >= 5, "{last}");
    let segments: Vec<LogSegment> = (0..4)
        .map(|slot| LogSegment::decode(&world.store.get(&format!("mail/logs/{slot}")).unwrap()).unwrap())
        .collect();
    let newest = segments.iter().find(|segment| segment.number == last).unwrap();
    assert!(newest.text().ends_with(b"line 19999 of a program that talks a great deal\n"));
    let mut numbers: Vec<u64> = segments.iter().map(|segment| segment.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (last - 3..=last).collect::<Vec<_>>());
    let complete = |segment: &LogSegment| segment.text().starts_with(b"line ") && segment.text().ends_with(b"deal\n");
    assert!(segments.iter().all(complete), "segments are cut between lines");
}

#[test]
fn a_program_that_is_cut_down_in_the_middle_of_a_save_leaves_no_half_checkpoint() {
    let mut world = World::new();
    world.run(World::start_of("mkdir -p out/ckpt/step-1; echo half > out/ckpt/step-1/a; kill -9 $$"));
    let report = world.wait("the end", |report| report.phase == AgentPhase::Exited);
    assert!(report.offer.is_none());
    assert!(world.store.lock().objects.keys().all(|key| !key.starts_with("data/")));
}

#[test]
fn progress_comes_from_the_file_too() {
    let mut world = World::new();
    let script = r#"echo '{"step": 41, "total": 50, "loss": 1.25}' > "$TRADEWIND_PROGRESS_FILE"; sleep 0.2"#;
    world.run(World::start_of(script));
    let progress = world.wait("the end", |report| report.phase == AgentPhase::Exited).progress.unwrap();
    assert_eq!((progress.step, progress.total, progress.loss.as_deref()), (41, Some(50), Some("1.25")));
}

#[test]
fn a_mailbox_that_fails_is_waited_for_and_named_in_the_log() {
    let mut world = World::new();
    let mut left = 5;
    world.store.rule(move |method, key| {
        let hit = method == "GET" && key == "mail/control.json" && left > 0;
        left -= i32::from(hit);
        hit.then_some(Fault::Status(503))
    });
    world.run(World::start_of("exit 0"));
    world.wait("the end", |report| report.phase == AgentPhase::Exited);
    let whole = |printed: &String| {
        printed.contains("tradewind: Mailbox: the store answered 503") && printed.contains("tradewind: Mailbox reached")
    };
    world.wait_for("words in the machine's log", || Some(world.read("stdout")).filter(whole));
}

#[test]
fn arguments_and_a_missing_environment_are_answered() {
    let agent = |arguments: &[&str]| {
        let binary = env!("CARGO_BIN_EXE_tradewind-agent");
        std::process::Command::new(binary).args(arguments).env_clear().output().unwrap()
    };
    let version = agent(&["--version"]);
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("tradewind-agent {}\n", env!("CARGO_PKG_VERSION")));
    let help = String::from_utf8(agent(&["--help"]).stdout).unwrap();
    assert!(help.contains("run") && !help.contains("exec-program"), "{help}");
    let bare = agent(&["run"]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8(bare.stderr).unwrap().contains("TRADEWIND_CONTROL_URL is not set"));
}
