//! A second installation in a cluster of its own, on the same account, object store and mailbox bucket as the first.

use super::{
    CHECKPOINT_SECRET, NAMESPACE, Operator, SECRETS_ROLE, SERVICE_ACCOUNT, Stack, StackOptions, install, operator,
};
use crate::{Binaries, Plane, Result, RunDir, Tools, plane::Kubectl};

/// The second installation; it ends when the value goes, the first one goes on.
pub struct Beside {
    /// The operator's process.
    pub operator: Operator,
    /// The control plane.
    pub plane: Plane,
    _run: RunDir,
}

impl Stack {
    /// Starts a second installation beside this one. Of `options` the market is not used: it is this stack's.
    pub async fn beside(&self, options: StackOptions) -> Result<Beside> {
        let (tools, binaries) = (Tools::locate()?, Binaries::locate()?);
        let run = RunDir::new(&options.label)?;
        let directory = run.path();
        let plane = Plane::start(&tools, directory, options.plane).await?;
        install::before_operator(&plane, &self.s3).await?;
        install::providers(&plane, &self.sim, &options).await?;
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, SERVICE_ACCOUNT).await?;
        let accounts = operator::account_urls(&self.sim, &std::collections::BTreeMap::new());
        let (launch, url) = Operator::launch(&binaries, directory, &kubeconfig, &self.s3, &options, &accounts)?;
        let operator = Operator::start(launch, url).await?;
        Ok(Beside { operator, plane, _run: run })
    }

    /// Gives a namespace of the second installation what [`Stack::namespace`] gives one of the first.
    pub async fn grant_beside(&self, beside: &Beside, namespace: &str) -> Result<()> {
        let grant = install::namespace_grant(&self.s3, namespace, CHECKPOINT_SECRET, SECRETS_ROLE);
        beside.kubectl().apply(&grant.to_string()).await.map(drop)
    }
}

impl Beside {
    /// kubectl as the administrator.
    pub fn kubectl(&self) -> &Kubectl {
        self.plane.kubectl()
    }
}
