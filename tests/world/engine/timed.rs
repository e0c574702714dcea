//! Worlds whose jobs have deadlines, or wait for a price.

use std::time::Duration;

use super::chance::Chance;
use super::plan::{Happening, Plan, Story, recipe};
use super::program::Recipe;

impl Plan {
    /// The same with jobs that have deadlines, some of which cannot be kept, or wait for a price, which may never come.
    pub(super) fn timed(mut self, chance: &mut Chance) -> Self {
        self.complete_within = chance.one_in(4).then(|| chance.pick(&["5m", "15m", "40m", "2h"]).to_owned());
        let spans = ["1m", "5m", "20m"];
        self.patience = chance.one_in(4).then(|| (chance.pick(&spans), chance.pick(&["0.15", "0.25", "0.4"])));
        self
    }

    /// A deadline that leaves from little to much time beside the work, and losses all the way to it.
    pub(super) fn with_deadline(chance: &mut Chance) -> Self {
        let recipe = Recipe {
            steps: chance.between(20, 120),
            step_time: chance.millis(3_000, 20_000),
            save_every: chance.between(1, 4),
            fails: None,
            ..recipe(chance, 0)
        };
        let saves = recipe.steps.div_ceil(recipe.save_every);
        let work = recipe.step_time * u32::try_from(recipe.steps).unwrap_or(u32::MAX)
            + recipe.save_time * u32::try_from(saves).unwrap_or(u32::MAX);
        let within = work + chance.millis(300_000, 5_400_000);
        let moment = |chance: &mut Chance| chance.millis(0, u64::try_from(within.as_millis()).unwrap_or(0));
        let mut happenings: Vec<(Duration, Happening)> =
            (0..chance.below(16)).map(|_| (moment(chance), Happening::SpotTaken)).collect();
        let others = [Happening::Crash, Happening::Failover, Happening::Relist, Happening::PodDeleted];
        happenings.extend((0..chance.below(3)).map(|_| (moment(chance), chance.pick(&others))));
        happenings.sort_by_key(|(at, _)| *at);
        Self {
            jobs: vec![recipe],
            complete_within: Some(format!("{}s", within.as_secs())),
            work_hours: format!("{:.6}", work.as_secs_f64() / 3600.0),
            watch_lag: chance.millis(20, 1_500),
            happenings,
            calm_at: within,
            ..Self::story(Story::Outbid)
        }
    }
}
