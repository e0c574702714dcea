//! The HTTP side: paths, keys, limits, faults, and one event per request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body as HttpBody, to_bytes};
use axum::extract::{Query, Request};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::answer::{Answer, Body};
use super::{billing, list, manage, search};
use crate::faults::{Fault, When};
use crate::market::{Market, SimTime, request_details};
use crate::world::{Fetched, World};

/// Largest body read, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Marks an answer that must not be sent: the connection closes instead.
#[derive(Debug, Clone, Copy)]
pub struct DropConnection;

/// A call, told apart by method and path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Search,
    SearchAsks,
    Create(u64),
    ListV1,
    ListV0,
    Filters,
    Show(u64),
    Manage(u64),
    Destroy(u64),
    Bid(u64),
    Reboot(u64),
    Recycle(u64),
    Logs(u64),
    Command(u64),
    User,
    Charges,
    Result(String),
}

/// What a route says besides a call.
enum Route {
    Call(Call),
    BadId,
    Unknown,
}

fn route(method: &Method, path: &str) -> Route {
    let segments: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').skip(1).collect();
    let with_id = |id: &str, call: fn(u64) -> Call| id.parse().map_or(Route::BadId, |id| Route::Call(call(id)));
    let call = match (method.as_str(), segments.as_slice()) {
        ("POST", ["api", "v0", "bundles"]) => Call::Search,
        ("PUT", ["api", "v0", "search", "asks"]) => Call::SearchAsks,
        ("PUT", ["api", "v0", "asks", id]) => return with_id(id, Call::Create),
        ("GET", ["api", "v1", "instances"]) => Call::ListV1,
        ("GET", ["api", "v0", "instances"]) => Call::ListV0,
        ("GET", ["api", "v0", "instances", "filters"]) => Call::Filters,
        ("GET", ["api", "v0", "instances", id]) => return with_id(id, Call::Show),
        ("PUT", ["api", "v0", "instances", id]) => return with_id(id, Call::Manage),
        ("DELETE", ["api", "v0", "instances", id]) => return with_id(id, Call::Destroy),
        ("PUT", ["api", "v0", "instances", "bid_price", id]) => return with_id(id, Call::Bid),
        ("PUT", ["api", "v0", "instances", "reboot", id]) => return with_id(id, Call::Reboot),
        ("PUT", ["api", "v0", "instances", "recycle", id]) => return with_id(id, Call::Recycle),
        ("PUT", ["api", "v0", "instances", "request_logs", id]) => return with_id(id, Call::Logs),
        ("PUT", ["api", "v0", "instances", "command", id]) => return with_id(id, Call::Command),
        ("GET", ["api", "v0", "users", "current"]) => Call::User,
        ("GET", ["api", "v0", "charges"]) => Call::Charges,
        ("GET", ["results", token]) => Call::Result((*token).to_owned()),
        _ => return Route::Unknown,
    };
    Route::Call(call)
}

impl Call {
    /// The verb, for faults and events.
    fn operation(&self, body: &[u8]) -> &'static str {
        match self {
            Self::Search | Self::SearchAsks => "offers",
            Self::Create(_) => "rent",
            Self::ListV1 | Self::ListV0 | Self::Filters => "list",
            Self::Show(_) => "describe",
            Self::Manage(_) => match manage::wish(body) {
                manage::Wish::Start => "start",
                manage::Wish::Stop => "stop",
                manage::Wish::Label(_) | manage::Wish::Bad(_) => "label",
            },
            Self::Destroy(_) => "terminate",
            Self::Bid(_) => "bid",
            Self::Reboot(_) => "reboot",
            Self::Recycle(_) => "recycle",
            Self::Logs(_) | Self::Result(_) => "logs",
            Self::Command(_) => "command",
            Self::User => "account",
            Self::Charges => "charges",
        }
    }

    /// The endpoint whose request limit counts.
    const fn endpoint(&self) -> &'static str {
        match self {
            Self::Search | Self::SearchAsks => "search",
            Self::Create(_) => "create",
            Self::ListV1 | Self::ListV0 => "list",
            Self::Show(_) => "show",
            Self::Manage(_) => "manage",
            Self::Destroy(_) => "destroy",
            Self::Bid(_) => "bid",
            Self::Reboot(_) => "reboot",
            Self::Recycle(_) => "recycle",
            Self::Command(_) => "command",
            Self::Charges => "charges",
            Self::Filters | Self::Logs(_) | Self::User | Self::Result(_) => "unlimited",
        }
    }

    const fn machine(&self) -> Option<u64> {
        match self {
            Self::Show(id)
            | Self::Manage(id)
            | Self::Destroy(id)
            | Self::Bid(id)
            | Self::Reboot(id)
            | Self::Recycle(id)
            | Self::Logs(id)
            | Self::Command(id) => Some(*id),
            _ => None,
        }
    }

    /// What a machine's own key may do: read, start, stop and destroy that machine (users, 2026-09-20).
    fn is_for_the_machine_itself(&self, id: u64) -> bool {
        matches!(self, Self::Show(own) | Self::Manage(own) | Self::Destroy(own) if *own == id)
    }
}

struct Server {
    world: Arc<World>,
    account: String,
    url: String,
}

/// A request, read.
struct Asked {
    method: Method,
    path: String,
    parameters: BTreeMap<String, String>,
    key: Option<String>,
    body: Vec<u8>,
}

/// The router of one account's server, reachable under `url`.
pub fn router(world: Arc<World>, account: String, url: String) -> Router {
    let server = Arc::new(Server { world, account, url });
    Router::new().fallback(move |request: Request| {
        let server = server.clone();
        async move { server.handle(request).await }
    })
}

impl Server {
    async fn handle(&self, request: Request) -> Response {
        let asked = match read(request).await {
            Ok(asked) => asked,
            Err(answer) => return respond(&answer, None),
        };
        let call = match route(&asked.method, &asked.path) {
            Route::Call(call) => call,
            Route::BadId => {
                return self.refuse(&asked, Answer::invalid_args("error 400/1782: Invalid args: invalid id"));
            }
            Route::Unknown => return self.refuse(&asked, Answer::no_such_path()),
        };
        if let Call::Result(token) = &call {
            return respond(&self.fetch(token), None);
        }
        let operation = call.operation(&asked.body);
        let ((answer, fault), pending) = self.world.with(|market, now| {
            let (answer, fault) = self.answer(market, now, &call, operation, &asked);
            self.record(market, Some(operation), &asked, call.machine(), Some(&answer), fault.as_ref());
            (answer, fault)
        });
        pending.done().await;
        if let Some(Fault { when: When::Hang, seconds, .. }) = &fault {
            tokio::time::sleep(Duration::from_secs_f64(*seconds)).await;
        }
        respond(&answer, fault.as_ref())
    }

    fn answer(
        &self,
        market: &mut Market,
        now: SimTime,
        call: &Call,
        operation: &str,
        asked: &Asked,
    ) -> (Answer, Option<Fault>) {
        if let Err(refusal) = authorise(market, &self.account, call, asked.key.as_deref()) {
            return (refusal, None);
        }
        let limited = market.account(&self.account).is_some_and(|account| account.rate_limits);
        if limited
            && let Some(early) =
                self.world.limits().entry(self.account.clone()).or_default().admit(now, call.endpoint())
        {
            return (early, None);
        }
        let fault = self.world.faults().take(&self.account, operation);
        let error = |fault: &Fault| Answer::error(fault.status, "server_error", fault.message.clone());
        match &fault {
            Some(f) if f.when == When::Before => (error(f), fault),
            Some(f) if f.when == When::After => {
                self.perform(market, now, call, asked);
                (error(f), fault)
            }
            _ => (self.perform(market, now, call, asked), fault),
        }
    }

    fn perform(&self, market: &mut Market, now: SimTime, call: &Call, asked: &Asked) -> Answer {
        let (account, body) = (self.account.as_str(), asked.body.as_slice());
        let parsed = || serde_json::from_slice::<Value>(body).ok();
        let no_json = || Answer::error(400, "invalid_request", "Invalid json body");
        match call {
            Call::Search => parsed().map_or_else(no_json, |q| search::search(market, now, account, &q)),
            Call::SearchAsks => parsed().map_or_else(no_json, |q| search::search(market, now, account, &q["q"])),
            Call::Create(ask) => manage::create(market, now, account, *ask, body),
            Call::ListV1 => list::list_v1(market, now, account, &asked.parameters),
            Call::ListV0 => list::list_v0(market, now, account),
            Call::Filters => list::filters(market, now, account),
            Call::Show(id) => list::show(market, now, account, *id),
            Call::Manage(id) => manage::manage(market, now, account, *id, body),
            Call::Destroy(id) => manage::destroy(market, now, account, *id),
            Call::Bid(id) => manage::bid(market, now, account, *id, body),
            Call::Reboot(id) => manage::reboot(market, now, account, *id, false),
            Call::Recycle(id) => manage::reboot(market, now, account, *id, true),
            Call::Logs(id) => super::inside::logs(&self.world, market, account, *id, body, &self.url),
            Call::Command(id) => super::inside::command(&self.world, market, account, *id, body, &self.url),
            Call::User => billing::user(market, now, account),
            Call::Charges => billing::charges(market, now, account, &asked.parameters),
            Call::Result(_) => Answer::no_such_path(),
        }
    }

    fn fetch(&self, token: &str) -> Answer {
        match self.world.fetch_result(token) {
            Fetched::Unknown => Answer { status: 404, body: Body::Text("no such key".to_owned()) },
            Fetched::NotYet => Answer { status: 403, body: Body::Text("not there yet".to_owned()) },
            Fetched::Ready(text) => Answer { status: 200, body: Body::Text(text) },
        }
    }

    fn refuse(&self, asked: &Asked, answer: Answer) -> Response {
        let ((), pending) = self.world.with(|market, _| self.record(market, None, asked, None, Some(&answer), None));
        drop(pending);
        respond(&answer, None)
    }

    /// Never the query: a careless client puts its key there.
    fn record(
        &self,
        market: &mut Market,
        operation: Option<&str>,
        asked: &Asked,
        machine: Option<u64>,
        answer: Option<&Answer>,
        fault: Option<&Fault>,
    ) {
        let lost = fault.is_some_and(|fault| fault.when == When::Lost);
        let status = answer.filter(|_| !lost).map(|answer| answer.status);
        let fault = fault.map(|fault| fault.when.as_str());
        let details = request_details(operation, asked.method.as_str(), &asked.path, status, fault);
        market.record(&self.account, machine.map(|id| id.to_string()), "request", details);
    }
}

/// Keys. The offer search needs none; `charges` has answers of its own (official documents).
fn authorise(market: &Market, account: &str, call: &Call, key: Option<&str>) -> Result<(), Answer> {
    let wrong = |status| Err(Answer::error(status, "auth_error", "Invalid user key"));
    let Some(key) = key else {
        return match call {
            Call::Search => Ok(()),
            Call::Charges => Err(Answer::error(403, "auth_error", "This action requires login.")),
            _ => Err(Answer::error(401, "auth_error", "This action requires login.")),
        };
    };
    if market.account(account).is_some_and(|account| account.api_key == key) {
        return Ok(());
    }
    let own = market.machines().iter().find(|m| m.account == account && !m.has_ended() && m.instance_key == key);
    match own {
        Some(machine) if call.is_for_the_machine_itself(machine.id) => Ok(()),
        Some(_) => Err(Answer::error(401, "auth_error", "This key has no access to this route.")),
        None => match call {
            Call::Search | Call::SearchAsks | Call::Charges => wrong(404),
            _ => wrong(401),
        },
    }
}

async fn read(request: Request) -> Result<Asked, Answer> {
    let (parts, body) = request.into_parts();
    let parameters =
        Query::<BTreeMap<String, String>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
    let key = parts
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .map(str::to_owned);
    let body =
        to_bytes(body, BODY_LIMIT).await.map_err(|_| Answer::error(413, "invalid_args", "The body is too large."))?;
    Ok(Asked { method: parts.method, path: parts.uri.path().to_owned(), parameters, key, body: body.to_vec() })
}

fn respond(answer: &Answer, fault: Option<&Fault>) -> Response {
    let (mut bytes, content_type) = answer.bytes();
    let when = fault.map(|fault| fault.when);
    if when == Some(When::Garbled) {
        bytes.truncate(bytes.len() / 2);
    }
    let mut response = Response::new(HttpBody::new(http_body_util::Full::from(bytes).map_err(|never| match never {})));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if when == Some(When::Lost) {
        response.extensions_mut().insert(DropConnection);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_slash_is_optional_everywhere() {
        for (method, path, call) in [
            (Method::POST, "/api/v0/bundles", Call::Search),
            (Method::PUT, "/api/v0/asks/7", Call::Create(7)),
            (Method::GET, "/api/v1/instances", Call::ListV1),
            (Method::GET, "/api/v0/instances/filters", Call::Filters),
            (Method::DELETE, "/api/v0/instances/9", Call::Destroy(9)),
            (Method::PUT, "/api/v0/instances/bid_price/9", Call::Bid(9)),
        ] {
            for path in [path.to_owned(), format!("{path}/")] {
                assert!(matches!(route(&method, &path), Route::Call(found) if found == call), "{path}");
            }
        }
        assert!(matches!(route(&Method::GET, "/api/v0/instances/nine/"), Route::BadId));
        assert!(matches!(route(&Method::GET, "/api/v0/templates/"), Route::Unknown));
    }
}
