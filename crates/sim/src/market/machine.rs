//! A rented machine: its state, its price and its meters.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::money::{Meter, disk_micros_per_hour};
use super::time::SimTime;

/// What a machine runs. It holds the environment, so it does not print.
#[derive(Clone, Default)]
pub struct Workload {
    /// Image name; nothing is pulled.
    pub image: String,
    /// Program and arguments; the first word is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Exact environment, without what the provider injects.
    pub env: Vec<(String, String)>,
    /// Ports that the container listens on.
    pub ports: Vec<PortWish>,
    /// Further fields of the create call that the wire shows again.
    pub wire: Map<String, Value>,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("image", &self.image).finish_non_exhaustive()
    }
}

/// A port of the container that must be reachable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortWish {
    /// The port inside.
    pub container: u32,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// Why a machine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// A higher bid holds the GPU. It comes back by itself when its own bid wins again.
    Outbid,
    /// It never got the GPU and waits for it.
    Parked,
    /// The user stopped it.
    User,
    /// The account has no money.
    NoCredit,
    /// The host's offer ended.
    ContractEnd,
}

/// Where a machine is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Holds the GPU, not billed for it yet.
    Booting {
        /// When the boot began.
        since: SimTime,
        /// When it ends.
        until: SimTime,
        /// How it will fail, if it will.
        failure: Option<String>,
    },
    /// Its command runs.
    Running,
    /// Its command ended or is being restarted; it still holds the GPU and is billed.
    Restarting {
        /// When the command starts again.
        due: SimTime,
        /// The word that the wire shows meanwhile.
        word: &'static str,
    },
    /// No GPU; the disk is billed.
    Stopped(StopCause),
    /// The boot failed for good; the disk is billed.
    BootFailed {
        /// The provider's words.
        message: String,
    },
    /// The host vanished; nothing is billed.
    Offline {
        /// When.
        since: SimTime,
    },
    /// Terminated; nothing is billed and the wire does not show it.
    Ended,
}

/// One rental.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The provider's id.
    pub id: u64,
    /// Name of the account.
    pub account: String,
    /// The offer's id.
    pub offer: String,
    /// The offer's wire fields at the time of renting.
    pub offer_fields: Arc<Map<String, Value>>,
    /// The user's label.
    pub label: Option<String>,
    /// What it runs.
    pub workload: Workload,
    /// The bid in micro-dollars an hour; `None` on demand.
    pub bid_micros_per_hour: Option<u64>,
    /// The on-demand price at the time of renting, in micro-dollars an hour.
    pub on_demand_micros_per_hour: u64,
    /// Disk in thousandths of a GB.
    pub disk_milli_gb: u64,
    /// Micro-dollars per GB of disk and month.
    pub storage_micros_per_gb_month: u64,
    /// When it was rented.
    pub created_at: SimTime,
    /// From when on lists and reads show it.
    pub visible_at: SimTime,
    /// When it was terminated.
    pub ended_at: Option<SimTime>,
    /// The host's hard end.
    pub contract_end: SimTime,
    /// Where it is.
    pub state: State,
    /// Times that its command was started.
    pub boots: u32,
    /// When it last began to run.
    pub running_since: Option<SimTime>,
    /// A word shown instead of its status, set by control.
    pub status_override: Option<String>,
    /// Host ports of its mapped ports, while its command runs.
    pub host_ports: Vec<(PortWish, u16)>,
    /// The key with which it may read, stop and end itself.
    pub instance_key: String,
    /// The user (or the platform on his behalf) wants it to run.
    pub(super) wants_to_run: bool,
    pub(super) image_present: bool,
    pub(super) host_gone_at: Option<SimTime>,
    pub(super) settled_at: SimTime,
    pub(super) gpu: Meter,
    pub(super) disk: Meter,
}

impl Machine {
    /// Rented by bid.
    pub const fn is_spot(&self) -> bool {
        self.bid_micros_per_hour.is_some()
    }

    /// What an hour of compute costs while it runs, in micro-dollars.
    pub fn compute_micros_per_hour(&self) -> u64 {
        self.bid_micros_per_hour.unwrap_or(self.on_demand_micros_per_hour)
    }

    /// What an hour of its disk costs, in micro-dollars.
    pub fn disk_micros_per_hour(&self) -> u64 {
        disk_micros_per_hour(self.storage_micros_per_gb_month, self.disk_milli_gb)
    }

    /// Holds the GPU: nobody else can have it.
    pub const fn holds_gpu(&self) -> bool {
        matches!(self.state, State::Booting { .. } | State::Running | State::Restarting { .. })
    }

    /// The GPU is billed.
    pub const fn pays_compute(&self) -> bool {
        matches!(self.state, State::Running | State::Restarting { .. })
    }

    /// Anything is billed. A machine whose host vanished is not, nor one that ended.
    pub const fn is_paid(&self) -> bool {
        !matches!(self.state, State::Offline { .. } | State::Ended)
    }

    /// Has been terminated.
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Bought to run: not stopped by its user.
    pub const fn wants_to_run(&self) -> bool {
        self.wants_to_run
    }

    /// Meters of compute and disk as of `now`.
    fn meters_at(&self, now: SimTime) -> (Meter, Meter) {
        let (mut gpu, mut disk) = (self.gpu, self.disk);
        if self.pays_compute() {
            gpu.run(self.settled_at, now, self.compute_micros_per_hour());
        }
        if self.is_paid() {
            disk.run(self.settled_at, now, self.storage_micros_per_gb_month);
        }
        (gpu, disk)
    }

    /// Brings the meters up to `now`; to be called before anything changes that they depend on.
    pub(super) fn settle(&mut self, now: SimTime) {
        (self.gpu, self.disk) = self.meters_at(now);
        self.settled_at = now;
    }

    /// What its compute has cost so far, in micro-dollars.
    pub fn compute_cost_micros(&self, now: SimTime) -> u64 {
        self.meters_at(now).0.micros_at_hourly_rate()
    }

    /// Whole seconds of compute billed so far.
    pub fn compute_seconds(&self, now: SimTime) -> u64 {
        self.meters_at(now).0.seconds()
    }

    /// What its disk has cost so far, in micro-dollars.
    pub fn disk_cost_micros(&self, now: SimTime) -> u64 {
        self.meters_at(now).1.micros_of_disk(self.disk_milli_gb)
    }

    /// What it has cost so far, in micro-dollars.
    pub fn cost_micros(&self, now: SimTime) -> u64 {
        let (gpu, disk) = self.meters_at(now);
        gpu.micros_at_hourly_rate() + disk.micros_of_disk(self.disk_milli_gb)
    }

    /// What it costs an hour in its present state, in micro-dollars.
    pub fn burn_micros_per_hour(&self) -> u64 {
        let compute = if self.pays_compute() { self.compute_micros_per_hour() } else { 0 };
        let disk = if self.is_paid() { self.disk_micros_per_hour() } else { 0 };
        compute + disk
    }
}
