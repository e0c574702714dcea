//! The start document: what one boot of one machine runs, from which checkpoint, with which secrets.

use std::cell::Cell;
use std::collections::BTreeMap;

use tradewind_api::rented_machine::MachineCheckpoint;
use tradewind_checkpoints::gang::candidate_for;
use tradewind_checkpoints::{Catalogue, FenceRefused};
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::seal::{Place, SecretEnv};
use tradewind_protocol::{CheckpointSettings, Report, RestoreCandidate, Start, VERSION, expand};

use super::{Saving, Serving, Whom};
use crate::context::Context;
use crate::storage::text;

/// How long nothing in a checkpoint may change before it counts as complete, in milliseconds.
const QUIET_MS: u64 = 1000;
/// Most checkpoints offered for a restore.
const CANDIDATES: usize = 5;

/// Raises the fence unless that is done, seals the secrets and writes the document; gives back the bytes that the machine is to restore, if
/// the newest checkpoint is good. The outer error is for now, the inner one for good.
pub(super) async fn make(
    serving: &Serving<'_>,
    report: &Report,
    overlay: &BTreeMap<String, String>,
    restore: Option<&[RestoreCandidate]>,
) -> Result<Result<u64, FenceRefused>, String> {
    let Whom { id, run_id, attempt, program, checkpoint, saving, .. } = serving.whom;
    let restore = match (restore, checkpoint) {
        (Some(restore), _) => restore.to_vec(),
        (None, None) => Vec::new(),
        (None, Some(settings)) => match begin(serving, settings).await? {
            Ok(candidates) => candidates,
            Err(refused) => return Ok(Err(refused)),
        },
    };
    let (mut env, secret) = environment(serving).await?;
    env.extend(overlay.clone());
    let place = Place {
        install: serving.ctx.settings.install.as_str(),
        machine: id,
        boot: &report.boot,
        sequence: u64::from(attempt),
    };
    let sealed_env = if secret.is_empty() {
        None
    } else {
        Some(secret.seal(&report.boot_key, &place).map_err(|e| format!("the environment cannot be sealed: {e}"))?)
    };
    let newest = restore.first().map(|candidate| &candidate.manifest);
    let fetches = newest.map_or(0, |manifest| manifest.files.iter().map(|file| file.size_bytes).sum());
    let seconds = |n: i64| u64::try_from(n).unwrap_or(0);
    let start = Start {
        version: VERSION,
        machine: id.to_owned(),
        boot: report.boot.clone(),
        run_id: run_id.to_owned(),
        attempt,
        command: program.command.to_vec(),
        env,
        sealed_env,
        working_dir: program.working_dir.map(str::to_owned),
        stop_grace_s: seconds(program.stop_grace_s),
        checkpoint: checkpoint.map(|c| CheckpointSettings {
            path: c.path.clone(),
            pattern: c.pattern.clone(),
            resume_args: c.resume_args.clone(),
            interval_s: seconds(c.interval_s),
            quiet_ms: QUIET_MS,
            restore_only: saving == Saving::Never,
            together: saving == Saving::Together,
        }),
        restore,
        data_prefix: data_prefix(attempt, id),
    };
    serving.mailbox.write_start(&start).await.map_err(|e| e.to_string())?;
    Ok(Ok(fetches))
}

/// Raises the attempt's fence in the log, then lists what may be restored: from then on nothing older can be added.
async fn begin(
    serving: &Serving<'_>,
    settings: &MachineCheckpoint,
) -> Result<Result<Vec<RestoreCandidate>, FenceRefused>, String> {
    let catalogue = serving.catalogue(settings).await?;
    let Whom { run_id, attempt, .. } = serving.whom;
    let begun = begin_attempt(serving.ctx, &catalogue, settings, run_id, attempt, Restorable::All).await?;
    // A checkpoint that several workers wrote, before the job was given one alone.
    Ok(begun.map(|all| all.iter().filter_map(|candidate| candidate_for(candidate, 0).ok()).collect()))
}

/// What may be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restorable {
    /// Whatever counts now.
    All,
    /// What counted when the attempt began: so that workers that are told at different times begin with the same.
    AtFence,
}

/// Puts up an attempt's fence and lists what may be restored, newest first. Safe to repeat. The outer error is for now, the inner one for
/// good.
pub async fn begin_attempt(
    ctx: &Context,
    catalogue: &Catalogue,
    settings: &MachineCheckpoint,
    run_id: &str,
    attempt: u32,
    what: Restorable,
) -> Result<Result<Vec<RestoreCandidate>, FenceRefused>, String> {
    let log = catalogue.load().await.map_err(|e| e.to_string())?;
    let from = log.newest_checkpoint(run_id).map(|c| c.seq);
    let begun = catalogue.begin_attempt(run_id, attempt, from, ctx.clock.now()).await.map_err(|e| e.to_string())?;
    let begun = match begun {
        Ok(begun) => begun,
        Err(refused) => return Ok(Err(refused)),
    };
    let log = catalogue.load().await.map_err(|e| e.to_string())?;
    let keep = usize::try_from(settings.keep).unwrap_or(1).clamp(1, CANDIDATES);
    let life = ctx.settings.ticket_lifetime;
    let later = |seq: u64| what == Restorable::AtFence && seq > begun.seq;
    let newer = log.checkpoints().filter(|c| c.manifest.run_id == run_id && later(c.seq)).count();
    let candidates = catalogue.candidates(&log, run_id, keep + newer, life).await.map_err(|e| e.to_string())?;
    Ok(Ok(candidates.into_iter().filter(|candidate| !later(candidate.seq)).collect()))
}

/// The plain and the secret part of the environment. A value may name variables before it, and is secret if one of them is.
async fn environment(serving: &Serving<'_>) -> Result<(BTreeMap<String, String>, SecretEnv), String> {
    let namespace = &serving.whom.job.namespace;
    let mut plain = BTreeMap::new();
    let mut secret: BTreeMap<String, SecretString> = BTreeMap::new();
    for entry in serving.whom.program.env {
        let Some(name) = &entry.secret else {
            let told = Cell::new(false);
            let value = expand(entry.value.as_deref().unwrap_or_default(), |name| {
                let hidden = secret.get(name).map(ExposeSecret::expose_secret);
                told.set(told.get() || hidden.is_some());
                hidden.or_else(|| plain.get(name).map(String::as_str))
            });
            secret.remove(&entry.name);
            plain.remove(&entry.name);
            if told.get() {
                secret.insert(entry.name.clone(), SecretString::from(value));
            } else {
                plain.insert(entry.name.clone(), value);
            }
            continue;
        };
        let object = match serving.ctx.secret(namespace, name).await {
            Ok(object) => object,
            Err(_) if entry.optional => continue,
            Err(unusable) => return Err(unusable.message),
        };
        match &entry.key {
            Some(key) => match text(&object, key) {
                Some(value) => drop((plain.remove(&entry.name), secret.insert(entry.name.clone(), value))),
                None if entry.optional => {}
                None => return Err(format!("Secret {namespace}/{name} has no key {key} with a text")),
            },
            None => {
                for key in object.data.iter().flat_map(BTreeMap::keys) {
                    if let Some(value) = text(&object, key) {
                        let variable = format!("{}{key}", entry.prefix);
                        plain.remove(&variable);
                        secret.insert(variable, value);
                    }
                }
            }
        }
    }
    Ok((plain, SecretEnv::new(secret)))
}
