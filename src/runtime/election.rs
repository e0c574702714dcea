//! Who leads: one holder of a Lease at a time.
//!
//! A holder counts as gone once its record has not changed for the record's own duration, by *our* monotonic clock since we first saw
//! it: no two computers' clocks are compared. The holder itself gives up after [`Terms::renew_within`], which is shorter, counted from
//! before its last renewal was sent. So two replicas never both believe that they lead, unless a process is frozen for longer;
//! what a freeze lets through is harmless by resourceVersions and order keys.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tradewind_cluster::{Cluster, ClusterError, Key};
use tradewind_core::Clock;

/// The election's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// For how long others believe in a holder that does not renew.
    pub duration: Duration,
    /// A holder that could not renew for this long stops. Shorter than `duration` by more than one request may take.
    pub renew_within: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { duration: Duration::from_secs(15), renew_within: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// The lead is lost: everything must stop at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Somebody else holds the Lease.
    #[error("{holder} holds the Lease now")]
    Taken {
        /// Its identity; empty if the Lease was given free by hand.
        holder: String,
    },
    /// The Lease could not be renewed in time.
    #[error("the Lease could not be renewed for {} s", since.as_secs())]
    NotRenewed {
        /// Time since the last renewal that is known to have worked.
        since: Duration,
    },
}

/// One candidate.
pub struct Election {
    cluster: Arc<dyn Cluster>,
    clock: Arc<dyn Clock>,
    key: Key,
    identity: String,
    terms: Terms,
    /// The record as last seen, and since when it has looked like this.
    seen: Option<(Arc<Lease>, Duration)>,
}

impl Election {
    /// A candidate for the Lease `key`. `identity` must be unlike every other process's, and `cluster` should have a connection of
    /// its own with a limit per call below `terms.retry`, so that no other work delays a renewal.
    pub fn new(cluster: Arc<dyn Cluster>, clock: Arc<dyn Clock>, key: Key, identity: String, terms: Terms) -> Self {
        Self { cluster, clock, key, identity, terms, seen: None }
    }

    /// Waits until we lead.
    pub async fn acquire(&mut self) {
        let mut told = String::new();
        loop {
            match self.try_acquire().await {
                Ok(true) => return,
                Ok(false) => {
                    let holder = self.seen.as_ref().map(|(lease, _)| holder(lease).to_owned()).unwrap_or_default();
                    if holder != told {
                        tracing::info!(lease = %self.key, holder, "Waiting to lead");
                        told = holder;
                    }
                }
                Err(error) => tracing::warn!(lease = %self.key, %error, "Lease cannot be taken now, trying again"),
            }
            tokio::time::sleep(self.terms.retry).await;
        }
    }

    /// One try to become the leader.
    async fn try_acquire(&mut self) -> Result<bool, ClusterError> {
        let Some(current) = self.cluster.find::<Lease>(&self.key).await? else {
            return match self.cluster.add(self.record(None)).await {
                Ok(lease) => {
                    self.see(lease);
                    Ok(true)
                }
                Err(ClusterError::AlreadyExists) => Ok(false),
                Err(error) => Err(error),
            };
        };
        self.see(Arc::clone(&current));
        if !self.is_free(&current) {
            return Ok(false);
        }
        self.write(&current).await
    }

    /// Keeps the lead; returns when it is lost. Dropping the future is harmless: [`Election::release`] ends the lead.
    pub async fn hold(&mut self) -> Lost {
        let mut renewed = self.clock.monotonic();
        loop {
            tokio::time::sleep(self.terms.retry).await;
            let asked = self.clock.monotonic();
            // Checked before the call: after a freeze the time may be over already.
            if asked.saturating_sub(renewed) < self.terms.renew_within {
                match self.renew().await {
                    Ok(None) => renewed = asked,
                    Ok(Some(holder)) => return Lost::Taken { holder },
                    Err(error) => {
                        tracing::warn!(lease = %self.key, %error, "Lease cannot be renewed now, trying again");
                    }
                }
            }
            let since = self.clock.monotonic().saturating_sub(renewed);
            if since >= self.terms.renew_within {
                return Lost::NotRenewed { since };
            }
        }
    }

    /// `Some` = another holder.
    async fn renew(&mut self) -> Result<Option<String>, ClusterError> {
        let known = self.seen.as_ref().map(|(lease, _)| Arc::clone(lease));
        if let Some(known) = known
            && self.write(&known).await?
        {
            return Ok(None);
        }
        // Somebody has written: a lost answer of ours, a label by hand, or another holder.
        let Some(current) = self.cluster.find::<Lease>(&self.key).await? else { return Ok(Some(String::new())) };
        self.see(Arc::clone(&current));
        if holder(&current) != self.identity {
            return Ok(Some(holder(&current).to_owned()));
        }
        if self.write(&current).await? { Ok(None) } else { Err(ClusterError::Conflict) }
    }

    /// Gives the lead free, so that another replica takes it within one retry. Nothing may be done as a leader after this begins.
    pub async fn release(&mut self) {
        let Ok(Some(current)) = self.cluster.find::<Lease>(&self.key).await else { return };
        if holder(&current) != self.identity {
            return;
        }
        let mut lease = (*current).clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        // 0 is refused by the API server.
        spec.lease_duration_seconds = Some(1);
        match self.cluster.replace(<Lease as tradewind_cluster::Typed>::KIND, Arc::new(lease)).await {
            Ok(_) => tracing::info!(lease = %self.key, "Lead given free"),
            Err(error) => {
                tracing::warn!(lease = %self.key, %error, "Lead not given free, others wait until it runs out");
            }
        }
    }

    /// Writes ourselves into the record if nobody has written since; false = somebody has.
    async fn write(&mut self, current: &Lease) -> Result<bool, ClusterError> {
        let lease = Arc::new(self.record(Some(current)));
        match self.cluster.replace(<Lease as tradewind_cluster::Typed>::KIND, lease).await {
            Ok(written) => {
                self.see(tradewind_cluster::typed(written));
                Ok(true)
            }
            Err(ClusterError::Conflict | ClusterError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn see(&mut self, lease: Arc<Lease>) {
        let same =
            self.seen.as_ref().is_some_and(|(old, _)| old.metadata.resource_version == lease.metadata.resource_version);
        if !same {
            self.seen = Some((lease, self.clock.monotonic()));
        }
    }

    fn is_free(&self, lease: &Lease) -> bool {
        let held = holder(lease);
        if held.is_empty() || held == self.identity {
            return true;
        }
        let seconds = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(1);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        self.seen.as_ref().is_some_and(|(_, since)| self.clock.monotonic().saturating_sub(*since) > duration)
    }

    /// The record with us as the holder.
    fn record(&self, current: Option<&Lease>) -> Lease {
        let old = current.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.identity);
        let now = MicroTime(self.clock.now());
        let metadata = current.map_or_else(
            || ObjectMeta {
                name: Some(self.key.name.clone()),
                namespace: Some(self.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        let transitions = old.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.terms.duration.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if ours || current.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jiff::Timestamp;
    use tradewind_cluster::Memory;
    use tradewind_core::ManualClock;

    use super::*;

    struct World {
        cluster: Arc<dyn Cluster>,
        clock: Arc<ManualClock>,
    }

    impl World {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH, 1));
            let cluster: Arc<dyn Cluster> = Arc::new(Memory::new(Arc::clone(&clock) as Arc<dyn Clock>));
            Self { cluster, clock }
        }

        fn candidate(&self, identity: &str) -> Election {
            let key = Key::namespaced("default", "leader");
            Election::new(
                Arc::clone(&self.cluster),
                Arc::clone(&self.clock) as _,
                key,
                identity.into(),
                Terms::default(),
            )
        }

        fn record(&self) -> Arc<Lease> {
            self.cluster.read::<Lease>(&Key::namespaced("default", "leader")).now_or_never().unwrap().unwrap()
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("the twin in memory answers at once")
    }

    #[test]
    fn the_second_waits_until_the_first_has_been_silent_for_long_enough() {
        let world = World::new();
        let (mut a, mut b) = (world.candidate("a"), world.candidate("b"));
        assert!(now(a.try_acquire()).unwrap());
        assert!(!now(b.try_acquire()).unwrap());
        world.clock.advance(Duration::from_secs(14));
        assert_eq!(now(a.renew()), Ok(None));
        world.clock.advance(Duration::from_secs(14));
        assert!(!now(b.try_acquire()).unwrap(), "renewed 14 s ago, and only now seen");
        world.clock.advance(Duration::from_secs(15));
        assert!(!now(b.try_acquire()).unwrap());
        world.clock.advance(Duration::from_secs(1));
        assert!(now(b.try_acquire()).unwrap());
        assert_eq!(now(a.renew()), Ok(Some("b".to_owned())));
        let spec = world.record().spec.clone().unwrap();
        assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(1), Some(15)));
    }

    #[test]
    fn a_released_lead_is_taken_at_once_and_never_by_the_wrong_one() {
        let world = World::new();
        let (mut a, mut b) = (world.candidate("a"), world.candidate("b"));
        assert!(now(a.try_acquire()).unwrap());
        now(b.release());
        assert!(!now(b.try_acquire()).unwrap(), "b does not hold it and cannot give it free");
        now(a.release());
        assert!(now(b.try_acquire()).unwrap());
        assert_eq!(now(a.renew()), Ok(Some("b".to_owned())));
    }

    #[test]
    fn a_label_put_on_by_hand_does_not_cost_the_lead() {
        let world = World::new();
        let mut a = world.candidate("a");
        assert!(now(a.try_acquire()).unwrap());
        let mut labelled = (*world.record()).clone();
        labelled.metadata.labels = Some([("by".to_owned(), "hand".to_owned())].into());
        now(world.cluster.replace(<Lease as tradewind_cluster::Typed>::KIND, Arc::new(labelled))).unwrap();
        assert_eq!(now(a.renew()), Ok(None));
        assert!(world.record().metadata.labels.is_some(), "and stays");
    }

    #[tokio::test]
    async fn a_holder_that_was_frozen_stops_before_it_writes() {
        let world = World::new();
        let (mut a, mut b) = (world.candidate("a"), world.candidate("b"));
        assert!(now(a.try_acquire()).unwrap());
        assert!(!now(b.try_acquire()).unwrap());
        a.terms.retry = Duration::from_millis(1);
        let mut hold = std::pin::pin!(a.hold());
        assert!(futures::poll!(&mut hold).is_pending());
        world.clock.advance(Duration::from_secs(16));
        assert!(now(b.try_acquire()).unwrap());
        assert_eq!(hold.await, Lost::NotRenewed { since: Duration::from_secs(16) });
        assert_eq!(holder(&world.record()), "b");
    }
}
