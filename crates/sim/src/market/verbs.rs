//! What a customer can do: the verbs of every provider, as plain methods with an explicit `now`.

use serde_json::json;

use super::kind::Kind;
use super::machine::{History, Machine, Meters, State, StopCause, Workload};
use super::offer::Offer;
use super::time::SimTime;
use super::{Effect, FIRST_MACHINE, Market, Purpose, RESTART_SECONDS, bits, share};

/// A request for one machine.
#[derive(Debug, Clone)]
pub struct RentSpec {
    /// The offer's id.
    pub offer: String,
    /// The user's label.
    pub label: Option<String>,
    /// A bid in micro-dollars an hour; `None` rents on demand.
    pub bid_micros_per_hour: Option<u64>,
    /// Disk in thousandths of a GB.
    pub disk_milli_gb: u64,
    /// What to run.
    pub workload: Workload,
    /// Where it cannot start at once, make it all the same, stopped (Vast.ai without `cancel_unavail`).
    pub park: bool,
    /// Start it (else it is made stopped).
    pub start: bool,
}

/// Where a machine is to be and how big, at providers where the customer says so. By default wherever the offer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Data centres that will do; any, if empty.
    pub regions: Vec<String>,
    /// On hosts of strangers.
    pub community: bool,
    /// GPUs; the price is for one.
    pub gpus: u32,
    /// A volume that outlives stops, in thousandths of a GB.
    pub volume_milli_gb: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { regions: Vec::new(), community: false, gpus: 1, volume_milli_gb: 0 }
    }
}

/// What a machine is from now on (RunPod's way of changing a pod).
#[derive(Debug, Clone)]
pub struct Revision {
    /// Its name.
    pub label: Option<String>,
    /// What it runs.
    pub workload: Workload,
    /// Disk in thousandths of a GB.
    pub disk_milli_gb: u64,
    /// Volume in thousandths of a GB.
    pub volume_milli_gb: u64,
    /// Its container is made anew, with an empty disk.
    pub again: bool,
}

/// A machine was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rented {
    /// It boots.
    Started(u64),
    /// It is stopped and waits; its disk is billed.
    Parked(u64),
}

impl Rented {
    /// The new machine's id.
    pub const fn id(self) -> u64 {
        match self {
            Self::Started(id) | Self::Parked(id) => id,
        }
    }
}

/// Why a rent call did not give a machine that starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RentError {
    /// No such account.
    #[error("no such account")]
    NoSuchAccount,
    /// No such offer.
    #[error("no such offer")]
    NoSuchOffer,
    /// Nothing left of it.
    #[error("nothing is left of the offer")]
    SoldOut,
    /// The provider refused it by chance, for lack of capacity.
    #[error("refused for lack of capacity")]
    Refused,
    /// The account has no money.
    #[error("the account has no credit")]
    NoCredit,
    /// The disk does not fit the host.
    #[error("the disk does not fit")]
    DiskTooLarge,
    /// The bid loses. A parked machine may have been made all the same; its disk is billed.
    #[error("the bid loses")]
    BidTooLow {
        /// The parked machine.
        leftover: Option<u64>,
    },
}

/// No machine of this id in this account, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such machine")]
pub struct NoSuchMachine;

/// Why a machine does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No such machine.
    #[error("no such machine")]
    NoSuchMachine,
    /// The GPU is not free or the bid loses: it is queued and may start later (at RunPod it is just refused).
    #[error("resources are not available")]
    Queued,
    /// The host is gone.
    #[error("the host is gone")]
    HostGone,
    /// The account has no money.
    #[error("the account has no credit")]
    NoCredit,
}

/// Why a bid was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BidError {
    /// No such machine.
    #[error("no such machine")]
    NoSuchMachine,
    /// Rented on demand.
    #[error("the machine is not rented by bid")]
    NotSpot,
}

impl Market {
    /// Offers of an account with how many more machines each can give now, in the order of the market file.
    pub fn offers(&mut self, now: SimTime, account: &str) -> Vec<(Offer, u32)> {
        self.advance(now);
        let Some(index) = self.account_index(account) else { return Vec::new() };
        self.accounts[index].offers.iter().map(|offer| (offer.clone(), self.free_of(index, offer))).collect()
    }

    /// Rents one machine.
    pub fn rent(&mut self, now: SimTime, account: &str, spec: RentSpec) -> Result<Rented, RentError> {
        self.rent_at(now, account, spec, &Place::default())
    }

    /// How many more machines of an offer can be had in one of its regions now.
    pub fn free_at(&mut self, now: SimTime, account: &str, offer: &Offer, region: &str) -> u32 {
        self.advance(now);
        self.account_index(account).map_or(0, |account| self.free_in(account, offer, region))
    }

    /// Rents one machine in a place.
    pub fn rent_at(&mut self, now: SimTime, account: &str, spec: RentSpec, place: &Place) -> Result<Rented, RentError> {
        self.advance(now);
        let account = self.account_index(account).ok_or(RentError::NoSuchAccount)?;
        let number = self.accounts[account].rent_calls;
        self.accounts[account].rent_calls += 1;
        let offer =
            self.accounts[account].offers.iter().position(|o| o.id == spec.offer).ok_or(RentError::NoSuchOffer)?;
        let found = &self.accounts[account].offers[offer];
        // Offers without GPUs are listed, but cannot be had (a user's report).
        if self.accounts[account].kind == Kind::Vast && found.gpu_count() == 0 {
            return Err(RentError::NoSuchOffer);
        }
        let least = match self.accounts[account].kind {
            Kind::Vast => 1,
            // About an hour's credit is needed to create (RunPod's billing page).
            Kind::Runpod => i64::try_from(found.price_in(place.community))
                .unwrap_or(i64::MAX)
                .saturating_mul(place.gpus.into())
                .max(1),
        };
        if self.balance(account) < least {
            return Err(RentError::NoCredit);
        }
        if found.number("disk_space").is_some_and(|gb| spec.disk_milli_gb > super::micros_of_dollars(gb) / 1000) {
            return Err(RentError::DiskTooLarge);
        }
        if share(self.seed, &self.accounts[account].name, number, Purpose::Refusal) < found.terms.refuse {
            return Err(RentError::Refused);
        }
        let loses =
            spec.bid_micros_per_hour.is_some_and(|bid| found.bid_micros_per_hour.is_none_or(|lowest| bid < lowest));
        let region = self.region_for(account, found, place);
        let sold_out = self.free_of(account, found) == 0 || (region.is_none() && !found.regions.is_empty());
        if (loses || sold_out) && !spec.park {
            return Err(RentError::SoldOut);
        }
        let (park, start) = (spec.start && (loses || sold_out), spec.start);
        let machine = self.make_machine(account, offer, spec, place, region);
        let id = self.machines[machine].id;
        if loses && start {
            return Err(RentError::BidTooLow { leftover: Some(id) });
        }
        if park || !start {
            return Ok(Rented::Parked(id));
        }
        self.begin_boot(machine);
        Ok(Rented::Started(id))
    }

    /// The first region of the wished ones, else of all, that has something left.
    fn region_for(&self, account: usize, offer: &Offer, place: &Place) -> Option<String> {
        let all: Vec<&String> = offer.regions.iter().map(|region| &region.id).collect();
        let wished = if place.regions.is_empty() { all } else { place.regions.iter().collect() };
        wished.into_iter().find(|region| self.free_in(account, offer, region) > 0).cloned()
    }

    fn make_machine(
        &mut self,
        account: usize,
        offer: usize,
        spec: RentSpec,
        place: &Place,
        region: Option<String>,
    ) -> usize {
        let index = self.machines.len();
        let id = FIRST_MACHINE + index as u64;
        let account = &self.accounts[account];
        let offer = &account.offers[offer];
        let host_gone_at = offer.terms.lifetime.map(|mean| {
            let draw = share(self.seed, &account.name, id, Purpose::Lifetime);
            self.now.after_seconds(-mean * (1.0 - draw).ln())
        });
        let instance_key = format!(
            "{:016x}{:016x}",
            bits(self.seed, &account.name, id, Purpose::InstanceKey),
            bits(!self.seed, &account.name, id, Purpose::InstanceKey)
        );
        let machine = Machine {
            kind: account.kind,
            id,
            account: account.name.clone(),
            offer: offer.id.clone(),
            offer_fields: offer.fields.clone(),
            label: spec.label,
            workload: spec.workload,
            bid_micros_per_hour: spec.bid_micros_per_hour,
            on_demand_micros_per_hour: offer.price_in(place.community) * u64::from(place.gpus),
            disk_milli_gb: spec.disk_milli_gb,
            volume_milli_gb: place.volume_milli_gb,
            gpus: place.gpus,
            region,
            community: place.community,
            storage_micros_per_gb_month: offer.storage_micros_per_gb_month,
            created_at: self.now,
            visible_at: self.now.after_seconds(offer.terms.lag),
            ended_at: None,
            contract_end: offer.ends_at,
            state: State::Stopped(if spec.start { StopCause::Parked } else { StopCause::User }),
            boots: 0,
            running_since: None,
            command_since: None,
            status_override: None,
            host_ports: Vec::new(),
            instance_key,
            wants_to_run: spec.start,
            image_present: false,
            host_gone_at,
            settled_at: self.now,
            meters: Meters::default(),
            history: History::default(),
        };
        let (spot, offer) = (machine.is_spot(), machine.offer.clone());
        self.machines.push(machine);
        self.log(index, "created", &[("offer", json!(offer)), ("spot", json!(spot))]);
        index
    }

    /// The machine, if the account has it, it has not ended, and it can be seen yet.
    pub fn describe(&mut self, now: SimTime, account: &str, id: u64) -> Option<&Machine> {
        self.advance(now);
        let index = self.owned(account, id)?;
        let machine = &self.machines[index];
        (machine.visible_at <= self.now).then_some(machine)
    }

    /// All machines of the account that can be seen, oldest first.
    pub fn list(&mut self, now: SimTime, account: &str) -> Vec<&Machine> {
        self.advance(now);
        let now = self.now;
        self.machines.iter().filter(|m| m.account == account && !m.has_ended() && m.visible_at <= now).collect()
    }

    /// Ends a machine for good.
    pub fn terminate(&mut self, now: SimTime, account: &str, id: u64) -> Result<(), NoSuchMachine> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(NoSuchMachine)?;
        self.log(index, "terminated", &[]);
        self.end(index);
        Ok(())
    }

    /// Starts a stopped machine, or queues it.
    pub fn start(&mut self, now: SimTime, account: &str, id: u64) -> Result<(), StartError> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(StartError::NoSuchMachine)?;
        if self.machines[index].holds_gpu() {
            return Ok(());
        }
        if matches!(self.machines[index].state, State::Offline { .. }) {
            return Err(StartError::HostGone);
        }
        let account = self.account_index(account).expect("the machine's account stays");
        if self.balance(account) <= 0 {
            return Err(StartError::NoCredit);
        }
        let can_start = self.can_start(index);
        if !can_start && !self.machines[index].kind.queues_starts() {
            return Err(StartError::Queued);
        }
        self.machines[index].wants_to_run = true;
        if !can_start {
            if !matches!(self.machines[index].state, State::Stopped(StopCause::Outbid)) {
                self.machines[index].state = State::Stopped(StopCause::Parked);
            }
            return Err(StartError::Queued);
        }
        self.begin_boot(index);
        self.log(index, "started", &[("by", json!("user"))]);
        Ok(())
    }

    /// Stops a machine; its disk stays and is billed.
    pub fn stop(&mut self, now: SimTime, account: &str, id: u64) -> Result<(), NoSuchMachine> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(NoSuchMachine)?;
        let m = &mut self.machines[index];
        m.settle(self.now);
        m.wants_to_run = false;
        let held = m.holds_gpu();
        if held || matches!(m.state, State::Stopped(_)) {
            m.state = State::Stopped(StopCause::User);
        }
        if held {
            self.effects.push(Effect::Stop { machine: id });
            self.log(index, "stopped", &[("reason", json!("user"))]);
            self.rebalance_of(index);
        }
        Ok(())
    }

    /// Restarts a running machine's container without giving the GPU back; with `recycle` from a fresh disk.
    pub fn reboot(&mut self, now: SimTime, account: &str, id: u64, recycle: bool) -> Result<(), NoSuchMachine> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(NoSuchMachine)?;
        if !self.machines[index].runs() {
            return Ok(());
        }
        let due = self.now.after_seconds(RESTART_SECONDS);
        if recycle {
            self.effects.extend([Effect::Kill { machine: id }, Effect::Wipe { machine: id }]);
        } else {
            self.effects.push(Effect::Stop { machine: id });
        }
        self.machines[index].state = State::Restarting { due, word: if recycle { "recycling" } else { "rebooting" } };
        Ok(())
    }

    /// Changes what a machine is.
    pub fn revise(&mut self, now: SimTime, account: &str, id: u64, revision: Revision) -> Result<(), NoSuchMachine> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(NoSuchMachine)?;
        let m = &mut self.machines[index];
        m.settle(self.now);
        m.image_present &= m.workload.image == revision.workload.image;
        m.label = revision.label;
        m.workload = revision.workload;
        (m.disk_milli_gb, m.volume_milli_gb) = (revision.disk_milli_gb, revision.volume_milli_gb);
        if revision.again { self.reboot(now, account, id, true) } else { Ok(()) }
    }

    /// Gives a machine another label.
    pub fn label(&mut self, now: SimTime, account: &str, id: u64, label: String) -> Result<(), NoSuchMachine> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(NoSuchMachine)?;
        self.machines[index].label = Some(label);
        Ok(())
    }

    /// Changes the bid of a machine: it may lose or win the GPU by that.
    pub fn bid(&mut self, now: SimTime, account: &str, id: u64, micros_per_hour: u64) -> Result<(), BidError> {
        self.advance(now);
        let index = self.owned(account, id).ok_or(BidError::NoSuchMachine)?;
        if !self.machines[index].is_spot() {
            return Err(BidError::NotSpot);
        }
        self.machines[index].settle(self.now);
        self.machines[index].bid_micros_per_hour = Some(micros_per_hour);
        self.rebalance_of(index);
        Ok(())
    }

    /// A machine's command ended by itself. It is started again, as Vast.ai and RunPod do; reports about an older start are ignored.
    pub fn process_exited(&mut self, now: SimTime, id: u64, boot: u32, code: i32) {
        self.advance(now);
        let Some(index) = self.machine_index(id) else { return };
        let m = &self.machines[index];
        if m.state == State::Running && m.boots == boot {
            self.restart_soon(index, Some(code));
        }
    }

    pub(super) fn restart_soon(&mut self, index: usize, code: Option<i32>) {
        let due = self.now.after_seconds(RESTART_SECONDS);
        self.machines[index].state = State::Restarting { due, word: "exited" };
        self.log(index, "exited", &[("code", json!(code))]);
    }

    /// The host ports that a machine's mapped ports got at this start of its command.
    pub fn set_host_ports(&mut self, id: u64, boot: u32, ports: Vec<(super::PortWish, u16)>) {
        if let Some(index) = self.machine_index(id)
            && self.machines[index].boots == boot
            && !self.machines[index].has_ended()
        {
            self.machines[index].host_ports = ports;
        }
    }

    fn owned(&self, account: &str, id: u64) -> Option<usize> {
        let index = self.machine_index(id)?;
        let m = &self.machines[index];
        (m.account == account && !m.has_ended()).then_some(index)
    }
}
