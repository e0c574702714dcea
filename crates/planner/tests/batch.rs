//! Several jobs at once: no machine twice, and as cheap as can be.

mod machine;
mod market;

use std::collections::BTreeMap;

use market::{good_offer, knowledge, needs, offer, work};
use proptest::collection::vec;
use proptest::prelude::*;
use tradewind_core::{Money, Offer};
use tradewind_planner::{Candidate, Knowledge, OfferIndex, Pending, Requirements, WorkLeft, plan};

type Id = (String, String);
type Job = (Requirements, WorkLeft);

fn id(offer: &Offer) -> Id {
    (offer.provider.clone(), offer.id.clone())
}

fn assigned(jobs: &[Job], known: &Knowledge, offers: &[Offer]) -> Vec<Option<Candidate>> {
    let index = OfferIndex::new(offers.to_vec(), known);
    let pending: Vec<Pending<'_>> =
        jobs.iter().map(|(needs, work)| Pending { needs, work, job: known.job() }).collect();
    index.assign(&pending)
}

/// Tries every choice: most jobs placed, then the least cost.
fn exact(costs: &[BTreeMap<Id, Money>], stock: &mut BTreeMap<Id, u32>) -> (usize, i128) {
    let Some((first, rest)) = costs.split_first() else { return (0, 0) };
    let mut best = exact(rest, stock);
    best.0 += 1;
    for (id, total) in first {
        let left = stock.get(id).copied().unwrap_or(1);
        if left > 0 {
            stock.insert(id.clone(), left - 1);
            let (unplaced, cost) = exact(rest, stock);
            stock.insert(id.clone(), left);
            best = best.min((unplaced, cost + i128::from(total.micros())));
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_machine_is_given_twice_and_the_total_is_the_least(
        jobs in vec((needs(), work()), 0..5),
        simple in vec(work(), 0..3),
        offers in vec(prop_oneof![1 => offer(), 3 => good_offer()], 0..9),
        known in knowledge(),
        stock in vec(0_u32..3, 9),
    ) {
        let easy = Requirements { gpu_count: 1, ..Requirements::default() };
        let mut jobs = jobs;
        jobs.truncate(5 - simple.len());
        jobs.extend(simple.into_iter().map(|work| (easy.clone(), work)));
        let stock: BTreeMap<Id, u32> = offers.iter().map(id).zip(stock).filter(|(_, n)| *n != 1).collect();
        let known = Knowledge { stock, ..known };
        let given = assigned(&jobs, &known, &offers);
        prop_assert_eq!(given.len(), jobs.len());

        let mut used: BTreeMap<Id, u32> = BTreeMap::new();
        for candidate in given.iter().flatten() {
            *used.entry(id(&candidate.offer)).or_default() += 1;
        }
        for (id, n) in used {
            prop_assert!(n <= known.stock.get(&id).copied().unwrap_or(1), "{:?} is given {} times", id, n);
        }

        let mut costs = Vec::new();
        for ((needs, work), one) in jobs.iter().zip(&given) {
            let ranked = plan(needs, work, &known, &offers, offers.len()).ranked;
            prop_assert!(one.as_ref().is_none_or(|one| ranked.contains(one)), "what is given fits");
            let mut best: BTreeMap<Id, Money> = BTreeMap::new();
            for candidate in ranked {
                best.entry(id(&candidate.offer)).or_insert(candidate.cost.total);
            }
            costs.push(best);
        }
        let (unplaced, least) = exact(&costs, &mut known.stock.clone());
        prop_assert_eq!(given.iter().filter(|one| one.is_none()).count(), unplaced, "as many as can be placed");
        let total: i128 = given.iter().flatten().map(|one| i128::from(one.cost.total.micros())).sum();
        prop_assert!(total * 100 <= least * 105, "{} against {}", total, least);
        prop_assert_eq!(total, least, "it is in fact exact");
    }
}

#[test]
fn the_greedy_choice_is_not_the_best() {
    let machine = |name: &str, micros: i64, model: &str, memory: u64| {
        let gpu = Some(tradewind_core::GpuModel::normalise(model, 0));
        let price_per_hour = Money::from_micros(micros);
        Offer { id: name.to_owned(), price_per_hour, gpu, gpu_memory_mib: memory, ..plain() }
    };
    let offers = [machine("large", 500_000, "RTX 4090", 48_000), machine("small", 600_000, "RTX 4090", 12_000)];
    let work = || WorkLeft { seconds: 36_000, on: None };
    let any = Requirements { gpu_count: 1, ..Requirements::default() };
    let much = Requirements { min_gpu_memory_mib: 24_000, ..any.clone() };
    // The first job would take the large machine, which is the cheaper one, and the second could run nowhere.
    let given = assigned(&[(any, work()), (much, work())], &Knowledge::default(), &offers);
    let names: Vec<Option<&str>> = given.iter().map(|one| one.as_ref().map(|one| one.offer.id.as_str())).collect();
    assert_eq!(names, [Some("small"), Some("large")]);
}

#[test]
fn the_two_terms_of_one_machine_are_one_machine() {
    use tradewind_core::Capacity;
    let spot = Offer { capacity: Capacity::Spot, ..plain() };
    let jobs =
        vec![(Requirements { gpu_count: 1, ..Requirements::default() }, WorkLeft { seconds: 3600, on: None }); 2];
    let given = assigned(&jobs, &Knowledge::default(), &[spot, plain()]);
    assert_eq!(given.iter().flatten().count(), 1);
    assert_eq!(assigned(&[], &Knowledge::default(), &[plain()]), []);
    assert_eq!(assigned(&jobs, &Knowledge::default(), &[]), [None, None]);
}

fn plain() -> Offer {
    Offer { reliability_ppm: 995_000, ..machine::plain("a") }
}
