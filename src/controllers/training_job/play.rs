//! Jobs in the cluster whose Pods and agents are played by hand.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tradewind_api::training_job::JobPhase;
use tradewind_api::{TrainingJob, TrainingJobStatus, conditions, names};

use super::decide::{Decision, Observed, decide};
use crate::controllers::worker::WorkerView;
use crate::serving::AgentView;

/// A job whose world is changed by hand.
pub struct Play {
    /// What is observed.
    pub o: Observed,
}

impl Play {
    pub fn new(spec: &Value) -> Self {
        let mut full = json!({"template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let job: TrainingJob = serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": full,
        }))
        .unwrap();
        let mut play = Self { o: Observed::bare(job) };
        play.o.now = "2026-01-01T00:00:00Z".parse().unwrap();
        play
    }

    pub fn gang(workers: i64) -> Self {
        let checkpoint =
            json!({"path": "out", "pattern": "step-{step}", "to": "s3://b/p/", "secretRef": {"name": "s"}});
        let mut play = Self::new(&json!({"workers": workers, "checkpoint": checkpoint}));
        let first = play.look();
        assert_eq!(first.status.attempt, Some(0));
        play
    }

    /// Decides, and the status is written.
    pub fn look(&mut self) -> Decision {
        let decision = decide(&self.o);
        let mut job = (*self.o.job).clone();
        job.status = Some(decision.status.clone());
        self.o.job = Arc::new(job);
        decision
    }

    pub fn after(&mut self, time: Duration) -> Decision {
        self.o.now = self.o.now.checked_add(time).unwrap();
        self.look()
    }

    pub fn status(&self) -> &TrainingJobStatus {
        self.o.job.status.as_ref().unwrap()
    }

    pub fn reason(&self, type_: &str) -> &str {
        conditions::condition(&self.status().conditions, type_).map_or("", |c| c.reason.as_str())
    }

    /// The Pod of a worker, with what its status says.
    pub fn pod(&mut self, rank: i64, node: Option<&str>, status: &Value) {
        self.change(rank, node, status, &json!({}), &json!({}));
    }

    pub fn change(&mut self, rank: i64, node: Option<&str>, status: &Value, meta: &Value, spec: &Value) {
        let attempt = self.status().attempt.unwrap();
        let name = format!("j-{attempt}-{rank}");
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {names::ATTEMPT: attempt.to_string(), names::RANK: rank.to_string()}},
            "spec": {"containers": [], "nodeName": node},
            "status": status,
        });
        pod["metadata"].as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        self.o.pods.retain(|p| p.metadata.name != pod.metadata.name);
        self.o.pods.push(pod);
    }

    pub fn says(&mut self, rank: usize, phase: &str) {
        self.o.views.resize_with(usize::try_from(self.o.valid.workers).unwrap(), || None);
        let agent = AgentView { phase: phase.to_owned(), ..AgentView::bare() };
        let view = WorkerView { looked: true, agent: Some(agent), ..WorkerView::default() };
        self.o.views[rank] = Some(view);
    }

    pub fn all_run(&mut self) {
        for rank in 0..self.o.valid.workers {
            self.pod(rank, Some(&format!("gpu-{rank}")), &json!({"phase": "Running"}));
            self.says(usize::try_from(rank).unwrap(), "Running");
        }
        assert_eq!(self.look().status.phase, JobPhase::Running, "{}", self.status().message);
    }

    /// The workers that were told to stop are gone, and their last reports read.
    pub fn all_gone(&mut self) {
        let attempt = self.status().attempt.unwrap().to_string();
        self.o.pods.retain(|pod| pod.metadata.labels.as_ref().unwrap()[names::ATTEMPT] != attempt);
        self.o.views.iter_mut().flatten().for_each(|view| view.last_report_read = true);
    }
}

pub fn unschedulable(since: &str) -> Value {
    json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": since},
    ]})
}

pub fn exited(code: i64) -> Value {
    json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}},
    ]})
}

pub fn disrupted(phase: &str, reason: &str) -> Value {
    let mut status = if phase == "Succeeded" { exited(0) } else { json!({"phase": phase}) };
    status["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
    status
}
