//! Names under which machines are ordered, so that whatever was bought can be found again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which installation of Tradewind owns a machine: eight lower-case letters or digits, made from the kube-system namespace's uid and
/// the release name. Two installs may share an account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstallId(String);

impl InstallId {
    /// The id of the install in the cluster whose kube-system namespace has this uid, under this release name.
    pub fn derive(kube_system_uid: &str, release: &str) -> Self {
        Self(base36_hash(&[kube_system_uid, release], 8))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of one order: `tw-<install>-<machine>-<number>-<unix seconds in base 36>`. Never used twice. It is the label, name or
/// idempotency token of the rental at the provider (at most 60 characters: `providers/vastai.md` section 9).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey {
    /// The install that ordered.
    pub install: InstallId,
    /// Hash of the RentedMachine's uid, twelve characters.
    pub machine: String,
    /// Number of the order within the RentedMachine, from 0.
    pub number: u32,
    /// When it was written, in seconds of Unix time.
    pub at_unix_s: u64,
}

/// Why a label is not an order key. Most labels in a shared account are not, and that is no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an order key")]
pub struct NotAnOrderKey;

impl OrderKey {
    /// The key of order `number` of the RentedMachine with this uid.
    pub fn new(install: &InstallId, machine_uid: &str, number: u32, at: jiff::Timestamp) -> Self {
        Self {
            install: install.clone(),
            machine: Self::machine_part(machine_uid),
            number,
            at_unix_s: u64::try_from(at.as_second()).unwrap_or(0),
        }
    }

    /// The part of a key that names a RentedMachine: the same for all its orders.
    pub fn machine_part(machine_uid: &str) -> String {
        base36_hash(&[machine_uid], 12)
    }
}

impl fmt::Display for OrderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tw-{}-{}-{}-{}", self.install, self.machine, self.number, base36(self.at_unix_s))
    }
}

impl FromStr for OrderKey {
    type Err = NotAnOrderKey;

    fn from_str(text: &str) -> Result<Self, NotAnOrderKey> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(NotAnOrderKey);
        if next()? != "tw" {
            return Err(NotAnOrderKey);
        }
        let install = next()?;
        let machine = next()?;
        let number = next()?.parse().map_err(|_| NotAnOrderKey)?;
        let at_unix_s = u64::from_str_radix(next()?, 36).map_err(|_| NotAnOrderKey)?;
        let word = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !word(install, 8) || !word(machine, 12) || parts.next().is_some() {
            return Err(NotAnOrderKey);
        }
        Ok(Self { install: InstallId(install.to_owned()), machine: machine.to_owned(), number, at_unix_s })
    }
}

impl Serialize for OrderKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OrderKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn base36(mut n: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut digits = Vec::new();
    loop {
        digits.push(char::from(DIGITS[usize::try_from(n % 36).unwrap_or(0)]));
        n /= 36;
        if n == 0 {
            break;
        }
    }
    digits.iter().rev().collect()
}

/// The first `length` base-36 digits of SHA-256 over the parts (each followed by a zero byte).
fn base36_hash(parts: &[&str], length: usize) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let mut text = String::new();
    for chunk in digest.chunks(8) {
        let n = chunk.iter().fold(0_u64, |n, b| (n << 8) | u64::from(*b));
        text.push_str(&format!("{:0>13}", base36(n))[1..]);
    }
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_round_trip_and_fit() {
        let install = InstallId::derive("0b5f4b1e-8c1c-4b52-8f52-5f0d8a6c9a11", "tradewind");
        let at = jiff::Timestamp::from_second(1_795_000_000).unwrap();
        let key = OrderKey::new(&install, "uid-1", 3, at);
        let text = key.to_string();
        assert!(text.len() <= 60, "{text}");
        assert_eq!(text.parse::<OrderKey>().unwrap(), key);
        assert_eq!(OrderKey::machine_part("uid-1"), key.machine);
        assert_ne!(OrderKey::machine_part("uid-2"), key.machine);
        assert_ne!(InstallId::derive("a", "bc"), InstallId::derive("ab", "c"));
    }

    #[test]
    fn strange_labels_are_not_keys() {
        for label in [
            "",
            "my job",
            "tw-",
            "tw-abc-def-0-1",
            "tw-abcdefgh-abcdefghijkl-x-1",
            "tw-ABCDEFGH-abcdefghijkl-0-1",
            "tw-abcdefgh-abcdefghijkl-0-1-2",
        ] {
            assert!(label.parse::<OrderKey>().is_err(), "{label:?}");
        }
    }
}
