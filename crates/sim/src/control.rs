//! The control API: for whoever runs the simulation, never for a customer. No key. Refusals are `{"error": sentence}`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::faults::Fault;
use crate::market::{ControlError, Event, Machine, Market, OfferChange, micros_of_dollars};
use crate::wire;
use crate::world::World;

/// A refusal.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

impl From<ControlError> for Refused {
    fn from(error: ControlError) -> Self {
        let status = match error {
            ControlError::NotFound(_) => StatusCode::NOT_FOUND,
            ControlError::Conflict(_) => StatusCode::CONFLICT,
        };
        Self(status, error.to_string())
    }
}

fn bad(why: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, why.into())
}

type Answered = Result<Json<Value>, Refused>;

/// The control API's router.
pub fn router(world: Arc<World>) -> Router {
    Router::new()
        .route("/clock", get(clock).post(move_clock))
        .route("/machines", get(machines))
        .route("/machines/{provider}/{id}", post(act))
        .route("/offers", get(offers))
        .route("/offers/{provider}/{id}", patch(change_offer))
        .route("/providers/{name}", patch(change_provider))
        .route("/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/events", get(events))
        .fallback(|| async { Refused(StatusCode::NOT_FOUND, "no such path".to_owned()) })
        .with_state(world)
}

/// Reads a JSON body, whatever its content type, refusing unknown fields by name.
fn object(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, Refused> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return Err(bad("the body must be a JSON object"));
    };
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => Err(bad(format!("unknown field {unknown}, known are {}", known.join(", ")))),
        None => Ok(fields),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refused> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_f64().filter(|n| (0.0..=1e12).contains(n));
            number.map(Some).ok_or_else(|| bad(format!("{name} must be a number of at least 0, found {value}")))
        }
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Refused> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(value) => Err(bad(format!("{name} must be a text, found {value}"))),
    }
}

async fn clock(State(world): State<Arc<World>>) -> Json<Value> {
    let (now, pending) = world.with(|market, now| market.timestamp(now).to_string());
    pending.done().await;
    Json(json!({"now": now, "scale": world.clock.scale()}))
}

async fn move_clock(State(world): State<Arc<World>>, body: axum::body::Bytes) -> Answered {
    let fields = object(&body, &["advance", "scale"])?;
    let (advance, scale) = (number(&fields, "advance")?, number(&fields, "scale")?);
    if advance.is_none() && scale.is_none() {
        return Err(bad("give advance (seconds) or scale"));
    }
    if let Some(scale) = scale {
        world.clock.set_scale(scale);
    }
    if let Some(seconds) = advance {
        world.clock.advance(Duration::from_secs_f64(seconds));
    }
    Ok(clock(State(world)).await)
}

async fn machines(State(world): State<Arc<World>>) -> Json<Value> {
    let (answer, pending) = world.with(|market, now| {
        let total: u64 = market.machines().iter().map(|m| m.cost_micros(now)).sum();
        let machines: Vec<Value> = market.machines().iter().map(|m| machine_json(&world, market, m)).collect();
        json!({"totalMicros": total, "machines": machines})
    });
    pending.done().await;
    Json(answer)
}

fn machine_json(world: &World, market: &Market, m: &Machine) -> Value {
    let now = market.now();
    let directory = world.runner.directory(&m.account, &m.wire_id()).display().to_string();
    json!({
        "provider": m.account, "id": m.wire_id(), "offer": m.offer, "label": m.label, "spot": m.is_spot(),
        "status": wire::status_word(market, m), "running": m.runs(), "paid": m.is_paid(),
        "pricePerHourMicros": m.compute_micros_per_hour(), "costMicros": m.cost_micros(now),
        "createdAt": market.timestamp(m.created_at).to_string(), "endedAt": m.ended_at.map(|at| market.timestamp(at).to_string()),
        "pid": world.runner.pid(m.id), "dir": directory,
    })
}

async fn act(
    State(world): State<Arc<World>>,
    Path((provider, id)): Path<(String, String)>,
    body: axum::body::Bytes,
) -> Answered {
    let fields = object(&body, &["do", "price", "message", "code", "wipe", "value"])?;
    let verb = text(&fields, "do")?.ok_or_else(|| bad("do is missing"))?;
    let price = number(&fields, "price")?.map(micros_of_dollars);
    let (message, value) = (text(&fields, "message")?, text(&fields, "value")?);
    let code = match fields.get("code") {
        None | Some(Value::Null) => None,
        Some(code) => Some(
            code.as_i64()
                .and_then(|code| i32::try_from(code).ok())
                .ok_or_else(|| bad(format!("code must be a whole number, found {code}")))?,
        ),
    };
    let wipe = fields.get("wipe") == Some(&Value::Bool(true));
    let (result, pending) = world.with(|market, now| {
        let kind = market.account(&provider).map(|account| account.kind);
        let missing = || Refused(StatusCode::NOT_FOUND, format!("no machine {id} at {provider}"));
        let id = kind.and_then(|kind| kind.parse_machine_id(&id)).ok_or_else(missing)?;
        match verb.as_str() {
            "outbid" => market.outbid(now, &provider, id, price),
            "reclaim" if value.as_deref() == Some("absent") => market.reclaim_without_trace(now, &provider, id),
            "reclaim" => market.reclaim(now, &provider, id),
            "fail" => market.fail(now, &provider, id, message),
            "exit" => market.exit(now, &provider, id, code, wipe),
            "status" => market.show_status(now, &provider, id, value),
            other => return Err(bad(format!("do must be outbid, reclaim, fail, exit or status, found {other}"))),
        }
        .map_err(Refused::from)
        .map(|()| id)
    });
    pending.done().await;
    let id = result?;
    let (answer, _) =
        world.with(|market, _| market.machine(id).map_or(Value::Null, |m| machine_json(&world, market, m)));
    Ok(Json(answer))
}

async fn offers(State(world): State<Arc<World>>) -> Json<Value> {
    let (answer, pending) = world.with(|market, now| {
        let names: Vec<String> = market.accounts().iter().map(|account| account.name.clone()).collect();
        let mut offers = Vec::new();
        for name in names {
            for (offer, stock) in market.offers(now, &name) {
                offers.push(json!({"provider": name, "id": offer.id, "stock": stock, "price": offer.on_demand_dollars(), "bid": offer.bid_dollars(),
                    "offer": *offer.fields}));
            }
        }
        json!({"offers": offers})
    });
    pending.done().await;
    Json(answer)
}

async fn change_offer(
    State(world): State<Arc<World>>,
    Path((provider, id)): Path<(String, String)>,
    body: axum::body::Bytes,
) -> Answered {
    let fields = object(&body, &["stock", "price", "bid"])?;
    let stock = match fields.get("stock") {
        None | Some(Value::Null) => None,
        Some(stock) => {
            let whole = stock.as_u64().and_then(|stock| u32::try_from(stock).ok());
            Some(whole.ok_or_else(|| bad(format!("stock must be a whole number, found {stock}")))?)
        }
    };
    let change = OfferChange {
        stock,
        on_demand_micros_per_hour: number(&fields, "price")?.map(micros_of_dollars),
        bid_micros_per_hour: number(&fields, "bid")?.map(micros_of_dollars),
    };
    let (result, pending) = world.with(|market, now| market.change_offer(now, &provider, &id, change));
    pending.done().await;
    result?;
    Ok(Json(json!({"ok": true})))
}

async fn change_provider(
    State(world): State<Arc<World>>,
    Path(name): Path<String>,
    body: axum::body::Bytes,
) -> Answered {
    let fields = object(&body, &["credit", "apiKey"])?;
    let credit =
        number(&fields, "credit")?.map(|dollars| i64::try_from(micros_of_dollars(dollars)).unwrap_or(i64::MAX));
    let key = text(&fields, "apiKey")?;
    if key.as_deref() == Some("") {
        return Err(bad("apiKey must not be empty"));
    }
    let (result, pending) = world.with(|market, now| -> Result<(), ControlError> {
        if market.account(&name).is_none() {
            return Err(ControlError::NotFound(format!("no provider {name}")));
        }
        credit.map_or(Ok(()), |credit| market.set_credit(now, &name, credit))?;
        key.map_or(Ok(()), |key| market.set_api_key(&name, key))
    });
    pending.done().await;
    result?;
    Ok(Json(json!({"ok": true})))
}

async fn faults(State(world): State<Arc<World>>) -> Json<Value> {
    let waiting: Vec<Value> = world.faults().waiting().iter().map(Fault::to_json).collect();
    Json(json!({"faults": waiting}))
}

async fn add_fault(State(world): State<Arc<World>>, body: axum::body::Bytes) -> Answered {
    let parsed: Value = serde_json::from_slice(&body).map_err(|_| bad("the body must be a JSON object"))?;
    let (names, _) =
        world.with(|market, _| market.accounts().iter().map(|account| account.name.clone()).collect::<Vec<_>>());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fault = Fault::parse(&parsed, &names).map_err(|error| bad(error.to_string()))?;
    let answer = fault.to_json();
    world.faults().add(fault);
    Ok(Json(answer))
}

async fn clear_faults(State(world): State<Arc<World>>) -> Json<Value> {
    world.faults().clear();
    Json(json!({"faults": []}))
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn events(
    State(world): State<Arc<World>>,
    query: Result<Query<After>, axum::extract::rejection::QueryRejection>,
) -> Answered {
    let after = query.map_err(|_| bad("after must be a whole number"))?.0.after;
    let (answer, pending) = world.with(|market, _| {
        let events: Vec<Value> = market.events().after(after).map(|event| event_json(market, event)).collect();
        json!({"next": market.events().last(), "events": events})
    });
    pending.done().await;
    Ok(Json(answer))
}

fn event_json(market: &Market, event: &Event) -> Value {
    let mut row = event.details.clone();
    for (name, value) in [
        ("seq", json!(event.seq)),
        ("at", json!(market.timestamp(event.at).to_string())),
        ("provider", json!(event.provider)),
        ("machine", json!(event.machine)),
        ("kind", json!(event.kind)),
    ] {
        row.insert(name.to_owned(), value);
    }
    Value::Object(row)
}
