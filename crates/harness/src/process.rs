//! Child processes that never outlive the program that started them.
//!
//! Each runs in a process group of its own, writes its output to a file, and gets a parent-death signal, so that it
//! ends even if we are killed with SIGKILL. That signal fires when the parent *thread* ends, and a test's thread ends
//! before the test binary does: hence one thread that lives as long as the program starts them all. `setpriv`
//! (util-linux) sets the signal, so that no unsafe code is needed here.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    future::Future,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Error, Result, eventually, locate::passed_environment};

/// What a process is started with. Its environment is ours reduced to the harmless (no `KUBECONFIG`, no proxies), `HOME` in the
/// log directory, and what is added here.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    working_directory: PathBuf,
    separate_output: bool,
}

impl Launch {
    /// `program` under a `name` for logs and messages; its log becomes `<directory>/<name>.log`.
    pub fn new(name: &str, program: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self {
            name: name.into(),
            program: program.into(),
            arguments: Vec::new(),
            environment: vec![("HOME".into(), directory.clone().into())],
            working_directory: directory.clone(),
            directory,
            separate_output: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().into()));
        self
    }

    /// Gives the argument `--flag=value` this value, or adds it.
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        let prefix = format!("--{flag}=");
        self.arguments.retain(|argument| !argument.to_string_lossy().starts_with(&prefix));
        self.arg(format!("{prefix}{value}"))
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// The same under another name, by another program.
    pub fn twin(&self, name: &str, program: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), program: program.into(), ..self.clone() }
    }

    /// Sets the working directory (default: the log directory).
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.working_directory = directory.into();
        self
    }

    /// Writes stdout to `<directory>/<name>.out` instead of the log.
    pub fn separate_output(mut self) -> Self {
        self.separate_output = true;
        self
    }

    /// The file with stderr, and stdout unless that is separate.
    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// The file with stdout.
    pub fn output(&self) -> PathBuf {
        if self.separate_output { self.directory.join(format!("{}.out", self.name)) } else { self.log() }
    }

    fn command(&self) -> Result<Command> {
        let open = |path: PathBuf| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(Error::io(format!("opening {}", path.display())))
        };
        // The shell closes the gap in which we might have died before the signal was set.
        let guard = r#"[ "$PPID" = "$0" ] || exit 1; exec "$@""#;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "sh", "-c", guard, &std::process::id().to_string()])
            .arg(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(passed_environment())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.working_directory)
            .stdin(Stdio::null())
            .stdout(open(self.output())?)
            .stderr(open(self.log())?)
            .process_group(0);
        Ok(command)
    }
}

/// A running process, or one that has ended; killed with its whole group when the value goes.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it. Whether it stays up shows later: see [`Process::ready`].
    pub fn start(launch: Launch) -> Result<Self> {
        if !launch.program.exists() {
            return Err(Error::Missing(format!("{} is not there.", launch.program.display())));
        }
        fs::create_dir_all(&launch.directory).map_err(Error::io(format!("making {}", launch.directory.display())))?;
        let child = spawn(launch.command()?).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Missing("setpriv is missing: install util-linux.".into()),
            _ => Error::io(format!("starting {}", launch.name))(e),
        })?;
        Ok(Self { launch, child, ended: None })
    }

    /// What it was started with.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its process id, which is also its group's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(Error::io(format!("looking at {}", self.launch.name)))?;
        }
        Ok(self.ended)
    }

    /// The last `bytes` of its log.
    pub fn tail(&self, bytes: u64) -> String {
        tail(&self.launch.log(), bytes).unwrap_or_default()
    }

    /// Waits until `probe` answers `Ok`. Fails at once if the process ends, and after `limit` otherwise; both say the
    /// end of its log.
    pub async fn ready<T, P, F>(&mut self, limit: Duration, mut probe: P) -> Result<T>
    where
        P: FnMut() -> F,
        F: Future<Output = std::result::Result<T, String>>,
    {
        enum Seen<T> {
            Ready(T),
            Ended(ExitStatus),
        }
        let name = self.launch.name.clone();
        let waited = eventually(&name, limit, || {
            let ended = self.exited();
            let probing = probe();
            async move {
                match ended.map_err(|e| e.to_string())? {
                    Some(status) => Ok(Seen::Ended(status)),
                    None => probing.await.map(Seen::Ready),
                }
            }
        })
        .await;
        let (log, tail) = (self.launch.log(), self.tail(2000));
        match waited {
            Ok(Seen::Ready(value)) => Ok(value),
            Ok(Seen::Ended(status)) => Err(Error::Ended { name, status: status.to_string(), log, tail }),
            Err(Error::TimedOut { missing, .. }) => Err(Error::NotReady { name, limit, missing, log, tail }),
            Err(other) => Err(other),
        }
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = format!("the end of {}", self.launch.name);
        eventually(&name, limit, || {
            let ended = self.exited();
            std::future::ready(ended.map_err(|e| e.to_string()).and_then(|s| s.ok_or_else(|| "it still runs".into())))
        })
        .await
    }

    /// Sends SIGTERM and waits; what still runs after `grace` is killed. The answer says how it ended.
    pub async fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match self.wait(grace).await {
            Err(Error::TimedOut { .. }) => self.kill(),
            other => other,
        }
    }

    /// SIGKILL to the whole group, at once.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        if let Some(group) = self.raw_pid() {
            // It may just have ended by itself: then there is nothing to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = self.child.wait().map_err(Error::io(format!("waiting for {}", self.launch.name)))?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Stops it in its tracks (SIGSTOP) or lets it go on (SIGCONT), the whole group.
    pub fn freeze(&mut self, frozen: bool) {
        if let (Some(group), None) = (self.raw_pid(), self.ended) {
            let _ = kill_process_group(group, if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Kills what still runs and starts the same again; the log is continued.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        *self = Self::start(self.launch.clone())?;
        Ok(())
    }

    fn signal(&mut self, signal: Signal) {
        if let (Ok(None), Some(pid)) = (self.exited(), self.raw_pid()) {
            let _ = kill_process(pid, signal);
        }
    }

    fn raw_pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Without an answer there is nobody left to kill.
        let _ = self.kill();
    }
}

/// Calls `start` again with new ports when another program took one of them in between.
pub(crate) async fn despite_taken_ports<T>(mut start: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for _ in 0..4 {
        match start().await {
            Err(Error::Ended { tail, .. }) if tail.contains("address already in use") => {}
            other => return other,
        }
    }
    start().await
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a process from the one thread that lives as long as this program.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                // Whoever asked is gone: dropping the child leaves it to the parent-death signal.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let gone = "the thread that starts processes has ended";
    let (answer, child) = mpsc::channel();
    let sent = spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    sent.map_err(|_| io::Error::other(gone))?;
    child.recv().map_err(|_| io::Error::other(gone))?
}

fn tail(log: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// Says whether a process ended by SIGKILL, as a crash test wants it.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunDir;

    fn shell(run: &RunDir, script: &str) -> Launch {
        Launch::new("shell", "/bin/sh", run.path()).arg("-c").arg(script)
    }

    fn alive(pid: &str) -> bool {
        // A zombie has ended; nobody has read its status yet.
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    async fn line(path: &Path) -> String {
        let read =
            || std::future::ready(fs::read_to_string(path).ok().filter(|t| t.ends_with('\n')).ok_or(String::new()));
        eventually("a line", Duration::from_secs(10), read).await.unwrap().trim().into()
    }

    #[tokio::test]
    async fn ends_with_its_group_when_dropped() {
        let run = RunDir::new("group").unwrap();
        let process = Process::start(shell(&run, "sleep 100 & echo $!; wait").separate_output()).unwrap();
        let grandchild = line(&process.launch().output()).await;
        assert!(alive(&grandchild));
        drop(process);
        let gone = || std::future::ready(if alive(&grandchild) { Err("still there".into()) } else { Ok(()) });
        eventually("the grandchild's end", Duration::from_secs(5), gone).await.unwrap();
    }

    #[tokio::test]
    async fn sees_no_environment_of_the_user_and_restarts() {
        let run = RunDir::new("env").unwrap();
        let mut process = Process::start(shell(&run, "env; echo end").env("GIVEN", "1")).unwrap();
        assert!(process.wait(Duration::from_secs(5)).await.unwrap().success());
        let log = fs::read_to_string(process.launch().log()).unwrap();
        assert!(log.contains("GIVEN=1") && log.contains(&format!("HOME={}", run.path().display())), "{log}");
        assert!(!log.contains("CARGO_"), "{log}");
        process.restart().unwrap();
        process.wait(Duration::from_secs(5)).await.unwrap();
        assert_eq!(fs::read_to_string(process.launch().log()).unwrap().matches("end\n").count(), 2);
    }

    #[tokio::test]
    async fn stops_politely_then_not() {
        let run = RunDir::new("stop").unwrap();
        let polite = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let mut process = Process::start(shell(&run, polite).separate_output()).unwrap();
        line(&process.launch().output()).await;
        assert_eq!(process.stop(Duration::from_secs(5)).await.unwrap().code(), Some(7));

        let mut stubborn = Process::start(
            Launch::new("b", "/bin/sh", run.path()).args(["-c", "trap '' TERM; echo up; while :; do sleep 1; done"]),
        )
        .unwrap();
        line(&stubborn.launch().log()).await;
        assert!(was_killed(stubborn.stop(Duration::from_millis(200)).await.unwrap()));
    }

    #[tokio::test]
    async fn readiness_tells_the_end_of_the_log() {
        let run = RunDir::new("ready").unwrap();
        let mut fails = Process::start(shell(&run, "echo out of cheese >&2; exit 3")).unwrap();
        let never = || std::future::ready(Err::<(), _>("no cheese".to_owned()));
        let message = fails.ready(Duration::from_secs(5), never).await.unwrap_err().to_string();
        assert!(message.contains("exit status: 3") && message.contains("out of cheese"), "{message}");

        let mut hangs = Process::start(shell(&run, "sleep 50")).unwrap();
        let message = hangs.ready(Duration::from_millis(100), never).await.unwrap_err().to_string();
        assert!(message.contains("not ready") && message.contains("no cheese"), "{message}");
        assert!(Process::start(Launch::new("x", "/nonexistent/program", run.path())).is_err());
    }

    #[tokio::test]
    async fn a_frozen_process_does_nothing() {
        let run = RunDir::new("freeze").unwrap();
        let mut process = Process::start(Launch::new("sleeper", "/bin/sleep", run.path()).arg("100")).unwrap();
        let stat = format!("/proc/{}/stat", process.pid());
        let state = async |wanted: &str| {
            let look = || {
                let stat = fs::read_to_string(&stat).unwrap();
                std::future::ready(if stat.contains(wanted) { Ok(()) } else { Err(stat) })
            };
            eventually(wanted, Duration::from_secs(5), look).await.unwrap();
        };
        state("(sleep) S ").await;
        process.freeze(true);
        state("(sleep) T ").await;
        process.freeze(false);
        state("(sleep) S ").await;
    }
}
