//! Entry point of the operator: reads the command line, builds the real ports, starts, and returns an exit code.

mod cli;
mod config;
mod mailbox;
mod operate;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use cli::{Cli, Command, RunArgs};

fn main() -> ExitCode {
    // First of all: a TLS client that finds no provider panics. An error says that there is one already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let outcome = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::Crds { out } => write_files(&out, tradewind_api::crd::files()),
        Command::Reference { out } => write_files(&out, tradewind_api::reference::files()),
        Command::Version => {
            println!("tradewind-operator {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    tradewind::telemetry::logs::init(args.log_format.into(), &args.log).map_err(anyhow::Error::msg)?;
    let config = config::Config::from_args(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let outcome = runtime.block_on(operate::operate(config));
    // Whatever still runs has had its time: nothing may act for a leader that no longer leads.
    runtime.shutdown_background();
    outcome
}

fn write_files(directory: &Path, files: Vec<(impl AsRef<Path>, String)>) -> anyhow::Result<ExitCode> {
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
