//! Mailbox folders of workers whose job was deleted while no operator looked. `worker` removes the folders of the jobs that it sees go; of
//! these nobody would ever hear again.
//!
//! Nothing hangs on them but a little money, so the sweep is slow and shy: the id of a folder must say that it is a worker's of this very
//! installation (folders of machines have their own protocol, and others may share the bucket), its job must be missing in a list that was
//! read after the folders were, and nobody may hold a ticket any more to write there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tradewind_api::TrainingJob;
use tradewind_checkpoints::Mailbox;
use tradewind_cluster::{Key, Selector};

use crate::context::Context;
use crate::controllers::worker;
use crate::runtime::{Failure, Reconciler, Wake};
use crate::telemetry::metrics;

/// After the lead was taken there is more urgent work.
const FIRST: Duration = Duration::from_mins(10);
/// What is left behind is small, and a list of a large mailbox is some hundred requests.
const EVERY: Duration = Duration::from_hours(6);
/// So many folders are looked at in one round; the next one goes on with the others.
const MOST: usize = 200;
/// Time to the next round where there are more.
const SOON: Duration = Duration::from_mins(1);
/// Folders that are looked at at once.
const AT_ONCE: usize = 8;
/// Clocks differ, and tickets may be very short: nothing that was written in the last hour goes.
const YOUNG: Duration = Duration::from_hours(1);
/// What is waited for, as the queue tells it.
const WHY: &str = "folders of workers of deleted jobs";

/// The controller. It has one key.
pub struct FolderSweeper {
    ctx: Arc<Context>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    /// When the first round may begin (monotonic).
    first: Option<Duration>,
    /// The folder at which the round before broke off for this time; empty at the start of a sweep.
    after: String,
}

impl FolderSweeper {
    /// Its name in queue, logs and metrics.
    pub const NAME: &'static str = "folder_sweeper";

    /// The one key it works on.
    pub fn key() -> Key {
        Key::cluster("mailbox")
    }

    /// The controller over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, memory: Mutex::default() }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(mailbox) = &ctx.mailbox else { return Ok(Wake::OnChange) };
        let now = ctx.clock.monotonic();
        let first = *self.memory().first.get_or_insert(now + FIRST);
        if now < first {
            return Ok(Wake::After(first.saturating_sub(now), WHY));
        }
        let mut left = self.left_behind(mailbox).await?;
        let after = std::mem::take(&mut self.memory().after);
        left.retain(|folder| *folder > after);
        let more = left.len() > MOST;
        left.truncate(MOST);
        if let Some(last) = left.last().filter(|_| more) {
            self.memory().after.clone_from(last);
        }
        self.remove_unused(mailbox, &left).await;
        Ok(Wake::After(if more { SOON } else { EVERY }, WHY))
    }

    /// Folders of workers of this installation whose jobs are gone, sorted.
    async fn left_behind(&self, mailbox: &Mailbox) -> Result<Vec<String>, Failure> {
        let ctx = &self.ctx;
        let folders = mailbox.list_machines().await;
        let folders = folders.map_err(|e| Failure::new("MailboxUnavailable", e.to_string()))?;
        // First with what the watches told, which costs nothing; before anything is removed, with a fresh list.
        let mut there: BTreeSet<String> =
            ctx.caches.jobs.all().iter().filter_map(|job| job.metadata.uid.clone()).collect();
        let gone = |folder: &String, there: &BTreeSet<String>| {
            worker::job_uid(&ctx.settings.install, folder)
                .is_some_and(|uid| !there.contains(uid) && ctx.caches.pods.of_job(uid).is_empty())
        };
        let mut left: Vec<String> = folders.into_iter().filter(|folder| gone(folder, &there)).collect();
        if !left.is_empty() {
            let jobs = ctx.cluster.read_all::<TrainingJob>(None, &Selector::everything()).await?;
            there.extend(jobs.iter().filter_map(|job| job.metadata.uid.clone()));
            left.retain(|folder| gone(folder, &there));
        }
        left.sort_unstable();
        Ok(left)
    }

    /// Removes those in which nobody writes any more. One that resists is tried again in the next sweep.
    async fn remove_unused(&self, mailbox: &Mailbox, folders: &[String]) {
        let ctx = &self.ctx;
        let since = ctx.clock.now().checked_sub(ctx.settings.ticket_lifetime.max(YOUNG)).unwrap_or(Timestamp::MIN);
        let looks: Vec<BoxFuture<'_, _>> =
            folders.iter().map(|folder| Box::pin(mailbox.forget_unused(folder, since)) as BoxFuture<'_, _>).collect();
        let outcomes: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        let removed = outcomes.iter().filter(|outcome| matches!(outcome, Ok(true))).count();
        metrics().folders_removed(removed);
        if removed > 0 {
            tracing::info!(count = removed, "Removed mailbox folders of workers whose jobs are gone");
        }
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        if let Some(error) = outcomes.into_iter().find_map(Result::err) {
            let reason = "MailboxUnavailable";
            tracing::warn!(%error, count = failed, reason, "Leaving mailbox folders of gone jobs for the next sweep");
        }
    }
}

impl Reconciler for FolderSweeper {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn reconcile<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use bytes::Bytes;
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};
    use tradewind_checkpoints::{MemoryStore, Store};
    use tradewind_cluster::{Cluster, cache};
    use tradewind_core::{InstallId, ManualClock};

    use super::*;
    use crate::test_context::{context, install};

    const DAY: Duration = Duration::from_hours(24);
    const RESTS: Wake = Wake::After(EVERY, WHY);

    struct World {
        clock: Arc<ManualClock>,
        store: MemoryStore,
        cluster: Arc<tradewind_cluster::Memory>,
        sweeper: FolderSweeper,
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("in memory everything is ready")
    }

    impl World {
        /// A process that has led for long enough.
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_790_000_000).unwrap(), 1));
            let store = MemoryStore::new(Arc::clone(&clock) as _);
            store.create_bucket("mailbox");
            let cluster = Arc::new(tradewind_cluster::Memory::new(Arc::clone(&clock) as _));
            let sweeper =
                FolderSweeper::new(Arc::new(context(Arc::clone(&clock) as _, &store, Arc::clone(&cluster) as _)));
            let world = Self { clock, store, cluster, sweeper };
            assert_eq!(world.round(), Wake::After(FIRST, WHY));
            world.clock.advance(FIRST);
            world
        }

        fn round(&self) -> Wake {
            now(self.sweeper.run()).unwrap()
        }

        /// Something is written into a folder.
        fn write(&self, folder: &str, object: &str) {
            let place = self.store.at(&"s3://mailbox/tw/".parse().unwrap());
            now(place.put(&format!("machines/{folder}/{object}"), Bytes::from_static(b"{}"))).unwrap();
        }

        fn folders(&self) -> Vec<String> {
            now(self.sweeper.ctx.mailbox.as_ref().unwrap().list_machines()).unwrap()
        }

        /// A job in the API server, which no watch has told of.
        fn job(&self, name: &str) -> String {
            let job = json!({
                "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name, "namespace": "default"},
                "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
            });
            let job: TrainingJob = serde_json::from_value(job).unwrap();
            let job = now((&*self.cluster as &dyn Cluster).add(job)).unwrap();
            job.metadata.uid.clone().unwrap()
        }

        fn tell_pod(&self, job_uid: &str) {
            let pod: Value = json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1",
                    "labels": {"tradewind.dev/job-uid": job_uid}},
            });
            let pods = vec![Arc::new(serde_json::from_value::<Pod>(pod).unwrap())];
            self.sweeper.ctx.caches.pods.lock().apply(cache::Event::Relist(pods));
        }
    }

    #[test]
    fn only_old_folders_of_workers_of_ours_whose_job_is_gone_are_removed() {
        let world = World::new();
        let theirs = InstallId::derive("another cluster", "release");
        let (there, gone) = (world.job("there"), "7a1c2f60-0000-4000-8000-00000000000a");
        let kept = [
            worker::id(&install(), &there, 0, 0),
            worker::id(&install(), "its-pod-is-still-there", 0, 0),
            worker::id(&theirs, gone, 0, 0),
            // A machine's, and what an older version called a worker's.
            "0b5f4b1e-8c1c-4b52-8f52-5f0d8a6c9a11".to_owned(),
            "9f86d081884c7d659a2feaa0c55ad015".to_owned(),
            format!("w.{}.{gone}.0", install()),
            format!("w.{}.{gone}.0.0.0", install()),
            format!("w.{}.{gone}.0.x", install()),
            format!("x.{}.{gone}.0.0", install()),
        ];
        let removed = [worker::id(&install(), gone, 0, 0), worker::id(&install(), gone, 12, 3)];
        world.tell_pod("its-pod-is-still-there");
        for folder in kept.iter().chain(&removed) {
            world.write(folder, "control.json");
            world.write(folder, "report.json");
            world.write(folder, "tickets/0-0.json");
        }
        world.clock.advance(DAY * 4);
        assert_eq!(world.round(), RESTS);
        let mut expected = kept.to_vec();
        expected.sort_unstable();
        assert_eq!(world.folders(), expected);
        let keys = world.store.objects("mailbox");
        assert_eq!(keys.len(), kept.len() * 3, "whole folders go or stay: {keys:?}");
    }

    #[test]
    fn nothing_goes_where_somebody_may_still_write() {
        let world = World::new();
        let folder = worker::id(&install(), "gone", 0, 0);
        world.write(&folder, "control.json");
        world.clock.advance(DAY * 2);
        world.write(&folder, "report.json");
        world.clock.advance(DAY * 3);
        world.round();
        assert_eq!(world.folders(), [folder], "its agent may have a ticket that is good for three days");
        world.clock.advance(Duration::from_secs(1));
        world.round();
        assert!(world.folders().is_empty());
    }

    #[test]
    fn a_mailbox_full_of_left_folders_is_emptied_bit_by_bit() {
        let world = World::new();
        let count = MOST * 2 + 50;
        for n in 0..count {
            let mut uid = "gone-".to_owned();
            write!(uid, "{n:04}").unwrap();
            world.write(&worker::id(&install(), &uid, 0, 0), "control.json");
        }
        world.clock.advance(DAY * 4);
        // In the way of the first round: not old yet, for ever.
        for n in 0..MOST {
            world.write(&worker::id(&install(), &format!("gone-{n:04}"), 0, 0), "report.json");
        }
        let again = Wake::After(SOON, WHY);
        assert_eq!((world.round(), world.folders().len()), (again, count));
        assert_eq!((world.round(), world.folders().len()), (again, count - MOST));
        assert_eq!((world.round(), world.folders().len()), (RESTS, MOST));
        world.clock.advance(DAY * 4);
        assert_eq!((world.round(), world.folders().len()), (RESTS, 0), "the next sweep begins at the front");
    }

    #[test]
    fn a_store_that_fails_costs_nothing_but_time() {
        let world = World::new();
        world.store.create_bucket("elsewhere");
        let place = Arc::new(world.store.at(&"s3://missing/tw/".parse().unwrap()));
        let mut ctx = context(Arc::clone(&world.clock) as _, &world.store, Arc::clone(&world.cluster) as _);
        ctx.mailbox = Some(Mailbox::new(place));
        let sweeper = FolderSweeper::new(Arc::new(ctx));
        now(sweeper.run()).unwrap();
        world.clock.advance(FIRST);
        assert_eq!(now(sweeper.run()).unwrap_err().reason, "MailboxUnavailable");
    }
}
