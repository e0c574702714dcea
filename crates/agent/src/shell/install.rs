//! Putting the agent's own executable where the container of a Pod finds it.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::files::remove;

/// Copies the executable of this process to `to`, whole or not at all.
pub fn install(to: &Path) -> io::Result<()> {
    let name = to.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
    let beside = to.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let copied = copy_to(&beside).and_then(|()| std::fs::rename(&beside, to));
    if copied.is_err() {
        let _ = remove(&beside);
    }
    copied
}

fn copy_to(place: &Path) -> io::Result<()> {
    remove(place)?;
    // By its own link: the path may lead elsewhere by now.
    let mut own = File::open("/proc/self/exe")?;
    let mut made = OpenOptions::new().write(true).create_new(true).open(place)?;
    io::copy(&mut own, &mut made)?;
    // Other users of the Pod run it; nobody but the first may change it.
    made.set_permissions(Permissions::from_mode(0o755))?;
    made.sync_all()
}
