//! One client, one way to call.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use tradewind_core::{Clock, ExposeSecret, SecretString, fail_point};

use super::{CallFailure, CallObserver, CallOutcome, Lane, ObservedCall, RateGate, SetupError};

/// What an adapter tells about its provider.
pub struct HttpSettings {
    /// Provider kind, for metrics and texts.
    pub provider: &'static str,
    /// Scheme, host and port; paths of calls are put below it.
    pub base_url: Url,
    /// Rate limits.
    pub gate: Arc<RateGate>,
    /// Metrics.
    pub observer: Arc<dyn CallObserver>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// One call. Does not print: body and query may hold secrets.
pub struct Call<'a> {
    /// The adapter's word for it: names the rate limit and the metric.
    pub operation: &'static str,
    /// Method.
    pub method: Method,
    /// Path below the base URL, with its leading slash. Made by the adapter out of constants and checked ids only.
    pub path: String,
    /// Query pairs.
    pub query: Vec<(&'static str, String)>,
    /// JSON body.
    pub body: Option<Vec<u8>>,
    /// Sent as `Authorization: Bearer`.
    pub bearer: Option<&'a SecretString>,
    /// Time for one try, from connecting to the last byte.
    pub timeout: Duration,
    /// The largest answer that is read, in bytes.
    pub max_answer_bytes: usize,
    /// Its queue.
    pub lane: Lane,
}

/// An answer that arrived whole, whatever its status. Does not print its body.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After` in seconds, where it was sent as a number, at most one hour.
    pub retry_after: Option<Duration>,
    /// Body.
    pub body: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// How an answer is read.
#[derive(Clone, Copy)]
enum Reading<'a> {
    /// To its end.
    Whole,
    /// Until it is enough: it has no end of its own.
    Stream { quiet: Duration, enough: &'a (dyn Fn(&[u8]) -> bool + Sync) },
}

/// The client of one account.
pub struct Http {
    client: reqwest::Client,
    settings: HttpSettings,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!("tradewind/", env!("CARGO_PKG_VERSION"));

impl Http {
    /// Builds the client: rustls on ring, the system's CA files, no redirects, no cookies, no hidden retries.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that builds HTTP clients for providers")]
    pub fn new(settings: HttpSettings) -> Result<Self, SetupError> {
        let base = &settings.base_url;
        let bare = base.username().is_empty() && base.password().is_none();
        let plain = base.query().is_none() && base.fragment().is_none();
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() || !bare || !plain {
            return Err(SetupError::BaseUrl);
        }
        // An error says that a provider is installed already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .pool_idle_timeout(Duration::from_secs(30));
        if is_loopback(base) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(SetupError::Client)?;
        Ok(Self { client, settings })
    }

    /// The base URL.
    pub fn base_url(&self) -> &Url {
        &self.settings.base_url
    }

    /// Sends the call at most once. Its first byte leaves before `not_after` (the clock's monotonic time) or it is not sent at all;
    /// waiting for the rate limit counts.
    pub async fn send_once(&self, call: &Call<'_>, not_after: Duration) -> Result<Answer, CallFailure> {
        if self.settings.clock.monotonic() > not_after {
            return Err(CallFailure::TooLate { wait: None });
        }
        let admitted = self.settings.gate.admit(call.operation, call.lane, not_after).await;
        let _seat = admitted.map_err(|wait| CallFailure::TooLate { wait: Some(wait) })?;
        self.try_once(self.url_of(call), call, call.timeout, Some(not_after), Reading::Whole).await
    }

    /// Reads the beginning of an answer that has no end (server-sent events), in one try: until `enough` says so of all that has
    /// arrived, nothing new has arrived for `quiet`, its largest size is reached, or the call's time is over. What has arrived by
    /// then is the answer. Waits for the rate limit for as long as one try may take.
    pub async fn read_stream(
        &self,
        call: &Call<'_>,
        quiet: Duration,
        enough: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<Answer, CallFailure> {
        let not_after = self.settings.clock.monotonic() + call.timeout;
        let admitted = self.settings.gate.admit(call.operation, call.lane, not_after).await;
        let _seat = admitted.map_err(|wait| CallFailure::TooLate { wait: Some(wait) })?;
        self.try_once(self.url_of(call), call, call.timeout, None, Reading::Stream { quiet, enough }).await
    }

    /// Sends a call that may be repeated (a read, or terminate) until an answer other than 429 or 5xx arrives, for `within` at most.
    /// `Retry-After` is honoured where it fits. What it returns in the end is the last answer or failure.
    pub async fn send_repeatedly(&self, call: &Call<'_>, within: Duration) -> Result<Answer, CallFailure> {
        let url = self.url_of(call);
        self.repeat(&url, call, within).await
    }

    /// Reads a file that the provider points to by a whole URL, which may be signed and never enters a text.
    /// The caller has checked the host. No authorisation is sent.
    pub async fn fetch(&self, url: Url, call: &Call<'_>) -> Result<Answer, CallFailure> {
        self.try_once(url, call, call.timeout, None, Reading::Whole).await
    }

    async fn repeat(&self, url: &Url, call: &Call<'_>, within: Duration) -> Result<Answer, CallFailure> {
        let clock = &self.settings.clock;
        let end = clock.monotonic() + within;
        let attempt = || async {
            let admitted = self.settings.gate.admit(call.operation, call.lane, end).await;
            let _seat = admitted.map_err(|wait| Err(CallFailure::TooLate { wait: Some(wait) }))?;
            let left = end.saturating_sub(clock.monotonic());
            match self.try_once(url.clone(), call, call.timeout.min(left), None, Reading::Whole).await {
                Ok(answer) if answer.status == 429 || answer.status >= 500 => Err(Ok(answer)),
                other => other.map_err(Err),
            }
        };
        let pace = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(8)
            .with_jitter();
        let ended: Result<Answer, Result<Answer, CallFailure>> = attempt
            .retry(pace)
            .when(|why| !matches!(why, Err(CallFailure::TooLate { .. })))
            .adjust(|why, next| {
                let asked = why.as_ref().ok().and_then(|answer| answer.retry_after).unwrap_or_default();
                next.map(|pause| pause.max(asked)).filter(|pause| clock.monotonic() + *pause < end)
            })
            .await;
        ended.or_else(|last| last)
    }

    async fn try_once(
        &self,
        url: Url,
        call: &Call<'_>,
        timeout: Duration,
        not_after: Option<Duration>,
        reading: Reading<'_>,
    ) -> Result<Answer, CallFailure> {
        let clock = &self.settings.clock;
        let started = clock.monotonic();
        let result = self.exchange(url, call, timeout, not_after, reading).await;
        let outcome = match &result {
            Ok(answer) => CallOutcome::of_status(answer.status),
            Err(CallFailure::NotSent { .. }) => CallOutcome::NotSent,
            Err(CallFailure::TooLate { .. }) => CallOutcome::TooLate,
            Err(_) => CallOutcome::NoAnswer,
        };
        if let Ok(answer) = &result
            && answer.status == 429
        {
            self.settings.gate.pause(call.operation, answer.retry_after);
        }
        let elapsed = clock.monotonic().saturating_sub(started);
        let (provider, operation) = (self.settings.provider, call.operation);
        tracing::debug!(
            provider,
            operation,
            outcome = outcome.as_str(),
            elapsed_ms = elapsed.as_millis(),
            "Called provider"
        );
        self.settings.observer.call_ended(&ObservedCall { provider, operation, outcome, elapsed });
        result
    }

    async fn exchange(
        &self,
        url: Url,
        call: &Call<'_>,
        timeout: Duration,
        not_after: Option<Duration>,
        reading: Reading<'_>,
    ) -> Result<Answer, CallFailure> {
        let accept = if matches!(reading, Reading::Whole) { "application/json" } else { "text/event-stream" };
        let mut request = self.client.request(call.method.clone(), url).timeout(timeout).header(ACCEPT, accept);
        if let Some(key) = call.bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).map_err(|_| {
                CallFailure::NotSent { message: "the key has characters that no header can carry".to_owned() }
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let expired = Arc::new(AtomicBool::new(false));
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").header(CONTENT_LENGTH, body.len());
            request = request.body(self.guarded(body.clone(), not_after, &expired));
        }
        let response = request.send().await.map_err(|error| {
            if expired.load(Ordering::Acquire) {
                CallFailure::TooLate { wait: None }
            } else {
                CallFailure::of_request(&error)
            }
        })?;
        let limits = response.headers().get_all("ratelimit").iter().filter_map(|value| value.to_str().ok());
        if let Some(time) = limits.filter_map(exhausted_for).max() {
            self.settings.gate.pause_all(time);
        }
        match reading {
            Reading::Stream { quiet, enough } if response.status().is_success() => {
                Ok(read_until(response, call.max_answer_bytes, quiet, enough).await)
            }
            _ => read(response, call.max_answer_bytes).await,
        }
    }

    /// The body, handed out only while its time is not over. Connecting takes time as well, and a head without its body is no request:
    /// so this is the last moment at which a call can still be held back.
    fn guarded(&self, body: Vec<u8>, not_after: Option<Duration>, expired: &Arc<AtomicBool>) -> reqwest::Body {
        let Some(not_after) = not_after else { return body.into() };
        let (clock, expired) = (Arc::clone(&self.settings.clock), Arc::clone(expired));
        reqwest::Body::wrap_stream(futures::stream::once(async move {
            if clock.monotonic() > not_after {
                expired.store(true, Ordering::Release);
                return Err(std::io::Error::other("its time is over"));
            }
            fail_point::reach("call-begun");
            Ok(body)
        }))
    }

    fn url_of(&self, call: &Call<'_>) -> Url {
        let mut url = self.settings.base_url.clone();
        url.set_path(&format!("{}{}", self.settings.base_url.path().trim_end_matches('/'), call.path));
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query.iter().map(|(name, value)| (*name, value.as_str())));
        }
        url
    }
}

/// How long a used-up window of a `RateLimit` header still lasts (IETF draft: `"minute";r=0;t=12, "hour";r=2800;t=1812`), at most one hour.
fn exhausted_for(header: &str) -> Option<Duration> {
    let windows = header.split(',').filter_map(|window| {
        let number = |name: char| {
            let mut parts = window.split(';').map(str::trim);
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        (number('r')? == 0).then(|| number('t')).flatten()
    });
    windows.max().map(|seconds| Duration::from_secs(seconds.min(3600)))
}

async fn read_until(
    mut response: reqwest::Response,
    max_bytes: usize,
    quiet: Duration,
    enough: &(dyn Fn(&[u8]) -> bool + Sync),
) -> Answer {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    // Whatever ends it, what has arrived counts.
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(quiet, response.chunk()).await {
        body.extend_from_slice(&chunk);
        if body.len() >= max_bytes || enough(&body) {
            break;
        }
    }
    body.truncate(max_bytes);
    Answer { status, retry_after: None, body }
}

async fn read(mut response: reqwest::Response, max_bytes: usize) -> Result<Answer, CallFailure> {
    let status = response.status().as_u16();
    let too_large = || CallFailure::Unreadable { status, message: format!("larger than {max_bytes} bytes") };
    let seconds = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
    if response.content_length().is_some_and(|n| n > max_bytes as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| CallFailure::of_body(status, &error))? {
        if body.len() + chunk.len() > max_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after: seconds.map(|s| Duration::from_secs(s.min(3600))), body })
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod rate_limit_header {
    use std::time::Duration;

    use super::exhausted_for;

    #[test]
    fn only_a_window_without_anything_left_counts() {
        for (header, seconds) in [
            (r#""minute";r=0;t=12, "hour";r=2800;t=1812, "day";r=49500;t=45012"#, Some(12)),
            (r#""minute";r=0;t=12, "hour";r=0;t=1812"#, Some(1812)),
            (r#""day";t=45012;r=0"#, Some(3600)),
            (r#""minute";r=3;t=12"#, None),
            (r#""minute";r=0"#, None),
            (r#""minute";r=x;t=12, ;;=,"#, None),
            ("", None),
        ] {
            assert_eq!(exhausted_for(header), seconds.map(Duration::from_secs), "{header}");
        }
    }
}
