//! The HTTP side: paths, methods, keys, limits, faults, and one event per request.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body as HttpBody, to_bytes};
use axum::extract::{Query as Parameters, Request};
use axum::response::Response;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::answer::{Answer, Body};
use super::query::Query;
use super::schema::{Shape, must, read};
use super::{billing, catalogue, logs, pods};
use crate::faults::{Fault, When};
use crate::market::{Kind, Market, Purpose, SimTime, bits, request_details};
use crate::vast::DropConnection;
use crate::world::World;

/// Largest body in bytes (documents).
const BODY_LIMIT: usize = 102_400;
/// Seconds that a 429 which a fault asked for tells to wait.
const FAULT_RETRY_AFTER: &str = "1";

const KEYS: Shape = Shape::Object(&[must("keys", Shape::List(&Shape::PublicKey, usize::MAX))]);

/// A call, told apart by path and method.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    List,
    Create,
    Show(String),
    Change(String),
    Delete(String),
    Act(String),
    Logs(String),
    Gpus,
    Gpu(String),
    DataCenters,
    Keys,
    ReplaceKeys,
    Registries,
    Bills,
}

#[derive(Debug, PartialEq, Eq)]
enum Route {
    Call(Call),
    /// The path is served, but not with this method: those that are.
    WrongMethod(&'static str),
    Unknown,
}

fn route(method: &Method, path: &str) -> Route {
    let decoded: Option<Vec<String>> =
        path.split('/').skip(1).map(|part| Some(percent_decode_str(part).decode_utf8().ok()?.into_owned())).collect();
    let Some(parts) = decoded else { return Route::Unknown };
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let method = method.as_str();
    let (call, allowed) = match parts.as_slice() {
        ["v2", "pods"] => match method {
            "POST" => (Some(Call::Create), ""),
            _ => (only(method, "GET", Call::List), "GET, POST"),
        },
        ["v2", "pods", id] if !id.is_empty() => match method {
            "PATCH" => (Some(Call::Change((*id).to_owned())), ""),
            "DELETE" => (Some(Call::Delete((*id).to_owned())), ""),
            _ => (only(method, "GET", Call::Show((*id).to_owned())), "GET, PATCH, DELETE"),
        },
        ["v2", "pods", id, "action"] => (only(method, "POST", Call::Act((*id).to_owned())), "POST"),
        ["v2", "pods", id, "logs"] => (only(method, "GET", Call::Logs((*id).to_owned())), "GET"),
        ["v2", "catalog", "gpus"] => (only(method, "GET", Call::Gpus), "GET"),
        ["v2", "catalog", "gpus", id] if !id.is_empty() => (only(method, "GET", Call::Gpu((*id).to_owned())), "GET"),
        ["v2", "catalog", "datacenters"] => (only(method, "GET", Call::DataCenters), "GET"),
        ["v2", "account", "ssh-keys"] => match method {
            "PUT" => (Some(Call::ReplaceKeys), ""),
            _ => (only(method, "GET", Call::Keys), "GET, PUT"),
        },
        ["v2", "registries"] => (only(method, "GET", Call::Registries), "GET"),
        ["v2", "billing", "pods"] => (only(method, "GET", Call::Bills), "GET"),
        _ => return Route::Unknown,
    };
    call.map_or(Route::WrongMethod(allowed), Route::Call)
}

fn only(method: &str, wanted: &str, call: Call) -> Option<Call> {
    (method == wanted).then_some(call)
}

impl Call {
    /// The verb, for faults and events.
    fn operation(&self, body: &[u8]) -> &'static str {
        match self {
            Self::Gpus | Self::Gpu(_) | Self::DataCenters => "offers",
            Self::Create => "rent",
            Self::List => "list",
            Self::Show(_) => "describe",
            Self::Change(_) => "label",
            Self::Delete(_) => "terminate",
            Self::Act(_) => match pods::action_word(body).as_deref() {
                Some("start") => "start",
                Some("stop") => "stop",
                Some("terminate") => "terminate",
                _ => "reboot",
            },
            Self::Logs(_) => "logs",
            Self::Keys | Self::ReplaceKeys | Self::Registries => "account",
            Self::Bills => "charges",
        }
    }

    fn pod(&self) -> Option<&str> {
        match self {
            Self::Show(id) | Self::Change(id) | Self::Delete(id) | Self::Act(id) | Self::Logs(id) => Some(id),
            _ => None,
        }
    }
}

struct Server {
    world: Arc<World>,
    account: String,
}

/// A request, read.
struct Asked {
    method: Method,
    path: String,
    query: Query,
    key: Option<String>,
    last_event_id: Option<String>,
    body: Vec<u8>,
}

/// The router of one account's server.
pub fn router(world: Arc<World>, account: String) -> Router {
    let server = Arc::new(Server { world, account });
    Router::new().fallback(move |request: Request| {
        let server = server.clone();
        async move { server.handle(request).await }
    })
}

impl Server {
    async fn handle(&self, request: Request) -> Response {
        let asked = match read_request(request).await {
            Ok(asked) => asked,
            Err(answer) => return self.respond(answer, None),
        };
        let call = match route(&asked.method, &asked.path) {
            Route::Call(call) => call,
            Route::WrongMethod(allowed) => {
                let refusal = Answer::problem(405, "The requested method is not allowed for this path.");
                return self.refuse(&asked, refusal.with_header("allow", allowed));
            }
            Route::Unknown => return self.refuse(&asked, Answer::not_found("resource")),
        };
        let operation = call.operation(&asked.body);
        let ((answer, fault), pending) = self.world.with(|market, now| {
            let (answer, fault) = self.answer(market, now, &call, operation, &asked);
            self.record(market, Some(operation), &asked, call.pod(), &answer, fault.as_ref());
            (answer, fault)
        });
        pending.done().await;
        if let Some(Fault { when: When::Hang, seconds, .. }) = &fault {
            tokio::time::sleep(Duration::from_secs_f64(*seconds)).await;
        }
        self.respond(answer, fault.as_ref())
    }

    /// The key first, then the limits (which an unknown key does not use up), then what was asked.
    fn answer(
        &self,
        market: &mut Market,
        now: SimTime,
        call: &Call,
        operation: &str,
        asked: &Asked,
    ) -> (Answer, Option<Fault>) {
        if let Err(refusal) = authorise(market, &self.account, asked.key.as_deref()) {
            return (refusal, None);
        }
        let mut headers = None;
        if market.account(&self.account).is_some_and(|account| account.rate_limits) {
            let verdict = self.world.pod_limits().entry(self.account.clone()).or_default().admit(now);
            if let Some((window, seconds)) = verdict.refused {
                let refusal = Answer::problem(429, format!("rate limit exceeded for the {window} window"));
                return (
                    with_headers(refusal.with_header("retry-after", seconds.to_string()), Some(verdict.headers)),
                    None,
                );
            }
            headers = Some(verdict.headers);
        }
        let fault = self.world.faults().take(&self.account, operation);
        let error = |fault: &Fault| {
            let answer = Answer::problem(fault.status, fault.message.clone());
            if fault.status == 429 { answer.with_header("retry-after", FAULT_RETRY_AFTER) } else { answer }
        };
        let answer = match &fault {
            Some(fault) if fault.when == When::Before => error(fault),
            Some(fault) if fault.when == When::After => {
                let _ = self.perform(market, now, call, asked);
                error(fault)
            }
            _ => self.perform(market, now, call, asked).unwrap_or_else(|refusal| refusal),
        };
        (with_headers(answer, headers), fault)
    }

    fn perform(&self, market: &mut Market, now: SimTime, call: &Call, asked: &Asked) -> Result<Answer, Answer> {
        let (account, query, body) = (self.account.as_str(), &asked.query, asked.body.as_slice());
        let number = call.pod().and_then(|id| Kind::Runpod.parse_machine_id(id));
        match call {
            Call::List => pods::list(market, now, account, query),
            Call::Create => pods::create(market, now, account, body),
            Call::Show(_) => pods::show(market, now, account, number),
            Call::Change(_) => pods::change(market, now, account, number, body),
            Call::Delete(_) => pods::delete(market, now, account, number),
            Call::Act(_) => pods::act(market, now, account, number, body),
            Call::Logs(_) => {
                let pod = pods::seen(market, now, account, number)?.id;
                logs::open(&self.world, market, account, pod, query, asked.last_event_id.as_deref())
            }
            Call::Gpus => catalogue::list(market, now, account, query),
            Call::Gpu(id) => catalogue::one(market, now, account, id, query),
            Call::DataCenters => catalogue::data_centers(market, now, account, query),
            Call::Keys => Ok(self.keys(market)),
            Call::ReplaceKeys => {
                let fields = read(KEYS, body)?;
                let keys = fields["keys"].as_array().into_iter().flatten();
                let keys = keys.filter_map(|key| key.as_str().map(str::to_owned)).collect();
                market.set_ssh_keys(account, keys).map_err(|_| Answer::not_found("account"))?;
                Ok(self.keys(market))
            }
            // Stored credentials mean nothing where no image is pulled.
            Call::Registries => Ok(Answer::ok(json!({"registries": []}))),
            Call::Bills => billing::pods(market, now, account, query),
        }
    }

    fn keys(&self, market: &Market) -> Answer {
        let keys = market.account(&self.account).map(|account| account.ssh_keys.clone()).unwrap_or_default();
        Answer::ok(json!({"keys": keys}))
    }

    fn refuse(&self, asked: &Asked, answer: Answer) -> Response {
        let ((), pending) = self.world.with(|market, _| self.record(market, None, asked, None, &answer, None));
        drop(pending);
        self.respond(answer, None)
    }

    /// Never the query: a careless client puts its key there.
    fn record(
        &self,
        market: &mut Market,
        operation: Option<&str>,
        asked: &Asked,
        pod: Option<&str>,
        answer: &Answer,
        fault: Option<&Fault>,
    ) {
        let lost = fault.is_some_and(|fault| fault.when == When::Lost);
        let status = (!lost).then_some(answer.status);
        let fault = fault.map(|fault| fault.when.as_str());
        let details = request_details(operation, asked.method.as_str(), &asked.path, status, fault);
        market.record(&self.account, pod.map(str::to_owned), "request", details);
    }

    fn respond(&self, answer: Answer, fault: Option<&Fault>) -> Response {
        let when = fault.map(|fault| fault.when);
        let cut = |bytes: Vec<u8>| {
            let length = if when == Some(When::Garbled) { bytes.len() / 2 } else { bytes.len() };
            HttpBody::from(bytes[..length].to_vec())
        };
        let (body, content_type) = match answer.body {
            Body::Json(value) => (cut(value.to_string().into_bytes()), Some("application/json")),
            Body::Problem(value) => (cut(value.to_string().into_bytes()), Some("application/problem+json")),
            Body::Empty => (HttpBody::empty(), None),
            Body::Events(stream) if when == Some(When::Garbled) => {
                (cut(stream.first.into_bytes()), Some("text/event-stream"))
            }
            Body::Events(stream) => (logs::follow(Arc::clone(&self.world), *stream), Some("text/event-stream")),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let id = self
            .world
            .with(|market, now| {
                bits(market.seed(), "request", market.events().last() ^ now.as_micros(), Purpose::InstanceKey)
            })
            .0;
        for (name, value) in answer.headers.into_iter().chain([("x-request-id", format!("{id:016x}"))]) {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if when == Some(When::Lost) {
            response.extensions_mut().insert(DropConnection);
        }
        response
    }
}

fn with_headers(mut answer: Answer, headers: Option<[(&'static str, String); 2]>) -> Answer {
    answer.headers.extend(headers.into_iter().flatten());
    answer
}

/// A pod's own key works for nothing here: REST answers 403 to it (users).
fn authorise(market: &Market, account: &str, key: Option<&str>) -> Result<(), Answer> {
    let Some(key) = key else { return Err(Answer::problem(401, "missing bearer token")) };
    if market.account(account).is_some_and(|account| account.api_key == key) {
        return Ok(());
    }
    let own = market.machines().iter().any(|m| m.account == account && !m.has_ended() && m.instance_key == key);
    Err(if own { Answer::problem(403, "access denied") } else { Answer::problem(401, "invalid bearer token") })
}

async fn read_request(request: Request) -> Result<Asked, Answer> {
    let (parts, body) = request.into_parts();
    let pairs = Parameters::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
    let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let key = header(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let last_event_id = header(HeaderName::from_static("last-event-id"));
    let body = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| Answer::problem(413, format!("The request body is larger than {BODY_LIMIT} bytes.")))?;
    Ok(Asked {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: Query(pairs),
        key,
        last_event_id,
        body: body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods() {
        for (method, path, call) in [
            (Method::GET, "/v2/pods", Call::List),
            (Method::POST, "/v2/pods", Call::Create),
            (Method::DELETE, "/v2/pods/abc", Call::Delete("abc".to_owned())),
            (Method::GET, "/v2/catalog/gpus/NVIDIA%20%20A30", Call::Gpu("NVIDIA  A30".to_owned())),
        ] {
            assert_eq!(route(&method, path), Route::Call(call), "{path}");
        }
        assert_eq!(route(&Method::PUT, "/v2/pods"), Route::WrongMethod("GET, POST"));
        assert_eq!(route(&Method::POST, "/v2/pods/abc"), Route::WrongMethod("GET, PATCH, DELETE"));
        for path in ["/v2/pods/", "/v1/pods", "/v2/openapi.json", "/v2/pods/abc/def", "/v2/catalog/gpus/%ff"] {
            assert_eq!(route(&Method::GET, path), Route::Unknown, "{path}");
        }
    }
}
