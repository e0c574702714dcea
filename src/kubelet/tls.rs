//! TLS of the logs endpoint: what it shows, and whom it believes. Both change while it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto};
use tokio::time::sleep;
use tradewind_cluster::Key;

use super::certificate::{self, Certificate};
use crate::context::Context;

/// How often the authority of clients is read again: it changes once in years, and then both are given for a while.
const AUTHORITY_AGAIN: Duration = Duration::from_mins(1);
/// How soon after a failure.
const AUTHORITY_FAILED: Duration = Duration::from_secs(5);
/// How soon the cluster is asked again for a certificate that it did not sign. Each try leaves an object behind for a day.
const SIGN_AGAIN: Duration = Duration::from_hours(6);
/// A signed certificate is replaced when so much of its life is left: a third of a week.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(56);

/// The TLS side of the endpoint.
pub struct Tls {
    parts: Mutex<Parts>,
}

struct Parts {
    shown: Certificate,
    /// PEM of the authorities of client certificates; empty: none is known, and nobody can identify themselves.
    authority: String,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Shows this certificate; believes nobody yet.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(shown: Certificate) -> Result<Self, String> {
        let config = build(&shown, "")?;
        Ok(Self { parts: Mutex::new(Parts { shown, authority: String::new(), config }) })
    }

    /// What the next connection is served with.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lock().config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, shown: Certificate) -> Result<(), String> {
        let mut parts = self.lock();
        parts.config = build(&shown, &parts.authority)?;
        parts.shown = shown;
        Ok(())
    }

    /// Believes clients of these authorities from now on.
    ///
    /// # Errors
    /// A sentence; those before are believed on.
    pub fn believe(&self, authority: &str) -> Result<(), String> {
        let mut parts = self.lock();
        if parts.authority != authority {
            parts.config = build(&parts.shown, authority)?;
            authority.clone_into(&mut parts.authority);
            tracing::info!("Client certificates of the logs endpoint are checked against the cluster's authority");
        }
        Ok(())
    }
}

fn build(shown: &Certificate, authority: &str) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be set up: {e}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("the authority of clients cannot be read: {e}"))?;
        roots.add(certificate).map_err(|e| format!("the authority of clients cannot be used: {e}"))?;
    }
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        // Who shows nothing is told so in words instead of a broken handshake.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
        builder.with_client_cert_verifier(verifier.build().map_err(|e| format!("clients cannot be verified: {e}"))?)
    };
    let mut config = builder
        .with_single_cert(shown.chain.clone(), shown.key.clone_key())
        .map_err(|e| format!("the certificate cannot be used: {e}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Reads the authority of clients again and again.
pub async fn keep_authority(ctx: Arc<Context>, tls: Arc<Tls>) {
    let key = Key::namespaced("kube-system", "extension-apiserver-authentication");
    let mut told = None;
    loop {
        let read = match ctx.cluster.read::<ConfigMap>(&key).await {
            Ok(map) => match map.data.as_ref().and_then(|data| data.get("client-ca-file")) {
                Some(authority) => tls.believe(authority),
                None => Err(format!("ConfigMap {key} has no client-ca-file: the cluster knows no client certificates")),
            },
            Err(error) => Err(format!("ConfigMap {key} cannot be read: {error}")),
        };
        let wait = if read.is_ok() { AUTHORITY_AGAIN } else { AUTHORITY_FAILED };
        let trouble = read.err();
        if told != trouble {
            if let Some(trouble) = &trouble {
                tracing::warn!(reason = "NoClientAuthority", error = trouble, "Nobody can read logs of rented Pods");
            }
            told = trouble;
        }
        sleep(wait).await;
    }
}

/// Has the cluster sign our certificate, and again before that runs out. Until then, and where it does not sign, our own is shown.
pub async fn keep_certificate(ctx: Arc<Context>, client: kube::Client, address: std::net::IpAddr, tls: Arc<Tls>) {
    loop {
        let made = certificate::signed(&client, &ctx.settings.node_name, address).await;
        let until = made.and_then(|made| {
            let until = made.until;
            tls.show(made).map(|()| until)
        });
        let wait = match until {
            Ok(until) => {
                tracing::info!(%until, "The logs endpoint has a certificate of the cluster");
                renew_in(until, ctx.clock.now())
            }
            Err(error) => {
                tracing::info!(
                    error,
                    "The logs endpoint shows a certificate of its own; most API servers do not look at it"
                );
                SIGN_AGAIN
            }
        };
        sleep(wait).await;
    }
}

/// A signer that gives far less life than was asked for is asked at half of that; never more often than each minute.
fn renew_in(until: Timestamp, now: Timestamp) -> Duration {
    let life = until.duration_since(now);
    let wait = (life - RENEW_BEFORE).max(life / 2);
    Duration::try_from(wait).unwrap_or_default().max(Duration::from_mins(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_in_time() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let wait = |hours: i64| renew_in(now + SignedDuration::from_hours(hours), now).as_secs() / 60;
        assert_eq!(wait(168), (168 - 56) * 60);
        assert_eq!(wait(24), 12 * 60);
        assert_eq!((wait(0), wait(-5)), (1, 1));
    }

    #[test]
    fn what_is_no_authority_is_refused_and_the_one_before_stays() {
        let tls = Tls::new(certificate::self_signed("node", "10.0.0.1".parse().unwrap()).unwrap()).unwrap();
        let before = tls.config();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(tls.believe(bad).unwrap_err().contains("authority of clients"));
        assert!(Arc::ptr_eq(&before, &tls.config()));
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        tls.believe(&authority).unwrap();
        let after = tls.config();
        assert!(!Arc::ptr_eq(&before, &after));
        tls.believe(&authority).unwrap();
        assert!(Arc::ptr_eq(&after, &tls.config()), "nothing is built for nothing");
    }
}
