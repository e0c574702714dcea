//! The machine's output, and what RunPod says about starting it: a stream of events without an end, of which the first lines are the last
//! ones that were printed. `system` lines are the only place where a failed pull can be seen.

use reqwest::Method;
use serde_json::Value;

use super::RunPod;
use super::client::pod_path;
use super::config::{KIND, operation};
use super::error;
use crate::ProviderResult;

const MAX_LOG_BYTES: usize = 4 << 20;
/// The largest number of lines that are sent again.
const MAX_TAIL: u32 = 5000;

impl RunPod {
    pub(super) async fn read_logs(&self, id: &str, lines: u32) -> ProviderResult<Option<String>> {
        let lines = lines.clamp(1, MAX_TAIL);
        let path = format!("{}/logs", pod_path(operation::LOGS, id)?);
        let mut call = self.call(operation::LOGS, Method::GET, path);
        call.query = vec![("tail", lines.to_string())];
        call.timeout = self.times.logs;
        call.max_answer_bytes = MAX_LOG_BYTES;
        let enough = |body: &[u8]| events(body) >= lines as usize;
        let answer = self.http.read_stream(&call, self.times.logs_quiet, &enough).await;
        let answer = answer.map_err(|failure| failure.as_error(KIND, operation::LOGS))?;
        if error::says_gone(&answer) {
            return Ok(None);
        }
        let answer = self.success(operation::LOGS, answer)?;
        Ok(Some(text(&answer.body, lines as usize)))
    }
}

/// How many events have arrived whole.
fn events(body: &[u8]) -> usize {
    body.split_inclusive(|b| *b == b'\n').filter(|line| line.starts_with(b"data:") && line.ends_with(b"\n")).count()
}

/// The last `most` lines of a stream of events.
fn text(body: &[u8], most: usize) -> String {
    let body = String::from_utf8_lossy(body);
    let lines: Vec<String> = body.lines().filter_map(|line| said(line.strip_prefix("data:")?)).collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

fn said(data: &str) -> Option<String> {
    let event: Value = serde_json::from_str(data.trim()).ok()?;
    let line = event.get("line")?.as_str()?.trim_end();
    let system = event.get("source").and_then(Value::as_str) == Some("system");
    Some(if system { format!("[system] {line}") } else { line.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{events, text};

    #[test]
    fn keeps_the_end_and_leaves_out_what_is_not_whole() {
        let body = b"id: 1\ndata: {\"source\":\"system\",\"line\":\"pulling\\n\"}\n\n: ping\ndata:{\"line\":\"a\"}\r\ndata: nonsense\ndata: {\"line\":\"b\"}\ndata: {\"line\":\"c";
        assert_eq!(text(body, 9), "[system] pulling\na\nb");
        assert_eq!(text(body, 2), "a\nb");
        assert_eq!(text(b"", 2), "");
        assert_eq!(events(body), 4);
    }
}
