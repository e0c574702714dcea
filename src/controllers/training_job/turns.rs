//! Whose turn it is to ask for nodes: jobs with several workers that each hold some nodes and wait for the rest would wait for ever.
//!
//! The scheduler knows Pods, not jobs. So the Pods of a job are made only when no older job of its kind has been told that there is no room;
//! when two have been told so, the younger one gives back what it holds. Where there is room for everybody nobody waits for anybody.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tradewind_cluster::Key;

/// So many jobs of a kind may wait for the scheduler at most: enough to keep it busy. It begins with one and rises by one with each that got
/// its nodes at once; when the scheduler says no it begins anew, so that few ever have to give back.
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
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By uid of the job.
    entries: BTreeMap<String, Entry>,
    /// How many of a kind may try at once; one where it is not said.
    limits: BTreeMap<String, usize>,
}

impl Turns {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job in, or what is new about it, and says what it may do, and who may go on because of it.
    pub fn stand(&self, uid: &str, mut entry: Entry) -> (Turn, Vec<Key>) {
        let mut queue = self.lock();
        if entry.standing == Standing::Stuck {
            queue.limits.remove(&entry.kind);
        }
        let limit = queue.limit(&entry.kind);
        let entries = &mut queue.entries;
        let older = |other: &(&String, &Entry)| {
            other.1.kind == entry.kind && (other.1.created, other.0.as_str()) < (entry.created, uid)
        };
        let stuck = entries.iter().filter(older).filter(|(_, e)| e.standing == Standing::Stuck).count();
        let waiting = entries.iter().filter(older).filter(|(_, e)| e.standing == Standing::Waiting).count();
        let trying = entries
            .iter()
            .filter(|(other, e)| other.as_str() != uid && e.kind == entry.kind && e.standing == Standing::Trying);
        let turn = match entry.standing {
            Standing::Waiting if stuck > 0 || trying.count() >= limit => Turn::Behind((stuck + waiting).max(1)),
            Standing::Stuck if stuck > 0 => Turn::Yield(stuck),
            Standing::Waiting | Standing::Trying | Standing::Stuck => Turn::Go,
        };
        if (turn, entry.standing) == (Turn::Go, Standing::Waiting) {
            entry.standing = Standing::Trying;
        }
        let kind = entry.kind.clone();
        let changed =
            entries.insert(uid.to_owned(), entry.clone()).is_none_or(|before| before.standing != entry.standing);
        let next = if changed { queue.next(&kind) } else { Vec::new() };
        (turn, next)
    }

    /// A job has all its nodes, or wants none now. Says who may go on because of it.
    pub fn leave(&self, uid: &str) -> Vec<Key> {
        let mut queue = self.lock();
        let Some(gone) = queue.entries.remove(uid) else { return Vec::new() };
        if gone.standing == Standing::Trying {
            let limit = (queue.limit(&gone.kind) + 1).min(TRYING);
            queue.limits.insert(gone.kind.clone(), limit);
        }
        if !queue.entries.values().any(|entry| entry.kind == gone.kind) {
            queue.limits.remove(&gone.kind);
        }
        queue.next(&gone.kind)
    }

    /// How many wait besides this one, for the same.
    pub fn others(&self, uid: &str) -> usize {
        let queue = self.lock();
        let Some(own) = queue.entries.get(uid) else { return 0 };
        queue.entries.iter().filter(|(other, e)| other.as_str() != uid && e.kind == own.kind).count()
    }
}

impl Queue {
    fn limit(&self, kind: &str) -> usize {
        self.limits.get(kind).copied().unwrap_or(1)
    }

    /// Those who may go on now, oldest first.
    fn next(&self, kind: &str) -> Vec<Key> {
        let entries = &self.entries;
        let of = |standing| entries.iter().filter(move |(_, e)| e.kind == kind && e.standing == standing);
        let age = |(uid, e): &(&String, &Entry)| (e.created, (*uid).clone());
        let first_stuck = of(Standing::Stuck).map(|e| age(&e)).min();
        let room = self.limit(kind).saturating_sub(of(Standing::Trying).count());
        let mut waiting: Vec<_> =
            of(Standing::Waiting).filter(|e| first_stuck.as_ref().is_none_or(|s| age(e) < *s)).collect();
        waiting.sort_by_key(age);
        waiting.into_iter().take(room).map(|(_, e)| e.key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: i64, standing: Standing) -> Entry {
        let created = Timestamp::from_second(second).unwrap();
        Entry { created, key: Key::namespaced("n", format!("j{second}")), kind: "gpu".to_owned(), standing }
    }

    #[test]
    fn nobody_waits_long_while_there_is_room() {
        let turns = Turns::default();
        for n in 0..100 {
            turns.stand(&format!("{n:03}"), entry(n, Standing::Waiting));
        }
        // Whoever may go gets its nodes at once.
        let mut trying = vec!["000".to_owned()];
        let (mut rounds, mut placed) = (0, 0);
        while !trying.is_empty() {
            let mut may: Vec<String> = Vec::new();
            for uid in trying.drain(..) {
                placed += 1;
                for key in turns.leave(&uid) {
                    let n: i64 = key.name[1..].parse().unwrap();
                    let uid = format!("{n:03}");
                    if turns.stand(&uid, entry(n, Standing::Waiting)).0 == Turn::Go && !may.contains(&uid) {
                        may.push(uid);
                    }
                }
            }
            trying = may;
            rounds += 1;
        }
        assert_eq!(placed, 100);
        assert!(rounds < 20, "{rounds} rounds");
    }

    #[test]
    fn one_that_is_stuck_holds_up_the_younger_ones_of_its_kind() {
        let turns = Turns::default();
        turns.stand("a", entry(1, Standing::Stuck));
        assert_eq!(turns.stand("b", entry(2, Standing::Waiting)).0, Turn::Behind(1));
        assert_eq!(turns.stand("c", entry(3, Standing::Waiting)).0, Turn::Behind(2));
        assert_eq!(turns.stand("d", entry(0, Standing::Waiting)).0, Turn::Go, "it is older");
        turns.leave("d");
        let other = Entry { kind: "cpu".to_owned(), ..entry(4, Standing::Waiting) };
        assert_eq!(turns.stand("e", other).0, Turn::Go, "it asks for something else");
        turns.stand("a", entry(1, Standing::Stuck));
        let names: Vec<String> = turns.leave("a").into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["j2"], "one asks, then the next");
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
    fn one_asks_after_the_other_where_the_scheduler_said_no() {
        let turns = Turns::default();
        assert_eq!(turns.stand("a", entry(1, Standing::Waiting)).0, Turn::Go);
        assert_eq!(turns.stand("b", entry(2, Standing::Waiting)).0, Turn::Behind(1));
        turns.stand("a", entry(1, Standing::Stuck));
        turns.stand("c", entry(3, Standing::Waiting));
        let next: Vec<String> = turns.leave("a").into_iter().map(|key| key.name).collect();
        assert_eq!(next, ["j2"], "it got its nodes late: the cluster is full");
        assert_eq!(turns.stand("b", entry(2, Standing::Waiting)).0, Turn::Go);
        let next: Vec<String> = turns.leave("b").into_iter().map(|key| key.name).collect();
        assert_eq!(next, ["j3"]);
        assert_eq!(turns.stand("c", entry(3, Standing::Waiting)).0, Turn::Go);
        assert_eq!(turns.stand("d", entry(4, Standing::Waiting)).0, Turn::Go, "b got its nodes at once: two may try");
    }
}
