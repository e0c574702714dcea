//! Processes of containers.
//!
//! Each container is run by an init process (`tradewind-sim machine-init`), which stands in for a PID namespace: when it ends, nothing of
//! the container is left. It tells the process id and the exit code on its stdout, so nobody has to poll.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::ChildStdout,
    sync::watch,
};

use crate::process::spawn;

/// First argument that makes the simulator's binary an init.
const INIT: &str = "machine-init";
/// An init ends its descendants in milliseconds; after this long it is killed itself.
const INIT_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A process of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalProcess {
    /// Its id.
    pub pid: u32,
    /// The container that it belongs to.
    pub container: String,
    /// Its command line, words divided by spaces.
    pub command: String,
}

impl LocalProcess {
    /// Sends it a signal. It may have ended meanwhile.
    pub fn signal(&self, signal: Signal) {
        send(self.pid, signal);
    }

    /// Stops it in its tracks (SIGSTOP) or lets it go on (SIGCONT).
    pub fn freeze(&self, frozen: bool) {
        self.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }
}

/// What to run.
pub(super) struct Start {
    pub init: PathBuf,
    pub command: Vec<String>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: PathBuf,
    pub log: PathBuf,
}

#[derive(Clone, Copy, Debug)]
enum Progress {
    Starting,
    Running(u32),
    Ended(i32),
}

/// A container that was started.
pub(super) struct Running {
    container: String,
    init: Mutex<Option<Child>>,
    progress: watch::Sender<Progress>,
    out_of_memory: AtomicBool,
}

type Key = (String, String);

/// All running containers of a node, by the Pod's uid and the container's name.
#[derive(Default)]
pub(super) struct Containers(Mutex<Table>);

#[derive(Default)]
struct Table {
    refuses: bool,
    running: BTreeMap<Key, Arc<Running>>,
}

impl Containers {
    /// Starts a container. Fails with [`io::ErrorKind::Interrupted`] while the machine is off.
    pub(super) fn start(self: &Arc<Self>, pod: &str, container: &str, start: Start) -> io::Result<Arc<Running>> {
        // Held until it is in the table, so that nothing starts unseen while the machine is switched off.
        let mut table = self.table();
        if table.refuses {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut command = Command::new(start.init);
        command
            .args([INIT, &std::process::id().to_string()])
            .arg(start.log)
            .args(start.command)
            .current_dir(start.directory)
            .process_group(0)
            .env_clear()
            .envs(start.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut init = spawn(command)?;
        let reports = init.stdout.take().ok_or_else(|| io::Error::other("stdout is piped"))?;
        let running = Arc::new(Running {
            container: container.into(),
            init: Mutex::new(Some(init)),
            progress: watch::channel(Progress::Starting).0,
            out_of_memory: AtomicBool::new(false),
        });
        let key = (pod.to_owned(), container.to_owned());
        table.running.insert(key.clone(), running.clone());
        tokio::spawn(listen(self.clone(), key, running.clone(), ChildStdout::from_std(reports)?));
        Ok(running)
    }

    /// Kills everything; nothing starts until [`Containers::switch_on`].
    pub(super) fn kill_all(&self) {
        let mut table = self.table();
        table.refuses = true;
        table.running.values().for_each(|running| running.kill());
    }

    /// Lets containers start again.
    pub(super) fn switch_on(&self) {
        self.table().refuses = false;
    }

    /// Kills everything and waits until it is gone. Blocks for some milliseconds.
    pub(super) fn close(&self) {
        self.kill_all();
        let running: Vec<_> = std::mem::take(&mut self.table().running).into_values().collect();
        for one in running {
            one.bury();
        }
    }

    /// Whether a container runs.
    pub(super) fn runs(&self, pod: &str, container: &str) -> bool {
        self.table().running.contains_key(&(pod.to_owned(), container.to_owned()))
    }

    pub(super) fn processes(&self, pod: &str) -> Vec<LocalProcess> {
        let running: Vec<_> = {
            let table = self.table();
            table.running.iter().filter(|((uid, _), _)| uid == pod).map(|(_, running)| running.clone()).collect()
        };
        processes_of(&running)
    }

    pub(super) fn all_processes(&self) -> Vec<LocalProcess> {
        let running: Vec<_> = self.table().running.values().cloned().collect();
        processes_of(&running)
    }

    pub(super) fn out_of_memory(&self, pod: &str, container: &str) {
        let found = self.table().running.get(&(pod.to_owned(), container.to_owned())).cloned();
        if let Some(running) = found {
            running.out_of_memory.store(true, Ordering::Relaxed);
            running.kill();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Waits for its end and tells the exit code: 128 and the signal's number where a signal ended it.
    pub(super) async fn ended(&self) -> i32 {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|p| matches!(p, Progress::Ended(_))).await;
        match ended.as_deref() {
            Ok(Progress::Ended(code)) => *code,
            _ => 137,
        }
    }

    /// SIGTERM to the container's first process, as a runtime sends it.
    pub(super) async fn terminate(&self) {
        let mut progress = self.progress.subscribe();
        let main = progress.wait_for(|p| !matches!(p, Progress::Starting)).await;
        if let Ok(Progress::Running(pid)) = main.as_deref() {
            send(*pid, Signal::TERM);
        }
    }

    /// Ends all its processes at once.
    pub(super) fn kill(&self) {
        if let Some(init) = self.init().as_ref() {
            send(init.id(), Signal::USR1);
        }
    }

    pub(super) fn was_out_of_memory(&self) -> bool {
        self.out_of_memory.load(Ordering::Relaxed)
    }

    fn bury(&self) {
        let Some(mut init) = self.init().take() else { return };
        let pause = Duration::from_millis(2);
        let mut left = INIT_ENDS_WITHIN;
        while let Ok(None) = init.try_wait() {
            if left.is_zero() {
                if let Some(group) = i32::try_from(init.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                break;
            }
            std::thread::sleep(pause);
            left = left.saturating_sub(pause);
        }
        let _ = init.wait();
    }

    fn init(&self) -> MutexGuard<'_, Option<Child>> {
        self.init.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears what the init reports until it closes its stdout: then it is ending, and so is everything that it started.
async fn listen(containers: Arc<Containers>, key: Key, running: Arc<Running>, reports: ChildStdout) {
    let mut lines = BufReader::new(reports).lines();
    let mut code = None;
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split_once(' ') {
            Some(("pid", pid)) => {
                if let Ok(pid) = pid.parse() {
                    running.progress.send_replace(Progress::Running(pid));
                }
            }
            Some(("exit", exit)) => code = exit.parse().ok(),
            _ => {}
        }
    }
    containers.table().running.remove(&key);
    let init = running.init().take();
    if let Some(mut init) = init {
        let _ = init.wait();
    }
    running.progress.send_replace(Progress::Ended(code.unwrap_or(137)));
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may just have ended.
        let _ = kill_process(pid, signal);
    }
}

/// All descendants of the containers' inits. One look at `/proc` for all of them.
fn processes_of(running: &[Arc<Running>]) -> Vec<LocalProcess> {
    let mut roots = BTreeMap::new();
    for one in running {
        if let Some(init) = one.init().as_ref() {
            roots.insert(init.id(), one.container.clone());
        }
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: BTreeMap<u32, u32> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let container_of = |pid: u32| {
        let mut at = pid;
        while let Some(parent) = parents.get(&at) {
            if let Some(container) = roots.get(parent) {
                return Some(container.clone());
            }
            at = *parent;
        }
        None
    };
    let found = parents.keys().filter_map(|pid| Some((*pid, container_of(*pid)?)));
    found
        .map(|(pid, container)| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = command.split(|b| *b == 0).map(String::from_utf8_lossy);
            LocalProcess { pid, container, command: words.collect::<Vec<_>>().join(" ").trim().to_owned() }
        })
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state and the parent follow the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok();
    if state == "Z" { None } else { parent }
}
