//! Looking at the provider's own bill, some time after machines have ended.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::SignedDuration;
use tradewind_api::{Provider, Reason};
use tradewind_cluster::{Key, Typed};

use super::Providers;
use crate::accounts::Account;
use crate::accounts::audit::{self, Pace};
use crate::events::{Severity, reference};
use crate::runtime::Failure;

/// What this process remembers of its looks at one account's bill. A restart looks a few times more.
#[derive(Debug, Default, Clone)]
pub struct Looks {
    /// Not before (monotonic).
    next: Duration,
    /// Looks in vain in a row.
    vain: u32,
    /// Looks at each machine's bill.
    by_machine: BTreeMap<String, u32>,
}

/// The pause doubles with each look in vain, this many times at most: then it is 16 times as long, four hours by default.
const DOUBLINGS: u32 = 4;

impl Providers {
    /// Compares the bills that are due. A bill that cannot be read is told in the log and looked at later; nothing hangs on it.
    pub(super) async fn audit(&self, key: &Key, account: &Account) -> Result<(), Failure> {
        let ctx = &self.ctx;
        let Some(provider) = ctx.caches.providers.get(key) else { return Ok(()) };
        let Some(status) = &provider.status else { return Ok(()) };
        let (now, monotonic) = (ctx.clock.now(), ctx.clock.monotonic());
        let after = SignedDuration::try_from(ctx.settings.audit_after).unwrap_or(SignedDuration::MAX);
        let pace = Pace { after, poll_s: ctx.settings.account_poll.as_secs() };
        let mut looks = self.bills().get(&key.name).cloned().unwrap_or_default();
        let Some(since) = audit::since(&status.audit, now, pace).filter(|_| looks.next <= monotonic) else {
            return Ok(());
        };
        let mut next = (*provider).clone();
        let audit = &mut next.status.get_or_insert_default().audit;
        let waiting = audit.pending.len();
        let mut told = Vec::new();
        match account.provider.charges(since).await {
            Ok(Some(charges)) => told = audit::compare(audit, &charges, now, pace, &mut looks.by_machine),
            // Nothing to compare with, now or later.
            Ok(None) => audit.pending.clear(),
            Err(error) => {
                tracing::info!(provider = key.name, reason = error.reason(), %error, "The provider's bill cannot be read; tried again");
                audit::give_up(audit, now);
            }
        }
        let settled = audit.pending.len() < waiting;
        looks.vain = if settled { 0 } else { looks.vain + 1 };
        looks.next = monotonic + ctx.settings.audit_after * (1 << looks.vain.min(DOUBLINGS));
        looks.by_machine.retain(|id, _| audit.pending.iter().any(|waits| waits.id == *id));
        if settled {
            let written = ctx.cluster.write_status(next).await?;
            ctx.caches.providers.own(&written);
        }
        self.bills().insert(key.name.clone(), looks);
        if let Some(note) = audit::sentence(&told) {
            let about = reference(Provider::KIND, &*provider);
            ctx.tell(&about, Severity::Warning, Reason::BillDiffers, "Audit", note).await;
        }
        Ok(())
    }

    fn bills(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Looks>> {
        self.bills.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
