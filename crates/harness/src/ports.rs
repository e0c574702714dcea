//! Free loopback ports for programs that must be told theirs.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use rand::RngExt;

use crate::{Error, Result};

/// Below Linux' ephemeral range (32768 and up), so that no outgoing connection takes the port between our look and the
/// program's bind. Another picker still can: whoever starts a program tries again with new ports then.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on 127.0.0.1 that nobody listens on now and that this process has not given out before.
pub fn free_port() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = rand::rng().random_range(RANGE);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(Error::Missing(format!("No free port between {} and {} was found on 127.0.0.1.", RANGE.start, RANGE.end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_port_twice_and_none_in_use() {
        let ports: BTreeSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 200);
        let taken = TcpListener::bind(("127.0.0.1", *ports.first().unwrap())).unwrap();
        assert!(RANGE.contains(&taken.local_addr().unwrap().port()));
    }
}
