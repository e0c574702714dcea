//! How large an image is, as its registry tells it: the manifest of its reference, over the protocol that all registries speak
//! (OCI distribution specification 1.1, `GET /v2/<name>/manifests/<reference>`; token authentication as Docker's registries have it).
//!
//! The name of an image is a user's text and so leads to anybody's server: every answer is bounded in size and time, redirects are not
//! followed, and nothing but https is spoken. No credentials are ever sent: an image that is not public has no size here.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::http::SetupError;

/// Registries refuse manifests above 4 MiB themselves (the specification's own bound).
const MAX_BYTES: usize = 4 << 20;
/// The media types that are understood: one image, or a list of images by platform, by either body's name.
const MEDIA_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                           application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// The rental markets that we know have machines of this architecture only.
const ARCHITECTURE: &str = "amd64";

/// Why a size is not known. Says nothing that the registry has not said of itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeUnknown {
    /// The text is no image reference, or one that is not asked for.
    #[error("{0}")]
    NotAsked(&'static str),
    /// The registry does not show it to strangers, or does not have it.
    #[error("the registry answers {0}")]
    Refused(u16),
    /// No usable answer in time.
    #[error("the registry does not answer: {0}")]
    Unavailable(String),
    /// An answer that is no manifest.
    #[error("the registry's answer cannot be read: {0}")]
    Malformed(&'static str),
}

/// An image reference, taken apart as Docker does it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reference {
    host: String,
    name: String,
    /// Tag or digest.
    version: String,
}

impl Reference {
    fn parse(image: &str) -> Result<Self, SizeUnknown> {
        let bad = SizeUnknown::NotAsked("it is no image reference");
        let (rest, digest) = match image.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (image, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("docker.io", rest),
        };
        let (name, tag) = path.rsplit_once(':').map_or((path, "latest"), |(name, tag)| (name, tag));
        let version = digest.unwrap_or(tag);
        let plain = |text: &str, also: &str| {
            !text.is_empty() && text.len() <= 255 && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
        };
        let steps = name.split('/').all(|step| !step.is_empty() && !step.starts_with('.'));
        if !plain(name, "._-/") || !steps || !plain(version, "._-:") || version.starts_with('.') {
            return Err(bad);
        }
        let (host, name) = match (host, name.contains('/')) {
            ("docker.io" | "index.docker.io", false) => ("registry-1.docker.io", format!("library/{name}")),
            ("docker.io" | "index.docker.io", true) => ("registry-1.docker.io", name.to_owned()),
            _ => (host, name.to_owned()),
        };
        Ok(Self { host: host.to_owned(), name, version: version.to_owned() })
    }
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Part>,
    #[serde(default)]
    layers: Vec<Part>,
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Part {
    size: u64,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Reads sizes of images.
pub struct Registries {
    client: reqwest::Client,
    limit: Duration,
    loopback: bool,
}

impl Registries {
    /// Spends at most `limit` on one image. With `loopback`, registries on this very machine are spoken to over plain http (tests).
    #[expect(clippy::disallowed_methods, reason = "this crate is where HTTP clients are built")]
    pub fn new(limit: Duration, loopback: bool) -> Result<Self, SetupError> {
        // An error says that a provider is installed already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tradewind/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limit)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .pool_idle_timeout(Duration::from_secs(5));
        if loopback {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(SetupError::Client)?;
        Ok(Self { client, limit, loopback })
    }

    /// Compressed bytes of the image: what a host has to download, its layers and its configuration.
    pub async fn compressed_bytes(&self, image: &str) -> Result<u64, SizeUnknown> {
        let late = || SizeUnknown::Unavailable(format!("not within {} s", self.limit.as_secs_f32()));
        tokio::time::timeout(self.limit, self.read(image)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn read(&self, image: &str) -> Result<u64, SizeUnknown> {
        let reference = Reference::parse(image)?;
        let mut token = None;
        let mut manifest = self.manifest(&reference, &reference.version, &mut token).await?;
        if !manifest.manifests.is_empty() {
            let ours = |listed: &&Listed| {
                listed.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == ARCHITECTURE)
            };
            let listed = manifest.manifests.iter().find(ours);
            let digest = listed.ok_or(SizeUnknown::Malformed("it has no image for linux/amd64"))?.digest.clone();
            let digest = Reference { version: digest, ..reference };
            // The digest is the registry's text.
            Reference::parse(&format!("x/x@{}", digest.version))?;
            manifest = self.manifest(&digest, &digest.version, &mut token).await?;
        }
        if manifest.layers.is_empty() {
            return Err(SizeUnknown::Malformed("it has no layers"));
        }
        let parts = manifest.config.iter().chain(&manifest.layers);
        Ok(parts.fold(0, |sum: u64, part| sum.saturating_add(part.size)))
    }

    async fn manifest(
        &self,
        of: &Reference,
        version: &str,
        token: &mut Option<String>,
    ) -> Result<Manifest, SizeUnknown> {
        let url = self.url(&format!("//{}/v2/{}/manifests/{version}", of.host, of.name))?;
        let mut answer = self.get(url.clone(), token.as_deref()).await?;
        if answer.0 == StatusCode::UNAUTHORIZED && token.is_none() {
            let challenge = answer.1.ok_or(SizeUnknown::Refused(401))?;
            *token = Some(self.token(&challenge, of).await?);
            answer = self.get(url, token.as_deref()).await?;
        }
        if answer.0 != StatusCode::OK {
            return Err(SizeUnknown::Refused(answer.0.as_u16()));
        }
        serde_json::from_slice(&answer.2).map_err(|_| SizeUnknown::Malformed("it is no manifest"))
    }

    /// A stranger's token for reading, from where the registry says that there are any.
    async fn token(&self, challenge: &str, of: &Reference) -> Result<String, SizeUnknown> {
        let parameters = challenge.strip_prefix("Bearer ").ok_or(SizeUnknown::Refused(401))?;
        let value = |name: &str| {
            let parts = parameters.split(',').filter_map(|part| part.trim().split_once('='));
            parts.filter(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"')).next()
        };
        let realm = value("realm").ok_or(SizeUnknown::Malformed("it wants a token but does not say from where"))?;
        let realm = realm.strip_prefix("https:").or_else(|| realm.strip_prefix("http:")).unwrap_or(realm);
        let mut url = self.url(realm)?;
        let scope = format!("repository:{}:pull", of.name);
        url.query_pairs_mut().append_pair("scope", &scope).extend_pairs(value("service").map(|s| ("service", s)));
        let (status, _, body) = self.get(url, None).await?;
        if status != StatusCode::OK {
            return Err(SizeUnknown::Refused(status.as_u16()));
        }
        let token: Token = serde_json::from_slice(&body).map_err(|_| SizeUnknown::Malformed("it is no token"))?;
        token.token.or(token.access_token).ok_or(SizeUnknown::Malformed("it is no token"))
    }

    /// The URL with the scheme that its host is spoken to with. Whoever names an image must not lead us to addresses inside our own network
    /// that have no name and no certificate.
    fn url(&self, without_scheme: &str) -> Result<Url, SizeUnknown> {
        let bad = SizeUnknown::NotAsked("its registry has no proper address");
        let url = Url::parse(&format!("https:{without_scheme}")).map_err(|_| bad.clone())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad);
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let address = host.parse::<std::net::IpAddr>();
        if self.loopback && (host == "localhost" || address.as_ref().is_ok_and(std::net::IpAddr::is_loopback)) {
            return Url::parse(&format!("http:{without_scheme}")).map_err(|_| bad);
        }
        if address.is_ok() || !host.contains('.') {
            return Err(SizeUnknown::NotAsked("its registry is not asked: it has no public name"));
        }
        Ok(url)
    }

    /// Status, challenge and body.
    async fn get(&self, url: Url, token: Option<&str>) -> Result<(StatusCode, Option<String>, Vec<u8>), SizeUnknown> {
        // reqwest's texts hold the whole URL, which adds nothing.
        let failed = |error: reqwest::Error| SizeUnknown::Unavailable(error.without_url().to_string());
        let mut request = self.client.get(url).header(ACCEPT, MEDIA_TYPES);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut response = request.send().await.map_err(failed)?;
        let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(SizeUnknown::Malformed("it is larger than any manifest"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), challenge, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::scripted::{Act, Server, ok};

    const LIMIT: Duration = Duration::from_secs(2);

    fn reader() -> Registries {
        Registries::new(LIMIT, true).unwrap()
    }

    fn image(server: &Server, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", server.url.port().unwrap())
    }

    const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{"size":7},"layers":[{"size":100},{"size":3000000000}]}"#;

    #[test]
    fn references_are_taken_apart_as_docker_does() {
        for (image, host, name, version) in [
            ("busybox", "registry-1.docker.io", "library/busybox", "latest"),
            ("pytorch/pytorch:2.9-cuda13", "registry-1.docker.io", "pytorch/pytorch", "2.9-cuda13"),
            ("ghcr.io/acme/train:1", "ghcr.io", "acme/train", "1"),
            ("localhost:5000/a", "localhost:5000", "a", "latest"),
            ("nvcr.io/nvidia/pytorch:25.10@sha256:ab12", "nvcr.io", "nvidia/pytorch", "sha256:ab12"),
        ] {
            let expected = Reference { host: host.into(), name: name.into(), version: version.into() };
            assert_eq!(Reference::parse(image), Ok(expected), "{image}");
        }
        for image in ["", "a/../b", "ghcr.io/a b", "ghcr.io/a:1?x=y", "a@", "ghcr.io//a", "ghcr.io/a:../../../x", "a#b"]
        {
            assert!(Reference::parse(image).is_err(), "{image}");
        }
    }

    #[test]
    fn nobody_is_led_into_our_own_network() {
        let production = Registries::new(LIMIT, false).unwrap();
        for host in
            ["127.0.0.1:5000", "169.254.169.254", "10.0.0.1", "localhost:5000", "[::1]:5000", "kubernetes", "u:p@x.io"]
        {
            let url = production.url(&format!("//{host}/v2/a/manifests/1"));
            assert!(matches!(url, Err(SizeUnknown::NotAsked(_))), "{host}: {url:?}");
        }
        let url = production.url("//ghcr.io/v2/a/manifests/1").unwrap();
        assert_eq!((url.scheme(), url.as_str()), ("https", "https://ghcr.io/v2/a/manifests/1"));
        // A registry that points to a token of ours over plain http is asked over https.
        assert_eq!(production.url("//auth.example.com/token").unwrap().scheme(), "https");
    }

    #[tokio::test]
    async fn the_size_is_the_sum_of_what_is_downloaded() {
        let server = Server::new(vec![ok(MANIFEST)]).await;
        assert_eq!(reader().compressed_bytes(&image(&server, "acme/train:1")).await, Ok(3_000_000_107));
        let seen = &server.seen()[0];
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/v2/acme/train/manifests/1"));
        assert!(seen.header("accept").unwrap().contains("oci.image.index"));
        assert_eq!(seen.header("authorization"), None);
    }

    #[tokio::test]
    async fn of_several_platforms_ours_counts_and_a_token_is_fetched_once() {
        let index = br#"{"manifests":[{"digest":"sha256:aa","platform":{"architecture":"arm64","os":"linux"}},
            {"digest":"sha256:bb","platform":{"architecture":"amd64","os":"linux"}}]}"#;
        let auth = Server::new(vec![ok(br#"{"token":"t0ken"}"#.to_vec())]).await;
        let challenge = format!("www-authenticate: Bearer realm=\"{}token\",service=\"reg\",scope=\"x\"\r\n", auth.url);
        let refused = Act::Answer(401, challenge.leak(), Vec::new());
        let server = Server::new(vec![refused, ok(index.to_vec()), ok(MANIFEST)]).await;
        assert_eq!(reader().compressed_bytes(&image(&server, "acme/train:1")).await, Ok(3_000_000_107));
        assert_eq!(auth.seen()[0].target, "/token?scope=repository%3Aacme%2Ftrain%3Apull&service=reg");
        let seen = server.seen();
        assert_eq!(seen[2].target, "/v2/acme/train/manifests/sha256:bb");
        assert!(seen[1..].iter().all(|call| call.header("authorization") == Some("Bearer t0ken")));
        assert_eq!((seen.len(), auth.seen().len()), (3, 1));
    }

    #[tokio::test]
    async fn whatever_else_comes_is_no_size_and_takes_no_time() {
        for (what, act) in [
            ("unknown", Act::Answer(404, "", b"{}".to_vec())),
            ("redirect", Act::Answer(302, "location: http://127.0.0.1:1/\r\n", Vec::new())),
            ("private", Act::Answer(401, "www-authenticate: Basic realm=\"x\"\r\n", Vec::new())),
            (
                "elsewhere",
                Act::Answer(401, "www-authenticate: Bearer realm=\"http://169.254.169.254/x\"\r\n", Vec::new()),
            ),
            ("rubbish", ok(b"<html>".to_vec())),
            ("no layers", ok(b"{}".to_vec())),
            ("negative", ok(br#"{"layers":[{"size":-1}]}"#.to_vec())),
            (
                "hostile digest",
                ok(br#"{"manifests":[{"digest":"../../x","platform":{"architecture":"amd64","os":"linux"}}]}"#
                    .to_vec()),
            ),
            ("endless", Act::Flood),
            ("silent", Act::Hang),
            ("closed", Act::Close),
        ] {
            let server = Server::new(vec![act]).await;
            let size = reader().compressed_bytes(&image(&server, "a:1")).await;
            assert!(size.is_err(), "{what}: {size:?}");
            assert!(server.seen().len() <= 1, "{what}");
        }
    }
}
