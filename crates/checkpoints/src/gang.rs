//! Checkpoints that all workers of a job write together, each its part. Pure.
//!
//! Every worker offers its own manifest. [`merge`] makes one of those of the same step, which is committed by [`Catalogue::commit_gang`], and
//! [`for_rank`] says what of it each worker finds again. Libraries that write parts of one checkpoint from all processes
//! (torch.distributed.checkpoint, Orbax) get the union of the parts on every worker, as on a shared file system; programs in which every
//! process writes a file of the same name get back their own.
//!
//! [`Catalogue::commit_gang`]: crate::Catalogue::commit_gang

use std::collections::{BTreeMap, BTreeSet};

use tradewind_protocol::manifest::{DataKey, MAX_RANKS, data_folder};
use tradewind_protocol::{Document, EntryKind, Invalid, LogEntry, Manifest, ManifestFile, RestoreCandidate, Writer};

/// Characters of a path that are shown in a sentence.
const PATH_CHARS: usize = 200;

/// Why what the workers offer is not one checkpoint. Sentences are fit for the agents and for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There are no offers, or more than there can be workers.
    #[error("a checkpoint is written by 1 to {MAX_RANKS} workers, not by {0}")]
    Count(usize),
    /// A worker saved something else than the first.
    #[error(
        "worker {rank} saved {what} {have} where worker 0 saved {want}; only what all workers saved together counts"
    )]
    Differs {
        /// The worker.
        rank: usize,
        /// `run`, `attempt`, `step`, or `name` (of a file or directory).
        what: &'static str,
        /// What it saved.
        have: String,
        /// What worker 0 saved.
        want: String,
    },
    /// A worker saved a file and another a directory.
    #[error("worker {rank} saved a {} where worker {other} saved a {}: {path}", word(*.kind), word(opposite(*.kind)))]
    Kinds {
        /// The worker.
        rank: usize,
        /// The other one.
        other: usize,
        /// What the worker saved.
        kind: EntryKind,
        /// The name or path.
        path: String,
    },
    /// A worker speaks for others.
    #[error("a worker offers its own part alone")]
    Merged,
    /// An offer, or all of them together, break a rule.
    #[error("{0}")]
    Invalid(Invalid),
}

/// Why a worker cannot go on from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the checkpoint of step {step} was written by {writers} workers, each with its own version of {path}, and has none for worker {rank}"
)]
pub struct RestoreError {
    /// Step of the checkpoint.
    pub step: u64,
    /// How many workers wrote it.
    pub writers: usize,
    /// The worker.
    pub rank: u32,
    /// The file.
    pub path: String,
}

fn word(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
    }
}

fn opposite(kind: EntryKind) -> EntryKind {
    match kind {
        EntryKind::File => EntryKind::Directory,
        EntryKind::Directory => EntryKind::File,
    }
}

fn shown(path: &str) -> String {
    path.chars().take(PATH_CHARS).collect()
}

/// Makes one manifest of those that the workers offer, in the order of their ranks. The same offers give the same manifest.
///
/// A path that one worker alone has, or that all who have it have with the same bytes, is for everybody; any other is kept once for each.
///
/// # Errors
/// See [`MergeError`]. None of them passes by itself: other offers are needed.
pub fn merge(offers: &[Manifest]) -> Result<Manifest, MergeError> {
    let Some(first) = offers.first().filter(|_| offers.len() <= MAX_RANKS) else {
        return Err(MergeError::Count(offers.len()));
    };
    for (rank, offer) in offers.iter().enumerate() {
        offer.validate().map_err(MergeError::Invalid)?;
        if !offer.writers.is_empty() {
            return Err(MergeError::Merged);
        }
        same(rank, offer, first)?;
    }
    if offers.len() == 1 {
        return Ok(first.clone());
    }
    let mut versions: BTreeMap<&str, Vec<(u32, &ManifestFile)>> = BTreeMap::new();
    for (rank, offer) in (0_u32..).zip(offers) {
        for file in &offer.files {
            versions.entry(&file.path).or_default().push((rank, file));
        }
    }
    let merged = Manifest {
        files: versions.values().flat_map(|versions| kept(versions)).collect(),
        saved_at: offers.iter().map(|offer| offer.saved_at).max().unwrap_or(first.saved_at),
        save_began_at: offers.iter().map(|offer| offer.save_began_at).min().unwrap_or(first.save_began_at),
        parent: offers.iter().filter_map(|offer| offer.parent).max(),
        writers: offers.iter().map(|offer| writer(offer, first)).collect(),
        ..first.clone()
    };
    if let Some(clash) = clash(&versions) {
        return Err(clash);
    }
    // It must also fit into the log.
    let entry = LogEntry::Checkpoint { at: merged.saved_at, manifest: merged.clone() };
    entry.encode().map_err(MergeError::Invalid)?;
    Ok(merged)
}

fn same(rank: usize, offer: &Manifest, first: &Manifest) -> Result<(), MergeError> {
    let differs = |what, have: &dyn ToString, want: &dyn ToString| {
        Err(MergeError::Differs { rank, what, have: have.to_string(), want: want.to_string() })
    };
    if offer.run_id != first.run_id {
        return differs("run", &offer.run_id, &first.run_id);
    }
    if offer.attempt != first.attempt {
        return differs("attempt", &offer.attempt, &first.attempt);
    }
    if offer.step != first.step {
        return differs("step", &offer.step, &first.step);
    }
    if offer.kind != first.kind {
        return Err(MergeError::Kinds { rank, other: 0, kind: offer.kind, path: shown(&offer.name) });
    }
    // A file may have the rank in its name; a directory is the place where all parts meet.
    if offer.kind == EntryKind::Directory && offer.name != first.name {
        return differs("name", &offer.name, &first.name);
    }
    Ok(())
}

/// What stays of the versions of one path.
fn kept(versions: &[(u32, &ManifestFile)]) -> Vec<ManifestFile> {
    let bytes = |file: &ManifestFile| -> Vec<(String, u64)> {
        file.chunks.iter().map(|chunk| (chunk.sha256.clone(), chunk.size_bytes)).collect()
    };
    let Some((_, first)) = versions.first() else { return Vec::new() };
    let content = bytes(first);
    if versions.iter().all(|(_, file)| bytes(file) == content) {
        return vec![(*first).clone()];
    }
    versions.iter().map(|(rank, file)| ManifestFile { rank: Some(*rank), ..(*file).clone() }).collect()
}

fn writer(offer: &Manifest, first: &Manifest) -> Writer {
    let folder = data_folder(offer.attempt, &offer.machine);
    let own = offer.chunks().filter_map(|chunk| DataKey::parse(&chunk.key)).filter(|place| place.folder() == folder);
    Writer {
        machine: offer.machine.clone(),
        slots_below: own.map(|place| place.slot + 1).max().unwrap_or(0),
        name: (offer.name != first.name).then(|| offer.name.clone()),
    }
}

/// A path that is a file with one worker and a directory with another.
fn clash(versions: &BTreeMap<&str, Vec<(u32, &ManifestFile)>>) -> Option<MergeError> {
    let rank_of = |path: &str| Some(usize::try_from(versions.get(path)?.first()?.0).unwrap_or(usize::MAX));
    versions.keys().find_map(|path| {
        path.match_indices('/').find_map(|(end, _)| {
            let (rank, other) = (rank_of(&path[..end])?, rank_of(path)?);
            Some(MergeError::Kinds { rank, other, kind: EntryKind::File, path: shown(&path[..end]) })
        })
    })
}

/// What the worker with this rank restores: what is for everybody, and its own versions. A checkpoint that one machine wrote is for everybody.
///
/// # Errors
/// If there was no worker with this rank and some file is there in the others' versions alone.
pub fn for_rank(manifest: &Manifest, rank: u32) -> Result<Manifest, RestoreError> {
    let writer = usize::try_from(rank).ok().and_then(|rank| manifest.writers.get(rank));
    let others = manifest.files.iter().find(|file| file.rank.is_some()).filter(|_| writer.is_none());
    if let Some(file) = others {
        let path = if file.path.is_empty() { &manifest.name } else { &file.path };
        let writers = manifest.writers.len();
        return Err(RestoreError { step: manifest.step, writers, rank, path: shown(path) });
    }
    let own = manifest.files.iter().filter(|file| file.rank.is_none_or(|of| of == rank));
    Ok(Manifest {
        machine: writer.map_or(&manifest.machine, |writer| &writer.machine).clone(),
        name: writer.and_then(|writer| writer.name.as_ref()).unwrap_or(&manifest.name).clone(),
        files: own.map(|file| ManifestFile { rank: None, ..file.clone() }).collect(),
        writers: Vec::new(),
        ..manifest.clone()
    })
}

/// The candidate as the worker with this rank gets it, with tickets for its own part alone.
///
/// # Errors
/// See [`for_rank`].
pub fn candidate_for(candidate: &RestoreCandidate, rank: u32) -> Result<RestoreCandidate, RestoreError> {
    let manifest = for_rank(&candidate.manifest, rank)?;
    let named: BTreeSet<&str> = manifest.distinct_chunks().into_keys().collect();
    let tickets = candidate.chunks.iter().filter(|(key, _)| named.contains(key.as_str()));
    let chunks = tickets.map(|(key, ticket)| (key.clone(), ticket.clone())).collect();
    Ok(RestoreCandidate { seq: candidate.seq, manifest, chunks })
}
