use std::time::Duration;

use serde_json::{Value, json};
use tradewind_core::Capacity;

use super::{fixture, key};
use crate::MachineState;
use crate::vast::state::{Memory, Reading, machine, read};

/// actual, intended, cur, next, message
type Row = (Option<&'static str>, &'static str, &'static str, &'static str, Option<&'static str>);

fn row((actual, intended, cur, next, message): Row) -> Value {
    json!({"id": 7, "actual_status": actual, "intended_status": intended, "cur_state": cur, "next_state": next,
        "status_msg": message, "is_bid": true})
}

fn reading(states: Row) -> Reading {
    read(row(states).as_object().unwrap())
}

#[test]
fn every_documented_state_and_every_recorded_trap() {
    use Reading::{FreshAndStopped, Offline, Running, Starting, TakenAway};
    const OK: Option<&str> = Some("success, running busybox/args");
    const LOADED: Option<&str> = Some("Successfully loaded myorg/error-failed-model");
    let unknown = |word: &str| Reading::Unknown(word.to_owned());
    for (reason, states, expected) in [
        ("first seconds", (None, "running", "running", "running", None), Starting),
        ("created", (Some("created"), "running", "running", "running", None), Starting),
        ("loading", (Some("loading"), "running", "running", "running", LOADED), Starting),
        ("fresh, cur_state lags", (Some("loading"), "running", "stopped", "running", None), Starting),
        ("running", (Some("running"), "running", "running", "running", OK), Running),
        ("intended leads by a poll", (Some("running"), "stopped", "running", "stopped", OK), Running),
        ("outbid, status lags", (Some("running"), "stopped", "stopped", "stopped", OK), TakenAway),
        ("outbid, exited", (Some("exited"), "stopped", "stopped", "stopped", OK), TakenAway),
        ("outbid, stopped", (Some("stopped"), "stopped", "stopped", "stopped", OK), TakenAway),
        ("outbid before it ran", (Some("loading"), "stopped", "stopped", "stopped", None), FreshAndStopped),
        ("fresh, looks stopped", (Some("created"), "stopped", "stopped", "stopped", None), FreshAndStopped),
        ("fresh, no status yet", (None, "stopped", "stopped", "stopped", None), FreshAndStopped),
        ("stopped, to be resumed", (Some("stopped"), "running", "running", "running", OK), TakenAway),
        ("exited, stop on its way", (Some("exited"), "stopped", "running", "stopped", OK), TakenAway),
        ("restart after its process ended", (Some("exited"), "running", "running", "running", OK), unknown("exited")),
        ("rebooting", (Some("rebooting"), "running", "running", "running", OK), Starting),
        ("frozen is billed and alive", (Some("frozen"), "frozen", "running", "running", OK), unknown("frozen")),
        ("no heartbeat", (Some("unknown"), "running", "running", "running", OK), unknown("unknown")),
        ("host away", (Some("offline"), "running", "running", "running", OK), Offline),
        ("host away and stopped", (Some("offline"), "stopped", "stopped", "stopped", OK), TakenAway),
        ("a word of the future", (Some("hibernating"), "running", "running", "running", OK), unknown("hibernating")),
        ("no words at all", (None, "", "", "", None), unknown("")),
    ] {
        assert_eq!(reading(states), expected, "{reason}");
    }
}

#[test]
fn dead_boots_keep_the_providers_words() {
    const DEAD: &str = "Error response from daemon: failed to create task: OCI runtime create failed: runc";
    for (states, dead) in [
        ((Some("created"), "stopped", "stopped", "stopped", Some(DEAD)), true),
        ((Some("loading"), "running", "running", "running", Some("manifest unknown: no such tag")), true),
        (
            (
                Some("loading"),
                "running",
                "running",
                "running",
                Some("pull access denied for x, repository does not exist"),
            ),
            true,
        ),
        ((Some("loading"), "running", "running", "running", Some("docker: image x not found")), true),
        ((None, "running", "running", "running", Some("permission denied")), true),
        ((Some("exited"), "running", "running", "running", Some(DEAD)), true),
        ((Some("running"), "running", "running", "running", Some(DEAD)), false),
        ((Some("exited"), "stopped", "stopped", "stopped", Some(DEAD)), false),
        ((Some("loading"), "running", "running", "running", Some("Pulling layer 3 of 9")), false),
    ] {
        let found = reading(states);
        assert_eq!(
            matches!(&found, Reading::BootFailed(words) if states.4.unwrap().starts_with(words.trim_end_matches('…'))),
            dead,
            "{states:?}: {found:?}"
        );
    }
}

#[test]
fn odd_types_are_unknown_and_never_an_end() {
    for odd in [
        json!({"id": 7}),
        json!({"id": 7, "actual_status": 5, "intended_status": [], "cur_state": null}),
        json!({"id": "7", "actual_status": {"a": 1}}),
    ] {
        let (_, machine) = machine(&odd, &Memory::default(), Duration::ZERO).unwrap();
        assert!(matches!(machine.state, MachineState::Unknown { .. }), "{odd}: {machine:?}");
    }
    let (_, long) =
        machine(&json!({"id": 7, "actual_status": "x".repeat(5000)}), &Memory::default(), Duration::ZERO).unwrap();
    assert!(matches!(long.state, MachineState::Unknown { word } if word.len() < 50));
    for no_id in [json!({}), json!([]), json!(null), json!({"id": null}), json!({"id": "a"}), json!({"id": 1.5})] {
        assert!(machine(&no_id, &Memory::default(), Duration::ZERO).is_none(), "{no_id}");
    }
}

#[test]
fn a_fresh_stop_counts_when_it_lasts_or_when_the_machine_ran() {
    let s = Duration::from_secs;
    let state = |memory: &Memory, states, at| machine(&row(states), memory, at).unwrap().1.state;
    let fresh = (Some("loading"), "stopped", "stopped", "stopped", None);
    let starting = (Some("loading"), "running", "running", "running", None);
    let running = (Some("running"), "running", "running", "running", None);

    let memory = Memory::default();
    assert_eq!(state(&memory, fresh, s(0)), MachineState::Starting);
    assert_eq!(state(&memory, fresh, s(1)), MachineState::Starting, "two looks within a second are one look");
    assert_eq!(state(&memory, starting, s(2)), MachineState::Starting);
    assert_eq!(state(&memory, fresh, s(6)), MachineState::Starting, "it was not stopped all the time");
    assert_eq!(state(&memory, fresh, s(11)), MachineState::TakenAway);

    let memory = Memory::default();
    assert_eq!(state(&memory, running, s(0)), MachineState::Running);
    assert_eq!(state(&memory, fresh, s(1)), MachineState::TakenAway);
    memory.keep(|_| false);
    assert_eq!(state(&memory, fresh, s(2)), MachineState::Starting, "what is gone is forgotten");
}

#[test]
fn a_host_is_lost_when_it_stays_away() {
    let s = Duration::from_secs;
    let memory = Memory::default();
    let state = |states, at| machine(&row(states), &memory, at).unwrap().1.state;
    let offline = (Some("offline"), "running", "running", "running", None);
    assert_eq!(state(offline, s(0)), MachineState::Unknown { word: "offline".to_owned() });
    assert_eq!(state(offline, s(29)), MachineState::Unknown { word: "offline".to_owned() });
    assert_eq!(state(offline, s(30)), MachineState::TakenAway);
    assert_eq!(state((Some("running"), "running", "running", "running", None), s(31)), MachineState::Running);
}

#[test]
fn the_official_example_reads_as_documented() {
    let mut example = fixture("instances")["instances"][0].clone();
    let (id, read) = machine(&example, &Memory::default(), Duration::ZERO).unwrap();
    assert_eq!(
        (id, read.id.as_str(), read.key, read.state),
        (312, "312", None, MachineState::Running),
        "a foreign label is no key"
    );
    assert_eq!((read.capacity, read.price_per_hour), (Capacity::OnDemand, Some("0.80".parse().unwrap())));
    assert_eq!(read.created_at.unwrap().as_second(), 1_668_804_745);
    example["label"] = json!(key().to_string());
    example["is_bid"] = json!(true);
    let (_, ours) = machine(&example, &Memory::default(), Duration::ZERO).unwrap();
    assert_eq!((ours.key, ours.capacity), (Some(key()), Capacity::Spot));
}
