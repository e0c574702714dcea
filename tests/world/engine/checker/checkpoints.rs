//! Promise 3: no checkpoint is lost, half-visible or corrupt, and a zombie never commits over its successor.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tradewind_protocol::LogEntry;

use super::super::cluster::{job_name, job_prefix};
use super::super::ports::BUCKET;
use super::super::program::{Files, save, save_part, sha256_hex, state_at};
use super::super::wire::Common;
use super::Checker;

/// What was read from the bucket so far.
#[derive(Default)]
pub struct Books {
    dirty: bool,
    /// Entries by job and sequence.
    logs: BTreeMap<usize, BTreeMap<u64, LogEntry>>,
    /// Chunks whose content was verified.
    verified: BTreeSet<(String, String)>,
    /// The newest checkpoint of each job so far.
    newest: BTreeMap<usize, u64>,
}

impl Books {
    /// All entries of a job's log.
    pub fn entries(&self, n: usize) -> impl Iterator<Item = &LogEntry> {
        self.logs.get(&n).into_iter().flat_map(BTreeMap::values)
    }
}

impl Checker {
    /// Something was written or deleted in a bucket.
    pub fn store_changes(&mut self) {
        self.books.dirty = true;
    }

    /// Reads the logs again if they may have changed.
    pub(super) fn look_at_bucket(&mut self, common: &Common) {
        if !std::mem::take(&mut self.books.dirty) {
            return;
        }
        let objects = common.server.objects(BUCKET);
        for n in 0..self.jobs.len() {
            self.look_at_log(n, &objects);
        }
    }

    fn look_at_log(&mut self, n: usize, objects: &BTreeMap<String, Bytes>) {
        let prefix = job_prefix(n);
        let place = format!("{prefix}log/");
        let mut known = self.books.logs.remove(&n).unwrap_or_default();
        for (key, bytes) in objects.range(place.clone()..).take_while(|(key, _)| key.starts_with(&place)) {
            let seq: u64 = key[place.len()..].trim_end_matches(".json").parse().unwrap_or(u64::MAX);
            if bytes.is_empty() {
                continue;
            }
            let Ok(entry) = LogEntry::decode(bytes) else {
                self.fail(format!("{key} is no entry"));
                continue;
            };
            if let Some(old) = known.get(&seq) {
                let same = *old == entry;
                self.ensure(same, || format!("{key} was overwritten with another entry"));
                continue;
            }
            self.entry_appended(n, seq, &entry, &known);
            known.insert(seq, entry);
        }
        self.look_at_live(n, &known, objects);
        self.books.logs.insert(n, known);
    }

    fn entry_appended(&mut self, n: usize, seq: u64, entry: &LogEntry, known: &BTreeMap<u64, LogEntry>) {
        let name = job_name(n);
        let last = known.last_key_value().map(|(seq, _)| *seq);
        self.ensure(last.is_none_or(|last| last < seq), || format!("{name}: entry {seq} appeared below {last:?}"));
        let fence = known.values().rev().find_map(|e| match e {
            LogEntry::AttemptStarted { attempt, .. } => Some(*attempt),
            _ => None,
        });
        match entry {
            LogEntry::AttemptStarted { attempt, .. } => {
                self.ensure(fence.is_none_or(|fence| fence < *attempt), || {
                    format!("{name}: the fence of attempt {attempt} after that of {fence:?}")
                });
            }
            LogEntry::Checkpoint { manifest, .. } => {
                self.ensure(fence == Some(manifest.attempt), || {
                    format!(
                        "{name}: attempt {} committed step {} behind the fence of attempt {fence:?}",
                        manifest.attempt, manifest.step
                    )
                });
            }
            LogEntry::Collected { .. } => {}
        }
    }

    /// Checkpoints that count have all their chunks, and the newest never goes back.
    fn look_at_live(&mut self, n: usize, known: &BTreeMap<u64, LogEntry>, objects: &BTreeMap<String, Bytes>) {
        let name = job_name(n);
        let prefix = job_prefix(n);
        let dropped: BTreeSet<u64> = known
            .values()
            .filter_map(|e| if let LogEntry::Collected { dropped, .. } = e { Some(dropped) } else { None })
            .flatten()
            .copied()
            .collect();
        let mut newest = None;
        let live: Vec<(u64, LogEntry)> = known
            .iter()
            .filter(|(seq, e)| matches!(e, LogEntry::Checkpoint { .. }) && !dropped.contains(seq))
            .map(|(seq, e)| (*seq, e.clone()))
            .collect();
        for (seq, entry) in live {
            let LogEntry::Checkpoint { manifest, .. } = entry else { continue };
            newest = Some(seq);
            let there = objects.get(&format!("{prefix}log/{seq:010}.json")).is_some_and(|bytes| !bytes.is_empty());
            self.ensure(there, || format!("{name}: the entry of checkpoint {seq} is gone or empty"));
            for chunk in manifest.chunks() {
                let key = format!("{prefix}{}", chunk.key);
                if self.damaged.contains(&key) {
                    continue;
                }
                let Some(bytes) = objects.get(&key) else {
                    self.fail(format!("{name}: checkpoint {seq} (step {}) lacks {key}", manifest.step));
                    return;
                };
                if self.books.verified.insert((key.clone(), chunk.sha256.clone())) {
                    let hash = sha256_hex(bytes);
                    let good = hash == chunk.sha256 && bytes.len() as u64 == chunk.size_bytes;
                    self.ensure(good, || {
                        format!("{name}: checkpoint {seq} (step {}): {key} has other content", manifest.step)
                    });
                }
            }
        }
        let before = self.books.newest.get(&n).copied();
        self.ensure(newest >= before, || format!("{name}: the newest checkpoint was {before:?} and is {newest:?}"));
        if let Some(newest) = newest {
            self.books.newest.insert(n, newest);
        }
    }

    /// A machine's report with an offer is in the mailbox, while the market says that the machine runs.
    pub fn offered(&mut self, machine: &str, attempt: u32, step: u64) {
        let Some(rental) = self.rentals.get(machine) else { return };
        // What it does after it was given up (deleted by hand, say) is not promised to anybody.
        if rental.ended_at.is_some() {
            return;
        }
        let n = rental.job;
        let fenced = self.jobs[n].starts.iter().any(|(newer, _)| *newer > attempt);
        let best = self.jobs[n].offered.entry(attempt).or_insert(0);
        if !fenced && step > *best {
            *best = step;
            self.offers += 1;
        }
    }

    /// A program starts from a step, 0 = from zero. `alive`: the market knows of it.
    pub fn program_started(&mut self, n: usize, attempt: u32, rank: u32, step: u64, alive: bool) {
        let name = job_name(n);
        let twice = !self.jobs[n].began.insert((attempt, rank));
        self.ensure(!twice, || format!("{name}: the program of attempt {attempt} was started twice"));
        let safe = self.jobs[n].offered.range(..attempt).map(|(_, step)| *step).max().unwrap_or(0);
        let safe = safe.max(self.offered_together(n, attempt));
        let excused = self.losses_excused || !alive;
        let other = self.jobs[n].starts.iter().find(|(known, _)| *known == attempt).map(|(_, step)| *step);
        self.ensure(other.is_none_or(|other| other == step) || excused, || {
            format!("{name}: worker {rank} of attempt {attempt} starts from step {step}, another from {other:?}")
        });
        let counted = self.committed(n).range(..attempt).map(|(_, step)| *step).max().unwrap_or(0);
        self.ensure(step >= counted || excused, || {
            format!("{name}: attempt {attempt} starts from step {step}, although step {counted} was committed before")
        });
        self.ensure(step >= safe || excused, || {
            format!("{name}: attempt {attempt} starts from step {step}, although step {safe} was uploaded and offered before")
        });
        if other.is_none() {
            self.jobs[n].starts.push((attempt, step));
        }
    }

    /// What a machine has put back on its disk.
    pub fn restored(&mut self, run_id: &str, step: u64, rank: u32, files: &Files) {
        let job = self.jobs.iter().position(|job| {
            job.object.as_ref().and_then(|j| j.status.as_ref()).and_then(|s| s.run_id.as_deref()) == Some(run_id)
        });
        let Some(n) = job else {
            self.fail(format!("a checkpoint of the unknown run {run_id} was restored"));
            return;
        };
        let salt = self.recipes[n].0;
        let state = state_at(salt, step);
        let expected =
            if self.parts.contains(&n) { save_part(salt, step, state, rank) } else { save(salt, step, state) };
        self.ensure(*files == expected, || {
            format!("{}: what was restored of step {step} is not what was saved", job_name(n))
        });
    }

    /// A program ended with success: its result is that of an uninterrupted run.
    pub fn finished(&mut self, salt: u64, step: u64, state: u64) {
        let steps = self.recipes.iter().find(|(known, _)| *known == salt).map(|(_, steps)| *steps);
        let expected = state_at(salt, step);
        self.results.insert(salt);
        self.ensure(steps == Some(step) && state == expected, || {
            format!("a program ended at step {step} of {steps:?} with another result than an uninterrupted run")
        });
    }
}
