//! The custom resources of Tradewind (group `tradewind.dev`, version `v1alpha1`): schema, validation rules, condition and reason names.
//!
//! `operator crds` writes the CRDs from these types into `crds/`, `operator reference` their pages into `docs/reference/`.
//! A field stands here only if its behaviour exists.
#![expect(clippy::duplicated_attributes, reason = "several printer columns have the same type, which is no mistake")]

pub mod access;
pub mod conditions;
pub mod crd;
pub mod provider;
pub mod reference;
pub mod rented_machine;
pub mod schema;
pub mod training_job;
pub mod values;

pub use conditions::{Reason, set_condition};
pub use provider::{Provider, ProviderSpec, ProviderStatus};
pub use rented_machine::{RentedMachine, RentedMachineSpec, RentedMachineStatus};
pub use training_job::{TrainingJob, TrainingJobSpec, TrainingJobStatus};
pub use values::{Decimal, Size, Span};

/// API group of all our kinds.
pub const GROUP: &str = "tradewind.dev";
/// Version of all our kinds.
pub const VERSION: &str = "v1alpha1";

/// Names of labels, annotations, finalisers and taints that we put on objects.
pub mod names {
    /// Label on Pods and RentedMachines: uid of the TrainingJob.
    pub const JOB_UID: &str = "tradewind.dev/job-uid";
    /// Label on Pods and RentedMachines: name of the TrainingJob.
    pub const JOB_NAME: &str = "tradewind.dev/job-name";
    /// Label on Pods and RentedMachines: attempt number.
    pub const ATTEMPT: &str = "tradewind.dev/attempt";
    /// Label on Pods of jobs with several workers: number of the worker, from 0.
    pub const RANK: &str = "tradewind.dev/rank";
    /// Annotation on Pods in the cluster that run our agent: the signed URL of the worker's control document.
    pub const CONTROL: &str = "tradewind.dev/control";
    /// Annotation beside it: when the URL is renewed, should the Pod still wait then (RFC 3339).
    pub const CONTROL_RENEWAL: &str = "tradewind.dev/control-renewal";
    /// Annotation on rented Pods: name of the RentedMachine.
    pub const MACHINE: &str = "tradewind.dev/machine";
    /// Finaliser on rented Pods, so that we see why they go.
    pub const POD_FINALIZER: &str = "tradewind.dev/rented-pod";
    /// Finaliser on RentedMachines: the money safety.
    pub const MACHINE_FINALIZER: &str = "tradewind.dev/machine";
    /// Finaliser on Providers: the account's key is kept while machines are rented by it.
    pub const PROVIDER_FINALIZER: &str = "tradewind.dev/provider";
    /// Taint on the virtual Node.
    pub const NODE_TAINT: &str = "tradewind.dev/rented";
    /// Scheduler name of Pods that must not run in the cluster: nobody serves it.
    pub const NO_SCHEDULER: &str = "tradewind.dev-rented-only";

    /// Condition of the virtual Node: the mailbox could be used when the operator started.
    pub const MAILBOX_CONDITION: &str = "tradewind.dev/Mailbox";
    /// Condition of the virtual Node: signed addresses live as long as `--ticket-lifetime` wants.
    pub const TICKET_LIFETIME_CONDITION: &str = "tradewind.dev/TicketLifetime";
    /// Condition of the virtual Node: the operator has the agent's binary for rented machines.
    pub const AGENT_CONDITION: &str = "tradewind.dev/Agent";
    /// Condition of the virtual Node: the operator has an image with the agent for Pods on the cluster's own nodes.
    pub const AGENT_IMAGE_CONDITION: &str = "tradewind.dev/AgentImage";

    /// Finaliser on the Secret with a Provider's key. One for each Provider, so that those which share a Secret let go of it one by one.
    pub fn secret_finalizer(provider: &str) -> String {
        format!("provider.tradewind.dev/{provider}")
    }
}
