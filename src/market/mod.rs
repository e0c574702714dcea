//! What is on the market: fresh offers per account and the memory of refusals and bad hosts. It plans nothing.

pub mod keeper;
pub mod lives;
pub mod memory;
pub mod pools;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tradewind_cluster::Key;
use tradewind_core::{Money, Offer};
use tradewind_planner::{Knowledge, RefusedNote};
use tradewind_providers::OfferQuery;

use crate::context::Context;
use crate::runtime::{Failure, Reconciler, Wake};
pub use keeper::MarketKeeper;

/// Offers of one account as of one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Monotonic time at which they were asked for.
    pub at: Duration,
    /// The offers.
    pub offers: Arc<Vec<Offer>>,
}

/// An offer that a job has chosen and not claimed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// Name of the Provider.
    pub provider: String,
    /// Id of the offer.
    pub offer: String,
    /// What it may cost an hour.
    pub per_hour: Money,
}

/// How long a chosen offer is kept for its job: longer than it takes to write its status and the claim, and not much longer, since a job
/// that thinks better of it tells nobody.
pub const SPOKEN_FOR: Duration = Duration::from_secs(10);

/// What changes all the time (pools that come and go, how long a start takes) is written down together with what else was learned, or after so
/// long.
const SMALL_NEWS_WRITTEN_AFTER: Duration = Duration::from_mins(10);

/// The memory of the market.
#[derive(Default)]
pub struct Market {
    inner: Mutex<Inner>,
    planning: Mutex<()>,
}

#[derive(Default)]
struct Inner {
    offers: BTreeMap<String, Snapshot>,
    refused: BTreeMap<(String, String), (Duration, String)>,
    banned: BTreeMap<(String, String), (Duration, String)>,
    /// Hosts to leave out while there are others.
    suspected: BTreeMap<(String, String), (Duration, String)>,
    /// Hosts on which a program of ours has worked.
    proven: BTreeMap<(String, String), (Duration, String)>,
    pools: pools::Pools,
    /// Since when there is small news of which the mailbox does not know.
    small_news_since: Option<Duration>,
    lives: lives::Lives,
    set_ups: BTreeMap<(String, Option<tradewind_core::GpuModel>), u64>,
    /// By uid of the job.
    spoken_for: BTreeMap<String, (Duration, Spoken)>,
    /// Limits that the ledger found used up, by Provider and the namespace for which they hold (empty: for everybody).
    used_up: BTreeMap<(String, String), UsedUp>,
    /// Until when somebody wants fresh offers.
    wanted_until: Duration,
    /// Since when that is so.
    wanted_from: Duration,
    /// Rises with everything that is learned.
    revision: u64,
    /// The revision that the mailbox has, and when it was written.
    written: (u64, Option<Duration>),
    /// What an earlier process knew was asked for, whatever came of it.
    asked: bool,
    /// It was read.
    recalled: bool,
}

/// A limit without room.
#[derive(Debug, Clone)]
pub struct UsedUp {
    /// Until when that is believed (monotonic).
    pub until: Duration,
    /// Generation of the Provider whose limit it is.
    pub generation: Option<i64>,
    /// The ledger's words.
    pub says: String,
}

/// For how long a host counts as proven: long enough for a fleet's usual hosts, short enough that one which changes hands is looked at anew.
pub const PROVEN_FOR: Duration = Duration::from_hours(30 * 24);

/// What stands for an offer's host: where the market names none, the offer itself, which then is a pool of many.
pub fn host_of(offer: &Offer) -> String {
    if offer.host.is_empty() { format!("offer {}", offer.id) } else { offer.host.clone() }
}

impl Market {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest offers of an account.
    pub fn snapshot(&self, provider: &str) -> Option<Snapshot> {
        self.lock().offers.get(provider).cloned()
    }

    /// Remembers offers. `at`: monotonic; `wall`: the same moment by the wall clock.
    pub fn put(&self, provider: &str, at: Duration, wall: jiff::Timestamp, offers: Vec<Offer>) {
        let mut inner = self.lock();
        inner.lives.age(wall);
        if inner.pools.see(provider, wall, &offers) {
            inner.small_news_since.get_or_insert(at);
        }
        // A host that fails is written down at once; this must not be in its way.
        if inner.small_news_since.is_some_and(|since| at.saturating_sub(since) >= SMALL_NEWS_WRITTEN_AFTER) {
            inner.small_news_since = None;
            inner.revision += 1;
        }
        inner.offers.insert(provider.to_owned(), Snapshot { at, offers: Arc::new(offers) });
    }

    /// What was seen of these pools.
    pub fn records(&self, ids: &[pools::PoolId]) -> Vec<tradewind_planner::when::Record> {
        self.lock().pools.records(ids)
    }

    /// Last offers of spot pools of these accounts that have none now.
    pub fn absent(&self, allowed: &[String]) -> Vec<Offer> {
        self.lock().pools.absent(|name| allowed.iter().any(|a| a == name))
    }

    /// Says that fresh offers are wanted until `until`; while nobody wants any, none are read.
    pub fn want(&self, now: Duration, until: Duration) {
        let mut inner = self.lock();
        if inner.wanted_until <= now {
            inner.wanted_from = now;
        }
        inner.wanted_until = inner.wanted_until.max(until);
    }

    /// For how long offers have been wanted without a break.
    pub fn wanted_since(&self, now: Duration) -> Option<Duration> {
        let inner = self.lock();
        (inner.wanted_until > now).then(|| now.saturating_sub(inner.wanted_from))
    }

    /// Whether somebody wants fresh offers at `now`.
    pub fn wanted(&self, now: Duration) -> bool {
        self.lock().wanted_until > now
    }

    /// Remembers that an offer was refused, until `until`.
    pub fn refuse(&self, provider: &str, offer: &str, until: Duration, reason: String) {
        let mut inner = self.lock();
        inner.refused.insert((provider.to_owned(), offer.to_owned()), (until, reason));
        inner.revision += 1;
    }

    /// One job plans at a time, so that no two choose the same: held from the look at what others have chosen to the choice.
    pub fn plan(&self) -> std::sync::MutexGuard<'_, ()> {
        self.planning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers until `until` (monotonic) what the job with this uid has chosen.
    pub fn speak_for(&self, job: &str, plan: Spoken, until: Duration) {
        self.lock().spoken_for.insert(job.to_owned(), (until, plan));
    }

    /// The ledger refused an order for a limit that will not have room soon. `namespace` is empty where it holds for everybody.
    pub fn use_up(&self, provider: &str, namespace: &str, full: UsedUp) {
        self.lock().used_up.insert((provider.to_owned(), namespace.to_owned()), full);
    }

    /// A machine of this account is gone: its limits may have room again.
    pub fn room_again(&self, provider: &str) {
        self.lock().used_up.retain(|(of, _), _| of != provider);
    }

    /// What the ledger said, if a limit of this account was used up for this namespace a moment ago and the Provider's spec is the same.
    pub fn used_up(&self, provider: &str, namespace: &str, generation: Option<i64>, now: Duration) -> Option<String> {
        let mut inner = self.lock();
        inner.used_up.retain(|_, full| full.until > now);
        let of = |namespace: &str| inner.used_up.get(&(provider.to_owned(), namespace.to_owned()));
        let full = of("").or_else(|| of(namespace)).filter(|full| full.generation == generation);
        full.map(|full| full.says.clone())
    }

    /// The job has claimed what it had chosen, from now on the claim speaks for itself; or it chooses anew.
    pub fn claimed(&self, job: &str) {
        self.lock().spoken_for.remove(job);
    }

    /// What jobs have chosen a moment ago, by uid.
    pub fn spoken_for(&self, now: Duration) -> Vec<(String, Spoken)> {
        let mut inner = self.lock();
        inner.spoken_for.retain(|_, (until, _)| *until > now);
        inner.spoken_for.iter().map(|(uid, (_, plan))| (uid.clone(), plan.clone())).collect()
    }

    /// Leaves a host out until `until`.
    pub fn ban(&self, provider: &str, host: &str, until: Duration, reason: String) {
        if !host.is_empty() {
            let mut inner = self.lock();
            inner.banned.insert((provider.to_owned(), host.to_owned()), (until, reason));
            inner.revision += 1;
        }
    }

    /// Prefers other hosts to this offer's until `until`.
    pub fn suspect(&self, offer: &Offer, until: Duration, reason: String) {
        let mut inner = self.lock();
        inner.suspected.insert((offer.provider.clone(), host_of(offer)), (until, reason));
        inner.revision += 1;
    }

    /// Remembers that a program of ours has worked on this offer's host, which clears it of suspicion.
    pub fn prove(&self, offer: &Offer, now: Duration) {
        let mut inner = self.lock();
        let key = (offer.provider.clone(), host_of(offer));
        let cleared = inner.suspected.remove(&key).is_some();
        let known = inner.proven.insert(key, (now + PROVEN_FOR, String::new()));
        // What would hold for most of its time without this is no news.
        let news = known.is_none_or(|(until, _)| until < now + PROVEN_FOR * 9 / 10);
        inner.revision += u64::from(cleared || news);
    }

    /// Whether a program of ours has worked on this offer's host.
    pub fn is_proven(&self, offer: &Offer, now: Duration) -> bool {
        let key = (offer.provider.clone(), host_of(offer));
        self.lock().proven.get(&key).is_some_and(|(until, _)| *until > now)
    }

    /// The same knowledge without the hosts that are suspected; `None` if there are none.
    pub fn without_suspects(&self, now: Duration, known: &Knowledge) -> Option<Knowledge> {
        let mut inner = self.lock();
        inner.suspected.retain(|_, (until, _)| *until > now);
        if inner.suspected.is_empty() {
            return None;
        }
        let mut careful = known.clone();
        for ((provider, host), (until, reason)) in &inner.suspected {
            match host.strip_prefix("offer ") {
                Some(offer) => {
                    let for_s = until.saturating_sub(now).as_secs().max(1);
                    let note = RefusedNote { reason: reason.clone(), for_s };
                    careful.refused.entry((provider.clone(), offer.to_owned())).or_insert(note);
                }
                None => drop(careful.banned_hosts.insert((provider.clone(), host.clone()), reason.clone())),
            }
        }
        Some(careful)
    }

    /// What an earlier process knew was asked for: a plan need not wait for it any longer.
    pub fn may_plan(&self) -> bool {
        self.lock().asked
    }

    fn set_asked(&self) {
        self.lock().asked = true;
    }

    fn is_recalled(&self) -> bool {
        self.lock().recalled
    }

    fn set_recalled(&self) {
        self.lock().recalled = true;
    }

    /// When the mailbox was last written to, if it lacks something by now.
    #[expect(clippy::option_option, reason = "nothing to write, and never written, are two things")]
    fn unwritten_since(&self) -> Option<Option<Duration>> {
        let inner = self.lock();
        let (revision, at) = inner.written;
        (inner.revision != revision).then_some(at)
    }

    fn set_written(&self, revision: u64, at: Duration) {
        let mut inner = self.lock();
        inner.written = (revision, Some(at));
        inner.small_news_since = None;
    }

    /// Whether there is anything that the mailbox does not know.
    fn has_news(&self) -> bool {
        self.unwritten_since().is_some() || self.lock().small_news_since.is_some()
    }

    /// Remembers how long a spot machine lived until it was lost.
    pub fn lived(&self, provider: &str, gpu: Option<tradewind_core::GpuModel>, seconds: u64) {
        let mut inner = self.lock();
        inner.lives.add((provider.to_owned(), gpu), seconds, true);
        inner.revision += 1;
    }

    /// Remembers how long a spot machine lived that was not lost.
    pub fn outlasted(&self, provider: &str, gpu: Option<tradewind_core::GpuModel>, seconds: u64, now: Duration) {
        let mut inner = self.lock();
        inner.lives.add((provider.to_owned(), gpu), seconds, false);
        inner.small_news_since.get_or_insert(now);
    }

    /// Lets what is known of lives fade as of now, before something new is added to it.
    pub fn age_lives(&self, wall: jiff::Timestamp) {
        self.lock().lives.age(wall);
    }

    /// Remembers how long a machine took from the rent call until it ran, without its image's download. Late ones count more.
    pub fn set_up(&self, provider: &str, gpu: Option<tradewind_core::GpuModel>, seconds: u64, now: Duration) {
        let mut inner = self.lock();
        let mean = inner.set_ups.entry((provider.to_owned(), gpu)).or_insert(tradewind_planner::DEFAULT_SETUP_S);
        *mean = (*mean + seconds.min(memory::LONGEST_SET_UP_S)).div_ceil(2);
        inner.small_news_since.get_or_insert(now);
    }

    /// What the planner should know of the market at `now`. Notes that have run out are forgotten.
    pub fn knowledge(&self, now: Duration) -> Knowledge {
        let mut inner = self.lock();
        inner.refused.retain(|_, (until, _)| *until > now);
        inner.banned.retain(|_, (until, _)| *until > now);
        inner.proven.retain(|_, (until, _)| *until > now);
        let refused = inner
            .refused
            .iter()
            .map(|(k, (until, reason))| {
                (k.clone(), RefusedNote { reason: reason.clone(), for_s: until.saturating_sub(now).as_secs().max(1) })
            })
            .collect();
        let banned_hosts = inner.banned.iter().map(|(k, (_, reason))| (k.clone(), reason.clone())).collect();
        let mean_life_s = inner.lives.means();
        let pool_setup_s = inner.set_ups.clone();
        Knowledge { refused, banned_hosts, mean_life_s, pool_setup_s, ..Knowledge::default() }
    }
}

/// Keeps the offers of each account fresh while a job wants them. Keyed by Provider.
pub struct MarketReader {
    ctx: Arc<Context>,
}

impl MarketReader {
    /// Its name in the queue.
    pub const NAME: &'static str = "market";

    /// A reader over this context.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    async fn read(&self, name: &str) -> Result<Wake, Failure> {
        let ctx = &self.ctx;
        let Some(account) = ctx.accounts.get(name) else { return Ok(Wake::OnChange) };
        let now = ctx.clock.monotonic();
        if !ctx.market.wanted(now) {
            return Ok(Wake::OnChange);
        }
        let refresh = ctx.settings.offers_max_age / 2;
        if let Some(snapshot) = ctx.market.snapshot(name) {
            let age = now.saturating_sub(snapshot.at);
            if age < refresh {
                return Ok(Wake::After(refresh.saturating_sub(age), "offers grow old"));
            }
        }
        let query = OfferQuery::default();
        let offers =
            account.provider.offers(&query).await.map_err(|error| Failure::new(error.reason(), error.to_string()))?;
        ctx.market.put(name, now, ctx.clock.now(), offers);
        ctx.keep_market();
        ctx.wake_waiting_jobs();
        Ok(Wake::After(refresh, "offers grow old"))
    }
}

impl Reconciler for MarketReader {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Wake, Failure>> {
        Box::pin(self.read(&key.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_has_chosen_is_kept_for_a_moment() {
        let market = Market::default();
        let plan = |offer: &str| Spoken { provider: "p".to_owned(), offer: offer.to_owned(), per_hour: Money::ZERO };
        let at = |seconds: u64| Duration::from_secs(seconds);
        market.speak_for("a", plan("1"), at(110));
        market.speak_for("a", plan("2"), at(111));
        market.speak_for("b", plan("3"), at(110));
        let spoken =
            |now: u64| -> Vec<String> { market.spoken_for(at(now)).into_iter().map(|(_, plan)| plan.offer).collect() };
        assert_eq!(spoken(102), ["2", "3"], "a job has one choice, its last");
        assert_eq!(spoken(110), ["2"]);
        market.claimed("a");
        assert!(spoken(110).is_empty());
    }
}
