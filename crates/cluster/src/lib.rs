//! The Cluster port: the few Kubernetes verbs the controllers may use, on kube::Client and in memory.
//!
//! Controllers are written against `&dyn Cluster` ([`port`]) and the [`kinds`] it knows. [`kube_client`] serves it from a real API
//! server, [`memory`] from a twin that answers at the first poll; [`conformance`] holds both to the same facts. Watches do
//! not go through the port: a [`cache`] is fed by [`watch`] in production and by the world simulation in tests.

pub mod cache;
pub mod conformance;
pub mod gated;
pub mod kinds;
pub mod kube_client;
pub mod memory;
pub mod object;
pub mod port;
pub mod watch;

pub use cache::Cache;
pub use gated::Gated;
pub use kube_client::KubeCluster;
pub use memory::Memory;
pub use object::{Key, Kind, Object, Typed, typed};
pub use port::{
    Access, Answer, Cause, Cluster, ClusterError, Guard, MetadataPatch, Propagation, Removal, Review, Selector,
    StatusPatch, Strategy, Subject,
};
