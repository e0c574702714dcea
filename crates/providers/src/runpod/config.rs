//! What an operator sets for one RunPod account, and what RunPod's documents say about it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tradewind_core::{Clock, SecretString};

use crate::Capabilities;
use crate::http::{CallObserver, CommonLimit, RateGate};

/// Provider kind.
pub(super) const KIND: &str = "runpod";

/// The real market.
const BASE_URL: &str = "https://api.runpod.io";

/// One account on RunPod.
pub struct RunPodConfig {
    /// Name of the Provider object; goes into each offer.
    pub provider: String,
    /// API key, of an account of our own or shared with others. It must be allowed to read and write pods.
    pub api_key: SecretString,
    /// Where the API is. Anything but the real market only by an operator's flag (demo, tests): whoever is there gets the key.
    pub base_url: Url,
    /// Request limits. RunPod limits by account, so each account has a gate of its own.
    pub gate: Arc<RateGate>,
    /// Metrics.
    pub observer: Arc<dyn CallObserver>,
    /// Time limits.
    pub times: Times,
}

/// How long calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// One try of a read or of terminate.
    pub one_try: Duration,
    /// A read with all its tries and waits.
    pub read: Duration,
    /// A terminate call with all its tries and waits.
    pub terminate: Duration,
    /// The rent call, which has one try.
    pub rent: Duration,
    /// How long after a rent call its machine may still be missing from the list.
    pub unseen: Duration,
    /// How long a stream of logs is listened to at most.
    pub logs: Duration,
    /// Silence after which nothing more is expected from it.
    pub logs_quiet: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            one_try: s(15),
            read: s(40),
            terminate: s(40),
            rent: s(30),
            unseen: Duration::from_mins(2),
            logs: s(8),
            logs_quiet: s(2),
        }
    }
}

impl RunPodConfig {
    /// The real market with its documented limits, without metrics.
    pub fn new(provider: &str, api_key: SecretString, clock: &Arc<dyn Clock>) -> Self {
        Self {
            provider: provider.to_owned(),
            api_key,
            base_url: Url::parse(BASE_URL).expect("the constant is a URL"),
            gate: Arc::new(RateGate::off(Arc::clone(clock)).with_common(limit())),
            observer: Arc::new(()),
            times: Times::default(),
        }
    }
}

/// Names of operations: for metrics and messages.
pub(super) mod operation {
    pub const OFFERS: &str = "offers";
    pub const RENT: &str = "rent";
    pub const DESCRIBE: &str = "describe";
    pub const LIST: &str = "list";
    pub const TERMINATE: &str = "terminate";
    pub const ACCOUNT: &str = "account";
    pub const LOGS: &str = "logs";
    pub const CHARGES: &str = "charges";
}

/// The limit of an account over all calls, from the examples of the official document (2026-08-18): 60 in a minute, 3,000 in an hour and
/// 50,000 in a day. One call each 1.8 s and 26 at once stay below all three (59, 2,026 and 48,026). Real accounts were seen with more; a
/// window that is used up, as the headers of each answer tell, holds everything back until it is over.
pub fn limit() -> CommonLimit {
    CommonLimit { interval: Duration::from_millis(1800), burst: 26, for_endings: 8, penalty: Duration::from_secs(5) }
}

/// What RunPod can do, from its documents and from what others measured (both as of 2026-11-21, no live call).
pub(super) fn capabilities(times: &Times) -> Capabilities {
    Capabilities {
        kind: KIND,
        container: true,
        // Community machines belong to others, who may take them back at any time. RunPod's own interruptible pods ended in September 2026.
        spot: true,
        bids: false,
        // The pod's name, and a variable of its environment.
        label: true,
        // REST v2 has no idempotency key, and names are not unique.
        idempotent_rent: false,
        // A new pod can be missing from the list and 404 for seconds (runpodctl, several third parties); 30 s is called safe.
        visibility_window: times.rent + times.unseen,
        rent_limit: times.rent,
        // GPU time is billed while a pod is made and its image pulled.
        starting_costs: true,
        // Disks of a stopped pod go on being billed, some at twice the rate.
        stopped_costs: true,
        // A stopped pod stays stopped until somebody starts it.
        resumes_by_itself: false,
        self_termination: false,
        max_command_chars: super::rent::MAX_COMMAND_CHARS,
    }
}
