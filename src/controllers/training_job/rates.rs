//! How fast a job was on each GPU model, as its own steps tell: what the planner compares machines by, once it is known. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tradewind_api::TrainingJobStatus;
use tradewind_api::training_job::StepRate;
use tradewind_core::GpuModel;

/// Least time and steps of a measurement: the first steps of a program are slower than the rest.
const LEAST_S: SignedDuration = SignedDuration::from_mins(5);
const LEAST_STEPS: i64 = 10;
/// Models that are remembered.
const MOST: usize = 8;

/// Steps in a million seconds where the job runs, or ran last, until this moment.
fn pace(status: &TrainingJobStatus, until: Timestamp) -> Option<u64> {
    let (program, progress) = (status.program.as_ref()?, status.progress.as_ref()?);
    let steps = progress.step.saturating_sub(program.from_step.unwrap_or(0));
    let took = until.duration_since(program.since.0);
    if took < LEAST_S || steps < LEAST_STEPS {
        return None;
    }
    let rate = u128::try_from(steps).ok()? * 1_000_000 / u128::try_from(took.as_secs()).ok()?.max(1);
    u64::try_from(rate).ok()
}

/// The same on the rented machine that the job runs on, with its model, until its last step.
fn measured(status: &TrainingJobStatus) -> Option<(GpuModel, u64)> {
    let until = status.progress.as_ref()?.at.as_ref().map_or(Timestamp::MIN, |at| at.0);
    Some((rented_model(status)?, pace(status, until)?))
}

/// When a job that goes on as fast as so far is complete, if it tells how many steps there are. One that hangs becomes slower and slower.
pub fn finish(status: &TrainingJobStatus, now: Timestamp) -> Option<Timestamp> {
    let progress = status.progress.as_ref()?;
    let left = u128::try_from(progress.total?.saturating_sub(progress.step).max(0)).ok()?;
    let left_s = (left * 1_000_000).checked_div(u128::from(pace(status, now)?))?;
    Some(now.checked_add(Duration::from_secs(u64::try_from(left_s).ok()?)).unwrap_or(Timestamp::MAX))
}

/// The model of the rented machine that the job runs on. The cluster does not say which model a node has.
fn rented_model(status: &TrainingJobStatus) -> Option<GpuModel> {
    let placement = status.placement.as_ref().filter(|placement| placement.provider.is_some())?;
    let (_, model) = placement.gpu.as_deref()?.split_once('x')?;
    Some(GpuModel::normalise(model, 0))
}

/// Seconds that the program has worked in the present attempt: until its newest checkpoint, or all of them. On the model that `work` is told
/// for, as far as the planner's table knows both; in the cluster, where models are not told, as if on that.
pub fn worked_s(status: &TrainingJobStatus, on: Option<&GpuModel>, until: Option<Timestamp>) -> i64 {
    let Some(program) = &status.program else { return 0 };
    let saved = status.checkpoint.as_ref().and_then(|c| c.at.as_ref()).map(|at| at.0);
    let Some(until) = until.or(saved) else { return 0 };
    let worked = until.duration_since(program.since.0).as_secs().max(0);
    let speed = |model: Option<&GpuModel>| model.and_then(tradewind_planner::speed_milli).map(i64::from);
    match (speed(rented_model(status).as_ref()), speed(on)) {
        (Some(here), Some(there)) if there > 0 => worked.saturating_mul(here) / there,
        _ => worked,
    }
}

/// All that is known, by model, in steps in a million seconds.
pub fn known(status: &TrainingJobStatus) -> BTreeMap<GpuModel, u64> {
    let kept = status.step_rates.iter().map(|rate| {
        let per_hour = u128::from(rate.steps_per_hour.millionths());
        (GpuModel::normalise(&rate.gpu, 0), u64::try_from(per_hour / 3600).unwrap_or(u64::MAX))
    });
    kept.chain(measured(status)).filter(|(_, rate)| *rate > 0).collect()
}

/// Keeps what was measured in the attempt that ends. `on`: the model that `work` is told for.
pub fn keep(status: &mut TrainingJobStatus, on: Option<&GpuModel>) {
    status.saved_seconds = status.saved_seconds.saturating_add(worked_s(status, on, None));
    let Some((model, rate)) = measured(status) else { return };
    status.step_rates.retain(|known| known.gpu != model.as_str());
    let millionths = rate.saturating_mul(3600);
    let steps_per_hour = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    let steps_per_hour = steps_per_hour.trim_end_matches('0').trim_end_matches('.').to_owned();
    status.step_rates.push(StepRate { gpu: model.as_str().to_owned(), steps_per_hour: steps_per_hour.into() });
    let too_many = status.step_rates.len().saturating_sub(MOST);
    status.step_rates.drain(..too_many);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use tradewind_api::training_job::{CheckpointStatus, PlacementStatus, ProgramStatus, ProgressStatus};

    use super::*;

    fn status(gpu: &str, from_step: i64, step: i64, minutes: i64) -> TrainingJobStatus {
        let since: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let at = Time(since + SignedDuration::from_mins(minutes));
        TrainingJobStatus {
            program: Some(ProgramStatus { since: Time(since), from_step: Some(from_step) }),
            progress: Some(ProgressStatus { step, at: Some(at), ..ProgressStatus::default() }),
            placement: Some(PlacementStatus {
                gpu: Some(gpu.to_owned()),
                provider: Some("p".to_owned()),
                ..PlacementStatus::default()
            }),
            ..TrainingJobStatus::default()
        }
    }

    #[test]
    fn what_was_measured_on_a_model_outlives_the_attempt() {
        let mut job = status("1xRTX4090", 100, 700, 10);
        let model = |name: &str| GpuModel::normalise(name, 0);
        assert_eq!(known(&job), BTreeMap::from([(model("RTX4090"), 1_000_000)]), "a step a second");
        keep(&mut job, None);
        assert_eq!(job.step_rates, [StepRate { gpu: "RTX4090".into(), steps_per_hour: "3600".to_owned().into() }]);
        let next = status("2xA100-80GB", 700, 703 + 7 * 60, 7);
        job = TrainingJobStatus { step_rates: job.step_rates, ..next };
        assert_eq!(known(&job).len(), 2);
        assert_eq!(known(&job)[&model("RTX4090")], 1_000_000);
        keep(&mut job, None);
        keep(&mut job, None);
        assert_eq!(job.step_rates.len(), 2, "one of each model");
    }

    #[test]
    fn without_a_total_the_time_that_was_saved_counts_at_the_speed_of_its_machine() {
        let model = |name: &str| GpuModel::normalise(name, 0);
        let mut job = status("1xRTX4090", 0, 0, 60);
        let program = job.program.clone().unwrap();
        assert_eq!(worked_s(&job, None, None), 0, "nothing is saved");
        let at = Time(program.since.0 + SignedDuration::from_mins(50));
        job.checkpoint = Some(CheckpointStatus { at: Some(at), ..CheckpointStatus::default() });
        assert_eq!(worked_s(&job, Some(&model("RTX4090")), None), 3000);
        assert_eq!(worked_s(&job, Some(&model("no such")), None), 3000);
        assert!(worked_s(&job, Some(&model("H100-80GB")), None) < 2000, "an H100 would have been done sooner");
        let now = program.since.0 + SignedDuration::from_mins(60);
        assert_eq!(worked_s(&job, None, Some(now)), 3600, "where it still runs");
        keep(&mut job, None);
        assert_eq!(job.saved_seconds, 3000);
        job.program = None;
        keep(&mut job, None);
        assert_eq!(job.saved_seconds, 3000);
    }

    fn in_cluster() -> TrainingJobStatus {
        let mut job = status("1xGPU", 0, 3600, 60);
        job.placement.as_mut().unwrap().provider = None;
        job
    }

    #[test]
    fn the_first_minutes_and_no_progress_tell_nothing() {
        for (job, why) in [
            (status("1xRTX4090", 0, 700, 4), "short"),
            (status("1xRTX4090", 700, 705, 60), "few steps"),
            (status("1xRTX4090", 700, 0, 60), "back"),
            (in_cluster(), "in the cluster, where models are not told"),
            (TrainingJobStatus::default(), "nothing"),
        ] {
            assert!(known(&job).is_empty(), "{why}");
        }
    }
}
