//! Many machines taken away at once: the account's trouble, not that of single machines. Renting pauses for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tradewind_api::conditions::{LOSSES_AT_ONCE, condition};
use tradewind_api::{Reason, RentedMachine};

/// So many machines at least, and at least half of those that ran there.
const MANY: usize = 3;
/// What two lists show is written down one after the other.
const SLACK: Duration = Duration::from_secs(5);
/// Polls for which renting pauses: 5 minutes with the default poll of 10 s.
const PAUSE_POLLS: u32 = 30;

/// Losses of one account that this process has seen. Times are monotonic.
#[derive(Debug, Default)]
pub struct Losses {
    /// When each machine was first seen alive, by uid.
    alive: BTreeMap<String, Duration>,
    /// When each loss was first seen, and since when the machine had lived.
    lost: BTreeMap<String, Loss>,
    primed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    /// `None` for one from before this process.
    at: Option<Duration>,
    since: Duration,
}

/// Many losses at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// Machines taken away within two polls.
    pub lost: usize,
    /// Machines that ran before.
    pub of: usize,
}

impl Losses {
    /// Looks at the machines of the account.
    pub fn look<'a>(
        &mut self,
        machines: impl IntoIterator<Item = &'a RentedMachine>,
        now: Duration,
        poll: Duration,
    ) -> Option<Burst> {
        let window = poll * 2 + SLACK;
        let (mut alive, mut lost) = (BTreeMap::new(), BTreeMap::new());
        for machine in machines {
            let Some(status) = machine.status.as_ref().filter(|s| s.machine_id.is_some()) else { continue };
            let uid = machine.metadata.uid.clone().unwrap_or_default();
            let known = self.alive.get(&uid).copied();
            match status.ended.as_deref() {
                None => drop(alive.insert(uid, known.unwrap_or(now))),
                Some(ended) if ended == Reason::Preempted.as_str() => {
                    let new = Loss { at: self.primed.then_some(now), since: known.unwrap_or_default() };
                    let loss = self.lost.get(&uid).copied().unwrap_or(new);
                    lost.insert(uid, loss);
                }
                Some(_) => {}
            }
        }
        let recent = |loss: &Loss| loss.at.is_some_and(|at| now.saturating_sub(at) <= window);
        // Objects may be gone before the next look.
        let before = std::mem::take(&mut self.lost);
        self.lost = before.into_iter().filter(|(_, loss)| recent(loss)).chain(lost).collect();
        self.alive = alive;
        self.primed = true;
        let losses: Vec<&Loss> = self.lost.values().filter(|loss| recent(loss)).collect();
        // Successors of lost machines that are lost in their turn are another matter: all must have lived side by side.
        let first = losses.iter().filter_map(|loss| loss.at).min()?;
        let lost = losses.iter().filter(|loss| loss.since < first).count();
        let of = lost + self.alive.values().filter(|since| **since < first).count();
        (lost >= MANY && lost * 2 >= of).then_some(Burst { lost, of })
    }
}

/// Until when renting pauses, by what the status says of it: a restart of the operator changes nothing.
pub fn paused_until(conditions: &[Condition], poll: Duration, now: Timestamp) -> Option<Timestamp> {
    let told = condition(conditions, LOSSES_AT_ONCE).filter(|c| c.status == "True")?;
    let until = end(told.last_transition_time.0, poll);
    (now < until).then_some(until)
}

/// When a pause that begins at `from` is over.
pub fn end(from: Timestamp, poll: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(poll * PAUSE_POLLS).unwrap_or(SignedDuration::MAX);
    from.checked_add(pause).unwrap_or(Timestamp::MAX)
}

/// What is said of a burst.
pub fn sentence(burst: Burst, poll: Duration, until: Timestamp) -> String {
    format!(
        "{} of {} machines on this account were taken away within {} s; nothing new is rented before {}",
        burst.lost,
        burst.of,
        (poll * 2).as_secs(),
        until.strftime("%H:%M:%S UTC"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    fn machines(alive: usize, lost: usize, ended: usize) -> Vec<RentedMachine> {
        let machine =
            |uid: String, ended: Option<&str>| test_machine::machine(&uid, &json!({"machineId": uid, "ended": ended}));
        let alive = (0..alive).map(|n| machine(format!("alive-{n}"), None));
        let lost = (0..lost).map(|n| machine(format!("lost-{n}"), Some("Preempted")));
        let ended = (0..ended).map(|n| machine(format!("ended-{n}"), Some("Finished")));
        alive.chain(lost).chain(ended).collect()
    }

    #[test]
    fn three_and_half_of_all_within_two_polls() {
        let poll = Duration::from_secs(10);
        let s = Duration::from_secs;
        for (what, looks, expected) in [
            ("three of three", vec![(0, 3, 0, 0), (10, 0, 3, 0)], Some(Burst { lost: 3, of: 3 })),
            ("three of six", vec![(0, 6, 0, 0), (10, 3, 3, 0)], Some(Burst { lost: 3, of: 6 })),
            ("three of seven", vec![(0, 7, 0, 0), (10, 4, 3, 0)], None),
            ("two of two", vec![(0, 2, 0, 0), (10, 0, 2, 0)], None),
            ("over two polls", vec![(0, 3, 0, 0), (10, 2, 1, 0), (30, 0, 3, 0)], Some(Burst { lost: 3, of: 3 })),
            ("over a minute", vec![(0, 3, 0, 0), (10, 2, 1, 0), (40, 1, 2, 0), (70, 0, 3, 0)], None),
            ("finished, not lost", vec![(0, 3, 0, 0), (10, 0, 0, 3)], None),
            ("before this process", vec![(0, 1, 3, 0), (1, 1, 3, 0)], None),
            (
                "objects that are gone before the next look",
                vec![(0, 4, 0, 0), (10, 1, 3, 0), (11, 1, 0, 0)],
                Some(Burst { lost: 3, of: 4 }),
            ),
        ] {
            let mut losses = Losses::default();
            let found = looks
                .iter()
                .map(|(at, alive, lost, ended)| losses.look(&machines(*alive, *lost, *ended), s(*at), poll));
            assert_eq!(found.last().flatten(), expected, "{what}");
        }
    }

    #[test]
    fn one_job_that_is_outbid_again_and_again_is_no_burst() {
        let (mut losses, poll) = (Losses::default(), Duration::from_secs(10));
        let named = |name: &str, ended: bool| {
            let mut machine = machines(usize::from(!ended), usize::from(ended), 0).remove(0);
            machine.metadata.uid = Some(name.to_owned());
            machine
        };
        for second in 0..8 {
            let name = format!("attempt-{}", second / 2);
            let found = losses.look(&[named(&name, second % 2 == 1)], Duration::from_secs(second), poll);
            assert_eq!(found, None, "second {second}");
        }
    }

    #[test]
    fn the_pause_is_bounded_and_outlives_a_restart() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut conditions = Vec::new();
        let poll = Duration::from_secs(10);
        assert_eq!(paused_until(&conditions, poll, at(1)), None);
        let set = |conditions: &mut Vec<Condition>, s, on, words: &str| {
            tradewind_api::set_condition(conditions, at(s), 1, LOSSES_AT_ONCE, Some(on), Reason::LossesAtOnce, words);
        };
        set(&mut conditions, 1000, true, "first");
        set(&mut conditions, 1200, true, "again");
        assert_eq!(paused_until(&conditions, poll, at(1299)), Some(at(1300)), "what comes on top prolongs nothing");
        assert_eq!(paused_until(&conditions, poll, at(1300)), None);
        set(&mut conditions, 1300, false, "over");
        assert_eq!(paused_until(&conditions, poll, at(1301)), None);
        let words = sentence(Burst { lost: 4, of: 5 }, poll, at(1300));
        assert_eq!(
            words,
            "4 of 5 machines on this account were taken away within 20 s; nothing new is rented before 00:21:40 UTC"
        );
    }
}
