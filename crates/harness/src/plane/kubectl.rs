//! kubectl against one test cluster, never against the user's.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{Error, Result, locate::passed_environment};

/// A call that takes longer is a failure; waits of tests are made of short calls, or give their own limit.
const LIMIT: Duration = Duration::from_mins(2);

/// Runs kubectl with one kubeconfig; the user's `KUBECONFIG` and home directory stay out of sight.
#[derive(Clone, Debug)]
pub struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) home: PathBuf,
}

impl Kubectl {
    /// Its stdout; [`Error::Kubectl`] with its stderr if it fails.
    pub async fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        self.run_with_input(arguments, "").await
    }

    /// As [`Kubectl::run`], with text on stdin.
    pub async fn run_with_input<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &str,
    ) -> Result<String> {
        let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let shown = arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut child = Command::new(&self.program)
            .args(&arguments)
            .env_clear()
            .envs(passed_environment())
            .env("HOME", &self.home)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io("starting kubectl"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that refuses its arguments does not read its input; its own words follow.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .map_err(|_| Error::TimedOut { what: format!("kubectl {shown}"), limit: LIMIT, missing: "its end".into() })?
            .map_err(Error::io("running kubectl"))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Kubectl { args: shown, stderr });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies manifests given as text.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.run_with_input(["apply", "-f", "-"], manifests).await
    }

    /// `kubectl get … -o json`.
    pub async fn get_json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Value> {
        let get = ["get", "-o", "json"].map(OsString::from);
        let text = self.run(get.into_iter().chain(arguments.into_iter().map(|a| a.as_ref().to_owned()))).await?;
        serde_json::from_str(&text).map_err(Error::unexpected("kubectl's JSON"))
    }
}
