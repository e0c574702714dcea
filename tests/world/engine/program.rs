//! The program that machines run: its whole state follows from the step, so that every restore and every result can be checked.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::chance::mix;

/// Files of a save by path.
pub type Files = BTreeMap<String, Bytes>;

/// What a job runs.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Distinguishes the states of different jobs.
    pub salt: u64,
    /// Steps in all.
    pub steps: u64,
    /// Time per step.
    pub step_time: Duration,
    /// So much more for each step of a worker than of the one before it: they do not keep step.
    pub drag: Duration,
    /// Steps between saves.
    pub save_every: u64,
    /// Time a save takes.
    pub save_time: Duration,
    /// The program fails with exit code 1 in this attempt at this step.
    pub fails: Option<(u32, u64)>,
    /// The program saves its state before it obeys SIGTERM.
    pub saves_on_stop: bool,
    /// The program hangs in this attempt at this step.
    pub hangs: Option<(u32, u64)>,
    /// Workers that run it.
    pub workers: u32,
    /// Each of them saves its part.
    pub all_ranks: bool,
}

/// The state after `step` steps of an uninterrupted run.
pub fn state_at(salt: u64, step: u64) -> u64 {
    (1..=step).fold(mix(salt), advance)
}

fn advance(state: u64, step: u64) -> u64 {
    mix(state ^ step)
}

/// What a save holds: something that never changes, something that changes now and then, and the state.
pub fn save(salt: u64, step: u64, state: u64) -> Files {
    let file = |text: String| Bytes::from(text.into_bytes());
    BTreeMap::from([
        ("config.json".to_owned(), file(format!("{{\"salt\": {salt}}}"))),
        ("optimiser.bin".to_owned(), file(format!("epoch {} of {salt}", step / 12))),
        ("weights.bin".to_owned(), file(format!("{step} {state:016x}"))),
    ])
}

/// The same where each worker saves its part.
pub fn save_part(salt: u64, step: u64, state: u64, rank: u32) -> Files {
    let mut files = save(salt, step, state);
    files.insert("own.bin".to_owned(), Bytes::from(format!("{rank} at {step}").into_bytes()));
    files
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Step and state in a save.
pub fn read(files: &Files) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(files.get("weights.bin")?).ok()?;
    let (step, state) = text.split_once(' ')?;
    Some((step.parse().ok()?, u64::from_str_radix(state, 16).ok()?))
}

/// A running program.
#[derive(Debug, Clone)]
pub struct Program {
    /// What it runs.
    pub recipe: Recipe,
    /// Its attempt.
    pub attempt: u32,
    /// Its worker.
    pub rank: u32,
    /// Steps done.
    pub step: u64,
    /// State after them.
    pub state: u64,
    /// When it does something next.
    pub next_at: Duration,
    /// A save under way, since when.
    saving: Option<Duration>,
    /// When it must be over after a signal.
    ending: Option<i32>,
    /// It obeys SIGTERM once its state is saved.
    stopping: bool,
    /// Step of the newest save.
    saved: u64,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Made a step.
    Step,
    /// Completed a save that it began at this time.
    Saved(Duration),
    /// Ended with this code; below zero by that signal.
    Ended(i32),
}

impl Program {
    /// A program that goes on from `from`, or from zero.
    pub fn new(recipe: Recipe, attempt: u32, rank: u32, from: Option<(u64, u64)>, now: Duration) -> Self {
        let (step, state) = from.unwrap_or((0, mix(recipe.salt)));
        let next_at = now + recipe.step_time + recipe.drag * rank;
        Self { recipe, attempt, rank, step, state, next_at, saving: None, ending: None, stopping: false, saved: step }
    }

    /// A signal arrives: it is over within a second.
    pub fn signal(&mut self, number: i32, now: Duration) {
        if number == 15 && self.recipe.saves_on_stop && self.ending.is_none() && self.step > self.saved {
            self.stopping = true;
            if self.saving.is_none() {
                self.saving = Some(now);
                self.next_at = now + self.recipe.save_time;
            }
            return;
        }
        self.ending = Some(-number);
        self.next_at = now + Duration::from_millis(if number == 9 { 1 } else { 700 });
    }

    /// Does what is due at `now`.
    pub fn act(&mut self, now: Duration) -> Deed {
        if let Some(code) = self.ending {
            return Deed::Ended(code);
        }
        if let Some(since) = self.saving.take() {
            self.saved = self.step;
            if self.stopping {
                self.ending = Some(-15);
            }
            self.next_at =
                now + if self.step >= self.recipe.steps { Duration::from_millis(300) } else { self.step_time() };
            return Deed::Saved(since);
        }
        if self.step >= self.recipe.steps {
            return Deed::Ended(0);
        }
        self.step += 1;
        self.state = advance(self.state, self.step);
        if self.recipe.hangs == Some((self.attempt, self.step)) {
            self.next_at = Duration::MAX;
            return Deed::Step;
        }
        // One of several workers.
        let picked = self.step % u64::from(self.recipe.workers) == u64::from(self.rank);
        if picked && self.recipe.fails == Some((self.attempt, self.step)) {
            self.ending = Some(1);
            self.next_at = now;
            return Deed::Step;
        }
        let save = self.step.is_multiple_of(self.recipe.save_every) || self.step >= self.recipe.steps;
        if save {
            self.saving = Some(now);
            self.next_at = now + self.recipe.save_time;
        } else {
            self.next_at = now + self.step_time();
        }
        Deed::Step
    }

    fn step_time(&self) -> Duration {
        self.recipe.step_time + self.recipe.drag * self.rank
    }

    /// What a save holds now.
    pub fn files(&self) -> Files {
        if self.recipe.all_ranks {
            return save_part(self.recipe.salt, self.step, self.state, self.rank);
        }
        save(self.recipe.salt, self.step, self.state)
    }
}
