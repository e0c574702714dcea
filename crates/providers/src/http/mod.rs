//! What all adapters share: one HTTP client with limits, calls whose secrets cannot leak into texts, the question "may it have
//! happened?" answered for every failure, retries only where they are safe, and rate limits with endings first.
//!
//! It leaves to adapters what an answer means: any status that arrived whole is an [`Answer`].

mod call;
mod failure;
mod gate;
mod observe;
mod redact;

pub use call::{Answer, Call, Http, HttpSettings};
pub(crate) use failure::json_trouble;
pub use failure::{CallFailure, SetupError};
pub use gate::{CommonLimit, EndpointLimit, Lane, RateGate};
pub use observe::{CallObserver, CallOutcome, ObservedCall};
pub use redact::Redactor;
pub use reqwest::{Method, Url};

use std::time::Duration;

use crate::{ProviderError, ProviderResult};

/// How long the last lines of a machine may take to be told: Vast.ai fills the file that it points to within about ten seconds, and
/// whoever asks waits with the end of a machine that costs money.
pub(crate) const LOGS_WITHIN: Duration = Duration::from_secs(20);

/// The result of several calls, if it is there within `limit`.
pub(crate) async fn within<T>(
    provider: &'static str,
    operation: &'static str,
    limit: Duration,
    calls: impl Future<Output = ProviderResult<T>>,
) -> ProviderResult<T> {
    let late =
        || ProviderError::Unavailable { provider, operation, message: format!("not within {} s", limit.as_secs()) };
    tokio::time::timeout(limit, calls).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
