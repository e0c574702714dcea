//! The plan: offers ranked by expected total cost, and a reason for every other one.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tradewind_core::{Money, Offer};

use crate::cost::{CostBreakdown, Estimate, TimeBreakdown, estimate};
use crate::fit::{Misses, RejectReason, may_fit, misses};
use crate::knowledge::Knowledge;
use crate::lookup::{Lookup, Paces};
use crate::needs::{Requirements, WorkLeft};
use crate::relax::{Relaxation, gap, relaxation};
use crate::speed::SpeedBasis;

/// An offer that fits, with what it would cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The offer.
    pub offer: Offer,
    /// Expected cost until the work is done.
    pub cost: CostBreakdown,
    /// Expected time until the work is done.
    pub time: TimeBreakdown,
    /// Seconds until the work is done: [`TimeBreakdown::total_s`].
    pub finish_in_s: u64,
    /// Most to pay per hour of compute, for the rent call: on spot the bid, on demand the price.
    pub price_cap_per_hour: Money,
    /// Compute at the cap plus disk per hour: what limits per hour are held against.
    pub hourly: Money,
    /// How the running time is known.
    pub speed: SpeedBasis,
}

/// Offers that do not fit, counted under the first reason that each of them misses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The reason.
    pub reason: RejectReason,
    /// Offers counted here and nowhere else.
    pub count: u32,
    /// Offers that miss this, whatever else they miss: at least `count`.
    pub excludes: u32,
    /// What they are, after "are": `below minTrust Datacenter`.
    pub says: String,
    /// Of the offers counted here the one that misses least.
    pub nearest: Offer,
    /// What `nearest` misses besides.
    pub also_misses: Vec<RejectReason>,
}

/// What to rent, best first, and why nothing else. By default of an empty market.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Offers that fit, lowest expected total cost first; at most as many as asked for.
    pub ranked: Vec<Candidate>,
    /// Offers that fit but come after the limit.
    pub cut: u32,
    /// All other offers, by reason; at most one entry for each, none empty, in the order of [`RejectReason::ALL`].
    pub rejected: Vec<Rejection>,
    /// The smallest change that would admit more, if a change of the job can.
    pub relaxation: Option<Relaxation>,
    /// All offers looked at.
    pub offers: u32,
}

/// The order of candidates: the order of the fields is the policy, the offer itself the last tie-break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score<'a> {
    total: Money,
    finish_in_s: u64,
    hourly: Money,
    reliability: Reverse<u32>,
    offer: &'a Offer,
}

impl<'a> Score<'a> {
    fn new(offer: &'a Offer, total: Money, finish_in_s: u64, hourly: Money) -> Self {
        Self { total, finish_in_s, hourly, reliability: Reverse(offer.reliability_ppm), offer }
    }
}

impl Candidate {
    pub(crate) fn score(&self) -> Score<'_> {
        Score::new(&self.offer, self.cost.total, self.finish_in_s, self.hourly)
    }
}

/// One offer with all that was found out about it.
#[derive(Debug)]
pub(crate) struct Assessed<'a> {
    pub(crate) offer: &'a Offer,
    pub(crate) estimate: Estimate,
    pub(crate) misses: Misses,
}

impl<'a> Assessed<'a> {
    pub(crate) fn score(&self) -> Score<'a> {
        Score::new(self.offer, self.estimate.cost.total, self.estimate.time.total_s(), self.estimate.hourly)
    }

    fn candidate(&self) -> Candidate {
        candidate(self.offer, &self.estimate)
    }
}

/// An offer with its estimate, on its own.
pub(crate) fn candidate(offer: &Offer, estimate: &Estimate) -> Candidate {
    Candidate {
        offer: offer.clone(),
        cost: estimate.cost,
        time: estimate.time,
        finish_in_s: estimate.time.total_s(),
        price_cap_per_hour: offer.price_per_hour,
        hourly: estimate.hourly,
        speed: estimate.speed,
    }
}

/// Finds out all about one offer.
pub(crate) fn assess<'a>(
    needs: &Requirements,
    lookup: &Lookup<'_>,
    paces: &Paces<'_>,
    offer: &'a Offer,
) -> Assessed<'a> {
    let estimate = estimate(needs.disk_gib, paces.of(offer), &lookup.job, &lookup.terms(offer));
    let misses = misses(needs, lookup, offer, &estimate);
    Assessed { offer, estimate, misses }
}

/// Ranks `offers` for one worker and keeps the best `limit`.
pub fn plan<'a>(
    needs: &Requirements,
    work: &WorkLeft,
    known: &Knowledge,
    offers: impl IntoIterator<Item = &'a Offer>,
    limit: usize,
) -> Plan {
    let offers: Vec<&Offer> = offers.into_iter().collect();
    plan_with(needs, work, &Lookup::new(known), &offers, limit)
}

/// An offer that fits, before anybody has asked for its copy.
#[derive(Debug, Clone, Copy)]
pub struct Fitting<'a> {
    /// The offer.
    pub offer: &'a Offer,
    /// As in [`Candidate`].
    pub time: TimeBreakdown,
    /// As in [`Candidate`].
    pub hourly: Money,
}

/// What [`plan`] ranks, without a reason for each of the rest. `keeps` is asked about each offer that fits, the best first; only those that it
/// wants are copied.
pub fn rank<'a>(
    needs: &Requirements,
    work: &WorkLeft,
    known: &Knowledge,
    offers: &[&'a Offer],
    mut keeps: impl FnMut(&Fitting<'a>) -> bool,
) -> Vec<Candidate> {
    let lookup = Lookup::new(known);
    let paces = Paces::new(needs, work, &lookup.job, offers.iter().copied());
    let possible = offers.iter().filter(|offer| may_fit(needs, &lookup, offer));
    let assessed = possible.map(|offer| assess(needs, &lookup, &paces, offer));
    let mut fitting: Vec<Assessed<'_>> = assessed.filter(|a| a.misses.is_empty()).collect();
    fitting.sort_unstable_by(|a, b| a.score().cmp(&b.score()));
    let wanted =
        |a: &&Assessed<'a>| keeps(&Fitting { offer: a.offer, time: a.estimate.time, hourly: a.estimate.hourly });
    fitting.iter().filter(wanted).map(Assessed::candidate).collect()
}

/// The same for a market that lies elsewhere.
pub(crate) fn plan_with(
    needs: &Requirements,
    work: &WorkLeft,
    lookup: &Lookup<'_>,
    offers: &[&Offer],
    limit: usize,
) -> Plan {
    let paces = Paces::new(needs, work, &lookup.job, offers.iter().copied());
    let assessed: Vec<Assessed<'_>> = offers.iter().map(|offer| assess(needs, lookup, &paces, offer)).collect();
    let mut fitting: Vec<&Assessed<'_>> = assessed.iter().filter(|a| a.misses.is_empty()).collect();
    fitting.sort_unstable_by_key(|a| a.score());
    let ranked: Vec<Candidate> = fitting.iter().take(limit).map(|a| a.candidate()).collect();
    Plan {
        cut: count(fitting.len() - ranked.len()),
        ranked,
        rejected: rejections(needs, lookup, &assessed),
        relaxation: relaxation(needs, work, lookup, &assessed),
        offers: count(offers.len()),
    }
}

/// A number of offers; the market never shows more than four thousand million.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn rejections(needs: &Requirements, lookup: &Lookup<'_>, assessed: &[Assessed<'_>]) -> Vec<Rejection> {
    let mut excludes: BTreeMap<RejectReason, u32> = BTreeMap::new();
    let mut counted: BTreeMap<RejectReason, Vec<&Assessed<'_>>> = BTreeMap::new();
    for one in assessed {
        for reason in one.misses.iter() {
            *excludes.entry(reason).or_default() += 1;
        }
        if let Some(first) = one.misses.first() {
            counted.entry(first).or_default().push(one);
        }
    }
    counted
        .into_iter()
        .filter_map(|(reason, group)| {
            let nearest = group.iter().min_by_key(|a| (a.misses.len(), gap(needs, lookup, a), a.score()))?;
            Some(Rejection {
                reason,
                count: count(group.len()),
                excludes: excludes.get(&reason).copied().unwrap_or_default(),
                says: reason.says(needs),
                nearest: nearest.offer.clone(),
                also_misses: nearest.misses.iter().filter(|other| *other != reason).collect(),
            })
        })
        .collect()
}
