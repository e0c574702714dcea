//! Offer search: `POST /api/v0/bundles/` and `PUT /api/v0/search/asks/`.

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::filter::{Condition, compare_rows};
use crate::market::{Market, Offer, SimTime, disk_micros_per_hour, dollars_of_micros, micros_of_dollars};

/// GB folded into prices where the search does not say (official document).
const DEFAULT_STORAGE_GB: f64 = 8.0;

/// Keys of a search that are not filters. Some carry a plain value in the official clients (`external`, `has_avx`).
const PLAIN: [&str; 14] = [
    "type",
    "order",
    "limit",
    "allocated_storage",
    "disable_bundling",
    "target_reliability",
    "extra_ids",
    "gpu_option",
    "show_incompatible",
    "sort_option",
    "template_id",
    "resource_type",
    "client_id",
    "select_cols",
];

/// Filters that are no column of the answer.
const VIRTUAL: [&str; 5] = ["verified", "datacenter", "ubuntu_version", "rented", "external"];

struct Search {
    bid: bool,
    storage_gb: f64,
    limit: Option<usize>,
    order: Vec<(String, bool)>,
    conditions: Vec<Condition>,
}

/// Answers a search. `body` is the flat object of `bundles`, or what `search/asks` carries under `q`.
pub fn search(market: &mut Market, now: SimTime, account: &str, body: &Value) -> Answer {
    let search = match parse(body) {
        Ok(search) => search,
        Err(why) => return invalid(&why),
    };
    let offers = market.offers(now, account);
    let mut rows: Vec<Map<String, Value>> =
        offers.iter().map(|(offer, free)| row(market, offer, *free, search.bid, search.storage_gb)).collect();
    if let Some(unknown) = search.conditions.iter().find(|c| {
        !VIRTUAL.contains(&c.column.as_str()) && !rows.is_empty() && rows.iter().all(|row| !row.contains_key(&c.column))
    }) {
        return invalid(&format!("{} is not a valid search key", unknown.column));
    }
    rows.retain(|row| search.conditions.iter().all(|c| c.holds(&cell(row, &c.column))));
    rows.sort_by(|a, b| compare_rows(a, b, &search.order));
    rows.truncate(search.limit.unwrap_or(usize::MAX));
    Answer::ok(json!({"offers": rows}))
}

fn invalid(why: &str) -> Answer {
    Answer::error(400, "invalid_request", format!("Error in query parameters: {why}"))
}

fn parse(body: &Value) -> Result<Search, String> {
    let object = body.as_object().ok_or("Invalid json body")?;
    let mut search = Search {
        bid: false,
        storage_gb: DEFAULT_STORAGE_GB,
        limit: None,
        order: vec![("score".to_owned(), true)],
        conditions: Vec::new(),
    };
    for (name, value) in object {
        match name.as_str() {
            "type" => {
                search.bid = match value.as_str() {
                    Some("on-demand" | "ondemand" | "reserved") => false,
                    Some("bid" | "interruptible") => true,
                    _ => return Err(format!("type {value} is unknown")),
                }
            }
            "limit" => {
                let limit = value.as_u64().and_then(|n| usize::try_from(n).ok());
                search.limit = Some(limit.ok_or_else(|| format!("limit {value} is not a whole number"))?);
            }
            "allocated_storage" => {
                search.storage_gb = value
                    .as_f64()
                    .filter(|gb| *gb >= 0.0)
                    .ok_or_else(|| format!("allocated_storage {value} is not a number"))?;
            }
            "order" => search.order = parse_order(value)?,
            name if PLAIN.contains(&name) || value.is_null() => {}
            name if !value.is_object() && ["external", "has_avx", "verified", "rentable", "rented"].contains(&name) => {
                search.conditions.extend(Condition::parse_all(name, &json!({"eq": value}))?);
            }
            name => search.conditions.extend(Condition::parse_all(name, value)?),
        }
    }
    Ok(search)
}

fn parse_order(value: &Value) -> Result<Vec<(String, bool)>, String> {
    let bad = || format!("order {value} is not a list of [field, direction]");
    let entries = value.as_array().ok_or_else(bad)?;
    entries
        .iter()
        .map(|entry| match entry.as_array().map(Vec::as_slice) {
            Some([Value::String(column), Value::String(direction)]) if direction == "asc" || direction == "desc" => {
                Ok((column.clone(), direction == "desc"))
            }
            _ => Err(bad()),
        })
        .collect()
}

/// The value that a filter compares with: some filters mean something else than the column they are named after.
fn cell(row: &Map<String, Value>, column: &str) -> Value {
    let field = |name: &str| row.get(name).cloned().unwrap_or(Value::Null);
    match column {
        "verified" => json!(row.get("verification").and_then(Value::as_str) == Some("verified")),
        "datacenter" => json!(row.get("hosting_type").and_then(Value::as_i64).unwrap_or(0) >= 1),
        "external" | "rented" => json!(row.get(column).and_then(Value::as_bool).unwrap_or(false)),
        "ubuntu_version" => field("os_version"),
        "driver_version" => field("driver_vers"),
        // "Norway, NO" is filtered by its country code, the last part.
        "geolocation" => field(column)
            .as_str()
            .and_then(|place| place.rsplit(',').next())
            .map_or(Value::Null, |code| json!(code.trim())),
        _ => field(column),
    }
}

/// An offer as search answers show it. In a search for bids the prices are those of the lowest winning bid.
pub fn row(market: &Market, offer: &Offer, free: u32, bid: bool, storage_gb: f64) -> Map<String, Value> {
    let mut row: Map<String, Value> = (*offer.fields).clone();
    let min_bid = offer.bid_dollars();
    let base = if bid { min_bid.unwrap_or(0.0) } else { offer.on_demand_dollars() };
    let disk_micros = disk_micros_per_hour(offer.storage_micros_per_gb_month, micros_of_dollars(storage_gb) / 1000);
    let disk = dollars_of_micros(i64::try_from(disk_micros).unwrap_or(i64::MAX));
    let total = match row.get("dph_total").and_then(Value::as_f64) {
        Some(given) if !bid && !offer.price_has_changed() => given,
        _ => base + disk,
    };
    let start = market.unix_seconds(SimTime::ZERO);
    let left = offer.ends_at.micros_since(market.now());
    #[expect(clippy::cast_precision_loss, reason = "microseconds of some months fit 53 bits")]
    let left_seconds = left as f64 / 1e6;
    let prices = json!({"gpuCostPerHour": base, "diskHour": disk, "totalHour": total, "discountTotalHour": 0, "discountedTotalPerHour": total});
    for (name, value) in [
        ("dph_base", json!(base)),
        ("dph_total", json!(total)),
        ("dph_total_adj", json!(total)),
        ("discounted_dph_total", json!(total)),
        ("discounted_hourly", json!(0.0)),
        ("min_bid", json!(min_bid)),
        ("is_bid", json!(bid)),
        ("storage_total_cost", json!(disk)),
        ("search", prices.clone()),
        ("instance", prices),
        ("rentable", json!(free > 0)),
        ("rented", json!(free == 0)),
    ] {
        row.insert(name.to_owned(), value);
    }
    for (name, value) in [
        ("start_date", json!(start)),
        ("end_date", json!(market.unix_seconds(offer.ends_at))),
        ("duration", json!(left_seconds)),
        ("time_remaining", json!("")),
        ("time_remaining_isbid", json!("")),
    ] {
        row.entry(name.to_owned()).or_insert(value);
    }
    row
}
