//! Answers in Vast.ai's shapes.

use serde_json::{Value, json};

/// What goes back over the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Body,
}

/// A body.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// `application/json`, without a charset: the official client refuses any other spelling.
    Json(Value),
    /// `text/plain`.
    Text(String),
}

impl Answer {
    /// 200 with JSON.
    pub const fn ok(value: Value) -> Self {
        Self { status: 200, body: Body::Json(value) }
    }

    /// 200 `{"success": true}`.
    pub fn success() -> Self {
        Self::ok(json!({"success": true}))
    }

    /// `{"success": false, "error", "msg"}`.
    pub fn error(status: u16, error: &str, msg: impl Into<String>) -> Self {
        Self { status, body: Body::Json(json!({"success": false, "error": error, "msg": msg.into()})) }
    }

    /// 400 `invalid_args`.
    pub fn invalid_args(msg: impl Into<String>) -> Self {
        Self::error(400, "invalid_args", msg)
    }

    /// 404 for a path that Vast.ai does not have.
    pub fn no_such_path() -> Self {
        Self::error(404, "not_found", "Not Found")
    }

    /// The answer to a machine id that does not exist, where the call changes something.
    pub fn no_such_instance() -> Self {
        Self::error(404, "no_such_instance", "Instance with that ID does not exist.")
    }

    /// The same with further fields.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        if let Body::Json(Value::Object(object)) = &mut self.body {
            object.insert(name.to_owned(), value);
        }
        self
    }

    /// Bytes and content type.
    pub fn bytes(&self) -> (Vec<u8>, &'static str) {
        match &self.body {
            Body::Json(value) => (value.to_string().into_bytes(), "application/json"),
            Body::Text(text) => (text.clone().into_bytes(), "text/plain; charset=utf-8"),
        }
    }
}
