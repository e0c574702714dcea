//! The program beside the workload: restore, run, watch, upload, report.
//!
//! [`logic::Logic`] decides everything and touches nothing: it is fed [`logic::Input`]s and answers with [`logic::Action`]s. [`shell`]
//! is the only part that does I/O; the world simulation puts an object store in memory in its place.

pub mod config;
pub mod logic;
pub mod mask;
pub mod progress;
pub mod shell;
