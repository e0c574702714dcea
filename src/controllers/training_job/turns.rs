//! Whose turn it is to ask for nodes: jobs with several workers that each hold some nodes and wait for the rest would wait for ever.
//!
//! The scheduler knows Pods, not jobs. So the Pods of a job are made only when no older job of its kind has been told that there is no room;
//! when two have been told so, the younger one gives back what it holds. Where there is room for everybody nobody waits for anybody.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tradewind_cluster::Key;

/// So many jobs may wait for the scheduler at once: enough to keep it busy, and no more than that have to give back when it says no.
const TRYING: usize = 16;

/// How a job with several workers stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Has no Pods, or not all.
    Waiting,
    /// Has Pods that the scheduler has not spoken about.
    Trying,
    /// The scheduler has no room for one of its Pods.
    Stuck,
}

/// What it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Make Pods, or go on waiting with those that it has.
    Go,
    /// Wait: so many older ones do.
    Behind(usize),
    /// Give back what it holds: so many older ones have no room either.
    Yield(usize),
}

/// A job in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When the job was made.
    pub created: Timestamp,
    /// Its key.
    pub key: Key,
    /// What it asks for, as a hash: jobs that ask for something else do not stand in its way.
    pub kind: String,
    /// How it stands.
    pub standing: Standing,
}

/// All jobs with several workers that have not got all their nodes.
#[derive(Debug, Default)]
pub struct Turns {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Turns {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job in, or what is new about it, and says what it may do, and who may go on because of it.
    pub fn stand(&self, uid: &str, mut entry: Entry) -> (Turn, Vec<Key>) {
        let mut entries = self.lock();
        let older = |other: &(&String, &Entry)| {
            other.1.kind == entry.kind && (other.1.created, other.0.as_str()) < (entry.created, uid)
        };
        let stuck = entries.iter().filter(older).filter(|(_, e)| e.standing == Standing::Stuck).count();
        let waiting = entries.iter().filter(older).filter(|(_, e)| e.standing == Standing::Waiting).count();
        let trying = entries
            .iter()
            .filter(|(other, e)| other.as_str() != uid && e.kind == entry.kind && e.standing == Standing::Trying);
        let turn = match entry.standing {
            Standing::Waiting if stuck > 0 || trying.count() >= TRYING => Turn::Behind((stuck + waiting).max(1)),
            Standing::Stuck if stuck > 0 => Turn::Yield(stuck),
            Standing::Waiting | Standing::Trying | Standing::Stuck => Turn::Go,
        };
        if (turn, entry.standing) == (Turn::Go, Standing::Waiting) {
            entry.standing = Standing::Trying;
        }
        let kind = entry.kind.clone();
        let changed =
            entries.insert(uid.to_owned(), entry.clone()).is_none_or(|before| before.standing != entry.standing);
        let next = if changed { next(&entries, &kind) } else { Vec::new() };
        (turn, next)
    }

    /// A job has all its nodes, or wants none now. Says who may go on because of it.
    pub fn leave(&self, uid: &str) -> Vec<Key> {
        let mut entries = self.lock();
        entries.remove(uid).map(|gone| next(&entries, &gone.kind)).unwrap_or_default()
    }

    /// How many wait besides this one, for the same.
    pub fn others(&self, uid: &str) -> usize {
        let entries = self.lock();
        let Some(own) = entries.get(uid) else { return 0 };
        entries.iter().filter(|(other, e)| other.as_str() != uid && e.kind == own.kind).count()
    }
}

/// Those who may go on now, oldest first.
fn next(entries: &BTreeMap<String, Entry>, kind: &str) -> Vec<Key> {
    let of = |standing| entries.iter().filter(move |(_, e)| e.kind == kind && e.standing == standing);
    let age = |(uid, e): &(&String, &Entry)| (e.created, (*uid).clone());
    let first_stuck = of(Standing::Stuck).map(|e| age(&e)).min();
    let room = TRYING.saturating_sub(of(Standing::Trying).count());
    let mut waiting: Vec<_> =
        of(Standing::Waiting).filter(|e| first_stuck.as_ref().is_none_or(|s| age(e) < *s)).collect();
    waiting.sort_by_key(age);
    waiting.into_iter().take(room).map(|(_, e)| e.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: i64, standing: Standing) -> Entry {
        let created = Timestamp::from_second(second).unwrap();
        Entry { created, key: Key::namespaced("n", format!("j{second}")), kind: "gpu".to_owned(), standing }
    }

    #[test]
    fn nobody_waits_while_there_is_room() {
        let turns = Turns::default();
        for n in 0..10 {
            assert_eq!(turns.stand(&n.to_string(), entry(n, Standing::Waiting)).0, Turn::Go, "{n}");
        }
    }

    #[test]
    fn one_that_is_stuck_holds_up_the_younger_ones_of_its_kind() {
        let turns = Turns::default();
        turns.stand("a", entry(1, Standing::Stuck));
        assert_eq!(turns.stand("b", entry(2, Standing::Waiting)).0, Turn::Behind(1));
        assert_eq!(turns.stand("c", entry(3, Standing::Waiting)).0, Turn::Behind(2));
        assert_eq!(turns.stand("d", entry(0, Standing::Waiting)).0, Turn::Go, "it is older");
        let other = Entry { kind: "cpu".to_owned(), ..entry(4, Standing::Waiting) };
        assert_eq!(turns.stand("e", other).0, Turn::Go, "it asks for something else");
        let names: Vec<String> = turns.leave("a").into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["j2", "j3"], "both may try now");
    }

    #[test]
    fn of_two_that_are_stuck_the_younger_gives_back() {
        let turns = Turns::default();
        turns.stand("young", entry(2, Standing::Stuck));
        assert_eq!(turns.stand("old", entry(1, Standing::Stuck)).0, Turn::Go);
        assert_eq!(turns.stand("young", entry(2, Standing::Stuck)).0, Turn::Yield(1));
        assert_eq!(turns.others("old"), 1);
    }

    #[test]
    fn only_so_many_try_at_once() {
        let turns = Turns::default();
        for n in 0..16 {
            turns.stand(&format!("{n:02}"), entry(n, Standing::Waiting));
        }
        assert_eq!(turns.stand("99", entry(99, Standing::Waiting)).0, Turn::Behind(1));
        let next: Vec<String> = turns.leave("03").into_iter().map(|key| key.name).collect();
        assert_eq!(next, ["j99"]);
    }
}
