//! What goes over the wire, as RunPod's REST v2 writes it. Nothing outside this folder sees these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// `POST /v2/pods`. RunPod refuses a field that it does not know.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreatePod<'a> {
    pub name: &'a str,
    pub image: &'a str,
    pub cloud: &'static str,
    pub gpu: CreateGpu<'a>,
    /// At most one; none = anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_center_ids: Option<[&'a str; 1]>,
    /// GB.
    pub disk: u64,
    pub env: &'a BTreeMap<String, String>,
    pub entrypoint: [&'a str; 1],
    pub cmd: [&'a str; 2],
}

/// The GPUs of a new pod: one type, without alternatives.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateGpu<'a> {
    pub id: &'a str,
    /// Always sent: left out, it was seen to be answered with "no instances".
    pub count: u32,
    /// GB.
    pub min_ram_per_gpu: u64,
    pub min_vcpu_count_per_gpu: u64,
}

/// Answer of the catalogue. Rows stay raw, so that an odd one costs only itself.
#[derive(Deserialize)]
pub(super) struct Catalogue<'a> {
    #[serde(borrow)]
    pub gpus: Vec<&'a RawValue>,
}

/// One GPU type; what we use of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GpuRow {
    pub id: String,
    pub name: Option<String>,
    pub manufacturer: Option<String>,
    /// GB.
    pub memory: Option<f64>,
    pub secure: Option<bool>,
    pub community: Option<bool>,
    pub price: Option<PerCloud>,
    pub max_count: Option<PerCloud>,
    pub availability: Option<String>,
    pub data_centers: Option<Vec<DataCentreRow>>,
    pub cuda_versions: Option<Vec<CudaRow>>,
}

/// A figure for each cloud.
#[derive(Deserialize)]
pub(super) struct PerCloud {
    pub secure: Option<f64>,
    pub community: Option<f64>,
}

/// Stock in one data centre.
#[derive(Deserialize)]
pub(super) struct DataCentreRow {
    pub id: Option<String>,
    pub availability: Option<String>,
}

/// Stock of hosts with one CUDA version.
#[derive(Deserialize)]
pub(super) struct CudaRow {
    pub version: Option<String>,
    pub available: Option<bool>,
}

/// One page of `GET /v2/pods`. `pagination` is newer than the document that we have.
#[derive(Deserialize)]
pub(super) struct PodPage {
    pub pods: Vec<Value>,
    pub pagination: Option<Pagination>,
}

/// Whether there is more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pagination {
    pub next_cursor: Option<String>,
    pub has_next_page: Option<bool>,
}

/// `GET /v2/billing/pods`.
#[derive(Deserialize)]
pub(super) struct Bill {
    pub records: Vec<BillRow>,
    pub metadata: Option<BillMetadata>,
    pub pagination: Option<Pagination>,
}

/// What one pod cost in one hour.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BillRow {
    pub pod_id: String,
    pub total_amount: f64,
}

/// What the bill says about itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BillMetadata {
    pub record_count: Option<u64>,
}

/// An error's body: `application/problem+json`, or what older parts of RunPod answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub status: Option<u64>,
    text: String,
}

impl Problem {
    /// `None` if the body is not a JSON object with some sentence: a proxy's page, say.
    pub fn read(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let object = value.as_object()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let mut words: Vec<&str> =
            ["detail", "error", "message", "title"].into_iter().find_map(text).into_iter().collect();
        words.extend(object.get("errors").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
        (!words.is_empty())
            .then(|| Self { status: object.get("status").and_then(Value::as_u64), text: words.join("; ") })
    }

    /// Its sentence, and each violation that it names.
    pub fn text(&self) -> &str {
        &self.text
    }
}
