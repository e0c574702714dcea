//! The demo's program on two machines, one after the other, with a real S3 server between them: brought by the bootstrap line, cut down
//! at a step that chance decides, resumed, and finished with the bytes of a run that was never cut.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    reason = "tests look at real clocks and tell by their names what they are"
)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tradewind_checkpoints::{Catalogue, CommitOutcome, Mailbox, ReportRead, S3Store, Store, StoreCredentials};
use tradewind_core::{Clock, SystemClock};
use tradewind_harness::{RunDir, S3, Tools, or_skip, project_root};
use tradewind_protocol::bootstrap::{LINE, variables};
use tradewind_protocol::control::Committed;
use tradewind_protocol::manifest::{data_prefix, slot_key};
use tradewind_protocol::{
    AgentPhase, CheckpointSettings, Control, Desired, LogSegment, Report, RestoreCandidate, SlotBatch, Start, VERSION,
};

const HOUR: Duration = Duration::from_hours(1);
const RUN: &str = "run-1";
const STEPS: u64 = 150;
const SAVE_EVERY: u64 = 10;

/// What an operator does, as far as this test needs it.
struct Operator {
    mailbox: Mailbox,
    data: Arc<dyn Store>,
    catalogue: Catalogue,
    agent: (String, String),
    python: PathBuf,
    directory: PathBuf,
}

struct Machine {
    uid: String,
    agent: Child,
    directory: PathBuf,
    control: Control,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Operator {
    async fn start(tools: &Tools, s3: &S3, directory: &Path) -> Option<Self> {
        let python = or_skip(tools.python("demo"))?;
        s3.create_bucket("mail").unwrap();
        s3.create_bucket("data").unwrap();
        let credentials = StoreCredentials::new(&*s3.access_key, &*s3.secret_key).with_endpoint(&s3.url()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let open = |location: &str| -> Arc<dyn Store> {
            Arc::new(S3Store::open(&location.parse().unwrap(), &credentials, Arc::clone(&clock)).unwrap())
        };
        let (mailbox, data) = (Mailbox::new(open("s3://mail/box/")), open("s3://data/job/"));
        let binary = std::fs::read(env!("CARGO_BIN_EXE_tradewind-agent")).unwrap();
        let published = mailbox.publish_agent(binary.into()).await.unwrap();
        let ticket = mailbox.agent_ticket(&published.sha256, HOUR).await.unwrap();
        let catalogue = Catalogue::open(Arc::clone(&data), clock);
        let directory = directory.to_owned();
        Some(Self { mailbox, data, catalogue, agent: (ticket.url, published.sha256), python, directory })
    }

    /// Rents a machine: its directory holds what the image holds, its command is the bootstrap line.
    async fn rent(&self, uid: &str, attempt: u32) -> Machine {
        let directory = self.directory.join(uid);
        std::fs::create_dir(&directory).unwrap();
        for file in ["train.py", "text.txt"] {
            let image = project_root().join("deploy/demo/program/image").join(file);
            std::fs::copy(image, directory.join(file)).unwrap();
        }
        let mut puts = Vec::new();
        for slot in 0..200 {
            puts.push(self.data.sign_put(&slot_key(&data_prefix(attempt, uid), slot), HOUR).await.unwrap());
        }
        let batch = SlotBatch { version: VERSION, machine: uid.to_owned(), attempt, first: 0, puts };
        self.mailbox.write_slots(&batch).await.unwrap();
        let control = Control {
            version: VERSION,
            machine: uid.to_owned(),
            sequence: 1,
            lease_s: 3_600,
            desired: Desired::Wait,
            attempt,
            control_get: self.mailbox.control_ticket(uid, HOUR).await.unwrap(),
            report_put: self.mailbox.report_put_ticket(uid, HOUR).await.unwrap(),
            report_get: self.mailbox.report_get_ticket(uid, HOUR).await.unwrap(),
            start: None,
            start_boot: None,
            slots: vec![self.mailbox.slots_ticket(uid, attempt, 0, HOUR).await.unwrap()],
            logs: self.mailbox.log_tickets(uid, 4, HOUR).await.unwrap(),
            committed: None,
            refused: None,
            self_end: None,
        };
        self.mailbox.write_control(&control).await.unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let agent = Command::new("/bin/sh")
            .args(["-c", LINE])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env(variables::AGENT_URL, &self.agent.0)
            .env(variables::AGENT_SHA256, &self.agent.1)
            .env(variables::CONTROL_URL, &control.control_get.url)
            .env("TRADEWIND_POLL_MS", "100")
            .env("TRADEWIND_REPORT_MS", "500")
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Machine { uid: uid.to_owned(), agent, directory, control }
    }

    async fn report(&self, machine: &Machine) -> Option<Report> {
        match self.mailbox.read_report(&machine.uid, None).await.unwrap() {
            ReportRead::Changed { report, .. } => Some(*report),
            ReportRead::Absent => None,
            other => panic!("{other:?}"),
        }
    }

    /// Plays the operator until `until` says that it is enough.
    async fn operate(&self, machine: &mut Machine, what: &str, until: impl Fn(&Report, &Control) -> bool) -> Report {
        let begin = Instant::now();
        loop {
            let report = self.report(machine).await;
            if let Some(report) = &report {
                self.answer(machine, report).await;
                if until(report, &machine.control) {
                    return report.clone();
                }
            }
            let log = std::fs::read_to_string(machine.directory.join("log")).unwrap();
            assert!(begin.elapsed() < Duration::from_mins(2), "no {what}: {report:#?}\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn answer(&self, machine: &mut Machine, report: &Report) {
        let control = &mut machine.control;
        let sequence = control.sequence;
        if control.start.is_none() {
            let start = self.start_document(&machine.uid, control.attempt, report).await;
            self.mailbox.write_start(&start).await.unwrap();
            let ticket = self.mailbox.start_ticket(&machine.uid, &report.boot, control.attempt, HOUR).await.unwrap();
            (control.start, control.start_boot) = (Some(ticket), Some(report.boot.clone()));
            (control.desired, control.sequence) = (Desired::Run, sequence + 1);
        }
        let committed = control.committed.map_or(0, |committed| committed.offer);
        if let Some(offer) = report.offer.as_ref().filter(|offer| offer.number > committed) {
            let outcome = self.catalogue.commit(&machine.uid, control.attempt, &offer.manifest).await.unwrap();
            let CommitOutcome::Committed { seq, .. } = outcome else { panic!("{outcome:?}") };
            control.committed = Some(Committed { offer: offer.number, seq, step: offer.manifest.step });
            control.sequence = sequence + 1;
        }
        if control.sequence > sequence {
            self.mailbox.write_control(control).await.unwrap();
        }
    }

    async fn start_document(&self, uid: &str, attempt: u32, report: &Report) -> Start {
        let log = self.catalogue.load().await.unwrap();
        let restore: Vec<RestoreCandidate> = self.catalogue.candidates(&log, RUN, 3, HOUR).await.unwrap();
        let from = restore.first().map(|candidate| candidate.seq);
        let at = SystemClock::default().now();
        self.catalogue.begin_attempt(RUN, attempt, from, at).await.unwrap().unwrap();
        Start {
            version: VERSION,
            machine: uid.to_owned(),
            boot: report.boot.clone(),
            run_id: RUN.to_owned(),
            attempt,
            command: self.command("0.02"),
            env: environment(),
            sealed_env: None,
            working_dir: None,
            stop_grace_s: 10,
            checkpoint: Some(CheckpointSettings {
                path: "ckpt".to_owned(),
                pattern: "step-{step}.npz".to_owned(),
                resume_args: vec![],
                interval_s: 5,
                quiet_ms: 2000,
                restore_only: false,
                together: false,
            }),
            restore,
            data_prefix: data_prefix(attempt, uid),
        }
    }

    fn command(&self, sleep: &str) -> Vec<String> {
        let python = self.python.to_str().unwrap();
        let (steps, every) = (STEPS.to_string(), SAVE_EVERY.to_string());
        let words = ["train.py", "--out", "ckpt", "--steps", &steps, "--save-every", &every, "--sleep", sleep];
        std::iter::once(python).chain(words).map(ToOwned::to_owned).collect()
    }

    /// The bytes that a run ends with that nobody disturbs.
    fn undisturbed(&self) -> Vec<u8> {
        let directory = self.directory.join("undisturbed");
        std::fs::create_dir(&directory).unwrap();
        let image = project_root().join("deploy/demo/program/image");
        let command = self.command("0");
        let mut program = Command::new(&command[0]);
        program.arg(image.join("train.py")).args(&command[2..]).arg("--text").arg(image.join("text.txt"));
        let output = program.envs(environment()).current_dir(&directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(directory.join("ckpt").join(last_save())).unwrap()
    }
}

/// Another number of threads or another kernel would add up in another order.
fn environment() -> BTreeMap<String, String> {
    [("OPENBLAS_NUM_THREADS", "1"), ("OPENBLAS_CORETYPE", "Haswell")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn last_save() -> String {
    format!("step-{STEPS:06}.npz")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_cut_down_at_any_step_ends_with_the_same_weights_on_another_machine() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let Some(tools) = or_skip(Tools::locate()) else { return };
    let run = RunDir::new("agent-demo-program").unwrap();
    let s3 = S3::start(&tools, run.path()).await.unwrap();
    let Some(operator) = Operator::start(&tools, &s3, run.path()).await else { return };

    let cut_at = 25 + SystemClock::default().entropy() % (STEPS - 75);
    eprintln!("cut at step {cut_at} or soon after");
    let mut first = operator.rent("machine-1", 1).await;
    let progress = |report: &Report| report.progress.as_ref().map_or(0, |progress| progress.step);
    let enough = |report: &Report, control: &Control| progress(report) >= cut_at && control.committed.is_some();
    operator.operate(&mut first, "step to cut at", enough).await;
    first.agent.kill().unwrap();
    // An offer in the last report is not lost.
    let last = operator.report(&first).await.unwrap();
    operator.answer(&mut first, &last).await;
    let committed = first.control.committed.unwrap().step;
    assert!(committed >= SAVE_EVERY && committed.is_multiple_of(SAVE_EVERY), "{committed}");

    let mut second = operator.rent("machine-2", 2).await;
    let is_end = |report: &Report, _: &Control| report.phase == AgentPhase::Exited;
    let report = operator.operate(&mut second, "end", is_end).await;
    let exit = report.exit.unwrap();
    assert_eq!(exit.code, 0, "{}", exit.log_tail);
    assert_eq!(report.restore.unwrap().restored.unwrap().step, committed);
    let log = operator.data_of_log(&second).await;
    assert!(log.contains(&format!("resumed from step {committed}\n")), "{log}");

    let expected = operator.undisturbed();
    let path = second.directory.join("ckpt").join(last_save());
    assert_eq!(std::fs::read(path).unwrap(), expected, "the weights differ");
    let catalogue = operator.catalogue.load().await.unwrap();
    let candidates = operator.catalogue.candidates(&catalogue, RUN, 1, HOUR).await.unwrap();
    assert_eq!(candidates[0].manifest.step, STEPS);
    let mut stored = Vec::new();
    for chunk in candidates[0].manifest.chunks() {
        stored.extend(operator.data.get(&chunk.key, u64::MAX >> 1).await.unwrap().unwrap());
    }
    assert_eq!(stored, expected, "what is in the bucket differs");
}

impl Operator {
    async fn data_of_log(&self, machine: &Machine) -> String {
        let bytes = self.mailbox.store().get(&format!("logs/{}/0", machine.uid), 1 << 20).await.unwrap();
        String::from_utf8(LogSegment::decode(&bytes.unwrap()).unwrap().text()).unwrap()
    }
}
