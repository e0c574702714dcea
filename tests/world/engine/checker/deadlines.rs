//! A deadline of which it was said that it will be kept is kept.

use tradewind_api::TrainingJob;
use tradewind_api::conditions::{ON_TIME, condition};

use super::Checker;
use crate::engine::cluster::job_name;

/// Machines that a job may have had besides those that were taken from it: the first, one that stays, and one that it left for that.
const MACHINES: i64 = 3;

impl Checker {
    /// Notes what a job says of its deadline.
    pub(super) fn deadline_told(&mut self, n: usize, job: &TrainingJob) {
        let told = job.status.as_ref().and_then(|s| condition(&s.conditions, ON_TIME));
        self.jobs[n].promised |= told.is_some_and(|told| told.status == "True");
    }

    /// Jobs are complete in time once it was said that they will be, and have not rented more than that took.
    pub(super) fn deadlines_are_kept(&mut self) {
        if !self.deadlines {
            return;
        }
        for n in 0..self.jobs.len() {
            let known = self.jobs[n].clone();
            let Some(status) = known.object.as_ref().and_then(|job| job.status.clone()) else { continue };
            let name = job_name(n);
            let (finished, deadline) = (status.finished_at.as_ref(), status.deadline.as_ref());
            let in_time = finished.zip(deadline).is_some_and(|(finished, deadline)| finished.0 <= deadline.0);
            self.ensure(in_time || !known.promised, || {
                format!("{name} was complete at {finished:?}, and was to be in time: its deadline was {deadline:?}")
            });
            let machines = i64::try_from(self.rentals.values().filter(|rental| rental.job == n).count()).unwrap_or(0);
            self.ensure(machines <= status.preemptions + status.restarts + MACHINES, || {
                format!("{name} had {machines} machines, {} of which were taken from it", status.preemptions)
            });
        }
    }
}
