//! The worlds that scenarios share: as many as run at the same time.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tradewind_harness::{
    Binaries, Stack, StackOptions, Tools, or_skip, project_root, sim::SimMachine, stack::NAMESPACE,
};

use crate::api::ApiProxy;

/// Nothing here takes longer unless something is wrong.
pub const SOON: Duration = Duration::from_secs(30);

/// What was read of the market before is not believed for longer.
pub const OFFERS_MAX_AGE: Duration = Duration::from_secs(1);

/// The account of the market.
pub const VAST: &str = "vast";

/// One runtime for all tests: clients belong to the runtime that they were first used in.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads can be started"));

/// So many scenarios run at the same time: most of them wait most of the time.
const LANES: u32 = 2;
static FREE_LANES: Semaphore = Semaphore::const_new(LANES as usize);
/// Shared worlds in which nobody is.
static IDLE: Mutex<Vec<World>> = Mutex::new(Vec::new());

/// A running stack whose operator speaks to the API server through [`ApiProxy`].
pub struct World {
    /// Control plane, store, market, operator.
    pub stack: Stack,
    /// Between operator and API server.
    pub api: ApiProxy,
    /// Its market is [`market`].
    usual_market: bool,
    /// Machines of the market that earlier scenarios have had.
    seen: Vec<String>,
}

/// Offers of the market: id, dollars an hour on demand, lowest winning bid. All of the same quality, so the price decides.
const OFFERS: [(u64, f64, f64); 6] = [
    (1001, 0.40, 0.20),
    (1002, 0.42, 0.22),
    (1003, 0.44, 0.24),
    (1004, 0.46, 0.26),
    (1005, 0.48, 0.28),
    (1006, 0.50, 0.30),
];

/// The market of most scenarios.
pub fn market() -> Value {
    let image = project_root().join("tests/scenarios/images/train");
    let offer = |(id, price, bid): &(u64, f64, f64)| {
        json!({
            "id": id, "gpu_name": "RTX 4090", "dph_base": price, "min_bid": bid, "geolocation": "Norway, NO", "hosting_type": 1,
            "reliability": 0.995, "sim": { "boot": 0.1 },
        })
    };
    // The best of all, but slow to boot; nobody can have it unless a scenario says so.
    let slow = json!({
        "id": 1000, "gpu_name": "RTX 4090", "dph_base": 0.20, "min_bid": 0.10, "geolocation": "Norway, NO", "hosting_type": 1,
        "reliability": 0.995, "sim": { "boot": 15, "stock": 0 },
    });
    json!({ "providers": { VAST: {
        "kind": "vast", "apiKey": "vast-account-key-of-the-scenarios", "credit": 50,
        "images": {
            "train:1": { "pull": 0, "root": image },
            "typo:1": { "pull": 0, "error": "Error response from daemon: manifest unknown" },
        },
        "offers": OFFERS.iter().map(offer).chain([slow]).collect::<Vec<_>>(),
    } } })
}

/// Options of the shared world, for those that need a stack of their own.
pub fn options(label: &str) -> StackOptions {
    options_of(label, market())
}

/// As [`options`], with a market of its own.
pub fn options_of(label: &str, market: Value) -> StackOptions {
    let mut options = StackOptions::new(label, market)
        .operator_flag("refusal-memory", "3s")
        .operator_flag("offers-max-age", &format!("{}ms", OFFERS_MAX_AGE.as_millis()))
        .operator_flag("account-health", "500ms")
        .operator_flag("orphan-age", "5s")
        .operator_flag("audit-after", "1s")
        .operator_flag("log", "info,tradewind=debug");
    options.plane.kwok = true;
    options.provider_proxies = true;
    options
}

/// Runs a scenario in a shared world. If it fails, the world is told about and thrown away.
pub fn scenario(test: impl AsyncFnOnce(&mut World) -> Result<()>) {
    run(1, None, test);
}

/// As [`scenario`], in a world of its own.
pub fn scenario_in(own: StackOptions, test: impl AsyncFnOnce(&mut World) -> Result<()>) {
    run(1, Some(own), test);
}

/// As [`scenario_in`], with the whole computer: for crowds, of which the time is told or limited.
pub fn scenario_alone_in(own: StackOptions, test: impl AsyncFnOnce(&mut World) -> Result<()>) {
    run(LANES, Some(own), test);
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn run(lanes: u32, own: Option<StackOptions>, test: impl AsyncFnOnce(&mut World) -> Result<()>) {
    if or_skip(Tools::locate()).is_none() || or_skip(Binaries::locate()).is_none() {
        return;
    }
    RUNTIME.block_on(async {
        let _lanes = FREE_LANES.acquire_many(lanes).await.expect("nobody closes it");
        let is_shared = own.is_none();
        let used = if is_shared { idle().pop() } else { None };
        let mut world = match used {
            Some(world) => world,
            None => World::with(own.unwrap_or_else(|| options("scenarios"))).await.expect("a world starts"),
        };
        world.begin().await.expect("the world is as at the start");
        let began = Instant::now();
        let run = async {
            test(&mut world).await?;
            world.all_gone().await
        };
        let outcome = AssertUnwindSafe(run).catch_unwind().await;
        eprintln!("took {:.1} s", began.elapsed().as_secs_f64());
        match outcome {
            Ok(Ok(())) if is_shared => idle().push(world),
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                world.tell().await;
                panic!("{error:#}");
            }
            Err(panic) => {
                world.tell().await;
                resume_unwind(panic);
            }
        }
    });
}

fn idle() -> MutexGuard<'static, Vec<World>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    async fn with(options: StackOptions) -> Result<Self> {
        let usual_market = options.market == market();
        let mut stack = Stack::start(options).await?;
        let path = operator_kubeconfig(&stack)?;
        let direct = std::fs::read_to_string(&path)?;
        let api = ApiProxy::start(&direct).await?;
        std::fs::write(&path, direct.replace(stack.plane.url(), api.url()))?;
        // Told to, it gives its Lease free; the next one would wait for as long as that lasts.
        stack.operator.process.stop(SOON).await?;
        stack.operator.restart().await?;
        Ok(Self { stack, api, usual_market, seen: Vec::new() })
    }

    /// Brings the market back to what it was.
    async fn begin(&mut self) -> Result<()> {
        self.revive().await?;
        let sim = &self.stack.sim;
        sim.clear_faults().await?;
        for (id, price, bid) in OFFERS.into_iter().filter(|_| self.usual_market) {
            sim.patch_offer(VAST, &id.to_string(), &json!({ "stock": 1, "price": price, "bid": bid })).await?;
        }
        if self.usual_market {
            sim.patch_offer(VAST, "1000", &json!({ "stock": 0 })).await?;
        }
        self.seen = sim.machines().await?.machines.into_iter().map(|m| m.id).collect();
        Ok(())
    }

    /// Where the computer was too busy with another scenario to renew a Lease of seconds, the operator has left, as it should: a Deployment
    /// would start it again.
    async fn revive(&mut self) -> Result<()> {
        let operator = &mut self.stack.operator;
        let Some(status) = operator.process.exited()? else { return Ok(()) };
        let last = operator.process.tail(2000);
        ensure!(last.contains("Lead lost"), "the operator ended between two scenarios: {status}; {last}");
        eprintln!("the operator lost its Lease between two scenarios, and is started again");
        Ok(operator.restart().await?)
    }

    /// A fresh namespace for jobs.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        Ok(self.stack.namespace(name).await?)
    }

    /// The machines that this scenario has rented so far, in order.
    pub async fn machines(&self) -> Result<Vec<SimMachine>> {
        let mut machines = self.stack.sim.machines().await?.machines;
        machines.retain(|m| !self.seen.contains(&m.id));
        machines.sort_by_key(|m| m.id.parse::<u64>().unwrap_or(0));
        Ok(machines)
    }

    /// Waits until the scenario has rented so many machines in all.
    pub async fn rented(&self, count: usize) -> Result<Vec<SimMachine>> {
        let look = || async {
            let machines = self.machines().await.map_err(|e| e.to_string())?;
            if machines.len() >= count { Ok(machines) } else { Err(format!("{} so far", machines.len())) }
        };
        Ok(self.stack.eventually(&format!("machine {count} of the scenario"), SOON, look).await?)
    }

    /// Waits until the scenario's newest machine runs a command; `after` names one that it must not be.
    pub async fn running_machine(&self, after: Option<&str>) -> Result<SimMachine> {
        let look = || async {
            let machines = self.machines().await.map_err(|e| e.to_string())?;
            let newest = machines.into_iter().rfind(|m| m.paid && m.running).ok_or("no machine runs")?;
            if after == Some(newest.id.as_str()) { Err("still the same machine".to_owned()) } else { Ok(newest) }
        };
        Ok(self.stack.eventually("a running machine", SOON, look).await?)
    }

    /// Nothing is left of what cost money, nor of what told of it.
    pub async fn all_gone(&self) -> Result<()> {
        self.stack.wait_all_gone(SOON).await?;
        let look = || {
            let left = self.stack.s3.keys("mailbox", "tradewind/machines/").map_err(|e| e.to_string());
            std::future::ready(left.and_then(|left| if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }))
        };
        self.stack.eventually("an empty mailbox", SOON, look).await?;
        Ok(())
    }

    /// Each machine of this scenario is told of in the bill once, and what the jobs say they cost is that, to within a second of each
    /// machine's price, and to what nobody saw during outages.
    pub async fn bill_is_right(&self, ours_micros: i64, outages: Duration) -> Result<()> {
        let machines = self.machines().await?;
        let bill: i64 = machines.iter().map(|m| m.cost_micros).sum();
        // Compute and disk are rounded up here and down there.
        let second: i64 = machines.iter().map(|m| m.price_per_hour_micros / 3600 + 4).sum();
        let allowed = second + second * i64::try_from(outages.as_secs())?;
        let off = (bill - ours_micros).abs();
        ensure!(
            off <= allowed,
            "we say {ours_micros} micro-dollars, the market {bill}: {off} off, {allowed} are allowed; {machines:#?}"
        );
        Ok(())
    }

    /// Prints what somebody needs who was not there.
    async fn tell(&mut self) {
        self.stack.keep_directory();
        let kubectl = self.stack.kubectl();
        let looks: [&[&str]; 4] = [
            &["get", "tj,twm,twp,pods,nodes", "-A", "-o", "wide"],
            &["describe", "tj", "-A"],
            &["get", "twm", "-A", "-o", "yaml"],
            &["get", "events", "-A", "--sort-by=.metadata.creationTimestamp"],
        ];
        for look in looks {
            match kubectl.run(look).await {
                Ok(text) => eprintln!("$ kubectl {}\n{text}", look.join(" ")),
                Err(error) => eprintln!("{error}"),
            }
        }
        for machine in self.machines().await.unwrap_or_default() {
            let log =
                machine.dir.as_ref().and_then(|dir| std::fs::read_to_string(dir.join("log")).ok()).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(15).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            eprintln!("machine {} {:?} paid {}\n  {}", machine.id, machine.status, machine.paid, end.join("\n  "));
        }
        for key in self.stack.s3.keys("mailbox", "tradewind/machines/").unwrap_or_default() {
            if key.ends_with("report.json") || key.ends_with("control.json") {
                let text = std::fs::read_to_string(self.stack.s3.object_path("mailbox", &key)).unwrap_or_default();
                eprintln!("{key}: {}", text.chars().take(4000).collect::<String>());
            }
        }
        eprintln!("the end of the operator's log:\n{}", self.stack.operator.process.tail(8000));
        eprintln!("everything is kept in {}", self.stack.directory().display());
    }
}

/// The file that the operator reads its way to the API server from.
pub fn operator_kubeconfig(stack: &Stack) -> Result<PathBuf> {
    let prefix = format!("kubeconfig-{NAMESPACE}-");
    let entries = std::fs::read_dir(stack.plane.kubeconfig().parent().context("a directory")?)?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    Ok(found.context("the operator's kubeconfig")?.path())
}
