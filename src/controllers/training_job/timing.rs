//! When to rent what fits: what a deadline, patience and a price to wait for make of the planner's candidates. Pure but for the tables that
//! the planner keeps for the job.

use std::time::Duration;

use tradewind_core::Capacity;
use tradewind_planner::when::{
    Action, Decision, Held, Memory, Pool, Reason as Why, Record, Sight, Situation, earliest_finish,
};
use tradewind_planner::{Candidate, WorkLeft, explain};

use super::deadline::{about, later, minute};
use super::groups::{Group, POOLS, changeover, groups, keeps, refuges, soonest};
use super::times::Times;
use crate::market::pools::PoolId;

/// As [`POOLS`], of those that are not there now.
const HOPED: usize = 3;
/// A job that is late anyhow leaves its machine for one that is done so many seconds sooner, its own end included.
const SOONER_S: u64 = 300;
/// Index of the machine that a job runs on, among the pools.
const HELD: usize = 0;

/// What comes out.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Rent one of these now, best first.
    Go {
        /// Candidates.
        ranked: Vec<Candidate>,
        /// What is to be told besides the candidate's own sentence.
        because: Option<String>,
        /// The deadline needs it; otherwise it is only expected to be cheaper.
        must: bool,
    },
    /// Keep what is held, or nothing is worth while.
    Stay,
    /// Rent nothing yet.
    Wait {
        /// Sentence.
        message: String,
        /// Look again after so long.
        again_in: Duration,
    },
}

/// Whether the deadline will be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prospect {
    /// There is none, or it was not looked at.
    #[default]
    Unknown,
    /// It will, even if what is rented is lost.
    OnTime,
    /// Only if things go well. Says which.
    AtRisk(String),
    /// Nothing that may be had keeps it. Says what comes closest.
    Late(String),
}

/// The machine that a job runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Holding {
    /// What it costs to stay.
    pub candidate: Candidate,
    /// Seconds since it was rented.
    pub age_s: u64,
    /// Its program runs.
    pub ready: bool,
}

/// Decides for a job that holds nothing, or this machine.
pub fn decide(
    times: &Times,
    work: &WorkLeft,
    (ranked, absent): (&[Candidate], &[Candidate]),
    records: impl Fn(&[PoolId]) -> Vec<Record>,
    held: Option<&Holding>,
) -> (Verdict, Prospect) {
    if let (None, None, Some(price)) = (times.deadline, held, times.max_price_per_hour.filter(|_| times.matter())) {
        // The price that is waited for has come: nothing is gained by waiting for a lower one that nobody asked for.
        let at_price: Vec<Candidate> = ranked.iter().filter(|c| c.hourly <= price).cloned().collect();
        if !at_price.is_empty() {
            return (Verdict::Go { ranked: at_price, because: None, must: false }, Prospect::Unknown);
        }
    }
    let (stay, mut spot): (Vec<_>, Vec<_>) = groups(ranked, absent).into_iter().partition(Group::stays);
    if times.deadline.is_some() && times.interval_s.is_none() && !stay.is_empty() {
        // All work would be lost with the machine: no deadline can be promised on spot.
        spot.clear();
    }
    // What is not there now may be hoped for; it must not hide what is there.
    let (mut there, mut hoped) = (POOLS, HOPED);
    let mut come = spot.clone();
    come.retain(|group| {
        let left = if group.up { &mut there } else { &mut hoped };
        let fits = *left > 0;
        *left = left.saturating_sub(1);
        fits
    });
    let weighed = refuges(times, held.is_some(), stay.clone()).into_iter().map(|refuge| {
        // A deadline is kept with the longest start: what takes far longer than the one to fall back on would spend all slack.
        let base_s = refuge.iter().map(Group::start_s).max();
        let soon =
            |group: &&Group<'_>| base_s.is_none_or(|base| group.start_s() <= base.saturating_mul(2).max(base + 300));
        let groups: Vec<Group<'_>> = come.iter().filter(soon).cloned().chain(refuge.iter().cloned()).collect();
        let with_spot = weigh(times, work, groups, &records, held);
        // Spot that starts more slowly than the refuge makes nobody late.
        if is_late(&with_spot.0) { weigh(times, work, refuge, &records, held) } else { with_spot }
    });
    let best = weighed.min_by_key(|(decision, ..)| (is_late(decision), decision.expected_cost));
    let Some(best) = best else { return (Verdict::Stay, Prospect::Unknown) };
    let (decision, prospect, groups) = if is_late(&best.0) {
        // What may be taken away is better than what is late for certain.
        let alone = || weigh(times, work, Vec::new(), &records, held);
        soonest(times, held.is_some(), spot, stay)
            .map_or_else(alone, |soonest| hurry(times, work, soonest, &records, held))
    } else {
        best
    };
    if held.is_some() {
        let verdict = match decision.action {
            Action::Launch(pool) if pool != HELD => go((times, true), &decision, groups, pool - 1, ranked),
            _ => Verdict::Stay,
        };
        return (verdict, prospect);
    }
    (verdict(times, &decision, groups, ranked), prospect)
}

fn is_late(decision: &Decision) -> bool {
    matches!(decision.reason, Why::TooLate { .. })
}

/// The decision where nothing that stays keeps the deadline: into one of these pools, all of which are in time or which is the first to be done,
/// unless what is held is in time itself, or done before that.
fn hurry<'a>(
    times: &Times,
    work: &WorkLeft,
    soonest: Vec<Group<'a>>,
    records: &impl Fn(&[PoolId]) -> Vec<Record>,
    held: Option<&Holding>,
) -> (Decision, Prospect, Vec<Group<'a>>) {
    let Some(holding) = held else { return weigh(times, work, soonest, records, None) };
    let (stays, prospect, _) = weigh(times, work, Vec::new(), records, held);
    let stays = Decision { action: Action::Hold, ..stays };
    let first = soonest.first().and_then(|group| group.candidates.first());
    let done_s = |c: &Candidate| c.finish_in_s.saturating_add(times.stop_s).saturating_add(SOONER_S);
    let is_sooner = first.is_some_and(|first| done_s(first) < holding.candidate.finish_in_s);
    if !matches!(prospect, Prospect::Late(_)) || !is_sooner {
        return (stays, prospect, soonest);
    }
    let (decision, prospect, groups) = weigh(times, work, soonest, records, held);
    let reason = Why::TooLate { late_by_s: 0 };
    (Decision { action: Action::Launch(HELD + 1), reason, ..decision }, prospect, groups)
}

/// One decision among these pools. Gives back the pools without the one that is held.
fn weigh<'a>(
    times: &Times,
    work: &WorkLeft,
    groups: Vec<Group<'a>>,
    records: &impl Fn(&[PoolId]) -> Vec<Record>,
    held: Option<&Holding>,
) -> (Decision, Prospect, Vec<Group<'a>>) {
    let held_pool = held.map(|held| (PoolId::of(&held.candidate.offer), &held.candidate, true));
    let firsts = groups.iter().filter_map(|group| Some((group.id.clone(), *group.candidates.first()?, group.up)));
    let firsts: Vec<(PoolId, &Candidate, bool)> = held_pool.into_iter().chain(firsts).collect();
    let records = records(&firsts.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
    let pools = firsts.iter().zip(&records).map(|((id, first, up), record)| Pool {
        capacity: id.capacity,
        price_per_hour: first.hourly,
        speed_milli: speed_milli(work, first),
        up: Some(*up),
        record,
    });
    let pools: Vec<Pool<'_>> = pools.collect();
    let changeover = changeover(times, &groups, held.map(|held| &held.candidate));
    let situation = Situation {
        now_s: times.now.as_second(),
        work_s: work.seconds,
        deadline_in_s: times.deadline.map(|deadline| times.left(deadline)),
        patience_s: patience_s(times, work, &firsts, changeover.max_s),
        changeover,
        look_s: times.look_s(),
        next_look_s: times.look_s(),
        sure_until_look: false,
        sight: Sight::Free,
        max_price_per_hour: times.max_price_per_hour.filter(|_| times.matter()),
        pools: &pools,
        held: held.map(|held| Held { pool: HELD, age_s: held.age_s, ready: held.ready }),
        lets_go: false,
    };
    let decision = tradewind_planner::when::decide(&situation, &mut Memory::new());
    let prospect = prospect(times, &situation, &decision, &firsts);
    (decision, prospect, groups)
}

/// Where only spot is to be had no deadline can be kept for certain: then the time that the fastest can spare is what may be waited.
fn patience_s(times: &Times, work: &WorkLeft, firsts: &[(PoolId, &Candidate, bool)], longest_start_s: u64) -> u64 {
    let stays = firsts.iter().any(|(id, ..)| id.capacity == Capacity::OnDemand);
    let Some(deadline) = times.deadline.filter(|_| !stays) else { return times.patience_s() };
    let run_s = firsts.iter().map(|(_, first, _)| first.time.run_s).min().unwrap_or(work.seconds);
    times.left(deadline).saturating_sub(run_s).saturating_sub(longest_start_s)
}

/// How fast a machine does the work, against the time that the work is told in.
fn speed_milli(work: &WorkLeft, candidate: &Candidate) -> u32 {
    let speed = u128::from(work.seconds) * 1000 / u128::from(candidate.time.run_s.max(1));
    u32::try_from(speed).unwrap_or(u32::MAX).max(1)
}

/// What is to be told about the deadline: to ten minutes and about so much, so that it is not another sentence at each look.
fn prospect(
    times: &Times,
    situation: &Situation<'_>,
    decision: &Decision,
    firsts: &[(PoolId, &Candidate, bool)],
) -> Prospect {
    let Some(until) = times.deadline else { return Prospect::Unknown };
    let stays = firsts.iter().any(|(id, _, up)| *up && id.capacity == Capacity::OnDemand);
    if stays && !matches!(decision.reason, Why::TooLate { .. }) {
        return Prospect::OnTime;
    }
    let deadline = minute(until);
    let earliest = earliest_finish(situation).and_then(|at| Some((at, firsts.get(at.pool)?)));
    let Some((at, (_, first, _))) = earliest else {
        return Prospect::AtRisk(format!("nothing that fits is there now; the deadline is {deadline}"));
    };
    if at.finish_s <= times.left(until) {
        return Prospect::AtRisk(format!("will be complete by {deadline} unless its machine is lost"));
    }
    let finish = later(times.now, Duration::from_secs(at.finish_s));
    Prospect::Late(format!(
        "the deadline {deadline} cannot be kept: the earliest finish is about {}, on {}, for about ${} more",
        about(finish),
        explain::offer(&first.offer),
        explain::about(at.cost)
    ))
}

fn verdict(times: &Times, decision: &Decision, groups: Vec<Group<'_>>, ranked: &[Candidate]) -> Verdict {
    match decision.action {
        Action::Hold => Verdict::Stay,
        Action::Launch(pool) if groups.get(pool).is_some_and(|group| group.up) => {
            go((times, false), decision, groups, pool, ranked)
        }
        Action::Launch(_) | Action::Wait => {
            let longest = times.look.max(Duration::from_secs(1));
            let again_in = Duration::from_secs(decision.look_again_in_s).clamp(Duration::from_secs(1), longest);
            Verdict::Wait { message: waits(times, decision, ranked), again_in }
        }
    }
}

/// The pool's candidates, then others on the same terms that keep the deadline too, should its offers be refused.
fn go(
    (times, holds): (&Times, bool),
    decision: &Decision,
    mut groups: Vec<Group<'_>>,
    pool: usize,
    ranked: &[Candidate],
) -> Verdict {
    let chosen = groups.swap_remove(pool);
    let late = is_late(decision);
    let moves_on = groups.iter().any(Group::stays).then(|| moves_on(times, &chosen)).flatten();
    let fits = |candidate: &&Candidate| !chosen.stays() || late || keeps(times, holds, candidate);
    let is_other = |candidate: &&Candidate| {
        candidate.offer.capacity == chosen.id.capacity && PoolId::of(&candidate.offer) != chosen.id
    };
    let mut others: Vec<&Candidate> = ranked.iter().filter(is_other).filter(fits).collect();
    if late {
        others.sort_by_key(|candidate| candidate.finish_in_s);
    }
    Verdict::Go {
        ranked: chosen.candidates.iter().copied().filter(fits).chain(others).cloned().collect(),
        because: because(decision).or(moves_on),
        must: matches!(decision.reason, Why::LastSafeMoment | Why::TooLate { .. }),
    }
}

/// Why this and not the cheapest that fits.
fn because(decision: &Decision) -> Option<String> {
    match decision.reason {
        Why::LastSafeMoment => Some("nothing cheaper is sure to be complete by the deadline any more".to_owned()),
        Why::TooLate { late_by_s: 0 } => Some("nothing is sure to keep the deadline; this is done first".to_owned()),
        Why::TooLate { late_by_s } => {
            Some(format!("nothing can keep the deadline; this is done first, up to {} late", explain::span(late_by_s)))
        }
        _ => None,
    }
}

/// What is begun on a machine that would be late may end in time: on another one.
fn moves_on(times: &Times, chosen: &Group<'_>) -> Option<String> {
    let first = chosen.candidates.first()?;
    let late = !chosen.stays() && times.deadline.is_some_and(|deadline| first.finish_in_s > times.left(deadline));
    late.then(|| {
        "it would be late there, so it moves on to a machine that stays while that keeps the deadline".to_owned()
    })
}

/// What is waited for, and until when.
fn waits(times: &Times, decision: &Decision, ranked: &[Candidate]) -> String {
    let best = ranked.iter().min_by_key(|c| c.hourly);
    let now = best.map_or_else(
        || "nothing that fits is there now".to_owned(),
        |c| format!("the cheapest now is {} with disk ${}/h", explain::offer(&c.offer), explain::about(c.hourly)),
    );
    let what = times.max_price_per_hour.map_or_else(
        || "waits for a cheaper machine".to_owned(),
        |price| format!("waits for a machine at ${price} an hour or less"),
    );
    let safe =
        decision.wait_ends_in_s.map(|s| (later(times.now, Duration::from_secs(s)), "then the deadline needs one"));
    let patient = times.patience_until.filter(|_| times.deadline.is_none());
    let patient = patient.map(|until| (until, "then its patience is over"));
    let until = safe.into_iter().chain(patient).min_by_key(|(at, _)| *at);
    let until = until.map_or_else(String::new, |(at, why)| format!(" until {}, {why}", minute(at)));
    format!("{what}{until}; {now}")
}
