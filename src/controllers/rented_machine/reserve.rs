//! The reserve of a budget: what a machine still costs after it is told to stop, for its last save and its end. Pure.

use tradewind_api::RentedMachine;
use tradewind_api::training_job::CheckpointStatus;
use tradewind_core::{Money, Offer};

use super::verdict::DRAIN_LIMIT;

/// At least: the agent hears of it within a poll (5 s), reports within 10 s, and its machine's end is asked for and seen; a minute is ample
/// where there is next to nothing to save.
const LEAST_S: u64 = 60;
/// A stop may come just as a save has begun: that one is finished, and the last one follows it.
const SAVES: u64 = 2;
/// Upload assumed for an offer that does not tell it, in Mbit/s: half of what plans assume for downloads.
const UPLOAD_MBPS: u64 = 100;

/// What is kept back of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Seconds at the machine's price.
    pub seconds: u64,
    /// Dollars for the bytes of the last save.
    pub traffic: Money,
}

impl Reserve {
    /// In dollars, on a machine of this price.
    pub fn dollars(self, price_per_hour: Money) -> Money {
        price_per_hour.for_seconds(self.seconds) + self.traffic
    }
}

/// The reserve for a machine: its program's grace and two saves as long as the newest one took. `newest`: the job's newest checkpoint, also one
/// of an earlier machine, which tells how much there is to save; how long it took there says nothing of this machine's network.
pub fn of(machine: &RentedMachine, newest: Option<&CheckpointStatus>) -> Reserve {
    let least = Reserve { seconds: LEAST_S, traffic: Money::ZERO };
    let own = machine.status.as_ref().and_then(|s| s.checkpoint.as_ref());
    let Some(save) = own.or(newest).filter(|_| machine.spec.checkpoint.is_some()) else { return least };
    let offer = offer(machine);
    let bytes = u64::try_from(save.bytes).unwrap_or(0);
    let measured = own.and_then(|own| own.took_seconds).and_then(|s| u64::try_from(s).ok());
    let one_save = measured.unwrap_or_else(|| {
        let told = offer.as_ref().map_or(0, |offer| offer.upload_mbps);
        let mbps = if told == 0 { UPLOAD_MBPS } else { told };
        bytes.saturating_mul(8).div_ceil(mbps.saturating_mul(1_000_000))
    });
    let grace = u64::try_from(machine.spec.workload.stop_grace_s).unwrap_or(0);
    // A machine that is told to stop gets no more time for its last save than this.
    let saves = one_save.saturating_mul(SAVES).min(DRAIN_LIMIT.as_secs());
    let seconds = grace.saturating_add(saves).max(LEAST_S);
    let megabytes = bytes.saturating_mul(SAVES).div_ceil(1_000_000);
    let traffic = offer.map_or(Money::ZERO, |offer| offer.upload_price_per_gb.ratio(megabytes, 1000));
    Reserve { seconds, traffic }
}

/// The offer that a machine was rented on.
pub fn offer(machine: &RentedMachine) -> Option<Offer> {
    let chosen = machine.status.as_ref()?.rented_order()?.of(&machine.spec.offers)?;
    serde_json::from_value(chosen.offer.clone()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    fn machine(upload_mbps: u64, checkpoint: &serde_json::Value) -> RentedMachine {
        let order = json!([{"key": "k", "offer": 0, "at": "2026-11-21T10:00:00.000000Z", "outcome": "Rented"}]);
        let mut machine = test_machine::machine("m", &json!({"orders": order, "checkpoint": checkpoint}));
        let mut offer = super::super::decide_tests::offer("1");
        (offer.upload_mbps, offer.upload_price_per_gb) = (upload_mbps, Money::from_micros(20_000));
        machine.spec.offers[0].offer = serde_json::to_value(offer).unwrap();
        machine.spec.workload.stop_grace_s = 30;
        let settings = json!({"path": "c", "pattern": "*", "to": "s3://b/", "secretRef": {"name": "s"}, "intervalS": 60, "keep": 1});
        machine.spec.checkpoint = serde_json::from_value(settings).unwrap();
        machine
    }

    fn save(bytes: u64, took: Option<u64>) -> serde_json::Value {
        json!({"seq": 1, "step": 1, "attempt": 0, "bytes": bytes, "tookSeconds": took})
    }

    #[test]
    fn it_grows_with_the_save_and_the_slowness_of_the_network() {
        for (what, mbps, own, newest, seconds, traffic) in [
            ("nothing was ever saved", 100, json!(null), json!(null), 60, "0.00"),
            ("a small save", 100, save(1_000_000, Some(2)), json!(null), 60, "0.00004"),
            ("measured", 100, save(10_000_000_000, Some(200)), json!(null), 430, "0.40"),
            ("not measured: by the offer's bandwidth", 1000, save(10_000_000_000, None), json!(null), 190, "0.40"),
            ("nor told", 0, save(10_000_000_000, None), json!(null), 1630, "0.40"),
            ("saved by an earlier machine", 1000, json!(null), save(10_000_000_000, Some(900)), 190, "0.40"),
            ("never more than a machine gets", 1, save(100_000_000_000, None), json!(null), 1830, "4.00"),
        ] {
            let newest: Option<CheckpointStatus> = serde_json::from_value(newest).unwrap();
            let reserve = of(&machine(mbps, &own), newest.as_ref());
            assert_eq!((reserve.seconds, reserve.traffic.to_string().as_str()), (seconds, traffic), "{what}");
        }
        let mut saves_nothing = machine(100, &save(10_000_000_000, Some(200)));
        saves_nothing.spec.checkpoint = None;
        assert_eq!(of(&saves_nothing, None).seconds, LEAST_S);
        let reserve = Reserve { seconds: 1800, traffic: Money::from_micros(5) };
        assert_eq!(reserve.dollars(Money::from_micros(1_000_000)).micros(), 500_005);
    }
}
