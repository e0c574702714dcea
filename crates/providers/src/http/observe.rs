//! The hook for metrics.

use std::time::Duration;

/// Told about every call that was tried, once per try.
pub trait CallObserver: Send + Sync {
    /// A try has ended. Must not block.
    fn call_ended(&self, call: &ObservedCall);
}

/// Nobody looks.
impl CallObserver for () {
    fn call_ended(&self, _: &ObservedCall) {}
}

/// One try of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedCall {
    /// Provider kind.
    pub provider: &'static str,
    /// The adapter's word for what was asked.
    pub operation: &'static str,
    /// How it ended.
    pub outcome: CallOutcome,
    /// From before connecting until the end, without waiting for rate limits.
    pub elapsed: Duration,
}

/// How a try ended, few enough for a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallOutcome {
    /// 2xx.
    Ok,
    /// 429.
    RateLimited,
    /// Any other 4xx, and 3xx.
    Refused,
    /// 5xx.
    ServerError,
    /// No connection.
    NotSent,
    /// Its time was over before it was sent.
    TooLate,
    /// No answer, or none that could be read.
    NoAnswer,
}

impl CallOutcome {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RateLimited => "rate_limited",
            Self::Refused => "refused",
            Self::ServerError => "server_error",
            Self::NotSent => "not_sent",
            Self::TooLate => "too_late",
            Self::NoAnswer => "no_answer",
        }
    }

    pub(super) const fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Ok,
            429 => Self::RateLimited,
            500..=599 => Self::ServerError,
            _ => Self::Refused,
        }
    }
}
