//! What the planner is asked for a job. Pure: `kubectl tradewind plan` asks the same.

use std::collections::BTreeMap;

use tradewind_core::{GpuModel, Money, Offer};
use tradewind_planner::{self as planner, Candidate, Fitting, Knowledge, Plan, Requirements, WorkLeft};

use super::valid::Valid;

/// How far a job is. By default nothing is done yet, and nothing measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
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
}

/// What the planner is asked.
#[derive(Debug, PartialEq)]
pub struct Question {
    /// What a machine must have and may cost.
    pub needs: Requirements,
    /// What is left to do.
    pub work: WorkLeft,
    /// What is known of the market and of the job.
    pub known: Knowledge,
}

impl Question {
    /// The question of a job that is so far, with what is known of the market.
    pub fn new(valid: &Valid, progress: &Progress, market: Knowledge) -> Self {
        let left = valid.work.seconds.saturating_mul(1_000_000_u64.saturating_sub(progress.done_share_ppm)) / 1_000_000;
        Self {
            needs: Requirements {
                budget_left: valid.budget_total.map(|total| total - progress.spent),
                ..valid.needs.clone()
            },
            work: WorkLeft { seconds: left.max(1), on: valid.work.on.clone() },
            known: Knowledge {
                input_mb: valid.input_mb,
                restore_mb: progress.restore_mb,
                step_rates: progress.step_rates.clone(),
                steps_left: progress.steps_left,
                checkpoint_upload_s: progress.save_s.unwrap_or(market.checkpoint_upload_s),
                image_mb: progress.image_bytes.map(|bytes| bytes.div_ceil(1_000_000)),
                checkpoint_interval_s: valid
                    .checkpoint
                    .as_ref()
                    .map(|c| u64::try_from(c.interval_s).unwrap_or(u64::MAX).max(1)),
                ..market
            },
        }
    }

    /// The same question, with something else known.
    pub fn knowing(&self, known: Knowledge) -> Self {
        Self { needs: self.needs.clone(), work: self.work.clone(), known }
    }

    /// The offers that fit and are wanted, best first.
    pub fn ranked<'a>(&self, offers: &[&'a Offer], wants: impl FnMut(&Fitting<'a>) -> bool) -> Vec<Candidate> {
        planner::rank(&self.needs, &self.work, &self.known, offers, wants)
    }

    /// A plan that ranks nothing: why the rest does not fit.
    pub fn reasons(&self, offers: &[&Offer]) -> Plan {
        planner::plan(&self.needs, &self.work, &self.known, offers.iter().copied(), 0)
    }
}
