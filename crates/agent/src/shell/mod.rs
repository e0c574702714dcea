//! Doing what the logic decides: HTTP with tickets, processes, files, clocks. Everything that waits runs beside the loop and comes back to
//! it as an [`Input`].

mod cgroup;
mod children;
mod console;
mod files;
mod gpu;
mod host;
mod http;
mod install;
mod leave;
mod life;
mod program;
mod restore;
mod stage;
mod watch;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use rustix::process::{getpid, set_child_subreaper};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tradewind_core::{Clock, SecretString, SystemClock};
use tradewind_protocol::seal::{BootKeys, SecretEnv};
use tradewind_protocol::{
    AgentPhase, CheckpointSettings, Control, Document, Report, SelfEnd, SlotBatch, Start, Ticket,
};

use crate::config::{Config, Environment};
use crate::logic::{Action, Boot, CANNOT_GO_ON, Fetched, Input, Logic, Now, SaveId};
use tradewind_protocol::Pattern;

use console::Console;
use http::Http;
use life::Running;
use stage::{StageError, Staging};
use watch::{Watchman, now};

pub use install::install;
pub use leave::last_word;
pub use program::{EXEC, become_program};

/// Events that may wait; more, and the program's output waits.
const EVENTS: usize = 256;
/// The progress file is looked at this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

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
    /// Something that program number n, or the watch over its saves, said.
    Of(u64, Input),
    /// What a start document that is told next has sealed, if anything.
    Secrets(Option<SecretEnv>),
    OutputEnded(u64),
}

/// Runs the agent until the machine goes down or, in the cluster, until all is said. Returns the exit code.
pub async fn run(config: Config) -> Result<u8, ShellError> {
    let system = |what| move |source: std::io::Error| ShellError::System { what, source };
    set_child_subreaper(Some(getpid())).map_err(|errno| system("adopt orphans")(errno.into()))?;
    let (events, inbox) = channel(EVENTS);
    let console = Console::start();
    report_panics(console.clone(), events.clone());
    let in_cluster = config.in_cluster.is_some();
    let mut shell = Shell::new(config, events, console)?;
    let signals = Signals::listen().map_err(system("watch signals"))?;
    if let Ok(code) = AssertUnwindSafe(shell.live(inbox, signals)).catch_unwind().await {
        return Ok(code);
    }
    shell.last_words().await;
    if in_cluster {
        last_word("The agent itself broke; see the log");
        return Ok(u8::try_from(CANNOT_GO_ON).unwrap_or(1));
    }
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
    /// Images can name another signal that asks for the end (STOPSIGNAL); this is the usual one.
    quit: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }
}

struct Shell {
    clock: SystemClock,
    console: Console,
    http: Http,
    keys: std::sync::Arc<BootKeys>,
    boot: String,
    logic: Logic,
    phase: AgentPhase,
    environment: Environment,
    cgroup: PathBuf,
    gpu_every: Duration,
    events: Sender<Event>,
    secrets: Option<SecretEnv>,
    /// What no program may print.
    hidden: Vec<SecretString>,
    /// Number of the newest program.
    run: u64,
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
        let visible = config.visible_gpus.as_deref();
        let look = || host::look(&here, &config.cgroup, Path::new("/proc"), Path::new("/dev"), visible);
        let host = config.host.unwrap_or_else(look);
        for warning in config.in_cluster.iter().flat_map(|pod| &pod.warnings) {
            leave::complain(warning);
        }
        let scratch = config.scratch.map_or_else(|| here.clone(), |directory| here.join(directory));
        let mind = Boot {
            id: boot.clone(),
            key: keys.public().to_owned(),
            control,
            host,
            settings: config.settings,
            in_cluster: config.in_cluster,
        };
        console.say(format!("Agent {} started, boot {boot}", env!("CARGO_PKG_VERSION")));
        Ok(Self {
            clock,
            console,
            http: Http::new().map_err(ShellError::Http)?,
            keys: std::sync::Arc::new(keys),
            logic: Logic::new(mind, now(clock)),
            phase: AgentPhase::Booted,
            environment: config.environment,
            cgroup: config.cgroup,
            gpu_every: config.gpu_every,
            events,
            secrets: None,
            hidden: Vec::new(),
            run: 0,
            program: None,
            progress_file: scratch.join(format!(".tradewind-progress-{boot}.json")),
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
                _ = signals.quit.recv() => self.feed(Input::Signalled),
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
        let due = [self.logic.wake(), program.map(|_| progress_at), program.and_then(Running::due)];
        let due = due.into_iter().flatten().min();
        // A limit of a minute costs nothing and forgives a wake that was forgotten.
        let longest = Duration::from_mins(1);
        // Timers have a resolution of a millisecond; rounding up keeps the loop from spinning.
        due.map_or(longest, |at| at.saturating_sub(self.clock.monotonic()) + Duration::from_millis(1)).min(longest)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.feed(input),
            Event::Of(run, input) => {
                if run == self.run {
                    self.feed(input);
                }
            }
            Event::Secrets(secrets) => self.secrets = secrets,
            Event::OutputEnded(run) => self.output_ended(run),
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
            Input::RentalEnded { failure } => {
                let accepted = "The end of the rental is accepted".to_owned();
                let refused = |reason| format!("The end of the rental is not accepted: {reason}");
                return self.console.say(failure.as_ref().map_or(accepted, refused));
            }
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
            Action::ClearSaves { checkpoint, working_dir } => {
                let directory = checkpoint_directory(working_dir.as_deref(), &checkpoint);
                if let Err(error) = restore::clear(&directory, &checkpoint.pattern) {
                    // A restore that meets the same obstacle says so; without one the program finds what it left.
                    self.console.say(format!("What the attempt before saved cannot be removed: {error}"));
                }
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
            Action::EndRental { end } => self.end_rental(end),
            Action::Leave { code, why } => {
                if let Some(why) = why {
                    last_word(&why);
                }
                self.leave = Some(u8::try_from(code).unwrap_or(1));
            }
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
            let _ = events.send(Event::Secrets(opened)).await;
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

    /// Ends the rental of this machine with the key that its environment holds.
    fn end_rental(&self, end: SelfEnd) {
        self.console.say("The operator is silent: ending the rental of this machine");
        let (http, key) = (self.http.clone(), self.environment.secret(&end.bearer_env));
        self.ask(async move {
            let ended = match key {
                Some(key) => http.end_rental(&end, &key).await,
                None => Err(format!("the variable {} is not set", end.bearer_env)),
            };
            Input::RentalEnded { failure: ended.err() }
        });
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
