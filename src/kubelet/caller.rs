//! Who asks, and whether they may: a client certificate of the cluster's authority, then the cluster's own authoriser.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tradewind_cluster::port::{Access, Subject};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::context::Context;

/// How long a yes is believed: rights that were taken away work for so long at most.
const YES: Duration = Duration::from_mins(1);
/// How long a no is believed: short, for somebody who has just been given the right.
const NO: Duration = Duration::from_secs(10);
/// Callers that are remembered; in practice there is one, the API server.
const MOST: usize = 256;

/// What a client certificate says of its holder, as Kubernetes reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// The common name.
    pub user: String,
    /// The organisations, and `system:authenticated`.
    pub groups: Vec<String>,
}

impl Caller {
    /// Reads a certificate that was verified. `None` if it names nobody.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok().filter(|user| !user.is_empty())?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { user, groups })
    }
}

/// What the authoriser has said lately.
#[derive(Default)]
pub struct Rights {
    known: Mutex<BTreeMap<Caller, (Duration, bool)>>,
}

impl Rights {
    /// Whether somebody may use the Node's kubelet (`get nodes/proxy`).
    ///
    /// # Errors
    /// A sentence if the authoriser does not answer.
    pub async fn allow(&self, ctx: &Context, caller: &Caller) -> Result<bool, String> {
        let now = ctx.clock.monotonic();
        let known = self.lock().get(caller).filter(|(until, _)| now < *until).map(|(_, allowed)| *allowed);
        if let Some(allowed) = known {
            return Ok(allowed);
        }
        let access = Access {
            subject: Some(Subject { user: caller.user.clone(), groups: caller.groups.clone() }),
            verb: "get".to_owned(),
            resource: "nodes".to_owned(),
            subresource: "proxy".to_owned(),
            name: ctx.settings.node_name.clone(),
            ..Access::default()
        };
        let review = ctx.cluster.access_review(&access).await;
        let allowed = review.map_err(|e| format!("the API server did not say whether you may read logs: {e}"))?.allowed;
        let mut known = self.lock();
        if known.len() >= MOST {
            known.retain(|_, (until, _)| now < *until);
        }
        if known.len() < MOST {
            known.insert(caller.clone(), (now + if allowed { YES } else { NO }, allowed));
        }
        Ok(allowed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Caller, (Duration, bool)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn certificate(parts: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_its_holder() {
        let caller = Caller::of_certificate(&certificate(&[
            (DnType::CommonName, "kube-apiserver-kubelet-client"),
            (DnType::OrganizationName, "kubeadm:cluster-admins"),
        ]))
        .unwrap();
        assert_eq!(caller.user, "kube-apiserver-kubelet-client");
        assert_eq!(caller.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
        assert_eq!(Caller::of_certificate(&certificate(&[(DnType::OrganizationName, "system:masters")])), None);
        assert_eq!(Caller::of_certificate(b"x"), None);
    }
}
