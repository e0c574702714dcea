//! Keeps the market's memory in the mailbox, so that it survives the operator: a host that failed a minute ago is not rented again because
//! another process leads now.
//!
//! Only who leads runs this. Losing the newest minute of it to a crash costs at most one more look at a bad host; so it is written at most
//! once a minute, only when something was learned, and once more at an orderly end.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_checkpoints::{Mailbox, StoreError};
use tradewind_cluster::Key;

use super::memory::{MAX_BYTES, Moment, Remembered};
use crate::context::Context;
use crate::runtime::{Failure, Reconciler, Wake};

/// Time between two writes.
const EVERY: Duration = Duration::from_mins(1);

/// The keeper.
pub struct MarketKeeper {
    ctx: Arc<Context>,
}

impl MarketKeeper {
    /// Its name in the queue.
    pub const NAME: &'static str = "market_memory";
    /// There is one memory.
    pub const SINGLE: &'static str = "market";

    /// A keeper over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    /// Its one key.
    pub fn key() -> Key {
        Key::cluster(Self::SINGLE)
    }

    async fn run(&self) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(mailbox) = &ctx.mailbox else { return Ok(Wake::OnChange) };
        if !ctx.market.is_recalled() {
            recall(ctx, mailbox).await?;
        }
        let Some(written_at) = ctx.market.unwritten_since() else { return Ok(Wake::OnChange) };
        let due = written_at.map_or(Duration::ZERO, |at| at + EVERY);
        let wait = due.saturating_sub(ctx.clock.monotonic());
        if !wait.is_zero() {
            return Ok(Wake::After(wait, "what was learned is written down"));
        }
        write(ctx, mailbox).await?;
        Ok(Wake::OnChange)
    }
}

fn moment(ctx: &Context) -> Moment {
    Moment { monotonic: ctx.clock.monotonic(), wall: ctx.clock.now() }
}

/// Reads what the process before knew. If that cannot be read now, jobs are placed without it, and it is tried again.
async fn recall(ctx: &Context, mailbox: &Mailbox) -> Result<(), Failure> {
    let read = mailbox.read_market(&ctx.settings.install, MAX_BYTES).await;
    let waited = !ctx.market.may_plan();
    ctx.market.set_asked();
    if waited {
        ctx.wake_waiting_jobs();
    }
    match read {
        Ok(None) => ctx.market.set_recalled(),
        Ok(Some(bytes)) => {
            match Remembered::decode(&bytes) {
                Some(remembered) => ctx.market.recall(remembered, moment(ctx)),
                None => told_unreadable(bytes.len() as u64),
            }
            ctx.market.set_recalled();
        }
        Err(StoreError::TooLarge { size_bytes, .. }) => {
            told_unreadable(size_bytes);
            ctx.market.set_recalled();
        }
        Err(error) => {
            let message = format!("placing jobs without what was known of hosts, tried again: {error}");
            return Err(Failure::new("MarketMemoryUnread", message));
        }
    }
    Ok(())
}

fn told_unreadable(size_bytes: u64) {
    tracing::warn!(
        reason = "MarketMemoryUnreadable",
        size_bytes,
        "Starting with nothing known of hosts: what is in the mailbox is no memory of ours and will be overwritten"
    );
}

async fn write(ctx: &Context, mailbox: &Mailbox) -> Result<(), Failure> {
    let (revision, remembered) = ctx.market.to_remember(moment(ctx));
    let written = mailbox.write_market(&ctx.settings.install, remembered.encode()).await;
    written.map_err(|error| Failure::new("MarketMemoryUnwritten", error.to_string()))?;
    ctx.market.set_written(revision, ctx.clock.monotonic());
    Ok(())
}

/// Writes what has not been written yet: the last thing that a leader does before it lets go.
pub async fn flush(ctx: &Context) -> Result<(), Failure> {
    match &ctx.mailbox {
        // What was never read must not be overwritten by the little that is known now.
        Some(mailbox) if ctx.market.is_recalled() && ctx.market.has_news() => write(ctx, mailbox).await,
        _ => Ok(()),
    }
}

impl Reconciler for MarketKeeper {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn reconcile<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.run())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tradewind_checkpoints::MemoryStore;
    use tradewind_cluster::Memory;
    use tradewind_core::{Clock, ManualClock, Offer};

    use super::*;
    use crate::market::PROVEN_FOR;
    use crate::market::memory::Remembered;
    use crate::test_context::context;
    use crate::test_machine;

    const BUCKET: &str = "mailbox";

    fn offer(host: &str, id: &str) -> Offer {
        Offer { host: host.into(), ..test_machine::offer(id) }
    }

    struct World {
        clock: Arc<ManualClock>,
        store: MemoryStore,
    }

    impl World {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(jiff::Timestamp::from_second(1_790_000_000).unwrap(), 1));
            let store = MemoryStore::new(Arc::clone(&clock) as _);
            store.create_bucket(BUCKET);
            Self { clock, store }
        }

        /// A process that has just begun to lead.
        fn keeper(&self) -> MarketKeeper {
            let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
            let cluster = Arc::new(Memory::new(Arc::clone(&clock)));
            MarketKeeper::new(Arc::new(context(clock, &self.store, cluster)))
        }

        fn documents(&self) -> Vec<(String, bytes::Bytes)> {
            self.store.objects(BUCKET).into_iter().collect()
        }

        fn pass(&self, minutes: u64) {
            self.clock.advance(Duration::from_mins(minutes));
        }
    }

    fn run(keeper: &MarketKeeper) -> Result<Wake, Failure> {
        keeper.run().now_or_never().expect("in memory everything is ready")
    }

    impl MarketKeeper {
        fn ban(&self, host: &str, for_minutes: u64) {
            let until = self.ctx.clock.monotonic() + Duration::from_mins(for_minutes);
            self.ctx.market.ban("p", host, until, "unfit".to_owned());
        }

        fn banned(&self) -> Vec<String> {
            let known = self.ctx.market.knowledge(self.ctx.clock.monotonic());
            known.banned_hosts.into_keys().map(|(_, host)| host).collect()
        }
    }

    #[test]
    fn what_was_learned_outlives_the_process_but_not_its_time() {
        let world = World::new();
        let first = world.keeper();
        assert_eq!(run(&first).unwrap(), Wake::OnChange);
        assert!(first.ctx.market.may_plan() && world.documents().is_empty(), "nothing learned, nothing written");
        first.ban("h1", 60);
        first.ban("h2", 10);
        let now = world.clock.monotonic();
        first.ctx.market.refuse("p", "o1", now + Duration::from_hours(1), "sold".to_owned());
        first.ctx.market.lived("p", None, 100);
        first.ctx.market.prove(&offer("h3", "o3"), now);
        first.ctx.market.suspect(&offer("h4", "o4"), now + Duration::from_hours(1), "failed".to_owned());
        assert_eq!(run(&first).unwrap(), Wake::OnChange);
        assert_eq!(world.documents().len(), 1);
        world.pass(30);
        let second = world.keeper();
        assert!(second.banned().is_empty() && !second.ctx.market.may_plan());
        run(&second).unwrap();
        let market = &second.ctx.market;
        let now = world.clock.monotonic();
        assert_eq!(second.banned(), ["h1"]);
        let known = market.knowledge(now);
        assert_eq!(known.refused[&("p".to_owned(), "o1".to_owned())].for_s, 30 * 60);
        assert_eq!(known.mean_life_s[&("p".to_owned(), None)], (100 + 3 * tradewind_planner::DEFAULT_MEAN_LIFE_S) / 4);
        assert!(market.is_proven(&offer("h3", "x"), now) && !market.is_proven(&offer("h4", "x"), now));
        let careful = market.without_suspects(now, &known).unwrap();
        assert!(careful.banned_hosts.contains_key(&("p".to_owned(), "h4".to_owned())));
        assert!(market.unwritten_since().is_none(), "what was read is not news");
        world.pass(30);
        assert!(second.banned().is_empty());
        assert!(market.without_suspects(world.clock.monotonic(), &known).is_none());
    }

    #[test]
    fn it_writes_at_most_once_a_minute_and_at_an_orderly_end() {
        let world = World::new();
        let keeper = world.keeper();
        run(&keeper).unwrap();
        keeper.ban("h1", 600);
        assert_eq!(run(&keeper).unwrap(), Wake::OnChange);
        let first = world.documents();
        keeper.ban("h2", 600);
        assert_eq!(run(&keeper).unwrap(), Wake::After(EVERY, "what was learned is written down"));
        assert_eq!(world.documents(), first);
        flush(&keeper.ctx).now_or_never().unwrap().unwrap();
        let second = world.documents();
        assert_ne!(second, first);
        keeper.ban("h3", 600);
        world.pass(1);
        assert_eq!(run(&keeper).unwrap(), Wake::OnChange);
        assert_ne!(world.documents(), second);
        world.store.tamper(BUCKET, &second[0].0, None);
        world.pass(1);
        run(&keeper).unwrap();
        flush(&keeper.ctx).now_or_never().unwrap().unwrap();
        assert!(world.documents().is_empty(), "nothing new, nothing written");
    }

    #[test]
    fn pools_that_come_and_go_are_in_nobodys_way() {
        let world = World::new();
        let keeper = world.keeper();
        let market = &keeper.ctx.market;
        let spot = Offer { capacity: tradewind_core::Capacity::Spot, ..offer("h", "1") };
        let list = |offers| market.put("p", world.clock.monotonic(), world.clock.now(), offers);
        list(vec![spot.clone()]);
        assert!(market.unwritten_since().is_none(), "a host that fails now is written down at once");
        assert!(market.has_news(), "an orderly end writes it");
        world.pass(9);
        list(vec![]);
        assert!(market.unwritten_since().is_none());
        world.pass(1);
        list(vec![]);
        assert!(market.unwritten_since().is_some(), "it does not wait for ever");
    }

    #[test]
    fn a_read_that_fails_holds_nobody_up_and_overwrites_nothing() {
        let world = World::new();
        let first = world.keeper();
        run(&first).unwrap();
        first.ban("h1", 600);
        run(&first).unwrap();
        let written = world.documents();
        let second = world.keeper();
        world.store.deny(BUCKET, true);
        let failure = run(&second).unwrap_err();
        assert_eq!(failure.reason, "MarketMemoryUnread");
        assert!(second.ctx.market.may_plan(), "jobs go on without it");
        second.ban("h2", 600);
        world.store.deny(BUCKET, false);
        flush(&second.ctx).now_or_never().unwrap().unwrap();
        assert_eq!(world.documents(), written, "an end before the first good read writes nothing");
        run(&second).unwrap();
        assert_eq!(second.banned(), ["h1", "h2"], "both count");
        let third = world.keeper();
        run(&third).unwrap();
        assert_eq!(third.banned(), ["h1", "h2"], "and both were written");
    }

    #[test]
    fn rubbish_is_ignored_and_overwritten() {
        let world = World::new();
        let first = world.keeper();
        run(&first).unwrap();
        first.ban("h1", 600);
        run(&first).unwrap();
        let (key, good) = world.documents().remove(0);
        let other_version = String::from_utf8(good.to_vec()).unwrap().replace("\"version\":1", "\"version\":7");
        let huge = vec![b'['; usize::try_from(MAX_BYTES).unwrap() + 1];
        for rubbish in [b"{".to_vec(), b"null".to_vec(), Vec::new(), huge, other_version.into_bytes()] {
            world.store.tamper(BUCKET, &key, Some(rubbish.into()));
            let next = world.keeper();
            run(&next).unwrap();
            assert!(next.banned().is_empty() && next.ctx.market.may_plan());
            next.ban("h2", 600);
            run(&next).unwrap();
            assert!(Remembered::decode(&world.documents()[0].1).is_some());
        }
    }

    #[test]
    fn a_clock_that_was_wrong_bans_nobody_for_ever_and_the_document_has_a_bound() {
        let world = World::new();
        let first = world.keeper();
        run(&first).unwrap();
        let hosts = 5_000_u64;
        for n in 0..hosts {
            let until = world.clock.monotonic() + Duration::from_hours(24 * 365 * 10) + Duration::from_secs(n);
            first.ctx.market.ban("p", &n.to_string(), until, "x".repeat(10_000));
        }
        run(&first).unwrap();
        assert!(world.documents()[0].1.len() < 300_000, "{}", world.documents()[0].1.len());
        let second = world.keeper();
        run(&second).unwrap();
        assert!(second.banned().contains(&(hosts - 1).to_string()), "what lasts longest is kept");
        world.clock.advance(PROVEN_FOR);
        assert!(second.banned().is_empty());
    }

    #[test]
    fn a_host_that_works_is_cleared_of_suspicion_and_a_pool_is_known_by_its_offer() {
        let world = World::new();
        let market = &world.keeper().ctx.market;
        let now = Duration::from_mins(1);
        let (host, pool) = (offer("h", "o1"), offer("", "o2"));
        let known = market.knowledge(now);
        market.suspect(&host, now * 2, "failed".to_owned());
        market.suspect(&pool, now * 2, "failed".to_owned());
        let careful = market.without_suspects(now, &known).unwrap();
        assert_eq!(careful.banned_hosts.len(), 1);
        assert_eq!(careful.refused[&("p".to_owned(), "o2".to_owned())].for_s, 60);
        market.prove(&offer("h", "another offer"), now);
        assert!(market.is_proven(&host, now) && !market.is_proven(&pool, now));
        assert!(market.without_suspects(now, &known).unwrap().banned_hosts.is_empty());
        let revision = market.to_remember(moment(&world.keeper().ctx)).0;
        market.prove(&host, now + Duration::from_hours(1));
        assert_eq!(market.to_remember(moment(&world.keeper().ctx)).0, revision, "a host that works on is no news");
        assert!(!market.is_proven(&host, now + PROVEN_FOR * 2));
    }
}
