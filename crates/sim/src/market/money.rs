//! Exact money: what a use costs in whole micro-dollars.

use super::time::SimTime;

/// Seconds in the month by which Vast.ai prices storage: `dph_total = dph_base + disk * storage_cost / 30 / 24`.
const MONTH_SECONDS: u128 = 30 * 24 * 3600;

/// Dollars as whole micro-dollars, rounded; 0 for what is negative or not a number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating float to integer cast is wanted"
)]
pub fn micros_of_dollars(dollars: f64) -> u64 {
    (dollars * 1e6).round() as u64
}

/// Micro-dollars as dollars, for the wire.
#[expect(
    clippy::cast_precision_loss,
    reason = "money on the wire is a float; sums below nine billion dollars are exact"
)]
pub fn dollars_of_micros(micros: i64) -> f64 {
    micros as f64 / 1e6
}

/// Adds up whole seconds of use, each at the rate in force when the second completes. Fractions are carried over, never rounded
/// up: a thousand short uses cost what one long use costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meter {
    carry_micros: u64,
    seconds: u64,
    /// Sum of rate times seconds.
    amount: u128,
}

impl Meter {
    /// Counts the use between two instants at `rate` (any unit per any time; see the readers below).
    pub fn run(&mut self, from: SimTime, to: SimTime, rate: u64) {
        let total = self.carry_micros + to.micros_since(from);
        let seconds = total / 1_000_000;
        self.carry_micros = total % 1_000_000;
        self.seconds += seconds;
        self.amount += u128::from(seconds) * u128::from(rate);
    }

    /// Whole seconds counted.
    pub const fn seconds(&self) -> u64 {
        self.seconds
    }

    /// Micro-dollars, where the rate was micro-dollars an hour. Rounded down once, at the end.
    pub fn micros_at_hourly_rate(&self) -> u64 {
        u64::try_from(self.amount / 3600).unwrap_or(u64::MAX)
    }

    /// Micro-dollars, where the rate was micro-dollars a GB and month, for a disk of `disk_milli_gb` thousandths of a GB.
    pub fn micros_of_disk(&self, disk_milli_gb: u64) -> u64 {
        u64::try_from(self.amount * u128::from(disk_milli_gb) / (1000 * MONTH_SECONDS)).unwrap_or(u64::MAX)
    }
}

/// Micro-dollars an hour of a disk, rounded to the nearest, for prices shown on the wire (bills use [`Meter::micros_of_disk`]).
pub fn disk_micros_per_hour(storage_micros_per_gb_month: u64, disk_milli_gb: u64) -> u64 {
    let scale = 1000 * 720;
    let product = u128::from(storage_micros_per_gb_month) * u128::from(disk_milli_gb);
    u64::try_from((product + scale / 2) / scale).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_uses_cost_what_one_long_use_costs() {
        let (mut one, mut many) = (Meter::default(), Meter::default());
        one.run(SimTime::ZERO, SimTime::from_micros(3_600_000_000), 400_000);
        for i in 0..3_600_000 {
            many.run(SimTime::from_micros(i * 1000), SimTime::from_micros((i + 1) * 1000), 400_000);
        }
        assert_eq!(one.micros_at_hourly_rate(), 400_000);
        assert_eq!(one, many);
    }

    #[test]
    fn a_month_of_a_disk_costs_its_monthly_price() {
        let mut meter = Meter::default();
        meter.run(SimTime::ZERO, SimTime::from_micros(30 * 24 * 3600 * 1_000_000), 150_000);
        assert_eq!(meter.micros_of_disk(10_000), 1_500_000);
        assert_eq!(disk_micros_per_hour(150_000, 10_000), 2083);
    }

    #[test]
    fn dollars_survive() {
        for micros in [0, 1, 123_456, 400_000, 31_999_999] {
            assert_eq!(micros_of_dollars(dollars_of_micros(i64::try_from(micros).unwrap())), micros);
        }
        assert_eq!(micros_of_dollars(-1.0), 0);
        assert_eq!(micros_of_dollars(f64::NAN), 0);
    }
}
