//! Doing what the logic decides: HTTP with tickets, processes, files, clocks. Everything that waits runs beside the loop and comes back to
//! it as an [`Input`].

mod children;
mod console;
mod files;
mod http;
mod program;
mod restore;
mod stage;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use rustix::process::{Pid, Signal, getpid, set_child_subreaper};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tradewind_core::{Clock, SystemClock};
use tradewind_protocol::seal::{BootKeys, SecretEnv};
use tradewind_protocol::{AgentPhase, CheckpointSettings, Control, Document, Report, SlotBatch, Start, Ticket};

use crate::config::Config;
use crate::logic::{Action, Boot, Fetched, Input, Logic, Now, ProgramEnd, ProgramSignal, SaveId};
use crate::pattern::Pattern;
use crate::progress::read_file;

use console::Console;
use http::Http;
use stage::{StageError, Staging};
use watch::{Watchman, now};

pub use program::{EXEC, become_program};

/// Events that may wait; more, and the program's output waits.
const EVENTS: usize = 256;
/// How long output may take to end after the last process has.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);
/// The progress file is looked at this often, and up to this size.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const PROGRESS_BYTES: u64 = 64 * 1024;

/// Why the agent cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// No HTTP.
    #[error("the agent cannot speak HTTP")]
    Http(#[source] http::HttpError),
    /// The system refuses something that the agent needs.
    #[error("the system refuses to {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What wakes the loop.
#[derive(Debug)]
pub(crate) enum Event {
    Input(Input),
    Secrets(SecretEnv),
    OutputEnded,
}

/// Runs the agent until the machine goes down. Returns the exit code.
pub async fn run(config: Config) -> Result<u8, ShellError> {
    let system = |what| move |source: std::io::Error| ShellError::System { what, source };
    set_child_subreaper(Some(getpid())).map_err(|errno| system("adopt orphans")(errno.into()))?;
    let (events, inbox) = channel(EVENTS);
    let console = Console::start();
    report_panics(console.clone(), events.clone());
    let mut shell = Shell::new(config, events, console)?;
    let signals = Signals::listen().map_err(system("watch signals"))?;
    if let Ok(code) = AssertUnwindSafe(shell.live(inbox, signals)).catch_unwind().await {
        return Ok(code);
    }
    shell.last_words().await;
    // A container that ends is started again on some hosts: it waits to be ended instead.
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch signals"))?;
    terminate.recv().await;
    Ok(1)
}

/// A panic anywhere becomes a report: on the loop itself by [`Shell::last_words`], elsewhere by the logic.
fn report_panics(console: Console, events: Sender<Event>) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
        console.say(format!("Broken at {place}"));
        let reason = format!("a fault in the agent at {place}");
        let _ = events.try_send(Event::Input(Input::Broken { reason }));
    }));
}

struct Signals {
    child: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

struct Running {
    pid: Pid,
    end: Option<ProgramEnd>,
    output_ended: bool,
    /// When the end is said even if somebody still holds the output open.
    said_by: Option<Duration>,
}

struct Shell {
    clock: SystemClock,
    console: Console,
    http: Http,
    keys: std::sync::Arc<BootKeys>,
    boot: String,
    logic: Logic,
    phase: AgentPhase,
    inherited: BTreeMap<OsString, OsString>,
    events: Sender<Event>,
    secrets: Option<SecretEnv>,
    program: Option<Running>,
    progress_file: PathBuf,
    watch: Option<Watchman>,
    staging: Option<Staging>,
    last_report: Option<(Ticket, Report)>,
    last_failure: Option<String>,
    leave: Option<u8>,
}

impl Shell {
    fn new(config: Config, events: Sender<Event>, console: Console) -> Result<Self, ShellError> {
        let clock = SystemClock::default();
        let keys = BootKeys::generate();
        // The key is random, so what follows from it is; and it ties the id to the key.
        let boot = tradewind_core::hex(&Sha256::digest(keys.public())[..8]);
        let here = std::env::current_dir()
            .map_err(|source| ShellError::System { what: "tell the working directory", source })?;
        let control = config.control();
        let mind = Boot { id: boot.clone(), key: keys.public().to_owned(), control, settings: config.settings };
        console.say(format!("Agent {} started, boot {boot}", env!("CARGO_PKG_VERSION")));
        Ok(Self {
            clock,
            console,
            http: Http::new().map_err(ShellError::Http)?,
            keys: std::sync::Arc::new(keys),
            logic: Logic::new(mind, now(clock)),
            phase: AgentPhase::Booted,
            inherited: config.inherited,
            events,
            secrets: None,
            program: None,
            progress_file: here.join(format!(".tradewind-progress-{boot}.json")),
            boot,
            watch: None,
            staging: None,
            last_report: None,
            last_failure: None,
            leave: None,
        })
    }

    fn now(&self) -> Now {
        now(self.clock)
    }

    async fn live(&mut self, mut inbox: Receiver<Event>, mut signals: Signals) -> u8 {
        self.feed(Input::Tick);
        let mut progress_at = Duration::ZERO;
        loop {
            if let Some(code) = self.leave {
                self.end_program().await;
                return code;
            }
            let wake = self.next_wake(progress_at);
            tokio::select! {
                Some(event) = inbox.recv() => self.event(event),
                _ = signals.child.recv() => self.children_ended().await,
                _ = signals.terminate.recv() => self.feed(Input::Signalled),
                _ = signals.interrupt.recv() => self.feed(Input::Signalled),
                () = tokio::time::sleep(wake) => self.feed(Input::Tick),
            }
            self.say_end_of_program();
            if self.program.is_some() && self.clock.monotonic() >= progress_at {
                progress_at = self.clock.monotonic() + PROGRESS_EVERY;
                self.read_progress();
            }
        }
    }

    /// Time until something is due.
    fn next_wake(&self, progress_at: Duration) -> Duration {
        let program = self.program.as_ref();
        let due = [self.logic.wake(), program.map(|_| progress_at), program.and_then(|program| program.said_by)];
        let due = due.into_iter().flatten().min();
        // A limit of a minute costs nothing and forgives a wake that was forgotten.
        let longest = Duration::from_mins(1);
        // Timers have a resolution of a millisecond; rounding up keeps the loop from spinning.
        due.map_or(longest, |at| at.saturating_sub(self.clock.monotonic()) + Duration::from_millis(1)).min(longest)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.feed(input),
            Event::Secrets(secrets) => self.secrets = Some(secrets),
            Event::OutputEnded => {
                if let Some(program) = &mut self.program {
                    program.output_ended = true;
                }
            }
        }
    }

    fn feed(&mut self, input: Input) {
        self.narrate(&input);
        let now = self.now();
        for action in self.logic.handle(now, input) {
            self.act(action);
        }
        let phase = self.logic.phase();
        if phase != self.phase {
            self.phase = phase;
            self.console.say(format!("{phase:?}"));
        }
    }

    /// Says what people should find in the provider's log.
    fn narrate(&mut self, input: &Input) {
        let failure = match input {
            Input::Control(Fetched::Denied) => Some("the ticket for the control document is not honoured".to_owned()),
            Input::Control(Fetched::Absent) => Some("there is no control document".to_owned()),
            Input::Control(Fetched::Failed(reason) | Fetched::Invalid(reason)) => Some(reason.clone()),
            Input::Control(Fetched::Found { .. } | Fetched::NotModified) => None,
            Input::OwnReport(Fetched::Denied) => Some("the earlier report cannot be read: not allowed".to_owned()),
            Input::OwnReport(Fetched::Failed(reason)) => Some(format!("the earlier report cannot be read: {reason}")),
            Input::ReportWritten { failure: Some(reason), .. } => Some(format!("the report is not stored: {reason}")),
            _ => return,
        };
        if failure != self.last_failure {
            match &failure {
                Some(reason) => self.console.say(format!("Mailbox: {reason}")),
                None => self.console.say("Mailbox reached"),
            }
            self.last_failure = failure;
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::FetchControl { ticket, etag } => {
                let http = self.http.clone();
                self.ask(async move {
                    let fetched = http.document(&ticket, etag.as_deref(), Control::MAX_BYTES).await;
                    Input::Control(decode(fetched))
                });
            }
            Action::FetchOwnReport { ticket } => {
                let http = self.http.clone();
                self.ask(
                    async move { Input::OwnReport(decode(http.document(&ticket, None, Report::MAX_BYTES).await)) },
                );
            }
            Action::FetchStart { ticket } => self.fetch_start(ticket),
            Action::FetchSlots { batch, ticket } => {
                let http = self.http.clone();
                self.ask(async move {
                    let fetched = decode(http.document(&ticket, None, SlotBatch::MAX_BYTES).await);
                    Input::Slots { batch, fetched }
                });
            }
            Action::WriteReport { ticket, report } => self.write_report(ticket, *report),
            Action::WriteLog { segment, ticket, body } => {
                let http = self.http.clone();
                self.ask(
                    async move { Input::LogWritten { segment, stored: http.overwrite(&ticket, body).await.is_ok() } },
                );
            }
            Action::Restore { candidate, checkpoint, working_dir } => {
                let step = candidate.manifest.step;
                self.console.say(format!("Restoring the checkpoint of step {step}"));
                let (http, seq) = (self.http.clone(), candidate.seq);
                let directory = checkpoint_directory(working_dir.as_deref(), &checkpoint);
                self.ask(async move {
                    let result = restore::restore(&http, &candidate, &directory).await;
                    Input::Restored { seq, result }
                });
            }
            Action::StartProgram(launch) => self.start_program(&launch),
            Action::Signal(signal) => self.signal_program(signal),
            Action::FinalScan { trust_unsettled } => match &self.watch {
                Some(watch) => watch.final_scan(trust_unsettled),
                None => self.ask(async { Input::ScanFinished }),
            },
            Action::Link { save, name } => self.link(save, &name),
            Action::Hash { save } => self.hash(save),
            Action::UploadChunk { save, piece, slot, ticket } => {
                let Some(staging) = &mut self.staging else { return };
                let upload = staging.upload(self.http.clone(), save, piece, ticket);
                let events = self.events.clone();
                let work = tokio::spawn(async move {
                    let outcome = upload.await;
                    let _ = events.send(Event::Input(Input::ChunkDone { save, slot, outcome })).await;
                });
                staging.watch_over(save, work.abort_handle());
            }
            Action::DropStaging { save } => self.drop_staging(save),
            Action::Leave { code } => self.leave = Some(u8::try_from(code).unwrap_or(1)),
        }
    }

    /// Does something beside the loop and feeds its answer.
    fn ask(&self, answer: impl Future<Output = Input> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let input = answer.await;
            let _ = events.send(Event::Input(input)).await;
        });
    }

    fn fetch_start(&self, ticket: Ticket) {
        let (http, keys, boot, events) =
            (self.http.clone(), std::sync::Arc::clone(&self.keys), self.boot.clone(), self.events.clone());
        tokio::spawn(async move {
            let fetched: Fetched<Box<Start>> = decode(http.document(&ticket, None, Start::MAX_BYTES).await);
            let mut opened = None;
            let fetched = match fetched {
                Fetched::Found { value, etag } => match open(&value, &keys, &boot) {
                    Ok(secrets) => {
                        opened = secrets;
                        Fetched::Found { value, etag }
                    }
                    Err(reason) => Fetched::Invalid(reason),
                },
                other => other,
            };
            if let Some(secrets) = opened {
                let _ = events.send(Event::Secrets(secrets)).await;
            }
            let _ = events.send(Event::Input(Input::Start(fetched))).await;
        });
    }

    fn write_report(&mut self, ticket: Ticket, report: Report) {
        self.last_report = Some((ticket.clone(), report.clone()));
        let http = self.http.clone();
        self.ask(async move {
            let failure = match report.encode() {
                Ok(body) => http.overwrite(&ticket, body).await.err(),
                Err(invalid) => Some(invalid.to_string()),
            };
            Input::ReportWritten { sequence: report.sequence, failure }
        });
    }

    fn start_program(&mut self, launch: &crate::logic::Launch) {
        if let Some(checkpoint) = &launch.checkpoint {
            let directory = checkpoint_directory(launch.working_dir.as_deref(), checkpoint);
            self.staging = Some(Staging::new(directory.clone()));
            // The start document was refused if this is no pattern.
            if let Ok(pattern) = Pattern::new(&checkpoint.pattern) {
                let quiet = Duration::from_millis(checkpoint.quiet_ms);
                let watch = Watchman::start(directory, pattern, quiet, self.clock, self.events.clone());
                self.watch = Some(watch);
            }
        }
        let started =
            program::start(launch, &self.inherited, self.secrets.as_ref(), &self.progress_file, self.events.clone());
        // The secrets are the program's now.
        self.secrets = None;
        match started {
            Ok(pid) => self.program = Some(Running { pid, end: None, output_ended: false, said_by: None }),
            Err(error) => {
                let line = format!("Cannot start the program: {error}\n");
                self.console.say(line.trim_end());
                let events = self.events.clone();
                tokio::spawn(async move {
                    let _ = events.send(Event::Input(Input::Output(line.into_bytes()))).await;
                    let _ = events.send(Event::Input(Input::ProgramExited(ProgramEnd::Code(127)))).await;
                });
            }
        }
    }

    fn signal_program(&self, signal: ProgramSignal) {
        // Once it has ended, its number may belong to somebody else.
        let Some(program) = self.program.as_ref().filter(|program| program.end.is_none()) else { return };
        match signal {
            ProgramSignal::Terminate => children::signal_group(program.pid, Signal::TERM),
            ProgramSignal::Kill => children::signal_group(program.pid, Signal::KILL),
        }
    }

    async fn children_ended(&mut self) {
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

    /// Tells the logic once the program and its output have ended.
    fn say_end_of_program(&mut self) {
        let late = |by: Option<Duration>| by.is_some_and(|by| self.clock.monotonic() >= by);
        let said = self.program.as_ref().filter(|program| program.output_ended || late(program.said_by));
        if let Some(end) = said.and_then(|program| program.end) {
            self.read_progress();
            let _ = std::fs::remove_file(&self.progress_file);
            self.program = None;
            self.feed(Input::ProgramExited(end));
        }
    }

    async fn end_program(&mut self) {
        if let Some(program) = self.program.take()
            && program.end.is_none()
        {
            children::end_all(program.pid).await;
        }
        if let Some(watch) = &self.watch {
            watch.stop();
        }
    }

    fn read_progress(&mut self) {
        let small = std::fs::metadata(&self.progress_file).is_ok_and(|metadata| metadata.len() <= PROGRESS_BYTES);
        let bytes = if small { std::fs::read(&self.progress_file).ok() } else { None };
        if let Some(progress) = bytes.as_deref().and_then(read_file) {
            self.feed(Input::Progress(progress));
        }
    }

    fn link(&mut self, save: SaveId, name: &str) {
        let linked = match &mut self.staging {
            Some(staging) => staging.link(save, name),
            None => Err(StageError::Changed),
        };
        let input = linked.map_or_else(|error| lost(save, &error), |()| Input::SaveLinked { save });
        self.ask(async { input });
    }

    fn hash(&mut self, save: SaveId) {
        let Some(staging) = &self.staging else { return };
        let work = staging.hash(save);
        self.ask(async move {
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(files)) => Input::SaveHashed { save, files },
                Ok(Err(error)) => lost(save, &error),
                Err(_) => Input::SaveLost { save, reason: Some("hashing broke off".to_owned()) },
            }
        });
    }

    fn drop_staging(&mut self, save: SaveId) {
        let Some(staging) = &mut self.staging else { return };
        if let Some(directory) = staging.forget(save) {
            let _ = files::remove(&directory);
        }
        staging.tidy();
    }

    /// The agent itself has broken: the program is ended and the last report says so.
    async fn last_words(&mut self) {
        self.end_program().await;
        let Some((ticket, mut report)) = self.last_report.take() else { return };
        report.phase = AgentPhase::Failed;
        report.sequence += 1;
        report.at = self.clock.now();
        report.warnings.truncate(7);
        report.warnings.push("The agent itself broke; see the machine's log".to_owned());
        for _ in 0..5 {
            let Ok(body) = report.encode() else { return };
            if self.http.overwrite(&ticket, body).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

/// A save that changed is told again by the watch once it is complete, so no reason is given.
fn lost(save: SaveId, error: &StageError) -> Input {
    let reason = (!matches!(error, StageError::Changed)).then(|| error.to_string());
    Input::SaveLost { save, reason }
}

fn decode<T: Document>(fetched: Fetched<Bytes>) -> Fetched<Box<T>> {
    match fetched {
        Fetched::Found { value, etag } => match T::decode_any(&value) {
            Ok(document) => Fetched::Found { value: Box::new(document), etag },
            Err(invalid) => Fetched::Invalid(invalid.to_string()),
        },
        Fetched::NotModified => Fetched::NotModified,
        Fetched::Absent => Fetched::Absent,
        Fetched::Denied => Fetched::Denied,
        Fetched::Invalid(reason) => Fetched::Invalid(reason),
        Fetched::Failed(reason) => Fetched::Failed(reason),
    }
}

/// Opens the sealed environment and refuses what could not be followed later.
fn open(start: &Start, keys: &BootKeys, boot: &str) -> Result<Option<SecretEnv>, String> {
    if let Some(checkpoint) = &start.checkpoint {
        Pattern::new(&checkpoint.pattern).map_err(|error| error.to_string())?;
    }
    let Some(sealed) = &start.sealed_env else { return Ok(None) };
    SecretEnv::open(keys, &start.machine, boot, sealed).map(Some).map_err(|error| error.to_string())
}

/// The directory of checkpoints as an absolute path.
fn checkpoint_directory(working_dir: Option<&str>, checkpoint: &CheckpointSettings) -> PathBuf {
    let joined = Path::new(working_dir.unwrap_or(".")).join(&checkpoint.path);
    let absolute = std::path::absolute(&joined).unwrap_or(joined);
    // `a/./b/` and `a/b` are one directory to us; names are compared as paths.
    absolute.components().collect()
}
