//! One table from Vast.ai's refusals to ours. Its words decide before its statuses do: `no_such_ask` comes with 400, 404 and 410, a bad
//! key with 401, 403 and 404 (field reports up to 2026-09-20).

use super::config::KIND;
use super::wire::Said;
use crate::http::{Answer, Redactor};
use crate::{ProviderError, Refusal, RentOutcome};

/// Longest text of the provider's that a message takes over, in characters.
const MAX_WORDS: usize = 200;

/// Words that mean trouble with the key, wherever they appear. Never taken for "gone".
const KEY_WORDS: [&str; 8] = [
    "invalid user key",
    "invalid api key",
    "auth_error",
    "session expired",
    "please log in",
    "not_authorized",
    "missing permission",
    "route access",
];

/// Words of a refused rental, first match wins.
const REFUSALS: [(&str, Refusal); 19] = [
    ("too frequent", Refusal::RateLimited),
    ("rate_limit_exceeded", Refusal::RateLimited),
    ("spend_rate_limit", Refusal::OutOfCredit),
    ("insufficient_credit", Refusal::OutOfCredit),
    ("insufficient credit", Refusal::OutOfCredit),
    ("insufficient funds", Refusal::OutOfCredit),
    ("insufficient balance", Refusal::OutOfCredit),
    ("lacks credit", Refusal::OutOfCredit),
    ("not enough credit", Refusal::OutOfCredit),
    ("out of credit", Refusal::OutOfCredit),
    ("no_such_ask", Refusal::OutOfStock),
    ("no longer available", Refusal::OutOfStock),
    ("not available", Refusal::OutOfStock),
    ("resources_unavailable", Refusal::OutOfStock),
    ("already rented", Refusal::OutOfStock),
    ("outbid", Refusal::PriceRose),
    ("bid_too_low", Refusal::PriceRose),
    ("bid too low", Refusal::PriceRose),
    ("invalid_price", Refusal::PriceRose),
];

/// Error codes that say that an instance does not exist.
const GONE: [&str; 2] = ["no_such_instance", "not_found"];

pub(super) fn is_about_the_key(status: u16, said: Option<&Said>) -> bool {
    if status == 401 {
        return true;
    }
    let words = said.map(Said::words).unwrap_or_default();
    KEY_WORDS.iter().any(|word| words.contains(word))
}

/// True only for an answer that names the instance, not the key, as what does not exist.
pub(super) fn says_gone(status: u16, said: Option<&Said>) -> bool {
    !is_about_the_key(status, said)
        && matches!(status, 200 | 400 | 404 | 410)
        && said.is_some_and(|said| said.success != Some(true) && GONE.contains(&said.error.as_str()))
}

/// What became of a rent call, from an answer that arrived whole.
pub(super) fn rent_outcome(answer: &Answer, spot: bool, redactor: &Redactor) -> RentOutcome {
    let status = answer.status;
    let said = Said::read(&answer.body);
    let made = said.as_ref().and_then(|said| said.new_contract);
    if let (200..=299, Some(id), Some(said)) = (status, made, &said)
        && said.success != Some(false)
    {
        return RentOutcome::Rented { id: id.to_string() };
    }
    let refused_aloud = matches!(&said, Some(said) if match status {
        200..=299 => said.success == Some(false),
        // A request that timed out half-way, or was taken early, may still happen.
        408 | 425 => made.is_some(),
        400..=499 => !said.error.is_empty() || !said.message.is_empty() || said.success == Some(false),
        _ => made.is_some(),
    });
    // These two statuses come from in front of the market: the request was turned away before anybody read it.
    if !refused_aloud && !matches!(status, 401 | 429) {
        return RentOutcome::Unknown { message: format!("status {status} and no answer that tells what happened") };
    }
    let said = said.unwrap_or_default();
    let why = refusal(status, &said, spot);
    let message =
        if said == Said::default() { format!("status {status}") } else { redactor.clean(&said.text(), MAX_WORDS) };
    RentOutcome::Refused { why, message, leftover: made.map(|id| id.to_string()) }
}

fn refusal(status: u16, said: &Said, spot: bool) -> Refusal {
    if is_about_the_key(status, Some(said)) {
        return Refusal::Unauthorised;
    }
    let words = said.words();
    if let Some((_, why)) = REFUSALS.iter().find(|(word, _)| words.contains(word)) {
        return *why;
    }
    match status {
        402 => Refusal::OutOfCredit,
        410 => Refusal::OutOfStock,
        429 => Refusal::RateLimited,
        // A machine that was made and does not start is what a bid below the market leaves behind.
        _ if said.new_contract.is_some() && spot => Refusal::PriceRose,
        _ if said.new_contract.is_some() => Refusal::OutOfStock,
        // "Hosts can only rent their own machines" is about this offer, other refusals with this status are about the key.
        403 if words.contains("not your own") => Refusal::Invalid,
        403 => Refusal::Unauthorised,
        _ => Refusal::Invalid,
    }
}

/// The error for an answer that is no success.
pub(super) fn refused(operation: &'static str, answer: &Answer, redactor: &Redactor) -> ProviderError {
    let said = Said::read(&answer.body);
    let status = answer.status;
    let message = match &said {
        Some(said) => redactor.clean(&said.text(), MAX_WORDS),
        None => format!("status {status}"),
    };
    if is_about_the_key(status, said.as_ref()) || status == 403 {
        return ProviderError::Unauthorised { provider: KIND, message };
    }
    match status {
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
