//! Checkpoints that all workers save together (`writers: AllRanks`): which step counts, and which offers never will. Pure, but for the commit.

use std::collections::BTreeMap;

use tradewind_checkpoints::gang::{candidate_for, merge};
use tradewind_checkpoints::{Catalogue, CommitOutcome, StoreError};
use tradewind_protocol::control::{Committed, RefusedOffer};
use tradewind_protocol::{Control, Manifest, Report, RestoreCandidate};

use crate::serving::Verdict;

/// Offers of one worker that are remembered: as many as its agent remembers, so that workers whose uploads take turns still find a common
/// step.
const KEPT: usize = 8;

/// What one worker has saved and nobody has decided on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Number and manifest by step.
    pub offers: BTreeMap<u64, (u64, Manifest)>,
    /// The offer that its agent waits for: number and step.
    pub waits: Option<(u64, u64)>,
    /// The checkpoint that its agent was told of last.
    pub committed: Option<Committed>,
    /// It will offer nothing more.
    pub last: bool,
}

impl Part {
    /// Takes note of a report and of what was decided so far.
    pub fn note(&mut self, report: Option<&Report>, control: Option<&Control>, attempt: u32, last: bool) {
        self.last = last;
        self.committed = control.and_then(|control| control.committed);
        let refused = control.and_then(|control| control.refused.as_ref()).map_or(0, |refused| refused.offer);
        let decided = self.committed.map_or(0, |committed| committed.offer).max(refused);
        let ours = report.filter(|report| report.attempt.is_none_or(|of| of == attempt));
        self.waits = None;
        if let Some(offer) = ours.and_then(|report| report.offer.as_ref()).filter(|offer| offer.number > decided) {
            self.waits = Some((offer.number, offer.manifest.step));
            self.offers.entry(offer.manifest.step).or_insert_with(|| (offer.number, offer.manifest.clone()));
        }
        let done = self.committed.map(|committed| committed.step);
        self.offers.retain(|step, (number, _)| *number > decided && Some(*step) > done);
        while self.offers.len() > KEPT {
            self.offers.pop_first();
        }
    }

    fn newest(&self) -> Option<u64> {
        self.offers.last_key_value().map(|(step, _)| *step).max(self.committed.map(|committed| committed.step))
    }
}

/// What is to be done about the parts.
#[derive(Debug, Clone, PartialEq)]
pub enum Joint {
    /// All have this step: commit it.
    Commit(u64),
    /// What each is told, by rank; `None` = nothing new.
    Tell(Vec<Option<Verdict>>),
}

/// Decides. Each rank has its part.
pub fn decide(parts: &[Part]) -> Joint {
    let first = parts.first().map(|part| part.offers.keys().rev().copied());
    let common = first.and_then(|mut steps| steps.find(|s| parts.iter().all(|part| part.offers.contains_key(s))));
    if let Some(step) = common {
        return Joint::Commit(step);
    }
    Joint::Tell((0..parts.len()).map(|rank| verdict(parts, rank)).collect())
}

/// What a worker is told whose offer waits: it counts already (we went away before we could say so), or never will.
fn verdict(parts: &[Part], rank: usize) -> Option<Verdict> {
    let (offer, step) = parts[rank].waits?;
    let counted = parts.iter().filter_map(|part| part.committed).max_by_key(|committed| committed.seq);
    if let Some(counted) = counted.filter(|counted| counted.step >= step) {
        return Some(if counted.step == step {
            Verdict::Committed(Committed { offer, ..counted })
        } else {
            let reason = format!("the checkpoint of step {} of all workers counts already", counted.step);
            Verdict::Refused(RefusedOffer { offer, reason })
        });
    }
    let without = parts.iter().enumerate().find(|(_, part)| {
        let later = part.newest().is_some_and(|newest| newest > step);
        !part.offers.contains_key(&step) && (part.last || later)
    });
    without.map(|(other, part)| {
        let instead = part.newest().map_or_else(
            || "has saved nothing".to_owned(),
            |newest| format!("has not, its newest is of step {newest}"),
        );
        let reason = format!(
            "worker {rank} has saved step {step}, worker {other} {instead}; with checkpoint.writers AllRanks a checkpoint counts only once every worker has saved the same step"
        );
        Verdict::Refused(RefusedOffer { offer, reason })
    })
}

/// What each rank is told once the common checkpoint of a step was committed or refused for good.
pub fn outcome(parts: &[Part], step: u64, told: &Result<u64, String>) -> Vec<Option<Verdict>> {
    let one = |part: &Part| {
        let (offer, _) = part.offers.get(&step)?;
        Some(match told {
            Ok(seq) => Verdict::Committed(Committed { offer: *offer, seq: *seq, step }),
            Err(reason) => Verdict::Refused(RefusedOffer { offer: *offer, reason: reason.clone() }),
        })
    };
    parts.iter().map(one).collect()
}

/// Commits the parts of one step as one checkpoint. Gives back what was committed, for the status; the inner error is a sentence, for good.
pub async fn commit(
    catalogue: &Catalogue,
    ids: &[String],
    attempt: u32,
    parts: &[Manifest],
) -> Result<Result<(CommitOutcome, Manifest), String>, StoreError> {
    let merged = match merge(parts) {
        Ok(merged) => merged,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let outcome = catalogue.commit_gang(ids, attempt, &merged).await?;
    Ok(Ok((outcome, merged)))
}

/// The part of a checkpoint that one rank gets back, or why there is none for it.
pub fn for_rank(candidate: &RestoreCandidate, rank: usize) -> Result<RestoreCandidate, String> {
    candidate_for(candidate, u32::try_from(rank).unwrap_or(u32::MAX)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(step: u64) -> Manifest {
        Manifest {
            version: tradewind_protocol::VERSION,
            run_id: "run".to_owned(),
            attempt: 1,
            machine: "worker".to_owned(),
            step,
            name: format!("step-{step}"),
            kind: tradewind_protocol::manifest::EntryKind::File,
            files: Vec::new(),
            saved_at: jiff::Timestamp::UNIX_EPOCH,
            save_began_at: jiff::Timestamp::UNIX_EPOCH,
            parent: None,
            writers: Vec::new(),
        }
    }

    /// A worker with offers of these steps, numbered from 1; the agent waits for the last one.
    fn part(steps: &[u64]) -> Part {
        let offers: BTreeMap<u64, (u64, Manifest)> =
            steps.iter().zip(1..).map(|(step, number)| (*step, (number, manifest(*step)))).collect();
        let waits = steps.last().map(|step| (offers[step].0, *step));
        Part { offers, waits, committed: None, last: false }
    }

    fn told(parts: &[Part]) -> Vec<String> {
        let Joint::Tell(verdicts) = decide(parts) else { panic!("commits") };
        let word = |verdict: Option<Verdict>| match verdict {
            None => "-".to_owned(),
            Some(Verdict::Committed(c)) => format!("{} counts", c.offer),
            Some(Verdict::Refused(r)) => format!("{}: {}", r.offer, r.reason.split(';').next().unwrap_or_default()),
        };
        verdicts.into_iter().map(word).collect()
    }

    #[test]
    fn the_newest_step_that_all_have_counts() {
        for (what, steps, expected) in [
            ("all have it", [&[10][..], &[10]], 10),
            ("one is ahead", [&[10, 20], &[10]], 10),
            ("both are ahead of an older one", [&[10, 20], &[10, 20]], 20),
            ("one has skipped a save", [&[10, 20], &[20]], 20),
        ] {
            assert_eq!(decide(&steps.map(part)), Joint::Commit(expected), "{what}");
        }
    }

    #[test]
    fn an_offer_that_can_never_be_common_is_refused_with_the_reason() {
        let ended = |steps: &[u64]| Part { last: true, ..part(steps) };
        let counted = |part: Part, step| Part { committed: Some(Committed { offer: 1, seq: 7, step }), ..part };
        for (what, parts, expected) in [
            ("nothing yet", [part(&[]), part(&[])], ["-", "-"]),
            ("the other may follow", [part(&[10]), part(&[])], ["-", "-"]),
            (
                "the other is past it",
                [part(&[10]), part(&[15])],
                ["1: worker 0 has saved step 10, worker 1 has not, its newest is of step 15", "-"],
            ),
            (
                "the other ended without",
                [part(&[10]), ended(&[])],
                ["1: worker 0 has saved step 10, worker 1 has saved nothing", "-"],
            ),
            (
                "both ended at different steps",
                [ended(&[10]), ended(&[15])],
                [
                    "1: worker 0 has saved step 10, worker 1 has not, its newest is of step 15",
                    "1: worker 1 has saved step 15, worker 0 has not, its newest is of step 10",
                ],
            ),
            ("we went away between two", [counted(part(&[]), 10), part(&[10])], ["-", "1 counts"]),
            (
                "late",
                [counted(part(&[]), 20), part(&[10])],
                ["-", "1: the checkpoint of step 20 of all workers counts already"],
            ),
        ] {
            assert_eq!(told(&parts), expected, "{what}");
        }
    }

    #[test]
    fn what_was_decided_is_forgotten_and_memory_is_bounded() {
        let mut many = part(&(1..=20).collect::<Vec<_>>());
        many.note(None, None, 1, false);
        assert_eq!(many.offers.len(), KEPT);
        assert_eq!(many.newest(), Some(20));
        let verdicts = outcome(&[part(&[10]), part(&[5, 10])], 10, &Ok(3));
        let counts = |offer| Some(Verdict::Committed(Committed { offer, seq: 3, step: 10 }));
        assert_eq!(verdicts, [counts(1), counts(2)]);
    }
}
