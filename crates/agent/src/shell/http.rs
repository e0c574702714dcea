//! The object store through tickets. Nothing in here prints or returns a URL.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::{SelfEnd, Ticket};

use crate::logic::{ChunkOutcome, Fetched};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For a small document, from the first byte to the last.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(20);
/// How long a large transfer may stand still.
const STALL_LIMIT: Duration = Duration::from_mins(1);
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
/// Bytes of an error answer that are looked at.
const ERROR_BYTES: usize = 4_096;

/// Why the agent cannot speak HTTP at all.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// TLS could not be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The client could not be built.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// Why a chunk could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The object is not there or longer than it may be: it can never be right.
    Wrong(String),
    /// Trying again may help.
    Failed(String),
}

/// An HTTP client with limits set.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client,
}

impl Http {
    /// A client that trusts the roots built into it and follows no redirects.
    #[expect(clippy::disallowed_methods, reason = "this is the one place of the agent that builds HTTP clients")]
    pub fn new() -> Result<Self, HttpError> {
        let roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(HttpError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(STALL_LIMIT)
            .pool_idle_timeout(Duration::from_mins(1))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(HttpError::Client)?;
        Ok(Self { client })
    }

    /// Reads a document of at most `most` bytes.
    pub async fn document(&self, ticket: &Ticket, etag: Option<&str>, most: usize) -> Fetched<Bytes> {
        let mut request = self.client.get(&ticket.url).timeout(DOCUMENT_LIMIT);
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Fetched::Failed(describe(error)),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Fetched::NotModified,
            StatusCode::NOT_FOUND => return Fetched::Absent,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Fetched::Denied,
            status => return Fetched::Failed(format!("the store answered {}", status.as_u16())),
        }
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(ToOwned::to_owned);
        match read_bounded(response, most).await {
            Ok(Some(value)) => Fetched::Found { value, etag },
            Ok(None) => Fetched::Invalid(format!("it has more than {most} bytes")),
            Err(error) => Fetched::Failed(describe(error)),
        }
    }

    /// Overwrites a small document.
    pub async fn overwrite(&self, ticket: &Ticket, body: Vec<u8>) -> Result<(), String> {
        let request = self.client.put(&ticket.url).timeout(DOCUMENT_LIMIT).body(body);
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(format!("the store answered {}", response.status().as_u16())),
            Err(error) => Err(describe(error)),
        }
    }

    /// Asks the provider to end the rental. A rental that is not there is ended. The reason otherwise names neither URL nor key.
    pub async fn end_rental(&self, end: &SelfEnd, key: &SecretString) -> Result<(), String> {
        let method = Method::from_bytes(end.method.as_bytes()).map_err(|_| "its method is none".to_owned())?;
        let request = self.client.request(method, &end.url).timeout(DOCUMENT_LIMIT);
        let request =
            request.bearer_auth(key.expose_secret().trim()).header(CONTENT_TYPE, "application/json").body("{}");
        match request.send().await.map(|response| response.status()) {
            Ok(status) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            Ok(status) => Err(format!("the provider answered {}", status.as_u16())),
            Err(error) => Err(describe(error)),
        }
    }

    /// Fills a slot that must be empty with `size` bytes whose MD5 (base64) the store checks.
    pub async fn fill<S>(&self, ticket: &Ticket, size: u64, md5: &str, body: S) -> ChunkOutcome
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let moved = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&moved);
        let body = body.inspect(move |part| {
            if let Ok(part) = part {
                counter.fetch_add(part.len() as u64 + 1, Ordering::Relaxed);
            }
        });
        let request = self
            .client
            .put(&ticket.url)
            // A stream of unknown length would be sent in chunks, which real stores refuse (411).
            .header(CONTENT_LENGTH, size)
            .header(CONTENT_MD5, md5)
            .header(IF_NONE_MATCH, "*")
            .body(reqwest::Body::wrap_stream(body));
        tokio::select! {
            outcome = send_chunk(request) => outcome,
            () = stalled(&moved) => ChunkOutcome::Failed("the upload stood still".to_owned()),
        }
    }

    /// Reads an object of exactly `size` bytes, part by part.
    pub async fn read<F>(&self, ticket: &Ticket, size: u64, mut part: F) -> Result<(), ReadError>
    where
        F: FnMut(&[u8]) -> std::io::Result<()>,
    {
        let failed = |error| ReadError::Failed(describe(error));
        let response = self.client.get(&ticket.url).send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(ReadError::Wrong("a chunk is missing".to_owned())),
            status => return Err(ReadError::Failed(format!("the store answered {}", status.as_u16()))),
        }
        let mut left = size;
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(failed)?;
            left = left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| ReadError::Wrong("a chunk is longer than the manifest says".to_owned()))?;
            part(&bytes).map_err(|error| ReadError::Failed(format!("it cannot be written to disk ({error})")))?;
        }
        if left > 0 { Err(ReadError::Wrong("a chunk is shorter than the manifest says".to_owned())) } else { Ok(()) }
    }
}

async fn send_chunk(request: RequestBuilder) -> ChunkOutcome {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return ChunkOutcome::Failed(describe(error)),
    };
    let status = response.status();
    match status {
        _ if status.is_success() => ChunkOutcome::Stored,
        // 409: Azure's word for it, and S3's while another write to the same key is going on.
        StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => ChunkOutcome::Taken,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ChunkOutcome::Denied,
        _ => {
            let text = read_bounded(response, ERROR_BYTES).await.ok().flatten().unwrap_or_default();
            let digest = ["BadDigest", "InvalidDigest", "Md5Mismatch"].iter().any(|code| contains(&text, code));
            if status == StatusCode::BAD_REQUEST && digest {
                ChunkOutcome::Unreadable("its bytes changed while they were sent".to_owned())
            } else {
                ChunkOutcome::Failed(format!("the store answered {}", status.as_u16()))
            }
        }
    }
}

/// Ends when the counter has stood still for [`STALL_LIMIT`].
async fn stalled(moved: &AtomicU64) {
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(STALL_LIMIT).await;
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            return;
        }
        before = now;
    }
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// The whole body, or `None` if it has more than `most` bytes.
async fn read_bounded(response: Response, most: usize) -> reqwest::Result<Option<Bytes>> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Ok(None);
    }
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(part) = stream.next().await {
        let part = part?;
        if body.len() + part.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(body.into()))
}

/// What went wrong, down to the cause, without the URL.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
