//! The machine's output. The market puts it into a file somewhere else and answers with a URL, which it takes a moment to fill.

use std::time::Duration;

use reqwest::{Method, Url};
use serde_json::Value;

use super::Vast;
use super::client::{number, parse};
use super::config::{KIND, operation};
use super::error;
use super::wire::{LogsRequest, Said};
use crate::ProviderResult;

/// The official client asks about thirty times, 0.3 s apart.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(300);
const MAX_LOG_BYTES: usize = 4 << 20;

impl Vast {
    pub(super) async fn fetch_logs(&self, id: &str, lines: u32) -> ProviderResult<Option<String>> {
        let id = number(operation::LOGS, id)?;
        let mut call = self.call(operation::LOGS, Method::PUT, format!("/api/v0/instances/request_logs/{id}/"));
        let request = LogsRequest { tail: lines.clamp(1, 10_000).to_string() };
        call.body = Some(serde_json::to_vec(&request).expect("a struct of one text"));
        let answer = self.answer(&call, self.times.read).await?;
        let said = Said::read(&answer.body);
        let no_such_id = said.as_ref().is_some_and(|said| said.error == "invalid_id");
        if answer.status == 404 && no_such_id || error::says_gone(answer.status, said.as_ref()) {
            return Ok(None);
        }
        let answer = self.success(operation::LOGS, answer)?;
        let body = parse(operation::LOGS, &answer.body)?;
        let Some(link) = body.get("result_url").and_then(Value::as_str) else { return Ok(None) };
        let url = Url::parse(link).ok().filter(|url| self.may_fetch(url));
        let url = url.ok_or_else(|| {
            error::malformed(operation::LOGS, "the log's URL points to a host that is not the market's")
        })?;
        self.log_file(url, lines).await
    }

    async fn log_file(&self, url: Url, lines: u32) -> ProviderResult<Option<String>> {
        let mut call = self.call(operation::LOG_FILE, Method::GET, String::new());
        // The file's host is not the market: it must not see the key.
        call.bearer = None;
        call.max_answer_bytes = MAX_LOG_BYTES;
        for tried in 0..TRIES {
            if tried > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let answer = self.http.fetch(url.clone(), &call).await.map_err(|e| e.as_error(KIND, operation::LOGS))?;
            match answer.status {
                200 => return Ok(Some(last_lines(&String::from_utf8_lossy(&answer.body), lines))),
                403 | 404 => {}
                _ => return Err(error::refused(operation::LOGS, &answer, &self.redactor)),
            }
        }
        Ok(None)
    }

    /// The market's answer must not make us call anybody inside our own network: only its own address, its domain and Amazon's S3.
    pub(super) fn may_fetch(&self, url: &Url) -> bool {
        if url.origin() == self.http.base_url().origin() {
            return true;
        }
        let host = url.host_str().unwrap_or_default();
        let s3 = host
            .strip_suffix(".amazonaws.com")
            .is_some_and(|name| name.split('.').any(|part| part == "s3" || part.starts_with("s3-")));
        url.scheme() == "https"
            && url.port().is_none()
            && url.username().is_empty()
            && (s3 || host.ends_with(".vast.ai"))
    }
}

fn last_lines(text: &str, lines: u32) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
    all[from..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }
}
