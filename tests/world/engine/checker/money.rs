//! Promise 2: money limits hold, and a machine's cost is settled exactly once.

use std::time::Duration;

use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::{RentedMachineStatus, TrainingJobStatus};
use tradewind_core::{Money, OrderKey};

use super::super::cluster::job_name;
use super::super::wire::Common;
use super::{Checker, apart};

impl Checker {
    /// A complete list of the account arrived.
    pub fn listed(&mut self, at: Duration) {
        self.lists.push(at);
    }

    /// What all machines together cost an hour now.
    pub(super) fn spending(&mut self, micros_per_hour: u64) {
        let spent = Money::from_micros(i64::try_from(micros_per_hour).unwrap_or(i64::MAX));
        let limit = self.per_hour;
        self.ensure(spent <= limit, || format!("{spent} an hour are spent, the limit is {limit}"));
    }

    /// A job's account never holds more than the final costs of its machines.
    pub(super) fn settled(&mut self, n: usize, status: &TrainingJobStatus) {
        let final_costs: Money = self.final_costs(n).iter().map(|(_, cost)| *cost).sum();
        let settled = status.cost.settled;
        self.ensure(settled <= final_costs, || {
            format!("{}: {settled} are settled, but its machines that are gone cost {final_costs}", job_name(n))
        });
    }

    /// Final costs of a job's machines, by name.
    fn final_costs(&self, n: usize) -> Vec<(String, Money)> {
        let is_final = |s: &RentedMachineStatus| s.phase == MachinePhase::Gone && s.rented_at.is_some();
        self.rentals
            .values()
            .filter(|r| r.job == n && r.forgotten.is_none())
            .filter_map(|r| {
                let status = r.object.status.as_ref().filter(|s| is_final(s))?;
                Some((r.object.metadata.name.clone().unwrap_or_default(), status.cost?))
            })
            .collect()
    }

    /// At the end: each machine settled once, and each cost what the market says, but for what polling cannot know.
    pub(super) fn books_agree(&mut self, common: &Common) {
        for n in 0..self.jobs.len() {
            let Some(status) = self.jobs[n].object.as_ref().and_then(|j| j.status.clone()) else { continue };
            if self.jobs[n].deleted {
                continue;
            }
            let costs = self.final_costs(n);
            let sum: Money = costs.iter().map(|(_, cost)| *cost).sum();
            self.ensure(status.cost.settled == sum && status.cost.total == sum, || {
                format!(
                    "{}: settled {} of {}, its machines cost {costs:?}",
                    job_name(n),
                    status.cost.settled,
                    status.cost.total
                )
            });
        }
        let bills = common.with_market(|market, now| {
            let machines = market.machines().iter();
            machines
                .map(|m| {
                    let label = m.label.clone().unwrap_or_default();
                    let ended = m.ended_at.unwrap_or(now).as_duration();
                    let rate = m.compute_micros_per_hour() + m.disk_micros_per_hour();
                    // Invisible at first, and for half a minute "offline" may only be a short break.
                    let lost =
                        market.events().after(0).any(|e| e.kind == "reclaimed" && e.machine == Some(m.id.to_string()));
                    let lag = m.visible_at.as_duration().saturating_sub(m.created_at.as_duration());
                    // One that lost its GPU and won it back paid nothing for it in between.
                    let again = Duration::from_mins(1) * m.boots.saturating_sub(1);
                    let hidden = lag + again + if lost { Duration::from_secs(45) } else { Duration::ZERO };
                    (m.id, label, (m.created_at.as_duration(), ended), hidden, rate, m.cost_micros(now))
                })
                .collect::<Vec<_>>()
        });
        for (id, label, (created, ended), hidden, rate, bill) in bills {
            let Some(rental) = label.parse::<OrderKey>().ok().and_then(|key| self.rental_of(&key)) else { continue };
            let Some(status) = rental.object.status.clone().filter(|s| s.machine_id == Some(id.to_string())) else {
                continue;
            };
            if rental.forgotten.is_some() {
                continue;
            }
            // An older state does not know how long it has run by then.
            let hidden = hidden + self.unknown_after_going_back(created);
            let cost = status.cost.map_or(0, Money::micros);
            let blind = self.longest_gap(created, ended);
            let hidden = hidden + self.hidden.get(&id).copied().unwrap_or_default();
            // Two transitions, each known to within a gap between two lists; and the second that the market rounds down.
            let seconds = blind.as_secs_f64() * 2.0 + hidden.as_secs_f64() + 3.0;
            #[expect(clippy::cast_precision_loss, reason = "money of one small world")]
            let (tolerance, difference) =
                (seconds * rate as f64 / 3600.0 + 10.0, (cost - i64::try_from(bill).unwrap_or(0)).abs() as f64);
            self.ensure(difference <= tolerance, || {
                format!("machine {id}: our cost {cost}, the market's bill {bill} micro-dollars, {tolerance:.0} may be unknown")
            });
            let lived = ended.saturating_sub(created).as_secs_f64();
            let bound = seconds * 2.0 + 120.0;
            self.ensure(lived <= bound || !self.too_dear.contains_key(&id), || {
                format!(
                    "machine {id} was dearer than its cap and lived for {lived} s, {bound} s may be needed to end it"
                )
            });
            if let Some(rented) = &status.rented_at {
                let moment = common.with_market(|market, _| market.machine(id).map(|m| market.timestamp(m.created_at)));
                let off = moment.map_or(0.0, |moment| apart(moment, rented.0));
                self.ensure(off <= 300.0, || format!("machine {id}: rented {off} s from when we say"));
            }
        }
    }

    /// The longest time without a complete list while a machine lived, its edges included.
    fn longest_gap(&self, from: Duration, to: Duration) -> Duration {
        let margin = Duration::from_mins(1);
        let begin = from.saturating_sub(margin);
        let mut last = begin;
        let mut longest = Duration::ZERO;
        for at in self.lists.iter().copied().filter(|at| *at > begin) {
            longest = longest.max(at.saturating_sub(last));
            last = at;
            if at > to + margin {
                break;
            }
        }
        longest.max(Duration::from_secs(10))
    }
}
