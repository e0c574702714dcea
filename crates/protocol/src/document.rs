//! Reading and writing of documents: bounded, checked, and without a word of their content in an error text.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Invalid, OLDEST_VERSION, VERSION};

/// A document that travels between operator and agent, or between operators, as JSON.
pub trait Document: Serialize + DeserializeOwned {
    /// Its name in error texts.
    const NAME: &'static str;
    /// The largest encoding that is read or written, in bytes.
    const MAX_BYTES: usize;

    /// Checks everything that can be checked without knowing who reads: versions, sizes, counts, names.
    fn validate(&self) -> Result<(), Invalid>;

    /// Makes texts that people will read harmless (no control characters). Documents without such texts keep this empty body.
    fn clean(&mut self) {}

    /// Reads a document from bytes of unknown origin. Never panics; an error tells the place, not the content, because content may be
    /// secret or hostile.
    fn decode_any(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > Self::MAX_BYTES {
            let problem = format!("has {} bytes, at most {} are read", bytes.len(), Self::MAX_BYTES);
            return Err(Invalid::new(Self::NAME, "document", problem));
        }
        let mut document: Self = serde_json::from_slice(bytes).map_err(|e| not_readable(Self::NAME, bytes, &e))?;
        document.validate()?;
        document.clean();
        Ok(document)
    }

    /// Writes a document, which must be valid and within its bound: what the other side would refuse is not sent.
    fn encode(&self) -> Result<Vec<u8>, Invalid> {
        self.validate()?;
        let bytes =
            serde_json::to_vec(self).map_err(|_| Invalid::new(Self::NAME, "document", "cannot be written as JSON"))?;
        if bytes.len() > Self::MAX_BYTES {
            let problem = format!("has {} bytes, at most {} may be written", bytes.len(), Self::MAX_BYTES);
            return Err(Invalid::new(Self::NAME, "document", problem));
        }
        Ok(bytes)
    }
}

/// Says what stands in the way: another version if there is one, else the place in the text.
fn not_readable(name: &'static str, bytes: &[u8], error: &serde_json::Error) -> Invalid {
    #[derive(serde::Deserialize)]
    struct OnlyVersion {
        version: u32,
    }
    if let Ok(OnlyVersion { version }) = serde_json::from_slice(bytes)
        && let Err(invalid) = check_version(name, version)
    {
        return invalid;
    }
    let what = match error.classify() {
        serde_json::error::Category::Data => "has a missing or wrongly typed field",
        serde_json::error::Category::Eof => "ends too early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "is not JSON",
    };
    Invalid::new(name, "document", format!("{what} (line {}, column {})", error.line(), error.column()))
}

/// Refuses versions that are not understood.
pub(crate) fn check_version(name: &'static str, version: u32) -> Result<(), Invalid> {
    if (OLDEST_VERSION..=VERSION).contains(&version) {
        return Ok(());
    }
    let problem = format!("is {version}, understood are {OLDEST_VERSION} to {VERSION}");
    Err(Invalid::new(name, "version", problem))
}
