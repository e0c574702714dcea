//! Our reckoning against the provider's own bill, for machines that are gone. Pure.
//!
//! A machine comes in here in the write that books it, so it is compared once whatever happens in between. Its settlement does not wait.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tradewind_api::RentedMachine;
use tradewind_api::provider::{Audit, Billed, Unbilled};
use tradewind_core::Money;
use tradewind_providers::Charge;

/// Machines that wait at most. A bill that is away for long must not make the status grow; what has no room is not compared.
const WAITING: usize = 256;
/// Looks at the bill before what it says is taken, if that is not what we say: bills trail, by minutes (Vast.ai) or to the end of an hour
/// (RunPod), and each pause is twice the one before.
const LOOKS: u32 = 3;
/// A machine whose bill could not be read for so long is not compared any more.
const GIVE_UP: SignedDuration = SignedDuration::from_hours(24);
/// What a bill may be off by rounding alone: Vast.ai rounds to a tenth of a cent.
const ROUNDING: Money = Money::from_micros(1_000);
/// A difference of so many per cent is worth an Event, if it is more than what our looks from time to time explain.
const WORTH_TELLING_PERCENT: i64 = 5;

/// How often and how closely is looked.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// From a machine's end to the first look at its bill.
    pub after: SignedDuration,
    /// Time between two looks at the account: our begin and end of a machine are off by as much at most.
    pub poll_s: u64,
}

/// A machine that is gone is to be compared.
pub fn await_bill(audit: &mut Audit, machine: &RentedMachine) {
    let Some(status) = &machine.status else { return };
    let (Some(id), Some(from), Some(to)) = (&status.machine_id, &status.rented_at, &status.gone_at) else { return };
    if audit.pending.iter().any(|waits| waits.id == *id) {
        return;
    }
    if audit.pending.len() >= WAITING {
        audit.unchecked += 1;
        return;
    }
    audit.pending.push(Unbilled {
        id: id.clone(),
        from: Time(from.0),
        to: Time(to.0),
        ours: status.cost.unwrap_or_default(),
        per_hour: status.price_per_hour.unwrap_or_default(),
    });
}

/// From when on the bill is to be asked for now; `None` = nothing is due.
pub fn since(audit: &Audit, now: Timestamp, pace: Pace) -> Option<Timestamp> {
    let oldest = audit.pending.iter().filter(|waits| is_due(waits, now, pace)).map(|waits| waits.from.0).min()?;
    // Our moment of a rental lies within the call.
    Some(oldest.checked_sub(SignedDuration::from_mins(1)).unwrap_or(oldest))
}

fn is_due(waits: &Unbilled, now: Timestamp, pace: Pace) -> bool {
    waits.to.0.checked_add(pace.after).is_ok_and(|due| due <= now)
}

/// Compares what is due with the bill; what differs is looked at three times, counted in `looks` by machine. Gives back those whose difference
/// is worth telling.
pub fn compare(
    audit: &mut Audit,
    charges: &[Charge],
    now: Timestamp,
    pace: Pace,
    looks: &mut BTreeMap<String, u32>,
) -> Vec<Billed> {
    let mut told = Vec::new();
    for waits in std::mem::take(&mut audit.pending) {
        if !is_due(&waits, now, pace) {
            audit.pending.push(waits);
            continue;
        }
        let charged = charges.iter().filter(|charge| charge.id == waits.id);
        // A machine that is on no bill, look after look, was not billed.
        let billed: Money = charged.map(|charge| charge.amount).sum();
        let difference = billed - waits.ours;
        let small = waits.per_hour.for_seconds(pace.poll_s + 1) + ROUNDING;
        let agrees = difference.micros().abs() <= small.micros();
        let seen = looks.entry(waits.id.clone()).or_default();
        *seen += 1;
        if !agrees && *seen < LOOKS {
            audit.pending.push(waits);
            continue;
        }
        looks.remove(&waits.id);
        audit.billed += billed;
        audit.ours += waits.ours;
        audit.machines += 1;
        let row = Billed { id: waits.id, billed, ours: waits.ours };
        let off = |row: &Billed| (row.billed - row.ours).micros().abs();
        if audit.worst.as_ref().is_none_or(|worst| off(&row) > off(worst)) && off(&row) > 0 {
            audit.worst = Some(row.clone());
        }
        if !agrees && off(&row) * 100 > row.ours.micros().saturating_mul(WORTH_TELLING_PERCENT) {
            told.push(row);
        }
    }
    audit.difference = audit.billed - audit.ours;
    audit.as_of = Some(Time(now));
    told
}

/// The bill could not be read: what has waited too long for it waits no longer.
pub fn give_up(audit: &mut Audit, now: Timestamp) {
    let waiting = audit.pending.len();
    audit.pending.retain(|waits| waits.to.0.checked_add(GIVE_UP).is_ok_and(|until| until > now));
    audit.unchecked += i64::try_from(waiting - audit.pending.len()).unwrap_or(0);
}

/// The key is another account's from now on: what waits for the old one's bill will never see it.
pub fn account_changed(audit: &mut Audit) {
    audit.unchecked += i64::try_from(audit.pending.len()).unwrap_or(0);
    audit.pending.clear();
}

/// What is told of bills that differ.
pub fn sentence(told: &[Billed]) -> Option<String> {
    let worst = told.iter().max_by_key(|row| (row.billed - row.ours).micros().abs())?;
    let others = match told.len() {
        1 => String::new(),
        n => format!(", and {} more differ", n - 1),
    };
    Some(format!(
        "the provider billed ${} for machine {}, which by our reckoning cost ${}{others}; see status.audit",
        worst.billed, worst.id, worst.ours
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    const PACE: Pace = Pace { after: SignedDuration::from_mins(15), poll_s: 10 };

    fn gone(id: &str, cost: &str) -> RentedMachine {
        let at = |time: &str| format!("2026-11-21T{time}.000000Z");
        let status = json!({
            "machineId": id, "rentedAt": at("10:00:00"), "goneAt": at("11:00:00"), "cost": cost, "pricePerHour": "0.36",
        });
        test_machine::machine(id, &status)
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-11-21T{time}Z").parse().unwrap()
    }

    fn bill(rows: &[(&str, i64)]) -> Vec<Charge> {
        rows.iter().map(|(id, micros)| Charge { id: (*id).to_owned(), amount: Money::from_micros(*micros) }).collect()
    }

    #[test]
    fn a_bill_that_agrees_counts_at_the_first_look() {
        let (mut audit, mut looks) = (Audit::default(), BTreeMap::new());
        await_bill(&mut audit, &gone("1", "0.36"));
        await_bill(&mut audit, &gone("1", "0.36"));
        assert_eq!(since(&audit, at("11:14:59"), PACE), None, "bills trail");
        assert_eq!(since(&audit, at("11:15:00"), PACE), Some(at("09:59:00")));
        let told = compare(&mut audit, &bill(&[("1", 361_500), ("2", 5)]), at("11:15:00"), PACE, &mut looks);
        let figures = (audit.billed.micros(), audit.ours.micros(), audit.difference.micros(), audit.machines);
        assert_eq!((figures, told, audit.pending.len()), ((361_500, 360_000, 1_500, 1), Vec::new(), 0));
        assert_eq!(since(&audit, at("23:00:00"), PACE), None, "compared once");
    }

    #[test]
    fn a_wrong_bill_is_looked_at_again_and_then_shown() {
        let (mut audit, mut looks) = (Audit::default(), BTreeMap::new());
        for id in ["1", "2", "3"] {
            await_bill(&mut audit, &gone(id, "0.36"));
        }
        let wrong = bill(&[("1", 720_000), ("2", 360_000)]);
        assert!(compare(&mut audit, &wrong, at("11:15:00"), PACE, &mut looks).is_empty());
        assert_eq!((audit.machines, audit.pending.len()), (1, 2), "one agrees");
        assert!(compare(&mut audit, &wrong, at("11:45:00"), PACE, &mut looks).is_empty());
        let told = compare(&mut audit, &wrong, at("12:45:00"), PACE, &mut looks);
        assert_eq!((audit.machines, audit.pending.len(), looks.len()), (3, 0, 0));
        assert_eq!(audit.difference.to_string(), "0.00", "one too much, one not at all");
        assert_eq!(audit.worst.as_ref().map(|worst| worst.id.as_str()), Some("1"));
        let said = sentence(&told).unwrap();
        assert!(
            said.starts_with("the provider billed $0.00 for machine 3, which by our reckoning cost $0.36, and 1 more"),
            "{said}"
        );
    }

    #[test]
    fn a_bill_that_comes_late_is_no_difference() {
        let (mut audit, mut looks) = (Audit::default(), BTreeMap::new());
        await_bill(&mut audit, &gone("1", "0.36"));
        assert!(compare(&mut audit, &bill(&[("1", 300_000)]), at("11:15:00"), PACE, &mut looks).is_empty());
        assert!(compare(&mut audit, &bill(&[("1", 360_000)]), at("11:45:00"), PACE, &mut looks).is_empty());
        assert_eq!((audit.difference, audit.machines, audit.worst), (Money::ZERO, 1, None));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut audit = Audit::default();
        for n in 0..300 {
            await_bill(&mut audit, &gone(&n.to_string(), "0.36"));
        }
        assert_eq!((audit.pending.len(), audit.unchecked), (WAITING, 44));
        give_up(&mut audit, at("23:00:00"));
        assert_eq!(audit.pending.len(), WAITING);
        give_up(&mut audit, "2026-11-22T11:00:00Z".parse().unwrap());
        assert_eq!((audit.pending.len(), audit.unchecked), (0, 300));
    }
}
