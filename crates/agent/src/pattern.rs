//! Which names are checkpoints, and of which step.

use globset::{Glob, GlobMatcher};

/// Marks the place of the step in a pattern.
const STEP: &str = "{step}";
/// Names of our own beside or among checkpoints begin like this and are never checkpoints.
pub const OWN_PREFIX: &str = ".tradewind-";

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint pattern is not a glob")]
pub struct BadPattern(#[source] globset::Error);

/// A glob for the name of one checkpoint.
#[derive(Debug, Clone)]
pub struct Pattern {
    before: GlobMatcher,
    /// What follows the step; `None` if the pattern does not say where the step is.
    after: Option<GlobMatcher>,
}

impl Pattern {
    /// Reads a pattern; see [`tradewind_protocol::CheckpointSettings::pattern`].
    pub fn new(pattern: &str) -> Result<Self, BadPattern> {
        let glob = |text: &str| Ok(Glob::new(text).map_err(BadPattern)?.compile_matcher());
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
        assert!(Pattern::new("step-[").is_err());
    }
}
