//! The GpuProvider port, its HTTP toolkit, its conformance suite and one adapter per provider.

mod amounts;
pub mod conformance;
pub mod http;
pub mod port;
pub mod registry;
pub mod runpod;
pub mod vast;

pub use port::*;
