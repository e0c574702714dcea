//! What drives the controllers: reconcilers, the work queue with explicit time, and (in production) watches, election and servers.

pub mod adapters;
pub mod driver;
pub mod election;
pub mod inbox;
pub mod queue;
pub mod reconciler;
pub mod server;
pub mod watches;

pub use driver::{Drained, Driver};
pub use inbox::Inbox;
pub use queue::{Queue, Work};
pub use reconciler::{Failure, Reconciler, Wake};
