//! What the market's memory looks like in the mailbox: by wall time, bounded, and merged with what was learned meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tradewind_api::conditions::bounded;
use tradewind_core::GpuModel;

use super::pools::Seen;
use super::{Inner, Market, PROVEN_FOR};

/// Notes of each kind that are kept, those that last longest: with reasons of at most [`REASON_CHARS`] well under [`MAX_BYTES`].
const MOST_NOTES: usize = 500;
const REASON_CHARS: usize = 200;
/// No single start, and nothing that was written by anybody, makes set-ups look longer.
pub(super) const LONGEST_SET_UP_S: u64 = 3600;
/// Spot pools that are kept, of about 2 KB each.
const MOST_POOLS: usize = 300;
/// The largest document that is read.
pub const MAX_BYTES: u64 = 2 << 20;
/// The form of the document. Another one is ignored: nothing is lost but experience.
const VERSION: u32 = 1;

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    version: u32,
    #[serde(default)]
    refused: Vec<Note>,
    #[serde(default)]
    banned: Vec<Note>,
    #[serde(default)]
    suspected: Vec<Note>,
    #[serde(default)]
    proven: Vec<Note>,
    #[serde(default)]
    lives: Vec<Life>,
    #[serde(default)]
    set_ups: Vec<SetUp>,
    #[serde(default)]
    pools: Vec<Seen>,
}

/// An offer or a host of a Provider, and until when something is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    provider: String,
    what: String,
    until: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// How long spot machines of a pool have lived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Life {
    provider: String,
    #[serde(default)]
    gpu: Option<GpuModel>,
    count: u64,
    seconds: u64,
}

/// How long machines of a pool take until they run, on average.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SetUp {
    provider: String,
    #[serde(default)]
    gpu: Option<GpuModel>,
    seconds: u64,
}

type Notes = BTreeMap<(String, String), (Duration, String)>;

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic time of this process.
    pub monotonic: Duration,
    /// Wall time, the only one that a later process shares.
    pub wall: Timestamp,
}

impl Moment {
    fn to_wall(self, until: Duration) -> Option<Timestamp> {
        let left = until.checked_sub(self.monotonic).filter(|left| !left.is_zero())?;
        self.wall.checked_add(SignedDuration::try_from(left).ok()?).ok()
    }

    /// `None` for what is over. A clock that was wrong when a note was written makes no note for ever.
    fn to_monotonic(self, until: Timestamp) -> Option<Duration> {
        let left = Duration::try_from(until.duration_since(self.wall)).ok().filter(|left| !left.is_zero())?;
        Some(self.monotonic + left.min(PROVEN_FOR))
    }
}

fn written(notes: &Notes, now: Moment) -> Vec<Note> {
    let note = |((provider, what), (until, reason)): (&(String, String), &(Duration, String))| {
        let (provider, what, reason) = (provider.clone(), what.clone(), bounded(reason.clone(), REASON_CHARS));
        Some(Note { provider, what, until: now.to_wall(*until)?, reason })
    };
    let mut written: Vec<Note> = notes.iter().filter_map(note).collect();
    written.sort_by_key(|note| std::cmp::Reverse(note.until));
    written.truncate(MOST_NOTES);
    written
}

fn merge(into: &mut Notes, notes: Vec<Note>, now: Moment) {
    for note in notes.into_iter().take(MOST_NOTES) {
        let Some(until) = now.to_monotonic(note.until) else { continue };
        let known = into.entry((note.provider, note.what)).or_default();
        if until > known.0 {
            *known = (until, bounded(note.reason, REASON_CHARS));
        }
    }
}

impl Remembered {
    /// Reads the document; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|read| read.version == VERSION)
    }

    /// The document's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

impl Market {
    /// What is to be remembered as of now, and the revision that it is.
    pub fn to_remember(&self, now: Moment) -> (u64, Remembered) {
        let inner = self.lock();
        let lives = inner.lives.iter().take(MOST_NOTES).map(|((provider, gpu), (count, seconds))| Life {
            provider: provider.clone(),
            gpu: gpu.clone(),
            count: *count,
            seconds: *seconds,
        });
        let set_ups = inner.set_ups.iter().take(MOST_NOTES).map(|((provider, gpu), seconds)| SetUp {
            provider: provider.clone(),
            gpu: gpu.clone(),
            seconds: *seconds,
        });
        let remembered = Remembered {
            version: VERSION,
            refused: written(&inner.refused, now),
            banned: written(&inner.banned, now),
            suspected: written(&inner.suspected, now),
            proven: written(&inner.proven, now),
            lives: lives.collect(),
            set_ups: set_ups.collect(),
            pools: inner.pools.to_remember(MOST_POOLS),
        };
        (inner.revision, remembered)
    }

    /// Takes what an earlier process knew, beside what this one has learned already. What lasts longer counts.
    pub fn recall(&self, remembered: Remembered, now: Moment) {
        let mut inner = self.lock();
        let Inner { refused, banned, suspected, proven, lives, set_ups, pools, .. } = &mut *inner;
        merge(refused, remembered.refused, now);
        pools.recall(remembered.pools, now.wall);
        for known in remembered.set_ups.into_iter().take(MOST_NOTES) {
            set_ups.entry((known.provider, known.gpu)).or_insert(known.seconds.min(LONGEST_SET_UP_S));
        }
        merge(banned, remembered.banned, now);
        merge(suspected, remembered.suspected, now);
        merge(proven, remembered.proven, now);
        for life in remembered.lives.into_iter().take(MOST_NOTES) {
            let (count, seconds) = lives.entry((life.provider, life.gpu)).or_default();
            *count = count.saturating_add(life.count);
            *seconds = seconds.saturating_add(life.seconds);
        }
    }
}
