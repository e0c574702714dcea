//! The operator as a process on a real API server, with the rights of `deploy/operator/rbac.yaml` and nothing else: start before the
//! CRDs, warm standby, handover, a frozen leader, silence while idle.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tradewind_harness::plane::audit::AuditEvent;
use tradewind_harness::{Launch, Plane, PlaneOptions, Process, RunDir, Tools, eventually, or_skip, project_root};

const LIMIT: Duration = Duration::from_secs(30);
const USER: &str = "system:serviceaccount:tradewind-system:tradewind-operator";

/// One replica and the file it logs to.
struct Replica {
    process: Process,
}

impl Replica {
    fn start(name: &str, kubeconfig: &Path, directory: &Path) -> Self {
        let launch = Launch::new(name, env!("CARGO_BIN_EXE_tradewind-operator"), directory)
            .args(["run", "--metrics-listen=127.0.0.1:0", "--lease-duration=3s", "--log-format=json", "--kubeconfig"])
            .arg(kubeconfig);
        Self { process: Process::start(launch).unwrap() }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.process.launch().log()).unwrap_or_default()
    }

    /// Waits until a line of its log has these words.
    async fn says(&self, words: &str) {
        let look = || {
            let log = self.log();
            std::future::ready(if log.contains(words) { Ok(()) } else { Err(log) })
        };
        eventually(&format!("{words:?} in a log"), LIMIT, look).await.unwrap();
    }

    /// What it answers to a GET.
    async fn get(&self, path: &str) -> (bool, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        self.says("Serving probes and metrics").await;
        let log = self.log();
        let line = log.lines().find(|line| line.contains("Serving probes")).unwrap();
        let address = serde_json::from_str::<serde_json::Value>(line).unwrap()["address"].as_str().unwrap().to_owned();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text.starts_with("HTTP/1.1 200"), text)
    }

    async fn is_ready(&self) {
        eventually("readiness", LIMIT, async || match self.get("/readyz").await {
            (true, _) => Ok(()),
            (false, text) => Err(text),
        })
        .await
        .unwrap();
    }

    async fn leads(&self) -> bool {
        self.get("/metrics").await.1.contains("\ntradewind_leader 1")
    }
}

#[tokio::test]
async fn replicas_start_hand_over_and_stay_silent() {
    let Some(tools) = or_skip(Tools::locate()) else { return };
    let run = RunDir::new("runtime").unwrap();
    let plane =
        Plane::start(&tools, run.path(), PlaneOptions { audit: true, ..PlaneOptions::default() }).await.unwrap();
    let kubectl = plane.kubectl();
    let file = |name: &str| project_root().join(name).display().to_string();
    kubectl.run(["apply", "-f", &file("deploy/operator/rbac.yaml")]).await.unwrap();
    let kubeconfig = plane.service_account_kubeconfig("tradewind-system", "tradewind-operator").await.unwrap();

    // Started too early: it waits, says for what, and goes on by itself.
    let mut first = Replica::start("first", &kubeconfig, run.path());
    first.says("the cluster does not know TrainingJob").await;
    let (ready, text) = first.get("/readyz").await;
    assert!(!ready && text.contains("apply crds/"), "{text}");
    kubectl.run(["apply", "-f", &file("crds")]).await.unwrap();
    first.says("\"Leading\"").await;
    first.is_ready().await;

    // A standby with warm caches is ready and does nothing; told to stop, the leader gives the lead free at once.
    let mut second = Replica::start("second", &kubeconfig, run.path());
    second.says("Waiting to lead").await;
    second.is_ready().await;
    assert!(first.leads().await && !second.leads().await);
    let status = first.process.stop(LIMIT).await.unwrap();
    assert!(status.success() && first.log().contains("Lead given free"), "{status}: {}", first.log());
    second.says("\"Leading\"").await;

    // Frozen for longer than its lease, a leader ends as soon as it wakes.
    let third = Replica::start("third", &kubeconfig, run.path());
    third.says("Waiting to lead").await;
    second.process.freeze(true);
    third.says("\"Leading\"").await;
    second.process.freeze(false);
    let status = second.process.wait(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(3), "{}", second.log());
    assert!(second.log().contains("Lead lost"), "{}", second.log());

    // A job that cannot start yet is looked at, told of, and then left alone.
    let job = json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "waits", "namespace": "default"},
        "spec": {"workers": 2, "template": {"spec": {"containers": [{"name": "train", "image": "demo/charlm:1"}]}}}
    });
    kubectl.apply(&job.to_string()).await.unwrap();
    let args = ["wait", "--for=jsonpath={.status.conditions[?(@.type==\"Accepted\")].reason}=CommandRequired"];
    kubectl.run(args.into_iter().chain(["--timeout=20s", "tj/waits"])).await.unwrap();
    let before = ours(&plane).len();
    let writes = || ours(&plane)[before..].iter().filter(|e| e.is_write()).map(shown).collect::<Vec<_>>();
    eventually("eight renewals of the Lease", LIMIT, || {
        let count = writes().iter().filter(|write| write.contains("/leases/")).count();
        std::future::ready(if count >= 8 { Ok(()) } else { Err(format!("{count} so far")) })
    })
    .await
    .unwrap();
    let others: Vec<String> = writes().into_iter().filter(|write| !write.contains("/leases/")).collect();
    assert!(others.is_empty(), "written while nothing changed: {others:?}");

    let refused: Vec<String> = ours(&plane)
        .iter()
        .filter(|event| event.response_status.as_ref().is_some_and(|status| status.code == 403))
        .map(shown)
        .collect();
    assert!(refused.is_empty(), "rights are missing: {refused:?}");
}

/// The operator's finished requests.
fn ours(plane: &Plane) -> Vec<AuditEvent> {
    plane.audit().unwrap().into_iter().filter(|event| event.user.username == USER).collect()
}

fn shown(event: &AuditEvent) -> String {
    let code = event.response_status.as_ref().map_or(0, |status| status.code);
    format!("{} {} {code}", event.verb, event.request_uri)
}
