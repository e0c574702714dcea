//! What an operator sets for one Vast.ai account, and what the market's documents say about it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tradewind_core::{Clock, SecretString};

use crate::Capabilities;
use crate::http::{CallObserver, EndpointLimit, RateGate};

/// Provider kind.
pub(super) const KIND: &str = "vast";

/// The real market.
const BASE_URL: &str = "https://console.vast.ai";

/// One account on Vast.ai.
pub struct VastConfig {
    /// Name of the Provider object; goes into each offer.
    pub provider: String,
    /// API key. Needs the permissions `misc`, `instance_read`, `instance_write` and `user_read`, and
    /// `billing_read` for charges.
    pub api_key: SecretString,
    /// Where the API is. Anything but the real market only by an operator's flag (demo, tests): whoever is there gets the key.
    pub base_url: Url,
    /// Request limits. Vast.ai limits by address as well as by account, so all accounts of an operator share one gate.
    pub gate: Arc<RateGate>,
    /// Metrics.
    pub observer: Arc<dyn CallObserver>,
    /// How many offers one search may bring.
    pub search_limit: u32,
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
}

impl Default for Times {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { one_try: s(15), read: s(40), terminate: s(40), rent: s(30), unseen: Duration::from_mins(2) }
    }
}

impl VastConfig {
    /// The real market with its documented limits, without metrics.
    pub fn new(provider: &str, api_key: SecretString, clock: &Arc<dyn Clock>) -> Self {
        Self {
            provider: provider.to_owned(),
            api_key,
            base_url: Url::parse(BASE_URL).expect("the constant is a URL"),
            gate: Arc::new(RateGate::new(&limits(), Arc::clone(clock))),
            observer: Arc::new(()),
            search_limit: 2000,
            times: Times::default(),
        }
    }
}

/// Names of operations: for limits, metrics and messages.
pub(super) mod operation {
    pub const OFFERS: &str = "offers";
    pub const RENT: &str = "rent";
    pub const DESCRIBE: &str = "describe";
    pub const LIST: &str = "list";
    pub const TERMINATE: &str = "terminate";
    pub const ACCOUNT: &str = "account";
    pub const LOGS: &str = "logs";
    pub const LOG_FILE: &str = "log_file";
    pub const CHARGES: &str = "charges";
}

/// The documented limits: minimum intervals per endpoint from `x-rate-limit` of the official endpoint files (github vast-ai/docs,
/// 2026-08-07), with a tenth on top because requests do not arrive as evenly as they leave. Search allows ten a minute: two at once (one
/// look at the market is two searches) and one each 7.5 s stay below that in any minute. Intervals of log and account calls are not
/// documented; theirs are those of show.
pub fn limits() -> Vec<EndpointLimit> {
    let rule = |operation, millis, burst, penalty_s| EndpointLimit {
        operation,
        interval: Duration::from_millis(millis),
        burst: NonZeroU32::new(burst).expect("bursts are above zero"),
        penalty: Duration::from_secs(penalty_s),
    };
    vec![
        rule(operation::OFFERS, 7500, 2, 10),
        rule(operation::RENT, 4950, 1, 12),
        rule(operation::DESCRIBE, 2200, 1, 3),
        rule(operation::LIST, 1100, 1, 2),
        rule(operation::TERMINATE, 3300, 1, 4),
        rule(operation::ACCOUNT, 2200, 1, 3),
        rule(operation::LOGS, 2200, 1, 3),
        rule(operation::CHARGES, 1100, 1, 2),
    ]
}

/// What Vast.ai can do, from its documents and from what users measured (both as of 2026-11-21, no live call).
pub(super) fn capabilities(times: &Times) -> Capabilities {
    Capabilities {
        kind: KIND,
        container: true,
        // `type: bid` offers, called interruptible in docs.vast.ai.
        spot: true,
        bids: true,
        // `label`, at most 256 characters at creation (endpoint file of create instance).
        label: true,
        // There is no idempotency key; the label is what we find a machine by.
        idempotent_rent: false,
        // A read right after creation can miss the machine (SkyPilot's adapter, field reports); no number is documented. The default of two
        // minutes is far above what anybody reported.
        visibility_window: times.rent + times.unseen,
        rent_limit: times.rent,
        // GPU by the second while running, by measurement; disk from creation on.
        starting_costs: false,
        // Docs, billing: storage is charged until the instance is destroyed.
        stopped_costs: true,
        // Docs, interruptible instances: they resume when the bid wins again.
        resumes_by_itself: true,
        // `CONTAINER_API_KEY` in the container may destroy its own instance (seen by users, 2026-09-20).
        self_termination: true,
        // `args`, `args_str` and `onstart` together: 4096 (endpoint file); `/bin/sh` and `-c` are taken off.
        max_command_chars: super::client::MAX_COMMAND_CHARS
            - super::client::SHELL.len()
            - super::client::SHELL_FLAG.len(),
    }
}
