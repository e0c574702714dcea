//! The provider simulator as a process, and a client of its control API.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Launch, Process, Result, http_json};

/// How a simulator is started; `listen` and `time-scale` keep their defaults.
#[derive(Clone, Debug, Default)]
pub struct SimOptions {
    /// Seeds the market.
    pub seed: u64,
    /// Faults from the start (`--faults`): a list of them.
    pub faults: Option<Value>,
}

/// A running simulator; it and all its machines end when the value goes.
#[derive(Debug)]
pub struct Sim {
    /// Its process.
    pub process: Process,
    ready: Ready,
}

/// The line that the simulator prints once it listens.
#[derive(Clone, Debug, Deserialize)]
struct Ready {
    control: String,
    state: PathBuf,
    providers: BTreeMap<String, SimProvider>,
}

/// One simulated provider account.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimProvider {
    /// Whose wire format it speaks, such as `vast`.
    pub kind: String,
    /// Stands for the provider's real host.
    pub url: String,
    /// The account's key.
    pub api_key: String,
}

/// The simulator's books.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimMachines {
    /// What all machines have cost so far, in micro-dollars.
    pub total_micros: i64,
    /// Every machine that there ever was.
    pub machines: Vec<SimMachine>,
}

/// One rented machine in the simulator's books.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimMachine {
    /// The account's name.
    pub provider: String,
    /// The provider's id of it.
    pub id: String,
    /// The label that the renter gave it.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether it can be outbid.
    pub spot: bool,
    /// The wire's word.
    pub status: Option<String>,
    /// Whether its command runs.
    pub running: bool,
    /// Whether it still costs money.
    pub paid: bool,
    /// Its price in micro-dollars per hour.
    pub price_per_hour_micros: i64,
    /// What it has cost so far in micro-dollars.
    pub cost_micros: i64,
    /// When it was rented (RFC 3339).
    pub created_at: String,
    /// When it was gone (RFC 3339).
    pub ended_at: Option<String>,
    /// Its process, while one runs.
    pub pid: Option<u32>,
    /// Its working directory.
    pub dir: Option<PathBuf>,
    /// The offer it was rented from.
    pub offer: Value,
}

/// What has happened in the simulator.
#[derive(Clone, Debug, Deserialize)]
pub struct SimEvents {
    /// Ask for what comes after this.
    pub next: u64,
    /// In order: `seq`, `at`, `provider`, `machine`, `kind` and what the kind adds.
    pub events: Vec<Value>,
}

impl Sim {
    /// Starts `binary` with a market (`{"providers": …}`) and waits for its ready line. Its files are in `directory`.
    pub async fn start(binary: &Path, directory: &Path, market: &Value, options: SimOptions) -> Result<Self> {
        let mut launch = Launch::new("sim", binary, directory)
            .separate_output()
            .args(["serve".as_ref(), "--market".as_ref(), write(directory, "market.json", market)?.as_os_str()])
            .args([
                "--seed".as_ref(),
                options.seed.to_string().as_ref(),
                "--state".as_ref(),
                directory.join("sim-state").as_os_str(),
            ]);
        if let Some(faults) = &options.faults {
            launch = launch.args(["--faults".as_ref(), write(directory, "faults.json", faults)?.as_os_str()]);
        }
        let output = launch.output();
        // A simulator that ran here before has left its line.
        let _ = fs::remove_file(&output);
        let mut process = Process::start(launch)?;
        let line = process
            .ready(Duration::from_secs(20), || {
                let text = fs::read_to_string(&output).unwrap_or_default();
                let line = text.split_once('\n').map(|(line, _)| line.to_owned());
                std::future::ready(line.ok_or_else(|| "no ready line on stdout".into()))
            })
            .await?;
        let ready = serde_json::from_str(&line).map_err(Error::unexpected("the simulator's ready line"))?;
        Ok(Self { process, ready })
    }

    /// The account of that name in the market.
    pub fn provider(&self, name: &str) -> Result<&SimProvider> {
        self.ready
            .providers
            .get(name)
            .ok_or_else(|| Error::Missing(format!("The simulator's market has no account {name}.")))
    }

    /// All accounts, by name.
    pub fn providers(&self) -> &BTreeMap<String, SimProvider> {
        &self.ready.providers
    }

    /// Where the machines live.
    pub fn state(&self) -> &Path {
        &self.ready.state
    }

    /// The control API's address.
    pub fn control_url(&self) -> &str {
        &self.ready.control
    }

    /// All machines and what they cost.
    pub async fn machines(&self) -> Result<SimMachines> {
        let value = self.call(Method::GET, "/machines", None).await?;
        serde_json::from_value(value).map_err(Error::unexpected("the simulator's list of machines"))
    }

    /// Does something to a machine: `outbid`, `reclaim`, `fail`, `exit` or `status`, with what the verb takes beside it,
    /// such as `{"price": 0.5}` (or `{}`).
    pub async fn act(&self, provider: &str, machine: &str, verb: &str, with: &Value) -> Result<Value> {
        let mut body = json!({ "do": verb });
        if let (Some(body), Some(with)) = (body.as_object_mut(), with.as_object()) {
            body.extend(with.clone());
        }
        self.call(Method::POST, &format!("/machines/{provider}/{machine}"), Some(&body)).await
    }

    /// Changes an offer: `stock`, `price`, `bid`.
    pub async fn patch_offer(&self, provider: &str, offer: &str, change: &Value) -> Result<Value> {
        self.call(Method::PATCH, &format!("/offers/{provider}/{offer}"), Some(change)).await
    }

    /// Changes an account: `credit`, `apiKey`.
    pub async fn patch_provider(&self, provider: &str, change: &Value) -> Result<Value> {
        self.call(Method::PATCH, &format!("/providers/{provider}"), Some(change)).await
    }

    /// Lets time pass in the market; comes back when everything due by then has happened.
    pub async fn advance(&self, by: Duration) -> Result<Value> {
        self.call(Method::POST, "/clock", Some(&json!({ "advance": by.as_secs() }))).await
    }

    /// What happened after event number `after` (0: everything).
    pub async fn events(&self, after: u64) -> Result<SimEvents> {
        let value = self.call(Method::GET, &format!("/events?after={after}"), None).await?;
        serde_json::from_value(value).map_err(Error::unexpected("the simulator's events"))
    }

    /// Lets the next calls fail as the fault says.
    pub async fn add_fault(&self, fault: &Value) -> Result<Value> {
        self.call(Method::POST, "/faults", Some(fault)).await
    }

    /// The faults that wait for their call.
    pub async fn faults(&self) -> Result<Value> {
        self.call(Method::GET, "/faults", None).await
    }

    /// Takes back all faults that have not hit yet.
    pub async fn clear_faults(&self) -> Result<Value> {
        self.call(Method::DELETE, "/faults", None).await
    }

    /// Any other call of the control API.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        http_json::json(method, &format!("{}{path}", self.ready.control), body).await
    }
}

fn write(directory: &Path, name: &str, value: &Value) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, value.to_string()).map_err(Error::io(format!("writing {}", path.display())))?;
    Ok(path)
}
