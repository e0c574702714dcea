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

/// Bytes of a Kubernetes quantity without fraction (`20Gi`, `500M`, `1024`); `None` otherwise.
pub fn quantity_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor: u64 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Thousandths of a CPU quantity (`2`, `500m`, `1.5`); `None` otherwise.
pub fn quantity_millis(text: &str) -> Option<u64> {
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().ok();
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: u64 = format!("{decimals:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(thousandths)
}

/// A decimal number as text: `"0.98"`, `"1.5"`. Not negative, at most six decimals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

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
        assert_eq!(quantity_bytes("1.5Gi"), None);
        assert_eq!(quantity_millis("1.5"), Some(1500));
        assert_eq!(quantity_millis("250m"), Some(250));
        assert_eq!(Decimal("0.98".into()).millionths(), 980_000);
    }
}
