//! Conditions: types, the closed list of reasons, and the one way to set them.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The spec is understood and can be carried out.
pub const ACCEPTED: &str = "Accepted";
/// A place to run is chosen.
pub const PLACED: &str = "Placed";
/// The workers run (a Provider: the account can be used).
pub const READY: &str = "Ready";
/// Something is on its way.
pub const RECONCILING: &str = "Reconciling";
/// Nothing moves until somebody acts.
pub const STALLED: &str = "Stalled";
/// The job was stopped, with a checkpoint, and goes on when what stopped it is taken back.
pub const SUSPENDED: &str = "Suspended";
/// Many machines of a Provider were taken away at once, a moment ago.
pub const LOSSES_AT_ONCE: &str = "LossesAtOnce";
/// The job will be complete, or was, before its deadline.
pub const ON_TIME: &str = "OnTime";
/// The job has finished with success.
pub const COMPLETE: &str = "Complete";
/// The job has failed for good.
pub const FAILED: &str = "Failed";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Every reason that a condition or an Event of ours can have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }
        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            /// The word in objects, Events and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
            /// The reason with this word.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == word)
            }
        }
    };
}

reasons! {
    /// The spec passed every check.
    Valid,
    /// The API server would refuse the Pod.
    PodRefused,
    /// Several workers need a private network between them, which rented machines do not have: the job waits for room in the cluster.
    NoPrivateNetwork,
    /// Another job with several workers waits for room in the cluster and is older.
    WaitingForTurn,
    /// A scheduling gate holds the Pods (Kueue, for example): its owner decides when they may run.
    Gated,
    /// Not all workers had a node within `gangTimeout`: all were given back.
    GangTimeout,
    /// The workers wait until each of them is there.
    WaitingForWorkers,
    /// A Pod in the cluster was evicted, drained, preempted, or its node was lost.
    Disrupted,
    /// The template has something that a rented machine cannot give, and the job must not run in the cluster.
    NotRentable,
    /// The first container names no command, and the image's own cannot be read.
    CommandRequired,
    /// `checkpoint` has a pattern, path or argument that no agent could go by.
    InvalidCheckpoint,
    /// `work` names a GPU that is not known.
    UnknownGpu,
    /// The template has something that our agent in the Pod needs for itself.
    TemplateConflict,
    /// A Secret does not exist.
    SecretNotFound,
    /// A ResourceQuota of the namespace has no room for the Pod.
    QuotaExceeded,
    /// A Secret has no such key.
    SecretKeyMissing,
    /// The operator may not read a Secret.
    SecretsNotReadable,
    /// The bucket does not exist.
    BucketNotFound,
    /// The bucket refuses what we must do.
    BucketDenied,
    /// The object store does not answer.
    StorageUnavailable,
    /// The store has no put-if-absent.
    StorageUnsuitable,
    /// The location text is wrong.
    InvalidLocation,
    /// The operator has no mailbox, so it cannot rent.
    NoMailbox,
    /// The cluster may still have room.
    WaitingForCluster,
    /// The operator waits for fresh offers.
    WaitingForOffers,
    /// A machine could be had; the job waits for a cheaper one while it may.
    WaitingForPrice,
    /// No Provider may be used.
    NoProvider,
    /// No `access` entry of a Provider selects the job's namespace.
    NoAccess,
    /// No offer fits.
    NoOffer,
    /// Every offer that fits was refused.
    OffersRefused,
    /// A money limit stands in the way.
    LimitReached,
    /// The job's budget is used up.
    BudgetExhausted,
    /// `spec.suspend` is true.
    Suspended,
    /// A user or an eviction asked for the end of the Pod.
    PodDeleted,
    /// The rental Node is cordoned.
    NodeCordoned,
    /// The job runs on the cluster's own node.
    InCluster,
    /// A machine is being rented.
    Renting,
    /// The job runs on a rented machine.
    Rented,
    /// The program runs.
    Running,
    /// The job leaves its machine for a better one.
    Moving,
    /// The deadline will be kept, even if what is rented is lost.
    DeadlineInReach,
    /// The deadline is kept only if things go well, or it was not looked at.
    DeadlineAtRisk,
    /// Nothing that may be had keeps the deadline.
    DeadlineOutOfReach,
    /// The job was complete before its deadline.
    DeadlineKept,
    /// The deadline is over and the job was not complete.
    DeadlineMissed,
    /// The machine was lost; the next attempt is prepared.
    Resuming,
    /// The job is finished.
    Finished,
    /// The program failed too often.
    TooManyRestarts,
    /// The program failed.
    ProgramFailed,
    /// The program failed within minutes on a host where none of ours has worked before: others are preferred for a while.
    HostSuspected,
    /// The program was killed because its machine ran out of memory.
    OutOfMemory,
    /// The program was killed, and nothing says for want of memory.
    Killed,
    /// The program showed no sign of life for `stallTimeout`.
    ProgramStalled,
    /// The operator was away up to the money line: the machine saved its state and ended.
    OperatorSilent,
    /// The machine was outbid or taken back.
    Preempted,
    /// The machine never started our agent.
    AgentNotStarted,
    /// The machine could not start the image.
    BootFailed,
    /// The machine has less than was rented: nothing was started on it.
    HostUnfit,
    /// The machine rebooted under us.
    MachineRestarted,
    /// The agent on the machine cannot go on.
    AgentFailed,
    /// The machine, or a worker in the cluster, stopped reporting.
    AgentSilent,
    /// Ended because nobody needs it any more.
    Released,
    /// Deleted by hand.
    Deleted,
    /// The outcome of an order is not known yet.
    OutcomeUnknown,
    /// An order was refused.
    OrderRefused,
    /// The provider's account works.
    AccountReady,
    /// The provider refuses the key.
    KeyRefused,
    /// The provider does not answer.
    ProviderUnavailable,
    /// The account has no credit.
    OutOfCredit,
    /// `spec.paused` of the Provider is true.
    Paused,
    /// The provider billed something else for a machine than we say it cost.
    BillDiffers,
    /// The Provider or the Secret with its key is being deleted.
    Deleting,
    /// Our finaliser cannot be put on the Provider or on the Secret with its key.
    NotHeld,
    /// Many machines of one account were taken away at once.
    LossesAtOnce,
    /// Another job keeps its checkpoints at the same location.
    CheckpointLocationInUse,
    /// A run of this name is there, unfinished, and `checkpoint.onExisting` is Fail.
    RunExists,
    /// A run of this name is complete, but with another spec.
    FinishedWithOtherSpec,
    /// The program cannot be started on a machine that is there.
    NotStartable,
    /// The agent tells of something a user should know.
    AgentWarning,
    /// A kind of provider that this version does not have.
    KindNotSupported,
    /// A checkpoint counts.
    CheckpointCommitted,
    /// A checkpoint that could not be restored.
    CheckpointCorrupt,
    /// Nothing could be restored.
    NoUsableCheckpoint,
    /// The job goes on from a checkpoint.
    Resumed,
    /// A checkpoint was restored, but the program counts from an earlier step.
    NotResumed,
    /// The program has run for long and nothing that it saves was found.
    NothingSaved,
    /// An offered checkpoint was refused.
    CheckpointRefused,
    /// A machine that nobody claims was ended.
    OrphanTerminated,
    /// A Pod that is not ours is bound to the rental node.
    NotARentalNode,
    /// The pod was lost but the machine lives.
    PodLost,
    /// The program failed and begins again on the same machine.
    Restarted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sets one condition; the transition time changes only with the status. Returns whether anything changed.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    now: Timestamp,
    generation: i64,
    type_: &str,
    status: Option<bool>,
    reason: Reason,
    message: impl Into<String>,
) -> bool {
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let message = bounded(message.into(), 1024);
    if let Some(old) = conditions.iter_mut().find(|c| c.type_ == type_) {
        let same_status = old.status == status;
        if same_status
            && old.reason == reason.as_str()
            && old.message == message
            && old.observed_generation == Some(generation)
        {
            return false;
        }
        if !same_status {
            old.last_transition_time = Time(now);
        }
        status.clone_into(&mut old.status);
        reason.as_str().clone_into(&mut old.reason);
        old.message = message;
        old.observed_generation = Some(generation);
    } else {
        conditions.push(Condition {
            last_transition_time: Time(now),
            message,
            observed_generation: Some(generation),
            reason: reason.as_str().to_owned(),
            status: status.to_owned(),
            type_: type_.to_owned(),
        });
    }
    true
}

/// The condition of this type, if it is there.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// `text` cut to at most `max` characters, with an ellipsis where something is missing.
pub fn bounded(text: String, max: usize) -> String {
    if text.chars().count() <= max {
        return text;
    }
    let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_unique_pascal_case_words() {
        let words: BTreeSet<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            let pascal =
                word.starts_with(|c: char| c.is_ascii_uppercase()) && word.bytes().all(|b| b.is_ascii_alphanumeric());

            assert!(pascal && word.len() <= 64, "{word}");
        }
    }

    #[test]
    fn conditions_change_their_time_only_with_their_status() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, at(1), 1, READY, None, Reason::Valid, "not looked at yet"));
        assert!(set_condition(&mut conditions, at(2), 1, READY, Some(true), Reason::Running, "runs"));
        assert!(
            !set_condition(&mut conditions, at(3), 1, READY, Some(true), Reason::Running, "runs"),
            "nothing changed"
        );
        assert!(set_condition(&mut conditions, at(4), 2, READY, Some(true), Reason::Running, "runs on"));
        let ready = condition(&conditions, READY).unwrap();
        assert_eq!((ready.last_transition_time.0, ready.observed_generation), (at(2), Some(2)));
        assert_eq!((conditions.len(), ready.message.as_str()), (1, "runs on"));
        assert!(set_condition(&mut conditions, at(5), 2, READY, Some(false), Reason::Preempted, "x".repeat(5000)));
        assert_eq!(condition(&conditions, READY).unwrap().message.chars().count(), 1024);
    }
}
