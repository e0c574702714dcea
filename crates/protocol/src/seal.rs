//! Sealing of secrets to the key of one boot of one machine (HPKE, RFC 9180: X25519, HKDF-SHA256, ChaCha20-Poly1305, mode Base).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use tradewind_core::{ExposeSecret, SecretString};

/// Names protocol and suite, so that a text sealed for anything else never opens here.
const INFO: &[u8] = b"tradewind seal v1 x25519-hkdf-sha256-chacha20poly1305";

/// A sealed text: only the boot that made the key can open it, and only in the place it was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealed {
    /// The install that sealed it; bound into the seal.
    pub install: String,
    /// Rises with every sealing for one boot; bound into the seal.
    pub sequence: u64,
    /// Encapsulated key, base64 of 32 bytes.
    pub key: String,
    /// Ciphertext with tag, base64.
    pub text: String,
}

/// The place a text is sealed for. A text moved to another place does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Install id.
    pub install: &'a str,
    /// Uid of the RentedMachine.
    pub machine: &'a str,
    /// Id of the boot.
    pub boot: &'a str,
    /// Number of the sealing within the boot.
    pub sequence: u64,
}

impl Place<'_> {
    /// The associated data: every part with its length before it, so that no two places read the same.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for part in
            [self.install.as_bytes(), self.machine.as_bytes(), self.boot.as_bytes(), &self.sequence.to_be_bytes()]
        {
            data.extend_from_slice(&(part.len() as u64).to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

/// Why something was not sealed or opened. Says nothing about the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The boot's public key is not base64 of a usable X25519 key.
    #[error("the boot's public key is not base64 of an X25519 key")]
    BadKey,
    /// The sealed text is not base64 or too short.
    #[error("the sealed text is damaged")]
    Damaged,
    /// Another key, another place, or changed on the way.
    #[error("the sealed text was made for another boot or another place, or was changed")]
    NotForUs,
    /// The opened text is not what was expected.
    #[error("the opened text is not an object of names and texts")]
    BadContent,
}

/// The key pair of one boot. It exists only in memory and does not print.
pub struct BootKeys {
    private: <X25519HkdfSha256 as Kem>::PrivateKey,
    public: String,
}

impl fmt::Debug for BootKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootKeys(public {})", self.public)
    }
}

impl BootKeys {
    /// Makes a new pair.
    ///
    /// # Panics
    /// If the operating system has no entropy: without it no key can be trusted.
    pub fn generate() -> Self {
        Self::from_pair(X25519HkdfSha256::gen_keypair())
    }

    /// The pair that follows from 32 bytes. For the world simulation, where a seed decides; never for a real machine.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_pair(X25519HkdfSha256::derive_keypair(seed))
    }

    fn from_pair(
        (private, public): (<X25519HkdfSha256 as Kem>::PrivateKey, <X25519HkdfSha256 as Kem>::PublicKey),
    ) -> Self {
        Self { private, public: STANDARD.encode(public.to_bytes()) }
    }

    /// The public half, base64 of 32 bytes, for the report.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// Opens a text that was sealed for this boot of this machine.
    pub fn open(&self, machine: &str, boot: &str, sealed: &Sealed) -> Result<SecretString, SealError> {
        let place = Place { install: &sealed.install, machine, boot, sequence: sealed.sequence };
        let key = STANDARD.decode(&sealed.key).map_err(|_| SealError::Damaged)?;
        let key = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&key).map_err(|_| SealError::Damaged)?;
        let text = STANDARD.decode(&sealed.text).map_err(|_| SealError::Damaged)?;
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &key,
            INFO,
            &text,
            &place.associated_data(),
        )
        .map_err(|_| SealError::NotForUs)?;
        String::from_utf8(opened).map(SecretString::from).map_err(|_| SealError::BadContent)
    }
}

/// Seals a text to the public key that a boot has reported (base64), for one place.
///
/// # Panics
/// If the operating system has no entropy.
pub fn seal(boot_key: &str, place: &Place<'_>, text: &SecretString) -> Result<Sealed, SealError> {
    let key = STANDARD.decode(boot_key).map_err(|_| SealError::BadKey)?;
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&key).map_err(|_| SealError::BadKey)?;
    let (encapsulated, text) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key,
        INFO,
        text.expose_secret().as_bytes(),
        &place.associated_data(),
    )
    // A key that is a point of small order is refused here.
    .map_err(|_| SealError::BadKey)?;
    Ok(Sealed {
        install: place.install.to_owned(),
        sequence: place.sequence,
        key: STANDARD.encode(encapsulated.to_bytes()),
        text: STANDARD.encode(text),
    })
}

/// A secret environment: what is sealed into [`crate::Start::sealed_env`]. Its values do not print.
pub struct SecretEnv(BTreeMap<String, SecretString>);

impl fmt::Debug for SecretEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretEnv({} names)", self.0.len())
    }
}

impl SecretEnv {
    /// The environment with these names and values.
    pub fn new(variables: BTreeMap<String, SecretString>) -> Self {
        Self(variables)
    }

    /// Names and values.
    pub fn variables(&self) -> &BTreeMap<String, SecretString> {
        &self.0
    }

    /// True if there is nothing to seal.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seals it as a JSON object.
    pub fn seal(&self, boot_key: &str, place: &Place<'_>) -> Result<Sealed, SealError> {
        let plain: BTreeMap<&str, &str> =
            self.0.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
        let text = serde_json::to_string(&plain).map_err(|_| SealError::BadContent)?;
        seal(boot_key, place, &SecretString::from(text))
    }

    /// Opens what [`SecretEnv::seal`] has sealed. Names that no environment can hold are refused.
    pub fn open(keys: &BootKeys, machine: &str, boot: &str, sealed: &Sealed) -> Result<Self, SealError> {
        let text = keys.open(machine, boot, sealed)?;
        let plain: BTreeMap<String, String> =
            serde_json::from_str(text.expose_secret()).map_err(|_| SealError::BadContent)?;
        let fits = |name: &str, value: &str| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        if !plain.iter().all(|(name, value)| fits(name, value)) {
            return Err(SealError::BadContent);
        }
        Ok(Self(plain.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect()))
    }
}

/// True for base64 of 32 bytes.
pub(crate) fn is_public_key(text: &str) -> bool {
    text.len() == 44 && STANDARD.decode(text).is_ok_and(|key| key.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place { install: "abcd1234", machine: "machine-1", boot: "boot-1", sequence: 7 };

    #[test]
    fn opens_only_with_the_key_and_in_the_place_it_was_made_for() {
        let keys = BootKeys::generate();
        let sealed = seal(keys.public(), &PLACE, &SecretString::from("hunter2")).unwrap();
        assert_eq!(keys.open("machine-1", "boot-1", &sealed).unwrap().expose_secret(), "hunter2");
        let refused = |keys: &BootKeys, machine, boot, sealed: &Sealed| keys.open(machine, boot, sealed).unwrap_err();
        assert_eq!(refused(&BootKeys::generate(), "machine-1", "boot-1", &sealed), SealError::NotForUs);
        assert_eq!(refused(&keys, "machine-2", "boot-1", &sealed), SealError::NotForUs);
        assert_eq!(refused(&keys, "machine-1", "boot-2", &sealed), SealError::NotForUs);
        assert_eq!(refused(&keys, "machine-1boot-1", "", &sealed), SealError::NotForUs, "parts do not run together");
        for changed in [
            Sealed { sequence: 8, ..sealed.clone() },
            Sealed { install: "other".to_owned(), ..sealed.clone() },
            Sealed { text: format!("AAAA{}", &sealed.text[4..]), ..sealed.clone() },
        ] {
            assert_eq!(refused(&keys, "machine-1", "boot-1", &changed), SealError::NotForUs);
        }
        let damaged = Sealed { key: "!".to_owned(), ..sealed };
        assert_eq!(refused(&keys, "machine-1", "boot-1", &damaged), SealError::Damaged);
    }

    #[test]
    fn hostile_public_keys_are_refused() {
        let text = SecretString::from("x");
        let zero = STANDARD.encode([0_u8; 32]);
        for key in ["", "####", "AAAA", zero.as_str()] {
            assert_eq!(seal(key, &PLACE, &text).unwrap_err(), SealError::BadKey, "{key:?}");
        }
    }

    #[test]
    fn an_environment_survives_and_nothing_prints() {
        let keys = BootKeys::from_seed(&[3; 32]);
        assert_eq!(keys.public(), BootKeys::from_seed(&[3; 32]).public());
        let env = SecretEnv::new(BTreeMap::from([("TOKEN".to_owned(), SecretString::from("s3cr\u{e9}t\n\""))]));
        let sealed = env.seal(keys.public(), &PLACE).unwrap();
        let opened = SecretEnv::open(&keys, "machine-1", "boot-1", &sealed).unwrap();
        assert_eq!(opened.variables()["TOKEN"].expose_secret(), "s3cr\u{e9}t\n\"");
        for text in [format!("{env:?}"), format!("{opened:?}"), format!("{keys:?}"), format!("{sealed:?}")] {
            assert!(!text.contains("s3cr"), "{text}");
        }
        for bad in [r#"{"A=B":"x"}"#, r#"{"":"x"}"#, r#"{"A":1}"#, "[]", "{\"A\":\"\\u0000\"}"] {
            let sealed = seal(keys.public(), &PLACE, &SecretString::from(bad)).unwrap();
            assert_eq!(
                SecretEnv::open(&keys, "machine-1", "boot-1", &sealed).unwrap_err(),
                SealError::BadContent,
                "{bad}"
            );
        }
    }
}
