//! Vast.ai as it is spoken on the wire (facts from its documents, its client and users; checked against the official OpenAPI documents by
//! `tests/official_schema.rs`). The wire types here are written apart from the adapter's on purpose: one misunderstanding cannot hide
//! in both.

mod answer;
mod billing;
mod create;
pub mod defaults;
mod filter;
mod inside;
mod limits;
mod list;
mod manage;
mod rows;
mod search;
mod server;
mod shell;

pub use billing::user_id;
pub use limits::Limits;
pub use rows::{injected_env, status_word};
pub use server::{DropConnection, router};
pub use shell::split as split_words;
