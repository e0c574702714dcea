//! `plan -f FILE`: where and when jobs would be placed, without a cluster and without an account.
//!
//! Nothing is decided here: what a spec means, what fits, what it costs and when it is rented are the operator's own functions, on offers
//! out of a file or of a market. What only a running operator knows is told as assumed.

mod manifest;
mod render;
mod rules;
mod schema;
mod view;

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;
use tradewind::controllers::training_job::placement::OTHERS_TOLD;
use tradewind::controllers::training_job::valid;
use tradewind_core::Clock;
use tradewind_providers::OfferQuery;

pub use self::manifest::Manifest;
pub use self::render::render;
pub use self::view::{Decision, PlanView};
use crate::cli::{Form, PlanArgs};
use crate::market::{self, Market};
use crate::screen::Screen;
use crate::{Trouble, trouble};

/// Alternatives that `-o wide` tells.
const OTHERS_WIDE: usize = 10;

/// What `-o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plans {
    /// One for each TrainingJob, in the order of the files.
    pub plans: Vec<PlanView>,
}

impl Plans {
    /// 0 if every job could run.
    pub fn exit_code(&self) -> u8 {
        let bad = |plan: &PlanView| matches!(plan.decision, Decision::Nowhere | Decision::Refused);
        if self.plans.iter().any(bad) { trouble::BAD } else { trouble::GOOD }
    }
}

/// Runs the command.
pub async fn run(args: &PlanArgs, form: Option<Form>, screen: Screen, clock: Arc<dyn Clock>) -> Result<u8, Trouble> {
    let stdin = std::path::Path::new("-");
    let readers = args.filename.iter().chain(&args.sources.files).filter(|path| path.as_path() == stdin).count();
    if readers > 1 {
        return Err(Trouble::Usage("standard input can be read once: name a file for one of the two".to_owned()));
    }
    let mut found = Manifest::default();
    for path in &args.filename {
        let name = if path == stdin { "standard input".to_owned() } else { path.display().to_string() };
        let bytes = market::bytes(path)?;
        let text = String::from_utf8(bytes).map_err(|_| Trouble::Usage(format!("{name} is no text")))?;
        let one = Manifest::read(&name, &text)?;
        found.jobs.extend(one.jobs);
        found.others.extend(one.others);
    }
    let market = Market::read(&args.sources, &query(&found), Arc::clone(&clock)).await?;
    let others = if form == Some(Form::Wide) { OTHERS_WIDE } else { OTHERS_TOLD };
    let now = clock.now();
    let plans = Plans { plans: found.jobs.iter().map(|job| PlanView::of(job, &market, now, others)).collect() };
    screen.show(form, &plans, |ink| {
        let plans: Vec<String> = plans.plans.iter().map(|plan| render(plan, now, ink)).collect();
        let mut text = plans.join("\n");
        if !found.others.is_empty() {
            let _ = write!(text, "\nPassed over: {}\n", found.others.join(", "));
        }
        text
    })?;
    Ok(plans.exit_code())
}

/// What all of the jobs need at least: markets are asked once for all.
fn query(found: &Manifest) -> OfferQuery {
    let needs: Vec<_> = found.jobs.iter().map(|job| valid::values(job).needs).collect();
    OfferQuery {
        min_gpu_count: needs.iter().map(|n| n.gpu_count).min().unwrap_or(0),
        min_gpu_memory_mib: needs.iter().map(|n| n.min_gpu_memory_mib).min().unwrap_or(0),
        disk_gib: needs.iter().map(|n| n.disk_gib).min().unwrap_or(0),
    }
}
