//! What a job is given of a market, over everything that an operator knows in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use tradewind_api::Provider;
use tradewind_checkpoints::MemoryStore;
use tradewind_cluster::{Memory, cache};
use tradewind_core::{Capacity, Clock, ManualClock, Money, Offer};
use tradewind_planner::{MoveRules, Running};
use tradewind_sim::in_process::MarketProvider;
use tradewind_sim::market::Market;

use super::placement::{Asks, Choice, Held, Rent, choose};
use super::play::Play;
use super::question::Progress;
use super::status::Report;
use super::times::Times;
use super::timing::Prospect;
use crate::accounts::Account;
use crate::accounts::access::Grant;
use crate::context::{AgentBinary, Context};
use crate::market::MarketKeeper;
use crate::runtime::Reconciler as _;
use crate::test_context::context;
use crate::test_machine;

const LOOK: Duration = Duration::from_mins(1);

/// A machine of the account `p` on a host of its own.
fn offer(id: &str, dollars: &str) -> Offer {
    Offer {
        capacity: Capacity::OnDemand,
        price_per_hour: dollars.parse().unwrap(),
        host: format!("host-{id}"),
        disk_gib: 200,
        download_mbps: 1000,
        download_price_per_gb: "0.02".parse().unwrap(),
        reliability_ppm: 999_000,
        ..test_machine::offer(id)
    }
}

/// An operator that has just read this market of its account `p`, on which `limit` dollars an hour may be spent.
fn operator(limit: &str, offers: &[Offer]) -> Arc<Context> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_second(1_790_000_000).unwrap(), 1));
    let store = MemoryStore::new(Arc::clone(&clock));
    store.create_bucket("mailbox");
    let mut ctx = context(Arc::clone(&clock), &store, Arc::new(Memory::new(Arc::clone(&clock))));
    ctx.agent = Some(AgentBinary { sha256: "ab".repeat(32) });
    let provider: Provider = serde_json::from_value(json!({
        "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": {"name": "p"},
        "spec": {"kind": "Vast", "credentialsSecretRef": {"name": "s"}, "limits": {"perHour": limit, "perDay": "100"}},
    }))
    .unwrap();
    ctx.caches.providers.lock().apply(cache::Event::Relist(vec![Arc::new(provider)]));
    let nobody = Arc::new(Mutex::new(Market::new(1, clock.now(), Vec::new())));
    let handle = Arc::new(MarketProvider::new(nobody, "p", "p", Arc::clone(&clock)));
    ctx.accounts.put(Account::new("p", String::new(), handle)).set_unheld(None, false);
    let ctx = Arc::new(ctx);
    let keeper = MarketKeeper::new(Arc::clone(&ctx));
    keeper.reconcile(&MarketKeeper::key()).now_or_never().expect("in memory everything is ready").unwrap();
    ctx.market.put("p", clock.monotonic(), clock.now(), offers.to_vec());
    ctx
}

/// What a job with this spec is told: it waits for a machine, or has one.
fn choice(ctx: &Context, spec: &Value, due: bool, held: Option<&Offer>) -> Choice {
    let play = Play::new(spec);
    let mut job = (*play.o.job).clone();
    job.metadata.creation_timestamp = Some(Time(ctx.clock.now()));
    let held = held.map(|offer| Held {
        offer: offer.clone(),
        age_s: 60,
        ready: true,
        running: Running { for_s: 60, gain_held_s: None, unsaved_s: 60 },
        rules: MoveRules::default(),
    });
    let asks = Asks {
        job: "u",
        namespace: "n",
        progress: Progress::default(),
        due,
        times: Times::of(&job, &play.o.valid, ctx.clock.now(), LOOK),
        held,
    };
    let grants = BTreeMap::from([("p".to_owned(), Grant::Given { min_trust: None, per_hour: None })]);
    choose(ctx, &play.o.valid, &asks, &grants)
}

/// What a job with this spec is given.
fn chosen(ctx: &Context, spec: &Value) -> Rent {
    match choice(ctx, spec, true, None) {
        Choice::Rent(rent) => *rent,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_under_suspicion_is_the_last_choice_and_better_than_none() {
    let offers = [offer("cheap", "0.40"), offer("dear", "2.00")];
    let suspected = |limit: &str| {
        let ctx = operator(limit, &offers);
        let until = ctx.clock.monotonic() + Duration::from_hours(1);
        ctx.market.suspect(&offers[0], until, "failed".to_owned());
        ctx
    };
    assert_eq!(chosen(&operator("5", &offers), &json!({})).first.id, "cheap");
    assert_eq!(chosen(&suspected("5"), &json!({})).first.id, "dear");
    assert_eq!(chosen(&suspected("1"), &json!({})).first.id, "cheap", "the other may not be had");
}

#[test]
fn what_is_downloaded_takes_time_and_money() {
    let ctx = operator("5", &[offer("one", "1.00")]);
    let plain = chosen(&ctx, &json!({"work": {"hours": "1"}}));
    let loads = chosen(&ctx, &json!({"work": {"hours": "1", "inputSize": "100Gi"}}));
    let longer_s = loads.finish_in_s - plain.finish_in_s;
    assert!((859..1200).contains(&longer_s), "859 Gbit at 1 Gbit/s: {longer_s}");
    let between = |low: &str, high: &str, cost: Money| (low.parse().unwrap()..high.parse().unwrap()).contains(&cost);
    let told = (&plain.cost, &loads.cost);
    assert!(plain.cost.input_download == Money::ZERO && between("0.23", "0.34", loads.cost.input_download), "{told:?}");
    assert!(between("2.14", "2.16", loads.cost.traffic - plain.cost.traffic), "107.4 GB at $0.02: {told:?}");
}

#[test]
fn a_machine_that_is_held_is_judged_by_itself_where_nothing_else_is_to_be_had() {
    let checkpoint = json!({"path": "out", "pattern": "step-{step}", "to": "s3://b/p/", "secretRef": {"name": "s"}});
    let own = offer("own", "1.00");
    for checkpoint in [json!(null), checkpoint] {
        let spec = |within: &str| json!({"work": {"hours": "2"}, "completeWithin": within, "checkpoint": checkpoint, "gpu": {"models": ["H100"]}});
        for (what, ctx) in [
            ("sold out", operator("5", &[])),
            ("does not fit", operator("5", &[offer("cpu", "0.10")])),
            ("no room", operator("0.01", &[offer("dear", "2.00")])),
        ] {
            let keeps = choice(&ctx, &spec("3h"), true, Some(&own));
            assert_eq!(keeps, Choice::Keep { prospect: Prospect::OnTime, gains: false }, "{what}");
            let late = choice(&ctx, &spec("1h"), true, Some(&own));
            assert!(matches!(&late, Choice::Keep { prospect: Prospect::Late(_), .. }), "{what}: {late:?}");
        }
    }
    // Without checkpoints it leaves for nothing.
    let faster = operator("5", &[offer("other", "0.01")]);
    let unsaved = json!({"work": {"hours": "2"}, "completeWithin": "1h"});
    assert!(matches!(choice(&faster, &unsaved, true, Some(&own)), Choice::Keep { prospect: Prospect::Late(_), .. }));
}

#[test]
fn that_nothing_can_be_in_time_is_told_while_the_cluster_is_waited_for() {
    let ctx = operator("5", &[offer("one", "1.00")]);
    let prospect =
        |within: &str| choice(&ctx, &json!({"work": {"hours": "2"}, "completeWithin": within}), false, None).prospect();
    assert!(matches!(prospect("1h"), Prospect::Late(_)));
    assert!(
        matches!(prospect("9h"), Prospect::AtRisk(why) if why.contains("can be in time")),
        "the wait is not over yet"
    );
}

#[test]
fn of_a_second_choice_nothing_is_told_that_was_reckoned_for_the_first() {
    let (cheap, dear) = (offer("cheap", "0.40"), Offer { region: "SE".into(), ..offer("dear", "2.00") });
    let rent = chosen(&operator("5", &[cheap.clone(), dear.clone()]), &json!({}));
    let rented = |index: usize| {
        let orders = json!([{"key": "k", "offer": index, "at": "2026-11-22T10:00:00.000000Z", "outcome": "Rented"}]);
        let status = json!({"phase": "Booting", "orders": orders, "region": "NO", "capacity": "OnDemand"});
        let mut machine = test_machine::machine("m", &status);
        machine.spec.offers.clone_from(&rent.offers);
        let mut report = Report::new(&Play::new(&json!({})).o);
        report.chosen(&rent);
        report.follow(&machine);
        report.status.placement.unwrap()
    };
    let (first, second) = (rented(0), rented(1));
    assert!(first.cost.is_some() && first.expected_finish.is_some());
    assert!(second.cost.is_none() && second.expected_finish.is_none() && second.alternatives.is_empty(), "{second:?}");
    assert!(
        second.why.as_deref().is_some_and(|why| why.contains("$2.00/h") && why.contains("was refused")),
        "{second:?}"
    );
}

#[test]
fn however_much_was_asked_for_what_is_told_of_a_choice_stays_small() {
    let mut rent = chosen(&operator("5", &[offer("one", "1.00")]), &json!({}));
    rent.why = "w".repeat(10_000);
    rent.rejected = vec!["r".repeat(10_000); 10];
    let mut report = Report::new(&Play::new(&json!({})).o);
    report.chosen(&rent);
    let told = serde_json::to_string(&report.status.placement.unwrap()).unwrap();
    assert!(told.len() < 3500, "alternatives need room too: {}", told.len());
}
