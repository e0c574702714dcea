//! RunPod's REST API v2 as it is spoken on the wire (facts from its OpenAPI document, its own client, recorded answers and users; checked
//! against the official document by `tests/runpod_schema.rs`). The wire types here are written apart from the adapter's on purpose: one
//! misunderstanding cannot hide in both.

mod answer;
mod billing;
mod catalogue;
mod centers;
mod create;
pub mod defaults;
mod limits;
mod logs;
mod pods;
mod query;
mod rows;
mod schema;
mod server;
mod update;

pub use catalogue::{cuda_versions, is_offered, max_count};
pub use centers::country;
pub use limits::Limits;
pub use logs::PodLogs;
pub use rows::{injected_env, status_word};
pub use server::router;
