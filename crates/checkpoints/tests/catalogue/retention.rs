//! What stays and what goes.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use tradewind_checkpoints::{Keep, Refusal, retain};
use tradewind_core::Clock;

use crate::stage::{Machine, RUN, Stage, keep, now};

/// A stage where attempt 0 has committed `count` checkpoints, each of one chunk of its own.
fn stage_with(count: u64) -> (Stage, Machine) {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    for step in 1..=count {
        let manifest = machine.save(&stage, step, None);
        now(stage.catalogue().commit("machine-a", 0, &manifest)).unwrap();
    }
    (stage, machine)
}

fn steps(stage: &Stage) -> Vec<u64> {
    stage.log().checkpoints().map(|checkpoint| checkpoint.manifest.step).collect()
}

#[test]
fn old_checkpoints_go_with_their_data_and_never_come_back() {
    let (stage, mut machine) = stage_with(5);
    let in_flight = machine.upload(&stage, "not offered yet");
    let done = now(stage.catalogue().collect(&keep(2))).unwrap();
    assert_eq!((done.dropped, done.deleted, done.blocked, done.more), (vec![1, 2, 3], 3, false, false));
    assert_eq!(steps(&stage), [5, 4]);
    assert_eq!(stage.data().len(), 3, "two checkpoints and an upload under way");
    stage.check_whole();
    let again = now(stage.catalogue().collect(&keep(2))).unwrap();
    assert_eq!((again.dropped.len(), again.emptied, again.deleted), (0, 0, 0), "nothing is left to do");
    // What was under way still counts; old slots never do.
    let good = machine.manifest(&stage, 6, vec![in_flight], None);
    assert!(matches!(
        now(stage.catalogue().commit("machine-a", 0, &good)).unwrap(),
        tradewind_checkpoints::CommitOutcome::Committed { .. }
    ));
    let mut old = Machine::new("machine-a", 0);
    let reused = old.save(&stage, 7, None);
    let outcome = now(stage.catalogue().commit("machine-a", 0, &reused)).unwrap();
    assert!(
        matches!(outcome, tradewind_checkpoints::CommitOutcome::Refused(Refusal::UnknownChunk { .. })),
        "{outcome:?}"
    );
    stage.advance(Duration::from_hours(1));
    for _ in 0..3 {
        now(stage.catalogue().collect(&keep(1))).unwrap();
        stage.advance(Duration::from_hours(1));
    }
    assert_eq!(steps(&stage), [6]);
    stage.check_whole();
}

#[test]
fn pinned_ones_and_the_start_of_the_attempt_stay() {
    let (stage, _) = stage_with(5);
    now(stage.catalogue().begin_attempt(RUN, 1, Some(2), stage.clock.now())).unwrap().unwrap();
    let pins = Keep { pinned: BTreeSet::from([3]), ..keep(1) };
    now(stage.catalogue().collect(&pins)).unwrap();
    assert_eq!(steps(&stage), [5, 3, 2]);
    stage.check_whole();
}

#[test]
fn lost_uploads_go_with_a_later_checkpoint_or_their_attempt_and_never_by_age() {
    let (stage, mut machine) = stage_with(1);
    machine.upload(&stage, "never offered");
    now(stage.catalogue().collect(&keep(3))).unwrap();
    assert_eq!(stage.data().len(), 2, "may still be offered");
    stage.advance(Duration::from_hours(1000));
    now(stage.catalogue().collect(&keep(3))).unwrap();
    assert_eq!(stage.data().len(), 2, "may still be offered: an operator may have been away for long");
    for step in 2..4 {
        let manifest = machine.save(&stage, step, None);
        now(stage.catalogue().commit(&machine.uid, 0, &manifest)).unwrap();
    }
    now(stage.catalogue().collect(&keep(1))).unwrap();
    assert_eq!(
        (steps(&stage), stage.data().len()),
        (vec![3], 1),
        "what lies below a dropped checkpoint is never offered"
    );
    machine.upload(&stage, "a zombie's");
    stage.begin(1);
    now(stage.catalogue().collect(&keep(3))).unwrap();
    assert_eq!(stage.data().len(), 1);
    assert_eq!(steps(&stage), [3]);
}

#[test]
fn the_end_of_a_run_leaves_only_what_is_kept() {
    let (stage, mut machine) = stage_with(4);
    machine.upload(&stage, "never offered");
    let ended = Keep { ended: true, ..keep(2) };
    now(stage.catalogue().collect(&ended)).unwrap();
    assert_eq!(stage.data().len(), 2);
    let late = machine.save(&stage, 9, None);
    let outcome = now(stage.catalogue().commit("machine-a", 0, &late)).unwrap();
    assert_eq!(outcome, tradewind_checkpoints::CommitOutcome::Refused(Refusal::Ended));
    assert_eq!(now(stage.catalogue().collect(&ended)).unwrap().deleted, 1);
    assert_eq!(now(stage.catalogue().collect(&ended)).unwrap(), tradewind_checkpoints::Collected::default());
    stage.check_whole();
}

#[test]
fn a_pass_is_bounded_and_goes_on_where_it_stopped() {
    let (stage, _) = stage_with(6);
    let small = Keep { max_changes: 1, ..keep(1) };
    let mut passes = 0;
    while now(stage.catalogue().collect(&small)).unwrap().more {
        passes += 1;
        // Between two passes more time goes by than an old entry of retention lives.
        stage.advance(Duration::from_mins(20));
        stage.check_whole();
        assert_eq!(steps(&stage), [6]);
        assert!(passes < 50, "no end in sight");
    }
    // Five entries and five chunks, one a pass; the pass that does the last one has nothing more to do.
    assert_eq!(passes, 9);
    assert_eq!(stage.data().len(), 1);
}

#[test]
fn what_cannot_be_read_may_name_anything() {
    let (stage, _) = stage_with(4);
    stage.tamper("log/0000000002.json", Some(br#"{"entry":"checkpoint","manifest":{"version":2}}"#));
    let done = now(stage.catalogue().collect(&keep(1))).unwrap();
    assert!(done.blocked && done.deleted == 0, "{done:?}");
    assert_eq!(stage.data().len(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked for, the newest complete checkpoint stays, and nothing is both kept and dropped.
    #[test]
    fn the_newest_is_never_dropped(
        attempts in prop::collection::vec(0_u64..4, 1..6),
        newest in 0_usize..5,
        pinned in prop::collection::btree_set(0_u64..30, 0..3),
    ) {
        let stage = Stage::default();
        for (attempt, count) in (0..).zip(&attempts) {
            stage.begin(attempt);
            let uid = format!("machine-{attempt}");
            let mut machine = Machine::new(&uid, attempt);
            for step in 0..*count {
                let manifest = machine.save(&stage, step, None);
                now(stage.catalogue().commit(&uid, attempt, &manifest)).unwrap();
            }
        }
        let log = stage.log();
        let all: Vec<u64> = log.checkpoints().map(|checkpoint| checkpoint.seq).collect();
        let retention = retain(&log, newest, &pinned);
        for seq in all.iter().take(newest.max(1)) {
            prop_assert!(retention.keep.contains(seq));
        }
        prop_assert!(all.iter().filter(|seq| pinned.contains(seq)).all(|seq| retention.keep.contains(seq)));
        let mut both: Vec<u64> = retention.keep.iter().chain(&retention.drop).copied().collect();
        both.sort_unstable();
        let mut expected = all.clone();
        expected.sort_unstable();
        prop_assert_eq!(both, expected);
        now(stage.catalogue().collect(&Keep { pinned, ..keep(newest) })).unwrap();
        stage.check_whole();
        prop_assert_eq!(stage.log().checkpoints().next().map(|c| c.seq), all.first().copied());
    }
}
