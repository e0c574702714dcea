//! The "container image" of the simulated machines: a directory with the program, its text and a Python.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tradewind_harness::{Tools, project_root};

/// Assembles it below `directory`. The interpreter is a script, since a link to it would not find its environment.
pub fn assemble(tools: &Tools, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("image");
    let bin = root.join("bin");
    let writing = || format!("writing the simulated image {}", root.display());
    fs::create_dir_all(&bin).with_context(writing)?;
    let program = project_root().join("deploy/demo/program/image");
    for entry in fs::read_dir(&program).with_context(|| format!("reading {}", program.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), root.join(entry.file_name())).with_context(writing)?;
    }
    let python = tools.python("demo")?;
    let script = bin.join("python3");
    let quoted = python.display().to_string().replace('\'', r"'\''");
    fs::write(&script, format!("#!/bin/sh\nexec '{quoted}' \"$@\"\n")).with_context(writing)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).with_context(writing)?;
    Ok(root)
}
