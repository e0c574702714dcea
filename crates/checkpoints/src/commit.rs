//! Commit of an offered checkpoint: verify, then append. No entry, no checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use tradewind_protocol::manifest::{DataKey, data_folder};
use tradewind_protocol::{Chunk, Document, LogEntry, Manifest};

use crate::catalogue::{Appended, Catalogue, CommitOutcome, MAX_ROUNDS, PARALLEL, Refusal};
use crate::log::Log;
use crate::store::StoreError;

impl Catalogue {
    /// Commits a checkpoint that `machine` offers in `attempt`: every new chunk must be there with the size the manifest says, every other one
    /// must be part of a checkpoint that counts, and `attempt` must be the newest fence's.
    ///
    /// Safe to repeat: the same manifest offered again has the same sequence. `Err` means that nothing is known; offer it again.
    pub async fn commit(&self, machine: &str, attempt: u32, manifest: &Manifest) -> Result<CommitOutcome, StoreError> {
        self.commit_gang(&[machine], attempt, manifest).await
    }

    /// Commits a checkpoint that these workers, by rank, have written together in `attempt`: what [`crate::gang::merge`] made of their
    /// offers. As [`Catalogue::commit`], but new chunks may be of any of them.
    pub async fn commit_gang(
        &self,
        machines: &[impl AsRef<str> + Sync],
        attempt: u32,
        manifest: &Manifest,
    ) -> Result<CommitOutcome, StoreError> {
        let refused = |refusal| Ok(CommitOutcome::Refused(refusal));
        let entry = LogEntry::Checkpoint { manifest: manifest.clone(), at: self.clock.now() };
        // Encoding checks the manifest and that the entry will be readable.
        if let Err(invalid) = entry.encode() {
            return refused(Refusal::Invalid(invalid));
        }
        if !machines.iter().map(AsRef::as_ref).eq(writers(manifest)) {
            return refused(Refusal::Foreign { what: "machine" });
        }
        if manifest.attempt != attempt {
            return refused(Refusal::Foreign { what: "attempt" });
        }
        for _ in 0..MAX_ROUNDS {
            let log = self.load().await?;
            if let Some(seq) = log.find_manifest(manifest) {
                return Ok(CommitOutcome::Committed { seq });
            }
            if let Err(refusal) = check_fence(&log, manifest) {
                return refused(refusal);
            }
            if let Err(refusal) = self.verify(&log, manifest).await? {
                return refused(refusal);
            }
            match self.append(&log, &entry).await? {
                Appended::At(seq) => return Ok(CommitOutcome::Committed { seq }),
                Appended::Taken => {}
                Appended::Full => return refused(Refusal::Full),
            }
        }
        refused(Refusal::Contention)
    }

    /// Looks at every chunk: in the store if it is new, in the log if it is not.
    async fn verify(&self, log: &Log, manifest: &Manifest) -> Result<Result<(), Refusal>, StoreError> {
        let new = match new_chunks(log, manifest) {
            Ok(new) => new,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Futures made before they are streamed: a closure over borrowed chunks would not be `Send` for every lifetime.
        let looks: Vec<_> = new.into_iter().map(|chunk| self.look_at(chunk)).collect();
        let mut looks = std::pin::pin!(stream::iter(looks).buffered(PARALLEL));
        while let Some(look) = looks.next().await {
            if let Err(refusal) = look? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(()))
    }

    async fn look_at(&self, chunk: &Chunk) -> Result<Result<(), Refusal>, StoreError> {
        let key = chunk.key.clone();
        let Some(there) = self.store.head(&chunk.key).await? else {
            return Ok(Err(Refusal::MissingChunk { key }));
        };
        if there.size_bytes != chunk.size_bytes {
            return Ok(Err(Refusal::WrongSize { key, have: there.size_bytes, want: chunk.size_bytes }));
        }
        // However old: an operator may have been away for days.
        Ok(Ok(()))
    }
}

fn check_fence(log: &Log, manifest: &Manifest) -> Result<(), Refusal> {
    let fence = log.newest_fence().ok_or(Refusal::Fenced { newest: None })?;
    if fence.attempt != manifest.attempt {
        return Err(Refusal::Fenced { newest: Some(fence.attempt) });
    }
    if fence.run_id != manifest.run_id {
        return Err(Refusal::Foreign { what: "run" });
    }
    if log.marks().closed { Err(Refusal::Ended) } else { Ok(()) }
}

/// The machines that wrote it, by rank.
fn writers(manifest: &Manifest) -> impl Iterator<Item = &str> {
    let one = manifest.writers.is_empty().then_some(manifest.machine.as_str());
    one.into_iter().chain(manifest.writers.iter().map(|writer| writer.machine.as_str()))
}

/// The chunks that only the store can vouch for: those in the writers' own slots that no checkpoint has named yet.
fn new_chunks<'m>(log: &Log, manifest: &'m Manifest) -> Result<Vec<&'m Chunk>, Refusal> {
    let live: BTreeMap<&str, &Chunk> = log.live_chunks();
    let marks = log.marks();
    let folders: BTreeSet<String> = writers(manifest).map(|machine| data_folder(manifest.attempt, machine)).collect();
    let is_new = |key: &str| {
        let Some(place) = DataKey::parse(key) else { return false };
        let folder = place.folder();
        folders.contains(&folder) && marks.admit(&folder, place.slot)
    };
    let mut new = Vec::new();
    for (key, chunk) in manifest.distinct_chunks() {
        match live.get(key) {
            Some(known) if *known == chunk => {}
            None if is_new(key) => new.push(chunk),
            _ => return Err(Refusal::UnknownChunk { key: key.to_owned() }),
        }
    }
    Ok(new)
}
