//! Workers in the cluster: what they offer counts, and nothing of them stays behind.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use tradewind::controllers::worker;
use tradewind_api::names;
use tradewind_protocol::Report;

use super::super::cluster::job_name;
use super::super::nodes::is_over;
use super::super::operator::install;
use super::super::ports::MAILBOX;
use super::super::wire::Common;
use super::Checker;

impl Checker {
    /// A worker's report with offers of these steps is in the mailbox, while its Pod is there. `writers`: so many must offer a step before it
    /// counts.
    pub fn worker_offered(&mut self, n: usize, attempt: u32, rank: u32, steps: BTreeSet<u64>, writers: u32) {
        let job = &mut self.jobs[n];
        let Some(step) = steps.last().copied() else { return };
        if writers > 1 {
            // A report holds a few offers: while no operator reads, newer ones take the places of what all have saved.
            let known = job.parts.entry(attempt).or_default().entry(rank).or_default();
            known.extend(steps);
            while known.len() > Report::MAX_OFFERS {
                known.pop_first();
            }
            return;
        }
        let fenced = job.starts.iter().any(|(newer, _)| *newer > attempt);
        let best = job.offered.entry(attempt).or_insert(0);
        if !fenced && step > *best {
            *best = step;
            self.offers += 1;
        }
    }

    /// The highest step that is among the last few which each worker of an attempt before this one has offered.
    pub(super) fn offered_together(&self, n: usize, before: u32) -> u64 {
        let (job, workers) = (&self.jobs[n], self.workers.get(n).copied().unwrap_or(1));
        let of = |parts: &BTreeMap<u32, BTreeSet<u64>>| {
            let mut steps = parts.values().next()?.iter().rev().copied();
            steps.find(|step| parts.len() == workers && parts.values().all(|other| other.contains(step)))
        };
        job.parts.range(..before).filter_map(|(_, parts)| of(parts)).max().unwrap_or(0)
    }

    /// No Pod of a job that is over is unfinished, no worker runs, and in a world without mishaps no folder of one is left.
    pub(super) fn workers_are_gone(&mut self, common: &Common, working: &[String], tidy: bool) {
        self.ensure(working.is_empty(), || format!("at the end {working:?} still run"));
        for pod in common.memory.peek_all::<Pod>() {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let ours = pod.metadata.labels.as_ref().and_then(|l| l.get(names::JOB_UID));
            let job = self.jobs.iter().find(|job| Some(&job.uid) == ours);
            let status = job.and_then(|job| job.object.as_ref()?.status.as_ref());
            let ended = status.is_some_and(|s| s.phase.is_terminal());
            self.ensure(!ended || is_over(&pod), || format!("at the end Pod {name} of an ended job is unfinished"));
        }
        if !tidy {
            return;
        }
        let objects = common.server.objects(MAILBOX);
        for n in 0..self.jobs.len() {
            for (attempt, rank) in self.jobs[n].began.clone() {
                let id = worker::id(&install(), &self.jobs[n].uid, attempt.into(), rank.into());
                let left = objects.iter().find(|(key, bytes)| key.contains(&id) && !bytes.is_empty());
                self.ensure(left.is_none(), || {
                    let key = left.map(|(key, _)| key.clone()).unwrap_or_default();
                    format!("at the end {key} of worker {rank} of {} attempt {attempt} is left", job_name(n))
                });
            }
        }
    }
}
