//! The one directory below which a world of processes writes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Error, Result};

const PREFIX: &str = "tradewind-run-";
/// Directories of runs that did not end by themselves (killed, or shared by the tests of one binary) are kept this long,
/// for whoever wants to read their logs.
const KEPT_AFTER_KILL: Duration = Duration::from_mins(15);

/// A directory with logs and data of one run; it goes with the value, unless that is kept or the test panics.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    keep: bool,
}

impl RunDir {
    /// Makes a directory below the system's one for temporary files, and removes what runs that were killed left there.
    pub fn new(label: &str) -> Result<Self> {
        let parent = std::env::temp_dir();
        remove_orphans(&parent);
        let path = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-{label}-", std::process::id()))
            .tempdir_in(&parent)
            .map_err(Error::io(format!("making a run directory in {}", parent.display())))?
            .keep();
        Ok(Self { path, keep: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory inside; made if it is not there.
    pub fn sub(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(Error::io(format!("making {}", path.display())))?;
        Ok(path)
    }

    /// Leaves the directory in place when the value goes.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs of the failed run are kept in {}", self.path.display());
        } else if !self.keep {
            // Nothing can be done about a directory that cannot be removed; the next run tries again.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The process id in a run directory's name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn remove_orphans(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(owner) else { continue };
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age > KEPT_AFTER_KILL));
        if old && !Path::new("/proc").join(pid.to_string()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_with_the_value_unless_kept() {
        let run = RunDir::new("goes").unwrap();
        let path = run.path().to_owned();
        fs::write(run.sub("a").unwrap().join("log"), "x").unwrap();
        assert_eq!(owner(path.file_name().unwrap().to_str().unwrap()), Some(std::process::id()));
        drop(run);
        assert!(!path.exists());

        let mut run = RunDir::new("stays").unwrap();
        run.keep();
        let path = run.path().to_owned();
        drop(run);
        assert!(path.exists());
        fs::remove_dir_all(path).unwrap();
    }
}
