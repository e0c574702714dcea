//! Market files: read strictly, so that a slip is refused before anything starts. Every refusal is one sentence that names the file,
//! the field and the value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::market::{Account, Image, Kind, Offer, OfferTerms, micros_of_dollars};
use crate::{runpod, vast};

/// Credit of an account whose file does not say, in dollars.
const CREDIT: f64 = 100.0;

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{file}: cannot be read")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{file}: not JSON")]
    NotJson {
        /// The file.
        file: String,
        /// Where.
        source: serde_json::Error,
    },
    /// A field is wrong.
    #[error("{file}: {field}: {problem}, found {found}")]
    Field {
        /// The file.
        file: String,
        /// The field's path in it.
        field: String,
        /// What would be right.
        problem: String,
        /// The value, shortened.
        found: String,
    },
}

/// A value with the path that leads to it.
struct At<'a> {
    file: &'a str,
    base: &'a Path,
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    fn bad(&self, problem: impl Into<String>) -> FileError {
        let mut found = self.value.to_string();
        if found.len() > 80 {
            found = format!("{}…", found.chars().take(80).collect::<String>());
        }
        let field = if self.path.is_empty() { "the file".to_owned() } else { self.path.clone() };
        FileError::Field { file: self.file.to_owned(), field, problem: problem.into(), found }
    }

    fn child(&self, name: &str, value: &'a Value) -> At<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { file: self.file, base: self.base, path, value }
    }

    fn get(&self, name: &str) -> Option<At<'a>> {
        let value = self.value.as_object()?.get(name).filter(|v| !v.is_null())?;
        Some(self.child(name, value))
    }

    fn items(&self) -> Result<Vec<At<'a>>, FileError> {
        let list = self.value.as_array().ok_or_else(|| self.bad("must be a list"))?;
        let at = |(i, value)| At { file: self.file, base: self.base, path: format!("{}[{i}]", self.path), value };
        Ok(list.iter().enumerate().map(at).collect())
    }

    fn fields(&self) -> Result<Vec<(&'a str, At<'a>)>, FileError> {
        let object = self.value.as_object().ok_or_else(|| self.bad("must be an object"))?;
        Ok(object.iter().map(|(name, value)| (name.as_str(), self.child(name, value))).collect())
    }

    fn only(&self, known: &[&str]) -> Result<(), FileError> {
        for (name, at) in self.fields()? {
            if !known.contains(&name) {
                return Err(at.bad(format!("unknown field, known are {}", known.join(", "))));
            }
        }
        Ok(())
    }

    fn text(&self) -> Result<&'a str, FileError> {
        self.value.as_str().ok_or_else(|| self.bad("must be a text"))
    }

    fn number(&self, least: f64, most: f64) -> Result<f64, FileError> {
        let number = self.value.as_f64().filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| {
            if most.is_finite() {
                self.bad(format!("must be a number from {least} to {most}"))
            } else {
                self.bad(format!("must be a number of at least {least}"))
            }
        })
    }

    fn flag(&self) -> Result<bool, FileError> {
        self.value.as_bool().ok_or_else(|| self.bad("must be true or false"))
    }
}

/// Reads a JSON file.
pub fn read_json(file: &Path) -> Result<Value, FileError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|source| FileError::Unreadable { file: name.clone(), source })?;
    serde_json::from_str(&text).map_err(|source| FileError::NotJson { file: name, source })
}

/// Reads a market file.
pub fn read_market(file: &Path) -> Result<Vec<Account>, FileError> {
    let base = file.parent().unwrap_or(Path::new("."));
    parse_market(&read_json(file)?, &file.display().to_string(), base)
}

/// Reads a market from its JSON. `file` is its name in refusals, `base` the directory that relative image roots start at.
pub fn parse_market(json: &Value, file: &str, base: &Path) -> Result<Vec<Account>, FileError> {
    let root = At { file, base, path: String::new(), value: json };
    root.only(&["providers"])?;
    let providers = root.get("providers").ok_or_else(|| root.bad("must have the field providers"))?;
    let accounts: Vec<Account> =
        providers.fields()?.into_iter().map(|(name, at)| parse_account(name, &at)).collect::<Result<_, _>>()?;
    if accounts.is_empty() {
        return Err(providers.bad("must name at least one provider"));
    }
    Ok(accounts)
}

fn parse_account(name: &str, at: &At<'_>) -> Result<Account, FileError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(at.bad("a provider's name must be made of letters, digits, - and _"));
    }
    at.only(&["kind", "apiKey", "credit", "sshKeys", "rateLimits", "images", "offers"])?;
    let kind = at.get("kind").ok_or_else(|| at.bad("must have the field kind"))?;
    let known = || Kind::ALL.map(|kind| format!("\"{}\"", kind.as_str())).join(" or ");
    let kind = Kind::parse(kind.text()?).ok_or_else(|| kind.bad(format!("must be {}", known())))?;
    let key = at.get("apiKey").map(|key| key.text()).transpose()?.map_or_else(|| format!("{name}-key"), str::to_owned);
    if key.is_empty() {
        return Err(at.child("apiKey", &Value::Null).bad("must not be empty"));
    }
    let credit = at.get("credit").map_or(Ok(CREDIT), |credit| credit.number(0.0, 1e9))?;
    let credit = i64::try_from(micros_of_dollars(credit)).unwrap_or(i64::MAX);
    let mut account = Account::new(name.to_owned(), kind, key, credit);
    account.rate_limits = at.get("rateLimits").map_or(Ok(false), |flag| flag.flag())?;
    if let Some(keys) = at.get("sshKeys") {
        account.ssh_keys = keys.items()?.iter().map(|key| key.text().map(str::to_owned)).collect::<Result<_, _>>()?;
    }
    if let Some(images) = at.get("images") {
        account.images = images
            .fields()?
            .into_iter()
            .map(|(name, at)| Ok((name.to_owned(), parse_image(&at)?)))
            .collect::<Result<_, FileError>>()?;
    }
    let offers = at.get("offers").ok_or_else(|| at.bad("must have the field offers"))?;
    let mut seen = BTreeSet::new();
    for (position, offer) in offers.items()?.iter().enumerate() {
        let parsed = match kind {
            Kind::Vast => parse_offer(offer, position)?,
            Kind::Runpod => parse_gpu_type(offer)?,
        };
        if !seen.insert(parsed.id.clone()) {
            return Err(offer.bad(format!("the id {} is used twice", parsed.id)));
        }
        account.offers.push(parsed);
    }
    Ok(account)
}

fn parse_image(at: &At<'_>) -> Result<Image, FileError> {
    at.only(&["pull", "error", "root"])?;
    let root = match at.get("root") {
        None => None,
        Some(root) => {
            let directory: PathBuf = at.base.join(root.text()?);
            if !directory.is_dir() {
                return Err(root.bad("must be a directory"));
            }
            Some(directory)
        }
    };
    Ok(Image {
        pull: at.get("pull").map_or(Ok(0.0), |pull| pull.number(0.0, 1e9))?,
        error: at.get("error").map(|error| error.text().map(str::to_owned)).transpose()?,
        root,
    })
}

fn parse_offer(at: &At<'_>, position: usize) -> Result<Offer, FileError> {
    let given: Map<String, Value> =
        at.fields()?.into_iter().map(|(name, field)| (name.to_owned(), field.value.clone())).collect();
    let id = at.get("id").ok_or_else(|| at.bad("must have the field id"))?;
    let number = id.value.as_u64().ok_or_else(|| id.bad("must be a whole number"))?;
    for (name, least, most) in [
        ("dph_base", 0.0, 1e6),
        ("dph_total", 0.0, 1e6),
        ("min_bid", 0.0, 1e6),
        ("storage_cost", 0.0, 1e6),
        ("reliability", 0.0, 1.0),
        ("reliability2", 0.0, 1.0),
        ("gpu_ram", 0.0, 1e9),
        ("num_gpus", 0.0, 1e3),
        ("disk_space", 0.0, 1e9),
        ("duration", 0.0, 1e12),
        ("end_date", 0.0, 1e12),
    ] {
        if let Some(field) = at.get(name) {
            field.number(least, most)?;
        }
    }
    for name in ["gpu_name", "geolocation", "verification"] {
        if let Some(field) = at.get(name) {
            field.text()?;
        }
    }
    let mut terms = OfferTerms::default();
    if let Some(sim) = at.get("sim") {
        parse_terms(&sim, &mut terms)?;
        if let Some(stock) = sim.get("stock") {
            terms.stock = whole(&stock, "must be a whole number (Vast.ai offers have one region)")?;
        }
    }
    Ok(vast::defaults::complete_offer(number, given, terms, position))
}

fn whole(at: &At<'_>, problem: &str) -> Result<u32, FileError> {
    at.value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| at.bad(problem))
}

/// A GPU type as RunPod's catalogue has it.
fn parse_gpu_type(at: &At<'_>) -> Result<Offer, FileError> {
    let given: Map<String, Value> =
        at.fields()?.into_iter().map(|(name, field)| (name.to_owned(), field.value.clone())).collect();
    let id = at.get("id").ok_or_else(|| at.bad("must have the field id"))?;
    if id.text()?.is_empty() {
        return Err(id.bad("must not be empty"));
    }
    for name in ["name", "pool"] {
        at.get(name).map_or(Ok(""), |field| field.text())?;
    }
    for name in ["secure", "community"] {
        at.get(name).map_or(Ok(false), |field| field.flag())?;
    }
    at.get("memory").map_or(Ok(0), |field| whole(&field, "must be a whole number of GB"))?;
    for (object, most) in [("price", 1e6), ("maxCount", 1e3)] {
        for (_, field) in at.get(object).map_or(Ok(Vec::new()), |field| field.fields())? {
            field.number(0.0, most)?;
        }
    }
    let levels = ["NONE", "LOW", "MEDIUM", "HIGH"];
    let level = |at: Option<At<'_>>| match at {
        Some(at) if !levels.contains(&at.text()?) => Err(at.bad(format!("must be one of {}", levels.join(", ")))),
        _ => Ok(()),
    };
    level(at.get("availability"))?;
    let mut centers = BTreeSet::new();
    let listed = at.get("dataCenters");
    for center in listed.as_ref().map_or(Ok(Vec::new()), At::items)? {
        level(center.get("availability"))?;
        let id = center.get("id").ok_or_else(|| center.bad("must have the field id"))?;
        if !centers.insert(id.text()?) {
            return Err(id.bad("the data centre is there twice"));
        }
    }
    let mut terms = OfferTerms { stock: runpod::defaults::STOCK, ..OfferTerms::default() };
    let mut stocks = BTreeMap::new();
    if let Some(sim) = at.get("sim") {
        parse_terms(&sim, &mut terms)?;
        let problem = "must be a whole number, or one for each data centre";
        if let Some(stock) = sim.get("stock").filter(|stock| stock.value.is_object()) {
            for (center, field) in stock.fields()? {
                if listed.is_some() && !centers.contains(center) {
                    return Err(field.bad("no such data centre among the offer's dataCenters"));
                }
                stocks.insert(center.to_owned(), whole(&field, problem)?);
            }
            terms.stock = stocks.values().fold(0, |sum: u32, stock| sum.saturating_add(*stock));
        } else if let Some(stock) = sim.get("stock") {
            terms.stock = whole(&stock, problem)?;
        }
    }
    Ok(runpod::defaults::complete_offer(id.text()?, given, terms, &stocks))
}

/// What every kind's `sim` may have beside `stock`.
fn parse_terms(at: &At<'_>, terms: &mut OfferTerms) -> Result<(), FileError> {
    at.only(&["stock", "boot", "lag", "prices", "lifetime", "refuse", "host"])?;
    if let Some(boot) = at.get("boot") {
        terms.boot = if boot.value.is_array() {
            let ends = boot.items()?;
            let [shortest, longest] = ends.as_slice() else { return Err(boot.bad("must be a number or [min, max]")) };
            (shortest.number(0.0, 1e9)?, longest.number(0.0, 1e9)?)
        } else {
            let seconds = boot.number(0.0, 1e9)?;
            (seconds, seconds)
        };
        if terms.boot.0 > terms.boot.1 {
            return Err(boot.bad("must be [min, max] with min at most max"));
        }
    }
    terms.lag = at.get("lag").map_or(Ok(0.0), |lag| lag.number(0.0, 1e9))?;
    terms.refuse = at.get("refuse").map_or(Ok(0.0), |share| share.number(0.0, 1.0))?;
    terms.lifetime = at.get("lifetime").map(|mean| mean.number(0.001, 1e9)).transpose()?;
    if let Some(host) = at.get("host") {
        host.only(&["diskBytes", "memoryBytes", "gpus"])?;
        terms.host = host.value.to_string();
    }
    if let Some(prices) = at.get("prices") {
        for entry in prices.items()? {
            let pair = entry.items()?;
            let [second, price] = pair.as_slice() else { return Err(entry.bad("must be [second, price]")) };
            let (second_at, price) = (second.number(0.0, 1e12)?, price.number(0.0, 1e6)?);
            if terms.prices.last().is_some_and(|(before, _)| *before > second_at) {
                return Err(second.bad("seconds must not go back"));
            }
            terms.prices.push((second_at, price));
        }
    }
    Ok(())
}
