//! The way of a save.

use tradewind_protocol::Document;

use super::*;

#[test]
fn a_save_is_linked_hashed_uploaded_in_parallel_and_offered() {
    let mut rig = Rig::running();
    rig.save(10, &[1, 2, 3, 4, 5, 6, 2]);
    let uploads = rig.uploads();
    assert_eq!(uploads.iter().map(|upload| upload.1).collect::<Vec<_>>(), [0, 1, 2, 3], "four at a time");
    rig.done(1, 2, ChunkOutcome::Stored);
    assert_eq!(rig.uploads().len(), 1);
    assert_eq!(rig.logic.report().uploading.unwrap().sent_bytes, 10);
    for slot in [0, 1, 3, 4] {
        rig.done(1, slot, ChunkOutcome::Stored);
    }
    rig.upload_all();
    let offer = rig.logic.report().offer.unwrap();
    assert_eq!((offer.number, offer.manifest.step, offer.manifest.parent), (1, 10, None));
    let keys: Vec<&str> = offer.manifest.chunks().map(|chunk| &chunk.key[chunk.key.len() - 2..]).collect();
    assert_eq!(keys, ["00", "01", "02", "03", "04", "05", "01"], "equal content is sent once");
    assert!(rig.took(|action| *action == Action::DropStaging { save: 1 }));
    assert_eq!(rig.store_reports().unwrap().offer.unwrap().number, 1, "reported at once");
}

#[test]
fn how_long_a_save_took_is_told_with_its_offer() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    assert_eq!(rig.logic.report().save_took, None);
    rig.pass(Duration::from_secs(7));
    rig.upload_all();
    let took = rig.logic.report().save_took.unwrap();
    assert_eq!((took.offer, took.millis / 1000), (1, 7));
}

#[test]
fn what_the_committed_parent_has_is_not_sent_again() {
    let mut start = Rig::start_document();
    start.restore = vec![candidate(7, 70)];
    let mut rig = Rig::waiting().ordered(start);
    rig.give_slots(0, 100);
    rig.store_reports();
    rig.give(Input::Restored { seq: 7, result: Restore::Done { path: "/ckpt/step-70".to_owned() } });
    // The restored checkpoint is the first parent: it had the content with hash 7.
    rig.save(80, &[7, 8]);
    assert_eq!(rig.upload_all().len(), 1);
    let offer = rig.logic.report().offer.unwrap();
    assert_eq!(offer.manifest.parent, Some(7));
    assert_eq!(offer.manifest.files[0].chunks[0].key, "data/0-abcdef/00000007");

    // Not committed yet: the parent stays.
    rig.save(90, &[8, 9]);
    assert_eq!(rig.upload_all().len(), 2);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.parent, None);
    // The first offer was committed although a second one is there: it becomes the parent.
    rig.commit(1, 8);
    assert_eq!(rig.logic.report().offer.unwrap().number, 2, "the second one still waits");
    rig.save(100, &[7, 8, 10]);
    assert_eq!(rig.upload_all().len(), 1);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.parent, Some(8));
}

#[test]
fn a_second_save_of_a_step_is_answered_by_the_checkpoint_that_is_there() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    rig.upload_all();
    rig.commit(1, 8);
    rig.save(10, &[1, 2]);
    rig.upload_all();
    assert_eq!(rig.logic.report().offer.unwrap().number, 2);
    rig.commit(2, 8);
    assert!(rig.logic.report().offer.is_none(), "answered");
}

#[test]
fn a_newer_save_takes_the_place_of_one_that_has_not_begun_to_upload() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let hanging = rig.uploads();
    assert_eq!(hanging.len(), 1);
    for step in [20, 30, 40] {
        rig.save(step, &[step]);
    }
    let dropped = rig.take(|action| match action {
        Action::DropStaging { save } => Some(*save),
        _ => None,
    });
    assert_eq!(dropped, [2, 3]);
    assert!(rig.uploads().is_empty(), "one upload at a time");
    rig.done(1, hanging[0].1, ChunkOutcome::Stored);
    assert_eq!(rig.uploads()[0].0, 4);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.step, 10);
}

#[test]
fn a_save_that_goes_on_changing_where_it_lies_was_not_complete() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let first = rig.uploads();
    rig.save_seen(10, true);
    assert!(rig.took(|action| *action == Action::DropStaging { save: 1 }));
    rig.done(1, first[0].1, ChunkOutcome::Stored);
    assert!(rig.logic.report().offer.is_none());
    // Renamed over: what was linked of it before is whole.
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let first = rig.uploads();
    rig.save_seen(10, false);
    rig.done(1, first[0].1, ChunkOutcome::Stored);
    assert!(rig.logic.report().offer.is_some());
}

#[test]
fn uploads_that_fail_are_tried_again_in_the_same_slot_or_a_fresh_one() {
    let failed = || ChunkOutcome::Failed("reset".to_owned());
    for (outcome, times, expected) in [
        (failed(), 1, 0),
        (failed(), 6, 0),
        (ChunkOutcome::Taken, 1, 1),
        (ChunkOutcome::Taken, 3, 3),
        (ChunkOutcome::Denied, 1, 0),
        (ChunkOutcome::Denied, 5, 1),
    ] {
        let mut rig = Rig::running();
        rig.save(10, &[1]);
        let mut slot = rig.uploads()[0].1;
        for _ in 0..times {
            rig.done(1, slot, outcome.clone());
            let again = rig.uploads();
            rig.pass(seconds(31));
            slot = again.into_iter().chain(rig.uploads()).next().unwrap().1;
        }
        assert_eq!(slot, expected, "{outcome:?} {times} times");
        rig.done(1, slot, ChunkOutcome::Stored);
        let chunk = rig.logic.report().offer.unwrap().manifest.files[0].chunks[0].clone();
        assert!(chunk.key.ends_with(&format!("/{expected:08}")));
    }
}

#[test]
fn a_hopeless_upload_gives_way_and_an_unreadable_one_is_given_up() {
    let mut rig = Rig::running();
    rig.save(10, &[1]);
    let slot = rig.uploads()[0].1;
    for _ in 0..8 {
        rig.done(1, slot, ChunkOutcome::Failed("reset".to_owned()));
        rig.pass(seconds(31));
        rig.uploads();
    }
    assert!(rig.logic.report().uploading.is_some(), "nothing newer is there");
    rig.save(20, &[2]);
    assert_eq!(rig.uploads()[0].0, 2);
    rig.done(2, 1, ChunkOutcome::Unreadable("its bytes changed".to_owned()));
    assert!(rig.logic.report().uploading.is_none());
    assert!(rig.logic.report().warnings[0].contains("step-20"));
}

#[test]
fn slots_are_used_once_topped_up_and_never_with_a_ticket_about_to_expire() {
    let mut rig = Rig::waiting().ordered(Rig::start_document());
    rig.give_slots(0, 2);
    rig.store_reports();
    rig.save(10, &[1, 2, 3]);
    assert_eq!(rig.upload_all(), [0, 1]);
    let report = rig.store_reports().unwrap();
    assert_eq!((report.slots_left, report.slots_used), (0, 2));
    // A batch that overlaps with what was used, and holds one that dies in a moment.
    rig.control.slots = vec![ticket("slots-1")];
    rig.hear_soon();
    assert!(rig.took(|action| matches!(action, Action::FetchSlots { .. })));
    let mut puts: Vec<Ticket> = (1..5).map(|slot| ticket(&format!("slot-{slot}"))).collect();
    puts[1].expires = rig.now().wall.checked_add(seconds(30)).unwrap();
    let value = Box::new(SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt: 1, first: 1, puts });
    let batch = "http://store/slots-1".to_owned();
    rig.give(Input::Slots { batch, fetched: Fetched::Found { value, etag: None } });
    assert_eq!(rig.upload_all(), [3]);
    assert!(rig.logic.report().offer.is_some());
    // The same batch, signed anew, is not fetched again.
    rig.control.slots = vec![Ticket { url: "http://store/slots-1?sig=other".to_owned(), expires: Timestamp::MAX }];
    rig.hear_soon();
    assert!(!rig.took(|action| matches!(action, Action::FetchSlots { .. })));
}

#[test]
fn what_a_program_writes_that_only_restores_is_no_save_of_ours() {
    let mut start = Rig::start_document();
    start.checkpoint.as_mut().unwrap().restore_only = true;
    let mut rig = Rig::waiting().ordered(start);
    rig.store_reports();
    assert!(rig.took(|action| matches!(action, Action::StartProgram(_))));
    rig.store_reports();
    rig.save_seen(10, false);
    assert!(!rig.took(|action| matches!(action, Action::Link { .. })), "others save");
    assert!(rig.logic.report().uploading.is_none());
}

/// A program that saves its part of what several save together, with so many slots.
fn saving_together(slots: u64) -> Rig {
    let mut start = Rig::start_document();
    start.checkpoint.as_mut().unwrap().together = true;
    let mut rig = Rig::waiting().ordered(start);
    rig.give_slots(0, slots);
    rig.store_reports();
    rig
}

/// Numbers and steps of the offers in the report.
fn offers(rig: &Rig) -> Vec<(u64, u64)> {
    rig.logic.report().offers().map(|offer| (offer.number, offer.manifest.step)).collect()
}

#[test]
fn alone_the_newest_save_waits_and_together_the_newest_few() {
    let mut alone = Rig::running();
    let mut together = saving_together(100);
    for rig in [&mut alone, &mut together] {
        for step in 1..=10 {
            rig.save(step, &[step]);
            rig.upload_all();
        }
    }
    assert_eq!(offers(&alone), [(10, 10)]);
    assert_eq!(offers(&together), (3..=10).map(|n| (n, n)).collect::<Vec<_>>());
    let report = together.store_reports().unwrap();
    report.validate().unwrap();
    assert_eq!((report.offer.unwrap().number, report.waiting.len()), (10, Report::MAX_OFFERS - 1));
    // Each has its own places: none is written to while an offer names it.
    let report = together.logic.report();
    let keys: std::collections::BTreeSet<&str> =
        report.offers().flat_map(|offer| offer.manifest.chunks()).map(|chunk| chunk.key.as_str()).collect();
    assert_eq!(keys.len(), Report::MAX_OFFERS);
}

#[test]
fn what_is_decided_goes_with_everything_before_it_and_the_rest_waits_on() {
    let mut rig = saving_together(100);
    for step in 1..=4 {
        rig.save(step * 10, &[step]);
        rig.upload_all();
    }
    rig.commit(2, 7);
    assert_eq!(offers(&rig), [(3, 30), (4, 40)]);
    // The committed one is what the next builds on; those that wait stay as they are.
    rig.save(50, &[2, 5]);
    assert_eq!(rig.upload_all().len(), 1);
    assert_eq!(rig.logic.report().offer.unwrap().manifest.parent, Some(7));
    rig.control.refused = Some(RefusedOffer { offer: 4, reason: "others saved another step".to_owned() });
    rig.hear_soon();
    assert_eq!(offers(&rig), [(5, 50)]);
    assert!(rig.logic.report().warnings.iter().any(|warning| warning.contains("offer 4 was refused")));
    rig.commit(5, 9);
    assert_eq!(offers(&rig), []);
}

#[test]
fn offers_that_wait_fit_into_a_report() {
    let mut rig = saving_together(10_000);
    for step in 1..=6 {
        // About a fifth of the room.
        let hashes: Vec<u64> = (0..900).map(|n| step * 10_000 + n).collect();
        rig.save(step, &hashes);
        rig.upload_all();
    }
    let report = rig.logic.report();
    let bytes = report.encode().expect("the operator reads it").len();
    let steps: Vec<u64> = offers(&rig).iter().map(|offer| offer.1).collect();
    assert!(bytes < Report::MAX_BYTES && steps.len() > 1 && steps.last() == Some(&6), "{bytes} bytes, {steps:?}");
    assert!(steps.len() < 6, "all of them would fit: {bytes} bytes");
}
