//! Money as whole micro-dollars, so that sums are exact and order never depends on rounding.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of US dollars in whole micro-dollars. Serialises as a decimal string such as `"0.234567"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money(i64);

/// Why a text is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an amount of dollars: write digits with at most six decimals, such as \"10.00\"")]
pub struct MoneyError {
    /// The text as given.
    pub text: String,
}

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// More than anybody has.
    pub const MAX: Self = Self(i64::MAX);

    /// An amount of whole micro-dollars.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Whole micro-dollars.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// What `self` dollars per hour cost in `seconds`, rounded up to the next micro-dollar.
    pub fn for_seconds(self, seconds: u64) -> Self {
        self.for_millis(seconds.saturating_mul(1000))
    }

    /// What `self` dollars per hour cost in `millis` milliseconds, rounded up to the next micro-dollar.
    pub fn for_millis(self, millis: u64) -> Self {
        // Ordinary amounts fit into 64 bits, in which a division by a constant is a multiplication.
        let small =
            i64::try_from(millis).ok().and_then(|m| self.0.checked_mul(m)).and_then(|p| p.checked_add(3_599_999));
        if let Some(up) = small {
            return Self(up.div_euclid(3_600_000));
        }
        let product = i128::from(self.0) * i128::from(millis);
        let hour = 3_600_000_i128;
        let up = (product + hour - 1).div_euclid(hour);
        Self(i64::try_from(up).unwrap_or(i64::MAX))
    }

    /// `self` times `n`, held at the largest amount.
    pub fn times(self, n: u64) -> Self {
        let product = i128::from(self.0) * i128::from(n);
        Self(i64::try_from(product).unwrap_or(i64::MAX))
    }

    /// `self` × `numerator` ÷ `denominator`, rounded up; a zero denominator gives the largest amount.
    pub fn ratio(self, numerator: u64, denominator: u64) -> Self {
        if denominator == 0 {
            return Self::MAX;
        }
        let small = i64::try_from(numerator).ok().and_then(|n| self.0.checked_mul(n));
        if let (Some(product), Ok(d)) = (small, i64::try_from(denominator))
            && let Some(up) = product.checked_add(d - 1)
        {
            return Self(up.div_euclid(d));
        }
        let product = i128::from(self.0) * i128::from(numerator);
        let d = i128::from(denominator);
        Self(i64::try_from((product + d - 1).div_euclid(d)).unwrap_or(i64::MAX))
    }

    /// Sum that stops at the largest amount.
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Add for Money {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Money {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Money {
    /// Dollars with at least two and at most six decimals and no sign of currency: `0.40`, `0.234567`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let mut decimals = format!("{:06}", micros % 1_000_000);
        while decimals.len() > 2 && decimals.ends_with('0') {
            decimals.pop();
        }
        write!(f, "{sign}{}.{decimals}", micros / 1_000_000)
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let bad = || MoneyError { text: text.to_owned() };
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let trailing_dot = digits.ends_with('.');
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || trailing_dot || decimals.len() > 6 || !plain(whole) || !plain(decimals) {
            return Err(bad());
        }
        let whole: i64 = whole.parse().map_err(|_| bad())?;
        let decimals: i64 = format!("{decimals:0<6}").parse().map_err(|_| bad())?;
        let micros = whole.checked_mul(1_000_000).and_then(|w| w.checked_add(decimals)).ok_or_else(bad)?;
        Ok(Self(if negative { -micros } else { micros }))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, micros, printed) in [
            ("10.00", 10_000_000, "10.00"),
            ("0.234567", 234_567, "0.234567"),
            ("3", 3_000_000, "3.00"),
            ("-0.5", -500_000, "-0.50"),
        ] {
            let money: Money = text.parse().unwrap();
            assert_eq!(money.micros(), micros, "{text}");
            assert_eq!(money.to_string(), printed, "{text}");
        }
        for bad in ["", "-", "1.", ".5x", "1.2345678", "1e3", "ten", "99999999999999999999", " 1"] {
            assert!(bad.parse::<Money>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn an_hour_of_an_hourly_price_is_the_price() {
        let price: Money = "0.40".parse().unwrap();
        assert_eq!(price.for_seconds(3600), price);
        assert_eq!(price.for_seconds(1).micros(), 112, "400000/3600 = 111.1, rounded up");
        assert_eq!(price.for_seconds(0), Money::ZERO);
        assert_eq!(Money::MAX.for_seconds(u64::MAX), Money::MAX);
        for (micros, millis) in [(-1, 1), (-3_600_000, 2), (7, 3_599_999), (i64::MAX, 1), (i64::MIN, 3), (1, u64::MAX)]
        {
            let exact = (i128::from(micros) * i128::from(millis) + 3_599_999).div_euclid(3_600_000);
            let held = i64::try_from(exact).unwrap_or(i64::MAX);
            assert_eq!(Money::from_micros(micros).for_millis(millis).micros(), held, "{micros} for {millis} ms");
        }
    }

    #[test]
    fn ratios_round_up_and_hold_at_the_bounds() {
        assert_eq!(Money::from_micros(10).ratio(1, 3).micros(), 4);
        assert_eq!(Money::from_micros(10).ratio(1, 0), Money::MAX);
        assert_eq!(Money::MAX + Money::from_micros(1), Money::MAX);
    }
}
