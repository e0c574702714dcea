//! The way to the API server, as kubectl goes it.

use std::time::Duration;

use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use tradewind_api::TrainingJob;

use crate::cli::Common;
use crate::trouble::is_missing;
use crate::{Trouble, text};

/// A person waits: an API server that takes longer to connect to is told of.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For one answer. The API server itself gives up after a minute.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// Names that are looked through for one that was meant.
const NAMES: u32 = 500;

/// A client, and the namespace that is meant.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// `-n`, or the context's own.
    pub namespace: String,
}

impl Connection {
    /// By the flags, the kubeconfig, or a Pod's own ServiceAccount. Nothing is asked yet. `endless`: answers may take as long as they
    /// like, as logs that are followed do.
    pub async fn open(common: &Common, endless: bool) -> Result<Self, Trouble> {
        let mut config = configuration(common).await?;
        config.connect_timeout = Some(CONNECT_LIMIT);
        config.read_timeout = (!endless).then_some(ANSWER_LIMIT);
        config.default_retry = false;
        let namespace = common.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)
            .map_err(|error| Trouble::Usage(format!("the kubeconfig cannot be used: {error}")))?;
        Ok(Self { client, namespace })
    }

    /// The job of this name; says which names are near if there is none.
    pub async fn job(&self, name: &str) -> Result<TrainingJob, Trouble> {
        let api: Api<TrainingJob> = Api::namespaced(self.client.clone(), &self.namespace);
        let error = match api.get(name).await {
            Ok(job) => return Ok(job),
            Err(error) => error,
        };
        let trouble = Trouble::of("TrainingJobs", &error);
        if !is_missing(&error) || matches!(trouble, Trouble::NotInstalled(_)) {
            return Err(trouble);
        }
        let there = api.list_metadata(&ListParams::default().limit(NAMES)).await;
        let names: Vec<String> =
            there.map(|list| list.items.into_iter().filter_map(|o| o.metadata.name).collect()).unwrap_or_default();
        Err(Trouble::NotThere(no_such_job(name, &self.namespace, &names)))
    }
}

/// What is said of a name that no job has.
pub fn no_such_job(name: &str, namespace: &str, names: &[String]) -> String {
    let near = text::nearest(name, names.iter().map(String::as_str));
    let hint = if !near.is_empty() {
        format!("did you mean {}?", near.join(" or "))
    } else if names.is_empty() {
        "the namespace has no TrainingJob at all; -n names another one".to_owned()
    } else {
        "kubectl get tj lists them".to_owned()
    };
    format!("there is no TrainingJob {name} in namespace {namespace}: {hint}")
}

async fn configuration(common: &Common) -> Result<Config, Trouble> {
    let usage = |error: &KubeconfigError| Trouble::Usage(format!("the kubeconfig cannot be used: {error}"));
    let options = KubeConfigOptions { context: common.context.clone(), ..KubeConfigOptions::default() };
    let file = match &common.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    match file {
        Ok(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(|error| usage(&error)),
        Err(error) if common.kubeconfig.is_some() || common.context.is_some() => Err(usage(&error)),
        // In a Pod of the cluster.
        Err(error) => Config::incluster().map_err(|_| usage(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::no_such_job;

    #[test]
    fn a_name_that_no_job_has_leads_to_those_that_are_meant() {
        let names = ["my-run".to_owned(), "other".to_owned()];
        let told = no_such_job("my-rum", "team-a", &names);
        assert_eq!(told, "there is no TrainingJob my-rum in namespace team-a: did you mean my-run?");
        assert!(no_such_job("x", "team-a", &[]).contains("-n names another one"));
        assert!(no_such_job("zzzzzz", "team-a", &names).contains("kubectl get tj"));
    }
}
