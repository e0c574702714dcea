//! What `why` tells of a job. Pure.

use jiff::Timestamp;
use serde::Serialize;
use tradewind_api::TrainingJob;
use tradewind_api::conditions::{PLACED, condition};
use tradewind_api::training_job::{Alternative, ExpectedCost, JobPhase};
use tradewind_core::Money;

/// Why a job runs where it runs, or why it runs nowhere.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyView {
    /// Name of the job.
    pub name: String,
    /// Where it is.
    pub phase: JobPhase,
    /// Place in a word; absent while it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The planner's sentence about the place, or why there is none.
    pub why: String,
    /// Condition's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// GPUs of the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Dollars an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<Money>,
    /// Expected cost from the choice to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<ExpectedCost>,
    /// When it should be complete, as was expected at the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_finish: Option<Timestamp>,
    /// Until when it must be complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The best others.
    pub alternatives: Vec<Alternative>,
    /// Why the rest does not fit.
    pub rejected: Vec<String>,
}

impl WhyView {
    /// What the job's status says.
    pub fn of(job: &TrainingJob) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let placed = condition(&status.conditions, PLACED);
        let has_place = placed.is_some_and(|c| c.status == "True");
        let place = status.placement.unwrap_or_default();
        let told = placed.map(|c| c.message.clone()).filter(|message| !message.is_empty());
        let why = if has_place { place.why.clone().or(told) } else { told };
        Self {
            name: job.metadata.name.clone().unwrap_or_default(),
            phase: status.phase,
            place: (has_place && !place.summary.is_empty()).then(|| place.summary.clone()),
            why: why.unwrap_or_else(|| "the operator has not looked at it yet".to_owned()),
            reason: placed.map(|c| c.reason.clone()),
            gpu: place.gpu.clone().filter(|_| has_place),
            price_per_hour: place.price_per_hour.filter(|_| has_place),
            cost: place.cost.filter(|_| has_place),
            expected_finish: place.expected_finish.map(|at| at.0).filter(|_| has_place),
            deadline: status.deadline.map(|at| at.0),
            alternatives: if has_place { place.alternatives } else { Vec::new() },
            rejected: if has_place { place.rejected } else { Vec::new() },
        }
    }
}
