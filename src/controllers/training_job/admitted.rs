//! Pods that the API server has just accepted in a dry run: the next job of the same shape need not ask again.
//!
//! A sweep is hundreds of jobs from one template that differ in names, arguments and values. What the dry run is for are unknown fields and
//! refusals of the namespace, and these are the same for all of them. Should the real Pod be refused all the same, the job says so then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::valid;

/// An answer counts for so long: rules of a namespace change.
const COUNTS_FOR: Duration = Duration::from_mins(1);
/// Most shapes that are kept in mind: more than one crowd of jobs has.
const SHAPES: usize = 1000;

/// Shapes of Pods and until when they count as accepted (monotonic).
#[derive(Debug, Default)]
pub struct Admitted(Mutex<BTreeMap<String, Duration>>);

impl Admitted {
    /// Whether a Pod of this shape was accepted a moment ago.
    pub fn has(&self, shape: &str, now: Duration) -> bool {
        self.lock().get(shape).is_some_and(|until| *until > now)
    }

    /// A Pod of this shape was accepted.
    pub fn remember(&self, shape: String, now: Duration) {
        let mut shapes = self.lock();
        if shapes.len() >= SHAPES {
            shapes.retain(|_, until| *until > now);
        }
        if shapes.len() < SHAPES {
            shapes.insert(shape, now + COUNTS_FOR);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the API server judges a Pod by, as a hash: all but the names of its job, and the texts that only the program reads.
pub fn shape(namespace: &str, pod: &Value) -> String {
    let mut pod = pod.clone();
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("name");
        metadata.remove("ownerReferences");
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(tradewind_api::names::JOB_NAME);
            labels.remove(tradewind_api::names::JOB_UID);
        }
    }
    for list in ["/spec/containers", "/spec/initContainers"] {
        for container in pod.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            without_texts(container);
        }
    }
    valid::hash(&json!([namespace, pod]))
}

/// Texts stay texts: one that is no text is what the API server refuses.
fn without_texts(container: &mut Value) {
    let blank = |text: &mut Value| {
        if text.is_string() {
            *text = json!("");
        }
    };
    for list in ["args", "command"] {
        container.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().for_each(blank);
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        variable.get_mut("value").into_iter().for_each(blank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, container: &Value) -> Value {
        json!({
            "metadata": { "name": name, "labels": { "tradewind.dev/job-name": name, "tradewind.dev/job-uid": name, "team": "a" } },
            "spec": { "containers": [container] },
        })
    }

    #[test]
    fn names_arguments_and_values_make_no_other_shape_and_all_else_does() {
        let run = |rate: &str| json!({ "name": "train", "image": "a:1", "args": ["--rate", rate], "env": [{ "name": "RATE", "value": rate }] });
        let first = shape("n", &pod("a-0", &run("0.1")));
        assert_eq!(first, shape("n", &pod("b-0", &run("0.2"))), "a sweep");
        assert_ne!(first, shape("other", &pod("a-0", &run("0.1"))));
        let changed = [
            ("image", json!("b:1")),
            ("args", json!(["--rate", 1])),
            ("args", json!(["--rate"])),
            ("imagePullPolcy", json!("Always")),
            ("env", json!([{ "name": "RATE", "value": 1 }])),
            ("env", json!([{ "name": "RAT=E", "value": "" }])),
        ];
        for (field, value) in changed {
            let mut container = run("0.1");
            container[field] = value;
            assert_ne!(first, shape("n", &pod("a-0", &container)), "{field}: {}", container[field]);
        }
    }

    #[test]
    fn an_answer_counts_for_a_minute_and_the_memory_is_bounded() {
        let admitted = Admitted::default();
        let at = |seconds| Duration::from_secs(seconds);
        for n in 0..2 * SHAPES {
            admitted.remember(n.to_string(), at(0));
        }
        assert!(admitted.has("0", at(59)) && !admitted.has("0", at(60)) && !admitted.has("1500", at(1)));
        admitted.remember("1500".to_owned(), at(61));
        assert!(admitted.has("1500", at(61)), "old answers make room");
    }
}
