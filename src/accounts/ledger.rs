//! The account's ledger: what is committed, and whether one more machine fits. Pure; the caller holds the account's lock.

use tradewind_api::RentedMachine;
use tradewind_api::access::AccessLimits;
use tradewind_api::provider::{Limits, Spend};
use tradewind_api::rented_machine::{MachinePhase, OrderOutcome};
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
        .filter_map(|o| usize::try_from(o.offer).ok().and_then(|i| machine.spec.offers.get(i)))
        .map(|offer| offer.reserve_per_hour)
        .sum()
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
    use super::*;

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
