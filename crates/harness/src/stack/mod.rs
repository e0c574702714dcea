//! Everything at once: control plane, object store, simulated market and operator, installed as an administrator would.
//!
//! ```no_run
//! # async fn example() -> tradewind_harness::Result<()> {
//! use std::time::Duration;
//! use tradewind_harness::{Stack, StackOptions};
//! let market = serde_json::json!({ "providers": { "vast": { "kind": "vast", "offers": [{ "id": 1 }] } } });
//! let stack = Stack::start(StackOptions::new("example", market)).await?;
//! let namespace = stack.namespace("team").await?;
//! stack.apply(&format!("…a TrainingJob in {namespace}…")).await?;
//! stack.wait_all_gone(Duration::from_secs(60)).await
//! # }
//! ```

mod beside;
mod install;
mod operator;
mod options;
mod watch;

use std::{collections::BTreeMap, path::Path, time::Duration};

use tradewind_api::Provider;

pub use self::{
    beside::Beside,
    operator::Operator,
    options::{Progress, StackOptions},
    watch::{summary, summary_of_machine},
};
use crate::{
    Binaries, Error, FakeNode, FakeNodeOptions, Plane, Proxy, ProxyOptions, Result, RunDir, S3, S3Server, Sim,
    SimOptions, Tools, eventually, plane::Kubectl,
};

/// The operator's namespace.
pub const NAMESPACE: &str = "tradewind-system";
/// The operator's ServiceAccount, which the roles in `deploy/operator` are bound to.
pub const SERVICE_ACCOUNT: &str = "tradewind-operator";
/// ClusterRole that the administrator of a namespace binds, so that the operator may read the Secrets that jobs name.
pub const SECRETS_ROLE: &str = "tradewind-secret-reader";
/// Secret with the keys of the mailbox's bucket.
pub const MAILBOX_SECRET: &str = "mailbox";
/// The operator's own place in the object store.
pub const MAILBOX: &str = "s3://mailbox/tradewind/";
/// Bucket for checkpoints.
pub const CHECKPOINT_BUCKET: &str = "ckpt";
/// Image of the agent's init container on nodes that tests play.
pub const AGENT_IMAGE: &str = "tradewind-agent:test";
/// Secret with the keys of the checkpoints' bucket in each namespace of jobs.
pub const CHECKPOINT_SECRET: &str = "s3";

const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// A running stack; everything ends when the value goes.
pub struct Stack {
    // In the order in which they end.
    /// The operator's process.
    pub operator: Operator,
    /// The simulated market.
    pub sim: Sim,
    provider_proxies: BTreeMap<String, Proxy>,
    /// The object store and the proxy in front of it.
    pub s3: S3,
    /// The control plane.
    pub plane: Plane,
    client: kube::Client,
    run: RunDir,
}

impl Stack {
    /// Starts all of it in parallel, installs what the operator needs, and waits until it is ready and can use every account.
    pub async fn start(options: StackOptions) -> Result<Self> {
        let tools = Tools::locate()?;
        let binaries = Binaries::locate()?;
        let run = RunDir::new(&options.label)?;
        let directory = run.path();
        let say = |line: &str| options.progress.say(line);
        say("control plane, object store, simulated market");
        let sim_options = SimOptions { seed: options.seed, faults: options.faults.clone() };
        let (plane, s3, sim) = tokio::try_join!(
            Plane::start(&tools, directory, options.plane),
            S3::start_with(&tools, directory, S3Server::Versitygw, options.record_store),
            Sim::start(&binaries.sim, directory, &options.market, sim_options),
        )?;
        for bucket in ["mailbox", CHECKPOINT_BUCKET] {
            s3.create_bucket(bucket)?;
        }
        let provider_proxies = if options.provider_proxies { proxies(&sim, directory)? } else { BTreeMap::new() };
        say("custom resources, roles, credentials");
        install::before_operator(&plane, &s3).await?;
        install::providers(&plane, &sim, &options).await?;
        say("operator");
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, SERVICE_ACCOUNT).await?;
        let accounts = operator::account_urls(&sim, &provider_proxies);
        let (launch, url) = Operator::launch(&binaries, directory, &kubeconfig, &s3, &options, &accounts)?;
        let operator = Operator::start(launch, url).await?;
        let client = plane.client().await?;
        let mut stack = Self { operator, sim, provider_proxies, s3, plane, client, run };
        stack.wait_for_accounts().await?;
        Ok(stack)
    }

    async fn wait_for_accounts(&mut self) -> Result<()> {
        let names: Vec<String> = self.sim.providers().keys().cloned().collect();
        let api: kube::Api<Provider> = kube::Api::all(self.client.clone());
        let look = || async {
            for name in &names {
                let provider = api.get(name).await.map_err(|e| e.to_string())?;
                let conditions = provider.status.map(|s| s.conditions).unwrap_or_default();
                let ready = conditions.iter().find(|c| c.type_ == "Ready");
                match ready {
                    Some(ready) if ready.status == "True" => {}
                    Some(ready) => {
                        return Err(format!("Provider {name} is not ready: {}: {}", ready.reason, ready.message));
                    }
                    None => return Err(format!("nobody has looked at Provider {name}")),
                }
            }
            Ok(())
        };
        self.operator.process.ready(STARTED_WITHIN, look).await
    }

    /// The directory with all logs and data.
    pub fn directory(&self) -> &Path {
        self.run.path()
    }

    /// Leaves the run directory in place when the stack ends.
    pub fn keep_directory(&mut self) {
        self.run.keep();
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> &Kubectl {
        self.plane.kubectl()
    }

    /// Applies manifests given as text.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl().apply(manifests).await
    }

    /// A new namespace in which jobs can run: with the Secret [`CHECKPOINT_SECRET`] for locations in the bucket
    /// [`CHECKPOINT_BUCKET`], and with the operator's right to read its Secrets.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let name = self.plane.namespace(prefix).await?;
        self.grant(&name).await?;
        Ok(name)
    }

    /// Gives an existing namespace what [`Stack::namespace`] gives a new one.
    pub async fn grant(&self, namespace: &str) -> Result<()> {
        let grant = install::namespace_grant(&self.s3, namespace, CHECKPOINT_SECRET, SECRETS_ROLE);
        self.apply(&grant.to_string()).await.map(drop)
    }

    /// The Secret [`CHECKPOINT_SECRET`] for a namespace, as a manifest.
    pub fn store_secret(&self, namespace: &str) -> serde_json::Value {
        install::store_secret(&self.s3, namespace, CHECKPOINT_SECRET)
    }

    /// Adds a node of the cluster that this program plays; it ends when the value goes, so let it go before the stack.
    pub async fn add_node(&self, options: FakeNodeOptions) -> Result<FakeNode> {
        FakeNode::start(&self.plane, self.directory(), options).await
    }

    /// The proxy between the operator and an account ([`StackOptions::provider_proxies`]).
    pub fn provider_proxy(&self, name: &str) -> Result<&Proxy> {
        let none = || Error::Missing(format!("There is no proxy in front of the account {name}."));
        self.provider_proxies.get(name).ok_or_else(none)
    }

    /// Waits until `look` is content; its `Err` says what is missing.
    pub async fn eventually<T, P, F>(&self, what: &str, limit: Duration, look: P) -> Result<T>
    where
        P: FnMut() -> F,
        F: Future<Output = std::result::Result<T, String>>,
    {
        eventually(what, limit, look).await
    }
}

fn proxies(sim: &Sim, directory: &Path) -> Result<BTreeMap<String, Proxy>> {
    let start = |(name, account): (&String, &crate::sim::SimProvider)| {
        let record = Some(directory.join(format!("{name}.recording")));
        let proxy = Proxy::start(&account.url, ProxyOptions { record, ..ProxyOptions::default() })?;
        Ok((name.clone(), proxy))
    };
    sim.providers().iter().map(start).collect()
}
