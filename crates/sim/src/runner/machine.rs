//! One machine's task: takes orders one after the other and watches the command that runs.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::sync::mpsc;

use super::{Exit, Order, Plan, directory};

/// The task of one machine.
pub(super) struct Task {
    machine: u64,
    directory: PathBuf,
    shim: PathBuf,
    pid: Arc<Mutex<Option<u32>>>,
    exits: mpsc::UnboundedSender<Exit>,
    filled: bool,
    running: Option<Running>,
    waiting: Option<Box<Plan>>,
}

struct Running {
    boot: u32,
    init: Child,
    reports: Lines<BufReader<ChildStdout>>,
    code: Option<i32>,
    told_to_end: bool,
}

impl Task {
    pub(super) fn new(
        machine: u64,
        directory: PathBuf,
        shim: PathBuf,
        pid: Arc<Mutex<Option<u32>>>,
        exits: mpsc::UnboundedSender<Exit>,
    ) -> Self {
        Self { machine, directory, shim, pid, exits, filled: false, running: None, waiting: None }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Start(plan)) if self.running.is_some() => self.waiting = Some(plan),
                    Some(Order::Start(plan)) => self.start(*plan).await,
                    Some(Order::Stop) => {
                        self.waiting = None;
                        self.signal(Signal::TERM);
                    }
                    Some(Order::Kill(done)) => {
                        self.end().await;
                        let _ = done.send(());
                    }
                    Some(Order::Wipe(done)) => {
                        self.end().await;
                        self.filled = false;
                        self.told(directory::make).await;
                        let _ = done.send(());
                    }
                    Some(Order::Remove(done)) => {
                        self.end().await;
                        self.told(directory::remove).await;
                        let _ = done.send(());
                        return;
                    }
                    None => {
                        self.end().await;
                        return;
                    }
                },
                report = next_report(&mut self.running) => self.heard(report).await,
            }
        }
    }

    async fn start(&mut self, plan: Plan) {
        let boot = plan.boot;
        match self.try_start(plan).await {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                tracing::error!(machine.id = self.machine, error = %error, "Starting a machine's command failed");
                let _ = self.exits.send(Exit { machine: self.machine, boot, code: 127 });
            }
        }
    }

    async fn try_start(&mut self, plan: Plan) -> io::Result<Running> {
        if !self.filled {
            let (directory, root) = (self.directory.clone(), plan.image_root.clone());
            blocking(move || {
                directory::make(&directory)?;
                root.map_or(Ok(()), |root| directory::copy(&root, &directory))
            })
            .await?;
            self.filled = true;
        }
        let mut init = Command::new(&self.shim)
            .args([super::init::INIT, &std::process::id().to_string(), "log"])
            .args(&plan.argv)
            .current_dir(&self.directory)
            // A group of its own: Ctrl-C in the simulator's terminal is for the simulator, which then ends its machines.
            .process_group(0)
            .env_clear()
            .envs(plan.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let stdout = init.stdout.take().expect("stdout is piped");
        let reports = BufReader::new(ChildStdout::from_std(stdout)?).lines();
        Ok(Running { boot: plan.boot, init, reports, code: None, told_to_end: false })
    }

    async fn heard(&mut self, report: Option<String>) {
        let Some(running) = &mut self.running else { return };
        match report.as_deref().and_then(|line| line.split_once(' ')) {
            Some(("pid", pid)) => *self.pid.lock().expect("no holder of a pid panics") = pid.parse().ok(),
            Some(("exit", code)) => running.code = code.parse().ok(),
            Some(_) => {}
            None => {
                self.finished();
                if let Some(plan) = self.waiting.take() {
                    self.start(*plan).await;
                }
            }
        }
    }

    /// The init has closed its reports: it is ending, and so is everything it started.
    fn finished(&mut self) {
        *self.pid.lock().expect("no holder of a pid panics") = None;
        let Some(mut running) = self.running.take() else { return };
        let status = running.init.wait().ok();
        let of_init = status.and_then(|status| status.code().or_else(|| status.signal().map(|signal| 128 + signal)));
        let code = running.code.or(of_init).unwrap_or(1);
        if !running.told_to_end {
            let _ = self.exits.send(Exit { machine: self.machine, boot: running.boot, code });
        }
    }

    /// Ends whatever runs, at once, and waits until it is gone.
    async fn end(&mut self) {
        self.waiting = None;
        self.signal(Signal::USR1);
        while self.running.is_some() {
            let report = next_report(&mut self.running).await;
            self.heard(report).await;
        }
    }

    fn signal(&mut self, signal: Signal) {
        let Some(running) = &mut self.running else { return };
        running.told_to_end = true;
        let pid = i32::try_from(running.init.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now; its end is heard of soon.
            let _ = kill_process(pid, signal);
        }
    }

    async fn told(&self, what: fn(&Path) -> io::Result<()>) {
        let directory = self.directory.clone();
        if let Err(error) = blocking(move || what(&directory)).await {
            tracing::error!(machine.id = self.machine, error = %error, "Clearing a machine's directory failed");
        }
    }
}

async fn next_report(running: &mut Option<Running>) -> Option<String> {
    match running {
        Some(running) => running.reports.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn blocking(what: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(what).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
