//! What goes over the wire, as Vast.ai writes it. Nothing outside this folder sees these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// `POST /api/v0/bundles/`: all filters said aloud, since the raw API is known to add none and documented to add some.
#[derive(Serialize)]
pub(super) struct Search {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub limit: u32,
    /// Two entries: the official schema asks for exactly two.
    pub order: [[&'static str; 2]; 2],
    /// GB that `dph_total` includes.
    pub allocated_storage: f64,
    pub rentable: Filter<bool>,
    pub rented: Filter<bool>,
    pub external: Filter<bool>,
    pub verification: Filter<[&'static str; 2]>,
    pub cpu_arch: Filter<&'static str>,
    pub num_gpus: Filter<u32>,
    pub gpu_ram: Filter<u64>,
    pub disk_space: Filter<f64>,
}

/// One filter of a search.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Filter<T> {
    Eq(T),
    Gte(T),
    In(T),
}

/// Answer of a search. Rows stay raw, so that an odd one costs only itself.
#[derive(Deserialize)]
pub(super) struct SearchAnswer<'a> {
    #[serde(borrow)]
    pub offers: Vec<&'a RawValue>,
}

/// One offer; what we use of it. Everything but the id may be missing or null.
#[derive(Deserialize)]
pub(super) struct OfferRow {
    pub id: u64,
    pub machine_id: Option<u64>,
    pub gpu_name: Option<String>,
    pub num_gpus: Option<f64>,
    pub gpu_ram: Option<f64>,
    pub gpu_frac: Option<f64>,
    pub cpu_cores: Option<f64>,
    pub cpu_cores_effective: Option<f64>,
    pub cpu_ram: Option<f64>,
    pub disk_space: Option<f64>,
    pub storage_cost: Option<f64>,
    pub dph_base: Option<f64>,
    pub dph_total: Option<f64>,
    pub min_bid: Option<f64>,
    pub inet_up: Option<f64>,
    pub inet_down: Option<f64>,
    pub inet_up_cost: Option<f64>,
    pub inet_down_cost: Option<f64>,
    pub reliability: Option<f64>,
    pub reliability2: Option<f64>,
    pub verification: Option<String>,
    pub vericode: Option<i64>,
    pub hosting_type: Option<i64>,
    pub external: Option<bool>,
    pub geolocation: Option<String>,
    pub cuda_max_good: Option<f64>,
    pub duration: Option<f64>,
    pub rentable: Option<bool>,
}

/// `PUT /api/v0/asks/{id}/`.
#[derive(Serialize)]
pub(super) struct Create<'a> {
    pub client_id: &'static str,
    pub image: &'a str,
    /// GB.
    pub disk: f64,
    pub label: &'a str,
    pub runtype: &'static str,
    pub onstart: &'static str,
    pub args: [&'a str; 2],
    /// An object, as the official client sends it; the official schema says string.
    pub env: &'a BTreeMap<String, String>,
    pub cancel_unavail: bool,
    /// $/h for the whole slice. Its presence is what makes a rental interruptible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
}

/// `PUT /api/v0/instances/request_logs/{id}/`.
#[derive(Serialize)]
pub(super) struct LogsRequest {
    pub tail: String,
}

/// One page of `GET /api/v1/instances/`. `instances` may be null.
#[derive(Deserialize)]
pub(super) struct InstancePage {
    pub instances: Option<Vec<Value>>,
    pub next_token: Option<String>,
    pub total_instances: Option<u64>,
}

/// One page of `GET /api/v0/charges/`.
#[derive(Deserialize)]
pub(super) struct ChargePage {
    pub results: Vec<ChargeRow>,
    pub next_token: Option<String>,
}

/// What one contract was charged.
#[derive(Deserialize)]
pub(super) struct ChargeRow {
    /// `instance-12345678`.
    pub source: String,
    /// Dollars, rounded to a tenth of a cent.
    pub amount: f64,
}

/// What any answer may say about success, read from a JSON object field by field: a field of a strange type is as good as missing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub success: Option<bool>,
    /// The word for the error.
    pub error: String,
    /// The sentence.
    pub message: String,
    /// Id of a machine that was made.
    pub new_contract: Option<u64>,
}

impl Said {
    /// `None` if the body is not a JSON object.
    pub fn read(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let object = value.as_object()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let message = ["msg", "detail", "message"].into_iter().map(text).find(|t| !t.is_empty()).unwrap_or_default();
        Some(Self {
            success: object.get("success").and_then(Value::as_bool),
            error: text("error").to_owned(),
            message: message.to_owned(),
            new_contract: object.get("new_contract").and_then(id),
        })
    }

    /// Word and sentence, in lower case, to look for known words in.
    pub fn words(&self) -> String {
        format!("{} {}", self.error, self.message).to_lowercase()
    }

    /// Word and sentence as they came.
    pub fn text(&self) -> String {
        match (self.error.is_empty(), self.message.is_empty()) {
            (true, true) => "no reason was given".to_owned(),
            (false, true) => self.error.clone(),
            (true, false) => self.message.clone(),
            (false, false) => format!("{}: {}", self.error, self.message),
        }
    }
}

/// An id, which some answers write as text.
pub(super) fn id(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}
