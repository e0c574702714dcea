//! Provider: keeps the handle of each account, lists its assets on every poll, watches its health.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tradewind_api::conditions::{READY, set_condition};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::{Provider, ProviderStatus, Reason, RentedMachine};
use tradewind_cluster::Key;
use tradewind_core::{ExposeSecret, Money};
use tradewind_providers::{GpuProvider, ProviderError};

use crate::accounts::{Account, ledger};
use crate::context::Context;
use crate::controllers::{rented_machine, sweeper};
use crate::market::MarketReader;
use crate::runtime::{Failure, Reconciler, Wake};

/// Its name in queue, logs and metrics.
pub const NAME: &str = "provider";

/// Credit is written into the status only when it moved by more than this, in micro-dollars.
const CREDIT_STEP: i64 = 1_000_000;

/// The controller.
pub struct Providers {
    ctx: Arc<Context>,
}

/// What was found out about an account.
struct Health {
    ready: bool,
    reason: Reason,
    message: String,
}

impl Providers {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(provider) = ctx.caches.providers.get(key) else { return Ok(Wake::OnChange) };
        let (account, health) = match self.account(&provider).await {
            Ok(account) => {
                let health = self.health(&account, &provider).await;
                (Some(account), health)
            }
            Err(unusable) => {
                // The old handle stays and goes on looking: what runs must be followed and ended, if the old key allows it.
                let old = ctx.accounts.get(&key.name);
                if let Some(account) = &old {
                    self.health(account, &provider).await;
                }
                (old, Health { ready: false, reason: unusable.reason, message: unusable.message })
            }
        };
        if let Some(account) = &account {
            account.set_trouble((!health.ready).then(|| health.message.clone()));
        }
        self.write_status(&provider, account.as_deref(), health).await?;
        let poll = ctx.settings.account_poll;
        let wait = account.map_or(poll, |account| account.look_due_in(ctx.clock.monotonic(), poll));
        Ok(Wake::After(wait, "the account is listed again"))
    }

    /// The handle, made anew when kind or key have changed.
    async fn account(&self, provider: &Provider) -> Result<Arc<Account>, crate::storage::Unusable> {
        let ctx = &self.ctx;
        let name = provider.metadata.name.clone().unwrap_or_default();
        let reference = &provider.spec.credentials_secret_ref;
        let known = ctx.accounts.get(&name);
        if let Some(account) = &known {
            // The Secret is read again only when the account's health is due: it changes rarely.
            let fresh = account
                .info()
                .is_some_and(|(_, at)| ctx.clock.monotonic().saturating_sub(at) < ctx.settings.account_health);
            if fresh && account.trouble().is_none() {
                return Ok(Arc::clone(account));
            }
        }
        let secret = ctx.secret_value(&ctx.settings.namespace, &reference.name, &reference.key).await?;
        let digest = Sha256::digest(secret.expose_secret().as_bytes());
        let fingerprint = format!("{:?} {digest:x?}", provider.spec.kind);
        if let Some(account) = known.filter(|a| a.fingerprint == fingerprint) {
            return Ok(account);
        }
        let handle = ctx
            .open_account
            .open(&name, provider.spec.kind, &secret)
            .map_err(|message| crate::storage::Unusable { reason: Reason::KindNotSupported, message })?;
        self.same_owner(provider, &*handle).await?;
        let account = ctx.accounts.put(Account::new(&name, fingerprint, handle));
        ctx.ask(MarketReader::NAME, Key::cluster(name));
        Ok(account)
    }

    /// A key of another account would make every machine of ours look gone. It is not taken while machines of the old account live.
    async fn same_owner(&self, provider: &Provider, handle: &dyn GpuProvider) -> Result<(), crate::storage::Unusable> {
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        let Some(old) = provider.status.as_ref().and_then(|s| s.account.as_ref()) else { return Ok(()) };
        let lives = |m: &RentedMachine| {
            let status = m.status.as_ref();
            m.spec.provider == name && status.is_some_and(|s| !s.orders.is_empty() && s.phase != MachinePhase::Gone)
        };
        if !self.ctx.caches.rented.all().iter().any(|m| lives(m)) {
            return Ok(());
        }
        // A key that is refused says nothing about the owner; the looks that follow tell of it.
        let Ok(info) = handle.account().await else { return Ok(()) };
        let Some(id) = info.id.filter(|id| id != old) else { return Ok(()) };
        let message = format!(
            "the key belongs to account {id}, but machines of account {old} are not gone yet; give its key back, or wait until they are",
        );
        Err(crate::storage::Unusable { reason: Reason::KeyRefused, message })
    }

    /// What is known of the account: from a look, if one is due, else from what the last one left. Changes of machines bring this
    /// controller here often; they must not become calls to the provider.
    async fn health(&self, account: &Arc<Account>, provider: &Provider) -> Health {
        let ctx = &self.ctx;
        let now = ctx.clock.monotonic();
        let changed = provider.status.as_ref().map(|s| s.observed_generation) != provider.metadata.generation;
        if changed || account.look_due_in(now, ctx.settings.account_poll).is_zero() {
            account.look_begins(now);
            if let Err(error) = self.look(account, now).await {
                return unwell(&error);
            }
        } else if let Some(message) = account.trouble() {
            let ready = provider.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == READY);
            let known = ready.filter(|c| c.status == "False");
            let word = known.and_then(|c| Reason::ALL.iter().copied().find(|r| r.as_str() == c.reason));
            return Health { ready: false, reason: word.unwrap_or(Reason::ProviderUnavailable), message };
        }
        let info = account.info().map(|(info, _)| info);
        if info.as_ref().and_then(|i| i.credit).is_some_and(|credit| credit <= Money::ZERO) {
            let message = "the account has no credit; nothing is rented until it has".to_owned();
            return Health { ready: false, reason: Reason::OutOfCredit, message };
        }
        if provider.spec.paused {
            let message = "spec.paused is true: nothing new is rented, what runs goes on".to_owned();
            return Health { ready: false, reason: Reason::Paused, message };
        }
        Health { ready: true, reason: Reason::AccountReady, message: "the account can be used".to_owned() }
    }

    /// One look: the complete list, and now and then identity and credit.
    async fn look(&self, account: &Arc<Account>, now: Duration) -> Result<(), ProviderError> {
        let machines = account.provider.list_owned().await?;
        account.saw(now, machines);
        self.wake_machines(&account.name);
        let health = self.ctx.settings.account_health;
        let due = account.info().is_none_or(|(_, at)| now.saturating_sub(at) >= health);
        if due || account.trouble().is_some() {
            account.know(account.provider.account().await?, now);
        }
        Ok(())
    }

    /// Machines of this account are looked at with every new list, and so is the sweeper.
    fn wake_machines(&self, name: &str) {
        for machine in self.ctx.caches.rented.all() {
            if machine.spec.provider == name {
                self.ctx.ask(rented_machine::NAME, Key::of_meta(&machine.metadata));
            }
        }
        self.ctx.ask(sweeper::NAME, Key::cluster(name));
    }

    async fn write_status(
        &self,
        provider: &Provider,
        account: Option<&Account>,
        health: Health,
    ) -> Result<(), Failure> {
        let ctx = &self.ctx;
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        let generation = provider.metadata.generation.unwrap_or(0);
        let old = provider.status.clone().unwrap_or_default();
        let mut status = ProviderStatus { observed_generation: generation, ..old.clone() };
        let Health { ready, reason, message } = health;
        set_condition(&mut status.conditions, ctx.clock.now(), generation, READY, Some(ready), reason, message);
        let machines = ctx.caches.rented.all();
        let here = || machines.iter().map(|m| &**m).filter(|m| m.spec.provider == name);
        let alive = here()
            .filter(|m| m.status.as_ref().is_some_and(|s| s.rented_at.is_some() && s.phase != MachinePhase::Gone));
        status.machines = i64::try_from(alive.count()).unwrap_or(i64::MAX);
        status.committed_per_hour = ledger::committed(here(), name, "");
        if let Some((info, _)) = account.and_then(Account::info) {
            status.account = info.id;
            let moved = match (status.credit, info.credit) {
                (Some(old), Some(new)) => (new.micros() - old.micros()).abs() >= CREDIT_STEP,
                (old, new) => old != new,
            };
            if moved {
                status.credit = info.credit;
            }
        }
        if status == old {
            return Ok(());
        }
        let mut next = provider.clone();
        next.status = Some(status);
        let written = ctx.cluster.write_status(next).await?;
        ctx.caches.providers.own(&written);
        if ready {
            ctx.wake_waiting_jobs();
        }
        Ok(())
    }
}

fn unwell(error: &ProviderError) -> Health {
    let reason = match error {
        ProviderError::Unauthorised { .. } => Reason::KeyRefused,
        _ => Reason::ProviderUnavailable,
    };
    Health { ready: false, reason, message: format!("{error}; tried again, and nothing new is rented meanwhile") }
}

impl Reconciler for Providers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}
