//! One Pod's life on a node, from the moment it is bound until the object is gone.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::{
    environment::{self, expand},
    images::Image,
    link::Power,
    node::Node,
    paths::Mounts,
    run::{Running, Start},
    status::{Ended, Shown, State, Status, now},
    volumes,
};
use crate::locate::passed_environment;

/// Pause before something that could not be had (image, Secret, ConfigMap) is tried again. A kubelet takes up to minutes.
const RETRY: Duration = Duration::from_secs(1);
/// What is left to the processes of a Pod whose object is gone already.
const GRACE_WITHOUT_OBJECT: Duration = Duration::from_secs(1);
/// As much of the termination message, or of the log in its place, as a kubelet keeps.
const MESSAGE_BYTES: usize = 4096;
const LOG_BYTES: usize = 2048;

/// What the node has last seen of a Pod.
#[derive(Clone)]
pub(super) struct Seen {
    pub pod: Arc<Pod>,
    pub is_gone: bool,
}

/// Why a Pod ends before its containers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has a deletionTimestamp.
    Deleted,
    /// The object is no longer there.
    Gone,
    /// `activeDeadlineSeconds` are over.
    Deadline,
}

/// Why a container does not run.
enum NotStarted {
    /// It is tried again.
    Waits { reason: &'static str, message: String },
    /// It never will.
    Failed(String),
}

struct Slot {
    container: Container,
    is_init: bool,
    state: State,
    running: Option<Arc<Running>>,
    is_unpacked: bool,
}

struct Life {
    node: Arc<Node>,
    uid: String,
    seen: watch::Receiver<Seen>,
    api: Api<Pod>,
    status: Status,
    slots: Vec<Slot>,
    deadline: Option<Instant>,
    written: Value,
    told: Option<String>,
}

/// Runs a Pod to its end.
pub(super) async fn live(node: Arc<Node>, uid: String, seen: watch::Receiver<Seen>) {
    let pod = seen.borrow().pod.clone();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let slot = |is_init: bool| {
        move |container: &Container| Slot {
            container: container.clone(),
            is_init,
            state: State::waiting("ContainerCreating"),
            running: None,
            is_unpacked: false,
        }
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let mut life = Life {
        api: Api::namespaced(node.client.clone(), &namespace),
        status: Status { started: now(), ..Status::default() },
        slots: init.iter().map(slot(true)).chain(spec.containers.iter().map(slot(false))).collect(),
        deadline: None,
        written: Value::Null,
        told: None,
        seen,
        uid,
        node,
    };
    life.run(&pod).await;
    life.node.forget(&life.uid);
}

impl Life {
    async fn run(&mut self, pod: &Pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        if !matches!(phase, "Succeeded" | "Failed") {
            let worked = if phase == "Running" {
                // Another program played this node and is gone, its processes with it.
                let message = "The container could not be located when the pod was terminated".to_owned();
                let lost =
                    Ended { code: 137, reason: "ContainerStatusUnknown", message, started: None, finished: now() };
                self.slots.iter_mut().for_each(|slot| slot.state = State::Terminated(lost.clone()));
                Ok(())
            } else {
                self.work(pod).await
            };
            if let Err(stop) = worked {
                self.terminate(stop).await;
            }
            self.status.is_stopped = true;
            self.clear().await;
            if self.write().await.is_err() {
                return;
            }
        }
        if stop(self.seen.clone(), None).await == Stop::Deleted {
            self.delete().await;
        }
    }

    /// Does what the Pod is for; returns when all its containers have ended.
    async fn work(&mut self, pod: &Pod) -> Result<(), Stop> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        if let Some(seconds) = spec.active_deadline_seconds {
            self.deadline = Some(Instant::now() + Duration::from_secs(seconds.unsigned_abs()));
        }
        let has_sidecar = spec.init_containers.iter().flatten().any(|c| c.restart_policy.is_some());
        if spec.restart_policy.as_deref() != Some("Never") || has_sidecar {
            let message = "This node of a test runs Pods with restartPolicy Never only.".to_owned();
            self.status.failed = Some(("UnexpectedAdmissionError", message));
            return Ok(());
        }
        let has_init = self.slots.iter().any(|slot| slot.is_init);
        for slot in self.slots.iter_mut().filter(|slot| has_init && !slot.is_init) {
            slot.state = State::waiting("PodInitializing");
        }
        self.write().await?;
        let volumes = self.directory().join("volumes");
        while let Err(why) = volumes::make(&self.node, pod, &volumes).await {
            self.tell("FailedMount", &why).await;
            self.pause().await?;
        }
        self.status.address = self.node.address(&self.uid);
        let (init, main): (Vec<usize>, Vec<usize>) =
            (0..self.slots.len()).partition(|index| self.slots[*index].is_init);
        for index in init {
            self.run_all(vec![index]).await?;
            if self.slots[index].state.code() != Some(0) {
                return Ok(());
            }
        }
        self.run_all(main).await
    }

    /// Runs containers side by side until all have ended.
    async fn run_all(&mut self, mut waiting: Vec<usize>) -> Result<(), Stop> {
        let mut ends = FuturesUnordered::new();
        loop {
            for index in std::mem::take(&mut waiting) {
                match self.start(index).await {
                    Ok(running) => {
                        self.slots[index].state = State::Running { started: now() };
                        self.slots[index].running = Some(running.clone());
                        ends.push(async move { (index, running.ended().await) });
                    }
                    Err(NotStarted::Waits { reason, message }) => {
                        self.tell("Failed", &message).await;
                        self.slots[index].state = State::Waiting { reason, message };
                        waiting.push(index);
                    }
                    Err(NotStarted::Failed(message)) => {
                        let ended = Ended { code: 128, reason: "StartError", message, started: None, finished: now() };
                        self.slots[index].state = State::Terminated(ended);
                    }
                }
            }
            self.write().await?;
            if waiting.is_empty() && ends.is_empty() {
                return Ok(());
            }
            tokio::select! {
                why = stop(self.seen.clone(), self.deadline) => return Err(why),
                Some((index, code)) = ends.next() => self.has_ended(index, code),
                () = tokio::time::sleep(RETRY), if !waiting.is_empty() => {}
            }
        }
    }

    /// Ends what runs: SIGTERM, and SIGKILL when the grace is over.
    async fn terminate(&mut self, why: Stop) {
        if why == Stop::Deadline {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.status.failed = Some(("DeadlineExceeded", message));
        }
        self.status.is_stopped = true;
        let began = Instant::now();
        let still = |slot: &&Slot| slot.state.code().is_none();
        let running: Vec<(usize, Arc<Running>)> = (0..self.slots.len())
            .filter(|index| still(&&self.slots[*index]))
            .filter_map(|index| Some((index, self.slots[index].running.clone()?)))
            .collect();
        futures::future::join_all(running.iter().map(|(_, one)| one.terminate())).await;
        let mut ends: FuturesUnordered<_> =
            running.iter().map(|(index, one)| async move { (*index, one.ended().await) }).collect();
        let mut seen = self.seen.clone();
        while !ends.is_empty() {
            let until = began + grace(&seen.borrow_and_update());
            tokio::select! {
                Some((index, code)) = ends.next() => self.has_ended(index, code),
                // A later deletion may shorten the grace.
                Ok(()) = seen.changed() => {}
                () = tokio::time::sleep_until(until) => break,
            }
        }
        for (_, one) in &running {
            one.kill();
        }
        while let Some((index, code)) = ends.next().await {
            self.has_ended(index, code);
        }
    }

    fn has_ended(&mut self, index: usize, code: i32) {
        let message = self.message(index, code);
        let slot = &mut self.slots[index];
        let started = match &slot.state {
            State::Running { started } => Some(started.clone()),
            _ => None,
        };
        let reason = match code {
            0 => "Completed",
            _ if slot.running.as_ref().is_some_and(|running| running.was_out_of_memory()) => "OOMKilled",
            _ => "Error",
        };
        slot.state = State::Terminated(Ended { code, reason, message, started, finished: now() });
    }

    fn message(&self, index: usize, code: i32) -> String {
        let container = &self.slots[index].container;
        let text = |path: &Path| fs::read(path).unwrap_or_default();
        let message = text(&self.termination_log(container));
        let falls_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if message.is_empty() && falls_back && code != 0 {
            let log = text(&self.node.log(&self.pod(), &container.name));
            return String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_BYTES)..]).into_owned();
        }
        String::from_utf8_lossy(&message[..message.len().min(MESSAGE_BYTES)]).into_owned()
    }

    async fn start(&mut self, index: usize) -> Result<Arc<Running>, NotStarted> {
        let pod = self.pod();
        let container = self.slots[index].container.clone();
        let image = self.pull(index, &container)?;
        let config = |message| NotStarted::Waits { reason: "CreateContainerConfigError", message };
        let variables = environment::variables(&self.node, &pod, &container).await.map_err(config)?;
        let mut mounts = Mounts::default();
        let termination = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        mounts.add(termination, self.termination_log(&container));
        for mount in container.volume_mounts.iter().flatten() {
            let volume = self.directory().join("volumes").join(&mount.name);
            let below = mount.sub_path.as_deref().map_or_else(|| volume.clone(), |path| volume.join(path));
            mounts.add(&mount.mount_path, below);
        }
        let root = self.directory().join("containers").join(&container.name);
        let working = match container.working_dir.as_deref() {
            None => root.clone(),
            Some(path) => mounts.local(path).unwrap_or_else(|| root.join(path.trim_start_matches('/'))),
        };
        let log = self.node.log(&pod, &container.name);
        let unpack = (!self.slots[index].is_unpacked).then_some(image);
        let made =
            make_directories(unpack, root.clone(), working.clone(), log.clone(), self.termination_log(&container));
        let failed = |e: io::Error| NotStarted::Waits { reason: "CreateContainerError", message: e.to_string() };
        made.await.map_err(failed)?;
        self.slots[index].is_unpacked = true;

        let in_image = |word: String| match word.strip_prefix('/').map(|path| root.join(path)) {
            Some(path) if word.len() > 1 && path.symlink_metadata().is_ok() => path.to_string_lossy().into_owned(),
            _ => word,
        };
        let words = container.command.iter().flatten().chain(container.args.iter().flatten());
        let mut command: Vec<String> = words.map(|word| in_image(mounts.rewrite(&expand(word, &variables)))).collect();
        let path = variables.get("PATH").map_or_else(own_path, OsString::from);
        let path = [root.join("bin").into_os_string(), path].join(":".as_ref());
        let Some(program) = command.first_mut() else {
            let message = "no command specified".into();
            return Err(NotStarted::Waits { reason: "CreateContainerError", message });
        };
        *program = find(program, &path, &working)
            .ok_or_else(|| NotStarted::Failed(format!("exec: \"{program}\": executable file not found in $PATH")))?;
        let mut environment: Vec<(OsString, OsString)> = passed_environment().collect();
        environment.extend([
            ("HOME".into(), root.clone().into()),
            ("TMPDIR".into(), root.join("tmp").into()),
            ("HOSTNAME".into(), pod.metadata.name.clone().unwrap_or_default().into()),
        ]);
        environment.extend(variables.into_iter().map(|(name, value)| (name.into(), mounts.rewrite(&value).into())));
        environment.push(("PATH".into(), path));
        loop {
            let init = self.node.init.clone();
            let start = Start {
                init,
                command: command.clone(),
                environment: environment.clone(),
                directory: working.clone(),
                log: log.clone(),
            };
            match self.node.containers.start(&self.uid, &container.name, start) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.node.link.until(|power| power == Power::On).await;
                    tokio::time::sleep(RETRY).await;
                }
                other => return other.map_err(failed),
            }
        }
    }

    fn pull(&self, index: usize, container: &Container) -> Result<Image, NotStarted> {
        let name = container.image.as_deref().unwrap_or_default();
        if let Some(image) = self.node.options.images.find(name) {
            return Ok(image);
        }
        let is_again =
            matches!(self.slots[index].state, State::Waiting { reason: "ErrImagePull" | "ImagePullBackOff", .. });
        Err(if is_again {
            let message = format!("Back-off pulling image \"{name}\"");
            NotStarted::Waits { reason: "ImagePullBackOff", message }
        } else {
            let message = format!("failed to pull and unpack image \"{name}\": not found");
            NotStarted::Waits { reason: "ErrImagePull", message }
        })
    }

    /// Writes the status if it has changed; says if there is no such Pod any more.
    async fn write(&mut self) -> Result<(), Stop> {
        let pod = self.pod();
        let shown: Vec<Shown<'_>> = self
            .slots
            .iter()
            .map(|slot| Shown {
                name: &slot.container.name,
                image: slot.container.image.as_deref().unwrap_or_default(),
                is_init: slot.is_init,
                state: &slot.state,
            })
            .collect();
        let patch = self.status.patch(&pod, &shown);
        if patch == self.written {
            return Ok(());
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        loop {
            if self.seen.borrow().is_gone {
                return Err(Stop::Gone);
            }
            let strategic = Patch::Strategic(&patch);
            let write =
                self.node.link.call(async || self.api.patch_status(name, &PatchParams::default(), &strategic).await);
            match write.await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                    self.node.note(&format!("the status of Pod {name} was refused: {}", status.message));
                    return Err(Stop::Gone);
                }
                Err(error) => {
                    self.node.note(&format!("writing the status of Pod {name}: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.written = patch;
        Ok(())
    }

    /// Removes the object, which has been waiting for this.
    async fn delete(&self) {
        let pod = self.pod();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        while !self.seen.borrow().is_gone {
            match self.node.link.call(async || self.api.delete(name, &parameters).await).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    self.node.note(&format!("deleting Pod {name}: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Tells something once.
    async fn tell(&mut self, reason: &str, message: &str) {
        if self.told.as_deref() != Some(message) {
            self.told = Some(message.into());
            self.node.tell(&self.pod(), reason, message).await;
        }
    }

    async fn pause(&self) -> Result<(), Stop> {
        tokio::select! {
            why = stop(self.seen.clone(), self.deadline) => Err(why),
            () = tokio::time::sleep(RETRY) => Ok(()),
        }
    }

    /// Removes volumes and working directories; logs stay.
    async fn clear(&self) {
        let directory = self.directory();
        let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await;
    }

    fn pod(&self) -> Arc<Pod> {
        self.seen.borrow().pod.clone()
    }

    fn directory(&self) -> PathBuf {
        self.node.pod_directory(&self.uid)
    }

    fn termination_log(&self, container: &Container) -> PathBuf {
        self.directory().join("termination").join(&container.name)
    }
}

async fn stop(mut seen: watch::Receiver<Seen>, deadline: Option<Instant>) -> Stop {
    let told = async {
        match seen.wait_for(|seen| seen.is_gone || seen.pod.metadata.deletion_timestamp.is_some()).await.as_deref() {
            Ok(Seen { is_gone: false, .. }) => Stop::Deleted,
            _ => Stop::Gone,
        }
    };
    match deadline {
        None => told.await,
        Some(deadline) => tokio::select! {
            stop = told => stop,
            () = tokio::time::sleep_until(deadline) => Stop::Deadline,
        },
    }
}

fn grace(seen: &Seen) -> Duration {
    if seen.is_gone {
        return GRACE_WITHOUT_OBJECT;
    }
    let of_spec = seen.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = seen.pod.metadata.deletion_grace_period_seconds.or(of_spec).unwrap_or(30);
    Duration::from_secs(seconds.unsigned_abs())
}

async fn make_directories(
    image: Option<Image>,
    root: PathBuf,
    working: PathBuf,
    log: PathBuf,
    termination: PathBuf,
) -> io::Result<()> {
    let make = move || {
        if let Some(image) = image {
            // An earlier attempt may have got half-way.
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("tmp"))?;
            image.unpack(&root)?;
        }
        for file in [&log, &termination] {
            fs::create_dir_all(file.parent().unwrap_or(file))?;
        }
        fs::write(&termination, "")?;
        fs::write(&log, "")?;
        fs::create_dir_all(&working)
    };
    tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn own_path() -> OsString {
    passed_environment().find(|(name, _)| name == "PATH").map(|(_, value)| value).unwrap_or_default()
}

/// The program that a name means, as `execvp` looks for it.
fn find(program: &str, path: &OsString, working: &Path) -> Option<String> {
    let is_program = |path: &Path| path.is_file();
    if program.contains('/') {
        return is_program(&working.join(program)).then(|| program.to_owned());
    }
    let found = std::env::split_paths(path).map(|directory| directory.join(program)).find(|path| is_program(path));
    found.map(|path| path.to_string_lossy().into_owned())
}
