//! The search: best bound first, until nobody left can be better.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use tradewind_core::{Money, Offer};

use super::bits::next;
use super::row::{Group, MINIMUMS, NO_GPU, Row};
use super::{OfferIndex, number};
use crate::cost::{Estimate, estimate, least};
use crate::gpus::Known;
use crate::knowledge::JobFacts;
use crate::needs::{Requirements, WorkLeft};
use crate::rank::{Candidate, candidate};
use crate::speed::{Pace, Pacer};

/// What a decision took, to be held against what the machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effort {
    /// Words of 64 bits read to find the offers that are worth a look.
    pub words: usize,
    /// Groups that were bounded.
    pub groups: usize,
    /// Offers that were looked at.
    pub rows: usize,
    /// Offers whose cost was worked out.
    pub estimates: usize,
}

/// An offer that is kept for now. Compared as [`crate::rank`]'s score is.
struct Kept<'a> {
    offer: &'a Offer,
    estimate: Estimate,
    score: (Money, u64, Money, Reverse<u32>),
}

/// A group of which rows may still be better than what is kept.
struct Ahead {
    group: u32,
    /// Row to look at next; [`NOT_YET`] = the bound is a rough one.
    row: u32,
    pace: Pace,
    /// Least seconds of paid time, and least cost besides the price, once the bound is not rough any more.
    least: (u64, Money),
}

const NOT_YET: u32 = u32::MAX;

/// Bounds, least first, with the place of their group among those ahead.
type Bounds = BinaryHeap<Reverse<(Money, u32)>>;

impl OfferIndex {
    /// The offers that fit, lowest expected total cost first, at most `limit`: what [`plan`](crate::plan) ranks, without the reasons.
    pub fn rank(&self, needs: &Requirements, work: &WorkLeft, job: &JobFacts<'_>, limit: usize) -> Vec<Candidate> {
        self.rank_measured(needs, work, job, limit).0
    }

    /// The same, and what it took.
    pub fn rank_measured(
        &self,
        needs: &Requirements,
        work: &WorkLeft,
        job: &JobFacts<'_>,
        limit: usize,
    ) -> (Vec<Candidate>, Effort) {
        let search = self.search(needs, work, job, limit);
        let found = search.kept.iter().map(|kept| candidate(kept.offer, &kept.estimate)).collect();
        (found, search.effort)
    }

    /// The same offers with their totals only.
    pub(super) fn totals(
        &self,
        needs: &Requirements,
        work: &WorkLeft,
        job: &JobFacts<'_>,
        limit: usize,
    ) -> Vec<(Money, &Offer)> {
        self.search(needs, work, job, limit).kept.iter().map(|kept| (kept.score.0, kept.offer)).collect()
    }

    fn search<'a, 'b>(
        &'a self,
        needs: &'b Requirements,
        work: &WorkLeft,
        job: &'b JobFacts<'b>,
        limit: usize,
    ) -> Search<'a, 'b> {
        let mut search = Search { index: self, needs, job, limit, kept: Vec::new(), effort: Effort::default() };
        if limit > 0 {
            search.run(work);
        }
        search
    }
}

struct Search<'a, 'b> {
    index: &'a OfferIndex,
    needs: &'b Requirements,
    job: &'b JobFacts<'b>,
    limit: usize,
    kept: Vec<Kept<'a>>,
    effort: Effort,
}

impl Search<'_, '_> {
    fn run(&mut self, work: &WorkLeft) {
        let groups = self.groups();
        let (Some(first), Some(last)) = (self.index.groups.get(groups.start), groups.end.checked_sub(1)) else {
            return;
        };
        let rows = first.start..self.index.end(last);
        let minimums = self.minimums();
        let Some(regions) = self.regions() else { return };
        let worth = self.worth_a_look(&rows, &minimums, &regions);
        if worth.iter().all(|word| *word == 0) {
            return;
        }
        let (mut ahead, mut bounds) = self.ahead(groups, work);
        while let Some(mut top) = bounds.peek_mut() {
            let Reverse((bound, place)) = *top;
            if self.kept.len() == self.limit && self.kept.last().is_some_and(|worst| bound > worst.score.0) {
                break;
            }
            let at = &mut ahead[place as usize];
            let group = &self.index.groups[at.group as usize];
            let end = self.index.end(at.group as usize);
            let from = if at.row == NOT_YET {
                group.start
            } else {
                self.look(group, at, &minimums, &regions);
                at.row as usize + 1
            };
            let price = |row: usize| self.index.rows[row].price;
            let affordable = |row: &usize| self.needs.max_price_per_hour.is_none_or(|most| price(*row) <= most);
            let Some(row) = next(&worth, rows.start / 64, from, end).filter(affordable) else {
                PeekMut::pop(top);
                continue;
            };
            if at.row == NOT_YET {
                self.effort.groups += 1;
                let (seconds, besides, finish_s) =
                    least(self.needs.disk_gib, at.pace.run_s, self.job, &group.best_terms());
                if self.needs.finish_within_s.is_some_and(|within| finish_s > within) {
                    PeekMut::pop(top);
                    continue;
                }
                at.least = (seconds, besides);
            }
            at.row = number(row);
            let bound = price(row).for_seconds(at.least.0) + at.least.1;
            if self.needs.budget_left.is_some_and(|left| bound > left) {
                PeekMut::pop(top);
            } else {
                *top = Reverse((bound, place));
            }
        }
    }

    /// Groups whose number of GPUs is right; for a CPU job all.
    fn groups(&self) -> std::ops::Range<usize> {
        let groups = &self.index.groups;
        match self.needs.gpu_count {
            0 => 0..groups.len(),
            count => {
                let from = groups.partition_point(|group| group.key.gpu_count < count);
                from..groups.partition_point(|group| group.key.gpu_count <= count)
            }
        }
    }

    /// What is asked for, in the order of [`minimums`](super::row::minimums).
    fn minimums(&self) -> [u64; MINIMUMS] {
        let needs = self.needs;
        [
            if needs.gpu_count > 0 { needs.enough_gpu_memory_mib() } else { 0 },
            needs.cpu_millis,
            needs.memory_mib,
            needs.disk_gib,
            needs.min_trust as u64,
            needs.min_reliability_ppm.into(),
            needs.min_download_mbps,
            needs.min_upload_mbps,
            needs.min_cuda_milli.into(),
        ]
    }

    /// Numbers of the regions that are asked for; empty = all. `None` if there is no offer in any of them.
    fn regions(&self) -> Option<Vec<u32>> {
        let asked = self.needs.regions.iter();
        let found: Vec<u32> =
            asked.filter_map(|region| self.index.regions.get(&region.to_ascii_lowercase()).copied()).collect();
        (self.needs.regions.is_empty() || !found.is_empty()).then_some(found)
    }

    /// Rows that nothing known by bits excludes, in words from that of the first row on.
    fn worth_a_look(&mut self, rows: &std::ops::Range<usize>, minimums: &[u64; MINIMUMS], regions: &[u32]) -> Vec<u64> {
        let index = self.index;
        let words = rows.start / 64..rows.end.div_ceil(64);
        let mut worth: Vec<u64> = index.open.words()[words.clone()].to_vec();
        let mut sets = 1;
        let asked = index.levels.iter().zip(minimums).filter(|(_, minimum)| **minimum > 0);
        for set in asked.filter_map(|(levels, minimum)| levels.at_least(*minimum)) {
            worth.iter_mut().zip(&set.words()[words.clone()]).for_each(|(word, other)| *word &= other);
            sets += 1;
        }
        let set_of = |region: &u32| index.region_sets.get(*region as usize).unwrap_or(&index.other_regions);
        match regions {
            [] => {}
            [one] => {
                worth.iter_mut().zip(&set_of(one).words()[words.clone()]).for_each(|(word, other)| *word &= other);
            }
            several => {
                let mut any = vec![0; worth.len()];
                for set in several.iter().map(set_of) {
                    any.iter_mut().zip(&set.words()[words.clone()]).for_each(|(word, other)| *word |= other);
                }
                worth.iter_mut().zip(&any).for_each(|(word, other)| *word &= other);
            }
        }
        self.effort.words += (sets + regions.len()) * worth.len();
        worth
    }

    /// The groups that may have something, by a rough bound: the cheapest price for the running time alone.
    fn ahead(&self, groups: std::ops::Range<usize>, work: &WorkLeft) -> (Vec<Ahead>, Bounds) {
        let (index, needs) = (self.index, self.needs);
        let pacer = Pacer::new(work, self.job);
        let asked: Vec<Known<'_>> = needs.gpu_models.iter().map(Known::new).collect();
        let providers: Vec<bool> = index.providers.iter().map(|name| needs.providers.contains(name)).collect();
        let cpu = (needs.gpu_count == 0).then(|| pacer.pace(None));
        // Groups of a model lie side by side.
        let mut of_model: (u32, Option<Pace>) = (NO_GPU, cpu);
        let mut ahead = Vec::with_capacity(groups.len());
        let mut bounds = Vec::with_capacity(groups.len());
        for at in groups {
            let group = &index.groups[at];
            let key = group.key;
            let barred = !needs.providers.is_empty() && !providers[key.provider as usize];
            if barred || !needs.capacity.admits(key.capacity) {
                continue;
            }
            if cpu.is_none() && key.model != of_model.0 {
                let known = index.models.get(key.model as usize).map(super::row::Model::known);
                let wanted = known.filter(|known| asked.is_empty() || asked.iter().any(|asked| asked.admits(*known)));
                of_model = (key.model, wanted.map(|known| pacer.pace(Some(known))));
            }
            let Some(pace) = of_model.1 else { continue };
            let bound = group.best.price.for_seconds(pace.run_s);
            let late = needs.finish_within_s.is_some_and(|within| pace.run_s > within);
            let dear = needs.max_price_per_hour.is_some_and(|most| group.best.price > most)
                || needs.budget_left.is_some_and(|left| bound > left);
            if !late && !dear {
                bounds.push(Reverse((bound, number(ahead.len()))));
                ahead.push(Ahead { group: number(at), row: NOT_YET, pace, least: (0, Money::ZERO) });
            }
        }
        (ahead, BinaryHeap::from(bounds))
    }

    /// Works out what a row costs, and keeps it if it fits and is good enough.
    fn look(&mut self, group: &Group, at: &Ahead, minimums: &[u64; MINIMUMS], regions: &[u32]) {
        self.effort.rows += 1;
        let index = self.index;
        let row: &Row = &index.rows[at.row as usize];
        let has_all = row.minimums.iter().zip(minimums).all(|(has, asked)| has >= asked);
        if !has_all || !(regions.is_empty() || regions.contains(&row.region)) {
            return;
        }
        let Some(offer) = index.offer(row.slot) else { return };
        let needs = self.needs;
        if !needs.excluded_hosts.is_empty() && needs.excludes_host(&offer.provider, &offer.host) {
            return;
        }
        self.effort.estimates += 1;
        let estimate = estimate(needs.disk_gib, at.pace, self.job, &row.terms(group));
        let finish_s = estimate.time.total_s();
        let total = estimate.cost.total;
        let above = |amount: Money, limit: Option<Money>| limit.is_some_and(|limit| amount > limit);
        if estimate.too_short
            || above(estimate.hourly, needs.max_price_per_hour)
            || above(total, needs.budget_left)
            || needs.finish_within_s.is_some_and(|within| finish_s > within)
        {
            return;
        }
        let score = (total, finish_s, estimate.hourly, Reverse(offer.reliability_ppm));
        let place = self.kept.partition_point(|other| (other.score, other.offer) < (score, offer));
        if place < self.limit {
            self.kept.truncate(self.limit - 1);
            self.kept.insert(place, Kept { offer, estimate, score });
        }
    }
}
