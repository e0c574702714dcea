//! What the operator was told, checked once. The only place of the operator that reads the environment beside the flags.
#![expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tradewind::runtime::election::Terms;
use tradewind::settings::Settings;
use tradewind_checkpoints::{Location, StoreCredentials};
use tradewind_core::{InstallId, Money};
use url::Url;

use crate::cli::{RunArgs, Switch, TimeArgs};

/// Everything that `run` needs to know.
pub struct Config {
    /// Kubernetes API.
    pub kubeconfig: Option<PathBuf>,
    /// Where the operator's own Secrets and Lease are; `None` = as the cluster's configuration says.
    pub namespace: Option<String>,
    /// Name of this installation.
    pub release: String,
    /// The mailbox.
    pub mailbox: Option<MailboxConfig>,
    /// The agent's binary.
    pub agent: Option<PathBuf>,
    /// Addresses of markets instead of their own.
    pub provider_urls: BTreeMap<String, Url>,
    /// Whether calls to providers are slowed down to what is allowed.
    pub rate_limits: bool,
    /// Whether stores may be spoken to over plain http.
    pub allow_http_stores: bool,
    /// Whether registries are asked how large images are.
    pub image_registries: bool,
    /// Reconciles of one controller at once.
    pub concurrency: usize,
    /// Probes and metrics.
    pub metrics_listen: SocketAddr,
    /// Where logs of rented Pods are served.
    pub kubelet_listen: SocketAddr,
    /// Where the API server reaches that; `None`: nothing is served.
    pub kubelet_address: Option<IpAddr>,
    /// Logs are served without a client certificate too.
    pub kubelet_anonymous: bool,
    /// The election's times.
    pub terms: Terms,
    /// For work that runs when the operator is told to stop.
    pub drain_limit: Duration,
    /// For one rent call.
    pub rent_limit: Duration,
    /// How long after a rent call its machine may still be missing from the account's list.
    pub unseen_limit: Duration,
    times: TimeArgs,
    sweep_report_only: bool,
    agent_image: Option<String>,
    cluster_gpu_price: Money,
}

/// The operator's own bucket.
#[derive(Clone)]
pub struct MailboxConfig {
    /// Bucket and prefix.
    pub location: Location,
    /// Where its keys are.
    pub keys: MailboxKeys,
    endpoint: Option<String>,
    region: Option<String>,
}

/// Where the keys of the mailbox are.
#[derive(Clone)]
pub enum MailboxKeys {
    /// They came with the environment.
    Given(StoreCredentials),
    /// In this Secret in the operator's namespace.
    Secret(String),
}

impl MailboxConfig {
    /// Credentials with what the flags say about endpoint and region.
    pub fn complete(&self, keys: StoreCredentials) -> anyhow::Result<StoreCredentials> {
        let keys = keys.with_region(self.region.clone());
        match &self.endpoint {
            Some(endpoint) => keys.with_endpoint(endpoint).context("--mailbox-endpoint cannot be used"),
            None => Ok(keys),
        }
    }
}

impl Config {
    /// Checks the flags and takes the mailbox's keys out of the environment where no Secret is named.
    pub fn from_args(args: RunArgs) -> anyhow::Result<Self> {
        Self::with_environment(args, |name| std::env::var(name).ok().map(String::into_bytes))
    }

    fn with_environment(args: RunArgs, environment: impl Fn(&str) -> Option<Vec<u8>>) -> anyhow::Result<Self> {
        let pod_ip = environment("POD_IP").filter(|ip| !ip.is_empty());
        let pod_ip = pod_ip.map(|ip| String::from_utf8_lossy(&ip).trim().parse().context("POD_IP is no IP address"));
        let kubelet_address = match args.kubelet.address {
            Some(address) => Some(address),
            None => pod_ip.transpose()?,
        };
        let mailbox_args = args.mailbox;
        let mailbox = match mailbox_args.mailbox {
            None => None,
            Some(location) => {
                let keys = match mailbox_args.mailbox_secret {
                    Some(secret) => MailboxKeys::Secret(secret),
                    None => MailboxKeys::Given(StoreCredentials::from_entries(environment).context(
                        "--mailbox needs keys: name a Secret by --mailbox-secret or set them in the environment",
                    )?),
                };
                let (endpoint, region) = (mailbox_args.mailbox_endpoint, mailbox_args.mailbox_region);
                let config = MailboxConfig { location, keys, endpoint, region };
                // Whatever the keys turn out to be: a bad endpoint is better said now.
                config.complete(StoreCredentials::new("-", "-"))?;
                Some(config)
            }
        };
        if mailbox.is_none() && mailbox_args.agent.is_some() {
            bail!("--agent is of no use without --mailbox, from where machines would fetch it");
        }
        ensure!(
            args.times.ticket_lifetime <= Duration::from_hours(7 * 24),
            "--ticket-lifetime must be at most 7 days: no store signs for longer"
        );
        ensure!(args.times.lease_duration >= Duration::from_secs(3), "--lease-duration must be at least 3s");
        let lease = args.times.lease_duration;
        let terms = Terms { duration: lease, renew_within: lease * 2 / 3, retry: lease * 2 / 15 };
        let count = args.provider_url.len();
        let provider_urls: BTreeMap<String, Url> = args.provider_url.into_iter().collect();
        ensure!(provider_urls.len() == count, "--provider-url names a Provider twice");
        Ok(Self {
            kubeconfig: args.kubeconfig,
            namespace: args.namespace,
            release: args.release,
            mailbox,
            agent: mailbox_args.agent,
            provider_urls,
            rate_limits: args.rate_limits == Switch::On,
            allow_http_stores: args.allow_http_stores,
            image_registries: args.image_registries == Switch::On,
            concurrency: args.concurrency.into(),
            metrics_listen: args.metrics_listen,
            kubelet_listen: args.kubelet.listen,
            kubelet_address,
            kubelet_anonymous: args.kubelet.anonymous,
            terms,
            drain_limit: args.times.drain_limit,
            rent_limit: args.times.rent_limit,
            unseen_limit: args.times.unseen_limit,
            times: args.times,
            sweep_report_only: args.sweep_report_only,
            agent_image: mailbox_args.agent_image,
            cluster_gpu_price: args.cluster_gpu_price,
        })
    }

    /// The controllers' settings for this install in this namespace.
    pub fn settings(&self, install: InstallId, namespace: &str) -> Settings {
        let times = &self.times;
        let mut settings = Settings::new(install, namespace);
        settings.account_poll = times.account_poll;
        settings.account_health = times.account_health;
        settings.offers_max_age = times.offers_max_age;
        settings.report_poll = times.report_poll;
        settings.status_interval = times.status_interval;
        settings.replan_interval = times.replan_interval;
        settings.agent_silent_after = times.agent_silent_after;
        settings.shortest_line = times.shortest_money_line;
        settings.refusal_memory = times.refusal_memory;
        settings.orphan_age = times.orphan_age;
        settings.audit_after = times.audit_after;
        settings.node_renew = times.node_renew;
        settings.sweep_report_only = self.sweep_report_only;
        settings.ticket_lifetime = times.ticket_lifetime;
        settings.start_deadline = times.start_deadline;
        settings.agent_poll = times.agent_poll;
        settings.agent_image.clone_from(&self.agent_image);
        settings.cluster_gpu_price = self.cluster_gpu_price;
        settings
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(flags: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let words = ["tradewind-operator", "run"].iter().chain(flags);
        let Command::Run(args) = Cli::try_parse_from(words)?.command else { panic!("not run") };
        Config::with_environment(*args, |name| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes().to_vec())
        })
    }

    const KEYS: &[(&str, &str)] = &[("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")];

    #[test]
    fn without_flags_it_has_the_defaults_of_the_settings() {
        let config = parse(&[], &[]).unwrap();
        let install = InstallId::derive("uid", "tradewind");
        let settings = config.settings(install.clone(), "tradewind-system");
        assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::new(install, "tradewind-system")));
        assert_eq!(config.terms, Terms::default());
        assert!(config.mailbox.is_none() && config.rate_limits && !config.allow_http_stores);
    }

    #[test]
    fn the_address_for_logs_is_the_flags_or_the_pods() {
        let address = |flags: &[&str], ip: &str| parse(flags, &[("POD_IP", ip)]).map(|c| c.kubelet_address);
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(address(&[], "10.1.2.3").unwrap(), ip("10.1.2.3"));
        assert_eq!(address(&["--kubelet-address", "fd00::1"], "10.1.2.3").unwrap(), ip("fd00::1"));
        assert_eq!(address(&[], "").unwrap(), None);
        assert!(format!("{:#}", address(&[], "here").unwrap_err()).contains("POD_IP"));
    }

    #[test]
    fn the_mailbox_takes_its_keys_from_a_secret_or_the_environment() {
        let flags =
            ["--mailbox", "s3://tradewind/mail/", "--mailbox-endpoint", "http://127.0.0.1:9000", "--agent", "a"];
        let config = parse(&flags, KEYS).unwrap().mailbox.unwrap();
        let MailboxKeys::Given(keys) = &config.keys else { panic!("from the environment") };
        assert_eq!(config.complete(keys.clone()).unwrap().endpoint(), Some("http://127.0.0.1:9000"));
        let missing = format!("{:#}", parse(&flags, &KEYS[..1]).err().unwrap());
        assert!(missing.contains("AWS_SECRET_ACCESS_KEY") && missing.contains("--mailbox-secret"), "{missing}");
        let named = parse(&["--mailbox", "s3://tradewind/", "--mailbox-secret", "keys"], &[]).unwrap().mailbox.unwrap();
        assert!(matches!(named.keys, MailboxKeys::Secret(name) if name == "keys"));
    }

    #[test]
    fn contradictions_are_refused_in_a_sentence_without_keys() {
        for (flags, word) in [
            (vec!["--agent", "a"], "--mailbox"),
            (vec!["--mailbox", "gs://bucket/"], "s3://bucket/prefix/"),
            (vec!["--mailbox", "s3://bucket/", "--mailbox-endpoint", "localhost"], "--mailbox-endpoint"),
            (vec!["--ticket-lifetime", "200h"], "7 days"),
            (vec!["--lease-duration", "1s"], "at least 3s"),
            (vec!["--provider-url", "a=http://x,a=http://y"], "twice"),
            (vec!["--account-poll", "soon"], "10s"),
            (vec!["--concurrency", "0"], "1..=1000"),
        ] {
            let error = format!("{:#}", parse(&flags, KEYS).err().unwrap());
            assert!(error.contains(word) && !error.contains("hunter2"), "{flags:?}: {error}");
        }
    }
}
