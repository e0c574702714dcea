//! What a spec says that no agent could go by, and what stands in our agent's way in a Pod: found before anything is started or rented. Pure.

use std::cell::RefCell;
use std::path::{Component, Path};

use serde_json::Value;
use tradewind_api::training_job::{CheckpointSpec, InCluster};
use tradewind_api::{Reason, TrainingJob};
use tradewind_protocol::{Pattern, expand};

use super::template::{self, AGENT, SCRATCH};
use super::valid::Refused;

/// What the program is told by variables of ours.
const TOLD: [&str; 6] = [
    "TRADEWIND_RUN_ID",
    "TRADEWIND_ATTEMPT",
    "TRADEWIND_RESUME_PATH",
    "TRADEWIND_RESUME_STEP",
    "TRADEWIND_CHECKPOINT_INTERVAL",
    "TRADEWIND_PROGRESS_FILE",
];
/// Variables of ours begin so; the agent keeps all others of that kind from the program.
const OURS: &str = "TRADEWIND_";

/// What is wrong with `checkpoint`.
pub fn checkpoint(job: &TrainingJob) -> Option<Refused> {
    let checkpoint = job.spec.checkpoint.as_ref()?;
    let message = bad_pattern(checkpoint).or_else(|| bad_path(checkpoint)).or_else(|| bad_argument(checkpoint))?;
    Some(Refused { reason: Reason::InvalidCheckpoint, message })
}

fn bad_pattern(checkpoint: &CheckpointSpec) -> Option<String> {
    let pattern = &checkpoint.pattern;
    Some(format!("checkpoint.pattern \"{pattern}\" {}", Pattern::new(pattern).err()?))
}

fn bad_path(checkpoint: &CheckpointSpec) -> Option<String> {
    let path = &checkpoint.path;
    let shown = path.escape_debug();
    let mut parts = Path::new(path).components();
    let problem = if path.contains('\0') {
        "must not contain NUL"
    } else if parts.clone().any(|part| part == Component::ParentDir) {
        "must not go up by ..: name the directory itself"
    } else if parts.next() == Some(Component::RootDir) && parts.next().is_none() {
        "is the whole file system: name a directory of the program's own"
    } else {
        return None;
    };
    Some(format!("checkpoint.path \"{shown}\" {problem}, such as output or /work/output"))
}

/// Names of ours that are none; names that others may set stay as they are, as in Kubernetes.
fn bad_argument(checkpoint: &CheckpointSpec) -> Option<String> {
    checkpoint.resume_args.iter().enumerate().find_map(|(i, argument)| {
        if argument.contains('\0') {
            return Some(format!("checkpoint.resumeArgs[{i}] must not contain NUL"));
        }
        let unknown = RefCell::new(None);
        expand(argument, |name| {
            if name.starts_with(OURS) && !TOLD.contains(&name) {
                unknown.borrow_mut().get_or_insert_with(|| name.to_owned());
            }
            None
        });
        let name = unknown.into_inner()?;
        Some(format!(
            "checkpoint.resumeArgs[{i}] names $({name}), which is not there: $(TRADEWIND_RESUME_PATH) is the checkpoint that was put back, $(TRADEWIND_RESUME_STEP) its step"
        ))
    })
}

/// What of the template collides with our agent, or with what it tells the program.
pub fn conflict(job: &TrainingJob) -> Option<Refused> {
    if !template::needs_agent(job) {
        return None;
    }
    let message = taken_variable(job).or_else(|| {
        // On rented machines there is neither volume nor init container.
        if job.spec.placement.in_cluster == InCluster::Never { None } else { taken_place(job) }
    })?;
    Some(Refused { reason: Reason::TemplateConflict, message })
}

fn entries<'a>(job: &'a TrainingJob, path: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    job.spec.template.pointer(path).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn taken_variable(job: &TrainingJob) -> Option<String> {
    let named = |name: &str| name.starts_with(OURS);
    if let Some((i, entry)) = entries(job, "/spec/containers/0/env").find(|(_, e)| named(text(e, "name"))) {
        let name = text(entry, "name");
        return Some(format!("containers[0].env[{i}] is {name}: names that begin with {OURS} are ours; use another"));
    }
    if job.spec.workers < 2 {
        return None;
    }
    // As the rendezvous reads it: the last one holds, and every worker must be told the same before any Pod has an environment.
    let (i, port) = entries(job, "/spec/containers/0/env").filter(|(_, e)| text(e, "name") == "MASTER_PORT").last()?;
    if port.get("valueFrom").is_some() {
        return Some(format!(
            "containers[0].env[{i}] takes MASTER_PORT from elsewhere (valueFrom): write the port as a value such as \"29500\", or leave it out"
        ));
    }
    let value = text(port, "value");
    (!value.parse::<u16>().is_ok_and(|port| port > 0)).then(|| {
        format!("containers[0].env[{i}] sets MASTER_PORT to \"{value}\": it must be a port such as \"29500\", or be left out")
    })
}

/// Names and places that our agent takes in a Pod.
fn taken_place(job: &TrainingJob) -> Option<String> {
    for (list, what) in [("volumes", "volume"), ("initContainers", "init container"), ("containers", "container")] {
        if let Some((i, _)) = entries(job, &format!("/spec/{list}")).find(|(_, e)| text(e, "name") == AGENT) {
            return Some(format!("{list}[{i}] is called {AGENT}, as the agent's own {what} is: give it another name"));
        }
    }
    let below = |path: &str| Path::new(path).starts_with(SCRATCH);
    if let Some((i, mount)) = entries(job, "/spec/containers/0/volumeMounts").find(|(_, e)| below(text(e, "mountPath")))
    {
        let path = text(mount, "mountPath");
        return Some(format!(
            "containers[0].volumeMounts[{i}] is at {path}, but the agent keeps its own files at {SCRATCH}: mount it elsewhere"
        ));
    }
    let path = &job.spec.checkpoint.as_ref()?.path;
    below(path).then(|| {
        format!(
            "checkpoint.path is {path}, but the agent keeps its own files at {SCRATCH}: save into another directory"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::training_job::valid;

    fn said(container: &Value, pod: &Value, spec: &Value) -> Option<(Reason, String)> {
        let merge = |into: &mut Value, from: &Value| {
            into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
        };
        let mut first = json!({"name": "c", "image": "i", "command": ["x"]});
        merge(&mut first, container);
        let mut inner = json!({"containers": [first]});
        merge(&mut inner, pod);
        let mut full = json!({"template": {"spec": inner}});
        merge(&mut full, spec);
        let job: TrainingJob = serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "j", "namespace": "n"}, "spec": full,
        }))
        .unwrap();
        valid::refusal(&job, &valid::values(&job)).map(|refused| (refused.reason, refused.message))
    }

    fn saves(field: &str, value: &Value) -> Value {
        let mut checkpoint =
            json!({"path": "out", "pattern": "step-{step}", "to": "s3://b/p/", "secretRef": {"name": "s"}});
        checkpoint[field] = value.clone();
        json!({"checkpoint": checkpoint})
    }

    #[test]
    fn checkpoints_that_no_agent_could_go_by_are_refused() {
        for (field, value, expected) in [
            ("pattern", json!("step-["), Some("checkpoint.pattern \"step-[\" is no glob (unclosed character class")),
            ("pattern", json!("{step}-{step}"), Some("must have {step} at most once")),
            ("pattern", json!("a/{step}"), Some("without /")),
            ("pattern", json!("epoch=*-step={step}.ckpt"), None),
            ("path", json!("/"), Some("checkpoint.path \"/\" is the whole file system")),
            ("path", json!("/./"), Some("is the whole file system")),
            ("path", json!("a/../../b"), Some("must not go up by ..")),
            ("path", json!("a\u{0}b"), Some("must not contain NUL")),
            ("path", json!("."), None),
            ("path", json!("/work/a..b"), None),
            (
                "resumeArgs",
                json!(["--from", "$(TRADEWIND_RESUME)"]),
                Some("resumeArgs[1] names $(TRADEWIND_RESUME), which"),
            ),
            ("resumeArgs", json!(["$(TRADEWIND_RESUME_PATH)/$(MINE)", "$$(TRADEWIND_X)"]), None),
        ] {
            match (said(&json!({}), &json!({}), &saves(field, &value)), expected) {
                (Some((reason, message)), Some(part)) => {
                    assert_eq!(reason, Reason::InvalidCheckpoint, "{message}");
                    assert!(message.contains(part), "{value}: {message}");
                }
                (None, None) => {}
                (other, _) => panic!("{value}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_collides_with_our_agent_is_named() {
        let port = |entry: Value| json!({"env": [{"name": "A", "value": "b"}, entry]});
        let none = json!({});
        let several = json!({"workers": 2});
        for (container, pod, part) in [
            (none.clone(), json!({"volumes": [{"name": "tradewind-agent", "emptyDir": {}}]}), "volumes[0] is called"),
            (none.clone(), json!({"initContainers": [{"name": "tradewind-agent"}]}), "initContainers[0] is called"),
            (json!({"name": "tradewind-agent"}), none.clone(), "containers[0] is called"),
            (
                json!({"volumeMounts": [{"name": "v", "mountPath": "/tradewind/x"}]}),
                none.clone(),
                "volumeMounts[0] is at /tradewind/x",
            ),
            (port(json!({"name": "TRADEWIND_POLL_MS", "value": "1"})), none.clone(), "env[1] is TRADEWIND_POLL_MS"),
            (port(json!({"name": "MASTER_PORT", "value": "http"})), none.clone(), "sets MASTER_PORT to \"http\""),
            (
                port(json!({"name": "MASTER_PORT", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}})),
                none.clone(),
                "env[1] takes MASTER_PORT from elsewhere",
            ),
        ] {
            let (reason, message) = said(&container, &pod, &several).unwrap();
            assert_eq!(reason, Reason::TemplateConflict, "{message}");
            assert!(message.contains(part), "{part}: {message}");
            let plain = said(&container, &pod, &none);
            assert_eq!(plain, None, "a plain Pod has no agent");
        }
        let (reason, message) = said(&none, &none, &saves("path", &json!("/tradewind/out"))).unwrap();
        assert_eq!(reason, Reason::TemplateConflict, "{message}");
        let fine = json!({"volumeMounts": [{"name": "v", "mountPath": "/tradewinds"}], "env": [{"name": "MASTER_PORT", "value": "1234"}]});
        assert_eq!(said(&fine, &none, &several), None);
    }
}
