//! Keys to an object store, as they stand in a Secret.

use std::fmt;

use tradewind_core::{ExposeSecret, SecretString};
use url::Url;

/// Access to one bucket. Nothing of it prints but the endpoint and the region.
#[derive(Clone)]
pub struct StoreCredentials {
    access_key_id: SecretString,
    secret_access_key: SecretString,
    session_token: Option<SecretString>,
    endpoint: Option<Url>,
    region: String,
}

impl fmt::Debug for StoreCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.as_ref().map(Url::as_str);
        write!(f, "StoreCredentials(endpoint {endpoint:?}, region {})", self.region)
    }
}

/// Why the entries of a Secret are no credentials. Names entries, never their values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// An entry that is needed is not there.
    #[error("the Secret has no entry {entry}")]
    Missing {
        /// Name of the entry.
        entry: &'static str,
    },
    /// An entry is there but unusable.
    #[error("the Secret's entry {entry} {problem}")]
    Unusable {
        /// Name of the entry.
        entry: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl CredentialsError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        "BadStoreCredentials"
    }
}

impl StoreCredentials {
    /// Name of the entry with the access key id.
    pub const ACCESS_KEY_ID: &'static str = "AWS_ACCESS_KEY_ID";
    /// Name of the entry with the secret key.
    pub const SECRET_ACCESS_KEY: &'static str = "AWS_SECRET_ACCESS_KEY";
    /// Name of the optional entry with a session token.
    pub const SESSION_TOKEN: &'static str = "AWS_SESSION_TOKEN";
    /// Name of the optional entry with the endpoint of a store other than AWS.
    pub const ENDPOINT: &'static str = "AWS_ENDPOINT_URL";
    /// Name of the optional entry with the region (default `us-east-1`).
    pub const REGION: &'static str = "AWS_REGION";

    /// Reads the entries under their usual names (those of the AWS command line).
    pub fn from_entries(entry: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, CredentialsError> {
        let text = |name: &'static str| -> Result<Option<String>, CredentialsError> {
            let Some(bytes) = entry(name) else { return Ok(None) };
            let problem = "is not plain text";
            let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Unusable { entry: name, problem })?;
            // Files made with an editor end in a newline.
            let text = text.trim();
            if !text.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(CredentialsError::Unusable { entry: name, problem });
            }
            Ok((!text.is_empty()).then(|| text.to_owned()))
        };
        let needed = |name| text(name)?.ok_or(CredentialsError::Missing { entry: name });
        let credentials = Self::new(needed(Self::ACCESS_KEY_ID)?, needed(Self::SECRET_ACCESS_KEY)?);
        let region = text(Self::REGION)?;
        let token = text(Self::SESSION_TOKEN)?;
        let credentials = credentials.with_session_token(token).with_region(region);
        match text(Self::ENDPOINT)? {
            Some(endpoint) => credentials.with_endpoint(&endpoint),
            None => Ok(credentials),
        }
    }

    /// Static keys for AWS in `us-east-1`.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Self {
            access_key_id: SecretString::from(access_key_id.into()),
            secret_access_key: SecretString::from(secret_access_key.into()),
            session_token: None,
            endpoint: None,
            region: "us-east-1".to_owned(),
        }
    }

    /// The same with a session token.
    pub fn with_session_token(self, token: Option<String>) -> Self {
        Self { session_token: token.map(SecretString::from), ..self }
    }

    /// The same in another region; `None` changes nothing.
    pub fn with_region(self, region: Option<String>) -> Self {
        let region = region.unwrap_or(self.region);
        Self { region, ..self }
    }

    /// The same at another endpoint: `http` or `https`, host and optional port, nothing else.
    pub fn with_endpoint(self, endpoint: &str) -> Result<Self, CredentialsError> {
        let unusable = |problem| CredentialsError::Unusable { entry: Self::ENDPOINT, problem };
        let url = Url::parse(endpoint).map_err(|_| unusable("is not a URL"))?;
        let plain =
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain || url.path() != "/" {
            return Err(unusable("must be http:// or https:// with a host and nothing after it"));
        }
        Ok(Self { endpoint: Some(url), ..self })
    }

    /// The endpoint without a trailing slash; `None` = AWS.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_ref().map(|url| url.as_str().trim_end_matches('/'))
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// True if the credentials themselves expire soon, and tickets made from them with them.
    pub fn is_temporary(&self) -> bool {
        self.session_token.is_some()
    }

    pub(crate) fn access_key_id(&self) -> &str {
        self.access_key_id.expose_secret()
    }

    pub(crate) fn secret_access_key(&self) -> &str {
        self.secret_access_key.expose_secret()
    }

    pub(crate) fn session_token(&self) -> Option<&str> {
        self.session_token.as_ref().map(ExposeSecret::expose_secret)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(entries: &[(&str, &str)]) -> Result<StoreCredentials, CredentialsError> {
        let map: BTreeMap<&str, &str> = entries.iter().copied().collect();
        StoreCredentials::from_entries(|name| map.get(name).map(|value| value.as_bytes().to_vec()))
    }

    #[test]
    fn a_secret_is_read_and_never_printed() {
        let keys = read(&[
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE\n"),
            ("AWS_SECRET_ACCESS_KEY", "topsecret"),
            ("AWS_SESSION_TOKEN", "sessiontoken"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
        ])
        .unwrap();
        assert_eq!(keys.endpoint(), Some("http://127.0.0.1:9000"));
        assert_eq!((keys.access_key_id(), keys.region()), ("AKIAEXAMPLE", "us-east-1"));
        let printed = format!("{keys:?}");
        assert!(
            !printed.contains("topsecret") && !printed.contains("AKIA") && !printed.contains("sessiontoken"),
            "{printed}"
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_its_value() {
        let keys = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "topsecret")];
        let with = |name, value| read(&[keys[0], keys[1], (name, value)]).unwrap_err().to_string();
        assert_eq!(read(&keys[..1]).unwrap_err(), CredentialsError::Missing { entry: "AWS_SECRET_ACCESS_KEY" });
        assert_eq!(
            read(&[keys[0], ("AWS_SECRET_ACCESS_KEY", " \n")]).unwrap_err(),
            CredentialsError::Missing { entry: "AWS_SECRET_ACCESS_KEY" }
        );
        for endpoint in
            ["localhost:9000", "ftp://x", "http://user:hunter2@x", "https://x/path", "https://x/?q=hunter2", "\u{1}"]
        {
            let text = with("AWS_ENDPOINT_URL", endpoint);
            assert!(text.contains("AWS_ENDPOINT_URL") && !text.contains("hunter2"), "{text}");
        }
    }
}
