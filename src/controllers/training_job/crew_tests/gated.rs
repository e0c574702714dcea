//! A Pod that a scheduling gate holds, where it would be rented for.

use super::super::decide::wants_plan;
use super::*;

/// A machine for a job.
fn rent() -> Choice {
    Choice::Rent(Box::new(Rent {
        provider: "p".to_owned(),
        offers: Vec::new(),
        why: "at $0.10/h".to_owned(),
        cost: CostBreakdown::default(),
        finish_in_s: 0,
        others: Vec::new(),
        rejected: Vec::new(),
        first: Offer { price_per_hour: "0.10".parse().unwrap(), ..test_machine::offer("1") },
        image_bytes: None,
        prospect: Prospect::Unknown,
        save_every_s: None,
    }))
}

/// The Pod of a job that waits to be rented for.
fn for_renting(play: &mut Play, gates: &Value) {
    let labels = json!({"labels": {names::ATTEMPT: "0"}});
    let spec = json!({"schedulerName": names::NO_SCHEDULER, "schedulingGates": gates});
    play.change(0, None, &json!({"phase": "Pending"}), &labels, &spec);
}

#[test]
fn nothing_is_rented_for_a_pod_behind_a_gate() {
    for (what, priced) in [("placement.inCluster is Never", false), ("the market is cheaper than the cluster", true)] {
        let mut play = Play::new(&json!({"gpu": {"count": 1}}));
        play.look();
        if priced {
            play.o.valid.priced("0.50".parse::<Money>().unwrap());
        }
        play.o.valid.in_cluster = InCluster::Never;
        for_renting(&mut play, &json!([{"name": "kueue.x-k8s.io/admission"}]));
        if play.status().attempt.is_none() {
            play.look();
        }
        assert!(!wants_plan(&play.o), "{what}: no offers are spoken of");
        play.o.choice = Some(rent());
        assert_eq!(play.look().step, Step::Rest, "{what}");
        assert_eq!((play.status().phase, play.reason("Placed")), (JobPhase::Waiting, "Gated"), "{what}");
        assert!(play.status().message.contains("kueue.x-k8s.io/admission"), "{what}");

        for_renting(&mut play, &Value::Null);
        assert!(wants_plan(&play.o), "{what}");
        assert!(matches!(play.look().step, Step::Claim { .. }), "{what}: the gate is gone");
    }
}

#[test]
fn a_pod_behind_a_gate_is_not_made_again_when_the_market_becomes_dear() {
    let mut play = Play::new(&json!({"gpu": {"count": 1}}));
    play.look();
    play.o.valid.priced("0.05".parse::<Money>().unwrap());
    play.o.valid.in_cluster = InCluster::Never;
    for_renting(&mut play, &json!([{"name": "g"}]));
    play.o.choice = Some(rent());
    assert_eq!((play.look().step, play.reason("Placed")), (Step::Rest, "Gated"));
}
