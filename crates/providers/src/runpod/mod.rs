//! RunPod: containers in its own data centres (Secure) and on other people's machines (Community), by REST v2.
//!
//! Facts are from the official API document, documentation and clients as of August to November 2026; no live call was made. Quirks that
//! cost money are named where they are handled: `error.rs` (no capacity is 400 with a sentence), `state.rs` (running before anything
//! runs), `rent.rs` (a name is not unique), `client.rs` (a list may have pages that nobody asked for).

mod client;
mod config;
mod convert;
mod error;
mod logs;
mod money;
mod rent;
mod state;
mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tradewind_core::{Clock, ExposeSecret, Offer, SecretString};

pub use config::{RunPodConfig, Times, limit};

use crate::http::{Http, HttpSettings, LOGS_WITHIN, Redactor, SetupError, within};
use crate::{
    Account, Capabilities, Charge, GpuProvider, Machine, OfferQuery, ProviderResult, RentOutcome, RentRequest, SelfEnd,
};

/// One account on RunPod.
pub struct RunPod {
    capabilities: Capabilities,
    provider: String,
    api_key: SecretString,
    http: Http,
    redactor: Redactor,
    times: Times,
    memory: state::Memory,
    dropped_offers: AtomicU64,
}

impl RunPod {
    /// Builds the adapter; calls nobody.
    pub fn new(config: RunPodConfig, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let settings = HttpSettings {
            provider: config::KIND,
            base_url: config.base_url,
            gate: config.gate,
            observer: config.observer,
            clock,
        };
        Ok(Self {
            capabilities: config::capabilities(&config.times),
            provider: config.provider,
            redactor: Redactor::default().with(config.api_key.expose_secret()),
            api_key: config.api_key,
            http: Http::new(settings)?,
            times: config.times,
            memory: state::Memory::default(),
            dropped_offers: AtomicU64::new(0),
        })
    }

    /// How many rows of the catalogue were left out since the start because they could not be read or cannot be rented.
    pub fn dropped_offers(&self) -> u64 {
        self.dropped_offers.load(Ordering::Relaxed)
    }
}

impl GpuProvider for RunPod {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<Offer>>> {
        Box::pin(self.read_catalogue(query))
    }

    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome> {
        Box::pin(self.create_pod(request, not_after))
    }

    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<Machine>>> {
        Box::pin(self.show(id))
    }

    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>> {
        Box::pin(self.list())
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>> {
        Box::pin(self.delete(id))
    }

    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>> {
        Box::pin(self.check_key())
    }

    fn logs<'a>(&'a self, id: &'a str, lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>> {
        Box::pin(within(config::KIND, config::operation::LOGS, LOGS_WITHIN, self.read_logs(id, lines)))
    }

    fn charges(&self, since: Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>> {
        Box::pin(self.billed_since(since))
    }

    fn self_end(&self, _id: &str) -> Option<SelfEnd> {
        // The key that RunPod puts into a pod is refused (403) by REST v2; it works for GraphQL alone, which is on its way out.
        None
    }
}
