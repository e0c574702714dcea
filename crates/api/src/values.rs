//! Small text values with a checked form: time spans, sizes, decimals.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A span of time as people write it in Kubernetes: `15m`, `1h30m`, `90s`. Units h, m, s in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub String);

impl Span {
    /// The pattern that the schema demands; the empty text is refused beside it.
    pub const PATTERN: &'static str = "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$";

    /// A span of whole seconds.
    pub fn from_seconds(seconds: u64) -> Self {
        Self(format!("{seconds}s"))
    }

    /// Seconds; 0 for a text that the schema would have refused.
    pub fn seconds(&self) -> u64 {
        let mut total = 0_u64;
        let mut digits = String::new();
        for c in self.0.chars() {
            let unit = match c {
                '0'..='9' => {
                    digits.push(c);
                    continue;
                }
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return 0,
            };
            let Ok(n) = digits.parse::<u64>() else { return 0 };
            total = total.saturating_add(n.saturating_mul(unit));
            digits.clear();
        }
        if digits.is_empty() { total } else { 0 }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 24,
            "x-kubernetes-validations": [{
                "rule": format!("size(self) > 0 && self.matches('{}')", Self::PATTERN),
                "message": "must be a time span such as 15m or 1h30m"
            }]
        })
    }
}

/// A size in bytes as a Kubernetes quantity with a binary or decimal suffix: `20Gi`, `500M`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub String);

impl Size {
    /// Bytes; `None` for a text that is no size.
    pub fn bytes(&self) -> Option<u64> {
        quantity_bytes(&self.0)
    }

    /// MiB, rounded up; 0 for a text that the schema would have refused.
    pub fn mib(&self) -> u64 {
        self.bytes().unwrap_or(0).div_ceil(1 << 20)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        crate::schema::checked_text(24, "^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$", "must be a size such as 20Gi")
    }
}

/// Bytes of a Kubernetes quantity (`20Gi`, `1.5Gi`, `500M`, `1e9`), rounded up as Kubernetes does; `None` for anything else, negative ones too.
pub fn quantity_bytes(text: &str) -> Option<u64> {
    quantity(text, 1)
}

/// Thousandths of a CPU quantity (`2`, `500m`, `1.5`), rounded up; `None` for anything else, negative ones too.
pub fn quantity_millis(text: &str) -> Option<u64> {
    quantity(text, 1000)
}

/// A quantity in units of 1 ÷ `parts`, rounded up. The grammar is Kubernetes' own
/// (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).
fn quantity(text: &str, parts: u128) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + decimals.len() > 30 || (whole.is_empty() && decimals.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{decimals}").parse().ok()?;
    // Powers of ten that it is multiplied with and divided by, and the factor of a binary unit.
    let binary = |power: u32| (0, 1_u128 << (10 * power));
    let (tens, factor) = match unit {
        "" => (0, 1),
        "m" => (-3, 1),
        "k" => (3, 1),
        "M" => (6, 1),
        "G" => (9, 1),
        "T" => (12, 1),
        "P" => (15, 1),
        "E" => (18, 1),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => (unit.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?, 1),
    };
    let tens = tens - i32::try_from(decimals.len()).ok()?;
    let power = 10_u128.checked_pow(tens.unsigned_abs());
    let scaled = digits.checked_mul(factor)?.checked_mul(parts)?;
    let units = match power {
        Some(power) if tens >= 0 => scaled.checked_mul(power)?,
        Some(power) => scaled.div_ceil(power),
        // So small that nothing but the rounding is left, or too large.
        None if tens < 0 => u128::from(scaled > 0),
        None => return None,
    };
    u64::try_from(units).ok()
}

/// A decimal number as text: `"0.98"`, `"1.5"`. Not negative, at most six decimals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl From<String> for Decimal {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Decimal {
    /// Millionths; 0 for a text that the schema would have refused.
    pub fn millionths(&self) -> u64 {
        self.0.parse::<tradewind_core::Money>().ok().and_then(|m| u64::try_from(m.micros()).ok()).unwrap_or(0)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        crate::schema::checked_text(20, crate::schema::DECIMAL, "must be a decimal number such as \"1.5\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_sizes_decimals() {
        for (text, seconds) in [("15m", 900), ("1h30m", 5400), ("90s", 90), ("2h5s", 7205), ("5 minutes", 0), ("7", 0)]
        {
            assert_eq!(Span(text.into()).seconds(), seconds, "{text}");
        }
        assert_eq!(Size("20Gi".into()).mib(), 20 * 1024);
        assert_eq!(Size("1".into()).mib(), 1);
        for (text, bytes) in [
            ("1.5Gi", Some(3 << 29)),
            ("20Gi", Some(20 << 30)),
            ("500M", Some(500_000_000)),
            ("1e9", Some(1_000_000_000)),
            (".5k", Some(500)),
            ("1500m", Some(2)),
            ("1e-90", Some(1)),
            ("0e-90", Some(0)),
            ("1e90", None),
            ("99999Ei", None),
            ("-1", None),
            ("1.2.3", None),
            ("", None),
            (".", None),
            ("Gi", None),
            ("5 GB", None),
        ] {
            assert_eq!(quantity_bytes(text), bytes, "{text}");
        }
        assert_eq!(quantity_millis("1.5"), Some(1500));
        assert_eq!(quantity_millis("250m"), Some(250));
        assert_eq!(quantity_millis("0.0001"), Some(1));
        assert_eq!(Decimal("0.98".into()).millionths(), 980_000);
    }
}
