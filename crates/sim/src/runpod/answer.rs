//! Answers in RunPod's shapes. Errors are problem documents (RFC 9457) without a machine code.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::logs::Stream;

/// What goes back over the wire.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Body,
    /// Headers beside the content type.
    pub headers: Vec<(&'static str, String)>,
}

/// A body.
#[derive(Debug)]
pub enum Body {
    /// `application/json`.
    Json(Value),
    /// `application/problem+json`.
    Problem(Value),
    /// No body, with 204.
    Empty,
    /// `text/event-stream`: first what there is already, then what comes.
    Events(Box<Stream>),
}

impl Answer {
    const fn new(status: u16, body: Body) -> Self {
        Self { status, body, headers: Vec::new() }
    }

    /// JSON.
    pub const fn json(status: u16, value: Value) -> Self {
        Self::new(status, Body::Json(value))
    }

    /// 200 with JSON.
    pub const fn ok(value: Value) -> Self {
        Self::json(200, value)
    }

    /// 204.
    pub const fn empty() -> Self {
        Self::new(204, Body::Empty)
    }

    /// A stream of log lines.
    pub fn events(stream: Stream) -> Self {
        Self::new(200, Body::Events(Box::new(stream)))
    }

    /// An error with its sentence.
    pub fn problem(status: u16, detail: impl Into<String>) -> Self {
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
        Self::new(status, Body::Problem(json!({"title": title, "status": status, "detail": detail.into()})))
    }

    /// 422: the request does not fit the schema; each slip is named.
    pub fn unprocessable(errors: &[String]) -> Self {
        let mut answer = Self::problem(422, "Request validation failed.");
        if let Body::Problem(Value::Object(fields)) = &mut answer.body {
            fields.insert("errors".to_owned(), json!(errors));
        }
        answer
    }

    /// 404.
    pub fn not_found(what: &str) -> Self {
        Self::problem(404, format!("{what} not found"))
    }

    /// 400 for lack of capacity. Nothing but the text tells it from a broken rule.
    pub fn no_capacity() -> Self {
        Self::problem(
            400,
            "There are no longer any instances available with the requested specifications. Please refresh and try again.",
        )
    }

    /// The same with a header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
