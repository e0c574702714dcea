//! Pools of what fits, as a decision over time weighs them. Pure.

use std::collections::BTreeMap;

use tradewind_core::{Capacity, Money};
use tradewind_planner::when::Changeover;
use tradewind_planner::{Candidate, TimeBreakdown};

use super::times::Times;
use crate::market::pools::PoolId;

/// Machines that stay of which each is looked at as the one to fall back on, the cheapest that keep the deadline.
const REFUGES: usize = 4;
/// Spot pools that are weighed against each other: the cheapest, the rest would never be taken.
pub const POOLS: usize = 8;

/// One pool.
#[derive(Clone)]
pub struct Group<'a> {
    /// Its name.
    pub id: PoolId,
    /// Its machines, the best first.
    pub candidates: Vec<&'a Candidate>,
    /// They can be had now.
    pub up: bool,
}

impl Group<'_> {
    /// What all of the rest costs on its best machine.
    fn total(&self) -> Money {
        self.candidates.first().map_or(Money::ZERO, |c| c.cost.total)
    }

    /// Seconds until its best machine works.
    pub fn start_s(&self) -> u64 {
        self.candidates.first().map_or(0, |c| c.time.startup_s())
    }

    /// Nobody takes its machines away.
    pub fn stays(&self) -> bool {
        self.id.capacity == Capacity::OnDemand
    }
}

/// Candidates of the pools, the cheapest pools first. Of one that is there, what was there before does not count.
pub fn groups<'a>(ranked: &'a [Candidate], absent: &'a [Candidate]) -> Vec<Group<'a>> {
    let mut groups: BTreeMap<PoolId, Group<'a>> = BTreeMap::new();
    for (candidates, up) in [(ranked, true), (absent, false)] {
        for candidate in candidates {
            let id = PoolId::of(&candidate.offer);
            let new = || Group { id: id.clone(), candidates: Vec::new(), up };
            let group = groups.entry(id.clone()).or_insert_with(new);
            if group.up == up {
                group.candidates.push(candidate);
            }
        }
    }
    let mut groups: Vec<Group<'_>> = groups.into_values().collect();
    groups.sort_by_key(Group::total);
    groups
}

/// Whether a machine that stays is done in time, with a start twice as long as expected, after the end of the machine that is held.
pub fn keeps(times: &Times, holds: bool, candidate: &Candidate) -> bool {
    starting_in(times, holds, candidate.time.startup_s(), candidate)
}

/// The same with a start that is expected to take so many seconds.
fn starting_in(times: &Times, holds: bool, start_s: u64, candidate: &Candidate) -> bool {
    let Some(deadline) = times.deadline else { return true };
    let end_s = if holds { times.stop_s } else { 0 };
    done_s(start_s, candidate.time.run_s).saturating_add(end_s) <= times.left(deadline)
}

/// Seconds until a machine that stays is done, if it takes twice as long to start as expected.
pub fn latest_done_s(time: &TimeBreakdown) -> u64 {
    done_s(time.startup_s(), time.run_s)
}

fn done_s(start_s: u64, run_s: u64) -> u64 {
    start_s.saturating_mul(2).saturating_add(run_s)
}

/// Pools of machines that stay, each faster than all that cost less: whatever is wanted of them, it is one of these.
fn worth_having(mut stay: Vec<Group<'_>>) -> Vec<Group<'_>> {
    let mut best = u64::MAX;
    stay.retain(|group| {
        let done = group.candidates.iter().map(|c| c.finish_in_s).min().unwrap_or(u64::MAX);
        let faster = done < best;
        best = best.min(done);
        faster
    });
    stay
}

/// What to fall back on: several sets of pools that stay, of which one is taken. Of each only what keeps the deadline is left.
pub fn refuges<'a>(times: &Times, holds: bool, stay: Vec<Group<'a>>) -> Vec<Vec<Group<'a>>> {
    let stay = worth_having(stay);
    if times.deadline.is_none() {
        return vec![stay.into_iter().take(1).collect()];
    }
    let keeping = stay.iter().filter_map(|group| {
        let mut group = group.clone();
        group.candidates.retain(|c| keeps(times, holds, c));
        (!group.candidates.is_empty()).then(|| vec![group])
    });
    let kept: Vec<Vec<Group<'_>>> = keeping.take(REFUGES).collect();
    if kept.is_empty() { vec![fastest_first(stay)] } else { kept }
}

/// Where nothing keeps the deadline, of each pool the fastest counts.
fn fastest_first(mut groups: Vec<Group<'_>>) -> Vec<Group<'_>> {
    for group in &mut groups {
        group.candidates.sort_by_key(|c| c.finish_in_s);
    }
    groups
}

/// Where nothing that stays keeps the deadline: the spot pools that would, if nobody takes their machine, or the one pool that is done
/// first with the losses to be expected. `None` = nothing is there.
pub fn soonest<'a>(times: &Times, holds: bool, come: Vec<Group<'a>>, stay: Vec<Group<'a>>) -> Option<Vec<Group<'a>>> {
    let there = |groups: Vec<Group<'a>>| fastest_first(groups.into_iter().filter(|group| group.up).collect());
    let in_time = |group: &Group<'_>| group.candidates.first().is_some_and(|c| keeps(times, holds, c));
    let (mut in_time, late): (Vec<_>, Vec<_>) = there(come).into_iter().partition(in_time);
    in_time.truncate(POOLS);
    // They are weighed with the longest of their starts.
    while !in_time.is_empty() {
        let longest_s = in_time.iter().map(Group::start_s).max().unwrap_or(0);
        let with_longest =
            |group: &Group<'_>| group.candidates.first().is_some_and(|c| starting_in(times, holds, longest_s, c));
        if in_time.iter().all(with_longest) {
            return Some(in_time);
        }
        in_time.retain(|group| group.start_s() < longest_s);
    }
    let finish_s = |group: &Group<'_>| group.candidates.first().map_or(u64::MAX, |c| c.finish_in_s);
    there(stay).into_iter().chain(late).min_by_key(finish_s).map(|first| vec![first])
}

/// Starts of the pools that are weighed: the slowest decides, since a deadline is kept with it. On average half of the work between two
/// checkpoints is done again.
pub fn changeover(times: &Times, groups: &[Group<'_>], held: Option<&Candidate>) -> Changeover {
    let start_s = groups.iter().map(Group::start_s).max().unwrap_or(0);
    let run_s = |c: &Candidate| c.time.run_s.max(1);
    let firsts = groups.iter().filter_map(|group| Some((group.stays(), run_s(group.candidates.first()?))));
    let (stay, come): (Vec<_>, Vec<_>) = firsts.partition(|(stays, _)| *stays);
    let slowest = stay.iter().map(|(_, run_s)| *run_s).max().unwrap_or(0);
    let fastest = come.iter().map(|(_, run_s)| *run_s).chain(held.map(run_s)).min();
    Changeover {
        mean_s: start_s.saturating_add(times.interval_s.unwrap_or(0) / 2),
        max_s: start_s.saturating_mul(2),
        loss_s: times.loss_s(fastest.map_or(1000, |fastest| slowest.saturating_mul(1000) / fastest)),
        leave_s: times.stop_s,
    }
}
