//! The account can be reached while anything is rented on it, and its books hold each machine once.

use k8s_openapi::api::core::v1::Secret;
use tradewind_api::rented_machine::MachinePhase;
use tradewind_api::{Provider, names};
use tradewind_cluster::Key;
use tradewind_core::Money;

use super::super::cluster::account_secret;
use super::super::ports::ACCOUNT;
use super::super::wire::Common;
use super::Checker;

impl Checker {
    /// An order is written: neither Provider nor key can vanish under the machine.
    pub(super) fn account_is_held(&mut self, common: &Common, name: &str) {
        let provider = common.memory.peek::<Provider>(&Key::cluster(ACCOUNT));
        let held =
            provider.is_some_and(|p| p.metadata.finalizers.iter().flatten().any(|f| f == names::PROVIDER_FINALIZER));
        self.ensure(held, || format!("{name}: an order although our finaliser is not on the Provider"));
        let secret = common.memory.peek::<Secret>(&account_secret());
        let finalizer = names::secret_finalizer(ACCOUNT);
        let held = secret.is_some_and(|s| s.metadata.finalizers.iter().flatten().any(|f| *f == finalizer));
        self.ensure(held, || format!("{name}: an order although our finaliser is not on the Secret"));
    }

    /// A machine is paid for: it can be ended.
    pub(super) fn account_is_there(&mut self, common: &Common, id: u64) {
        let provider = common.memory.peek::<Provider>(&Key::cluster(ACCOUNT)).is_some();
        let secret = common.memory.peek::<Secret>(&account_secret()).is_some();
        self.ensure(provider, || format!("machine {id} is paid for, but its Provider is gone"));
        self.ensure(secret, || format!("machine {id} is paid for, but the Secret with the account's key is gone"));
    }

    /// The books never hold more than the final costs of machines that are gone.
    pub(super) fn look_at_provider(&mut self, common: &Common) {
        let Some(provider) = common.memory.peek::<Provider>(&Key::cluster(ACCOUNT)) else { return };
        let Some(status) = provider.status.as_ref().filter(|s| !s.spend.is_empty()) else { return };
        let (booked, costs) = (booked(status), self.all_final_costs());
        self.ensure(booked <= costs, || {
            format!("the Provider's books say {booked}, its machines that are gone cost {costs}")
        });
    }

    /// At the end: nothing hangs in its deletion, and each machine is in the books.
    pub(super) fn provider_is_settled(&mut self, common: &Common) {
        let Some(provider) = common.memory.peek::<Provider>(&Key::cluster(ACCOUNT)) else {
            self.fail("at the end there is no Provider");
            return;
        };
        self.ensure(provider.metadata.deletion_timestamp.is_none(), || {
            "at the end the Provider hangs in its deletion".into()
        });
        let secret = common.memory.peek::<Secret>(&account_secret());
        let there = secret.is_some_and(|s| s.metadata.deletion_timestamp.is_none());
        self.ensure(there, || "at the end the Secret is gone or hangs in its deletion".to_owned());
        let (booked, costs) = (provider.status.as_ref().map(booked).unwrap_or_default(), self.all_final_costs());
        self.ensure(booked == costs || self.books_closed, || {
            format!("at the end the Provider's books say {booked}, its machines cost {costs}")
        });
        let audit = provider.status.as_ref().map(|s| s.audit.clone()).unwrap_or_default();
        let compared = if audit.unchecked == 0 { audit.ours == booked } else { audit.ours <= booked };
        self.ensure(compared || self.books_closed, || {
            format!("at the end machines of {} were compared with the bill, the books say {booked}", audit.ours)
        });
        let left = provider.status.as_ref().map(|s| s.spend.booked.clone()).unwrap_or_default();
        self.ensure(left.is_empty(), || format!("at the end the books still name {left:?}"));
    }

    fn all_final_costs(&self) -> Money {
        let statuses = self.rentals.values().filter(|r| r.forgotten.is_none()).filter_map(|r| r.object.status.as_ref());
        statuses.filter(|s| s.phase == MachinePhase::Gone && s.rented_at.is_some()).filter_map(|s| s.cost).sum()
    }
}

fn booked(status: &tradewind_api::ProviderStatus) -> Money {
    status.spend.days.iter().map(|spent| spent.dollars).sum()
}
