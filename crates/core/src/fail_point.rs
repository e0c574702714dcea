//! Named places at which a test can freeze the whole process, as a computer that swaps or a paused virtual machine does.
//!
//! Only debug builds with the feature `fail-points` have them: in a release [`reach`] does nothing, whatever its features. There
//! `TRADEWIND_FAIL_POINTS` names a directory. A file in it arms the point of its name: whoever gets there first renames the file to
//! `<name>.hit` and stops the process (SIGSTOP) until somebody continues it (SIGCONT).

/// Says that the process has come to this place.
#[cfg(not(all(feature = "fail-points", debug_assertions)))]
pub fn reach(_: &str) {}

/// Says that the process has come to this place.
#[cfg(all(feature = "fail-points", debug_assertions))]
#[expect(clippy::disallowed_methods, reason = "a test arms the points, and no setting of the operator may name them")]
pub fn reach(name: &str) {
    let Some(directory) = std::env::var_os("TRADEWIND_FAIL_POINTS") else { return };
    let armed = std::path::Path::new(&directory).join(name);
    // Renaming is atomic: one of several threads freezes, once.
    if std::fs::rename(&armed, armed.with_extension("hit")).is_err() {
        return;
    }
    let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    debug_assert!(stopped.is_ok(), "a process may stop itself");
    // The signal may reach another thread first; until it has stopped this one too, nothing may go on here.
    std::thread::sleep(std::time::Duration::from_millis(20));
}
