//! What the one who runs the simulation can do to the market: the powers behind the control API.

use super::kind::Kind;
use super::machine::{Machine, State};
use super::time::SimTime;
use super::{Effect, Market};

/// Why control refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense for the thing as it is.
    #[error("{0}")]
    Conflict(String),
}

/// A change of an offer; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OfferChange {
    /// How many more machines can be had now.
    pub stock: Option<u32>,
    /// On-demand price in micro-dollars an hour, for new rentals.
    pub on_demand_micros_per_hour: Option<u64>,
    /// Lowest winning bid in micro-dollars an hour: machines that bid less are outbid.
    pub bid_micros_per_hour: Option<u64>,
}

impl Market {
    /// A higher bid takes a machine's GPU: at `price_micros_per_hour`, else at a tenth more than its bid.
    pub fn outbid(
        &mut self,
        now: SimTime,
        account: &str,
        id: u64,
        price_micros_per_hour: Option<u64>,
    ) -> Result<(), ControlError> {
        let index = self.controlled(now, account, id)?;
        let m = &self.machines[index];
        let id = m.wire_id();
        if !m.kind.has_spot() {
            return Err(ControlError::Conflict(format!(
                "machine {id} cannot be outbid: the kind {} has no machines rented by bid",
                m.kind.as_str()
            )));
        }
        let Some(bid) = m.bid_micros_per_hour else {
            return Err(ControlError::Conflict(format!("machine {id} is rented on demand and cannot be outbid")));
        };
        if !m.holds_gpu() {
            return Err(ControlError::Conflict(format!(
                "machine {id} does not hold its GPU, so there is nothing to outbid"
            )));
        }
        let price = price_micros_per_hour.unwrap_or(bid + (bid / 10).max(1));
        if price <= bid {
            return Err(ControlError::Conflict(format!(
                "a bid of {price} micro-dollars does not beat machine {id}'s {bid}"
            )));
        }
        let (account, offer) = self.place_of(m);
        self.accounts[account].offers[offer].set_bid(price);
        self.rebalance(account, offer);
        Ok(())
    }

    /// The host vanishes without notice. What is left of the machine on the wire is the provider's way of telling it.
    pub fn reclaim(&mut self, now: SimTime, account: &str, id: u64) -> Result<(), ControlError> {
        let index = self.still_hosted(now, account, id)?;
        self.host_gone(index);
        Ok(())
    }

    /// The host vanishes, and the machine disappears from the account with it (RunPod; at Vast.ai it stays listed as offline).
    pub fn reclaim_without_trace(&mut self, now: SimTime, account: &str, id: u64) -> Result<(), ControlError> {
        let index = self.still_hosted(now, account, id)?;
        let m = &self.machines[index];
        if m.kind == Kind::Vast {
            return Err(ControlError::Conflict(format!(
                "machine {} stays listed when its host is gone: the kind vast shows it as offline",
                m.wire_id()
            )));
        }
        self.log(index, "reclaimed", &[]);
        self.end(index);
        Ok(())
    }

    fn still_hosted(&mut self, now: SimTime, account: &str, id: u64) -> Result<usize, ControlError> {
        let index = self.controlled(now, account, id)?;
        let m = &self.machines[index];
        if matches!(m.state, State::Offline { .. }) {
            return Err(ControlError::Conflict(format!("the host of machine {} is gone already", m.wire_id())));
        }
        Ok(index)
    }

    /// The boot fails for good.
    pub fn fail(&mut self, now: SimTime, account: &str, id: u64, message: Option<String>) -> Result<(), ControlError> {
        let index = self.controlled(now, account, id)?;
        if !matches!(self.machines[index].state, State::Booting { .. }) {
            let id = self.machines[index].wire_id();
            return Err(ControlError::Conflict(format!("machine {id} is not booting, so its boot cannot fail")));
        }
        let message = message.unwrap_or_else(|| {
            "Error response from daemon: failed to create task for container: OCI runtime create failed".to_owned()
        });
        self.fail_boot(index, message);
        Ok(())
    }

    /// The machine's process dies; with `wipe` its disk is emptied before the restart.
    pub fn exit(
        &mut self,
        now: SimTime,
        account: &str,
        id: u64,
        code: Option<i32>,
        wipe: bool,
    ) -> Result<(), ControlError> {
        let index = self.controlled(now, account, id)?;
        if self.machines[index].state != State::Running {
            let id = self.machines[index].wire_id();
            return Err(ControlError::Conflict(format!("machine {id} runs no process that could exit")));
        }
        self.effects.push(Effect::Kill { machine: id });
        if wipe {
            self.effects.push(Effect::Wipe { machine: id });
        }
        self.restart_soon(index, Some(code.unwrap_or(1)));
        Ok(())
    }

    /// Shows a word instead of the machine's status, even an unknown one; `None` shows the real one again.
    pub fn show_status(
        &mut self,
        now: SimTime,
        account: &str,
        id: u64,
        word: Option<String>,
    ) -> Result<(), ControlError> {
        let index = self.controlled(now, account, id)?;
        self.machines[index].status_override = word;
        Ok(())
    }

    /// Changes an offer.
    pub fn change_offer(
        &mut self,
        now: SimTime,
        account: &str,
        id: &str,
        change: OfferChange,
    ) -> Result<(), ControlError> {
        self.advance(now);
        let unknown = || ControlError::NotFound(format!("no offer {id} at {account}"));
        let account = self.account_index(account).ok_or_else(unknown)?;
        let offer = self.accounts[account].offers.iter().position(|o| o.id == id).ok_or_else(unknown)?;
        if change.bid_micros_per_hour.is_some() && !self.accounts[account].kind.has_spot() {
            let kind = self.accounts[account].kind.as_str();
            return Err(ControlError::Conflict(format!("offer {id} has no bid: the kind {kind} rents nothing by bid")));
        }
        if let Some(stock) = change.stock {
            let held = self.held_of(account, id, None);
            self.accounts[account].offers[offer].set_capacity(held.saturating_add(stock));
        }
        let found = &mut self.accounts[account].offers[offer];
        if let Some(price) = change.on_demand_micros_per_hour {
            found.set_on_demand(price);
        }
        if let Some(price) = change.bid_micros_per_hour {
            found.set_bid(price);
        }
        self.rebalance(account, offer);
        Ok(())
    }

    /// Sets what the account can spend from now on, in micro-dollars; at 0 all its machines stop.
    pub fn set_credit(&mut self, now: SimTime, account: &str, micros: i64) -> Result<(), ControlError> {
        self.advance(now);
        let index =
            self.account_index(account).ok_or_else(|| ControlError::NotFound(format!("no provider {account}")))?;
        self.accounts[index].deposited_micros += micros - self.balance(index);
        self.stop_without_credit(index);
        Ok(())
    }

    /// Changes the account's key: the old one is refused from now on.
    pub fn set_api_key(&mut self, account: &str, key: String) -> Result<(), ControlError> {
        let index =
            self.account_index(account).ok_or_else(|| ControlError::NotFound(format!("no provider {account}")))?;
        self.accounts[index].api_key = key;
        Ok(())
    }

    /// Replaces the account's public keys.
    pub fn set_ssh_keys(&mut self, account: &str, keys: Vec<String>) -> Result<(), ControlError> {
        let index =
            self.account_index(account).ok_or_else(|| ControlError::NotFound(format!("no provider {account}")))?;
        self.accounts[index].ssh_keys = keys;
        Ok(())
    }

    /// Machines that hold an offer now, in all regions or in one.
    pub(super) fn held_of(&self, account: usize, offer: &str, region: Option<&str>) -> u32 {
        let name = &self.accounts[account].name;
        let here = |m: &&Machine| region.is_none() || m.region.as_deref() == region;
        let held = self.machines.iter().filter(|m| &m.account == name && m.offer == offer && m.holds_gpu());
        u32::try_from(held.filter(here).count()).unwrap_or(u32::MAX)
    }

    fn place_of(&self, m: &Machine) -> (usize, usize) {
        let account = self.account_index(&m.account).expect("a machine's account stays");
        let offer =
            self.accounts[account].offers.iter().position(|o| o.id == m.offer).expect("a machine's offer stays");
        (account, offer)
    }

    fn controlled(&mut self, now: SimTime, account: &str, id: u64) -> Result<usize, ControlError> {
        self.advance(now);
        let unknown = || ControlError::NotFound(format!("no machine {id} at {account}"));
        let index =
            self.machine_index(id).filter(|index| self.machines[*index].account == account).ok_or_else(unknown)?;
        if self.machines[index].has_ended() {
            return Err(ControlError::Conflict(format!("machine {} has ended", self.machines[index].wire_id())));
        }
        Ok(index)
    }
}
