//! What `cost` shows, as plain data. Pure.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tradewind_api::provider::Spent;
use tradewind_api::training_job::JobPhase;
use tradewind_api::{Provider, TrainingJob};
use tradewind_core::Money;

/// Everything that `cost` shows. All amounts are dollars.
#[derive(Serialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CostView {
    /// Jobs, the dearest first.
    pub jobs: Vec<JobCost>,
    /// Their sums.
    pub sum: Sum,
    /// Accounts by name; absent if they may not be read.
    pub providers: Option<Vec<Account>>,
}

/// What a job has cost.
#[derive(Serialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobCost {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Phase.
    pub phase: JobPhase,
    /// Provider of its present machine.
    pub provider: Option<String>,
    /// Where it is now, as in the job's status.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// Final.
    pub settled: Money,
    /// For machines that are there, so far.
    pub running: Money,
    /// An hour, now.
    pub per_hour: Money,
    /// In all.
    pub total: Money,
    /// `budget.total`.
    pub budget: Option<Money>,
    /// What is left of it.
    pub left: Option<Money>,
}

/// Sums over jobs.
#[derive(Serialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    /// Final.
    pub settled: Money,
    /// For machines that are there, so far.
    pub running: Money,
    /// An hour, now.
    pub per_hour: Money,
    /// In all.
    pub total: Money,
}

/// What an account has spent.
#[derive(Serialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Name of the Provider.
    pub name: String,
    /// Machines that are not gone.
    pub machines: i64,
    /// What they may cost an hour.
    pub committed_per_hour: Money,
    /// `limits.perHour`.
    pub limit_per_hour: Money,
    /// For machines that are gone: today, UTC.
    pub today: Money,
    /// In the last 24 whole hours and the present one.
    pub last_day: Money,
    /// `limits.perDay`.
    pub limit_per_day: Money,
    /// This month, UTC.
    pub month: Money,
    /// Credit.
    pub credit: Option<Money>,
}

impl CostView {
    /// The view of jobs and accounts.
    pub fn of(jobs: &[TrainingJob], providers: Option<&[Provider]>, now: Timestamp) -> Self {
        let mut jobs: Vec<JobCost> = jobs.iter().map(job).collect();
        jobs.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))));
        let mut sum = Sum::default();
        for job in &jobs {
            sum.settled += job.settled;
            sum.running += job.running;
            sum.per_hour += job.per_hour;
            sum.total += job.total;
        }
        let accounts = |providers: &[Provider]| {
            let mut accounts: Vec<Account> = providers.iter().map(|provider| account(provider, now)).collect();
            accounts.sort_by(|a, b| a.name.cmp(&b.name));
            accounts
        };
        Self { jobs, sum, providers: providers.map(accounts) }
    }
}

/// `a` less `b`, not below zero.
fn less(a: Money, b: Money) -> Money {
    Money::from_micros((a.micros() - b.micros()).max(0))
}

fn job(job: &TrainingJob) -> JobCost {
    let status = job.status.clone().unwrap_or_default();
    let cost = &status.cost;
    let budget = job.spec.budget.as_ref().and_then(|b| b.total);
    let placement = status.placement.as_ref().filter(|_| !status.phase.is_terminal());
    JobCost {
        namespace: job.metadata.namespace.clone().unwrap_or_default(),
        name: job.metadata.name.clone().unwrap_or_default(),
        phase: status.phase,
        provider: placement.and_then(|p| p.provider.clone()),
        place: placement.map(|p| p.summary.clone()),
        settled: cost.settled,
        running: less(cost.total, cost.settled),
        per_hour: cost.per_hour,
        total: cost.total,
        budget,
        left: budget.map(|budget| less(budget, cost.total)),
    }
}

/// What the books say of the last 24 whole hours and the present one: what `limits.perDay` counts besides running machines.
pub fn last_day(provider: &Provider, now: Timestamp) -> Money {
    let since = now.checked_sub(SignedDuration::from_hours(24)).unwrap_or(now).strftime("%Y-%m-%dT%H:00Z").to_string();
    let hours = provider.status.as_ref().map(|s| s.spend.hours.as_slice()).unwrap_or_default();
    hours.iter().filter(|spent| spent.at >= since).fold(Money::ZERO, |sum, spent| sum + spent.dollars)
}

fn account(provider: &Provider, now: Timestamp) -> Account {
    let status = provider.status.clone().unwrap_or_default();
    let at = |list: &[Spent], name: String| {
        list.iter().find(|spent| spent.at == name).map_or(Money::ZERO, |spent| spent.dollars)
    };
    Account {
        name: provider.metadata.name.clone().unwrap_or_default(),
        machines: status.machines,
        committed_per_hour: status.committed_per_hour,
        limit_per_hour: provider.spec.limits.per_hour,
        today: at(&status.spend.days, now.strftime("%Y-%m-%d").to_string()),
        last_day: last_day(provider, now),
        limit_per_day: provider.spec.limits.per_day,
        month: at(&status.spend.months, now.strftime("%Y-%m").to_string()),
        credit: status.credit,
    }
}
