//! The catalogue: `GET /v2/catalog/gpus[/{id}]` and `GET /v2/catalog/datacenters`. Availability is told on request only.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::centers;
use super::query::{Query, wrong_value};
use super::schema::is_version;
use crate::market::{Market, Offer, SimTime, dollars_of_micros};

/// What a request wants to know of availability.
struct Wanted {
    pods: bool,
    count: u64,
    community: bool,
    countries: Vec<String>,
    cuda: Cuda,
}

/// A condition on CUDA versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cuda {
    /// One of these; any, if empty.
    pub exact: Vec<String>,
    /// At least this, compared number by number.
    pub least: Option<String>,
}

impl Cuda {
    /// Nothing is asked.
    pub const fn is_free(&self) -> bool {
        self.exact.is_empty() && self.least.is_none()
    }

    /// A version fits.
    pub fn fits(&self, version: &str) -> bool {
        let exact = self.exact.is_empty() || self.exact.iter().any(|wanted| wanted == version);
        exact && self.least.as_ref().is_none_or(|least| numbers(version) >= numbers(least))
    }
}

/// `12.11` as numbers, so that it is above `12.2`.
fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// CUDA versions that an offer's machines have now.
pub fn cuda_versions(offer: &Offer) -> impl Iterator<Item = &str> {
    let versions = offer.fields.get("cudaVersions").and_then(Value::as_array).into_iter().flatten();
    versions.filter(|v| v["available"] != false).filter_map(|v| v["version"].as_str())
}

/// The largest number of GPUs of an offer in one pod.
pub fn max_count(offer: &Offer, community: bool) -> u64 {
    let cloud = if community { "community" } else { "secure" };
    offer.fields.get("maxCount").and_then(|most| most[cloud].as_u64()).unwrap_or(0)
}

/// The GPU type can be had in this cloud at all.
pub fn is_offered(offer: &Offer, community: bool) -> bool {
    let cloud = if community { "community" } else { "secure" };
    offer.fields.get(cloud).and_then(Value::as_bool) == Some(true)
}

/// `GET /v2/catalog/gpus`.
pub fn list(market: &mut Market, now: SimTime, account: &str, query: &Query) -> Result<Answer, Answer> {
    let wanted = wanted(query)?;
    let offers: Vec<Offer> = market.offers(now, account).into_iter().map(|(offer, _)| offer).collect();
    let rows: Vec<Value> = offers
        .iter()
        .filter(|offer| wanted.as_ref().is_none_or(|wanted| wanted.countries.is_empty() || is_in(offer, wanted)))
        .map(|offer| row(market, now, account, offer, wanted.as_ref()))
        .collect();
    Ok(Answer::ok(json!({"gpus": rows})))
}

/// `GET /v2/catalog/gpus/{id}`.
pub fn one(market: &mut Market, now: SimTime, account: &str, id: &str, query: &Query) -> Result<Answer, Answer> {
    let wanted = wanted(query)?;
    let found = market.offers(now, account).into_iter().map(|(offer, _)| offer).find(|offer| offer.id == id);
    let offer = found.ok_or_else(|| Answer::not_found("GPU type"))?;
    Ok(Answer::ok(row(market, now, account, &offer, wanted.as_ref())))
}

/// Reads the parameters; `None` without `include=AVAILABILITY`.
fn wanted(query: &Query) -> Result<Option<Wanted>, Answer> {
    let include = query.list("include", |word| word == "AVAILABILITY")?;
    let products = query.list("product", |word| ["POD", "CLUSTER", "SERVERLESS"].contains(&word))?;
    let count = query.whole("count", 1, 1_000_000)?;
    let cloud = query.word("cloud", &["SECURE", "COMMUNITY"])?;
    let countries =
        query.list("countryCodes", |code| code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()))?;
    let exact = query.list("cudaVersions", is_version)?;
    let least = query.one("minCudaVersion")?;
    if let Some(text) = least.filter(|text| !is_version(text) && text.parse::<u64>().is_err()) {
        return Err(wrong_value("minCudaVersion", text));
    }
    if include.is_empty() {
        let names = ["product", "count", "cloud", "countryCodes", "cudaVersions", "minCudaVersion"];
        return match names.iter().find(|name| query.0.iter().any(|(given, _)| given == *name)) {
            Some(name) => Err(Answer::problem(400, format!("{name} is valid only with include=AVAILABILITY"))),
            None => Ok(None),
        };
    }
    if products.is_empty() {
        return Err(Answer::problem(400, "include=AVAILABILITY requires product"));
    }
    if !exact.is_empty() && least.is_some() {
        return Err(Answer::problem(400, "cudaVersions and minCudaVersion are mutually exclusive"));
    }
    Ok(Some(Wanted {
        pods: products.iter().any(|product| product == "POD"),
        count: count.unwrap_or(1),
        community: cloud == Some("COMMUNITY"),
        countries,
        cuda: Cuda { exact, least: least.map(str::to_owned) },
    }))
}

fn is_in(offer: &Offer, wanted: &Wanted) -> bool {
    offer.regions.iter().any(|region| wanted.countries.iter().any(|code| code == centers::country(&region.id)))
}

/// Fields that are shown with availability only.
const ON_REQUEST: [&str; 3] = ["availability", "dataCenters", "cudaVersions"];

fn row(market: &mut Market, now: SimTime, account: &str, offer: &Offer, wanted: Option<&Wanted>) -> Value {
    let mut row: Map<String, Value> = offer
        .fields
        .iter()
        .filter(|(name, _)| !ON_REQUEST.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if offer.price_has_changed()
        && let Some(price) = row.get_mut("price")
    {
        let dollars = |micros: u64| json!(dollars_of_micros(i64::try_from(micros).unwrap_or(i64::MAX)));
        if is_offered(offer, false) {
            price["secure"] = dollars(offer.on_demand_micros_per_hour);
        }
        if let Some(micros) = offer.community_micros_per_hour {
            price["community"] = dollars(micros);
        }
    }
    if let Some(wanted) = wanted {
        add_availability(market, now, account, offer, wanted, &mut row);
    }
    Value::Object(row)
}

fn add_availability(
    market: &mut Market,
    now: SimTime,
    account: &str,
    offer: &Offer,
    wanted: &Wanted,
    row: &mut Map<String, Value>,
) {
    let possible = wanted.pods
        && is_offered(offer, wanted.community)
        && wanted.count <= max_count(offer, wanted.community)
        && (wanted.cuda.is_free() || cuda_versions(offer).any(|version| wanted.cuda.fits(version)));
    let mut rows = Vec::new();
    let mut best = "NONE";
    for region in &offer.regions {
        if !wanted.countries.is_empty() && !wanted.countries.iter().any(|code| code == centers::country(&region.id)) {
            continue;
        }
        let level = if possible { level_in(market, now, account, offer, &region.id) } else { "NONE" };
        best = if rank(level) > rank(best) { level } else { best };
        let given = given_center(offer, &region.id);
        let name = given.and_then(|center| center["name"].as_str()).unwrap_or(&region.id);
        rows.push(json!({"id": region.id, "name": name, "availability": level}));
    }
    let given = offer.text("availability").and_then(known_level);
    let shown = given.filter(|_| best != "NONE" && !offer.stock_has_changed()).unwrap_or(best);
    row.insert("availability".to_owned(), json!(shown));
    if best != "NONE" {
        row.insert("dataCenters".to_owned(), json!(rows));
    }
    if let Some(Value::Array(versions)) = offer.fields.get("cudaVersions") {
        let narrowed = versions.iter().filter(|v| v["version"].as_str().is_some_and(|v| wanted.cuda.fits(v)));
        let shown: Vec<Value> = narrowed
            .map(|v| json!({"version": v["version"], "available": best != "NONE" && v["available"] != false}))
            .collect();
        row.insert("cudaVersions".to_owned(), json!(shown));
    }
}

fn given_center<'a>(offer: &'a Offer, id: &str) -> Option<&'a Value> {
    offer.fields.get("dataCenters")?.as_array()?.iter().find(|center| center["id"] == id)
}

/// The stock of a data centre in the catalogue's words: the file's own word until the market changes it.
fn level_in(market: &mut Market, now: SimTime, account: &str, offer: &Offer, region: &str) -> &'static str {
    let counted = match market.free_at(now, account, offer, region) {
        0 => return "NONE",
        1 => "LOW",
        2 | 3 => "MEDIUM",
        _ => "HIGH",
    };
    let given = given_center(offer, region).and_then(|center| known_level(center["availability"].as_str()?));
    given.filter(|level| *level != "NONE" && !offer.stock_has_changed()).unwrap_or(counted)
}

const LEVELS: [&str; 4] = ["NONE", "LOW", "MEDIUM", "HIGH"];

fn known_level(word: &str) -> Option<&'static str> {
    LEVELS.into_iter().find(|level| *level == word)
}

fn rank(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == level)
}

/// `GET /v2/catalog/datacenters`.
pub fn data_centers(market: &mut Market, now: SimTime, account: &str, query: &Query) -> Result<Answer, Answer> {
    let include = query.list("include", |word| ["GPU_AVAILABILITY", "CPU_AVAILABILITY"].contains(&word))?;
    let regions = query.list("regions", |word| centers::REGIONS.contains(&word))?;
    let types = query.list("networkVolumeTypes", |word| ["STANDARD", "HIGH_PERFORMANCE"].contains(&word))?;
    let compliance = query.list("compliance", |word| !word.is_empty())?;
    let global = query.flag("globalNetwork")?;
    let offers: Vec<Offer> = market.offers(now, account).into_iter().map(|(offer, _)| offer).collect();
    let mut ids: BTreeSet<&str> = centers::known().collect();
    ids.extend(offers.iter().flat_map(|offer| offer.regions.iter().map(|region| region.id.as_str())));
    let has =
        |row: &Value, list: &str, wanted: &String| row[list].as_array().is_some_and(|l| l.iter().any(|v| v == wanted));
    let mut rows = Vec::new();
    for id in ids {
        let mut row = centers::row(id);
        let fits = (regions.is_empty() || regions.iter().any(|region| row["region"] == **region))
            && types.iter().all(|kind| has(&row, "networkVolumeTypes", kind))
            && compliance.iter().all(|word| has(&row, "compliance", word))
            && global.is_none_or(|global| row["globalNetwork"] == global);
        if !fits {
            continue;
        }
        if include.iter().any(|word| word == "GPU_AVAILABILITY") {
            let mut gpus = Vec::new();
            for offer in offers.iter().filter(|offer| offer.regions.iter().any(|region| region.id == id)) {
                let level = level_in(market, now, account, offer, id);
                gpus.push(json!({"id": offer.id, "name": offer.fields["name"], "availability": level}));
            }
            if !gpus.is_empty() {
                row["gpuAvailability"] = json!(gpus);
            }
        }
        rows.push(row);
    }
    Ok(Answer::ok(json!({"dataCenters": rows})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let least = |version: &str| Cuda { exact: Vec::new(), least: Some(version.to_owned()) };
        assert!(least("12.2").fits("12.11") && !least("12.11").fits("12.2") && least("12").fits("12.0"));
        let exact = Cuda { exact: vec!["12.4".to_owned()], least: None };
        assert!(exact.fits("12.4") && !exact.fits("12.40"));
    }
}
