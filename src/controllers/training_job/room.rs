//! What is left of markets and limits when everybody who is about to rent is counted. Claims cost nothing, but a job that claims what
//! another one has claimed only waits in the wrong queue: it could have another offer, or an offer of another account.
//!
//! This is a preview. What may be spent is decided by the ledger, under its lock, when an order is written.

use std::collections::{BTreeMap, BTreeSet};

use tradewind_core::{Money, Offer};

use crate::accounts::ledger;
use crate::context::Context;
use crate::market::Spoken;

/// What other jobs' machines and plans take.
#[derive(Debug, Default)]
pub struct Room {
    /// Dollars an hour by Provider.
    promised: BTreeMap<String, Money>,
    /// What the job's own machines take, where they end before it rents another, in dollars an hour by Provider.
    freed: BTreeMap<String, Money>,
    /// Offers by Provider and id.
    taken: BTreeSet<(String, String)>,
}

impl Room {
    /// As it is for the job with this uid. `leaves`: its own machine ends before it rents another, so what that takes is free again.
    pub fn besides(ctx: &Context, job: &str, leaves: bool) -> Self {
        let mut room = Self::default();
        // A job whose machine has what it had chosen needs no word for it.
        let mut claimed = BTreeSet::new();
        for machine in ctx.caches.rented.all() {
            let own = machine.spec.job.uid == job;
            let (provider, promised) = (&machine.spec.provider, ledger::promised(&machine));
            if own && leaves {
                *room.freed.entry(provider.clone()).or_default() += promised;
                continue;
            }
            *room.promised.entry(provider.clone()).or_default() += promised;
            if let Some(offer) = ledger::wanted(&machine).filter(|_| !own) {
                room.taken.insert((provider.clone(), offer.id.clone()));
                let offers = machine.spec.offers.iter().map(|offer| offer.id.clone());
                claimed.extend(offers.map(|offer| (machine.spec.job.uid.clone(), provider.clone(), offer)));
            }
        }
        for (uid, plan) in ctx.market.spoken_for(ctx.clock.monotonic()) {
            let Spoken { provider, offer, per_hour } = plan;
            let choice = (uid, provider, offer);
            if choice.0 != job && !claimed.contains(&choice) {
                *room.promised.entry(choice.1.clone()).or_default() += per_hour;
                room.taken.insert((choice.1, choice.2));
            }
        }
        room
    }

    /// Whether somebody else is about to rent it. A market that names the host sells this very machine; others have more of the kind.
    pub fn is_taken(&self, offer: &Offer) -> bool {
        !offer.host.is_empty() && self.taken.contains(&(offer.provider.clone(), offer.id.clone()))
    }

    /// What the job's own machines of this Provider give up, in dollars an hour.
    pub fn freed(&self, provider: &str) -> Money {
        self.freed.get(provider).copied().unwrap_or_default()
    }

    /// Whether something that costs so much an hour fits under this limit of the Provider.
    pub fn has(&self, provider: &str, limit: Money, per_hour: Money) -> bool {
        self.promised.get(provider).copied().unwrap_or_default() + per_hour <= limit
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;
    use tradewind_checkpoints::MemoryStore;
    use tradewind_cluster::{Memory, cache};
    use tradewind_core::{Clock, ManualClock};

    use super::*;
    use crate::test_context::context;
    use crate::test_machine;

    #[test]
    fn a_job_that_moves_keeps_its_next_machine_while_its_own_one_ends() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH, 1));
        let cluster = Arc::new(Memory::new(Arc::clone(&clock)));
        let ctx = context(Arc::clone(&clock), &MemoryStore::new(clock), cluster);
        // The job `u` has the offer 1, and goes to 2.
        let orders = json!([{"key": "k", "offer": 0, "at": "2026-11-22T10:00:00.000000Z", "outcome": "Rented"}]);
        let machine = test_machine::machine("m", &json!({"phase": "Ready", "orders": orders}));
        ctx.caches.rented.lock().apply(cache::Event::Relist(vec![Arc::new(machine)]));
        let dollars = |text: &str| text.parse::<Money>().unwrap();
        let next = Spoken { provider: "p".to_owned(), offer: "2".to_owned(), per_hour: dollars("0.5") };
        ctx.market.speak_for("u", next, Duration::from_secs(40));
        let host = |id: &str| Offer { host: "h".to_owned(), ..test_machine::offer(id) };

        let others = Room::besides(&ctx, "other", false);
        assert!(others.is_taken(&host("1")) && others.is_taken(&host("2")));
        assert!(others.has("p", dollars("2"), dollars("0.5")) && !others.has("p", dollars("2"), dollars("0.6")));
        let own = Room::besides(&ctx, "u", true);
        assert!(!own.is_taken(&host("1")) && !own.is_taken(&host("2")));
        assert_eq!(own.freed("p"), dollars("1"));
        assert!(own.has("p", dollars("2"), dollars("2")), "its own machine ends first");

        // Once its machine is the one that it spoke for, that counts once.
        let same = Spoken { provider: "p".to_owned(), offer: "1".to_owned(), per_hour: dollars("1") };
        ctx.market.speak_for("u", same, Duration::from_secs(40));
        assert!(Room::besides(&ctx, "other", false).has("p", dollars("2"), dollars("1")));
    }
}
