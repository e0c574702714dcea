//! RentedMachine: one paid machine. The only authority to spend. Only the operator writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tradewind_core::Money;

use crate::training_job::{CheckpointSpec, LocalSecret, ProgressStatus};

/// Everything that is needed to rent, run and end one machine, even when Pod and job are gone.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tradewind.dev",
    version = "v1alpha1",
    kind = "RentedMachine",
    plural = "rentedmachines",
    shortname = "twm",
    category = "tradewind",
    status = "RentedMachineStatus",
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".spec.provider", name = "Provider", type_ = "string"),
    printcolumn(json_path = ".status.gpu", name = "GPU", type_ = "string"),
    printcolumn(json_path = ".status.region", name = "Region", type_ = "string"),
    printcolumn(json_path = ".status.pricePerHour", name = "$/h", type_ = "string"),
    printcolumn(json_path = ".status.cost", name = "Cost", type_ = "string"),
    printcolumn(json_path = ".spec.job.name", name = "Job", type_ = "string"),
    printcolumn(json_path = ".spec.attempt", name = "Attempt", type_ = "integer"),
    printcolumn(json_path = ".status.machineId", name = "Id", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.agent", name = "Agent", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.message", name = "Message", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    doc = "RentedMachine is one machine that is paid for. Written by the operator only; deleting it ends the machine."
)]
#[serde(rename_all = "camelCase")]
pub struct RentedMachineSpec {
    /// Name of the Provider.
    pub provider: String,
    /// The job it works for.
    pub job: JobRef,
    /// The Pod that it may be rented for, and no other.
    pub claim: Claim,
    /// Id of the run.
    pub run_id: String,
    /// Attempt.
    pub attempt: i64,
    /// Offers to try, best first.
    #[schemars(length(min = 1, max = 8))]
    pub offers: Vec<ChosenOffer>,
    /// What to run.
    pub workload: Workload,
    /// Checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<MachineCheckpoint>,
    /// What the job may spend an hour, in dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub budget_per_hour: Option<Money>,
    /// Seconds from the rent call to the agent's first report before the machine is given up, for offers that do not say their own.
    pub start_deadline_s: i64,
    /// Compressed size of the image in bytes, as its registry told it; absent where it is not known and one was assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes: Option<i64>,
    /// Seconds without a sign of life of the program after which it counts as stalled; 0 = never.
    #[serde(default)]
    pub stall_timeout_s: i64,
    /// Set once the job wants the program to save its state and stop; then nothing is ordered any more and the machine is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopRequest>,
}

/// Why the program should save its state and stop.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StopRequest {
    /// A condition's reason.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

/// The job a machine works for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JobRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// The Pod a machine may be rented for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Namespace.
    pub pod_namespace: String,
    /// Name.
    pub pod_name: String,
    /// Uid.
    pub pod_uid: String,
}

/// An offer as it was planned. The market's own row, so that nothing is looked up again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ChosenOffer {
    /// The provider's id of the offer.
    pub id: String,
    /// The offer in words of the operator (JSON of its own type).
    #[schemars(schema_with = "any_object")]
    pub offer: serde_json::Value,
    /// Dollars an hour of compute at most.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub price_cap: Money,
    /// Dollars an hour at most with disk: what the ledger reserves.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub reserve_per_hour: Money,
    /// Seconds from the rent call to the agent's first report, by the image's size and this offer's bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_deadline_s: Option<i64>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What to run on the machine. Secrets by reference only.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Name of the container in the Pod, for its status.
    pub container: String,
    /// Image.
    pub image: String,
    /// Command and arguments.
    #[schemars(length(max = 4096))]
    pub command: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Environment in order; later ones win.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub env: Vec<EnvEntry>,
    /// Disk in GiB.
    pub disk_gib: i64,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace_s: i64,
    /// Memory that the program asks for, in MiB; 0 = none in particular.
    #[serde(default)]
    pub memory_mib: i64,
    /// GPUs that the program asks for.
    #[serde(default)]
    pub gpus: i64,
}

/// One entry of the environment: a plain value, one key of a Secret, or all keys of a Secret.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EnvEntry {
    /// Name; empty for all keys of a Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Plain value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Name of a Secret in the job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Key in that Secret; absent for all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Put before each name when all keys are taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Go on without it if Secret or key is missing.
    #[serde(default)]
    pub optional: bool,
}

/// Checkpoint settings of a machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MachineCheckpoint {
    /// Directory on the machine.
    pub path: String,
    /// Glob of one checkpoint.
    pub pattern: String,
    /// Location.
    pub to: String,
    /// Secret with the store's keys, in the job's namespace; stays with the operator.
    pub secret_ref: LocalSecret,
    /// Arguments added after a restore.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub resume_args: Vec<String>,
    /// Seconds between saves.
    pub interval_s: i64,
    /// How many are kept.
    pub keep: i64,
}

impl From<&CheckpointSpec> for MachineCheckpoint {
    fn from(spec: &CheckpointSpec) -> Self {
        Self {
            path: spec.path.clone(),
            pattern: spec.pattern.clone(),
            to: spec.to.clone(),
            secret_ref: spec.secret_ref.clone(),
            resume_args: spec.resume_args.clone(),
            interval_s: i64::try_from(spec.interval.seconds()).unwrap_or(i64::MAX),
            keep: i64::from(spec.keep),
        }
    }
}

/// Where a machine is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MachinePhase {
    /// Costs nothing yet.
    #[default]
    Claimed,
    /// An order is written; the rent call is on its way.
    Ordering,
    /// The outcome of an order is not known.
    Unknown,
    /// Rented; the agent has not reported.
    Booting,
    /// The agent reports.
    Ready,
    /// The program was told to save its state and to stop.
    Draining,
    /// Being ended.
    Terminating,
    /// Gone, cost final.
    Gone,
}

impl MachinePhase {
    /// All of them, for tests that say "in every phase".
    pub const ALL: [Self; 8] = [
        Self::Claimed,
        Self::Ordering,
        Self::Unknown,
        Self::Booting,
        Self::Ready,
        Self::Draining,
        Self::Terminating,
        Self::Gone,
    ];
}

/// How an order ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderOutcome {
    /// Written; the call may be under way, or its outcome is not known.
    #[default]
    Open,
    /// A machine is ours.
    Rented,
    /// The provider said no, or nothing was ever sent.
    Refused,
}

/// One numbered request to the provider for one machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OrderStatus {
    /// The order's key at the provider. Never used twice.
    pub key: String,
    /// Index of the offer in `spec.offers`.
    pub offer: i64,
    /// When it was written.
    pub at: MicroTime,
    /// How it ended.
    #[serde(default)]
    pub outcome: OrderOutcome,
    /// The provider's id of what was rented or left behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Why it was refused (a word).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The provider's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// True while something that this order left behind is not observed gone yet.
    #[serde(default)]
    pub leftover: bool,
}

/// Bytes of checkpoints that a machine has sent and fetched.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Sent: what committed checkpoints did not share with earlier ones.
    pub sent_bytes: i64,
    /// Fetched: the checkpoint that it may have begun from.
    pub received_bytes: i64,
}

impl OrderStatus {
    /// What it is about, of the offers in `spec.offers`, or of anything that stands in the same order.
    pub fn of<'a, T>(&self, offers: &'a [T]) -> Option<&'a T> {
        offers.get(usize::try_from(self.offer).ok()?)
    }
}

impl RentedMachineStatus {
    /// The order that bought the machine.
    pub fn rented_order(&self) -> Option<&OrderStatus> {
        self.orders.iter().rev().find(|order| order.outcome == OrderOutcome::Rented)
    }
}

/// State, orders and cost of the machine.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RentedMachineStatus {
    /// The generation of the spec that this status is about; -1 before the first look.
    #[serde(default = "minus_one")]
    pub observed_generation: i64,
    /// Where the machine is.
    #[serde(default)]
    pub phase: MachinePhase,
    /// One sentence: what is going on and what happens next.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Orders, oldest first.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub orders: Vec<OrderStatus>,
    /// The provider's id of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// `1xRTX4090`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Region or country.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Spot or OnDemand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Dollars an hour with disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub price_per_hour: Option<Money>,
    /// When it was rented (our clock, when the call was made).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rented_at: Option<MicroTime>,
    /// When compute was first seen running, from which compute is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_since: Option<MicroTime>,
    /// When compute was seen to have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_until: Option<MicroTime>,
    /// When the machine was seen to be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<MicroTime>,
    /// Dollars; final once the machine is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub cost: Option<Money>,
    /// The attempt that `agent`, `progress`, `restoredStep`, `exitCode`, `exitLog` and `exited` are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// When this attempt took the machine over from the one before; absent for the attempt that it was rented for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_at: Option<Time>,
    /// Id of the agent's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Public key of that boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_key: Option<String>,
    /// What the agent says it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Progress as the program tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// The newest checkpoint that this machine brought into the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<crate::training_job::CheckpointStatus>,
    /// When the program was first seen to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_since: Option<Time>,
    /// The program failed within minutes of its start, on a host where no program of ours has worked before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quick_failure: bool,
    /// What went through its network at the job's request; its market may bill that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Step that was restored; absent = started from zero or not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_step: Option<i64>,
    /// Exit code of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Last lines of the program's output, when it ended; of the machine's, as the provider keeps them, if the program never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_log: Option<String>,
    /// The program failed by itself on a machine that is well: the job may have the next attempt take the machine over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited: Option<ProgramExit>,
    /// Since when the program has shown no sign of life, once that is longer than `stallTimeoutS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_since: Option<Time>,
    /// Since when the program is asked to save its state and to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<Time>,
    /// Why the machine is being ended, a condition's reason; present from Terminating on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Sentence about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_message: Option<String>,
    /// True once the agent's last report was read after the end and what it offered is committed: a successor may start.
    #[serde(default)]
    pub last_report_read: bool,
    /// Since when the provider's list no longer shows the machine as ours, or `describe` said gone the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Time>,
}

/// How a program failed while its machine stays.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProgramExit {
    /// A condition's reason.
    pub reason: String,
    /// Sentence.
    pub message: String,
    /// When it was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The last report is read and what it offered is committed: a successor may start.
    #[serde(default)]
    pub saved: bool,
}

fn minus_one() -> i64 {
    -1
}
