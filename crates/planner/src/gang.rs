//! Several machines for one job whose workers talk to each other all the time.
//!
//! They come from one provider, are of one GPU model, and lie in one region unless the job says otherwise; where an offer tells its
//! private network, all are in that one. The gang runs when its slowest member is ready, and one member's loss throws all of them back:
//! so everybody is paid for until the last is done, and everybody's losses are everybody's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tradewind_core::{GpuModel, Money, Offer};

use crate::cost::{CostBreakdown, Terms, TimeBreakdown, one_loss_s, times_milli};
use crate::explain::span;
use crate::knowledge::Knowledge;
use crate::lookup::Lookup;
use crate::needs::{Requirements, WorkLeft};
use crate::rank::{Candidate, Plan, plan_with};

/// How near to each other the workers must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Together {
    /// In one region or one private network.
    #[default]
    Region,
    /// Anywhere at one provider; still in one private network where the offers tell theirs.
    Provider,
}

/// Where a gang is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GangPlace {
    /// Name of the Provider object.
    pub provider: String,
    /// Region, lower case; `""` = not told, or any of the provider's.
    pub region: String,
    /// Private network; `""` = none told.
    pub network: String,
    /// GPU model of all members; `None` = the machines have none.
    pub gpu: Option<GpuModel>,
}

/// Machines for all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Where they are.
    pub place: GangPlace,
    /// One for each worker, cheapest first. Times and costs are those in the gang: `lost_s` counts the waiting for others too.
    pub members: Vec<Candidate>,
    /// Expected cost of all of them until the work is done.
    pub total: Money,
    /// Seconds until the work is done.
    pub finish_in_s: u64,
}

/// The best gang of each place, and why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GangPlan {
    /// Cheapest first, one for each place that has enough machines.
    pub ranked: Vec<Gang>,
    /// Places that have something that fits, but too little: with the number of machines there, most first.
    pub short: Vec<(GangPlace, u32)>,
    /// Places that have enough machines, but would exceed the budget or the time.
    pub over: Vec<GangPlace>,
    /// Workers asked for.
    pub workers: u32,
    /// The plan for a single worker: what fits alone, and why the others do not.
    pub single: Plan,
}

impl GangPlan {
    /// Why there is no gang, in a sentence; `None` if there is one.
    pub fn why_none(&self) -> Option<String> {
        if !self.ranked.is_empty() {
            return None;
        }
        if let Some(alone) = self.single.why_none() {
            return Some(alone);
        }
        let mut sentence = format!("no place has {} machines together", self.workers);
        if !self.over.is_empty() {
            let _ = write!(sentence, " within budget and time ({} would have enough)", self.over.len());
        }
        if let Some((place, most)) = self.short.first() {
            let _ = write!(sentence, "; most are in {place}: {most} of {}", self.workers);
        }
        let _ = write!(sentence, "; {} fit one by one", self.single.ranked.len());
        Some(sentence)
    }
}

impl std::fmt::Display for GangPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.provider)?;
        for (word, part) in [("region", &self.region), ("network", &self.network)] {
            if !part.is_empty() {
                write!(f, ", {word} {part}")?;
            }
        }
        self.gpu.as_ref().map_or(Ok(()), |gpu| write!(f, ", {gpu}"))
    }
}

impl Gang {
    /// What is rented, what it costs, and when it is done.
    pub fn sentence(&self) -> String {
        let total = crate::explain::about(self.total);
        format!(
            "{} machines at {}: about ${total} in all, done in {}",
            self.members.len(),
            self.place,
            span(self.finish_in_s)
        )
    }
}

/// A machine that fits, with what the gang's cost depends on.
#[derive(Clone)]
struct Fitting<'a> {
    candidate: &'a Candidate,
    terms: Terms,
    one_loss_s: u64,
}

/// Finds machines for `workers` workers. `needs` are one worker's; `budget_left` and `finish_within_s` hold for the gang.
pub fn gang(
    needs: &Requirements,
    work: &WorkLeft,
    known: &Knowledge,
    offers: &[Offer],
    workers: u32,
    together: Together,
) -> GangPlan {
    let lookup = Lookup::new(known);
    let all: Vec<&Offer> = offers.iter().collect();
    let single = plan_with(needs, work, &lookup, &all, all.len());
    let mut places: BTreeMap<GangPlace, Vec<Fitting<'_>>> = BTreeMap::new();
    for candidate in &single.ranked {
        let Some(place) = place(known, &candidate.offer, workers, together) else { continue };
        let terms = lookup.terms(&candidate.offer);
        let one_loss_s = one_loss_s(&lookup.job, &terms, candidate.time.run_s);
        places.entry(place).or_default().push(Fitting { candidate, terms, one_loss_s });
    }
    let (mut ranked, mut short, mut over) = (Vec::new(), Vec::new(), Vec::new());
    let search = Search { needs, lookup: &lookup, workers: workers as usize };
    for (place, fitting) in places {
        let machines = search.machines(&fitting);
        if machines < search.workers {
            short.push((place, u32::try_from(machines).unwrap_or(u32::MAX)));
            continue;
        }
        let gang = search.best(&place, &fitting);
        let fits = |gang: &Gang| {
            needs.budget_left.is_none_or(|left| gang.total <= left)
                && needs.finish_within_s.is_none_or(|within| gang.finish_in_s <= within)
        };
        match gang.filter(fits) {
            Some(gang) => ranked.push(gang),
            None => over.push(place),
        }
    }
    ranked.sort_by(|a: &Gang, b: &Gang| (a.total, a.finish_in_s, &a.place).cmp(&(b.total, b.finish_in_s, &b.place)));
    short.sort_by(|a: &(GangPlace, u32), b: &(GangPlace, u32)| {
        (std::cmp::Reverse(a.1), &a.0).cmp(&(std::cmp::Reverse(b.1), &b.0))
    });
    GangPlan { ranked, short, over, workers, single }
}

/// Where this offer could be part of a gang; `None` if it cannot be told to be near any other.
fn place(known: &Knowledge, offer: &Offer, workers: u32, together: Together) -> Option<GangPlace> {
    let network = known.networks.get(&(offer.provider.clone(), offer.id.clone())).cloned().unwrap_or_default();
    let region = match together {
        Together::Region => offer.region.to_ascii_lowercase(),
        Together::Provider => String::new(),
    };
    let alone = together == Together::Region && region.is_empty() && network.is_empty() && workers > 1;
    (!alone).then(|| GangPlace { provider: offer.provider.clone(), region, network, gpu: offer.gpu.clone() })
}

struct Search<'a> {
    needs: &'a Requirements,
    lookup: &'a Lookup<'a>,
    workers: usize,
}

/// Bounds of start-up time and of losses that are tried, gangs among these that are improved, and machines that are tried in place of
/// each member.
const BOUNDS: usize = 16;
const IMPROVED: usize = 6;
const REPLACEMENTS: usize = 8;
/// Members that are replaced at most.
const IMPROVEMENTS: usize = 8;

impl Search<'_> {
    fn stock(&self, offer: &Offer) -> usize {
        let key = (offer.provider.clone(), offer.id.clone());
        self.lookup.market.stock.get(&key).map_or(1, |n| *n as usize)
    }

    /// Machines that these offers are: terms of one id share its stock.
    fn machines(&self, fitting: &[Fitting<'_>]) -> usize {
        let ids: BTreeMap<&str, usize> =
            fitting.iter().map(|f| (f.candidate.offer.id.as_str(), self.stock(&f.candidate.offer))).collect();
        ids.values().fold(0, |sum: usize, n| sum.saturating_add(*n))
    }

    /// The cheapest gang that is found: the cheapest machines that start within a time or are lost at most so often, for several such
    /// bounds; the best of these are improved by replacing one member at a time.
    fn best(&self, place: &GangPlace, fitting: &[Fitting<'_>]) -> Option<Gang> {
        type Figure = fn(&TimeBreakdown) -> u64;
        let figures: [Figure; 2] = [TimeBreakdown::startup_s, |time| time.losses_milli];
        let mut firsts = Vec::new();
        for figure in figures {
            let of = |f: &Fitting<'_>| figure(&f.candidate.time);
            let mut bounds: Vec<u64> = fitting.iter().map(of).collect();
            bounds.sort_unstable();
            bounds.dedup();
            let step = bounds.len().div_ceil(BOUNDS).max(1);
            let tried = bounds.iter().rev().step_by(step);
            firsts.extend(tried.filter_map(|most| self.cheapest(fitting, &|f| of(f) <= *most)));
        }
        firsts.sort_unstable();
        firsts.dedup();
        let mut starts: Vec<(Money, Vec<usize>)> =
            firsts.into_iter().map(|chosen| (self.total(fitting, &chosen), chosen)).collect();
        starts.sort_unstable();
        starts.truncate(IMPROVED);
        let (total, mut chosen) = starts.into_iter().map(|start| self.improved(fitting, start)).min()?;
        chosen.sort_unstable();
        let members = self.members(fitting, &chosen);
        let finish_in_s = members.iter().map(|m| m.finish_in_s).max().unwrap_or_default();
        Some(Gang { place: place.clone(), total, finish_in_s, members })
    }

    fn improved(&self, fitting: &[Fitting<'_>], start: (Money, Vec<usize>)) -> (Money, Vec<usize>) {
        let (mut total, mut chosen) = start;
        for _ in 0..IMPROVEMENTS {
            let better = self.replaced(fitting, &chosen).filter(|(less, _)| *less < total);
            let Some((less, members)) = better else { break };
            (total, chosen) = (less, members);
        }
        (total, chosen)
    }

    /// The first machines (they are in the order of their own cost) that will do.
    fn cheapest(&self, fitting: &[Fitting<'_>], will_do: &dyn Fn(&Fitting<'_>) -> bool) -> Option<Vec<usize>> {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        let mut chosen = Vec::new();
        for (at, one) in fitting.iter().enumerate().filter(|(_, f)| will_do(f)) {
            let used = used.entry(&one.candidate.offer.id).or_default();
            let free = self.stock(&one.candidate.offer).saturating_sub(*used);
            let taken = free.min(self.workers - chosen.len());
            *used += taken;
            chosen.extend(std::iter::repeat_n(at, taken));
        }
        (chosen.len() == self.workers).then_some(chosen)
    }

    /// The best of all gangs in which one member is another machine.
    fn replaced(&self, fitting: &[Fitting<'_>], chosen: &[usize]) -> Option<(Money, Vec<usize>)> {
        let used = |id: &str| chosen.iter().filter(|at| fitting[**at].candidate.offer.id == id).count();
        let free = |at: &usize| {
            let offer = &fitting[*at].candidate.offer;
            used(&offer.id) < self.stock(offer)
        };
        let spare: Vec<usize> = (0..fitting.len()).filter(free).take(self.workers + REPLACEMENTS).collect();
        let with = |place: usize, at: usize| {
            let mut other = chosen.to_vec();
            other[place] = at;
            (self.total(fitting, &other), other)
        };
        let pairs = (0..chosen.len()).flat_map(|place| spare.iter().map(move |at| (place, *at)));
        pairs.map(|(place, at)| with(place, at)).min()
    }

    fn total(&self, fitting: &[Fitting<'_>], chosen: &[usize]) -> Money {
        self.parts(fitting, chosen).into_iter().map(|(_, cost)| cost.total).sum()
    }

    /// Time and cost of each member, in the gang.
    fn parts(&self, fitting: &[Fitting<'_>], chosen: &[usize]) -> Vec<(TimeBreakdown, CostBreakdown)> {
        let members = || chosen.iter().map(|at| &fitting[*at]);
        let most = |of: &dyn Fn(&Fitting<'_>) -> u64| members().map(of).max().unwrap_or_default();
        let startup_s = most(&|f| f.candidate.time.startup_s());
        let refused_s = most(&|f| f.candidate.time.refused_s);
        let one_loss_s = most(&|f| f.one_loss_s);
        let losses_milli = members().fold(0_u64, |sum, f| sum.saturating_add(f.candidate.time.losses_milli));
        // What a member loses by vain starts is what its own losses do not explain; the others wait for it.
        let vain_s = members().fold(0_u64, |sum, f| {
            let time = &f.candidate.time;
            sum.saturating_add(time.lost_s.saturating_sub(times_milli(f.one_loss_s, time.losses_milli)))
        });
        let lost_s = times_milli(one_loss_s, losses_milli).saturating_add(vain_s);
        members()
            .map(|f| {
                let own = f.candidate.time;
                let waits_s = startup_s.saturating_sub(own.startup_s());
                let time = TimeBreakdown { refused_s, lost_s: lost_s.saturating_add(waits_s), ..own };
                let mut cost = CostBreakdown::default();
                cost.fill(self.needs.disk_gib, &self.lookup.job, &f.terms, &time);
                (time, cost)
            })
            .collect()
    }

    fn members(&self, fitting: &[Fitting<'_>], chosen: &[usize]) -> Vec<Candidate> {
        let parts = self.parts(fitting, chosen);
        let with = |(at, (time, cost)): (&usize, (TimeBreakdown, CostBreakdown))| Candidate {
            finish_in_s: time.total_s(),
            time,
            cost,
            ..fitting[*at].candidate.clone()
        };
        chosen.iter().zip(parts).map(with).collect()
    }
}
