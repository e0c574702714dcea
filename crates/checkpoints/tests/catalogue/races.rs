//! Several operators at once, interleaved at every call to the store: an old one that has not noticed yet that it is no longer the leader.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use tradewind_checkpoints::store::Answer;
use tradewind_checkpoints::{
    Catalogue, CommitOutcome, Fetched, ObjectInfo, PutOutcome, Refusal, Store, StoreError, put_if_absent_resolved,
};
use tradewind_core::Clock;
use tradewind_protocol::{Manifest, Ticket};

use crate::stage::{Historian, Machine, RUN, Stage, keep, now};

/// Gives the turn away before and after every call.
struct Turns<S>(S);

async fn give_turn() {
    let mut given = false;
    std::future::poll_fn(|context| {
        if given {
            return Poll::Ready(());
        }
        given = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn turns<'a, T: Send + 'a>(call: Answer<'a, T>) -> Answer<'a, T> {
    async move {
        give_turn().await;
        let answer = call.await;
        give_turn().await;
        answer
    }
    .boxed()
}

impl<S: Store> Store for Turns<S> {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        turns(self.0.get(key, max_bytes))
    }
    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        turns(self.0.get_if_changed(key, etag, max_bytes))
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        turns(self.0.put(key, bytes))
    }
    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        turns(self.0.put_if_absent(key, bytes))
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        turns(self.0.head(key))
    }
    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        turns(self.0.list(prefix, limit))
    }
    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        turns(self.0.list_folders(prefix, limit))
    }
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        turns(self.0.delete(key))
    }
    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_get(key, lifetime)
    }
    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_put(key, lifetime)
    }
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Polls the tasks in the order that `schedule` says, then one after the other until all are done. `look` sees the world after every turn.
fn interleave(mut tasks: Vec<Task<'_>>, schedule: &[u8], mut look: impl FnMut()) {
    let mut context = Context::from_waker(Waker::noop());
    let mut turn = 0;
    while !tasks.is_empty() {
        let pick = schedule.get(turn).map_or(turn, |pick| usize::from(*pick)) % tasks.len();
        if tasks[pick].as_mut().poll(&mut context).is_ready() {
            drop(tasks.swap_remove(pick));
        }
        look();
        turn += 1;
        assert!(turn < 100_000, "the tasks never end");
    }
}

fn operator(stage: &Stage) -> Catalogue {
    stage.catalogue_on(Arc::new(Turns(stage.place())))
}

#[test]
fn of_two_writers_at_one_place_one_wins_and_both_know() {
    for schedule in [[0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]] {
        let stage = Stage::default();
        let store = Turns(stage.place());
        let outcomes = std::cell::RefCell::new(Vec::new());
        let write = |text: &'static str| -> Task<'_> {
            let (store, outcomes) = (&store, &outcomes);
            Box::pin(async move {
                let outcome = put_if_absent_resolved(store, "k", Bytes::from(text)).await.unwrap();
                outcomes.borrow_mut().push((text, outcome));
            })
        };
        interleave(vec![write("one"), write("two")], &schedule, || {});
        let there = now(stage.place().get("k", 10)).unwrap().unwrap();
        for (text, outcome) in outcomes.into_inner() {
            let won = there == text.as_bytes();
            assert_eq!(outcome == PutOutcome::Written, won, "{text} after {schedule:?}");
        }
    }
}

/// What happens at once: the same offers committed by two operators, a new attempt with its own offers, two collectors, a zombie.
fn scene<'a>(stage: &'a Stage, operators: &'a [Catalogue], offers: &'a Offers, kept: usize) -> Vec<Task<'a>> {
    let commit = |operator: &'a Catalogue, manifests: Vec<&'a Manifest>| -> Task<'a> {
        Box::pin(async move {
            for manifest in manifests {
                let outcome = operator.commit(&manifest.machine, manifest.attempt, manifest).await.unwrap();
                let fine = match &outcome {
                    CommitOutcome::Committed { .. } => true,
                    CommitOutcome::Refused(refusal) => {
                        matches!(
                            refusal,
                            Refusal::Fenced { .. } | Refusal::UnknownChunk { .. } | Refusal::MissingChunk { .. }
                        )
                    }
                };
                assert!(fine, "{outcome:?}");
            }
        })
    };
    let collect = |operator: &'a Catalogue| -> Task<'a> {
        Box::pin(async move {
            operator.collect(&keep(kept)).await.unwrap();
            operator.collect(&keep(kept)).await.unwrap();
        })
    };
    let next: Task<'a> = Box::pin(async move {
        let begun = operators[2].begin_attempt(RUN, 1, None, stage.clock.now()).await.unwrap();
        begun.unwrap();
        for manifest in &offers.second {
            operators[2].commit(&manifest.machine, manifest.attempt, manifest).await.unwrap();
        }
    });
    vec![
        commit(&operators[0], offers.first.iter().collect()),
        commit(&operators[1], offers.first.iter().rev().collect()),
        next,
        collect(&operators[3]),
        collect(&operators[4]),
    ]
}

struct Offers {
    first: Vec<Manifest>,
    second: Vec<Manifest>,
}

/// Attempt 0 has three checkpoints; three more offers reference one of them each, and so do those of attempt 1.
fn prepare(stage: &Stage) -> Offers {
    stage.begin(0);
    let mut first = Machine::new("machine-a", 0);
    let mut committed = Vec::new();
    for step in 1..=3 {
        let manifest = first.save(stage, step, None);
        now(stage.catalogue().commit("machine-a", 0, &manifest)).unwrap();
        committed.push(manifest);
    }
    let mut second = Machine::new("machine-b", 1);
    let parent = |n: usize| Some((n as u64 + 1, &committed[n].files[0].chunks[0]));
    Offers {
        first: (0..3).map(|n| first.save(stage, 10 + n as u64, parent(n))).collect(),
        second: (0..3).map(|n| second.save(stage, 20 + n as u64, parent(n))).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// In every order of turns: no checkpoint that counts lacks a chunk, none is committed past a fence or twice, no entry changes.
    #[test]
    fn no_order_of_turns_breaks_a_promise(schedule in prop::collection::vec(0_u8..60, 0..600), kept in 1_usize..3) {
        let stage = Stage::default();
        let offers = prepare(&stage);
        let operators: Vec<Catalogue> = (0..5).map(|_| operator(&stage)).collect();
        let mut historian = Historian::default();
        historian.look(&stage);
        interleave(scene(&stage, &operators, &offers, kept), &schedule, || historian.look(&stage));
        prop_assert!(stage.log().checkpoints().next().is_some());
    }
}

/// The commit that a fence overtakes between its look at the log and its write.
#[test]
fn a_commit_that_a_fence_overtakes_is_refused() {
    let stage = Stage::default();
    stage.begin(0);
    let mut zombie = Machine::new("machine-a", 0);
    let manifest = zombie.save(&stage, 1, None);
    let operator = operator(&stage);
    let mut commit = Box::pin(operator.commit("machine-a", 0, &manifest));
    let mut context = Context::from_waker(Waker::noop());
    // One turn after the other, and before each a chance for the fence: the last possible moment is found by counting turns first.
    let mut turns = 0;
    while commit.as_mut().poll(&mut context).is_pending() {
        turns += 1;
    }
    assert!(matches!(stage.log().newest_attempt(), Some(0)));
    for moment in 0..=turns {
        let stage = Stage::default();
        stage.begin(0);
        let mut zombie = Machine::new("machine-a", 0);
        let manifest = zombie.save(&stage, 1, None);
        let operator = self::operator(&stage);
        let mut commit = Box::pin(operator.commit("machine-a", 0, &manifest));
        let mut outcome: Option<Result<CommitOutcome, StoreError>> = None;
        for turn in 0.. {
            if turn == moment {
                stage.begin(1);
            }
            if let Poll::Ready(answer) = commit.as_mut().poll(&mut context) {
                outcome = Some(answer);
                break;
            }
        }
        let committed = matches!(outcome, Some(Ok(CommitOutcome::Committed { .. })));
        let mut historian = Historian::default();
        historian.look(&stage);
        assert_eq!(historian.steps() == [1], committed, "fence at turn {moment}");
        if !committed {
            assert_eq!(
                outcome.unwrap().unwrap(),
                CommitOutcome::Refused(Refusal::Fenced { newest: Some(1) }),
                "turn {moment}"
            );
        }
    }
}

/// A store with a planted fault.
#[derive(Clone, Copy)]
enum Fault {
    /// Conditional writes overwrite.
    Overwrites,
    /// The store says of every chunk that it is there.
    ClaimsAll,
}

struct Faulty<S>(S, Fault);

impl<S: Store> Store for Faulty<S> {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        self.0.get(key, max_bytes)
    }
    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        self.0.get_if_changed(key, etag, max_bytes)
    }
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.0.put(key, bytes)
    }
    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        match self.1 {
            Fault::ClaimsAll => self.0.put_if_absent(key, bytes),
            Fault::Overwrites => async move { self.0.put(key, bytes).await.map(|()| PutOutcome::Written) }.boxed(),
        }
    }
    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        async move {
            let found = self.0.head(key).await?;
            let claim =
                || ObjectInfo { key: key.to_owned(), size_bytes: 7, etag: None, last_modified: jiff::Timestamp::MAX };
            Ok(if matches!(self.1, Fault::ClaimsAll) { found.or_else(|| Some(claim())) } else { found })
        }
        .boxed()
    }
    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        self.0.list(prefix, limit)
    }
    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        self.0.list_folders(prefix, limit)
    }
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.0.delete(key)
    }
    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_get(key, lifetime)
    }
    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.0.sign_put(key, lifetime)
    }
}

/// The checker must see what a store with this fault lets happen.
fn checker_sees(fault: Fault) {
    let stage = Stage::default();
    stage.begin(0);
    let mut machine = Machine::new("machine-a", 0);
    let mut historian = Historian::default();
    let manifests: Vec<Manifest> = (1..=2).map(|step| machine.save(&stage, step, None)).collect();
    let operator = stage.catalogue_on(Arc::new(Faulty(Turns(stage.place()), fault)));
    let commit = |manifest: &Manifest| -> Manifest {
        let mut manifest = manifest.clone();
        if matches!(fault, Fault::ClaimsAll) {
            let chunk = &mut manifest.files[0].chunks[0];
            chunk.key.replace_range(chunk.key.len() - 4.., "0099");
            chunk.size_bytes = 7;
            manifest.files[0].size_bytes = 7;
        }
        manifest
    };
    let offers: Vec<Manifest> = manifests.iter().map(commit).collect();
    let tasks: Vec<Task<'_>> = offers
        .iter()
        .map(|manifest| -> Task<'_> { Box::pin(async { drop(operator.commit("machine-a", 0, manifest).await) }) })
        .collect();
    interleave(tasks, &[0, 1], || historian.look(&stage));
}

#[test]
#[should_panic(expected = "has changed")]
fn the_checker_sees_entries_that_are_overwritten() {
    checker_sees(Fault::Overwrites);
}

#[test]
#[should_panic(expected = "lacks chunk")]
fn the_checker_sees_checkpoints_that_are_not_whole() {
    checker_sees(Fault::ClaimsAll);
}
