//! Processes below the agent: reaping, signalling, ending.

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group, wait};

use crate::logic::ProgramEnd;

/// How long processes that were killed may take to go (one can hang in the kernel).
const KILL_LIMIT: Duration = Duration::from_secs(5);
const KILL_STEP: Duration = Duration::from_millis(10);

/// Collects every child that has ended. Orphans among them were left to us because we are the subreaper (or process 1).
pub fn reap() -> Vec<(Pid, ProgramEnd)> {
    let mut ended = Vec::new();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended.extend(end_of(status).map(|end| (pid, end))),
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return ended,
        }
    }
}

fn end_of(status: WaitStatus) -> Option<ProgramEnd> {
    let code = status.exit_status().map(ProgramEnd::Code);
    code.or_else(|| status.terminating_signal().map(ProgramEnd::Signal))
}

/// Signals the program's group, which may be gone.
pub fn signal_group(leader: Pid, signal: Signal) {
    let _ = kill_process_group(leader, signal);
}

/// Kills the group and every process that is or becomes our child, until none is left: a grandchild that called `setsid` is in no group
/// of ours, but comes to us when its parent dies. Returns what became of the children meanwhile and whether all are gone.
pub async fn end_all(leader: Pid) -> (Vec<(Pid, ProgramEnd)>, bool) {
    let mut ended = Vec::new();
    let mut waited = Duration::ZERO;
    signal_group(leader, Signal::KILL);
    loop {
        ended.extend(reap());
        let children = children_of(getpid());
        if children.is_empty() {
            return (ended, true);
        }
        if waited >= KILL_LIMIT {
            return (ended, false);
        }
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
        tokio::time::sleep(KILL_STEP).await;
        waited += KILL_STEP;
    }
}

/// Processes whose parent is `parent`. Empty where there is no `/proc`.
fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| parent_of(*pid) == Some(parent.as_raw_nonzero().get()))
        .collect()
}

fn parent_of(pid: Pid) -> Option<i32> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("stat")).ok()?;
    // The name is in parentheses and may hold anything: state and parent follow the last one.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
