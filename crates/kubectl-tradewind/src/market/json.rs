//! Offers as the operator writes them. Whatever is odd about one row costs that row only.

use serde_json::{Map, Value, json};
use tradewind_core::Offer;

use super::Market;

/// What an offer may leave untold, and what that is taken for.
fn untold() -> Value {
    json!({
        "region": "", "host": "", "storagePricePerGibHour": "0.00", "downloadPricePerGb": "0.00", "uploadPricePerGb": "0.00",
        "downloadMbps": 0, "uploadMbps": 0, "reliabilityPpm": 0, "cudaMilli": 0, "gpu": null, "maxDurationS": null,
    })
}

/// An offer with every field, to try single fields in.
fn whole() -> Value {
    json!({
        "provider": "x", "id": "x", "capacity": "Spot", "pricePerHour": "1.00", "region": "", "host": "", "gpu": "X", "gpuCount": 1,
        "gpuMemoryMib": 1, "cpuMillis": 1, "memoryMib": 1, "diskGib": 1, "storagePricePerGibHour": "0.00", "downloadPricePerGb": "0.00",
        "uploadPricePerGb": "0.00", "downloadMbps": 0, "uploadMbps": 0, "reliabilityPpm": 0, "trust": "Community", "cudaMilli": 0,
        "maxDurationS": null,
    })
}

/// Reads a list of offers, or an object with one in `offers`.
pub fn read(text: &str) -> Result<Market, String> {
    let value: Value = serde_json::from_str(&numbers_only(text)).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        if error.is_eof() { format!("is cut off at {place}") } else { format!("is no JSON at {place}: {error}") }
    })?;
    let rows = match value {
        Value::Array(rows) => rows,
        Value::Object(mut object) => match object.remove("offers") {
            Some(Value::Array(rows)) => rows,
            _ => return Err("has no list of offers: write [{...}, ...] or {\"offers\": [{...}, ...]}".to_owned()),
        },
        _ => return Err("is no list of offers".to_owned()),
    };
    let mut market = Market::default();
    for row in rows {
        match offer(row) {
            Ok(offer) => market.offers.push(offer),
            Err(reason) => market.leave_out(reason, 1),
        }
    }
    Ok(market)
}

fn offer(row: Value) -> Result<Offer, String> {
    let Value::Object(row) = row else { return Err("no JSON object".to_owned()) };
    let mut full = untold();
    if let Some(full) = full.as_object_mut() {
        full.extend(row.clone());
    }
    serde_json::from_value(full).map_err(|_| problem(&row))
}

/// The first field that keeps a row from being an offer.
fn problem(row: &Map<String, Value>) -> String {
    let (whole, untold) = (whole(), untold());
    for name in whole.as_object().into_iter().flat_map(Map::keys) {
        let Some(value) = row.get(name) else {
            if untold.get(name).is_none() {
                return format!("without {name}");
            }
            continue;
        };
        let mut tried = whole.clone();
        tried[name] = value.clone();
        if serde_json::from_value::<Offer>(tried).is_err() {
            return format!("unreadable ({name})");
        }
    }
    "not to be understood".to_owned()
}

/// What Python and others write for a float that is no number (`NaN`, `Infinity`, `-Infinity`) is no JSON: it becomes `null`, which costs
/// its row and not the file.
fn numbers_only(text: &str) -> String {
    const NO_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        if !quoted && let Some(word) = NO_NUMBERS.iter().find(|word| rest.starts_with(**word)) {
            clean.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut len = c.len_utf8();
        if c == '"' {
            quoted = !quoted;
        } else if c == '\\' && quoted {
            len += rest[len..].chars().next().map_or(0, char::len_utf8);
        }
        clean.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(patch: &Value) -> Value {
        let mut row = whole();
        row.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        row
    }

    #[test]
    fn what_is_written_is_read_again() {
        let offers: Vec<Offer> = vec![serde_json::from_value(row(&json!({"region": "NO"}))).unwrap()];
        let text = serde_json::to_string(&json!({ "offers": offers })).unwrap();
        assert_eq!(read(&text).unwrap().offers, offers);
        assert_eq!(read(&serde_json::to_string(&offers).unwrap()).unwrap().offers, offers);
    }

    #[test]
    fn what_is_not_told_need_not_be_written() {
        let short = r#"[{"provider": "mine", "id": "1", "capacity": "OnDemand", "pricePerHour": "0.40", "gpu": "RTX4090", "gpuCount": 1,
            "gpuMemoryMib": 24564, "cpuMillis": 8000, "memoryMib": 32768, "diskGib": 100, "trust": "Datacenter"}]"#;
        let market = read(short).unwrap();
        assert_eq!((market.offers.len(), market.unread()), (1, 0));
        assert_eq!(market.offers[0].region, "");
    }

    #[test]
    fn an_odd_row_costs_itself_and_names_its_field() {
        let odd = [
            (json!({"pricePerHour": 0.4}), "unreadable (pricePerHour)"),
            (json!({"pricePerHour": null}), "unreadable (pricePerHour)"),
            (json!({"gpuCount": -1}), "unreadable (gpuCount)"),
            (json!({"memoryMib": 1e300}), "unreadable (memoryMib)"),
            (json!({"capacity": "Sometimes"}), "unreadable (capacity)"),
        ];
        for (patch, reason) in odd {
            let market = read(&json!([row(&patch), row(&json!({}))]).to_string()).unwrap();
            assert_eq!(market.offers.len(), 1);
            assert_eq!(market.left_out.into_iter().collect::<Vec<_>>(), [(reason.to_owned(), 1)]);
        }
        let mut without = row(&json!({}));
        without.as_object_mut().unwrap().remove("trust");
        let market = read(&json!([without, 7]).to_string()).unwrap();
        assert_eq!(market.unread_lines(), ["1 is no JSON object", "1 is without trust"]);
    }

    #[test]
    fn no_numbers_are_no_json_and_cost_their_row_only() {
        let text = format!(
            "[{}, {}]",
            row(&json!({"id": "NaN \"Infinity\" \\"})),
            row(&json!({})).to_string().replace("\"1.00\"", "NaN")
        );
        let market = read(&text).unwrap();
        assert_eq!(market.offers[0].id, "NaN \"Infinity\" \\", "within a text it stays");
        assert_eq!(market.unread_lines(), ["1 is unreadable (pricePerHour)"]);
        assert_eq!(numbers_only("[-Infinity,1]"), "[null,1]");
        assert_eq!(numbers_only("\"\\"), "\"\\");
    }

    #[test]
    fn deep_and_truncated_texts_are_errors() {
        assert!(read(&"[".repeat(100_000)).is_err());
        let whole = json!([row(&json!({}))]).to_string();
        for end in (1..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        assert!(read("{\"items\": []}").unwrap_err().contains("no list of offers"));
    }
}
