//! A busy GPU: the sign of life of a program that prints nothing for hours.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc::Sender;

use super::Event;
use crate::logic::Input;

const PROGRAM: &str = "nvidia-smi";
const ARGUMENTS: [&str; 2] = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"];
/// Per cent from which on a GPU is busy; drivers show a little for nothing at all.
const BUSY: u32 = 5;
/// How long one look may take: without the persistence daemon the driver is loaded anew for each.
const LIMIT: Duration = Duration::from_secs(20);
const MOST_BYTES: u64 = 64 * 1024;

/// The machine's GPUs, as far as `nvidia-smi` shows them.
#[derive(Debug)]
pub struct Gpus {
    program: PathBuf,
    environment: BTreeMap<OsString, OsString>,
    every: Duration,
}

impl Gpus {
    /// `None` if there is no `nvidia-smi` on the PATH of this environment.
    pub fn find(environment: BTreeMap<OsString, OsString>, every: Duration) -> Option<Self> {
        let path = environment.get(&OsString::from("PATH"))?;
        let runs = |program: &PathBuf| {
            std::fs::metadata(program).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let program = std::env::split_paths(path).map(|directory| directory.join(PROGRAM)).find(runs)?;
        Some(Self { program, environment, every })
    }

    /// Looks at them again and again and tells when one is busy, as a part of program number `run`. Must be polled on the thread that
    /// reaps children.
    pub async fn watch(self, run: u64, events: Sender<Event>) {
        loop {
            tokio::time::sleep(self.every).await;
            let Ok(mut look) = Look::begin(&self) else { continue };
            let busy = if let Ok(text) = tokio::time::timeout(self.every.min(LIMIT), look.read()).await {
                any_busy(&text)
            } else {
                look.kill();
                // One that hangs in the kernel is not joined by another.
                look.read().await;
                false
            };
            if busy && events.send(Event::Of(run, Input::GpuBusy)).await.is_err() {
                return;
            }
        }
    }
}

/// One run of the program. It is killed when it is not wanted any more and reaped with all other children.
struct Look {
    output: Receiver,
    process: Option<OwnedFd>,
}

impl Look {
    fn begin(gpus: &Gpus) -> std::io::Result<Self> {
        let mut child = Command::new(&gpus.program)
            .args(ARGUMENTS)
            .env_clear()
            .envs(&gpus.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // Nothing was reaped since the start, so the number is still its own.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let output = child.stdout.take().ok_or_else(|| std::io::Error::other("it has no output"))?;
        Ok(Self { output: Receiver::from_owned_fd(output.into())?, process })
    }

    /// All that it still prints.
    async fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = (&mut self.output).take(MOST_BYTES).read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn kill(&self) {
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One number per GPU; those that have none (`[N/A]`) say nothing.
fn any_busy(text: &str) -> bool {
    text.lines().filter_map(|line| line.trim().parse::<u32>().ok()).any(|percent| percent >= BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_busy_gpu_is_enough_and_no_number_is_none() {
        for (text, busy) in [
            ("0\n7\n", true),
            ("100\n", true),
            ("5", true),
            ("0\n4\n", false),
            ("[N/A]\n", false),
            ("[N/A]\n 37\n", true),
            ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver 99.\n", false),
            ("", false),
        ] {
            assert_eq!(any_busy(text), busy, "{text}");
        }
    }
}
