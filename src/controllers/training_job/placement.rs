//! Which offers a job may be rented on, now or later.

use std::collections::BTreeMap;
use std::time::Duration;

use tradewind_api::Reason;
use tradewind_api::rented_machine::ChosenOffer;
use tradewind_core::{GpuModel, Money, Offer};
use tradewind_planner::{self as planner, Candidate, CostBreakdown, Plan};

use super::order::{StartTime, into_choice};
use super::room::Room;
use super::timing::{self, Holding, Prospect, RANKED, Times, Verdict};
use super::valid::Valid;
use crate::accounts::access::{self, Grant};
use crate::context::Context;
use crate::market::Spoken;
use crate::market::pools::PoolId;

/// So long all accounts are waited for by a job that decides for its deadline or its price: a slow one may have the better offer.
const ALL_ANSWER: Duration = Duration::from_secs(10);
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
    /// Share of the work that is done, in millionths: saved, or on the machine that it holds.
    pub done_share_ppm: u64,
    /// Steps that are left, if the program tells how many there are.
    pub steps_left: Option<u64>,
    /// How fast it was, by model: steps in a million seconds.
    pub step_rates: BTreeMap<GpuModel, u64>,
    /// Seconds that a save took, if one was made.
    pub save_s: Option<u64>,
    /// What the job has cost so far.
    pub spent: Money,
    /// What is to be restored, in MB.
    pub restore_mb: u64,
    /// Compressed size of the image, if it is known.
    pub image_bytes: Option<u64>,
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
    let room = Room::besides(ctx, asks.job, asks.held.is_some());
    let now = ctx.clock.monotonic();
    let mut offers: Vec<Offer> = Vec::new();
    let mut taken: Vec<Offer> = Vec::new();
    let mut floors = Vec::new();
    let mut missing = Vec::new();
    let mut troubles = Vec::new();
    let mut used_up = Vec::new();
    for name in &allowed {
        let Some(account) = ctx.accounts.get(name) else {
            missing.push(name.clone());
            continue;
        };
        if let Some(trouble) = account.trouble() {
            troubles.push(format!("{name}: {trouble}"));
            continue;
        }
        let generation =
            providers.iter().find(|p| p.metadata.name.as_ref() == Some(name)).and_then(|p| p.metadata.generation);
        if let Some(full) = ctx.market.used_up(name, asks.namespace, generation, now) {
            used_up.push(full);
            continue;
        }
        match ctx.market.snapshot(name) {
            Some(s) if now.saturating_sub(s.at) <= ctx.settings.offers_max_age => {
                let grant = &grants[name];
                for offer in s.offers.iter().filter(|offer| grant.trusts(offer.trust)) {
                    if room.is_taken(offer) { &mut taken } else { &mut offers }.push(offer.clone());
                }
                if let Grant::Given { min_trust: Some(least), .. } = grant {
                    floors.push(access::floor(name, asks.namespace, *least));
                }
            }
            _ => missing.push(name.clone()),
        }
    }
    let incomplete = asks.times.matter() && ctx.market.wanted_since(now).is_some_and(|since| since < ALL_ANSWER);
    if (offers.is_empty() || incomplete) && !missing.is_empty() {
        let mut message = format!("waits for fresh offers of {}", missing.join(", "));
        if !troubles.is_empty() {
            message = format!("{message} ({})", troubles.join("; "));
        }
        return Choice::Wait { message };
    }
    if offers.is_empty() && !troubles.is_empty() {
        let message = format!("no Provider can be used now: {}", troubles.join("; "));
        return Choice::None { reason: Reason::NoProvider, message };
    }
    if offers.is_empty() && taken.is_empty() && !used_up.is_empty() {
        let message = format!("nothing is rented now: {}; it is looked at again every minute", used_up.join("; "));
        return Choice::None { reason: Reason::LimitReached, message };
    }
    let planning = Planning { ctx, valid, asks, grants, allowed: &allowed, room: &room };
    match planning.plan(offers) {
        Choice::Rent(rent) => {
            if let Some(first) = rent.offers.first().filter(|_| asks.due && asks.held.is_none()) {
                let (provider, offer) = (rent.provider.clone(), first.id.clone());
                ctx.market.speak_for(asks.job, Spoken { provider, offer, per_hour: first.reserve_per_hour }, now);
            }
            Choice::Rent(rent)
        }
        Choice::None { reason: reason @ Reason::NoOffer, message } => {
            let others = (!taken.is_empty()).then(|| planning.plan(taken));
            let fits = |choice: &Choice| {
                !matches!(choice, Choice::None { reason: Reason::NoOffer | Reason::BudgetExhausted, .. })
            };
            if others.as_ref().is_some_and(fits) {
                let message =
                    "every offer that fits is being rented by another job; the market is looked at again as it changes";
                return Choice::None { reason, message: message.to_owned() };
            }
            // Who reads that nothing fits must know that more may be there, and who keeps it from the job.
            let kept = refused.iter().map(|name| access::refusal(name, asks.namespace)).chain(floors);
            Choice::None { reason, message: std::iter::once(message).chain(kept).collect::<Vec<_>>().join("; ") }
        }
        choice => choice,
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

impl Planning<'_> {
    fn plan(&self, offers: Vec<Offer>) -> Choice {
        let (ctx, valid, asks) = (self.ctx, self.valid, self.asks);
        let mut needs = valid.needs.clone();
        needs.budget_left = valid.budget_total.map(|total| total - asks.spent);
        let left = valid.work.seconds.saturating_mul(1_000_000_u64.saturating_sub(asks.done_share_ppm)) / 1_000_000;
        let work = planner::WorkLeft { seconds: left.max(1), on: valid.work.on.clone() };
        let now = ctx.clock.monotonic();
        let mut known = ctx.market.knowledge(now);
        known.restore_mb = asks.restore_mb;
        known.step_rates.clone_from(&asks.step_rates);
        known.steps_left = asks.steps_left;
        known.checkpoint_upload_s = asks.save_s.unwrap_or(known.checkpoint_upload_s);
        known.image_mb = asks.image_bytes.map(|bytes| bytes.div_ceil(1_000_000));
        known.checkpoint_interval_s =
            valid.checkpoint.as_ref().map(|c| u64::try_from(c.interval_s).unwrap_or(u64::MAX).max(1));
        let careful = ctx.market.without_suspects(now, &known);
        let limits = self.limits();
        let start =
            StartTime { least: ctx.settings.start_deadline, image_bytes: asks.image_bytes, save_s: asks.save_s };
        let has_room = |provider: &str, hourly: Money| {
            limits.get(provider).is_none_or(|l| self.room.has(provider, l.all, hourly) && hourly <= l.one.0)
        };
        let most = asks.times.candidates();
        let plan = |offers: &[Offer]| {
            // A host under suspicion is better than none.
            let careful = careful.as_ref().map(|careful| planner::plan(&needs, &work, careful, offers, most));
            let plan = careful
                .filter(|plan| !plan.ranked.is_empty())
                .unwrap_or_else(|| planner::plan(&needs, &work, &known, offers, most));
            debug_assert_eq!(
                planner::check(&needs, &plan, offers),
                Vec::new(),
                "the planner's own checker finds its plan clean"
            );
            plan
        };
        // What is dearer than the room that is left even without disk and traffic is not ranked: the best might be all of that kind.
        let (mut near, far): (Vec<Offer>, Vec<Offer>) =
            offers.into_iter().partition(|offer| has_room(&offer.provider, offer.price_per_hour));
        let mut full: Vec<Candidate> = Vec::new();
        loop {
            let found = plan(&near);
            let ranked: Vec<Candidate> =
                found.ranked.iter().filter(|c| has_room(&c.offer.provider, c.hourly)).cloned().collect();
            if !ranked.is_empty() {
                return self.timed(Plan { ranked, ..found }, (&needs, &work, known), &limits, &start);
            }
            if found.ranked.is_empty() {
                if full.is_empty() && far.is_empty() {
                    return into_choice(&needs, &found, &start);
                }
                break;
            }
            // With disk and traffic the best are all too dear; there may be others behind them.
            near.retain(|offer| !found.ranked.iter().any(|c| c.offer == *offer));
            full.extend(found.ranked);
        }
        near.extend(far);
        let anything = plan(&near);
        full.extend(anything.ranked.iter().cloned());
        if full.is_empty() { into_choice(&needs, &anything, &start) } else { no_room(&full, &limits) }
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
    fn timed(
        &self,
        plan: Plan,
        (needs, work, known): (&planner::Requirements, &planner::WorkLeft, planner::Knowledge),
        limits: &Limits,
        start: &StartTime,
    ) -> Choice {
        let (times, held) = (&self.asks.times, &self.asks.held);
        if held.is_none() && (!times.matter() || !self.asks.due) {
            return into_choice(needs, &plan, start);
        }
        let staying = held.as_ref().map(|held| Holding {
            candidate: planner::staying(needs, work, &known, &held.offer),
            age_s: held.age_s,
            ready: held.ready,
        });
        // That they were refused or lost a moment ago says only that they are not there now.
        let patient = planner::Knowledge { refused: BTreeMap::new(), ..known };
        let absent = planner::plan(needs, work, &patient, &self.absent(limits), RANKED).ranked;
        let records = |ids: &[PoolId]| self.ctx.market.records(ids);
        let (verdict, prospect) = timing::decide(times, work, (&plan.ranked, &absent), records, staying.as_ref());
        if let (Some(staying), Some(held)) = (&staying, held) {
            return leave(needs, plan, (staying, &held.running, &held.rules), (verdict, prospect), start);
        }
        match verdict {
            Verdict::Go { ranked, because, .. } => {
                told(into_choice(needs, &Plan { ranked, ..plan }, start), because, prospect)
            }
            Verdict::Wait { message, again_in } => {
                let now = plan.ranked.iter().map(|c| c.offer.price_per_hour).min().unwrap_or_default();
                Choice::Later { message, again_in, prospect, now }
            }
            Verdict::Stay => Choice::Keep { prospect, gains: false },
        }
    }

    /// By Provider; what may cost more an hour than its own limit could never be rented, however long it is waited for.
    fn limits(&self) -> Limits {
        let limit = |provider: &std::sync::Arc<tradewind_api::Provider>| {
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
fn told(mut choice: Choice, because: Option<String>, prospect: Prospect) -> Choice {
    if let Choice::Rent(rent) = &mut choice {
        rent.prospect = prospect;
        if let Some(because) = because {
            rent.why = format!("{}; {because}", rent.why);
        }
    }
    choice
}

/// Whether a job leaves the machine on which its program runs: for its deadline at once, for less money only if it pays for the restart by a
/// margin, and has done so for a while.
fn leave(
    needs: &planner::Requirements,
    plan: Plan,
    (held, running, rules): (&Holding, &planner::Running, &planner::MoveRules),
    (verdict, prospect): (Verdict, Prospect),
    start: &StartTime,
) -> Choice {
    let (ranked, because, must) = match verdict {
        Verdict::Go { ranked, because, must } => (ranked, because, must),
        Verdict::Stay if prospect == Prospect::Unknown => (plan.ranked.clone(), None, false),
        // With a deadline it is decided with the time that is left.
        Verdict::Stay | Verdict::Wait { .. } => return Choice::Keep { prospect, gains: false },
    };
    let Some(best) = ranked.first() else { return Choice::Keep { prospect, gains: false } };
    let because = match planner::verdict(&held.candidate, best, running, rules) {
        _ if must => because,
        planner::Verdict::Stay => return Choice::Keep { prospect, gains: false },
        planner::Verdict::Watch { .. } => return Choice::Keep { prospect, gains: true },
        planner::Verdict::Move { gain } => {
            let gain = planner::explain::about(gain);
            Some(format!("about ${gain} less to the end than where it runs, the restart paid"))
        }
    };
    told(into_choice(needs, &Plan { ranked, ..plan }, start), because, prospect)
}

/// Offers fit, and the limits of their accounts leave no room for them.
fn no_room(full: &[Candidate], limits: &Limits) -> Choice {
    let one = |c: &Candidate| limits.get(&c.offer.provider).map(|limit| limit.one.clone()).unwrap_or_default();
    // Says nothing of what is committed: that changes all the time, and the job would have to be written each time.
    let used_up: BTreeMap<&str, Money> = full
        .iter()
        .filter(|c| c.hourly <= one(c).0)
        .filter_map(|c| Some((c.offer.provider.as_str(), limits.get(&c.offer.provider)?.all)))
        .collect();
    let message = if let (true, Some(best)) = (used_up.is_empty(), full.first()) {
        let (most, name) = one(best);
        format!(
            "every offer that fits may cost more an hour than {name} of its Provider: the best one ${}, with ${most} for {}",
            best.hourly, best.offer.provider
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
