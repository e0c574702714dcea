//! `kubectl logs` of rented Pods, and who else may ask the Node for them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::json;
use tradewind_api::training_job::JobPhase;

use crate::checks::finished_right;
use crate::job::Job;
use crate::world::{SOON, VAST, World, scenario};

const MINUTE: Duration = Duration::from_mins(1);

async fn kubectl(world: &World, arguments: &str) -> Result<String> {
    let text = world.stack.kubectl().run(arguments.split_whitespace()).await?;
    println!("$ kubectl {arguments}\n{text}");
    Ok(text)
}

/// What kubectl says when it fails.
async fn refused(world: &World, arguments: &str) -> Result<String> {
    match world.stack.kubectl().run(arguments.split_whitespace()).await {
        Ok(text) => bail!("kubectl {arguments} should fail, but says {text}"),
        Err(error) => {
            println!("$ kubectl {arguments}\n{error}");
            Ok(error.to_string())
        }
    }
}

/// What a program of so many steps prints, without its loss.
fn steps(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.split_once(" loss")?.0.to_owned())).collect()
}

#[test]
fn in_all_their_forms_while_the_program_runs_and_after_its_machine_is_gone() {
    scenario(async |world| {
        let ns = world.namespace("logs").await?;
        // Other scenarios' jobs keep theirs.
        let kept = |world: &World| -> Vec<String> {
            let keys = ["tradewind/logs/", "tradewind/kept/"].map(|prefix| world.stack.s3.keys("mailbox", prefix));
            keys.into_iter().flatten().flatten().collect()
        };
        let before = kept(world);
        let job = Job::new(&ns, "talks", 60, 20, "0.1");
        job.apply(world).await?;
        job.phase(world, JobPhase::Running, SOON).await?;
        // Followed from the start to the end, which kubectl finds by itself.
        let followed = kubectl(world, &format!("logs -f talks-0 -n {ns}")).await?;
        let want: Vec<String> = (1..=60).map(|step| format!("step {step}/60")).collect();
        ensure!(steps(&followed) == want, "each line once and in order: {followed}");
        ensure!(followed.starts_with("starting from step 0\n") && followed.ends_with('\n'), "{followed}");
        ensure!(!followed.contains("[tradewind]"), "nothing went wrong on the way: {followed}");

        job.phase(world, JobPhase::Complete, MINUTE).await?;
        finished_right(world, &job).await?;
        world.all_gone().await?;
        let logs = format!("logs talks-0 -n {ns}");
        ensure!(kubectl(world, &logs).await? == followed, "the machine is gone, its output is not");
        ensure!(kubectl(world, &format!("{logs} -f")).await? == followed, "and who follows is not kept waiting");
        ensure!(steps(&kubectl(world, &format!("{logs} --tail=2")).await?) == want[58..]);
        ensure!(kubectl(world, &format!("{logs} --tail=0")).await?.is_empty());
        ensure!(kubectl(world, &format!("{logs} --limit-bytes=8")).await? == "starting");

        let timed = kubectl(world, &format!("{logs} --timestamps")).await?;
        let stamp = regex::Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (.*)$")?;
        let told: Vec<(&str, &str)> = timed.lines().filter_map(|line| line.split_once(' ')).collect();
        ensure!(timed.lines().all(|line| stamp.is_match(line)) && told.len() == followed.lines().count(), "{timed}");
        ensure!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0), "times rise: {timed}");
        let (at, line) = told[30];
        let since = kubectl(world, &format!("{logs} --since-time={at}")).await?;
        // kubectl sends whole seconds.
        let from = told.iter().filter(|(time, _)| time[..19] >= at[..19]).count();
        ensure!(since.contains(line) && since.lines().count() == from, "{from} lines: {since}");
        ensure!(kubectl(world, &format!("{logs} --since=1h")).await? == followed);
        ensure!(kubectl(world, &format!("{logs} --since=1s")).await?.is_empty(), "the program ended long ago");
        let none = refused(world, &format!("{logs} --previous")).await?;
        ensure!(none.contains("no earlier run on this machine"), "{none}");

        // Nothing is kept for ever.
        job.delete(world).await?;
        let look = || {
            let left: Vec<String> = kept(world).into_iter().filter(|key| !before.contains(key)).collect();
            std::future::ready(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        };
        world.stack.eventually("the end of all output", MINUTE, look).await?;
        Ok(())
    });
}

#[test]
fn of_the_run_before_on_the_same_machine() {
    scenario(async |world| {
        let ns = world.namespace("logs").await?;
        let fails = "train 5 5 0.05; sleep 2; echo attempt $TRADEWIND_ATTEMPT says no; exit 3";
        let job = Job::new(&ns, "fails", 5, 5, "0.05")
            .with(json!({ "failurePolicy": { "maxRestarts": 1 } }))
            .container(json!({ "command": ["sh", "-c", fails], "args": null }));
        job.apply(world).await?;
        job.phase(world, JobPhase::Failed, MINUTE).await?;
        let now = kubectl(world, &format!("logs fails-1 -n {ns}")).await?;
        ensure!(now.contains("attempt 1 says no") && !now.contains("attempt 0"), "{now}");
        let before = kubectl(world, &format!("logs --previous fails-1 -n {ns}")).await?;
        ensure!(before.contains("attempt 0 says no") && !before.contains("attempt 1"), "{before}");
        Ok(())
    });
}

#[test]
fn before_there_is_any_and_where_there_will_never_be() {
    scenario(async |world| {
        let ns = world.namespace("logs").await?;
        world.stack.sim.patch_offer(VAST, "1000", &json!({ "stock": 1 })).await?;
        tokio::time::sleep(crate::world::OFFERS_MAX_AGE).await;
        let job = Job::new(&ns, "slow", 100, 50, "0.1");
        job.apply(world).await?;
        world.rented(1).await?;
        let waits = refused(world, &format!("logs slow-0 -n {ns}")).await?;
        ensure!(waits.contains("has not started yet, its machine is being rented: vast"), "{waits}");
        job.phase(world, JobPhase::Running, SOON).await?;

        // port-forward asks only when something connects: see below.
        for what in ["exec slow-0 -- ls", "attach slow-0"] {
            let told = refused(world, &what.replacen("slow-0", &format!("slow-0 -n {ns}"), 1)).await?;
            ensure!(told.contains("exec, attach and port-forward do not work on rented machines"), "{told}");
        }
        // A stranger that somebody has put there by hand.
        let node = kubectl(world, "get nodes -l type=virtual-kubelet -o name").await?;
        let node = node.trim().trim_start_matches("node/").to_owned();
        let stranger = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "stranger", "namespace": ns },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "c" }] } });
        world.stack.apply(&stranger.to_string()).await?;
        let told = refused(world, &format!("logs stranger -n {ns}")).await?;
        ensure!(told.contains("runs only Pods of TrainingJobs"), "{told}");
        kubectl(world, &format!("delete pod stranger -n {ns} --force --grace-period=0")).await?;
        job.delete(world).await
    });
}

/// A client with a certificate of the cluster's authority for somebody, or with none.
fn caller(world: &World, identity: Option<String>) -> Result<reqwest::Client> {
    let authority = std::fs::read(world.stack.plane.pki().join("ca.crt"))?;
    #[expect(clippy::disallowed_methods, reason = "a stranger's client, which no limits protect")]
    let mut builder =
        reqwest::Client::builder().no_proxy().tls_certs_only([reqwest::Certificate::from_pem(&authority)?]);
    if let Some(identity) = identity {
        builder = builder.identity(reqwest::Identity::from_pem(identity.as_bytes())?);
    }
    Ok(builder.build()?)
}

/// Certificate and key for a user whom the cluster knows nothing of.
fn somebody(world: &World) -> Result<String> {
    let subject = |name: &str| {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name = subject("tradewind-test-authority");
    let key = KeyPair::from_pem(&std::fs::read_to_string(world.stack.plane.pki().join("ca.key"))?)?;
    let issuer = Issuer::new(authority, key);
    let mut client = CertificateParams::default();
    client.distinguished_name = subject("somebody");
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok(format!("{}{}", client.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

#[test]
fn only_who_may_use_the_node_gets_an_answer() {
    scenario(async |world| {
        let node = world.stack.kubectl().get_json(["nodes", "-l", "type=virtual-kubelet"]).await?;
        let status = &node["items"][0]["status"];
        ensure!(status["addresses"] == json!([{ "type": "InternalIP", "address": "127.0.0.1" }]), "{status}");
        let port = &status["daemonEndpoints"]["kubeletEndpoint"]["Port"];
        let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
        let pki = world.stack.plane.pki();
        let file = |name: &str| std::fs::read_to_string(pki.join(name)).context("a file of the plane");
        let server = file("kubelet-client.crt")? + &file("kubelet-client.key")?;

        // Its certificate is the cluster's: this client believes no other.
        let api = caller(world, Some(server))?;
        let healthy = || async {
            let answer = api.get(url("/healthz")).send().await.map_err(|e| format!("{e:?}"))?;
            if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        };
        world.stack.eventually("a certificate that the cluster has signed", SOON, healthy).await?;
        ensure!(api.get(url("/metrics/resource")).send().await?.text().await?.is_empty());
        ensure!(api.get(url("/pods")).send().await?.status() == 404);
        let exec = api.post(url("/portForward/a/b")).send().await?;
        ensure!(exec.status() == 501 && exec.text().await?.contains("kubectl logs"));

        let nobody = caller(world, None)?.get(url("/containerLogs/a/b/c")).send().await?;
        ensure!(nobody.status() == 401 && nobody.text().await?.contains("client certificate"));
        let stranger = caller(world, Some(somebody(world)?))?.get(url("/containerLogs/a/b/c")).send().await?;
        let (status, text) = (stranger.status(), stranger.text().await?);
        ensure!(status == 403 && text.contains("somebody may not get nodes/proxy"), "{status} {text}");
        // Somebody whom another authority vouches for does not even get through the handshake.
        let key = KeyPair::generate()?;
        let own = CertificateParams::default().self_signed(&key)?;
        let forged = caller(world, Some(format!("{}{}", own.pem(), key.serialize_pem())))?;
        ensure!(forged.get(url("/healthz")).send().await.is_err());
        Ok(())
    });
}
