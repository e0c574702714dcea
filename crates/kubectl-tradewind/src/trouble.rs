//! What can go wrong, in a sentence, and the exit code that says so.

use std::error::Error as _;

/// The answer is good.
pub const GOOD: u8 = 0;
/// There is an answer, and it is bad: problems were found, or what was asked for is not there.
pub const BAD: u8 = 1;
/// There is no answer: wrong usage, the API server or a market does not answer or refuses, or the cluster has no Tradewind.
pub const NO_ANSWER: u8 = 2;

/// Why there is no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// What was asked for is not there.
    #[error("{0}")]
    NotThere(String),
    /// The command line, or the kubeconfig, makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The API server does not answer.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The API server says no.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// The cluster does not know our kinds.
    #[error(
        "this cluster does not know {0}: Tradewind is not installed in it (kubectl apply --server-side -f crds/), or --context names another cluster"
    )]
    NotInstalled(String),
    /// A market does not answer, or says no.
    #[error("{0}")]
    Market(String),
    /// Standard output is gone.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl Trouble {
    /// The process' exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotThere(_) => BAD,
            _ => NO_ANSWER,
        }
    }

    /// What an error of the client means; `what` is what was asked for, such as `TrainingJobs`.
    pub fn of(what: &str, error: &kube::Error) -> Self {
        match error {
            // A kind that is not known has no Status as its answer, or one without the object's name.
            kube::Error::Api(status) if status.code == 404 && status.reason != "NotFound" => {
                Self::NotInstalled(what.to_owned())
            }
            kube::Error::Api(status) if status.code == 404 => Self::NotThere(status.message.clone()),
            kube::Error::Api(status) if status.code == 401 => Self::Refused(
                "your credentials are not accepted, log in again (kubectl get nodes would say the same)".to_owned(),
            ),
            kube::Error::Api(status) => Self::Refused(status.message.clone()),
            kube::Error::SerdeError(error) => Self::Refused(format!(
                "{what} cannot be read, is this plug-in of the same version as the CRDs? {error}"
            )),
            error => Self::Unreachable(deepest(error)),
        }
    }
}

/// True if the caller may not do this.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// True if there is no such object.
pub fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The innermost cause, which is what a user can do something about.
fn deepest(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let outer = error.source().map(ToString::to_string).unwrap_or_default();
    let inner = cause.to_string();
    if outer.is_empty() || outer.contains(&inner) { inner } else { format!("{outer}: {inner}") }
}
