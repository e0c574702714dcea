//! What is left of markets and limits when everybody who is about to rent is counted. Claims cost nothing, but a job that claims what
//! another one has claimed only waits in the wrong queue: it could have another offer, or an offer of another account.
//!
//! This is a preview. What may be spent is decided by the ledger, under its lock, when an order is written.

use std::collections::{BTreeMap, BTreeSet};

use tradewind_core::{Money, Offer};

use crate::accounts::ledger;
use crate::context::Context;

/// What other jobs' machines and plans take.
#[derive(Debug, Default)]
pub struct Room {
    /// Dollars an hour by Provider.
    promised: BTreeMap<String, Money>,
    /// Offers by Provider and id.
    taken: BTreeSet<(String, String)>,
}

impl Room {
    /// As it is for the job with this uid. `leaves`: its own machine ends before it rents another, so what that takes is free again.
    pub fn besides(ctx: &Context, job: &str, leaves: bool) -> Self {
        let mut room = Self::default();
        let mut claimed = BTreeSet::new();
        for machine in ctx.caches.rented.all() {
            let own = machine.spec.job.uid == job;
            if own && leaves {
                continue;
            }
            let (provider, promised) = (&machine.spec.provider, ledger::promised(&machine));
            *room.promised.entry(provider.clone()).or_default() += promised;
            if let Some(offer) = ledger::wanted(&machine).filter(|_| !own) {
                room.taken.insert((provider.clone(), offer.id.clone()));
                claimed.insert(machine.spec.job.uid.clone());
            }
        }
        for (uid, plan) in ctx.market.spoken_for(ctx.clock.monotonic()) {
            if uid != job && !claimed.contains(&uid) {
                *room.promised.entry(plan.provider.clone()).or_default() += plan.per_hour;
                room.taken.insert((plan.provider, plan.offer));
            }
        }
        room
    }

    /// Whether somebody else is about to rent it. A market that names the host sells this very machine; others have more of the kind.
    pub fn is_taken(&self, offer: &Offer) -> bool {
        !offer.host.is_empty() && self.taken.contains(&(offer.provider.clone(), offer.id.clone()))
    }

    /// Whether something that costs so much an hour fits under this limit of the Provider.
    pub fn has(&self, provider: &str, limit: Money, per_hour: Money) -> bool {
        self.promised.get(provider).copied().unwrap_or_default() + per_hour <= limit
    }
}
