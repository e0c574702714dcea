//! Reading instances: `GET /api/v1/instances/`, its deprecated forerunner, one instance, and the values that can be filtered by.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::filter::{Condition, compare_rows};
use super::rows;
use crate::market::{Market, SimTime};

/// Rows of a page.
const PAGE: usize = 25;

/// Columns stored on the contract, the only ones that can be filtered by.
const STORED: [&str; 17] = [
    "id",
    "label",
    "actual_status",
    "intended_status",
    "cur_state",
    "next_state",
    "gpu_name",
    "verification",
    "machine_id",
    "host_id",
    "image_uuid",
    "image_runtype",
    "start_date",
    "end_date",
    "template_id",
    "template_hash_id",
    "is_bid",
];

type Row = Map<String, Value>;

fn all_rows(market: &mut Market, now: SimTime, account: &str) -> Vec<Row> {
    market.advance(now);
    let ids: Vec<u64> = market.list(now, account).iter().map(|machine| machine.id).collect();
    ids.iter().filter_map(|id| market.machine(*id)).map(|machine| rows::instance(market, machine)).collect()
}

/// `GET /api/v0/instances/{id}/`: a destroyed or foreign id is 200 with null.
pub fn show(market: &mut Market, now: SimTime, account: &str, id: u64) -> Answer {
    let visible = market.describe(now, account, id).is_some();
    let row = market.machine(id).filter(|_| visible).map(|machine| rows::instance(market, machine));
    Answer::ok(json!({"instances": row}))
}

/// `GET /api/v0/instances/`, deprecated and unpaged.
pub fn list_v0(market: &mut Market, now: SimTime, account: &str) -> Answer {
    let rows = all_rows(market, now, account);
    Answer::ok(json!({"success": true, "instances_found": rows.len(), "instances": rows}))
}

/// `GET /api/v0/instances/filters/`.
pub fn filters(market: &mut Market, now: SimTime, account: &str) -> Answer {
    let text = |row: &Row, name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    let combinations: BTreeSet<_> = all_rows(market, now, account)
        .iter()
        .map(|row| (text(row, "actual_status"), text(row, "gpu_name"), text(row, "verification")))
        .collect();
    let filters: Vec<Value> = combinations
        .into_iter()
        .map(|(status, gpu, verification)| json!({"actual_status": status, "gpu_name": gpu, "verification": verification}))
        .collect();
    Answer::ok(json!({"success": true, "filters": filters}))
}

struct Query {
    limit: usize,
    order: Vec<(String, bool)>,
    conditions: Vec<Condition>,
    columns: Option<Vec<String>>,
    after: Option<Row>,
}

/// `GET /api/v1/instances/`.
pub fn list_v1(market: &mut Market, now: SimTime, account: &str, parameters: &BTreeMap<String, String>) -> Answer {
    let query = match parse(parameters) {
        Ok(query) => query,
        Err(answer) => return answer,
    };
    let mut rows = all_rows(market, now, account);
    if let Some((column, _)) =
        query.order.iter().find(|(column, _)| !rows.is_empty() && rows.iter().all(|row| !row.contains_key(column)))
    {
        return invalid(&format!("{column} is not a valid order key"));
    }
    let null = Value::Null;
    rows.retain(|row| query.conditions.iter().all(|c| c.holds(row.get(&c.column).unwrap_or(&null))));
    rows.sort_by(|a, b| compare_rows(a, b, &query.order));
    let total = rows.len();
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    for row in &rows {
        *labels.entry(row.get("label").and_then(Value::as_str).unwrap_or_default().to_owned()).or_default() += 1;
    }
    if let Some(after) = &query.after {
        rows.retain(|row| compare_rows(row, after, &query.order) == Ordering::Greater);
    }
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let next = rows.last().filter(|_| more).map(|last| token(last, &query.order));
    if let Some(columns) = &query.columns {
        for row in &mut rows {
            *row = columns.iter().map(|name| (name.clone(), row.get(name).cloned().unwrap_or(Value::Null))).collect();
        }
    }
    Answer::ok(json!({"success": true, "instances_found": rows.len(), "total_instances": total, "label_counts": labels,
        "next_token": next, "instances": rows}))
}

fn invalid(why: &str) -> Answer {
    Answer::error(400, "invalid_request", format!("Error in query parameters: {why}"))
}

fn token(last: &Row, order: &[(String, bool)]) -> String {
    let values: Row =
        order.iter().map(|(column, _)| (column.clone(), last.get(column).cloned().unwrap_or(Value::Null))).collect();
    base64::engine::general_purpose::STANDARD.encode(json!({"values": values}).to_string())
}

fn parse(parameters: &BTreeMap<String, String>) -> Result<Query, Answer> {
    let json_of = |name: &str, otherwise: Value| match parameters.get(name) {
        None => Ok(otherwise),
        Some(text) => serde_json::from_str::<Value>(text).map_err(|_| invalid(&format!("{name} is not JSON"))),
    };
    let limit = match parameters.get("limit") {
        None => PAGE,
        Some(text) => match text.parse::<i64>().map_err(|_| invalid("limit is not a whole number"))? {
            // Official document: values of 0 and less are treated as 5.
            ..=0 => 5,
            n => usize::try_from(n).unwrap_or(PAGE).min(PAGE),
        },
    };
    let mut order = Vec::new();
    for entry in json_of("order_by", json!([]))?.as_array().ok_or_else(|| invalid("order_by is not a list"))? {
        let column = entry["col"].as_str().ok_or_else(|| invalid("order_by has an entry without col"))?;
        order.push((column.to_owned(), entry["dir"] == "desc"));
    }
    if !order.iter().any(|(column, _)| column == "id") {
        order.push(("id".to_owned(), false));
    }
    let mut conditions = Vec::new();
    for (column, filter) in
        json_of("select_filters", json!({}))?.as_object().ok_or_else(|| invalid("select_filters is not an object"))?
    {
        if !STORED.contains(&column.as_str()) {
            return Err(invalid(&format!("{column} is not a valid search key")));
        }
        conditions.extend(Condition::parse_all(column, filter).map_err(|why| invalid(&why))?);
    }
    let columns = json_of("select_cols", json!(["*"]))?;
    let columns = columns.as_array().ok_or_else(|| invalid("select_cols is not a list"))?;
    let columns: Vec<String> = columns.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    let after = parameters.get("after_token").map(|token| {
        let refused = || Answer::error(400, "invalid_token", "Invalid pagination token");
        let bytes = base64::engine::general_purpose::STANDARD.decode(token).map_err(|_| refused())?;
        let decoded: Value = serde_json::from_slice(&bytes).map_err(|_| refused())?;
        decoded["values"].as_object().filter(|values| values.contains_key("id")).cloned().ok_or_else(refused)
    });
    let columns = (!columns.iter().any(|name| name == "*")).then_some(columns);
    Ok(Query { limit, order, conditions, columns, after: after.transpose()? })
}
