//! The life of the program, one after the other: starting it with its watch, signalling it, noticing its end.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::task::AbortHandle;
use tradewind_core::{Clock, ExposeSecret, SecretString};

use super::gpu::Gpus;
use super::program::Surroundings;
use super::stage::Staging;
use super::watch::Watchman;
use super::{Event, Shell, cgroup, checkpoint_directory, children, program};
use crate::logic::{Input, Launch, ProgramEnd, ProgramSignal};
use crate::progress::read_file;
use tradewind_protocol::Pattern;

/// How long output may take to end after the last process has.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);
/// The progress file is looked at up to this size.
const PROGRESS_BYTES: u64 = 64 * 1024;

/// A program that was started.
pub(super) struct Running {
    pid: Pid,
    end: Option<ProgramEnd>,
    output_ended: bool,
    /// When the end is said even if somebody still holds the output open.
    said_by: Option<Duration>,
    /// Kills for want of memory before its start.
    oom_kills: Option<u64>,
    /// The eye on the GPUs.
    gpus: Option<AbortHandle>,
}

impl Running {
    /// When something is to be done about it.
    pub(super) fn due(&self) -> Option<Duration> {
        self.said_by
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(gpus) = &self.gpus {
            gpus.abort();
        }
    }
}

impl Shell {
    pub(super) fn start_program(&mut self, launch: &Launch) {
        // Whatever the program before still says from now on belongs to no attempt.
        self.run += 1;
        if let Some(watch) = self.watch.take() {
            watch.stop();
        }
        self.staging = None;
        if let Some(checkpoint) = &launch.checkpoint {
            let directory = checkpoint_directory(launch.working_dir.as_deref(), checkpoint);
            self.staging = Some(Staging::new(directory.clone()));
            // The start document was refused if this is no pattern.
            if let Ok(pattern) = Pattern::new(&checkpoint.pattern) {
                let quiet = Duration::from_millis(checkpoint.quiet_ms);
                let watch = Watchman::start(directory, pattern, quiet, self.clock, (self.run, self.events.clone()));
                self.watch = Some(watch);
            }
        }
        // The secrets are the program's now.
        let secrets = self.secrets.take();
        let key = launch.withheld.as_deref().and_then(|name| self.environment.secret(name));
        self.hide(secrets.iter().flat_map(|secrets| secrets.variables().values()).chain(&key));
        let inherited = self.environment.without(launch.withheld.as_deref());
        let oom_kills = cgroup::oom_kills(&self.cgroup);
        let surroundings = Surroundings {
            inherited: inherited.clone(),
            secrets: secrets.as_ref(),
            hidden: &self.hidden,
            progress_file: &self.progress_file,
        };
        match program::start(launch, &surroundings, self.run, self.events.clone()) {
            Ok(pid) => {
                let gpus = Gpus::find(inherited, self.gpu_every);
                let gpus = gpus.map(|gpus| tokio::spawn(gpus.watch(self.run, self.events.clone())).abort_handle());
                self.program = Some(Running { pid, end: None, output_ended: false, said_by: None, oom_kills, gpus });
            }
            Err(error) => {
                let line = format!("Cannot start the program: {error}\n");
                self.console.say(line.trim_end());
                let events = self.events.clone();
                tokio::spawn(async move {
                    let end = Input::ProgramExited { end: ProgramEnd::Code(127), oom_killed: None };
                    let _ = events.send(Event::Input(Input::Output(line.into_bytes()))).await;
                    let _ = events.send(Event::Input(end)).await;
                });
            }
        }
    }

    /// Adds to what no program may print. Values of an earlier attempt stay: files may still hold them.
    fn hide<'a>(&mut self, values: impl Iterator<Item = &'a SecretString>) {
        for value in values {
            if self.hidden.iter().all(|hidden| hidden.expose_secret() != value.expose_secret()) {
                self.hidden.push(value.clone());
            }
        }
    }

    pub(super) fn signal_program(&self, signal: ProgramSignal) {
        // Once it has ended, its number may belong to somebody else.
        let Some(program) = self.program.as_ref().filter(|program| program.end.is_none()) else { return };
        match signal {
            ProgramSignal::Terminate => children::signal_group(program.pid, Signal::TERM),
            ProgramSignal::Kill => children::signal_group(program.pid, Signal::KILL),
        }
    }

    pub(super) async fn children_ended(&mut self) {
        let ended = children::reap();
        let Some(program) = &mut self.program else { return };
        let Some((pid, end)) = ended.into_iter().find(|(pid, _)| *pid == program.pid) else { return };
        program.end = Some(end);
        program.said_by = Some(self.clock.monotonic() + OUTPUT_LIMIT);
        let (_, all) = children::end_all(pid).await;
        if !all {
            self.console.say("A process of the program cannot be killed");
        }
    }

    pub(super) fn output_ended(&mut self, run: u64) {
        if let Some(program) = self.program.as_mut().filter(|_| run == self.run) {
            program.output_ended = true;
        }
    }

    /// Tells the logic once the program and its output have ended.
    pub(super) fn say_end_of_program(&mut self) {
        let late = |by: Option<Duration>| by.is_some_and(|by| self.clock.monotonic() >= by);
        let said = self.program.as_ref().filter(|program| program.output_ended || late(program.said_by));
        if let Some((end, before)) = said.and_then(|program| Some((program.end?, program.oom_kills))) {
            self.read_progress();
            let _ = std::fs::remove_file(&self.progress_file);
            self.program = None;
            let oom_killed = before.zip(cgroup::oom_kills(&self.cgroup)).map(|(before, after)| after > before);
            self.feed(Input::ProgramExited { end, oom_killed });
        }
    }

    pub(super) async fn end_program(&mut self) {
        if let Some(program) = self.program.take()
            && program.end.is_none()
        {
            children::end_all(program.pid).await;
        }
        if let Some(watch) = &self.watch {
            watch.stop();
        }
    }

    pub(super) fn read_progress(&mut self) {
        if let Some(progress) = read_small(&self.progress_file).as_deref().and_then(read_file) {
            self.feed(Input::Progress(progress));
        }
    }
}

fn read_small(file: &Path) -> Option<Vec<u8>> {
    let small = std::fs::metadata(file).is_ok_and(|metadata| metadata.len() <= PROGRESS_BYTES);
    if small { std::fs::read(file).ok() } else { None }
}
