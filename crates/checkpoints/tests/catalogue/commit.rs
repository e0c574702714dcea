//! One offer at a time: what counts, what is refused, and why.

use std::collections::BTreeSet;
use std::time::Duration;

use tradewind_checkpoints::{CommitOutcome, FenceRefused, Keep, Refusal};
use tradewind_core::Clock;
use tradewind_protocol::Manifest;

use crate::stage::{Machine, RUN, Stage, now};

fn commit(stage: &Stage, machine: &Machine, manifest: &Manifest) -> CommitOutcome {
    let outcome = now(stage.catalogue().commit(&machine.uid, machine.attempt, manifest)).unwrap();
    stage.check_whole();
    outcome
}

fn refusal(stage: &Stage, machine: &Machine, manifest: &Manifest) -> Refusal {
    match commit(stage, machine, manifest) {
        CommitOutcome::Refused(refusal) => refusal,
        CommitOutcome::Committed { seq } => panic!("committed at {seq}"),
    }
}

#[test]
fn a_checkpoint_counts_once_and_chunks_of_its_parent_are_not_sent_again() {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let first = machine.save(&stage, 100, None);
    assert_eq!(commit(&stage, &machine, &first), CommitOutcome::Committed { seq: 1 });
    assert_eq!(commit(&stage, &machine, &first), CommitOutcome::Committed { seq: 1 }, "the same offer again");
    let second = machine.save(&stage, 200, Some((1, &first.files[0].chunks[0])));
    assert_eq!(commit(&stage, &machine, &second), CommitOutcome::Committed { seq: 2 });
    let log = stage.log();
    let steps: Vec<u64> = log.checkpoints().map(|checkpoint| checkpoint.manifest.step).collect();
    assert_eq!(steps, [200, 100]);
    let candidates = now(stage.catalogue().candidates(&log, RUN, 5, Duration::from_mins(1))).unwrap();
    assert_eq!(candidates.iter().map(|c| (c.seq, c.chunks.len())).collect::<Vec<_>>(), [(2, 2), (1, 1)]);
    assert!(now(stage.catalogue().candidates(&log, "run-2", 5, Duration::from_mins(1))).unwrap().is_empty());
}

#[test]
fn what_is_not_whole_is_refused() {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let good = machine.save(&stage, 100, None);
    let key = good.files[0].chunks[0].key.clone();
    let changed = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        refusal(&stage, &machine, &manifest)
    };
    let larger = changed(&|m| {
        m.files[0].size_bytes += 1;
        m.files[0].chunks[0].size_bytes += 1;
    });
    assert_eq!(larger.reason(), "ChunkSizeWrong");
    let missing = changed(&|m| m.files[0].chunks[0].key.replace_range(key.len() - 8.., "00000099"));
    assert_eq!(missing.reason(), "ChunkMissing");
    let stranger = changed(&|m| m.files[0].chunks[0].key = "data/0-zzzzzz/00000000".to_owned());
    assert_eq!(stranger.reason(), "ChunkUnknown");
    assert_eq!(changed(&|m| m.machine = "machine-b".to_owned()), Refusal::Foreign { what: "machine" });
    assert_eq!(changed(&|m| m.run_id = "run-2".to_owned()), Refusal::Foreign { what: "run" });
    assert_eq!(changed(&|m| m.name = "../x".to_owned()).reason(), "ManifestInvalid");
    assert!(stage.log().checkpoints().next().is_none());
}

#[test]
fn an_offer_that_waited_for_a_week_counts() {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let first = machine.save(&stage, 100, None);
    commit(&stage, &machine, &first);
    let last = machine.save(&stage, 200, None);
    stage.advance(Duration::from_hours(7 * 24));
    now(stage.catalogue().collect(&Keep { newest: 1, pinned: BTreeSet::new(), ended: false, max_changes: 100 }))
        .unwrap();
    assert_eq!(commit(&stage, &machine, &last), CommitOutcome::Committed { seq: 2 });
}

#[test]
fn a_referenced_chunk_must_be_the_one_that_counts() {
    let stage = Stage::default();
    stage.begin(0);
    let mut first = Machine::new("machine-a", 0);
    let old = first.save(&stage, 100, None);
    commit(&stage, &first, &old);
    stage.begin(1);
    let mut second = Machine::new("machine-b", 1);
    let chunk = &old.files[0].chunks[0];
    let mut forged = second.save(&stage, 200, Some((1, chunk)));
    forged.files[0].chunks[0].sha256 = "00".repeat(32);
    assert_eq!(refusal(&stage, &second, &forged).reason(), "ChunkUnknown");
    let good = second.save(&stage, 200, Some((1, chunk)));
    assert_eq!(commit(&stage, &second, &good), CommitOutcome::Committed { seq: 3 });
}

#[test]
fn only_the_newest_attempt_commits() {
    let stage = Stage::default();
    let mut zombie = Machine::new("machine-a", 0);
    let early = zombie.save(&stage, 50, None);
    assert_eq!(refusal(&stage, &zombie, &early), Refusal::Fenced { newest: None }, "no attempt has begun");
    stage.begin(0);
    let before = zombie.save(&stage, 100, None);
    commit(&stage, &zombie, &before);
    stage.begin(1);
    let late = zombie.save(&stage, 300, None);
    assert_eq!(refusal(&stage, &zombie, &late), Refusal::Fenced { newest: Some(1) });
    assert_eq!(
        commit(&stage, &zombie, &before),
        CommitOutcome::Committed { seq: 1 },
        "what counted before still counts"
    );
    // A zombie that claims the new attempt has no slots there.
    let forged = Manifest { attempt: 1, ..late };
    let liar = Machine::new("machine-a", 1);
    assert_eq!(refusal(&stage, &liar, &forged).reason(), "ChunkUnknown");
}

#[test]
fn attempts_only_go_up() {
    let stage = Stage::default();
    let begin =
        |run: &str, attempt, from| now(stage.catalogue().begin_attempt(run, attempt, from, stage.clock.now())).unwrap();
    assert_eq!(now(stage.catalogue().max_attempt()).unwrap(), None);
    assert_eq!(begin(RUN, 3, Some(7)).unwrap().seq, 0);
    let again = begin(RUN, 3, Some(8)).unwrap();
    assert_eq!((again.seq, again.from), (0, Some(7)), "what was written first holds");
    assert_eq!(begin(RUN, 2, None), Err(FenceRefused::HigherAttempt { newest: 3 }));
    assert_eq!(begin("run-2", 3, None), Err(FenceRefused::OtherRun { run_id: RUN.to_owned() }));
    assert_eq!(begin("run 2", 4, None).unwrap_err().reason(), "AttemptInvalid");
    assert_eq!(begin("run-2", 4, None).unwrap().seq, 1);
    // Data of an attempt whose fence was lost with the cluster's etcd still counts.
    Machine::new("machine-a", 9).upload(&stage, "x");
    stage.tamper("data/4294967295-abcdef/00000000", Some(b"forged"));
    assert_eq!(now(stage.catalogue().max_attempt()).unwrap(), Some(9));
}

#[test]
fn bad_entries_are_told_and_skipped() {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let first = machine.save(&stage, 100, None);
    commit(&stage, &machine, &first);
    stage.tamper("log/0000000002.json", Some(b"{\"entry\":\"checkpoint\""));
    stage.tamper("log/0000000003.json", Some(&vec![b'x'; 5 << 20]));
    stage.tamper("log/README", Some(b"hello"));
    let log = stage.log();
    assert_eq!(log.bad.len(), 3, "{:?}", log.bad);
    assert_eq!((log.entries.len(), log.last_seq), (2, Some(3)));
    let second = machine.save(&stage, 200, None);
    assert_eq!(commit(&stage, &machine, &second), CommitOutcome::Committed { seq: 4 }, "their places stay taken");
    stage.tamper("log/9999999999.json", Some(b"mischief"));
    let third = machine.save(&stage, 300, None);
    assert_eq!(refusal(&stage, &machine, &third), Refusal::Full);
}

#[test]
fn a_catalogue_that_remembers_sees_what_others_do() {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let catalogue = stage.catalogue();
    for step in 1..=3 {
        let manifest = machine.save(&stage, step, None);
        now(stage.catalogue().commit("machine-a", 0, &manifest)).unwrap();
        assert_eq!(now(catalogue.load()).unwrap().newest_checkpoint(RUN).unwrap().manifest.step, step);
    }
    stage.tamper("log/0000000002.json", Some(b"rotten"));
    let log = now(catalogue.load()).unwrap();
    assert_eq!((log.checkpoints().count(), log.bad.len()), (2, 1), "memory never hides what is in the bucket");
}
