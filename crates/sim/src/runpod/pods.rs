//! Pods: list, create, read, change, act, delete.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::answer::Answer;
use super::catalogue::{cuda_versions, is_offered, max_count};
use super::query::{Query, wrong_value};
use super::schema::{Shape, must, read};
use super::{centers, create, rows, update};
use crate::market::{Machine, Market, Purpose, RentError, SimTime, StartError, bits};

/// Pods of a page, at most and by default.
const PAGE: u64 = 1000;

const ACTION: Shape = Shape::Object(&[must("action", Shape::Word(&["start", "stop", "restart", "terminate"]))]);

/// `GET /v2/pods`.
pub fn list(market: &mut Market, now: SimTime, account: &str, query: &Query) -> Result<Answer, Answer> {
    query.flag("includeClusterPods")?;
    let limit = usize::try_from(query.whole("limit", 1, PAGE)?.unwrap_or(PAGE)).unwrap_or(usize::MAX);
    let after = match query.one("cursor")? {
        None => 0,
        Some(text) => position(account, text).ok_or_else(|| wrong_value("cursor", text))?,
    };
    let ids: Vec<u64> = market.list(now, account).iter().map(|pod| pod.id).filter(|id| *id > after).collect();
    let page = &ids[..ids.len().min(limit)];
    let pods: Vec<Value> = page.iter().filter_map(|id| market.machine(*id)).map(|pod| rows::pod(market, pod)).collect();
    let more = ids.len() > page.len();
    let next = page.last().filter(|_| more).map(|id| cursor(account, *id));
    Ok(Answer::ok(json!({"pods": pods, "pagination": {"nextCursor": next, "hasNextPage": more}})))
}

/// Opaque to clients; another account's is refused.
fn cursor(account: &str, id: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{account} {id}"))
}

fn position(account: &str, cursor: &str) -> Option<u64> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (owner, id) = text.rsplit_once(' ')?;
    id.parse().ok().filter(|_| owner == account)
}

/// `POST /v2/pods`.
pub fn create(market: &mut Market, now: SimTime, account: &str, body: &[u8]) -> Result<Answer, Answer> {
    market.advance(now);
    let password = format!("{:016x}", bits(market.seed(), account, market.events().last(), Purpose::InstanceKey));
    let ssh_keys = market.account(account).map(|account| account.ssh_keys.clone()).unwrap_or_default();
    let mut creation = create::parse(body, &create::Means { ssh_keys, password })?;
    let place = &mut creation.place;
    let offers = market.offers(now, account);
    let offer = offers.iter().map(|(offer, _)| offer).find(|offer| offer.id == creation.spec.offer);
    let offer = offer.ok_or_else(|| Answer::problem(400, "could not find any pods with required specifications"))?;
    let version = cuda_versions(offer).filter(|version| creation.cuda.fits(version)).last();
    let (cpus, memory) = rows::PER_GPU;
    let fits = is_offered(offer, place.community)
        && u64::from(place.gpus) <= max_count(offer, place.community)
        && (creation.cuda.is_free() || version.is_some())
        && creation.per_gpu.0 <= memory
        && creation.per_gpu.1 <= cpus;
    if !fits {
        return Err(Answer::no_capacity());
    }
    if creation.global_networking {
        if place.regions.is_empty() {
            place.regions = offer.regions.iter().map(|region| region.id.clone()).collect();
        }
        place.regions.retain(|id| centers::has_global_network(id));
        if place.regions.is_empty() {
            return Err(Answer::problem(400, "global networking is not available in the requested data centers"));
        }
    }
    rows::decided(&mut creation.spec.workload.wire, version);
    match market.rent_at(now, account, creation.spec, &creation.place) {
        Ok(rented) => show_as(market, rented.id(), 201),
        Err(RentError::NoCredit) => {
            Err(Answer::problem(402, "Insufficient balance to create this pod. Please add credit to your account."))
        }
        Err(_) => Err(Answer::no_capacity()),
    }
}

fn show_as(market: &Market, id: u64, status: u16) -> Result<Answer, Answer> {
    let pod = market.machine(id).ok_or_else(no_pod)?;
    Ok(Answer::json(status, rows::pod(market, pod)))
}

fn no_pod() -> Answer {
    Answer::not_found("pod")
}

/// The pod, if it is there and can be seen: until then no call knows it.
pub fn seen<'a>(market: &'a mut Market, now: SimTime, account: &str, id: Option<u64>) -> Result<&'a Machine, Answer> {
    market.describe(now, account, id.ok_or_else(no_pod)?).ok_or_else(no_pod)
}

/// `GET /v2/pods/{id}`.
pub fn show(market: &mut Market, now: SimTime, account: &str, id: Option<u64>) -> Result<Answer, Answer> {
    let id = seen(market, now, account, id)?.id;
    show_as(market, id, 200)
}

/// `PATCH /v2/pods/{id}`.
pub fn change(
    market: &mut Market,
    now: SimTime,
    account: &str,
    id: Option<u64>,
    body: &[u8],
) -> Result<Answer, Answer> {
    let pod = seen(market, now, account, id)?;
    let (id, revision) = (pod.id, update::parse(pod, body)?);
    market.revise(now, account, id, revision).map_err(|_| no_pod())?;
    show_as(market, id, 200)
}

/// `DELETE /v2/pods/{id}`.
pub fn delete(market: &mut Market, now: SimTime, account: &str, id: Option<u64>) -> Result<Answer, Answer> {
    let id = seen(market, now, account, id)?.id;
    market.terminate(now, account, id).map_err(|_| no_pod())?;
    Ok(Answer::empty())
}

/// The word of an action call's body, if it is one.
pub fn action_word(body: &[u8]) -> Option<String> {
    read(ACTION, body).ok()?.get("action")?.as_str().map(str::to_owned)
}

/// `POST /v2/pods/{id}/action`.
pub fn act(market: &mut Market, now: SimTime, account: &str, id: Option<u64>, body: &[u8]) -> Result<Answer, Answer> {
    let fields = read(ACTION, body)?;
    let action = fields.get("action").and_then(Value::as_str).unwrap_or_default();
    let id = seen(market, now, account, id)?.id;
    let pod = market.machine(id).ok_or_else(no_pod)?;
    let status = rows::status(market, pod);
    if !rows::actions(status).contains(&action) {
        return Err(Answer::problem(409, format!("action '{action}' is not valid for a pod in status {status}")));
    }
    let locked = pod.workload.wire.get("locked") == Some(&Value::Bool(true));
    if locked && (action == "stop" || action == "restart") {
        return Err(Answer::problem(409, "the pod is locked: it cannot be stopped or reset"));
    }
    let keeps_disk = pod.volume_milli_gb > 0;
    match action {
        "terminate" => return delete(market, now, account, Some(id)),
        "stop" => market.stop(now, account, id).map_err(|_| no_pod())?,
        // The container's disk is wiped by a restart (official document); with a volume the simulator keeps all of it.
        "restart" => market.reboot(now, account, id, !keeps_disk).map_err(|_| no_pod())?,
        _ => start(market, now, account, id)?,
    }
    show_as(market, id, 200)
}

fn start(market: &mut Market, now: SimTime, account: &str, id: u64) -> Result<(), Answer> {
    match market.start(now, account, id) {
        Ok(()) => Ok(()),
        Err(StartError::NoSuchMachine) => Err(no_pod()),
        Err(StartError::NoCredit) => Err(Answer::problem(402, "Insufficient balance to resume this on-demand pod.")),
        // The pod is bound to its host, whose GPUs others have by now, or which is gone.
        Err(StartError::Queued) => {
            Err(Answer::problem(400, "There are not enough free GPUs on the host machine to start this pod."))
        }
        Err(_) => Err(Answer::problem(400, "The host machine of this pod is not available.")),
    }
}
