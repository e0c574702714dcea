//! Looking at checkpoint directories.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tradewind_protocol::EntryKind;

/// Files that one checkpoint may have before it is not even listed.
const MOST_FILES: usize = 50_000;

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last change of the content: seconds and nanoseconds.
    pub changed: (i64, i64),
    /// Inode.
    pub inode: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Mark {
    /// The mark of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            size_bytes: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
            mode: metadata.mode() & 0o777,
        }
    }
}

/// A checkpoint as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// File or directory.
    pub kind: EntryKind,
    /// Inode of the file or directory itself.
    pub inode: u64,
    /// Regular files by path below the checkpoint (`""` for a single file).
    pub files: BTreeMap<String, Mark>,
    /// Something that a manifest cannot hold (a link, a device, a name that is no text), if there is any.
    pub odd: Option<String>,
}

impl Listing {
    /// Lists a checkpoint. `None` if it is neither a file nor a directory.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        let metadata = std::fs::symlink_metadata(path)?;
        if metadata.is_file() {
            let files = BTreeMap::from([(String::new(), Mark::of(&metadata))]);
            return Ok(Some(Self { kind: EntryKind::File, inode: metadata.ino(), files, odd: None }));
        }
        if !metadata.is_dir() {
            return Ok(None);
        }
        let inode = metadata.ino();
        let mut listing = Self { kind: EntryKind::Directory, inode, files: BTreeMap::new(), odd: None };
        let mut directories = vec![(path.to_owned(), String::new())];
        while let Some((directory, prefix)) = directories.pop() {
            for entry in std::fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else {
                    listing.odd = Some(format!("{prefix}{} (its name is not UTF-8)", name.to_string_lossy()));
                    continue;
                };
                let relative = format!("{prefix}{name}");
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    directories.push((entry.path(), format!("{relative}/")));
                } else if metadata.is_file() && listing.files.len() < MOST_FILES {
                    listing.files.insert(relative, Mark::of(&metadata));
                } else {
                    listing.odd = Some(relative);
                }
            }
        }
        Ok(Some(listing))
    }

    /// True if this is what is left of `whole` after some of its files were removed.
    pub fn is_rest_of(&self, whole: &Self) -> bool {
        self.kind == whole.kind && self.files.iter().all(|(path, mark)| whole.files.get(path) == Some(mark))
    }

    /// When the oldest of the files was made, where the file system knows.
    pub fn born(&self, path: &Path) -> Option<Timestamp> {
        self.files.keys().filter_map(|file| birth(&below(path, file))).min()
    }
}

/// The file of a checkpoint; the checkpoint itself for the empty path.
pub fn below(checkpoint: &Path, file: &str) -> PathBuf {
    if file.is_empty() { checkpoint.to_owned() } else { checkpoint.join(file) }
}

fn birth(path: &Path) -> Option<Timestamp> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).ok()?;
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return None;
    }
    Timestamp::new(stat.stx_btime.tv_sec, i32::try_from(stat.stx_btime.tv_nsec).ok()?).ok()
}

/// A directory of ours beside `checkpoints`, on the same file system, so that links and renames work: in its parent, or, where it is a
/// mount of its own, inside it under a name that no checkpoint has.
pub fn own_directory(checkpoints: &Path, name: &str) -> io::Result<PathBuf> {
    std::fs::create_dir_all(checkpoints)?;
    let mount = mount_of(checkpoints)?;
    let beside = checkpoints.parent().filter(|parent| mount_of(parent).is_ok_and(|other| other == mount));
    if let Some(parent) = beside
        && let Ok(directory) = fresh(&parent.join(name))
    {
        return Ok(directory);
    }
    fresh(&checkpoints.join(name))
}

/// Device and mount: volumes of a Pod can be folders of one disk, and still nothing is linked from one to the other. Kernels before 5.8 tell
/// no mounts.
fn mount_of(directory: &Path) -> io::Result<(u64, Option<u64>)> {
    let device = std::fs::metadata(directory)?.dev();
    let stat = statx(CWD, directory, AtFlags::empty(), StatxFlags::MNT_ID).ok();
    Ok((device, stat.filter(|stat| stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|stat| stat.stx_mnt_id)))
}

fn fresh(directory: &Path) -> io::Result<PathBuf> {
    remove(directory)?;
    std::fs::create_dir(directory)?;
    Ok(directory.to_owned())
}

/// Removes a file or a tree; nothing there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
