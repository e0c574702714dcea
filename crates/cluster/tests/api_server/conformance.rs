use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use tradewind_cluster::conformance;
use tradewind_cluster::{Cluster, ClusterError, Key, Typed};

use crate::{RealSetting, client, cluster};

#[tokio::test]
async fn the_port_on_a_real_server_conforms() {
    let Some(client) = client().await else { return };
    let setting = RealSetting { client: client.clone() };
    let failed = conformance::run(&cluster(&client), &setting, "r").await;
    let report: Vec<_> =
        failed.iter().map(|(case, failure)| format!("{}: {}\n  {}", case.name, case.fact, failure.0)).collect();
    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[tokio::test]
async fn every_request_is_told_with_its_outcome() {
    let Some(client) = client().await else { return };
    let told = Arc::new(Mutex::new(BTreeMap::<_, u32>::new()));
    let sink = told.clone();
    let observed = cluster(&client).with_observer(Arc::new(move |called| {
        *sink.lock().unwrap().entry((called.verb, called.resource, called.outcome)).or_default() += 1;
    }));
    let absent = Key::namespaced("default", "never-made");
    for _ in 0..2 {
        assert_eq!(observed.get(ConfigMap::KIND, &absent).await.unwrap_err(), ClusterError::NotFound);
    }
    observed.list(Node::KIND, None, &tradewind_cluster::Selector::everything()).await.unwrap();
    let expected = BTreeMap::from([(("get", "configmaps", "not_found"), 2), (("list", "nodes", "ok"), 1)]);
    assert_eq!(*told.lock().unwrap(), expected);
}

#[tokio::test]
async fn no_answer_in_time_or_at_all_is_unknown() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let ask = async |url: &str| {
        let client = tradewind_cluster::kube_client::client(kube::Config::new(url.parse().unwrap())).unwrap();
        let cluster = cluster(&client).with_limit(Duration::from_millis(200));
        cluster.get(ConfigMap::KIND, &Key::namespaced("default", "a")).await.unwrap_err()
    };
    for url in [silent, closed] {
        let error = ask(&url).await;
        assert!(matches!(error, ClusterError::Unknown(_)), "{url}: {error:?}");
    }
    drop(listener);
}
