//! Starting the program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::sync::mpsc::Sender;
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::expand;
use tradewind_protocol::seal::SecretEnv;

use super::Event;
use crate::logic::{Input, Launch};
use crate::mask::Masker;

/// Name of the hidden subcommand that becomes the program.
pub const EXEC: &str = "exec-program";
/// Variable that tells the program where to write its progress, if it likes.
pub const PROGRESS_FILE: &str = "TRADEWIND_PROGRESS_FILE";
const READ_BYTES: usize = 64 * 1024;

/// What the program finds around itself, and what it must not tell.
pub struct Surroundings<'a> {
    /// The machine's environment, as far as the program gets it.
    pub inherited: BTreeMap<OsString, OsString>,
    /// The secret part of the start document's environment.
    pub secrets: Option<&'a SecretEnv>,
    /// Values that are masked in its output.
    pub hidden: &'a [SecretString],
    /// Where it may write its progress.
    pub progress_file: &'a Path,
}

/// Starts the program in a process group of its own and a thread that reads its output. Must be called on the main thread: the program is
/// killed when the thread that started it ends. `run` is its number in the events.
pub fn start(
    launch: &Launch,
    surroundings: &Surroundings<'_>,
    run: u64,
    events: Sender<Event>,
) -> std::io::Result<Pid> {
    let mut env = surroundings.inherited.clone();
    env.extend(launch.env.iter().map(|(name, value)| (name.into(), value.into())));
    for (name, value) in surroundings.secrets.iter().flat_map(|secrets| secrets.variables()) {
        // What the agent says of the run is true; a secret of the same name is not.
        if !name.starts_with("TRADEWIND_") {
            env.insert(name.into(), value.expose_secret().into());
        }
    }
    env.insert(PROGRESS_FILE.into(), surroundings.progress_file.into());
    let lookup = |name: &str| env.get(&OsString::from(name)).and_then(|value| value.to_str());
    let command: Vec<String> = launch.command.iter().map(|word| expand(word, lookup)).collect();

    let (reader, writer) = std::io::pipe()?;
    let mut program = Command::new("/proc/self/exe");
    program.arg(EXEC).arg(std::process::id().to_string()).arg("--").args(command);
    program.env_clear().envs(&env).process_group(0);
    program.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    if let Some(directory) = &launch.working_dir {
        // As container runtimes do; if it cannot be made, the start fails and says so.
        let _ = std::fs::create_dir_all(directory);
        program.current_dir(directory);
    }
    let child = program.spawn()?;
    // The command holds the writing end of the pipe; the output would never end.
    drop(program);
    let masker = Masker::new(surroundings.hidden);
    std::thread::spawn(move || copy_output(reader, masker, run, &events));
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| std::io::Error::other("the program has no process id"))
}

/// Copies output, without the values of Secrets, to our own stdout and to the logic, until nobody can write any more.
fn copy_output(mut reader: impl Read, mut masker: Masker, run: u64, events: &Sender<Event>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let shown = if read == 0 { masker.finish() } else { masker.push(&buffer[..read]) };
        if !shown.is_empty() {
            let mut stdout = std::io::stdout().lock();
            // Nobody may be reading; the mailbox gets it all the same.
            let _ = stdout.write_all(&shown).and_then(|()| stdout.flush());
            drop(stdout);
            if events.blocking_send(Event::Of(run, Input::Output(shown))).is_err() {
                return;
            }
        }
        if read == 0 {
            break;
        }
    }
    let _ = events.blocking_send(Event::OutputEnded(run));
}

/// Becomes the program: asks the kernel to kill it when the agent dies, then replaces this process. Returns the exit code if that fails.
pub fn become_program(agent: u32, command: &[OsString]) -> u8 {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // The agent may have died before the request was made.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get().unsigned_abs() != agent) {
        return 1;
    }
    let Some((program, arguments)) = command.split_first() else { return 127 };
    let error = Command::new(program).args(arguments).exec();
    let _ = writeln!(std::io::stderr(), "tradewind: Cannot start {}: {error}", PathBuf::from(program).display());
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}
