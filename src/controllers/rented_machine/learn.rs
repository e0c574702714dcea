//! What the market's memory learns from the end of a machine: how long spot machines live, and which hosts to leave out.

use std::time::Duration;

use jiff::Timestamp;
use tradewind_api::{Reason, RentedMachine, RentedMachineStatus};
use tradewind_core::{Capacity, Offer};
use tradewind_planner::{DEFAULT_IMAGE_MB, transfer_s};

use super::decide::{Observed, rented_offer};
use super::memory::MachineMemory;
use super::verdict::QUICK;
use crate::context::Context;
use crate::events::Severity;
use crate::market::host_of;

/// Remembers an end, once for each machine and process.
pub fn from_end(ctx: &Context, observed: &Observed, status: &RentedMachineStatus) {
    let Some(offer) = rented_offer(observed, status) else { return };
    ctx.keep_market();
    let ended = status.ended.as_deref().unwrap_or_default();
    let is = |reason: Reason| ended == reason.as_str();
    let now = ctx.clock.monotonic();
    let lost = is(Reason::Preempted);
    if let Some(seconds) = spot_life_s(offer, status, lost, observed.now) {
        let (provider, gpu) = (&offer.provider, offer.gpu.clone());
        ctx.market.age_lives(ctx.clock.now());
        if lost {
            ctx.market.lived(provider, gpu, seconds);
        } else {
            ctx.market.outlasted(provider, gpu, seconds, now);
        }
    }
    if lost && offer.capacity == Capacity::Spot {
        // Offers that were read before the loss still show the old price: only newer ones count.
        let until = now + ctx.settings.offers_max_age;
        ctx.market.refuse(&offer.provider, &offer.id, until, "lost a moment ago".to_owned());
    }
    // Not one that was stopped because its account's limit was lowered.
    if is(Reason::LimitReached) && observed.spec.stop.is_none() {
        let until = now + ctx.settings.refusal_memory;
        ctx.market.refuse(&offer.provider, &offer.id, until, "dearer than it was offered".to_owned());
    }
    if is(Reason::HostUnfit) || is(Reason::AgentNotStarted) || is(Reason::BootFailed) || is(Reason::AgentFailed) {
        let until = now + ctx.settings.refusal_memory * 4;
        if !offer.host.is_empty() {
            ctx.market.ban(&offer.provider, &offer.host, until, format!("its host was unfit lately ({ended})"));
        }
        // Where the market names no host, the offer is a pool of many: one bad host, or a bad image, says little of it.
        let until = if offer.host.is_empty() { now + ctx.settings.offers_max_age } else { until };
        ctx.market.refuse(&offer.provider, &offer.id, until, format!("unfit lately ({ended})"));
    }
    if status.quick_failure {
        let why = "a program failed there within minutes of its start".to_owned();
        ctx.market.suspect(offer, now + suspicion(ctx), why);
    }
}

/// Seconds that a spot machine has lived at its end. Only the loss of one that never ran says anything of how long they live.
fn spot_life_s(offer: &Offer, status: &RentedMachineStatus, lost: bool, now: Timestamp) -> Option<u64> {
    let rented = status.rented_at.as_ref().map_or(now, |t| t.0);
    let since = match status.running_since.as_ref() {
        _ if offer.capacity != Capacity::Spot => None,
        None if lost => Some(rented),
        since => since.map(|t| t.0),
    };
    Some(u64::try_from(now.duration_since(since?).as_secs()).unwrap_or(0))
}

/// Twice as long as an offer that was refused: the fault may as well be the program's, so the host is only left out while others fit.
fn suspicion(ctx: &Context) -> Duration {
    ctx.settings.refusal_memory * 2
}

/// Remembers a host on which a program works: it has saved a checkpoint, has come to a good end, or has run for longer than what fails
/// at once.
pub fn from_life(ctx: &Context, observed: &Observed, status: &RentedMachineStatus, memory: &mut MachineMemory) {
    if memory.proven {
        return;
    }
    let Some(offer) = rented_offer(observed, status) else { return };
    let heard = observed.served.as_ref().and_then(|served| served.heard_at);
    let ran = status.exit_code.is_none()
        && status.ended.is_none()
        && heard.zip(status.program_since.as_ref()).is_some_and(|(heard, since)| {
            Duration::try_from(heard.duration_since(since.0)).is_ok_and(|ran| ran > QUICK)
        });
    if ran || status.checkpoint.is_some() || status.exit_code == Some(0) {
        memory.proven = true;
        ctx.market.prove(offer, ctx.clock.monotonic());
        if let Some(seconds) = set_up_s(observed, status, offer) {
            ctx.market.set_up(&offer.provider, offer.gpu.clone(), seconds, ctx.clock.monotonic());
        }
        ctx.keep_market();
    }
}

/// Seconds from the rent call until the machine ran, without what its image's download should have taken.
fn set_up_s(observed: &Observed, status: &RentedMachineStatus, offer: &Offer) -> Option<u64> {
    let (rented, runs) = (status.rented_at.as_ref()?.0, status.running_since.as_ref()?.0);
    let took = u64::try_from(runs.duration_since(rented).as_secs()).ok()?;
    let image_mb =
        observed.spec.image_bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(|bytes| bytes.div_ceil(1_000_000));
    Some(took.saturating_sub(transfer_s(image_mb.unwrap_or(DEFAULT_IMAGE_MB), offer.download_mbps)))
}

/// An Event of the job about a host that is suspected from now on.
pub async fn tell_suspicion(ctx: &Context, observed: &Observed, status: &RentedMachineStatus, machine: &RentedMachine) {
    let Some(offer) = rented_offer(observed, status).filter(|_| status.quick_failure) else { return };
    let minutes = suspicion(ctx).as_secs().div_ceil(60);
    let host = if offer.host.is_empty() { host_of(offer) } else { format!("host {}", offer.host) };
    let note = format!(
        "{} within minutes of its start on {host} of {}, where no program of ours has worked before; other hosts are preferred for {minutes} min",
        status.ended_message.as_deref().unwrap_or_default(),
        offer.provider
    );
    ctx.tell(&super::job_reference(machine), Severity::Warning, Reason::HostSuspected, "Run", note).await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::test_machine;

    #[test]
    fn a_spot_machine_that_ends_well_has_lived_too() {
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let spot = test_machine::offer("1");
        let kept = Offer { capacity: Capacity::OnDemand, ..spot.clone() };
        let ran = json!({"rentedAt": "2026-11-22T10:50:00.000000Z", "runningSince": "2026-11-22T11:00:00.000000Z"});
        let never = json!({"rentedAt": "2026-11-22T11:50:00.000000Z"});
        let life = |offer: &Offer, status: &Value, lost| {
            let status = test_machine::machine("m", status).status.unwrap();
            spot_life_s(offer, &status, lost, now)
        };
        assert_eq!(life(&spot, &ran, false), Some(3600));
        assert_eq!(life(&spot, &ran, true), Some(3600));
        assert_eq!(life(&spot, &never, true), Some(600), "taken back before it ran");
        assert_eq!(life(&spot, &never, false), None, "what never ran was in nobody's way");
        assert_eq!(
            (life(&kept, &ran, false), life(&kept, &ran, true)),
            (None, None),
            "only spot machines are taken back"
        );
    }
}
