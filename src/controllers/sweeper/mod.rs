//! The sweeper: finds paid assets of ours that no RentedMachine knows, and ends them.
//!
//! It acts only on complete lists, never on the first one after a start, claims by order key, skips the young and everything without our
//! exact install id, and stops itself when it would end suspiciously much at once.

pub mod folders;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::SignedDuration;
use tradewind_api::rented_machine::OrderOutcome;
use tradewind_api::{Reason, RentedMachine};
use tradewind_cluster::{Key, Selector};
use tradewind_core::OrderKey;
use tradewind_providers::Machine;

use crate::context::Context;
use crate::events::{Severity, reference};
use crate::runtime::{Failure, Reconciler, Wake};
use crate::telemetry::metrics;

/// Its name in queue, logs and metrics.
pub const NAME: &str = "sweeper";

/// So many orphans may always be ended in one pass; beyond it at most half of what is ours.
const ALWAYS: usize = 3;

/// The controller. Keyed by Provider.
pub struct Sweeper {
    ctx: Arc<Context>,
}

/// What one pass would do. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Ids of orphans, oldest key first.
    pub orphans: Vec<String>,
    /// The brake: too many at once, nothing is ended.
    pub braked: bool,
}

/// Which of the account's assets are ours, old enough, and known to no RentedMachine.
pub fn orphans(
    assets: &[Machine],
    machines: &[Arc<RentedMachine>],
    install: &tradewind_core::InstallId,
    now: jiff::Timestamp,
    age: Duration,
) -> Pass {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    let mine: Vec<(&OrderKey, &Machine)> =
        assets.iter().filter_map(|m| Some((m.key.as_ref()?, m))).filter(|(key, _)| key.install == *install).collect();
    let mut found: Vec<(u64, String)> = mine
        .iter()
        .filter(|(key, _)| {
            now.as_second().saturating_sub(i64::try_from(key.at_unix_s).unwrap_or(i64::MAX)) > age.as_secs()
        })
        .filter(|(key, asset)| !machines.iter().any(|m| claims(m, key, &asset.id)))
        .map(|(key, asset)| (key.at_unix_s, asset.id.clone()))
        .collect();
    found.sort();
    let braked = found.len() > ALWAYS && found.len() * 2 > mine.len();
    Pass { orphans: found.into_iter().map(|(_, id)| id).collect(), braked }
}

/// A RentedMachine claims an asset that one of its orders bought, left behind, or may still have bought.
fn claims(machine: &RentedMachine, key: &OrderKey, id: &str) -> bool {
    let Some(status) = &machine.status else { return false };
    status.machine_id.as_deref() == Some(id)
        || status.orders.iter().any(|o| {
            let same = o.key == key.to_string();
            (same && o.outcome == OrderOutcome::Open) || (o.machine_id.as_deref() == Some(id) && (same || o.leftover))
        })
}

impl Sweeper {
    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    async fn run(&self, key: &Key) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(account) = ctx.accounts.get(&key.name) else { return Ok(Wake::OnChange) };
        let Some(sightings) = account.sightings().filter(|_| account.passes() >= 2) else { return Ok(Wake::OnChange) };
        let age = ctx.settings.orphan_age;
        let install = &ctx.settings.install;
        // First with what the watch told, which costs nothing; before anything is ended, with a fresh and complete list.
        if orphans(&sightings.machines, &ctx.caches.rented.all(), install, ctx.clock.now(), age).orphans.is_empty() {
            return Ok(Wake::OnChange);
        }
        let machines = ctx.cluster.read_all::<RentedMachine>(None, &Selector::everything()).await?;
        let pass = orphans(&sightings.machines, &machines, install, ctx.clock.now(), age);
        if pass.braked {
            let message = format!(
                "{} machines carry this install's id but no RentedMachine knows them; that is too many to end at once: none was ended, look at them at the provider",
                pass.orphans.len()
            );
            tracing::error!(provider = key.name, reason = "SweeperBrake", "Stopping the sweeper's pass");
            self.tell(key, Severity::Warning, message).await;
            return Ok(Wake::OnChange);
        }
        let mut failed = None;
        for id in &pass.orphans {
            if ctx.settings.sweep_report_only {
                metrics().orphan(&key.name, "reported");
                self.tell(
                    key,
                    Severity::Warning,
                    format!("machine {id} carries this install's id but no RentedMachine knows it; it is only reported (--sweep-report-only)"),
                )
                .await;
                continue;
            }
            if let Err(error) = account.provider.terminate(id).await {
                failed.get_or_insert(Failure::new(error.reason(), error.to_string()));
                continue;
            }
            metrics().orphan(&key.name, "terminated");
            tracing::warn!(
                provider = key.name,
                machine.id = id,
                reason = "OrphanTerminated",
                "Ended a machine that nothing claims"
            );
            self.tell(
                key,
                Severity::Warning,
                format!("machine {id} carried this install's id but no RentedMachine knew it; it was ended"),
            )
            .await;
        }
        failed.map_or(Ok(Wake::OnChange), Err)
    }

    async fn tell(&self, key: &Key, severity: Severity, note: String) {
        if let Some(provider) = self.ctx.caches.providers.get(key) {
            let about = reference(<tradewind_api::Provider as tradewind_cluster::Typed>::KIND, &*provider);
            self.ctx.tell(&about, severity, Reason::OrphanTerminated, "Sweep", note).await;
        }
    }
}

impl Reconciler for Sweeper {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run(key))
    }
}

#[cfg(test)]
mod tests {
    use tradewind_core::{Capacity, InstallId};
    use tradewind_providers::MachineState;

    use super::*;

    fn asset(id: &str, key: Option<OrderKey>) -> Machine {
        Machine {
            id: id.into(),
            key,
            state: MachineState::Running,
            capacity: Capacity::Spot,
            price_per_hour: None,
            created_at: None,
        }
    }

    #[test]
    fn only_old_assets_with_our_exact_id_that_nothing_claims_are_orphans() {
        let ours = InstallId::derive("a", "r");
        let theirs = InstallId::derive("b", "r");
        let at = |s| jiff::Timestamp::from_second(s).unwrap();
        let key = |install: &InstallId, when| Some(OrderKey::new(install, "uid", 0, at(when)));
        let assets = [
            asset("old", key(&ours, 1000)),
            asset("young", key(&ours, 1990)),
            asset("other", key(&theirs, 1000)),
            asset("plain", None),
        ];
        let pass = orphans(&assets, &[], &ours, at(2000), Duration::from_mins(1));
        assert_eq!(pass, Pass { orphans: vec!["old".into()], braked: false });
    }

    #[test]
    fn the_brake_holds_when_most_of_what_is_ours_would_go() {
        let ours = InstallId::derive("a", "r");
        let at = |s| jiff::Timestamp::from_second(s).unwrap();
        let assets: Vec<Machine> =
            (0..5).map(|i| asset(&i.to_string(), Some(OrderKey::new(&ours, &format!("u{i}"), 0, at(10))))).collect();
        assert!(orphans(&assets, &[], &ours, at(2000), Duration::from_mins(1)).braked);
    }
}
