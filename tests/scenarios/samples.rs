//! Every job of `deploy/samples` does what its comments promise: applied as it stands, but for its bucket, interrupted, and finished with
//! what an undisturbed run of the same program ends with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tradewind_api::training_job::JobPhase;
use tradewind_checkpoints::Store as _;
use tradewind_harness::kubelet::Images as NodeImages;
use tradewind_harness::{FakeNode, FakeNodeOptions, Tools, project_root};
use tradewind_protocol::Manifest;

use crate::job::Job;
use crate::world::{SOON, VAST, World, market, options_of, scenario_in};

/// JAX starts in seconds, on a busy machine in many.
const LONG: Duration = Duration::from_mins(4);

/// Programs of the samples, as images of simulated machines.
struct Images {
    directory: TempDir,
    python: PathBuf,
}

impl Images {
    fn new() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir()?, python: Tools::locate()?.python("samples")? })
    }

    /// An image with the content of `program` (below the project's root) and a Python that has what the samples need.
    fn assemble(&self, name: &str, program: Option<&str>) -> Result<PathBuf> {
        let root = self.directory.path().join(name);
        let bin = root.join("bin");
        fs::create_dir_all(&bin)?;
        if let Some(program) = program {
            let from = project_root().join(program);
            let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(&root).output()?;
            ensure!(copied.status.success(), "{copied:?}");
        }
        // A script, since a link to the interpreter would not find its environment.
        let script = bin.join("python3");
        fs::write(&script, format!("#!/bin/sh\nexec '{}' \"$@\"\n", self.python.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(root)
    }
}

/// A sample as it stands in the file, in this namespace and with its checkpoints in the bucket of the tests.
fn sample(file: &str, namespace: &str) -> Result<Job> {
    let path = project_root().join("deploy/samples").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let mut manifest: Value = serde_saphyr::from_str(&text)?;
    manifest["metadata"]["namespace"] = namespace.into();
    if let Some(to) = manifest.pointer_mut("/spec/checkpoint/to") {
        let there = to.as_str().context("a location")?.replace("s3://your-bucket/", &format!("s3://ckpt/{namespace}/"));
        *to = there.into();
    }
    Job::of(manifest)
}

/// The sample's own command with other values for some of its options, and one thread, since sums depend on how many add.
fn slowed(job: Job, more: &[&str]) -> Job {
    let args = job.manifest["spec"]["template"]["spec"]["containers"][0]["args"].clone();
    let mut args: Vec<Value> = args.as_array().cloned().unwrap_or_default();
    args.extend(more.iter().map(|arg| Value::from(*arg)));
    let env = job.manifest["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    let mut env: Vec<Value> = env.as_array().cloned().unwrap_or_default();
    env.push(json!({ "name": "OPENBLAS_NUM_THREADS", "value": "1" }));
    // The simulator's machines all stand on this one: no need to wait for a cluster that has no node.
    job.container(json!({ "args": args, "env": env })).with(json!({ "placement": { "burstAfter": "1s" } }))
}

/// The market of the scenarios with the samples' images.
fn with_images(images: &[(&str, PathBuf)]) -> Value {
    let mut market = market();
    for (name, root) in images {
        market["providers"][VAST]["images"][*name] = json!({ "pull": 0, "root": root });
    }
    market
}

/// The job went on from a checkpoint, as the agent and the program tell.
async fn really_resumed(world: &World, job: &Job) -> Result<()> {
    let events = job.events(world).await?;
    ensure!(events.iter().any(|(reason, _)| reason == "Resumed"), "{events:#?}");
    // That is the agent's word. The program's own: it counts from there, and has saved under the names of the pattern.
    let doubts = |reason: &str| ["NotResumed", "NothingSaved", "CheckpointRefused"].contains(&reason);
    ensure!(!events.iter().any(|(reason, _)| doubts(reason)), "{events:#?}");
    Ok(())
}

/// Runs the job, takes its machine away once a checkpoint of `step` counts, and waits for its end.
async fn interrupted_and_finished(world: &World, job: &Job, step: i64) -> Result<()> {
    job.apply(world).await?;
    job.saved(world, step, LONG).await?;
    let first = world.running_machine(None).await?;
    world.stack.sim.act(VAST, &first.id, "outbid", &json!({})).await?;
    let done = job.phase(world, JobPhase::Complete, LONG).await?;
    let status = done.status.context("a status")?;
    ensure!(status.preemptions == 1 && status.restarts == 0, "{status:?}");
    really_resumed(world, job).await?;
    world.all_gone().await
}

/// The newest checkpoint in the catalogue, put back below `directory` as an agent would. Each of the newer ones is complete, too.
async fn put_back(world: &World, job: &Job, directory: &Path) -> Result<Manifest> {
    let log = world.stack.catalogue(&job.location)?.load().await?;
    let manifest = log.checkpoints().next().context("no checkpoint")?.manifest.clone();
    let store = world.stack.store(&job.location)?;
    let root = directory.join(&manifest.name);
    for file in &manifest.files {
        let path = if file.path.is_empty() { root.clone() } else { root.join(&file.path) };
        fs::create_dir_all(path.parent().context("a directory")?)?;
        let mut bytes = Vec::new();
        for chunk in &file.chunks {
            bytes.extend(store.get(&chunk.key, 1 << 30).await?.with_context(|| format!("{} is missing", chunk.key))?);
        }
        fs::write(path, bytes)?;
    }
    Ok(manifest)
}

/// Runs a command of the sample's image here.
fn here(root: &Path, directory: &Path, command: &[&str]) -> Result<String> {
    let path = format!("{}:{}", root.join("bin").display(), "/usr/local/bin:/usr/bin:/bin");
    let copied = Command::new("cp").arg("-a").arg(root.join(".")).arg(directory).output()?;
    ensure!(copied.status.success(), "{copied:?}");
    let output: Output = Command::new(root.join("bin").join(command[0]))
        .args(&command[1..])
        .current_dir(directory)
        .env("PATH", path)
        .env("OPENBLAS_NUM_THREADS", "1")
        .env("HF_TOKEN", "t")
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What stands after `word` in the output, up to the end of the line.
fn after<'a>(text: &'a str, word: &str) -> Result<&'a str> {
    let (_, rest) = text.split_once(word).with_context(|| format!("no {word:?} in {text}"))?;
    Ok(rest.lines().next().unwrap_or_default())
}

/// Runs a scenario in a world whose market has this image; nothing where the tools are missing, which the world says itself.
fn with_image(name: &str, program: Option<&str>, test: impl AsyncFnOnce(&mut World, &Path) -> Result<()>) {
    let Ok(images) = Images::new() else {
        // Says why, and fails where nothing may be skipped.
        return drop(tradewind_harness::or_skip(Tools::locate().and_then(|tools| tools.python("samples"))));
    };
    let root = images.assemble("image", program).expect("an image can be put together");
    let mut options = options_of("samples", with_images(&[(name, root.clone())]));
    // Nodes are played by the harness here.
    options.plane.kwok = false;
    scenario_in(options, async |world| test(world, &root).await);
}

#[test]
fn the_demo_job() {
    let (image, program) = ("registry.example.com/samples/charlm:1", "deploy/demo/program/image");
    with_image(image, Some(program), async |world, root| {
        let namespace = world.namespace("demo").await?;
        let job = slowed(sample("demo.yaml", &namespace)?, &["--sleep=0.02", "--steps=300"]);
        interrupted_and_finished(world, &job, 40).await?;
        let (ours, whole) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let manifest = put_back(world, &job, ours.path()).await?;
        here(root, whole.path(), &["python3", "train.py", "--steps=300"])?;
        let same = fs::read(ours.path().join(&manifest.name))?
            == fs::read(whole.path().join("checkpoints").join(&manifest.name))?;
        ensure!(manifest.step == 300 && same, "other weights than those of an undisturbed run");
        Ok(())
    });
}

#[test]
fn the_smallest_job() {
    with_image("python:3.13-slim", None, async |world, _| {
        let namespace = world.namespace("cpu").await?;
        let job = sample("cpu-job.yaml", &namespace)?.with(json!({ "placement": { "burstAfter": "1s" } }));
        job.apply(world).await?;
        let done = job.phase(world, JobPhase::Complete, SOON).await?;
        let progress = done.status.and_then(|s| s.progress).context("progress")?;
        ensure!(progress.step == 1000 && progress.total == Some(1000), "{progress:?}");
        Ok(())
    });
}

#[test]
fn jax_with_orbax() {
    let (image, program) = ("registry.example.com/samples/jax-orbax:1", "deploy/samples/programs/jax-orbax");
    with_image(image, Some(program), async |world, root| {
        let namespace = world.namespace("orbax").await?;
        let job = slowed(sample("jax-orbax.yaml", &namespace)?, &["--sleep=0.05"]);
        interrupted_and_finished(world, &job, 40).await?;

        // What was kept is a checkpoint for Orbax, too, and of the same weights.
        let (ours, whole) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let manifest = put_back(world, &job, &ours.path().join("checkpoints")).await?;
        ensure!(manifest.step == 200 && manifest.name == "200", "{manifest:?}");
        let command = ["python3", "train.py", "--out=checkpoints", "--steps=200", "--save-every=20"];
        let again = here(root, ours.path(), &command)?;
        ensure!(again.contains("resumed from step 200"), "{again}");
        let undisturbed = here(root, whole.path(), &command)?;
        ensure!(after(&again, "weights ")? == after(&undisturbed, "weights ")?, "{again} {undisturbed}");

        // Only whole ones were taken: every checkpoint of the log has what Orbax writes last.
        for checkpoint in world.stack.catalogue(&job.location)?.load().await?.checkpoints() {
            let files: Vec<&str> = checkpoint.manifest.files.iter().map(|file| file.path.as_str()).collect();
            ensure!(files.contains(&"_CHECKPOINT_METADATA") && files.contains(&"default/manifest.ocdbt"), "{files:?}");
            ensure!(checkpoint.manifest.step % 20 == 0, "step {}", checkpoint.manifest.step);
        }
        Ok(())
    });
}

#[test]
fn a_lora_with_sd_scripts() {
    let (image, program) = ("registry.example.com/samples/sd-scripts:1", "deploy/samples/programs/lora-sd-scripts");
    with_image(image, Some(program), async |world, root| {
        let namespace = world.namespace("lora").await?;
        let token = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": namespace, "name": "hf" },
            "stringData": { "token": "hf_of-the-samples" },
        });
        world.stack.apply(&token.to_string()).await?;
        let job = slowed(sample("lora-sd-scripts.yaml", &namespace)?, &[]);
        let spec = &job.manifest["spec"]["template"]["spec"]["containers"][0];
        let words = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_owned)).collect()
        };
        let command = [words(&spec["command"]), words(&spec["args"])].concat();
        let mut env = spec["env"].as_array().cloned().unwrap_or_default();
        env.push(json!({ "name": "STAND_IN_PAUSE", "value": "0.006" }));
        let job = job.container(json!({ "env": env }));
        interrupted_and_finished(world, &job, 250).await?;

        let (ours, whole) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let manifest = put_back(world, &job, ours.path()).await?;
        ensure!(manifest.name == "portrait-step00001500-state" && manifest.step == 1500, "{manifest:?}");
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        here(root, whole.path(), &words)?;
        for file in ["train_state.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"] {
            let kept = fs::read(ours.path().join(&manifest.name).join(file))?;
            let wanted = fs::read(whole.path().join("output").join(&manifest.name).join(file))?;
            ensure!(kept == wanted, "{file} is another than that of an undisturbed run");
        }
        let cost = job.now(world).await?.status.context("a status")?.cost.total;
        ensure!(cost.micros() > 0 && cost.micros() < 10_000_000, "{cost}");
        Ok(())
    });
}

/// A node of the cluster with the image of a sample, and our agent's.
async fn node(world: &World, name: &str, image: (&str, &Path), cpus: &str) -> Result<FakeNode> {
    let images = NodeImages::with_agent()?.directory(image.0, image.1);
    let options = FakeNodeOptions::new(name, &images).capacity("cpu", cpus).gpus(1);
    Ok(world.stack.add_node(options).await?)
}

/// Weights that the workers of the gang end with if nobody disturbs them: the same program, run here.
fn undisturbed_gang(root: &Path, size: usize, command: &[&str]) -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let mut workers = Vec::new();
    for rank in 0..size {
        let place = directory.path().join(rank.to_string());
        fs::create_dir(&place)?;
        fs::copy(root.join("train.py"), place.join("train.py"))?;
        let worker = Command::new(root.join("bin").join(command[0]))
            .args(&command[1..])
            .current_dir(&place)
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port), ("OPENBLAS_NUM_THREADS", "1")])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", size.to_string())])
            .spawn()?;
        workers.push(worker);
    }
    for mut worker in workers {
        ensure!(worker.wait()?.success(), "a worker failed");
    }
    Ok(fs::read(directory.path().join("0/checkpoints/step-000200.npz"))?)
}

#[test]
fn a_gang_of_four_in_the_cluster() {
    let (image, program) = ("registry.example.com/samples/gang:1", "deploy/samples/programs/gang");
    with_image(image, Some(program), async |world, root| {
        let namespace = world.namespace("gang").await?;
        // Room for two workers on each.
        let _one = node(world, "one", (image, root), "2").await?;
        let _two = node(world, "two", (image, root), "2").await?;
        let job = slowed(sample("gang.yaml", &namespace)?, &["--sleep=0.05"]);
        job.apply(world).await?;
        job.saved(world, 40, LONG).await?;
        // One worker is evicted: all four go on from the newest checkpoint.
        world.stack.kubectl().run(["delete", "pod", "gang-0-2", "-n", &namespace, "--wait=false"]).await?;
        let done = job.phase(world, JobPhase::Complete, LONG).await?;
        let status = done.status.context("a status")?;
        ensure!(status.attempt == Some(1) && status.restarts == 0, "{status:?}");
        really_resumed(world, &job).await?;
        ensure!(world.machines().await?.is_empty(), "{:?}", world.machines().await?);

        let ours = tempfile::tempdir()?;
        let manifest = put_back(world, &job, ours.path()).await?;
        let command = ["python3", "train.py", "--out=checkpoints", "--steps=200", "--save-every=20"];
        let whole = undisturbed_gang(root, 4, &command)?;
        let kept = fs::read(ours.path().join(&manifest.name))?;
        ensure!(manifest.step == 200 && kept == whole, "other weights than those of an undisturbed gang");
        Ok(())
    });
}

#[test]
fn the_demo_job_and_the_smallest_one_in_the_cluster() {
    let (image, program) = ("registry.example.com/samples/charlm:1", "deploy/demo/program/image");
    with_image(image, Some(program), async |world, root| {
        let namespace = world.namespace("inside").await?;
        let _node = node(world, "one", (image, root), "4").await?;
        let _plain = node(world, "two", ("python:3.13-slim", root), "4").await?;
        // Each goes where its image is: fake nodes have no registry.
        let to = |node: &str| json!({ "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": node } } } });
        let demo = slowed(sample("demo.yaml", &namespace)?, &["--sleep=0.02", "--steps=200"])
            .with(json!({ "placement": { "inCluster": "Only" } }))
            .with(to("one"));
        let small = sample("cpu-job.yaml", &namespace)?.with(to("two"));
        demo.apply(world).await?;
        small.apply(world).await?;
        small.phase(world, JobPhase::Complete, LONG).await?;
        demo.phase(world, JobPhase::Complete, LONG).await?;
        let (ours, whole) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let manifest = put_back(world, &demo, ours.path()).await?;
        here(root, whole.path(), &["python3", "train.py", "--steps=200"])?;
        let same = fs::read(ours.path().join(&manifest.name))?
            == fs::read(whole.path().join("checkpoints").join(&manifest.name))?;
        ensure!(manifest.step == 200 && same, "other weights than those of an undisturbed run");
        ensure!(world.machines().await?.is_empty(), "{:?}", world.machines().await?);
        Ok(())
    });
}
