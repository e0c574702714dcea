//! What runs on rented machines, and in Pods of the cluster: the agent's real logic against the object store in memory, and a program that
//! is simulated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use tradewind_agent::logic::{
    Action, Boot, ChunkOutcome, Fetched, InCluster, Input, Logic, Now, Piece, ProgramEnd, ProgramSignal, Restore,
    SaveId, SeenSave, Settings, StagedFile, StagedPiece,
};
use tradewind_checkpoints::{Fetched as Stored, PutOutcome};
use tradewind_core::{Clock, ExposeSecret};
use tradewind_protocol::seal::{BootKeys, SecretEnv};
use tradewind_protocol::{
    Control, Document, EntryKind, HostFacts, LogSegment, Report, RestoreCandidate, SlotBatch, Start, Ticket,
};
use tradewind_sim::market::{Effect, State};

use super::chance::Chance;
use super::cluster::SECRET_VALUE;
use super::plan::{Mutant, Plan};
use super::ports::ACCOUNT;
use super::program::{Deed, Files, Program, Recipe, read, sha256_hex};
use super::wire::{Common, lock};
use super::workers::Seat;

/// Everything that runs on machines.
pub struct Fleet {
    pub(super) boots: Vec<Running>,
    disks: BTreeMap<u64, Disk>,
    pub(super) chance: Chance,
    pub(super) recipes: Vec<Recipe>,
    /// Workers started.
    pub(super) workers: u64,
    /// Exit codes of workers by the uids of their Pods.
    pub(super) exits: BTreeMap<String, i32>,
    /// Job, attempt and rank of workers whose agents were started.
    pub(super) came: BTreeSet<(usize, u32, u32)>,
    secrets: bool,
    odd_hosts: bool,
    started: usize,
}

/// A machine's disk, which outlives its boots.
#[derive(Debug, Default, Clone)]
struct Disk {
    saves: BTreeMap<u64, Files>,
    links: BTreeMap<SaveId, Files>,
}

/// One boot of the agent.
pub(super) struct Running {
    pub(super) machine: u64,
    /// Which worker it is, in the cluster.
    pub(super) seat: Option<Seat>,
    logic: Logic,
    keys: &'static BootKeys,
    pub(super) id: String,
    ops: BTreeMap<(Duration, u64), Op>,
    next_op: u64,
    pub(super) program: Option<Program>,
    start: Option<Box<Start>>,
    /// Its requests are dropped until then.
    pub(super) cut_off_until: Duration,
    /// The market took the machine away, or the Pod is given up, but its processes live on until then.
    pub(super) zombie_until: Option<Duration>,
    over: bool,
    seen: BTreeSet<u64>,
}

/// Something under way.
enum Op {
    Do(Action),
    Tell(Input),
}

fn agent_settings() -> Settings {
    Settings {
        report: Duration::from_secs(15),
        log: Duration::from_secs(30),
        finish_limit: Duration::from_mins(5),
        restore_limit: Duration::from_mins(10),
        ..Settings::default()
    }
}

impl Fleet {
    /// No machine yet.
    pub fn new(seed: u64, plan: &Plan) -> Self {
        Self {
            boots: Vec::new(),
            disks: BTreeMap::new(),
            chance: Chance::new(seed, "machines"),
            recipes: plan.jobs.clone(),
            workers: 0,
            exits: BTreeMap::new(),
            came: BTreeSet::new(),
            secrets: plan.secrets,
            odd_hosts: plan.odds.machine > 0,
            started: 0,
        }
    }

    /// When something happens on a machine.
    pub fn next_due(&self) -> Option<Duration> {
        self.boots.iter().filter_map(Running::due).min()
    }

    /// Does what the market wants done to machines.
    pub fn perform(&mut self, common: &Common, effect: &Effect, rough: bool) {
        let now = common.now();
        let id = effect.machine();
        match effect {
            Effect::Start { boot, .. } => {
                self.end(common, id, false);
                self.start(common, id, *boot);
            }
            Effect::Stop { .. } | Effect::Kill { .. } | Effect::Remove { .. } => {
                let lives_on = rough && !matches!(effect, Effect::Stop { .. }) && self.chance.one_in(3);
                self.end(common, id, lives_on);
                if !lives_on && matches!(effect, Effect::Remove { .. }) {
                    self.disks.remove(&id);
                }
            }
            Effect::Wipe { .. } => drop(self.disks.remove(&id)),
        }
        common.note(|| format!("machine {id}: {effect:?} at {}", now.as_secs()));
    }

    /// What a machine has: now and then, where things go wrong, a disk of 1 GiB.
    fn host(&mut self) -> HostFacts {
        let small = self.odd_hosts && self.chance.one_in(15);
        HostFacts { disk_bytes: Some(if small { 1 << 30 } else { 1 << 40 }), ..HostFacts::default() }
    }

    fn start(&mut self, common: &Common, machine: u64, boot: u32) {
        let env =
            common.with_market(|market, _| market.machine(machine).map(|m| m.workload.env.clone())).unwrap_or_default();
        let Some((_, url)) = env.iter().find(|(name, _)| name == "TRADEWIND_CONTROL_URL") else { return };
        self.boot(common, machine, url, boot, None);
    }

    /// An agent starts.
    pub(super) fn boot(
        &mut self,
        common: &Common,
        machine: u64,
        url: &str,
        boot: u32,
        worker: Option<(InCluster, Seat)>,
    ) {
        self.started += 1;
        let (in_cluster, seat) = worker.unzip();
        let keys = boot_keys(self.started);
        let id = format!("b{machine}-{boot}-{:04x}", self.chance.next() & 0xFFFF);
        let boot = Boot {
            id: id.clone(),
            key: keys.public().to_owned(),
            control: Ticket { url: url.to_owned(), expires: jiff::Timestamp::MAX },
            host: self.host(),
            settings: agent_settings(),
            in_cluster,
        };
        let mut running = Running {
            machine,
            seat,
            logic: Logic::new(boot, moment(common)),
            keys,
            id,
            ops: BTreeMap::new(),
            next_op: 0,
            program: None,
            start: None,
            cut_off_until: Duration::ZERO,
            zombie_until: None,
            over: false,
            seen: BTreeSet::new(),
        };
        running.put(common.now() + self.chance.millis(200, 3_000), Op::Tell(Input::Tick));
        self.boots.push(running);
    }

    /// The processes of a machine end, or live on cut off from the market's view.
    pub(super) fn end(&mut self, common: &Common, machine: u64, lives_on: bool) {
        let now = common.now();
        for at in 0..self.boots.len() {
            if self.boots[at].machine != machine || self.boots[at].over {
                continue;
            }
            if lives_on {
                let cut_off = self.chance.millis(0, 240_000);
                let lives = self.chance.millis(10_000, 900_000);
                let running = &mut self.boots[at];
                if running.zombie_until.is_none() {
                    running.cut_off_until = now + cut_off;
                    running.zombie_until = Some(now + lives);
                    common.note(|| {
                        format!("machine {machine} lives on as a zombie, cut off for {} s", cut_off.as_secs())
                    });
                }
                continue;
            }
            // A request on its way may still arrive.
            let under_way = std::mem::take(&mut self.boots[at].ops);
            for (_, op) in under_way {
                if let Op::Do(action @ (Action::UploadChunk { .. } | Action::WriteReport { .. })) = op
                    && self.chance.one_in(2)
                {
                    self.execute(common, at, action);
                }
            }
            self.boots[at].over = true;
        }
        self.boots.retain(|running| !running.over);
    }

    /// Does one thing that is due. False if nothing is.
    pub fn step(&mut self, common: &Common, odds: u64) -> bool {
        let now = common.now();
        let due: Vec<usize> =
            (0..self.boots.len()).filter(|at| self.boots[*at].due().is_some_and(|due| due <= now)).collect();
        if due.is_empty() {
            return false;
        }
        let at = due[self.chance.below(due.len())];
        if self.boots[at].zombie_until.is_some_and(|until| until <= now) {
            let machine = self.boots[at].machine;
            common.note(|| format!("machine {machine}: the zombie ends"));
            self.boots.swap_remove(at);
            return true;
        }
        let next_op = self.boots[at].ops.first_key_value().map(|((due, _), _)| *due);
        if next_op.is_some_and(|due| due <= now) {
            let Some((_, op)) = self.boots[at].ops.pop_first() else { return true };
            let input = match op {
                Op::Tell(input) => Some(input),
                Op::Do(action) => self.answer(common, at, action, odds),
            };
            if let Some(input) = input {
                self.tell(common, at, input);
            }
        } else if self.boots[at].program.as_ref().is_some_and(|p| p.next_at <= now) {
            self.run_program(common, at);
        } else {
            self.tell(common, at, Input::Tick);
        }
        common.look();
        true
    }

    pub(super) fn tell(&mut self, common: &Common, at: usize, input: Input) {
        let actions = self.boots[at].logic.handle(moment(common), input);
        let now = common.now();
        for action in actions {
            match action {
                Action::Signal(signal) => {
                    let number = if signal == ProgramSignal::Kill { 9 } else { 15 };
                    if let Some(program) = &mut self.boots[at].program {
                        program.signal(number, now);
                    }
                }
                Action::StartProgram(launch) => self.launch(common, at, &launch.env),
                Action::ClearSaves { .. } => {
                    if let Some(disk) = self.disks.get_mut(&self.boots[at].machine) {
                        disk.saves.clear();
                    }
                }
                Action::DropStaging { save } => {
                    if let Some(disk) = self.disks.get_mut(&self.boots[at].machine) {
                        disk.links.remove(&save);
                    }
                }
                Action::Leave { code, .. } => {
                    if let Some(seat) = &mut self.boots[at].seat {
                        seat.left = Some(code);
                    }
                }
                action => {
                    let took = match &action {
                        Action::UploadChunk { .. } | Action::Restore { .. } => self.chance.millis(50, 4_000),
                        Action::Link { .. } | Action::Hash { .. } | Action::FinalScan { .. } => {
                            self.chance.millis(1, 300)
                        }
                        _ => self.chance.millis(10, 400),
                    };
                    self.boots[at].put(now + took, Op::Do(action));
                }
            }
        }
    }

    fn launch(&mut self, common: &Common, at: usize, env: &BTreeMap<String, String>) {
        self.worker_begins(common, at, env);
        let running = &mut self.boots[at];
        let Some(start) = &running.start else { return };
        let secret = start
            .sealed_env
            .as_ref()
            .and_then(|sealed| SecretEnv::open(running.keys, &start.machine, &start.boot, sealed).ok());
        let token = secret.as_ref().and_then(|s| s.variables().get("TOKEN")).map(|s| s.expose_secret().to_owned());
        let mut checker = lock(&common.checker);
        // In the cluster the kubelet puts it into the container's own environment.
        if self.secrets && running.seat.is_none() && token.as_deref() != Some(SECRET_VALUE) {
            checker.fail(format!("machine {}: the program starts without its Secret", running.machine));
        }
        let job = running.seat.as_ref().map_or_else(|| checker.job_of_uid(&start.machine), |seat| Some(seat.job));
        let Some(job) = job else {
            checker.fail(format!("machine {} works for an unknown RentedMachine", running.machine));
            return;
        };
        let recipe = self.recipes[job].clone();
        let disk = self.disks.entry(running.machine).or_default();
        let from = disk.saves.last_key_value().and_then(|(_, files)| read(files));
        let told: Option<u64> = env.get("TRADEWIND_RESUME_STEP").and_then(|step| step.parse().ok());
        if told != from.map(|(step, _)| step) {
            checker.fail(format!("machine {}: told to resume from {told:?}, the disk holds {from:?}", running.machine));
        }
        let alive = running.zombie_until.is_none();
        let rank = running.seat.as_ref().map_or(0, |seat| seat.rank);
        checker.program_started(job, start.attempt, rank, from.map_or(0, |(step, _)| step), alive);
        drop(checker);
        let attempt = start.attempt;
        common
            .note(|| format!("machine {}: program of attempt {} starts from {from:?}", running.machine, start.attempt));
        running.program = Some(Program::new(recipe, start.attempt, rank, from, common.now()));
        if let Some(other) = self.others_run(common, job, attempt).filter(|_| alive) {
            lock(&common.checker).fail(format!("the program of attempt {attempt} starts while {other}"));
        }
    }

    fn run_program(&mut self, common: &Common, at: usize) {
        let now = common.now();
        let running = &mut self.boots[at];
        let Some(program) = &mut running.program else { return };
        let deed = program.act(now);
        let (step, steps) = (program.step, program.recipe.steps);
        match deed {
            Deed::Step => {
                let line = format!("step {step}/{steps} loss {}.5\n", steps - step.min(steps));
                self.tell(common, at, Input::Output(line.into_bytes()));
            }
            Deed::Saved(since) => {
                let files = program.files();
                let disk = self.disks.entry(running.machine).or_default();
                disk.saves.insert(step, files);
                while disk.saves.len() > 2 {
                    disk.saves.pop_first();
                }
                let name = format!("step-{step}");
                running.seen.insert(step);
                let wall = common.clock.now();
                let began = wall.checked_sub(now.saturating_sub(since)).unwrap_or(wall);
                let seen = SeenSave {
                    name,
                    step: Some(step),
                    kind: EntryKind::Directory,
                    continues: false,
                    began_at: began,
                    complete_at: wall,
                };
                self.tell(common, at, Input::SaveSeen(seen));
            }
            Deed::Ended(code) => {
                let (salt, state) = (program.recipe.salt, program.state);
                running.program = None;
                let machine = running.machine;
                common.note(|| format!("machine {machine}: program ends with {code} at step {step}"));
                if code == 0 {
                    lock(&common.checker).finished(salt, step, state);
                }
                let end = if code < 0 { ProgramEnd::Signal(-code) } else { ProgramEnd::Code(code) };
                self.tell(common, at, Input::ProgramExited { end, oom_killed: None });
            }
        }
    }

    /// Carries out a request with what may go wrong on the way. `None`: nobody waits for an answer.
    fn answer(&mut self, common: &Common, at: usize, action: Action, odds: u64) -> Option<Input> {
        let reaches_out = !matches!(action, Action::Link { .. } | Action::Hash { .. } | Action::FinalScan { .. });
        let away = reaches_out && {
            let now = common.now();
            let calls = lock(&common.calls);
            calls.away.iter().any(|(port, until)| *port == "store" && *until > now)
        };
        let cut_off = self.boots[at].cut_off_until > common.now();
        if reaches_out && (away || cut_off || self.chance.ppm(odds)) {
            let lost = !away && !cut_off && self.chance.one_in(2);
            let failed = failure(&action);
            if lost {
                self.execute(common, at, action);
            }
            return failed;
        }
        self.execute(common, at, action)
    }

    /// Carries out a request.
    fn execute(&mut self, common: &Common, at: usize, action: Action) -> Option<Input> {
        let running = &mut self.boots[at];
        let machine = running.machine;
        let rank = running.seat.as_ref().map_or(0, |seat| seat.rank);
        Some(match action {
            Action::FetchControl { ticket, etag } => {
                Input::Control(fetch(common, &ticket, etag.as_deref(), Control::decode))
            }
            Action::FetchOwnReport { ticket } => Input::OwnReport(fetch(common, &ticket, None, Report::decode_any)),
            Action::FetchStart { ticket } => {
                let fetched = fetch(common, &ticket, None, Start::decode_any);
                if let Fetched::Found { value, .. } = &fetched {
                    running.start = Some(value.clone());
                }
                Input::Start(fetched)
            }
            Action::FetchSlots { batch, ticket } => {
                Input::Slots { batch, fetched: fetch(common, &ticket, None, SlotBatch::decode_any) }
            }
            Action::WriteReport { ticket, report } => {
                let sequence = report.sequence;
                let failure = match report.encode() {
                    Ok(bytes) => {
                        common.server.redeem_put(&ticket.url, bytes.into(), false).err().map(|e| e.to_string())
                    }
                    Err(invalid) => {
                        lock(&common.checker).fail(format!("machine {machine}: its report is invalid: {invalid}"));
                        Some(invalid.to_string())
                    }
                };
                if failure.is_none() {
                    self.report_stored(common, at, &report);
                }
                Input::ReportWritten { sequence, failure }
            }
            Action::WriteLog { segment, ticket, body } => {
                if LogSegment::decode(&body).is_none() {
                    lock(&common.checker).fail(format!("machine {machine}: its log segment is invalid"));
                }
                let stored = common.server.redeem_put(&ticket.url, body.into(), false).is_ok();
                Input::LogWritten { segment, stored }
            }
            Action::Restore { candidate, .. } => {
                let result = self.restore(common, machine, rank, &candidate);
                common.note(|| format!("machine {machine}: restore of {} -> {result:?}", candidate.seq));
                Input::Restored { seq: candidate.seq, result }
            }
            Action::FinalScan { .. } => Input::ScanFinished,
            Action::Link { save, name } => {
                let disk = self.disks.entry(machine).or_default();
                let step: u64 = name.trim_start_matches("step-").parse().unwrap_or(0);
                match disk.saves.get(&step).cloned() {
                    Some(files) => {
                        disk.links.insert(save, files);
                        Input::SaveLinked { save }
                    }
                    None => Input::SaveLost { save, reason: None },
                }
            }
            Action::Hash { save } => match self.disks.get(&machine).and_then(|disk| disk.links.get(&save)) {
                Some(files) => Input::SaveHashed { save, files: files.iter().map(staged).collect() },
                None => Input::SaveLost { save, reason: Some("its links are gone".to_owned()) },
            },
            Action::UploadChunk { save, piece, slot, ticket } => {
                let outcome = self.upload(common, machine, save, &piece, &ticket);
                Input::ChunkDone { save, slot, outcome }
            }
            Action::EndRental { .. } => {
                common.note(|| format!("machine {machine}: ends its own rental"));
                if running.seat.is_some() {
                    lock(&common.checker).fail("a worker in the cluster ends a rental".to_owned());
                }
                let _ = common.with_market(|market, now| market.terminate(now, ACCOUNT, machine));
                Input::RentalEnded { failure: None }
            }
            Action::StartProgram(_)
            | Action::Signal(_)
            | Action::ClearSaves { .. }
            | Action::DropStaging { .. }
            | Action::Leave { .. } => return None,
        })
    }

    fn upload(&mut self, common: &Common, machine: u64, save: SaveId, piece: &Piece, ticket: &Ticket) -> ChunkOutcome {
        let bytes =
            self.disks.get(&machine).and_then(|disk| disk.links.get(&save)).and_then(|files| files.get(&piece.path));
        let Some(bytes) = bytes else { return ChunkOutcome::Unreadable("its links are gone".to_owned()) };
        match common.server.redeem_put(&ticket.url, bytes.clone(), true) {
            Ok(PutOutcome::Written) => ChunkOutcome::Stored,
            Ok(PutOutcome::Exists) => ChunkOutcome::Taken,
            Err(_) => ChunkOutcome::Denied,
        }
    }

    fn restore(&mut self, common: &Common, machine: u64, rank: u32, candidate: &RestoreCandidate) -> Restore {
        let mut files = Files::new();
        for file in &candidate.manifest.files {
            let mut content = Vec::new();
            for chunk in &file.chunks {
                let Some(ticket) = candidate.chunks.get(&chunk.key) else {
                    return Restore::Bad("a chunk has no ticket".to_owned());
                };
                match common.server.redeem_get(&ticket.url, None) {
                    Ok(Stored::Changed { bytes, .. }) => {
                        let good = sha256_hex(&bytes) == chunk.sha256 && bytes.len() as u64 == chunk.size_bytes;
                        if !good && !common.has(Mutant::RestoreUnverified) {
                            return Restore::Bad("a chunk is not what the manifest says".to_owned());
                        }
                        content.extend_from_slice(&bytes);
                    }
                    Ok(_) => return Restore::Bad("a chunk is missing".to_owned()),
                    Err(error) => return Restore::Failed(error.to_string()),
                }
            }
            files.insert(file.path.clone(), Bytes::from(content));
        }
        lock(&common.checker).restored(&candidate.manifest.run_id, candidate.manifest.step, rank, &files);
        let step = candidate.manifest.step;
        self.disks.entry(machine).or_default().saves.insert(step, files);
        Restore::Done { path: format!("out/step-{step}") }
    }

    /// A report is in the mailbox: what it offers must not be lost any more, if the machine is still there.
    fn report_stored(&self, common: &Common, at: usize, report: &Report) {
        let running = &self.boots[at];
        if running.seat.is_some() {
            return self.worker_reported(common, at, report);
        }
        let (Some(offer), None) = (&report.offer, running.zombie_until) else { return };
        let runs =
            common.with_market(|market, _| market.machine(running.machine).is_some_and(|m| m.state == State::Running));
        if runs && report.boot == running.id {
            lock(&common.checker).offered(&report.machine, offer.manifest.attempt, offer.manifest.step);
        }
    }

    /// Uids of RentedMachines whose agents run.
    pub fn report_keys(&self) -> Vec<String> {
        self.boots
            .iter()
            .filter_map(|b| b.start.as_ref())
            .map(|s| format!("tw/machines/{}/report.json", s.machine))
            .collect()
    }

    /// What runs, for the last words of a world that does not end.
    pub fn describe(&self) -> String {
        let lines: Vec<String> = self
            .boots
            .iter()
            .map(|b| {
                format!(
                    "{} {:?} zombie until {:?}, program {}",
                    b.machine,
                    b.logic.phase(),
                    b.zombie_until,
                    b.program.is_some()
                )
            })
            .collect();
        format!("machines: {lines:?}")
    }
}

impl Running {
    fn put(&mut self, at: Duration, op: Op) {
        self.ops.insert((at, self.next_op), op);
        self.next_op += 1;
    }

    fn due(&self) -> Option<Duration> {
        if self.seat.as_ref().is_some_and(|seat| seat.left.is_some()) {
            return self.zombie_until;
        }
        let op = self.ops.first_key_value().map(|((at, _), _)| *at);
        let program = self.program.as_ref().map(|p| p.next_at);
        // Before the first tick it has not begun.
        let logic = if self.next_op > 1 { self.logic.wake() } else { None };
        [op, program, logic, self.zombie_until].into_iter().flatten().min()
    }
}

/// Keys for the n-th boot of a world. Making them is slow, and boots of one world that come close after each other must not share them.
fn boot_keys(n: usize) -> &'static BootKeys {
    static KEYS: OnceLock<Vec<BootKeys>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| (0..32).map(|seed| BootKeys::from_seed(&[seed; 32])).collect());
    &keys[n % keys.len()]
}

fn moment(common: &Common) -> Now {
    Now { wall: common.clock.now(), monotonic: common.now() }
}

fn staged((path, bytes): (&String, &Bytes)) -> StagedFile {
    let piece = StagedPiece { size_bytes: bytes.len() as u64, sha256: sha256_hex(bytes), md5: "md5".to_owned() };
    StagedFile { path: path.clone(), size_bytes: bytes.len() as u64, mode: 0o644, pieces: vec![piece] }
}

fn fetch<T, E: ToString>(
    common: &Common,
    ticket: &Ticket,
    etag: Option<&str>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Fetched<Box<T>> {
    match common.server.redeem_get(&ticket.url, etag) {
        Ok(Stored::Absent) => Fetched::Absent,
        Ok(Stored::Unchanged) => Fetched::NotModified,
        Ok(Stored::Changed { bytes, etag }) => match decode(&bytes) {
            Ok(value) => Fetched::Found { value: Box::new(value), etag },
            Err(invalid) => Fetched::Invalid(invalid.to_string()),
        },
        Err(_) => Fetched::Denied,
    }
}

/// The input that tells a request's failure.
fn failure(action: &Action) -> Option<Input> {
    let why = || "no answer".to_owned();
    Some(match action {
        Action::FetchControl { .. } => Input::Control(Fetched::Failed(why())),
        Action::FetchOwnReport { .. } => Input::OwnReport(Fetched::Failed(why())),
        Action::FetchStart { .. } => Input::Start(Fetched::Failed(why())),
        Action::FetchSlots { batch, .. } => Input::Slots { batch: batch.clone(), fetched: Fetched::Failed(why()) },
        Action::WriteReport { report, .. } => Input::ReportWritten { sequence: report.sequence, failure: Some(why()) },
        Action::WriteLog { segment, .. } => Input::LogWritten { segment: *segment, stored: false },
        Action::Restore { candidate, .. } => Input::Restored { seq: candidate.seq, result: Restore::Failed(why()) },
        Action::UploadChunk { save, slot, .. } => {
            Input::ChunkDone { save: *save, slot: *slot, outcome: ChunkOutcome::Failed(why()) }
        }
        _ => return None,
    })
}
