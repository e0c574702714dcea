//! Log lines as text or JSON, and errors with everything below them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Starts logging to stderr. `filter` is in the syntax of `tracing`, such as `info,tradewind=debug`.
///
/// # Errors
/// A sentence if the filter cannot be read, or if the process logs already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("the log filter {filter:?} cannot be read: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal());
            registry.with(lines).try_init()
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
    };
    started.map_err(|error| error.to_string())
}

/// An error and all its causes in one line. A cause that its parent has quoted already is not repeated.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading {what}")]
    struct Reading {
        what: &'static str,
        #[source]
        source: std::io::Error,
    }

    #[test]
    fn causes_follow_their_effects_once() {
        let io = || std::io::Error::other("disk on fire");
        let error = Reading { what: "a file", source: io() };
        assert_eq!(chain(&error), "reading a file: disk on fire");
        let quoting = Reading { what: "a file, but disk on fire", source: io() };
        assert_eq!(chain(&quoting), "reading a file, but disk on fire");
    }
}
