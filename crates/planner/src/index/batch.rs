//! Several pending jobs over the same offers, no machine twice.
//!
//! An exact minimum-cost assignment (the Hungarian method with potentials): first as many jobs as possible are placed, then their total
//! is the least. In the best assignment each of `n` jobs has one of its own `n` best machines, since the others hold at most `n - 1`
//! of them; so each job brings only those.

use std::collections::BTreeMap;

use tradewind_core::{Money, Offer};

use super::OfferIndex;
use crate::knowledge::JobFacts;
use crate::lookup::Lookup;
use crate::needs::{Requirements, WorkLeft};
use crate::rank::{Candidate, plan_with};

/// One job that wants a machine.
#[derive(Debug, Clone, Copy)]
pub struct Pending<'a> {
    /// What it needs.
    pub needs: &'a Requirements,
    /// What it has to do.
    pub work: &'a WorkLeft,
    /// What is known of it.
    pub job: JobFacts<'a>,
}

/// Dearer than any sum of money: a job without a machine.
const UNPLACED: i128 = 1 << 80;
/// Dearer than any number of jobs without a machine: a machine on which the job cannot run.
const FORBIDDEN: i128 = 1 << 100;

/// A machine: an id of a provider, on whatever terms.
type Unit<'a> = (&'a str, &'a str);

fn unit(offer: &Offer) -> Unit<'_> {
    (&offer.provider, &offer.id)
}

impl OfferIndex {
    /// A machine for each of these jobs, in their order; `None` for those for which none is left. Spot and on-demand terms of one id are
    /// one machine; an id is given out as often as [`Knowledge::stock`](crate::Knowledge::stock) says. Who is left out when there are
    /// too few is decided by the total cost, not by how long they have waited.
    pub fn assign(&self, jobs: &[Pending<'_>]) -> Vec<Option<Candidate>> {
        let wishes: Vec<BTreeMap<Unit<'_>, (Money, &Offer)>> =
            jobs.iter().map(|one| self.wishes(one, jobs.len())).collect();
        let mut columns: BTreeMap<Unit<'_>, Vec<usize>> = BTreeMap::new();
        let mut width = 0;
        for unit in wishes.iter().flat_map(BTreeMap::keys) {
            columns.entry(*unit).or_insert_with(|| {
                let stock = self.in_stock(*unit).min(jobs.len());
                width += stock;
                (width - stock..width).collect()
            });
        }
        let costs: Vec<Vec<i128>> = wishes
            .iter()
            .map(|wish| {
                let mut row = vec![FORBIDDEN; width];
                row.resize(width + jobs.len(), UNPLACED);
                for (unit, (total, _)) in wish {
                    for column in &columns[unit] {
                        row[*column] = total.micros().into();
                    }
                }
                row
            })
            .collect();
        let mut unit_of = vec![None; width + jobs.len()];
        for (unit, places) in &columns {
            for place in places {
                unit_of[*place] = Some(*unit);
            }
        }
        let given = assignment(&costs);
        let chosen = wishes.iter().zip(given).map(|(wish, column)| {
            let unit = unit_of.get(column).copied().flatten()?;
            wish.get(&unit).map(|(_, offer)| *offer)
        });
        chosen.zip(jobs).map(|(offer, one)| self.candidate_of(one, offer?)).collect()
    }

    fn in_stock(&self, unit: Unit<'_>) -> usize {
        let key = (unit.0.to_owned(), unit.1.to_owned());
        self.market.stock.get(&key).map_or(1, |n| *n as usize)
    }

    /// The best `n` machines for a job, each with its better terms; fewer if there are no more.
    fn wishes<'a>(&'a self, one: &Pending<'_>, n: usize) -> BTreeMap<Unit<'a>, (Money, &'a Offer)> {
        // As a rule an id has two terms at most; where it is listed more often, more are asked for.
        let mut limit = n.saturating_mul(2);
        loop {
            let found = self.totals(one.needs, one.work, &one.job, limit);
            let all = found.len() < limit;
            let mut best = BTreeMap::new();
            for (total, offer) in found.into_iter().filter(|(_, offer)| self.in_stock(unit(offer)) > 0) {
                best.entry(unit(offer)).or_insert((total, offer));
            }
            if all || best.len() >= n {
                return best;
            }
            limit = limit.saturating_mul(2);
        }
    }

    fn candidate_of(&self, one: &Pending<'_>, offer: &Offer) -> Option<Candidate> {
        plan_with(one.needs, one.work, &Lookup::with_job(&self.market, one.job), &[offer], 1).ranked.pop()
    }
}

/// The column of each row in an assignment of least cost. Every row has at least as many columns as there are rows. Potentials `u` of
/// rows and `v` of columns stay such that no cost is below their sum; each row is added along a shortest path that keeps it so.
fn assignment(costs: &[Vec<i128>]) -> Vec<usize> {
    let rows = costs.len();
    let columns = costs.first().map_or(0, Vec::len);
    let mut u = vec![0_i128; rows];
    let mut v = vec![0_i128; columns];
    let mut row_of: Vec<Option<usize>> = vec![None; columns];
    for new in 0..rows {
        let mut least = vec![i128::MAX; columns];
        let mut came_from: Vec<Option<usize>> = vec![None; columns];
        let mut seen = vec![false; columns];
        let mut row = new;
        let mut last = None;
        let end = loop {
            let mut nearest: Option<(i128, usize)> = None;
            for column in (0..columns).filter(|column| !seen[*column]) {
                let slack = costs[row][column] - u[row] - v[column];
                if slack < least[column] {
                    least[column] = slack;
                    came_from[column] = last;
                }
                if nearest.is_none_or(|(best, _)| least[column] < best) {
                    nearest = Some((least[column], column));
                }
            }
            let Some((delta, column)) = nearest else { break None };
            u[new] += delta;
            for other in 0..columns {
                if seen[other] {
                    v[other] -= delta;
                    if let Some(holder) = row_of[other] {
                        u[holder] += delta;
                    }
                } else {
                    least[other] -= delta;
                }
            }
            seen[column] = true;
            last = Some(column);
            match row_of[column] {
                Some(holder) => row = holder,
                None => break Some(column),
            }
        };
        // Everybody on the path takes the column after the own one.
        let mut at = end;
        while let Some(column) = at {
            let before = came_from[column];
            row_of[column] = match before {
                Some(previous) => row_of[previous],
                None => Some(new),
            };
            at = before;
        }
    }
    let mut column_of = vec![usize::MAX; rows];
    for (column, row) in row_of.iter().enumerate() {
        if let Some(row) = row {
            column_of[*row] = column;
        }
    }
    column_of
}
