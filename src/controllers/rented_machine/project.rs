//! What the Pod of a rented machine should show. Pure.
//!
//! The Pod never decides anything; it lets `kubectl get pods`, dashboards and quotas see the rental. podIP stays empty on purpose: with
//! one, every Service whose selector matches would send traffic to it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tradewind_api::rented_machine::{MachinePhase, RentedMachineSpec};
use tradewind_api::{Reason, RentedMachineStatus};

use crate::controllers::pod;

/// The status patch (strategic merge) that brings the Pod in line; `None` if it is in line.
///
/// The machine's uid becomes the container's id: by it the Pod's output is found when the machine is long gone.
pub fn patch(
    uid: &str,
    spec: &RentedMachineSpec,
    status: &RentedMachineStatus,
    pod: &Pod,
    now: jiff::Timestamp,
) -> Option<Value> {
    let want = wanted(spec, status);
    let have = pod.status.as_ref();
    let phase = pod::phase(pod);
    if pod::is_over(pod) {
        // The server does not keep a terminal phase terminal: the latch is here.
        return None;
    }
    let condition = |type_: &str| {
        have.and_then(|s| s.conditions.as_ref())
            .and_then(|list| list.iter().find(|c| c.type_ == type_))
            .map(|c| (c.status.as_str(), c.reason.as_deref().unwrap_or("")))
    };
    let message = have.and_then(|s| s.message.as_deref()).unwrap_or("");
    let in_line = phase == want.phase
        && message == want.message
        && pod::machine_uid(pod) == Some(uid)
        && condition("Ready") == Some((want.ready, want.reason))
        && condition("PodScheduled").is_some_and(|(s, _)| s == "True");
    if in_line {
        return None;
    }
    let ready_condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": want.message, "lastTransitionTime": second(now)});
    Some(json!({
        "phase": want.phase,
        "reason": want.reason,
        "message": want.message,
        "conditions": [
            {"type": "PodScheduled", "status": "True", "reason": "Rented", "lastTransitionTime": second(now)},
            {"type": "Initialized", "status": "True", "lastTransitionTime": second(now)},
            ready_condition("ContainersReady", want.ready, want.reason),
            ready_condition("Ready", want.ready, want.reason),
        ],
        "containerStatuses": [{
            "name": spec.workload.container,
            "image": spec.workload.image,
            "imageID": "",
            "containerID": format!("{}{uid}", pod::CONTAINER_ID),
            "ready": want.ready == "True",
            "restartCount": 0,
            "state": want.state(status, now),
        }],
    }))
}

struct Wanted {
    phase: &'static str,
    ready: &'static str,
    reason: &'static str,
    message: String,
    container: Container,
}

enum Container {
    Waiting,
    Running,
    Terminated(i64),
}

impl Wanted {
    fn state(&self, status: &RentedMachineStatus, now: jiff::Timestamp) -> Value {
        let started = status.running_since.as_ref().map_or(now, |t| t.0);
        match self.container {
            Container::Waiting => json!({"waiting": {"reason": self.reason, "message": self.message}}),
            Container::Running => json!({"running": {"startedAt": second(started)}}),
            Container::Terminated(code) => json!({"terminated": {
                "exitCode": code, "reason": self.reason, "message": self.message,
                "startedAt": second(started), "finishedAt": second(now),
            }}),
        }
    }
}

fn second(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn wanted(spec: &RentedMachineSpec, status: &RentedMachineStatus) -> Wanted {
    let place = format!("{} ({})", spec.provider, status.gpu.as_deref().unwrap_or("no GPU"));
    let by_itself =
        [Reason::Finished, Reason::ProgramFailed].iter().any(|r| status.ended.as_deref() == Some(r.as_str()));
    let over = by_itself || status.last_report_read || status.exited.is_some();
    if let (Some(code), true) = (status.exit_code, over) {
        let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
        let message = format!("the program ended with exit code {code} on {place}");
        return Wanted { phase, ready: "False", reason, message, container: Container::Terminated(code) };
    }
    if let Some(ended) = &status.ended {
        let reason = Reason::ALL.iter().find(|r| r.as_str() == ended).map_or("Lost", |r| r.as_str());
        let message = status.ended_message.clone().unwrap_or_default();
        let container = if status.boot.is_some() { Container::Terminated(137) } else { Container::Waiting };
        if status.machine_id.is_none() {
            // Nothing ever ran: the Pod waits for the next machine.
            return Wanted { phase: "Pending", ready: "False", reason, message, container: Container::Waiting };
        }
        return Wanted { phase: "Failed", ready: "False", reason, message, container };
    }
    if status.phase == MachinePhase::Ready && status.agent.as_deref() == Some("Running") {
        let message = format!("runs on {place}");
        return Wanted { phase: "Running", ready: "True", reason: "Running", message, container: Container::Running };
    }
    let message = format!("{place}: {}", status.message);
    Wanted { phase: "Pending", ready: "False", reason: "Renting", message, container: Container::Waiting }
}
