//! Domain words of Tradewind: money, time, offers, orders. No async, no Kubernetes, no HTTP.
//!
//! Everything here is plain data with total functions. Other crates give these words their behaviour.

pub mod clock;
pub mod fail_point;
pub mod gate;
pub mod gpu;
pub mod hex;
pub mod money;
pub mod offer;
pub mod order;

pub use clock::{Clock, ManualClock, SystemClock};
pub use gpu::GpuModel;
pub use hex::hex;
pub use money::Money;
pub use offer::{Capacity, Offer, Trust};
pub use order::{InstallId, OrderKey};
pub use secrecy::{ExposeSecret, SecretString};
