//! How long the work takes on a GPU model.
//!
//! Measured step rates of this very job come first; then `work`, which is a time on a named model and holds for that model as it stands;
//! from there to other models the table of [`gpus`](crate::gpus) leads. Its speed = √(FP16 throughput × memory bandwidth), both relative to
//! an RTX 4090, in thousandths: training is bound partly by arithmetic and partly by memory, and the geometric mean favours neither.

use tradewind_core::GpuModel;

use crate::gpus::{self, Gpu, Known};
use crate::knowledge::JobFacts;
use crate::needs::WorkLeft;

/// Speed taken for a model that is not in the table, in thousandths of an RTX 4090.
pub const UNKNOWN_SPEED_MILLI: u32 = 500;

/// The RTX 4090's FP16 throughput in tenths of TFLOPS, and its memory bandwidth in GB/s.
const REFERENCE: (u64, u64) = (1652, 1008);

/// Where a candidate's running time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpeedBasis {
    /// From step rates of this job, measured on this model.
    Measured,
    /// The work was given for this model, for no model in particular, or runs on the CPU: not scaled.
    AsGiven,
    /// Scaled by the built-in table, from what was measured or given for another model.
    Table,
    /// Scaled, but this offer's model or the one that it was scaled from is not in the table and was taken at
    /// [`UNKNOWN_SPEED_MILLI`].
    Assumed,
}

/// Speed of a model in thousandths of an RTX 4090; `None` if it is not in the table.
pub fn speed_milli(gpu: &GpuModel) -> Option<u32> {
    gpus::find(gpu).map(speed_of)
}

pub(crate) fn speed_of(gpu: &Gpu) -> u32 {
    let squared = 1_000_000 * gpu.fp16_tenths * gpu.bandwidth_gbs / (REFERENCE.0 * REFERENCE.1);
    u32::try_from(squared.isqrt()).unwrap_or(u32::MAX)
}

/// How long the work takes, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) run_s: u64,
    pub(crate) basis: SpeedBasis,
}

/// Tells the pace of a job on any model. Made once per plan.
#[derive(Debug)]
pub(crate) struct Pacer<'a> {
    seconds: u64,
    on: Option<Known<'a>>,
    /// Models on which the job was measured, with the seconds that all that is left takes there.
    measured: Vec<(Known<'a>, u64)>,
}

/// `seconds` × `from` ÷ `to`, rounded up.
fn scaled(seconds: u64, from: u64, to: u64) -> u64 {
    let to = to.max(1);
    match seconds.checked_mul(from) {
        Some(product) => product.div_ceil(to),
        None => u64::try_from((u128::from(seconds) * u128::from(from)).div_ceil(u128::from(to))).unwrap_or(u64::MAX),
    }
}

impl<'a> Pacer<'a> {
    pub(crate) fn new(work: &'a WorkLeft, job: &JobFacts<'a>) -> Self {
        let on = work.on.as_ref().map(Known::new);
        let rates: Vec<(Known<'a>, u64)> = job
            .step_rates
            .iter()
            .filter(|(_, rate)| **rate > 0)
            .map(|(model, rate)| (Known::new(model), *rate))
            .collect();
        let of_on = on.and_then(|on| rates.iter().find(|(model, _)| model.is(on)));
        let measured = match (job.steps_left, of_on) {
            (Some(steps), _) => rates.iter().map(|(model, rate)| (*model, scaled(steps, 1_000_000, *rate))).collect(),
            // Without a count of steps the rates tell only how models compare, from the one that the work is given for.
            (None, Some((_, given))) => {
                rates.iter().map(|(model, rate)| (*model, scaled(work.seconds, *given, *rate))).collect()
            }
            (None, None) => Vec::new(),
        };
        Self { seconds: work.seconds, on, measured }
    }

    /// The pace on this GPU; `None` = the work runs on the CPU.
    pub(crate) fn pace(&self, gpu: Option<Known<'_>>) -> Pace {
        let Some(gpu) = gpu else { return Pace { run_s: self.seconds, basis: SpeedBasis::AsGiven } };
        if let Some((_, run_s)) = self.measured.iter().find(|(model, _)| model.is(gpu)) {
            return Pace { run_s: *run_s, basis: SpeedBasis::Measured };
        }
        let given = Pace { run_s: self.seconds, basis: SpeedBasis::AsGiven };
        if self.on.is_some_and(|on| on.is(gpu)) {
            return given;
        }
        let to = gpu.speed_milli;
        let to_milli = to.unwrap_or(UNKNOWN_SPEED_MILLI);
        // Of several measured models the one that is nearest in speed tells most; a measurement tells more than what was given.
        let nearest = self.measured.iter().min_by_key(|(model, run_s)| {
            let milli = model.speed_milli;
            (milli.is_none(), milli.unwrap_or(UNKNOWN_SPEED_MILLI).abs_diff(to_milli), *run_s, model.model)
        });
        let (from, seconds) = match (nearest, self.on) {
            (Some((model, run_s)), _) => (*model, *run_s),
            (None, Some(on)) => (on, self.seconds),
            (None, None) => return given,
        };
        let from = from.speed_milli;
        let basis = if from.is_some() && to.is_some() { SpeedBasis::Table } else { SpeedBasis::Assumed };
        let run_s = scaled(seconds, from.unwrap_or(UNKNOWN_SPEED_MILLI).into(), to_milli.into());
        Pace { run_s, basis }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::knowledge::Knowledge;

    fn gpu(name: &str) -> GpuModel {
        GpuModel::normalise(name, 0)
    }

    fn milli(name: &str) -> u32 {
        speed_milli(&gpu(name)).unwrap()
    }

    fn pace(known: &Knowledge, work: &WorkLeft, model: Option<&str>) -> (u64, SpeedBasis) {
        let model = model.map(gpu);
        let pace = Pacer::new(work, &known.job()).pace(model.as_ref().map(Known::new));
        (pace.run_s, pace.basis)
    }

    #[test]
    fn the_reference_is_a_thousand_and_generations_are_in_order() {
        assert_eq!(milli("RTX 4090"), 1000);
        assert_eq!(milli("RTX 3090"), 631, "√(71.0/165.2 × 936/1008)");
        assert_eq!(milli("RTX A6000"), milli("A6000"), "both spellings are in use");
        let rising =
            ["K80", "T4", "L4", "RTX 3090", "V100", "RTX 4090", "RTX 5090", "A100-80GB", "H100", "H200", "B200"];
        for pair in rising.windows(2) {
            assert!(milli(pair[0]) < milli(pair[1]), "{} must be slower than {}", pair[0], pair[1]);
        }
        assert!(gpus::all().all(|gpu| speed_of(gpu) > 0), "a speed of 0 would divide by zero");
    }

    #[test]
    fn scaling_says_how_it_knows() {
        let known = Knowledge::default();
        for (on, model, expected, basis) in [
            (Some("RTX4090"), Some("RTX4090"), 3600, SpeedBasis::AsGiven),
            (Some("Quantum 9"), Some("Quantum 9"), 3600, SpeedBasis::AsGiven),
            (Some("A6000"), Some("RTX A6000"), 3600, SpeedBasis::AsGiven),
            (None, Some("RTX3090"), 3600, SpeedBasis::AsGiven),
            (Some("RTX4090"), None, 3600, SpeedBasis::AsGiven),
            (Some("RTX4090"), Some("RTX3090"), 5706, SpeedBasis::Table),
            (Some("RTX4090"), Some("Quantum 9"), 7200, SpeedBasis::Assumed),
            (Some("Quantum 9"), Some("RTX4090"), 1800, SpeedBasis::Assumed),
        ] {
            let work = WorkLeft { seconds: 3600, on: on.map(gpu) };
            assert_eq!(pace(&known, &work, model), (expected, basis), "{on:?} -> {model:?}");
        }
        let endless = WorkLeft { seconds: u64::MAX, on: Some(gpu("RTX4090")) };
        assert_eq!(pace(&known, &endless, Some("RTX3090")).0, u64::MAX);
    }

    #[test]
    fn what_was_measured_comes_before_what_was_given_and_that_before_the_table() {
        let rates = BTreeMap::from([(gpu("RTX 3090"), 600_000), (gpu("A6000"), 1_000_000), (gpu("H100"), 0)]);
        let known = Knowledge { step_rates: rates, steps_left: Some(5400), ..Knowledge::default() };
        let work = WorkLeft { seconds: 7200, on: Some(gpu("RTX 4090")) };
        assert_eq!(pace(&known, &work, Some("RTX 3090")), (9000, SpeedBasis::Measured));
        assert_eq!(pace(&known, &work, Some("RTX A6000")), (5400, SpeedBasis::Measured), "under its other name");
        assert_eq!(pace(&known, &work, Some("RTX 4090")), (7200, SpeedBasis::AsGiven));
        let a6000 = u64::from(milli("A6000"));
        let a100 = u64::from(milli("A100-80GB"));
        assert_eq!(
            pace(&known, &work, Some("A100-80GB")),
            ((5400 * a6000).div_ceil(a100), SpeedBasis::Table),
            "from the A6000"
        );
        assert_eq!(pace(&known, &work, None), (7200, SpeedBasis::AsGiven));

        let compared = Knowledge { steps_left: None, ..known };
        let on_3090 = WorkLeft { seconds: 9000, on: Some(gpu("RTX 3090")) };
        assert_eq!(pace(&compared, &on_3090, Some("A6000")), (5400, SpeedBasis::Measured), "rates compare models");
        assert_eq!(
            pace(&compared, &work, Some("RTX 3090")).1,
            SpeedBasis::Table,
            "no rate for the model that is given"
        );
    }
}
