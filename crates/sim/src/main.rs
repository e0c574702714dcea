//! The simulator's binary.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use tradewind_sim::cli::{self, Cli, Command};
use tradewind_sim::probe;
use tradewind_sim::runner::init;
use tradewind_sim::serve::{Settings, serve};

/// Exit code for what the user can correct: a bad argument or file.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = init::hidden(&arguments) {
        return code;
    }
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    // One thread: parent-death signals follow the thread that started a process, and this one lives to the end.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match cli.command {
        Command::Serve(arguments) => runtime.block_on(run_serve(arguments)),
        Command::Probe(arguments) => runtime.block_on(run_probe(arguments)),
    }
}

async fn run_serve(arguments: cli::Serve) -> ExitCode {
    let shim = match std::env::current_exe() {
        Ok(shim) => shim,
        Err(error) => return failed(&error),
    };
    let settings = Settings {
        market: arguments.market,
        seed: arguments.seed,
        listen: arguments.listen,
        state: arguments.state,
        time_scale: arguments.time_scale,
        faults: arguments.faults,
        shim,
        path: cli::path(),
    };
    match serve(settings, |line| println!("{line}")).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run_probe(arguments: cli::Probe) -> ExitCode {
    let Some(key) = cli::api_key() else {
        eprintln!("tradewind-sim: the environment variable TRADEWIND_API_KEY is not set");
        return ExitCode::from(REFUSED);
    };
    let settings = probe::Settings {
        kind: arguments.kind,
        url: arguments.url,
        key,
        steps: arguments.steps,
        spot: arguments.spot,
        max_price: arguments.max_price,
    };
    match probe::run(settings, |line| println!("{line}")).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(error.as_ref()),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    eprintln!("tradewind-sim: {text}");
    ExitCode::from(REFUSED)
}
