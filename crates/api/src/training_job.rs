//! TrainingJob: a program that runs to completion and survives preemption.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tradewind_core::{Capacity, Money, Trust};

use crate::values::{Decimal, Size, Span};

/// What to run, how it saves, where it may run and what it may cost.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tradewind.dev",
    version = "v1alpha1",
    kind = "TrainingJob",
    plural = "trainingjobs",
    shortname = "tj",
    category = "tradewind",
    namespaced,
    status = "TrainingJobStatus",
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".status.workers.summary", name = "Workers", type_ = "string"),
    printcolumn(json_path = ".status.placement.summary", name = "Where", type_ = "string"),
    printcolumn(json_path = ".status.placement.gpu", name = "GPU", type_ = "string"),
    printcolumn(json_path = ".status.progress.summary", name = "Step", type_ = "string"),
    printcolumn(json_path = ".status.checkpoint.step", name = "Ckpt", type_ = "integer"),
    printcolumn(json_path = ".status.cost.summary", name = "Cost", type_ = "string"),
    printcolumn(json_path = ".status.preemptions", name = "Preempted", type_ = "integer", priority = 1),
    printcolumn(json_path = ".status.restarts", name = "Restarts", type_ = "integer", priority = 1),
    printcolumn(json_path = ".status.placement.machine", name = "Machine", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.message", name = "Message", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = Rule::new("size(self.metadata.name) <= 52").message("must have at most 52 characters, since Pods are named after it").field_path(".metadata.name"),
    doc = "TrainingJob runs a program to completion on the cluster's own GPUs or on rented machines, and survives losing them."
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.checkpoint) == has(oldSelf.checkpoint) && (!has(self.checkpoint) || self.checkpoint.to == oldSelf.checkpoint.to)").message("cannot be changed, since the run is kept there: make another job").field_path(".checkpoint"),
    validation = Rule::new("!has(self.placement) || self.placement.inCluster != 'Only' || !has(self.placement.providers) || size(self.placement.providers) == 0").message("placement.providers names where to rent, but placement.inCluster is Only: remove one of the two").field_path(".placement.providers"),
    validation = Rule::new("!has(self.placement) || self.placement.inCluster != 'Only' || !has(self.placement.capacity) || self.placement.capacity == 'Any'").message("placement.capacity is about rented machines, but placement.inCluster is Only: remove one of the two").field_path(".placement.capacity"),
    validation = Rule::new("!has(self.placement) || self.placement.inCluster != 'Only' || !has(self.placement.regions) || size(self.placement.regions) == 0").message("placement.regions names where to rent, but placement.inCluster is Only: remove one of the two").field_path(".placement.regions"),
    validation = Rule::new("!has(self.checkpoint) || !has(oldSelf.checkpoint) || self.checkpoint.writers == oldSelf.checkpoint.writers").message("cannot be changed, since the run's checkpoints are written that way: delete the job and apply it again").field_path(".checkpoint.writers"),
    validation = Rule::new("self.workers == oldSelf.workers").message("cannot be changed: delete the job and apply it again with another number, and it goes on from its last checkpoint").field_path(".workers"),
    validation = Rule::new("!has(self.workers) || self.workers == 1 || !has(self.placement) || !has(self.placement.providers) || size(self.placement.providers) == 0").message("placement.providers names where to rent, but several workers run in the cluster only: remove it, or set workers to 1").field_path(".placement.providers"),
    validation = Rule::new("!has(self.workers) || self.workers == 1 || !has(self.placement) || !has(self.placement.capacity) || self.placement.capacity == 'Any'").message("placement.capacity is about rented machines, but several workers run in the cluster only: remove it, or set workers to 1").field_path(".placement.capacity"),
    validation = Rule::new("!has(self.workers) || self.workers == 1 || !has(self.placement) || !has(self.placement.regions) || size(self.placement.regions) == 0").message("placement.regions names where to rent, but several workers run in the cluster only: remove it, or set workers to 1").field_path(".placement.regions"),
    validation = Rule::new("!has(self.placement) || !has(self.placement.maxPricePerHour) || has(self.completeWithin) || (has(self.placement.patience) && self.placement.patience.matches('[1-9]'))").message("is a price to wait for: say how long with placement.patience, or until when with completeWithin; what must never be exceeded is budget.perHour").field_path(".placement.maxPricePerHour"),
    validation = Rule::new("!has(self.placement) || self.placement.inCluster != 'Only' || !has(self.placement.maxPricePerHour)").message("placement.maxPricePerHour is about rented machines, but placement.inCluster is Only: remove one of the two").field_path(".placement.maxPricePerHour"),
    validation = Rule::new("!has(self.workers) || self.workers == 1 || !has(self.placement) || !has(self.placement.maxPricePerHour)").message("placement.maxPricePerHour is about rented machines, but several workers run in the cluster only: remove it, or set workers to 1").field_path(".placement.maxPricePerHour"),
    validation = Rule::new("!has(self.completeWithin) || has(self.work)").message("a deadline can be kept only if it is known how much work there is: set work.hours (and work.gpu); what is measured later replaces it").field_path(".completeWithin"),
    validation = Rule::new("!has(self.completeWithin) || self.completeWithin.matches('[1-9]')").message("must be longer than zero").field_path(".completeWithin"),
    validation = Rule::new("!has(self.gangTimeout) || self.gangTimeout.matches('[1-9]')").message("must be longer than zero").field_path(".gangTimeout"),
    validation = Rule::new("!has(self.stallTimeout) || self.stallTimeout.matches('[1-9]')").message("must be longer than zero").field_path(".stallTimeout"),
    validation = Rule::new("!has(self.workers) || self.workers == 1 || !has(self.placement) || self.placement.inCluster != 'Never'").message("several workers need a private network between them, which rented machines do not have yet: placement.inCluster must not be Never").field_path(".placement.inCluster"),
    validation = Rule::new("!has(self.budget) || !has(self.budget.total) || !has(self.budget.perHour) || !isQuantity(self.budget.total) || !isQuantity(self.budget.perHour) || quantity(self.budget.perHour).compareTo(quantity(self.budget.total)) <= 0").message("budget.perHour must not be more than budget.total").field_path(".budget.perHour")
)]
pub struct TrainingJobSpec {
    /// Number of workers: Pods that run the same program at the same time and know each other. More than one run in the cluster only.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 512))]
    pub workers: i32,
    /// GPUs of each worker. Without it the job needs no GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,
    /// A PodTemplateSpec; the first container is the program.
    #[schemars(schema_with = "crate::schema::pod_template")]
    pub template: serde_json::Value,
    /// How the program saves its state. Without it nothing survives a lost machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointSpec>,
    /// Where the job may run.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// What it may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// How much work there is; measured progress replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// The deadline, counted from the job's creation. On rented machines it is kept if any allowed placement can keep it, whatever that costs
    /// within the budget; of a job that runs in the cluster it is told whether its pace keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_within: Option<Span>,
    /// What a failing program leads to.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// With no sign of life for so long (no output, progress or save, and the GPU idle) the program is asked for a checkpoint and started
    /// again.
    #[serde(default = "thirty_minutes")]
    pub stall_timeout: Span,
    /// For so long some workers may wait while others hold nodes; then all are given back, and tried again later.
    #[serde(default = "five_minutes")]
    pub gang_timeout: Span,
    /// So long after its end the job's Pods are removed. The job itself stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Span>,
    /// Stop, after a checkpoint, and cost nothing; false again: go on from there.
    #[serde(default)]
    pub suspend: bool,
}

fn thirty_minutes() -> Span {
    Span("30m".to_owned())
}

fn five_minutes() -> Span {
    Span("5m".to_owned())
}

fn one() -> i32 {
    1
}

/// GPUs of each worker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GpuRequest {
    /// Number of GPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: i32,
    /// Models that will do, in our spelling (RTX4090, A100-80GB, H100). Empty: any.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 40)))]
    pub models: Vec<String>,
    /// Memory that each GPU must have at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<Size>,
    /// Lowest CUDA version that the driver of a rented machine must run, such as the one that the image was built with. A host that does not
    /// tell its own does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_cuda_version")]
    pub min_cuda_version: Option<Decimal>,
}

/// How the program saves its state.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.interval.matches('[1-9]')").message("must be longer than zero").field_path(".interval")
)]
pub struct CheckpointSpec {
    /// Directory that the program writes its checkpoints to, absolute or relative to its working directory.
    #[schemars(schema_with = "crate::schema::save_directory")]
    pub path: String,
    /// Glob for the name of one checkpoint, a file or a directory right under `path`. `{step}` stands for the digits of the step
    /// (`step-{step}.npz`); without it the last run of digits in the name is the step (`*-state`).
    #[schemars(schema_with = "crate::schema::name_pattern")]
    pub pattern: String,
    /// Where checkpoints are kept: `s3://bucket/prefix/`.
    #[schemars(schema_with = "crate::schema::location")]
    pub to: String,
    /// Secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and optionally `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`),
    /// in the job's namespace. It stays with the operator: no machine ever gets it.
    pub secret_ref: LocalSecret,
    /// Added to the command only when something was restored. `$(TRADEWIND_RESUME_PATH)`, `$(TRADEWIND_RESUME_STEP)` and other variables of
    /// the program are replaced; unknown names stay as they are.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub resume_args: Vec<String>,
    /// Which workers write checkpoints: the first one (`RankZero`), or each its part (`AllRanks`): then a checkpoint counts once every
    /// worker has saved the same step.
    #[serde(default)]
    pub writers: Writers,
    /// Time between saves: what we ask of the program, and what the planner assumes until it has measured.
    #[serde(default = "fifteen_minutes")]
    pub interval: Span,
    /// How many checkpoints are kept.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: i32,
    /// What to do with a run of this name that is there already: go on with it (`Resume`), refuse to (`Fail`), start over (`Fresh`). One
    /// that is complete stays so, unless `Fresh`.
    #[serde(default)]
    pub on_existing: OnExisting,
}

/// Which workers write checkpoints: RankZero, AllRanks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// The first one.
    #[default]
    RankZero,
    /// Each its part.
    AllRanks,
}

/// What to do with a run that is there already: Resume, Fail, Fresh.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExisting {
    /// Go on with it.
    #[default]
    Resume,
    /// Refuse to.
    Fail,
    /// Start over, under a new id. Each new object does so once.
    Fresh,
}

fn fifteen_minutes() -> Span {
    Span("15m".to_owned())
}

fn three() -> i32 {
    3
}

/// A Secret in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LocalSecret {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where the job may run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// The cluster's own nodes: `Prefer` them and rent when they are full, use them `Only`, or `Never`.
    #[serde(default)]
    pub in_cluster: InCluster,
    /// Unschedulable for this long: rent.
    #[serde(default = "two_minutes")]
    pub burst_after: Span,
    /// Rented machines that may be taken away (`Spot`), that may not (`OnDemand`), or `Any`.
    #[serde(default)]
    pub capacity: CapacityChoice,
    /// How far a host must be trusted at least: `Community`, `Datacenter`, `Enterprise`. Default: `Datacenter` for jobs whose machine
    /// receives Secrets, else `Community`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_trust: Option<MinTrust>,
    /// Names of Providers that may be used. Empty: all.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub providers: Vec<String>,
    /// Regions or country codes that may be used. Empty: all.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    pub regions: Vec<String>,
    /// Hosts that may not be used, as `kubectl tradewind offers -o wide` names them: `4711` of every Provider, `vast/4711` of the one named
    /// `vast`.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 127)))]
    pub excluded_hosts: Vec<String>,
    /// Lowest reliability of the host, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_share")]
    pub min_reliability: Option<Decimal>,
    /// Lowest download bandwidth in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_download_mbps: Option<i64>,
    /// Lowest upload bandwidth in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_upload_mbps: Option<i64>,
    /// How long the job may wait, each time it needs a machine, for a cheaper one than it could have at once.
    #[serde(default = "no_time")]
    pub patience: Span,
    /// Dollars an hour to wait for, disk included: the job starts when a machine costs no more, or when its patience or slack is over. The
    /// price that is never exceeded is `budget.perHour`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars_given")]
    pub max_price_per_hour: Option<Money>,
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self {
            in_cluster: InCluster::default(),
            burst_after: two_minutes(),
            capacity: CapacityChoice::default(),
            min_trust: None,
            providers: Vec::new(),
            regions: Vec::new(),
            excluded_hosts: Vec::new(),
            min_reliability: None,
            min_download_mbps: None,
            min_upload_mbps: None,
            patience: no_time(),
            max_price_per_hour: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn no_time() -> Span {
    Span("0s".to_owned())
}

fn two_minutes() -> Span {
    Span("2m".to_owned())
}

/// Whether the cluster's own nodes are used: Prefer, Only, Never.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InCluster {
    /// First; rent when they are full.
    #[default]
    Prefer,
    /// Never rent.
    Only,
    /// Always rent.
    Never,
}

/// Which terms of renting will do: Any, Spot, OnDemand.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CapacityChoice {
    /// Both.
    #[default]
    Any,
    /// Only machines that may be taken away.
    Spot,
    /// Only machines that stay.
    OnDemand,
}

/// Lowest trust that will do: Community, Datacenter, Enterprise.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinTrust {
    /// Anybody's machine.
    Community,
    /// A verified data centre.
    Datacenter,
    /// A company with contracts and audits.
    Enterprise,
}

impl From<MinTrust> for Trust {
    fn from(trust: MinTrust) -> Self {
        match trust {
            MinTrust::Community => Self::Community,
            MinTrust::Datacenter => Self::Datacenter,
            MinTrust::Enterprise => Self::Enterprise,
        }
    }
}

/// What the job may cost, in dollars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// In all, over all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars_given")]
    pub total: Option<Money>,
    /// An hour, at any moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars_given")]
    pub per_hour: Option<Money>,
}

/// How much work there is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// Hours on that GPU.
    pub hours: Decimal,
    /// The GPU that `hours` is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub gpu: Option<String>,
    /// What the program downloads on each machine before it works: its data, a base model. It counts as time and traffic of every start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_size: Option<Size>,
}

/// What a failing program leads to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FailurePolicy {
    /// How often a program that fails is started again. Lost machines never count.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_restarts: i32,
    /// What certain exit codes lead to; the first rule that names the code holds.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub rules: Vec<FailureRule>,
}

/// What certain exit codes lead to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FailureRule {
    /// Exit codes of the program; 128 + n if signal n ended it.
    #[schemars(length(min = 1, max = 64), inner(range(min = 1, max = 255)))]
    pub exit_codes: Vec<i32>,
    /// `Fail`: the job fails at once. `Restart`: the program is started again and nothing is counted against `maxRestarts`.
    pub action: FailureAction,
}

/// What an exit code leads to: Fail, Restart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureAction {
    /// The job fails at once.
    Fail,
    /// Started again, without counting.
    Restart,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self { max_restarts: three(), rules: Vec::new() }
    }
}

/// Where a job is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobPhase {
    /// Not looked at yet, or not accepted.
    #[default]
    Pending,
    /// For capacity, price or quota.
    Waiting,
    /// A machine is being rented.
    Renting,
    /// The machine boots, the image is pulled.
    Starting,
    /// The program runs.
    Running,
    /// The program was told to save its state and to stop; it goes on elsewhere.
    Checkpointing,
    /// The machine was lost; another is on its way.
    Resuming,
    /// The program was told to save its state and to stop.
    Suspending,
    /// Stopped; nothing is rented.
    Suspended,
    /// Finished with success.
    Complete,
    /// Failed for good.
    Failed,
}

impl JobPhase {
    /// All of them, for tests that say "in every phase".
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Waiting,
        Self::Renting,
        Self::Starting,
        Self::Running,
        Self::Checkpointing,
        Self::Resuming,
        Self::Suspending,
        Self::Suspended,
        Self::Complete,
        Self::Failed,
    ];

    /// True once nothing will change any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Failed)
    }
}

/// What became of the job so far.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobStatus {
    /// The generation of the spec that this status is about; -1 before the first look.
    #[serde(default = "minus_one")]
    pub observed_generation: i64,
    /// Where the job is.
    #[serde(default)]
    pub phase: JobPhase,
    /// One sentence: what is going on and what happens next.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Accepted, Placed, Ready, Reconciling, Stalled, Suspended, Complete, Failed.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Id of the run, the same over all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The present attempt, from 0; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// Name of the RentedMachine that the present attempt takes over from the one before: the program failed, the machine is well. No other
    /// machine is rented for this attempt while it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_on: Option<String>,
    /// Why the present attempt ends, while its workers in the cluster stop and their last reports are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<EndingStatus>,
    /// Hash of what decides the result, as of the present attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_hash: Option<String>,
    /// Hash of the template with which the present attempt was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_hash: Option<String>,
    /// When the scheduler first called the job's Pod unschedulable: `burstAfter` is counted from here, once per job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable_since: Option<Time>,
    /// Since when the job waits for a cheaper machine than it could have: `placement.patience` is counted from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_since: Option<Time>,
    /// Until when it must be complete: its creation and `completeWithin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// Seconds of work that ended attempts have saved, on the GPU model of `work`: what is left is reckoned by it where the program tells no total
    /// of steps.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub saved_seconds: i64,
    /// How fast the job was on each GPU model, as its own steps tell. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub step_rates: Vec<StepRate>,
    /// Where the present attempt runs and at what terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementStatus>,
    /// Workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    /// Progress as the program tells it; written at most every 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// The program of the present attempt, once it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramStatus>,
    /// The newest checkpoint in the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// How often a machine was lost. Never the job's fault.
    #[serde(default)]
    pub preemptions: i64,
    /// How often the program failed and was started again.
    #[serde(default)]
    pub restarts: i64,
    /// How often the program showed no sign of life and was started again.
    #[serde(default)]
    pub stalls: i64,
    /// Seconds of work lost to preemptions, as far as known.
    #[serde(default)]
    pub lost_work_seconds: i64,
    /// Money.
    #[serde(default)]
    pub cost: CostStatus,
    /// Earlier attempts, newest last, at most 20.
    #[serde(default)]
    #[schemars(length(max = 20))]
    pub history: Vec<AttemptRecord>,
    /// When the program first ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the job was complete or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

fn minus_one() -> i64 {
    -1
}

/// Where an attempt runs and at what terms.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// For people: `vast-main (spot, NO)` or `cluster`.
    pub summary: String,
    /// Name of the Provider; absent in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Name of the RentedMachine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Region or country.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `1xRTX4090`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Dollars an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub price_per_hour: Option<Money>,
    /// Spot or OnDemand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// Trust of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// Why this one, in a sentence with its expected cost taken apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Expected cost from here to the end, taken apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<ExpectedCost>,
    /// When the job will be complete, as was expected when this was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_finish: Option<Time>,
    /// The best others, at most three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub alternatives: Vec<Alternative>,
    /// Why others do not fit, grouped and counted, at most 10 lines.
    #[serde(default)]
    #[schemars(length(max = 10))]
    pub rejected: Vec<String>,
}

/// Expected cost of finishing on a machine, in dollars.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedCost {
    /// Useful work.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub compute: Money,
    /// Renting and booting.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub setup: Money,
    /// Pulling the image.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub image_pull: Money,
    /// Downloading the input.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub input_download: Money,
    /// Restoring the checkpoint.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub restore: Money,
    /// Work that is expected to be done twice, since machines are lost.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub expected_lost_work: Money,
    /// Disk.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub storage: Money,
    /// Traffic.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub traffic: Money,
    /// All of it.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub total: Money,
}

/// What was measured of a job on a GPU model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StepRate {
    /// Model.
    pub gpu: String,
    /// Steps of the program in an hour.
    pub steps_per_hour: Decimal,
}

/// A machine that was not chosen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// For people: `1xRTX3090 of vast-main (on demand, SE)`.
    pub summary: String,
    /// Dollars an hour.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub price_per_hour: Money,
    /// Dollars more than the chosen one to the end of the job.
    #[schemars(schema_with = "crate::schema::dollars")]
    pub extra_cost: Money,
    /// When the job would be complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_finish: Option<Time>,
}

/// Why an attempt in the cluster ends.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EndingStatus {
    /// The attempt.
    pub attempt: i64,
    /// A condition's reason.
    pub reason: String,
    /// Sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Exit code of the program that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// The last lines that it wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// Workers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkersStatus {
    /// Whose program runs.
    pub ready: i64,
    /// In all.
    pub total: i64,
    /// For people: `1/1`.
    pub summary: String,
}

/// Progress as the program tells it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// Step.
    pub step: i64,
    /// Steps in all, if told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
    /// Loss, if told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// For people: `1240/3000`.
    pub summary: String,
    /// When it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// The program of the present attempt.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// Since when it runs.
    pub since: Time,
    /// Step that it went on from; absent = from zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<i64>,
}

/// A checkpoint in the catalogue.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Sequence in the catalogue's log.
    pub seq: i64,
    /// Step.
    pub step: i64,
    /// Attempt that saved it.
    pub attempt: i64,
    /// Bytes.
    pub bytes: i64,
    /// Seconds from the start of the save until all of it was uploaded, if the machine told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_seconds: Option<i64>,
    /// When it was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// Money.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CostStatus {
    /// For people: `$0.21`.
    #[serde(default)]
    pub summary: String,
    /// Dollars for machines that are gone: final.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub settled: Money,
    /// Dollars in all, running machines as of the last look.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub total: Money,
    /// Dollars an hour now.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::dollars")]
    pub per_hour: Money,
    /// The `budget.total` at which the job was stopped last: it goes on when there is a higher one, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_dollars")]
    pub exhausted: Option<Money>,
    /// Uids of RentedMachines whose cost is in `settled`; trimmed when the objects are gone.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub settled_machines: Vec<String>,
}

/// How an earlier attempt went.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AttemptRecord {
    /// Attempt.
    pub attempt: i64,
    /// `vast-main (spot, NO)`.
    #[serde(rename = "where")]
    pub place: String,
    /// How it ended, a condition's reason.
    pub ended: String,
    /// Sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Step it was restored from; absent = from zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<i64>,
    /// Last step seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<i64>,
    /// The program failed within minutes of its start, on a host where no program of ours had worked before: the first of such failures in
    /// a row is tried elsewhere without being counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quick_failure: bool,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

impl From<CapacityChoice> for Option<Capacity> {
    fn from(choice: CapacityChoice) -> Self {
        match choice {
            CapacityChoice::Any => None,
            CapacityChoice::Spot => Some(Capacity::Spot),
            CapacityChoice::OnDemand => Some(Capacity::OnDemand),
        }
    }
}
