//! What the user may choose, and how an error is told. The only place that reads the environment.
#![expect(clippy::disallowed_methods, reason = "this module is where the demo reads the environment")]

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, ensure};
use rand::RngExt;

/// Free space below the directory for temporary files that a run needs at least, in MB.
const SPACE_MB: u64 = 500;

/// What the user may choose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Decides when the machine is outbid (`DEMO_SEED`).
    pub seed: u64,
    /// Leaves everything running at the end (`KEEP=1`).
    pub keep: bool,
    /// Colours, on a terminal (unless `NO_COLOR`).
    pub colour: bool,
}

impl Settings {
    /// Reads the environment, and looks whether there is room for a run.
    pub fn from_environment() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let seed = match text("DEMO_SEED") {
            Some(seed) => seed.parse().with_context(|| format!("DEMO_SEED is {seed:?}, but must be a whole number"))?,
            None => rand::rng().random_range(1..10_000),
        };
        let keep = text("KEEP").is_some_and(|keep| keep != "0");
        let colour = io::stdout().is_terminal() && text("NO_COLOR").is_none();
        let directory = std::env::temp_dir();
        let space =
            rustix::fs::statvfs(&directory).with_context(|| format!("{} cannot be used", directory.display()))?;
        let free_mb = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
        ensure!(
            free_mb >= SPACE_MB,
            "The disk is nearly full: the demo needs {SPACE_MB} MB below {}, {free_mb} MB are free.",
            directory.display()
        );
        Ok(Self { seed, keep, colour })
    }
}

/// An error in one piece; a full disk, which can come out of anything, is named as such.
pub fn explain(error: &anyhow::Error) -> String {
    let full = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::StorageFull);
    let text = format!("{error:#}");
    if full || text.contains("No space left on device") || text.contains("no space left on device") {
        return format!("The disk is full: make room below {} ({text})", std::env::temp_dir().display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let full = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull)).context("writing a file");
        assert!(explain(&full).starts_with("The disk is full"), "{}", explain(&full));
        let log = anyhow::anyhow!("etcd ended before it was ready: write: no space left on device");
        assert!(explain(&log).starts_with("The disk is full"));
        assert_eq!(explain(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
