//! An end of the table happens, in the moment in which its phase is first seen.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use tradewind_api::RentedMachine;
use tradewind_cluster::Key;
use tradewind_sim::market::State;

use super::operator::settings;
use super::plan::{Happening, Mood};
use super::table::Reached;
use super::wire::lock;
use super::world::World;

/// From an end to the calm: longer than every trouble that passes by itself.
const TROUBLED: Duration = Duration::from_secs(210);

impl World {
    /// Lets the end of the cell happen if its phase was reached just now.
    pub(super) fn end_comes(&mut self) {
        let Mood::Cell(cell) = self.mood else { return };
        if !lock(&self.common.checker).takes_reached() {
            return;
        }
        let finds = self.finds(cell.end);
        self.reached = if finds { Reached::Happened } else { Reached::Nothing };
        self.common.note(|| format!("--- {:?} is reached; the end finds something: {finds}", cell.at));
        lock(&self.common.checker).end_happens(cell);
        self.happen(cell.end);
        self.plan.calm_at = self.common.now() + TROUBLED;
        self.common.look();
    }

    /// Whether there is anything that the end could hit.
    fn finds(&self, end: Happening) -> bool {
        let memory = &self.common.memory;
        let market = |wanted: &dyn Fn(&State) -> bool| {
            self.common.with_market(|market, _| market.machines().iter().any(|m| wanted(&m.state)))
        };
        let node = settings().node_name;
        match end {
            Happening::PodDeleted | Happening::PodForced | Happening::PodEvicted => {
                !memory.peek_all::<Pod>().is_empty()
            }
            Happening::Drained | Happening::NodeNotReady | Happening::PodsCollected => memory
                .peek_all::<Pod>()
                .iter()
                .any(|pod| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&node)),
            Happening::NodeDeleted | Happening::Cordoned => memory.peek::<Node>(&Key::cluster(node)).is_some(),
            Happening::MachineDeleted => !memory.peek_all::<RentedMachine>().is_empty(),
            Happening::Reboot => market(&|s| *s == State::Running),
            Happening::Outbid | Happening::Reclaim => {
                market(&|s| matches!(s, State::Running | State::Booting { .. } | State::Restarting { .. }))
            }
            _ => true,
        }
    }
}
