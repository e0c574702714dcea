//! The mailbox at start: keys, bucket, and the agent's binary in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tradewind::context::AgentBinary;
use tradewind::controllers::node::Finding;
use tradewind_checkpoints::{Mailbox, ProbeFailure, StoreCredentials, Stores, probe};
use tradewind_cluster::{Cluster, Key};
use tradewind_core::Clock;

use crate::config::{Config, MailboxConfig, MailboxKeys};

/// A mailbox that works, with the agent that machines fetch from it.
pub struct Open {
    /// The mailbox.
    pub mailbox: Mailbox,
    /// The agent; `None` if the operator was given none.
    pub agent: Option<AgentBinary>,
    /// How long signed addresses live.
    pub tickets_live: Duration,
}

/// The agent's binary on our own disk. It is read as a whole only if the mailbox does not have it: memory that was used once stays with us.
struct AgentFile {
    path: PathBuf,
    is: tradewind_checkpoints::AgentBinary,
}

impl AgentFile {
    fn look_at(path: &Path) -> anyhow::Result<Self> {
        let is = File::open(path).and_then(tradewind_checkpoints::AgentBinary::of);
        Ok(Self { path: path.to_owned(), is: is.with_context(|| format!("reading the agent {}", path.display()))? })
    }

    /// Sees to it that it is in the mailbox.
    async fn publish(&self, mailbox: &Mailbox) -> anyhow::Result<tradewind_checkpoints::AgentBinary> {
        if mailbox.has_agent(&self.is).await? {
            return Ok(self.is.clone());
        }
        let binary = std::fs::read(&self.path).with_context(|| format!("reading the agent {}", self.path.display()))?;
        Ok(mailbox.publish_agent(Bytes::from(binary)).await?)
    }
}

/// What is needed to open the mailbox, as often as it takes.
pub struct Opener {
    config: MailboxConfig,
    agent: Option<AgentFile>,
    namespace: String,
    cluster: Arc<dyn Cluster>,
    stores: Arc<dyn Stores>,
    clock: Arc<dyn Clock>,
    ticket_lifetime: Duration,
    /// Why the last try failed: a word and a sentence.
    trouble: Mutex<(&'static str, String)>,
}

impl Opener {
    /// `None` if no mailbox is configured.
    ///
    /// # Errors
    /// If the agent's binary cannot be read.
    pub fn new(
        config: &Config,
        namespace: &str,
        cluster: Arc<dyn Cluster>,
        stores: Arc<dyn Stores>,
        clock: Arc<dyn Clock>,
        ticket_lifetime: Duration,
    ) -> anyhow::Result<Option<Self>> {
        let Some(mailbox) = config.mailbox.clone() else { return Ok(None) };
        let agent = config.agent.as_deref().map(AgentFile::look_at).transpose()?;
        let trouble = Mutex::new(("NotTried", "the mailbox was not opened yet".to_owned()));
        let namespace = namespace.to_owned();
        Ok(Some(Self { config: mailbox, agent, namespace, cluster, stores, clock, ticket_lifetime, trouble }))
    }

    /// What the Node tells of a mailbox that could not be opened.
    pub fn finding(&self) -> Finding {
        let (reason, message) = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Finding::no_mailbox(reason, format!("{} cannot be used: {message}; it is tried again", self.config.location))
    }

    /// Opens the mailbox, tries what is needed of it, and puts the agent into it.
    async fn open(&self) -> anyhow::Result<Open> {
        let keys = match &self.config.keys {
            MailboxKeys::Given(keys) => keys.clone(),
            MailboxKeys::Secret(name) => self.read_keys(name).await?,
        };
        let store = self.stores.open(&self.config.location, &self.config.complete(keys)?)?;
        let mailbox = Mailbox::new(store);
        // Without conditional writes two operators could hand out different start documents: better nothing is rented.
        probe(mailbox.store(), self.clock.entropy()).await?;
        let ticket = mailbox.store().sign_get("probe/lifetime", self.ticket_lifetime).await?;
        let left = ticket.expires.duration_since(self.clock.now());
        let tickets_live = Duration::try_from(left).unwrap_or_default();
        let agent = match &self.agent {
            Some(agent) => {
                let published = agent.publish(&mailbox).await.context("putting the agent into the mailbox")?;
                tracing::info!(sha256 = published.sha256, size_bytes = published.size_bytes, "Agent is in the mailbox");
                Some(AgentBinary { sha256: published.sha256 })
            }
            None => None,
        };
        Ok(Open { mailbox, agent, tickets_live })
    }

    async fn read_keys(&self, name: &str) -> anyhow::Result<StoreCredentials> {
        let key = Key::namespaced(self.namespace.as_str(), name);
        let secret = self
            .cluster
            .read::<k8s_openapi::api::core::v1::Secret>(&key)
            .await
            .with_context(|| format!("reading Secret {key}"))?;
        let entries = secret.data.clone().unwrap_or_default();
        StoreCredentials::from_entries(|entry| entries.get(entry).map(|v| v.0.clone()))
            .with_context(|| format!("Secret {key}"))
    }

    /// Tries again and again, for at most `limit` if there is one.
    pub async fn until_open(&self, limit: Option<Duration>) -> Option<Open> {
        let tries = async {
            let mut wait = Duration::from_secs(1);
            loop {
                match self.open().await {
                    Ok(open) => return open,
                    Err(error) => {
                        let reason =
                            error.downcast_ref::<ProbeFailure>().map_or("CannotBeOpened", ProbeFailure::reason);
                        let error = format!("{error:#}");
                        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = (reason, error.clone());
                        tracing::warn!(error, location = %self.config.location, "Mailbox cannot be used, trying again");
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(15));
            }
        };
        match limit {
            Some(limit) => tokio::time::timeout(limit, tries).await.ok(),
            None => Some(tries.await),
        }
    }
}
