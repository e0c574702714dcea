//! What the market's memory looks like in the mailbox: by wall time, bounded, and merged with what was learned meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tradewind_api::conditions::bounded;
use tradewind_core::GpuModel;

use super::lives::Watched;
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
    /// Until when the lives have aged; documents from before they did have none.
    #[serde(default)]
    lives_aged_to: Option<Timestamp>,
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
    /// Losses, rounded: what operators read that do not know the next figure.
    count: u64,
    #[serde(default)]
    losses_milli: Option<u64>,
    /// Of all machines. Documents from before have only those of machines that were lost.
    seconds: u64,
}

impl Life {
    fn watched(&self) -> Watched {
        let losses_milli = self.losses_milli.unwrap_or_else(|| self.count.saturating_mul(1000));
        Watched { losses_milli, seconds: self.seconds }
    }
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
        let mut inner = self.lock();
        inner.lives.age(now.wall);
        let (lives, lives_aged_to) = inner.lives.to_remember();
        let lives = lives.take(MOST_NOTES).map(|((provider, gpu), watched)| Life {
            provider: provider.clone(),
            gpu: gpu.clone(),
            count: watched.losses_milli.saturating_add(500) / 1000,
            losses_milli: Some(watched.losses_milli),
            seconds: watched.seconds,
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
            lives_aged_to,
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
        let known = remembered.lives.into_iter().take(MOST_NOTES).map(|life| {
            let watched = life.watched();
            ((life.provider, life.gpu), watched)
        });
        lives.recall(known, remembered.lives_aged_to, now.wall);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_as_older_documents_have_them_and_fade_while_nobody_looks() {
        let at = |day: i64| Moment {
            monotonic: Duration::ZERO,
            wall: Timestamp::from_second(1_790_000_000 + day * 86_400).unwrap(),
        };
        let pool = ("p".to_owned(), None);
        let mean = |market: &Market| market.knowledge(Duration::ZERO).mean_life_s[&pool];
        let old = br#"{"version": 1, "lives": [{"provider": "p", "count": 3, "seconds": 3600}]}"#;
        let market = Market::default();
        market.recall(Remembered::decode(old).unwrap(), at(0));
        assert_eq!(mean(&market), (3600 + 3 * 7200) / 6);
        (0..100).for_each(|_| market.outlasted("p", None, 3600, Duration::ZERO));
        assert_eq!(mean(&market), (101 + 6) * 3600 / 6);
        let written = market.to_remember(at(0)).1.encode();
        let text = String::from_utf8(written.clone()).unwrap();
        assert!(text.contains(r#""count":3"#), "an older operator can read it: {text}");

        let later = Market::default();
        later.put("p", Duration::ZERO, at(14).wall, Vec::new());
        later.recall(Remembered::decode(&written).unwrap(), at(14));
        let half = (101 * 1800 + 6 * 3600) * 10 / 45;
        assert!(mean(&later).abs_diff(half) < 100, "{} and not {half}", mean(&later));
    }
}
