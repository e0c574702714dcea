//! The account's ledger: what is committed, and whether one more machine fits. Pure; the caller holds the account's lock.

use tradewind_api::RentedMachine;
use tradewind_api::access::AccessLimits;
use tradewind_api::provider::{Limits, Spend};
use tradewind_api::rented_machine::{ChosenOffer, MachinePhase, OrderOutcome, OrderStatus};
use tradewind_core::Money;

use super::books;

/// Why one more machine does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The account's hourly limit.
    #[error(
        "limits.perHour of Provider {provider} is ${limit}, ${committed} an hour are committed, and this machine may cost ${asked} an hour"
    )]
    PerHour {
        /// Provider.
        provider: String,
        /// The limit.
        limit: Money,
        /// What is committed.
        committed: Money,
        /// What was asked for.
        asked: Money,
    },
    /// The account's daily limit, with what runs now running on for another hour.
    #[error(
        "limits.perDay of Provider {provider} is ${limit}, ${spent} were spent in the last 24 hours, and one more hour of all machines would cost ${next_hour}"
    )]
    PerDay {
        /// Provider.
        provider: String,
        /// The limit.
        limit: Money,
        /// What was spent.
        spent: Money,
        /// What the next hour may cost.
        next_hour: Money,
    },
    /// The hourly limit of the job's namespace and others that one entry of the access list selects.
    #[error(
        "access[{entry}].limits.perHour of Provider {provider} is ${limit}, ${committed} an hour are committed by the namespaces that it selects, and this machine may cost ${asked} an hour"
    )]
    AccessPerHour {
        /// Provider.
        provider: String,
        /// Place in the list.
        entry: usize,
        /// The limit.
        limit: Money,
        /// What is committed.
        committed: Money,
        /// What was asked for.
        asked: Money,
    },
    /// Their daily limit, with what they run now running on for another hour.
    #[error(
        "access[{entry}].limits.perDay of Provider {provider} is ${limit}, the namespaces that it selects spent ${spent} in the last 24 hours, and one more hour of all their machines would cost ${next_hour}"
    )]
    AccessPerDay {
        /// Provider.
        provider: String,
        /// Place in the list.
        entry: usize,
        /// The limit.
        limit: Money,
        /// What was spent.
        spent: Money,
        /// What the next hour may cost.
        next_hour: Money,
    },
    /// The job's own hourly budget.
    #[error("budget.perHour of the job is ${limit} and this machine may cost ${asked} an hour")]
    JobPerHour {
        /// The limit.
        limit: Money,
        /// What was asked for.
        asked: Money,
    },
}

/// What may be spent an hour on this account by machines that are not gone, except `besides`.
pub fn committed<'a>(machines: impl IntoIterator<Item = &'a RentedMachine>, provider: &str, besides: &str) -> Money {
    machines
        .into_iter()
        .filter(|m| m.spec.provider == provider && m.metadata.uid.as_deref() != Some(besides))
        .map(reserved)
        .sum()
}

/// What one RentedMachine may cost an hour now: the caps of all its orders that may have bought something.
pub fn reserved(machine: &RentedMachine) -> Money {
    let Some(status) = &machine.status else { return Money::ZERO };
    if status.phase == MachinePhase::Gone {
        return Money::ZERO;
    }
    status
        .orders
        .iter()
        .filter(|o| o.leftover || matches!(o.outcome, OrderOutcome::Open | OrderOutcome::Rented))
        .filter_map(|o| o.of(&machine.spec.offers))
        .map(|offer| offer.reserve_per_hour)
        .sum()
}

/// The offer that a machine has, or orders next; `None` once it ends.
pub fn wanted(machine: &RentedMachine) -> Option<&ChosenOffer> {
    let offer = |order: &OrderStatus| order.of(&machine.spec.offers);
    let Some(status) = &machine.status else { return machine.spec.offers.first() };
    if status.ended.is_some() || status.phase == MachinePhase::Gone {
        return None;
    }
    let open = status.orders.iter().rev().find(|o| matches!(o.outcome, OrderOutcome::Open | OrderOutcome::Rented));
    open.and_then(offer).or_else(|| {
        let tried: Vec<&str> = status.orders.iter().filter_map(offer).map(|o| o.id.as_str()).collect();
        machine.spec.offers.iter().find(|o| !tried.contains(&o.id.as_str()))
    })
}

/// What one RentedMachine may cost an hour now, or once it has rented what it orders next.
pub fn promised(machine: &RentedMachine) -> Money {
    let reserved = reserved(machine);
    if reserved > Money::ZERO { reserved } else { wanted(machine).map_or(Money::ZERO, |offer| offer.reserve_per_hour) }
}

/// What was spent on this account in the last 24 hours: by the books and by machines that are not in them. `machines` must have been read
/// before the books, else one that went in between is in neither.
pub fn spent_today<'a>(
    books: &Spend,
    machines: impl IntoIterator<Item = &'a RentedMachine>,
    provider: &str,
    now: jiff::Timestamp,
) -> Money {
    books::last_day(books, machines.into_iter().filter(|m| m.spec.provider == provider), now)
}

/// Whether a machine that may cost `asked` an hour fits.
pub fn admit(
    provider: &str,
    limits: &Limits,
    committed: Money,
    spent_today: Money,
    job_per_hour: Option<Money>,
    asked: Money,
) -> Result<(), Full> {
    if let Some(limit) = job_per_hour.filter(|limit| asked > *limit) {
        return Err(Full::JobPerHour { limit, asked });
    }
    if committed + asked > limits.per_hour {
        return Err(Full::PerHour { provider: provider.to_owned(), limit: limits.per_hour, committed, asked });
    }
    let next_hour = committed + asked;
    if spent_today + next_hour > limits.per_day {
        return Err(Full::PerDay {
            provider: provider.to_owned(),
            limit: limits.per_day,
            spent: spent_today,
            next_hour,
        });
    }
    Ok(())
}

/// Whether a machine that may cost `asked` an hour fits into the limits of one entry of the access list; `committed` and `spent_today` are
/// those of the namespaces for which it holds.
pub fn admit_share(
    provider: &str,
    entry: usize,
    limits: &AccessLimits,
    committed: Money,
    spent_today: Money,
    asked: Money,
) -> Result<(), Full> {
    let next_hour = committed + asked;
    if let Some(limit) = limits.per_hour.filter(|limit| next_hour > *limit) {
        return Err(Full::AccessPerHour { provider: provider.to_owned(), entry, limit, committed, asked });
    }
    if let Some(limit) = limits.per_day.filter(|limit| spent_today + next_hour > *limit) {
        let (provider, spent) = (provider.to_owned(), spent_today);
        return Err(Full::AccessPerDay { provider, entry, limit, spent, next_hour });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine::machine;

    #[test]
    fn the_limits_of_an_entry_hold_to_the_last_micro_dollar() {
        let limits = |hour: Option<&str>, day: Option<&str>| AccessLimits {
            per_hour: hour.map(dollars),
            per_day: day.map(dollars),
        };
        let admit = |limits, committed, spent, asked| {
            admit_share("p", 2, &limits, dollars(committed), dollars(spent), dollars(asked))
        };
        assert_eq!(admit(limits(Some("1"), Some("5")), "0.60", "4.00", "0.40"), Ok(()));
        let hour = admit(limits(Some("1"), None), "0.60", "100", "0.400001").unwrap_err();
        assert!(hour.to_string().starts_with("access[2].limits.perHour of Provider p is $1.00, $0.60"), "{hour}");
        let day = admit(limits(None, Some("5")), "0.60", "4.00001", "0.40").unwrap_err();
        assert!(day.to_string().contains("spent $4.00001 in the last 24 hours"), "{day}");
    }

    fn dollars(text: &str) -> Money {
        text.parse().unwrap()
    }

    #[test]
    fn a_claim_is_counted_by_what_it_has_or_orders_next() {
        for (what, status, offer, promised) in [
            ("nothing ordered yet", json!({}), Some("1"), "1"),
            ("an order under way", json!({ "orders": [order(1, "Open")] }), Some("2"), "2"),
            ("rented after a refusal", json!({ "orders": [order(0, "Refused"), order(1, "Rented")] }), Some("2"), "2"),
            ("refused, the next one follows", json!({ "orders": [order(0, "Refused")] }), Some("2"), "2"),
            ("all refused", json!({ "orders": [order(0, "Refused"), order(1, "Refused")] }), None, "0"),
            ("given up", json!({ "ended": "Released" }), None, "0"),
            ("ending, and still paid", json!({ "orders": [order(0, "Rented")], "ended": "Outbid" }), None, "1"),
            ("gone", json!({ "orders": [order(0, "Rented")], "ended": "Outbid", "phase": "Gone" }), None, "0"),
        ] {
            let mut machine = machine("a", &status);
            let mut second = machine.spec.offers[0].clone();
            (second.id, second.reserve_per_hour) = ("2".to_owned(), dollars("2"));
            machine.spec.offers.push(second);
            assert_eq!(wanted(&machine).map(|o| o.id.as_str()), offer, "{what}");
            assert_eq!(super::promised(&machine), dollars(promised), "{what}");
        }
    }

    fn order(offer: i64, outcome: &str) -> serde_json::Value {
        json!({ "key": "k", "offer": offer, "at": "2026-11-21T18:00:00.000000Z", "outcome": outcome })
    }

    #[test]
    fn limits_hold_to_the_last_micro_dollar() {
        let limits = Limits { per_hour: dollars("1.00"), per_day: dollars("5.00") };
        assert_eq!(admit("p", &limits, dollars("0.60"), Money::ZERO, None, dollars("0.40")), Ok(()));
        let over = admit("p", &limits, dollars("0.60"), Money::ZERO, None, dollars("0.400001"));
        assert!(matches!(over, Err(Full::PerHour { .. })), "{over:?}");
        let day = admit("p", &limits, dollars("0.60"), dollars("4.10"), None, dollars("0.40"));
        assert!(matches!(day, Err(Full::PerDay { .. })), "{day:?}");
        let job = admit("p", &limits, Money::ZERO, Money::ZERO, Some(dollars("0.30")), dollars("0.31"));
        assert!(matches!(job, Err(Full::JobPerHour { .. })), "{job:?}");
    }
}
