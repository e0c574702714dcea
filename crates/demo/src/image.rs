//! The "container images" of the demo: directories with a program, its data and a Python.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tradewind_harness::{Tools, project_root};

/// The directories.
#[derive(Debug, Clone)]
pub struct Images {
    /// `demo/charlm:1`, on simulated machines.
    pub charlm: PathBuf,
    /// `demo/gang:1`, on the cluster's nodes: the program of the sample.
    pub gang: PathBuf,
}

/// Assembles them below `directory`.
pub fn assemble(tools: &Tools, directory: &Path) -> Result<Images> {
    let python = tools.python("demo")?;
    let one = |name: &str, program: &str| {
        let root = directory.join(name);
        put_together(&root, &project_root().join(program), &python)
            .with_context(|| format!("assembling the image {} from {program}", root.display()))?;
        Ok::<_, anyhow::Error>(root)
    };
    Ok(Images {
        charlm: one("charlm", "deploy/demo/program/image")?,
        gang: one("gang", "deploy/samples/programs/gang")?,
    })
}

/// The interpreter is a script, since a link to it would not find its environment.
fn put_together(root: &Path, program: &Path, python: &Path) -> std::io::Result<()> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    for entry in fs::read_dir(program)? {
        let entry = entry?;
        // Python leaves a directory beside programs that somebody has imported.
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), root.join(entry.file_name()))?;
        }
    }
    let script = bin.join("python3");
    let quoted = python.display().to_string().replace('\'', r"'\''");
    fs::write(&script, format!("#!/bin/sh\nexec '{quoted}' \"$@\"\n"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
}
