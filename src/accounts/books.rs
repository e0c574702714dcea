//! The books of an account: what machines that are gone have cost, by hour, day and month. Pure.
//!
//! A machine is booked once, by the provider controller, in the write that also notes its uid; the machine's object goes only after that,
//! and the uid is forgotten only after the object. So a crash between any two steps counts it neither twice nor never.

use jiff::{SignedDuration, Timestamp};
use tradewind_api::RentedMachine;
use tradewind_api::provider::{NamespaceSpent, Spend, Spent};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_core::Money;

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;
/// Days kept.
const DAYS: i64 = 31;
/// Months kept.
const MONTHS: usize = 12;
/// Namespaces kept apart; what others spend counts for everybody. With 25 hours each the status stays far below what an object may hold.
const NAMESPACES: usize = 64;

/// Whether a machine's cost is final and belongs into the books.
pub fn is_final(machine: &RentedMachine) -> bool {
    let status = machine.status.as_ref();
    status.is_some_and(|s| s.phase == MachinePhase::Gone && s.rented_at.is_some() && s.last_report_read)
}

/// Whether the machine with this uid is in the books.
pub fn has(spend: &Spend, uid: &str) -> bool {
    spend.booked.iter().any(|booked| booked == uid)
}

/// Puts a machine that is gone into the books, unless it is in there. Entries too old at `now` go.
pub fn book(spend: &mut Spend, machine: &RentedMachine, now: Timestamp) {
    let uid = machine.metadata.uid.as_deref().unwrap_or_default();
    if has(spend, uid) {
        return;
    }
    spend.booked.push(uid.to_owned());
    if let Some(life) = Life::of(machine, now) {
        let oldest_hour = now.as_second().div_euclid(HOUR_S) - 24;
        let by_namespace = hours_of(&mut spend.namespaces, &machine.spec.job.namespace);
        for hour in life.first(HOUR_S).max(oldest_hour)..=life.last(HOUR_S) {
            let part = life.part(hour * HOUR_S, (hour + 1) * HOUR_S);
            add(&mut spend.hours, hour_name(hour * HOUR_S), part);
            add(by_namespace, hour_name(hour * HOUR_S), part);
        }
        for day in life.first(DAY_S)..=life.last(DAY_S) {
            let (at, part) = (day * DAY_S, life.part(day * DAY_S, (day + 1) * DAY_S));
            add(&mut spend.days, name(at, "%Y-%m-%d"), part);
            add(&mut spend.months, name(at, "%Y-%m"), part);
        }
    }
    let oldest_hour = hour_name(window_start(now));
    spend.hours.retain(|spent| spent.at >= oldest_hour);
    spend.namespaces.iter_mut().for_each(|of| of.hours.retain(|spent| spent.at >= oldest_hour));
    spend.namespaces.retain(|of| !of.hours.is_empty());
    let oldest_day = name(now.as_second() - (DAYS - 1) * DAY_S, "%Y-%m-%d");
    spend.days.retain(|spent| spent.at >= oldest_day);
    let too_many = spend.months.len().saturating_sub(MONTHS);
    spend.months.drain(..too_many);
}

/// Dollars of the last 24 hours, counted from the full hour: by the books, and so far by the machines that are not in them.
pub fn last_day<'a>(spend: &Spend, machines: impl IntoIterator<Item = &'a RentedMachine>, now: Timestamp) -> Money {
    let start = window_start(now);
    let oldest = hour_name(start);
    let booked: Money = spend.hours.iter().filter(|spent| spent.at >= oldest).map(|spent| spent.dollars).sum();
    let others = machines.into_iter().filter(|m| m.metadata.uid.as_deref().is_none_or(|uid| !has(spend, uid)));
    let running: Money = others.filter_map(|m| Some(Life::of(m, now)?.part(start, i64::MAX))).sum();
    booked + running
}

/// As [`last_day`], for the namespaces that `counts`. What stands in the books without a namespace counts too.
pub fn last_day_of<'a>(
    spend: &Spend,
    machines: impl IntoIterator<Item = &'a RentedMachine>,
    now: Timestamp,
    counts: impl Fn(&str) -> bool,
) -> Money {
    let apart = spend.namespaces.iter().filter(|of| of.namespace.is_empty() || counts(&of.namespace));
    let books = Spend {
        hours: apart.flat_map(|of| of.hours.clone()).collect(),
        booked: spend.booked.clone(),
        ..Spend::default()
    };
    last_day(&books, machines.into_iter().filter(|m| counts(&m.spec.job.namespace)), now)
}

/// The hours of a namespace, or of all that have no room.
fn hours_of<'a>(list: &'a mut Vec<NamespaceSpent>, namespace: &str) -> &'a mut Vec<Spent> {
    let find = |list: &[NamespaceSpent], name: &str| list.binary_search_by(|of| of.namespace.as_str().cmp(name));
    let name = match find(list, namespace) {
        Err(_) if list.iter().filter(|of| !of.namespace.is_empty()).count() >= NAMESPACES => "",
        _ => namespace,
    };
    let place = find(list, name).unwrap_or_else(|place| {
        list.insert(place, NamespaceSpent { namespace: name.to_owned(), hours: Vec::new() });
        place
    });
    &mut list[place].hours
}

/// Start of the hour 24 hours ago.
fn window_start(now: Timestamp) -> i64 {
    let ago = now.checked_sub(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MIN);
    ago.as_second().div_euclid(HOUR_S) * HOUR_S
}

/// From rental to end, and the cost.
struct Life {
    from: i64,
    to: i64,
    cost: Money,
}

impl Life {
    fn of(machine: &RentedMachine, now: Timestamp) -> Option<Self> {
        let status = machine.status.as_ref()?;
        let from = status.rented_at.as_ref()?.0.as_second();
        let to = status.gone_at.as_ref().map_or(now, |t| t.0).as_second().max(from);
        Some(Self { from, to, cost: status.cost? })
    }

    fn first(&self, stretch_s: i64) -> i64 {
        // Whatever a clock may have said: no more than a year is gone through.
        self.from.max(self.to - 366 * DAY_S).div_euclid(stretch_s)
    }

    fn last(&self, stretch_s: i64) -> i64 {
        self.to.div_euclid(stretch_s)
    }

    /// What belongs to the time from `a` to `b`. Parts of adjoining stretches add up to the whole to the last micro-dollar.
    fn part(&self, a: i64, b: i64) -> Money {
        self.until(b) - self.until(a)
    }

    fn until(&self, at: i64) -> Money {
        if at > self.to {
            return self.cost;
        }
        if at <= self.from {
            return Money::ZERO;
        }
        let micros = i128::from(self.cost.micros()) * i128::from(at - self.from) / i128::from(self.to - self.from);
        Money::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

fn name(second: i64, format: &str) -> String {
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH).strftime(format).to_string()
}

fn hour_name(second: i64) -> String {
    name(second, "%Y-%m-%dT%H:00Z")
}

/// Adds to an entry of a list that is ordered by time.
fn add(list: &mut Vec<Spent>, at: String, dollars: Money) {
    if dollars == Money::ZERO {
        return;
    }
    match list.binary_search_by(|spent| spent.at.cmp(&at)) {
        Ok(found) => list[found].dollars += dollars,
        Err(place) => list.insert(place, Spent { at, dollars }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    fn machine(uid: &str, from: &str, to: Option<&str>, cost: &str) -> RentedMachine {
        let mut status = json!({"cost": cost, "rentedAt": from, "lastReportRead": true});
        if let Some(to) = to {
            status["goneAt"] = to.into();
            status["phase"] = "Gone".into();
        }
        test_machine::machine(uid, &status)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn told(list: &[Spent]) -> String {
        list.iter().map(|spent| format!("{} {}", spent.at, spent.dollars)).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_cost_is_spread_over_the_time_that_it_paid_for() {
        for (what, from, to, cost, hours, days, months) in [
            (
                "within one hour",
                "2026-11-21T17:10:00.000000Z",
                "2026-11-21T17:40:00.000000Z",
                "0.30",
                "2026-11-21T17:00Z 0.30",
                "2026-11-21 0.30",
                "2026-11 0.30",
            ),
            (
                "no time at all",
                "2026-11-21T17:00:00.000000Z",
                "2026-11-21T17:00:00.000000Z",
                "0.30",
                "2026-11-21T17:00Z 0.30",
                "2026-11-21 0.30",
                "2026-11 0.30",
            ),
            (
                "over midnight, the odd micro-dollar once",
                "2026-11-20T23:40:00.000000Z",
                "2026-11-21T00:20:00.000000Z",
                "0.300001",
                "2026-11-20T23:00Z 0.15, 2026-11-21T00:00Z 0.150001",
                "2026-11-20 0.15, 2026-11-21 0.150001",
                "2026-11 0.300001",
            ),
            (
                "over the end of a month",
                "2026-10-31T18:00:00.000000Z",
                "2026-11-01T06:00:00.000000Z",
                "12",
                "",
                "2026-10-31 6.00, 2026-11-01 6.00",
                "2026-10 6.00, 2026-11 6.00",
            ),
        ] {
            let mut spend = Spend::default();
            book(&mut spend, &machine("a", from, Some(to), cost), at("2026-11-21T18:00:00Z"));
            let expected = (hours.to_owned(), days.to_owned(), months.to_owned());
            assert_eq!((told(&spend.hours), told(&spend.days), told(&spend.months)), expected, "{what}");
        }
    }

    #[test]
    fn each_machine_is_booked_once() {
        let mut spend = Spend::default();
        let now = at("2026-11-21T18:00:00Z");
        let gone = machine("a", "2026-11-21T10:00:00.000000Z", Some("2026-11-21T12:00:00.000000Z"), "2");
        book(&mut spend, &gone, now);
        let once = spend.clone();
        book(&mut spend, &gone, now);
        assert_eq!(spend, once);
        book(&mut spend, &machine("b", "2026-11-21T11:00:00.000000Z", Some("2026-11-21T11:30:00.000000Z"), "5"), now);
        assert_eq!(told(&spend.hours), "2026-11-21T10:00Z 1.00, 2026-11-21T11:00Z 6.00");
        assert_eq!(last_day(&spend, [&gone], now).micros(), 7_000_000, "an object that is still there counts once");
    }

    #[test]
    fn the_last_day_counts_what_is_gone_and_what_runs() {
        let mut spend = Spend::default();
        let gone = machine("a", "2026-11-20T10:00:00.000000Z", Some("2026-11-20T20:00:00.000000Z"), "10");
        book(&mut spend, &gone, at("2026-11-20T20:00:00Z"));
        let runs = machine("b", "2026-11-19T18:00:00.000000Z", None, "48");
        for (now, expected) in [
            ("2026-11-20T20:00:00Z", "10.00"),
            ("2026-11-21T09:59:00Z", "10.00"),
            ("2026-11-21T12:30:00Z", "8.00"),
            ("2026-11-21T19:10:00Z", "1.00"),
            ("2026-11-21T21:00:00Z", "0.00"),
        ] {
            assert_eq!(last_day(&spend, [], at(now)).to_string(), expected, "{now}");
        }
        let now = at("2026-11-21T18:00:00Z");
        assert_eq!(last_day(&Spend::default(), [&runs], now).to_string(), "24.00", "half of what it cost in 48 hours");
    }

    #[test]
    fn each_namespace_has_hours_of_its_own() {
        let mut spend = Spend::default();
        let now = at("2026-11-21T18:00:00Z");
        let in_namespace = |uid: &str, namespace: &str, to: Option<&str>, cost: &str| {
            let mut machine = machine(uid, "2026-11-21T10:00:00.000000Z", to, cost);
            machine.spec.job.namespace = namespace.to_owned();
            machine
        };
        let end = Some("2026-11-21T12:00:00.000000Z");
        book(&mut spend, &in_namespace("a", "team-a", end, "2"), now);
        book(&mut spend, &in_namespace("b", "team-b", end, "4"), now);
        book(&mut spend, &in_namespace("c", "team-a", end, "1"), now);
        let runs = in_namespace("d", "team-b", None, "8");
        let of = |spend: &Spend, name: &str| last_day_of(spend, [&runs], now, |n| n == name).to_string();
        assert_eq!(
            (of(&spend, "team-a"), of(&spend, "team-b"), of(&spend, "c")),
            ("3.00".into(), "12.00".into(), "0.00".into())
        );
        assert_eq!(last_day_of(&spend, [&runs], now, |_| true), last_day(&spend, [&runs], now), "all together");
        for n in 0..200 {
            book(&mut spend, &in_namespace(&format!("more-{n}"), &format!("n{n:03}"), end, "1"), now);
        }
        assert_eq!(spend.namespaces.len(), NAMESPACES + 1);
        assert_eq!(of(&spend, "team-a"), "141.00", "what had no room of its own counts for everybody");
        book(
            &mut spend,
            &in_namespace("late", "late", Some("2026-11-23T10:00:00.000000Z"), "1"),
            at("2026-11-23T10:00:00Z"),
        );
        assert_eq!(spend.namespaces.len(), 1, "{:?}", spend.namespaces);
    }

    #[test]
    fn the_books_are_bounded() {
        let mut spend = Spend::default();
        let start = at("2024-01-01T00:00:00Z");
        for n in 0..1000 {
            let from = start.checked_add(SignedDuration::from_hours(n * 20)).unwrap();
            let to = from.checked_add(SignedDuration::from_hours(19)).unwrap();
            let text = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
            book(&mut spend, &machine(&n.to_string(), &text(from), Some(&text(to)), "1"), to);
        }
        assert!(spend.hours.len() <= 26 && spend.days.len() <= 32, "{spend:?}");
        assert_eq!((spend.days.len(), spend.months.len()), (31, MONTHS));
    }
}
