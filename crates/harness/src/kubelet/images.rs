//! The images that nodes can have.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{Binaries, Result, stack::AGENT_IMAGE};

/// Where the agent is in its image.
const AGENT: &str = "usr/local/bin/tradewind-agent";

/// Images by name, shared by all who were given a clone: one that is added later can be pulled from then on.
#[derive(Clone, Debug, Default)]
pub struct Images(Arc<RwLock<BTreeMap<String, Image>>>);

/// The files of an image.
#[derive(Clone, Debug)]
pub(super) enum Image {
    /// The content of a directory.
    Directory(PathBuf),
    /// The agent alone.
    Agent(PathBuf),
}

impl Images {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The agent of this build under the name [`AGENT_IMAGE`].
    pub fn with_agent() -> Result<Self> {
        Ok(Self::new().agent(AGENT_IMAGE, Binaries::locate()?.agent))
    }

    /// Adds an image: the content of a directory, whose `bin/` comes first in `PATH`.
    pub fn directory(self, name: &str, root: impl Into<PathBuf>) -> Self {
        self.add(name, Image::Directory(root.into()))
    }

    /// Adds an image with the agent at `/usr/local/bin/tradewind-agent`.
    pub fn agent(self, name: &str, program: impl Into<PathBuf>) -> Self {
        self.add(name, Image::Agent(program.into()))
    }

    fn add(self, name: &str, image: Image) -> Self {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), image);
        self
    }

    pub(super) fn find(&self, name: &str) -> Option<Image> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

impl Image {
    /// Puts the files into an empty directory. Blocks.
    pub(super) fn unpack(&self, into: &Path) -> io::Result<()> {
        match self {
            Self::Directory(root) => copy(root, into),
            Self::Agent(program) => {
                let target = into.join(AGENT);
                fs::create_dir_all(target.parent().unwrap_or(into))?;
                symlink(program, target)
            }
        }
    }
}

/// Copies the content of `from` into `to`, which exists. Symbolic links stay links, permissions stay.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir_all(&target)?;
            copy(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
