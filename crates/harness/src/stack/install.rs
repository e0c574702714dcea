//! What an administrator does once: CRDs, roles, credentials, Providers. All with kubectl, as in the documentation.

use serde_json::{Value, json};

use super::{MAILBOX_SECRET, NAMESPACE, SERVICE_ACCOUNT, StackOptions};
use crate::{Plane, Result, S3, Sim, project_root};

/// Installs everything that must be there before the operator starts.
pub(super) async fn before_operator(plane: &Plane, s3: &S3) -> Result<()> {
    let kubectl = plane.kubectl();
    let path = |name: &str| project_root().join(name).display().to_string();
    let (crds, roles) = (path("crds"), path("deploy/operator/rbac.yaml"));
    kubectl.run(["apply", "--server-side", "-f", &crds]).await?;
    kubectl.run(["apply", "-f", &roles]).await?;
    kubectl.apply(&store_secret(s3, NAMESPACE, MAILBOX_SECRET).to_string()).await?;
    kubectl.run(["wait", "--for=condition=Established", "--timeout=30s", "-f", &crds]).await.map(drop)
}

/// The Secret with the object store's keys under the names that the AWS command line uses.
pub(super) fn store_secret(s3: &S3, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": namespace, "name": name },
        "stringData": {
            "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_REGION": S3::REGION, "AWS_ENDPOINT_URL": s3.url(),
        },
    })
}

/// A Provider for each account of the market, with its key in a Secret.
pub(super) async fn providers(plane: &Plane, sim: &Sim, options: &StackOptions) -> Result<()> {
    let (hour, day) = &options.limits;
    let mut items = Vec::new();
    for (name, account) in sim.providers() {
        let secret = format!("{name}-credentials");
        items.push(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": NAMESPACE, "name": secret },
            "stringData": { "apiKey": account.api_key },
        }));
        let kind = if account.kind == "runpod" { "RunPod" } else { "Vast" };
        items.push(json!({
            "apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": { "name": name },
            "spec": {
                "kind": kind, "credentialsSecretRef": { "name": secret, "key": "apiKey" },
                "limits": { "perHour": hour, "perDay": day },
            },
        }));
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    plane.kubectl().apply(&list.to_string()).await.map(drop)
}

/// What the operator needs in a namespace with jobs: its bucket's keys, and the right to read Secrets there.
pub(super) fn namespace_grant(s3: &S3, namespace: &str, secret: &str, role: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        store_secret(s3, namespace, secret),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "namespace": namespace, "name": "tradewind-secret-reader" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "namespace": NAMESPACE, "name": SERVICE_ACCOUNT }],
        },
    ] })
}
