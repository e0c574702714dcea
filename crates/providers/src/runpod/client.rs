//! Reading and ending: what is sent, and who reads the answer.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tradewind_core::Offer;

use super::config::{KIND, operation};
use super::convert::{self, Cloud};
use super::wire::{Catalogue, Pagination, PodPage};
use super::{RunPod, error};
use crate::http::{Answer, Call, Lane, json_trouble};
use crate::{Account, Machine, OfferQuery, ProviderError, ProviderResult};

/// Numbers of GPUs that are asked about: stock differs by them, and a job wants exactly its number.
const COUNTS: [u32; 4] = [1, 2, 4, 8];

/// Sizes of answers. A GPU type with its data centres is about 2 kB; a pod about 2 kB and our environment, and a page has up to 1000.
const MAX_CATALOGUE_BYTES: usize = 4 << 20;
const MAX_PAGE_BYTES: usize = 16 << 20;
const MAX_SMALL_BYTES: usize = 1 << 20;
const MAX_PAGES: usize = 400;

impl RunPod {
    pub(super) async fn read_catalogue(&self, query: &OfferQuery) -> ProviderResult<Vec<Offer>> {
        let counts = COUNTS.into_iter().filter(|count| *count >= query.min_gpu_count);
        let asked: Vec<(Cloud, u32)> = counts.flat_map(|count| Cloud::ALL.map(|cloud| (cloud, count))).collect();
        let looks = asked.into_iter().map(|(cloud, count)| self.look(cloud, count));
        let mut offers = Vec::new();
        for look in futures::future::try_join_all(looks).await? {
            offers.extend(look.offers);
        }
        Ok(offers)
    }

    async fn look(&self, cloud: Cloud, count: u32) -> ProviderResult<convert::Look> {
        let mut call = self.call(operation::OFFERS, Method::GET, "/v2/catalog/gpus".to_owned());
        call.query = vec![
            ("include", "AVAILABILITY".to_owned()),
            ("product", "POD".to_owned()),
            ("count", count.to_string()),
            ("cloud", cloud.word().to_owned()),
        ];
        call.max_answer_bytes = MAX_CATALOGUE_BYTES;
        let answer = self.read(&call).await?;
        let catalogue: Catalogue<'_> =
            serde_json::from_slice(&answer.body).map_err(|e| unreadable(operation::OFFERS, &e))?;
        let look = convert::offers(&self.provider, &catalogue, cloud, count);
        if !catalogue.gpus.is_empty() && look.unreadable == catalogue.gpus.len() {
            // One odd row is its own trouble; when nothing at all can be read, the market speaks another language.
            return Err(error::malformed(operation::OFFERS, "not one GPU type can be read"));
        }
        if look.dropped > 0 {
            let (dropped, kept) = (look.dropped, look.offers.len());
            tracing::debug!(provider = KIND, dropped, kept, "Left out GPU types that cannot be read or rented");
        }
        self.dropped_offers.fetch_add(look.dropped as u64, Ordering::Relaxed);
        Ok(look)
    }

    pub(super) async fn show(&self, id: &str) -> ProviderResult<Option<Machine>> {
        let call = self.call(operation::DESCRIBE, Method::GET, pod_path(operation::DESCRIBE, id)?);
        let answer = self.answer(&call, self.times.read).await?;
        if error::says_gone(&answer) {
            return Ok(None);
        }
        let answer = self.success(operation::DESCRIBE, answer)?;
        match self.memory.machine(&parse(operation::DESCRIBE, &answer.body)?) {
            Some(row) if row.machine.id == id => Ok((!row.deleted).then_some(row.machine)),
            _ => Err(error::malformed(operation::DESCRIBE, "the pod has no id or another one")),
        }
    }

    pub(super) async fn list(&self) -> ProviderResult<Vec<Machine>> {
        let mut machines = Vec::new();
        let mut ids = BTreeSet::new();
        let mut cursors = BTreeSet::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.page(cursor.as_deref()).await?;
            for row in &page.pods {
                let Some(row) = self.memory.machine(row) else {
                    return Err(error::malformed(operation::LIST, "a pod without id"));
                };
                if !row.deleted && ids.insert(row.machine.id.clone()) {
                    machines.push(row.machine);
                }
            }
            match next_page(page.pagination)? {
                Some(next) if cursors.insert(next.clone()) => cursor = Some(next),
                Some(_) => return Err(error::malformed(operation::LIST, "the pages run in a circle")),
                None => {
                    self.memory.keep(&ids);
                    return Ok(machines);
                }
            }
        }
        Err(error::malformed(operation::LIST, "too many pages"))
    }

    async fn page(&self, cursor: Option<&str>) -> ProviderResult<PodPage> {
        let mut call = self.call(operation::LIST, Method::GET, "/v2/pods".to_owned());
        // A page has the largest size by default. Filters are not sent: RunPod ignores those that it does not know.
        call.query = vec![("includeClusterPods", "true".to_owned())];
        call.query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
        call.max_answer_bytes = MAX_PAGE_BYTES;
        let answer = self.read(&call).await?;
        serde_json::from_slice(&answer.body).map_err(|e| unreadable(operation::LIST, &e))
    }

    /// Deletes; a stopped pod would go on costing.
    pub(super) async fn delete(&self, id: &str) -> ProviderResult<()> {
        let mut call = self.call(operation::TERMINATE, Method::DELETE, pod_path(operation::TERMINATE, id)?);
        call.lane = Lane::Ending;
        let answer = self.answer(&call, self.times.terminate).await?;
        if error::says_gone(&answer) {
            return Ok(());
        }
        self.success(operation::TERMINATE, answer).map(drop)
    }

    /// REST v2 tells nothing about the account but its SSH keys, so these are what a key is tried with.
    pub(super) async fn check_key(&self) -> ProviderResult<Account> {
        let call = self.call(operation::ACCOUNT, Method::GET, "/v2/account/ssh-keys".to_owned());
        let answer = self.read(&call).await?;
        let body = parse(operation::ACCOUNT, &answer.body)?;
        if !body.get("keys").is_some_and(Value::is_array) {
            return Err(error::malformed(operation::ACCOUNT, "no field `keys`"));
        }
        Ok(Account { id: None, credit: None })
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
    async fn answer(&self, call: &Call<'_>, within: Duration) -> ProviderResult<Answer> {
        self.http.send_repeatedly(call, within).await.map_err(|failure| failure.as_error(KIND, call.operation))
    }

    /// An answer that says yes, to a call that only reads.
    pub(super) async fn read(&self, call: &Call<'_>) -> ProviderResult<Answer> {
        let answer = self.answer(call, self.times.read).await?;
        self.success(call.operation, answer)
    }

    pub(super) fn success(&self, operation: &'static str, answer: Answer) -> ProviderResult<Answer> {
        let yes = match operation {
            operation::TERMINATE => matches!(answer.status, 200 | 202 | 204),
            _ => answer.status == 200,
        };
        if yes { Ok(answer) } else { Err(error::refused(operation, &answer, &self.redactor)) }
    }
}

/// The cursor of the next page. What is said half, or against itself, is no end.
pub(super) fn next_page(pagination: Option<Pagination>) -> ProviderResult<Option<String>> {
    let Some(pagination) = pagination else { return Ok(None) };
    let next = pagination.next_cursor.filter(|next| !next.is_empty());
    match (pagination.has_next_page, next) {
        (Some(true), None) => Err(error::malformed(operation::LIST, "there is a next page, but no way to it")),
        (Some(false), _) => Ok(None),
        (_, next) => Ok(next),
    }
}

/// Ids go into paths, so they are letters and digits or nothing.
pub(super) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

pub(super) fn pod_path(operation: &'static str, id: &str) -> ProviderResult<String> {
    if is_id(id) {
        return Ok(format!("/v2/pods/{id}"));
    }
    Err(ProviderError::Refused { provider: KIND, operation, message: "the id is not one of this market".to_owned() })
}

pub(super) fn parse(operation: &'static str, body: &[u8]) -> ProviderResult<Value> {
    let value: Value = serde_json::from_slice(body).map_err(|e| unreadable(operation, &e))?;
    if value.is_object() { Ok(value) } else { Err(error::malformed(operation, "not a JSON object")) }
}

pub(super) fn unreadable(operation: &'static str, e: &serde_json::Error) -> ProviderError {
    error::malformed(operation, &json_trouble(e))
}
