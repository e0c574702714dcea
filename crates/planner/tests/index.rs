//! The index says what the plan says, whatever is asked and however the market came to be.

mod market;

use market::{good_offer, knowledge, market, needs, offer, work};
use proptest::collection::vec;
use proptest::prelude::*;
use tradewind_core::{Money, Offer};
use tradewind_planner::{Candidate, Knowledge, OfferIndex, Requirements, WorkLeft, plan};

fn ranked(needs: &Requirements, work: &WorkLeft, known: &Knowledge, offers: &[Offer], limit: usize) -> Vec<Candidate> {
    plan(needs, work, known, offers, limit).ranked
}

/// A change of the market.
#[derive(Debug, Clone)]
enum Change {
    Put(Box<Offer>),
    Reprice(usize, i64),
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => prop_oneof![offer(), good_offer()].prop_map(|offer| Change::Put(Box::new(offer))),
        3 => (any::<usize>(), 1_i64..700_000).prop_map(|(which, micros)| Change::Reprice(which, micros)),
        1 => any::<usize>().prop_map(Change::Remove),
    ]
}

/// The change on a plain list, as the index promises it.
fn apply(offers: &mut Vec<Offer>, index: &mut OfferIndex, change: Change) {
    let same = |a: &Offer, b: &Offer| a.provider == b.provider && a.id == b.id && a.capacity == b.capacity;
    let put = match change {
        Change::Put(offer) => *offer,
        Change::Reprice(which, micros) if !offers.is_empty() => {
            Offer { price_per_hour: Money::from_micros(micros), ..offers[which % offers.len()].clone() }
        }
        Change::Remove(which) if !offers.is_empty() => {
            let gone = offers[which % offers.len()].clone();
            let before = offers.len();
            offers.retain(|offer| !same(offer, &gone));
            assert_eq!(index.remove(&gone.provider, &gone.id, gone.capacity), before - offers.len());
            return;
        }
        Change::Reprice(..) | Change::Remove(_) => return,
    };
    offers.retain(|offer| !same(offer, &put));
    offers.push(put.clone());
    index.put(put);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_ranks_as_the_plan_does(
        asks in vec((needs(), work(), knowledge(), 0_usize..10), 1..6), offers in market(), known in knowledge(),
    ) {
        let index = OfferIndex::new(offers.clone(), &known);
        prop_assert_eq!(index.len(), offers.len());
        for (needs, work, job, limit) in asks {
            let both = Knowledge { hosts: known.hosts.clone(), ..merged(&known, &job) };
            let expected = plan(&needs, &work, &both, &offers, limit);
            prop_assert_eq!(&index.rank(&needs, &work, &job.job(), limit), &expected.ranked);
            prop_assert_eq!(index.plan(&needs, &work, &job.job(), limit), expected);
        }
    }

    #[test]
    fn a_market_that_changed_is_as_one_that_was_always_so(
        needs in needs(), work in work(), known in knowledge(), learned in knowledge(), offers in market(),
        changes in vec(change(), 0..30),
    ) {
        let mut offers = offers;
        let mut index = OfferIndex::new(offers.clone(), &known);
        for (n, change) in changes.into_iter().enumerate() {
            apply(&mut offers, &mut index, change);
            if n % 5 == 0 {
                prop_assert_eq!(index.rank(&needs, &work, &known.job(), 6), ranked(&needs, &work, &known, &offers, 6));
            }
        }
        prop_assert_eq!(index.len(), offers.len());
        let wide = Requirements { gpu_count: needs.gpu_count, ..Requirements::default() };
        prop_assert_eq!(index.rank(&wide, &work, &known.job(), 99), ranked(&wide, &work, &known, &offers, 99));
        index.learn(&learned);
        prop_assert_eq!(index.rank(&wide, &work, &learned.job(), 99), ranked(&wide, &work, &learned, &offers, 99));
        prop_assert_eq!(index.rank(&needs, &work, &learned.job(), 6), ranked(&needs, &work, &learned, &offers, 6));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_market_of_hundreds_of_offers_and_regions_is_no_different(
        asks in vec((needs(), work(), 1_usize..12), 8), known in knowledge(), at in 0_usize..400,
        offers in vec(prop_oneof![1 => offer(), 4 => good_offer()], 250..400),
    ) {
        // More regions than have sets of their own, and figures of which no two are alike.
        let spread = |(n, offer): (usize, Offer)| Offer {
            id: n.to_string(),
            region: if n % 3 == 0 { offer.region } else { format!("R{n}") },
            cpu_millis: if n % 2 == 0 { n as u64 * 7 } else { offer.cpu_millis },
            download_mbps: if n % 5 == 0 { n as u64 } else { offer.download_mbps },
            ..offer
        };
        let mut offers: Vec<Offer> = offers.into_iter().enumerate().map(spread).collect();
        let mut index = OfferIndex::new(offers.clone(), &known);
        for (n, (needs, work, limit)) in asks.into_iter().enumerate() {
            let far = [offers[(at + n) % offers.len()].region.clone(), offers[(at * 3) % offers.len()].region.clone()];
            let needs = match n % 4 {
                0 => Requirements { regions: far.to_vec(), ..needs },
                1 => Requirements { cpu_millis: at as u64, gpu_models: Vec::new(), ..needs },
                2 => Requirements { gpu_count: 1, min_download_mbps: at as u64 / 4, ..Requirements::default() },
                _ => needs,
            };
            prop_assert_eq!(index.rank(&needs, &work, &known.job(), limit), ranked(&needs, &work, &known, &offers, limit));
            apply(&mut offers, &mut index, Change::Reprice(at + n, [1000, 2000, 900_000][n % 3]));
            apply(&mut offers, &mut index, Change::Remove(at * 7 + n));
        }
    }
}

/// The market's part of one knowledge with the job's part of another.
fn merged(market: &Knowledge, job: &Knowledge) -> Knowledge {
    Knowledge {
        image_mb: job.image_mb,
        input_mb: job.input_mb,
        output_mb: job.output_mb,
        restore_mb: job.restore_mb,
        checkpoint_mb: job.checkpoint_mb,
        checkpoint_interval_s: job.checkpoint_interval_s,
        checkpoint_upload_s: job.checkpoint_upload_s,
        store_price_per_gb: job.store_price_per_gb,
        step_rates: job.step_rates.clone(),
        steps_left: job.steps_left,
        ..market.clone()
    }
}
