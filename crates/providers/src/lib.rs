//! The GpuProvider port, its HTTP toolkit, its conformance suite and one adapter per provider.

pub mod conformance;
pub mod http;
pub mod port;
pub mod vast;

pub use port::*;
