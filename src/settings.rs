//! Everything that can be set, with its default. Filled by the binary from flags and environment, by tests directly.

use std::net::SocketAddr;
use std::time::Duration;

use tradewind_core::{InstallId, Money};

/// Settings of one operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which install this is.
    pub install: InstallId,
    /// Namespace of the operator: credentials Secrets and the election's Lease live here.
    pub namespace: String,
    /// Name of the virtual Node.
    pub node_name: String,
    /// How often each account is listed.
    pub account_poll: Duration,
    /// How often the account's health (identity, credit) is asked.
    pub account_health: Duration,
    /// How old offers may be when a job is placed.
    pub offers_max_age: Duration,
    /// How often an agent's report is read while its machine lives.
    pub report_poll: Duration,
    /// How often progress, checkpoints and cost are written into statuses at most.
    pub status_interval: Duration,
    /// How often a job weighs its choices over time.
    pub replan_interval: Duration,
    /// Silence of an agent after which its machine, or its Pod in the cluster, is given up.
    pub agent_silent_after: Duration,
    /// The shortest time for which machines go on without the operator.
    pub shortest_line: Duration,
    /// For how long a refused offer is left out.
    pub refusal_memory: Duration,
    /// How old an asset without a RentedMachine must be before the sweeper ends it.
    pub orphan_age: Duration,
    /// How long after a machine's end the provider's bill for it is looked at.
    pub audit_after: Duration,
    /// How often the Lease of our Node is renewed.
    pub node_renew: Duration,
    /// The sweeper only reports what it would end.
    pub sweep_report_only: bool,
    /// Lifetime of signed URLs.
    pub ticket_lifetime: Duration,
    /// Time that a machine has from the rent call to its first report, at least; image size and bandwidth add to it, up to an hour in all.
    pub start_deadline: Duration,
    /// Image with our agent at `/usr/local/bin/tradewind-agent`, for Pods in the cluster. Without it jobs that need the agent run on rented
    /// machines only.
    pub agent_image: Option<String>,
    /// What a GPU of the cluster's own nodes costs an hour: 0 where they are owned.
    pub cluster_gpu_price: Money,
    /// How often agents poll and report, if not the agent's own defaults (demo and tests).
    pub agent_poll: Option<Duration>,
    /// Where the API server finds the logs of rented Pods: the Node's kubelet. `None`: nowhere.
    pub kubelet: Option<SocketAddr>,
}

impl Settings {
    /// The defaults for production, for the install of this id.
    pub fn new(install: InstallId, namespace: impl Into<String>) -> Self {
        let node_name = format!("tradewind-{install}");
        Self {
            install,
            namespace: namespace.into(),
            node_name,
            account_poll: Duration::from_secs(10),
            account_health: Duration::from_mins(1),
            offers_max_age: Duration::from_mins(1),
            report_poll: Duration::from_secs(5),
            status_interval: Duration::from_secs(30),
            replan_interval: Duration::from_mins(1),
            agent_silent_after: Duration::from_mins(10),
            shortest_line: Duration::from_mins(2),
            refusal_memory: Duration::from_mins(15),
            orphan_age: Duration::from_mins(3),
            // Bills trail: Vast.ai's by up to 5 minutes.
            audit_after: Duration::from_mins(15),
            // As a kubelet does; the controller manager gives a Node 50 s.
            node_renew: Duration::from_secs(10),
            sweep_report_only: false,
            // Renewed at half-life: what is left then outlasts the longest absence of an operator (a day) by half a day.
            ticket_lifetime: Duration::from_hours(72),
            start_deadline: Duration::from_mins(15),
            agent_image: None,
            cluster_gpu_price: Money::ZERO,
            agent_poll: None,
            kubelet: None,
        }
    }
}
