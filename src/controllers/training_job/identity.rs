//! The run's identity at its place: resumed, started over, finished already, or somebody else's.

use tradewind_api::training_job::{JobPhase, OnExisting};
use tradewind_api::{Reason, TrainingJob, TrainingJobStatus, conditions};
use tradewind_checkpoints::identity::{self, EndRecord, Identity, IdentityError, Outcome, RunRecord};
use tradewind_checkpoints::{PutOutcome, Store};

use super::deadline::minute;
use super::valid::Valid;
use crate::context::Context;
use crate::storage::Unusable;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker<'a> {
    /// Install id.
    pub install: &'a str,
    /// Namespace of the job.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Hash of what it asks for.
    pub spec_hash: &'a str,
    /// What it wants of a run that is there.
    pub on_existing: OnExisting,
    /// It has checkpoints; without any there is nothing that another run could spoil.
    pub saves: bool,
}

/// What a place says about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A run of this number begins; it goes on under this id, or under a new one.
    Begin {
        /// Number.
        number: u32,
        /// Id of the run whose checkpoints it takes over.
        run_id: Option<String>,
    },
    /// The run that is there goes on.
    Resume {
        /// Its id.
        run_id: String,
    },
    /// It is over.
    Over(Box<EndRecord>),
    /// It must not run here.
    Refused {
        /// Reason for `Accepted`.
        reason: Reason,
        /// Sentence.
        message: String,
    },
}

/// Judges. Pure.
pub fn judge(asker: &Asker<'_>, place: &str, found: Option<&Identity>) -> Verdict {
    let Some(found) = found else { return Verdict::Begin { number: 1, run_id: None } };
    let run = &found.run;
    if (run.install.as_str(), run.namespace.as_str(), run.name.as_str()) != (asker.install, asker.namespace, asker.name)
    {
        let elsewhere = if run.install == asker.install { "" } else { " of another install of the operator" };
        let what = if asker.saves { "prefix in checkpoint.to" } else { "name" };
        let message = format!(
            "{place} holds the run of TrainingJob {}/{}{elsewhere}; choose another {what}",
            run.namespace, run.name
        );
        return Verdict::Refused { reason: Reason::CheckpointLocationInUse, message };
    }
    let same_object = run.job_uid == asker.uid;
    match &found.end {
        _ if !same_object && asker.on_existing == OnExisting::Fresh => {
            Verdict::Begin { number: found.number + 1, run_id: None }
        }
        None if !same_object && asker.on_existing == OnExisting::Fail => Verdict::Refused {
            reason: Reason::RunExists,
            message: format!(
                "{place} holds an unfinished run of this name, and checkpoint.onExisting is Fail; Resume goes on with it, Fresh starts over"
            ),
        },
        None => Verdict::Resume { run_id: run.run_id.clone() },
        Some(end) if same_object || end.spec_hash == asker.spec_hash => Verdict::Over(Box::new(end.clone())),
        Some(_) if !asker.saves => Verdict::Begin { number: found.number + 1, run_id: None },
        Some(end) if end.outcome == Outcome::Failed => {
            Verdict::Begin { number: found.number + 1, run_id: Some(end.run_id.clone()) }
        }
        Some(end) => Verdict::Refused {
            reason: Reason::FinishedWithOtherSpec,
            message: format!(
                "a run of this name was complete on {} with another spec; choose another name, or set checkpoint.onExisting to Fresh",
                minute(end.ended_at)
            ),
        },
    }
}

/// What a job that is over already says of itself.
pub fn over(end: &EndRecord) -> String {
    format!(
        "finished already on {} ({}); nothing is run again: use another name, or set checkpoint.onExisting to Fresh, to start over",
        minute(end.ended_at),
        end.message
    )
}

/// Where a run's identity is kept: beside its checkpoints, else in the mailbox.
struct Place<'a> {
    store: &'a dyn Store,
    folder: String,
    /// For people.
    name: String,
}

fn unusable(place: &str, error: &IdentityError) -> Unusable {
    match error {
        IdentityError::Store(error) => Unusable::from_store(place, error),
        IdentityError::Unreadable { .. } => {
            Unusable { reason: Reason::StorageUnsuitable, message: format!("{place}: {error}") }
        }
    }
}

/// Settles the identity of a job that has not started: its run's id, or why it does not run. `log_run` = id in a log older than identities.
pub async fn settle(
    ctx: &Context,
    job: &TrainingJob,
    valid: &Valid,
    catalogue: Option<&dyn Store>,
    log_run: Option<String>,
) -> Result<Verdict, Unusable> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let fresh = || format!("{:016x}", ctx.clock.entropy());
    let Some(place) = place(ctx, valid, catalogue, namespace, name) else {
        return Ok(Verdict::Resume { run_id: fresh() });
    };
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    let asker = Asker {
        install: ctx.settings.install.as_str(),
        namespace,
        name,
        uid,
        spec_hash: &valid.spec_hash,
        on_existing: valid.on_existing,
        saves: valid.checkpoint.is_some(),
    };
    // Another operator, or an answer that was lost, may have been faster: then what is there is judged again.
    for _ in 0..3 {
        let found = identity::read(place.store, &place.folder).await.map_err(|e| unusable(&place.name, &e))?;
        let verdict = judge(&asker, &place.name, found.as_ref());
        let Verdict::Begin { number, run_id } = &verdict else { return Ok(verdict) };
        let run_id = run_id.clone().or_else(|| log_run.clone().filter(|_| *number == 1)).unwrap_or_else(fresh);
        let record = RunRecord::new(&run_id, asker.install, namespace, name, uid, ctx.clock.now());
        let written = identity::begin(place.store, &place.folder, *number, &record).await;
        if written.map_err(|e| Unusable::from_store(&place.name, &e))? == PutOutcome::Written {
            return Ok(Verdict::Resume { run_id });
        }
    }
    let message = format!("{}: others write the run's identity at the same time; it is tried again", place.name);
    Err(Unusable { reason: Reason::StorageUnavailable, message })
}

fn place<'a>(
    ctx: &'a Context,
    valid: &Valid,
    catalogue: Option<&'a dyn Store>,
    namespace: &str,
    name: &str,
) -> Option<Place<'a>> {
    match (catalogue, &valid.checkpoint) {
        (Some(store), Some(checkpoint)) => Some(Place { store, folder: String::new(), name: checkpoint.to.clone() }),
        _ => ctx.mailbox.as_ref().map(|mailbox| Place {
            store: mailbox.store(),
            folder: format!("identity/{namespace}/{name}/"),
            name: "the operator's mailbox".to_owned(),
        }),
    }
}

/// How the run with this id ended, as its place says: the API server may have been restored from a state before its end.
pub async fn ended(store: &dyn Store, run_id: &str) -> Result<Option<EndRecord>, IdentityError> {
    let found = identity::read(store, "").await?;
    Ok(found.filter(|found| found.run.run_id == run_id).and_then(|found| found.end))
}

/// Writes down how a run ended, before the job's status says so.
pub async fn finish(
    ctx: &Context,
    job: &TrainingJob,
    valid: &Valid,
    status: &TrainingJobStatus,
) -> Result<(), Unusable> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let Some(run_id) = status.run_id.as_deref() else { return Ok(()) };
    let catalogue = match &valid.checkpoint {
        Some(checkpoint) => Some(ctx.catalogue(namespace, &checkpoint.to, &checkpoint.secret_ref.name).await?),
        None => None,
    };
    let store = catalogue.as_ref().map(|catalogue| catalogue.store());
    let Some(place) = place(ctx, valid, store, namespace, name) else { return Ok(()) };
    let found = identity::read(place.store, &place.folder).await.map_err(|e| unusable(&place.name, &e))?;
    // A run that was begun under another id since is not this one's to end.
    let Some(found) = found.filter(|found| found.run.run_id == run_id && found.end.is_none()) else { return Ok(()) };
    let (outcome, type_) = match status.phase {
        JobPhase::Complete => (Outcome::Complete, conditions::COMPLETE),
        _ => (Outcome::Failed, conditions::FAILED),
    };
    let reason = conditions::condition(&status.conditions, type_).map_or("", |c| c.reason.as_str());
    let spec_hash = status.spec_hash.as_deref().unwrap_or(&valid.spec_hash);
    let record = EndRecord::new(run_id, outcome, spec_hash, reason, &status.message, ctx.clock.now());
    let written = identity::finish(place.store, &place.folder, found.number, &record).await;
    written.map(drop).map_err(|e| Unusable::from_store(&place.name, &e))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn asker(uid: &'static str, spec_hash: &'static str, on_existing: OnExisting) -> Asker<'static> {
        Asker { install: "i", namespace: "ns", name: "job", uid, spec_hash, on_existing, saves: true }
    }

    fn found(end: Option<Outcome>) -> Identity {
        let end = end.map(|outcome| EndRecord::new("r", outcome, "h", "Finished", "done", Timestamp::UNIX_EPOCH));
        Identity { number: 4, run: RunRecord::new("r", "i", "ns", "job", "old", Timestamp::UNIX_EPOCH), end }
    }

    #[test]
    fn what_is_there_decides() {
        use OnExisting::{Fail, Fresh, Resume};
        let word = |verdict: &Verdict| match verdict {
            Verdict::Begin { number, run_id } => format!("begin {number} {}", run_id.as_deref().unwrap_or("new")),
            Verdict::Resume { run_id } => format!("resume {run_id}"),
            Verdict::Over(end) => format!("over {:?}", end.outcome),
            Verdict::Refused { reason, .. } => reason.as_str().to_owned(),
        };
        let (complete, failed) = (Some(Outcome::Complete), Some(Outcome::Failed));
        for (end, uid, hash, on_existing, expected) in [
            (None, "new", "h", Resume, "resume r"),
            (None, "new", "other", Resume, "resume r"),
            (None, "new", "h", Fail, "RunExists"),
            (None, "old", "h", Fail, "resume r"),
            (None, "new", "h", Fresh, "begin 5 new"),
            (None, "old", "h", Fresh, "resume r"),
            (complete, "new", "h", Resume, "over Complete"),
            (complete, "new", "h", Fail, "over Complete"),
            (complete, "new", "other", Resume, "FinishedWithOtherSpec"),
            (complete, "old", "other", Resume, "over Complete"),
            (complete, "new", "h", Fresh, "begin 5 new"),
            (complete, "old", "h", Fresh, "over Complete"),
            (failed, "new", "h", Resume, "over Failed"),
            (failed, "new", "other", Resume, "begin 5 r"),
            (failed, "new", "h", Fresh, "begin 5 new"),
        ] {
            let verdict = judge(&asker(uid, hash, on_existing), "s3://b/", Some(&found(end)));
            assert_eq!(word(&verdict), expected, "{end:?} {uid} {hash} {on_existing:?}");
        }
        assert_eq!(word(&judge(&asker("new", "h", Fail), "s3://b/", None)), "begin 1 new");
        let unsaved = Asker { saves: false, ..asker("new", "other", Resume) };
        assert_eq!(word(&judge(&unsaved, "the mailbox", Some(&found(complete)))), "begin 5 new");
        let stranger = Asker { name: "twin", ..asker("new", "h", Fresh) };
        let Verdict::Refused { reason, message } = judge(&stranger, "s3://b/", Some(&found(None))) else { panic!() };
        assert_eq!(reason, Reason::CheckpointLocationInUse);
        assert!(message.contains("s3://b/ holds the run of TrainingJob ns/job;"), "{message}");
        let abroad = Asker { install: "j", ..asker("new", "h", Resume) };
        let Verdict::Refused { message, .. } = judge(&abroad, "s3://b/", Some(&found(None))) else { panic!() };
        assert!(message.contains("another install"), "{message}");
    }
}
