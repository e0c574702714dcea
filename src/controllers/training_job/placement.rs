//! Which offers a job may be rented on, and the RentedMachine that says so.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tradewind_api::rented_machine::{ChosenOffer, Claim, JobRef, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachine, TrainingJob, names};
use tradewind_core::{Money, Offer};
use tradewind_planner::{self as planner, Plan, RejectReason};

use super::valid::Valid;
use crate::accounts::access::{self, Grant};
use crate::context::Context;

/// Offers handed to one RentedMachine: if all are refused the job plans again.
const OFFERS_PER_MACHINE: usize = 6;

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

/// What a plan is made for, besides the spec.
pub struct Asks<'a> {
    /// Namespace of the job.
    pub namespace: &'a str,
    /// Share of the work that is safe, in millionths.
    pub done_share_ppm: u64,
    /// What the job has cost so far.
    pub spent: Money,
    /// What is to be restored, in MB.
    pub restore_mb: u64,
}

/// Plans with what the market knows now. `grants`: what the job's namespace may do on each account. Pure but for reading the market's memory.
pub fn choose(ctx: &Context, valid: &Valid, asks: &Asks<'_>, grants: &BTreeMap<String, Grant>) -> Choice {
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
    let (allowed, refused): (Vec<String>, Vec<String>) =
        allowed.into_iter().partition(|name| grants.get(name).is_some_and(|grant| *grant != Grant::Refused));
    if allowed.is_empty() {
        let message = refused.iter().map(|name| access::refusal(name, asks.namespace)).collect::<Vec<_>>().join("; ");
        return Choice::None { reason: Reason::NoAccess, message };
    }
    let now = ctx.clock.monotonic();
    let mut offers: Vec<Offer> = Vec::new();
    let mut floors = Vec::new();
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
                let grant = &grants[name];
                offers.extend(s.offers.iter().filter(|offer| grant.trusts(offer.trust)).cloned());
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
    match plan(ctx, valid, asks, grants, &offers) {
        // Who reads that nothing fits must know that more may be there, and who keeps it from the job.
        Choice::None { reason: reason @ Reason::NoOffer, message } => {
            let kept = refused.iter().map(|name| access::refusal(name, asks.namespace)).chain(floors);
            Choice::None { reason, message: std::iter::once(message).chain(kept).collect::<Vec<_>>().join("; ") }
        }
        choice => choice,
    }
}

fn plan(ctx: &Context, valid: &Valid, asks: &Asks<'_>, grants: &BTreeMap<String, Grant>, offers: &[Offer]) -> Choice {
    let mut needs = valid.needs.clone();
    needs.budget_left = valid.budget_total.map(|total| total - asks.spent);
    let left = valid.work.seconds.saturating_mul(1_000_000_u64.saturating_sub(asks.done_share_ppm)) / 1_000_000;
    let work = planner::WorkLeft { seconds: left.max(1), on: valid.work.on.clone() };
    let mut known = ctx.market.knowledge(ctx.clock.monotonic());
    known.restore_mb = asks.restore_mb;
    known.checkpoint_interval_s =
        valid.checkpoint.as_ref().map(|c| u64::try_from(c.interval_s).unwrap_or(u64::MAX).max(1));
    let plan = planner::plan(&needs, &work, &known, offers, 64);
    debug_assert_eq!(
        planner::check(&needs, &plan, offers),
        Vec::new(),
        "the planner's own checker finds its plan clean"
    );
    // What may cost more an hour than the account's limit could never be rented, however long it is waited for.
    let limits: BTreeMap<String, (Money, String)> = ctx
        .caches
        .providers
        .all()
        .iter()
        .filter_map(|p| {
            let name = p.metadata.name.clone()?;
            let own = (p.spec.limits.per_hour, "limits.perHour".to_owned());
            let share = match grants.get(&name) {
                Some(Grant::Given { per_hour: Some(share), .. }) if share.0 < own.0 => Some(share.clone()),
                _ => None,
            };
            Some((name, share.unwrap_or(own)))
        })
        .collect();
    let within = |c: &planner::Candidate| limits.get(&c.offer.provider).is_none_or(|(limit, _)| c.hourly <= *limit);
    if let Some(dear) = plan.ranked.first().filter(|_| !plan.ranked.iter().any(within)) {
        let provider = &dear.offer.provider;
        let (limit, name) = limits.get(provider).cloned().unwrap_or_default();
        let message = format!(
            "every offer that fits may cost more an hour than {name} of its Provider: the best one ${}, with ${limit} for {provider}",
            dear.hourly
        );
        return Choice::None { reason: Reason::LimitReached, message };
    }
    let plan = Plan { ranked: plan.ranked.iter().filter(|c| within(c)).cloned().collect(), ..plan };
    into_choice(&needs, &plan)
}

fn into_choice(needs: &planner::Requirements, plan: &Plan) -> Choice {
    let Some(first) = plan.ranked.first() else {
        let only_budget = !plan.rejected.is_empty() && plan.rejected.iter().all(|r| r.reason == RejectReason::Budget);
        let broke = needs.budget_left.is_some_and(|left| left <= Money::ZERO);
        let reason = if only_budget || broke { Reason::BudgetExhausted } else { Reason::NoOffer };
        let message = plan.why_none().unwrap_or_else(|| "No offer fits".to_owned());
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
    let others = plan.ranked.iter().skip(1).take(4).map(planner::Candidate::sentence);
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
