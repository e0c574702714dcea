//! The catalogue and its promises: no checkpoint is lost, half-visible or committed over a successor, whoever is cut off wherever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

mod commit;
mod crash;
mod gang;
mod mailbox;
mod races;
mod retention;
mod stage;
