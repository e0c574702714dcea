//! Provider: one rental account.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tradewind_core::Money;

use crate::access::Access;
use crate::values::Span;

/// One rental account.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tradewind.dev",
    version = "v1alpha1",
    kind = "Provider",
    plural = "providers",
    shortname = "twp",
    category = "tradewind",
    status = "ProviderStatus",
    printcolumn(json_path = ".spec.kind", name = "Kind", type_ = "string"),
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].status"#, name = "Ready", type_ = "string"),
    printcolumn(json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, name = "Reason", type_ = "string"),
    printcolumn(json_path = ".status.machines", name = "Machines", type_ = "integer"),
    printcolumn(json_path = ".status.committedPerHour", name = "$/h", type_ = "string"),
    printcolumn(json_path = ".spec.limits.perHour", name = "Limit/h", type_ = "string"),
    printcolumn(json_path = ".status.credit", name = "Credit", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.audit.billed", name = "Billed", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.audit.difference", name = "Difference", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("size(self.metadata.name) <= 63").message("must have at most 63 characters").field_path(".metadata.name"),
    doc = "Provider is one rental account: which market, which key, and how much may be spent on it."
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.kind == oldSelf.kind").message("cannot be changed: make another Provider").field_path(".kind")
)]
pub struct ProviderSpec {
    /// Which market: Vast or RunPod.
    pub kind: ProviderKind,
    /// Secret in the operator's namespace with the account's key.
    pub credentials_secret_ref: SecretKey,
    /// How much may be spent on this account.
    pub limits: Limits,
    /// Who may use the account: the first entry that selects a namespace holds for its jobs, and a namespace that none selects may not.
    /// Empty: every namespace may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub access: Vec<Access>,
    /// Rent nothing new; what runs goes on.
    #[serde(default)]
    pub paused: bool,
    /// With the operator away for so long, machines save their state and stop, and end their own rental where the market allows that.
    #[serde(default = "a_day")]
    pub operator_outage_tolerance: Span,
}

/// Default of `operatorOutageTolerance`.
pub const DEFAULT_TOLERANCE: &str = "24h";

fn a_day() -> Span {
    Span(DEFAULT_TOLERANCE.to_owned())
}

/// Which market: Vast or RunPod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    /// Vast.ai.
    Vast,
    /// RunPod, by its REST API v2. Secure machines are on demand and of trust Datacenter; Community machines may be taken back at any time, so
    /// they count as spot, and are of trust Community.
    RunPod,
}

/// One key of a Secret in the operator's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[serde(default = "api_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn api_key() -> String {
    "apiKey".to_owned()
}

/// How much may be spent on an account, in dollars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Dollars an hour, over all machines not yet gone.
    #[schemars(schema_with = "crate::schema::dollars_given")]
    pub per_hour: Money,
    /// Dollars in any 24 hours, by whole hours: machines that are gone by the books in the status, the others by what they have cost so far.
    #[schemars(schema_with = "crate::schema::dollars_given")]
    pub per_day: Money,
}

/// State of the account.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// The generation of the spec that this status is about; -1 before the first look.
    #[serde(default = "minus_one")]
    pub observed_generation: i64,
    /// Ready.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The provider's id of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Eight digits that follow from the key in use and this install. They tell another key from the one before, and nothing about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub key_mark: Option<String>,
    /// Credit left in dollars, as of the last change worth writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub credit: Option<Money>,
    /// RentedMachines of ours on this account that are not gone.
    #[serde(default)]
    pub machines: i64,
    /// Sum of their price caps: what may be spent an hour.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub committed_per_hour: Money,
    /// Secrets that carry our finaliser because machines may have been rented by their key: the one in use and, for a moment, the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub held_credentials: Vec<SecretKey>,
    /// What machines that are gone have cost.
    #[serde(default, skip_serializing_if = "Spend::is_empty")]
    pub spend: Spend,
    /// Our reckoning against the provider's own bill.
    #[serde(default, skip_serializing_if = "Audit::is_empty")]
    pub audit: Audit,
}

/// The provider's own bill for machines that are gone, and what we say they cost. What was compared once is not compared again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Dollars that the provider billed.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::signed_dollars")]
    pub billed: Money,
    /// Dollars that we say the same machines cost.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub ours: Money,
    /// Billed less ours: above zero, the provider billed more.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::signed_dollars")]
    pub difference: Money,
    /// Machines compared.
    #[serde(default)]
    pub machines: i64,
    /// Machines whose bill could not be had in time.
    #[serde(default)]
    pub unchecked: i64,
    /// When the bill was read last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Time>,
    /// The machine whose bill was furthest off, and by how much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst: Option<Billed>,
    /// Machines that are gone and wait for their bill.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub pending: Vec<Unbilled>,
}

impl Audit {
    /// True before the first machine is gone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The bill of one machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Billed {
    /// The provider's id.
    #[schemars(length(max = 128))]
    pub id: String,
    /// Dollars that the provider billed.
    #[schemars(schema_with = "crate::schema::signed_dollars")]
    pub billed: Money,
    /// Dollars that we say.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub ours: Money,
}

/// A machine that is gone and waits for its bill.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Unbilled {
    /// The provider's id.
    #[schemars(length(max = 128))]
    pub id: String,
    /// When it was rented.
    pub from: Time,
    /// When it was gone.
    pub to: Time,
    /// Dollars that we say.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub ours: Money,
    /// Dollars an hour, by which a small difference is told from a large one.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub per_hour: Money,
}

/// The books of an account: final costs of machines that are gone, by UTC time. A machine's cost is spread evenly over the time from its
/// rental to its end, so one that runs over midnight counts on both days.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spend {
    /// By hour such as `2026-11-21T17:00Z`, for the last 24 hours before the newest entry: what limits.perDay counts.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub hours: Vec<Spent>,
    /// By day such as `2026-11-21`, for the last 31 days.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub days: Vec<Spent>,
    /// By month such as `2026-11`, for the last 12 months.
    #[serde(default)]
    #[schemars(length(max = 12))]
    pub months: Vec<Spent>,
    /// By namespace of the jobs, for the last 24 hours: what access[].limits.perDay counts. The one without a name is what more namespaces
    /// than have room here have spent; it counts for every entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub namespaces: Vec<NamespaceSpent>,
    /// Uids of RentedMachines whose cost is in here; trimmed when the objects are gone.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub booked: Vec<String>,
}

impl Spend {
    /// True before the first machine is gone.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was spent in one stretch of time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spent {
    /// Which stretch.
    #[schemars(length(max = 20))]
    pub at: String,
    /// Dollars.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub dollars: Money,
}

/// What the jobs of one namespace have spent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSpent {
    /// Its name.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// By hour, as in `hours`.
    #[schemars(length(max = 32))]
    pub hours: Vec<Spent>,
}

fn minus_one() -> i64 {
    -1
}
