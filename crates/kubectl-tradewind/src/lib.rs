//! `kubectl tradewind`: what a user of TrainingJobs wants to know, on one screen.
//!
//! Each command has three parts: it gathers objects from the API server, makes a view of them (plain data, which `-o json` prints as it
//! is) and renders the view as text. View and rendering are pure. A new command is a module here and an arm in `main`.
//! `plan` and `offers` need no cluster: they look at offers ([`market`]) with the operator's own functions.

pub mod advice;
pub mod choice;
pub mod cli;
pub mod connect;
pub mod cost;
pub mod doctor;
pub mod logs;
pub mod market;
pub mod offers;
pub mod plan;
pub mod screen;
pub mod status;
pub mod table;
pub mod text;
pub mod trouble;
pub mod why;

pub use trouble::Trouble;
