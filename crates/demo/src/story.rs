//! Tells what happens, from API objects, Events, the agents' logs and the market's own events. Each thing once, when it is first seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;
use tokio::time::Instant;
use tradewind_api::{
    RentedMachine, TrainingJob,
    training_job::{JobPhase, PlacementStatus},
};
use tradewind_checkpoints::Mailbox;
use tradewind_core::Money;
use tradewind_harness::Stack;

use crate::{
    logs::Logs,
    outbid::step_of,
    screen::{Screen, Who},
};

/// Time between two lines with step and loss.
const STEP_LINES: Duration = Duration::from_secs(2);
/// Events that are worth a line; the others say what the statuses say too.
const TOLD_EVENTS: &[&str] = &[
    "Resumed",
    "OrderRefused",
    "OutcomeUnknown",
    "CheckpointCorrupt",
    "CheckpointRefused",
    "NoUsableCheckpoint",
    "PodLost",
    "OrphanTerminated",
];

/// A machine as its object told it at last.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The job.
    pub job: String,
    /// The attempt.
    pub attempt: i64,
    /// Dollars an hour with its disk.
    pub price_per_hour: Money,
    /// Step that it went on from.
    pub restored_step: Option<i64>,
}

/// One job's state as it was told last.
#[derive(Default)]
struct Said {
    message: String,
    why: String,
    checkpoint: i64,
    attempts: usize,
    phase: JobPhase,
}

impl Said {
    /// Tells a new choice; the first time also what was left out and why.
    fn choice(&mut self, screen: &Screen, placement: &PlacementStatus) {
        let Some(why) = placement.why.as_ref().filter(|why| **why != self.why) else { return };
        screen.say(Who::Job, &format!("chosen: {why}"));
        if self.why.is_empty() {
            let left_out: Vec<&str> = placement.rejected.iter().map(String::as_str).filter(|l| is_count(l)).collect();
            screen.say(Who::Job, &format!("left out: {}", left_out.join("; ")));
        }
        self.why.clone_from(why);
    }
}

/// `2 are below minTrust Datacenter`, and not a runner-up such as `1xRTX3090 on demand …`.
fn is_count(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < line.len() && (rest.starts_with(" are ") || rest.starts_with(" is "))
}

/// The teller.
pub struct Story<'a> {
    screen: &'a Screen,
    main: &'a str,
    /// What agents left in the mailbox.
    pub logs: Logs,
    /// Machines by the provider's id.
    pub machines: BTreeMap<String, Facts>,
    /// RentedMachines as of the last look.
    pub present: Vec<RentedMachine>,
    said: BTreeMap<String, Said>,
    events: BTreeSet<String>,
    market_next: u64,
    steps_at: Option<Instant>,
}

impl<'a> Story<'a> {
    /// `main` is the job whose story it is; every other job gets a line at its beginning and end.
    pub fn new(screen: &'a Screen, main: &'a str) -> Self {
        Self {
            screen,
            main,
            logs: Logs::default(),
            machines: BTreeMap::new(),
            present: Vec::new(),
            said: BTreeMap::new(),
            events: BTreeSet::new(),
            market_next: 0,
            steps_at: None,
        }
    }

    /// Looks at everything once and tells what is new.
    pub async fn look(
        &mut self,
        stack: &Stack,
        mailbox: &Mailbox,
        namespace: &str,
        jobs: &[&str],
    ) -> Result<Vec<TrainingJob>> {
        self.present = stack.rented_machines().await?;
        self.logs.look(mailbox, &self.present).await;
        let mut seen = Vec::new();
        for job in jobs {
            let job = stack.job(namespace, job).await?;
            self.job(&job);
            seen.push(job);
        }
        self.rented();
        self.program();
        for (name, reason, note) in self.new_events(stack, namespace).await? {
            if name == self.main && TOLD_EVENTS.contains(&reason.as_str()) {
                self.screen.say(Who::Job, &format!("{reason}: {note}"));
            } else if reason == "FailedScheduling" && name == format!("{}-0", self.main) {
                // What preempting others would bring is another sentence.
                let why = note.split(". ").next().unwrap_or_default();
                self.screen.say(Who::Job, &format!("no room in the cluster: {why}"));
            }
        }
        self.market(stack).await?;
        Ok(seen)
    }

    /// The RentedMachine that works for the main job now.
    pub fn current(&self) -> Option<&RentedMachine> {
        self.present.iter().filter(|m| m.spec.job.name == self.main).max_by_key(|m| m.spec.attempt)
    }

    fn job(&mut self, job: &TrainingJob) {
        let name = job.metadata.name.clone().unwrap_or_default();
        let Some(status) = &job.status else { return };
        let said = self.said.entry(name.clone()).or_default();
        if name != self.main {
            if said.phase != status.phase
                && matches!(status.phase, JobPhase::Running | JobPhase::Complete | JobPhase::Failed)
            {
                self.screen.say(Who::Reference, &status.message);
            }
            said.phase = status.phase;
            return;
        }
        if let Some(placement) = &status.placement {
            said.choice(self.screen, placement);
        }
        if let Some(checkpoint) = status.checkpoint.as_ref().filter(|c| c.seq > said.checkpoint) {
            let megabytes = thousandths(checkpoint.bytes / 1000);
            let step = checkpoint.step;
            let line = format!("checkpoint of step {step} is uploaded, verified and counts ({megabytes} MB)");
            self.screen.say(Who::Job, &line);
            said.checkpoint = checkpoint.seq;
        }
        for record in status.history.iter().skip(said.attempts) {
            self.screen
                .say(Who::Job, &format!("attempt {} is over: {} ({})", record.attempt, record.message, record.ended));
        }
        said.attempts = status.history.len();
        // The machines' own lines tell the rental, the attempt's record its end.
        let told_elsewhere = matches!(status.phase, JobPhase::Renting | JobPhase::Resuming | JobPhase::Complete)
            || status.message.starts_with("rented");
        if status.message != said.message && !told_elsewhere {
            self.screen.say(Who::Job, &status.message);
            said.message.clone_from(&status.message);
        }
        said.phase = status.phase;
    }

    fn rented(&mut self) {
        for machine in &self.present {
            let Some(status) = &machine.status else { continue };
            let Some(id) = &status.machine_id else { continue };
            let facts = self.machines.entry(id.clone()).or_insert_with(|| {
                if machine.spec.job.name == self.main {
                    let gpu = status.gpu.as_deref().unwrap_or("machine without GPU");
                    let (terms, region) =
                        (status.capacity.as_deref().unwrap_or_default(), status.region.as_deref().unwrap_or_default());
                    let price = status.price_per_hour.unwrap_or(Money::ZERO);
                    self.screen.say(
                        Who::Market,
                        &format!(
                            "machine {id} is ours: {gpu}, {}, {region}, ${price} an hour with its disk",
                            terms.to_lowercase()
                        ),
                    );
                }
                Facts { job: machine.spec.job.name.clone(), attempt: machine.spec.attempt, ..Facts::default() }
            });
            facts.price_per_hour = status.price_per_hour.unwrap_or(facts.price_per_hour);
            facts.restored_step = status.restored_step.or(facts.restored_step);
        }
    }

    fn program(&mut self) {
        for told in self.logs.all_mut() {
            let lines = told.new_lines();
            if told.job != self.main {
                continue;
            }
            for line in lines {
                if step_of(&line).is_some() {
                    if self.steps_at.is_some_and(|at| at.elapsed() < STEP_LINES) {
                        continue;
                    }
                    self.steps_at = Some(Instant::now());
                }
                self.screen.say(Who::Program, &line);
            }
        }
    }

    async fn new_events(&mut self, stack: &Stack, namespace: &str) -> Result<Vec<(String, String, String)>> {
        let mut fresh = Vec::new();
        for event in stack.events(namespace).await? {
            if self.events.insert(event.metadata.name.clone().unwrap_or_default()) {
                let about = event.regarding.and_then(|r| r.name).unwrap_or_default();
                fresh.push((about, event.reason.unwrap_or_default(), event.note.unwrap_or_default()));
            }
        }
        Ok(fresh)
    }

    async fn market(&mut self, stack: &Stack) -> Result<()> {
        let news = stack.sim.events(self.market_next).await?;
        self.market_next = news.next;
        for event in &news.events {
            let text = |name: &str| event[name].as_str().unwrap_or_default();
            let id = text("machine");
            if self.machines.get(id).is_none_or(|facts| facts.job != self.main) {
                continue;
            }
            match text("kind") {
                "running" => self.screen.say(Who::Market, &format!("machine {id} is up")),
                "terminated" => {
                    let books = stack.sim.machines().await?;
                    let cost = books.machines.iter().find(|m| m.id == id).map_or(0, |m| m.cost_micros);
                    self.screen.say(
                        Who::Market,
                        &format!("machine {id} is gone; the provider bills ${}", Money::from_micros(cost)),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The offers of the market, one line each.
pub fn offers(answer: &Value) -> Vec<String> {
    let rows = answer["offers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines: Vec<String> = rows.iter().map(offer).collect();
    lines.sort();
    lines
}

fn offer(row: &Value) -> String {
    let fields = &row["offer"];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let dollars = |value: &Value| value.as_f64().map_or_else(|| "  -  ".to_owned(), |d| format!("${d:.2}"));
    if let Some(centers) = fields["dataCenters"].as_array() {
        let places: Vec<&str> = centers.iter().filter_map(|center| center["id"].as_str()).collect();
        let (secure, community) = (dollars(&fields["price"]["secure"]), dollars(&fields["price"]["community"]));
        let gpu = text(&row["id"]);
        return format!("RunPod  {gpu}  {}  secure {secure}, community {community}", places.join(" "));
    }
    let mut line = format!(
        "{}  {:<10}  {:<12}  on demand {}, lowest bid {}",
        text(&row["id"]),
        text(&fields["gpu_name"]),
        text(&fields["geolocation"]),
        dollars(&row["price"]),
        dollars(&row["bid"]),
    );
    if fields["hosting_type"].as_i64() == Some(0) {
        line.push_str(", somebody's own machine");
    }
    if let Some(reliability) = fields["reliability"].as_f64().filter(|r| *r < 0.95) {
        // Writing to a String cannot fail.
        let _ = write!(line, ", up {:.0} % of the time", reliability * 100.0);
    }
    line
}

/// `2149` as `2.1`.
fn thousandths(number: i64) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_say_what_is_odd_about_them() {
        let answer = serde_json::json!({ "offers": [{ "id": "7", "price": 0.4, "bid": 0.2,
            "offer": { "gpu_name": "RTX 4090", "geolocation": "Norway, NO", "hosting_type": 0, "reliability": 0.81 } }] });
        let lines = offers(&answer);
        assert_eq!(
            lines,
            [
                "7  RTX 4090    Norway, NO    on demand $0.40, lowest bid $0.20, somebody's own machine, up 81 % of the time"
            ]
        );
        assert_eq!(thousandths(2149), "2.1");
        assert!(is_count("12 are below minTrust Datacenter") && is_count("1 is above $1.50 per hour"));
        assert!(!is_count("1xRTX3090 on demand in SE") && !is_count("x are"));
    }
}
