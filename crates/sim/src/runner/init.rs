//! The first process of a machine, as PID 1 is in a container: it starts the command, passes a stop on to it, reaps what it leaves
//! behind, and ends every descendant before it ends itself. A hidden subcommand of `tradewind-sim`, so that no `unsafe` is needed for
//! what must be set between fork and exec.
//!
//! Signals: SIGTERM stops (the command gets SIGTERM, and SIGKILL after the grace); SIGUSR1 ends everything at once and is also what the
//! kernel sends when the simulator dies. Reports, one a line on stdout: `pid N` and `exit N`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_child_subreaper, set_parent_process_death_signal, wait,
};
use tokio::signal::unix::{SignalKind, signal};

use super::STOP_GRACE_SECONDS;

/// First argument that makes the binary a machine's init: then come the simulator's pid, the log file and the command.
pub const INIT: &str = "machine-init";
/// First argument that makes the binary the command's last step before exec: then come the init's pid and the command.
const EXEC: &str = "machine-exec";

/// Runs a hidden subcommand, if the arguments (without the program's name) ask for one.
pub fn hidden(arguments: &[OsString]) -> Option<ExitCode> {
    match arguments {
        [word, simulator, log, command @ ..] if word == OsStr::new(INIT) => Some(run_init(simulator, log, command)),
        [word, init, command @ ..] if word == OsStr::new(EXEC) => Some(run_exec(init, command)),
        _ => None,
    }
}

fn run_exec(init: &OsStr, command: &[OsString]) -> ExitCode {
    // Should even the init be killed, the command dies with it.
    let bound = set_parent_process_death_signal(Some(Signal::KILL)).is_ok() && is_parent(init);
    let Some((program, arguments)) = command.split_first().filter(|_| bound) else { return ExitCode::from(126) };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{}: {error}", program.to_string_lossy());
    ExitCode::from(127)
}

/// True while the parent is the expected one: it may have died before the death signal was asked for.
fn is_parent(expected: &OsStr) -> bool {
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    parent.as_deref() == expected.to_str()
}

fn run_init(simulator: &OsStr, log: &OsStr, command: &[OsString]) -> ExitCode {
    match init(simulator, log, command) {
        Ok(code) => {
            report(&format!("exit {code}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("machine init: {error}");
            end_descendants();
            report("exit 127");
            ExitCode::FAILURE
        }
    }
}

fn report(line: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody may be left to read it.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn init(simulator: &OsStr, log: &OsStr, command: &[OsString]) -> io::Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Handlers first: from here on no signal ends this process before its descendants are ended.
        let mut stop = signal(SignalKind::terminate())?;
        let mut end = signal(SignalKind::user_defined1())?;
        let mut child = signal(SignalKind::child())?;
        set_child_subreaper(Some(getpid()))?;
        set_parent_process_death_signal(Some(Signal::USR1))?;
        if !is_parent(simulator) {
            return Ok(128 + Signal::KILL.as_raw());
        }
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let started = Command::new("/proc/self/exe")
            .arg0("tradewind-sim")
            .args([EXEC, &std::process::id().to_string()])
            .args(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let main =
            i32::try_from(started.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))?;
        report(&format!("pid {}", started.id()));
        let mut code = None;
        let grace = tokio::time::sleep(Duration::MAX);
        tokio::pin!(grace);
        while code.is_none() {
            tokio::select! {
                _ = child.recv() => code = reap(main),
                _ = stop.recv() => {
                    let _ = kill_process(main, Signal::TERM);
                    grace.as_mut().reset(tokio::time::Instant::now() + Duration::from_secs(STOP_GRACE_SECONDS));
                }
                _ = end.recv() => code = Some(128 + Signal::KILL.as_raw()),
                () = &mut grace => code = Some(128 + Signal::KILL.as_raw()),
            }
        }
        end_descendants();
        Ok(code.unwrap_or(1))
    })
}

/// Reaps every child that has ended; the main one's exit code, if it is among them.
fn reap(main: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == main {
            code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).or(Some(1));
        }
    }
    code
}

/// Kills every descendant, whatever process group or session it put itself into, until none is left. Orphans come to this process,
/// the subreaper, so none can hide.
fn end_descendants() {
    loop {
        for pid in descendants(std::process::id()) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                // No child is left.
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All living descendants of a process, from `/proc/*/stat`.
fn descendants(of: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state and the parent follow the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
