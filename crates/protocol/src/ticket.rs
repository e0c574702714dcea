//! Tickets: signed, expiring rights to one object. A ticket is a secret while it lives.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A signed URL for one verb on one object. It does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// The signed URL.
    pub url: String,
    /// When the store stops honouring it.
    pub expires: Timestamp,
}

impl Ticket {
    /// The longest URL that is believed. Ours have about 300 bytes; session tokens add up to about 2,000.
    pub const MAX_URL_BYTES: usize = 8 * 1024;
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(until {})", self.expires)
    }
}
