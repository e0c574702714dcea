//! Provider: keeps the handle of each account, lists its assets on every poll, watches its health, keeps its books, and holds Provider
//! and Secret while anything rented by them may be left.

mod bill;
pub mod hold;
pub mod losses;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};
use tradewind_api::conditions::{LOSSES_AT_ONCE, READY, condition, set_condition};
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::{Provider, ProviderStatus, Reason, RentedMachine};
use tradewind_cluster::{Key, Selector, Typed};
use tradewind_core::{ExposeSecret, Money, SecretString};
use tradewind_providers::{GpuProvider, ProviderError};

use self::hold::{Departure, Leaving};
use self::losses::Losses;
use crate::accounts::{Account, audit, books, ledger};
use crate::context::Context;
use crate::controllers::{rented_machine, sweeper};
use crate::events::{Severity, reference};
use crate::market::MarketReader;
use crate::runtime::{Failure, Reconciler, Wake};

/// Its name in queue, logs and metrics.
pub const NAME: &str = "provider";

/// Credit is written into the status only when it moved by more than this, in micro-dollars.
const CREDIT_STEP: i64 = 1_000_000;

/// The controller.
pub struct Providers {
    ctx: Arc<Context>,
    /// By Provider.
    losses: Mutex<BTreeMap<String, Losses>>,
    /// Looks at bills, by Provider.
    bills: Mutex<BTreeMap<String, bill::Looks>>,
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
        Self { ctx, losses: Mutex::default(), bills: Mutex::default() }
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(provider) = ctx.caches.providers.get(key) else {
            // Its machines wait for its books no longer.
            self.wake_machines(&key.name);
            return Ok(Wake::OnChange);
        };
        let (account, secret, health) = match self.account(&provider).await {
            Ok((account, secret)) => {
                let health = self.health(&account, &provider).await;
                (Some(account), secret, health)
            }
            Err(unusable) => {
                // The old handle stays and goes on looking: what runs must be followed and ended, if the old key allows it.
                let old = self.earlier(&provider).await;
                if let Some(account) = &old {
                    self.health(account, &provider).await;
                }
                (old, None, Health { ready: false, reason: unusable.reason, message: unusable.message })
            }
        };
        if let Some(account) = &account {
            account.set_trouble((!health.ready).then(|| health.message.clone()));
        }
        let Some((provider, health)) = self.hold(provider, account.as_deref(), secret.as_deref(), health).await? else {
            return Ok(Wake::OnChange);
        };
        self.write_status(&provider, account.as_deref(), health).await?;
        if let Some(account) = account.as_deref() {
            let stops = ctx.overrun(&provider).await;
            let machines = stops.keys().cloned().collect::<Vec<_>>();
            if account.set_overrun(stops) {
                self.wake_jobs_of(&machines);
            }
            // After everything that somebody waits for.
            self.audit(key, account).await?;
        }
        let poll = ctx.settings.account_poll;
        let wait = account.map_or(poll, |account| account.look_due_in(ctx.clock.monotonic(), poll));
        Ok(Wake::After(wait, "the account is listed again"))
    }

    /// Holds Provider and Secret once the account can be used, and lets go of them when they are being deleted and nothing is left. `None`
    /// once the Provider is let go.
    async fn hold(
        &self,
        provider: Arc<Provider>,
        account: Option<&Account>,
        secret: Option<&Secret>,
        health: Health,
    ) -> Result<Option<(Arc<Provider>, Health)>, Failure> {
        let ctx = &self.ctx;
        let unheld = |why: &str, closing| {
            if let Some(account) = account {
                account.set_unheld(Some(why.to_owned()), closing);
            }
        };
        let Some(leaving) = hold::leaving(&provider, secret) else {
            let usable = account.is_some_and(|account| account.passes() > 0);
            let (Some(secret), Some(account), true) = (secret, account, usable) else {
                if account.is_some_and(Account::is_closing) {
                    // The Secret is gone by now.
                    unheld(&health.message, true);
                }
                return Ok(Some((provider, health)));
            };
            return Ok(Some(match hold::hold(ctx, Arc::clone(&provider), secret).await? {
                Ok(provider) => {
                    account.set_unheld(None, false);
                    (provider, health)
                }
                Err(unusable) => {
                    unheld(&unusable.message, false);
                    (provider, Health { ready: false, reason: unusable.reason, message: unusable.message })
                }
            }));
        };
        let secret = format!("{}/{}", ctx.settings.namespace, provider.spec.credentials_secret_ref.name);
        let what = match leaving {
            Leaving::Provider => "deleted".to_owned(),
            Leaving::Secret => format!("Secret {secret} with its key is being deleted, so nothing new is rented"),
        };
        unheld(&what, true);
        let refused = health.reason == Reason::KeyRefused;
        let (departure, provider) = hold::leave(ctx, &provider, account, leaving, refused).await?;
        let mut message = match (departure, leaving) {
            (Departure::Waits(waits), Leaving::Provider) => format!("{what}; {waits}"),
            (Departure::Waits(waits), Leaving::Secret) => format!("{what}; it {waits}"),
            (Departure::LetGo, Leaving::Provider) => return Ok(None),
            (Departure::LetGo, Leaving::Secret) => format!("{what}; nothing needs it any more"),
        };
        if matches!(health.reason, Reason::KeyRefused | Reason::ProviderUnavailable | Reason::SecretNotFound) {
            message = format!("{message}. Meanwhile: {}", health.message);
        }
        unheld(&message, true);
        Ok(Some((provider, Health { ready: false, reason: Reason::Deleting, message })))
    }

    /// The handle, made anew when kind or key have changed, and the Secret, if it was read.
    async fn account(
        &self,
        provider: &Provider,
    ) -> Result<(Arc<Account>, Option<Arc<Secret>>), crate::storage::Unusable> {
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
                return Ok((Arc::clone(account), None));
            }
        }
        let secret = ctx.secret(&ctx.settings.namespace, &reference.name).await?;
        let value = crate::storage::text(&secret, &reference.key)
            .and_then(|value| key_in(&value))
            .ok_or_else(|| crate::storage::no_such_key(&ctx.settings.namespace, &reference.name, &reference.key))?;
        let fingerprint = fingerprint(provider, &value);
        if let Some(account) = known.filter(|a| a.fingerprint == fingerprint) {
            return Ok((account, Some(secret)));
        }
        let handle = ctx
            .open_account
            .open(&name, provider.spec.kind, &value)
            .map_err(|message| crate::storage::Unusable { reason: Reason::KindNotSupported, message })?;
        let known_key = provider.status.as_ref().and_then(|s| s.key_mark.as_ref());
        // The very key that was in use before this process began: whoever its owner is, it has not changed.
        if known_key != Some(&self.key_mark(&fingerprint)) {
            self.same_owner(provider, &*handle).await?;
        }
        let account = ctx.accounts.put(Account::new(&name, fingerprint, handle));
        ctx.ask(MarketReader::NAME, Key::cluster(name));
        Ok((account, Some(secret)))
    }

    /// What is written down of a key.
    fn key_mark(&self, fingerprint: &str) -> String {
        let digest = Sha256::digest(format!("{} {fingerprint}", self.ctx.settings.install.as_str()));
        tradewind_core::hex(&digest[..4])
    }

    /// The handle of before, when the present key cannot be used: the one in memory, or after a restart one by a Secret that is still held.
    async fn earlier(&self, provider: &Provider) -> Option<Arc<Account>> {
        let ctx = &self.ctx;
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        if let Some(account) = ctx.accounts.get(name) {
            return Some(account);
        }
        for held in hold::held(provider).iter().filter(|held| **held != provider.spec.credentials_secret_ref) {
            let Ok(value) = ctx.secret_value(&ctx.settings.namespace, &held.name, &held.key).await else { continue };
            let Some(value) = key_in(&value) else { continue };
            if let Ok(handle) = ctx.open_account.open(name, provider.spec.kind, &value) {
                return Some(ctx.accounts.put(Account::new(name, fingerprint(provider, &value), handle)));
            }
        }
        None
    }

    /// A key of another account would make every machine of ours look gone. It is not taken while machines of the old account live.
    async fn same_owner(&self, provider: &Provider, handle: &dyn GpuProvider) -> Result<(), crate::storage::Unusable> {
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        let old = provider.status.as_ref().and_then(|s| s.account.as_ref());
        let lives = |m: &RentedMachine| {
            let status = m.status.as_ref();
            m.spec.provider == name && status.is_some_and(|s| !s.orders.is_empty() && s.phase != MachinePhase::Gone)
        };
        let machines = self.ctx.caches.rented.all();
        let ours: Vec<&str> = machines
            .iter()
            .filter(|m| lives(m))
            .filter_map(|m| m.status.as_ref().and_then(|s| s.machine_id.as_deref()))
            .collect();
        if !machines.iter().any(|m| lives(m)) {
            return Ok(());
        }
        // A key that is refused says nothing about the owner; the looks that follow tell of it.
        let Ok(info) = handle.account().await else { return Ok(()) };
        let list = match (old, &info.id) {
            (Some(_), Some(_)) => Ok(Vec::new()),
            // Where the market tells no account, one machine of ours in its list is the proof.
            _ => handle.list_owned().await,
        };
        let listed = list.map(|list| list.iter().any(|m| ours.contains(&m.id.as_str())));
        let Some(message) = other_owner(old.map(String::as_str), info.id.as_deref(), ours.len(), listed) else {
            return Ok(());
        };
        let message = format!("{message}; give the old key back, or wait until they are gone");
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
        } else if let Some(message) = account.ailment() {
            let ready = provider.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == READY);
            let known = ready.filter(|c| c.status == "False" && c.reason != Reason::Deleting.as_str());
            let word = known.and_then(|c| Reason::from_word(&c.reason));
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
        if due || account.ailment().is_some() {
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

    /// Jobs look at these machines again.
    fn wake_jobs_of(&self, uids: &[String]) {
        for machine in self.ctx.caches.rented.all() {
            if machine.metadata.uid.as_ref().is_some_and(|uid| uids.contains(uid)) {
                let job = &machine.spec.job;
                let key = Key::namespaced(job.namespace.as_str(), job.name.as_str());
                self.ctx.ask(crate::controllers::training_job::NAME, key);
            }
        }
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
        let machines = ctx.caches.rented.all();
        let here = || machines.iter().map(|m| &**m).filter(|m| m.spec.provider == name);
        let burst = self.losses_at_once(provider, account, here().collect(), &mut status);
        let mut health = health;
        if let Some(pause) = account.and_then(Account::pause).filter(|_| health.ready) {
            health = Health { ready: false, reason: Reason::LossesAtOnce, message: pause };
        }
        let Health { ready, reason, message } = health;
        set_condition(&mut status.conditions, ctx.clock.now(), generation, READY, Some(ready), reason, message);
        let alive = here()
            .filter(|m| m.status.as_ref().is_some_and(|s| s.rented_at.is_some() && s.phase != MachinePhase::Gone));
        status.machines = i64::try_from(alive.count()).unwrap_or(i64::MAX);
        status.committed_per_hour = ledger::committed(here(), name, "");
        let booked = self.keep_books(name, &machines, &mut status).await?;
        if let Some(account) = account {
            status.key_mark = Some(self.key_mark(&account.fingerprint));
        }
        if let Some((info, _)) = account.and_then(Account::info) {
            if old.account.is_some() && old.account != info.id {
                audit::account_changed(&mut status.audit);
            }
            status.account = info.id;
            let moved = match (status.credit, info.credit) {
                (Some(old), Some(new)) => (new.micros() - old.micros()).abs() >= CREDIT_STEP,
                (old, new) => old != new,
            };
            if moved {
                status.credit = info.credit;
            }
        }
        let ask_booked = || booked.into_iter().for_each(|machine| ctx.ask(rented_machine::NAME, machine));
        if status == old {
            ask_booked();
            return Ok(());
        }
        let mut next = provider.clone();
        next.status = Some(status);
        let written = ctx.cluster.write_status(next).await?;
        ctx.caches.providers.own(&written);
        ask_booked();
        if let Some(message) = burst {
            let about = reference(Provider::KIND, provider);
            ctx.tell(&about, Severity::Warning, Reason::LossesAtOnce, "Look", message).await;
        }
        if ready {
            ctx.wake_waiting_jobs();
        }
        Ok(())
    }
}

impl Providers {
    /// Puts machines whose cost is final into the books and forgets those whose objects are gone. Gives back the keys of those in the books:
    /// they wait for that.
    async fn keep_books(
        &self,
        name: &str,
        known: &[Arc<RentedMachine>],
        status: &mut ProviderStatus,
    ) -> Result<Vec<Key>, Failure> {
        let ctx = &self.ctx;
        let is = |machine: &RentedMachine, uid: &String| machine.metadata.uid.as_ref() == Some(uid);
        let due = |m: &RentedMachine, status: &ProviderStatus| {
            let uid = m.metadata.uid.as_deref().unwrap_or_default();
            m.spec.provider == name && books::is_final(m) && !books::has(&status.spend, uid)
        };
        let to_book = known.iter().any(|m| due(m, status));
        let to_forget = status.spend.booked.iter().any(|uid| !known.iter().any(|m| is(m, uid)));
        if to_book || to_forget {
            // As they are, not as the watch tells them: one that the watch still shows may be booked, gone and forgotten, and one that it does
            // not show yet may be there. Read after the Provider, whose write fails if somebody else has kept the books since.
            let machines = ctx.cluster.read_all::<RentedMachine>(None, &Selector::everything()).await?;
            for machine in machines.iter().filter(|m| m.spec.provider == name && books::is_final(m)) {
                if !books::has(&status.spend, machine.metadata.uid.as_deref().unwrap_or_default()) {
                    audit::await_bill(&mut status.audit, machine);
                }
                books::book(&mut status.spend, machine, ctx.clock.now());
            }
            status.spend.booked.retain(|uid| machines.iter().any(|m| is(m, uid)));
        }
        let booked = known.iter().filter(|m| status.spend.booked.iter().any(|uid| is(m, uid)));
        Ok(booked.map(|m| Key::of(&**m)).collect())
    }

    /// Pauses renting when many machines were lost at once; what to tell of it when that is news.
    fn losses_at_once(
        &self,
        provider: &Provider,
        account: Option<&Account>,
        machines: Vec<&RentedMachine>,
        status: &mut ProviderStatus,
    ) -> Option<String> {
        let ctx = &self.ctx;
        let (now, poll) = (ctx.clock.now(), ctx.settings.account_poll);
        let generation = provider.metadata.generation.unwrap_or(0);
        let name = provider.metadata.name.clone().unwrap_or_default();
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let burst = losses.entry(name).or_default().look(machines, ctx.clock.monotonic(), poll);
        let conditions = &mut status.conditions;
        let paused = losses::paused_until(conditions, poll, now).is_some();
        let told = condition(conditions, LOSSES_AT_ONCE).filter(|c| c.status == "True").map(|c| c.message.clone());
        let mut news = None;
        let pause = match (burst, told) {
            (_, Some(message)) if paused => Some(message),
            (Some(burst), told) => {
                // A pause that is over just now ends first, so that the next one has a beginning of its own.
                if told.is_some() {
                    conditions.retain(|c| c.type_ != LOSSES_AT_ONCE);
                }
                let message = losses::sentence(burst, poll, losses::end(now, poll));
                let reason = Reason::LossesAtOnce;
                set_condition(conditions, now, generation, LOSSES_AT_ONCE, Some(true), reason, message.clone());
                news = Some(message.clone());
                Some(message)
            }
            (None, told) => {
                if told.is_some() {
                    let message = "machines are rented again";
                    let reason = Reason::AccountReady;
                    set_condition(conditions, now, generation, LOSSES_AT_ONCE, Some(false), reason, message);
                }
                None
            }
        };
        if let Some(account) = account {
            account.set_pause(pause);
        }
        news
    }
}

/// Why a new key is not taken while machines live that were rented by the one before; `None` = it is of the same account, as far as can be
/// told. `ours`: machines rented so far; `listed`: whether the new key's list shows one of them.
fn other_owner(
    old: Option<&str>,
    new: Option<&str>,
    ours: usize,
    listed: Result<bool, ProviderError>,
) -> Option<String> {
    match (old, new, listed) {
        (Some(old), Some(new), _) if old == new => None,
        (Some(old), Some(new), _) => {
            Some(format!("the key belongs to account {new}, but machines of account {old} are not gone yet"))
        }
        (_, _, Ok(shown)) if shown || ours == 0 => None,
        (_, _, Ok(_)) => Some(format!("the key shows none of the {ours} machines that are rented on this account")),
        (_, _, Err(error)) => Some(format!("whether the key is of the same account cannot be seen now ({error})")),
    }
}

/// The key as it was meant: files made with an editor end in a newline, and values copied from a shell bring their quotes along. No market's key
/// has either. `None` = nothing is left.
fn key_in(value: &SecretString) -> Option<SecretString> {
    let mut key = value.expose_secret().trim();
    for quote in ['"', '\''] {
        key = key.strip_prefix(quote).and_then(|key| key.strip_suffix(quote)).unwrap_or(key).trim();
    }
    (!key.is_empty()).then(|| SecretString::from(key.to_owned()))
}

/// Tells handles of different kinds and keys apart, without telling the key.
fn fingerprint(provider: &Provider, key: &SecretString) -> String {
    let digest = Sha256::digest(key.expose_secret().as_bytes());
    format!("{:?} {digest:x?}", provider.spec.kind)
}

fn unwell(error: &ProviderError) -> Health {
    let (reason, next) = match error {
        ProviderError::Unauthorised { .. } => (
            Reason::KeyRefused,
            "nothing new is rented until its Secret has a key that is taken, and what runs goes on",
        ),
        _ => (Reason::ProviderUnavailable, "it is tried again, and nothing new is rented meanwhile"),
    };
    Health { ready: false, reason, message: format!("{error}; {next}") }
}

impl Reconciler for Providers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_as_it_was_meant() {
        for (value, key) in [
            ("abc", Some("abc")),
            ("abc\n", Some("abc")),
            (" abc\r\n", Some("abc")),
            ("\"abc\"", Some("abc")),
            ("'abc'\n", Some("abc")),
            ("ab\"c", Some("ab\"c")),
            ("\n", None),
            ("\"\"", None),
        ] {
            let found = key_in(&SecretString::from(value.to_owned()));
            assert_eq!(found.as_ref().map(|key| key.expose_secret().to_owned()).as_deref(), key, "{value:?}");
        }
    }

    #[test]
    fn a_key_of_another_account_is_not_taken_while_machines_live() {
        let unread = || Err(ProviderError::RateLimited { provider: "vast", retry_after: None });
        for (what, old, new, ours, listed, says) in [
            ("the same account", Some("1"), Some("1"), 2, Ok(false), None),
            ("another one", Some("1"), Some("2"), 2, Ok(true), Some("belongs to account 2, but machines of account 1")),
            ("no ids, and its list shows ours", None, None, 2, Ok(true), None),
            ("no ids, and its list shows none", None, None, 2, Ok(false), Some("shows none of the 2 machines")),
            ("no ids, and nothing to be shown yet", None, None, 0, Ok(false), None),
            ("no ids, and no list", None, None, 2, unread(), Some("cannot be seen now")),
        ] {
            let found = other_owner(old, new, ours, listed);
            assert_eq!(found.is_some(), says.is_some(), "{what}: {found:?}");
            assert!(found.unwrap_or_default().contains(says.unwrap_or_default()), "{what}");
        }
    }
}
