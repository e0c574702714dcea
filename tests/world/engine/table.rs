//! The table of ends: everything that stops, interrupts or takes away, in every phase of a job and of a machine, and what must come of it.

use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::JobPhase;

use super::plan::Happening;

/// What becomes of the job and of the machine that it has when the end happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nobody wants the program to end: its machine goes on, and the job runs to its own end.
    GoesOn,
    /// The machine is ended or lost; the job goes on, on another one if need be, to its own end.
    Elsewhere,
    /// The job goes, and its machine.
    Deleted,
    /// The job is suspended in the end, and nothing is paid for; a job that was over stays as it was.
    Stopped,
}

/// All ends, and what comes of them.
pub const ENDS: [(Happening, Fate); 33] = [
    (Happening::JobDeleted, Fate::Deleted),
    (Happening::JobForced, Fate::Deleted),
    (Happening::JobForeground, Fate::Deleted),
    (Happening::NamespaceDeleted, Fate::Deleted),
    // Both are held until what was rented with them is gone; nothing new is rented before they are applied again.
    (Happening::ProviderDeleted, Fate::GoesOn),
    (Happening::SecretDeleted, Fate::GoesOn),
    // The Node is only a picture of the machines.
    (Happening::NodeDeleted, Fate::GoesOn),
    (Happening::NodeNotReady, Fate::GoesOn),
    (Happening::PodsCollected, Fate::GoesOn),
    (Happening::PodEvicted, Fate::GoesOn),
    // Somebody wants the program to end there: with a checkpoint, or at once.
    (Happening::PodDeleted, Fate::Elsewhere),
    (Happening::PodForced, Fate::Elsewhere),
    (Happening::Drained, Fate::Elsewhere),
    (Happening::MachineDeleted, Fate::Elsewhere),
    // Nothing new is rented for a while.
    (Happening::Cordoned, Fate::GoesOn),
    (Happening::Paused, Fate::GoesOn),
    (Happening::Suspended, Fate::Elsewhere),
    (Happening::SuspendedForGood, Fate::Stopped),
    (Happening::Poor, Fate::Elsewhere),
    (Happening::PoorForGood, Fate::Stopped),
    (Happening::ShortTtl, Fate::GoesOn),
    // Machines go on, but can be neither seen nor ended until the Secret holds the new key.
    (Happening::KeyRevoked, Fate::GoesOn),
    // The market stops machines that nobody can pay.
    (Happening::NoCredit, Fate::Elsewhere),
    (Happening::Reboot, Fate::Elsewhere),
    (Happening::Outbid, Fate::Elsewhere),
    (Happening::Reclaim, Fate::Elsewhere),
    (Happening::Outage, Fate::GoesOn),
    (Happening::Stranger, Fate::GoesOn),
    // Machines that the older state does not know are swept; numbers and checkpoints are told by the bucket.
    (Happening::EtcdRestored, Fate::Elsewhere),
    (Happening::ClaimLost, Fate::Elsewhere),
    // Of the cluster's own nodes.
    (Happening::RoomGone, Fate::Elsewhere),
    (Happening::WorkerPreempted, Fate::Elsewhere),
    (Happening::WorkerNodeLost, Fate::Elsewhere),
];

/// The moment of an end: when the job, or its machine, is first seen in this phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The job.
    Job(JobPhase),
    /// A machine.
    Machine(MachinePhase),
    /// The job, which runs on the cluster's own nodes.
    InCluster(JobPhase),
}

/// Phases in which a job in the cluster has a Pod there.
const IN_CLUSTER: [JobPhase; 3] = [JobPhase::Starting, JobPhase::Running, JobPhase::Checkpointing];

impl At {
    /// All moments: the columns of the table.
    pub fn all() -> Vec<Self> {
        let machines = MachinePhase::ALL.map(Self::Machine).into_iter();
        JobPhase::ALL.map(Self::Job).into_iter().chain(machines).chain(IN_CLUSTER.map(Self::InCluster)).collect()
    }
}

/// One end at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// When.
    pub at: At,
    /// What.
    pub end: Happening,
}

/// How a job must be in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JobEnd {
    /// Complete, or deleted if a user did that.
    #[default]
    Complete,
    /// Failed.
    Failed,
    /// Complete or Failed.
    Over,
    /// Suspended, with nothing rented.
    Suspended,
    /// Waits for money that is not there, with nothing rented.
    Waiting,
    /// Not there any more.
    Gone,
}

impl Cell {
    /// All of them, end by end.
    pub fn all() -> Vec<Self> {
        ENDS.iter().flat_map(|(end, _)| At::all().into_iter().map(|at| Self { at, end: *end })).collect()
    }

    /// What comes of the end.
    pub fn fate(self) -> Fate {
        ENDS.iter().find(|(end, _)| *end == self.end).expect("every end is in the table").1
    }

    /// How the job must be in the end.
    pub fn job_end(self) -> JobEnd {
        let own = if self.at == At::Job(JobPhase::Failed) { JobEnd::Failed } else { JobEnd::Complete };
        let over = matches!(self.at, At::Job(JobPhase::Complete | JobPhase::Failed));
        if self.end == Happening::PoorForGood && matches!(self.at, At::Job(JobPhase::Pending | JobPhase::Waiting)) {
            // It never had a machine: no offer fits what may be spent.
            return JobEnd::Waiting;
        }
        match self.fate() {
            // There it costs nothing.
            _ if matches!((self.at, self.end), (At::InCluster(_), Happening::PoorForGood)) => own,
            // The older state may not know of the failure, and the next attempt's program may do better.
            _ if self.end == Happening::EtcdRestored && own == JobEnd::Failed => JobEnd::Over,
            Fate::Deleted => JobEnd::Gone,
            Fate::Stopped if !over => JobEnd::Suspended,
            _ => own,
        }
    }
}

/// How far a cell's world came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reached {
    /// The phase was never seen.
    #[default]
    Never,
    /// In this phase there is nothing that the end could hit: no Pod, or no machine.
    Nothing,
    /// The end happened there.
    Happened,
}
