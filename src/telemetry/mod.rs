//! What can be seen of the operator from outside besides its objects: log lines, metrics, error chains.
//!
//! Users learn from conditions and Events; logs and metrics are for those who run the operator.

pub mod logs;
pub mod metrics;
mod spend;

pub use logs::{LogFormat, chain};
pub use metrics::{Metrics, metrics};
