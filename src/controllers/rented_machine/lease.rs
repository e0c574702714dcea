//! The money line: how long a machine may go on while it hears nothing of its operator.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::values::Span;
use tradewind_api::{Provider, RentedMachine, TrainingJob};
use tradewind_cluster::Key;
use tradewind_core::Money;

use super::{cost, reserve};
use crate::context::Context;

/// Seconds from now to the line, `shortest` at least, since shorter gaps are everyday: the operator's longest absence, or the end of the budget at this price, whichever comes first.
pub fn seconds(tolerance: Duration, shortest: Duration, budget_left: Option<Money>, price_per_hour: Money) -> u64 {
    let tolerance = tolerance.max(shortest);
    let affordable = budget_left.filter(|_| price_per_hour > Money::ZERO).map(|left| {
        let micros = |money: Money| u64::try_from(money.micros()).unwrap_or(0);
        Duration::from_secs(micros(left).saturating_mul(3600) / micros(price_per_hour).max(1))
    });
    let line = affordable.map_or(tolerance, |affordable| affordable.max(shortest).min(tolerance));
    line.as_secs().max(1)
}

/// What is left of a job's budget, but for the reserve of the last save, with this machine's cost so far counted from the clock; `None` = the
/// job has no budget in all.
fn budget_left(job: &TrainingJob, machine: &RentedMachine, price: Money, now: Timestamp) -> Option<Money> {
    let total = job.spec.budget.as_ref()?.total?;
    let settled = job.status.as_ref().map_or(Money::ZERO, |s| s.cost.settled);
    let since = machine.status.as_ref().and_then(|s| s.rented_at.as_ref()).map_or(now, |t| t.0);
    let lived = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    let bytes = machine
        .status
        .as_ref()
        .and_then(|m| Some(cost::traffic(&reserve::offer(machine)?, m, machine.spec.image_bytes)));
    let newest = job.status.as_ref().and_then(|s| s.checkpoint.as_ref());
    let kept = reserve::of(machine, newest).dollars(price);
    Some((total - settled - price.for_seconds(lived) - bytes.unwrap_or_default() - kept).max(Money::ZERO))
}

/// The line of this machine as of now, in seconds.
pub fn line(ctx: &Context, machine: &RentedMachine) -> u64 {
    let spec = &machine.spec;
    let provider = ctx.caches.providers.get(&Key::cluster(spec.provider.as_str()));
    let span = |provider: &Provider| provider.spec.operator_outage_tolerance.seconds();
    let tolerance =
        provider.map_or_else(|| Span(tradewind_api::provider::DEFAULT_TOLERANCE.to_owned()).seconds(), |p| span(&p));
    let asked = spec.offers.first().map_or(Money::ZERO, |offer| offer.reserve_per_hour);
    let price = machine.status.as_ref().and_then(|s| s.price_per_hour).unwrap_or(asked);
    let job = ctx.caches.jobs.get(&Key::namespaced(spec.job.namespace.as_str(), spec.job.name.as_str()));
    let left = job.and_then(|job| budget_left(&job, machine, price, ctx.clock.now()));
    seconds(Duration::from_secs(tolerance), ctx.settings.shortest_line, left, price)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_budget_or_the_longest_absence() {
        let shortest = Duration::from_mins(2);
        let (day, dollar) = (Duration::from_hours(24), Money::from_micros(1_000_000));
        for (what, left, price, expected) in [
            ("no budget", None, dollar, 86_400),
            ("a dollar at a dollar an hour", Some(dollar), dollar, 3_600),
            ("more than a day's worth", Some(Money::from_micros(100_000_000)), dollar, 86_400),
            ("nothing left: an everyday gap ends nothing", Some(Money::ZERO), dollar, 120),
            ("free of charge", Some(dollar), Money::ZERO, 86_400),
        ] {
            assert_eq!(seconds(day, shortest, left, price), expected, "{what}");
        }
        assert_eq!(
            seconds(Duration::from_mins(5), shortest, Some(dollar), dollar),
            300,
            "the tolerance is never passed"
        );
        assert_eq!(seconds(Duration::ZERO, shortest, None, dollar), 120, "no gap is too short");
    }
}
