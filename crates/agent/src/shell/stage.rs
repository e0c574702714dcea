//! Holding on to saves by hard links, hashing them, reading their pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::task::AbortHandle;
use tokio_util::io::ReaderStream;
use tradewind_protocol::manifest::chunk_size;

use super::files::{Listing, Mark, below, own_directory, remove};
use super::http::Http;
use crate::logic::{ChunkOutcome, Piece, SaveId, StagedFile, StagedPiece};
use tradewind_protocol::Ticket;

const DIRECTORY: &str = ".tradewind-staging";
const READ_BYTES: usize = 256 * 1024;

/// Why a save cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The program changed or removed it meanwhile.
    #[error("it changed")]
    Changed,
    /// It holds something that a manifest cannot.
    #[error("it holds something other than files and directories: {0}")]
    Odd(String),
    /// The disk failed.
    #[error("it cannot be read or linked ({0})")]
    Io(io::Error),
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Changed } else { Self::Io(error) }
    }
}

#[derive(Debug, Clone)]
struct Linked {
    path: String,
    at: PathBuf,
    mark: Mark,
}

#[derive(Debug)]
struct Staged {
    directory: PathBuf,
    files: Arc<Vec<Linked>>,
    work: Vec<AbortHandle>,
}

/// All saves that are held.
#[derive(Debug)]
pub struct Staging {
    checkpoints: PathBuf,
    root: Option<PathBuf>,
    saves: BTreeMap<SaveId, Staged>,
}

impl Staging {
    /// Staging for the checkpoint directory.
    pub fn new(checkpoints: PathBuf) -> Self {
        Self { checkpoints, root: None, saves: BTreeMap::new() }
    }

    /// Links the files of a save.
    pub fn link(&mut self, save: SaveId, name: &str) -> Result<(), StageError> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => self.root.insert(own_directory(&self.checkpoints, DIRECTORY)?).clone(),
        };
        let directory = root.join(save.to_string());
        let linked = link_all(&self.checkpoints.join(name), &directory);
        match linked {
            Ok(files) => {
                self.saves.insert(save, Staged { directory, files: Arc::new(files), work: Vec::new() });
                Ok(())
            }
            Err(error) => {
                let _ = remove(&directory);
                Err(error)
            }
        }
    }

    /// The work of hashing a save, to be done on a thread where waiting is fine.
    pub fn hash(&self, save: SaveId) -> impl FnOnce() -> Result<Vec<StagedFile>, StageError> + Send + 'static + use<> {
        let files = self.saves.get(&save).map(|staged| Arc::clone(&staged.files));
        move || files.ok_or(StageError::Changed)?.iter().map(hash_file).collect()
    }

    /// The work of uploading a piece.
    pub fn upload(
        &self,
        http: Http,
        save: SaveId,
        piece: Piece,
        ticket: Ticket,
    ) -> impl Future<Output = ChunkOutcome> + Send + 'static + use<> {
        let file =
            self.saves.get(&save).and_then(|staged| staged.files.iter().find(|file| file.path == piece.path).cloned());
        async move {
            let gone = || ChunkOutcome::Unreadable("its files are gone".to_owned());
            let Some(file) = file else { return gone() };
            let Ok(body) = piece_stream(&file.at, piece.offset, piece.size_bytes).await else { return gone() };
            let outcome = http.fill(&ticket, piece.size_bytes, &piece.md5, body).await;
            // A link shares later writes: what was sent is what was hashed only if nothing moved.
            if outcome == ChunkOutcome::Stored && unchanged(&file).is_err() {
                return ChunkOutcome::Unreadable("it changed while it was uploaded".to_owned());
            }
            outcome
        }
    }

    /// Work to be given up when the save is dropped.
    pub fn watch_over(&mut self, save: SaveId, work: AbortHandle) {
        if let Some(staged) = self.saves.get_mut(&save) {
            staged.work.retain(|work| !work.is_finished());
            staged.work.push(work);
        }
    }

    /// Gives up whatever is being done to a save. Returns what is to be removed.
    pub fn forget(&mut self, save: SaveId) -> Option<PathBuf> {
        let staged = self.saves.remove(&save)?;
        staged.work.iter().for_each(AbortHandle::abort);
        Some(staged.directory)
    }

    /// Removes the staging directory if nothing is held.
    pub fn tidy(&mut self) {
        if self.saves.is_empty()
            && let Some(root) = self.root.take()
        {
            let _ = remove(&root);
        }
    }
}

fn link_all(checkpoint: &Path, directory: &Path) -> Result<Vec<Linked>, StageError> {
    let listing = Listing::of(checkpoint)?.ok_or(StageError::Changed)?;
    if let Some(odd) = listing.odd {
        return Err(StageError::Odd(odd));
    }
    std::fs::create_dir(directory)?;
    let mut files = Vec::with_capacity(listing.files.len());
    for (number, (path, mark)) in listing.files.into_iter().enumerate() {
        // Flat and numbered: no path of the program's is made on our side.
        let at = directory.join(number.to_string());
        std::fs::hard_link(below(checkpoint, &path), &at)?;
        files.push(Linked { path, at, mark });
    }
    files.iter().try_for_each(unchanged)?;
    Ok(files)
}

fn unchanged(file: &Linked) -> Result<(), StageError> {
    let now = Mark::of(&std::fs::symlink_metadata(&file.at)?);
    if now == file.mark { Ok(()) } else { Err(StageError::Changed) }
}

fn hash_file(file: &Linked) -> Result<StagedFile, StageError> {
    let size_bytes = file.mark.size_bytes;
    let piece_bytes = chunk_size(size_bytes);
    let mut reader = File::open(&file.at)?;
    let mut pieces = Vec::new();
    let mut left = size_bytes;
    let mut buffer = vec![0; READ_BYTES];
    while left > 0 {
        let size = left.min(piece_bytes);
        pieces.push(hash_piece(&mut reader, size, &mut buffer)?);
        left -= size;
    }
    unchanged(file)?;
    Ok(StagedFile { path: file.path.clone(), size_bytes, mode: file.mark.mode, pieces })
}

fn hash_piece(reader: &mut File, size_bytes: u64, buffer: &mut [u8]) -> Result<StagedPiece, StageError> {
    let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
    let mut left = size_bytes;
    while left > 0 {
        let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = reader.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(StageError::Changed);
        }
        sha256.update(&buffer[..read]);
        md5.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(StagedPiece {
        size_bytes,
        sha256: tradewind_core::hex(&sha256.finalize()),
        md5: STANDARD.encode(md5.finalize()),
    })
}

async fn piece_stream(
    path: &Path,
    offset: u64,
    size: u64,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(ReaderStream::with_capacity(file.take(size), READ_BYTES).boxed())
}
