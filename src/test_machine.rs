//! A RentedMachine for unit tests.

use serde_json::{Value, json};
use tradewind_api::RentedMachine;

/// One of this uid and status, rented on the account `p`.
pub fn machine(uid: &str, status: &Value) -> RentedMachine {
    let machine = json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "RentedMachine", "metadata": {"name": uid, "uid": uid},
        "spec": {
            "provider": "p", "job": {"namespace": "n", "name": "j", "uid": "u"},
            "claim": {"podNamespace": "n", "podName": "p", "podUid": "u"}, "runId": "r", "attempt": 0,
            "offers": [{"id": "1", "offer": {}, "priceCap": "1", "reservePerHour": "1"}], "startDeadlineS": 1,
            "workload": {"container": "c", "image": "i", "command": [], "diskGib": 1, "stopGraceS": 1}
        },
        "status": status
    });
    serde_json::from_value(machine).expect("a RentedMachine")
}
