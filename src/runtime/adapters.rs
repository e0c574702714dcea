//! The ports of production: real rental markets and real object stores.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_api::provider::ProviderKind;
use tradewind_checkpoints::{Location, S3Stores, Store, StoreCredentials, StoreError, Stores};
use tradewind_core::{Clock, SecretString};
use tradewind_providers::GpuProvider;
use tradewind_providers::http::{CallObserver, RateGate, SetupError, Url};
use tradewind_providers::registry::Registries;
use tradewind_providers::runpod::{self, RunPod, RunPodConfig};
use tradewind_providers::vast::{self, Times, Vast, VastConfig};

use crate::accounts::OpenAccount;
use crate::images::ImageSizes;
use crate::telemetry::{Metrics, chain, metrics};

/// Builds the real adapters.
pub struct Markets {
    clock: Arc<dyn Clock>,
    urls: BTreeMap<String, Url>,
    /// Vast.ai limits by address, so all accounts share one gate.
    vast_gate: Arc<RateGate>,
    vast_times: Times,
    runpod_times: runpod::Times,
    rate_limits: bool,
}

impl Markets {
    /// `urls` replaces the market's own address for the Providers of these names: whoever is there gets the account's key, so it is
    /// for demo and tests. Without `rate_limits` calls go out as fast as they come, which the real markets answer with bans.
    pub fn new(clock: Arc<dyn Clock>, urls: BTreeMap<String, Url>, rate_limits: bool) -> Self {
        let limits = if rate_limits { vast::limits() } else { Vec::new() };
        let vast_gate = Arc::new(RateGate::new(&limits, Arc::clone(&clock)));
        let (vast_times, runpod_times) = (Times::default(), runpod::Times::default());
        Self { clock, urls, vast_gate, vast_times, runpod_times, rate_limits }
    }

    /// How long rent calls may take, and how long after them their machines may still be missing from the account's list.
    pub fn rent_times(mut self, call: Duration, unseen: Duration) -> Self {
        (self.vast_times.rent, self.vast_times.unseen) = (call, unseen);
        (self.runpod_times.rent, self.runpod_times.unseen) = (call, unseen);
        self
    }
}

/// Calls to providers end in the metrics of this process.
struct Observed(&'static Metrics);

impl CallObserver for Observed {
    fn call_ended(&self, call: &tradewind_providers::http::ObservedCall) {
        self.0.call_ended(call);
    }
}

impl OpenAccount for Markets {
    fn open(&self, name: &str, kind: ProviderKind, key: &SecretString) -> Result<Arc<dyn GpuProvider>, String> {
        match kind {
            ProviderKind::Vast => {
                let mut config = VastConfig::new(name, key.clone(), &self.clock);
                config.gate = Arc::clone(&self.vast_gate);
                config.observer = Arc::new(Observed(metrics()));
                config.times = self.vast_times;
                if let Some(url) = self.urls.get(name) {
                    config.base_url = url.clone();
                }
                let vast = Vast::new(config, Arc::clone(&self.clock)).map_err(|error| chain(&error))?;
                Ok(Arc::new(vast))
            }
            ProviderKind::RunPod => {
                // RunPod counts the requests of an account, so each has a gate of its own.
                let mut config = RunPodConfig::new(name, key.clone(), &self.clock);
                if !self.rate_limits {
                    config.gate = Arc::new(RateGate::off(Arc::clone(&self.clock)));
                }
                config.observer = Arc::new(Observed(metrics()));
                config.times = self.runpod_times;
                if let Some(url) = self.urls.get(name) {
                    config.base_url = url.clone();
                }
                let runpod = RunPod::new(config, Arc::clone(&self.clock)).map_err(|error| chain(&error))?;
                Ok(Arc::new(runpod))
            }
        }
    }
}

/// A plan waits for a registry no longer than this, once in a while for each image: a token and two manifests are there in well under a
/// second, and whoever is slower is not worth a GPU's place in the queue.
const REGISTRY_LIMIT: Duration = Duration::from_secs(3);

/// Real registries.
pub struct ImageRegistries(Registries);

impl ImageRegistries {
    /// With `loopback`, registries on this very machine too, over plain http.
    ///
    /// # Errors
    /// If the client cannot be built.
    pub fn new(loopback: bool) -> Result<Self, SetupError> {
        Ok(Self(Registries::new(REGISTRY_LIMIT, loopback)?))
    }
}

impl ImageSizes for ImageRegistries {
    fn compressed_bytes<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<u64, String>> {
        Box::pin(async move { self.0.compressed_bytes(image).await.map_err(|unknown| unknown.to_string()) })
    }
}

/// Opens real buckets.
pub struct Buckets {
    inner: S3Stores,
    allow_http: bool,
}

impl Buckets {
    /// Without `allow_http` an endpoint must speak https, since tickets and checkpoints travel there.
    pub fn new(clock: Arc<dyn Clock>, allow_http: bool) -> Self {
        Self { inner: S3Stores::new(clock), allow_http }
    }
}

impl Stores for Buckets {
    fn open(&self, location: &Location, credentials: &StoreCredentials) -> Result<Arc<dyn Store>, StoreError> {
        if !self.allow_http && credentials.endpoint().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            let problem =
                "the endpoint must begin with https:// (the operator was started without --allow-http-stores)"
                    .to_owned();
            return Err(StoreError::Malformed { key: location.to_string(), problem });
        }
        self.inner.open(location, credentials)
    }
}

#[cfg(test)]
mod tests {
    use tradewind_core::SystemClock;

    use super::*;

    #[test]
    fn plain_http_needs_the_operators_consent() {
        // An error says that a provider is installed already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let location: Location = "s3://bucket/x/".parse().unwrap();
        let keys = StoreCredentials::new("id", "key").with_endpoint("http://127.0.0.1:9").unwrap();
        let open = |allow| Buckets::new(Arc::new(SystemClock::default()), allow).open(&location, &keys).map(drop);
        assert!(open(false).unwrap_err().to_string().contains("--allow-http-stores"));
        assert_eq!(open(true), Ok(()));
    }

    #[test]
    fn a_base_url_with_a_path_or_password_is_no_market() {
        for kind in [ProviderKind::Vast, ProviderKind::RunPod] {
            let open = |url: &str| {
                let urls = [("p".to_owned(), Url::parse(url).unwrap())].into();
                let markets = Markets::new(Arc::new(SystemClock::default()), urls, true);
                markets.open("p", kind, &SecretString::from("k".to_owned())).map(drop)
            };
            assert_eq!(open("http://127.0.0.1:9"), Ok(()));
            let refused = open("http://user:hunter2@127.0.0.1:9").unwrap_err();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
