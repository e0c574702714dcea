//! Limits that are passed by what runs already: one was lowered, or a day's money is used up. Pure.
//!
//! Orders are admitted by the ledger, so nothing is passed by renting. The newest machines stop first: they have the least to lose.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tradewind_api::RentedMachine;
use tradewind_core::Money;

/// Limits and what counts against them.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// How they are called in the spec, such as `limits` or `access[1].limits`.
    pub name: String,
    /// Dollars an hour.
    pub per_hour: Option<Money>,
    /// Dollars in 24 hours.
    pub per_day: Option<Money>,
    /// Dollars spent in the last 24 hours.
    pub spent_today: Money,
}

/// Which of these machines must stop so that the others keep the limits, by uid, and why. `machines`: those of the account for which the limits
/// hold; `reserve`: what a machine still costs after it is told to stop.
pub fn overrun(
    machines: &[&RentedMachine],
    provider: &str,
    bounds: &Bounds,
    reserve: impl Fn(&RentedMachine) -> Money,
) -> BTreeMap<String, String> {
    let mut running: Vec<(Timestamp, &RentedMachine, Money)> = machines.iter().filter_map(|m| runs(m)).collect();
    running.sort_by(|a, b| (a.0, &a.1.metadata.uid).cmp(&(b.0, &b.1.metadata.uid)));
    let (mut hourly, mut to_end) = (Money::ZERO, Money::ZERO);
    let mut stops = BTreeMap::new();
    for (_, machine, asked) in running {
        let kept = reserve(machine);
        let name = &bounds.name;
        let why = if let Some(limit) = bounds.per_hour.filter(|limit| hourly + asked > *limit) {
            let more = hourly + asked;
            Some(format!(
                "{name}.perHour of Provider {provider} is ${limit}, and what runs there may cost ${more} an hour"
            ))
        } else {
            let passed = bounds.per_day.filter(|limit| bounds.spent_today + to_end + kept >= *limit);
            passed.map(|limit| {
                let spent = bounds.spent_today;
                format!(
                    "{name}.perDay of Provider {provider} is ${limit}, and ${spent} were spent in the last 24 hours"
                )
            })
        };
        if let (Some(why), Some(uid)) = (why, &machine.metadata.uid) {
            stops.insert(uid.clone(), why);
        } else {
            (hourly, to_end) = (hourly + asked, to_end + kept);
        }
    }
    stops
}

/// When a machine was ordered that runs and goes on running, and what it may cost an hour.
fn runs(machine: &RentedMachine) -> Option<(Timestamp, &RentedMachine, Money)> {
    let status = machine.status.as_ref()?;
    let ends = machine.spec.stop.is_some() || status.ended.is_some() || machine.metadata.deletion_timestamp.is_some();
    status.machine_id.as_ref().filter(|_| !ends)?;
    let order = status.rented_order()?;
    let offer = order.of(&machine.spec.offers)?;
    Some((order.at.0, machine, offer.reserve_per_hour))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    fn machine(uid: &str, minute: u32, more: &serde_json::Value) -> RentedMachine {
        let at = format!("2026-11-21T10:{minute:02}:00.000000Z");
        let mut status = json!({"machineId": uid, "orders": [{"key": "k", "offer": 0, "at": at, "outcome": "Rented"}]});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        test_machine::machine(uid, &status)
    }

    #[test]
    fn the_newest_stop_until_the_others_keep_the_limit() {
        let all = [
            machine("new", 30, &json!({})),
            machine("old", 10, &json!({})),
            machine("ends", 5, &json!({"ended": "Released"})),
            machine("middle", 20, &json!({})),
        ];
        let all: Vec<&RentedMachine> = all.iter().collect();
        let dollars = |text: &str| text.parse::<Money>().unwrap();
        let stops = |hour: Option<&str>, day: Option<&str>, spent: &str| {
            let bounds = Bounds {
                name: "limits".to_owned(),
                per_hour: hour.map(dollars),
                per_day: day.map(dollars),
                spent_today: dollars(spent),
            };
            let stops = overrun(&all, "p", &bounds, |_| dollars("0.10"));
            stops.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        for (what, hour, day, spent, expected) in [
            ("nothing is passed", Some("3"), Some("5"), "4.60", ""),
            ("each may cost a dollar an hour", Some("2.99"), None, "0", "new"),
            ("room for one", Some("1"), None, "0", "middle new"),
            ("room for none", Some("0.99"), None, "0", "middle new old"),
            ("the day is used up", None, Some("5"), "5.01", "middle new old"),
            ("but for the end of one", None, Some("5"), "4.85", "middle new"),
            ("no limits", None, None, "1000", ""),
        ] {
            assert_eq!(stops(hour, day, spent), expected, "{what}");
        }
    }
}
