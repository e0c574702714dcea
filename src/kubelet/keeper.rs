//! Output that has outlived its machine: kept for as long as its Pod is there, and never for ever.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::SignedDuration;
use tradewind_checkpoints::KeptLogs;
use tradewind_cluster::Key;

use crate::context::Context;
use crate::controllers::pod;
use crate::runtime::{Failure, Reconciler, Wake};

/// The longest that output is kept after its machine has gone: jobs that nobody deletes must not fill the bucket.
const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Removed in one pass at most, so that no other work waits long; the rest goes with the next one.
const AT_ONCE: usize = 50;

/// The controller.
pub struct LogKeeper {
    ctx: Arc<Context>,
    /// Without a Pod at the last look. The watch may lag: only what is without one twice is removed.
    lonely: Mutex<BTreeSet<String>>,
}

impl LogKeeper {
    /// Its name in queue, logs and metrics.
    pub const NAME: &'static str = "log_keeper";

    /// The one key it works on.
    pub fn key() -> Key {
        Key::cluster("logs")
    }

    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, lonely: Mutex::default() }
    }

    async fn run(&self) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(mailbox) = &ctx.mailbox else { return Ok(Wake::OnChange) };
        let unavailable = |e: tradewind_checkpoints::StoreError| Failure::new("MailboxUnavailable", e.to_string());
        let install = &ctx.settings.install;
        let kept = mailbox.kept_logs(install).await.map_err(unavailable)?;
        let mut wanted: BTreeSet<String> =
            ctx.caches.pods.whole().iter().filter_map(|p| pod::machine_uid(p).map(str::to_owned)).collect();
        // One that is about to go has noted it already.
        wanted.extend(ctx.caches.rented.all().iter().filter_map(|m| m.metadata.uid.clone()));
        let before = std::mem::take(&mut *self.lonely.lock().unwrap_or_else(PoisonError::into_inner));
        let (remove, lonely) = sort(&kept, &wanted, &before, ctx.clock.now());
        *self.lonely.lock().unwrap_or_else(PoisonError::into_inner) = lonely;
        for machine in remove.iter().take(AT_ONCE) {
            mailbox.remove_logs(install, machine).await.map_err(unavailable)?;
        }
        // As patient as with machines that nobody claims.
        Ok(Wake::After(ctx.settings.orphan_age.max(Duration::from_secs(1)), "output of machines that are gone"))
    }
}

/// What is removed now, and what is without a Pod. Pure.
fn sort(
    kept: &[KeptLogs],
    wanted: &BTreeSet<String>,
    before: &BTreeSet<String>,
    now: jiff::Timestamp,
) -> (Vec<String>, BTreeSet<String>) {
    let lonely: BTreeSet<String> =
        kept.iter().map(|k| k.machine.clone()).filter(|machine| !wanted.contains(machine)).collect();
    let remove = kept.iter().filter(|k| {
        let old = now.duration_since(k.since) > LONGEST;
        old || (lonely.contains(&k.machine) && before.contains(&k.machine))
    });
    (remove.map(|k| k.machine.clone()).collect(), lonely)
}

impl Reconciler for LogKeeper {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn reconcile<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_goes_when_its_pod_has_been_gone_for_two_looks_or_it_is_very_old() {
        let now = jiff::Timestamp::from_second(10_000_000).unwrap();
        let kept = |machine: &str, hours: i64| KeptLogs {
            machine: machine.to_owned(),
            since: now - SignedDuration::from_hours(hours),
        };
        let set = |machines: &[&str]| machines.iter().map(|m| (*m).to_owned()).collect::<BTreeSet<_>>();
        let all = [kept("shown", 1), kept("lonely", 1), kept("new", 1), kept("ancient", 169)];
        let (remove, lonely) = sort(&all, &set(&["shown", "ancient"]), &set(&["lonely", "shown"]), now);
        assert_eq!(remove, ["lonely", "ancient"]);
        assert_eq!(lonely, set(&["lonely", "new"]));
    }
}
