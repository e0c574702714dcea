//! A machine that was chosen for a job: what it is expected to cost, and what the next best would cost. `why` tells it of a job that is there,
//! `plan` of one that is not. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use tradewind_api::training_job::{Alternative, ExpectedCost};
use tradewind_core::Money;
use tradewind_planner::explain;
pub use tradewind_planner::explain::{kind as summary, terms};

use crate::screen::{Ink, Shade};
use crate::table::{Cell, Table};
use crate::text::{NONE, dollars, until, wrapped};

/// One part of an expected cost.
pub type Part = (&'static str, Money);

/// The parts of an expected cost in the order in which they come about; `all`: those of nothing too.
pub fn parts(cost: &ExpectedCost, all: bool) -> Vec<Part> {
    let parts = [
        ("set-up", cost.setup),
        ("image pull", cost.image_pull),
        ("input download", cost.input_download),
        ("restore", cost.restore),
        ("work", cost.compute),
        ("work done twice", cost.expected_lost_work),
        ("disk", cost.storage),
        ("traffic", cost.traffic),
    ];
    parts.into_iter().filter(|(_, amount)| all || *amount != Money::ZERO).collect()
}

/// The expected cost, part by part; `all`: with the parts that cost nothing.
pub fn cost(cost: &ExpectedCost, all: bool, ink: Ink) -> String {
    let mut table = Table::new(&["EXPECTED COST", "$"]);
    for (what, amount) in parts(cost, all) {
        table.row([what.into(), about(amount).into()]);
    }
    table.row([Cell::shaded("in all", Shade::Strong), Cell::shaded(about(cost.total), Shade::Strong)]);
    table.text(ink)
}

/// The first row of the table of offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First {
    /// The machine, and why it is the first.
    pub what: String,
    /// Dollars an hour.
    pub price_per_hour: Option<Money>,
    /// When the job would be complete.
    pub expected_finish: Option<Timestamp>,
}

/// The first offer and the best others.
pub fn offers(first: &First, others: &[Alternative], now: Timestamp, ink: Ink) -> String {
    let when = |at: Option<Timestamp>| at.map_or_else(|| NONE.to_owned(), |at| until(now, at));
    let mut table = Table::new(&["OFFER", "$/H", "MORE", "COMPLETE"]);
    table.row([
        Cell::shaded(first.what.as_str(), Shade::Strong),
        first.price_per_hour.map_or_else(|| NONE.to_owned(), dollars).into(),
        "".into(),
        when(first.expected_finish).into(),
    ]);
    for other in others {
        table.row([
            other.summary.as_str().into(),
            dollars(other.price_per_hour).into(),
            more(other.extra_cost).into(),
            when(other.expected_finish.as_ref().map(|at| at.0)).into(),
        ]);
    }
    table.text(ink)
}

/// An expectation: two digits of it mean something.
pub fn about(amount: Money) -> String {
    let sign = if amount < Money::ZERO { "-" } else { "" };
    format!("{sign}${}", explain::about(Money::from_micros(amount.micros().saturating_abs())))
}

fn more(extra: Money) -> String {
    if extra < Money::ZERO { about(extra) } else { format!("+{}", about(extra)) }
}

/// Lines under a head; nothing without lines.
pub fn lines(head: &str, lines: &[String]) -> String {
    let mut text = String::new();
    if !lines.is_empty() {
        let _ = writeln!(text, "{head}");
        for line in lines {
            text.push_str(&wrapped(line, "  "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_nothing_is_not_told_and_less_is_not_more() {
        let money = Money::from_micros;
        let some =
            ExpectedCost { compute: money(300_000), storage: money(1), total: money(300_001), ..Default::default() };
        assert_eq!(parts(&some, false).iter().map(|(what, _)| *what).collect::<Vec<_>>(), ["work", "disk"]);
        assert_eq!(parts(&some, true).len(), 8);
        let first = First { what: "a (chosen)".to_owned(), price_per_hour: None, expected_finish: None };
        let other = |extra| Alternative { summary: "b".to_owned(), extra_cost: money(extra), ..Alternative::default() };
        let table = offers(&first, &[other(50_000), other(-50_000)], Timestamp::UNIX_EPOCH, Ink::none());
        assert!(table.contains("+$0.05") && table.contains("   -$0.05"), "{table}");
    }
}
