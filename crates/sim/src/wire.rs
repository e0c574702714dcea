//! Which provider's words an account speaks: the one place that tells the wire formats apart.

use std::sync::Arc;

use axum::Router;

use crate::market::{Kind, Machine, Market, PortWish};
use crate::world::World;
use crate::{runpod, vast};

/// The server of an account, reachable under `url`.
pub fn router(kind: Kind, world: Arc<World>, account: String, url: String) -> Router {
    match kind {
        Kind::Vast => vast::router(world, account, url),
        Kind::Runpod => runpod::router(world, account),
    }
}

/// A machine's status in the wire's word; `None` where it has none yet.
pub fn status_word(market: &Market, machine: &Machine) -> Option<String> {
    match machine.kind {
        Kind::Vast => vast::status_word(market, machine),
        Kind::Runpod => Some(runpod::status_word(market, machine)),
    }
}

/// What the provider puts into a machine's environment.
pub fn injected_env(machine: &Machine, ports: &[(PortWish, u16)]) -> Vec<(String, String)> {
    match machine.kind {
        Kind::Vast => vast::injected_env(machine, ports),
        Kind::Runpod => runpod::injected_env(machine, ports),
    }
}
