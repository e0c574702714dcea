//! The start document: what one boot of one machine runs, from which checkpoint, with which secrets.

use std::cell::Cell;
use std::collections::BTreeMap;

use tradewind_api::rented_machine::MachineCheckpoint;
use tradewind_checkpoints::FenceRefused;
use tradewind_core::{ExposeSecret, SecretString};
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::seal::{Place, SecretEnv};
use tradewind_protocol::{CheckpointSettings, Report, RestoreCandidate, Start, VERSION, expand};

use super::serve::Serving;
use crate::storage::text;

/// How long nothing in a checkpoint may change before it counts as complete, in milliseconds.
const QUIET_MS: u64 = 1000;
/// Most checkpoints offered for a restore.
const CANDIDATES: usize = 5;

/// Raises the fence, seals the secrets and writes the document; gives back the bytes that the machine is to restore, if the newest checkpoint
/// is good. The outer error is for now, the inner one for good.
pub async fn make(serving: &Serving<'_>, report: &Report) -> Result<Result<u64, FenceRefused>, String> {
    let spec = &serving.machine.spec;
    let mut restore = Vec::new();
    if let Some(settings) = &spec.checkpoint {
        restore = match begin(serving, settings).await? {
            Ok(candidates) => candidates,
            Err(refused) => return Ok(Err(refused)),
        };
    }
    let (env, secret) = environment(serving).await?;
    let place = Place {
        install: serving.ctx.settings.install.as_str(),
        machine: serving.uid,
        boot: &report.boot,
        sequence: u64::from(serving.attempt),
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
        machine: serving.uid.to_owned(),
        boot: report.boot.clone(),
        run_id: spec.run_id.clone(),
        attempt: serving.attempt,
        command: spec.workload.command.clone(),
        env,
        sealed_env,
        working_dir: spec.workload.working_dir.clone(),
        stop_grace_s: seconds(spec.workload.stop_grace_s),
        checkpoint: spec.checkpoint.as_ref().map(|c| CheckpointSettings {
            path: c.path.clone(),
            pattern: c.pattern.clone(),
            resume_args: c.resume_args.clone(),
            interval_s: seconds(c.interval_s),
            quiet_ms: QUIET_MS,
        }),
        restore,
        data_prefix: data_prefix(serving.attempt, serving.uid),
    };
    serving.mailbox.write_start(&start).await.map_err(|e| e.to_string())?;
    Ok(Ok(fetches))
}

/// Raises the attempt's fence in the log, then lists what may be restored: from then on nothing older can be added.
async fn begin(
    serving: &Serving<'_>,
    settings: &MachineCheckpoint,
) -> Result<Result<Vec<RestoreCandidate>, FenceRefused>, String> {
    let run_id = &serving.machine.spec.run_id;
    let catalogue = serving.catalogue(settings).await?;
    let log = catalogue.load().await.map_err(|e| e.to_string())?;
    let from = log.newest_checkpoint(run_id).map(|c| c.seq);
    let now = serving.ctx.clock.now();
    let begun = catalogue.begin_attempt(run_id, serving.attempt, from, now).await.map_err(|e| e.to_string())?;
    if let Err(refused) = begun {
        return Ok(Err(refused));
    }
    let log = catalogue.load().await.map_err(|e| e.to_string())?;
    let keep = usize::try_from(settings.keep).unwrap_or(1).clamp(1, CANDIDATES);
    let life = serving.ctx.settings.ticket_lifetime;
    catalogue.candidates(&log, run_id, keep, life).await.map(Ok).map_err(|e| e.to_string())
}

/// The plain and the secret part of the environment. A value may name variables before it, and is secret if one of them is.
async fn environment(serving: &Serving<'_>) -> Result<(BTreeMap<String, String>, SecretEnv), String> {
    let namespace = &serving.machine.spec.job.namespace;
    let mut plain = BTreeMap::new();
    let mut secret: BTreeMap<String, SecretString> = BTreeMap::new();
    for entry in &serving.machine.spec.workload.env {
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
