//! The misfortune: another customer bids more, at a seeded random step, while an upload is under way.

use std::{fmt, fs};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tradewind_api::RentedMachine;
use tradewind_harness::{
    Stack,
    proxy::{Action, InFlight, Match, Rule},
};

/// Bytes a second that the chosen upload gets: it takes longer than the misfortune needs.
const BRAKE: u64 = 250_000;
/// Steps before the save at which the brake is put on.
const AHEAD: u64 = 30;

/// When it happens: between the save number `save` and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Steps between two saves.
    pub every: u64,
    /// Number of the save whose upload is cut, from 1.
    pub save: u64,
    /// Steps after that save.
    pub after: u64,
}

impl Plan {
    /// After the second save, and with time left for another upload.
    pub fn seeded(seed: u64, steps: u64, every: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let saves = steps / every;
        let save = random.random_range(2..saves.saturating_sub(2).max(3));
        Self { every, save, after: random.random_range(every / 4..every * 3 / 4) }
    }

    /// The step.
    pub fn step(&self) -> u64 {
        self.save * self.every + self.after
    }
}

/// An upload that never came to its end.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    /// How long it was under way.
    pub seconds: f64,
    /// Bytes that had passed.
    pub sent: u64,
    /// Bytes in all.
    pub of: u64,
}

impl fmt::Display for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes in {:.1} s", self.sent, self.of, self.seconds)
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub struct Misfortune {
    /// The provider's id of the machine.
    pub machine: String,
    /// The moment.
    pub at: Timestamp,
    /// The newest step that the program had printed.
    pub step: u64,
    /// The upload that was under way.
    pub upload: Option<Upload>,
    /// Keys of the chunks that were completely uploaded before, below the checkpoint's location.
    pub uploaded: Vec<String>,
}

enum Stage {
    Waiting,
    Braked(Rule),
    Released,
}

/// Watches the first machine of the job and strikes once.
pub struct Outbid {
    plan: Plan,
    stage: Stage,
    /// What happened, once it has.
    pub done: Option<Misfortune>,
}

impl Outbid {
    /// Nothing has happened yet.
    pub fn new(plan: Plan) -> Self {
        Self { plan, stage: Stage::Waiting, done: None }
    }

    /// Looks at the machine, and acts when its time has come. `location` is the checkpoints' place as `bucket/prefix/`.
    pub async fn look(&mut self, stack: &Stack, machine: Option<&RentedMachine>, location: &str) -> Result<()> {
        let Some(machine) = machine.filter(|m| m.spec.attempt == 0) else {
            self.release();
            return Ok(());
        };
        let Some(id) = machine.status.as_ref().and_then(|s| s.machine_id.clone()) else { return Ok(()) };
        let uploads = Match::method("PUT").target(&format!("^/{location}data/0-"));
        match &self.stage {
            Stage::Waiting => {
                let step = printed_step(stack, &id).await?;
                let near = step + AHEAD >= self.plan.save * self.plan.every;
                let whole = stack.s3.proxy.exchanges(&uploads).iter().filter(|e| e.status == Some(200)).count() as u64;
                if near && whole + 1 >= self.plan.save && stack.s3.proxy.in_flight(&uploads).is_empty() {
                    self.stage = Stage::Braked(stack.s3.proxy.rule(uploads, Action::Throttle(BRAKE)));
                }
            }
            Stage::Braked(_) if self.done.is_none() => {
                let step = printed_step(stack, &id).await?;
                if step >= self.plan.step() && !stack.s3.proxy.in_flight(&uploads).is_empty() {
                    self.strike(stack, &machine.spec.provider, id, step, &uploads, location).await?;
                }
            }
            Stage::Braked(_) | Stage::Released => {}
        }
        Ok(())
    }

    async fn strike(
        &mut self,
        stack: &Stack,
        provider: &str,
        id: String,
        step: u64,
        uploads: &Match,
        location: &str,
    ) -> Result<()> {
        let proxy = &stack.s3.proxy;
        let done = proxy.exchanges(uploads).into_iter().filter(|e| e.status == Some(200));
        let key = |target: &str| Some(target.split('?').next()?.strip_prefix('/')?.strip_prefix(location)?.to_owned());
        let uploaded = done.filter_map(|e| key(&e.head.target)).collect();
        let flight = proxy.in_flight(uploads).into_iter().next();
        let length = |f: &InFlight| f.head.headers.get("content-length")?.to_str().ok()?.parse().ok();
        let upload = flight.map(|f| Upload {
            seconds: f.began.elapsed().as_secs_f64(),
            sent: f.request_bytes,
            of: length(&f).unwrap_or(0),
        });
        let at = tradewind_core::Clock::now(&tradewind_core::SystemClock::default());
        stack.sim.act(provider, &id, "outbid", &json!({})).await?;
        self.done = Some(Misfortune { machine: id, at, step, upload, uploaded });
        Ok(())
    }

    /// The machine is gone: what is left of its upload may go on.
    fn release(&mut self) {
        if let (Stage::Braked(rule), Some(_)) = (&self.stage, &self.done) {
            rule.remove();
            self.stage = Stage::Released;
        }
    }
}

/// The newest step in what the machine printed, which the simulator keeps in a file beside it.
async fn printed_step(stack: &Stack, id: &str) -> Result<u64> {
    let machines = stack.sim.machines().await?.machines;
    let machine = machines.iter().find(|m| m.id == id).with_context(|| format!("the market knows no machine {id}"))?;
    let directory = machine.dir.as_ref().context("the simulator tells no directory")?;
    // Before the machine runs there is no file.
    let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
    Ok(log.lines().rev().find_map(step_of).unwrap_or(0))
}

/// The step in `step 120/480 loss 2.1`.
pub fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix("step ")?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_is_random_repeatable_and_never_at_an_edge() {
        let plans: Vec<Plan> = (0..200).map(|seed| Plan::seeded(seed, 480, 60)).collect();
        assert_eq!(plans[7], Plan::seeded(7, 480, 60));
        assert!(plans.iter().all(|p| (120..360).contains(&p.step())), "{plans:?}");
        assert!(plans.iter().map(Plan::step).collect::<std::collections::BTreeSet<_>>().len() > 50);
    }

    #[test]
    fn steps_are_read_from_the_programs_lines() {
        assert_eq!(step_of("step 120/480 loss 2.1"), Some(120));
        assert_eq!(step_of("resumed from step 120"), None);
    }
}
