//! Why a call has no usable answer, told apart by the one question that matters: may it have happened?

use std::error::Error as _;
use std::time::Duration;

use crate::{ProviderError, Refusal, RentOutcome};

/// A call without a whole answer. Texts hold no URL, header or body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// No connection was made: certainly nothing happened.
    #[error("could not connect: {message}")]
    NotSent {
        /// What stood in the way.
        message: String,
    },
    /// It was not sent because its time was over, or would be over before a rate limit lets it through: certainly nothing happened.
    #[error("not sent: {}", match wait { Some(_) => "the rate limit asks to wait for longer than the call may wait", None => "its time was over" })]
    TooLate {
        /// How long the rate limit would have had it wait; `None` = the time was over without that.
        wait: Option<Duration>,
    },
    /// Sent at least in part, no answer: may have happened.
    #[error("no answer: {message}")]
    Unanswered {
        /// What happened.
        message: String,
    },
    /// An answer began but did not arrive whole or was larger than the limit: may have happened.
    #[error("the answer (status {status}) could not be read: {message}")]
    Unreadable {
        /// HTTP status of its head.
        status: u16,
        /// What was wrong.
        message: String,
    },
}

impl CallFailure {
    /// False only where nothing can have happened.
    pub const fn may_have_happened(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::Unreadable { .. })
    }

    /// What it means for a call that rents: never again where it may have happened.
    pub fn as_rent_outcome(&self) -> RentOutcome {
        let refused = |why| RentOutcome::Refused { why, message: self.to_string(), leftover: None };
        match self {
            Self::NotSent { .. } => refused(Refusal::Unreachable),
            Self::TooLate { .. } => refused(Refusal::RateLimited),
            Self::Unanswered { .. } | Self::Unreadable { .. } => RentOutcome::Unknown { message: self.to_string() },
        }
    }

    /// What it means for any other call of this provider.
    pub fn as_error(&self, provider: &'static str, operation: &'static str) -> ProviderError {
        match self {
            Self::TooLate { wait: Some(wait) } => ProviderError::RateLimited { provider, retry_after: Some(*wait) },
            Self::Unreadable { status: 200..=299, .. } => {
                ProviderError::Malformed { provider, operation, message: self.to_string() }
            }
            _ => ProviderError::Unavailable { provider, operation, message: self.to_string() },
        }
    }

    /// The failure of a request that has no answer's head yet.
    pub(super) fn of_request(error: &reqwest::Error) -> Self {
        if error.is_connect() || error.is_builder() {
            // Before a connection exists nothing secret has entered the chain of causes, so its last link may be shown.
            return Self::NotSent { message: root_cause(error) };
        }
        Self::Unanswered { message: kind(error).to_owned() }
    }

    /// The failure of reading an answer's body.
    pub(super) fn of_body(status: u16, error: &reqwest::Error) -> Self {
        Self::Unreadable { status, message: kind(error).to_owned() }
    }
}

/// The HTTP client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// TLS or the system's CA files.
    #[error("cannot build the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The base URL cannot carry paths, or carries more than an address.
    #[error("the base URL must be http or https with a host and without user, query or fragment")]
    BaseUrl,
}

/// Where a body's JSON went wrong, without quoting it.
pub(crate) fn json_trouble(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "cut short",
        serde_json::error::Category::Data => "a field of the wrong type",
        _ => "not JSON, or nested too deep",
    };
    format!("{what} (line {} column {})", error.line(), error.column())
}

fn kind(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timed out"
    } else if error.is_redirect() {
        "a redirect, which is not followed"
    } else {
        "the connection was cut"
    }
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = String::from(if error.is_timeout() { "timed out" } else { "no connection" });
    while let Some(link) = cause {
        if link.source().is_none() {
            text = link.to_string();
        }
        cause = link.source();
    }
    text.chars().take(160).collect()
}
