//! `GET /v2/billing/pods`: what each pod cost in each hour, day, week, month or year. Sums are exact: differences of what a pod had
//! cost at the ends of a bucket.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};
use serde_json::{Value, json};

use super::answer::Answer;
use super::query::Query;
use crate::market::{Machine, Market, SimTime, dollars_of_micros};

/// Buckets of a request, at most: a bound of the simulator's own.
const MOST_BUCKETS: u64 = 10_000;

/// Length of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Size {
    const ALL: [(&'static str, Self); 5] =
        [("hour", Self::Hour), ("day", Self::Day), ("week", Self::Week), ("month", Self::Month), ("year", Self::Year)];

    /// The start of the bucket that an instant is in (UTC; weeks begin on Monday).
    fn floor(self, at: Timestamp) -> Timestamp {
        let at = at.to_zoned(TimeZone::UTC);
        let date = at.date();
        let start = match self {
            Self::Hour => date.to_datetime(Time::constant(at.hour(), 0, 0, 0)),
            Self::Day => midnight(date),
            Self::Week => {
                let days = i64::from(at.weekday().to_monday_zero_offset());
                midnight(date.checked_sub(days.days()).unwrap_or(date))
            }
            Self::Month => midnight(date.first_of_month()),
            Self::Year => midnight(date.first_of_year()),
        };
        start.to_zoned(TimeZone::UTC).map_or(Timestamp::MIN, |zoned| zoned.timestamp())
    }

    /// So many buckets later (or earlier), from a bucket's start.
    fn step(self, from: Timestamp, buckets: i64) -> Timestamp {
        let span = match self {
            Self::Hour => buckets.hours(),
            Self::Day => buckets.days(),
            Self::Week => buckets.weeks(),
            Self::Month => buckets.months(),
            Self::Year => buckets.years(),
        };
        let from = from.to_zoned(TimeZone::UTC);
        let to: Result<Zoned, _> = from.checked_add(span);
        to.map_or(if buckets < 0 { Timestamp::MIN } else { Timestamp::MAX }, |zoned| zoned.timestamp())
    }

    fn ceil(self, at: Timestamp) -> Timestamp {
        let floor = self.floor(at);
        if floor == at { at } else { self.step(floor, 1) }
    }
}

fn midnight(date: jiff::civil::Date) -> DateTime {
    date.to_datetime(Time::midnight())
}

/// Micro-dollars of a bucket or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Amounts {
    gpu: u64,
    disk: u64,
}

impl Amounts {
    fn add_to(self, row: &mut Value) {
        let dollars = |micros: u64| dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX));
        row["totalAmount"] = json!(dollars(self.gpu + self.disk));
        row["gpuAmount"] = json!(dollars(self.gpu));
        row["cpuAmount"] = json!(0.0);
        row["diskAmount"] = json!(dollars(self.disk));
    }
}

/// `GET /v2/billing/pods`.
pub fn pods(market: &mut Market, now: SimTime, account: &str, query: &Query) -> Result<Answer, Answer> {
    market.advance(now);
    let (size, from, to) = window(query, market.timestamp(market.now()))?;
    let pod_id = query.one("podId")?;
    let pods: Vec<&Machine> = market
        .machines()
        .iter()
        .filter(|pod| pod.account == account && pod_id.is_none_or(|id| pod.wire_id() == id))
        .collect();
    let (mut records, mut totals, mut unique) = (Vec::new(), Amounts::default(), 0_usize);
    for pod in pods {
        let before = records.len();
        records_of(market, pod, (size, from, to), &mut records, &mut totals);
        unique += usize::from(records.len() > before);
    }
    records.sort_by(|a, b| a["startTime"].as_str().cmp(&b["startTime"].as_str()));
    let word = Size::ALL.iter().find(|(_, known)| *known == size).map(|(word, _)| *word);
    let mut sums = json!({});
    totals.add_to(&mut sums);
    let asked = json!({"startTime": from.to_string(), "endTime": to.to_string(), "bucketSize": word, "podId": pod_id});
    let metadata = json!({"query": asked, "recordCount": records.len(), "uniquePodCount": unique, "totals": sums});
    Ok(Answer::ok(json!({"records": records, "metadata": metadata})))
}

/// The window, snapped to buckets.
fn window(query: &Query, now: Timestamp) -> Result<(Size, Timestamp, Timestamp), Answer> {
    let words = Size::ALL.map(|(word, _)| word);
    let word = query.word("bucketSize", &words)?.unwrap_or("day");
    let size = Size::ALL.iter().find(|(known, _)| *known == word).map_or(Size::Day, |(_, size)| *size);
    let (start, end) = (query.time("startTime")?, query.time("endTime")?);
    let (from, to) = match query.whole("lastN", 1, MOST_BUCKETS)? {
        Some(_) if start.is_some() || end.is_some() => {
            return Err(Answer::problem(400, "lastN and startTime/endTime are mutually exclusive"));
        }
        Some(count) => {
            let to = size.step(size.floor(now), 1);
            (size.step(to, -i64::try_from(count).unwrap_or(i64::MAX)), to)
        }
        None => {
            let end = end.unwrap_or(now);
            let start = start.unwrap_or_else(|| Size::Day.step(now, -30));
            (size.floor(start), size.ceil(end))
        }
    };
    if from >= to {
        return Err(Answer::problem(400, "startTime must be before endTime"));
    }
    Ok((size, from, to))
}

fn records_of(
    market: &Market,
    pod: &Machine,
    (size, from, to): (Size, Timestamp, Timestamp),
    records: &mut Vec<Value>,
    totals: &mut Amounts,
) {
    let instant = |at: Timestamp| {
        let since = at.duration_since(market.timestamp(SimTime::ZERO));
        SimTime::from_micros(u64::try_from(since.as_micros()).unwrap_or(0)).min(market.now())
    };
    let last = market.timestamp(pod.ended_at.unwrap_or(market.now()));
    let mut start = size.floor(market.timestamp(pod.created_at)).max(from);
    while start < to && start <= last {
        let end = size.step(start, 1);
        let (before, after) = (pod.costs_by(instant(start)), pod.costs_by(instant(end)));
        let amounts = Amounts { gpu: after.0 - before.0, disk: after.1 - before.1 };
        if amounts.gpu + amounts.disk > 0 {
            let mut row = json!({"startTime": start.to_string(), "endTime": end.to_string(), "podId": pod.wire_id()});
            amounts.add_to(&mut row);
            records.push(row);
            totals.gpu += amounts.gpu;
            totals.disk += amounts.disk;
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_aligned() {
        let at: Timestamp = "2026-11-21T13:45:10Z".parse().unwrap();
        for (size, floor, ceil) in [
            (Size::Hour, "2026-11-21T13:00:00Z", "2026-11-21T14:00:00Z"),
            (Size::Day, "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            (Size::Week, "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
            (Size::Month, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            (Size::Year, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            let (floor, ceil): (Timestamp, Timestamp) = (floor.parse().unwrap(), ceil.parse().unwrap());
            assert_eq!((size.floor(at), size.ceil(at), size.ceil(floor)), (floor, ceil, floor));
            assert_eq!(size.step(ceil, -1), floor);
        }
    }
}
