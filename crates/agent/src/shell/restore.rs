//! Putting a checkpoint back: downloaded beside its place, verified, renamed into it.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures::{TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tradewind_core::hex;
use tradewind_protocol::{Chunk, EntryKind, ManifestFile, RestoreCandidate, Ticket};

use super::files::{below, own_directory, remove};
use super::http::{Http, ReadError};
use crate::logic::Restore;
use tradewind_protocol::Pattern;

const PARALLEL: usize = 4;
/// A chunk with wrong bytes is read once more: it may have been damaged on the way.
const READS: u32 = 2;
const DIRECTORY: &str = ".tradewind-restore";

/// Restores a candidate into the checkpoint directory.
pub async fn restore(http: &Http, candidate: &RestoreCandidate, checkpoints: &Path) -> Restore {
    // Names and paths in it become names and paths on this disk.
    if let Err(invalid) = candidate.manifest.validate() {
        return Restore::Bad(format!("its {invalid}"));
    }
    match try_restore(http, candidate, checkpoints).await {
        Ok(path) => Restore::Done { path: path.to_string_lossy().into_owned() },
        Err(ReadError::Wrong(reason)) => Restore::Bad(reason),
        Err(ReadError::Failed(reason)) => Restore::Failed(reason),
    }
}

/// Removes every save from the checkpoint directory.
pub fn clear(checkpoints: &Path, pattern: &str) -> io::Result<()> {
    let pattern = Pattern::new(pattern).map_err(io::Error::other)?;
    let entries = match std::fs::read_dir(checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| pattern.step(name).is_some()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

async fn try_restore(http: &Http, candidate: &RestoreCandidate, checkpoints: &Path) -> Result<PathBuf, ReadError> {
    let directory = own_directory(checkpoints, DIRECTORY).map_err(disk)?;
    let download = directory.join("checkpoint");
    let result = fill(http, candidate, &download).await;
    let target = checkpoints.join(&candidate.manifest.name);
    let result = result.and_then(|()| put_in_place(&download, &target, checkpoints).map_err(disk));
    let _ = remove(&directory);
    result.map(|()| target)
}

async fn fill(http: &Http, candidate: &RestoreCandidate, download: &Path) -> Result<(), ReadError> {
    let manifest = &candidate.manifest;
    if manifest.kind == EntryKind::Directory {
        std::fs::create_dir(download).map_err(disk)?;
    }
    let mut pieces = Vec::new();
    for file in &manifest.files {
        let path = below(download, &file.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(disk)?;
        }
        // Never through a link, never over something that is there.
        let made = OpenOptions::new().write(true).create_new(true).open(&path).map_err(disk)?;
        made.set_len(file.size_bytes).map_err(disk)?;
        let mut offset = 0;
        for chunk in &file.chunks {
            let ticket =
                candidate.chunks.get(&chunk.key).ok_or_else(|| ReadError::Wrong("a chunk has no ticket".to_owned()))?;
            pieces.push((path.clone(), offset, chunk, ticket));
            offset += chunk.size_bytes;
        }
    }
    stream::iter(pieces.into_iter().map(Ok))
        .try_for_each_concurrent(PARALLEL, |(path, offset, chunk, ticket)| async move {
            download_chunk(http, &path, offset, chunk, ticket).await
        })
        .await?;
    for file in &manifest.files {
        finish(file, &below(download, &file.path)).map_err(disk)?;
    }
    Ok(())
}

async fn download_chunk(
    http: &Http,
    path: &Path,
    offset: u64,
    chunk: &Chunk,
    ticket: &Ticket,
) -> Result<(), ReadError> {
    let file = OpenOptions::new().write(true).open(path).map_err(disk)?;
    let mut reads = 0;
    loop {
        reads += 1;
        let mut sha256 = Sha256::new();
        let mut at = offset;
        let read = http.read(ticket, chunk.size_bytes, |part| {
            sha256.update(part);
            file.write_all_at(part, at)?;
            at += part.len() as u64;
            Ok(())
        });
        let wrong = match read.await {
            Ok(()) if hex(&sha256.finalize()) == chunk.sha256 => return Ok(()),
            Ok(()) => ReadError::Wrong("the bytes of a chunk are not what the manifest says".to_owned()),
            Err(error) => error,
        };
        if reads >= READS || matches!(wrong, ReadError::Failed(_)) {
            return Err(wrong);
        }
    }
}

fn finish(file: &ManifestFile, path: &Path) -> io::Result<()> {
    let made = File::open(path)?;
    // The owner must be able to read it, whatever the manifest says.
    made.set_permissions(Permissions::from_mode(file.mode & 0o777 | 0o400))?;
    made.sync_all()
}

fn put_in_place(download: &Path, target: &Path, checkpoints: &Path) -> io::Result<()> {
    remove(target)?;
    std::fs::rename(download, target)?;
    File::open(checkpoints)?.sync_all()
}

fn disk(error: io::Error) -> ReadError {
    ReadError::Failed(format!("the disk refuses ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_are_cleared_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("step-1")).unwrap();
        for name in ["step-1/weights", "step-20", "notes.txt"] {
            std::fs::write(path(name), "x").unwrap();
        }
        clear(directory.path(), "step-{step}").unwrap();
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        clear(&path("never made"), "step-{step}").unwrap();
    }
}
