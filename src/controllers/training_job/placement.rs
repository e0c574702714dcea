//! Which offers a job may be rented on, and the RentedMachine that says so.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tradewind_api::rented_machine::{ChosenOffer, Claim, JobRef, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_core::{Money, Offer};
use tradewind_planner::{self as planner, Candidate, Plan, RejectReason};

use super::room::Room;
use super::valid::Valid;
use crate::accounts::access::{self, Grant};
use crate::context::Context;
use crate::images::ASSUMED_BYTES;
use crate::market::Spoken;

/// Offers handed to one RentedMachine: if all are refused the job plans again.
const OFFERS_PER_MACHINE: usize = 6;
/// Candidates looked at: many more than that, since those of accounts without room fall out.
const RANKED: usize = 64;

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
    /// The others, at most ten lines.
    pub rejected: Vec<String>,
    /// The first offer.
    pub first: Offer,
    /// Compressed size of the image, if it is known.
    pub image_bytes: Option<u64>,
}

/// What a plan is made for, besides the spec.
pub struct Asks<'a> {
    /// Uid of the job.
    pub job: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Share of the work that is safe, in millionths.
    pub done_share_ppm: u64,
    /// What the job has cost so far.
    pub spent: Money,
    /// What is to be restored, in MB.
    pub restore_mb: u64,
    /// Compressed size of the image, if it is known.
    pub image_bytes: Option<u64>,
    /// It may rent now. One that still waits for the cluster plans, and keeps nothing from others.
    pub due: bool,
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
    let room = Room::besides(ctx, asks.job);
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
    if offers.is_empty() && !missing.is_empty() {
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
    let planning = Planning { ctx, valid, asks, grants, room: &room };
    match planning.plan(offers) {
        Choice::Rent(rent) => {
            if let Some(first) = rent.offers.first().filter(|_| asks.due) {
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
        known.image_mb = asks.image_bytes.map(|bytes| bytes.div_ceil(1_000_000));
        known.checkpoint_interval_s =
            valid.checkpoint.as_ref().map(|c| u64::try_from(c.interval_s).unwrap_or(u64::MAX).max(1));
        let careful = ctx.market.without_suspects(now, &known);
        let limits = self.limits();
        let start = StartTime { least: ctx.settings.start_deadline, image_bytes: asks.image_bytes };
        let has_room = |provider: &str, hourly: Money| {
            limits.get(provider).is_none_or(|l| self.room.has(provider, l.all, hourly) && hourly <= l.one.0)
        };
        let plan = |offers: &[Offer]| {
            // A host under suspicion is better than none.
            let careful = careful.as_ref().map(|careful| planner::plan(&needs, &work, careful, offers, RANKED));
            let plan = careful
                .filter(|plan| !plan.ranked.is_empty())
                .unwrap_or_else(|| planner::plan(&needs, &work, &known, offers, RANKED));
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
                return into_choice(&needs, &Plan { ranked, ..found }, &start);
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

fn into_choice(needs: &planner::Requirements, plan: &Plan, start: &StartTime) -> Choice {
    let Some(first) = plan.ranked.first() else {
        let only_budget = !plan.rejected.is_empty() && plan.rejected.iter().all(|r| r.reason == RejectReason::Budget);
        let broke = needs.budget_left.is_some_and(|left| left <= Money::ZERO);
        let reason = if only_budget || broke { Reason::BudgetExhausted } else { Reason::NoOffer };
        let message = plan.why_none().unwrap_or_else(|| "no offer fits".to_owned());
        let message = if reason == Reason::NoOffer {
            format!("{message}; the market is looked at again as it changes")
        } else {
            message
        };
        return Choice::None { reason, message };
    };
    let provider = first.offer.provider.clone();
    let offers: Vec<ChosenOffer> = plan
        .ranked
        .iter()
        .filter(|c| c.offer.provider == provider)
        .take(OFFERS_PER_MACHINE)
        .map(|c| ChosenOffer {
            id: c.offer.id.clone(),
            offer: serde_json::to_value(&c.offer).expect("an offer is plain data"),
            price_cap: c.price_cap_per_hour,
            reserve_per_hour: c.hourly,
            start_deadline_s: Some(start.deadline_s(&c.offer)),
        })
        .collect();
    let others = plan.ranked.iter().skip(1).take(4).map(Candidate::sentence);
    let refused =
        plan.rejected.iter().map(|r| format!("{} {} {}", r.count, if r.count == 1 { "is" } else { "are" }, r.says));
    Choice::Rent(Box::new(Rent {
        provider,
        offers,
        why: plan.why_first().unwrap_or_default(),
        rejected: others.chain(refused).take(10).collect(),
        first: first.offer.clone(),
        image_bytes: start.image_bytes,
    }))
}

/// The RentedMachine of a job's attempt, number `n` of that attempt, claiming the Pod.
pub fn machine(job: &TrainingJob, valid: &Valid, rent: &Rent, attempt: i64, claim: Claim) -> Option<RentedMachine> {
    let mut workload = valid.rental.as_ref().ok()?.clone();
    workload.memory_mib = i64::try_from(valid.needs.memory_mib).unwrap_or(i64::MAX);
    workload.gpus = i64::from(valid.needs.gpu_count);
    let meta = &job.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(10).collect();
    let labels = BTreeMap::from([
        (names::JOB_UID.to_owned(), uid.clone()),
        (names::JOB_NAME.to_owned(), meta.name.clone().unwrap_or_default()),
        (names::ATTEMPT.to_owned(), attempt.to_string()),
    ]);
    let deadlines = rent.offers.iter().filter_map(|offer| offer.start_deadline_s);
    let status = job.status.as_ref();
    let budget = job.spec.budget.as_ref();
    Some(RentedMachine {
        metadata: ObjectMeta {
            // One name per attempt: the API server lets only one of several creators have it, whatever their caches say.
            name: Some(format!("{}-{short}-{attempt}", meta.name.as_deref().unwrap_or_default())),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: RentedMachineSpec {
            provider: rent.provider.clone(),
            job: JobRef {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                uid,
            },
            claim,
            run_id: status.and_then(|s| s.run_id.clone()).unwrap_or_default(),
            attempt,
            offers: rent.offers.clone(),
            start_deadline_s: deadlines.max().unwrap_or(0),
            image_bytes: rent.image_bytes.and_then(|bytes| i64::try_from(bytes).ok()),
            workload,
            checkpoint: valid.checkpoint.clone(),
            budget_per_hour: budget.and_then(|b| b.per_hour),
            stall_timeout_s: seconds(valid.stall_timeout),
            stop: None,
        },
        status: None,
    })
}

/// Whole seconds of a span.
pub fn seconds(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

/// The longest time that a host is waited for, whatever it has to download: what takes longer costs more than another host.
const LONGEST_START: Duration = Duration::from_hours(1);
/// Hosts share their line and unpack what they have downloaded, so the download takes up to twice its calculated time.
const PULL_FACTOR: u64 = 2;

/// What decides how long a machine has from the rent call to its agent's first report.
struct StartTime {
    least: Duration,
    image_bytes: Option<u64>,
}

impl StartTime {
    /// Seconds for a machine of this offer.
    fn deadline_s(&self, offer: &Offer) -> i64 {
        let mbps = if offer.download_mbps == 0 { planner::DEFAULT_DOWNLOAD_MBPS } else { offer.download_mbps };
        let bits = u128::from(self.image_bytes.unwrap_or(ASSUMED_BYTES)) * 8 * u128::from(PULL_FACTOR);
        let pull = u64::try_from(bits.div_ceil(u128::from(mbps) * 1_000_000)).unwrap_or(u64::MAX);
        let least = self.least.as_secs();
        let deadline = least.saturating_add(pull).min(LONGEST_START.as_secs().max(least));
        i64::try_from(deadline).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_machine;

    fn offer(download_mbps: u64) -> Offer {
        Offer { download_mbps, ..test_machine::offer("o") }
    }

    #[test]
    fn the_start_deadline_follows_image_and_bandwidth() {
        const GB: u64 = 1_000_000_000;
        for (image_bytes, mbps, least, expected, why) in [
            (Some(GB), 1000, 900, 916, "8 s, twice, on top of the setting"),
            (Some(20 * GB), 1000, 900, 1220, "an image twenty times as large"),
            (Some(20 * GB), 200, 900, 2500, "a fifth of the bandwidth"),
            (Some(20 * GB), 10, 900, 3600, "never more than an hour"),
            (Some(20 * GB), 10, 7200, 7200, "unless the setting says more"),
            (Some(0), 10, 900, 900, "never less than the setting"),
            (None, 1000, 900, 1060, "10 GB are assumed"),
            (Some(GB), 0, 900, 980, "200 Mbit/s are assumed"),
            (Some(u64::MAX), 1, u64::MAX / 2, i64::MAX, "absurd figures"),
        ] {
            let start = StartTime { least: Duration::from_secs(least), image_bytes };
            assert_eq!(start.deadline_s(&offer(mbps)), expected, "{why}");
        }
    }
}
