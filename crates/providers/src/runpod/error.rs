//! One table from RunPod's refusals to ours. "No capacity" has no code of its own: it is status 400 with a sentence, as is a broken rule.

use serde_json::Value;
use tradewind_core::Money;

use super::client::is_id;
use super::config::KIND;
use super::convert;
use super::wire::Problem;
use crate::amounts::money;
use crate::http::{Answer, Redactor};
use crate::{ProviderError, Refusal, RentOutcome, RentRequest};

/// Longest text of the provider's that a message takes over, in characters.
const MAX_WORDS: usize = 200;

/// What 410 means, from any call: never that a pod is gone.
const RETIRED: &str =
    "RunPod has retired this API (status 410); Tradewind must be updated, and pods can be ended in RunPod's console";

/// Words of a refused rental, first match wins.
const REFUSALS: [(&str, Refusal); 15] = [
    ("longer any instances available", Refusal::OutOfStock),
    ("no instances currently available", Refusal::OutOfStock),
    ("no instances available", Refusal::OutOfStock),
    ("there are no instances", Refusal::OutOfStock),
    ("could not find any pods with required specifications", Refusal::OutOfStock),
    ("does not have the resources to deploy", Refusal::OutOfStock),
    ("not enough free gpus", Refusal::OutOfStock),
    ("insufficient balance", Refusal::OutOfCredit),
    ("insufficient funds", Refusal::OutOfCredit),
    ("insufficient credit", Refusal::OutOfCredit),
    ("not enough balance", Refusal::OutOfCredit),
    ("spend limit", Refusal::OutOfCredit),
    ("spending limit", Refusal::OutOfCredit),
    ("bearer token", Refusal::Unauthorised),
    ("api key", Refusal::Unauthorised),
];

/// True only for a 404 in the API's own words: a proxy's page says nothing about a pod.
pub(super) fn says_gone(answer: &Answer) -> bool {
    answer.status == 404
        && Problem::read(&answer.body).is_some_and(|said| said.status.is_none_or(|status| status == 404))
}

/// The most that a new pod may cost an hour before it is ended again. One source says that `cost` includes the disk, and sums are shown
/// in whole cents.
pub(super) fn dearest(request: &RentRequest) -> Money {
    let cent = Money::from_micros(10_000);
    request.price_cap.saturating_add(convert::disk_price(request.disk_gib)).saturating_add(cent)
}

/// What became of a rent call, from an answer that arrived whole.
pub(super) fn rent_outcome(answer: &Answer, dearest: Money, redactor: &Redactor) -> RentOutcome {
    let status = answer.status;
    if (200..=299).contains(&status)
        && let Ok(pod) = serde_json::from_slice::<Value>(&answer.body)
        && let Some(id) = pod.get("id").and_then(Value::as_str).filter(|id| is_id(id))
    {
        let id = id.to_owned();
        let cost = pod.get("cost").and_then(Value::as_f64).and_then(money);
        return match cost.filter(|cost| *cost > dearest) {
            Some(cost) => RentOutcome::Refused {
                why: Refusal::PriceRose,
                message: format!("the pod costs ${cost} an hour, more than its offer said"),
                leftover: Some(id),
            },
            None => RentOutcome::Rented { id },
        };
    }
    let said = Problem::read(&answer.body);
    let Some(why) = refusal(status, said.as_ref()) else {
        return RentOutcome::Unknown { message: format!("status {status} and no answer that tells what happened") };
    };
    let message = match said {
        _ if status == 410 => RETIRED.to_owned(),
        Some(said) => redactor.clean(said.text(), MAX_WORDS),
        None => format!("status {status}"),
    };
    RentOutcome::Refused { why, message, leftover: None }
}

/// `None` = it may have happened.
fn refusal(status: u16, said: Option<&Problem>) -> Option<Refusal> {
    let by_words = || {
        let words = said?.text().to_lowercase();
        REFUSALS.iter().find(|(word, _)| words.contains(word)).map(|(_, why)| *why)
    };
    match status {
        // These come from in front of the market, or leave no room for doubt: nothing was made.
        401 => Some(Refusal::Unauthorised),
        402 => Some(Refusal::OutOfCredit),
        410 => Some(Refusal::Unreachable),
        413 => Some(Refusal::Invalid),
        429 => Some(Refusal::RateLimited),
        // Timed out half-way, or taken early: may still happen.
        408 | 425 => None,
        // "Your account cannot access the requested pool": about this offer, says the official table, unless it names the key.
        403 => said.map(|_| by_words().unwrap_or(Refusal::OutOfStock)),
        400 | 404..=499 => said.map(|_| by_words().unwrap_or(Refusal::Invalid)),
        _ => None,
    }
}

/// The error for an answer that is no success.
pub(super) fn refused(operation: &'static str, answer: &Answer, redactor: &Redactor) -> ProviderError {
    let said = Problem::read(&answer.body);
    let status = answer.status;
    let message = match &said {
        Some(said) => redactor.clean(said.text(), MAX_WORDS),
        None => format!("status {status}"),
    };
    match status {
        401 | 403 => ProviderError::Unauthorised { provider: KIND, message },
        410 => ProviderError::Refused { provider: KIND, operation, message: RETIRED.to_owned() },
        429 => ProviderError::RateLimited { provider: KIND, retry_after: answer.retry_after },
        500.. => ProviderError::Unavailable { provider: KIND, operation, message: format!("status {status}") },
        // Not the market's own words: a proxy's page, say.
        _ if said.is_none() => ProviderError::Malformed { provider: KIND, operation, message },
        _ => ProviderError::Refused { provider: KIND, operation, message },
    }
}

/// The error for an answer that is not what the documents say.
pub(super) fn malformed(operation: &'static str, message: &str) -> ProviderError {
    ProviderError::Malformed { provider: KIND, operation, message: message.to_owned() }
}
