//! What `plan` tells of a job: the operator's own functions, one after the other. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use tradewind::controllers::training_job::deadline;
use tradewind::controllers::training_job::question::{Progress, Question};
use tradewind::controllers::training_job::sieve::Sieve;
use tradewind::controllers::training_job::status::expected_cost;
use tradewind::controllers::training_job::times::Times;
use tradewind::controllers::training_job::timing::{self, Prospect, Verdict};
use tradewind::controllers::training_job::valid::{self, ASSUMED_WORK_S, Valid};
use tradewind_api::TrainingJob;
use tradewind_api::training_job::{Alternative, ExpectedCost, InCluster};
use tradewind_core::{Capacity, Offer};
use tradewind_planner::when::Record;
use tradewind_planner::{Candidate, DEFAULT_IMAGE_MB, DEFAULT_MEAN_LIFE_S, Knowledge, Plan, explain};

use crate::choice::summary;
use crate::market::Market;
use crate::text;

/// Lines that tell why offers do not fit.
const REJECTED: usize = 10;
const HOUR: u64 = 3600;
/// Time between two looks at a job that waits, the operator's default (`replan_interval`).
const LOOK: Duration = Duration::from_mins(1);

/// What would become of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Decision {
    /// A machine would be rented.
    Rent,
    /// One would fit, and something better is waited for.
    Wait,
    /// Nothing fits.
    Nowhere,
    /// It runs on the cluster's own nodes only.
    InCluster,
    /// The operator would refuse it.
    Refused,
}

/// Where and when a job would run if it were applied now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// Name of the job.
    pub name: String,
    /// Its namespace, if the manifest names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What would become of it.
    pub decision: Decision,
    /// The sentence.
    pub message: String,
    /// What comes before that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
    /// What would be rented; while it waits, what could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// Expected cost on that offer, from the rent call to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<ExpectedCost>,
    /// When the job would be complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_finish: Option<Timestamp>,
    /// Until when it must be complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// If nothing keeps the deadline: the earliest finish, and what it would cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<String>,
    /// If the deadline is kept only as long as things go well: what must not happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_risk: Option<String>,
    /// Until when it may wait for something cheaper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_until: Option<Timestamp>,
    /// The best others; less than nothing more where a cheaper one is not sure to be in time.
    pub alternatives: Vec<Alternative>,
    /// Offers looked at, those that cannot be read included.
    pub offers: u32,
    /// How many of them fit.
    pub fit: u32,
    /// Why the rest does not, grouped and counted.
    pub rejected: Vec<String>,
    /// What a running operator would know better.
    pub assumed: Vec<String>,
}

impl PlanView {
    /// A dry run of `job`, applied at `now`. Tells at most `others` alternatives.
    pub fn of(job: &TrainingJob, market: &Market, now: Timestamp, others: usize) -> Self {
        let mut job = job.clone();
        job.metadata.creation_timestamp = Some(Time(now));
        let valid = valid::values(&job);
        let mut view = Self::empty(&job, market);
        if let Some(refused) = valid::refusal(&job, &valid) {
            view.decide(Decision::Refused, refused.message);
            return view;
        }
        if valid.in_cluster == InCluster::Only {
            let message = "waits for nodes of the cluster; nothing is rented (placement.inCluster is Only)";
            view.decide(Decision::InCluster, message.to_owned());
            return view;
        }
        if let Err(obstacle) = &valid.rental {
            let message = format!("waits for nodes of the cluster; it cannot be rented for: {}", obstacle.message);
            view.decide(Decision::InCluster, message);
            return view;
        }
        view.before = before(&job, &valid);
        let times = Times::of(&job, &valid, now, LOOK);
        (view.deadline, view.patience_until) = (times.deadline, times.patience_until);
        let plan = planned(&valid, market, &times);
        view.assumed = assumed(&job, &plan, market);
        let unread = market.unread_lines();
        view.fit = plan.cut;
        view.rejected = explain::rejections(&plan.rejected, REJECTED.saturating_sub(unread.len()));
        view.rejected.extend(unread);
        view.time(&times, &valid, &plan, others);
        view
    }

    fn empty(job: &TrainingJob, market: &Market) -> Self {
        let meta = &job.metadata;
        let known = u32::try_from(market.offers.len()).unwrap_or(u32::MAX);
        Self {
            name: meta.name.clone().or_else(|| meta.generate_name.clone()).unwrap_or_default(),
            namespace: meta.namespace.clone(),
            decision: Decision::Nowhere,
            message: String::new(),
            before: Vec::new(),
            offer: None,
            cost: None,
            expected_finish: None,
            deadline: None,
            late: None,
            at_risk: None,
            patience_until: None,
            alternatives: Vec::new(),
            offers: known.saturating_add(market.unread()),
            fit: 0,
            rejected: Vec::new(),
            assumed: Vec::new(),
        }
    }

    fn decide(&mut self, decision: Decision, message: String) {
        (self.decision, self.message) = (decision, message);
    }

    /// The best of what fits, or a wait for something better.
    fn time(&mut self, times: &Times, valid: &Valid, plan: &Plan, others: usize) {
        let Some(best) = plan.ranked.first() else {
            return self.decide(Decision::Nowhere, plan.why_none().unwrap_or_else(|| "no offer fits".to_owned()));
        };
        let (verdict, prospect) = if times.matter() {
            // A dry run has seen no pool come and go.
            let unseen = |ids: &[_]| vec![Record::new(); ids.len()];
            let there = (plan.ranked.as_slice(), [].as_slice());
            timing::decide(times, &valid.work, there, unseen, None)
        } else {
            (Verdict::Go { ranked: plan.ranked.clone(), because: None, must: false }, Prospect::Unknown)
        };
        match prospect {
            Prospect::Late(why) => self.late = Some(why),
            Prospect::AtRisk(why) => self.at_risk = Some(why),
            Prospect::OnTime | Prospect::Unknown => {}
        }
        let first = match &verdict {
            Verdict::Go { ranked, because, .. } => {
                let first = ranked.first().unwrap_or(best);
                let because = because.as_ref().map_or_else(String::new, |because| format!("; {because}"));
                self.decide(Decision::Rent, format!("{}{because}", first.sentence()));
                first
            }
            Verdict::Wait { message, .. } => {
                self.decide(Decision::Wait, message.clone());
                best
            }
            Verdict::Stay => {
                self.decide(Decision::Wait, "rents nothing now: there is nothing to gain by it".to_owned());
                best
            }
        };
        self.offer = Some(first.offer.clone());
        self.cost = Some(expected_cost(&first.cost));
        self.expected_finish = finish(times.now, first);
        let alternative = |other: &Candidate| Alternative {
            summary: summary(&other.offer),
            price_per_hour: other.offer.price_per_hour,
            extra_cost: other.cost.total - first.cost.total,
            expected_finish: finish(times.now, other).map(Time),
        };
        self.alternatives = plan.others(first, others).into_iter().map(alternative).collect();
    }
}

/// What the planner finds for a job of which nothing is done yet. `cut` counts all that fit.
fn planned(valid: &Valid, market: &Market, times: &Times) -> Plan {
    let asked = Question::new(valid, &Progress::default(), Knowledge::default());
    let offers: Vec<&Offer> = market.offers.iter().collect();
    let mut sieve = Sieve::new(times);
    let ranked = asked.ranked(&offers, |fitting| sieve.wants(fitting));
    Plan { ranked, ..asked.reasons(&offers) }
}

fn finish(now: Timestamp, candidate: &Candidate) -> Option<Timestamp> {
    deadline::in_s(now, candidate.finish_in_s)
}

fn span(seconds: u64) -> String {
    text::span(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// What comes before anything is rented.
fn before(job: &TrainingJob, valid: &Valid) -> Vec<String> {
    let mut before = Vec::new();
    if job.spec.suspend {
        before.push("It is suspended: this holds once spec.suspend is false.".to_owned());
    }
    if valid.in_cluster == InCluster::Prefer {
        let after = span(valid.burst_after.as_secs());
        before.push(format!("First the cluster's own nodes are tried for {after} (placement.burstAfter)."));
    }
    before
}

/// What was assumed in the place of what a running operator knows.
fn assumed(job: &TrainingJob, plan: &Plan, market: &Market) -> Vec<String> {
    let mut assumed = Vec::new();
    if job.spec.work.is_none() {
        assumed.push(format!("{} h of work, since the job does not say (spec.work)", ASSUMED_WORK_S / HOUR));
    }
    let gigabytes = DEFAULT_IMAGE_MB / 1000;
    assumed.push(format!("an image of {gigabytes} GB, compressed (the operator asks its registry)"));
    if plan.ranked.iter().any(|c| c.offer.capacity == Capacity::Spot) {
        let hours = DEFAULT_MEAN_LIFE_S / HOUR;
        assumed.push(format!("spot machines that live {hours} h on average (the operator watches them)"));
    }
    assumed.push("no checkpoint to go on from, and room in the limits of Providers".to_owned());
    assumed.extend(market.assumed.iter().cloned());
    assumed
}
