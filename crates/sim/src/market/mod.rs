//! The market: accounts, offers, machines and money under an explicit clock.
//!
//! Pure and synchronous. Time moves only by [`Market::advance`]; the same seed and the same calls give the same market. What has to
//! happen to processes and directories comes out as [`Effect`] values: the HTTP server's runner performs them, the world
//! simulation reads them, and a plain test ignores them. Faults are not here: they belong to whoever answers calls.

mod chance;
mod control;
mod event;
mod kind;
mod machine;
mod money;
mod offer;
mod time;
mod verbs;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use chance::{Purpose, bits, share};
pub use control::{ControlError, OfferChange};
pub use event::{Event, EventLog, request_details};
pub use kind::Kind;
pub use machine::{Machine, PortWish, State, StopCause, Workload};
pub use money::{Meter, disk_micros_per_hour, dollars_of_micros, micros_of_dollars};
pub use offer::{Offer, OfferTerms, Region};
pub use time::SimTime;
pub use verbs::{BidError, NoSuchMachine, Place, RentError, RentSpec, Rented, Revision, StartError};

/// The first machine's id; Vast.ai contract ids have eight digits.
const FIRST_MACHINE: u64 = 20_000_001;

/// Seconds until a command that ended is started again (Vast.ai keeps an instance at its intended status; RunPod's hosts restart a
/// container whose first process exits).
pub const RESTART_SECONDS: f64 = 1.0;

/// An image that machines may name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    /// Seconds that the first pull takes.
    pub pull: f64,
    /// The pull fails with these words.
    pub error: Option<String>,
    /// A directory whose content is the image's file system, copied into the machine's working directory.
    pub root: Option<std::path::PathBuf>,
}

/// One rental account.
#[derive(Clone)]
pub struct Account {
    /// Its name: the key in the market file.
    pub name: String,
    /// Its provider's kind.
    pub kind: Kind,
    /// Its key.
    pub api_key: String,
    /// Public keys for machines.
    pub ssh_keys: Vec<String>,
    /// The provider's request limits are in force.
    pub rate_limits: bool,
    /// Known images by name.
    pub images: BTreeMap<String, Image>,
    /// What it offers.
    pub offers: Vec<Offer>,
    /// Everything ever paid in, in micro-dollars.
    pub(crate) deposited_micros: i64,
    rent_calls: u64,
}

impl Account {
    /// An account with this much credit in micro-dollars.
    pub fn new(name: String, kind: Kind, api_key: String, credit_micros: i64) -> Self {
        Self {
            name,
            kind,
            api_key,
            ssh_keys: Vec::new(),
            rate_limits: false,
            images: BTreeMap::new(),
            offers: Vec::new(),
            deposited_micros: credit_micros,
            rent_calls: 0,
        }
    }
}

/// What must happen to a machine's processes and directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start its command.
    Start {
        /// The machine.
        machine: u64,
        /// Which start of its command this is, from 1.
        boot: u32,
    },
    /// Ask its processes to end (SIGTERM), and make them after the provider's grace.
    Stop {
        /// The machine.
        machine: u64,
    },
    /// End its processes at once.
    Kill {
        /// The machine.
        machine: u64,
    },
    /// Empty its directory; its processes are ended already.
    Wipe {
        /// The machine.
        machine: u64,
    },
    /// End its processes at once and remove its directory: the machine is gone.
    Remove {
        /// The machine.
        machine: u64,
    },
}

impl Effect {
    /// The machine that it is about.
    pub const fn machine(&self) -> u64 {
        match self {
            Self::Start { machine, .. }
            | Self::Stop { machine }
            | Self::Kill { machine }
            | Self::Wipe { machine }
            | Self::Remove { machine } => *machine,
        }
    }
}

/// Something that time brings. Ties are settled by the order here, then by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Price { account: usize, offer: usize },
    ContractEnd { machine: usize },
    HostGone { machine: usize },
    CreditGone { account: usize },
    Booted { machine: usize },
    Restart { machine: usize },
}

/// The market of all accounts. See the module's head.
#[derive(Clone)]
pub struct Market {
    seed: u64,
    epoch: Timestamp,
    now: SimTime,
    accounts: Vec<Account>,
    machines: Vec<Machine>,
    effects: Vec<Effect>,
    events: EventLog,
}

impl Market {
    /// A market whose time 0 is `epoch`. Accounts are kept in the order of their names.
    pub fn new(seed: u64, epoch: Timestamp, mut accounts: Vec<Account>) -> Self {
        accounts.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            seed,
            epoch,
            now: SimTime::ZERO,
            accounts,
            machines: Vec::new(),
            effects: Vec::new(),
            events: EventLog::default(),
        }
    }

    /// The instant that everything is settled up to.
    pub const fn now(&self) -> SimTime {
        self.now
    }

    /// The seed.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// An instant as a point of real time.
    pub fn timestamp(&self, at: SimTime) -> Timestamp {
        let since = jiff::SignedDuration::from_micros(i64::try_from(at.as_micros()).unwrap_or(i64::MAX));
        self.epoch.checked_add(since).unwrap_or(Timestamp::MAX)
    }

    /// An instant as seconds of Unix time.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of today's Unix time fit 53 bits")]
    pub fn unix_seconds(&self, at: SimTime) -> f64 {
        self.timestamp(at).as_microsecond() as f64 / 1e6
    }

    /// All accounts, by name.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// The account of this name.
    pub fn account(&self, name: &str) -> Option<&Account> {
        self.account_index(name).map(|index| &self.accounts[index])
    }

    /// All machines ever rented, oldest first, ended ones too.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The machine of this id, ended or not.
    pub fn machine(&self, id: u64) -> Option<&Machine> {
        self.machine_index(id).map(|index| &self.machines[index])
    }

    /// The event log.
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// Writes an event that the market itself does not know of, such as a request.
    pub fn record(&mut self, provider: &str, machine: Option<String>, kind: &'static str, details: Map<String, Value>) {
        self.events.push(self.now, provider, machine, kind, details);
    }

    /// What must be done to processes since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Credit left in micro-dollars; may be below zero.
    pub fn credit_micros(&self, account: &str) -> i64 {
        let Some(index) = self.account_index(account) else { return 0 };
        self.balance(index)
    }

    /// Lets time pass up to `to`: everything due by then happens, in order. Going back in time does nothing.
    pub fn advance(&mut self, to: SimTime) {
        while let Some((at, due)) = self.earliest() {
            if at > to {
                break;
            }
            self.now = self.now.max(at);
            self.happen(due);
        }
        self.now = self.now.max(to);
    }

    /// When something happens next by itself.
    pub fn next_due(&self) -> Option<SimTime> {
        self.earliest().map(|(at, _)| at)
    }

    fn earliest(&self) -> Option<(SimTime, Due)> {
        let prices = self.accounts.iter().enumerate().flat_map(|(account, a)| {
            a.offers
                .iter()
                .enumerate()
                .filter_map(move |(offer, o)| Some((o.next_price_at()?, Due::Price { account, offer })))
        });
        let machines = self.machines.iter().enumerate().flat_map(|(machine, m)| Self::due_of(machine, m));
        let credits = (0..self.accounts.len())
            .filter_map(|account| Some((self.credit_gone_at(account)?, Due::CreditGone { account })));
        prices.chain(machines).chain(credits).min()
    }

    fn due_of(machine: usize, m: &Machine) -> impl Iterator<Item = (SimTime, Due)> + use<> {
        let step = match &m.state {
            State::Booting { until, .. } => Some((*until, Due::Booted { machine })),
            State::Restarting { due, .. } => Some((*due, Due::Restart { machine })),
            _ => None,
        };
        let ended = matches!(m.state, State::Offline { .. } | State::Ended);
        let host = m.host_gone_at.filter(|_| !ended).map(|at| (at, Due::HostGone { machine }));
        let ends = m.holds_gpu() && m.contract_end != SimTime::from_micros(u64::MAX);
        let contract = ends.then_some((m.contract_end, Due::ContractEnd { machine }));
        [step, host, contract].into_iter().flatten()
    }

    /// The next whole second at which the account's money may be used up while machines run. Looking at whole seconds only makes
    /// the end independent of how callers cut time into pieces.
    fn credit_gone_at(&self, account: usize) -> Option<SimTime> {
        let name = &self.accounts[account].name;
        let (mut burn, mut machines, mut running) = (0_u64, 0_u64, false);
        for machine in self.machines.iter().filter(|m| &m.account == name && !m.has_ended()) {
            // One more than the rounded rate, so that the estimate is never too late.
            burn += machine.burn_micros_per_hour() + 1;
            machines += 1;
            running |= machine.holds_gpu();
        }
        if !running {
            return None;
        }
        let balance = self.balance(account);
        // Seconds are billed when they are over, and each of a machine's two sums is rounded down.
        let surely_left = i128::from(balance) - 2 * i128::from(machines);
        let micros = (surely_left * 3_600_000_000 / i128::from(burn) - 1_000_000).max(0);
        let earliest = self.now.as_micros().saturating_add(u64::try_from(micros).unwrap_or(u64::MAX));
        let second = earliest.div_ceil(1_000_000).saturating_mul(1_000_000);
        let looked_at_now = second == self.now.as_micros() && balance > 0;
        Some(SimTime::from_micros(if looked_at_now { second + 1_000_000 } else { second }))
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Price { account, offer } => {
                let entry = &mut self.accounts[account].offers[offer];
                let (_, dollars) = entry.terms.prices[entry.script_done];
                entry.script_done += 1;
                let price = micros_of_dollars(dollars);
                // Where nothing is rented by bid, the script is the price of new rentals.
                if self.accounts[account].kind.has_spot() {
                    self.accounts[account].offers[offer].set_bid(price);
                } else {
                    self.accounts[account].offers[offer].set_on_demand(price);
                }
                self.rebalance(account, offer);
            }
            Due::ContractEnd { machine } => self.halt(machine, StopCause::ContractEnd),
            Due::HostGone { machine } => self.lose_host(machine),
            Due::CreditGone { account } => self.stop_without_credit(account),
            Due::Booted { machine } => self.booted(machine),
            Due::Restart { machine } => {
                self.machines[machine].state = State::Running;
                self.start_command(machine);
                self.log(machine, "started", &[("by", json!("restart"))]);
            }
        }
    }

    /// Stops all machines of an account that has no money left.
    fn stop_without_credit(&mut self, account: usize) {
        if self.balance(account) > 0 {
            return;
        }
        let name = self.accounts[account].name.clone();
        for machine in 0..self.machines.len() {
            let m = &self.machines[machine];
            if m.account != name || !m.holds_gpu() {
                continue;
            }
            match m.kind {
                Kind::Vast => self.halt(machine, StopCause::NoCredit),
                // Pods without a network volume, of which there are none here, are terminated (RunPod's billing page).
                Kind::Runpod => {
                    self.log(machine, "terminated", &[("by", json!("no credit"))]);
                    self.end(machine);
                }
            }
        }
    }

    fn booted(&mut self, machine: usize) {
        let now = self.now;
        let m = &mut self.machines[machine];
        m.settle(now);
        if let State::Booting { failure: Some(message), .. } = &m.state {
            let message = message.clone();
            match m.kind {
                Kind::Vast => self.fail_boot(machine, message),
                Kind::Runpod => self.give_up(machine, State::Stopped(StopCause::PullFailed), "pull failed", &message),
            }
            return;
        }
        m.state = State::Running;
        m.image_present = true;
        m.running_since = Some(now);
        self.start_command(machine);
        self.log(machine, "running", &[]);
    }

    fn fail_boot(&mut self, machine: usize, message: String) {
        self.give_up(machine, State::BootFailed { message: message.clone() }, "boot failed", &message);
    }

    /// The boot ends in a state in which nothing runs.
    fn give_up(&mut self, machine: usize, state: State, reason: &str, message: &str) {
        let m = &mut self.machines[machine];
        m.settle(self.now);
        m.wants_to_run = false;
        m.state = state;
        self.log(machine, "stopped", &[("reason", json!(reason)), ("message", json!(message))]);
        self.rebalance_of(machine);
    }

    fn start_command(&mut self, machine: usize) {
        let m = &mut self.machines[machine];
        m.boots += 1;
        m.command_since = Some(self.now);
        let effect = Effect::Start { machine: m.id, boot: m.boots };
        self.effects.push(effect);
    }

    /// The platform stops a machine that will not come back by itself.
    fn halt(&mut self, machine: usize, cause: StopCause) {
        let m = &mut self.machines[machine];
        m.settle(self.now);
        m.wants_to_run = false;
        m.state = State::Stopped(cause);
        let id = m.id;
        self.effects.push(Effect::Kill { machine: id });
        let reason = match cause {
            StopCause::NoCredit => "no credit",
            StopCause::ContractEnd => "contract end",
            _ => "platform",
        };
        self.log(machine, "stopped", &[("reason", json!(reason))]);
        self.rebalance_of(machine);
    }

    /// The host takes its machine back by itself. At RunPod chance decides between the two ways in which that was seen.
    fn lose_host(&mut self, machine: usize) {
        let m = &self.machines[machine];
        if m.kind == Kind::Runpod && share(self.seed, &m.account, m.id, Purpose::HostLoss) < 0.5 {
            self.log(machine, "reclaimed", &[]);
            self.end(machine);
        } else {
            self.host_gone(machine);
        }
    }

    /// The machine is gone from the account: nothing is billed, nothing is left of it.
    fn end(&mut self, machine: usize) {
        let m = &mut self.machines[machine];
        m.settle(self.now);
        m.wants_to_run = false;
        m.state = State::Ended;
        m.ended_at = Some(self.now);
        m.host_ports.clear();
        let id = m.id;
        self.effects.push(Effect::Remove { machine: id });
        self.rebalance_of(machine);
    }

    fn host_gone(&mut self, machine: usize) {
        let m = &mut self.machines[machine];
        m.settle(self.now);
        m.host_gone_at = None;
        m.state = State::Offline { since: self.now };
        let id = m.id;
        // Whatever was on the host is out of reach for good.
        self.effects.extend([Effect::Kill { machine: id }, Effect::Wipe { machine: id }]);
        self.log(machine, "reclaimed", &[]);
        self.rebalance_of(machine);
    }

    /// Takes the GPU from bids that lose now, then gives free ones to waiting machines that can have them, oldest first.
    fn rebalance(&mut self, account: usize, offer: usize) {
        let (name, id) = (self.accounts[account].name.clone(), self.accounts[account].offers[offer].id.clone());
        let here = |m: &Machine| m.account == name && m.offer == id;
        let lowest = self.accounts[account].offers[offer].bid_micros_per_hour;
        for index in 0..self.machines.len() {
            let m = &mut self.machines[index];
            let loses = m.bid_micros_per_hour.is_some_and(|bid| lowest.is_none_or(|lowest| bid < lowest));
            if here(m) && m.holds_gpu() && loses {
                m.settle(self.now);
                m.state = State::Stopped(StopCause::Outbid);
                let effect = Effect::Kill { machine: m.id };
                self.effects.push(effect);
                let price = lowest.unwrap_or(0);
                self.log(index, "outbid", &[("priceMicros", json!(price))]);
            }
        }
        for index in 0..self.machines.len() {
            let waits = matches!(self.machines[index].state, State::Stopped(_)) && self.machines[index].wants_to_run;
            if here(&self.machines[index]) && waits && self.can_start(index) {
                self.begin_boot(index);
                self.log(index, "started", &[("by", json!("market"))]);
            }
        }
    }

    fn rebalance_of(&mut self, machine: usize) {
        let m = &self.machines[machine];
        let Some(account) = self.account_index(&m.account) else { return };
        let Some(offer) = self.accounts[account].offers.iter().position(|o| o.id == m.offer) else { return };
        self.rebalance(account, offer);
    }

    /// The GPU is to be had for this machine now: in stock, bid high enough, money left, host there.
    fn can_start(&self, machine: usize) -> bool {
        let m = &self.machines[machine];
        let Some(account) = self.account_index(&m.account) else { return false };
        let Some(offer) = self.accounts[account].offers.iter().find(|o| o.id == m.offer) else { return false };
        let wins =
            m.bid_micros_per_hour.is_none_or(|bid| offer.bid_micros_per_hour.is_some_and(|lowest| bid >= lowest));
        let free = match &m.region {
            None => self.free_of(account, offer),
            Some(region) => self.free_in(account, offer, region),
        };
        wins && free > 0 && self.balance(account) > 0 && m.contract_end > self.now
    }

    fn begin_boot(&mut self, machine: usize) {
        let m = &self.machines[machine];
        let account = self.account_index(&m.account).expect("a machine's account stays");
        let offer = self.accounts[account].offers.iter().find(|o| o.id == m.offer).expect("a machine's offer stays");
        let (shortest, longest) = offer.terms.boot;
        let draw = share(self.seed, &m.account, m.id * 1000 + u64::from(m.boots), Purpose::Boot);
        let image = self.accounts[account].images.get(&m.workload.image);
        let pull = image.filter(|_| !m.image_present);
        let failure = pull.and_then(|image| image.error.clone());
        let seconds = pull.map_or(0.0, |image| image.pull)
            + if failure.is_some() { 0.0 } else { shortest + (longest - shortest) * draw };
        let until = self.now.after_seconds(seconds);
        let m = &mut self.machines[machine];
        m.settle(self.now);
        m.state = State::Booting { since: self.now, until, failure };
        if m.kind == Kind::Runpod && m.boots > 0 && m.volume_milli_gb == 0 {
            // The container's disk does not outlive a stop.
            let id = m.id;
            self.effects.push(Effect::Wipe { machine: id });
        }
    }

    /// Machines that can still be had of an offer.
    fn free_of(&self, account: usize, offer: &Offer) -> u32 {
        offer.capacity.saturating_sub(self.held_of(account, &offer.id, None))
    }

    /// Machines that can still be had of an offer in one of its regions.
    fn free_in(&self, account: usize, offer: &Offer, region: &str) -> u32 {
        let Some(known) = offer.regions.iter().find(|r| r.id == region) else { return 0 };
        let here =
            known.stock.map_or(u32::MAX, |stock| stock.saturating_sub(self.held_of(account, &offer.id, Some(region))));
        here.min(self.free_of(account, offer))
    }

    fn balance(&self, account: usize) -> i64 {
        let name = &self.accounts[account].name;
        let spent: u64 = self.machines.iter().filter(|m| &m.account == name).map(|m| m.cost_micros(self.now)).sum();
        self.accounts[account].deposited_micros - i64::try_from(spent).unwrap_or(i64::MAX)
    }

    fn account_index(&self, name: &str) -> Option<usize> {
        self.accounts.binary_search_by(|a| a.name.as_str().cmp(name)).ok()
    }

    fn machine_index(&self, id: u64) -> Option<usize> {
        let index = usize::try_from(id.checked_sub(FIRST_MACHINE)?).ok()?;
        (index < self.machines.len()).then_some(index)
    }

    fn log(&mut self, machine: usize, kind: &'static str, details: &[(&str, Value)]) {
        let m = &self.machines[machine];
        let details = details.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.events.push(self.now, &m.account, Some(m.wire_id()), kind, details);
    }
}
