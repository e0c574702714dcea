//! Keys and certificates of a control plane, made in code: openssl is not on every machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{Error, Result};

/// Files that the control plane's programs are started with, and the authority's certificate.
#[derive(Debug)]
pub(super) struct Pki {
    directory: PathBuf,
    /// The authority's certificate, PEM.
    pub authority: String,
}

impl Pki {
    /// Makes an authority, the API server's certificate for loopback, the one it shows to kubelets (and to our logs
    /// endpoint), and the key that signs ServiceAccount tokens (P-256: `--service-account-key-file` takes it).
    pub fn create(directory: &Path) -> Result<Self> {
        let failed = |e: rcgen::Error| Error::Unexpected { what: "a certificate request".into(), why: e.to_string() };
        fs::create_dir_all(directory).map_err(Error::io(format!("making {}", directory.display())))?;
        let pki = |authority| Self { directory: directory.to_owned(), authority };

        let ca_key = KeyPair::generate().map_err(failed)?;
        let mut ca = named("tradewind-test-authority", None, Vec::new()).map_err(failed)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let pki = pki(ca.self_signed(&ca_key).map_err(failed)?.pem());
        pki.write("ca.crt", &pki.authority)?;
        pki.write("ca.key", &ca_key.serialize_pem())?;

        let issuer = Issuer::new(ca, ca_key);
        let hosts =
            ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut server = named("kube-apiserver", None, hosts.map(String::from).to_vec()).map_err(failed)?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut client = named("kube-apiserver-kubelet-client", Some("system:masters"), Vec::new()).map_err(failed)?;
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for (name, params) in [("apiserver", server), ("kubelet-client", client)] {
            let key = KeyPair::generate().map_err(failed)?;
            pki.write(&format!("{name}.crt"), &params.signed_by(&key, &issuer).map_err(failed)?.pem())?;
            pki.write(&format!("{name}.key"), &key.serialize_pem())?;
        }

        let tokens = KeyPair::generate().map_err(failed)?;
        pki.write("sa.key", &tokens.serialize_pem())?;
        pki.write("sa.pub", &tokens.public_key_pem())?;
        Ok(pki)
    }

    /// A file by name: `ca.crt`, `ca.key`, `apiserver.crt`, `apiserver.key`, `kubelet-client.crt`, `kubelet-client.key`, `sa.key`,
    /// `sa.pub`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).map_err(Error::io(format!("writing {}", path.display())))
    }
}

fn named(
    name: &str,
    organisation: Option<&str>,
    hosts: Vec<String>,
) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    Ok(params)
}
