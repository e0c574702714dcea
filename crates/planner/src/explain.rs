//! Plans in sentences, for statuses, events and logs.

use std::fmt::Write as _;

use tradewind_core::{Capacity, Money, Offer};

use crate::rank::{Candidate, Plan, Rejection};
use crate::speed::{SpeedBasis, UNKNOWN_SPEED_MILLI};

/// The machine without its terms: `1xRTX4090`, `2xH100`, or `4-core CPU`.
fn machine(offer: &Offer) -> String {
    match &offer.gpu {
        Some(model) => format!("{}x{model}", offer.gpu_count),
        None => format!("{}-core CPU", offer.cpu_millis.div_ceil(1000)),
    }
}

/// ` in NO`, or nothing where the region is not told.
fn place(offer: &Offer) -> String {
    if offer.region.is_empty() { String::new() } else { format!(" in {}", offer.region) }
}

/// Spot or on demand, as people write it.
pub const fn terms(capacity: Capacity) -> &'static str {
    match capacity {
        Capacity::Spot => "spot",
        Capacity::OnDemand => "on demand",
    }
}

/// An offer in a few words: `1xRTX4090 spot in NO at $0.22/h from vast-main`.
pub fn offer(offer: &Offer) -> String {
    let (machine, terms, place) = (machine(offer), terms(offer.capacity), place(offer));
    format!("{machine} {terms}{place} at ${}/h from {}", offer.price_per_hour, offer.provider)
}

/// What kind of machine it is, in the words of a status: `1xRTX4090 of vast (spot, NO)`. A market has many that differ in nothing else.
pub fn kind(offer: &Offer) -> String {
    let place = if offer.region.is_empty() { String::new() } else { format!(", {}", offer.region) };
    format!("{} of {} ({}{place})", machine(offer), offer.provider, terms(offer.capacity))
}

/// An amount for reading, without a sign of currency: cents from a dime up, two digits below.
pub fn about(amount: Money) -> String {
    let step = match amount.micros().unsigned_abs() {
        0..100 => 1,
        100..1_000 => 10,
        1_000..10_000 => 100,
        10_000..100_000 => 1_000,
        _ => 10_000,
    };
    let rounded = amount.micros().saturating_add(step / 2).div_euclid(step).saturating_mul(step);
    Money::from_micros(rounded).to_string()
}

/// A time for reading: `45 s`, `12 min`, `1 h 36 min`, `3 d 4 h`; rounded up.
pub fn span(seconds: u64) -> String {
    let minutes = seconds.div_ceil(60);
    let hours = seconds.div_ceil(3600);
    if seconds < 120 {
        format!("{seconds} s")
    } else if minutes < 60 {
        format!("{minutes} min")
    } else if minutes < 48 * 60 {
        format!("{} h {} min", minutes / 60, minutes % 60)
    } else {
        format!("{} d {} h", hours / 24, hours % 24)
    }
}

/// Rejections as lines, most offers first: `14 are below minTrust Datacenter`. What does not fit into `most` lines shares the last one.
pub fn rejections(rejected: &[Rejection], most: usize) -> Vec<String> {
    let mut by_reason: Vec<&Rejection> = rejected.iter().collect();
    by_reason.sort_by_key(|r| r.reason);
    counted(by_reason.into_iter().map(|r| (r.count, r.says.as_str())), most)
}

/// What was counted, as lines, the most first and equals in the order given: `14 are below minTrust Datacenter`. What does not fit into `most`
/// lines shares the last one.
pub fn counted<'a>(counts: impl Iterator<Item = (u32, &'a str)>, most: usize) -> Vec<String> {
    let mut by_count: Vec<(u32, &str)> = counts.collect();
    by_count.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let told = if by_count.len() > most { most.saturating_sub(1) } else { by_count.len() };
    let verb = |n: u64| if n == 1 { "is" } else { "are" };
    let line = |(count, says): &(u32, &str)| format!("{count} {} {says}", verb((*count).into()));
    let mut lines: Vec<String> = by_count.iter().take(told).map(line).collect();
    let rest: u64 = by_count.iter().skip(told).map(|(count, _)| u64::from(*count)).sum();
    if rest > 0 && most > 0 {
        lines.push(format!("{rest} {} left out for {} other reasons", verb(rest), by_count.len() - told));
    }
    lines
}

impl Candidate {
    /// What is rented, at what terms, what it is expected to cost and how long it takes:
    /// `1xRTX4090 spot in NO at $0.22/h from vast-main: about $0.35 in all (compute 0.30, set-up 0.05), done in 1 h 36 min`.
    pub fn sentence(&self) -> String {
        let parts = [
            ("compute", self.cost.compute),
            ("set-up", self.cost.setup),
            ("image pull", self.cost.image_pull),
            ("input", self.cost.input_download),
            ("restore", self.cost.restore),
            ("expected lost work", self.cost.expected_lost_work),
            ("disk", self.cost.storage),
            ("traffic", self.cost.traffic),
            ("egress", self.cost.egress),
        ];
        let told: Vec<String> = parts
            .into_iter()
            .filter(|(_, amount)| *amount > Money::ZERO)
            .map(|(name, amount)| format!("{name} {}", about(amount)))
            .collect();
        let mut sentence = format!("{}: about ${} in all", offer(&self.offer), about(self.cost.total));
        if !told.is_empty() {
            let _ = write!(sentence, " ({})", told.join(", "));
        }
        let _ = write!(sentence, ", done in {}", span(self.finish_in_s));
        if self.speed == SpeedBasis::Assumed {
            let percent = UNKNOWN_SPEED_MILLI / 10;
            let _ = write!(sentence, "; a GPU whose speed is not known was taken at {percent} % of an RTX4090");
        }
        sentence
    }
}

impl Plan {
    /// The best of each other kind than `first`, at most so many: a market has many machines that differ in nothing.
    pub fn others(&self, first: &Candidate, most: usize) -> Vec<&Candidate> {
        let mut told = vec![kind(&first.offer)];
        let is_another = |other: &&Candidate| {
            let kind = kind(&other.offer);
            let is_another = !told.contains(&kind);
            told.push(kind);
            is_another
        };
        self.ranked.iter().filter(is_another).take(most).collect()
    }

    /// Why the first is first: its sentence and how much more the next would cost. `None` if nothing fits.
    pub fn why_first(&self) -> Option<String> {
        let first = self.ranked.first()?;
        let mut sentence = first.sentence();
        if let Some(next) = self.ranked.get(1) {
            let _ = write!(sentence, "; next: {}, about ${} in all", offer(&next.offer), about(next.cost.total));
        }
        Some(sentence)
    }

    /// Why nothing fits: the constraint that excludes most, and the nearest offer. `None` if something fits.
    pub fn why_none(&self) -> Option<String> {
        if !self.ranked.is_empty() || self.cut > 0 {
            return None;
        }
        let Some(most) = self.rejected.iter().max_by_key(|r| (r.excludes, std::cmp::Reverse(r.reason))) else {
            return Some("no offer fits: the market shows none".to_owned());
        };
        let verb = if most.excludes == 1 { "is" } else { "are" };
        let mut sentence = format!("no offer fits: {} of {} {verb} {}", most.excludes, self.offers, most.says);
        match &self.relaxation {
            Some(relaxation) => {
                let near = &relaxation.nearest;
                let (machine, place) = (machine(near), place(near));
                let price = near.price_per_hour;
                let change = relaxation.change.join(" and ");
                let _ = write!(sentence, "; nearest: {machine}{place} at ${price}/h would fit with {change}");
            }
            None => sentence.push_str("; no change of the job would admit one"),
        }
        Some(sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_read_well() {
        for (micros, text) in [
            (0, "0.00"),
            (4, "0.000004"),
            (6667, "0.0067"),
            (12_345, "0.012"),
            (349_999, "0.35"),
            (1_234_567, "1.23"),
            (-350_000, "-0.35"),
        ] {
            assert_eq!(about(Money::from_micros(micros)), text);
        }
        assert!(!about(Money::MAX).is_empty());
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (3541, "1 h 0 min"),
            (5730, "1 h 36 min"),
            (273_600, "3 d 4 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
        assert!(!span(u64::MAX).is_empty());
    }
}
