use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use tradewind_cluster::watch::{Watch, feed};
use tradewind_cluster::{Cache, Cluster, Key, Removal, Selector};
use tradewind_harness::eventually;

use crate::{LIMIT, client, cluster};

#[tokio::test]
async fn a_cache_follows_the_server_within_its_selector() {
    let Some(client) = client().await else { return };
    let real = cluster(&client);
    let port: &dyn Cluster = &real;
    let map = |name: &str, job: &str| ConfigMap {
        metadata: ObjectMeta {
            namespace: Some("default".to_owned()),
            name: Some(name.to_owned()),
            labels: Some([("watch".to_owned(), "yes".to_owned()), ("job".to_owned(), job.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    let first = port.add(map("w-first", "x")).await.unwrap();
    let cache = Arc::new(Mutex::new(Cache::<ConfigMap>::new(&["job"])));
    let told = Arc::new(Mutex::new(Vec::<Key>::new()));
    let sink = told.clone();
    let what = Watch { labels: Selector::label("watch", "yes"), label_present: Some("job"), fields: None };
    let task = tokio::spawn(feed(client.clone(), what, cache.clone(), move |keys| sink.lock().unwrap().extend(keys)));

    let seen = || {
        let cache = cache.lock().unwrap();
        let job = |job: &str| cache.by("job", job).map(|map| Key::of(&*map).name).collect::<Vec<_>>();
        BTreeMap::from([("x", job("x")), ("y", job("y"))])
    };
    let until = async |expected: [&[&str]; 2]| {
        let expected = BTreeMap::from([("x", expected[0]), ("y", expected[1])]);
        eventually("the cache", LIMIT, || async {
            let seen = seen();
            let same = expected.iter().all(|(job, names)| seen[job] == *names);
            if same { Ok(()) } else { Err(format!("it has {seen:?}, not {expected:?}")) }
        })
        .await
        .unwrap();
    };
    until([&["w-first"], &[]]).await;
    assert!(cache.lock().unwrap().is_ready());
    let mut unwatched = map("w-unwatched", "x");
    unwatched.metadata.labels = None;
    port.add(unwatched).await.unwrap();
    port.add(map("w-second", "x")).await.unwrap();
    until([&["w-first", "w-second"], &[]]).await;
    assert!(first.metadata.managed_fields.is_none(), "the answer to a write is kept as well");
    let mut moved = ConfigMap::clone(&first);
    moved.metadata.labels = map("", "y").metadata.labels;
    port.write(moved).await.unwrap();
    until([&["w-second"], &["w-first"]]).await;
    port.remove::<ConfigMap>(&Key::namespaced("default", "w-second"), &Removal::default()).await.unwrap();
    until([&[], &["w-first"]]).await;
    let names: Vec<_> = told.lock().unwrap().iter().map(|key| key.name.clone()).collect();
    assert_eq!(names, ["w-first", "w-second", "w-first", "w-second"]);
    assert!(cache.lock().unwrap().iter().all(|map| map.metadata.managed_fields.is_none()));
    task.abort();
}
