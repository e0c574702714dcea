//! The certificate that is shown to the API server: signed by the cluster if it will, else by ourselves. Keys never leave memory.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::time::{Instant, sleep};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The signer that API servers with `--kubelet-certificate-authority` believe.
const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Life that is asked for: long enough to outlast a broken signer over a weekend, and Pods of operators rarely live longer.
const LIFE: Duration = Duration::from_hours(7 * 24);
/// How long a signature is waited for. Ours is approved at once; where that is not allowed, an administrator may do it.
const SIGNED_WITHIN: Duration = Duration::from_mins(10);
/// How often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A certificate with its key.
pub struct Certificate {
    /// The certificate, and those that lead to the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// When it runs out.
    pub until: Timestamp,
}

fn params(node: &str, address: IpAddr) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![address.to_string()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A certificate of our own making: enough for API servers that do not look at it, which is their default.
pub fn self_signed(node: &str, address: IpAddr) -> Result<Certificate, String> {
    let make = || {
        let key = KeyPair::generate()?;
        let certificate = params(node, address)?.self_signed(&key)?;
        Ok::<_, rcgen::Error>((certificate.der().clone(), private(&key)))
    };
    let (certificate, key) = make().map_err(|e| format!("a certificate cannot be made: {e}"))?;
    Ok(Certificate { chain: vec![certificate], key, until: Timestamp::MAX })
}

/// Has the cluster sign a certificate.
///
/// # Errors
/// A sentence if it did not.
pub async fn signed(client: &kube::Client, node: &str, address: IpAddr) -> Result<Certificate, String> {
    let make = || {
        let key = KeyPair::generate()?;
        let request = params(node, address)?.serialize_request(&key)?.pem()?;
        Ok::<_, rcgen::Error>((key, request))
    };
    let (key, request) = make().map_err(|e| format!("a request cannot be made: {e}"))?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let asked = api.create(&PostParams::default(), &asking(request)).await;
    let name = asked.map_err(|e| format!("the request is refused: {e}"))?.metadata.name.unwrap_or_default();
    if let Err(error) = approve(&api, &name).await {
        tracing::info!(%error, name, "The request for a certificate may not be approved by the operator, somebody else has to");
    }
    let since = Instant::now();
    loop {
        let read = api.get(&name).await.map_err(|e| format!("request {name} cannot be read: {e}"))?;
        let status = read.status.unwrap_or_default();
        if let Some(ByteString(pem)) = status.certificate {
            return taken(&pem, &key);
        }
        let ends = |c: &&CertificateSigningRequestCondition| ["Denied", "Failed"].contains(&c.type_.as_str());
        if let Some(end) = status.conditions.iter().flatten().find(ends) {
            return Err(format!("request {name}: {}: {}", end.type_, end.message.as_deref().unwrap_or_default()));
        }
        if since.elapsed() > SIGNED_WITHIN {
            return Err(format!("request {name} was not signed within {} minutes", SIGNED_WITHIN.as_secs() / 60));
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn asking(request: String) -> CertificateSigningRequest {
    let usages = ["digital signature", "key encipherment", "server auth"].map(str::to_owned).to_vec();
    CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("tradewind-kubelet-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            signer_name: SIGNER.to_owned(),
            request: ByteString(request.into_bytes()),
            usages: Some(usages),
            expiration_seconds: i32::try_from(LIFE.as_secs()).ok(),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

async fn approve(api: &Api<CertificateSigningRequest>, name: &str) -> kube::Result<()> {
    let condition = json!({
        "type": "Approved", "status": "True", "reason": "TradewindNode", "message": "the operator serves the logs of its own Node",
    });
    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    api.patch_approval(name, &PatchParams::default(), &patch).await.map(drop)
}

fn taken(pem: &[u8], key: &KeyPair) -> Result<Certificate, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("what was signed is no certificate: {e}"))?;
    let first = chain.first().ok_or("what was signed is empty")?;
    let (_, read) = X509Certificate::from_der(first).map_err(|e| format!("what was signed cannot be read: {e}"))?;
    let until = Timestamp::from_second(read.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
    Ok(Certificate { chain, key: private(key), until })
}
