//! Machines' directories: made, filled from an image, emptied, removed.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Makes an empty directory, removing what an earlier run left there.
pub fn make(directory: &Path) -> io::Result<()> {
    remove(directory)?;
    fs::create_dir_all(directory)
}

/// Removes a directory and everything in it; nothing there is fine.
pub fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies the content of `from` into `to`, which exists. Symbolic links stay links, permissions stay.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&source, &target)?;
            fs::set_permissions(&target, fs::metadata(&source)?.permissions())?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_permissions_are_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::write(from.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(from.join("bin/tool"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        symlink("tool", from.join("bin/link")).unwrap();
        make(&to).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_link(to.join("bin/link")).unwrap(), Path::new("tool"));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(to.join("bin/tool")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o755);
        make(&to).unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }
}
