//! What the operator and the caller may do. The operator's list is `deploy/operator/rbac.yaml` itself, so it cannot fall behind.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;
use tradewind_api::TrainingJob;

use super::jobs::wanted_secrets;
use super::report::Check;
use crate::Trouble;
use crate::cli::DoctorArgs;
use crate::connect::Connection;
use crate::trouble::is_forbidden;

const AREA: &str = "rights";
/// What the operator needs, as administrators install it.
const RBAC: &str = include_str!("../../../../deploy/operator/rbac.yaml");
/// The namespace that the file is written for.
const NAMESPACE: &str = "tradewind-system";
/// Questions under way at once: few enough for any API server.
const AT_ONCE: usize = 8;

/// One verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// Namespace; `None` = in the whole cluster.
    pub namespace: Option<String>,
    /// API group.
    pub group: String,
    /// Resource, with `/subresource`.
    pub resource: String,
    /// Verb.
    pub verb: String,
    /// The one object that it is for; `None` = all of them.
    pub name: Option<String>,
}

impl Right {
    fn attributes(&self) -> ResourceAttributes {
        let (resource, sub) = match self.resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (self.resource.as_str(), None),
        };
        ResourceAttributes {
            namespace: self.namespace.clone(),
            group: Some(self.group.clone()),
            resource: Some(resource.to_owned()),
            subresource: sub,
            verb: Some(self.verb.clone()),
            name: self.name.clone(),
            ..ResourceAttributes::default()
        }
    }
}

/// What the operator needs, by the file that gives it: rules of roles that are bound there.
pub fn operator_rights(operator_namespace: &str) -> Vec<Right> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(RBAC).expect("the project's own file is YAML, as a test shows");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named = |object: &&Value, kind: &str, name: &str, namespace: &Value| {
        object["kind"] == kind && object["metadata"]["name"] == name && object["metadata"]["namespace"] == *namespace
    };
    let mut rights = BTreeSet::new();
    for binding in objects.iter().filter(|o| o["kind"].as_str().is_some_and(|kind| kind.ends_with("RoleBinding"))) {
        let namespace = &binding["metadata"]["namespace"];
        let (kind, name) = (text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"]));
        let home = if kind == "Role" { namespace } else { &Value::Null };
        let role = objects.iter().find(|object| named(object, &kind, &name, home));
        let place = namespace.as_str().map(|n| if n == NAMESPACE { operator_namespace } else { n }.to_owned());
        for rule in role.and_then(|role| role["rules"].as_array()).into_iter().flatten() {
            let words = |field: &str| rule[field].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
            for group in words("apiGroups") {
                for resource in words("resources") {
                    for verb in words("verbs") {
                        let right = Right {
                            namespace: place.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            verb,
                            name: None,
                        };
                        // A rule for some objects only denies who asks for all of them.
                        let names = words("resourceNames");
                        rights.extend(names.iter().map(|name| Right { name: Some(name.clone()), ..right.clone() }));
                        if names.is_empty() {
                            rights.insert(right);
                        }
                    }
                }
            }
        }
    }
    rights.into_iter().collect()
}

/// Whether the operator's ServiceAccount may do what it needs, and read the Secrets that jobs name.
pub(super) async fn of_operator(
    connection: &Connection,
    args: &DoctorArgs,
    jobs: &[TrainingJob],
) -> Result<Vec<Check>, Trouble> {
    let account = format!("system:serviceaccount:{}:{}", args.operator_namespace, args.service_account);
    let needed = operator_rights(&args.operator_namespace);
    let Some(denied) = denied(connection, &account, &needed).await? else {
        let message = "you may not ask what others may do (create subjectaccessreviews)";
        return Ok(vec![Check::unknown(AREA, "operator", message)]);
    };
    let mut checks = vec![if denied.is_empty() {
        Check::ok(
            AREA,
            "operator",
            format!("{} may do all {} things that it needs", args.service_account, needed.len()),
        )
    } else {
        Check::problem(AREA, "operator", format!("{account} may not {}", told(&denied)))
            .mend("kubectl apply -f deploy/operator/rbac.yaml")
    }];
    let live = jobs.iter().filter(|job| !job.status.as_ref().is_some_and(|s| s.phase.is_terminal()));
    let namespaces: BTreeSet<String> = live
        .filter(|job| !wanted_secrets(job).is_empty())
        .filter_map(|job| job.metadata.namespace.clone())
        .filter(|namespace| *namespace != args.operator_namespace)
        .collect();
    for namespace in namespaces {
        checks.extend(secrets(connection, args, &namespace, &account).await?);
    }
    Ok(checks)
}

/// Whether the operator may read the Secrets of a namespace with jobs.
async fn secrets(
    connection: &Connection,
    args: &DoctorArgs,
    namespace: &str,
    account: &str,
) -> Result<Option<Check>, Trouble> {
    let right = Right {
        name: None,
        namespace: Some(namespace.to_owned()),
        group: String::new(),
        resource: "secrets".to_owned(),
        verb: "get".to_owned(),
    };
    let name = format!("secrets of {namespace}");
    Ok(denied(connection, account, &[right]).await?.map(|denied| {
        if denied.is_empty() {
            return Check::ok(AREA, name, "the operator may read the Secrets that jobs name");
        }
        Check::problem(AREA, name, "the operator may not read the Secrets that jobs name").mend(format!(
            "kubectl create rolebinding tradewind-secret-reader -n {namespace} --clusterrole tradewind-secret-reader --serviceaccount {}:{}",
            args.operator_namespace, args.service_account
        ))
    }))
}

/// Rights that this user does not have; `None` if the caller may not ask.
async fn denied(connection: &Connection, user: &str, rights: &[Right]) -> Result<Option<Vec<Right>>, Trouble> {
    let api: Api<SubjectAccessReview> = Api::all(connection.client.clone());
    let api = &api;
    // A ServiceAccount's groups count too: roles may be bound to them.
    let namespace = user.split(':').nth(2).unwrap_or_default();
    let groups = vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let groups = &groups;
    let ask = |right: Right| async move {
        let spec = SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(groups.clone()),
            resource_attributes: Some(right.attributes()),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_none_or(|s| !s.allowed).then_some(right))
    };
    let answers: Result<Vec<Option<Right>>, kube::Error> =
        stream::iter(rights.to_vec()).map(ask).buffered(AT_ONCE).try_collect().await;
    match answers {
        Ok(denied) => Ok(Some(denied.into_iter().flatten().collect())),
        Err(error) if is_forbidden(&error) => Ok(None),
        Err(error) => Err(Trouble::of("SubjectAccessReviews", &error)),
    }
}

/// `get, list nodes; create pods/binding in namespace x`.
fn told(rights: &[Right]) -> String {
    let mut by_resource: BTreeMap<(&Option<String>, &str), Vec<&str>> = BTreeMap::new();
    for right in rights {
        by_resource.entry((&right.namespace, &right.resource)).or_default().push(&right.verb);
    }
    let part = |((namespace, resource), verbs): ((&Option<String>, &str), Vec<&str>)| {
        let place = namespace.as_ref().map_or(String::new(), |n| format!(" in namespace {n}"));
        format!("{} {resource}{place}", verbs.join(", "))
    };
    by_resource.into_iter().map(part).collect::<Vec<_>>().join("; ")
}

/// What a user of this plug-in and of jobs needs, in the namespace.
pub(super) async fn of_caller(connection: &Connection, args: &DoctorArgs) -> Result<Vec<Check>, Trouble> {
    let namespace = (!args.all_namespaces).then(|| connection.namespace.clone());
    let right = |namespace: &Option<String>, group: &str, resource: &str, verb: &str| Right {
        name: None,
        namespace: namespace.clone(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        verb: verb.to_owned(),
    };
    let ours = tradewind_api::GROUP;
    let wanted = [
        right(&namespace, ours, "trainingjobs", "create"),
        right(&namespace, ours, "trainingjobs", "get"),
        right(&namespace, ours, "trainingjobs", "list"),
        right(&namespace, "", "pods", "list"),
        right(&namespace, "", "pods/log", "get"),
        right(&namespace, "events.k8s.io", "events", "list"),
        right(&None, ours, "rentedmachines", "get"),
        right(&None, ours, "providers", "list"),
    ];
    let api: Api<SelfSubjectAccessReview> = Api::all(connection.client.clone());
    let api = &api;
    let ask = |right: Right| async move {
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(right.attributes()),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_none_or(|s| !s.allowed).then_some(right))
    };
    let answers: Result<Vec<Option<Right>>, kube::Error> =
        stream::iter(wanted).map(ask).buffered(AT_ONCE).try_collect().await;
    let denied: Vec<Right> =
        answers.map_err(|error| Trouble::of("SelfSubjectAccessReviews", &error))?.into_iter().flatten().collect();
    Ok(vec![if denied.is_empty() {
        Check::ok(AREA, "you", "may do what users of TrainingJobs do")
    } else {
        Check::warning(AREA, "you", format!("may not {}, so some of it is not shown", told(&denied)))
            .mend("ask whoever runs the cluster for a role with these verbs")
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_rights_is_what_administrators_install() {
        let rights = operator_rights("elsewhere");
        let has = |namespace: Option<&str>, group: &str, resource: &str, verb: &str| {
            rights.contains(&Right {
                name: None,
                namespace: namespace.map(str::to_owned),
                group: group.into(),
                resource: resource.into(),
                verb: verb.into(),
            })
        };
        assert!(has(None, "", "pods/binding", "create") && has(None, "tradewind.dev", "rentedmachines", "delete"));
        assert!(has(Some("elsewhere"), "", "secrets", "get"), "the operator's own namespace is where it is");
        assert!(has(Some("kube-node-lease"), "coordination.k8s.io", "leases", "update"));
        assert!(!has(None, "", "secrets", "get"), "nobody reads all Secrets");
    }

    #[test]
    fn rights_are_told_by_resource() {
        let right = |namespace: Option<&str>, resource: &str, verb: &str| Right {
            name: None,
            namespace: namespace.map(str::to_owned),
            group: String::new(),
            resource: resource.into(),
            verb: verb.into(),
        };
        let rights = [right(None, "nodes", "get"), right(None, "nodes", "list"), right(Some("a"), "secrets", "get")];
        assert_eq!(told(&rights), "get, list nodes; get secrets in namespace a");
    }
}
