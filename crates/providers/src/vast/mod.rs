//! Vast.ai: containers on other people's machines, on demand and by bid.
//!
//! Facts are from the official endpoint files, documents and client as of August to November 2026; no live call was made. Quirks that
//! cost money are named where they are handled: `error.rs` (a refused rental that leaves a machine), `state.rs` (what outbid looks like),
//! `client.rs` (gone is 200 with null).

mod charges;
mod client;
mod config;
mod convert;
mod error;
mod logs;
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

pub use config::{Times, VastConfig, limits};

use crate::http::{Http, HttpSettings, LOGS_WITHIN, Redactor, SetupError, within};
use crate::{
    Account, Capabilities, Charge, GpuProvider, Machine, OfferQuery, ProviderResult, RentOutcome, RentRequest, SelfEnd,
};

/// One account on Vast.ai.
pub struct Vast {
    capabilities: Capabilities,
    provider: String,
    api_key: SecretString,
    http: Http,
    redactor: Redactor,
    clock: Arc<dyn Clock>,
    times: Times,
    search_limit: u32,
    memory: state::Memory,
    dropped_offers: AtomicU64,
}

impl Vast {
    /// Builds the adapter; calls nobody.
    pub fn new(config: VastConfig, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let settings = HttpSettings {
            provider: config::KIND,
            base_url: config.base_url,
            gate: config.gate,
            observer: config.observer,
            clock: Arc::clone(&clock),
        };
        Ok(Self {
            capabilities: config::capabilities(&config.times),
            provider: config.provider,
            redactor: Redactor::default().with(config.api_key.expose_secret()),
            api_key: config.api_key,
            http: Http::new(settings)?,
            clock,
            times: config.times,
            search_limit: config.search_limit,
            memory: state::Memory::default(),
            dropped_offers: AtomicU64::new(0),
        })
    }

    /// How many offers were left out since the start because they could not be read or cannot be rented.
    pub fn dropped_offers(&self) -> u64 {
        self.dropped_offers.load(Ordering::Relaxed)
    }
}

impl GpuProvider for Vast {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn offers<'a>(&'a self, query: &'a OfferQuery) -> BoxFuture<'a, ProviderResult<Vec<Offer>>> {
        Box::pin(self.search_offers(query))
    }

    fn rent<'a>(&'a self, request: &'a RentRequest, not_after: Duration) -> BoxFuture<'a, RentOutcome> {
        Box::pin(self.rent_machine(request, not_after))
    }

    fn describe<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<Option<Machine>>> {
        Box::pin(self.show(id))
    }

    fn list_owned(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>> {
        Box::pin(self.list())
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ProviderResult<()>> {
        Box::pin(self.destroy(id))
    }

    fn account(&self) -> BoxFuture<'_, ProviderResult<Account>> {
        Box::pin(self.current_user())
    }

    fn logs<'a>(&'a self, id: &'a str, lines: u32) -> BoxFuture<'a, ProviderResult<Option<String>>> {
        Box::pin(within(config::KIND, config::operation::LOGS, LOGS_WITHIN, self.fetch_logs(id, lines)))
    }

    fn charges(&self, since: Timestamp) -> BoxFuture<'_, ProviderResult<Option<Vec<Charge>>>> {
        Box::pin(self.charged_since(since))
    }

    fn self_end(&self, id: &str) -> Option<SelfEnd> {
        self.end_from_within(id)
    }
}
