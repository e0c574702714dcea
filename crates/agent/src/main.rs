//! `tradewind-agent`: the parent of the workload, on a rented machine and in a Pod of the cluster.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tradewind_agent::config::Config;
use tradewind_agent::logic::CANNOT_GO_ON;
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
    /// Runs the workload that the control document at TRADEWIND_CONTROL_URL names, and stays until the machine is ended. With a PROGRAM it
    /// runs that one instead and leaves with its exit code: 128 + signal after a signal, 143 if it was told to stop, 70 if the agent itself
    /// cannot go on.
    Run {
        /// Directory for small files of its own, where the working directory cannot be written to.
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
        /// The program and its arguments: in a Pod of the cluster.
        #[arg(last = true)]
        program: Vec<String>,
    },
    /// Copies this program to PATH, for the containers of a Pod.
    Install {
        /// Where to.
        path: PathBuf,
    },
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
    let command = Arguments::parse().command;
    let failed = match &command {
        Command::Run { program, .. } if !program.is_empty() => u8::try_from(CANNOT_GO_ON).unwrap_or(1),
        _ => 2,
    };
    match start(command) {
        Ok(code) => code,
        Err(error) => {
            shell::last_word(&format!("{error:#}"));
            ExitCode::from(failed)
        }
    }
}

fn start(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { scratch, program } => {
            let mut config = Config::from_env()?.with_program(program);
            config.scratch = scratch;
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
        Command::Install { path } => {
            shell::install(&path).with_context(|| format!("the agent cannot be copied to {}", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ExecProgram { agent, program } => Ok(ExitCode::from(shell::become_program(agent, &program))),
    }
}
