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

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
