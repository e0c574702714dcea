//! The command line. Every flag of `run` can also be given as `TRADEWIND_<FLAG>` in the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;
use tradewind::telemetry::LogFormat;
use tradewind_checkpoints::Location;
use url::Url;

/// Runs AI training wherever GPUs can be had: on the cluster's own nodes and on rented machines.
#[derive(Parser, Debug)]
#[command(name = "tradewind-operator", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the operator until it is told to stop (SIGTERM or SIGINT).
    Run(Box<RunArgs>),
    /// Writes the CustomResourceDefinitions, one file per kind.
    Crds {
        /// Directory to write to; it must exist.
        #[arg(default_value = "crds", value_name = "DIR")]
        out: PathBuf,
    },
    /// Writes the API reference, one Markdown page per kind.
    Reference {
        /// Directory to write to; it must exist.
        #[arg(default_value = "docs/reference", value_name = "DIR")]
        out: PathBuf,
    },
    /// Prints the version.
    Version,
}

/// Settings of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// How to reach the cluster; without it the operator runs as a Pod of the cluster. KUBECONFIG is not looked at.
    #[arg(long, env = "TRADEWIND_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace with the credentials Secrets and the Lease [default: the Pod's own, else tradewind-system].
    #[arg(long, env = "TRADEWIND_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// Name of this installation in the cluster: with another name another operator's machines are left alone.
    #[arg(long, env = "TRADEWIND_RELEASE", value_name = "NAME", default_value = "tradewind", value_parser = dns_label)]
    pub release: String,

    #[command(flatten)]
    pub mailbox: MailboxArgs,
    #[command(flatten)]
    pub times: TimeArgs,
    #[command(flatten)]
    pub kubelet: KubeletArgs,

    /// The sweeper only reports machines that nobody claims, and ends none.
    #[arg(long, env = "TRADEWIND_SWEEP_REPORT_ONLY")]
    pub sweep_report_only: bool,
    /// What one GPU of the cluster's own nodes costs an hour in dollars: 0 where they are owned. A job that may use both rents at once what
    /// is cheaper.
    #[arg(long, env = "TRADEWIND_CLUSTER_GPU_PRICE", value_name = "DOLLARS", default_value = "0")]
    pub cluster_gpu_price: tradewind_core::Money,
    /// Whether the registries of images are asked how large they are, without credentials: hosts get the more time to start, the more
    /// they have to download. Off, or where a registry does not answer, 10 GB are assumed.
    #[arg(long, env = "TRADEWIND_IMAGE_REGISTRIES", value_name = "WHICH", default_value = "on")]
    pub image_registries: Switch,
    /// How many objects of one kind are worked on at the same time.
    #[arg(long, env = "TRADEWIND_CONCURRENCY", value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,
    /// Where probes and metrics are served; port 0 takes any.
    #[arg(long, env = "TRADEWIND_METRICS_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub metrics_listen: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "TRADEWIND_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Which log lines are written, such as info or info,tradewind=debug.
    #[arg(long, env = "TRADEWIND_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// DEMO AND TESTS ONLY: the market of this Provider is at this address, which thereby gets the account's key.
    #[arg(long, env = "TRADEWIND_PROVIDER_URL", value_name = "NAME=URL", value_delimiter = ',', value_parser = named_url)]
    pub provider_url: Vec<(String, Url)>,
    /// DEMO AND TESTS ONLY when off: calls to providers are not slowed down to what their documents allow.
    #[arg(long, env = "TRADEWIND_RATE_LIMITS", value_name = "WHICH", default_value = "on")]
    pub rate_limits: Switch,
    /// DEMO AND TESTS ONLY: object stores, and registries on this very machine, may be spoken to over plain http.
    #[arg(long, env = "TRADEWIND_ALLOW_HTTP_STORES")]
    pub allow_http_stores: bool,
}

/// The operator's own bucket. Without it nothing is rented.
#[derive(Args, Debug)]
#[command(next_help_heading = "Mailbox (the operator's own bucket; without it nothing is rented)")]
pub struct MailboxArgs {
    /// Where operator and machines leave things for each other.
    #[arg(long, env = "TRADEWIND_MAILBOX", value_name = "s3://BUCKET/PREFIX")]
    pub mailbox: Option<Location>,
    /// Endpoint of a store other than AWS.
    #[arg(long, env = "TRADEWIND_MAILBOX_ENDPOINT", value_name = "URL")]
    pub mailbox_endpoint: Option<String>,
    /// Region of the bucket.
    #[arg(long, env = "TRADEWIND_MAILBOX_REGION", value_name = "REGION")]
    pub mailbox_region: Option<String>,
    /// Secret in the operator's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Without it these two (and
    /// AWS_SESSION_TOKEN) are read from the environment.
    #[arg(long, env = "TRADEWIND_MAILBOX_SECRET", value_name = "NAME")]
    pub mailbox_secret: Option<String>,
    /// The agent's binary that machines fetch: static, for Linux on the machines' architecture.
    #[arg(long, env = "TRADEWIND_AGENT", value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// Image with our agent at /usr/local/bin/tradewind-agent (the operator's own has it), for Pods on the cluster's nodes. Without it jobs
    /// with checkpoints or several workers cannot run in the cluster.
    #[arg(long, env = "TRADEWIND_AGENT_IMAGE", value_name = "IMAGE")]
    pub agent_image: Option<String>,
}

/// The endpoint of the virtual Node, by which `kubectl logs` reads the output of rented Pods.
#[derive(Args, Debug)]
#[command(next_help_heading = "Logs (kubectl logs of rented Pods)")]
pub struct KubeletArgs {
    /// Where the API server's requests for logs are served, with TLS; port 0 takes any.
    #[arg(
        long = "kubelet-listen",
        env = "TRADEWIND_KUBELET_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:10250"
    )]
    pub listen: SocketAddr,
    /// Address at which the API server reaches this very process [default: POD_IP of the environment]. Without one no logs are served.
    #[arg(long = "kubelet-address", env = "TRADEWIND_KUBELET_ADDRESS", value_name = "IP")]
    pub address: Option<IpAddr>,
    /// A RISK: logs are served to whoever can connect, without a client certificate. Only for clusters whose API server shows none, and
    /// only behind a NetworkPolicy.
    #[arg(long = "kubelet-anonymous", env = "TRADEWIND_KUBELET_ANONYMOUS")]
    pub anonymous: bool,
}

/// All intervals and limits.
#[derive(Args, Debug)]
#[command(next_help_heading = "Times (such as 10s, 5m or 1h30m)")]
pub struct TimeArgs {
    /// How often each account's machines are listed.
    #[arg(long, env = "TRADEWIND_ACCOUNT_POLL", value_name = "TIME", default_value = "10s", value_parser = span)]
    pub account_poll: Duration,
    /// How often each account's credit is asked for.
    #[arg(long, env = "TRADEWIND_ACCOUNT_HEALTH", value_name = "TIME", default_value = "1m", value_parser = span)]
    pub account_health: Duration,
    /// How old offers may be when a job is placed.
    #[arg(long, env = "TRADEWIND_OFFERS_MAX_AGE", value_name = "TIME", default_value = "1m", value_parser = span)]
    pub offers_max_age: Duration,
    /// How often a job with a deadline weighs its choices, and one that waits for a price looks; for money alone a job that runs does so
    /// five times more rarely.
    #[arg(long, env = "TRADEWIND_REPLAN_INTERVAL", value_name = "TIME", default_value = "1m", value_parser = span)]
    pub replan_interval: Duration,
    /// How often the report of a living machine's agent is read; those of workers on the cluster's own nodes only while something is
    /// awaited, and else at half of --status-interval or more rarely.
    #[arg(long, env = "TRADEWIND_REPORT_POLL", value_name = "TIME", default_value = "5s", value_parser = span)]
    pub report_poll: Duration,
    /// How often progress and cost are written into statuses at most.
    #[arg(long, env = "TRADEWIND_STATUS_INTERVAL", value_name = "TIME", default_value = "30s", value_parser = span)]
    pub status_interval: Duration,
    /// Silence of an agent after which its machine, or its Pod in the cluster, is given up.
    #[arg(long, env = "TRADEWIND_AGENT_SILENT_AFTER", value_name = "TIME", default_value = "10m", value_parser = span)]
    pub agent_silent_after: Duration,
    /// Time for which machines go on without the operator at least, whatever operatorOutageTolerance and budgets say.
    #[arg(long, env = "TRADEWIND_SHORTEST_MONEY_LINE", value_name = "TIME", default_value = "2m", value_parser = span)]
    pub shortest_money_line: Duration,
    /// How often agents look for orders and report [default: the agent's own].
    #[arg(long, env = "TRADEWIND_AGENT_POLL", value_name = "TIME", value_parser = span)]
    pub agent_poll: Option<Duration>,
    /// Time that a machine has at least from the rent call to its first report. Twice the image's download at the offer's bandwidth is
    /// added, up to an hour in all.
    #[arg(long, env = "TRADEWIND_START_DEADLINE", value_name = "TIME", default_value = "15m", value_parser = span)]
    pub start_deadline: Duration,
    /// How long a rent call may take.
    #[arg(long, env = "TRADEWIND_RENT_LIMIT", value_name = "TIME", default_value = "30s", value_parser = span)]
    pub rent_limit: Duration,
    /// How long after a rent call its machine may still be missing from the account's list. An order without an answer is looked for as
    /// long; what is set too short leaves machines to the sweeper.
    #[arg(long, env = "TRADEWIND_UNSEEN_LIMIT", value_name = "TIME", default_value = "2m", value_parser = span)]
    pub unseen_limit: Duration,
    /// For how long a refused offer is left out.
    #[arg(long, env = "TRADEWIND_REFUSAL_MEMORY", value_name = "TIME", default_value = "15m", value_parser = span)]
    pub refusal_memory: Duration,
    /// How old a machine that nobody claims must be before the sweeper ends it.
    #[arg(long, env = "TRADEWIND_ORPHAN_AGE", value_name = "TIME", default_value = "3m", value_parser = span)]
    pub orphan_age: Duration,
    /// How long after a machine's end the provider's own bill for it is compared with our reckoning.
    #[arg(long, env = "TRADEWIND_AUDIT_AFTER", value_name = "TIME", default_value = "15m", value_parser = span)]
    pub audit_after: Duration,
    /// Lifetime of the signed addresses that machines get; at most 7 days.
    #[arg(long, env = "TRADEWIND_TICKET_LIFETIME", value_name = "TIME", default_value = "72h", value_parser = span)]
    pub ticket_lifetime: Duration,
    /// How long other replicas believe in a leader that is silent.
    #[arg(long, env = "TRADEWIND_LEASE_DURATION", value_name = "TIME", default_value = "15s", value_parser = span)]
    pub lease_duration: Duration,
    /// How often the Lease of our Node is renewed: a quarter at most of the time after which your cluster takes a silent node for dead.
    #[arg(long, env = "TRADEWIND_NODE_RENEW", value_name = "TIME", default_value = "10s", value_parser = span)]
    pub node_renew: Duration,
    /// How long running work may take to finish when the operator is told to stop.
    #[arg(long, env = "TRADEWIND_DRAIN_LIMIT", value_name = "TIME", default_value = "40s", value_parser = span)]
    pub drain_limit: Duration,
}

/// How log lines look.
#[derive(ValueEnum, Debug, Clone, Copy)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
        }
    }
}

/// On or off.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

fn span(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text.parse().map_err(|_| "write a time such as 10s, 5m or 1h30m".to_owned())?;
    Duration::try_from(span).ok().filter(|d| !d.is_zero()).ok_or_else(|| "must be longer than zero".to_owned())
}

fn named_url(text: &str) -> Result<(String, Url), String> {
    let (name, url) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=URL")?;
    let url = Url::parse(url).map_err(|error| format!("{url:?} is no URL: {error}"))?;
    Ok((name.to_owned(), url))
}

/// The release's name becomes part of the names of objects.
fn dns_label(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let edges = !text.starts_with('-') && !text.ends_with('-');
    if !plain || !edges || text.is_empty() || text.len() > 50 {
        return Err("must be 1 to 50 lower-case letters, digits and - inside".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_setting_has_its_variable() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|a| a.get_id() != "help") {
            let flag = arg.get_long().unwrap();
            let variable = format!("TRADEWIND_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(variable.as_str()), "--{flag}");
            assert!(arg.get_help().is_some(), "--{flag} has no help");
        }
    }

    #[test]
    fn times_are_read_and_bad_ones_explained() {
        for (text, seconds) in [("10s", 10), ("1h30m", 5400), ("1m", 60)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        assert!(span("10").unwrap_err().contains("such as 10s"));
        assert!(span("0s").is_err() && span("-5s").is_err());
    }

    #[test]
    fn demo_only_flags_say_so() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("run").unwrap().render_long_help().to_string();
        for flag in ["--provider-url", "--rate-limits", "--allow-http-stores"] {
            let text = &help[help.find(flag).unwrap()..];
            let end = text.find("\n\n").unwrap_or(text.len());
            assert!(text[..end].contains("DEMO AND TESTS ONLY"), "{}", &text[..end]);
        }
    }

    #[test]
    fn a_market_address_needs_its_provider() {
        assert_eq!(named_url("vast=http://127.0.0.1:1").unwrap().0, "vast");
        assert!(
            named_url("http://127.0.0.1:1").is_err() && named_url("=http://x").is_err() && named_url("a=b").is_err()
        );
        assert!(dns_label("tradewind").is_ok() && dns_label("Trade_wind").is_err() && dns_label("-a").is_err());
    }
}
