//! What machines have cost since this process began to watch, as a counter that never falls.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tradewind_api::RentedMachine;
use tradewind_core::Money;

/// Cost of each machine as last seen, by uid.
#[derive(Default)]
pub(super) struct Spend {
    seen: Mutex<BTreeMap<String, Money>>,
}

impl Spend {
    /// Dollars that came on top since the last look. What is history, somebody else has counted: it only sets the mark.
    pub(super) fn more(&self, machine: &RentedMachine, history: bool) -> Option<f64> {
        let uid = machine.metadata.uid.clone()?;
        let cost = machine.status.as_ref().and_then(|s| s.cost).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if history {
            seen.insert(uid, cost);
            return None;
        }
        let before = seen.entry(uid).or_insert(Money::ZERO);
        let more = cost - *before;
        if more <= Money::ZERO {
            return None;
        }
        *before = cost;
        #[expect(clippy::cast_precision_loss, reason = "a metric; below nine billion dollars it is exact")]
        let micros = more.micros() as f64;
        Some(micros / 1e6)
    }

    /// Forgets a machine that is gone.
    pub(super) fn forget(&self, machine: &RentedMachine) {
        if let Some(uid) = &machine.metadata.uid {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_machine;

    fn machine(uid: &str, cost: &str) -> RentedMachine {
        test_machine::machine(uid, &json!({"cost": cost}))
    }

    #[test]
    fn each_dollar_counts_once_from_the_first_look_on() {
        let spend = Spend::default();
        assert_eq!(spend.more(&machine("old", "5.00"), true), None, "spent before this process");
        assert_eq!(spend.more(&machine("old", "5.50"), false), Some(0.5));
        assert_eq!(spend.more(&machine("old", "5.50"), false), None);
        assert_eq!(spend.more(&machine("new", "0.25"), false), Some(0.25));
        assert_eq!(spend.more(&machine("new", "0.20"), false), None, "a counter never falls");
    }
}
