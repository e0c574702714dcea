//! What `decide` answers, case by case. Each case carries the sentence that is printed when it fails.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tradewind_api::rented_machine::{
    ChosenOffer, Claim, JobRef, MachinePhase, OrderOutcome, OrderStatus, RentedMachineSpec, StopRequest, Workload,
};
use tradewind_api::training_job::CheckpointStatus;
use tradewind_api::{Reason, RentedMachineStatus};
use tradewind_core::{Capacity, InstallId, Money, Offer, OrderKey};
use tradewind_protocol::{Exit, HostFacts};
use tradewind_providers::{Machine, MachineState, Refusal};

use super::decide::{AccountView, Decision, JobView, Limits, Observed, PodView, Step, decide};
use crate::serving::{AgentView, Served};
use crate::test_machine;

const UID: &str = "0b5f4b1e-8c1c-4b52-8f52-5f0d8a6c9a11";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) fn offer(id: &str) -> Offer {
    Offer {
        price_per_hour: Money::from_micros(360_000),
        region: "NO".into(),
        host: "h".into(),
        disk_gib: 100,
        storage_price_per_gib_hour: Money::from_micros(36),
        ..test_machine::offer(id)
    }
}

fn key(number: u32) -> OrderKey {
    OrderKey::new(&InstallId::derive("a", "r"), UID, number, at(1000))
}

fn order(number: u32, outcome: OrderOutcome, id: Option<&str>) -> OrderStatus {
    OrderStatus {
        key: key(number).to_string(),
        offer: i64::from(number),
        at: MicroTime(at(1000)),
        outcome,
        machine_id: id.map(str::to_owned),
        reason: None,
        message: None,
        leftover: false,
    }
}

fn seen(id: &str, number: u32, state: MachineState) -> Machine {
    Machine {
        id: id.into(),
        key: Some(key(number)),
        state,
        capacity: Capacity::Spot,
        price_per_hour: None,
        created_at: None,
    }
}

/// A claimed machine with two offers, its Pod bound, its mailbox prepared, an account that was listed and shows nothing.
fn claimed() -> Observed {
    let offers = [offer("o1"), offer("o2")];
    let spec = RentedMachineSpec {
        provider: "p".into(),
        job: JobRef { namespace: "n".into(), name: "j".into(), uid: "ju".into() },
        claim: Claim { pod_namespace: "n".into(), pod_name: "j-0".into(), pod_uid: "pu".into() },
        run_id: "r".into(),
        attempt: 0,
        offers: offers
            .iter()
            .map(|o| ChosenOffer {
                id: o.id.clone(),
                offer: serde_json::to_value(o).unwrap(),
                price_cap: o.price_per_hour,
                reserve_per_hour: o.price_per_hour,
                start_deadline_s: None,
            })
            .collect(),
        workload: Workload { disk_gib: 10, ..Workload::default() },
        checkpoint: None,
        budget_per_hour: None,
        start_deadline_s: 600,
        image_bytes: None,
        stall_timeout_s: 1800,
        stop: None,
    };
    Observed {
        now: at(1001),
        uid: UID.into(),
        claimed_at: Some(at(990)),
        generation: 1,
        deleting: false,
        has_finalizer: true,
        offers: offers.into_iter().map(Some).collect(),
        spec,
        status: RentedMachineStatus::default(),
        pod: PodView::Ours,
        job: JobView::Alive { terminal: false, superseded: false, settled: false },
        account: Some(AccountView {
            trouble: None,
            listed_at: Some(at(1000)),
            listed_before: Some(at(990)),
            machines: Vec::new(),
            rent_limit: Duration::from_mins(1),
            visibility: Duration::from_secs(30),
            starting_costs: false,
            bids: true,
        }),
        served: Some(Served { prepared: true, looked: true, heard_at: Some(at(1000)), ..Served::default() }),
        gone_looks: 0,
        leftovers_gone: Vec::new(),
        end_accepted: None,
        ran_at: None,
        host_proven: true,
        cordoned: false,
        closing: None,
        booked: true,
        limits: Limits {
            poll: Duration::from_secs(10),
            silent_after: Duration::from_mins(10),
            call_within: Duration::from_secs(5),
        },
    }
}

/// The same, rented as machine 7 at 1000.
fn rented() -> Observed {
    let mut o = claimed();
    o.status.orders = vec![order(0, OrderOutcome::Rented, Some("7"))];
    o.status.machine_id = Some("7".into());
    o.status.rented_at = Some(MicroTime(at(1000)));
    o.status.phase = MachinePhase::Booting;
    o.account.as_mut().unwrap().machines = vec![seen("7", 0, MachineState::Running)];
    o
}

#[test]
fn each_offer_has_its_own_start_deadline() {
    let mut o = rented();
    o.spec.offers[0].start_deadline_s = Some(1200);
    o.spec.offers[1].start_deadline_s = Some(60);
    o.spec.image_bytes = Some(12_340_000_000);
    o.now = at(2200);
    assert_eq!(decide(&o).status.ended, None, "the other offer's deadline says nothing");
    o.now = at(2201);
    let status = decide(&o).status;
    assert_eq!(status.ended.as_deref(), Some("AgentNotStarted"));
    let message = status.ended_message.unwrap();
    assert_eq!(message, "the machine did not start our agent within 1200 s (image of 12.4 GB)");
    o.spec.offers[0].start_deadline_s = None;
    o.now = at(1601);
    assert!(decide(&o).status.ended.is_some(), "a machine of an older version goes by its spec");
}

fn check(sentence: &str, change: impl FnOnce(&mut Observed), base: fn() -> Observed, want: &Step) -> Decision {
    let mut observed = base();
    change(&mut observed);
    let decision = decide(&observed);
    assert_eq!(decision.step, *want, "{sentence}; status: {:?}", decision.status);
    decision
}

#[test]
fn nothing_is_ordered_before_everything_is_in_place() {
    let order = Step::Order { offer: 0, number: 0 };
    check("all in place: order", |_| {}, claimed, &order);
    check("no finaliser: put it on first", |o| o.has_finalizer = false, claimed, &Step::AddFinalizer);
    check("no mailbox: prepare it first", |o| o.served = Some(Served::default()), claimed, &Step::PrepareMailbox);
    check("Pod not bound: wait", |o| o.pod = PodView::Unbound, claimed, &Step::Rest);
    check("account never listed: wait", |o| o.account.as_mut().unwrap().listed_at = None, claimed, &Step::Rest);
    check("account in trouble: wait", |o| o.account.as_mut().unwrap().trouble = Some("x".into()), claimed, &Step::Rest);
    check("no account: wait", |o| o.account = None, claimed, &Step::Rest);
    let stranger = |o: &mut Observed| o.account.as_mut().unwrap().machines = vec![seen("9", 4, MachineState::Running)];
    check("our key on a machine that no order knows: never rent beside it", stranger, claimed, &Step::Rest);
}

#[test]
fn a_claim_that_nobody_needs_costs_nothing_and_goes() {
    for pod in [PodView::Absent, PodView::Elsewhere] {
        let mut o = claimed();
        o.pod = pod;
        o.job = JobView::Alive { terminal: false, superseded: false, settled: true };
        let decision = decide(&o);
        assert_eq!(decision.step, Step::DeleteSelf, "{pod:?}");
        assert_eq!(decision.status.phase, MachinePhase::Gone);
        assert!(decision.status.orders.is_empty());
    }
}

#[test]
fn an_open_order_is_looked_up_and_never_repeated() {
    let open = |o: &mut Observed| o.status.orders = vec![order(0, OrderOutcome::Open, None)];
    let waiting = check("open: wait for certainty", open, claimed, &Step::Rest);
    assert_eq!(waiting.status.phase, MachinePhase::Unknown);
    let found = check(
        "found under its key: it is ours",
        |o| {
            open(o);
            o.account.as_mut().unwrap().machines = vec![seen("7", 0, MachineState::Starting)];
        },
        claimed,
        &Step::Rest,
    );
    assert_eq!(found.status.machine_id.as_deref(), Some("7"));
    assert_eq!(found.status.orders[0].outcome, OrderOutcome::Rented);
    check(
        "a list asked for before the window is over proves nothing",
        |o| {
            open(o);
            o.account.as_mut().unwrap().listed_at = Some(at(1000 + 5 + 60 + 30));
        },
        claimed,
        &Step::Rest,
    );
    check(
        "certain that nothing was bought: the next offer",
        |o| {
            open(o);
            o.account.as_mut().unwrap().listed_at = Some(at(1000 + 5 + 60 + 30 + 1));
        },
        claimed,
        &Step::Order { offer: 1, number: 1 },
    );
}

#[test]
fn an_unknown_order_blocks_the_end() {
    let mut o = claimed();
    o.status.orders = vec![order(0, OrderOutcome::Open, None)];
    o.deleting = true;
    o.job = JobView::Gone;
    let decision = decide(&o);
    assert_eq!(decision.step, Step::Rest);
    assert_eq!(decision.status.phase, MachinePhase::Unknown);
}

#[test]
fn what_a_refusal_left_behind_is_ended_first() {
    let leftover = |o: &mut Observed| {
        let mut refused = order(0, OrderOutcome::Refused, Some("8"));
        refused.leftover = true;
        o.status.orders = vec![refused];
    };
    check("leftover: end it", leftover, claimed, &Step::End(vec!["8".into()]));
    check(
        "leftover gone: the next offer",
        |o| {
            leftover(o);
            o.leftovers_gone = vec!["8".into()];
        },
        claimed,
        &Step::Order { offer: 1, number: 1 },
    );
}

#[test]
fn every_offer_refused_ends_without_a_machine() {
    let mut o = claimed();
    o.status.orders = vec![order(0, OrderOutcome::Refused, None), order(1, OrderOutcome::Refused, None)];
    let decision = decide(&o);
    assert_eq!(decision.status.ended.as_deref(), Some(Reason::OffersRefused.as_str()));
    assert_eq!(decision.status.phase, MachinePhase::Gone);
}

#[test]
fn an_order_that_a_rate_limit_held_back_uses_up_no_offer() {
    let held_back = |number: u32, second: i64| OrderStatus {
        at: MicroTime(at(second)),
        offer: 0,
        reason: Some(Refusal::RateLimited.as_str().into()),
        ..order(number, OrderOutcome::Refused, None)
    };
    let now = claimed().now.as_second();
    let soon = |o: &mut Observed| o.status.orders = vec![held_back(0, now - 3)];
    check("it waits", soon, claimed, &Step::Rest);
    let later = |o: &mut Observed| o.status.orders = vec![held_back(0, now - 30)];
    check("then the same offer is ordered under another key", later, claimed, &Step::Order { offer: 0, number: 1 });
    let often = |o: &mut Observed| o.status.orders = (0..8).map(|n| held_back(n, now - 30)).collect();
    check("not for ever", often, claimed, &Step::Order { offer: 1, number: 8 });
}

#[test]
fn a_machine_is_followed_and_unknown_words_mean_nothing() {
    for state in [MachineState::Starting, MachineState::Running, MachineState::Unknown { word: "hibernating".into() }] {
        let told = format!("{state:?}");
        let decision =
            check(&told, |o| o.account.as_mut().unwrap().machines = vec![seen("7", 0, state)], rented, &Step::Rest);
        assert_eq!(decision.status.ended, None, "{told}");
    }
    let lost = check(
        "taken away: end it",
        |o| o.account.as_mut().unwrap().machines = vec![seen("7", 0, MachineState::TakenAway)],
        rented,
        &Step::End(vec!["7".into()]),
    );
    assert_eq!(lost.status.ended.as_deref(), Some(Reason::Preempted.as_str()));
}

#[test]
fn one_list_without_the_machine_proves_nothing() {
    let gone_from_list = |o: &mut Observed| {
        let account = o.account.as_mut().unwrap();
        account.machines.clear();
        account.listed_at = Some(at(1100));
        o.now = at(1101);
    };
    let first = check("missing once: wait", gone_from_list, rented, &Step::Rest);
    assert!(first.status.missing_since.is_some());
    let again = check(
        "missing in two lists: its end is asked for and confirmed by describe",
        |o| {
            gone_from_list(o);
            o.status.missing_since = first.status.missing_since.clone();
            let account = o.account.as_mut().unwrap();
            account.listed_before = Some(at(1102));
            account.listed_at = Some(at(1112));
        },
        rented,
        &Step::End(vec!["7".into()]),
    );
    assert_eq!(again.status.ended.as_deref(), Some(Reason::Preempted.as_str()));
}

#[test]
fn the_finaliser_goes_only_when_gone_is_seen_twice_and_settled() {
    let ended = |o: &mut Observed| {
        o.status.ended = Some("Preempted".into());
        o.status.last_report_read = true;
        o.deleting = true;
    };
    let end = Step::End(vec!["7".into()]);
    check("not seen gone: go on ending", ended, rented, &end);
    check(
        "gone once: look again",
        |o| {
            ended(o);
            o.gone_looks = 1;
        },
        rented,
        &end,
    );
    let gone = check(
        "gone, not settled: wait",
        |o| {
            ended(o);
            o.gone_looks = 2;
        },
        rented,
        &Step::Rest,
    );
    assert_eq!(gone.status.phase, MachinePhase::Gone);
    check(
        "gone and settled: let go",
        |o| {
            ended(o);
            o.gone_looks = 2;
            o.job = JobView::Alive { terminal: false, superseded: false, settled: true };
        },
        rented,
        &Step::Release,
    );
    check(
        "gone and settled, but not in the Provider's books: wait",
        |o| {
            ended(o);
            o.gone_looks = 2;
            o.job = JobView::Gone;
            o.booked = false;
        },
        rented,
        &Step::Rest,
    );
    check(
        "gone, last report not read: wait",
        |o| {
            ended(o);
            o.gone_looks = 2;
            o.status.last_report_read = false;
            o.job = JobView::Gone;
        },
        rented,
        &Step::Rest,
    );
}

#[test]
fn an_account_that_is_being_deleted_gives_up_claims_and_keeps_machines() {
    let close = |o: &mut Observed| o.closing = Some("Provider p is being deleted".into());
    let claim = check("a claim is given up, and settled as nothing was rented", close, claimed, &Step::Rest);
    assert_eq!((claim.status.phase, claim.status.ended.as_deref()), (MachinePhase::Gone, Some("NoProvider")));
    let unbound = |o: &mut Observed| {
        close(o);
        o.pod = PodView::Unbound;
        o.job = JobView::Alive { terminal: false, superseded: false, settled: true };
    };
    check("an unbound one too", unbound, claimed, &Step::DeleteSelf);
    let open = |o: &mut Observed| {
        close(o);
        o.status.orders = vec![order(0, OrderOutcome::Open, None)];
    };
    let unknown = check("an order of unknown outcome is looked up", open, claimed, &Step::Rest);
    assert_eq!(unknown.status.phase, MachinePhase::Unknown);
    let machine = check("a machine goes on", close, rented, &Step::Rest);
    assert_eq!((machine.status.phase, machine.status.ended), (MachinePhase::Booting, None));
}

#[test]
fn cost_is_compute_while_running_and_disk_all_the_time() {
    let mut o = rented();
    o.now = at(1000 + 3600);
    o.status.running_since = Some(MicroTime(at(1000 + 600)));
    o.status.running_until = Some(MicroTime(at(1000 + 1800)));
    let seen_as = |o: &mut Observed, state| o.account.as_mut().unwrap().machines = vec![seen("7", 0, state)];
    seen_as(&mut o, MachineState::TakenAway);
    let cost = decide(&o).status.cost.unwrap();
    // Compute $0.36/h for 20 minutes, 10 GiB at 36 micro-dollars an hour for an hour.
    assert_eq!(cost, Money::from_micros(120_000 + 360));
    seen_as(&mut o, MachineState::Running);
    let cost = decide(&o).status.cost.unwrap();
    // Won back by itself: it is paid for again. The break in between is not known.
    assert_eq!(cost, Money::from_micros(300_000 + 360));
}

#[test]
fn a_host_that_never_starts_the_agent_is_given_up() {
    let late = check("late", |o| o.now = at(1601), rented, &Step::End(vec!["7".into()]));
    assert_eq!(late.status.ended.as_deref(), Some(Reason::AgentNotStarted.as_str()));
    check("in time", |o| o.now = at(1599), rented, &Step::Rest);
}

/// An agent whose program ended with this code.
fn exited(code: i32, told_to_stop: bool) -> AgentView {
    AgentView {
        phase: "Exited".into(),
        exit: Some(Exit { code, told_to_stop, at: at(1100), log_tail: "boom".into(), oom_killed: None }),
        finished: true,
        ..AgentView::bare()
    }
}

#[test]
fn a_failure_is_quick_only_where_the_host_may_be_to_blame() {
    let checkpoint = CheckpointStatus { seq: 1, ..CheckpointStatus::default() };
    type Change = fn(&mut Observed, CheckpointStatus);
    let cases: [(&str, i32, bool, bool, Change); 8] = [
        ("on a host that nobody knows", 1, false, true, |_, _| {}),
        ("on one that has worked", 1, false, false, |o, _| o.host_proven = true),
        ("after a checkpoint", 1, false, false, |o, c| o.status.checkpoint = Some(c)),
        ("after more than five minutes", 1, false, false, |o, _| o.now = at(1361)),
        ("long after its rental, its start unseen", 1, false, false, |o, _| {
            o.status.program_since = None;
            o.now = at(1901);
        }),
        ("told to stop", 1, true, false, |_, _| {}),
        ("killed", 137, false, false, |_, _| {}),
        ("with success", 0, false, false, |_, _| {}),
    ];
    for (what, code, told_to_stop, quick, change) in cases {
        let mut o = rented();
        o.host_proven = false;
        o.status.boot = Some("b".into());
        o.status.program_since = Some(Time(at(1060)));
        o.now = at(1360);
        o.served.as_mut().unwrap().agent = Some(exited(code, told_to_stop));
        change(&mut o, checkpoint.clone());
        let status = decide(&o).status;
        assert_eq!(status.quick_failure, quick, "{what}");
        if quick {
            assert_eq!(status.ended.as_deref(), Some("ProgramFailed"));
            o.status = status;
            o.now = at(5000);
            assert!(decide(&o).status.quick_failure, "what was found out stays so, however long the end takes");
            o.status.checkpoint = Some(checkpoint.clone());
            assert!(!decide(&o).status.quick_failure, "unless its last report brings a checkpoint in");
        }
    }
}

/// A machine on which a program has run for an hour and failed, its last save committed.
fn failed() -> Observed {
    let mut o = rented();
    o.host_proven = true;
    o.status.boot = Some("b".into());
    o.status.attempt = Some(0);
    o.status.program_since = Some(Time(at(1060)));
    o.now = at(1360);
    let served = o.served.as_mut().unwrap();
    served.agent = Some(exited(1, false));
    served.answered = true;
    o
}

#[test]
fn a_machine_whose_program_failed_waits_for_the_job_for_a_while() {
    let status = decide(&failed()).status;
    let exit = status.exited.clone().unwrap();
    assert_eq!((exit.reason.as_str(), exit.saved, status.ended.as_deref()), ("ProgramFailed", true, None));
    type Change = fn(&mut Observed);
    let cases: [(&str, Option<&str>, Change); 8] = [
        ("two minutes less a second", None, |o| o.now = at(1479)),
        ("two minutes", Some("ProgramFailed"), |o| o.now = at(1480)),
        ("its last save is not home yet", None, |o| o.served.as_mut().unwrap().answered = false),
        ("the job has failed for good", Some("ProgramFailed"), |o| {
            o.job = JobView::Alive { terminal: true, superseded: false, settled: false };
        }),
        ("the job goes on elsewhere", Some("Released"), |o| {
            o.job = JobView::Alive { terminal: false, superseded: true, settled: false };
        }),
        ("the job is to stop", Some("ProgramFailed"), |o| o.spec.stop = Some(StopRequest::default())),
        ("the market takes it", Some("ProgramFailed"), |o| {
            o.account.as_mut().unwrap().machines[0].state = MachineState::TakenAway;
        }),
        ("a kill that nobody can explain", Some("Killed"), |o| {
            o.status.exited = None;
            o.served.as_mut().unwrap().agent = Some(exited(137, false));
        }),
    ];
    for (what, ended, change) in cases {
        let mut o = failed();
        o.status = status.clone();
        change(&mut o);
        assert_eq!(decide(&o).status.ended.as_deref(), ended, "{what}");
    }
}

#[test]
fn the_next_attempt_on_a_machine_begins_with_nothing_of_the_one_before() {
    let mut o = failed();
    o.status = decide(&o).status;
    o.spec.attempt = 1;
    // The agent has not heard of it yet: its report is about the attempt before.
    let heard = AgentView { ours: false, exit: None, finished: false, ..exited(1, false) };
    o.served.as_mut().unwrap().agent = Some(heard);
    let status = decide(&o).status;
    assert_eq!((status.exit_code, status.exited.as_ref(), status.ended.as_deref()), (None, None, None));
    assert_eq!((status.attempt, status.agent.as_deref(), status.program_since.as_ref()), (Some(1), None, None));
    o.status = status;
    o.now = at(1360 + 301);
    o.served.as_mut().unwrap().heard_at = Some(o.now);
    let status = decide(&o).status;
    assert_eq!(status.ended.as_deref(), Some("AgentSilent"), "an agent that does not begin is not paid for ever");
}

#[test]
fn a_machine_that_is_less_than_what_was_rented_is_ended_before_anything_is_started() {
    let mut o = rented();
    let agent = AgentView {
        phase: "Booted".into(),
        exit: None,
        finished: false,
        host: Some(HostFacts { disk_bytes: Some(5 << 30), ..HostFacts::default() }),
        ..exited(0, false)
    };
    o.served.as_mut().unwrap().agent = Some(agent.clone());
    let status = decide(&o).status;
    assert_eq!(status.ended.as_deref(), Some("HostUnfit"));
    let message = status.ended_message.unwrap();
    assert_eq!(
        message,
        "the machine is less than what was rented: its disk has 5120 MiB, 10240 were rented; nothing was started on it"
    );
    o.served.as_mut().unwrap().agent = Some(AgentView { host: None, ..agent });
    assert_eq!(decide(&o).status.ended, None, "an older agent does not say");
}

#[test]
fn a_price_that_rises_past_the_cap_ends_the_machine() {
    // What the market says now, whether it takes bids, spot or not; in micro-dollars an hour, with a cap of 360,000.
    for (price, bids, capacity, ends) in [
        (360_000, true, Capacity::OnDemand, false),
        (360_001, true, Capacity::OnDemand, true),
        (360_001, true, Capacity::Spot, false),
        (720_000, true, Capacity::Spot, false),
        (370_000, false, Capacity::Spot, false),
        (400_000, false, Capacity::Spot, true),
    ] {
        let mut o = rented();
        o.status.boot = Some("b".into());
        let account = o.account.as_mut().unwrap();
        account.bids = bids;
        account.machines[0].price_per_hour = Some(Money::from_micros(price));
        account.machines[0].capacity = capacity;
        let status = decide(&o).status;
        let what = format!("{price} {bids} {capacity}: {:?}", status.ended_message);
        assert_eq!(status.ended.as_deref(), ends.then_some("LimitReached"), "{what}");
        assert!(!ends || status.ended_message.is_some_and(|m| m.contains("its price cap is $0.36")), "{what}");
    }
}
