//! Sizes and sums as providers write them: JSON numbers, which may be anything.

use tradewind_core::Money;

/// Bytes in a GiB over bytes in a GB.
pub(crate) const GB_PER_GIB: f64 = 1.073_741_824;
/// Storage is priced by the month of 30 days: the shortest that is in use, so that estimates are not below the bill.
pub(crate) const HOURS_PER_MONTH: f64 = 720.0;

/// Dollars rounded up to the next micro-dollar; what lies within a thousandth of one is the float's doing. `None` for what is no price.
pub(crate) fn money(dollars: f64) -> Option<Money> {
    if !dollars.is_finite() || !(0.0..=1e9).contains(&dollars) {
        return None;
    }
    let micros = dollars * 1e6;
    let near = micros.round();
    let up = if (micros - near).abs() < 1e-3 { near } else { micros.ceil() };
    #[expect(clippy::cast_possible_truncation, reason = "whole and at most 1e15")]
    Some(Money::from_micros(up as i64))
}

/// A balance, which may be below zero: a debt, or a refund.
pub(crate) fn balance(dollars: f64) -> Option<Money> {
    if dollars < 0.0 { money(-dollars).map(|debt| Money::ZERO - debt) } else { money(dollars) }
}

/// The whole number at or below `n`. `None` for what is no size.
pub(crate) fn whole(n: f64) -> Option<u64> {
    if !n.is_finite() || !(0.0..=1e15).contains(&n) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Some(n as u64)
}
