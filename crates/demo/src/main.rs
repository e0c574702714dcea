//! `make demo`: the main path with everything on one machine, in two stories at once. A training job finds no GPU in the cluster, runs on
//! the cheapest machine of a simulated market, is outbid in the middle of an upload, and goes on elsewhere. Four workers train one model
//! together on the cluster's own nodes, one of which loses its power; all go on from their newest checkpoint on the others. Both end with
//! the same weights as runs that nobody disturbed. It ends with checks; the exit code says whether they hold.

mod checks;
mod gang;
mod image;
mod logs;
mod outbid;
mod screen;
mod settings;
mod show;
mod story;
mod weights;

use std::{process::ExitCode, sync::OnceLock};

use tokio::signal::unix::{SignalKind, signal};

use crate::{screen::Screen, settings::Settings};

/// As shells count it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(watched(settings))
}

/// The show, until it ends or somebody ends it. Everything that was started goes with the future that is dropped.
async fn watched(settings: Settings) -> ExitCode {
    let screen = Screen::new(settings.colour);
    let verdict = OnceLock::new();
    tokio::select! {
        outcome = show::run(&settings, &screen, &verdict) => match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                screen.plain(&format!("error: {}", settings::explain(&error)));
                ExitCode::FAILURE
            }
        },
        () = told_to_end() => {
            screen.plain("\nstopped; nothing is left running");
            match verdict.get() {
                Some(true) => ExitCode::SUCCESS,
                Some(false) => ExitCode::FAILURE,
                None => ExitCode::from(INTERRUPTED),
            }
        }
    }
}

async fn told_to_end() {
    let (interrupt, terminate, hangup) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (interrupt, terminate, hangup) else {
        // Without handlers the signals end us, and the kernel ends what we started.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
