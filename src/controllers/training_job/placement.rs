//! Which offers a job may be rented on, and the RentedMachine that says so.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tradewind_api::rented_machine::{ChosenOffer, Claim, JobRef, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_core::{Money, Offer};
use tradewind_planner::{self as planner, Candidate, Plan, RejectReason};

use super::room::Room;
use super::valid::Valid;
use crate::context::Context;
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
}

/// How far a job has come, as far as it matters to where it goes on.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Share of the work that is safe, in millionths.
    pub done_ppm: u64,
    /// What it has cost so far.
    pub spent: Money,
    /// What is restored before it goes on, in MB.
    pub restore_mb: u64,
}

/// Plans for the job with this uid, with what the market knows now, and speaks for what it chooses.
pub fn choose(ctx: &Context, job: &str, valid: &Valid, progress: Progress) -> Choice {
    if ctx.mailbox.is_none() || ctx.agent.is_none() {
        let message = "the operator has no mailbox bucket (--mailbox), so nothing can be rented".to_owned();
        return Choice::None { reason: Reason::NoMailbox, message };
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
    let _turn = ctx.market.plan();
    let room = Room::besides(ctx, job);
    let now = ctx.clock.monotonic();
    let mut offers: Vec<Offer> = Vec::new();
    let mut taken: Vec<Offer> = Vec::new();
    let mut missing = Vec::new();
    let mut troubles = Vec::new();
    for name in &allowed {
        let Some(account) = ctx.accounts.get(name) else {
            missing.push(name.clone());
            continue;
        };
        if let Some(trouble) = account.trouble() {
            troubles.push(format!("{name}: {trouble}"));
            continue;
        }
        match ctx.market.snapshot(name) {
            Some(s) if now.saturating_sub(s.at) <= ctx.settings.offers_max_age => {
                for offer in s.offers.iter() {
                    if room.is_taken(offer) { &mut taken } else { &mut offers }.push(offer.clone());
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
    let choice = plan(ctx, valid, progress, offers, &room);
    match &choice {
        Choice::Rent(rent) => {
            if let Some(first) = rent.offers.first() {
                let spoken = Spoken {
                    provider: rent.provider.clone(),
                    offer: first.id.clone(),
                    per_hour: first.reserve_per_hour,
                };
                ctx.market.speak_for(job, spoken, now);
            }
            choice
        }
        Choice::None { reason: Reason::NoOffer, .. } if !taken.is_empty() => {
            let others = plan(ctx, valid, progress, taken, &room);
            if matches!(others, Choice::None { reason: Reason::NoOffer | Reason::BudgetExhausted, .. }) {
                return choice;
            }
            let message =
                "every offer that fits is being rented by another job; the market is looked at again as it changes";
            Choice::None { reason: Reason::NoOffer, message: message.to_owned() }
        }
        _ => choice,
    }
}

fn plan(ctx: &Context, valid: &Valid, progress: Progress, mut offers: Vec<Offer>, room: &Room) -> Choice {
    let mut needs = valid.needs.clone();
    needs.budget_left = valid.budget_total.map(|total| total - progress.spent);
    let left = valid.work.seconds.saturating_mul(1_000_000_u64.saturating_sub(progress.done_ppm)) / 1_000_000;
    let work = planner::WorkLeft { seconds: left.max(1), on: valid.work.on.clone() };
    let mut known = ctx.market.knowledge(ctx.clock.monotonic());
    known.restore_mb = progress.restore_mb;
    known.checkpoint_interval_s =
        valid.checkpoint.as_ref().map(|c| u64::try_from(c.interval_s).unwrap_or(u64::MAX).max(1));
    let limits: BTreeMap<String, Money> = ctx
        .caches
        .providers
        .all()
        .iter()
        .filter_map(|p| Some((p.metadata.name.clone()?, p.spec.limits.per_hour)))
        .collect();
    let limit = |provider: &str| limits.get(provider).copied();
    let fits = |c: &Candidate| limit(&c.offer.provider).is_none_or(|l| room.has(&c.offer.provider, l, c.hourly));
    let mut full: Vec<Candidate> = Vec::new();
    loop {
        let plan = planner::plan(&needs, &work, &known, &offers, RANKED);
        debug_assert_eq!(
            planner::check(&needs, &plan, &offers),
            Vec::new(),
            "the planner's own checker finds its plan clean"
        );
        let ranked: Vec<Candidate> = plan.ranked.iter().filter(|c| fits(c)).cloned().collect();
        if ranked.is_empty() && !plan.ranked.is_empty() {
            // The best are all of accounts without room; there may be others behind them.
            offers.retain(|offer| !plan.ranked.iter().any(|c| c.offer.provider == offer.provider));
            full.extend(plan.ranked);
            continue;
        }
        if ranked.is_empty() && !full.is_empty() {
            return no_room(&full, &limits);
        }
        return into_choice(&needs, &Plan { ranked, ..plan });
    }
}

/// Offers fit, and the limits of their accounts leave no room for them.
fn no_room(full: &[Candidate], limits: &BTreeMap<String, Money>) -> Choice {
    let limit = |c: &Candidate| limits.get(&c.offer.provider).copied().unwrap_or_default();
    // Says nothing of what is committed: that changes all the time, and the job would have to be written each time.
    let used_up: BTreeMap<&str, Money> =
        full.iter().filter(|c| c.hourly <= limit(c)).map(|c| (c.offer.provider.as_str(), limit(c))).collect();
    let message = if let (true, Some(best)) = (used_up.is_empty(), full.first()) {
        // What may cost more an hour than the account's limit could never be rented, however long it is waited for.
        format!(
            "every offer that fits may cost more an hour than limits.perHour of its Provider: the best one ${}, with ${} for {}",
            best.hourly,
            limit(best),
            best.offer.provider
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

fn into_choice(needs: &planner::Requirements, plan: &Plan) -> Choice {
    let Some(first) = plan.ranked.first() else {
        let only_budget = !plan.rejected.is_empty() && plan.rejected.iter().all(|r| r.reason == RejectReason::Budget);
        let broke = needs.budget_left.is_some_and(|left| left <= Money::ZERO);
        let reason = if only_budget || broke { Reason::BudgetExhausted } else { Reason::NoOffer };
        let message = plan.why_none().unwrap_or_else(|| "No offer fits".to_owned());
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
    }))
}

/// The RentedMachine of a job's attempt, number `n` of that attempt, claiming the Pod.
pub fn machine(
    ctx: &Context,
    job: &TrainingJob,
    valid: &Valid,
    rent: &Rent,
    attempt: i64,
    claim: Claim,
) -> Option<RentedMachine> {
    let workload = valid.rental.as_ref().ok()?.clone();
    let meta = &job.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(10).collect();
    let labels = BTreeMap::from([
        (names::JOB_UID.to_owned(), uid.clone()),
        (names::JOB_NAME.to_owned(), meta.name.clone().unwrap_or_default()),
        (names::ATTEMPT.to_owned(), attempt.to_string()),
    ]);
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
            start_deadline_s: start_deadline(ctx, &rent.first),
            workload,
            checkpoint: valid.checkpoint.clone(),
            budget_per_hour: budget.and_then(|b| b.per_hour),
            stall_timeout_s: i64::try_from(valid.stall_timeout.as_secs()).unwrap_or(i64::MAX),
            stop: None,
        },
        status: None,
    })
}

/// Time from the rent call to the agent's first report: the setting, plus twice the pull of an image of assumed size.
fn start_deadline(ctx: &Context, offer: &Offer) -> i64 {
    let mbps = if offer.download_mbps == 0 { planner::DEFAULT_DOWNLOAD_MBPS } else { offer.download_mbps };
    let pull = planner::DEFAULT_IMAGE_MB * 8 * 2 / mbps.max(1);
    i64::try_from(ctx.settings.start_deadline.as_secs() + pull).unwrap_or(i64::MAX)
}
