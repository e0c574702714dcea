//! Checkpoints that all workers save together (`writers: AllRanks`): which step counts, and which offers never will. Pure, but for the commit.

use std::collections::BTreeMap;

use tradewind_checkpoints::gang::{candidate_for, merge};
use tradewind_checkpoints::{Catalogue, CommitOutcome, StoreError};
use tradewind_protocol::control::{Committed, RefusedOffer};
use tradewind_protocol::{Control, Manifest, Report, RestoreCandidate};

use crate::serving::Verdict;

/// Offers of one worker that are remembered: as many as its agent tells of, so that workers whose uploads take turns still find a common
/// step.
const KEPT: usize = Report::MAX_OFFERS;

/// What one worker has saved and nobody has decided on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Number and manifest by step.
    pub offers: BTreeMap<u64, (u64, Manifest)>,
    /// The offers that its agent waits for, by their numbers: number and step.
    pub waits: Vec<(u64, u64)>,
    /// The checkpoint that its agent was told of last, or would have been if it still listened.
    pub committed: Option<Committed>,
    /// Its offers up to this number are decided.
    decided: u64,
    /// It will offer nothing more.
    pub last: bool,
}

impl Part {
    /// Takes note of a report and of what was decided so far.
    pub fn note(&mut self, report: Option<&Report>, control: Option<&Control>, attempt: u32, last: bool) {
        self.last = last;
        if let Some(committed) = control.and_then(|control| control.committed) {
            self.hear(&Verdict::Committed(committed));
        }
        if let Some(refused) = control.and_then(|control| control.refused.clone()) {
            self.hear(&Verdict::Refused(refused));
        }
        let ours = report.filter(|report| report.attempt.is_none_or(|of| of == attempt));
        let undecided = ours.into_iter().flat_map(Report::offers).filter(|offer| offer.number > self.decided);
        self.waits.clear();
        for offer in undecided {
            self.waits.push((offer.number, offer.manifest.step));
            self.offers.entry(offer.manifest.step).or_insert_with(|| (offer.number, offer.manifest.clone()));
        }
        let done = self.committed.map(|committed| committed.step);
        self.offers.retain(|step, (number, _)| *number > self.decided && Some(*step) > done);
        while self.offers.len() > KEPT {
            self.offers.pop_first();
        }
    }

    /// Takes note of what was decided, whether or not its agent still hears of it.
    pub fn hear(&mut self, verdict: &Verdict) {
        self.decided = self.decided.max(verdict.offer());
        if let Verdict::Committed(committed) = verdict
            && self.committed.is_none_or(|before| before.seq < committed.seq)
        {
            self.committed = Some(*committed);
        }
    }

    /// Whether its agent waits for more than this decides.
    pub fn waits_beyond(&self, verdict: Option<&Verdict>) -> bool {
        let decided = verdict.map_or(0, Verdict::offer);
        self.waits.iter().any(|(number, _)| *number > decided)
    }

    fn newest(&self) -> Option<u64> {
        self.offers.last_key_value().map(|(step, _)| *step).max(self.committed.map(|committed| committed.step))
    }
}

/// Steps that all have, newest first. Each rank has its part.
pub fn common(parts: &[Part]) -> Vec<u64> {
    let first = parts.first().map(|part| part.offers.keys().rev().copied());
    first.into_iter().flatten().filter(|step| parts.iter().all(|part| part.offers.contains_key(step))).collect()
}

/// What each is told, by rank, while no step is common; `None` = nothing new.
pub fn verdicts(parts: &[Part]) -> Vec<Option<Verdict>> {
    (0..parts.len()).map(|rank| verdict(parts, rank)).collect()
}

/// What a worker is told whose offers wait: one counts already (we went away before we could say so), or never will.
fn verdict(parts: &[Part], rank: usize) -> Option<Verdict> {
    let waits = &parts[rank].waits;
    let counted = parts.iter().filter_map(|part| part.committed).max_by_key(|committed| committed.seq);
    let late = counted.and_then(|counted| Some((counted, waits.iter().rfind(|(_, step)| *step <= counted.step)?)));
    if let Some((counted, &(offer, step))) = late {
        return Some(if counted.step == step {
            Verdict::Committed(Committed { offer, ..counted })
        } else {
            let reason = format!("the checkpoint of step {} of all workers counts already", counted.step);
            Verdict::Refused(RefusedOffer { offer, reason })
        });
    }
    let without = |step: u64| {
        parts.iter().enumerate().find(|(_, part)| {
            let later = part.newest().is_some_and(|newest| newest > step);
            !part.offers.contains_key(&step) && (part.last || later)
        })
    };
    // To refuse an offer is to refuse all before it: one of these may still become common.
    let hopeless = waits.iter().map_while(|(offer, step)| Some((*offer, *step, without(*step)?)));
    hopeless.last().map(|(offer, step, (other, part))| {
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

    /// A worker with offers of these steps, numbered from 1; the agent waits for all of them.
    fn part(steps: &[u64]) -> Part {
        let offers: BTreeMap<u64, (u64, Manifest)> =
            steps.iter().zip(1..).map(|(step, number)| (*step, (number, manifest(*step)))).collect();
        let waits = offers.iter().map(|(step, (number, _))| (*number, *step)).collect();
        Part { offers, waits, ..Part::default() }
    }

    fn told(parts: &[Part]) -> Vec<String> {
        assert_eq!(common(parts), [0; 0]);
        let word = |verdict: Option<Verdict>| match verdict {
            None => "-".to_owned(),
            Some(Verdict::Committed(c)) => format!("{} counts", c.offer),
            Some(Verdict::Refused(r)) => format!("{}: {}", r.offer, r.reason.split(';').next().unwrap_or_default()),
        };
        verdicts(parts).into_iter().map(word).collect()
    }

    #[test]
    fn the_newest_step_that_all_have_counts() {
        for (what, steps, expected) in [
            ("all have it", [&[10][..], &[10]], &[10][..]),
            ("one is ahead", [&[10, 20], &[10]], &[10]),
            ("both are ahead of an older one", [&[10, 20], &[10, 20]], &[20, 10]),
            ("one has skipped a save", [&[10, 20], &[20]], &[20]),
            ("each is where the other is not", [&[10, 20, 30], &[20, 40]], &[20]),
            ("none", [&[10, 20], &[15]], &[]),
        ] {
            assert_eq!(common(&steps.map(part)), expected, "{what}");
        }
    }

    #[test]
    fn an_offer_that_can_never_be_common_is_refused_with_the_reason() {
        let ended = |steps: &[u64]| Part { last: true, ..part(steps) };
        let counted = |part: Part, step| Part { committed: Some(Committed { offer: 1, seq: 7, step }), ..part };
        for (what, parts, expected) in [
            ("nothing yet", vec![part(&[]), part(&[])], vec!["-", "-"]),
            ("the other may follow", vec![part(&[10]), part(&[])], vec!["-", "-"]),
            (
                "the other is past it",
                vec![part(&[10]), part(&[15])],
                vec!["1: worker 0 has saved step 10, worker 1 has not, its newest is of step 15", "-"],
            ),
            (
                "the other is past some of them",
                vec![part(&[10, 12, 20]), part(&[15])],
                vec![
                    "2: worker 0 has saved step 12, worker 1 has not, its newest is of step 15",
                    "1: worker 1 has saved step 15, worker 0 has not, its newest is of step 20",
                ],
            ),
            (
                "an older one may still become common",
                vec![part(&[10, 15]), part(&[10, 20]), part(&[])],
                vec!["-", "-", "-"],
            ),
            (
                "the other ended without",
                vec![part(&[10]), ended(&[])],
                vec!["1: worker 0 has saved step 10, worker 1 has saved nothing", "-"],
            ),
            (
                "both ended at different steps",
                vec![ended(&[10]), ended(&[15])],
                vec![
                    "1: worker 0 has saved step 10, worker 1 has not, its newest is of step 15",
                    "1: worker 1 has saved step 15, worker 0 has not, its newest is of step 10",
                ],
            ),
            ("we went away between two", vec![counted(part(&[]), 10), part(&[10])], vec!["-", "1 counts"]),
            ("the same, and it went on", vec![counted(part(&[]), 10), part(&[5, 10, 20])], vec!["-", "2 counts"]),
            (
                "late",
                vec![counted(part(&[]), 20), part(&[10])],
                vec!["-", "1: the checkpoint of step 20 of all workers counts already"],
            ),
        ] {
            assert_eq!(told(&parts), expected, "{what}");
        }
    }

    #[test]
    fn what_is_left_of_a_worker_at_its_end_is_decided_without_its_hearing_of_it() {
        let mut over = part(&[10, 20]);
        let counts = Verdict::Committed(Committed { offer: 1, seq: 3, step: 10 });
        assert!(over.waits_beyond(None) && over.waits_beyond(Some(&counts)));
        over.hear(&counts);
        over.note(None, None, 1, true);
        assert_eq!((over.offers.keys().copied().collect::<Vec<_>>(), over.committed.unwrap().seq), (vec![20], 3));
        let refused = Verdict::Refused(RefusedOffer { offer: 2, reason: String::new() });
        assert!(!part(&[10, 20]).waits_beyond(Some(&refused)));
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
