//! `tradewind-sim serve`: listeners, the ready line, the passing of time, the end.

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Map, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::clock::SimClock;
use crate::control;
use crate::faults::{Fault, Faults};
use crate::file::{self, FileError};
use crate::market::{Account, Market};
use crate::runner::{Exit, Runner};
use crate::vast::DropConnection;
use crate::wire;
use crate::world::World;

/// Longest time between two looks at what is due.
const TICK: Duration = Duration::from_millis(10);

/// What `serve` needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Market file.
    pub market: PathBuf,
    /// Seed.
    pub seed: u64,
    /// Address of the control API; with a fixed port the providers get the next ones.
    pub listen: SocketAddr,
    /// Where machines live; `None` makes a temporary directory.
    pub state: Option<PathBuf>,
    /// How many times as fast as real time.
    pub time_scale: f64,
    /// Faults to start with.
    pub faults: Option<PathBuf>,
    /// The binary with the hidden subcommands: this program.
    pub shim: PathBuf,
    /// `PATH` of machines.
    pub path: OsString,
}

/// Why the simulator does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file was refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The state directory cannot be made.
    #[error("cannot make the state directory {path}")]
    State {
        /// The directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The system refuses something else.
    #[error("cannot set up {what}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves until SIGTERM or SIGINT; `ready` gets the ready line. Ends every machine process before it returns.
pub async fn serve(settings: Settings, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
    let accounts = file::read_market(&settings.market)?;
    let faults = read_faults(settings.faults.as_deref(), &accounts)?;
    let temporary = match &settings.state {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("tradewind-sim-")
                .tempdir()
                .map_err(|source| ServeError::Setup { what: "a temporary directory", source })?,
        ),
    };
    let state = settings.state.clone().or_else(|| temporary.as_ref().map(|t| t.path().to_owned())).unwrap_or_default();
    let state = std::path::absolute(&state).unwrap_or(state);
    std::fs::create_dir_all(state.join("machines"))
        .map_err(|source| ServeError::State { path: state.display().to_string(), source })?;

    let clock = SimClock::start(settings.time_scale);
    let market = Market::new(settings.seed, clock.epoch(), accounts.clone());
    let (runner, exits) = Runner::new(&state, settings.shim.clone(), settings.path.clone());
    let world = Arc::new(World::new(market, clock, faults, Arc::new(runner)));

    let line = listen(&settings, &world, &state).await?;
    let mut terminate = on_signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = on_signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::spawn(hear_exits(world.clone(), exits));
    tokio::spawn(pass_time(world.clone()));
    ready(&line);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    world.runner.end_all().await;
    drop(temporary);
    Ok(())
}

fn on_signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, ServeError> {
    tokio::signal::unix::signal(kind).map_err(|source| ServeError::Setup { what: "signal handlers", source })
}

/// Opens every listener and gives the ready line.
async fn listen(settings: &Settings, world: &Arc<World>, state: &Path) -> Result<String, ServeError> {
    let (names, _) = world.with(|market, _| {
        market.accounts().iter().map(|a| (a.name.clone(), a.kind, a.api_key.clone())).collect::<Vec<_>>()
    });
    let (control_listener, control_address) = bind(settings.listen).await?;
    let mut providers = Map::new();
    let mut port = settings.listen.port();
    for (name, kind, key) in names {
        port = if port == 0 { 0 } else { port.saturating_add(1) };
        let (listener, address) = bind(SocketAddr::new(settings.listen.ip(), port)).await?;
        let url = format!("http://{address}");
        tokio::spawn(accept(listener, wire::router(kind, world.clone(), name.clone(), url.clone())));
        providers.insert(name, json!({"kind": kind.as_str(), "url": url, "apiKey": key}));
    }
    tokio::spawn(accept(control_listener, control::router(world.clone())));
    let line = json!({"ready": true, "pid": std::process::id(), "seed": settings.seed, "state": state.display().to_string(),
        "control": format!("http://{control_address}"), "providers": providers});
    Ok(line.to_string())
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let refused = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

fn read_faults(path: Option<&Path>, accounts: &[Account]) -> Result<Faults, FileError> {
    let mut faults = Faults::default();
    let Some(path) = path else { return Ok(faults) };
    let json = file::read_json(path)?;
    let name = path.display().to_string();
    let bad =
        |field: String, problem: String, found: String| FileError::Field { file: name.clone(), field, problem, found };
    let list = json
        .as_array()
        .ok_or_else(|| bad("the file".to_owned(), "must be a list of faults".to_owned(), json.to_string()))?;
    let providers: Vec<&str> = accounts.iter().map(|account| account.name.as_str()).collect();
    for (position, entry) in list.iter().enumerate() {
        let fault = Fault::parse(entry, &providers)
            .map_err(|error| bad(format!("[{position}].{}", error.field), error.problem, error.found))?;
        faults.add(fault);
    }
    Ok(faults)
}

/// Serves a router on a listener. Answers marked [`DropConnection`] are not sent: their connection closes.
async fn accept(listener: TcpListener, router: Router) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| answer(router.clone(), request));
        tokio::spawn(async move {
            // A client that breaks off is none of our business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let response: Result<_, Infallible> = router.oneshot(request.map(Body::new)).await;
    match response {
        Ok(response) if response.extensions().get::<DropConnection>().is_none() => Ok(response),
        _ => Err(std::io::Error::other("the answer is lost")),
    }
}

async fn hear_exits(world: Arc<World>, mut exits: mpsc::UnboundedReceiver<Exit>) {
    while let Some(exit) = exits.recv().await {
        let ((), pending) = world.with(|market, now| market.process_exited(now, exit.machine, exit.boot, exit.code));
        pending.done().await;
    }
}

/// Lets what is due happen although nobody asks.
async fn pass_time(world: Arc<World>) {
    loop {
        tokio::time::sleep(TICK).await;
        let ((), pending) = world.with(|_, _| ());
        drop(pending);
    }
}
