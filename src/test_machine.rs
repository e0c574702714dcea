//! A RentedMachine, an offer and a store for unit tests.

use std::sync::Arc;

use serde_json::{Value, json};
use tradewind_api::RentedMachine;
use tradewind_checkpoints::{MemoryPlace, MemoryStore};
use tradewind_core::{Capacity, ManualClock, Money, Offer, Trust};

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

/// A spot machine of the account `p` of which nothing else is told.
pub fn offer(id: &str) -> Offer {
    Offer {
        provider: "p".into(),
        id: id.into(),
        capacity: Capacity::Spot,
        price_per_hour: Money::ZERO,
        region: String::new(),
        host: String::new(),
        gpu: None,
        gpu_count: 0,
        gpu_memory_mib: 0,
        cpu_millis: 0,
        memory_mib: 0,
        disk_gib: 0,
        storage_price_per_gib_hour: Money::ZERO,
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 0,
        upload_mbps: 0,
        reliability_ppm: 0,
        trust: Trust::Community,
        cuda_milli: 0,
        max_duration_s: None,
    }
}

/// An empty place in a store in memory.
pub fn store() -> MemoryPlace {
    let server = MemoryStore::new(Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH, 1)));
    server.create_bucket("bucket");
    server.at(&"s3://bucket/p/".parse().expect("a location"))
}
