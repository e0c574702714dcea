//! One machine: the store, an operator that the test plays, and the agent's process.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tradewind_protocol::control::Committed;
use tradewind_protocol::manifest::data_prefix;
use tradewind_protocol::{
    CheckpointSettings, Chunk, Control, Desired, Document, EntryKind, Manifest, ManifestFile, Report, RestoreCandidate,
    SelfEnd, SlotBatch, Start, Ticket, VERSION,
};

use crate::store::Store;

pub const MACHINE: &str = "machine-uid-1";
pub const RUN: &str = "run-1";
/// The key with which the provider lets the machine end itself.
pub const KEY: &str = "the-providers-own-key";
/// How long anything may take on a busy computer.
const LIMIT: Duration = Duration::from_mins(1);

pub struct World {
    pub store: Store,
    pub directory: tempfile::TempDir,
    pub control: Control,
    /// More variables of the machine.
    pub env: BTreeMap<String, String>,
    /// The agent's executable and its arguments.
    pub command: Vec<String>,
    /// The user that it runs as, if another one.
    pub user: Option<u32>,
    agents: Vec<Child>,
}

impl World {
    pub fn new() -> Self {
        let store = Store::start();
        let ticket = |key: &str| ticket(&store, key);
        let control = Control {
            version: VERSION,
            machine: MACHINE.to_owned(),
            sequence: 0,
            lease_s: 3_600,
            desired: Desired::Wait,
            attempt: 1,
            control_get: ticket("mail/control.json"),
            report_put: ticket("mail/report.json"),
            report_get: ticket("mail/report.json"),
            start: None,
            start_boot: None,
            slots: vec![],
            logs: (0..4).map(|slot| ticket(&format!("mail/logs/{slot}"))).collect(),
            committed: None,
            refused: None,
            self_end: None,
        };
        let (directory, env) = (tempfile::tempdir().unwrap(), BTreeMap::new());
        let command = [env!("CARGO_BIN_EXE_tradewind-agent"), "run"].map(ToOwned::to_owned).to_vec();
        let mut world = Self { directory, control, store, env, command, user: None, agents: Vec::new() };
        world.give_slots(0, 64);
        world
    }

    /// A Pod of the cluster, whose container runs this script.
    pub fn in_cluster(script: &str) -> Self {
        let mut world = Self::new();
        (world.control.lease_s, world.control.logs) = (u32::MAX.into(), vec![]);
        world.publish();
        let (scratch, own) = (world.path("scratch"), world.path("termination-log"));
        std::fs::create_dir(&scratch).unwrap();
        std::fs::write(&own, "").unwrap();
        let scratch = scratch.to_str().unwrap();
        let words = ["--scratch", scratch, "--", "/bin/sh", "-c", script, "program"];
        world.command.extend(words.map(ToOwned::to_owned));
        world.env.insert("TRADEWIND_TERMINATION_LOG".to_owned(), own.to_str().unwrap().to_owned());
        world.env.insert("TRADEWIND_POD_IP".to_owned(), "10.9.8.7".to_owned());
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn publish(&mut self) {
        self.control.sequence += 1;
        self.store.put("mail/control.json", self.control.encode().unwrap());
    }

    pub fn give_slots(&mut self, first: u64, count: u64) {
        let attempt = self.control.attempt;
        let prefix = data_prefix(attempt, MACHINE);
        let puts = (first..first + count).map(|slot| ticket(&self.store, &format!("{prefix}{slot:08}"))).collect();
        let batch = SlotBatch { version: VERSION, machine: MACHINE.to_owned(), attempt, first, puts };
        let key = format!("mail/slots/{attempt}-{first}.json");
        self.store.put(&key, batch.encode().unwrap());
        self.control.slots.push(ticket(&self.store, &key));
        self.publish();
    }

    /// A start document for `sh -c script`, as yet for no boot.
    pub fn start_of(script: &str) -> Start {
        Start {
            version: VERSION,
            machine: MACHINE.to_owned(),
            boot: String::new(),
            run_id: RUN.to_owned(),
            attempt: 1,
            // As in a Pod, `$$` stands for `$`.
            command: ["/bin/sh", "-c", &script.replace('$', "$$"), "program"].map(ToOwned::to_owned).to_vec(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            sealed_env: None,
            working_dir: None,
            stop_grace_s: 5,
            checkpoint: Some(CheckpointSettings {
                path: "out/ckpt".to_owned(),
                pattern: "step-{step}".to_owned(),
                resume_args: vec!["--resume".to_owned(), "$(TRADEWIND_RESUME_PATH)".to_owned()],
                interval_s: 30,
                quiet_ms: 700,
                restore_only: false,
                together: false,
            }),
            restore: vec![],
            data_prefix: data_prefix(1, MACHINE),
        }
    }

    /// The same for a later attempt.
    pub fn start_of_attempt(attempt: u32, script: &str) -> Start {
        Start { attempt, data_prefix: data_prefix(attempt, MACHINE), ..Self::start_of(script) }
    }

    /// The host gives the container a new disk. What it printed stays with the provider.
    pub fn lose_disk(&self) {
        for entry in std::fs::read_dir(self.directory.path()).unwrap().flatten() {
            match entry.file_name().to_str() {
                Some("stdout" | "stderr") => {}
                _ if entry.file_type().unwrap().is_dir() => std::fs::remove_dir_all(entry.path()).unwrap(),
                _ => std::fs::remove_file(entry.path()).unwrap(),
            }
        }
    }

    pub fn agent(&mut self) -> u32 {
        let mut agent = Command::new(&self.command[0]);
        if let Some(user) = self.user {
            agent.uid(user).gid(user);
        }
        let agent = agent
            .args(&self.command[1..])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("PROVIDERS_OWN", "injected")
            .env("TRADEWIND_CONTROL_URL", ticket(&self.store, "mail/control.json").url)
            .env("TRADEWIND_AGENT_URL", "http://127.0.0.1:1/agent?sig=hidden")
            .env("TRADEWIND_POLL_MS", "100")
            .env("TRADEWIND_REPORT_MS", "300")
            .env("TRADEWIND_CGROUP_DIR", self.path("cgroup"))
            .envs(&self.env)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(std::fs::OpenOptions::new().create(true).append(true).open(self.path("stdout")).unwrap())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(self.path("stderr")).unwrap())
            .spawn()
            .unwrap();
        let pid = agent.id();
        self.agents.push(agent);
        pid
    }

    /// Starts an agent and gives it `start` once it has reported.
    pub fn run(&mut self, start: Start) -> u32 {
        let agent = self.agent();
        let report = self.wait("the first report", |report| report.boot_key.len() == 44);
        self.order(start, &report);
        agent
    }

    pub fn order(&mut self, mut start: Start, report: &Report) {
        start.boot.clone_from(&report.boot);
        let key = format!("mail/start-{}.json", start.attempt);
        self.store.put(&key, start.encode().unwrap());
        self.control.start = Some(ticket(&self.store, &key));
        self.control.start_boot = Some(report.boot.clone());
        self.control.desired = Desired::Run;
        self.publish();
    }

    /// The machine can end its rental by itself, with a key that its environment holds.
    pub fn self_end(&mut self) {
        let url = format!("http://127.0.0.1:{}/rental/7", self.store.port);
        let end = SelfEnd { method: "DELETE".to_owned(), url, bearer_env: "PROVIDERS_KEY".to_owned() };
        self.control.self_end = Some(end);
        self.env.insert("PROVIDERS_KEY".to_owned(), KEY.to_owned());
        self.publish();
    }

    pub fn report(&self) -> Option<Report> {
        Some(
            Report::decode(&self.store.get("mail/report.json")?, MACHINE)
                .expect("the operator would refuse this report"),
        )
    }

    /// Waits for a report; says what was missing.
    pub fn wait(&self, what: &str, is: impl Fn(&Report) -> bool) -> Report {
        self.wait_for(what, || self.report().filter(&is))
    }

    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if begin.elapsed() > LIMIT {
                let report = self.report();
                panic!(
                    "no {what} after {LIMIT:?}; report {report:#?}\n{}\n{}",
                    self.read("stdout"),
                    self.read("stderr")
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an offer of `step`, checks every chunk, commits it.
    pub fn commit(&mut self, step: u64) -> Manifest {
        let what = format!("offer of step {step}");
        let report = self.wait(&what, |report| report.offer.as_ref().is_some_and(|offer| offer.manifest.step == step));
        let offer = report.offer.unwrap();
        for chunk in offer.manifest.chunks() {
            let body = self.store.get(&chunk.key).expect("a chunk of the offer is stored");
            assert_eq!(body.len() as u64, chunk.size_bytes);
            assert_eq!(hex(&Sha256::digest(&body)), chunk.sha256);
        }
        let seq = self.control.committed.map_or(1, |committed| committed.seq + 1);
        self.control.committed = Some(Committed { offer: offer.number, seq, step });
        self.publish();
        offer.manifest
    }

    /// A candidate of one file per (path, content).
    pub fn candidate(&self, seq: u64, step: u64, kind: EntryKind, files: &[(&str, &str)]) -> RestoreCandidate {
        let mut chunks = BTreeMap::new();
        let files = files.iter().enumerate().map(|(number, (path, content))| {
            let key = format!("{}{:08}", data_prefix(0, "another-machine"), seq * 100 + number as u64);
            self.store.put(&key, content.as_bytes().to_vec());
            chunks.insert(key.clone(), ticket(&self.store, &key));
            let size_bytes = content.len() as u64;
            let sha256 = hex(&Sha256::digest(content.as_bytes()));
            ManifestFile {
                path: (*path).to_owned(),
                size_bytes,
                mode: 0o640,
                chunks: vec![Chunk { key, size_bytes, sha256 }],
                rank: None,
            }
        });
        let manifest = Manifest {
            version: VERSION,
            run_id: RUN.to_owned(),
            attempt: 0,
            machine: "another-machine".to_owned(),
            step,
            name: format!("step-{step}"),
            kind,
            files: files.collect(),
            saved_at: Timestamp::UNIX_EPOCH,
            save_began_at: Timestamp::UNIX_EPOCH,
            parent: None,
            writers: vec![],
        };
        RestoreCandidate { seq, manifest, chunks }
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read(self.path(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until the agent that was started last has ended.
    pub fn ended(&mut self) -> i32 {
        let mut agent = self.agents.pop().unwrap();
        let code = self.wait_for("end of the agent", || agent.try_wait().unwrap());
        code.code().unwrap_or(-1)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

pub fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}

pub fn ticket(store: &Store, key: &str) -> Ticket {
    Ticket { url: format!("http://127.0.0.1:{}/{key}?signature=hidden", store.port), expires: Timestamp::MAX }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// True if a process is there and no zombie.
pub fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}
