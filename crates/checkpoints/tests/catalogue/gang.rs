//! Checkpoints that several workers write together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use tradewind_checkpoints::gang::{candidate_for, for_rank, merge};
use tradewind_checkpoints::{CommitOutcome, MergeError, Refusal};
use tradewind_protocol::manifest::{MAX_RANKS, data_prefix, slot_key};
use tradewind_protocol::{Chunk, EntryKind, Manifest, ManifestFile, VERSION};

use crate::stage::{Machine, RUN, Stage, keep, now, sha256};

/// Workers of one attempt.
pub struct Gang {
    pub machines: Vec<Machine>,
}

impl Gang {
    pub fn new(workers: usize, attempt: u32) -> Self {
        Self { machines: (0..workers).map(|rank| Machine::new(&format!("worker-{rank}"), attempt)).collect() }
    }

    pub fn ids(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.uid.clone()).collect()
    }

    /// What each worker offers: `alike` with the same bytes everywhere and `part` with others, taken over from `parent` as far as that has it.
    pub fn offers(&mut self, stage: &Stage, step: u64, parent: Option<&Manifest>) -> Vec<Manifest> {
        let mut offers = Vec::new();
        for (rank, machine) in (0_u32..).zip(&mut self.machines) {
            let old = parent.and_then(|parent| for_rank(parent, rank).ok());
            let old = old.as_ref().map(|old| old.files[0].chunks[0].clone());
            // In this order the slot that no checkpoint names is the last one of the save.
            let part = machine.upload(stage, &format!("part of worker {rank} in step {step}"));
            let alike = old.unwrap_or_else(|| machine.upload(stage, &format!("alike in step {step}")));
            let mut offer = machine.manifest(stage, step, vec![], parent.map(|_| 1));
            offer.kind = EntryKind::Directory;
            offer.files = vec![file("alike", vec![alike]), file("part", vec![part])];
            offers.push(offer);
        }
        offers
    }

    pub fn save(&mut self, stage: &Stage, step: u64, parent: Option<&Manifest>) -> Manifest {
        merge(&self.offers(stage, step, parent)).unwrap()
    }

    fn commit(&self, stage: &Stage, manifest: &Manifest) -> CommitOutcome {
        let attempt = self.machines[0].attempt;
        let outcome = now(stage.catalogue().commit_gang(&self.ids(), attempt, manifest)).unwrap();
        stage.check_whole();
        outcome
    }
}

fn file(path: &str, chunks: Vec<Chunk>) -> ManifestFile {
    let size_bytes = chunks.iter().map(|chunk| chunk.size_bytes).sum();
    ManifestFile { path: path.to_owned(), size_bytes, mode: 0o644, chunks, rank: None }
}

#[test]
fn all_parts_become_one_checkpoint_that_counts_once() {
    let stage = Stage::default();
    stage.begin(0);
    let mut gang = Gang::new(3, 0);
    let first = gang.save(&stage, 10, None);
    let files: Vec<_> = first.files.iter().map(|file| (file.path.as_str(), file.rank)).collect();
    assert_eq!(files, [("alike", None), ("part", Some(0)), ("part", Some(1)), ("part", Some(2))]);
    assert_eq!(gang.commit(&stage, &first), CommitOutcome::Committed { seq: 1 });
    assert_eq!(gang.commit(&stage, &first), CommitOutcome::Committed { seq: 1 }, "the same offers again");
    let second = gang.save(&stage, 20, Some(&first));
    assert_eq!(gang.commit(&stage, &second), CommitOutcome::Committed { seq: 2 });

    let log = stage.log();
    let candidates = now(stage.catalogue().candidates(&log, RUN, 5, Duration::from_mins(1))).unwrap();
    assert_eq!(candidates[0].chunks.len(), 4);
    for rank in 0..3 {
        let own = candidate_for(&candidates[0], rank).unwrap();
        assert_eq!((own.seq, own.chunks.len(), own.manifest.files.len()), (2, 2, 2));
        let expected = sha256(format!("part of worker {rank} in step 20").as_bytes());
        assert_eq!(own.manifest.files[1].chunks[0].sha256, expected);
        assert!(own.chunks.contains_key(&own.manifest.files[1].chunks[0].key), "with a ticket for it");
    }
    let none = candidate_for(&candidates[0], 3).unwrap_err().to_string();
    assert_eq!(
        none,
        "the checkpoint of step 20 was written by 3 workers, each with its own version of part, and has none for worker 3"
    );
}

#[test]
fn what_is_not_of_these_workers_or_not_whole_is_refused() {
    let stage = Stage::default();
    stage.begin(0);
    let mut gang = Gang::new(2, 0);
    let good = gang.save(&stage, 10, None);
    let refusal = |machines: &[&str], change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        match now(stage.catalogue().commit_gang(machines, 0, &manifest)).unwrap() {
            CommitOutcome::Refused(refusal) => refusal,
            CommitOutcome::Committed { seq } => panic!("committed at {seq}"),
        }
    };
    let foreign = Refusal::Foreign { what: "machine" };
    for machines in [&["worker-1", "worker-0"][..], &["worker-0"], &["worker-0", "worker-1", "worker-2"], &[]] {
        assert_eq!(refusal(machines, &|_| ()), foreign, "{machines:?}");
    }
    let single = now(stage.catalogue().commit("worker-0", 0, &good)).unwrap();
    assert_eq!(single, CommitOutcome::Refused(foreign), "one of them does not speak for all");
    let both = &["worker-0", "worker-1"];
    let key = |machine: &str, slot| slot_key(&data_prefix(0, machine), slot);
    let missing = refusal(both, &|m| m.files[2].chunks[0].key = key("worker-1", 99));
    assert_eq!(missing, Refusal::MissingChunk { key: key("worker-1", 99) });
    let stranger = refusal(both, &|m| m.files[2].chunks[0].key = key("worker-2", 1));
    assert_eq!(stranger.reason(), "ChunkUnknown");
    stage.begin(1);
    assert_eq!(refusal(both, &|_| ()), Refusal::Fenced { newest: Some(1) });
}

#[test]
fn what_all_have_sent_and_one_is_named_for_goes_with_the_checkpoint() {
    let stage = Stage::default();
    stage.begin(0);
    let mut gang = Gang::new(3, 0);
    for step in 1..=3 {
        let manifest = gang.save(&stage, step, None);
        gang.commit(&stage, &manifest);
    }
    assert_eq!(stage.data().len(), 3 * 6);
    // Sent, not yet offered by all.
    gang.offers(&stage, 4, None);
    now(stage.catalogue().collect(&keep(1))).unwrap();
    stage.check_whole();
    assert_eq!(stage.data().len(), 6 + 6, "of step 3 everything, since it lies above the marks, and step 4");
    let manifest = gang.save(&stage, 5, None);
    gang.commit(&stage, &manifest);
    now(stage.catalogue().collect(&keep(1))).unwrap();
    stage.check_whole();
    // Step 4 lies above what step 3 had sent: it goes with step 5.
    assert_eq!(stage.data().len(), 6 + 6);
    let manifest = gang.save(&stage, 6, None);
    gang.commit(&stage, &manifest);
    now(stage.catalogue().collect(&keep(1))).unwrap();
    assert_eq!(stage.data().len(), 6);
    stage.begin(1);
    now(stage.catalogue().collect(&keep(1))).unwrap();
    assert_eq!(stage.data().len(), 4, "the attempt is over: what one checkpoint names");
    stage.check_whole();
}

#[test]
fn a_chunk_that_was_sent_and_never_named_can_still_be_named() {
    let stage = Stage::default();
    stage.begin(0);
    let mut gang = Gang::new(2, 0);
    let offers = gang.offers(&stage, 1, None);
    let first = merge(&offers).unwrap();
    gang.commit(&stage, &first);
    // Worker 1 takes its own copy of what was alike for its part: no checkpoint names it, but it is there.
    let mut offers_two = gang.offers(&stage, 2, Some(&first));
    offers_two[1].files[1] = file("part", offers[1].files[0].chunks.clone());
    let second = merge(&offers_two).unwrap();
    assert_eq!(gang.commit(&stage, &second), CommitOutcome::Committed { seq: 2 });
    now(stage.catalogue().collect(&keep(1))).unwrap();
    stage.check_whole();
}

#[test]
fn offers_that_do_not_belong_together_are_told_apart() {
    let stage = Stage::default();
    let mut gang = Gang::new(3, 0);
    let good = gang.offers(&stage, 50, None);
    let told = |change: &dyn Fn(&mut Vec<Manifest>)| {
        let mut offers = good.clone();
        change(&mut offers);
        merge(&offers).unwrap_err().to_string()
    };
    let of_all = "; only what all workers saved together counts";
    for (expected, sentence) in [
        ("worker 2 saved step 40 where worker 0 saved 50", told(&|o| o[2].step = 40)),
        ("worker 1 saved attempt 1 where worker 0 saved 0", told(&|o| o[1].attempt = 1)),
        ("worker 1 saved run other where worker 0 saved run-1", told(&|o| o[1].run_id = "other".to_owned())),
        ("worker 1 saved name x where worker 0 saved step-50", told(&|o| o[1].name = "x".to_owned())),
    ] {
        assert_eq!(sentence, format!("{expected}{of_all}"));
    }
    let a_file = told(&|o| {
        o[1].kind = EntryKind::File;
        o[1].files = vec![file("", vec![])];
    });
    assert_eq!(a_file, "worker 1 saved a file where worker 0 saved a directory: step-50");
    let inside = told(&|o| o[2].files[1].path = "part/x".to_owned());
    assert_eq!(inside, "worker 0 saved a file where worker 2 saved a directory: part");
    assert_eq!(told(&Vec::clear), "a checkpoint is written by 1 to 512 workers, not by 0");
    assert!(told(&|o| o[1].name = "..".to_owned()).contains("manifest: name"));
    assert!(told(&|o| o[1].machine = "worker-0".to_owned()).contains("name a machine twice"));
    assert!(merge(&good[..1]).unwrap().writers.is_empty(), "one worker is no gang");
    let merged = merge(&good).unwrap();
    assert!(matches!(merge(&[merged]), Err(MergeError::Merged)), "an offer is of one worker");
}

#[test]
fn files_of_workers_keep_their_names() {
    let stage = Stage::default();
    let mut gang = Gang::new(2, 0);
    let mut offers = gang.offers(&stage, 50, None);
    for (rank, offer) in offers.iter_mut().enumerate() {
        offer.kind = EntryKind::File;
        offer.name = format!("rank{rank}-step50.pt");
        let part = offer.files[1].chunks.clone();
        offer.files = vec![file("", part)];
    }
    let merged = merge(&offers).unwrap();
    assert_eq!(for_rank(&merged, 0).unwrap().name, "rank0-step50.pt");
    assert_eq!(for_rank(&merged, 1).unwrap().name, "rank1-step50.pt");
    assert!(for_rank(&merged, 2).unwrap_err().to_string().contains("its own version of rank0-step50.pt"));
    // With the same content it is for everybody.
    offers[1].files = offers[0].files.clone();
    let merged = merge(&offers).unwrap();
    assert_eq!(for_rank(&merged, 1).unwrap().name, "rank1-step50.pt");
    assert_eq!(for_rank(&merged, 7).unwrap().name, "rank0-step50.pt");
}

#[test]
fn a_gang_of_the_largest_size_fits_into_the_log() {
    let stage = Stage::default();
    stage.begin(0);
    let mut gang = Gang::new(MAX_RANKS, 0);
    let offers = gang.offers(&stage, 1, None);
    let manifest = merge(&offers).unwrap();
    assert_eq!(manifest.files.len(), 1 + MAX_RANKS);
    assert_eq!(gang.commit(&stage, &manifest), CommitOutcome::Committed { seq: 1 });
    let mut more = offers;
    more.push(more[0].clone());
    assert_eq!(merge(&more), Err(MergeError::Count(MAX_RANKS + 1)));
    // Too much for the log is said before anybody tries to write it.
    let mut wide = Gang::new(2, 0).offers(&stage, 2, None);
    for (rank, offer) in wide.iter_mut().enumerate() {
        offer.files = (0..9_000).map(|n| file(&format!("{}-{rank}-{n:05}", "x".repeat(200)), vec![])).collect();
    }
    assert!(matches!(merge(&wide), Err(MergeError::Invalid(_))));
}

/// What each worker wrote: content by path. Few paths and contents, so that workers often have the same.
fn written() -> impl Strategy<Value = Vec<BTreeMap<String, u8>>> {
    let paths = prop::sample::select(vec!["a", "b", "d/x", "d/y", "e/f/g"]).prop_map(str::to_owned);
    prop::collection::vec(prop::collection::btree_map(paths, 0_u8..3, 0..5), 1..6)
}

fn offer(rank: usize, files: &BTreeMap<String, u8>) -> Manifest {
    let machine = format!("worker-{rank}");
    let prefix = data_prefix(2, &machine);
    let chunk = |slot: usize, content: u8| Chunk {
        key: slot_key(&prefix, slot as u64),
        size_bytes: 8,
        sha256: sha256(&[content]),
    };
    let files = files.iter().enumerate().map(|(slot, (path, content))| file(path, vec![chunk(slot, *content)]));
    Manifest {
        version: VERSION,
        run_id: RUN.to_owned(),
        attempt: 2,
        machine,
        step: 7,
        name: "step-7".to_owned(),
        kind: EntryKind::Directory,
        files: files.collect(),
        saved_at: Timestamp::UNIX_EPOCH,
        save_began_at: Timestamp::UNIX_EPOCH,
        parent: None,
        writers: vec![],
    }
}

fn contents(manifest: &Manifest) -> BTreeMap<String, String> {
    manifest.files.iter().map(|file| (file.path.clone(), file.chunks[0].sha256.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every worker finds again what it wrote, and of the others what only one version exists of.
    #[test]
    fn nobody_loses_what_it_wrote(written in written()) {
        let offers: Vec<Manifest> = written.iter().enumerate().map(|(rank, files)| offer(rank, files)).collect();
        let merged = merge(&offers).unwrap();
        prop_assert!(merged.validate().is_ok());
        prop_assert_eq!(&merge(&offers).unwrap(), &merged);
        let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, sha256) in offers.iter().flat_map(contents) {
            versions.entry(path).or_default().insert(sha256);
        }
        for (rank, own) in (0_u32..).zip(&offers) {
            let restored = for_rank(&merged, rank).unwrap();
            prop_assert!(restored.validate().is_ok());
            prop_assert!(restored.writers.is_empty() && restored.files.iter().all(|file| file.rank.is_none()));
            let restored = contents(&restored);
            for (path, content) in contents(own) {
                prop_assert_eq!(restored.get(&path), Some(&content), "{} of worker {}", path, rank);
            }
            for (path, contents) in &versions {
                prop_assert!(contents.len() > 1 || restored.contains_key(path), "{} for worker {}", path, rank);
            }
            prop_assert!(restored.iter().all(|(path, content)| versions[path].contains(content)));
        }
        let newcomer = for_rank(&merged, 99);
        let apart = versions.values().any(|contents| contents.len() > 1);
        prop_assert_eq!(newcomer.is_err(), apart);
        if let Ok(newcomer) = newcomer {
            prop_assert_eq!(contents(&newcomer).len(), versions.len());
        }
    }
}
