//! The work queue: which key of which controller is due when. Time is a parameter; one key is never worked on twice at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tradewind_cluster::Key;

/// One piece of work: controller and key.
pub type Work = (&'static str, Key);

/// Keys by due time, with backoff per key.
#[derive(Debug, Default)]
pub struct Queue {
    due: BTreeMap<Work, Duration>,
    running: BTreeSet<Work>,
    /// Asked for while running: due again at once afterwards.
    again: BTreeSet<Work>,
    failures: BTreeMap<Work, u32>,
}

/// First delay after a failure; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest delay after failures.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

impl Queue {
    /// Makes a key due at `at` (monotonic), or keeps an earlier time.
    pub fn add(&mut self, work: Work, at: Duration) {
        if self.running.contains(&work) {
            self.again.insert(work);
            return;
        }
        let slot = self.due.entry(work).or_insert(at);
        *slot = (*slot).min(at);
    }

    /// Takes one key that is due at `now`: the one that waits longest. It counts as running until [`Queue::done`] or [`Queue::failed`].
    pub fn take(&mut self, now: Duration) -> Option<Work> {
        self.take_if(now, |_| true)
    }

    /// [`Queue::take`] among the keys whose controller `may` take one.
    pub fn take_if(&mut self, now: Duration, may: impl Fn(&str) -> bool) -> Option<Work> {
        let due = self.due.iter().filter(|(work, at)| **at <= now && may(work.0));
        // Keys come in order, and the first of several equal times is the one that `min_by_key` keeps.
        let work = due.min_by_key(|(_, at)| **at)?.0.clone();
        self.due.remove(&work);
        self.running.insert(work.clone());
        Some(work)
    }

    /// All keys that are due at `now`, for a scheduler that picks by itself.
    pub fn ready(&self, now: Duration) -> Vec<Work> {
        self.due.iter().filter(|(_, at)| **at <= now).map(|(work, _)| work.clone()).collect()
    }

    /// Takes this key whether it is due or not; false if it is not queued.
    pub fn take_this(&mut self, work: &Work) -> bool {
        let queued = self.due.remove(work).is_some();
        if queued {
            self.running.insert(work.clone());
        }
        queued
    }

    /// When the next key is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.next_due_if(|_| true)
    }

    /// [`Queue::next_due`] among the keys whose controller `may` take one.
    pub fn next_due_if(&self, may: impl Fn(&str) -> bool) -> Option<Duration> {
        self.due.iter().filter(|(work, _)| may(work.0)).map(|(_, at)| *at).min()
    }

    /// The key's reconcile went well; it is due again after `wake`, if given, and at once if it was asked for meanwhile.
    pub fn done(&mut self, work: &Work, now: Duration, wake: Option<Duration>) {
        self.failures.remove(work);
        self.finish(work, now, wake);
    }

    /// The key's reconcile failed; it is due again after a backoff that doubles with each failure in a row. Having been asked for while it
    /// ran does not cut the backoff short, except after a benign failure; being asked for later does, since something has changed.
    pub fn failed(&mut self, work: &Work, now: Duration, benign: bool) {
        let count = self.failures.entry(work.clone()).or_insert(0);
        *count = count.saturating_add(1);
        let delay =
            FIRST_BACKOFF.saturating_mul(1_u32.checked_shl((*count - 1).min(20)).unwrap_or(u32::MAX)).min(MAX_BACKOFF);
        if !benign {
            self.again.remove(work);
        }
        self.finish(work, now, Some(delay));
    }

    fn finish(&mut self, work: &Work, now: Duration, wake: Option<Duration>) {
        self.running.remove(work);
        let at = if self.again.remove(work) { Some(now) } else { wake.map(|w| now + w) };
        if let Some(at) = at {
            self.add(work.clone(), at);
        }
    }

    /// Number of keys waiting and running.
    pub fn len(&self) -> usize {
        self.due.len() + self.running.len()
    }

    /// True if nothing waits or runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(name: &str) -> Work {
        ("c", Key::cluster(name))
    }
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_running_key_is_not_given_out_and_comes_back_when_asked_for() {
        let mut queue = Queue::default();
        queue.add(work("a"), Duration::ZERO);
        let taken = queue.take(S).unwrap();
        queue.add(work("a"), S);
        assert_eq!(queue.take(S), None, "one key, one worker");
        queue.done(&taken, S, None);
        assert_eq!(queue.take(S), Some(work("a")), "asked for while running");
        queue.done(&work("a"), S, None);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_earliest_time_wins_and_backoff_grows_until_success() {
        let mut queue = Queue::default();
        queue.add(work("a"), 5 * S);
        queue.add(work("a"), 2 * S);
        queue.add(work("a"), 9 * S);
        assert_eq!(queue.next_due(), Some(2 * S));
        assert_eq!(queue.take(S), None);
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            let now = queue.next_due().unwrap();
            let a = queue.take(now).unwrap();
            queue.failed(&a, now, false);
            let delay = queue.next_due().unwrap().saturating_sub(now);
            assert!(delay > last, "{delay:?} after {last:?}");
            last = delay;
        }
        let now = queue.next_due().unwrap();
        let a = queue.take(now).unwrap();
        queue.done(&a, now, Some(S));
        assert_eq!(queue.next_due(), Some(now + S));
    }
}
