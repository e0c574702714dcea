//! The real programs: a control plane and an S3 server, started and used as demo and tests do.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
    aws::AmazonS3Builder, path::Path,
};
use tradewind_harness::{
    Error as HarnessError, Plane, RunDir, S3, Tools, eventually,
    leaks::Secrets,
    or_skip,
    proxy::{Action, Match},
};

const SOON: Duration = Duration::from_secs(20);

fn store(s3: &S3, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = AmazonS3Builder::new()
        .with_endpoint(s3.url())
        .with_allow_http(true)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_virtual_hosted_style_request(false)
        .with_region(S3::REGION)
        .with_bucket_name(bucket)
        .with_access_key_id(&s3.access_key)
        .with_secret_access_key(&s3.secret_key)
        .build()?;
    Ok(Arc::new(store))
}

/// How many of 16 concurrent writes with `mode` succeed; the others must have been refused for the condition.
async fn winners(store: &Arc<dyn ObjectStore>, key: &Path, mode: PutMode) -> Result<usize> {
    // An ETag is the content's hash: no update may write what the create has written, or its ETag would match once more.
    let deed = if matches!(mode, PutMode::Create) { "create" } else { "update" };
    let writers = (0..16).map(|n| {
        let (store, key, mode) = (store.clone(), key.clone(), mode.clone());
        async move { store.put_opts(&key, PutPayload::from(format!("{deed} {n}")), PutOptions::from(mode)).await }
    });
    let mut won = 0;
    for result in futures::future::join_all(writers).await {
        match result {
            Ok(_) => won += 1,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(won)
}

#[tokio::test]
async fn exactly_one_of_sixteen_conditional_puts_wins() -> Result<()> {
    let Some(tools) = or_skip(Tools::locate()) else { return Ok(()) };
    let run = RunDir::new("race")?;
    let s3 = S3::start(&tools, run.path()).await?;
    s3.create_bucket("race-bucket")?;
    let store = store(&s3, "race-bucket")?;
    for round in 0..20 {
        let key = Path::from(format!("log/{round:010}.json"));
        let won = winners(&store, &key, PutMode::Create).await?;
        ensure!(won == 1, "{won} of 16 creates won in round {round}");
        let tag = store.head(&key).await?.e_tag;
        let won = winners(&store, &key, PutMode::Update(UpdateVersion { e_tag: tag, version: None })).await?;
        ensure!(won == 1, "{won} of 16 updates won in round {round}");
    }
    ensure!(s3.keys("race-bucket", "log/")?.len() == 20);
    Ok(())
}

#[tokio::test]
async fn the_store_can_be_braked_broken_and_searched() -> Result<()> {
    let Some(tools) = or_skip(Tools::locate()) else { return Ok(()) };
    let run = RunDir::new("s3")?;
    let mut s3 = S3::start(&tools, run.path()).await?;
    s3.create_bucket("jobs")?;
    let store = store(&s3, "jobs")?;
    let key = Path::from("team/data/1-abcdef/00000001");
    store.put(&key, PutPayload::from_static(b"weights and hunter2-hunter2")).await?;
    ensure!(store.head(&Path::from("team/none")).await.is_err());

    // A machine's upload, held while everybody else goes on.
    let machine = Match::method("PUT").target("/data/1-abcdef/");
    let rule = s3.proxy.rule(machine.clone(), Action::Hold);
    let uploading = tokio::spawn({
        let (store, key) = (store.clone(), Path::from("team/data/1-abcdef/00000002"));
        async move { store.put(&key, PutPayload::from_static(b"second")).await }
    });
    let upload = s3.proxy.wait_in_flight(&machine, SOON).await?;
    ensure!(upload.head.target.starts_with("/jobs/team/data/1-abcdef/00000002"), "{}", upload.head.target);
    store.put(&Path::from("team/data/2-fedcba/00000001"), PutPayload::from_static(b"other")).await?;
    ensure!(s3.keys("jobs", "team/data/1")? == ["team/data/1-abcdef/00000001"]);
    rule.remove();
    uploading.await??;
    let all = ["team/data/1-abcdef/00000001", "team/data/1-abcdef/00000002", "team/data/2-fedcba/00000001"];
    ensure!(s3.keys("jobs", "")? == all);

    // Damage on the disk is what a client then reads.
    std::fs::write(s3.object_path("jobs", all[0]), b"weights and hunter2-hunterX")?;
    ensure!(store.get(&key).await?.bytes().await?.ends_with(b"X"));

    let leaks = Secrets::new([("planted", "hunter2-hunter2"), ("the key", &s3.secret_key)]);
    let found = leaks.find_in_exchanges("s3", &s3.proxy.recorded()?);
    ensure!(found.len() == 1 && found[0].secret == "planted", "{found:?}");

    s3.server.restart()?;
    eventually("the store after a restart", SOON, || async {
        store.head(&key).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_control_plane_runs_pods_on_fake_nodes() -> Result<()> {
    let Some(_) = or_skip(Tools::locate()) else { return Ok(()) };
    let plane = Plane::shared().await?;
    let kubectl = plane.kubectl();
    let version = kubectl.run(["version", "-o", "json"]).await?;
    ensure!(version.matches(r#""gitVersion": "v1.36.3""#).count() == 2, "{version}");

    let namespace = plane.namespace("fake").await?;
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{restartPolicy: Never, \
             containers: [{{name: main, image: x, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]}}}}"
        )
    };
    kubectl.apply(&pod("worker")).await?;
    let unschedulable = "--for=jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable";
    kubectl.run(["wait", unschedulable, "pod/worker", "-n", &namespace, "--timeout=20s"]).await?;
    plane.add_fake_node("gpu-node", &serde_json::json!({ "nvidia.com/gpu": "1" })).await?;
    kubectl.run(["wait", "--for=condition=Ready", "pod/worker", "-n", &namespace, "--timeout=60s"]).await?;
    kubectl.run(["annotate", "pod/worker", "-n", &namespace, "fake.tradewind.dev/exit-code=3"]).await?;
    kubectl
        .run(["wait", "--for=jsonpath={.status.phase}=Failed", "pod/worker", "-n", &namespace, "--timeout=20s"])
        .await?;
    let ended = kubectl.get_json(["pod/worker", "-n", &namespace]).await?;
    ensure!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3, "{ended:#}");
    kubectl.apply(&pod("lost")).await?;
    kubectl.run(["wait", "--for=condition=Ready", "pod/lost", "-n", &namespace, "--timeout=60s"]).await?;
    kubectl.run(["annotate", "pod/lost", "-n", &namespace, "fake.tradewind.dev/disrupted=true"]).await?;
    kubectl.run(["wait", "--for=condition=DisruptionTarget", "pod/lost", "-n", &namespace, "--timeout=20s"]).await?;
    let lost = kubectl.get_json(["pod/lost", "-n", &namespace]).await?;
    ensure!(lost["status"]["phase"] == "Failed", "{lost:#}");
    kubectl.run(["delete", "pod/worker", "pod/lost", "-n", &namespace, "--timeout=20s"]).await?;
    kubectl.run(["delete", "node/gpu-node"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_service_account_has_only_the_rights_it_was_given() -> Result<()> {
    let Some(_) = or_skip(Tools::locate()) else { return Ok(()) };
    let plane = Plane::shared().await?;
    let namespace = plane.namespace("rights").await?;
    let kubeconfig = plane.service_account_kubeconfig(&namespace, "operator").await?;
    let config = kubeconfig.display().to_string();
    let list = ["get", "configmaps", "-n", &namespace, "--kubeconfig", &config];
    let refused = plane.kubectl().run(list).await;
    ensure!(
        matches!(&refused, Err(HarnessError::Kubectl { stderr, .. }) if stderr.contains("forbidden")),
        "{refused:?}"
    );
    let account = format!("--serviceaccount={namespace}:operator");
    plane.kubectl().run(["create", "rolebinding", "view", "--clusterrole=view", &account, "-n", &namespace]).await?;
    eventually("the new right", SOON, || async {
        plane.kubectl().run(list).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;

    let user = format!("system:serviceaccount:{namespace}:operator");
    let codes = || async {
        let events = plane.audit().map_err(|e| e.to_string())?;
        let mine = events.iter().filter(|e| e.user.username == user && !e.is_write());
        let lists = mine.filter(|e| e.object_ref.as_ref().is_some_and(|o| o.resource == "configmaps"));
        let codes: Vec<u16> = lists.filter_map(|e| Some(e.response_status.as_ref()?.code)).collect();
        if codes.first() == Some(&403) && codes.last() == Some(&200) { Ok(()) } else { Err(format!("{codes:?}")) }
    };
    eventually("both answers in the audit log", SOON, codes).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_of_the_plane_works() -> Result<()> {
    let Some(_) = or_skip(Tools::locate()) else { return Ok(()) };
    let plane = Plane::shared().await?;
    let client = plane.client().await?;
    let version = client.apiserver_version().await?;
    ensure!(version.git_version == "v1.36.3", "{version:?}");
    let home = plane.kubeconfig().parent().context("a directory")?;
    ensure!(home.join("kubectl-home").exists(), "kubectl keeps its cache below the run directory");
    Ok(())
}
