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

/// Losses of one account that this process has seen.
#[derive(Debug, Default)]
pub struct Losses {
    /// Uid and when the loss was first seen (monotonic); `None` for those from before this process.
    seen: BTreeMap<String, Option<Duration>>,
    primed: bool,
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
        let mut alive = 0;
        let mut there = BTreeMap::new();
        for machine in machines {
            let Some(status) = machine.status.as_ref().filter(|s| s.machine_id.is_some()) else { continue };
            match status.ended.as_deref() {
                None => alive += 1,
                Some(ended) if ended == Reason::Preempted.as_str() => {
                    let uid = machine.metadata.uid.clone().unwrap_or_default();
                    let at = self.seen.get(&uid).copied().unwrap_or_else(|| self.primed.then_some(now));
                    there.insert(uid, at);
                }
                Some(_) => {}
            }
        }
        let recent = |at: &Option<Duration>| at.is_some_and(|at| now.saturating_sub(at) <= window);
        let left =
            std::mem::take(&mut self.seen).into_iter().filter(|(uid, at)| recent(at) && !there.contains_key(uid));
        self.seen = left.collect();
        self.seen.extend(there);
        self.primed = true;
        let lost = self.seen.values().filter(|at| recent(at)).count();
        let of = lost + alive;
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

    fn machines(alive: usize, lost: usize, ended: usize) -> Vec<RentedMachine> {
        let offer = json!({"id": "1", "offer": {}, "priceCap": "1", "reservePerHour": "1"});
        let machine = |uid: String, ended: Option<&str>| {
            let status = json!({"machineId": uid, "ended": ended});
            serde_json::from_value(json!({
                "apiVersion": "tradewind.dev/v1alpha1", "kind": "RentedMachine", "metadata": {"name": uid, "uid": uid},
                "spec": {
                    "provider": "p", "job": {"namespace": "n", "name": "j", "uid": "u"},
                    "claim": {"podNamespace": "n", "podName": "p", "podUid": "u"}, "runId": "r", "attempt": 0,
                    "offers": [offer], "startDeadlineS": 1,
                    "workload": {"container": "c", "image": "i", "command": [], "diskGib": 1, "stopGraceS": 1}
                },
                "status": status
            }))
            .unwrap()
        };
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
