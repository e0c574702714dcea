//! A simulated market of rented machines that speaks the providers' wire formats.
//!
//! [`market`] is the market itself, pure and synchronous. [`serve`] puts it behind HTTP ([`vast`] and [`runpod`] are wire
//! formats, [`control`] the API for whoever runs the simulation) and [`runner`] runs what is rented as local processes.

// Rows of the wire are long `json!` literals.
#![recursion_limit = "512"]

pub mod cli;
pub mod clock;
pub mod control;
pub mod faults;
pub mod file;
pub mod in_process;
pub mod market;
pub mod probe;
pub mod runner;
pub mod runpod;
pub mod serve;
pub mod vast;
pub mod wire;
pub mod world;
