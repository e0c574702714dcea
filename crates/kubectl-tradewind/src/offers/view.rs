//! What `offers` tells. Pure.

use serde::Serialize;
use serde_json::json;
use tradewind::controllers::training_job::valid;
use tradewind_api::TrainingJob;
use tradewind_core::{GpuModel, Offer};
use tradewind_planner::{Knowledge, Plan, RejectReason, Rejection, Requirements, WorkLeft, explain, gpus};

use crate::Trouble;
use crate::cli::{CapacityFlag, OffersArgs};
use crate::market::Market;

/// Names that a model which nobody knows may have meant.
const NAMES: usize = 3;
/// Lines that tell why offers do not fit.
const REJECTED: usize = 10;

/// What the market has.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OffersView {
    /// What fits, cheapest first; as many as were asked for. `--offers` reads it again.
    pub offers: Vec<Offer>,
    /// How many fit in all.
    pub fit: u32,
    /// How many were looked at, those that cannot be read included.
    pub looked_at: u32,
    /// Why the rest does not fit, grouped and counted.
    pub rejected: Vec<String>,
    /// If nothing fits: an offer that would, but for one thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// An offer that misses one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nearest {
    /// The offer.
    pub offer: Offer,
    /// What it is and should not be: `above $1.00 per hour`.
    pub says: String,
}

/// What the flags ask for: the same as in the spec of a job, by the operator's own reading of it.
pub fn wanted(args: &OffersArgs) -> Result<Requirements, Trouble> {
    let capacity = match args.capacity {
        None => "Any",
        Some(CapacityFlag::Spot) => "Spot",
        Some(CapacityFlag::OnDemand) => "OnDemand",
    };
    let mut spec = json!({
        "gpu": { "count": args.count, "models": args.gpu },
        "template": {},
        "placement": { "regions": args.region, "capacity": capacity },
    });
    if let Some(memory) = &args.min_memory {
        spec["gpu"]["minMemory"] = json!(memory);
    }
    if let Some(price) = args.max_price {
        spec["budget"] = json!({ "perHour": price });
    }
    let object = json!({ "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob", "metadata": {}, "spec": spec });
    let job: TrainingJob = serde_json::from_value(object).map_err(|error| Trouble::Usage(error.to_string()))?;
    // Listed without a disk: its price comes on top.
    Ok(Requirements { disk_gib: 0, ..valid::values(&job).needs })
}

impl OffersView {
    /// The cheapest offers of a market that are as wanted.
    pub fn of(needs: &Requirements, market: &Market, limit: usize) -> Result<Self, Trouble> {
        known(needs, market)?;
        // A moment of work: nothing is left out because it ends too soon.
        let work = WorkLeft { seconds: 1, on: None };
        let plan = tradewind_planner::plan(needs, &work, &Knowledge::default(), &market.offers, usize::MAX);
        let mut fitting: Vec<&Offer> = plan.ranked.iter().map(|candidate| &candidate.offer).collect();
        fitting.sort_by_key(|offer| (offer.price_per_hour, std::cmp::Reverse(offer.reliability_ppm), *offer));
        let unread = market.unread_lines();
        let mut rejected = explain::rejections(&plan.rejected, REJECTED.saturating_sub(unread.len()));
        rejected.extend(unread);
        Ok(Self {
            fit: u32::try_from(fitting.len()).unwrap_or(u32::MAX),
            offers: fitting.into_iter().take(limit).cloned().collect(),
            looked_at: plan.offers.saturating_add(market.unread()),
            nearest: nearest(&plan),
            rejected: rejected.iter().map(|line| without_disk(line)).collect(),
        })
    }
}

/// Who names a model wants that one rather than everything else.
fn nearest(plan: &Plan) -> Option<Nearest> {
    let one = |rejection: &&Rejection| rejection.reason.relaxable() && rejection.also_misses.is_empty();
    let alone = plan.rejected.iter().filter(one).filter(|_| plan.ranked.is_empty());
    let nearest = alone.min_by_key(|rejection| (rejection.reason == RejectReason::GpuModel, rejection.reason))?;
    Some(Nearest { offer: nearest.nearest.clone(), says: without_disk(&nearest.says) })
}

/// The list is one of machines without disks.
fn without_disk(says: &str) -> String {
    says.replace(" per hour with disk", " per hour")
}

/// Refuses a model that neither the planner nor the market knows: it is a slip more often than a new card.
fn known(needs: &Requirements, market: &Market) -> Result<(), Trouble> {
    let offered = |model: &GpuModel| market.offers.iter().any(|offer| offer.gpu.as_ref() == Some(model));
    let Some(model) = needs.gpu_models.iter().find(|model| gpus::find(model).is_none() && !offered(model)) else {
        return Ok(());
    };
    let near = gpus::nearest_names(model, NAMES);
    let meant = if near.is_empty() {
        "names are as RTX4090, A100-80GB or H100".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    Err(Trouble::Usage(format!("nobody knows a GPU model {model}: {meant}")))
}
