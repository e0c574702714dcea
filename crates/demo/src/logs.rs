//! What agents leave in the mailbox: reports and the program's output. Collected while the machines live, since a machine's mailbox is
//! forgotten with it.

use std::collections::BTreeMap;

use tradewind_api::RentedMachine;
use tradewind_checkpoints::{Mailbox, ReportRead};
use tradewind_protocol::Report;

/// The ring that the operator hands out tickets for.
const RING: u32 = 8;

/// One machine as its agent tells it.
#[derive(Debug, Default)]
pub struct Told {
    /// The job that it works for.
    pub job: String,
    /// The attempt.
    pub attempt: i64,
    /// The newest report.
    pub report: Option<Report>,
    etag: Option<String>,
    segments: BTreeMap<u64, Vec<u8>>,
    lines_seen: usize,
}

impl Told {
    /// The program's output so far.
    pub fn log(&self) -> String {
        let bytes: Vec<u8> = self.segments.values().flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whole lines that were not given out before.
    pub fn new_lines(&mut self) -> Vec<String> {
        let log = self.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines: Vec<String> = whole.lines().skip(self.lines_seen).map(str::to_owned).collect();
        self.lines_seen += lines.len();
        lines
    }
}

/// All machines that were ever seen, by the uid of their object.
#[derive(Debug, Default)]
pub struct Logs {
    machines: BTreeMap<String, Told>,
}

impl Logs {
    /// Reads what is new of machines that still exist. A machine that goes while it is read is simply not read any more.
    pub async fn look(&mut self, mailbox: &Mailbox, machines: &[RentedMachine]) {
        for machine in machines {
            let Some(uid) = machine.metadata.uid.clone() else { continue };
            let told = self.machines.entry(uid.clone()).or_default();
            told.job.clone_from(&machine.spec.job.name);
            told.attempt = machine.spec.attempt;
            if let Ok(ReportRead::Changed { report, etag }) = mailbox.read_report(&uid, told.etag.as_deref()).await {
                (told.report, told.etag) = (Some(*report), etag);
            }
            let written = told.report.as_ref().map_or(0, |report| report.log_segments);
            // The newest segment grows until it is full.
            let from = told.segments.keys().next_back().copied().unwrap_or(0);
            if let Ok(tail) = mailbox.read_log_segments(&uid, from, written, RING).await {
                told.segments.extend(tail.segments.into_iter().map(|segment| (segment.number, segment.text())));
            }
        }
    }

    /// The machines of a job whose program has printed something, in the order of their attempts.
    pub fn of(&self, job: &str) -> Vec<&Told> {
        let printed = |told: &&Told| told.job == job && !told.segments.is_empty();
        let mut found: Vec<&Told> = self.machines.values().filter(printed).collect();
        found.sort_by_key(|told| told.attempt);
        found
    }

    /// All of them, to take new lines from.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Told> {
        self.machines.values_mut()
    }
}
