//! What the market's memory learns from the end of a machine: how long spot machines live, and which hosts to leave out.

use tradewind_api::{Reason, RentedMachineStatus};
use tradewind_core::Capacity;

use super::decide::{Observed, rented_offer};
use crate::context::Context;

/// Remembers an end, once for each machine and process.
pub fn from_end(ctx: &Context, observed: &Observed, status: &RentedMachineStatus) {
    let Some(offer) = rented_offer(observed, status) else { return };
    let ended = status.ended.as_deref().unwrap_or_default();
    let is = |reason: Reason| ended == reason.as_str();
    let now = ctx.clock.monotonic();
    if is(Reason::Preempted) && offer.capacity == Capacity::Spot {
        let since = status.running_since.as_ref().or(status.rented_at.as_ref()).map_or(observed.now, |t| t.0);
        let lived = u64::try_from(observed.now.duration_since(since).as_secs()).unwrap_or(0);
        ctx.market.lived(&offer.provider, offer.gpu.clone(), lived);
        // Offers that were read before the loss still show the old price: only newer ones count.
        let until = now + ctx.settings.offers_max_age;
        ctx.market.refuse(&offer.provider, &offer.id, until, "lost a moment ago".to_owned());
    }
    // Not one that was stopped because its account's limit was lowered.
    if is(Reason::LimitReached) && observed.spec.stop.is_none() {
        let until = now + ctx.settings.refusal_memory;
        ctx.market.refuse(&offer.provider, &offer.id, until, "dearer than it was offered".to_owned());
    }
    if is(Reason::AgentNotStarted) || is(Reason::BootFailed) || is(Reason::AgentFailed) {
        let until = now + ctx.settings.refusal_memory * 4;
        if !offer.host.is_empty() {
            ctx.market.ban(&offer.provider, &offer.host, until, format!("its host was unfit lately ({ended})"));
        }
        // Where the market names no host, the offer is a pool of many: one bad host, or a bad image, says little of it.
        let until = if offer.host.is_empty() { now + ctx.settings.offers_max_age } else { until };
        ctx.market.refuse(&offer.provider, &offer.id, until, format!("unfit lately ({ended})"));
    }
}
