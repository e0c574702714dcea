//! The final weights, as anybody with the bucket's keys would fetch them: from the catalogue's newest checkpoint, chunk by chunk.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use tradewind_checkpoints::Catalogue;
use tradewind_harness::Stack;
use tradewind_protocol::{LogEntry, Manifest};

/// A checkpoint put together again.
#[derive(Debug, PartialEq, Eq)]
pub struct Weights {
    /// Its step.
    pub step: u64,
    /// Its one file.
    pub bytes: Vec<u8>,
}

impl Weights {
    /// Twelve digits of the content's SHA-256.
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(&self.bytes))[..12].to_owned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The newest checkpoint at a location.
pub async fn newest(stack: &Stack, location: &str) -> Result<Weights> {
    let catalogue = stack.catalogue(location)?;
    let log = catalogue.load().await?;
    let checkpoint = log.checkpoints().next().with_context(|| format!("there is no checkpoint at {location}"))?;
    let manifest = checkpoint.manifest;
    ensure!(manifest.files.len() == 1, "a save of the demo is one file");
    let mut bytes = Vec::new();
    for chunk in manifest.chunks() {
        let piece = catalogue.store().get(&chunk.key, chunk.size_bytes).await?;
        let piece = piece.with_context(|| format!("{} is named by a checkpoint, but is not there", chunk.key))?;
        ensure!(hex(&Sha256::digest(&piece)) == chunk.sha256, "{} is not what its manifest says", chunk.key);
        bytes.extend_from_slice(&piece);
    }
    Ok(Weights { step: manifest.step, bytes })
}

/// Every checkpoint that was ever committed at a location, those that retention has dropped too.
pub async fn all_manifests(catalogue: &Catalogue) -> Result<Vec<Manifest>> {
    let log = catalogue.load().await?;
    let manifest = |entry: &LogEntry| match entry {
        LogEntry::Checkpoint { manifest, .. } => Some(manifest.clone()),
        LogEntry::AttemptStarted { .. } | LogEntry::Collected { .. } => None,
    };
    Ok(log.entries.values().filter_map(|entry| manifest(entry)).collect())
}
