use proptest::prelude::*;
use serde_json::{Value, json};
use tradewind_core::{Capacity, Money, Offer, Trust};

use super::{fixture, query, vast};
use crate::http::scripted::{Act, Server, ok};
use crate::vast::convert::{disk_gb, dollars, money, offers};
use crate::{GpuProvider, ProviderError};

/// The official example with these fields changed.
fn row(changes: Value) -> Value {
    let mut row = fixture("search")["offers"][0].clone();
    for (name, value) in changes.as_object().unwrap() {
        row[name] = value.clone();
    }
    row
}

/// Offers of the two searches, and how many rows were dropped.
fn read(on_demand: &[Value], bid: &[Value]) -> (Vec<Offer>, usize) {
    let text = |rows: &[Value]| json!({ "offers": rows }).to_string();
    let (on_demand, bid) = (text(on_demand), text(bid));
    let read = offers("vast-main", &serde_json::from_str(&on_demand).unwrap(), &serde_json::from_str(&bid).unwrap());
    (read.offers, read.dropped)
}

fn one(changes: Value) -> Offer {
    let (mut offers, dropped) = read(&[row(changes)], &[]);
    assert_eq!((offers.len(), dropped), (1, 0));
    offers.remove(0)
}

#[test]
fn the_official_example_reads_as_documented() {
    let offer = one(json!({"hosting_type": 1}));
    assert_eq!((offer.provider.as_str(), offer.id.as_str(), offer.host.as_str()), ("vast-main", "12345678", "88888"));
    assert_eq!(
        (offer.capacity, offer.price_per_hour.micros()),
        (Capacity::OnDemand, 123_456),
        "dph_base, without disk"
    );
    assert_eq!((offer.gpu_count, offer.gpu_memory_mib), (4, 24_576));
    assert_eq!(offer.gpu.unwrap().as_str(), "IMAGINARYRTX9999");
    assert_eq!((offer.cpu_millis, offer.memory_mib), (32_000, 32_768), "half the cores, half the host's memory");
    assert_eq!(offer.disk_gib, 1907, "2048.5 GB");
    assert_eq!(offer.storage_price_per_gib_hour.micros(), 1473, "0.987654 $/GB/month is 1472.9 µ$ per GiB and hour");
    assert_eq!((offer.download_price_per_gb.micros(), offer.upload_price_per_gb.micros()), (1230, 4560));
    assert_eq!((offer.download_mbps, offer.upload_mbps), (9876, 8765));
    assert_eq!((offer.reliability_ppm, offer.cuda_milli, offer.max_duration_s), (999_900, 11_200, Some(1_234_567)));
    assert_eq!((offer.region.as_str(), offer.trust), ("AT", Trust::Datacenter));
}

#[test]
fn trust_is_verified_and_in_a_data_centre() {
    for (changes, trust) in [
        (json!({"hosting_type": 0}), Trust::Community),
        (json!({"hosting_type": null}), Trust::Community),
        (json!({"hosting_type": 2}), Trust::Datacenter),
        (json!({"hosting_type": 1, "verification": "unverified"}), Trust::Community),
        (json!({"hosting_type": 1, "verification": "deverified", "vericode": 1}), Trust::Community),
        (json!({"hosting_type": 1, "verification": null, "vericode": 1}), Trust::Datacenter),
        (json!({"hosting_type": 1, "verification": null, "vericode": null, "verified": true}), Trust::Community),
    ] {
        assert_eq!(one(changes.clone()).trust, trust, "{changes}");
    }
}

#[test]
fn places_are_read_from_the_right() {
    for (text, region) in [
        (json!("Czechia, CZ"), "CZ"),
        (json!(", US"), "US"),
        (json!("Norway"), ""),
        (json!(null), ""),
        (json!("A, B, no"), ""),
    ] {
        assert_eq!(one(json!({ "geolocation": text })).region, region, "{text}");
    }
}

#[test]
fn null_where_null_is_known_costs_nothing() {
    let offer =
        one(json!({"cpu_cores": null, "external": null, "machine_id": null, "cuda_max_good": null, "duration": null}));
    assert_eq!((offer.cpu_millis, offer.memory_mib), (32_000, 65_536));
    assert_eq!((offer.host.as_str(), offer.cuda_milli, offer.max_duration_s), ("", 0, None));
    assert_eq!(one(json!({"cpu_cores_effective": null})).cpu_millis, 48_000, "three quarters of 64");
    assert_eq!(one(json!({"dph_base": null})).price_per_hour.micros(), 234_567, "dph_total is no less than it");
}

#[test]
fn an_odd_row_costs_itself_only() {
    let good = row(json!({"id": 1}));
    for bad in [
        json!(null),
        json!("row"),
        json!([]),
        json!({}),
        row(json!({"id": null})),
        row(json!({"id": -1})),
        row(json!({"id": "../../users"})),
        row(json!({"dph_base": "0.4"})),
        row(json!({"dph_base": -0.4})),
        row(json!({"dph_base": 0})),
        row(json!({"dph_base": 1e300})),
        row(json!({"dph_base": null, "dph_total": null})),
        row(json!({"num_gpus": 0})),
        row(json!({"num_gpus": null})),
        row(json!({"num_gpus": 1e9})),
        row(json!({"gpu_name": null})),
        row(json!({"gpu_name": " "})),
        row(json!({"gpu_name": ["RTX 4090"]})),
        row(json!({"gpu_ram": {}})),
        row(json!({"storage_cost": null})),
        row(json!({"disk_space": -5})),
        row(json!({"inet_down_cost": -1})),
        row(json!({"rentable": false})),
        row(json!({"external": true})),
    ] {
        let (offers, dropped) = read(&[bad.clone(), good.clone()], &[]);
        assert_eq!((offers.len(), dropped), (1, 1), "{bad}");
        assert_eq!(offers[0].id, "1");
    }
}

#[test]
fn a_bid_is_a_tenth_above_the_lowest_winning_one_and_never_above_the_asking_price() {
    let asked = row(json!({"dph_base": 0.40}));
    for (min_bid, bid) in [
        (json!(0.20), Some(220_000)),
        (json!(0.39), Some(400_000)),
        (json!(0.40), Some(400_000)),
        (json!(0.41), None),
        (json!(0), Some(1_100)),
        (json!(null), None),
        (json!(-1), None),
    ] {
        let (offers, _) = read(std::slice::from_ref(&asked), &[row(json!({"min_bid": min_bid}))]);
        let spot = offers.iter().find(|o| o.capacity == Capacity::Spot);
        assert_eq!(spot.map(|o| o.price_per_hour.micros()), bid, "min_bid {min_bid}");
    }
    let (alone, _) = read(&[], &[row(json!({"min_bid": 0.2}))]);
    assert_eq!(alone[0].price_per_hour.micros(), 220_000, "searches are subsets: the asking price may not be known");
    assert!(read(&[], &[row(json!({"min_bid": 129.0}))]).0.is_empty(), "above the highest bid that the market takes");
}

#[tokio::test]
async fn both_searches_are_sent_with_every_filter_said_aloud() {
    let server = Server::new(vec![ok(fixture("search").to_string())]).await;
    let found = vast(&server).offers(&query()).await.unwrap();
    assert_eq!(found.len(), 2);
    let mut sent: Vec<Value> = server.seen().iter().map(crate::http::scripted::Seen::json).collect();
    sent.sort_by_key(|s| s["type"].to_string());
    assert_eq!(sent[0]["type"], "bid");
    assert_eq!(
        sent[1],
        json!({
            "type": "ondemand", "limit": 2000, "order": [["dph_total", "asc"], ["id", "asc"]], "allocated_storage": 21.48,
            "rentable": {"eq": true}, "rented": {"eq": false}, "external": {"eq": false},
            "verification": {"in": ["verified", "unverified"]}, "cpu_arch": {"eq": "amd64"},
            "num_gpus": {"gte": 1}, "gpu_ram": {"gte": 23280}, "disk_space": {"gte": 21.48},
        })
    );
}

#[tokio::test]
async fn an_answer_that_is_no_list_is_an_error_and_not_an_empty_market() {
    let deep = format!("{{\"offers\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (what, act) in [
        ("no list", ok("{}")),
        ("null", ok(r#"{"offers": null}"#)),
        ("wrong type", ok(r#"{"offers": "none"}"#)),
        ("not JSON", ok("<html>")),
        ("deep", ok(deep)),
        ("empty body", ok("")),
    ] {
        let server = Server::new(vec![act]).await;
        let error = vast(&server).offers(&query()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Malformed { .. }), "{what}: {error:?}");
    }
    let server =
        Server::new(vec![Act::Answer(404, "", br#"{"error":"auth_error","msg":"Invalid user key"}"#.to_vec())]).await;
    let error = vast(&server).offers(&query()).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unauthorised { .. }), "{error:?}");
    let server = Server::new(vec![Act::Answer(429, "", br#"{"error":"search_quota_exceeded"}"#.to_vec())]).await;
    let error = vast(&server).offers(&query()).await.unwrap_err();
    assert!(matches!(error, ProviderError::RateLimited { .. }), "{error:?}");
}

#[test]
fn a_deep_row_costs_itself_only() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!("{{\"offers\": [{{\"id\": 1, \"x\": {deep}}}, {}]}}", row(json!({"id": 2})));
    // Either the row or, where the parser gives up, the whole answer is refused; never a crash.
    if let Ok(answer) = serde_json::from_str(&text) {
        let read = offers("p", &answer, &serde_json::from_str(r#"{"offers": []}"#).unwrap());
        assert_eq!(read.dropped, 1);
    }
}

#[test]
fn disks_are_asked_for_in_whole_hundredths_of_a_gb() {
    assert_eq!(disk_gb(0).to_string(), "8");
    assert_eq!(disk_gb(8).to_string(), "8.59");
    assert_eq!(disk_gb(60).to_string(), "64.43");
}

proptest! {
    #[test]
    fn money_is_never_less_than_the_dollars(micros in 0_i64..=10_000_000_000, noise in 0.0_f64..1.0) {
        let exact = Money::from_micros(micros);
        prop_assert_eq!(money(dollars(exact)), Some(exact), "a whole micro-dollar survives the way there and back");
        let up = money(dollars(exact) + noise / 1e6).unwrap();
        prop_assert!(up.micros() == micros || up.micros() == micros + 1);
        prop_assert!(noise < 0.01 || up.micros() > micros);
    }
}
