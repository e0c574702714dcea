//! Control plane, object store and proxies for demo, tests and benchmarks: everything that starts a world of real
//! processes.
//!
//! What is started here ends with the program that started it, even if that is killed ([`process`]), listens on
//! loopback only, and writes below one run directory ([`RunDir`]). Nothing of the user's cluster is read.

mod error;
mod http_json;
pub mod kubelet;
pub mod leaks;
mod locate;
pub mod plane;
mod ports;
pub mod process;
pub mod proxy;
mod run_dir;
mod s3;
pub mod sim;
pub mod stack;
mod wait;

pub use error::Error;
pub use kubelet::{FakeNode, FakeNodeOptions, Images};
pub use locate::{Binaries, Tools, or_skip, project_root, shared_material};
pub use plane::{Plane, PlaneOptions};
pub use ports::free_port;
pub use process::{Launch, Process};
pub use proxy::{Proxy, ProxyOptions};
pub use run_dir::RunDir;
pub use s3::{S3, S3Server};
pub use sim::{Sim, SimOptions};
pub use stack::{Stack, StackOptions};
pub use wait::eventually;

/// Result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
