//! Agents that nobody runs: Pods on fake nodes have no programs, so this plays the agent of each through the mailbox.
//!
//! As far as the operator can see they do what agents do, but no more often: they look for orders until they have a start document, say
//! Booted, then Running, then a heartbeat if one is wanted; on deletion that they were told to stop. What real agents ask of the store beyond
//! that (a look at the orders every 5 s) costs the operator nothing and is left out. All share [`AT_ONCE`] connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tradewind_core::{Clock, SystemClock};
use tradewind_protocol::seal::BootKeys;
use tradewind_protocol::{AgentPhase, Control, Document, Exit, Progress, Report, Start, Ticket, VERSION};

use super::pods::{News, Seen};

/// Requests to the store at once: enough to keep it busy, few enough to leave the processors to those that are measured.
const AT_ONCE: usize = 8;
/// Between two looks for orders while there are none. A real agent looks every half second at first.
const LOOK: Duration = Duration::from_secs(2);
/// A store that does not answer properly so often is broken.
const TRIES: u32 = 5;
/// A store on the same computer answers sooner or never.
const LIMIT: Duration = Duration::from_secs(30);

/// Heartbeats of all agents: `None` = none.
pub type Heartbeat = Option<Duration>;

/// The agents of all Pods that run.
pub struct Crowd {
    shared: Arc<Shared>,
    heartbeat: watch::Sender<Heartbeat>,
    usher: JoinHandle<()>,
}

struct Shared {
    http: reqwest::Client,
    turn: Semaphore,
    clock: SystemClock,
    boot_key: String,
    born: AtomicU32,
    requests: AtomicU64,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Each agent ends with its place in the usher's table.
        self.usher.abort();
    }
}

/// A client without proxies, with a limit.
#[expect(clippy::disallowed_methods, reason = "the measurements' one place that builds an HTTP client")]
pub fn http_client() -> Result<reqwest::Client> {
    // reqwest wants one even where nothing is encrypted; whoever came first has set the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?)
}

impl Crowd {
    /// Plays an agent for each Pod of which there is news.
    pub fn start(news: mpsc::UnboundedReceiver<News>) -> Result<Self> {
        let shared = Arc::new(Shared {
            http: http_client()?,
            turn: Semaphore::new(AT_ONCE),
            clock: SystemClock::default(),
            // Nothing secret is sealed to it.
            boot_key: BootKeys::generate().public().to_owned(),
            born: AtomicU32::new(0),
            requests: AtomicU64::new(0),
        });
        let (heartbeat, listen) = watch::channel(None);
        let usher = tokio::spawn(usher(shared.clone(), listen, news));
        Ok(Self { shared, heartbeat, usher })
    }

    /// How often each agent says that it lives, from now on.
    pub fn beat(&self, heartbeat: Heartbeat) {
        self.heartbeat.send_replace(heartbeat);
    }

    /// Requests to the store so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

/// How an agent comes to its end.
enum End {
    /// With its node.
    Cut,
    /// It was told to stop.
    Told,
}

async fn usher(shared: Arc<Shared>, beat: watch::Receiver<Heartbeat>, mut news: mpsc::UnboundedReceiver<News>) {
    let mut agents = HashMap::<String, oneshot::Sender<End>>::new();
    while let Some(news) = news.recv().await {
        match news {
            News::Runs(uid, Seen { name, control: Some(control), .. }) => {
                let (end, ended) = oneshot::channel();
                agents.insert(uid, end);
                let (shared, beat) = (shared.clone(), beat.clone());
                tokio::spawn(async move {
                    if let Err(error) = live(&shared, &control, beat, ended).await {
                        eprintln!("gangs: the agent of Pod {name} gave up: {error:#}");
                    }
                });
            }
            // A plain Pod: no agent.
            News::Runs(..) => {}
            News::Cut(uid) => drop(agents.remove(&uid).map(|end| end.send(End::Cut))),
            News::Deleted(uid) => drop(agents.remove(&uid).map(|end| end.send(End::Told))),
        }
    }
}

/// One agent.
async fn live(
    shared: &Shared,
    control: &str,
    mut beat: watch::Receiver<Heartbeat>,
    mut ended: oneshot::Receiver<End>,
) -> Result<()> {
    let number = shared.born.fetch_add(1, Ordering::Relaxed);
    let mut agent = Agent { shared, report: None, number };
    let begun = tokio::select! {
        begun = agent.begin(control) => { begun?; None }
        end = &mut ended => Some(end),
    };
    if let Some(end) = begun {
        return agent.leave(end.unwrap_or(End::Cut)).await;
    }
    // Not all of them in the same moment.
    let due = |every: Duration, first: bool| if first { every * (number % 100) / 100 } else { every };
    let mut first = true;
    loop {
        let every = *beat.borrow_and_update();
        let pause = async {
            match every {
                Some(every) => tokio::time::sleep(due(every, first)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            end = &mut ended => return agent.leave(end.unwrap_or(End::Cut)).await,
            changed = beat.changed() => {
                // Nobody measures any more.
                if changed.is_err() {
                    return Ok(());
                }
                first = true;
            }
            () = pause => {
                agent.say(|_| {}).await?;
                first = false;
            }
        }
    }
}

impl Shared {
    /// Sends a request, again if the store is out of sorts, and gives back what counts as an answer.
    async fn ask(&self, request: impl Fn() -> reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = {
                let _turn = self.turn.acquire().await?;
                self.requests.fetch_add(1, Ordering::Relaxed);
                request().send().await.map_err(reqwest::Error::without_url)
            };
            match answer {
                Ok(answer) if answer.status().is_success() || [304, 404].contains(&answer.status().as_u16()) => {
                    return Ok(answer);
                }
                Ok(answer) if tries == TRIES => bail!("the store answers {}", answer.status()),
                Err(error) if tries == TRIES => return Err(error.into()),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

struct Agent<'a> {
    shared: &'a Shared,
    /// Its place in the mailbox and its newest report, once it has read its orders.
    report: Option<(Ticket, Report)>,
    number: u32,
}

impl Agent<'_> {
    /// Reads its orders, reports, waits for the start document and "starts" the program.
    async fn begin(&mut self, url: &str) -> Result<()> {
        let mut etag = None;
        loop {
            if let Some(control) = self.orders(url, &mut etag).await? {
                if self.report.is_none() {
                    let boot = format!("b{:08}", self.number);
                    self.report = Some((control.report_put.clone(), self.first(&control, boot)));
                    self.say(|_| {}).await?;
                }
                let boot = self.report.as_ref().map(|(_, report)| report.boot.clone()).unwrap_or_default();
                let mine = control.start_boot.as_deref() == Some(&boot);
                if let (true, Some(start)) = (mine, &control.start) {
                    let text = self.get(&start.url, None).await?.context("the start document is not there")?.0;
                    Start::decode(&text, &control.machine, &boot)?;
                    return self
                        .say(|report| {
                            report.phase = AgentPhase::Running;
                            report.control_seen = control.sequence;
                            report.attempt = Some(control.attempt);
                            report.progress = Some(Progress { step: 1, total: None, loss: None });
                        })
                        .await;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn first(&self, control: &Control, boot: String) -> Report {
        let [_, b, c, d] = (self.number + 1).to_be_bytes();
        Report {
            version: VERSION,
            machine: control.machine.clone(),
            boot,
            boot_key: self.shared.boot_key.clone(),
            sequence: 0,
            control_seen: control.sequence,
            attempt: Some(control.attempt),
            phase: AgentPhase::Booted,
            at: self.shared.clock.now(),
            progress: None,
            exit: None,
            restore: None,
            offer: None,
            waiting: Vec::new(),
            uploading: None,
            slots_left: 0,
            slots_used: 0,
            log_segments: 0,
            warnings: Vec::new(),
            restarted: false,
            silent: false,
            quiet_s: 0,
            host: None,
            address: Some(IpAddr::V4(Ipv4Addr::new(10, b, c, d))),
            save_took: None,
        }
    }

    /// The orders, if they are there and new.
    async fn orders(&self, url: &str, etag: &mut Option<String>) -> Result<Option<Control>> {
        let Some((bytes, tag)) = self.get(url, etag.as_deref()).await? else { return Ok(None) };
        *etag = tag;
        Ok(Some(Control::decode(&bytes)?))
    }

    /// What is at a signed address; `None` if nothing is, or nothing new.
    async fn get(&self, url: &str, etag: Option<&str>) -> Result<Option<(Vec<u8>, Option<String>)>> {
        let request = || match etag {
            Some(etag) => self.shared.http.get(url).header("if-none-match", etag),
            None => self.shared.http.get(url),
        };
        let answer = self.shared.ask(request).await?;
        if [304, 404].contains(&answer.status().as_u16()) {
            return Ok(None);
        }
        let tag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        Ok(Some((answer.bytes().await.map_err(reqwest::Error::without_url)?.to_vec(), tag)))
    }

    /// Writes its report after a change.
    async fn say(&mut self, change: impl FnOnce(&mut Report)) -> Result<()> {
        let Some((place, report)) = &mut self.report else { return Ok(()) };
        report.sequence += 1;
        report.at = self.shared.clock.now();
        change(report);
        let body = report.encode()?;
        self.shared.ask(|| self.shared.http.put(&place.url).body(body.clone())).await.map(drop)
    }

    async fn leave(&mut self, end: End) -> Result<()> {
        match end {
            End::Cut => Ok(()),
            End::Told => {
                let at = self.shared.clock.now();
                self.say(|report| {
                    report.phase = AgentPhase::Exited;
                    report.exit =
                        Some(Exit { code: 143, told_to_stop: true, at, log_tail: String::new(), oom_killed: None });
                })
                .await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::Instant;
    use tradewind_checkpoints::{Mailbox, ReportRead, S3Store, StoreCredentials};
    use tradewind_harness::{RunDir, S3, S3Server, Tools, eventually, or_skip};
    use tradewind_protocol::Desired;

    use super::*;

    const LIFETIME: Duration = Duration::from_mins(10);
    const SOON: Duration = Duration::from_secs(30);

    async fn control(mailbox: &Mailbox, sequence: u64, boot: Option<&str>) -> Control {
        let start = match boot {
            Some(boot) => Some(mailbox.start_ticket("w1", boot, 1, LIFETIME).await.unwrap()),
            None => None,
        };
        Control {
            version: VERSION,
            machine: "w1".into(),
            sequence,
            lease_s: 1000,
            desired: if boot.is_some() { Desired::Run } else { Desired::Wait },
            attempt: 1,
            control_get: mailbox.control_ticket("w1", LIFETIME).await.unwrap(),
            report_put: mailbox.report_put_ticket("w1", LIFETIME).await.unwrap(),
            report_get: mailbox.report_get_ticket("w1", LIFETIME).await.unwrap(),
            start,
            start_boot: boot.map(str::to_owned),
            slots: Vec::new(),
            logs: Vec::new(),
            committed: None,
            refused: None,
            self_end: None,
        }
    }

    async fn report(mailbox: &Mailbox, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let look = || async {
            match mailbox.read_report("w1", None).await.map_err(|e| e.to_string())? {
                ReportRead::Changed { report, .. } if wanted(&report) => Ok(*report),
                other => Err(format!("{other:?}")),
            }
        };
        eventually(what, SOON, look).await.unwrap()
    }

    /// The operator's side is its own code, over a real store.
    #[tokio::test]
    async fn an_agent_boots_runs_beats_and_leaves() {
        let Some(tools) = or_skip(Tools::locate()) else { return };
        // The store's client wants it as well, and comes first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let run = RunDir::new("crowd").unwrap();
        let s3 = S3::start_with(&tools, run.path(), S3Server::Versitygw, false).await.unwrap();
        s3.create_bucket("mailbox").unwrap();
        let clock = Arc::new(SystemClock::default());
        let keys = StoreCredentials::new(&s3.access_key, &s3.secret_key).with_region(Some(S3::REGION.into()));
        let keys = keys.with_endpoint(&s3.url()).unwrap();
        let store = S3Store::open(&"s3://mailbox/t/".parse().unwrap(), &keys, clock).unwrap();
        let mailbox = Mailbox::new(Arc::new(store));
        let orders = control(&mailbox, 1, None).await;
        mailbox.write_control(&orders).await.unwrap();

        let (tell, news) = mpsc::unbounded_channel();
        let crowd = Crowd::start(news).unwrap();
        let (name, job, control_url) = ("a-1-0".to_owned(), "a".to_owned(), Some(orders.control_get.url));
        let seen = Seen { name, job, control: control_url, made: Instant::now(), ran: None, failed: None, gone: None };
        tell.send(News::Runs("uid".into(), seen)).unwrap();
        let booted = report(&mailbox, "the boot", |report| report.phase == AgentPhase::Booted).await;
        assert!(booted.address.is_some() && booted.control_seen == 1, "{booted:?}");

        let start = Start {
            version: VERSION,
            machine: "w1".into(),
            boot: booted.boot.clone(),
            run_id: "r1".into(),
            attempt: 1,
            command: vec!["as-in-the-pod".into()],
            env: BTreeMap::new(),
            sealed_env: None,
            working_dir: None,
            stop_grace_s: 20,
            checkpoint: None,
            restore: Vec::new(),
            data_prefix: tradewind_protocol::manifest::data_prefix(1, "w1"),
        };
        mailbox.write_start(&start).await.unwrap();
        mailbox.write_control(&control(&mailbox, 2, Some(&booted.boot)).await).await.unwrap();
        let running = report(&mailbox, "the program", |report| report.phase == AgentPhase::Running).await;
        assert_eq!(running.control_seen, 2);

        crowd.beat(Some(Duration::from_millis(100)));
        report(&mailbox, "heartbeats", |report| report.sequence > running.sequence + 2).await;
        crowd.beat(None);
        tell.send(News::Deleted("uid".into())).unwrap();
        let left = report(&mailbox, "its end", |report| report.phase == AgentPhase::Exited).await;
        assert!(left.exit.is_some_and(|exit| exit.code == 143 && exit.told_to_stop));
        assert!(crowd.requests() > 5);
    }
}
