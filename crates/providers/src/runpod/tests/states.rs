use std::collections::BTreeSet;

use serde_json::{Value, json};
use tradewind_core::Capacity;

use super::{changed, key, pod};
use crate::runpod::state::Memory;
use crate::{Machine, MachineState};

fn machine(memory: &Memory, changes: Value) -> Machine {
    memory.machine(&changed(pod("p1"), &changes)).unwrap().machine
}

#[test]
fn running_is_believed_when_something_runs() {
    use MachineState::{Running, Starting, TakenAway};
    let unknown = |word: &str| MachineState::Unknown { word: word.to_owned() };
    for (why, changes, expected) in [
        ("made", json!({"status": "PROVISIONING", "runtime": null}), Starting),
        ("pulls", json!({"status": "STARTING", "runtime": null}), Starting),
        ("right after creation", json!({"status": "RUNNING", "runtime": null}), Starting),
        ("the field is missing", json!({"runtime": false}), Starting),
        ("runs", json!({}), Running),
        ("runs, without figures", json!({"runtime": {}}), Running),
        ("stopped", json!({"status": "EXITED", "runtime": null, "cost": 0.0}), TakenAway),
        ("a word of the future", json!({"status": "HIBERNATING"}), unknown("HIBERNATING")),
        ("lower case", json!({"status": "running"}), unknown("running")),
        ("no word", json!({"status": null}), unknown("")),
        ("no text", json!({"status": 7}), unknown("")),
    ] {
        assert_eq!(machine(&Memory::default(), changes).state, expected, "{why}");
    }
    let long = machine(&Memory::default(), json!({"status": "x".repeat(5000)})).state;
    assert!(matches!(long, MachineState::Unknown { word } if word.len() < 50));
}

#[test]
fn a_stop_is_a_loss_for_who_ran_and_a_failed_boot_for_who_never_did() {
    let memory = Memory::default();
    let starting = || machine(&memory, json!({"status": "RUNNING", "runtime": null})).state;
    let running = || machine(&memory, json!({})).state;
    let state = |status: &str| machine(&memory, json!({"status": status, "runtime": null})).state;
    assert_eq!(state("EXITED"), MachineState::TakenAway, "not seen before");
    assert!(matches!(state("ERROR"), MachineState::BootFailed { .. }));
    assert_eq!(starting(), MachineState::Starting);
    let MachineState::BootFailed { message } = state("EXITED") else { panic!("its image could not be pulled") };
    assert!(message.contains("image"), "{message}");
    assert_eq!(running(), MachineState::Running);
    assert_eq!(starting(), MachineState::Starting, "no telemetry for a moment");
    assert_eq!(state("EXITED"), MachineState::TakenAway);
    assert_eq!(state("ERROR"), MachineState::TakenAway);
    memory.keep(&BTreeSet::new());
    assert!(matches!(state("ERROR"), MachineState::BootFailed { .. }), "what is gone is forgotten");
}

#[test]
fn a_pod_is_ours_by_its_name_or_by_its_marker() {
    let ours = key().to_string();
    let other = ours.replace("-0-", "-1-");
    for (why, changes, expected) in [
        ("somebody's", json!({}), None),
        ("by name", json!({"name": ours}), Some(&ours)),
        ("renamed", json!({"env": {"TRADEWIND_ORDER": ours}}), Some(&ours)),
        ("both", json!({"name": ours, "env": {"TRADEWIND_ORDER": other}}), Some(&ours)),
        ("no texts", json!({"name": 7, "env": {"TRADEWIND_ORDER": 7}}), None),
        ("no environment", json!({"env": null}), None),
        ("in a cluster", json!({"name": ours, "cluster": {"id": "c", "rank": 0}}), None),
        ("in none", json!({"name": ours, "cluster": null}), Some(&ours)),
    ] {
        assert_eq!(machine(&Memory::default(), changes).key.map(|k| k.to_string()).as_ref(), expected, "{why}");
    }
}

#[test]
fn what_else_a_pod_tells() {
    let read = machine(&Memory::default(), json!({}));
    assert_eq!((read.id.as_str(), read.capacity), ("p1", Capacity::OnDemand));
    assert_eq!(read.price_per_hour, Some("0.69".parse().unwrap()));
    assert_eq!(read.created_at.unwrap().to_string(), "2026-11-21T12:00:00.439Z");
    let odd = machine(&Memory::default(), json!({"cloud": "COMMUNITY", "cost": 0.0, "createdAt": "yesterday"}));
    assert_eq!((odd.capacity, odd.price_per_hour, odd.created_at), (Capacity::Spot, None, None));
    assert_eq!(machine(&Memory::default(), json!({"cost": 0.693})).price_per_hour, None, "its disk is in it");
    let memory = Memory::default();
    assert!(memory.machine(&changed(pod("p1"), &json!({"status": "TERMINATED"}))).unwrap().deleted);
    for no_id in [
        json!({}),
        json!([]),
        json!(null),
        json!({"id": null}),
        json!({"id": ""}),
        json!({"id": "a/b"}),
        json!({"id": 5}),
    ] {
        assert!(memory.machine(&no_id).is_none(), "{no_id}");
    }
}
