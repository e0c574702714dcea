//! Rental accounts: the handle of each Provider, what was last seen on it, and its serial ledger.

pub mod access;
pub mod audit;
pub mod books;
pub mod ledger;
pub mod overrun;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tradewind_api::provider::ProviderKind;
use tradewind_core::SecretString;
use tradewind_providers::{Account as AccountInfo, GpuProvider, Machine};

/// Builds the handle of an account. Production builds the real adapters; the world simulation hands out its market.
pub trait OpenAccount: Send + Sync {
    /// A handle for the account of the Provider `name` with this key. Errors are sentences for the Provider's condition.
    fn open(&self, name: &str, kind: ProviderKind, key: &SecretString) -> Result<Arc<dyn GpuProvider>, String>;
}

/// A complete list of an account's assets.
#[derive(Debug, Clone)]
pub struct Sightings {
    /// Monotonic time at which the list was asked for: what was rented before and is not in it is invisible or gone.
    pub asked_at: Duration,
    /// Monotonic time of the complete list before this one.
    pub before: Option<Duration>,
    /// All assets.
    pub machines: Arc<Vec<Machine>>,
}

/// One account.
pub struct Account {
    /// Name of the Provider.
    pub name: String,
    /// The handle.
    pub provider: Arc<dyn GpuProvider>,
    /// Which credentials it was built from; another fingerprint means a new handle.
    pub fingerprint: String,
    /// Held while an order is admitted and written: one at a time.
    pub ledger: futures::lock::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sightings: Option<Sightings>,
    passes: u64,
    info: Option<AccountInfo>,
    info_at: Option<Duration>,
    trouble: Option<String>,
    /// Why the key is not safely in our hands: nothing is rented that could not be ended.
    unheld: Option<String>,
    pause: Option<String>,
    /// The Secret with the key is being deleted.
    closing: bool,
    looked_at: Option<Duration>,
    look_wanted: bool,
    /// Machines that must stop, by uid, and the limit that they pass.
    overrun: BTreeMap<String, String>,
}

impl Account {
    /// An account that has not been looked at yet.
    pub fn new(name: &str, fingerprint: String, provider: Arc<dyn GpuProvider>) -> Self {
        Self {
            name: name.to_owned(),
            provider,
            fingerprint,
            ledger: futures::lock::Mutex::new(()),
            state: Mutex::new(State {
                unheld: Some("the account has not been looked at yet".to_owned()),
                ..State::default()
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest complete list.
    pub fn sightings(&self) -> Option<Sightings> {
        self.state().sightings.clone()
    }

    /// Remembers a complete list that was asked for at `asked_at`.
    pub fn saw(&self, asked_at: Duration, machines: Vec<Machine>) {
        let mut state = self.state();
        let before = state.sightings.as_ref().map(|s| s.asked_at);
        state.sightings = Some(Sightings { asked_at, before, machines: Arc::new(machines) });
        state.passes += 1;
    }

    /// Number of complete lists so far.
    pub fn passes(&self) -> u64 {
        self.state().passes
    }

    /// Identity and credit as last told, and when.
    pub fn info(&self) -> Option<(AccountInfo, Duration)> {
        let state = self.state();
        state.info.clone().zip(state.info_at)
    }

    /// Remembers identity and credit.
    pub fn know(&self, info: AccountInfo, at: Duration) {
        let mut state = self.state();
        state.info = Some(info);
        state.info_at = Some(at);
    }

    /// Asks for a list before the next one is due.
    pub fn want_look(&self) {
        self.state().look_wanted = true;
    }

    /// How long until the next look is due, when one is made every `poll`.
    pub fn look_due_in(&self, now: Duration, poll: Duration) -> Duration {
        let state = self.state();
        let age = state.looked_at.filter(|_| !state.look_wanted).map(|at| now.saturating_sub(at));
        age.map_or(Duration::ZERO, |age| poll.saturating_sub(age))
    }

    /// Says that a look begins, whatever comes of it.
    pub fn look_begins(&self, now: Duration) {
        let mut state = self.state();
        state.looked_at = Some(now);
        state.look_wanted = false;
    }

    /// Why nothing should be rented on this account now.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state();
        let closing = state.unheld.as_ref().filter(|_| state.closing);
        closing.or(state.trouble.as_ref()).or(state.unheld.as_ref()).or(state.pause.as_ref()).cloned()
    }

    /// What is wrong with the account itself.
    pub fn ailment(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    /// Says whether Provider and Secret are held, so that what is rented can be ended; if not, why.
    pub fn set_unheld(&self, why: Option<String>, closing: bool) {
        let mut state = self.state();
        state.unheld = why;
        state.closing = closing;
    }

    /// The Secret with the key is being deleted: claims are given up.
    pub fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Why nothing is rented for a while.
    pub fn pause(&self) -> Option<String> {
        self.state().pause.clone()
    }

    /// Rents nothing for a while, or does again.
    pub fn set_pause(&self, why: Option<String>) {
        self.state().pause = why;
    }

    /// The limit that a machine passes by running on, as of the last look.
    pub fn overrun(&self, uid: &str) -> Option<String> {
        self.state().overrun.get(uid).cloned()
    }

    /// Sets which machines must stop, by uid, and why. True if that is news.
    pub fn set_overrun(&self, overrun: BTreeMap<String, String>) -> bool {
        let mut state = self.state();
        let news = state.overrun.keys().ne(overrun.keys());
        state.overrun = overrun;
        news
    }

    /// Sets or clears what is wrong with the account itself.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.state().trouble = trouble;
    }
}

/// All accounts by Provider name.
#[derive(Default)]
pub struct Accounts {
    accounts: Mutex<BTreeMap<String, Arc<Account>>>,
}

impl Accounts {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of this Provider.
    pub fn get(&self, name: &str) -> Option<Arc<Account>> {
        self.lock().get(name).cloned()
    }

    /// All accounts, by name.
    pub fn all(&self) -> Vec<Arc<Account>> {
        self.lock().values().cloned().collect()
    }

    /// Forgets the account of this Provider.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Puts an account in place.
    pub fn put(&self, account: Account) -> Arc<Account> {
        let account = Arc::new(account);
        self.lock().insert(account.name.clone(), Arc::clone(&account));
        account
    }
}
