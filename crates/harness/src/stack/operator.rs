//! The operator as a process: started, killed, started again.

use std::{path::Path, time::Duration};

use http::Method;

use super::AGENT_IMAGE;
use super::{MAILBOX, MAILBOX_SECRET, NAMESPACE, StackOptions};
use crate::{Binaries, Launch, Process, Result, S3, Sim, http_json, ports::free_port, proxy::Proxy};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running operator, or one that was killed.
#[derive(Debug)]
pub struct Operator {
    /// Its process.
    pub process: Process,
    url: String,
}

impl Operator {
    pub(super) fn launch(
        binaries: &Binaries,
        directory: &Path,
        kubeconfig: &Path,
        s3: &S3,
        options: &StackOptions,
        accounts: &[(String, String)],
    ) -> Result<(Launch, String)> {
        let mut launch = Launch::new("operator", &binaries.operator, directory)
            .arg("run")
            .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .args(["--namespace", NAMESPACE])
            .args(["--mailbox", MAILBOX, "--mailbox-endpoint", &s3.url(), "--mailbox-secret", MAILBOX_SECRET])
            .args(["--agent".as_ref(), binaries.agent.as_os_str()])
            .args(["--agent-image", AGENT_IMAGE])
            .args(["--rate-limits", "off", "--allow-http-stores"]);
        // Images of tests are in nobody's registry, and tests talk to nobody outside.
        if !options.operator_flags.contains_key("image-registries") {
            launch = launch.args(["--image-registries", "off"]);
        }
        for (name, url) in accounts {
            launch = launch.arg("--provider-url").arg(format!("{name}={url}"));
        }
        for (flag, value) in &options.operator_flags {
            launch = launch.flag(flag, value);
        }
        for (name, value) in &options.operator_environment {
            launch = launch.env(name, value);
        }
        listening(launch)
    }

    /// Another replica beside this one, by `program`, which may be another build. `change` is made to what it is started with. It is ready
    /// once it waits for the lead.
    pub async fn twin(&self, name: &str, program: &Path, change: impl FnOnce(Launch) -> Launch) -> Result<Self> {
        let (launch, url) = listening(change(self.process.launch().twin(name, program)))?;
        Self::start(launch, url).await
    }

    pub(super) async fn start(launch: Launch, url: String) -> Result<Self> {
        let mut operator = Self { process: Process::start(launch)?, url };
        operator.ready().await?;
        Ok(operator)
    }

    /// Waits until it says that it is ready. It may still wait for the lead.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.url);
        let ask = || async {
            let (status, body) = http_json::call(Method::GET, &url, None).await.map_err(|e| e.to_string())?;
            if status.is_success() { Ok(()) } else { Err(String::from_utf8_lossy(&body).trim().replace('\n', "; ")) }
        };
        self.process.ready(READY_WITHIN, ask).await
    }

    /// Its metrics, in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String> {
        let (_, body) = http_json::call(Method::GET, &format!("{}/metrics", self.url), None).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// SIGTERM, and waits for its orderly end.
    pub async fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.process.stop(Duration::from_secs(20)).await
    }

    /// Kills it if it still runs, starts it again and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.ready().await
    }
}

/// Serves probes and metrics, and the logs of rented Pods, at ports of its own.
fn listening(launch: Launch) -> Result<(Launch, String)> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    let url = format!("http://{listen}");
    let launch = launch
        .env("TRADEWIND_METRICS_LISTEN", listen)
        .env("TRADEWIND_KUBELET_LISTEN", format!("127.0.0.1:{}", free_port()?))
        .env("TRADEWIND_KUBELET_ADDRESS", "127.0.0.1");
    Ok((launch, url))
}

/// Where the operator finds each account: the simulator itself, or the proxy in front of it.
pub(super) fn account_urls(sim: &Sim, proxies: &std::collections::BTreeMap<String, Proxy>) -> Vec<(String, String)> {
    let url = |name: &str, direct: &str| proxies.get(name).map_or_else(|| direct.to_owned(), Proxy::url);
    sim.providers().iter().map(|(name, account)| (name.clone(), url(name, &account.url))).collect()
}
