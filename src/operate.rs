//! `run`: from the first connection to the last goodbye.
//!
//! Probes are served from the first moment. Then: API server, CRDs, mailbox, caches, lead, work. Whatever is missing is waited for, and
//! `/readyz` says what it is; a missing CRD or mailbox never ends the process.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tradewind::accounts::Accounts;
use tradewind::context::{Caches, Context};
use tradewind::controllers::sweeper::folders::FolderSweeper;
use tradewind::controllers::{node, provider, rented_machine, sweeper, training_job, worker};
use tradewind::events::Told;
use tradewind::images::{ImageSizes, Images};
use tradewind::kubelet::{self, LogKeeper};
use tradewind::market::{Market, MarketKeeper, MarketReader, keeper};
use tradewind::runtime::adapters::{Buckets, ImageRegistries, Markets};
use tradewind::runtime::election::Election;
use tradewind::runtime::server::{self, Health};
use tradewind::runtime::{Drained, Driver, Inbox, Reconciler, watches};
use tradewind::settings::Settings;
use tradewind::storage::OpenCatalogues;
use tradewind::telemetry::{chain, metrics};
use tradewind_api::{Provider, RentedMachine, TrainingJob};
use tradewind_checkpoints::Stores;
use tradewind_cluster::{Cluster, ClusterError, Key, KubeCluster, Selector, Typed, kube_client};
use tradewind_core::{Clock, InstallId, SystemClock};

use crate::config::Config;
use crate::mailbox::{Open, Opener};

/// How long the start waits for a mailbox that does not work. Without one the operator still ends what was rented.
const MAILBOX_PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks at something missing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For the last write to the mailbox at an orderly end. Losing it costs little; being killed in the middle of the end costs more.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// Tells a supervisor to start the operator again (`EX_TEMPFAIL` of sysexits.h).
const AGAIN: u8 = 75;
/// The lead was lost.
const LOST: u8 = 3;

/// Runs until told to stop. The exit code is 0 after a quiet end.
pub async fn operate(config: Config) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    listen_to_signals(stop.clone())?;
    let health = Arc::new(Health::default());
    health.waits("start", "the API server has not answered yet");
    let address = server::serve(config.metrics_listen, Arc::clone(&health))
        .await
        .with_context(|| format!("listening on {} for probes and metrics", config.metrics_listen))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, "Serving probes and metrics");
    let start = prepare(&config, &health, &stop);
    let prepared = tokio::select! {
        prepared = start => prepared?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    work(&config, prepared, &health, &stop).await
}

/// Everything that is there before the lead is asked for.
struct Prepared {
    ctx: Arc<Context>,
    inbox: Arc<Inbox>,
    watches: JoinSet<()>,
    election: Election,
    /// There once the mailbox works that did not work in time.
    late_mailbox: Option<Opener>,
    findings: Vec<node::Finding>,
}

async fn prepare(config: &Config, health: &Arc<Health>, stop: &CancellationToken) -> anyhow::Result<Prepared> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kube_config = kube_config(config).await?;
    let in_cluster = config.kubeconfig.is_none().then(|| kube_config.default_namespace.clone());
    let namespace = config.namespace.clone().or(in_cluster).unwrap_or_else(|| "tradewind-system".to_owned());
    let client = kube_client::client(kube_config.clone()).context("building the client of the API server")?;
    let cluster: Arc<dyn Cluster> =
        Arc::new(KubeCluster::new(client.clone()).with_observer(Arc::new(|call| metrics().api_called(call))));
    let install = install_id(&*cluster, &config.release, health).await;
    tracing::info!(%install, namespace, release = config.release, "Found the cluster");
    wait_for_kinds(&*cluster, health).await;

    let stores: Arc<dyn Stores> = Arc::new(Buckets::new(Arc::clone(&clock), config.allow_http_stores));
    let mut settings = config.settings(install, &namespace);
    let opener = Opener::new(
        config,
        &namespace,
        Arc::clone(&cluster),
        Arc::clone(&stores),
        Arc::clone(&clock),
        settings.ticket_lifetime,
    )?;
    let (open, late_mailbox) = open_mailbox(opener, health).await;
    let findings = findings(config, &settings, open.as_ref(), late_mailbox.as_ref());
    let (mailbox, agent) = open.map_or((None, None), |open| (Some(open.mailbox), open.agent));
    if mailbox.is_some() && agent.is_none() {
        tracing::warn!("No --agent was given, so no machine can be started");
    }

    let kubelet = listen_for_logs(config).await;
    settings.kubelet = kubelet.as_ref().map(|kubelet| kubelet.at);
    let ctx = Arc::new(Context {
        cluster,
        clock: Arc::clone(&clock),
        caches: Caches::default(),
        accounts: Accounts::default(),
        open_account: Arc::new(
            Markets::new(Arc::clone(&clock), config.provider_urls.clone(), config.rate_limits)
                .rent_times(config.rent_limit, config.unseen_limit),
        ),
        market: Market::default(),
        images: Images::new(image_sizes(config)),
        mailbox,
        stores,
        catalogues: OpenCatalogues::default(),
        namespaces: tradewind::accounts::access::Namespaces::default(),
        agent,
        settings,
        told: Mutex::new(Told::default()),
        machines: rented_machine::Memory::default(),
        workers: worker::Workers::default(),
        turns: tradewind::controllers::training_job::turns::Turns::default(),
        admitted: tradewind::controllers::training_job::admitted::Admitted::default(),
        asked: Mutex::new(Vec::new()),
    });
    let inbox = Arc::new(Inbox::new(Arc::clone(&clock)));
    let watches = watches::start(&client, &ctx, &inbox);
    wait_for_caches(&ctx.caches, health).await;
    health.show(Arc::clone(&ctx));
    if let Some(kubelet) = kubelet {
        // A connection of its own, as for the election: streams of logs keep no controller waiting.
        let client = kube_client::client(kube_config.clone()).context("building the client of the logs endpoint")?;
        kubelet::serve(kubelet, Arc::clone(&ctx), client, config.kubelet_anonymous, stop.clone());
    }

    // A connection of its own, so that no other request keeps a renewal waiting.
    let lease_client = kube_client::client(kube_config).context("building the client of the election")?;
    let lease_cluster =
        Arc::new(KubeCluster::new(lease_client).with_limit(config.terms.retry.max(Duration::from_secs(1))));
    let identity = format!("{}-{:016x}", host_name(), clock.entropy());
    let key = Key::namespaced(namespace, format!("{}-operator", config.release));
    let election = Election::new(lease_cluster, clock, key, identity, config.terms);
    Ok(Prepared { ctx, inbox, watches, election, late_mailbox, findings })
}

/// Waits for the lead, leads, and ends.
async fn work(
    config: &Config,
    prepared: Prepared,
    health: &Health,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let Prepared { ctx, inbox, mut watches, mut election, late_mailbox, findings } = prepared;
    // A standby with warm caches is ready.
    health.has("start");
    tokio::select! {
        () = election.acquire() => {}
        () = stop.cancelled() => {
            // The answer to a try may have been on its way.
            election.release().await;
            return Ok(ExitCode::SUCCESS);
        }
        _ = watches.join_next() => anyhow::bail!("a watch broke off"),
        () = comes_late(late_mailbox.as_ref()) => return Ok(ExitCode::from(AGAIN)),
    }
    metrics().set_leader(true);
    tracing::info!("Leading");
    // What came in while another replica led is in the caches.
    inbox.clear();
    inbox.ask(watches::everything(&ctx.caches));
    inbox.ask([
        (node::NAME, Key::cluster(node::SINGLE)),
        (MarketKeeper::NAME, MarketKeeper::key()),
        (LogKeeper::NAME, LogKeeper::key()),
        (FolderSweeper::NAME, FolderSweeper::key()),
    ]);

    let driver = Driver::new(Arc::clone(&ctx), inbox, reconcilers(&ctx, findings), config.concurrency);
    let restart = CancellationToken::new();
    let ending = CancellationToken::new();
    let outcome = tokio::select! {
        lost = election.hold() => {
            tracing::error!(error = chain(&lost), "Lead lost, stopping everything at once");
            return Ok(ExitCode::from(LOST));
        }
        drained = driver.run(&ending, config.drain_limit) => drained,
        _ = watches.join_next() => anyhow::bail!("a watch broke off"),
        // Never ready itself: it only tells the driver when to end.
        () = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = comes_late(late_mailbox.as_ref()) => restart.cancel(),
            }
            ending.cancel();
            std::future::pending::<()>().await;
        } => Drained::Quietly,
    };
    metrics().set_leader(false);
    if let Drained::CutOff(count) = outcome {
        tracing::warn!(count, "Some work did not end in time; the next leader takes it up");
    }
    // Still leading: nobody else writes.
    match tokio::time::timeout(FLUSH_LIMIT, keeper::flush(&ctx)).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => {
            tracing::warn!(reason = failure.reason, error = failure.message, "Bans are not written down");
        }
        Err(_) => {
            tracing::warn!(reason = "MarketMemoryUnwritten", "The mailbox does not answer, bans are not written down");
        }
    }
    election.release().await;
    Ok(if restart.is_cancelled() { ExitCode::from(AGAIN) } else { ExitCode::SUCCESS })
}

/// Nothing else hangs on logs: an endpoint that cannot be opened is said and done without.
async fn listen_for_logs(config: &Config) -> Option<kubelet::Listening> {
    let Some(address) = config.kubelet_address else {
        tracing::info!("No --kubelet-address and no POD_IP was given, so kubectl logs does not work for rented Pods");
        return None;
    };
    match kubelet::listen(config.kubelet_listen, address).await {
        Ok(listening) => Some(listening),
        Err(error) => {
            let listen = config.kubelet_listen;
            tracing::error!(%error, %listen, "Logs cannot be served, so kubectl logs does not work for rented Pods");
            None
        }
    }
}

/// Who is asked how large images are, if anybody may be.
fn image_sizes(config: &Config) -> Option<Arc<dyn ImageSizes>> {
    if !config.image_registries {
        return None;
    }
    match ImageRegistries::new(config.allow_http_stores) {
        Ok(registries) => Some(Arc::new(registries)),
        Err(error) => {
            tracing::warn!(error = chain(&error), "Registries cannot be asked, the sizes of images are assumed");
            None
        }
    }
}

fn reconcilers(ctx: &Arc<Context>, findings: Vec<node::Finding>) -> Vec<Arc<dyn Reconciler>> {
    vec![
        Arc::new(training_job::TrainingJobs::new(Arc::clone(ctx))),
        Arc::new(worker::WorkerAgents::new(Arc::clone(ctx))),
        Arc::new(rented_machine::RentedMachines::new(Arc::clone(ctx))),
        Arc::new(provider::Providers::new(Arc::clone(ctx))),
        Arc::new(node::Nodes::new(Arc::clone(ctx)).with_findings(findings)),
        Arc::new(sweeper::Sweeper::new(Arc::clone(ctx))),
        Arc::new(FolderSweeper::new(Arc::clone(ctx))),
        Arc::new(LogKeeper::new(Arc::clone(ctx))),
        Arc::new(MarketReader::new(Arc::clone(ctx))),
        Arc::new(MarketKeeper::new(Arc::clone(ctx))),
    ]
}

/// Ends once a mailbox that did not work at the start works: the operator is started again to use it. Never without one.
async fn comes_late(opener: Option<&Opener>) {
    match opener {
        Some(opener) => {
            opener.until_open(None).await;
            tracing::info!("Mailbox works now, starting again to use it");
        }
        None => std::future::pending().await,
    }
}

async fn open_mailbox(opener: Option<Opener>, health: &Health) -> (Option<Open>, Option<Opener>) {
    let Some(opener) = opener else {
        tracing::warn!("No --mailbox was given, so nothing will be rented");
        return (None, None);
    };
    health.waits("start", "the mailbox is opened");
    if let Some(open) = opener.until_open(Some(MAILBOX_PATIENCE)).await {
        return (Some(open), None);
    }
    tracing::error!("Mailbox does not work, so nothing will be rented; what was rented is still ended");
    (None, Some(opener))
}

/// What this start has found of mailbox and agent, for the Node.
fn findings(config: &Config, settings: &Settings, open: Option<&Open>, late: Option<&Opener>) -> Vec<node::Finding> {
    use node::Finding;
    let mut findings = vec![Finding::agent_image(settings.agent_image.as_deref())];
    if let (Some(open), Some(mailbox)) = (open, &config.mailbox) {
        findings.push(Finding::mailbox_works(&mailbox.location.to_string()));
        findings.push(Finding::tickets(open.tickets_live, settings.ticket_lifetime));
        findings.push(Finding::agent(open.agent.as_ref().map(|agent| agent.sha256.as_str())));
    } else {
        let nothing = || Finding::no_mailbox("NotGiven", "no --mailbox was given, so nothing can be rented");
        findings.push(late.map_or_else(nothing, Opener::finding));
    }
    findings
}

async fn kube_config(config: &Config) -> anyhow::Result<kube::Config> {
    let Some(path) = &config.kubeconfig else {
        return kube::Config::incluster().context("this is no Pod of a cluster: name a kubeconfig by --kubeconfig");
    };
    let file = kube::config::Kubeconfig::read_from(path)
        .with_context(|| format!("reading the kubeconfig {}", path.display()))?;
    let options = kube::config::KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(file, &options)
        .await
        .with_context(|| format!("using the kubeconfig {}", path.display()))
}

/// Which install this is, as soon as the API server answers.
async fn install_id(cluster: &dyn Cluster, release: &str, health: &Health) -> InstallId {
    loop {
        match cluster.read::<Namespace>(&Key::cluster("kube-system")).await {
            Ok(namespace) => {
                return InstallId::derive(namespace.metadata.uid.as_deref().unwrap_or_default(), release);
            }
            Err(error) => health.waits("start", format!("namespace kube-system cannot be read: {error}")),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until every kind of ours is there and may be read.
async fn wait_for_kinds(cluster: &dyn Cluster, health: &Health) {
    for kind in [TrainingJob::KIND, RentedMachine::KIND, Provider::KIND] {
        loop {
            match cluster.list(kind, None, &Selector::everything()).await {
                Ok(_) => break,
                Err(ClusterError::NotFound) => {
                    health.waits(
                        "start",
                        format!("the cluster does not know {}: apply crds/, the operator goes on by itself", kind.kind),
                    );
                }
                Err(error) => health.waits("start", format!("{} cannot be listed: {error}", kind.plural)),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn wait_for_caches(caches: &Caches, health: &Health) {
    loop {
        let missing = watches::not_listed(caches);
        if missing.is_empty() {
            return;
        }
        health.waits("start", format!("no complete list yet of {}", missing.join(", ")));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// SIGTERM and SIGINT ask for a quiet end.
fn listen_to_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening to SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("Told to stop (SIGTERM)"),
            _ = interrupt.recv() => tracing::info!("Told to stop (SIGINT)"),
        }
        stop.cancel();
    });
    Ok(())
}

/// The Pod's name, which the kernel knows as the host's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    if name.is_empty() { "operator".to_owned() } else { name }
}
