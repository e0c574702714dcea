//! What can go wrong while a world of processes is started or watched.

use std::{path::PathBuf, time::Duration};

/// Why something could not be started, found or seen in time. Each text is one sentence a user can act on; where a log
/// explains more, its end follows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or socket refused.
    #[error("{doing} failed")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something that the world needs is not on this machine.
    #[error("{0}")]
    Missing(String),
    /// A process ended although it should have become ready.
    #[error("{name} ended before it was ready ({status}); the end of {}:\n{tail}", log.display())]
    Ended {
        /// The process's name.
        name: String,
        /// How it ended.
        status: String,
        /// Its whole log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A process runs, but did not become ready in time.
    #[error("{name} was not ready after {} s: {missing}; the end of {}:\n{tail}", limit.as_secs(), log.display())]
    NotReady {
        /// The process's name.
        name: String,
        /// How long was waited.
        limit: Duration,
        /// What was still missing.
        missing: String,
        /// Its whole log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A condition did not come true in time.
    #[error("waited {:.1} s for {what}: {missing}", limit.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What the last look still found missing.
        missing: String,
    },
    /// kubectl refused or failed.
    #[error("kubectl {args} failed: {stderr}")]
    Kubectl {
        /// Its arguments.
        args: String,
        /// What it printed on stderr.
        stderr: String,
    },
    /// A call to one of our processes failed or was refused.
    #[error("{call} failed: {why}")]
    Call {
        /// Method and address.
        call: String,
        /// Status and body, or the connection's error.
        why: String,
    },
    /// A process answered with something that is not what its interface says.
    #[error("{what} is not as expected: {why}")]
    Unexpected {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// Names the deed that the system refused; for use with `map_err`.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Names what was malformed; for use with `map_err`.
    pub(crate) fn unexpected<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |why| Self::Unexpected { what, why: why.to_string() }
    }
}
