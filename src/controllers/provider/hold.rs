//! Holding a Provider and the Secret with its key while machines may have been rented by it, and letting go of both.
//!
//! Put on in this order: finaliser of the Provider, the Secret's name in the Provider's status, finaliser of the Secret; taken off the
//! other way round. So wherever the operator dies, whoever comes next knows of every Secret that it holds.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use tradewind_api::provider::SecretKey;
use tradewind_api::rented_machine::{MachinePhase, OrderOutcome};
use tradewind_api::{Provider, Reason, RentedMachine, names};
use tradewind_cluster::{ClusterError, Guard, Key, MetadataPatch, Object, Selector, Typed};

use crate::accounts::Account;
use crate::context::Context;
use crate::runtime::Failure;
use crate::storage::Unusable;

/// Names in a message at most.
const NAMED: usize = 3;

/// What is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// The Provider, whatever becomes of its Secret.
    Provider,
    /// Only the Secret with its key.
    Secret,
}

/// What is being deleted of an account.
pub fn leaving(provider: &Provider, secret: Option<&Secret>) -> Option<Leaving> {
    if provider.metadata.deletion_timestamp.is_some() {
        return Some(Leaving::Provider);
    }
    secret.filter(|secret| secret.metadata.deletion_timestamp.is_some()).map(|_| Leaving::Secret)
}

/// How far the end of an account is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Departure {
    /// Something may still cost money.
    Waits(String),
    /// Nothing does, and nothing is held any more.
    LetGo,
}

/// Holds Provider and Secret, then lets go of Secrets that were used before. Gives back the Provider as it is now, or why it cannot be held.
pub async fn hold(
    ctx: &Context,
    provider: Arc<Provider>,
    secret: &Secret,
) -> Result<Result<Arc<Provider>, Unusable>, Failure> {
    let name = provider.metadata.name.clone().unwrap_or_default();
    let wanted = provider.spec.credentials_secret_ref.clone();
    let mut provider = match add_finalizer(ctx, &*provider, names::PROVIDER_FINALIZER).await {
        Ok(None) => provider,
        Ok(Some(written)) => {
            ctx.caches.providers.own(&written);
            written
        }
        Err(error) => return not_held(error, &format!("Provider {name}")),
    };
    if !held(&provider).contains(&wanted) {
        let mut credentials = held(&provider).to_vec();
        credentials.push(wanted.clone());
        provider = write_held(ctx, &provider, credentials).await?;
    }
    if let Err(error) = add_finalizer(ctx, secret, &names::secret_finalizer(&name)).await {
        return not_held(error, &format!("Secret {}/{}", ctx.settings.namespace, wanted.name));
    }
    if held(&provider).len() > 1 {
        for old in held(&provider).iter().filter(|old| old.name != wanted.name) {
            let_secret_go(ctx, &name, &old.name).await?;
        }
        provider = write_held(ctx, &provider, vec![wanted]).await?;
    }
    Ok(Ok(provider))
}

/// The Secrets that a Provider holds.
pub fn held(provider: &Provider) -> &[SecretKey] {
    provider.status.as_ref().map(|s| s.held_credentials.as_slice()).unwrap_or_default()
}

/// Lets go of what is being deleted, once nothing that may cost money is left; until then, says what is waited for. `refused`: the provider
/// refuses the key, so that its lists cannot be waited for.
pub async fn leave(
    ctx: &Context,
    provider: &Arc<Provider>,
    account: Option<&Account>,
    leaving: Leaving,
    refused: bool,
) -> Result<(Departure, Arc<Provider>), Failure> {
    let name = provider.metadata.name.as_deref().unwrap_or_default();
    if let Some(waits) = waits_for(ctx.caches.rented.all().iter().map(|m| &**m), name) {
        return Ok((Departure::Waits(waits), Arc::clone(provider)));
    }
    // Whoever has its turn in the ledger now may be renting; after it, everybody sees that nothing may be rented here.
    let turn = match account {
        Some(account) => Some(account.ledger.lock().await),
        None => None,
    };
    let machines = ctx.cluster.read_all::<RentedMachine>(None, &Selector::everything()).await?;
    if let Some(waits) = waits_for(machines.iter().map(|m| &**m), name) {
        return Ok((Departure::Waits(waits), Arc::clone(provider)));
    }
    if let Some(waits) = account.filter(|_| !refused).and_then(|account| strays(ctx, account)) {
        return Ok((Departure::Waits(waits), Arc::clone(provider)));
    }
    let provider = match leaving {
        Leaving::Secret => {
            let gone = &provider.spec.credentials_secret_ref.name;
            let_secret_go(ctx, name, gone).await?;
            let rest: Vec<SecretKey> = held(provider).iter().filter(|k| k.name != *gone).cloned().collect();
            if rest.len() == held(provider).len() {
                Arc::clone(provider)
            } else {
                write_held(ctx, provider, rest).await?
            }
        }
        Leaving::Provider => {
            for secret in held(provider) {
                let_secret_go(ctx, name, &secret.name).await?;
            }
            remove_finalizer(ctx, &**provider, names::PROVIDER_FINALIZER).await?;
            ctx.accounts.remove(name);
            Arc::clone(provider)
        }
    };
    drop(turn);
    Ok((Departure::LetGo, provider))
}

/// Machines that carry this install's id, though no RentedMachine is left: the sweeper ends them, by the key.
fn strays(ctx: &Context, account: &Account) -> Option<String> {
    let Some(list) = account.sightings() else { return Some("waits for the provider's list of machines".to_owned()) };
    let ours = list.machines.iter().filter(|m| m.key.as_ref().is_some_and(|k| k.install == ctx.settings.install));
    let ids: Vec<String> = ours.map(|m| m.id.clone()).collect();
    let (s, carry) = if ids.len() == 1 { ("", "carries") } else { ("s", "carry") };
    (!ids.is_empty() && !ctx.settings.sweep_report_only).then(|| {
        format!("waits for machine{s} {} at the provider, which {carry} this install's id, to be gone", some(&ids))
    })
}

/// What of this Provider may still cost money or has not been given up yet, as a sentence.
pub fn waits_for<'a>(machines: impl IntoIterator<Item = &'a RentedMachine>, provider: &str) -> Option<String> {
    let here = machines.into_iter().filter(|m| m.spec.provider == provider);
    let left: Vec<&RentedMachine> =
        here.filter(|m| m.status.as_ref().is_none_or(|s| s.phase != MachinePhase::Gone)).collect();
    let bought = |m: &&&RentedMachine| {
        let orders = m.status.iter().flat_map(|s| &s.orders);
        orders.into_iter().any(|o| o.leftover || o.outcome != OrderOutcome::Refused)
    };
    let costly: Vec<&RentedMachine> = left.iter().filter(bought).copied().collect();
    let named = |machines: &[&RentedMachine]| {
        some(&machines.iter().filter_map(|m| m.metadata.name.clone()).collect::<Vec<_>>())
    };
    if costly.is_empty() {
        return (!left.is_empty()).then(|| format!("waits for the claims of {} to be given up", named(&left)));
    }
    let mut jobs: Vec<String> =
        costly.iter().map(|m| format!("{}/{}", m.spec.job.namespace, m.spec.job.name)).collect();
    jobs.sort();
    jobs.dedup();
    let machines = if costly.len() == 1 { "machine" } else { "machines" };
    let job = if jobs.len() == 1 { "job" } else { "jobs" };
    let them = if costly.len() == 1 { "it" } else { "them" };
    Some(format!(
        "waits for {} {machines} ({}) of {job} {} to be gone: delete or finish the {job} to end {them}",
        costly.len(),
        named(&costly),
        some(&jobs),
    ))
}

fn some(names: &[String]) -> String {
    let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

fn write_held<'a>(
    ctx: &'a Context,
    provider: &'a Provider,
    credentials: Vec<SecretKey>,
) -> BoxFuture<'a, Result<Arc<Provider>, Failure>> {
    Box::pin(async move {
        let mut next = provider.clone();
        next.status.get_or_insert_default().held_credentials = credentials;
        let written = ctx.cluster.write_status(next).await?;
        ctx.caches.providers.own(&written);
        Ok(written)
    })
}

/// Takes the finaliser of this Provider off a Secret, if both are there.
async fn let_secret_go(ctx: &Context, provider: &str, secret: &str) -> Result<(), Failure> {
    let key = Key::namespaced(ctx.settings.namespace.as_str(), secret);
    let Some(secret) = ctx.cluster.find::<Secret>(&key).await? else { return Ok(()) };
    remove_finalizer(ctx, &*secret, &names::secret_finalizer(provider)).await
}

fn has(object: &dyn Object, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Puts a finaliser on; the object as written, `None` if it was on already.
async fn add_finalizer<K: Typed>(ctx: &Context, object: &K, finalizer: &str) -> Result<Option<Arc<K>>, ClusterError> {
    if has(object, finalizer) {
        return Ok(None);
    }
    let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
    finalizers.push(finalizer.to_owned());
    let patch = MetadataPatch { finalizers: Some(finalizers), ..MetadataPatch::default() };
    ctx.cluster.amend::<K>(&Key::of(object), &patch, &Guard::exact(object)).await.map(Some)
}

async fn remove_finalizer<K: Typed>(ctx: &Context, object: &K, finalizer: &str) -> Result<(), Failure> {
    if !has(object, finalizer) {
        return Ok(());
    }
    let rest = object.meta().finalizers.iter().flatten().filter(|f| *f != finalizer).cloned().collect();
    let patch = MetadataPatch { finalizers: Some(rest), ..MetadataPatch::default() };
    match ctx.cluster.amend::<K>(&Key::of(object), &patch, &Guard::exact(object)).await {
        Ok(_) | Err(ClusterError::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn not_held<T>(error: ClusterError, what: &str) -> Result<Result<T, Unusable>, Failure> {
    match error {
        ClusterError::Refused { code: 403, message, .. } => Ok(Err(Unusable {
            reason: Reason::NotHeld,
            message: format!(
                "our finaliser cannot be put on {what} ({message}); apply deploy/operator/rbac.yaml of this version; nothing is rented meanwhile"
            ),
        })),
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn machine(name: &str, job: &str, status: Value) -> RentedMachine {
        let offer = json!({"id": "1", "offer": {}, "priceCap": "1", "reservePerHour": "1"});
        serde_json::from_value(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "RentedMachine", "metadata": {"name": name, "uid": name},
            "spec": {
                "provider": "p", "job": {"namespace": "team", "name": job, "uid": "u"},
                "claim": {"podNamespace": "team", "podName": "p", "podUid": "u"}, "runId": "r", "attempt": 0,
                "offers": [offer], "startDeadlineS": 1,
                "workload": {"container": "c", "image": "i", "command": [], "diskGib": 1, "stopGraceS": 1}
            },
            "status": status
        }))
        .unwrap()
    }

    fn order(outcome: &str, leftover: bool) -> Value {
        json!([{"key": "k", "offer": 0, "at": "2026-11-21T10:00:00.000000Z", "outcome": outcome, "leftover": leftover}])
    }

    #[test]
    fn it_says_what_is_waited_for() {
        let claim = |name| machine(name, "a", json!({"phase": "Claimed"}));
        let refused = |name| machine(name, "a", json!({"phase": "Claimed", "orders": order("Refused", false)}));
        let leftover = |name| machine(name, "a", json!({"phase": "Ordering", "orders": order("Refused", true)}));
        let open = |name| machine(name, "a", json!({"phase": "Unknown", "orders": order("Open", false)}));
        let rented = |name, job| machine(name, job, json!({"phase": "Ready", "orders": order("Rented", false)}));
        let gone = |name| machine(name, "a", json!({"phase": "Gone", "orders": order("Rented", false)}));
        for (what, machines, expected) in [
            ("nothing", vec![], None),
            ("gone, and not settled yet", vec![gone("m")], None),
            ("a claim", vec![claim("m")], Some("waits for the claims of m to be given up")),
            ("orders that bought nothing", vec![refused("m")], Some("waits for the claims of m to be given up")),
            (
                "one, and a claim",
                vec![rented("m", "a"), claim("c")],
                Some("waits for 1 machine (m) of job team/a to be gone: delete or finish the job to end it"),
            ),
            (
                "something left behind by a refused order",
                vec![leftover("m")],
                Some("waits for 1 machine (m) of job team/a to be gone: delete or finish the job to end it"),
            ),
            (
                "an order of unknown outcome",
                vec![open("m")],
                Some("waits for 1 machine (m) of job team/a to be gone: delete or finish the job to end it"),
            ),
            (
                "two of two jobs",
                vec![rented("m", "b"), rented("n", "a")],
                Some(
                    "waits for 2 machines (m, n) of jobs team/a, team/b to be gone: delete or finish the jobs to end them",
                ),
            ),
            (
                "many of one job",
                vec![rented("m1", "a"), rented("m2", "a"), rented("m3", "a"), rented("m4", "a"), rented("m5", "a")],
                Some(
                    "waits for 5 machines (m1, m2, m3 and 2 more) of job team/a to be gone: delete or finish the job to end them",
                ),
            ),
        ] {
            assert_eq!(waits_for(&machines, "p").as_deref(), expected, "{what}");
            assert_eq!(waits_for(&machines, "another"), None, "{what}");
        }
    }
}
