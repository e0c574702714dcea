//! The final weights, as anybody with the bucket's keys would fetch them: from the catalogue's newest checkpoint, chunk by chunk.

use std::collections::BTreeMap;

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
        tradewind_core::hex(&Sha256::digest(&self.bytes))[..12].to_owned()
    }
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
        ensure!(
            tradewind_core::hex(&Sha256::digest(&piece)) == chunk.sha256,
            "{} is not what its manifest says",
            chunk.key
        );
        bytes.extend_from_slice(&piece);
    }
    Ok(Weights { step: manifest.step, bytes })
}

/// Checkpoints as they were committed, by their place in the catalogue's log. Collected while the job runs: retention empties the entries
/// of those that it drops.
#[derive(Debug, Default)]
pub struct Committed(BTreeMap<u64, Manifest>);

impl Committed {
    /// Reads what is new.
    pub async fn look(&mut self, catalogue: &Catalogue) -> Result<()> {
        let log = catalogue.load().await?;
        for (seq, entry) in &log.entries {
            if let LogEntry::Checkpoint { manifest, .. } = &**entry {
                self.0.entry(*seq).or_insert_with(|| manifest.clone());
            }
        }
        Ok(())
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<&Manifest> {
        self.0.values().collect()
    }
}
