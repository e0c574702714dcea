//! Who may use which account: `Provider.spec.access` and the labels of Namespaces.
//!
//! Namespaces are not watched: one is read by name when a job of it is planned or ordered for, or when it shares an entry's limits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use tradewind_api::access::{Access, entry_for};
use tradewind_api::provider::Spend;
use tradewind_api::{Provider, Reason, RentedMachine};
use tradewind_cluster::{ClusterError, Key};
use tradewind_core::{Money, Offer, Trust};

use super::overrun::{Bounds, overrun};
use super::{books, ledger};
use crate::context::Context;
use crate::controllers::rented_machine::{cost, reserve};
use crate::storage::Unusable;

/// Labels of a Namespace.
pub type Labels = BTreeMap<String, String>;

/// How long labels that were read count. Short, since a platform engineer waits for what a new label changes; jobs that wait are planned
/// again every 15 s.
const FRESH: Duration = Duration::from_secs(20);
/// Namespaces remembered; beyond that, all are forgotten and read again.
const MOST: usize = 4096;

/// Labels of Namespaces as last read.
#[derive(Default)]
pub struct Namespaces {
    /// By name, with the (monotonic) time of the read.
    known: Mutex<BTreeMap<String, (Duration, Arc<Labels>)>>,
}

/// What a job's namespace may do on one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// No list, or an entry that selects it.
    Given {
        /// Hosts are trusted so far at least.
        min_trust: Option<Trust>,
        /// What one machine may cost an hour at most, and whose limit that is.
        per_hour: Option<(Money, String)>,
    },
    /// No entry selects it.
    Refused,
}

impl Grant {
    /// Whether a host may be used.
    pub fn trusts(&self, trust: Trust) -> bool {
        matches!(self, Self::Given { min_trust, .. } if min_trust.is_none_or(|floor| trust >= floor))
    }
}

/// What the list of a Provider says of a Namespace with these labels.
pub fn grant(access: &[Access], labels: &Labels) -> Grant {
    if access.is_empty() {
        return Grant::Given { min_trust: None, per_hour: None };
    }
    let Some((place, entry)) = entry_for(access, labels) else { return Grant::Refused };
    let limit = entry.limits.as_ref().and_then(|limits| limits.per_hour);
    Grant::Given {
        min_trust: entry.min_trust.map(Trust::from),
        per_hour: limit.map(|limit| (limit, format!("access[{place}].limits.perHour"))),
    }
}

/// What a namespace that no entry selects is told.
pub fn refusal(provider: &str, namespace: &str) -> String {
    format!(
        "no access entry of Provider {provider} selects namespace {namespace}: whoever owns the Provider adds an entry to spec.access, or a label to the namespace"
    )
}

/// What is said where the host is trusted too little.
pub fn floor(provider: &str, namespace: &str, floor: Trust) -> String {
    format!(
        "spec.access of Provider {provider} lets jobs of namespace {namespace} run on hosts of trust {floor} or higher only"
    )
}

impl Context {
    /// Labels of a Namespace, 20 s old at most; of one that is gone, those it had when it was read last. `None` = gone, and never read.
    pub async fn namespace_labels(&self, name: &str) -> Result<Option<Arc<Labels>>, Unusable> {
        let now = self.clock.monotonic();
        let known = self.namespaces.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((_, labels)) = known.as_ref().filter(|(at, _)| now.saturating_sub(*at) < FRESH) {
            return Ok(Some(Arc::clone(labels)));
        }
        let key = Key::cluster(name);
        let found = self.cluster.find::<Namespace>(&key).await.map_err(|error| Unusable {
            reason: Reason::NoAccess,
            message: match error {
                ClusterError::Refused { code: 403, .. } => format!(
                    "the operator may not read Namespace {name}, whose labels spec.access of a Provider asks for; apply deploy/operator/rbac.yaml of this version"
                ),
                error => format!("Namespace {name} cannot be read now ({error}); it is tried again"),
            },
        })?;
        let Some(namespace) = found else { return Ok(known.map(|(_, labels)| labels)) };
        let labels = Arc::new(namespace.metadata.labels.clone().unwrap_or_default());
        let mut known = self.namespaces.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name.to_owned(), (now, Arc::clone(&labels)));
        Ok(Some(labels))
    }

    /// What a namespace may do on each of these accounts, by name of the Provider.
    pub async fn grants(
        &self,
        namespace: &str,
        providers: &[Arc<Provider>],
    ) -> Result<BTreeMap<String, Grant>, Unusable> {
        let mut grants = BTreeMap::new();
        for provider in providers {
            let name = provider.metadata.name.clone().unwrap_or_default();
            grants.insert(name, self.grant(namespace, provider).await?);
        }
        Ok(grants)
    }

    async fn grant(&self, namespace: &str, provider: &Provider) -> Result<Grant, Unusable> {
        let access = &provider.spec.access;
        if access.is_empty() {
            // Nobody's labels matter.
            return Ok(grant(access, &Labels::new()));
        }
        let labels = self.namespace_labels(namespace).await?;
        Ok(labels.map_or(Grant::Refused, |labels| grant(access, &labels)))
    }

    /// Why a job of this namespace may not be given this offer, by the list of the Provider as it is now.
    pub async fn denied(
        &self,
        namespace: &str,
        provider: &Provider,
        offer: Option<&Offer>,
    ) -> Result<Option<String>, Unusable> {
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        Ok(match self.grant(namespace, provider).await? {
            Grant::Refused => Some(refusal(name, namespace)),
            Grant::Given { min_trust: Some(least), .. } if offer.is_some_and(|offer| offer.trust < least) => {
                Some(floor(name, namespace, least))
            }
            Grant::Given { .. } => None,
        })
    }

    /// Machines of an account that must stop because they pass its limits or those of an entry of its list, by uid, and why. What cannot be
    /// read now is looked at the next time.
    pub async fn overrun(&self, provider: &Provider) -> BTreeMap<String, String> {
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        let now = self.clock.now();
        let all = self.caches.rented.all();
        let here: Vec<RentedMachine> = all.iter().filter(|m| m.spec.provider == name).map(|m| priced(m, now)).collect();
        let nothing = Spend::default();
        let spend = provider.status.as_ref().map_or(&nothing, |status| &status.spend);
        let kept = |m: &RentedMachine| {
            let price = m.status.as_ref().and_then(|s| s.price_per_hour).unwrap_or_default();
            reserve::of(m, None).dollars(price)
        };
        let limits = &provider.spec.limits;
        let bounds = Bounds {
            name: "limits".to_owned(),
            per_hour: Some(limits.per_hour),
            per_day: Some(limits.per_day),
            spent_today: books::last_day(spend, &here, now),
        };
        let mut stops = overrun(&here.iter().collect::<Vec<_>>(), name, &bounds, kept);
        let access = &provider.spec.access;
        let mut entries: BTreeMap<String, Option<usize>> = BTreeMap::new();
        if here.is_empty() || access.iter().all(|entry| entry.limits.is_none()) {
            return stops;
        }
        let running = here.iter().map(|m| m.spec.job.namespace.as_str());
        for namespace in running.chain(spend.namespaces.iter().map(|of| of.namespace.as_str())) {
            let Ok(labels) = self.namespace_labels(namespace).await else { return stops };
            let entry = labels.and_then(|labels| entry_for(access, &labels).map(|(at, _)| at));
            entries.insert(namespace.to_owned(), entry);
        }
        for (place, entry) in access.iter().enumerate() {
            let Some(limits) = &entry.limits else { continue };
            // What runs is stopped only for what is known to be theirs.
            let theirs = |namespace: &str| entries.get(namespace).copied().flatten() == Some(place);
            let bounds = Bounds {
                name: format!("access[{place}].limits"),
                per_hour: limits.per_hour,
                per_day: limits.per_day,
                spent_today: books::last_day_of(spend, &here, now, theirs),
            };
            let machines: Vec<&RentedMachine> = here.iter().filter(|m| theirs(&m.spec.job.namespace)).collect();
            stops.extend(overrun(&machines, name, &bounds, kept));
        }
        stops
    }

    /// Whether the limits of the entry that holds for `namespace` leave room for a machine that may cost `asked` an hour. The caller holds the
    /// account's lock; `machines` and `spend` are what it has just read, `besides` is the uid of the machine that is asked about.
    pub async fn share_has_room(
        &self,
        provider: &Provider,
        namespace: &str,
        machines: &[Arc<RentedMachine>],
        besides: &str,
        asked: Money,
    ) -> Result<Option<ledger::Full>, Unusable> {
        let name = provider.metadata.name.as_deref().unwrap_or_default();
        let access = &provider.spec.access;
        let Some(labels) = self.namespace_labels(namespace).await? else { return Ok(None) };
        let Some((place, entry)) = entry_for(access, &labels) else { return Ok(None) };
        let Some(limits) = &entry.limits else { return Ok(None) };
        let nothing = Spend::default();
        let spend = provider.status.as_ref().map_or(&nothing, |status| &status.spend);
        let here: Vec<&RentedMachine> = machines.iter().map(|m| &**m).filter(|m| m.spec.provider == name).collect();
        let mut shares: BTreeMap<&str, bool> = BTreeMap::new();
        let running = here.iter().map(|m| m.spec.job.namespace.as_str());
        for other in running.chain(spend.namespaces.iter().map(|of| of.namespace.as_str())) {
            if let std::collections::btree_map::Entry::Vacant(vacant) = shares.entry(other) {
                // Of one that is gone and was never seen nobody knows whose it was: it counts, so that no limit is passed.
                let labels = self.namespace_labels(other).await?;
                vacant.insert(labels.is_none_or(|l| entry_for(access, &l).is_some_and(|(at, _)| at == place)));
            }
        }
        let counts = |namespace: &str| shares.get(namespace).copied().unwrap_or(true);
        let theirs = here.iter().copied().filter(|m| counts(&m.spec.job.namespace));
        let committed = ledger::committed(theirs, name, besides);
        let spent = books::last_day_of(spend, here.iter().copied(), self.clock.now(), counts);
        Ok(ledger::admit_share(name, place, limits, committed, spent, asked).err())
    }
}

/// A machine with its cost as of now: the one in its status may be minutes old.
fn priced(machine: &RentedMachine, now: Timestamp) -> RentedMachine {
    let mut machine = machine.clone();
    let (offer, disk, image) = (reserve::offer(&machine), machine.spec.workload.disk_gib, machine.spec.image_bytes);
    if let (Some(offer), Some(status)) = (offer, &mut machine.status)
        && status.gone_at.is_none()
    {
        status.cost = Some(cost::so_far(&offer, (disk, image), status, now));
    }
    machine
}
