//! Realistic values for what a market file leaves out of a GPU type.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::market::{Offer, OfferTerms, Region};

/// Machines at once, where the file does not say.
pub const STOCK: u32 = 4;
/// Micro-dollars a GB and month of container disk and of a volume (RunPod's pricing page).
const STORAGE_MICROS: u64 = 100_000;
/// GPUs in the largest machine of each cloud.
const MAX_COUNT: (u64, u64) = (8, 4);
/// Data centres of a GPU type without any.
const DATA_CENTERS: [&str; 2] = ["EU-RO-1", "US-KS-2"];
/// CUDA versions of NVIDIA machines.
const CUDA_VERSIONS: [&str; 4] = ["12.4", "12.6", "12.8", "13.0"];

/// What is typical for a GPU type.
struct Typical {
    id: &'static str,
    name: &'static str,
    pool: Option<&'static str>,
    /// GB.
    memory: u64,
    /// Dollars an hour in the Secure and in the Community Cloud; 0 where it is not offered.
    prices: (f64, f64),
}

const fn gpu(
    id: &'static str,
    name: &'static str,
    pool: Option<&'static str>,
    memory: u64,
    prices: (f64, f64),
) -> Typical {
    Typical { id, name, pool, memory, prices }
}

const GPUS: [Typical; 14] = [
    gpu("AMD Instinct MI300X OAM", "MI300X", None, 192, (2.49, 0.0)),
    gpu("NVIDIA A100 80GB PCIe", "A100 PCIe", Some("AMPERE_80"), 80, (1.64, 1.19)),
    gpu("NVIDIA A100-SXM4-80GB", "A100 SXM", Some("AMPERE_80"), 80, (1.74, 1.39)),
    gpu("NVIDIA A40", "A40", Some("AMPERE_48"), 48, (0.40, 0.35)),
    gpu("NVIDIA GeForce RTX 3090", "RTX 3090", Some("AMPERE_24"), 24, (0.46, 0.22)),
    gpu("NVIDIA GeForce RTX 4090", "RTX 4090", Some("ADA_24"), 24, (0.69, 0.34)),
    gpu("NVIDIA GeForce RTX 5090", "RTX 5090", None, 32, (0.94, 0.69)),
    gpu("NVIDIA H100 80GB HBM3", "H100 SXM", Some("ADA_80_PRO"), 80, (2.69, 2.69)),
    gpu("NVIDIA H100 PCIe", "H100 PCIe", Some("ADA_80_PRO"), 80, (2.39, 1.99)),
    gpu("NVIDIA H200", "H200 SXM", Some("HOPPER_141"), 141, (3.59, 0.0)),
    gpu("NVIDIA L4", "L4", Some("AMPERE_24"), 24, (0.43, 0.0)),
    gpu("NVIDIA L40S", "L40S", Some("ADA_48_PRO"), 48, (0.86, 0.79)),
    gpu("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", Some("ADA_48_PRO"), 48, (0.77, 0.74)),
    gpu("NVIDIA RTX A5000", "RTX A5000", Some("AMPERE_24"), 24, (0.27, 0.16)),
];

/// A GPU type with every field of the catalogue. Fields of the file stay as they are, known to us or not. `stock` limits single data
/// centres.
pub fn complete_offer(
    id: &str,
    mut given: Map<String, Value>,
    terms: OfferTerms,
    stock: &BTreeMap<String, u32>,
) -> Offer {
    given.remove("sim");
    given.retain(|_, value| !value.is_null());
    let mut fields = typical_fields(id, &given);
    if !given.contains_key("dataCenters") && !stock.is_empty() {
        let centers: Vec<Value> = stock.keys().map(|id| json!({"id": id, "name": id})).collect();
        fields.insert("dataCenters".to_owned(), json!(centers));
    }
    // Both prices are always on the wire, whether a cloud has the GPU or not.
    if let Some(price) = given.remove("price").and_then(|price| price.as_object().cloned())
        && let Some(Value::Object(shown)) = fields.get_mut("price")
    {
        shown.extend(price);
    }
    fields.extend(given);
    let regions = fields.get("dataCenters").and_then(Value::as_array).into_iter().flatten().filter_map(|center| {
        let id = center["id"].as_str()?.to_owned();
        let closed = center["availability"] == "NONE";
        let stock = stock.get(&id).copied().or(if closed || !stock.is_empty() { Some(0) } else { None });
        Some(Region { id, stock })
    });
    let regions = regions.collect();
    Offer::of_catalogue(id.to_owned(), fields, terms, regions, STORAGE_MICROS)
}

fn typical_fields(id: &str, given: &Map<String, Value>) -> Map<String, Value> {
    let known = GPUS.iter().find(|row| row.id == id);
    let amd = id.starts_with("AMD");
    let plain = id.trim_start_matches("NVIDIA").trim_start_matches("AMD").trim();
    let (name, pool, memory, typical) =
        known.map_or((plain, None, 24, (0.69, 0.44)), |row| (row.name, row.pool, row.memory, row.prices));
    let prices = given.get("price");
    let price = |cloud: &str, typical: f64| match prices {
        // A price for one cloud says that the other has none.
        Some(prices) => prices.get(cloud).and_then(Value::as_f64).unwrap_or(0.0),
        None => typical,
    };
    let (secure, community) = (price("secure", typical.0), price("community", typical.1));
    let most = |price: f64, most: u64| if price > 0.0 { most } else { 0 };
    let centers: Vec<Value> = DATA_CENTERS.iter().map(|id| json!({"id": id, "name": id})).collect();
    let mut fields = json!({
        "id": id, "name": name, "pool": pool, "manufacturer": if amd { "AMD" } else { "NVIDIA" }, "memory": memory,
        "secure": secure > 0.0, "community": community > 0.0, "price": {"secure": secure, "community": community},
        "maxCount": {"secure": most(secure, MAX_COUNT.0), "community": most(community, MAX_COUNT.1)}, "dataCenters": centers,
    });
    if !amd {
        let versions: Vec<Value> = CUDA_VERSIONS.iter().map(|v| json!({"version": v, "available": true})).collect();
        fields["cudaVersions"] = json!(versions);
    }
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(given: Value, stock: &[(&str, u32)]) -> Offer {
        let Value::Object(given) = given else { unreachable!() };
        let stock = stock.iter().map(|(id, stock)| ((*id).to_owned(), *stock)).collect();
        let id = given["id"].as_str().unwrap().to_owned();
        complete_offer(&id, given, OfferTerms::default(), &stock)
    }

    #[test]
    fn given_fields_stay_and_the_rest_is_filled_in() {
        let offer = complete(
            json!({"id": "NVIDIA H100 PCIe", "price": {"secure": 2.5}, "strange": [1], "sim": {"stock": 3}}),
            &[],
        );
        assert_eq!(offer.fields["strange"], json!([1]));
        assert_eq!(offer.fields["memory"], 80);
        assert_eq!(offer.fields["price"], json!({"secure": 2.5, "community": 0.0}));
        assert_eq!((offer.fields["secure"].clone(), offer.fields["community"].clone()), (json!(true), json!(false)));
        assert_eq!((offer.on_demand_micros_per_hour, offer.community_micros_per_hour), (2_500_000, None));
        assert!(!offer.fields.contains_key("sim"), "sim never reaches the wire");
        let offer = complete(json!({"id": "NVIDIA GeForce RTX 4090"}), &[]);
        assert_eq!((offer.on_demand_micros_per_hour, offer.community_micros_per_hour), (690_000, Some(340_000)));
    }

    #[test]
    fn stock_may_be_limited_by_data_centre() {
        let offer = complete(json!({"id": "x"}), &[("EU-CZ-1", 2), ("US-WA-1", 0)]);
        let regions: Vec<_> = offer.regions.iter().map(|r| (r.id.as_str(), r.stock)).collect();
        assert_eq!(regions, [("EU-CZ-1", Some(2)), ("US-WA-1", Some(0))]);
        let centers = json!([{"id": "EU-CZ-1"}, {"id": "US-WA-1", "availability": "NONE"}]);
        let offer = complete(json!({"id": "x", "dataCenters": centers}), &[]);
        let regions: Vec<_> = offer.regions.iter().map(|r| (r.id.as_str(), r.stock)).collect();
        assert_eq!(regions, [("EU-CZ-1", None), ("US-WA-1", Some(0))]);
    }
}
