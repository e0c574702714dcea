//! The Tradewind operator: controllers that place training jobs on rented machines and never forget one.
//!
//! Controllers reach the outside only through ports (`Cluster`, `GpuProvider`, stores, `Clock`), so that the same code runs on a real
//! cluster and in the world simulation of `tests/world`. `docs/architecture.md` has the picture.

pub mod accounts;
pub mod context;
pub mod controllers;
pub mod events;
pub mod images;
pub mod kubelet;
pub mod market;
pub mod runtime;
pub mod serving;
pub mod settings;
pub mod storage;
pub mod telemetry;
#[cfg(test)]
mod test_context;
#[cfg(test)]
mod test_machine;
