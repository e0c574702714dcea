//! What a kubelet writes into a Pod's status.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tradewind_core::{Clock, SystemClock};

use super::node::HOST;

/// The present second, as the API server takes it.
pub(super) fn now() -> String {
    SystemClock::default().now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// State of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not started yet.
    Waiting { reason: &'static str, message: String },
    /// Since then.
    Running { started: String },
    /// Over.
    Terminated(Ended),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
    pub started: Option<String>,
    pub finished: String,
}

impl State {
    pub(super) fn waiting(reason: &'static str) -> Self {
        Self::Waiting { reason, message: String::new() }
    }

    /// The exit code, if it has ended.
    pub(super) fn code(&self) -> Option<i32> {
        match self {
            Self::Terminated(ended) => Some(ended.code),
            _ => None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    fn as_json(&self, id: &str) -> Value {
        match self {
            Self::Waiting { reason, message } if message.is_empty() => json!({ "waiting": { "reason": reason } }),
            Self::Waiting { reason, message } => json!({ "waiting": { "reason": reason, "message": message } }),
            Self::Running { started } => json!({ "running": { "startedAt": started } }),
            Self::Terminated(ended) => {
                let mut state = json!({
                    "exitCode": ended.code, "reason": ended.reason, "finishedAt": ended.finished, "containerID": id,
                });
                if let Some(started) = &ended.started {
                    state["startedAt"] = started.as_str().into();
                }
                if !ended.message.is_empty() {
                    state["message"] = ended.message.as_str().into();
                }
                json!({ "terminated": state })
            }
        }
    }
}

/// A container as the status shows it.
pub(super) struct Shown<'a> {
    pub name: &'a str,
    pub image: &'a str,
    pub is_init: bool,
    pub state: &'a State,
}

/// What is known of a Pod beside its containers.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// Why it is over, if not for its containers: reason and message.
    pub failed: Option<(&'static str, String)>,
    /// It is being stopped: what has not started will not.
    pub is_stopped: bool,
    /// When the node took it on.
    pub started: String,
    /// Once it has one.
    pub address: Option<IpAddr>,
    /// Since when each condition has been what it is.
    pub since: BTreeMap<&'static str, (bool, String)>,
}

impl Status {
    /// `Pending`, `Running`, `Succeeded` or `Failed`, with `restartPolicy: Never`.
    pub(super) fn phase(&self, containers: &[Shown<'_>]) -> &'static str {
        let (init, main): (Vec<_>, Vec<_>) = containers.iter().partition(|c| c.is_init);
        let failed = |c: &&&Shown<'_>| c.state.code().is_some_and(|code| code != 0);
        let runs = containers.iter().any(|c| c.state.is_running());
        if self.failed.is_some() && !runs {
            return "Failed";
        }
        if init.iter().any(|c| failed(&c)) {
            return "Failed";
        }
        let all_over = main.iter().all(|c| c.state.code().is_some());
        if all_over {
            return if main.iter().any(|c| failed(&c)) { "Failed" } else { "Succeeded" };
        }
        if self.is_stopped && !runs {
            return "Failed";
        }
        if main.iter().any(|c| matches!(c.state, State::Waiting { .. })) { "Pending" } else { "Running" }
    }

    /// The patch (strategic merge) that makes the API server's status this one. Conditions of others stay.
    pub(super) fn patch(&mut self, pod: &Pod, containers: &[Shown<'_>]) -> Value {
        let phase = self.phase(containers);
        let is_over = matches!(phase, "Succeeded" | "Failed");
        let of = |init: bool| -> Vec<Value> {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            containers.iter().filter(|c| c.is_init == init).map(|c| container(uid, c)).collect()
        };
        let unready: Vec<&str> =
            containers.iter().filter(|c| !c.is_init && !c.state.is_running()).map(|c| c.name).collect();
        let uninitialised: Vec<&str> =
            containers.iter().filter(|c| c.is_init && c.state.code() != Some(0)).map(|c| c.name).collect();
        let not_ready = match phase {
            "Succeeded" => ("PodCompleted", String::new()),
            "Failed" => ("PodFailed", String::new()),
            _ => ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
        };
        let is_ready = unready.is_empty() && !is_over;
        let not_initialised =
            ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", uninitialised.join(" ")));
        let conditions = vec![
            self.condition("PodReadyToStartContainers", self.address.is_some() && !is_over, None),
            self.condition("Initialized", uninitialised.is_empty(), Some(&not_initialised)),
            self.condition("Ready", is_ready, Some(&not_ready)),
            self.condition("ContainersReady", is_ready, Some(&not_ready)),
        ];
        let mut status = json!({
            "phase": phase, "conditions": conditions, "startTime": self.started, "observedGeneration": pod.metadata.generation,
            "hostIP": HOST.to_string(), "hostIPs": [{ "ip": HOST.to_string() }], "containerStatuses": of(false),
        });
        let init = of(true);
        if !init.is_empty() {
            status["initContainerStatuses"] = init.into();
        }
        if let Some(address) = self.address {
            status["podIP"] = address.to_string().into();
            status["podIPs"] = json!([{ "ip": address.to_string() }]);
        }
        if let Some((reason, message)) = &self.failed {
            status["reason"] = (*reason).into();
            status["message"] = message.as_str().into();
        }
        json!({ "metadata": { "uid": pod.metadata.uid }, "status": status })
    }

    fn condition(&mut self, name: &'static str, holds: bool, why_not: Option<&(&str, String)>) -> Value {
        let since = self.since.entry(name).or_insert_with(|| (holds, now()));
        if since.0 != holds {
            *since = (holds, now());
        }
        let status = if holds { "True" } else { "False" };
        let mut condition =
            json!({ "type": name, "status": status, "lastTransitionTime": since.1, "lastProbeTime": null });
        // A strategic merge keeps what is not named.
        let (reason, message) = why_not.filter(|_| !holds).map_or((Value::Null, Value::Null), |(reason, message)| {
            ((*reason).into(), if message.is_empty() { Value::Null } else { message.as_str().into() })
        });
        condition["reason"] = reason;
        condition["message"] = message;
        condition
    }
}

fn container(uid: &str, of: &Shown<'_>) -> Value {
    let id = format!("fake://{uid}-{}", of.name);
    let has_started = !matches!(of.state, State::Waiting { .. });
    let is_ready = if of.is_init { of.state.code() == Some(0) } else { of.state.is_running() };
    json!({
        "name": of.name, "image": of.image, "imageID": if has_started { of.image } else { "" }, "restartCount": 0,
        "ready": is_ready, "started": of.state.is_running(), "containerID": if has_started { id.as_str() } else { "" },
        "lastState": {}, "state": of.state.as_json(&id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> State {
        State::Terminated(Ended { code, reason: "x", message: String::new(), started: None, finished: now() })
    }

    fn phase<'a>(status: &Status, init: &[&'a State], main: &[&'a State]) -> &'static str {
        let shown = |is_init| move |state: &&'a State| Shown { name: "c", image: "i", is_init, state };
        let all: Vec<Shown<'_>> = init.iter().map(shown(true)).chain(main.iter().map(shown(false))).collect();
        status.phase(&all)
    }

    #[test]
    fn phases_follow_containers() {
        let status = Status::default();
        let (waiting, running) = (State::waiting("x"), State::Running { started: now() });
        assert_eq!(phase(&status, &[], &[&waiting]), "Pending");
        assert_eq!(phase(&status, &[&running], &[&waiting]), "Pending");
        assert_eq!(phase(&status, &[&ended(1)], &[&waiting]), "Failed");
        assert_eq!(phase(&status, &[&ended(0)], &[&running, &waiting]), "Pending");
        assert_eq!(phase(&status, &[&ended(0)], &[&running, &ended(1)]), "Running");
        assert_eq!(phase(&status, &[&ended(0)], &[&ended(0), &ended(1)]), "Failed");
        assert_eq!(phase(&status, &[], &[&ended(0), &ended(0)]), "Succeeded");
        let stopped = Status { is_stopped: true, ..Status::default() };
        assert_eq!(phase(&stopped, &[], &[&waiting]), "Failed");
        assert_eq!(phase(&stopped, &[], &[&ended(0)]), "Succeeded");
        let late = Status { failed: Some(("DeadlineExceeded", String::new())), ..Status::default() };
        assert_eq!(phase(&late, &[], &[&running]), "Running");
        assert_eq!(phase(&late, &[], &[&ended(0)]), "Failed");
    }
}
