//! Entry point of the plug-in: reads the command line, runs one command, and returns its exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use kubectl_tradewind::cli::{Cli, Command};
use kubectl_tradewind::connect::Connection;
use kubectl_tradewind::screen::Screen;
use kubectl_tradewind::{Trouble, cost, doctor, logs, offers, plan, status, trouble, why};
use tradewind_core::SystemClock;

fn main() -> ExitCode {
    // First of all: a TLS client that finds no provider panics. An error says that there is one already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let cli = Cli::parse();
    // One thread: it starts sooner, and nothing here computes.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return ExitCode::from(trouble::NO_ANSWER);
        }
    };
    match runtime.block_on(run(&cli)) {
        Ok(code) => ExitCode::from(code),
        // Whoever reads has seen enough, as `head` does.
        Err(Trouble::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::from(trouble.exit_code())
        }
    }
}

async fn run(cli: &Cli) -> Result<u8, Trouble> {
    let screen = Screen::of_process();
    let clock = SystemClock::default();
    let form = cli.common.output;
    // These two ask no API server, and need no kubeconfig.
    match &cli.command {
        Command::Plan(args) => return plan::run(args, form, screen, Arc::new(clock)).await,
        Command::Offers(args) => return offers::run(args, form, screen, Arc::new(clock)).await,
        _ => {}
    }
    let endless = matches!(&cli.command, Command::Logs(_));
    let connection = Connection::open(&cli.common, endless).await?;
    match &cli.command {
        Command::Status(args) => status::run(&connection, args, form, screen, &clock).await?,
        Command::Why(args) => why::run(&connection, args, form, screen, &clock).await?,
        Command::Logs(args) => logs::run(&connection, args, form, screen).await?,
        Command::Cost(args) => cost::run(&connection, args, form, screen, &clock).await?,
        Command::Doctor(args) => return doctor::run(&connection, args, form, screen, &clock).await,
        Command::Plan(_) | Command::Offers(_) => {}
    }
    Ok(trouble::GOOD)
}
