//! Which names are checkpoints, and of which step. The agent goes by it; the operator refuses what no agent could go by before it costs
//! anything.

use globset::{Glob, GlobMatcher};

/// Marks the place of the step in a pattern.
const STEP: &str = "{step}";
/// Names of our own beside or among checkpoints begin like this and are never checkpoints.
pub const OWN_PREFIX: &str = ".tradewind-";

/// A pattern that cannot be used; a sentence without its subject.
#[derive(Debug, thiserror::Error)]
pub enum BadPattern {
    /// It has no characters.
    #[error("must not be empty")]
    Empty,
    /// It would match more than one segment of a path.
    #[error("must be the name of a file or directory without /; the directory goes into checkpoint.path")]
    Slash,
    /// The step has two places.
    #[error("must have {{step}} at most once")]
    TwoSteps,
    /// It names files of ours.
    #[error("must not begin with {OWN_PREFIX}, which marks files of our own")]
    Ours,
    /// It is no glob.
    #[error("is no glob ({0}); write *, ?, [abc] or {{a,b}}, and \\ before such a character that stands for itself")]
    NoGlob(globset::ErrorKind),
}

/// A glob for the name of one checkpoint.
#[derive(Debug, Clone)]
pub struct Pattern {
    before: GlobMatcher,
    /// What follows the step; `None` if the pattern does not say where the step is.
    after: Option<GlobMatcher>,
}

impl Pattern {
    /// Reads a pattern; see [`crate::CheckpointSettings::pattern`].
    pub fn new(pattern: &str) -> Result<Self, BadPattern> {
        if pattern.is_empty() {
            return Err(BadPattern::Empty);
        }
        if pattern.contains(['/', '\0']) {
            return Err(BadPattern::Slash);
        }
        if pattern.matches(STEP).count() > 1 {
            return Err(BadPattern::TwoSteps);
        }
        if pattern.starts_with(OWN_PREFIX) {
            return Err(BadPattern::Ours);
        }
        let glob = |text: &str| match Glob::new(text) {
            Ok(glob) => Ok(glob.compile_matcher()),
            Err(error) => Err(BadPattern::NoGlob(error.kind().clone())),
        };
        match pattern.split_once(STEP) {
            Some((before, after)) => Ok(Self { before: glob(before)?, after: Some(glob(after)?) }),
            None => Ok(Self { before: glob(pattern)?, after: None }),
        }
    }

    /// `None` if the name is no checkpoint's; otherwise its step, if the name tells one.
    pub fn step(&self, name: &str) -> Option<Option<u64>> {
        if name.starts_with(OWN_PREFIX) {
            return None;
        }
        let Some(after) = &self.after else {
            let matches = self.before.is_match(name);
            return matches.then(|| digit_runs(name).last().and_then(|(from, to)| name[from..to].parse().ok()));
        };
        let fits = |(from, to): &(usize, usize)| self.before.is_match(&name[..*from]) && after.is_match(&name[*to..]);
        let (from, to) = digit_runs(name).find(fits)?;
        name[from..to].parse().ok().map(Some)
    }
}

/// Where runs of ASCII digits begin and end.
fn digit_runs(name: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + name[from..].find(|c: char| c.is_ascii_digit())?;
        let end = name[start..].find(|c: char| !c.is_ascii_digit()).map_or(name.len(), |length| start + length);
        from = end;
        Some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_whole_and_the_step_is_found() {
        for (pattern, name, expected) in [
            ("step-{step}.npz", "step-000120.npz", Some(Some(120))),
            ("step-{step}.npz", "step-000120.npz.tmp", None),
            ("step-{step}.npz", "step-.npz", None),
            ("step-{step}.npz", "my-step-1.npz", None),
            ("checkpoint-{step}", "checkpoint-500", Some(Some(500))),
            ("epoch=*-step={step}.ckpt", "epoch=3-step=77.ckpt", Some(Some(77))),
            ("{step}", "120", Some(Some(120))),
            ("{step}", "120.orbax-checkpoint-tmp", None),
            ("*.pt", "epoch1-step20.pt", Some(Some(20))),
            ("latest.pt", "latest.pt", Some(None)),
            ("*", ".tradewind-staging", None),
            ("{step}", "99999999999999999999999999", None),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().step(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_no_agent_could_go_by_is_refused_in_words() {
        for (pattern, words) in [
            ("", "must not be empty"),
            ("a/b", "without /"),
            ("{step}-{step}", "{step} at most once"),
            (".tradewind-{step}", "files of our own"),
            ("step-[", "is no glob (unclosed character class"),
            ("{a,{step}", "is no glob"),
        ] {
            let said = Pattern::new(pattern).unwrap_err().to_string();
            assert!(said.contains(words), "{pattern}: {said}");
        }
    }
}
