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
    let (decision, _, groups) = weigh(times, work, soonest, records, None);
    let (_, prospect, _) = weigh(times, work, groups.clone(), records, held);
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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tradewind_core::Offer;
    use tradewind_planner::{Knowledge, Requirements};

    use super::*;
    use crate::test_machine;

    const HOUR: u64 = 3600;
    const LOOK: Duration = Duration::from_mins(1);
    const WORK: WorkLeft = WorkLeft { seconds: 2 * HOUR, on: None };

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }

    fn offer(id: &str, dollars: &str, capacity: Capacity) -> Offer {
        let plain = test_machine::offer(id);
        Offer { price_per_hour: dollars.parse().unwrap(), capacity, reliability_ppm: 999_000, ..plain }
    }

    fn fitting(offers: &[Offer]) -> Vec<Candidate> {
        tradewind_planner::plan(&Requirements::default(), &WORK, &Knowledge::default(), offers, 64).ranked
    }

    fn times() -> Times {
        Times {
            now: now(),
            deadline: None,
            patience_until: None,
            max_price_per_hour: None,
            look: LOOK,
            interval_s: Some(120),
            stop_s: 30,
        }
    }

    fn in_s(seconds: u64) -> Timestamp {
        later(now(), Duration::from_secs(seconds))
    }

    /// A pool that is up and down for two hours each.
    fn record() -> Record {
        Record::from_history(&[(true, 2 * HOUR), (false, 2 * HOUR)].repeat(20), now().as_second())
    }

    /// Until a machine works, at most, and half a minute: what a deadline is kept with.
    fn longest_start() -> u64 {
        let any = fitting(&[offer("any", "1.00", Capacity::OnDemand)]);
        changeover(&times(), &groups(&any, &[]), None).max_s + 30
    }

    /// The same after a loss.
    fn longest_loss() -> u64 {
        longest_start() + times().loss_s(1000)
    }

    fn decided(times: &Times, there: &[Offer], absent: &[Offer]) -> Verdict {
        let (there, absent) = (fitting(there), fitting(absent));
        let records = |ids: &[PoolId]| vec![record(); ids.len()];
        decide(times, &WORK, (&there, &absent), records, None).0
    }

    fn taken(verdict: &Verdict) -> (&str, Option<&str>) {
        let Verdict::Go { ranked, because, .. } = verdict else { panic!("{verdict:?}") };
        (ranked[0].offer.id.as_str(), because.as_deref())
    }

    #[test]
    fn a_price_is_waited_for_until_it_comes_or_patience_is_over() {
        let price = Some("0.30".parse().unwrap());
        let patient = Times { patience_until: Some(in_s(4 * HOUR)), max_price_per_hour: price, ..times() };
        assert!(patient.matter() && !times().matter());
        let dear = offer("dear", "0.40", Capacity::OnDemand);
        let Verdict::Wait { message, again_in } = decided(&patient, std::slice::from_ref(&dear), &[]) else {
            panic!("0.40 is more than 0.30")
        };
        assert!(again_in <= LOOK, "{again_in:?}");
        for part in ["$0.30 an hour or less", "until 2026-11-22 14:00 UTC", "0.40/h"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let cheap = offer("cheap", "0.29", Capacity::OnDemand);
        assert_eq!(taken(&decided(&patient, &[dear.clone(), cheap], &[])), ("cheap", None));
        let over = Times { patience_until: Some(in_s(0)), ..patient };
        assert_eq!(taken(&decided(&over, &[dear], &[])).0, "dear");
    }

    #[test]
    fn a_deadline_waits_for_spot_while_it_may_and_then_takes_what_stays() {
        let (spot, stays) = (offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand));
        let by = |seconds| Times { deadline: Some(in_s(seconds)), ..times() };
        let both = [spot.clone(), stays.clone()];
        assert_eq!(taken(&decided(&by(24 * HOUR), &both, &[])).0, "spot");
        let waits = decided(&by(24 * HOUR), std::slice::from_ref(&stays), std::slice::from_ref(&spot));
        assert!(
            matches!(&waits, Verdict::Wait { message, .. } if message.contains("then the deadline needs one")),
            "{waits:?}"
        );
        let tight = decided(&by(2 * HOUR + longest_start()), &both, &[]);
        let (id, because) = taken(&tight);
        assert_eq!((id, because.is_some_and(|b| b.contains("by the deadline"))), ("stays", true));
        let late = decided(&by(HOUR), &both, &[]);
        assert!(taken(&late).1.is_some_and(|b| b.contains("nothing can keep the deadline")), "{late:?}");
    }

    #[test]
    fn a_spot_machine_that_works_loses_no_time_and_a_slow_one_does() {
        let (spot, stays) = (offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand));
        let candidate = tradewind_planner::staying(&Requirements::default(), &WORK, &Knowledge::default(), &spot);
        let mut held = Holding { candidate, age_s: HOUR, ready: true };
        let there = fitting(std::slice::from_ref(&stays));
        let look = |held: &Holding, seconds| {
            let times = Times { deadline: Some(in_s(seconds)), ..times() };
            let records = |ids: &[PoolId]| vec![record(); ids.len()];
            decide(&times, &WORK, (&there, &[]), records, Some(held)).0
        };
        assert_eq!(look(&held, 24 * HOUR), Verdict::Stay);
        let tight = 2 * HOUR + longest_loss();
        assert_eq!(look(&held, tight), Verdict::Stay, "if it is lost, there is still time to start again");
        let tighter = look(&held, 2 * HOUR + longest_start());
        assert!(matches!(&tighter, Verdict::Go { must: true, .. }), "its end takes time too: {tighter:?}");
        let too_late = look(&held, 2 * HOUR + longest_start() - 30);
        assert_eq!(too_late, Verdict::Stay, "it has to end first, so nothing else is sure to be in time");
        held.candidate.time.run_s *= 3;
        assert_eq!(look(&held, 24 * HOUR), Verdict::Stay);
        let leaves = look(&held, tight);
        assert!(matches!(&leaves, Verdict::Go { must: true, .. }), "{leaves:?}");
        assert_eq!(taken(&leaves).0, "stays");
    }

    /// Four models with measured speeds: 2.5 h, 1.5 h, 1.5 h and 1 h of work.
    fn models() -> (Vec<Offer>, Knowledge) {
        let models = [
            ("RTX3090", "0.50", 9000_u64),
            ("RTX4090", "0.70", 5400),
            ("RTXA6000", "0.80", 5400),
            ("A100-40GB", "1.50", 3600),
        ];
        let gpu = |name: &str| tradewind_core::GpuModel::normalise(name, 0);
        let on = |(name, dollars, _): &(&str, &str, u64)| Offer {
            gpu: Some(gpu(name)),
            gpu_count: 1,
            gpu_memory_mib: 24_000,
            download_mbps: 10_000,
            ..offer(name, dollars, Capacity::OnDemand)
        };
        let step_rates = models.iter().map(|(name, _, seconds)| (gpu(name), 1_000_000 * 3600 / seconds)).collect();
        let known = Knowledge { step_rates, steps_left: Some(3600), ..Knowledge::default() };
        (models.iter().map(on).collect(), known)
    }

    fn with_models(seconds: u64, offers: &[Offer]) -> Vec<String> {
        let needs = Requirements { gpu_count: 1, ..Requirements::default() };
        let ranked = tradewind_planner::plan(&needs, &WORK, &models().1, offers, usize::MAX).ranked;
        let times = Times { deadline: Some(in_s(seconds)), ..times() };
        let (verdict, _) = decide(&times, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None);
        let Verdict::Go { ranked, .. } = verdict else { panic!("{verdict:?}") };
        ranked.into_iter().map(|c| c.offer.id).collect()
    }

    #[test]
    fn the_cheapest_model_that_is_in_time_is_taken_and_those_after_it_are_in_time_too() {
        let (offers, _) = models();
        assert_eq!(with_models(6 * HOUR, &offers), ["RTX4090", "RTXA6000", "RTX3090", "A100-40GB"]);
        assert_eq!(with_models(2 * HOUR, &offers), ["RTX4090", "RTXA6000", "A100-40GB"]);
        assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
        assert_eq!(with_models(30 * 60, &offers)[0], "A100-40GB", "nothing is in time: the fastest");
    }

    #[test]
    fn what_keeps_the_deadline_is_found_behind_a_hundred_cheaper_ones() {
        let (mut offers, _) = models();
        let slow = |n: usize| Offer { id: format!("slow{n}"), region: format!("r{n}"), ..models().0[0].clone() };
        offers.extend((0..100).map(slow));
        assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
        // A line that would take hours to load the image makes nobody late.
        let drip = Offer { download_mbps: 10, capacity: Capacity::Spot, ..models().0[1].clone() };
        offers.push(Offer { id: "drip".into(), price_per_hour: "0.01".parse().unwrap(), ..drip });
        assert_eq!(with_models(70 * 60, &offers), ["A100-40GB"]);
    }

    #[test]
    fn what_nobody_keeps_for_certain_is_done_as_soon_as_it_may_be() {
        let (models, known) = models();
        let work = WorkLeft { seconds: 9000, on: None };
        let needs = Requirements { gpu_count: 1, ..Requirements::default() };
        let look = |seconds, offers: &[Offer]| {
            let ranked = tradewind_planner::plan(&needs, &work, &known, offers, usize::MAX).ranked;
            let times = Times { deadline: Some(in_s(seconds)), ..times() };
            decide(&times, &work, (&ranked, &[]), |ids| vec![record(); ids.len()], None)
        };
        let slow = models[0].clone();
        let spot = Offer { capacity: Capacity::Spot, ..models[3].clone() };
        let cheaper = |n: usize| Offer { region: format!("r{n}"), capacity: Capacity::Spot, ..slow.clone() };
        let market: Vec<Offer> = (0..20).map(cheaper).chain([slow.clone(), spot]).collect();
        // The one that stays takes 2.5 h; spot takes 1 h, is dearer than twenty others, and may be lost.
        let (verdict, prospect) = look(100 * 60, &market);
        assert_eq!(taken(&verdict).0, "A100-40GB");
        assert!(
            matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")),
            "{prospect:?}"
        );
        let (verdict, prospect) = look(30 * 60, &market);
        assert_eq!(taken(&verdict).0, "A100-40GB", "the first of what is late");
        assert!(matches!(&prospect, Prospect::Late(why) if why.contains("A100-40GB")), "{prospect:?}");
        assert_eq!(taken(&look(30 * 60, std::slice::from_ref(&slow)).0).0, "RTX3090");

        // A job on slow spot leaves it for what is done first, and stays where it is in time itself.
        let holds = Holding {
            candidate: tradewind_planner::staying(&needs, &work, &known, &cheaper(0)),
            age_s: HOUR,
            ready: true,
        };
        let look = |seconds, offers: &[Offer]| {
            let ranked = tradewind_planner::plan(&needs, &work, &known, offers, usize::MAX).ranked;
            let times = Times { deadline: Some(in_s(seconds)), ..times() };
            decide(&times, &work, (&ranked, &[]), |ids| vec![record(); ids.len()], Some(&holds))
        };
        for seconds in [100 * 60, 30 * 60] {
            let (verdict, prospect) = look(seconds, &market);
            assert!(matches!(verdict, Verdict::Go { must: true, .. }), "{seconds}: {verdict:?}");
            assert_eq!(taken(&verdict).0, "A100-40GB");
            let late = seconds < 60 * 60;
            assert!(matches!(&prospect, Prospect::Late(_)) == late, "{seconds}: {prospect:?}");
        }
        let safer = look(100 * 60, std::slice::from_ref(&slow)).0;
        assert_eq!(taken(&safer).0, "RTX3090", "as slow, but nobody takes it: with losses counted it is done sooner");
        let (verdict, prospect) = look(9100, &[slow]);
        assert_eq!(verdict, Verdict::Stay);
        assert!(
            matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")),
            "{prospect:?}"
        );
    }

    #[test]
    fn what_begins_on_a_slow_machine_is_said_to_move_on() {
        let (models, known) = models();
        let spot = Offer { capacity: Capacity::Spot, price_per_hour: "0.10".parse().unwrap(), ..models[0].clone() };
        let needs = Requirements { gpu_count: 1, ..Requirements::default() };
        let ranked = tradewind_planner::plan(&needs, &WORK, &known, &[spot, models[3].clone()], 8).ranked;
        let look = |seconds| {
            let times = Times { deadline: Some(in_s(seconds)), ..times() };
            decide(&times, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None)
        };
        let (verdict, prospect) = look(9000);
        let (id, because) = taken(&verdict);
        assert_eq!((id, prospect), ("RTX3090", Prospect::OnTime));
        assert!(because.is_some_and(|why| why.contains("moves on to a machine that stays")), "{because:?}");
        assert_eq!(taken(&look(24 * HOUR).0), ("RTX3090", None));
    }

    #[test]
    fn neither_a_cheaper_host_of_the_pool_nor_spot_that_starts_slowly_makes_a_job_late() {
        let with_line = |offer: Offer, download_mbps| Offer { download_mbps, ..offer };
        let known = Knowledge { input_mb: 43_000, ..Knowledge::default() };
        let fits =
            |offers: &[Offer]| tradewind_planner::plan(&Requirements::default(), &WORK, &known, offers, 64).ranked;
        let fast = with_line(offer("fast", "0.50", Capacity::OnDemand), 2000);
        let slow = with_line(offer("slow", "0.30", Capacity::OnDemand), 400);
        let spot = with_line(offer("spot", "0.10", Capacity::Spot), 900);
        let start_s = fits(std::slice::from_ref(&fast))[0].time.startup_s();
        let tight = Times { deadline: Some(in_s(2 * HOUR + 2 * start_s + 10)), ..times() };
        for others in [vec![], vec![slow.clone()], vec![spot.clone()], vec![slow, spot]] {
            let ranked = fits(&[vec![fast.clone()], others].concat());
            let (verdict, prospect) = decide(&tight, &WORK, (&ranked, &[]), |ids| vec![record(); ids.len()], None);
            let Verdict::Go { ranked, .. } = &verdict else { panic!("{verdict:?}") };
            assert_eq!((ranked[0].offer.id.as_str(), prospect), ("fast", Prospect::OnTime));
        }
    }

    #[test]
    fn where_only_spot_may_be_had_the_deadline_is_at_risk_and_told_so() {
        let there = fitting(&[offer("there", "0.60", Capacity::Spot)]);
        let cheaper =
            |n: usize| Offer { region: format!("r{n}"), ..offer(&format!("gone{n}"), "0.10", Capacity::Spot) };
        let absent = fitting(&(0..20).map(cheaper).collect::<Vec<_>>());
        let look = |times: Times, there: &[Candidate]| {
            decide(&times, &WORK, (there, &absent), |ids| vec![record(); ids.len()], None)
        };
        let tight = Times { deadline: Some(in_s(2 * HOUR + longest_start())), ..times() };
        let (verdict, prospect) = look(tight, &there);
        assert_eq!(taken(&verdict).0, "there", "what may come does not hide what is there");
        assert!(
            matches!(&prospect, Prospect::AtRisk(why) if why.contains("unless its machine is lost")),
            "{prospect:?}"
        );
        let unsaved = Times { interval_s: None, ..tight };
        assert_eq!(taken(&look(unsaved, &there).0).0, "there", "without checkpoints too");
        assert!(matches!(look(tight, &[]), (Verdict::Wait { .. }, Prospect::AtRisk(_))), "nothing is there");
        let (verdict, prospect) = look(Times { deadline: Some(in_s(HOUR)), ..tight }, &there);
        assert!(matches!((&verdict, &prospect), (Verdict::Go { .. }, Prospect::Late(_))), "{verdict:?} {prospect:?}");
        // A price is waited for as long as there is time to spare.
        let price = Some("0.20".parse().unwrap());
        let spare = Times { deadline: Some(in_s(24 * HOUR)), max_price_per_hour: price, ..tight };
        assert!(matches!(look(spare, &there).0, Verdict::Wait { .. }));
        assert_eq!(taken(&look(Times { max_price_per_hour: price, ..tight }, &there).0).0, "there");
    }

    #[test]
    fn without_checkpoints_no_deadline_is_promised_on_spot() {
        let both = [offer("spot", "0.30", Capacity::Spot), offer("stays", "1.00", Capacity::OnDemand)];
        let unsaved = Times { deadline: Some(in_s(24 * HOUR)), interval_s: None, ..times() };
        assert_eq!(taken(&decided(&unsaved, &both, &[])).0, "stays");
    }

    #[test]
    fn what_follows_the_chosen_one_is_on_the_same_terms() {
        let both = [
            offer("spot", "0.30", Capacity::Spot),
            offer("stays", "1.00", Capacity::OnDemand),
            Offer { region: "SE".into(), ..offer("stays too", "1.10", Capacity::OnDemand) },
        ];
        let tight = decided(&Times { deadline: Some(in_s(2 * HOUR + longest_start())), ..times() }, &both, &[]);
        let Verdict::Go { ranked, .. } = tight else { panic!("{tight:?}") };
        assert_eq!(ranked.iter().map(|c| c.offer.id.as_str()).collect::<Vec<_>>(), ["stays", "stays too"]);
    }
}
