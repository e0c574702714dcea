//! Custom resources, operator, virtual Node, mailbox, agent.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use serde_json::Value;
use tradewind_api::names;
use tradewind_core::{Clock, InstallId};

use super::mends;
use super::report::Check;
use crate::Trouble;
use crate::cli::DoctorArgs;
use crate::connect::Connection;
use crate::text::ago;
use crate::trouble::{is_forbidden, is_missing};

const AREA: &str = "installation";
const APPLY_CRDS: &str = "kubectl apply --server-side -f crds/";
/// What an operator that holds its Lease renews within; another clock than ours may have written it.
const DOUBT: SignedDuration = SignedDuration::from_secs(5);

/// The custom resources.
pub(super) async fn kinds(connection: &Connection) -> Result<Vec<Check>, Trouble> {
    let api: Api<CustomResourceDefinition> = Api::all(connection.client.clone());
    let mut checks = Vec::new();
    for (_, ours) in tradewind_api::crd::all() {
        let name = ours["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        checks.push(match api.get_opt(&name).await {
            Ok(there) => {
                let there = there.map(|crd| serde_json::to_value(crd).unwrap_or_default());
                kind(&name, &ours, there.as_ref())
            }
            Err(error) if is_forbidden(&error) => {
                Check::unknown(AREA, name, "you may not read CustomResourceDefinitions")
            }
            Err(error) => return Err(Trouble::of("CustomResourceDefinitions", &error)),
        });
    }
    Ok(checks)
}

/// Whether a custom resource is there and has the fields that this version has. Pure.
pub fn kind(name: &str, ours: &Value, there: Option<&Value>) -> Check {
    let Some(there) = there else {
        return Check::problem(AREA, name, "the cluster does not know this kind").mend(APPLY_CRDS);
    };
    let (ours, theirs) = (fields(ours), fields(there));
    let missing: Vec<&String> = ours.difference(&theirs).collect();
    if let Some(first) = missing.first() {
        let lacks = match missing.len() {
            1 => format!("its field {first} is missing"),
            n => format!("{n} of its fields are missing, such as {first}"),
        };
        let message = format!("older than this plug-in: {lacks}");
        return Check::problem(AREA, name, message).mend(format!("{APPLY_CRDS}   # of the operator's version"));
    }
    match theirs.difference(&ours).next() {
        Some(first) => Check::warning(AREA, name, format!("newer than this plug-in, which does not know {first}"))
            .mend("install the plug-in of the operator's version"),
        None => Check::ok(AREA, name, "as this version has it"),
    }
}

/// Paths of all fields of the served schema.
fn fields(crd: &Value) -> BTreeSet<String> {
    fn walk(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            walk(&path, child, found);
            found.insert(path);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], found);
        }
    }
    let mut found = BTreeSet::new();
    let versions = crd["spec"]["versions"].as_array();
    let served = versions.into_iter().flatten().find(|v| v["name"] == tradewind_api::VERSION && v["served"] == true);
    if let Some(version) = served {
        walk("", &version["schema"]["openAPIV3Schema"], &mut found);
    }
    found
}

/// The operator: its Lease and, where it runs as a Deployment, that.
pub(super) async fn operator(
    connection: &Connection,
    args: &DoctorArgs,
    clock: &dyn Clock,
) -> Result<Vec<Check>, Trouble> {
    let namespace = &args.operator_namespace;
    let leases: Api<Lease> = Api::namespaced(connection.client.clone(), namespace);
    let name = format!("{}-operator", args.release);
    let logs = format!("kubectl logs -n {namespace} deploy/tradewind-operator --tail 50");
    let lead = match leases.get_opt(&name).await {
        Err(error) if is_forbidden(&error) => {
            Check::unknown(AREA, "operator", format!("you may not read Leases in namespace {namespace}"))
        }
        Err(error) => return Err(Trouble::of("Leases", &error)),
        Ok(None) => Check::problem(
            AREA,
            "operator",
            format!("no operator of release {} has ever led: there is no Lease {namespace}/{name}", args.release),
        )
        .mend("kubectl apply -k deploy/operator   # or name its place by --operator-namespace and --release"),
        Ok(Some(lease)) => {
            let spec = lease.spec.clone().unwrap_or_default();
            let holder = spec.holder_identity.clone().unwrap_or_default();
            let lasts = SignedDuration::from_secs(i64::from(spec.lease_duration_seconds.unwrap_or(15)));
            let renewed = spec.renew_time.as_ref().map(|t| t.0);
            let fresh = renewed.is_some_and(|at| clock.now().duration_since(at).abs() < lasts + DOUBT);
            // Clocks differ: a Lease that looks old is dead only if it does not change either.
            let alive = !holder.is_empty() && (fresh || changes(&leases, &name, &lease, lasts).await);
            let since = renewed.map_or_else(|| "ever".to_owned(), |at| ago(clock.now(), at));
            if alive {
                Check::ok(AREA, "operator", format!("{holder} leads"))
            } else if holder.is_empty() {
                Check::problem(AREA, "operator", "it has stopped and given the lead free: nobody leads")
                    .mend(logs.clone())
            } else {
                let message = format!("nobody leads: {holder} has not renewed its Lease for {since}");
                Check::problem(AREA, "operator", message).mend(logs.clone())
            }
        }
    };
    let mut checks = vec![lead];
    let deployments: Api<Deployment> = Api::namespaced(connection.client.clone(), namespace);
    if let Ok(Some(deployment)) = deployments.get_opt("tradewind-operator").await {
        let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
        let message = format!("{ready} of {wanted} replicas are ready");
        checks.push(if ready >= wanted {
            Check::ok(AREA, "replicas", message)
        } else if ready > 0 {
            Check::warning(AREA, "replicas", message).mend(format!("kubectl get pods -n {namespace}"))
        } else {
            Check::problem(AREA, "replicas", message).mend(logs)
        });
    }
    Ok(checks)
}

async fn changes(leases: &Api<Lease>, name: &str, seen: &Lease, lasts: SignedDuration) -> bool {
    tokio::time::sleep(std::time::Duration::try_from(lasts).unwrap_or_default()).await;
    let now = leases.get_opt(name).await.ok().flatten();
    now.is_some_and(|now| now.metadata.resource_version != seen.metadata.resource_version)
}

/// The virtual Node, and what the operator tells on it.
pub(super) async fn node_of(connection: &Connection, args: &DoctorArgs) -> Result<Vec<Check>, Trouble> {
    let unknown = |what: &str| vec![Check::unknown(AREA, "node", format!("you may not {what}"))];
    let namespaces: Api<Namespace> = Api::all(connection.client.clone());
    let uid = match namespaces.get("kube-system").await {
        Ok(namespace) => namespace.metadata.uid.unwrap_or_default(),
        Err(error) if is_forbidden(&error) => {
            return Ok(unknown("read namespace kube-system, by which the Node is named"));
        }
        Err(error) => return Err(Trouble::of("Namespaces", &error)),
    };
    let name = format!("tradewind-{}", InstallId::derive(&uid, &args.release));
    let nodes: Api<Node> = Api::all(connection.client.clone());
    match nodes.get(&name).await {
        Ok(found) => Ok(node(&name, Some(&found), args)),
        Err(error) if is_missing(&error) => Ok(node(&name, None, args)),
        Err(error) if is_forbidden(&error) => Ok(unknown("read Nodes")),
        Err(error) => Err(Trouble::of("Nodes", &error)),
    }
}

/// What the Node says of itself, of the mailbox and of the agent. Pure.
pub fn node(name: &str, node: Option<&Node>, args: &DoctorArgs) -> Vec<Check> {
    let logs = format!("kubectl logs -n {} deploy/tradewind-operator | grep -i mailbox", args.operator_namespace);
    let Some(node) = node else {
        let message = format!("there is no Node {name}: the operator makes it once it leads and its mailbox works");
        return vec![Check::problem(AREA, "node", message).mend(logs)];
    };
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let find = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let ready = find("Ready").is_some_and(|c| c.status == "True");
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let mut checks = vec![match (cordoned, ready) {
        (true, _) => Check::warning(AREA, "node", format!("{name} is cordoned: nothing new is rented"))
            .mend(format!("kubectl uncordon {name}")),
        (false, true) => Check::ok(AREA, "node", format!("{name} is ready")),
        (false, false) => Check::problem(AREA, "node", format!("{name} is not ready: the operator does not renew it"))
            .mend(logs.replace("| grep -i mailbox", "--tail 50")),
    }];
    let told = [
        (names::MAILBOX_CONDITION, "mailbox", true),
        (names::TICKET_LIFETIME_CONDITION, "ticket lifetime", false),
        (names::AGENT_CONDITION, "agent", true),
        (names::AGENT_IMAGE_CONDITION, "agent image", false),
    ];
    let works = find(names::MAILBOX_CONDITION).is_none_or(|c| c.status == "True");
    for (type_, name, grave) in told {
        // Without a mailbox the others are what an earlier operator said.
        if !works && [names::TICKET_LIFETIME_CONDITION, names::AGENT_CONDITION].contains(&type_) {
            continue;
        }
        checks.push(match find(type_) {
            None => Check::unknown(AREA, name, "the operator does not tell: it is of an earlier version"),
            Some(c) => {
                let message = c.message.clone().unwrap_or_default();
                let mend = mends::of_finding(type_, c.reason.as_deref().unwrap_or_default(), &message, args);
                match (c.status == "True", grave) {
                    (true, _) => Check::ok(AREA, name, message),
                    (false, true) => Check::problem(AREA, name, message).mend(mend),
                    (false, false) => Check::warning(AREA, name, message).mend(mend),
                }
            }
        });
    }
    checks
}
