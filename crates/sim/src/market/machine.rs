//! A rented machine: its state, its price and its meters.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::kind::Kind;
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
    /// Its image could not be pulled (RunPod, which then stops the pod).
    PullFailed,
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

/// A stretch of time in which a machine's rates did not change.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: SimTime,
    until: SimTime,
    rates: Rates,
}

/// What a machine pays while its state stays, `None` for what is not in use.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    /// Micro-dollars an hour.
    compute: Option<u64>,
    /// Thousandths of a micro-dollar a month, for all its disks.
    storage: Option<u64>,
}

/// What a machine has used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meters {
    gpu: Meter,
    storage: Meter,
}

impl Meters {
    fn run(&mut self, from: SimTime, to: SimTime, rates: Rates) {
        if let Some(rate) = rates.compute {
            self.gpu.run(from, to, rate);
        }
        if let Some(rate) = rates.storage {
            self.storage.run(from, to, rate);
        }
    }

    fn compute_micros(&self) -> u64 {
        self.gpu.micros_at_hourly_rate()
    }

    fn storage_micros(&self) -> u64 {
        self.storage.micros_of_disk(1)
    }
}

/// One rental.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The provider's kind.
    pub kind: Kind,
    /// The market's number; on the wire it is [`Machine::wire_id`].
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
    /// A volume beside the disk that outlives stops, in thousandths of a GB; RunPod's `mounts.persistent`.
    pub volume_milli_gb: u64,
    /// Micro-dollars per GB of disk and month.
    pub storage_micros_per_gb_month: u64,
    /// GPUs, where the customer chooses how many.
    pub gpus: u32,
    /// The data centre, where offers have several.
    pub region: Option<String>,
    /// On hosts of strangers (RunPod's Community Cloud).
    pub community: bool,
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
    /// When its command was last started.
    pub command_since: Option<SimTime>,
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
    pub(super) meters: Meters,
    pub(super) history: History,
}

/// Every stretch that was settled, for bills by the hour or day. Kept where the provider publishes such bills.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Vec<Stretch>);

impl Machine {
    /// Rented by bid.
    pub const fn is_spot(&self) -> bool {
        self.bid_micros_per_hour.is_some()
    }

    /// What an hour of compute costs while it runs, in micro-dollars.
    pub fn compute_micros_per_hour(&self) -> u64 {
        self.bid_micros_per_hour.unwrap_or(self.on_demand_micros_per_hour)
    }

    /// The id as the provider writes it.
    pub fn wire_id(&self) -> String {
        self.kind.machine_id(self.id)
    }

    /// What an hour of its disk costs while it runs, in micro-dollars.
    pub fn disk_micros_per_hour(&self) -> u64 {
        disk_micros_per_hour(self.storage_micros_per_gb_month, self.disk_milli_gb + self.volume_milli_gb)
    }

    /// Holds the GPU: nobody else can have it.
    pub const fn holds_gpu(&self) -> bool {
        matches!(self.state, State::Booting { .. } | State::Running | State::Restarting { .. })
    }

    /// Its command runs, or is about to be started again.
    pub const fn runs(&self) -> bool {
        matches!(self.state, State::Running | State::Restarting { .. })
    }

    /// The GPU is billed.
    pub const fn pays_compute(&self) -> bool {
        self.runs() || (self.kind.bills_boot() && self.holds_gpu())
    }

    /// Still on the bill. A machine whose host vanished is not, nor one that ended. A stopped pod without a volume is, although it
    /// costs nothing while it stays so.
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

    /// What it pays in its present state. RunPod: the container's disk only while the pod runs, a volume at twice the rate while it
    /// does not (its pricing page).
    fn rates(&self) -> Rates {
        if !self.is_paid() {
            return Rates::default();
        }
        let (disk, volume) = match self.kind {
            Kind::Vast => (1, 0),
            Kind::Runpod if self.holds_gpu() => (1, 1),
            Kind::Runpod => (0, 2),
        };
        let billed = disk * self.disk_milli_gb + volume * self.volume_milli_gb;
        Rates {
            compute: self.pays_compute().then(|| self.compute_micros_per_hour()),
            storage: Some(self.storage_micros_per_gb_month.saturating_mul(billed)),
        }
    }

    /// The meters as of `now`.
    fn meters_at(&self, now: SimTime) -> Meters {
        let mut meters = self.meters;
        meters.run(self.settled_at, now, self.rates());
        meters
    }

    /// Brings the meters up to `now`; to be called before anything changes that they depend on.
    pub(super) fn settle(&mut self, now: SimTime) {
        self.meters = self.meters_at(now);
        if self.kind == Kind::Runpod && self.settled_at < now {
            self.history.0.push(Stretch { from: self.settled_at, until: now, rates: self.rates() });
        }
        self.settled_at = now;
    }

    /// What compute and disks had cost by `at`, in micro-dollars: differences of two instants add up to the whole bill. Only where
    /// the provider bills by the hour or day.
    pub fn costs_by(&self, at: SimTime) -> (u64, u64) {
        let mut meters = Meters::default();
        for stretch in self.history.0.iter().filter(|stretch| stretch.from < at) {
            meters.run(stretch.from, stretch.until.min(at), stretch.rates);
        }
        if self.settled_at < at {
            meters.run(self.settled_at, at, self.rates());
        }
        (meters.compute_micros(), meters.storage_micros())
    }

    /// What its compute has cost so far, in micro-dollars.
    pub fn compute_cost_micros(&self, now: SimTime) -> u64 {
        self.meters_at(now).compute_micros()
    }

    /// Whole seconds of compute billed so far.
    pub fn compute_seconds(&self, now: SimTime) -> u64 {
        self.meters_at(now).gpu.seconds()
    }

    /// What its disks have cost so far, in micro-dollars.
    pub fn disk_cost_micros(&self, now: SimTime) -> u64 {
        self.meters_at(now).storage_micros()
    }

    /// What it has cost so far, in micro-dollars.
    pub fn cost_micros(&self, now: SimTime) -> u64 {
        let meters = self.meters_at(now);
        meters.compute_micros() + meters.storage_micros()
    }

    /// What it costs an hour in its present state, in micro-dollars.
    pub fn burn_micros_per_hour(&self) -> u64 {
        let rates = self.rates();
        rates.compute.unwrap_or(0) + disk_micros_per_hour(rates.storage.unwrap_or(0), 1)
    }
}
