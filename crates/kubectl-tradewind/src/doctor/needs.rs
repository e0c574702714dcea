//! `doctor --for JOB`: what this job needs, looked up.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Secret};
use kube::Api;
use kube::api::ListParams;
use tradewind_api::{Provider, TrainingJob};

use super::jobs::{Wanted, missing_access, missing_keys, short_quotas, wanted_secrets};
use super::report::Check;
use crate::Trouble;
use crate::cli::DoctorArgs;
use crate::connect::Connection;
use crate::trouble::is_forbidden;

const AREA: &str = "this job";

/// Secrets, access and quota of a job.
pub(super) async fn of_job(
    connection: &Connection,
    args: &DoctorArgs,
    job: &TrainingJob,
    providers: Option<&[Provider]>,
) -> Result<Vec<Check>, Trouble> {
    let mut checks = Vec::new();
    for (name, wanted) in wanted_secrets(job) {
        checks.push(secret(connection, &name, &wanted).await?);
    }
    checks.extend(access(connection, args, job, providers).await?);
    checks.push(quota(connection, job).await?);
    Ok(checks)
}

async fn secret(connection: &Connection, name: &str, wanted: &Wanted) -> Result<Check, Trouble> {
    let api: Api<Secret> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let title = format!("Secret {name}");
    let users = wanted.used_by.iter().cloned().collect::<Vec<_>>().join(", ");
    let mend = || {
        let keys: Vec<String> = wanted.keys.iter().map(|key| format!(" --from-literal {key}=VALUE")).collect();
        let keys = keys.concat();
        let namespace = &connection.namespace;
        format!(
            "kubectl create secret generic {name} -n {namespace}{keys} --dry-run=client -o yaml | kubectl apply -f -"
        )
    };
    Ok(match api.get_opt(name).await {
        Err(error) if is_forbidden(&error) => Check::unknown(AREA, title, "you may not read Secrets; the operator may"),
        Err(error) => return Err(Trouble::of("Secrets", &error)),
        Ok(None) => Check::problem(AREA, title, format!("does not exist; needed by {users}")).mend(mend()),
        Ok(Some(secret)) => {
            let there: BTreeSet<String> = secret.data.unwrap_or_default().into_keys().collect();
            let missing = missing_keys(wanted, &there);
            if missing.is_empty() {
                Check::ok(AREA, title, format!("has what {users} needs"))
            } else {
                Check::problem(AREA, title, format!("has no key {}; needed by {users}", missing.join(", ")))
                    .mend(mend())
            }
        }
    })
}

async fn access(
    connection: &Connection,
    args: &DoctorArgs,
    job: &TrainingJob,
    providers: Option<&[Provider]>,
) -> Result<Option<Check>, Trouble> {
    let Some(providers) = providers.filter(|providers| !providers.is_empty()) else { return Ok(None) };
    let api: Api<Namespace> = Api::all(connection.client.clone());
    let labels = match api.get(&connection.namespace).await {
        Ok(namespace) => namespace.metadata.labels.unwrap_or_default(),
        Err(error) if is_forbidden(&error) => {
            return Ok(Some(Check::unknown(
                AREA,
                "access",
                "you may not read the namespace, by whose labels accounts select",
            )));
        }
        Err(error) => return Err(Trouble::of("Namespaces", &error)),
    };
    Ok(Some(match missing_access(job, providers, &labels) {
        None => Check::ok(AREA, "access", "an account may be used from here, or the job does not rent"),
        Some(named) if named.is_empty() => {
            let wanted = job.spec.placement.providers.join(", ");
            Check::problem(AREA, "access", format!("placement.providers names {wanted}, and no such Provider exists"))
                .mend("kubectl get twp   # and correct placement.providers")
        }
        Some(named) => {
            let message = format!("no access entry of {} selects namespace {}", named.join(", "), connection.namespace);
            Check::problem(AREA, "access", message)
                .mend(format!("kubectl edit twp {}   # as whoever runs {}", named[0], args.operator_namespace))
        }
    }))
}

async fn quota(connection: &Connection, job: &TrainingJob) -> Result<Check, Trouble> {
    let over = job.status.as_ref().is_some_and(|s| s.workers.as_ref().is_some_and(|w| w.ready > 0));
    if over {
        return Ok(Check::ok(AREA, "quota", "its Pods are there already"));
    }
    let api: Api<ResourceQuota> = Api::namespaced(connection.client.clone(), &connection.namespace);
    match api.list(&ListParams::default()).await {
        Err(error) if is_forbidden(&error) => Ok(Check::unknown(AREA, "quota", "you may not list ResourceQuotas")),
        Err(error) => Err(Trouble::of("ResourceQuotas", &error)),
        Ok(list) => {
            let short = short_quotas(job, &list.items);
            Ok(if short.is_empty() {
                Check::ok(AREA, "quota", "there is room for its Pods, or no quota")
            } else {
                Check::problem(AREA, "quota", short.join("; ")).mend(format!(
                    "kubectl describe quota -n {}   # and make room, or ask for more",
                    connection.namespace
                ))
            })
        }
    }
}
