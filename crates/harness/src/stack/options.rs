//! What a [`Stack`](super::Stack) is made of.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;

use crate::PlaneOptions;

/// Intervals short enough for demo and tests. Every flag of `tradewind-operator run` that takes a time and matters there.
const FAST: &[(&str, &str)] = &[
    ("account-poll", "400ms"),
    ("account-health", "2s"),
    ("offers-max-age", "5s"),
    ("report-poll", "300ms"),
    ("status-interval", "1s"),
    ("agent-poll", "250ms"),
    ("agent-silent-after", "20s"),
    ("shortest-money-line", "2s"),
    ("start-deadline", "30s"),
    ("rent-limit", "5s"),
    ("unseen-limit", "2s"),
    ("refusal-memory", "20s"),
    ("orphan-age", "10s"),
    ("lease-duration", "3s"),
    ("drain-limit", "5s"),
];

type Told = Arc<dyn Fn(&str) + Send + Sync>;

/// Told what is being started, one short line each.
#[derive(Clone, Default)]
pub struct Progress(Option<Told>);

impl Progress {
    /// Tells it to `told`.
    pub fn to(told: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    pub(super) fn say(&self, line: &str) {
        if let Some(told) = &self.0 {
            told(line);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress" } else { "no Progress" })
    }
}

/// How a stack is started.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Word in the name of the run directory.
    pub label: String,
    /// The simulator's market: `{"providers": …}`. Each of its accounts becomes a Provider of the same name.
    pub market: Value,
    /// Seeds the market.
    pub seed: u64,
    /// Faults of the simulator from the start: a list of them.
    pub faults: Option<Value>,
    /// What the control plane has besides its four programs.
    pub plane: PlaneOptions,
    /// Puts a recording proxy between the operator and each account ([`super::Stack::provider_proxy`]).
    pub provider_proxies: bool,
    /// Writes every byte between the object store and its clients to a file.
    pub record_store: bool,
    /// What the operator may spend on each account: dollars an hour and a day.
    pub limits: (String, String),
    /// Flags of `tradewind-operator run` without the dashes; they add to or replace those of [`StackOptions::new`].
    pub operator_flags: BTreeMap<String, String>,
    /// Further environment of the operator.
    pub operator_environment: Vec<(String, String)>,
    /// Told what is being started.
    pub progress: Progress,
}

impl StackOptions {
    /// One market, short intervals, no recordings, no fake nodes.
    pub fn new(label: &str, market: Value) -> Self {
        Self {
            label: label.into(),
            market,
            seed: 0,
            faults: None,
            plane: PlaneOptions::default(),
            provider_proxies: false,
            record_store: false,
            limits: ("10".into(), "100".into()),
            operator_flags: FAST.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())).collect(),
            operator_environment: Vec::new(),
            progress: Progress::default(),
        }
    }

    /// Sets a flag of the operator, without the dashes: `("report-poll", "1s")`.
    pub fn operator_flag(mut self, flag: &str, value: &str) -> Self {
        self.operator_flags.insert(flag.into(), value.into());
        self
    }

    /// Leaves all intervals at the operator's own defaults, as on a real cluster.
    pub fn production_intervals(mut self) -> Self {
        self.operator_flags.retain(|flag, _| !FAST.iter().any(|(fast, _)| fast == flag));
        self
    }
}
