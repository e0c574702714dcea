//! The controllers. They talk to each other through objects only.

pub mod deletion;
pub mod node;
pub mod pod;
pub mod provider;
pub mod rented_machine;
pub mod sweeper;
pub mod training_job;
pub mod worker;
