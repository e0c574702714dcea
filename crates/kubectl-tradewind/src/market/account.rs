//! A market asked over the adapter that the operator uses, with the key that the provider's own tools use.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;
use tradewind_core::{Clock, Offer, SecretString};
use tradewind_providers::http::{CallObserver, CallOutcome, ObservedCall, Url};
use tradewind_providers::runpod::{RunPod, RunPodConfig};
use tradewind_providers::vast::{Vast, VastConfig};
use tradewind_providers::{GpuProvider as _, OfferQuery, ProviderError};

use super::Market;
use crate::{Trouble, text};

/// Markets that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vast,
    RunPod,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Vast, Self::RunPod];

    const fn word(self) -> &'static str {
        match self {
            Self::Vast => "vast",
            Self::RunPod => "runpod",
        }
    }

    /// Where the provider's own tools look for the key: `vastai` (github vast-ai/vast-cli) and `runpodctl` (github runpod/runpodctl).
    const fn key_name(self) -> &'static str {
        match self {
            Self::Vast => "VAST_API_KEY",
            Self::RunPod => "RUNPOD_API_KEY",
        }
    }
}

/// A market to ask, and where it is if not where it always is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    kind: Kind,
    url: Option<Url>,
}

impl Asked {
    /// Reads `TYPE[=URL]`.
    pub fn parse(written: &str) -> Result<Self, String> {
        let (word, url) = match written.split_once('=') {
            Some((word, url)) => (word, Some(url)),
            None => (written, None),
        };
        let known = || Kind::ALL.map(Kind::word);
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word().eq_ignore_ascii_case(word)) else {
            let near = text::nearest(&word.to_ascii_lowercase(), known());
            let meant = near.first().map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(format!("this version knows {}{meant}", known().join(" and ")));
        };
        // The URL itself is not repeated: it may hold a key.
        let url = url.map(Url::parse).transpose().map_err(|error| format!("what stands after = is no URL: {error}"))?;
        Ok(Self { kind, url })
    }

    /// What this market offers now.
    pub async fn offers(&self, query: &OfferQuery, clock: &Arc<dyn Clock>) -> Result<Market, Trouble> {
        let (word, name) = (self.kind.word(), self.kind.key_name());
        let Some(key) = key(name) else {
            return Err(Trouble::Usage(format!(
                "--provider {word} needs the key of an account in the environment variable {name} (a simulator has its keys in its market file)"
            )));
        };
        let unreached = Arc::new(Unreached::default());
        let (offers, dropped) = match self.kind {
            Kind::Vast => {
                let mut config = VastConfig::new(word, key, clock);
                config.base_url = self.url.clone().unwrap_or(config.base_url);
                config.observer = unreached.clone();
                let market = Vast::new(config, Arc::clone(clock)).map_err(|error| unusable(word, &error))?;
                (unreached.or(market.offers(query)).await, market.dropped_offers())
            }
            Kind::RunPod => {
                let mut config = RunPodConfig::new(word, key, clock);
                config.base_url = self.url.clone().unwrap_or(config.base_url);
                config.observer = unreached.clone();
                let market = RunPod::new(config, Arc::clone(clock)).map_err(|error| unusable(word, &error))?;
                (unreached.or(market.offers(query)).await, market.dropped_offers())
            }
        };
        let Some(offers) = offers else {
            return Err(Trouble::Market(format!("{word} cannot be reached: nobody takes the connection")));
        };
        let offers = offers.map_err(|error| no_answer(name, &error))?;
        let mut market = Market { offers, ..Market::default() };
        if dropped > 0 {
            let count = u32::try_from(dropped).unwrap_or(u32::MAX);
            market.leave_out(format!("left out by {word}'s adapter: unreadable, or not to be rented"), count);
        }
        Ok(market)
    }
}

/// The adapters try for most of a minute to reach a market, as an operator should. A person is told at once.
#[derive(Default)]
struct Unreached {
    failures: AtomicU32,
    enough: Notify,
}

/// Connections that fail until a market counts as not to be reached.
const FAILURES: u32 = 2;

impl CallObserver for Unreached {
    fn call_ended(&self, call: &ObservedCall) {
        if call.outcome == CallOutcome::NotSent && self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.enough.notify_one();
        }
    }
}

impl Unreached {
    /// The answer, or nothing once it is clear that there will be none.
    async fn or(
        &self,
        answer: impl Future<Output = Result<Vec<Offer>, ProviderError>>,
    ) -> Option<Result<Vec<Offer>, ProviderError>> {
        tokio::select! {
            biased;
            () = self.enough.notified() => None,
            answer = answer => Some(answer),
        }
    }
}

fn unusable(word: &str, error: &dyn Error) -> Trouble {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    Trouble::Usage(format!("--provider {word}: {error}{cause}"))
}

/// The adapters' errors carry neither keys nor URLs.
fn no_answer(key_name: &str, error: &ProviderError) -> Trouble {
    let advice = match error {
        ProviderError::Unauthorised { .. } => format!(" (the key is the one in {key_name})"),
        ProviderError::RateLimited { .. } => {
            "; try again in a minute, and keep the list: kubectl tradewind offers ... -o json > offers.json".to_owned()
        }
        _ => String::new(),
    };
    Trouble::Market(format!("{error}{advice}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "keys of accounts are given in the environment, as to the providers' own tools"
)]
fn key(name: &str) -> Option<SecretString> {
    let key = std::env::var(name).ok()?;
    let key = key.trim();
    (!key.is_empty()).then(|| SecretString::from(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markets_are_named_by_their_kind() {
        let asked = |text: &str| Asked::parse(text).map(|asked| (asked.kind, asked.url.map(|url| url.to_string())));
        assert_eq!(asked("vast"), Ok((Kind::Vast, None)));
        assert_eq!(
            asked("RunPod=http://127.0.0.1:9001"),
            Ok((Kind::RunPod, Some("http://127.0.0.1:9001/".to_owned())))
        );
        assert!(asked("vats").is_err_and(|error| error.contains("did you mean vast?")));
        assert!(asked("lambda").is_err_and(|error| error.contains("knows vast and runpod")));
        assert!(asked("vast=no url").is_err_and(|error| !error.contains("no url\"")));
    }
}
