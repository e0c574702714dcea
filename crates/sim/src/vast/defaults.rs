//! Realistic values for what a market file leaves out of a Vast.ai offer.

use serde_json::{Map, Value, json};

use crate::market::{Offer, OfferTerms, SimTime};

/// How long a host offers its machine, where the file does not say: 90 days, in seconds.
const OFFER_SECONDS: f64 = 90.0 * 24.0 * 3600.0;

/// What is typical for a GPU: name, memory MB, compute capability × 100, memory bandwidth GB/s, TFLOPS, watts, dollars an hour.
const GPUS: [(&str, u64, u64, f64, f64, u64, f64); 12] = [
    ("RTX 3060", 12_288, 860, 331.0, 12.7, 170, 0.08),
    ("RTX 3090", 24_576, 860, 823.0, 35.6, 350, 0.20),
    ("RTX 4080", 16_376, 890, 665.0, 48.7, 320, 0.27),
    ("RTX 4090", 24_564, 890, 919.0, 82.6, 450, 0.40),
    ("RTX 5090", 32_607, 1200, 1570.0, 104.8, 575, 0.55),
    ("RTX A6000", 49_140, 860, 696.0, 38.7, 300, 0.47),
    ("RTX 6000Ada", 49_140, 890, 827.0, 91.1, 300, 0.74),
    ("L40S", 46_068, 890, 794.0, 91.6, 350, 0.75),
    ("A100 PCIE", 40_960, 800, 1311.0, 19.5, 250, 0.70),
    ("A100 SXM4", 81_920, 800, 1653.0, 19.5, 400, 0.90),
    ("H100 SXM", 81_559, 900, 2634.0, 67.0, 700, 2.00),
    ("H200", 143_771, 900, 3918.0, 67.0, 700, 2.60),
];

/// An offer with every field that Vast.ai's search answers carry. Fields of the file stay as they are, known to us or not.
pub fn complete_offer(id: u64, mut given: Map<String, Value>, terms: OfferTerms, position: usize) -> Offer {
    given.remove("sim");
    given.retain(|_, value| !value.is_null());
    let typical = typical_fields(&given, id, position as u64);
    let end = given.get("duration").and_then(Value::as_f64).unwrap_or(OFFER_SECONDS);
    let mut fields = typical;
    fields.extend(given);
    Offer::new(id.to_string(), fields, terms, SimTime::ZERO.after_seconds(end))
}

fn typical_fields(given: &Map<String, Value>, id: u64, position: u64) -> Map<String, Value> {
    let number = |name: &str| given.get(name).and_then(Value::as_f64);
    let whole = |name: &str| given.get(name).and_then(Value::as_u64);
    let gpu_name = given.get("gpu_name").and_then(Value::as_str).unwrap_or("RTX 4090");
    let known = GPUS.iter().find(|row| row.0 == gpu_name).unwrap_or(&GPUS[3]);
    let (_, memory, capability, bandwidth, tflops, watts, price) = *known;
    let count = whole("num_gpus").unwrap_or(1);
    #[expect(clippy::cast_precision_loss, reason = "a handful of GPUs")]
    let times = count as f64;
    let gpu_ram = number("gpu_ram").map_or(json!(memory), |_| given["gpu_ram"].clone());
    let cents = |dollars: f64| (dollars * 10_000.0).round() / 10_000.0;
    let dph_base = number("dph_base").or_else(|| number("dph_total")).unwrap_or_else(|| cents(price * times));
    let reliability = number("reliability").or_else(|| number("reliability2")).unwrap_or(0.995);
    let verification = given.get("verification").and_then(Value::as_str).unwrap_or("verified");
    let score = cents(1000.0 * tflops * times / (dph_base + 0.05));
    let host = 100_000 + position;
    let fields = json!({
        "id": id, "ask_contract_id": id, "bundle_id": 500_000_000 + id, "bundled_results": null, "machine_id": 10_000 + position,
        "host_id": host, "hostname": null, "cluster_id": null, "resource_type": "gpu", "external": false, "webpage": null,
        "logo": "/static/logos/vastai_small2.png", "rn": 1, "hosting_type": 0,
        "gpu_name": gpu_name, "num_gpus": count, "gpu_frac": 1.0, "gpu_ram": gpu_ram,
        "gpu_total_ram": number("gpu_ram").map_or(memory * count, |mb| round(mb * times)), "gpu_arch": "nvidia", "gpu_lanes": 16,
        "gpu_mem_bw": bandwidth, "gpu_display_active": false, "gpu_max_power": watts, "gpu_max_temp": 90,
        "gpu_ids": (0..count).map(|i| id * 10 + i).collect::<Vec<_>>(),
        "compute_cap": capability, "cuda_max_good": 12.8, "driver_version": "570.86.15", "driver_vers": 570_086_015,
        "total_flops": cents(tflops * times), "dlperf": cents(tflops * times * 1.2), "dlperf_per_dphtotal": cents(tflops * times * 1.2 / (dph_base + 0.001)),
        "flops_per_dphtotal": cents(tflops * times / (dph_base + 0.001)), "score": score, "bw_nvlink": 0.0,
        "cpu_name": "AMD EPYC 7543 32-Core Processor", "cpu_arch": "amd64", "cpu_cores": 64, "cpu_cores_effective": 16.0 * times.max(1.0),
        "cpu_ghz": 2.8, "cpu_ram": 257_698, "has_avx": 1,
        "disk_name": "SAMSUNG MZQL23T8HCLS-00A07", "disk_space": 1000.0, "disk_bw": 3200.5, "storage_cost": 0.15,
        "inet_up": 900.0, "inet_down": 900.0, "inet_up_cost": 0.0, "inet_down_cost": 0.0,
        "internet_up_cost_per_tb": 0.0, "internet_down_cost_per_tb": 0.0,
        "pci_gen": 4.0, "pcie_bw": 24.3, "mobo_name": "ROMED8-2T", "os_version": "22.04",
        "direct_port_count": 64, "static_ip": true, "public_ipaddr": "127.0.0.1", "geolocation": "Norway, NO", "geolocode": 0,
        "reliability": reliability, "reliability2": reliability, "expected_reliability": reliability, "reliability_mult": 0.99,
        "verification": verification, "vericode": u8::from(verification == "verified"), "is_vm_deverified": false, "vms_enabled": false,
        "dph_base": dph_base, "min_bid": cents(dph_base / 2.0), "credit_discount_max": 0.4, "discount_rate": 0.0,
        "vram_costperhour": 0.0, "avail_vol_ask_id": null, "avail_vol_dph": null, "avail_vol_size": null,
        "nw_disk_min_bw": null, "nw_disk_max_bw": null, "nw_disk_avg_bw": null,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating float to integer cast is wanted"
)]
fn round(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_fields_stay_and_the_rest_is_filled_in() {
        let Value::Object(given) =
            json!({"id": 7, "gpu_name": "H100 SXM", "num_gpus": 2, "dph_base": 4.1, "strange": [1], "external": true})
        else {
            unreachable!()
        };
        let offer = complete_offer(7, given, OfferTerms::default(), 0);
        assert_eq!(offer.fields["strange"], json!([1]));
        assert_eq!(offer.fields["external"], json!(true));
        assert_eq!(offer.fields["gpu_ram"], json!(81_559));
        assert_eq!(offer.fields["gpu_total_ram"], json!(163_118));
        assert_eq!(offer.on_demand_micros_per_hour, 4_100_000);
        assert_eq!(offer.bid_micros_per_hour, Some(2_050_000));
    }

    #[test]
    fn sim_never_reaches_the_wire() {
        let Value::Object(given) = json!({"id": 7, "sim": {"stock": 3}}) else { unreachable!() };
        assert!(!complete_offer(7, given, OfferTerms::default(), 0).fields.contains_key("sim"));
    }
}
