//! Changing instances: create, state, label, bid, reboot, recycle, destroy.

use serde_json::{Value, json};

use super::answer::Answer;
use super::create;
use crate::market::{BidError, Market, RentError, SimTime, StartError, micros_of_dollars};

/// `PUT /api/v0/asks/{id}/`.
pub fn create(market: &mut Market, now: SimTime, account: &str, ask: u64, body: &[u8]) -> Answer {
    let has_ssh_key = market.account(account).is_some_and(|account| !account.ssh_keys.is_empty());
    let spec = match create::parse(ask, body, has_ssh_key) {
        Ok(spec) => spec,
        Err(answer) => return answer,
    };
    let refuse = |status: u16, error: &str, msg: String| Answer::error(status, error, msg).with("ask_id", json!(ask));
    match market.rent(now, account, spec) {
        Ok(rented) => {
            let key = market.machine(rented.id()).map(|machine| machine.instance_key.clone());
            Answer::ok(json!({"success": true, "new_contract": rented.id(), "instance_api_key": key, "ask_id": ask}))
        }
        Err(RentError::NoSuchOffer | RentError::NoSuchAccount) => refuse(
            404,
            "invalid_args",
            format!("error 404/3603: no_such_ask Instance type by id {ask} is not available."),
        ),
        Err(RentError::SoldOut) => refuse(
            410,
            "no_such_ask",
            format!("error 410/3907: no_such_ask Instance type {ask} is no longer available."),
        ),
        // In practice this text often comes with 400 (users, up to 2026).
        Err(RentError::Refused) => refuse(
            400,
            "invalid_args",
            format!("error 404/3603: no_such_ask Instance type by id {ask} is not available."),
        ),
        Err(RentError::NoCredit) => refuse(
            400,
            "insufficient_credit",
            "error 400/3472: insufficient_credit Your account lacks credit; see the billing page.".to_owned(),
        ),
        Err(RentError::DiskTooLarge) => {
            refuse(400, "invalid_args", "error 400/3467: Invalid args: 'disk' is more than the offer has".to_owned())
        }
        Err(RentError::BidTooLow { leftover }) => {
            let answer = refuse(
                400,
                "invalid_price",
                format!("error 400/3480: your bid for {ask} is below the current price; the instance is stopped"),
            );
            leftover.map_or(answer.clone(), |id| answer.with("new_contract", json!(id)))
        }
    }
}

/// What a body for `PUT /api/v0/instances/{id}/` asks for.
pub enum Wish {
    /// `{"state": "running"}`
    Start,
    /// `{"state": "stopped"}`
    Stop,
    /// `{"label": …}`
    Label(String),
    /// Anything else.
    Bad(String),
}

/// Reads the body of `PUT /api/v0/instances/{id}/`.
pub fn wish(body: &[u8]) -> Wish {
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(body) else {
        return Wish::Bad("invalid json".to_owned());
    };
    if let Some(unknown) = fields.keys().find(|name| !["state", "label", "client_id"].contains(&name.as_str())) {
        return Wish::Bad(format!("unknown field '{unknown}'"));
    }
    match (fields.get("state"), fields.get("label")) {
        (Some(state), None) if state == "running" => Wish::Start,
        (Some(state), None) if state == "stopped" => Wish::Stop,
        (None, Some(Value::String(label))) => Wish::Label(label.clone()),
        (Some(_), None) => Wish::Bad("'state' must be running or stopped".to_owned()),
        (None, Some(_)) => Wish::Bad("'label' must be a text".to_owned()),
        _ => Wish::Bad("one of 'state' and 'label' must be given".to_owned()),
    }
}

/// `PUT /api/v0/instances/{id}/`.
pub fn manage(market: &mut Market, now: SimTime, account: &str, id: u64, body: &[u8]) -> Answer {
    match wish(body) {
        Wish::Start => match market.start(now, account, id) {
            Ok(()) => Answer::success(),
            Err(StartError::NoSuchMachine) => Answer::no_such_instance(),
            Err(StartError::NoCredit) => {
                Answer::error(400, "missing_billing", "Your account lacks credit; see the billing page.")
            }
            // 200 in spite of the failure; it stays queued and may start later (users and the official client).
            Err(StartError::Queued | StartError::HostGone) => Answer {
                status: 200,
                ..Answer::error(
                    200,
                    "resources_unavailable",
                    "Required resources are currently unavailable, state change queued.",
                )
            },
        },
        Wish::Stop => market.stop(now, account, id).map_or_else(|_| Answer::no_such_instance(), |()| Answer::success()),
        Wish::Label(label) if label.chars().count() > 1024 => {
            Answer::error(400, "label_too_long", "The label must be at most 1024 characters.")
        }
        Wish::Label(label) => {
            market.label(now, account, id, label).map_or_else(|_| Answer::no_such_instance(), |()| Answer::success())
        }
        Wish::Bad(why) => Answer::invalid_args(format!("error 400/1782: Invalid args: {why}")),
    }
}

/// `DELETE /api/v0/instances/{id}/`.
pub fn destroy(market: &mut Market, now: SimTime, account: &str, id: u64) -> Answer {
    match market.terminate(now, account, id) {
        Ok(()) => Answer::success().with("msg", json!("Instance destroyed successfully")),
        Err(_) => Answer::error(404, "no_such_instance", "Instance not found"),
    }
}

/// `PUT /api/v0/instances/bid_price/{id}/`.
pub fn bid(market: &mut Market, now: SimTime, account: &str, id: u64, body: &[u8]) -> Answer {
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(body) else {
        return Answer::invalid_args("Invalid args: invalid json");
    };
    if let Some(unknown) = fields.keys().find(|name| !["client_id", "price"].contains(&name.as_str())) {
        return Answer::invalid_args(format!("Invalid args: unknown field '{unknown}'"));
    }
    if !fields.get("client_id").is_some_and(Value::is_string) {
        return Answer::invalid_args("Invalid args: 'client_id' is required");
    }
    let gpus = market.machine(id).and_then(|m| m.offer_fields.get("num_gpus")).and_then(Value::as_f64).unwrap_or(1.0);
    match fields.get("price").and_then(Value::as_f64) {
        Some(price) if (0.001..=32.0 * gpus).contains(&price) => {
            match market.bid(now, account, id, micros_of_dollars(price)) {
                Ok(()) => Answer::success(),
                Err(BidError::NoSuchMachine) => Answer::no_such_instance(),
                Err(BidError::NotSpot) => Answer::invalid_args("The instance is not interruptible."),
            }
        }
        Some(price) if price > 32.0 * gpus => Answer::invalid_args("Please set a bid price <= 32.0 per GPU."),
        _ => Answer::invalid_args("Please set a bid price >= 0.001."),
    }
}

/// `PUT /api/v0/instances/reboot/{id}/` and `…/recycle/{id}/`.
pub fn reboot(market: &mut Market, now: SimTime, account: &str, id: u64, recycle: bool) -> Answer {
    match market.reboot(now, account, id, recycle) {
        Ok(()) => Answer::success(),
        Err(_) if recycle => Answer::error(400, "invalid_id", "Invalid instance id."),
        Err(_) => Answer::invalid_args("invalid instance_id"),
    }
}
