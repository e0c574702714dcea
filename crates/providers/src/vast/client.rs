//! The calls: what is sent, and who reads the answer.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use serde_json::Value;
use tradewind_core::{Capacity, Offer};

use super::config::{KIND, operation};
use super::wire::{Create, Filter, InstancePage, Said, Search, SearchAnswer};
use super::{Vast, convert, error, state};
use crate::amounts::balance;
use crate::http::{Answer, Call, Lane, json_trouble};
use crate::{Account, Machine, OfferQuery, ProviderError, ProviderResult, Refusal, RentOutcome, RentRequest};

/// Limits of create (endpoint file, `x-input-validation`), in characters.
pub(super) const MAX_COMMAND_CHARS: usize = 4096;
const MAX_ENV_CHARS: usize = 32_768;
const MAX_ENV_NAME_CHARS: usize = 256;
const MAX_IMAGE_CHARS: usize = 1024;
pub(super) const SHELL: &str = "/bin/sh";
pub(super) const SHELL_FLAG: &str = "-c";

/// Sizes of answers. An offer is about 3 kB; an instance about 5 kB and our environment.
const MAX_SEARCH_BYTES: usize = 32 << 20;
const MAX_PAGE_BYTES: usize = 8 << 20;
const MAX_SMALL_BYTES: usize = 1 << 20;
/// Machines on one page (the documented maximum) and pages we are willing to read.
const PAGE: u32 = 25;
const MAX_PAGES: usize = 400;

impl Vast {
    pub(super) async fn search_offers(&self, query: &OfferQuery) -> ProviderResult<Vec<Offer>> {
        let (on_demand, bid) = futures::try_join!(self.search(query, "ondemand"), self.search(query, "bid"))?;
        let (on_demand, bid) = (parse_search(&on_demand)?, parse_search(&bid)?);
        let read = convert::offers(&self.provider, &on_demand, &bid);
        let rows = on_demand.offers.len() + bid.offers.len();
        if rows > 0 && read.unreadable == rows {
            // One odd host is its own trouble; when nothing at all can be read, the market speaks another language.
            return Err(error::malformed(operation::OFFERS, "not one offer can be read"));
        }
        if read.dropped > 0 {
            tracing::debug!(
                provider = KIND,
                dropped = read.dropped,
                kept = read.offers.len(),
                "Left out offers that cannot be read or rented"
            );
        }
        self.dropped_offers.fetch_add(read.dropped as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(read.offers)
    }

    async fn search(&self, query: &OfferQuery, kind: &'static str) -> ProviderResult<Answer> {
        let search = Search {
            kind,
            limit: self.search_limit,
            order: [["dph_total", "asc"], ["id", "asc"]],
            allocated_storage: convert::disk_gb(query.disk_gib),
            rentable: Filter::Eq(true),
            rented: Filter::Eq(false),
            external: Filter::Eq(false),
            verification: Filter::In(["verified", "unverified"]),
            // The agent is built for x86-64.
            cpu_arch: Filter::Eq("amd64"),
            num_gpus: Filter::Gte(query.min_gpu_count.max(1)),
            // Cards report a little less than their nominal size; callers filter again.
            gpu_ram: Filter::Gte(query.min_gpu_memory_mib / 100 * 97),
            disk_space: Filter::Gte(convert::disk_gb(query.disk_gib)),
        };
        let mut call = self.call(operation::OFFERS, Method::POST, "/api/v0/bundles/".to_owned());
        call.body = Some(json(&search));
        call.max_answer_bytes = MAX_SEARCH_BYTES;
        self.read(&call).await
    }

    pub(super) async fn rent_machine(&self, request: &RentRequest, not_after: Duration) -> RentOutcome {
        let refused = |why, message: String| RentOutcome::Refused { why, message, leftover: None };
        let spot = request.offer.capacity == Capacity::Spot;
        if !spot && request.offer.price_per_hour > request.price_cap {
            return refused(
                Refusal::PriceRose,
                format!("{} an hour is above the cap {}", request.offer.price_per_hour, request.price_cap),
            );
        }
        if let Err(message) = check(request) {
            return refused(Refusal::Invalid, message.to_owned());
        }
        let label = request.key.to_string();
        let bid = request.offer.price_per_hour.min(request.price_cap).min(convert::MAX_BID);
        if spot && bid < convert::MIN_BID {
            return refused(
                Refusal::Invalid,
                format!("a bid of {bid} an hour is below the market's minimum {}", convert::MIN_BID),
            );
        }
        let create = Create {
            client_id: "me",
            image: &request.image,
            disk: convert::disk_gb(request.disk_gib),
            label: &label,
            runtype: "args",
            onstart: SHELL,
            args: [SHELL_FLAG, &request.bootstrap],
            env: &request.env.0,
            cancel_unavail: true,
            price: spot.then(|| convert::dollars(bid)),
        };
        let mut call = self.call(operation::RENT, Method::PUT, format!("/api/v0/asks/{}/", request.offer.id));
        call.body = Some(json(&create));
        call.timeout = self.times.rent;
        let mut redactor = self.redactor.clone().with(&request.bootstrap);
        for value in request.env.0.values() {
            redactor = redactor.with(value);
        }
        match self.http.send_once(&call, not_after).await {
            Ok(answer) => error::rent_outcome(&answer, spot, &redactor),
            Err(failure) => failure.as_rent_outcome(),
        }
    }

    pub(super) async fn show(&self, id: &str) -> ProviderResult<Option<Machine>> {
        let id = number(operation::DESCRIBE, id)?;
        let call = self.call(operation::DESCRIBE, Method::GET, format!("/api/v0/instances/{id}/"));
        let answer = self.answer(&call, self.times.read).await?;
        let said = Said::read(&answer.body);
        if answer.status != 200 && error::says_gone(answer.status, said.as_ref()) {
            return Ok(None);
        }
        let answer = self.success(operation::DESCRIBE, answer)?;
        let body: Value = parse(operation::DESCRIBE, &answer.body)?;
        // A destroyed or foreign id is 200 with an explicit null. A missing field is not that.
        let row = match body.get("instances") {
            Some(Value::Null) => return Ok(None),
            Some(row) => row,
            None => return Err(error::malformed(operation::DESCRIBE, "no field `instances`")),
        };
        match state::machine(row, &self.memory, self.clock.monotonic()) {
            Some((found, machine)) if found == id => Ok(Some(machine)),
            _ => Err(error::malformed(operation::DESCRIBE, "the instance has no id or another one")),
        }
    }

    pub(super) async fn list(&self) -> ProviderResult<Vec<Machine>> {
        let mut machines = Vec::new();
        let mut ids = BTreeSet::new();
        let mut tokens = BTreeSet::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.page(token.as_deref()).await?;
            for row in page.instances.iter().flatten() {
                let Some((id, machine)) = state::machine(row, &self.memory, self.clock.monotonic()) else {
                    return Err(error::malformed(operation::LIST, "an instance without id"));
                };
                if ids.insert(id) {
                    machines.push(machine);
                }
            }
            match page.next_token.filter(|next| !next.is_empty()) {
                Some(next) if tokens.insert(next.clone()) => token = Some(next),
                Some(_) => return Err(error::malformed(operation::LIST, "the pages run in a circle")),
                None => {
                    let shown = machines.len() as u64;
                    if page.total_instances.is_some_and(|total| total > shown) {
                        return Err(error::malformed(
                            operation::LIST,
                            "fewer instances on the pages than in their total",
                        ));
                    }
                    self.memory.keep(|id| ids.contains(&id));
                    return Ok(machines);
                }
            }
        }
        Err(error::malformed(operation::LIST, "too many pages"))
    }

    async fn page(&self, token: Option<&str>) -> ProviderResult<InstancePage> {
        let mut call = self.call(operation::LIST, Method::GET, "/api/v1/instances/".to_owned());
        call.query = vec![("limit", PAGE.to_string()), ("order_by", r#"[{"col":"id","dir":"asc"}]"#.to_owned())];
        call.query.extend(token.map(|token| ("after_token", token.to_owned())));
        call.max_answer_bytes = MAX_PAGE_BYTES;
        let answer = self.read(&call).await?;
        let body: Value = parse(operation::LIST, &answer.body)?;
        // A missing list must not read as an empty one.
        if body.get("instances").is_none() {
            return Err(error::malformed(operation::LIST, "no field `instances`"));
        }
        serde_json::from_value(body).map_err(|e| unreadable(operation::LIST, &e))
    }

    pub(super) async fn destroy(&self, id: &str) -> ProviderResult<()> {
        let id = number(operation::TERMINATE, id)?;
        let mut call = self.call(operation::TERMINATE, Method::DELETE, format!("/api/v0/instances/{id}/"));
        call.body = Some(b"{}".to_vec());
        call.lane = Lane::Ending;
        let answer = self.answer(&call, self.times.terminate).await?;
        if error::says_gone(answer.status, Said::read(&answer.body).as_ref()) {
            return Ok(());
        }
        let answer = self.success(operation::TERMINATE, answer)?;
        match Said::read(&answer.body).and_then(|said| said.success) {
            Some(true) => Ok(()),
            _ => Err(error::malformed(operation::TERMINATE, "no field `success`")),
        }
    }

    pub(super) async fn current_user(&self) -> ProviderResult<Account> {
        let call = self.call(operation::ACCOUNT, Method::GET, "/api/v0/users/current/".to_owned());
        let answer = self.read(&call).await?;
        let body: Value = parse(operation::ACCOUNT, &answer.body)?;
        let id = body.get("id").and_then(super::wire::id);
        let id = id.ok_or_else(|| error::malformed(operation::ACCOUNT, "no field `id`"))?;
        let credit = body.get("credit").and_then(Value::as_f64).and_then(balance);
        Ok(Account { id: Some(id.to_string()), credit })
    }

    pub(super) fn call(&self, operation: &'static str, method: Method, path: String) -> Call<'_> {
        Call {
            operation,
            method,
            path,
            query: Vec::new(),
            body: None,
            bearer: Some(&self.api_key),
            timeout: self.times.one_try,
            max_answer_bytes: MAX_SMALL_BYTES,
            lane: Lane::Other,
        }
    }

    /// Any whole answer.
    pub(super) async fn answer(&self, call: &Call<'_>, within: Duration) -> ProviderResult<Answer> {
        self.http.send_repeatedly(call, within).await.map_err(|failure| failure.as_error(KIND, call.operation))
    }

    /// An answer that says yes, to a call that only reads.
    pub(super) async fn read(&self, call: &Call<'_>) -> ProviderResult<Answer> {
        let answer = self.answer(call, self.times.read).await?;
        self.success(call.operation, answer)
    }

    /// The answer, if it is a success in status and words.
    pub(super) fn success(&self, operation: &'static str, answer: Answer) -> ProviderResult<Answer> {
        // Large answers are lists; what is looked for is a short `{"success": false, …}`.
        let denied =
            answer.body.len() <= 64 << 10 && Said::read(&answer.body).is_some_and(|said| said.success == Some(false));
        if answer.status != 200 || denied {
            return Err(error::refused(operation, &answer, &self.redactor));
        }
        Ok(answer)
    }
}

/// What the market would refuse, or worse, cut.
fn check(request: &RentRequest) -> Result<(), &'static str> {
    if request.offer.id.is_empty() || !request.offer.id.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the offer's id is not one of this market");
    }
    if request.image.is_empty() || request.image.chars().count() > MAX_IMAGE_CHARS {
        return Err("the image's name is empty or longer than 1024 characters");
    }
    if request.bootstrap.chars().count() + SHELL.len() + SHELL_FLAG.len() > MAX_COMMAND_CHARS {
        return Err("the command is longer than 4096 characters");
    }
    let chars = |text: &String| text.chars().count();
    if request.env.0.keys().any(|name| name.is_empty() || chars(name) > MAX_ENV_NAME_CHARS || name.starts_with('-')) {
        // A name that begins with a dash would be taken for an option of docker.
        return Err("a variable's name is empty, begins with a dash or is longer than 256 characters");
    }
    if request.env.0.iter().map(|(name, value)| chars(name) + chars(value)).sum::<usize>() > MAX_ENV_CHARS {
        return Err("the environment is longer than 32768 characters");
    }
    Ok(())
}

/// Ids go into paths, so they are numbers or nothing.
pub(super) fn number(operation: &'static str, id: &str) -> ProviderResult<u64> {
    let plain = id.bytes().all(|b| b.is_ascii_digit());
    id.parse().ok().filter(|_| plain).ok_or_else(|| ProviderError::Refused {
        provider: KIND,
        operation,
        message: "the id is not one of this market".to_owned(),
    })
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("requests are plain structs with text keys")
}

fn parse_search(answer: &Answer) -> ProviderResult<SearchAnswer<'_>> {
    serde_json::from_slice(&answer.body).map_err(|e| unreadable(operation::OFFERS, &e))
}

pub(super) fn parse(operation: &'static str, body: &[u8]) -> ProviderResult<Value> {
    let value: Value = serde_json::from_slice(body).map_err(|e| unreadable(operation, &e))?;
    if value.is_object() { Ok(value) } else { Err(error::malformed(operation, "not a JSON object")) }
}

pub(super) fn unreadable(operation: &'static str, e: &serde_json::Error) -> ProviderError {
    error::malformed(operation, &json_trouble(e))
}
