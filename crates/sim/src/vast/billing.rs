//! The account: `GET /api/v0/users/current/` and `GET /api/v0/charges/`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::answer::Answer;
use crate::market::{Machine, Market, Purpose, SimTime, bits, dollars_of_micros};

/// The user's id: the same for an account of this name in every simulation.
pub fn user_id(account: &str) -> u64 {
    100_000 + bits(0, account, 0, Purpose::InstanceKey) % 900_000
}

/// `GET /api/v0/users/current/`.
pub fn user(market: &mut Market, now: SimTime, account: &str) -> Answer {
    market.advance(now);
    let credit = dollars_of_micros(market.credit_micros(account));
    let id = user_id(account);
    let ssh_key = market.account(account).map(|account| account.ssh_keys.join("\n")).unwrap_or_default();
    Answer::ok(
        json!({"id": id, "key_id": id + 1, "username": account, "email": format!("{account}@example.com"), "credit": credit, "balance": 0.0,
        "balance_threshold": 0.0, "ssh_key": ssh_key, "sid": "", "can_pay": credit > 0.0}),
    )
}

/// `GET /api/v0/charges/`: one row per contract that was paid for in the asked range.
pub fn charges(market: &mut Market, now: SimTime, account: &str, parameters: &BTreeMap<String, String>) -> Answer {
    market.advance(now);
    let filters: Value = match parameters.get("select_filters").map(|text| serde_json::from_str(text)) {
        Some(Ok(filters)) => filters,
        Some(Err(_)) => {
            return Answer { status: 400, ..Answer::error(400, "invalid_request", "select_filters is not JSON") };
        }
        None => Value::Null,
    };
    let (Some(from), Some(to)) = (filters["day"]["gte"].as_f64(), filters["day"]["lte"].as_f64()) else {
        return Answer::error(
            400,
            "invalid_request",
            "Must provide both 'day' gte and lte filters for instance charges",
        );
    };
    let wanted = filters["type"]["in"].as_array().is_none_or(|types| types.iter().any(|t| t == "instance"));
    let limit = parameters.get("limit").and_then(|text| text.parse::<usize>().ok()).unwrap_or(100).clamp(1, 500);
    let latest_first = parameters.get("latest_first").is_none_or(|flag| !flag.eq_ignore_ascii_case("false"));
    let after = match parameters.get("after_token").map(|token| token.parse::<u64>()) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return Answer::error(400, "invalid_token", "Invalid pagination token"),
    };
    let now = market.now();
    let overlaps = |m: &&Machine| {
        let (start, end) = (market.unix_seconds(m.created_at), market.unix_seconds(m.ended_at.unwrap_or(now)));
        m.account == account && start <= to && end >= from
    };
    let mut machines: Vec<&Machine> =
        if wanted { market.machines().iter().filter(overlaps).collect() } else { Vec::new() };
    if latest_first {
        machines.reverse();
    }
    let total = machines.len();
    let skip = after.and_then(|id| machines.iter().position(|m| m.id == id)).map_or(0, |position| position + 1);
    let page: Vec<&Machine> = machines.into_iter().skip(skip).collect();
    let next = page.get(limit - 1).filter(|_| page.len() > limit).map(|m| m.id.to_string());
    let results: Vec<Value> = page.into_iter().take(limit).map(|m| row(market, m, now)).collect();
    Answer::ok(json!({"success": true, "count": results.len(), "total": total, "next_token": next, "results": results}))
}

fn row(market: &Market, m: &Machine, now: SimTime) -> Value {
    let whole = |at: SimTime| market.timestamp(at).as_second();
    let (start, end) = (whole(m.created_at), whole(m.ended_at.unwrap_or(now)));
    let dollars = |micros: u64| dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX));
    let item = |kind: &str, amount: u64, description: String| json!({"start": start, "end": end, "type": kind, "source": null, "description": description, "amount": dollars(amount), "metadata": {}, "items": []});
    #[expect(clippy::cast_precision_loss, reason = "seconds fit 53 bits")]
    let hours = m.compute_seconds(now) as f64 / 3600.0;
    let items = json!([
        item(
            "gpu",
            m.compute_cost_micros(now),
            format!("{hours:.3} hours at ${}/hour", dollars(m.compute_micros_per_hour()))
        ),
        item("disk", m.disk_cost_micros(now), format!("disk at ${}/hour", dollars(m.disk_micros_per_hour()))),
    ]);
    let metadata = m.label.as_ref().map_or(json!({}), |label| json!({"label": label}));
    json!({"start": start, "end": end, "type": "instance", "source": format!("instance-{}", m.id), "description": format!("Instance {} Charges", m.id),
        "amount": (dollars(m.cost_micros(now)) * 1000.0).round() / 1000.0, "metadata": metadata, "items": items})
}
