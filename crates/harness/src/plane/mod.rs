//! A real Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler and, if wanted, kwok for
//! fake nodes. No kubelet, no root, no Docker.

pub mod audit;
mod kubectl;
mod pki;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use http::Method;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

pub use self::kubectl::Kubectl;
use self::{audit::AuditEvent, pki::Pki};
use crate::{
    Error, Launch, Process, Result, RunDir, Tools, eventually, http_json, locate::project_root, ports::free_port,
    process::despite_taken_ports,
};

const READY_WITHIN: Duration = Duration::from_mins(1);

/// What a control plane has besides its four programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlaneOptions {
    /// The API server logs every request, for counting ([`Plane::audit`]).
    pub audit: bool,
    /// kwok plays the kubelet for nodes annotated `kwok.x-k8s.io/node: fake` ([`Plane::add_fake_node`]).
    pub kwok: bool,
    /// After how long without a Lease a node counts as dead, in whole seconds; `None` is Kubernetes' own 50 s. The controller manager
    /// looks every fifth of it. What a Pod tolerates (`tolerationSeconds`) comes on top.
    pub node_grace: Option<Duration>,
}

/// A running control plane; ends when the value goes.
#[derive(Debug)]
pub struct Plane {
    // In the order in which they end.
    controllers: Vec<Process>,
    api_server: Process,
    _etcd: Process,
    url: String,
    authority: String,
    directory: PathBuf,
    kubectl: Kubectl,
    audit_log: Option<PathBuf>,
}

impl Plane {
    /// Starts a control plane with its files in `directory`. It is ready: namespaces get their ServiceAccount, pods are
    /// scheduled.
    pub async fn start(tools: &Tools, directory: &Path, options: PlaneOptions) -> Result<Self> {
        // kube's client picks its TLS provider from here; whoever came first has set the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pki = Pki::create(&directory.join("pki"))?;
        let token = random_token();
        write(&directory.join("tokens.csv"), &format!("{token},admin,admin,system:masters\n"))?;
        let etcd = Etcd::start(tools, directory).await?;
        let (api_server, url) = despite_taken_ports(async || {
            let port = free_port()?;
            let mut launch = api_server(tools, directory, &pki, &etcd.url, port)?;
            if options.audit {
                write(&directory.join("audit-policy.yaml"), audit::POLICY)?;
                launch = launch
                    .arg(format!("--audit-policy-file={}", directory.join("audit-policy.yaml").display()))
                    .arg(format!("--audit-log-path={}", directory.join("audit.log").display()))
                    // In MB. Without it a full file is renamed at 100 MB, and what is counted is lost.
                    .arg("--audit-log-maxsize=10000");
            }
            let url = format!("https://127.0.0.1:{port}");
            let kubeconfig = kubeconfig(&url, &pki.authority, &token);
            write(&directory.join("kubeconfig"), &kubeconfig)?;
            let client = client(&directory.join("kubeconfig")).await?;
            let mut process = Process::start(launch)?;
            process.ready(READY_WITHIN, || ask(client.clone(), "/readyz")).await?;
            Ok((process, url))
        })
        .await?;
        let home = directory.join("kubectl-home");
        fs::create_dir_all(&home).map_err(Error::io(format!("making {}", home.display())))?;
        let kubeconfig = directory.join("kubeconfig");
        let start = |program: &str, arguments: &[String]| {
            let config = format!("--kubeconfig={}", kubeconfig.display());
            Process::start(Launch::new(program, tools.program(program)?, directory).arg(config).args(arguments))
        };
        let mut controller_arguments = vec![
            format!("--service-account-private-key-file={}", pki.file("sa.key").display()),
            format!("--root-ca-file={}", pki.file("ca.crt").display()),
            // Signs requests for certificates, as it does in real clusters.
            format!("--cluster-signing-cert-file={}", pki.file("ca.crt").display()),
            format!("--cluster-signing-key-file={}", pki.file("ca.key").display()),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            // At its usual 20 requests a second it needs 4 s to start its controllers.
            "--kube-api-qps=500".into(),
            "--kube-api-burst=1000".into(),
        ];
        if let Some(grace) = options.node_grace {
            controller_arguments.push(format!("--node-monitor-grace-period={}s", grace.as_secs()));
            controller_arguments.push(format!("--node-monitor-period={}ms", grace.as_millis() / 5));
        }
        let controller_manager = start("kube-controller-manager", &controller_arguments)?;
        let scheduler_arguments = [
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            // At its usual 50 requests a second it alone would decide how fast thousands of Pods start.
            "--kube-api-qps=500".into(),
            "--kube-api-burst=1000".into(),
        ];
        let scheduler = start("kube-scheduler", &scheduler_arguments)?;
        let kwok = if options.kwok { Some(start_kwok(&start).await?) } else { None };
        let kubectl = Kubectl { program: tools.program("kubectl")?, kubeconfig, home };
        let mut plane = Self {
            controllers: [scheduler, controller_manager].into_iter().chain(kwok).collect(),
            api_server,
            _etcd: etcd.process,
            url,
            authority: pki.authority,
            directory: directory.to_owned(),
            kubectl,
            audit_log: options.audit.then(|| directory.join("audit.log")),
        };
        plane.wait_for_controllers().await?;
        Ok(plane)
    }

    /// The control plane that all tests of this binary share, with kwok and the audit log: each works in namespaces of
    /// its own ([`Plane::namespace`]) and deletes what it makes outside of them.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<(Plane, RunDir)> = OnceCell::const_new();
        let start = async || {
            let tools = Tools::locate()?;
            let run = RunDir::new("plane")?;
            let plane =
                Self::start(&tools, run.path(), PlaneOptions { audit: true, kwok: true, ..PlaneOptions::default() })
                    .await?;
            Ok::<_, Error>((plane, run))
        };
        Ok(&SHARED.get_or_try_init(start).await?.0)
    }

    /// The API server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubectl.kubeconfig
    }

    /// kubectl as its administrator.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Directory with the authority of all certificates (`ca.crt`, `ca.key`) and with what the API server shows to kubelets
    /// (`kubelet-client.crt`, `kubelet-client.key`).
    pub fn pki(&self) -> PathBuf {
        self.directory.join("pki")
    }

    /// The API server's process, to be frozen or looked at.
    pub fn api_server(&mut self) -> &mut Process {
        &mut self.api_server
    }

    /// A client of its administrator; it repeats nothing by itself. Make one for each test: a client belongs to the
    /// runtime that it was first used in.
    pub async fn client(&self) -> Result<kube::Client> {
        client(self.kubeconfig()).await
    }

    /// Makes a namespace with a name that no other test has, and waits for its ServiceAccount: without that no Pod can be
    /// created there.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.kubectl.run(["create", "namespace", &name]).await?;
        self.wait_for_service_account(&name).await?;
        Ok(name)
    }

    /// A kubeconfig for a ServiceAccount (made if it is not there) with a token for a day: what the operator runs with,
    /// so that the roles in the manifests are what it really has.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } });
        self.kubectl.apply(&account.to_string()).await?;
        let token = self.kubectl.run(["create", "token", name, "--namespace", namespace, "--duration", "24h"]).await?;
        let path = self.directory.join(format!("kubeconfig-{namespace}-{name}"));
        write(&path, &kubeconfig(&self.url, &self.authority, token.trim()))?;
        Ok(path)
    }

    /// Adds a node that kwok keeps alive, and waits until it is Ready. `resources` become its capacity beside CPU, memory
    /// and pods, such as `{"nvidia.com/gpu": "8"}`.
    pub async fn add_fake_node(&self, name: &str, resources: &Value) -> Result<()> {
        let mut capacity = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
        if let (Some(all), Some(more)) = (capacity.as_object_mut(), resources.as_object()) {
            all.extend(more.clone());
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "annotations": { "kwok.x-k8s.io/node": "fake" },
                "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" } },
            "status": { "capacity": capacity, "allocatable": capacity },
        });
        // `apply` drops the status; a plain create takes it.
        self.kubectl.run_with_input(["create", "-f", "-"], &node.to_string()).await?;
        let wait = ["wait", "--for=condition=Ready", "--timeout=30s", &format!("node/{name}")];
        self.kubectl.run(wait).await.map(drop)
    }

    /// Every request that the API server has finished; empty unless started with [`PlaneOptions::audit`].
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        self.audit_log.as_deref().map_or(Ok(Vec::new()), audit::read)
    }

    async fn wait_for_controllers(&mut self) -> Result<()> {
        self.wait_for_service_account("default").await?;
        for process in &mut self.controllers {
            process.ready(Duration::from_secs(1), || std::future::ready(Ok(()))).await?;
        }
        Ok(())
    }

    async fn wait_for_service_account(&self, namespace: &str) -> Result<()> {
        let client = self.client().await?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        let what = format!("the default ServiceAccount of {namespace} (by kube-controller-manager)");
        eventually(&what, READY_WITHIN, || ask(client.clone(), &path)).await
    }
}

struct Etcd {
    process: Process,
    url: String,
}

impl Etcd {
    async fn start(tools: &Tools, directory: &Path) -> Result<Self> {
        let program = tools.program("etcd")?;
        despite_taken_ports(async || {
            let (url, peers) =
                (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
            let data = directory.join("etcd");
            // A first attempt with other ports may have left something there.
            let _ = fs::remove_dir_all(&data);
            let launch = Launch::new("etcd", &program, directory)
                .args(["--data-dir".as_ref(), data.as_os_str()])
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync", "--log-level=warn"]);
            let mut process = Process::start(launch)?;
            let health = format!("{url}/health");
            process
                .ready(READY_WITHIN, || async {
                    http_json::json(Method::GET, &health, None).await.map(drop).map_err(|e| e.to_string())
                })
                .await?;
            Ok(Self { process, url })
        })
        .await
    }
}

fn api_server(tools: &Tools, directory: &Path, pki: &Pki, etcd: &str, port: u16) -> Result<Launch> {
    let file = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
    Ok(Launch::new("kube-apiserver", tools.program("kube-apiserver")?, directory)
        .arg(format!("--etcd-servers={etcd}"))
        .arg(format!("--secure-port={port}"))
        .args(["--bind-address=127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16"])
        .arg(file("cert-dir", directory.join("pki")))
        .arg(file("tls-cert-file", pki.file("apiserver.crt")))
        .arg(file("tls-private-key-file", pki.file("apiserver.key")))
        .arg(file("client-ca-file", pki.file("ca.crt")))
        .arg(file("kubelet-client-certificate", pki.file("kubelet-client.crt")))
        .arg(file("kubelet-client-key", pki.file("kubelet-client.key")))
        .arg(file("service-account-key-file", pki.file("sa.pub")))
        .arg(file("service-account-signing-key-file", pki.file("sa.key")))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(file("token-auth-file", directory.join("tokens.csv")))
        .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
        // A quick end of a test's plane is worth more than the grace for clients.
        .args(["--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname", "--shutdown-delay-duration=0s"]))
}

async fn start_kwok(start: &impl Fn(&str, &[String]) -> Result<Process>) -> Result<Process> {
    let stages = project_root().join("deploy/dev/kwok/stages.yaml");
    despite_taken_ports(async || {
        let port = free_port()?;
        let mut process = start(
            "kwok",
            &[
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".into(),
                "--node-lease-duration-seconds=40".into(),
                format!("--config={}", stages.display()),
                format!("--server-address=127.0.0.1:{port}"),
            ],
        )?;
        let health = format!("http://127.0.0.1:{port}/healthz");
        process
            .ready(READY_WITHIN, || async {
                let (status, _) = http_json::call(Method::GET, &health, None).await.map_err(|e| e.to_string())?;
                if status.is_success() { Ok(()) } else { Err(status.to_string()) }
            })
            .await?;
        Ok(process)
    })
    .await
}

/// A kubeconfig with one user who has a bearer token. JSON is YAML.
fn kubeconfig(url: &str, authority: &str, token: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tradewind-dev",
        "clusters": [{ "name": "tradewind-dev", "cluster": { "server": url, "certificate-authority-data": STANDARD.encode(authority) } }],
        "users": [{ "name": "user", "user": { "token": token } }],
        "contexts": [{ "name": "tradewind-dev", "context": { "cluster": "tradewind-dev", "user": "user" } }],
    })
    .to_string()
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let unusable = |e: &dyn std::fmt::Display| Error::Unexpected { what: "the kubeconfig".into(), why: e.to_string() };
    let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| unusable(&e))?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|e| unusable(&e))?;
    config.default_retry = false;
    config.proxy_url = None;
    kube::Client::try_from(config).map_err(|e| unusable(&e))
}

/// Whether a GET succeeds; else the words of whoever refused.
async fn ask(client: kube::Client, path: &str) -> std::result::Result<(), String> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    client.request_text(request).await.map(drop).map_err(|e| format!("{path}: {e}"))
}

fn random_token() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
}
