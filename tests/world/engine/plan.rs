//! What a world is like: jobs, market and trouble, all from one seed.

use std::time::Duration;

use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::training_job::JobPhase;
use tradewind_core::gate::Verdict;

use super::chance::Chance;
use super::program::Recipe;
use super::table::{At, Cell};

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// How rough it is.
    pub mood: Mood,
    /// A bug to be found.
    pub mutant: Option<Mutant>,
    /// One call of an operator that goes wrong.
    pub cut: Option<Cut>,
    /// Remember every call for a sweep.
    pub record: bool,
    /// Print every event.
    pub verbose: bool,
}

impl Options {
    /// A world of this seed and mood.
    pub fn new(seed: u64, mood: Mood) -> Self {
        Self { seed, mood, mutant: None, cut: None, record: false, verbose: false }
    }
}

/// How rough a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Everything that can happen may happen.
    Rough,
    /// The same, and jobs that run in the cluster, with several workers too.
    Cluster,
    /// Nothing goes wrong but what the story says.
    Story(Story),
    /// One end in one phase: nothing goes wrong but what leads to the phase, and then the end.
    Cell(Cell),
    /// One job with a deadline. Spot machines are taken away and operators die; what stays can always be had.
    Deadline,
}

impl Mood {
    /// Chance decides.
    pub fn is_rough(self) -> bool {
        matches!(self, Self::Rough | Self::Cluster)
    }
}

/// The reference runs of the crash sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Story {
    /// Rented, outbid once, resumed, complete.
    Outbid,
    /// The first offer is refused with something left behind, the next rent call's answer is lost; complete.
    Unknown,
    /// Deleted while the program runs.
    Deleted,
    /// The Pod is lost while the program runs and made again on the same machine.
    PodLost,
    /// The newest checkpoint is damaged and the machine lost: the next one falls back to the one before.
    Damaged,
    /// A rent call's answer is lost, and the market is away for longer than an order may stay unknown.
    Blackout,
    /// Two jobs, and money for one machine at a time.
    TwoJobs,
    /// Outbid in the moment in which the machine has reported a checkpoint that the operator has not read.
    LastWord,
    /// Suspended while the program runs, and resumed.
    Suspended,
    /// The Pod is deleted by a user while the program runs: it saves its state and goes on elsewhere.
    PodDeleted,
    /// The budget is used up while the program runs, and raised.
    Budget,
    /// Suspended while the outcome of the rent call is not known, and resumed.
    SuspendedUnknown,
    /// The operator is away beyond the money line: the machine saves, stops and ends its own rental.
    Silent,
    /// The Provider is deleted while the program runs: it goes when the machine is gone, and is applied again.
    ProviderDeleted,
    /// The same with the Secret that has the account's key.
    SecretDeleted,
    /// The program fails once and begins again on the same machine.
    Fails,
    // From here on the jobs run in the cluster.
    /// Runs in the cluster, is drained away, goes on on a machine.
    Drained,
    /// Rented, outbid, goes on in the cluster.
    Room,
    /// Runs in the cluster, where a user deletes its Pod.
    WorkerDeleted,
    /// Two workers, one of them preempted.
    Gang,
    /// Two workers that both save, one of them on a node that is lost.
    GangSaves,
    /// Two jobs with two workers each, and room for three.
    TwoGangs,
    /// Two workers that both save and do not keep step, one of them lost while the operator is away.
    GangUneven,
}

impl Story {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Outbid,
        Self::Unknown,
        Self::Deleted,
        Self::PodLost,
        Self::Damaged,
        Self::Blackout,
        Self::TwoJobs,
        Self::LastWord,
        Self::Suspended,
        Self::PodDeleted,
        Self::Budget,
        Self::SuspendedUnknown,
        Self::Silent,
        Self::ProviderDeleted,
        Self::SecretDeleted,
        Self::Fails,
        Self::Drained,
        Self::Room,
        Self::WorkerDeleted,
        Self::Gang,
        Self::GangSaves,
        Self::TwoGangs,
        Self::GangUneven,
    ];
}

/// One call that goes wrong: the `call`-th of all operators, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Which.
    pub call: u64,
    /// How.
    pub way: Way,
}

/// How one call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The gate's verdict.
    Call(Verdict),
    /// Before it the process freezes; another takes over, and then this one goes on for a moment with what it knew.
    Freeze,
    /// The same after its effect: the answer reaches it late, when another has taken over.
    FreezeAfter,
    /// The same inside a rent call: it has passed every check, and its request leaves long after.
    FreezeInside,
    /// The same for so long that the order was called refused by then.
    FreezeInsideLong,
    /// Before it the user deletes the job.
    Delete,
}

/// A deliberate bug, put between operator and world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// An order's write is swallowed; the rent call follows all the same.
    RentWithoutOrder,
    /// A rent call is made twice.
    RentTwice,
    /// The call may start long after the order's write.
    RentLate,
    /// A termination is swallowed and the machine called gone.
    DropTerminate,
    /// A failed list reads as an empty one.
    FailedListIsEmpty,
    /// Writes of a RentedMachine's status are not version-checked.
    NoVersionCheck,
    /// A checkpoint is committed over the fence of a later attempt.
    CommitAcrossFence,
    /// The list of settled machines is lost.
    SettleTwice,
    /// A chunk of the newest checkpoint is deleted.
    DeleteChunk,
    /// The ledger sees no other machine.
    BlindLedger,
    /// A machine takes a damaged checkpoint for a good one.
    RestoreUnverified,
    /// The last report of a lost machine is never read.
    SkipLastReport,
    /// The list of machines in a Provider's books is lost.
    BookTwice,
    /// The Secret with the account's key is never held.
    SecretNotHeld,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::RentWithoutOrder,
        Self::RentTwice,
        Self::RentLate,
        Self::DropTerminate,
        Self::FailedListIsEmpty,
        Self::NoVersionCheck,
        Self::CommitAcrossFence,
        Self::SettleTwice,
        Self::DeleteChunk,
        Self::BlindLedger,
        Self::RestoreUnverified,
        Self::SkipLastReport,
        Self::BookTwice,
        Self::SecretNotHeld,
    ];
}

/// How often calls go wrong, in millionths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    /// The operator dies at a call.
    pub crash: u64,
    /// A call's effect happens, its answer is lost.
    pub lost: u64,
    /// A call fails without effect.
    pub fails: u64,
    /// A call is slow: before or after its effect.
    pub slow: u64,
    /// A request of a machine fails.
    pub machine: u64,
}

/// Something that happens to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A running machine is outbid; its processes may live on as a zombie.
    Outbid,
    /// A running machine is outbid, if it can be.
    SpotTaken,
    /// A host vanishes; its processes may live on.
    Reclaim,
    /// A machine's container exits and is started again by the host.
    Reboot,
    /// A boot fails.
    BootFails,
    /// A machine shows a word that nobody knows, for a while.
    StrangeWord,
    /// Nothing is left of any offer, for a while.
    SoldOut,
    /// Prices move.
    Prices,
    /// The next rent call is answered in this way.
    RentFault,
    /// The account has no credit, for a while.
    NoCredit,
    /// The account's key is refused, until the Secret holds a new one.
    KeyRevoked,
    /// The market does not answer, for a while.
    MarketAway,
    /// Both buckets do not answer, for a while.
    StoreAway,
    /// The API server does not answer, for a while.
    ApiAway,
    /// The operator dies.
    Crash,
    /// The operator is away for long.
    Outage,
    /// The operator freezes, another takes over, the old one goes on for a moment.
    Failover,
    /// The virtual Node is deleted.
    NodeDeleted,
    /// The virtual Node is called unreachable, and the taint manager evicts its Pods.
    NodeNotReady,
    /// The virtual Node is deleted, and PodGC ends its Pods before it is there again.
    PodsCollected,
    /// The virtual Node is drained: cordoned for a while, its Pods evicted.
    Drained,
    /// The job's Pod is deleted.
    PodDeleted,
    /// The job's Pod is deleted by force.
    PodForced,
    /// The job is suspended, for a while.
    Suspended,
    /// The job is suspended, and stays so.
    SuspendedForGood,
    /// The virtual Node is cordoned, for a while.
    Cordoned,
    /// The job's budget is far too low, for a while.
    Poor,
    /// The job's budget is far too low, and stays so.
    PoorForGood,
    /// The user wants a finished job's Pods gone after a moment.
    ShortTtl,
    /// The job's Pod is evicted.
    PodEvicted,
    /// A RentedMachine is deleted by hand.
    MachineDeleted,
    /// A RentedMachine is deleted by hand, its finaliser torn off.
    ClaimLost,
    /// The newest checkpoint is damaged.
    Damage,
    /// A machine writes rubbish into its report.
    Rubbish,
    /// The job is deleted.
    JobDeleted,
    /// The job is deleted with `--force --grace-period=0`.
    JobForced,
    /// The job is deleted with `--cascade=foreground`.
    JobForeground,
    /// The namespace is deleted.
    NamespaceDeleted,
    /// The Provider is paused, for a while.
    Paused,
    /// Somebody else's Pod is put on our Node, and deleted after a while.
    Stranger,
    /// The Provider is deleted, and applied again once it is gone.
    ProviderDeleted,
    /// The same with the Secret that has the account's key.
    SecretDeleted,
    /// The API server is put back to an earlier state.
    EtcdRestored,
    /// The cluster's own nodes are drained, for a while.
    RoomGone,
    /// A Pod in the cluster makes room for one of higher priority.
    WorkerPreempted,
    /// One of the cluster's nodes no longer answers, for a while.
    WorkerNodeLost,
    /// One of the cluster's nodes is gone, and PodGC takes its Pods away.
    WorkerNodeGone,
    /// A caches' watch breaks and lists again, late.
    Relist,
}

/// What a rough world draws its happenings from. Frequent ones stand here more than once.
const USUAL: [Happening; 36] = [
    Happening::Outbid,
    Happening::Outbid,
    Happening::Outbid,
    Happening::Outbid,
    Happening::Reclaim,
    Happening::Reclaim,
    Happening::Reboot,
    Happening::BootFails,
    Happening::StrangeWord,
    Happening::SoldOut,
    Happening::Prices,
    Happening::RentFault,
    Happening::RentFault,
    Happening::NoCredit,
    Happening::MarketAway,
    Happening::StoreAway,
    Happening::ApiAway,
    Happening::Crash,
    Happening::Crash,
    Happening::Outage,
    Happening::Failover,
    Happening::Failover,
    Happening::NodeDeleted,
    Happening::PodDeleted,
    Happening::PodForced,
    Happening::Suspended,
    Happening::Cordoned,
    Happening::Poor,
    Happening::PodEvicted,
    Happening::MachineDeleted,
    Happening::Damage,
    Happening::Rubbish,
    Happening::Paused,
    Happening::ProviderDeleted,
    Happening::SecretDeleted,
    Happening::Relist,
];

/// The same for a rough world in the cluster.
const IN_CLUSTER: [Happening; 12] = [
    Happening::RoomGone,
    Happening::RoomGone,
    Happening::WorkerPreempted,
    Happening::WorkerPreempted,
    Happening::WorkerNodeLost,
    Happening::WorkerNodeLost,
    Happening::WorkerNodeGone,
    Happening::PodDeleted,
    Happening::PodForced,
    Happening::Crash,
    Happening::Failover,
    Happening::Suspended,
];

/// One world's nature.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Jobs.
    pub jobs: Vec<Recipe>,
    /// How the jobs treat the cluster's own nodes: `Prefer`, `Only` or `Never`.
    pub in_cluster: &'static str,
    /// Pods that each of the cluster's own nodes takes.
    pub slots: Vec<u32>,
    /// The cluster's own nodes have room from this time on.
    pub room_at: Option<Duration>,
    /// Restarts that a job's program may have, if it says so.
    pub max_restarts: Option<u32>,
    /// Checkpoints kept.
    pub keep: u32,
    /// Dollars an hour that may be spent on the account.
    pub per_hour: String,
    /// Those dollars are the limit of an entry of the account's access list, not of the account.
    pub by_access: bool,
    /// How long the operator may be away before machines end themselves.
    pub tolerance: &'static str,
    /// Secret values travel to the machine.
    pub secrets: bool,
    /// The jobs' `completeWithin`.
    pub complete_within: Option<String>,
    /// The hours of work that they say they are.
    pub work_hours: String,
    /// Their `placement.patience` and `placement.maxPricePerHour`, where they may be rented for.
    pub patience: Option<(&'static str, &'static str)>,
    /// How often calls go wrong while it is rough.
    pub odds: Odds,
    /// Longest lag of a watch.
    pub watch_lag: Duration,
    /// What happens when.
    pub happenings: Vec<(Duration, Happening)>,
    /// From here on nothing goes wrong.
    pub calm_at: Duration,
}

impl Plan {
    /// The plan that follows from a seed and a mood.
    pub fn new(seed: u64, mood: Mood) -> Self {
        match mood {
            Mood::Rough => Self::rough(&mut Chance::new(seed, "plan")).timed(&mut Chance::new(seed, "time")),
            Mood::Cluster => Self::clustered(&mut Chance::new(seed, "plan")).timed(&mut Chance::new(seed, "time")),
            Mood::Story(story) => Self::story(story),
            Mood::Cell(cell) => Self::cell(&mut Chance::new(seed, "plan"), cell.at),
            Mood::Deadline => Self::with_deadline(&mut Chance::new(seed, "plan")),
        }
    }

    /// What leads to a phase, at other moments for each seed.
    fn cell(chance: &mut Chance, at: At) -> Self {
        let mut plan = Self::story(Story::Outbid);
        let moment = chance.millis(24_000, 34_000);
        let happens = |what| vec![(moment, what)];
        plan.happenings = match at {
            At::Job(JobPhase::Checkpointing)
            | At::InCluster(JobPhase::Checkpointing)
            | At::Machine(MachinePhase::Draining) => happens(Happening::PodDeleted),
            At::Job(JobPhase::Suspending | JobPhase::Suspended) => happens(Happening::Suspended),
            At::Job(JobPhase::Resuming) | At::Machine(MachinePhase::Terminating | MachinePhase::Gone) => {
                happens(Happening::Outbid)
            }
            At::Machine(MachinePhase::Unknown) => vec![(Duration::ZERO, Happening::RentFault)],
            _ => Vec::new(),
        };
        if at == At::Job(JobPhase::Failed) {
            plan.max_restarts = Some(0);
            plan.jobs[0].fails = Some((0, 5));
        }
        plan.jobs[0].step_time = Duration::from_secs(3);
        // The last save takes its time, so that something can happen before it is home.
        plan.jobs[0].save_time = chance.millis(400, 4_000);
        plan.in_cluster = if chance.one_in(3) { "Prefer" } else { "Never" };
        if matches!(at, At::InCluster(_)) {
            (plan.in_cluster, plan.room_at) = ("Prefer", Some(Duration::ZERO));
        }
        plan.watch_lag = chance.millis(20, 1_500);
        // A phase is reached long before; the end moves this to after its own troubles.
        plan.calm_at = Duration::from_mins(15);
        plan
    }

    fn rough(chance: &mut Chance) -> Self {
        let jobs: usize = if chance.one_in(5) { 2 } else { 1 };
        let recipes = (0..jobs).map(|n| recipe(chance, n)).collect();
        let calm_at = chance.millis(60_000, 1_200_000);
        let mut happenings: Vec<(Duration, Happening)> = (0..chance.below(9))
            .map(|_| (chance.millis(0, u64::try_from(calm_at.as_millis()).unwrap_or(0)), chance.pick(&USUAL)))
            .collect();
        if chance.one_in(4) {
            let end = if chance.one_in(4) { Happening::NamespaceDeleted } else { Happening::JobDeleted };
            happenings.push((chance.millis(0, 400_000), end));
        }
        happenings.sort_by_key(|(at, _)| *at);
        let longest_lag = if chance.one_in(4) { 40_000 } else { 1_500 };
        let rough = |chance: &mut Chance, most: u64| if chance.one_in(2) { 0 } else { chance.between(0, most) };
        Self {
            jobs: recipes,
            in_cluster: if chance.one_in(4) { "Prefer" } else { "Never" },
            max_restarts: None,
            slots: vec![8],
            room_at: chance.one_in(8).then(|| chance.millis(0, 300_000)),
            keep: u32::try_from(chance.between(1, 3)).unwrap_or(1),
            // Room for one machine, or for several.
            per_hour: if jobs == 2 && chance.one_in(2) { "0.45".to_owned() } else { "3".to_owned() },
            by_access: chance.one_in(3),
            tolerance: if chance.one_in(3) { "3m" } else { "24h" },
            secrets: chance.one_in(6),
            complete_within: None,
            work_hours: "0.1".to_owned(),
            patience: None,
            odds: Odds {
                crash: rough(chance, 3_000),
                lost: rough(chance, 10_000),
                fails: rough(chance, 20_000),
                slow: rough(chance, 40_000),
                machine: rough(chance, 50_000),
            },
            watch_lag: chance.millis(20, longest_lag),
            happenings,
            calm_at,
        }
    }

    /// A rough world with jobs in the cluster, whose nodes have room for the largest of them, mostly not for all.
    fn clustered(chance: &mut Chance) -> Self {
        let mut plan = Self::rough(chance);
        let jobs = 1 + chance.below(3);
        plan.jobs = (0..jobs).map(|n| recipe(chance, n)).collect();
        for job in &mut plan.jobs {
            job.workers = chance.pick(&[1, 1, 2, 2, 3]);
            job.all_ranks = job.workers > 1 && chance.one_in(2);
            job.hangs = chance.one_in(8).then(|| (0, chance.between(1, job.steps)));
        }
        plan.in_cluster = chance.pick(&["Prefer", "Prefer", "Only"]);
        plan.slots = chance.pick::<&[u32]>(&[&[3], &[1, 1, 1], &[2, 2], &[2, 1, 2]]).to_vec();
        plan.room_at = Some(if chance.one_in(2) { Duration::ZERO } else { chance.millis(0, 200_000) });
        "3".clone_into(&mut plan.per_hour);
        plan.secrets = false;
        let most = u64::try_from(plan.calm_at.as_millis()).unwrap_or(0).min(400_000);
        let drawn = (0..=chance.below(6)).map(|_| (chance.millis(5_000, most), chance.pick(&IN_CLUSTER)));
        plan.happenings.extend(drawn.collect::<Vec<_>>());
        plan.happenings.sort_by_key(|(at, _)| *at);
        plan
    }

    pub(super) fn story(story: Story) -> Self {
        let at = Duration::from_secs;
        let happenings = match story {
            Story::Outbid | Story::Room => vec![(at(62), Happening::Outbid)],
            Story::Unknown => vec![(at(0), Happening::RentFault)],
            Story::Blackout => vec![(at(0), Happening::RentFault), (Duration::from_millis(1), Happening::MarketAway)],
            Story::TwoJobs | Story::LastWord | Story::Fails | Story::TwoGangs => Vec::new(),
            Story::Deleted => vec![(at(60), Happening::JobDeleted)],
            Story::PodLost => vec![(at(45), Happening::PodEvicted)],
            Story::PodDeleted | Story::WorkerDeleted => vec![(at(45), Happening::PodDeleted)],
            Story::Suspended => vec![(at(48), Happening::Suspended)],
            Story::Silent => vec![(at(48), Happening::Outage)],
            Story::Budget => vec![(at(48), Happening::Poor)],
            Story::SuspendedUnknown => {
                vec![(at(0), Happening::RentFault), (Duration::from_millis(3_500), Happening::Suspended)]
            }
            Story::ProviderDeleted => vec![(at(45), Happening::ProviderDeleted)],
            Story::SecretDeleted => vec![(at(45), Happening::SecretDeleted)],
            Story::Damaged => vec![(at(62), Happening::Damage), (at(63), Happening::Outbid)],
            Story::Drained => vec![(at(45), Happening::RoomGone)],
            Story::Gang => vec![(at(45), Happening::WorkerPreempted)],
            Story::GangSaves => vec![(at(45), Happening::WorkerNodeLost)],
            Story::GangUneven => vec![(at(45), Happening::Outage), (at(300), Happening::WorkerNodeLost)],
        };
        let recipe = Recipe {
            salt: 7,
            steps: if story == Story::GangUneven { 80 } else { 12 },
            step_time: at(5),
            drag: Duration::from_millis(if story == Story::GangUneven { 400 } else { 0 }),
            save_every: 3,
            save_time: Duration::from_millis(400),
            fails: (story == Story::Fails).then_some((0, 7)),
            saves_on_stop: true,
            hangs: None,
            workers: if matches!(story, Story::Gang | Story::GangSaves | Story::TwoGangs | Story::GangUneven) {
                2
            } else {
                1
            },
            all_ranks: matches!(story, Story::GangSaves | Story::GangUneven),
        };
        let two = matches!(story, Story::TwoJobs | Story::TwoGangs);
        let clustered = story >= Story::Drained;
        Self {
            jobs: if two { vec![Recipe { salt: 8, ..recipe.clone() }, recipe] } else { vec![recipe] },
            in_cluster: if story == Story::PodLost || clustered { "Prefer" } else { "Never" },
            slots: if story == Story::TwoGangs { vec![2, 1] } else { vec![1, 1] },
            room_at: clustered.then(|| if story == Story::Room { at(50) } else { Duration::ZERO }),
            max_restarts: None,
            keep: 2,
            per_hour: if story == Story::TwoJobs { "0.3" } else { "3" }.to_owned(),
            by_access: false,
            tolerance: if story == Story::Silent { "30s" } else { "24h" },
            secrets: false,
            complete_within: None,
            work_hours: "0.1".to_owned(),
            patience: None,
            odds: Odds::default(),
            watch_lag: Duration::from_millis(60),
            happenings,
            calm_at: match story {
                Story::Blackout => at(260),
                Story::Silent => at(50),
                Story::GangUneven => at(350),
                Story::Drained => at(150),
                Story::Suspended | Story::Budget | Story::SuspendedUnknown => at(300),
                _ => at(70),
            },
        }
    }
}

/// What the n-th job runs.
pub(super) fn recipe(chance: &mut Chance, n: usize) -> Recipe {
    let steps = chance.between(4, 36);
    Recipe {
        salt: chance.next() ^ u64::try_from(n).unwrap_or(0),
        steps,
        step_time: chance.millis(1_000, 9_000),
        drag: Duration::ZERO,
        save_every: chance.between(1, 9),
        save_time: chance.millis(10, 3_000),
        saves_on_stop: chance.one_in(2),
        hangs: None,
        workers: 1,
        all_ranks: false,
        fails: chance.one_in(6).then(|| (u32::try_from(chance.between(0, 2)).unwrap_or(0), chance.between(1, steps))),
    }
}
