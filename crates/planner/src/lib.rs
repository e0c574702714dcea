//! Pure placement: which offer finishes the work at the lowest expected total cost, and why.
//!
//! [`plan`] is a total function of its arguments: no I/O, no clock, no randomness, no floats. Every offer ends up in exactly one
//! place: ranked, cut by the limit, or counted in one [`Rejection`]; the order of the offers given does not matter. The
//! [`explain`] module says it in sentences; [`check()`] lists everything that is wrong with a plan, whoever made it.
//!
//! What it leaves to others: fetching offers, remembering refusals and bans, admitting the order, and deciding when to move a
//! machine that already runs.

mod check;
mod cost;
pub mod explain;
mod fit;
mod gang;
pub mod gpus;
mod index;
mod knowledge;
mod lookup;
mod moves;
mod needs;
mod rank;
mod relax;
mod speed;
pub mod when;

pub use check::{Problem, check};
pub use cost::{CostBreakdown, TimeBreakdown, transfer_s};
pub use fit::RejectReason;
pub use gang::{Gang, GangPlace, GangPlan, Together, gang};
pub use index::{Effort, OfferIndex, Pending};
pub use knowledge::{
    DEFAULT_CHECKPOINT_UPLOAD_S, DEFAULT_DOWNLOAD_MBPS, DEFAULT_IMAGE_MB, DEFAULT_MEAN_LIFE_S, DEFAULT_RELIABILITY_PPM,
    DEFAULT_REPAIR_S, DEFAULT_SETUP_S, HostRecord, JobFacts, Knowledge, Pool, REFUSAL_S, RefusedNote,
};
pub use moves::{MoveRules, Running, Verdict, staying, verdict};
pub use needs::{CapacityChoice, Requirements, WorkLeft};
pub use rank::{Candidate, Fitting, Plan, Rejection, plan, rank};
pub use relax::Relaxation;
pub use speed::{SpeedBasis, UNKNOWN_SPEED_MILLI, speed_milli};
