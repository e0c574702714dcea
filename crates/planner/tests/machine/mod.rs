//! A machine with nothing odd about it, for tests that change one thing of it.
#![allow(dead_code, reason = "each test file that shares this uses a part of it")]

use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::{Knowledge, Plan, Requirements, WorkLeft, check, plan};

/// On demand, at $0.40, with plenty of everything, free disk and free traffic.
pub fn plain(id: &str) -> Offer {
    Offer {
        provider: "vast-main".to_owned(),
        id: id.to_owned(),
        capacity: Capacity::OnDemand,
        price_per_hour: Money::from_micros(400_000),
        region: "NO".to_owned(),
        host: format!("host-{id}"),
        gpu: Some(GpuModel::normalise("RTX 4090", 0)),
        gpu_count: 1,
        gpu_memory_mib: 24_564,
        cpu_millis: 16_000,
        memory_mib: 64_000,
        disk_gib: 200,
        storage_price_per_gib_hour: Money::ZERO,
        download_price_per_gb: Money::ZERO,
        upload_price_per_gb: Money::ZERO,
        download_mbps: 1000,
        upload_mbps: 500,
        reliability_ppm: 999_000,
        trust: Trust::Datacenter,
        cuda_milli: 12_800,
        max_duration_s: None,
    }
}

/// Plans, checks the plan, and gives it.
pub fn checked(needs: &Requirements, work: &WorkLeft, known: &Knowledge, offers: &[Offer]) -> Plan {
    let plan = plan(needs, work, known, offers, 8);
    assert_eq!(check(needs, &plan, offers), [], "{plan:#?}");
    plan
}

/// Ids of what was ranked.
pub fn ids(plan: &Plan) -> Vec<&str> {
    plan.ranked.iter().map(|c| c.offer.id.as_str()).collect()
}
