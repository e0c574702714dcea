//! Object store port, mailbox, checkpoint catalogue, commit protocol and retention.
//!
//! Everything that operator and machines leave for each other, and every checkpoint, is an object in a bucket. [`Store`] is the port:
//! [`S3Store`] on a real bucket, [`MemoryStore`] in the world simulation. [`Mailbox`] gives the operator's own bucket its types,
//! [`Catalogue`] keeps the log of checkpoints in a user's bucket. No checkpoint is lost, half-visible or corrupt in any crash order:
//! `catalogue`, `commit` and `gc` say how.

pub mod catalogue;
mod commit;
pub mod credentials;
pub mod gang;
mod gated;
mod gc;
pub mod identity;
pub mod location;
pub mod log;
pub mod mailbox;
pub mod memory;
pub mod probe;
pub mod retention;
pub mod s3;
pub mod store;

pub use catalogue::{Begun, Catalogue, CommitOutcome, FenceRefused, Refusal};
pub use credentials::{CredentialsError, StoreCredentials};
pub use gang::{MergeError, RestoreError};
pub use gated::Gated;
pub use gc::{Collected, Keep};
pub use location::{Location, LocationError};
pub use log::{BadEntry, Log, StoredCheckpoint};
pub use mailbox::{KeptLogs, LogTail, Mailbox, MailboxError, ReportRead, SegmentRead};
pub use memory::{MemoryPlace, MemoryStore, RedeemError};
pub use probe::{ProbeFailure, probe};
pub use retention::{Retention, retain};
pub use s3::{S3Store, S3Stores};
pub use store::{Answer, Fetched, ObjectInfo, PutOutcome, Store, StoreError, Stores, put_if_absent_resolved};
