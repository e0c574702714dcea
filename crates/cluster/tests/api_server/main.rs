//! The port on a real API server: the conformance suite, the twin held against it, and watches.
#![expect(clippy::panic, clippy::unwrap_used, reason = "the whole file is a test")]

mod conformance;
mod differential;
mod watch;

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::OnceCell;
use tradewind_cluster::KubeCluster;
use tradewind_cluster::conformance::Setting;
use tradewind_harness::{Plane, eventually, or_skip};

const LIMIT: Duration = Duration::from_secs(30);

/// A client of a plane that all tests of this binary share, with our CRDs. `None` where there is no plane to be had.
async fn client() -> Option<kube::Client> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let plane = or_skip(Plane::shared().await)?;
    let kubeconfig =
        kube::config::Kubeconfig::read_from(plane.kubeconfig()).expect("the plane's kubeconfig can be read");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("the kubeconfig is complete");
    let client = tradewind_cluster::kube_client::client(config).expect("a client can be made");
    INSTALLED.get_or_init(|| install(client.clone())).await;
    Some(client)
}

async fn install(client: kube::Client) {
    let api = Api::<CustomResourceDefinition>::all(client);
    for (name, value) in tradewind_api::crd::all() {
        let crd = serde_json::from_value(value).expect("our CRDs are CRDs");
        let made: CustomResourceDefinition =
            api.create(&PostParams::default(), &crd).await.expect("the CRD is accepted");
        let name = made.metadata.name.unwrap_or_else(|| name.to_owned());
        eventually("the CRD", LIMIT, || async {
            let crd = api.get(&name).await.map_err(|error| error.to_string())?;
            let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
            let is_served = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            is_served.then_some(()).ok_or_else(|| format!("CRD {name} is not Established"))
        })
        .await
        .expect("our CRDs are served");
    }
}

/// Waits for the ServiceAccount that a real cluster gives each namespace.
struct RealSetting {
    client: kube::Client,
}

impl Setting for RealSetting {
    fn prepare<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, ()> {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        Box::pin(async move {
            eventually("the ServiceAccount", LIMIT, || async {
                api.get("default").await.map(drop).map_err(|error| format!("none in {namespace}: {error}"))
            })
            .await
            .expect("a namespace gets its ServiceAccount");
        })
    }
}

fn cluster(client: &kube::Client) -> KubeCluster {
    KubeCluster::new(client.clone())
}
