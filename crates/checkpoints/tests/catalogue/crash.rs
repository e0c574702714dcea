//! A whole story of two attempts, cut at every single call to the store in every way, and taken up again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tradewind_checkpoints::{Catalogue, CommitOutcome, Gated, Keep, Refusal, StoreError};
use tradewind_core::Clock;
use tradewind_core::gate::{Gate, Open, Point, Verdict};
use tradewind_protocol::Manifest;

use crate::gang::Gang;
use crate::stage::{Historian, Machine, RUN, Stage, keep, now, poll_once};

/// Cuts call number `at`; after a crash with the answer in hand every later call is cut too.
struct Cut {
    at: usize,
    verdict: Verdict,
    calls: AtomicUsize,
}

impl Gate for Cut {
    fn before(&self, _point: &Point) -> Verdict {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match call.cmp(&self.at) {
            std::cmp::Ordering::Equal => self.verdict,
            std::cmp::Ordering::Greater if self.verdict == Verdict::CrashAfterAnswer => Verdict::CrashBefore,
            std::cmp::Ordering::Less | std::cmp::Ordering::Greater => Verdict::Pass,
        }
    }
}

/// One thing an operator does.
enum Act {
    Begin(u32),
    Commit(Manifest, bool),
    Collect(Keep),
}

impl Act {
    async fn run(&self, stage: &Stage, catalogue: &Catalogue) -> Result<(), StoreError> {
        match self {
            Self::Begin(attempt) => {
                let begun = catalogue.begin_attempt(RUN, *attempt, None, stage.clock.now()).await?;
                assert!(begun.is_ok(), "{begun:?}");
            }
            Self::Commit(manifest, counts) => {
                let machines: Vec<&str> = manifest.writers.iter().map(|writer| writer.machine.as_str()).collect();
                let outcome = match &machines[..] {
                    [] => catalogue.commit(&manifest.machine, manifest.attempt, manifest).await?,
                    gang => catalogue.commit_gang(gang, manifest.attempt, manifest).await?,
                };
                match outcome {
                    CommitOutcome::Committed { .. } => {
                        assert!(counts, "step {} must not count", manifest.step);
                    }
                    CommitOutcome::Refused(Refusal::Fenced { .. }) => {
                        assert!(!counts, "step {} must count", manifest.step);
                    }
                    CommitOutcome::Refused(refusal) => panic!("step {}: {refusal}", manifest.step),
                }
            }
            Self::Collect(keep) => drop(catalogue.collect(keep).await?),
        }
        Ok(())
    }
}

/// The story: three checkpoints, a zombie, two more, and a collection after each stretch. All uploads are done before the operator acts.
fn story(stage: &Stage) -> Vec<Act> {
    let mut first = Machine::new("machine-a", 0);
    let one = first.save(stage, 1, None);
    let two = first.save(stage, 2, Some((1, &one.files[0].chunks[0])));
    let three = first.save(stage, 3, None);
    let zombie = first.save(stage, 4, None);
    let mut second = Machine::new("machine-b", 1);
    let five = second.save(stage, 5, Some((3, &three.files[0].chunks[0])));
    let six = second.save(stage, 6, None);
    let ended = Keep { ended: true, pinned: BTreeSet::new(), ..keep(1) };
    vec![
        Act::Begin(0),
        Act::Commit(one, true),
        Act::Commit(two, true),
        Act::Commit(three, true),
        Act::Collect(keep(2)),
        Act::Begin(1),
        Act::Commit(zombie, false),
        Act::Commit(five, true),
        Act::Commit(six, true),
        Act::Collect(keep(2)),
        Act::Collect(ended),
    ]
}

/// The same with three workers that write together: all of them send what they have alike, and the parts that differ.
fn story_of_a_gang(stage: &Stage) -> Vec<Act> {
    let mut gang = Gang::new(3, 0);
    let one = gang.save(stage, 1, None);
    let two = gang.save(stage, 2, Some(&one));
    let three = gang.save(stage, 3, None);
    let zombie = gang.save(stage, 4, Some(&three));
    let mut smaller = Gang::new(2, 1);
    let five = smaller.save(stage, 5, Some(&three));
    let six = smaller.save(stage, 6, None);
    let ended = Keep { ended: true, pinned: BTreeSet::new(), ..keep(1) };
    vec![
        Act::Begin(0),
        Act::Commit(one, true),
        Act::Commit(two, true),
        Act::Commit(three, true),
        Act::Collect(keep(2)),
        Act::Begin(1),
        Act::Commit(zombie, false),
        Act::Commit(five, true),
        Act::Commit(six, true),
        Act::Collect(keep(2)),
        Act::Collect(ended),
    ]
}

/// What a story leaves behind: steps that ever counted, steps that count now, data.
type Ending = (Vec<u64>, Vec<u64>, BTreeSet<String>);

/// Plays the story with one cut; gives back how it ended and how many calls passed the gate.
fn play(story: fn(&Stage) -> Vec<Act>, at: usize, verdict: Verdict) -> (Ending, usize) {
    let stage = Stage::default();
    let gate = Arc::new(Cut { at, verdict, calls: AtomicUsize::new(0) });
    let acts = story(&stage);
    let mut historian = Historian::default();
    let mut catalogue =
        stage.catalogue_on(Arc::new(Gated::new(Arc::new(stage.place()), Arc::clone(&gate) as Arc<dyn Gate>)));
    for act in &acts {
        let outcome = poll_once(act.run(&stage, &catalogue));
        historian.look(&stage);
        if matches!(outcome, Some(Ok(()))) {
            continue;
        }
        // The operator has died, or it knows that it knows nothing: a new one does the same again.
        catalogue = stage.catalogue_on(Arc::new(Gated::new(Arc::new(stage.place()), Arc::new(Open))));
        now(act.run(&stage, &catalogue)).unwrap();
        historian.look(&stage);
    }
    let counting = stage.log().checkpoints().map(|checkpoint| checkpoint.manifest.step).collect();
    ((historian.steps(), counting, stage.data()), gate.calls.load(Ordering::Relaxed))
}

/// Cuts a story everywhere; `left` = how many data objects it leaves.
fn every_cut(story: fn(&Stage) -> Vec<Act>, left: usize) {
    let (uncut, calls) = play(story, usize::MAX, Verdict::Pass);
    assert_eq!((&uncut.0[..], &uncut.1[..], uncut.2.len()), (&[1, 2, 3, 5, 6][..], &[6][..], left));
    let acts = story(&Stage::default()).len();
    assert!(calls >= 2 * acts, "every act reads and writes or reads twice: {calls} calls in {acts} acts");
    let verdicts = [
        Verdict::CrashBefore,
        Verdict::CrashAfterEffect,
        Verdict::CrashAfterAnswer,
        Verdict::LostAnswer,
        Verdict::FailBefore,
    ];
    for verdict in verdicts {
        for at in 0..calls {
            let (ending, passed) = play(story, at, verdict);
            assert!(passed > at, "{verdict:?} at call {at} was never reached");
            assert_eq!(ending, uncut, "{verdict:?} at call {at}");
        }
    }
}

#[test]
fn every_cut_at_every_call_ends_as_the_uncut_story() {
    every_cut(story, 1);
}

#[test]
fn every_cut_at_every_call_of_a_gang_ends_as_its_uncut_story() {
    // What both have alike once, and of each its own.
    every_cut(story_of_a_gang, 3);
}
