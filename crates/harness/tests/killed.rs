//! Nothing that the harness starts survives it, even if it is killed with SIGKILL. The test starts itself as the program
//! that is killed, so it has a `main` of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tradewind_harness::{Launch, Process, RunDir, eventually};

const CHILD: &str = "as-the-program-that-is-killed";

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|a| a == CHILD) {
        runtime.block_on(victim(Path::new(&arguments[2])));
    } else if arguments.iter().any(|a| a == "--list") {
        println!("nothing_survives_a_kill: test");
    } else if let Err(error) = runtime.block_on(nothing_survives_a_kill()) {
        println!("nothing_survives_a_kill failed: {error:#}\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
        return ExitCode::FAILURE;
    } else {
        println!("test nothing_survives_a_kill ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored");
    }
    ExitCode::SUCCESS
}

/// Starts a process from a thread that ends, as a test's does, then waits to be killed.
async fn victim(directory: &Path) {
    let directory = directory.to_owned();
    let started =
        std::thread::spawn(move || Process::start(Launch::new("sleeper", "/bin/sleep", directory).arg("1000")));
    let process = started.join().expect("the thread").expect("the sleeper");
    println!("{}", process.pid());
    tokio::time::sleep(Duration::from_secs(1000)).await;
}

async fn nothing_survives_a_kill() -> Result<()> {
    let run = RunDir::new("killed")?;
    let mut victim =
        Command::new(std::env::current_exe()?).args([CHILD.as_ref(), run.path()]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("its stdout")?).read_line(&mut line)?;
    let sleeper = Path::new("/proc").join(line.trim()).join("comm");
    let is_sleeping = || fs::read_to_string(&sleeper).is_ok_and(|name| name.trim() == "sleep");
    let up = || std::future::ready(is_sleeping().then_some(()).ok_or_else(|| "not there".into()));
    eventually("the sleeper", Duration::from_secs(5), up).await?;
    ensure!(victim.try_wait()?.is_none(), "the program ended by itself");
    victim.kill()?;
    victim.wait()?;
    let gone = || std::future::ready((!is_sleeping()).then_some(()).ok_or_else(|| "it still sleeps".into()));
    eventually("the sleeper's end", Duration::from_secs(5), gone).await?;
    Ok(())
}
