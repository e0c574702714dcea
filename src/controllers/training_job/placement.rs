//! Which offers a job may be rented on, now or later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tradewind_api::rented_machine::ChosenOffer;
use tradewind_api::{Provider, Reason};
use tradewind_core::{Money, Offer};
use tradewind_planner::{self as planner, Candidate, CostBreakdown, Knowledge, Plan};

use super::order::{StartTime, into_choice};
use super::question::{Progress, Question};
use super::room::Room;
use super::sieve::Sieve;
use super::times::Times;
use super::timing::{self, Holding, Prospect, Verdict};
use super::valid::Valid;
use crate::accounts::access::{self, Grant};
use crate::context::Context;
use crate::market::pools::PoolId;
use crate::market::{SPOKEN_FOR, Spoken};

/// So long all accounts are waited for by a job that decides for its deadline or its price: a slow one may have the better offer.
const ALL_ANSWER: Duration = Duration::from_secs(10);
/// So long a job that moves keeps its next machine from others at most: its own may end much sooner than its grace allows.
const LONGEST_WORD: Duration = Duration::from_mins(5);
/// Alternatives that a status tells.
pub const OTHERS_TOLD: usize = 3;

/// What came out of planning.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// Rent one of these, best first.
    Rent(Box<Rent>),
    /// Nothing fits, or nothing may be rented now.
    None {
        /// Reason for `Placed`.
        reason: Reason,
        /// Sentence.
        message: String,
    },
    /// Offers are on their way.
    Wait {
        /// Sentence.
        message: String,
    },
    /// Nothing is worth leaving the machine that the job has, or nothing is worth renting.
    Keep {
        /// What this means for the deadline.
        prospect: Prospect,
        /// Leaving pays, but has not done so for long enough.
        gains: bool,
    },
    /// Something fits, and it is worth while to wait.
    Later {
        /// Sentence.
        message: String,
        /// Look again after so long.
        again_in: Duration,
        /// What this means for the deadline.
        prospect: Prospect,
        /// Dollars an hour of the cheapest that could be had now.
        now: Money,
    },
}

impl Choice {
    /// What it means for the deadline.
    pub fn prospect(&self) -> Prospect {
        match self {
            Self::Rent(rent) => rent.prospect.clone(),
            Self::Keep { prospect, .. } | Self::Later { prospect, .. } => prospect.clone(),
            Self::None { message, .. } => Prospect::AtRisk(message.clone()),
            Self::Wait { .. } => Prospect::Unknown,
        }
    }
}

/// Offers to rent.
#[derive(Debug, Clone, PartialEq)]
pub struct Rent {
    /// Name of the Provider of all of them.
    pub provider: String,
    /// Best first.
    pub offers: Vec<ChosenOffer>,
    /// Why the first.
    pub why: String,
    /// What the first is expected to cost to the end.
    pub cost: CostBreakdown,
    /// Seconds until the first is expected to be done.
    pub finish_in_s: u64,
    /// The best others.
    pub others: Vec<Other>,
    /// Why the rest does not fit, at most ten lines.
    pub rejected: Vec<String>,
    /// The first offer.
    pub first: Offer,
    /// Compressed size of the image, if it is known.
    pub image_bytes: Option<u64>,
    /// What it means for the deadline.
    pub prospect: Prospect,
    /// Seconds between two saves that cost least on the first, if it is known how long a save takes.
    pub save_every_s: Option<u64>,
}

/// An offer that fits and was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// For people.
    pub summary: String,
    /// Compute an hour.
    pub price_per_hour: Money,
    /// What it would cost more than the chosen one, to the end.
    pub extra_cost: Money,
    /// Seconds until it would be done.
    pub finish_in_s: u64,
}

/// What a plan is made for, besides the spec.
pub struct Asks<'a> {
    /// Uid of the job.
    pub job: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// How far it is.
    pub progress: Progress,
    /// It may rent now. One that still waits for the cluster plans, and keeps nothing from others.
    pub due: bool,
    /// When it must be complete, and how long it may wait.
    pub times: Times,
    /// The machine that it runs on, and what was rented.
    pub held: Option<Held>,
}

/// The machine that a job runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The offer that was rented.
    pub offer: Offer,
    /// Seconds since.
    pub age_s: u64,
    /// Its program runs.
    pub ready: bool,
    /// How long its program runs there, how long a move has paid, and what a move would repeat.
    pub running: planner::Running,
    /// When a gain is worth a move.
    pub rules: planner::MoveRules,
}

/// Plans with what the market knows now, and speaks for what it chooses. `grants`: what the job's namespace may do on each account.
pub fn choose(ctx: &Context, valid: &Valid, asks: &Asks<'_>, grants: &BTreeMap<String, Grant>) -> Choice {
    if ctx.mailbox.is_none() || ctx.agent.is_none() {
        let message = "the operator has no mailbox bucket (--mailbox), so nothing can be rented".to_owned();
        return Choice::None { reason: Reason::NoMailbox, message };
    }
    if !ctx.market.may_plan() {
        return Choice::Wait { message: "reads what is known of hosts from the mailbox".to_owned() };
    }
    let providers = ctx.caches.providers.all();
    let allowed: Vec<String> = providers
        .iter()
        .filter_map(|p| p.metadata.name.clone())
        .filter(|n| valid.needs.providers.is_empty() || valid.needs.providers.contains(n))
        .collect();
    if allowed.is_empty() {
        let message = if providers.is_empty() {
            "there is no Provider: create one to rent machines".to_owned()
        } else {
            format!("none of placement.providers ({}) exists", valid.needs.providers.join(", "))
        };
        return Choice::None { reason: Reason::NoProvider, message };
    }
    let (allowed, refused): (Vec<String>, Vec<String>) =
        allowed.into_iter().partition(|name| grants.get(name).is_some_and(|grant| *grant != Grant::Refused));
    if allowed.is_empty() {
        let message = refused.iter().map(|name| access::refusal(name, asks.namespace)).collect::<Vec<_>>().join("; ");
        return Choice::None { reason: Reason::NoAccess, message };
    }
    let _turn = ctx.market.plan();
    let now = ctx.clock.monotonic();
    if asks.held.is_none() {
        // It chooses anew.
        ctx.market.claimed(asks.job);
    }
    let listed = Listed::read(ctx, asks.namespace, (&providers, &allowed), now);
    let room = Room::besides(ctx, asks.job, asks.held.is_some());
    let trusted = listed.offers.iter().flat_map(|(name, offers)| {
        let grant = &grants[*name];
        offers.iter().filter(move |offer| grant.trusts(offer.trust))
    });
    let (taken, offers): (Vec<&Offer>, Vec<&Offer>) = trusted.partition(|offer| room.is_taken(offer));
    let incomplete = asks.times.matter() && ctx.market.wanted_since(now).is_some_and(|since| since < ALL_ANSWER);
    match listed.none(incomplete, offers.is_empty(), taken.is_empty()) {
        // The machine that it has is judged without a market too.
        Some(Choice::None { .. }) if asks.held.is_some() => {}
        Some(none) => return none,
        None => {}
    }
    let planning = Planning { ctx, valid, asks, grants, allowed: &allowed, room: &room };
    match planning.plan(&offers) {
        Choice::Rent(rent) => {
            planning.speak_for(&rent, now);
            Choice::Rent(rent)
        }
        Choice::None { reason: reason @ Reason::NoOffer, message } => {
            let others = (!taken.is_empty()).then(|| planning.plan(&taken));
            let fits = |choice: &Choice| {
                !matches!(choice, Choice::None { reason: Reason::NoOffer | Reason::BudgetExhausted, .. })
            };
            if others.as_ref().is_some_and(fits) {
                let message =
                    "every offer that fits is being rented by another job; the market is looked at again as it changes";
                return Choice::None { reason, message: message.to_owned() };
            }
            // Who reads that nothing fits must know that more may be there, and who keeps it from the job.
            let floors = listed.offers.iter().filter_map(|(name, _)| match &grants[*name] {
                Grant::Given { min_trust: Some(least), .. } => Some(access::floor(name, asks.namespace, *least)),
                _ => None,
            });
            let kept = refused.iter().map(|name| access::refusal(name, asks.namespace)).chain(floors);
            Choice::None { reason, message: std::iter::once(message).chain(kept).collect::<Vec<_>>().join("; ") }
        }
        choice => choice,
    }
}

/// The markets of the accounts that a job may use.
#[derive(Default)]
struct Listed<'a> {
    /// Fresh lists, by account.
    offers: Vec<(&'a str, Arc<Vec<Offer>>)>,
    /// Accounts whose list is on its way.
    missing: Vec<&'a str>,
    /// Why others cannot be used.
    troubles: Vec<String>,
    /// Which limits are used up.
    used_up: Vec<String>,
}

impl<'a> Listed<'a> {
    fn read(
        ctx: &Context,
        namespace: &str,
        (providers, allowed): (&[Arc<Provider>], &'a [String]),
        now: Duration,
    ) -> Self {
        let mut listed = Self::default();
        for name in allowed {
            let Some(account) = ctx.accounts.get(name) else {
                listed.missing.push(name);
                continue;
            };
            if let Some(trouble) = account.trouble() {
                listed.troubles.push(format!("{name}: {trouble}"));
                continue;
            }
            let provider = providers.iter().find(|p| p.metadata.name.as_ref() == Some(name));
            let generation = provider.and_then(|p| p.metadata.generation);
            if let Some(full) = ctx.market.used_up(name, namespace, generation, now) {
                listed.used_up.push(full);
                continue;
            }
            match ctx.market.snapshot(name) {
                Some(s) if now.saturating_sub(s.at) <= ctx.settings.offers_max_age => {
                    listed.offers.push((name.as_str(), s.offers));
                }
                _ => listed.missing.push(name),
            }
        }
        listed
    }

    /// Why there is nothing to plan with. `incomplete`: what is missing may still come, and matters.
    fn none(&self, incomplete: bool, no_offers: bool, none_taken: bool) -> Option<Choice> {
        if (no_offers || incomplete) && !self.missing.is_empty() {
            let mut message = format!("waits for fresh offers of {}", self.missing.join(", "));
            if !self.troubles.is_empty() {
                message = format!("{message} ({})", self.troubles.join("; "));
            }
            return Some(Choice::Wait { message });
        }
        if no_offers && !self.troubles.is_empty() {
            let message = format!("no Provider can be used now: {}", self.troubles.join("; "));
            return Some(Choice::None { reason: Reason::NoProvider, message });
        }
        if no_offers && none_taken && !self.used_up.is_empty() {
            let full = self.used_up.join("; ");
            let message = format!("nothing is rented now: {full}; it is looked at again every minute");
            return Some(Choice::None { reason: Reason::LimitReached, message });
        }
        None
    }
}

/// What an account may be used for, an hour at most.
#[derive(Debug, Clone)]
struct Limit {
    /// In all, by everybody.
    all: Money,
    /// By one machine of the job's namespace, and the name of the limit that says so. What others of its share use, the ledger knows.
    one: (Money, String),
}

/// By Provider.
type Limits = BTreeMap<String, Limit>;

/// One job's plan under way.
struct Planning<'a> {
    ctx: &'a Context,
    valid: &'a Valid,
    asks: &'a Asks<'a>,
    grants: &'a BTreeMap<String, Grant>,
    /// Names of the accounts that it may use.
    allowed: &'a [String],
    room: &'a Room,
}

/// Offers that fit.
struct Found<'a> {
    /// Those for which the limits leave room, best first.
    ranked: Vec<Candidate>,
    /// The others, with what they may cost an hour.
    full: Vec<(&'a Offer, Money)>,
}

impl Planning<'_> {
    fn plan(&self, offers: &[&Offer]) -> Choice {
        let now = self.ctx.clock.monotonic();
        let asked = Question::new(self.valid, &self.asks.progress, self.ctx.market.knowledge(now));
        let limits = self.limits();
        if self.asks.held.is_some() && self.valid.checkpoint.is_none() {
            // It goes nowhere without losing all work, but whether it is in time can be told.
            return self.timed(Vec::new(), &asked, offers, &limits);
        }
        if let Some(known) = self.ctx.market.without_suspects(now, &asked.known) {
            let careful = asked.knowing(known);
            let found = self.find(&careful, offers, &limits);
            if !found.ranked.is_empty() {
                return self.timed(found.ranked, &careful, offers, &limits);
            }
        }
        // A host under suspicion is better than none.
        let found = self.find(&asked, offers, &limits);
        if !found.ranked.is_empty() || self.asks.held.is_some() {
            return self.timed(found.ranked, &asked, offers, &limits);
        }
        if !found.full.is_empty() {
            return no_room(&found.full, &limits);
        }
        into_choice(&asked.needs, &asked.reasons(offers), &self.start())
    }

    fn find<'a>(&self, asked: &Question, offers: &[&'a Offer], limits: &Limits) -> Found<'a> {
        let mut sieve = Sieve::new(&self.asks.times);
        let mut full = Vec::new();
        let ranked = asked.ranked(offers, |fitting| {
            let (offer, hourly) = (fitting.offer, fitting.hourly);
            let has_room = limits
                .get(&offer.provider)
                .is_none_or(|limit| self.room.has(&offer.provider, limit.all, hourly) && hourly <= limit.one.0);
            if !has_room {
                full.push((offer, hourly));
            }
            has_room && sieve.wants(fitting)
        });
        Found { ranked, full }
    }

    fn start(&self) -> StartTime {
        let progress = &self.asks.progress;
        StartTime {
            least: self.ctx.settings.start_deadline,
            image_bytes: progress.image_bytes,
            save_s: progress.save_s,
        }
    }

    /// These, best first, with the reasons of the others where somebody will read them.
    fn order(&self, ranked: Vec<Candidate>, asked: &Question, offers: &[&Offer]) -> Choice {
        // One that is cheaper than the cluster is ordered before it is due.
        let told = self.asks.held.is_none() && (self.asks.due || self.valid.cluster_price.is_some());
        let plan = if told { asked.reasons(offers) } else { Plan::default() };
        into_choice(&asked.needs, &Plan { ranked, ..plan }, &self.start())
    }

    /// Keeps the first offer from others until it is claimed; by a job that moves, until its machine has ended.
    fn speak_for(&self, rent: &Rent, now: Duration) {
        let asks = self.asks;
        let Some(first) = rent.offers.first().filter(|_| asks.due || asks.held.is_some()) else { return };
        let provider = rent.provider.clone();
        let (until, per_hour) = if asks.held.is_some() {
            // What its own machine takes until then is promised already.
            let more = first.reserve_per_hour - self.room.freed(&provider);
            let ends_in = Duration::from_secs(asks.times.stop_s).min(LONGEST_WORD);
            (now + ends_in + SPOKEN_FOR, more.max(Money::ZERO))
        } else {
            (now + SPOKEN_FOR, first.reserve_per_hour)
        };
        self.ctx.market.speak_for(asks.job, Spoken { provider, offer: first.id.clone(), per_hour }, until);
    }

    /// Offers of spot pools that are not there now, but that the job could have: what it may wait for.
    fn absent(&self, limits: &Limits) -> Vec<Offer> {
        let mut absent = self.ctx.market.absent(self.allowed);
        absent.retain(|offer| {
            let trusted = self.grants.get(&offer.provider).is_some_and(|grant| grant.trusts(offer.trust));
            trusted && limits.get(&offer.provider).is_none_or(|limit| offer.price_per_hour <= limit.one.0)
        });
        absent
    }

    /// The best of what fits, or a wait for something better.
    fn timed(&self, ranked: Vec<Candidate>, asked: &Question, offers: &[&Offer], limits: &Limits) -> Choice {
        let (times, held) = (&self.asks.times, &self.asks.held);
        let left_s = times.deadline.map(|deadline| times.left(deadline));
        if held.is_none() && !times.matter() {
            return self.order(ranked, asked, offers);
        }
        let staying = held.as_ref().map(|held| Holding {
            candidate: planner::staying(&asked.needs, &asked.work, &asked.known, &held.offer),
            age_s: held.age_s,
            ready: held.ready,
        });
        let absent = self.absent(limits);
        // That they were refused or lost a moment ago says only that they are not there now.
        let patient = asked.knowing(Knowledge { refused: BTreeMap::new(), ..asked.known.clone() });
        let mut sieve = Sieve::cheapest();
        let absent = patient.ranked(&absent.iter().collect::<Vec<_>>(), |fitting| sieve.wants(fitting));
        let records = |ids: &[PoolId]| self.ctx.market.records(ids);
        let (verdict, prospect) = timing::decide(times, &asked.work, (&ranked, &absent), records, staying.as_ref());
        if held.is_none() && !self.asks.due {
            // It may start in the cluster yet. That nothing can be in time is told at once.
            let prospect = match prospect {
                Prospect::OnTime => Prospect::AtRisk(
                    "room in the cluster is waited for; a machine that is rented can be in time".to_owned(),
                ),
                other => other,
            };
            return told(self.order(ranked, asked, offers), None, prospect, left_s);
        }
        if let (Some(staying), Some(held)) = (&staying, held) {
            return match leaves((staying, held), ranked, verdict, &prospect) {
                Leaves::For { ranked, because } => told(self.order(ranked, asked, offers), because, prospect, left_s),
                Leaves::Not { gains } => Choice::Keep { prospect, gains },
            };
        }
        match verdict {
            Verdict::Go { ranked, because, .. } => told(self.order(ranked, asked, offers), because, prospect, left_s),
            Verdict::Wait { message, again_in } => {
                let now = ranked.iter().map(|c| c.offer.price_per_hour).min().unwrap_or_default();
                Choice::Later { message, again_in, prospect, now }
            }
            Verdict::Stay => Choice::Keep { prospect, gains: false },
        }
    }

    /// By Provider; what may cost more an hour than its own limit could never be rented, however long it is waited for.
    fn limits(&self) -> Limits {
        let limit = |provider: &Arc<Provider>| {
            let name = provider.metadata.name.clone()?;
            let own = (provider.spec.limits.per_hour, "limits.perHour".to_owned());
            let share = match self.grants.get(&name) {
                Some(Grant::Given { per_hour: Some(share), .. }) if share.0 < own.0 => Some(share.clone()),
                _ => None,
            };
            Some((name, Limit { all: own.0, one: share.unwrap_or(own) }))
        };
        self.ctx.caches.providers.all().iter().filter_map(limit).collect()
    }
}

/// A choice with what else is to be told of it.
fn told(mut choice: Choice, because: Option<String>, prospect: Prospect, left_s: Option<u64>) -> Choice {
    if let Choice::Rent(rent) = &mut choice {
        if let (Prospect::OnTime, Some(left_s)) = (&prospect, left_s) {
            // Begun on a machine that would be late, it ends on another one.
            rent.finish_in_s = rent.finish_in_s.min(left_s);
        }
        rent.prospect = prospect;
        if let Some(because) = because {
            rent.why = format!("{}; {because}", rent.why);
        }
    }
    choice
}

/// Whether a job leaves the machine that it has.
enum Leaves {
    /// For one of these, best first.
    For { ranked: Vec<Candidate>, because: Option<String> },
    /// It stays. `gains`: leaving pays, but has not done so for long enough.
    Not { gains: bool },
}

/// Whether a job leaves the machine on which its program runs: for its deadline at once, for less money only if it pays for the restart by a
/// margin, and has done so for a while.
fn leaves((staying, held): (&Holding, &Held), ranked: Vec<Candidate>, verdict: Verdict, prospect: &Prospect) -> Leaves {
    let (ranked, because, must) = match verdict {
        Verdict::Go { ranked, because, must } => (ranked, because, must),
        Verdict::Stay if *prospect == Prospect::Unknown => (ranked, None, false),
        // With a deadline it is decided with the time that is left.
        Verdict::Stay | Verdict::Wait { .. } => return Leaves::Not { gains: false },
    };
    let Some(best) = ranked.first() else { return Leaves::Not { gains: false } };
    let because = match planner::verdict(&staying.candidate, best, &held.running, &held.rules) {
        _ if must => because,
        planner::Verdict::Stay => return Leaves::Not { gains: false },
        planner::Verdict::Watch { .. } => return Leaves::Not { gains: true },
        planner::Verdict::Move { gain } => {
            let gain = planner::explain::about(gain);
            Some(format!("about ${gain} less to the end than where it runs, the restart paid"))
        }
    };
    Leaves::For { ranked, because }
}

/// Offers fit, and the limits of their accounts leave no room for them. `full`: with what they may cost an hour, the best first.
fn no_room(full: &[(&Offer, Money)], limits: &Limits) -> Choice {
    let one = |offer: &Offer| limits.get(&offer.provider).map(|limit| limit.one.clone()).unwrap_or_default();
    // Says nothing of what is committed: that changes all the time, and the job would have to be written each time.
    let used_up: BTreeMap<&str, Money> = full
        .iter()
        .filter(|(offer, hourly)| *hourly <= one(offer).0)
        .filter_map(|(offer, _)| Some((offer.provider.as_str(), limits.get(&offer.provider)?.all)))
        .collect();
    let message = if let (true, Some((best, hourly))) = (used_up.is_empty(), full.first()) {
        let (most, name) = one(best);
        format!(
            "every offer that fits may cost more an hour than {name} of its Provider: the best one ${hourly}, with ${most} for {}",
            best.provider
        )
    } else {
        let each: Vec<String> = used_up.iter().map(|(provider, limit)| format!("{provider} ${limit}")).collect();
        format!(
            "limits.perHour ({}) leaves no room for another machine now; one is rented as soon as enough of the others have ended",
            each.join(", ")
        )
    };
    Choice::None { reason: Reason::LimitReached, message }
}
