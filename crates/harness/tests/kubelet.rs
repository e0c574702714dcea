//! The played kubelet, on a real API server with the real scheduler and controller manager.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tradewind_harness::{
    Binaries, FakeNode, FakeNodeOptions, Images, Plane, PlaneOptions, RunDir, Tools, eventually, or_skip,
};

const SOON: Duration = Duration::from_secs(30);

/// A control plane with the node `one`, which has two GPUs and the images `small:1` (with a program `greet`).
struct World {
    // In the order in which they end.
    node: FakeNode,
    plane: Plane,
    namespace: String,
    images: Images,
    run: RunDir,
}

async fn world(label: &str) -> Result<Option<World>> {
    if or_skip(Tools::locate()).is_none() || or_skip(Binaries::locate_sim()).is_none() {
        return Ok(None);
    }
    let run = RunDir::new(label)?;
    // Noticing a dead node takes 50 s otherwise.
    let options = PlaneOptions { node_grace: Some(Duration::from_secs(5)), ..PlaneOptions::default() };
    let plane = Plane::start(&Tools::locate()?, run.path(), options).await?;
    let images = Images::new().directory("small:1", image(run.path().join("small"))?);
    let node = FakeNode::start(&plane, run.path(), node("one", &images)).await?;
    let namespace = plane.namespace(label).await?;
    Ok(Some(World { node, plane, namespace, images, run }))
}

fn node(name: &str, images: &Images) -> FakeNodeOptions {
    FakeNodeOptions::new(name, images).gpus(2).lease_seconds(4)
}

fn image(root: PathBuf) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(root.join("bin"))?;
    fs::write(root.join("bin/greet"), "#!/bin/sh\necho \"hello $1 from $HOSTNAME\"\ncat words.txt\n")?;
    fs::set_permissions(root.join("bin/greet"), fs::Permissions::from_mode(0o755))?;
    fs::write(root.join("words.txt"), "words of the image\n")?;
    Ok(root)
}

impl World {
    /// A Pod with one container `main`; `patch` is merged into its spec, `container` into the container.
    async fn pod(&self, name: &str, container: Value, spec: Value) -> Result<()> {
        let mut main = json!({ "name": "main", "image": "small:1" });
        extend(&mut main, container);
        let mut all = json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 20, "containers": [main] });
        extend(&mut all, spec);
        let metadata = json!({ "name": name, "namespace": self.namespace, "labels": { "app": name }, "annotations": { "note": "n1" } });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": all });
        self.plane.kubectl().apply(&pod.to_string()).await?;
        Ok(())
    }

    async fn shell(&self, name: &str, script: &str, spec: Value) -> Result<()> {
        self.pod(name, json!({ "command": ["sh", "-c", script] }), spec).await
    }

    async fn get(&self, name: &str) -> Result<Value> {
        Ok(self.plane.kubectl().get_json(["pod", name, "-n", &self.namespace]).await?)
    }

    async fn until(&self, name: &str, what: &str, look: impl Fn(&Value) -> bool) -> Result<Value> {
        let seen = eventually(what, SOON, || async {
            let pod = self.get(name).await.map_err(|e| e.to_string())?;
            if look(&pod) { Ok(pod) } else { Err(format!("{:#}", pod["status"])) }
        });
        Ok(seen.await?)
    }

    async fn patch(&self, name: &str, patch: &str) -> Result<()> {
        self.plane.kubectl().run(["patch", "pod", name, "-n", &self.namespace, "--type=merge", "-p", patch]).await?;
        Ok(())
    }

    async fn phase(&self, name: &str, phase: &str) -> Result<Value> {
        self.until(name, &format!("phase {phase} of {name}"), |pod| pod["status"]["phase"] == phase).await
    }

    async fn gone(&self, name: &str) -> Result<()> {
        let what = format!("the end of {name}");
        let gone = eventually(&what, SOON, || async {
            match self.get(name).await {
                Ok(pod) => Err(format!("{:#}", pod["status"])),
                Err(error) if error.to_string().contains("NotFound") => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        Ok(gone.await?)
    }

    /// Waits until the container has printed a text.
    async fn says(&self, name: &str, text: &str) -> Result<()> {
        let look = || {
            let log = self.node.log(&self.namespace, name, "main");
            std::future::ready(if log.contains(text) { Ok(()) } else { Err(log) })
        };
        Ok(eventually(&format!("{text:?} in the log of {name}"), SOON, look).await?)
    }

    /// The last look at a Pod before it went, by a watch of kubectl that began now.
    async fn last_seen(&self, name: &str, deed: &[&str]) -> Result<Value> {
        let kubectl = self.plane.kubectl().clone();
        let (pod, namespace) = (format!("pod/{name}"), self.namespace.clone());
        let watch = tokio::spawn(async move {
            kubectl.run(["wait", "--for=delete", &pod, "-n", &namespace, "--timeout=30s"]).await
        });
        let deed: Vec<String> = deed.iter().map(|word| (*word).to_owned()).collect();
        let kubectl = self.plane.kubectl().clone();
        let doing = tokio::spawn(async move { kubectl.run(deed).await });
        let mut last = Value::Null;
        while let Ok(pod) = self.get(name).await {
            last = pod;
        }
        watch.await??;
        doing.await??;
        Ok(last)
    }
}

fn extend(target: &mut Value, patch: Value) {
    if let (Some(target), Value::Object(patch)) = (target.as_object_mut(), patch) {
        target.extend(patch);
    }
}

fn condition<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|c| c["type"] == name).unwrap_or(&Value::Null)
}

fn terminated<'a>(pod: &'a Value, list: &str) -> &'a Value {
    &pod["status"][list][0]["state"]["terminated"]
}

#[tokio::test]
async fn plain_pods_run_to_their_end() -> Result<()> {
    let Some(world) = world("plain").await? else { return Ok(()) };
    world.pod("good", json!({ "command": ["greet"], "args": ["you"] }), json!({})).await?;
    let good = world.phase("good", "Succeeded").await?;
    ensure!(world.node.log(&world.namespace, "good", "main") == "hello you from good\nwords of the image\n");
    let end = terminated(&good, "containerStatuses");
    ensure!(end["exitCode"] == 0 && end["reason"] == "Completed", "{good:#}");
    ensure!(end["startedAt"].is_string() && end["finishedAt"].is_string(), "{good:#}");
    ensure!(good["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with("127.")), "{good:#}");
    ensure!(condition(&good, "PodScheduled")["status"] == "True", "{good:#}");
    ensure!(condition(&good, "Ready")["reason"] == "PodCompleted", "{good:#}");
    ensure!(good["status"]["qosClass"] == "BestEffort" && good["status"]["startTime"].is_string(), "{good:#}");

    world.shell("bad", "echo why > /dev/termination-log; exit 7", json!({})).await?;
    let bad = world.phase("bad", "Failed").await?;
    let end = terminated(&bad, "containerStatuses");
    ensure!(end["exitCode"] == 7 && end["reason"] == "Error" && end["message"] == "why\n", "{bad:#}");

    world.pod("typo", json!({ "command": ["grete"] }), json!({})).await?;
    let typo = world.phase("typo", "Failed").await?;
    ensure!(terminated(&typo, "containerStatuses")["reason"] == "StartError", "{typo:#}");

    let volume = json!({ "volumes": [{ "name": "v", "emptyDir": {} }],
        "initContainers": [{ "name": "first", "image": "small:1", "command": ["sh", "-c"],
            "args": ["cp words.txt /data/deep.txt && test ! -e /data"], "volumeMounts": [{ "name": "v", "mountPath": "/data" }] }] });
    let main = json!({ "command": ["cat", "/data/deep.txt"], "volumeMounts": [{ "name": "v", "mountPath": "/data" }] });
    world.pod("two", main.clone(), volume.clone()).await?;
    let two = world.phase("two", "Failed").await?;
    ensure!(terminated(&two, "initContainerStatuses")["exitCode"] == 1, "{two:#}");
    ensure!(two["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing", "{two:#}");
    let mut volume = volume;
    volume["initContainers"][0]["args"] = json!(["cp words.txt /data/deep.txt && test -e /data"]);
    world.pod("three", main, volume).await?;
    let three = world.phase("three", "Succeeded").await?;
    ensure!(terminated(&three, "initContainerStatuses")["reason"] == "Completed", "{three:#}");
    ensure!(condition(&three, "Initialized")["status"] == "True", "{three:#}");
    ensure!(world.node.log(&world.namespace, "three", "main") == "words of the image\n");

    world.shell("late", "trap 'exit 3' TERM; sleep 100 & wait", json!({ "activeDeadlineSeconds": 1 })).await?;
    let late = world.phase("late", "Failed").await?;
    ensure!(late["status"]["reason"] == "DeadlineExceeded", "{late:#}");
    ensure!(terminated(&late, "containerStatuses")["exitCode"] == 3, "{late:#}");
    ensure!(world.node.all_processes().is_empty(), "{:?}", world.node.all_processes());
    ensure!(fs::read_dir(world.run.path().join("nodes/one/pods"))?.next().is_none(), "volumes of Pods that are over");
    Ok(())
}

#[tokio::test]
async fn environment_is_that_of_a_kubelet() -> Result<()> {
    let Some(world) = world("environment").await? else { return Ok(()) };
    let environment = json!({
        "envFrom": [{ "prefix": "S_", "secretRef": { "name": "keys" } }, { "configMapRef": { "name": "none", "optional": true } }],
        "env": [
            { "name": "A", "value": "a" }, { "name": "B", "value": "$(A)b$$(A)" },
            { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "token" } } },
            { "name": "MODE", "valueFrom": { "configMapKeyRef": { "name": "modes", "key": "mode" } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "NOTE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.annotations['note']" } } },
            { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
        ],
        "command": ["sh", "-c", "echo $1 $B $KEY $S_token $MODE $IP $NODE $NOTE $APP; cat /etc/keys/token; ls /etc/modes"],
        "args": ["x", "$(A)-$(IP)"],
        "volumeMounts": [{ "name": "keys", "mountPath": "/etc/keys" }, { "name": "modes", "mountPath": "/etc/modes" }],
    });
    let volumes = json!({ "volumes": [
        { "name": "keys", "secret": { "secretName": "keys" } },
        { "name": "modes", "configMap": { "name": "modes", "items": [{ "key": "mode", "path": "renamed" }] } },
    ] });
    world.pod("env", environment, volumes).await?;
    let kubectl = world.plane.kubectl();
    let event = || async {
        let events = kubectl.run(["events", "-n", &world.namespace]).await.map_err(|e| e.to_string())?;
        if events.contains("FailedMount") && events.contains("secret \"keys\" not found") {
            Ok(())
        } else {
            Err(events)
        }
    };
    eventually("the Event about the missing Secret", SOON, event).await?;
    ensure!(world.get("env").await?["status"]["phase"] == "Pending");
    kubectl.run(["create", "secret", "generic", "keys", "--from-literal=token=t0p", "-n", &world.namespace]).await?;
    kubectl.run(["create", "configmap", "modes", "--from-literal=mode=fast", "-n", &world.namespace]).await?;
    let pod = world.phase("env", "Succeeded").await?;
    let ip = pod["status"]["podIP"].as_str().context("an address")?;
    let wanted = format!("a-{ip} ab$(A) t0p t0p fast {ip} one n1 env\nt0prenamed\n");
    let log = world.node.log(&world.namespace, "env", "main");
    ensure!(log == wanted, "{log}");

    let missing = json!({ "command": ["true"], "env": [
        { "name": "K", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "nope" } } } ] });
    world.pod("nokey", missing, json!({})).await?;
    let waits = |reason: &'static str| {
        move |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    let pod = world.until("nokey", "the missing key", waits("CreateContainerConfigError")).await?;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    ensure!(message.contains("couldn't find key nope"), "{message}");
    world.pod("noimage", json!({ "image": "other:1", "command": ["greet"] }), json!({})).await?;
    world.until("noimage", "the missing image", waits("ImagePullBackOff")).await?;
    let _ = world.images.clone().directory("other:1", world.run.path().join("small"));
    world.phase("noimage", "Succeeded").await?;
    Ok(())
}

#[tokio::test]
async fn deletion_eviction_and_preemption_keep_the_grace() -> Result<()> {
    let Some(world) = world("ends").await? else { return Ok(()) };
    let polite = "trap 'echo saved; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    world.shell("polite", polite, json!({})).await?;
    world.says("polite", "up").await?;
    let running = world.phase("polite", "Running").await?;
    ensure!(condition(&running, "Ready")["status"] == "True", "{running:#}");
    let main = world.node.processes(&world.namespace, "polite");
    ensure!(main.iter().any(|p| p.container == "main" && p.command.contains("echo saved")), "{main:?}");
    // The end is told before the object goes, also where it has been told to somebody who is slow.
    let last = world.last_seen("polite", &["delete", "pod/polite", "-n", &world.namespace, "--wait=false"]).await?;
    ensure!(last["metadata"]["deletionTimestamp"].is_string(), "{last:#}");
    ensure!(world.node.log(&world.namespace, "polite", "main").ends_with("saved\n"));

    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    world.shell("stubborn", stubborn, json!({ "terminationGracePeriodSeconds": 2 })).await?;
    world.says("stubborn", "up").await?;
    // A finaliser keeps the object, so that its last state can be read.
    let keep = r#"{"metadata":{"finalizers":["test.dev/keep"]}}"#;
    let began = tokio::time::Instant::now();
    world.patch("stubborn", keep).await?;
    world.plane.kubectl().run(["delete", "pod/stubborn", "-n", &world.namespace, "--wait=false"]).await?;
    let killed = world.phase("stubborn", "Failed").await?;
    ensure!(terminated(&killed, "containerStatuses")["exitCode"] == 137, "{killed:#}");
    ensure!(began.elapsed() > Duration::from_secs(2), "the grace was not kept");
    world.patch("stubborn", r#"{"metadata":{"finalizers":null}}"#).await?;
    world.gone("stubborn").await?;

    world.shell("evicted", polite, json!({})).await?;
    world.says("evicted", "up").await?;
    world.patch("evicted", keep).await?;
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "evicted", "namespace": world.namespace } });
    let path = format!("/api/v1/namespaces/{}/pods/evicted/eviction", world.namespace);
    world.plane.kubectl().run_with_input(["create", "--raw", &path, "-f", "-"], &eviction.to_string()).await?;
    let evicted = world.phase("evicted", "Failed").await?;
    ensure!(condition(&evicted, "DisruptionTarget")["reason"] == "EvictionByEvictionAPI", "{evicted:#}");
    ensure!(terminated(&evicted, "containerStatuses")["exitCode"] == 5, "{evicted:#}");
    world.patch("evicted", r#"{"metadata":{"finalizers":null}}"#).await?;
    world.gone("evicted").await?;

    let class = json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": "high" }, "value": 1000 });
    world.plane.kubectl().apply(&class.to_string()).await?;
    let gpus = json!({ "limits": { "nvidia.com/gpu": 2 } });
    world.pod("low", json!({ "command": ["sh", "-c", polite], "resources": gpus }), json!({})).await?;
    world.says("low", "up").await?;
    world.patch("low", keep).await?;
    world
        .pod("high", json!({ "command": ["true"], "resources": gpus }), json!({ "priorityClassName": "high" }))
        .await?;
    let low = world.phase("low", "Failed").await?;
    ensure!(condition(&low, "DisruptionTarget")["reason"] == "PreemptionByScheduler", "{low:#}");
    world.patch("low", r#"{"metadata":{"finalizers":null}}"#).await?;
    world.phase("high", "Succeeded").await?;
    ensure!(world.node.all_processes().is_empty(), "{:?}", world.node.all_processes());
    Ok(())
}

#[tokio::test]
async fn a_dead_node_is_noticed_and_comes_back() -> Result<()> {
    let Some(world) = world("lost").await? else { return Ok(()) };
    // The controller manager evicts nobody where every node is dead.
    let other = FakeNode::start(&world.plane, world.run.path(), node("two", &world.images)).await?;
    let toleration = |key: &str| json!({ "key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 });
    let here = json!({ "nodeSelector": { "kubernetes.io/hostname": "one" },
        "tolerations": [toleration("unreachable"), toleration("not-ready")] });
    world.shell("worker", "echo up; sleep 1000", here.clone()).await?;
    world.says("worker", "up").await?;
    let began = tokio::time::Instant::now();
    world.node.kill().await;
    let none =
        || std::future::ready(if world.node.all_processes().is_empty() { Ok(()) } else { Err("it runs".into()) });
    eventually("the end of all processes", Duration::from_secs(5), none).await?;
    let evicted = world
        .until("worker", "the eviction from a dead node", |pod| pod["metadata"]["deletionTimestamp"].is_string())
        .await?;
    eprintln!("noticed after {:.1} s", began.elapsed().as_secs_f64());
    ensure!(condition(&evicted, "DisruptionTarget")["reason"] == "DeletionByTaintManager", "{evicted:#}");
    ensure!(evicted["status"]["phase"] == "Running", "nobody is there to say more: {evicted:#}");
    world.node.revive().await?;
    world.gone("worker").await?;

    // Cut off, the program goes on; when the way is free again, it is ended, since the Pod was deleted meanwhile.
    world.shell("unseen", "echo up; while :; do sleep 0.1; echo on; done", here).await?;
    world.says("unseen", "up").await?;
    world.node.partition().await;
    world.until("unseen", "the eviction of the unseen", |pod| pod["metadata"]["deletionTimestamp"].is_string()).await?;
    let before = world.node.log(&world.namespace, "unseen", "main").len();
    let more = || {
        let now = world.node.log(&world.namespace, "unseen", "main").len();
        std::future::ready(if now > before { Ok(()) } else { Err("nothing new".into()) })
    };
    eventually("more words of the unseen", SOON, more).await?;
    world.plane.kubectl().run(["delete", "pod/unseen", "-n", &world.namespace, "--force", "--grace-period=0"]).await?;
    world.gone("unseen").await?;
    ensure!(!world.node.all_processes().is_empty(), "the program ended although its node was cut off");
    world.node.revive().await?;
    eventually("the end of the unseen", SOON, none).await?;
    drop(other);
    Ok(())
}

#[tokio::test]
async fn logs_can_be_read_with_kubectl_and_memory_runs_out() -> Result<()> {
    let Some(world) = world("logs").await? else { return Ok(()) };
    world.shell("talks", "echo one; echo two; sleep 1000", json!({})).await?;
    world.says("talks", "two").await?;
    let kubectl = world.plane.kubectl().clone();
    let logs = kubectl.run(["logs", "talks", "-n", &world.namespace]).await?;
    ensure!(logs == "one\ntwo\n", "{logs}");
    let logs = kubectl.run(["logs", "talks", "-n", &world.namespace, "--tail=1"]).await?;
    ensure!(logs == "two\n", "{logs}");
    let namespace = world.namespace.clone();
    let follow = tokio::spawn(async move { kubectl.run(["logs", "-f", "talks", "-n", &namespace]).await });
    tokio::task::yield_now().await;
    world.node.freeze(&world.namespace, "talks", true);
    let state = || {
        let all = world.node.processes(&world.namespace, "talks");
        let stats = all.iter().map(|p| fs::read_to_string(format!("/proc/{}/stat", p.pid)).unwrap_or_default());
        let stats: Vec<String> = stats.collect();
        std::future::ready(if stats.iter().all(|s| s.contains(") T ")) { Ok(()) } else { Err(format!("{stats:?}")) })
    };
    eventually("all processes to stand still", SOON, state).await?;
    world.node.out_of_memory(&world.namespace, "talks", "main");
    let pod = world.phase("talks", "Failed").await?;
    let end = terminated(&pod, "containerStatuses");
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{pod:#}");
    let followed = tokio::time::timeout(SOON, follow).await???;
    ensure!(followed == "one\ntwo\n", "{followed}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_when_a_node_goes() -> Result<()> {
    let Some(world) = world("dropped").await? else { return Ok(()) };
    // A program that hides in a session and a group of its own.
    world.shell("hides", "setsid sh -c 'sleep 1000 & echo hidden $!; wait' & wait", json!({})).await?;
    world.says("hides", "hidden").await?;
    // The shell has told its number, but it may not have become `sleep` yet.
    let hidden = || {
        let all = world.node.all_processes();
        let there = all.iter().any(|p| p.command == "sleep 1000");
        std::future::ready(if there { Ok(all) } else { Err(format!("{all:?}")) })
    };
    let all = eventually("the hidden program", SOON, hidden).await?;
    drop(world.node);
    let left: Vec<_> = all.iter().filter(|p| PathBuf::from(format!("/proc/{}", p.pid)).exists()).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
