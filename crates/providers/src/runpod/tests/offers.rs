use serde_json::{Value, json};
use tradewind_core::{Capacity, Money, Offer, Trust};

use super::{answer, changed, gpu, offer, problem, runpod};
use crate::http::scripted::{Act, Server, ok};
use crate::runpod::convert::{Cloud, Terms, disk_gb, disk_price, offers};
use crate::{GpuProvider, OfferQuery, ProviderError};

fn read(rows: &[Value], cloud: Cloud, count: u32) -> (Vec<Offer>, usize) {
    let text = json!({ "gpus": rows }).to_string();
    let look = offers("runpod-main", &serde_json::from_str(&text).unwrap(), cloud, count);
    (look.offers, look.dropped)
}

fn ids(changes: Value, cloud: Cloud, count: u32) -> Vec<String> {
    read(&[changed(gpu(), &changes)], cloud, count).0.into_iter().map(|o| o.id).collect()
}

#[test]
fn a_row_is_an_offer_in_each_data_centre_with_stock() {
    let secure = offer(Cloud::Secure, 2);
    assert_eq!(
        (secure.provider.as_str(), secure.id.as_str()),
        ("runpod-main", "SECURE/EU-RO-1/2/NVIDIA GeForce RTX 4090")
    );
    assert_eq!(
        (secure.capacity, secure.trust, secure.price_per_hour.micros()),
        (Capacity::OnDemand, Trust::Datacenter, 1_380_000),
        "the price is for one GPU"
    );
    assert_eq!(
        (secure.gpu.as_ref().unwrap().as_str(), secure.gpu_count, secure.gpu_memory_mib),
        ("RTX4090", 2, 24_576)
    );
    assert_eq!((secure.cpu_millis, secure.memory_mib), (8000, 2 * 24 * 953));
    assert_eq!((secure.region.as_str(), secure.host.as_str(), secure.cuda_milli), ("RO", "", 12_400));
    assert_eq!(secure.storage_price_per_gib_hour.micros(), 150, "0.10 $/GB/month is 149.1 µ$ per GiB and hour");
    let community = offer(Cloud::Community, 1);
    assert_eq!(
        (community.capacity, community.trust, community.price_per_hour.micros()),
        (Capacity::Spot, Trust::Community, 340_000)
    );
}

#[test]
fn stock_decides_and_nothing_else_is_a_promise() {
    let place = |id: &str, word: &str| json!({"id": id, "name": id, "availability": word});
    for (why, changes, cloud, count, found) in [
        ("as it is", json!({}), Cloud::Secure, 1, vec!["SECURE/EU-RO-1/1/NVIDIA GeForce RTX 4090"]),
        ("more than a machine has", json!({}), Cloud::Community, 8, vec![]),
        ("not in this cloud", json!({"secure": false}), Cloud::Secure, 1, vec![]),
        ("AMD", json!({"manufacturer": "AMD"}), Cloud::Secure, 1, vec![]),
        ("none", json!({"availability": "NONE", "dataCenters": null}), Cloud::Secure, 1, vec![]),
        ("not asked", json!({"availability": null, "dataCenters": null}), Cloud::Secure, 1, vec![]),
        (
            "a word of the future",
            json!({"dataCenters": [place("EU-RO-1", "PLENTY"), place("EU-SE-1", "LOW")]}),
            Cloud::Secure,
            1,
            vec!["SECURE/EU-SE-1/1/NVIDIA GeForce RTX 4090"],
        ),
        (
            "somewhere",
            json!({"availability": "LOW", "dataCenters": []}),
            Cloud::Community,
            1,
            vec!["COMMUNITY/*/1/NVIDIA GeForce RTX 4090"],
        ),
        (
            "everywhere it is sold out",
            json!({"availability": "LOW", "dataCenters": [place("EU-RO-1", "NONE")]}),
            Cloud::Secure,
            1,
            vec![],
        ),
        (
            "twice, and no id at all",
            json!({"dataCenters": [place("EU-RO-1", "LOW"), place("EU-RO-1", "HIGH"), place("", "HIGH"), place("a/b", "HIGH"), {"availability": "LOW"}]}),
            Cloud::Secure,
            1,
            vec!["SECURE/EU-RO-1/1/NVIDIA GeForce RTX 4090"],
        ),
    ] {
        assert_eq!(ids(changes, cloud, count), found, "{why}");
    }
}

#[test]
fn an_offers_id_says_what_renting_needs() {
    for (cloud, data_centre, gpu) in
        [(Cloud::Secure, Some("EU-RO-1"), "NVIDIA GeForce RTX 4090"), (Cloud::Community, None, "NVIDIA  RTX/PRO 6000*")]
    {
        let terms = Terms { cloud, data_centre: data_centre.map(str::to_owned), count: 4, gpu: gpu.to_owned() };
        assert_eq!(Terms::of_id(&terms.id()), Some(terms));
    }
    for foreign in [
        "",
        "12345",
        "SECURE",
        "SECURE/EU-RO-1/1",
        "SECURE/EU-RO-1/1/",
        "SECURE/EU-RO-1/0/x",
        "SECURE//1/x",
        "ALL/*/1/x",
    ] {
        assert_eq!(Terms::of_id(foreign), None, "{foreign}");
    }
}

#[test]
fn models_and_countries_have_one_spelling() {
    for (id, name, memory, model) in [
        ("NVIDIA A100 80GB PCIe", json!("A100 PCIe"), 80, "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", json!("A100 SXM"), 80, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", json!("H100 SXM"), 80, "H100"),
        ("NVIDIA H200 NVL", json!("NVIDIA H200 NVL"), 143, "H200NVL"),
        ("NVIDIA RTX A6000", json!("RTX A6000"), 48, "RTXA6000"),
        ("NVIDIA L4", json!(null), 24, "L4"),
        ("NVIDIA L4", json!(" "), 24, "L4"),
    ] {
        let row = changed(gpu(), &json!({"id": id, "name": name, "memory": memory}));
        let (found, _) = read(&[row], Cloud::Secure, 1);
        assert_eq!(found[0].gpu.as_ref().unwrap().as_str(), model, "{id}");
    }
    for (id, region) in [
        ("EU-RO-1", "RO"),
        ("EUR-IS-2", "IS"),
        ("US-GA-1", "US"),
        ("CA-MTL-1", "CA"),
        ("OC-AU-1", "AU"),
        ("AP-JP-1", "JP"),
        ("MARS", "MARS"),
        ("X-ABC-1", "X-ABC-1"),
    ] {
        let row = changed(gpu(), &json!({"dataCenters": [{"id": id, "availability": "LOW"}]}));
        assert_eq!(read(&[row], Cloud::Secure, 1).0[0].region, region, "{id}");
    }
}

#[test]
fn an_odd_row_costs_itself_only() {
    let row = |changes: Value| changed(gpu(), &changes);
    for bad in [
        json!(null),
        json!("row"),
        json!({}),
        row(json!({"id": null})),
        row(json!({"id": ""})),
        row(json!({"price": null})),
        row(json!({"price": {"secure": 0}})),
        row(json!({"price": {"secure": -1}})),
        row(json!({"price": {"secure": "0.4"}})),
        row(json!({"price": {"secure": 1e300}})),
        row(json!({"memory": null})),
        row(json!({"memory": 0})),
        row(json!({"memory": -24})),
        row(json!({"dataCenters": "all"})),
    ] {
        let (offers, dropped) = read(&[bad.clone(), gpu()], Cloud::Secure, 1);
        assert_eq!((offers.len(), dropped), (1, 1), "{bad}");
    }
}

#[test]
fn disks_are_asked_for_in_whole_gb() {
    assert_eq!([0, 1, 20, 60].map(disk_gb), [1, 2, 22, 65]);
    assert_eq!(disk_price(60), Money::from_micros(9000));
}

#[tokio::test]
async fn stock_is_asked_for_in_both_clouds_and_for_each_number_of_gpus() {
    let server = Server::by(|request, _| {
        let empty = request.target.contains("COMMUNITY") && request.target.contains("count=8");
        ok(json!({"gpus": if empty { vec![] } else { vec![gpu()] }}).to_string())
    })
    .await;
    let found = runpod(&server).offers(&OfferQuery::default()).await.unwrap();
    let mut targets: Vec<String> = server.seen().into_iter().map(|seen| seen.target).collect();
    targets.sort();
    let mut expected: Vec<String> = [1, 2, 4, 8]
        .into_iter()
        .flat_map(|n| {
            ["SECURE", "COMMUNITY"]
                .map(|c| format!("/v2/catalog/gpus?include=AVAILABILITY&product=POD&count={n}&cloud={c}"))
        })
        .collect();
    expected.sort();
    assert_eq!(targets, expected);
    assert_eq!(found.len(), 7);
    let many = OfferQuery { min_gpu_count: 3, ..OfferQuery::default() };
    assert_eq!(runpod(&server).offers(&many).await.unwrap().len(), 3);
    assert_eq!(server.seen().len(), 12, "a number that is too small is not asked about");
}

#[tokio::test]
async fn an_answer_that_is_no_list_is_an_error_and_not_an_empty_market() {
    for (what, act) in [
        ("no list", ok("{}")),
        ("null", ok(r#"{"gpus": null}"#)),
        ("wrong type", ok(r#"{"gpus": "none"}"#)),
        ("not one readable", ok(r#"{"gpus": [{}, null]}"#)),
        ("not JSON", ok("<html>")),
        ("empty body", ok("")),
        ("a proxy's page", Act::Answer(404, "", b"<html>".to_vec())),
    ] {
        let server = Server::new(vec![act]).await;
        let error = runpod(&server).offers(&OfferQuery::default()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Malformed { .. }), "{what}: {error:?}");
    }
    let server = Server::new(vec![problem(401, "missing bearer token")]).await;
    let error = runpod(&server).offers(&OfferQuery::default()).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unauthorised { .. }), "{error:?}");
    let server = Server::new(vec![answer(429, &json!({}))]).await;
    let error = runpod(&server).offers(&OfferQuery::default()).await.unwrap_err();
    assert!(matches!(error, ProviderError::RateLimited { .. }), "{error:?}");
}
