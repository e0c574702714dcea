//! The virtual Node of this install: the shape that harms nobody, its Lease, and Pods on it that nobody serves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use serde_json::json;
use tradewind_api::{Reason, names};
use tradewind_cluster::{Guard, Key, Removal, StatusPatch, Strategy, Typed};

use crate::context::Context;
use crate::controllers::pod;
use crate::controllers::rented_machine;
use crate::events::{Severity, reference};
use crate::runtime::{Failure, Reconciler, Wake};

pub use findings::Finding;

mod findings;

/// Its name in queue, logs and metrics.
pub const NAME: &str = "node";
/// The one key it works on.
pub const SINGLE: &str = "node";

/// The controller.
pub struct Nodes {
    ctx: Arc<Context>,
    /// The Node was cordoned at the last look.
    cordoned: AtomicBool,
    findings: Vec<Finding>,
    /// The Node's Lease as we wrote it, and when it is to be renewed (monotonic).
    lease: Mutex<Option<(Arc<Lease>, Duration)>>,
}

impl Nodes {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, cordoned: AtomicBool::new(false), findings: Vec::new(), lease: Mutex::default() }
    }

    /// The same, telling in the Node's conditions what was found at the start.
    pub fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        self.findings = findings;
        self
    }

    async fn run(&self) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let key = Key::cluster(ctx.settings.node_name.as_str());
        if ctx.mailbox.is_none() {
            // An operator before this one had a mailbox, and its Node still says so.
            if let Some(node) = ctx.caches.nodes.get(&key) {
                self.tell_findings(&node).await?;
            }
            return Ok(Wake::OnChange);
        }
        let node = match ctx.caches.nodes.get(&key) {
            Some(node) => node,
            None => match ctx.cluster.find::<Node>(&key).await? {
                Some(node) => node,
                None => ctx.cluster.add(self.shape()).await?,
            },
        };
        ctx.caches.nodes.own(&node);
        let cordoned = ctx.cordoned();
        if self.cordoned.swap(cordoned, Ordering::Relaxed) && !cordoned {
            ctx.wake_waiting_jobs();
        }
        self.make_ready(&node).await?;
        self.tell_findings(&node).await?;
        self.say_where(&node).await?;
        let renew_in = self.renew_lease(&node).await?;
        for pod in ctx.caches.pods.whole() {
            if pod::node(&pod) == key.name {
                self.look_at(&pod).await?;
            }
        }
        Ok(Wake::After(renew_in, "the Node's Lease"))
    }

    /// A Node in an eviction zone of its own, without the labels that would make it a spread domain or a target of DaemonSets, and with
    /// room for no Pod that the scheduler could place.
    fn shape(&self) -> Node {
        let install = &self.ctx.settings.install;
        let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let none = BTreeMap::from([("pods".to_owned(), Quantity("0".to_owned()))]);
        Node {
            metadata: ObjectMeta {
                name: Some(self.ctx.settings.node_name.clone()),
                labels: Some(BTreeMap::from([
                    label("failure-domain.beta.kubernetes.io/region", "tradewind"),
                    label("type", "virtual-kubelet"),
                    label("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
                ])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                provider_id: Some(format!("tradewind://{install}")),
                taints: Some(vec![Taint {
                    key: names::NODE_TAINT.to_owned(),
                    effect: "NoSchedule".to_owned(),
                    ..Taint::default()
                }]),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                capacity: Some(none.clone()),
                allocatable: Some(none),
                conditions: Some(vec![self.ready()]),
                node_info: Some(NodeSystemInfo {
                    kubelet_version: format!("tradewind-{}", env!("CARGO_PKG_VERSION")),
                    ..NodeSystemInfo::default()
                }),
                ..NodeStatus::default()
            }),
        }
    }

    fn ready(&self) -> NodeCondition {
        let now = Time(self.ctx.clock.now());
        NodeCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            reason: Some("OperatorRuns".to_owned()),
            message: Some("rented machines appear here; trouble of a provider is told in its Provider".to_owned()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(now),
        }
    }

    /// After an outage of ours the Lease alone does not bring the Node back.
    async fn make_ready(&self, node: &Node) -> Result<(), Failure> {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        let ready = conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        if ready {
            return Ok(());
        }
        let status = json!({"conditions": [self.ready()]});
        let patch = StatusPatch { strategy: Strategy::Strategic, status };
        let written = self.ctx.cluster.amend_status::<Node>(&Key::of(node), &patch, &Guard::same(node)).await?;
        self.ctx.caches.nodes.own(&written);
        Ok(())
    }

    async fn tell_findings(&self, node: &Node) -> Result<(), Failure> {
        let conditions = findings::untold(&self.findings, node, self.ctx.clock.now());
        if conditions.is_empty() {
            return Ok(());
        }
        let patch = StatusPatch { strategy: Strategy::Strategic, status: json!({"conditions": conditions}) };
        let written = self.ctx.cluster.amend_status::<Node>(&Key::of(node), &patch, &Guard::same(node)).await?;
        self.ctx.caches.nodes.own(&written);
        Ok(())
    }

    /// Where `kubectl logs` finds us: exactly one address, for the API server takes the first of the first kind it prefers and tries no other.
    /// Whoever leads names its own.
    async fn say_where(&self, node: &Node) -> Result<(), Failure> {
        let wanted = self.ctx.settings.kubelet;
        let address = node.status.as_ref().and_then(|s| s.addresses.as_ref()).and_then(|a| a.first());
        let port = node.status.as_ref().and_then(|s| s.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref());
        let told = (address.map(|a| a.address.clone()), port.map(|p| p.port));
        if told == (wanted.map(|w| w.ip().to_string()), wanted.map(|w| i32::from(w.port()))) {
            return Ok(());
        }
        let status = match wanted {
            Some(at) => json!({
                "addresses": [{"type": "InternalIP", "address": at.ip().to_string()}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": at.port()}},
            }),
            None => json!({"addresses": null, "daemonEndpoints": {"kubeletEndpoint": null}}),
        };
        let patch = StatusPatch { strategy: Strategy::Merge, status };
        let written = self.ctx.cluster.amend_status::<Node>(&Key::of(node), &patch, &Guard::same(node)).await?;
        self.ctx.caches.nodes.own(&written);
        Ok(())
    }

    /// Renews the Node's Lease if that is due; gives back the time until it is due again.
    async fn renew_lease(&self, node: &Node) -> Result<Duration, Failure> {
        let ctx = &self.ctx;
        let now = ctx.clock.monotonic();
        // Taken out: after a failed write it is read again.
        let known = self.lease().take();
        if let Some((lease, due)) = known.clone().filter(|(_, due)| *due > now) {
            *self.lease() = Some((lease, due));
            return Ok(due.saturating_sub(now));
        }
        let key = Key::namespaced("kube-node-lease", ctx.settings.node_name.as_str());
        let current = match known {
            Some((lease, _)) => Some(lease),
            None => ctx.cluster.find::<Lease>(&key).await?,
        };
        let spec = LeaseSpec {
            holder_identity: Some(ctx.settings.node_name.clone()),
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(ctx.clock.now())),
            ..LeaseSpec::default()
        };
        let written = if let Some(lease) = current {
            ctx.cluster.write(Lease { spec: Some(spec), ..(*lease).clone() }).await?
        } else {
            let owner = OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: ctx.settings.node_name.clone(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                name: Some(key.name),
                namespace: Some(key.namespace),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            ctx.cluster.add(Lease { metadata, spec: Some(spec) }).await?
        };
        *self.lease() = Some((written, now + ctx.settings.node_renew));
        Ok(ctx.settings.node_renew)
    }

    fn lease(&self) -> MutexGuard<'_, Option<(Arc<Lease>, Duration)>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Pod on our Node: ours with a machine is that machine's matter; ours without one is let go when it is going; a stranger's is told,
    /// and its deletion is completed, since no kubelet will.
    async fn look_at(&self, pod: &Pod) -> Result<(), Failure> {
        let ctx = &self.ctx;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let claimed = ctx.caches.rented.all().iter().any(|m| m.spec.claim.pod_uid == uid);
        let ours = pod.metadata.labels.as_ref().is_some_and(|l| l.contains_key(names::JOB_UID));
        if claimed {
            return Ok(());
        }
        if !ours {
            let note =
                "this Node stands for rented machines and runs only Pods of TrainingJobs; the Pod will not run here"
                    .to_owned();
            ctx.tell(&reference(Pod::KIND, pod), Severity::Warning, Reason::NotARentalNode, "Reject", note).await;
        }
        if pod.metadata.deletion_timestamp.is_none() {
            if ours && pod::is_over(pod) {
                // Its machine's object was torn away before it could let the Pod go.
                rented_machine::drop_finalizer(ctx, pod).await?;
            }
            return Ok(());
        }
        rented_machine::drop_finalizer(ctx, pod).await?;
        let how = Removal::guarded(Guard::same(pod)).at_once();
        match ctx.cluster.remove::<Pod>(&Key::of(pod), &how).await {
            Ok(()) | Err(tradewind_cluster::ClusterError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Reconciler for Nodes {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jiff::Timestamp;
    use tradewind_checkpoints::MemoryStore;
    use tradewind_cluster::{Cluster, Memory};
    use tradewind_core::ManualClock;

    use super::*;
    use crate::test_context::context;

    #[test]
    fn the_lease_is_renewed_when_it_is_due_however_often_one_looks_and_after_somebody_else_wrote_it() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_790_000_000).unwrap(), 1));
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        let cluster = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let ctx = Arc::new(context(Arc::clone(&clock) as _, &store, Arc::clone(&cluster) as _));
        let nodes = Nodes::new(Arc::clone(&ctx));
        let look = || nodes.run().now_or_never().expect("in memory everything is ready");
        let lease = || cluster.peek_all::<Lease>().first().cloned().unwrap();
        let renewed = || lease().spec.as_ref().unwrap().renew_time.clone().unwrap().0;
        let every = ctx.settings.node_renew;
        assert_eq!(look().unwrap(), Wake::After(every, "the Node's Lease"));
        let first = renewed();
        clock.advance(every / 4);
        assert_eq!(look().unwrap(), Wake::After(every * 3 / 4, "the Node's Lease"));
        assert_eq!(renewed(), first, "an event about a Pod is no reason to write");
        clock.advance(every * 3 / 4);
        look().unwrap();
        assert_eq!(renewed(), ctx.clock.now());
        let port: &dyn Cluster = &*cluster;
        let mut other = (*lease()).clone();
        other.spec.as_mut().unwrap().holder_identity = Some("somebody".to_owned());
        port.write(other).now_or_never().unwrap().unwrap();
        clock.advance(every);
        assert!(look().is_err(), "it is not as it was");
        look().unwrap();
        let spec = lease().spec.clone().unwrap();
        assert_eq!(
            (spec.holder_identity.as_deref(), renewed()),
            (Some(ctx.settings.node_name.as_str()), ctx.clock.now())
        );
    }
}
