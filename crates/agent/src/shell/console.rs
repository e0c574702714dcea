//! The agent's own lines, among the program's output: the provider's log is all that is left to read when nothing reports.

use std::io::Write;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Lines that may wait while nobody reads our output.
const WAITING: usize = 256;

/// Prints short lines without ever waiting for a reader.
#[derive(Debug, Clone)]
pub struct Console {
    lines: SyncSender<String>,
}

impl Console {
    /// Starts the thread that prints.
    pub fn start() -> Self {
        let (lines, waiting) = sync_channel::<String>(WAITING);
        std::thread::spawn(move || {
            for line in waiting {
                // Nobody may be reading; the program goes on all the same.
                let _ = writeln!(std::io::stdout().lock(), "tradewind: {line}");
            }
        });
        Self { lines }
    }

    /// Prints a line, or drops it if too many wait.
    pub fn say(&self, line: impl Into<String>) {
        let _ = self.lines.try_send(line.into());
    }
}
