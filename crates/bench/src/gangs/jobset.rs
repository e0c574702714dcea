//! JobSet, the yardstick: its controller as a process with a ServiceAccount of its own.
//!
//! Its webhooks are not installed: they would set the defaults that [`manifest`] writes out, refuse what is wrong, and look at every Pod
//! that is made. Without them it makes no more requests and is only faster.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tradewind_harness::{Launch, Plane, Process, Tools, eventually, free_port};

/// Its namespace, as in its own manifests.
pub const NAMESPACE: &str = "jobset-system";
/// Its ServiceAccount, as in its own manifests.
pub const ACCOUNT: &str = "jobset-controller-manager";
/// The label by which it marks Pods with the name of their JobSet.
pub const LABEL: &str = "jobset.sigs.k8s.io/jobset-name";

const READY_WITHIN: Duration = Duration::from_mins(1);

/// A running controller.
pub struct JobSet {
    /// Its process.
    pub process: Process,
    health: String,
}

impl JobSet {
    /// Installs it as an administrator would, webhooks aside, and starts it with the settings of its own manifests, but for its log.
    pub async fn start(tools: &Tools, plane: &Plane, directory: &Path) -> Result<Self> {
        let crd = tools.program("jobset-crd.yaml")?;
        let crd = crd.display().to_string();
        // Larger than the annotation that a client-side apply would leave.
        plane.kubectl().run(["apply", "--server-side", "-f", &crd]).await?;
        // kubectl's own wait fails if it comes before the first condition.
        let served = || async {
            plane.kubectl().run(["get", "jobsets", "-A"]).await.map(drop).map_err(|error| error.to_string())
        };
        eventually("JobSet's kind", READY_WITHIN, served).await?;
        plane.kubectl().run(["create", "namespace", NAMESPACE]).await?;
        // Its roles name each resource; what it asks is the same with all of them.
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "bench-jobset" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
            "subjects": [{ "kind": "ServiceAccount", "namespace": NAMESPACE, "name": ACCOUNT }],
        });
        plane.kubectl().apply(&binding.to_string()).await?;
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, ACCOUNT).await?;
        let certificates = certificates(plane, directory)?;
        let (health, webhooks) = (format!("127.0.0.1:{}", free_port()?), free_port()?);
        let settings = directory.join("jobset.yaml");
        let text = json!({
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1", "kind": "Configuration",
            "leaderElection": { "leaderElect": true, "resourceNamespace": NAMESPACE },
            "internalCertManagement": { "enable": false },
            "webhook": { "host": "127.0.0.1", "port": webhooks, "certDir": certificates },
            "metrics": { "bindAddress": "0" },
            "health": { "healthProbeBindAddress": health },
        });
        std::fs::write(&settings, text.to_string()).context("writing JobSet's settings")?;
        let launch = Launch::new("jobset", tools.program("jobset")?, directory)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--config={}", settings.display()))
            // Its own manifests leave it at the level of developers, which costs it processor time.
            .arg("--zap-devel=false");
        let mut jobset = Self { process: Process::start(launch)?, health: format!("http://{health}/readyz") };
        jobset.ready().await?;
        Ok(jobset)
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let (client, url) = (super::crowd::http_client()?, self.health.clone());
        let ask = || async {
            let answer = client.get(&url).send().await.map_err(|e| e.to_string())?;
            if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
        };
        Ok(self.process.ready(READY_WITHIN, ask).await?)
    }
}

/// Its webhook server does not start without a certificate, asked or not: it gets the API server's.
fn certificates(plane: &Plane, directory: &Path) -> Result<String> {
    let from = plane.kubeconfig().parent().context("the directory of the control plane")?.join("pki");
    let to = directory.join("jobset-certificates");
    std::fs::create_dir_all(&to)?;
    for (name, copy) in [("apiserver.crt", "tls.crt"), ("apiserver.key", "tls.key")] {
        std::fs::copy(from.join(name), to.join(copy)).with_context(|| format!("copying {name}"))?;
    }
    Ok(to.display().to_string())
}

/// A gang: one Job with as many Pods at once, started anew as a whole when one is lost. With its defaults written out.
pub fn manifest(namespace: &str, name: &str, workers: u32, pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["spec"]["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "successPolicy": { "operator": "All" },
            "startupPolicy": { "startupPolicyOrder": "AnyOrder" },
            "network": { "enableDNSHostnames": true, "publishNotReadyAddresses": true },
            "failurePolicy": { "maxRestarts": 10 },
            "replicatedJobs": [{
                "name": "w", "replicas": 1,
                "template": { "spec": {
                    "parallelism": workers, "completions": workers, "completionMode": "Indexed", "backoffLimit": 0,
                    "template": pod,
                } },
            }],
        },
    })
}
