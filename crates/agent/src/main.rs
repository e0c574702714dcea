//! `tradewind-agent`: the parent of the workload on a rented machine.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tradewind_agent::config::Config;
use tradewind_agent::shell;

/// The program beside the workload: restores its checkpoint, runs it, uploads what it saves, reports.
#[derive(Parser)]
#[command(name = "tradewind-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the workload that the control document at TRADEWIND_CONTROL_URL names, and stays until the machine is ended.
    Run,
    /// Becomes the workload.
    #[command(name = shell::EXEC, hide = true)]
    ExecProgram {
        /// Process id of the agent.
        agent: u32,
        /// The program and its arguments.
        #[arg(last = true)]
        program: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tradewind-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Run => {
            let config = Config::from_env()?;
            // One thread: the program is killed when the thread that started it ends, and that must be this one.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("the runtime cannot be started")?;
            let code = runtime.block_on(shell::run(config))?;
            // What still hashes or reads on another thread is not waited for.
            runtime.shutdown_background();
            Ok(ExitCode::from(code))
        }
        Command::ExecProgram { agent, program } => Ok(ExitCode::from(shell::become_program(agent, &program))),
    }
}
