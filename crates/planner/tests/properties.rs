//! Properties that hold for every market.

mod market;

use market::{good_offer, knowledge, market, needs, work};
use proptest::prelude::*;
use tradewind_core::{Money, Offer, Trust};
use tradewind_planner::{CapacityChoice, Requirements, check, plan, rank};

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_offer_is_in_one_place_and_the_plan_is_clean(
        needs in needs(), work in work(), known in knowledge(), offers in market(), limit in 0_usize..10,
    ) {
        let plan = plan(&needs, &work, &known, &offers, limit);
        prop_assert_eq!(check(&needs, &plan, &offers), []);
        prop_assert!(plan.ranked.len() <= limit);
        prop_assert!(plan.cut == 0 || plan.ranked.len() == limit, "cut only by the limit");
        for candidate in &plan.ranked {
            let offer = &candidate.offer;
            let note = known.refused.get(&(offer.provider.clone(), offer.id.clone()));
            prop_assert!(note.is_none_or(|note| note.for_s == 0), "refused, yet ranked");
            let host = (offer.provider.clone(), offer.host.clone());
            prop_assert!(offer.host.is_empty() || !known.banned_hosts.contains_key(&host), "banned, yet ranked");
            prop_assert!(!candidate.sentence().is_empty());
        }
        prop_assert_eq!(plan.why_none().is_some(), plan.ranked.is_empty() && plan.cut == 0);
    }

    #[test]
    fn the_order_of_the_market_does_not_matter(
        needs in needs(), work in work(), known in knowledge(),
        (offers, shuffled) in market().prop_flat_map(|offers| (Just(offers.clone()), Just(offers).prop_shuffle())),
    ) {
        prop_assert_eq!(plan(&needs, &work, &known, &offers, 8), plan(&needs, &work, &known, &shuffled, 8));
    }

    #[test]
    fn a_smaller_limit_keeps_the_same_beginning(
        needs in needs(), work in work(), known in knowledge(), offers in market(), limit in 0_usize..10,
    ) {
        let all = plan(&needs, &work, &known, &offers, offers.len());
        let some = plan(&needs, &work, &known, &offers, limit);
        prop_assert_eq!(&all.ranked[..some.ranked.len()], &some.ranked[..]);
        prop_assert_eq!(&all.rejected, &some.rejected);
    }

    #[test]
    fn the_ranking_alone_is_that_of_the_plan(
        needs in needs(), work in work(), known in knowledge(), offers in market(), each in 1_usize..4,
    ) {
        let all: Vec<&Offer> = offers.iter().collect();
        let plan = plan(&needs, &work, &known, &offers, offers.len());
        let mut asked = Vec::new();
        let ranked = rank(&needs, &work, &known, &all, |fitting| {
            asked.push((fitting.offer.clone(), fitting.time, fitting.hourly));
            asked.len() % each == 0
        });
        let told: Vec<_> = plan.ranked.iter().map(|c| (c.offer.clone(), c.time, c.hourly)).collect();
        prop_assert_eq!(asked, told, "it is asked about each that fits, in order");
        let wanted: Vec<_> = plan.ranked.into_iter().skip(each - 1).step_by(each).collect();
        prop_assert_eq!(ranked, wanted);
    }

    #[test]
    fn a_cheaper_offer_that_is_otherwise_the_same_never_ranks_lower(
        needs in needs(), work in work(), known in knowledge(), mut offers in market(),
        dear in good_offer(), less in 0_i64..200_000,
    ) {
        let micros = dear.price_per_hour.micros().saturating_sub(less).max(1000);
        // The later id: were it ranked by the tie-break before the price, it would come second.
        let cheap = Offer { id: "zz".to_owned(), price_per_hour: Money::from_micros(micros), ..dear.clone() };
        let dear = Offer { id: "z".to_owned(), ..dear };
        offers.extend([dear.clone(), cheap.clone()]);
        let plan = plan(&needs, &work, &known, &offers, offers.len());
        let place = |offer: &Offer| plan.ranked.iter().position(|c| c.offer == *offer);
        if let Some(dear_at) = place(&dear) {
            let cheap_at = place(&cheap);
            prop_assert!(cheap_at.is_some(), "the cheaper one is rejected where the dearer fits");
            prop_assert!(cheap.price_per_hour == dear.price_per_hour || cheap_at < Some(dear_at));
        }
    }

    #[test]
    fn more_asked_never_admits_more(needs in needs(), work in work(), known in knowledge(), offers in market()) {
        let asked = Requirements { min_trust: Trust::Enterprise, capacity: CapacityChoice::Spot, ..needs.clone() };
        prop_assume!(needs.capacity != CapacityChoice::OnDemand);
        let wide = plan(&needs, &work, &known, &offers, offers.len());
        let narrow = plan(&asked, &work, &known, &offers, offers.len());
        for candidate in &narrow.ranked {
            prop_assert!(wide.ranked.contains(candidate));
        }
    }
}
