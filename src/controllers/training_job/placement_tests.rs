//! What a job is given of a market, over everything that an operator knows in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tradewind_api::Provider;
use tradewind_checkpoints::MemoryStore;
use tradewind_cluster::{Memory, cache};
use tradewind_core::{Capacity, Clock, ManualClock, Money, Offer};
use tradewind_sim::in_process::MarketProvider;
use tradewind_sim::market::Market;

use super::placement::{Asks, Choice, Rent, choose};
use super::play::Play;
use super::question::Progress;
use super::times::Times;
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

/// What a job with this spec is given.
fn chosen(ctx: &Context, spec: &Value) -> Rent {
    let play = Play::new(spec);
    let (job, valid) = (&play.o.job, &play.o.valid);
    let asks = Asks {
        job: "u",
        namespace: "n",
        progress: Progress::default(),
        due: true,
        times: Times::of(job, valid, ctx.clock.now(), LOOK),
        held: None,
    };
    let grants = BTreeMap::from([("p".to_owned(), Grant::Given { min_trust: None, per_hour: None })]);
    match choose(ctx, valid, &asks, &grants) {
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
