//! The store port on S3 and everything that speaks its protocol.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use jiff::Timestamp;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tradewind_core::Clock;
use tradewind_protocol::Ticket;

use crate::store::{
    Answer, Fetched, MAX_TICKET_LIFETIME, ObjectInfo, PutOutcome, Store, StoreError, Stores, check_key, check_prefix,
};
use crate::{Location, StoreCredentials};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one request may take with its body: our largest is the agent's binary.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Requests under way at once, over all callers: each has a connection of its own, of about 25 KB, and a thousand workers may be looked at at
/// the same moment. More would not be faster: an answer takes milliseconds.
const AT_ONCE: usize = 32;
/// The longest life of a ticket signed with temporary credentials, whose end we are not told.
const TEMPORARY_TICKET_LIFETIME: Duration = Duration::from_hours(1);

/// One place in a bucket of S3 or of a store that speaks its protocol.
pub struct S3Store {
    client: AmazonS3,
    location: Location,
    clock: Arc<dyn Clock>,
    ticket_lifetime: Duration,
    turns: Semaphore,
}

/// Opens real buckets.
pub struct S3Stores {
    clock: Arc<dyn Clock>,
}

impl S3Stores {
    /// The clock tells when tickets end.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

impl Stores for S3Stores {
    fn open(&self, location: &Location, credentials: &StoreCredentials) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(S3Store::open(location, credentials, Arc::clone(&self.clock))?))
    }
}

impl S3Store {
    /// The store at a place. Makes no call. The process must have installed its rustls provider before.
    pub fn open(
        location: &Location,
        credentials: &StoreCredentials,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let endpoint = credentials.endpoint();
        let plain_http = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let limits = ClientOptions::new()
            .with_allow_http(plain_http)
            .with_connect_timeout(CONNECT_LIMIT)
            .with_timeout(REQUEST_LIMIT);
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            ..BackoffConfig::default()
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(location.bucket())
            .with_region(credentials.region())
            .with_access_key_id(credentials.access_key_id())
            .with_secret_access_key(credentials.secret_access_key())
            .with_client_options(limits)
            .with_retry(RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(5) })
            // Path style at AWS itself fails for new regions; elsewhere host names per bucket rarely resolve.
            .with_virtual_hosted_style_request(endpoint.is_none());
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = credentials.session_token() {
            builder = builder.with_token(token);
        }
        let client = builder.build().map_err(|_| StoreError::Malformed {
            key: location.to_string(),
            problem: "no client can be built for this endpoint, region and bucket".to_owned(),
        })?;
        let ticket_lifetime = if credentials.is_temporary() { TEMPORARY_TICKET_LIFETIME } else { MAX_TICKET_LIFETIME };
        Ok(Self { client, location: location.clone(), clock, ticket_lifetime, turns: Semaphore::new(AT_ONCE) })
    }

    /// Waits until one more request may be under way.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("nobody closes it")
    }

    fn path(&self, key: &str) -> Result<Path, StoreError> {
        check_key(key)?;
        self.parse(key)
    }

    fn parse(&self, key: &str) -> Result<Path, StoreError> {
        let problem = "is not a usable object key".to_owned();
        Path::parse(format!("{}{key}", self.location.prefix()))
            .map_err(|_| StoreError::Malformed { key: key.to_owned(), problem })
    }

    /// The folder of a prefix; `None` = the whole bucket.
    fn folder(&self, prefix: &str) -> Result<Option<Path>, StoreError> {
        check_prefix(prefix)?;
        let folder = self.parse(prefix)?;
        Ok((!folder.as_ref().is_empty()).then_some(folder))
    }

    fn relative(&self, path: &Path) -> Result<String, StoreError> {
        let full = path.as_ref();
        full.strip_prefix(self.location.prefix()).map(str::to_owned).ok_or_else(|| StoreError::Malformed {
            key: full.to_owned(),
            problem: "was listed outside of the prefix that was asked for".to_owned(),
        })
    }

    fn info(&self, meta: ObjectMeta) -> Result<ObjectInfo, StoreError> {
        Ok(ObjectInfo {
            key: self.relative(&meta.location)?,
            size_bytes: meta.size,
            etag: meta.e_tag,
            last_modified: Timestamp::from_millisecond(meta.last_modified.timestamp_millis())
                .unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    async fn write(&self, key: &str, bytes: Bytes, mode: PutMode) -> Result<PutOutcome, StoreError> {
        let path = self.path(key)?;
        let _turn = self.turn().await;
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.client.put_opts(&path, PutPayload::from_bytes(bytes), options).await {
            Ok(_) => Ok(PutOutcome::Written),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutOutcome::Exists),
            Err(error) => Err(self.explain("put", key, &error)),
        }
    }

    async fn sign(&self, method: Method, key: &str, lifetime: Duration) -> Result<Ticket, StoreError> {
        let path = self.path(key)?;
        let lifetime = lifetime.min(self.ticket_lifetime);
        // Signed with the computer's clock, told by ours: the same in production.
        let expires = self.clock.now().checked_add(lifetime).unwrap_or(Timestamp::MAX);
        let url = self.client.signed_url(method, &path, lifetime).await;
        let url = url.map_err(|error| self.explain("sign", key, &error))?;
        Ok(Ticket { url: url.into(), expires })
    }

    /// Our error for one of the client's. `NotFound` of a key is handled by the callers; what arrives here is the bucket.
    fn explain(&self, verb: &'static str, key: &str, error: &object_store::Error) -> StoreError {
        let code = s3_code(error);
        let key = key.to_owned();
        if code.as_deref() == Some("NoSuchBucket") {
            return StoreError::NotFoundBucket { bucket: self.location.bucket().to_owned() };
        }
        let status = http_status(error);
        let detail = || match (&code, status) {
            (Some(code), _) => code.clone(),
            (None, Some(status)) => format!("HTTP status {status}"),
            (None, None) => root_cause(error),
        };
        match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::Denied { verb, key, detail: detail() }
            }
            object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
                StoreError::Unsupported { verb, detail: detail() }
            }
            // A wrong key id is 403 at AWS and 400 or 404 elsewhere.
            _ if matches!(status, Some(401 | 403))
                || code.as_deref().is_some_and(|code| CREDENTIAL_CODES.contains(&code)) =>
            {
                StoreError::Denied { verb, key, detail: detail() }
            }
            _ if status == Some(501) => StoreError::Unsupported { verb, detail: detail() },
            _ => StoreError::Unavailable { verb, key, detail: detail() },
        }
    }
}

/// Words for credentials that do not work, whatever the status.
const CREDENTIAL_CODES: [&str; 7] = [
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    // versitygw, with status 404 (tried with 1.7.0).
    "XAdminUserNotFound",
];

/// The text of the error and its causes. The client keeps its typed error to itself; `tests/s3.rs` shows that these texts are still so.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push('\n');
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The `<Code>` of the store's answer. Nothing else of it is shown: it repeats requests, signatures included.
fn s3_code(error: &object_store::Error) -> Option<String> {
    let text = chain(error);
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

/// The status of the store's answer, if there was one.
fn http_status(error: &object_store::Error) -> Option<u16> {
    let text = chain(error);
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The innermost cause, such as "Connection refused", without any URL.
fn root_cause(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    let harmless = |word: &&str| !word.contains("://") && !word.contains('?');
    text.split_whitespace().filter(harmless).collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// True if the store itself says that the object, and nothing else, is not there. Any other 404 (an unknown account at some servers, a proxy's
/// page) is a failed read, which must never look like an empty place.
fn is_absent(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
        && s3_code(error).is_some_and(|code| matches!(code.as_str(), "NoSuchKey" | "NotFound"))
}

/// Reads a body up to a bound, whatever length its header claims.
async fn read_body(key: &str, answer: GetResult, limit_bytes: u64) -> Result<Bytes, ReadBody> {
    let too_large = |size_bytes| ReadBody::Ours(StoreError::TooLarge { key: key.to_owned(), size_bytes, limit_bytes });
    if answer.meta.size > limit_bytes {
        return Err(too_large(answer.meta.size));
    }
    let mut body = answer.into_stream();
    let mut whole: Vec<u8> = Vec::new();
    while let Some(piece) = body.try_next().await.map_err(ReadBody::Theirs)? {
        whole.extend_from_slice(&piece);
        if whole.len() as u64 > limit_bytes {
            return Err(too_large(whole.len() as u64));
        }
    }
    Ok(whole.into())
}

/// Why a body was not read.
enum ReadBody {
    Ours(StoreError),
    Theirs(object_store::Error),
}

impl S3Store {
    fn body_error(&self, key: &str, error: ReadBody) -> StoreError {
        match error {
            ReadBody::Ours(error) => error,
            ReadBody::Theirs(error) => self.explain("get", key, &error),
        }
    }
}

impl Store for S3Store {
    fn get<'a>(&'a self, key: &'a str, max_bytes: u64) -> Answer<'a, Option<Bytes>> {
        async move {
            match self.get_if_changed(key, None, max_bytes).await? {
                Fetched::Changed { bytes, .. } => Ok(Some(bytes)),
                Fetched::Absent | Fetched::Unchanged => Ok(None),
            }
        }
        .boxed()
    }

    fn get_if_changed<'a>(&'a self, key: &'a str, etag: Option<&'a str>, max_bytes: u64) -> Answer<'a, Fetched> {
        async move {
            let _turn = self.turn().await;
            let options = GetOptions { if_none_match: etag.map(str::to_owned), ..GetOptions::default() };
            let answer = match self.client.get_opts(&self.path(key)?, options).await {
                Ok(answer) => answer,
                Err(object_store::Error::NotModified { .. }) => return Ok(Fetched::Unchanged),
                Err(error) if is_absent(&error) => return Ok(Fetched::Absent),
                Err(error) => return Err(self.explain("get", key, &error)),
            };
            let new = answer.meta.e_tag.clone();
            // Some servers ignore If-None-Match on GET.
            if etag.is_some() && etag == new.as_deref() {
                return Ok(Fetched::Unchanged);
            }
            let bytes = read_body(key, answer, max_bytes).await.map_err(|error| self.body_error(key, error))?;
            Ok(Fetched::Changed { bytes, etag: new })
        }
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        async move { self.write(key, bytes, PutMode::Overwrite).await.map(|_| ()) }.boxed()
    }

    fn put_if_absent<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, PutOutcome> {
        self.write(key, bytes, PutMode::Create).boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        async move {
            let _turn = self.turn().await;
            match self.client.head(&self.path(key)?).await {
                Ok(meta) => self.info(meta).map(Some),
                // An answer to HEAD has no body, so a missing bucket or account looks like a missing object. Callers that conclude
                // something from it have listed or read before, which tells them apart.
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(self.explain("get", key, &error)),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<ObjectInfo>> {
        async move {
            let _turn = self.turn().await;
            let folder = self.folder(prefix)?;
            let mut listed = self.client.list(folder.as_ref());
            let mut found = Vec::new();
            while let Some(meta) = listed.try_next().await.map_err(|error| self.explain("list", prefix, &error))? {
                if found.len() == limit {
                    return Err(StoreError::TooMany { prefix: prefix.to_owned(), limit });
                }
                found.push(self.info(meta)?);
            }
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        }
        .boxed()
    }

    fn list_folders<'a>(&'a self, prefix: &'a str, limit: usize) -> Answer<'a, Vec<String>> {
        async move {
            let _turn = self.turn().await;
            let folder = self.folder(prefix)?;
            let listed = self.client.list_with_delimiter(folder.as_ref()).await;
            let listed = listed.map_err(|error| self.explain("list", prefix, &error))?;
            if listed.common_prefixes.len() > limit {
                return Err(StoreError::TooMany { prefix: prefix.to_owned(), limit });
            }
            let name = |path: &Path| path.filename().map(str::to_owned);
            let mut folders: Vec<String> = listed.common_prefixes.iter().filter_map(name).collect();
            folders.sort_unstable();
            Ok(folders)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        async move {
            let _turn = self.turn().await;
            match self.client.delete(&self.path(key)?).await {
                Ok(()) => Ok(()),
                Err(error) if is_absent(&error) => Ok(()),
                Err(error) => Err(self.explain("delete", key, &error)),
            }
        }
        .boxed()
    }

    fn sign_get<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.sign(Method::GET, key, lifetime).boxed()
    }

    fn sign_put<'a>(&'a self, key: &'a str, lifetime: Duration) -> Answer<'a, Ticket> {
        self.sign(Method::PUT, key, lifetime).boxed()
    }
}
